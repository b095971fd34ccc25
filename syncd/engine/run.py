"""One run of one pair, told top to bottom. The only place that knows the order.

Recover what a dead run left open; then, kind by kind, pull both sides, match, merge and plan;
let the guard see the whole plan; apply it; and look again, at most three rounds, at what moved
meanwhile or became possible.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Engine

from syncd.core.guard import brakes
from syncd.core.model import RELATIONS, Address, Record, Side
from syncd.engine.apply import apply_plan, recover
from syncd.engine.context import Context
from syncd.engine.draft import Draft, draft_kind, draft_missing, draft_unread, proof
from syncd.engine.pull import DoubtedError, Outset, drain, read_again, read_erased, seek_stranded
from syncd.engine.undo import draft_undo
from syncd.errors import HaltedError, PlanMovedError
from syncd.state.history import RunRow
from syncd.state.journal import Entry

ROUNDS = 3

Reason = Literal["run", "backfill", "plan", "apply", "undo"]


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of one run.

    ``is_approved``: a person let this pair run before, or does so now. ``is_waived``: a person
    has seen why it halted and said go, so that no brake holds this run. ``anew_before``: feeds
    listed whole before that instant are listed whole again. ``is_sweep``: look for deletions and
    association changes now, however recently that was done. ``is_told``: not at all, and below open
    deals only for what webhooks told; the next run that is none of these looks for the rest.
    """

    reason: Reason
    is_approved: bool
    is_waived: bool = False
    anew_before: datetime | None = None
    is_sweep: bool = True
    is_told: bool = False


def execute(ctx: Context, order: Order) -> str | None:
    """Run one pair; returns the id of the plan that was made, if there was anything to do.

    With the reason ``plan`` only reading calls are made. Raises HaltedError with the plan's id
    when a brake holds it, and whatever stops the run.
    """
    recover(ctx)
    draft = Draft(ctx)
    try:
        _pull_and_draft(ctx, draft, order)
    except DoubtedError as doubt:
        raise _waiting(ctx, doubt) from doubt
    first_plan = _seal(ctx, draft, order)
    if order.reason == "plan" or first_plan is None:
        return first_plan
    _apply(ctx, first_plan, order.reason)
    _look_again(ctx, order, draft.by_kind)
    return first_plan


def _pull_and_draft(ctx: Context, draft: Draft, order: Order) -> None:
    outset = Outset.of(ctx)
    pulled: set[tuple[Side, str]] = set()
    for kind in ctx.kinds:
        for side in Side:
            if (side, kind) not in pulled:
                group = next(g for g in ctx.systems[side].capabilities.pull_groups if kind in g)
                drain(
                    ctx, side, group, outset,
                    plan_id=draft.plan_id, anew_before=order.anew_before,
                    is_sweep_forced=order.is_sweep, is_told=order.is_told,
                )  # fmt: skip
                pulled |= {(side, each) for each in group}
        _draft(draft, kind)


def _waiting(ctx: Context, doubt: DoubtedError) -> HaltedError:
    """Save what believing a listing would lead to, and nothing else, for a person to see."""
    draft = Draft(ctx)
    draft_missing(draft, doubt.side, doubt.kind, doubt.missing)
    plan_id = draft.opened()
    ctx.journal.seal(plan_id, (str(doubt),), {"operations": draft.census.total})
    return HaltedError(str(doubt), plan_id=plan_id)


def execute_undo(ctx: Context, engine: Engine, order: Order, run: RunRow, *, is_applied: bool) -> str | None:
    """Plan what takes a run back, and carry it out if ``is_applied``; returns the plan's id, None if nothing can be.

    Without ``is_applied`` only reading calls are made, and a brake that would hold the plan is told in it.
    """
    recover(ctx)
    draft = draft_undo(ctx, engine, run)
    plan_id = _seal(ctx, draft, order, is_held=is_applied)
    if plan_id is not None and is_applied:
        _apply(ctx, plan_id, "undo")
    return plan_id


def _look_again(ctx: Context, order: Order, by_kind: dict[str, int]) -> None:
    """Plan and apply what moved while we wrote, or became possible by what we wrote; at most three rounds in all."""
    for _ in range(ROUNDS - 1):
        draft = Draft(ctx, by_kind=by_kind)
        for kind in ctx.kinds:
            _draft(draft, kind)
        plan_id = _seal(ctx, draft, order)
        if plan_id is None:
            return
        _apply(ctx, plan_id, order.reason)


def _draft(draft: Draft, kind: str) -> None:
    """Plan one kind; records whose values were erased here are read again, if a decision asks for those."""
    ctx = draft.ctx
    if ctx.rules.only is not None and kind not in ctx.rules.only:
        return
    if kind in RELATIONS:
        seek_stranded(ctx, kind)
    draft_kind(draft, kind)
    for side, addresses in draft.unread.addresses.items():
        read_erased(ctx, side, kind, addresses, alone=draft.unread.newcomers.get(side, ()))
    if draft.unread.addresses:
        draft_unread(draft, kind)


def _seal(ctx: Context, draft: Draft, order: Order, *, is_held: bool = True) -> str | None:
    """Give the plan its hash and let the guard see it. Raises HaltedError if it must wait for a person.

    Without ``is_held`` the guard's reasons are kept with the plan, which waits for a person anyway.
    """
    if draft.plan_id is None:
        return None
    reasons: tuple[str, ...] = ()
    if order.reason != "plan" and not order.is_waived:
        reasons = brakes(
            draft.census, ctx.store.count_links(), ctx.rules.limits,
            is_approved=order.is_approved, is_backfill=order.reason == "backfill",
            deleted=ctx.store.deletes_since(ctx.now() - timedelta(days=1)) if draft.census.deletes else {},
        )  # fmt: skip
    ctx.journal.seal(draft.plan_id, reasons, {"operations": draft.census.total})
    if reasons and is_held:
        raise HaltedError("; ".join(reasons), plan_id=draft.plan_id)
    return draft.plan_id


def _apply(ctx: Context, plan_id: str, reason: Reason) -> None:
    ctx.journal.set_plan(plan_id, "applying")
    apply_plan(ctx, plan_id, is_backfill=reason == "backfill")
    ctx.journal.set_plan(plan_id, "applied", ctx.now())


def execute_plan(ctx: Context, plan_id: str, on_verified: Callable[[], None] = lambda: None) -> None:
    """Carry out a saved plan exactly, or not at all. Raises PlanMovedError naming the record that moved.

    ``on_verified`` is called before the first write, once it is sure that there will be one.
    """
    recover(ctx, plan_id)
    entries = list_kinds(ctx, plan_id)
    outset = Outset.of(ctx)
    for side in Side:
        for group in ctx.systems[side].capabilities.pull_groups:
            if any(kind in entries for kind in group):
                # A listing that is not believed took nothing away, and what this plan touches is read by id.
                with suppress(DoubtedError):
                    drain(ctx, side, group, outset, plan_id=plan_id, anew_before=None,
                          is_sweep_forced=False, is_told=False)  # fmt: skip
    _verify(ctx, plan_id)
    on_verified()
    _apply(ctx, plan_id, "apply")


def list_kinds(ctx: Context, plan_id: str) -> frozenset[str]:
    """The kinds that a saved plan still has work for."""
    return frozenset(entry.operation.kind for entry in ctx.journal.entries(plan_id, state="planned"))


def _verify(ctx: Context, plan_id: str) -> None:
    """Compare both ends of every operation with what they hold now, before the first write."""
    batch: list[Entry] = []
    for entry in ctx.journal.entries(plan_id, state="planned"):
        if batch and (entry.operation.kind != batch[0].operation.kind or len(batch) >= 100):
            _verify_batch(ctx, plan_id, batch)
            batch = []
        batch.append(entry)
    if batch:
        _verify_batch(ctx, plan_id, batch)


def _verify_batch(ctx: Context, plan_id: str, batch: list[Entry]) -> None:
    kind = batch[0].operation.kind
    _verify_gone(ctx, plan_id, kind, batch)
    for side in Side:
        system = ctx.systems[side]
        wanted = {id_ for entry in batch if (id_ := _end_on(entry, side)) is not None}
        known = ctx.store.sighted(side, kind, wanted)
        if not system.kind(kind).is_conditional and not system.kind(kind).is_child:
            addresses = [Address(record.id, record.parent) for record in known.values()]
            size = system.kind(kind).read_batch
            for start in range(0, len(addresses), size):
                fresh = system.connector.read(kind, addresses[start : start + size])
                ctx.store.intake(side, kind, list(fresh.values()), ctx.now(), is_exact=False, is_current=True)
            known = ctx.store.sighted(side, kind, wanted)
        for entry in batch:
            id_ = _end_on(entry, side)
            if id_ is not None and _moved(ctx, entry, side, known.get(id_)):
                raise _refusal(ctx, plan_id, side, f"{kind} {id_} moved since the plan was made")


def _verify_gone(ctx: Context, plan_id: str, kind: str, batch: list[Entry]) -> None:
    """A deletion is passed on only for a record that is gone: one that a listing merely lacked is read by its id."""
    for side in Side:
        deletes = [each.operation for each in batch if each.operation.verb == "delete"]
        wanted = {op.source for op in deletes if op.side is side.other and op.source is not None}
        alive = [each for each in ctx.store.sighted(side, kind, wanted).values() if not each.is_deleted]
        read_again(ctx, ctx.systems[side], side, kind, [Address(each.id, each.parent) for each in alive])
        for record in ctx.store.sighted(side, kind, [each.id for each in alive]).values():
            if not record.is_deleted:
                raise _refusal(ctx, plan_id, side, f"{kind} {record.id} is there after all")


def _refusal(ctx: Context, plan_id: str, side: Side, what: str) -> PlanMovedError:
    ctx.journal.set_plan(plan_id, "refused", ctx.now())
    return PlanMovedError(f"{'propstreet' if side is Side.LEFT else 'crm'} {what}; nothing was written")


def _end_on(entry: Entry, side: Side) -> str | None:
    op = entry.operation
    if op.side is side:
        return op.target.id if op.target is not None else None
    return op.source if op.verb in ("create", "update") else None


def _moved(ctx: Context, entry: Entry, side: Side, record: Record | None) -> bool:
    if record is None:
        return True
    if entry.operation.side is side:
        return record.is_deleted or (entry.precondition is not None and entry.precondition != proof(ctx, record))
    types = ctx.fields(record.kind).types
    return record.is_deleted or any(
        value != entry.source.get(name) for name, value in record.values.items() if name in types
    )
