"""What waits for a person, and what a person answered: conflicts, reviews, dead letters, halts.

Reads span all pairs, or those of one tenant. Ids are short and typed, so that one command can
take any of them: ``c12`` a conflict, ``r3`` a review, ``l7`` or ``s:right:contact:4711`` a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, insert, literal, or_, select, true, update

from syncd.core.mapping import show, thaw
from syncd.core.merge import BY_PERSON, Answer, Chosen, Word
from syncd.core.model import Json, LinkState, Side
from syncd.core.why import keep_word
from syncd.errors import AnswerError, NotFoundError, StoppedError
from syncd.state import schema as s
from syncd.state.store import SETTLING


@dataclass(frozen=True, slots=True)
class Scope:
    """All pairs, those of one tenant, or one pair."""

    tenant: str | None = None
    pair: str | None = None

    def covers(self, column: ColumnElement[Any]) -> ColumnElement[bool]:
        if self.tenant is None:
            return column.is_not(None)
        if self.pair is None:
            return column.startswith(f"{self.tenant}/", autoescape=True)
        return column == f"{self.tenant}/{self.pair}"


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a list: its rows in the order of ``key``, and what a row is told as."""

    query: Any
    key: tuple[ColumnElement[Any], ...]
    told: Callable[[Any], dict[str, Json]]

    def ordered(self) -> Any:
        return self.query.order_by(*self.key)


def _head(row: Any) -> dict[str, Json]:
    tenant, _, pair = str(row.pair).partition("/")
    return {"tenant": tenant, "pair": pair, "kind": row.kind}


def conflicts(engine: Engine, scope: Scope, *, only_open: bool = False) -> Iterator[dict[str, Json]]:
    """Conflicts, the newest first, those settled by a policy or a person with the value that lost."""
    query = select(s.conflict).where(scope.covers(s.conflict.c.pair)).order_by(s.conflict.c.id.desc())
    if only_open:
        query = query.where(s.conflict.c.settled_at.is_(None))
    for row in _stream(engine, query):
        yield conflict_document(row)


def conflict_document(row: Any) -> dict[str, Json]:
    """A conflict: both values, who moved them and when as far as the vendors tell, and how it ended."""
    return {
        "id": f"c{row.id}",
        **_head(row),
        "propstreet": row.left_id,
        "crm": row.right_id,
        "field": row.field or None,
        "base": row.base,
        "propstreet_value": row.left_value,
        "propstreet_at": _time(row.left_at),
        "propstreet_by": row.left_by,
        "crm_value": row.right_value,
        "crm_at": _time(row.right_at),
        "crm_by": row.right_by,
        "decided": row.decided,
        "winner": {"left": "propstreet", "right": "crm"}.get(row.winner, row.winner),
        "chosen": row.chosen["is"] if row.chosen is not None else None,
        "opened_at": _time(row.opened_at),
        "settled_at": _time(row.settled_at),
    }


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment is not None else None


def reviews(engine: Engine, scope: Scope) -> Iterator[dict[str, Json]]:
    """Records whose counterpart a person must name, with the candidates and the reasons for each."""
    query = (
        select(s.match_review)
        .where(scope.covers(s.match_review.c.pair), s.match_review.c.answered_at.is_(None))
        .order_by(s.match_review.c.id)
    )
    with engine.connect() as tx:
        for row in _stream(engine, query):
            yield review_document(tx, row)


def review_document(tx: Connection, row: Any) -> dict[str, Json]:
    """A review, with what tells its record and the candidates apart: their names and e-mail or domain as last seen."""
    side = Side(row.side)
    face = faces(tx, row.pair, row.kind, side, [row.record_id])
    others = faces(tx, row.pair, row.kind, side.other, [each["id"] for each in row.candidates])
    return {
        "id": f"r{row.id}",
        **_head(row),
        "propstreet": row.record_id if side is Side.LEFT else None,
        "crm": row.record_id if side is Side.RIGHT else None,
        **face.get(row.record_id, _FACELESS),
        "candidates": [{**each, **others.get(each["id"], _FACELESS)} for each in row.candidates],
        "opened_at": _time(row.opened_at),
    }


_FACELESS: dict[str, Json] = {"name": None, "known_by": None}


def faces(tx: Connection, pair: str, kind: str, side: Side, ids: Sequence[str]) -> dict[str, dict[str, Json]]:
    """What people know records by: the name, and the address or domain."""
    return {id_: _face(values) for id_, values in last_seen(tx, pair, kind, side, ids).items()}


def last_seen(tx: Connection, pair: str, kind: str, side: Side, ids: Sequence[str]) -> dict[str, dict[str, Json]]:
    """What each of these records holds as last seen, as it is kept."""
    own_id, base = s.link.c[f"{side}_id"], s.link.c[f"{side}_base"]
    linked = select(own_id, base).where(s.link.c.pair == pair, s.link.c.kind == kind, own_id.in_(ids))
    at = (s.sighting.c.pair == pair, s.sighting.c.kind == kind, s.sighting.c.side == side)
    seen = select(s.sighting.c.id, s.sighting.c["values"]).where(*at, s.sighting.c.id.in_(ids))
    held: dict[str, dict[str, Json]] = {}
    for query in (linked, seen):
        for row in tx.execute(query):
            held[row[0]] = {**held.get(row[0], {}), **row[1]}
    return held


def _face(values: Mapping[str, Json]) -> dict[str, Json]:
    told = {name: show(thaw({"": value})[""]) for name, value in values.items()}
    parts = [told.get(name) for name in ("first_name", "last_name")]
    name = told.get("name") or " ".join(str(part) for part in parts if part) or None
    return {"name": name, "known_by": told.get("email") or told.get("domain") or told.get("org_number")}


def dead_letters(engine: Engine, scope: Scope) -> Iterator[dict[str, Json]]:
    """Changes set aside for a person, with the reason."""
    return _all_of(engine, dead_parts(scope))


def dead_parts(scope: Scope) -> tuple[Part, ...]:
    """Dead letters: linked records, then those without a link."""
    links = select(s.link).where(scope.covers(s.link.c.pair), s.link.c.state == LinkState.DEAD)
    return (
        Part(links, (s.link.c.id,), lambda row: {"id": f"l{row.id}", **_linked(row)}),
        Part(_alone(scope, "dead"), _ALONE, lambda row: {"id": f"s:{row.side}:{row.kind}:{row.id}", **_single(row)}),
    )


def excluded(engine: Engine, scope: Scope) -> Iterator[dict[str, Json]]:
    """What is left out on purpose, linked or not, or held still by a person, with the reason."""
    return _all_of(engine, excluded_parts(scope))


def excluded_parts(scope: Scope) -> tuple[Part, ...]:
    """What is left out: linked records, those held still, then those without a link."""
    links = select(s.link).where(scope.covers(s.link.c.pair), s.link.c.state == LinkState.EXCLUDED)
    return (
        Part(links, (s.link.c.id,), _linked),
        Part(_holds(scope), (s.hold.c.pair, s.hold.c.kind, s.hold.c.record_id, s.hold.c.side), _held),
        *(Part(_alone(scope, state), _ALONE, _single) for state in ("excluded", "waiting", "new")),
    )


def _all_of(engine: Engine, parts: Sequence[Part]) -> Iterator[dict[str, Json]]:
    for part in parts:
        for row in _stream(engine, part.ordered()):
            yield part.told(row)


def _linked(row: Any) -> dict[str, Json]:
    return {**_head(row), "propstreet": row.left_id, "crm": row.right_id, "reason": row.reason}


def _single(row: Any) -> dict[str, Json]:
    return {
        **_head(row),
        "propstreet": row.id if row.side == Side.LEFT else None,
        "crm": row.id if row.side == Side.RIGHT else None,
        "reason": row.reason,
    }


def _held(row: Any) -> dict[str, Json]:
    return {
        **_head(row),
        "propstreet": row.record_id if row.side == Side.LEFT else row.left_id,
        "crm": row.record_id if row.side == Side.RIGHT else row.right_id,
        "reason": row.reason,
    }


def _holds(scope: Scope) -> Any:
    own = and_(s.link.c.pair == s.hold.c.pair, s.link.c.kind == s.hold.c.kind)
    met = or_(
        and_(own, s.hold.c.side == Side.LEFT, s.link.c.left_id == s.hold.c.record_id),
        and_(own, s.hold.c.side == Side.RIGHT, s.link.c.right_id == s.hold.c.record_id),
    )
    told = (literal("held still: ") + s.hold.c.reason).label("reason")
    named = (s.hold.c.pair, s.hold.c.kind, s.hold.c.side, s.hold.c.record_id)
    query = select(*named, told, s.link.c.left_id, s.link.c.right_id).select_from(s.hold).outerjoin(s.link, met)
    return query.where(scope.covers(s.hold.c.pair))


_ALONE: Final = (s.sighting.c.pair, s.sighting.c.kind, s.sighting.c.side, s.sighting.c.id)


def _alone(scope: Scope, state: str) -> Any:
    """Records without a link; new ones only if there is a reason why they were not made, and not just their age."""
    is_told = s.sighting.c.reason.not_in(["", SETTLING]) if state == "new" else true()
    return select(s.sighting).where(
        scope.covers(s.sighting.c.pair), s.sighting.c.state == state, ~s.sighting.c.is_linked, is_told
    )


def status(engine: Engine, scope: Scope) -> list[dict[str, Json]]:
    """Each pair: in step, waiting, why halted, when it last ran and what that cost."""
    found: list[dict[str, Json]] = []
    with engine.connect() as tx:
        pairs = tx.execute(select(s.pair).where(scope.covers(s.pair.c.id)).order_by(s.pair.c.id)).all()
        counts = censuses(tx, scope)
        for row in pairs:
            last = tx.execute(
                select(s.run)
                .where(s.run.c.pair == row.id, s.run.c.reason != "audit")
                .order_by(s.run.c.started_at.desc())
                .limit(1)
            ).one_or_none()
            found.append(
                {
                    "tenant": row.tenant,
                    "pair": row.name,
                    "connector": row.connector,
                    "state": _standing(row, last),
                    "halted": row.halted_reason,
                    "plan": row.halted_plan,
                    "kinds": counts.get(row.id, {}),
                    "last_run": _run(last),
                }
            )
    return found


def _standing(row: Any, last: Any) -> str:
    """A run that was asked to stop is no failure."""
    if row.paused_at is not None:
        return "paused"
    if row.halted_reason is not None:
        return "halted"
    if last is not None and last.state == "failed" and last.error != StoppedError.__name__:
        return "failing"
    return "running" if row.approved_at is not None else "waiting for approval"


def _run(row: Any) -> Json:
    if row is None:
        return None
    return {
        "run": row.id,
        "reason": row.reason,
        "state": row.state,
        "started_at": row.started_at.isoformat(),
        "finished_at": row.finished_at.isoformat() if row.finished_at else None,
        "counts": row.counts,
        "cost": row.cost,
        "message": row.message,
    }


_COUNTS = ("linked", "conflicts", "in_review", "excluded", "dead_letters", "settling", "held")


def census(tx: Connection, pair_id: str) -> dict[str, dict[str, int]]:
    """How many of each kind are linked, in conflict, in review, excluded, dead, settling, held still."""
    tenant, _, pair = pair_id.partition("/")
    return censuses(tx, Scope(tenant, pair)).get(pair_id, {})


def censuses(tx: Connection, scope: Scope) -> dict[str, dict[str, dict[str, int]]]:
    """The census of each pair by its id; a pair that knows of nothing is left out."""
    found: dict[str, dict[str, dict[str, int]]] = {}

    def put(pair: str, kind: str, name: str, count: int) -> None:
        found.setdefault(pair, {}).setdefault(kind, dict.fromkeys(_COUNTS, 0))[name] += count

    def counted(table: Any, *by: Any, where: Sequence[ColumnElement[bool]] = ()) -> Any:
        columns = (table.c.pair, table.c.kind, *by)
        return tx.execute(select(*columns, func.count()).where(scope.covers(table.c.pair), *where).group_by(*columns))

    for pair, kind, state, count in counted(s.link, s.link.c.state):
        put(pair, kind, "linked", count)
        if name := {"excluded": "excluded", "dead": "dead_letters"}.get(state):
            put(pair, kind, name, count)
    names = {"excluded": "excluded", "waiting": "excluded", "dead": "dead_letters"}
    for pair, kind, state, count in counted(s.sighting, s.sighting.c.state, where=[~s.sighting.c.is_linked]):
        if state in names:
            put(pair, kind, names[state], count)
    for name, table, where in (
        ("settling", s.sighting, s.sighting.c.reason == SETTLING),
        ("held", s.hold, true()),
        ("conflicts", s.conflict, s.conflict.c.settled_at.is_(None)),
        ("in_review", s.match_review, s.match_review.c.answered_at.is_(None)),
    ):
        for pair, kind, count in counted(table, where=[where]):
            put(pair, kind, name, count)
    return found


# --- answers ------------------------------------------------------------------------------


def find_conflict(engine: Engine, conflict_id: str) -> Any:
    """The row of a conflict that waits. Raises NotFoundError."""
    with engine.connect() as tx:
        return _open_conflict(tx, conflict_id)


def _open_conflict(tx: Connection, conflict_id: str) -> Any:
    row = tx.execute(
        select(s.conflict).where(s.conflict.c.id == _number(conflict_id, "c"), s.conflict.c.settled_at.is_(None))
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"no open conflict {conflict_id}; syncd conflicts --open lists them")
    return row


def settle_conflict(engine: Engine, conflict_id: str, answer: Answer, at: datetime) -> None:
    """A person's word on a conflict: a side, or a third value for both. Carried out by the next run.

    The word is kept with the two values that were shown, and stands only while they are there.
    Raises NotFoundError, and AnswerError where a third value can never be given to both.
    """
    with engine.begin() as tx:
        row = _open_conflict(tx, conflict_id)
        link = tx.execute(
            select(s.link).where(
                s.link.c.pair == row.pair,
                s.link.c.kind == row.kind,
                s.link.c.left_id == row.left_id,
                s.link.c.right_id == row.right_id,
            )
        ).one_or_none()
        if link is None:
            raise NotFoundError(f"conflict {conflict_id}: the two records are not linked any more")
        settled: dict[str, object] = {"settled_at": at, "decided": BY_PERSON, "winner": str(answer)}
        if isinstance(answer, Chosen):
            _prove_takes(tx, row, link)
            settled |= {"winner": "value", "chosen": {"is": show(answer.value)}}
        tx.execute(update(s.conflict).where(s.conflict.c.id == row.id).values(settled))
        word = keep_word(Word(answer, (row.left_value, row.right_value)))
        tx.execute(
            update(s.link)
            .where(s.link.c.id == link.id)
            .values(settled={**link.settled, row.field: word}, next_attempt_at=None)
        )


def _prove_takes(tx: Connection, row: Any, link: Any) -> None:
    """Both records must be there and take a value in this field. Raises AnswerError saying which does not."""
    if not row.field:
        raise AnswerError(f"conflict c{row.id} is about a deletion, which has no third value: say propstreet or crm")
    for side in Side:
        id_ = link._mapping[f"{side}_id"]
        seen = tx.execute(
            select(s.sighting.c.facts).where(
                s.sighting.c.pair == row.pair, s.sighting.c.kind == row.kind,
                s.sighting.c.side == side, s.sighting.c.id == id_,
            )
        ).scalar_one_or_none()  # fmt: skip
        locked = (seen if seen is not None else link._mapping[f"{side}_facts"]).get("locked", {})
        if reason := locked.get(row.field) or locked.get("*"):
            name = "propstreet" if side is Side.LEFT else row.pair.partition("/")[2]
            raise AnswerError(f"{row.kind}/{name}:{id_} takes no {row.field}: {reason}")


def answer_review(engine: Engine, review_id: str, answer: str, candidate: str | None, at: datetime) -> str:
    """A person's answer, kept for good. Returns the pair. Raises NotFoundError and AnswerError.

    ``same`` as a candidate links the two. ``never`` keeps the record apart from one candidate, or
    from all: what is left is matched by the usual rules. ``create`` has a counterpart made for it,
    whatever else it looks like.
    """
    with engine.begin() as tx:
        row = tx.execute(
            select(s.match_review).where(
                s.match_review.c.id == _number(review_id, "r"), s.match_review.c.answered_at.is_(None)
            )
        ).one_or_none()
        if row is None:
            raise NotFoundError(f"no open review {review_id}; syncd reviews lists them")
        known = [each["id"] for each in row.candidates]
        if candidate is not None and candidate not in known:
            raise NotFoundError(f"review {review_id}: {candidate!r} is no candidate; they are {', '.join(known)}")
        if answer == "same":
            _prove_free(tx, row, str(candidate))
        named = [each for each in row.candidates if candidate is None or each["id"] == candidate]
        rest = [each for each in row.candidates if each not in named]
        if answer == "never" and rest:
            _keep_apart(tx, row, named, at)
            tx.execute(update(s.match_review).where(s.match_review.c.id == row.id).values(candidates=rest))
        else:
            tx.execute(
                update(s.match_review)
                .where(s.match_review.c.id == row.id)
                .values(answered_at=at, answer=answer, answered_with=candidate if answer == "same" else None)
            )
        if answer == "same" and rest:
            # Having named one candidate, a person has said no to the others.
            _keep_apart(tx, row, rest, at)
        apart = rest if answer == "same" else named
        strike_out(tx, row.pair, row.kind, Side(row.side), row.record_id, [each["id"] for each in apart], at)
        look_anew(tx, row.pair, row.kind, [row.record_id, *known])
    return str(row.pair)


def _prove_free(tx: Connection, row: Any, candidate: str) -> None:
    """A record that is linked already cannot be the same as a second one. Raises AnswerError."""
    side = Side(row.side)
    link = tx.execute(
        select(s.link).where(
            s.link.c.pair == row.pair, s.link.c.kind == row.kind, s.link.c[f"{side.other}_id"] == candidate
        )
    ).one_or_none()
    if link is not None:
        tenant = row.pair.partition("/")[0]
        raise AnswerError(
            f"{candidate} is linked to {link._mapping[f'{side}_id']} already; "
            f"first: syncd apart {tenant} {link.left_id} {link.right_id} --kind {row.kind}"
        )


def _keep_apart(tx: Connection, row: Any, candidates: Sequence[Mapping[str, Json]], at: datetime) -> None:
    tx.execute(
        insert(s.match_review).values(
            pair=row.pair, kind=row.kind, side=row.side, record_id=row.record_id, candidates=candidates,
            opened_at=row.opened_at, answered_at=at, answer="never",
        )
    )  # fmt: skip


def look_anew(tx: Connection, pair: str, kind: str, ids: Sequence[str]) -> None:
    """Records that waited for an answer, and those they were held up with, are matched again by the next run."""
    tx.execute(
        update(s.sighting)
        .where(
            s.sighting.c.pair == pair,
            s.sighting.c.kind == kind,
            s.sighting.c.id.in_(ids),
            s.sighting.c.state.in_(["review", "excluded"]),
        )
        .values(state="new", reason="")
    )


def strike_out(
    tx: Connection, pair: str, kind: str, side: Side, record_id: str, apart: Sequence[str], at: datetime
) -> None:
    """Those that a person kept apart from a record need not be asked about it again; without candidates they close."""
    mirrors = select(s.match_review).where(
        s.match_review.c.pair == pair, s.match_review.c.kind == kind, s.match_review.c.side == side.other,
        s.match_review.c.record_id.in_(apart), s.match_review.c.answered_at.is_(None),
    )  # fmt: skip
    for mirror in tx.execute(mirrors).all():
        left = [each for each in mirror.candidates if each["id"] != record_id]
        change = {"candidates": left} if left else {"answered_at": at}
        tx.execute(update(s.match_review).where(s.match_review.c.id == mirror.id).values(change))


def retry(engine: Engine, scope: Scope, ids: Sequence[str]) -> int:
    """Give dead letters another try, all of the scope or the named ones; returns how many."""
    numbers = [int(each[1:]) for each in ids if each.startswith("l") and each[1:].isdigit()]
    alone = [each.split(":", 3)[3] for each in ids if each.count(":") >= 3]
    with engine.begin() as tx:
        links = update(s.link).where(scope.covers(s.link.c.pair), s.link.c.state == LinkState.DEAD)
        seen = update(s.sighting).where(scope.covers(s.sighting.c.pair), s.sighting.c.state == "dead")
        if ids:
            links, seen = links.where(s.link.c.id.in_(numbers)), seen.where(s.sighting.c.id.in_(alone))
        count = tx.execute(links.values(state=LinkState.PENDING, reason="", next_attempt_at=None)).rowcount
        count += tx.execute(seen.values(state="new", reason="")).rowcount
    return count


def waiting(engine: Engine, scope: Scope) -> tuple[str, ...]:
    """What of the scope waits for a person: any of ``conflicts``, ``reviews`` and ``dead-letters``."""
    lists = {
        "conflicts": conflicts(engine, scope, only_open=True),
        "reviews": reviews(engine, scope),
        "dead-letters": dead_letters(engine, scope),
    }
    return tuple(name for name, rows in lists.items() if any(True for _ in rows))


def _number(id_: str, prefix: str) -> int:
    if not id_.startswith(prefix) or not id_[1:].isdigit():
        raise NotFoundError(f"{id_!r} is no id of this sort; it looks like {prefix}12")
    return int(id_[1:])


def _stream(engine: Engine, query: Any) -> Iterator[Any]:
    with engine.connect().execution_options(yield_per=500) as connection:
        yield from connection.execute(query)
