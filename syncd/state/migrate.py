"""Brings a database to this release's tables, or says that somebody must."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from procrastinate.schema import SchemaManager
from sqlalchemy import Connection, Engine, insert, select, text
from sqlalchemy.exc import OperationalError

from syncd.errors import ConfigError
from syncd.state.schema import queue_migration

#: Two replicas may start at once; the second waits for the first.
_LOCK = 7_305_017
_DOWN = "the database does not answer; check SYNCD_DATABASE_URL and that PostgreSQL is running"


def upgrade(engine: Engine) -> str:
    """Apply every migration that is missing, under a lock; returns the revision reached.

    The tables of a later release stay as they are, so that a release can be rolled back.
    """
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            found = MigrationContext.configure(connection).get_current_revision()
            if found is None or found in _revisions()[1]:
                command.upgrade(configuration(connection), "head")
                _bring_queue(connection)
            return MigrationContext.configure(connection).get_current_revision() or ""
    except OperationalError as exc:
        raise ConfigError(_DOWN) from exc


def require_current(engine: Engine) -> None:
    """Raises ConfigError if the database cannot be reached or lacks a migration of this release."""
    wanted, known = _revisions()
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
            lacks = _queue_lacks(connection) if found == wanted else []
    except OperationalError as exc:
        raise ConfigError(_DOWN) from exc
    # A revision of a later release is fine: migrations expand first, so that a release can be rolled back.
    if found is None or (found in known and found != wanted):
        raise ConfigError(
            f"the database is at revision {found or 'none'}, this release needs {wanted}; run: syncd migrate"
        )
    if lacks:
        raise ConfigError(f"the queue's tables lack {lacks[0]}; run: syncd migrate")


def _bring_queue(connection: Connection) -> None:
    """The queue's own tables come with its library: whole at first, then each of its migrations once."""
    is_new = connection.execute(select(queue_migration.c.name).limit(1)).first() is None
    lacks = _queue_lacks(connection)
    # Several statements in one text, which no parameters accompany: the driver itself takes them as they are.
    driver = connection.connection.cursor()
    if is_new:
        driver.execute(SchemaManager.get_schema())
    else:
        for name in lacks:
            driver.execute((Path(SchemaManager.get_migrations_path()) / name).read_text(encoding="utf-8"))
    if lacks:
        connection.execute(insert(queue_migration), [{"name": name} for name in lacks])


def _queue_lacks(connection: Connection) -> list[str]:
    """The names of the library's migrations that this database has not seen, in their order."""
    seen = set(connection.execute(select(queue_migration.c.name)).scalars())
    names = sorted(file.name for file in Path(SchemaManager.get_migrations_path()).glob("*.sql"))
    return [name for name in names if name not in seen]


@cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    """The revision that this release needs, and all that it knows; they do not change while a process lives."""
    scripts = ScriptDirectory(str(folder()))
    return scripts.get_current_head(), frozenset(script.revision for script in scripts.walk_revisions())


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
