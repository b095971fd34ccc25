"""Histories of Propstreet, HubSpot and Salesforce, played in memory; the promises hold after each.

``make simulate`` plays more of them.
"""

from __future__ import annotations

import pytest

from tests.simulation.histories import play

STEPS = 200
SEEDS = range(1, 81)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_promises_hold_after_every_history(seed: int) -> None:
    """Whatever people, vendors and the weather did, and wherever the process died."""
    assert play(seed, STEPS).broken == ()


def test_the_same_seed_gives_the_same_history() -> None:
    """A broken one can be looked at as often as needed, and made smaller."""
    assert play(7, STEPS).trace == play(7, STEPS).trace
    assert play(7, STEPS).trace != play(9, STEPS).trace
