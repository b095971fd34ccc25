"""What webhooks told: which deliveries are known, and what each made dirty.

A delivery is taken in one short transaction, without a lease: it counts hints up and adds rows, and
changes nothing that a run decides. What is told is a hint; the run reads what is true.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from syncd.core.model import Side
from syncd.errors import ForgedError
from syncd.state import schema as s
from syncd.state.bulk import one_of
from syncd.state.pairs import count_hint

#: So many records of a pair, side and kind are read by id; beyond that the delta and its overlap do.
MOST_DIRTY = 1_000
#: Longer than any vendor repeats a delivery (Propstreet 35 hours, HubSpot and Salesforce 24).
KEPT = timedelta(days=3)


@dataclass(frozen=True, slots=True)
class News:
    """What a proved delivery tells of one system: by kind the records that are dirty, and the parents to visit first.

    ``ids`` are what it, or each of its parts, is known by; ``account`` whom it says to come from.
    """

    connection: str
    side: Side
    ids: Sequence[str]
    account: str | None = None
    records: Mapping[str, Collection[str]] = field(default_factory=dict)
    parents: Mapping[str, Collection[str]] = field(default_factory=dict)


def take(engine: Engine, news: News, pair_ids: Collection[str], at: datetime) -> list[str] | None:
    """Remember what a delivery tells these pairs; which of them are to be woken, or None if it was known already.

    A pair that is paused or never ran is told nothing: it catches up. Raises ForgedError for a
    delivery from another account than the pair is linked with.
    """
    with engine.begin() as tx:
        awake = _awake(tx, news, pair_ids)
        if not _remember(tx, news, at):
            return None
        for pair_id in awake:
            for kind, parents in sorted(news.parents.items()):
                count_hint(tx, pair_id, news.side, kind, parents)
            for kind, ids in sorted(news.records.items()):
                soil(tx, pair_id, news.side, kind, ids, at)
    return awake


def _awake(tx: Connection, news: News, pair_ids: Collection[str]) -> list[str]:
    is_mine = (s.connection.c.pair == s.pair.c.id) & (s.connection.c.side == news.side)
    rows = tx.execute(
        select(s.pair.c.id, s.connection.c.account_id)
        .join(s.connection, is_mine)
        .where(one_of(s.pair.c.id, pair_ids), s.pair.c.paused_at.is_(None), s.connection.c.account_id != "")
        .order_by(s.pair.c.id)
    ).all()
    if news.account is not None and any(row.account_id != news.account for row in rows):
        raise ForgedError(f"{news.connection}: a webhook from another account than this pair is linked with")
    return [row.id for row in rows]


def _remember(tx: Connection, news: News, at: datetime) -> bool:
    """False if all parts of it were heard before."""
    known = [hashlib.sha256(f"{news.connection}\n{each}".encode()).hexdigest() for each in news.ids]
    fresh = (
        upsert(s.delivery)
        .values([{"id": each, "heard_at": at} for each in sorted(set(known))])
        .on_conflict_do_nothing()
        .returning(s.delivery.c.id)
    )
    return bool(tx.execute(fresh).all())


def soil(tx: Connection, pair_id: str, side: Side, kind: str, ids: Collection[str], at: datetime) -> None:
    """Have records read by id; of one that waits already, one hint more. Beyond ``MOST_DIRTY`` none is added."""
    dirty = s.dirty.c
    own = (dirty.pair == pair_id, dirty.side == side, dirty.kind == kind)
    told = sorted(set(ids))
    waiting = set(tx.execute(select(dirty.id).where(*own, one_of(dirty.id, told))).scalars())
    room = MOST_DIRTY - tx.execute(select(func.count()).select_from(s.dirty).where(*own)).scalar_one()
    fresh = [id_ for id_ in told if id_ not in waiting][: max(0, room)]
    rows = [
        {"pair": pair_id, "side": side, "kind": kind, "id": id_, "heard_at": at}
        for id_ in told
        if id_ in waiting or id_ in fresh
    ]
    if rows:
        statement = upsert(s.dirty).values(rows)
        tx.execute(
            statement.on_conflict_do_update(
                index_elements=["pair", "side", "kind", "id"],
                set_={"hints": s.dirty.c.hints + 1, "heard_at": statement.excluded.heard_at},
            )
        )


def prune(engine: Engine, at: datetime, *, is_dry: bool = False) -> dict[str, int]:
    """Forget deliveries that nobody repeats any more, and what no run cared to read; how many rows of each table."""
    old = at - KEPT
    sorts = ((s.delivery, s.delivery.c.heard_at < old), (s.dirty, s.dirty.c.heard_at < old))
    with engine.begin() as tx:
        if is_dry:
            return {
                each.name: tx.execute(select(func.count()).select_from(each).where(is_old)).scalar_one()
                for each, is_old in sorts
            }
        return {each.name: tx.execute(delete(each).where(is_old)).rowcount for each, is_old in sorts}
