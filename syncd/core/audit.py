"""Do both sides hold what is remembered of them? The verdict on one link, or on one record without a link.

A side may differ from its half of the base for a known reason: its news wait in the inbox, or it
moved, by its own system's version, after it was last seen. The halves themselves may differ: then
the two sides are agreed to. Whatever is left is unexplained: a write that was accepted and not
stored, a value that changed behind its version, a record that went without a trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from syncd.core.mapping import same
from syncd.core.match import ref_key
from syncd.core.merge import translated
from syncd.core.model import RELATIONS, LinkState, Record, Side, Value
from syncd.core.plan import Fields, Sighted

#: How a link tells that a system took a write and kept what it had.
NOT_STORED: Final = "accepted but not stored"
#: Fields that move with a record's siblings, which leave its own version alone.
_RELATIVE: Final = {"employment": frozenset({"is_primary"})}

BEHIND: Final = "does not hold what was last agreed, though nobody moved it"
GONE: Final = "gone without a tombstone"
UNSEEN: Final = "was there before the last run, and was never taken in"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that differs. ``field`` is empty where it is the whole record; ``reason`` never holds a value."""

    kind: str
    left_id: str | None
    right_id: str | None
    field: str
    side: Side | None
    reason: str
    is_explained: bool
    left: Value = None
    right: Value = None


@dataclass(frozen=True, slots=True)
class Stood:
    """One side of a link: what its system shows ``now``, and what is remembered of it.

    ``now`` is None where neither a listing nor a read by id shows anything. ``is_waiting``: what
    is remembered is not in step, but news in the inbox.
    """

    now: Record | None
    known: Sighted
    is_waiting: bool

    @property
    def is_gone(self) -> bool:
        return self.now is None or self.now.is_deleted

    def moved(self, name: str, fields: Fields) -> bool:
        """Whether a field is not what this side's half of the base says."""
        if self.now is None or name not in self.now.values:
            return False
        return not same(fields.types[name], self.now.values[name], self.known.base.get(name))

    def is_noticed(self, name: str, fields: Fields) -> bool:
        """Whether the inbox holds what a field says now."""
        if not self.is_waiting or self.now is None:
            return False
        return same(fields.types[name], self.now.values.get(name), self.known.record.values.get(name))

    def is_newer(self) -> bool:
        """Whether the record moved, by its own system's word, after it was last seen; one without a clock may have."""
        if self.now is None:
            return False
        now, known = self.now, self.known.record
        if now.version is None and now.modified_at is None:
            return True
        if now.modified_at is not None and known.modified_at is not None and now.modified_at < known.modified_at:
            return False
        # Where a version is a whole second, who edited in it tells two edits apart.
        is_other = None not in (now.modified_by, known.modified_by) and now.modified_by != known.modified_by
        return is_other or (now.version, now.modified_at) != (known.version, known.modified_at)


@dataclass(frozen=True, slots=True)
class Bond:
    """What is remembered of a link beside its two records. ``conflicts``: fields that wait for a person."""

    kind: str
    state: LinkState
    reason: str
    conflicts: frozenset[str] = frozenset()
    hold: str = ""
    vocabulary: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def judge(left: Stood, right: Stood, bond: Bond, fields: Fields) -> tuple[Difference, ...]:
    """All in which a link's two records differ, or differ from what is remembered of them; nothing if identical."""
    sides = {Side.LEFT: left, Side.RIGHT: right}
    if gone := [side for side in Side if sides[side].is_gone]:
        return tuple(_absent(side, sides, bond) for side in gone)
    found: list[Difference] = []
    for side, stood in sides.items():
        if bond.kind in RELATIONS and stood.now is not None and _has_other_refs(stood):
            found.append(_difference(sides, bond, "refs", side, *_excuse(stood, bond, "", is_noticed=stood.is_waiting)))
    for name in sorted(fields.types):
        found += _differing(name, sides, bond, fields)
    return tuple(found)


def _differing(name: str, sides: Mapping[Side, Stood], bond: Bond, fields: Fields) -> list[Difference]:
    left, right = (sides[side].now for side in Side)
    if left is None or right is None:
        return []
    here = translated(left.values, bond.vocabulary)
    is_told = name in here and name in right.values
    if is_told and same(fields.types[name], here[name], right.values[name]):
        return []
    moved = [side for side in Side if sides[side].moved(name, fields)]
    if not moved and not is_told:
        return []
    if not moved:
        reason, is_explained = "agreed to differ", True
        if bond.reason.startswith(NOT_STORED) and name in bond.reason.partition(": ")[2].split(", "):
            reason, is_explained = NOT_STORED, False
        return [_difference(sides, bond, name, None, reason, is_explained)]
    found = []
    for side in moved:
        stood = sides[side]
        reason, is_explained = _excuse(stood, bond, name, is_noticed=stood.is_noticed(name, fields))
        if not is_explained and _is_derived(name, side, bond, fields):
            reason, is_explained = "moved with something else, which left its version alone", True
        found.append(_difference(sides, bond, name, side, reason, is_explained))
    # One side that is explained tells why the two differ; one that is not must be told all the same.
    return [each for each in found if not each.is_explained] or found[:1]


def _is_derived(name: str, side: Side, bond: Bond, fields: Fields) -> bool:
    """Whether a field shows what belongs to another record."""
    return name not in fields.writable(side) or name in _RELATIVE.get(bond.kind, ())


def _has_other_refs(stood: Stood) -> bool:
    now = ref_key(stood.now.refs) if stood.now is not None else None
    return stood.known.base_refs is not None and now != stood.known.base_refs


def _excuse(stood: Stood, bond: Bond, name: str, *, is_noticed: bool) -> tuple[str, bool]:
    """Why a side is not what its half of the base says, and whether that explains it."""
    if is_noticed:
        return _waits(bond, name), True
    if stood.is_newer():
        return "moved since the last run", True
    return BEHIND, False


def _waits(bond: Bond, name: str) -> str:
    """For what the inbox's news of a link wait."""
    if bond.hold:
        return f"on hold: {bond.hold}"
    if name in bond.conflicts:
        return "conflict" if name else "a deletion waits for a person"
    match bond.state:
        case LinkState.DEAD:
            return f"dead letter: {bond.reason}"
        case LinkState.EXCLUDED:
            return f"excluded: {bond.reason}"
        case _:
            return "waits for the next run"


def _absent(side: Side, sides: Mapping[Side, Stood], bond: Bond) -> Difference:
    stood = sides[side]
    if stood.is_waiting and stood.known.record.is_deleted:
        return _difference(sides, bond, "", side, _waits(bond, ""), True)
    if stood.now is not None and (stood.now.modified_at is not None or stood.now.merged_into is not None):
        return _difference(sides, bond, "", side, "deleted since the last run", True)
    if bond.kind in RELATIONS:
        # Their systems keep no trace of them.
        return _difference(sides, bond, "", side, "gone since the last run", True)
    return _difference(sides, bond, "", side, GONE, False)


def _difference(
    sides: Mapping[Side, Stood], bond: Bond, name: str, side: Side | None, reason: str, is_explained: bool
) -> Difference:
    left, right = sides[Side.LEFT], sides[Side.RIGHT]
    return Difference(
        bond.kind,
        left.known.record.id,
        right.known.record.id,
        name,
        side,
        reason,
        is_explained,
        left.now.values.get(name) if left.now is not None else None,
        right.now.values.get(name) if right.now is not None else None,
    )


@dataclass(frozen=True, slots=True)
class Alone:
    """What is remembered of a record without a link: its state and reason in the inbox, its feed's watermark."""

    state: str | None = None
    reason: str = ""
    hold: str = ""
    dealt_until: datetime | None = None


def judge_alone(record: Record, side: Side, alone: Alone) -> Difference | None:
    """Why a record has no counterpart; None for one that is gone."""
    if record.is_deleted:
        return None
    reason, is_explained = _why_alone(record, alone)
    left, right = (record.id, None) if side is Side.LEFT else (None, record.id)
    return Difference(record.kind, left, right, "", side, reason, is_explained)


def _why_alone(record: Record, alone: Alone) -> tuple[str, bool]:
    if alone.hold:
        return f"on hold: {alone.hold}", True
    match alone.state:
        case None:
            pass
        case "dead":
            return f"dead letter: {alone.reason}", True
        case "review":
            return "in review", True
        case "excluded" | "waiting" | "retired":
            return f"excluded: {alone.reason}", True
        case _:
            return "waits for the next run", True
    if record.modified_at is None or alone.dealt_until is None or record.modified_at > alone.dealt_until:
        return "new since the last run", True
    return UNSEEN, False


# --- the rotation in the background -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Turn:
    """One kind of one pair, and when it was last audited."""

    pair: str
    kind: str
    every: timedelta
    audited_at: datetime | None
    is_busy: bool = False

    def is_ripe(self, now: datetime) -> bool:
        return not self.is_busy and (self.audited_at is None or now - self.audited_at >= self.every)


def due(turns: Iterable[Turn], now: datetime) -> Turn | None:
    """Whose turn it is: the one that was audited longest ago, if that is ``every`` ago or more; never a busy pair."""
    never = datetime.min.replace(tzinfo=now.tzinfo)
    ripe = [turn for turn in turns if turn.is_ripe(now)]
    return min(ripe, key=lambda turn: (turn.audited_at or never, turn.pair, turn.kind), default=None)
