"""The emulated Propstreet of the demo: its half of the portfolio, and the small edits its users make."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from connectors.propstreet.emulator import PropstreetEmulator
from syncd.core.mapping import iso_z
from syncd.testing.portfolio import Investor, Portfolio


class DemoPropstreet(PropstreetEmulator):
    """A broker's account: network, projects in all stages, investors added by hand and matched by teasers."""

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

    def retouch(self, contact: str, name: str, value: str) -> None:
        self.edit("contacts", contact, {name: value or None})

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
            prospects = [each["id"] for each in self.all("prospects") if each["projectId"] in open_set]
            id_ = random.choice(prospects)
            stage = random.choice(("contacted", "interested", "bidder"))
            self.edit("prospects", id_, {"classification": stage})
            return f"prospect {id_} is now {stage}"
        id_ = random.choice(self.all("contacts"))["id"]
        self.edit("contacts", id_, {"strategy": random.choice(("Logistik", "Kontor core", "Bostäder"))})
        return f"a new strategy for contact {id_}"
