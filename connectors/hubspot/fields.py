"""Native properties and canonical fields: the tables, and the translation both ways.

A ``Sheet`` translates one kind for one account: it knows which of the table's properties that
account has, which of them may be written, and what the tenant chose to be otherwise. It asks
nobody anything. Properties that the account lacks are left out of everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final

from connectors.hubspot.client import MERGED, Row, dig
from syncd.connector import FieldCapability, KindChoice, Write
from syncd.core import mapping
from syncd.core.mapping import UnfitValueError
from syncd.core.model import FIELDS, FieldType, Json, Money, Record, Value

#: Kind -> HubSpot's collection. Relations are associations and have none.
TYPES: Final = {"company": "companies", "contact": "contacts", "deal": "deals"}
#: Our own unique property, which carries the other side's id and makes an upsert repeatable.
UNIQUE: Final = {
    "company": "propstreet_company_id",
    "contact": "propstreet_contact_id",
    "deal": "propstreet_project_id",
}
#: The property whose order is the delta's. Contacts have another name for it (6.1): asked by the
#: wrong one, search gives no rows and no error.
CURSOR: Final = {
    "company": "hs_lastmodifieddate",
    "contact": "lastmodifieddate",
    "deal": "hs_lastmodifieddate",
}
#: The user who changed a record last, which nobody has to have. Older accounts may lack it.
BY: Final = "hs_updated_by_user_id"
TEASER_LINES: Final = "propstreet_teaser_responses"
GROUP: Final = "propstreet"
CURRENCY: Final = "deal_currency_code"

#: What HubSpot itself needs to make a record, so there in every account.
CORE: Final[Mapping[str, tuple[str, ...]]] = {
    "company": ("name", "domain"),
    "contact": ("email", "firstname", "lastname"),
    "deal": ("dealname", "amount", "dealstage", "pipeline"),
}

#: Canonical field -> property; the first that is there and writable is taken.
NATIVE: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "company": {
        "name": ("name",),
        "domain": ("domain",),
        "homepage": ("website",),
        "country": ("country",),
        "org_number": ("propstreet_org_number",),
        "linkedin": ("linkedin_company_page",),
        "strategy": ("propstreet_strategy",),
        "tags": ("propstreet_tags",),
    },
    "contact": {
        "first_name": ("firstname",),
        "last_name": ("lastname",),
        "email": ("email",),
        "other_emails": ("hs_additional_emails",),
        "phone": ("mobilephone", "phone"),
        "linkedin": ("hs_linkedin_url", "propstreet_linkedin"),
        "language": ("propstreet_language",),
        "strategy": ("propstreet_strategy",),
        "tags": ("propstreet_tags",),
    },
    "deal": {
        "name": ("dealname",),
        "amount": ("amount",),
        "stage": ("dealstage",),
        **{field: (f"propstreet_{field}",) for field in FIELDS["deal"] if field not in ("name", "amount", "stage")},
    },
}

_LONG: Final = frozenset({"strategy"})
_READ_ONLY: Final = frozenset({"other_emails"})

#: Country names that leave no doubt; HubSpot's own property is free text.
_COUNTRIES: Final = {
    "sweden": "SE", "sverige": "SE", "norway": "NO", "norge": "NO", "denmark": "DK", "danmark": "DK",
    "finland": "FI", "suomi": "FI", "iceland": "IS", "germany": "DE", "deutschland": "DE", "austria": "AT",
    "switzerland": "CH", "france": "FR", "spain": "ES", "portugal": "PT", "italy": "IT", "netherlands": "NL",
    "the netherlands": "NL", "belgium": "BE", "luxembourg": "LU", "ireland": "IE", "united kingdom": "GB",
    "great britain": "GB", "uk": "GB", "poland": "PL", "estonia": "EE", "latvia": "LV", "lithuania": "LT",
    "united states": "US", "united states of america": "US", "usa": "US", "canada": "CA", "australia": "AU",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Property:
    """What matters about one property of an account."""

    name: str
    type: str = "string"
    is_writable: bool = True
    is_unique: bool = False
    options: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of the chosen pipeline, and which stages anywhere close a deal."""

    pipeline: str
    first: str
    vocabulary: Mapping[str, str]
    closed: frozenset[str]
    pipelines: Mapping[str, str] = field(default_factory=dict)
    """Every pipeline's label by its id, since a tenant's filter may name either."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One kind of one account: canonical field -> property, and how to translate each."""

    kind: str
    slots: Mapping[str, str]
    properties: Mapping[str, Property]
    choice: KindChoice
    phones: tuple[str, ...] = ()
    currency: str | None = None
    stages: Stages | None = None
    carries_job_title: bool = False
    _words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    # --- what there is ----------------------------------------------------------------

    def names(self) -> list[str]:
        """Every property to be asked for; merges and the modified time always."""
        found = [CURSOR[self.kind], MERGED, UNIQUE[self.kind], BY, *self.slots.values(), *self.phones]
        found += self.choice.watch
        if self.kind == "deal":
            found += ["pipeline", "dealstage", CURRENCY]
        if self.carries_job_title:
            found.append("jobtitle")
        always = {CURSOR[self.kind], MERGED}
        return [each for each in dict.fromkeys(found) if each in always or each in self.properties]

    def capabilities(self) -> dict[str, FieldCapability]:
        found = {}
        for name, native in self.slots.items():
            can = self.properties[native].is_writable and name not in _READ_ONLY
            vocabulary = self.stages.vocabulary if name == "stage" and self.stages else None
            found[name] = FieldCapability(FIELDS[self.kind][name], can, can, vocabulary)
        return found

    # --- reading ----------------------------------------------------------------------

    def record(self, row: Row, sent: Mapping[str, str] | None = None) -> Record:
        """One record as HubSpot shows it.

        A read shows all of ``names()``, so what is absent is empty. The answer to a write
        shows what it likes: then ``sent`` tells what was written, and only what is shown, or
        was cleared, is taken as known. Raises UnfitValueError.
        """
        id_ = mapping.identifier(row.get("id"), "id")
        if id_ is None:
            raise UnfitValueError("id: absent")
        held = {str(key): value for key, value in _object(row.get("properties")).items()}
        if sent is not None:
            mark = {UNIQUE[self.kind]: sent[UNIQUE[self.kind]]} if UNIQUE[self.kind] in sent else {}
            held = {**{key: "" for key, value in sent.items() if value == ""}, **mark, **held}
        is_whole = sent is None
        known = set(self.names()) if is_whole else set(held)
        # The property first: search, which may show the past, shows its past as well.
        modified = held.get(CURSOR[self.kind]) or row.get("updatedAt")
        return Record(
            kind=self.kind,
            id=id_,
            values=self._values(held, known),
            mark=self._mark(held),
            version=mapping.text(modified, "updatedAt", limit=255),
            modified_at=mapping.instant(modified, "updatedAt"),
            modified_by=mapping.text(held.get(BY), BY, limit=255),
            is_deleted=row.get("archived") is True,
            formerly=formerly(held.get(MERGED), id_),
            locked=self._locked(held),
            native=self._native(held, known),
            opaque=self._opaque(held, known),
        )

    def _opaque(self, held: Mapping[str, object], known: set[str]) -> dict[str, Json]:
        """Which property the phone was read from, and the job title that employments are written to."""
        found: dict[str, Json] = {"phone": self._phone(held)} if self._knows_phone(held, known) else {}
        if self.carries_job_title and "jobtitle" in known:
            found["title"] = mapping.text(held.get("jobtitle"), "jobtitle")
        return found

    def _native(self, held: Mapping[str, object], known: set[str]) -> dict[str, str | None]:
        """What filters ask about. A pipeline is also told by its label, as ``pipeline:label``."""
        names = (*self.choice.watch, *(("pipeline", "dealstage") if self.kind == "deal" else ()))
        found = {name: mapping.text(held.get(name), name) for name in names if name in known}
        if (pipeline := found.get("pipeline")) is not None and self.stages is not None:
            found["pipeline:label"] = self.stages.pipelines.get(pipeline)
        return found

    def _values(self, held: Mapping[str, object], known: set[str]) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for name, native in self.slots.items():
            if name == "phone" and self.phones:
                if self._knows_phone(held, known):
                    found[name] = mapping.text(held.get(self._phone(held)), name)
            elif native not in known:
                continue
            elif name == "amount":
                self._amount(held, native, known, found)
            elif name == "stage":
                self._stage(held, known, found)
            elif name == "country" and native == "country":
                self._country(held, found)
            else:
                self._flat(name, held.get(native), found)
        return found

    def _flat(self, name: str, raw: object, found: dict[str, Value]) -> None:
        type_ = FIELDS[self.kind][name]
        value = _READERS[type_](raw, name)
        words = self._words.get(name)
        if words is not None and isinstance(value, str):
            theirs = {native: canonical for canonical, native in words.items()}
            if value not in theirs:
                return
            value = theirs[value]
        if name == "domain":
            value = mapping.domain(raw, name)
        elif name == "email":
            value = mapping.email(raw, name)
        elif name == "other_emails" and isinstance(value, frozenset):
            value = frozenset(each.lower() for each in value)
        found[name] = value

    def _country(self, held: Mapping[str, object], found: dict[str, Value]) -> None:
        raw = mapping.text(held.get("country"), "country")
        if raw is None:
            found["country"] = None
        elif raw.lower() in _COUNTRIES:
            found["country"] = _COUNTRIES[raw.lower()]
        elif re.fullmatch(r"[A-Za-z]{2}", raw):
            found["country"] = raw.upper()

    def _amount(self, held: Mapping[str, object], native: str, known: set[str], found: dict[str, Value]) -> None:
        amount = mapping.number(held.get(native), "amount")
        if amount is None:
            found["amount"] = None
            return
        if CURRENCY in self.properties and CURRENCY not in known:
            return
        currency = mapping.text(held.get(CURRENCY), CURRENCY) or self.currency
        if currency:
            found["amount"] = Money(amount, currency.upper())

    def _stage(self, held: Mapping[str, object], known: set[str], found: dict[str, Value]) -> None:
        """A stage that the vocabulary names; others, and those of other pipelines, say nothing."""
        stage, stages = mapping.text(held.get("dealstage"), "dealstage"), self.stages
        if stages is None or stage is None or "pipeline" not in known:
            return
        if held.get("pipeline") == stages.pipeline and stage in stages.vocabulary.values():
            found["stage"] = stage

    def _locked(self, held: Mapping[str, object]) -> dict[str, str]:
        stages = self.stages
        if stages is None or "dealstage" not in held:
            return {}
        if held.get("dealstage") in stages.closed:
            return {"stage": "the deal is closed in HubSpot"}
        if held.get("pipeline") not in (None, "", stages.pipeline):
            return {"stage": "the deal is in another pipeline"}
        return {}

    def _phone(self, held: Mapping[str, object]) -> str:
        """Which property holds the phone: the first that is filled, else the last."""
        return next((each for each in self.phones if str(held.get(each) or "").strip()), self.phones[-1])

    def _knows_phone(self, held: Mapping[str, object], known: set[str]) -> bool:
        """True if both were read, or one was just written: that one is where the phone was read from."""
        return bool(self.phones) and (known.issuperset(self.phones) or any(held.get(each) for each in self.phones))

    def _mark(self, held: Mapping[str, object]) -> str | None:
        try:
            return mapping.identifier(held.get(UNIQUE[self.kind]), UNIQUE[self.kind])
        except UnfitValueError:
            # Somebody typed something into it: no id of Propstreet's looks so.
            return None

    # --- writing ----------------------------------------------------------------------

    def to_native(self, write: Write) -> tuple[dict[str, str], tuple[str, ...]]:
        """Properties to send, and the fields that this account cannot hold as given.

        Empty is sent as an empty text, since HubSpot ignores null; on a create it is not sent.
        """
        is_create = write.verb == "create"
        sent: dict[str, str] = {}
        unfit: list[str] = []
        for name, value in write.values.items():
            native = self.slots.get(name)
            if native is None or name in _READ_ONLY or (is_create and value is None):
                continue
            if name == "stage":
                self._send_stage(value, sent)
            elif name == "amount" and isinstance(value, Money):
                if not self._send_amount(value, native, sent):
                    unfit.append("amount: this account does not hold its currency")
            elif name == "phone" and self.phones:
                read_from = write.opaque.get("phone")
                sent[read_from if read_from in self.phones else self.phones[-1]] = native_text(value)
            else:
                words = self._words.get(name)
                if words is not None and isinstance(value, str) and value not in words:
                    unfit.append(f"{name}: no native value is set for it")
                    continue
                text = words[value] if words is not None and isinstance(value, str) else None
                sent[native] = text if text is not None else native_text(value, self.properties[native])
        if is_create:
            self._complete(sent)
            for rider in write.riders:
                if isinstance(title := rider.values.get("job_title"), str) and rider.values.get("is_primary"):
                    sent["jobtitle"] = title
        return sent, tuple(unfit)

    def _send_amount(self, money: Money, native: str, sent: dict[str, str]) -> bool:
        """Put amount and currency together, or nothing: an amount never goes out in another currency."""
        currency = self.properties.get(CURRENCY)
        if currency is not None and currency.is_writable:
            if currency.options and money.currency not in currency.options and money.currency != self.currency:
                return False
            sent[CURRENCY] = money.currency
        elif money.currency != self.currency:
            return False
        sent[native] = format(money.amount, "f")
        return True

    def _send_stage(self, value: Value, sent: dict[str, str]) -> None:
        # A stage belongs to its pipeline, so both move in one write (section 8).
        if self.stages is not None and isinstance(value, str):
            sent["pipeline"] = self.stages.pipeline
            sent["dealstage"] = value

    def _complete(self, sent: dict[str, str]) -> None:
        """What a create needs beyond the values: the tenant's defaults, and a deal's stage."""
        for native, text in self.choice.defaults.items():
            sent.setdefault(native, text)
        if self.stages is not None and "dealstage" not in sent:
            sent.setdefault("pipeline", self.stages.pipeline)
            if sent["pipeline"] == self.stages.pipeline:
                sent["dealstage"] = self.stages.first


def sheet(
    kind: str,
    properties: Mapping[str, Property],
    choice: KindChoice,
    *,
    currency: str | None = None,
    stages: Stages | None = None,
    carries_job_title: bool = False,
) -> Sheet:
    """The sheet of a kind for an account with these properties."""
    held = {**{name: Property(name) for name in CORE[kind]}, **properties}
    slots: dict[str, str] = {}
    for name, natives in NATIVE[kind].items():
        chosen = choice.fields.get(name)
        if chosen is not None and chosen.native:
            natives = (chosen.native,)
        there = [each for each in natives if each in held]
        if there:
            slots[name] = next((each for each in there if held[each].is_writable), there[0])
    chosen_phone = choice.fields.get("phone")
    is_own_phone = chosen_phone is not None and bool(chosen_phone.native)
    phones = () if kind != "contact" or is_own_phone else tuple(e for e in NATIVE[kind]["phone"] if e in held)
    if stages is None:
        slots.pop("stage", None)
    words = {name: dict(chosen.values) for name, chosen in choice.fields.items() if chosen.values}
    return Sheet(
        kind=kind,
        slots=slots,
        properties=held,
        choice=choice,
        phones=phones,
        currency=currency,
        stages=stages,
        carries_job_title=carries_job_title and "jobtitle" in held,
        _words=words,
    )


def native_text(value: Value, property_: Property | None = None) -> str:
    """A canonical value as HubSpot takes it: always text, empty for None."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case datetime():
            day_only = property_ is not None and property_.type == "date"
            return value.date().isoformat() if day_only else mapping.iso_z(value)
        case Decimal():
            return format(value, "f")
        case frozenset():
            # No leading separator, ever: it would append to what is there instead of replacing it.
            return ";".join(sorted(filter(None, (each.replace(";", ",").strip() for each in value))))
        case _:
            return str(value)


def own_properties(kind: str) -> dict[str, dict[str, object]]:
    """Definitions of the properties that we add to an account, by name, as HubSpot takes them."""
    unique = UNIQUE[kind]
    found = {unique: _definition(unique, f"Propstreet {unique.split('_')[1]}", "string", "text", is_unique=True)}
    for name, natives in NATIVE[kind].items():
        native = natives[-1]
        if native.startswith("propstreet_"):
            type_, shape = _SHAPES.get(FIELDS[kind][name], ("string", "text"))
            label = f"Propstreet {name.replace('_', ' ')}"
            found[native] = _definition(native, label, type_, "textarea" if name in _LONG else shape)
    if kind == "deal":
        found[TEASER_LINES] = _definition(TEASER_LINES, "Propstreet teaser responses", "string", "textarea")
    return found


_SHAPES: Final = {FieldType.NUMBER: ("number", "number"), FieldType.INSTANT: ("datetime", "date")}


def _definition(name: str, label: str, type_: str, shape: str, *, is_unique: bool = False) -> dict[str, object]:
    found: dict[str, object] = {
        "groupName": GROUP,
        "name": name,
        "label": label,
        "type": type_,
        "fieldType": shape,
        "formField": False,
        "description": "Kept in step with Propstreet by syncd",
    }
    return {**found, "hasUniqueValue": True} if is_unique else found


_READERS: Final[Mapping[FieldType, Callable[[object, str], Value]]] = {
    FieldType.TEXT: mapping.text,
    FieldType.PHONE: mapping.text,
    FieldType.ENUMERATION: mapping.text,
    FieldType.NUMBER: mapping.number,
    FieldType.BOOLEAN: mapping.boolean,
    FieldType.INSTANT: mapping.instant,
    FieldType.DATE: mapping.day,
    FieldType.SET: mapping.members,
}


def modified_at(kind: str, row: Row) -> tuple[str, datetime] | None:
    """A row's place in the delta: the vendor's own string, and the instant; None if it has none."""
    raw = dig(row, "properties", CURSOR[kind]) or row.get("updatedAt")
    try:
        moment = mapping.instant(raw, CURSOR[kind])
    except UnfitValueError:
        return None
    return (str(raw), moment) if moment is not None else None


def formerly(raw: object, id_: str) -> tuple[str, ...]:
    """Ids that lead to a record since merges: a separated list."""
    found = re.split(r"[;,\s]+", raw) if isinstance(raw, str) else []
    return tuple(dict.fromkeys(each for each in found if each != id_ and re.fullmatch(r"[A-Za-z0-9-]{1,64}", each)))


def _object(raw: object) -> Mapping[str, object]:
    return raw if isinstance(raw, Mapping) else {}
