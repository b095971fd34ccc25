"""A watermark goes to the latest instant seen, by the remote's own clock, and never back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core.mapping import UnfitValueError, instant
from syncd.core.watermark import advance, is_later, less, within
from tests.core.cases import cases

Clock = tuple[str, Fraction]


@st.composite
def clocks(draw: st.DrawFn) -> Clock:
    """A clock string in any spelling that vendors use, and the exact time that it tells, in seconds."""
    second = draw(st.integers(0, 2))
    digits = draw(st.sampled_from(["", "1", "12", "120", "1234567", "1234568", "12345670", "123456789", "1234569"]))
    offset = timedelta(hours=draw(st.sampled_from([0, 2, -5])))
    moment = (datetime(2026, 1, 1, 12, 0, second, tzinfo=UTC)).astimezone(timezone(offset))
    zone = draw(st.sampled_from(["Z", "+00:00"])) if not offset else f"{moment:%z}"[:3] + ":00"
    text = f"{moment:%Y-%m-%dT%H:%M:%S}" + (f".{digits}" if digits else "") + zone
    return text, second + Fraction(int(digits or 0), 10 ** len(digits))


@cases(500)
@given(st.one_of(st.none(), clocks()), st.lists(st.one_of(st.none(), clocks()), max_size=5), st.randoms())
def test_a_watermark_is_the_latest_clock_seen_in_whatever_order(
    start: Clock | None, seen: list[Clock | None], random: object
) -> None:
    """To the last digit; nothing seen moves nothing; of equal instants the current one stays."""
    told = [each for each in (start, *seen) if each is not None]
    strings = [each and each[0] for each in seen]
    found = advance(start and start[0], strings)
    if not told:
        assert found is None
        return
    latest = max(time for _, time in told)
    assert found in [text for text, time in told if time == latest]
    if start is not None and start[1] == latest:
        assert found == start[0]
    random.shuffle(strings)  # type: ignore[attr-defined]  # hypothesis' Random
    again = advance(start and start[0], strings)
    assert dict(told)[str(again)] == latest
    assert advance(found, strings) == found


@cases(500)
@given(clocks(), clocks())
def test_one_clock_is_later_exactly_if_its_time_is(one: Clock, other: Clock) -> None:
    """Offsets, missing fractions and digits finer than microseconds make no difference."""
    assert is_later(one[0], other[0]) == (one[1] > other[1])


@pytest.mark.parametrize(
    ("one", "other", "later"),
    [
        ("1234567", "12345670", False),
        ("12345670", "1234567", False),
        ("12345607", "1234561", False),
        ("1234561", "12345607", True),
        ("1234560", "123456", False),
        ("12", "1200000001", False),
        ("1200000001", "12", True),
        ("123456", "1234559", True),
    ],
)
def test_digits_beyond_the_sixth_count_and_noughts_at_the_end_do_not(one: str, other: str, later: bool) -> None:
    """Two instants within one microsecond are still one before the other."""
    assert is_later(f"2026-01-01T00:00:00.{one}Z", f"2026-01-01T00:00:00.{other}Z") is later


def test_what_tells_no_time_is_never_the_later_one() -> None:
    """An empty clock is earlier than any and not later than itself."""
    assert is_later("2026-01-01T00:00:00Z", "")
    assert not is_later("", "2026-01-01T00:00:00Z")
    assert not is_later("", "")
    assert advance(None, ["", None]) is None


@pytest.mark.parametrize("clock", ["soon", "2026-13-01T00:00:00Z"])
def test_what_is_no_time_is_refused_as_a_clock(clock: str) -> None:
    """By the name that a person can look up, without what it said."""
    for current in (None, "2026-01-01T00:00:00Z"):
        with pytest.raises(UnfitValueError, match=r"^clock: expected an instant$"):
            advance(current, [clock])
    with pytest.raises(UnfitValueError, match=r"^clock: "):
        less(clock, 1)
    with pytest.raises(UnfitValueError, match=r"^clock: "):
        is_later("2026-01-01T00:00:00Z", clock)


@cases(300)
@given(clocks(), st.integers(0, 10**6))
def test_an_overlap_reaches_back_exactly_and_is_told_to_the_microsecond(clock: Clock, seconds: int) -> None:
    """Cut, never rounded up, so that nothing between is skipped."""
    found = less(clock[0], seconds)
    assert found.endswith("Z")
    assert len(found) == len("2026-01-01T00:00:00.000000Z")
    wanted, there = instant(clock[0], "x"), instant(found, "x")
    assert wanted is not None
    assert there == wanted - timedelta(seconds=seconds)


def test_an_empty_clock_has_nothing_before_it() -> None:
    """It stays what it is."""
    assert less("", 60) == ""


def test_a_clock_from_the_future_is_cut_to_ours_and_any_other_stays_as_it_was_told() -> None:
    """A minute is what clocks differ; what tells no time is left alone."""
    now = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
    kept = ["2026-01-01T12:01:00.1234560Z", "2026-01-01T11:00:00+02:00", ""]
    ahead = ["2026-01-01T12:01:00.123457Z", "2027-01-01T00:00:00Z"]
    assert within([*kept, *ahead, kept[1]], now) == [*kept, *["2026-01-01T12:00:00.123Z"] * 2, kept[1]]
    with pytest.raises(UnfitValueError, match=r"^clock: "):
        within(["soon"], now)
