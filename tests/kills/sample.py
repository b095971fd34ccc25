"""What CI kills of all that ``make kills`` does: every kind of point in every flow, on one of the two CRMs.

A process that recovers may die as well. So one play has several deaths, each at the first passing
of a kind that no process before it came to; none of them can fail to be reached.
"""

from __future__ import annotations

from typing import Final

from tests.kills.flows import FLOWS
from tests.kills.stage import Stage

#: In turns, so that each half of the flows runs on each CRM.
CRM_OF: Final = {flow: ("hubspot", "salesforce")[place % 2] for place, flow in enumerate(FLOWS)}
#: One play dies at every kind of point in turn; the other once, in the midst of the writes, where there are any.
PLAYS: Final = 2


def deaths(stage: Stage, play: int) -> list[tuple[str, int]]:
    """The deaths of a flow's n-th play: (point, passing) each, in the order in which they come."""
    if play == 1:
        times = stage.counts()["send.after"]
        return [("send.after", (times + 1) // 2)] if times else []
    kinds = dict.fromkeys(point.partition(".")[0] for point in stage.passed)
    return [(f"{kind}.{('before', 'after')[place % 2]}", 1) for place, kind in enumerate(kinds)]
