"""Why a value was written, so that it can be told later and decided again.

An operation keeps a ground for each of its fields: all that a merge decided on (``Because``), the
source's value of a new record, or a word for what no merge decided. ``again`` makes the decision
once more, by the very function that made it; nothing of it is looked up anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from syncd.core.mapping import UnfitValueError, freeze, thaw
from syncd.core.merge import Answer, Because, Chosen, Flow, Half, OnConflict, Policy, Step, Word, replay
from syncd.core.model import FieldType, Json, Side, Value
from syncd.core.plan import Operation

#: The rule of every field of a new record.
CREATED: Final = "created"


@dataclass(frozen=True, slots=True)
class Created:
    """A new record is given what its source holds, in the words of the side where it is made."""

    value: Value


@dataclass(frozen=True, slots=True)
class Said:
    """Something that concerns a record as a whole, or that no merge decided."""

    why: str


Ground: TypeAlias = Because | Created | Said


def grounds(operation: Operation) -> dict[str, Mapping[str, Json]]:
    """What decided each field of an operation, as it is kept; under ``""`` what decided the record's own fate."""
    if not operation.steps:
        return {"": keep(Said(operation.why))}
    return {name: keep(_ground(operation, step)) for name, step in operation.steps.items()}


def _ground(operation: Operation, step: Step) -> Ground:
    if step.because is not None:
        return step.because
    return Created(step.value) if operation.verb == "create" else Said(operation.why)


def again(ground: Ground, side: Side) -> Step | None:
    """What ``side`` is given on this ground, decided anew; None for nothing, and where no value was decided."""
    match ground:
        case Because():
            return replay(ground).get(side)
        case Created():
            return Step(ground.value, CREATED)
        case Said():
            return None


def settled_by(field: str, kept: Mapping[str, Json] | None) -> Answer | None:
    """The person's answer on which a field was decided, if it was on one."""
    ground = recall(field, kept) if kept else None
    return ground.settled if isinstance(ground, Because) else None


# --- kept as JSON -------------------------------------------------------------------------


def keep(ground: Ground) -> dict[str, Json]:
    """A ground as plain JSON, from which ``recall`` makes it again."""
    match ground:
        case Created():
            return {"created": _frozen(ground.value)}
        case Said():
            return {"why": ground.why}
        case Because():
            kept: dict[str, Json] = {
                "type": ground.type.value,
                "flow": ground.policy.flow.value,
                "conflict": ground.policy.conflict.value,
                "left": _half(ground.left, ground.field),
                "right": _half(ground.right, ground.field),
            }
            if ground.settled is not None:
                kept["person"] = keep_answer(ground.settled)
            return kept


def recall(field: str, kept: Mapping[str, Json]) -> Ground:
    """The ground that ``keep`` was given. Raises UnfitValueError for anything else."""
    match kept:
        case {"created": value}:
            return Created(_thawed(value, field))
        case {"why": str(why)}:
            return Said(why)
        case {"type": str(type_), "flow": str(flow), "conflict": str(conflict), "left": Mapping() as left,
              "right": Mapping() as right}:  # fmt: skip
            return Because(
                field,
                FieldType(type_),
                Policy(Flow(flow), OnConflict(conflict)),
                _recalled(left, field),
                _recalled(right, field),
                recall_answer(kept["person"]) if "person" in kept else None,
            )
    raise UnfitValueError(f"{field}: not a kept ground")


def keep_word(word: Word) -> dict[str, Json]:
    """A person's word as plain JSON, with the two values that were shown."""
    return {"answer": keep_answer(word.answer), "seen": list(word.seen) if word.seen is not None else None}


def recall_word(kept: Json) -> Word:
    """The word that ``keep_word`` was given; a bare side is one of which nobody kept what was shown."""
    if not isinstance(kept, Mapping):
        return Word(recall_answer(kept))
    seen = kept["seen"]
    return Word(recall_answer(kept["answer"]), (seen[0], seen[1]) if isinstance(seen, list) else None)


def keep_answer(answer: Answer) -> Json:
    """A person's answer: the side that wins, or the third value."""
    return {"chosen": _frozen(answer.value)} if isinstance(answer, Chosen) else answer.value


def recall_answer(kept: Json) -> Answer:
    """The answer that ``keep_answer`` was given."""
    if isinstance(kept, Mapping):
        return Chosen(_thawed(kept["chosen"], "a person's value"))
    return Side(str(kept))


def _half(half: Half, field: str) -> dict[str, Json]:
    kept: dict[str, Json] = {"writable": field in half.writable}
    for name, held in (("value", half.values), ("base", half.base)):
        if field in held:
            kept[name] = _frozen(held[field])
    if half.modified_at is not None:
        kept["at"] = half.modified_at.isoformat()
    if field in half.unreadable:
        kept["unreadable"] = True
    return kept


def _recalled(kept: Mapping[str, Json], field: str) -> Half:
    own = frozenset({field})
    return Half(
        values={field: _thawed(kept["value"], field)} if "value" in kept else {},
        base={field: _thawed(kept["base"], field)} if "base" in kept else {},
        modified_at=datetime.fromisoformat(str(kept["at"])) if "at" in kept else None,
        writable=own if kept["writable"] else frozenset(),
        unreadable=own if kept.get("unreadable") else frozenset(),
    )


def _frozen(value: Value) -> Json:
    return freeze({"": value})[""]


def _thawed(kept: Json, field: str) -> Value:
    return thaw({field: kept})[field]
