"""The engine between two systems in memory: the laws of one run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal

import pytest

from syncd.connector import Write
from syncd.core.merge import Flow, OnConflict, Policy
from syncd.core.model import Money, Side, Value
from syncd.core.plan import KindRules, OnDelete
from syncd.errors import HaltedError, PlanMovedError
from syncd.state import schema as s
from syncd.testing.memory import MemoryFault
from tests.engine.world import State, World, rules

pytestmark = pytest.mark.long


@pytest.fixture
def world(state: State) -> World:
    return World(state)


def seed(world: World) -> dict[str, str]:
    hub = world.hub
    company = hub.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
    contact = hub.add("contact", {"first_name": "Anna", "last_name": "Berg", "email": "anna@nordhaus.se"})
    job = hub.add("employment", {"job_title": "CFO", "is_primary": True}, refs={"contact": contact, "company": company})
    deal = hub.add("deal", {"name": "Kv. Svalan 4", "amount": Money(Decimal("150000000"), "SEK")})
    prospect = hub.add("deal_contact", {"classification": "interested"}, refs={"deal": deal, "contact": contact})
    return {"company": company, "contact": contact, "job": job, "deal": deal, "prospect": prospect}


def die_after(moment: str) -> None:
    """The process ends when a write has had its effect."""
    if moment == "after":
        raise KeyboardInterrupt


def test_what_only_one_side_has_is_created_on_the_other_with_its_links(world: World) -> None:
    """Everything of one side arrives on the other in one run, children included."""
    ids = seed(world)
    report = world.run()
    assert {kind: len(world.crm.all(kind)) for kind in ids and ("company", "contact", "employment", "deal")} == {
        "company": 1,
        "contact": 1,
        "employment": 1,
        "deal": 1,
    }
    role = world.crm.all("deal_contact")[0]
    assert role.values["classification"] == "interested"
    assert role.refs == {"deal": world.links("deal")[ids["deal"]], "contact": world.links("contact")[ids["contact"]]}
    assert report.operations == 5


def test_a_second_run_plans_nothing_and_writes_nothing(world: World) -> None:
    """Termination: after a run, the next one has nothing to do, in the systems and in the base."""
    seed(world)
    world.run()
    world.clock.sleep(30)
    before = world.writes()
    links = world.rows(s.link)
    report = world.run()
    assert (report.operations, world.writes()) == (0, before)
    world.run()
    assert world.rows(s.link) == links
    assert world.rows(s.sighting) == []


def test_edits_in_different_fields_both_survive(world: World) -> None:
    """A one-sided change of a field always reaches the other side."""
    ids = seed(world)
    world.run()
    crm_contact = world.links("contact")[ids["contact"]]
    world.hub.edit("contact", ids["contact"], phone="+46701234567")
    world.crm.edit("contact", crm_contact, last_name="Bergström")
    world.clock.sleep(10)
    world.settle()
    assert world.hub.get("contact", ids["contact"]).values["last_name"] == "Bergström"
    assert world.crm.get("contact", crm_contact).values["phone"] == "+46701234567"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (OnConflict.NEWEST, "right"),
        (OnConflict.PROPSTREET, "left"),
        (OnConflict.CRM, "right"),
        (OnConflict.HOLD, None),
    ],
)
def test_a_conflict_is_settled_by_policy_and_the_loser_is_kept(
    state: State, rule: OnConflict, expected: str | None
) -> None:
    """Both sides moved one field apart: the policy says who wins; the losing value is in the conflict list."""
    world = World(state, kinds=rules(contact=KindRules(default=Policy(conflict=rule))))
    ids = seed(world)
    world.run()
    crm_contact = world.links("contact")[ids["contact"]]
    world.hub.edit("contact", ids["contact"], first_name="left")
    world.clock.sleep(5)
    world.crm.edit("contact", crm_contact, first_name="right")
    world.settle()
    left = world.hub.get("contact", ids["contact"]).values["first_name"]
    right = world.crm.get("contact", crm_contact).values["first_name"]
    assert (left, right) == ((expected, expected) if expected else ("left", "right"))
    conflict = world.rows(s.conflict)[0]
    assert (conflict.left_value, conflict.right_value, conflict.field) == ("left", "right", "first_name")
    assert (conflict.settled_at is None) == (expected is None)


def test_sets_are_merged_element_by_element(world: World) -> None:
    """What either side adds is added, what either takes off is taken off; no conflict."""
    ids = seed(world)
    world.hub.edit("contact", ids["contact"], tags=frozenset({"a", "b"}))
    world.run()
    crm_contact = world.links("contact")[ids["contact"]]
    world.hub.edit("contact", ids["contact"], tags=frozenset({"b", "c"}))
    world.crm.edit("contact", crm_contact, tags=frozenset({"a", "b", "d"}))
    world.settle()
    assert world.hub.get("contact", ids["contact"]).values["tags"] == frozenset({"b", "c", "d"})
    assert world.crm.get("contact", crm_contact).values["tags"] == frozenset({"b", "c", "d"})
    assert world.rows(s.conflict) == []


def test_a_cleared_field_is_cleared_on_the_other_side(world: World) -> None:
    """Empty is a value: set to empty on one side, it becomes empty on the other."""
    ids = seed(world)
    world.run()
    world.hub.edit("employment", ids["job"], job_title=None)
    world.settle()
    assert world.crm.all("employment")[0].values["job_title"] is None


def test_contacts_meet_by_email_and_companies_by_domain(world: World) -> None:
    """First contact: one certain match on each side links, and each side fills the other's gaps."""
    ids = seed(world)
    twin = world.crm.add("contact", {"email": "anna@nordhaus.se", "phone": "08-123 456 78"})
    firm = world.crm.add("company", {"name": "Nordhaus", "domain": "www.nordhaus.se"})
    world.run()
    assert world.links("contact") == {ids["contact"]: twin}
    assert world.links("company") == {ids["company"]: firm}
    world.settle()
    assert world.crm.get("contact", twin).values["last_name"] == "Berg"
    assert world.hub.get("contact", ids["contact"]).values["phone"] == "08-123 456 78"
    assert len(world.crm.all("contact")) == len(world.hub.all("contact")) == 1
    assert world.crm.get("contact", twin).mark == ids["contact"]


def test_two_candidates_go_to_review_and_nothing_is_created(world: World) -> None:
    """Nothing is guessed, nothing doubled: several candidates wait for a person."""
    ids = seed(world)
    for _ in range(2):
        world.crm.add("contact", {"email": "anna@nordhaus.se"})
    world.settle()
    assert world.links("contact") == {}
    assert len(world.crm.all("contact")) == 2
    review = next(row for row in world.rows(s.match_review) if row.side == "left")
    assert (review.record_id, len(review.candidates)) == (ids["contact"], 2)


def test_a_conflict_ends_with_its_link(state: State) -> None:
    """What two records disagreed on that are gone waits for nobody."""
    held = KindRules(default=Policy(conflict=OnConflict.HOLD), deletes_to_right=OnDelete.ARCHIVE)
    world = World(state, kinds=rules(contact=held))
    contact = world.hub.add("contact", {"last_name": "Berg", "email": "anna@nordhaus.se"})
    world.run()
    there = world.links("contact")[contact]
    world.hub.edit("contact", contact, last_name="Berg 2")
    world.crm.edit("contact", there, last_name="Berg 3")
    world.run()
    assert [row.settled_at for row in world.rows(s.conflict)] == [None]
    world.hub.remove("contact", contact)
    world.crm.remove("contact", there)
    world.run()
    assert [row.decided for row in world.rows(s.conflict)] == ["the link ended"]


def test_what_a_write_replaced_is_written_down_though_its_answer_never_came(state: State) -> None:
    """The effect is there, the process is not: the value that it cost is in the conflict list and the change log."""
    one_way = KindRules(policies={"last_name": Policy(Flow.TO_CRM)})
    world = World(state, kinds=rules(contact=one_way))
    contact = world.hub.add("contact", {"last_name": "Berg", "email": "anna@nordhaus.se"})
    world.run()
    there = world.links("contact")[contact]
    world.crm.edit("contact", there, last_name="Bergh")
    world.crm.on_write = die_after
    with pytest.raises(KeyboardInterrupt):
        world.run()
    world.crm.on_write = lambda moment: None
    world.clock.sleep(60)
    assert world.crm.get("contact", there).values["last_name"] == "Berg"
    world.run()
    assert [(row.field, row.right_value) for row in world.rows(s.conflict)] == [("last_name", "Bergh")]
    assert ("last_name", "Bergh", "Berg") in [(row.field, row.old, row.new) for row in world.rows(s.change_log)]


def test_our_own_write_met_again_after_a_lost_answer_is_written_down(state: State) -> None:
    """The call is repeated, meets the version that it made itself, and is told as what it is: done."""
    world = World(state)
    contact = world.hub.add("contact", {"last_name": "Berg", "email": "anna@nordhaus.se"})
    world.run()
    world.crm.edit("contact", world.links("contact")[contact], last_name="Bergh")
    world.hub.faults.append(MemoryFault("write", "after", times=1))
    world.run()
    assert ("last_name", "Berg", "Bergh") in [(row.field, row.old, row.new) for row in world.rows(s.change_log)]


def test_a_text_that_the_crm_cuts_is_not_cut_in_propstreet_because_an_answer_was_lost(state: State) -> None:
    """What our own create left there is as it was given: the cut is the CRM's, and nobody edited it."""
    world = World(state)
    world.crm.normalise = lambda name, value: value[:10] if name == "strategy" and isinstance(value, str) else value
    company = world.hub.add("company", {"name": "Nordhaus AB", "strategy": "Offices in large cities"})
    world.crm.faults.append(MemoryFault("write", "after", times=1))
    for _ in range(3):
        world.run()
    assert [each.values["strategy"] for each in world.crm.all("company")] == ["Offices in"]
    assert world.hub.get("company", company).values["strategy"] == "Offices in large cities"


def test_a_write_that_never_left_is_made_though_the_old_value_begins_like_the_new(world: World) -> None:
    """Anna, who becomes Anna-Lena, is no Anna-Lena cut short: what stood there before proves no effect."""
    anna = world.hub.add("contact", {"first_name": "Anna", "email": "a@x.se"})
    world.settle()
    world.hub.edit("contact", anna, first_name="Anna-Lena")

    def die(moment: str) -> None:
        raise KeyboardInterrupt

    world.crm.on_write = die
    with pytest.raises(KeyboardInterrupt):
        world.run()
    world.crm.on_write = lambda moment: None
    world.clock.sleep(600)
    world.settle()
    assert world.crm.get("contact", world.links("contact")[anna]).values["first_name"] == "Anna-Lena"


@pytest.mark.parametrize("verb", ["update", "delete"])
def test_what_is_edited_while_a_refused_write_waits_is_not_written_over(state: State, verb: str) -> None:
    """The CRM asks for patience, and somebody edits the record in the meantime: it is read again before it is sent."""
    world = World(state)
    anna = world.hub.add("contact", {"last_name": "Berg", "email": "anna@nordhaus.se"})
    world.run()
    there = world.links("contact")[anna]
    if verb == "update":
        world.hub.edit("contact", anna, last_name="Bergh")
    else:
        world.hub.remove("contact", anna)
    world.crm.faults.append(MemoryFault("write", "before", times=1))

    def edit(moment: str) -> None:
        world.crm.on_write = lambda moment: None
        world.crm.edit("contact", there, last_name="Ek")

    world.crm.on_write = edit
    world.settle()
    assert ("Ek" in (row.old for row in world.rows(s.change_log))) or [
        each.values["last_name"] for each in world.hub.all("contact")
    ] == ["Ek"]
    assert "Berg" not in [row.old for row in world.rows(s.change_log) if row.new == "Bergh"]


def test_a_relation_refused_for_a_while_is_looked_for_before_it_is_put_on_again(state: State) -> None:
    """Somebody may have put it on meanwhile, with what we know nothing of: then that one is taken."""
    world = World(state)
    ids = seed(world)
    world.settle()
    other = world.hub.add("contact", {"last_name": "Ek", "email": "ek@nordhaus.se"})
    world.settle()
    refs = {"deal": world.links("deal")[ids["deal"]], "contact": world.links("contact")[other]}
    world.hub.add("deal_contact", {"classification": "bidder"}, refs={"deal": ids["deal"], "contact": other})
    world.crm.faults.append(MemoryFault("write", "before", times=1))
    made: list[str] = []

    def put_on(moment: str) -> None:
        world.crm.on_write = lambda moment: None
        made.append(world.crm.add("deal_contact", {"classification": "contacted"}, refs=refs))

    world.crm.on_write = put_on
    world.crm.calls.clear()
    world.run()
    told = [
        method for method, kind, _ in world.crm.calls if kind == "deal_contact" and method in ("find", "write create")
    ]
    assert told == ["write create", "find", "write create"]
    (role,) = [each for each in world.crm.all("deal_contact") if dict(each.refs) == refs]
    assert role.id == made[0]


def test_a_write_refused_for_a_while_is_made_in_the_same_run(state: State) -> None:
    """Another look, and it is sent again; nothing of it is told twice."""
    world = World(state)
    anna = world.hub.add("contact", {"last_name": "Berg", "email": "anna@nordhaus.se"})
    world.run()
    world.hub.edit("contact", anna, last_name="Bergh")
    world.crm.faults.append(MemoryFault("write", "before", times=2))
    report = world.run()
    assert (report.operations, report.stale) == (1, 0)
    assert [row.new for row in world.rows(s.change_log) if row.verb == "update"] == ["Bergh"]


def test_a_deletion_whose_answer_never_came_is_written_down(state: State) -> None:
    """What is gone by our hand is in the change log, whoever heard of it."""
    world = World(state)
    contact = world.hub.add("contact", {"last_name": "Berg", "email": "anna@nordhaus.se"})
    world.run()
    there = world.links("contact")[contact]
    world.hub.remove("contact", contact)
    world.crm.on_write = die_after
    with pytest.raises(KeyboardInterrupt):
        world.run()
    world.crm.on_write = lambda moment: None
    world.clock.sleep(60)
    assert world.crm.get("contact", there).is_deleted
    world.run()
    assert (contact, there, "delete") in [(row.left_id, row.right_id, row.verb) for row in world.rows(s.change_log)]
    assert world.links("contact") == {}


def test_a_lost_answer_to_a_create_leaves_exactly_one_record(world: World) -> None:
    """The effect took place, the answer was lost: it is looked up, adopted, and not sent again."""
    seed(world)
    world.crm.faults.append(MemoryFault("write", "after", times=3))
    world.settle()
    assert [len(world.crm.all(kind)) for kind in ("company", "contact", "deal", "deal_contact")] == [1, 1, 1, 1]


def test_a_poison_record_becomes_a_dead_letter_and_the_rest_goes_on(world: World) -> None:
    """One refused record among many is bisected out; all others arrive."""
    for number in range(37):
        world.hub.add("contact", {"email": f"c{number}@x.se", "first_name": "poison" if number == 20 else "fine"})
    world.crm.refuses = lambda write: "INVALID_EMAIL: email" if write.values.get("first_name") == "poison" else None
    report = world.run()
    assert len(world.crm.all("contact")) == 36
    assert report.rejected["contact"] == 1
    assert list(world.states("contact").values()) == [("dead", "INVALID_EMAIL: email")]
    world.settle()


def test_a_limit_holds_for_the_whole_run(world: World) -> None:
    """A run looks again at what moved while it wrote: that gives nobody another helping."""
    for number in range(7):
        world.hub.add("company", {"name": f"C{number}", "domain": f"c{number}.se"})
    world.limit = 2
    world.run()
    assert len(world.crm.all("company")) == 2
    world.limit = None
    world.settle()
    assert len(world.crm.all("company")) == 7


def test_deletions_follow_the_tenants_rule(state: State) -> None:
    """archive passes a deletion on; hold keeps the other side and lists it."""
    world = World(state, kinds=rules(deal=KindRules(deletes_to_left=OnDelete.HOLD, deletes_to_right=OnDelete.ARCHIVE)))
    first, second = (world.hub.add("deal", {"name": name}) for name in ("one", "two"))
    world.run()
    links = world.links("deal")
    world.hub.remove("deal", first)
    world.clock.sleep(60)
    world.run()
    assert world.crm.get("deal", links[first]).is_deleted
    world.crm.remove("deal", links[second])
    world.settle()
    assert not world.hub.get("deal", second).is_deleted
    assert [(row.field, row.right_value) for row in world.rows(s.conflict)] == [("", "deleted")]


def test_a_deletion_that_is_not_passed_on_stays_so_when_all_is_compared(state: State) -> None:
    """What a full listing tells beyond the base, which never heard of a field that is not synced, is no edit."""
    off = KindRules(deletes_to_right=OnDelete.IGNORE, policies={"strategy": Policy(Flow.OFF)})
    world = World(state, kinds=rules(company=off))
    company = world.hub.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
    world.run()
    twin = world.links("company")[company]
    world.crm.edit("company", twin, strategy="Logistics")
    world.settle()
    world.hub.remove("company", company)
    world.settle()
    world.run(reason="backfill", anew_before=world.clock())
    assert world.states("company") == {twin: ("excluded", "deleted on the other side")}
    assert world.hub.all("company") == []
    world.crm.edit("company", twin, name="Nordhaus Fastigheter AB")
    world.settle()
    assert [record.values["name"] for record in world.hub.all("company")] == ["Nordhaus Fastigheter AB"]


def test_an_edited_relation_whose_other_end_is_gone_waits_for_it(state: State) -> None:
    """Deleted with its company, edited here: it comes back once there is a company to name."""
    world = World(state, kinds=rules(company=KindRules(deletes_to_left=OnDelete.IGNORE)))
    ids = seed(world)
    world.run()
    world.crm.remove("company", world.links("company")[ids["company"]])
    for record in world.crm.all("employment"):
        world.crm.remove("employment", record.id)
    world.hub.edit("employment", ids["job"], job_title="CEO")
    world.settle()
    waiting = [(row.state, row.reason) for row in world.rows(s.link) if row.kind == "employment"]
    assert waiting == [("excluded", "its company is not linked")]
    world.hub.edit("company", ids["company"], name="Nordhaus Fastigheter AB")
    world.settle()
    assert [record.values["job_title"] for record in world.crm.all("employment")] == ["CEO"]


def test_a_counterpart_that_comes_back_before_it_is_replaced_is_not_doubled(world: World) -> None:
    """Deleted there, edited here, restored and edited there while the plan was under way: both edits arrive."""
    anna = world.hub.add("contact", {"first_name": "Ana", "last_name": "Berg"})
    other = world.hub.add("company", {"name": "Nordhaus AB"})
    world.run()
    first = world.links("contact")[anna]
    world.crm.remove("contact", first)
    world.hub.edit("contact", anna, first_name="Anna")
    world.hub.edit("company", other, name="Nordhaus Fastigheter AB")

    def bring_back(moment: str) -> None:
        if world.crm.get("contact", first).is_deleted:
            world.crm.restore("contact", first)
            world.crm.edit("contact", first, last_name="Lind")

    world.crm.on_write = bring_back
    world.settle()
    assert [(each.id, each.values["first_name"]) for each in world.crm.all("contact")] == [(first, "Anna")]
    assert world.hub.get("contact", anna).values["last_name"] == "Lind"


def test_an_edit_wins_over_a_deletion(world: World) -> None:
    """Deleted on one side, edited on the other since: the record comes back."""
    deal = world.hub.add("deal", {"name": "one"})
    world.run()
    first = world.links("deal")[deal]
    world.crm.remove("deal", first)
    world.hub.edit("deal", deal, name="two")
    world.settle()
    assert [record.values["name"] for record in world.crm.all("deal")] == ["two"]
    assert not world.hub.get("deal", deal).is_deleted


def test_a_record_that_may_not_come_back_becomes_a_dead_letter(world: World) -> None:
    """Deleted there, edited here, refused as new: set aside until it moves, not sent for ever."""
    deal = world.hub.add("deal", {"name": "one"})
    world.run()
    world.crm.remove("deal", world.links("deal")[deal])
    world.hub.edit("deal", deal, name="two")
    world.crm.refuses = lambda write: "CONFLICTING_UNIQUE_VALUE" if write.verb == "create" else None
    report = world.run()
    assert report.rejected["deal"] == 1
    assert [(row.state, row.reason) for row in world.rows(s.link)] == [("dead", "CONFLICTING_UNIQUE_VALUE")]
    world.settle()
    world.crm.refuses = lambda write: None
    world.hub.edit("deal", deal, name="three")
    world.settle()
    assert [record.values["name"] for record in world.crm.all("deal")] == ["three"]


def test_the_first_run_waits_for_approval_and_writes_nothing(state: State) -> None:
    """Without a person's word a pair's first plan is saved, not applied."""
    world = World(state, is_approved=False)
    seed(world)
    with pytest.raises(HaltedError) as halted:
        world.run()
    assert halted.value.plan_id is not None
    assert world.writes() == 0
    world.apply(halted.value.plan_id)
    assert len(world.crm.all("deal_contact")) == 1


def test_a_saved_plan_is_refused_when_a_record_moved(state: State) -> None:
    """The plan is the truth: what it shows is what apply does, or apply refuses and names the record."""
    world = World(state, is_approved=False)
    ids = seed(world)
    with pytest.raises(HaltedError) as halted:
        world.run()
    world.clock.sleep(60)
    world.hub.edit("contact", ids["contact"], last_name="Moved")
    with pytest.raises(PlanMovedError, match=ids["contact"]):
        world.apply(str(halted.value.plan_id))
    assert world.writes() == 0


def test_planning_makes_no_write(world: World) -> None:
    """A plan is read-only outside, and applying it makes exactly its writes."""
    seed(world)
    world.run(reason="plan")
    assert world.writes() == 0
    operations = world.rows(s.operation)
    world.apply(str(world.plan_id))
    assert len([row for row in world.rows(s.operation) if row.state == "done"]) == len(operations) == 5
    world.settle()


def test_after_a_plan_was_applied_a_run_finds_nothing_to_do(state: State) -> None:
    """The approved first plan is the whole job: records of both sides, their marks, and the relations between them."""
    world = World(state, is_approved=False)
    seed(world)
    contact = world.crm.add("contact", {"first_name": "Ola", "last_name": "Ek", "email": "ola@ek.se"})
    company = world.crm.add("company", {"name": "Ek AB", "domain": "ek.se"})
    world.crm.add("employment", {"job_title": "VD"}, refs={"contact": contact, "company": company})
    known = world.crm.add("contact", {"first_name": "Anna", "last_name": "Berg", "email": "anna@nordhaus.se"})
    with pytest.raises(HaltedError) as halted:
        world.run()
    world.apply(str(halted.value.plan_id))
    assert {record.id: record.mark for record in world.crm.all("contact")} == {
        right: left for left, right in world.links("contact").items()
    }
    assert {contact, known} <= set(world.links("contact").values())
    before = world.writes()
    world.is_approved = True
    world.clock.sleep(60)
    assert (world.run().operations, world.writes()) == (0, before)


def test_a_field_that_is_not_synced_keeps_nothing_waiting(state: State) -> None:
    """What nobody syncs is neither written nor looked at again in every run."""
    world = World(state, kinds=rules(company=KindRules(policies={"strategy": Policy(Flow.OFF)})))
    hub = world.hub.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se", "strategy": "Logistics"})
    crm = world.crm.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se", "strategy": "Offices"})
    world.hub.add("company", {"name": "Vinga AB", "domain": "vinga.se", "strategy": "Retail"})
    world.settle()
    assert world.rows(s.sighting) == []
    assert world.hub.get("company", hub).values["strategy"] == "Logistics"
    assert world.crm.get("company", crm).values["strategy"] == "Offices"
    world.hub.edit("company", hub, strategy="Hotels")
    world.settle()
    assert world.rows(s.sighting) == []


def test_a_create_is_told_of_what_rides_on_it_and_that_of_what_carries_it(world: World) -> None:
    """A new contact comes with the employments that follow it, but for those whose company was not made."""
    ids = seed(world)
    poor = world.hub.add("company", {"name": "Poor AB", "domain": "poor.se"})
    world.hub.add("employment", {"job_title": "Chair"}, refs={"contact": ids["contact"], "company": poor})
    riders: list[tuple[object, Mapping[str, str]]] = []
    carriers: list[str | None] = []

    def look(write: Write) -> str | None:
        if write.kind == "contact":
            riders.extend((rider.values["job_title"], rider.refs) for rider in write.riders)
        if write.kind == "employment":
            carriers.append(write.carrier.id if write.carrier is not None else None)
        return "nobody wants it" if write.values.get("domain") == "poor.se" else None

    world.crm.refuses = look
    world.run()
    assert riders == [("CFO", {"company": world.links("company")[ids["company"]]})]
    assert carriers == [world.links("contact")[ids["contact"]]]


def test_a_first_meeting_that_is_cut_off_forgets_nothing(world: World) -> None:
    """What only one of two old records knows arrives, though the run died between the decision and the write."""
    hub = world.hub.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
    world.crm.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se", "strategy": "Logistics"})

    def die(moment: str) -> None:
        raise KeyboardInterrupt

    world.hub.on_write = die
    with pytest.raises(KeyboardInterrupt):
        world.run()
    world.hub.on_write = lambda moment: None
    world.clock.sleep(600)
    world.settle()
    assert world.hub.get("company", hub).values["strategy"] == "Logistics"


def test_plans_that_a_dead_run_left_behind_are_discarded(world: World) -> None:
    """Half carried out or half drawn up, a plan whose run died waits for nobody, also if nothing is left to do."""
    world.hub.add("contact", {"last_name": "Berg", "email": "a@x.se"})

    def die(moment: str) -> None:
        raise KeyboardInterrupt

    world.crm.on_write = die
    with pytest.raises(KeyboardInterrupt):
        world.run()
    assert [row.state for row in world.rows(s.plan)] == ["applying"]
    world.crm.on_write = lambda moment: None
    held = world.kept.acquire("worker", world.clock())
    assert held is not None
    for plan, reason, state in (
        ("half", "plan", "abandoned"), ("whole", "undo", "abandoned"), ("told of", "undo", "done"),
    ):  # fmt: skip
        died = world.context(held)
        died.journal.begin_run(died.run_id, reason, world.clock())
        died.journal.open_plan(plan, died.run_id, world.clock())
        if plan != "half":
            died.journal.seal(plan, (), {})
        died.journal.end_run(died.run_id, state, world.clock(), {}, {}, "")
    world.kept.release(held)
    world.clock.sleep(600)
    world.settle()
    plans = {row.id: row.state for row in world.rows(s.plan)}
    assert (plans.pop("half"), plans.pop("whole"), plans.pop("told of")) == ("discarded", "discarded", "open")
    assert set(plans.values()) == {"applied", "discarded"}
    assert all(row.ended_at for row in world.rows(s.plan) if row.state != "open")


def test_what_a_create_did_not_store_is_given_again_by_an_update(world: World) -> None:
    """A system that takes a field only by update gets it by update; one that fills in a default is heard."""
    taken: list[str] = []

    def forgetful(name: str, value: Value) -> Value:
        if name == "strategy" and value is not None and not taken:
            taken.append(str(value))
            return None
        return "SE" if name == "country" and value is None else value

    world.crm.normalise = forgetful
    hub = world.hub.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se", "strategy": "Logistics"})
    world.settle()
    assert taken == ["Logistics"]
    assert [record.values["strategy"] for record in world.crm.all("company")] == ["Logistics"]
    assert world.hub.get("company", hub).values["country"] == "SE"


def test_an_index_that_lags_behind_writes_nothing_back(world: World) -> None:
    """A listing that still shows the old value after our write is not taken for an edit."""
    ids = seed(world)
    world.run()
    world.crm.lag = timedelta(seconds=90)
    crm_contact = world.links("contact")[ids["contact"]]
    world.hub.edit("contact", ids["contact"], first_name="Maria")
    for _ in range(6):
        world.clock.sleep(20)
        world.run()
    assert world.hub.get("contact", ids["contact"]).values["first_name"] == "Maria"
    assert world.crm.get("contact", crm_contact).values["first_name"] == "Maria"


def test_rows_that_commit_late_are_seen(world: World) -> None:
    """A row that becomes visible with a stamp before the watermark is read through the overlap."""
    seed(world)
    world.run()
    world.crm.late = timedelta(seconds=120)
    world.crm.add("contact", {"email": "late@x.se"})
    world.crm.late = timedelta(0)
    world.crm.add("contact", {"email": "early@x.se"})
    world.clock.sleep(5)
    world.run()
    world.clock.sleep(200)
    world.settle()
    assert {r.values["email"] for r in world.hub.all("contact")} >= {"late@x.se", "early@x.se"}


def test_a_prospect_that_gets_a_person_moves_to_that_person(world: World) -> None:
    """Company only at first; given a contact, the old association goes and a new one comes."""
    hub = world.hub
    company = hub.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
    contact = hub.add("contact", {"email": "anna@nordhaus.se"})
    deal = hub.add("deal", {"name": "one"})
    prospect = hub.add("deal_contact", {"classification": "contacted"}, refs={"deal": deal, "company": company})
    world.run()
    assert set(world.crm.all("deal_contact")[0].refs) == {"deal", "company"}
    hub.change("deal_contact", prospect, refs={"deal": deal, "contact": contact})
    world.settle()
    assert [set(record.refs) for record in world.crm.all("deal_contact")] == [{"deal", "contact"}]
    assert len(hub.all("deal_contact")) == 1


def test_an_association_taken_off_in_the_crm_goes_in_propstreet_if_the_tenant_wants_it(world: World) -> None:
    """Association changes are seen by the sweep although the deal itself did not change."""
    ids = seed(world)
    world.run()
    role = world.crm.all("deal_contact")[0]
    world.crm.remove("deal_contact", role.id)
    world.settle()
    assert world.hub.get("deal_contact", ids["prospect"]).is_deleted


def test_a_removed_prospect_that_comes_back_comes_back_on_the_other_side(world: World) -> None:
    """Removed and restored on either side: the association goes and returns."""
    ids = seed(world)
    world.run()
    world.hub.remove("deal_contact", ids["prospect"])
    world.settle()
    assert world.crm.all("deal_contact") == []
    world.hub.restore("deal_contact", ids["prospect"])
    world.settle()
    assert len(world.crm.all("deal_contact")) == 1


def test_a_merge_in_the_crm_hands_the_link_to_the_survivor(world: World) -> None:
    """The loser of a merge is no deletion: its link goes to the survivor."""
    ids = seed(world)
    world.run()
    old = world.links("contact")[ids["contact"]]
    winner = world.crm.add("contact", {"first_name": "Anna B"})
    world.crm.merge("contact", winner, old)
    world.settle()
    assert world.links("contact") == {ids["contact"]: winner}
    assert not world.hub.get("contact", ids["contact"]).is_deleted


def test_what_hung_below_a_merged_record_is_looked_for_though_its_link_waits_for_a_person(world: World) -> None:
    """Both were linked, so neither link moves; the employment that went along in silence is found by the next run."""
    ids = seed(world)
    world.crm.lag = timedelta(0)
    world.run()
    (job,) = world.crm.all("employment")
    loser, winner = job.refs["contact"], world.crm.add("contact", {"last_name": "Ek", "email": "ek@example.com"})
    world.settle()
    world.crm.merge("contact", winner, loser)
    del world.crm.records["employment"][job.id]
    world.run(is_sweep=False)
    states = {row.left_id: row.state for row in world.rows(s.link) if row.kind in ("contact", "employment")}
    assert states[ids["contact"]] == "conflict", "merged with another linked record"
    assert [row.state for row in world.rows(s.link) if row.kind == "employment"] != ["in_step"]


def test_a_link_whose_partner_is_gone_gives_way_to_a_record_that_carries_its_mark(state: State) -> None:
    """What was in step is sighted nowhere, and is not forgotten when another partner takes the link over."""
    held = KindRules(deletes_to_left=OnDelete.HOLD, deletes_to_right=OnDelete.HOLD)
    world = World(state, kinds=rules(contact=held))
    ids = seed(world)
    world.run()
    world.crm.remove("contact", world.links("contact")[ids["contact"]])
    world.settle()
    successor = world.crm.add("contact", {"first_name": "Anna", "last_name": "Berg"}, mark=ids["contact"])
    world.settle()
    assert world.links("contact") == {ids["contact"]: successor}
    assert len(world.hub.all("contact")) == 1
    assert world.crm.get("contact", successor).values["email"] == "anna@nordhaus.se"


def merge_anew(world: World, kind: str, first: str, second: str) -> str:
    """A merge whose survivor has a new id, and the mark of the first."""
    new = world.crm.add(kind, world.crm.get(kind, first).values, mark=world.crm.get(kind, first).mark)
    for old in (first, second):
        del world.crm.records[kind][old]
    world.crm.change(kind, new, formerly=(first, second))
    return new


@pytest.mark.parametrize("kind", ["deal", "company"])
def test_two_linked_records_that_become_one_wait_for_a_person(world: World, kind: str) -> None:
    """The survivor stays with what its mark names, the other link says why it waits; nothing is made anew."""
    names = [world.hub.add(kind, {"name": name}) for name in ("one", "two")]
    world.run()
    links = world.links(kind)
    new = merge_anew(world, kind, links[names[0]], links[names[1]])
    world.clock.sleep(10_000)
    world.settle()
    assert world.links(kind) == {names[0]: new, names[1]: links[names[1]]}
    assert [record.id for record in world.crm.all(kind)] == [new]
    assert len(world.hub.all(kind)) == 2
    assert [(row.left_id, row.settled_at) for row in world.rows(s.conflict)] == [(names[1], None)]
    world.crm.edit(kind, new, name="three")
    world.settle()
    assert world.hub.get(kind, names[0]).values["name"] == "three"


def test_a_linked_record_merged_into_a_linked_one_waits_for_a_person(world: World) -> None:
    """A survivor that keeps its id keeps its link; the loser's link is listed with what became of it."""
    winner, loser = (world.hub.add("contact", {"email": f"{name}@x.se", "first_name": name}) for name in ("a", "b"))
    world.run()
    links = world.links("contact")
    del world.crm.records["contact"][links[loser]]
    world.crm.change("contact", links[winner], formerly=(links[loser],))
    world.settle()
    assert world.links("contact") == links
    assert len(world.crm.all("contact")) == 1
    assert [(row.left_id, row.right_id) for row in world.rows(s.conflict)] == [(loser, links[loser])]


def test_a_record_without_a_link_that_was_merged_away_is_met_no_more(state: State) -> None:
    """Only the survivor tells of it: whoever comes back to it finds nobody, and is made anew."""
    held = KindRules(deletes_to_left=OnDelete.HOLD, deletes_to_right=OnDelete.IGNORE)
    world = World(state, kinds=rules(company=held))
    here, there = (world.hub.add("company", {"name": name, "domain": f"{name}.se"}) for name in ("gone", "stays"))
    world.run()
    links = world.links("company")
    world.hub.remove("company", here)
    world.settle()
    # As HubSpot does it: the loser leaves every listing, and the survivor lists its id.
    del world.crm.records["company"][links[here]]
    world.crm.change("company", links[there], formerly=(links[here],))
    world.settle()
    world.hub.restore("company", here)
    world.settle()
    anew = world.links("company")[here]
    assert anew != links[here]
    assert world.crm.get("company", anew).values["name"] == "gone"


def test_a_closed_deal_is_never_written_and_listed_with_its_reason(world: World) -> None:
    """A locked record gives but does not take."""
    ids = seed(world)
    world.run()
    crm_deal = world.links("deal")[ids["deal"]]
    world.hub.change("deal", ids["deal"], locked={"*": "closed in Propstreet"})
    world.crm.edit("deal", crm_deal, name="renamed in the crm")
    world.settle()
    assert world.hub.get("deal", ids["deal"]).values["name"] == "Kv. Svalan 4"
    row = next(row for row in world.rows(s.link) if row.kind == "deal")
    assert (row.state, row.reason) == ("excluded", "closed in Propstreet")


def test_an_empty_listing_where_there_were_records_halts_and_deletes_nothing(world: World) -> None:
    """A full comparison that finds nothing of what is known is not believed."""
    for number in range(12):
        world.hub.add("contact", {"email": f"c{number}@x.se"})
    world.run()
    world.clock.sleep(90_000)
    world.crm.faults.append(MemoryFault("list", "empty", skip=1))
    with pytest.raises(HaltedError, match="12 of 12"):
        world.run()
    assert len(world.hub.all("contact")) == 12


def test_mass_deletion_waits_for_a_person(world: World) -> None:
    """More deletions than the limit: the plan is saved and nothing is deleted."""
    ids = [world.hub.add("contact", {"email": f"c{number}@x.se"}) for number in range(30)]
    world.run()
    for id_ in ids[:20]:
        world.hub.remove("contact", id_)
    world.clock.sleep(30)
    with pytest.raises(HaltedError, match="would delete 20 contact"):
        world.run()
    assert len(world.crm.all("contact")) == 30


def test_every_written_field_is_in_the_change_log(world: World) -> None:
    """Why every value is what it is: run, side, field, old, new and the rule that decided."""
    ids = seed(world)
    world.run()
    world.hub.edit("contact", ids["contact"], first_name="Maria")
    world.clock.sleep(10)
    world.run()
    row = next(r for r in world.rows(s.change_log) if r.field == "first_name" and r.verb == "update")
    assert (row.side, row.old, row.new, row.rule) == (str(Side.RIGHT), "Anna", "Maria", "moved in propstreet")


def test_two_records_met_by_an_additional_address_keep_their_first_ones(world: World) -> None:
    """Which address comes first is each system's own affair; meeting by the second one is no conflict."""
    left = world.hub.add("contact", {"email": "anna@home.se", "first_name": "Anna"})
    right = world.crm.add("contact", {"email": "anna@work.se", "other_emails": frozenset({"anna@home.se"})})
    world.settle()
    assert world.links("contact") == {left: right}
    assert world.hub.get("contact", left).values["email"] == "anna@home.se"
    assert world.crm.get("contact", right).values["email"] == "anna@work.se"
    assert world.rows(s.conflict) == []
    world.crm.edit("contact", right, email="anna@new.se")
    world.settle()
    assert world.hub.get("contact", left).values["email"] == "anna@new.se"


def test_nothing_is_written_below_a_closed_deal(world: World) -> None:
    """Prospects of a closed project are neither added nor changed nor removed; they are listed with the reason."""
    ids = seed(world)
    other = world.hub.add("contact", {"email": "bo@nordhaus.se"})
    world.run()
    world.hub.change("deal", ids["deal"], locked={"*": "closed in Propstreet"})
    world.settle()
    role = world.crm.all("deal_contact")[0]
    world.crm.edit("deal_contact", role.id, classification="bidder")
    world.crm.add("deal_contact", {}, refs={**role.refs, "contact": world.links("contact")[other]})
    world.settle()
    assert len(world.hub.all("deal_contact")) == 1
    assert world.hub.get("deal_contact", ids["prospect"]).values["classification"] == "interested"
    assert [reason for _, reason in world.states("deal_contact").values()] == ["its deal is closed in Propstreet"]


def test_an_answer_in_a_review_is_carried_out_by_the_next_run(world: World) -> None:
    """same links the two, create makes a new one, never keeps them apart for good."""
    left = world.hub.add("contact", {"email": "anna@x.se"})
    twins = [world.crm.add("contact", {"email": "anna@x.se"}) for _ in range(2)]
    world.run()
    review = next(row for row in world.rows(s.match_review) if row.side == "left")
    world.kept.answer_review(review.id, "same", twins[1], world.clock())
    world.settle()
    assert world.links("contact")[left] == twins[1]


def test_a_held_conflict_is_settled_by_a_persons_word(state: State) -> None:
    """hold waits; the answer is carried out by the next run and the conflict is closed."""
    world = World(state, kinds=rules(contact=KindRules(default=Policy(conflict=OnConflict.HOLD))))
    ids = seed(world)
    world.run()
    crm_contact = world.links("contact")[ids["contact"]]
    world.hub.edit("contact", ids["contact"], first_name="left")
    world.crm.edit("contact", crm_contact, first_name="right")
    world.run()
    conflict = world.rows(s.conflict)[0]
    world.kept.settle_conflict(conflict.id, Side.RIGHT, world.clock())
    world.settle()
    assert world.hub.get("contact", ids["contact"]).values["first_name"] == "right"
    assert [row.decided for row in world.rows(s.conflict)] == ["a person's word"]


def test_more_deals_than_visits_are_read_in_rotation(world: World) -> None:
    """With a limit of visits, every deal's children are read in turn; none is left out for ever."""
    deals = [world.hub.add("deal", {"name": f"deal {number}"}) for number in range(7)]
    contact = world.hub.add("contact", {"email": "a@x.se"})
    world.run()
    for deal in deals:
        world.hub.add("deal_contact", {"classification": "contacted"}, refs={"deal": deal, "contact": contact})
    world.visits = 3
    arrived = []
    for _ in range(4):
        world.clock.sleep(30)
        world.run()
        arrived.append(len(world.crm.all("deal_contact")))
    assert arrived == [3, 6, 7, 7]
