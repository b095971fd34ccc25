"""What the intake answers, keeps and wakes; and an edit at a vendor that arrives by its webhook."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvicorn
from sqlalchemy import Engine, create_engine, func, select, update
from starlette.applications import Starlette
from starlette.testclient import TestClient

from connectors.hubspot.emulator import HubSpotEmulator
from syncd.config import Configuration, WebConfig, load
from syncd.connector import Delivery
from syncd.core.model import Side
from syncd.state import deliveries, pairs, privacy
from syncd.state import schema as s
from syncd.testing.emulator import ManualClock
from syncd.web import application, intake, ordering
from syncd.web.site import Site
from syncd.wiring import Service
from tests.connectors.test_webhooks import (
    EDIT,
    LONG,
    ORG,
    SECRET,
    event,
    from_hubspot,
    from_propstreet,
    from_salesforce,
    message,
)
from tests.faults.harness import World, world_of

pytestmark = pytest.mark.long

PUBLIC = "https://syncd.example.com"

TENANT = """
tenant: nordhaus
propstreet:
  auth: {{token: {{env: NONE}}}}
  webhooks: {{secret: {{file: {folder}/propstreet}}}}
pairs:
  - connector: hubspot
    auth: {{access_token: {{env: NONE}}}}
    webhooks: {{secrets: [{{file: {folder}/not-there-yet}}, {{file: {folder}/hubspot}}]}}
  - connector: salesforce
    auth: {{client_id: {{env: NONE}}, client_secret: {{env: NONE}}}}
    webhooks: {{secret: {{file: {folder}/salesforce}}}}
  - connector: hubspot
    name: second
    namespace: second
    auth: {{access_token: {{env: NONE}}}}
"""


@dataclass
class Desk:
    """A tenant that has run, and the site that takes its webhooks."""

    engine: Engine
    folder: Path
    clock: ManualClock = field(default_factory=ManualClock)
    woken: list[str] = field(default_factory=list)
    heeded: list[str] = field(default_factory=list)
    """Of the woken ones those that only look after what was told."""

    def __post_init__(self) -> None:
        for name, secret in (("propstreet", SECRET), ("hubspot", "client"), ("salesforce", LONG)):
            (self.folder / name).write_text(secret + "\n")
        self.write(TENANT)
        for name, connector, account in (
            ("hubspot", "hubspot", "47"), ("salesforce", "salesforce", ORG), ("second", "hubspot", "48"),
        ):  # fmt: skip
            at = self.clock()
            pairs.register(
                self.engine, tenant="nordhaus", name=name, connector=connector, namespace=name, config_hash="1", at=at
            )  # fmt: skip
            pairs.prove_account(self.engine, f"nordhaus/{name}", Side.LEFT, "propstreet", "client-1")
            pairs.prove_account(self.engine, f"nordhaus/{name}", Side.RIGHT, connector, account)
        self.service = Service(self.engine, now=self.clock)
        self.site = Site(
            self.service, self.tenants, self.woken.append, WebConfig(public_url=PUBLIC), heed=self.heed
        )  # fmt: skip
        self.app = application(self.site)
        self.http = TestClient(self.app, raise_server_exceptions=False)

    def heed(self, pair_id: str) -> None:
        self.woken.append(pair_id)
        self.heeded.append(pair_id)

    def write(self, text: str) -> None:
        (self.folder / "tenants").mkdir(exist_ok=True)
        (self.folder / "tenants" / "nordhaus.yaml").write_text(text.format(folder=self.folder))

    def tenants(self) -> Configuration:
        found = load(self.folder / "tenants")
        assert found.problems == ()
        return found

    def send(self, connection: str, delivery: Any, tenant: str = "nordhaus") -> Any:
        """A delivery made elsewhere, with the URL's query if it has one."""
        query = delivery.url.partition("?")[2]
        path = f"/webhooks/{tenant}/{connection}" + (f"?{query}" if query else "")
        return self.http.post(path, content=delivery.body, headers=dict(delivery.headers))

    def propstreet(self, payload: object = EDIT, **more: Any) -> Any:
        return self.send("propstreet", from_propstreet(payload, **{"at": self.clock(), **more}))

    def hubspot(self, *events: object, connection: str = "hubspot") -> Any:
        url = f"{PUBLIC}/webhooks/nordhaus/{connection}"
        return self.send(connection, from_hubspot(list(events), at=self.clock(), url=url))

    def salesforce(self, *ids: str, org: str = ORG) -> Any:
        return self.send("salesforce", from_salesforce(message(*ids, org=org)))

    def dirty(self) -> list[tuple[str, str, str, int]]:
        d = s.dirty.c
        with self.engine.connect() as tx:
            rows = tx.execute(select(d.pair, d.kind, d.id, d.hints).order_by(d.pair, d.kind, d.id)).all()
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    def known(self) -> int:
        with self.engine.connect() as tx:
            return tx.execute(select(func.count()).select_from(s.delivery)).scalar_one()

    def feed(self, parent: str, *pair_ids: str) -> None:
        """These pairs have visited a project before."""
        with self.engine.begin() as tx:
            for pair_id in pair_ids:
                tx.execute(s.feed.insert().values(pair=pair_id, side="left", kind="deal_contact", parent=parent))

    def hints(self) -> dict[str, int]:
        with self.engine.connect() as tx:
            return {row[0]: row[1] for row in tx.execute(select(s.feed.c.pair, s.feed.c.hints))}


@pytest.fixture
def desk(engine: Engine, tmp_path: Path) -> Desk:
    return Desk(engine, tmp_path)


# --- what is taken --------------------------------------------------------------------------


def test_a_webhook_of_propstreet_concerns_every_pair_of_its_tenant(desk: Desk) -> None:
    """It is the hub: its project comes first wherever it is known, and every pair looks."""
    desk.feed("12", "nordhaus/hubspot", "nordhaus/second")
    answer = desk.propstreet()
    assert (answer.status_code, answer.content) == (200, b"")
    assert desk.woken == ["nordhaus/hubspot", "nordhaus/salesforce", "nordhaus/second"]
    assert desk.hints() == {"nordhaus/hubspot": 1, "nordhaus/second": 1}
    assert desk.dirty() == []


def test_a_webhook_of_a_crm_concerns_its_own_pair(desk: Desk) -> None:
    answer = desk.hubspot(
        event("deal.propertyChange", objectId=5),
        event("deal.propertyChange", objectId=5),
        event("contact.associationChange", associationType="CONTACT_TO_COMPANY", fromObjectId=6, toObjectId=7),
    )
    assert answer.status_code == 200
    assert desk.woken == ["nordhaus/hubspot"]
    assert desk.dirty() == [("nordhaus/hubspot", "deal", "5", 1), ("nordhaus/hubspot", "employment", "6", 1)]


def test_where_all_is_told_a_run_looks_after_that_alone(desk: Desk) -> None:
    """A prospect whose project is not named may be below any; so may be what an event of tomorrow speaks of."""
    heeded = []
    deliveries: list[Callable[[], Any]] = [
        lambda: desk.propstreet({"event": "contact.updated", "data": {"id": 1}}, id_="msg_a"),
        lambda: desk.propstreet({"event": "prospect.updated", "data": {"id": 1, "projectId": 12}}, id_="msg_b"),
        lambda: desk.propstreet({"event": "prospect.updated", "data": {"id": 1}}, id_="msg_c"),
        lambda: desk.propstreet({"event": "lease.signed", "data": {"id": 1}}, id_="msg_d"),
        lambda: desk.hubspot(event("deal.propertyChange", objectId=5)),
        lambda: desk.hubspot(event("deal.propertyChange", objectId=5), event("ticket.propertyChange", objectId=6)),
        lambda: desk.salesforce("04l000000000001AAA"),
    ]
    for deliver in deliveries:
        desk.woken.clear()
        desk.heeded.clear()
        assert deliver().status_code == 200
        assert desk.woken
        assert desk.heeded in ([], desk.woken)
        heeded.append(bool(desk.heeded))
    assert heeded == [True, True, False, False, True, False, True]


def test_salesforce_gets_the_acknowledgement_that_it_waits_for(desk: Desk) -> None:
    """Without an Ack it repeats a message for a day; a repetition is acknowledged again, and does nothing."""
    for _ in range(2):
        answer = desk.salesforce("04l000000000001AAA", "04l000000000002AAA")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/xml; charset=utf-8")
        assert "<Ack>true</Ack>" in answer.text
    assert desk.woken == ["nordhaus/salesforce"]
    desk.salesforce("04l000000000002AAA", "04l000000000003AAA")
    assert desk.woken == ["nordhaus/salesforce"] * 2


def test_a_delivery_that_comes_again_does_nothing(desk: Desk) -> None:
    """In another attempt too, whose time and signature differ: its id is the same."""
    desk.feed("12", "nordhaus/hubspot")
    assert desk.propstreet().status_code == 200
    desk.woken.clear()
    desk.clock.advance(400)
    assert desk.propstreet().status_code == 200
    assert (desk.woken, desk.hints(), desk.known()) == ([], {"nordhaus/hubspot": 1}, 1)
    assert desk.propstreet(id_="msg_2").status_code == 200
    assert desk.hints() == {"nordhaus/hubspot": 2}


def test_ids_of_one_connection_are_not_those_of_another(desk: Desk) -> None:
    """Nobody can make another tenant's delivery look like a repetition."""
    two = TENANT.replace("tenant: nordhaus", "tenant: other")
    (desk.folder / "tenants" / "other.yaml").write_text(two.format(folder=desk.folder))
    delivery = from_propstreet(EDIT, at=desk.clock())
    assert desk.send("propstreet", delivery, "other").status_code == 200
    assert desk.send("propstreet", delivery).status_code == 200
    assert len(desk.woken) == 3


def test_disorder_is_no_matter(desk: Desk) -> None:
    """The older word comes after the newer: both only say that it is time to look."""
    said = [event("deal.propertyChange", objectId=5, propertyValue=str(number)) for number in range(3)]
    for each in (said[2], said[0], said[1]):
        assert desk.hubspot(each).status_code == 200
    assert desk.dirty() == [("nordhaus/hubspot", "deal", "5", 3)]


def test_no_more_is_kept_than_a_run_can_read(desk: Desk) -> None:
    """Beyond a thousand the delta tells; what waits already is heard still."""
    for start in range(1, 1_200, 100):
        desk.hubspot(*(event("deal.creation", objectId=number) for number in range(start, start + 100)))
    assert len(desk.dirty()) == deliveries.MOST_DIRTY
    desk.clock.advance(1)
    assert desk.hubspot(event("deal.propertyChange", objectId=1), event("contact.creation", objectId=1)).status_code
    assert len(desk.dirty()) == deliveries.MOST_DIRTY + 1
    assert ("nordhaus/hubspot", "deal", "1", 2) in desk.dirty()


# --- what is refused ------------------------------------------------------------------------


def test_what_is_forged_stale_or_from_another_account_is_refused_and_leaves_nothing(desk: Desk) -> None:
    desk.feed("12", "nordhaus/hubspot")
    assert desk.propstreet(signatures="v1,AAAA").status_code == 401
    assert desk.propstreet(at=desk.clock() - timedelta(seconds=301)).status_code == 401
    assert desk.hubspot({**event("deal.creation", objectId=5), "portalId": 4711}).status_code == 401
    assert desk.salesforce("04l000000000001AAA", org="00D000000000002AAA").status_code == 401
    answer = desk.send("hubspot", from_hubspot([event("deal.creation")], at=desk.clock(), url="https://other/"))
    assert (answer.status_code, answer.content) == (401, b"")
    assert (desk.woken, desk.known(), desk.dirty(), desk.hints()) == ([], 0, [], {"nordhaus/hubspot": 0})


def test_what_is_proved_and_not_understood_is_refused(desk: Desk) -> None:
    assert desk.propstreet(b"[]").status_code == 400
    assert desk.send("salesforce", from_salesforce(b"<a/>")).status_code == 400
    assert (desk.woken, desk.known()) == ([], 0)


@pytest.mark.parametrize("where", ["nordhaus/nobody", "nobody/hubspot", "nordhaus/second"])
def test_what_there_is_not_cannot_be_told_from_what_is_not_set_up(desk: Desk, where: str) -> None:
    """An unknown tenant, an unknown connection, a known one without a secret: one answer, byte for byte."""
    delivery = from_hubspot([event("deal.creation")], at=desk.clock())
    answer = desk.http.post(f"/webhooks/{where}", content=delivery.body, headers=dict(delivery.headers))
    other = desk.http.post("/webhooks/no/body", content=delivery.body, headers=dict(delivery.headers))
    assert (answer.status_code, answer.content, answer.headers) == (404, b"", other.headers)


def test_a_secret_that_cannot_be_read_or_proves_nothing_is_as_none(desk: Desk) -> None:
    """Before ``syncd webhooks register`` has written it, and where it is far too short."""
    (desk.folder / "propstreet").unlink()
    (desk.folder / "salesforce").write_text("short")
    assert desk.propstreet().status_code == 404
    assert desk.send("salesforce", from_salesforce(message("04l000000000001AAA"))).status_code == 404


def test_a_body_beyond_the_limit_is_not_read_on(desk: Desk) -> None:
    """Neither announced nor in chunks without an end; one byte less is read and judged as any other."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 65_536
            yield b"x" * 65_536
            assert taken <= 4 * intake.MOST_BYTES

    for path in ("/webhooks/nordhaus/propstreet", "/webhooks/no/body"):
        assert desk.http.post(path, content=b"x" * (intake.MOST_BYTES + 1)).status_code == 413
        assert desk.http.post(path, content=b"x" * intake.MOST_BYTES).status_code in (401, 404)
    assert asyncio.run(_poured(desk.app, endless())) == 413


def test_a_body_that_never_ends_is_not_waited_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends a byte a minute holds nothing for long."""
    monkeypatch.setattr(intake, "BODY_SECONDS", 0.01)
    assert asyncio.run(_poured(desk.app, None)) == 408


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_only_post_is_heard(desk: Desk, method: str) -> None:
    assert desk.http.request(method, "/webhooks/nordhaus/propstreet").status_code == 405


def test_a_header_that_came_twice_is_none(desk: Desk) -> None:
    """A proxy in front might have meant the other one."""
    delivery = from_propstreet(EDIT, at=desk.clock())
    twice = [*delivery.headers.items(), ("webhook-signature", delivery.headers["webhook-signature"])]
    assert desk.http.post("/webhooks/nordhaus/propstreet", content=delivery.body, headers=twice).status_code == 401


def test_the_host_that_a_request_names_is_not_what_was_signed(desk: Desk) -> None:
    """HubSpot signs the URL: it is the one of the settings, whatever the headers say."""
    delivery = from_hubspot([event("deal.creation", objectId=5)], at=desk.clock(), url="https://evil.example/x")
    headers = {**delivery.headers, "host": "evil.example", "x-forwarded-host": "evil.example"}
    assert desk.http.post("/webhooks/nordhaus/hubspot", content=delivery.body, headers=headers).status_code == 401


def test_while_the_database_is_down_the_sender_is_asked_to_come_again(desk: Desk) -> None:
    """Nothing is acknowledged that is not kept."""
    gone = Service(create_engine("postgresql+psycopg://u:secret@127.0.0.1:1/x"), now=desk.clock)
    app = application(Site(gone, desk.tenants, desk.woken.append, desk.site.settings))
    delivery = from_propstreet(EDIT, at=desk.clock())
    answer = TestClient(app).post(
        "/webhooks/nordhaus/propstreet", content=delivery.body, headers=dict(delivery.headers)
    )
    assert (answer.status_code, answer.headers["retry-after"], desk.woken) == (503, "30", [])
    forged = TestClient(app).post("/webhooks/nordhaus/propstreet", content=b"{}", headers=dict(delivery.headers))
    assert forged.status_code == 401, "what is not proved costs the database nothing"


# --- each of the three --------------------------------------------------------------------

VENDORS = ("propstreet", "hubspot", "salesforce")


def genuine(desk: Desk, vendor: str, number: int = 1, *, late: float = 0.0, pad: int = 0) -> Delivery:
    """What a vendor sends of one event of several, ``late`` seconds ago, as its contract says that it is proved."""
    at = desk.clock() - timedelta(seconds=late)
    if vendor == "propstreet":
        return from_propstreet({**EDIT, "padding": "x" * pad}, at=at, id_=f"msg_{number}")
    if vendor == "hubspot":
        said = event("deal.propertyChange", objectId=5, eventId=number, propertyValue="x" * pad)
        return from_hubspot([said], at=at, url=f"{PUBLIC}/webhooks/nordhaus/hubspot")
    return from_salesforce(message(f"04l00000000000{number}AAA") + b" " * pad)


def forgeries(delivery: Delivery, vendor: str) -> list[Delivery]:
    """What somebody sends who has seen a delivery and not the secret."""
    if vendor == "salesforce":  # it signs nothing: the secret is all
        bare = delivery.url.partition("?")[0]
        return [
            replace(delivery, url=bare + query) for query in ("", "?secret=", f"?secret={'t' * 32}", "?Secret=" + LONG)
        ]
    name = {"propstreet": "webhook-signature", "hubspot": "x-hubspot-signature-v3"}[vendor]
    mark = delivery.headers[name]
    return [
        replace(delivery, body=delivery.body + b" "),
        replace(delivery, headers={}),
        *(
            replace(delivery, headers={**delivery.headers, name: each})
            for each in ("", mark[:-3] + "AA=", mark.lower())
        ),
    ]


def left(desk: Desk) -> tuple[list[str], int, list[Any], dict[str, int]]:
    return desk.woken, desk.known(), desk.dirty(), desk.hints()


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_forgery_is_refused_whoevers_name_it_bears(desk: Desk, vendor: str) -> None:
    """Body, signature and secret are tried in turn; nothing is kept and nobody woken. The genuine one is taken then."""
    for forged in forgeries(genuine(desk, vendor), vendor):
        answer = desk.send(vendor, forged)
        assert (answer.status_code, answer.content) == (401, b"")
    assert left(desk) == ([], 0, [], {})
    assert desk.send(vendor, genuine(desk, vendor)).status_code == 200
    assert desk.woken


@pytest.mark.parametrize(
    ("vendor", "outside", "inside"),
    [("propstreet", 301, 299), ("propstreet", -301, -299), ("hubspot", 301, 299), ("hubspot", -11, -9)],
)
def test_what_was_signed_outside_of_the_window_is_refused(
    desk: Desk, vendor: str, outside: float, inside: float
) -> None:
    """Too old, or of the future. Salesforce signs no time: what it sends again is known by its ids, see below."""
    assert desk.send(vendor, genuine(desk, vendor, late=outside)).status_code == 401
    assert left(desk) == ([], 0, [], {})
    assert desk.send(vendor, genuine(desk, vendor, late=inside)).status_code == 200


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_was_recorded_and_is_sent_once_more_does_nothing(desk: Desk, vendor: str) -> None:
    """Byte for byte, while it still counts as fresh; of Salesforce also a day later."""
    delivery = genuine(desk, vendor)
    assert desk.send(vendor, delivery).status_code == 200
    before = (list(desk.woken), *left(desk)[1:])
    desk.clock.advance(86_400 if vendor == "salesforce" else 200)
    assert desk.send(vendor, delivery).status_code == 200
    assert left(desk) == before


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_is_genuine_and_too_large_is_not_read(desk: Desk, vendor: str) -> None:
    """A proof buys nobody more than the limit."""
    assert desk.send(vendor, genuine(desk, vendor, pad=intake.MOST_BYTES)).status_code == 413
    assert left(desk) == ([], 0, [], {})


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_older_word_may_come_after_the_newer(desk: Desk, vendor: str) -> None:
    """Each is heard, whenever it was sent within the window; all say no more than that it is time to look."""
    for number, late in ((3, 0), (1, 200), (2, 100)):
        assert desk.send(vendor, genuine(desk, vendor, number, late=late)).status_code == 200
    assert desk.known() == 3
    assert set(desk.woken) == set(desk.woken[: len(desk.woken) // 3])
    assert {row[2] for row in desk.dirty()} == ({"5"} if vendor == "hubspot" else set())


# --- who is left alone ----------------------------------------------------------------------


def test_a_paused_pair_is_left_alone_and_catches_up_by_itself(desk: Desk) -> None:
    """The sender is content, so that it goes on sending; other pairs of the tenant are told."""
    pairs.pause(desk.engine, "nordhaus/hubspot", desk.clock())
    desk.feed("12", "nordhaus/hubspot", "nordhaus/second")
    assert desk.hubspot(event("deal.creation", objectId=5)).status_code == 200
    assert (desk.woken, desk.dirty()) == ([], [])
    assert desk.propstreet().status_code == 200
    assert desk.woken == ["nordhaus/salesforce", "nordhaus/second"]
    assert desk.hints() == {"nordhaus/hubspot": 0, "nordhaus/second": 1}


def test_a_tenant_that_is_switched_off_is_left_alone(desk: Desk) -> None:
    desk.write(TENANT.replace("tenant: nordhaus", "tenant: nordhaus\nenabled: false"))
    assert desk.hubspot(event("deal.creation", objectId=5)).status_code == 200
    assert desk.propstreet(signatures="v1,AAAA").status_code == 401
    assert (desk.woken, desk.dirty()) == ([], [])


def test_a_pair_that_never_ran_is_left_alone(desk: Desk) -> None:
    """Nobody knows yet whose account it is; its first run reads everything."""
    with desk.engine.begin() as tx:
        tx.execute(s.connection.delete().where(s.connection.c.pair == "nordhaus/hubspot"))
    assert desk.hubspot({**event("deal.creation", objectId=5), "portalId": 1}).status_code == 200
    assert (desk.woken, desk.dirty()) == ([], [])


def test_how_deliveries_ended_is_counted(desk: Desk) -> None:
    """For whoever watches; names that a stranger made up are not among them."""
    desk.propstreet()
    desk.propstreet()
    desk.propstreet(signatures="v1,AAAA")
    desk.http.post("/webhooks/made/up", content=b"{}")
    (metric,) = desk.site.service.meters.webhooks.collect()
    counted = {
        (each.labels["tenant"], each.labels["connection"], each.labels["outcome"]): each.value
        for each in metric.samples
        if each.name.endswith("_total")
    }
    assert counted == {
        ("nordhaus", "propstreet", "heard"): 1.0,
        ("nordhaus", "propstreet", "replayed"): 1.0,
        ("nordhaus", "propstreet", "forged"): 1.0,
        ("", "", "unknown"): 1.0,
    }


def test_what_was_heard_is_forgotten_when_nobody_repeats_it_any_more(desk: Desk) -> None:
    """Three days: longer than any vendor tries."""
    desk.hubspot(event("deal.creation", objectId=5))
    desk.clock.advance(2 * 86_400)
    desk.hubspot(event("deal.creation", objectId=6))
    desk.clock.advance(2 * 86_400)
    assert deliveries.prune(desk.engine, desk.clock(), is_dry=True) == {"delivery": 1, "dirty": 1}
    counts = privacy.prune(desk.engine, privacy.Retention(), desk.clock())
    assert (counts["delivery"], counts["dirty"]) == (1, 1)
    assert (desk.known(), [row[2] for row in desk.dirty()]) == (1, ["6"])


# --- from the vendor to the other side ------------------------------------------------------


@contextmanager
def serving(make: Callable[[str], Starlette]) -> Iterator[str]:
    """The real server on a port of this machine, for an application that knows its own URL."""
    plug = socket.socket()
    plug.bind(("127.0.0.1", 0))
    plug.listen(64)
    url = f"http://127.0.0.1:{plug.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(make(url), log_level="critical", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [plug]}, daemon=True)
    thread.start()
    try:
        yield url
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        plug.close()


async def _poured(app: Starlette, chunks: Iterator[bytes] | None) -> int:
    """The status that a body without an end meets with, or one that never comes."""
    status = 0

    async def receive() -> dict[str, Any]:
        if chunks is None:
            await asyncio.Event().wait()
            return {}
        return {"type": "http.request", "body": next(chunks), "more_body": True}

    async def send(said: Any) -> None:
        nonlocal status
        status = said.get("status", status)

    path = "/webhooks/nordhaus/propstreet"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [], "http_version": "1.1", "scheme": "http", "server": ("x", 80)}  # fmt: skip
    await app(scope, receive, send)
    return status


@dataclass
class Town:
    """A tenant in step, whose vendors send webhooks to a real server."""

    world: World
    url: str
    woken: list[str]

    @property
    def crm(self) -> HubSpotEmulator:
        assert isinstance(self.world.crm, HubSpotEmulator)
        return self.world.crm

    def arrived(self) -> None:
        """Everything that was sent has been answered."""
        for sender in (self.world.hub.webhooks, self.crm.webhooks):
            outbox = sender.outbox if sender is not None else None
            assert outbox is None or outbox.settle()

    def run(self) -> Any:
        """The run that the wake leads to."""
        assert self.woken
        self.woken.clear()
        return self.world.run(is_sweep=False)

    def marks(self) -> dict[tuple[str, str], str | None]:
        rows = self.world.rows(s.feed)
        return {(row.side, row.kind): row.watermark for row in rows if row.parent == ""}

    def told(self) -> set[tuple[str, str]]:
        return {(row.kind, row.id) for row in self.world.rows(s.dirty)}


@pytest.fixture
def town(engine: Engine, tmp_path: Path) -> Iterator[Town]:
    woken: list[str] = []
    with world_of(engine, tmp_path, "hubspot", extra={}) as world:
        for name in ("crm-app", "hub-hook"):
            (tmp_path / name).write_text("client-secret-of-the-app")
        said = world.document()
        said["pairs"][0]["webhooks"] = {"secret": {"file": str(tmp_path / "crm-app")}}
        said["propstreet"]["webhooks"] = {"secret": {"file": str(tmp_path / "hub-hook")}}
        world.write(said)
        world.seed(contacts=3, deals=2)
        world.first()

        def make(url: str) -> Starlette:
            settings = WebConfig(public_url=url)
            return application(Site(world.service, lambda: load(world.folder), woken.append, settings))

        with serving(make) as url:
            world.hub.webhooks.is_local = True
            tenant = load(world.folder).tenant("nordhaus")
            assert ordering.register(world.service, tenant, url).is_new
            found = Town(world, url, woken)
            found.crm.deliver_to(f"{url}/webhooks/nordhaus/hubspot", "client-secret-of-the-app")
            yield found


def test_an_edit_arrives_by_its_webhook_though_search_does_not_show_it_yet(town: Town) -> None:
    """Read by id: the listing, and with it the watermark, knows nothing of it for another ten minutes."""
    town.crm.index_lag_seconds = 600
    before = town.marks()
    town.world.crm_rename("hub0@example.com", "Storm")
    town.arrived()
    assert town.crm.webhooks is not None
    assert set(town.crm.webhooks.answers) == {200}
    assert {kind for kind, _ in town.told()} == {"contact"}
    assert town.run().report.updated
    assert [each["lastName"] for each in town.world.hub.all("contacts") if each["email"] == "hub0@example.com"] == [
        "Storm"
    ]
    assert (town.told(), town.marks()["right", "contact"]) == (set(), before["right", "contact"])
    town.arrived()
    town.world.clock.advance(700)
    assert town.run().write_calls == 0, "the listing brings the same once more, which is no news"


def test_without_its_webhook_it_would_have_waited_for_the_index(town: Town) -> None:
    """What the hint saves is time; nothing else depends on it."""
    town.crm.stop_webhooks()
    town.crm.index_lag_seconds = 600
    town.world.crm_rename("hub0@example.com", "Storm")
    assert town.world.run(is_sweep=False).write_calls == 0
    town.world.clock.advance(700)
    assert town.world.run(is_sweep=False).write_calls > 0


def test_copies_and_disorder_change_nothing(town: Town) -> None:
    """Each event three times, the last first: one edit, one write."""
    assert town.crm.webhooks is not None
    outbox = town.crm.webhooks.outbox
    outbox.hold()
    outbox.copies = 3
    for name in ("Storm", "Strand", "Ek"):
        town.world.crm_rename("hub0@example.com", name)
    outbox.release(Random(5))
    town.arrived()
    result = town.run()
    assert (result.state, sum(result.report.updated.values())) == ("done", 1)
    town.world.settle()
    town.world.assert_in_step()


def test_a_new_and_a_deleted_record_arrive_by_their_webhooks(town: Town) -> None:
    town.crm.index_lag_seconds = 600
    town.world.crm_contact(77)
    town.arrived()
    assert town.run().report.created
    assert any(each.get("email") == "crm77@example.com" for each in town.world.hub.all("contacts"))
    (gone,) = [id_ for id_, row in town.crm.all("contacts").items() if row.get("email") == "crm0@example.com"]
    town.crm.archive("contacts", gone)
    town.arrived()
    assert town.run().state == "done"
    held = [row for row in town.world.rows(s.sighting) if row.is_deleted]
    assert [row.id for row in held] == [gone], "what a deletion does is the tenant's rule"
    town.crm.restore("contacts", gone)
    town.arrived()
    assert town.run().state == "done"
    assert [row for row in town.world.rows(s.sighting) if row.is_deleted] == [], "restored, its modified time as it was"


def test_what_was_merged_away_stays_so_though_search_still_shows_it(town: Town) -> None:
    """The survivor has a new id and takes over the link; the old one is neither met again nor put before anybody."""
    town.crm.index_lag_seconds = 240
    (old,) = [id_ for id_, row in town.crm.all("contacts").items() if row.get("email") == "hub0@example.com"]
    other = town.crm.add("contacts", {"lastname": "Ny", "firstname": "Nils"})
    survivor = town.crm.merge("contacts", old, other)
    town.arrived()
    assert town.run().state == "done"
    for _ in range(3):
        result = town.world.run(is_sweep=False)
        assert not result.report.created
    with town.world.service.engine.connect() as tx:
        linked = tx.execute(select(s.link.c.right_id).where(s.link.c.kind == "contact")).scalars().all()
        assert tx.execute(select(s.match_review.c.record_id)).all() == []
    assert survivor in linked
    assert old not in linked
    assert [row.id for row in town.world.rows(s.sighting) if row.id in (old, other)] == []
    town.world.clock.advance(600)
    town.world.settle()
    town.world.assert_in_step()


def test_an_association_is_read_below_its_deal_and_its_contact_without_a_sweep(town: Town) -> None:
    """Only a sweep would show it, and a large portal is swept seldom."""
    deal = next(iter(town.crm.all("deals")))
    contacts = {row["email"]: id_ for id_, row in town.crm.all("contacts").items()}
    firm = next(id_ for id_, row in town.crm.all("companies").items() if row["domain"] == "granit.se")
    with town.world.service.engine.begin() as tx:
        seldom = {"cost": 1_000_000, "swept_at": town.world.clock()}
        tx.execute(update(s.feed).where(s.feed.c.side == "right", s.feed.c.parent == "").values(seldom))
    town.crm.associate("deals", deal, "contacts", contacts["crm1@example.com"])
    town.crm.associate("contacts", contacts["crm2@example.com"], "companies", firm)
    town.arrived()
    assert {kind for kind, _ in town.told()} == {"deal_contact", "employment"}
    town.run()
    assert town.told() == set()
    picture = town.world.picture()
    assert picture["propstreet deal_contact"] == picture["crm deal_contact"]
    assert picture["propstreet employment"] == picture["crm employment"]
    assert any(email == "crm1@example.com" for _, email in picture["propstreet deal_contact"])


def test_an_edit_in_propstreet_arrives_by_its_webhook(town: Town) -> None:
    """Subscribed by the API, signed by the vendor, in two signatures while its secret is rotated."""
    (hook,) = ordering.orders(town.world.service, load(town.world.folder).tenant("nordhaus"))
    town.world.hub.webhooks.rotate(hook[0].id)
    prospect = town.world.hub.all("prospects")[0]
    town.world.hub.classify(prospect["id"], "bidder")
    town.arrived()
    assert set(town.world.hub.webhooks.statuses()) == {"delivered"}
    due = [row.parent for row in town.world.rows(s.feed) if row.hints > row.heard]
    assert due == [prospect["projectId"]]
    assert town.run().write_calls > 0
    town.world.settle()
    town.world.assert_in_step()


def test_a_prospect_whose_project_is_not_named_wakes_the_pair_all_the_same(town: Town) -> None:
    """The contract shows no payload of a prospect; open projects are visited in every run anyway."""
    town.world.hub.webhooks.names_project = False
    town.world.hub.webhooks.key = "type"
    prospect = town.world.hub.all("prospects")[0]
    town.world.hub.classify(prospect["id"], "bidder")
    town.arrived()
    assert [row.parent for row in town.world.rows(s.feed) if row.hints > row.heard] == []
    assert town.run().write_calls > 0


def test_what_failed_while_we_were_down_is_replayed_on_request(town: Town) -> None:
    """The secret was gone for a while: deliveries failed, and come when they are asked for, a hundred a call."""
    place = town.world.folder.parent / "hub-hook"
    secret = place.read_text()
    place.unlink()
    contact = town.world.hub.all("contacts")[0]
    for number in range(3):
        town.world.hub.edit("contacts", contact["id"], {"lastName": f"Berg{number}"})
        town.arrived()
    assert set(town.world.hub.webhooks.statuses()) == {"failed"}
    assert town.woken == []
    place.write_text(secret)
    tenant = load(town.world.folder).tenant("nordhaus")
    assert ordering.replay(town.world.service, tenant, town.world.clock() - timedelta(hours=1)) == 3
    town.arrived()
    assert set(town.world.hub.webhooks.statuses()) == {"delivered"}
    assert town.run().write_calls > 0
