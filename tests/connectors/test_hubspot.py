"""The HubSpot connector over real HTTP, against its emulator."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal, TypeVar

import httpx
import pytest

from connectors.hubspot.connector import HubSpotConnector, connect
from connectors.hubspot.emulator import HubSpotEmulator, _pipeline
from syncd.connector import (
    ConnectionSettings,
    FieldChoice,
    KindChoice,
    Outcome,
    Page,
    Parent,
    Pull,
    Repeat,
    Rider,
    Secret,
    Tally,
    Verdict,
    Write,
)
from syncd.core.mapping import freeze
from syncd.core.model import Address, Money, Record, Value, Verb
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


class StubWire:
    """Calls at once, repeats what may be repeated three times, and counts by bucket."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seen: list[tuple[str, int, float]] = []
        self.errors: list[Exception] = []

    def call(
        self,
        exchange: Callable[[], T],
        *,
        effect: Literal["read", "write"],
        bucket: str = "default",
        repeat: Repeat = "always",
    ) -> T:
        for attempt in range(4):
            self.counts[bucket] += 1
            try:
                return exchange()
            except TransientError as exc:
                self.errors.append(exc)
                if exc.is_sent and repeat != "always":
                    raise UnknownOutcomeError(str(exc)) from exc
                if repeat == "never" and not (isinstance(exc, RateLimitedError) and exc.is_daily):
                    raise DelayedError(str(exc)) from exc
                if attempt == 3 or (isinstance(exc, RateLimitedError) and exc.is_daily):
                    raise
        raise AssertionError

    def observe(self, bucket: str, *, remaining: int, reset_seconds: float) -> None:
        self.seen.append((bucket, remaining, reset_seconds))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def serve(emulator: HubSpotEmulator) -> None:
    """Start an emulator and make sure that it listens."""
    port = int(emulator.start().rsplit(":", 1)[1])
    for _ in range(100_000):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
            return


def shut(emulator: HubSpotEmulator) -> None:
    """Stop an emulator without waiting for its thread."""
    threading.Thread(target=emulator.stop, daemon=True).start()


def settings(emulator: HubSpotEmulator, **kinds: KindChoice) -> ConnectionSettings:
    auth = {name: Secret(lambda text=text: text) for name, text in emulator.auth.items()}  # type: ignore[misc]
    return ConnectionSettings("hs", emulator.url, None, auth, "hubspot", kinds)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(tick_seconds=0.001)


@pytest.fixture
def hub(clock: ManualClock) -> Iterator[HubSpotEmulator]:
    emulator = HubSpotEmulator(now=clock, quota=False, is_prepared=True)
    serve(emulator)
    yield emulator
    shut(emulator)


@pytest.fixture
def wire() -> StubWire:
    return StubWire()


@pytest.fixture
def connector(hub: HubSpotEmulator, wire: StubWire, clock: ManualClock) -> Iterator[HubSpotConnector]:
    found = connect(settings(hub), wire, clock)
    yield found
    found.close()


def create(kind: str, counterpart: str, values: Mapping[str, Value], **refs: str) -> Write:
    return Write(f"key-{kind}-{counterpart}", kind, "create", None, counterpart, values, refs)


def change(
    verb: Verb, record: Record, values: Mapping[str, Value] | None = None, counterpart: str | None = None
) -> Write:
    address = Address(record.id, record.parent)
    return Write(
        f"key-{verb}-{record.id}", record.kind, verb, address, counterpart, values or {}, record.refs,
        record.version, record.modified_at, record.opaque,
    )  # fmt: skip


def done(outcomes: object) -> Record:
    assert isinstance(outcomes, list)
    (outcome,) = outcomes
    assert isinstance(outcome, Outcome)
    assert outcome.verdict is Verdict.DONE, outcome
    assert outcome.record is not None
    return outcome.record


def pull(connector: HubSpotConnector, *kinds: str, parents: tuple[str, ...] = (), **more: object) -> list[Page]:
    watermarks = more.pop("watermarks", {})
    assert isinstance(watermarks, dict)
    request = Pull(kinds, watermarks, lambda: [Parent(each) for each in parents], **more)  # type: ignore[arg-type]
    return list(connector.pull(request))


def records(pages: list[Page], kind: str | None = None) -> dict[str, Record]:
    return {each.id: each for page in pages if kind in (None, page.kind) for each in page.records}


# --- translation and set-up ---------------------------------------------------------------------


def test_a_company_goes_there_and_comes_back(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    values: dict[str, Value] = {
        "name": "Nordhaus AB",
        "domain": "nordhaus.se",
        "homepage": "https://nordhaus.se/en",
        "country": "SE",
        "org_number": "556000-1234",
        "linkedin": "https://linkedin.com/company/nordhaus",
        "strategy": "Core+",
        "tags": frozenset({"logistics", "office"}),
    }
    record = done(connector.write([create("company", "c-1", values)]))
    assert dict(record.values) == values
    assert record.mark == "c-1"
    assert hub.all("companies")[record.id]["propstreet_tags"] == "logistics;office"
    again = connector.read("company", [Address(record.id)])[record.id]
    assert (dict(again.values), again.version, again.mark) == (values, record.version, "c-1")
    emptied = done(connector.write([change("update", again, dict.fromkeys(values))]))
    assert set(emptied.values.values()) == {None}


def test_a_contact_goes_there_and_comes_back_as_hubspot_wrote_it(
    connector: HubSpotConnector, hub: HubSpotEmulator, wire: StubWire
) -> None:
    values: dict[str, Value] = {
        "first_name": "Åsa", "last_name": "Öberg", "email": "Asa@Example.com", "phone": "+46701234567",
        "linkedin": "https://linkedin.com/in/asa", "language": "sv", "strategy": None, "tags": frozenset({"vip"}),
    }  # fmt: skip
    connector.capabilities()
    before = wire.total
    record = done(connector.write([create("contact", "k-1", values)]))
    assert wire.total == before + 1
    assert record.values["email"] == "asa@example.com"
    assert record.values["phone"] == "+46 70 123 4567"
    assert hub.all("contacts")[record.id]["hs_linkedin_url"] == "https://linkedin.com/in/asa"
    again = connector.read("contact", [Address(record.id)])[record.id]
    assert again.values == {**record.values, "other_emails": None, "strategy": None}


@pytest.mark.parametrize(
    ("held", "written"),
    [
        ({"mobilephone": "+4670111", "phone": "+4685"}, "mobilephone"),
        ({"phone": "+468123456"}, "phone"),
        ({}, "phone"),
    ],
)
def test_a_phone_goes_back_to_where_it_was_read(
    connector: HubSpotConnector, hub: HubSpotEmulator, held: dict[str, str], written: str
) -> None:
    id_ = hub.add("contacts", {"firstname": "A", **held})
    record = connector.read("contact", [Address(id_)])[id_]
    done(connector.write([change("update", record, {"phone": "+46709999999"})]))
    changed = {name for name, text in (hub.get("contacts", id_) or {}).items() if "9999" in text}
    assert changed == {written}


def test_clearing_the_mobile_shows_the_other_phone(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    id_ = hub.add("contacts", {"firstname": "A", "mobilephone": "+46701111111", "phone": "+46852222222"})
    record = connector.read("contact", [Address(id_)])[id_]
    assert done(connector.write([change("update", record, {"phone": None})])).values["phone"] == "+46 85 222 2222"


@pytest.mark.parametrize(
    ("country", "value"), [("Sweden", "SE"), ("se", "SE"), ("UK", "GB"), ("", None), ("Sverige ", "SE")]
)
def test_a_country_is_taken_where_it_is_sure(
    connector: HubSpotConnector, hub: HubSpotEmulator, country: str, value: str | None
) -> None:
    id_ = hub.add("companies", {"name": "A", "country": country})
    assert connector.read("company", [Address(id_)])[id_].values["country"] == value


def test_a_country_that_is_not_sure_says_nothing(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    id_ = hub.add("companies", {"name": "A", "country": "Bavaria"})
    assert "country" not in connector.read("company", [Address(id_)])[id_].values


DEAL: dict[str, Value] = {
    "name": "Project Birch", "amount": Money(Decimal("1500000.5"), "EUR"), "stage": "presentationscheduled",
    "status": "open", "classification": "active", "exclusivity": "exclusive", "asset_type": "portfolio",
    "property_count": Decimal(12), "published_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "property_categories": frozenset({"office", "retail"}), "property_area_sqm": Decimal("1200.25"),
}  # fmt: skip


def test_a_deal_goes_there_and_comes_back(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    record = done(connector.write([create("deal", "d-1", DEAL)]))
    assert dict(record.values) == DEAL
    again = connector.read("deal", [Address(record.id)])[record.id]
    assert {name: again.values[name] for name in DEAL} == DEAL
    assert again.native == {
        "pipeline": "default",
        "pipeline:label": "Sales Pipeline",
        "dealstage": "presentationscheduled",
    }
    assert again.values["property_tenure"] is None


def test_an_amount_never_goes_out_in_another_currency(clock: ManualClock) -> None:
    hub = HubSpotEmulator(now=clock, quota=False, is_prepared=True, has_currency=False)
    serve(hub)
    connector = connect(settings(hub), StubWire(), clock)
    (outcome,) = connector.write([create("deal", "d-1", DEAL)])
    assert outcome.verdict is Verdict.DONE
    assert "amount" in outcome.reason
    assert outcome.record is not None
    assert outcome.record.values["amount"] is None
    assert not hub.all("deals")[outcome.record.id].get("amount")
    record = done(connector.write([create("deal", "d-2", {**DEAL, "amount": Money(Decimal(5), "SEK")})]))
    assert record.values["amount"] == Money(Decimal(5), "SEK")
    shut(hub)


def test_a_currency_that_the_portal_does_not_know_is_not_sent(
    connector: HubSpotConnector, hub: HubSpotEmulator
) -> None:
    record = done(connector.write([create("deal", "d-1", {**DEAL, "amount": Money(Decimal(5), "JPY")})]))
    assert record.values["amount"] is None


def test_stages_follow_the_pipeline(connector: HubSpotConnector) -> None:
    stage = connector.capabilities().kinds["deal"].fields["stage"]
    assert stage.vocabulary == {
        "none": "appointmentscheduled", "property_added": "appointmentscheduled", "drafting": "appointmentscheduled",
        "published": "presentationscheduled", "verified": "presentationscheduled",
        "communicated": "decisionmakerboughtin", "won": "closedwon",
    }  # fmt: skip


def test_a_chosen_pipeline_and_its_stages_are_found_by_label(hub: HubSpotEmulator, clock: ManualClock) -> None:
    stages = (("901", "Qualification", "0.1"), ("902", "Proposal", "0.5"), ("903", "Done", "1.0"))
    hub.pipelines.append(_pipeline("77", "Real estate", stages))
    choice = KindChoice(pipeline="real estate", stages={"Qualification": ("none",), "902": ("published",)})
    connector = connect(settings(hub, deal=choice), StubWire(), clock)
    assert connector.capabilities().kinds["deal"].fields["stage"].vocabulary == {"none": "901", "published": "902"}
    record = done(connector.write([create("deal", "d-1", {"name": "A", "stage": "902"})]))
    assert record.native == {"pipeline": "77", "pipeline:label": "Real estate", "dealstage": "902"}
    assert done(connector.write([create("deal", "d-2", {"name": "B"})])).values["stage"] == "901"
    elsewhere = hub.add("deals", {"dealname": "C", "dealstage": "qualifiedtobuy"})
    other = connector.read("deal", [Address(elsewhere)])[elsewhere]
    assert "stage" not in other.values
    assert set(other.locked) == {"stage"}
    assert other.native["pipeline"] == "default"


def test_a_closed_deal_keeps_its_stage(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    lost = hub.add("deals", {"dealname": "A", "dealstage": "closedlost"})
    won = hub.add("deals", {"dealname": "A", "dealstage": "closedwon"})
    found = connector.read("deal", [Address(lost), Address(won)])
    assert "stage" in found[lost].locked and "stage" in found[won].locked
    assert "stage" not in found[lost].values and found[won].values["stage"] == "closedwon"


@pytest.mark.parametrize(
    "choice",
    [
        {"deal": KindChoice(pipeline="Sails Pipeline")},
        {"deal": KindChoice(stages={"qualifiedtobye": ("none",)})},
        {"deal": KindChoice(stages={"qualifiedtobuy": ("nonne",)})},
        {"deal": KindChoice(fields={"amonut": FieldChoice()})},
        {"deal": KindChoice(fields={"name": FieldChoice(native="delname")})},
        {"deal": KindChoice(watch=("delname",))},
        {"deal_contact": KindChoice(labels={"biddder": "X"})},
    ],
)
def test_a_setting_that_names_nothing_is_refused_with_the_nearest(
    hub: HubSpotEmulator, clock: ManualClock, choice: dict[str, KindChoice]
) -> None:
    with pytest.raises(ConfigError, match="nearest"):
        connect(settings(hub, **choice), StubWire(), clock).check()


@pytest.mark.parametrize(
    ("auth", "named"),
    [
        ({}, "access_token"),
        ({"acces_token": "x"}, "acces_token"),
        ({"client_id": "x", "client_secret": "y"}, "refresh_token"),
        ({"client_id": "x", "access_token": "y"}, "both"),
    ],
)
def test_unfit_credentials_are_refused_by_name(
    hub: HubSpotEmulator, clock: ManualClock, auth: dict[str, str], named: str
) -> None:
    secrets = {name: Secret(lambda: "x") for name in auth}
    with pytest.raises(ConfigError, match=named):
        connect(ConnectionSettings("hs", hub.url, None, secrets, "hubspot"), StubWire(), clock)


def test_an_empty_portal_is_checked_and_fixed(clock: ManualClock) -> None:
    hub = HubSpotEmulator(now=clock, quota=False)
    serve(hub)
    connector = connect(settings(hub), StubWire(), clock)
    findings = connector.check()
    assert {each.thing for each in findings if each.is_required} == {
        "companies.propstreet_company_id",
        "contacts.propstreet_contact_id",
        "deals.propstreet_project_id",
    }
    assert "org_number" not in connector.capabilities().kinds["company"].fields
    assert "classification" not in connector.capabilities().kinds["deal_contact"].fields
    assert connector.fix(findings) == []
    assert connector.check() == []
    kinds = connector.capabilities().kinds
    assert "classification" in kinds["deal_contact"].fields
    assert kinds["deal_contact"].ref_sets == (frozenset({"deal", "contact"}), frozenset({"deal", "company"}))
    shut(hub)


def test_a_portal_without_labels_says_what_is_missing(clock: ManualClock) -> None:
    hub = HubSpotEmulator(now=clock, quota=False, has_labels=False, is_prepared=True)
    serve(hub)
    connector = connect(settings(hub), StubWire(), clock)
    left = connector.fix(connector.check())
    assert left and {each.code for each in left} == {"missing_label"}
    assert not any(each.is_fixable or each.is_required for each in left)
    assert connector.capabilities().kinds["deal_contact"].ref_sets == (frozenset({"deal", "contact"}),)
    shut(hub)


def test_a_property_that_is_not_unique_cannot_be_fixed(clock: ManualClock) -> None:
    hub = HubSpotEmulator(now=clock, quota=False)
    hub.define("deals", "propstreet_project_id")
    serve(hub)
    connector = connect(settings(hub), StubWire(), clock)
    (finding,) = [each for each in connector.check() if each.thing == "deals.propstreet_project_id"]
    assert (finding.code, finding.is_required, finding.is_fixable) == ("property_not_unique", True, False)
    shut(hub)


def test_a_missing_scope_is_a_finding(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    hub.missing_scopes.add("crm.objects.deals.read")
    (finding,) = connector.check()
    assert (finding.code, finding.thing) == ("missing_scope", "crm.objects.deals.read")


def test_who_we_are(connector: HubSpotConnector) -> None:
    account = connector.account()
    assert (account.id, account.currency, account.time_zone) == ("47110815", "SEK", "Europe/Stockholm")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "objects/deals?limit=101", None, 400),
        ("GET", "objects/deals?limit=10&size=3", None, 400),
        ("GET", "objects/deals?properties=nonsense", None, 400),
        ("GET", "objects/deals?properties=" + "x" * 8100, None, 414),
        ("GET", "objects/deals/5", None, 404),
        ("POST", "objects/deals/search", {"limit": 201}, 400),
        ("POST", "objects/deals/search", {"limit": 200, "after": "9900"}, 400),
        ("POST", "objects/deals/search", {"properties": ["dealname"] * 300}, 400),
        ("POST", "objects/deals/search", {"filterGroups": [{"filters": []}] * 6}, 400),
        ("POST", "objects/deals/batch/read", {"inputs": [{"id": "1"}] * 101}, 400),
        ("POST", "objects/deals/batch/read", {"inputs": [{"id": "1"}] * 51, "propertiesWithHistory": ["amount"]}, 400),
        ("POST", "objects/deals/batch/read", {"inputs": [{"id": "1"}], "idProperty": "dealname"}, 400),
        ("POST", "objects/deals/batch/read", {"inputs": [{"id": "1"}]}, 207),
        ("POST", "objects/deals/batch/update", {"inputs": [{"id": "1", "properties": {}}] * 2}, 400),
        ("POST", "objects/deals/batch/update", {"inputs": [{"id": "1", "properties": {}}]}, 404),
        ("POST", "objects/companies/batch/create", {"inputs": [{"properties": {"name": 5}}]}, 400),
        ("POST", "objects/companies/batch/create", {"inputs": [{"properties": {"name": "A"}}]}, 201),
        (
            "POST", "objects/companies/batch/create",
            {"inputs": [{"properties": {"name": None}, "objectWriteTraceId": "t"}]}, 207,
        ),
        (
            "POST", "objects/contacts/batch/upsert",
            {"inputs": [{"id": "x", "idProperty": "hs_object_id", "properties": {}}]}, 400,
        ),
    ],
)  # fmt: skip
def test_the_emulator_takes_nothing_undocumented(
    hub: HubSpotEmulator, method: str, path: str, body: object, status: int
) -> None:
    headers = {"Authorization": "Bearer pat-eu1-emulated"}
    assert httpx.request(method, f"{hub.url}/crm/v3/{path}", json=body, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("action", "count", "types", "status"),
    [
        ("read", 1001, None, 400),
        ("create", 2001, [3], 400),
        ("create", 1, [341], 400),
        ("create", 1, [3], 207),
        ("labels/archive", 1, [999], 400),
        ("archive", 1, None, 204),
    ],
)
def test_the_emulator_takes_only_types_of_the_pair(
    hub: HubSpotEmulator, action: str, count: int, types: list[int] | None, status: int
) -> None:
    row: dict[str, object] = {"id": "1"} if action == "read" else {"from": {"id": "1"}, "to": {"id": "2"}}
    if action == "archive":
        row["to"] = [{"id": "2"}]
    if types:
        row["types"] = [{"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": each} for each in types]
    path = f"{hub.url}/crm/v4/associations/deals/contacts/batch/{action}"
    headers = {"Authorization": "Bearer pat-eu1-emulated"}
    assert httpx.post(path, json={"inputs": [row] * count}, headers=headers).status_code == status


# --- pulling ------------------------------------------------------------------------------------


def test_everything_is_listed_once_with_a_place_to_go_on_from(
    connector: HubSpotConnector, hub: HubSpotEmulator
) -> None:
    ids = {hub.add("deals", {"dealname": f"D{n}", "dealstage": "qualifiedtobuy"}) for n in range(250)}
    pages = pull(connector, "deal")
    assert set(records(pages)) == ids
    assert [page.is_last for page in pages] == [False, False, True]
    assert all(page.is_listing for page in pages)
    clock = pages[-1].clock
    assert clock is not None
    assert len(hub.calls("GET", "^/crm/v3/objects/deals$")) == 3
    new = hub.add("deals", {"dealname": "New", "dealstage": "qualifiedtobuy"})
    assert new in records(pull(connector, "deal", watermarks={"deal": clock}))


def test_an_empty_portal_has_a_place_to_go_on_from(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    (page,) = pull(connector, "company")
    assert page.is_last and page.clock is not None
    id_ = hub.add("companies", {"name": "First"})
    assert set(records(pull(connector, "company", watermarks={"company": page.clock}))) == {id_}


def test_what_changes_behind_a_listing_is_found_after_it(
    connector: HubSpotConnector, hub: HubSpotEmulator, clock: ManualClock
) -> None:
    ids = [hub.add("deals", {"dealname": f"D{n}", "dealstage": "qualifiedtobuy"}) for n in range(201)]
    clock.advance(1000)
    pages: list[Page] = []
    for page in connector.pull(Pull(("deal",), {"deal": None})):
        if not pages:
            hub.edit("deals", ids[0], {"dealname": "Behind"})
            clock.advance(4000)
            hub.edit("deals", ids[-1], {"dealname": "Ahead"})
        pages.append(page)
    later = records(pull(connector, "deal", watermarks={"deal": pages[-1].clock}))
    assert later[ids[0]].values["name"] == "Behind"


def test_contacts_are_found_by_their_own_modified_time(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    (first, *_) = pull(connector, "contact")
    id_ = hub.add("contacts", {"firstname": "A"})
    assert set(records(pull(connector, "contact", watermarks={"contact": first.clock}))) == {id_}


def test_a_delta_of_many_rows_loses_none_while_they_move(
    connector: HubSpotConnector, hub: HubSpotEmulator, clock: ManualClock
) -> None:
    clock.advance(10_000)
    ids = [hub.add("companies", {"name": f"C{n}"}) for n in range(650)]
    seen: dict[str, Record] = {}
    moved = iter(ids)
    for page in connector.pull(Pull(("company",), {"company": "2026-11-20T10:46:00.000Z"})):
        for record in page.records:
            seen[record.id] = record
        for _ in range(3):
            hub.edit("companies", next(moved), {"website": "moved.example"})
    assert set(seen) == set(ids)
    assert all(call.body["limit"] <= 200 and "after" not in call.body for call in hub.calls("POST", "search$"))


def test_more_rows_than_a_page_in_one_millisecond(wire: StubWire) -> None:
    clock = ManualClock()
    hub = HubSpotEmulator(now=clock, quota=False, is_prepared=True)
    serve(hub)
    connector = connect(settings(hub), wire, clock)
    ids = {hub.add("companies", {"name": f"C{n}"}) for n in range(450)}
    clock.advance(1)
    ids |= {hub.add("companies", {"name": f"D{n}"}) for n in range(5)}
    pages = pull(connector, "company", watermarks={"company": "2026-11-20T07:59:00.000Z"})
    assert set(records(pages)) == ids
    assert sum(len(page.records) for page in pages) == len(ids)
    shut(hub)


def test_rows_that_reach_the_index_late_are_within_the_overlap(
    connector: HubSpotConnector, hub: HubSpotEmulator, clock: ManualClock
) -> None:
    clock.advance(1000)
    late = hub.add("companies", {"name": "Late"})
    hub.slow_rows["companies", late] = 120
    hub.add("companies", {"name": "Prompt"})
    pages = pull(connector, "company", watermarks={"company": "2026-11-20T08:00:00Z"})
    assert late not in records(pages)
    clock.advance(150)
    assert late in records(pull(connector, "company", watermarks={"company": pages[-1].clock}))


def test_a_deep_overlap_reaches_further(connector: HubSpotConnector, hub: HubSpotEmulator, clock: ManualClock) -> None:
    old = hub.add("companies", {"name": "Old"})
    mark = {"company": "2026-11-20T09:50:00.000Z"}
    assert not records(pull(connector, "company", watermarks=mark))
    assert set(records(pull(connector, "company", watermarks=mark, is_deep=True))) == {old}


def test_search_shows_the_past_and_a_read_the_present(clock: ManualClock) -> None:
    hub = HubSpotEmulator(now=clock, quota=False, is_prepared=True, index_lag_seconds=90)
    serve(hub)
    connector = connect(settings(hub), StubWire(), clock)
    id_ = hub.add("companies", {"name": "Old"})
    clock.advance(100)
    record = done(connector.write([change("update", connector.read("company", [Address(id_)])[id_], {"name": "New"})]))
    found = records(pull(connector, "company", watermarks={"company": "2026-11-20T08:00:00Z"}))[id_]
    assert found.values["name"] == "Old"
    assert found.modified_at is not None and record.modified_at is not None
    assert found.modified_at < record.modified_at
    assert connector.read("company", [Address(id_)])[id_].version == record.version
    shut(hub)


def test_an_idle_pull_costs_one_call_a_kind(connector: HubSpotConnector, hub: HubSpotEmulator, wire: StubWire) -> None:
    company = hub.add("companies", {"name": "A"})
    contact = hub.add("contacts", {"firstname": "A"})
    hub.associate("contacts", contact, "companies", company)
    hub.add("deals", {"dealname": "A", "dealstage": "qualifiedtobuy"})
    marks = {kind: pull(connector, kind)[-1].clock for kind in ("company", "deal")}
    marks |= {page.kind: page.clock for page in pull(connector, "contact", "employment")}
    before = wire.total
    for group in (("company",), ("contact", "employment"), ("deal",)):
        pull(connector, *group, watermarks=marks)
    assert wire.total - before == 3


def test_a_contact_that_is_asked_for_between_two_sweeps_is_visited_and_no_other(
    connector: HubSpotConnector, hub: HubSpotEmulator, clock: ManualClock, wire: StubWire
) -> None:
    """A webhook spoke of its associations, which search does not show; it has not moved itself."""
    company = hub.add("companies", {"name": "A"})
    contact, other = (hub.add("contacts", {"firstname": each}) for each in "AB")
    mark = next(page.clock for page in pull(connector, "contact", "employment") if page.is_last)
    clock.advance(1000)
    for each in (contact, other):
        hub.associate("contacts", each, "companies", company)
    before = wire.total
    pages = pull(
        connector, "contact", "employment", parents=(contact,), watermarks={"contact": mark, "employment": mark}
    )
    assert set(records(pages, "employment")) == {f"{contact}:{company}"}
    assert wire.total - before == 2


def test_a_sweep_shows_what_was_merged_into_something_in_the_bin(
    connector: HubSpotConnector, hub: HubSpotEmulator
) -> None:
    one, two = (hub.add("companies", {"name": name}) for name in "AB")
    mark = pull(connector, "company")[-1].clock
    hub.archive("companies", hub.merge("companies", one, two))
    shown = records(pull(connector, "company", watermarks={"company": mark}, is_sweep=True))
    assert {id_ for id_, record in shown.items() if record.is_deleted} == {one, two}


def test_long_property_names_are_read_by_id(hub: HubSpotEmulator, clock: ManualClock) -> None:
    names = tuple(f"a_very_long_property_name_that_somebody_gave_{n:03d}" for n in range(160))
    for each in names:
        hub.define("deals", each)
    connector = connect(settings(hub, deal=KindChoice(watch=names)), StubWire(), clock)
    id_ = hub.add("deals", {"dealname": "A", "dealstage": "qualifiedtobuy", names[7]: "seven"})
    (page,) = pull(connector, "deal")
    assert page.records[0].native[names[7]] == "seven"
    assert records(pull(connector, "deal", watermarks={"deal": page.clock}))[id_].native[names[7]] == "seven"


def test_a_sweep_shows_what_is_in_the_bin(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    id_ = hub.add("deals", {"dealname": "A", "dealstage": "qualifiedtobuy"})
    mark = pull(connector, "deal")[-1].clock
    hub.archive("deals", id_)
    assert id_ not in records(pull(connector, "deal", watermarks={"deal": mark}))
    assert records(pull(connector, "deal", watermarks={"deal": mark}, is_sweep=True))[id_].is_deleted
    assert connector.read("deal", [Address(id_)])[id_].is_deleted
    hub.restore("deals", id_)
    assert not connector.read("deal", [Address(id_)])[id_].is_deleted


def test_a_merge_is_followed_from_both_old_ids(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    one, two = (hub.add("deals", {"dealname": each, "dealstage": "qualifiedtobuy"}) for each in "AB")
    mark = pull(connector, "deal")[-1].clock
    new = hub.merge("deals", one, two)
    found = records(pull(connector, "deal", watermarks={"deal": mark}))
    assert set(found[new].formerly) == {one, two}
    read = connector.read("deal", [Address(one), Address(two)])
    assert {each.id for each in read.values()} == {new}
    assert one in read[one].formerly and two in read[two].formerly


def test_an_id_that_never_was_is_a_tombstone(connector: HubSpotConnector) -> None:
    assert connector.read("deal", [Address("999999")])["999999"].is_deleted


def test_a_record_that_cannot_be_read_holds_up_no_other(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    rows = [
        {"id": "../../x", "properties": {"name": "bad", "hs_lastmodifieddate": "2026-11-20T08:00:00.000Z"}},
        {"id": "5", "properties": {"name": "x" * 70_000, "hs_lastmodifieddate": "2026-11-20T08:00:00.001Z"}},
        {"id": "6", "properties": {"name": "fine", "hs_lastmodifieddate": "2026-11-20T08:00:00.002Z"}},
    ]
    hub.faults.append(Fault("GET", "objects/companies$", "after", 200, {"results": rows}))
    hub.faults.append(Fault("POST", "companies/search$", "after", 200, {"total": 3, "results": rows}))
    for mark in (None, "2026-11-20T08:00:00.000Z"):
        (page,) = pull(connector, "company", watermarks={"company": mark})
        assert [each.id for each in page.records] == ["6"]
        assert [each.id for each in page.refused] == ["??????x", "5"]


# --- employments --------------------------------------------------------------------------------


def test_employments_come_with_their_contacts(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    first, second = (hub.add("companies", {"name": each}) for each in "AB")
    contact = hub.add("contacts", {"firstname": "A", "jobtitle": "CFO"})
    hub.associate("contacts", contact, "companies", first)
    hub.associate("contacts", contact, "companies", second)
    lonely = hub.add("contacts", {"firstname": "B"})
    pages = pull(connector, "contact", "employment")
    found = records(pages, "employment")
    assert dict(found[f"{contact}:{first}"].values) == {"is_primary": True, "job_title": "CFO"}
    assert dict(found[f"{contact}:{second}"].values) == {"is_primary": False}
    assert "job_title" in found[f"{contact}:{second}"].locked
    assert found[f"{contact}:{first}"].refs == {"contact": contact, "company": first}
    assert {contact, lonely} == {each for page in pages for each in page.complete_parents}
    mark = next(page.clock for page in pages if page.is_last)
    later = pull(connector, "contact", "employment", parents=(contact, lonely), watermarks={"contact": mark})
    assert dict(records(later, "employment")[f"{contact}:{first}"].values) == {"is_primary": True}
    assert {contact, lonely} == {each for page in later for each in page.complete_parents}


def test_an_employment_is_made_moved_and_unmade(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    first, second = (hub.add("companies", {"name": each}) for each in "AB")
    contact = hub.add("contacts", {"firstname": "A"})
    write = create("employment", "e-1", {"is_primary": True, "job_title": "CEO"}, contact=contact, company=first)
    record = done(connector.write([write]))
    assert (record.id, dict(record.values)) == (f"{contact}:{first}", {"is_primary": True, "job_title": "CEO"})
    assert (hub.get("contacts", contact) or {})["jobtitle"] == "CEO"
    write = create("employment", "e-2", {"is_primary": False}, contact=contact, company=second)
    done(connector.write([write]))
    found = connector.read("employment", [Address(f"{contact}:{each}") for each in (first, second)])
    assert dict(found[f"{contact}:{first}"].values) == {"is_primary": True, "job_title": "CEO"}
    swap = [
        change("update", found[f"{contact}:{first}"], {"is_primary": False}),
        change("update", found[f"{contact}:{second}"], {"is_primary": True, "job_title": "Chair"}),
    ]
    assert {each.verdict for each in connector.write(swap)} == {Verdict.DONE}
    assert hub.associations("contacts", contact, "companies") == {first: set(), second: {"Primary"}}
    assert (hub.get("contacts", contact) or {})["jobtitle"] == "Chair"
    (outcome,) = connector.write([change("delete", found[f"{contact}:{first}"])])
    assert (outcome.verdict, outcome.record) == (Verdict.DONE, None)
    assert set(hub.associations("contacts", contact, "companies")) == {second}
    assert connector.read("employment", [Address(f"{contact}:{first}")])[f"{contact}:{first}"].is_deleted


def test_a_new_contact_takes_its_job_title_along(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    """The title of the employment to come is written with the contact, and not a second time with the employment."""
    first, second = (hub.add("companies", {"name": each}) for each in "AB")
    values: dict[str, Value] = {"job_title": "CEO", "is_primary": True}
    rider = Rider("employment", values, {"company": first})
    other = Rider("employment", {"job_title": "Board member", "is_primary": False}, {"company": second})
    write = replace(create("contact", "p-1", {"first_name": "Anna"}), riders=(other, rider))
    contact = done(connector.write([write]))
    assert (hub.get("contacts", contact.id) or {})["jobtitle"] == "CEO"
    hub.log.clear()
    follows = create("employment", "e-1", values, contact=contact.id, company=first)
    record = done(connector.write([replace(follows, carrier=contact)]))
    assert dict(record.values) == values
    assert ["associations" in call.path for call in hub.log] == [True]
    changed = create("employment", "e-2", {**values, "job_title": "Chair"}, contact=contact.id, company=second)
    done(connector.write([replace(changed, carrier=contact)]))
    assert (hub.get("contacts", contact.id) or {})["jobtitle"] == "Chair"


@pytest.mark.parametrize("replaces", [True, False])
def test_an_employment_leaves_foreign_labels(connector: HubSpotConnector, hub: HubSpotEmulator, replaces: bool) -> None:
    """Labels of other people outlive a change of ours, and the employment itself."""
    hub.associating_replaces = replaces
    contact, company = hub.add("contacts", {"firstname": "A"}), hub.add("companies", {"name": "A"})
    hub.associate("contacts", contact, "companies", company, ("Board member",), primary=False)
    id_ = f"{contact}:{company}"
    record = connector.read("employment", [Address(id_)])[id_]
    record = done(connector.write([change("update", record, {"is_primary": True})]))
    assert hub.associations("contacts", contact, "companies") == {company: {"Board member", "Primary"}}
    (outcome,) = connector.write([change("delete", record)])
    assert outcome.verdict is Verdict.DONE
    assert outcome.record is not None
    assert hub.associations("contacts", contact, "companies") == {company: {"Board member"}}


# --- prospects ----------------------------------------------------------------------------------


@pytest.fixture
def deal(hub: HubSpotEmulator) -> str:
    return hub.add("deals", {"dealname": "A", "dealstage": "qualifiedtobuy"})


@pytest.fixture
def person(hub: HubSpotEmulator) -> str:
    return hub.add("contacts", {"firstname": "A"})


@pytest.mark.parametrize(
    ("labels", "classification"),
    [
        ((), "not_contacted"),
        (("Contacted",), "contacted"),
        (("Contacted", "Interested"), "interested"),
        (("Not interested", "Interested", "Lawyer"), "not_interested"),
        (("Bidder", "Not interested"), "bidder"),
        (("Lawyer",), "not_contacted"),
    ],
)
def test_labels_are_read_as_the_furthest_classification(
    connector: HubSpotConnector,
    hub: HubSpotEmulator,
    deal: str,
    person: str,
    labels: tuple[str, ...],
    classification: str,
) -> None:
    hub.define_label("deals", "contacts", "Lawyer")
    hub.associate("deals", deal, "contacts", person, labels)
    (page,) = pull(connector, "deal_contact", parents=(deal,))
    assert page.complete_parents == (deal,)
    (record,) = page.records
    assert (record.id, record.parent) == (f"{deal}:contact:{person}", deal)
    assert dict(record.values) == {"classification": classification}


@pytest.mark.parametrize("replaces", [True, False])
def test_a_classification_replaces_ours_and_leaves_foreign_labels(
    connector: HubSpotConnector, hub: HubSpotEmulator, deal: str, person: str, replaces: bool
) -> None:
    """Foreign labels stay, whether HubSpot takes a batch of associations as an addition or as all there is."""
    hub.associating_replaces = replaces
    hub.associate("deals", deal, "contacts", person, ("Lawyer", "Contacted"))
    id_ = f"{deal}:contact:{person}"
    for stage, label in (("bidder", "Bidder"), ("interested", "Interested"), ("not_contacted", None)):
        record = connector.read("deal_contact", [Address(id_, deal)])[id_]
        after = done(connector.write([change("update", record, {"classification": stage})]))
        assert after.values["classification"] == stage
        assert hub.associations("deals", deal, "contacts")[person] == {"Lawyer", *([label] if label else [])}


def test_a_prospect_is_made_with_label_and_teaser_dates(
    connector: HubSpotConnector, hub: HubSpotEmulator, deal: str, person: str
) -> None:
    hub.edit("deals", deal, {"propstreet_teaser_responses": "Call them on Monday"})
    values: dict[str, Value] = {
        "classification": "interested",
        "deadline_at": datetime(2026, 2, 15, 23, 59, 59, tzinfo=UTC),
        "accepted_at": None,
    }
    record = done(connector.write([create("deal_contact", "x", values, deal=deal, contact=person)]))
    assert dict(record.values) == values
    assert hub.associations("deals", deal, "contacts")[person] == {"Interested", "Teaser sent"}
    accepted: dict[str, Value] = {"accepted_at": datetime(2026, 1, 20, 14, 30, tzinfo=UTC)}
    record = done(connector.write([change("update", record, accepted)]))
    assert hub.associations("deals", deal, "contacts")[person] == {"Interested", "Teaser sent", "Teaser accepted"}
    assert (hub.get("deals", deal) or {})["propstreet_teaser_responses"].splitlines() == [
        "Call them on Monday",
        f"contact {person}: reply by 2026-02-15T23:59:59Z, accepted 2026-01-20T14:30:00Z",
    ]
    (outcome,) = connector.write([change("delete", record)])
    assert outcome.verdict is Verdict.DONE
    assert hub.associations("deals", deal, "contacts") == {}
    assert (hub.get("deals", deal) or {})["propstreet_teaser_responses"] == "Call them on Monday"


def test_a_removed_prospect_with_a_foreign_label_loses_only_ours(
    connector: HubSpotConnector, hub: HubSpotEmulator, deal: str, person: str
) -> None:
    hub.associate("deals", deal, "contacts", person, ("Lawyer", "Contacted"))
    id_ = f"{deal}:contact:{person}"
    connector.write([change("delete", connector.read("deal_contact", [Address(id_, deal)])[id_])])
    assert hub.associations("deals", deal, "contacts") == {person: {"Lawyer"}}


@pytest.mark.parametrize("replaces", [True, False])
def test_a_new_prospect_leaves_the_labels_that_are_there(
    connector: HubSpotConnector, hub: HubSpotEmulator, deal: str, person: str, replaces: bool
) -> None:
    """Who is on the deal already for another reason stays so when made a prospect."""
    hub.associating_replaces = replaces
    seller = hub.add("companies", {"name": "A"})
    hub.associate("deals", deal, "companies", seller, ("Primary", "Seller"))
    hub.associate("deals", deal, "contacts", person, ("Lawyer",))
    done(connector.write([create("deal_contact", "x", {"classification": "bidder"}, deal=deal, company=seller)]))
    done(connector.write([create("deal_contact", "y", {"classification": "contacted"}, deal=deal, contact=person)]))
    ours = {"Propstreet prospect", "Bidder"}
    assert hub.associations("deals", deal, "companies") == {seller: {"Primary", "Seller", *ours}}
    assert hub.associations("deals", deal, "contacts") == {person: {"Lawyer", "Contacted"}}


def test_a_refused_association_is_not_sent_again_without_another_look(
    connector: HubSpotConnector, hub: HubSpotEmulator, deal: str, person: str
) -> None:
    """What is put on replaces what is there; so does what is taken off: what was put on meanwhile would go with it."""
    path = "associations/deals/contacts/batch/(create|archive)$"
    hub.faults.append(Fault(path=path, status=429, times=1))
    wish = create("deal_contact", "y", {"classification": "contacted"}, deal=deal, contact=person)
    (outcome,) = connector.write([wish])
    assert outcome.verdict is Verdict.DELAYED
    hub.associate("deals", deal, "contacts", person, ("Lawyer",))
    assert connector.find([wish]).keys() == {wish.key}
    done(connector.write([wish]))
    assert hub.associations("deals", deal, "contacts") == {person: {"Lawyer", "Contacted"}}
    hub.dissociate("deals", deal, "contacts", person, ("Lawyer",))
    id_ = f"{deal}:contact:{person}"
    hub.faults.append(Fault(path=path, status=429, times=1))
    (outcome,) = connector.write([change("delete", connector.read("deal_contact", [Address(id_, deal)])[id_])])
    assert outcome.verdict is Verdict.DELAYED
    hub.associate("deals", deal, "contacts", person, ("Lawyer",))
    done(connector.write([change("delete", connector.read("deal_contact", [Address(id_, deal)])[id_])]))
    assert hub.associations("deals", deal, "contacts") == {person: {"Lawyer"}}


def test_a_company_is_a_prospect_only_with_our_label(
    connector: HubSpotConnector, hub: HubSpotEmulator, deal: str
) -> None:
    seller, investor = (hub.add("companies", {"name": each}) for each in "AB")
    hub.associate("deals", deal, "companies", seller)
    write = create("deal_contact", "x", {"classification": "contacted"}, deal=deal, company=investor)
    record = done(connector.write([write]))
    assert record.id == f"{deal}:company:{investor}"
    assert hub.associations("deals", deal, "companies")[investor] == {"Propstreet prospect", "Contacted"}
    (page,) = pull(connector, "deal_contact", parents=(deal,))
    assert [each.id for each in page.records] == [record.id]
    done(connector.write([change("update", page.records[0], {"classification": "not_contacted"})]))
    assert hub.associations("deals", deal, "companies")[investor] == {"Propstreet prospect"}
    connector.write([change("delete", page.records[0])])
    assert hub.associations("deals", deal, "companies") == {seller: set()}


def test_twelve_hundred_contacts_of_one_deal_are_one_page(
    connector: HubSpotConnector, hub: HubSpotEmulator, deal: str
) -> None:
    ids = [hub.add("contacts", {"firstname": str(n)}) for n in range(1200)]
    for each in ids:
        hub.associate("deals", deal, "contacts", each)
    other = hub.add("deals", {"dealname": "B", "dealstage": "qualifiedtobuy"})
    (page,) = pull(connector, "deal_contact", parents=(deal, other))
    assert {each.refs["contact"] for each in page.records} == set(ids)
    assert set(page.complete_parents) == {deal, other}


def test_the_empty_answer_of_a_merged_deal_is_not_believed(
    connector: HubSpotConnector, hub: HubSpotEmulator, deal: str, person: str
) -> None:
    hub.associate("deals", deal, "contacts", person)
    other = hub.add("deals", {"dealname": "B", "dealstage": "qualifiedtobuy"})
    new = hub.merge("deals", deal, other)
    (page,) = pull(connector, "deal_contact", parents=(deal,))
    assert page.complete_parents == ()
    id_ = f"{deal}:contact:{person}"
    assert connector.read("deal_contact", [Address(id_, deal)])[id_].id == f"{new}:contact:{person}"


def test_an_association_answer_that_lost_its_rows_is_asked_again(
    connector: HubSpotConnector, hub: HubSpotEmulator, deal: str, person: str
) -> None:
    hub.associate("deals", deal, "contacts", person)
    hub.faults.append(Fault("POST", "deals/contacts/batch/read", "after", 200, {"results": []}))
    (page,) = pull(connector, "deal_contact", parents=(deal,))
    assert len(page.records) == 1


def test_a_prospect_of_a_missing_contact_holds_up_no_other(
    connector: HubSpotConnector, hub: HubSpotEmulator, deal: str, person: str
) -> None:
    writes = [create("deal_contact", each, {}, deal=deal, contact=each) for each in (person, "424242")]
    outcomes = {each.key: each.verdict for each in connector.write(writes)}
    assert outcomes == {"key-deal_contact-424242": Verdict.REJECTED, f"key-deal_contact-{person}": Verdict.DONE}


def test_a_lost_answer_about_labels_is_unknown_for_its_own_writes_only(
    hub: HubSpotEmulator, clock: ManualClock, deal: str, person: str, connector: HubSpotConnector
) -> None:
    company = hub.add("companies", {"name": "A"})
    connector.capabilities()
    hub.faults.append(Fault("POST", "deals/contacts/batch/create", "before", 503, times=4))
    writes = [
        create("deal_contact", "1", {"classification": "bidder"}, deal=deal, contact=person),
        create("deal_contact", "2", {"classification": "bidder"}, deal=deal, company=company),
    ]
    outcomes = {each.key: each.verdict for each in connector.write(writes)}
    assert outcomes == {"key-deal_contact-1": Verdict.UNKNOWN, "key-deal_contact-2": Verdict.DONE}
    assert set(connector.find(writes)) == {"key-deal_contact-2"}


# --- writing ------------------------------------------------------------------------------------


def test_one_poison_row_leaves_ninety_nine(connector: HubSpotConnector, hub: HubSpotEmulator, wire: StubWire) -> None:
    writes = [create("company", str(n), {"name": f"C{n}"}) for n in range(99)]
    writes.append(create("company", "bad", {"name": "x" * 65_537}))
    outcomes = {each.key: each for each in connector.write(writes)}
    assert Counter(each.verdict for each in outcomes.values()) == {Verdict.DONE: 99, Verdict.REJECTED: 1}
    assert "PROPERTY_VALUE_TOO_LONG" in outcomes["key-company-bad"].reason
    assert len(hub.all("companies")) == 99


def test_a_taken_email_refuses_the_batch_and_names_the_holder_alone(
    connector: HubSpotConnector, hub: HubSpotEmulator
) -> None:
    holder = hub.add("contacts", {"email": "one@example.com"})
    hub.edit("contacts", holder, {"hs_additional_emails": "two@example.com"})
    writes = [create("contact", "1", {"email": "two@example.com"}), create("contact", "2", {"first_name": "B"})]
    with pytest.raises(RejectedError):
        connector.write(writes)
    (outcome,) = connector.write(writes[:1])
    assert outcome.verdict is Verdict.EXISTS
    assert outcome.record is not None and outcome.record.id == holder
    assert outcome.record.values["other_emails"] == frozenset({"two@example.com"})


def test_an_email_held_by_something_in_the_bin_is_refused_and_not_tried_again(
    connector: HubSpotConnector, hub: HubSpotEmulator
) -> None:
    hub.bin_holds_values = True
    hub.archive("contacts", hub.add("contacts", {"email": "one@example.com"}))
    (outcome,) = connector.write([create("contact", "1", {"email": "one@example.com"})])
    assert (outcome.verdict, outcome.reason) == (Verdict.REJECTED, "CONFLICT: held by a record not to be read")


@pytest.mark.parametrize(
    "fault", [Fault("POST", "upsert", "drop"), Fault("POST", "upsert", "after", 502, "<html>bad gateway</html>")]
)
def test_an_upsert_whose_answer_was_lost_makes_no_twin(
    connector: HubSpotConnector, hub: HubSpotEmulator, fault: Fault
) -> None:
    """Nor is it sent again, which would undo what somebody edited meanwhile: it is found by the id that it carries."""
    write = create("deal", "d-1", {"name": "A"})
    hub.faults.append(fault)
    with pytest.raises(UnknownOutcomeError):
        connector.write([write])
    found = connector.find([write, create("deal", "d-2", {})])
    assert [record.id for record in found.values()] == list(hub.all("deals"))
    assert len(found) == 1


def test_an_answer_that_does_not_name_a_record_leaves_it_unknown(
    connector: HubSpotConnector, hub: HubSpotEmulator
) -> None:
    hub.faults.append(Fault("POST", "upsert", "after", 200, {"status": "COMPLETE", "results": []}))
    outcomes = connector.write([create("deal", each, {"name": "A"}) for each in "ab"])
    assert {each.verdict for each in outcomes} == {Verdict.UNKNOWN}


@pytest.mark.parametrize("verb", ["create", "update"])
def test_refused_rows_that_a_207_does_not_name_are_found(
    connector: HubSpotConnector, hub: HubSpotEmulator, verb: Verb
) -> None:
    """With several errors that name nobody, halves are sent until each refusal has its record; the rest stands."""
    hub.names_errors = False
    ids = {str(n): hub.add("companies", {"name": "C"}) for n in range(9)} if verb == "update" else {}
    texts = {str(n): "x" * 65_537 if n in (2, 7) else f"D{n}" for n in range(9)}
    old = {id_: Record("company", id_, {}) for id_ in ids.values()}
    writes = [
        change("update", old[ids[n]], {"name": text}) if ids else create("company", n, {"name": text})
        for n, text in texts.items()
    ]
    outcomes = connector.write(writes)
    assert Counter(each.verdict for each in outcomes) == {Verdict.DONE: 7, Verdict.REJECTED: 2}
    assert {each.key for each in outcomes} == {each.key for each in writes}
    assert sum(each["name"].startswith("D") for each in hub.all("companies").values()) == 7


@pytest.mark.parametrize("context", [{}, {"objectWriteTraceId": ["key-company-1"]}])
def test_a_207_of_errors_only_names_the_refused(
    connector: HubSpotConnector, hub: HubSpotEmulator, context: dict[str, list[str]]
) -> None:
    error = {"status": "error", "category": "VALIDATION_ERROR", "message": "secret value", "context": context}
    body = {"status": "COMPLETE", "results": [], "numErrors": 1, "errors": [error]}
    hub.faults.append(Fault("POST", "upsert", "before", 207, body))
    (outcome,) = connector.write([create("company", "1", {"name": "A"})])
    assert (outcome.verdict, outcome.reason) == (Verdict.REJECTED, "VALIDATION_ERROR")


def test_terse_answers_are_read_again_in_one_batch(clock: ManualClock, wire: StubWire) -> None:
    hub = HubSpotEmulator(now=clock, quota=False, is_prepared=True, is_terse=True)
    serve(hub)
    connector = connect(settings(hub), wire, clock)
    connector.capabilities()
    before = wire.total
    outcomes = connector.write(
        [create("contact", str(n), {"phone": "+46701234567", "first_name": "A"}) for n in range(9)]
    )
    assert wire.total - before == 2
    assert {each.record.values["phone"] for each in outcomes if each.record} == {"+46 70 123 4567"}
    shut(hub)


def test_an_update_sends_only_what_moved_and_clears_with_empty_text(
    connector: HubSpotConnector, hub: HubSpotEmulator
) -> None:
    id_ = hub.add("companies", {"name": "A", "website": "a.example", "propstreet_tags": "x"})
    record = connector.read("company", [Address(id_)])[id_]
    after = done(connector.write([change("update", record, {"homepage": None, "tags": frozenset({"y", "a;b"})})]))
    (call,) = hub.calls("POST", "companies/batch/update")
    assert call.body["inputs"][0]["properties"] == {"website": "", "propstreet_tags": "a,b;y"}
    assert dict(after.values) | {} == {**after.values, "homepage": None, "tags": frozenset({"y", "a,b"})}


def test_a_mark_is_written_and_a_taken_one_refused(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    one, two = (hub.add("companies", {"name": each}) for each in "AB")
    found = connector.read("company", [Address(one), Address(two)])
    assert done(connector.write([change("mark", found[one], counterpart="p-9")])).mark == "p-9"
    (outcome,) = connector.write([change("mark", found[two], counterpart="p-9")])
    assert outcome.verdict is Verdict.REJECTED and "CONFLICTING_UNIQUE_VALUE" in outcome.reason


def test_missing_and_archived_records_are_told_apart_from_refused_ones(
    connector: HubSpotConnector, hub: HubSpotEmulator
) -> None:
    id_ = hub.add("companies", {"name": "A"})
    record = connector.read("company", [Address(id_)])[id_]
    (outcome,) = connector.write([change("delete", record)])
    assert (outcome.verdict, outcome.record) == (Verdict.DONE, None)
    assert hub.get("companies", id_) is None
    (outcome,) = connector.write([change("update", record, {"name": "B"})])
    assert outcome.verdict is Verdict.MISSING


def test_an_option_that_does_not_exist_is_named_without_its_value(hub: HubSpotEmulator, clock: ManualClock) -> None:
    options = [{"label": "Open", "value": "o", "displayOrder": 0, "hidden": False}]
    hub.define("deals", "state", kind="enumeration", shape="select", options=options)
    choice = KindChoice(
        fields={"status": FieldChoice("state", {"open": "o", "closed": "c"})}, defaults={"dealtype": "n"}
    )
    connector = connect(settings(hub, deal=choice), StubWire(), clock)
    record = done(connector.write([create("deal", "1", {"name": "A", "status": "open"})]))
    assert record.values["status"] == "open"
    assert hub.all("deals")[record.id]["state"] == "o"
    assert hub.all("deals")[record.id]["dealtype"] == "n"
    (outcome,) = connector.write([change("update", record, {"status": "closed"})])
    assert (outcome.verdict, outcome.reason) == (Verdict.REJECTED, "VALIDATION_ERROR INVALID_OPTION state")


def test_watched_properties_come_with_each_record(hub: HubSpotEmulator, clock: ManualClock) -> None:
    connector = connect(settings(hub, contact=KindChoice(watch=("lifecyclestage",))), StubWire(), clock)
    id_ = hub.add("contacts", {"firstname": "A", "lifecyclestage": "customer"})
    assert connector.read("contact", [Address(id_)])[id_].native == {"lifecyclestage": "customer"}


# --- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504, 521, 522, 523, 524, 423])
def test_passing_trouble_passes(connector: HubSpotConnector, hub: HubSpotEmulator, wire: StubWire, status: int) -> None:
    hub.faults.append(Fault("GET", "objects/companies$", "before", status, "<html>busy</html>"))
    pull(connector, "company")
    (error,) = wire.errors
    assert isinstance(error, TransientError)
    assert (status != 423) == error.is_sent
    assert error.pause_seconds == (2.0 if status == 423 else None)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "<html>login</html>"),
        (202, {}),
        (204, None),
        (200, []),
        (200, {"no": "results"}),
        (302, None),
        (525, None),
        (400, "<html>"),
        (404, "<html>"),
    ],
)
def test_an_answer_that_the_contract_does_not_know_stops_the_connection(
    connector: HubSpotConnector, hub: HubSpotEmulator, status: int, body: object
) -> None:
    hub.faults.append(Fault("GET", "objects/companies$", "before", status, body))
    with pytest.raises(ContractError):
        pull(connector, "company")


@pytest.mark.parametrize(
    ("status", "body", "headers", "pause", "is_daily"),
    [
        (429, {"policyName": "TEN_SECONDLY_ROLLING"}, {}, 10.0, False),
        (429, {"policyName": "SECONDLY"}, {}, 1.0, False),
        (429, {"message": "You have reached your daily limit."}, {}, 53999.0, True),
        (429, {"policyName": "DAILY"}, {}, 53999.0, True),
        (429, None, {}, None, False),
        (429, None, {"Retry-After": "7"}, 7.0, False),
        (477, None, {"Retry-After": "86400"}, 86400.0, True),
        (477, None, {}, 86400.0, True),
    ],
)
def test_quotas_are_told_apart(
    connector: HubSpotConnector, hub: HubSpotEmulator, wire: StubWire,
    status: int, body: object, headers: dict[str, str], pause: float | None, is_daily: bool,
) -> None:  # fmt: skip
    connector.account()
    hub.faults.append(Fault("GET", "objects/companies$", "before", status, body, headers, times=9))
    with pytest.raises(RateLimitedError) as caught:
        pull(connector, "company")
    assert caught.value.is_daily is is_daily
    assert caught.value.is_growing is not (is_daily or "Retry-After" in headers)
    assert caught.value.pause_seconds == (pause if pause is None else pytest.approx(pause, abs=2))
    assert len(hub.calls("GET", "objects/companies$")) == (1 if is_daily else 4)


def test_the_quota_that_is_left_is_reported(clock: ManualClock, wire: StubWire) -> None:
    hub = HubSpotEmulator(now=clock, is_prepared=True)
    serve(hub)
    connector = connect(settings(hub), wire, clock)
    quotas = {each.bucket: (each.calls, each.seconds) for each in connector.capabilities().quotas}
    assert quotas == {"default": (100, 10), "search": (5, 1), "associations": (100, 10)}
    assert wire.seen[0] == ("default", 99, 10.0)
    for _ in range(5):
        pull(connector, "deal", watermarks={"deal": "2026-11-20T08:00:00Z"})
    with pytest.raises(RateLimitedError) as caught:
        pull(connector, "deal", watermarks={"deal": "2026-11-20T08:00:00Z"})
    assert caught.value.bucket == "search"
    shut(hub)


def test_a_server_that_is_not_there_got_nothing(clock: ManualClock) -> None:
    secret = {"access_token": Secret(lambda: "x")}
    connector = connect(ConnectionSettings("hs", "http://127.0.0.1:9", None, secret, "hubspot"), StubWire(), clock)
    with pytest.raises(TransientError) as caught:
        connector.account()
    assert not caught.value.is_sent


def test_a_rotated_token_is_taken_up_in_flight(hub: HubSpotEmulator, clock: ManualClock) -> None:
    tokens = iter(["pat-eu1-emulated", "pat-new", "pat-new"])
    auth = {"access_token": Secret(lambda: next(tokens))}
    connector = connect(ConnectionSettings("hs", hub.url, None, auth, "hubspot"), StubWire(), clock)
    hub.revoke("pat-eu1-emulated")
    hub.allow("pat-new")
    assert connector.account().id == "47110815"


def test_a_token_that_is_wrong_says_so_without_being_shown(hub: HubSpotEmulator, clock: ManualClock) -> None:
    auth = {"access_token": Secret(lambda: "pat-wrong")}
    connector = connect(ConnectionSettings("hs", hub.url, None, auth, "hubspot"), StubWire(), clock)
    with pytest.raises(AuthError) as caught:
        connector.account()
    assert "pat-wrong" not in str(caught.value)


def test_oauth_tokens_are_renewed_early_and_after_a_401(clock: ManualClock, wire: StubWire) -> None:
    hub = HubSpotEmulator(now=clock, quota=False, is_oauth=True, is_prepared=True)
    serve(hub)
    connector = connect(settings(hub), wire, clock)
    connector.capabilities()
    assert len(hub.calls("POST", "token")) == 1
    clock.advance(1500)
    pull(connector, "company")
    assert len(hub.calls("POST", "token")) == 2
    hub.revoke()
    pull(connector, "company")
    assert len(hub.calls("POST", "token")) == 3
    assert [call.status for call in hub.log if call.status == 401] == [401]
    assert connector.capabilities().quotas[0].calls == 110
    hub.auth = {**hub.auth, "refresh_token": "revoked"}
    hub.revoke()
    with pytest.raises(AuthError):
        pull(connector, "company")
    shut(hub)


def test_errors_carry_no_values(connector: HubSpotConnector, hub: HubSpotEmulator) -> None:
    holder = hub.add("contacts", {"email": "private@example.com"})
    writes = [create("contact", each, {"email": "private@example.com", "first_name": "Sec"}) for each in "ab"]
    with pytest.raises(RejectedError) as caught:
        connector.write(writes)
    assert "private" not in repr(caught.value) and holder not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_least_calls_are_those_of_the_contract(connector: HubSpotConnector) -> None:
    tally = Tally(
        True, {"deal": 10_000, "contact": 15_000}, {"deal_contact": 10_000}, {("deal_contact", "create"): 4000}, {}
    )
    assert connector.least_calls(tally) == 7 + 100 + 150 + 20 + 2
    assert connector.least_calls(Tally(False, {"deal": 0, "contact": 0, "company": 0}, {}, {}, {})) == 3


def test_what_comes_back_can_be_stored(connector: HubSpotConnector) -> None:
    record = done(connector.write([create("deal", "d-1", DEAL)]))
    assert freeze(record.values)["amount"] == {"$": "money", "amount": "1500000.5", "currency": "EUR"}
