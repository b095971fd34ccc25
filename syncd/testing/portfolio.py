"""A believable Swedish portfolio in no vendor's words, for the demo, the simulation and the benchmarks.

The same seed gives the same portfolio. Names are made up, domains end in ``.example`` and phone
numbers come from the series that Sweden reserves for fiction.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Final, Protocol

from syncd.core.mapping import UnfitValueError

_FIRST: Final = (
    "Anna Erik Maria Lars Karin Anders Sara Johan Emma Per Eva Nils Lena Olof Ingrid Karl Birgitta Mats Elin Gustav "
    "Hanna Oskar Sofia Viktor Linnea Fredrik Malin Jonas Ida Henrik Åsa Björn Märta Sören Örjan Agneta Tove Rasmus"
).split()
_LAST: Final = (
    "Andersson Johansson Karlsson Nilsson Eriksson Larsson Olsson Persson Svensson Gustafsson Berg Lindqvist Åkesson "
    "Sjöberg Wallin Engström Lundgren Holm Björk Sandström Forsberg Ekdahl Norén Hellström Ström Åberg Dahl Wikström"
).split()
_STEMS: Final = (
    "Nordhaus Svalan Kastanjen Mälarö Granit Vinga Polstjärnan Lövsta Skärgård Tegnér Ekbacken Norrsken Silverdal "
    "Strandvik Örnen Fyrtornet Björkdal Klippan Humlan Sjövik Rönnen Falken Havsörn Bergslag Lindö Tallmo Stenby "
    "Vasaholm Kungsängen Roslag Kvarnen Åsgård Fjällbo Ängsö Hammarvik Ljungby Solvik Storgård Vretatorp Almlund"
).split()
_ENDINGS: Final = ("Fastigheter AB", "Kapital AB", "Invest AB", "Förvaltning AB", "Pension", "Bostad AB")
_BLOCKS: Final = (
    "Svalan Apotekaren Kastanjen Läkaren Gripen Trädgården Vattentornet Snickaren Lärkan Björnen Tranan Hästskon "
    "Murgrönan Väduren Kajan Smeden Tornet Rosen Bagaren Åskan Lyktan Spinnrocken Ekorren Hjorten Kranen"
).split()
_CITIES: Final = "Stockholm Göteborg Malmö Uppsala Västerås Örebro Linköping Helsingborg Norrköping Lund Umeå".split()
_TITLES: Final = ("VD", "Fastighetschef", "Transaktionschef", "CFO", "Analytiker", "Förvaltare", "Investeringschef")
_STRATEGIES: Final = ("Logistik", "Kontor core", "Bostäder value-add", "Samhällsfastigheter", "Handel", None, None)
_STAGES: Final = (None, "property_added", "drafting", "published", "verified", "communicated", "communicated")
_CLASSES: Final = ("not_contacted", "not_contacted", "contacted", "interested", "not_interested", "bidder")


@dataclass(frozen=True, slots=True)
class Firm:
    name: str
    domain: str
    org_number: str
    is_in_crm: bool
    is_in_propstreet: bool
    is_doubled_in_crm: bool = False


@dataclass(frozen=True, slots=True)
class Person:
    """``firm`` is an index into ``Portfolio.firms``, or None."""

    first_name: str
    last_name: str
    email: str
    phone: str | None
    title: str | None
    strategy: str | None
    firm: int | None
    is_in_crm: bool
    is_in_propstreet: bool
    crm_first_name: str
    crm_email: str
    crm_phone: str | None
    second_email: str | None = None


@dataclass(frozen=True, slots=True)
class Project:
    """``in_crm``: ``linked`` by a stored ref, ``same name`` without one, or absent."""

    name: str
    price: Decimal
    stage: str | None
    exclusivity: str
    properties: int
    city: str
    in_crm: str | None
    closed: str | None


@dataclass(frozen=True, slots=True)
class Investor:
    """A prospect: indexes into projects, and into persons or firms; ``is_unreadable`` names nobody we may read."""

    project: int
    person: int | None
    firm: int | None
    classification: str
    deadline: datetime | None
    accepted: datetime | None
    is_in_crm: bool
    is_unreadable: bool = False


@dataclass(frozen=True, slots=True)
class Portfolio:
    firms: tuple[Firm, ...]
    persons: tuple[Person, ...]
    projects: tuple[Project, ...]
    investors: tuple[Investor, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a record as a person sees it in that system.

    ``field`` is what both systems know it by, ``label`` this one's own word. ``closed`` says why
    nobody writes it here; ``choices`` are the only values it takes, each with what it is called.
    ``of`` is where it hangs, kind and id, if that is another record: a job title, on an employment.
    """

    field: str
    label: str
    value: str
    closed: str = ""
    choices: Sequence[tuple[str, str]] = ()
    of: tuple[str, str] | None = None


class Seeded(Protocol):
    """What an emulator brings for the demo beside its vendor's behaviour. ``title`` is what people call the vendor."""

    title: str

    def seed(self, portfolio: Portfolio, refs: Mapping[str, Mapping[int, str]]) -> Mapping[int, str]:
        """Fill the empty system with its side of the portfolio, as people would have.

        ``refs``: by namespace, the ids under which other systems hold a project. Returns this
        system's own ids of the projects that it holds.
        """
        ...

    def shown(self, kind: str, id_: str) -> Sequence[Cell]:
        """Some fields of a contact or a deal as the system holds them now; none of a record that is gone."""
        ...

    def retouch(self, kind: str, id_: str, field: str, value: str) -> None:
        """Change a field that is shown, as a person would; empty text empties it.

        Raises UnfitValueError for what this system lets nobody enter.
        """
        ...

    def send_to(self, url: str, secret: str) -> bool:
        """Send webhooks there from now on, as a person sets it up; False if that cannot be had."""
        ...

    def tinker(self, random: Random) -> str:
        """Make one small, believable edit, as a person would; says what it was, without personal data."""
        ...


def make(seed: int, *, projects: int = 40, persons: int = 300, firms: int = 80, investors: int = 400,
         now: datetime = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)) -> Portfolio:  # fmt: skip
    """The portfolio of a seed; the two sides overlap and the CRM's half is untidy."""
    random = Random(seed)  # noqa: S311 - a portfolio, not a secret
    all_firms = tuple(_firm(random, index) for index in range(firms))
    all_persons = tuple(_person(random, index, all_firms) for index in range(persons))
    all_projects = tuple(_project(random, index) for index in range(projects))
    return Portfolio(
        all_firms, all_persons, all_projects, _investors(random, all_persons, all_firms, projects, investors, now)
    )


#: Why a CRM's stage is shown and not changed.
STAGE_IS_THEIRS: Final = "Propstreet decides the stage: it travels to the CRM and never back."


def amount(text: str) -> Decimal:
    """A number as people type it. Raises UnfitValueError."""
    plain = re.sub(r"[\s,']", "", text)
    if not re.fullmatch(r"\d{1,15}(\.\d{1,3})?", plain):
        raise UnfitValueError("That is no amount. Write it like 124.5 or 12,400,000.")
    return Decimal(plain)


def grouped(value: object) -> str:
    """A number as people read it."""
    if value in (None, ""):
        return ""
    number = Decimal(str(value))
    return f"{number:,f}" if number != number.to_integral_value() else f"{int(number):,}"


def slug(text: str) -> str:
    """ASCII, lower case, only letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _firm(random: Random, index: int) -> Firm:
    stem = _STEMS[index % len(_STEMS)] + ("" if index < len(_STEMS) else f" {index // len(_STEMS) + 1}")
    name = f"{stem} {_ENDINGS[index % len(_ENDINGS)]}"
    chance = random.random()
    return Firm(
        name=name,
        domain=f"{slug(stem)}.example",
        org_number=f"5569{index:02d}-{1000 + index * 7}"[:11],
        is_in_crm=chance < 0.85,
        is_in_propstreet=chance > 0.1,
        is_doubled_in_crm=index in (3, 17),
    )


def _person(random: Random, index: int, firms: tuple[Firm, ...]) -> Person:
    first, last = random.choice(_FIRST), random.choice(_LAST)
    firm = random.randrange(len(firms)) if random.random() < 0.92 else None
    host = firms[firm].domain if firm is not None else "post.example"
    email = f"{slug(first)}.{slug(last)}.{index}@{host}"
    chance = random.random()
    phone = f"+4670174{605 + index % 95:04d}" if random.random() < 0.8 else None
    local = f"070-174 {phone[-4:-2]} {phone[-2:]}" if phone else None
    second = f"{slug(last)}.{index}@privat.example" if random.random() < 0.08 else None
    is_in_both = 0.12 < chance < 0.8
    return Person(
        first_name=first,
        last_name=last,
        email=second if second is not None and is_in_both else email,
        phone=phone,
        title=random.choice(_TITLES) if firm is not None else None,
        strategy=random.choice(_STRATEGIES),
        firm=firm,
        is_in_crm=chance < 0.8,
        is_in_propstreet=chance > 0.12,
        crm_first_name=first.upper() if random.random() < 0.05 else first,
        crm_email=email.capitalize() if random.random() < 0.2 else email,
        crm_phone=local,
        second_email=second if is_in_both else None,
    )


def _project(random: Random, index: int) -> Project:
    city = random.choice(_CITIES)
    block = _BLOCKS[index % len(_BLOCKS)]
    closed = {5: "external", 11: "none"}.get(index % 40)
    in_crm = "linked" if index % 4 == 1 else "same name" if index in (6, 18) else None
    return Project(
        name=f"Kv. {block} {index // len(_BLOCKS) + 1 + index % 7}, {city}",
        price=Decimal(random.randrange(18, 900)) / (2 if random.random() < 0.3 else 1),
        stage=random.choice(_STAGES),
        exclusivity=random.choice(("exclusive", "exclusive", "non_exclusive")),
        properties=random.choice((1, 1, 1, 4, 9)),
        city=city,
        in_crm=in_crm,
        closed=closed,
    )


def _investors(
    random: Random, persons: tuple[Person, ...], firms: tuple[Firm, ...], projects: int, count: int, now: datetime
) -> tuple[Investor, ...]:
    known = [index for index, person in enumerate(persons) if person.is_in_propstreet]
    houses = [index for index, firm in enumerate(firms) if firm.is_in_propstreet]
    taken: set[tuple[int, str, int]] = set()
    found: list[Investor] = []
    while len(found) < count:
        project = random.randrange(projects)
        is_company = random.random() < 0.08
        who = random.choice(houses if is_company else known)
        if (project, "firm" if is_company else "person", who) in taken:
            continue
        taken.add((project, "firm" if is_company else "person", who))
        is_matched = random.random() < 0.25
        found.append(
            Investor(
                project=project,
                person=None if is_company else who,
                firm=who if is_company else None,
                classification=random.choice(_CLASSES),
                deadline=now + timedelta(days=random.randrange(5, 40)) if is_matched else None,
                accepted=now - timedelta(days=random.randrange(1, 9)) if is_matched and random.random() < 0.5 else None,
                is_in_crm=not is_company and persons[who].is_in_crm and random.random() < 0.4,
                is_unreadable=is_matched and random.random() < 0.1,
            )
        )
    return tuple(found)
