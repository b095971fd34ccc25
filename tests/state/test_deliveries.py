"""Deliveries of webhooks in a real database: taken once, by whichever replica, and in short transactions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier

import pytest
from sqlalchemy import Engine, select

from syncd.core.model import Side
from syncd.errors import ForgedError
from syncd.state import deliveries, pairs
from syncd.state import schema as s
from syncd.state.deliveries import News
from tests.engine.world import PostgresState

NOW = datetime(2026, 11, 22, 5, 0, tzinfo=UTC)
REPLICAS = 6


@pytest.fixture
def linked(engine: Engine) -> Engine:
    """A pair that is linked with two accounts."""
    PostgresState(engine)
    for side, account in ((Side.LEFT, "hub"), (Side.RIGHT, "47")):
        pairs.prove_account(engine, "t/crm", side, "memory", account)
    return engine


def news(*ids: str, account: str | None = "47", **records: list[str]) -> News:
    return News("t/crm", Side.RIGHT, ids, account, records)


def hints(engine: Engine) -> dict[str, int]:
    with engine.connect() as tx:
        return {row[0]: row[1] for row in tx.execute(select(s.dirty.c.id, s.dirty.c.hints))}


def test_of_replicas_that_take_one_delivery_at_once_one_does(linked: Engine) -> None:
    """The database decides: a load balancer may send one attempt here and the next one there."""
    together = Barrier(REPLICAS)

    def take(_: int) -> list[str] | None:
        together.wait(30)
        return deliveries.take(linked, news("d1", contact=["1", "2"]), ["t/crm"], NOW)

    with ThreadPoolExecutor(REPLICAS) as pool:
        ends = list(pool.map(take, range(REPLICAS)))
    assert sorted(ends, key=str) == [*[None] * (REPLICAS - 1), ["t/crm"]]
    assert hints(linked) == {"1": 1, "2": 1}


def test_deliveries_about_the_same_records_wait_for_one_another_and_do_not_lock(linked: Engine) -> None:
    """Whatever the order in which each names them; every word is counted."""
    together = Barrier(REPLICAS)

    def take(number: int) -> list[str] | None:
        ids = [str(each) for each in range(40)][:: 1 if number % 2 else -1]
        together.wait(30)
        return deliveries.take(linked, news(f"d{number}", contact=ids, deal=ids), ["t/crm"], NOW)

    with ThreadPoolExecutor(REPLICAS) as pool:
        assert list(pool.map(take, range(REPLICAS))) == [["t/crm"]] * REPLICAS
    assert set(hints(linked).values()) == {REPLICAS}


def test_a_run_that_drops_what_it_read_and_deliveries_do_not_lock_one_another(linked: Engine) -> None:
    """Both take the rows in one order; what was spoken of meanwhile stays."""
    ids = [str(each) for each in range(200)]
    held = PostgresState(linked).acquire("run", NOW)
    assert held is not None
    store = PostgresState(linked).store(held)
    for turn in range(5):
        deliveries.take(linked, news(f"a{turn}", contact=ids), ["t/crm"], NOW)
        read = store.dirty()[Side.RIGHT, "contact"]
        together = Barrier(2)

        def hear(turn: int = turn, together: Barrier = together) -> object:
            together.wait(30)
            return deliveries.take(linked, news(f"b{turn}", contact=ids[::-1]), ["t/crm"], NOW)

        with ThreadPoolExecutor(1) as pool:
            heard = pool.submit(hear)
            together.wait(30)
            store.drop_dirty(Side.RIGHT, "contact", read)
            assert heard.result(30) == ["t/crm"]
        assert hints(linked).keys() == set(ids), "whichever came first, the second word is there"


def test_another_account_is_refused_before_anything_is_kept(linked: Engine) -> None:
    """Its delivery is not even known afterwards: the right one may come under the same id."""
    with pytest.raises(ForgedError):
        deliveries.take(linked, news("d1", account="48", contact=["1"]), ["t/crm"], NOW)
    assert hints(linked) == {}
    assert deliveries.take(linked, news("d1", contact=["1"]), ["t/crm"], NOW) == ["t/crm"]
    assert deliveries.take(linked, news("d2", account=None), ["t/crm"], NOW) == ["t/crm"], "it does not say"


def test_a_delivery_in_parts_is_known_only_when_all_of_them_are(linked: Engine) -> None:
    assert deliveries.take(linked, news("a", "b"), ["t/crm"], NOW) == ["t/crm"]
    assert deliveries.take(linked, news("b", "c"), ["t/crm"], NOW) == ["t/crm"]
    assert deliveries.take(linked, news("c", "a", "a"), ["t/crm"], NOW) is None


def test_of_pairs_that_nobody_knows_nothing_is_kept_but_the_delivery(engine: Engine) -> None:
    """A tenant's file may name a pair that never ran."""
    assert deliveries.take(engine, news("d1", contact=["1"]), ["t/crm", "t/other"], NOW) == []
    assert hints(engine) == {}
    assert deliveries.take(engine, news("d1", contact=["1"]), ["t/crm"], NOW) is None


def test_a_record_keeps_its_place_when_no_more_are_taken(linked: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "MOST_DIRTY", 3)
    deliveries.take(linked, news("a", contact=["5", "6"]), ["t/crm"], NOW)
    deliveries.take(linked, news("b", contact=["1", "2", "6"], deal=["9"]), ["t/crm"], NOW)
    assert hints(linked) == {"5": 1, "6": 2, "1": 1, "9": 1}
