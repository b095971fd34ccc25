"""People who edit at a steady pace, and how long each edit takes to be seen on the other side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from tests.faults.harness import Pair

#: Contacts of each side that are edited; as many as ``Pair.seed`` makes.
CONTACTS = 6


def now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - a soak is about real time


def sleep(seconds: float) -> None:
    time.sleep(seconds)  # noqa: TID251 - a soak is about real time


def at(values: Sequence[float], share: float) -> str:
    """The value that this share of the sorted ones lies below."""
    return f"{values[min(len(values) - 1, int(len(values) * share))]:.1f}" if values else "-"


@dataclass(frozen=True, slots=True)
class Edit:
    """One new last name: in which pair, whose, on which side it was typed, and when."""

    pair: int
    email: str
    name: str
    is_hub: bool
    made_at: datetime


class People:
    """Edits all over some pairs; the latest one of each contact is waited for."""

    def __init__(self, pairs: Sequence[Pair], seed: int, *, pause_seconds: float):
        self._pairs, self._random, self._pause = pairs, Random(seed), pause_seconds
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._steadily, args=each, daemon=True)
            for each in ((pause_seconds, self._anywhere), (0.5, self.look))
        ]
        self.waiting: dict[tuple[int, str], Edit] = {}
        self.seen: list[tuple[Edit, float]] = []
        self.left_alone: set[tuple[int, str]] = set()
        """Contacts that nobody edits."""
        self.edits = 0
        self._lock = threading.Lock()

    def __enter__(self) -> People:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.rest()

    def rest(self) -> None:
        """Edit nothing more."""
        self._over.set()
        for each in self._threads:
            each.join()

    def _steadily(self, seconds: float, act: Callable[[], None]) -> None:
        while not self._over.wait(seconds):
            act()

    def _anywhere(self) -> None:
        self.edit(self._random.randrange(len(self._pairs)))

    def edit(self, number: int) -> None:
        """Somebody of this pair edits."""
        pair, who = self._pairs[number], self._random.randrange(CONTACTS)
        is_hub = self._random.random() < 0.5
        # A contact is edited where it was made, so that the last edit must win.
        email = f"hub{who}@example.com" if is_hub else f"crm{who}@example.com"
        if (number, email) in self.left_alone:
            return
        self.edits += 1
        name = f"Name {self.edits}"
        with self._lock:
            (pair.hub_rename if is_hub else pair.crm_rename)(email, name)
            self.waiting[number, email] = Edit(number, email, name, is_hub, now())

    def look(self) -> None:
        """Take note of what has arrived."""
        for key, edit in list(self.waiting.items()):
            pair = self._pairs[edit.pair]
            last = (pair.crm_last if edit.is_hub else pair.hub_last)(edit.email)
            with self._lock:
                if last == edit.name and self.waiting.get(key) == edit:
                    del self.waiting[key]
                    self.seen.append((edit, (now() - edit.made_at).total_seconds()))
