"""The emulated HubSpot of the demo: its half of the portfolio, and the small edits its users make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from connectors.hubspot.emulator import HubSpotEmulator
from syncd.core.mapping import UnfitValueError
from syncd.testing.portfolio import STAGE_IS_THEIRS, Cell, Portfolio, amount, grouped

#: Kind -> its collection, and the property of each field that the demo shows.
_SHOWN: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "contact": (
        "contacts",
        {
            "first_name": "firstname",
            "last_name": "lastname",
            "phone": "mobilephone",
            "job_title": "jobtitle",
            "strategy": "propstreet_strategy",
        },
    ),
    "deal": ("deals", {"name": "dealname", "amount": "amount", "stage": "dealstage"}),
}
_STAGES = ("appointmentscheduled", "presentationscheduled", "contractsent")


class DemoHubSpot(HubSpotEmulator):
    """A portal in use for some years: duplicates, formatting of all sorts, deals of other business."""

    title = "HubSpot"

    def seed(self, portfolio: Portfolio, refs: Mapping[str, Mapping[int, str]]) -> Mapping[int, str]:
        firms: dict[int, str] = {}
        for index, firm in enumerate(portfolio.firms):
            if firm.is_in_crm:
                props = {"name": firm.name.upper() if index % 9 == 0 else firm.name, "domain": firm.domain}
                firms[index] = self.add("companies", props)
            if firm.is_doubled_in_crm:
                self.add("companies", {"name": f"{firm.name} (kopia)", "domain": firm.domain})
        persons: dict[int, str] = {}
        for index, person in enumerate(portfolio.persons):
            if not person.is_in_crm:
                continue
            props = {"firstname": person.crm_first_name, "lastname": person.last_name, "email": person.crm_email}
            if person.crm_phone:
                props["mobilephone"] = person.crm_phone
            if person.title:
                props["jobtitle"] = person.title
            if person.second_email:
                props["hs_additional_emails"] = person.second_email
            persons[index] = self.add("contacts", props)
            if person.firm in firms:
                self.associate("contacts", persons[index], "companies", firms[person.firm], ("primary",))
        deals: dict[int, str] = {}
        for index, project in enumerate(portfolio.projects):
            if project.in_crm is not None:
                props = {"dealname": project.name, "dealstage": _STAGES[index % 2], "pipeline": "default"}
                deals[index] = self.add("deals", props)
        for number in range(5):
            self.add("deals", {"dealname": f"Rådgivning {number + 1}", "dealstage": _STAGES[0], "pipeline": "default"})
        for investor in portfolio.investors:
            if investor.is_in_crm and investor.project in deals and investor.person in persons:
                self.associate("deals", deals[investor.project], "contacts", persons[investor.person])
        return {index: id_ for index, id_ in deals.items() if portfolio.projects[index].in_crm == "linked"}

    def shown(self, kind: str, id_: str) -> Sequence[Cell]:
        type_, natives = _SHOWN[kind]
        held = self.get(type_, id_)
        if held is None:
            return ()
        cells = []
        for field, native in natives.items():
            value = held.get(native, "")
            if field == "amount":
                cells.append(
                    Cell(field, f"{native}, {held.get('deal_currency_code') or self.currency}", grouped(value))
                )
            elif field == "stage":
                labels = {stage["id"]: stage["label"] for each in self.pipelines for stage in each["stages"]}
                cells.append(Cell(field, native, labels.get(value, value), closed=STAGE_IS_THEIRS))
            else:
                cells.append(Cell(field, native, value))
        return cells

    def retouch(self, kind: str, id_: str, field: str, value: str) -> None:
        type_, natives = _SHOWN[kind]
        if field == "stage":
            raise UnfitValueError(STAGE_IS_THEIRS)
        if field == "amount" and value:
            value = f"{amount(value):f}"
        if field == "name" and not value.strip():
            raise UnfitValueError("A deal needs a name.")
        self.edit(type_, id_, {natives[field]: value})

    def send_to(self, url: str, secret: str) -> bool:
        self.deliver_to(url, secret)
        return True

    def tinker(self, random: Random) -> str:
        choice = random.randrange(3)
        if choice == 0:
            id_, contact = random.choice(sorted(self.all("contacts").items()))
            titles = [each for each in ("VD", "CFO", "Partner", "Analytiker") if each != contact.get("jobtitle")]
            self.edit("contacts", id_, {"jobtitle": random.choice(titles)})
            return f"a new job title for contact {id_}"
        if choice == 1:
            id_ = random.choice(sorted(self.all("contacts")))
            self.edit(
                "contacts", id_, {"mobilephone": f"070-174 0{random.randrange(6, 10)} {random.randrange(10, 99)}"}
            )
            return f"a new phone number for contact {id_}"
        id_ = random.choice(sorted(self.all("deals")))
        self.edit("deals", id_, {"amount": str(random.randrange(20, 900) * 1_000_000)})
        return f"a new amount for deal {id_}"
