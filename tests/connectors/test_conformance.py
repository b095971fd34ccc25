"""Every connector against the laws of ``syncd.testing.conformance``: in memory, and over HTTP to its emulator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest

from connectors.hubspot import connector as hubspot
from connectors.hubspot.emulator import HubSpotEmulator
from connectors.propstreet import connector as propstreet
from connectors.propstreet.emulator import PropstreetEmulator
from connectors.salesforce import connector as salesforce
from connectors.salesforce.client import normal_id
from connectors.salesforce.emulator import SalesforceEmulator
from syncd.connector import ConnectionSettings, Connector, ConnectorFactory, Secret
from syncd.core.model import KINDS, Values, Verb
from syncd.testing.emulator import Call, Fault, ManualClock
from syncd.testing.memory import MemoryConnector, MemoryFault, MemorySystem

pytest.register_assert_rewrite("syncd.testing.conformance")

from syncd.testing.conformance import Conformance, CountingWire, FaultKind, Harness  # noqa: E402

T = TypeVar("T")
PREFIXES = tuple(zip(KINDS, ("001", "003", "003", "006", "00K"), strict=True))


def by_kind(**values: T) -> Mapping[str, T]:
    return values


def names(**kinds: str) -> Mapping[str, frozenset[str]]:
    return {kind: frozenset(text.split()) for kind, text in kinds.items()}


def refused(create: Values, update: Values) -> Mapping[Verb, Values]:
    return {"create": create, "update": update}


class InMemory(Harness):
    """A system in memory, on either side."""

    page = 50
    missing = dict.fromkeys(KINDS, "x99999")
    never_empty = never_shown = names()
    poison = refused({"last_name": "poison"}, {"last_name": "poison"})

    def __init__(self, *, is_hub: bool) -> None:
        self.clock = ManualClock()
        self.system = MemorySystem(self.clock, is_hub=is_hub)
        self.system.refuses = lambda write: "POISON" if "poison" in write.values.values() else None
        self.wire = CountingWire()
        self.connector: Connector = MemoryConnector(self.system, self.wire)

    def reconnect(self) -> None:
        self.connector = MemoryConnector(self.system, self.wire)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def add(self, kind: str, values: Values, refs: Mapping[str, str]) -> str:
        return self.system.add(kind, values, refs=refs)

    def edit(self, kind: str, id_: str, values: Values) -> None:
        self.system.edit(kind, id_, **values)

    def remove(self, kind: str, id_: str) -> None:
        self.system.remove(kind, id_)

    def merge(self, kind: str, winner: str, loser: str) -> str | None:
        self.system.merge(kind, winner, loser)
        return winner

    def plant(self, kind: str, id_: str) -> bool:
        self.system.change(kind, id_, native={"owner": "somebody"})
        return True

    def planted(self, kind: str, id_: str) -> object:
        return self.system.get(kind, id_).native

    def fault(self, which: FaultKind) -> None:
        self.system.faults.append(MemoryFault("write", "after" if which in ("after", "500") else "before"))

    def requests(self) -> Sequence[str]:
        return [str(call) for call in self.system.calls]

    def close(self) -> None:
        return None


class Served(Harness):
    """A system behind HTTP. ``natives``: where people see a kind's label; ``creates``: what a create asks for.

    Quotas are left out: keeping to them is the engine's part.
    """

    never_empty = never_shown = names()
    natives: Mapping[str, tuple[str, str]]
    creates: tuple[str, str]

    # Any: each emulator has people's edits of its own.
    def __init__(self, emulator: Any, clock: ManualClock, factory: ConnectorFactory) -> None:
        self.clock = clock
        self.emulator = emulator
        self.emulator.start()
        self.wire = CountingWire()
        auth = {name: Secret(lambda text=text: text) for name, text in emulator.auth.items()}  # type: ignore[misc]
        settings = ConnectionSettings("tried", emulator.url, None, auth, "crm")
        self._connect: Callable[[], Connector] = lambda: factory(settings, self.wire, clock)
        self.connector: Connector = self._connect()
        self.connector.fix(self.connector.check())

    def reconnect(self) -> None:
        self.connector.close()
        self.connector = self._connect()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def named(self, kind: str, values: Values) -> dict[str, Any]:
        return dict.fromkeys([self.natives[kind][1]] if values else [], *values.values())

    def edit(self, kind: str, id_: str, values: Values) -> None:
        self.emulator.edit(self.natives[kind][0], id_, self.named(kind, values))

    def merge(self, kind: str, winner: str, loser: str) -> str | None:
        return None

    def fault(self, which: FaultKind) -> None:
        method, path = self.creates
        made: dict[FaultKind, Fault] = {
            "before": Fault(method, path, "before", 503),
            "after": Fault(method, path, "drop"),
            "429": Fault(method, path, "before", 429, {"policyName": "SECONDLY"}),
            "500": Fault(method, path, "after", 500),
        }
        self.emulator.faults = [made[which]]

    def requests(self) -> Sequence[str]:
        return [f"{call.method} {call.path} {dict(call.query)} {self.inner(call)}" for call in self.emulator.calls()]

    def inner(self, call: Call) -> object:
        """What of a body is a path or a query itself."""
        return None

    def close(self) -> None:
        self.connector.close()
        threading.Thread(target=self.emulator.stop, daemon=True).start()


class OverHubSpot(Served):
    """A portal that had nothing of ours. Labels of relations stand on associations, job titles on contacts."""

    page = 200
    missing = by_kind(company="9", contact="9", employment="9:16", deal="9", deal_contact="9:contact:16")
    never_empty = names(employment="is_primary", deal="stage", deal_contact="classification")
    never_shown = names(deal_contact="accepted_at deadline_at")
    poison = refused({"email": "no address"}, {"email": "no address"})
    natives = by_kind(
        company=("companies", "name"),
        contact=("contacts", "lastname"),
        employment=("contacts", "jobtitle"),
        deal=("deals", "dealname"),
    )
    creates = ("POST", r"/batch/(upsert|create)$")
    theirs = by_kind(company="industry", contact="lifecyclestage", deal="hs_next_step")
    emulator: HubSpotEmulator

    def __init__(self) -> None:
        clock = ManualClock()
        super().__init__(HubSpotEmulator(now=clock, quota=False), clock, hubspot.connect)

    @staticmethod
    def ends(id_: str) -> tuple[str, str, str, str]:
        one, *_, other = id_.split(":")
        return ("deals", one, "contacts", other) if ":contact:" in id_ else ("contacts", one, "companies", other)

    def add(self, kind: str, values: Values, refs: Mapping[str, str]) -> str:
        if refs:
            one, other = ("contact", "company") if kind == "employment" else ("deal", "contact")
            id_ = ":".join([refs[one], *(["contact"] if one == "deal" else []), refs[other]])
            self.emulator.associate(*self.ends(id_))
            self.edit(kind, id_, values)
            return id_
        stage = {"dealstage": "qualifiedtobuy"} if kind == "deal" else {}
        return self.emulator.add(self.natives[kind][0], self.named(kind, values) | stage)

    def edit(self, kind: str, id_: str, values: Values) -> None:
        if kind != "deal_contact":
            super().edit(kind, id_.split(":")[0], values)
            return
        ends = self.ends(id_)
        held = self.emulator.associations(*ends[:3])[ends[3]]
        self.emulator.dissociate(*ends, sorted(held & {"Contacted", "Interested", "Bidder"}) or ["Bidder"])
        self.emulator.associate(*ends, [str(value).capitalize() for value in values.values()])

    def remove(self, kind: str, id_: str) -> None:
        if ":" in id_:
            self.emulator.dissociate(*self.ends(id_))
        else:
            self.emulator.archive(self.natives[kind][0], id_)

    def merge(self, kind: str, winner: str, loser: str) -> str | None:
        return self.emulator.merge(self.natives[kind][0], winner, loser)

    def plant(self, kind: str, id_: str) -> bool:
        if ":" in id_:
            self.emulator.associate(*self.ends(id_), ["Family friend"])
        else:
            self.emulator.edit(self.natives[kind][0], id_, {self.theirs[kind]: "theirs"})
        return True

    def planted(self, kind: str, id_: str) -> object:
        if ":" in id_:
            return self.emulator.associations(*self.ends(id_)[:3])[self.ends(id_)[3]] & {"Family friend"}
        return (self.emulator.get(self.natives[kind][0], id_) or {})[self.theirs[kind]]


class OverSalesforce(Served):
    """An org with our custom fields. An employment is its contact's account."""

    page = 20
    missing = by_kind(**{kind: normal_id(f"{prefix}Em9999999999", "Id") for kind, prefix in PREFIXES})
    never_empty = names(company="name", contact="last_name", deal="name stage", deal_contact="classification")
    poison = refused({"email": f"{'x' * 80}@a.example"}, {"last_name": None})
    natives = by_kind(
        company=("Account", "Name"),
        contact=("Contact", "LastName"),
        employment=("Contact", "Title"),
        deal=("Opportunity", "Name"),
        deal_contact=("OpportunityContactRole", "Role"),
    )
    creates = ("*", r"/sobjects(/|$)")
    theirs: Mapping[str, tuple[str, object]] = by_kind(
        company=("Phone", "+468555"),
        contact=("Title", "Consul"),
        employment=("MobilePhone", "+467055"),
        deal=("CloseDate", "2031-01-01"),
        deal_contact=("IsPrimary", True),
    )
    emulator: SalesforceEmulator

    def __init__(self) -> None:
        clock = ManualClock()
        super().__init__(SalesforceEmulator(now=clock, page_size=self.page), clock, salesforce.connect)

    def named(self, kind: str, values: Values) -> dict[str, Any]:
        is_word = kind == "deal_contact"
        return super().named(kind, {name: str(each).capitalize() if is_word else each for name, each in values.items()})

    def add(self, kind: str, values: Values, refs: Mapping[str, str]) -> str:
        fields = self.named(kind, values)
        match kind:
            case "employment":
                self.emulator.edit("Contact", refs["contact"], fields | {"AccountId": refs["company"]})
                return refs["contact"]
            case "deal":
                fields |= {"StageName": "Qualification", "CloseDate": "2027-01-31"}
            case "deal_contact":
                fields |= {"OpportunityId": refs["deal"], "ContactId": refs["contact"]}
        return self.emulator.add(self.natives[kind][0], fields)

    def remove(self, kind: str, id_: str) -> None:
        if kind == "employment":
            self.emulator.edit("Contact", id_, {"AccountId": None})
        else:
            self.emulator.delete(self.natives[kind][0], id_)

    def merge(self, kind: str, winner: str, loser: str) -> str | None:
        if kind == "deal":
            return None
        self.emulator.merge(self.natives[kind][0], winner, loser)
        return winner

    def plant(self, kind: str, id_: str) -> bool:
        self.emulator.edit(self.natives[kind][0], id_, dict([self.theirs[kind]]))
        return True

    def planted(self, kind: str, id_: str) -> object:
        return self.emulator.get(self.natives[kind][0], id_)[self.theirs[kind][0]]

    def inner(self, call: Call) -> object:
        return call.body if call.path.endswith("/composite") else None


class OverPropstreet(Served):
    """An account as the contract describes it; a ``generous`` one offers what the contract leaves open."""

    page = 20
    missing = dict.fromkeys(KINDS, "999999")
    never_empty = names(company="name", employment="is_primary", deal="name asset_type", deal_contact="classification")
    poison = refused({"email": "no address"}, {"email": "no address"})
    natives = by_kind(
        company=("companies", "name"),
        contact=("contacts", "lastName"),
        employment=("links", "jobTitle"),
        deal=("projects", "name"),
        deal_contact=("prospects", "classification"),
    )
    creates = ("POST", "/api/v1")
    emulator: PropstreetEmulator

    def __init__(self, *, generous: bool = False) -> None:
        clock = ManualClock()
        emulator = PropstreetEmulator(now=clock, page_cap=self.page, quota=False)
        emulator.link_shows_primary = emulator.has_network_deletes = generous
        self.never_shown = names() if generous else names(employment="is_primary")
        super().__init__(emulator, clock, propstreet.connect)

    def add(self, kind: str, values: Values, refs: Mapping[str, str]) -> str:
        ends = {f"{end}Id": id_ for end, id_ in refs.items() if end != "deal"}
        primary = {"isPrimary": True} if kind == "employment" else {}
        return self.emulator.add(self.natives[kind][0], self.named(kind, values) | ends | primary, refs.get("deal"))

    def remove(self, kind: str, id_: str) -> None:
        self.emulator.remove(self.natives[kind][0], id_)

    def plant(self, kind: str, id_: str) -> bool:
        if kind != "employment":
            self.emulator.edit(self.natives[kind][0], id_, {"externalRefs": [{"namespace": "erp", "id": "E/1"}]})
        return kind != "employment"

    def planted(self, kind: str, id_: str) -> object:
        refs = self.emulator.get(self.natives[kind][0], id_)["externalRefs"]
        return [ref for ref in refs if ref["namespace"] == "erp"]


class TestMemoryAsHub(Conformance):
    def build(self) -> Harness:
        return InMemory(is_hub=True)


class TestMemoryAsCrm(Conformance):
    def build(self) -> Harness:
        return InMemory(is_hub=False)


class TestHubSpot(Conformance):
    def build(self) -> Harness:
        return OverHubSpot()


class TestSalesforce(Conformance):
    def build(self) -> Harness:
        return OverSalesforce()


class TestPropstreet(Conformance):
    def build(self) -> Harness:
        return OverPropstreet()


class TestGenerousPropstreet(Conformance):
    def build(self) -> Harness:
        return OverPropstreet(generous=True)
