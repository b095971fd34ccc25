"""What a run wrote, taken back: the decision, from what it wrote and from what stands there now.

A field goes back to what it held before the run's first write to it, if it still holds what the
run left there and the other side did not move since. The two sides then differ on purpose: each
half of the base takes what its side holds, so that nothing travels until somebody edits it.
Whatever cannot be taken back is left, with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from syncd.core.mapping import is_erased, same
from syncd.core.merge import Half, Step
from syncd.core.model import RELATIONS, Hashed, Side, Value, Verb
from syncd.core.plan import Fields, Operation, Sighted, anew

#: The rule that stands behind a value that an undo put back.
RULE: Final = "undo"
#: The field under which the log keeps what a relation referred to, as ``KIND=ID``.
REFS: Final = "refs"
_HELD: Final = "its counterpart was undone with run "
_ERASED: Final = "what stood there was erased"


@dataclass(frozen=True, slots=True)
class Written:
    """One line of the log: ``old`` stood there, ``new`` was sent, ``stored`` is what the system made of it."""

    kind: str
    side: Side
    verb: Verb
    left_id: str | None
    right_id: str | None
    field: str
    old: Value
    new: Value
    stored: Value


@dataclass(frozen=True, slots=True)
class Deed:
    """All that one run did to one record of one side. ``refs`` are of that side's own ids."""

    kind: str
    side: Side
    verb: Verb
    left_id: str | None
    right_id: str | None
    fields: Mapping[str, Written] = field(default_factory=dict)
    refs: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        return str(self.left_id if self.side is Side.LEFT else self.right_id)

    @property
    def source(self) -> str | None:
        return self.right_id if self.side is Side.LEFT else self.left_id


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that an undo leaves as it is, and why. ``field`` is empty where it is the whole record."""

    kind: str
    side: Side
    left_id: str | None
    right_id: str | None
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands there now of the record that was written and of its counterpart; None if nothing is known of it.

    ``holds``: why one of them is on hold. ``later``: by side and field what stood there before
    the first write that came after the run. ``refs_gone``: kinds of references that are gone.
    ``dependants``: what refers to the record and was not made by the run.
    """

    target: Sighted | None = None
    source: Sighted | None = None
    is_linked: bool = False
    is_source_taken: bool = False
    holds: Mapping[Side, str] = field(default_factory=dict)
    later: Mapping[tuple[Side, str], Value] = field(default_factory=dict)
    refs_gone: frozenset[str] = frozenset()
    dependants: tuple[str, ...] = ()
    can_delete: bool = True
    by_hand: str = ""
    """How a person brings back a deleted record of this kind there."""


def held_because(run_id: str) -> str:
    """Why the source of an undone create is on hold: else the next run would make it again."""
    return _HELD + run_id


def is_own_hold(reason: str) -> bool:
    """True for a hold that an undo placed; another undo may lift it."""
    return reason.startswith(_HELD)


def folded(lines: Sequence[Written]) -> Deed | None:
    """One record's lines, oldest first, as one deed; None if the run made and removed it.

    Of several writes to one field the first ``old`` and the last ``new`` count.
    """
    verbs = [line.verb for line in lines]
    if "create" in verbs and verbs[-1] == "delete":
        return None
    verb: Verb = "create" if "create" in verbs else "delete" if "delete" in verbs else "update"
    fields: dict[str, Written] = {}
    for line in lines:
        if line.field not in ("", REFS):
            first = fields.get(line.field)
            fields[line.field] = line if first is None else replace(line, old=first.old)
    refs = next((line.old or line.new for line in lines if line.field == REFS), None)
    last = lines[-1]
    return Deed(last.kind, last.side, verb, last.left_id, last.right_id, fields, _parsed(refs))


def packed(refs: Mapping[str, str]) -> Value:
    """References as the log keeps them."""
    return frozenset(f"{kind}={id_}" for kind, id_ in refs.items()) or None


def _parsed(refs: Value) -> dict[str, str]:
    told = refs if isinstance(refs, frozenset) else frozenset()
    return dict(each.split("=", 1) for each in sorted(told))


def undo(deed: Deed, at: Standing, fields: Fields, run_id: str) -> tuple[Operation | None, tuple[Leftover, ...]]:
    """The one operation that takes a deed back, if there is one, and what of it is left as it is."""
    match deed.verb:
        case "create":
            reason = _why_keep(deed, at, fields)
            return (None, _left(deed, reason)) if reason else (_removal(deed, at, run_id), ())
        case "delete":
            reason = _why_gone(deed, at)
            return (None, _left(deed, reason)) if reason else (_remake(deed, at, fields, run_id), ())
        case "update" | "mark":
            return _restore(deed, at, fields, run_id)


def _left(deed: Deed, reason: str, name: str = "") -> tuple[Leftover, ...]:
    return (Leftover(deed.kind, deed.side, deed.left_id, deed.right_id, name, reason),)


def _why(run_id: str) -> str:
    return f"undo of run {run_id}"


# --- values -------------------------------------------------------------------------------


def _restore(deed: Deed, at: Standing, fields: Fields, run_id: str) -> tuple[Operation | None, tuple[Leftover, ...]]:
    if at.target is None or at.target.record.is_deleted:
        return None, _left(deed, "the record is gone")
    if not at.is_linked or at.source is None or at.source.record.is_deleted:
        return None, _left(deed, "it is not linked any more")
    target, source = at.target.half(fields, deed.side), at.source.half(fields, deed.side.other)
    steps: dict[str, Step] = {}
    left: list[Leftover] = []
    for name, line in sorted(deed.fields.items()):
        if reason := _why_not(name, line, target, source, fields, deed.side, at.holds):
            left += _left(deed, reason, name)
        else:
            steps[name] = Step(line.old, RULE)
    if not steps:
        return None, tuple(left)
    return Operation(
        deed.kind, "update", deed.side, deed.source, at.target.address, steps, why=_why(run_id), undoes=run_id
    ), tuple(left)


def _why_not(
    name: str, line: Written, target: Half, source: Half, fields: Fields, side: Side, holds: Mapping[Side, str]
) -> str | None:
    """Why a field must stay as it is; None if it goes back."""
    if name not in fields.types:
        return "not synced any more"
    if isinstance(line.old, Hashed):
        return _ERASED
    type_, now = fields.types[name], target.now(name)
    if same(type_, now, line.old):
        return "already as before"
    if not _is_ours(fields, line, now):
        return "edited since"
    if source.moved(name, type_):
        return "edited since on the other side"
    if holds:
        return f"on hold: {'; '.join(sorted(set(holds.values())))}"
    if reason := target.lock(name):
        return f"locked: {reason}"
    if name not in fields.writable(side):
        return "not writable"
    return None


def _is_ours(fields: Fields, line: Written, now: Value) -> bool:
    """Whether a field still holds what the run sent, or what the system made of that."""
    type_ = fields.types[line.field]
    return same(type_, now, line.stored) or same(type_, now, line.new)


# --- records that the run made ------------------------------------------------------------


def _why_keep(deed: Deed, at: Standing, fields: Fields) -> str | None:
    """Why a record that the run made must stay; None if it goes."""
    if at.target is None or at.target.record.is_deleted:
        return "gone already"
    if edited := _edited(deed, at, fields):
        return f"edited since: {', '.join(edited)}"
    if at.dependants:
        return f"others refer to it: {', '.join(at.dependants)}"
    if foreign := [reason for reason in at.holds.values() if not is_own_hold(reason)]:
        return f"on hold: {foreign[0]}"
    if reason := at.target.record.locked.get("*"):
        return f"locked: {reason}"
    return None if at.can_delete else "cannot be deleted there"


def _edited(deed: Deed, at: Standing, fields: Fields) -> list[str]:
    """The fields of a record, or of its counterpart by way of it, that somebody changed after the run made it."""
    if at.target is None:
        return []
    half = at.target.half(fields, deed.side)
    found = {
        name
        for name, line in deed.fields.items()
        if name in fields.types and name in half.values and not _is_ours(fields, line, half.now(name))
    }
    if at.is_linked:
        found |= {name for name, type_ in fields.types.items() if half.moved(name, type_)}
    for (side, name), before in at.later.items():
        sighted = at.target if side is deed.side else at.source
        if sighted is not None and name in fields.types:
            now = sighted.half(fields, side).now(name)
            found |= set() if same(fields.types[name], now, before) else {name}
    return sorted(found)


def _removal(deed: Deed, at: Standing, run_id: str) -> Operation:
    """The record goes; its source stays alone, and on hold."""
    target = at.target
    if target is None:
        raise ValueError(f"{deed.kind}: nothing stands there to be removed")
    source = deed.source if at.is_linked else None
    return Operation(deed.kind, "delete", deed.side, source, target.address, why=_why(run_id), undoes=run_id)


# --- records that the run removed ---------------------------------------------------------


def _why_gone(deed: Deed, at: Standing) -> str | None:
    """Why a record that the run removed stays away; None if it can be made again."""
    if at.target is not None and not at.target.record.is_deleted:
        return "there again"
    if foreign := [reason for reason in at.holds.values() if not is_own_hold(reason)]:
        return f"on hold: {foreign[0]}"
    if _is_erased(deed, at):
        return _ERASED
    if _is_free(at):
        return None
    if deed.kind in RELATIONS and deed.refs:
        return f"names a {' and a '.join(sorted(at.refs_gone))} that is gone" if at.refs_gone else None
    return f"deleted; {at.by_hand}" if at.by_hand else "deleted, and cannot be brought back from here"


def _is_erased(deed: Deed, at: Standing) -> bool:
    """Whether the values that a new record would be given can no more be read."""
    if at.source is not None and _is_free(at):
        return is_erased(at.source.record.values)
    return is_erased({name: line.old for name, line in deed.fields.items()})


def _is_free(at: Standing) -> bool:
    """Whether the counterpart stands alone and can be the source of a new record."""
    return at.source is not None and not at.source.record.is_deleted and not at.is_source_taken


def _remake(deed: Deed, at: Standing, fields: Fields, run_id: str) -> Operation:
    """From its counterpart, if that one lives: they are linked again. A relation else stands alone, and on hold."""
    if at.source is not None and _is_free(at):
        return replace(anew(deed.kind, deed.side, at.source.record, fields, _why(run_id)), undoes=run_id)
    names = fields.creatable(deed.side)
    steps = {
        name: Step(line.old, RULE)
        for name, line in sorted(deed.fields.items())
        if name in names and name in fields.types and line.old is not None
    }
    return Operation(
        deed.kind, "create", deed.side, None, None, steps, dict(deed.refs), why=_why(run_id), undoes=run_id
    )
