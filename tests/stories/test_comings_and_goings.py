"""Who is on a deal, and what becomes of what is deleted, merged, restored or moved out of sight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.stories.harness import BOTH_WAYS, CRMS, Known, World, worlds

pytestmark = pytest.mark.long

_NOBODY = "names no contact that can be read, and the other system needs one"
Begin = Callable[..., World]
ARCHIVE = {"deletes": BOTH_WAYS}


@pytest.fixture(params=sorted(CRMS))
def begin(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path) -> Iterator[Begin]:
    yield from worlds(engine, tmp_path, request.param)


# --- prospects ----------------------------------------------------------------------------


def test_a_prospects_life_in_propstreet_is_seen_in_the_crm(begin: Begin) -> None:
    """Added, classified, removed and restored, a prospect is followed though its project never moves."""
    world = begin("contact", "deal", "deal_contact")
    svalan, anna = world.offer()
    moved = world.hub.row("deal", svalan.hub)["updatedUtc"]
    prospect = world.hub.invite(svalan.hub, anna.hub, classification="not_contacted")
    world.settle()
    assert world.crm.invited(svalan.crm) == {anna.crm: "not_contacted"}
    for word in ("interested", "bidder", "not_contacted"):
        world.hub.emulator.classify(prospect, word)
        world.settle()
        assert world.crm.invited(svalan.crm) == {anna.crm: word}
    world.hub.archive("deal_contact", prospect)
    world.settle()
    assert world.crm.invited(svalan.crm) == {}
    world.hub.restore("deal_contact", prospect)
    world.settle()
    assert world.crm.invited(svalan.crm) == {anna.crm: "not_contacted"}
    assert world.hub.row("deal", svalan.hub)["updatedUtc"] == moved


def test_a_contacts_life_on_a_deal_is_seen_in_propstreet(begin: Begin) -> None:
    """Put on, relabelled, taken off and put on again in the CRM, though the deal itself never moves."""
    world = begin("contact", "deal", "deal_contact")
    svalan, anna = world.offer()
    moved = world.crm.moved_at(svalan.crm)
    world.crm.invite(svalan.crm, anna.crm, "contacted")
    world.settle()
    assert world.hub.invited(svalan.hub) == {anna.hub: "contacted"}
    for word in ("bidder", "not_interested"):
        world.crm.relabel(svalan.crm, anna.crm, word)
        world.settle()
        assert world.hub.invited(svalan.hub) == {anna.hub: word}
    world.crm.take_off(svalan.crm, anna.crm)
    world.settle()
    assert world.hub.invited(svalan.hub) == {}
    world.crm.invite(svalan.crm, anna.crm, "interested")
    world.settle()
    assert world.hub.invited(svalan.hub) == {anna.hub: "interested"}
    assert world.crm.moved_at(svalan.crm) == moved


def test_both_sides_classify_one_prospect(begin: Begin) -> None:
    """Classified apart on both sides, the policy decides and the loser is kept."""
    world = begin("contact", "deal", "deal_contact", deal_contact={"conflict": "crm"})
    svalan, anna = world.offer()
    prospect = world.hub.invite(svalan.hub, anna.hub)
    world.settle()
    world.hub.emulator.classify(prospect, "interested")
    world.crm.relabel(svalan.crm, anna.crm, "bidder")
    world.settle()
    assert world.hub.invited(svalan.hub) == {anna.hub: "bidder"}
    assert world.crm.invited(svalan.crm) == {anna.crm: "bidder"}
    (kept,) = world.conflicts()
    assert (kept["field"], kept["propstreet_value"], kept["winner"]) == ("classification", "interested", "crm")


def test_a_company_as_prospect_is_later_given_a_contact(begin: Begin) -> None:
    """A company alone is shown where the CRM can hold it; once it has a contact, that contact is on the deal."""
    world = begin()
    firm = world.hub.add("company", name="Vinga AB", domain="vinga.se")
    bo = world.hub.add("contact", last_name="Ek", email="bo@vinga.se")
    world.hub.employ(bo, firm)
    deal = world.hub.add("deal", name="Kv. Svalan 4")
    prospect = world.hub.invite(deal, company=firm, classification="interested")
    world.meet()
    crm_deal, crm_firm = world.crm.of("deal", deal), world.crm.of("company", firm)
    assert world.crm.invited(crm_deal) == {}
    if world.crm.name == "hubspot":
        bonds = world.crm.emulator.associations("deals", crm_deal, "companies")
        assert bonds == {crm_firm: {"Interested", "Propstreet prospect"}}
    else:
        assert world.excluded("deal_contact") == {(prospect, None): _NOBODY}
    world.hub.emulator.edit("prospects", prospect, {"contactId": bo})
    world.settle()
    assert world.crm.invited(crm_deal) == {world.crm.of("contact", bo): "interested"}
    assert world.hub.invited(deal) == {bo: "interested"}
    assert world.excluded("deal_contact") == {}
    if world.crm.name == "hubspot":
        assert world.crm.emulator.associations("deals", crm_deal, "companies") == {}


def test_a_teasers_prospects_arrive_with_deadline_and_acceptance(begin: Begin) -> None:
    """Matched by Propstreet: a readable investor arrives with the teaser's dates, an unreadable one is listed."""
    world = begin("contact", "deal", "deal_contact")
    svalan, anna = world.offer()
    deadline = world.clock() + timedelta(days=14)
    known, unknown = world.hub.emulator.communicate(svalan.hub, [anna.hub, None], deadline)
    world.settle()
    assert world.crm.invited(svalan.crm) == {anna.crm: "not_contacted"}
    reply_by = f"{deadline:%Y-%m-%dT%H:%M:%SZ}"
    assert world.crm.teaser(svalan.crm, anna.crm) == (reply_by, None)
    assert list(world.excluded("deal_contact")) == [(unknown, None)]
    world.hub.emulator.accept(known)
    accepted = str(world.hub.row("deal_contact", known)["teaser"]["acceptedUtc"])[:19] + "Z"
    world.settle()
    assert world.crm.teaser(svalan.crm, anna.crm) == (reply_by, accepted)
    assert world.crm.get("deal", svalan.crm)["stage"] == world.crm.stages["late"]


def test_labels_roles_and_refs_of_others_survive(begin: Begin) -> None:
    """Whatever happens to a prospect, other people's labels, roles and refs on it stand as they stood."""
    world = begin("contact", "deal", "deal_contact")
    svalan, anna = world.offer()
    prospect = world.hub.invite(svalan.hub, anna.hub)
    world.hub.emulator.edit("prospects", prospect, {"externalRefs": [{"namespace": "pipedrive", "id": "P-9"}]})
    world.settle()
    if world.crm.name == "hubspot":
        world.crm.emulator.associate("deals", svalan.crm, "contacts", anna.crm, ["Decision maker"])
    else:
        world.crm.invite(svalan.crm, anna.crm)
        role = world.crm.emulator.all("OpportunityContactRole")[-1]["Id"]
        world.crm.emulator.edit("OpportunityContactRole", role, {"Role": "Decision Maker"})
    world.hub.emulator.classify(prospect, "bidder")
    world.settle()
    assert _shown(world, svalan, anna) == {"Bidder", _foreign(world)}
    world.hub.archive("deal_contact", prospect)
    world.settle()
    assert _foreign(world) in _shown(world, svalan, anna)
    assert "Bidder" not in _shown(world, svalan, anna)
    assert world.hub.invited(svalan.hub) == {}
    assert world.hub.row("deal_contact", prospect)["externalRefs"] == [{"namespace": "pipedrive", "id": "P-9"}]
    world.hub.restore("deal_contact", prospect)
    world.settle()
    assert world.hub.invited(svalan.hub) == {anna.hub: "bidder"}
    # Salesforce's one role left is somebody's own word: it is adopted as it stands.
    ours = {"Bidder"} if world.crm.name == "hubspot" else set()
    assert _shown(world, svalan, anna) == ours | {_foreign(world)}


def _foreign(world: World) -> str:
    return "Decision maker" if world.crm.name == "hubspot" else "Decision Maker"


def _shown(world: World, deal: Known, contact: Known) -> set[Any]:
    """All that a deal's contact is labelled as, ours or not."""
    if world.crm.name == "hubspot":
        return set(world.crm.emulator.associations("deals", deal.crm, "contacts").get(contact.crm, ()))
    roles = world.crm.emulator.all("OpportunityContactRole")
    return {row["Role"] for row in roles if (row["OpportunityId"], row["ContactId"]) == (deal.crm, contact.crm)}


# --- deletions ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["archive", "hold", "ignore"])
def test_a_deletion_follows_the_tenants_rule(begin: Begin, rule: str) -> None:
    """archive passes it on, hold asks a person, ignore leaves the other side alone; either way, either direction."""
    world = begin("deal", deal={"deletes": {"to_crm": rule, "to_propstreet": rule}})
    one, two = (world.hub.add("deal", name=name) for name in ("Kv. Svalan 4", "Kv. Ejdern 2"))
    world.meet()
    crm_one, crm_two = world.crm.of("deal", one), world.crm.of("deal", two)
    world.hub.archive("deal", one)
    world.crm.archive("deal", crm_two)
    world.settle()
    assert world.crm.is_there("deal", crm_one) == (rule != "archive")
    assert world.hub.is_there("deal", two) == (rule != "archive")
    waiting = {(each["propstreet"], each["propstreet_value"], each["crm_value"]) for each in world.conflicts()}
    assert waiting == ({(one, "deleted", "exists"), (two, "exists", "deleted")} if rule == "hold" else set())
    assert (world.hub.count("deal"), world.crm.count("deal")) == ((0, 0) if rule == "archive" else (1, 1))
    # Long after, what was left alone still is.
    world.clock.advance(90_000)
    world.settle()
    assert (world.hub.count("deal"), world.crm.count("deal")) == ((0, 0) if rule == "archive" else (1, 1))


@pytest.mark.parametrize("survives", [True, False])
def test_a_held_deletion_is_carried_out_as_a_person_settles_it(begin: Begin, survives: bool) -> None:
    """A person says whose word holds: the deletion goes through, or the record comes back, on either side."""
    world = begin("deal", deal={"create": {"in_propstreet": True}})
    one, two = (world.hub.add("deal", name=name) for name in ("Kv. Svalan 4", "Kv. Ejdern 2"))
    world.meet()
    crm_one, crm_two = world.crm.of("deal", one), world.crm.of("deal", two)
    world.hub.archive("deal", one)
    world.crm.archive("deal", crm_two)
    world.settle()
    for each in world.conflicts(only_open=True):
        keeper = "crm" if each["crm_value"] == "exists" else "propstreet"
        world.resolve(each, keeper if survives else {"crm": "propstreet", "propstreet": "crm"}[keeper])
    world.settle()
    assert world.conflicts(only_open=True) == []
    if not survives:
        assert (world.hub.count("deal"), world.crm.count("deal")) == (0, 0)
        return
    assert {row["name"] for row in world.hub.emulator.all("projects")} == {"Kv. Svalan 4", "Kv. Ejdern 2"}
    assert world.hub.of("deal", crm_one)
    assert world.crm.get("deal", world.crm.of("deal", two))["name"] == "Kv. Ejdern 2"
    assert (world.hub.count("deal"), world.crm.count("deal")) == (2, 2)


def test_an_edit_wins_over_a_deletion(begin: Begin) -> None:
    """Deleted here and edited there since, a deal comes back with the edit, even where deletions pass."""
    world = begin("deal", deal=ARCHIVE)
    one, two = (world.hub.add("deal", name=name) for name in ("Kv. Svalan 4", "Kv. Ejdern 2"))
    world.meet()
    crm_one, crm_two = world.crm.of("deal", one), world.crm.of("deal", two)
    world.hub.archive("deal", one)
    world.crm.edit("deal", crm_one, amount=99_000_000)
    world.crm.archive("deal", crm_two)
    world.hub.edit("deal", two, name="Kv. Ejdern 2 och 3")
    world.settle()
    (back,) = [row["id"] for row in world.hub.emulator.all("projects") if row["name"] == "Kv. Svalan 4"]
    assert world.hub.amount(back)[0] == 99_000_000
    assert world.crm.is_there("deal", crm_one)
    assert world.crm.get("deal", world.crm.of("deal", two))["name"] == "Kv. Ejdern 2 och 3"
    assert (world.hub.count("deal"), world.crm.count("deal")) == (2, 2)


def test_what_is_restored_after_a_held_deletion_is_in_step_again(begin: Begin) -> None:
    """Somebody takes a deletion back before anyone decided: the question goes away, and edits travel again."""
    world = begin("deal")
    svalan = world.svalan()
    for side in (world.hub, world.crm):
        id_ = svalan.hub if side is world.hub else svalan.crm
        side.archive("deal", id_)
        world.settle()
        assert len(world.conflicts(only_open=True)) == 1
        side.restore("deal", id_)
        world.settle()
        assert world.conflicts(only_open=True) == []
    world.hub.edit("deal", svalan.hub, name="Kv. Svalan 4 och 5")
    world.settle()
    assert world.crm.get("deal", svalan.crm)["name"] == "Kv. Svalan 4 och 5"
    assert (world.hub.count("deal"), world.crm.count("deal")) == (1, 1)


def test_what_leaves_the_tenants_filter_is_not_deleted(begin: Begin) -> None:
    """A deal out of the filter is left alone on both sides and listed; back in it, both sides' edits meet."""
    world = begin("deal", deal=ARCHIVE)
    if world.crm.name == "hubspot":
        world.crm.emulator.pipelines.append(_pipeline("other", "Rådgivning"))
        world.configure(deal={**ARCHIVE, "pipeline": "default"})
        out, back = {"pipeline": "other", "dealstage": "other-1"}, {"pipeline": "default", "dealstage": "contractsent"}
    else:
        date = {"CloseDate": "2027-03-31"}
        world.configure(deal={**ARCHIVE, "only_when": date, "defaults": date})
        out, back = {"CloseDate": "2028-01-01"}, date
    svalan = world.svalan()
    world.crm.edit("deal", svalan.crm, **out)
    world.settle()
    world.hub.edit("deal", svalan.hub, name="Kv. Svalan 4 och 5")
    world.crm.edit("deal", svalan.crm, amount=7_000_000)
    world.settle()
    assert world.excluded("deal") == {(svalan.hub, svalan.crm): "outside the tenant's filter"}
    assert world.hub.is_there("deal", svalan.hub)
    assert world.crm.get("deal", svalan.crm)["name"] == "Kv. Svalan 4"
    world.crm.edit("deal", svalan.crm, **back)
    world.settle()
    assert world.excluded("deal") == {}
    assert world.crm.get("deal", svalan.crm)["name"] == "Kv. Svalan 4 och 5"
    assert world.hub.amount(svalan.hub)[0] == 7_000_000


def _pipeline(id_: str, label: str) -> dict[str, Any]:
    stage = {"id": f"{id_}-1", "label": "Start", "displayOrder": 0, "archived": False}
    metadata = {"probability": "0.1", "isClosed": "false"}
    return {"id": id_, "label": label, "displayOrder": 1, "archived": False, "stages": [stage | {"metadata": metadata}]}


# --- merges -------------------------------------------------------------------------------


def test_a_merge_in_the_crm_is_followed(begin: Begin) -> None:
    """A linked record merged with a stray one, winner or loser, stays linked under the survivor's id."""
    world = begin("contact", "deal", "deal_contact", contact=ARCHIVE | {"create": {"in_propstreet": False}})
    anna = world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se")
    bo = world.hub.add("contact", last_name="Ek", email="bo@vinga.se")
    deal = world.hub.add("deal", name="Kv. Svalan 4")
    world.hub.invite(deal, anna, classification="interested")
    world.meet()
    crm_deal, crm_anna, crm_bo = (world.crm.of(k, i) for k, i in (("deal", deal), ("contact", anna), ("contact", bo)))
    strays = [world.crm.add("contact", last_name="Stray", email=f"stray{n}@x.se") for n in range(2)]
    world.settle()
    as_winner = world.crm.merge("contact", crm_anna, strays[0])
    as_loser = world.crm.merge("contact", strays[1], crm_bo)
    world.settle()
    assert (world.hub.count("contact"), world.crm.count("contact")) == (2, 2)
    assert world.crm.of("contact", anna) == as_winner
    assert world.crm.of("contact", bo) == as_loser
    assert world.crm.invited(crm_deal) == {as_winner: "interested"}
    assert world.hub.invited(deal) == {anna: "interested"}
    world.hub.edit("contact", anna, strategy="Kontor")
    world.hub.edit("contact", bo, strategy="Logistik")
    world.settle()
    assert world.crm.get("contact", as_winner)["strategy"] == "Kontor"
    assert world.crm.get("contact", as_loser)["strategy"] == "Logistik"
    assert world.conflicts(only_open=True) == []


@pytest.mark.parametrize("begin", ["hubspot"], indirect=True)
def test_merged_deals_of_hubspot_are_followed_to_their_new_id(begin: Begin) -> None:
    """HubSpot gives merged deals an id that neither had: link, prospects and edits follow it."""
    world = begin("contact", "deal", "deal_contact", deal=ARCHIVE)
    svalan, anna = world.offer()
    world.hub.invite(svalan.hub, anna.hub, classification="interested")
    world.settle()
    stray = world.crm.add("deal", name="Svalan (kopia)")
    survivor = world.crm.merge("deal", svalan.crm, stray)
    world.settle()
    assert survivor not in (svalan.crm, stray)
    assert world.crm.of("deal", svalan.hub) == survivor
    assert world.crm.invited(survivor) == {anna.crm: "interested"}
    assert world.hub.invited(svalan.hub) == {anna.hub: "interested"}
    world.hub.edit("deal", svalan.hub, name="Kv. Svalan 4 och 5")
    world.crm.relabel(survivor, anna.crm, "bidder")
    world.settle()
    assert world.crm.get("deal", survivor)["name"] == "Kv. Svalan 4 och 5"
    assert world.hub.invited(svalan.hub) == {anna.hub: "bidder"}
    assert (world.hub.count("deal"), world.crm.count("deal")) == (1, 1)


@pytest.mark.parametrize("begin", ["hubspot"], indirect=True)
def test_two_linked_deals_made_one_under_a_new_id_make_nothing_new(begin: Begin) -> None:
    """The survivor goes on as the deal whose mark it carries, prospects included; the other waits for a person."""
    both_ways = {"create": {"in_crm": True, "in_propstreet": True}}
    world = begin("contact", "deal", "deal_contact", deal=ARCHIVE | both_ways)
    svalan, anna = world.offer()
    gripen = world.hub.add("deal", name="Kv. Gripen 2")
    world.hub.invite(svalan.hub, anna.hub, classification="interested")
    world.settle()
    survivor = world.crm.merge("deal", svalan.crm, world.crm.of("deal", gripen))
    world.settle()
    assert (world.hub.count("deal"), world.crm.count("deal")) == (2, 1)
    assert world.crm.of("deal", svalan.hub) == survivor
    assert {str(each["propstreet"]) for each in world.conflicts(only_open=True)} == {gripen}
    world.hub.edit("deal", svalan.hub, name="Kv. Svalan 4 och 5")
    world.crm.relabel(survivor, anna.crm, "bidder")
    world.settle()
    assert world.crm.get("deal", survivor)["name"] == "Kv. Svalan 4 och 5"
    assert world.hub.invited(svalan.hub) == {anna.hub: "bidder"}
    assert (world.hub.count("deal"), world.crm.count("deal")) == (2, 1)


def test_two_linked_records_made_one_wait_for_a_person(begin: Begin) -> None:
    """Two of ours, one of theirs: nothing is deleted or made, a person says which of ours it is."""
    world = begin("contact", contact=ARCHIVE)
    anna = world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se")
    bo = world.hub.add("contact", last_name="Ek", email="bo@vinga.se")
    world.meet()
    survivor = world.crm.merge("contact", world.crm.of("contact", anna), world.crm.of("contact", bo))
    world.settle()
    assert world.hub.is_there("contact", anna)
    assert world.hub.is_there("contact", bo)
    assert (world.hub.count("contact"), world.crm.count("contact")) == (2, 1)
    assert world.crm.is_there("contact", survivor)
    asked = {str(each["propstreet"]) for each in world.conflicts(only_open=True)}
    asked |= {str(c["id"]) for each in world.reviews("contact") for c in each["candidates"]}
    assert asked & {anna, bo}
