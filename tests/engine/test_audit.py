"""Both sides compared with what is remembered of them, in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert, select, update

from syncd.core.audit import BEHIND, GONE, UNSEEN
from syncd.core.merge import Flow, OnConflict, Policy
from syncd.core.model import Money, Record, Value
from syncd.core.plan import KindRules, OnDelete, When
from syncd.state import schema as s
from tests.engine.test_run import seed
from tests.engine.world import World, rules

N = 7


@pytest.fixture
def world(engine: Engine) -> World:
    return World(engine)


def crowd(world: World, count: int = N) -> list[str]:
    return [
        world.hub.add("contact", {"first_name": f"A{n}", "last_name": "Berg", "email": f"a{n}@nordhaus.se"})
        for n in range(count)
    ]


def state(world: World) -> list[list[Any]]:
    """Everything that is remembered but for the runs."""
    with world.engine.connect() as tx:
        return [list(tx.execute(select(table))) for name, table in sorted(s.metadata.tables.items()) if name != "run"]


def test_a_clean_tenant_has_nothing_unexplained_and_nothing_changes(world: World) -> None:
    """All is identical; no call writes, and no row changes."""
    seed(world)
    crowd(world)
    world.settle()
    writes, before = world.writes(), state(world)
    tallies, found = world.audit()
    assert {kind: (each.identical, dict(each.known)) for kind, each in tallies.items()} == {
        "company": (1, {}), "contact": (1 + N, {}), "employment": (1, {}), "deal": (1, {}), "deal_contact": (1, {}),
    }  # fmt: skip
    assert (found, world.writes(), state(world)) == ([], writes, before)


@pytest.mark.parametrize("is_new", [True, False], ids=["its version moves", "its version stays"])
@pytest.mark.parametrize("side", ["hub", "crm"])
def test_every_write_that_was_answered_and_not_stored_is_found(world: World, side: str, is_new: bool) -> None:
    """N injected, N found, each by its refs and field; no other."""
    people = crowd(world)
    world.settle()
    links = world.links("contact")
    system, other = (world.hub, world.crm) if side == "hub" else (world.crm, world.hub)
    system.loses = lambda write: frozenset({"last_name"})
    system.is_lying_new = is_new
    for number, hub_id in enumerate(people):
        other.edit("contact", hub_id if other is world.hub else links[hub_id], last_name=f"Ek{number}", strategy="land")
    world.clock.sleep(10)
    world.run()
    system.loses = lambda write: frozenset()
    _, found = world.audit()
    lost = ["last_name"] if is_new else ["last_name", "strategy"]
    assert {(each.left_id, each.right_id, each.field, each.reason) for each in found} == {
        (hub_id, links[hub_id], name, BEHIND) for hub_id in people for name in lost
    }
    assert len(found) == N * len(lost)


def test_what_the_engine_saw_to_be_not_stored_is_found_as_well(world: World) -> None:
    """A system that tells the truth about what it kept is no better: the two sides differ, and no rule says so."""
    (hub_id,) = crowd(world, 1)
    world.settle()
    before = world.crm.all("contact")[0].values["last_name"]
    world.crm.normalise = lambda name, value: before if name == "last_name" else value
    world.hub.edit("contact", hub_id, last_name="Ek")
    world.clock.sleep(10)
    world.run()
    _, found = world.audit("contact")
    assert [(each.field, each.reason) for each in found] == [("last_name", "accepted but not stored")]


def test_conflicts_pending_edits_exclusions_and_holds_are_known_reasons(engine: Engine) -> None:
    """No false alarm: whatever waits or is kept apart on purpose is counted by its reason."""
    kinds = rules(
        contact=KindRules(
            policies={"first_name": Policy(conflict=OnConflict.HOLD), "language": Policy(Flow.TO_CRM)},
            create_in_left=When({"stage": ("customer",)}),
            deletes_to_right=OnDelete.HOLD,
        )
    )
    world = World(engine, kinds=kinds)
    people = crowd(world)
    world.settle()
    links = world.links("contact")
    conflict, pending, locked, removed, vanished, dead, held = people
    world.hub.edit("contact", conflict, first_name="left")
    world.crm.edit("contact", links[conflict], first_name="right")
    world.crm.change("contact", links[locked], locked={"phone": "a formula"})
    world.hub.edit("contact", locked, phone="+46701234567")
    world.hub.remove("contact", removed)
    world.crm.add("contact", {"email": "lead@x.se", "last_name": "Lead"}, native={"stage": "lead"})
    world.crm.refuses = lambda write: "no" if write.address and write.address.id == links[dead] else None
    world.hub.edit("contact", dead, last_name="Refused")
    world.clock.sleep(10)
    world.run()
    world.clock.sleep(10)
    world.run()
    world.hub.edit("contact", pending, last_name="Later")
    world.crm.add("contact", {"email": "new@x.se", "last_name": "New"}, native={"stage": "customer"})
    world.crm.remove("contact", links[vanished])
    with world.engine.begin() as tx:
        at = {"pair": "t/crm", "kind": "contact", "side": "left", "held_at": world.clock()}
        tx.execute(insert(s.hold).values(at | {"record_id": held, "reason": "by a person"}))
    tallies, found = world.audit()
    assert found == []
    assert dict(tallies["contact"].known) == {
        "conflict": 1,
        "excluded: a formula": 1,
        "a deletion waits for a person": 1,
        "excluded: outside the tenant's rule for creating in propstreet": 1,
        "dead letter: no": 1,
        "moved since the last run": 1,
        "new since the last run": 1,
        "deleted since the last run": 1,
    }
    assert tallies["contact"].identical == 1


def test_sides_that_an_undo_left_apart_are_agreed_to_differ(world: World) -> None:
    """The base says so on both sides: nobody needs to look."""
    (hub_id,) = crowd(world, 1)
    world.settle()
    world.hub.edit("contact", hub_id, last_name="Ek")
    world.clock.sleep(10)
    world.run()
    world.undo()
    tallies, found = world.audit("contact")
    assert (found, dict(tallies["contact"].known)) == ([], {"agreed to differ": 1})


def test_an_index_that_lags_is_no_alarm(world: World) -> None:
    """What a listing shows of the past is read again by id before it is told."""
    (hub_id,) = crowd(world, 1)
    world.settle()
    world.hub.edit("contact", hub_id, last_name="Ek")
    world.crm.lag = timedelta(seconds=60)
    world.clock.sleep(10)
    world.run()
    tallies, found = world.audit("contact")
    assert (found, tallies["contact"].identical) == ([], 1)


def test_a_record_that_is_gone_without_a_trace_and_one_that_was_never_taken_in_are_found(world: World) -> None:
    """A link to nothing, and a record older than its feed's watermark that nobody knows."""
    people = crowd(world)
    world.settle()
    crm = world.links("contact")[people[0]]
    del world.crm.records["contact"][crm]
    world.clock.sleep(100_000)
    world.hub.edit("contact", people[1], last_name="Ek")
    with world.engine.begin() as tx:
        tx.execute(delete(s.link).where(s.link.c.left_id == people[2]))
        mark = world.clock().isoformat()
        tx.execute(update(s.feed).where(s.feed.c.kind == "contact").values(watermark=mark, watermark_at=world.clock()))
    _, found = world.audit("contact")
    assert {(each.left_id, each.reason) for each in found} == {(people[0], GONE), (people[2], UNSEEN), (None, UNSEEN)}


def test_a_run_at_work_meanwhile_is_no_alarm(world: World) -> None:
    """Between the listing and the verdict a whole run writes and commits: what it wrote is no difference."""
    people = crowd(world)
    world.settle()
    for hub_id in people:
        world.hub.edit("contact", hub_id, last_name="Ek")
    world.clock.sleep(10)
    ran: list[int] = []

    def run_once() -> datetime:
        if world.crm.calls[-1][0] == "list" and not ran:
            ran.append(1)
            ran.append(world.run().operations)
        return world.clock()

    world.crm.calls.clear()
    world.crm.calls.append(("", "", 0))
    world.crm.now = run_once
    tallies, found = world.audit("contact")
    assert (found, tallies["contact"].identical) == ([], N)
    assert ran == [1, N]


def test_amounts_and_all_other_fields_are_compared(world: World) -> None:
    """Every field that the pair syncs counts, whatever it holds."""
    ids = seed(world)
    world.settle()
    deal = world.links("deal")[ids["deal"]]
    stored = world.crm.records["deal"][deal]
    stored.record = _with(stored.record, amount=Money(Decimal(1), "SEK"))
    _, found = world.audit()
    assert [(each.kind, each.field, each.reason) for each in found] == [("deal", "amount", BEHIND)]


def _with(record: Record, **values: Value) -> Record:
    return replace(record, values={**record.values, **values})
