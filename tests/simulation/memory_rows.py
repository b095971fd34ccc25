"""The state of a pair in memory: for the simulation, which makes millions of calls.

It keeps what PostgreSQL keeps, refuses what its constraints refuse, rolls back what it would roll
back, and gives rows in the same order; ``tests/state/test_rows.py`` holds both to one suite. A row
is never changed in place: a change puts another one in its stead, so that rows can be given out as
they are and taken back by remembering what stood there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import CheckConstraint, Table

from syncd.core.mapping import show
from syncd.core.merge import BY_PERSON, Answer, Chosen, Word
from syncd.core.model import KINDS, Address, Side, Verb
from syncd.core.why import keep_word
from syncd.errors import LeaseLostError, NotFoundError
from syncd.state import schema as s
from syncd.state.deliveries import MOST_DIRTY
from syncd.state.lease import SKEW_SECONDS, TTL_SECONDS, Lease
from syncd.state.rows import EMPTIED, Joined, Listing, Place, Row
from syncd.state.store import Store

_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_OPEN: Final = ("intended", "sent")

#: Where a row is to be found again: index names and values, as tuples.
Entries = Callable[[Row], Iterable[Hashable]]
#: Of which table, under which key, what stood there before a change.
Undo: TypeAlias = "tuple[MemoryTable, Hashable, Row | None]"


class ViolationError(Exception):
    """What the database would refuse: a constraint, a watermark that goes back, a takeover amid a commit."""


class Undoing:
    """What the open transaction of a pair would have to take back, if one is open."""

    undo: list[Undo] | None = None
    prove: Callable[[], None] = staticmethod(lambda: None)
    """Raises what the first write of the transaction ends with, if its lease is lost."""


class MemoryTable:
    """One table of one pair: rows by key, indexes, what must be unique, defaults and checks of the schema."""

    def __init__(
        self,
        table: Table,
        key: Callable[[Row], Hashable],
        undoing: Undoing,
        *,
        indexed: Entries = lambda row: (),
        unique: Entries = lambda row: (),
    ):
        self.rows: dict[Any, Row] = {}
        self._undoing = undoing
        self._table = table.name
        self._key = key
        self._indexed, self._unique = indexed, unique
        self._index: dict[Hashable, dict[Hashable, None]] = {}
        self._holder: dict[Hashable, Hashable] = {}
        self._serial = 0
        self._is_numbered = any(each.identity is not None for each in table.c)
        self._defaults = {each.name: _default(each) for each in table.c}
        self._required = tuple(each.name for each in table.c if not each.nullable)
        self._allowed = _allowed(table)

    def add(self, row: Row) -> None:
        """Insert, or replace what stands under the same key. A number that was given once is never given again."""
        if self._is_numbered and row.get("id") is None:
            self._serial += 1
            row = {**row, "id": self._serial}
        self._put(self._key(row), {**self._defaults, **row})

    def change(self, row: Row, changes: Row) -> None:
        self._put(self._key(row), {**row, **changes})

    def drop(self, row: Row) -> None:
        self._put(self._key(row), None)

    def skip_number(self) -> None:
        """An upsert that finds its row has drawn a number all the same."""
        self._serial += 1

    def find(self, *entry: Hashable) -> list[Row]:
        """Rows that are indexed under this, in the order in which they came."""
        return [self.rows[key] for key in self._index.get(entry, ())]

    def count(self, *entry: Hashable) -> int:
        return len(self._index.get(entry, ()))

    def one(self, *entry: Hashable) -> Row | None:
        """The one row that holds this, of what is unique."""
        key = self._holder.get(entry)
        return self.rows[key] if key is not None else None

    def _put(self, key: Hashable, row: Row | None) -> None:
        undo = self._undoing.undo
        if undo is None:
            raise RuntimeError("rows are written inside a transaction, which proves the lease")
        if not undo:
            self._undoing.prove()
        if row is not None:
            self._check(key, row)
        undo.append((self, key, self.rows.get(key)))
        self.set(key, row)

    def set(self, key: Hashable, row: Row | None) -> None:
        """Put a row, or nothing, where this key is, unchecked."""
        before = self.rows.get(key)
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row
        old, new = (tuple(self._indexed(each)) if each is not None else () for each in (before, row))
        if old != new:
            for entry in old:
                self._index[entry].pop(key, None)
            for entry in new:
                self._index.setdefault(entry, {})[key] = None
        old, new = (tuple(self._unique(each)) if each is not None else () for each in (before, row))
        if old != new:
            for entry in old:
                self._holder.pop(entry, None)
            for entry in new:
                self._holder[entry] = key

    def _check(self, key: Hashable, row: Row) -> None:
        if len(row) != len(self._defaults):
            raise ViolationError(f"{self._table} has no such column: {sorted(row.keys() - self._defaults.keys())}")
        for name in self._required:
            if row[name] is None:
                raise ViolationError(f"{self._table}.{name} is empty")
        for name, allowed in self._allowed:
            if row[name] is not None and row[name] not in allowed:
                raise ViolationError(f"{self._table}.{name} is none of {sorted(allowed)}")
        for entry in self._unique(row):
            if self._holder.get(entry, key) != key:
                raise ViolationError(f"{self._table} holds another row already for what must be unique")


def _default(column: Any) -> Any:
    """What the database puts into a column that an insert leaves out."""
    if column.server_default is None or column.identity is not None:
        return None
    told = str(getattr(column.server_default.arg, "text", column.server_default.arg)).strip("'")
    if told == "{}" and column.type.python_type is list:
        return []
    if told.startswith(("{", "[")) or told in ("false", "true") or column.type.python_type is int:
        return json.loads(told)
    return told


def _allowed(table: Table) -> tuple[tuple[str, frozenset[str]], ...]:
    """The columns that take one of a few words."""
    found = []
    for each in table.constraints:
        if isinstance(each, CheckConstraint) and (told := re.fullmatch(r"(\w+) IN \((.*)\)", str(each.sqltext))):
            found.append((told[1], frozenset(re.findall(r"'(\w+)'", told[2]))))
    return tuple(found)


# --- how rows are found again -------------------------------------------------------------


def _id(row: Row) -> Hashable:
    found: Hashable = row["id"]
    return found


def _link_entries(row: Row) -> Iterable[Hashable]:
    kind = row["kind"]
    yield ("kind", kind)
    if not row["is_marked"]:
        yield ("unmarked", kind)
    for side in ("left", "right"):
        yield ("parent", side, kind, row[f"{side}_parent"])
        for key in row[f"{side}_keys"]:
            yield ("key", side, kind, key)


def _link_unique(row: Row) -> Iterable[Hashable]:
    return (("left", row["kind"], row["left_id"]), ("right", row["kind"], row["right_id"]))


def _sighting_entries(row: Row) -> Iterable[Hashable]:
    side, kind = row["side"], row["kind"]
    yield ("linked" if row["is_linked"] else "alone", side, kind)
    yield ("state", side, kind, row["state"])
    yield ("parent", side, kind, row["parent"])
    if row["mark"] is not None:
        yield ("mark", side, kind, row["mark"])
    if row["is_deleted"] and row["facts"].get("merged_into") is not None:
        yield ("merged", side, kind)
    for key in row["keys"]:
        yield ("key", side, kind, key)


def _operation_entries(row: Row) -> Iterable[Hashable]:
    yield ("plan", row["plan"])
    if row["verb"] == "create":
        yield ("create", row["plan"], row["kind"], row["side"])
    if row["state"] == "planned":
        yield ("planned", row["plan"], row["kind"], row["verb"], row["side"])
    if row["state"] in _OPEN:
        yield ("open",)


def _operation_unique(row: Row) -> Iterable[Hashable]:
    yield ("key", row["idempotency_key"])
    if row["state"] in _OPEN:
        at = (row["kind"], row["side"])
        if row["target_id"] is not None:
            yield ("target", *at, row["target_id"])
        if row["verb"] == "create" and row["source_id"] is not None:
            yield ("source", *at, row["source_id"])


def _review_entries(row: Row) -> Iterable[Hashable]:
    return (("answer", row["kind"], row["answer"]),)


def _review_unique(row: Row) -> Iterable[Hashable]:
    return (("open", row["kind"], row["side"], row["record_id"]),) if row["answered_at"] is None else ()


def _conflict_entries(row: Row) -> Iterable[Hashable]:
    return (("open", row["kind"], row["left_id"], row["right_id"]),) if row["settled_at"] is None else ()


def _conflict_unique(row: Row) -> Iterable[Hashable]:
    return (("open", row["kind"], row["left_id"], row["right_id"], row["field"]),) if row["settled_at"] is None else ()


class MemoryState:
    """The state of one pair: its tables, its lease, and what a person answered.

    ``on_commit`` is called ``before`` and ``after`` each commit of something; what it raises ends the
    process there.
    """

    def __init__(self, pair: str = "t/crm", on_commit: Callable[[str], None] = lambda moment: None) -> None:
        self.pair = pair
        self.on_commit = on_commit
        self._undoing = undoing = Undoing()
        self.feed = MemoryTable(s.feed, lambda row: (row["side"], row["kind"], row["parent"]), undoing)
        self.link = MemoryTable(s.link, _id, undoing, indexed=_link_entries, unique=_link_unique)
        self.sighting = MemoryTable(
            s.sighting, lambda row: (row["side"], row["kind"], row["id"]), undoing, indexed=_sighting_entries
        )
        self.match_review = MemoryTable(s.match_review, _id, undoing, indexed=_review_entries, unique=_review_unique)
        self.run = MemoryTable(
            s.run, _id, undoing,
            indexed=lambda row: (("reason", row["reason"]),),
            unique=lambda row: (("running",),) if row["state"] == "running" else (),
        )  # fmt: skip
        self.plan = MemoryTable(s.plan, _id, undoing, indexed=lambda row: (("state", row["state"]),))
        self.operation = MemoryTable(s.operation, _id, undoing, indexed=_operation_entries, unique=_operation_unique)
        self.change_log = MemoryTable(s.change_log, _id, undoing)
        self.hold = MemoryTable(s.hold, lambda row: (row["kind"], row["side"], row["record_id"]), undoing)
        self.dirty = MemoryTable(s.dirty, lambda row: (row["side"], row["kind"], row["id"]), undoing)
        self.conflict = MemoryTable(s.conflict, _id, undoing, indexed=_conflict_entries, unique=_conflict_unique)
        self._tables = {name: each for name, each in vars(self).items() if isinstance(each, MemoryTable)}
        self._lease = Lease(pair, "", 0)
        self._leased_until: datetime | None = None
        self.writer: object = None

    def store(self, lease: Lease) -> Store:
        """A store of the pair's own rows, as each run makes one."""
        return Store(MemoryRows(self), lease)

    def dump(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table, by its key."""
        rows = self._tables[table].rows
        return [dict(rows[key]) for key in sorted(rows)]

    def prove(self, lease: Lease) -> None:
        """Raises LeaseLostError if another worker took over."""
        if self._lease.fence != lease.fence:
            raise LeaseLostError(f"{lease.pair}: another worker took over")

    @contextmanager
    def changing(self, writer: object, prove: Callable[[], None] = lambda: None) -> Iterator[list[Undo]]:
        """All that happens to the tables meanwhile happens, or nothing."""
        if self.writer is not None:
            raise ViolationError("a transaction is open on this pair: whoever comes waits for its end")
        undo: list[Undo] = []
        self.writer, self._undoing.undo, self._undoing.prove = writer, undo, prove
        try:
            yield undo
        except BaseException:
            for table, key, row in reversed(undo):
                table.set(key, row)
            raise
        finally:
            self.writer = self._undoing.undo = None

    # --- leases, as in syncd/state/lease.py -------------------------------------------

    def acquire(self, holder: str, at: datetime, *, ttl_seconds: int = TTL_SECONDS) -> Lease | None:
        """Take the pair if nobody holds it, or its holder let the lease lapse; None if it is held."""
        latest = at + timedelta(seconds=ttl_seconds + SKEW_SECONDS)
        if self._leased_until is not None and at < self._leased_until <= latest:
            return None
        with self.changing(self):
            if (left := self.run.one("running")) is not None:
                self.run.change(left, {"state": "abandoned", "finished_at": at})
        self._lease = Lease(self.pair, holder, self._lease.fence + 1)
        self._leased_until = at + timedelta(seconds=ttl_seconds)
        return self._lease

    def renew(self, lease: Lease, at: datetime, *, ttl_seconds: int = TTL_SECONDS) -> None:
        """Hold on for another ``ttl_seconds`` from ``at``. Raises LeaseLostError if another worker took over."""
        self.prove(lease)
        self._leased_until = at + timedelta(seconds=ttl_seconds)

    def release(self, lease: Lease) -> None:
        """Let others have the pair at once; nothing happens if it is lost already."""
        if self._lease.fence == lease.fence:
            self._leased_until = None

    # --- a webhook's word, as in syncd/state/pairs.py and deliveries.py ---------------

    def hint(self, side: Side, kind: str, parents: Collection[str]) -> None:
        """Something moved below these: the next run visits them first."""
        with self.changing(self):
            for parent in dict.fromkeys(parents):
                if (row := self.feed.rows.get((side, kind, parent))) is not None:
                    self.feed.change(row, {"hints": row["hints"] + 1})

    def soil(self, side: Side, kind: str, ids: Collection[str], at: datetime) -> None:
        """Records that moved: the next run reads them by id, unless too many wait already."""
        with self.changing(self):
            room = MOST_DIRTY - sum(1 for key in self.dirty.rows if key[:2] == (side, kind))
            for id_ in sorted(set(ids)):
                row = self.dirty.rows.get((side, kind, id_))
                if row is None and room <= 0:
                    continue
                room -= row is None
                hints = row["hints"] + 1 if row is not None else 1
                told = {"pair": self.pair, "side": str(side), "kind": kind, "id": id_}
                self.dirty.add({**told, "hints": hints, "heard_at": at})

    # --- a person's answers, as in syncd/state/desk.py --------------------------------

    def settle_conflict(self, conflict_id: int, answer: Answer, at: datetime) -> None:
        """A person's word on a conflict; carried out by the next run."""
        with self.changing(self):
            row = self.conflict.rows[conflict_id]
            settled: dict[str, object] = {"settled_at": at, "decided": BY_PERSON, "winner": str(answer)}
            if isinstance(answer, Chosen):
                settled |= {"winner": "value", "chosen": {"is": show(answer.value)}}
            self.conflict.change(row, settled)
            link = self.link.one("left", row["kind"], row["left_id"])
            if link is None or link["right_id"] != row["right_id"]:
                raise NotFoundError(f"conflict {conflict_id}: the two records are not linked any more")
            word = keep_word(Word(answer, (row["left_value"], row["right_value"])))
            self.link.change(link, {"settled": {**link["settled"], row["field"]: word}, "next_attempt_at": None})

    def answer_review(self, review_id: int, answer: str, candidate: str | None, at: datetime) -> None:
        """A person's answer: ``same`` as a candidate, ``never`` it or any of them, or ``create`` a new one."""
        with self.changing(self):
            row = self.match_review.rows[review_id]
            named = [each for each in row["candidates"] if candidate in (None, each["id"])]
            rest = [each for each in row["candidates"] if each not in named]
            never = {"answered_at": at, "answer": "never"}
            if answer == "never" and rest:
                self.match_review.add({**row, "id": None, "candidates": named, **never})
                self.match_review.change(row, {"candidates": rest})
            else:
                chosen = candidate if answer == "same" else None
                self.match_review.change(row, {"answered_at": at, "answer": answer, "answered_with": chosen})
            if answer == "same" and rest:
                self.match_review.add({**row, "id": None, "candidates": rest, **never})
            self._strike_out(row, {each["id"] for each in (rest if answer == "same" else named)}, at)
            for side in Side:
                for id_ in (row["record_id"], *(each["id"] for each in row["candidates"])):
                    seen = self.sighting.rows.get((side, row["kind"], id_))
                    if seen is not None and seen["state"] in ("review", "excluded"):
                        self.sighting.change(seen, {"state": "new", "reason": ""})

    def _strike_out(self, row: Row, apart: Collection[str], at: datetime) -> None:
        """Those that a person kept apart from a record need not be asked about it again."""
        for other in sorted(apart):
            mirror = self.match_review.one("open", row["kind"], Side(row["side"]).other, other)
            if mirror is not None:
                left = [each for each in mirror["candidates"] if each["id"] != row["record_id"]]
                self.match_review.change(mirror, {"candidates": left} if left else {"answered_at": at})


class MemoryRows:
    """Fulfils ``Rows``."""

    def __init__(self, state: MemoryState):
        self.pair = state.pair
        self._t = state

    @contextmanager
    def transaction(self, lease: Lease) -> Iterator[None]:
        state = self._t
        if state.writer is self:
            yield
            return
        with state.changing(self, lambda: state.prove(lease)) as undo:
            yield
            if undo:
                state.on_commit("before")
        if undo:
            state.on_commit("after")

    # --- feeds ------------------------------------------------------------------------

    def feeds(self, side: Side, kind: str, parents: Collection[str]) -> list[Row]:
        feeds = self._t.feed.rows
        return [feeds[side, kind, parent] for parent in sorted(set(parents)) if (side, kind, parent) in feeds]

    def all_feeds(self) -> list[Row]:
        feeds = self._t.feed.rows
        return [row for side in Side for kind in KINDS if (row := feeds.get((side, kind, ""))) is not None]

    def save_feeds(self, rows: Sequence[Row]) -> None:
        for row in rows:
            held = self._t.feed.rows.get((row["side"], row["kind"], row["parent"]))
            if held is None:
                self._t.feed.add(row)
                continue
            before, after = held["watermark_at"], row.get("watermark_at", held["watermark_at"])
            if before is not None and (after is None or after < before):
                raise ViolationError(f"a watermark never goes back ({self.pair} {row['side']} {row['kind']})")
            self._t.feed.change(held, row)

    def forget_visits(self, side: Side, kind: str, latest: datetime) -> None:
        for row in list(self._t.feed.rows.values()):
            visited_at = row["visited_at"]
            if (row["side"], row["kind"]) == (side, kind) and visited_at is not None and visited_at > latest:
                self._t.feed.change(row, {"visited_at": None})

    def parents(
        self,
        side: Side,
        child: str,
        plan_id: str | None,
        *,
        visited_before: datetime | None,
        closed_before: datetime | None,
        after: Place | None,
        limit: int,
        among: Collection[str] | None = None,
        is_told: bool = False,
    ) -> list[Row]:
        kind = "contact" if child == "employment" else "deal"
        known = {
            (row[f"{side}_id"], "*" in row[f"{side}_facts"].get("locked", {}))
            for row in self._t.link.find("kind", kind)
            if not self._is_gone(side, kind, row[f"{side}_id"])
        }
        known |= {(row["source_id"], False) for row in self._t.operation.find("create", plan_id, kind, side.other)}
        found: list[tuple[Place, Row]] = []
        for id_, is_closed in known:
            feed = self._t.feed.rows.get((side, child, id_))
            at = feed["visited_at"] if feed is not None else None
            hints, is_due = (feed["hints"], feed["hints"] > feed["heard"]) if feed is not None else (0, False)
            is_old = visited_before is None or at is None or at < visited_before
            is_wanted = closed_before is None or not is_closed or is_due or at is None or at < closed_before
            place = Place(is_closed and not is_due, _EPOCH if is_due or at is None else at, id_)
            is_wanted = is_wanted and (among is None or id_ in among) and (not is_told or is_due or feed is None)
            if is_old and is_wanted and (after is None or place > after):
                told = {"hints": hints, "is_due": is_due, "is_closed": is_closed}
                found.append((place, {"watermark": feed["watermark"] if feed is not None else None, **told}))
        return [
            {
                "id": place.id, "visited_at": place.visited_at, **told,
                "has_children": self._t.link.count("parent", side, child, place.id)
                + self._t.sighting.count("parent", side, child, place.id) > 0,
            }
            for place, told in sorted(found, key=lambda each: (each[0], each[1]["is_closed"]))[:limit]
        ]  # fmt: skip

    def dirty(self) -> list[Row]:
        rows = self._t.dirty.rows
        return [{name: rows[key][name] for name in ("side", "kind", "id", "hints", "heard_at")} for key in sorted(rows)]

    def drop_dirty(self, side: Side, kind: str, read: Mapping[str, int]) -> None:
        for id_, hints in read.items():
            row = self._t.dirty.rows.get((side, kind, id_))
            if row is not None and row["hints"] == hints:
                self._t.dirty.drop(row)

    def holders(self, side: Side, kind: str, key: str, ids: Collection[str]) -> list[Address]:
        found = {
            Address(row[f"{side}_id"], row[f"{side}_parent"])
            for row in self._t.link.find("kind", kind)
            if row[f"{side}_facts"].get("opaque", {}).get(key) in ids
        }
        found |= {
            Address(row["id"], row["parent"])
            for row in self._all_seen(side, kind)
            if row["facts"].get("opaque", {}).get(key) in ids
        }
        return sorted(found, key=lambda each: (each.id, each.parent or ""))

    # --- sightings --------------------------------------------------------------------

    def sightings(self, side: Side, kind: str, ids: Collection[str]) -> list[Row]:
        seen = self._t.sighting.rows
        return [seen[side, kind, id_] for id_ in sorted(set(ids)) if (side, kind, id_) in seen]

    def unmatched(self, side: Side, kind: str, after: str, limit: int) -> list[Row]:
        rows = self._t.sighting.find("state", side, kind, "new")
        return _by_id(row for row in rows if not row["is_linked"] and row["id"] > after)[:limit]

    def retired(self, side: Side, kind: str) -> list[Row]:
        return _by_id(self._t.sighting.find("state", side, kind, "retired"))

    def stirs(self, kind: str, *, with_marks: bool) -> bool:
        seen = [row for side in Side for row in self._all_seen(side, kind)]
        is_awake = any(row["is_linked"] or row["is_deleted"] or row["state"] in ("new", "retired") for row in seen)
        links, reviews = (table.rows.values() for table in (self._t.link, self._t.match_review))
        is_unmarked = with_marks and any(row["kind"] == kind and not row["is_marked"] for row in links)
        return is_awake or is_unmarked or any(row["kind"] == kind and row["answer"] is not None for row in reviews)

    def merged_away(self, side: Side, kind: str) -> list[tuple[str, str]]:
        return sorted((row["id"], row["facts"]["merged_into"]) for row in self._t.sighting.find("merged", side, kind))

    def save_sightings(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._t.sighting.add(row)

    def update_sightings(self, side: Side, kind: str, ids: Collection[str], changes: Row) -> None:
        for row in self.sightings(side, kind, ids):
            if any(row[name] != value for name, value in changes.items()):
                self._t.sighting.change(row, changes)

    def drop_sightings(self, side: Side, kind: str, ids: Collection[str], *, only_gone: bool = False) -> None:
        for row in self.sightings(side, kind, ids):
            if row["is_deleted"] or not only_gone:
                self._t.sighting.drop(row)

    def wake(self, side: Side, kinds: Collection[str], keys: Collection[str]) -> None:
        for kind in kinds:
            for row in self._t.sighting.find("state", side, kind, "waiting"):
                if not row["is_linked"] and not set(row["keys"]).isdisjoint(keys):
                    self._t.sighting.change(row, {"state": "new", "reason": ""})

    # --- links ------------------------------------------------------------------------

    def links(self, side: Side, kind: str, ids: Collection[str]) -> list[Row]:
        found = (self._t.link.one(side, kind, id_) for id_ in set(ids))
        return _by_id(row for row in found if row is not None)

    def link(self, link_id: int) -> Row | None:
        return self._t.link.rows.get(link_id)

    def linked(self, side: Side, kind: str, ids: Collection[str]) -> list[Joined]:
        seen = self._t.sighting.rows
        return [
            Joined(row, seen.get(("left", kind, row["left_id"])), seen.get(("right", kind, row["right_id"])))
            for row in self.links(side, kind, ids)
        ]

    def unsettled(self, kind: str, after: int, limit: int, at: datetime, *, with_marks: bool) -> list[Joined]:
        moved = [
            link
            for side in Side
            for row in self._t.sighting.find("linked", side, kind)
            if (link := self._t.link.one(side, kind, row["id"])) is not None
        ]
        unmarked = self._t.link.find("unmarked", kind) if with_marks else []
        found = {
            row["id"]: row
            for row in (*moved, *unmarked)
            if row["id"] > after
            and row["state"] != "dead"
            and (row["next_attempt_at"] is None or row["next_attempt_at"] <= at)
        }
        return [
            Joined(row, self._known(Side.LEFT, kind, row), self._known(Side.RIGHT, kind, row))
            for row in islice(_by_id(found.values()), limit)
        ]

    def _known(self, side: Side, kind: str, link: Row) -> Row | None:
        """The sighting of one side of a link, if it knows of its link."""
        row = self._t.sighting.rows.get((side, kind, link[f"{side}_id"]))
        return row if row is not None and row["is_linked"] else None

    def counterparts(self, kind: str, side: Side, ids: Collection[str]) -> dict[str, str]:
        other = f"{side.other}_id"
        return {id_: row[other] for id_ in ids if (row := self._t.link.one(side, kind, id_)) is not None}

    def insert_links(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._t.link.add(row)

    def update_links(self, rows: Sequence[Row]) -> None:
        _update(self._t.link, rows)

    def delete_links(self, kind: str, left_ids: Collection[str], right_ids: Collection[str]) -> list[Row]:
        found = {
            row["id"]: row
            for side, ids in ((Side.LEFT, left_ids), (Side.RIGHT, right_ids))
            for row in self.links(side, kind, ids)
        }
        for row in found.values():
            self._t.link.drop(row)
        return [{"left_id": row["left_id"], "right_id": row["right_id"]} for row in _by_id(found.values())]

    def move_children(self, side: Side, child: str, old: str, new: str) -> None:
        for row in self._t.link.find("parent", side, child, old):
            self._t.link.change(row, {f"{side}_parent": new})
        for row in self._t.sighting.find("parent", side, child, old):
            if not row["is_linked"]:
                self._t.sighting.drop(row)

    # --- both -------------------------------------------------------------------------

    def known_children(self, side: Side, kind: str, parents: Collection[str]) -> list[tuple[Address, bool]]:
        linked = sorted(
            (row[f"{side}_id"], parent)
            for parent in set(parents)
            for row in self._t.link.find("parent", side, kind, parent)
        )
        seen = sorted(
            (row["id"], parent, row["is_deleted"])
            for parent in set(parents)
            for row in self._t.sighting.find("parent", side, kind, parent)
        )
        return [(Address(*each), False) for each in linked] + [(Address(id_, up), gone) for id_, up, gone in seen]

    def stranded(self, side: Side, kind: str, above: str, limit: int) -> list[str]:
        ups = self._t.link.find("kind", above)
        known = {row[f"{side}_id"] for row in ups if row[f"{side}_facts"].get("merged_into") is None}
        return sorted(
            row[f"{side}_id"]
            for row in self._t.link.find("kind", kind)
            if row["state"] in ("in_step", "pending")
            and row[f"{side}_parent"] is not None
            and row[f"{side}_parent"] not in known
        )[:limit]

    def count_known(self, side: Side, kind: str) -> int:
        return self._t.link.count("kind", kind) + self._t.sighting.count("alone", side, kind)

    def count_links(self) -> dict[str, int]:
        return {kind: count for kind in KINDS if (count := self._t.link.count("kind", kind))}

    @contextmanager
    def listing(self, side: Side, kind: str) -> Iterator[Listing]:
        yield _Listing(self, side, kind)

    def alike(
        self, side: Side, kind: str, ids: Collection[str], marks: Collection[str], keys: Collection[str]
    ) -> list[Row]:
        found = {row["id"]: row for row in self.sightings(side, kind, ids)}
        for name, values in (("mark", marks), ("key", keys)):
            for value in values:
                found |= {row["id"]: row for row in self._t.sighting.find(name, side, kind, value)}
        return [
            {name: row[name] for name in ("id", "keys", "mark")}
            for row in _by_id(found.values())
            if not row["is_linked"] and row["state"] != "retired"
        ]

    def linked_alike(self, side: Side, kind: str, ids: Collection[str], keys: Collection[str]) -> list[Row]:
        found = {row["id"]: row for row in self.links(side, kind, ids)}
        for key in keys:
            found |= {row["id"]: row for row in self._t.link.find("key", side, kind, key)}
        return _by_id(
            {
                "id": row[f"{side}_id"],
                "keys": row[f"{side}_keys"],
                "other_id": row[f"{side.other}_id"],
                "is_other_gone": self._is_gone(side.other, kind, row[f"{side.other}_id"]),
            }
            for row in found.values()
        )

    def usurpers(self, kind: str, marks: Collection[str]) -> dict[str, tuple[str, str]]:
        return {
            mark: (row["left_id"], row["right_id"])
            for row in self._t.link.rows.values()
            if row["kind"] == kind and not row["is_marked"]
            if (mark := row["right_facts"].get("mark")) in marks and mark != row["left_id"]
        }

    def linked_keys(self, side: Side, kind: str, keys: Collection[str]) -> set[str]:
        return {key for key in keys if self._t.link.count("key", side, kind, key)}

    def currency(self, of: Literal["shared", "linked", "sighted"]) -> str | None:
        if of == "sighted":
            told = [row["values"].get("amount") for row in self._all_seen(Side.LEFT, "deal")]
        else:
            told = [
                row["left_base"].get("amount")
                for row in self._t.link.find("kind", "deal")
                if of == "linked" or (row["right_base"].get("amount") or {}).get("amount") is not None
            ]
        counts = Counter(each["currency"] for each in told if each is not None)
        return min(counts, key=lambda each: (-counts[each], each), default=None)

    def _all_seen(self, side: Side, kind: str) -> list[Row]:
        return [*self._t.sighting.find("linked", side, kind), *self._t.sighting.find("alone", side, kind)]

    def _is_gone(self, side: Side, kind: str, id_: str) -> bool:
        row = self._t.sighting.rows.get((side, kind, id_))
        return row is not None and bool(row["is_deleted"])

    # --- reviews, conflicts, the change log -------------------------------------------

    def open_review(self, side: Side, kind: str, record_id: str, candidates: Sequence[Any], at: datetime) -> None:
        held = self._t.match_review.one("open", kind, side, record_id)
        if held is None:
            self._t.match_review.add(
                {"pair": self.pair, "kind": kind, "side": side, "record_id": record_id, "candidates": candidates,
                 "opened_at": at}
            )  # fmt: skip
            return
        self._t.match_review.skip_number()
        if held["candidates"] != candidates:
            self._t.match_review.change(held, {"candidates": candidates})

    def close_reviews(self, side: Side, kind: str, ids: Collection[str], at: datetime) -> None:
        for id_ in ids:
            if (row := self._t.match_review.one("open", kind, side, id_)) is not None:
                self._t.match_review.change(row, {"answered_at": at})

    def answered(self, kind: str, answers: Collection[str]) -> list[Row]:
        return _by_id(row for answer in answers for row in self._t.match_review.find("answer", kind, answer))

    def chosen(self, kind: str) -> list[Row]:
        def is_alone(side: str, id_: str) -> bool:
            row = self._t.sighting.rows.get((side, kind, id_))
            return row is not None and not row["is_linked"]

        return [
            row
            for row in self.answered(kind, ["same"])
            if is_alone(row["side"], row["record_id"]) and is_alone(Side(row["side"]).other, row["answered_with"])
        ]

    def open_conflicts(self, kind: str, left_id: str, right_id: str) -> list[Row]:
        return _by_id(self._t.conflict.find("open", kind, left_id, right_id))

    def insert_conflict(self, row: Row) -> None:
        self._t.conflict.add(row)

    def update_conflicts(self, ids: Collection[int], changes: Row) -> None:
        _update(self._t.conflict, ({"id": id_, **changes} for id_ in ids))

    def insert_changes(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._t.change_log.add(row)

    def deletes_since(self, at: datetime) -> dict[tuple[str, Side], int]:
        found: set[tuple[str, Side, str]] = set()
        for row in self._t.change_log.rows.values():
            run = self._t.run.rows.get(row["run"])
            is_own = run is not None and run["reason"] in ("run", "backfill") and "waived" not in run["counts"]
            if is_own and row["verb"] == "delete" and row["at"] > at:
                found.add((row["kind"], Side(row["side"]), row[f"{row['side']}_id"] or ""))
        return dict(Counter((kind, side) for kind, side, _ in found))

    # --- holds ------------------------------------------------------------------------

    def holds(self) -> list[Row]:
        return [self._t.hold.rows[key] for key in sorted(self._t.hold.rows)]

    def save_holds(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._t.hold.add(row)

    def drop_holds(self, side: Side, kind: str, ids: Collection[str]) -> None:
        for id_ in ids:
            if (row := self._t.hold.rows.get((kind, str(side), id_))) is not None:
                self._t.hold.drop(row)

    # --- runs, plans, operations ------------------------------------------------------

    def insert_run(self, row: Row) -> None:
        self._t.run.add(row)

    def update_run(self, run_id: str, changes: Row) -> None:
        if (row := self._t.run.rows.get(run_id)) is not None:
            self._t.run.change(row, changes)

    def backfills(self) -> list[Row]:
        return sorted(
            _by_id(self._t.run.find("reason", "backfill")), key=lambda row: _stamp(row["started_at"]), reverse=True
        )

    def insert_plan(self, row: Row) -> None:
        self._t.plan.add(row)

    def update_plan(self, plan_id: str, changes: Row) -> None:
        if (row := self._t.plan.rows.get(plan_id)) is not None:
            self._t.plan.change(row, changes)

    def discard_plans(self, at: datetime) -> None:
        for row in self._t.plan.find("state", "open"):
            run = self._t.run.rows.get(row["run"])
            if run is None or run["reason"] != "undo":
                self._discard(row, at)

    def abandon_plans(self, at: datetime, but: str | None) -> None:
        left = [*self._t.plan.find("state", "applying"), *self._t.plan.find("state", "open")]
        for row in left:
            run = self._t.run.rows.get(row["run"])
            is_of_dead = not row["reasons"] and run is not None and run["state"] == "abandoned"
            if row["id"] != but and (row["state"] == "applying" or row["hash"] == "" or is_of_dead):
                self._discard(row, at)

    def _discard(self, plan: Row, at: datetime) -> None:
        for row in self._t.operation.find("plan", plan["id"]):
            if row["state"] == "planned":
                self._t.operation.change(row, EMPTIED)
        self._t.plan.change(plan, {"state": "discarded", "ended_at": at})

    def insert_operations(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._t.operation.add(row)

    def update_operations(self, rows: Sequence[Row]) -> None:
        _update(self._t.operation, rows)

    def operations(self, plan_id: str, state: str | None) -> Iterator[Row]:
        rows = self._t.operation.find("plan", plan_id)
        return iter(sorted((row for row in rows if state is None or row["state"] == state), key=_turn))

    def planned(self, plan_id: str, kind: str, verb: Verb, side: Side, limit: int) -> list[Row]:
        rows = self._t.operation.find("planned", plan_id, kind, verb, side)
        return sorted(rows, key=lambda row: (row["group_key"], row["id"]))[:limit]

    def planned_creates(self, plan_id: str, kind: str, side: Side, groups: Collection[str]) -> list[Row]:
        rows = self._t.operation.find("planned", plan_id, kind, "create", side)
        return _by_id(row for row in rows if row["group_key"] in groups)

    def open_operations(self) -> list[Row]:
        return _by_id(self._t.operation.find("open"))

    def planned_sources(self, plan_id: str, kind: str, side: Side, ids: Collection[str]) -> set[str]:
        created = {row["source_id"] for row in self._t.operation.find("create", plan_id, kind, side)}
        return created.intersection(ids)

    def planned_refs(self, plan_id: str, kind: str, side: Side, ref_kind: str, refs: Collection[str]) -> set[str]:
        named = {row["refs"]["ids"].get(ref_kind) for row in self._t.operation.find("create", plan_id, kind, side)}
        return named.intersection(refs)


class _Listing:
    def __init__(self, rows: MemoryRows, side: Side, kind: str):
        self._rows, self._side, self._kind = rows, side, kind
        self._shown: set[str] = set()

    def add(self, ids: Sequence[str]) -> None:
        self._shown.update(ids)

    def missing(self) -> list[Address]:
        rows, side, kind = self._rows, self._side, self._kind
        found = [
            Address(row[f"{side}_id"], row[f"{side}_parent"])
            for row in rows._t.link.find("kind", kind)
            if row[f"{side}_id"] not in self._shown and not rows._is_gone(side, kind, row[f"{side}_id"])
        ]
        return sorted(found, key=lambda each: each.id)


def _update(table: MemoryTable, rows: Iterable[Row]) -> None:
    for changes in rows:
        if (row := table.rows.get(changes["id"])) is not None:
            table.change(row, changes)


def _by_id(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["id"])


def _stamp(at: datetime) -> float:
    return at.timestamp()


def _turn(row: Row) -> tuple[Any, ...]:
    """When an operation is applied: parents before children, deletes last and in reverse, the CRM first."""
    position, is_delete = KINDS.index(row["kind"]), row["verb"] == "delete"
    place = (is_delete, -position if is_delete else position, row["verb"], row["side"] == Side.LEFT)
    return (*place, row["group_key"], row["id"])
