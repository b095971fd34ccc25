"""The migrations, on a real and empty database."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from syncd.errors import ConfigError
from syncd.state import migrate
from syncd.state.schema import metadata


def test_from_empty_the_migrations_lead_to_exactly_the_models(empty_database: str) -> None:
    """No table, column or index differs between what the migrations make and what the code expects."""
    engine = create_engine(empty_database)
    migrate.upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    migrate.require_current(engine)
    engine.dispose()


def test_migrating_twice_changes_nothing(empty_database: str) -> None:
    """Each replica may migrate at its start."""
    engine = create_engine(empty_database)
    assert migrate.upgrade(engine) == migrate.upgrade(engine)
    engine.dispose()


def test_a_database_without_tables_is_refused_with_the_command_that_helps(empty_database: str) -> None:
    """Starting on a database that was never migrated names the fix."""
    engine = create_engine(empty_database)
    with pytest.raises(ConfigError, match=r"at revision none, this release needs \w+; run: syncd migrate"):
        migrate.require_current(engine)
    engine.dispose()


def test_a_database_that_is_down_is_named_as_such() -> None:
    """No traceback of a driver, no password: what to check."""
    engine = create_engine("postgresql+psycopg://u:secret@127.0.0.1:1/x")
    with pytest.raises(ConfigError, match="the database does not answer") as raised:
        migrate.require_current(engine)
    assert "secret" not in str(raised.value)
