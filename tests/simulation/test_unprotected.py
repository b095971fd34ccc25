"""What the simulation does not see, it does not prove: each protection, once removed, is missed by a promise."""

from __future__ import annotations

import pytest

from tests.simulation.histories import play
from tests.simulation.unprotected import STEPS, TEN, Unprotected, hunt

pytestmark = pytest.mark.long

#: A history that found an engine may find it no more when the engine or the world changes: so many are tried.
TRIED = 100


@pytest.mark.parametrize("engine", TEN, ids=lambda each: each.name)
def test_an_engine_without_a_protection_is_found(engine: Unprotected) -> None:
    """By the promise that the protection is there for, in a history that the intact engine survives."""
    found = hunt(engine, range(engine.seed, engine.seed + TRIED))
    assert found is not None
    assert found.broken.startswith(engine.promise)


def test_what_was_taken_out_is_back_afterwards() -> None:
    """One engine after another: none inherits what the last one lacked."""
    before = play(1, STEPS).trace
    for engine in TEN:
        with engine.removal():
            pass
    assert play(1, STEPS).trace == before
