"""A small world for a story: Propstreet and one CRM over HTTP, the real service between them.

People's hands are spoken in canonical words on both sides (``add``, ``edit``, ``invite``,
``archive``, ``merge``), so that one story reads alike for every CRM. Values come back as plain
text, sets as sets, empty as None. Time is a clock that moves only when somebody says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Final

import yaml
from sqlalchemy import Engine

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.propstreet.emulator import PropstreetEmulator
from connectors.salesforce.emulator import SalesforceEmulator
from syncd.config import PairConfig, TenantConfig, load
from syncd.core.model import KINDS, Side
from syncd.state import desk
from syncd.testing.emulator import ManualClock
from syncd.wiring import Result, Service, check_pair, run_pair

MOST_RUNS: Final = 3
#: SQL as compiled for one world serves the next one as well.
_COMPILED: Final[dict[Any, Any]] = {}
BOTH_WAYS: Final = {"to_crm": "archive", "to_propstreet": "archive"}

# Any: rows of an emulator are bare JSON, in the vendor's own words.
Row = Mapping[str, Any]


def plain(raw: Any) -> Any:
    """A native value as a story compares it: text, a set for a list, None for empty."""
    match raw:
        case None | "":
            return None
        case bool():
            return raw
        case int() | float():
            return format(Decimal(str(raw)).normalize(), "f")
        case list() if all(isinstance(each, str) for each in raw):
            return set(raw) or None
        case list() | dict():
            return raw
        case _:
            return str(raw)


class Hub:
    """Propstreet as people use it. Records are named by kind and id."""

    collections: ClassVar = {
        "company": "companies", "contact": "contacts", "employment": "links", "deal": "projects",
        "deal_contact": "prospects", "property": "properties",
    }  # fmt: skip
    natives: ClassVar = {
        "first_name": "firstName", "last_name": "lastName", "homepage": "homepageUrl", "country": "countryCode",
        "linkedin": "linkedInUrl", "language": "primaryLanguage", "title": "jobTitle",
    }  # fmt: skip
    fields: ClassVar = {
        "company": ("name", "domain", "strategy", "tags"),
        "contact": ("firstName", "lastName", "email", "phone", "strategy", "tags", "linkedInUrl"),
        "deal": ("name", "price", "exclusivity"),
    }  # fmt: skip

    def __init__(self, clock: ManualClock, namespace: str):
        self.emulator = PropstreetEmulator(now=clock)
        self.namespace = namespace

    def add(self, kind: str, *, ref: str | None = None, others: Sequence[tuple[str, str]] = (), **fields: Any) -> str:
        """A person makes a record. ``ref``: the CRM's id as somebody stored it; ``others``: refs of other systems."""
        row = self._native(fields)
        refs = [*others, *([(self.namespace, ref)] if ref else [])]
        if refs:
            row["externalRefs"] = [{"namespace": space, "id": id_} for space, id_ in refs]
        return self.emulator.add(self.collections[kind], row)

    def edit(self, kind: str, id_: str, **fields: Any) -> None:
        self.emulator.edit(self.collections[kind], id_, self._native(fields))

    def get(self, kind: str, id_: str) -> dict[str, Any]:
        """What stands there, by canonical name where a field has one."""
        row = self.emulator.get(self.collections[kind], id_)
        names = {native: name for name, native in self.natives.items()}
        found = dict.fromkeys(self.fields.get(kind, ())) | row
        return {names.get(name, name): plain(value) for name, value in found.items()}

    def amount(self, deal: str) -> tuple[int, str]:
        """The price in whole units, and the scale that it is shown in."""
        price = self.row("deal", deal)["price"]
        units = {"none": 1, "thousands": 10**3, "millions": 10**6, "billions": 10**9}[price["scale"]]
        return int(Decimal(str(price["value"])) * units), price["scale"]

    def row(self, kind: str, id_: str) -> Row:
        """What stands there in Propstreet's own words."""
        return self.emulator.get(self.collections[kind], id_)

    def count(self, kind: str) -> int:
        return len(self.emulator.all(self.collections[kind]))

    def of(self, kind: str, crm_id: str) -> str:
        """The live record that carries this CRM id in its external refs; exactly one."""
        found = [row["id"] for row in self.emulator.all(self.collections[kind]) if self._ref(row) == crm_id]
        assert len(found) == 1, (kind, crm_id, found)
        return str(found[0])

    def refs(self, kind: str, id_: str) -> dict[str, str]:
        return {ref["namespace"]: ref["id"] for ref in self.row(kind, id_).get("externalRefs", [])}

    def is_there(self, kind: str, id_: str) -> bool:
        return "deletedUtc" not in self.row(kind, id_)

    def archive(self, kind: str, id_: str) -> None:
        self.emulator.remove(self.collections[kind], id_)

    def restore(self, kind: str, id_: str) -> None:
        self.emulator.restore(self.collections[kind], id_)

    def employ(self, contact: str, company: str, title: str | None = None) -> str:
        link = {"contactId": contact, "companyId": company, "jobTitle": title, "isPrimary": True}
        return self.emulator.add("links", link)

    def title(self, contact: str) -> Any:
        """The contact's job title at its one company."""
        (link,) = [each for each in self.emulator.all("links") if each["contactId"] == contact]
        return link.get("jobTitle")

    def invite(
        self, deal: str, contact: str | None = None, *, company: str | None = None, classification: str = "contacted"
    ) -> str:
        who = {"contactId": contact} if contact else {"companyId": company}
        return self.emulator.add("prospects", {**who, "classification": classification}, parent=deal)

    def invited(self, deal: str) -> dict[str, str]:
        """Contact (or, for want of one, company) -> classification of the project's live prospects."""
        rows = [each for each in self.emulator.all("prospects") if each["projectId"] == deal]
        found = {str(each.get("contactId") or each.get("companyId")): str(each["classification"]) for each in rows}
        assert len(found) == len(rows), rows
        return found

    def _ref(self, row: Row) -> str | None:
        spaces = {ref["namespace"]: ref["id"] for ref in row.get("externalRefs", [])}
        return spaces.get(self.namespace)

    def _native(self, fields: Row) -> dict[str, Any]:
        row = {self.natives.get(name, name): value for name, value in fields.items()}
        if "org_number" in row:
            row["externalRefs"] = [{"namespace": "org_number", "id": row.pop("org_number")}]
        if "amount" in row:
            row["price"] = {"value": row.pop("amount"), "currency": "SEK", "scale": "none"}
        if "stage" in row:
            row["teaser"] = {"stage": row.pop("stage")}
        if "tags" in row:
            row["tags"] = sorted(row["tags"])
        return row


class Crm:
    """What both CRMs' hands share. ``natives``: canonical field -> native one, by kind."""

    name: ClassVar[str]
    collections: ClassVar[Mapping[str, str]]
    natives: ClassVar[Mapping[str, Mapping[str, str]]]
    roles: ClassVar[Mapping[str, str]]
    """Classification -> what people see of it on a deal's contact."""
    stages: ClassVar[Mapping[str, str]]
    """first, middle, late, won and lost -> the CRM's own."""
    free: ClassVar[Mapping[str, tuple[str, str]]]
    """By kind a native field that nobody syncs, and something to put there."""

    def __init__(self, emulator: Any):
        self.emulator = emulator

    def add(self, kind: str, **fields: Any) -> str:
        """A person makes a record; ``mark`` is the Propstreet id as somebody stored it."""
        given = self._given(kind, fields)
        for native, value in self.needed(kind).items():
            given.setdefault(native, value)
        return str(self.emulator.add(self.collections[kind], given))

    def edit(self, kind: str, id_: str, **fields: Any) -> None:
        self.emulator.edit(self.collections[kind], id_, self._given(kind, fields))

    def needed(self, kind: str) -> Row:
        """What this CRM wants on every new record."""
        return {}

    def get(self, kind: str, id_: str) -> dict[str, Any]:
        """What stands there, by canonical name."""
        row = self.row(kind, id_)
        found = {name: plain(row.get(native)) for name, native in self.natives[kind].items()}
        if found.get("tags"):
            found["tags"] = set(found["tags"].split(";"))
        return found

    def row(self, kind: str, id_: str) -> Row:
        raise NotImplementedError

    def rows(self, kind: str) -> Mapping[str, Row]:
        """All live records in the CRM's own words, by id."""
        raise NotImplementedError

    def count(self, kind: str) -> int:
        return len(self.rows(kind))

    def of(self, kind: str, propstreet_id: str) -> str:
        """The live record that carries this Propstreet id; exactly one."""
        native = self.natives[kind]["mark"]
        found = [id_ for id_, row in self.rows(kind).items() if row.get(native) == propstreet_id]
        assert len(found) == 1, (kind, propstreet_id, found)
        return found[0]

    def with_email(self, email: str) -> list[str]:
        native = self.natives["contact"]["email"]
        return [id_ for id_, row in self.rows("contact").items() if str(row.get(native)).lower() == email]

    def is_there(self, kind: str, id_: str) -> bool:
        return id_ in self.rows(kind)

    def archive(self, kind: str, id_: str) -> None:
        raise NotImplementedError

    def restore(self, kind: str, id_: str) -> None:
        raise NotImplementedError

    def merge(self, kind: str, winner: str, loser: str) -> str:
        """Merge two records; returns the survivor's id."""
        raise NotImplementedError

    def employ(self, contact: str, company: str, title: str | None = None) -> None:
        raise NotImplementedError

    def employer(self, contact: str) -> str | None:
        raise NotImplementedError

    def invite(self, deal: str, contact: str, classification: str | None = None) -> None:
        """Put a contact on a deal, with the label or role that shows a classification."""
        raise NotImplementedError

    def relabel(self, deal: str, contact: str, classification: str | None) -> None:
        """Show another classification, or none; whatever else is on the association stays."""
        raise NotImplementedError

    def take_off(self, deal: str, contact: str) -> None:
        raise NotImplementedError

    def invited(self, deal: str) -> dict[str, str]:
        """Contact -> classification as its label or role shows it."""
        raise NotImplementedError

    def teaser(self, deal: str, contact: str) -> tuple[str | None, str | None]:
        """(deadline, acceptance) of a deal's contact as the CRM shows them, to the second."""
        raise NotImplementedError

    def moved_at(self, deal: str) -> object:
        """When the deal itself was last modified."""
        raise NotImplementedError

    def _given(self, kind: str, fields: Row) -> dict[str, Any]:
        return {self.natives[kind].get(name, name): self.raw(name, value) for name, value in fields.items()}

    def raw(self, name: str, value: Any) -> Any:
        """A canonical value as this CRM's people type it."""
        if isinstance(value, set | frozenset):
            return ";".join(sorted(value))
        return self.stages.get(value, value) if name == "stage" else value

    def _word(self, shown: set[str]) -> str:
        """The classification among what is shown on an association."""
        found = [word for word, label in self.roles.items() if label in shown]
        assert len(found) <= 1, shown
        return found[0] if found else "not_contacted"


_OWN = (
    "status classification exclusivity asset_type property_count property_name property_location property_country "
    "property_categories property_tenure property_year_built property_area_sqm"
)


class HubSpot(Crm):
    """A HubSpot portal."""

    name = "hubspot"
    collections: ClassVar = {"company": "companies", "contact": "contacts", "deal": "deals"}
    natives: ClassVar = {
        "company": {
            "name": "name", "domain": "domain", "org_number": "propstreet_org_number", "country": "country",
            "strategy": "propstreet_strategy", "tags": "propstreet_tags", "mark": "propstreet_company_id",
            "linkedin": "linkedin_company_page",
        },
        "contact": {
            "first_name": "firstname", "last_name": "lastname", "email": "email", "phone": "mobilephone",
            "title": "jobtitle", "strategy": "propstreet_strategy", "tags": "propstreet_tags",
            "language": "propstreet_language", "linkedin": "hs_linkedin_url", "mark": "propstreet_contact_id",
        },
        "deal": {
            "name": "dealname", "amount": "amount", "stage": "dealstage", "mark": "propstreet_project_id",
            **{name: f"propstreet_{name}" for name in _OWN.split()},
        },
    }  # fmt: skip
    roles: ClassVar = {
        "contacted": "Contacted", "interested": "Interested", "not_interested": "Not interested", "bidder": "Bidder",
    }  # fmt: skip
    stages: ClassVar = {
        "first": "appointmentscheduled", "middle": "presentationscheduled", "late": "decisionmakerboughtin",
        "won": "closedwon", "lost": "closedlost",
    }  # fmt: skip
    free: ClassVar = {
        "company": ("industry", "Real estate"), "contact": ("city", "Lund"), "deal": ("description", "By the harbour"),
    }  # fmt: skip

    def __init__(self, clock: ManualClock):
        super().__init__(HubSpotEmulator(now=clock))

    def needed(self, kind: str) -> Row:
        return {"dealstage": "appointmentscheduled", "pipeline": "default"} if kind == "deal" else {}

    def raw(self, name: str, value: Any) -> Any:
        found = super().raw(name, value)
        return "" if found is None else str(found)

    def row(self, kind: str, id_: str) -> Row:
        found: Row | None = self.emulator.get(self.collections[kind], id_)
        assert found is not None, f"{kind} {id_} is archived"
        return found

    def rows(self, kind: str) -> Mapping[str, Row]:
        found: Mapping[str, Row] = self.emulator.all(self.collections[kind])
        return found

    def get(self, kind: str, id_: str) -> dict[str, Any]:
        found = super().get(kind, id_)
        if kind == "contact":
            found["phone"] = found["phone"] or plain(self.row(kind, id_).get("phone"))
        return found

    def edit(self, kind: str, id_: str, **fields: Any) -> None:
        """A person retypes the phone where it stands."""
        if "phone" in fields and not self.row(kind, id_).get("mobilephone"):
            self.emulator.edit("contacts", id_, {"phone": fields.pop("phone")})
        super().edit(kind, id_, **fields)

    def archive(self, kind: str, id_: str) -> None:
        self.emulator.archive(self.collections[kind], id_)

    def restore(self, kind: str, id_: str) -> None:
        self.emulator.restore(self.collections[kind], id_)

    def merge(self, kind: str, winner: str, loser: str) -> str:
        return str(self.emulator.merge(self.collections[kind], winner, loser))

    def employ(self, contact: str, company: str, title: str | None = None) -> None:
        self.emulator.associate("contacts", contact, "companies", company)
        if title is not None:
            self.edit("contact", contact, title=title)

    def employer(self, contact: str) -> str | None:
        bonds = self.emulator.associations("contacts", contact, "companies")
        return next((id_ for id_, labels in bonds.items() if "Primary" in labels), None)

    def invite(self, deal: str, contact: str, classification: str | None = None) -> None:
        labels = [self.roles[classification]] if classification else []
        self.emulator.associate("deals", deal, "contacts", contact, labels)

    def relabel(self, deal: str, contact: str, classification: str | None) -> None:
        held = self.emulator.associations("deals", deal, "contacts")[contact]
        old = [label for label in self.roles.values() if label in held]
        if old:
            self.emulator.dissociate("deals", deal, "contacts", contact, old)
        if classification:
            self.invite(deal, contact, classification)

    def take_off(self, deal: str, contact: str) -> None:
        self.emulator.dissociate("deals", deal, "contacts", contact)

    def invited(self, deal: str) -> dict[str, str]:
        bonds = self.emulator.associations("deals", deal, "contacts")
        return {contact: self._word(labels) for contact, labels in bonds.items()}

    def teaser(self, deal: str, contact: str) -> tuple[str | None, str | None]:
        text = str(self.row("deal", deal).get("propstreet_teaser_responses") or "")
        said = next((line for line in text.splitlines() if line.startswith(f"contact {contact}: ")), "")
        parts = said.partition(": ")[2].split(", ")
        deadline = next((each.removeprefix("reply by ") for each in parts if each.startswith("reply by ")), None)
        accepted = next((each.removeprefix("accepted ") for each in parts if each.startswith("accepted ")), None)
        labels = self.emulator.associations("deals", deal, "contacts")[contact]
        assert ("Teaser sent" in labels) == bool(deadline or accepted), labels
        assert ("Teaser accepted" in labels) == bool(accepted), labels
        return deadline, accepted

    def moved_at(self, deal: str) -> object:
        return self.row("deal", deal)["hs_lastmodifieddate"]


class Salesforce(Crm):
    """A Salesforce org."""

    name = "salesforce"
    collections: ClassVar = {"company": "Account", "contact": "Contact", "deal": "Opportunity"}
    natives: ClassVar = {
        "company": {
            "name": "Name", "domain": "Website", "org_number": "Propstreet_Org_Number__c", "country": "BillingCountry",
            "strategy": "Propstreet_Strategy__c", "tags": "Propstreet_Tags__c", "mark": "Propstreet_Company_Id__c",
            "linkedin": "Propstreet_LinkedIn__c",
        },
        "contact": {
            "first_name": "FirstName", "last_name": "LastName", "email": "Email", "phone": "MobilePhone",
            "title": "Title", "strategy": "Propstreet_Strategy__c", "tags": "Propstreet_Tags__c",
            "language": "Propstreet_Language__c", "linkedin": "Propstreet_LinkedIn__c",
            "mark": "Propstreet_Contact_Id__c",
        },
        "deal": {
            "name": "Name", "amount": "Amount", "stage": "StageName", "mark": "Propstreet_Project_Id__c",
            **{name: f"Propstreet_{name.title().removesuffix('_Sqm')}__c" for name in _OWN.split()},
        },
    }  # fmt: skip
    roles: ClassVar = {
        "contacted": "Contacted", "interested": "Interested", "not_interested": "Not Interested", "bidder": "Bidder",
    }  # fmt: skip
    stages: ClassVar = {
        "first": "Qualification", "middle": "Proposal/Price Quote", "late": "Negotiation/Review",
        "won": "Closed Won", "lost": "Closed Lost",
    }  # fmt: skip
    free: ClassVar = {
        "company": ("Phone", "08-111 22 33"), "contact": ("Phone", "08-444 55 66"), "deal": ("CloseDate", "2027-12-24"),
    }  # fmt: skip

    def __init__(self, clock: ManualClock):
        super().__init__(SalesforceEmulator(now=clock))

    def needed(self, kind: str) -> Row:
        return {
            "company": {"Name": "?"},
            "contact": {"LastName": "?"},
            "deal": {"StageName": "Qualification", "CloseDate": "2027-03-31"},
        }[kind]

    def raw(self, name: str, value: Any) -> Any:
        found = super().raw(name, value)
        return None if found == "" else found

    def row(self, kind: str, id_: str) -> Row:
        found: Row = self.emulator.get(self.collections[kind], id_)
        assert not found["IsDeleted"], f"{kind} {id_} is in the bin"
        return found

    def rows(self, kind: str) -> Mapping[str, Row]:
        return {row["Id"]: row for row in self.emulator.all(self.collections[kind])}

    def archive(self, kind: str, id_: str) -> None:
        self.emulator.delete(self.collections[kind], id_)

    def restore(self, kind: str, id_: str) -> None:
        self.emulator.undelete(self.collections[kind], id_)

    def merge(self, kind: str, winner: str, loser: str) -> str:
        self.emulator.merge(self.collections[kind], winner, loser)
        return winner

    def employ(self, contact: str, company: str, title: str | None = None) -> None:
        self.emulator.edit("Contact", contact, {"AccountId": company, "Title": title})

    def employer(self, contact: str) -> str | None:
        found: str | None = self.row("contact", contact)["AccountId"]
        return found

    def invite(self, deal: str, contact: str, classification: str | None = None) -> None:
        role = self.roles[classification] if classification else None
        self.emulator.add("OpportunityContactRole", {"OpportunityId": deal, "ContactId": contact, "Role": role})

    def relabel(self, deal: str, contact: str, classification: str | None) -> None:
        role = self.roles[classification] if classification else None
        self.emulator.edit("OpportunityContactRole", self._role(deal, contact)["Id"], {"Role": role})

    def take_off(self, deal: str, contact: str) -> None:
        self.emulator.delete("OpportunityContactRole", self._role(deal, contact)["Id"])

    def invited(self, deal: str) -> dict[str, str]:
        rows = [row for row in self.emulator.all("OpportunityContactRole") if row["OpportunityId"] == deal]
        found = {str(row["ContactId"]): self._word({str(row["Role"])}) for row in rows}
        assert len(found) == len(rows), rows
        return found

    def teaser(self, deal: str, contact: str) -> tuple[str | None, str | None]:
        row = self._role(deal, contact)
        deadline, accepted = row["Propstreet_Deadline__c"], row["Propstreet_Accepted_At__c"]
        return _zulu(deadline), _zulu(accepted)

    def moved_at(self, deal: str) -> object:
        return self.row("deal", deal)["SystemModstamp"]

    def _role(self, deal: str, contact: str) -> Row:
        rows: list[Row] = self.emulator.all("OpportunityContactRole")
        (found,) = [row for row in rows if (row["OpportunityId"], row["ContactId"]) == (deal, contact)]
        return found


def _zulu(moment: str | None) -> str | None:
    return moment and moment.replace(".000+0000", "Z")


CRMS: Final[Mapping[str, type[HubSpot] | type[Salesforce]]] = {"hubspot": HubSpot, "salesforce": Salesforce}


@dataclass(frozen=True, slots=True)
class Known:
    """Two records that are linked: one of each side."""

    hub: str
    crm: str


class World:
    """One tenant with one pair. ``after_run`` is called after each run, for automation that reacts to us."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        crm: str,
        kinds: Sequence[str],
        settings: Row,
        clock: ManualClock | None = None,
    ):
        self.clock = clock or ManualClock(tick_seconds=0.001)
        self.folder = folder
        self.kinds = kinds
        self.serial = iter(range(1, 10**9))
        self.hub = Hub(self.clock, crm)
        self.crm = CRMS[crm](self.clock)
        self.after_run: Callable[[], None] = lambda: None
        for emulator in (self.hub.emulator, self.crm.emulator):
            emulator.start()
        engine = engine.execution_options(compiled_cache=_COMPILED)
        self.service = Service(
            engine, self.clock, self.clock.advance, Random(1), lambda: f"id-{next(self.serial):08d}", "stories"
        )
        self.configure(**settings)
        checked = check_pair(self.service, *self.subject, is_fixing=True)
        assert not [each for _, each in checked.findings if each.is_required], checked

    def close(self) -> None:
        for opened in self.service._opened.values():
            opened.close()
        for emulator in (self.hub.emulator, self.crm.emulator):
            threading.Thread(target=emulator.stop, daemon=True).start()

    # --- the tenant's file ------------------------------------------------------------

    def configure(self, **settings: Row) -> None:
        """Write the tenant's file with these settings of kinds over the stories' own."""
        own: Row = {"deal_contact": {"deletes": BOTH_WAYS}}
        kinds: dict[str, Any] = {kind: {**own.get(kind, {}), **settings.get(kind, {})} for kind in self.kinds}
        assert settings.keys() <= kinds.keys()
        kinds |= {kind: "off" for kind in KINDS if kind not in kinds}
        (self.folder / "secrets").mkdir(exist_ok=True)
        (self.folder / "tenants").mkdir(exist_ok=True)
        login = {"login_url": self.crm.emulator.login_url} if self.crm.name == "salesforce" else {}
        pair = {"connector": self.crm.name, **self._connection(self.crm.emulator, self.crm.name), **login}
        document = {
            "tenant": "story",
            "propstreet": self._connection(self.hub.emulator, "propstreet"),
            "pairs": [{**pair, "share_of_quota": 1, "kinds": kinds}],
        }
        (self.folder / "tenants" / "story.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        loaded = load(self.folder / "tenants")
        assert not loaded.problems, list(map(str, loaded.problems))
        (tenant,) = loaded.tenants
        self.subject: tuple[TenantConfig, PairConfig] = tenant, tenant.pairs[0]

    def _connection(self, emulator: Any, name: str) -> dict[str, Any]:
        auth = {}
        for key, secret in emulator.auth.items():
            file = self.folder / "secrets" / f"{name}-{key}"
            file.write_text(secret)
            auth[key] = {"file": str(file)}
        return {"base_url": emulator.url, "auth": auth}

    # --- running ----------------------------------------------------------------------

    def run(self, *, is_backfill: bool = False) -> Result:
        """Half a minute later, one run, which must end well."""
        self.clock.advance(30)
        result = run_pair(self.service, *self.subject, "backfill" if is_backfill else "run")
        assert result.state == "done", result
        self.after_run()
        return result

    def meet(self) -> None:
        """The first contact, to the end."""
        self.run(is_backfill=True)
        self.settle()

    def settle(self, *, dead: int = 0) -> None:
        """Run until quiet: of at most three runs each may write, and a further one must find nothing to do."""
        for _ in range(MOST_RUNS):
            last = self.run()
            if last.write_calls == 0:
                break
        else:
            last = self.run()
        assert (last.report.operations, last.write_calls) == (0, 0), last
        letters = self.dead_letters()
        assert len(letters) == dead, letters

    # --- who is known to both ---------------------------------------------------------

    def known(self, kind: str, hub_id: str) -> Known:
        """A record of Propstreet with its counterpart, which carries its id."""
        return Known(hub_id, self.crm.of(kind, hub_id))

    def introduce(self, kind: str, **fields: Any) -> Known:
        """A record that Propstreet had and that is linked by now."""
        hub_id = self.hub.add(kind, **fields)
        self.meet()
        return self.known(kind, hub_id)

    def anna(self) -> Known:
        """A contact that both sides know."""
        return self.introduce("contact", first_name="Anna", last_name="Berg", email="anna@nordhaus.se")

    def svalan(self) -> Known:
        """A deal that both sides know."""
        return self.introduce("deal", name="Kv. Svalan 4")

    def offer(self, **more: Any) -> tuple[Known, Known]:
        """The deal and the contact, both known to both sides."""
        contact = self.hub.add("contact", first_name="Anna", last_name="Berg", email="anna@nordhaus.se")
        deal = self.hub.add("deal", name="Kv. Svalan 4", **more)
        self.meet()
        return self.known("deal", deal), self.known("contact", contact)

    # --- what waits for a person ------------------------------------------------------

    @property
    def engine(self) -> Engine:
        return self.service.engine

    def conflicts(self, *, only_open: bool = False) -> list[Row]:
        return list(desk.conflicts(self.engine, desk.Scope(), only_open=only_open))

    def reviews(self, kind: str) -> list[Row]:
        return [each for each in desk.reviews(self.engine, desk.Scope()) if each["kind"] == kind]

    def dead_letters(self) -> list[Row]:
        return list(desk.dead_letters(self.engine, desk.Scope()))

    def excluded(self, kind: str) -> dict[tuple[Any, Any], Any]:
        """(Propstreet id, CRM id) -> the reason why it is left out."""
        rows = [each for each in desk.excluded(self.engine, desk.Scope()) if each["kind"] == kind]
        return {(each["propstreet"], each["crm"]): each["reason"] for each in rows}

    def resolve(self, conflict: Row, winner: str) -> None:
        """A person's word on a conflict, as ``syncd resolve`` takes it."""
        side = Side.LEFT if winner == "propstreet" else Side.RIGHT
        desk.settle_conflict(self.engine, str(conflict["id"]), side, self.clock())

    def answer(self, review: Row, answer: str, candidate: str | None = None) -> None:
        desk.answer_review(self.engine, str(review["id"]), answer, candidate, self.clock())


def worlds(engine: Engine, folder: Path, crm: str) -> Iterator[Callable[..., World]]:
    """For a fixture: opens worlds that sync these kinds, or all, by these settings, and closes them in the end."""
    opened: list[World] = []

    def begin(*kinds: str, **settings: Row) -> World:
        opened.append(World(engine, folder, crm, kinds or KINDS, settings))
        return opened[-1]

    yield begin
    for world in opened:
        world.close()
