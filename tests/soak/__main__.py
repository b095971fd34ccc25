"""``make soak``: replicas on one database under steady edits, killed and paused in turn.

Prints how long each takeover took, and what became of the promises. Everything is real: processes of
``syncd serve``, PostgreSQL, HTTP, the SDKs, signals and the clock. Which replica sent a request is read off
the connection that it came over.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import click
from sqlalchemy import Engine, select, text

from connectors.propstreet.emulator import PropstreetEmulator
from syncd.log import set_up
from syncd.state import embedded, migrate
from syncd.state import schema as s
from syncd.testing.emulator import Call
from syncd.wiring import Service, check_pair, database, run_pair
from tests.faults.harness import Pair, crm_emulator, started
from tests.soak.people import CONTACTS, People, at, now, sleep

SYNCD = str(Path(sys.executable).with_name("syncd"))
#: One replica is struck this often, and a killed one comes back this long after.
STRIKE_SECONDS, BACK_SECONDS = 30.0, 15.0
#: What the house promises.
TAKEOVER_SECONDS = 30.0
EDIT_SECONDS = 0.5
EVERY = "5s"


# --- replicas -----------------------------------------------------------------------------


@dataclass
class Replica:
    """One process of ``syncd serve``."""

    number: int
    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    was: list[int] = field(default_factory=list)

    def start(self) -> None:
        home = self.home / f"replica{self.number}"
        (home / "config").mkdir(parents=True, exist_ok=True)
        (home / "config" / "syncd.yaml").write_text(f"workers: 2\nweb: {{port: {18766 + self.number}}}\n")
        with (home / "log").open("ab") as log:
            self.process = subprocess.Popen([SYNCD, "serve"], cwd=home, env=self.environment, stderr=log)  # noqa: S603
        self.was.append(self.process.pid)

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def end(self) -> int:
        assert self.process is not None
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        return self.process.wait(60)


class Peers:
    """Which process is behind a port of this machine, kept for ports that are closed by now."""

    def __init__(self, replicas: list[Replica]):
        self._replicas, self._known = replicas, dict[int, int]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peers:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def behind(self, port: int) -> int | None:
        """Looked up now, since a port that one process closed may be another's by the time it is heard of again."""
        self._look()
        return self._known.get(port)

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self._look()

    def _look(self) -> None:
        ports = _ports_by_inode()
        for pid in [each.pid for each in self._replicas if each.process is not None]:
            for inode in _sockets_of(pid):
                if inode in ports:
                    self._known[ports[inode]] = pid


def _ports_by_inode() -> dict[str, int]:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9]: int(row[1].rpartition(":")[2], 16) for row in rows}


def _sockets_of(pid: int) -> Iterator[str]:
    try:
        for each in Path(f"/proc/{pid}/fd").iterdir():
            if found := re.fullmatch(r"socket:\[(\d+)\]", str(each.readlink())):
                yield found.group(1)
    except OSError:
        return


# --- the world ----------------------------------------------------------------------------


def build(stack: ExitStack, service: Service, home: Path, many: int) -> list[Pair]:
    """Tenants in step with emulators that live in real time."""
    pairs: list[Pair] = []
    for number in range(many):
        connector = ("hubspot", "salesforce")[number % 2]
        left, right = PropstreetEmulator(now=now), crm_emulator(connector, now)
        stack.enter_context(started(left, right))
        pair = Pair(f"tenant{number}", connector, home / "tenants", left, right, {"every": EVERY})
        # An audit reads beside a run, without a lease: it would look like a replica that has lost its own.
        pair.write({**pair.document(), "audit": {"enabled": False}})
        pair.seed(contacts=CONTACTS, deals=2)
        tenant, config = pair.config()
        check_pair(service, tenant, config, is_fixing=True)
        for reason in ("backfill", "run"):
            result = run_pair(service, tenant, config, reason)
            assert result.state == "done", result.message
        pair.assert_in_step()
        left.log.clear()
        right.log.clear()
        pairs.append(pair)
    return pairs


# --- strikes ------------------------------------------------------------------------------


def leases(engine: Engine) -> dict[str, tuple[int, int]]:
    """By pair its holder's process and its fence."""
    with engine.connect() as tx:
        rows = tx.execute(select(s.pair.c.id, s.pair.c.holder, s.pair.c.fence)).all()
    return {row.id: (int(row.holder.split(":")[1]) if row.holder else 0, row.fence) for row in rows}


def strike(engine: Engine, replica: Replica, number: int) -> list[float]:
    """Hit a replica while it runs pairs; how long until others had taken over each of them."""
    mine: dict[str, int] = {}
    for _ in range(600):
        mine = {pair: fence for pair, (pid, fence) in leases(engine).items() if pid == replica.pid}
        if mine:
            break
        sleep(0.02)
    replica.send(number)
    hit_at, took = now(), list[float]()
    mine = {pair: fence for pair, (pid, fence) in leases(engine).items() if pid == replica.pid}
    while mine and (now() - hit_at).total_seconds() < 4 * TAKEOVER_SECONDS:
        held = leases(engine)
        for pair in [pair for pair, fence in mine.items() if held[pair][1] > fence]:
            del mine[pair]
            took.append((now() - hit_at).total_seconds())
        sleep(0.05)
    return took + [float("inf")] * len(mine)


# --- what is shown ------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """A request that can change something, as a vendor's emulator heard it."""

    at: datetime
    pid: int | None
    what: str


@contextmanager
def listening(pairs: list[Pair], peers: Peers, heard: dict[str, list[Heard]]) -> Iterator[None]:
    """Take note of who sends each request, at the moment that it arrives."""

    def note(of: str, refuse: Callable[[Call], object]) -> Callable[[Call], object]:
        def admit(call: Call) -> object:
            heard.setdefault(of, []).append(Heard(now(), peers.behind(call.peer), f"{call.method} {call.path}"))
            return refuse(call)

        return admit

    for pair in pairs:
        for emulator in (pair.hub, pair.crm):
            emulator.admit = note(f"{pair.tenant_name}/{pair.connector}", emulator.admit)  # type: ignore[method-assign, assignment]
    yield


def overlaps(engine: Engine) -> list[str]:
    """Runs of one pair that were open at the same time, or whose fence is not above the one before."""
    found: list[str] = []
    with engine.connect() as tx:
        rows = tx.execute(select(s.run).where(s.run.c.reason != "audit").order_by(s.run.c.pair, s.run.c.fence)).all()
    for before, after in pairwise(rows):
        if before.pair != after.pair:
            continue
        if after.fence <= before.fence or before.finished_at is None or after.started_at < before.finished_at:
            found.append(f"{after.pair}: run {after.id} began before {before.id} had ended")
    return found


def late(engine: Engine, heard: dict[str, list[Heard]]) -> tuple[int, int, list[str]]:
    """Requests by who held the lease when they arrived: all, those of others, and what the others sent.

    A run's holder is the process that sent most in its time; one that lost its lease may have one call on its way.
    """
    total, strays, told = 0, 0, list[str]()
    with engine.connect() as tx:
        rows = tx.execute(select(s.run).where(s.run.c.reason != "audit").order_by(s.run.c.started_at)).all()
    for pair, calls in heard.items():
        for row in (row for row in rows if row.pair == pair and row.finished_at is not None):
            mine = [each for each in calls if row.started_at <= each.at <= row.finished_at and each.pid is not None]
            by = Counter(each.pid for each in mine)
            total += len(mine)
            for pid, count in by.most_common()[1:]:
                strays += count
                told += [f"{each.at:%T.%f} {pair} {each.what}" for each in mine if each.pid == pid]
    return total, strays, told


def main() -> None:
    """Exits 1 if a promise was broken or a takeover took too long."""
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    set_up("error")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="syncd-soak-", ignore_cleanup_errors=True)))
        url = embedded.start(home / "database")
        stack.callback(embedded.stop, home / "database")
        service = Service(database(url))
        stack.callback(service.close)
        migrate.upgrade(service.engine)
        pairs = build(stack, service, home, asked.pairs)
        environment = {**os.environ, "SYNCD_DATABASE_URL": url, "SYNCD_CONFIG": str(home / "tenants")}
        replicas = [Replica(number, home, environment) for number in range(asked.replicas)]
        failed = soak(stack, service, pairs, replicas, asked.minutes * 60, asked.seed)
    raise SystemExit(1 if failed else 0)


def soak(
    stack: ExitStack, service: Service, pairs: list[Pair], replicas: list[Replica], seconds: float, seed: int
) -> bool:
    """Edits and strikes for so long, then calm, then the promises; whether one was broken."""
    for replica in replicas:
        replica.start()
        stack.callback(replica.kill)
    heard: dict[str, list[Heard]] = {}
    took: list[float] = []
    with (
        Peers(replicas) as peers,
        listening(pairs, peers, heard),
        People(pairs, seed, pause_seconds=EDIT_SECONDS) as people,
    ):
        begun = now()
        sleep(10)
        turn = 0
        while (now() - begun).total_seconds() < seconds:
            replica, how = replicas[turn % len(replicas)], (signal.SIGKILL, signal.SIGSTOP)[turn % 2]
            found = strike(service.engine, replica, how)
            took += found
            click.echo(
                f"{now():%T} replica {replica.number} {how.name}: "
                + (", ".join(f"{each:.1f} s" for each in found) or "it ran nothing at that moment")
            )
            sleep(BACK_SECONDS)
            if how is signal.SIGKILL:
                assert replica.process is not None
                replica.process.wait()
                replica.start()
            else:
                replica.send(signal.SIGCONT)
            sleep(STRIKE_SECONDS - BACK_SECONDS)
            turn += 1
        people.rest()
        sleep(40)
        people.look()
        codes = [replica.end() for replica in replicas]
    return told(service, pairs, people, took, heard, codes)


def told(
    service: Service, pairs: list[Pair], people: People, took: list[float], heard: dict[str, list[Heard]],
    codes: list[int],
) -> bool:  # fmt: skip
    """Print what it came to; whether anything is not as promised."""
    problems: list[str] = []
    service.stopping.clear()
    for pair in pairs:
        tenant, config = pair.config()
        result = run_pair(service, tenant, config, "run")
        if result.state != "done" or result.write_calls or result.report.operations:
            problems.append(f"{pair.tenant_name}: a further run was {result.state}, {result.write_calls} write calls")
        try:
            pair.assert_in_step()
        except AssertionError as exc:
            problems.append(f"{pair.tenant_name}: not in step: {exc}")
    problems += [f"{email} of tenant{number}: the last edit never came" for number, email in people.waiting]
    problems += overlaps(service.engine)
    problems += [f"a takeover took {each:.1f} s" for each in took if each > TAKEOVER_SECONDS]
    problems += [f"a replica ended with {code}" for code in codes if code != 0]
    total, strays, what = late(service.engine, heard)
    seen = sorted(seconds for _, seconds in people.seen)
    with service.engine.connect() as tx:
        runs = tx.execute(text("SELECT state, count(*) FROM run GROUP BY state ORDER BY state")).all()
    click.echo(f"{people.edits} edits; visible after {at(seen, 0.5)} s (median), {at(seen, 0.95)} s (p95)")
    click.echo(f"{len(took)} takeovers: median {at(sorted(took), 0.5)} s, longest {at(sorted(took), 1.0)} s")
    click.echo(
        f"runs: {', '.join(f'{count} {state}' for state, count in runs)}; {len(overlaps(service.engine))} overlapped"
    )
    abandoned = sum(count for state, count in runs if state == "abandoned")
    if strays > abandoned:
        problems.append(f"{strays} requests of replicas that had lost their lease, after {abandoned} lost ones")
    click.echo(f"{total} requests within runs, {strays} of a replica that had lost its lease (one on its way each)")
    for each in what[:10]:
        click.echo(f"  {each}")
    for each in problems:
        click.echo(f"BROKEN {each}")
    click.echo("every promise held" if not problems else f"{len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    main()
