"""The rows of one pair in PostgreSQL. What is asked of them, and what is done with them, is the store's business."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cache
from typing import Any, Literal

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Text,
    and_,
    any_,
    bindparam,
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
    union_all,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import insert as upsert

from syncd.core.model import KINDS, Address, LinkState, Side, Verb
from syncd.state import schema as s
from syncd.state.bulk import insert_many, one_of, update_many, upsert_many
from syncd.state.lease import Lease, alone, prove
from syncd.state.rows import EMPTIED, Joined, Listing, Place, Row

#: From so many new rows on the database is told to look at a table again.
ANALYZED = 2_000
#: Lives only in the connection of a listing, so it is no part of the schema.
_listed = table("listed", column("id", Text))
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class PostgresRows:
    """Fulfils ``Rows``. Reads inside a transaction see what it wrote; others take a connection each."""

    def __init__(self, engine: Engine, pair: str):
        self.engine = engine
        self.pair = pair
        self._lease: Lease | None = None
        self._begun = ExitStack()
        self._tx: Connection | None = None
        self._added: Counter[str] = Counter()
        self._known_size: dict[str, int] = {}

    @contextmanager
    def transaction(self, lease: Lease) -> Iterator[None]:
        if self._lease is not None:
            yield
            return
        self._lease = lease
        try:
            with ExitStack() as self._begun:
                yield
        finally:
            self._lease = self._tx = None
        self._tell_planner()

    def _tell_planner(self) -> None:
        """Gather statistics of a table each time it has doubled.

        The server looks by itself once a minute; until then a backfill into empty tables runs on
        plans that were made for empty tables.
        """
        for name, count in self._added.items():
            if count >= max(ANALYZED, 2 * self._known_size.get(name, 0)):
                self._known_size[name] = count
                with alone(self.engine) as connection:
                    connection.exec_driver_sql(f"ANALYZE {name}")

    @property
    def _writing(self) -> Connection:
        """The transaction, which begins with its first write: mostly there is nothing to write."""
        if self._lease is None:
            raise RuntimeError("rows are written inside a transaction, which proves the lease")
        if self._tx is None:
            tx = self._begun.enter_context(self.engine.begin())
            prove(tx, self._lease)
            self._tx = tx
        return self._tx

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._tx is not None:
            yield self._tx
        else:
            with alone(self.engine) as connection:
                yield connection

    def _all(self, statement: Any, **given: object) -> list[Row]:
        with self._reading() as tx:
            return _fetched(tx, statement, {"pair": self.pair, **given})

    def _tuples(self, statement: Any, **given: object) -> list[tuple[Any, ...]]:
        with self._reading() as tx:
            return [tuple(row) for row in tx.execute(statement, {"pair": self.pair, **given})]

    # --- feeds ------------------------------------------------------------------------

    def feeds(self, side: Side, kind: str, parents: Collection[str]) -> list[Row]:
        rows = self._all(_FEEDS, side=side, kind=kind, parents=list(parents))
        return sorted(rows, key=lambda row: str(row["parent"]))

    def all_feeds(self) -> list[Row]:
        return sorted(self._all(_TOP_FEEDS), key=lambda row: (row["side"], row["kind"]))

    def save_feeds(self, rows: Sequence[Row]) -> None:
        if rows:
            upsert_many(self._writing, s.feed, rows)

    def forget_visits(self, side: Side, kind: str, latest: datetime) -> None:
        feed = s.feed.c
        if self._tuples(_VISITED_AHEAD, side=side, kind=kind, latest=latest):
            wrong = (feed.pair == self.pair, feed.side == side, feed.kind == kind, feed.visited_at > latest)
            self._writing.execute(update(s.feed).where(*wrong).values(visited_at=None))

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
        bounds = {
            "visited_before": visited_before,
            "closed_before": closed_before,
            "among": None if among is None else list(among),
        }
        given = {name: value for name, value in bounds.items() if value is not None}
        place = after._asdict() if after is not None else {}
        statement = _parents(side, child, frozenset(given), is_going_on=after is not None, is_told=is_told)
        return self._all(statement, plan=plan_id, limit=limit, **given, **place)

    def holders(self, side: Side, kind: str, key: str, ids: Collection[str]) -> list[Address]:
        own_id, own_parent, facts = (_own(s.link, side, each) for each in ("id", "parent", "facts"))
        linked = select(own_id.label("id"), own_parent.label("parent")).where(
            *self._of(s.link, kind), one_of(facts["opaque"][key].astext, ids)
        )
        seen = select(s.sighting.c.id, s.sighting.c.parent).where(
            *self._seen(side, kind), one_of(s.sighting.c.facts["opaque"][key].astext, ids)
        )
        return _addresses(self._all(linked.union(seen)))

    def dirty(self) -> list[Row]:
        return sorted(self._all(_DIRTY), key=lambda row: (row["side"], row["kind"], row["id"]))

    def drop_dirty(self, side: Side, kind: str, read: Mapping[str, int]) -> None:
        told = (s.dirty.c.pair == self.pair, s.dirty.c.side == side, s.dirty.c.kind == kind)
        # In the order in which a delivery takes them, so that the two wait for one another and never both.
        in_order = select(s.dirty.c.id).where(*told, one_of(s.dirty.c.id, read.keys()))
        self._writing.execute(in_order.order_by(s.dirty.c.id.collate("C")).with_for_update())
        for hints in sorted(set(read.values())):
            ids = sorted(id_ for id_, count in read.items() if count == hints)
            self._writing.execute(delete(s.dirty).where(*told, one_of(s.dirty.c.id, ids), s.dirty.c.hints == hints))

    # --- sightings --------------------------------------------------------------------

    def sightings(self, side: Side, kind: str, ids: Collection[str]) -> list[Row]:
        return _by_id(self._all(_SIGHTINGS, side=side, kind=kind, ids=list(ids))) if ids else []

    def unmatched(self, side: Side, kind: str, after: str, limit: int) -> list[Row]:
        return self._all(_UNMATCHED, side=side, kind=kind, after=after, limit=limit)

    def retired(self, side: Side, kind: str) -> list[Row]:
        return _by_id(self._all(_RETIRED, side=side, kind=kind))

    def stirs(self, kind: str, *, with_marks: bool) -> bool:
        return bool(self._tuples(_stirs(with_marks), kind=kind)[0][0])

    def merged_away(self, side: Side, kind: str) -> list[tuple[str, str]]:
        return sorted((id_, survivor) for id_, survivor in self._tuples(_MERGED_AWAY, side=side, kind=kind))

    def save_sightings(self, rows: Sequence[Row]) -> None:
        if rows:
            upsert_many(self._writing, s.sighting, rows)
            self._added["sighting"] += len(rows)

    def update_sightings(self, side: Side, kind: str, ids: Collection[str], changes: Row) -> None:
        if ids:
            differs = or_(*(s.sighting.c[name] != value for name, value in changes.items()))
            self._writing.execute(update(s.sighting).where(*self._seen(side, kind, ids), differs).values(changes))

    def drop_sightings(self, side: Side, kind: str, ids: Collection[str], *, only_gone: bool = False) -> None:
        if ids:
            gone = (s.sighting.c.is_deleted,) if only_gone else ()
            self._writing.execute(delete(s.sighting).where(*self._seen(side, kind, ids), *gone))

    def wake(self, side: Side, kinds: Collection[str], keys: Collection[str]) -> None:
        def is_waiting(of: Any) -> Any:
            return and_(
                of.c.pair == self.pair, one_of(of.c.kind, kinds), of.c.side == side,
                ~of.c.is_linked, of.c.state == "waiting",
            )  # fmt: skip

        # Mostly nothing waits, which one look at an index shows; the keys are looked up only then.
        anything = exists().where(is_waiting(s.sighting.alias("waiting")))
        named = _overlaps(s.sighting.c["keys"], keys)
        self._writing.execute(
            update(s.sighting).where(anything, is_waiting(s.sighting), named).values(state="new", reason="")
        )

    # --- links ------------------------------------------------------------------------

    def links(self, side: Side, kind: str, ids: Collection[str]) -> list[Row]:
        return _by_id(self._all(_links(side), kind=kind, ids=list(ids))) if ids else []

    def link(self, link_id: int) -> Row | None:
        return next(iter(self._all(select(s.link).where(s.link.c.id == link_id))), None)

    def linked(self, side: Side, kind: str, ids: Collection[str]) -> list[Joined]:
        if not ids:
            return []
        found = self._joined(_linked(side), kind=kind, ids=list(ids))
        return sorted(found, key=lambda each: int(each.link["id"]))

    def unsettled(self, kind: str, after: int, limit: int, at: datetime, *, with_marks: bool) -> list[Joined]:
        return self._joined(_unsettled(with_marks), kind=kind, after=after, limit=limit, at=at)

    def _joined(self, statement: Any, **given: object) -> list[Joined]:
        own, each = len(_LINK), len(_SIGHTING)
        return [
            Joined(
                dict(zip(_LINK, row[:own], strict=True)),
                _sighted(row[own : own + each]),
                _sighted(row[own + each :]),
            )
            for row in self._tuples(statement, **given)
        ]

    def counterparts(self, kind: str, side: Side, ids: Collection[str]) -> dict[str, str]:
        return dict(self._tuples(_counterparts(side), kind=kind, ids=list(ids))) if ids else {}

    def insert_links(self, rows: Sequence[Row]) -> None:
        if rows:
            insert_many(self._writing, s.link, rows)
            self._added["link"] += len(rows)

    def update_links(self, rows: Sequence[Row]) -> None:
        if rows:
            update_many(self._writing, s.link, rows)

    def delete_links(self, kind: str, left_ids: Collection[str], right_ids: Collection[str]) -> list[Row]:
        statement = delete(s.link).where(
            *self._of(s.link, kind), or_(one_of(s.link.c.left_id, left_ids), one_of(s.link.c.right_id, right_ids))
        )
        rows = _fetched(self._writing, statement.returning(s.link.c.id, s.link.c.left_id, s.link.c.right_id))
        return [{"left_id": row["left_id"], "right_id": row["right_id"]} for row in _by_id(rows)]

    def move_children(self, side: Side, child: str, old: str, new: str) -> None:
        parent = _own(s.link, side, "parent")
        self._writing.execute(
            update(s.link).where(*self._of(s.link, child), parent == old).values({f"{side}_parent": new})
        )
        self._writing.execute(
            delete(s.sighting).where(
                *self._seen(side, child), s.sighting.c.parent == old, ~s.sighting.c.is_linked
            )
        )  # fmt: skip

    # --- both -------------------------------------------------------------------------

    def known_children(self, side: Side, kind: str, parents: Collection[str]) -> list[tuple[Address, bool]]:
        rows = sorted(self._tuples(_known_children(side), kind=kind, parents=list(parents)))
        return [(Address(id_, parent), is_gone) for _, id_, parent, is_gone in rows]

    def stranded(self, side: Side, kind: str, above: str, limit: int) -> list[str]:
        return [row[0] for row in self._tuples(_stranded(side), kind=kind, above=above, limit=limit)]

    def count_known(self, side: Side, kind: str) -> int:
        linked = select(func.count()).select_from(s.link).where(*self._of(s.link, kind))
        alone = select(func.count()).select_from(s.sighting).where(*self._seen(side, kind), ~s.sighting.c.is_linked)
        with self._reading() as tx:
            return int(tx.execute(linked).scalar_one() + tx.execute(alone).scalar_one())

    def count_links(self) -> dict[str, int]:
        return dict(self._tuples(_LINKS_BY_KIND))

    @contextmanager
    def listing(self, side: Side, kind: str) -> Iterator[Listing]:
        # No transaction is open while the vendor is asked for the next page.
        with alone(self.engine) as connection:
            connection.exec_driver_sql("CREATE TEMP TABLE IF NOT EXISTS listed (id text PRIMARY KEY)")
            connection.exec_driver_sql("TRUNCATE listed")
            yield _Listing(connection, self, side, kind)
            connection.exec_driver_sql("TRUNCATE listed")

    def alike(
        self, side: Side, kind: str, ids: Collection[str], marks: Collection[str], keys: Collection[str]
    ) -> list[Row]:
        sighting = s.sighting.c
        return _by_id(
            self._all(
                select(sighting.id, sighting["keys"], sighting.mark).where(
                    *self._seen(side, kind),
                    ~sighting.is_linked,
                    sighting.state != "retired",
                    or_(one_of(sighting.id, ids), one_of(sighting.mark, marks), _overlaps(sighting["keys"], keys)),
                )
            )
        )

    def linked_alike(self, side: Side, kind: str, ids: Collection[str], keys: Collection[str]) -> list[Row]:
        own_id, own_keys, other_id = (
            _own(s.link, side, "id"),
            _own(s.link, side, "keys"),
            _own(s.link, side.other, "id"),
        )
        partner = s.sighting.alias("partner")
        is_gone = exists().where(
            *self._of(partner, kind), partner.c.side == side.other, partner.c.id == other_id, partner.c.is_deleted
        )
        return _by_id(
            self._all(
                select(
                    own_id.label("id"), own_keys.label("keys"), other_id.label("other_id"),
                    is_gone.label("is_other_gone"),
                ).where(*self._of(s.link, kind), or_(one_of(own_id, ids), _overlaps(own_keys, keys)))
            )
        )  # fmt: skip

    def usurpers(self, kind: str, marks: Collection[str]) -> dict[str, tuple[str, str]]:
        mark = s.link.c.right_facts["mark"].astext
        found = self._all(
            select(mark.label("mark"), s.link.c.left_id, s.link.c.right_id).where(
                *self._of(s.link, kind), ~s.link.c.is_marked, one_of(mark, marks), mark != s.link.c.left_id
            )
        )
        return {row["mark"]: (row["left_id"], row["right_id"]) for row in found}

    def linked_keys(self, side: Side, kind: str, keys: Collection[str]) -> set[str]:
        own_keys = _own(s.link, side, "keys")
        with self._reading() as tx:
            rows = tx.execute(select(own_keys).where(*self._of(s.link, kind), _overlaps(own_keys, keys))).scalars()
            return {key for found in rows for key in found if key in keys}

    def currency(self, of: Literal["shared", "linked", "sighted"]) -> str | None:
        ours = s.link.c.left_base["amount"]["currency"].astext
        theirs = s.link.c.right_base["amount"]["amount"].astext
        seen = s.sighting.c["values"]["amount"]["currency"].astext
        match of:
            case "shared":
                look = select(ours.label("currency")).where(
                    *self._of(s.link, "deal"), ours.is_not(None), theirs.is_not(None)
                )
            case "linked":
                look = select(ours.label("currency")).where(*self._of(s.link, "deal"), ours.is_not(None))
            case "sighted":
                look = select(seen.label("currency")).where(*self._seen(Side.LEFT, "deal"), seen.is_not(None))
        each = look.subquery()
        count = select(each.c.currency, func.count()).group_by(each.c.currency)
        with self._reading() as tx:
            row = tx.execute(count.order_by(func.count().desc(), each.c.currency).limit(1)).first()
        return str(row[0]) if row is not None else None

    # --- reviews, conflicts, the change log -------------------------------------------

    def open_review(self, side: Side, kind: str, record_id: str, candidates: Sequence[Any], at: datetime) -> None:
        self._writing.execute(
            upsert(s.match_review)
            .values(
                pair=self.pair, kind=kind, side=side, record_id=record_id, candidates=candidates, opened_at=at,
            )
            .on_conflict_do_update(
                index_elements=["pair", "kind", "side", "record_id"],
                index_where=s.match_review.c.answered_at.is_(None),
                set_={"candidates": candidates},
                where=s.match_review.c.candidates != sql_cast(candidates, s.match_review.c.candidates.type),
            )
        )  # fmt: skip

    def close_reviews(self, side: Side, kind: str, ids: Collection[str], at: datetime) -> None:
        self._writing.execute(
            update(s.match_review)
            .where(
                *self._of(s.match_review, kind),
                s.match_review.c.side == side,
                one_of(s.match_review.c.record_id, ids),
                s.match_review.c.answered_at.is_(None),
            )
            .values(answered_at=at)
        )

    def answered(self, kind: str, answers: Collection[str]) -> list[Row]:
        review = s.match_review
        return _by_id(self._all(select(review).where(*self._of(review, kind), review.c.answer.in_(list(answers)))))

    def chosen(self, kind: str) -> list[Row]:
        review, own, other = s.match_review.c, s.sighting.alias("own"), s.sighting.alias("other")

        def is_alone(alias: Any, side: Any, id_: Any) -> Any:
            return and_(*self._of(alias, kind), alias.c.side == side, alias.c.id == id_, ~alias.c.is_linked)

        other_side = case((review.side == Side.LEFT, str(Side.RIGHT)), else_=str(Side.LEFT))
        return _by_id(
            self._all(
                select(s.match_review)
                .join(own, is_alone(own, review.side, review.record_id))
                .join(other, is_alone(other, other_side, review.answered_with))
                .where(*self._of(s.match_review, kind), review.answer == "same")
            )
        )

    def open_conflicts(self, kind: str, left_id: str, right_id: str) -> list[Row]:
        return _by_id(
            self._all(
                select(s.conflict).where(
                    *self._of(s.conflict, kind),
                    s.conflict.c.left_id == left_id,
                    s.conflict.c.right_id == right_id,
                    s.conflict.c.settled_at.is_(None),
                )
            )
        )

    def insert_conflict(self, row: Row) -> None:
        self._writing.execute(insert(s.conflict).values(row))

    def update_conflicts(self, ids: Collection[int], changes: Row) -> None:
        if ids:
            self._writing.execute(update(s.conflict).where(one_of(s.conflict.c.id, ids)).values(changes))

    def insert_changes(self, rows: Sequence[Row]) -> None:
        if rows:
            insert_many(self._writing, s.change_log, rows)

    def deletes_since(self, at: datetime) -> dict[tuple[str, Side], int]:
        log, run = s.change_log.c, s.run.c
        own = func.coalesce(case((log.side == Side.LEFT, log.left_id), else_=log.right_id), "")
        is_own = and_(run.id == log.run, run.reason.in_(["run", "backfill"]), ~run.counts.has_key("waived"))
        query = (
            select(log.kind, log.side, func.count(own.distinct()))
            .join(s.run, is_own)
            .where(log.pair == self.pair, log.verb == "delete", log.at > at)
            .group_by(log.kind, log.side)
        )
        with self._reading() as tx:
            return {(row[0], Side(row[1])): row[2] for row in tx.execute(query)}

    # --- holds ------------------------------------------------------------------------

    def holds(self) -> list[Row]:
        return sorted(self._all(_HOLDS), key=lambda row: (row["kind"], row["side"], row["record_id"]))

    def save_holds(self, rows: Sequence[Row]) -> None:
        upsert_many(self._writing, s.hold, rows)

    def drop_holds(self, side: Side, kind: str, ids: Collection[str]) -> None:
        hold = s.hold.c
        mine = (hold.pair == self.pair, hold.kind == kind, hold.side == side, one_of(hold.record_id, ids))
        self._writing.execute(delete(s.hold).where(*mine))

    # --- runs, plans, operations ------------------------------------------------------

    def insert_run(self, row: Row) -> None:
        self._writing.execute(insert(s.run).values(row))

    def update_run(self, run_id: str, changes: Row) -> None:
        self._writing.execute(update(s.run).where(s.run.c.id == run_id).values(changes))

    def backfills(self) -> list[Row]:
        return self._all(
            select(s.run)
            .where(s.run.c.pair == self.pair, s.run.c.reason == "backfill")
            .order_by(s.run.c.started_at.desc(), s.run.c.id)
        )

    def insert_plan(self, row: Row) -> None:
        self._writing.execute(insert(s.plan).values(row))

    def update_plan(self, plan_id: str, changes: Row) -> None:
        self._writing.execute(update(s.plan).where(s.plan.c.id == plan_id).values(changes))

    def discard_plans(self, at: datetime) -> None:
        is_undo = exists().where(s.run.c.id == s.plan.c.run, s.run.c.reason == "undo")
        self._discard(and_(s.plan.c.state == "open", ~is_undo), at)

    def abandon_plans(self, at: datetime, but: str | None) -> None:
        is_of_dead = exists().where(s.run.c.id == s.plan.c.run, s.run.c.state == "abandoned")
        is_unsaid = or_(s.plan.c.hash == "", and_(s.plan.c.reasons == [], is_of_dead))
        is_left = or_(s.plan.c.state == "applying", and_(s.plan.c.state == "open", is_unsaid))
        self._discard(and_(is_left, s.plan.c.id != (but or "")), at)

    def _discard(self, which: ColumnElement[bool], at: datetime) -> None:
        plans = and_(s.plan.c.pair == self.pair, which)
        if ids := [row[0] for row in self._tuples(select(s.plan.c.id).where(plans))]:
            of_these = and_(one_of(s.operation.c.plan, ids), s.operation.c.state == "planned")
            self._writing.execute(update(s.operation).where(of_these).values(EMPTIED))
            self._writing.execute(update(s.plan).where(one_of(s.plan.c.id, ids)).values(state="discarded", ended_at=at))

    def insert_operations(self, rows: Sequence[Row]) -> None:
        if rows:
            insert_many(self._writing, s.operation, rows)
            self._added["operation"] += len(rows)

    def update_operations(self, rows: Sequence[Row]) -> None:
        if rows:
            update_many(self._writing, s.operation, rows)

    def operations(self, plan_id: str, state: str | None) -> Iterator[Row]:
        return operations_of(self.engine, plan_id, state)

    def planned(self, plan_id: str, kind: str, verb: Verb, side: Side, limit: int) -> list[Row]:
        return self._all(
            select(s.operation)
            .where(*_planned(plan_id, kind, verb, side))
            .order_by(s.operation.c.group_key, s.operation.c.id)
            .limit(limit)
        )

    def planned_creates(self, plan_id: str, kind: str, side: Side, groups: Collection[str]) -> list[Row]:
        return _by_id(
            self._all(
                select(s.operation).where(
                    *_planned(plan_id, kind, "create", side), one_of(s.operation.c.group_key, groups)
                )
            )
        )

    def open_operations(self) -> list[Row]:
        return self._all(_OPEN_OPERATIONS)

    def planned_sources(self, plan_id: str, kind: str, side: Side, ids: Collection[str]) -> set[str]:
        if not ids:
            return set()
        source = s.operation.c.source_id
        with self._reading() as tx:
            return set(tx.execute(select(source).where(*_creates(plan_id, kind, side), one_of(source, ids))).scalars())

    def planned_refs(self, plan_id: str, kind: str, side: Side, ref_kind: str, refs: Collection[str]) -> set[str]:
        ref = s.operation.c.refs["ids"][ref_kind].astext
        with self._reading() as tx:
            return set(tx.execute(select(ref).where(*_creates(plan_id, kind, side), one_of(ref, refs))).scalars())

    # --- conditions -------------------------------------------------------------------

    def _of(self, source: Any, kind: str) -> tuple[Any, ...]:
        return (source.c.pair == self.pair, source.c.kind == kind)

    def _seen(self, side: Side, kind: str, ids: Collection[str] | None = None) -> tuple[Any, ...]:
        at = (s.sighting.c.pair == self.pair, s.sighting.c.side == side, s.sighting.c.kind == kind)
        return at if ids is None else (*at, one_of(s.sighting.c.id, ids))


class _Listing:
    """A temporary table of ids."""

    def __init__(self, connection: Connection, rows: PostgresRows, side: Side, kind: str):
        self._connection = connection
        self._rows, self._side, self._kind = rows, side, kind

    def add(self, ids: Sequence[str]) -> None:
        if ids:
            self._connection.exec_driver_sql(
                "INSERT INTO listed SELECT unnest(%(ids)s::text[]) ON CONFLICT DO NOTHING", {"ids": list(ids)}
            )

    def missing(self) -> list[Address]:
        own_id, own_parent = _own(s.link, self._side, "id"), _own(s.link, self._side, "parent")
        seen = self._rows._seen(self._side, self._kind)
        found = self._connection.execute(
            select(own_id, own_parent)
            .where(*self._rows._of(s.link, self._kind))
            .where(own_id.not_in(select(_listed.c.id)))
            .where(~exists().where(*seen, s.sighting.c.id == own_id, s.sighting.c.is_deleted))
        )
        return sorted((Address(*row) for row in found), key=lambda each: each.id)


def find_plans(engine: Engine, beginning: str) -> list[Row]:
    """Two plans of any pair whose ids begin so, or as many as there are."""
    with engine.connect() as tx:
        found = tx.execute(select(s.plan).where(s.plan.c.id.startswith(beginning, autoescape=True)).limit(2))
        return [dict(row) for row in found.mappings()]


def in_order_of_work() -> tuple[ColumnElement[Any], ...]:
    """What a plan's operations are ordered by when they are applied."""
    position = case({kind: index for index, kind in enumerate(KINDS)}, value=s.operation.c.kind)
    is_delete = s.operation.c.verb == "delete"
    return (
        case((is_delete, 1), else_=0),
        case((is_delete, -position), else_=position),
        s.operation.c.verb,
        case((s.operation.c.side == Side.RIGHT, 0), else_=1),
        s.operation.c.group_key,
        s.operation.c.id,
    )


def operations_of(engine: Engine, plan_id: str, state: str | None = None) -> Iterator[Row]:
    """All operations of a plan in the order in which they are applied, some at a time."""
    query = select(s.operation).where(s.operation.c.plan == plan_id).order_by(*in_order_of_work())
    if state is not None:
        query = query.where(s.operation.c.state == state)
    with engine.connect().execution_options(yield_per=500) as connection:
        for row in connection.execute(query).mappings():
            yield dict(row)


# --- statements that every run asks; each is built once, since that costs more than to carry it out -------------


def _of_pair(source: Any, *, side: Any = None, kind: Any = None) -> tuple[Any, ...]:
    """Rows of the pair that is given, and of the ``kind`` that is given or named here; with ``side`` of that side."""
    found = (source.c.pair == bindparam("pair"), source.c.kind == (bindparam("kind") if kind is None else kind))
    return found if side is None else (*found, source.c.side == side)


def _is_given(of: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    return of == any_(bindparam(name, type_=ARRAY(of.type)))


_SIDE = bindparam("side", type_=Text)
_TOP_FEEDS = select(s.feed).where(s.feed.c.pair == bindparam("pair"), s.feed.c.parent == "")
_FEEDS = select(s.feed).where(*_of_pair(s.feed, side=_SIDE), _is_given(s.feed.c.parent, "parents"))
_VISITED_AHEAD = (
    select(s.feed.c.parent).where(*_of_pair(s.feed, side=_SIDE), s.feed.c.visited_at > bindparam("latest")).limit(1)
)
_DIRTY = select(s.dirty.c.side, s.dirty.c.kind, s.dirty.c.id, s.dirty.c.hints, s.dirty.c.heard_at).where(
    s.dirty.c.pair == bindparam("pair")
)
_SIGHTINGS = select(s.sighting).where(*_of_pair(s.sighting, side=_SIDE), _is_given(s.sighting.c.id, "ids"))
_UNMATCHED = (
    select(s.sighting)
    .where(
        *_of_pair(s.sighting, side=_SIDE),
        ~s.sighting.c.is_linked,
        s.sighting.c.state == "new",
        s.sighting.c.id > bindparam("after"),
    )
    .order_by(s.sighting.c.id)
    .limit(bindparam("limit", type_=Integer))
)
_RETIRED = select(s.sighting).where(*_of_pair(s.sighting, side=_SIDE), s.sighting.c.state == "retired")
_INTO = s.sighting.c.facts["merged_into"].astext
_MERGED_AWAY = select(s.sighting.c.id, _INTO).where(
    *_of_pair(s.sighting, side=_SIDE), s.sighting.c.is_deleted, _INTO.is_not(None)
)
_LINKS_BY_KIND = select(s.link.c.kind, func.count()).where(s.link.c.pair == bindparam("pair")).group_by(s.link.c.kind)
_HOLDS = select(s.hold).where(s.hold.c.pair == bindparam("pair"))
_OPEN_OPERATIONS = (
    select(s.operation)
    .where(s.operation.c.pair == bindparam("pair"), s.operation.c.state.in_(["intended", "sent"]))
    .order_by(s.operation.c.id)
)


@cache
def _links(side: Side) -> Any:
    return select(s.link).where(*_of_pair(s.link), _is_given(_own(s.link, side, "id"), "ids"))


@cache
def _counterparts(side: Side) -> Any:
    own_id, other_id = _own(s.link, side, "id"), _own(s.link, side.other, "id")
    return select(own_id, other_id).where(*_of_pair(s.link), _is_given(own_id, "ids"))


@cache
def _linked(side: Side) -> Any:
    statement, _, _ = _with_sightings(is_linked=False)
    return statement.where(_is_given(_own(s.link, side, "id"), "ids"))


@cache
def _unsettled(with_marks: bool) -> Any:
    statement, left, right = _with_sightings(is_linked=True)
    conditions: list[Any] = [left.c.id.is_not(None), right.c.id.is_not(None)]
    if with_marks:
        conditions.append(~s.link.c.is_marked)
    return (
        statement.where(s.link.c.id > bindparam("after"), or_(*conditions))
        .where(s.link.c.state != LinkState.DEAD)
        .where(or_(s.link.c.next_attempt_at.is_(None), s.link.c.next_attempt_at <= bindparam("at")))
        .order_by(s.link.c.id)
        .limit(bindparam("limit", type_=Integer))
    )


def _with_sightings(*, is_linked: bool) -> tuple[Any, Any, Any]:
    """Links with what was seen of both sides; with ``is_linked`` only sightings that know of their link."""
    left, right = s.sighting.alias("l"), s.sighting.alias("r")

    def seen(alias: Any, side: Side) -> Any:
        known = (alias.c.is_linked,) if is_linked else ()
        return and_(*_of_pair(alias, side=side), alias.c.id == _own(s.link, side, "id"), *known)

    statement = (
        select(s.link, *_labelled(left, "l_"), *_labelled(right, "r_"))
        .outerjoin(left, seen(left, Side.LEFT))
        .outerjoin(right, seen(right, Side.RIGHT))
        .where(*_of_pair(s.link))
    )
    return statement, left, right


@cache
def _stirs(with_marks: bool) -> Any:
    seen, review = s.sighting.c, s.match_review.c
    is_awake = or_(seen.is_linked, seen.is_deleted, seen.state.in_(["new", "retired"]))
    looks = [
        exists().where(*_of_pair(s.sighting), is_awake),
        exists().where(*_of_pair(s.match_review), review.answer.is_not(None)),
    ]
    if with_marks:
        looks.append(exists().where(*_of_pair(s.link), ~s.link.c.is_marked))
    return select(or_(*looks))


@cache
def _known_children(side: Side) -> Any:
    own_id, own_parent = _own(s.link, side, "id"), _own(s.link, side, "parent")
    linked = select(literal(0).label("turn"), own_id.label("id"), own_parent.label("parent"), literal(False)).where(
        *_of_pair(s.link), _is_given(own_parent, "parents")
    )
    seen = select(literal(1), s.sighting.c.id, s.sighting.c.parent, s.sighting.c.is_deleted).where(
        *_of_pair(s.sighting, side=side), _is_given(s.sighting.c.parent, "parents")
    )
    return union_all(linked, seen)


@cache
def _stranded(side: Side) -> Any:
    up = s.link.alias("up")
    own_id, own_parent = _own(s.link, side, "id"), _own(s.link, side, "parent")
    is_itself = _own(up, side, "facts")["merged_into"].astext.is_(None)
    is_below = exists().where(
        *_of_pair(up, kind=bindparam("above", type_=Text)), _own(up, side, "id") == own_parent, is_itself
    )  # fmt: skip
    statement = select(own_id).where(
        *_of_pair(s.link),
        s.link.c.state.in_([LinkState.IN_STEP, LinkState.PENDING]),
        own_parent.is_not(None),
        ~is_below,
    )
    return statement.order_by(own_id).limit(bindparam("limit", type_=Integer))


@cache
def _parents(side: Side, child: str, bounds: frozenset[str], *, is_going_on: bool, is_told: bool) -> Any:
    """``bounds`` are those of the arguments of ``Rows.parents`` that are given; ``is_going_on`` after a place."""
    kind = "contact" if child == "employment" else "deal"
    own_id, facts = _own(s.link, side, "id"), _own(s.link, side, "facts")
    gone = exists().where(
        *_of_pair(s.sighting, side=side, kind=kind), s.sighting.c.id == own_id, s.sighting.c.is_deleted
    )
    linked = select(own_id.label("id"), facts["locked"].has_key("*").label("is_closed")).where(
        *_of_pair(s.link, kind=kind), ~gone
    )
    planned = select(s.operation.c.source_id, literal(False)).where(*_creates(bindparam("plan"), kind, side.other))
    known, feed = linked.union(planned).subquery(), s.feed.c
    is_own = and_(*_of_pair(s.feed, side=side, kind=child), feed.parent == known.c.id)
    below, seen = s.link.alias("below"), s.sighting.alias("seen")
    has_children = or_(
        exists().where(*_of_pair(below, kind=child), _own(below, side, "parent") == known.c.id),
        exists().where(*_of_pair(seen, side=side, kind=child), seen.c.parent == known.c.id),
    )
    is_due = func.coalesce(feed.hints > feed.heard, False)
    visited_at = case((is_due, _EPOCH), else_=func.coalesce(feed.visited_at, _EPOCH))
    order = (and_(known.c.is_closed, ~is_due), visited_at, known.c.id)
    statement = select(
        known.c.id, feed.watermark, known.c.is_closed, has_children.label("has_children"),
        func.coalesce(feed.hints, 0).label("hints"), is_due.label("is_due"), visited_at.label("visited_at"),
    ).outerjoin(s.feed, is_own)  # fmt: skip
    if "visited_before" in bounds:
        statement = statement.where(or_(feed.visited_at.is_(None), feed.visited_at < bindparam("visited_before")))
    if "closed_before" in bounds:
        before = or_(feed.visited_at.is_(None), feed.visited_at < bindparam("closed_before"))
        statement = statement.where(or_(~known.c.is_closed, is_due, before))
    if "among" in bounds:
        statement = statement.where(_is_given(known.c.id, "among"))
    if is_told:
        statement = statement.where(or_(is_due, feed.parent.is_(None)))
    if is_going_on:
        typed = {"is_late": Boolean(), "visited_at": feed.visited_at.type, "id": Text()}
        statement = statement.where(tuple_(*order) > tuple_(*(bindparam(name, type_=typed[name]) for name in typed)))
    return statement.order_by(*order, known.c.is_closed).limit(bindparam("limit", type_=Integer))


_LINK = tuple(each.name for each in s.link.c)
_SIGHTING = tuple(each.name for each in s.sighting.c)
_SIGHTED_ID = _SIGHTING.index("id")


def _fetched(tx: Connection, statement: Any, given: Mapping[str, object] | None = None) -> list[Row]:
    result = tx.execute(statement, given)
    names = tuple(result.keys())
    return [dict(zip(names, row, strict=True)) for row in result]


def _sighted(row: tuple[Any, ...]) -> Row | None:
    return dict(zip(_SIGHTING, row, strict=True)) if row[_SIGHTED_ID] is not None else None


def _own(source: Any, side: Side, name: str) -> Any:
    return source.c[f"{side}_{name}"]


def _labelled(source: Any, prefix: str) -> list[Any]:
    return [each.label(prefix + each.name) for each in source.c]


def _overlaps(column_: Any, keys: Collection[str]) -> Any:
    return column_.op("&&")(sql_cast(list(keys), ARRAY(Text)))


def _creates(plan_id: Any, kind: str, side: Side) -> tuple[Any, ...]:
    operation = s.operation.c
    return (operation.plan == plan_id, operation.kind == kind, operation.verb == "create", operation.side == side)


def _planned(plan_id: str, kind: str, verb: Verb, side: Side) -> tuple[Any, ...]:
    operation = s.operation.c
    return (
        operation.plan == plan_id, operation.kind == kind, operation.verb == verb, operation.side == side,
        operation.state == "planned",
    )  # fmt: skip


def _by_id(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["id"])


def _addresses(rows: Sequence[Row]) -> list[Address]:
    found = (Address(row["id"], row["parent"]) for row in rows)
    return sorted(found, key=lambda each: (each.id, each.parent or ""))
