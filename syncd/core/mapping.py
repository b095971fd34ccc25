"""Canonical values: reading them from vendors' scalars, comparing them, keeping them as JSON.

A connector's table says which native field feeds which canonical one; the functions here say
what a scalar means, and refuse what cannot be one. ``same`` is each field type's notion of
equal, lenient exactly where systems are known to rewrite what they are given.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final
from urllib.parse import urlsplit

from syncd.core.model import FIELDS, MAX_TEXT, WORDS, FieldType, Hashed, Json, Money, Value, Values, is_safe_id

#: How a value is shown that can no more be read.
ERASED_VALUE: Final = "(erased)"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class UnfitValueError(ValueError):
    """A scalar from a vendor cannot be what its field holds. Says the field, never the value."""


def text(raw: object, field: str, *, limit: int = MAX_TEXT) -> str | None:
    """Trimmed text, None if empty. Raises UnfitValueError for other types, broken Unicode and what is too long."""
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, str | int | float | Decimal):
        raise UnfitValueError(f"{field}: expected text")
    found = str(raw).replace("\x00", "").strip()
    if len(found) > limit:
        raise UnfitValueError(f"{field}: longer than {limit} characters")
    if _SURROGATE.search(found):
        # JSON may spell half a character, which no database takes and no answer of ours could carry.
        raise UnfitValueError(f"{field}: not valid Unicode")
    return found or None


def identifier(raw: object, field: str) -> str | None:
    """An opaque id, numbers made text, None if empty. Raises UnfitValueError if it is unsafe in a URL or query."""
    found = text(raw, field, limit=255)
    if found is not None and not is_safe_id(found):
        raise UnfitValueError(f"{field}: not a safe id")
    return found


def number(raw: object, field: str) -> Decimal | None:
    """A finite decimal from a JSON number or a numeric string. Raises UnfitValueError."""
    if raw is None or raw == "":
        return None
    try:
        found = Decimal(str(raw).strip())
    except InvalidOperation as exc:
        raise UnfitValueError(f"{field}: expected a number") from exc
    # Written out in full, a number beyond this would be as long as its exponent says.
    if not found.is_finite() or abs(found.adjusted()) > 30:
        raise UnfitValueError(f"{field}: not a usable number")
    return canonical_decimal(found)


def canonical_decimal(found: Decimal) -> Decimal:
    """The same number to the last digit, without trailing zeros, exponent or signed zero: equal numbers print alike."""
    told = f"{found:f}"
    return Decimal(told.rstrip("0") if "." in told else told) or Decimal(0)


def boolean(raw: object, field: str) -> bool | None:
    """A claim from a JSON boolean or the words true and false. Raises UnfitValueError."""
    match raw:
        case None | "":
            return None
        case bool():
            return raw
        case "true" | "True":
            return True
        case "false" | "False":
            return False
    raise UnfitValueError(f"{field}: expected true or false")


def instant(raw: object, field: str) -> datetime | None:
    """An aware UTC instant from ISO 8601 (any offset, any fraction) or epoch milliseconds.

    Digits finer than microseconds are cut off, never rounded up. Raises UnfitValueError.
    """
    if raw is None or raw == "":
        return None
    try:
        if isinstance(raw, str) and not raw.isdigit():
            found = datetime.fromisoformat(raw.strip())
            if found.tzinfo is None:
                found = found.replace(tzinfo=UTC)
            return found.astimezone(UTC)
        if isinstance(raw, str | int) and not isinstance(raw, bool):
            return _EPOCH + timedelta(milliseconds=int(raw))
    except (ValueError, OverflowError) as exc:
        raise UnfitValueError(f"{field}: expected an instant") from exc
    raise UnfitValueError(f"{field}: expected an instant")


def day(raw: object, field: str) -> date | None:
    """A calendar date without zone from ISO 8601. Raises UnfitValueError."""
    if raw is None or raw == "":
        return None
    try:
        return date.fromisoformat(str(raw)[:10])
    except ValueError as exc:
        raise UnfitValueError(f"{field}: expected a date") from exc


def members(raw: object, field: str, *, separator: str = ";") -> frozenset[str] | None:
    """A set from a list or a separated string; empty is None. Raises UnfitValueError."""
    if raw is None:
        return None
    if isinstance(raw, str):
        parts: Iterable[object] = raw.split(separator)
    elif isinstance(raw, list | tuple | set | frozenset):
        parts = raw
    else:
        raise UnfitValueError(f"{field}: expected a list")
    found = frozenset(part for part in (text(each, field) for each in parts) if part)
    return found or None


def email(raw: object, field: str) -> str | None:
    """An e-mail address, lower case. Raises UnfitValueError."""
    found = text(raw, field)
    return found.lower() if found else None


def domain(raw: object, field: str = "domain") -> str | None:
    """The bare host of a domain or URL: lower case, without ``www.``, port or path."""
    found = text(raw, field)
    if not found:
        return None
    try:
        host = urlsplit(found if "//" in found else f"//{found}").hostname or ""
    except ValueError as exc:
        raise UnfitValueError(f"{field}: expected a domain") from exc
    return host.removeprefix("www.").rstrip(".") or None


_PRICE: Final = re.compile(r"(-?\d[\d ]*(?:\.\d+)?) ?([A-Za-z]{3})")


def typed(kind: str, field: str, raw: str) -> Value:
    """What a person's text means in a field of this kind. Raises UnfitValueError saying what the field takes."""
    words = WORDS.get((kind, field))
    if words is not None and raw.strip() not in words:
        raise UnfitValueError(f"{field} takes one of: {', '.join(words)}")
    if field.endswith("country") and re.fullmatch(r"\s*[A-Za-z]{2}\s*", raw) is None:
        raise UnfitValueError(f"{field} takes a country's two letters, like SE")
    match FIELDS[kind][field]:
        case FieldType.ENUMERATION if field.endswith("country"):
            return raw.strip().upper()
        case FieldType.TEXT | FieldType.PHONE | FieldType.ENUMERATION:
            return {"email": email, "domain": domain}.get(field, text)(raw, field)
        case FieldType.NUMBER:
            return number(raw, field)
        case FieldType.BOOLEAN:
            return boolean(raw.strip().lower(), field)
        case FieldType.MONEY:
            if (found := _PRICE.fullmatch(raw.strip())) is None:
                raise UnfitValueError(f"{field} takes an amount and its currency, like 1200000 SEK")
            return Money(canonical_decimal(Decimal(found[1].replace(" ", ""))), found[2].upper())
        case FieldType.INSTANT:
            return instant(raw, field)
        case FieldType.DATE:
            return day(raw, field)
        case FieldType.SET:
            return members(raw, field, separator=",")


def iso_z(moment: datetime) -> str:
    """An instant as vendors like it best: UTC with milliseconds and a ``Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- equality -----------------------------------------------------------------------------

_NOT_DIGITS: Final = re.compile(r"\D+")
#: Fewer digits are compared as written; more of a country prefix there is not.
_PHONE_DIGITS: Final = 7
_PREFIX_DIGITS: Final = 3


def same(type_: FieldType, one: Value, other: Value) -> bool:
    """Whether two canonical values say the same, by their field type's notion of equal."""
    if one == other:
        return True
    if one is None or other is None:
        return False
    if isinstance(one, Hashed) or isinstance(other, Hashed):
        return _same_hashed(type_, one, other)
    if type_ is FieldType.PHONE:
        return _same_phone(str(one), str(other))
    if type_ is FieldType.TEXT:
        return " ".join(str(one).split()) == " ".join(str(other).split())
    if type_ is FieldType.INSTANT and isinstance(one, datetime) and isinstance(other, datetime):
        # The coarsest store keeps whole seconds.
        return one.replace(microsecond=0) == other.replace(microsecond=0)
    return False


def is_cut(type_: FieldType, sent: Value, kept: Value) -> bool:
    """Whether ``kept`` is what a system with less room left of a text that it was given."""
    if type_ is not FieldType.TEXT or not isinstance(sent, str) or not isinstance(kept, str):
        return False
    return kept != sent and bool(kept.strip()) and sent.startswith(kept.rstrip())


def _same_phone(one: str, other: str) -> bool:
    """True if one is the other with a country prefix or punctuation added."""
    short, long = sorted((_national(one), _national(other)), key=len)
    return len(short) >= _PHONE_DIGITS and long.endswith(short) and len(long) - len(short) <= _PREFIX_DIGITS


def _national(phone: str) -> str:
    return _NOT_DIGITS.sub("", phone).lstrip("0")


# --- erased values ------------------------------------------------------------------------


def digest(salt: str, told: str) -> str:
    """A short name for a text that does not tell the text; PostgreSQL can compute it too."""
    return hashlib.sha256(f"{salt}\n{told}".encode()).hexdigest()[:32]


def hashed(type_: FieldType, value: Value, salt: str) -> Value:
    """A value made unreadable, which ``same`` still compares as it would have compared the value.

    Nothing and a bare yes or no are nobody's secret and stay. Two erased values with different
    salts are never the same.
    """
    if value is None or isinstance(value, bool | Hashed):
        return value
    return Hashed(salt, tuple(digest(salt, each) for each in _normal_forms(type_, value)))


def _normal_forms(type_: FieldType, value: Value) -> list[str]:
    """The texts of which the first is equal for equal values; the others of a phone lack its first digits."""
    match value:
        case frozenset():
            return sorted(value)
        case datetime():
            return [value.astimezone(UTC).replace(microsecond=0).isoformat()]
        case Money():
            return [f"{format(canonical_decimal(value.amount), 'f')} {value.currency}"]
        case Decimal():
            return [format(canonical_decimal(value), "f")]
        case str() if type_ is FieldType.PHONE:
            digits = _national(value)
            shorter = [digits[cut:] for cut in range(_PREFIX_DIGITS + 1) if len(digits) - cut >= _PHONE_DIGITS]
            return shorter or [value]
        case str() if type_ is FieldType.TEXT:
            return [" ".join(value.split())]
    return [str(value)]


def _same_hashed(type_: FieldType, one: Value, other: Value) -> bool:
    salt = one.salt if isinstance(one, Hashed) else other.salt if isinstance(other, Hashed) else ""
    first, second = hashed(type_, one, salt), hashed(type_, other, salt)
    if not (isinstance(first, Hashed) and isinstance(second, Hashed)) or first.salt != second.salt:
        return False
    if not first.digests or not second.digests:
        return False  # history, of which nothing can be recognized
    if type_ is FieldType.PHONE:
        return first.digests[0] in second.digests or second.digests[0] in first.digests
    return sorted(first.digests) == sorted(second.digests)


def members_of(value: Value, among: frozenset[str]) -> frozenset[str]:
    """The members of a set; of an erased one those that are found among these."""
    if isinstance(value, Hashed):
        return frozenset(each for each in among if digest(value.salt, each) in value.digests)
    return value if isinstance(value, frozenset) else frozenset()


def is_erased(values: Values) -> bool:
    """Whether any of these values can no more be read."""
    return any(isinstance(value, Hashed) for value in values.values())


# --- JSON for the store -------------------------------------------------------------------


def freeze(values: Values) -> dict[str, Json]:
    """Canonical values as plain JSON, tagged so that ``thaw`` gives back the same types."""
    return {name: _freeze(value) for name, value in sorted(values.items())}


def _freeze(value: Value) -> Json:
    match value:
        case None | bool() | str():
            return value
        case Money():
            return {"$": "money", "amount": f"{value.amount:f}", "currency": value.currency}
        case Decimal():
            return {"$": "number", "is": f"{value:f}"}
        case datetime():
            return {"$": "instant", "is": value.isoformat()}
        case date():
            return {"$": "date", "is": value.isoformat()}
        case frozenset():
            return {"$": "set", "is": sorted(value)}
        case Hashed():
            return {"$": "hash", "salt": value.salt, "is": list(value.digests)}


def thaw(stored: Mapping[str, Json]) -> dict[str, Value]:
    """The canonical values that ``freeze`` was given. Raises UnfitValueError for anything else."""
    return {name: _thaw(value, name) for name, value in stored.items()}


def _thaw(stored: Json, field: str) -> Value:
    if stored is None or isinstance(stored, (bool, str)):
        return stored
    if isinstance(stored, dict):
        match stored.get("$"):
            case "money":
                return Money(Decimal(str(stored["amount"])), str(stored["currency"]))
            case "number":
                return Decimal(str(stored["is"]))
            case "instant":
                return datetime.fromisoformat(str(stored["is"]))
            case "date":
                return date.fromisoformat(str(stored["is"]))
            case "set" if isinstance(stored["is"], list):
                return frozenset(str(each) for each in stored["is"])
            case "hash" if isinstance(stored["is"], list):
                return Hashed(str(stored["salt"]), tuple(str(each) for each in stored["is"]))
    raise UnfitValueError(f"{field}: not a stored value")


def show(value: Value) -> Json:
    """A value as a person reads it in a report or in ``--json``: plain scalars and lists."""
    match value:
        case None | bool() | str():
            return value
        case Money():
            return f"{value.amount:f} {value.currency}"
        case Decimal():
            return f"{value:f}"
        case datetime() | date():
            return value.isoformat()
        case frozenset():
            return sorted(value)
        case Hashed():
            return ERASED_VALUE


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that could not be read as one: which, and the field that made it so."""

    kind: str
    id: str
    reason: str
