"""The service as a process: it starts, stops gracefully, and outlives its database."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from syncd.config import WebConfig
from syncd.errors import ConfigError
from syncd.serve import _door
from syncd.state.outage import is_lost
from syncd.tenants import Tenants
from syncd.wiring import watching
from syncd.worker import Queue, Worker
from tests.cli.test_cli import Desk, desk, folder, in_step, syncd
from tests.service.test_queue import PAIR, jobs, last_run, until

__all__ = ["desk", "folder"]

SERVE = [str(Path(sys.executable).with_name("syncd")), "serve"]


@contextmanager
def serving(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``syncd serve`` in a process of its own, on a free port; what it logs goes into a file."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config" / "syncd.yaml").write_text(f"web: {{port: {port}}}\nworkers: 2\n")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*SERVE, *arguments], cwd=tmp_path, stderr=log, env=dict(os.environ), text=True)  # noqa: S603 - our own
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(60)


def logged(tmp_path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]


def test_sigterm_ends_the_service_with_everything_settled(desk: Desk, tmp_path: Path) -> None:
    """It starts, runs what is due, and on SIGTERM stops within its grace period, with no run left open."""
    pair = desk.tenant("hubspot", every="2s")
    pair.seed(contacts=2, deals=1)
    in_step(pair)
    before = last_run(desk)
    pair.hub_rename("hub1@example.com", "Renamed")
    with serving(tmp_path) as process:
        until(lambda: last_run(desk) != before or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    told = logged(tmp_path)
    assert "service.started" in told and told[-1] == "service.stopped"
    with desk.service.engine.connect() as tx:
        assert tx.execute(text("SELECT count(*) FROM run WHERE state = 'running'")).scalar() == 0
        assert tx.execute(text("SELECT count(*) FROM pair WHERE holder IS NOT NULL")).scalar() == 0


def test_a_port_that_is_taken_is_named_with_the_key_to_set(desk: Desk, tmp_path: Path) -> None:
    """The service does not start half."""
    desk.tenant("hubspot").write()
    with serving(tmp_path) as process:
        until(lambda: "service.started" in logged(tmp_path) or process.poll() is not None)
        second = subprocess.run(  # noqa: S603 - our own
            SERVE, cwd=tmp_path, env=dict(os.environ), text=True, capture_output=True, timeout=60, check=False
        )
    assert second.returncode == 2
    assert "cannot listen on 127.0.0.1:" in second.stderr and "set web.port in config/syncd.yaml" in second.stderr


@pytest.mark.parametrize(("options", "level"), [((), "error"), (("--log-level", "debug"), "debug")])
def test_the_service_logs_what_its_file_says_unless_it_is_told_otherwise(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], level: str
) -> None:
    """``log_level`` of syncd.yaml is in force from the first line on; the command line wins over it."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "syncd.yaml").write_text("log_level: error\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNCD_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert syncd(*options, "serve").code == 2  # the database does not answer, which is said before anything else
    assert structlog.get_logger().bind().is_enabled_for(logging.getLevelNamesMapping()[level.upper()])
    assert structlog.get_logger().bind().is_enabled_for(logging.INFO) is (level == "debug")


def test_a_replica_beside_another_takes_a_free_port_where_nobody_chose_one() -> None:
    """The usual port is a convenience, and no reason for a second process to stay away."""
    try:
        first = socket.create_server(("127.0.0.1", WebConfig().port))
    except OSError:
        first = None  # somebody has it already, which is as good
    second = _door(WebConfig())
    assert second.getsockname()[1] != WebConfig().port
    with pytest.raises(ConfigError, match="cannot listen"):
        _door(WebConfig(port=WebConfig().port))
    for each in (first, second):
        if each is not None:
            each.close()


def test_a_part_alone_does_only_its_own(desk: Desk, tmp_path: Path) -> None:
    """A scheduler asks and runs nothing."""
    pair = desk.tenant("hubspot")
    in_step(pair)
    with desk.service.engine.begin() as tx:
        tx.execute(text("UPDATE run SET started_at = started_at - interval '1 hour'"))
    before = last_run(desk)
    with serving(tmp_path, "--scheduler"):
        until(lambda: ("run", "todo") in jobs(desk))
    assert last_run(desk) == before


def test_a_lost_database_is_told_from_a_refused_statement(desk: Desk) -> None:
    """What cannot be reached, was cut off, or shuts down is lost; a wrong or cancelled statement is not."""
    lost, kept = [], []
    with pytest.raises(DBAPIError) as raised:
        create_engine("postgresql+psycopg://u:p@127.0.0.1:1/x").connect()
    lost.append(raised.value)
    with pytest.raises(DBAPIError) as raised, desk.service.engine.connect() as tx:
        pid = tx.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with desk.service.engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        tx.execute(text("SELECT 1"))
    lost.append(raised.value)
    for statement in ("SELECT nothing FROM nowhere", "SET statement_timeout = 1; SELECT pg_sleep(1)"):
        with pytest.raises(DBAPIError) as raised, desk.service.engine.connect() as tx:
            tx.execute(text(statement))
        kept.append(raised.value)
    desk.service.engine.dispose()
    assert [is_lost(each) for each in (*lost, *kept)] == [True, True, False, False]


def test_an_outage_is_told_when_it_begins_and_when_it_ends(desk: Desk) -> None:
    """And not in between, however many parts notice."""
    with capture_logs() as logs:
        for _ in range(3):
            with watching(desk.service):
                create_engine("postgresql+psycopg://u:p@127.0.0.1:1/x").connect()
        for _ in range(3):
            with watching(desk.service):
                pass
    assert [each["event"] for each in logs] == ["database.lost", "database.found"]
    with pytest.raises(KeyError), watching(desk.service):
        raise KeyError


def test_a_worker_whose_connections_were_cut_goes_on(desk: Desk) -> None:
    """When the database is back, so is the worker, without anybody's help."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=1, deals=1)
    in_step(pair)
    before = last_run(desk)
    worker = Worker(desk.service, Tenants(desk.folder))
    worker.start()
    beating = text("SELECT count(*) FROM procrastinate_workers")

    def workers() -> int:
        with desk.service.engine.connect() as tx:
            return int(tx.execute(beating).scalar_one())

    until(workers)
    with desk.service.engine.begin() as tx:
        tx.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    desk.service.engine.dispose()
    Queue(desk.service.engine).wake(PAIR)
    until(lambda: last_run(desk) != before, 120)
    assert worker.stop(60)
