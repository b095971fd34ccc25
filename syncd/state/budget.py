"""The rate budget of one account, shared by whoever uses it: pairs, replicas, audits, backfills.

Calls are taken in slices. A slice counts against the vendor's window until its last call has left that
window; so all slices together never hold more than syncd's share, whoever holds them, and a holder that
dies gives its slice back by time. What happens every day goes before a backfill and an audit: those leave
a part of the share to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Integer, Text, bindparam, delete, func, insert, or_, select, true

from syncd.state import schema as s
from syncd.state.bulk import update_many
from syncd.state.lease import alone

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
    bucket: str
    size: int
    left: int
    seconds: float
    fit_until: datetime
    used_at: datetime | None = None

    def counts_until(self) -> datetime:
        """When the last call that was made of it has left the vendor's window; the past if none was."""
        return _PAST if self.used_at is None else self.used_at + timedelta(seconds=self.seconds)


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
        """Give back what is not used at once, or runs that make few calls each would eat up the share.

        What is used counts until it has left the vendor's window.
        """
        held = [each for mine in self._slices.values() for each in mine]
        if held:
            with alone(self._engine) as tx:
                self._give_back(tx, held)
        self._slices.clear()

    def _take(self, quota: Quota, mine: list[_Slice], lacks: int, at: datetime) -> float:
        share = self._share * ((1.0 - LEFT_FOR_DAILY) if self.is_patient else 1.0)
        most = max(lacks, int(quota.calls * share))
        window = timedelta(seconds=quota.seconds)
        spent = [each for each in mine if each.left == 0]
        taken = _Slice(self._new_id(), quota.bucket, 0, 0, quota.seconds, at + window)
        with self._engine.begin() as tx:
            # Whoever asks for the same bucket waits here for a moment, or both would be given the last call.
            tx.exec_driver_sql(_WAIT_FOR_TURN, {"key": f"{self._account} {quota.bucket}"})
            if spent:
                self._give_back(tx, spent)
            first, size = tx.execute(
                _TAKE,
                {
                    "account": self._account, "of_bucket": quota.bucket, "id": taken.id, "at": at,
                    # One that ends later than any slice can was taken by a clock that was wrong.
                    "latest": at + 3 * window, "until": at + 2 * window,
                    "most": most, "lacks": lacks, "wanted": max(lacks, most // SLICES),
                },
            ).one()  # fmt: skip
        mine[:] = [each for each in mine if each not in spent]
        if size is None:
            return max(0.05, float((first - at).total_seconds()))
        taken.size = taken.left = size
        mine.append(taken)
        return 0.0

    def _give_back(self, tx: Connection, slices: Sequence[_Slice]) -> None:
        rows = [
            {"credential": self._account, "bucket": each.bucket, "holder": each.id,
             "slice": each.size - each.left, "leased_until": each.counts_until()}
            for each in slices
        ]  # fmt: skip
        update_many(tx, s.budget, rows)


_PAST = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_WAIT_FOR_TURN = "SELECT pg_advisory_xact_lock(hashtext(%(key)s))"


def _take() -> Any:
    """Take a slice if enough is left, and sweep out what is over: (when the next slice is over, what was taken)."""
    row, whole = s.budget.c, Integer()
    here = (row.credential == bindparam("account"), row.bucket == bindparam("of_bucket"))
    gone = or_(row.leased_until <= bindparam("at"), row.leased_until > bindparam("latest"))
    held = func.coalesce(func.sum(row.slice).filter(~gone), 0)
    left = select(
        (bindparam("most", type_=whole) - held).label("calls"), func.min(row.leased_until).filter(~gone).label("first")
    )
    free = left.where(*here).cte("free")
    new = select(
        bindparam("account", type_=Text), bindparam("of_bucket", type_=Text), bindparam("id", type_=Text),
        func.least(free.c.calls, bindparam("wanted", type_=whole)), bindparam("until", type_=row.leased_until.type),
    ).where(free.c.calls >= bindparam("lacks", type_=whole))  # fmt: skip
    names = ["credential", "bucket", "holder", "slice", "leased_until"]
    taken = insert(s.budget).from_select(names, new).returning(row.slice).cte("taken")
    swept = delete(s.budget).where(*here, gone).cte("swept")
    return select(free.c.first, taken.c.slice).select_from(free.outerjoin(taken, true())).add_cte(swept)


_TAKE = _take()
