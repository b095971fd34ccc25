"""Leases and what the database holds by itself, each claim proved with two sessions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from syncd.core.model import Side
from syncd.errors import ConfigError, LeaseLostError, NotFoundError
from syncd.state import lease, pairs
from syncd.state import schema as s
from syncd.state.journal import Journal
from syncd.state.postgres import PostgresRows
from syncd.state.store import Store

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=lease.TTL_SECONDS + 1)


@pytest.fixture
def pair(engine: Engine) -> str:
    pairs.register(engine, tenant="t", name="crm", connector="c", namespace="crm", config_hash="1", at=NOW)
    return "t/crm"


def store(engine: Engine, held: lease.Lease) -> Store:
    return Store(PostgresRows(engine, held.pair), held)


def taken(engine: Engine, pair: str, holder: str, at: datetime = NOW) -> lease.Lease:
    held = lease.acquire(engine, pair, holder, at)
    assert held is not None
    return held


def test_only_one_worker_holds_a_pair(engine: Engine, pair: str) -> None:
    """A held pair is refused; a released one is free at once."""
    held = taken(engine, pair, "one")
    assert lease.acquire(engine, pair, "two", NOW) is None
    lease.release(engine, held)
    assert taken(engine, pair, "two").fence == held.fence + 1


def test_a_worker_that_lost_its_lease_commits_nothing_more(engine: Engine, pair: str) -> None:
    """The fencing token is compared inside the transaction that would commit."""
    slow = taken(engine, pair, "slow")
    taken(engine, pair, "fast", LATER)
    with pytest.raises(LeaseLostError):
        store(engine, slow).advance(Side.LEFT, "deal", "", ["2026-11-20T10:00:00Z"])
    with pytest.raises(LeaseLostError):
        lease.renew(engine, slow, LATER)
    with engine.connect() as tx:
        assert tx.execute(text("SELECT count(*) FROM feed")).scalar() == 0


def test_a_takeover_waits_for_a_commit_in_hand(engine: Engine, pair: str) -> None:
    """While one worker commits, the lease cannot change under it; before its first write it holds nothing up."""
    held = store(engine, taken(engine, pair, "one"))
    with held.transaction(), engine.connect() as other:
        other.execute(text("SET lock_timeout = '100ms'"))
        other.execute(text("UPDATE pair SET name = name"))
        other.commit()
        held.advance(Side.LEFT, "deal", "", ["2026-11-20T10:00:00Z"])
        with pytest.raises(DBAPIError):
            other.execute(text("UPDATE pair SET fence = fence + 1"))


def test_a_run_left_behind_is_marked_as_abandoned(engine: Engine, pair: str) -> None:
    """One running run per pair: the next holder ends its predecessor's."""
    Journal(store(engine, taken(engine, pair, "one"))).begin_run("r1", "run", NOW)
    Journal(store(engine, taken(engine, pair, "two", LATER))).begin_run("r2", "run", LATER)
    with engine.connect() as tx:
        states = {row.id: row.state for row in tx.execute(text("SELECT id, state FROM run"))}
    assert states == {"r1": "abandoned", "r2": "running"}


def test_one_record_has_one_link(engine: Engine, pair: str) -> None:
    """The same ref twice in links of a pair and kind is refused by the database."""
    row = {"pair": pair, "kind": "deal", "state": "in_step", "why": "", "linked_at": NOW}
    with engine.begin() as tx:
        tx.execute(insert(s.link).values(left_id="1", right_id="a", **row))
    for left_id, right_id in (("1", "b"), ("2", "a")):
        with pytest.raises(IntegrityError), engine.begin() as tx:
            tx.execute(insert(s.link).values(left_id=left_id, right_id=right_id, **row))


def test_a_watermark_never_goes_back(engine: Engine, pair: str) -> None:
    """Neither the store nor anybody's SQL can move it back."""
    held = store(engine, taken(engine, pair, "one"))
    held.advance(Side.LEFT, "deal", "", ["2026-11-20T10:00:00.1234567Z"])
    held.advance(Side.LEFT, "deal", "", ["2026-11-20T09:00:00Z", None])
    assert held.feed(Side.LEFT, "deal").watermark == "2026-11-20T10:00:00.1234567Z"
    with pytest.raises(DBAPIError, match="never goes back"), engine.begin() as tx:
        tx.execute(text("UPDATE feed SET watermark_at = '2026-11-20T09:00:00Z'"))


def test_another_account_than_the_one_linked_before_is_refused(engine: Engine, pair: str) -> None:
    """A token of another portal or org is a configuration error that names both accounts."""
    pairs.prove_account(engine, pair, Side.RIGHT, "crm", "1")
    pairs.prove_account(engine, pair, Side.RIGHT, "crm", "1")
    with pytest.raises(ConfigError, match="belong to account 2, but this pair is linked with account 1"):
        pairs.prove_account(engine, pair, Side.RIGHT, "crm", "2")


def test_an_unknown_pair_has_no_lease(engine: Engine) -> None:
    """Asking for a pair that was never registered names it."""
    with pytest.raises(NotFoundError, match="no pair x/y"):
        lease.acquire(engine, "x/y", "one", NOW)


def test_a_worker_that_is_paused_within_a_transaction_does_not_hold_the_pair(engine: Engine, pair: str) -> None:
    """The database ends a session that keeps a pair's row locked and does nothing, so that another can take over."""
    held = lease.acquire(engine, pair, "paused", NOW)
    assert held is not None
    with engine.begin() as tx:
        lease.prove(tx, held)
        asked = text("SELECT current_setting('idle_in_transaction_session_timeout')")
        assert tx.execute(asked).scalar() == f"{lease.IDLE_SECONDS}s"
    with engine.connect() as tx:
        assert tx.execute(asked).scalar() == "0"
    assert lease.IDLE_SECONDS < lease.TTL_SECONDS
