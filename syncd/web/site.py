"""What every part of the web side is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from syncd.config import Configuration, WebConfig
from syncd.wiring import Service


@dataclass(frozen=True, slots=True)
class Site:
    """``tenants`` is the last good reading of the tenants' files; ``wake`` has a pair run as soon as a worker is free.

    ``wake`` takes a pair's id, ``tenant/pair``. Called again before the run began, it changes nothing.
    """

    service: Service
    tenants: Callable[[], Configuration]
    wake: Callable[[str], object]
    settings: WebConfig
