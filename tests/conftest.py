"""One real PostgreSQL for the whole suite; a fresh, empty schema for each test that asks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from syncd.state import embedded, migrate
from tests.engine.world import PostgresState, State
from tests.simulation.memory_rows import MemoryState

_serial = count()


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
    yield from _database(database_url, None)


@pytest.fixture
def engine(database_url: str, template: str) -> Iterator[Engine]:
    """A database that holds syncd's tables and nothing else."""
    for url in _database(database_url, template):
        engine = create_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture(params=["postgres", "memory"])
def state(request: pytest.FixtureRequest) -> State:
    """What keeps the state: a real database, or the one in memory that the simulation uses. Each law holds on both."""
    if request.param == "memory":
        return MemoryState()
    return PostgresState(request.getfixturevalue("engine"))


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
