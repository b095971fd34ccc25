"""Salesforce fields and canonical ones: what an account carries, rows to records, writes to bodies.

Pure: describe answers and rows in, records and bodies out. A ``Table`` is one kind in one org.
A native field that the org does not show is left out everywhere; a value that has no canonical
word says nothing and is locked, since it is somebody's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from difflib import get_close_matches
from typing import Final

from connectors.salesforce.client import Row, normal_id
from syncd.connector import FieldCapability, KindCapability, KindChoice, Write
from syncd.core import mapping
from syncd.core.mapping import UnfitValueError
from syncd.core.model import FIELDS, FieldType, Hashed, Json, Money, Record, Value
from syncd.errors import ConfigError

BATCH: Final = 200

SOBJECTS: Final = {
    "company": "Account",
    "contact": "Contact",
    "employment": "Contact",
    "deal": "Opportunity",
    "deal_contact": "OpportunityContactRole",
}

#: The unique external id field that carries the other side's id, by kind.
MARKS: Final = {
    "company": "Propstreet_Company_Id__c",
    "contact": "Propstreet_Contact_Id__c",
    "deal": "Propstreet_Project_Id__c",
    "deal_contact": "Propstreet_Prospect_Id__c",
}

#: Canonical field -> native fields, first choice first. Customs that the org lacks are left out.
_NATIVES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "company": {
        "name": ("Name",),
        "domain": ("Website",),
        "homepage": ("Website",),
        "country": ("BillingCountryCode", "BillingCountry"),
        "org_number": ("Propstreet_Org_Number__c",),
        "linkedin": ("Propstreet_LinkedIn__c",),
        "strategy": ("Propstreet_Strategy__c",),
        "tags": ("Propstreet_Tags__c",),
    },
    "contact": {
        "first_name": ("FirstName",),
        "last_name": ("LastName",),
        "email": ("Email",),
        "phone": ("MobilePhone", "Phone"),
        "linkedin": ("Propstreet_LinkedIn__c",),
        "language": ("Propstreet_Language__c",),
        "strategy": ("Propstreet_Strategy__c",),
        "tags": ("Propstreet_Tags__c",),
    },
    "employment": {"job_title": ("Title",)},
    "deal": {
        "name": ("Name",),
        "amount": ("Amount",),
        "stage": ("StageName",),
        "status": ("Propstreet_Status__c",),
        "classification": ("Propstreet_Classification__c",),
        "exclusivity": ("Propstreet_Exclusivity__c",),
        "asset_type": ("Propstreet_Asset_Type__c",),
        "property_count": ("Propstreet_Property_Count__c",),
        "published_at": ("Propstreet_Published_At__c",),
        "verified_at": ("Propstreet_Verified_At__c",),
        "communicated_at": ("Propstreet_Communicated_At__c",),
        "property_name": ("Propstreet_Property_Name__c",),
        "property_location": ("Propstreet_Property_Location__c",),
        "property_country": ("Propstreet_Property_Country__c",),
        "property_categories": ("Propstreet_Property_Categories__c",),
        "property_tenure": ("Propstreet_Property_Tenure__c",),
        "property_year_built": ("Propstreet_Property_Year_Built__c",),
        "property_area_sqm": ("Propstreet_Property_Area__c",),
    },
    "deal_contact": {
        "classification": ("Role",),
        "tags": ("Propstreet_Prospect_Tags__c",),
        "accepted_at": ("Propstreet_Accepted_At__c",),
        "deadline_at": ("Propstreet_Deadline__c",),
    },
}

#: Canonical word -> native word, for enumerations with a closed vocabulary. "" is a blank field.
_WORDS: Final[Mapping[str, Mapping[str, Mapping[str, str]]]] = {
    "deal": {
        "status": {each: each for each in ("open", "closed")},
        "classification": {each: each for each in ("draft", "active", "inactive")},
        "exclusivity": {each: each for each in ("exclusive", "non_exclusive", "other")},
        "asset_type": {each: each for each in ("single", "portfolio")},
    },
    "deal_contact": {
        "classification": {
            "not_contacted": "",
            "contacted": "Contacted",
            "interested": "Interested",
            "not_interested": "Not Interested",
            "bidder": "Bidder",
        }
    },
}

_SYSTEM: Final = ("Id", "IsDeleted", "SystemModstamp", "LastModifiedDate")
#: What else a kind's rows must show: merges, references, and what tells person accounts and products.
_ALWAYS: Final[Mapping[str, tuple[str, ...]]] = {
    "company": ("MasterRecordId",),
    "contact": ("MasterRecordId", "AccountId"),
    "employment": ("MasterRecordId", "AccountId"),
    "deal": ("AccountId", "StageName"),
    "deal_contact": ("OpportunityId", "ContactId"),
}
#: The user who changed a row last.
_BY: Final = "LastModifiedById"
_IF_DESCRIBED: Final[Mapping[str, tuple[str, ...]]] = {
    "company": (_BY, "IsPersonAccount"),
    "contact": (_BY, "IsPersonAccount"),
    "employment": (_BY, "IsPersonAccount"),
    "deal": (_BY, "CurrencyIsoCode", "HasOpportunityLineItem", "IsClosed"),
    "deal_contact": (_BY,),
}

_NATIVE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}(?:\.[A-Za-z][A-Za-z0-9_]{0,79}){0,2}")

#: Names that Nordic and other European CRMs hold where the code field is not switched on.
_COUNTRIES: Final[Mapping[str, str]] = {
    name: code
    for code, names in {
        "SE": "sweden sverige schweden",
        "NO": "norway norge norwegen",
        "DK": "denmark danmark dänemark",
        "FI": "finland suomi finnland",
        "IS": "iceland island",
        "EE": "estonia eesti estland",
        "LV": "latvia latvija lettland",
        "LT": "lithuania lietuva litauen",
        "DE": "germany deutschland tyskland",
        "NL": "netherlands nederland nederländerna",
        "BE": "belgium belgien belgië",
        "LU": "luxembourg luxemburg",
        "FR": "france frankrike frankreich",
        "ES": "spain españa spanien",
        "PT": "portugal",
        "IT": "italy italia italien",
        "AT": "austria österreich österrike",
        "CH": "switzerland schweiz suisse",
        "IE": "ireland irland",
        "PL": "poland polska polen",
        "GB": "uk storbritannien",
        "US": "usa",
    }.items()
    for name in names.split()
} | {"united kingdom": "GB", "great britain": "GB", "united states": "US", "united states of america": "US"}


@dataclass(frozen=True, slots=True)
class NativeField:
    """One field as describe shows it.

    ``choices`` are a picklist's active values; ``words`` are the same where no others are taken.
    """

    name: str
    type: str = ""
    length: int = 0
    is_createable: bool = True
    is_updateable: bool = True
    words: frozenset[str] | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One sales stage: ``id`` is what StageName holds, ``label`` what people see."""

    id: str
    label: str
    is_closed: bool = False
    is_won: bool = False


@dataclass(frozen=True, slots=True)
class Org:
    """What holds for the whole org. ``currency`` is that of amounts without a currency of their own."""

    currency: str | None = None
    stages: tuple[Stage, ...] = ()


def described(answer: object) -> Mapping[str, NativeField]:
    """The fields that a describe answer shows, by lower-case name, since SOQL does not mind case."""
    fields = answer.get("fields") if isinstance(answer, Mapping) else None
    found = (_native(each) for each in fields or () if isinstance(each, Mapping)) if isinstance(fields, list) else ()
    return {each.name.lower(): each for each in found if each is not None}


def _native(answer: Mapping[str, object]) -> NativeField | None:
    name, length = answer.get("name"), answer.get("length")
    if not isinstance(name, str) or not _NATIVE_NAME.fullmatch(name):
        return None
    choices = tuple(
        str(each["value"])
        for each in _sequence(answer.get("picklistValues"))
        if isinstance(each, Mapping) and each.get("value") and each.get("active") is not False
    )
    return NativeField(
        name=name,
        type=str(answer.get("type") or ""),
        length=length if isinstance(length, int) else 0,
        is_createable=answer.get("createable") is not False,
        is_updateable=answer.get("updateable") is not False,
        words=frozenset(choices) if choices and answer.get("restrictedPicklist") is True else None,
        choices=choices,
    )


def _sequence(raw: object) -> Iterable[object]:
    return raw if isinstance(raw, list) else ()


def stages_of(rows: Iterable[Row]) -> tuple[Stage, ...]:
    """The active stages in the order in which a deal goes through them."""
    found = []
    for row in rows:
        label = mapping.text(row.get("MasterLabel"), "MasterLabel", limit=255)
        id_ = mapping.text(row.get("ApiName"), "ApiName", limit=255) or label
        if id_ and row.get("IsActive") is not False:
            order = mapping.number(row.get("SortOrder"), "SortOrder") or Decimal(0)
            is_won = row.get("IsWon") is True
            found.append((order, Stage(id_, label or id_, is_won or row.get("IsClosed") is True, is_won)))
    return tuple(stage for _, stage in sorted(found, key=lambda each: each[0]))


def stages_from(field: NativeField | None) -> tuple[Stage, ...]:
    """The stages as the picklist alone tells them, for a user who may not read OpportunityStage."""
    names = field.choices if field is not None else ()
    return tuple(Stage(each, each, each.lower().startswith("closed"), each.lower() == "closed won") for each in names)


@dataclass(frozen=True, slots=True)
class Column:
    """How one canonical field is carried: by which native fields, in which words."""

    name: str
    type: FieldType
    natives: tuple[NativeField, ...]
    words: Mapping[str, str] | None = None

    @property
    def native(self) -> NativeField:
        return self.natives[0]

    def canonical(self, raw: str | None) -> str | None:
        """The canonical word for a native one; None if it is somebody's own."""
        held = (raw or "").casefold()
        return next((word for word, native in (self.words or {}).items() if native.casefold() == held), None)


@dataclass(frozen=True, slots=True)
class Table:
    """One kind as one org carries it."""

    kind: str
    org: Org
    fields: Mapping[str, NativeField]
    choice: KindChoice = field(default_factory=KindChoice)
    columns: Mapping[str, Column] = field(default_factory=dict)
    vocabulary: Mapping[str, str] = field(default_factory=dict)
    mark: str | None = None
    watch: tuple[str, ...] = ()
    title: str | None = None
    """Of contacts: the native field that holds the job title of their employment."""

    @property
    def sobject(self) -> str:
        return SOBJECTS[self.kind]

    @property
    def select(self) -> tuple[str, ...]:
        """The native fields that a row must show, each once, in a fixed order."""
        wanted = [*_SYSTEM, *_ALWAYS[self.kind]]
        wanted += [self.fields[name.lower()].name for name in _IF_DESCRIBED[self.kind] if name.lower() in self.fields]
        wanted += [self.mark] if self.mark else []
        wanted += [native.name for column in self.columns.values() for native in column.natives]
        wanted += [self.title] if self.title else []
        wanted += self.watch
        return tuple(dict.fromkeys(wanted))

    def capability(self) -> KindCapability:
        fields = {name: self._field(column) for name, column in self.columns.items()}
        if self.kind == "employment":
            # One account per contact: it is the primary one, whatever the other side says.
            fields["is_primary"] = FieldCapability(FieldType.BOOLEAN, is_writable=False)
        ref_sets = {
            "employment": (frozenset({"contact", "company"}),),
            "deal_contact": (frozenset({"deal", "contact"}),),
        }
        return KindCapability(
            fields=fields,
            batch={"create": BATCH, "update": BATCH, "delete": BATCH, "mark": BATCH},
            read_batch=BATCH,
            ref_sets=ref_sets.get(self.kind, ()),
            can_mark=self.mark is not None,
            one_per="contact" if self.kind == "employment" else None,
            rides_on="contact" if self.kind == "employment" else None,
            # REST has no undelete, and the connector speaks REST only.
            restored_by_hand="restore it from Salesforce's Recycle Bin within 15 days",
        )

    def _field(self, column: Column) -> FieldCapability:
        is_derived = column.name == "domain" and column.native.name == "Website"
        vocabulary = self.vocabulary if column.name == "stage" else _reachable(column)
        return FieldCapability(
            type=column.type,
            is_writable=column.native.is_updateable and not is_derived,
            is_creatable=column.native.is_createable,
            vocabulary=vocabulary,
            shares="domain" if column.name == "homepage" and column.native.name == "Website" else None,
            is_bare=column.name == "amount" and self.has_bare_amounts,
        )

    @property
    def has_bare_amounts(self) -> bool:
        """The org has one currency, and neither it nor the tenant tells which."""
        return "currencyisocode" not in self.fields and self.org.currency is None

    # --- reading ----------------------------------------------------------------------

    def record(self, row: Row) -> Record | None:
        """A row as a record; None if it is no record of this kind. Raises UnfitValueError."""
        id_ = normal_id(row.get("Id"), "Id")
        stamp = mapping.text(row.get("SystemModstamp"), "SystemModstamp", limit=40)
        modified = mapping.text(row.get("LastModifiedDate"), "LastModifiedDate", limit=40)
        modified_at = mapping.instant(stamp, "SystemModstamp")
        if modified_at is None:
            raise UnfitValueError("SystemModstamp: empty")
        if mapping.boolean(row.get("IsDeleted"), "IsDeleted"):
            master = row.get("MasterRecordId")
            survivor = normal_id(master, "MasterRecordId") if master else None
            return tombstone(self.kind, id_, merged_into=survivor, modified_at=modified_at)
        is_person = row.get("IsPersonAccount") is True
        if is_person and self.kind in ("company", "employment"):
            # A person account is a person: its contact row carries it (contract, 10).
            return None
        refs = self._refs(row, id_)
        if self.kind == "employment" and "company" not in refs:
            return tombstone(self.kind, id_, modified_at=modified_at)
        values, locked, phone = self._values(row)
        if is_person:
            locked["*"] = "a person account is written by its account"
        opaque: dict[str, Json] = {
            "modified": modified,
            "account": _optional_id(row, "AccountId"),
            "phone": phone,
            "currency": _currency(row, self.org) if self.kind == "deal" else None,
            "title": _shown(row, self.title) if self.title else None,
        }
        return Record(
            kind=self.kind,
            id=id_,
            values=values,
            parent=refs.get("deal"),
            refs=refs if self.kind in ("employment", "deal_contact") else {},
            mark=_mark(row, self.mark),
            version=f"{stamp}/{modified or ''}",
            modified_at=modified_at,
            modified_by=mapping.text(row.get(_BY), _BY, limit=255),
            locked=locked,
            native={name: _shown(row, name) for name in self.watch},
            opaque={name: value for name, value in opaque.items() if value is not None},
        )

    def _refs(self, row: Row, id_: str) -> dict[str, str]:
        match self.kind:
            case "employment":
                company = _optional_id(row, "AccountId")
                return {"contact": id_, "company": company} if company else {"contact": id_}
            case "deal_contact":
                # Roles follow the deal's sharing, so the contact may be one that we cannot see.
                deal = normal_id(row.get("OpportunityId"), "OpportunityId")
                return {"deal": deal, "contact": normal_id(row.get("ContactId"), "ContactId")}
        return {}

    def _values(self, row: Row) -> tuple[dict[str, Value], dict[str, str], str | None]:
        """Values, locks, and which native field the phone came from."""
        values: dict[str, Value] = {}
        locked: dict[str, str] = {}
        phone: str | None = None
        for name, column in self.columns.items():
            held = next((each.name for each in column.natives if row.get(each.name)), column.native.name)
            raw = row.get(held)
            if name == "phone" and raw:
                phone = held
            if name == "amount":
                self._read_amount(row, raw, values)
            elif name in ("country", "property_country"):
                word = mapping.text(raw, held)
                if word is None or country(word) is not None:
                    values[name] = country(word)
                else:
                    locked[name] = f"{held} holds a country that is not known by that name"
            elif column.words is not None:
                word = mapping.text(raw, held)
                if word is None or column.canonical(word) is not None:
                    values[name] = column.canonical(word)
                else:
                    locked[name] = f"{held} holds a value of its own"
            else:
                values[name] = _read(column, raw, held)
        if self.kind == "employment":
            values["is_primary"] = True
        if row.get("HasOpportunityLineItem") is True:
            locked["amount"] = "the opportunity has products: their sum is its amount"
        if row.get("IsClosed") is True or self._is_closed(values.get("stage")):
            locked["stage"] = "the opportunity is closed"
        return values, locked, phone

    def _read_amount(self, row: Row, raw: object, values: dict[str, Value]) -> None:
        amount, currency = mapping.number(raw, "Amount"), _currency(row, self.org)
        if amount is None or currency is not None or self.has_bare_amounts:
            values["amount"] = Money(amount, currency or "") if amount is not None else None

    def _is_closed(self, stage: Value) -> bool:
        return any(each.is_closed and each.id == stage for each in self.org.stages)

    # --- writing ----------------------------------------------------------------------

    def body(self, write: Write, now: datetime) -> dict[str, Json]:
        """What to send for a create or an update. Raises UnfitValueError, saying code and native field."""
        found: dict[str, Json] = {}
        for name, value in write.values.items():
            column = self.columns.get(name)
            if column is not None and name != "domain":
                found.update(self._native_values(column, value, write))
        if (domain := self.columns.get("domain")) and "domain" in write.values:
            is_derived = domain.native.name == "Website"
            if not is_derived or (write.verb == "create" and not found.get("Website")):
                found[domain.native.name] = _text(write.values["domain"])
        found.update(self._references(write))
        if write.verb == "create":
            self._complete(found, write, now)
        if self.mark and write.counterpart:
            found[self.mark] = write.counterpart
        for native, sent in found.items():
            self._check_length(native, sent)
        return found

    def _native_values(self, column: Column, value: Value, write: Write) -> Mapping[str, Json]:
        native = column.native.name
        match column.name:
            case "amount":
                return self._money(native, value, write)
            case "phone":
                held = write.opaque.get("phone")
                return {held if isinstance(held, str) and held else native: _text(value)}
            case "stage":
                return {native: self.vocabulary.get(str(value), str(value)) if value is not None else None}
        if column.words is not None and value is not None:
            if str(value) not in column.words:
                raise UnfitValueError(f"NO_WORD: {native}")
            return {native: column.words[str(value)] or None}
        return {native: _plain(value, native)}

    def _money(self, native: str, value: Value, write: Write) -> Mapping[str, Json]:
        if not isinstance(value, Money):
            return {native: None}
        own = self.fields.get("currencyisocode")
        if own is None:
            if not self.has_bare_amounts and value.currency != self.org.currency:
                raise UnfitValueError(f"CURRENCY: {native} is in another currency than the org's")
            return {native: _number(value.amount)}
        if own.words is not None and value.currency not in own.words:
            raise UnfitValueError(f"CURRENCY: {native} is in a currency that the org does not hold")
        if write.verb != "create" and write.opaque.get("currency") == value.currency:
            return {native: _number(value.amount)}
        return {native: _number(value.amount), own.name: value.currency}

    def _references(self, write: Write) -> Mapping[str, Json]:
        refs = write.refs
        match self.kind:
            case "employment" if "company" in refs and refs["company"] != write.opaque.get("account"):
                return {"AccountId": normal_id(refs["company"], "AccountId")}
            case "deal_contact" if write.verb == "create":
                deal = normal_id(refs.get("deal"), "OpportunityId")
                return {"OpportunityId": deal, "ContactId": normal_id(refs.get("contact"), "ContactId")}
        return {}

    def _complete(self, found: dict[str, Json], write: Write, now: datetime) -> None:
        """What a create must hold besides: the tenant's defaults, what Salesforce demands."""
        for native, value in self.choice.defaults.items():
            known = self.fields.get(native.lower())
            name = known.name if known else native
            if found.get(name) is None:
                found[name] = _typed(value, known.type if known else "")
        if self.kind == "contact" and not found.get("LastName"):
            address = str(write.values.get("email") or "").partition("@")[0]
            found["LastName"] = found.get("FirstName") or address or "-"
        if self.kind == "deal":
            if not found.get("StageName"):
                found["StageName"] = self.vocabulary.get("none") or next((s.id for s in self.org.stages), None)
            if not found.get("CloseDate"):
                found["CloseDate"] = (now + timedelta(days=180)).date().isoformat()

    def _check_length(self, native: str, sent: Json) -> None:
        known = self.fields.get(native.lower())
        if isinstance(sent, str) and known and 0 < known.length < len(sent):
            # Salesforce cuts nothing: it refuses the record (contract, 7.1).
            raise UnfitValueError(f"STRING_TOO_LONG: {native}")


def table(kind: str, fields: Mapping[str, NativeField], org: Org, choice: KindChoice) -> Table:
    """One kind of one org. Raises ConfigError for a native field or stage that the org does not have."""
    columns: dict[str, Column] = {}
    for name, type_ in FIELDS[kind].items():
        override = choice.fields.get(name)
        natives = _NATIVES[kind].get(name, ())
        if override is not None and override.native:
            natives = (known_name(override.native, fields, f"{kind}.fields.{name}"),)
        found = tuple(fields[each.lower()] for each in natives if each.lower() in fields)
        if not found:
            continue
        if name == "country":
            found = found[:1]
        words: Mapping[str, str] | None = _WORDS.get(kind, {}).get(name)
        if name == "classification" and kind == "deal_contact" and choice.labels is not None:
            words = {**(words or {}), **choice.labels}
        if override is not None and override.values:
            words = dict(override.values)
        columns[name] = Column(name, type_, found, words)
    watch = tuple(known_name(each, fields, f"{kind}.when") for each in choice.watch)
    if kind == "deal":
        watch = tuple(dict.fromkeys((*watch, "StageName")))
    mark = fields.get(MARKS.get(kind, "").lower())
    for native in choice.defaults:
        known_name(native, fields, f"{kind}.defaults")
    return Table(
        kind=kind,
        org=org,
        fields=fields,
        choice=choice,
        columns=columns,
        vocabulary=_stages(org.stages, choice.stages) if kind == "deal" else {},
        mark=mark.name if mark else None,
        watch=watch,
    )


def known_name(name: str, fields: Mapping[str, NativeField], where: str) -> str:
    """The field's name as the org spells it. Raises ConfigError with the nearest ones there are."""
    if not _NATIVE_NAME.fullmatch(name):
        raise ConfigError(f"{where}: {name[:80]!r} is not the API name of a field")
    if "." in name:
        return name
    if name.lower() in fields:
        return fields[name.lower()].name
    near = get_close_matches(name.lower(), list(fields), n=3)
    hint = f"; nearest: {', '.join(fields[each].name for each in near)}" if near else ""
    raise ConfigError(f"{where}: the org shows no field {name}{hint}; correct the name or grant read access to it")


_DEFAULT_STAGES: Final = (
    (("none", "property_added", "drafting"), ("qualification",)),
    (("published", "verified"), ("proposal/price quote", "proposal")),
    (("communicated",), ("negotiation/review", "negotiation")),
)


def _stages(stages: tuple[Stage, ...], chosen: Mapping[str, tuple[str, ...]] | None) -> Mapping[str, str]:
    """Propstreet stage -> the stage that stands for it here. Raises ConfigError for an unknown one."""
    by_name = {each.label.casefold(): each.id for each in stages} | {each.id.casefold(): each.id for each in stages}
    if chosen is not None:
        found: dict[str, str] = {}
        for name, ours in chosen.items():
            if stages and name.casefold() not in by_name:
                near = get_close_matches(name.casefold(), list(by_name), n=3)
                hint = f"; nearest: {', '.join(by_name[each] for each in near)}" if near else ""
                raise ConfigError(f"deal.stages: the org has no active stage {name[:80]!r}{hint}")
            found |= dict.fromkeys(ours, by_name.get(name.casefold(), name))
        return found
    ways = [each for each in stages if not each.is_closed]
    found = {}
    for at, (ours, labels) in enumerate(_DEFAULT_STAGES):
        named = next((each.id for each in ways for label in labels if each.label.casefold() == label), None)
        if named or ways:
            # First, middle, last.
            found |= dict.fromkeys(ours, named or ways[at * (len(ways) - 1) // 2].id)
    won = [each for each in stages if each.is_won]
    won.sort(key=lambda each: each.label.casefold() != "closed won")
    return found | ({"won": won[0].id} if won else {})


def tombstone(kind: str, id_: str, *, merged_into: str | None = None, modified_at: datetime | None = None) -> Record:
    """A record that is gone. ``merged_into`` is the survivor of a merge."""
    return Record(kind, id_, {}, is_deleted=True, merged_into=merged_into, modified_at=modified_at)


def country(name: str | None) -> str | None:
    """ISO code of a code or of a name that is sure; None for anything else."""
    if name is None:
        return None
    if re.fullmatch(r"[A-Za-z]{2}", name) and name.casefold() not in _COUNTRIES:
        return name.upper()
    return _COUNTRIES.get(" ".join(name.casefold().split()))


def new_field(kind: str, name: str | None) -> Mapping[str, Json]:
    """How the field that carries a canonical field, or the mark if None, is created by the Tooling API."""
    native = MARKS[kind] if name is None else _NATIVES[kind][name][0]
    label = native.removesuffix("__c").replace("_", " ")
    if name is None:
        form: Mapping[str, Json] = _MARK_FORM
    elif name == "strategy":
        form = {"type": "LongTextArea", "length": 32_768, "visibleLines": 5}
    else:
        form = _FORMS.get(FIELDS[kind][name], {"type": "Text", "length": 255})
    return {"FullName": f"{SOBJECTS[kind]}.{native}", "Metadata": {**form, "label": label}}


_MARK_FORM: Final[Mapping[str, Json]] = {
    "type": "Text",
    "length": 64,
    "externalId": True,
    "unique": True,
    "caseSensitive": True,
}
_FORMS: Final[Mapping[FieldType, Mapping[str, Json]]] = {
    FieldType.NUMBER: {"type": "Number", "precision": 18, "scale": 2},
    FieldType.INSTANT: {"type": "DateTime"},
}


def missing_customs(found: Table) -> Iterable[tuple[str, str]]:
    """(canonical, native) of the default custom fields that the org does not show."""
    for name, natives in _NATIVES[found.kind].items():
        if natives[0].endswith("__c") and name not in found.columns:
            yield name, natives[0]


def _reachable(column: Column) -> Mapping[str, str] | None:
    """The words that a restricted picklist can hold, or None if it holds all."""
    held = column.native.words
    if held is None or column.type is not FieldType.ENUMERATION or column.name in ("country", "property_country"):
        return None
    words = column.words if column.words is not None else {each: each for each in held}
    return {word: word for word, native in words.items() if native in held or not native}


def _currency(row: Row, org: Org) -> str | None:
    """The currency of a row's amount. Only orgs with several show one on the row (contract, 8)."""
    raw = mapping.text(row.get("CurrencyIsoCode"), "CurrencyIsoCode", limit=3)
    return raw.upper() if raw else org.currency


def _optional_id(row: Row, name: str) -> str | None:
    raw = row.get(name)
    return normal_id(raw, name) if raw else None


def _mark(row: Row, name: str | None) -> str | None:
    """The mark, or None if the field holds what no id looks like: then somebody else wrote it."""
    try:
        return mapping.identifier(row.get(name), name) if name else None
    except UnfitValueError:
        return None


def _shown(row: Row, path: str) -> str | None:
    """A native field as text, for the tenant's filters; parents may be null."""
    held: object = row
    for name in path.split("."):
        held = held.get(name) if isinstance(held, Mapping) else None
    if isinstance(held, bool):
        return "true" if held else "false"
    return mapping.text(held, path)


def _read(column: Column, raw: object, held: str) -> Value:
    match column:
        case Column(name="domain"):
            return mapping.domain(raw, held)
        case Column(name="email"):
            return mapping.email(raw, held)
        case Column(type=FieldType.SET):
            return mapping.members(mapping.text(raw, held), held)
        case Column(type=FieldType.NUMBER):
            return mapping.number(raw, held)
        case Column(type=FieldType.BOOLEAN):
            return mapping.boolean(raw, held)
        case Column(type=FieldType.INSTANT):
            return mapping.instant(raw, held)
        case Column(type=FieldType.DATE):
            return mapping.day(raw, held)
    return mapping.text(raw, held)


def _plain(value: Value, native: str) -> Json:
    """A value as JSON for a field of its type."""
    match value:
        case Decimal():
            return _number(value)
        case datetime():
            return mapping.iso_z(value)
        case frozenset():
            if any(";" in each for each in value):
                raise UnfitValueError(f"SEPARATOR_IN_VALUE: {native}")
            return ";".join(sorted(value)) or None
        case bool() | str() | None:
            return value
        case Money():
            return _number(value.amount)
        case Hashed():
            raise UnfitValueError(f"{native}: its value was erased")
    return value.isoformat()


def _number(value: Decimal) -> int | float:
    """JSON has one kind of number; whole ones stay exact. A string into a currency field is refused."""
    return int(value) if value == value.to_integral_value() else float(value)


def _text(value: Value) -> str | None:
    return str(value) if value is not None else None


def _typed(value: str, type_: str) -> Json:
    """A default from the tenant's file as the field's type wants it."""
    if type_ == "boolean":
        return value.strip().lower() == "true"
    if type_ in ("currency", "double", "percent", "int", "long"):
        try:
            found = mapping.number(value, "defaults")
        except UnfitValueError as exc:
            raise ConfigError("defaults: a number field takes a number") from exc
        return _number(found) if found is not None else None
    return value
