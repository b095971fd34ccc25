"""What becomes of one field in every case there is, against the law as one would say it aloud.

A cell is what happened on each side since they were in step, times every policy, times every rule for
deletions, times who was later. The law stands here by itself, in values and outcomes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import NamedTuple

from syncd.core.merge import Flow, OnConflict, Policy
from syncd.core.model import FieldType, LinkState, Record, Side, Value
from syncd.core.plan import Decision, Fields, KindRules, OnDelete, Sighted, decide
from tests.core.cases import EARLY, LATE

NAME = frozenset({"name"})
FIELDS = Fields({"name": FieldType.TEXT}, NAME, NAME, NAME, NAME)


class Event(StrEnum):
    """What happened to the field on one side. Restored: both had it empty, and one has it again."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    BLANKED = "blanked"
    DELETED = "deleted"
    RESTORED = "restored"


class Cell(NamedTuple):
    left: Event
    right: Event
    flow: Flow
    conflict: OnConflict
    on_delete: OnDelete
    later: Side | None

    @property
    def base(self) -> str | None:
        return None if Event.RESTORED in (self.left, self.right) else "old"

    def value(self, side: Side) -> str | None:
        match self.event(side):
            case Event.CHANGED:
                return f"new on the {side}"
            case Event.RESTORED:
                return f"back on the {side}"
            case Event.BLANKED:
                return None
            case _:
                return self.base

    def event(self, side: Side) -> Event:
        return self.left if side is Side.LEFT else self.right

    def moved(self, side: Side) -> bool:
        return self.value(side) != self.base


@dataclass(frozen=True)
class Outcome:
    """Who is given what; what is kept of a loser, or held; what becomes of the records."""

    given: tuple[Side, Value] | None = None
    winner: Side | None = None
    is_kept: bool = False
    record: str = ""


CELLS = [
    Cell(*each) for each in product(Event, Event, Flow, OnConflict, OnDelete, (Side.LEFT, Side.RIGHT, None))
]  # fmt: skip
SOURCE = {Flow.TO_CRM: Side.LEFT, Flow.TO_PROPSTREET: Side.RIGHT}
WINNER = {OnConflict.PROPSTREET: Side.LEFT, OnConflict.CRM: Side.RIGHT, OnConflict.HOLD: None}


def law(cell: Cell) -> Outcome:
    """The rules, the first that speaks decides."""
    gone = [side for side in Side if cell.event(side) is Event.DELETED]
    if len(gone) == 2:
        return Outcome(record="over")
    if gone:  # An edit wins over a deletion; an untouched record follows the tenant's rule.
        alive = gone[0].other
        if cell.moved(alive):
            held = cell.value(alive)
            return Outcome(None if held is None else (gone[0], held), record="made again")
        return Outcome(record={"archive": "deleted", "hold": "held", "ignore": "over"}[cell.on_delete])
    left, right = cell.value(Side.LEFT), cell.value(Side.RIGHT)
    if left == right or cell.flow is Flow.OFF:
        return Outcome()
    if (source := SOURCE.get(cell.flow)) is not None:  # The source is repeated; what it covers is kept.
        is_covering = cell.moved(source.other) and cell.value(source.other) is not None
        return Outcome((source.other, cell.value(source)), source if is_covering else None, is_covering)
    if cell.flow is Flow.IF_EMPTY:  # Only news goes, and only into emptiness.
        fills = [side for side in Side if cell.moved(side) and cell.value(side.other) is None]
        return Outcome((fills[0].other, cell.value(fills[0]))) if fills else Outcome()
    moved = [side for side in Side if cell.moved(side)]
    if len(moved) == 1:
        return Outcome((moved[0].other, cell.value(moved[0])))
    winner = (cell.later or Side.LEFT) if cell.conflict is OnConflict.NEWEST else WINNER[cell.conflict]
    return Outcome((winner.other, cell.value(winner)) if winner else None, winner, is_kept=True)


def decided(cell: Cell) -> Decision:
    def seen(side: Side) -> Sighted:
        at = LATE if cell.later is side else EARLY
        is_deleted = cell.event(side) is Event.DELETED
        record = Record("deal", "1", {"name": cell.value(side)}, modified_at=at, is_deleted=is_deleted)
        return Sighted(record, {"name": cell.base})

    rules = KindRules(
        deletes_to_left=cell.on_delete, deletes_to_right=cell.on_delete, default=Policy(cell.flow, cell.conflict)
    )
    return decide("deal", seen(Side.LEFT), seen(Side.RIGHT), FIELDS, rules)


def outcome(cell: Cell, decision: Decision) -> Outcome:
    """A decision in the words of the law."""
    given = [(op.side, step.value) for op in decision.operations for step in op.steps.values()]
    assert len(given) <= 1
    verbs = {"create": "made again", "delete": "deleted"}
    record = verbs.get(decision.operations[0].verb, "") if decision.operations else ""
    if decision.is_over:
        record = "over"
    if decision.deletion is not None:
        assert cell.event(decision.deletion) is Event.DELETED
        record = "held"
    (kept, *others) = decision.merged.conflicts or (None,)
    assert not others
    if kept is not None:
        assert (kept.base, kept.left, kept.right) == (cell.base, cell.value(Side.LEFT), cell.value(Side.RIGHT))
    return Outcome(given[0] if given else None, kept.winner if kept else None, kept is not None, record)


def wrong() -> Iterator[str]:
    for cell in CELLS:
        found, wanted = outcome(cell, decided(cell)), law(cell)
        if found != wanted:
            yield f"{' '.join(map(str, cell))}: {found}, not {wanted}"


def test_every_cell_of_the_truth_table_is_as_the_law_says() -> None:
    """Five events on each side, five flows, four conflict rules, three rules for deletions, three orders in time."""
    assert len(CELLS) == len(set(CELLS)) == 5 * 5 * 5 * 4 * 3 * 3 == 4500
    assert not [*wrong()]


def test_the_state_of_a_link_tells_what_it_waits_for() -> None:
    """In step where nothing is to be done or known, pending for a record, conflict for a person."""
    for cell in CELLS:
        decision, wanted = decided(cell), law(cell)
        waits = wanted.record == "held" or (wanted.is_kept and wanted.winner is None)
        is_pending = wanted.record in ("made again", "deleted")
        state = LinkState.CONFLICT if waits else LinkState.PENDING if is_pending else LinkState.IN_STEP
        assert decision.state is state, cell


def test_a_record_that_came_back_is_one_that_never_left() -> None:
    """A deletion that was held moves no base, so that a restored record is compared with what it was."""
    for cell in CELLS:
        if Event.DELETED in (cell.left, cell.right) and cell.on_delete is OnDelete.HOLD:
            assert decided(cell).merged.conflicts == ()
            assert not decided(cell).merged.to_left
            assert not decided(cell).merged.to_right
