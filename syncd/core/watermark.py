"""How far a feed may advance: to the newest instant seen on the remote's own clock, never back.

A watermark is the raw string that the remote gave, because its digits may be finer than ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from syncd.core.mapping import instant

_FINER: Final = re.compile(r"\.\d{6}(\d+)")


def advance(current: str | None, seen: Iterable[str | None]) -> str | None:
    """The latest of the clocks seen and the current watermark; of equal instants the current one stays.

    Raises UnfitValueError for a clock that is no instant.
    """
    best = current
    for clock in seen:
        if clock is not None and is_later(clock, best or ""):
            best = clock
    return best


def is_later(one: str, other: str) -> bool:
    """True if the first clock string is the later instant, digits finer than microseconds included; any is later
    than an empty one."""
    first, second = instant(one, "clock"), instant(other, "clock")
    if first is None or second is None:
        return first is not None
    return (first, _rest(one)) > (second, _rest(other))


def less(clock: str, seconds: float) -> str:
    """The instant ``seconds`` before a clock string, as ISO 8601 with ``Z``; digits are cut, never rounded up."""
    found = instant(clock, "clock")
    if found is None:
        return clock
    return (found - timedelta(seconds=seconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _rest(clock: str) -> str:
    """Digits of the fraction beyond the sixth."""
    found = _FINER.search(clock)
    return found[1].rstrip("0") if found else ""
