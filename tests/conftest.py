"""One real PostgreSQL for the whole suite; empty tables for each test that asks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from syncd.state import embedded, migrate
from syncd.state import schema as s
from tests.engine.world import PostgresState, State
from tests.simulation.memory_rows import MemoryState

_serial = count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files begin first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """The embedded server, unless SYNCD_DATABASE_URL names another."""
    if url := os.environ.get("SYNCD_DATABASE_URL"):
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="syncd-tests-", ignore_cleanup_errors=True) as folder:
        url = embedded.start(Path(folder))
        forget_disk(url)
        yield url


def forget_disk(url: str) -> None:
    """Nobody pulls the plug on this server, so it need not wait for the disk."""
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(text(f"ALTER SYSTEM SET {name} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    admin.dispose()


@pytest.fixture(scope="session")
def template(database_url: str) -> str:
    name = f"template_{os.getpid()}"
    admin = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = create_engine(_named(database_url, name))
    migrate.upgrade(engine)
    engine.dispose()
    admin.dispose()
    return name


@pytest.fixture
def empty_database(database_url: str) -> Iterator[str]:
    """The URL of a database without any table."""
    with _database(database_url, None) as url:
        yield url


@pytest.fixture(scope="session")
def shared_engine(database_url: str, template: str) -> Iterator[Engine]:
    """A database for all tests of this process, one after the other: SQL that was compiled once serves them all."""
    with _database(database_url, template) as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """A database that holds syncd's tables and nothing else."""
    yield from _emptied(shared_engine)


@pytest.fixture(scope="module")
def module_engine(shared_engine: Engine) -> Iterator[Engine]:
    """The same for all tests of a module that play in one world; none of them asks for ``engine``."""
    yield from _emptied(shared_engine)


def _emptied(shared_engine: Engine) -> Iterator[Engine]:
    yield shared_engine
    shared_engine.dispose()
    with shared_engine.begin() as tx:
        tx.execute(text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ))  # fmt: skip
        numbers = tx.execute(text("SELECT quote_ident(sequencename) FROM pg_sequences WHERE schemaname = 'public'"))
        # To delete some rows takes a tenth of the time that it takes to truncate tables, each a few new files.
        tx.execute(text("; ".join([
            "SET LOCAL session_replication_role = replica",
            *(f"DELETE FROM {name}" for name in (*s.metadata.tables, *_QUEUE) if name != s.queue_migration.name),  # noqa: S608 - our own names
            *(f"SELECT setval('{number}', 1, false)" for number in numbers.scalars()),
        ])))  # fmt: skip


#: What the queue keeps, in its library's tables.
_QUEUE = ("procrastinate_jobs", "procrastinate_events", "procrastinate_periodic_defers", "procrastinate_workers")


@pytest.fixture(params=["postgres", "memory"])
def state(request: pytest.FixtureRequest) -> State:
    """What keeps the state: a real database, or the one in memory that the simulation uses. Each law holds on both."""
    if request.param == "memory":
        return MemoryState()
    return PostgresState(request.getfixturevalue("engine"))


@contextmanager
def _database(url: str, template: str | None) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_serial)}"
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else "")))
    yield _named(url, name)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def _named(url: str, name: str) -> str:
    before, _, query = url.partition("?")
    return before.rsplit("/", 1)[0] + f"/{name}" + (f"?{query}" if query else "")
