"""Runs, saved plans and the journal of operations.

A plan is its operations. Each is written down before it is sent, so that after a crash it is
known which ones may have had an effect. The hash of a plan covers what a person sees of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Engine

from syncd.core.mapping import freeze, show, thaw
from syncd.core.merge import Step
from syncd.core.model import Address, Json, Side, Value, Values, Verb
from syncd.core.plan import Operation
from syncd.errors import NotFoundError
from syncd.state.postgres import find_plans, operations_of
from syncd.state.rows import EMPTIED, Row
from syncd.state.store import Store


@dataclass(frozen=True, slots=True)
class Entry:
    """An operation in the journal.

    ``before`` is what the target held, for the fields it changes; ``source`` what the source held,
    in its own words; ``precondition`` a digest of the target as it was planned against; ``because``
    what decided each field, as ``core.why`` keeps it.
    """

    operation: Operation
    key: str
    before: Values
    source: Values
    precondition: str | None
    conflicts: Sequence[Mapping[str, Json]] = ()
    because: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    id: int = 0
    state: str = "planned"

    @property
    def steps(self) -> Mapping[str, Step]:
        return self.operation.steps


def digest(values: Values, refs: Mapping[str, str]) -> str:
    """A short proof that a record says what it said; tells nothing of what that was."""
    told = json.dumps([freeze(values), sorted(refs.items())], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Plan:
    """A saved plan: whose, in which state, and the hash of what a person sees of it."""

    id: str
    pair: str
    state: str
    hash: str
    reasons: Sequence[str]
    """Why it waits for a person, if it does."""


class Journal:
    """The runs and plans of one pair; writes under the store's lease, and in its transaction if one is open."""

    def __init__(self, store: Store):
        self._store = store
        self._rows = store.rows
        self._pair = store.pair

    # --- runs -------------------------------------------------------------------------

    def begin_run(self, run_id: str, reason: str, at: datetime) -> None:
        fence = self._store.lease.fence
        with self._store.transaction():
            self._rows.insert_run(
                {"id": run_id, "pair": self._pair, "reason": reason, "state": "running", "fence": fence,
                 "started_at": at}
            )  # fmt: skip

    def end_run(
        self,
        run_id: str,
        state: str,
        at: datetime,
        counts: Mapping[str, Any],
        cost: Mapping[str, Any],
        message: str,
        error: str | None = None,
    ) -> None:
        told = {"state": state, "finished_at": at, "counts": counts, "cost": cost, "message": message, "error": error}
        with self._store.transaction():
            self._rows.update_run(run_id, told)

    def unfinished_backfill(self) -> datetime | None:
        """When the backfill began that was cut off before it ended, if the last one was."""
        began = None
        for row in self._rows.backfills():
            if row["state"] == "done":
                break
            if row["state"] != "running":
                began = row["started_at"]
        return began

    # --- plans ------------------------------------------------------------------------

    def open_plan(self, plan_id: str, run_id: str, at: datetime, *, is_undo: bool = False) -> None:
        """Begin a plan. Plans that were open before are superseded; an undo and others leave each other."""
        with self._store.transaction():
            if not is_undo:
                self._rows.discard_plans(at)
            self._rows.insert_plan(
                {"id": plan_id, "pair": self._pair, "run": run_id, "hash": "", "state": "open", "made_at": at}
            )

    def add(self, plan_id: str, entries: Sequence[Entry]) -> None:
        with self._store.transaction():
            self._rows.insert_operations([_row(self._pair, plan_id, entry) for entry in entries])

    def seal(self, plan_id: str, reasons: Sequence[str], counts: Mapping[str, Any]) -> str:
        """Give a plan its hash and the reasons for which it waits, if it does."""
        hasher = hashlib.sha256()
        for entry in self.entries(plan_id):
            hasher.update(json.dumps(describe(entry), sort_keys=True).encode())
        with self._store.transaction():
            self._rows.update_plan(
                plan_id, {"hash": hasher.hexdigest(), "reasons": list(reasons), "counts": counts}
            )  # fmt: skip
        return hasher.hexdigest()

    def set_plan(self, plan_id: str, state: str, at: datetime | None = None) -> None:
        """How a plan stands. One that is refused is never carried out, so that its operations are emptied."""
        with self._store.transaction():
            self._rows.update_plan(plan_id, {"state": state, "ended_at": at})
            rows = self._rows.operations(plan_id, "planned") if state == "refused" else iter(())
            while batch := [{"id": row["id"], **EMPTIED} for row in islice(rows, 500)]:
                self._rows.update_operations(batch)

    def abandon(self, at: datetime, *, but: str | None = None) -> None:
        """Discard the plans that a run left behind when it died: drawn up and not told of, or half carried out.

        Whoever holds the lease knows that nobody works on them any more. ``but`` is one that goes on.
        """
        with self._store.transaction():
            self._rows.abandon_plans(at, but)

    def entries(self, plan_id: str, *, state: str | None = None) -> Iterator[Entry]:
        """All operations of a plan in the order in which they are applied, some at a time."""
        return map(entry_of, self._rows.operations(plan_id, state))

    def take(self, plan_id: str, kind: str, verb: Verb, side: Side, limit: int) -> list[Entry]:
        """The next operations of one sort that nobody sent yet."""
        return [entry_of(row) for row in self._rows.planned(plan_id, kind, verb, side, limit)]

    def to_follow(self, plan_id: str, kind: str, side: Side, groups: Sequence[str]) -> list[Entry]:
        """Creates of one kind that nobody sent yet, of these groups."""
        return [entry_of(row) for row in self._rows.planned_creates(plan_id, kind, side, groups)]

    def lost(self) -> list[Entry]:
        """Operations that may have been sent by a run that did not live to see the answer."""
        return [entry_of(row) for row in self._rows.open_operations()]

    def intend(self, entries: Sequence[Entry], at: datetime) -> None:
        """Write down, before sending, that these may from now on have taken effect."""
        with self._store.transaction():
            self._rows.update_operations([{"id": each.id, "state": "sent", "sent_at": at} for each in entries])

    def close(self, ends: Sequence[tuple[Entry, str, str]], at: datetime) -> None:
        """How operations ended, (entry, state, outcome) each: ``done``, ``failed``, or ``dropped`` unsent.

        What they held of records goes: it was there to be sent, and to be looked up after a crash.
        """
        if not ends:
            return
        rows = [{"id": e.id, "state": state, "outcome": told, "settled_at": at, **EMPTIED} for e, state, told in ends]
        with self._store.transaction():
            self._rows.update_operations(rows)


def describe(entry: Entry) -> dict[str, Json]:
    """An operation as ``syncd plan --json`` shows it, and as a plan's hash sees it."""
    op = entry.operation
    return {
        "verb": op.verb,
        "kind": op.kind,
        "side": "propstreet" if op.side is Side.LEFT else "crm",
        "propstreet": _bare(op, Side.LEFT),
        "crm": _bare(op, Side.RIGHT),
        "fields": {
            name: {"old": show(entry.before.get(name)), "new": show(step.value), "rule": step.rule}
            for name, step in op.steps.items()
        },
        "refs": dict(op.refs),
        "why": op.why,
    }


def _bare(op: Operation, side: Side) -> str | None:
    if op.side is side:
        return op.target.id if op.target is not None else None
    return op.source


def find_plan(engine: Engine, plan_id: str) -> Plan:
    """A saved plan by its id or an unambiguous beginning of it. Raises NotFoundError."""
    rows = find_plans(engine, plan_id)
    if len(rows) != 1:
        raise NotFoundError(f"no plan {plan_id!r}; syncd status names the plans that wait")
    return Plan(rows[0]["id"], rows[0]["pair"], rows[0]["state"], rows[0]["hash"], rows[0]["reasons"])


def read_entries(engine: Engine, plan_id: str) -> Iterator[Entry]:
    """All operations of a plan of any pair in the order in which they are applied, some at a time."""
    return map(entry_of, operations_of(engine, plan_id))


def _row(pair: str, plan_id: str, entry: Entry) -> dict[str, object]:
    op = entry.operation
    return {
        "plan": plan_id,
        "pair": pair,
        "kind": op.kind,
        "verb": op.verb,
        "side": str(op.side),
        "source_id": op.source,
        "target_id": op.target.id if op.target is not None else None,
        "target_parent": op.target.parent if op.target is not None else None,
        "group_key": _group(op),
        "steps": freeze({name: step.value for name, step in op.steps.items()}),
        "refs": {
            "ids": dict(op.refs),
            "rules": {name: step.rule for name, step in op.steps.items()},
            "marks": op.is_marking,
            "undoes": op.undoes,
        },
        "before": freeze(entry.before),
        "source": freeze(entry.source),
        "conflicts": list(entry.conflicts),
        "because": {name: dict(ground) for name, ground in entry.because.items()},
        "why": op.why,
        "precondition": entry.precondition,
        "idempotency_key": entry.key,
        "state": "planned",
    }


def _group(op: Operation) -> str:
    """What a relation belongs to: its deal, or its contact. Operations of one group are sent together."""
    parent = op.target.parent if op.target is not None else None
    return op.refs.get("deal") or op.refs.get("contact") or parent or ""


def entry_of(row: Row) -> Entry:
    """A row of the table ``operation`` as the engine reads it."""
    values: Mapping[str, Value] = thaw(row["steps"])
    rules, target_id = row["refs"]["rules"], row["target_id"]
    operation = Operation(
        kind=row["kind"],
        verb=row["verb"],
        side=Side(row["side"]),
        source=row["source_id"],
        target=Address(target_id, row["target_parent"]) if target_id is not None else None,
        # By name: the database keeps the keys of JSON in an order of its own.
        steps={name: Step(value, rules.get(name, "")) for name, value in sorted(values.items())},
        refs=dict(sorted(row["refs"]["ids"].items())),
        why=row["why"],
        is_marking=row["refs"].get("marks", False),
        undoes=row["refs"].get("undoes", ""),
    )
    return Entry(
        operation=operation,
        key=row["idempotency_key"],
        before=thaw(row["before"]),
        source=thaw(row["source"]),
        precondition=row["precondition"],
        conflicts=row["conflicts"],
        because=row["because"],
        id=row["id"],
        state=row["state"],
    )
