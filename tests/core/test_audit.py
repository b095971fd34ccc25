"""Which difference is explained, and whose turn it is to be audited."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from syncd.core.audit import BEHIND, GONE, UNSEEN, Alone, Bond, Stood, Turn, due, judge, judge_alone
from syncd.core.match import ref_key
from syncd.core.model import FieldType, LinkState, Record, Side, Value
from syncd.core.plan import Fields, Sighted

FIELDS = Fields({"text": FieldType.TEXT}, *[frozenset({"text"})] * 4)
BOND = Bond("contact", LinkState.IN_STEP, "")
T1, T2 = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)

texts = st.sampled_from([None, "a", "b"])


def stood(now: Value, base: Value, *, version: str = "v1", at: datetime = T1, waits: Value | None = None) -> Stood:
    """One side: what it shows, what it held when in step, and the news of it that wait, if any."""
    known = Record("contact", "1", {"text": base if waits is None else waits}, version="v1", modified_at=T1)
    shown = Record("contact", "1", {"text": now}, version=version, modified_at=at)
    return Stood(shown, Sighted(known, {"text": base}), waits is not None)


def told(left: Stood, right: Stood, bond: Bond = BOND) -> list[tuple[str, Side | None, str, bool]]:
    return [(each.field, each.side, each.reason, each.is_explained) for each in judge(left, right, bond, FIELDS)]


@given(texts, texts)
def test_two_sides_that_say_the_same_are_identical_whatever_is_remembered(value: Value, base: Value) -> None:
    """What both hold needs no explanation."""
    assert told(stood(value, base), stood(value, base)) == []


@given(texts, texts, texts, texts)
def test_a_side_that_differs_from_its_half_with_its_version_unmoved_is_always_told(
    left: Value, right: Value, left_base: Value, right_base: Value
) -> None:
    """Nothing that was lost silently is explained away."""
    found = told(stood(left, left_base), stood(right, right_base))
    behind = {
        side for side, now, base in ((Side.LEFT, left, left_base), (Side.RIGHT, right, right_base)) if now != base
    }
    if left == right:
        assert found == []
    elif behind:
        assert {(side, reason, is_explained) for _, side, reason, is_explained in found} == {
            (side, BEHIND, False) for side in behind
        }
    else:
        assert found == [("text", None, "agreed to differ", True)]


def test_what_moved_by_its_own_version_or_waits_in_the_inbox_is_explained() -> None:
    """Each reason by its name; an older time is no newer version."""
    still = stood("a", "a")
    assert told(still, stood("b", "a", version="v2", at=T2)) == [("text", Side.RIGHT, "moved since the last run", True)]
    older = replace(
        stood("b", "a", version="v0", at=T1), known=Sighted(replace(still.known.record, modified_at=T2), {"text": "a"})
    )
    assert told(still, older) == [("text", Side.RIGHT, BEHIND, False)]
    waiting = stood("b", "a", waits="b")
    for bond, reason in (
        (BOND, "waits for the next run"),
        (replace(BOND, conflicts=frozenset({"text"})), "conflict"),
        (replace(BOND, state=LinkState.DEAD, reason="too long"), "dead letter: too long"),
        (replace(BOND, state=LinkState.EXCLUDED, reason="a formula"), "excluded: a formula"),
        (replace(BOND, hold="by a person"), "on hold: by a person"),
    ):
        assert told(still, waiting, bond) == [("text", Side.RIGHT, reason, True)]
    # The inbox holds other news than what stands there now.
    assert told(still, stood("b", "a", waits="c")) == [("text", Side.RIGHT, BEHIND, False)]


def test_an_excluded_link_does_not_hide_what_its_reason_does_not_tell() -> None:
    """A link that waits for one thing may have lost another."""
    bond = replace(BOND, state=LinkState.EXCLUDED, reason="outside the tenant's filter")
    assert told(stood("a", "a"), stood("b", "a"), bond) == [("text", Side.RIGHT, BEHIND, False)]


def test_a_write_that_the_engine_saw_ignored_is_unexplained_for_that_field_only() -> None:
    """Agreed to differ, but nobody agreed."""
    bond = replace(BOND, state=LinkState.EXCLUDED, reason="accepted but not stored: text")
    assert told(stood("a", "a"), stood("b", "b"), bond) == [("text", None, "accepted but not stored", False)]
    other = replace(bond, reason="accepted but not stored: title")
    assert told(stood("a", "a"), stood("b", "b"), other) == [("text", None, "agreed to differ", True)]


def test_a_field_that_shows_another_record_may_move_without_its_own() -> None:
    """What a system only derives leaves the version alone."""
    derived = replace(FIELDS, right_writable=frozenset())
    (found,) = judge(stood("a", "a"), stood("b", "a"), BOND, derived)
    assert (found.is_explained, found.side) == (True, Side.RIGHT)


def test_a_record_that_is_gone_is_explained_by_its_tombstone_alone() -> None:
    """A tombstone with a time, or news of it in the inbox; a relation leaves none anywhere."""
    still = stood("a", "a")
    gone = replace(still, now=None)
    buried = replace(still, now=Record("contact", "1", {}, is_deleted=True, modified_at=T2))
    known = replace(gone, known=Sighted(replace(still.known.record, is_deleted=True), {}), is_waiting=True)
    held = replace(BOND, state=LinkState.CONFLICT, conflicts=frozenset({""}))
    assert told(still, gone) == [("", Side.RIGHT, GONE, False)]
    assert told(still, buried) == [("", Side.RIGHT, "deleted since the last run", True)]
    assert told(still, known, held) == [("", Side.RIGHT, "a deletion waits for a person", True)]
    assert told(still, gone, replace(BOND, kind="employment")) == [("", Side.RIGHT, "gone since the last run", True)]


def test_a_relation_that_names_other_records_is_told() -> None:
    """References count as a field does."""
    refs = {"deal": "1", "contact": "2"}
    still = stood("a", "a")
    known = replace(still.known, base_refs=ref_key(refs))
    other = replace(still, known=known, now=replace(still.known.record, refs={"deal": "1", "contact": "3"}))
    bond = replace(BOND, kind="deal_contact")
    assert told(still, other, bond) == [("refs", Side.RIGHT, BEHIND, False)]


def test_a_record_without_a_link_is_explained_by_the_inbox_or_by_its_feed() -> None:
    """One that nobody knows, older than what its feed dealt with, was lost."""
    record = Record("contact", "1", {}, modified_at=T1)
    for alone, reason, is_explained in (
        (Alone("excluded", "no"), "excluded: no", True),
        (Alone("dead", "no"), "dead letter: no", True),
        (Alone("review"), "in review", True),
        (Alone("new"), "waits for the next run", True),
        (Alone(hold="me"), "on hold: me", True),
        (Alone(), "new since the last run", True),
        (Alone(dealt_until=T1 - timedelta(days=1)), "new since the last run", True),
        (Alone(dealt_until=T2), UNSEEN, False),
    ):
        found = judge_alone(record, Side.RIGHT, alone)
        assert found is not None
        assert (found.left_id, found.right_id, found.reason, found.is_explained) == (None, "1", reason, is_explained)
    assert judge_alone(replace(record, is_deleted=True), Side.RIGHT, Alone(dealt_until=T2)) is None


WEEK = timedelta(days=7)
turns = st.lists(
    st.builds(
        Turn, st.sampled_from(["t/a", "t/b"]), st.sampled_from(["contact", "deal"]), st.just(WEEK),
        st.none() | st.integers(0, 20).map(lambda days: T2 - timedelta(days=days)), st.booleans(),
    )
)  # fmt: skip


@given(turns)
def test_whoever_waited_longest_has_the_next_turn(waiting: list[Turn]) -> None:
    """Never a busy pair, never before its time, and nobody waited longer than the chosen one."""
    chosen = due(waiting, T2)
    ripe = [turn for turn in waiting if not turn.is_busy and (turn.audited_at is None or T2 - turn.audited_at >= WEEK)]
    assert (chosen is None) == (not ripe)
    if chosen is not None:
        assert chosen in ripe
        times = [turn.audited_at for turn in ripe]
        assert (
            chosen.audited_at is None if None in times else chosen.audited_at == min(t for t in times if t is not None)
        )
