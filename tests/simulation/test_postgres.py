"""What the simulation proves in memory is proven of PostgreSQL, and a history can be played again."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from tests.engine.world import PostgresState
from tests.simulation.histories import play
from tests.simulation.memory_rows import MemoryState
from tests.simulation.promises import broken
from tests.simulation.world import Simulation

pytestmark = pytest.mark.long

TABLES = ("feed", "link", "sighting", "match_review", "run", "plan", "operation", "change_log", "conflict", "dirty")


@pytest.mark.parametrize("seed", [5, 8])
def test_a_history_is_the_same_in_a_real_database_down_to_each_row(engine: Engine, seed: int) -> None:
    """The same calls, and the same content of every table, for HubSpot and for Salesforce."""
    real, memory = (Simulation(state, seed, 80) for state in (PostgresState(engine), MemoryState()))
    for simulation in (real, memory):
        simulation.play()
    for name in TABLES:
        assert real.state.dump(name) == memory.state.dump(name), name
    assert real.trace == memory.trace
    assert memory.tally.crashes > 0 and memory.tally.words > 0
    assert (broken(real), broken(memory)) == ([], [])


def test_the_same_seed_gives_the_same_history() -> None:
    """A broken one can be looked at as often as needed, and made smaller."""
    assert play(7, 200).trace == play(7, 200).trace
    assert play(7, 200).trace != play(9, 200).trace
