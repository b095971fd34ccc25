"""One worker per pair: acquire, renew, lose.

Each acquisition raises the pair's fencing token. A transaction that commits effects locks the
pair's row and compares the token first, so work under a lost lease cannot commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, bindparam, func, or_, select, update

from syncd.errors import LeaseLostError, NotFoundError
from syncd.state.schema import pair, run

TTL_SECONDS = 20
#: Whoever holds one renews it this often: several times within its life, in case the database is slow.
RENEW_SECONDS = 5
#: A process that is paused in the middle of a transaction would hold the pair's row for as long as it is paused:
#: the database ends its session after this long.
IDLE_SECONDS = 10
#: Workers' clocks differ a little. A lease that ends later than its whole life and this was taken
#: by a clock that was wrong; it counts as lapsed, or nobody would run the pair until that time.
SKEW_SECONDS = 300


_IDLE = func.set_config("idle_in_transaction_session_timeout", f"{IDLE_SECONDS}s", True)
_OWN = select(pair.c.fence, _IDLE).where(pair.c.id == bindparam("pair")).with_for_update(read=True)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one pair until it is lost; ``fence`` is higher than any before."""

    pair: str
    holder: str
    fence: int


def acquire(engine: Engine, pair_id: str, holder: str, at: datetime, *, ttl_seconds: int = TTL_SECONDS) -> Lease | None:
    """Take the pair if nobody holds it, or its holder let the lease lapse; None if it is held.

    Clocks decide only who may try: the fence keeps a holder out whose lease another one took too
    early. A run that the former holder left running is marked as abandoned.
    """
    latest = at + timedelta(seconds=ttl_seconds + SKEW_SECONDS)
    until = pair.c.leased_until
    with engine.begin() as tx:
        fence = tx.execute(
            update(pair)
            .where(pair.c.id == pair_id, or_(until.is_(None), until <= at, until > latest))
            .values(holder=holder, fence=pair.c.fence + 1, leased_until=at + timedelta(seconds=ttl_seconds))
            .returning(pair.c.fence, _IDLE)
        ).scalar()
        if fence is None:
            if tx.execute(select(pair.c.id).where(pair.c.id == pair_id)).scalar() is None:
                raise NotFoundError(f"no pair {pair_id}")
            return None
        tx.execute(
            update(run).where(run.c.pair == pair_id, run.c.state == "running").values(state="abandoned", finished_at=at)
        )
    return Lease(pair_id, holder, fence)


def renew(engine: Engine, lease: Lease, at: datetime, *, ttl_seconds: int = TTL_SECONDS) -> None:
    """Hold on for another ``ttl_seconds`` from ``at``. Raises LeaseLostError if another worker took over."""
    with alone(engine) as tx:
        renewed = tx.execute(
            update(pair)
            .where(pair.c.id == lease.pair, pair.c.fence == lease.fence)
            .values(leased_until=at + timedelta(seconds=ttl_seconds))
        ).rowcount
    if not renewed:
        raise LeaseLostError(f"{lease.pair}: another worker took over")


def release(engine: Engine, lease: Lease) -> None:
    """Let others have the pair at once; nothing happens if it is lost already."""
    with alone(engine) as tx:
        tx.execute(
            update(pair)
            .where(pair.c.id == lease.pair, pair.c.fence == lease.fence)
            .values(holder=None, leased_until=None)
        )


def alone(engine: Engine) -> Connection:
    """A connection on which each statement stands alone: to begin and end a transaction for one is two more trips."""
    return engine.execution_options(isolation_level="AUTOCOMMIT").connect()


def prove(tx: Connection, lease: Lease) -> None:
    """Inside a transaction: hold the pair's row and check that the lease is still ours. Raises LeaseLostError."""
    fence = tx.execute(_OWN, {"pair": lease.pair}).scalar()
    if fence != lease.fence:
        raise LeaseLostError(f"{lease.pair}: another worker took over")
