"""History goes by age; what is open, and what explains a value that stands, does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select

from syncd.state import privacy
from syncd.state import schema as s
from tests.engine.world import PostgresState

NOW = datetime(2026, 11, 21, tzinfo=UTC)
OLD, NEW = NOW - timedelta(days=10), NOW - timedelta(days=1)
WEEK = privacy.Retention(*(timedelta(days=7) for _ in range(3)))


@pytest.fixture
def add(engine: Engine) -> Any:
    """Adds one row with the columns that a test speaks of."""
    PostgresState(engine)

    def one(table: Any, **values: object) -> Any:
        common = {"pair": "t/crm", "kind": "contact", "run": "r0"}
        known = {**common, **_REST.get(table.name, {}), **values}
        row = {name: value for name, value in known.items() if name in table.c}
        with engine.begin() as tx:
            return tx.execute(insert(table).values(row).returning(next(iter(table.primary_key)))).scalar_one()

    return one


_REST: dict[str, dict[str, object]] = {
    "change_log": {"side": "right", "verb": "update", "field": "phone", "rule": "", "left_id": "1", "right_id": "2"},
    "conflict": {"left_id": "1", "right_id": "2", "field": "phone", "opened_at": OLD},
    "link": {"left_id": "1", "right_id": "2", "state": "in_step", "why": "", "linked_at": OLD},
    "match_review": {"side": "left", "candidates": [], "opened_at": OLD},
    "operation": {"verb": "update", "side": "left"},
    "plan": {"hash": "", "run": None, "made_at": OLD, "ended_at": OLD},
    "run": {"reason": "run", "fence": 1, "started_at": OLD, "finished_at": OLD, "state": "done"},
    "hold": {"side": "left", "record_id": "1", "reason": "", "held_at": OLD},
}


def left(engine: Engine, table: Any) -> set[Any]:
    with engine.connect() as tx:
        return set(tx.execute(select(next(iter(table.primary_key)))).scalars())


def test_of_a_linked_record_the_latest_change_of_each_field_stays(engine: Engine, add: Any) -> None:
    """Why a value is what it is can be told however long ago it was written; what was before it cannot."""
    add(s.link)
    first, phone = add(s.change_log, at=OLD), add(s.change_log, at=OLD)
    name, other_side = add(s.change_log, at=OLD, field="last_name"), add(s.change_log, at=OLD, side="left")
    young = add(s.change_log, at=NEW, field="email")
    assert privacy.prune(engine, WEEK, NOW)["change_log"] == 1
    assert left(engine, s.change_log) == {phone, name, other_side, young} != {first}


def test_of_a_record_that_is_linked_no_more_nothing_stays(engine: Engine, add: Any) -> None:
    """Nobody asks why a value is what it is where there is none."""
    add(s.change_log, at=OLD)
    young = add(s.change_log, at=NEW)
    privacy.prune(engine, WEEK, NOW)
    assert left(engine, s.change_log) == {young}


def test_what_waits_for_a_person_stays_and_so_do_her_answers(engine: Engine, add: Any) -> None:
    """Open conflicts and reviews, and the word that keeps two records apart; what settled itself goes."""
    waits, young = add(s.conflict), add(s.conflict, settled_at=NEW, field="email")
    add(s.conflict, settled_at=OLD, field="last_name")
    review, word = (
        add(s.match_review, record_id="1"),
        add(s.match_review, record_id="2", answered_at=OLD, answer="never"),
    )
    add(s.match_review, record_id="3", answered_at=OLD)
    add(s.hold)
    counts = privacy.prune(engine, WEEK, NOW)
    assert (counts["conflict"], counts["match_review"]) == (1, 1)
    assert (left(engine, s.conflict), left(engine, s.match_review)) == ({waits, young}, {review, word})
    assert left(engine, s.hold) == {"t/crm"}


def test_a_plan_goes_with_its_operations_once_it_has_ended(engine: Engine, add: Any) -> None:
    """One that waits, is being applied, or holds a write whose answer is unknown stays."""
    for plan_id, state, of in (("over", "applied", "done"), ("gone", "discarded", "planned"),
                               ("waits", "open", "planned"), ("runs", "applying", "sent"),
                               ("lost", "applied", "sent")):  # fmt: skip
        add(s.plan, id=plan_id, state=state)
        add(s.operation, plan=plan_id, state=of, idempotency_key=plan_id, target_id=plan_id)
    add(s.plan, id="young", state="applied", ended_at=NEW)
    counts = privacy.prune(engine, WEEK, NOW)
    assert (counts["plan"], counts["operation"]) == (2, 2)
    assert left(engine, s.plan) == {"waits", "runs", "lost", "young"}
    assert len(left(engine, s.operation)) == 3


def test_a_run_goes_unless_something_still_speaks_of_it(engine: Engine, add: Any) -> None:
    """The last one of the pair, one that a plan or a change names, and a backfill that was cut off and not redone."""
    started = iter(OLD + timedelta(minutes=each) for each in range(20))
    for run_id, more in (("done", {}), ("redone", {"reason": "backfill", "state": "failed"}),
                         ("full", {"reason": "backfill"}), ("cut", {"reason": "backfill", "state": "failed"}),
                         ("named", {}), ("planned", {}), ("live", {"state": "running", "finished_at": None}),
                         ("last", {})):  # fmt: skip
        add(s.run, id=run_id, started_at=next(started), **more)
    add(s.change_log, at=NEW, run="named")
    add(s.plan, id="p", state="open", run="planned")
    assert privacy.prune(engine, WEEK, NOW)["run"] == 2
    assert left(engine, s.run) == {"full", "cut", "named", "planned", "live", "last"}


def test_pruning_is_bounded_counts_beforehand_and_ends(
    engine: Engine, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many more rows than one transaction takes all go; a dry run says how many and deletes none."""
    monkeypatch.setattr(privacy, "BATCH", 3)
    for _ in range(10):
        add(s.change_log, at=OLD)
    assert privacy.prune(engine, WEEK, NOW, is_dry=True)["change_log"] == 10
    assert len(left(engine, s.change_log)) == 10
    assert privacy.prune(engine, WEEK, NOW)["change_log"] == 10
    assert set(privacy.prune(engine, WEEK, NOW).values()) == {0}
