"""Brings a database to this release's tables, or says that somebody must."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from syncd.errors import ConfigError

#: Two replicas may start at once; the second waits for the first.
_LOCK = 7_305_017
_DOWN = "the database does not answer; check SYNCD_DATABASE_URL and that PostgreSQL is running"


def upgrade(engine: Engine) -> str:
    """Apply every migration that is missing, under a lock; returns the revision reached."""
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            command.upgrade(configuration(connection), "head")
            return MigrationContext.configure(connection).get_current_revision() or ""
    except OperationalError as exc:
        raise ConfigError(_DOWN) from exc


def require_current(engine: Engine) -> None:
    """Raises ConfigError if the database cannot be reached or lacks a migration of this release."""
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
            scripts = ScriptDirectory.from_config(configuration(connection))
            wanted = scripts.get_current_head()
            known = {script.revision for script in scripts.walk_revisions()}
    except OperationalError as exc:
        raise ConfigError(_DOWN) from exc
    # A revision of a later release is fine: migrations expand first, so that a release can be rolled back.
    if found is None or (found in known and found != wanted):
        raise ConfigError(
            f"the database is at revision {found or 'none'}, this release needs {wanted}; run: syncd migrate"
        )


def configuration(connection: Connection) -> Config:
    """Alembic's configuration for one connection."""
    config = Config()
    config.set_main_option("script_location", str(folder()))
    config.attributes["connection"] = connection
    return config


def folder() -> Path:
    """Where the migrations are: inside the installed package, or at the root of a checkout."""
    packaged = Path(__file__).parent / "migrations"
    return packaged if packaged.exists() else Path(__file__).parents[2] / "migrations"
