"""From what a run wrote to a plan that takes it back.

Both sides are read again first, so that it is decided on what stands there now. The plan is an
ordinary one: the guard sees it, and it is applied as any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from sqlalchemy import Engine

from syncd.core.model import RELATIONS, Address, Money, Record, Side, Value
from syncd.core.plan import Sighted, priced
from syncd.core.undo import Deed, Leftover, Standing, Written, undo
from syncd.engine.context import Context
from syncd.engine.draft import CHUNK, Draft, for_a_create
from syncd.engine.pull import read_again
from syncd.errors import NotFoundError
from syncd.state import history
from syncd.state.history import RunRow
from syncd.state.store import LinkRow


def draft_undo(ctx: Context, engine: Engine, run: RunRow) -> Draft:
    """Plan what takes a run back; what is left is in the report. Raises NotFoundError for a run of another pair."""
    if run.pair != ctx.pair:
        raise NotFoundError(f"run {run.id} is one of {run.pair}, not of {ctx.pair}")
    draft = Draft(ctx, is_undo=True)
    for deeds in _chunks(history.deeds(engine, run.id)):
        _draft_chunk(draft, engine, run, deeds)
    draft.flush()
    for row in history.lost(engine, run):
        left, right = (row.target_id, row.source_id) if row.side == Side.LEFT else (row.source_id, row.target_id)
        reason = "its answer was lost; what was written of it stands in the log of a later run"
        ctx.report.leftovers.append(Leftover(row.kind, Side(row.side), left, right, "", reason))
    return draft


def _chunks(deeds: Iterable[Deed]) -> Iterator[list[Deed]]:
    """Deeds of one kind and side, some at a time."""
    for _, alike in groupby(deeds, key=lambda deed: (deed.kind, deed.side)):
        chunk: list[Deed] = []
        for deed in alike:
            chunk.append(deed)
            if len(chunk) >= CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


def _draft_chunk(draft: Draft, engine: Engine, run: RunRow, deeds: Sequence[Deed]) -> None:
    ctx, kind = draft.ctx, deeds[0].kind
    if kind not in ctx.kinds:
        ctx.report.leftovers += [_unsynced(deed) for deed in deeds]
        return
    if ctx.bare(kind):
        ctx.look_at_prices()
    known = _Known.of(ctx, engine, run, deeds)
    fields = ctx.fields(kind)
    for deed in deeds:
        standing = known.standing(deed)
        operation, left = undo(_told(ctx, deed), standing, fields, run.id)
        ctx.report.leftovers += left
        if operation is not None:
            target = known.targets.get(deed.target) if operation.verb != "create" else None
            source = standing.source.record if standing.source is not None and operation.source else None
            draft.add(operation, target.record.values if target else {}, source, target.record if target else None)


def _unsynced(deed: Deed) -> Leftover:
    return Leftover(
        deed.kind, deed.side, deed.left_id, deed.right_id, "", "the tenant does not sync this kind any more"
    )


def _told(ctx: Context, deed: Deed) -> Deed:
    """A deed with the CRM's bare amounts told in the currency that they are taken to be in."""
    bare = ctx.bare(deed.kind) if deed.side is Side.RIGHT else frozenset()
    fields = {name: _with_currency(line, ctx.currency) if name in bare else line for name, line in deed.fields.items()}
    return replace(deed, fields=fields)


def _with_currency(line: Written, currency: str | None) -> Written:
    def told(value: Value) -> Value:
        return replace(value, currency=currency or "") if isinstance(value, Money) else value

    return replace(line, old=told(line.old), new=told(line.new), stored=told(line.stored))


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known, after both sides were read again, of one chunk's records."""

    ctx: Context
    rows: Mapping[str, LinkRow]
    """Links by the id of the record that was written."""
    targets: Mapping[str, Sighted]
    sources: Mapping[str, Sighted]
    taken: frozenset[str]
    """Sources that are linked, to whatever."""
    holds: Mapping[Side, Mapping[str, str]]
    later: Mapping[str, Mapping[tuple[Side, str], Value]]
    dependants: Mapping[str, tuple[str, ...]]
    alive: Mapping[str, frozenset[str]]
    """By kind the references that live, of relations that were removed."""
    again: Mapping[str, Sighted]
    """By the id of a removed relation another one that stands for the same two by now."""

    @classmethod
    def of(cls, ctx: Context, engine: Engine, run: RunRow, deeds: Sequence[Deed]) -> _Known:
        kind, side = deeds[0].kind, deeds[0].side
        store = ctx.store
        ids = {side: [deed.target for deed in deeds], side.other: [deed.source for deed in deeds if deed.source]}
        parents = {deed.target: _parent(deed) for deed in deeds}
        for each in Side:
            known = store.sighted(each, kind, ids[each])
            addresses = [_address(id_, known.get(id_), parents if each is side else {}) for id_ in ids[each]]
            read_again(ctx, ctx.systems[each], each, kind, addresses)
        rows = {row.side(side).record.id: row for row in store.linked(kind, side, ids[side])}
        created = [deed for deed in deeds if deed.verb == "create"]
        removed = [deed for deed in deeds if deed.verb == "delete" and deed.kind in RELATIONS]
        return cls(
            ctx,
            rows,
            _sighted(ctx, kind, side, ids[side], rows.values()),
            _sighted(ctx, kind, side.other, ids[side.other], rows.values()),
            frozenset(store.counterparts(kind, side.other, ids[side.other])),
            {each: store.holds().get((kind, each), {}) for each in Side},
            history.later(engine, ctx.pair, run.id, created),
            history.dependants(engine, ctx.pair, run.id, created),
            _alive(ctx, side, removed),
            _again(ctx, side, removed),
        )

    def standing(self, deed: Deed) -> Standing:
        ctx, side = self.ctx, deed.side
        target, source = self.targets.get(deed.target), self.sources.get(deed.source or "")
        target = self.again.get(deed.target, target)
        row = self.rows.get(deed.target)
        bare = ctx.bare(deed.kind) if ctx.currency is not None else frozenset()
        if bare and ctx.currency is not None and target is not None and side is Side.RIGHT:
            target = priced(target, bare, ctx.currency, source.record.values if source is not None else {})
        if source is not None and deed.verb == "delete":
            vocabulary = ctx.vocabulary(deed.kind) if side is Side.RIGHT else {}
            values = for_a_create(ctx, side.other, source.record, vocabulary)
            source = replace(source, record=replace(source.record, values=values))
        elif source is not None:
            source = replace(source, record=_complete(source))
        capability = ctx.systems[side].kind(deed.kind)
        named = {
            each: self.holds[each].get(id_ or "") for each, id_ in ((side, deed.target), (side.other, deed.source))
        }
        return Standing(
            target,
            source,
            is_linked=row is not None and row.side(side.other).record.id == deed.source,
            is_source_taken=deed.source in self.taken,
            holds={each: reason for each, reason in named.items() if reason is not None},
            later=self.later.get(deed.target, {}),
            refs_gone=frozenset(kind for kind, id_ in deed.refs.items() if id_ not in self.alive.get(kind, ())),
            dependants=self.dependants.get(deed.target, ()),
            can_delete="delete" in capability.batch,
            by_hand=capability.restored_by_hand,
        )


def _parent(deed: Deed) -> str | None:
    return deed.refs.get({"deal_contact": "deal", "employment": "contact"}.get(deed.kind, ""))


def _address(id_: str, known: Record | None, parents: Mapping[str, str | None]) -> Address:
    return Address(id_, (known.parent if known is not None else None) or parents.get(id_))


def _sighted(ctx: Context, kind: str, side: Side, ids: Sequence[str], rows: Iterable[LinkRow]) -> dict[str, Sighted]:
    """Records as last seen: with the base of their link, or with none if they stand alone."""
    found = {id_: Sighted(record, {}) for id_, record in ctx.store.sighted(side, kind, ids).items()}
    return found | {row.side(side).record.id: row.side(side) for row in rows}


def _complete(sighted: Sighted) -> Record:
    """A source with what its half of the base holds of fields that it does not tell: that is kept, not emptied."""
    return replace(sighted.record, values={**sighted.base, **sighted.record.values})


def _alive(ctx: Context, side: Side, deeds: Sequence[Deed]) -> dict[str, frozenset[str]]:
    """Which of the records that removed relations referred to still live, as their system tells now."""
    wanted: dict[str, set[str]] = {}
    for deed in deeds:
        for kind, id_ in deed.refs.items():
            wanted.setdefault(kind, set()).add(id_)
    found: dict[str, frozenset[str]] = {}
    for kind, ids in wanted.items():
        system, addresses = ctx.systems[side], [Address(id_) for id_ in sorted(ids)]
        size = system.kind(kind).read_batch
        there: set[str] = set()
        for start in range(0, len(addresses), size):
            records = system.connector.read(kind, addresses[start : start + size])
            there |= {id_ for id_, record in records.items() if not record.is_deleted and record.id == id_}
        found[kind] = frozenset(there)
    return found


def _again(ctx: Context, side: Side, deeds: Sequence[Deed]) -> dict[str, Sighted]:
    """By the id of a removed relation what refers to the same two there now, however it came back."""
    by_refs = {frozenset(deed.refs.items()): deed.target for deed in deeds if deed.refs}
    if not by_refs:
        return {}
    kind = deeds[0].kind
    parents = {parent for deed in deeds if (parent := _parent(deed)) is not None}
    below = ctx.store.known_children(side, kind, sorted(parents))
    known = _below(ctx, kind, side, below)
    alike = [below[id_] for id_, sighted in known.items() if frozenset(sighted.record.refs.items()) in by_refs]
    read_again(ctx, ctx.systems[side], side, kind, alike)
    now = _below(ctx, kind, side, [address.id for address in alike])
    return {
        by_refs[refs]: sighted
        for sighted in now.values()
        if not sighted.record.is_deleted and (refs := frozenset(sighted.record.refs.items())) in by_refs
    }


def _below(ctx: Context, kind: str, side: Side, ids: Iterable[str]) -> dict[str, Sighted]:
    some = list(ids)
    return _sighted(ctx, kind, side, some, ctx.store.linked(kind, side, some))
