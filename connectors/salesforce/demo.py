"""The emulated Salesforce of the demo: its half of the portfolio, and the small edits its users make."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from connectors.salesforce.emulator import SalesforceEmulator
from syncd.testing.portfolio import Portfolio


class DemoSalesforce(SalesforceEmulator):
    """An org in use for some years: duplicates, formatting of all sorts, opportunities of other business."""

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

    def retouch(self, contact: str, name: str, value: str) -> None:
        natives = {"strategy": "Propstreet_Strategy__c", "phone": "MobilePhone"}
        self.edit("Contact", contact, {natives[name]: value})

    def tinker(self, random: Random) -> str:
        if random.random() < 0.6:
            id_ = random.choice(self.all("Contact"))["Id"]
            self.edit("Contact", id_, {"MobilePhone": f"070-174 0{random.randrange(6, 10)} {random.randrange(10, 99)}"})
            return f"a new phone number for contact {id_}"
        id_ = random.choice(self.all("Opportunity"))["Id"]
        self.edit("Opportunity", id_, {"Amount": random.randrange(20, 900) * 1_000_000})
        return f"a new amount for opportunity {id_}"
