"""The laws of the three-way merge, for any values and any policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core.mapping import hashed, same
from syncd.core.merge import (
    BY_PERSON,
    Flow,
    Half,
    Merged,
    OnConflict,
    Policy,
    Step,
    merge,
    resolve,
    translated,
)
from syncd.core.model import FieldType, Side, Value
from tests.core.cases import EARLY, LATE, answers, cases, halves_of, mirrored, policies, types, value_of, values_of

TYPES = {"text": FieldType.TEXT, "set": FieldType.SET}
WRITABLE = frozenset(TYPES)

halves = halves_of(TYPES, is_whole=True)
values = values_of(TYPES, is_whole=True)
_MIRROR_WORD = {
    "propstreet": "crm",
    "crm": "propstreet",
    "moved in propstreet": "moved in crm",
    "moved in crm": "moved in propstreet",
}


def swapped(steps: Mapping[str, Step]) -> dict[str, Step]:
    return {name: Step(step.value, _MIRROR_WORD.get(step.rule, step.rule)) for name, step in steps.items()}


def written(half: Half, merged: Merged, side: Side) -> dict[str, Value]:
    return {**half.values, **{name: step.value for name, step in merged.to(side).items()}}


def plain(steps: Mapping[str, Step]) -> dict[str, Value]:
    return {name: step.value for name, step in steps.items()}


@cases(800)
@given(st.data(), types, policies, answers)
def test_swapping_the_sides_swaps_the_answer(
    data: st.DataObject, type_: FieldType, policy: Policy, answer: Side | None
) -> None:
    """Left and right are alike, whatever they say, hold or refuse; only a tie of times, which goes to
    Propstreet, tells them apart."""
    table = {"field": type_}
    left, right = data.draw(halves_of(table)), data.draw(halves_of(table))
    if left.modified_at == right.modified_at and policy.conflict is OnConflict.NEWEST:
        policy = replace(policy, conflict=OnConflict.HOLD)
    said = {} if answer is None else {"field": answer}
    one = merge(table, left, right, {"field": policy}, said)
    other = merge(table, right, left, {"field": mirrored(policy)}, {name: side.other for name, side in said.items()})
    assert (one.to_left, one.to_right) == (swapped(other.to_right), swapped(other.to_left))
    assert one.blocked.keys() == other.blocked.keys()
    assert [(c.left, c.right, c.winner, c.rule) for c in one.conflicts] == [
        (c.right, c.left, c.winner and c.winner.other, _MIRROR_WORD.get(c.rule, c.rule)) for c in other.conflicts
    ]


@cases(300)
@given(halves, halves, policies)
def test_merging_again_after_the_writes_finds_nothing_to_do(left: Half, right: Half, policy: Policy) -> None:
    """A fixed point: write what was asked for, move the base where no conflict is held, and all is quiet."""
    table = dict.fromkeys(TYPES, policy)
    merged = merge(TYPES, left, right, table)
    on_left, on_right = written(left, merged, Side.LEFT), written(right, merged, Side.RIGHT)
    base_left = {n: left.base[n] if n in merged.held else on_left[n] for n in TYPES}
    base_right = {n: right.base[n] if n in merged.held else on_right[n] for n in TYPES}
    again = merge(
        TYPES,
        Half(on_left, base_left, left.modified_at, {}, WRITABLE),
        Half(on_right, base_right, right.modified_at, {}, WRITABLE),
        table,
    )
    assert not again.to_left
    assert not again.to_right
    assert again.held == merged.held


@cases(300)
@given(values, values, st.sampled_from(OnConflict))
def test_with_one_side_untouched_the_other_always_survives(
    base: dict[str, Value], right: dict[str, Value], rule: OnConflict
) -> None:
    """A one-sided change reaches the other side whatever the conflict policy."""
    merged = merge(
        TYPES,
        Half(base, base, LATE, {}, WRITABLE),
        Half(right, base, EARLY, {}, WRITABLE),
        dict.fromkeys(TYPES, Policy(conflict=rule)),
    )
    assert not merged.to_right
    for name, value in {**base, **plain(merged.to_left)}.items():
        assert same(TYPES[name], value, right[name])


@cases(300)
@given(halves, halves, policies)
def test_a_locked_side_is_never_written_and_says_why(left: Half, right: Half, policy: Policy) -> None:
    """A lock stops every write to that side; what it stopped is listed with its reason."""
    locked = Half(left.values, left.base, left.modified_at, {"*": "closed"}, WRITABLE)
    open_ = merge(TYPES, left, right, dict.fromkeys(TYPES, policy))
    merged = merge(TYPES, locked, right, dict.fromkeys(TYPES, policy))
    assert not merged.to_left
    assert set(merged.blocked) == set(open_.to_left)
    assert merged.to_right == open_.to_right


@cases(300)
@given(halves, halves, policies)
def test_a_conflict_keeps_both_values_and_a_held_one_is_written_nowhere(
    left: Half, right: Half, policy: Policy
) -> None:
    """No unexplained loss: both sides' values are in the conflict."""
    for conflict in merge(TYPES, left, right, dict.fromkeys(TYPES, policy)).conflicts:
        assert (conflict.left, conflict.right) == (left.values[conflict.field], right.values[conflict.field])
        if conflict.winner is None:
            merged = merge(TYPES, left, right, dict.fromkeys(TYPES, policy))
            assert conflict.field not in merged.to_left
            assert conflict.field not in merged.to_right


def test_a_side_that_says_nothing_is_given_what_moved_on_the_other() -> None:
    """An absent field counts as unmoved: it is written when the other side moves, and never read as empty."""
    left = Half({"text": "b"}, {"text": "a"}, LATE, {}, WRITABLE)
    silent = Half({}, {"text": None}, EARLY, {}, WRITABLE)
    merged = merge({"text": FieldType.TEXT}, left, silent, {})
    assert plain(merged.to_right) == {"text": "b"}
    stranger = Half({}, {}, EARLY, {}, WRITABLE)
    assert not merge({"text": FieldType.TEXT}, left, stranger, {}).to_right
    never_shown = Half({}, {}, EARLY, {}, WRITABLE, frozenset({"text"}))
    assert plain(merge({"text": FieldType.TEXT}, left, never_shown, {}).to_right) == {"text": "b"}
    quiet = merge({"text": FieldType.TEXT}, Half({"text": "a"}, {"text": "a"}), silent, {})
    assert not quiet.to_left
    assert not quiet.to_right


def test_one_way_restores_what_was_typed_over_it_and_keeps_the_loser() -> None:
    """to_crm: the CRM's edit is undone, its value stays in the conflict list."""
    left = Half({"text": "a"}, {"text": "a"}, EARLY, {}, WRITABLE)
    right = Half({"text": "x"}, {"text": "a"}, LATE, {}, WRITABLE)
    merged = merge({"text": FieldType.TEXT}, left, right, {"text": Policy(Flow.TO_CRM)})
    assert plain(merged.to_right) == {"text": "a"}
    assert [(c.right, c.winner) for c in merged.conflicts] == [("x", Side.LEFT)]


def test_one_way_loses_only_what_somebody_typed() -> None:
    """The conflict names the rule; what a system spelled anew by itself is nobody's loss."""
    source = Half({"text": "new"}, {"text": "a b"}, EARLY, {}, WRITABLE)
    for there, kept in (("typed", [("a b", "new", "typed", Side.LEFT, "one way")]), ("a  b", [])):
        sink = Half({"text": there}, {"text": "a b"}, LATE, {}, WRITABLE)
        merged = merge({"text": FieldType.TEXT}, source, sink, {"text": Policy(Flow.TO_CRM)})
        assert plain(merged.to_right) == {"text": "new"}
        assert [(c.base, c.left, c.right, c.winner, c.rule) for c in merged.conflicts] == kept


def test_one_way_never_blanks_what_it_did_not_write() -> None:
    """At a first meeting an empty source leaves the other side's value alone."""
    merged = merge(
        {"text": FieldType.TEXT},
        Half({"text": None}, {}, LATE, {}, WRITABLE),
        Half({"text": "theirs"}, {}, EARLY, {}, WRITABLE),
        {"text": Policy(Flow.TO_CRM)},
    )
    assert not merged.to_right


whole = st.frozensets(st.sampled_from("wxyz"))


def merged_sets(left: frozenset[str], right: frozenset[str], base: frozenset[str]) -> tuple[Value, Value]:
    """What each side holds once both were given their part."""
    on_left, on_right = (
        Half({"set": each or None}, {"set": base or None}, None, {}, WRITABLE) for each in (left, right)
    )
    merged = merge({"set": FieldType.SET}, on_left, on_right, {})
    return written(on_left, merged, Side.LEFT)["set"], written(on_right, merged, Side.RIGHT)["set"]


@cases(300)
@given(whole, whole, whole)
def test_a_set_is_merged_element_by_element_in_either_order_and_once(
    left: frozenset[str], right: frozenset[str], base: frozenset[str]
) -> None:
    """The side that moved an element decides it; both end alike; sides may swap; once more changes nothing."""
    wanted = frozenset(each for each in "wxyz" if each in (left if (each in left) != (each in base) else right))
    assert merged_sets(left, right, base) == (wanted or None, wanted or None)
    assert merged_sets(right, left, base) == merged_sets(left, right, base)
    assert merged_sets(wanted, wanted, base) == (wanted or None, wanted or None)


@cases(300)
@given(whole, whole, whole, whole)
def test_two_sets_that_were_apart_take_over_only_what_moved(
    left: frozenset[str], right: frozenset[str], left_base: frozenset[str], right_base: frozenset[str]
) -> None:
    """An addition wins over a removal; what one side has for good and the other cannot have stays where it is."""
    on_left = Half({"set": left or None}, {"set": left_base or None}, None, {}, WRITABLE)
    on_right = Half({"set": right or None}, {"set": right_base or None}, None, {}, WRITABLE)
    merged = merge({"set": FieldType.SET}, on_left, on_right, {})
    if left == right:
        assert merged == Merged()
        return
    added = (left - left_base) | (right - right_base)
    gone = {Side.LEFT: right_base - right, Side.RIGHT: left_base - left}
    for side, mine in ((Side.LEFT, left), (Side.RIGHT, right)):
        wanted = frozenset(each for each in "wxyz" if each in added or (each in mine and each not in gone[side]))
        assert plain(merged.to(side)) == ({} if wanted == mine else {"set": wanted or None})
        assert {step.rule for step in merged.to(side).values()} <= {"set merged"}


def test_an_erased_set_is_merged_with_nothing_before_it_is_read_again() -> None:
    """Where either side moved, the side that can be read waits; where none did, nothing waits."""
    seen, base = frozenset("xy"), frozenset("x")
    erased = hashed(FieldType.SET, base, "salt")
    types_ = {"set": FieldType.SET}
    lost, still = (
        Half({"set": erased}, {"set": base}, None, {}, WRITABLE),
        Half({"set": base}, {"set": base}, None, {}, WRITABLE),
    )
    moved = Half({"set": seen}, {"set": base}, None, {}, WRITABLE)
    assert merge(types_, lost, still, {}) == merge(types_, still, lost, {}) == Merged()
    assert merge(types_, lost, moved, {}).blocked.keys() == merge(types_, moved, lost, {}).blocked.keys() == {"set"}
    for merged in (merge(types_, lost, moved, {}), merge(types_, moved, lost, {})):
        assert not merged.to_left
        assert not merged.to_right


def test_a_set_that_loses_its_last_element_is_empty() -> None:
    """Empty is None, never a set of nothing."""
    assert merged_sets(frozenset(), frozenset("x"), frozenset("x")) == (None, None)
    assert merged_sets(frozenset("x"), frozenset(), frozenset("x")) == (None, None)


@cases(600)
@given(st.data(), types, policies, answers)
def test_nothing_equal_locked_or_unwritable_is_written_and_no_loser_is_forgotten(
    data: st.DataObject, type_: FieldType, policy: Policy, answer: Side | None
) -> None:
    """Whatever the sides say: a write changes something that may be changed, and a conflict holds both values."""
    table = {"field": type_}
    halves_ = {side: data.draw(halves_of(table)) for side in Side}
    merged = merge(
        table, halves_[Side.LEFT], halves_[Side.RIGHT], {"field": policy}, {} if answer is None else {"field": answer}
    )
    for side, half in halves_.items():
        for name, step in merged.to(side).items():
            assert not same(type_, step.value, half.now(name))
            assert name in half.writable
            assert half.lock(name) is None
            loser = half.values.get(name)
            if half.moved(name, type_) and loser is not None and type_ is not FieldType.SET:
                assert [c.left if side is Side.LEFT else c.right for c in merged.conflicts] == [loser]
    for conflict in merged.conflicts:
        assert [conflict.left, conflict.right] == [half.now("field") for half in halves_.values()]
        is_settled = answer is not None and policy.flow is Flow.BOTH and conflict.rule == BY_PERSON
        assert conflict.winner is answer if is_settled else conflict.rule != BY_PERSON
    assert merged.held <= table.keys()
    assert not merged.held or not (merged.to_left or merged.to_right or merged.blocked)


@cases(300)
@given(st.data(), types, st.sampled_from(OnConflict))
def test_a_change_on_one_side_reaches_the_other_even_one_that_is_silent(
    data: st.DataObject, type_: FieldType, rule: OnConflict
) -> None:
    """Silence is no change: what the other side was known to hold is what the change is held against."""
    base, now = data.draw(value_of(type_)), data.draw(value_of(type_))
    moved = Half({"field": now}, {"field": base}, EARLY, {}, frozenset({"field"}))
    said = {"field": base} if data.draw(st.booleans()) else {}
    still = Half(said, {"field": base}, LATE, {}, frozenset({"field"}))
    merged = merge({"field": type_}, moved, still, {"field": Policy(conflict=rule)})
    assert not merged.to_left
    assert not merged.conflicts
    assert plain(merged.to_right) == ({} if same(type_, now, base) else {"field": now})


@pytest.mark.parametrize("flow", Flow)
@pytest.mark.parametrize(("left", "right"), [*product((True, False), repeat=2)])
def test_a_policy_goes_only_as_far_as_both_systems_can_carry_it(flow: Flow, left: bool, right: bool) -> None:
    """What cannot be written is never given; what can be still is, and the rule for conflicts stays."""
    into = {Side.LEFT: left, Side.RIGHT: right}
    opens = {
        Flow.BOTH: {*Side}, Flow.TO_CRM: {Side.RIGHT}, Flow.TO_PROPSTREET: {Side.LEFT}, Flow.IF_EMPTY: {*Side},
        Flow.OFF: set[Side](),
    }  # fmt: skip
    found = Policy(flow, OnConflict.HOLD).within(left_writable=left, right_writable=right)
    assert found.conflict is OnConflict.HOLD
    open_ = {side for side in opens[flow] if into[side]}
    if flow is not Flow.IF_EMPTY or not open_:
        assert opens[found.flow] == open_ or found.flow is Flow.IF_EMPTY
    assert (found.flow is Flow.OFF) == (not open_) or flow is Flow.IF_EMPTY


def test_each_rule_names_its_winner_and_an_unknown_time_is_the_older_one() -> None:
    """Later wins; equal and unknown on both sides is Propstreet's."""
    assert resolve(OnConflict.PROPSTREET, EARLY, LATE) is Side.LEFT
    assert resolve(OnConflict.CRM, LATE, EARLY) is Side.RIGHT
    assert resolve(OnConflict.HOLD, EARLY, LATE) is None
    for left, right, winner in (
        (EARLY, LATE, Side.RIGHT),
        (LATE, EARLY, Side.LEFT),
        (EARLY, EARLY, Side.LEFT),
        (None, EARLY, Side.RIGHT),
        (EARLY, None, Side.LEFT),
        (None, None, Side.LEFT),
    ):
        assert resolve(OnConflict.NEWEST, left, right) is winner


def test_a_conflict_names_the_base_that_either_side_remembers() -> None:
    """Where only one half of the base holds a value, that one is shown."""
    for left_base, right_base, shown in (("was", None, "was"), (None, "was", "was"), ("was", "were", "was")):
        left = Half({"text": "l"}, {"text": left_base}, EARLY, {}, WRITABLE)
        right = Half({"text": "r"}, {"text": right_base}, LATE, {}, WRITABLE)
        (conflict,) = merge({"text": FieldType.TEXT}, left, right, {"text": Policy(conflict=OnConflict.HOLD)}).conflicts
        assert (conflict.field, conflict.base, conflict.left, conflict.right) == ("text", shown, "l", "r")
        assert (conflict.winner, conflict.rule) == (None, "hold")


def test_each_write_names_the_rule_behind_it() -> None:
    """What the change log says of a value."""
    was, new, none = {"text": "was"}, {"text": "new"}, {"text": None}
    for left, right, policy, settled, rule in (
        ((new, was), (was, was), Policy(), None, "moved in propstreet"),
        ((was, was), (new, was), Policy(), None, "moved in crm"),
        ((new, none), (none, none), Policy(Flow.IF_EMPTY), None, "if_empty"),
        ((new, was), (was, was), Policy(Flow.TO_CRM), None, "one way"),
        ((was, was), (new, was), Policy(Flow.TO_CRM), None, "one way, restored"),
        ((new, was), ({"text": "x"}, was), Policy(conflict=OnConflict.CRM), None, "crm"),
        ((new, was), ({"text": "x"}, was), Policy(conflict=OnConflict.CRM), Side.LEFT, BY_PERSON),
    ):
        merged = merge(
            {"text": FieldType.TEXT},
            Half(left[0], left[1], None, {}, WRITABLE),
            Half(right[0], right[1], None, {}, WRITABLE),
            {"text": policy},
            {"text": settled} if settled else None,
        )
        assert {step.rule for step in (*merged.to_left.values(), *merged.to_right.values())} == {rule}


@pytest.mark.parametrize("flow", Flow)
def test_a_value_that_was_only_spelled_anew_has_not_moved(flow: Flow) -> None:
    """Two sides that are apart for good stay so, whichever of them is rewritten by its own system."""
    one, spaced, other = {"text": "a b"}, {"text": "a  b"}, {"text": "x"}
    still, respelled = Half(other, other, LATE, {}, WRITABLE), Half(spaced, one, EARLY, {}, WRITABLE)
    assert merge({"text": FieldType.TEXT}, respelled, still, {"text": Policy(flow)}) == Merged()
    assert merge({"text": FieldType.TEXT}, still, respelled, {"text": Policy(flow)}) == Merged()


@pytest.mark.parametrize("flow", Flow)
def test_two_sides_that_meet_with_one_value_in_two_spellings_agree(flow: Flow) -> None:
    """By the field's notion of equal there is nothing to write, and no loser to remember."""
    only = frozenset({"f"})
    for type_, one, other in (
        (FieldType.TEXT, "a b", "a  b"),
        (FieldType.PHONE, "+46701234567", "070-123 45 67"),
        (FieldType.INSTANT, LATE, LATE.replace(microsecond=5)),
    ):
        left, right = Half({"f": one}, {}, LATE, {}, only), Half({"f": other}, {}, EARLY, {}, only)
        assert merge({"f": type_}, left, right, {"f": Policy(flow)}) == Merged()


def test_a_lock_on_the_field_is_named_before_the_lock_on_the_record() -> None:
    """The nearer reason is the one that helps."""
    assert Half({}, {}, locked={"text": "calculated", "*": "closed"}).lock("text") == "calculated"
    assert Half({}, {}, locked={"*": "closed"}).lock("text") == "closed"
    assert Half({}, {}, locked={"set": "calculated"}).lock("text") is None


def test_words_are_told_in_the_coarser_vocabulary_and_what_has_no_word_says_nothing() -> None:
    """Empty stays empty, and fields without a vocabulary stay as they are."""
    stages = {"stage": {"published": "proposal", "verified": "proposal"}}
    assert translated({"stage": "verified", "name": "x"}, stages) == {"stage": "proposal", "name": "x"}
    assert translated({"stage": "drafting", "name": "x"}, stages) == {"name": "x"}
    assert translated({"stage": None}, stages) == {"stage": None}
