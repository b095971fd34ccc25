"""Histories as cases: played in memory, made smaller where they are broken, kept as regressions."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tests.simulation.memory_rows import MemoryState
from tests.simulation.promises import broken
from tests.simulation.world import Simulation, Tally

STEPS: Final = 200
#: What is played in each run of the tests: odd seeds meet HubSpot, even ones Salesforce.
HUBSPOT: Final = range(1, 101, 2)
SALESFORCE: Final = range(2, 101, 2)
#: So many histories at most are played to make one smaller.
PATIENCE = 150


@dataclass(frozen=True, slots=True)
class Case:
    """One history: a seed, its number of steps, and those that are left out."""

    seed: int
    steps: int
    left_out: frozenset[int] = frozenset()
    is_deaf: bool = False
    """No webhooks are heard, whatever the seed says: it was found before there were any."""

    def __str__(self) -> str:
        kept = [number for number in range(self.steps) if number not in self.left_out]
        return f"{len(kept)} steps do: keeping({self.seed}, {self.steps}, {kept})"


def keeping(seed: int, steps: int, kept: Iterable[int]) -> Case:
    """A case by the steps that stay, as ``str`` shows it."""
    return Case(seed, steps, frozenset(range(steps)) - frozenset(kept))


@dataclass(frozen=True, slots=True)
class Played:
    """How a history ended."""

    seed: int
    case: Case
    tally: Tally
    trace: str
    broken: tuple[str, ...]


def play(seed: int, steps: int, left_out: frozenset[int] = frozenset(), *, is_deaf: bool = False) -> Played:
    """Play one history in memory and hold the world against the promises. An exception breaks one too."""
    state = MemoryState()
    simulation = Simulation(state, seed, steps, left_out=left_out, is_deaf=is_deaf)
    state.on_commit = simulation.on_commit
    try:
        simulation.play()
        found = broken(simulation)
    except Exception:  # noqa: BLE001 - whatever it is, it breaks the history, and is told
        found = ["no crash: " + traceback.format_exc(limit=-4)]
    return Played(seed, Case(seed, steps, left_out, is_deaf), simulation.tally, simulation.trace, tuple(found))


def _gist(told: str) -> str:
    """What broke, whichever records and values it struck."""
    return re.sub(r"\S*\d\S*|'.*'", "", told)


def shrink(found: Played) -> Case:
    """A smaller history that breaks the same promise: steps are left out, first many at once, then one by one."""
    gist = _gist(found.broken[0])
    case, patience = found.case, PATIENCE
    size = max(1, case.steps // 2)
    while size and patience:
        start, is_smaller = 0, False
        while start < case.steps and patience:
            extra = frozenset(range(start, min(case.steps, start + size))) - case.left_out
            if extra:
                patience -= 1
                tried = play(case.seed, case.steps, case.left_out | extra, is_deaf=case.is_deaf)
                if gist in map(_gist, tried.broken):
                    case, is_smaller = tried.case, True
            start += size
        if not is_smaller or size > 1:
            size //= 2
    return case
