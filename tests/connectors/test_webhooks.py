"""What each vendor's receiver takes, refuses and makes of it. Signatures are made here, by the contracts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from connectors.hubspot import webhooks as hubspot
from connectors.propstreet import webhooks as propstreet
from connectors.salesforce import webhooks as salesforce
from syncd.connector import Delivery, Hint, load_receiver
from syncd.errors import ConfigError, ContractError, ForgedError

NOW = datetime(2026, 11, 22, 5, 0, tzinfo=UTC)
SECRET, OTHER = ("whsec_" + base64.b64encode(each * 24).decode() for each in (b"a", b"b"))
URL = "https://syncd.example.com/webhooks/nordhaus/hubspot"


def signature(secret: str, id_: str, seconds: int, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mark = hmac.new(key, f"{id_}.{seconds}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(mark).decode()


def from_propstreet(
    payload: object, *, at: datetime = NOW, signatures: str | None = None, drop: str = "", id_: str = "msg_1"
) -> Delivery:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    seconds = int(at.timestamp())
    headers = {
        "webhook-id": id_,
        "webhook-timestamp": str(seconds),
        "webhook-signature": signature(SECRET, id_, seconds, body) if signatures is None else signatures,
    }
    return Delivery("POST", URL, {name: each for name, each in headers.items() if name != drop}, body)


EDIT = {"event": "prospect.updated", "timestamp": "2026-11-22T05:00:00Z", "data": {"id": "7", "projectId": "12"}}


# --- Propstreet ---------------------------------------------------------------------------


def test_the_published_example_of_a_signature_is_taken() -> None:
    """The vector of Standard Webhooks itself, so that we agree with the world and not only with ourselves."""
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    delivery = Delivery("POST", URL, headers, b'{"test": 2432232314}')
    at = datetime.fromtimestamp(1614265330, UTC)
    with pytest.raises(ContractError, match="without its event"):
        propstreet.receive(delivery, ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], at)


@pytest.mark.parametrize("name", ["event", "type"])
def test_a_prospect_that_moved_brings_its_project_to_the_front(name: str) -> None:
    """The one kind that is read project by project; the vendor and the standard name the event apart."""
    payload = {name: "prospect.updated", "data": {"id": "7", "projectId": 12}}
    heard = propstreet.receive(from_propstreet(payload), [SECRET], NOW)
    assert (heard.ids, heard.hints, heard.account) == (("msg_1",), (Hint("deal_contact", parents=("12",)),), None)


@pytest.mark.parametrize(
    "payload",
    [
        {"event": "prospect.deleted", "data": {"id": "7"}},
        {"event": "prospect.updated", "data": None},
        {"event": "prospect.updated", "data": {"projectId": "../../companies"}},
        {"event": "prospect.updated", "data": {"projectId": True}},
        {"event": "contact.updated", "data": {"id": "7", "firstName": "Ann"}},
        {"event": "spaceship.landed"},
    ],
)
def test_all_else_says_no_more_than_that_it_is_time_to_look(payload: object) -> None:
    """Lists show it; a project that a payload does not name, or names by what is no id, is not guessed."""
    assert propstreet.receive(from_propstreet(payload), [SECRET], NOW).hints == ()


@pytest.mark.parametrize("seconds", [-300, -1, 0, 1, 300])
def test_a_signature_counts_within_its_window(seconds: int) -> None:
    assert propstreet.receive(from_propstreet(EDIT), [SECRET], NOW + timedelta(seconds=seconds)).ids


@pytest.mark.parametrize("seconds", [-301, 301, 10**7])
def test_a_signature_outside_of_its_window_is_refused(seconds: int) -> None:
    """By the clock that is passed in: what was recorded long ago proves nothing today."""
    with pytest.raises(ForgedError, match="too long ago, or is yet to be"):
        propstreet.receive(from_propstreet(EDIT), [SECRET], NOW + timedelta(seconds=seconds))


def test_any_of_several_signatures_by_any_of_several_secrets_will_do() -> None:
    """Both sides rotate: the sender signs twice for a while, and we hold two secrets."""
    body = json.dumps(EDIT).encode()
    mine, wrong = (signature(each, "msg_1", int(NOW.timestamp()), body) for each in (SECRET, OTHER))
    several = f"v1a,ed25519 {wrong} {mine} v2,x"
    assert propstreet.receive(from_propstreet(EDIT, signatures=several), [SECRET], NOW).ids
    assert propstreet.receive(from_propstreet(EDIT, signatures=wrong), [SECRET, OTHER], NOW).ids
    with pytest.raises(ForgedError):
        propstreet.receive(from_propstreet(EDIT, signatures=wrong), [SECRET], NOW)


@pytest.mark.parametrize("drop", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_delivery_that_lacks_a_header_is_refused(drop: str) -> None:
    with pytest.raises(ForgedError):
        propstreet.receive(from_propstreet(EDIT, drop=drop), [SECRET], NOW)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("webhook-timestamp", "1e9"),
        ("webhook-timestamp", "-5"),
        ("webhook-timestamp", "9" * 400),
        ("webhook-timestamp", "٣٣٣"),
        ("webhook-id", "x" * 256),
        ("webhook-id", "msg_2"),
        ("webhook-signature", "v1," + "A" * 43 + "="),
        ("webhook-signature", "v1,é"),
        ("webhook-signature", "v1 " * 10_000),
        ("webhook-signature", ",,,"),
    ],
)
def test_headers_that_nobody_signed_are_refused(header: str, value: str) -> None:
    delivery = from_propstreet(EDIT)
    forged = Delivery("POST", URL, {**delivery.headers, header: value}, delivery.body)
    with pytest.raises(ForgedError) as raised:
        propstreet.receive(forged, [SECRET], NOW)
    assert value[:20] not in str(raised.value)


@pytest.mark.parametrize("body", [b"{}", b'{"event": "contact.updated"} ', b"\xff\xfe", b""])
def test_one_changed_byte_is_refused(body: bytes) -> None:
    with pytest.raises(ForgedError):
        propstreet.receive(Delivery("POST", URL, from_propstreet(EDIT).headers, body), [SECRET], NOW)


@pytest.mark.parametrize("body", [b"[]", b"null", b"{", b'{"data": {}}', b"[" * 100_000, b'{"event": 7}'])
def test_what_is_proved_and_not_understood_is_told_apart_from_what_is_forged(body: bytes) -> None:
    """The sender is who he says he is, and speaks of something that the contract does not know."""
    with pytest.raises(ContractError):
        propstreet.receive(from_propstreet(body), [SECRET], NOW)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_not*base64", "whsec_a"])
def test_a_secret_that_is_none_proves_nothing(secret: str) -> None:
    with pytest.raises(ConfigError) as raised:
        propstreet.receive(from_propstreet(EDIT), [secret], NOW)
    assert "not*base64" not in str(raised.value)


# --- HubSpot ------------------------------------------------------------------------------


def event(what: str, **more: Any) -> dict[str, Any]:
    return {"eventId": 1, "portalId": 47, "appId": 4, "subscriptionType": what, "attemptNumber": 0, **more}


def from_hubspot(events: object, *, at: datetime = NOW, url: str = URL, signed_url: str | None = None) -> Delivery:
    body = events if isinstance(events, bytes) else json.dumps(events).encode()
    sent = str(round(at.timestamp() * 1000))
    text = b"POST" + (signed_url or url).encode() + body + sent.encode()
    mark = base64.b64encode(hmac.new(b"client", text, hashlib.sha256).digest()).decode()
    headers = {"x-hubspot-signature-v3": mark, "x-hubspot-request-timestamp": sent}
    return Delivery("POST", url, headers, body)


@pytest.mark.parametrize(
    ("said", "hints"),
    [
        (event("deal.propertyChange", objectId=5), [Hint("deal", ids=("5",))]),
        (event("contact.creation", objectId="6"), [Hint("contact", ids=("6",))]),
        (event("company.deletion", objectId=7), [Hint("company", ids=("7",))]),
        (event("deal.restore", objectId=8), [Hint("deal", ids=("8",))]),
        (event("contact.privacyDeletion", objectId=9), [Hint("contact", ids=("9",))]),
        (event("object.propertyChange", objectTypeId="0-3", objectId=5), [Hint("deal", ids=("5",))]),
        (
            event("contact.merge", objectId=1, primaryObjectId=1, mergedObjectIds=[2, "3"], newObjectId=4),
            [Hint("contact", ids=("1", "4", "2", "3"))],
        ),
        (
            event("deal.associationChange", associationType="DEAL_TO_CONTACT", fromObjectId=5, toObjectId=6),
            [Hint("deal_contact", ids=("5",))],
        ),
        (
            event("contact.associationChange", associationType="CONTACT_TO_DEAL", fromObjectId=6, toObjectId=5),
            [Hint("deal_contact", ids=("5",))],
        ),
        (
            event("company.associationChange", associationType="COMPANY_TO_DEAL", fromObjectId=7, toObjectId=5),
            [Hint("deal_contact", ids=("5",))],
        ),
        (
            event("company.associationChange", associationType="COMPANY_TO_CONTACT", fromObjectId=7, toObjectId=6),
            [Hint("employment", ids=("6",))],
        ),
        (event("deal.associationChange", associationType="DEAL_TO_TICKET", fromObjectId=5, toObjectId=6), []),
        (event("deal.associationChange", associationType="CONTACT_TO_CONTACT", fromObjectId=5, toObjectId=6), []),
        (event("ticket.propertyChange", objectId=5), []),
        (event("deal.propertyChange", objectId="5/../6"), []),
        (event("deal.propertyChange", objectId=True), []),
        (event("deal.propertyChange", objectId=-5), []),
        (event("deal.propertyChange"), []),
    ],
)
def test_events_are_told_as_records_to_read_and_parents_to_visit(said: object, hints: list[Hint]) -> None:
    """Search may show none of them yet. An association belongs to its deal, or to its contact."""
    heard = hubspot.receive(from_hubspot([said]), ["client"], NOW)
    assert (list(heard.hints), heard.account) == (hints, "47")


def test_many_events_of_one_record_are_one_hint() -> None:
    said = [event("deal.propertyChange", objectId=5, propertyName=str(number)) for number in range(99)]
    said.append(event("deal.creation", objectId=6))
    assert hubspot.receive(from_hubspot(said), ["client"], NOW).hints == (Hint("deal", ids=("5", "6")),)


def test_a_delivery_is_known_by_its_bytes_and_its_time() -> None:
    """``eventId`` is not unique: two events that share it are two deliveries, and the same one is the same."""
    one, other = [event("deal.creation", objectId=5)], [event("deal.creation", objectId=6)]
    later = NOW + timedelta(seconds=1)
    known = [
        hubspot.receive(delivery, ["client"], NOW + timedelta(seconds=2)).ids
        for delivery in (from_hubspot(one), from_hubspot(one), from_hubspot(other), from_hubspot(one, at=later))
    ]
    assert known[0] == known[1]
    assert len(set(known)) == 3


def test_only_the_documented_escapes_are_undone_before_signing() -> None:
    """The URL counts as it was set at HubSpot, with its query; other escapes stay."""
    came, signed = URL + "%3Aa%2Fb%20c?x=%40y%2Cz&%25", URL + ":a/b%20c?x=@y,z&%25"
    said = [event("deal.creation", objectId=5)]
    assert hubspot.receive(from_hubspot(said, url=came, signed_url=signed), ["client"], NOW).ids
    with pytest.raises(ForgedError):
        hubspot.receive(from_hubspot(said, url=came, signed_url=came), ["client"], NOW)


@pytest.mark.parametrize("seconds", [301, -11])
def test_hubspot_must_have_signed_it_just_now(seconds: int) -> None:
    """Neither too old nor of the future: the vendor's own helper lets the future pass."""
    with pytest.raises(ForgedError):
        hubspot.receive(from_hubspot([event("deal.creation")]), ["client"], NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    "forged",
    [
        {"x-hubspot-signature-v3": ""},
        {"x-hubspot-signature-v3": "é"},
        {"x-hubspot-request-timestamp": ""},
        {"x-hubspot-request-timestamp": "1.8e12"},
        {"x-hubspot-request-timestamp": "9" * 30},
    ],
)
def test_headers_that_hubspot_did_not_write_are_refused(forged: Mapping[str, str]) -> None:
    sent = from_hubspot([event("deal.creation", objectId=5)])
    with pytest.raises(ForgedError):
        hubspot.receive(Delivery("POST", URL, {**sent.headers, **forged}, sent.body), ["client"], NOW)


def test_the_older_signature_alone_proves_nothing() -> None:
    """Version 1 comes along with every delivery; it covers neither the URL nor the time."""
    sent = from_hubspot([event("deal.creation", objectId=5)])
    older = hashlib.sha256(b"client" + sent.body).hexdigest()
    headers = {"x-hubspot-signature": older, "x-hubspot-request-timestamp": sent.headers["x-hubspot-request-timestamp"]}
    with pytest.raises(ForgedError):
        hubspot.receive(Delivery("POST", URL, headers, sent.body), ["client"], NOW)


def test_another_url_method_body_or_secret_is_refused_and_a_rotated_one_taken() -> None:
    sent = from_hubspot([event("deal.creation", objectId=5)])
    assert hubspot.receive(sent, ["new", "client"], NOW).ids
    for forged, secrets in (
        (Delivery("POST", URL + "?x", sent.headers, sent.body), ["client"]),
        (Delivery("PUT", URL, sent.headers, sent.body), ["client"]),
        (Delivery("POST", URL, sent.headers, sent.body + b" "), ["client"]),
        (sent, ["other"]),
    ):
        with pytest.raises(ForgedError):
            hubspot.receive(forged, secrets, NOW)


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"[1]", b"[" * 100_000, b"\xff", json.dumps([{"objectId": 1}]).encode(),
             json.dumps([event("deal.creation"), {**event("deal.creation"), "portalId": 48}]).encode()],
)  # fmt: skip
def test_a_body_that_is_no_list_of_one_portals_events_is_not_understood(body: bytes) -> None:
    with pytest.raises(ContractError):
        hubspot.receive(from_hubspot(body), ["client"], NOW)


# --- Salesforce ---------------------------------------------------------------------------

LONG = "s" * 32
ORG = "00D000000000001EAA"
SOAP = "http://schemas.xmlsoap.org/soap/envelope/"


def message(*ids: str, org: str = ORG, prolog: str = '<?xml version="1.0" encoding="UTF-8"?>') -> bytes:
    each = (
        f'<Notification><Id>{id_}</Id><sObject xsi:type="sf:Contact" xmlns:sf="urn:sobject.enterprise.soap.sforce.com">'
        "<sf:Id>003000000000001AAA</sf:Id></sObject></Notification>"
        for id_ in ids
    )
    return (
        f'{prolog}<soapenv:Envelope xmlns:soapenv="{SOAP}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f'<soapenv:Body><notifications xmlns="{salesforce.OUTBOUND}"><OrganizationId>{org}</OrganizationId>'
        '<ActionId>04k000000000001AAA</ActionId><SessionId xsi:nil="true"/>'
        f"{''.join(each)}</notifications></soapenv:Body></soapenv:Envelope>"
    ).encode()


def from_salesforce(body: bytes, query: str = f"?secret={LONG}", **headers: str) -> Delivery:
    return Delivery("POST", f"https://syncd.example.com/webhooks/nordhaus/salesforce{query}", headers, body)


def test_a_message_is_known_by_its_notifications_and_acknowledged() -> None:
    """It names no record: it comes once the change is committed, and the query shows it then."""
    ids = ("04l000000000001AAA", "04l000000000002AAA")
    heard = salesforce.receive(from_salesforce(message(*ids)), [LONG], NOW)
    assert (heard.ids, heard.hints, heard.account, heard.content_type) == (ids, (), ORG, "text/xml")
    assert "<Ack>true</Ack>" in heard.answer


def test_an_org_is_the_same_in_fifteen_and_in_eighteen_characters() -> None:
    body = message("04l000000000001AAA", org=ORG[:15])
    assert salesforce.receive(from_salesforce(body), [LONG], NOW).account == ORG


def test_the_secret_may_stand_in_the_password_of_the_url_too() -> None:
    told = "Basic " + base64.b64encode(f"anybody:{LONG}".encode()).decode()
    body = message("04l000000000001AAA")
    assert salesforce.receive(from_salesforce(body, "", authorization=told), ["x" * 40, LONG], NOW).ids


@pytest.mark.parametrize(
    ("query", "header"),
    [
        ("", ""),
        ("?secret=", ""),
        (f"?secret={LONG[1:]}", ""),
        (f"?secret=wrong&secret={LONG}", ""),
        (f"?Secret={LONG}", ""),
        ("?secret=%ff%fe", ""),
        ("", f"Bearer {LONG}"),
        ("", "Basic !!!"),
        ("", "Basic " + base64.b64encode(LONG.encode()).decode()),
        ("", "Basic /////w=="),
    ],
)
def test_a_message_without_the_secret_is_refused_unread(query: str, header: str) -> None:
    with pytest.raises(ForgedError):
        salesforce.receive(from_salesforce(b"<not xml", query, authorization=header), [LONG], NOW)


def test_a_secret_that_can_be_guessed_is_no_secret() -> None:
    """Nothing else proves a message, so that one short secret refuses all."""
    body = message("04l000000000001AAA")
    with pytest.raises(ConfigError, match="at least 32 characters"):
        salesforce.receive(from_salesforce(body, "?secret=short"), [LONG, "short"], NOW)


BOMB = '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE b [<!ENTITY b SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    "body",
    [
        message("&b;", prolog=BOMB),
        message("&b;", prolog=OUTSIDE),
        message("04l000000000001AAA", prolog='<!DOCTYPE b SYSTEM "http://127.0.0.1:1/x.dtd">'),
        message("04l000000000001AAA", prolog='<?xml version="1.0" encoding="nowhere"?>'),
        message("&nothing;"),
        message(),
        message("not an id"),
        message("04l000000000001AAA", org=""),
        message("04l000000000001AAA", org="../.."),
        b"",
        b"\xff",
        b"<a>" * 20_000,
        b"<a/>",
        f'<e:Envelope xmlns:e="{SOAP}"/>'.encode(),
    ],
)
def test_bombs_and_what_is_no_message_are_not_understood(body: bytes) -> None:
    """No entity is expanded, no address is opened, nothing is guessed."""
    with pytest.raises(ContractError) as raised:
        salesforce.receive(from_salesforce(body), [LONG], NOW)
    assert "/etc/hostname" not in str(raised.value)


# --- how they are found -------------------------------------------------------------------


def test_a_receiver_is_found_by_its_connectors_name() -> None:
    """Others' connectors bring their own; one that sends no webhooks has none."""
    assert load_receiver("propstreet") is propstreet.receive
    assert load_receiver("hubspot") is hubspot.receive
    assert load_receiver("salesforce") is salesforce.receive
    assert load_receiver("memory") is None


def test_nothing_of_a_delivery_shows_in_its_repr() -> None:
    """Its URL may hold a secret, its body persons."""
    shown = repr(from_salesforce(message("04l000000000001AAA")))
    assert LONG not in shown
    assert "Notification" not in shown
