"""The brakes, over HTTP and for each CRM: whatever is wrong, a halted run has written nothing.

Each scenario is read from the emulators' own logs of requests. What waits can be read, thrown away
and, once it is right, carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.salesforce.emulator import SalesforceEmulator
from syncd.connector import Secret
from syncd.core.model import Side
from syncd.report import saved_document
from syncd.state import holds, pairs
from syncd.wiring import Result
from tests.faults.harness import CRMS, World, mark, world_of, writes

pytestmark = pytest.mark.long

Make = Callable[..., World]
SIDES = ("propstreet", "crm")
PEOPLE = 30
BOTH_WAYS = {"to_crm": "archive", "to_propstreet": "archive"}
#: Of each CRM: its collection of contacts and how it calls a phone and a last name.
WORDS = {
    "hubspot": {"contacts": "contacts", "phone": "phone", "last": "lastname", "email": "email"},
    "salesforce": {"contacts": "Contact", "phone": "MobilePhone", "last": "LastName", "email": "Email"},
}


@pytest.fixture
def make(engine: Engine, tmp_path: Path) -> Iterator[Make]:
    """Builds tenants whose contacts are in step; they are stopped when the test ends."""
    with ExitStack() as stack:

        def build(connector: str, people: int = PEOPLE, **extra: Any) -> World:
            kinds = {"contact": {"deletes": BOTH_WAYS}, **extra.pop("kinds", {})}
            world = stack.enter_context(world_of(engine, tmp_path, connector, extra={"kinds": kinds, **extra}))
            for number in range(people):
                world.hub_contact(number, phone=f"+4670000{number:04d}", strategy="Logistics")
            world.first()
            return world

        yield build


def ids(world: World, side: str) -> list[str]:
    """The contacts of one side, by e-mail address."""
    if side == "propstreet":
        return [row["id"] for row in sorted(world.hub.all("contacts"), key=lambda row: row["email"])]
    crm = world.crm
    if isinstance(crm, HubSpotEmulator):
        return [id_ for id_, _ in sorted(crm.all("contacts").items(), key=lambda item: item[1]["email"])]
    assert isinstance(crm, SalesforceEmulator)
    return [row["Id"] for row in sorted(crm.all("Contact"), key=lambda row: row["Email"])]


def edit(world: World, side: str, id_: str, field: str, value: str | None) -> None:
    """A person changes a contact's phone or last name."""
    if side == "propstreet":
        world.hub.edit("contacts", id_, {{"phone": "phone", "last": "lastName"}[field]: value})
        return
    crm, words = world.crm, WORDS[world.connector]
    if isinstance(crm, HubSpotEmulator):
        crm.edit("contacts", id_, {words[field]: value or ""})
    if isinstance(crm, SalesforceEmulator):
        crm.edit("Contact", id_, {words[field]: value})


def remove(world: World, side: str, id_: str) -> None:
    crm = world.crm
    if side == "propstreet":
        world.hub.remove("contacts", id_)
    elif isinstance(crm, HubSpotEmulator):
        crm.archive("contacts", id_)
    elif isinstance(crm, SalesforceEmulator):
        crm.delete("Contact", id_)


def halts(world: World, reason: str, verb: str, count: int) -> Result:
    """The run halts for this reason, has written nothing to anybody, and its plan shows so many operations."""
    places = mark(world.hub), mark(world.crm)
    result = world.run()
    assert (result.state, result.write_calls) == ("halted", 0), result
    assert reason in result.message
    assert (writes(world.hub, places[0]), writes(world.crm, places[1])) == ([], [])
    document = saved_document(world.service.engine, str(result.plan_id))
    assert reason in document["reasons"][0]
    assert document["state"] == "open"
    assert sum(each["verb"] == verb and each["kind"] == "contact" for each in document["operations"]) == count
    return result


def discarded_and_applied(world: World, reason: str, verb: str, count: int) -> None:
    """Thrown away, the same comes up again; approved, it is carried out, and both sides agree."""
    engine = world.service.engine
    first = halts(world, reason, verb, count)
    assert world.run().state == "halted"
    pairs.discard(engine, str(first.plan_id), world.clock())
    second = halts(world, reason, verb, count)
    assert first.plan_id != second.plan_id
    assert world.run("apply", plan_id=second.plan_id).message == ""
    world.settle()
    world.assert_in_step()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("connector", CRMS)
def test_a_mass_deletion_waits(make: Make, connector: str, side: str) -> None:
    """Eight of thirty contacts gone at once on one side. Propstreet itself deletes no contacts over its API."""
    world = make(connector)
    for id_ in ids(world, side)[:8]:
        remove(world, side, id_)
    if side == "crm":
        halts(world, "would delete 8 contact of 30 linked (propstreet)", "delete", 8)
        assert len(ids(world, "propstreet")) == 30
        return
    discarded_and_applied(world, "would delete 8 contact of 30 linked (crm)", "delete", 8)
    assert len(ids(world, "crm")) == 22


@pytest.mark.parametrize("connector", CRMS)
def test_all_of_a_tiny_tenant_is_no_handful(make: Make, connector: str) -> None:
    """Three of three contacts are fewer than the handful that is always allowed, and all there are."""
    world = make(connector, people=3)
    for id_ in ids(world, "crm"):
        remove(world, "crm", id_)
    halts(world, "would delete 3 contact of 3 linked (propstreet)", "delete", 3)
    assert len(ids(world, "propstreet")) == 3


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("connector", CRMS)
def test_a_mass_blanking_waits(make: Make, connector: str, side: str) -> None:
    """Twelve phones emptied at once."""
    world = make(connector)
    for id_ in ids(world, side)[:12]:
        edit(world, side, id_, "phone", None)
    other = "crm" if side == "propstreet" else "propstreet"
    discarded_and_applied(world, f"would empty fields of 12 contact of 30 linked ({other})", "update", 12)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("connector", CRMS)
def test_one_field_that_moves_on_most_records_waits(make: Make, connector: str, side: str) -> None:
    """Everybody is called the same all of a sudden."""
    world = make(connector)
    for id_ in ids(world, side):
        edit(world, side, id_, "last", "Import")
    other = "crm" if side == "propstreet" else "propstreet"
    discarded_and_applied(world, f"would change last_name on 30 contact of 30 linked ({other})", "update", 30)


@pytest.mark.parametrize("connector", CRMS)
def test_a_mass_creation_waits(make: Make, connector: str) -> None:
    """Somebody imported a list into the CRM."""
    world = make(connector, limits={"creates": {"floor": 5}})
    for number in range(10):
        world.crm_contact(number)
    discarded_and_applied(world, "would create 10 contact beside 30 linked (propstreet)", "create", 10)


@pytest.mark.parametrize("connector", CRMS)
def test_a_listing_that_shrank_leaves_a_plan_and_proves_itself_when_applied(make: Make, connector: str) -> None:
    """Ten contacts are missing from a comparison: not believed. Back again, the plan is refused and all is in step."""
    world = make(connector)
    crm = world.crm
    hidden: dict[Any, Any] = {}
    with crm.lock:
        held: Any = crm._things["contacts"] if isinstance(crm, HubSpotEmulator) else None
        held = crm._rows["Contact"] if isinstance(crm, SalesforceEmulator) else held
        for key in list(held)[:10]:
            hidden[key] = held.pop(key)
    world.look_at_everything()
    result = halts(world, "10 of 30 known contact are missing from a listing (crm)", "delete", 10)
    with crm.lock:
        held |= hidden
    refused = world.run("apply", plan_id=result.plan_id)
    assert (refused.state, refused.write_calls) == ("failed", 0)
    assert "is there after all; nothing was written" in refused.message
    world.settle()
    world.assert_in_step()
    assert len(ids(world, "propstreet")) == 30


# --- a field that vanishes ----------------------------------------------------------------


def blind(world: World, *, is_silent: bool = True) -> None:
    """The CRM's property of a contact's strategy is gone, or hidden."""
    crm = world.crm
    if isinstance(crm, HubSpotEmulator):
        crm.undefine("contacts", "propstreet_strategy", is_silent=is_silent)
    if isinstance(crm, SalesforceEmulator):
        crm.hidden.add(("Contact", "Propstreet_Strategy__c"))


def refuses(world: World, *names: str) -> None:
    """The run names the field and the way out, and has written nothing."""
    places = mark(world.hub), mark(world.crm)
    result = world.run()
    assert (result.state, result.is_config) == ("failed", True), result
    assert any(name in result.message for name in names), result.message
    assert "off" in result.message
    assert (writes(world.hub, places[0]), writes(world.crm, places[1])) == ([], [])
    assert [row["strategy"] for row in world.hub.all("contacts")] == ["Logistics"] * 4


@pytest.mark.parametrize(("connector", "is_silent"), [("hubspot", True), ("hubspot", False), ("salesforce", True)])
def test_a_field_that_vanishes_between_two_checks_is_named_and_empties_nothing(
    make: Make, connector: str, is_silent: bool
) -> None:
    """One record that moves would carry its emptied field over, too few to be braked."""
    world = make(connector, people=4)
    blind(world, is_silent=is_silent)
    edit(world, "crm", ids(world, "crm")[0], "last", "Nyman")
    refuses(world, "propstreet_strategy", "contact.strategy")
    refuses(world, "contact.strategy")
    if isinstance(world.crm, SalesforceEmulator):
        world.crm.hidden.clear()
        world.settle()
        world.assert_in_step()
        assert [row["strategy"] for row in world.hub.all("contacts")] == ["Logistics"] * 4


@pytest.mark.parametrize("connector", CRMS)
def test_a_field_that_is_missing_at_the_check_is_named_and_can_be_switched_off(make: Make, connector: str) -> None:
    """An hour later the schema is read anew; off in the tenant's file, the rest goes on and no strategy is lost."""
    world = make(connector, people=4)
    blind(world)
    world.clock.advance(3_700)
    refuses(world, "contact.strategy")
    document = world.document()
    document["pairs"][0]["kinds"]["contact"]["fields"] = {"strategy": "off"}
    world.write(document)
    edit(world, "crm", ids(world, "crm")[0], "last", "Nyman")
    world.settle()
    assert [row["lastName"] for row in world.hub.all("contacts")].count("Nyman") == 1
    assert [row["strategy"] for row in world.hub.all("contacts")] == ["Logistics"] * 4


# --- another account ----------------------------------------------------------------------


def swap(world: World, side: str) -> None:
    """Another tenant's credential lands in the secret's file; its account is another one and takes it."""
    crm, hub = world.crm, world.hub
    if side == "propstreet":
        hub.auth = {**hub.auth, "client_id": "another-client"}
    elif isinstance(crm, HubSpotEmulator):
        crm.portal_id = 1
        crm.auth = {"access_token": "pat-of-another-portal"}
        crm.allow("pat-of-another-portal")
    elif isinstance(crm, SalesforceEmulator):
        crm.org_id = "00D000000000002EAA"
        crm.auth = {**crm.auth, "client_id": "another-client"}
    world.write()


@pytest.mark.parametrize("seconds", [0, 3_700])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("connector", CRMS)
def test_a_credential_of_another_account_writes_nothing(make: Make, connector: str, side: str, seconds: float) -> None:
    """Even within the hour for which a check holds: a file that changed is proved first."""
    world = make(connector, people=4)
    swap(world, side)
    for number in range(4):
        edit(world, "propstreet", ids(world, "propstreet")[number], "last", "Nyman")
        edit(world, "crm", ids(world, "crm")[number], "phone", "+46701234567")
    world.clock.advance(seconds)
    places = mark(world.hub), mark(world.crm)
    for _ in range(2):
        result = world.run()
        assert (result.state, result.is_config) == ("failed", True), result
        assert "but this pair is linked with account" in result.message
        assert "Restore the former credentials" in result.message
    assert (writes(world.hub, places[0]), writes(world.crm, places[1])) == ([], [])


def test_a_secret_that_changes_in_the_middle_of_a_run_waits_for_the_next(make: Make) -> None:
    """The connectors of a run hear of no other credential than the one that was proved."""
    world = make("hubspot", people=1)
    (opened,) = world.service._opened.values()
    connector: Any = opened.connectors[Side.RIGHT]
    secret = connector._client._auth["access_token"]
    assert isinstance(secret, Secret)
    before = secret.reveal()
    swap(world, "crm")
    assert secret.reveal() == before


# --- standing still -----------------------------------------------------------------------


@pytest.mark.parametrize("connector", CRMS)
def test_a_paused_pair_catches_up_and_its_brakes_hold(make: Make, connector: str) -> None:
    """Edits and deletions of a week arrive; that it was paused is no leave to delete a third of all."""
    world = make(connector)
    engine, pair_id = world.service.engine, f"nordhaus/{connector}"
    pairs.pause(engine, pair_id, world.clock())
    people, theirs = ids(world, "propstreet"), ids(world, "crm")
    edit(world, "propstreet", people[0], "last", "Nyman")
    edit(world, "crm", theirs[1], "phone", "+46701234567")
    remove(world, "propstreet", people[2])
    world.clock.advance(7 * 86_400)
    pairs.resume(engine, pair_id, world.clock())
    world.settle()
    world.assert_in_step()
    assert len(ids(world, "crm")) == 29
    pairs.pause(engine, pair_id, world.clock())
    for id_ in ids(world, "crm")[:8]:
        remove(world, "crm", id_)
    pairs.resume(engine, pair_id, world.clock())
    halts(world, "would delete 8 contact of 29 linked (propstreet)", "delete", 8)


@pytest.mark.parametrize("connector", CRMS)
def test_a_held_record_is_written_on_neither_side(make: Make, connector: str) -> None:
    """Its news wait, others travel; let go, it catches up."""
    world = make(connector, people=4)
    people, theirs = ids(world, "propstreet"), ids(world, "crm")
    engine, pair_id = world.service.engine, f"nordhaus/{connector}"
    holds.place(engine, pair_id, "contact", Side.RIGHT, [theirs[0]], reason=holds.BY_PERSON, at=world.clock())
    places = mark(world.hub), mark(world.crm)
    edit(world, "propstreet", people[0], "last", "Nyman")
    edit(world, "crm", theirs[0], "phone", "+46701234567")
    assert world.run().state == "done"
    assert (writes(world.hub, places[0]), writes(world.crm, places[1])) == ([], [])
    edit(world, "propstreet", people[1], "last", "Ek")
    assert world.run().write_calls == 1
    holds.lift(engine, pair_id, "contact", Side.LEFT, people[0])
    world.settle()
    world.assert_in_step()
    assert world.hub.get("contacts", people[0])["phone"] == "+46701234567"


# --- another mapping ----------------------------------------------------------------------


@pytest.mark.parametrize("connector", CRMS)
def test_a_field_that_is_switched_on_is_planned_for_exactly_the_records_that_differ(make: Make, connector: str) -> None:
    """A phone that was off: filled where one side is empty, settled where both differ, and nothing else is planned."""
    off: Mapping[str, Any] = {"contact": {"deletes": BOTH_WAYS, "fields": {"phone": "off"}}}
    world = make(connector, people=5, kinds=off)
    people, theirs = ids(world, "propstreet"), ids(world, "crm")
    for number, phone in ((1, None), (4, None)):
        edit(world, "propstreet", people[number], "phone", phone)
    edit(world, "crm", theirs[0], "phone", "+46700000000")
    edit(world, "crm", theirs[1], "phone", "+46709999991")
    edit(world, "crm", theirs[2], "phone", "+46709999992")
    world.clock.advance(3 * 3_600)
    world.settle()
    document = world.document()
    document["pairs"][0]["kinds"]["contact"]["fields"] = {"phone": "both"}
    world.extra = {**world.extra, "kinds": {"contact": {"deletes": BOTH_WAYS, "fields": {"phone": "both"}}}}
    world.write(document)
    places = mark(world.hub), mark(world.crm)
    result = world.run("plan")
    assert (writes(world.hub, places[0]), writes(world.crm, places[1])) == ([], [])
    plan = saved_document(world.service.engine, str(result.plan_id))["operations"]
    assert sorted((each["verb"], each["side"], each["propstreet"], *each["fields"]) for each in plan) == sorted(
        [
            ("update", "propstreet", people[1], "phone"),
            ("update", "propstreet", people[2], "phone"),
            ("update", "crm", people[3], "phone"),
        ]
    )
    world.settle()
    assert [world.hub.get("contacts", id_).get("phone") for id_ in people] == [
        "+46700000000", "+46709999991", "+46709999992", "+46700000003", None,
    ]  # fmt: skip
