"""The Salesforce connector over real HTTP against its emulator: translation, paging, traps, faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, TypeVar

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from connectors.salesforce.client import http_date, normal_id
from connectors.salesforce.connector import SalesforceConnector, connect
from connectors.salesforce.emulator import SalesforceEmulator
from connectors.salesforce.fields import Org, country, described, stages_from, table
from syncd.connector import (
    ConnectionSettings,
    FieldChoice,
    KindChoice,
    Outcome,
    Page,
    Pull,
    Repeat,
    Rider,
    Secret,
    Tally,
    Verdict,
    Write,
)
from syncd.core.mapping import UnfitValueError
from syncd.core.model import Address, Money, Record, Value, Values, Verb
from syncd.errors import (
    AuthError,
    ConfigError,
    ContractError,
    DelayedError,
    RateLimitedError,
    RejectedError,
    TransientError,
    UnknownOutcomeError,
)
from syncd.testing.emulator import Fault, ManualClock

T = TypeVar("T")

ALL = ("company", "contact", "employment", "deal", "deal_contact")
BEGINNING = dict.fromkeys(ALL)


class StraightWire:
    """Calls at once, repeats what may be repeated, counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.left: dict[str, int] = {}

    def call(
        self,
        exchange: Callable[[], T],
        *,
        effect: Literal["read", "write"],
        bucket: str = "default",
        repeat: Repeat = "always",
    ) -> T:
        for attempt in range(4):
            self.calls += 1
            try:
                return exchange()
            except RateLimitedError as exc:
                if exc.is_daily or attempt == 3:
                    raise
            except TransientError as exc:
                if exc.is_sent and repeat != "always":
                    raise UnknownOutcomeError(str(exc)) from exc
                if repeat == "never" and not (isinstance(exc, RateLimitedError) and exc.is_daily):
                    raise DelayedError(str(exc)) from exc
                if attempt == 3:
                    raise
        raise AssertionError

    def observe(self, bucket: str, *, remaining: int, reset_seconds: float) -> None:
        self.left[bucket] = remaining


class World:
    """An emulator, its clock and a connector to it."""

    def __init__(self, emulated: Mapping[str, Any], **choices: Any) -> None:
        self.clock = ManualClock()
        self.org = SalesforceEmulator(now=self.clock, **emulated)
        self.org.start()
        self.wire = StraightWire()
        self.connector = self.connect(**choices)

    def connect(
        self,
        kinds: Mapping[str, KindChoice] | None = None,
        options: Mapping[str, str] | None = None,
        auth: Mapping[str, str] | None = None,
        base_url: str | None = None,
    ) -> SalesforceConnector:
        settings = ConnectionSettings(
            name="salesforce",
            base_url=base_url,
            login_url=self.org.login_url,
            auth={key: Secret(lambda value=value: value) for key, value in (auth or self.org.auth).items()},  # type: ignore[misc]
            namespace="salesforce",
            kinds=kinds or {},
            options=options or {},
        )
        return connect(settings, self.wire, self.clock)

    def later(self, seconds: float = 60) -> None:
        self.clock.advance(seconds)

    def pull(self, watermarks: Mapping[str, str | None] | None = None, **how: Any) -> list[Page]:
        marks = BEGINNING if watermarks is None else watermarks
        return list(self.connector.pull(Pull(kinds=ALL, watermarks=marks, **how)))

    def records(self, watermarks: Mapping[str, str | None] | None = None, **how: Any) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {kind: [] for kind in ALL}
        for page in self.pull(watermarks, **how):
            found[page.kind] += page.records
        return found

    def marks(self, pages: Sequence[Page]) -> dict[str, str | None]:
        found: dict[str, str | None] = dict.fromkeys(ALL, "2026-11-20T00:00:00.000+0000")
        return found | {page.kind: page.clock for page in pages if page.clock}

    def one(self, kind: str, id_: str) -> Record:
        return self.connector.read(kind, [Address(id_)])[id_]

    def write(self, *writes: Write) -> dict[str, Outcome]:
        outcomes = self.connector.write(writes)
        assert sorted(each.key for each in outcomes) == sorted(each.key for each in writes)
        return {each.key: each for each in outcomes}

    def deal(self, **fields: Any) -> str:
        base = {"Name": "Kvarnen 3", "StageName": "Qualification", "CloseDate": "2027-01-31"}
        return self.org.add("Opportunity", base | fields)


@pytest.fixture
def build() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def made(choices: Mapping[str, Any] | None = None, **options: Any) -> World:
        worlds.append(World(options, **(choices or {})))
        return worlds[-1]

    yield made
    for each in worlds:
        each.connector.close()
        each.org.stop()


@pytest.fixture
def world(build: Callable[..., World]) -> World:
    return build()


def create(kind: str, key: str, values: Values, counterpart: str | None = None, **refs: str) -> Write:
    return Write(key, kind, "create", None, counterpart or f"ps-{key}", values, refs)


def change(
    record: Record, verb: Verb = "update", key: str = "", counterpart: str | None = None, **values: Any
) -> Write:
    return Write(
        key=key or record.id,
        kind=record.kind,
        verb=verb,
        address=Address(record.id, record.parent),
        counterpart=counterpart,
        values=values,
        refs=record.refs,
        version=record.version,
        modified_at=record.modified_at,
        opaque=record.opaque,
    )


# --- pure -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [("00190000001pPvH", "00190000001pPvHAAU"), ("006000000000001", "006000000000001AAA"), ("0" * 18, "0" * 18)],
)
def test_ids_are_brought_to_eighteen_characters(raw: str, expected: str) -> None:
    assert normal_id(raw, "Id") == expected


@pytest.mark.parametrize("raw", ["https://evil.example/x", "../../x", "//host/x", "00190000001pPv:", "", None, 15])
def test_an_id_that_could_leave_its_url_is_refused(raw: object) -> None:
    with pytest.raises(UnfitValueError):
        normal_id(raw, "Id")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [("se", "SE"), ("Sverige", "SE"), ("United  Kingdom", "GB"), ("UK", "GB"), ("Narnia", None), (None, None)],
)
def test_countries_are_read_from_codes_and_sure_names_only(raw: str | None, expected: str | None) -> None:
    assert country(raw) == expected


def test_a_conditional_header_holds_whole_seconds_in_gmt() -> None:
    assert http_date("2026-11-20T09:00:01.999+0100") == "Fri, 20 Nov 2026 08:00:01 GMT"


# --- connecting -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "login_url", "options", "said"),
    [
        ({"client_id": "a"}, "https://a.my.salesforce.com", {}, "client_secret"),
        ({"client_id": "a", "password": "b"}, "https://a.my.salesforce.com", {}, "password"),
        ({"client_id": "a", "client_secret": "b"}, None, {}, "login_url"),
        ({"client_id": "a", "client_secret": "b"}, "https://login.salesforce.com", {}, "My Domain"),
        ({"client_id": "a", "client_secret": "b"}, "http://a.my.salesforce.com", {}, "https"),
        ({"client_id": "a", "client_secret": "b"}, "https://a.my.salesforce.com", {"versoin": "1"}, "versoin"),
        (
            {"client_id": "a", "client_secret": "b"},
            "https://a.my.salesforce.com",
            {"api_version": "v60"},
            "api_version",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(
    auth: dict[str, str], login_url: str | None, options: dict[str, str], said: str
) -> None:
    secrets = {key: Secret(lambda: "x") for key in auth}
    settings = ConnectionSettings("sf", None, login_url, secrets, "salesforce", {}, options)
    with pytest.raises(ConfigError, match=said):
        connect(settings, StraightWire(), ManualClock())


def test_the_account_is_the_org_and_knows_its_currency(world: World) -> None:
    found = world.connector.account()
    assert (found.id, found.currency, found.name) == (world.org.org_id, "SEK", "Emulated org")


def test_a_signed_assertion_gets_a_token_too(world: World) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    world.org.public_key = public.decode()
    auth = {"client_id": world.org.auth["client_id"], "username": world.org.username, "private_key": private}
    assert world.connect(auth=auth).account().id == world.org.org_id
    form = world.org.calls("POST", "token")[-1].body
    assert jwt.decode(form["assertion"], options={"verify_signature": False})["aud"] == "https://login.salesforce.com"


def test_a_wrong_secret_stops_the_connection_without_showing_it(world: World) -> None:
    other = world.connect(auth={"client_id": "a", "client_secret": "hush"})
    with pytest.raises(AuthError) as caught:
        other.account()
    assert "hush" not in str(caught.value)
    assert "invalid_client" in str(caught.value)


def test_setting_up_takes_a_token_and_one_composite(world: World) -> None:
    """Who we are, what is there and what it offers are asked for once, however many want to know."""
    world.connector.account()
    world.connector.check()
    world.connector.capabilities()
    assert [call.path.rpartition("/")[2] for call in world.org.log] == ["token", "composite"]
    world.connector.check()
    assert len(world.org.log) == 3, "a later check looks again"


def test_what_the_org_does_not_have_is_not_asked_for_twice(build: Callable[..., World]) -> None:
    world = build(currency=None)
    world.connector.account()
    assert [call.path.rpartition("/")[2] for call in world.org.log] == ["token", "composite"]


# --- reading --------------------------------------------------------------------------


def test_every_kind_is_read_with_its_values_references_and_marks(world: World) -> None:
    company = world.org.add(
        "Account",
        {
            "Name": " Nordhaus AB ",
            "Website": "https://www.nordhaus.se/om",
            "BillingCountry": "Sweden",
            "Propstreet_Tags__c": "b; a",
            "Propstreet_Company_Id__c": "81",
        },
    )
    contact = world.org.add(
        "Contact",
        {
            "FirstName": "Eva",
            "LastName": "Ek",
            "Email": "Eva@X.se",
            "Phone": "08-1",
            "AccountId": company,
            "Title": "CFO",
        },
    )
    deal = world.deal(Amount=1250000.5, Propstreet_Published_At__c="2026-11-01T10:00:00.000+0000")
    role = world.org.add("OpportunityContactRole", {"OpportunityId": deal, "ContactId": contact, "Role": "Bidder"})
    found = world.records()
    assert found["company"][0].values["domain"] == "nordhaus.se"
    assert found["company"][0].values["country"] == "SE"
    assert found["company"][0].values["tags"] == frozenset({"a", "b"})
    assert (found["company"][0].values["name"], found["company"][0].mark) == ("Nordhaus AB", "81")
    assert found["contact"][0].values["email"] == "eva@x.se"
    assert found["contact"][0].values["phone"] == "08-1"
    assert found["employment"][0].id == contact
    assert found["employment"][0].refs == {"contact": contact, "company": company}
    assert found["employment"][0].values == {"job_title": "CFO", "is_primary": True}
    assert found["deal"][0].values["amount"] == Money(Decimal("1250000.5"), "SEK")
    assert found["deal"][0].values["published_at"] == datetime(2026, 11, 1, 10, tzinfo=UTC)
    assert found["deal"][0].values["stage"] == "Qualification"
    assert found["deal"][0].native == {"StageName": "Qualification"}
    assert found["deal_contact"][0].refs == {"deal": deal, "contact": contact}
    assert (found["deal_contact"][0].id, found["deal_contact"][0].parent) == (role, deal)
    assert found["deal_contact"][0].values["classification"] == "bidder"


def test_an_idle_delta_is_one_call(world: World) -> None:
    world.deal()
    marks = world.marks(world.pull())
    before = world.wire.calls
    world.pull(marks)
    assert world.wire.calls - before == 1 == world.connector.least_calls(Tally(False, {}, {}, {}, {}))


def test_a_backfill_reads_every_page_in_the_order_of_kinds_and_ends_each_listing(build: Callable[..., World]) -> None:
    world = build(page_size=2)
    for at in range(5):
        account = world.org.add("Account", {"Name": f"A{at}"})
        world.org.add("Contact", {"LastName": f"C{at}", "AccountId": account})
    pages = world.pull()
    kinds = list(dict.fromkeys(page.kind for page in pages))
    assert kinds == list(ALL)
    for kind in ALL:
        own = [page for page in pages if page.kind == kind]
        assert all(page.is_listing for page in own)
        assert [page.is_last for page in own] == [False] * (len(own) - 1) + [True]
    for kind in ("company", "contact", "employment"):
        assert sum(len(page.records) for page in pages if page.kind == kind) == 5


def test_one_call_brings_the_next_page_of_every_object(build: Callable[..., World]) -> None:
    world = build(page_size=2)
    for at in range(5):
        account = world.org.add("Account", {"Name": f"A{at}"})
        world.org.add("Contact", {"LastName": f"C{at}", "AccountId": account})
        if at < 4:
            world.deal()
    world.connector.capabilities()
    before = world.wire.calls
    assert {kind: len(found) for kind, found in world.records().items()}["contact"] == 5
    assert world.wire.calls - before == 3


def test_pages_that_a_composite_refuses_are_asked_for_one_by_one(build: Callable[..., World]) -> None:
    world = build(page_size=2)
    for at in range(5):
        account = world.org.add("Account", {"Name": f"A{at}"})
        world.org.add("Contact", {"LastName": f"C{at}", "AccountId": account})
    world.connector.capabilities()
    world.org.faults.append(
        Fault("POST", "composite", status=400, body=[{"errorCode": "BAD_REQUEST"}], skip=1, times=9)
    )
    found = world.records()
    assert (len(found["company"]), len(found["contact"]), len(found["employment"])) == (5, 5, 5)


def test_a_lost_cursor_is_taken_up_at_the_last_stamp_without_skipping(build: Callable[..., World]) -> None:
    world = build(page_size=2)
    ids = set()
    for at in range(7):
        ids.add(world.org.add("Account", {"Name": f"A{at}"}))
        world.later(1)
    pages = world.connector.pull(Pull(kinds=("company",), watermarks={"company": None}))
    seen = {record.id for record in next(pages).records}
    world.org.forget_cursors()
    for page in pages:
        seen |= {record.id for record in page.records}
    assert seen == ids


def test_a_row_committed_late_with_an_old_stamp_is_not_lost(build: Callable[..., World]) -> None:
    world = build(late_commit_seconds=500)
    late = world.deal(Name="late")
    world.later(10)
    world.org.late_commit_seconds = 0
    world.deal(Name="early")
    pages = world.pull()
    assert [r.values["name"] for page in pages if page.kind == "deal" for r in page.records] == ["early"]
    world.later(600)
    assert late in {record.id for record in world.records(world.marks(pages))["deal"]}


def test_a_quiet_object_moves_on_with_the_others(world: World) -> None:
    account = world.org.add("Account", {"Name": "A"})
    world.deal()
    marks = world.marks(world.pull())
    assert marks["deal_contact"] == marks["deal"]
    world.later(7200)
    world.org.edit("Account", account, {"Name": "B"})
    moved = world.marks(world.pull(marks))
    assert set(moved.values()) == {"2026-11-20T10:00:00.000+0000"}
    assert [page.kind for page in world.pull(moved)] == ["company"]


def test_the_watermark_never_passes_the_clock_of_the_server(world: World) -> None:
    world.deal()
    world.org._rows["Opportunity"][world.org.all("Opportunity")[0]["Id"]].row["SystemModstamp"] = (
        "2027-01-01T00:00:00.000+0000"
    )
    page = next(page for page in world.pull() if page.kind == "deal")
    assert page.clock == "2026-11-20T08:00:00.000+0000"


def test_deletions_show_as_tombstones_and_merges_name_the_survivor(world: World) -> None:
    account = world.org.add("Account", {"Name": "A"})
    winner = world.org.add("Contact", {"LastName": "W"})
    loser = world.org.add("Contact", {"LastName": "L", "AccountId": account})
    deal = world.deal()
    role = world.org.add("OpportunityContactRole", {"OpportunityId": deal, "ContactId": loser})
    marks = world.marks(world.pull())
    world.later()
    world.org.merge("Contact", winner, loser)
    world.org.delete("Opportunity", deal)
    found = world.records(marks)
    gone = {record.id: record for record in found["contact"]}[loser]
    assert (gone.is_deleted, gone.merged_into) == (True, winner)
    assert {r.id: r.is_deleted for r in found["employment"]}[loser]
    assert [(r.id, r.is_deleted) for r in found["deal"]] == [(deal, True)]
    assert {r.id: r.is_deleted for r in found["deal_contact"]}[role]


def test_reading_follows_merges_to_the_one_who_lives_and_says_what_is_gone(world: World) -> None:
    first, second, third = (world.org.add("Account", {"Name": name}) for name in "ABC")
    world.org.merge("Account", second, first)
    world.org.merge("Account", third, second)
    never = normal_id("001000000000000", "Id")
    found = world.connector.read("company", [Address(first), Address(third), Address(never)])
    assert (found[first].id, found[first].formerly) == (third, (first,))
    assert not found[third].is_deleted
    assert found[never].is_deleted


def test_an_employment_ends_when_the_account_is_cleared(world: World) -> None:
    account = world.org.add("Account", {"Name": "A"})
    contact = world.org.add("Contact", {"LastName": "L", "AccountId": account})
    marks = world.marks(world.pull())
    world.later()
    world.org.edit("Contact", contact, {"AccountId": None})
    assert [r.is_deleted for r in world.records(marks)["employment"]] == [True]
    assert world.one("employment", contact).is_deleted


def test_a_delta_shows_the_bin_without_reading_everything(world: World) -> None:
    kept, gone = world.deal(Name="kept"), world.deal(Name="gone")
    marks = world.marks(world.pull())
    world.later()
    world.org.delete("Opportunity", gone)
    pages = [page for page in world.pull(marks, is_sweep=True) if page.kind == "deal"]
    assert not any(page.is_listing for page in pages)
    shown = {record.id: record.is_deleted for page in pages for record in page.records}
    assert shown.get(gone) is True
    assert not shown.get(kept)


def test_a_row_that_cannot_be_read_does_not_hold_up_the_others(world: World) -> None:
    good, bad = world.deal(), world.deal()
    world.org._rows["Opportunity"][bad].row["Name"] = "x" * 70_000
    world.org._rows["Opportunity"][good].row["Propstreet_Project_Id__c"] = "../../etc"
    page = next(page for page in world.pull() if page.kind == "deal")
    assert [record.id for record in page.records] == [good]
    assert page.records[0].mark is None
    assert page.refused[0].id == bad
    assert world.one("deal", bad).locked["*"].startswith("cannot be read")


def test_a_role_of_somebodys_own_says_nothing_and_is_locked(world: World) -> None:
    contact, deal = world.org.add("Contact", {"LastName": "L"}), world.deal()
    for role in ("Decision Maker", None, "interested"):
        world.org.add("OpportunityContactRole", {"OpportunityId": deal, "ContactId": contact, "Role": role})
    own, blank, ours = world.records()["deal_contact"]
    assert "classification" not in own.values
    assert "classification" in own.locked
    assert blank.values["classification"] == "not_contacted"
    assert ours.values["classification"] == "interested"


def test_closed_opportunities_and_those_with_products_are_locked(world: World) -> None:
    world.deal(StageName="Closed Won", HasOpportunityLineItem=True, Amount=5)
    record = world.records()["deal"][0]
    assert set(record.locked) == {"stage", "amount"}


def test_several_currencies_are_read_from_the_record(build: Callable[..., World]) -> None:
    world = build(multi_currency=True)
    world.deal(Amount=7, CurrencyIsoCode="EUR")
    assert world.records()["deal"][0].values["amount"] == Money(Decimal(7), "EUR")


def test_a_field_hidden_in_mid_life_is_named_and_never_read_as_emptied(world: World) -> None:
    world.deal()
    marks = world.marks(world.pull())
    world.org.hidden.add(("Opportunity", "Propstreet_Status__c"))
    world.org.edit("Opportunity", world.org.all("Opportunity")[0]["Id"], {"Name": "new"})
    with pytest.raises(ConfigError, match=r"deal\.status \(Propstreet_Status__c\)"):
        world.records(marks)
    world.org.hidden.add(("Opportunity", "Amount"))
    with pytest.raises(ConfigError, match=r"deal\.amount \(Amount\)"):
        world.one("deal", world.org.all("Opportunity")[0]["Id"])


# --- set-up ---------------------------------------------------------------------------


def test_an_org_without_custom_fields_lacks_what_an_admin_can_read_and_do(build: Callable[..., World]) -> None:
    world = build(custom_fields=False, tooling=False)
    findings = {each.thing: each for each in world.connector.check()}
    needed = {each.thing for each in findings.values() if each.is_required}
    assert needed == {
        "Account.Propstreet_Company_Id__c",
        "Contact.Propstreet_Contact_Id__c",
        "Opportunity.Propstreet_Project_Id__c",
    }
    left = world.connector.fix(list(findings.values()))
    text = next(each.fix for each in left if each.thing == "Account.Propstreet_Company_Id__c")
    assert all(
        word in text for word in ("Account", "Text(64)", "External ID", "Unique", "case-sensitive", "permission")
    )
    assert not any(each.is_fixable for each in left)
    assert not world.connector.capabilities().kinds["company"].can_mark
    assert len(world.org.calls("POST", "tooling/sobjects/CustomField")) == 1, "one refusal tells for all"


def test_missing_fields_are_created_and_granted(build: Callable[..., World]) -> None:
    permission_set = normal_id("0PS000000000001", "Id")
    world = build({"options": {"permission_set": permission_set}}, custom_fields=False)
    assert world.connector.fix(world.connector.check()) == []
    kinds = world.connector.capabilities().kinds
    assert kinds["deal_contact"].can_mark
    assert kinds["deal"].fields["property_year_built"].is_writable
    assert world.org.objects["Contact"]["Propstreet_Contact_Id__c"].is_unique


@pytest.mark.parametrize(
    ("kind", "choice", "said"),
    [
        ("deal", KindChoice(fields={"name": FieldChoice(native="Nmae")}), "Name"),
        ("deal", KindChoice(stages={"Qualificaton": ("none",)}), "Qualification"),
        ("company", KindChoice(watch=("Regoin__c",)), "Regoin__c"),
        ("company", KindChoice(watch=("Id FROM User",)), "API name"),
        ("deal", KindChoice(pipeline="x"), "pipeline"),
    ],
)
def test_settings_that_the_org_contradicts_name_the_nearest(
    build: Callable[..., World], kind: str, choice: KindChoice, said: str
) -> None:
    world = build({"kinds": {kind: choice}})
    with pytest.raises(ConfigError, match=said):
        world.connector.check()


def test_stages_fall_on_the_sales_process_of_the_org(world: World) -> None:
    words = world.connector.capabilities().kinds["deal"].fields["stage"].vocabulary
    assert words == {
        "none": "Qualification",
        "property_added": "Qualification",
        "drafting": "Qualification",
        "published": "Proposal/Price Quote",
        "verified": "Proposal/Price Quote",
        "communicated": "Negotiation/Review",
        "won": "Closed Won",
    }


def test_stages_are_taken_from_the_picklist_where_their_object_is_closed_to_us() -> None:
    words = [{"value": word, "active": word != "Old"} for word in ("Old", "Prospecting", "Closed Won", "Closed Lost")]
    fields = described({"fields": [{"name": "StageName", "type": "picklist", "picklistValues": words}]})
    org = Org(stages=stages_from(fields["stagename"]))
    assert table("deal", fields, org, KindChoice()).vocabulary["won"] == "Closed Won"
    assert table("deal", fields, org, KindChoice()).vocabulary["communicated"] == "Prospecting"
    unseen = table("deal", fields, Org(), KindChoice(stages={"Pitch": ("none",)}))
    assert unseen.vocabulary == {"none": "Pitch"}


def test_a_restricted_picklist_carries_only_the_words_it_has(build: Callable[..., World]) -> None:
    labels = {"bidder": "Buyer"}
    world = build({"kinds": {"deal_contact": KindChoice(labels=labels)}}, restricted_roles=True)
    words = world.connector.capabilities().kinds["deal_contact"].fields["classification"].vocabulary
    assert words is not None
    assert "bidder" not in words
    assert words["not_contacted"] == "not_contacted"
    assert any("Buyer" in each.fix for each in world.connector.check())


def test_choices_rename_fields_translate_values_and_show_watched_ones(build: Callable[..., World]) -> None:
    kinds = {
        "company": KindChoice(fields={"strategy": FieldChoice(native="phone")}, watch=("BillingCountry",)),
        "deal": KindChoice(
            fields={"status": FieldChoice(values={"open": "Live", "closed": "Dead"})}, watch=("Account.Name",)
        ),
    }
    world = build({"kinds": kinds})
    account = world.org.add("Account", {"Name": "A", "Phone": "core plus", "BillingCountry": "SE"})
    world.deal(Propstreet_Status__c="live", AccountId=account)
    found = world.records()
    assert found["company"][0].values["strategy"] == "core plus"
    assert found["company"][0].native == {"BillingCountry": "SE"}
    assert found["deal"][0].values["status"] == "open"
    assert found["deal"][0].native == {"Account.Name": "A", "StageName": "Qualification"}


# --- writing --------------------------------------------------------------------------


def test_creates_go_by_external_id_and_return_what_is_stored(world: World) -> None:
    company = world.write(
        create(
            "company", "1", {"name": " Nordhaus ", "domain": "nordhaus.se", "country": "SE", "tags": frozenset("ba")}
        )
    )["1"]
    assert company.verdict is Verdict.DONE
    assert company.record is not None
    assert company.record.values["homepage"] == "nordhaus.se"
    assert company.record.values["name"] == "Nordhaus"
    assert company.record.mark == "ps-1"
    outcomes = world.write(
        create("contact", "1", {"first_name": "Eva", "email": "eva@x.se", "phone": "+46 70 1"}),
        create("contact", "2", {"email": "bo.berg@x.se"}),
    )
    names = {key: outcome.record.values["last_name"] for key, outcome in outcomes.items() if outcome.record}
    assert names == {"1": "Eva", "2": "bo.berg"}
    deal = world.write(
        create("deal", "1", {"name": "Kvarnen", "amount": Money(Decimal("12.5"), "SEK"), "stage": "Closed Won"})
    )["1"]
    assert deal.record is not None
    row = world.org.get("Opportunity", deal.record.id)
    assert (row["Amount"], row["StageName"], row["CloseDate"]) == (12.5, "Closed Won", "2027-05-19")


def test_a_write_and_its_reading_take_two_calls_for_two_hundred(world: World) -> None:
    world.connector.capabilities()
    before = world.wire.calls
    writes = [create("company", str(at), {"name": f"Company {at}"}) for at in range(200)]
    assert {each.verdict for each in world.connector.write(writes)} == {Verdict.DONE}
    assert world.wire.calls - before == 2
    assert world.connector.least_calls(Tally(False, {}, {}, {("company", "create"): 200}, {})) == 3


def test_a_lost_reply_of_a_create_makes_no_second_record(world: World) -> None:
    """Nor is it sent again, which would undo what somebody edited meanwhile: it is found by the id that it carries."""
    world.org.faults.append(Fault("PATCH", "composite/sobjects", when="drop"))
    writes = [create("deal", "1", {"name": "A"}), create("deal", "2", {"name": "B"})]
    with pytest.raises(UnknownOutcomeError):
        world.write(*writes)
    assert len(world.org.all("Opportunity")) == 2
    assert {key: record.values["name"] for key, record in world.connector.find(writes).items()} == {"1": "A", "2": "B"}


def test_a_lost_reply_of_a_contact_role_makes_no_second_role(world: World) -> None:
    contact, deal = world.org.add("Contact", {"LastName": "L"}), world.deal()
    world.org.faults.append(Fault("PATCH", "composite/sobjects", when="drop"))
    write = create("deal_contact", "1", {"classification": "bidder"}, deal=deal, contact=contact)
    with pytest.raises(UnknownOutcomeError):
        world.write(write)
    assert world.connector.find([write])["1"].mark == "ps-1"
    assert len(world.org.all("OpportunityContactRole")) == 1


def test_without_an_external_id_field_a_lost_reply_is_unknown_and_found_by_its_pair(
    build: Callable[..., World],
) -> None:
    world = build()
    world.org.hidden.add(("OpportunityContactRole", "Propstreet_Prospect_Id__c"))
    contact, deal = world.org.add("Contact", {"LastName": "L"}), world.deal()
    write = create("deal_contact", "1", {"classification": "contacted"}, deal=deal, contact=contact)
    world.org.faults.append(Fault("POST", "composite/sobjects", when="drop"))
    with pytest.raises(UnknownOutcomeError):
        world.connector.write([write])
    assert world.connector.find([write])["1"].values["classification"] == "contacted"
    assert world.write(write)["1"].verdict is Verdict.EXISTS
    assert len(world.org.all("OpportunityContactRole")) == 1


def test_partial_success_gives_each_record_its_own_outcome(world: World) -> None:
    account = world.org.add("Account", {"Name": "taken", "Propstreet_Company_Id__c": "ps-x"})
    ids = [world.org.add("Account", {"Name": name}) for name in "ABCDE"]
    records = [world.one("company", id_) for id_ in ids]
    world.org.delete("Account", ids[1])
    world.org.locked_rows.add(ids[2])
    never = normal_id("001000000000000", "Id")
    found = world.write(
        change(records[0], name="done"),
        change(records[1], name="deleted"),
        change(records[2], name="locked"),
        change(records[3], name="x" * 300),
        change(records[4], name=None),
        change(replace(records[4], id=never), name="never"),
    )
    verdicts = [found[key].verdict.value for key in (*ids, never)]
    assert verdicts == ["done", "missing", "retry", "rejected", "rejected", "missing"]
    assert found[ids[3]].reason == "STRING_TOO_LONG: Name"
    assert found[ids[4]].reason == "REQUIRED_FIELD_MISSING: Name"
    marked = world.write(change(records[0], "mark", counterpart="ps-x"))[ids[0]]
    assert (marked.verdict, marked.reason) == (Verdict.REJECTED, "DUPLICATE_VALUE: Propstreet_Company_Id__c")
    assert world.org.get("Account", account)["Name"] == "taken"


def test_an_answer_that_leaves_records_out_leaves_only_those_unknown(world: World) -> None:
    ids = [world.org.add("Account", {"Name": name}) for name in "AB"]
    records = [world.one("company", id_) for id_ in ids]
    body = [{"id": ids[0], "success": True, "errors": []}]
    world.org.faults.append(Fault("PATCH", "composite/sobjects", when="after", status=200, body=body))
    found = world.write(*(change(record, key=str(at), name=f"N{at}") for at, record in enumerate(records)))
    assert [found[key].verdict for key in "01"] == [Verdict.DONE, Verdict.UNKNOWN]


def test_a_record_that_cannot_be_read_again_is_unknown_not_lost(world: World) -> None:
    world.connector.capabilities()
    world.org.faults.append(Fault("GET", "queryAll", status=503, body="<html>", times=10))
    found = world.write(create("company", "1", {"name": "A"}), create("company", "2", {"name": "B" * 300}))
    assert (found["1"].verdict, found["2"].verdict) == (Verdict.UNKNOWN, Verdict.REJECTED)
    world.org.faults.clear()
    assert world.connector.find([create("company", "1", {})])["1"].values["name"] == "A"


def test_a_lone_update_is_refused_once_somebody_else_wrote(world: World) -> None:
    deal = world.deal()
    record = world.one("deal", deal)
    world.later()
    world.org.edit("Opportunity", deal, {"Name": "theirs"})
    assert world.write(change(record, name="ours"))[deal].verdict is Verdict.STALE
    assert world.org.get("Opportunity", deal)["Name"] == "theirs"
    fresh = world.write(change(world.one("deal", deal), name="ours"))[deal]
    assert fresh.verdict is Verdict.DONE
    assert fresh.record is not None
    assert fresh.record.values["name"] == "ours"


def test_the_condition_survives_a_token_that_expired(world: World) -> None:
    deal = world.deal()
    record = world.one("deal", deal)
    world.later()
    world.org.edit("Opportunity", deal, {"Name": "theirs"})
    world.org.expire_tokens()
    assert world.write(change(record, name="ours"))[deal].verdict is Verdict.STALE
    assert world.org.logins == 2
    sent = world.org.calls("PATCH", f"sobjects/Opportunity/{deal}")
    assert [("if-unmodified-since" in call.headers, call.status) for call in sent] == [(True, 401), (True, 412)]


def test_an_amount_on_products_is_accepted_ignored_and_told(world: World) -> None:
    deal = world.deal(Amount=5, HasOpportunityLineItem=True)
    world.org.hidden.add(("Opportunity", "HasOpportunityLineItem"))
    outcome = world.write(change(world.one("deal", deal), amount=Money(Decimal(9), "SEK")))[deal]
    assert outcome.verdict is Verdict.DONE
    assert outcome.record is not None
    assert outcome.record.values["amount"] == Money(Decimal(5), "SEK")
    assert "amount" in outcome.record.locked


def test_money_the_org_cannot_hold_is_never_written(build: Callable[..., World]) -> None:
    world = build()
    deal = world.deal(Amount=5)
    outcome = world.write(change(world.one("deal", deal), amount=Money(Decimal(9), "EUR")))[deal]
    assert (outcome.verdict, outcome.reason[:9]) == (Verdict.REJECTED, "CURRENCY:")
    many = build(multi_currency=True)
    other = many.deal(Amount=5, CurrencyIsoCode="SEK")
    assert many.write(change(many.one("deal", other), amount=Money(Decimal(9), "EUR")))[other].verdict is Verdict.DONE
    assert many.org.get("Opportunity", other)["CurrencyIsoCode"] == "EUR"
    refused = many.write(change(many.one("deal", other), amount=Money(Decimal(9), "USD")))[other]
    assert refused.verdict is Verdict.REJECTED


def test_a_phone_is_written_where_it_was_read(world: World) -> None:
    contact = world.org.add("Contact", {"LastName": "L", "Phone": "08-1"})
    world.write(change(world.one("contact", contact), phone="08-2"))
    row = world.org.get("Contact", contact)
    assert (row["Phone"], row["MobilePhone"]) == ("08-2", None)


def test_values_are_cleared_and_words_translated(world: World) -> None:
    contact, deal = world.org.add("Contact", {"LastName": "L", "FirstName": "F"}), world.deal()
    role = world.org.add("OpportunityContactRole", {"OpportunityId": deal, "ContactId": contact, "Role": "Bidder"})
    world.write(change(world.one("contact", contact), first_name=None))
    world.write(change(world.one("deal_contact", role), classification="not_contacted"))
    assert world.org.get("Contact", contact)["FirstName"] is None
    assert world.org.get("OpportunityContactRole", role)["Role"] is None
    refused = world.write(change(world.one("deal_contact", role), classification="unheard_of"))[role]
    assert refused.reason == "NO_WORD: Role"


def test_a_duplicate_rule_with_one_match_points_to_it(build: Callable[..., World]) -> None:
    world = build(duplicate_rule=True)
    contact = world.org.add("Contact", {"LastName": "L", "Email": "a@x.se"})
    outcome = world.write(create("contact", "1", {"last_name": "L", "email": "a@x.se"}))["1"]
    assert outcome.verdict is Verdict.EXISTS
    assert outcome.record is not None
    assert outcome.record.id == contact
    world.org.add("Contact", {"LastName": "M", "Email": "a@x.se"})
    outcome = world.write(create("contact", "2", {"last_name": "L", "email": "a@x.se"}))["2"]
    assert (outcome.verdict, outcome.reason) == (Verdict.REJECTED, "DUPLICATES_DETECTED")


def test_employments_take_an_empty_place_only(world: World) -> None:
    a, b = (world.org.add("Account", {"Name": name}) for name in "AB")
    free, same, other = (world.org.add("Contact", {"LastName": "L", "AccountId": at}) for at in (None, b, a))
    found = world.write(
        create("employment", "free", {"job_title": "CEO", "is_primary": True}, contact=free, company=b),
        create("employment", "same", {}, contact=same, company=b),
        create("employment", "moving", {"is_primary": True}, contact=other, company=b),
        create("employment", "second", {"is_primary": False}, contact=other, company=b),
    )
    assert {key: outcome.verdict.value for key, outcome in found.items()} == {
        "free": "done",
        "same": "exists",
        "moving": "retry",
        "second": "rejected",
    }
    record = found["free"].record
    assert record is not None
    assert (record.id, record.refs["company"], record.values["job_title"]) == (free, b, "CEO")
    assert world.org.get("Contact", other)["AccountId"] == a
    assert world.write(change(record, "delete"))[free].verdict is Verdict.DONE
    assert world.org.get("Contact", free)["AccountId"] is None


def test_a_new_contact_takes_its_employment_along(world: World) -> None:
    """Account and title are written with the contact; the employment that follows finds itself done, without a call."""
    account, other = (world.org.add("Account", {"Name": name}) for name in "AB")
    values: dict[str, Value] = {"job_title": "CEO", "is_primary": True}
    rider = Rider("employment", values, {"company": account})
    contact = world.write(replace(create("contact", "1", {"last_name": "Ek"}), riders=(rider,)))["1"].record
    assert contact is not None
    row = world.org.get("Contact", contact.id)
    assert (row["AccountId"], row["Title"]) == (account, "CEO")
    calls = len(world.org.log)
    follows = create("employment", "follows", values, contact=contact.id, company=account)
    outcome = world.write(replace(follows, carrier=contact))["follows"]
    assert (outcome.verdict, len(world.org.log)) == (Verdict.DONE, calls)
    assert outcome.record is not None
    assert outcome.record == replace(world.one("employment", contact.id), locked={})
    elsewhere = create("employment", "elsewhere", values, contact=contact.id, company=other)
    assert world.write(replace(elsewhere, carrier=contact))["elsewhere"].verdict is Verdict.RETRY


def test_deletes_are_done_once_and_missing_ones_are_told(world: World) -> None:
    ids = [world.deal() for _ in range(3)]
    records = [world.one("deal", id_) for id_ in ids]
    assert world.write(change(records[0], "delete"))[ids[0]].verdict is Verdict.DONE
    found = world.write(*(change(record, "delete") for record in records))
    assert {each.verdict for each in found.values()} == {Verdict.DONE}
    never = normal_id("006000000000000", "Id")
    assert world.write(change(replace(records[0], id=never), "delete"))[never].verdict is Verdict.MISSING


def test_a_batch_refused_as_a_whole_is_for_the_engine_to_halve(world: World) -> None:
    body = [{"errorCode": "JSON_PARSER_ERROR", "message": "no"}]
    world.org.faults.append(Fault("PATCH", "composite/sobjects", status=400, body=body, times=2))
    with pytest.raises(RejectedError):
        world.write(create("company", "1", {"name": "A"}), create("company", "2", {"name": "B"}))
    outcome = world.write(create("company", "1", {"name": "A"}))["1"]
    assert (outcome.verdict, outcome.reason) == (Verdict.REJECTED, "JSON_PARSER_ERROR")


# --- faults ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(path="composite", status=403, body=[{"errorCode": "REQUEST_LIMIT_EXCEEDED"}]), RateLimitedError),
        (Fault(path="composite", status=403, body=[{"errorCode": "API_DISABLED_FOR_ORG"}]), AuthError),
        (Fault(path="composite", status=200, body="<html>maintenance</html>"), ContractError),
        (Fault(path="composite", status=200, body={"compositeResponse": []}), ContractError),
        (Fault(path="composite", status=200, body=[]), ContractError),
        (Fault(path="composite", status=302, headers={"Location": "https://evil.example/"}), ContractError),
        (Fault(path="composite", status=410, body=[{"errorCode": "GONE"}]), ContractError),
        (Fault(path="composite", status=401, body=[{"errorCode": "INVALID_SESSION_ID"}], times=9), AuthError),
        (Fault(path="composite", status=503, body="<html>", times=9), TransientError),
        (Fault(path="composite", status=429, headers={"Retry-After": "7"}, times=9), RateLimitedError),
    ],
)
def test_an_answer_out_of_order_stops_the_pull_by_its_name(world: World, fault: Fault, error: type[Exception]) -> None:
    world.connector.capabilities()
    world.org.faults.append(fault)
    with pytest.raises(error) as caught:
        world.pull()
    if isinstance(caught.value, RateLimitedError):
        assert caught.value.is_daily is (fault.status == 403)
        assert caught.value.pause_seconds == (7 if fault.status == 429 else 120)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "composite", status=500, body="<html>"),
        Fault("POST", "composite", when="drop"),
        Fault("POST", "composite", status=429),
        Fault("POST", "composite", status=401, body="<html>"),
        Fault("POST", "composite", status=401, body=[{"errorCode": "INVALID_SESSION_ID"}]),
        Fault("POST", "composite", status=400, body=[{"errorCode": "QUERY_TIMEOUT"}]),
        Fault("POST", "token", status=503),
    ],
)
def test_what_passes_by_itself_is_tried_again(world: World, fault: Fault) -> None:
    world.deal()
    if "token" not in fault.path:
        world.connector.capabilities()
    world.org.faults.append(fault)
    assert len(world.records()["deal"]) == 1


def test_a_query_refused_inside_a_composite_is_not_taken_for_empty(world: World) -> None:
    world.connector.capabilities()
    part = {"httpStatusCode": 400, "httpHeaders": {}, "body": [{"errorCode": "MALFORMED_QUERY", "message": "x"}]}
    names = ("Account", "Contact", "Opportunity", "OpportunityContactRole")
    body = {"compositeResponse": [{**part, "referenceId": name} for name in names]}
    world.org.faults.append(Fault("POST", "composite", status=200, body=body))
    with pytest.raises(RejectedError):
        world.pull()


def test_a_next_page_on_another_host_is_never_asked_for(world: World) -> None:
    world.connector.capabilities()
    body = {"totalSize": 9, "done": False, "records": [], "nextRecordsUrl": "@evil.example/services/data/v67.0/query/1"}
    world.org.faults.append(Fault("GET", "query", status=200, body=body))
    with pytest.raises(ContractError):
        list(world.connector.pull(Pull(("deal",), {"deal": None})))


def test_polling_leaves_a_tenth_of_the_daily_allowance_and_a_backfill_more(build: Callable[..., World]) -> None:
    world = build(daily_limit=10, page_size=1)
    for _ in range(9):
        world.deal()
    world.connector.capabilities()
    with pytest.raises(RateLimitedError) as caught:
        world.pull(is_backfill=True)
    assert caught.value.is_daily
    assert world.org.used == 7
    assert world.wire.left["daily"] == 3
    with pytest.raises(RateLimitedError):
        world.write(create("company", "1", {"name": "Nordhaus AB"}, "7"))
    assert world.org.used == 7, "what a backfill has read it does not write either"
    with pytest.raises(RateLimitedError):
        world.pull()
    assert world.org.used == 9
    world.org.used = 0
    world.later(1000)
    world.pull(dict.fromkeys(ALL, "2026-11-20T08:00:00.000+0000"))


def test_errors_carry_no_values(world: World) -> None:
    world.connector.capabilities()
    world.org.faults.append(Fault("PATCH", "sobjects", status=418, body={"secret": "x"}))
    record = world.one("company", world.org.add("Account", {"Name": "Topsecret AB"}))
    reason = world.write(change(record, name="Topsecret Two"))[record.id].reason
    assert "Topsecret" not in reason


def test_every_call_says_who_is_calling(world: World) -> None:
    world.pull()
    assert {call.headers["sforce-call-options"] for call in world.org.log} == {"client=propstreet-sync"}


# --- the emulator is as strict as its contract ------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "query?q=SELECT Nope FROM Account", None, 400, "INVALID_FIELD"),
        ("GET", "query?q=SELECT Id FROM Nope", None, 400, "INVALID_TYPE"),
        ("GET", "query?q=SELECT Id FROM Account WHERE Id IN ()", None, 400, "MALFORMED_QUERY"),
        (
            "GET",
            "query?q=SELECT Id FROM Account WHERE SystemModstamp > '2026-01-01T00:00:00Z'",
            None,
            400,
            "INVALID_FIELD",
        ),
        ("GET", "query?q=SELECT CurrencyIsoCode FROM Opportunity", None, 400, "INVALID_FIELD"),
        ("GET", "query/01gx-1", None, 400, "INVALID_QUERY_LOCATOR"),
        ("GET", "query?q=SELECT Id FROM Account&limit=1", None, 400, "INVALID_QUERY_PARAMETER"),
        ("GET", "sobjects/Account/001000000000000AAA", None, 404, "NOT_FOUND"),
        ("PATCH", "sobjects/Account/001000000000000AAA", {"Name": "x"}, 404, "INVALID_CROSS_REFERENCE_KEY"),
        ("POST", "sobjects/Account", {"Nope": 1}, 400, "INVALID_FIELD"),
        ("POST", "sobjects/Account", {}, 400, "REQUIRED_FIELD_MISSING"),
        ("POST", "sobjects/Account", {"Name": "x" * 256}, 400, "STRING_TOO_LONG"),
        ("POST", "sobjects/Nope", {}, 404, "NOT_FOUND"),
        ("POST", "sobjects/Opportunity", {"Name": "x", "Amount": "12"}, 400, "JSON_PARSER_ERROR"),
        ("POST", "sobjects/Account", {"Name": "x", "SystemModstamp": "x"}, 400, "INVALID_FIELD_FOR_INSERT_UPDATE"),
        ("PATCH", "sobjects/Account/Name/x", {}, 404, "NOT_FOUND"),
        ("PATCH", "composite/sobjects", {"records": [{}] * 201}, 400, "INVALID_NUMBER_OF_RECORDS"),
        (
            "POST",
            "composite",
            {"compositeRequest": [{"url": "/services/data/v67.0/query/?q=x"}] * 6},
            400,
            "LIMIT_EXCEEDED",
        ),
        ("GET", "nowhere", None, 404, "NOT_FOUND"),
    ],
)
def test_the_emulator_refuses_what_is_not_documented(
    world: World, method: str, path: str, body: object, status: int, code: str
) -> None:
    world.connector.account()
    headers = {"Authorization": f"Bearer {next(iter(world.org._tokens))}"}
    url = f"{world.org.url}/services/data/v67.0/{path}"
    answer = requests.request(method, url, json=body, headers=headers, timeout=5)
    assert (answer.status_code, answer.json()[0]["errorCode"]) == (status, code)


def test_the_emulator_refuses_long_addresses_old_versions_and_stale_sessions(world: World) -> None:
    world.connector.account()
    headers = {"Authorization": f"Bearer {next(iter(world.org._tokens))}"}

    def get(path: str) -> int:
        return requests.get(f"{world.org.url}/services/data/{path}", headers=headers, timeout=5).status_code

    assert get("v67.0/query?q=" + "x" * 17_000) == 414
    assert get("v30.0/limits") == 410
    assert get("v99.0/limits") == 404
    assert get("v67.0/limits") == 200
    world.later(world.org.token_seconds + 1)
    assert get("v67.0/limits") == 401


def test_pairs_of_two_hundred_deals_and_contacts_fit_into_one_address(world: World) -> None:
    contacts = [world.org.add("Contact", {"LastName": "L"}) for _ in range(200)]
    deals = [world.deal() for _ in range(200)]
    writes = [
        create("deal_contact", str(at), {"classification": "contacted"}, deal=deal, contact=contact)
        for at, (deal, contact) in enumerate(zip(deals, contacts, strict=True))
    ]
    assert {each.verdict for each in world.connector.write(writes)} == {Verdict.DONE}
    assert {each.verdict for each in world.connector.write(writes)} == {Verdict.EXISTS}
    assert len(world.org.all("OpportunityContactRole")) == 200
    assert all(call.status == 200 for call in world.org.log)


def test_the_deep_overlap_reaches_further_back(world: World) -> None:
    world.deal()
    world.later(3600)
    marks = dict.fromkeys(ALL, "2026-11-20T09:00:00.000+0000")
    assert world.records(marks)["deal"] == []
    assert len(world.records(marks, is_deep=True)["deal"]) == 1
    assert timedelta(seconds=world.connector.capabilities().overlap_seconds) == timedelta(minutes=15)
