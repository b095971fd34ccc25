"""A tenant between emulated vendors: real HTTP, real connectors, real database, in a time of its own.

``Pair`` is one pair of one tenant: Propstreet's emulator, a CRM's, the tenant's file that reaches
them. What both sides hold is compared in names and e-mail addresses, never in ids, so that a
double shows as a number above one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import yaml
from sqlalchemy import Engine, select, update

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.propstreet.emulator import PropstreetEmulator
from connectors.salesforce.emulator import SalesforceEmulator
from syncd.config import PairConfig, TenantConfig, load
from syncd.connector import Connector
from syncd.connector import load as load_connector
from syncd.core.model import Side
from syncd.engine.retry import Courier, Patience
from syncd.state import desk
from syncd.state import schema as s
from syncd.testing.emulator import Call, Emulator, Fault, ManualClock
from syncd.wiring import Result, Service, run_pair, settings_of

CRMS = ("hubspot", "salesforce")
Now = Callable[[], datetime]
#: What a run may take until everything has arrived (the third promise), and one more to see that it has.
RUNS = 3


@dataclass
class Pair:
    """One tenant with one pair."""

    tenant_name: str
    connector: str
    folder: Path
    hub: PropstreetEmulator
    crm: Emulator
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.write()

    # --- the tenant's file --------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """The tenant's file as data; secrets lie in files beside the folder."""
        crm: dict[str, Any] = {"connector": self.connector, "base_url": self.crm.url, "share_of_quota": 1.0}
        crm |= {"auth": self._secrets(self.connector, self.crm.auth)}
        if isinstance(self.crm, SalesforceEmulator):
            crm["login_url"] = self.crm.login_url
        return {
            "tenant": self.tenant_name,
            "propstreet": {"base_url": self.hub.url, "auth": self._secrets("propstreet", self.hub.auth)},
            "pairs": [{**crm, **self.extra}],
        }

    def _secrets(self, connection: str, auth: Mapping[str, str]) -> dict[str, dict[str, str]]:
        return {name: {"file": str(self.put_secret(connection, name, secret))} for name, secret in auth.items()}

    def put_secret(self, connection: str, name: str, secret: str) -> Path:
        """Write a credential where the tenant's file says that it is; returns that place."""
        file = self.folder.parent / f"{self.tenant_name}-{connection}-{name}"
        file.write_text(secret)
        return file

    @property
    def file(self) -> Path:
        return self.folder / f"{self.tenant_name}.yaml"

    def write(self, document: Mapping[str, Any] | None = None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text(yaml.safe_dump(dict(document or self.document()), sort_keys=False, allow_unicode=True))

    def config(self) -> tuple[TenantConfig, PairConfig]:
        tenant = load(self.folder).tenant(self.tenant_name)
        return tenant, tenant.pairs[0]

    # --- people ---------------------------------------------------------------------------

    def hub_contact(self, number: int, **more: Any) -> str:
        """A person adds a contact to Propstreet."""
        row = {"firstName": f"Hanna{number}", "lastName": "Berg", "email": f"hub{number}@example.com"}
        return self.hub.add("contacts", {**row, **more})

    def crm_contact(self, number: int, email: str | None = None, last: str = "Ek") -> str:
        """A person adds a contact to the CRM."""
        email = email or f"crm{number}@example.com"
        if isinstance(self.crm, HubSpotEmulator):
            return self.crm.add("contacts", {"firstname": f"Carl{number}", "lastname": last, "email": email})
        assert isinstance(self.crm, SalesforceEmulator)
        return self.crm.add("Contact", {"FirstName": f"Carl{number}", "LastName": last, "Email": email})

    def hub_rename(self, email: str, last: str) -> None:
        """A person changes a last name in Propstreet."""
        (id_,) = [each["id"] for each in self.hub.all("contacts") if each.get("email") == email]
        self.hub.edit("contacts", id_, {"lastName": last})

    def crm_rename(self, email: str, last: str) -> None:
        """A person changes a last name in the CRM."""
        if isinstance(self.crm, HubSpotEmulator):
            (id_,) = [each for each, row in self.crm.all("contacts").items() if row.get("email") == email]
            self.crm.edit("contacts", id_, {"lastname": last})
            return
        assert isinstance(self.crm, SalesforceEmulator)
        (id_,) = [each["Id"] for each in self.crm.all("Contact") if each["Email"] == email]
        self.crm.edit("Contact", id_, {"LastName": last})

    def hub_last(self, email: str) -> str:
        """The last name that Propstreet shows of a contact; empty if there is none."""
        return next((each.get("lastName", "") for each in self.hub.all("contacts") if each.get("email") == email), "")

    def crm_last(self, email: str) -> str:
        """The last name that the CRM shows of a contact; empty if there is none."""
        if isinstance(self.crm, HubSpotEmulator):
            rows = self.crm.all("contacts").values()
            return next((each.get("lastname", "") for each in rows if each.get("email") == email), "")
        assert isinstance(self.crm, SalesforceEmulator)
        return next((each["LastName"] for each in self.crm.all("Contact") if each["Email"] == email), "")

    def seed(self, contacts: int = 6, deals: int = 2) -> None:
        """A small portfolio: one company and some contacts on each side, projects with prospects."""
        firm = self.hub.add("companies", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
        if isinstance(self.crm, HubSpotEmulator):
            self.crm.add("companies", {"name": "Granit AB", "domain": "granit.se"})
        elif isinstance(self.crm, SalesforceEmulator):
            self.crm.add("Account", {"Name": "Granit AB", "Website": "https://granit.se"})
        people = [self.hub_contact(number) for number in range(contacts)]
        for number in range(contacts):
            self.crm_contact(number)
        for contact in people[:2]:
            self.hub.add("links", {"contactId": contact, "companyId": firm, "jobTitle": "CFO", "isPrimary": True})
        for number in range(deals):
            price = {"value": 10 + number, "currency": "SEK", "scale": "millions"}
            project = self.hub.add("projects", {"name": f"Kv. Svalan {number}", "price": price})
            for contact in people[: 2 + number]:
                self.hub.add("prospects", {"contactId": contact, "classification": "interested"}, parent=project)

    # --- what both sides hold ---------------------------------------------------------------

    def picture(self) -> dict[str, Counter[tuple[str, ...]]]:
        """Everything on both sides by kind, in people's words: a double counts two."""
        found = {f"propstreet {kind}": rows for kind, rows in _hub_picture(self.hub).items()}
        crm = _hubspot_picture(self.crm) if isinstance(self.crm, HubSpotEmulator) else _salesforce_picture(self.crm)
        return found | {f"crm {kind}": rows for kind, rows in crm.items()}

    def assert_in_step(self) -> None:
        """Both sides say the same, and nothing stands there twice."""
        picture = self.picture()
        for name, rows in picture.items():
            assert [row for row, count in rows.items() if count > 1] == [], name
        for kind in ("company", "contact", "employment", "deal", "deal_contact"):
            assert picture[f"propstreet {kind}"] == picture[f"crm {kind}"], kind


def _hub_picture(hub: PropstreetEmulator) -> dict[str, Counter[tuple[str, ...]]]:
    contacts = {each["id"]: each for each in hub.all("contacts")}
    firms = {each["id"]: each for each in hub.all("companies")}
    deals = {each["id"]: each for each in hub.all("projects")}
    return {
        "company": Counter((each["name"], each.get("domain", "")) for each in firms.values()),
        "contact": Counter(
            (each.get("email", ""), each.get("firstName", ""), each.get("lastName", "")) for each in contacts.values()
        ),
        "employment": Counter(
            (contacts[each["contactId"]].get("email", ""), firms[each["companyId"]]["name"])
            for each in hub.all("links")
        ),
        "deal": Counter((each["name"],) for each in deals.values()),
        "deal_contact": Counter(
            (deals[each["projectId"]]["name"], contacts[each["contactId"]].get("email", ""))
            for each in hub.all("prospects")
            if each["projectId"] in deals
        ),
    }


def _hubspot_picture(crm: HubSpotEmulator) -> dict[str, Counter[tuple[str, ...]]]:
    contacts, firms, deals = crm.all("contacts"), crm.all("companies"), crm.all("deals")
    return {
        "company": Counter((each["name"], each.get("domain", "")) for each in firms.values()),
        "contact": Counter(
            (each.get("email", ""), each.get("firstname", ""), each.get("lastname", "")) for each in contacts.values()
        ),
        "employment": Counter(
            (row.get("email", ""), firms[other]["name"])
            for id_, row in contacts.items()
            for other in crm.associations("contacts", id_, "companies")
        ),
        "deal": Counter((each["dealname"],) for each in deals.values()),
        "deal_contact": Counter(
            (row["dealname"], contacts[other].get("email", ""))
            for id_, row in deals.items()
            for other in crm.associations("deals", id_, "contacts")
        ),
    }


def _salesforce_picture(crm: Emulator) -> dict[str, Counter[tuple[str, ...]]]:
    assert isinstance(crm, SalesforceEmulator)
    contacts = {each["Id"]: each for each in crm.all("Contact")}
    firms = {each["Id"]: each for each in crm.all("Account")}
    deals = {each["Id"]: each for each in crm.all("Opportunity")}
    return {
        "company": Counter(
            (each["Name"], (each["Website"] or "").removeprefix("https://").removeprefix("www."))
            for each in firms.values()
        ),
        "contact": Counter(
            (each["Email"] or "", each["FirstName"] or "", each["LastName"]) for each in contacts.values()
        ),
        "employment": Counter(
            (each["Email"] or "", firms[each["AccountId"]]["Name"]) for each in contacts.values() if each["AccountId"]
        ),
        "deal": Counter((each["Name"],) for each in deals.values()),
        "deal_contact": Counter(
            (deals[each["OpportunityId"]]["Name"], contacts[each["ContactId"]]["Email"] or "")
            for each in crm.all("OpportunityContactRole")
        ),
    }


@dataclass
class World(Pair):
    """A pair with the service that syncs it, in virtual time."""

    clock: ManualClock = field(default_factory=ManualClock)
    service: Service = field(kw_only=True)

    def run(self, reason: Any = "run", **order: Any) -> Result:
        """One run, as the daemon makes it, half a minute after the one before."""
        self.clock.advance(30)
        tenant, pair = self.config()
        return run_pair(self.service, tenant, pair, reason, **order)

    def first(self) -> Result:
        """The approved first run, and what it needs until both sides are in step."""
        result = self.run("backfill")
        assert (result.state, result.message) == ("done", "")
        self.settle()
        return result

    def settle(self) -> list[Result]:
        """Run until nothing is left to do; that must not take more than three runs."""
        results = []
        for _ in range(RUNS + 1):
            results.append(self.run())
            assert (results[-1].state, results[-1].message) == ("done", "")
            if results[-1].write_calls == 0:
                return results
        raise AssertionError(f"still writing after {RUNS} runs: {results[-1].report}")

    def dead_letters(self) -> list[dict[str, Any]]:
        return list(desk.dead_letters(self.service.engine, desk.Scope(self.tenant_name)))

    def rows(self, table: Any) -> list[Any]:
        with self.service.engine.connect() as tx:
            return list(tx.execute(select(table)))

    def connect(self, side: Side) -> Connector:
        """The pair's connector of one side by itself, with the real pacing in virtual time."""
        tenant, pair = self.config()
        courier = Courier(Patience(self.clock, self.clock.advance, Random(3)))
        factory = load_connector("propstreet" if side is Side.LEFT else self.connector)
        connector = factory(settings_of(tenant, pair, side), courier, self.clock)
        courier.allow(connector.capabilities().quotas)
        return connector

    def look_at_everything(self) -> None:
        """A day passes, so that the next run lists both sides whole and visits all there is."""
        self.clock.advance(86_400)


@contextmanager
def started(*emulators: Emulator) -> Iterator[None]:
    try:
        for emulator in emulators:
            emulator.start()
        yield
    finally:
        # Each waits for its server's next tick: so all at once.
        with ThreadPoolExecutor(len(emulators)) as pool:
            list(pool.map(Emulator.stop, emulators))


def crm_emulator(connector: str, now: Now, **options: Any) -> Emulator:
    if connector == "hubspot":
        return HubSpotEmulator(now=now, is_prepared=True, **options)
    return SalesforceEmulator(now=now, **options)


@contextmanager
def world_of(
    engine: Engine,
    home: Path,
    connector: str,
    *,
    tenant: str = "nordhaus",
    clock: ManualClock | None = None,
    service: Service | None = None,
    hub: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    **crm: Any,
) -> Iterator[World]:
    """A tenant with running emulators, unseeded."""
    clock = clock or ManualClock(tick_seconds=0.001)
    serial = iter(range(1, 10**9))
    mine = service or Service(
        engine,
        now=clock,
        sleep=clock.advance,
        random=Random(7),
        new_id=lambda: f"{tenant}{next(serial):024d}"[-32:],
        holder="test",
    )
    left = PropstreetEmulator(now=clock, **(hub or {}))
    right = crm_emulator(connector, clock, **crm)
    with started(left, right):
        try:
            yield World(
                tenant, connector, home / "tenants", left, right, dict(extra or {}), clock=clock, service=mine
            )  # fmt: skip
        finally:
            for opened in list(mine._opened.values()):
                opened.close()
            mine._opened.clear()


def lapse(engine: Engine, at: datetime) -> None:
    """Let the leases of dead processes lapse, as half a minute of waiting would."""
    with engine.begin() as tx:
        tx.execute(update(s.pair).values(leased_until=at))


def fault(emulator: Emulator, **what: Any) -> Fault:
    """Let something go wrong from now on, see ``Fault``."""
    found = Fault(**what)
    with emulator.lock:
        emulator.faults.append(found)
    return found


@dataclass(slots=True)
class Moment(Fault):
    """Not a fault but an instant: ``act`` happens just before a matching request is answered as ever."""

    act: Callable[[], object] = lambda: None

    def takes(self, method: str, path: str) -> bool:
        if Fault.takes(self, method, path):
            self.act()
        return False


def meanwhile(emulator: Emulator, method: str, path: str, act: Callable[[], object], **more: Any) -> Moment:
    """Let ``act`` happen when the next such request arrives."""
    found = Moment(method=method, path=path, act=act, **more)
    with emulator.lock:
        emulator.faults.append(found)
    return found


def mark(emulator: Emulator) -> int:
    """A place in an emulator's log."""
    with emulator.lock:
        return len(emulator.log)


def since(emulator: Emulator, place: int) -> list[Call]:
    with emulator.lock:
        return emulator.log[place:]


#: Requests that read although they are not GETs.
_READS = ("/search", "/batch/read", "/token", "/query")


def is_write(call: Call) -> bool:
    """True for a request that may change something at the vendor."""
    if call.method == "GET" or call.path.endswith(_READS):
        return False
    if call.path.endswith("/composite") and isinstance(call.body, dict):
        parts = call.body.get("compositeRequest") or []
        return any(part.get("method") != "GET" for part in parts)
    return True


def writes(emulator: Emulator, place: int = 0) -> list[Call]:
    return [call for call in since(emulator, place) if is_write(call)]
