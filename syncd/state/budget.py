"""The rate budget of one account, shared by whoever uses it: pairs, replicas, audits, backfills.

Calls are taken in slices. A slice counts against the vendor's window until its last call has left that
window; so all slices together never hold more than syncd's share, whoever holds them, and a holder that
dies gives its slice back by time. What happens every day goes before a backfill and an audit: those leave
a part of the share to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update

from syncd.state import schema as s

#: A slice is this part of the share, so that several holders take turns often enough.
SLICES = 10
#: What a patient holder leaves to the others.
LEFT_FOR_DAILY = 0.25


class Quota(Protocol):
    """A vendor's limit: so many calls in so many seconds, for all calls of one bucket."""

    @property
    def bucket(self) -> str: ...

    @property
    def calls(self) -> int: ...

    @property
    def seconds(self) -> float: ...


@dataclass(slots=True)
class _Slice:
    id: str
    size: int
    left: int
    seconds: float
    fit_until: datetime
    used_at: datetime | None = None

    def give_back(self, tx: Connection) -> None:
        """What was not used at once, or runs that make few calls each would eat up the share; the rest in time."""
        row = s.budget.c.holder == self.id
        if self.used_at is None:
            tx.execute(delete(s.budget).where(row))
        else:
            until = self.used_at + timedelta(seconds=self.seconds)
            tx.execute(update(s.budget).where(row).values(slice=self.size - self.left, leased_until=until))


class Budget:
    """What one holder has in hand of an account's quotas.

    ``share`` of them is what all holders together may use. ``is_patient``: this one's work may wait.
    """

    def __init__(self, engine: Engine, account: str, share: float, new_id: Callable[[], str]):
        self._engine, self._account, self._share, self._new_id = engine, account, share, new_id
        self._slices: dict[str, list[_Slice]] = {}
        self.is_patient = False

    def room(self, quota: Quota, calls: int, at: datetime) -> float:
        """Have so many calls in hand, at least: 0.0 if so, else how many seconds to wait before asking again."""
        mine = self._slices.setdefault(quota.bucket, [])
        for each in mine:
            if not timedelta(0) <= each.fit_until - at <= timedelta(seconds=each.seconds):
                each.left = 0  # too old, or our clock went back: others may have it by now
        lacks = calls - sum(each.left for each in mine)
        return self._take(quota, mine, lacks, at) if lacks > 0 else 0.0

    def spend(self, bucket: str, at: datetime) -> None:
        """One call is made now."""
        for each in self._slices.get(bucket, []):
            if each.left > 0:
                each.left, each.used_at = each.left - 1, at
                return

    def settle(self) -> None:
        """Give back what is not used; what is counts until it has left the vendor's window."""
        with self._engine.begin() as tx:
            for mine in self._slices.values():
                for each in mine:
                    each.give_back(tx)
        self._slices.clear()

    def _take(self, quota: Quota, mine: list[_Slice], lacks: int, at: datetime) -> float:
        share = self._share * ((1.0 - LEFT_FOR_DAILY) if self.is_patient else 1.0)
        most = max(lacks, int(quota.calls * share))
        here = (s.budget.c.credential == self._account, s.budget.c.bucket == quota.bucket)
        with self._engine.begin() as tx:
            # Whoever asks for the same bucket waits here for a moment, or both would be given the last call.
            tx.execute(text("SELECT pg_advisory_xact_lock(hashtext(:key))"), {"key": f"{self._account} {quota.bucket}"})
            for each in [each for each in mine if each.left == 0]:
                each.give_back(tx)
                mine.remove(each)
            # One that ends later than any slice can was taken by a clock that was wrong.
            latest = at + timedelta(seconds=3 * quota.seconds)
            gone = (s.budget.c.leased_until <= at) | (s.budget.c.leased_until > latest)
            held, first, is_any_gone = tx.execute(
                select(
                    func.coalesce(func.sum(s.budget.c.slice).filter(~gone), 0),
                    func.min(s.budget.c.leased_until).filter(~gone),
                    func.coalesce(func.bool_or(gone), False),
                ).where(*here)
            ).one()
            if is_any_gone:
                tx.execute(delete(s.budget).where(*here, gone))
            free = most - held
            if free < lacks:
                return max(0.05, float((first - at).total_seconds()))
            window = timedelta(seconds=quota.seconds)
            size = min(free, max(lacks, most // SLICES))
            taken = _Slice(self._new_id(), size, size, quota.seconds, at + window)
            tx.execute(
                insert(s.budget).values(
                    credential=self._account, bucket=quota.bucket, holder=taken.id, slice=size,
                    leased_until=at + 2 * window,
                )
            )  # fmt: skip
        mine.append(taken)
        return 0.0
