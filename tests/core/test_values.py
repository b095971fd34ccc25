"""What values mean: read from vendors' scalars, compared, kept, shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core import mapping
from syncd.core.mapping import UnfitValueError, digest, freeze, hashed, same, show, thaw
from syncd.core.model import MAX_TEXT, ExternalRef, FieldType, Hashed, Json, Money, Value, elements, is_safe_id
from tests.core.cases import EARLY, cases, types, value_of

numbers = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20)
seconds = st.integers(0, 4 * 10**15).map(lambda each: timedelta(microseconds=each))
moments = seconds.map(lambda each: datetime(1970, 1, 1, tzinfo=UTC) + each)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values: st.SearchStrategy[Value] = st.one_of(
    st.none(), st.booleans(), texts, numbers, st.builds(Money, numbers, st.sampled_from(["SEK", "EUR", ""])), moments,
    st.dates(), st.frozensets(texts, min_size=1, max_size=3),
)  # fmt: skip


@cases(500)
@given(st.dictionaries(texts, values, max_size=3))
def test_what_is_kept_comes_back_in_value_and_type(stored: dict[str, Value]) -> None:
    """A base survives the database; keys are in one order, so that equal bases print alike."""
    frozen = freeze(stored)
    back = thaw(frozen)
    assert back == stored
    assert {name: type(value) for name, value in back.items()} == {name: type(value) for name, value in stored.items()}
    assert list(frozen) == sorted(stored)


@pytest.mark.parametrize(
    ("value", "kept", "shown"),
    [
        (None, None, None),
        (True, True, True),
        ("x", "x", "x"),
        (Decimal("1E+3"), {"$": "number", "is": "1000"}, "1000"),
        (Money(Decimal("1E+3"), "SEK"), {"$": "money", "amount": "1000", "currency": "SEK"}, "1000 SEK"),
        (datetime(2026, 1, 2, tzinfo=UTC), {"$": "instant", "is": "2026-01-02T00:00:00+00:00"},
         "2026-01-02T00:00:00+00:00"),
        (date(2026, 1, 2), {"$": "date", "is": "2026-01-02"}, "2026-01-02"),
        (frozenset({"b", "a"}), {"$": "set", "is": ["a", "b"]}, ["a", "b"]),
    ],
)  # fmt: skip
def test_the_form_in_which_values_are_kept_and_shown_stays(value: Value, kept: Json, shown: Json) -> None:
    """What an earlier release wrote into the database must be readable by this one."""
    assert freeze({"f": value}) == {"f": kept}
    assert thaw({"f": kept}) == {"f": value}
    assert show(value) == shown


@pytest.mark.parametrize(
    "stored", [7, 1.5, ["a"], {}, {"$": "other", "is": "x"}, {"$": "set", "is": "ab"}, {"is": "x"}]
)
def test_what_was_not_kept_by_us_is_refused(stored: Json) -> None:
    """Nothing is guessed; the field is named."""
    with pytest.raises(UnfitValueError, match=r"^f: not a stored value$"):
        thaw({"f": stored})


@cases(600)
@given(st.data(), types)
def test_being_the_same_has_no_order(data: st.DataObject, type_: FieldType) -> None:
    """Reflexive and symmetric for each type, and a value is never the same as nothing."""
    one, other = data.draw(value_of(type_)), data.draw(value_of(type_))
    assert same(type_, one, one)
    assert same(type_, one, other) is same(type_, other, one)
    assert same(type_, one, None) is (one is None)


@pytest.mark.parametrize(
    ("type_", "one", "other", "are_same"),
    [
        (FieldType.TEXT, " Kv.\tSvalan\n", "Kv. Svalan", True),
        (FieldType.TEXT, "Kv.Svalan", "Kv. Svalan", False),
        (FieldType.TEXT, "svalan", "Svalan", False),
        (FieldType.ENUMERATION, "a  b", "a b", False),
        (FieldType.PHONE, "+46 (0)70-123 45 67", "0046701234567", False),
        (FieldType.PHONE, "0046701234567", "070 123 45 67", True),
        (FieldType.PHONE, "+358 50 123 4567", "050-1234567", True),
        (FieldType.PHONE, "+3585501234567", "50 123 4567", False),
        (FieldType.PHONE, "1234567", "+46 1234567", True),
        (FieldType.PHONE, "123456", "+46 123456", False),
        (FieldType.PHONE, "7012345678", "8012345678", False),
        (FieldType.PHONE, "4670123456", "7012345", False),
        (FieldType.INSTANT, EARLY.replace(microsecond=999999), EARLY, True),
        (FieldType.INSTANT, EARLY, EARLY.replace(second=1), False),
        (FieldType.INSTANT, datetime(2026, 1, 1, 1, tzinfo=UTC),
         datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=1))), True),
        (FieldType.INSTANT, datetime(2026, 1, 1, 1, tzinfo=UTC), "2026-01-01", False),
        (FieldType.INSTANT, "2026-01-01", datetime(2026, 1, 1, 1, tzinfo=UTC), False),
        (FieldType.DATE, date(2026, 1, 1), date(2026, 1, 2), False),
        (FieldType.SET, frozenset("ab"), frozenset("ba"), True),
        (FieldType.SET, frozenset("ab"), frozenset("a"), False),
        (FieldType.MONEY, Money(Decimal(1), ""), Money(Decimal(1), "SEK"), False),
        (FieldType.TEXT, None, "None", False),
    ],
)  # fmt: skip
def test_each_type_is_lenient_only_where_systems_rewrite(
    type_: FieldType, one: Value, other: Value, are_same: bool
) -> None:
    """Blanks in text, prefixes and punctuation of phones, fractions of seconds; nothing else."""
    assert same(type_, one, other) is are_same
    assert same(type_, other, one) is are_same


@pytest.mark.parametrize(
    ("type_", "sent", "kept", "wanted"),
    [
        (FieldType.TEXT, "Kv. Svalan 4", "Kv. Svalan", True),
        (FieldType.TEXT, "Kv. Svalan 4", "Kv. Svalan ", True),
        (FieldType.TEXT, "Kv. Svalan", "K", True),
        (FieldType.TEXT, "Kv. Svalan", "Kv. Svalan", False),
        (FieldType.TEXT, "Kv. Svalan", "Kv. Svalan 4", False),
        (FieldType.TEXT, "Kv. Svalan", "Svalan", False),
        (FieldType.TEXT, "Kv. Svalan", " Kv.", False),
        (FieldType.TEXT, "Kv. Svalan", "", False),
        (FieldType.TEXT, " Kv. Svalan", " ", False),
        (FieldType.TEXT, "Kv. Svalan", None, False),
        (FieldType.TEXT, None, "Kv.", False),
        (FieldType.ENUMERATION, "open house", "open", False),
        (FieldType.PHONE, "+46701234567", "+4670", False),
    ],
)
def test_a_text_is_cut_where_a_system_with_less_room_kept_its_beginning(
    type_: FieldType, sent: Value, kept: Value, wanted: bool
) -> None:
    """Its beginning and not all of it; nothing kept is no beginning, and only texts are cut."""
    assert mapping.is_cut(type_, sent, kept) is wanted


def test_only_sets_have_elements() -> None:
    """Anything else, and nothing, has none."""
    assert elements(frozenset("ab")) == {"a", "b"}
    assert elements(None) == elements("ab") == frozenset()


# --- reading ------------------------------------------------------------------------------

READERS: dict[str, tuple[Callable[[object, str], object], str]] = {
    "text": (mapping.text, "expected text"),
    "identifier": (mapping.identifier, "expected text"),
    "number": (mapping.number, "expected a number"),
    "boolean": (mapping.boolean, "expected true or false"),
    "instant": (mapping.instant, "expected an instant"),
    "day": (mapping.day, "expected a date"),
    "members": (mapping.members, "expected a list"),
    "email": (mapping.email, "expected text"),
    "domain": (mapping.domain, "expected text"),
}
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, moments.map(datetime.isoformat), st.just({}),
    st.decimals(), st.lists(texts, max_size=3), st.sampled_from(["", " ", "true", "False", "a;b", "https://www.a.se:80/"]),
)  # fmt: skip


@cases(1000)
@given(st.sampled_from(sorted(READERS)), scalars)
def test_a_reader_refuses_or_gives_a_value_that_it_reads_as_itself(name: str, raw: object) -> None:
    """Canonical at once: reading again changes nothing; what cannot be read names the field and nothing else."""
    read, _ = READERS[name]
    try:
        found = read(raw, "thing")
    except UnfitValueError as refused:
        assert str(refused) in {f"thing: {what}" for what in _WORDS}
        return
    assert found is None or not isinstance(found, str) or found == found.strip() != ""
    again = found.isoformat() if isinstance(found, date) else found
    assert read(again, "thing") == found


_WORDS = {what for _, what in READERS.values()} | {
    "expected a domain", "not a usable number", "not a safe id", "not valid Unicode", "longer than 255 characters",
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_nothing_is_read_as_nothing_and_a_structure_is_refused_by_the_fields_name(name: str) -> None:
    """Empty is None, in whatever spelling."""
    read, what = READERS[name]
    assert read(None, "thing") is None
    assert read("", "thing") is None
    with pytest.raises(UnfitValueError, match=rf"^thing: {what}$"):
        read({"a": 1}, "thing")
    if name not in ("boolean", "day"):
        with pytest.raises(UnfitValueError, match=rf"^thing: {what}$"):
            read(True, "thing")


@pytest.mark.parametrize(
    ("read", "raw", "found"),
    [
        (mapping.text, "\x00 a\x00b ", "ab"),
        (mapping.text, 7, "7"),
        (mapping.text, 1.5, "1.5"),
        (mapping.text, Decimal("1.50"), "1.50"),
        (mapping.text, "x" * MAX_TEXT, "x" * MAX_TEXT),
        (mapping.identifier, 4711, "4711"),
        (mapping.identifier, "a" * 255, "a" * 255),
        (mapping.number, " 1e3 ", Decimal(1000)),
        (mapping.number, "0.10", Decimal("0.1")),
        (mapping.number, "123456789012345678901234567890.5", Decimal("123456789012345678901234567890.5")),
        (mapping.number, "1e-30", Decimal("1e-30")),
        (mapping.number, "9e30", Decimal("9e30")),
        (mapping.boolean, True, True),
        (mapping.boolean, "true", True),
        (mapping.boolean, "True", True),
        (mapping.boolean, False, False),
        (mapping.boolean, "false", False),
        (mapping.boolean, "False", False),
        (mapping.instant, 1500, datetime(1970, 1, 1, 0, 0, 1, 500000, UTC)),
        (mapping.instant, "1500", datetime(1970, 1, 1, 0, 0, 1, 500000, UTC)),
        (mapping.instant, "2026-01-01T10:00:00", datetime(2026, 1, 1, 10, tzinfo=UTC)),
        (mapping.instant, " 2026-01-01T10:00:00.1234569+02:00 ", datetime(2026, 1, 1, 8, 0, 0, 123456, UTC)),
        (mapping.day, "2026-01-02T23:59:59Z", date(2026, 1, 2)),
        (mapping.day, date(2026, 1, 2), date(2026, 1, 2)),
        (mapping.members, ["a", None, " b ", ""], frozenset("ab")),
        (mapping.members, ("a",), frozenset("a")),
        (mapping.members, {"a"}, frozenset("a")),
        (mapping.members, "a; b;;", frozenset("ab")),
        (mapping.members, ";", None),
        (mapping.members, [], None),
        (mapping.email, " Anna@X.se ", "anna@x.se"),
        (mapping.domain, "HTTPS://www.Nordhaus.se:8080/om?x#y", "nordhaus.se"),
        (mapping.domain, "nordhaus.se.", "nordhaus.se"),
        (mapping.instant, -1, datetime(1969, 12, 31, 23, 59, 59, 999000, UTC)),
        (mapping.domain, "//nordhaus.se/x", "nordhaus.se"),
        (mapping.domain, "www.www.se", "www.se"),
        (mapping.domain, "://", None),
    ],
)  # fmt: skip
def test_scalars_are_read_as_what_they_mean(read: Callable[[object, str], object], raw: object, found: object) -> None:
    """Vendors spell the same thing in many ways."""
    assert read(raw, "thing") == found
    assert type(read(raw, "thing")) is type(found)


@pytest.mark.parametrize(
    ("read", "raw", "reason"),
    [
        (mapping.text, "x" * (MAX_TEXT + 1), f"longer than {MAX_TEXT} characters"),
        (mapping.text, "half a \ud83d character", "not valid Unicode"),
        (mapping.text, "\udfff", "not valid Unicode"),
        (mapping.identifier, "a" * 256, "longer than 255 characters"),
        (mapping.identifier, "../etc", "not a safe id"),
        (mapping.number, "ten", "expected a number"),
        (mapping.number, "Infinity", "not a usable number"),
        (mapping.number, float("nan"), "not a usable number"),
        (mapping.number, "1e31", "not a usable number"),
        (mapping.number, "1e-999999999", "not a usable number"),
        (mapping.boolean, "yes", "expected true or false"),
        (mapping.boolean, 1, "expected true or false"),
        (mapping.instant, "soon", "expected an instant"),
        (mapping.instant, 10**20, "expected an instant"),
        (mapping.instant, 1.5, "expected an instant"),
        (mapping.day, "tomorrow", "expected a date"),
        (mapping.members, 7, "expected a list"),
        (mapping.members, [True], "expected text"),
        (mapping.domain, "http://[x", "expected a domain"),
    ],
)
def test_what_cannot_be_read_says_which_field_and_why(
    read: Callable[[object, str], object], raw: object, reason: str
) -> None:
    """The value is nobody's business but the record's."""
    with pytest.raises(UnfitValueError) as refused:
        read(raw, "thing")
    assert str(refused.value) == f"thing: {reason}"


def test_a_domain_that_is_none_is_told_by_its_own_name_and_lists_may_be_separated_otherwise() -> None:
    """The defaults of two readers."""
    with pytest.raises(UnfitValueError, match=r"^domain: "):
        mapping.domain({})
    assert mapping.members("a,b;c", "x", separator=",") == frozenset({"a", "b;c"})
    assert mapping.text("abc", "x", limit=3) == "abc"


@cases(300)
@given(numbers)
def test_equal_numbers_print_alike(found: Decimal) -> None:
    """No exponent, no trailing zero, whatever it was made of."""
    canonical = mapping.canonical_decimal(found)
    assert canonical == found
    printed = format(canonical, "f")
    assert printed == printed.rstrip("0").rstrip(".") if "." in printed else printed != "-0"
    for spelling in (canonical, found.scaleb(3).scaleb(-3), found + Decimal("0.000")):
        assert str(mapping.canonical_decimal(spelling)) == str(canonical) or spelling != found


@cases(300)
@given(moments, st.integers(-12, 12))
def test_an_instant_is_told_to_vendors_in_utc_with_milliseconds(moment: datetime, hours: int) -> None:
    """Cut, whatever the zone that it came in."""
    told = mapping.iso_z(moment.astimezone(timezone(timedelta(hours=hours))))
    assert told == f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


@pytest.mark.parametrize("id_", ["a", "0", "A.b_c:d|e~f-g", "a" * 255])
def test_an_id_of_plain_letters_is_safe(id_: str) -> None:
    """The alphabets of all three vendors."""
    assert is_safe_id(id_)
    assert str(ExternalRef("hubspot", id_)) == f"hubspot:{id_}"


@pytest.mark.parametrize("id_", ["a..b", "..", "a" * 256, ".a", "å", "a\u2028", 7, None])
def test_an_id_that_could_escape_is_not_safe(id_: object) -> None:
    """Not from a path, a query or a line of a log."""
    assert not is_safe_id(id_)


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock is set to Tokyo's time."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_away")
@pytest.mark.parametrize(
    "raw", ["2026-01-01T10:00:00", "2026-01-01T10:00:00Z", "2026-01-01T12:00:00+02:00", 1767261600000]
)
def test_where_the_machine_stands_changes_no_instant(raw: object) -> None:
    """What is read is UTC and told as UTC; what names no zone is meant so."""
    found = mapping.instant(raw, "x")
    assert found is not None
    assert (found.tzinfo, found.isoformat()) == (UTC, "2026-01-01T10:00:00+00:00")
    assert mapping.iso_z(found.astimezone(timezone(timedelta(hours=9)))) == "2026-01-01T10:00:00.000Z"


def test_numbers_that_are_nothing_print_alike() -> None:
    """Zero has no sign and no digits."""
    assert {str(mapping.number(raw, "x")) for raw in ("0", "-0", "0.00", "-0e5", 0, -0.0)} == {"0"}


@pytest.mark.usefixtures("far_away")
@pytest.mark.parametrize(
    ("type_", "value", "forms"),
    [
        (FieldType.TEXT, " Anna\tBerg ", ["Anna Berg"]),
        (FieldType.ENUMERATION, "a  b", ["a  b"]),
        (FieldType.PHONE, "0046 70-12", ["0046 70-12"]),
        (FieldType.PHONE, "046-701 23 45", ["467012345", "67012345", "7012345"]),
        (FieldType.PHONE, "+46 70 123 45 67", ["46701234567", "6701234567", "701234567", "01234567"]),
        (FieldType.NUMBER, Decimal("1E+2"), ["100"]),
        (FieldType.NUMBER, Decimal("1E-7"), ["0.0000001"]),
        (FieldType.MONEY, Money(Decimal("1E-7"), "SEK"), ["0.0000001 SEK"]),
        (FieldType.MONEY, Money(Decimal("1.50"), ""), ["1.5 "]),
        (FieldType.INSTANT, EARLY.replace(microsecond=7), ["2026-01-01T00:00:00+00:00"]),
        (FieldType.INSTANT, EARLY.astimezone(timezone(timedelta(hours=2))), ["2026-01-01T00:00:00+00:00"]),
        (FieldType.DATE, date(2026, 1, 2), ["2026-01-02"]),
        (FieldType.SET, frozenset({"b", "a"}), ["a", "b"]),
    ],
)
def test_the_form_in_which_values_are_erased_stays(type_: FieldType, value: Value, forms: list[str]) -> None:
    """What an earlier release erased, on a machine in any zone, must be recognized by this one."""
    assert hashed(type_, value, "s") == Hashed("s", tuple(digest("s", form) for form in forms))


def test_the_digest_of_a_text_stays() -> None:
    """Half of a SHA-256 over the salt, a line's end and the text."""
    assert digest("s", "Anna") == "00071f337400e5c70771f5dd7fba8233"
