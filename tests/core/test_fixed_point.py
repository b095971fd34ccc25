"""Plan, apply, plan again: from any three states of a record under any rules, quiet within three rounds.

Two systems that each hold one record are played against the planner. What a system does with a write
is all that is told here; how a base moves is the core's own word, the one that the engine uses too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core.base import Halves, Unmoved, agreed, confirmed, founded
from syncd.core.mapping import same
from syncd.core.merge import BY_PERSON, Answer, Chosen, Flow, Half, OnConflict, Policy, Step
from syncd.core.model import FieldType, LinkState, Money, Record, Side, Value, elements
from syncd.core.plan import Decision, Fields, KindRules, OnDelete, Operation, Sighted, decide
from tests.core.cases import LATE, POOLS, answers, cases, moments, policies, values_of

pytestmark = pytest.mark.long

NOW = LATE.replace(day=9)
ROUNDS = 3


@dataclass
class System:
    """One system and its one record; how it stores what it is given, and how much of it it tells."""

    holds: dict[str, Value]
    base: dict[str, Value]
    modified_at: datetime | None = None
    hides: frozenset[str] = frozenset()
    locked: Mapping[str, str] = field(default_factory=dict)
    writable: frozenset[str] = frozenset()
    creatable: frozenset[str] = frozenset()
    manner: str = "keeps"
    is_deleted: bool = False
    merged_into: str | None = None
    answers_in_part: bool = False
    is_sighted: bool = True
    defaults: Mapping[str, Value] = field(default_factory=dict)

    def shown(self) -> dict[str, Value]:
        return {name: value for name, value in self.holds.items() if name not in self.hides}

    def record(self) -> Record:
        """As the store knows it: from its sighting, or, once the base tells it all, from the base."""
        return Record(
            "deal", "1", self.shown() if self.is_sighted and not self.is_deleted else dict(self.base),
            modified_at=self.modified_at, is_deleted=self.is_deleted, merged_into=self.merged_into, locked=self.locked,
        )  # fmt: skip

    def settle(self, types: Mapping[str, FieldType]) -> None:
        """A sighting stays only while it says something that the base does not."""
        self.is_sighted = any(not same(types[name], value, self.base.get(name)) for name, value in self.shown().items())

    def take(self, types: Mapping[str, FieldType], given_: Mapping[str, Value]) -> dict[str, Value]:
        """Store what was given, in its own manner; the answer is what it holds then."""
        for name, value in given_.items():
            if self.manner != "ignores":
                self.holds[name] = rewritten(types[name], value) if self.manner == "rewrites" else value
        self.modified_at = NOW
        shown = self.shown()
        return {name: value for name, value in shown.items() if name in given_} if self.answers_in_part else shown


def rewritten(type_: FieldType, value: Value) -> Value:
    """What vendors are known to do with a value that they are given."""
    match value:
        case str() if type_ is FieldType.PHONE:
            return "+46" + "".join(ch for ch in value if ch.isdigit()).removeprefix("46").lstrip("0")
        case str() if type_ is FieldType.TEXT:
            return value[:6].strip()
        case datetime():
            return value.replace(microsecond=0)
        case frozenset():
            return frozenset(each.upper() for each in value)
        case Money():
            return replace(value, amount=value.amount.quantize(value.amount))
        case _:
            return value


@dataclass
class Play:
    """A link between two systems under a tenant's rules, and every plan that was made for it."""

    types: Mapping[str, FieldType]
    systems: Mapping[Side, System]
    rules: KindRules
    settled: dict[str, Answer] = field(default_factory=dict)
    plans: list[Decision] = field(default_factory=list)
    before: list[Mapping[Side, Mapping[str, Value]]] = field(default_factory=list)
    bases: list[Mapping[Side, Mapping[str, Value]]] = field(default_factory=list)
    is_over: bool = False

    @property
    def fields(self) -> Fields:
        left, right = self.systems[Side.LEFT], self.systems[Side.RIGHT]
        # Only what is hidden and writable can be known to be unreadable.
        return Fields(
            self.types, left.writable, right.writable, left.creatable, right.creatable,
            left.hides & left.writable, right.hides & right.writable,
        )  # fmt: skip

    def round(self, refuses: frozenset[Side] = frozenset()) -> Decision:
        """Plan, and carry out what no side ``refuses``."""
        left, right = (Sighted(s.record(), dict(s.base)) for s in self.systems.values())
        decision = decide("deal", left, right, self.fields, self.rules, settled=self.settled)
        self.plans.append(decision)
        self.before.append({side: dict(self.systems[side].holds) for side in Side})
        self.bases.append({side: dict(self.systems[side].base) for side in Side})
        self.is_over |= decision.is_over
        if not (left.record.is_deleted or right.record.is_deleted):
            on_left, on_right = (Half(each.record.values, each.base) for each in (left, right))
            self._move(agreed(self.types, on_left, on_right, decision.merged))
            open_ = {*decision.merged.to_left, *decision.merged.to_right, *decision.merged.blocked}
            self.settled = {name: answer for name, answer in self.settled.items() if name in open_}
        seen = {Side.LEFT: left.record, Side.RIGHT: right.record}
        # As the engine does: the crm first.
        for operation in sorted(decision.operations, key=lambda op: op.side, reverse=True):
            if operation.side not in refuses:
                self._apply(operation, seen)
        return decision

    def _apply(self, operation: Operation, seen: Mapping[Side, Record]) -> None:
        to, steps = operation.side, operation.steps
        system, source = self.systems[to], seen[to.other]
        said = {name: step.value for name, step in steps.items()}
        match operation.verb:
            case "update":
                returned = system.take(self.types, said)
                bases = dict(self.systems[to.other].base), dict(system.base)
                halves = confirmed(self.types, to, steps, source.values, bases, returned)
                self._confirm(to, steps, halves)
            case "create":
                system.is_deleted, system.merged_into, system.locked = False, None, {}
                system.holds = dict.fromkeys(self.types) | dict(system.defaults)
                returned = system.take(self.types, said)
                for each in self.systems.values():
                    each.base = {}
                self._move(founded(self.types, to, steps, source.values, returned, {}))
                self.settled = {}
            case "delete":
                system.is_deleted, self.is_over = True, True

    def _confirm(self, to: Side, steps: Mapping[str, Step], halves: Halves) -> None:
        """A person's third value is a write to each side: it moves that side's half only, until both hold it."""
        for name, (left, right) in halves.items():
            is_third = steps[name].rule == BY_PERSON and isinstance(self.settled.get(name), Chosen)
            other = self.systems[to.other]
            kept = other.base.get(name), name in other.base
            self._move({name: (left, right)})
            if is_third and kept[1]:
                other.base[name] = kept[0]
            elif is_third:
                del other.base[name]
            if not is_third or same(self.types[name], other.record().values.get(name), steps[name].value):
                self.settled.pop(name, None)
            for each in self.systems.values():
                each.settle(self.types)

    def _move(self, halves: Halves) -> None:
        for name, (left, right) in halves.items():
            for side, half in ((Side.LEFT, left), (Side.RIGHT, right)):
                if not isinstance(half, Unmoved):
                    self.systems[side].base[name] = half
        for each in self.systems.values():
            each.settle(self.types)


some_types = st.lists(st.sampled_from(FieldType), min_size=1, max_size=2, unique=True).map(
    lambda found: {str(type_): type_ for type_ in found}
)


@st.composite
def systems(draw: st.DrawFn, types: Mapping[str, FieldType]) -> System:
    """A system in any state: silent, read only, locked, rewriting, forgetful."""
    some = st.one_of(st.just(frozenset[str]()), st.sets(st.sampled_from(sorted(types))).map(frozenset))
    locks = st.sampled_from([{}, {}, {}, {"*": "closed"}, {sorted(types)[0]: "calculated"}])
    return System(
        holds=draw(values_of(types, is_whole=True)),
        base=draw(values_of(types)),
        modified_at=draw(moments),
        hides=draw(some),
        locked=draw(locks),
        writable=frozenset(types) - draw(some),
        creatable=frozenset(types) - draw(some),
        manner=draw(st.sampled_from(["keeps", "rewrites", "ignores"])),
        answers_in_part=draw(st.booleans()),
        defaults=draw(st.sampled_from([{}, {name: POOLS[type_][0] for name, type_ in types.items()}])),
    )


@st.composite
def plays(draw: st.DrawFn) -> Play:
    """Any base, left and right; any policy, rules and answers; either record deleted, or merged away."""
    types = draw(some_types)
    left, right = draw(systems(types)), draw(systems(types))
    for each in draw(st.sampled_from([(), (), (left,), (right,), (left, right)])):
        each.is_deleted, each.merged_into = True, draw(st.sampled_from([None, None, "9"]))
    on_delete = st.sampled_from(OnDelete)
    rules = KindRules(
        deletes_to_left=draw(on_delete),
        deletes_to_right=draw(on_delete),
        policies={name: draw(policies) for name in types},
    )
    settled: dict[str, Answer] = {name: side for name in (*types, "") if (side := draw(answers)) is not None}
    for name, type_ in types.items():
        if type_ is not FieldType.SET and draw(st.integers(0, 3)) == 0:
            settled[name] = Chosen(POOLS[type_][-1])
    return Play(types, {Side.LEFT: left, Side.RIGHT: right}, rules, settled)


@st.composite
def open_plays(draw: st.DrawFn, types: Mapping[str, FieldType], rule: OnConflict) -> Play:
    """Two systems that tell and take everything as it is, and were in step once or have never met."""
    base = draw(st.one_of(st.just({}), values_of(types, is_whole=True)))
    left, right = (
        System(draw(values_of(types, is_whole=True)), dict(base), draw(moments), writable=frozenset(types))
        for _ in Side
    )
    return Play(types, {Side.LEFT: left, Side.RIGHT: right}, KindRules(default=Policy(conflict=rule)))


@cases(2000)
@given(plays(), st.sets(st.sampled_from(Side)).map(frozenset))
def test_planned_and_applied_any_record_is_quiet_within_three_rounds(play: Play, refused: frozenset[Side]) -> None:
    """A first round may be refused by either side; then no third plan holds an operation, and the state stays."""
    play.round(refused)
    for _ in range(ROUNDS):
        if play.is_over:
            return
        play.round()
    assert not play.plans[-1].operations
    again = play.round()
    assert (again.operations, again.state) == ((), play.plans[-2].state)


@cases(800)
@given(plays())
def test_no_write_gives_what_is_there_or_goes_where_it_must_not(play: Play) -> None:
    """Nothing equal, nothing locked, nothing that is not writable, nothing that the policy turns away."""
    for _ in range(ROUNDS):
        if play.is_over:
            return
        locked = {side: play.systems[side].locked for side in Side}
        for operation in play.round().operations:
            there, held = play.systems[operation.side], play.before[-1][operation.side]
            if operation.verb == "create":
                assert operation.steps.keys() <= there.creatable
                assert None not in [step.value for step in operation.steps.values()]
                continue
            assert "*" not in locked[operation.side]
            for name, step in operation.steps.items():
                assert name not in locked[operation.side]
                assert name in there.writable
                # What is hidden is believed to be what it was when last in step.
                known = play.bases[-1][operation.side].get(name) if name in there.hides else held[name]
                assert not same(play.types[name], step.value, known)
                assert play.rules.policies[name].flow not in _SHUT[operation.side]


_SHUT = {Side.LEFT: (Flow.OFF, Flow.TO_CRM), Side.RIGHT: (Flow.OFF, Flow.TO_PROPSTREET)}


@cases(600)
@given(st.data(), some_types, st.sampled_from([OnConflict.NEWEST, OnConflict.PROPSTREET, OnConflict.CRM]))
def test_in_the_end_both_sides_say_the_same(data: st.DataObject, types: dict[str, FieldType], rule: OnConflict) -> None:
    """Convergence: where all is told and taken, no field is left apart, and none has a value nobody gave."""
    play = data.draw(open_plays(types, rule))
    given_ = {name: [s.holds[name] for s in play.systems.values()] for name in types}
    play.round(data.draw(st.sampled_from([frozenset(), frozenset({Side.LEFT}), frozenset({Side.RIGHT})])))
    for _ in range(ROUNDS):
        last = play.round()
    assert last.state is LinkState.IN_STEP
    left, right = (play.systems[side].holds for side in Side)
    for name, type_ in types.items():
        assert same(type_, left[name], right[name])
        assert type_ is FieldType.SET or left[name] in given_[name]


@cases(600)
@given(open_plays({"tags": FieldType.SET}, OnConflict.HOLD), st.lists(st.sets(st.sampled_from(Side)), max_size=3))
def test_each_element_of_a_set_goes_where_it_was_moved_to_whatever_write_fails(
    play: Play, refusals: list[set[Side]]
) -> None:
    """Element by element the side that moved it wins, also if one side was given its part and the other was not."""
    left, right = (elements(play.systems[side].holds["tags"]) for side in Side)
    base = elements(play.systems[Side.LEFT].base.get("tags"))
    wanted = frozenset(each for each in "xyz" if (each in (left if (each in left) != (each in base) else right)))
    for refused in refusals:
        play.round(frozenset(refused))
    for _ in range(ROUNDS):
        play.round()
    assert [elements(play.systems[side].holds["tags"]) for side in Side] == [wanted, wanted]


def test_what_a_locked_side_could_not_take_of_a_set_arrives_once_the_lock_goes() -> None:
    """The lock stops one half of a merge; the other half does not make it forgotten."""
    left = System({"tags": frozenset("a")}, {"tags": None}, locked={"*": "closed"}, writable=frozenset({"tags"}))
    right = System({"tags": frozenset("b")}, {"tags": None}, writable=frozenset({"tags"}))
    play = Play({"tags": FieldType.SET}, {Side.LEFT: left, Side.RIGHT: right}, KindRules())
    for _ in range(ROUNDS):
        assert play.round().state is LinkState.EXCLUDED
    left.locked = {}
    for _ in range(ROUNDS):
        play.round()
    assert left.holds == right.holds == {"tags": frozenset("ab")}


def test_a_third_value_that_one_side_cuts_is_not_given_to_it_again_while_the_other_is_locked() -> None:
    """It was given; the locked side is given it, whole, once the lock goes."""
    was: dict[str, Value] = {"name": "was"}
    left = System({"name": "l"}, dict(was), locked={"*": "closed"}, writable=frozenset({"name"}))
    right = System({"name": "r"}, dict(was), writable=frozenset({"name"}), manner="rewrites")
    play = Play({"name": FieldType.TEXT}, {Side.LEFT: left, Side.RIGHT: right}, KindRules())
    play.settled = {"name": Chosen("a third value")}
    assert [len(play.round().operations) for _ in range(ROUNDS)] == [1, 0, 0]
    left.locked = {}
    assert [len(play.round().operations) for _ in range(ROUNDS)] == [1, 0, 0]
    assert (left.holds["name"], right.holds["name"]) == ("a third value", "a thir")
