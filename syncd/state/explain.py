"""What is known of one record or one field, and why: for a person who asks.

Nothing is recomputed except one thing: the decision behind each write is made again from what was
kept of it (``core.why``), so that an explanation that no longer explains is seen. Values are in
these documents because they were asked for; they belong on no log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, and_, or_, select

from syncd.core.mapping import show, thaw
from syncd.core.merge import Because, Chosen, Step
from syncd.core.model import FIELDS, KINDS, RELATIONS, Json, Side, Value, is_safe_id
from syncd.core.why import Said, again, recall
from syncd.errors import NotFoundError
from syncd.state import schema as s
from syncd.state.desk import Scope, conflict_document, review_document

NAMES: Final = {Side.LEFT: "propstreet", Side.RIGHT: "crm"}

#: What a rule means, for somebody who never read a line of this.
RULES: Final = {
    "moved in propstreet": "it was changed in Propstreet, and nobody had changed it in {crm}",
    "moved in crm": "it was changed in {crm}, and nobody had changed it in Propstreet",
    "newest": "both sides had changed it; the tenant's rule is that the newest change wins",
    "propstreet": "both sides had changed it; the tenant's rule is that Propstreet wins",
    "crm": "both sides had changed it; the tenant's rule is that {crm} wins",
    "if_empty": "it was empty there; the tenant's rule is to fill it, and never to change it",
    "one way": "it travels one way only, by the tenant's rule or because the other side cannot take it",
    "one way, restored": "it travels one way only; what was typed over it was put back",
    "set merged": "what either side added was added, what either side took off was taken off",
    "created": "the record was made there with what its counterpart held",
    "a person's word": "both sides had changed it, and a person decided",
    "undo": "a person took a run back: this stood there before it",
}
REPLAYED: Final = {
    "same": "decided again from what was kept of it, it comes out the same",
    "differs": "decided again from what was kept of it, it comes out OTHERWISE; please report this",
    "unknown": "nothing is kept to decide it again",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A record of one pair: where it stands, and both ids as far as they are known."""

    pair: str
    kind: str
    side: Side
    id: str

    def __str__(self) -> str:
        tenant, _, pair = self.pair.partition("/")
        system = "propstreet" if self.side is Side.LEFT else pair
        return f"{self.kind}/{system}:{self.id} of {tenant}/{pair}"


# --- which record is meant ----------------------------------------------------------------


def find(engine: Engine, scope: Scope, ref: str) -> Place:
    """The one record that ``[KIND/][SYSTEM:]ID`` names. Raises NotFoundError naming what was looked for.

    A relation may lie in a record's own row and so have its id: without a kind the record is meant.
    """
    found = find_all(engine, scope, ref)
    if len(found) > 1:
        raise NotFoundError(f"{ref!r} may be {' or '.join(map(str, found))}; name kind, system, tenant or pair")
    return found[0]


def find_all(engine: Engine, scope: Scope, ref: str) -> list[Place]:
    """Every record that a ref may mean, at least one. Raises NotFoundError naming what was looked for."""
    kind, system, id_ = _taken_apart(engine, scope, ref)
    with engine.connect() as tx:
        pairs = tx.execute(select(s.pair).where(scope.covers(s.pair.c.id)).order_by(s.pair.c.id)).all()
        found = [place for row in pairs for place in _known(tx, row, kind, system, id_)]
    records = [place for place in found if place.kind not in RELATIONS]
    if len(records) == 1 and {(each.pair, each.side) for each in found} == {(records[0].pair, records[0].side)}:
        found = records
    if not found:
        raise NotFoundError(f"no record {ref!r} is known{_within(scope)}; a REF looks like contact/hubspot:4711")
    return found


def _within(scope: Scope) -> str:
    return f" of {'/'.join(part for part in (scope.tenant, scope.pair) if part)}" if scope.tenant else ""


def _taken_apart(engine: Engine, scope: Scope, ref: str) -> tuple[str | None, str | None, str]:
    """Kind, system and id. Ids may hold colons, so a prefix is a system only if one is called so."""
    kind, _, rest = ref.partition("/")
    if kind not in KINDS:
        kind, rest = "", ref
    system, colon, id_ = rest.partition(":")
    with engine.connect() as tx:
        pairs = tx.execute(select(s.pair).where(scope.covers(s.pair.c.id))).all()
    known = {"propstreet", "crm", *(name for row in pairs for name in (row.name, row.namespace, row.connector))}
    if not colon or system not in known:
        system, id_ = "", rest
    if not is_safe_id(id_):
        raise NotFoundError(f"{ref!r} is no REF; one looks like contact/hubspot:4711, propstreet:88 or 4711")
    return kind or None, system or None, id_


def _known(tx: Connection, pair: Row[Any], kind: str | None, system: str | None, id_: str) -> list[Place]:
    """The records of one pair that may be meant, those that are gone and only remembered included."""
    sides = [
        side
        for side in Side
        if system is None or system in (("propstreet",) if side is Side.LEFT else (
            "crm", pair.name, pair.namespace, pair.connector))
    ]  # fmt: skip
    found: set[tuple[str, Side]] = set()
    for side in sides:
        own = f"{side}_id"
        for table in (s.link, s.change_log, s.conflict):
            query = select(table.c.kind).where(table.c.pair == pair.id, table.c.kind.in_(KINDS), table.c[own] == id_)
            found |= {(each, side) for each in tx.execute(query.distinct()).scalars()}
        at = (s.sighting.c.pair == pair.id, s.sighting.c.side == side, s.sighting.c.kind.in_(KINDS))
        seen = select(s.sighting.c.kind).where(*at, s.sighting.c.id == id_)
        found |= {(each, side) for each in tx.execute(seen).scalars()}
    return [
        Place(pair.id, of, side, id_)
        for of, side in sorted(found, key=lambda each: (KINDS.index(each[0]), each[1]))
        if kind is None or kind == of
    ]


# --- a record -----------------------------------------------------------------------------


def record(engine: Engine, place: Place) -> dict[str, Json]:
    """A record with its counterpart: how it stands, each field with its last write, and all that was done."""
    with engine.connect() as tx:
        seen = _look(tx, place)
        history = _history(tx, seen)
        conflicts = _conflicts(tx, seen)
    open_ = {each["field"]: each["id"] for each in conflicts if each["settled_at"] is None}
    latest = {str(each["field"]): each for each in history if each["field"]}
    fields: dict[str, Json] = {}
    for name in seen.fields():
        fields[name] = {**seen.field(name), "conflict": open_.get(name), "last_write": latest.get(name)}
    return {
        **seen.head(),
        "fields": fields,
        "conflicts": conflicts,
        "history": history,
    }


def field(engine: Engine, place: Place, name: str) -> dict[str, Json]:
    """One field of a record: both sides now, and how the last write of it was decided. Raises NotFoundError."""
    if name not in FIELDS[place.kind]:
        raise NotFoundError(f"a {place.kind} has no field {name!r}; it has {', '.join(FIELDS[place.kind])}")
    with engine.connect() as tx:
        seen = _look(tx, place)
        rows = [row for row in _log_rows(tx, seen) if row.field == name]
        conflicts = [each for each in _conflicts(tx, seen) if each["field"] == name]
        last = _write(tx, rows[-1]) if rows else None
        history = [_entry(row) for row in rows]
    return {
        **seen.head(),
        "field": name,
        # A side is here what it says of the field, so its record's id stands with that.
        **{NAMES[side]: {"id": seen.id(side), **seen.told(side, name)} for side in Side},
        "last_write": last,
        "conflicts": conflicts,
        "history": history,
    }


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the tables hold of a record and of what it is linked to."""

    place: Place
    link: Row[Any] | None
    sightings: Mapping[Side, Row[Any]]
    review: dict[str, Json] | None
    apart: tuple[str, ...]
    holds: Mapping[Side, Row[Any]]
    pair: Row[Any]

    def id(self, side: Side) -> str | None:
        if self.link is not None:
            return str(self.link._mapping[f"{side}_id"])
        return self.place.id if side is self.place.side else None

    def base(self, side: Side) -> Mapping[str, Json]:
        return self.link._mapping[f"{side}_base"] if self.link is not None else {}

    def values(self, side: Side) -> Mapping[str, Json]:
        """As last seen: from the inbox, or from the base if nothing was seen to differ from it."""
        row = self.sightings.get(side)
        return {**self.base(side), **row._mapping["values"]} if row is not None else self.base(side)

    def fields(self) -> list[str]:
        held = {name for side in Side for name in (*self.values(side), *self.base(side))}
        return [name for name in FIELDS[self.place.kind] if name in held]

    def field(self, name: str) -> dict[str, Json]:
        return {NAMES[side]: self.told(side, name) for side in Side}

    def told(self, side: Side, name: str) -> dict[str, Json]:
        """What one side says of a field, and what it said when both were last in step."""
        return {
            "value": _shown(self.values(side).get(name)),
            "base": _shown(self.base(side).get(name)),
            "is_told": name in self.values(side),
        }

    def head(self) -> dict[str, Json]:
        tenant, _, pair = self.place.pair.partition("/")
        alone = self.sightings.get(self.place.side) if self.link is None else None
        link = self.link
        return {
            "tenant": tenant,
            "pair": pair,
            "connector": self.pair.connector,
            "kind": self.place.kind,
            "propstreet": self.id(Side.LEFT),
            "crm": self.id(Side.RIGHT),
            "linked": {"why": link.why, "at": link.linked_at.isoformat()} if link is not None else None,
            "state": link.state if link is not None else alone.state if alone is not None else "gone",
            "reason": link.reason if link is not None else alone.reason if alone is not None else "",
            "inbox": {NAMES[side]: _inbox(row) for side, row in self.sightings.items()},
            "changed": {NAMES[side]: self._changed(side) for side in Side if self.id(side) is not None},
            "holds": {
                NAMES[side]: {"reason": row.reason, "at": row.held_at.isoformat()} for side, row in self.holds.items()
            },
            "review": self.review,
            "kept_apart_from": list(self.apart),
        }

    def _changed(self, side: Side) -> dict[str, Json]:
        """When the record was changed last by its own system's clock, and by whom where it tells."""
        row = self.sightings.get(side)
        if row is not None:
            at, facts = row.modified_at, row.facts
        elif self.link is not None:
            at, facts = self.link._mapping[f"{side}_modified_at"], self.link._mapping[f"{side}_facts"]
        else:
            return {"at": None, "by": None}
        return {"at": at.isoformat() if at is not None else None, "by": facts.get("modified_by")}


def _inbox(row: Row[Any]) -> dict[str, Json]:
    return {
        "state": row.state,
        "reason": row.reason,
        "is_deleted": row.is_deleted,
        "is_linked": row.is_linked,
        "seen_at": row.seen_at.isoformat(),
    }


def _look(tx: Connection, place: Place) -> _Seen:
    link = tx.execute(
        select(s.link).where(
            s.link.c.pair == place.pair, s.link.c.kind == place.kind, s.link.c[f"{place.side}_id"] == place.id
        )
    ).one_or_none()
    ids = {side: str(link._mapping[f"{side}_id"]) for side in Side} if link is not None else {place.side: place.id}
    sightings: dict[Side, Row[Any]] = {}
    holds: dict[Side, Row[Any]] = {}
    for side, id_ in ids.items():
        at = (s.sighting.c.pair == place.pair, s.sighting.c.side == side, s.sighting.c.kind == place.kind)
        if (row := tx.execute(select(s.sighting).where(*at, s.sighting.c.id == id_)).one_or_none()) is not None:
            sightings[side] = row
        held = (s.hold.c.pair == place.pair, s.hold.c.side == side, s.hold.c.kind == place.kind)
        if (row := tx.execute(select(s.hold).where(*held, s.hold.c.record_id == id_)).one_or_none()) is not None:
            holds[side] = row
    review = tx.execute(
        select(s.match_review).where(
            s.match_review.c.pair == place.pair, s.match_review.c.kind == place.kind,
            s.match_review.c.side == place.side, s.match_review.c.record_id == place.id,
            s.match_review.c.answered_at.is_(None),
        )
    ).one_or_none()  # fmt: skip
    pair = tx.execute(select(s.pair).where(s.pair.c.id == place.pair)).one()
    told = review_document(tx, review) if review is not None else None
    return _Seen(place, link, sightings, told, tuple(_apart(tx, place)), holds, pair)


def _apart(tx: Connection, place: Place) -> list[str]:
    """The records of the other side that a person said this one is not."""
    rows = tx.execute(
        select(s.match_review).where(
            s.match_review.c.pair == place.pair,
            s.match_review.c.kind == place.kind,
            s.match_review.c.answer.in_(["never", "create", "apart"]),
            or_(
                and_(s.match_review.c.side == place.side, s.match_review.c.record_id == place.id),
                and_(
                    s.match_review.c.side == place.side.other,
                    s.match_review.c.candidates.contains([{"id": place.id}]),
                ),
            ),
        )
    )
    found: set[str] = set()
    for row in rows:
        found |= {each["id"] for each in row.candidates} if row.side == place.side else {row.record_id}
    return sorted(found)


# --- what was done ------------------------------------------------------------------------


def _concerns(table: Any, seen: _Seen) -> Any:
    """Rows of either id: a record may have been linked to another one before."""
    mine = [table.c[f"{side}_id"] == id_ for side in Side if (id_ := seen.id(side)) is not None]
    return and_(table.c.pair == seen.place.pair, table.c.kind == seen.place.kind, or_(*mine))


def _log_rows(tx: Connection, seen: _Seen) -> list[Row[Any]]:
    return list(tx.execute(select(s.change_log).where(_concerns(s.change_log, seen)).order_by(s.change_log.c.id)))


def _history(tx: Connection, seen: _Seen) -> list[dict[str, Json]]:
    return [_entry(row) for row in _log_rows(tx, seen)]


def _conflicts(tx: Connection, seen: _Seen) -> list[dict[str, Json]]:
    query = select(s.conflict).where(_concerns(s.conflict, seen)).order_by(s.conflict.c.id)
    return [conflict_document(row) for row in tx.execute(query)]


def _entry(row: Row[Any]) -> dict[str, Json]:
    """One write as history tells it."""
    return {
        "at": row.at.isoformat(),
        "side": NAMES[Side(row.side)],
        "verb": row.verb,
        "field": row.field or None,
        "old": _shown(row.old),
        "new": _shown(row.new),
        "stored": _shown(row.stored),
        "rule": row.rule,
        "propstreet": row.left_id,
        "crm": row.right_id,
        "run": row.run,
        "call": row.call,
        "replayed": _replayed(row._asdict()),
    }


def _write(tx: Connection, row: Row[Any]) -> dict[str, Json]:
    """One write with everything behind it: the two candidates, the policy, the run and the call."""
    run = tx.execute(select(s.run).where(s.run.c.id == row.run)).one_or_none()
    call = (
        tx.execute(select(s.operation).where(s.operation.c.idempotency_key == row.call)).one_or_none()
        if row.call is not None
        else None
    )
    return {
        **_entry(row),
        **_ground(row),
        "run": {
            "id": row.run,
            "reason": run.reason if run is not None else None,
            "started_at": run.started_at.isoformat() if run is not None else None,
        },
        "call": {
            "key": row.call,
            "sent_at": _time(call.sent_at) if call is not None else None,
            "settled_at": _time(call.settled_at) if call is not None else None,
            "state": call.state if call is not None else None,
        },
    }


def _time(moment: Any) -> str | None:
    return moment.isoformat() if moment is not None else None


def _ground(row: Row[Any]) -> dict[str, Json]:
    """What was decided on, as a person reads it."""
    ground = recall(row.field, row.because) if row.because else None
    if not isinstance(ground, Because):
        return {"candidates": None, "policy": None, "person": None}
    candidates: dict[str, Json] = {}
    for side, half in ((Side.LEFT, ground.left), (Side.RIGHT, ground.right)):
        candidates[NAMES[side]] = {
            "value": show(half.now(row.field)),
            "base": show(half.base.get(row.field)),
            "changed": half.moved(row.field, ground.type),
            "at": _time(half.modified_at),
        }
    person: Json = None
    if ground.settled is not None:
        person = show(ground.settled.value) if isinstance(ground.settled, Chosen) else NAMES[ground.settled]
    return {
        "candidates": candidates,
        "policy": {"flow": ground.policy.flow.value, "conflict": ground.policy.conflict.value},
        "person": person,
    }


def _shown(kept: Json) -> Json:
    return show(thaw({"": kept})[""])


# --- replaying ----------------------------------------------------------------------------


def unexplained(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of the change log whose decision, made again from what was kept of it, comes out otherwise.

    Rows may come from any store; a row of which nothing was kept is none of these.
    """
    return [row for row in rows if _replayed(row) == "differs"]


def _replayed(row: Mapping[str, Any]) -> str:
    """``same``, ``differs``, or ``unknown`` where nothing was kept or no value was decided."""
    if not row["because"]:
        return "unknown"
    ground = recall(row["field"], row["because"])
    if isinstance(ground, Said):
        if row["field"]:
            return "unknown"
        return "same" if ground.why == row["rule"] else "differs"
    new: Value = thaw({"": row["new"]})[""]
    return "same" if again(ground, Side(row["side"])) == Step(new, row["rule"]) else "differs"
