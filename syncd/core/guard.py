"""May this plan run? The brakes: counted before the first write, released only by a person.

Limits scale with what is linked: a handful is always allowed, so that small tenants are not
stopped by single edits, and so is a share of the whole, so that large ones can work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from syncd.core.model import Side, Values
from syncd.core.plan import Operation


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``floor`` or ``share`` of what is linked, whichever is more."""

    floor: int
    share: float

    def allows(self, count: int, linked: int) -> bool:
        return count <= max(self.floor, int(linked * self.share))


@dataclass(frozen=True, slots=True)
class Limits:
    """A tenant's brakes."""

    deletes: Limit = Limit(5, 0.05)
    creates: Limit = Limit(200, 0.25)
    blankings: Limit = Limit(10, 0.05)
    one_field: Limit = Limit(100, 0.5)
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
    census: Census, linked: Mapping[str, int], limits: Limits, *, is_approved: bool, is_backfill: bool = False
) -> tuple[str, ...]:
    """The reasons why this plan must wait for a person; empty means go.

    ``linked`` counts links by kind. ``is_approved``: a person let this pair run before. A
    backfill is there to create, so that creations do not stop it; everything else does.
    """
    if not census.total:
        return ()
    if not is_approved:
        return ("the first run of this pair waits for approval",)
    found = [
        f"would delete {count} {kind} of {linked.get(kind, 0)} linked ({_name(side)})"
        for (kind, side), count in _over(census.deletes.items(), linked, limits.deletes)
    ]
    creates: Mapping[tuple[str, Side], int] = {} if is_backfill else census.creates
    found += [
        f"would create {count} {kind} beside {linked.get(kind, 0)} linked ({_name(side)})"
        for (kind, side), count in _over(creates.items(), linked, limits.creates)
    ]
    found += [
        f"would empty fields of {count} {kind} of {linked.get(kind, 0)} linked ({_name(side)})"
        for (kind, side), count in _over(census.blankings.items(), linked, limits.blankings)
    ]
    found += [
        f"would change {name} on {count} {kind} of {linked.get(kind, 0)} linked ({_name(side)})"
        for (kind, side, name), count in sorted(census.moves.items())
        if not limits.one_field.allows(count, linked.get(kind, 0))
    ]
    return tuple(found)


def shrunken(kind: str, side: Side, vanished: int, known: int, limits: Limits) -> str | None:
    """Why a listing that lacks ``vanished`` of ``known`` records is not believed; None if it may be."""
    if vanished and (vanished == known >= 3 or not limits.vanished.allows(vanished, known)):
        return f"{vanished} of {known} known {kind} are missing from a listing ({_name(side)})"
    return None


def _over(
    counts: Iterable[tuple[tuple[str, Side], int]], linked: Mapping[str, int], limit: Limit
) -> list[tuple[tuple[str, Side], int]]:
    return sorted((at, count) for at, count in counts if not limit.allows(count, linked.get(at[0], 0)))


def _name(side: Side) -> str:
    return "propstreet" if side is Side.LEFT else "crm"
