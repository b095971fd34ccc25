"""A pair of systems in memory with the engine between them, in virtual time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from types import SimpleNamespace
from typing import Any, TypeAlias

import structlog
from sqlalchemy import Engine, select

from syncd.core.audit import Difference
from syncd.core.guard import Limits
from syncd.core.merge import Answer
from syncd.core.model import KINDS, Side
from syncd.core.plan import KindRules, OnDelete, When
from syncd.engine.audit import Tally, audit
from syncd.engine.context import Context, PairRules, Report, System
from syncd.engine.retry import Courier, Patience
from syncd.engine.run import Order, execute, execute_plan, execute_undo
from syncd.errors import HaltedError, SyncdError
from syncd.state import deliveries, desk, history, pairs
from syncd.state import schema as s
from syncd.state.lease import Lease, acquire, release, renew
from syncd.state.postgres import PostgresRows
from syncd.state.store import Store
from syncd.testing.memory import MemoryConnector, MemorySystem
from tests.simulation.memory_rows import MemoryState


@dataclass
class Clock:
    at: datetime = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.at += timedelta(milliseconds=1)
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


def rules(**kinds: KindRules) -> dict[str, KindRules]:
    """Rules that let everything through, deletions included, except where a test says otherwise."""
    generous = KindRules(deletes_to_left=OnDelete.ARCHIVE, deletes_to_right=OnDelete.ARCHIVE)
    return {kind: kinds.get(kind, generous) for kind in KINDS}


@dataclass(frozen=True)
class PostgresState:
    """The state of one pair in a real database: the daemon's own modules, by the names that a world uses."""

    engine: Engine
    pair: str = "t/crm"

    def __post_init__(self) -> None:
        tenant, _, name = self.pair.partition("/")
        at = Clock().at
        pairs.register(
            self.engine, tenant=tenant, name=name, connector="memory", namespace=name, config_hash="1", at=at
        )  # fmt: skip

    def store(self, lease: Lease) -> Store:
        return Store(PostgresRows(self.engine, self.pair), lease)

    def dump(self, table: str) -> list[dict[str, Any]]:
        of = s.metadata.tables[table]
        with self.engine.connect() as tx:
            found = tx.execute(select(of).where(of.c.pair == self.pair).order_by(*of.primary_key))
            return [dict(row) for row in found.mappings()]

    def acquire(self, holder: str, at: datetime) -> Lease | None:
        return acquire(self.engine, self.pair, holder, at)

    def renew(self, lease: Lease, at: datetime) -> None:
        renew(self.engine, lease, at)

    def release(self, lease: Lease) -> None:
        release(self.engine, lease)

    def hint(self, side: Side, kind: str, parents: Collection[str]) -> None:
        pairs.hint(self.engine, self.pair, side, kind, parents)

    def soil(self, side: Side, kind: str, ids: Collection[str], at: datetime) -> None:
        with self.engine.begin() as tx:
            deliveries.soil(tx, self.pair, side, kind, ids, at)

    def settle_conflict(self, conflict_id: int, answer: Answer, at: datetime) -> None:
        desk.settle_conflict(self.engine, f"c{conflict_id}", answer, at)

    def answer_review(self, review_id: int, answer: str, candidate: str | None, at: datetime) -> None:
        desk.answer_review(self.engine, f"r{review_id}", answer, candidate, at)


State: TypeAlias = PostgresState | MemoryState


@dataclass
class World:
    """``state`` is kept in a real database, or in memory."""

    state: Engine | State
    clock: Clock = field(default_factory=Clock)
    kinds: Mapping[str, KindRules] = field(default_factory=rules)
    limits: Limits = field(default_factory=Limits)
    is_approved: bool = True
    visits: int | None = None
    limit: int | None = None
    serial: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**9)))

    def __post_init__(self) -> None:
        self.hub = MemorySystem(self.clock, is_hub=True, account_id="hub")
        self.crm = MemorySystem(self.clock, account_id="crm")
        self.kept: State = PostgresState(self.state) if isinstance(self.state, Engine) else self.state
        self.clock()

    @property
    def engine(self) -> Engine:
        assert isinstance(self.kept, PostgresState), "this world's state is in memory"
        return self.kept.engine

    def new_id(self) -> str:
        return f"id-{next(self.serial):08d}"

    def context(
        self, held: Lease, *, is_dry: bool = False, only: frozenset[str] | None = None, is_waived: bool = False
    ) -> Context:
        store = self.kept.store(held)
        systems: dict[Side, System] = {}
        for side, system in ((Side.LEFT, self.hub), (Side.RIGHT, self.crm)):
            patience = Patience(self.clock, self.clock.sleep, Random(1))
            courier = Courier(patience, is_dry=is_dry)
            connector = MemoryConnector(system, courier)
            capabilities = connector.capabilities()
            courier.allow(capabilities.quotas)
            systems[side] = System(connector, courier, capabilities)
        return Context(
            pair=held.pair,
            run_id=self.new_id(),
            rules=PairRules(
                self.kinds, self.limits, visits=self.visits, only=only, limit=self.limit, is_waived=is_waived
            ),
            systems=systems,
            store=store,
            now=self.clock,
            new_id=self.new_id,
            log=structlog.get_logger(),
        )

    def run(self, **order: Any) -> Report:
        """One run, as the daemon would make it. Raises what the run raises."""
        held = self.kept.acquire("worker", self.clock())
        assert held is not None
        ctx = self.context(
            held, is_dry=order.get("reason") == "plan", only=order.pop("only", None),
            is_waived=order.get("is_waived", False),
        )  # fmt: skip
        ctx.journal.begin_run(ctx.run_id, order.get("reason", "run"), self.clock())
        state = "failed"
        try:
            self.plan_id = execute(ctx, replace(Order("run", is_approved=self.is_approved), **order))
            state = "done"
        except HaltedError as exc:
            self.plan_id = exc.plan_id
            state = "halted"
            raise
        finally:
            ctx.journal.end_run(ctx.run_id, state, self.clock(), {}, {}, "")
            self.kept.release(held)
            self.context_of_last_run = ctx
        return ctx.report

    def apply(self, plan_id: str) -> Report:
        held = self.kept.acquire("worker", self.clock())
        assert held is not None
        ctx = self.context(held)
        ctx.journal.begin_run(ctx.run_id, "apply", self.clock())
        try:
            execute_plan(ctx, plan_id)
        finally:
            ctx.journal.end_run(ctx.run_id, "done", self.clock(), {}, {}, "")
            self.kept.release(held)
        return ctx.report

    def undo(self, run_id: str | None = None, *, is_dry: bool = False) -> Report:
        """Take a run back, the last one unless another is named."""
        undone = history.find_run(self.engine, run_id or self.context_of_last_run.run_id)
        held = self.kept.acquire("worker", self.clock())
        assert held is not None
        ctx = self.context(held, is_dry=is_dry)
        ctx.journal.begin_run(ctx.run_id, "undo", self.clock())
        try:
            self.plan_id = execute_undo(
                ctx, self.engine, Order("undo", is_approved=True), undone, is_applied=not is_dry
            )
        finally:
            ctx.journal.end_run(ctx.run_id, "done", self.clock(), {}, {}, "")
            self.kept.release(held)
            self.context_of_last_run = ctx
        return ctx.report

    def audit(self, *kinds: str) -> tuple[dict[str, Tally], list[Difference]]:
        """Compare both sides with what is remembered, as the daemon does: without a lease."""
        ctx = self.context(Lease("t/crm", "audit", -1), is_dry=True)
        found: list[Difference] = []
        return audit(ctx, self.engine, kinds or KINDS, found.append), found

    def settle(self, rounds: int = 3) -> None:
        """Run until nothing is planned any more; that must not take more than three runs."""
        for _ in range(rounds):
            self.clock.sleep(30)
            self.run()
        self.clock.sleep(30)
        before = self.writes()
        report = self.run()
        assert report.operations == 0, report
        assert self.writes() == before

    def writes(self) -> int:
        return sum(1 for system in (self.hub, self.crm) for call in system.calls if call[0].startswith("write"))

    def rows(self, table: Any) -> list[Any]:
        """A table's rows, with the columns as attributes."""
        return [SimpleNamespace(**row) for row in self.kept.dump(table.name)]

    def links(self, kind: str) -> dict[str, str]:
        return {row.left_id: row.right_id for row in self.rows(s.link) if row.kind == kind}

    def states(self, kind: str) -> dict[str, tuple[str, str]]:
        """Why each record of a kind that has no link stands alone, by id."""
        return {
            row.id: (row.state, row.reason) for row in self.rows(s.sighting) if row.kind == kind and not row.is_linked
        }


__all__ = ["Clock", "Report", "SyncdError", "When", "World", "rules"]
