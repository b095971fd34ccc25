"""The rate budget that several holders of one account share."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random

import pytest
from sqlalchemy import Engine, func, select

from syncd.connector import Quota
from syncd.state import schema as s
from syncd.state.budget import Budget

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
QUOTA = Quota("default", 100, 10.0)


@pytest.fixture
def budgets(engine: Engine) -> list[Budget]:
    """Three holders of one account, at half of its quota."""
    serial = count(1)
    return [Budget(engine, "crm 1", 0.5, lambda: f"slice {next(serial)}") for _ in range(3)]


def held(engine: Engine) -> int:
    with engine.connect() as tx:
        return int(tx.execute(select(func.coalesce(func.sum(s.budget.c.slice), 0))).scalar_one())


@pytest.mark.parametrize("seed", range(5))
def test_all_holders_together_never_exceed_the_share_in_any_window(budgets: list[Budget], seed: int) -> None:
    """However they take turns: in no ten seconds are there more than half of a hundred calls; nobody starves."""
    random = Random(seed)
    at, sent, made = NOW, deque[datetime](), [0, 0, 0]
    for _ in range(600):
        number = random.randrange(3)
        calls = random.choice([1, 1, 1, 2])
        if random.random() < 0.03:
            budgets[number].settle()
        if (wait := budgets[number].room(QUOTA, calls, at)) > 0:
            at += timedelta(seconds=wait)
            continue
        for _ in range(calls):
            budgets[number].spend("default", at)
            sent.append(at)
            made[number] += 1
        at += timedelta(milliseconds=random.choice([1, 20, 300, 300, 9_000 if random.random() < 0.1 else 1]))
        while sent and sent[0] <= at - timedelta(seconds=QUOTA.seconds):
            sent.popleft()
        assert len(sent) <= 50
    assert min(made) > 30


def test_one_holder_alone_has_the_whole_share(budgets: list[Budget]) -> None:
    """It is not slowed for others who do not come."""
    for _ in range(50):
        assert budgets[0].room(QUOTA, 1, NOW) == 0.0
        budgets[0].spend("default", NOW)
    assert budgets[0].room(QUOTA, 1, NOW) > 0
    assert budgets[0].room(QUOTA, 1, NOW + timedelta(seconds=10)) == 0.0


def test_a_patient_holder_leaves_room_for_what_happens_every_day(budgets: list[Budget]) -> None:
    """A backfill that takes all it can leaves a quarter of the share to a run that comes then."""
    budgets[0].is_patient = True
    while budgets[0].room(QUOTA, 1, NOW) == 0.0:
        budgets[0].spend("default", NOW)
    for _ in range(12):
        assert budgets[1].room(QUOTA, 1, NOW) == 0.0
        budgets[1].spend("default", NOW)


def test_what_is_not_used_goes_back_and_a_dead_holder_keeps_nothing(budgets: list[Budget], engine: Engine) -> None:
    """At once by who lives, by time otherwise; also what a clock that was wrong took for ever."""
    assert budgets[0].room(QUOTA, 40, NOW) == 0.0
    budgets[0].settle()
    assert held(engine) == 0
    assert budgets[1].room(QUOTA, 50, NOW) == 0.0
    assert budgets[2].room(QUOTA, 1, NOW) > 0
    assert budgets[2].room(QUOTA, 1, NOW + timedelta(seconds=20)) == 0.0
    assert budgets[0].room(QUOTA, 1, NOW - timedelta(days=1)) == 0.0


def test_many_short_runs_in_a_row_use_what_they_call_and_no_more(budgets: list[Budget], engine: Engine) -> None:
    """A run that takes a slice and needs one call of it leaves the rest to the next, at once."""
    for number in range(50):
        assert budgets[number % 3].room(QUOTA, 1, NOW) == 0.0
        budgets[number % 3].spend("default", NOW)
        budgets[number % 3].settle()
    assert held(engine) == 50
    assert budgets[0].room(QUOTA, 1, NOW) > 0


def test_accounts_and_buckets_are_apart(budgets: list[Budget], engine: Engine) -> None:
    """What one account or bucket uses up is nothing to another."""
    assert budgets[0].room(QUOTA, 50, NOW) == 0.0
    assert budgets[1].room(Quota("search", 5, 1.0), 2, NOW) == 0.0
    assert Budget(engine, "crm 2", 0.5, lambda: "another").room(QUOTA, 50, NOW) == 0.0
