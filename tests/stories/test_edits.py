"""People edit records that both sides know: what travels, what yields, what stays out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from syncd.testing.emulator import Fault
from tests.stories.harness import CRMS, Crm, Hub, HubSpot, World, worlds

pytestmark = pytest.mark.long

Begin = Callable[..., World]


@pytest.fixture(params=sorted(CRMS))
def begin(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path) -> Iterator[Begin]:
    yield from worlds(engine, tmp_path, request.param)


# --- fields -------------------------------------------------------------------------------


def test_an_edit_on_one_side_arrives_on_the_other(begin: Begin) -> None:
    """With one side untouched, the other side's edit always survives; so does an empty value."""
    world = begin("contact")
    anna = world.introduce("contact", last_name="Berg", email="anna@nordhaus.se", strategy="Kontor", linkedin="l/a")
    world.hub.edit("contact", anna.hub, last_name="Bergström", strategy=None)
    world.settle()
    assert world.crm.get("contact", anna.crm)["last_name"] == "Bergström"
    assert world.crm.get("contact", anna.crm)["strategy"] is None
    world.crm.edit("contact", anna.crm, first_name="Anna", linkedin=None)
    world.settle()
    assert world.hub.get("contact", anna.hub)["first_name"] == "Anna"
    assert world.hub.get("contact", anna.hub)["linkedin"] is None
    assert world.hub.get("contact", anna.hub)["last_name"] == world.crm.get("contact", anna.crm)["last_name"]
    assert world.conflicts() == []


def test_edits_of_different_fields_both_survive(begin: Begin) -> None:
    """Two people edit one record at one time: what does not touch is no conflict."""
    world = begin("contact")
    anna = world.introduce("contact", first_name="Anna", last_name="Berg", email="anna@nordhaus.se", strategy="Kontor")
    world.hub.edit("contact", anna.hub, last_name="Bergström")
    world.crm.edit("contact", anna.crm, strategy="Logistik")
    world.settle()
    for found in (world.hub.get("contact", anna.hub), world.crm.get("contact", anna.crm)):
        assert (found["last_name"], found["strategy"]) == ("Bergström", "Logistik")
    assert world.conflicts() == []


def test_edits_of_one_field_are_settled_by_its_policy(begin: Begin) -> None:
    """Both moved one field apart: each field's own policy says who wins, and the loser's value is kept."""
    policies = {"first_name": "newest", "last_name": "propstreet", "strategy": "crm", "linkedin": "hold"}
    world = begin("contact", contact={"fields": {name: {"conflict": rule} for name, rule in policies.items()}})
    anna = world.introduce("contact", first_name="A", last_name="A", email="a@x.se", strategy="A", linkedin="A")
    world.crm.edit("contact", anna.crm, **dict.fromkeys(policies, "in the crm"))
    world.clock.advance(5)
    world.hub.edit("contact", anna.hub, **dict.fromkeys(policies, "in propstreet"))
    world.settle()
    hub, crm = world.hub.get("contact", anna.hub), world.crm.get("contact", anna.crm)
    assert {name: (hub[name], crm[name]) for name in policies} == {
        "first_name": ("in propstreet", "in propstreet"),
        "last_name": ("in propstreet", "in propstreet"),
        "strategy": ("in the crm", "in the crm"),
        "linkedin": ("in propstreet", "in the crm"),
    }
    kept = {each["field"]: each for each in world.conflicts()}
    assert len(kept) == len(world.conflicts())
    assert {name: (each["decided"], each["winner"]) for name, each in kept.items()} == {
        "first_name": ("newest", "propstreet"),
        "last_name": ("propstreet", "propstreet"),
        "strategy": ("crm", "crm"),
        "linkedin": (None, None),
    }
    for each in kept.values():
        assert (each["base"], each["propstreet_value"], each["crm_value"]) == ("A", "in propstreet", "in the crm")


@pytest.mark.parametrize("winner", ["propstreet", "crm"])
def test_a_held_conflict_is_carried_out_as_a_person_settles_it(begin: Begin, winner: str) -> None:
    """While it is held nothing is written; a person's word is carried out by the next run, once."""
    world = begin("contact", contact={"conflict": "hold"})
    anna = world.anna()
    world.hub.edit("contact", anna.hub, last_name="in propstreet")
    world.crm.edit("contact", anna.crm, last_name="in the crm")
    world.settle()
    (held,) = world.conflicts(only_open=True)
    world.resolve(held, winner)
    world.settle()
    expected = {"propstreet": "in propstreet", "crm": "in the crm"}[winner]
    assert world.hub.get("contact", anna.hub)["last_name"] == expected
    assert world.crm.get("contact", anna.crm)["last_name"] == expected
    assert world.conflicts(only_open=True) == []
    assert [(each["decided"], each["winner"]) for each in world.conflicts()] == [("a person's word", winner)]


def test_tags_are_merged_one_by_one(begin: Begin) -> None:
    """What either side adds is added, what either takes off is taken off; nobody's tags are lost."""
    world = begin("contact")
    anna = world.introduce("contact", last_name="Berg", email="anna@nordhaus.se", tags={"vip", "golf", "kontor"})
    assert world.crm.get("contact", anna.crm)["tags"] == {"vip", "golf", "kontor"}
    world.hub.edit("contact", anna.hub, tags={"vip", "kontor", "norr"})
    world.crm.edit("contact", anna.crm, tags={"vip", "golf", "segling"})
    world.settle()
    for found in (world.hub.get("contact", anna.hub), world.crm.get("contact", anna.crm)):
        assert found["tags"] == {"vip", "norr", "segling"}
    assert world.conflicts() == []


def test_money_keeps_its_scale(begin: Begin) -> None:
    """150 millions are 150 000 000 in the CRM, and what comes back is written in millions where that is exact."""
    world = begin("deal")
    svalan = world.introduce("deal", name="Kv. Svalan 4", price={"value": 150, "currency": "SEK", "scale": "millions"})
    assert world.crm.get("deal", svalan.crm)["amount"] == "150000000"
    world.crm.edit("deal", svalan.crm, amount=162_500_000)
    world.settle()
    assert world.hub.amount(svalan.hub) == (162_500_000, "millions")
    world.hub.edit("deal", svalan.hub, price={"value": 171, "currency": "SEK", "scale": "millions"})
    world.settle()
    assert world.crm.get("deal", svalan.crm)["amount"] == "171000000"
    world.crm.edit("deal", svalan.crm, amount=171_000_001)
    world.settle()
    assert world.hub.amount(svalan.hub)[0] == 171_000_001


@pytest.mark.parametrize("begin", ["salesforce"], indirect=True)
def test_an_org_that_does_not_tell_its_currency_is_in_that_of_most_projects(begin: Begin) -> None:
    """Amounts travel both ways without the org's word on its currency; one in another currency is never written."""
    world = begin("deal", deal={"create": {"in_propstreet": True}})
    world.crm.emulator.currency = None
    svalan = world.hub.add("deal", name="Kv. Svalan 4", amount=120_000_000)
    foreign = world.hub.add("deal", name="Havneholmen", price={"value": 9, "currency": "DKK", "scale": "millions"})
    world.hub.add("deal", name="Kv. Kajan 2", amount=7_000_000)
    born = world.crm.add("deal", name="Kv. Tornet 1", amount=55_000_000)
    world.meet()
    svalan_there, foreign_there = world.crm.of("deal", svalan), world.crm.of("deal", foreign)
    assert world.crm.get("deal", svalan_there)["amount"] == "120000000"
    assert world.crm.get("deal", foreign_there)["amount"] is None
    assert world.hub.row("deal", world.hub.of("deal", born))["price"]["currency"] == "SEK"
    world.crm.edit("deal", svalan_there, amount=125_000_000)
    world.settle()
    assert world.hub.amount(svalan)[0] == 125_000_000
    world.hub.edit("deal", svalan, amount=130_000_000)
    world.hub.edit("deal", foreign, price={"value": 11, "currency": "DKK", "scale": "millions"})
    world.settle()
    assert world.crm.get("deal", svalan_there)["amount"] == "130000000"
    assert world.crm.get("deal", foreign_there)["amount"] is None
    assert world.excluded("deal") == {(foreign, foreign_there): "amount is in another currency there than here"}


def test_a_job_title_changes_on_either_side(begin: Begin) -> None:
    """The title belongs to the employment in Propstreet and to the contact in the CRM; it travels both ways."""
    world = begin("company", "contact", "employment")
    firm = world.hub.add("company", name="Nordhaus AB", domain="nordhaus.se")
    anna = world.hub.add("contact", first_name="Anna", last_name="Berg", email="anna@nordhaus.se")
    link = world.hub.employ(anna, firm, "CFO")
    world.meet()
    crm_anna = world.crm.of("contact", anna)
    world.crm.edit("contact", crm_anna, title="VD")
    world.settle()
    assert world.hub.title(anna) == "VD"
    world.hub.edit("employment", link, title="Styrelseordförande")
    world.settle()
    assert world.crm.get("contact", crm_anna)["title"] == "Styrelseordförande"
    assert world.crm.employer(crm_anna) == world.crm.of("company", firm)


@pytest.mark.parametrize("begin", ["hubspot"], indirect=True)
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_contact_moves_to_another_primary_company_in_the_crm(begin: Begin, is_lost: bool) -> None:
    """The new link becomes the primary one in Propstreet too, though its create has no word for that."""
    world = begin("company", "contact", "employment")
    old, new = (world.hub.add("company", name=name, domain=f"{name}.se") for name in ("granit", "vinga"))
    anna = world.hub.add("contact", first_name="Anna", last_name="Berg", email="anna@granit.se")
    world.hub.employ(anna, old, "CFO")
    world.meet()
    world.clock.advance(4_000)
    world.settle()
    crm = world.crm
    assert isinstance(crm, HubSpot)
    crm_anna, crm_new = crm.of("contact", anna), crm.of("company", new)
    crm.emulator.associate("contacts", crm_anna, "companies", crm_new, ["Primary"])
    if is_lost:
        world.hub.emulator.faults.append(Fault("POST", "/network/links$", when="drop"))
    world.settle()
    assert crm.employer(crm_anna) == crm_new
    assert world.hub.emulator.get("contacts", anna)["primaryCompanyId"] == new


def test_a_field_goes_only_where_its_policy_lets_it(begin: Begin) -> None:
    """``to_crm``, ``to_propstreet``, ``if_empty`` and ``off`` hold for edits of either side."""
    policies = {"first_name": "to_crm", "last_name": "to_propstreet", "linkedin": "if_empty", "strategy": "off"}
    world = begin("contact", contact={"fields": policies})
    anna = world.introduce("contact", first_name="Anna", last_name="Berg", email="a@x.se", linkedin="l", strategy="s")
    assert world.crm.get("contact", anna.crm)["strategy"] is None
    world.crm.edit("contact", anna.crm, first_name="X", last_name="Bergström", linkedin="crm's")
    world.settle()
    hub, crm = world.hub.get("contact", anna.hub), world.crm.get("contact", anna.crm)
    assert (hub["first_name"], crm["first_name"]) == ("Anna", "Anna")
    assert (hub["last_name"], crm["last_name"]) == ("Bergström", "Bergström")
    assert (hub["linkedin"], crm["linkedin"]) == ("l", "crm's")
    lost = [(each["field"], each["crm_value"], each["winner"]) for each in world.conflicts()]
    assert lost == [("first_name", "X", "propstreet")]


# --- echoes -------------------------------------------------------------------------------


def test_what_a_system_rewrites_on_arrival_is_not_written_again(begin: Begin) -> None:
    """Phones get their form, domains and e-mails theirs, texts are trimmed: an echo is no edit, on either side."""
    world = begin("company", "contact", company={"create": {"in_propstreet": True}})
    anna = world.hub.add(
        "contact", last_name="  Berg ", email="Anna@Nordhaus.se", phone="070-174 06 35", strategy=" Kontor "
    )
    firm = world.crm.add("company", name=" Vinga AB ", domain="HTTPS://www.Vinga.se/om-oss")
    bo = world.crm.add("contact", last_name="Ek", email="Bo@Vinga.SE", phone="+46 (0)70 174 06 12")
    world.meet()
    crm_anna, hub_bo = world.crm.of("contact", anna), world.hub.of("contact", bo)
    digits = "".join(each for each in world.crm.get("contact", crm_anna)["phone"] if each.isdigit())
    assert digits in ("46701740635", "0701740635")
    assert world.crm.with_email("anna@nordhaus.se") == [crm_anna]
    assert world.hub.get("company", world.hub.of("company", firm))["domain"] == "vinga.se"
    world.crm.edit("contact", crm_anna, phone="08-22 33 44 55")
    world.hub.edit("contact", hub_bo, phone="031 7 111 213")
    world.settle()
    assert "223344" in "".join(each for each in world.hub.get("contact", anna)["phone"] if each.isdigit())
    assert world.conflicts() == []


def test_automation_that_rewrites_our_value_is_an_edit_like_any_other_and_ends(begin: Begin) -> None:
    """A workflow that reacts to our write wins once, its value travels back, and then it is quiet."""
    world = begin("contact")

    def shout() -> None:
        for id_ in list(world.crm.rows("contact")):
            name = world.crm.get("contact", id_)["last_name"]
            if name != name.upper():
                world.crm.edit("contact", id_, last_name=name.upper())

    world.after_run = shout
    anna = world.anna()
    assert world.hub.get("contact", anna.hub)["last_name"] == "BERG"
    world.hub.edit("contact", anna.hub, last_name="Bergström")
    world.settle()
    assert world.hub.get("contact", anna.hub)["last_name"] == "BERGSTRÖM"
    assert world.crm.get("contact", anna.crm)["last_name"] == "BERGSTRÖM"


# --- neighbours ---------------------------------------------------------------------------


def test_what_belongs_to_others_survives_every_write(begin: Begin) -> None:
    """Other systems' refs, fields nobody mapped: whatever we write, they stand as they stood."""
    world = begin("company", "contact", "deal", deal={"create": {"in_propstreet": True}})
    crm: dict[str, str] = {}
    for kind, fields in (
        ("company", {"name": "Nordhaus AB", "domain": "nordhaus.se"}),
        ("contact", {"last_name": "Berg", "email": "anna@nordhaus.se", "phone": "+46701740635"}),
        ("deal", {"name": "Kv. Svalan 4"}),
    ):
        native, value = world.crm.free[kind]
        crm[kind] = world.crm.add(kind, **fields, **{native: value})
    others = [("pipedrive", "P-1"), ("csv-import", "row/7")]
    hub = {
        "company": world.hub.add("company", name="Nordhaus", domain="nordhaus.se", others=others),
        "contact": world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se", others=others),
        "deal": world.hub.add("deal", name="Svalan", ref=crm["deal"], others=others),
    }
    world.meet()
    world.crm.edit("company", crm["company"], name="Nordhaus Fastigheter AB")
    world.crm.edit("contact", crm["contact"], first_name="Anna")
    world.crm.edit("deal", crm["deal"], amount=99_000_000)
    world.hub.edit("company", hub["company"], strategy="Logistik")
    world.hub.edit("contact", hub["contact"], strategy="Logistik")
    world.hub.edit("deal", hub["deal"], exclusivity="exclusive")
    world.settle()
    assert world.crm.get("deal", crm["deal"])["exclusivity"] == "exclusive"
    assert world.hub.get("company", hub["company"])["name"] == "Nordhaus Fastigheter AB"
    for kind, id_ in hub.items():
        assert world.hub.refs(kind, id_).items() >= dict(others).items()
        native, value = world.crm.free[kind]
        assert world.crm.row(kind, crm[kind])[native] == value


# --- stages -------------------------------------------------------------------------------


def test_the_teaser_moves_the_deal_through_its_stages(begin: Begin) -> None:
    """Without settings Propstreet's six teaser stages fall on the CRM's first, middle and late ones."""
    world = begin("deal")
    svalan = world.svalan()
    assert world.crm.get("deal", svalan.crm)["stage"] == world.crm.stages["first"]
    for teaser, stage in (
        ("drafting", "first"), ("published", "middle"), ("verified", "middle"), ("communicated", "late"),
    ):  # fmt: skip
        world.hub.edit("deal", svalan.hub, stage=teaser)
        world.settle()
        assert world.crm.get("deal", svalan.crm)["stage"] == world.crm.stages[stage]


def test_a_tenants_own_stages_hold(begin: Begin) -> None:
    """``stages`` says which teaser stage a CRM's stage stands for; one that it does not name moves nothing."""
    world = begin("deal")
    world.configure(deal={"stages": {world.crm.stages["late"]: ["published"], world.crm.stages["won"]: ["won"]}})
    svalan = world.svalan()
    before = world.crm.get("deal", svalan.crm)["stage"]
    world.hub.edit("deal", svalan.hub, stage="drafting")
    world.settle()
    assert world.crm.get("deal", svalan.crm)["stage"] == before
    world.hub.edit("deal", svalan.hub, stage="published")
    world.settle()
    assert world.crm.get("deal", svalan.crm)["stage"] == world.crm.stages["late"]


def test_only_a_sold_project_wins_its_deal(begin: Begin) -> None:
    """Closed with a buyer, an outsider or a prospect, is won; withdrawn or unsold moves no stage."""
    world = begin("contact", "deal", "deal_contact")
    names = ("withdrawn", "unsold", "outsider", "prospect")
    deals = {name: world.hub.add("deal", name=name) for name in names}
    anna = world.hub.add("contact", last_name="Berg", email="anna@nordhaus.se")
    buyer = world.hub.invite(deals["prospect"], anna, classification="bidder")
    world.meet()
    for name, sold_to in zip(names, (None, "none", "external", buyer), strict=True):
        world.hub.emulator.close_project(deals[name], buyer=sold_to)
    world.settle()
    shown = {name: world.crm.get("deal", world.crm.of("deal", id_)) for name, id_ in deals.items()}
    first, won = world.crm.stages["first"], world.crm.stages["won"]
    assert {name: each["stage"] for name, each in shown.items()} == dict(
        zip(names, (first, first, won, won), strict=True)
    )
    assert {each["status"] for each in shown.values()} == {"closed"}


def test_a_closed_project_is_never_written_to(begin: Begin) -> None:
    """Nothing is sent to a closed project or its prospects; the list says why they stay apart."""
    world = begin("contact", "deal", "deal_contact")
    svalan, anna = world.offer()
    bo = world.hub.add("contact", last_name="Ek", email="bo@vinga.se")
    world.hub.invite(svalan.hub, anna.hub)
    world.settle()
    crm_bo = world.crm.of("contact", bo)
    world.hub.emulator.close_project(svalan.hub)
    world.settle()
    before = (world.hub.row("deal", svalan.hub), world.hub.invited(svalan.hub))
    sent = _writes(world.hub, svalan.hub)
    world.crm.edit("deal", svalan.crm, name="Svalan (såld?)", amount=1)
    world.crm.relabel(svalan.crm, anna.crm, "bidder")
    world.crm.invite(svalan.crm, crm_bo, "interested")
    world.settle()
    assert (world.hub.row("deal", svalan.hub), world.hub.invited(svalan.hub)) == before
    assert _writes(world.hub, svalan.hub) == sent
    assert world.excluded("deal") == {(svalan.hub, svalan.crm): "closed in Propstreet"}
    reasons = set(world.excluded("deal_contact").values())
    assert reasons == {"its deal is closed in Propstreet"}
    assert world.crm.get("deal", svalan.crm)["name"] == "Svalan (såld?)"


def test_a_deal_closed_in_the_crm_keeps_its_stage(begin: Begin) -> None:
    """Whoever closed a deal in the CRM had a reason: Propstreet's stage does not reopen it, other fields go on."""
    world = begin("deal")
    svalan = world.svalan()
    world.crm.edit("deal", svalan.crm, stage="lost")
    world.settle()
    world.hub.edit("deal", svalan.hub, stage="communicated", name="Kv. Svalan 4 och 5")
    world.settle()
    assert world.crm.get("deal", svalan.crm)["stage"] == world.crm.stages["lost"]
    assert world.crm.get("deal", svalan.crm)["name"] == "Kv. Svalan 4 och 5"
    assert "closed" in str(world.excluded("deal")[svalan.hub, svalan.crm])


def _writes(hub: Hub, project: str) -> int:
    return sum(call.method != "GET" for call in hub.emulator.calls(path=f"/projects/{project}"))


# --- linked properties --------------------------------------------------------------------


def test_a_linked_property_tells_its_deal_and_hears_nothing(begin: Begin) -> None:
    """Its fields arrive on the deal; changed alone, they arrive too; what is typed over them is put back."""
    world = begin("deal")
    house = world.hub.add(
        "property", name="Svalan 4", categories=["office", "retail"], tenure="freehold", yearBuilt=1968,
        location={"locality": "Malmö", "country": "SE"}, parcelArea={"value": 4200, "unit": "sqm"},
    )  # fmt: skip
    svalan = world.introduce("deal", name="Kv. Svalan 4", properties=[{"id": house}])
    assert _property(world.crm, svalan.crm) == {
        "name": "Svalan 4", "location": "Malmö", "country": "SE", "categories": "office;retail",
        "tenure": "freehold", "year_built": "1968", "area_sqm": "4200",
    }  # fmt: skip
    moved = world.hub.row("deal", svalan.hub)["updatedUtc"]
    world.hub.edit("property", house, name="Svalan 4 och 5", tenure=None)
    world.settle()
    shown = _property(world.crm, svalan.crm)
    assert (shown["name"], shown["tenure"], shown["location"]) == ("Svalan 4 och 5", None, "Malmö")
    assert world.hub.row("deal", svalan.hub)["updatedUtc"] == moved
    world.crm.edit("deal", svalan.crm, property_name="Huset vid hamnen")
    world.settle()
    assert _property(world.crm, svalan.crm)["name"] == "Svalan 4 och 5"
    assert not [call for call in world.hub.emulator.calls(path="/properties") if call.method != "GET"]


def _property(crm: Crm, deal: str) -> dict[str, Any]:
    found = crm.get("deal", deal)
    return {name.removeprefix("property_"): value for name, value in found.items()
            if name.startswith("property_") and name != "property_count"}  # fmt: skip
