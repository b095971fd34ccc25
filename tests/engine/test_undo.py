"""A run taken back, between two systems in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Engine

from syncd.core.guard import Limit, Limits
from syncd.core.model import KINDS, Side
from syncd.errors import HaltedError, NotFoundError
from syncd.state import history
from syncd.state import schema as s
from syncd.testing.memory import MemorySystem
from tests.engine.test_run import seed
from tests.engine.world import World

pytestmark = pytest.mark.long


@pytest.fixture
def world(engine: Engine) -> World:
    return World(engine)


def shown(system: MemorySystem) -> dict[tuple[str, str], tuple[dict[str, object], bool]]:
    """All that a system holds, without versions and times."""
    return {
        (kind, id_): (dict(stored.record.values), stored.record.is_deleted)
        for kind, held in system.records.items()
        for id_, stored in held.items()
    }


def linked(world: World) -> dict[str, str]:
    """Everything on both sides and in step."""
    ids = seed(world)
    world.settle()
    return ids


def reasons(world: World) -> set[str]:
    return {each.reason for each in world.context_of_last_run.report.leftovers}


def edited(world: World) -> tuple[dict[str, str], str]:
    """One field that a person changed in Propstreet and that a run carried to the CRM; the run's id."""
    ids = linked(world)
    world.hub.edit("contact", ids["contact"], first_name="Anne", phone="+46701234567")
    world.clock.sleep(10)
    world.run()
    return ids, world.context_of_last_run.run_id


def test_a_run_taken_back_leaves_the_written_side_as_it_was(engine: Engine) -> None:
    """Run, then undo: the side that was written holds what it held before, and the next run plans nothing."""
    world = World(engine)
    ids = linked(world)
    world.hub.edit("contact", ids["contact"], first_name="Anne", phone="+46701234567")
    before = shown(world.crm)
    world.clock.sleep(10)
    world.run()
    assert shown(world.crm) != before
    report = world.undo()
    assert shown(world.crm) == before
    assert report.updated == {("contact", Side.RIGHT): 1}
    assert report.leftovers == []
    world.settle()
    assert shown(world.crm) == before
    assert world.hub.get("contact", ids["contact"]).values["first_name"] == "Anne"


def test_after_an_undo_a_field_travels_again_once_somebody_edits_it(world: World) -> None:
    """The two sides are agreed to differ, not kept apart."""
    ids, _ = edited(world)
    world.undo()
    world.hub.edit("contact", ids["contact"], first_name="Annika")
    world.settle()
    crm = world.links("contact")[ids["contact"]]
    assert world.crm.get("contact", crm).values["first_name"] == "Annika"
    assert world.crm.get("contact", crm).values["phone"] is None


def test_undoing_twice_equals_undoing_once(world: World) -> None:
    """The second undo of a run finds everything as before, and writes nothing."""
    _, run_id = edited(world)
    world.undo(run_id)
    once, writes = shown(world.crm), world.writes()
    report = world.undo(run_id)
    assert (report.operations, world.plan_id, shown(world.crm), world.writes()) == (0, None, once, writes)
    assert reasons(world) == {"already as before"}


def test_an_undo_can_itself_be_undone(world: World) -> None:
    """What the undo put back is taken back as any other write."""
    _, run_id = edited(world)
    after = shown(world.crm)
    world.undo(run_id)
    world.undo()
    assert shown(world.crm) == after
    world.settle()


def test_what_the_other_side_leaves_out_keeps_its_base(world: World) -> None:
    """A side that does not tell a field has not emptied it: told again unchanged, it is no news."""
    ids, run_id = edited(world)
    stored = world.hub.records["contact"][ids["contact"]]
    told = stored.record
    silent = {name: value for name, value in told.values.items() if name != "phone"}
    stored.record = replace(told, values=silent | {"strategy": "land"}, version="silent", modified_at=world.clock())
    world.undo(run_id)
    world.hub.edit("contact", ids["contact"], phone=told.values["phone"])
    world.settle()
    crm = world.links("contact")[ids["contact"]]
    assert world.crm.get("contact", crm).values["phone"] is None


def test_a_field_that_was_edited_since_stays(world: World) -> None:
    """An edit after the run, on either side, is nobody's to take back; the other fields go back."""
    ids, run_id = edited(world)
    crm = world.links("contact")[ids["contact"]]
    world.crm.edit("contact", crm, first_name="Anja")
    world.undo(run_id)
    held = world.crm.get("contact", crm).values
    assert (held["first_name"], held["phone"]) == ("Anja", None)
    assert [(each.field, each.reason) for each in world.context_of_last_run.report.leftovers] == [
        ("first_name", "edited since")
    ]
    world.settle()
    assert world.hub.get("contact", ids["contact"]).values["first_name"] == "Anja"


def test_an_edit_that_waits_on_the_other_side_is_not_swallowed(world: World) -> None:
    """Agreed to differ must never hide an edit that has not travelled yet."""
    ids, run_id = edited(world)
    world.hub.edit("contact", ids["contact"], first_name="Annika")
    world.undo(run_id)
    assert ("first_name", "edited since on the other side") in [
        (each.field, each.reason) for each in world.context_of_last_run.report.leftovers
    ]
    world.settle()
    crm = world.links("contact")[ids["contact"]]
    assert world.crm.get("contact", crm).values["first_name"] == "Annika"


def test_what_the_system_made_of_a_value_counts_as_what_was_written(world: World) -> None:
    """A value that came back normalised was not edited."""
    ids = linked(world)
    world.crm.normalise = lambda name, value: str(value).upper() if name == "strategy" and value else value
    world.hub.edit("contact", ids["contact"], strategy="offices in the north")
    world.clock.sleep(10)
    world.run()
    world.undo()
    crm = world.links("contact")[ids["contact"]]
    assert world.crm.get("contact", crm).values["strategy"] is None
    assert reasons(world) == set()


def test_records_that_the_run_made_are_removed_and_not_made_again(world: World) -> None:
    """Created records go; their sources stay alone, on hold, however often a run comes by."""
    ids = seed(world)
    world.run()
    run_id = world.context_of_last_run.run_id
    world.undo()
    assert shown(world.hub) and all(is_deleted for _, is_deleted in shown(world.crm).values())
    assert world.rows(s.link) == []
    world.settle()
    world.run(reason="backfill", anew_before=world.clock())
    assert all(is_deleted for _, is_deleted in shown(world.crm).values())
    held = {(row.kind, row.side, row.record_id): row.reason for row in world.rows(s.hold)}
    assert held["contact", "left", ids["contact"]] == f"its counterpart was undone with run {run_id}"


def test_removed_by_an_undo_records_are_made_again_by_undoing_it(world: World) -> None:
    """The undo of an undo gives each source a counterpart again, links them, and lifts the hold."""
    seed(world)
    world.run()
    world.undo()
    world.undo()
    assert {kind: len(world.crm.all(kind)) for kind in KINDS} == dict.fromkeys(KINDS, 1)
    assert world.rows(s.hold) == []
    world.settle()


def test_a_record_that_was_edited_after_the_run_made_it_stays(world: World) -> None:
    """Nobody's work is archived: an edit, travelled or not, or a relation that a person added, keeps the record."""
    ids = seed(world)
    world.run()
    run_id = world.context_of_last_run.run_id
    crm = {kind: world.links(kind)[ids[name]] for name, kind in (("contact", "contact"), ("deal", "deal"))}
    world.crm.edit("contact", crm["contact"], phone="+46709999999")
    other = world.crm.add("contact", {"first_name": "Bo", "last_name": "Ek", "email": "bo@ek.se"})
    world.crm.add("deal_contact", {"classification": "bidder"}, refs={"deal": crm["deal"], "contact": other})
    world.clock.sleep(400)
    world.settle()
    world.undo(run_id)
    left = {each.kind: each.reason for each in world.context_of_last_run.report.leftovers}
    assert left["contact"] == "edited since: phone"
    assert left["deal"].startswith("others refer to it: deal_contact c")
    assert not world.crm.get("contact", crm["contact"]).is_deleted
    assert not world.crm.get("deal", crm["deal"]).is_deleted
    assert world.crm.all("company") == []
    world.settle()


def test_a_relation_that_the_run_removed_is_made_again(world: World) -> None:
    """A prospect taken off on one side comes back on the other, alone, and travels nowhere by itself."""
    ids = linked(world)
    world.hub.remove("deal_contact", ids["prospect"])
    world.clock.sleep(400)
    world.run()
    assert world.crm.all("deal_contact") == []
    world.undo()
    undone = world.context_of_last_run.run_id
    (role,) = world.crm.all("deal_contact")
    assert role.values["classification"] == "interested"
    world.settle()
    assert world.hub.all("deal_contact") == []
    world.undo(undone)
    assert world.crm.all("deal_contact") == []


def test_a_relation_that_came_back_under_another_id_is_not_made_a_second_time(world: World) -> None:
    """Whoever brought it back, an earlier undo or a person: what stands for the same two is the relation."""
    ids = linked(world)
    world.hub.remove("deal_contact", ids["prospect"])
    world.clock.sleep(400)
    world.run()
    run_id = world.context_of_last_run.run_id
    world.undo(run_id)
    (role,) = world.crm.all("deal_contact")
    writes = world.writes()
    report = world.undo(run_id)
    assert (report.operations, world.plan_id, world.writes()) == (0, None, writes)
    assert world.crm.all("deal_contact") == [role]
    assert reasons(world) == {"there again"}


def test_a_record_that_the_run_removed_is_listed_with_the_way_back(engine: Engine) -> None:
    """What only a person can bring back is not made a second time."""
    world = World(engine)
    ids = linked(world)
    crm = world.links("company")[ids["company"]]
    world.hub.remove("employment", ids["job"])
    world.hub.remove("company", ids["company"])
    world.clock.sleep(400)
    world.run()
    world.undo()
    assert reasons(world) == {
        "deleted, and cannot be brought back from here", "names a company that is gone",
    }  # fmt: skip
    assert world.crm.get("company", crm).is_deleted


def test_a_locked_field_and_a_lost_link_are_left(world: World) -> None:
    """What must not be written is not written by an undo either."""
    ids, run_id = edited(world)
    crm = world.links("contact")[ids["contact"]]
    world.crm.change("contact", crm, locked={"phone": "a formula"})
    world.undo(run_id)
    assert reasons(world) == {"locked: a formula"}
    world.crm.remove("contact", crm)
    world.undo(run_id)
    assert reasons(world) == {"the record is gone"}


def test_an_undo_that_is_only_looked_at_writes_nothing_and_can_be_applied(world: World) -> None:
    """The plan is saved; applying it does what it shows, also after an ordinary run that had plans of its own."""
    ids, run_id = edited(world)
    before = world.writes()
    world.undo(run_id, is_dry=True)
    assert world.writes() == before
    plan_id = world.plan_id
    assert plan_id is not None
    world.hub.edit("company", ids["company"], strategy="land")
    world.clock.sleep(10)
    assert world.run().operations == 1
    assert {row.id: row.state for row in world.rows(s.plan)}[plan_id] == "open"
    world.apply(plan_id)
    crm = world.links("contact")[ids["contact"]]
    assert world.crm.get("contact", crm).values["first_name"] == "Anna"
    world.settle()


def test_a_brake_holds_an_undo_as_any_plan(engine: Engine) -> None:
    """Taking back many creates is a mass deletion: it waits for a person, and is told in the plan that is looked at."""
    world = World(engine, limits=Limits(deletes=Limit(0, 0.0)))
    seed(world)
    world.run()
    run_id = world.context_of_last_run.run_id
    with pytest.raises(HaltedError, match="would delete"):
        world.undo()
    assert len(world.crm.all("contact")) == 1
    world.undo(run_id, is_dry=True)
    plan = next(row for row in world.rows(s.plan) if row.id == world.plan_id)
    assert "would delete 1 company of 1 linked (crm)" in plan.reasons


def test_a_run_is_found_by_the_beginning_of_its_id_and_only_one_of_this_pair_is_undone(world: World) -> None:
    """An unknown run, one whose beginning is not enough, and one of another pair are refused by name."""
    seed(world)
    world.run()
    run = history.find_run(world.engine, world.context_of_last_run.run_id[:-1])
    assert run.reason == "run"
    with pytest.raises(NotFoundError, match="no run 'zzz'; syncd runs lists them"):
        history.find_run(world.engine, "zzz")
    world.run()
    with pytest.raises(NotFoundError, match="several runs begin with 'id-'"):
        history.find_run(world.engine, "id-")
    from syncd.engine.undo import draft_undo

    with pytest.raises(NotFoundError, match="is one of t/other, not of t/crm"):
        draft_undo(world.context_of_last_run, world.engine, replace(run, pair="t/other"))


def test_a_write_whose_answer_the_run_did_not_live_to_see_is_listed(world: World) -> None:
    """It was settled by a later run, whose log has it: the list says so."""

    def die(moment: str) -> None:
        if moment == "after":
            raise KeyboardInterrupt

    ids = linked(world)
    world.hub.edit("contact", ids["contact"], first_name="Anne")
    world.clock.sleep(10)
    world.crm.on_write = die
    with pytest.raises(KeyboardInterrupt):
        world.run()
    world.crm.on_write = lambda moment: None
    world.undo()
    assert reasons(world) == {"its answer was lost; what was written of it stands in the log of a later run"}
