"""What an audit asks of the database, and the one row that it leaves there. It changes nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, insert, select

from syncd.core.audit import Alone
from syncd.core.model import Side
from syncd.state import schema as s
from syncd.state.bulk import one_of


def links(engine: Engine, pair: str, kind: str, after: int, limit: int) -> list[tuple[int, str, str]]:
    """Links by id, some at a time: (id, left id, right id)."""
    link = s.link.c
    query = select(link.id, link.left_id, link.right_id).where(link.pair == pair, link.kind == kind, link.id > after)
    with engine.connect() as tx:
        return [(row[0], row[1], row[2]) for row in tx.execute(query.order_by(link.id).limit(limit))]


def open_conflicts(engine: Engine, pair: str, kind: str, left_ids: Sequence[str]) -> dict[tuple[str, str], set[str]]:
    """By link, the fields whose conflict waits for a person."""
    conflict = s.conflict.c
    query = select(conflict.left_id, conflict.right_id, conflict.field).where(
        conflict.pair == pair, conflict.kind == kind, one_of(conflict.left_id, left_ids), conflict.settled_at.is_(None)
    )
    found: dict[tuple[str, str], set[str]] = {}
    with engine.connect() as tx:
        for row in tx.execute(query):
            found.setdefault((row.left_id, row.right_id), set()).add(row.field)
    return found


def alone(engine: Engine, pair: str, side: Side, kind: str, ids: Sequence[str]) -> dict[str, Alone]:
    """What the inbox says of these records."""
    sighting = s.sighting.c
    query = select(sighting.id, sighting.state, sighting.reason).where(
        sighting.pair == pair, sighting.side == side, sighting.kind == kind, one_of(sighting.id, ids)
    )
    with engine.connect() as tx:
        return {row.id: Alone(row.state, row.reason) for row in tx.execute(query)}


def record_audit(
    engine: Engine, run_id: str, pair: str, started_at: datetime, at: datetime, counts: Mapping[str, Any],
    cost: Mapping[str, Any], message: str,
) -> None:  # fmt: skip
    """One row among the runs, written when all is over: an audit holds no lease and is never running."""
    with engine.begin() as tx:
        tx.execute(
            insert(s.run).values(
                id=run_id, pair=pair, reason="audit", state="done", fence=0, started_at=started_at, finished_at=at,
                counts=counts, cost=cost, message=message,
            )
        )  # fmt: skip


def last_audits(engine: Engine) -> dict[tuple[str, str], datetime]:
    """When each kind of each pair was last audited."""
    kinds = func.jsonb_object_keys(s.run.c.counts["kinds"]).label("kind")
    each = select(s.run.c.pair, kinds, s.run.c.finished_at).where(s.run.c.reason == "audit").subquery()
    query = select(each.c.pair, each.c.kind, func.max(each.c.finished_at)).group_by(each.c.pair, each.c.kind)
    with engine.connect() as tx:
        return {(row[0], row[1]): row[2] for row in tx.execute(query)}
