"""What one run of one pair works with: the two systems, the tenant's rules, the store, the clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from syncd.connector import Capabilities, Connector, KindCapability, Tally
from syncd.core.guard import Limits
from syncd.core.merge import Flow
from syncd.core.model import FIELDS, KINDS, FieldType, Side, Verb
from syncd.core.plan import Fields, KindRules
from syncd.core.undo import Leftover
from syncd.engine.retry import Courier
from syncd.state.journal import Journal
from syncd.state.store import Store


@dataclass(frozen=True, slots=True)
class PairRules:
    """What a tenant's file says about one pair, as far as the engine needs it."""

    kinds: Mapping[str, KindRules]
    limits: Limits = field(default_factory=Limits)
    compare_every_seconds: float = 86_400.0
    visits: int | None = None
    """How many deals' children are read in one run; None means all."""
    only: frozenset[str] | None = None
    limit: int | None = None
    """At most so many operations of each kind in this run."""
    is_waived: bool = False
    """A person has seen why the pair halted and said go: a shrunken listing is believed."""


@dataclass(slots=True)
class System:
    """One side: the connector, what it offers, and the courier that counts its calls."""

    connector: Connector
    courier: Courier
    capabilities: Capabilities
    pulled: Counter[str] = field(default_factory=Counter)
    parents: Counter[str] = field(default_factory=Counter)
    written: Counter[tuple[str, Verb]] = field(default_factory=Counter)
    groups: dict[tuple[str, Verb], set[str]] = field(default_factory=dict)

    def kind(self, kind: str) -> KindCapability:
        return self.capabilities.kinds[kind]

    def tally(self, *, is_backfill: bool) -> Tally:
        """What this run moved on this side."""
        groups: dict[tuple[str, Verb], int] = {at: len(found) for at, found in self.groups.items()}
        return Tally(is_backfill, dict(self.pulled), dict(self.parents), dict(self.written), groups)


@dataclass(slots=True)
class Report:
    """What a run did, by kind: counts that the CLI, the log line and the tests read."""

    created: Counter[tuple[str, Side]] = field(default_factory=Counter)
    updated: Counter[tuple[str, Side]] = field(default_factory=Counter)
    deleted: Counter[tuple[str, Side]] = field(default_factory=Counter)
    is_waived: bool = False
    """A person let this run go, whatever the brakes say."""
    marked: Counter[tuple[str, Side]] = field(default_factory=Counter)
    """Records that were given the other side's id, and nothing else."""
    linked: Counter[str] = field(default_factory=Counter)
    conflicts: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    stale: int = 0
    lost: int = 0
    leftovers: list[Leftover] = field(default_factory=list)
    """What an undo leaves as it is."""

    def as_json(self) -> dict[str, Any]:
        def split(counter: Counter[tuple[str, Side]]) -> dict[str, dict[str, int]]:
            return {
                kind: {"propstreet": counter[kind, Side.LEFT], "crm": counter[kind, Side.RIGHT]}
                for kind in KINDS
                if counter[kind, Side.LEFT] or counter[kind, Side.RIGHT]
            }

        return {
            **({"waived": True} if self.is_waived else {}),
            "operations": self.operations,
            "created": split(self.created),
            "updated": split(self.updated),
            "deleted": split(self.deleted),
            "marked": split(self.marked),
            "linked": dict(self.linked),
            "conflicts": dict(self.conflicts),
            "rejected": dict(self.rejected),
            "stale": self.stale,
            "lost": self.lost,
            **({"left": dict(Counter(each.reason for each in self.leftovers))} if self.leftovers else {}),
        }


@dataclass(slots=True)
class Context:
    """All that the steps of one run share. ``beat`` renews the lease and raises LeaseLostError when it is gone."""

    pair: str
    run_id: str
    rules: PairRules
    systems: Mapping[Side, System]
    store: Store
    now: Callable[[], datetime]
    new_id: Callable[[], str]
    log: Any
    report: Report = field(default_factory=Report)
    progress: Callable[[str, str, int], None] = lambda stage, kind, count: None
    _fields: dict[str, Fields] = field(default_factory=dict)
    holds: Mapping[tuple[str, Side], Mapping[str, str]] = field(default_factory=dict)
    """What is held still, by kind and side: id -> reason."""
    currency: str | None = None
    """The currency that the CRM's bare amounts are taken to be in: that of most projects' prices."""
    journal: Journal = field(init=False)
    """The same store's, so that links, bases and outcomes of a batch are committed together or not at all."""

    def __post_init__(self) -> None:
        self.journal = Journal(self.store)
        # Before the first projects are pulled no currency is known, and their amounts count all the same.
        self.report.is_waived = self.rules.is_waived
        self.holds = self.store.holds()
        self.store.counts = {kind: self._types(kind) for kind in self.kinds}
        self.look_at_prices()

    def look_at_prices(self) -> None:
        """Learn the currency of bare amounts from the projects that are in the inbox or linked by now."""
        for kind in self.kinds:
            if self.bare(kind):
                self.currency = self.store.prevailing_currency()
                self._fields.pop(kind, None)

    def bare(self, kind: str) -> frozenset[str]:
        """The fields of a kind in which the CRM gives amounts without their currency."""
        fields = self.systems[Side.RIGHT].kind(kind).fields
        return frozenset(name for name, capability in fields.items() if capability.is_bare)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that both systems offer and the tenant syncs, parents first."""
        left, right = (self.systems[side].capabilities.kinds for side in Side)
        return tuple(kind for kind in KINDS if kind in left and kind in right and kind in self.rules.kinds)

    def fields(self, kind: str) -> Fields:
        """The fields that both systems carry and the tenant did not switch off."""
        if kind not in self._fields:
            left, right = (self.systems[side].kind(kind).fields for side in Side)
            unknown = self.bare(kind) if self.currency is None else frozenset()
            types = {name: type_ for name, type_ in self._types(kind).items() if name not in unknown}
            self._fields[kind] = Fields(
                types,
                frozenset(name for name in types if left[name].is_writable),
                frozenset(name for name in types if right[name].is_writable),
                frozenset(name for name in types if left[name].is_creatable),
                frozenset(name for name in types if right[name].is_creatable),
                frozenset(name for name in types if not left[name].is_readable),
                frozenset(name for name in types if not right[name].is_readable),
            )
        return self._fields[kind]

    def carried(self) -> dict[str, frozenset[str]]:
        """By kind the fields that both systems carry and the tenant did not switch off."""
        return {kind: frozenset(self._types(kind)) for kind in self.kinds}

    def _types(self, kind: str) -> dict[str, FieldType]:
        left, right = (self.systems[side].kind(kind).fields for side in Side)
        rules = self.rules.kinds[kind]
        return {
            name: type_
            for name, type_ in FIELDS[kind].items()
            if name in left
            and name in right
            and rules.policies.get(name, rules.default).flow is not Flow.OFF
            and (left[name].is_writable or right[name].is_writable)
        }

    def is_held(self, side: Side, kind: str, id_: str | None, refs: Mapping[str, str]) -> bool:
        """Whether nothing may be written to or for a record: it is held still, or names one that is."""
        return bool(self.hold_reasons(side, kind, id_, refs))

    def hold_reasons(self, side: Side, kind: str, id_: str | None, refs: Mapping[str, str]) -> list[str]:
        """Why a record, and those that it names, are held still."""
        named = [(kind, id_ or ""), *refs.items()]
        found = (self.holds.get((of, side), {}).get(ref) for of, ref in named)
        return [reason for reason in found if reason is not None]

    def vocabulary(self, kind: str) -> dict[str, Mapping[str, str]]:
        """Propstreet's words in the CRM's, by field, where the CRM has its own."""
        return {
            name: capability.vocabulary
            for name, capability in self.systems[Side.RIGHT].kind(kind).fields.items()
            if capability.vocabulary is not None
        }
