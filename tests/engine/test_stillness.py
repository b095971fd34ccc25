"""What stands still and goes on: held records, half-typed ones, fields that mean something else, clocks that jump."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from syncd.core.guard import Limit, Limits
from syncd.core.merge import Flow, OnConflict, Policy
from syncd.core.model import FIELDS, Side
from syncd.core.plan import KindRules, OnDelete
from syncd.errors import ConfigError, HaltedError, PlanMovedError
from syncd.state import desk, holds, lease, pairs
from syncd.state import schema as s
from syncd.state.journal import read_entries
from tests.engine.world import World, rules

pytestmark = pytest.mark.long

ARCHIVE: dict[str, Any] = {"deletes_to_left": OnDelete.ARCHIVE, "deletes_to_right": OnDelete.ARCHIVE}


@pytest.fixture
def world(engine: Engine) -> World:
    return World(engine)


def people(world: World, count: int) -> list[str]:
    """Contacts in Propstreet that have arrived in the CRM."""
    found = [world.hub.add("contact", {"email": f"c{number}@x.se", "first_name": "Anna"}) for number in range(count)]
    world.settle()
    return found


def hold(world: World, kind: str, side: Side, id_: str) -> None:
    holds.place(world.engine, "t/crm", kind, side, [id_], reason=holds.BY_PERSON, at=world.clock())


def lift(world: World, kind: str, side: Side, id_: str) -> bool:
    return holds.lift(world.engine, "t/crm", kind, side, id_)


def operations(world: World) -> list[tuple[str, str, tuple[str, ...]]]:
    """The last plan as (verb, kind, fields)."""
    assert world.plan_id is not None
    entries = read_entries(world.engine, world.plan_id)
    return [(each.operation.verb, each.operation.kind, tuple(each.steps)) for each in entries]


# --- held still ---------------------------------------------------------------------------


@pytest.mark.parametrize("side", list(Side))
def test_a_held_record_stands_still_and_catches_up(world: World, side: Side) -> None:
    """Held by either side's id: nothing is written to either, others go on; let go, all that happened arrives."""
    held, free = people(world, 2)
    crm = world.links("contact")
    own = {Side.LEFT: held, Side.RIGHT: crm[held]}
    hold(world, "contact", side, own[side])
    world.hub.edit("contact", held, first_name="Maria")
    world.crm.edit("contact", crm[held], last_name="Ek")
    world.hub.edit("contact", free, first_name="Maria")
    world.settle()
    assert world.plan_id is None  # not even planned
    assert world.crm.get("contact", crm[held]).values["first_name"] == "Anna"
    assert world.hub.get("contact", held).values["last_name"] is None
    assert world.crm.get("contact", crm[free]).values["first_name"] == "Maria"
    listed = list(desk.excluded(world.engine, desk.Scope("t")))
    assert [(row["propstreet"], row["crm"], row["reason"]) for row in listed] == [
        (held, crm[held], "held still: paused by a person")
    ]
    world.clock.sleep(5 * 86_400)
    world.settle()
    assert lift(world, "contact", side.other, own[side.other])
    world.settle()
    assert world.crm.get("contact", crm[held]).values["first_name"] == "Maria"
    assert world.hub.get("contact", held).values["last_name"] == "Ek"
    assert not lift(world, "contact", side, own[side])


def test_a_deletion_of_a_held_record_waits_for_it(world: World) -> None:
    """What was deleted meanwhile is deleted on the other side once the record is let go."""
    held, *_ = people(world, 4)
    crm = world.links("contact")[held]
    hold(world, "contact", Side.LEFT, held)
    world.hub.remove("contact", held)
    world.clock.sleep(90_000)
    world.settle()
    assert not world.crm.get("contact", crm).is_deleted
    lift(world, "contact", Side.LEFT, held)
    world.settle()
    assert world.crm.get("contact", crm).is_deleted


def test_a_held_newcomer_is_neither_matched_nor_created(world: World) -> None:
    """Nor does its twin of the other side get a double."""
    twin = world.hub.add("contact", {"email": "a@x.se"})
    hold(world, "contact", Side.LEFT, twin)
    world.settle()
    assert world.crm.all("contact") == []
    other = world.crm.add("contact", {"email": "a@x.se", "first_name": "Anna"})
    world.settle()
    assert len(world.hub.all("contact")) == 1
    lift(world, "contact", Side.LEFT, twin)
    world.settle()
    assert world.links("contact") == {twin: other}
    assert world.hub.get("contact", twin).values["first_name"] == "Anna"


def test_a_held_deal_holds_its_prospects(world: World) -> None:
    """Neither changed, added nor removed on the other side, until the deal is let go."""
    first, second = people(world, 2)
    deal = world.hub.add("deal", {"name": "Kv. Svalan"})
    prospect = world.hub.add("deal_contact", {"classification": "contacted"}, refs={"deal": deal, "contact": first})
    world.settle()
    hold(world, "deal", Side.RIGHT, world.links("deal")[deal])
    world.hub.edit("deal_contact", prospect, classification="bidder")
    world.hub.add("deal_contact", {"classification": "contacted"}, refs={"deal": deal, "contact": second})
    world.settle()
    assert [each.values["classification"] for each in world.crm.all("deal_contact")] == ["contacted"]
    lift(world, "deal", Side.LEFT, deal)
    world.settle()
    assert sorted(str(each.values["classification"]) for each in world.crm.all("deal_contact")) == [
        "bidder", "contacted",
    ]  # fmt: skip


def test_a_plan_that_was_made_before_a_hold_leaves_the_held_record_alone(world: World) -> None:
    """apply carries out the rest."""
    held, free = people(world, 2)
    crm = world.links("contact")
    for id_ in (held, free):
        world.hub.edit("contact", id_, first_name="Maria")
    world.run(reason="plan")
    assert world.plan_id is not None
    hold(world, "contact", Side.LEFT, held)
    world.apply(world.plan_id)
    assert world.crm.get("contact", crm[held]).values["first_name"] == "Anna"
    assert world.crm.get("contact", crm[free]).values["first_name"] == "Maria"


# --- half-typed ---------------------------------------------------------------------------


def settling(engine: Engine, seconds: float = 60) -> World:
    return World(engine, kinds=rules(contact=KindRules(settle_seconds=seconds, **ARCHIVE)))


def waiting(world: World) -> int:
    with world.engine.connect() as tx:
        return desk.census(tx, "t/crm").get("contact", {"settling": 0})["settling"]


def test_a_newcomer_and_an_edit_wait_until_they_are_quiet(engine: Engine) -> None:
    """Each further edit starts the delay anew; status counts what settles; others are not held up."""
    world = settling(engine)
    id_ = world.hub.add("contact", {"email": "a@x.se", "first_name": "A"})
    world.hub.add("company", {"name": "Nordhaus AB"})
    world.run()
    assert (world.crm.all("contact"), waiting(world), len(world.crm.all("company"))) == ([], 1, 1)
    world.clock.sleep(40)
    world.hub.edit("contact", id_, first_name="An")
    world.clock.sleep(40)
    world.run()
    assert world.crm.all("contact") == []
    world.clock.sleep(30)
    world.run()
    assert [each.values["first_name"] for each in world.crm.all("contact")] == ["An"]
    world.settle()
    world.hub.edit("contact", id_, first_name="Anna")
    world.run()
    assert ([each.values["first_name"] for each in world.crm.all("contact")], waiting(world)) == (["An"], 1)
    world.clock.sleep(61)
    world.run()
    assert ([each.values["first_name"] for each in world.crm.all("contact")], waiting(world)) == (["Anna"], 0)


def test_a_record_that_is_edited_for_ever_travels_all_the_same(engine: Engine) -> None:
    """After ten times the delay at most."""
    world = settling(engine)
    id_ = world.hub.add("contact", {"email": "a@x.se", "first_name": "0"})
    arrived = 0
    for number in range(1, 25):
        world.clock.sleep(30)
        world.hub.edit("contact", id_, first_name=str(number))
        world.run()
        if world.crm.all("contact"):
            arrived = number * 30
            break
    assert 540 <= arrived <= 630


def test_a_deletion_needs_no_delay(engine: Engine) -> None:
    """It is no half-typed value."""
    world = settling(engine)
    ids = [world.hub.add("contact", {"email": f"c{number}@x.se"}) for number in range(4)]
    world.clock.sleep(61)
    world.run()
    world.clock.sleep(61)
    world.settle()
    world.hub.remove("contact", ids[0])
    world.run()
    assert len(world.crm.all("contact")) == 3


# --- a field that means something else ----------------------------------------------------


OFF = KindRules(policies={"strategy": Policy(Flow.OFF)}, **ARCHIVE)


def remap(world: World, said: Mapping[str, str | None] | None = None, lost: str = "") -> dict[str, list[str]]:
    """Tell the pair what its file says of each field; ``said`` says something else of some contact fields, None off."""
    meanings = {kind: dict.fromkeys(fields, "usual") for kind, fields in FIELDS.items()}
    for name, word in (said or {}).items():
        meanings["contact"].pop(name)
        meanings["contact"] |= {name: word} if word is not None else {}
    carried = {kind: [name for name in fields if f"{kind}.{name}" != lost] for kind, fields in FIELDS.items()}
    held = lease.acquire(world.engine, "t/crm", "worker", world.clock())
    assert held is not None
    try:
        return pairs.remap(world.engine, held, meanings, carried)
    finally:
        lease.release(world.engine, held)


def test_a_field_that_is_switched_on_is_filled_exactly_where_the_sides_differ(engine: Engine) -> None:
    """As if they met for the first time: an empty side is filled, a conflict settled and kept, all else untouched."""
    world = World(engine, kinds=rules(contact=OFF))
    assert remap(world, {"strategy": None}) == {}
    filled, apart, same, empty, back = people(world, 5)
    crm = world.links("contact")
    for id_, value in ((filled, "left"), (apart, "hub"), (same, "x")):
        world.hub.edit("contact", id_, strategy=value)
    for id_, value in ((back, "right"), (apart, "crm"), (same, "x")):
        world.crm.edit("contact", crm[id_], strategy=value)
    world.clock.sleep(3 * 3_600)
    world.settle()
    assert world.crm.get("contact", crm[filled]).values["strategy"] is None
    world.kinds = rules()
    assert remap(world) == {"contact": ["strategy"]}
    world.clock.sleep(30)
    world.run(reason="plan", is_sweep=False)
    assert sorted(operations(world)) == [("update", "contact", ("strategy",))] * 3
    world.settle()
    assert world.crm.get("contact", crm[filled]).values["strategy"] == "left"
    assert world.hub.get("contact", back).values["strategy"] == "right"
    assert world.crm.get("contact", crm[apart]).values["strategy"] == "crm"
    assert world.hub.get("contact", apart).values["strategy"] == "crm"
    (lost,) = world.rows(s.conflict)
    assert (lost.field, lost.left_value, lost.right_value, lost.winner) == ("strategy", "hub", "crm", "right")
    assert world.hub.get("contact", empty).values["strategy"] is None


def test_a_field_that_means_something_else_is_met_anew_and_one_switched_off_is_left(world: World) -> None:
    """Another native field holds other values, of records that did not move; switching off writes nothing."""
    remap(world)
    first, second = people(world, 2)
    crm = world.links("contact")
    world.clock.sleep(3 * 3_600)
    world.settle()
    for id_, value in ((first, "theirs"), (second, None)):
        stored = world.crm.records["contact"][crm[id_]]
        stored.record = replace(stored.record, values={**stored.record.values, "strategy": value})
    assert remap(world, {"strategy": "another field"}) == {"contact": ["strategy"]}
    world.settle()
    assert world.hub.get("contact", first).values["strategy"] == "theirs"
    before = world.writes()
    world.kinds = rules(contact=OFF)
    assert remap(world, {"strategy": None}) == {}
    world.settle()
    assert world.writes() == before
    assert remap(world) == {"contact": ["strategy"]}
    assert remap(world) == {}


def test_a_one_way_field_that_is_met_anew_empties_nothing(engine: Engine) -> None:
    """The source that never had a value does not blank what the other side holds."""
    one_way = KindRules(policies={"strategy": Policy(Flow.TO_CRM, OnConflict.NEWEST)}, **ARCHIVE)
    world = World(engine, kinds=rules(contact=one_way))
    remap(world)
    (id_,) = people(world, 1)
    crm = world.links("contact")[id_]
    stored = world.crm.records["contact"][crm]
    stored.record = replace(stored.record, values={**stored.record.values, "strategy": "theirs"})
    remap(world, {"strategy": "another field"})
    world.settle()
    assert world.crm.get("contact", crm).values["strategy"] == "theirs"


def test_a_field_that_vanished_is_named_and_nothing_is_forgotten(world: World) -> None:
    """It would look as if everybody had emptied it. Switched off in the file, it is no longer missed."""
    remap(world)
    (id_,) = people(world, 1)
    before = [(row.left_base, row.right_base) for row in world.rows(s.link)]
    with pytest.raises(ConfigError, match=r"no longer carries contact\.first_name.*off"):
        remap(world, lost="contact.first_name")
    assert [(row.left_base, row.right_base) for row in world.rows(s.link)] == before
    assert world.links("contact").keys() == {id_}
    assert remap(world) == {}


# --- brakes -------------------------------------------------------------------------------


def vanish(world: World, kind: str, ids: Sequence[str]) -> dict[Any, Any]:
    """Records of the CRM that neither a listing nor a read shows; gives them back."""
    return {id_: world.crm.records[kind].pop(id_) for id_ in ids}


def test_a_doubted_listing_leaves_a_plan_that_is_applied_only_if_the_records_are_gone(world: World) -> None:
    """Nothing is written; the plan shows what would follow; apply looks at each record by its id first."""
    ids = people(world, 12)
    crm = world.links("contact")
    hidden = vanish(world, "contact", [crm[id_] for id_ in ids[:8]])
    world.clock.sleep(90_000)
    before = world.writes()
    with pytest.raises(HaltedError, match=r"8 of 12 known contact are missing from a listing \(crm\)"):
        world.run()
    plan = world.plan_id
    assert plan is not None
    assert operations(world) == [("delete", "contact", ())] * 8
    assert [row.reasons for row in world.rows(s.plan) if row.id == plan] == [
        ["8 of 12 known contact are missing from a listing (crm)"]
    ]
    assert [row for row in world.rows(s.sighting) if row.is_deleted] == []
    world.crm.records["contact"] |= hidden
    with pytest.raises(PlanMovedError, match="is there after all"):
        world.apply(plan)
    assert world.writes() == before
    world.run()
    assert world.writes() == before
    vanish(world, "contact", [crm[id_] for id_ in ids[:8]])
    world.clock.sleep(90_000)
    with pytest.raises(HaltedError):
        world.run()
    assert world.plan_id is not None
    world.apply(world.plan_id)
    assert len(world.hub.all("contact")) == 4
    world.settle()


def test_a_discarded_plan_lets_the_pair_look_for_itself_and_halt_again(world: World) -> None:
    """To discard is not to approve."""
    ids = people(world, 12)
    for id_ in ids[:8]:
        world.hub.remove("contact", id_)
    world.clock.sleep(30)
    with pytest.raises(HaltedError, match="would delete 8 contact of 12 linked"):
        world.run()
    assert world.plan_id is not None
    first = world.plan_id
    pairs.halt(world.engine, "t/crm", "would delete", first)
    pairs.discard(world.engine, first, world.clock())
    assert pairs.find(world.engine, "t/crm").halted_reason is None
    with pytest.raises(HaltedError, match="would delete 8 contact"):
        world.run()
    assert world.plan_id != first
    assert len(world.crm.all("contact")) == 12


def test_a_project_that_suddenly_shows_no_prospects_is_not_believed(world: World) -> None:
    """Ten at once from one deal, of forty known; in the next deal one goes, as every day."""
    contacts = people(world, 20)
    deals = [world.hub.add("deal", {"name": name}) for name in ("one", "two", "three")]
    for number, contact in enumerate(contacts):
        for deal in deals if number < 10 else deals[1:]:
            world.hub.add("deal_contact", {"classification": "contacted"}, refs={"deal": deal, "contact": contact})
    world.settle()
    emptied = [each.id for each in world.crm.all("deal_contact") if each.parent == world.links("deal")[deals[0]]]
    hidden = vanish(world, "deal_contact", emptied)
    before = world.writes()
    world.clock.sleep(30)
    with pytest.raises(HaltedError, match="1 of 3 parents lost all of their 10 known deal_contact"):
        world.run()
    assert operations(world) == [("delete", "deal_contact", ())] * 10
    assert world.writes() == before
    world.crm.records["deal_contact"] |= hidden
    world.run()
    assert world.writes() == before
    world.crm.remove("deal_contact", emptied[0])
    world.settle()
    assert len(world.hub.all("deal_contact")) == 49


def test_deletions_that_bleed_over_many_runs_halt_within_the_day(engine: Engine) -> None:
    """Two a run are a handful; the twenty-first of a day waits, and a new day begins anew."""
    world = World(engine, limits=Limits(deletes_in_a_day=Limit(20, 0.2)))
    ids = people(world, 60)
    gone = 0
    with pytest.raises(HaltedError, match="22 within a day"):
        for number in range(0, 40, 2):
            for id_ in ids[number : number + 2]:
                world.hub.remove("contact", id_)
            world.clock.sleep(30)
            world.run()
            gone += 2
    assert (gone, len(world.crm.all("contact"))) == (20, 40)
    world.clock.sleep(86_400)
    world.run()
    assert len(world.crm.all("contact")) == 38


# --- clocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("side", list(Side))
def test_a_remote_clock_that_jumps_ahead_and_back_hides_no_edit(world: World, side: Side) -> None:
    """Records of the future are taken, but neither a watermark nor a link takes their time for the present."""
    system = world.hub if side is Side.LEFT else world.crm
    other = world.crm if side is Side.LEFT else world.hub
    moved, quiet = people(world, 2)
    crm = world.links("contact")
    own = {id_: id_ if side is Side.LEFT else crm[id_] for id_ in (moved, quiet)}
    theirs = {id_: crm[id_] if side is Side.LEFT else id_ for id_ in (moved, quiet)}
    system.now = lambda: world.clock() + timedelta(days=3)
    system.edit("contact", own[moved], first_name="Future")
    system.now = world.clock
    stored = system.records["contact"][own[moved]]
    stored.visible_at = stored.indexed_at = world.clock()
    world.settle()
    assert other.get("contact", theirs[moved]).values["first_name"] == "Future"
    for name, id_ in (("Moved", moved), ("Quiet", quiet)):
        world.clock.sleep(600)
        system.edit("contact", own[id_], first_name=name)
        world.settle()
        assert other.get("contact", theirs[id_]).values["first_name"] == name


def test_our_own_clock_that_jumps_ahead_and_back_stops_nothing(world: World) -> None:
    """Visits, comparisons and leases that were noted in the future are not waited for."""
    contacts = people(world, 2)
    deals = [world.hub.add("deal", {"name": f"deal {number}"}) for number in range(5)]
    world.settle()
    world.visits = 2
    here = world.clock.at
    world.clock.at = here + timedelta(days=400)
    for _ in range(3):
        world.run(is_sweep=False)
    assert lease.acquire(world.engine, "t/crm", "a process that died in the future", world.clock()) is not None
    world.clock.at = here
    for deal in deals:
        world.hub.add("deal_contact", {"classification": "contacted"}, refs={"deal": deal, "contact": contacts[0]})
    vanish(world, "contact", [world.links("contact")[contacts[1]]])  # which only a comparison shows
    for _ in range(4):
        world.clock.sleep(30)
        world.run(is_sweep=False)
    assert len(world.crm.all("deal_contact")) == 5
    assert len(world.hub.all("contact")) == 1
