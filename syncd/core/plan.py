"""Matches and merges become operations: what will be done, one plain value each.

``decide`` looks at one link, ``welcome`` at one record without a link. Both answer with the
operations that bring the two sides together under the tenant's rules, and with the state in
which the link or the record stands meanwhile. Nothing here knows how a write is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from syncd.core.mapping import is_erased, same, show
from syncd.core.match import ref_key
from syncd.core.merge import ERASED, Answer, Chosen, Half, Merged, OnConflict, Policy, Step, Word, merge
from syncd.core.model import (
    RELATIONS,
    Address,
    FieldType,
    Json,
    LinkState,
    Money,
    Record,
    Side,
    Values,
    Verb,
    elements,
)


class OnDelete(StrEnum):
    """What a deletion on one side does to the other."""

    ARCHIVE = "archive"
    HOLD = "hold"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class When:
    """Native CRM fields and the values that admit a record; an empty one admits all."""

    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def admits(self, record: Record) -> bool:
        """A field that the record does not tell shuts nobody out; ``NAME:label`` is another word for its value."""
        return all(
            name not in record.native
            or (record.native[name] or "") in allowed
            or record.native.get(f"{name}:label") in allowed
            for name, allowed in self.fields.items()
        )


@dataclass(frozen=True, slots=True)
class KindRules:
    """What a tenant wants of one kind. ``scope`` is a filter on the CRM side for all that syncd touches."""

    create_in_left: When | None = field(default_factory=When)
    create_in_right: bool = True
    deletes_to_left: OnDelete = OnDelete.HOLD
    deletes_to_right: OnDelete = OnDelete.HOLD
    scope: When = field(default_factory=When)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    default: Policy = field(default_factory=Policy)
    settle_seconds: float = 0.0
    """How long a record must have been quiet before it travels."""

    def deletes_to(self, side: Side) -> OnDelete:
        return self.deletes_to_left if side is Side.LEFT else self.deletes_to_right


@dataclass(frozen=True, slots=True)
class Operation:
    """One write to one record of one side.

    ``source`` is the other side's id; a mark has none while its counterpart is yet to be made.
    ``refs`` of a create are ids of the *source's* side: they are looked up when the operation is
    applied, since their counterparts may be made before it. A create without a source is linked to
    nothing, and its ``refs`` are of its own side.
    ``is_marking``: an update that also stores the other side's id on the record.
    ``undoes`` names the run that it takes back: what stands alone after it is put on hold.
    """

    kind: str
    verb: Verb
    side: Side
    source: str | None
    target: Address | None
    steps: Mapping[str, Step] = field(default_factory=dict)
    refs: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    is_marking: bool = False
    undoes: str = ""


@dataclass(frozen=True, slots=True)
class Sighted:
    """One side of a link as last seen: the record (from a sighting or from the base), and its base half."""

    record: Record
    base: Values
    base_refs: str | None = None
    """``ref_key`` of the references when last in step."""

    def half(self, fields: Fields, side: Side) -> Half:
        record = self.record
        writable, unreadable = fields.writable(side), fields.unreadable(side)
        return Half(record.values, self.base, record.modified_at, record.locked, writable, unreadable)

    @property
    def address(self) -> Address:
        return Address(self.record.id, self.record.parent)


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields a pair syncs for one kind, and which of them each system can write."""

    types: Mapping[str, FieldType]
    left_writable: frozenset[str]
    right_writable: frozenset[str]
    left_creatable: frozenset[str]
    right_creatable: frozenset[str]
    left_unreadable: frozenset[str] = frozenset()
    right_unreadable: frozenset[str] = frozenset()

    def unreadable(self, side: Side) -> frozenset[str]:
        return self.left_unreadable if side is Side.LEFT else self.right_unreadable

    def writable(self, side: Side) -> frozenset[str]:
        return self.left_writable if side is Side.LEFT else self.right_writable

    def creatable(self, side: Side) -> frozenset[str]:
        return self.left_creatable if side is Side.LEFT else self.right_creatable


def priced(sighted: Sighted, bare: frozenset[str], currency: str, other: Values) -> Sighted:
    """One side of a link with its bare amounts told in the currency that they are taken to be in.

    An amount that the ``other`` side has in another currency is never written over a bare one.
    """
    record = sighted.record
    strange = {name for name in bare if isinstance(held := other.get(name), Money) and held.currency != currency}
    locked = {name: f"{name} is in another currency there than here" for name in strange}
    told = replace(record, values=_told(record.values, bare, currency), locked={**record.locked, **locked})
    return replace(sighted, record=told, base=_told(sighted.base, bare, currency))


def payable(values: Values, bare: frozenset[str], currency: str) -> Values:
    """What a new record may be given where amounts are bare: none in another currency."""
    return {
        name: value
        for name, value in values.items()
        if name not in bare or not isinstance(value, Money) or value.currency == currency
    }


def _told(values: Values, bare: frozenset[str], currency: str) -> Values:
    return {
        name: replace(value, currency=currency) if name in bare and isinstance(value, Money) else value
        for name, value in values.items()
    }


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one link.

    ``is_over``: drop the link. ``retire``: the record of that side stands for references that
    the other side left; it must go, and the other side's record look for a new counterpart.
    ``deletion``: the side whose deletion waits for a person. ``blocked`` and ``merged`` tell why
    fields stay apart.
    """

    operations: tuple[Operation, ...] = ()
    state: LinkState = LinkState.IN_STEP
    reason: str = ""
    merged: Merged = field(default_factory=Merged)
    is_over: bool = False
    retire: Side | None = None
    deletion: Side | None = None


def decide(
    kind: str,
    left: Sighted,
    right: Sighted,
    fields: Fields,
    rules: KindRules,
    *,
    right_refs: Mapping[str, str] | None = None,
    unlinked_refs: frozenset[str] = frozenset(),
    settled: Mapping[str, Answer] | None = None,
) -> Decision:
    """What one link needs now.

    ``left.record.values`` are already in the right side's vocabulary. ``right_refs`` are the right
    record's references in left ids, None if one of them has no link. ``unlinked_refs``: where one side is
    gone, the kinds of the other one's references whose counterparts neither exist nor are about to.
    ``settled`` holds a person's answers by field, as far as they stand; under ``""`` the side whose
    deletion or survival was chosen.
    """
    sides = {Side.LEFT: left, Side.RIGHT: right}
    gone = [side for side in Side if sides[side].record.is_deleted]
    if len(gone) == 2:
        return Decision(is_over=True, reason="deleted on both sides")
    answer = Side(said) if isinstance(said := (settled or {}).get(""), Side) else None
    if gone and sides[gone[0]].record.merged_into is not None and answer is None:
        # Two linked things became one over there: which of ours stands for it, only a person can say.
        return Decision(state=LinkState.CONFLICT, reason="merged with another linked record", deletion=gone[0])
    if gone:
        return _after_deletion(kind, gone[0], sides, fields, rules, unlinked_refs, answer)
    if not rules.scope.admits(right.record):
        return Decision(state=LinkState.EXCLUDED, reason="outside the tenant's filter")
    if kind in RELATIONS:
        if right_refs is None:
            return Decision(state=LinkState.EXCLUDED, reason="names a record that is not linked")
        if dict(right_refs) != dict(left.record.refs):
            left_moved = ref_key(left.record.refs) != left.base_refs
            return Decision(retire=Side.RIGHT if left_moved else Side.LEFT, reason="its references changed")
    merged = _merge(left, right, fields, rules, settled)
    operations = tuple(
        Operation(kind, "update", side, sides[side.other].record.id, sides[side].address, steps, why="merge")
        for side in Side
        if (steps := merged.to(side))
    )
    if merged.held:
        state, reason = LinkState.CONFLICT, "changed on both sides"
    elif merged.blocked:
        state, reason = LinkState.EXCLUDED, "; ".join(sorted(set(merged.blocked.values())))
    else:
        state, reason = _standing(left, right)
    return Decision(operations, state, reason, merged)


def standing(words: Mapping[str, Word], left: Sighted, right: Sighted, fields: Fields) -> dict[str, Answer]:
    """The answers that still speak of what is there.

    Each was given to two values. Where a side holds neither the one that was shown nor the one
    that was chosen, somebody moved it since: that person knew more, so it is asked again.
    """
    return {
        name: word.answer
        for name, word in words.items()
        if word.seen is None
        or (
            _is_as_answered(name, word, word.seen[0], left, Side.LEFT, fields)
            and _is_as_answered(name, word, word.seen[1], right, Side.RIGHT, fields)
        )
    }


def _is_as_answered(name: str, word: Word, seen: Json, sighted: Sighted, side: Side, fields: Fields) -> bool:
    if name == "":
        return existence(sighted, side, fields) == seen
    now = sighted.half(fields, side).now(name)
    if isinstance(word.answer, Chosen) and name in fields.types and same(fields.types[name], now, word.answer.value):
        return True
    return show(now) == seen


def existence(sighted: Sighted, side: Side, fields: Fields) -> str:
    """Whether a record is there still, and which fields were edited since it was last in step."""
    if sighted.record.is_deleted:
        return "deleted"
    half = sighted.half(fields, side)
    edited = sorted(name for name, type_ in fields.types.items() if half.moved(name, type_))
    return f"exists, edited: {', '.join(edited)}" if edited else "exists"


def _merge(
    left: Sighted, right: Sighted, fields: Fields, rules: KindRules, settled: Mapping[str, Answer] | None
) -> Merged:
    policies = {name: rules.policies.get(name, rules.default) for name in fields.types}
    return merge(
        {name: type_ for name, type_ in fields.types.items() if not _is_known_alias(name, left, right)},
        left.half(fields, Side.LEFT),
        right.half(fields, Side.RIGHT),
        policies,
        settled,
    )


def _is_known_alias(name: str, left: Sighted, right: Sighted) -> bool:
    """Two people's records met by an additional address: which one is the first is each system's own affair."""
    if name != "email" or name in left.base or name in right.base:
        return False
    here, there = left.record.values, right.record.values
    return here.get(name) in elements(there.get("other_emails")) or there.get(name) in elements(
        here.get("other_emails")
    )


def _standing(left: Sighted, right: Sighted) -> tuple[LinkState, str]:
    """In step; or excluded, if one side refuses all writes although nothing waits for it now."""
    for each in (left, right):
        if reason := each.record.locked.get("*"):
            return LinkState.EXCLUDED, reason
    return LinkState.IN_STEP, ""


def _after_deletion(
    kind: str,
    gone: Side,
    sides: Mapping[Side, Sighted],
    fields: Fields,
    rules: KindRules,
    unlinked_refs: frozenset[str],
    settled: Side | None,
) -> Decision:
    """One side is gone. The edit wins over the deletion; else the tenant's rule for that direction holds."""
    alive = sides[gone.other]
    half = Half(alive.record.values, alive.base)
    is_edited = any(half.moved(name, type_) for name, type_ in fields.types.items())
    if settled is gone.other or (is_edited and settled is None and not alive.record.locked.get("*")):
        why = "kept by a person's word" if settled else "edited after it was deleted"
        if is_erased(alive.record.values):
            return Decision(state=LinkState.EXCLUDED, reason=ERASED)
        if unlinked_refs:
            return Decision(state=LinkState.EXCLUDED, reason=_unlinked(unlinked_refs))
        return Decision((anew(kind, gone, alive.record, fields, why),), LinkState.PENDING, why)
    if reason := alive.record.locked.get("*"):
        return Decision(state=LinkState.EXCLUDED, reason=reason)
    rule = OnDelete.ARCHIVE if settled is gone else rules.deletes_to(gone.other)
    match rule:
        case OnDelete.ARCHIVE:
            operation = Operation(
                kind, "delete", gone.other, sides[gone].record.id, alive.address, why="deleted on the other side"
            )
            return Decision((operation,), LinkState.PENDING, "deleted on the other side")
        case OnDelete.HOLD:
            return Decision(state=LinkState.CONFLICT, reason="deleted on one side", deletion=gone)
        case OnDelete.IGNORE:
            return Decision(is_over=True, reason="deleted on the other side")


def anew(kind: str, to: Side, source: Record, fields: Fields, why: str) -> Operation:
    """The counterpart that a record is given: all of its values that can be told there."""
    names = fields.creatable(to)
    steps = {
        name: Step(value, "created")
        for name, value in sorted(source.values.items())
        if name in names and name in fields.types and value is not None
    }
    return Operation(kind, "create", to, source.id, None, steps, dict(source.refs), why)


@dataclass(frozen=True, slots=True)
class Welcome:
    """What becomes of a record without a counterpart: a create, or a reason why not."""

    operation: Operation | None = None
    reason: str = ""
    is_waiting: bool = False
    """It may become possible by itself, once its parents are linked."""


#: A record that is edited for ever travels all the same, after so many times its delay.
PATIENCE: Final = 10


def is_ripe(modified_at: datetime | None, since: datetime, now: datetime, settle_seconds: float) -> bool:
    """Whether a change has been quiet for long enough, by its own system's clock, or has waited for too long.

    ``since``: when it was first seen; it stands for the clock of a system that tells no time, or a wrong one.
    """
    delay = timedelta(seconds=settle_seconds)
    moved_at = modified_at if modified_at is not None and modified_at <= now + delay else since
    return now - moved_at >= delay or now - since >= PATIENCE * delay or since > now + PATIENCE * delay


def welcome(
    record: Record,
    side: Side,
    fields: Fields,
    rules: KindRules,
    *,
    ref_sets: tuple[frozenset[str], ...] = (),
    unlinked_refs: frozenset[str] = frozenset(),
    is_asked_for: bool = False,
) -> Welcome:
    """Whether a record that only ``side`` has is to be created on the other one.

    ``ref_sets``: what the other system can hold of this kind. ``unlinked_refs``: kinds of the
    record's references whose counterparts neither exist nor are about to. ``is_asked_for``: a person
    wants a counterpart for this very record, whatever the tenant's rule is for those of its kind.
    """
    if side is Side.RIGHT and not rules.scope.admits(record):
        return Welcome(reason="outside the tenant's filter")
    if reason := record.locked.get("*"):
        return Welcome(reason=reason)
    if record.kind in RELATIONS:
        if ref_sets and frozenset(record.refs) not in ref_sets:
            return Welcome(reason=_unfit(record, ref_sets))
        if unlinked_refs:
            return Welcome(reason=_unlinked(unlinked_refs), is_waiting=True)
    if is_erased(record.values):
        return Welcome(reason=ERASED, is_waiting=True)
    if not is_asked_for and (reason := _unwanted(record, side, rules)):
        return Welcome(reason=reason)
    return Welcome(anew(record.kind, side.other, record, fields, "only on one side"))


def _unlinked(kinds: frozenset[str]) -> str:
    return f"its {' and '.join(sorted(kinds))} is not linked"


def _unwanted(record: Record, side: Side, rules: KindRules) -> str:
    """Why the tenant's rules make no counterpart for a record of this side; empty if they do."""
    if side is Side.LEFT:
        return "" if rules.create_in_right else "the tenant creates none of these in the crm"
    if rules.create_in_left is None:
        return "the tenant creates none of these in propstreet"
    return "" if rules.create_in_left.admits(record) else "outside the tenant's rule for creating in propstreet"


def _unfit(record: Record, ref_sets: tuple[frozenset[str], ...]) -> str:
    missing = min((need - set(record.refs) for need in ref_sets), key=lambda lacks: (len(lacks), sorted(lacks)))
    if missing:
        return f"names no {' or '.join(sorted(missing))} that can be read, and the other system needs one"
    return "the other system cannot hold this combination of references"


__all__ = [
    "Decision",
    "Fields",
    "KindRules",
    "OnConflict",
    "OnDelete",
    "Operation",
    "Sighted",
    "Welcome",
    "When",
    "anew",
    "decide",
    "existence",
    "standing",
    "welcome",
]
