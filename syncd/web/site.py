"""What every part of the web side is given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from syncd.config import Configuration, WebConfig
from syncd.errors import SyncdError
from syncd.wiring import Service

#: A part of the process that was silent for so long is stuck.
SILENT_SECONDS: Final = 120.0


@dataclass(slots=True)
class Vitals:
    """Signs of life of the process's parts, by a clock that nobody sets. Any thread may beat."""

    now: Callable[[], float] = time.monotonic
    is_stopping: bool = False
    """Set first of all when the process is asked to stop, so that no more requests are sent its way."""
    _beats: dict[str, float] = field(default_factory=dict)

    def beat(self, part: str) -> None:
        """A part says that it lives; from now on its silence counts as stuck."""
        self._beats[part] = self.now()

    def end(self, part: str) -> None:
        """A part has ended as it should, and is missed no more."""
        self._beats.pop(part, None)

    def silent(self) -> tuple[str, ...]:
        """The parts that lived and have not been heard of for too long."""
        now = self.now()
        return tuple(sorted(part for part, at in self._beats.copy().items() if now - at > SILENT_SECONDS))


class Fortunes:
    """How the latest delivery to each connection ended, so that a flood of the same fills no log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str], str] = {}

    def turned(self, tenant: str, connection: str, outcome: str) -> bool:
        """Take note of one; True if the one before ended otherwise."""
        with self._lock:
            before = self._last.get((tenant, connection))
            self._last[tenant, connection] = outcome
            return before != outcome


class Order(Protocol):
    """Has a worker carry out what a person asked for: apply a saved plan, or plan what takes a run back.

    Returns at once. ``undo`` only saves a plan, as ``syncd undo`` does; applying that one is an order of its own.
    """

    def __call__(
        self, pair_id: str, reason: Literal["apply", "undo"], *, plan_id: str | None = None, run_id: str | None = None
    ) -> object: ...


def _nobody(
    pair_id: str, reason: Literal["apply", "undo"], *, plan_id: str | None = None, run_id: str | None = None
) -> None:
    raise SyncdError(f"{pair_id}: no worker takes orders here; use the command line")


@dataclass(frozen=True, slots=True)
class Site:
    """``tenants`` is the last good reading of the tenants' files; ``wake`` has a pair run as soon as a worker is free.

    ``wake`` takes a pair's id, ``tenant/pair``. Called again before the run began, it changes nothing. ``heed`` is the
    same for a run that only looks after what webhooks told; without it the pair is woken.
    """

    service: Service
    tenants: Callable[[], Configuration]
    wake: Callable[[str], object]
    settings: WebConfig
    vitals: Vitals = field(default_factory=Vitals)
    deliveries: Fortunes = field(default_factory=Fortunes)
    order: Order = _nobody
    heed: Callable[[str], object] | None = None
