"""Three-way merge of one linked record, then resolve by the tenant's policy.

``merge`` asks of each field, on each side, whether it moved since that side's half of the base.
``resolve`` turns what moved into the writes each side needs; only it knows policies. Both are
symmetric: swapping the sides swaps the answer.

A field that a side's record leaves out is something that side says nothing about: it counts as
unmoved and as holding whatever its half of the base holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, TypeAlias

from syncd.core.mapping import members_of, same
from syncd.core.model import FieldType, Hashed, Json, Side, Value, Values, elements

#: The rule that stands behind a field when a person settled its conflict.
BY_PERSON: Final = "a person's word"
#: Why a field is blocked whose value would have to be written and was erased.
ERASED: Final = "its value was erased here and has to be read again"


class Flow(StrEnum):
    """Where a field's value may travel."""

    BOTH = "both"
    TO_CRM = "to_crm"
    TO_PROPSTREET = "to_propstreet"
    IF_EMPTY = "if_empty"
    OFF = "off"


class OnConflict(StrEnum):
    """Who wins when both sides moved one field apart."""

    NEWEST = "newest"
    PROPSTREET = "propstreet"
    CRM = "crm"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Policy:
    """How one field is synced."""

    flow: Flow = Flow.BOTH
    conflict: OnConflict = OnConflict.NEWEST

    def within(self, *, left_writable: bool, right_writable: bool) -> Policy:
        """The same policy as far as the two systems can carry it."""
        flows = {
            (True, True): self.flow,
            (False, True): _WITHOUT_LEFT[self.flow],
            (True, False): _WITHOUT_RIGHT[self.flow],
            (False, False): Flow.OFF,
        }
        return Policy(flows[left_writable, right_writable], self.conflict)


_WITHOUT_LEFT: Final = {
    Flow.BOTH: Flow.TO_CRM,
    Flow.TO_CRM: Flow.TO_CRM,
    Flow.TO_PROPSTREET: Flow.OFF,
    Flow.IF_EMPTY: Flow.IF_EMPTY,
    Flow.OFF: Flow.OFF,
}
_WITHOUT_RIGHT: Final = {
    Flow.BOTH: Flow.TO_PROPSTREET,
    Flow.TO_CRM: Flow.OFF,
    Flow.TO_PROPSTREET: Flow.TO_PROPSTREET,
    Flow.IF_EMPTY: Flow.IF_EMPTY,
    Flow.OFF: Flow.OFF,
}


@dataclass(frozen=True, slots=True)
class Half:
    """One side of a linked record: what it holds now, what it held when last in step."""

    values: Values
    base: Values
    modified_at: datetime | None = None
    locked: Mapping[str, str] = field(default_factory=dict)
    writable: frozenset[str] = frozenset()
    """Fields that this system can write at all."""
    unreadable: frozenset[str] = frozenset()
    """Fields that this system can be given but never shows."""

    def now(self, name: str) -> Value:
        return self.values[name] if name in self.values else self.base.get(name)

    def says(self, name: str) -> bool:
        return name in self.values

    def moved(self, name: str, type_: FieldType) -> bool:
        return name in self.values and not same(type_, self.values[name], self.base.get(name))

    def is_stranger(self, name: str) -> bool:
        """Nothing was ever told of a field that could be told: there is nothing yet to compare with."""
        return name not in self.values and name not in self.base and name not in self.unreadable

    def lock(self, name: str) -> str | None:
        return self.locked.get(name) or self.locked.get("*")

    def only(self, name: str) -> Half:
        """What this half tells of one field."""
        values, base = ({name: held[name]} if name in held else {} for held in (self.values, self.base))
        own = frozenset({name})
        return Half(values, base, self.modified_at, {}, self.writable & own, self.unreadable & own)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A third value that a person settles a conflict with: both sides are given it."""

    value: Value


Answer: TypeAlias = Side | Chosen


@dataclass(frozen=True, slots=True)
class Word:
    """A person's answer to a conflict, and the two values that it was given to, as they were shown.

    ``seen`` is None where nobody wrote down what was shown.
    """

    answer: Answer
    seen: tuple[Json, Json] | None = None


@dataclass(frozen=True, slots=True)
class FieldConflict:
    """Both sides moved one field apart. ``winner`` is None while a person is waited for."""

    field: str
    base: Value
    left: Value
    right: Value
    winner: Side | None
    rule: str


@dataclass(frozen=True, slots=True)
class Because:
    """All that one decision about one field was made of: with this alone it can be made again.

    Both halves tell of this field only; the policy is as far as the two systems could carry it.
    """

    field: str
    type: FieldType
    policy: Policy
    left: Half
    right: Half
    settled: Answer | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One field that one side must be given, the rule that says so, and what it decided on."""

    value: Value
    rule: str
    because: Because | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Merged:
    """The writes each side needs, the conflicts, and what has to wait.

    ``held`` and ``blocked`` fields keep their base, so they come up again at each merge:
    ``held`` waits for a person, ``blocked`` (field -> reason) for a lock to go.
    """

    to_left: Mapping[str, Step] = field(default_factory=dict)
    to_right: Mapping[str, Step] = field(default_factory=dict)
    conflicts: tuple[FieldConflict, ...] = ()
    blocked: Mapping[str, str] = field(default_factory=dict)

    @property
    def held(self) -> frozenset[str]:
        return frozenset(c.field for c in self.conflicts if c.winner is None)

    def to(self, side: Side) -> Mapping[str, Step]:
        return self.to_left if side is Side.LEFT else self.to_right


def merge(
    types: Mapping[str, FieldType],
    left: Half,
    right: Half,
    policies: Mapping[str, Policy],
    settled: Mapping[str, Answer] | None = None,
) -> Merged:
    """Merge one linked record into the writes each side needs.

    With one side untouched the other always survives, unless the policy points one way. A first
    meeting has an empty base: whatever is there moved. ``settled`` holds a person's answers on
    fields that were held. Ties of ``newest`` go to Propstreet.
    """
    to: dict[Side, dict[str, Step]] = {Side.LEFT: {}, Side.RIGHT: {}}
    conflicts: list[FieldConflict] = []
    blocked: dict[str, str] = {}
    halves = {Side.LEFT: left, Side.RIGHT: right}
    for name in sorted(types):
        policy = policies.get(name, Policy()).within(
            left_writable=name in left.writable, right_writable=name in right.writable
        )
        answer = (settled or {}).get(name)
        verdict = _decide(name, types[name], left, right, policy, answer)
        if verdict.conflict is not None:
            conflicts.append(verdict.conflict)
        for side, step in verdict.steps.items():
            if reason := ERASED if isinstance(step.value, Hashed) else halves[side].lock(name):
                blocked[name] = reason
            else:
                because = Because(name, types[name], policy, left.only(name), right.only(name), answer)
                to[side][name] = replace(step, because=because)
    return Merged(to[Side.LEFT], to[Side.RIGHT], tuple(conflicts), blocked)


def replay(because: Because) -> Mapping[Side, Step]:
    """The same decision once more: what each side is given, and by which rule."""
    return _decide(
        because.field, because.type, because.left, because.right, because.policy, because.settled
    ).steps  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Verdict:
    steps: Mapping[Side, Step] = field(default_factory=dict)
    conflict: FieldConflict | None = None


_NOTHING: Final = _Verdict()


def _decide(name: str, type_: FieldType, left: Half, right: Half, policy: Policy, settled: Answer | None) -> _Verdict:
    if policy.flow is Flow.OFF or not (left.says(name) or right.says(name)):
        return _NOTHING
    on_left, on_right = left.now(name), right.now(name)
    if same(type_, on_left, on_right):
        return _NOTHING
    left_moved, right_moved = left.moved(name, type_), right.moved(name, type_)
    match policy.flow:
        case Flow.TO_CRM:
            return _one_way(name, type_, Side.RIGHT, left, right)
        case Flow.TO_PROPSTREET:
            return _one_way(name, type_, Side.LEFT, right, left)
        case Flow.IF_EMPTY:
            if left_moved and on_right is None and name in right.writable:
                return _Verdict({Side.RIGHT: Step(on_left, "if_empty")})
            if right_moved and on_left is None and name in left.writable:
                return _Verdict({Side.LEFT: Step(on_right, "if_empty")})
            return _NOTHING
        case Flow.BOTH:
            pass
    if type_ is FieldType.SET:
        return _union(name, left, right)
    if isinstance(settled, Chosen):
        # One of the two writes may fail, so that a side is asked by itself. What it made of the value is its half
        # from then on: a side that keeps something else is not given it again.
        return _Verdict(
            {
                side: Step(settled.value, BY_PERSON)
                for side, half in ((Side.LEFT, left), (Side.RIGHT, right))
                if half.moved(name, type_) and not same(type_, half.now(name), settled.value)
            }
        )
    if left_moved and right_moved:
        return _settle(name, left, right, policy.conflict, settled)
    if left_moved and not right.is_stranger(name):
        return _Verdict({Side.RIGHT: Step(on_left, "moved in propstreet")})
    if right_moved and not left.is_stranger(name):
        return _Verdict({Side.LEFT: Step(on_right, "moved in crm")})
    # Neither moved: the sides differ for good, because one cannot hold the other's value.
    return _NOTHING


def _one_way(name: str, type_: FieldType, target: Side, source: Half, sink: Half) -> _Verdict:
    """The source's word goes; what was typed over it at the sink is logged as the loser."""
    value, there = source.now(name), sink.now(name)
    if source.moved(name, type_):
        if value is None and source.base.get(name) is None:
            return _NOTHING
        rule = "one way"
    elif sink.moved(name, type_) and source.says(name) and (value is not None or _agreed_on_empty(name, sink)):
        rule = "one way, restored"
    else:
        # The source never had a value: one way does not blank what it did not write.
        return _NOTHING
    conflict = None
    if sink.moved(name, type_) and there is not None:
        left, right = (value, there) if target is Side.RIGHT else (there, value)
        conflict = FieldConflict(name, sink.base.get(name), left, right, target.other, rule)
    return _Verdict({target: Step(value, rule)}, conflict)


def _agreed_on_empty(name: str, half: Half) -> bool:
    return name in half.base and half.base[name] is None


def _union(name: str, left: Half, right: Half) -> _Verdict:
    """Element by element: what either side added is added, what either took off is taken off."""
    if isinstance(left.now(name), Hashed) or isinstance(right.now(name), Hashed):
        return _union_unseen(name, left, right)
    on_left, on_right = elements(left.now(name)), elements(right.now(name))
    known = on_left | on_right
    base_left, base_right = members_of(left.base.get(name), known), members_of(right.base.get(name), known)
    left_added, left_gone = on_left - base_left, base_left - on_left
    right_added, right_gone = on_right - base_right, base_right - on_right
    steps: dict[Side, Step] = {}
    for_left = (on_left | right_added) - (right_gone - left_added)
    for_right = (on_right | left_added) - (left_gone - right_added)
    if for_left != on_left and not left.is_stranger(name):
        steps[Side.LEFT] = Step(for_left or None, "set merged")
    if for_right != on_right and not right.is_stranger(name):
        steps[Side.RIGHT] = Step(for_right or None, "set merged")
    return _Verdict(steps)


def _union_unseen(name: str, left: Half, right: Half) -> _Verdict:
    """Members that were erased cannot be merged with others before they are read again."""
    halves = {Side.LEFT: left, Side.RIGHT: right}
    if not any(half.moved(name, FieldType.SET) for half in halves.values()):
        return _NOTHING
    unseen = {side: half.now(name) for side, half in halves.items() if isinstance(half.now(name), Hashed)}
    return _Verdict({side.other: Step(value, "set merged") for side, value in unseen.items()})


def _settle(name: str, left: Half, right: Half, rule: OnConflict, settled: Side | None) -> _Verdict:
    winner = settled or resolve(rule, left.modified_at, right.modified_at)
    said = BY_PERSON if settled else rule.value
    on_left, on_right = left.now(name), right.now(name)
    base = left.base.get(name) if left.base.get(name) is not None else right.base.get(name)
    conflict = FieldConflict(name, base, on_left, on_right, winner, said)
    match winner:
        case Side.LEFT:
            return _Verdict({Side.RIGHT: Step(on_left, said)}, conflict)
        case Side.RIGHT:
            return _Verdict({Side.LEFT: Step(on_right, said)}, conflict)
        case None:
            return _Verdict({}, conflict)


def resolve(rule: OnConflict, left_at: datetime | None, right_at: datetime | None) -> Side | None:
    """Who wins by this rule; None if a person must say. An unknown time counts as the older one."""
    match rule:
        case OnConflict.PROPSTREET:
            return Side.LEFT
        case OnConflict.CRM:
            return Side.RIGHT
        case OnConflict.HOLD:
            return None
        case OnConflict.NEWEST:
            if right_at is not None and (left_at is None or right_at > left_at):
                return Side.RIGHT
            return Side.LEFT


def translated(values: Values, vocabularies: Mapping[str, Mapping[str, str]]) -> Values:
    """One side's values in the other's coarser words; what has no word there says nothing."""
    found: dict[str, Value] = {}
    for name, value in values.items():
        words = vocabularies.get(name)
        if words is None or value is None:
            found[name] = value
        elif str(value) in words:
            found[name] = words[str(value)]
    return found
