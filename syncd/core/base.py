"""How a base moves: what needs no write, what a write confirmed, what a create brought.

Each answers with new halves, field -> (left half, right half). A half is what its side holds or
returned, never what was sent; a field that still waits for a write, a lock or a person is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeAlias

from syncd.core.mapping import members_of, same
from syncd.core.merge import Half, Merged, Step
from syncd.core.model import FieldType, Side, Value, Values, elements


class Unmoved(Enum):
    """In place of a half of the base: that side's half stays as it is."""

    UNMOVED = "unmoved"


UNMOVED: Final = Unmoved.UNMOVED
Halves: TypeAlias = Mapping[str, tuple[Value | Unmoved, Value | Unmoved]]


def agreed(types: Mapping[str, FieldType], left: Half, right: Half, merged: Merged) -> Halves:
    """The halves of every field on which a merge found nothing to wait for."""
    waiting = {*merged.to_left, *merged.to_right, *merged.held, *merged.blocked}
    found: dict[str, tuple[Value | Unmoved, Value | Unmoved]] = {
        name: (left.now(name), right.now(name))
        for name in types
        if name not in waiting and (left.says(name) or right.says(name))
    }
    strange = {name for name in waiting if name not in left.base and name not in right.base}
    met = {name for name in strange if left.says(name) and right.says(name)}
    return found | {name: _met(left.now(name), right.now(name)) for name in met}


def _met(left: Value, right: Value) -> tuple[Value | Unmoved, Value | Unmoved]:
    """The halves of a field of which both speak for the first time, and do not agree yet.

    That a side holds nothing is written down: it is what tells it from one that never said anything, once its
    sighting is gone. What the other holds was never agreed upon, and was not agreed to be empty either.
    """
    return (None if left is None else UNMOVED, None if right is None else UNMOVED)


def confirmed(
    types: Mapping[str, FieldType],
    to: Side,
    steps: Mapping[str, Step],
    source: Values,
    bases: tuple[Values, Values],
    returned: Values,
) -> Halves:
    """The halves of what an update gave ``to``, where ``bases`` were the source's half and the target's.

    What the answer does not tell is taken as given. Of a set, what the target itself added or took
    off, and the source has yet to follow, is left as it was in the target's half: it must count as
    moved still, or it would be lost where the source cannot be written now. And what an earlier
    write of the same plan gave the source, or took off there, stays so in the source's half, though
    the plan saw the source without it.
    """
    found: dict[str, tuple[Value | Unmoved, Value | Unmoved]] = {}
    for name, step in steps.items():
        there, here = returned.get(name, step.value), source.get(name)
        if types[name] is FieldType.SET and name in returned:
            given, wanted = elements(step.value), elements(here)
            own, known = (members_of(base.get(name), given | wanted) for base in bases)
            added, gone = given - known - wanted, (known & wanted) - given
            there = (elements(there) - added | gone) or None
            here = (wanted & given | wanted & own | own & given) or None
        found[name] = _by_side(to, there, here)
    return found


def not_stored(types: Mapping[str, FieldType], steps: Mapping[str, Step], before: Values, returned: Values) -> set[str]:
    """The fields of an update that the system accepted and left as they were."""
    return {
        name
        for name, step in steps.items()
        if name in returned
        and not same(types[name], returned[name], step.value)
        and same(types[name], returned[name], before.get(name))
    }


def founded(
    types: Mapping[str, FieldType],
    to: Side,
    steps: Mapping[str, Step],
    source: Values,
    returned: Values,
    shares: Mapping[str, str | None],
) -> Halves:
    """The halves of a link whose record on ``to`` was made of its source a moment ago.

    ``shares`` names fields kept in one native field with another: what that one was given shows
    in them too, and is no news. What was not stored, and what the system put there by itself, is
    left to the next merge, against an empty base.
    """
    found: dict[str, tuple[Value | Unmoved, Value | Unmoved]] = {}
    for name, type_ in types.items():
        mine, theirs = source.get(name), returned.get(name)
        if name in steps and name not in returned:
            found[name] = _by_side(to, steps[name].value, mine)
        elif (name in steps and theirs is not None) or same(type_, mine, theirs) or shares.get(name) in steps:
            found[name] = _by_side(to, theirs, mine)
        elif name in source and name in returned:
            found[name] = _met(*_by_side(to, theirs, mine))
    return found


def _by_side(side: Side, there: Value, here: Value) -> tuple[Value, Value]:
    return (there, here) if side is Side.LEFT else (here, there)
