"""Seeded worlds: two systems, people editing both, late commits, an index that lags, lost replies, crashes.

After the last edit the promises are checked against what the world itself remembers. The same
seed gives the same history; a seed that failed once is kept in ``KNOWN``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from random import Random

import pytest
from sqlalchemy import Engine

from syncd.core.mapping import same
from syncd.core.merge import OnConflict, Policy
from syncd.core.model import FIELDS, KINDS, Side
from syncd.core.plan import KindRules, OnDelete
from syncd.errors import HaltedError, SyncdError
from syncd.state import schema as s
from syncd.testing.memory import MemoryFault, MemorySystem
from tests.engine.world import PostgresState, State, World, rules
from tests.simulation.memory_rows import MemoryState

STEPS = 200
SEEDS = range(40)
#: These are played against a real database too, which takes a hundred times as long.
COMPARED = (1, 2)
KNOWN: tuple[int, ...] = ()


class Crash(BaseException):
    """The process died here."""


class Simulation:
    """One history. ``trace`` is all that people did and all that was sent, in order."""

    def __init__(self, state: State, seed: int):
        self.random = Random(seed)
        policy = Policy(conflict=self.random.choice([OnConflict.NEWEST, OnConflict.PROPSTREET, OnConflict.CRM]))
        rule = self.random.choice([OnDelete.ARCHIVE, OnDelete.HOLD])
        kind = KindRules(deletes_to_left=rule, deletes_to_right=OnDelete.ARCHIVE, default=policy)
        self.world = World(state, kinds=rules(**dict.fromkeys(KINDS, kind)))
        self.edits: list[str] = []
        self.serial = 0
        self.crashes = 0

    @property
    def systems(self) -> dict[Side, MemorySystem]:
        return {Side.LEFT: self.world.hub, Side.RIGHT: self.world.crm}

    def play(self) -> None:
        for _ in range(STEPS):
            step = self.random.choices([self._edit, self._run, self._wait, self._fault, self._remove], [6, 4, 3, 2, 1])[
                0
            ]
            step()
        self._calm()

    # --- what happens -----------------------------------------------------------------

    def _edit(self) -> None:
        side = self.random.choice(list(Side))
        system = self.systems[side]
        system.late = timedelta(seconds=self.random.choice([0, 0, 0, 40]))
        kind = self.random.choice(["company", "contact", "deal", "deal_contact"])
        known = system.all(kind)
        if known and self.random.random() < 0.6:
            record = self.random.choice(known)
            self._change(system, kind, record.id)
        else:
            self._add(side, system, kind)
        system.late = timedelta(0)

    def _change(self, system: MemorySystem, kind: str, id_: str) -> None:
        self.serial += 1
        if kind == "deal_contact":
            system.edit(kind, id_, classification=self.random.choice(["contacted", "interested", "bidder"]))
        elif kind == "contact" and self.random.random() < 0.3:
            tags = frozenset(self.random.sample(["a", "b", "c", "d"], self.random.randrange(4)))
            system.edit(kind, id_, tags=tags or None)
        else:
            name = {"company": "strategy", "contact": "last_name", "deal": "name"}[kind]
            system.edit(kind, id_, **{name: f"v{self.serial}"})
        self.edits.append(f"edit {kind} {id_}")

    def _add(self, side: Side, system: MemorySystem, kind: str) -> None:
        self.serial += 1
        number = self.random.randrange(40)
        if kind == "contact":
            system_emails = {r.values.get("email") for r in system.all(kind)}
            email = f"c{number}@x.se"
            if email in system_emails:
                return
            id_ = system.add(kind, {"email": email, "last_name": f"v{self.serial}"})
        elif kind == "company":
            domain = f"d{number}.se"
            if domain in {r.values.get("domain") for r in system.all(kind)}:
                return
            id_ = system.add(kind, {"domain": domain, "name": f"firm {number}"})
        elif kind == "deal":
            id_ = system.add(kind, {"name": f"deal {side} {self.serial}"})
        else:
            deals, contacts = system.all("deal"), system.all("contact")
            if not deals or not contacts:
                return
            refs = {"deal": self.random.choice(deals).id, "contact": self.random.choice(contacts).id}
            if any(dict(r.refs) == refs for r in system.all(kind)):
                return
            id_ = system.add(kind, {"classification": "contacted"}, refs=refs)
        self.edits.append(f"add {kind} {id_}")

    def _remove(self) -> None:
        side = self.random.choice(list(Side))
        known = self.systems[side].all("deal_contact")
        if known:
            self.systems[side].remove("deal_contact", self.random.choice(known).id)

    def _wait(self) -> None:
        self.world.clock.sleep(self.random.choice([1, 30, 120, 4000]))
        self.systems[Side.RIGHT].lag = timedelta(seconds=self.random.choice([0, 0, 20, 90]))

    def _fault(self) -> None:
        system = self.systems[self.random.choice(list(Side))]
        method = self.random.choice(["write", "write", "list", "children"])
        kind = self.random.choice(["before", "after"]) if method == "write" else "before"
        system.faults.append(MemoryFault(method, kind, times=self.random.choice([1, 2, 7])))  # type: ignore[arg-type]

    def _run(self) -> None:
        if self.random.random() < 0.3:
            self._run_and_crash()
        else:
            self._attempt(self.world.run)

    def _run_and_crash(self) -> None:
        """The process dies before or after one of the calls of this run."""
        left = [self.random.randrange(1, 16)]

        def bomb(moment: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                self.crashes += 1
                raise Crash

        for system in self.systems.values():
            system.on_write = bomb
        try:
            self._attempt(self.world.run)
        except Crash:
            self.world.clock.sleep(60)  # the lease lapses
        finally:
            for system in self.systems.values():
                system.on_write = lambda moment: None

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except HaltedError:
            self.world.run(is_waived=True)
        except SyncdError:
            self.world.clock.sleep(60)

    # --- the end ----------------------------------------------------------------------

    def _calm(self) -> None:
        """The last edit was made: faults end, everything becomes visible, and the daemon gets its three runs."""
        for system in self.systems.values():
            system.faults.clear()
            system.lag = timedelta(0)
        self.world.clock.sleep(5000)
        for _ in range(3):
            self.world.run(is_waived=True)
            self.world.clock.sleep(400)

    def check(self) -> None:
        self._termination()
        self._convergence()
        self._nothing_twice()
        self._nothing_lost()

    def _termination(self) -> None:
        before = self.world.writes()
        report = self.world.run(is_waived=True)
        assert report.operations == 0, report
        assert self.world.writes() == before

    def _convergence(self) -> None:
        excused = {(r.kind, r.left_id) for r in self.world.rows(s.conflict) if r.settled_at is None}
        excused |= {(r.kind, r.left_id) for r in self.world.rows(s.link) if r.state in ("dead", "conflict")}
        for row in self.world.rows(s.link):
            if (row.kind, row.left_id) in excused:
                continue
            left = self.world.hub.get(row.kind, row.left_id)
            right = self.world.crm.get(row.kind, row.right_id)
            assert not left.is_deleted
            assert not right.is_deleted
            for name, type_ in FIELDS[row.kind].items():
                if name not in ("stage", "status", "published_at", "accepted_at"):
                    assert same(type_, left.values[name], right.values[name]), (row.kind, row.left_id, name)

    def _nothing_twice(self) -> None:
        # What a person added before the daemon could see it is a double that a person must settle.
        asked = {row.record_id for row in self.world.rows(s.match_review) if row.answered_at is None}
        for system in self.systems.values():
            emails = [r.values["email"] for r in system.all("contact")]
            domains = [r.values["domain"] for r in system.all("company") if r.id not in asked]
            pairs = [tuple(sorted(r.refs.items())) for r in system.all("deal_contact")]
            names = [r.values["name"] for r in system.all("deal")]
            for found in (emails, domains, pairs):
                assert len(found) == len(set(found))
            assert len(names) == len(set(names)) or len(names) == len({r.mark or r.id for r in system.all("deal")})

    def _nothing_lost(self) -> None:
        """Every living record of one side has its counterpart, or stands in a list with its reason."""
        for kind in KINDS:
            links = self.world.links(kind)
            alone = self.world.states(kind)
            for record in self.world.hub.all(kind):
                assert record.id in links or alone.get(record.id, ("new", ""))[0] != "new", record
            for record in self.world.crm.all(kind):
                assert record.id in links.values() or alone.get(record.id, ("new", ""))[0] != "new", record

    def trace(self) -> str:
        calls = [*self.edits, *map(str, self.world.hub.calls), *map(str, self.world.crm.calls)]
        return hashlib.sha256("\n".join(calls).encode()).hexdigest()


@pytest.mark.parametrize("seed", [*KNOWN, *SEEDS])
def test_the_promises_hold_in_a_seeded_world(seed: int) -> None:
    """Convergence, termination, nothing twice and nothing lost, whatever happened on the way."""
    simulation = Simulation(MemoryState(), seed)
    simulation.play()
    simulation.check()


def test_the_same_seed_gives_the_same_history() -> None:
    """A failing seed can be looked at again as often as needed."""
    traces = []
    for _ in range(2):
        simulation = Simulation(MemoryState(), 3)
        simulation.play()
        traces.append(simulation.trace())
    assert traces[0] == traces[1]


@pytest.mark.parametrize("seed", COMPARED)
def test_a_history_is_the_same_in_a_real_database_down_to_each_row(engine: Engine, seed: int) -> None:
    """What the simulation proves in memory is proven of PostgreSQL: same calls, same content of every table."""
    real, memory = Simulation(PostgresState(engine), seed), Simulation(MemoryState(), seed)
    for simulation in (real, memory):
        simulation.play()
        simulation.check()
    assert real.trace() == memory.trace()
    assert memory.crashes > 0
    for name in ("feed", "link", "sighting", "match_review", "run", "plan", "operation", "change_log", "conflict"):
        assert real.world.kept.dump(name) == memory.world.kept.dump(name), name
