"""Forgetting: one person's values, at once and for good, and everybody's history by age.

A person is a contact: her link, the records that name her (employments, prospects), and what the
history says of all these. What the sync compares becomes unreadable (``mapping.hashed``); what
people read becomes ``(erased)``. Ids stay: without them the sync would make her a second time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Engine,
    Table,
    Text,
    and_,
    cast,
    delete,
    exists,
    func,
    null,
    or_,
    select,
    update,
)

from syncd.core.mapping import ERASED_VALUE, freeze, hashed, thaw
from syncd.core.match import address_key
from syncd.core.merge import Word
from syncd.core.model import FIELDS, RELATIONS, Hashed, Json, LinkState, Side
from syncd.core.undo import REFS, is_own_hold
from syncd.core.why import keep_word, recall_word
from syncd.errors import NotFoundError, SyncdError
from syncd.state import deliveries
from syncd.state import schema as s
from syncd.state.bulk import one_of
from syncd.state.lease import Lease, prove
from syncd.state.rows import EMPTIED

#: What history keeps of a value: that there was one.
_GONE: Final = freeze({"": Hashed("", ())})[""]
#: So many rows are looked at, or deleted, in one transaction.
BATCH: Final = 2_000

Ids = frozenset[str]


def pairs_of(engine: Engine, tenant: str, name: str | None = None) -> list[str]:
    """The pairs that a tenant has or had, whether or not a file names them still. Raises NotFoundError."""
    with engine.connect() as tx:
        mine = select(s.pair.c.id).where(s.pair.c.tenant == tenant).order_by(s.pair.c.id)
        found = list(tx.execute(mine if name is None else mine.where(s.pair.c.name == name)).scalars())
    if not found:
        raise NotFoundError(f"nothing has run yet for {tenant}{f'/{name}' if name else ''}")
    return found


# --- one person -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Person:
    """One contact by all the ids that lead to it, and the records that name it, by kind and side."""

    pair: str
    ids: Mapping[str, Mapping[Side, Ids]]

    def of(self, kind: str, side: Side) -> list[str]:
        return sorted(self.ids.get(kind, {}).get(side, frozenset()))

    def covers(self, table: Table) -> ColumnElement[bool]:
        """Rows with ``left_id`` and ``right_id`` that are about this person."""
        each = (
            and_(table.c.kind == kind, one_of(table.c[f"{side}_id"], self.of(kind, side)))
            for kind in self.ids
            for side in Side
        )
        return and_(table.c.pair == self.pair, or_(*each))

    def covers_side(self, table: Table, column: str) -> ColumnElement[bool]:
        """Rows of one side each that are about this person."""
        each = (
            and_(table.c.kind == kind, table.c.side == side, one_of(table.c[column], self.of(kind, side)))
            for kind in self.ids
            for side in Side
        )
        return and_(table.c.pair == self.pair, or_(*each))


def erase(engine: Engine, lease: Lease, ref: str, at: datetime, *, is_dry: bool = False) -> dict[str, int]:
    """Make a person's values unreadable, all in one transaction; how many rows of each table that changed.

    ``ref`` is an e-mail address, or an id as ``propstreet:ID`` or ``NAMESPACE:ID``, with or without
    ``contact/``. A second time changes nothing. Raises NotFoundError for somebody of whom nothing is
    known, and SyncdError if an address names several, or while writes of a dead run are not settled.
    """
    with engine.connect() as tx, tx.begin() as transaction:
        prove(tx, lease)
        person = _person(tx, lease.pair, ref)
        if _is_under_way(tx, person):
            raise SyncdError(f"{lease.pair}: writes of a run that died are not settled; let it run once, then erase")
        counts = Counter(
            {
                "plan": _discard_plans(tx, person, at),
                "operation": _erase_operations(tx, person),
                "change_log": _erase_changes(tx, person),
                "conflict": _erase_conflicts(tx, person),
                "hold": _erase_holds(tx, person),
            }
        )
        told = _told(tx, person)
        counts["link"] = _erase_links(tx, person, told)
        counts["sighting"] = _erase_sightings(tx, person, told)
        if is_dry:
            transaction.rollback()
    return dict(counts)


def _person(tx: Connection, pair: str, ref: str) -> Person:
    contact = {side: set(ids) for side, ids in _named(tx, pair, ref).items()}
    _widen(tx, pair, contact)
    if not _is_known(tx, Person(pair, {"contact": {side: frozenset(ids) for side, ids in contact.items()}})):
        raise NotFoundError(f"{pair}: nothing is known of this person")
    found = {"contact": {side: frozenset(ids) for side, ids in contact.items()}}
    for kind in sorted(RELATIONS):
        found[kind] = _naming(tx, pair, kind, found["contact"])
    return Person(pair, found)


def _named(tx: Connection, pair: str, ref: str) -> dict[Side, Ids]:
    """The contact's ids that a ref names by itself."""
    if "@" in ref:
        return _addressed(tx, pair, ref.strip().lower())
    kind, _, rest = ref.rpartition("/")
    space, _, id_ = rest.partition(":")
    row = tx.execute(select(s.pair.c.namespace, s.pair.c.connector, s.pair.c.name).where(s.pair.c.id == pair)).one()
    sides = {"propstreet": Side.LEFT, **dict.fromkeys(row, Side.RIGHT)}
    if kind not in ("", "contact") or not id_ or space not in sides:
        raise NotFoundError(
            f"{pair}: a person is named by an e-mail address, by propstreet:ID or by {row.namespace}:ID"
        )
    return {sides[space]: frozenset({id_})}


def _addressed(tx: Connection, pair: str, address: str) -> dict[Side, Ids]:
    """By the keys of what is linked or seen; and by the history, for those whose records are gone already."""
    keys = cast([address_key(address, pair)], ARRAY(Text))
    ids: dict[Side, set[str]] = {side: set() for side in Side}
    for side in Side:
        own_id, own_keys = s.link.c[f"{side}_id"], s.link.c[f"{side}_keys"]
        linked = select(own_id).where(s.link.c.pair == pair, s.link.c.kind == "contact", own_keys.op("&&")(keys))
        seen = select(s.sighting.c.id).where(
            s.sighting.c.pair == pair, s.sighting.c.kind == "contact", s.sighting.c.side == side,
            s.sighting.c["keys"].op("&&")(keys),
        )  # fmt: skip
        ids[side] |= {row[0] for row in tx.execute(linked.union(seen))}
    for table, columns in ((s.change_log, ("old", "new")), (s.conflict, ("base", "left_value", "right_value"))):
        texts = [func.lower(cast(table.c[name], Text)) for name in columns]
        quoted = f'"{address}"'
        found = tx.execute(
            select(table.c.left_id, table.c.right_id).where(
                table.c.pair == pair, table.c.kind == "contact", one_of(table.c.field, ("email", "other_emails")),
                or_(*(each.contains(quoted, autoescape=True) for each in texts)),
            )
        )  # fmt: skip
        for left_id, right_id in found:
            ids[Side.LEFT] |= {left_id} - {None}
            ids[Side.RIGHT] |= {right_id} - {None}
    _refuse_several(tx, pair, ids)
    return {side: frozenset(found) for side, found in ids.items()}


def _refuse_several(tx: Connection, pair: str, ids: Mapping[Side, set[str]]) -> None:
    """An address that several have does not say who is meant; nor does one that another had before."""
    crm = tx.execute(select(s.pair.c.namespace).where(s.pair.c.id == pair)).scalar_one()
    for side, space in ((Side.LEFT, "propstreet"), (Side.RIGHT, crm)):
        own_id = s.link.c[f"{side}_id"]
        linked = select(own_id).where(s.link.c.pair == pair, s.link.c.kind == "contact", one_of(own_id, ids[side]))
        seen = select(s.sighting.c.id).where(
            s.sighting.c.pair == pair, s.sighting.c.kind == "contact", s.sighting.c.side == side,
            one_of(s.sighting.c.id, ids[side]), ~s.sighting.c.is_deleted,
        )  # fmt: skip
        found = sorted(tx.execute(linked.union(seen)).scalars())
        if len(found) > 1:
            named = ", ".join(f"{space}:{id_}" for id_ in found)
            raise SyncdError(f"{pair}: {len(found)} contacts have or had this address; name each by its id: {named}")


def _widen(tx: Connection, pair: str, ids: dict[Side, set[str]]) -> None:
    """Follow links, merges and the history to all ids of the same person.

    What only the history ties to her counts unless it is linked to somebody else by now.
    """
    before = -1
    for side in Side:
        ids.setdefault(side, set())
    while before != (before := sum(map(len, ids.values()))):
        for side in Side:
            own, other = f"{side}_id", f"{side.other}_id"
            linked = select(s.link.c[other]).where(
                s.link.c.pair == pair, s.link.c.kind == "contact", one_of(s.link.c[own], ids[side])
            )
            ids[side.other] |= set(tx.execute(linked).scalars())
            taken = exists().where(
                s.link.c.pair == pair, s.link.c.kind == "contact", s.link.c[other] == s.change_log.c[other]
            )
            logged = select(s.change_log.c[other]).where(
                s.change_log.c.pair == pair, s.change_log.c.kind == "contact",
                one_of(s.change_log.c[own], ids[side]), s.change_log.c[other].is_not(None), ~taken,
            )  # fmt: skip
            ids[side.other] |= set(tx.execute(logged.distinct()).scalars())
            merged = select(s.sighting.c.id).where(
                s.sighting.c.pair == pair, s.sighting.c.kind == "contact", s.sighting.c.side == side,
                one_of(s.sighting.c.facts["merged_into"].astext, ids[side]),
            )  # fmt: skip
            ids[side] |= set(tx.execute(merged).scalars())


def _naming(tx: Connection, pair: str, kind: str, contact: Mapping[Side, Ids]) -> dict[Side, Ids]:
    """Records of one kind, on both sides, that name the contact: linked, seen, or in the history."""
    found: dict[Side, set[str]] = {side: set() for side in Side}
    for side in Side:
        keys = cast([f"ref:contact={id_}" for id_ in sorted(contact[side])], ARRAY(Text))
        linked = select(s.link.c.left_id, s.link.c.right_id).where(
            s.link.c.pair == pair, s.link.c.kind == kind, s.link.c[f"{side}_keys"].op("&&")(keys)
        )
        logged = select(s.change_log.c.left_id, s.change_log.c.right_id).where(
            s.change_log.c.pair == pair, s.change_log.c.kind == kind,
            one_of(s.change_log.c.person, [f"{side}:{id_}" for id_ in contact[side]]),
        )  # fmt: skip
        for left_id, right_id in tx.execute(linked.union(logged)):
            found[Side.LEFT] |= {left_id} - {None}
            found[Side.RIGHT] |= {right_id} - {None}
        seen = select(s.sighting.c.id).where(
            s.sighting.c.pair == pair, s.sighting.c.kind == kind, s.sighting.c.side == side,
            s.sighting.c["keys"].op("&&")(keys),
        )  # fmt: skip
        found[side] |= set(tx.execute(seen).scalars())
    return {side: frozenset(ids) for side, ids in found.items()}


def _is_known(tx: Connection, person: Person) -> bool:
    places = (
        select(s.link.c.id).where(person.covers(s.link)),
        select(s.change_log.c.id).where(person.covers(s.change_log)),
        select(s.conflict.c.id).where(person.covers(s.conflict)),
        select(s.sighting.c.id).where(person.covers_side(s.sighting, "id")),
    )
    return any(tx.execute(each.limit(1)).first() is not None for each in places)


# --- what is written down -------------------------------------------------------------------


def _operations(person: Person) -> ColumnElement[bool]:
    """Operations that write to her records, read from them, or make something that names her."""
    op = s.operation.c
    each = [
        or_(
            and_(op.kind == kind, op.side == side, one_of(op.target_id, person.of(kind, side))),
            and_(op.kind == kind, op.side == side.other, one_of(op.source_id, person.of(kind, side))),
        )
        for kind in person.ids
        for side in Side
    ]
    each += [
        and_(op.side == side.other, one_of(op.refs["ids"]["contact"].astext, person.of("contact", side)))
        for side in Side
    ]
    return and_(op.pair == person.pair, or_(*each))


def _is_under_way(tx: Connection, person: Person) -> bool:
    under_way = select(s.operation.c.id).where(_operations(person), s.operation.c.state.in_(("intended", "sent")))
    return tx.execute(under_way.limit(1)).first() is not None


def _discard_plans(tx: Connection, person: Person, at: datetime) -> int:
    """Plans that wait and would touch her are made anew by the next run; what halted for one goes on to make it."""
    touching = select(s.operation.c.plan).where(_operations(person), s.operation.c.state == "planned")
    plans = list(
        tx.execute(
            update(s.plan)
            .where(s.plan.c.id.in_(touching), s.plan.c.state.in_(("open", "applying")))
            .values(state="discarded", ended_at=at)
            .returning(s.plan.c.id)
        ).scalars()
    )
    # What somebody else's write held whose answer is unknown is needed still.
    unsent = and_(one_of(s.operation.c.plan, plans), s.operation.c.state == "planned")
    tx.execute(update(s.operation).where(unsent).values(EMPTIED))
    tx.execute(update(s.pair).where(one_of(s.pair.c.halted_plan, plans)).values(halted_plan=None, halted_reason=None))
    return len(plans)


def _erase_operations(tx: Connection, person: Person) -> int:
    holds = or_(*(s.operation.c[name] != cast(value, s.operation.c[name].type) for name, value in EMPTIED.items()))
    changed = tx.execute(update(s.operation).where(_operations(person), holds).values(EMPTIED)).rowcount
    told = and_(s.operation.c.state == "failed", s.operation.c.outcome != ERASED_VALUE)
    tx.execute(update(s.operation).where(_operations(person), told).values(outcome=ERASED_VALUE))
    return changed


def _erase_changes(tx: Connection, person: Person) -> int:
    """All values; what a relation referred to are ids, which stay."""
    log, changed = s.change_log, 0
    for row in tx.execute(select(log).where(person.covers(log), log.c.field != REFS)).all():
        values = {name: _GONE for name in ("old", "new", "stored") if row._mapping[name] is not None}
        changed += _change(tx, log, log.c.id == row.id, row._mapping, {**values, "because": None})
    return changed


def _erase_conflicts(tx: Connection, person: Person) -> int:
    """Both values, and who moved them. A value that a person chose and that is not written yet is forgotten too."""
    table, changed = s.conflict, 0
    for row in tx.execute(select(table).where(person.covers(table), table.c.field != "")).all():
        held = row._mapping
        shown = {name: ERASED_VALUE for name in ("base", "left_value", "right_value") if held[name] is not None}
        values = {**shown, **dict.fromkeys(("chosen", "left_by", "right_by"))}
        changed += _change(tx, table, table.c.id == row.id, held, values)
    return changed


def _erase_holds(tx: Connection, person: Person) -> int:
    """What a person wrote; an undo's own reason names a run and is read again."""
    changed, table = 0, s.hold
    for row in tx.execute(select(table).where(person.covers_side(table, "record_id"))).all():
        where = and_(*(column == row._mapping[column.name] for column in table.primary_key))
        values = {} if is_own_hold(row.reason) else {"reason": ""}
        changed += _change(tx, table, where, row._mapping, values)
    return changed


# --- what is compared -----------------------------------------------------------------------


def _told(tx: Connection, person: Person) -> frozenset[str]:
    """Every text that is still known of her, lower case: connectors' notes may hold one again."""
    bases = tx.execute(select(s.link.c.left_base, s.link.c.right_base).where(person.covers(s.link)))
    stored = [half for halves in bases for half in halves]
    stored += tx.execute(select(s.sighting.c["values"]).where(person.covers_side(s.sighting, "id"))).scalars().all()
    found: set[str] = set()
    for values in stored:
        for value in thaw(values).values():
            found |= {value.lower()} if isinstance(value, str) else set()
            found |= {each.lower() for each in value} if isinstance(value, frozenset) else set()
    return frozenset(found)


def _erase_links(tx: Connection, person: Person, told: frozenset[str]) -> int:
    changed = 0
    for row in tx.execute(select(s.link).where(person.covers(s.link))).all():
        held = row._mapping
        values: dict[str, Any] = {"settled": _unseen(held["settled"])}
        for side in Side:
            values[f"{side}_base"] = _hashed(row.kind, held[f"{side}_base"], person.pair)
            values[f"{side}_facts"] = _without(held[f"{side}_facts"], told)
        if row.state == LinkState.DEAD:
            values["reason"] = ERASED_VALUE
        changed += _change(tx, s.link, s.link.c.id == row.id, held, values)
    return changed


def _unseen(settled: Mapping[str, Json]) -> dict[str, Json]:
    """A person's answers without what was shown; who chose a third value that is not written yet is asked again."""
    words = {name: recall_word(kept) for name, kept in settled.items()}
    return {name: keep_word(Word(word.answer)) for name, word in words.items() if isinstance(word.answer, Side)}


def _erase_sightings(tx: Connection, person: Person, told: frozenset[str]) -> int:
    changed, table = 0, s.sighting
    for row in tx.execute(select(table).where(person.covers_side(table, "id"))).all():
        held = row._mapping
        values: dict[str, Any] = {
            "values": _hashed(row.kind, held["values"], person.pair),
            "facts": _without(held["facts"], told),
        }
        if row.state == "dead":
            values["reason"] = ERASED_VALUE
        where = and_(*(column == held[column.name] for column in table.primary_key))
        changed += _change(tx, table, where, held, values)
    return changed


def _change(
    tx: Connection, table: Table, where: ColumnElement[bool], held: Mapping[Any, Any], values: Mapping[str, Any]
) -> int:
    """Write what differs; 1 if anything does."""
    news = {name: value for name, value in values.items() if held[name] != value}
    if news:
        tx.execute(update(table).where(where).values({name: null() if v is None else v for name, v in news.items()}))
    return int(bool(news))


def _hashed(kind: str, stored: Mapping[str, Json], salt: str) -> Json:
    return freeze({name: hashed(FIELDS[kind][name], value, salt) for name, value in thaw(stored).items()})


def _without(facts: Mapping[str, Any], told: frozenset[str]) -> Json:
    """What a connector asked to be given back, but for texts that are her values."""
    opaque = facts.get("opaque") or {}
    kept = {name: each for name, each in opaque.items() if not (isinstance(each, str) and each.lower() in told)}
    return {**facts, "opaque": kept} if kept != opaque else facts


# --- everybody, by age ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what happened is remembered, where nothing needs it any more."""

    history: timedelta = timedelta(days=365)
    """The change log, settled conflicts, reviews that closed without an answer."""
    plans: timedelta = timedelta(days=30)
    """Plans that ended, with their operations."""
    runs: timedelta = timedelta(days=90)
    """Runs that no plan and no change in the history names."""


def prune(engine: Engine, retention: Retention, at: datetime, *, is_dry: bool = False) -> dict[str, int]:
    """Forget what is older than the tenants' history is to be; how many rows of each table.

    Kept whatever their age: what waits for a person or is under way, answers of a person, holds, and
    of each field of a record that is linked still the latest change, which says why its value is
    what it is. Bounded transactions, so that a run is never kept waiting long.
    """
    history = at - retention.history
    sorts: tuple[tuple[Table, ColumnElement[bool]], ...] = (
        (s.change_log, and_(s.change_log.c.at < history, _is_superseded())),
        (s.conflict, s.conflict.c.settled_at < history),
        (s.match_review, and_(s.match_review.c.answered_at < history, s.match_review.c.answer.is_(None))),
        (s.operation, s.operation.c.plan.in_(_over_plans(at - retention.plans))),
        (s.plan, s.plan.c.id.in_(_over_plans(at - retention.plans))),
        (s.run, and_(s.run.c.finished_at < at - retention.runs, *_is_unneeded_run())),
    )
    heard = deliveries.prune(engine, at, is_dry=is_dry)
    if is_dry:
        with engine.connect() as tx:
            return heard | {
                table.name: tx.execute(select(func.count()).select_from(table).where(old)).scalar_one()
                for table, old in sorts
            }
    return {table.name: _prune(engine, table, old) for table, old in sorts} | heard


def _prune(engine: Engine, table: Table, is_old: ColumnElement[bool]) -> int:
    """Delete by key, some at a time; each row is looked at once."""
    key = next(iter(table.primary_key))
    count, after = 0, None
    while True:
        with engine.begin() as tx:
            page = select(key).where(is_old).order_by(key).limit(BATCH)
            ids = tx.execute(page if after is None else page.where(key > after)).scalars().all()
            if not ids:
                return count
            count += tx.execute(delete(table).where(one_of(key, ids))).rowcount
            after = ids[-1]


def _is_superseded() -> ColumnElement[bool]:
    """A later change of the same field of the same record there is, or no such record is linked any more."""
    log, later = s.change_log, s.change_log.alias("later")
    same_record = or_(
        *(and_(log.c.side == side, later.c[f"{side}_id"] == log.c[f"{side}_id"], later.c.side == side) for side in Side)
    )
    is_later = exists().where(
        later.c.pair == log.c.pair, later.c.kind == log.c.kind, later.c.field == log.c.field, later.c.id > log.c.id,
        same_record,
    )  # fmt: skip
    is_linked = exists().where(
        s.link.c.pair == log.c.pair, s.link.c.kind == log.c.kind,
        or_(s.link.c.left_id == log.c.left_id, s.link.c.right_id == log.c.right_id),
    )  # fmt: skip
    return or_(is_later, ~is_linked)


def _over_plans(before: datetime) -> Any:
    """Plans that ended before, none of whose operations may still have an effect."""
    under_way = exists().where(
        s.operation.c.plan == s.plan.c.id, s.operation.c.state.in_(("intended", "sent"))
    )  # fmt: skip
    ended = func.coalesce(s.plan.c.ended_at, s.plan.c.made_at)
    is_over = s.plan.c.state.in_(("applied", "discarded", "refused"))
    return select(s.plan.c.id).where(is_over, ended < before, ~under_way).correlate(None)


def _is_unneeded_run() -> tuple[ColumnElement[bool], ...]:
    """Not the last one of its pair, nor a backfill that the next one goes on from, nor named by what is kept."""
    later = s.run.alias("later")
    is_later = and_(later.c.pair == s.run.c.pair, later.c.started_at > s.run.c.started_at)
    is_followed = exists().where(is_later)
    is_redone = exists().where(is_later, later.c.reason == "backfill", later.c.state == "done")
    return (
        s.run.c.state != "running",
        is_followed,
        or_(s.run.c.reason != "backfill", is_redone),
        ~exists().where(s.plan.c.run == s.run.c.id),
        ~exists().where(s.change_log.c.run == s.run.c.id),
    )
