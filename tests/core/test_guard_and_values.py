"""The brakes, the watermark, and what values mean."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core import mapping
from syncd.core.guard import Census, Limit, Limits, brakes, emptied, shrunken
from syncd.core.mapping import UnfitValueError
from syncd.core.merge import Step
from syncd.core.model import Address, FieldType, Money, Side, Value, Verb, is_safe_id
from syncd.core.plan import Operation, is_ripe
from syncd.core.watermark import advance, less, within


def census(verb: Verb, count: int, *, value: Value = None, before: Value = "x") -> Census:
    found = Census()
    operation = Operation("deal", verb, Side.RIGHT, "1", Address("2"), {"name": Step(value, "")})
    for _ in range(count):
        found.count(operation, {"name": before})
    return found


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (census("delete", 6), "would delete 6 deal of 40 linked (crm)"),
        (census("create", 201), "would create 201 deal beside 40 linked (crm)"),
        (census("update", 11), "would empty fields of 11 deal of 40 linked (crm)"),
        (census("update", 26, value="new"), "would change name on 26 deal of 40 linked (crm)"),
    ],
)
def test_a_plan_past_a_limit_waits_with_its_reason(found: Census, reason: str) -> None:
    """Mass deletion, creation, blanking, one field on most records: each names count, kind and side."""
    assert brakes(found, {"deal": 40}, Limits(), is_approved=True) == (reason,)


@pytest.mark.parametrize("found", [census("delete", 5), census("create", 200), census("update", 10)])
def test_a_plan_within_the_limits_runs(found: Census) -> None:
    """A handful is always allowed."""
    assert brakes(found, {"deal": 40}, Limits(), is_approved=True) == ()


@pytest.mark.parametrize(
    ("found", "linked", "waits"),
    [
        (census("delete", 1), 1, False),
        (census("delete", 2), 2, False),
        (census("delete", 3), 3, True),
        (census("delete", 2), 3, False),
        (census("update", 3), 3, True),
        (census("update", 2), 3, False),
        (census("update", 3, value="new"), 3, False),
        (census("create", 3), 0, False),
        (census("delete", 500), 10_000, False),
        (census("delete", 501), 10_000, True),
        (census("update", 5_001, value="new"), 10_000, True),
        (census("update", 5_000, value="new"), 10_000, False),
        (census("create", 2_501), 10_000, True),
    ],
)
def test_the_brakes_fit_a_tenant_of_three_records_and_one_of_ten_thousand(
    found: Census, linked: int, waits: bool
) -> None:
    """All that there is of a kind is no handful, however small it is; a large tenant has its share."""
    assert bool(brakes(found, {"deal": linked}, Limits(), is_approved=True)) is waits


@pytest.mark.parametrize(("before", "waits"), [(0, False), (15, False), (16, True)])
def test_small_deletions_add_up_over_a_day(before: int, waits: bool) -> None:
    """What one run may not do at once, many runs may not do one by one; the reason tells both counts."""
    deleted = {("deal", Side.RIGHT): before, ("deal", Side.LEFT): 900, ("contact", Side.RIGHT): 900}
    found = brakes(census("delete", 5), {"deal": 40}, Limits(), is_approved=True, deleted=deleted)
    told = f"would delete 5 deal of 40 linked (crm), {before + 5} within a day"
    assert found == ((told,) if waits else ())


@pytest.mark.parametrize(
    ("lost", "several", "is_believed"),
    [
        ([], 50, True),
        ([1, 1, 2, 2, 1, 2], 50, True),
        ([9], 50, True),
        ([10], 50, False),
        ([3, 3], 2, True),
        ([3, 3, 3], 3, False),
        ([3, 3, 3], 50, True),
        ([3] * 10, 50, True),
        ([3] * 11, 50, False),
    ],
)
def test_parents_that_lose_all_children_at_once_are_not_believed(
    lost: list[int], several: int, is_believed: bool
) -> None:
    """One that loses a crowd, or many that lose several each. Losing an only child is everyday."""
    assert (emptied("deal_contact", Side.LEFT, lost, several, Limits()) is None) is is_believed


NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("clock", "told"),
    [
        ("2026-11-20T11:59:59.1234567Z", "2026-11-20T11:59:59.1234567Z"),
        ("2026-11-20T12:00:59Z", "2026-11-20T12:00:59Z"),
        ("2026-11-20T12:01:01Z", "2026-11-20T12:00:00.000Z"),
        ("2026-11-23T12:00:00Z", "2026-11-20T12:00:00.000Z"),
    ],
)
def test_a_clock_from_the_future_moves_a_watermark_no_further_than_now(clock: str, told: str) -> None:
    """A watermark never goes back, so one from a wrong clock would hide every edit until its time has come."""
    assert within([clock], NOON) == [told]


@pytest.mark.parametrize(
    ("modified", "since", "is_quiet"),
    [
        (-29, -29, False),
        (-30, -30, True),
        (-5, -299, False),
        (-5, -300, True),
        (None, -29, False),
        (None, -30, True),
        (86_400, -29, False),
        (86_400, -30, True),
        (-5, 86_400, True),
    ],
)
def test_a_change_travels_once_it_is_quiet_or_has_waited_ten_times_as_long(
    modified: int | None, since: int, is_quiet: bool
) -> None:
    """Each edit starts the delay anew, but not for ever; a clock that is wrong holds nothing up for days."""
    at = None if modified is None else NOON + timedelta(seconds=modified)
    assert is_ripe(at, NOON + timedelta(seconds=since), NOON, 30) is is_quiet
    assert is_ripe(at, NOON, NOON, 0)


def test_a_first_run_waits_and_an_empty_plan_never_does() -> None:
    """Approval is asked for only when there is something to approve."""
    assert brakes(census("update", 1), {}, Limits(), is_approved=False) == (
        "the first run of this pair waits for approval",
    )
    assert brakes(Census(), {}, Limits(), is_approved=False) == ()


@pytest.mark.parametrize(
    ("vanished", "known", "is_believed"), [(0, 0, True), (1, 1, True), (3, 3, False), (3, 20, True), (30, 100, False)]
)
def test_a_listing_that_lost_too_much_is_not_believed(vanished: int, known: int, is_believed: bool) -> None:
    """An emptied or shrunken listing halts."""
    assert (shrunken("deal", Side.LEFT, vanished, known, Limits()) is None) == is_believed


def test_a_share_lets_large_tenants_work() -> None:
    """A limit is the larger of its floor and its share of what is linked."""
    assert Limit(5, 0.1).allows(100, 1000)
    assert not Limit(5, 0.1).allows(101, 1000)


@given(
    st.lists(st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00.1234567Z", "2026-01-02T00:00:00.1234568Z"]))
)
def test_a_watermark_is_the_latest_of_what_was_seen_and_never_goes_back(clocks: list[str]) -> None:
    """Digits finer than ours count; the string stays as the remote gave it."""
    start = "2026-01-02T00:00:00.1234567Z"
    assert advance(start, clocks) == max([start, *clocks])


def test_what_is_no_time_never_becomes_a_watermark() -> None:
    """Not even the first one, which there is nothing to hold against."""
    for current in (None, "2026-01-02T00:00:00Z"):
        with pytest.raises(UnfitValueError):
            advance(current, ["soon"])
    assert advance(None, ["", "2026-01-02T00:00:00Z"]) == "2026-01-02T00:00:00Z"


def test_an_overlap_is_cut_and_never_rounded_up() -> None:
    """Seven digits become six, downwards."""
    assert less("2026-01-02T00:00:00.1234569Z", 60) == "2026-01-01T23:59:00.123456Z"


@pytest.mark.parametrize(
    ("type_", "one", "other", "are_same"),
    [
        (FieldType.PHONE, "+46701234567", "070-123 45 67", True),
        (FieldType.PHONE, "+46701234567", "070-123 45 68", False),
        (FieldType.PHONE, "1234", "4", False),
        (FieldType.TEXT, "Kv.  Svalan", "Kv. Svalan", True),
        (FieldType.TEXT, "a", None, False),
        (FieldType.INSTANT, datetime(2026, 1, 1, 1, 1, 1, 5, UTC), datetime(2026, 1, 1, 1, 1, 1, tzinfo=UTC), True),
        (FieldType.MONEY, Money(Decimal("1.50"), "SEK"), Money(Decimal("1.5"), "SEK"), True),
        (FieldType.MONEY, Money(Decimal(1), "SEK"), Money(Decimal(1), "EUR"), False),
        (FieldType.NUMBER, Decimal("5"), Decimal("5.0"), True),
    ],
)
def test_each_type_has_its_own_notion_of_equal(type_: FieldType, one: Value, other: Value, are_same: bool) -> None:
    """Lenient exactly where systems rewrite what they are given, and symmetric."""
    assert mapping.same(type_, one, other) is are_same
    assert mapping.same(type_, other, one) is are_same


values = st.one_of(
    st.none(), st.booleans(), st.text(max_size=20),
    st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12),
    st.builds(Money, st.decimals(allow_nan=False, allow_infinity=False, places=2, max_value=10**15), st.just("SEK")),
    st.datetimes(timezones=st.just(UTC)), st.dates(), st.frozensets(st.text(max_size=5)),
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=5), values))
def test_what_is_kept_comes_back_the_same(stored: dict[str, Value]) -> None:
    """A base survives the database in type and value."""
    assert mapping.thaw(mapping.freeze(stored)) == stored


@pytest.mark.parametrize("id_", ["", "../x", "a/b", "a b", "a'b", "http://x", "x" * 300, "a\n", "?q", "-a", None, 7])
def test_a_hostile_id_is_not_safe(id_: object) -> None:
    """Ids go into URLs, queries and logs."""
    assert not is_safe_id(id_)


@pytest.mark.parametrize(
    ("read", "raw"),
    [
        (mapping.number, "NaN"),
        (mapping.number, "1e999"),
        (mapping.number, True),
        (mapping.instant, "soon"),
        (mapping.boolean, "maybe"),
        (mapping.day, "2026-13-01"),
        (mapping.text, {"a": 1}),
        (mapping.text, "x" * 70_000),
        (mapping.text, "half a \ud83d character"),
        (mapping.identifier, "../../etc"),
    ],
)
def test_a_scalar_that_cannot_be_what_its_field_holds_is_refused_without_its_value(read: object, raw: object) -> None:
    """The message names the field, never the value."""
    assert callable(read)
    with pytest.raises(UnfitValueError, match=r"^thing: ") as refused:
        read(raw, "thing")
    assert str(raw) not in str(refused.value)


def test_scalars_in_all_documented_spellings_mean_the_same() -> None:
    """Numbers as text, offsets, epoch milliseconds, seven digits, URLs as domains."""
    moment = datetime(2026, 11, 20, 10, 0, 0, 123000, UTC)
    assert mapping.instant("2026-11-20T11:00:00.1230000+01:00", "x") == moment
    assert mapping.instant("2026-11-20T10:00:00.123+0000", "x") == moment
    assert mapping.instant("1795168800123", "x") == mapping.instant(1795168800123, "x") == moment
    assert mapping.number("1500.50", "x") == mapping.number(1500.5, "x") == Decimal("1500.5")
    assert mapping.domain("https://www.Nordhaus.se/om-oss") == "nordhaus.se"
    assert mapping.members("a;;b; a", "x") == frozenset({"a", "b"})
    assert mapping.day("2026-11-20T00:00:00Z", "x") == date(2026, 11, 20)
    assert mapping.text("  ", "x") is None
