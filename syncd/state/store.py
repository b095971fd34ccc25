"""Each question that a run asks of the database, answered in the core's nouns.

A ``Store`` belongs to one pair and one lease. Whatever changes state happens inside
``transaction()``, which proves the lease first. No method here calls a vendor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    ARRAY,
    Connection,
    Engine,
    Row,
    Text,
    and_,
    case,
    column,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    table,
    tuple_,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import insert as upsert

from syncd.core.mapping import freeze, instant, same, thaw
from syncd.core.match import Review, Suspect, keys_of, ref_key
from syncd.core.model import FIELDS, RELATIONS, Address, Json, LinkState, Record, Side, Value, Values
from syncd.core.plan import Sighted
from syncd.core.watermark import advance
from syncd.state import schema as s
from syncd.state.bulk import insert_many, one_of, update_many, upsert_many
from syncd.state.lease import Lease, prove

#: From so many new rows on the database is told to look at a table again.
ANALYZED = 2_000
#: Lives only in the connection of a ``Listing``, so it is no part of the schema.
_listed = table("listed", column("id", Text))


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A link with both sides as last seen. ``moved`` names the sides that have a sighting."""

    id: int
    kind: str
    left: Sighted
    right: Sighted
    state: LinkState
    reason: str
    is_marked: bool
    settled: Mapping[str, Side]
    moved: frozenset[Side]
    next_attempt_at: datetime | None

    def side(self, side: Side) -> Sighted:
        return self.left if side is Side.LEFT else self.right


@dataclass(frozen=True, slots=True)
class NewLink:
    """A record, the counterpart made for it, and the fields on which they agree: field -> (left, right)."""

    left: Record
    right: Record
    agreed: Mapping[str, tuple[Value, Value]]
    is_marked: bool
    why: str


@dataclass(frozen=True, slots=True)
class FeedRow:
    watermark: str | None
    swept_at: datetime | None
    listed_at: datetime | None
    deep_at: datetime | None
    visited_at: datetime | None
    cost: int


@dataclass(frozen=True, slots=True)
class ParentRow:
    """A deal to visit for its children; ``watermark`` is the children's own."""

    id: str
    watermark: str | None
    is_closed: bool
    has_children: bool


NO_FEED = FeedRow(None, None, None, None, None, 0)


class Store:
    """The state of one pair, under one lease. Values of records are as their own system gave them."""

    def __init__(self, engine: Engine, lease: Lease):
        self.engine = engine
        self.lease = lease
        self.pair = lease.pair
        self.counts: Mapping[str, Container[str]] = FIELDS
        """By kind the fields that the pair syncs: what a record says of others is no news."""
        self._tx: Connection | None = None
        self._added: Counter[str] = Counter()
        self._known_size: dict[str, int] = {}

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One short transaction under the lease. Never hold it across a network call. Raises LeaseLostError."""
        if self._tx is not None:
            yield self._tx
            return
        with self.engine.begin() as tx:
            prove(tx, self.lease)
            self._tx = tx
            try:
                yield tx
            finally:
                self._tx = None
        self._tell_planner()

    def grew(self, name: str, count: int) -> None:
        """Take note of rows that a table was given, so that the database learns in time how large it is."""
        self._added[name] += count

    def _tell_planner(self) -> None:
        """Gather statistics of a table each time it has doubled.

        The server looks by itself once a minute; until then a backfill into empty tables runs on
        plans that were made for empty tables.
        """
        for name, count in self._added.items():
            if count >= max(ANALYZED, 2 * self._known_size.get(name, 0)):
                self._known_size[name] = count
                with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.exec_driver_sql(f"ANALYZE {name}")

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._tx is not None:
            yield self._tx
        else:
            with self.engine.connect() as connection:
                yield connection

    # --- feeds ------------------------------------------------------------------------

    def feed(self, side: Side, kind: str, parent: str = "") -> FeedRow:
        with self._reading() as tx:
            row = tx.execute(select(s.feed).where(*_feed_is(self.pair, side, kind, parent))).one_or_none()
        return _feed_row(row) if row is not None else NO_FEED

    def advance(
        self,
        side: Side,
        kind: str,
        parent: str,
        clocks: Iterable[str | None],
        **stamps: object,
    ) -> None:
        """Move a feed's watermark to the latest of the clocks; it never goes back. Writes only what changes."""
        with self.transaction() as tx:
            row = tx.execute(select(s.feed).where(*_feed_is(self.pair, side, kind, parent))).one_or_none()
            current = row.watermark if row is not None else None
            watermark = advance(current, clocks)
            if row is not None and watermark == current and not stamps:
                return
            values = {"watermark": watermark, "watermark_at": instant(watermark, "watermark"), **stamps}
            tx.execute(
                upsert(s.feed)
                .values(pair=self.pair, side=side, kind=kind, parent=parent, **values)
                .on_conflict_do_update(index_elements=["pair", "side", "kind", "parent"], set_=values)
            )

    def advance_children(
        self, side: Side, kind: str, clocks: Mapping[str, Sequence[str]], visited: Mapping[str, datetime]
    ) -> None:
        """Move the watermarks of many parents at once, and note the visits of some; else as ``advance``."""
        if not clocks:
            return
        with self.transaction() as tx:
            found = tx.execute(
                select(s.feed).where(
                    s.feed.c.pair == self.pair, s.feed.c.side == side, s.feed.c.kind == kind,
                    one_of(s.feed.c.parent, clocks),
                )
            )  # fmt: skip
            held = {row.parent: row for row in found}
            rows: list[dict[str, object]] = []
            for parent, seen in clocks.items():
                row = held.get(parent)
                current = row.watermark if row is not None else None
                watermark = advance(current, seen)
                if row is None or watermark != current or parent in visited:
                    at = visited.get(parent, row.visited_at if row is not None else None)
                    rows.append(
                        {"pair": self.pair, "side": side, "kind": kind, "parent": parent, "watermark": watermark,
                         "watermark_at": instant(watermark, "watermark"), "visited_at": at}
                    )  # fmt: skip
            upsert_many(tx, s.feed, rows)

    def parents(
        self,
        side: Side,
        child: str,
        plan_id: str | None,
        *,
        visited_before: datetime | None,
        closed_before: datetime | None,
    ) -> Iterator[ParentRow]:
        """Deals (contacts, for an employment) whose children are worth reading, some at a time.

        Longest unvisited first, closed ones last. Those that have a link, and those that the
        plan in the making creates on the other side. With ``visited_before`` only what was not
        visited since; with ``closed_before`` closed ones only if they were not visited since.
        """
        kind = "contact" if child == "employment" else "deal"
        own_id, facts = _own(s.link, side, "id"), _own(s.link, side, "facts")
        gone = exists().where(*_sighting_at(self.pair, side, kind), s.sighting.c.id == own_id, s.sighting.c.is_deleted)
        linked = select(own_id.label("id"), facts["locked"].has_key("*").label("is_closed")).where(
            s.link.c.pair == self.pair, s.link.c.kind == kind, ~gone
        )
        planned = select(s.operation.c.source_id, literal(False)).where(
            s.operation.c.plan == plan_id,
            s.operation.c.kind == kind,
            s.operation.c.verb == "create",
            s.operation.c.side == side.other,
        )
        known, feed = linked.union(planned).subquery(), s.feed.c
        is_own = and_(
            feed.pair == self.pair, feed.side == side, feed.kind == child, feed.parent == known.c.id
        )  # fmt: skip
        below, seen = s.link.alias("below"), s.sighting.alias("seen")
        has_children = or_(
            exists().where(below.c.pair == self.pair, below.c.kind == child, _own(below, side, "parent") == known.c.id),
            exists().where(
                seen.c.pair == self.pair, seen.c.side == side, seen.c.kind == child, seen.c.parent == known.c.id
            ),
        )
        statement = select(known.c.id, feed.watermark, known.c.is_closed, has_children).outerjoin(s.feed, is_own)
        if visited_before is not None:
            statement = statement.where(or_(feed.visited_at.is_(None), feed.visited_at < visited_before))
        if closed_before is not None:
            statement = statement.where(
                or_(~known.c.is_closed, feed.visited_at.is_(None), feed.visited_at < closed_before)
            )
        order = (known.c.is_closed, func.coalesce(feed.visited_at, _EPOCH), known.c.id)
        # By place, not by a cursor left open: the vendor is called between two of these.
        place: tuple[object, ...] | None = None
        while True:
            page = statement.order_by(*order).limit(1000)
            if place is not None:
                page = page.where(tuple_(*order) > tuple_(*(literal(each) for each in place)))
            with self._reading() as tx:
                rows = tx.execute(page.add_columns(order[1])).all()
            if not rows:
                return
            for row in rows:
                yield ParentRow(row[0], row[1], row[2], row[3])
            place = (rows[-1][2], rows[-1][4], rows[-1][0])

    def holders(self, side: Side, kind: str, key: str, ids: Sequence[str]) -> list[Address]:
        """Known records whose opaque ``key`` is one of these ids."""
        own_id, own_parent, facts = (_own(s.link, side, each) for each in ("id", "parent", "facts"))
        linked = select(own_id, own_parent).where(
            s.link.c.pair == self.pair, s.link.c.kind == kind, one_of(facts["opaque"][key].astext, ids)
        )
        seen = select(s.sighting.c.id, s.sighting.c.parent).where(
            s.sighting.c.pair == self.pair,
            s.sighting.c.side == side,
            s.sighting.c.kind == kind,
            one_of(s.sighting.c.facts["opaque"][key].astext, ids),
        )
        with self._reading() as tx:
            return [Address(*row) for row in tx.execute(linked.union(seen))]

    # --- the inbox --------------------------------------------------------------------

    def intake(
        self, side: Side, kind: str, records: Sequence[Record], at: datetime, *, is_exact: bool,
        is_current: bool = False,
    ) -> int:  # fmt: skip
        """Keep what is news: records that their base, or their earlier sighting, does not tell.

        A record older than what is known is an index lagging behind and is no news, unless the
        system ``is_current``: then it was committed late. Returns how many rows it wrote.
        """
        if not records:
            return 0
        records = list({record.id: record for record in records}.values())
        ids = [record.id for record in records]
        formerly = [old for record in records for old in record.formerly]
        with self.transaction() as tx:
            links = {_link_id(row, side): row for row in self._links_by_id(tx, side, kind, [*ids, *formerly])}
            seen = {row.id: row for row in self._sightings(tx, side, kind, ids)}
            upserts: list[dict[str, object]] = []
            drops: list[str] = []
            refreshed: list[dict[str, object]] = []
            for record in records:
                link, sighting = links.get(record.id), seen.get(record.id)
                if record.formerly and not record.is_deleted:
                    link = self._follow_merge(tx, side, record, links, at)
                verdict = _news(
                    side, record, link, sighting, self.counts[kind], is_exact=is_exact, is_current=is_current
                )
                if verdict == "keep":
                    upserts.append(_sighting_row(self.pair, side, record, link is not None, sighting, at))
                elif verdict in ("drop", "drop and refresh"):
                    drops.append(record.id)
                if verdict in ("refresh", "drop and refresh") and link is not None:
                    refreshed.append({"id": link.id, **_seen_of(side, record)})
            self._save_sightings(tx, upserts)
            self.grew("sighting", len(upserts))
            self._drop_sightings(tx, side, kind, drops)
            self._revive(tx, [links[str(row["id"])].id for row in upserts if row["id"] in links])
            update_many(tx, s.link, refreshed)
        return len(upserts) + len(drops) + len(refreshed)

    def _revive(self, tx: Connection, link_ids: Sequence[int]) -> None:
        """A dead letter whose record moved is worth another try."""
        if link_ids:
            tx.execute(
                update(s.link)
                .where(one_of(s.link.c.id, link_ids), s.link.c.state == LinkState.DEAD)
                .values(state=LinkState.PENDING, reason="")
            )

    def refuse(self, side: Side, kind: str, id_: str, reason: str, at: datetime) -> None:
        """A record that could not be read: a dead letter, with its link if it has one."""
        with self.transaction() as tx:
            links = self._links_by_id(tx, side, kind, [id_])
            if links:
                tx.execute(
                    update(s.link)
                    .where(s.link.c.id == links[0].id, s.link.c.reason != reason)
                    .values(state=LinkState.DEAD, reason=reason)
                )
                return
            row = _sighting_row(self.pair, side, Record(kind, id_, {}), False, None, at)
            tx.execute(upsert(s.sighting).values(row | {"state": "dead", "reason": reason}).on_conflict_do_nothing())

    def sighted(self, side: Side, kind: str, ids: Iterable[str]) -> dict[str, Record]:
        """Records as last seen, from their sighting or else from their base."""
        wanted = list(set(ids))
        found = {row.side(side).record.id: row.side(side).record for row in self.linked(kind, side, wanted)}
        with self._reading() as tx:
            for row in self._sightings(tx, side, kind, wanted):
                found.setdefault(row.id, _record(kind, row))
        return found

    def _follow_merge(
        self, tx: Connection, side: Side, survivor: Record, links: dict[str, Row[Any]], at: datetime
    ) -> Row[Any] | None:
        """A record that came out of a merge inherits the link of its one linked ancestor.

        With several, it is the one whose counterpart the survivor's mark names. Those that are left
        over are two things that became one, which is a person's decision: their links stay where
        they are, each with its reason. So do all where no mark tells, and the survivor waits in review;
        and those of ancestors of a survivor that has a link of its own.
        """
        own = links.get(survivor.id)
        ancestors = [links[old] for old in survivor.formerly if old in links and old != survivor.id]
        if not ancestors:
            return own
        is_heir = {row.id: len(ancestors) == 1 or _link_id(row, side.other) == survivor.mark for row in ancestors}
        heirs = [row for row in ancestors if own is None and is_heir[row.id]]
        told = {
            row.id
            for row in self._sightings(tx, side, survivor.kind, [_link_id(row, side) for row in ancestors])
            if row.is_deleted and row.facts.get("merged_into") == survivor.id
        }
        gone = [
            replace(_base_record(survivor.kind, row, side), is_deleted=True, merged_into=survivor.id)
            for row in ancestors
            if row not in heirs and _link_id(row, side) not in told
        ]
        self._save_sightings(tx, [_sighting_row(self.pair, side, each, True, None, at) for each in gone])
        if len(heirs) != 1:
            return own
        link = heirs[0]
        tx.execute(
            update(s.link)
            .where(s.link.c.id == link.id)
            .values(
                {
                    f"{side}_id": survivor.id,
                    f"{side}_parent": survivor.parent,
                    "is_marked": side is Side.RIGHT and survivor.mark == _link_id(link, Side.LEFT),
                }
            )
        )
        self._drop_sightings(tx, side, survivor.kind, [_link_id(link, side)])
        self._move_children(tx, side, survivor.kind, _link_id(link, side), survivor.id)
        moved = tx.execute(select(s.link).where(s.link.c.id == link.id)).one()
        links[survivor.id] = moved
        return moved

    def _move_children(self, tx: Connection, side: Side, kind: str, old: str, new: str) -> None:
        """Children are known below the survivor now, whose next visit misses their old ids and asks after them."""
        child = {"deal": "deal_contact", "contact": "employment"}.get(kind)
        parent = f"{side}_parent"
        mine = (s.link.c.pair == self.pair, s.link.c.kind == child, s.link.c[parent] == old)
        tx.execute(update(s.link).where(*mine).values({parent: new}))
        seen = (s.sighting.c.pair == self.pair, s.sighting.c.side == side, s.sighting.c.kind == child)
        tx.execute(delete(s.sighting).where(*seen, s.sighting.c.parent == old, ~s.sighting.c.is_linked))

    def follow_merges(self, side: Side, kind: str, at: datetime) -> None:
        """Links whose record was merged into one that has no link yet go over to the survivor."""
        merged_into = s.sighting.c.facts["merged_into"].astext
        with self.transaction() as tx:
            rows = tx.execute(
                select(s.sighting.c.id, merged_into.label("survivor")).where(
                    s.sighting.c.pair == self.pair,
                    s.sighting.c.side == side,
                    s.sighting.c.kind == kind,
                    s.sighting.c.is_deleted,
                    merged_into.is_not(None),
                )
            ).all()
            for row in rows:
                claims = sum(1 for other in rows if other.survivor == row.survivor)
                if claims > 1 or self.counterparts(kind, side, [row.survivor]):
                    continue
                tx.execute(
                    update(s.link)
                    .where(s.link.c.pair == self.pair, s.link.c.kind == kind, _own(s.link, side, "id") == row.id)
                    .values({f"{side}_id": row.survivor, "is_marked": False})
                )
                self._drop_sightings(tx, side, kind, [row.id])
                survivor = _sighting_is(self.pair, side, kind, [row.survivor])
                tx.execute(update(s.sighting).where(*survivor).values(is_linked=True, state="new", reason=""))
                self._close_reviews(tx, side, kind, [row.survivor], at)

    def known_children(self, side: Side, kind: str, parents: Sequence[str]) -> dict[str, Address]:
        """All records of a kind known below these parents."""
        own_id, own_parent = _own(s.link, side, "id"), _own(s.link, side, "parent")
        sighted = (*_sighting_at(self.pair, side, kind), one_of(s.sighting.c.parent, parents))
        linked = select(own_id, own_parent, literal(False)).where(
            s.link.c.pair == self.pair, s.link.c.kind == kind, one_of(own_parent, parents)
        )
        seen = select(s.sighting.c.id, s.sighting.c.parent, s.sighting.c.is_deleted).where(*sighted)
        with self._reading() as tx:
            rows = tx.execute(linked.union_all(seen)).all()
        gone = {row[0] for row in rows if row[2]}
        return {row[0]: Address(row[0], row[1]) for row in rows if row[0] not in gone}

    def count_known(self, side: Side, kind: str) -> int:
        """How many live records of a kind are known: linked, or sighted without a link."""
        with self._reading() as tx:
            linked = tx.execute(
                select(func.count()).select_from(s.link).where(s.link.c.pair == self.pair, s.link.c.kind == kind)
            ).scalar_one()
            alone = tx.execute(
                select(func.count())
                .select_from(s.sighting)
                .where(
                    s.sighting.c.pair == self.pair,
                    s.sighting.c.side == side,
                    s.sighting.c.kind == kind,
                    ~s.sighting.c.is_linked,
                )
            ).scalar_one()
        return int(linked + alone)

    @contextmanager
    def listing(self, side: Side, kind: str) -> Iterator[Listing]:
        """Remember which ids a full listing shows, outside this process's memory."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql("CREATE TEMP TABLE IF NOT EXISTS listed (id text PRIMARY KEY)")
            connection.exec_driver_sql("TRUNCATE listed")
            yield Listing(connection, self.pair, side, kind)
            connection.rollback()

    # --- matching ---------------------------------------------------------------------

    def unmatched(self, side: Side, kind: str, after: str, limit: int) -> list[Record]:
        """Records without a link that nothing is known to stand in the way of, by id."""
        with self._reading() as tx:
            rows = tx.execute(
                select(s.sighting)
                .where(
                    s.sighting.c.pair == self.pair,
                    s.sighting.c.side == side,
                    s.sighting.c.kind == kind,
                    ~s.sighting.c.is_linked,
                    s.sighting.c.state == "new",
                    s.sighting.c.id > after,
                )
                .order_by(s.sighting.c.id)
                .limit(limit)
            ).all()
        return [_record(kind, row) for row in rows]

    def suspects(
        self, side: Side, kind: str, *, ids: Iterable[str] = (), marks: Iterable[str] = (), keys: Iterable[str] = ()
    ) -> list[Suspect]:
        """Records of one side that have one of these ids, marks or keys, linked ones included.

        A record whose partner is known to be gone counts as free: its link may be taken over.
        """
        ids, marks, keys = list(ids), list(marks), list(keys)
        sighting, link = s.sighting.c, s.link.c
        own_id, own_keys, other_id = (
            _own(s.link, side, "id"),
            _own(s.link, side, "keys"),
            _own(s.link, side.other, "id"),
        )
        partner = s.sighting.alias("partner")
        partner_gone = exists().where(
            partner.c.pair == self.pair,
            partner.c.side == side.other,
            partner.c.kind == kind,
            partner.c.id == other_id,
            partner.c.is_deleted,
        )
        array = sql_cast(keys, ARRAY(Text))
        with self._reading() as tx:
            alone = tx.execute(
                select(sighting.id, sighting["keys"], sighting.mark).where(
                    sighting.pair == self.pair,
                    sighting.side == side,
                    sighting.kind == kind,
                    ~sighting.is_linked,
                    sighting.state != "retired",
                    or_(one_of(sighting.id, ids), one_of(sighting.mark, marks), sighting["keys"].op("&&")(array)),
                )
            ).all()
            linked = tx.execute(
                select(own_id, own_keys, other_id, partner_gone.label("is_free")).where(
                    link.pair == self.pair, link.kind == kind, or_(one_of(own_id, ids), own_keys.op("&&")(array))
                )
            ).all()
        found = [Suspect(row[0], frozenset(row[1]), row[2]) for row in alone]
        found += [Suspect(row[0], frozenset(row[1]), None, None if row.is_free else row[2]) for row in linked]
        return found

    def counterparts(self, kind: str, side: Side, ids: Iterable[str]) -> dict[str, str]:
        """For ids of one side, the ids they are linked to on the other."""
        own_id, other_id = _own(s.link, side, "id"), _own(s.link, side.other, "id")
        wanted = list(set(ids))
        if not wanted:
            return {}
        with self._reading() as tx:
            rows = tx.execute(
                select(own_id, other_id).where(
                    s.link.c.pair == self.pair, s.link.c.kind == kind, one_of(own_id, wanted)
                )
            ).all()
        return {row[0]: row[1] for row in rows}

    def planned_sources(self, plan_id: str, kind: str, side: Side, ids: Iterable[str]) -> set[str]:
        """Which of these records of ``side`` the plan in the making creates on the other side."""
        wanted = list(set(ids))
        if not wanted:
            return set()
        with self._reading() as tx:
            return set(
                tx.execute(
                    select(s.operation.c.source_id).where(
                        s.operation.c.plan == plan_id,
                        s.operation.c.kind == kind,
                        s.operation.c.verb == "create",
                        s.operation.c.side == side.other,
                        one_of(s.operation.c.source_id, wanted),
                    )
                ).scalars()
            )

    def holding(self, kind: str, side: Side, ref_kind: str, refs: Iterable[str]) -> set[str]:
        """Which of these references of ``side`` have a linked record of this kind already."""
        own_keys = _own(s.link, side, "keys")
        keys = {f"ref:{ref_kind}={ref}": ref for ref in refs}
        with self._reading() as tx:
            rows = tx.execute(
                select(own_keys).where(
                    s.link.c.pair == self.pair,
                    s.link.c.kind == kind,
                    own_keys.op("&&")(sql_cast(list(keys), ARRAY(Text))),
                )
            ).scalars()
            return {keys[key] for found in rows for key in found if key in keys}

    def planned_refs(self, plan_id: str, kind: str, side: Side, ref_kind: str, refs: Iterable[str]) -> set[str]:
        """Which of these references of ``side`` get a record of this kind by the plan in the making."""
        ref = s.operation.c.refs["ids"][ref_kind].astext
        with self._reading() as tx:
            return set(
                tx.execute(
                    select(ref).where(
                        s.operation.c.plan == plan_id,
                        s.operation.c.kind == kind,
                        s.operation.c.verb == "create",
                        s.operation.c.side == side.other,
                        one_of(ref, refs),
                    )
                ).scalars()
            )

    def keep(self, side: Side, record: Record, at: datetime) -> None:
        """Remember a linked record as it stands, though nothing about it is news."""
        with self.transaction() as tx:
            self._save_sightings(tx, [_sighting_row(self.pair, side, record, True, None, at)])

    def never(self, kind: str) -> frozenset[tuple[str, str]]:
        """Pairs (left id, right id) that a person kept apart for good."""
        with self._reading() as tx:
            rows = tx.execute(
                select(s.match_review.c.side, s.match_review.c.record_id, s.match_review.c.candidates).where(
                    s.match_review.c.pair == self.pair,
                    s.match_review.c.kind == kind,
                    s.match_review.c.answer.in_(["never", "create"]),
                )
            ).all()
        return frozenset(
            (row.record_id, each["id"]) if row.side == Side.LEFT else (each["id"], row.record_id)
            for row in rows
            for each in row.candidates
        )

    def chosen(self, kind: str) -> list[tuple[str, str]]:
        """Pairs (left id, right id) that a person called the same thing and that both stand alone still."""
        review, own, other = s.match_review.c, s.sighting.alias("own"), s.sighting.alias("other")

        def is_alone(alias: Any, side: Any, id_: Any) -> Any:
            return and_(
                alias.c.pair == self.pair, alias.c.kind == kind, alias.c.side == side, alias.c.id == id_,
                ~alias.c.is_linked,
            )  # fmt: skip

        other_side = case((review.side == Side.LEFT, str(Side.RIGHT)), else_=str(Side.LEFT))
        with self._reading() as tx:
            rows = tx.execute(
                select(review.side, review.record_id, review.answered_with)
                .join(own, is_alone(own, review.side, review.record_id))
                .join(other, is_alone(other, other_side, review.answered_with))
                .where(review.pair == self.pair, review.kind == kind, review.answer == "same")
            ).all()
        return [(r[1], r[2]) if r[0] == Side.LEFT else (r[2], r[1]) for r in rows]

    def make_links(self, kind: str, found: Sequence[tuple[str, str, str]], at: datetime) -> None:
        """Link sighted records, (left id, right id, why) each; their bases are empty, so all is still to be merged.

        A link of either to a partner that is gone gives way. What it held in step was nowhere
        sighted, so it is taken from its base.
        """
        if not found:
            return
        ids = {Side.LEFT: [each[0] for each in found], Side.RIGHT: [each[1] for each in found]}
        with self.transaction() as tx:
            for side in Side:
                for row in self.linked(kind, side, ids[side]):
                    unsighted = [each for each in Side if each not in row.moved]
                    known = [
                        _sighting_row(self.pair, each, row.side(each).record, True, None, at) for each in unsighted
                    ]
                    self._save_sightings(tx, known)
            self.drop_links(kind, left_ids=ids[Side.LEFT], right_ids=ids[Side.RIGHT])
            seen = {side: {row.id: row for row in self._sightings(tx, side, kind, ids[side])} for side in Side}
            rows = [
                {"pair": self.pair, "kind": kind, "state": LinkState.PENDING, "why": why, "linked_at": at,
                 "is_marked": seen[Side.RIGHT][right_id].mark == left_id,
                 **_first_seen(Side.LEFT, seen[Side.LEFT][left_id]),
                 **_first_seen(Side.RIGHT, seen[Side.RIGHT][right_id])}
                for left_id, right_id, why in found
                if left_id in seen[Side.LEFT] and right_id in seen[Side.RIGHT]
            ]  # fmt: skip
            if not rows:
                return
            insert_many(tx, s.link, rows)
            self.grew("link", len(rows))
            for side in Side:
                linked = [str(row[f"{side}_id"]) for row in rows]
                tx.execute(
                    update(s.sighting)
                    .where(*_sighting_is(self.pair, side, kind, linked))
                    .values(is_linked=True, state="new", reason="")
                )
                self._close_reviews(tx, side, kind, linked, at)
                self.wake(side, kind, linked)

    def drop_links(self, kind: str, *, left_ids: Sequence[str] = (), right_ids: Sequence[str] = ()) -> None:
        """Forget links; what is still sighted of them stands alone again, what is gone is forgotten."""
        with self.transaction() as tx:
            rows = tx.execute(
                delete(s.link)
                .where(
                    s.link.c.pair == self.pair,
                    s.link.c.kind == kind,
                    or_(one_of(s.link.c.left_id, left_ids), one_of(s.link.c.right_id, right_ids)),
                )
                .returning(s.link)
            ).all()
            for side in Side:
                where = _sighting_is(self.pair, side, kind, [_link_id(row, side) for row in rows])
                if rows:
                    tx.execute(delete(s.sighting).where(*where, s.sighting.c.is_deleted))
                    tx.execute(update(s.sighting).where(*where).values(is_linked=False, state="new", reason=""))

    def save_reviews(self, kind: str, reviews: Sequence[Review], at: datetime) -> None:
        """Put records before a person; one that waits already is brought up to date only if its candidates changed."""
        with self.transaction() as tx:
            for review in reviews:
                candidates = [
                    {"id": each.id, "reasons": list(each.reasons), "linked_to": each.linked_to}
                    for each in review.candidates
                ]
                tx.execute(
                    upsert(s.match_review)
                    .values(
                        pair=self.pair, kind=kind, side=review.side, record_id=review.id,
                        candidates=candidates, opened_at=at,
                    )
                    .on_conflict_do_update(
                        index_elements=["pair", "kind", "side", "record_id"],
                        index_where=s.match_review.c.answered_at.is_(None),
                        set_={"candidates": candidates},
                        where=s.match_review.c.candidates != sql_cast(candidates, s.match_review.c.candidates.type),
                    )
                )  # fmt: skip
                self.shelve(review.side, kind, {review.id: ("review", "a person must name its counterpart")})

    def shelve(self, side: Side, kind: str, verdicts: Mapping[str, tuple[str, str]]) -> None:
        """Record why these unlinked records wait: id -> (state, reason). Unchanged ones are not written."""
        alike: dict[tuple[str, str], list[str]] = {}
        for id_, verdict in verdicts.items():
            alike.setdefault(verdict, []).append(id_)
        with self.transaction() as tx:
            for (state, reason), ids in alike.items():
                tx.execute(
                    update(s.sighting)
                    .where(
                        *_sighting_is(self.pair, side, kind, ids),
                        or_(s.sighting.c.state != state, s.sighting.c.reason != reason),
                    )
                    .values(state=state, reason=reason)
                )

    def wake(self, side: Side, kind: str, ids: Sequence[str]) -> None:
        """Records that waited for one of these to be linked are new again."""
        if kind in RELATIONS:
            return

        def is_waiting(of: Any) -> Any:
            return and_(
                of.c.pair == self.pair, one_of(of.c.kind, sorted(RELATIONS)), of.c.side == side,
                ~of.c.is_linked, of.c.state == "waiting",
            )  # fmt: skip

        # Mostly nothing waits, which one look at an index shows; the keys are looked up only then.
        anything = exists().where(is_waiting(s.sighting.alias("waiting")))
        named = s.sighting.c["keys"].op("&&")(sql_cast([f"ref:{kind}={id_}" for id_ in ids], ARRAY(Text)))
        with self.transaction() as tx:
            tx.execute(update(s.sighting).where(anything, is_waiting(s.sighting), named).values(state="new", reason=""))

    def _close_reviews(self, tx: Connection, side: Side, kind: str, ids: Sequence[str], at: datetime) -> None:
        tx.execute(
            update(s.match_review)
            .where(
                s.match_review.c.pair == self.pair,
                s.match_review.c.kind == kind,
                s.match_review.c.side == side,
                one_of(s.match_review.c.record_id, ids),
                s.match_review.c.answered_at.is_(None),
            )
            .values(answered_at=at)
        )

    # --- links ------------------------------------------------------------------------

    def unsettled(self, kind: str, after: int, limit: int, at: datetime, *, with_marks: bool) -> list[LinkRow]:
        """Links of which something was seen that the base does not tell, or that lack their mark, by id."""
        left, right = s.sighting.alias("l"), s.sighting.alias("r")

        def seen(alias: Any, side: Side) -> Any:
            return and_(
                alias.c.pair == self.pair,
                alias.c.kind == kind,
                alias.c.side == side,
                alias.c.id == _own(s.link, side, "id"),
                alias.c.is_linked,
            )

        conditions: list[Any] = [left.c.id.is_not(None), right.c.id.is_not(None)]
        if with_marks:
            conditions.append(~s.link.c.is_marked)
        statement = (
            select(s.link, *_labelled(left, "l_"), *_labelled(right, "r_"))
            .outerjoin(left, seen(left, Side.LEFT))
            .outerjoin(right, seen(right, Side.RIGHT))
            .where(s.link.c.pair == self.pair, s.link.c.kind == kind, s.link.c.id > after, or_(*conditions))
            .where(s.link.c.state != LinkState.DEAD)
            .where(or_(s.link.c.next_attempt_at.is_(None), s.link.c.next_attempt_at <= at))
            .order_by(s.link.c.id)
            .limit(limit)
        )
        with self._reading() as tx:
            return [_link_row(row, kind) for row in tx.execute(statement)]

    def linked(self, kind: str, side: Side, ids: Sequence[str]) -> list[LinkRow]:
        """The links of these records of one side, as last seen."""
        left, right = s.sighting.alias("l"), s.sighting.alias("r")

        def seen(alias: Any, at: Side) -> Any:
            return and_(
                alias.c.pair == self.pair,
                alias.c.kind == kind,
                alias.c.side == at,
                alias.c.id == _own(s.link, at, "id"),
            )

        statement = (
            select(s.link, *_labelled(left, "l_"), *_labelled(right, "r_"))
            .outerjoin(left, seen(left, Side.LEFT))
            .outerjoin(right, seen(right, Side.RIGHT))
            .where(s.link.c.pair == self.pair, s.link.c.kind == kind, one_of(_own(s.link, side, "id"), ids))
        )
        with self._reading() as tx:
            return [_link_row(row, kind) for row in tx.execute(statement)]

    def settle(
        self,
        link: LinkRow,
        agreed: Mapping[str, tuple[Value, Value]],
        seen: Mapping[Side, Record],
        *,
        state: LinkState,
        reason: str = "",
        is_marked: bool | None = None,
        forget: Iterable[str] = (),
    ) -> None:
        """Move the base for the fields that both sides agree on: field -> (left half, right half).

        ``seen`` is what each side is known to hold now. A sighting stays only while it holds
        something that its base does not. Nothing is written if nothing changes.
        """
        with self.transaction() as tx:
            values: dict[str, object] = {}
            for side, at in ((Side.LEFT, 0), (Side.RIGHT, 1)):
                sighted = link.side(side)
                base = dict(sighted.base)
                for name, halves in agreed.items():
                    base[name] = halves[at]
                if base != dict(sighted.base):
                    values[f"{side}_base"] = freeze(base)
                if side in link.moved or side in seen:
                    rest = {
                        name: base[name] if name in agreed else value for name, value in sighted.record.values.items()
                    }
                    record = _completed(seen.get(side, sighted.record), sighted.record, rest)
                    values |= _seen_of(side, record) | {f"{side}_keys": sorted(_keys(record))}
                    is_new_refs = bool(agreed) or not record.refs
                    if _tells(base, sighted.base_refs, record, self.counts[link.kind], is_new_refs=is_new_refs):
                        self._drop_sightings(tx, side, link.kind, [sighted.record.id])
                    elif side in seen:
                        self._save_sightings(tx, [_sighting_row(self.pair, side, record, True, None, None)])
            if state != link.state or reason != link.reason:
                values |= {"state": state, "reason": reason}
            if is_marked is not None and is_marked != link.is_marked:
                values["is_marked"] = is_marked
            kept = {name: side for name, side in link.settled.items() if name not in set(forget)}
            if kept != dict(link.settled):
                values["settled"] = kept
            if link.next_attempt_at is not None and state is not LinkState.DEAD:
                values |= {"next_attempt_at": None, "attempts": 0}
            if values:
                tx.execute(update(s.link).where(s.link.c.id == link.id).values(values))

    def new_links(self, kind: str, made: Sequence[NewLink], at: datetime) -> None:
        """Link records to the counterparts that were just made for them."""
        if not made:
            return
        rows: list[dict[str, object]] = []
        drops: dict[Side, list[str]] = {side: [] for side in Side}
        keeps: list[dict[str, object]] = []
        for each in made:
            row: dict[str, object] = {
                "pair": self.pair, "kind": kind, "state": LinkState.IN_STEP, "why": each.why, "linked_at": at,
                "is_marked": each.is_marked,
            }  # fmt: skip
            for side, record, index in ((Side.LEFT, each.left, 0), (Side.RIGHT, each.right, 1)):
                base = {name: halves[index] for name, halves in each.agreed.items()}
                row |= {
                    f"{side}_id": record.id,
                    f"{side}_base": freeze(base),
                    f"{side}_keys": sorted(_keys(record)),
                    **_seen_of(side, record),
                }
                if _tells(base, None, record, self.counts[kind], is_new_refs=True):
                    drops[side].append(record.id)
                else:
                    keeps.append(_sighting_row(self.pair, side, record, True, None, at))
            rows.append(row)
        with self.transaction() as tx:
            ids = {Side.LEFT: [e.left.id for e in made], Side.RIGHT: [e.right.id for e in made]}
            self.drop_links(kind, left_ids=ids[Side.LEFT], right_ids=ids[Side.RIGHT])
            self._save_sightings(tx, keeps)
            insert_many(tx, s.link, rows)
            self.grew("link", len(rows))
            for side in Side:
                self._drop_sightings(tx, side, kind, drops[side])
                self._close_reviews(tx, side, kind, ids[side], at)
                self.wake(side, kind, ids[side])

    def retire(self, side: Side, kind: str, link: LinkRow, reason: str, at: datetime) -> None:
        """Take a link apart: ``side``'s record must go, the other one looks for a new counterpart."""
        with self.transaction() as tx:
            for each in Side:
                record = link.side(each).record
                if each not in link.moved:
                    self._save_sightings(tx, [_sighting_row(self.pair, each, record, True, None, at)])
            self.drop_links(kind, left_ids=[link.left.record.id])
            self.shelve(side, kind, {link.side(side).record.id: ("retired", reason)})

    def retired(self, side: Side, kind: str) -> list[Record]:
        """Records of one side that must go because the other side's record names others now."""
        with self._reading() as tx:
            rows = tx.execute(
                select(s.sighting).where(
                    s.sighting.c.pair == self.pair,
                    s.sighting.c.side == side,
                    s.sighting.c.kind == kind,
                    s.sighting.c.state == "retired",
                )
            ).all()
        return [_record(kind, row) for row in rows]

    def bury(self, link_id: int, reason: str, at: datetime | None) -> None:
        """Make a link a dead letter; it is tried again when a side moves, or when a person says so."""
        with self.transaction() as tx:
            tx.execute(
                update(s.link)
                .where(s.link.c.id == link_id)
                .values(state=LinkState.DEAD, reason=reason, attempts=s.link.c.attempts + 1, next_attempt_at=at)
            )

    def forget_sighting(self, side: Side, kind: str, id_: str) -> None:
        with self.transaction() as tx:
            self._drop_sightings(tx, side, kind, [id_])

    def count_links(self) -> dict[str, int]:
        """Links by kind."""
        with self._reading() as tx:
            rows = tx.execute(
                select(s.link.c.kind, func.count()).where(s.link.c.pair == self.pair).group_by(s.link.c.kind)
            ).all()
        return {row[0]: row[1] for row in rows}

    def prevailing_currency(self) -> str | None:
        """The currency of most projects' prices, those first whose amount the CRM shares; None without any."""
        ours = s.link.c.left_base["amount"]["currency"].astext
        theirs = s.link.c.right_base["amount"]["amount"].astext
        seen = s.sighting.c["values"]["amount"]["currency"].astext
        deals = (s.link.c.pair == self.pair, s.link.c.kind == "deal", ours.is_not(None))
        news = (s.sighting.c.pair == self.pair, s.sighting.c.side == Side.LEFT, s.sighting.c.kind == "deal")
        looks = (
            select(ours.label("currency")).where(*deals, theirs.is_not(None)),
            select(ours.label("currency")).where(*deals),
            select(seen.label("currency")).where(*news, seen.is_not(None)),
        )
        with self._reading() as tx:
            for look in looks:
                each = look.subquery()
                count = select(each.c.currency, func.count()).group_by(each.c.currency)
                row = tx.execute(count.order_by(func.count().desc(), each.c.currency).limit(1)).first()
                if row is not None:
                    return str(row[0])
        return None

    # --- conflicts and the change log -------------------------------------------------

    def log_changes(self, rows: Sequence[Mapping[str, object]]) -> None:
        with self.transaction() as tx:
            insert_many(tx, s.change_log, [{"pair": self.pair, **row} for row in rows])

    def open_conflict(
        self,
        run_id: str,
        link: LinkRow,
        field: str,
        base: Json,
        left_value: Json,
        right_value: Json,
        *,
        decided: str | None,
        winner: Side | None,
        at: datetime,
    ) -> None:
        """Keep both values of a conflict. One that waits for a person is written once, and again only if it changes."""
        values: dict[str, object] = {"base": base, "left_value": left_value, "right_value": right_value}
        settled = {"decided": decided, "winner": winner, "settled_at": at} if decided else {}
        with self.transaction() as tx:
            where = and_(
                s.conflict.c.pair == self.pair,
                s.conflict.c.kind == link.kind,
                s.conflict.c.left_id == link.left.record.id,
                s.conflict.c.right_id == link.right.record.id,
                s.conflict.c.field == field,
                s.conflict.c.settled_at.is_(None),
            )
            row = tx.execute(select(s.conflict).where(where)).one_or_none()
            if row is None:
                tx.execute(
                    insert(s.conflict).values(
                        pair=self.pair, run=run_id, kind=link.kind, left_id=link.left.record.id,
                        right_id=link.right.record.id, field=field, opened_at=at, **values, **settled,
                    )
                )  # fmt: skip
            elif settled or any(getattr(row, name) != value for name, value in values.items()):
                tx.execute(update(s.conflict).where(where).values(**values, **settled))

    def close_conflicts(self, link: LinkRow, open_fields: Iterable[str], at: datetime) -> None:
        """Conflicts of this link that waited and are none any more were settled by the two sides themselves."""
        with self.transaction() as tx:
            tx.execute(
                update(s.conflict)
                .where(
                    s.conflict.c.pair == self.pair,
                    s.conflict.c.kind == link.kind,
                    s.conflict.c.left_id == link.left.record.id,
                    s.conflict.c.right_id == link.right.record.id,
                    s.conflict.c.settled_at.is_(None),
                    s.conflict.c.field.not_in(list(open_fields)),
                )
                .values(settled_at=at, decided="agreed since")
            )

    # --- rows -------------------------------------------------------------------------

    def _links_by_id(self, tx: Connection, side: Side, kind: str, ids: Sequence[str]) -> list[Row[Any]]:
        own_id = _own(s.link, side, "id")
        return list(
            tx.execute(select(s.link).where(s.link.c.pair == self.pair, s.link.c.kind == kind, one_of(own_id, ids)))
        )

    def _sightings(self, tx: Connection, side: Side, kind: str, ids: Sequence[str]) -> list[Row[Any]]:
        return list(tx.execute(select(s.sighting).where(*_sighting_is(self.pair, side, kind, ids))))

    def _save_sightings(self, tx: Connection, rows: Sequence[Mapping[str, object]]) -> None:
        upsert_many(tx, s.sighting, rows)

    def _drop_sightings(self, tx: Connection, side: Side, kind: str, ids: Sequence[str]) -> None:
        if ids:
            tx.execute(delete(s.sighting).where(*_sighting_is(self.pair, side, kind, ids)))


class Listing:
    """The ids that a full listing showed, kept in a temporary table."""

    def __init__(self, connection: Connection, pair: str, side: Side, kind: str):
        self._connection = connection
        self._pair, self._side, self._kind = pair, side, kind

    def add(self, ids: Sequence[str]) -> None:
        if ids:
            self._connection.exec_driver_sql(
                "INSERT INTO listed SELECT unnest(%(ids)s::text[]) ON CONFLICT DO NOTHING", {"ids": list(ids)}
            )

    def missing(self) -> list[Address]:
        """Linked records that the listing lacks and that nobody reported gone yet."""
        own = {name: _own(s.link, self._side, name) for name in ("id", "parent")}
        rows = self._connection.execute(
            select(own["id"], own["parent"])
            .where(s.link.c.pair == self._pair, s.link.c.kind == self._kind)
            .where(own["id"].not_in(select(_listed.c.id)))
            .where(
                ~exists().where(
                    s.sighting.c.pair == self._pair,
                    s.sighting.c.side == self._side,
                    s.sighting.c.kind == self._kind,
                    s.sighting.c.id == own["id"],
                    s.sighting.c.is_deleted,
                )
            )
        ).all()
        return [Address(*row) for row in rows]


def _own(source: Any, side: Side, name: str) -> Any:
    return source.c[f"{side}_{name}"]


def _link_id(row: Row[Any], side: Side) -> str:
    return cast(str, row._mapping[f"{side}_id"])


def _feed_is(pair: str, side: Side, kind: str, parent: str) -> tuple[Any, ...]:
    return (s.feed.c.pair == pair, s.feed.c.side == side, s.feed.c.kind == kind, s.feed.c.parent == parent)


def _sighting_at(pair: str, side: Side, kind: str) -> tuple[Any, ...]:
    return (s.sighting.c.pair == pair, s.sighting.c.side == side, s.sighting.c.kind == kind)


def _sighting_is(pair: str, side: Side, kind: str, ids: Sequence[str]) -> tuple[Any, ...]:
    return (*_sighting_at(pair, side, kind), one_of(s.sighting.c.id, ids))


def _feed_row(row: Row[Any]) -> FeedRow:
    return FeedRow(row.watermark, row.swept_at, row.listed_at, row.deep_at, row.visited_at, row.cost)


def _labelled(source: Any, prefix: str) -> list[Any]:
    return [each.label(prefix + each.name) for each in source.c]


def _facts(record: Record) -> dict[str, Json]:
    return {
        "refs": dict(record.refs),
        "locked": dict(record.locked),
        "native": dict(record.native),
        "opaque": dict(record.opaque),
        "merged_into": record.merged_into,
    }


def _keys(record: Record) -> frozenset[str]:
    single = {f"ref:{kind}={id_}" for kind, id_ in record.refs.items()} if record.kind in RELATIONS else set()
    return keys_of(record) | single


def _sighting_row(
    pair: str, side: Side, record: Record, is_linked: bool, before: Row[Any] | None, at: datetime | None
) -> dict[str, object]:
    state, reason = "new", ""
    if before is not None and (before.state == "retired" or not _differs(before, record)):
        state, reason = before.state, before.reason
    return {
        "pair": pair,
        "side": str(side),
        "kind": record.kind,
        "id": record.id,
        "parent": record.parent,
        "values": freeze(record.values),
        "facts": _facts(record),
        "mark": record.mark,
        "keys": sorted(_keys(record)),
        "version": record.version,
        "modified_at": record.modified_at,
        "is_deleted": record.is_deleted,
        "is_linked": is_linked,
        "state": state,
        "reason": reason,
        "attempts": 0,
        "next_attempt_at": None,
        "seen_at": at or record.modified_at or (before.seen_at if before is not None else _EPOCH),
    }


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def _seen_of(side: Side, record: Record) -> dict[str, object]:
    return {
        f"{side}_parent": record.parent,
        f"{side}_facts": _facts(record),
        f"{side}_version": record.version,
        f"{side}_modified_at": record.modified_at,
    }


def _first_seen(side: Side, row: Row[Any]) -> dict[str, object]:
    """What a link takes over from a sighting when two records meet."""
    return {
        f"{side}_id": row.id,
        f"{side}_parent": row.parent,
        f"{side}_keys": list(row._mapping["keys"]),
        f"{side}_facts": row.facts,
        f"{side}_version": row.version,
        f"{side}_modified_at": row.modified_at,
    }


def _completed(record: Record, before: Record, rest: Values) -> Record:
    """A record as a write's answer tells it, which may be in part, with what was known of the rest."""
    if record is before:
        return record
    return replace(
        record,
        values={**rest, **record.values},
        refs=record.refs or before.refs,
        parent=record.parent or before.parent,
        locked={**before.locked, **record.locked},
        native={**before.native, **record.native},
        opaque={**before.opaque, **record.opaque},
    )


def _record(kind: str, row: Row[Any], prefix: str = "") -> Record:
    get = row._mapping
    facts = get[f"{prefix}facts"]
    return Record(
        kind=kind,
        id=get[f"{prefix}id"],
        values=thaw(get[f"{prefix}values"]),
        parent=get[f"{prefix}parent"],
        refs=facts.get("refs", {}),
        mark=get[f"{prefix}mark"],
        version=get[f"{prefix}version"],
        modified_at=get[f"{prefix}modified_at"],
        is_deleted=get[f"{prefix}is_deleted"],
        merged_into=facts.get("merged_into"),
        locked=facts.get("locked", {}),
        native=facts.get("native", {}),
        opaque=facts.get("opaque", {}),
    )


def _base_record(kind: str, row: Row[Any], side: Side) -> Record:
    get = row._mapping
    facts = get[f"{side}_facts"]
    return Record(
        kind=kind,
        id=get[f"{side}_id"],
        values=thaw(get[f"{side}_base"]),
        parent=get[f"{side}_parent"],
        refs=facts.get("refs", {}),
        version=get[f"{side}_version"],
        modified_at=get[f"{side}_modified_at"],
        locked=facts.get("locked", {}),
        native=facts.get("native", {}),
        opaque=facts.get("opaque", {}),
    )


def _link_row(row: Row[Any], kind: str) -> LinkRow:
    sides: dict[Side, Sighted] = {}
    moved: set[Side] = set()
    for side, prefix in ((Side.LEFT, "l_"), (Side.RIGHT, "r_")):
        known = _base_record(kind, row, side)
        base_refs = next((key for key in row._mapping[f"{side}_keys"] if key.startswith("refs:")), None)
        record = known
        if row._mapping[f"{prefix}id"] is not None:
            record = _record(kind, row, prefix)
            moved.add(side)
            if record.is_deleted:
                record = replace(known, is_deleted=True, merged_into=record.merged_into)
        sides[side] = Sighted(record, known.values, base_refs)
    return LinkRow(
        id=row.id,
        kind=kind,
        left=sides[Side.LEFT],
        right=sides[Side.RIGHT],
        state=LinkState(row.state),
        reason=row.reason,
        is_marked=row.is_marked,
        settled={name: Side(side) for name, side in row.settled.items()},
        moved=frozenset(moved),
        next_attempt_at=row.next_attempt_at,
    )


def _tells(base: Values, base_refs: str | None, record: Record, counts: Container[str], *, is_new_refs: bool) -> bool:
    """Whether a base tells all that counts of what a record says, so that it needs no sighting."""
    if record.is_deleted:
        return False
    types = FIELDS[record.kind]
    return all(
        same(types[name], value, base.get(name)) for name, value in record.values.items() if name in counts
    ) and (is_new_refs or base_refs is None or base_refs == ref_key(record.refs))


def _differs(row: Row[Any], record: Record) -> bool:
    """Whether a sighting says something else than the record; versions and times do not count."""
    return bool(
        row._mapping["values"] != freeze(record.values)
        or row.is_deleted != record.is_deleted
        or row.mark != record.mark
        or {**row.facts, "opaque": None} != {**_facts(record), "opaque": None}
    )


def _news(
    side: Side,
    record: Record,
    link: Row[Any] | None,
    sighting: Row[Any] | None,
    counts: Container[str],
    *,
    is_exact: bool,
    is_current: bool,
) -> str:
    """``keep`` it as a sighting, ``drop`` the sighting there is, ``refresh`` what the link knows of it, or ``none``."""
    if record.is_deleted:
        if link is None:
            return "drop" if sighting is not None else "none"
        return "none" if sighting is not None and sighting.is_deleted else "keep"
    last_at = sighting.modified_at if sighting is not None and not sighting.is_deleted else None
    if not is_current and _is_older(record.modified_at, last_at):
        return "none"
    if link is None:
        if sighting is None or sighting.version != record.version or _differs(sighting, record):
            return "keep"
        return "none"
    known_at, known_version = link._mapping[f"{side}_modified_at"], link._mapping[f"{side}_version"]
    if not is_current and _is_older(record.modified_at, known_at):
        return "none"
    known = _base_record(record.kind, link, side)
    is_same_version = known_version is not None and known_version == record.version
    base_refs = next((key for key in link._mapping[f"{side}_keys"] if key.startswith("refs:")), None)
    tells = _tells(known.values, base_refs, record, counts, is_new_refs=not record.refs)
    if tells or (is_exact and is_same_version and sighting is None):
        facts = {**link._mapping[f"{side}_facts"], "opaque": None}
        if facts != {**_facts(record), "opaque": None}:
            return "keep"
        if sighting is not None and (sighting.is_deleted or link.state != LinkState.IN_STEP):
            return "keep"  # restored, or back at its base: whatever waited for that is to be looked at
        if is_same_version:
            return "drop" if sighting is not None else "none"
        return "drop and refresh" if sighting is not None else "refresh"
    if sighting is None or not sighting.is_linked or sighting.version != record.version or _differs(sighting, record):
        return "keep"
    return "none"


def _is_older(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and other is not None and one < other
