"""Every decision can be made again from what was kept of it; a person's word is about what was seen."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core.mapping import UnfitValueError, show, typed
from syncd.core.merge import BY_PERSON, Chosen, Flow, Half, OnConflict, Policy, Step, Word, merge
from syncd.core.model import FieldType, Json, Money, Record, Side, Value
from syncd.core.plan import Fields, KindRules, Operation, Sighted, decide, existence, standing
from syncd.core.why import Created, Said, again, grounds, keep, keep_word, recall, recall_word, settled_by
from tests.core.cases import cases

SEEN_AT, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
SAMPLES: dict[FieldType, list[Value]] = {
    FieldType.TEXT: ["a", "b", "c", "a "],
    FieldType.PHONE: ["+46 70 123 45 67", "070-1234567", "+46 8 11 22 33"],
    FieldType.NUMBER: [Decimal("1"), Decimal("2.5")],
    FieldType.BOOLEAN: [True, False],
    FieldType.MONEY: [Money(Decimal(100), "SEK"), Money(Decimal(100), "EUR"), Money(Decimal("5.5"), "")],
    FieldType.INSTANT: [SEEN_AT, LATER, SEEN_AT.replace(microsecond=5)],
    FieldType.DATE: [date(2026, 1, 1), date(2026, 1, 2)],
    FieldType.ENUMERATION: ["open", "closed"],
    FieldType.SET: [frozenset("x"), frozenset("xy"), frozenset("yz")],
}
TYPES = {type_.value: type_ for type_ in FieldType}


def some(type_: FieldType) -> st.SearchStrategy[Value]:
    return st.sampled_from([None, *SAMPLES[type_]])


told = st.fixed_dictionaries({}, optional={name: some(type_) for name, type_ in TYPES.items()})
names = st.frozensets(st.sampled_from(sorted(TYPES)))
halves = st.builds(Half, told, told, st.sampled_from([None, SEEN_AT, LATER]), st.just({}), names, names)
policies = st.fixed_dictionaries(
    {name: st.builds(Policy, st.sampled_from(Flow), st.sampled_from(OnConflict)) for name in TYPES}
)
answers = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(st.sampled_from(Side), st.builds(Chosen, some(type_)))
        for name, type_ in TYPES.items()
        if type_ is not FieldType.SET
    },
)


@cases(500)
@given(halves, halves, policies, answers)
def test_every_step_is_decided_again_from_what_is_kept_of_it(
    left: Half, right: Half, table: dict[str, Policy], settled: dict[str, Side | Chosen]
) -> None:
    """Through JSON and back it is all that was decided on, and the same function makes the same step of it."""
    merged = merge(TYPES, left, right, table, settled)
    for side in Side:
        steps = merged.to(side)
        kept_all = grounds(Operation("contact", "update", side, "1", None, steps, why="merge")) if steps else {}
        assert kept_all.keys() == steps.keys()
        for name, kept in json.loads(json.dumps(kept_all)).items():
            assert recall(name, kept) == steps[name].because
            assert again(recall(name, kept), side) == steps[name]
            assert keep(recall(name, kept)) == kept


def test_a_new_record_has_its_source_and_a_deletion_its_reason_for_a_ground() -> None:
    """What no merge decided says what it was decided on all the same."""
    price = Step(Money(Decimal(100), "SEK"), "created")
    create = Operation("deal", "create", Side.RIGHT, "1", None, {"amount": price})
    ground = recall("amount", grounds(create)["amount"])
    assert ground == Created(price.value)
    assert again(ground, Side.RIGHT) == price
    delete = Operation("deal", "delete", Side.RIGHT, "1", None, why="deleted on the other side")
    gone = recall("", grounds(delete)[""])
    assert (gone, again(gone, Side.RIGHT)) == (Said("deleted on the other side"), None)


def test_a_value_that_an_undo_put_back_has_its_run_for_a_ground() -> None:
    """No merge decided it, and nobody's new record did."""
    back = Operation("deal", "update", Side.RIGHT, "1", None, {"name": Step("was", "undo")}, why="undo of run r1")
    ground = recall("name", grounds(back)["name"])
    assert (ground, again(ground, Side.RIGHT)) == (Said("undo of run r1"), None)


def test_a_conflict_is_settled_again_by_the_same_clock_and_the_same_person() -> None:
    """What its record or its person said is kept with it: the policy alone would have settled it otherwise."""
    left = Half({"name": "l"}, {"name": "was"}, SEEN_AT, writable=frozenset({"name"}))
    right = Half({"name": "r"}, {"name": "was"}, LATER, writable=frozenset({"name"}))
    for rule, settled, side_, step in (
        (OnConflict.NEWEST, {}, Side.LEFT, Step("r", "newest")),
        (OnConflict.NEWEST, {"name": Side.LEFT}, Side.RIGHT, Step("l", BY_PERSON)),
        (OnConflict.HOLD, {"name": Side.RIGHT}, Side.LEFT, Step("r", BY_PERSON)),
        (OnConflict.HOLD, {"name": Chosen("third")}, Side.LEFT, Step("third", BY_PERSON)),
    ):
        table = {"name": Policy(conflict=rule)}
        steps = merge({"name": FieldType.TEXT}, left, right, table, settled).to(side_)
        kept = grounds(Operation("contact", "update", side_, "1", None, steps))
        assert steps["name"] == step
        assert again(recall("name", kept["name"]), side_) == step


def test_a_field_is_merged_again_as_what_it_is() -> None:
    """A set member by member: its type is kept as well."""
    own, base = frozenset({"f"}), {"f": frozenset("x")}
    left, right = Half({"f": frozenset("xy")}, base, writable=own), Half({"f": frozenset("xz")}, base, writable=own)
    steps = merge({"f": FieldType.SET}, left, right, {}).to_right
    kept = grounds(Operation("contact", "update", Side.RIGHT, "1", None, steps))
    assert again(recall("f", kept["f"]), Side.RIGHT) == steps["f"] == Step(frozenset("xyz"), "set merged")


def test_what_is_given_to_a_side_that_never_shows_it_is_given_again() -> None:
    """It was no stranger to the field, though it told nothing of it; that is kept with the decision."""
    own = frozenset({"name"})
    left = Half({"name": "l"}, {"name": "was"}, writable=own)
    blind = Half({}, {}, writable=own, unreadable=own)
    steps = merge({"name": FieldType.TEXT}, left, blind, {}).to_right
    kept = grounds(Operation("contact", "update", Side.RIGHT, "1", None, steps))
    assert again(recall("name", kept["name"]), Side.RIGHT) == steps["name"] == Step("l", "moved in propstreet")


def test_what_is_no_ground_is_refused() -> None:
    """A kept ground that says nothing known is named by its field."""
    with pytest.raises(UnfitValueError, match="name: not a kept ground"):
        recall("name", {"kind": "x"})


# --- a person's word ----------------------------------------------------------------------

FIELDS = Fields({"name": FieldType.TEXT}, *(frozenset({"name"}),) * 4)
HOLD = KindRules(default=Policy(Flow.BOTH, OnConflict.HOLD))


def side(value: Value, base: Value = "base", *, is_deleted: bool = False) -> Sighted:
    return Sighted(Record("deal", "1", {"name": value}, is_deleted=is_deleted), {"name": base})


def test_a_third_value_goes_to_both_sides() -> None:
    """Neither wins: both are given what the person chose, by that person's word."""
    decision = decide("deal", side("left"), side("right"), FIELDS, HOLD, settled={"name": Chosen("third")})
    assert {op.side: op.steps for op in decision.operations} == {
        each: {"name": Step("third", BY_PERSON)} for each in Side
    }
    assert not decision.merged.held


def test_a_third_value_that_reached_one_side_goes_on_to_the_other() -> None:
    """One of the two writes may fail: what the first side holds by now is not news to the second."""
    for here, there, to in (("third", "right", Side.RIGHT), ("left", "third", Side.LEFT)):
        done = side(here, base=here if to is Side.RIGHT else "base")
        open_ = side(there, base=there if to is Side.LEFT else "base")
        decision = decide("deal", done, open_, FIELDS, HOLD, settled={"name": Chosen("third")})
        assert [(op.side, op.steps["name"].value) for op in decision.operations] == [(to, "third")]


def test_a_third_value_goes_only_to_a_side_that_moved_and_does_not_hold_it() -> None:
    """By the field's notion of equal: what a system spells anew is neither an edit nor another value."""
    words: dict[str, Side | Chosen] = {"name": Chosen("the third")}
    for done in (side("the third"), side("the  third"), side("an  old one", base="an old one")):
        for ends, to in (((done, side("other")), Side.RIGHT), ((side("other"), done), Side.LEFT)):
            found = decide("deal", *ends, FIELDS, HOLD, settled=words).operations
            assert [(op.side, op.steps["name"].value) for op in found] == [(to, "the third")]


def test_a_third_value_that_both_hold_is_done() -> None:
    """Nothing is written that is there already."""
    decision = decide("deal", side("third"), side("third"), FIELDS, HOLD, settled={"name": Chosen("third")})
    assert not decision.operations


@pytest.mark.parametrize("answer", [Side.LEFT, Side.RIGHT, Chosen("third"), Chosen(None)])
def test_a_word_stands_while_both_values_are_there_that_it_was_given_to(answer: Side | Chosen) -> None:
    """Once a side was edited after the person looked, the word speaks of nothing that is there."""
    words = {"name": Word(answer, ("left", "right"))}
    assert standing(words, side("left"), side("right"), FIELDS) == {"name": answer}
    assert standing(words, side("newer"), side("right"), FIELDS) == {}
    assert standing(words, side("left"), side("newer"), FIELDS) == {}


def test_a_third_value_does_not_unsay_itself() -> None:
    """A side that holds the chosen value by now was moved by the word, not by somebody else."""
    words = {"name": Word(Chosen("third"), ("left", "right"))}
    assert standing(words, side("left"), side("third"), FIELDS) == {"name": Chosen("third")}
    assert standing({"name": Word(Side.LEFT)}, side("any"), side("thing"), FIELDS) == {"name": Side.LEFT}


def test_a_word_on_a_deletion_ends_with_an_edit_of_the_survivor() -> None:
    """Who said that it may go did not see what was written into it afterwards."""
    gone, alive = side("base", is_deleted=True), side("base")
    seen = (existence(gone, Side.LEFT, FIELDS), existence(alive, Side.RIGHT, FIELDS))
    assert seen == ("deleted", "exists")
    words = {"": Word(Side.LEFT, seen)}
    assert standing(words, gone, alive, FIELDS) == {"": Side.LEFT}
    assert existence(side("edited"), Side.RIGHT, FIELDS) == "exists, edited: name"
    assert standing(words, gone, side("edited"), FIELDS) == {}
    assert standing(words, replace(gone, record=alive.record), alive, FIELDS) == {}


# --- what a person types ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "field", "raw", "value"),
    [
        ("deal", "name", "  Kv. Svalan 4 ", "Kv. Svalan 4"),
        ("deal", "amount", "1200000 SEK", Money(Decimal(1_200_000), "SEK")),
        ("deal", "amount", "1 200 000.50 eur", Money(Decimal("1200000.5"), "EUR")),
        ("deal", "property_count", "12", Decimal(12)),
        ("deal", "exclusivity", "non_exclusive", "non_exclusive"),
        ("deal", "published_at", "2026-11-20T10:00:00+01:00", datetime(2026, 11, 20, 9, tzinfo=UTC)),
        ("employment", "is_primary", "True", True),
        ("contact", "email", "Anna@Nordhaus.SE", "anna@nordhaus.se"),
        ("contact", "phone", "070-123 45 67", "070-123 45 67"),
        ("contact", "tags", "vip, golf", frozenset({"vip", "golf"})),
        ("company", "domain", "https://www.nordhaus.se/om", "nordhaus.se"),
        ("company", "country", "se", "SE"),
        ("company", "country", " SE ", "SE"),
    ],
)
def test_what_a_person_types_becomes_a_canonical_value(kind: str, field: str, raw: str, value: Value) -> None:
    """The same value as a connector reads from a system, so that it compares equal when it comes back."""
    assert typed(kind, field, raw) == value


@pytest.mark.parametrize(
    ("kind", "field", "raw", "told"),
    [
        ("deal", "amount", "1200000", "amount takes an amount and its currency, like 1200000 SEK"),
        ("deal", "amount", "1,2 SEK", "amount takes an amount and its currency, like 1200000 SEK"),
        ("deal", "exclusivity", "exklusiv", "exclusivity takes one of: exclusive, non_exclusive, other"),
        ("deal", "property_count", "tolv", "property_count: expected a number"),
        ("deal", "published_at", "igår", "published_at: expected an instant"),
        ("employment", "is_primary", "ja", "is_primary: expected true or false"),
        ("company", "domain", "http://[x", "domain: expected a domain"),
        ("contact", "tags", "x" * 70_000, "tags: longer than 65536 characters"),
        ("company", "country", "Sverige", "country takes a country's two letters, like SE"),
    ],
)
def test_what_a_field_cannot_take_is_refused_with_what_it_takes(kind: str, field: str, raw: str, told: str) -> None:
    """The message names the field and what it allows, never what was typed."""
    with pytest.raises(UnfitValueError) as refused:
        typed(kind, field, raw)
    assert str(refused.value) == told
    assert raw not in told or raw == "1200000"


def test_a_shown_value_can_be_typed_again() -> None:
    """What syncd shows of a value is a way to write it."""
    for kind, field, value in (("deal", "amount", Money(Decimal("5.5"), "SEK")), ("deal", "published_at", SEEN_AT)):
        assert typed(kind, field, str(show(value))) == value


@pytest.mark.parametrize("answer", [Side.LEFT, Chosen(Money(Decimal(1), "SEK")), Chosen(None)])
def test_a_word_is_kept_with_what_was_shown(answer: Side | Chosen) -> None:
    """What is kept in the database is the answer and the two values that it was given to."""
    for word in (Word(answer, ("1 SEK", None)), Word(answer)):
        assert recall_word(json.loads(json.dumps(keep_word(word)))) == word


def test_a_bare_side_is_a_word_too() -> None:
    """As answers were kept before anything was kept of what was shown."""
    assert recall_word("right") == Word(Side.RIGHT)


def test_the_person_behind_a_step_is_told_from_its_ground() -> None:
    """A ground that no person had a part in names none, and neither does the lack of one."""
    left, right = (
        Half({"name": "l"}, {"name": "was"}, None, {}, NAMED),
        Half({"name": "r"}, {"name": "was"}, None, {}, NAMED),
    )
    for answer in (Side.LEFT, Chosen("third"), None):
        settled = {"name": answer} if answer is not None else {}
        merged = merge({"name": FieldType.TEXT}, left, right, {}, settled)
        kept = grounds(Operation("contact", "update", Side.RIGHT, "1", None, merged.to_right or merged.to_left))
        assert settled_by("name", kept["name"]) == answer
    assert settled_by("name", {"why": "deleted on the other side"}) is None
    assert settled_by("name", None) is None


NAMED = frozenset({"name"})


def test_an_answer_stands_while_both_sides_are_as_they_were_shown_to_it() -> None:
    """A value spelled anew by its own system is the chosen one all the same, and is no edit of a record."""
    words = {"name": Word(Chosen("a b"), ("left", "right"))}
    assert standing(words, side("a  b"), side("right"), FIELDS) == {"name": Chosen("a b")}
    assert standing(words, side("left"), side("a  b"), FIELDS) == {"name": Chosen("a b")}
    assert standing(words, side("left"), side("another"), FIELDS) == {}
    assert existence(side("a  b", base="a b"), Side.LEFT, FIELDS) == "exists"
    both = Fields({"name": FieldType.TEXT, "city": FieldType.TEXT}, *(frozenset({"name", "city"}),) * 4)
    edited = Sighted(Record("deal", "1", {"name": "x", "city": "y"}), {})
    assert existence(edited, Side.LEFT, both) == "exists, edited: city, name"


def test_what_was_kept_and_cannot_be_read_is_told_by_its_field() -> None:
    """Whatever part of a ground it is."""
    half: dict[str, Json] = {"writable": True}
    ground: dict[str, Json] = {"type": "text", "flow": "both", "conflict": "newest", "left": half, "right": half}
    broken: list[dict[str, Json]] = [
        {"created": 7},
        {**ground, "left": {**half, "value": 7}},
        {**ground, "right": {**half, "base": 7}},
    ]
    for kept in broken:
        with pytest.raises(UnfitValueError, match=r"^name: not a stored value$"):
            recall("name", kept)
    with pytest.raises(UnfitValueError, match=r"^name: not a kept ground$"):
        settled_by("name", {"kind": "x"})
    with pytest.raises(UnfitValueError, match=r"^a person's value: not a stored value$"):
        recall("name", {**ground, "person": {"chosen": 7}})
