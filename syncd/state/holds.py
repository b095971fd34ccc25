"""What a person, or an undo, holds still: records for which nothing is written until they are let go.

A hold names one record of one side. It covers the record's counterpart and the relations that name
either. Their news stay in the inbox, so that letting go catches up with all that happened meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, delete, select
from sqlalchemy.dialects.postgresql import insert as upsert

from syncd.core.model import KINDS, RELATIONS, Side
from syncd.errors import NotFoundError
from syncd.state import schema as s

BY_PERSON = "paused by a person"


def place(
    engine: Engine, pair_id: str, kind: str, side: Side, ids: Sequence[str], *, reason: str, at: datetime
) -> None:
    """Hold records still from now on. One that is held already keeps its first reason."""
    rows = [
        {"pair": pair_id, "kind": kind, "side": str(side), "record_id": id_, "reason": reason, "held_at": at}
        for id_ in dict.fromkeys(ids)
    ]
    if rows:
        with engine.begin() as tx:
            tx.execute(upsert(s.hold).on_conflict_do_nothing(), rows)


def lift(engine: Engine, pair_id: str, kind: str, side: Side, record_id: str) -> bool:
    """Let a record go, whichever side's id it was held by; False if it was not held. The next run catches up."""
    own, other = (s.link.c.left_id, s.link.c.right_id) if side is Side.LEFT else (s.link.c.right_id, s.link.c.left_id)
    with engine.begin() as tx:
        partner = tx.execute(
            select(other).where(s.link.c.pair == pair_id, s.link.c.kind == kind, own == record_id)
        ).scalar()
        gone = 0
        for at, id_ in ((side, record_id), (side.other, partner)):
            gone += tx.execute(
                delete(s.hold).where(
                    s.hold.c.pair == pair_id, s.hold.c.kind == kind, s.hold.c.side == at, s.hold.c.record_id == id_
                )
            ).rowcount
    return gone > 0


def held(engine: Engine, pair_id: str) -> list[Any]:
    """The holds of a pair, the oldest first."""
    query = select(s.hold).where(s.hold.c.pair == pair_id).order_by(s.hold.c.held_at, s.hold.c.record_id)
    with engine.connect() as tx:
        return list(tx.execute(query))


def kind_of(engine: Engine, pair_id: str, side: Side, record_id: str, kind: str | None) -> str:
    """The kind of a known record. Raises NotFoundError if there is none, or if several kinds have this id.

    A relation may lie in a record's own row and so have its id, as an employment in Salesforce has its
    contact's: then the record is meant, which holds its relations too.
    """
    own = s.link.c.left_id if side is Side.LEFT else s.link.c.right_id
    links = select(s.link.c.kind).where(s.link.c.pair == pair_id, own == record_id)
    seen = select(s.sighting.c.kind).where(
        s.sighting.c.pair == pair_id, s.sighting.c.side == side, s.sighting.c.id == record_id
    )
    with engine.connect() as tx:
        found: set[str] = set(tx.execute(links.union(seen)).scalars()) & ({kind} if kind else set(KINDS))
    if len(found) > 1 and len(found - RELATIONS) == 1:
        found -= RELATIONS
    name = "propstreet" if side is Side.LEFT else "crm"
    if not found:
        raise NotFoundError(f"{pair_id}: no {kind or 'record'} {record_id} is known ({name})")
    if len(found) > 1:
        raise NotFoundError(f"{pair_id}: {record_id} is {' and '.join(sorted(found))} ({name}); add --kind")
    return found.pop()
