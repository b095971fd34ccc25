"""What waits for a person, and what a person answered: conflicts, reviews, dead letters, halts.

Reads span all pairs, or those of one tenant. Ids are short and typed, so that one command can
take any of them: ``c12`` a conflict, ``r3`` a review, ``l7`` or ``s:right:contact:4711`` a dead letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, insert, or_, select, update

from syncd.core.merge import BY_PERSON
from syncd.core.model import Json, LinkState, Side
from syncd.errors import NotFoundError
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


def _head(row: Any) -> dict[str, Json]:
    tenant, _, pair = str(row.pair).partition("/")
    return {"tenant": tenant, "pair": pair, "kind": row.kind}


def conflicts(engine: Engine, scope: Scope, *, only_open: bool = False) -> Iterator[dict[str, Json]]:
    """Conflicts, the newest first, those settled by a policy or a person with the value that lost."""
    query = select(s.conflict).where(scope.covers(s.conflict.c.pair)).order_by(s.conflict.c.id.desc())
    if only_open:
        query = query.where(s.conflict.c.settled_at.is_(None))
    for row in _stream(engine, query):
        yield {
            "id": f"c{row.id}",
            **_head(row),
            "propstreet": row.left_id,
            "crm": row.right_id,
            "field": row.field or None,
            "base": row.base,
            "propstreet_value": row.left_value,
            "crm_value": row.right_value,
            "decided": row.decided,
            "winner": {"left": "propstreet", "right": "crm"}.get(row.winner or ""),
            "opened_at": row.opened_at.isoformat(),
        }


def reviews(engine: Engine, scope: Scope) -> Iterator[dict[str, Json]]:
    """Records whose counterpart a person must name, with the candidates and the reasons for each."""
    query = (
        select(s.match_review)
        .where(scope.covers(s.match_review.c.pair), s.match_review.c.answered_at.is_(None))
        .order_by(s.match_review.c.id)
    )
    for row in _stream(engine, query):
        yield {
            "id": f"r{row.id}",
            **_head(row),
            "propstreet": row.record_id if row.side == Side.LEFT else None,
            "crm": row.record_id if row.side == Side.RIGHT else None,
            "candidates": row.candidates,
            "opened_at": row.opened_at.isoformat(),
        }


def dead_letters(engine: Engine, scope: Scope) -> Iterator[dict[str, Json]]:
    """Changes set aside for a person, with the reason."""
    links = select(s.link).where(scope.covers(s.link.c.pair), s.link.c.state == LinkState.DEAD).order_by(s.link.c.id)
    for row in _stream(engine, links):
        yield {
            "id": f"l{row.id}",
            **_head(row),
            "propstreet": row.left_id,
            "crm": row.right_id,
            "reason": row.reason,
        }
    for row in _stream(engine, _alone(scope, "dead")):
        yield {
            "id": f"s:{row.side}:{row.kind}:{row.id}",
            **_head(row),
            "propstreet": row.id if row.side == Side.LEFT else None,
            "crm": row.id if row.side == Side.RIGHT else None,
            "reason": row.reason,
        }


def excluded(engine: Engine, scope: Scope) -> Iterator[dict[str, Json]]:
    """What is left out on purpose, linked or not, or held still by a person, with the reason."""
    links = (
        select(s.link).where(scope.covers(s.link.c.pair), s.link.c.state == LinkState.EXCLUDED).order_by(s.link.c.id)
    )
    for row in _stream(engine, links):
        yield {**_head(row), "propstreet": row.left_id, "crm": row.right_id, "reason": row.reason}
    yield from _held(engine, scope)
    for state in ("excluded", "waiting"):
        for row in _stream(engine, _alone(scope, state)):
            yield {
                **_head(row),
                "propstreet": row.id if row.side == Side.LEFT else None,
                "crm": row.id if row.side == Side.RIGHT else None,
                "reason": row.reason,
            }


def _held(engine: Engine, scope: Scope) -> Iterator[dict[str, Json]]:
    own = and_(s.link.c.pair == s.hold.c.pair, s.link.c.kind == s.hold.c.kind)
    met = or_(
        and_(own, s.hold.c.side == Side.LEFT, s.link.c.left_id == s.hold.c.record_id),
        and_(own, s.hold.c.side == Side.RIGHT, s.link.c.right_id == s.hold.c.record_id),
    )
    query = (
        select(s.hold, s.link.c.left_id, s.link.c.right_id)
        .outerjoin(s.link, met)
        .where(scope.covers(s.hold.c.pair))
        .order_by(s.hold.c.pair, s.hold.c.kind, s.hold.c.record_id)
    )
    for row in _stream(engine, query):
        yield {
            **_head(row),
            "propstreet": row.record_id if row.side == Side.LEFT else row.left_id,
            "crm": row.record_id if row.side == Side.RIGHT else row.right_id,
            "reason": f"held still: {row.reason}",
        }


def _alone(scope: Scope, state: str) -> Any:
    return (
        select(s.sighting)
        .where(scope.covers(s.sighting.c.pair), s.sighting.c.state == state, ~s.sighting.c.is_linked)
        .order_by(s.sighting.c.pair, s.sighting.c.kind, s.sighting.c.side, s.sighting.c.id)
    )


def status(engine: Engine, scope: Scope) -> list[dict[str, Json]]:
    """Each pair: in step, waiting, why halted, when it last ran and what that cost."""
    found: list[dict[str, Json]] = []
    with engine.connect() as tx:
        pairs = tx.execute(select(s.pair).where(scope.covers(s.pair.c.id)).order_by(s.pair.c.id)).all()
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
                    "state": _standing(row),
                    "halted": row.halted_reason,
                    "plan": row.halted_plan,
                    "kinds": census(tx, row.id),
                    "last_run": _run(last),
                }
            )
    return found


def _standing(row: Any) -> str:
    if row.paused_at is not None:
        return "paused"
    if row.halted_reason is not None:
        return "halted"
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
    found: dict[str, dict[str, int]] = {}

    def put(kind: str, name: str, count: int) -> None:
        at = found.setdefault(kind, dict.fromkeys(_COUNTS, 0))
        at[name] += count

    links = select(s.link.c.kind, s.link.c.state, func.count()).where(s.link.c.pair == pair_id)
    for kind, state, count in tx.execute(links.group_by(s.link.c.kind, s.link.c.state)):
        put(kind, "linked", count)
        if name := {"excluded": "excluded", "dead": "dead_letters"}.get(state):
            put(kind, name, count)
    alone = select(s.sighting.c.kind, s.sighting.c.state, func.count()).where(
        s.sighting.c.pair == pair_id, ~s.sighting.c.is_linked
    )
    names = {"excluded": "excluded", "waiting": "excluded", "dead": "dead_letters"}
    for kind, state, count in tx.execute(alone.group_by(s.sighting.c.kind, s.sighting.c.state)):
        if state in names:
            put(kind, names[state], count)
    young = select(s.sighting.c.kind, func.count()).where(s.sighting.c.pair == pair_id, s.sighting.c.reason == SETTLING)
    for kind, count in tx.execute(young.group_by(s.sighting.c.kind)):
        put(kind, "settling", count)
    held = select(s.hold.c.kind, func.count()).where(s.hold.c.pair == pair_id)
    for kind, count in tx.execute(held.group_by(s.hold.c.kind)):
        put(kind, "held", count)
    open_conflicts = select(s.conflict.c.kind, func.count()).where(
        s.conflict.c.pair == pair_id, s.conflict.c.settled_at.is_(None)
    )
    for kind, count in tx.execute(open_conflicts.group_by(s.conflict.c.kind)):
        put(kind, "conflicts", count)
    open_reviews = select(s.match_review.c.kind, func.count()).where(
        s.match_review.c.pair == pair_id, s.match_review.c.answered_at.is_(None)
    )
    for kind, count in tx.execute(open_reviews.group_by(s.match_review.c.kind)):
        put(kind, "in_review", count)
    return found


# --- answers ------------------------------------------------------------------------------


def settle_conflict(engine: Engine, conflict_id: str, winner: Side, at: datetime) -> None:
    """A person's word on a conflict; carried out by the next run. Raises NotFoundError."""
    with engine.begin() as tx:
        row = tx.execute(
            select(s.conflict).where(s.conflict.c.id == _number(conflict_id, "c"), s.conflict.c.settled_at.is_(None))
        ).one_or_none()
        if row is None:
            raise NotFoundError(f"no open conflict {conflict_id}; syncd conflicts --open lists them")
        tx.execute(
            update(s.conflict)
            .where(s.conflict.c.id == row.id)
            .values(settled_at=at, decided=BY_PERSON, winner=str(winner))
        )
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
        tx.execute(
            update(s.link)
            .where(s.link.c.id == link.id)
            .values(settled={**link.settled, row.field: str(winner)}, next_attempt_at=None)
        )


def answer_review(engine: Engine, review_id: str, answer: str, candidate: str | None, at: datetime) -> str:
    """A person's answer: ``same`` as a candidate, ``never`` any of them, or ``create`` a new one. Returns the pair."""
    with engine.begin() as tx:
        row = tx.execute(
            select(s.match_review).where(
                s.match_review.c.id == _number(review_id, "r"), s.match_review.c.answered_at.is_(None)
            )
        ).one_or_none()
        if row is None:
            raise NotFoundError(f"no open review {review_id}; syncd reviews lists them")
        if answer == "same" and candidate not in [each["id"] for each in row.candidates]:
            known = ", ".join(each["id"] for each in row.candidates)
            raise NotFoundError(f"review {review_id}: {candidate!r} is no candidate; they are {known}")
        tx.execute(
            update(s.match_review)
            .where(s.match_review.c.id == row.id)
            .values(answered_at=at, answer=answer, answered_with=candidate)
        )
        if answer == "same":
            _keep_apart_from_others(tx, row, str(candidate), at)
        _strike_out(tx, row, [each["id"] for each in row.candidates if each["id"] != candidate], at)
        # The record, and those it was held up with, are looked at anew; "same" links below.
        ids = [row.record_id, *(each["id"] for each in row.candidates)]
        tx.execute(
            update(s.sighting)
            .where(
                s.sighting.c.pair == row.pair,
                s.sighting.c.kind == row.kind,
                s.sighting.c.id.in_(ids),
                or_(s.sighting.c.state == "review", s.sighting.c.state == "excluded"),
            )
            .values(state="new", reason="")
        )
    return str(row.pair)


def _keep_apart_from_others(tx: Connection, row: Any, chosen: str, at: datetime) -> None:
    """Having named one candidate, a person has said no to the others."""
    others = [each for each in row.candidates if each["id"] != chosen]
    if others:
        tx.execute(
            insert(s.match_review).values(
                pair=row.pair, kind=row.kind, side=row.side, record_id=row.record_id, candidates=others,
                opened_at=row.opened_at, answered_at=at, answer="never",
            )
        )  # fmt: skip


def _strike_out(tx: Connection, row: Any, apart: Sequence[str], at: datetime) -> None:
    """Those that a person kept apart from a record need not be asked about it again; without candidates they close."""
    mirrors = select(s.match_review).where(
        s.match_review.c.pair == row.pair, s.match_review.c.kind == row.kind, s.match_review.c.side != row.side,
        s.match_review.c.record_id.in_(apart), s.match_review.c.answered_at.is_(None),
    )  # fmt: skip
    for mirror in tx.execute(mirrors).all():
        left = [each for each in mirror.candidates if each["id"] != row.record_id]
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


def waiting(engine: Engine, scope: Scope) -> bool:
    """Whether anything of the scope waits for a person."""
    return any(True for _ in conflicts(engine, scope, only_open=True)) or any(
        any(True for _ in source(engine, scope)) for source in (reviews, dead_letters)
    )


def _number(id_: str, prefix: str) -> int:
    if not id_.startswith(prefix) or not id_[1:].isdigit():
        raise NotFoundError(f"{id_!r} is no id of this sort; it looks like {prefix}12")
    return int(id_[1:])


def _stream(engine: Engine, query: Any) -> Iterator[Any]:
    with engine.connect().execution_options(yield_per=500) as connection:
        yield from connection.execute(query)
