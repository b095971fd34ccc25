"""Read both sides whole and compare them with what is remembered, without changing anything.

What the listings show is put aside on this machine's disk, so that memory stays flat: an unnamed
SQLite file, private to the process and gone with it, which needs no connection to the database
open for hours. Then the links are walked, and after them what no link names. Whatever looks
unexplained is read again by id before it is told: a listing may lag, and a run may have been at
work. No lease is taken; a link that changed while its records were read is looked at again.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine

from syncd.connector import Parent, Pull
from syncd.core.audit import Alone, Bond, Difference, Stood, judge, judge_alone
from syncd.core.mapping import freeze, instant, thaw
from syncd.core.model import Address, Record, Side
from syncd.core.plan import Sighted, priced
from syncd.engine.context import Context
from syncd.state import audits
from syncd.state.store import LinkRow

CHUNK = 400
#: How often a link that changes under our eyes is looked at again.
LOOKS = 3
MOVING = "moved while it was looked at"


@dataclass(slots=True)
class Tally:
    """What an audit of one kind came to. ``known`` counts by reason."""

    identical: int = 0
    known: Counter[str] = field(default_factory=Counter)
    unexplained: int = 0

    def as_json(self) -> dict[str, Any]:
        return {"identical": self.identical, "known": dict(sorted(self.known.items())), "unexplained": self.unexplained}


def audit(ctx: Context, engine: Engine, kinds: Iterable[str], tell: Callable[[Difference], None]) -> dict[str, Tally]:
    """Compare these kinds; each difference that is unexplained is told. Makes reading calls only."""
    wanted = [kind for kind in ctx.kinds if kind in set(kinds)]
    with closing(sqlite3.connect("")) as disk:
        aside = _Aside(disk)
        for side in Side:
            _list(ctx, side, wanted, aside)
        return {kind: _compare(_Desk(ctx, engine, kind), aside, tell) for kind in wanted}


class _Aside:
    """Records as the listings showed them, on disk."""

    def __init__(self, disk: sqlite3.Connection):
        self._disk = disk
        disk.execute("CREATE TABLE shown (kind, side, id, told, is_linked DEFAULT 0, PRIMARY KEY (kind, side, id))")

    def put(self, side: Side, records: Iterable[Record]) -> None:
        rows = [(each.kind, str(side), each.id, json.dumps(_packed(each))) for each in records]
        self._disk.executemany("INSERT OR REPLACE INTO shown (kind, side, id, told) VALUES (?, ?, ?, ?)", rows)

    def take(self, kind: str, side: Side, ids: Sequence[str]) -> dict[str, Record]:
        """Records of linked ids; they count as linked from now on."""
        found: dict[str, Record] = {}
        at = (kind, str(side))
        for id_ in ids:
            row = self._disk.execute("SELECT told FROM shown WHERE kind=? AND side=? AND id=?", (*at, id_)).fetchone()
            if row is not None:
                found[id_] = _unpacked(kind, id_, json.loads(row[0]))
                self._disk.execute("UPDATE shown SET is_linked=1 WHERE kind=? AND side=? AND id=?", (*at, id_))
        return found

    def alone(self, kind: str, side: Side) -> Iterator[list[Record]]:
        """Records that no link names, some at a time."""
        after = ""
        query = "SELECT id, told FROM shown WHERE kind=? AND side=? AND id>? AND NOT is_linked ORDER BY id LIMIT ?"
        while rows := self._disk.execute(query, (kind, str(side), after, CHUNK)).fetchall():
            after = rows[-1][0]
            yield [_unpacked(kind, id_, json.loads(told)) for id_, told in rows]


def _packed(record: Record) -> dict[str, Any]:
    return {
        "values": freeze(record.values),
        "refs": dict(record.refs),
        "parent": record.parent,
        "version": record.version,
        "modified_at": record.modified_at.isoformat() if record.modified_at is not None else None,
        "modified_by": record.modified_by,
        "is_deleted": record.is_deleted,
        "merged_into": record.merged_into,
    }


def _unpacked(kind: str, id_: str, told: Mapping[str, Any]) -> Record:
    at = told["modified_at"]
    return Record(
        kind, id_, thaw(told["values"]), parent=told["parent"], refs=told["refs"], version=told["version"],
        modified_at=datetime.fromisoformat(at) if at is not None else None, modified_by=told["modified_by"],
        is_deleted=told["is_deleted"], merged_into=told["merged_into"],
    )  # fmt: skip


def _list(ctx: Context, side: Side, wanted: Sequence[str], aside: _Aside) -> None:
    """Put aside all that one side shows of these kinds, page by page."""
    system = ctx.systems[side]
    for group in system.capabilities.pull_groups:
        kinds = tuple(kind for kind in group if kind in ctx.kinds)
        if not set(kinds) & set(wanted):
            continue
        child = next((kind for kind in kinds if system.kind(kind).is_child), None)
        request = Pull(
            kinds=kinds,
            watermarks=dict.fromkeys(kinds),
            parents=lambda child=child: _parents(ctx, side, child),  # type: ignore[misc]  # bound at once
            holders=lambda key, ids: ctx.store.holders(side, "deal", key, ids),
            is_deep=True,
            is_sweep=True,
            is_backfill=True,
        )
        for page in system.connector.pull(request):
            if page.kind in wanted:
                aside.put(side, page.records)
                ctx.progress("audited", page.kind, len(page.records))


def _parents(ctx: Context, side: Side, child: str | None) -> Iterator[Parent]:
    if child is not None:
        for row in ctx.store.parents(side, child, None, visited_before=None, closed_before=None):
            yield Parent(row.id, None, row.has_children)


# --- comparing ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where one kind is compared."""

    ctx: Context
    engine: Engine
    kind: str


def _compare(at: _Desk, aside: _Aside, tell: Callable[[Difference], None]) -> Tally:
    ctx, kind, tally = at.ctx, at.kind, Tally()

    def take(differences: Iterable[Difference]) -> None:
        for each in differences:
            if each.is_explained:
                tally.known[each.reason] += 1
            else:
                tally.unexplained += 1
                tell(each)

    after = 0
    while rows := audits.links(at.engine, ctx.pair, kind, after, CHUNK):
        after = rows[-1][0]
        left_ids = [left_id for _, left_id, _ in rows]
        shown = {
            Side.LEFT: aside.take(kind, Side.LEFT, left_ids),
            Side.RIGHT: aside.take(kind, Side.RIGHT, [right_id for _, _, right_id in rows]),
        }
        found = _judged(at, ctx.store.linked(kind, Side.LEFT, left_ids), shown)
        doubtful = [id_ for id_, each in found.items() if not all(difference.is_explained for difference in each)]
        found |= _looked_again(at, doubtful)
        for differences in found.values():
            tally.identical += not differences
            take(differences)
    for side in Side:
        for records in aside.alone(kind, side):
            take(_judged_alone(at, side, records))
    return tally


def _judged(
    at: _Desk, rows: Sequence[LinkRow], shown: Mapping[Side, Mapping[str, Record]]
) -> dict[str, tuple[Difference, ...]]:
    """Findings by left id."""
    ctx, kind = at.ctx, at.kind
    left_ids = [row.left.record.id for row in rows]
    conflicts = audits.open_conflicts(at.engine, ctx.pair, kind, left_ids)
    held = {side: ctx.store.holds().get((kind, side), {}) for side in Side}
    found: dict[str, tuple[Difference, ...]] = {}
    for row in rows:
        ids = (row.left.record.id, row.right.record.id)
        bond = Bond(
            kind, row.state, row.reason, frozenset(conflicts.get(ids, ())),
            held[Side.LEFT].get(ids[0]) or held[Side.RIGHT].get(ids[1]) or "", ctx.vocabulary(kind),
        )  # fmt: skip
        left, right = (_stood(ctx, row, side, shown[side]) for side in Side)
        found[ids[0]] = judge(left, right, bond, ctx.fields(kind))
    return found


def _stood(ctx: Context, row: LinkRow, side: Side, shown: Mapping[str, Record]) -> Stood:
    known = row.side(side)
    now = shown.get(known.record.id)
    bare = ctx.bare(row.kind) if side is Side.RIGHT else frozenset()
    if bare and ctx.currency is not None:
        known = priced(known, bare, ctx.currency, {})
        now = priced(Sighted(now, {}), bare, ctx.currency, {}).record if now is not None else None
    return Stood(now, known, side in row.moved)


def _looked_again(at: _Desk, left_ids: Sequence[str]) -> dict[str, tuple[Difference, ...]]:
    """The verdict on links that looked unexplained, from reads by id between two looks at what is remembered."""
    ctx, kind = at.ctx, at.kind
    found: dict[str, tuple[Difference, ...]] = {}
    for _ in range(LOOKS):
        if not left_ids:
            break
        rows = ctx.store.linked(kind, Side.LEFT, left_ids)
        shown = {side: _read(ctx, kind, side, [row.side(side).address for row in rows]) for side in Side}
        after = {row.id: row for row in ctx.store.linked(kind, Side.LEFT, left_ids)}
        still = [row for row in rows if after.get(row.id) == row]
        # A link that went meanwhile leaves nothing to say of it.
        found |= {id_: () for id_ in left_ids if id_ not in {row.left.record.id for row in rows}}
        found |= _judged(at, still, shown)
        left_ids = [row.left.record.id for row in rows if after.get(row.id) != row]
    for row in ctx.store.linked(kind, Side.LEFT, left_ids) if left_ids else ():
        found[row.left.record.id] = (
            Difference(kind, row.left.record.id, row.right.record.id, "", None, MOVING, is_explained=True),
        )
    return found


def _read(ctx: Context, kind: str, side: Side, addresses: Sequence[Address]) -> dict[str, Record]:
    system = ctx.systems[side]
    size = system.kind(kind).read_batch
    found: dict[str, Record] = {}
    for start in range(0, len(addresses), size):
        records = system.connector.read(kind, addresses[start : start + size])
        found |= {id_: _as_asked(id_, record) for id_, record in records.items()}
    return found


def _as_asked(id_: str, record: Record) -> Record:
    """A record that came back under another id was merged into that one."""
    if record.id == id_:
        return record
    return replace(record, id=id_, values={}, is_deleted=True, merged_into=record.id)


def _judged_alone(at: _Desk, side: Side, records: Sequence[Record]) -> list[Difference]:
    ctx, kind = at.ctx, at.kind
    found = _alone(at, side, records)
    doubtful = [records[at] for at, each in enumerate(found) if each is not None and not each.is_explained]
    if not doubtful:
        return [each for each in found if each is not None]
    fresh = _read(ctx, kind, side, [Address(each.id, each.parent) for each in doubtful])
    linked = ctx.store.counterparts(kind, side, [each.id for each in doubtful])
    again = [fresh[each.id] for each in doubtful if each.id in fresh and each.id not in linked]
    settled = [each for each in found if each is not None and each.is_explained]
    return settled + [each for each in _alone(at, side, again) if each is not None]


def _alone(at: _Desk, side: Side, records: Sequence[Record]) -> list[Difference | None]:
    ids = [each.id for each in records]
    ctx, kind = at.ctx, at.kind
    known = audits.alone(at.engine, ctx.pair, side, kind, ids)
    held = ctx.store.holds().get((kind, side), {})
    return [
        judge_alone(
            each, side,
            replace(known.get(each.id, Alone()), hold=held.get(each.id, ""), dealt_until=_dealt_until(ctx, side, each)),
        )
        for each in records
    ]  # fmt: skip


def _dealt_until(ctx: Context, side: Side, record: Record) -> datetime | None:
    """Up to when a record's feed is dealt with, less what may still come in late."""
    system = ctx.systems[side]
    parent = record.parent or "" if system.kind(record.kind).is_child else ""
    mark = instant(ctx.store.feed(side, record.kind, parent).watermark, "watermark")
    return mark - timedelta(seconds=system.capabilities.deep_overlap_seconds) if mark is not None else None
