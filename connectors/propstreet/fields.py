"""The tables of Propstreet's fields and the canonical ones, and what either says about the other.

A row of the API becomes a record, the values of a write become a body. Absent and null read the
same (contract, 14.2); a body holds nothing but what is meant to change. Raises UnfitValueError
for a row that cannot be read, and for values that Propstreet is known to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from syncd.connector import FieldCapability
from syncd.core import mapping
from syncd.core.mapping import UnfitValueError
from syncd.core.model import FIELDS, MAX_TEXT, FieldType, Json, Money, Record, Value, Values

Row = Mapping[str, object]

PATHS: Final = {
    "company": "/network/companies",
    "contact": "/network/contacts",
    "employment": "/network/links",
    "deal": "/projects",
}
CLASSIFICATIONS: Final = ("not_contacted", "contacted", "interested", "not_interested", "bidder")
UNTOUCHED: Final = "not_contacted"
CLOSED: Final = "closed in Propstreet"
#: Longest id of an external ref (contract, 2.1).
MAX_REF: Final = 255

_STAGES: Final = frozenset({"property_added", "drafting", "published", "verified", "communicated"})
_STATUSES: Final = frozenset({"open", "closed"})
_WORK_STAGES: Final = frozenset({"draft", "active", "inactive"})
_MANDATES: Final = frozenset({"exclusive", "non_exclusive", "other"})
_SCALES: Final = {
    "none": Decimal(1),
    "thousands": Decimal(1000),
    "millions": Decimal(1_000_000),
    "billions": Decimal(1_000_000_000),
}
_SHORT: Final = 3
"""Decimals that a price may show before a finer scale reads better."""
_TAG: Final = re.compile(r"[\x21-\x7e]{1,255}")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")


def _upper(raw: object, name: str) -> Value:
    found = mapping.text(raw, name)
    return found.upper() if found else None


def _lower(raw: object, name: str) -> Value:
    found = mapping.text(raw, name)
    return found.lower() if found else None


@dataclass(frozen=True, slots=True)
class Flat:
    """A canonical field that is one native field. ``default`` is what its absence means."""

    native: str
    read: Callable[[object, str], Value] = mapping.text
    default: Value = None


FLAT: Final[Mapping[str, Mapping[str, Flat]]] = {
    "company": {
        "name": Flat("name"),
        "domain": Flat("domain", mapping.domain),
        "homepage": Flat("homepageUrl"),
        "country": Flat("countryCode", _upper),
        "linkedin": Flat("linkedInUrl"),
        "strategy": Flat("strategy"),
        "tags": Flat("tags", mapping.members),
    },
    "contact": {
        "first_name": Flat("firstName"),
        "last_name": Flat("lastName"),
        "email": Flat("email", mapping.email),
        "phone": Flat("phone"),
        "linkedin": Flat("linkedInUrl"),
        "language": Flat("primaryLanguage", _lower),
        "strategy": Flat("strategy"),
        "tags": Flat("tags", mapping.members),
    },
    "employment": {"job_title": Flat("jobTitle"), "is_primary": Flat("isPrimary", mapping.boolean)},
    "deal": {"name": Flat("name")},
    "deal_contact": {
        "classification": Flat("classification", default=UNTOUCHED),
        "tags": Flat("tags", mapping.members),
    },
}

#: Canonical fields that only Propstreet itself sets, or that hang on another resource.
READ_ONLY: Final[Mapping[str, frozenset[str]]] = {
    "company": frozenset({"org_number"}),
    "contact": frozenset({"other_emails"}),
    "employment": frozenset(),
    "deal": frozenset(FIELDS["deal"]) - {"name", "amount", "exclusivity", "asset_type", "property_count"},
    # Tags of a prospect are those of its contact or company (contract, 4.3).
    "deal_contact": frozenset({"tags", "accepted_at", "deadline_at"}),
}
_NOT_ON_CREATE: Final = {"is_primary"}
"""Not among the fields of POST /network/links (contract, 7): it takes a PATCH behind it."""
_NEVER_EMPTY: Final = {("company", "name"), ("deal", "name")}


@dataclass(frozen=True, slots=True)
class Setup:
    """What the tenant's settings change about the tables.

    That is little: Propstreet has no custom fields and one vocabulary, so what a pair says about
    native names, value tables and defaults is about its CRM.
    """

    namespace: str
    org_namespace: str
    watch: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Native fields by kind that filters ask about."""


def capabilities(kind: str) -> Mapping[str, FieldCapability]:
    """How far each canonical field of a kind is carried."""
    return {
        name: FieldCapability(
            type_,
            is_writable=name not in READ_ONLY[kind],
            is_creatable=name not in READ_ONLY[kind],
        )
        for name, type_ in FIELDS[kind].items()
    }


# --- rows to records ----------------------------------------------------------------------


def record(setup: Setup, kind: str, row: Row, *, parent: str | None = None) -> Record:
    """One row as a record. Raises UnfitValueError.

    ``parent`` is the project in whose list a prospect stood. The property fields of a deal are
    absent: they come from another resource, see ``property_values``. A deleted row is a tombstone
    without values.
    """
    id_ = mapping.identifier(row.get("id"), "id")
    if id_ is None:
        raise UnfitValueError("id: missing")
    if kind == "deal_contact":
        parent = mapping.identifier(row.get("projectId"), "projectId") or parent
    is_deleted = bool(row.get("deletedUtc")) or row.get("status") == "deleted"
    refs = _refs(kind, row, parent)
    ours, others = split_refs(row, setup.namespace)
    found = Record(
        kind=kind,
        id=id_,
        values={} if is_deleted else _values(setup, kind, row),
        parent=parent,
        refs=refs,
        mark=ours,
        version=_version(row),
        modified_at=mapping.instant(row.get("updatedUtc"), "updatedUtc"),
        is_deleted=is_deleted,
        locked=_locked(kind, row),
        native={name: mapping.text(_scalar(row.get(name)), name) for name in setup.watch.get(kind, ())},
        opaque=_opaque(kind, row, others),
    )
    _must_be_storable([found.values, found.native, found.opaque, found.mark])
    return found


def refusal_id(row: Row) -> str:
    """A name for a row that cannot be read, fit for a log."""
    try:
        return mapping.identifier(row.get("id"), "id") or "without-id"
    except UnfitValueError:
        return "unsafe-id"


def split_refs(row: Row, namespace: str) -> tuple[str | None, list[Json]]:
    """Our entry's id among the external refs, and all others' entries.

    Namespaces are compared without case; entries of another shape are left out (14.8).
    """
    mark: str | None = None
    others: list[Json] = []
    entries = row.get("externalRefs")
    for entry in entries if isinstance(entries, list) else []:
        space, id_ = (entry.get("namespace"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(space, str) or not isinstance(id_, str | int):
            continue
        if space.lower() == namespace.lower():
            mark = str(id_)[:MAX_REF] or None
        else:
            others.append({"namespace": space, "id": str(id_)})
    return mark, others


def joined_refs(others: object, namespace: str, counterpart: str) -> list[Json]:
    """The whole array for a PATCH, which replaces it: everybody else's entries, then ours."""
    kept: list[Json] = list(others) if isinstance(others, list | tuple) else []
    return [*kept, {"namespace": namespace, "id": counterpart}]


def _refs(kind: str, row: Row, parent: str | None) -> dict[str, str]:
    if kind not in ("employment", "deal_contact"):
        return {}
    contact = mapping.identifier(row.get("contactId"), "contactId")
    company = mapping.identifier(row.get("companyId"), "companyId")
    if kind == "employment":
        if contact is None or company is None:
            raise UnfitValueError("contactId, companyId: a link without both")
        return {"contact": contact, "company": company}
    if parent is None:
        raise UnfitValueError("projectId: missing")
    # Both may be set on read: the company is then the contact's own, no part of the prospect.
    end = {"contact": contact} if contact else {"company": company} if company else {}
    return {"deal": parent, **end}


def _version(row: Row) -> str | None:
    etag = row.get("etag")
    if etag is None or etag == "":
        return None
    if not isinstance(etag, str) or not _TAG.fullmatch(etag):
        raise UnfitValueError("etag: unusable in a header")
    return etag


def _locked(kind: str, row: Row) -> dict[str, str]:
    if kind == "deal" and row.get("status") not in (None, "open"):
        return {"*": CLOSED}
    if kind == "company" and row.get("homepageUrl"):
        # A domain sent beside or behind a homepage is ignored (contract, 6).
        return {"domain": "Propstreet takes it from the homepage"}
    return {}


def _opaque(kind: str, row: Row, others: list[Json]) -> dict[str, Json]:
    found: dict[str, Json] = {"refs": others} if others else {}
    if kind == "deal_contact" and not row.get("contactId") and row.get("companyId"):
        found["is_company_only"] = True
    if kind == "deal":
        if price := _part(row, "price"):
            found["scale"] = str(price.get("scale") or "none")
        if limits := _range(row):
            found["range"] = limits
        if property_id := property_of(row):
            found["property"] = property_id
        asset = _part(row, "asset")
        found["asset"] = {"type": str(asset.get("type") or "single"), "count": _digits(asset.get("propertyCount"))}
    return found


def _values(setup: Setup, kind: str, row: Row) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, flat in FLAT[kind].items():
        if name == "is_primary" and row.get(flat.native) is None:
            continue  # The link's documented shape has no such field (contract, 7).
        value = flat.read(row.get(flat.native), flat.native)
        found[name] = flat.default if value is None else value
    match kind:
        case "company":
            found["org_number"] = mapping.text(split_refs(row, setup.org_namespace)[0], "org_number")
            found["domain"] = found["domain"] or mapping.domain(found["homepage"], "homepageUrl")
        case "contact":
            found |= _emails(row, found["email"])
        case "deal":
            found |= _deal(row)
        case "deal_contact":
            teaser = _part(row, "teaser")
            found["accepted_at"] = mapping.instant(teaser.get("acceptedUtc"), "teaser.acceptedUtc")
            found["deadline_at"] = mapping.instant(teaser.get("deadlineUtc"), "teaser.deadlineUtc")
            if found["classification"] not in CLASSIFICATIONS:
                del found["classification"]
    return found


def _emails(row: Row, first: Value) -> dict[str, Value]:
    entries = row.get("emails")
    addresses = [
        address
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and (address := mapping.email(entry.get("address"), "emails.address"))
    ]
    return {"other_emails": frozenset(address for address in addresses if address != first) or None}


def _deal(row: Row) -> dict[str, Value]:
    teaser, asset = _part(row, "teaser"), _part(row, "asset")
    found: dict[str, Value] = {
        "published_at": mapping.instant(teaser.get("publishedUtc"), "teaser.publishedUtc"),
        "verified_at": mapping.instant(teaser.get("verifiedUtc"), "teaser.verifiedUtc"),
        "communicated_at": mapping.instant(teaser.get("communicatedUtc"), "teaser.communicatedUtc"),
        "property_count": mapping.number(asset.get("propertyCount"), "asset.propertyCount"),
    }
    found |= _word("status", row.get("status"), _STATUSES)
    found |= _word("classification", row.get("classification"), _WORK_STAGES, empty="draft")
    # Older answers have the deprecated name only (14.10).
    found |= _word("exclusivity", row.get("exclusivity") or row.get("mandate"), _MANDATES)
    found |= _word("asset_type", asset.get("type"), frozenset({"single", "portfolio"}), empty="single")
    found |= _stage(row, teaser)
    price = _part(row, "price")
    if not price:
        found["amount"] = None
    elif price.get("scale") in (None, *_SCALES):
        found["amount"] = _money(price.get("value"), price)
    return found


def _stage(row: Row, teaser: Row) -> dict[str, Value]:
    """Where the deal stands. Closed is not won: that takes a buyer; else it says nothing (14.11)."""
    if row.get("status") == "closed":
        sales = row.get("transactions")
        return {"stage": "won"} if any(_has_buyer(each) for each in (sales if isinstance(sales, list) else [])) else {}
    return _word("stage", teaser.get("stage"), _STAGES, empty="none")


def _has_buyer(sale: object) -> bool:
    if not isinstance(sale, dict) or sale.get("buyerType") == "none":
        return False
    return sale.get("buyerType") in ("prospect", "external") or bool(
        sale.get("buyerProspectId") or sale.get("buyerContactId")
    )


def _word(name: str, raw: object, known: frozenset[str], *, empty: Value = None) -> dict[str, Value]:
    """A value of a closed vocabulary; a word that is not in it says nothing."""
    if raw is None or raw == "":
        return {name: empty}
    return {name: raw} if isinstance(raw, str) and raw in known else {}


def _money(raw: object, price: Row) -> Money | None:
    value = mapping.number(raw, "price.value")
    currency = mapping.text(price.get("currency"), "price.currency")
    if value is None or currency is None:
        return None
    scale = _SCALES[str(price.get("scale") or "none")]
    return Money(mapping.canonical_decimal(value * scale), currency.upper())


def _range(row: Row) -> dict[str, Json]:
    """Both ends of the price range in whole units, as text."""
    limits = _part(row, "priceRange")
    if not limits or limits.get("scale") not in (None, *_SCALES):
        return {}
    found: dict[str, Json] = {}
    for end in ("min", "max"):
        money = _money(limits.get(end), limits)
        if money is not None:
            found |= {end: format(money.amount, "f"), "currency": money.currency}
    return found


def _part(row: Row, name: str) -> Row:
    part = row.get(name)
    return part if isinstance(part, dict) else {}


def _scalar(raw: object) -> object:
    """What a filter can ask about: booleans in words, lists joined, objects not at all."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, list):
        return ";".join(str(each) for each in raw if isinstance(each, str | int))
    return None if isinstance(raw, dict) else raw


def _digits(raw: object) -> str | None:
    found = mapping.number(raw, "asset.propertyCount")
    return format(found, "f") if found is not None else None


def _must_be_storable(parts: Iterable[object]) -> None:
    """Raise UnfitValueError for text that no database takes: lone surrogates, and NUL where nothing trims it."""
    for part in parts:
        match part:
            case str():
                if "\x00" in part or any("\ud800" <= ch <= "\udfff" for ch in part):
                    raise UnfitValueError("text: not valid Unicode")
                if len(part) > MAX_TEXT:
                    raise UnfitValueError(f"text: longer than {MAX_TEXT} characters")
            case Mapping():
                _must_be_storable(part.values())
            case list() | tuple() | frozenset():
                _must_be_storable(part)


# --- linked properties --------------------------------------------------------------------

PROPERTY_FIELDS: Final = (
    "property_name",
    "property_location",
    "property_country",
    "property_categories",
    "property_tenure",
    "property_year_built",
    "property_area_sqm",
)
NO_PROPERTY: Final[Values] = dict.fromkeys(PROPERTY_FIELDS)


def property_of(row: Row) -> str | None:
    """The id of the property that a project is linked with; at most one today, given bare or as an object."""
    linked = row.get("properties")
    for each in linked if isinstance(linked, list) else []:
        if found := mapping.identifier(each.get("id") if isinstance(each, dict) else each, "properties.id"):
            return found
    return None


def property_values(row: Row) -> Values:
    """What a linked property adds to its deal; a deleted one adds nothing, an unreadable one says nothing."""
    if row.get("deletedUtc"):
        return NO_PROPERTY
    location = _part(row, "location")
    try:
        found: Values = {
            "property_name": mapping.text(row.get("name"), "name"),
            "property_location": mapping.text(location.get("locality"), "location.locality"),
            "property_country": _upper(location.get("country"), "location.country"),
            "property_categories": mapping.members(row.get("categories"), "categories"),
            "property_tenure": mapping.text(row.get("tenure"), "tenure"),
            "property_year_built": mapping.number(row.get("yearBuilt"), "yearBuilt"),
            "property_area_sqm": _area(row.get("parcelArea")),
        }
        _must_be_storable([found])
    except UnfitValueError:
        return {}
    return found


def _area(raw: object) -> Decimal | None:
    """A number, or a number with its unit, of which there is only one (contract, 9)."""
    if isinstance(raw, dict):
        raw = raw.get("value") if raw.get("unit") in (None, "sqm") else None
    return mapping.number(raw, "parcelArea")


# --- values to bodies ---------------------------------------------------------------------


def created(
    setup: Setup, kind: str, values: Values, refs: Mapping[str, str], counterpart: str | None
) -> dict[str, Json]:
    """The body of a create. Empty values are left out. Raises UnfitValueError."""
    given = {name: value for name, value in values.items() if value is not None and name not in _NOT_ON_CREATE}
    if kind == "company" and "homepage" in given:
        given.pop("domain", None)  # ignored beside a homepage (contract, 6)
    for of, name in _NEVER_EMPTY:
        if of == kind and name not in given:
            raise UnfitValueError(f"{name}: Propstreet needs one")
    body = _body(kind, given, {})
    if kind == "employment":
        body |= {"contactId": refs["contact"], "companyId": refs["company"]}
    elif kind == "deal_contact":
        if "contact" not in refs and "company" not in refs:
            raise UnfitValueError("contact, company: a prospect needs one of them")
        body |= {"contactId": refs["contact"]} if "contact" in refs else {"companyId": refs["company"]}
    if kind != "employment" and counterpart is not None and len(counterpart) <= MAX_REF:
        body["externalRefs"] = joined_refs((), setup.namespace, counterpart)
    return body


def changed(kind: str, values: Values, opaque: Mapping[str, Json]) -> dict[str, Json]:
    """The body of a PATCH: what changes and nothing else, null where a value goes. Raises UnfitValueError."""
    given = dict(values)
    if kind == "company" and given.get("homepage"):
        given.pop("domain", None)
    for name, value in given.items():
        if value is None and (kind, name) in _NEVER_EMPTY:
            raise UnfitValueError(f"{name}: Propstreet keeps none empty")
    return _body(kind, given, opaque)


def _body(kind: str, values: Values, opaque: Mapping[str, Json]) -> dict[str, Json]:
    body: dict[str, Json] = {}
    for name, value in values.items():
        if name in READ_ONLY[kind]:
            raise UnfitValueError(f"{name}: read only in Propstreet")
        if name in FLAT[kind]:
            body[FLAT[kind][name].native] = _plain(kind, name, value)
        elif name == "amount":
            body["price"] = price(value, opaque)
        elif name == "exclusivity":
            # Only the newer name: both at once are refused (14.10).
            body["exclusivity"] = str(value) if value is not None else None
    if "asset_type" in values or "property_count" in values:
        body["asset"] = _asset(values, opaque)
    return body


def _plain(kind: str, name: str, value: Value) -> Json:
    match value:
        case None:
            if FIELDS[kind][name] is FieldType.SET:
                return []
            if FIELDS[kind][name] is FieldType.BOOLEAN:
                return False
            return UNTOUCHED if kind == "deal_contact" else None
        case bool():
            return value
        case frozenset():
            return list[Json](sorted(value))
        case _:
            return str(value)


def price(value: Value, opaque: Mapping[str, Json]) -> Json:
    """A price in the scale that is there already, or in a finer one where that would not be exact and short.

    Raises UnfitValueError for one that Propstreet would not take or that its own price range denies.
    """
    if value is None:
        return None
    if not isinstance(value, Money) or value.amount < 0 or not _CURRENCY.fullmatch(value.currency):
        raise UnfitValueError("amount: needs a currency of three letters and no minus")
    _must_be_in_range(value, opaque.get("range"))
    present = str(opaque.get("scale") or "none")
    coarse = list(_SCALES)[: list(_SCALES).index(present) + 1] if present in _SCALES else ["none"]
    for scale in reversed(coarse):
        scaled = mapping.canonical_decimal(value.amount / _SCALES[scale])
        if scale == "none" or (scaled * _SCALES[scale] == value.amount and _decimals(scaled) <= _SHORT):
            return {"value": _json_number(scaled), "currency": value.currency, "scale": scale}
    raise AssertionError("the finest scale always fits")


def _must_be_in_range(value: Money, limits: Json) -> None:
    if not isinstance(limits, Mapping) or not limits:
        return
    low, high = limits.get("min"), limits.get("max")
    is_outside = (low is not None and value.amount < Decimal(str(low))) or (
        high is not None and value.amount > Decimal(str(high))
    )
    if limits.get("currency") != value.currency or is_outside:
        raise UnfitValueError("amount: outside the project's priceRange, change that in Propstreet first")


def _asset(values: Values, opaque: Mapping[str, Json]) -> Json:
    """The whole asset, since a PATCH replaces it whole; a count goes with portfolios only."""
    present = opaque.get("asset")
    now: Mapping[str, Json] = present if isinstance(present, Mapping) else {}
    type_ = str(values.get("asset_type") or now.get("type") or "single")
    raw = values["property_count"] if "property_count" in values else now.get("count")
    count = mapping.number(raw, "property_count")
    if type_ != "portfolio" or count is None:
        return {"type": type_}
    if count != count.to_integral_value() or count < 0:
        raise UnfitValueError("property_count: not a whole number")
    return {"type": type_, "propertyCount": int(count)}


def _decimals(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _json_number(number: Decimal) -> Json:
    """A number as JSON can carry it exactly; a string, which the schemas allow, where a float cannot."""
    if number == number.to_integral_value():
        return int(number)
    return float(number) if Decimal(repr(float(number))) == number else format(number, "f")


# --- comparing ----------------------------------------------------------------------------


def strays(kind: str, sent: Values, stored: Values) -> Sequence[str]:
    """Fields that hold something else than was sent, beyond what Propstreet is known to rewrite.

    Trimmed or cut text, E.164 phones, lower case domains and the order of tags are no difference
    (14.9); neither is a field that came back empty.
    """
    found = []
    for name, value in sent.items():
        held = stored.get(name)
        if value is None or held is None or name == "domain" or mapping.same(FIELDS[kind][name], value, held):
            continue
        if isinstance(value, str) and isinstance(held, str) and value.strip().lower().startswith(held.lower()):
            continue
        found.append(name)
    return found
