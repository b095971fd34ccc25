"""The emulated Salesforce of the demo: its half of the portfolio, and the small edits its users make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from connectors.salesforce.emulator import SalesforceEmulator
from syncd.core.mapping import UnfitValueError
from syncd.testing.portfolio import STAGE_IS_THEIRS, Cell, Portfolio, amount, grouped

#: Kind -> its object, and the native field of each that the demo shows.
_SHOWN: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "contact": (
        "Contact",
        {
            "first_name": "FirstName",
            "last_name": "LastName",
            "phone": "MobilePhone",
            "job_title": "Title",
            "strategy": "Propstreet_Strategy__c",
        },
    ),
    "deal": ("Opportunity", {"name": "Name", "amount": "Amount", "stage": "StageName"}),
}


class DemoSalesforce(SalesforceEmulator):
    """An org in use for some years: duplicates, formatting of all sorts, opportunities of other business."""

    title = "Salesforce"

    def seed(self, portfolio: Portfolio, refs: Mapping[str, Mapping[int, str]]) -> Mapping[int, str]:
        firms: dict[int, str] = {}
        for index, firm in enumerate(portfolio.firms):
            if firm.is_in_crm:
                fields = {
                    "Name": firm.name.upper() if index % 9 == 0 else firm.name,
                    "Website": f"https://www.{firm.domain}",
                }
                firms[index] = self.add("Account", fields)
            if firm.is_doubled_in_crm:
                self.add("Account", {"Name": f"{firm.name} (kopia)", "Website": firm.domain})
        persons: dict[int, str] = {}
        for index, person in enumerate(portfolio.persons):
            if not person.is_in_crm:
                continue
            contact: dict[str, Any] = {
                "FirstName": person.crm_first_name,
                "LastName": person.last_name,
                "Email": person.email.capitalize() if person.crm_email[0].isupper() else person.email,
            }
            if person.crm_phone:
                contact["MobilePhone"] = person.crm_phone
            if person.firm in firms:
                contact |= {"AccountId": firms[person.firm], "Title": person.title}
            persons[index] = self.add("Contact", contact)
        deals: dict[int, str] = {}
        for index, project in enumerate(portfolio.projects):
            if project.in_crm is not None:
                deals[index] = self.add(
                    "Opportunity", {"Name": project.name, "StageName": "Qualification", "CloseDate": "2027-03-31"}
                )
        for number in range(5):
            self.add(
                "Opportunity",
                {"Name": f"Rådgivning {number + 1}", "StageName": "Prospecting", "CloseDate": "2027-01-31"},
            )
        for investor in portfolio.investors:
            if investor.is_in_crm and investor.project in deals and investor.person in persons:
                self.add(
                    "OpportunityContactRole",
                    {"OpportunityId": deals[investor.project], "ContactId": persons[investor.person]},
                )
        return {index: id_ for index, id_ in deals.items() if portfolio.projects[index].in_crm == "linked"}

    def shown(self, kind: str, id_: str) -> Sequence[Cell]:
        sobject, natives = _SHOWN[kind]
        held = self.get(sobject, id_)
        if held["IsDeleted"]:
            return ()
        cells = []
        for field, native in natives.items():
            value = held.get(native)
            if field == "amount":
                cells.append(Cell(field, f"{native}, {self.currency}", grouped(value)))
            elif field == "stage":
                cells.append(Cell(field, native, value or "", closed=STAGE_IS_THEIRS))
            else:
                cells.append(Cell(field, native, value or ""))
        return cells

    def retouch(self, kind: str, id_: str, field: str, value: str) -> None:
        sobject, natives = _SHOWN[kind]
        if field == "stage":
            raise UnfitValueError(STAGE_IS_THEIRS)
        if field in ("name", "last_name") and not value.strip():
            raise UnfitValueError("Salesforce needs a name.")
        entered: object = float(amount(value)) if field == "amount" and value else value or None
        self.edit(sobject, id_, {natives[field]: entered})

    def send_to(self, url: str, secret: str) -> bool:
        return False  # this emulator has no outbound messages

    def tinker(self, random: Random) -> str:
        if random.random() < 0.6:
            id_ = random.choice(self.all("Contact"))["Id"]
            self.edit("Contact", id_, {"MobilePhone": f"070-174 0{random.randrange(6, 10)} {random.randrange(10, 99)}"})
            return f"a new phone number for contact {id_}"
        id_ = random.choice(self.all("Opportunity"))["Id"]
        self.edit("Opportunity", id_, {"Amount": random.randrange(20, 900) * 1_000_000})
        return f"a new amount for opportunity {id_}"
