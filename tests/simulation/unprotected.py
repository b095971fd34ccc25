"""``make unprotected``: can the simulation see? Engines without one protection each, and the first history to find it.

A protection is taken out by patching the code that gives it, and nothing else. An engine counts as
found where a history breaks the very promise that the protection is there for, while the intact
engine keeps all of them in the same history. That it crashes, or breaks something else, does not
count. One that is not found means that the world is too kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final
from unittest.mock import patch

import click

from syncd.connector import Page, Pull
from syncd.core import base
from syncd.core.merge import Step
from syncd.core.model import FieldType, Side, Values
from syncd.core.plan import Operation
from syncd.core.watermark import within
from syncd.engine import apply, pull
from syncd.engine.context import Context
from syncd.state.journal import Entry, Journal
from syncd.state.rows import Row
from syncd.state.store import NO_FEED
from tests.simulation import vendors
from tests.simulation.histories import play
from tests.simulation.memory_rows import MemoryRows, MemoryState

STEPS: Final = 200
#: An engine that so many histories do not find is not found.
LIMIT: Final = 300


@dataclass(frozen=True, slots=True)
class Unprotected:
    """An engine without one of its protections: what is gone, and the promise that was kept by it.

    ``seed`` is the first that finds it.
    """

    name: str
    removed: str
    promise: str
    removal: Callable[[], AbstractContextManager[object]]
    seed: int


@dataclass(frozen=True, slots=True)
class Found:
    """The first history that an engine does not survive and the intact one does."""

    seed: int
    histories: int
    broken: str


def hunt(engine: Unprotected, seeds: Iterable[int]) -> Found | None:
    """Play histories until one breaks the promise for want of its protection; None if none does."""
    for count, seed in enumerate(seeds, 1):
        with engine.removal():
            broken = [each for each in play(seed, STEPS).broken if each.startswith(engine.promise)]
        if broken and not _breaks_anyway(seed):
            return Found(seed, count, broken[0])
    return None


@cache
def _breaks_anyway(seed: int) -> bool:
    return bool(play(seed, STEPS).broken)


# --- what is taken out --------------------------------------------------------------------


@contextmanager
def _no_overlap() -> Iterator[None]:
    with patch.object(vendors, "OVERLAP_SECONDS", 0), patch.object(vendors, "DEEP_OVERLAP_SECONDS", 0):
        yield


def _watermark_first() -> AbstractContextManager[object]:
    drain = pull.drain

    def hasty(ctx: Context, side: Side, group: Sequence[str], outset: pull.Outset, **asked: object) -> None:
        connector = ctx.systems[side].connector
        shown = connector.pull

        def noted(request: Pull) -> Iterator[Page]:
            at, pages = ctx.now(), list(shown(request))
            for kind in request.kinds:
                clocks = [page.clock for page in pages if page.kind == kind and page.parent is None and page.clock]
                notes: dict[str, object] = {"listed_at": at} if request.watermarks.get(kind) is None else {}
                notes |= {"deep_at": at} if request.is_deep else {}
                ctx.store.advance(side, kind, "", within(clocks, at), known=NO_FEED, **notes)
            yield from pages

        with patch.object(connector, "pull", noted):
            drain(ctx, side, group, outset, **asked)  # type: ignore[arg-type]  # handed on as it came

    return patch("syncd.engine.run.drain", hasty)


@contextmanager
def _base_as_sent() -> Iterator[None]:
    def confirmed(
        types: Mapping[str, FieldType],
        to: Side,
        steps: Mapping[str, Step],
        source: Values,
        bases: tuple[Values, Values],
        _: Values,
    ) -> base.Halves:
        return base.confirmed(types, to, steps, source, bases, _sent(steps))

    def founded(
        types: Mapping[str, FieldType],
        to: Side,
        steps: Mapping[str, Step],
        source: Values,
        returned: Values,
        shares: Mapping[str, str | None],
    ) -> base.Halves:
        return base.founded(types, to, steps, source, {**returned, **_sent(steps)}, shares)

    with patch.object(apply, "confirmed", confirmed), patch.object(apply, "founded", founded):
        yield


def _sent(steps: Mapping[str, Step]) -> Values:
    return {name: step.value for name, step in steps.items()}


def _no_journal() -> AbstractContextManager[object]:
    def intend(self: Journal, entries: Sequence[Entry], at: datetime) -> None:
        # A commit as before, or another moment would be drawn for each crash.
        self._rows.update_operations([{"id": each.id, "state": "planned"} for each in entries])

    return patch.object(Journal, "intend", intend)


def _no_second_look() -> AbstractContextManager[object]:
    return patch.object(apply._Batch, "_read_before_write", lambda self: None)


def _refs_replaced() -> AbstractContextManager[object]:
    counterpart = apply._Batch._counterpart

    def always(self: apply._Batch, op: Operation) -> str | None:
        if op.target is None or op.verb != "update" or self.side is not Side.LEFT:
            return counterpart(self, op)
        return self.links[op.target.id].side(self.side.other).record.id

    return patch.object(apply._Batch, "_counterpart", always)


@contextmanager
def _no_brakes() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(patch("syncd.engine.run.brakes", lambda *_, **__: ()))
        for name in ("shrunken", "emptied"):
            stack.enter_context(patch.object(pull, name, lambda *_: None))
        yield


def _no_fence() -> AbstractContextManager[object]:
    return patch.object(MemoryState, "prove", lambda self, lease: None)


def _is_of(row: Row, side: Side, kind: str, ids: Container[str]) -> bool:
    return (row["side"], row["kind"]) == (side, kind) and row["id"] in ids


def _word_forgotten() -> AbstractContextManager[object]:
    def drop_dirty(self: MemoryRows, side: Side, kind: str, read: Mapping[str, int]) -> None:
        drop(self, side, kind, {each["id"]: each["hints"] for each in self.dirty() if _is_of(each, side, kind, read)})

    drop = MemoryRows.drop_dirty
    return patch.object(MemoryRows, "drop_dirty", drop_dirty)


def _gone_at_once() -> AbstractContextManager[object]:
    read_dirty = pull._read_dirty

    def hasty(*args: Any) -> dict[str, set[str]]:
        read_dirty(*args)
        return {}

    return patch.object(pull, "_read_dirty", hasty)


TEN: Final = (
    Unprotected(
        "no overlap", "A feed is read from its watermark on, not from some time before it.",
        "convergence", _no_overlap, 3,
    ),
    Unprotected(
        "watermark first", "A feed advances before what its pages showed is written down.",
        "state", _watermark_first, 30,
    ),
    Unprotected(
        "base as sent", "The base is what was sent, not what the system returned.",
        "echo", _base_as_sent, 2,
    ),
    Unprotected(
        "no journal", "That an operation may have been sent is not written down before it is sent.",
        "no loss", _no_journal, 5,
    ),
    Unprotected(
        "no second look", "A system without conditional writes is written without reading it again.",
        "no loss", _no_second_look, 3,
    ),
    Unprotected(
        "refs replaced", "Each update of Propstreet sends externalRefs, which replaces all of them.",
        "minimal writes", _refs_replaced, 1,
    ),
    Unprotected(
        "no brakes", "No plan is held and each listing is believed, however much it takes away.",
        "brakes", _no_brakes, 1,
    ),
    Unprotected(
        "no fence", "Nobody looks whether the lease was lost, before a commit or when it is renewed.",
        "isolation", _no_fence, 1,
    ),
    Unprotected(
        "word forgotten", "What webhooks spoke of is clean once read, though they spoke of it again meanwhile.",
        "hints", _word_forgotten, 13,
    ),
    Unprotected(
        "gone at once", "What webhooks told to be gone is not read again until an index has followed.",
        "hints", _gone_at_once, 41,
    ),
)  # fmt: skip


def main() -> None:
    """Exits 1 if an engine is not found."""
    parser = argparse.ArgumentParser(prog="make unprotected")
    parser.add_argument("--seeds", default=f"1..{LIMIT}", help="from..to, both included")
    parser.add_argument("--only", choices=[each.name for each in TEN])
    asked = parser.parse_args()
    first, _, last = asked.seeds.partition("..")
    missed = 0
    for engine in TEN:
        if asked.only in (None, engine.name):
            found = hunt(engine, range(int(first), int(last or first) + 1))
            missed += found is None
            click.echo(f"{engine.name:<16} {_told(found)}")
    raise SystemExit(1 if missed else 0)


def _told(found: Found | None) -> str:
    if found is None:
        return "not found: the simulation is too kind"
    return f"found by seed {found.seed} after {found.histories} histories: {found.broken}"


if __name__ == "__main__":
    main()
