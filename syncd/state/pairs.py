"""What is remembered of each pair as a whole: its accounts, its approval, why it halted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, Connection, Engine, Row, Text, bindparam, delete, func, or_, select, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import insert as upsert

from syncd.core.model import Side
from syncd.errors import ConfigError, NotFoundError
from syncd.state import schema as s
from syncd.state.bulk import one_of
from syncd.state.lease import Lease, alone, prove

#: No vendor asks for more than a day (HubSpot's 477); what lies further ahead was written by a clock that was wrong.
LONGEST_REST = timedelta(hours=25)


#: Until when the connections of a pair asked to be left alone, of a statement about pairs.
RESTS = select(func.max(s.connection.c.resting_until)).where(s.connection.c.pair == s.pair.c.id).scalar_subquery()
_PAIR = select(s.pair, RESTS.label("resting_until")).where(s.pair.c.id == bindparam("id"))


def _asked() -> Any:
    new = upsert(s.tick).values(pair=bindparam("of"), asked_at=bindparam("at"))
    is_over = or_(s.tick.c.asked_at <= bindparam("earliest"), s.tick.c.asked_at > bindparam("latest"))
    return new.on_conflict_do_update(
        index_elements=["pair"], set_={"asked_at": new.excluded.asked_at}, where=is_over
    ).returning(s.tick.c.pair)  # fmt: skip


_TICK = _asked()


def register(
    engine: Engine, *, tenant: str, name: str, connector: str, namespace: str, config_hash: str, at: datetime
) -> bool:
    """Make a pair known, or bring it up to date; True if its settings changed since the last time.

    Records that were excluded by the old settings are looked at anew.
    """
    pair_id = f"{tenant}/{name}"
    known = select(s.pair.c.config_hash, s.tenant.c.config_hash).join(s.tenant, s.tenant.c.name == s.pair.c.tenant)
    with alone(engine) as look:
        if look.execute(known.where(s.pair.c.id == pair_id)).one_or_none() == (config_hash, config_hash):
            return False
    with engine.begin() as tx:
        tx.execute(
            upsert(s.tenant)
            .values(name=tenant, config_hash=config_hash, seen_at=at)
            .on_conflict_do_update(
                index_elements=["name"],
                set_={"config_hash": config_hash, "seen_at": at},
                where=s.tenant.c.config_hash != config_hash,
            )
        )
        before = tx.execute(select(s.pair.c.config_hash).where(s.pair.c.id == pair_id)).scalar()
        if before == config_hash:
            return False
        values = {"connector": connector, "namespace": namespace, "config_hash": config_hash}
        tx.execute(
            upsert(s.pair)
            .values(id=pair_id, tenant=tenant, name=name, **values)
            .on_conflict_do_update(index_elements=["id"], set_=values)
        )
        if before is not None:
            tx.execute(
                update(s.sighting)
                .where(s.sighting.c.pair == pair_id, s.sighting.c.state == "excluded")
                .values(state="new", reason="")
            )
    return before is not None


def hint(engine: Engine, pair_id: str, side: Side, kind: str, parents: Collection[str]) -> None:
    """A webhook says that something moved below these parents: the next run visits them before all others.

    No lease is needed, and an id that was never visited is no matter: it comes first anyway.
    """
    with engine.begin() as tx:
        count_hint(tx, pair_id, side, kind, parents)


def count_hint(tx: Connection, pair_id: str, side: Side, kind: str, parents: Collection[str]) -> None:
    """The same inside of a transaction."""
    feed = s.feed.c
    told = (feed.pair == pair_id, feed.side == side, feed.kind == kind, one_of(feed.parent, parents))
    tx.execute(update(s.feed).where(*told).values(hints=feed.hints + 1))


def find(engine: Engine, pair_id: str) -> Row[Any]:
    """What is known of a pair, and until when its connections asked to be left alone. Raises NotFoundError."""
    with alone(engine) as tx:
        row: Row[Any] | None = tx.execute(_PAIR, {"id": pair_id}).one_or_none()
    if row is None:
        raise NotFoundError(f"no pair {pair_id}")
    return row


def remap(
    engine: Engine, held: Lease, meanings: Mapping[str, Mapping[str, str]], carried: Mapping[str, Collection[str]]
) -> dict[str, list[str]]:
    """Take up what the tenant's file says of each field now; answers with the fields by kind that mean something else.

    Exactly those are met anew: their base is forgotten and their kind listed whole once more. Fields
    that both systems ``carried`` and that one of them lacks now, though the file still wants them, look as
    if everybody had emptied them. Raises ConfigError naming those; nothing is changed then.
    """
    known: Mapping[str, Mapping[str, str]] = find(engine, held.pair).mapping or {}
    now = {
        kind: {name: said for name, said in fields.items() if name in carried.get(kind, ())}
        for kind, fields in meanings.items()
    }
    if lost := sorted(
        f"{kind}.{name}"
        for kind, fields in known.items()
        for name, said in fields.items()
        if meanings.get(kind, {}).get(name) == said and name not in now[kind]
    ):
        raise ConfigError(
            f"{held.pair}: the crm or propstreet no longer carries {', '.join(lost)}, which this pair syncs. "
            "Restore it there, or set it to off below kinds.KIND.fields in the tenant's file."
        )
    changed = {
        kind: sorted(name for name, said in now[kind].items() if fields.get(name) != said)
        for kind, fields in known.items()
        if kind in now
    }
    changed = {kind: names for kind, names in changed.items() if names}
    if known != (mapping := {**known, **now}):
        with engine.begin() as tx:
            prove(tx, held)
            for kind, names in changed.items():
                _meet_anew(tx, held.pair, kind, names)
            tx.execute(update(s.pair).where(s.pair.c.id == held.pair).values(mapping=mapping))
    return changed


def _meet_anew(tx: Connection, pair_id: str, kind: str, names: Sequence[str]) -> None:
    gone = sql_cast(list(names), ARRAY(Text))
    tx.execute(
        update(s.link)
        .where(s.link.c.pair == pair_id, s.link.c.kind == kind)
        .values(left_base=s.link.c.left_base.op("-")(gone), right_base=s.link.c.right_base.op("-")(gone))
    )
    feed = (s.feed.c.pair == pair_id, s.feed.c.kind == kind)
    tx.execute(update(s.feed).where(*feed, s.feed.c.parent == "").values(listed_at=None))
    # Children have watermarks of their own, which can only be forgotten with their feeds.
    tx.execute(delete(s.feed).where(*feed, s.feed.c.parent != ""))


def prove_account(engine: Engine, pair_id: str, side: Side, connector: str, account_id: str) -> None:
    """The account of a connection never changes. Raises ConfigError if it is another than the one linked before."""
    with engine.begin() as tx:
        known = tx.execute(
            select(s.connection.c.account_id).where(s.connection.c.pair == pair_id, s.connection.c.side == side)
        ).scalar()
        if known is None:
            tx.execute(
                upsert(s.connection)
                .values(pair=pair_id, side=side, connector=connector, account_id=account_id)
                .on_conflict_do_nothing()
            )
        elif known == "":  # so far only remembered for its rest
            tx.execute(
                update(s.connection)
                .where(s.connection.c.pair == pair_id, s.connection.c.side == side)
                .values(account_id=account_id)
            )
        elif known != account_id:
            raise ConfigError(
                f"{pair_id}: the credentials of {connector} belong to account {account_id}, but this pair is linked "
                f"with account {known}. Restore the former credentials, or give the new account a pair of its own."
            )


def tick(engine: Engine, pair_id: str, at: datetime, span: timedelta) -> bool:
    """Whether it is time to ask for a run; False if a tick, of whatever replica, did so less than ``span`` ago.

    Of several that tick at once one hears True. What lies further ahead than ``span`` was noted by a clock that was
    wrong.
    """
    with alone(engine) as tx:
        given = {"of": pair_id, "at": at, "earliest": at - span, "latest": at + span}
        return tx.execute(_TICK, given).scalar() is not None


def resting_until(known: Row[Any], at: datetime) -> datetime | None:
    """Until when the connections of a pair, as ``find`` gave it, asked to be left alone; None if that is past."""
    found: datetime | None = known.resting_until
    return found if found is not None and at < found <= at + LONGEST_REST else None


def rest(engine: Engine, pair_id: str, side: Side, connector: str, until: datetime | None) -> None:
    """Remember until when a connection asked to be left alone, even before its account is known."""
    with engine.begin() as tx:
        tx.execute(
            upsert(s.connection)
            .values(pair=pair_id, side=side, connector=connector, account_id="", resting_until=until)
            .on_conflict_do_update(index_elements=["pair", "side"], set_={"resting_until": until})
        )


def approve(engine: Engine, pair_id: str, at: datetime) -> None:
    """A person let this pair run; what halted it is released."""
    with engine.begin() as tx:
        tx.execute(
            update(s.pair)
            .where(s.pair.c.id == pair_id)
            .values(approved_at=func.coalesce(s.pair.c.approved_at, at), halted_reason=None, halted_plan=None)
        )


def resume(engine: Engine, pair_id: str, at: datetime) -> None:
    """A person has seen why a pair halted and says go: no brake holds its next run.

    One that was only paused goes on as it was: what piled up meanwhile is braked as ever.
    """
    row = find(engine, pair_id)
    if row.halted_reason is not None or row.paused_at is None:
        approve(engine, pair_id, at)
    values = {"paused_at": None} | ({"is_waived": True} if row.halted_reason is not None else {})
    with engine.begin() as tx:
        tx.execute(update(s.pair).where(s.pair.c.id == pair_id).values(values))


def end_waiver(engine: Engine, pair_id: str) -> None:
    """The run that a person let go has ended well; brakes hold again."""
    with engine.begin() as tx:
        tx.execute(update(s.pair).where(s.pair.c.id == pair_id, s.pair.c.is_waived).values(is_waived=False))


def halt(engine: Engine, pair_id: str, reason: str | None, plan_id: str | None) -> None:
    """Nothing runs on this pair until a person says go; with None, it may look for itself again."""
    with engine.begin() as tx:
        tx.execute(update(s.pair).where(s.pair.c.id == pair_id).values(halted_reason=reason, halted_plan=plan_id))


def discard(engine: Engine, plan_id: str, at: datetime) -> None:
    """A person does not want this plan: it is never applied. A pair that halted with it looks for itself again.

    No brake is released by this: the next run halts anew if the reason is still there. Raises
    NotFoundError if the plan does not wait.
    """
    with engine.begin() as tx:
        pair_id = tx.execute(
            update(s.plan)
            .where(s.plan.c.id == plan_id, s.plan.c.state == "open")
            .values(state="discarded", ended_at=at)
            .returning(s.plan.c.pair)
        ).scalar()
        if pair_id is None:
            raise NotFoundError(f"plan {plan_id} does not wait; syncd status names the plans that do")
        tx.execute(
            update(s.pair)
            .where(s.pair.c.id == pair_id, s.pair.c.halted_plan == plan_id)
            .values(halted_reason=None, halted_plan=None)
        )


def pause(engine: Engine, pair_id: str, at: datetime) -> None:
    """Stop running a pair from its schedule. Nothing is lost: it catches up."""
    with engine.begin() as tx:
        tx.execute(update(s.pair).where(s.pair.c.id == pair_id).values(paused_at=at))
