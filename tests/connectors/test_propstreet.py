"""The Propstreet connector against its emulator, over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, TypeVar

import httpx
import pytest

from connectors.propstreet.connector import PropstreetConnector, connect
from connectors.propstreet.emulator import API, PropstreetEmulator
from connectors.propstreet.fields import Setup, price, record
from syncd.connector import (
    ConnectionSettings,
    KindChoice,
    Outcome,
    Page,
    Parent,
    Pull,
    Repeat,
    Secret,
    Tally,
    Verdict,
    Write,
)
from syncd.core.mapping import UnfitValueError
from syncd.core.model import FIELDS, KINDS, Address, Money, Record, Value, Verb
from syncd.errors import (
    AuthError,
    ConfigError,
    ContractError,
    DelayedError,
    RateLimitedError,
    TransientError,
    UnknownOutcomeError,
)
from syncd.testing.emulator import Fault, ManualClock

T = TypeVar("T")


class PlainWire:
    """Repeats what may be repeated, never waits, counts, and moves the clock where a vendor asks for patience."""

    def __init__(self, clock: ManualClock, patience: int = 3):
        self.clock = clock
        self.patience = patience
        self.calls = 0
        self.pauses: list[float | None] = []
        self.observed: list[int] = []

    def call(
        self,
        exchange: Callable[[], T],
        *,
        effect: Literal["read", "write"],
        bucket: str = "default",
        repeat: Repeat = "always",
    ) -> T:
        for attempt in range(self.patience):
            self.calls += 1
            try:
                return exchange()
            except RateLimitedError as exc:
                self.pauses.append(exc.pause_seconds)
                self.clock.advance(exc.pause_seconds or 60)
                if attempt == self.patience - 1:
                    raise
            except TransientError as exc:
                if exc.is_sent and repeat != "always":
                    raise UnknownOutcomeError(str(exc)) from exc
                if repeat == "never" and not (isinstance(exc, RateLimitedError) and exc.is_daily):
                    raise DelayedError(str(exc)) from exc
                if attempt == self.patience - 1:
                    raise
        raise AssertionError("unreachable")

    def observe(self, bucket: str, *, remaining: int, reset_seconds: float) -> None:
        self.observed.append(remaining)


class World:
    """One emulated account and a connector on it."""

    def __init__(self, **choices: Any):
        self.clock = ManualClock(tick_seconds=0.001)
        settings = {"quota": False} | choices
        self.emulator = PropstreetEmulator(now=self.clock, **settings)
        self.emulator.start()
        self.wire = PlainWire(self.clock)
        self.connector = self.connect()

    def close(self) -> None:
        """Let go without waiting for the server to notice."""
        self.connector.close()
        threading.Thread(target=self.emulator.stop, daemon=True).start()

    def connect(self, **changes: Any) -> PropstreetConnector:
        facts: dict[str, Any] = {
            "name": "propstreet",
            "base_url": self.emulator.url,
            "login_url": None,
            "auth": {name: _secret(text) for name, text in self.emulator.auth.items()},
            "namespace": "hubspot",
        } | changes
        return connect(ConnectionSettings(**facts), self.wire, self.clock)

    def pull(self, kind: str, watermark: str | None = None, **facts: Any) -> list[Page]:
        return list(self.connector.pull(Pull((kind,), {kind: watermark}, **facts)))

    def one(self, kind: str, id_: str, parent: str | None = None) -> Record:
        return self.connector.read(kind, [Address(id_, parent)])[id_]

    def children(self, project: str, watermark: str | None = None, *, is_sweep: bool = False) -> list[Page]:
        request = Pull(
            ("deal_contact",), {"deal_contact": None}, parents=lambda: [Parent(project, watermark)], is_sweep=is_sweep
        )
        return list(self.connector.pull(request))

    def paths(self, since: int = 0) -> list[str]:
        return [f"{call.method} {call.path.removeprefix(API)}" for call in self.emulator.log[since:]]

    def person(self, **fields: Any) -> str:
        return self.emulator.add("contacts", {"firstName": "Ada"} | fields)

    def project(self, **fields: Any) -> str:
        return self.emulator.add("projects", {"name": "Kvarnen"} | fields)


def _secret(text: str) -> Secret:
    return Secret(lambda: text)


@pytest.fixture
def world() -> Iterator[World]:
    with_defaults = World()
    yield with_defaults
    with_defaults.close()


@pytest.fixture
def worlds() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**choices: Any) -> World:
        made.append(World(**choices))
        return made[-1]

    yield make
    for each in made:
        each.close()


def records(pages: Sequence[Page]) -> dict[str, Record]:
    return {record.id: record for page in pages for record in page.records}


def write(
    kind: str,
    verb: Verb,
    values: Mapping[str, Value] | None = None,
    record: Record | None = None,
    counterpart: str | None = None,
    refs: Mapping[str, str] | None = None,
    key: str = "key-1",
) -> Write:
    return Write(
        key=key,
        kind=kind,
        verb=verb,
        address=Address(record.id, record.parent) if record is not None else None,
        counterpart=counterpart,
        values=values or {},
        refs=refs if refs is not None else record.refs if record is not None else {},
        version=record.version if record is not None else None,
        modified_at=record.modified_at if record is not None else None,
        opaque=record.opaque if record is not None else {},
    )


def sent(world: World, *writes: Write) -> list[Outcome]:
    outcomes = {outcome.key: outcome for outcome in world.connector.write(writes)}
    assert set(outcomes) == {each.key for each in writes}
    return [outcomes[each.key] for each in writes]


def done(outcome: Outcome) -> Record:
    assert outcome.verdict is Verdict.DONE, outcome
    assert outcome.record is not None
    return outcome.record


# --- set-up -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        ({}, "give either client_id"),
        ({"client_id": "x"}, "client_secret is missing"),
        ({"secret": "x"}, "unknown key 'secret'"),
        ({"token": "x", "client_id": "y"}, "give either"),
    ],
)
def test_missing_or_unknown_auth_keys_are_refused_with_their_name(
    world: World, auth: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        world.connect(auth={name: _secret(text) for name, text in auth.items()})


@pytest.mark.parametrize("url", ["ftp://x", "http://app.propstreet.com", "nonsense", "https://user@host"])
def test_a_base_url_that_would_leak_the_token_is_refused(world: World, url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        world.connect(base_url=url)


def test_the_account_has_a_stable_id_that_shows_no_secret(world: World) -> None:
    first, second = world.connector.account(), world.connect().account()
    assert first.id == second.id
    assert "emulated" not in first.id
    assert world.connector.check() == ()
    assert "POST /openid/token" in world.paths()


def test_a_wrong_secret_stops_the_connection_and_is_not_named(world: World) -> None:
    auth = {"client_id": _secret("client-emulated"), "client_secret": _secret("hunter2")}
    with pytest.raises(AuthError) as caught:
        world.connect(auth=auth).account()
    assert "hunter2" not in str(caught.value)


def test_a_personal_token_is_used_as_it_is_and_has_a_tenth_of_the_quota(worlds: Callable[..., World]) -> None:
    world = worlds(is_personal=True)
    world.connector.account()
    assert world.connector.capabilities().quotas[0].calls == 60
    assert world.paths() == ["GET /projects"]


def test_a_token_is_renewed_before_it_expires_and_once_after_a_401(worlds: Callable[..., World]) -> None:
    world = worlds(token_seconds=1000)
    world.connector.account()
    world.clock.advance(790)
    world.connector.account()
    assert len(world.emulator.calls("POST", "token")) == 1
    world.clock.advance(20)
    world.connector.account()
    assert len(world.emulator.calls("POST", "token")) == 2
    world.emulator.expire_tokens()
    id_ = world.person()
    assert world.one("contact", id_).id == id_
    assert len(world.emulator.calls("POST", "token")) == 3
    world.emulator.faults.append(Fault(path="/projects", status=401, times=9))
    with pytest.raises(AuthError):
        world.connector.account()


def test_capabilities_name_all_fields_and_only_what_may_be_written(world: World) -> None:
    found = world.connector.capabilities()
    assert {kind: set(each.fields) for kind, each in found.kinds.items()} == {k: set(FIELDS[k]) for k in KINDS}
    writable = {name for name, each in found.kinds["deal"].fields.items() if each.is_writable}
    assert writable == {"name", "amount", "exclusivity", "asset_type", "property_count"}
    assert not found.kinds["deal_contact"].fields["tags"].is_writable
    assert found.kinds["employment"].fields["is_primary"].is_creatable


# --- reading ------------------------------------------------------------------------------


def test_a_listing_is_whole_and_says_which_page_is_the_last(worlds: Callable[..., World]) -> None:
    world = worlds(page_cap=2)
    ids = [world.person(lastName=str(at)) for at in range(5)]
    world.emulator.remove("contacts", ids[0])
    pages = world.pull("contact")
    assert [page.is_last for page in pages] == [False, False, True]
    assert all(page.is_listing for page in pages)
    assert set(records(pages)) == set(ids)
    assert records(pages)[ids[0]].is_deleted
    queries = [dict(call.query) for call in world.emulator.calls("GET", "contacts$")]
    assert all(each["include_deleted"] == "true" and each["page_size"] == "500" for each in queries)
    assert pages[-1].clock == world.emulator.get("contacts", ids[4])["updatedUtc"] or pages[-1].clock is not None


def test_an_empty_account_still_ends_its_listing(world: World) -> None:
    for kind in ("company", "contact", "employment", "deal"):
        pages = world.pull(kind)
        assert [(page.is_listing, page.is_last, page.records) for page in pages] == [(True, True, ())]


def test_a_delta_asks_from_the_watermark_less_the_overlap_with_all_params_on_every_page(
    worlds: Callable[..., World],
) -> None:
    world = worlds(page_cap=1, flat_envelope=True, omit_nulls=False)
    for at in range(3):
        world.person(lastName=str(at))
    world.pull("contact", "2026-11-20T08:00:00.1234567Z")
    queries = [dict(call.query) for call in world.emulator.calls("GET", "contacts$")]
    assert [each["updated_since"] for each in queries] == ["2026-11-20T07:55:00.123456Z"] * 3
    assert [("cursor" in each) for each in queries] == [False, True, True]
    world.pull("contact", "2026-11-20T08:00:00Z", is_deep=True)
    assert dict(world.emulator.log[-1].query)["updated_since"] == "2026-11-20T06:00:00.000000Z"


def test_a_late_commit_with_an_earlier_time_is_seen_by_the_next_delta(world: World) -> None:
    world.emulator.late(60)
    late = world.person(lastName="Late")
    world.emulator.late(0)
    world.person(lastName="Prompt")
    pages = world.pull("contact")
    assert late not in records(pages)
    world.clock.advance(120)
    assert late in records(world.pull("contact", pages[-1].clock))


@pytest.mark.parametrize(
    "body",
    [
        {"data": [], "page": {"hasMore": True, "nextCursor": None}},
        {"data": [], "page": {"hasMore": True, "nextCursor": "again"}},
        {"data": []},
        {"hasMore": False},
        {},
        "<html>maintenance</html>",
    ],
)
def test_a_listing_without_a_clear_end_stops_the_connection(world: World, body: Any) -> None:
    world.emulator.faults.append(Fault(path="/companies", status=200, body=body, times=9))
    with pytest.raises(ContractError):
        world.pull("company")


@pytest.mark.parametrize("status", [301, 302, 404, 400])
def test_a_page_for_people_or_a_redirect_deletes_nothing(world: World, status: int) -> None:
    id_ = world.person()
    world.emulator.faults.append(
        Fault(path="contacts/", status=status, body="<html></html>", headers={"Location": "https://elsewhere"}, times=9)
    )
    with pytest.raises(ContractError):
        world.one("contact", id_)


@pytest.mark.parametrize("omit_nulls", [True, False])
def test_people_and_companies_read_the_same_with_nulls_and_without(
    worlds: Callable[..., World], omit_nulls: bool
) -> None:
    world = worlds(omit_nulls=omit_nulls)
    world.emulator.ids_as_numbers = True
    company = world.emulator.add(
        "companies",
        {
            "name": "Kvarn AB",
            "domain": "WWW.Kvarn.se",
            "countryCode": "se",
            "tags": ["b", "a"],
            "externalRefs": [
                {"namespace": "Org_Number", "id": "556677-8899"},
                {"namespace": "HubSpot", "id": "4711"},
                {"namespace": "lime", "id": "9"},
            ],
        },
    )
    record = records(world.pull("company"))[company]
    assert record.values == {
        "name": "Kvarn AB",
        "domain": "kvarn.se",
        "homepage": None,
        "country": "SE",
        "org_number": "556677-8899",
        "linkedin": None,
        "strategy": None,
        "tags": frozenset({"a", "b"}),
    }
    assert record.mark == "4711"
    assert {"namespace": "lime", "id": "9"} in list(record.opaque["refs"])  # type: ignore[arg-type]  # a list
    contact = world.person(
        email="Ada@Kvarn.SE",
        emails=[{"address": "ada@kvarn.se", "type": "work"}, {"address": "ADA@home.se", "type": "personal"}],
        phone="070-123 45 67",
        primaryLanguage="SV",
    )
    person = records(world.pull("contact"))[contact]
    assert person.values == {
        "first_name": "Ada",
        "last_name": None,
        "email": "ada@kvarn.se",
        "other_emails": frozenset({"ada@home.se"}),
        "phone": "+46701234567",
        "linkedin": None,
        "language": "sv",
        "strategy": None,
        "tags": None,
    }
    link = world.emulator.add("links", {"contactId": contact, "companyId": company, "jobTitle": "VD"})
    employment = records(world.pull("employment"))[link]
    assert employment.values == {"job_title": "VD"}
    assert employment.refs == {"contact": contact, "company": company}
    world.emulator.link_shows_primary = True
    world.emulator.edit("links", link, {"isPrimary": True})
    assert world.one("employment", link).values == {"job_title": "VD", "is_primary": True}


@pytest.mark.parametrize("numbers_as_text", [True, False])
def test_a_project_reads_as_a_deal(world: World, numbers_as_text: bool) -> None:
    world.emulator.numbers_as_text = numbers_as_text
    id_ = world.project(
        asset={"type": "portfolio", "propertyCount": 5},
        price={"value": 150.5, "currency": "SEK", "scale": "millions"},
        priceRange={"min": 100, "max": 200, "currency": "SEK", "scale": "millions"},
        exclusivity="exclusive",
        classification="active",
        teaser={"stage": "published", "publishedUtc": "2026-01-14T09:00:00.1234567Z"},
    )
    record = records(world.pull("deal"))[id_]
    nothing = {name for name, value in record.values.items() if value is None}
    assert {name: value for name, value in record.values.items() if value is not None} == {
        "name": "Kvarnen",
        "amount": Money(Decimal("150500000"), "SEK"),
        "stage": "published",
        "status": "open",
        "classification": "active",
        "exclusivity": "exclusive",
        "asset_type": "portfolio",
        "property_count": Decimal(5),
        "published_at": datetime(2026, 1, 14, 9, 0, 0, 123456, tzinfo=UTC),
    }
    assert "property_name" in nothing
    assert "verified_at" in nothing


def test_the_deprecated_mandate_is_read_where_there_is_nothing_newer(world: World) -> None:
    world.emulator.exclusivity = "ignored"
    id_ = world.project(exclusivity="other")
    assert "exclusivity" not in world.emulator.get("projects", id_)
    assert world.one("deal", id_).values["exclusivity"] == "other"


@pytest.mark.parametrize(("buyer", "stage"), [(None, "absent"), ("none", "absent"), ("external", "won"), ("77", "won")])
def test_closed_is_won_only_with_a_buyer_and_locks_the_deal(world: World, buyer: str | None, stage: str) -> None:
    id_ = world.project(teaser={"stage": "communicated"})
    world.emulator.close_project(id_, buyer)
    record = records(world.pull("deal"))[id_]
    assert record.values.get("stage", "absent") == stage
    assert record.values["status"] == "closed"
    assert record.locked == {"*": "closed in Propstreet"}


def test_a_word_that_is_not_documented_says_nothing(world: World) -> None:
    id_ = world.project(teaser={"stage": "auctioned"}, classification="paused", asset={"type": "island"})
    record = records(world.pull("deal"))[id_]
    assert not {"stage", "classification", "asset_type"} & set(record.values)


def test_a_record_that_cannot_be_read_is_refused_and_holds_up_nobody(world: World) -> None:
    good = world.person()
    bad = world.person(strategy="x" * 70_000)
    worse = world.person(strategy={"not": "a text"})
    page = world.pull("contact")[0]
    assert [record.id for record in page.records] == [good]
    assert {refusal.id for refusal in page.refused} == {bad, worse}
    assert page.clock == world.emulator.get("contacts", worse)["updatedUtc"]
    assert bad not in world.connector.read("contact", [Address(bad)])
    number = world.project(price={"value": "lots", "currency": "SEK"})
    assert [refusal.id for refusal in world.pull("deal")[0].refused] == [number]


@pytest.mark.parametrize("name", ["\ud800", "ok"])
def test_text_that_no_database_takes_is_refused(name: str) -> None:
    row = {"id": "1", "name": name, "externalRefs": [{"namespace": "x", "id": "a"}]}
    setup = Setup("hubspot", "org_number")
    if name == "ok":
        assert record(setup, "company", row).values["name"] == "ok"
        row["externalRefs"] = [{"namespace": "x", "id": "\x00"}]
    with pytest.raises(UnfitValueError):
        record(setup, "company", row)


def test_an_id_that_could_escape_from_a_url_is_refused_by_its_shape_only(world: World) -> None:
    row = {"id": "../../auth/clients", "updatedUtc": "2026-01-01T00:00:00Z", "etag": 'W/"a"'}
    body = {"data": [row], "page": {"hasMore": False}}
    world.emulator.faults.append(Fault(path="/contacts", status=200, body=body))
    page = world.pull("contact")[0]
    assert page.records == ()
    assert page.refused[0].id == "unsafe-id"


def test_watched_native_fields_come_along(world: World) -> None:
    id_ = world.project(classification="active")
    world.connector = world.connect(kinds={"deal": KindChoice(watch=("classification", "status", "absent"))})
    assert world.one("deal", id_).native == {"classification": "active", "status": "open", "absent": None}


# --- prospects ----------------------------------------------------------------------------


def test_prospects_name_a_contact_or_a_company_or_nobody(world: World) -> None:
    project, person = world.project(), world.person(tags=["vip"])
    company = world.emulator.add("companies", {"name": "Kvarn AB"})
    world.emulator.add("links", {"contactId": person, "companyId": company, "isPrimary": True})
    deadline = datetime(2026, 12, 1, tzinfo=UTC)
    by_hand = world.emulator.add("prospects", {"companyId": company}, parent=project)
    matched, unknown = world.emulator.communicate(project, [person, None], deadline)
    world.emulator.accept(matched)
    world.emulator.classify(matched, "interested")
    [page] = world.children(project)
    found = records([page])
    assert page.complete_parents == (project,)
    assert page.parent == project
    assert found[by_hand].refs == {"deal": project, "company": company}
    assert found[matched].refs == {"deal": project, "contact": person}
    assert found[unknown].refs == {"deal": project}
    assert found[by_hand].values == {
        "classification": "not_contacted",
        "tags": None,
        "accepted_at": None,
        "deadline_at": None,
    }
    assert found[matched].values["classification"] == "interested"
    assert found[matched].values["tags"] == frozenset({"vip"})
    assert found[matched].values["deadline_at"] == deadline
    assert found[matched].values["accepted_at"] is not None


def test_prospects_are_read_by_their_projects_own_watermark(worlds: Callable[..., World]) -> None:
    world = worlds(page_cap=2)
    project = world.project()
    people = [world.person(lastName=str(at)) for at in range(5)]
    ids = [world.emulator.add("prospects", {"contactId": each}, parent=project) for each in people]
    [whole] = world.children(project)
    assert [record.id for record in whole.records] == ids
    world.clock.advance(1000)
    world.emulator.remove("prospects", ids[0])
    world.emulator.classify(ids[1], "bidder")
    pages = world.children(project, whole.clock)
    assert set(records(pages)) == {ids[0], ids[1], ids[4]} | set(ids[2:4])
    assert records(pages)[ids[0]].is_deleted
    assert not any(page.complete_parents for page in pages)
    assert [page.is_last for page in pages][-1]
    world.clock.advance(1000)
    assert set(records(world.children(project, pages[-1].clock))) == {ids[0], ids[1]}
    assert world.children(project, pages[-1].clock, is_sweep=True)[0].complete_parents == (project,)


def test_a_project_that_is_gone_says_nothing_of_its_prospects(world: World) -> None:
    project = world.project()
    world.emulator.remove("projects", project)
    [page] = world.children(project)
    assert (page.records, page.complete_parents, page.is_last) == ((), (), True)


# --- properties ---------------------------------------------------------------------------


def _property(world: World, name: str = "Kvarnen 1") -> str:
    fields = {
        "name": name,
        "location": {"locality": "Malmö", "country": "se", "latitude": 55.6, "longitude": 13.0},
        "categories": ["office", "retail"],
        "tenure": "freehold",
        "yearBuilt": "1931",
        "parcelArea": {"value": 1200.5, "unit": "sqm"},
    }
    return world.emulator.add("properties", fields)


def test_a_listing_of_deals_lists_the_properties_once(worlds: Callable[..., World]) -> None:
    world = worlds(page_cap=2)
    properties = [_property(world) for _ in range(2)]
    bare = world.project(properties=[properties[0]])
    linked = world.project(properties=[{"id": properties[1]}])
    none = [world.project() for _ in range(3)]
    pages = world.pull("deal")
    found = records(pages)
    assert len(world.emulator.calls("GET", "properties")) == 1
    for id_ in (bare, linked):
        assert found[id_].values["property_location"] == "Malmö"
        assert found[id_].values["property_country"] == "SE"
        assert found[id_].values["property_categories"] == frozenset({"office", "retail"})
        assert found[id_].values["property_year_built"] == Decimal(1931)
        assert found[id_].values["property_area_sqm"] == Decimal("1200.5")
    assert found[bare].opaque["property"] == properties[0]
    assert found[none[0]].values["property_name"] is None


def test_a_delta_reads_deals_again_whose_property_moved_and_leaves_the_others_alone(world: World) -> None:
    moved, still, third = _property(world), _property(world), _property(world, "Tredje")
    holder, other = world.project(properties=[moved]), world.project(properties=[still])
    world.clock.advance(1000)
    world.project()
    watermark = world.pull("deal")[-1].clock
    held = {moved: holder, still: other}

    def holders(key: str, ids: Sequence[str]) -> list[Address]:
        assert key == "property"
        return [Address(held[each]) for each in ids if each in held]

    world.clock.advance(1000)
    world.emulator.edit("properties", moved, {"name": "Kvarnen 2"})
    pages = world.pull("deal", watermark, holders=holders)
    found = records(pages)
    assert found[holder].values["property_name"] == "Kvarnen 2"
    assert other not in found
    clock = max(page.clock or "" for page in pages)
    world.clock.advance(1000)
    before = len(world.emulator.log)
    assert records(world.pull("deal", clock, holders=holders)).keys() <= {holder}
    world.clock.advance(1000)
    world.emulator.edit("projects", other, {"name": "Ny"})
    found = records(world.pull("deal", clock, holders=holders))
    assert "property_name" not in found[other].values
    world.emulator.edit("projects", other, {"properties": [third]})
    found = records(world.pull("deal", clock, holders=holders))
    assert found[other].values["property_name"] == "Tredje"
    assert f"GET /projects/{other}/properties" in world.paths(before)


def test_very_many_deals_of_moved_properties_are_listed_and_not_read_one_by_one(world: World) -> None:
    property_ = _property(world)
    holders = [Address(world.project(properties=[property_])) for _ in range(21)]
    world.clock.advance(1000)
    world.project()
    watermark = world.pull("deal")[-1].clock
    world.clock.advance(1000)
    world.emulator.edit("properties", property_, {"name": "Ny"})
    before = len(world.emulator.log)
    pages = world.pull("deal", watermark, holders=lambda key, ids: holders)
    found = records(pages)
    assert {found[each.id].values["property_name"] for each in holders} == {"Ny"}
    assert pages[-1].clock == world.emulator.get("properties", property_)["updatedUtc"]
    assert [path for path in world.paths(before) if "token" not in path] == [
        "GET /properties",
        "GET /projects",
        "GET /projects",
    ]


def test_an_account_without_properties_says_nothing_of_them(world: World) -> None:
    property_ = _property(world)
    id_ = world.project(properties=[property_])
    world.emulator.has_properties = False
    pages = world.pull("deal")
    assert "property_name" not in records(pages)[id_].values
    assert "property_name" not in records(world.pull("deal", pages[-1].clock))[id_].values


# --- reading by id ------------------------------------------------------------------------


def test_what_is_gone_reads_as_a_tombstone_after_a_second_look(world: World) -> None:
    project, person = world.project(), world.person()
    prospect = world.emulator.add("prospects", {"contactId": person}, parent=project)
    for collection, id_ in (("prospects", prospect), ("contacts", person)):
        world.emulator.remove(collection, id_)
    assert world.one("contact", person).is_deleted
    found = world.one("deal_contact", prospect, project)
    assert found.is_deleted
    assert found.refs == {"deal": project, "contact": person}
    assert "GET /projects/" + project + "/prospects" in world.paths()
    assert world.one("deal_contact", "424242", project).is_deleted


def test_a_404_of_a_moment_is_no_deletion(world: World) -> None:
    person = world.person()
    problem = {"title": "Not found"}
    world.emulator.faults.append(Fault(path="contacts/", status=404, body=problem))
    assert not world.one("contact", person).is_deleted


def test_many_prospects_of_one_project_are_read_by_one_listing(world: World) -> None:
    project = world.project()
    ids = [world.emulator.add("prospects", {"contactId": world.person()}, parent=project) for _ in range(7)]
    world.connector.account()
    before = len(world.emulator.log)
    found = world.connector.read("deal_contact", [Address(id_, project) for id_ in ids])
    assert set(found) == set(ids)
    assert len(world.emulator.log) - before == 1


# --- creating -----------------------------------------------------------------------------


def test_a_contact_is_created_with_our_ref_and_an_idempotency_key(world: World) -> None:
    values: dict[str, Value] = {
        "first_name": "Ada",
        "email": "ada@kvarn.se",
        "phone": "070-123 45 67",
        "tags": frozenset({"b", "a"}),
        "language": "sv",
    }
    record = done(sent(world, write("contact", "create", values, counterpart="c/1 %2F"))[0])
    assert record.values["phone"] == "+46701234567"
    assert record.mark == "c/1 %2F"
    assert record.version is not None
    call = world.emulator.calls("POST", "contacts")[0]
    assert call.headers["idempotency-key"] == "key-1"
    assert call.body == {
        "firstName": "Ada",
        "email": "ada@kvarn.se",
        "phone": "070-123 45 67",
        "tags": ["a", "b"],
        "primaryLanguage": "sv",
        "externalRefs": [{"namespace": "hubspot", "id": "c/1 %2F"}],
    }
    found = world.connector.find([write("contact", "create", values, counterpart="c/1 %2F")])
    assert found["key-1"].id == record.id


def test_a_company_a_link_and_a_deal_are_created(world: World) -> None:
    company = done(
        sent(
            world,
            write(
                "company",
                "create",
                {"name": "Kvarn AB", "homepage": "https://www.kvarn.se/om", "domain": "kvarn.se"},
                counterpart="7",
            ),
        )[0]
    )
    assert "domain" not in world.emulator.log[-1].body
    assert company.values["domain"] == "kvarn.se"
    assert set(company.locked) == {"domain"}
    contact = world.person()
    refs = {"contact": contact, "company": company.id}
    link = done(sent(world, write("employment", "create", {"job_title": "VD"}, refs=refs, counterpart="8"))[0])
    assert link.refs == refs
    assert "externalRefs" not in world.emulator.log[-1].body
    values: dict[str, Value] = {
        "name": "Kvarnen",
        "amount": Money(Decimal("150500000"), "SEK"),
        "exclusivity": "exclusive",
        "asset_type": "portfolio",
        "property_count": Decimal(3),
    }
    deal = done(sent(world, write("deal", "create", values, counterpart="9"))[0])
    assert {name: deal.values[name] for name in values} == values
    assert deal.mark == "9"
    creates = {
        "company": write("company", "create", counterpart="7", key="a"),
        "deal": write("deal", "create", counterpart="9", key="b"),
        "employment": write("employment", "create", refs=refs, key="c"),
    }
    for kind, each in creates.items():
        assert world.connector.find([each])[each.key].kind == kind


def test_a_create_that_lacks_a_name_is_refused_before_it_is_sent(world: World) -> None:
    [outcome] = sent(world, write("deal", "create", {"name": None}))
    assert outcome.verdict is Verdict.REJECTED
    assert world.emulator.log == []


@pytest.mark.parametrize("when", ["after", "drop"])
def test_a_create_with_a_lost_answer_is_never_sent_again_and_is_found(world: World, when: Any) -> None:
    world.emulator.faults.append(Fault("POST", "contacts", when=when, status=502))
    create = write("contact", "create", {"first_name": "Ada"}, counterpart="1")
    [outcome] = sent(world, create)
    assert outcome.verdict is Verdict.UNKNOWN
    assert len(world.emulator.calls("POST", "contacts")) == 1
    found = world.connector.find([create])
    assert found["key-1"].mark == "1"
    assert world.connector.find([write("contact", "create", counterpart="2")]) == {}


def test_a_create_refused_as_a_double_adopts_what_stands_there(world: World) -> None:
    ref = [{"namespace": "HubSpot", "id": "1"}]
    same = {
        "contact": world.person(email="ada@kvarn.se"),
        "company": world.emulator.add("companies", {"name": "Kvarn AB", "externalRefs": ref}),
        "deal": world.project(externalRefs=ref),
    }
    values: dict[str, dict[str, Value]] = {
        "contact": {"first_name": "Ada", "email": "ADA@kvarn.se"},
        "company": {"name": "Annan"},
        "deal": {"name": "Annan"},
    }
    for kind, id_ in same.items():
        [outcome] = sent(world, write(kind, "create", values[kind], counterpart="1"))
        assert outcome.verdict is Verdict.EXISTS, kind
        assert outcome.record is not None
        assert outcome.record.id == id_
        assert outcome.record.version is not None


def test_another_record_answered_to_a_create_is_one_that_stood_there(world: World) -> None:
    row = world.emulator.get("contacts", world.person(firstName="Eva", email="ada@kvarn.se"))
    world.emulator.faults.append(Fault("POST", "contacts", status=200, body=row))
    [outcome] = sent(world, write("contact", "create", {"first_name": "Ada", "email": "ada@kvarn.se"}, counterpart="1"))
    assert outcome.verdict is Verdict.EXISTS


def test_a_deleted_holder_of_our_ref_does_not_stand_in_the_way(world: World) -> None:
    ref = [{"namespace": "hubspot", "id": "1"}]
    contact = world.person(externalRefs=ref)
    company = world.emulator.add("companies", {"name": "Kvarn AB", "externalRefs": ref})
    project = world.project(externalRefs=ref)
    for collection, id_ in (("contacts", contact), ("companies", company), ("projects", project)):
        world.emulator.remove(collection, id_)
    revived = done(sent(world, write("contact", "create", {"first_name": "Ada", "last_name": "B"}, counterpart="1"))[0])
    assert revived.id == contact
    assert not revived.is_deleted
    for kind in ("company", "deal"):
        again = done(sent(world, write(kind, "create", {"name": "Ny"}, counterpart="1"))[0])
        assert again.id not in (company, project)
        assert again.mark is None
    assert not world.emulator.calls("PATCH", "create_only")


def test_a_double_that_cannot_be_found_is_set_aside(world: World) -> None:
    world.person(email="ada@kvarn.se")
    world.clock.advance(100_000)
    [outcome] = sent(world, write("contact", "create", {"email": "ada@kvarn.se"}, counterpart="1"))
    assert outcome.verdict is Verdict.REJECTED


@pytest.mark.parametrize("knows", ["refused", "ignored"])
def test_exclusivity_falls_back_to_mandate_and_remembers(world: World, knows: Any) -> None:
    world.emulator.exclusivity = knows
    record = done(sent(world, write("deal", "create", {"name": "A", "exclusivity": "exclusive"}))[0])
    assert record.values["exclusivity"] == "exclusive"
    before = len(world.emulator.log)
    record = done(sent(world, write("deal", "update", {"exclusivity": "other"}, record))[0])
    assert record.values["exclusivity"] == "other"
    assert [call.body for call in world.emulator.log[before:]] == [{"mandate": "other"}]
    record = done(sent(world, write("deal", "update", {"exclusivity": None}, record))[0])
    assert record.values["exclusivity"] is None


# --- creating prospects -------------------------------------------------------------------


def _add(project: str, person: str, word: str | None = None, ref: str | None = None, key: str = "") -> Write:
    values: dict[str, Value] = {"classification": word} if word else {}
    return write(
        "deal_contact",
        "create",
        values,
        refs={"deal": project, "contact": person},
        counterpart=ref,
        key=key or f"k{person}",
    )


def test_one_prospect_is_added_by_one_call_and_classified(world: World) -> None:
    project, person = world.project(), world.person()
    record = done(sent(world, _add(project, person, ref="d1:c1"))[0])
    assert record.values["classification"] == "not_contacted"
    assert record.mark == "d1:c1"
    assert record.version is not None
    assert len(world.emulator.calls("*", "prospects")) == 1
    other = done(sent(world, _add(project, world.person(), "bidder"))[0])
    assert other.values["classification"] == "bidder"


def test_prospects_are_added_and_classified_by_the_hundred_and_read_once(world: World) -> None:
    project = world.project()
    company = world.emulator.add("companies", {"name": "Kvarn AB"})
    people = [world.person(lastName=str(at)) for at in range(99)]
    words = ["not_contacted", "interested", "bidder"]
    adds = [_add(project, each, words[at % 3], f"r{at}") for at, each in enumerate(people)]
    adds.append(write("deal_contact", "create", refs={"deal": project, "company": company}, key="co"))
    world.connector.account()
    before = len(world.emulator.log)
    outcomes = sent(world, *adds)
    found = [done(outcome) for outcome in outcomes]
    assert [record.values["classification"] for record in found[:3]] == words
    assert all(record.version for record in found)
    assert found[-1].refs == {"deal": project, "company": company}
    assert len(world.emulator.log) - before == 4
    assert world.connector.find(adds[:3]).keys() == {each.key for each in adds[:3]}


@pytest.mark.parametrize("is_old", [True, False])
def test_a_batch_with_failures_tells_each_prospect_its_own_fate(world: World, is_old: bool) -> None:
    world.emulator.old_batch_codes = is_old
    project = world.project()
    new, there, gone, taken = (world.person(lastName=str(at)) for at in range(4))
    standing = world.emulator.add("prospects", {"contactId": there}, parent=project)
    ref = [{"namespace": "hubspot", "id": "same"}]
    removed = world.emulator.add("prospects", {"contactId": world.person(), "externalRefs": ref}, parent=project)
    world.emulator.remove("prospects", removed)
    world.emulator.remove("contacts", gone)
    outcomes = sent(
        world,
        _add(project, new),
        _add(project, there, "interested"),
        _add(project, gone),
        _add(project, taken, ref="same"),
    )
    assert [outcome.verdict for outcome in outcomes[:3]] == [Verdict.DONE, Verdict.EXISTS, Verdict.REJECTED]
    assert outcomes[1].record is not None
    assert outcomes[1].record.id == standing
    # The default is nobody's word: it must not win against the one we came with.
    assert outcomes[1].record.unspoken == {"classification"}
    if not is_old:
        assert done(outcomes[3]).mark is None


def test_one_bad_ref_does_not_hold_up_the_rest_of_its_batch(world: World) -> None:
    project = world.project()
    people = [world.person() for _ in range(4)]
    refs = ["a", "a", "b", "c"]
    outcomes = sent(world, *(_add(project, each, ref=ref) for each, ref in zip(people, refs, strict=True)))
    assert [outcome.verdict for outcome in outcomes].count(Verdict.DONE) == 4


def test_a_batch_with_a_lost_answer_is_not_sent_again_and_is_found_by_listing(world: World) -> None:
    project = world.project()
    people = [world.person() for _ in range(2)]
    other = world.project()
    world.emulator.faults.append(Fault("POST", f"{project}/prospects:batch", when="drop"))
    adds = [_add(project, each, "bidder") for each in people]
    more = [_add(other, each, key=f"o{each}") for each in people]
    outcomes = sent(world, *adds, *more)
    assert [outcome.verdict for outcome in outcomes] == [Verdict.UNKNOWN] * 2 + [Verdict.DONE] * 2
    found = world.connector.find(adds)
    assert set(found) == {each.key for each in adds}
    assert all(record.unspoken == {"classification"} for record in found.values())


@pytest.mark.parametrize(
    ("readd", "verdict"), [("revive", Verdict.DONE), ("new", Verdict.DONE), ("refuse", Verdict.REJECTED)]
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_removed_prospect_comes_back_or_says_that_it_cannot(
    world: World, readd: Any, verdict: Verdict, count: int
) -> None:
    world.emulator.readd = readd
    project, person = world.project(), world.person()
    prospect = world.emulator.add("prospects", {"contactId": person}, parent=project)
    world.emulator.remove("prospects", prospect)
    adds = [_add(project, person), _add(project, world.person())][:count]
    assert sent(world, *adds)[0].verdict is verdict


@pytest.mark.parametrize("status", [400, 409, 422, 403])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_closed_project_refuses_its_prospects_writes_for_good(
    worlds: Callable[..., World], status: int, count: int
) -> None:
    world = worlds(closed_status=status)
    project = world.project()
    people = [world.person() for _ in range(count)]
    prospects = [world.emulator.add("prospects", {"contactId": each}, parent=project) for each in people]
    found = world.connector.read("deal_contact", [Address(each, project) for each in prospects])
    world.emulator.close_project(project, "external")
    changes = [write("deal_contact", "update", {"classification": "bidder"}, found[p], key=p) for p in prospects]
    adds = [_add(project, world.person()) for _ in range(count)]
    removal = write("deal_contact", "delete", record=found[prospects[0]], key="d")
    for batch in (changes, adds, [removal]):
        outcomes = sent(world, *batch)
        assert {outcome.verdict for outcome in outcomes} == {Verdict.REJECTED}
    assert world.emulator.get("prospects", prospects[0])["classification"] == "not_contacted"


def test_a_project_known_to_be_closed_is_not_even_asked(world: World) -> None:
    project, person = world.project(), world.person()
    prospect = world.emulator.add("prospects", {"contactId": person}, parent=project)
    record = world.one("deal_contact", prospect, project)
    world.emulator.close_project(project)
    world.pull("deal")
    before = len(world.emulator.log)
    update = write("deal_contact", "update", {"classification": "bidder"}, record)
    assert [each.verdict for each in sent(world, update, _add(project, world.person()))] == [Verdict.REJECTED] * 2
    assert len(world.emulator.log) == before


# --- updating -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [412, 409])
def test_a_stale_tag_is_stale_whatever_the_status(worlds: Callable[..., World], status: int) -> None:
    world = worlds(stale_status=status)
    project, person = world.project(), world.person()
    prospect = world.emulator.add("prospects", {"contactId": person}, parent=project)
    for kind, collection, id_, parent, values in (
        ("contact", "contacts", person, None, {"first_name": "Eva"}),
        ("deal", "projects", project, None, {"name": "Ny"}),
        ("deal_contact", "prospects", prospect, project, {"classification": "bidder"}),
    ):
        record = world.one(kind, id_, parent)
        world.emulator.edit(collection, id_, {"strategy": "moved"})
        assert sent(world, write(kind, "update", values, record))[0].verdict is Verdict.STALE
        fresh = world.one(kind, id_, parent)
        changed = done(sent(world, write(kind, "update", values, fresh))[0])
        assert {name: changed.values[name] for name in values} == values
        assert world.emulator.log[-1].headers["if-match"] == fresh.version


def test_an_update_sends_what_changes_and_nothing_else(world: World) -> None:
    id_ = world.person(lastName="B", tags=["x"], strategy="old")
    record = world.one("contact", id_)
    values: dict[str, Value] = {"strategy": None, "tags": None, "last_name": "C"}
    changed = done(sent(world, write("contact", "update", values, record))[0])
    assert world.emulator.log[-1].body == {"strategy": None, "tags": [], "lastName": "C"}
    assert {name: changed.values[name] for name in values} == values


def test_a_mark_keeps_everybody_elses_refs(world: World) -> None:
    others = [{"namespace": "lime", "id": "9"}, {"namespace": "Org_Number", "id": "556677-8899"}]
    company = world.emulator.add("companies", {"name": "A", "externalRefs": others})
    old = [*others, {"namespace": "HubSpot", "id": "old"}]
    person, project = world.person(externalRefs=old), world.project(externalRefs=others)
    prospect = world.emulator.add("prospects", {"contactId": person, "externalRefs": others}, parent=project)
    for kind, collection, id_, parent in (
        ("company", "companies", company, None),
        ("contact", "contacts", person, None),
        ("deal", "projects", project, None),
        ("deal_contact", "prospects", prospect, project),
    ):
        record = world.one(kind, id_, parent)
        marked = done(sent(world, write(kind, "mark", record=record, counterpart="new"))[0])
        assert marked.mark == "new"
        refs = world.emulator.get(collection, id_)["externalRefs"]
        assert refs == [*others, {"namespace": "hubspot", "id": "new"}]


def test_a_price_keeps_its_scale_and_its_range(world: World) -> None:
    id_ = world.project(
        price={"value": 150, "currency": "SEK", "scale": "millions"},
        priceRange={"min": 100, "max": 200, "currency": "SEK", "scale": "millions"},
    )
    record = world.one("deal", id_)
    [outcome] = sent(world, write("deal", "update", {"amount": Money(Decimal(201_000_000), "SEK")}, record))
    assert outcome.verdict is Verdict.REJECTED
    assert "priceRange" in outcome.reason
    changed = done(sent(world, write("deal", "update", {"amount": Money(Decimal(175_500_000), "SEK")}, record))[0])
    assert world.emulator.log[-1].body == {"price": {"value": 175.5, "currency": "SEK", "scale": "millions"}}
    assert changed.values["amount"] == Money(Decimal(175_500_000), "SEK")


@pytest.mark.parametrize(
    ("amount", "scale", "expected"),
    [
        ("150000000", "millions", (150, "millions")),
        ("152345678", "millions", (Decimal("152345.678"), "thousands")),
        ("152345678.91", "billions", (Decimal("152345678.91"), "none")),
        ("1500", "none", (1500, "none")),
        ("0", "millions", (0, "millions")),
    ],
)
def test_a_price_is_exact_in_the_coarsest_scale_that_reads_well(
    amount: str, scale: str, expected: tuple[Any, str]
) -> None:
    sent_price = price(Money(Decimal(amount), "SEK"), {"scale": scale})
    assert isinstance(sent_price, dict)
    assert (Decimal(str(sent_price["value"])), sent_price["scale"]) == (Decimal(expected[0]), expected[1])


@pytest.mark.parametrize("money", [Money(Decimal(-1), "SEK"), Money(Decimal(1), "kr"), "12"])
def test_a_price_that_propstreet_does_not_take_is_refused(money: Value) -> None:
    with pytest.raises(UnfitValueError):
        price(money, {})


def test_asset_is_written_whole(world: World) -> None:
    id_ = world.project(asset={"type": "portfolio", "propertyCount": 5})
    record = world.one("deal", id_)
    record = done(sent(world, write("deal", "update", {"property_count": Decimal(6)}, record))[0])
    assert world.emulator.log[-1].body == {"asset": {"type": "portfolio", "propertyCount": 6}}
    record = done(sent(world, write("deal", "update", {"asset_type": "single"}, record))[0])
    assert world.emulator.log[-1].body == {"asset": {"type": "single"}}
    assert record.values["property_count"] is None


def test_a_company_without_a_homepage_takes_a_domain(world: World) -> None:
    id_ = world.emulator.add("companies", {"name": "A"})
    record = world.one("company", id_)
    assert record.locked == {}
    assert done(sent(world, write("company", "update", {"domain": "WWW.A.se"}, record))[0]).values["domain"] == "a.se"


def test_a_link_is_updated_under_its_tag_and_may_become_primary(world: World) -> None:
    person = world.person()
    companies = [world.emulator.add("companies", {"name": name}) for name in "AB"]
    links = [world.emulator.add("links", {"contactId": person, "companyId": each}) for each in companies]
    record = world.one("employment", links[1])
    changed = done(sent(world, write("employment", "update", {"is_primary": True, "job_title": None}, record))[0])
    assert "is_primary" not in changed.values
    assert world.emulator.log[-1].body == {"isPrimary": True, "jobTitle": None}
    world.emulator.link_shows_primary = True
    assert world.one("employment", links[1]).values["is_primary"] is True


def test_a_link_that_is_made_to_be_primary_becomes_so_by_a_second_call(world: World) -> None:
    person = world.person()
    old, *others = (world.emulator.add("companies", {"name": name}) for name in "ABCD")
    world.emulator.add("links", {"contactId": person, "companyId": old, "isPrimary": True})
    plain, primary, late = (
        write("employment", "create", {"is_primary": is_primary}, refs={"contact": person, "company": each}, key=each)
        for each, is_primary in zip(others, (False, True, True), strict=True)
    )
    made = done(sent(world, plain)[0])
    assert world.emulator.get("contacts", person)["primaryCompanyId"] == old
    assert "is_primary" not in made.values
    made = done(sent(world, primary)[0])
    assert world.emulator.get("contacts", person)["primaryCompanyId"] == others[1]
    assert [call.status for call in world.emulator.calls("PATCH", "/network/links/")] == [200]
    world.emulator.faults.append(Fault("PATCH", "/network/links/", status=409))
    made = done(sent(world, late)[0])
    assert made.values["is_primary"] is None  # accepted but not stored: the next merge tries again
    found = world.connector.find([plain, late])
    assert found[plain.key].unspoken == frozenset()
    assert found[late.key].unspoken == {"is_primary"}
    assert found[late.key].values["is_primary"] is False


@pytest.mark.parametrize("is_first_primary", [True, False])
def test_whether_first_links_are_primary_by_themselves_is_asked_once(world: World, is_first_primary: bool) -> None:
    world.emulator.first_link_is_primary = is_first_primary
    firm = world.emulator.add("companies", {"name": "Granit AB"})
    names = [write("contact", "create", {"last_name": str(at)}, key=f"c{at}") for at in range(5)]
    people = [done(each).id for each in sent(world, *names)]
    before = len(world.emulator.log)
    refs = [{"contact": each, "company": firm} for each in people]
    links = [write("employment", "create", {"is_primary": True}, refs=each, key=each["contact"]) for each in refs]
    assert {outcome.verdict for outcome in sent(world, *links)} == {Verdict.DONE}
    assert {world.emulator.get("contacts", each)["primaryCompanyId"] for each in people} == {firm}
    assert len(world.emulator.log) - before == (6 if is_first_primary else 11)


def test_a_contact_that_a_listing_shows_without_a_company_gets_its_first_link_in_one_call(world: World) -> None:
    firm, other = (world.emulator.add("companies", {"name": name}) for name in "AB")
    alone, employed = world.person(email="a@x.se"), world.person(email="b@x.se")
    asked = world.person(email="c@x.se")
    world.emulator.add("links", {"contactId": employed, "companyId": other})
    world.pull("contact")
    calls = {}
    for each in (asked, alone, employed):
        before = len(world.emulator.log)
        link = write("employment", "create", {"is_primary": True}, refs={"contact": each, "company": firm}, key=each)
        done(sent(world, link)[0])
        calls[each] = len(world.emulator.log) - before
        assert world.emulator.get("contacts", each)["primaryCompanyId"] == firm
    # Whether a first link is primary by itself is asked with the first one; a second link is made primary by a call.
    assert calls == {asked: 2, alone: 1, employed: 2}


def test_a_link_tells_whether_it_is_primary_as_far_as_its_contact_was_seen(world: World) -> None:
    person = world.person()
    companies = [world.emulator.add("companies", {"name": name}) for name in "AB"]
    first, second = (world.emulator.add("links", {"contactId": person, "companyId": each}) for each in companies)
    assert "is_primary" not in records(world.pull("employment"))[first].values
    world.pull("contact")
    assert records(world.pull("employment"))[first].values["is_primary"] is False
    world.emulator.edit("links", second, {"isPrimary": True})
    clock = world.pull("contact")[-1].clock
    found = records(world.pull("employment"))
    assert [found[each].values["is_primary"] for each in (first, second)] == [False, True]
    world.clock.advance(1000)
    world.pull("contact", "2026-11-20T09:00:00Z")
    assert clock is not None
    assert "is_primary" not in records(world.pull("employment"))[second].values


def test_few_classifications_go_one_by_one_and_many_at_once(world: World) -> None:
    project = world.project()
    ids = [world.emulator.add("prospects", {"contactId": world.person()}, parent=project) for _ in range(6)]
    found = world.connector.read("deal_contact", [Address(each, project) for each in ids])
    few = [write("deal_contact", "update", {"classification": "contacted"}, found[p], key=p) for p in ids[:3]]
    before = len(world.emulator.log)
    assert {done(each).values["classification"] for each in sent(world, *few)} == {"contacted"}
    assert len(world.emulator.log) - before == 3
    found = world.connector.read("deal_contact", [Address(each, project) for each in ids])
    world.emulator.classify(ids[0], "not_interested")
    before = len(world.emulator.log)
    many = [write("deal_contact", "update", {"classification": "bidder"}, found[p], key=p) for p in ids]
    outcomes = sent(world, *many)
    assert outcomes[0].verdict is Verdict.STALE
    assert {done(each).values["classification"] for each in outcomes[1:]} == {"bidder"}
    assert len(world.emulator.log) - before == 3
    assert done(outcomes[1]).version == world.one("deal_contact", ids[1], project).version


def test_a_company_only_prospect_is_promoted_to_its_contact(world: World) -> None:
    project, person = world.project(), world.person()
    company = world.emulator.add("companies", {"name": "A"})
    world.emulator.add("links", {"contactId": person, "companyId": company})
    prospect = world.emulator.add("prospects", {"companyId": company}, parent=project)
    record = world.one("deal_contact", prospect, project)
    refs = {"deal": project, "contact": person}
    changed = done(sent(world, write("deal_contact", "update", {"classification": "bidder"}, record, refs=refs))[0])
    assert changed.refs == refs
    assert changed.values["classification"] == "bidder"


def test_a_write_to_what_is_gone_is_missing(world: World) -> None:
    person = world.person()
    record = world.one("contact", person)
    world.emulator.remove("contacts", person)
    assert sent(world, write("contact", "update", {"last_name": "B"}, record))[0].verdict is Verdict.MISSING


@pytest.mark.parametrize("bad", ["../auth/clients", "a/b", "", "a?b=c"])
def test_an_unsafe_id_is_never_sent(world: World, bad: str) -> None:
    project, person = world.project(), world.person()
    prospect = world.emulator.add("prospects", {"contactId": person}, parent=project)
    record = world.one("deal_contact", prospect, project)
    before = len(world.emulator.log)
    hostile = replace(write("deal_contact", "update", {"classification": "bidder"}, record), address=Address("1", bad))
    ends = replace(_add(project, person), refs={"deal": project, "contact": bad})
    assert {each.verdict for each in world.connector.write([hostile])} == {Verdict.REJECTED}
    assert {each.verdict for each in world.connector.write([ends])} == {Verdict.REJECTED}
    assert world.connector.find([ends]) == {}
    assert all(each.is_deleted for each in world.connector.read("contact", [Address(bad)]).values())
    assert len(world.emulator.log) == before


def test_a_closed_deal_comes_back_stale_so_that_it_is_read_as_locked(world: World) -> None:
    project = world.project()
    record = world.one("deal", project)
    world.emulator.close_project(project)
    assert sent(world, write("deal", "update", {"name": "B"}, record))[0].verdict is Verdict.STALE


# --- deleting -----------------------------------------------------------------------------


@pytest.mark.parametrize("has_remove", [True, False])
def test_a_prospect_is_removed_by_either_documented_way(world: World, has_remove: bool) -> None:
    world.emulator.has_remove = has_remove
    project, person = world.project(), world.person()
    prospect = world.emulator.add("prospects", {"contactId": person}, parent=project)
    record = world.one("deal_contact", prospect, project)
    world.emulator.classify(prospect, "bidder")
    assert sent(world, write("deal_contact", "delete", record=record))[0].verdict is Verdict.STALE
    record = world.one("deal_contact", prospect, project)
    assert sent(world, write("deal_contact", "delete", record=record))[0].verdict is Verdict.DONE
    assert world.one("deal_contact", prospect, project).is_deleted
    assert sent(world, write("deal_contact", "delete", record=record))[0].verdict is Verdict.MISSING
    world.emulator.restore("prospects", prospect)
    assert not world.one("deal_contact", prospect, project).is_deleted


def test_many_prospects_of_a_project_are_removed_behind_one_listing(world: World) -> None:
    project = world.project()
    ids = [world.emulator.add("prospects", {"contactId": world.person()}, parent=project) for _ in range(9)]
    found = world.connector.read("deal_contact", [Address(each, project) for each in ids])
    world.emulator.classify(ids[0], "bidder")
    world.emulator.remove("prospects", ids[1])
    before = len(world.emulator.log)
    outcomes = sent(world, *(write("deal_contact", "delete", record=found[each], key=each) for each in ids))
    verdicts = [Verdict.STALE, Verdict.MISSING, *[Verdict.DONE] * 7]
    assert {outcome.key: outcome.verdict for outcome in outcomes} == dict(zip(ids, verdicts, strict=True))
    assert len(world.emulator.log) - before == 1 + 7
    assert [each["id"] for each in world.emulator.all("prospects")] == [ids[0]]


def test_a_project_is_deleted_and_a_contact_where_the_api_offers_it(world: World) -> None:
    project, person = world.project(), world.person()
    assert sent(world, write("deal", "delete", record=world.one("deal", project)))[0].verdict is Verdict.DONE
    record = world.one("contact", person)
    [outcome] = sent(world, write("contact", "delete", record=record))
    assert (outcome.verdict, "offers no deletion" in outcome.reason) == (Verdict.REJECTED, True)
    world.emulator.has_network_deletes = True
    assert sent(world, write("contact", "delete", record=record))[0].verdict is Verdict.DONE
    assert sent(world, write("contact", "delete", record=record))[0].verdict is Verdict.MISSING


# --- faults -------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "expected"), [("seconds", True), ("date", True), ("none", True)])
def test_a_429_waits_as_long_as_it_is_asked_to(worlds: Callable[..., World], form: Any, expected: bool) -> None:
    world = worlds(quota=True, is_personal=True)
    world.emulator.retry_after = form
    for _ in range(61):
        world.connector.account()
    assert len(world.wire.pauses) == 1
    assert (world.wire.pauses[0] is not None and 55 <= world.wire.pauses[0] <= 62) is expected
    assert world.wire.observed[0] == 59


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_is_repeated_for_reads_even_if_it_is_a_page(world: World, status: int) -> None:
    world.person()
    world.emulator.faults.append(Fault("GET", "contacts", status=status, body="<html>down</html>", times=2))
    assert len(world.pull("contact")[0].records) == 1


def test_a_repeated_conditional_write_is_harmless(world: World) -> None:
    record = world.one("contact", world.person())
    world.emulator.faults.append(Fault("PATCH", "contacts", when="drop"))
    [outcome] = sent(world, write("contact", "update", {"last_name": "B"}, record))
    assert outcome.verdict is Verdict.STALE
    assert world.one("contact", record.id).values["last_name"] == "B"


def test_an_outage_in_the_middle_keeps_the_outcomes_there_are(world: World) -> None:
    found = [world.one("contact", world.person()) for _ in range(3)]
    world.emulator.faults.append(Fault("PATCH", "contacts", status=503, times=9, skip=1))
    outcomes = sent(world, *(write("contact", "update", {"last_name": "B"}, each, key=each.id) for each in found))
    assert [each.verdict for each in outcomes] == [Verdict.DONE, Verdict.UNKNOWN, Verdict.RETRY]


def test_a_host_that_cannot_be_reached_was_sent_nothing(world: World) -> None:
    url = world.emulator.url
    world.emulator.stop()
    with pytest.raises(TransientError) as caught:
        world.connect(base_url=url).account()
    assert not caught.value.is_sent


def test_a_403_stops_the_connection_and_a_400_only_its_record(world: World) -> None:
    record = world.one("contact", world.person())
    world.emulator.faults.append(Fault("PATCH", "contacts", status=403, body={"title": "no"}))
    with pytest.raises(AuthError):
        sent(world, write("contact", "update", {"last_name": "B"}, record))
    outcomes = sent(
        world,
        write("contact", "update", {"email": "not an address"}, record, key="a"),
        write("contact", "update", {"last_name": "B"}, record, key="b"),
    )
    assert [each.verdict for each in outcomes] == [Verdict.REJECTED, Verdict.DONE]
    assert "email" in outcomes[0].reason
    assert "address" not in outcomes[0].reason


def test_the_least_calls_follow_the_vendors_own_limits(world: World) -> None:
    tally = Tally(
        is_backfill=True,
        pulled={"contact": 1001, "company": 0, "deal": 3},
        parents={"deal_contact": 3},
        written={("deal_contact", "create"): 250, ("contact", "update"): 7},
        groups={("deal_contact", "create"): 2},
    )
    assert world.connector.least_calls(tally) == 1 + 3 + 1 + 1 + 1 + 3 + (3 + 2) + 7


# --- the emulator's own strictness --------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/projects?updatedSince=2026-01-01T00:00:00Z", None, 400),
        ("GET", "/projects?updated_since=2026-01-01T00:00:00+00:00", None, 400),
        ("GET", "/projects?page_size=501", None, 400),
        ("GET", "/network/contacts?cursor=nonsense", None, 400),
        ("GET", "/network/contacts/1", None, 404),
        ("GET", "/nowhere", None, 404),
        ("POST", "/network/contacts", {"nickname": "A"}, 400),
        ("POST", "/network/contacts", {"firstName": "A", "primaryLanguage": "swe"}, 400),
        ("POST", "/projects", {"name": "A", "classification": "active"}, 400),
        ("POST", "/projects", {"name": "A", "mandate": "other", "exclusivity": "other"}, 422),
        ("POST", "/projects", {"name": "A", "asset": {"propertyCount": 2}}, 400),
        ("POST", "/projects", {"name": "x" * 201}, 400),
        ("PATCH", "/network/contacts/external/hubspot/1?create_only=true", {"firstName": "A"}, 400),
    ],
)
def test_the_emulator_refuses_what_is_not_documented(
    world: World, method: str, path: str, body: Any, status: int
) -> None:
    world.connector.account()
    token = next(iter(world.emulator._tokens))
    url = f"{world.emulator.url}{API}{path}"
    answer = httpx.request(method, url, json=body, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    assert answer.status_code == status
    assert httpx.request(method, url, json=body, trust_env=False).status_code == 401
