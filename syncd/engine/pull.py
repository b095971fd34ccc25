"""Drain one side's feeds into the inbox, page by page.

What a page shows is written down before the watermark passes it, in records that stay until
they are settled; so a run that dies goes on where its last whole feed ended. What a listing no
longer shows is read once more before it counts as deleted, and not believed at all if too much
is missing at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta

from syncd.connector import Page, Parent, Pull
from syncd.core.guard import shrunken
from syncd.core.model import Address, Side
from syncd.engine.context import Context, System
from syncd.errors import HaltedError
from syncd.state.store import FeedRow, Listing

DEEP_EVERY_SECONDS = 3_600.0
#: A sweep may cost this many seconds of quiet for each call it takes, so that it stays a small share.
SWEEP_SECONDS_PER_CALL = 1.0
#: A sweep that takes no more calls than this is done in every run, and not even noted.
CHEAP_SWEEP = 20
#: Closed deals are visited for their children this often; open ones in every run.
CLOSED_EVERY_SECONDS = 3_600.0


def drain(
    ctx: Context,
    side: Side,
    group: Sequence[str],
    *,
    plan_id: str | None,
    anew_before: datetime | None,
    is_sweep_forced: bool,
) -> None:
    """Pull all kinds of one pull group of one side and advance their feeds.

    Feeds that were last listed whole before ``anew_before``, or never, are listed whole.
    Raises HaltedError for a listing that is not to be believed, and what the connector raises.
    """
    system = ctx.systems[side]
    kinds = tuple(kind for kind in group if kind in ctx.kinds)
    if not kinds:
        return
    started_at = ctx.now()
    calls_before = system.courier.calls.total()
    feeds = {kind: ctx.store.feed(side, kind) for kind in kinds}
    lead = feeds[kinds[0]]
    whole = {kind: _is_whole(ctx, feeds[kind], started_at, anew_before) for kind in kinds}
    is_deep = _is_due(lead.deep_at, started_at, DEEP_EVERY_SECONDS)
    quiet = lead.cost * SWEEP_SECONDS_PER_CALL if lead.cost > CHEAP_SWEEP else 0.0
    is_sweep = is_sweep_forced or _is_due(lead.swept_at, started_at, quiet)
    child = next((kind for kind in kinds if system.kind(kind).is_child), None)
    if child is not None and system.kind(child).is_swept and not is_sweep and kinds == (child,):
        return

    visited: set[str] = set()

    def parents() -> Iterable[Parent]:
        if child is None:
            return
        rotation = _Rotation.of(ctx, system, child, started_at, is_whole=whole[child], anew_before=anew_before)
        rows = ctx.store.parents(
            side, child, plan_id, visited_before=rotation.visited_before, closed_before=rotation.closed_before
        )
        for count, row in enumerate(rows):
            if rotation.limit is not None and count >= rotation.limit:
                return
            if rotation.is_noted or row.is_closed:
                visited.add(row.id)
            system.parents[child] += 1
            yield Parent(row.id, row.watermark)

    request = Pull(
        kinds=kinds,
        watermarks={kind: None if whole[kind] else feeds[kind].watermark for kind in kinds},
        parents=parents,
        holders=lambda key, ids: ctx.store.holders(side, "deal", key, ids),
        is_deep=is_deep,
        is_sweep=is_sweep,
    )
    clocks: dict[tuple[str, str], list[str]] = {}
    with ExitStack() as stack:
        listings: dict[str, Listing] = {}
        for page in system.connector.pull(request):
            _take(ctx, side, page)
            if page.clock is not None:
                clocks.setdefault((page.kind, page.parent or ""), []).append(page.clock)
            if page.parent is not None and page.is_last:
                stamps = {"visited_at": started_at} if page.parent in visited else {}
                ctx.store.advance(side, page.kind, page.parent, clocks.pop((page.kind, page.parent), []), **stamps)
                visited.discard(page.parent)
            if page.is_listing:
                if page.kind not in listings:
                    listings[page.kind] = stack.enter_context(ctx.store.listing(side, page.kind))
                listings[page.kind].add([record.id for record in page.records if not record.is_deleted])
                if page.is_last:
                    gone = listings[page.kind].missing()
                    _believe(ctx, side, page.kind, gone, ctx.store.count_known(side, page.kind))
            ctx.progress("pulled", page.kind, len(page.records))
    for (kind, parent), seen in clocks.items():
        if parent:
            ctx.store.advance(side, kind, parent, seen)
    for kind in kinds:
        notes: dict[str, object] = {}
        if whole[kind]:
            notes["listed_at"] = started_at
        if is_deep:
            notes["deep_at"] = started_at
        if is_sweep and max(lead.cost, cost := system.courier.calls.total() - calls_before) > CHEAP_SWEEP:
            notes |= {"swept_at": started_at, "cost": cost}
        ctx.store.advance(side, kind, "", clocks.get((kind, ""), []), **notes)


@dataclass(frozen=True, slots=True)
class _Rotation:
    """Which deals are visited for their children in this run, where each visit is a call of its own."""

    limit: int | None = None
    visited_before: datetime | None = None
    closed_before: datetime | None = None
    is_noted: bool = False

    @classmethod
    def of(
        cls, ctx: Context, system: System, child: str, at: datetime, *, is_whole: bool, anew_before: datetime | None
    ) -> _Rotation:
        if system.kind(child).is_swept:
            return cls()
        if is_whole:
            # One that was cut off does not start over: what it visited already is left out.
            return cls(visited_before=anew_before, is_noted=True)
        hour = at - timedelta(seconds=CLOSED_EVERY_SECONDS)
        limit = ctx.rules.visits
        return cls(
            limit, closed_before=hour, is_noted=limit is not None and ctx.store.count_links().get("deal", 0) > limit
        )


def _is_whole(ctx: Context, feed: FeedRow, at: datetime, anew_before: datetime | None) -> bool:
    if feed.listed_at is None or (anew_before is not None and feed.listed_at < anew_before):
        return True
    return _is_due(feed.listed_at, at, ctx.rules.compare_every_seconds)


def _is_due(last: datetime | None, at: datetime, seconds: float) -> bool:
    return last is None or at - last >= timedelta(seconds=seconds)


def _take(ctx: Context, side: Side, page: Page) -> None:
    """Write one page into the inbox, and what it shows to be gone."""
    system = ctx.systems[side]
    at = ctx.now()
    system.pulled[page.kind] += len(page.records)
    with ctx.store.transaction():
        ctx.store.intake(side, page.kind, page.records, at, is_exact=system.kind(page.kind).is_exact)
        for refusal in page.refused:
            ctx.report.rejected[refusal.kind] += 1
            ctx.store.refuse(side, refusal.kind, refusal.id, refusal.reason, at)
    if page.complete_parents:
        known = ctx.store.known_children(side, page.kind, page.complete_parents)
        shown = {record.id for record in page.records}
        gone = [address for id_, address in known.items() if id_ not in shown]
        _believe(ctx, side, page.kind, gone, ctx.store.count_known(side, page.kind) if gone else 0)


def _believe(ctx: Context, side: Side, kind: str, gone: Sequence[Address], known: int) -> None:
    """Take records that a listing lacks for deleted, after a second read has said so too."""
    if not gone:
        return
    if reason := shrunken(kind, side, len(gone), known, ctx.rules.limits):
        raise HaltedError(reason)
    system = ctx.systems[side]
    size = system.kind(kind).read_batch
    for start in range(0, len(gone), size):
        found = system.connector.read(kind, gone[start : start + size])
        ctx.store.intake(side, kind, list(found.values()), ctx.now(), is_exact=False)


def read_again(ctx: Context, system: System, side: Side, kind: str, addresses: Sequence[Address]) -> None:
    """Read records by id and keep what is news; a vanished one becomes a tombstone."""
    size = system.kind(kind).read_batch
    for start in range(0, len(addresses), size):
        found = system.connector.read(kind, addresses[start : start + size])
        ctx.store.intake(side, kind, list(found.values()), ctx.now(), is_exact=False)
