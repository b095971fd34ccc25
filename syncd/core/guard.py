"""May this plan run? The brakes: counted before the first write, released only by a person.

Limits scale with what is linked: a handful is always allowed, so that small tenants are not
stopped by single edits, and so is a share of the whole, so that large ones can work. What takes
all there is never passes for a handful. Deletions are counted over a day as well, so that no
row of small runs does what one large run may not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from syncd.core.model import Side, Values
from syncd.core.plan import Operation

#: From so many on, all that there is of a kind is no handful, however small the tenant.
ALL_OF: Final = 3
#: A parent that loses this many children at once, and thereby its last, is doubted by itself.
CROWD: Final = 10


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``floor`` or ``share`` of what is linked, whichever is more."""

    floor: int
    share: float

    def allows(self, count: int, linked: int) -> bool:
        return count <= max(self.floor, int(linked * self.share))

    def spares(self, count: int, linked: int) -> bool:
        """As ``allows``, but never all of three or more."""
        return self.allows(count, linked) and not count >= linked >= ALL_OF


@dataclass(frozen=True, slots=True)
class Limits:
    """A tenant's brakes."""

    deletes: Limit = Limit(5, 0.05)
    deletes_in_a_day: Limit = Limit(20, 0.2)
    creates: Limit = Limit(200, 0.25)
    blankings: Limit = Limit(10, 0.05)
    one_field: Limit = Limit(25, 0.5)
    vanished: Limit = Limit(3, 0.2)


@dataclass(slots=True)
class Census:
    """What a plan would do, counted while it streams by, so that no plan is held in memory."""

    creates: Counter[tuple[str, Side]] = field(default_factory=Counter)
    deletes: Counter[tuple[str, Side]] = field(default_factory=Counter)
    blankings: Counter[tuple[str, Side]] = field(default_factory=Counter)
    moves: Counter[tuple[str, Side, str]] = field(default_factory=Counter)
    total: int = 0

    def count(self, operation: Operation, before: Values) -> None:
        """Take note of one operation; ``before`` is what the target holds now."""
        self.total += 1
        at = (operation.kind, operation.side)
        match operation.verb:
            case "create":
                self.creates[at] += 1
            case "delete":
                self.deletes[at] += 1
            case "update":
                blanked = [n for n, step in operation.steps.items() if step.value is None and before.get(n) is not None]
                if blanked:
                    self.blankings[at] += 1
                for name in operation.steps:
                    if before.get(name) is not None:
                        self.moves[(*at, name)] += 1
            case "mark":
                pass


def brakes(
    census: Census,
    linked: Mapping[str, int],
    limits: Limits,
    *,
    is_approved: bool,
    is_backfill: bool = False,
    deleted: Mapping[tuple[str, Side], int] | None = None,
) -> tuple[str, ...]:
    """The reasons why this plan must wait for a person; empty means go.

    ``linked`` counts links by kind, ``deleted`` what the runs of the last day deleted without a
    person's word. ``is_approved``: a person let this pair run before. A backfill is there to
    create, so that creations do not stop it; everything else does.
    """
    if not census.total:
        return ()
    if not is_approved:
        return ("the first run of this pair waits for approval",)
    found = []
    for (kind, side), count in sorted(census.deletes.items()):
        there, before = linked.get(kind, 0), (deleted or {}).get((kind, side), 0)
        if not limits.deletes.spares(count, there):
            found.append(f"would delete {count} {kind} of {there} linked ({_name(side)})")
        elif before and not limits.deletes_in_a_day.allows(before + count, there + before):
            found.append(
                f"would delete {count} {kind} of {there} linked ({_name(side)}), {before + count} within a day"
            )
    if not is_backfill:
        found += [
            f"would create {count} {kind} beside {linked.get(kind, 0)} linked ({_name(side)})"
            for (kind, side), count in sorted(census.creates.items())
            if not limits.creates.allows(count, linked.get(kind, 0))
        ]
    found += [
        f"would empty fields of {count} {kind} of {linked.get(kind, 0)} linked ({_name(side)})"
        for (kind, side), count in sorted(census.blankings.items())
        if not limits.blankings.spares(count, linked.get(kind, 0))
    ]
    found += [
        f"would change {name} on {count} {kind} of {linked.get(kind, 0)} linked ({_name(side)})"
        for (kind, side, name), count in sorted(census.moves.items())
        if not limits.one_field.allows(count, linked.get(kind, 0))
    ]
    return tuple(found)


def shrunken(kind: str, side: Side, vanished: int, known: int, limits: Limits) -> str | None:
    """Why a listing that lacks ``vanished`` of ``known`` records is not believed; None if it may be."""
    if vanished and not limits.vanished.spares(vanished, known):
        return f"{vanished} of {known} known {kind} are missing from a listing ({_name(side)})"
    return None


def emptied(kind: str, side: Side, lost: Sequence[int], several: int, limits: Limits) -> str | None:
    """Why parents that show none of their children any more are not believed; None if they may be.

    ``lost``: how many were known below each of them. ``several``: the visited parents with three
    or more known children; those with fewer lose their last one every day.
    """
    many = [count for count in lost if count >= ALL_OF]
    if any(count >= CROWD for count in many) or (many and not limits.vanished.spares(len(many), several)):
        total = sum(many)
        return f"{len(many)} of {several} parents lost all of their {total} known {kind} at once ({_name(side)})"
    return None


def _name(side: Side) -> str:
    return "propstreet" if side is Side.LEFT else "crm"
