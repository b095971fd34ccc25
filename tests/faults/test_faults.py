"""What vendors do to a run: whatever goes wrong, afterwards both sides agree and nothing stands there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.salesforce.emulator import SalesforceEmulator
from syncd.state import lease, pairs
from syncd.testing.emulator import Emulator
from syncd.testing.emulator import Fault as Wrong
from syncd.wiring import run_pair
from tests.faults.harness import CRMS, World, fault, mark, meanwhile, since, world_of, writes

pytestmark = pytest.mark.long

Make = Callable[..., World]

#: Where records are listed whole, by system, and what an empty page looks like there.
EMPTY: dict[str, Any] = {
    "propstreet": {"data": [], "page": {"nextCursor": None, "pageSize": 500, "hasMore": False}},
    "hubspot": {"results": []},
}
CONTACTS = {
    "propstreet": "/network/contacts$",
    "hubspot": "/objects/contacts$",
}
#: Reads and writes of each system that every first run makes.
READS = {
    "propstreet": ("GET", "/network/contacts$"),
    "hubspot": ("GET", "/objects/contacts$"),
    "salesforce": ("POST", "/composite$"),
}
WRITES = {
    "propstreet": ("POST", "/network/contacts$"),
    "hubspot": ("POST", "/objects/contacts/batch/upsert$"),
    "salesforce": ("PATCH", "/composite/sobjects/Contact/"),
}
SYSTEMS = tuple(READS)


@pytest.fixture
def make(engine: Engine, tmp_path: Path) -> Iterator[Make]:
    """Builds tenants that are stopped when the test ends."""
    with ExitStack() as stack:
        yield lambda connector="hubspot", **options: stack.enter_context(
            world_of(engine, tmp_path, connector, **options)
        )


def around(make: Make, system: str, **options: Any) -> tuple[World, Emulator]:
    """A seeded world and the emulator of the system that is to fail; Propstreet has HubSpot beside it."""
    world = make(system if system in CRMS else "hubspot", **options)
    world.seed()
    return world, world.hub if system == "propstreet" else world.crm


def recover(world: World) -> None:
    """What a failed run left open is found out and finished by the next ones."""
    world.settle()
    world.assert_in_step()
    assert world.dead_letters() == []


# --- stale versions -----------------------------------------------------------------------


@pytest.mark.parametrize("status", [412, 409])
@pytest.mark.parametrize("connector", CRMS)
def test_a_stale_entity_tag_loses_neither_edit(make: Make, connector: str, status: int) -> None:
    """Somebody edits a contact in Propstreet just before we write it: the write is refused, merged anew, sent again."""
    world = make(connector, hub={"stale_status": status})
    world.seed()
    world.first()
    world.crm_rename("hub1@example.com", "Nyman")
    (id_,) = [each["id"] for each in world.hub.all("contacts") if each.get("email") == "hub1@example.com"]
    path = f"/network/contacts/{id_}$"
    meanwhile(world.hub, "PATCH", path, lambda: world.hub.edit("contacts", id_, {"phone": "+46701234567"}))
    place = mark(world.hub)
    world.settle()
    sent = [call for call in since(world.hub, place) if call.method == "PATCH"]
    assert [call.status for call in sent] == [status, 200]
    assert all("if-match" in call.headers for call in sent)
    row = world.hub.get("contacts", id_)
    assert (row["lastName"], row["phone"]) == ("Nyman", "+46701234567")
    world.assert_in_step()


@pytest.mark.parametrize("connector", CRMS)
def test_an_edit_in_the_crm_between_reading_and_writing_survives(make: Make, connector: str) -> None:
    """The CRM is read again just before it is written, so an edit made meanwhile on another field stays."""
    world = make(connector)
    world.seed()
    world.first()
    world.hub_rename("crm1@example.com", "Nyman")
    crm = world.crm
    if isinstance(crm, HubSpotEmulator):
        hs = crm
        (id_,) = [each for each, row in hs.all("contacts").items() if row["email"] == "crm1@example.com"]
        meanwhile(hs, "POST", "/contacts/batch/read$", lambda: hs.edit("contacts", id_, {"firstname": "Carla"}))
    if isinstance(crm, SalesforceEmulator):
        org = crm
        (id_,) = [each["Id"] for each in org.all("Contact") if each["Email"] == "crm1@example.com"]
        meanwhile(org, "GET", "/queryAll/", lambda: org.edit("Contact", id_, {"FirstName": "Carla"}))
    world.settle()
    assert world.picture()["crm contact"]["crm1@example.com", "Carla", "Nyman"] == 1
    world.assert_in_step()


# --- lost replies -------------------------------------------------------------------------

#: By CRM beside Propstreet: the creates of a first run, all of one system.
CREATES = [
    ("propstreet", "hubspot", "POST", ["/network/companies$", "/network/contacts$"]),
    ("propstreet", "salesforce", "POST", ["/network/companies$", "/network/contacts$"]),
    (
        "hubspot", "hubspot", "POST",
        [
            "/companies/batch/upsert$", "/contacts/batch/upsert$", "/deals/batch/upsert$",
            "/associations/deals/contacts/batch/create$", "/associations/contacts/companies/batch/create$",
        ],
    ),
    (
        "salesforce", "salesforce", "PATCH",
        [f"/composite/sobjects/{name}/" for name in ("Account", "Contact", "Opportunity", "OpportunityContactRole")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("system", "connector", "method", "paths"), CREATES)
def test_creates_whose_replies_are_lost_leave_exactly_one_record_each(
    make: Make, system: str, connector: str, method: str, paths: list[str]
) -> None:
    """The effect took place, the answer did not arrive: the run finds out, and there is one record each."""
    world = make(connector)
    world.seed()
    failing = world.hub if system == "propstreet" else world.crm
    wrongs = [fault(failing, method=method, path=path, when="drop") for path in paths]
    assert world.run("backfill").state == "done"
    assert [wrong.times for wrong in wrongs] == [0] * len(paths)
    recover(world)


@pytest.mark.parametrize("system", ["propstreet", "hubspot", "salesforce"])
def test_replies_that_stay_lost_until_patience_ends_leave_one_record_each(make: Make, system: str) -> None:
    """However often the same write goes unanswered, and in however many runs, nothing is doubled."""
    world, failing = around(make, system)
    method, path = WRITES[system]
    fault(failing, method=method, path=path, when="drop", times=9)
    for _ in range(3):
        assert world.run("backfill").state in ("done", "failed")
    failing.faults.clear()
    recover(world)


def _bidders(world: World) -> int:
    return sum(row["classification"] == "bidder" for row in world.hub.all("prospects"))


def test_a_lost_reply_to_a_batch_of_prospects_leaves_one_of_each(make: Make) -> None:
    """Prospects are added by the hundred; the reply to the batch is lost after some were there already."""
    world = make("hubspot")
    world.seed(deals=1)
    world.first()
    crm = world.crm
    assert isinstance(crm, HubSpotEmulator)
    (deal,) = crm.all("deals")
    for id_, row in crm.all("contacts").items():
        if row["email"].startswith("crm"):
            crm.associate("deals", deal, "contacts", id_, ["Bidder"])
    wrong = fault(world.hub, method="POST", path="prospects:batch$", when="drop")
    recover(world)
    assert wrong.times == 0
    assert len(world.hub.all("prospects")) == 8
    assert _bidders(world) == 6


def test_a_prospect_whose_reply_was_lost_keeps_the_role_that_the_crm_gave(make: Make) -> None:
    """Propstreet's own default is nobody's word: it does not travel back, though it is the newer one."""
    world = make("hubspot")
    world.seed(deals=1)
    world.first()
    crm = world.crm
    assert isinstance(crm, HubSpotEmulator)
    (deal,) = crm.all("deals")
    person = next(id_ for id_, row in crm.all("contacts").items() if row["email"].startswith("crm"))
    crm.associate("deals", deal, "contacts", person, ["Bidder"])
    wrong = fault(world.hub, method="POST", path="/prospects$", when="drop")
    recover(world)
    assert wrong.times == 0
    assert _bidders(world) == 1
    assert crm.associations("deals", deal, "contacts")[person] == {"Bidder"}


@pytest.mark.parametrize("connector", CRMS)
def test_a_reply_lost_in_the_middle_of_many_batches_doubles_nothing(make: Make, connector: str) -> None:
    """Of several batches, one's reply is lost: its records are found, the other batches are not disturbed."""
    world = make(connector)
    number = 250 if connector == "hubspot" else 450
    for each in range(number):
        world.hub_contact(each)
    wrong = fault(world.crm, method=WRITES[connector][0], path=WRITES[connector][1], when="drop", skip=1)
    assert world.run("backfill").state == "done"
    recover(world)
    assert wrong.times == 0
    assert world.picture()["crm contact"].total() == number


def test_a_reply_lost_among_single_writes_doubles_nothing(make: Make) -> None:
    """Propstreet takes contacts one by one: the third of twenty is answered by nobody."""
    world = make("salesforce")
    for each in range(20):
        world.crm_contact(each)
    wrong = fault(world.hub, method="POST", path="/network/contacts$", when="drop", skip=2)
    assert world.run("backfill").state == "done"
    recover(world)
    assert wrong.times == 0
    assert world.picture()["propstreet contact"].total() == 20


def test_somebody_adds_the_same_contact_at_the_same_moment(make: Make) -> None:
    """HubSpot refuses the whole batch because one e-mail is taken by now: that one is adopted, the rest lands."""
    world = make("hubspot")
    for each in range(12):
        world.hub_contact(each)
    meanwhile(world.crm, "POST", "/contacts/batch/upsert$", lambda: world.crm_contact(5, "hub5@example.com"))
    assert world.run("backfill").state == "done"
    world.settle()
    emails = Counter(row[0] for row in world.picture()["crm contact"].elements())
    assert emails == Counter(f"hub{each}@example.com" for each in range(12))
    assert Counter(row[0] for row in world.picture()["propstreet contact"].elements()) == emails


# --- credentials and quotas ---------------------------------------------------------------


def _expire(emulator: Emulator) -> None:
    if isinstance(emulator, HubSpotEmulator):
        emulator.revoke()
    else:
        emulator.expire_tokens()  # type: ignore[attr-defined]  # both others have it


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_token_that_expires_in_the_middle_of_a_run_is_renewed_once(make: Make, system: str) -> None:
    """A refused token means that nothing took effect: one new token, the same call again, the run goes on."""
    options = {"is_oauth": True} if system == "hubspot" else {}
    world, failing = around(make, system, **options)
    for kind in (READS, WRITES):
        meanwhile(failing, *kind[system], lambda: _expire(failing))
    assert world.run("backfill").state == "done"
    assert len(failing.calls("POST", "/token$")) == 3
    assert Counter(call.status for call in failing.calls())[401] == 2
    recover(world)


def test_a_static_token_that_is_rotated_in_the_middle_of_a_run_is_taken_up(make: Make) -> None:
    """The new one stands where the old one stood, which is revoked: the account is proved again and the run goes on."""
    world = make("hubspot")
    crm = world.crm
    assert isinstance(crm, HubSpotEmulator)
    for each in range(12):
        world.hub_contact(each)

    def rotate() -> None:
        crm.allow("pat-new")
        world.put_secret("hubspot", "access_token", "pat-new")
        crm.revoke(crm.auth["access_token"])

    meanwhile(crm, *WRITES["hubspot"], rotate)
    assert world.run("backfill").state == "done"
    assert Counter(call.status for call in crm.log)[401] == 1
    assert len(crm.calls("GET", "/account-info/")) == 2
    recover(world)
    assert world.picture()["crm contact"].total() == 12


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_credential_that_is_worthless_stops_the_pair_and_writes_nothing(make: Make, system: str) -> None:
    """A token that stays refused is asked for once more and no oftener; the message names no secret."""
    world, failing = around(make, system)
    path = "/api/|/crm/|/services/data/|/account-info/"
    fault(failing, path=path, status=401, body={"message": "no"}, times=10_000)
    result = world.run("backfill")
    assert result.state == "failed"
    assert len(failing.calls("*", path)) <= 2
    assert writes(world.hub) == writes(world.crm) == []
    assert not any(secret in result.message for secret in failing.auth.values())


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_429_with_retry_after_is_waited_out(make: Make, system: str) -> None:
    """What the vendor asks for is granted, at least to the second; then the call is sent again."""
    world, failing = around(make, system)
    body = {"message": "slow down", "policyName": "TEN_SECONDLY_ROLLING"}
    for method, path in (READS[system], WRITES[system]):
        fault(failing, method=method, path=path, status=429, body=body, headers={"Retry-After": "70"}, times=2)
    before = world.clock()
    assert world.run("backfill").state == "done"
    assert timedelta(seconds=280) <= world.clock() - before < timedelta(seconds=400)
    recover(world)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_429_without_retry_after_is_waited_out(make: Make, system: str) -> None:
    """With nothing said, the pauses grow by themselves and the run ends well."""
    world, failing = around(make, system)
    method, path = READS[system]
    body = {"message": "slow down", "policyName": "TEN_SECONDLY_ROLLING", "errorCode": "TOO_MANY"}
    wrong = fault(failing, method=method, path=path, status=429, body=body, times=3)
    before = world.clock()
    assert world.run("backfill").state == "done"
    assert wrong.times == 0
    # Propstreet's own headers tell when its minute is over; three refusals are three minutes at most.
    assert timedelta(seconds=2) < world.clock() - before < timedelta(seconds=220)
    recover(world)


def test_retry_after_may_be_a_date(make: Make) -> None:
    """The other form of the header counts from the vendor's own clock."""
    world = make("hubspot")
    world.seed()
    headers = {"Retry-After": "Fri, 20 Nov 2026 09:00:45 GMT", "Date": "Fri, 20 Nov 2026 09:00:00 GMT"}
    fault(world.hub, method="GET", path="/network/contacts$", status=429, body={}, headers=headers)
    before = world.clock()
    assert world.run("backfill").state == "done"
    assert timedelta(seconds=45) <= world.clock() - before < timedelta(seconds=90)
    recover(world)


def test_a_small_quota_is_kept_without_a_single_refusal(make: Make) -> None:
    """A personal token has sixty calls a minute: a run that needs twice as many is paced, not refused."""
    world = make("hubspot", hub={"is_personal": True})
    for each in range(110):
        world.crm_contact(each)
    assert world.run("backfill").state == "done"
    assert [call for call in world.hub.log if call.status == 429] == []
    assert [call for call in world.crm.log if call.status == 429] == []
    recover(world)


@pytest.mark.parametrize("when", ["in the middle of a run", "before a later run"])
def test_a_spent_daily_quota_lets_the_pair_rest_until_midnight_in_the_accounts_zone(make: Make, when: str) -> None:
    """HubSpot's day is the account's: until it turns nobody calls; other pairs go on; then all arrives."""
    world = make("hubspot")
    other = make("hubspot", tenant="granit", clock=world.clock, service=world.service)
    for each in (world, other):
        each.seed()
    crm = world.crm
    assert isinstance(crm, HubSpotEmulator)

    def spend() -> None:
        crm.is_daily_spent = True

    if when == "in the middle of a run":
        meanwhile(crm, "POST", "/contacts/batch/upsert$", spend)
    else:
        if when == "before a later run":
            world.first()
            world.crm_rename("crm1@example.com", "Nyman")
        spend()
    told = world.run("backfill")
    assert told.state in ("failed", "resting")
    place = mark(crm)
    hub_place = mark(world.hub)
    midnight = datetime(2026, 11, 20, 23, 0, tzinfo=UTC)
    for _ in range(6):
        world.clock.advance(7_000)
        result = world.run()
        assert result.state == "resting"
        assert result.message == f"a vendor asked to be left alone until {midnight:%F %T} UTC"
    assert (mark(crm), mark(world.hub)) == (place, hub_place)
    other.first()
    other.assert_in_step()
    assert world.clock() < midnight
    crm.is_daily_spent = False
    world.clock.advance((midnight - world.clock()).total_seconds())
    world.run("backfill")
    recover(world)


def test_a_spent_daily_quota_is_looked_at_once_an_hour_while_the_accounts_zone_is_not_known(make: Make) -> None:
    """Met before the account was ever read: the day turns at a full hour, and one call tells whether it did."""
    world = make("hubspot")
    world.seed()
    crm = world.crm
    assert isinstance(crm, HubSpotEmulator)
    crm.is_daily_spent = True
    for _ in range(3):
        place = mark(crm)
        assert world.run("backfill").state == "failed"
        assert len(crm.log) == place + 1
        hour = (world.clock() + timedelta(hours=1)).replace(minute=0, second=0, microsecond=0)
        told = world.run()
        assert told.message == f"a vendor asked to be left alone until {hour:%F %T} UTC"
        assert len(crm.log) == place + 1
        world.clock.advance((hour - world.clock()).total_seconds())
    crm.is_daily_spent = False
    world.run("backfill")
    recover(world)


def test_salesforces_exceeded_limit_lets_the_pair_rest_a_while(make: Make) -> None:
    """REQUEST_LIMIT_EXCEEDED names no time: some minutes of rest, one look, and on when the window has moved."""
    world = make("salesforce")
    other = make("hubspot", tenant="granit", clock=world.clock, service=world.service)
    world.seed()
    other.seed()
    crm = world.crm
    assert isinstance(crm, SalesforceEmulator)
    refusal = [{"message": "TotalRequests Limit exceeded.", "errorCode": "REQUEST_LIMIT_EXCEEDED"}]
    wrong = fault(crm, path="/services/data/", status=403, body=refusal, times=0)
    meanwhile(crm, "PATCH", "/composite/sobjects/Contact/", lambda: setattr(wrong, "times", 10_000))
    assert world.run("backfill").state in ("failed", "resting")
    place = mark(crm)
    assert [world.run().state for _ in range(3)] == ["resting"] * 3
    assert mark(crm) == place
    other.first()
    world.clock.advance(600)
    assert world.run("backfill").state in ("failed", "resting")
    assert 0 < mark(crm) - place <= 2
    wrong.times = 0
    world.clock.advance(600)
    world.run("backfill")
    recover(world)


# --- poison -------------------------------------------------------------------------------


def test_hubspot_207_settles_each_record_for_itself(make: Make) -> None:
    """A batch with errors: one of a hundred is refused and becomes a dead letter with its code, 99 land."""
    world = make("hubspot")
    for each in range(100):
        world.hub_contact(each, **({"email": "hub41@nowhere"} if each == 41 else {}))
    assert world.run("backfill").state == "done"
    assert 207 in {call.status for call in world.crm.calls("POST", "/contacts/batch/upsert$")}
    _assert_one_dead_letter(world, "INVALID_EMAIL")
    _assert_the_rest_landed(world, 99)
    (id_,) = [each["id"] for each in world.hub.all("contacts") if each.get("email") == "hub41@nowhere"]
    world.hub.edit("contacts", id_, {"email": "hub41@example.com"})
    world.settle()
    assert world.dead_letters() == []
    world.assert_in_step()


def test_salesforce_tells_of_each_record_for_itself(make: Make) -> None:
    """A collection with errors: one of a hundred is refused and becomes a dead letter with its code, 99 land."""
    world = make("salesforce")
    ids = [world.hub_contact(each, **({"firstName": "x" * 60} if each == 41 else {})) for each in range(100)]
    assert world.run("backfill").state == "done"
    _assert_one_dead_letter(world, "STRING_TOO_LONG: FirstName")
    _assert_the_rest_landed(world, 99)
    world.hub.edit("contacts", ids[41], {"firstName": "Hanna41"})
    world.settle()
    assert world.dead_letters() == []
    world.assert_in_step()


@pytest.mark.parametrize("connector", CRMS)
def test_propstreet_refuses_one_of_many(make: Make, connector: str) -> None:
    """What Propstreet's validation refuses is set aside with the field that it names; the rest lands."""
    world = make(connector)
    for each in range(30):
        world.crm_contact(each, last="x" * 400 if each == 11 and connector == "hubspot" else "Ek")
    if isinstance(world.crm, SalesforceEmulator):
        (id_,) = [each["Id"] for each in world.crm.all("Contact") if each["Email"] == "crm11@example.com"]
        world.crm.edit("Contact", id_, {"LastName": "x" * 400})
    assert world.run("backfill").state == "done"
    (letter,) = world.dead_letters()
    assert letter["kind"] == "contact" and "ast" in letter["reason"], letter
    assert world.picture()["propstreet contact"].total() == 29
    before = mark(world.hub)
    world.run()
    assert writes(world.hub, before) == []


def test_a_batch_refused_as_a_whole_is_halved_until_the_poison_is_alone(make: Make) -> None:
    """HubSpot refuses whole batches for one conflict: the 99 others still land, in few calls."""
    world = make("hubspot")
    crm = world.crm
    assert isinstance(crm, HubSpotEmulator)
    for each in range(100):
        world.hub_contact(each)
    refusal = {"status": "error", "category": "VALIDATION_ERROR", "message": "no", "correlationId": "c"}
    # The right halves are refused each time: seven levels for a hundred.
    fault(crm, method="POST", path="/contacts/batch/upsert$", status=400, body=refusal, times=1)
    place = mark(crm)
    assert world.run("backfill").state == "done"
    sent = [c for c in since(crm, place) if c.path.endswith("/contacts/batch/upsert")]
    assert [len(call.body["inputs"]) for call in sent] == [100, 50, 50]
    recover(world)


def test_a_poison_that_refuses_every_batch_it_is_in_is_found(make: Make) -> None:
    """Bisecting: the record alone becomes the dead letter, the 99 beside it land."""
    world = make("hubspot")
    crm = world.crm
    assert isinstance(crm, HubSpotEmulator)
    ids = [world.hub_contact(each) for each in range(100)]
    refusal = {"status": "error", "category": "VALIDATION_ERROR", "message": "no", "correlationId": "c"}
    poison = ids[41]

    def spoil() -> None:
        held = any(each["id"] == poison for each in crm.log[-1].body["inputs"])
        crm.faults[:] = [each for each in crm.faults if each is not wrong]
        if held:
            crm.faults.append(wrong)
            wrong.times = 1

    wrong = Wrong(method="POST", path="/contacts/batch/upsert$", status=400, body=refusal, times=0)
    meanwhile(crm, "POST", "/contacts/batch/upsert$", spoil, times=10_000)
    assert world.run("backfill").state == "done"
    _assert_one_dead_letter(world, "VALIDATION_ERROR")
    assert world.dead_letters()[0]["propstreet"] == poison
    _assert_the_rest_landed(world, 99)


def _assert_one_dead_letter(world: World, code: str) -> None:
    (letter,) = world.dead_letters()
    assert letter["kind"] == "contact"
    assert code in letter["reason"]
    assert "@" not in letter["reason"]


def _assert_the_rest_landed(world: World, number: int) -> None:
    assert world.picture()["crm contact"].total() == number
    place, hub_place = mark(world.crm), mark(world.hub)
    world.run()
    assert (writes(world.crm, place), writes(world.hub, hub_place)) == ([], [])


# --- broken answers -----------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_some_500s_are_sat_out(make: Make, system: str) -> None:
    """A vendor that stumbles a few times is asked again within the same run."""
    world, failing = around(make, system)
    for method, path in (READS[system], WRITES[system]):
        for status in (500, 502, 503):
            fault(failing, method=method, path=path, status=status, body="<html>oops</html>")
    assert world.run("backfill").state == "done"
    recover(world)


@pytest.mark.parametrize("system", SYSTEMS)
def test_500s_beyond_patience_end_the_run_and_the_next_one_finishes(make: Make, system: str) -> None:
    """The run fails and says so; although the writes had taken effect, nothing is doubled."""
    world, failing = around(make, system)
    method, path = WRITES[system]
    fault(failing, method=method, path=path, status=500, body={"message": "oops"}, when="after", times=12)
    result = world.run("backfill")
    if result.state == "failed":
        assert "500" in result.message
    failing.faults.clear()
    world.run("backfill")
    recover(world)


@pytest.mark.parametrize("kind", [READS, WRITES], ids=["reading", "writing"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_html_with_200_is_no_answer(make: Make, system: str, kind: dict[str, tuple[str, str]]) -> None:
    """A proxy's page is never taken for data: the run stops and deletes nothing; later all arrives, once."""
    world, failing = around(make, system)
    method, path = kind[system]
    fault(failing, method=method, path=path, status=200, body="<html>Sign in</html>", when="after")
    result = world.run("backfill")
    assert result.state == "failed"
    assert "<html>" not in result.message
    world.run("backfill")
    recover(world)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_page_of_html_with_404_deletes_nothing(make: Make, system: str) -> None:
    """Nor is a stranger's 404 a missing record."""
    world, failing = around(make, system)
    world.first()
    before = world.picture()
    fault(failing, path="/api/|/crm/|/services/data/", status=404, body="<html>Not found</html>", times=20)
    world.look_at_everything()
    assert world.run().state == "failed"
    failing.faults.clear()
    recover(world)
    assert world.picture() == before


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_empty_page_where_there_were_records_halts_and_deletes_nothing(make: Make, system: str) -> None:
    """A listing that suddenly shows nobody is not believed: the pair waits for a person, all stays."""
    world, failing = around(make, system)
    world.first()
    before = world.picture()
    world.look_at_everything()
    hidden: Any = None
    if isinstance(failing, SalesforceEmulator):
        # All objects come in one answer, of which one part is empty.
        with failing.lock:
            hidden, failing._rows["Contact"] = failing._rows["Contact"], {}
    else:
        fault(failing, method="GET", path=CONTACTS[system], status=200, body=EMPTY[system], when="after", times=50)
    place, hub_place = mark(world.crm), mark(world.hub)
    result = world.run()
    assert result.state == "halted", result
    assert "missing from a listing" in result.message
    assert (writes(world.crm, place), writes(world.hub, hub_place)) == ([], [])
    assert world.run().state == "halted"
    failing.faults.clear()
    if isinstance(failing, SalesforceEmulator):
        failing._rows["Contact"] = hidden
    pairs.resume(world.service.engine, "nordhaus/" + world.connector, world.clock())
    recover(world)
    assert world.picture() == before


def test_associations_that_are_suddenly_empty_for_all_deals_halt(make: Make) -> None:
    """Every deal without its contacts at once is no edit of anybody's: nothing is removed from Propstreet."""
    world = make("hubspot")
    world.seed()
    world.first()
    before = world.picture()
    crm = world.crm
    assert isinstance(crm, HubSpotEmulator)
    kept = {pair: crm._bonds[pair] for pair in (("deals", "contacts"), ("contacts", "deals"))}
    with crm.lock:
        crm._bonds.update({pair: {} for pair in kept})
    place = mark(world.hub)
    result = world.run()
    assert result.state == "halted"
    assert "deal_contact" in result.message
    assert writes(world.hub, place) == []
    with crm.lock:
        crm._bonds.update(kept)
    pairs.resume(world.service.engine, "nordhaus/hubspot", world.clock())
    recover(world)
    assert world.picture() == before


def test_what_a_person_says_is_true_is_believed(make: Make) -> None:
    """Somebody did take every contact off every deal: after resume the run carries it over."""
    extra = {"kinds": {"deal_contact": {"deletes": {"to_propstreet": "archive"}}}}
    world = make("hubspot", extra=extra)
    world.seed()
    world.first()
    crm = world.crm
    assert isinstance(crm, HubSpotEmulator)
    for deal in crm.all("deals"):
        for contact in crm.associations("deals", deal, "contacts"):
            crm.dissociate("deals", deal, "contacts", contact)
    assert world.run().state == "halted"
    pairs.resume(world.service.engine, "nordhaus/hubspot", world.clock())
    result = world.run()
    assert (result.state, result.message) == ("done", "")
    recover(world)
    assert world.hub.all("prospects") == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_refused_connection_costs_a_run_and_nothing_else(make: Make, system: str) -> None:
    """While a system is down runs fail; when it is back, what both sides did meanwhile arrives."""
    world, failing = around(make, system)
    world.first()
    failing.stop()
    world.hub_rename("hub1@example.com", "Nyman")
    world.crm_rename("crm1@example.com", "Nyman")
    for _ in range(2):
        assert world.run().state == "failed"
    failing.start(int(failing.url.rpartition(":")[2]))
    recover(world)
    assert world.picture()["crm contact"]["hub1@example.com", "Hanna1", "Nyman"] == 1


def test_a_dead_workers_lease_is_waited_for_and_a_living_ones_is_not(make: Make) -> None:
    """Started again at once after a SIGKILL, a run takes over when the lease lapses; a renewed lease means busy."""
    world = make("hubspot")
    world.seed(contacts=1, deals=0)
    engine, clock = world.service.engine, world.clock
    assert world.run("backfill").state == "done"
    held = lease.acquire(engine, "nordhaus/hubspot", "a process that is dead now", clock())
    assert held is not None
    before = clock()
    tenant, pair = world.config()
    assert run_pair(world.service, tenant, pair, "backfill").state == "done"
    assert timedelta(seconds=lease.TTL_SECONDS - 1) <= clock() - before <= timedelta(seconds=2 * lease.TTL_SECONDS)
    held = lease.acquire(engine, "nordhaus/hubspot", "a process that lives", clock())
    assert held is not None

    def live(seconds: float) -> None:
        clock.advance(seconds)
        assert held is not None
        lease.renew(engine, held, clock())

    world.service.sleep = live
    result = run_pair(world.service, tenant, pair, "backfill")
    assert (result.state, result.message) == ("busy", "another worker runs this pair now")


@pytest.mark.parametrize("system", ["propstreet"])
def test_one_tenants_broken_vendor_touches_no_other_tenant(make: Make, system: str) -> None:
    """Isolation: while one tenant's runs fail, another's of the same service arrive."""
    world, failing = around(make, system)
    other = make("hubspot", tenant="granit", clock=world.clock, service=world.service)
    other.seed()
    fault(failing, status=500, body={"message": "oops"}, times=10_000)
    assert world.run("backfill").state == "failed"
    other.first()
    other.assert_in_step()
