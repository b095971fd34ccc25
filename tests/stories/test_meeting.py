"""First contact: two systems that never heard of each other, and what a person says where they overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from syncd.wiring import run_pair
from tests.stories.harness import CRMS, World, worlds

pytestmark = pytest.mark.long

Begin = Callable[..., World]


@pytest.fixture(params=sorted(CRMS))
def begin(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path) -> Iterator[Begin]:
    yield from worlds(engine, tmp_path, request.param)


def test_what_propstreet_knows_by_the_crms_id_is_linked(begin: Begin) -> None:
    """A stored external ref links, whatever the records are called; nothing is made twice."""
    world = begin("company", "contact", "deal", deal={"create": {"in_propstreet": True}})
    deal = world.crm.add("deal", name="Svalan, kontor")
    company = world.crm.add("company", name="Nordhaus Holding")
    contact = world.crm.add("contact", first_name="A.", last_name="Berg", email="berg@private.se")
    linked = {
        "deal": (world.hub.add("deal", name="Kv. Svalan 4", ref=deal), deal),
        "company": (world.hub.add("company", name="Nordhaus AB", ref=company), company),
        "contact": (world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se", ref=contact), contact),
    }
    world.meet()
    for kind, (hub_id, crm_id) in linked.items():
        assert world.crm.of(kind, hub_id) == crm_id
        assert (world.hub.count(kind), world.crm.count(kind)) == (1, 1)


def test_what_the_crm_knows_by_propstreets_id_is_linked(begin: Begin) -> None:
    """A Propstreet id in the CRM's own external-id field links, whatever the records are called."""
    world = begin("company", "contact", "deal", deal={"create": {"in_propstreet": True}})
    hub = {
        "deal": world.hub.add("deal", name="Kv. Svalan 4"),
        "company": world.hub.add("company", name="Nordhaus AB"),
        "contact": world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se"),
    }
    crm = {
        "deal": world.crm.add("deal", name="Svalan, kontor", mark=hub["deal"]),
        "company": world.crm.add("company", name="Nordhaus Holding", mark=hub["company"]),
        "contact": world.crm.add("contact", last_name="Bergh", email="berg@private.se", mark=hub["contact"]),
    }
    world.meet()
    for kind in hub:
        assert world.crm.of(kind, hub[kind]) == crm[kind]
        assert (world.hub.count(kind), world.crm.count(kind)) == (1, 1)


def test_an_applied_first_plan_is_the_whole_job(begin: Begin) -> None:
    """What a person approves brings both portfolios together; the next run finds nothing left to write.

    Only a project made in Propstreet would be news again: what its values are there nobody can know before.
    """
    world = begin(contact={"create": {"in_propstreet": True}}, company={"create": {"in_propstreet": True}})
    deal = world.hub.add("deal", name="Kv. Svalan 4", amount=55_000_000)
    anna = world.hub.add("contact", first_name="Anna", last_name="Berg", email="anna@nordhaus.se")
    firm = world.hub.add("company", name="Nordhaus AB", domain="nordhaus.se")
    world.hub.employ(anna, firm, "CFO")
    world.hub.invite(deal, anna, classification="interested")
    world.crm.add("contact", first_name="Ann", last_name="Berg", email="anna@nordhaus.se")
    ola = world.crm.add("contact", first_name="Ola", last_name="Ek", email="ola@ek.se", phone="070-123 45 67")
    world.crm.employ(ola, world.crm.add("company", name="Ek Fastigheter AB", domain="ek.se"), "VD")
    asked = run_pair(world.service, *world.subject, "run")
    assert asked.state == "halted"
    applied = run_pair(world.service, *world.subject, "apply", plan_id=asked.plan_id)
    assert applied.state == "done"
    for kind, count in (("contact", 2), ("company", 2), ("deal", 1)):
        assert (world.hub.count(kind), world.crm.count(kind)) == (count, count)
    assert world.crm.invited(world.crm.of("deal", deal)) == {world.crm.of("contact", anna): "interested"}
    quiet = world.run()
    assert (quiet.report.operations, quiet.write_calls) == (0, 0)


@pytest.mark.parametrize("begin", ["salesforce"], indirect=True)
def test_an_id_stored_in_its_short_spelling_links(begin: Begin) -> None:
    """Salesforce's ids have two spellings; reports and older integrations keep the short one."""
    world = begin("deal", "contact", deal={"create": {"in_propstreet": True}})
    deal, contact = world.crm.add("deal", name="Svalan, kontor"), world.crm.add("contact", last_name="Berg")
    hub_deal = world.hub.add("deal", name="Kv. Svalan 4", ref=deal[:15])
    hub_contact = world.hub.add("contact", last_name="Bergh", ref=contact[:15])
    world.meet()
    assert (world.crm.of("deal", hub_deal), world.crm.of("contact", hub_contact)) == (deal, contact)
    assert [world.crm.count(kind) for kind in ("deal", "contact")] == [1, 1]
    assert [world.hub.count(kind) for kind in ("deal", "contact")] == [1, 1]


def test_natural_keys_link_what_carries_no_id(begin: Begin) -> None:
    """E-mail, domain and organisation number prove that two records are one, in whatever spelling."""
    world = begin("company", "contact")
    hub = {
        "by e-mail": world.hub.add("contact", first_name="Anna", last_name="Berg", email="anna@nordhaus.se"),
        "by domain": world.hub.add("company", name="Nordhaus AB", domain="nordhaus.se"),
        "by number": world.hub.add("company", name="Vinga Fastigheter AB", org_number="556123-4567"),
    }
    crm = {
        "by e-mail": world.crm.add("contact", first_name="Ann", last_name="Berg", email="Anna@Nordhaus.se"),
        "by domain": world.crm.add("company", name="NORDHAUS", domain="https://www.nordhaus.se"),
        "by number": world.crm.add("company", name="Vinga", org_number="5561234567"),
    }
    world.meet()
    assert {name: world.crm.of("contact" if "mail" in name else "company", id_) for name, id_ in hub.items()} == crm
    assert [world.hub.count(kind) for kind in ("contact", "company")] == [1, 2]
    assert [world.crm.count(kind) for kind in ("contact", "company")] == [1, 2]


def test_an_additional_address_in_propstreet_links(begin: Begin) -> None:
    """A person is known by all of their addresses, and which one is the first stays each side's own affair."""
    world = begin("contact")
    addresses = [{"address": each, "type": "work"} for each in ("anna@nordhaus.se", "anna.berg@vinga.se")]
    hub = world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se", emails=addresses)
    crm = world.crm.add("contact", last_name="Berg", email="anna.berg@vinga.se")
    world.meet()
    assert world.crm.of("contact", hub) == crm
    assert (world.hub.count("contact"), world.crm.count("contact")) == (1, 1)
    assert world.hub.get("contact", hub)["email"] == "anna@nordhaus.se"
    assert world.crm.get("contact", crm)["email"] == "anna.berg@vinga.se"


@pytest.mark.parametrize("begin", ["hubspot"], indirect=True)
def test_an_additional_address_in_hubspot_links(begin: Begin) -> None:
    """HubSpot's additional addresses count like its first."""
    world = begin("contact")
    crm = world.crm.add(
        "contact", last_name="Berg", email="anna.berg@vinga.se", hs_additional_emails="anna@nordhaus.se"
    )
    hub = world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se")
    world.meet()
    assert world.crm.of("contact", hub) == crm
    assert (world.hub.count("contact"), world.crm.count("contact")) == (1, 1)
    assert world.hub.get("contact", hub)["email"] == "anna@nordhaus.se"
    assert world.crm.get("contact", crm)["email"] == "anna.berg@vinga.se"


def test_each_fills_the_others_gaps_when_they_meet(begin: Begin) -> None:
    """Nothing that only one side held is lost at a first meeting, on either side."""
    world = begin("contact")
    hub = world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se", strategy="Kontor core", tags={"vip"})
    crm = world.crm.add("contact", first_name="Anna", last_name="Berg", email="anna@nordhaus.se", tags={"golf"})
    world.meet()
    assert world.hub.get("contact", hub)["first_name"] == "Anna"
    assert world.crm.get("contact", crm)["strategy"] == "Kontor core"
    assert world.hub.get("contact", hub)["tags"] == world.crm.get("contact", crm)["tags"] == {"vip", "golf"}


def test_two_candidates_go_to_review_and_nothing_is_made(begin: Begin) -> None:
    """What could be either of two is put before a person; no third one is made, and nothing of them is written."""
    world = begin("company")
    hub = world.hub.add("company", name="Nordhaus AB", domain="nordhaus.se", strategy="Logistik")
    twins = {world.crm.add("company", name=name, domain="nordhaus.se") for name in ("Nordhaus", "Nordhaus (kopia)")}
    world.meet()
    (review,) = [each for each in world.reviews("company") if each["propstreet"] == hub]
    assert {each["id"] for each in review["candidates"]} == twins
    assert (world.hub.count("company"), world.crm.count("company")) == (1, 2)
    assert [world.crm.get("company", id_)["strategy"] for id_ in twins] == [None, None]
    assert world.hub.refs("company", hub) == {}


def test_deals_of_one_name_without_a_ref_go_to_review(begin: Begin) -> None:
    """A name suggests and never proves: deals that are only called the same wait for a person."""
    world = begin("deal", deal={"create": {"in_propstreet": True}})
    hub, crm = world.hub.add("deal", name="Kv. Svalan 4"), world.crm.add("deal", name="kv. svalan 4")
    world.meet()
    (review,) = [each for each in world.reviews("deal") if each["propstreet"] == hub]
    assert [each["id"] for each in review["candidates"]] == [crm]
    assert (world.hub.count("deal"), world.crm.count("deal")) == (1, 1)


def test_what_is_missing_is_made_where_the_tenant_allows_it(begin: Begin) -> None:
    """Each side gets what only the other has, relations included, exactly once."""
    world = begin(deal={"create": {"in_propstreet": True}})
    firm = world.hub.add("company", name="Nordhaus AB", domain="nordhaus.se")
    anna = world.hub.add("contact", first_name="Anna", last_name="Berg", email="anna@nordhaus.se")
    world.hub.employ(anna, firm, "CFO")
    svalan = world.hub.add("deal", name="Kv. Svalan 4", amount=150_000_000)
    world.hub.invite(svalan, anna, classification="interested")
    vinga = world.crm.add("company", name="Vinga AB", domain="vinga.se")
    bo = world.crm.add("contact", first_name="Bo", last_name="Ek", email="bo@vinga.se")
    world.crm.employ(bo, vinga, "VD")
    ejdern = world.crm.add("deal", name="Kv. Ejdern 2", amount=80_000_000)
    world.crm.invite(ejdern, bo, "bidder")
    world.meet()
    crm_anna = world.crm.of("contact", anna)
    assert world.crm.employer(crm_anna) == world.crm.of("company", firm)
    assert world.crm.get("contact", crm_anna)["title"] == "CFO"
    assert world.crm.invited(world.crm.of("deal", svalan)) == {crm_anna: "interested"}
    assert world.crm.get("deal", world.crm.of("deal", svalan))["amount"] == "150000000"
    hub_bo, hub_ejdern = world.hub.of("contact", bo), world.hub.of("deal", ejdern)
    assert world.hub.title(hub_bo) == "VD"
    assert world.hub.invited(hub_ejdern) == {hub_bo: "bidder"}
    assert world.hub.row("deal", hub_ejdern)["price"]["value"] == 80_000_000
    for kind in ("company", "contact", "deal"):
        assert (world.hub.count(kind), world.crm.count(kind)) == (2, 2)


def test_nothing_is_made_where_the_tenant_forbids_it(begin: Begin) -> None:
    """A kind that is not to be created on a side stays as it is there, and the list says why."""
    neither = {"create": {"in_crm": False, "in_propstreet": False}}
    world = begin("contact", "deal", contact=neither, deal=neither)
    hub = world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se")
    crm = world.crm.add("contact", last_name="Ek", email="bo@vinga.se")
    world.hub.add("deal", name="Kv. Svalan 4")
    world.crm.add("deal", name="Kv. Ejdern 2")
    world.meet()
    for kind in ("contact", "deal"):
        assert (world.hub.count(kind), world.crm.count(kind)) == (1, 1)
    assert world.excluded("contact") == {
        (hub, None): "the tenant creates none of these in the crm",
        (None, crm): "the tenant creates none of these in propstreet",
    }


def test_projects_are_made_only_of_the_deals_that_the_rule_admits(begin: Begin) -> None:
    """``create.in_propstreet.when`` asks a native field of the deal, now and after each of its edits."""
    world = begin("deal")
    native, value = world.crm.free["deal"]
    world.configure(deal={"create": {"in_propstreet": {"when": {native: value}}}})
    wanted = world.crm.add("deal", name="Kv. Svalan 4", **{native: value})
    other = world.crm.add("deal", name="Kv. Ejdern 2")
    world.meet()
    assert world.hub.get("deal", world.hub.of("deal", wanted))["name"] == "Kv. Svalan 4"
    assert world.hub.count("deal") == 1
    assert world.excluded("deal") == {(None, other): "outside the tenant's rule for creating in propstreet"}
    world.crm.edit("deal", other, **{native: value})
    world.settle()
    assert world.hub.get("deal", world.hub.of("deal", other))["name"] == "Kv. Ejdern 2"


def test_people_on_a_deal_on_both_sides_are_one_prospect(begin: Begin) -> None:
    """A prospect and a deal's contact that name the same two are linked, not doubled."""
    world = begin("contact", "deal", "deal_contact")
    crm_deal = world.crm.add("deal", name="Kv. Svalan 4")
    crm_anna = world.crm.add("contact", last_name="Berg", email="anna@nordhaus.se")
    world.crm.invite(crm_deal, crm_anna)
    deal = world.hub.add("deal", name="Kv. Svalan 4", ref=crm_deal)
    anna = world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se")
    world.hub.invite(deal, anna, classification="interested")
    world.meet()
    assert world.hub.invited(deal) == {anna: "interested"}
    assert world.crm.invited(crm_deal) == {crm_anna: "interested"}


# --- what a person says -------------------------------------------------------------------


def test_same_links_the_record_with_the_named_candidate(begin: Begin) -> None:
    """A person's ``same`` links; the candidate that was not named stands for itself from then on."""
    world = begin("company")
    hub = world.hub.add("company", name="Nordhaus AB", domain="nordhaus.se", strategy="Logistik")
    one, other = (world.crm.add("company", name=name, domain="nordhaus.se") for name in ("Nordhaus", "Nordhaus 2"))
    world.meet()
    (review,) = [each for each in world.reviews("company") if each["propstreet"] == hub]
    world.answer(review, "same", other)
    world.settle()
    assert world.crm.of("company", hub) == other
    assert world.crm.get("company", other)["strategy"] == "Logistik"
    assert world.crm.get("company", one)["strategy"] is None
    assert world.crm.count("company") == 2
    assert world.reviews("company") == []


def test_create_makes_a_record_of_its_own(begin: Begin) -> None:
    """A person's ``create`` says that no candidate is it: each side gets what it lacks."""
    world = begin("deal", deal={"create": {"in_propstreet": True}})
    hub, crm = world.hub.add("deal", name="Kv. Svalan 4"), world.crm.add("deal", name="Kv. Svalan 4")
    world.meet()
    (review,) = [each for each in world.reviews("deal") if each["propstreet"] == hub]
    world.answer(review, "create")
    world.settle()
    assert world.crm.of("deal", hub) != crm
    assert world.hub.of("deal", crm) != hub
    assert (world.hub.count("deal"), world.crm.count("deal")) == (2, 2)
    assert world.reviews("deal") == []


def test_never_keeps_two_apart_for_good(begin: Begin) -> None:
    """A person's ``never`` is not asked again, however often either record is edited."""
    world = begin("deal")
    hub, crm = world.hub.add("deal", name="Kv. Svalan 4"), world.crm.add("deal", name="Kv. Svalan 4")
    world.meet()
    (review,) = [each for each in world.reviews("deal") if each["propstreet"] == hub]
    world.answer(review, "never")
    world.settle()
    world.crm.edit("deal", crm, amount=1_000_000)
    world.settle()
    assert world.reviews("deal") == []
    assert "price" not in world.hub.row("deal", hub)
