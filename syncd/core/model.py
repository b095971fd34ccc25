"""The nouns of syncd: kinds, values, records and links.

A value is canonical: the same thing read from either side compares equal where the systems
allow it. Empty is None, never absent and never an empty string. Ids are opaque strings. All
instants are aware UTC. Text in here came from a vendor and is hostile until a connector has
checked it against the limits below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final, Literal, TypeAlias


class Side(StrEnum):
    """Propstreet is always left, the CRM always right; the core treats them alike."""

    LEFT = "left"
    RIGHT = "right"

    @property
    def other(self) -> Side:
        return Side.RIGHT if self is Side.LEFT else Side.LEFT


class FieldType(StrEnum):
    """What a field holds, which decides its notion of equal (see ``mapping.same``)."""

    TEXT = "text"
    PHONE = "phone"
    NUMBER = "number"
    BOOLEAN = "boolean"
    MONEY = "money"
    INSTANT = "instant"
    DATE = "date"
    ENUMERATION = "enumeration"
    SET = "set"


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in whole currency units, scale already multiplied out.

    ``currency`` is empty where a system has one currency only and does not tell which.
    """

    amount: Decimal
    currency: str


@dataclass(frozen=True, slots=True)
class Hashed:
    """What is left of a value that was erased: it can be recognized (``mapping.same``) and not be read.

    A set has one digest for each member, a phone number one for each country prefix that it may
    have, everything else one. No system is ever given one of these.
    """

    salt: str
    digests: tuple[str, ...]


Value: TypeAlias = str | bool | Decimal | Money | datetime | date | frozenset[str] | Hashed | None
Values: TypeAlias = Mapping[str, Value]


def elements(value: Value) -> frozenset[str]:
    """The elements of a set; what is empty has none."""
    return value if isinstance(value, frozenset) else frozenset()


#: Bare JSON, for what a connector wants back with its own record and nobody else reads.
Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

#: The kinds in the order in which they are synced: parents before children. Deletes go in reverse.
KINDS: Final = ("company", "contact", "employment", "deal", "deal_contact")

#: Canonical fields of each kind. A pair syncs those that both of its connectors know.
FIELDS: Final[Mapping[str, Mapping[str, FieldType]]] = {
    "company": {
        "name": FieldType.TEXT,
        "domain": FieldType.TEXT,
        "homepage": FieldType.TEXT,
        "country": FieldType.ENUMERATION,
        "org_number": FieldType.TEXT,
        "linkedin": FieldType.TEXT,
        "strategy": FieldType.TEXT,
        "tags": FieldType.SET,
    },
    "contact": {
        "first_name": FieldType.TEXT,
        "last_name": FieldType.TEXT,
        "email": FieldType.TEXT,
        "other_emails": FieldType.SET,
        "phone": FieldType.PHONE,
        "linkedin": FieldType.TEXT,
        "language": FieldType.ENUMERATION,
        "strategy": FieldType.TEXT,
        "tags": FieldType.SET,
    },
    "employment": {
        "job_title": FieldType.TEXT,
        "is_primary": FieldType.BOOLEAN,
    },
    "deal": {
        "name": FieldType.TEXT,
        "amount": FieldType.MONEY,
        "stage": FieldType.ENUMERATION,
        "status": FieldType.ENUMERATION,
        "classification": FieldType.ENUMERATION,
        "exclusivity": FieldType.ENUMERATION,
        "asset_type": FieldType.ENUMERATION,
        "property_count": FieldType.NUMBER,
        "published_at": FieldType.INSTANT,
        "verified_at": FieldType.INSTANT,
        "communicated_at": FieldType.INSTANT,
        "property_name": FieldType.TEXT,
        "property_location": FieldType.TEXT,
        "property_country": FieldType.ENUMERATION,
        "property_categories": FieldType.SET,
        "property_tenure": FieldType.ENUMERATION,
        "property_year_built": FieldType.NUMBER,
        "property_area_sqm": FieldType.NUMBER,
    },
    "deal_contact": {
        "classification": FieldType.ENUMERATION,
        "tags": FieldType.SET,
        "accepted_at": FieldType.INSTANT,
        "deadline_at": FieldType.INSTANT,
    },
}

#: Fields that hold one of a few words and nothing else.
WORDS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("deal", "status"): ("open", "closed"),
    ("deal", "classification"): ("draft", "active", "inactive"),
    ("deal", "exclusivity"): ("exclusive", "non_exclusive", "other"),
    ("deal", "asset_type"): ("single", "portfolio"),
    ("deal_contact", "classification"): ("not_contacted", "contacted", "interested", "not_interested", "bidder"),
}

#: A kind whose records are made of references has no natural key but those references.
RELATIONS: Final = frozenset({"employment", "deal_contact"})

#: What an id from a vendor may look like before it is stored, compared or put into a URL.
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:|~-]{0,254}")

#: Longest text that is taken from a vendor. HubSpot's own limit for a property is 65,536.
MAX_TEXT: Final = 65_536


def is_safe_id(candidate: object) -> bool:
    """True for an id that cannot escape from a URL path, a query or a log line."""
    return isinstance(candidate, str) and ".." not in candidate and _ID.fullmatch(candidate) is not None


@dataclass(frozen=True, slots=True)
class ExternalRef:
    """What a record is called by: a namespace, lower case, and an id that is unique in it."""

    namespace: str
    id: str

    def __str__(self) -> str:
        return f"{self.namespace}:{self.id}"


@dataclass(frozen=True, slots=True)
class Record:
    """One record as one system shows it now, in canonical values.

    A field that is absent from ``values`` says nothing: this system cannot tell it, or holds
    something of its own there. None says that it is empty.
    ``parent`` is needed to address it where the id alone does not (a prospect's project).
    ``refs`` name the records it is made of, by kind, with ids of its own side.
    ``mark`` is the other side's id as stored on this record by us, if any.
    ``version`` makes a write conditional; ``modified_at`` orders two sightings of one record.
    ``modified_by`` is the id of the user who changed it last, where the system tells; it is shown
    to people and decides nothing.
    ``locked`` maps a field, or ``"*"`` for all, to the reason why it must not be written.
    ``native`` holds the native fields that the tenant's filters ask about.
    ``opaque`` comes back to the connector with each write of this record.
    A tombstone has ``is_deleted``; ``merged_into`` then names the survivor, if a merge took it.
    ``formerly`` lists ids that lead here since a merge.
    ``unspoken`` names fields of a record that was found where a create of ours wanted to go: they
    hold what the system puts there by itself, which is nobody's word.
    """

    kind: str
    id: str
    values: Values
    parent: str | None = None
    refs: Mapping[str, str] = field(default_factory=dict)
    mark: str | None = None
    version: str | None = None
    modified_at: datetime | None = None
    modified_by: str | None = None
    is_deleted: bool = False
    merged_into: str | None = None
    formerly: tuple[str, ...] = ()
    locked: Mapping[str, str] = field(default_factory=dict)
    native: Mapping[str, str | None] = field(default_factory=dict)
    opaque: Mapping[str, Json] = field(default_factory=dict)
    unspoken: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Address:
    """Where a record stands on its own side: enough to read or write it."""

    id: str
    parent: str | None = None


class LinkState(StrEnum):
    """Where a link stands; only ``in_step`` needs nothing from anybody."""

    IN_STEP = "in_step"
    PENDING = "pending"
    CONFLICT = "conflict"
    EXCLUDED = "excluded"
    DEAD = "dead"


Verb: TypeAlias = Literal["create", "update", "delete", "mark"]
