"""Drain one side's feeds into the inbox, page by page.

What a page shows is written down before the watermark passes it, in records that stay until
they are settled; so a run that dies goes on where its last whole feed ended. What a listing no
longer shows is judged when all is read: it is read once more before it counts as deleted, and not
believed at all if too much is missing at once. A clock of a record, which may be wrong, moves no
watermark beyond our own. What webhooks spoke of is read by id after the listings, since an index
may not show it for a while, and would bring back what is gone; such a read moves no watermark, and
what it does not find is judged with what the listings lack.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from syncd.connector import Page, Parent, Pull
from syncd.core.guard import ALL_OF, emptied, shrunken
from syncd.core.model import Address, Record, Side
from syncd.core.watermark import within
from syncd.engine.context import Context, System
from syncd.errors import SyncdError
from syncd.state.rows import Listing
from syncd.state.store import NO_FEED, FeedRow, Told

DEEP_EVERY_SECONDS = 3_600.0
#: A sweep may cost this many seconds of quiet for each call it takes, so that it stays a small share.
SWEEP_SECONDS_PER_CALL = 1.0
#: A sweep that takes no more calls than this is done in every run, and not even noted.
CHEAP_SWEEP = 20
#: Closed deals are visited for their children this often; open ones in every run.
CLOSED_EVERY_SECONDS = 3_600.0
#: So many visits, or so many records that they showed, are written down together.
VISITS = 50
VISITED = 500
#: Replicas' clocks differ a little. What lies further ahead than this was written by a clock that was wrong.
SKEW_SECONDS = 300.0


class DoubtedError(SyncdError):
    """A listing lacks too much to be believed: nothing was taken for deleted, and its feed did not advance."""

    def __init__(self, reason: str, side: Side, kind: str, missing: Sequence[Address]):
        super().__init__(reason)
        self.side, self.kind, self.missing = side, kind, missing


@dataclass(frozen=True, slots=True)
class Outset:
    """What a run finds of both sides before it pulls: how far its feeds are, and what webhooks spoke of.

    What they speak of meanwhile is for the next run, which they have asked for.
    """

    feeds: Mapping[tuple[Side, str], FeedRow]
    told: Mapping[tuple[Side, str], Mapping[str, Told]]

    @classmethod
    def of(cls, ctx: Context) -> Outset:
        return cls(ctx.store.feeds(), ctx.store.dirty())


def drain(
    ctx: Context,
    side: Side,
    group: Sequence[str],
    outset: Outset,
    *,
    plan_id: str | None,
    anew_before: datetime | None,
    is_sweep_forced: bool,
    is_told: bool,
) -> None:
    """Pull all kinds of one pull group of one side and advance their feeds.

    Feeds that were last listed whole before ``anew_before``, or never, are listed whole. With ``is_told`` nothing is
    swept that is not forced to be, and of deals those are visited of which webhooks spoke, or that never were.
    Raises DoubtedError for a listing that is not to be believed, and what the connector raises.
    """
    system = ctx.systems[side]
    kinds = tuple(kind for kind in group if kind in ctx.kinds)
    if not kinds:
        return
    started_at = ctx.now()
    calls_before = system.courier.calls.total()
    feeds = {kind: outset.feeds.get((side, kind), NO_FEED) for kind in kinds}
    lead = feeds[kinds[0]]
    whole = {kind: _is_whole(ctx, feeds[kind], started_at, anew_before) for kind in kinds}
    is_deep = _is_due(lead.deep_at, started_at, DEEP_EVERY_SECONDS)
    quiet = lead.cost * SWEEP_SECONDS_PER_CALL if lead.cost > CHEAP_SWEEP else 0.0
    is_sweep = is_sweep_forced or (not is_told and _is_due(lead.swept_at, started_at, quiet))
    child = next((kind for kind in kinds if system.kind(kind).is_child), None)
    told = {kind: ids for kind in kinds if (ids := outset.told.get((side, kind)))}
    among: Collection[str] | None = None
    if child is not None and system.kind(child).is_swept and not is_sweep:
        if kinds == (child,):
            if child not in told:
                return
            whole[child] = False
        among = None if whole[child] else told.get(child, {}).keys()

    # Asked for, whatever comes of it.
    system.pulled.update(dict.fromkeys(kinds, 0))
    visited: dict[str, int] = {}

    def parents() -> Iterable[Parent]:
        if child is None or (among is not None and not among):
            return
        if not system.kind(child).is_swept:
            ctx.store.forget_visits(side, child, started_at + timedelta(seconds=SKEW_SECONDS))
        rotation = _Rotation.of(ctx, system, child, started_at, is_whole=whole[child], anew_before=anew_before)
        rows = ctx.store.parents(
            side, child, plan_id,
            visited_before=rotation.visited_before, closed_before=rotation.closed_before, among=among,
            is_told=is_told and not whole[child],
        )  # fmt: skip
        for count, row in enumerate(rows):
            if rotation.limit is not None and count >= rotation.limit:
                return
            if rotation.is_noted or row.is_closed or row.is_due:
                visited[row.id] = row.hints
            system.parents[child] += 1
            yield Parent(row.id, row.watermark, row.has_children)

    request = Pull(
        kinds=kinds,
        watermarks={kind: None if whole[kind] else feeds[kind].watermark for kind in kinds},
        parents=parents,
        holders=lambda key, ids: ctx.store.holders(side, "deal", key, ids),
        is_deep=is_deep,
        is_sweep=is_sweep,
        is_backfill=anew_before is not None,
    )
    clocks: dict[str, list[str]] = {}
    missing = _Missing()
    with ExitStack() as stack:
        listings: dict[str, Listing] = {}
        visits: list[Page] = []
        for page in system.connector.pull(request):
            if page.parent is not None:
                # Not between two pages of one parent: its feed may advance only when all are written down.
                if visits and visits[-1].parent != page.parent and _is_plenty(visits):
                    _take_visits(ctx, side, visits, visited, started_at, missing)
                    visits = []
                visits.append(page)
                continue
            _take(ctx, side, [page], missing)
            if page.clock is not None:
                clocks.setdefault(page.kind, []).append(page.clock)
            if page.is_listing:
                if page.kind not in listings:
                    listings[page.kind] = stack.enter_context(ctx.store.listing(side, page.kind))
                listings[page.kind].add([record.id for record in page.records if not record.is_deleted])
                if page.is_last:
                    missing.of(page.kind).records += listings[page.kind].missing()
        _take_visits(ctx, side, visits, visited, started_at, missing)
    gone = _read_dirty(ctx, side, told, missing)
    _believe(ctx, side, missing)
    for kind in kinds:
        notes: dict[str, object] = {}
        if whole[kind]:
            notes["listed_at"] = started_at
        if is_deep:
            notes["deep_at"] = started_at
        if is_sweep and max(lead.cost, cost := system.courier.calls.total() - calls_before) > CHEAP_SWEEP:
            notes |= {"swept_at": started_at, "cost": cost}
        ctx.store.advance(side, kind, "", within(clocks.get(kind, []), started_at), known=feeds[kind], **notes)
        # What is gone may be shown for a while yet, and would be taken for new: it is read again until then.
        lag = system.capabilities.overlap_seconds
        stay = {id_ for id_ in gone.get(kind, ()) if not _is_due(told[kind][id_].heard_at, started_at, lag)}
        ctx.store.drop_dirty(side, kind, {id_: each for id_, each in told.get(kind, {}).items() if id_ not in stay})


def _read_dirty(
    ctx: Context, side: Side, told: Mapping[str, Collection[str]], missing: _Missing
) -> dict[str, set[str]]:
    """Read by id what webhooks spoke of and no listing may show yet; by kind what is gone, or went into another.

    Also where all was listed: that says nothing of what it lacks, unless it is linked. What is known and cannot be read
    is missing, as from a listing: a webhook does not say that it is gone. Of associations the parents are visited.
    """
    system = ctx.systems[side]
    gone: dict[str, set[str]] = {}
    for kind, ids in told.items():
        if system.kind(kind).is_child or system.kind(kind).is_current:
            continue
        for found in _read_again(ctx, system, side, kind, [Address(id_) for id_ in sorted(ids)], is_judged=False):
            # A listing that lags behind may just have shown what went into another: that one has its link by now.
            merged = [
                Record(kind, id_, {}, is_deleted=True, merged_into=record.id)
                for id_, record in found.items()
                if record.id != id_ and not record.is_deleted
            ]
            ctx.store.intake(side, kind, merged, ctx.now(), is_exact=False, is_current=True)
            vanished = {id_ for id_, record in found.items() if record.is_deleted}
            lack = missing.of(kind).records
            known = ctx.store.sighted(side, kind, vanished - {each.id for each in lack}).values()
            lack += [Address(each.id, each.parent) for each in known if not each.is_deleted]
            gone.setdefault(kind, set()).update(vanished, (each.id for each in merged))
    return gone


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
            return cls(visited_before=anew_before or at, is_noted=True)
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
    """Also where the last time lies ahead: our clock was wrong then, and must not put things off until it is right."""
    ahead = timedelta(seconds=SKEW_SECONDS)
    return last is None or last - at > ahead or at - last >= timedelta(seconds=seconds)


def _is_plenty(pages: Sequence[Page]) -> bool:
    return len(pages) >= VISITS or sum(len(page.records) for page in pages) >= VISITED


@dataclass(slots=True)
class _Lack:
    """What one kind lacks: records, the parents that lost their last child, and how many could have lost several."""

    records: list[Address] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    several: int = 0


@dataclass(slots=True)
class _Missing:
    """What the listings and visits of one drain no longer show, kept until all of it can be judged together.

    ``feeds``: (kind, clocks by parent, hints of the parents visited) of the parents that lack children. Their feeds
    wait, so that a run that dies before the judgement looks at them whole again.
    """

    kinds: dict[str, _Lack] = field(default_factory=dict)
    feeds: list[tuple[str, dict[str, list[str]], dict[str, int]]] = field(default_factory=list)

    def of(self, kind: str) -> _Lack:
        return self.kinds.setdefault(kind, _Lack())


def _take_visits(
    ctx: Context, side: Side, pages: Sequence[Page], visited: dict[str, int], at: datetime, missing: _Missing
) -> None:
    """Take all that visits of some parents showed, then advance the feeds of those that lack nothing."""
    clocks: dict[str, dict[str, list[str]]] = {}
    for page in pages:
        seen = clocks.setdefault(page.kind, {}).setdefault(str(page.parent), [])
        seen += within([page.clock], at) if page.clock is not None else []
    for kind, seen_by_parent in clocks.items():
        short = _take(ctx, side, [page for page in pages if page.kind == kind], missing)
        whole = {parent: seen for parent, seen in seen_by_parent.items() if parent not in short}
        ctx.store.advance_children(side, kind, whole, _only(visited, whole), at)
        if short:
            waiting = {parent: seen for parent, seen in seen_by_parent.items() if parent in short}
            missing.feeds.append((kind, waiting, _only(visited, waiting)))
        for parent in visited.keys() & seen_by_parent.keys():
            del visited[parent]


def _only(visited: Mapping[str, int], among: Container[str]) -> dict[str, int]:
    return {parent: hints for parent, hints in visited.items() if parent in among}


def _take(ctx: Context, side: Side, pages: Sequence[Page], missing: _Missing) -> frozenset[str]:
    """Write pages of one kind into the inbox; answers with the parents that lack children, which are noted."""
    system = ctx.systems[side]
    kind, at = pages[0].kind, ctx.now()
    records = [_spelt(ctx, side, record) for page in pages for record in page.records]
    system.pulled[kind] += len(records)
    refused = [each for page in pages for each in page.refused]
    if records or refused:
        with ctx.store.transaction():
            can = system.kind(kind)
            # Only what an index shows may be a thing of the past: a whole listing is from the records themselves.
            is_current = can.is_current or all(page.is_listing for page in pages)
            ctx.store.intake(side, kind, records, at, is_exact=can.is_exact, is_current=is_current)
            for refusal in refused:
                ctx.report.rejected[refusal.kind] += 1
                ctx.store.refuse(side, refusal.kind, refusal.id, refusal.reason, at)
    ctx.progress("pulled", kind, len(records))
    parents = [parent for page in pages for parent in page.complete_parents]
    if not parents:
        return frozenset()
    shown = {record.id for record in records}
    return _note_missing(missing.of(kind), ctx.store.known_children(side, kind, parents), shown)


def _note_missing(lack: _Lack, known: Mapping[str, Address], shown: set[str]) -> frozenset[str]:
    """Take note of known children that their parents did not show; answers with those parents."""
    before: dict[str, list[Address]] = {}
    for address in known.values():
        before.setdefault(str(address.parent), []).append(address)
    short: set[str] = set()
    for parent, children in before.items():
        lack.several += len(children) >= ALL_OF
        gone = [address for address in children if address.id not in shown]
        lack.records += gone
        if gone:
            short.add(parent)
        if len(gone) == len(children):
            lack.lost.append(len(gone))
    return frozenset(short)


def _spelt(ctx: Context, side: Side, record: Record) -> Record:
    """The record with its stored ref spelt as the other system spells its own ids."""
    if record.mark is None:
        return record
    mark = ctx.systems[side.other].capabilities.canonical_id(record.mark)
    return replace(record, mark=mark) if mark != record.mark else record


def _believe(ctx: Context, side: Side, missing: _Missing) -> None:
    """Take records that listings lack for deleted, after a second read has said so too.

    All kinds are judged before any is believed. Raises DoubtedError for what is too much at once.
    """
    limits = ctx.rules.limits
    for kind, lack in missing.kinds.items():
        if not lack.records or ctx.rules.is_waived:
            continue
        known = ctx.store.count_known(side, kind)
        reason = shrunken(kind, side, len(lack.records), known, limits)
        reason = reason or emptied(kind, side, lack.lost, lack.several, limits)
        if reason is not None:
            raise DoubtedError(reason, side, kind, lack.records)
    for kind, lack in missing.kinds.items():
        read_again(ctx, ctx.systems[side], side, kind, lack.records)
    for kind, clocks, visited in missing.feeds:
        ctx.store.advance_children(side, kind, clocks, visited, ctx.now())


def seek_stranded(ctx: Context, kind: str) -> None:
    """Read relations again below what is linked no more, or merged away: gone with it, or left on their own."""
    for side in Side:
        rows = ctx.store.stranded(side, kind)
        read_again(ctx, ctx.systems[side], side, kind, [row.side(side).address for row in rows])
        for row in ctx.store.linked(kind, side, [row.side(side).record.id for row in rows]):
            if not row.moved:
                ctx.store.keep(side, row.side(side).record, ctx.now())


def read_again(ctx: Context, system: System, side: Side, kind: str, addresses: Sequence[Address]) -> None:
    """Read records by id and keep what is news; a vanished one becomes a tombstone."""
    for _ in _read_again(ctx, system, side, kind, addresses):
        pass


def _read_again(
    ctx: Context, system: System, side: Side, kind: str, addresses: Sequence[Address], *, is_judged: bool = True
) -> Iterator[Mapping[str, Record]]:
    """The same, with what each call has shown, by the ids asked for; a vanished one is left out until ``is_judged``."""
    can = system.kind(kind)
    for start in range(0, len(addresses), can.read_batch):
        found = system.connector.read(kind, addresses[start : start + can.read_batch])
        records = [_spelt(ctx, side, record) for record in found.values() if is_judged or not record.is_deleted]
        ctx.store.intake(side, kind, records, ctx.now(), is_exact=False, is_current=True)
        yield found


def read_erased(ctx: Context, side: Side, kind: str, addresses: Sequence[Address], *, alone: Collection[str]) -> None:
    """Read records again whose values were erased here, and keep them; those that stand ``alone`` have no link."""
    system = ctx.systems[side]
    can = system.kind(kind)
    for start in range(0, len(addresses), can.read_batch):
        batch = addresses[start : start + can.read_batch]
        found = system.connector.read(kind, batch)
        asked = {address.id for address in batch}
        for record in (_spelt(ctx, side, each) for each in found.values()):
            if record.is_deleted or record.id not in asked:
                ctx.store.intake(side, kind, [record], ctx.now(), is_exact=False, is_current=True)
            else:
                ctx.store.keep(side, record, ctx.now(), is_linked=record.id not in alone)
