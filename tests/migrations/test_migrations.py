"""The migrations, on a real and empty database."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text

from syncd.core.match import keys_of
from syncd.core.model import Record
from syncd.errors import ConfigError
from syncd.state import migrate
from syncd.state.schema import metadata


def test_from_empty_the_migrations_lead_to_exactly_the_models(empty_database: str) -> None:
    """No table, column or index differs between what the migrations make and what the code expects."""
    engine = create_engine(empty_database)
    migrate.upgrade(engine)
    with engine.connect() as connection:
        opts = {"compare_type": True, "include_name": _is_ours}
        assert compare_metadata(MigrationContext.configure(connection, opts=opts), metadata) == []
    migrate.require_current(engine)
    engine.dispose()


def _is_ours(name: str | None, type_: str, parents: object) -> bool:
    """The queue's tables are its library's."""
    return type_ != "table" or not str(name).startswith("procrastinate_")


def test_the_queue_comes_with_its_tables_and_a_migration_of_its_library_is_asked_for(empty_database: str) -> None:
    """Its library's migrations are applied once each; one that is missing is named before the service starts."""
    engine = create_engine(empty_database)
    migrate.upgrade(engine)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM procrastinate_jobs")).scalar() == 0
        connection.execute(text("DELETE FROM queue_migration WHERE name LIKE '03.04.00_01%'"))
    with pytest.raises(ConfigError, match=r"the queue's tables lack 03\.04\.00_01\S+; run: syncd migrate"):
        migrate.require_current(engine)
    engine.dispose()


def test_migrating_twice_changes_nothing(empty_database: str) -> None:
    """Each replica may migrate at its start."""
    engine = create_engine(empty_database)
    assert migrate.upgrade(engine) == migrate.upgrade(engine)
    engine.dispose()


def test_the_tables_of_a_later_release_are_left_as_they_are(empty_database: str) -> None:
    """A release that is rolled back finds them, migrates nothing, and starts."""
    engine = create_engine(empty_database)
    migrate.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'of_a_later_release'"))
    assert migrate.upgrade(engine) == "of_a_later_release"
    migrate.require_current(engine)
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


def test_keys_in_clear_become_the_digests_that_matching_compares(empty_database: str) -> None:
    """Whoever was linked before is found by the same address after: else everybody would be made a second time."""
    engine = create_engine(empty_database)
    with engine.begin() as connection:
        command.upgrade(migrate.configuration(connection), "0001")
        connection.execute(text(_LINKED))
    migrate.upgrade(engine)
    record = Record("contact", "1", {"email": "Åsa@x.se", "other_emails": frozenset({"b@x.se"})})
    named = Record("company", "1", {"name": "Café: Åkerö", "org_number": "556900-1000", "domain": "x.se"})
    wanted = {*keys_of(record, "t/crm"), *keys_of(named, "t/crm"), "refs:contact=1", "ref:contact=1"}
    with engine.connect() as connection:
        keys, steps = connection.execute(text("SELECT left_keys, (SELECT steps FROM operation) FROM link")).one()
    assert (set(keys), steps) == (wanted, {})
    engine.dispose()


_LINKED = """
INSERT INTO tenant (name, config_hash, seen_at) VALUES ('t', '', now());
INSERT INTO pair (id, tenant, name, connector, namespace, config_hash) VALUES ('t/crm', 't', 'crm', 'c', 'c', '');
INSERT INTO link (pair, kind, left_id, right_id, state, why, linked_at, left_keys) VALUES ('t/crm', 'contact', '1', '2',
  'in_step', '', now(), ARRAY['email:åsa@x.se', 'email:b@x.se', 'domain:x.se', 'org:5569001000', 'name:café: åkerö',
  'refs:contact=1', 'ref:contact=1']);
INSERT INTO plan (id, pair, hash, state, made_at) VALUES ('p', 't/crm', '', 'applied', now());
INSERT INTO operation (plan, pair, kind, verb, side, idempotency_key, state, steps)
  VALUES ('p', 't/crm', 'contact', 'update', 'left', 'k', 'done', '{"email": "x"}');
"""
