"""``make crowd``: hundreds of tenants on one process, three of them ill.

One ``syncd serve`` with its default settings, an embedded PostgreSQL, and a process that holds all vendors.
People edit at a steady pace. After a while one tenant's CRM hangs, another one's token is revoked, and of a
third one record is refused whatever is sent; the CRM that hangs answers again before the end. Prints how
long edits took to be seen on the other side, what it cost, and what the ill tenants look like from outside.

A healthy tenant's freshness stays inside the interval if 95 of 100 edits are visible within the interval, its
jitter (a tenth) and five seconds for the run, and every one within two intervals. Else it exits with 1, and
also if a healthy tenant's run failed, a healthy tenant is not in step at the end, or the daemon's memory grew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import httpx
import yaml
from sqlalchemy import select, text

from syncd.config import PairConfig, TenantConfig, load
from syncd.log import set_up
from syncd.state import embedded, migrate
from syncd.state import schema as s
from syncd.wiring import Service, check_pair, database, run_pair
from tests.soak import vendors
from tests.soak.people import at, now, sleep

SYNCD = str(Path(sys.executable).with_name("syncd"))
TICKS = os.sysconf("SC_CLK_TCK")
#: The faults begin after this share of the time, and the CRM that hangs answers again after that one.
BEGIN, END = 0.35, 0.75
#: The daemon may grow by so much between its first minute and its end.
GROWTH = 1.15
PORT = 18_790


@dataclass(frozen=True, slots=True)
class Bounds:
    """What freshness is asked for, in seconds."""

    p95: float
    longest: float

    @classmethod
    def of(cls, every: float) -> Bounds:
        return cls(every * 1.1 + 5.0, every * 2.0)


class Town:
    """The process of the vendors, as seen from here."""

    def __init__(self, home: Path, asked: argparse.Namespace):
        here, there = multiprocessing.Pipe()
        self._line: Connection = here
        spawn = multiprocessing.get_context("spawn")
        args = (there, home, asked.tenants, f"{asked.every:g}s", asked.seed, asked.edits)
        self.process = spawn.Process(target=vendors.live, args=args, daemon=True)
        self.process.start()
        there.close()
        assert here.recv() == "ready"

    def do(self, name: str, *args: Any) -> Any:
        self._line.send((name, *args))
        return self._line.recv()

    def close(self) -> None:
        self._line.close()
        self.process.join(10)
        self.process.kill()


# --- what it costs ------------------------------------------------------------------------


@dataclass
class Gauge:
    """CPU seconds, memory and threads of some processes, read beside the run."""

    of: Mapping[str, Callable[[], list[int]]]
    cpu: dict[str, dict[int, float]] = field(default_factory=dict)
    rss: list[tuple[datetime, float]] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)

    def read(self) -> None:
        for name, pids in self.of.items():
            for pid in pids():
                try:
                    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                self.cpu.setdefault(name, {})[pid] = (int(words[11]) + int(words[12])) / TICKS
                if name == "daemon":
                    self.threads.append(int(words[17]))
                    self.rss.append((now(), int(words[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20))

    def spent(self, name: str) -> float:
        return sum(self.cpu.get(name, {}).values())


@contextmanager
def watching(gauge: Gauge, service: Service, url: str) -> Iterator[None]:
    """Read every two seconds, and ask for the metrics every fifteen as Prometheus would."""
    over = threading.Event()
    count = text(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> 'crowd'"
    )

    def watch() -> None:
        for turn in range(10**9):
            gauge.read()
            with service.engine.connect() as tx:
                gauge.connections.append(tx.execute(count).scalar() or 0)
            if turn % 7 == 0:
                metrics(url)
            if over.wait(2.0):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def metrics(url: str) -> list[str]:
    return httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text.splitlines()


def _children(parent: int) -> list[int]:
    found = [parent]
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(each.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(each.parent.name))
        except OSError:
            continue
    return found


# --- the story ----------------------------------------------------------------------------


def first_runs(service: Service, home: Path) -> None:
    """Every pair checked, approved and in step before the daemon starts."""

    def first(found: tuple[TenantConfig, PairConfig]) -> None:
        check_pair(service, *found, is_fixing=True)
        result = run_pair(service, *found, "backfill")
        assert result.state == "done", result.message
        # Hundreds of open pairs would be what this process costs.
        service._opened.pop((found[0].tenant, found[1].name, False, None)).close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(first, [(t, p) for t in load(home / "tenants").tenants for p in t.pairs]))


@contextmanager
def serving(home: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon with its default settings, and notices that go into a file."""
    (home / "config").mkdir()
    told = {"command": ["/bin/sh", "-c", f"cat >> '{home}/notices'"]}
    settings = {"web": {"port": PORT}, "notify": [told]}
    (home / "config" / "syncd.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "SYNCD_DATABASE_URL": url, "SYNCD_CONFIG": str(home / "tenants")}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([SYNCD, "serve"], cwd=home, env=environment, stderr=log)  # noqa: S603
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class Ill:
    """Who is to fall ill, and when."""

    hanging: range
    revoked: int
    poisoned: int
    begun_at: datetime
    ended_at: datetime

    def name(self, number: int) -> str:
        if number in self.hanging:
            return "hang"
        return {self.revoked: "revoked", self.poisoned: "poison"}.get(number, "healthy")

    def phase(self, at_: datetime) -> str:
        if at_ < self.begun_at:
            return "before"
        return "during" if at_ < self.ended_at else "after"


def main() -> None:
    """Exits 1 if a healthy tenant was harmed."""
    parser = argparse.ArgumentParser(prog="make crowd")
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two runs of a pair")
    parser.add_argument("--edits", type=float, default=3.0, help="a second, over all tenants")
    parser.add_argument("--hanging", type=int, default=1, help="so many tenants' CRMs hang")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    set_up("error")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="syncd-crowd-", ignore_cleanup_errors=True)))
        url = embedded.start(home / "database")
        stack.callback(embedded.stop, home / "database")
        service = Service(database(f"{url}&application_name=crowd"))
        stack.callback(service.close)
        migrate.upgrade(service.engine)
        town = Town(home, asked)
        stack.callback(town.close)
        begun = now()
        first_runs(service, home)
        click.echo(f"{now():%T} {asked.tenants} tenants in step after {(now() - begun).total_seconds():.0f} s")
        daemon = stack.enter_context(serving(home, url))
        postmaster = int(next((home / "database").rglob("postmaster.pid")).read_text().split()[0])
        gauge = Gauge({
            "daemon": lambda: [daemon.pid],
            "emulators": lambda: [town.process.pid or 0],
            "postgres": lambda: _children(postmaster),
        })  # fmt: skip
        failed = crowd(service, home, town, gauge, asked)
    raise SystemExit(1 if failed else 0)


def crowd(service: Service, home: Path, town: Town, gauge: Gauge, asked: argparse.Namespace) -> bool:
    """Edits and faults for so long, then calm, then what came of it; whether something is not as promised."""
    seconds, url = asked.minutes * 60, f"http://127.0.0.1:{PORT}"
    _until(lambda: _answers(url), 60)
    served = now()
    _until(lambda: _all_ran(service, asked.tenants), 600)
    click.echo(f"{now():%T} every pair has run, {(now() - served).total_seconds():.0f} s after the daemon's start")
    sleep(asked.every * 1.5)
    town.do("edit")
    begun = now()
    first, second = (begun + timedelta(seconds=seconds * share) for share in (BEGIN, END))
    ill = Ill(range(asked.hanging), asked.hanging, asked.hanging + 1, first, second)
    with watching(gauge, service, url):
        sleep(3)
        spent = {name: gauge.spent(name) for name in gauge.of}
        measured = now()
        _until(lambda: now() >= first, seconds)
        for number in ill.hanging:
            town.do("hang", number)
        town.do("revoke", ill.revoked)
        town.do("poison", ill.poisoned)
        click.echo(f"{now():%T} {len(ill.hanging)} CRM hangs, a token is revoked, a record is refused")
        _until(lambda: now() >= second - timedelta(seconds=1), seconds)
        during = outside(home, url, [*ill.hanging, ill.revoked, ill.poisoned])
        for number in ill.hanging:
            town.do("answer", number)
        answered = now()
        click.echo(f"{now():%T} the CRM that hung answers again")
        _until(lambda: now() >= begun + timedelta(seconds=seconds), seconds)
        town.do("rest")
        gauge.read()
        cost = {name: (gauge.spent(name) - spent[name]) / (now() - measured).total_seconds() for name in gauge.of}
        ended = now()
        _until(lambda: all(each.pair == ill.revoked for each in town.do("seen").waiting), 4 * asked.every + 300)
        # Two more runs of each, so that nothing is on its way.
        sleep(asked.every * 2.5)
        at_end = outside(home, url, [*ill.hanging, ill.revoked, ill.poisoned])
    problems = freshness(town.do("seen"), ill, Bounds.of(asked.every), answered)
    problems += runs(service, ill, measured, ended)
    problems += [f"tenant{number:03d} is not in step" for number in town.do("apart") if ill.name(number) == "healthy"]
    problems += costs(gauge, cost, town.do("seen"), ended)
    for when, told in (("while it lasts", during), ("at the end", at_end)):
        click.echo(f"\nthe ill ones from outside, {when}:")
        for line in told:
            click.echo(f"  {line}")
    click.echo("\nnotices:")
    for line in _notices(home):
        click.echo(f"  {line}")
    for each in problems:
        click.echo(f"BROKEN {each}")
    click.echo("every promise held" if not problems else f"{len(problems)} problems")
    return bool(problems)


# --- what is shown ------------------------------------------------------------------------


def freshness(seen: vendors.Seen, ill: Ill, bounds: Bounds, answered: datetime) -> list[str]:
    """How long edits took, by how the tenant fared and when they were made; what is not as promised."""
    by: dict[tuple[str, str], list[float]] = {}
    for edit, seconds in seen.arrived:
        by.setdefault((ill.name(edit.pair), ill.phase(edit.made_at)), []).append(seconds)
    waiting = Counter((ill.name(edit.pair), ill.phase(edit.made_at)) for edit in seen.waiting)
    click.echo(f"\n{seen.edits} edits; from an edit to the other side, in seconds (p95 within {bounds.p95:.0f}, "
               f"all within {bounds.longest:.0f}):")  # fmt: skip
    problems = []
    for sort in ("healthy", "hang", "revoked", "poison"):
        for phase in ("before", "during", "after"):
            found = sorted(by.get((sort, phase), []))
            if not found and not waiting[sort, phase]:
                continue
            told = f"median {at(found, 0.5):>6}  p95 {at(found, 0.95):>6}  max {at(found, 1.0):>6}"
            click.echo(f"  {sort:<8}{phase:<8}{len(found):>5} arrived  {told}  not arrived {waiting[sort, phase]}")
            if sort == "healthy" and found:
                if found[min(len(found) - 1, int(len(found) * 0.95))] > bounds.p95:
                    problems.append(f"healthy tenants, {phase}: p95 is {at(found, 0.95)} s")
                if found[-1] > bounds.longest:
                    problems.append(f"healthy tenants, {phase}: one edit took {found[-1]:.1f} s")
            if sort != "revoked" and waiting[sort, phase]:
                problems.append(f"{sort}, {phase}: {waiting[sort, phase]} edits never came")
    late = [
        (edit.made_at + timedelta(seconds=seconds) - answered).total_seconds()
        for edit, seconds in seen.arrived
        if edit.pair in ill.hanging and ill.phase(edit.made_at) == "during"
    ]
    if late:
        click.echo(f"  the hung CRM's edits were there {max(late):.1f} s after it answered again")
    return problems


def runs(service: Service, ill: Ill, since: datetime, until: datetime) -> list[str]:
    """How often pairs ran, how long that took, and which runs of healthy ones failed."""
    query = select(s.run).where(s.run.c.started_at >= since, s.run.c.started_at < until, s.run.c.reason == "run")
    with service.engine.connect() as tx:
        rows = tx.execute(query.order_by(s.run.c.pair, s.run.c.started_at)).all()
    healthy = [row for row in rows if ill.name(int(row.pair[6:9])) == "healthy"]
    took = sorted((row.finished_at - row.started_at).total_seconds() for row in healthy if row.finished_at)
    gaps = sorted(
        (after.started_at - before.started_at).total_seconds()
        for before, after in pairwise(healthy)
        if before.pair == after.pair
    )
    rate = len(rows) / (until - since).total_seconds()
    click.echo(
        f"\n{rate:.1f} runs a second; of healthy ones: {at(took, 0.5)} s median, "
        f"{at(took, 0.95)} s p95, {at(took, 1.0)} s longest; from start to start {at(gaps, 0.5)} s median, "
        f"{at(gaps, 0.95)} s p95, {at(gaps, 1.0)} s longest"
    )
    states = Counter((ill.name(int(row.pair[6:9])), row.state) for row in rows)
    click.echo(f"  {', '.join(f'{sort} {state} {count}' for (sort, state), count in sorted(states.items()))}")
    bad = [row for row in healthy if row.state not in ("done", "running")]
    return [f"a run of {row.pair} was {row.state}: {row.message}" for row in bad[:5]]


def costs(gauge: Gauge, cost: Mapping[str, float], seen: vendors.Seen, until: datetime) -> list[str]:
    """What the processes took, in cores; whether the daemon's memory is flat."""
    rss = [mib for read_at, mib in gauge.rss if read_at <= until]
    early, late = rss[: len(rss) // 5], rss[-len(rss) // 5 :]
    first, last = sum(early) / len(early), sum(late) / len(late)
    shares = ", ".join(f"{name} {share:.2f}" for name, share in cost.items())
    click.echo(f"\ncores used: {shares}; of {os.cpu_count()}, at a load of {os.getloadavg()[1]:.1f}")
    click.echo(f"daemon: {first:.0f} MiB at the start, {last:.0f} at the end, {max(rss):.0f} at most; "
               f"{max(gauge.threads)} threads, {max(gauge.connections)} database connections at most; "
               f"{sum(seen.calls.values())} calls heard by the vendors")  # fmt: skip
    return [f"the daemon grew from {first:.0f} to {last:.0f} MiB"] if last > first * GROWTH else []


def outside(home: Path, url: str, numbers: list[int]) -> list[str]:
    """What /metrics and ``syncd status --json`` say of some tenants."""
    names = [f"tenant{number:03d}" for number in numbers[:1] + numbers[-2:]]
    told: list[str] = []
    lines = metrics(url)
    wanted = ("syncd_pair_state", "syncd_failures_in_a_row", "syncd_freshness_seconds", "syncd_dead_letters")
    for name in names:
        mine = [line for line in lines if f'tenant="{name}"' in line and line.startswith(wanted)]
        told += [line for line in mine if not line.endswith(" 0.0")]
    answer = subprocess.run(  # noqa: S603
        [SYNCD, "status", "--json"], cwd=home, capture_output=True, text=True, check=False,
        env={**os.environ, "SYNCD_CONFIG": str(home / "tenants"), "SYNCD_DATABASE_URL": _url(home)},
    )  # fmt: skip
    for each in json.loads(answer.stdout):
        if each.get("tenant") in names:
            told.append(f"status: {json.dumps({k: v for k, v in each.items() if k != 'kinds'}, default=str)}")
    return told


def _url(home: Path) -> str:
    return embedded.start(home / "database")


def _notices(home: Path) -> list[str]:
    file = home / "notices"
    if not file.exists():
        return ["none"]
    return [line[:200] for line in file.read_text().replace("}{", "}\n{").splitlines()]


def _all_ran(service: Service, tenants: int) -> bool:
    """Whether the daemon has run every pair."""
    with service.engine.connect() as tx:
        ran = tx.execute(text("SELECT count(DISTINCT pair) FROM run WHERE reason = 'run' AND state = 'done'")).scalar()
    return ran == tenants


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _until(is_so: Callable[[], bool], seconds: float) -> bool:
    end = now() + timedelta(seconds=seconds)
    while not is_so():
        if now() >= end:
            return False
        sleep(0.5)
    return True


if __name__ == "__main__":
    main()
