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
CHAINS: Final = 2
#: And one death in the midst of the writes, where there are any.
PLAYS: Final = CHAINS + 1


def deaths(stage: Stage, play: int) -> list[tuple[str, int]]:
    """The deaths of a flow's n-th play: (point, passing) each, in the order in which they come."""
    if play == CHAINS:
        times = stage.counts()["send.after"]
        return [("send.after", (times + 1) // 2)] if times else []
    kinds = list(dict.fromkeys(point.partition(".")[0] for point in stage.passed))
    when = ("before", "after")[play % 2]
    return [(f"{kind}.{when}", 1) for kind in kinds[play::CHAINS]]
