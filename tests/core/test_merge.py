"""The laws of the three-way merge, for any values and any policy."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from syncd.core.merge import Flow, Half, Merged, OnConflict, Policy, merge
from syncd.core.model import FieldType, Side, Value

TYPES = {"text": FieldType.TEXT, "set": FieldType.SET}
WRITABLE = frozenset(TYPES)
EARLY, LATE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)

texts = st.sampled_from([None, "a", "b", "c"])
sets = st.sampled_from([None, frozenset("x"), frozenset("y"), frozenset("xy"), frozenset("xyz")])
values = st.fixed_dictionaries({"text": texts, "set": sets})
policies = st.builds(Policy, st.sampled_from(Flow), st.sampled_from(OnConflict))
moments = st.sampled_from([None, EARLY, LATE])
halves = st.builds(Half, values, values, moments, st.just({}), st.just(WRITABLE))

_MIRROR_FLOW = {Flow.TO_CRM: Flow.TO_PROPSTREET, Flow.TO_PROPSTREET: Flow.TO_CRM}
_MIRROR_RULE = {OnConflict.PROPSTREET: OnConflict.CRM, OnConflict.CRM: OnConflict.PROPSTREET}


def mirrored(policy: Policy) -> Policy:
    return Policy(_MIRROR_FLOW.get(policy.flow, policy.flow), _MIRROR_RULE.get(policy.conflict, policy.conflict))


def written(half: Half, merged: Merged, side: Side) -> dict[str, Value]:
    return {**half.values, **{name: step.value for name, step in merged.to(side).items()}}


def plain(steps: Mapping[str, object]) -> dict[str, object]:
    return {name: getattr(step, "value", None) for name, step in steps.items()}


@settings(max_examples=1500)
@given(halves, halves, policies)
def test_swapping_the_sides_swaps_the_answer(left: Half, right: Half, policy: Policy) -> None:
    """Left and right are alike; only a tie of times, which goes to Propstreet, tells them apart."""
    if left.modified_at == right.modified_at and policy.conflict is OnConflict.NEWEST:
        return
    one = merge(TYPES, left, right, dict.fromkeys(TYPES, policy))
    other = merge(TYPES, right, left, dict.fromkeys(TYPES, mirrored(policy)))
    assert (plain(one.to_left), plain(one.to_right)) == (plain(other.to_right), plain(other.to_left))


@settings(max_examples=1500)
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


@settings(max_examples=1000)
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
    assert {**base, **plain(merged.to_left)} == right


@settings(max_examples=500)
@given(halves, halves, policies)
def test_a_locked_side_is_never_written_and_says_why(left: Half, right: Half, policy: Policy) -> None:
    """A lock stops every write to that side; what it stopped is listed with its reason."""
    locked = Half(left.values, left.base, left.modified_at, {"*": "closed"}, WRITABLE)
    open_ = merge(TYPES, left, right, dict.fromkeys(TYPES, policy))
    merged = merge(TYPES, locked, right, dict.fromkeys(TYPES, policy))
    assert not merged.to_left
    assert set(merged.blocked) == set(open_.to_left)
    assert merged.to_right == open_.to_right


@settings(max_examples=500)
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


def test_one_way_never_blanks_what_it_did_not_write() -> None:
    """At a first meeting an empty source leaves the other side's value alone."""
    merged = merge(
        {"text": FieldType.TEXT},
        Half({"text": None}, {}, LATE, {}, WRITABLE),
        Half({"text": "theirs"}, {}, EARLY, {}, WRITABLE),
        {"text": Policy(Flow.TO_CRM)},
    )
    assert not merged.to_right
