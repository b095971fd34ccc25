"""Which difference is explained, and whose turn it is to be audited."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core.audit import (
    BEHIND,
    GONE,
    NOT_STORED,
    UNSEEN,
    Alone,
    Bond,
    Difference,
    Stood,
    Turn,
    due,
    judge,
    judge_alone,
)
from syncd.core.match import ref_key
from syncd.core.model import FieldType, LinkState, Record, Side, Value
from syncd.core.plan import Fields, Sighted
from tests.core.cases import cases

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


@cases(100)
@given(texts, texts)
def test_two_sides_that_say_the_same_are_identical_whatever_is_remembered(value: Value, base: Value) -> None:
    """What both hold needs no explanation."""
    assert told(stood(value, base), stood(value, base)) == []


@cases(300)
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


@cases(300)
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


def shown(values: dict[str, Value], base: dict[str, Value], *, id_: str = "1", **facts: object) -> Stood:
    """One side in full: what it shows and its half of the base; seen at its version when last in step."""
    known = Record("contact", id_, base, version="v1", modified_at=T1)
    return Stood(replace(known, values=values, **facts), Sighted(known, base), False)  # type: ignore[arg-type]  # by name


def test_a_difference_tells_where_it_is_and_both_values() -> None:
    """The ids of both sides, the field, the side that differs; of a whole record no value."""
    left, right = shown({"text": "a"}, {"text": "a"}, id_="p1"), shown({"text": "b"}, {"text": "a"}, id_="c1")
    assert judge(left, right, BOND, FIELDS) == (
        Difference("contact", "p1", "c1", "text", Side.RIGHT, BEHIND, False, "a", "b"),
    )
    assert judge(left, replace(right, now=None), BOND, FIELDS) == (
        Difference("contact", "p1", "c1", "", Side.RIGHT, GONE, False, None, None),
    )
    assert judge(replace(left, now=None), right, BOND, FIELDS) == (
        Difference("contact", "p1", "c1", "", Side.LEFT, GONE, False, None, None),
    )
    record = Record("deal", "9", {}, modified_at=T2)
    new = ("", Side.LEFT, "new since the last run", True)
    assert judge_alone(record, Side.LEFT, Alone()) == Difference("deal", "9", None, *new)
    assert judge_alone(record, Side.RIGHT, Alone()) == Difference("deal", None, "9", "", Side.RIGHT, *new[2:])


def test_both_sides_gone_are_both_told() -> None:
    """Each for its own reason."""
    gone = shown({}, {"text": "a"}, is_deleted=True, modified_at=T2)
    lost = replace(gone, now=None)
    assert told(gone, lost) == [
        ("", Side.LEFT, "deleted since the last run", True),
        ("", Side.RIGHT, GONE, False),
    ]


def test_a_field_that_one_side_does_not_tell_is_not_behind() -> None:
    """Silence is no value; a side that moved is told though the other says nothing of the field."""
    silent, still, moved = (
        shown({}, {"text": "a"}),
        shown({"text": "a"}, {"text": "a"}),
        shown({"text": "b"}, {"text": "a"}),
    )
    assert told(silent, still) == told(still, silent) == told(silent, silent) == []
    assert told(silent, moved) == [("text", Side.RIGHT, BEHIND, False)]
    assert told(moved, silent) == [("text", Side.LEFT, BEHIND, False)]


def test_what_a_system_spells_anew_is_no_difference() -> None:
    """Between the sides, and between a side and its half."""
    one, spaced = shown({"text": "a b"}, {"text": "a b"}), shown({"text": "a  b"}, {"text": "a b"})
    assert told(one, spaced) == told(spaced, one) == []
    apart = shown({"text": "x"}, {"text": "x"})
    assert told(apart, spaced) == [("text", None, "agreed to differ", True)]
    waiting = replace(
        shown({"text": "b  c"}, {"text": "a"}),
        known=Sighted(Record("contact", "1", {"text": "b c"}, version="v1", modified_at=T1), {"text": "a"}),
        is_waiting=True,
    )
    assert told(apart, waiting) == [("text", Side.RIGHT, "waits for the next run", True)]


@pytest.mark.parametrize(
    ("version", "at", "known_version", "known_at", "is_newer"),
    [
        (None, None, "v1", T1, True),
        ("v1", None, "v1", None, False),
        ("v2", None, "v1", None, True),
        (None, T1, None, T1, False),
        (None, T2, None, T1, True),
        ("v2", T1, "v1", T1, True),
        ("v2", T1, "v1", T2, False),
        ("v1", T1, "v1", None, True),
    ],
)
def test_a_record_is_newer_by_its_own_version_and_never_by_an_older_time(
    version: str | None, at: datetime | None, known_version: str | None, known_at: datetime | None, is_newer: bool
) -> None:
    """One without either may have moved at any time; one that is not shown has not."""
    known = Record("contact", "1", {}, version=known_version, modified_at=known_at)
    stood_ = Stood(replace(known, version=version, modified_at=at), Sighted(known, {}), False)
    assert stood_.is_newer() is is_newer
    assert not replace(stood_, now=None).is_newer()


@pytest.mark.parametrize(
    ("now", "known", "is_newer"), [("a", "b", True), ("a", "a", False), (None, "a", False), ("a", None, False)]
)
def test_two_edits_of_one_second_are_told_apart_by_who_made_them(
    now: str | None, known: str | None, *, is_newer: bool
) -> None:
    """Salesforce's clock counts whole seconds; one that does not say who edited proves nothing."""
    shown, before = (Record("contact", "1", {}, version="v1", modified_at=T1, modified_by=by) for by in (now, known))
    assert Stood(shown, Sighted(before, {}), False).is_newer() is is_newer


def test_what_is_not_shown_has_neither_moved_nor_been_noticed() -> None:
    """A question about a field of a record that is not there."""
    absent = replace(shown({"text": "b"}, {"text": "a"}), now=None, is_waiting=True)
    assert not absent.moved("text", FIELDS)
    assert not absent.is_noticed("text", FIELDS)
    assert not shown({"text": "a"}, {"text": "a"}).is_noticed("text", FIELDS)


def test_a_write_that_was_not_stored_is_told_for_its_fields_only() -> None:
    """Its link says which; other fields may be apart for good."""
    types = dict.fromkeys(("city", "name", "text"), FieldType.TEXT)
    fields = Fields(types, *[frozenset(types)] * 4)
    bond = replace(BOND, state=LinkState.EXCLUDED, reason=f"{NOT_STORED}: city, name")
    left = shown({"city": "a", "name": "a", "text": "a"}, {"city": "a", "name": "a", "text": "a"})
    right = shown({"city": "b", "name": "b", "text": "b"}, {"city": "b", "name": "b", "text": "b"})
    assert [(each.field, each.reason, each.is_explained) for each in judge(left, right, bond, fields)] == [
        ("city", NOT_STORED, False),
        ("name", NOT_STORED, False),
        ("text", "agreed to differ", True),
    ]
    assert {each.reason for each in judge(left, right, BOND, fields)} == {"agreed to differ"}


def test_of_two_sides_that_both_moved_an_unexplained_one_is_told_and_else_the_first() -> None:
    """One reason is enough where all is known."""
    left = shown({"text": "b"}, {"text": "a"}, version="v2", modified_at=T2)
    right = shown({"text": "c"}, {"text": "a"}, version="v2", modified_at=T2)
    assert told(left, right) == [("text", Side.LEFT, "moved since the last run", True)]
    behind = shown({"text": "c"}, {"text": "a"})
    assert told(left, behind) == [("text", Side.RIGHT, BEHIND, False)]


def test_a_field_that_only_one_system_derives_is_excused_on_that_side_only() -> None:
    """By what the side can be given, and for a relation by what its siblings move."""
    reason = "moved with something else, which left its version alone"
    still, moved = shown({"text": "a"}, {"text": "a"}), shown({"text": "b"}, {"text": "a"})
    for side, fields in (
        (Side.LEFT, replace(FIELDS, left_writable=frozenset())),
        (Side.RIGHT, replace(FIELDS, right_writable=frozenset())),
    ):
        here, there = (moved, still) if side is Side.LEFT else (still, moved)
        assert [(each.reason, each.is_explained) for each in judge(here, there, BOND, fields)] == [(reason, True)]
        assert [each.reason for each in judge(there, here, BOND, fields)] == [BEHIND]
    primary = Fields({"is_primary": FieldType.BOOLEAN}, *[frozenset({"is_primary"})] * 4)
    yes, no = shown({"is_primary": True}, {"is_primary": True}), shown({"is_primary": False}, {"is_primary": True})
    for kind, wanted in (("employment", reason), ("contact", BEHIND)):
        (found,) = judge(yes, no, replace(BOND, kind=kind), primary)
        assert found.reason == wanted


def test_references_that_are_as_they_were_or_were_never_known_differ_in_nothing() -> None:
    """News of them in the inbox wait as news of a field do."""
    bond = replace(BOND, kind="deal_contact", conflicts=frozenset({""}))
    refs = {"deal": "1", "contact": "2"}
    known = Sighted(Record("deal_contact", "1", {}, version="v1", modified_at=T1), {}, ref_key(refs))
    same_, other = replace(known.record, refs=refs), replace(known.record, refs={"deal": "9"})
    still = Stood(same_, known, False)
    assert told(still, still, bond) == []
    assert told(still, Stood(other, replace(known, base_refs=None), False), bond) == []
    assert told(still, Stood(other, known, False), replace(bond, kind="contact")) == []
    assert told(Stood(other, known, True), still, bond) == [("refs", Side.LEFT, "a deletion waits for a person", True)]
    assert told(Stood(other, known, True), still, replace(bond, conflicts=frozenset())) == [
        ("refs", Side.LEFT, "waits for the next run", True)
    ]


def test_a_tombstone_explains_if_it_tells_when_or_where_to_and_news_of_it_only_if_they_are_of_it() -> None:
    """A bare one may be an answer to nothing; an edit in the inbox is no deletion."""
    still = stood("a", "a")
    for tombstone, reason in (
        (Record("contact", "1", {}, is_deleted=True), GONE),
        (Record("contact", "1", {}, is_deleted=True, modified_at=T2), "deleted since the last run"),
        (Record("contact", "1", {}, is_deleted=True, merged_into="2"), "deleted since the last run"),
    ):
        assert [each[2] for each in told(still, replace(still, now=tombstone))] == [reason]
    assert [each[2] for each in told(still, replace(still, now=None, is_waiting=True))] == [GONE]


@pytest.mark.parametrize(("state", "said"), [("waiting", True), ("retired", True), ("excluded", True), ("new", False)])
def test_a_record_that_stays_out_says_why(state: str, said: bool) -> None:
    """Its state in the inbox is what it waits for."""
    found = judge_alone(Record("contact", "1", {}), Side.LEFT, Alone(state, "no"))
    assert found is not None
    assert found.reason == ("excluded: no" if said else "waits for the next run")


def test_a_record_of_the_very_instant_that_was_dealt_with_was_dealt_with() -> None:
    """And a turn is due on the very instant."""
    found = judge_alone(Record("contact", "1", {}, modified_at=T1), Side.LEFT, Alone(dealt_until=T1))
    assert found is not None
    assert found.reason == UNSEEN
    turn = Turn("t/a", "contact", WEEK, T1)
    assert due([turn], T1 + WEEK) is turn
    assert due([turn], T1 + WEEK - timedelta(microseconds=1)) is None
