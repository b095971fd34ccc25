"""What an erased value still does: it is recognized, it is never read, and it is never written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core.mapping import ERASED_VALUE, freeze, hashed, same, show, thaw
from syncd.core.merge import ERASED, Flow, Half, Merged, OnConflict, Policy, merge
from syncd.core.model import FieldType, Hashed, LinkState, Money, Record, Side, Value, Verb
from syncd.core.plan import Fields, KindRules, OnDelete, Sighted, decide, welcome
from syncd.core.undo import Standing, Written, folded, undo
from tests.core.cases import cases

TYPES = {"text": FieldType.TEXT, "set": FieldType.SET, "phone": FieldType.PHONE}
WRITABLE = frozenset(TYPES)
NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)

_texts = st.sampled_from(["Anna Berg", "Anna  Berg", " Anna\tBerg", "anna berg", "Anna", "ÅÄÖ", "a\nb", "a b"])
_phones = st.sampled_from(
    ["+46701234567", "0701234567", "701234567", "46 70-123 45 67", "+1 701234567", "1234567", "234567", "12-34567",
     "0046701234567", "9946701234567", "112", "1-12", "ext"]
)  # fmt: skip
_sets = st.sets(st.sampled_from("xyz"), min_size=1).map(frozenset)
_instants = st.builds(lambda s: NOON + timedelta(milliseconds=s), st.sampled_from([0, 1, 999, 1000, 60_000]))
_numbers = st.sampled_from([Decimal("1"), Decimal("1.0"), Decimal("1.5"), Decimal("100"), Decimal("1E+2")])
_by_type: Mapping[FieldType, st.SearchStrategy[Value]] = {
    FieldType.TEXT: _texts,
    FieldType.PHONE: _phones,
    FieldType.ENUMERATION: st.sampled_from(["sv", "en", "SV"]),
    FieldType.SET: _sets,
    FieldType.NUMBER: _numbers,
    FieldType.MONEY: st.builds(Money, _numbers, st.sampled_from(["SEK", "EUR"])),
    FieldType.INSTANT: _instants,
    FieldType.DATE: st.sampled_from([date(2026, 1, 1), date(2026, 1, 2)]),
}
_typed = st.sampled_from(sorted(_by_type)).flatmap(
    lambda type_: st.tuples(st.just(type_), _by_type[type_], _by_type[type_])
)


@cases(600)
@given(_typed)
def test_an_erased_value_is_the_same_as_whatever_the_value_was_the_same_as(
    case: tuple[FieldType, Value, Value],
) -> None:
    """Every lenient equality holds on: white space, country prefixes, fractions of a second, trailing zeros."""
    type_, one, other = case
    expected = same(type_, one, other)
    assert same(type_, hashed(type_, one, "s"), other) is expected
    assert same(type_, other, hashed(type_, one, "s")) is expected
    assert same(type_, hashed(type_, one, "s"), hashed(type_, other, "s")) is expected


@cases(200)
@given(_typed)
def test_an_erased_value_cannot_be_read_and_is_kept_as_it_is(case: tuple[FieldType, Value, Value]) -> None:
    """Neither its text nor what is stored of it tells the value; storing it and reading it back changes nothing."""
    type_, value, _ = case
    erased = hashed(type_, value, "s")
    assert isinstance(erased, Hashed)
    assert show(erased) == ERASED_VALUE
    assert thaw(freeze({"it": erased})) == {"it": erased}
    assert hashed(type_, erased, "other") == erased


def test_nothing_and_a_bare_yes_are_left_and_other_salts_are_never_the_same() -> None:
    """There is nothing to hide in None; and a digest of one pair means nothing in another."""
    assert hashed(FieldType.TEXT, None, "s") is None
    assert hashed(FieldType.BOOLEAN, True, "s") is True
    assert not same(FieldType.TEXT, hashed(FieldType.TEXT, "a", "s"), hashed(FieldType.TEXT, "a", "t"))
    assert not same(FieldType.TEXT, hashed(FieldType.TEXT, "a", "s"), None)


@pytest.mark.parametrize(
    ("type_", "one", "other", "are_same"),
    [
        (FieldType.PHONE, "12345", "99345", False),
        (FieldType.PHONE, "12345678", "345678", False),
        (FieldType.PHONE, "12345678", "2345678", True),
        (FieldType.NUMBER, Decimal("1E+2"), Decimal("100.0"), True),
        (FieldType.MONEY, Money(Decimal("1E+2"), "SEK"), Money(Decimal("100.0"), "SEK"), True),
        (FieldType.MONEY, Money(Decimal(100), "SEK"), Money(Decimal(100), "EUR"), False),
        (FieldType.ENUMERATION, "sv", True, False),
    ],
)
def test_an_erased_value_is_compared_as_its_type_is(type_: FieldType, one: Value, other: Value, are_same: bool) -> None:
    """Short numbers as they are written, longer ones by at most a prefix, amounts by what they amount to."""
    for first, second in ((one, other), (other, one)):
        assert same(type_, hashed(type_, first, "s"), second) is are_same
        assert same(type_, second, hashed(type_, first, "s")) is are_same


def test_a_digest_means_nothing_beside_another_salt() -> None:
    """Not even if it is the same one."""
    assert same(FieldType.TEXT, Hashed("s", ("d",)), Hashed("s", ("d",)))
    assert not same(FieldType.TEXT, Hashed("s", ("d",)), Hashed("t", ("d",)))


# --- merging ------------------------------------------------------------------------------

_value = st.fixed_dictionaries(
    {"text": st.none() | _texts, "set": st.none() | _sets, "phone": st.none() | _phones},
)
_policies = st.builds(Policy, st.sampled_from(Flow), st.sampled_from(OnConflict))
_halves = st.builds(
    Half, _value, _value, st.sampled_from([None, NOON, NOON + timedelta(1)]), st.just({}), st.just(WRITABLE)
)


def _erased(values: Mapping[str, Value]) -> dict[str, Value]:
    return {name: hashed(TYPES[name], value, "s") for name, value in values.items()}


def _told(merged: Merged) -> object:
    conflicts = [(each.field, each.left, each.right, each.winner) for each in merged.conflicts]
    return merged.to_left, merged.to_right, conflicts, merged.blocked


@cases(600)
@given(_halves, _halves, _policies)
def test_an_erased_base_changes_no_decision(left: Half, right: Half, policy: Policy) -> None:
    """While both records can be read, a merge against erased halves asks for exactly what it would have asked for."""
    table = dict.fromkeys(TYPES, policy)
    plain = merge(TYPES, left, right, table)
    veiled = merge(
        TYPES, replace(left, base=_erased(left.base)), replace(right, base=_erased(right.base)), table
    )  # fmt: skip
    assert _told(veiled) == _told(plain)


@cases(600)
@given(_halves, _halves, _policies, st.booleans())
def test_an_erased_value_is_never_written(left: Half, right: Half, policy: Policy, is_both: bool) -> None:
    """What would have to be written and cannot be read is blocked, and says so; it is never sent as its digest."""
    table = dict.fromkeys(TYPES, policy)
    unseen = replace(right, values=_erased(right.values), base=_erased(right.base))
    seen = replace(left, base=_erased(left.base), values=_erased(left.values) if is_both else left.values)
    merged = merge(TYPES, seen, unseen, table)
    for side in Side:
        assert not [step for step in merged.to(side).values() if isinstance(step.value, Hashed)]
    assert set(merged.blocked.values()) <= {ERASED}


def test_a_member_that_was_taken_off_stays_off_though_the_base_was_erased() -> None:
    """A set is erased member by member, so that what one side removes is not taken for what the other one added."""
    base: dict[str, Value] = {"set": hashed(FieldType.SET, frozenset({"x", "y"}), "s")}
    left = Half({"set": frozenset({"x"})}, base, writable=WRITABLE)
    right = Half({"set": frozenset({"x", "y"})}, base, writable=WRITABLE)
    merged = merge({"set": FieldType.SET}, left, right, {})
    assert {name: step.value for name, step in merged.to_right.items()} == {"set": frozenset({"x"})}
    assert not merged.to_left


# --- planning -----------------------------------------------------------------------------

_CONTACT = Fields({"email": FieldType.TEXT}, *(frozenset({"email"}) for _ in range(4)))


def test_a_record_whose_values_were_erased_is_not_created_anywhere() -> None:
    """A person without a name and an address would be made; it waits until it was read again."""
    record = Record("contact", "1", {"email": hashed(FieldType.TEXT, "anna@x.se", "s")})
    answer = welcome(record, Side.RIGHT, _CONTACT, KindRules())
    assert (answer.operation, answer.reason, answer.is_waiting) == (None, ERASED, True)


def test_a_deletion_is_passed_on_though_the_values_were_erased_and_a_restore_waits_for_them() -> None:
    """Deleting needs no values; making a record anew does."""
    base: dict[str, Value] = {"email": hashed(FieldType.TEXT, "anna@x.se", "s")}
    gone = Sighted(Record("contact", "1", base, is_deleted=True), base)
    alive = Sighted(Record("contact", "2", base), base)
    rules = KindRules(deletes_to_right=OnDelete.ARCHIVE)
    (operation,) = decide("contact", gone, alive, _CONTACT, rules).operations
    assert (operation.verb, operation.side) == ("delete", Side.RIGHT)
    kept = decide("contact", gone, alive, _CONTACT, rules, settled={"": Side.RIGHT})
    assert (kept.operations, kept.state, kept.reason) == ((), LinkState.EXCLUDED, ERASED)


# --- undoing ------------------------------------------------------------------------------

_GONE = Hashed("", ())


def _written(verb: Verb) -> Written:
    return Written("contact", Side.RIGHT, verb, "1", "2", "email", _GONE, _GONE, _GONE)


def test_an_undo_leaves_what_was_erased_and_says_so() -> None:
    """Neither a field nor a whole record is put back as a digest; the rest of a run is undone as ever."""
    now: dict[str, Value] = {"email": "now@x.se"}
    standing = Standing(
        Sighted(Record("contact", "2", now), now), Sighted(Record("contact", "1", now), now), is_linked=True
    )
    changed, removed = folded([_written("update")]), folded([_written("delete")])
    assert changed is not None and removed is not None
    operation, left = undo(changed, standing, _CONTACT, "r1")
    assert (operation, [each.reason for each in left]) == (None, ["what stood there was erased"])
    erased: dict[str, Value] = {"email": hashed(FieldType.TEXT, "anna@x.se", "s")}
    source = Sighted(Record("contact", "1", erased), erased)
    relation = replace(removed, kind="deal_contact", refs={"deal": "3", "contact": "2"})
    for deed, at in ((removed, Standing(source=source)), (relation, Standing(is_source_taken=True))):
        operation, left = undo(deed, at, _CONTACT, "r1")
        assert (operation, [each.reason for each in left]) == (None, ["what stood there was erased"])


def test_of_history_nothing_can_be_recognized() -> None:
    """It keeps no digest: whoever guesses a value cannot have the guess confirmed."""
    for type_, value in ((FieldType.TEXT, "a"), (FieldType.PHONE, "0701234567"), (FieldType.SET, frozenset("x"))):
        assert not same(type_, _GONE, value)
        assert not same(type_, hashed(type_, value, ""), _GONE)
