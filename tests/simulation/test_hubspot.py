"""Histories of Propstreet and HubSpot in memory; the promises hold after each. ``make simulate`` plays more."""

from __future__ import annotations

import pytest

from tests.simulation.histories import HUBSPOT, STEPS, play

pytestmark = pytest.mark.long


@pytest.mark.parametrize("seed", HUBSPOT)
def test_the_promises_hold_after_every_history(seed: int) -> None:
    """Whatever people, the two systems and the weather did, and wherever the process died."""
    assert play(seed, STEPS).broken == ()
