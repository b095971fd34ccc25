"""The emulators' webhooks are as strict as the contracts: what they take, sign, repeat and give up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from random import Random
from typing import Any

import httpx
import pytest

from connectors.hubspot import webhooks as hubspot
from connectors.hubspot.emulator import HubSpotEmulator
from connectors.propstreet import webhooks as propstreet
from connectors.propstreet.emulator import PropstreetEmulator
from connectors.propstreet.webhooks import EVENTS
from syncd.connector import Delivery
from syncd.testing.emulator import ManualClock

HOOK = "https://syncd.example.com/webhooks/nordhaus/propstreet"


class Street:
    """Whoever stands at the other end of a webhook: keeps what comes, and answers as told."""

    def __init__(self) -> None:
        self.status = 200
        self.came: list[tuple[str, Mapping[str, str], bytes]] = []

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        self.came.append((url, headers, body))
        return self.status

    def deliveries(self) -> list[Delivery]:
        return [
            Delivery("POST", url, {name.lower(): value for name, value in headers.items()}, body)
            for url, headers, body in self.came
        ]

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.came]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(tick_seconds=0.001)


@pytest.fixture
def street() -> Street:
    return Street()


@pytest.fixture
def hub(clock: ManualClock, street: Street) -> Iterator[PropstreetEmulator]:
    found = PropstreetEmulator(now=clock, is_personal=True, quota=False)
    found.post = street
    found.start()
    yield found
    found.stop()


@pytest.fixture
def api(hub: PropstreetEmulator) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {hub.auth['token']}"}
    with httpx.Client(base_url=f"{hub.url}/api/v1", headers=headers, trust_env=False) as found:
        yield found


def subscribed(api: httpx.Client, **more: Any) -> dict[str, Any]:
    answer = api.post("/webhooks", json={"url": HOOK, "events": list(EVENTS), **more})
    assert answer.status_code == 201
    found: dict[str, Any] = answer.json()
    return found


def settle(hub: PropstreetEmulator) -> None:
    assert hub.webhooks.outbox is not None
    assert hub.webhooks.outbox.settle()


# --- Propstreet -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"url": HOOK}, "events"),
        ({"events": ["contact.updated"]}, "url"),
        ({"url": HOOK.replace("https", "http"), "events": ["contact.updated"]}, "url"),
        ({"url": "http://127.0.0.1:1/x", "events": ["contact.updated"]}, "url"),
        ({"url": HOOK, "events": []}, "events"),
        ({"url": HOOK, "events": ["note.created"]}, "events"),
        ({"url": HOOK, "events": "contact.updated"}, "events"),
        ({"url": HOOK, "events": ["contact.updated"], "filter": {"externalRef.namespace": "hubspot"}}, "filter"),
    ],
)
def test_what_is_not_documented_cannot_be_ordered(api: httpx.Client, body: dict[str, Any], name: str) -> None:
    """No filter, no plain http, no event beyond the fifteen."""
    answer = api.post("/webhooks", json=body)
    assert (answer.status_code, list(answer.json()["errors"])) == (400, [name])
    assert api.get("/webhooks").json()["data"] == []


def test_a_secret_is_shown_once(api: httpx.Client) -> None:
    made = subscribed(api)
    assert made["secret"].startswith("whsec_")
    (listed,) = api.get("/webhooks").json()["data"]
    assert listed == {name: value for name, value in made.items() if name != "secret"}
    path = f"/webhooks/{made['id'].replace('?', '%3F')}"
    assert api.get(path).json() == listed
    assert api.delete(path).status_code == 204
    assert (api.get(path).status_code, api.delete(path).status_code) == (404, 404)


def test_every_commit_is_told_and_can_be_proved(
    hub: PropstreetEmulator, api: httpx.Client, street: Street, clock: ManualClock
) -> None:
    """Created, updated, deleted, and what a cascade does; late commits are told when they are there to be read."""
    secret = subscribed(api)["secret"]
    project = hub.add("projects", {"name": "Kv. Svalan"})
    contact = hub.add("contacts", {"lastName": "Ek"})
    prospect = hub.add("prospects", {"contactId": contact}, parent=project)
    hub.classify(prospect, "bidder")
    hub.remove("prospects", prospect)
    settle(hub)
    told = [each["event"] for each in street.bodies()]
    assert sorted(told) == sorted(
        ["project.created", "contact.created", "prospect.created", "prospect.updated", "prospect.deleted"]
    )
    heard = [propstreet.receive(each, [secret], clock()) for each in street.deliveries()]
    assert {hint.parents for each in heard for hint in each.hints} == {(project,)}
    assert len({each.ids for each in heard}) == 5
    assert not {"etag", "updatedUtc"} & {name for each in street.bodies() for name in each["data"]}
    street.came.clear()
    hub.late(60)
    hub.edit("contacts", contact, {"lastName": "Berg"})
    settle(hub)
    assert street.came == []
    clock.advance(61)
    api.get("/webhooks")
    settle(hub)
    assert [each["data"]["changedFields"] for each in street.bodies()] == [["lastName"]]


def test_only_the_events_that_were_ordered_are_sent(hub: PropstreetEmulator, api: httpx.Client, street: Street) -> None:
    subscribed(api, events=["link.created"])
    hub.add("contacts", {"lastName": "Ek"})
    hub.add("properties", {"name": "Svalan 4"})
    assert (hub.webhooks.outbox, street.came) == (None, [])


@pytest.mark.parametrize(("status", "until"), [(410, 1), (500, 10), (0, 10)])
def test_an_end_that_never_answers_is_given_up(
    hub: PropstreetEmulator, api: httpx.Client, street: Street, status: int, until: int
) -> None:
    """At once on 410, after ten failures in a row otherwise; what is not sent then is never sent."""
    subscribed(api)
    street.status = status
    contact = hub.add("contacts", {"lastName": "Ek"})
    for number in range(15):
        settle(hub)
        hub.edit("contacts", contact, {"lastName": f"Ek{number}"})
    settle(hub)
    assert len(street.came) == until
    assert [each["isActive"] for each in api.get("/webhooks").json()["data"]] == [False]


def test_what_failed_comes_again_with_its_id_and_a_fresh_signature(
    hub: PropstreetEmulator, api: httpx.Client, street: Street, clock: ManualClock
) -> None:
    """By the vendor's own retry, nine times, and by replay, as if it had never been tried."""
    made = subscribed(api)
    hub.webhooks.is_patient = True
    street.status = 503
    hub.add("contacts", {"lastName": "Ek"})
    for _ in range(12):
        settle(hub)
        clock.advance(3600)
        hub.webhooks.retry()
    settle(hub)
    assert (len(street.came), hub.webhooks.statuses()) == (9, ["exhausted"])
    street.status = 200
    path = f"/webhooks/{made['id'].replace('?', '%3F')}/replay"
    later = (clock() + timedelta(hours=1)).isoformat()
    assert api.post(path, json={"since": later}).json()["replayed_count"] == 0
    assert api.post(path, json={"since": "yesterday"}).status_code == 400
    assert api.post(path, json={}).status_code == 400
    assert api.post(path, json={"since": (clock() - timedelta(days=1)).isoformat()}).json()["replayed_count"] == 1
    settle(hub)
    assert hub.webhooks.statuses() == ["delivered"]
    ids = {propstreet.receive(street.deliveries()[-1], [made["secret"]], clock()).ids}
    assert {headers["webhook-id"] for _, headers, _ in street.came} == {next(iter(ids))[0]}
    assert len({headers["webhook-signature"] for _, headers, _ in street.came}) == 10


def test_a_test_delivery_is_answered_at_once_and_not_kept(
    hub: PropstreetEmulator, api: httpx.Client, street: Street, clock: ManualClock
) -> None:
    made = subscribed(api)
    path = f"/webhooks/{made['id'].replace('?', '%3F')}/test"
    answer = api.post(path, json={"event_type": "project.updated"}).json()
    assert (answer["success"], answer["status_code"], answer["error"]) == (True, 200, None)
    (delivery,) = street.deliveries()
    assert delivery.headers["x-propstreet-test"] == "true"
    assert propstreet.receive(delivery, [made["secret"]], clock()).hints == ()
    assert hub.webhooks.statuses() == []
    assert api.post(path, json={"event_type": "note.created"}).status_code == 400


def test_webhooks_can_be_held_doubled_and_shuffled(hub: PropstreetEmulator, api: httpx.Client, street: Street) -> None:
    """No order is promised, and each may come more than once."""
    subscribed(api)
    contact = hub.add("contacts", {"lastName": "Ek0"})
    settle(hub)
    assert hub.webhooks.outbox is not None
    hub.webhooks.outbox.hold()
    for number in range(1, 9):
        hub.edit("contacts", contact, {"lastName": f"Ek{number}"})
    settle(hub)
    assert len(street.came) == 1
    hub.webhooks.outbox.copies = 2
    hub.webhooks.outbox.release(Random(3))
    settle(hub)
    names = [each["data"]["lastName"] for each in street.bodies()[1:]]
    assert sorted(names) == sorted([f"Ek{number}" for number in range(1, 9)] * 2)
    assert names != sorted(names)


# --- HubSpot --------------------------------------------------------------------------------


@pytest.fixture
def portal(clock: ManualClock, street: Street) -> Iterator[HubSpotEmulator]:
    found = HubSpotEmulator(now=clock, is_prepared=True)
    found.post = street
    yield found
    found.stop()


def test_hubspot_tells_of_everything_in_signed_batches(
    portal: HubSpotEmulator, street: Street, clock: ManualClock
) -> None:
    """By records and by both directions of an association, at most a hundred events in a delivery."""
    deal = portal.add("deals", {"dealname": "A", "dealstage": "qualifiedtobuy"})
    sender = portal.deliver_to("https://syncd.example.com/webhooks/n/hubspot?x=%40a", "secret")
    sender.outbox.hold()
    people = [portal.add("contacts", {"lastname": f"L{number}"}) for number in range(60)]
    portal.edit("deals", deal, {"dealname": "B"})
    portal.associate("deals", deal, "contacts", people[0])
    survivor = portal.merge("contacts", people[1], people[2])
    portal.archive("contacts", people[3])
    sender.outbox.release()
    assert sender.outbox.settle()
    events = [event for batch in street.bodies() for event in batch]
    # Two are on their way at once, and nobody promises which arrives first.
    assert sorted(len(batch) for batch in street.bodies()) == [len(events) - 100, 100]
    assert {each["subscriptionType"] for each in events} == {
        "contact.creation", "contact.propertyChange", "contact.merge", "contact.deletion", "deal.propertyChange",
        "deal.associationChange", "contact.associationChange",
    }  # fmt: skip
    assert len({each["eventId"] for each in events}) < len(events)
    heard = [hubspot.receive(each, ["secret"], clock()) for each in street.deliveries()]
    named = {(hint.kind, id_) for each in heard for hint in each.hints for id_ in hint.ids}
    assert {("deal", deal), ("deal_contact", deal), ("contact", people[3]), ("contact", survivor)} <= named
    assert {each.account for each in heard} == {str(portal.portal_id)}
    assert not {"hs_lastmodifieddate", "lastmodifieddate"} & {each.get("propertyName") for each in events}


def test_hubspot_tries_again_and_counts_its_attempts(
    portal: HubSpotEmulator, street: Street, clock: ManualClock
) -> None:
    """The body differs then, so that it is another delivery to us."""
    sender = portal.deliver_to("https://syncd.example.com/x", "secret")
    street.status = 503
    portal.add("companies", {"name": "A"})
    assert sender.outbox.settle()
    tried = len(street.came)
    street.status = 200
    sender.retry()
    assert sender.failed == []
    ids = [hubspot.receive(each, ["secret"], clock()).ids for each in street.deliveries()]
    assert (len(ids), len(set(ids))) == (2 * tried, 2 * tried)
    assert {event["attemptNumber"] for events in street.bodies()[tried:] for event in events} == {1}
