"""What a backfill costs: calls against the least possible, time, and memory at two sizes.

One tenant's Propstreet account holds everything, the CRM is empty but prepared by ``check --fix``.
The daemon runs in a process of its own, with the real database and the real SDKs, against the
emulators in this one. What is measured, and how:

- **Calls** are those of ``Result``: made, and the least that the vendors' limits allow, side by
  side for the backfill; for a run afterwards with nothing new that also sweeps for what no delta
  shows (``idle, swept``); and for one as the schedule makes it (``idle``). Between the backfill and
  them lie hours, and an edit of one record of each kind on both sides with the runs that carry it: a
  feed goes on from the last change it saw, so only then no overlap brings back what was made at once.
- **Time** is virtual where a quota makes the daemon wait: both processes read one clock, that
  the daemon moves on when it sleeps and a little at each reading. Quotas are on and cost nothing.
- **Own seconds** are the daemon's CPU time and its waiting for PostgreSQL, not its waiting for
  vendors. ``records/s`` are records per own second: what one core keeps up with. ``wall`` has
  the emulators in it, which share the machine.
- **Memory** is the peak resident set of the daemon's process at the end of the backfill.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import mmap
import os
import pstats
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import structlog
import yaml
from sqlalchemy import Engine, create_engine, event, text

from syncd.config import load
from syncd.core.mapping import iso_z
from syncd.demo import emulator_of
from syncd.state import embedded, migrate
from syncd.testing.emulator import Call
from syncd.wiring import PROPSTREET, Result, Service, check_pair, database, run_pair

CRMS = ("hubspot", "salesforce")
#: How many times larger the second measurement of memory is.
LARGER = 5
QUIET_SECONDS = 3 * 3600.0
EVERY_SECONDS = 60.0
_START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
#: The daemon reads the clock some times per call; so a call takes about as long as a real one.
_TICK_SECONDS = 0.01


#: What the daemon says, and waits for an answer, once the backfill is done.
_BACKFILLED = "backfilled"
_EDITS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "propstreet": {
        "companies": {"strategy": "Logistics"},
        "contacts": {"strategy": "Logistics"},
        "links": {"jobTitle": "Partner"},
        "projects": {"name": "Projekt Norr"},
        "prospects": {"classification": "bidder"},
    },
    "hubspot": {
        "companies": {"name": "Bolag Norr AB"},
        "contacts": {"lastname": "Ek Norr"},
        "deals": {"amount": "55000000"},
    },
    "salesforce": {
        "Account": {"Name": "Bolag Norr AB"},
        "Contact": {"LastName": "Ek Norr"},
        "Opportunity": {"Amount": "55000000"},
    },
}


@dataclass(frozen=True, slots=True)
class Size:
    """How many records of each kind one tenant has."""

    projects: int
    prospects: int
    contacts: int
    companies: int
    employments: int

    @classmethod
    def of(cls, projects: int) -> Size:
        """The usual proportions."""
        return cls(projects, projects * 5, projects * 4, projects * 3 // 4, projects * 7 // 2)

    @property
    def total(self) -> int:
        return self.projects + self.prospects + self.contacts + self.companies + self.employments


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one run on both sides, and the least there could have been."""

    made: Mapping[str, int]
    least: Mapping[str, int]
    operations: int

    @property
    def ratio(self) -> float:
        """Calls made for each one needed, on the side that is worse."""
        return max(self.made[side] / max(1, self.least[side]) for side in self.made)


@dataclass(frozen=True, slots=True)
class Measured:
    """One backfill and the idle runs after it."""

    connector: str
    size: Size
    runs: Mapping[str, Calls]
    wall_seconds: float
    own_seconds: float
    peak_bytes: int

    @property
    def records_per_second(self) -> float:
        return self.size.total / self.own_seconds


class SharedClock:
    """A clock in a file, for two processes. Only the daemon moves it."""

    def __init__(self, path: Path, *, tick_seconds: float = 0.0):
        if not path.exists():
            path.write_bytes(struct.pack("d", 0.0))
        with path.open("r+b") as file:
            self._held = mmap.mmap(file.fileno(), 8)
        self._tick = tick_seconds

    def __call__(self) -> datetime:
        if self._tick:
            self.advance(self._tick)
        return _START + timedelta(seconds=struct.unpack("d", self._held[:8])[0])

    def advance(self, seconds: float) -> None:
        self._held[:8] = struct.pack("d", struct.unpack("d", self._held[:8])[0] + seconds)


# --- the side of the vendors --------------------------------------------------------------


def measure(connector: str, size: Size, server_url: str, *, profile: int = 0) -> Measured:
    """One daemon's backfill of one tenant into an empty CRM, then its idle runs."""
    with tempfile.TemporaryDirectory(prefix="syncd-bench-") as name, _database(server_url) as url:
        folder = Path(name)
        with _emulators(connector, size, folder) as systems:
            command = [sys.executable, "-m", "benchmarks.backfill", "--daemon", str(folder), "--profile", str(profile)]
            # The command is ours, and so is the environment's URL.
            daemon = subprocess.Popen(  # noqa: S603
                command, env={**os.environ, "SYNCD_DATABASE_URL": url}, cwd=Path(__file__).parent.parent,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            with daemon:
                assert daemon.stdin is not None and daemon.stdout is not None
                if daemon.stdout.readline().strip() == _BACKFILLED:
                    for name, system in systems.items() if profile else ():
                        _print_calls(name, system.log)
                    _edit(systems)
                answer, _ = daemon.communicate("\n")
            if daemon.returncode:
                raise RuntimeError(f"the daemon failed with {daemon.returncode}")
    told = json.loads(answer)
    runs = {name: Calls(**each) for name, each in told.pop("runs").items()}
    return Measured(connector, size, runs, **told)


@contextmanager
def _database(server_url: str) -> Iterator[str]:
    """A migrated database of its own, dropped in the end."""
    name = f"bench_{os.getpid()}_{time.monotonic_ns()}"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    before, _, query = server_url.partition("?")
    url = before.rsplit("/", 1)[0] + f"/{name}" + (f"?{query}" if query else "")
    try:
        engine = create_engine(url)
        migrate.upgrade(engine)
        engine.dispose()
        yield url
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


@contextmanager
def _emulators(connector: str, size: Size, folder: Path) -> Iterator[Mapping[str, Any]]:
    """Both systems, and the tenant's file that reaches them."""
    clock = SharedClock(folder / "clock")
    systems = {name: emulator_of(name)(now=clock) for name in (PROPSTREET, connector)}
    _seed(systems[PROPSTREET], size)
    document: dict[str, Any] = {"tenant": "bench"}
    for name, system in systems.items():
        auth = {}
        for key, secret in system.auth.items():
            file = folder / f"{name}-{key}"
            file.write_text(secret)
            auth[key] = {"file": str(file)}
        reach = {"base_url": system.start(), "auth": auth}
        if name == PROPSTREET:
            document[PROPSTREET] = reach
        else:
            login = {"login_url": system.login_url} if hasattr(system, "login_url") else {}
            document["pairs"] = [{"connector": name, **reach, **login}]
    (folder / "tenants").mkdir()
    (folder / "tenants" / "bench.yaml").write_text(yaml.safe_dump(document))
    try:
        yield systems
    finally:
        for system in systems.values():
            system.stop()


def _edit(systems: Mapping[str, Any]) -> None:
    """People edit one record of each kind, so that every feed goes on beyond what was made at once."""
    for name, system in systems.items():
        for sort, fields in _EDITS[name].items():
            last = list(system.all(sort))[-1]
            system.edit(sort, last if isinstance(last, str) else last.get("id") or last["Id"], fields)


def _print_calls(name: str, log: Sequence[Call]) -> None:
    sorts = Counter(f"{call.method} {re.sub(r'[0-9]{3,}', 'N', call.path)}" for call in log)
    for sort, count in sorts.most_common():
        print(f"{count:7,} x  {name}: {sort}", file=sys.stderr)


def _seed(propstreet: Any, size: Size) -> None:
    """Fill the account: every project open, some prospects without a teaser, some without a contact."""
    add = propstreet.add
    companies = [
        add("companies", {"name": f"Bolag {i} AB", "domain": f"bolag{i}.example", "countryCode": "SE"})
        for i in range(size.companies)
    ]
    contacts = [
        add(
            "contacts",
            {
                "firstName": f"Anna{i % 97}",
                "lastName": f"Ek{i}",
                "email": f"anna.ek{i}@bolag{i % size.companies}.example",
                "phone": f"+46701{i:06d}",
                "primaryLanguage": "sv",
            },
        )
        for i in range(size.contacts)
    ]
    for i in range(size.employments):
        ends = {"contactId": contacts[i % size.contacts], "companyId": companies[i % size.companies]}
        add("links", {**ends, "jobTitle": "Investment manager", "isPrimary": True})
    projects = [
        add(
            "projects",
            {
                "name": f"Projekt {i}",
                "asset": {"type": "single"},
                "exclusivity": "exclusive",
                "price": {"value": 20 + i % 900, "currency": "SEK", "scale": "millions"},
                "teaser": {"stage": ("drafting", "published", "communicated")[i % 3]},
            },
        )
        for i in range(size.projects)
    ]
    stages = ("not_contacted", "contacted", "interested", "not_interested", "bidder")
    for i in range(size.prospects):
        prospect: dict[str, Any] = {"classification": stages[i % len(stages)]}
        # Nobody is in one project twice.
        who = i % size.projects * len(stages) + i // size.projects
        is_firm = i % 20 == 19
        prospect |= (
            {"companyId": companies[who % size.companies]} if is_firm else {"contactId": contacts[who % size.contacts]}
        )
        if i % 4 == 0:
            prospect["teaser"] = {"deadlineUtc": iso_z(_START + timedelta(days=14))}
        add("prospects", prospect, parent=projects[i % size.projects])


# --- the side of the daemon ---------------------------------------------------------------


class _Waiting:
    """Seconds in which the process waits for PostgreSQL, without those in which it computes."""

    def __init__(self, engine: Engine):
        self.seconds = 0.0
        self.by_statement: dict[str, list[float]] = {}
        self._since: tuple[float, float] | None = None
        for name in ("before_cursor_execute", "commit", "rollback"):
            event.listen(engine, name, self._begin)
        event.listen(engine, "after_cursor_execute", self._end)
        event.listen(engine.pool, "checkin", self._end)

    def _begin(self, *_: object) -> None:
        self._since = time.perf_counter(), time.process_time()

    def _end(self, *told: object) -> None:
        """Ends with a statement, whose text is the third that SQLAlchemy tells, or with the connection's return."""
        if self._since is not None:
            wall, own = self._since
            took = time.perf_counter() - wall
            self.seconds += max(0.0, took - (time.process_time() - own))
            self._since = None
            sort = " ".join(str(told[2]).split()) if len(told) > 2 else "COMMIT or ROLLBACK"
            self.by_statement.setdefault(sort, []).append(took)

    def print_worst(self, count: int) -> None:
        worst = sorted(self.by_statement.items(), key=lambda each: -sum(each[1]))[:count]
        for statement, took in worst:
            print(f"{sum(took):8.2f} s {len(took):7,} x  {statement[:300]}", file=sys.stderr)


def _daemon(folder: Path, profile: int) -> dict[str, Any]:
    """Run one pair against the emulators and tell what it took."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), processors=[_problems_only])
    clock = SharedClock(folder / "clock", tick_seconds=_TICK_SECONDS)
    engine = database(os.environ["SYNCD_DATABASE_URL"])
    service = Service(engine, now=clock, sleep=clock.advance, random=Random(1))  # noqa: S311 - jitter
    tenant = load(folder / "tenants").tenants[0]
    pair = tenant.pairs[0]
    lacks = [
        finding for _, finding in check_pair(service, tenant, pair, is_fixing=True).findings if finding.is_required
    ]
    if lacks:
        raise RuntimeError(f"the CRM still lacks {lacks[0].thing}")
    waiting = _Waiting(engine)
    profiler = cProfile.Profile() if profile else None
    wall, own = time.perf_counter(), time.process_time()
    if profiler:
        profiler.enable()
    runs = {"backfill": _calls(run_pair(service, tenant, pair, "backfill"))}
    if profiler:
        profiler.disable()
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(profile)
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumtime").print_stats(profile)
        waiting.print_worst(profile)
    told = {
        "wall_seconds": time.perf_counter() - wall,
        "own_seconds": time.process_time() - own + waiting.seconds,
        "peak_bytes": _peak_bytes(),
    }
    clock.advance(QUIET_SECONDS)
    print(_BACKFILLED, flush=True)
    sys.stdin.readline()
    for name, is_sweep in (("edits", False), ("echo", False), ("idle, swept", True), ("idle", False)):
        runs[name] = _calls(run_pair(service, tenant, pair, "run", is_sweep=is_sweep, visits=pair.visits))
        clock.advance(EVERY_SECONDS)
    service.close()
    return {**told, "runs": runs}


def _calls(result: Result) -> dict[str, Any]:
    if result.state != "done":
        raise RuntimeError(f"the run ended as {result.state}: {result.message}")
    return {"made": result.made, "least": result.least, "operations": result.report.operations}


def _problems_only(_: Any, name: str, fields: Any) -> str:
    if name in ("debug", "info"):
        raise structlog.DropEvent
    return json.dumps(fields, default=str)


def _peak_bytes() -> int:
    """The high-water mark of resident memory. Linux' ``ru_maxrss`` begins with the parent's, so not that one."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- telling ------------------------------------------------------------------------------


def _print(measured: Measured) -> None:
    size = measured.size
    print(
        f"\npropstreet <> {measured.connector}   {size.projects:,} projects, {size.prospects:,} prospects, "
        f"{size.contacts:,} contacts, {size.companies:,} companies, {size.employments:,} employments"
    )
    print(f"  {'run':<14}{'side':<12}{'calls':>9}{'least':>9}{'ratio':>8}{'operations':>13}")
    for name, calls in measured.runs.items():
        if name in ("edits", "echo"):
            continue
        for side in calls.made:
            ratio = calls.made[side] / max(1, calls.least[side])
            told = f"{calls.operations:>13,}" if side == "propstreet" else ""
            shown = name if side == "propstreet" else ""
            print(f"  {shown:<14}{side:<12}{calls.made[side]:>9,}{calls.least[side]:>9,}{ratio:>8.2f}{told}")
    print(
        f"  wall {measured.wall_seconds:.1f} s, own {measured.own_seconds:.1f} s, "
        f"{measured.records_per_second:,.0f} records/s, peak memory {measured.peak_bytes / 2**20:.0f} MB"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backfill", description="What a backfill costs.")
    parser.add_argument("--projects", type=int, default=2000, help="size of the tenant; the rest is in proportion")
    parser.add_argument("--crm", choices=CRMS, action="append", help="only this one")
    parser.add_argument("--quick", action="store_true", help="a small tenant, for a first look")
    parser.add_argument("--once", action="store_true", help="do not measure memory at the larger size")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="show the N worst functions of the daemon")
    parser.add_argument("--daemon", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.daemon is not None:
        print(json.dumps(_daemon(given.daemon, given.profile)))
        return 0
    size = Size.of(100 if given.quick else given.projects)
    with tempfile.TemporaryDirectory(prefix="syncd-bench-", ignore_cleanup_errors=True) as folder:
        server = os.environ.get("SYNCD_DATABASE_URL") or embedded.start(Path(folder))
        for connector in given.crm or CRMS:
            measured = measure(connector, size, server, profile=given.profile)
            _print(measured)
            if not given.once:
                larger = measure(connector, Size.of(size.projects * LARGER), server)
                grown = (larger.peak_bytes - measured.peak_bytes) / 2**20
                print(f"  at {LARGER} times the size: peak memory {larger.peak_bytes / 2**20:.0f} MB ({grown:+.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
