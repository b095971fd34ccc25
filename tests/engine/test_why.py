"""Answers to why, and answers that people give: between two systems in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Engine

from syncd.connector import Write
from syncd.core.merge import Chosen, OnConflict, Policy
from syncd.core.model import Side
from syncd.core.plan import KindRules
from syncd.core.why import CREATED
from syncd.errors import AnswerError, NotFoundError
from syncd.state import answers, desk, explain
from syncd.state import schema as s
from syncd.state.desk import Scope
from tests.engine.world import World, rules

pytestmark = pytest.mark.long

HOLD = KindRules(default=Policy(conflict=OnConflict.HOLD))


@pytest.fixture
def world(engine: Engine) -> World:
    return World(engine)


@pytest.fixture
def held(engine: Engine) -> World:
    """A world in which every conflict of a contact waits for a person."""
    return World(engine, kinds=rules(contact=HOLD))


def log(world: World) -> list[dict[str, Any]]:
    return world.kept.dump("change_log")


def anna(world: World) -> tuple[str, str]:
    """A contact that both sides know."""
    left = world.hub.add("contact", {"first_name": "Anna", "email": "anna@nordhaus.se"})
    world.settle()
    return left, world.links("contact")[left]


def apart(world: World, left: str, right: str) -> None:
    """Both change the first name, to two things."""
    world.hub.edit("contact", left, first_name="left")
    world.clock.sleep(5)
    world.crm.edit("contact", right, first_name="right")
    world.clock.sleep(30)
    world.run()


def open_conflict(world: World) -> str:
    (row,) = [each for each in world.rows(s.conflict) if each.settled_at is None]
    return f"c{row.id}"


def first_names(world: World, left: str, right: str) -> tuple[Any, Any]:
    found = world.hub.get("contact", left), world.crm.get("contact", right)
    return found[0].values["first_name"], found[1].values["first_name"]


# --- every write is explained -------------------------------------------------------------


def test_every_write_can_be_decided_again(world: World) -> None:
    """Creates, moves both ways, conflicts and deletions: each row of the log tells why, and the call that did it."""
    left, right = anna(world)
    world.hub.edit("contact", left, last_name="Berg")
    world.settle()
    world.crm.edit("contact", right, phone="+46701234567", tags=frozenset({"vip"}))
    world.settle()
    apart(world, left, right)
    world.settle()
    world.crm.remove("contact", right)
    world.settle()
    rows = log(world)
    assert {row["rule"] for row in rows} >= {
        CREATED, "moved in propstreet", "moved in crm", "set merged", "newest", "deleted on the other side",
    }  # fmt: skip
    assert all(row["because"] for row in rows)
    assert explain.unexplained(rows) == []
    calls = {row.idempotency_key for row in world.rows(s.operation)}
    assert {row["call"] for row in rows} <= calls


@pytest.mark.parametrize(
    "lie", [{"new": "something else"}, {"rule": "crm"}, {"side": "left"}, {"because": {"why": "because"}, "field": ""}]
)
def test_a_row_that_its_ground_does_not_explain_is_found(world: World, lie: Mapping[str, Any]) -> None:
    """Another value, another rule, another side, another reason: replaying tells."""
    left, _ = anna(world)
    world.hub.edit("contact", left, last_name="Berg")
    world.settle()
    row = log(world)[-1]
    assert explain.unexplained([row]) == []
    assert explain.unexplained([{**row, **lie}]) == [{**row, **lie}]


def test_who_changed_a_record_is_no_news(world: World) -> None:
    """Another name beside the same values plans nothing and keeps nothing waiting."""
    left, right = anna(world)
    world.hub.edit("contact", left, first_name="Anna")
    world.crm.edit("contact", right, first_name="Anna")
    world.settle()
    assert [row for row in world.rows(s.sighting) if row.kind == "contact"] == []
    (link,) = [row for row in world.rows(s.link) if row.kind == "contact"]
    assert (link.left_facts["modified_by"], link.right_facts["modified_by"]) == ("somebody", "somebody")


def test_a_record_is_found_by_whatever_names_it(world: World) -> None:
    """By system, by kind, by its bare id; what could be several, or none, says so."""
    left, right = anna(world)
    for ref in (left, f"propstreet:{left}", f"contact/{left}", f"contact/propstreet:{left}"):
        assert explain.find(world.engine, Scope(), ref) == explain.Place("t/crm", "contact", Side.LEFT, left)
    for ref in (right, f"crm:{right}", f"memory:{right}"):
        assert explain.find(world.engine, Scope("t", "crm"), ref).side is Side.RIGHT
    for ref in ("c99999", f"deal/{left}", f"crm:{left}", "no id at all"):
        with pytest.raises(NotFoundError, match=ref):
            explain.find(world.engine, Scope(), ref)
    with pytest.raises(NotFoundError, match="of another"):
        explain.find(world.engine, Scope("another"), left)


def test_one_id_of_two_kinds_must_be_told_apart(world: World) -> None:
    """Nobody is shown a record that was not meant."""
    left, _ = anna(world)
    deal = world.hub.records["deal"].pop(world.hub.add("deal", {"name": "Kv. Svalan 4"}))
    deal.record = type(deal.record)("deal", left, deal.record.values, modified_at=deal.record.modified_at, version="v")
    world.hub.records["deal"][left] = deal
    world.settle()
    with pytest.raises(NotFoundError, match=f"may be contact/propstreet:{left} of t/crm or deal/propstreet:{left}"):
        explain.find(world.engine, Scope(), left)
    assert explain.find(world.engine, Scope(), f"deal/{left}").kind == "deal"


def test_a_record_tells_how_it_stands_and_what_was_done(held: World) -> None:
    """Linked why and since when, both sides and their base, the last write of each field, what waits, the history."""
    left, right = anna(held)
    held.hub.edit("contact", left, last_name="Berg")
    held.settle()
    apart(held, left, right)
    told: Any = explain.record(held.engine, explain.find(held.engine, Scope(), left))
    assert (told["propstreet"], told["crm"], told["state"]) == (left, right, "conflict")
    assert told["linked"]["why"] == "only on one side"
    assert told["changed"]["crm"]["by"] == "somebody"
    name = told["fields"]["first_name"]
    assert (name["propstreet"]["value"], name["crm"]["value"], name["crm"]["base"]) == ("left", "right", "Anna")
    assert name["conflict"] == open_conflict(held)
    assert told["fields"]["last_name"]["last_write"]["rule"] == "moved in propstreet"
    assert [each["verb"] for each in told["history"]][:1] == ["create"]
    assert {each["replayed"] for each in told["history"]} == {"same"}


def test_a_field_tells_its_candidates_its_rule_its_run_and_its_call(world: World) -> None:
    """With the two values that were weighed, their times, and whether deciding again gives the same."""
    left, right = anna(world)
    apart(world, left, right)
    told: Any = explain.field(world.engine, explain.find(world.engine, Scope(), right), "first_name")
    last = told["last_write"]
    assert (last["side"], last["old"], last["new"], last["rule"]) == ("propstreet", "left", "right", "newest")
    assert last["candidates"]["propstreet"]["value"] == "left"
    assert last["candidates"]["crm"] | {"at": None} == {"value": "right", "base": "Anna", "changed": True, "at": None}
    assert last["candidates"]["crm"]["at"] > last["candidates"]["propstreet"]["at"]
    assert last["policy"] == {"flow": "both", "conflict": "newest"}
    assert last["run"]["reason"] == "run"
    assert last["call"]["state"] == "done"
    assert last["call"]["sent_at"] <= last["call"]["settled_at"]
    assert last["replayed"] == "same"
    assert [each["winner"] for each in told["conflicts"]] == ["crm"]
    with pytest.raises(NotFoundError, match="has no field 'colour'"):
        explain.field(world.engine, explain.find(world.engine, Scope(), right), "colour")


# --- conflicts ----------------------------------------------------------------------------


def test_a_conflict_tells_who_moved_each_side_and_when(held: World) -> None:
    """As far as the systems tell: the user and the time by that system's own clock."""
    left, right = anna(held)
    apart(held, left, right)
    (told,) = desk.conflicts(held.engine, Scope())
    assert (told["propstreet_by"], told["crm_by"]) == ("somebody", "somebody")
    assert str(told["propstreet_at"]) < str(told["crm_at"])
    assert told["base"] == "Anna"


@pytest.mark.parametrize("value", ["third", None])
def test_a_third_value_reaches_both_sides(held: World, value: str | None) -> None:
    """The conflict is over, the word is done with, and the log says whose word it was."""
    left, right = anna(held)
    apart(held, left, right)
    item = open_conflict(held)
    desk.settle_conflict(held.engine, item, Chosen(value), held.clock())
    held.settle()
    assert first_names(held, left, right) == (value, value)
    (told,) = desk.conflicts(held.engine, Scope())
    assert (told["decided"], told["winner"], told["chosen"]) == ("a person's word", "value", value)
    assert [row.settled for row in held.rows(s.link)] == [{}]
    assert explain.unexplained(log(held)) == []
    assert [row["rule"] for row in log(held)[-2:]] == ["a person's word"] * 2


@pytest.mark.parametrize("refusing", ["hub", "crm"])
def test_a_third_value_that_one_side_refuses_waits_for_that_side(held: World, refusing: str) -> None:
    """What one side took is kept there, nothing is taken back, and a retry gives the other side the same word."""
    left, right = anna(held)
    apart(held, left, right)
    desk.settle_conflict(held.engine, open_conflict(held), Chosen("third"), held.clock())
    system = getattr(held, refusing)

    def refuse(write: Write) -> str | None:
        return "not now" if write.values.get("first_name") == "third" else None

    system.refuses = refuse
    held.clock.sleep(30)
    held.run()
    expected = ("left", "third") if refusing == "hub" else ("third", "right")
    assert first_names(held, left, right) == expected
    system.refuses = lambda write: None
    assert desk.retry(held.engine, Scope(), []) == 1
    held.settle()
    assert first_names(held, left, right) == ("third", "third")


@pytest.mark.parametrize("answer", [Side.LEFT, Side.RIGHT, Chosen("third")])
def test_a_word_that_an_edit_overtook_is_asked_for_again(held: World, answer: Side | Chosen) -> None:
    """Between the answer and the run somebody typed something newer: that is not written over in silence."""
    left, right = anna(held)
    apart(held, left, right)
    first = open_conflict(held)
    desk.settle_conflict(held.engine, first, answer, held.clock())
    held.crm.edit("contact", right, first_name="newer")
    held.settle()
    assert first_names(held, left, right) == ("left", "newer")
    assert open_conflict(held) != first
    assert [row.settled for row in held.rows(s.link)] == [{}]
    desk.settle_conflict(held.engine, open_conflict(held), Side.RIGHT, held.clock())
    held.settle()
    assert first_names(held, left, right) == ("newer", "newer")


def test_a_word_on_a_deletion_that_an_edit_overtook_deletes_nothing(engine: Engine) -> None:
    """The survivor was edited after a person let it go: the edit wins over the deletion, as it always does."""
    world = World(engine, kinds=rules(contact=KindRules()))
    left, right = anna(world)
    world.crm.remove("contact", right)
    world.clock.sleep(30)
    world.run()
    desk.settle_conflict(world.engine, open_conflict(world), Side.RIGHT, world.clock())
    world.hub.edit("contact", left, first_name="newer")
    world.settle()
    assert not world.hub.get("contact", left).is_deleted
    assert [each.values["first_name"] for each in world.crm.all("contact")] == ["newer"]


def test_a_deletion_has_no_third_value_and_a_locked_record_takes_none(held: World) -> None:
    """Refused at once, with the reason; the conflict stays open."""
    left, right = anna(held)
    apart(held, left, right)
    held.hub.change("contact", left, locked={"first_name": "managed elsewhere"})
    held.clock.sleep(30)
    held.run()
    item = open_conflict(held)
    with pytest.raises(AnswerError, match=f"contact/propstreet:{left} takes no first_name: managed elsewhere"):
        desk.settle_conflict(held.engine, item, Chosen("third"), held.clock())
    assert open_conflict(held) == item
    held.hub.change("contact", left, locked={}, is_deleted=True)
    held.crm.edit("contact", right, first_name="Anna")
    held.clock.sleep(30)
    held.run()
    with pytest.raises(AnswerError, match="which has no third value"):
        desk.settle_conflict(held.engine, open_conflict(held), Chosen("third"), held.clock())


# --- reviews ------------------------------------------------------------------------------


def twins(world: World, **more: Any) -> tuple[str, list[str]]:
    """One company of Propstreet, and two of the CRM that may be it."""
    left = world.hub.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
    rights = [world.crm.add("company", {"name": name, "domain": "nordhaus.se"}) for name in ("Nordhaus", "N. (kopia)")]
    world.clock.sleep(30)
    world.run()
    return left, rights


def review_of(world: World, id_: str) -> dict[str, Any]:
    (found,) = [each for each in desk.reviews(world.engine, Scope()) if id_ in (each["propstreet"], each["crm"])]
    return found


def test_a_review_tells_its_candidates_apart(world: World) -> None:
    """By id, name, domain or e-mail, and by why each may be the same."""
    left, rights = twins(world)
    told = review_of(world, left)
    assert (told["name"], told["known_by"]) == ("Nordhaus AB", "nordhaus.se")
    assert [(each["id"], each["name"], each["known_by"], each["reasons"]) for each in told["candidates"]] == [
        (rights[0], "Nordhaus", "nordhaus.se", ["same domain"]),
        (rights[1], "N. (kopia)", "nordhaus.se", ["same domain"]),
    ]


def test_never_this_one_leaves_the_other_to_the_usual_rules(world: World) -> None:
    """One candidate struck out, the other is certain and links; the one struck out is a thing of its own."""
    left, rights = twins(world)
    desk.answer_review(world.engine, review_of(world, left)["id"], "never", rights[0], world.clock())
    world.settle()
    assert world.links("company")[left] == rights[1]
    assert len(world.hub.all("company")) == 2
    world.crm.edit("company", rights[0], name="Nordhaus igen")
    world.settle()
    assert world.links("company")[left] == rights[1]


@pytest.mark.parametrize(("answer", "is_made"), [("never", False), ("create", True)])
def test_none_of_them_is_made_by_the_tenants_rule_and_create_by_a_persons(
    engine: Engine, answer: str, is_made: bool
) -> None:
    """Where the tenant makes none, never makes none either; create is a person's word over that rule."""
    world = World(engine, kinds=rules(company=KindRules(create_in_right=False)))
    left, rights = twins(world)
    desk.answer_review(world.engine, review_of(world, left)["id"], answer, None, world.clock())
    world.settle()
    assert (left in world.links("company")) == is_made
    assert not {world.links("company").get(left)} & set(rights)
    assert len(world.crm.all("company")) == 2 + is_made


def test_create_holds_against_candidates_that_come_later(world: World) -> None:
    """never is about those that were shown: a third one is asked about. create is about the record."""
    left, rights = twins(world)
    desk.answer_review(world.engine, review_of(world, left)["id"], "create", None, world.clock())
    third = world.crm.add("company", {"name": "Nordhaus III", "domain": "nordhaus.se"})
    world.settle()
    assert world.links("company")[left] not in {*rights, third}


def test_same_as_one_that_is_linked_is_refused_with_the_way_out(world: World) -> None:
    """A record that stands for another already is no answer; the command that parts them is named."""
    left = world.hub.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
    right = world.crm.add("company", {"name": "Nordhaus", "domain": "nordhaus.se"})
    world.settle()
    double = world.hub.add("company", {"name": "Nordhaus AB (kopia)", "domain": "nordhaus.se"})
    world.clock.sleep(30)
    world.run()
    review = review_of(world, double)
    assert review["candidates"][0]["linked_to"] == left
    with pytest.raises(AnswerError, match=f"syncd apart t {left} {right} --kind company"):
        desk.answer_review(world.engine, review["id"], "same", right, world.clock())


# --- kept apart ---------------------------------------------------------------------------


def test_two_linked_records_are_kept_apart_for_good(world: World) -> None:
    """The link ends, both records stay, nothing is made or deleted for them, however often they are edited."""
    left, right = anna(world)
    assert answers.keep_apart(world.engine, "t/crm", None, left, right, world.clock()) == ("contact", True)
    assert answers.keep_apart(world.engine, "t/crm", "contact", left, right, world.clock()) == ("contact", False)
    world.settle()
    world.hub.edit("contact", left, last_name="Berg")
    world.crm.edit("contact", right, last_name="Ek")
    world.settle()
    assert world.links("contact") == {}
    assert (len(world.hub.all("contact")), len(world.crm.all("contact"))) == (1, 1)
    assert set(world.states("contact").values()) == {("excluded", "kept apart by a person's word")}
    told: Any = explain.record(world.engine, explain.find(world.engine, Scope(), left))
    assert told["kept_apart_from"] == [right]


def test_what_is_kept_apart_is_made_anew_only_when_a_person_says_so(world: World) -> None:
    """And not on top of the record that still carries its id: that one is named until the id is taken out."""
    left, right = anna(world)
    answers.keep_apart(world.engine, "t/crm", None, left, right, world.clock(), is_made=True)
    world.clock.sleep(30)
    world.run()
    reason = f"{right}, from which it is kept apart, carries its id; take it out there"
    assert world.states("contact")[left] == ("new", reason), world.states("contact")
    assert [each["propstreet"] for each in desk.excluded(world.engine, Scope())] == [left]
    world.crm.edit("contact", right, email="ek@nordhaus.se")
    world.crm.change("contact", right, mark=None)
    world.settle()
    links = world.links("contact")
    assert links[left] != right
    assert right in links.values()
    assert (len(world.hub.all("contact")), len(world.crm.all("contact"))) == (2, 2)


def test_what_nobody_knows_cannot_be_kept_apart(world: World) -> None:
    """The id that is wrong is named."""
    left, right = anna(world)
    with pytest.raises(NotFoundError, match="crm:c99999 is known of t/crm"):
        answers.keep_apart(world.engine, "t/crm", None, left, "c99999", world.clock())
    with pytest.raises(NotFoundError, match="propstreet:p99999 is known of t/crm"):
        answers.keep_apart(world.engine, "t/crm", None, "p99999", right, world.clock())


def test_a_record_that_is_only_too_young_is_not_listed_as_left_out(engine: Engine) -> None:
    """What waits for its own quiet is counted elsewhere; the list is of what somebody has to do something about."""
    world = World(engine, kinds=rules(contact=KindRules(settle_seconds=600)))
    left = world.hub.add("contact", {"email": "anna@nordhaus.se"})
    world.run()
    assert world.states("contact")[left] == ("new", "settling")
    assert list(desk.excluded(world.engine, Scope())) == []
