"""The emulated Propstreet of the demo: its half of the portfolio, and the small edits its users make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from connectors.propstreet.emulator import PropstreetEmulator, Stored
from syncd.core.mapping import UnfitValueError, iso_z
from syncd.testing.emulator import Now
from syncd.testing.portfolio import Cell, Investor, Portfolio, amount, grouped

#: What the demo shows of a contact.
_CONTACT: Final = {
    "first_name": "firstName", "last_name": "lastName", "phone": "phone", "strategy": "strategy",
}  # fmt: skip
_SCALES: Final = {"none": "", "thousands": "k", "millions": "M", "billions": "bn "}
_STAGES: Final = (
    ("", "none"),
    ("property_added", "property added"),
    ("drafting", "drafting"),
    ("published", "published"),
    ("verified", "verified"),
    ("communicated", "communicated"),
)


class DemoPropstreet(PropstreetEmulator):
    """A broker's account: network, projects in all stages, investors added by hand and matched by teasers."""

    title = "Propstreet"

    def __init__(self, *, now: Now) -> None:
        super().__init__(now=now)
        self.webhooks.is_local = True

    def seed(self, portfolio: Portfolio, refs: Mapping[str, Mapping[int, str]]) -> Mapping[int, str]:
        firms: dict[int, str] = {}
        for index, firm in enumerate(portfolio.firms):
            if firm.is_in_propstreet:
                company = {
                    "name": firm.name,
                    "domain": firm.domain,
                    "countryCode": "SE",
                    "externalRefs": [{"namespace": "org_number", "id": firm.org_number}],
                }
                firms[index] = self.add("companies", company)
        persons: dict[int, str] = {}
        for index, person in enumerate(portfolio.persons):
            if not person.is_in_propstreet:
                continue
            contact: dict[str, Any] = {
                "firstName": person.first_name,
                "lastName": person.last_name,
                "email": person.email,
                "primaryLanguage": "sv",
                "tags": ["vip"] if index % 13 == 0 else [],
            }
            contact |= {"phone": person.phone} if person.phone else {}
            contact |= {"strategy": person.strategy} if person.strategy else {}
            persons[index] = self.add("contacts", contact)
            if person.firm in firms:
                link = {"contactId": persons[index], "companyId": firms[person.firm], "jobTitle": person.title}
                self.add("links", link | {"isPrimary": True})
        projects: dict[int, str] = {}
        for index, project in enumerate(portfolio.projects):
            fields: dict[str, Any] = {
                "name": project.name,
                "asset": {"type": "portfolio", "propertyCount": project.properties}
                if project.properties > 1
                else {"type": "single"},
                "exclusivity": project.exclusivity,
                "price": {"value": float(project.price), "currency": "SEK", "scale": "millions"},
                "externalRefs": [
                    {"namespace": namespace, "id": ids[index]} for namespace, ids in refs.items() if index in ids
                ],
            }
            if project.stage is not None:
                fields["teaser"] = {"stage": project.stage}
            projects[index] = self.add("projects", fields)
            if index % 3 == 0:
                known = {
                    "name": project.name,
                    "categories": ["office"],
                    "location": {"locality": project.city, "country": "SE"},
                }
                property_id = self.add("properties", known)
                self.edit("projects", projects[index], {"properties": [{"id": property_id}]})
        for investor in portfolio.investors:
            self._invite(investor, projects, persons, firms)
        for index, project in enumerate(portfolio.projects):
            if project.closed is not None:
                self.close_project(projects[index], buyer=project.closed)
        return projects

    def _invite(
        self, investor: Investor, projects: Mapping[int, str], persons: Mapping[int, str], firms: Mapping[int, str]
    ) -> None:
        prospect: dict[str, Any] = {"classification": investor.classification}
        if not investor.is_unreadable:
            prospect |= (
                {"contactId": persons[investor.person]}
                if investor.person is not None
                else {"companyId": firms[investor.firm or 0]}
            )
        if investor.deadline is not None:
            prospect["teaser"] = {"deadlineUtc": iso_z(investor.deadline)}
            if investor.accepted is not None:
                prospect["teaser"]["acceptedUtc"] = iso_z(investor.accepted)
        self.add("prospects", prospect, parent=projects[investor.project])

    def shown(self, kind: str, id_: str) -> Sequence[Cell]:
        with self.lock:
            held = self.get("contacts" if kind == "contact" else "projects", id_)
            if held.get("deletedUtc") is not None:
                return ()
            return self._contact_cells(held) if kind == "contact" else _deal_cells(held)

    def _contact_cells(self, held: Mapping[str, Any]) -> list[Cell]:
        cells = [Cell(field, native, held.get(native) or "") for field, native in _CONTACT.items()]
        link = self._employment(held["id"])
        if link is not None:
            job = Cell("job_title", "links.jobTitle", link.fields.get("jobTitle") or "", of=("employment", link.id))
            cells.insert(-1, job)
        return cells

    def _employment(self, contact: str) -> Stored | None:
        """Where somebody works first of all."""
        links = self._links_of("contactId", contact)
        return min(links, key=lambda link: not link.fields.get("isPrimary"), default=None)

    def retouch(self, kind: str, id_: str, field: str, value: str) -> None:
        with self.lock:
            link = self._employment(id_) if field == "job_title" else None
            if link is not None:
                self.edit("links", link.id, {"jobTitle": value or None})
            elif kind == "contact":
                self.edit("contacts", id_, {_CONTACT[field]: value or None})
            else:
                self.edit("projects", id_, self._project_edit(id_, field, value))

    def _project_edit(self, id_: str, field: str, value: str) -> Mapping[str, Any]:
        held = self.get("projects", id_)
        if field == "amount":
            price = held.get("price") or {"currency": "SEK", "scale": "millions"}
            return {"price": {**price, "value": float(amount(value))} if value else None}
        if field == "stage":
            if value and value not in dict(_STAGES):
                raise UnfitValueError("Propstreet knows no such stage.")
            return {"teaser": {**(held.get("teaser") or {}), "stage": value or None}}
        if not value.strip():
            raise UnfitValueError("A project needs a name.")
        return {"name": value}

    def send_to(self, url: str, secret: str) -> bool:
        return False  # ordered by its API, as ``syncd webhooks register`` does

    def tinker(self, random: Random) -> str:
        open_ids = [each["id"] for each in self.all("projects") if each.get("status") == "open"]
        choice = random.randrange(3)
        if choice == 0:
            id_ = random.choice(open_ids)
            price = {"value": random.randrange(20, 900), "currency": "SEK", "scale": "millions"}
            self.edit("projects", id_, {"price": price})
            return f"a new price for project {id_}"
        if choice == 1:
            open_set = set(open_ids)
            prospect = random.choice([each for each in self.all("prospects") if each["projectId"] in open_set])
            stages = ("contacted", "interested", "bidder")
            stage = random.choice([each for each in stages if each != prospect.get("classification")])
            self.edit("prospects", prospect["id"], {"classification": stage})
            return f"prospect {prospect['id']} is now {stage}"
        contact, strategies = random.choice(self.all("contacts")), ("Logistik", "Kontor core", "Bostäder")
        strategy = random.choice([each for each in strategies if each != contact.get("strategy")])
        self.edit("contacts", contact["id"], {"strategy": strategy})
        return f"a new strategy for contact {contact['id']}"


def _deal_cells(held: Mapping[str, Any]) -> list[Cell]:
    price = held.get("price") or {"currency": "SEK", "scale": "millions"}
    stage = (held.get("teaser") or {}).get("stage") or ""
    return [
        Cell("name", "name", held.get("name") or ""),
        Cell("amount", f"price, {_SCALES[price['scale']]}{price['currency']}", grouped(price.get("value"))),
        Cell("stage", "teaser.stage", stage, choices=_STAGES),
    ]
