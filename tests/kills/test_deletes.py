"""Deletions travel, and the process dies wherever it can."""

from __future__ import annotations

import pytest

from tests.kills.conftest import Staged
from tests.kills.sample import CRM_OF, PLAYS, deaths

pytestmark = pytest.mark.long


@pytest.mark.parametrize("play", range(PLAYS))
@pytest.mark.parametrize("flow", ["delete-in-crm", "delete-in-propstreet"])
def test_killed_and_started_again_it_ends_as_if_it_had_not_been(staged: Staged, flow: str, play: int) -> None:
    """SIGKILL at each kind of point, of the recovering process too: no duplicate, no loss, nothing left open."""
    stage = staged(flow, CRM_OF[flow])
    stage.play(*deaths(stage, play))
