"""The webhooks of a history: what the two systems tell of what moved, and when it arrives, if it does.

Words are lost, doubled, late and out of order; some are told before what they speak of can be
read, some of records that are gone by then or that nobody knows. What arrives is kept as the
intake keeps it (``syncd/state/deliveries.py``). Nothing here is drawn from the history's own
chances: without webhooks it is the same as it was before there were any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heappop, heappush
from random import Random
from typing import Any, Final

from syncd.core.model import RELATIONS, Record, Side
from tests.simulation.vendors import EACH, Manner, Vendor

#: How late a word is, in seconds: most come at once, some after the record has been through more.
LATE: Final = (0.0, 0.0, 0.5, 2.0, 10.0, 60.0, 400.0, 3_600.0)


@dataclass(frozen=True, slots=True)
class Telling:
    """How a system's webhooks are in one history.

    ``names_records``: each word says which record moved; else it only wakes the pair, as Salesforce's do.
    """

    lost: float
    doubled: float
    late: float
    astray: float
    names_records: bool

    @classmethod
    def drawn(cls, random: Random, manner: Manner) -> Telling:
        return cls(
            lost=random.choice([0.0, 0.1, 0.5]),
            doubled=random.choice([0.0, 0.1, 0.4]),
            late=random.choice([0.0, 0.2, 0.7]),
            astray=random.choice([0.0, 0.05]),
            # Neither Propstreet nor Salesforce names records, but another connector of such a system may.
            names_records=manner is Manner.HUBSPOT or random.random() < 0.5,
        )


@dataclass(order=True, frozen=True, slots=True)
class Word:
    """What one delivery tells, and when it arrives."""

    due_at: datetime
    number: int
    side: Side = field(compare=False)
    kind: str = field(compare=False)
    ids: tuple[str, ...] = field(compare=False, default=())
    parents: tuple[str, ...] = field(compare=False, default=())


class Post:
    """All words of a history: on their way, arrived, and looked after since."""

    def __init__(self, seed: int, vendors: dict[Side, Vendor], now: Callable[[], datetime]):
        self._seed, self._vendors, self._now = seed, vendors, now
        chances = Random(f"{seed} webhooks")
        self.random = Random(f"{seed} words")
        self._telling = {side: Telling.drawn(chances, vendor.manner) for side, vendor in vendors.items()}
        self._on_the_way: list[Word] = []
        self._number = 0
        self._told: dict[tuple[Side, str, str], int] = {}
        """When each record was spoken of last, in order of all that happens here."""
        self._looked: dict[tuple[Side, str, str], int] = {}
        """When each was asked for last."""
        self.gone: set[tuple[Side, str, str]] = set()
        """What was spoken of after it was deleted, and is deleted still."""
        for side, vendor in vendors.items():
            vendor.on_change = lambda record, side=side: self._speak(side, record)  # type: ignore[misc]  # bound early
            vendor.on_look = lambda kind, ids, side=side: self._see(side, kind, ids)  # type: ignore[misc]  # bound early
        if vendors[Side.RIGHT].manner is Manner.HUBSPOT and chances.random() < 0.5:
            vendors[Side.RIGHT].sweep_calls = 400

    def begin_step(self, number: int) -> None:
        """Each step has chances of its own, here too."""
        self.random.seed(f"{self._seed} {number} words")

    # --- speaking ---------------------------------------------------------------------

    def _speak(self, side: Side, record: Record) -> None:
        """Something moved, or is about to: whoever made it."""
        telling = self._telling[side]
        if not record.is_deleted:
            self.gone.discard((side, record.kind, record.id))
        self._post(side, record, telling)
        if self.random.random() < telling.astray:
            others = [row.record for rows in self._vendors[side].rows.values() for row in rows.values()]
            self._post(side, self.random.choice(others), telling)

    def _post(self, side: Side, record: Record, telling: Telling) -> None:
        manner = self._vendors[side].manner
        kind = record.kind
        ids: tuple[str, ...] = (record.id,)
        parents: tuple[str, ...] = ()
        if manner is Manner.HUBSPOT and kind in RELATIONS:
            # Of an association the parent is told.
            ids = (str(record.parent),)
        elif manner is Manner.PROPSTREET and kind == "deal_contact":
            ids, parents = (), (str(record.parent),)
        if self.random.random() < telling.astray:
            ids = (*ids, f"nowhere{self.random.randrange(3)}")
        if not telling.names_records:
            ids = ()
        copies = 0 if self.random.random() < telling.lost else 1
        copies += self.random.random() < telling.doubled
        for _ in range(copies):
            late = self.random.choice(LATE) if self.random.random() < telling.late else 0.0
            self._number += 1
            due_at = self._now() + timedelta(seconds=late * self.random.random())
            heappush(self._on_the_way, Word(due_at, self._number, side, kind, ids, parents))

    def tell(self, side: Side, kind: str, ids: Collection[str]) -> None:
        """Words of these are sent now, whether anything moved or not."""
        for id_ in ids:
            self._number += 1
            heappush(self._on_the_way, Word(self._now(), self._number, side, kind, (id_,)))

    def arriving(self, until: datetime) -> Iterator[Word]:
        """Words that arrive by then, in the order in which they do."""
        while self._on_the_way and self._on_the_way[0].due_at <= until:
            word = heappop(self._on_the_way)
            yield word
            self._number += 1
            rows = self._vendors[word.side].rows[word.kind]
            for id_ in word.ids:
                self._told[word.side, word.kind, id_] = self._number
                if id_ in rows and rows[id_].record.is_deleted:
                    self.gone.add((word.side, word.kind, id_))

    # --- what became of it ------------------------------------------------------------

    def _see(self, side: Side, kind: str, ids: Collection[str]) -> None:
        self._number += 1
        for id_ in ids:
            self._looked[side, kind, id_] = self._number

    def forgotten(self, dirty: list[dict[str, Any]], is_read: Callable[[Side, str, str], bool]) -> list[str]:
        """What was spoken of and is dirty no more, though nobody has asked for it since; of those that ``is_read``."""
        waiting = {(row["side"], row["kind"], row["id"]) for row in dirty}
        found = []
        for (side, kind, id_), told in list(self._told.items()):
            if (side, kind, id_) in waiting:
                continue
            looked = max(self._looked.get((side, kind, each), 0) for each in (id_, EACH))
            if looked < told and is_read(side, kind, id_):
                found.append(f"hints: nobody asked for {side} {kind} {id_} after the last word of it")
            del self._told[side, kind, id_]
        return found
