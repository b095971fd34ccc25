"""People and secrets that occur nowhere else, so that a single letter of them is found wherever it went."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, Text, cast, inspect, select
from sqlalchemy import table as sql_table

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.salesforce.emulator import SalesforceEmulator
from syncd.testing.emulator import Emulator
from tests.faults.harness import World

#: What is known of each person: a unique word in every field. Numbers are unique digits.
WORDS: Final = ("Zqfirst", "Zqlast", "zqmail", "zqdomain", "zqlinked", "Zqnote", "Zqtitle", "zqtag")
DIGITS: Final = "7091155"


def person(number: int, *, is_wordy: bool = False) -> dict[str, Any]:
    """A contact of Propstreet with a canary in each field."""
    note = f"Zqnote{number} wants to sell quietly"
    return {
        "firstName": f"Zqfirst{number}",
        "lastName": f"Zqlast{number}",
        "email": f"zqmail{number}@zqdomain.example",
        "phone": f"+46 {DIGITS[:2]} {DIGITS[2:5]} {DIGITS[5:]} {number:02d}",
        "linkedInUrl": f"https://www.linkedin.com/in/zqlinked{number}",
        "strategy": note * 400 if is_wordy else note,
        "tags": [f"zqtag{number}"],
    }


def crm_person(crm: Emulator, number: int) -> str:
    """The same in the CRM's own words."""
    named = person(number)
    if isinstance(crm, HubSpotEmulator):
        return crm.add(
            "contacts",
            {"firstname": named["firstName"], "lastname": named["lastName"], "email": named["email"],
             "phone": named["phone"], "jobtitle": f"Zqtitle{number}"},
        )  # fmt: skip
    assert isinstance(crm, SalesforceEmulator)
    return crm.add(
        "Contact",
        {"FirstName": named["firstName"], "LastName": named["lastName"], "Email": named["email"],
         "Phone": named["phone"], "Title": f"Zqtitle{number}"},
    )  # fmt: skip


def crm_edit(crm: Emulator, id_: str, last_name: str) -> None:
    if isinstance(crm, HubSpotEmulator):
        crm.edit("contacts", id_, {"lastname": last_name})
    else:
        assert isinstance(crm, SalesforceEmulator)
        crm.edit("Contact", id_, {"LastName": last_name})


def populate(world: World) -> None:
    """People on both sides, employed, with a job title, and interested in a project."""
    firm = world.hub.add("companies", {"name": "Granit AB", "domain": "granit.se"})
    deal = world.hub.add("projects", {"name": "Kv. Svalan", "price": {"value": 1, "currency": "SEK"}})
    for number in (1, 2, 3):
        contact = world.hub.add("contacts", person(number))
        world.hub.add("links", {"contactId": contact, "companyId": firm, "jobTitle": f"Zqtitle{number}"})
        world.hub.add("prospects", {"contactId": contact, "classification": "interested"}, parent=deal)
    for number in (11, 12):
        crm_person(world.crm, number)


def found_in(told: str, words: Iterable[str] = WORDS) -> list[str]:
    """The canaries that a text tells, whatever their case; phone numbers however they are spaced."""
    plain = told.lower()
    found = [word for word in words if word.lower() in plain]
    if re.search(rf"{'[ ()-]*'.join(DIGITS)}", told):
        found.append(DIGITS)
    return found


def rows(engine: Engine, table: str | None = None) -> Iterator[tuple[str, str]]:
    """Every row of every table as text, as a dump of the database would tell it."""
    with engine.connect() as connection:
        for name in inspect(engine).get_table_names():
            if table in (None, name):
                whole = sql_table(name).table_valued()
                for row in connection.execute(select(cast(whole, Text))).scalars():
                    yield name, row


def secrets(world: World, folder: Path) -> set[str]:
    """Every secret of a tenant, and every token that was used with its help."""
    found = {value for emulator in (world.hub, world.crm) for value in emulator.auth.values()}
    found |= {file.read_text() for file in folder.glob(f"{world.tenant_name}-*") if file.is_file()}
    for emulator in (world.hub, world.crm):
        for call in emulator.calls():
            found.add(call.headers.get("authorization", "").partition(" ")[2])
    return {each for each in found if len(each) > 5}
