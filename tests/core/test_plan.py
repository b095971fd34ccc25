"""What becomes of a link and of a record without one: deletions, references, filters, newcomers, bare amounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core.match import ref_key
from syncd.core.merge import OnConflict, Policy, Step
from syncd.core.model import Address, FieldType, LinkState, Money, Record, Side, Value
from syncd.core.plan import (
    Decision,
    Fields,
    KindRules,
    OnDelete,
    Operation,
    Sighted,
    Welcome,
    When,
    decide,
    is_ripe,
    payable,
    priced,
    welcome,
)
from tests.core.cases import LATE, answers, cases, halves_of, mirrored, policies, types

TYPES = {"name": FieldType.TEXT, "tags": FieldType.SET}
ALL = frozenset(TYPES)
OPEN = Fields(TYPES, ALL, ALL, ALL, ALL)


def sighted(id_: str, values: Mapping[str, Value], base: Mapping[str, Value] | None = None, **facts: object) -> Sighted:
    record = replace(Record("deal", id_, values, parent=f"above {id_}"), **facts)  # type: ignore[arg-type]  # by name
    return Sighted(record, values if base is None else base)


def turned(operation: Operation) -> Operation:
    """The same operation with the sides in each other's place."""
    words = {"moved in propstreet": "moved in crm", "moved in crm": "moved in propstreet"}
    words |= {"propstreet": "crm", "crm": "propstreet"}
    steps = {name: Step(step.value, words.get(step.rule, step.rule)) for name, step in operation.steps.items()}
    return replace(operation, side=operation.side.other, steps=steps)


@cases(600)
@given(st.data(), types, policies, answers, answers, st.sampled_from(OnDelete), st.sampled_from(OnDelete))
def test_swapping_the_sides_of_a_link_swaps_its_decision(
    data: st.DataObject, type_: FieldType, policy: Policy, answer: Side | None, whole: Side | None, to_left: OnDelete,
    to_right: OnDelete,
) -> None:  # fmt: skip
    """Deleted, locked, silent or answered: the planner does not know which side is which."""
    halves = {side: data.draw(halves_of({"f": type_})) for side in Side}
    if halves[Side.LEFT].modified_at == halves[Side.RIGHT].modified_at and policy.conflict is OnConflict.NEWEST:
        policy = replace(policy, conflict=OnConflict.HOLD)
    gone = data.draw(st.sampled_from([(), (), (Side.LEFT,), (Side.RIGHT,), (Side.LEFT, Side.RIGHT)]))
    survivor = data.draw(st.sampled_from([None, "9"]))
    ends = {
        side: Sighted(
            Record("deal", "1", half.values, modified_at=half.modified_at, locked=half.locked, is_deleted=side in gone,
                   merged_into=survivor),
            half.base,
        )
        for side, half in halves.items()
    }  # fmt: skip
    left, right = halves[Side.LEFT], halves[Side.RIGHT]
    fields = Fields({"f": type_}, left.writable, right.writable, left.writable, right.writable,
                    left.unreadable, right.unreadable)  # fmt: skip
    swapped_fields = Fields({"f": type_}, right.writable, left.writable, right.writable, left.writable,
                            right.unreadable, left.unreadable)  # fmt: skip
    rules = KindRules(deletes_to_left=to_left, deletes_to_right=to_right, policies={"f": policy})
    swapped_rules = KindRules(deletes_to_left=to_right, deletes_to_right=to_left, policies={"f": mirrored(policy)})
    said = {name: side for name, side in (("f", answer), ("", whole)) if side is not None}
    one = decide("deal", ends[Side.LEFT], ends[Side.RIGHT], fields, rules, settled=said)
    other = decide("deal", ends[Side.RIGHT], ends[Side.LEFT], swapped_fields, swapped_rules,
                   settled={name: side.other for name, side in said.items()})  # fmt: skip
    assert sorted(one.operations, key=str) == sorted(map(turned, other.operations), key=str)
    assert (one.state, one.reason, one.is_over) == (other.state, other.reason, other.is_over)
    assert one.deletion is (other.deletion and other.deletion.other)


# --- one side gone ------------------------------------------------------------------------

ALIVE = sighted("r1", {"name": "x", "tags": None}, locked={}, refs={"contact": "7"})
GONE = sighted("l1", {"name": "x", "tags": None}, is_deleted=True)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (
            OnDelete.ARCHIVE,
            Decision(
                (
                    Operation("deal", "delete", Side.RIGHT, "l1", Address("r1", "above r1"),
                              why="deleted on the other side"),
                ),
                LinkState.PENDING,
                "deleted on the other side",
            ),
        ),
        (OnDelete.HOLD, Decision(state=LinkState.CONFLICT, reason="deleted on one side", deletion=Side.LEFT)),
        (OnDelete.IGNORE, Decision(is_over=True, reason="deleted on the other side")),
    ],
)  # fmt: skip
def test_an_untouched_record_follows_a_deletion_as_the_tenants_rule_says(rule: OnDelete, wanted: Decision) -> None:
    """Archived with it, held for a person, or let go; the rule of the other direction does not count."""
    other = OnDelete.IGNORE if rule is not OnDelete.IGNORE else OnDelete.HOLD
    assert decide("deal", GONE, ALIVE, OPEN, KindRules(deletes_to_left=other, deletes_to_right=rule)) == wanted


def test_each_direction_follows_its_own_rule_for_deletions() -> None:
    """What is archived in the CRM may be let go in Propstreet, and the other way round."""
    for to_left, to_right in ((OnDelete.ARCHIVE, OnDelete.IGNORE), (OnDelete.IGNORE, OnDelete.ARCHIVE)):
        rules = KindRules(deletes_to_left=to_left, deletes_to_right=to_right)
        for ends, side, rule in (((ALIVE, GONE), Side.LEFT, to_left), ((GONE, ALIVE), Side.RIGHT, to_right)):
            found = decide("deal", *ends, OPEN, rules)
            wanted = [("delete", side)] if rule is OnDelete.ARCHIVE else []
            assert [(op.verb, op.side) for op in found.operations] == wanted
            assert found.is_over is (rule is OnDelete.IGNORE)


def test_an_edited_record_is_not_made_again_beside_references_that_cannot_be_told() -> None:
    """It waits, and says for which; nobody's word to keep it helps before they are linked."""
    edited = replace(ALIVE, base={"name": "was", "tags": None})
    waits = Decision(state=LinkState.EXCLUDED, reason="its company and contact is not linked")
    missing = frozenset({"contact", "company"})
    assert decide("deal", GONE, edited, OPEN, KindRules(), unlinked_refs=missing) == waits
    assert decide("deal", GONE, ALIVE, OPEN, KindRules(), unlinked_refs=missing, settled={"": Side.RIGHT}) == waits


@pytest.mark.parametrize("rule", OnDelete)
def test_an_edit_wins_over_a_deletion_and_the_record_is_made_again(rule: OnDelete) -> None:
    """Made of all that the other side can be given, empty fields left out, beside the same references."""
    edited = replace(ALIVE, base={"name": "was", "tags": None})
    found = decide("deal", GONE, edited, OPEN, KindRules(deletes_to_left=rule, deletes_to_right=rule))
    why = "edited after it was deleted"
    create = Operation(
        "deal", "create", Side.LEFT, "r1", None, {"name": Step("x", "created")}, {"contact": "7"}, why=why
    )
    assert found == Decision((create,), LinkState.PENDING, why)


def test_what_a_system_rewrites_by_itself_is_no_edit_of_a_record_whose_counterpart_went() -> None:
    """Each type's notion of equal holds here as well."""
    spaced = sighted("r1", {"name": "x  y", "tags": None}, {"name": "x y"})
    rules = KindRules(deletes_to_right=OnDelete.ARCHIVE)
    assert [op.verb for op in decide("deal", GONE, spaced, OPEN, rules).operations] == ["delete"]


def test_a_persons_word_on_a_deletion_stands_above_rules_and_edits() -> None:
    """Kept means made again, deleted means archived, also where the tenant lets no deletion pass."""
    rules = KindRules(deletes_to_right=OnDelete.IGNORE)
    kept = decide("deal", GONE, ALIVE, OPEN, rules, settled={"": Side.RIGHT})
    assert [(op.verb, op.side, op.why) for op in kept.operations] == [("create", Side.LEFT, "kept by a person's word")]
    assert (kept.state, kept.reason) == (LinkState.PENDING, "kept by a person's word")
    edited = replace(ALIVE, base={"name": "was"})
    gone = decide("deal", GONE, edited, OPEN, rules, settled={"": Side.LEFT})
    assert [(op.verb, op.side) for op in gone.operations] == [("delete", Side.RIGHT)]


def test_a_locked_record_is_neither_deleted_nor_made_again_for_its_edits() -> None:
    """The lock is the reason that is told; only a person's word to keep it makes a counterpart."""
    locked = replace(ALIVE, record=replace(ALIVE.record, locked={"*": "closed"}), base={"name": "was"})
    rules = KindRules(deletes_to_right=OnDelete.ARCHIVE)
    assert decide("deal", GONE, locked, OPEN, rules) == Decision(state=LinkState.EXCLUDED, reason="closed")
    assert decide("deal", GONE, locked, OPEN, rules, settled={"": Side.LEFT}).operations == ()
    assert decide("deal", GONE, locked, OPEN, rules, settled={"": Side.RIGHT}).operations[0].verb == "create"


def test_a_record_that_a_merge_took_waits_for_a_person_until_there_is_an_answer() -> None:
    """Which of ours stands for the survivor cannot be known."""
    merged = replace(GONE, record=replace(GONE.record, merged_into="l2"))
    rules = KindRules(deletes_to_right=OnDelete.ARCHIVE)
    waits = Decision(state=LinkState.CONFLICT, reason="merged with another linked record", deletion=Side.LEFT)
    assert decide("deal", merged, ALIVE, OPEN, rules) == waits
    assert decide("deal", merged, ALIVE, OPEN, rules, settled={"": Side.LEFT}).operations[0].verb == "delete"


def test_two_deletions_end_a_link() -> None:
    """There is nothing left to say."""
    both = decide("deal", GONE, replace(ALIVE, record=replace(ALIVE.record, is_deleted=True)), OPEN, KindRules())
    assert both == Decision(is_over=True, reason="deleted on both sides")


# --- both alive ---------------------------------------------------------------------------


def test_one_operation_for_each_side_carries_all_its_fields() -> None:
    """Both sides moved, each something else: an update each, told by the other's id and the own address."""
    left = sighted("l1", {"name": "new", "tags": None}, {"name": "was", "tags": None})
    right = sighted("r1", {"name": "was", "tags": frozenset("x")}, {"name": "was", "tags": None})
    found = decide("deal", left, right, OPEN, KindRules())
    to_left = Operation(
        "deal", "update", Side.LEFT, "r1", Address("l1", "above l1"),
        {"tags": Step(frozenset("x"), "set merged")}, why="merge",
    )  # fmt: skip
    to_right = Operation(
        "deal", "update", Side.RIGHT, "l1", Address("r1", "above r1"),
        {"name": Step("new", "moved in propstreet")}, why="merge",
    )  # fmt: skip
    assert sorted(found.operations, key=lambda op: op.side) == [to_left, to_right]
    assert (found.state, found.reason) == (LinkState.IN_STEP, "")
    assert (found.merged.to_left, found.merged.to_right) == (to_left.steps, to_right.steps)


def test_a_link_tells_what_keeps_its_sides_apart() -> None:
    """A held field before a lock in the way, a lock in the way before a closed record that nothing waits for."""

    def ends(left: Mapping[str, Value], right: Mapping[str, Value], **facts: object) -> tuple[Sighted, Sighted]:
        was: dict[str, Value] = {"name": "was", "tags": None}
        return sighted("l1", {**was, **left}, was, **facts), sighted("r1", {**was, **right}, was, modified_at=LATE)

    hold = KindRules(default=Policy(conflict=OnConflict.HOLD))
    lock = {"*": "closed", "tags": "calculated"}
    news: dict[str, Value] = {"tags": frozenset("x")}
    for left, right, locked, wanted in (
        ({"name": "l"}, {"name": "r"} | news, lock, (LinkState.CONFLICT, "changed on both sides")),
        ({}, {"name": "r"} | news, lock, (LinkState.EXCLUDED, "calculated; closed")),
        ({}, {}, lock, (LinkState.EXCLUDED, "closed")),
        ({}, {}, {"tags": "calculated"}, (LinkState.IN_STEP, "")),
    ):
        found = decide("deal", *ends(left, right, locked=locked), OPEN, hold)
        assert (found.state, found.reason) == wanted
    one, other = ends({}, {}, locked=lock)
    assert decide("deal", other, one, OPEN, hold).reason == "closed"


def test_a_persons_answer_settles_a_held_field() -> None:
    """Answers go by field; another field's answer settles nothing."""
    was: dict[str, Value] = {"name": "was"}
    left, right = sighted("l1", {"name": "l"}, was), sighted("r1", {"name": "r"}, was)
    rules = KindRules(policies={"name": Policy(conflict=OnConflict.HOLD)})
    assert decide("deal", left, right, OPEN, rules, settled={"tags": Side.LEFT}).operations == ()
    (settled,) = decide("deal", left, right, OPEN, rules, settled={"name": Side.RIGHT}).operations
    assert (settled.side, settled.steps["name"].value) == (Side.LEFT, "r")


def test_a_field_follows_its_own_policy_and_else_that_of_its_kind() -> None:
    """The tenant's word on one field stands above the one on all."""
    was: dict[str, Value] = {"name": "was"}
    left, right = sighted("l1", {"name": "l"}, was), sighted("r1", {"name": "r"}, was)
    to_crm, to_propstreet = Policy(conflict=OnConflict.PROPSTREET), Policy(conflict=OnConflict.CRM)
    (own,) = decide("deal", left, right, OPEN, KindRules(policies={"name": to_crm}, default=to_propstreet)).operations
    (common,) = decide(
        "deal", left, right, OPEN, KindRules(policies={"tags": to_crm}, default=to_propstreet)
    ).operations
    assert (own.side, common.side) == (Side.RIGHT, Side.LEFT)


def test_what_one_system_cannot_write_or_show_is_asked_of_the_right_side() -> None:
    """Writability and silence are each system's own."""
    left, right = sighted("l1", {"name": "new"}, {"name": "was"}), sighted("r1", {}, {})
    none: frozenset[str] = frozenset()
    shut = Fields(TYPES, ALL, none, ALL, ALL)
    mute = Fields(TYPES, ALL, ALL, ALL, ALL, none, ALL)
    assert decide("deal", left, right, OPEN, KindRules()).operations == ()
    told = sighted("r1", {"name": "was"}, {"name": "was"})
    # Only one side can be given anything, so that the other one's word is what holds.
    assert [op.side for op in decide("deal", left, told, shut, KindRules()).operations] == [Side.LEFT]
    assert [op.side for op in decide("deal", left, told, OPEN, KindRules()).operations] == [Side.RIGHT]
    assert [op.side for op in decide("deal", left, right, mute, KindRules()).operations] == [Side.RIGHT]
    mute = Fields(TYPES, ALL, ALL, ALL, ALL, ALL, none)
    assert decide("deal", left, right, mute, KindRules()).operations == ()
    assert [op.side for op in decide("deal", right, left, mute, KindRules()).operations] == [Side.LEFT]


def test_two_peoples_records_met_by_an_additional_address_keep_their_first_ones() -> None:
    """At a first meeting one side's e-mail among the other's additional ones is no conflict, from either side."""
    types_ = {"email": FieldType.TEXT, "other_emails": FieldType.SET}
    all_ = frozenset(types_)
    fields = Fields(types_, all_, frozenset({"email"}), all_, all_)

    def one(base: dict[str, Value]) -> Sighted:
        return sighted("1", {"email": "a@x.se", "other_emails": None}, base)

    def other(base: dict[str, Value]) -> Sighted:
        return sighted("2", {"email": "b@x.se", "other_emails": frozenset({"a@x.se"})}, base)

    def writes(left: Sighted, right: Sighted) -> set[str]:
        return {name for op in decide("contact", left, right, fields, KindRules()).operations for name in op.steps}

    assert "email" not in writes(one({}), other({}))
    assert "email" not in writes(other({}), one({}))
    assert "email" in writes(one({}), other({"email": None}))
    assert "email" in writes(one({"email": None}), other({}))
    stranger = sighted("3", {"email": "c@x.se", "other_emails": None}, {})
    assert "email" in writes(one({}), stranger)
    assert "name" in {
        name
        for op in decide(
            "deal", sighted("1", {"name": "l"}, {}), sighted("2", {"name": None}, {}), OPEN, KindRules()
        ).operations
        for name in op.steps
    }


def test_a_record_outside_the_tenants_filter_is_left_alone() -> None:
    """The filter is the CRM's; it asks native fields."""
    rules = KindRules(scope=When({"pipeline": ("real-estate",)}))
    left = sighted("l1", {"name": "new"}, {"name": "was"})
    inside = sighted("r1", {"name": "was"}, native={"pipeline": "real-estate"})
    outside = sighted("r1", {"name": "was"}, native={"pipeline": "cars"})
    assert decide("deal", left, inside, OPEN, rules).operations
    assert decide("deal", left, outside, OPEN, rules) == Decision(
        state=LinkState.EXCLUDED, reason="outside the tenant's filter"
    )


@pytest.mark.parametrize(
    ("native", "is_admitted"),
    [
        ({"pipeline": "1"}, True),
        ({"pipeline": "9", "pipeline:label": "Real estate"}, True),
        ({"pipeline": "9", "pipeline:label": "Cars"}, False),
        ({"pipeline": "9"}, False),
        ({"pipeline": None}, False),
        ({}, True),
    ],
)
def test_a_filter_admits_by_value_or_label_and_shuts_nobody_out_for_what_is_not_told(
    native: dict[str, str | None], is_admitted: bool
) -> None:
    """Every field that the filter names must fit."""
    record = Record("deal", "1", {}, native=native)
    assert When({"pipeline": ("1", "Real estate")}).admits(record) is is_admitted
    assert not When({"pipeline": ("1", "Real estate"), "owner": ("me",)}).admits(
        replace(record, native={**native, "owner": "you"})
    )
    nobody = When({"owner": ("", "me")})
    assert nobody.admits(replace(record, native={"owner": None}))
    assert not nobody.admits(replace(record, native={"owner": "you"}))
    assert not nobody.admits(replace(record, native={"owner": "you", "owner:label": "You"}))
    assert When().admits(record)


@pytest.mark.parametrize(
    ("left_refs", "base_refs", "right_refs", "retired"),
    [
        ("c1", "c1", "c1", None),
        ("c2", "c1", "c1", Side.RIGHT),
        ("c1", "c1", "c2", Side.LEFT),
        ("c2", "c1", "c3", Side.RIGHT),
    ],
)
def test_the_side_that_left_its_references_keeps_its_record_and_the_other_one_retires(
    left_refs: str, base_refs: str, right_refs: str, retired: Side | None
) -> None:
    """A relation stands for two records; where the sides name others, one of its two records stands for nothing."""
    left = Sighted(Record("employment", "l", {}, refs={"contact": left_refs}), {}, ref_key({"contact": base_refs}))
    right = Sighted(Record("employment", "r", {}, refs={"contact": "crm's own"}), {})
    found = decide("employment", left, right, OPEN, KindRules(), right_refs={"contact": right_refs})
    assert (found.retire, found.reason) == (retired, "its references changed" if retired else "")
    assert decide("employment", left, right, OPEN, KindRules()) == Decision(
        state=LinkState.EXCLUDED, reason="names a record that is not linked"
    )


# --- newcomers ----------------------------------------------------------------------------


def test_a_newcomer_is_made_on_the_other_side_of_all_that_can_be_given() -> None:
    """Empty fields, fields that cannot be given and fields that are not synced stay behind."""
    record = Record("deal", "1", {"name": "x", "tags": None, "amount": Decimal(1)}, refs={"contact": "7"})
    fields = Fields(
        TYPES, frozenset(), frozenset(), frozenset({"tags", "amount"}), frozenset({"name", "amount", "tags"})
    )
    to_right = welcome(record, Side.LEFT, fields, KindRules())
    assert to_right == Welcome(
        Operation(
            "deal", "create", Side.RIGHT, "1", None, {"name": Step("x", "created")}, {"contact": "7"},
            "only on one side",
        )
    )  # fmt: skip
    to_left = welcome(record, Side.RIGHT, fields, KindRules())
    assert to_left.operation is not None
    assert (to_left.operation.side, to_left.operation.steps) == (Side.LEFT, {})


IN_LEFT, IN_RIGHT = "the tenant creates none of these in propstreet", "the tenant creates none of these in the crm"
CARS = {"pipeline": "cars"}


@pytest.mark.parametrize(
    ("side", "rules", "facts", "reason"),
    [
        (Side.LEFT, KindRules(create_in_right=False), {}, IN_RIGHT),
        (Side.RIGHT, KindRules(create_in_right=False), {}, ""),
        (Side.RIGHT, KindRules(create_in_left=None), {}, IN_LEFT),
        (Side.LEFT, KindRules(create_in_left=None), {}, ""),
        (Side.RIGHT, KindRules(create_in_left=When({"pipeline": ("homes",)})), {"native": CARS},
         "outside the tenant's rule for creating in propstreet"),
        (Side.RIGHT, KindRules(create_in_left=When({"pipeline": ("cars",)})), {"native": CARS}, ""),
        (Side.RIGHT, KindRules(scope=When({"pipeline": ("homes",)})), {"native": CARS}, "outside the tenant's filter"),
        (Side.LEFT, KindRules(scope=When({"pipeline": ("homes",)})), {"native": CARS}, ""),
        (Side.LEFT, KindRules(), {"locked": {"*": "closed"}}, "closed"),
        (Side.LEFT, KindRules(), {"locked": {"name": "calculated"}}, ""),
    ],
)  # fmt: skip
def test_a_newcomer_stays_out_for_a_reason_that_is_told(
    side: Side, rules: KindRules, facts: dict[str, object], reason: str
) -> None:
    """Each direction has its own rule; the filter is the CRM's."""
    record = replace(Record("deal", "1", {"name": "x"}), **facts)  # type: ignore[arg-type]  # by name
    found = welcome(record, side, OPEN, rules)
    assert (found.reason, found.is_waiting) == (reason, False)
    assert (found.operation is None) == bool(reason)


@pytest.mark.parametrize(
    ("refs", "unlinked", "wanted"),
    [
        ({"deal": "1", "contact": "2"}, frozenset(), None),
        ({"deal": "1", "company": "3"}, frozenset(), None),
        ({"deal": "1"}, frozenset(), ("names no company that can be read, and the other system needs one", False)),
        ({}, frozenset(), ("names no company or deal that can be read, and the other system needs one", False)),
        ({"deal": "1", "contact": "2", "company": "3"}, frozenset(),
         ("the other system cannot hold this combination of references", False)),
        ({"deal": "1", "contact": "2"}, frozenset({"deal", "contact"}), ("its contact and deal is not linked", True)),
    ],
)  # fmt: skip
def test_a_relation_is_made_where_the_other_system_can_hold_it_and_its_ends_are_linked(
    refs: dict[str, str], unlinked: frozenset[str], wanted: tuple[str, bool] | None
) -> None:
    """What only waits for its parents says so; the nearest combination that would do is the one that is named."""
    record = Record("deal_contact", "1", {"tags": None}, refs=refs)
    sets = (frozenset({"deal", "contact"}), frozenset({"deal", "company"}))
    found = welcome(record, Side.LEFT, OPEN, KindRules(), ref_sets=sets, unlinked_refs=unlinked)
    if wanted is None:
        assert found.operation is not None
        assert (found.operation.refs, found.reason) == (refs, "")
    else:
        assert (found.operation, found.reason, found.is_waiting) == (None, *wanted)
    anywhere = welcome(record, Side.LEFT, OPEN, KindRules())
    assert anywhere.operation is not None
    no_relation = replace(record, kind="deal")
    assert welcome(no_relation, Side.LEFT, OPEN, KindRules(), ref_sets=sets, unlinked_refs=unlinked).operation


# --- amounts without a currency -----------------------------------------------------------

BARE = frozenset({"amount"})
SEK, EUR, ANY = (Money(Decimal(5), currency) for currency in ("SEK", "EUR", ""))


def test_a_bare_amount_is_told_in_the_currency_it_is_taken_to_be_in() -> None:
    """In the record and in its base; other fields and other amounts stay as they are."""
    side = sighted("1", {"amount": ANY, "fee": ANY, "name": "x"}, {"amount": ANY, "fee": ANY}, locked={"fee": "theirs"})
    told = priced(side, BARE, "SEK", {"amount": SEK})
    assert told.record.values == {"amount": SEK, "fee": ANY, "name": "x"}
    assert told.base == {"amount": SEK, "fee": ANY}
    assert told.record.locked == {"fee": "theirs"}
    assert told.address == side.address


def test_an_amount_in_another_currency_is_never_written_over_a_bare_one() -> None:
    """The field is locked with the reason, beside the locks that were there."""
    side = sighted("1", {"amount": ANY}, locked={"*": "closed"})
    told = priced(side, BARE, "SEK", {"amount": EUR, "fee": EUR})
    assert told.record.locked == {"*": "closed", "amount": "amount is in another currency there than here"}
    assert priced(side, BARE, "SEK", {"amount": None}).record.locked == {"*": "closed"}
    assert priced(side, BARE, "SEK", {}).record.locked == {"*": "closed"}


def test_a_new_record_is_given_bare_amounts_only_in_its_currency() -> None:
    """Other values pass."""
    values: dict[str, Value] = {"amount": EUR, "fee": EUR, "name": "x"}
    assert payable(values, BARE, "SEK") == {"fee": EUR, "name": "x"}
    assert payable({"amount": SEK, "name": "x"}, BARE, "SEK") == {"amount": SEK, "name": "x"}
    assert payable({"amount": None}, BARE, "SEK") == {"amount": None}


# --- half-typed values --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moved", "since", "delay", "wanted"),
    [
        (-60, -60, 60, True),
        (-59, -59, 60, False),
        (-59, -599, 60, False),
        (-59, -600, 60, True),
        (-60, 0, 60, True),
        (60, -59, 60, False),
        (60, -60, 60, False),
        (61, -59, 60, False),
        (61, -60, 60, True),
        (None, -60, 60, True),
        (None, -59, 60, False),
        (0, 600, 60, False),
        (0, 601, 60, True),
        (0, 0, 0, True),
        (None, 0, 0, True),
    ],
)
def test_a_change_travels_once_it_is_quiet_or_has_waited_for_long(
    moved: int | None, since: int, delay: float, wanted: bool
) -> None:
    """By its own clock, or by when it was first seen where that clock tells nothing or is wrong."""
    at = None if moved is None else LATE + timedelta(seconds=moved)
    assert is_ripe(at, LATE + timedelta(seconds=since), LATE, delay) is wanted
