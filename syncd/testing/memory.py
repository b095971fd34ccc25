"""A system in memory and the connector that speaks to it: the reference for both.

``MemorySystem`` is a world of its own: people edit it, rows commit late, an index lags, replies
get lost. ``MemoryConnector`` fulfils the contract against it with nothing hidden. It can play
either side: conditional writes and clocks per parent like Propstreet, or bare batches and swept
associations like a CRM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from math import ceil
from typing import Final, Literal

from syncd.connector import (
    Account,
    Capabilities,
    ConnectionSettings,
    FieldCapability,
    Finding,
    KindCapability,
    Outcome,
    Page,
    Pull,
    Quota,
    Repeat,
    Tally,
    Verdict,
    Wire,
    Write,
)
from syncd.core.mapping import iso_z
from syncd.core.model import FIELDS, KINDS, RELATIONS, Address, Record, Value, Values, Verb, is_safe_id
from syncd.core.watermark import less
from syncd.errors import ConfigError, DelayedError, RejectedError, TransientError

PAGE = 50
FaultKind = Literal["before", "after", "reject", "empty"]


@dataclass(slots=True)
class Stored:
    """A record as the system holds it, and as its index shows it until ``indexed_at``."""

    record: Record
    visible_at: datetime
    indexed_at: datetime
    before: Record | None = None


@dataclass(slots=True)
class MemoryFault:
    """The next ``times`` calls of a method fail: before or after their effect, for good, or with an empty answer."""

    method: str
    kind: FaultKind
    times: int = 1
    skip: int = 0


@dataclass(slots=True)
class MemorySystem:
    """One system. ``now`` is its clock; ``lag`` and ``late`` delay what listings show."""

    now: Callable[[], datetime]
    is_hub: bool = False
    lag: timedelta = timedelta(0)
    late: timedelta = timedelta(0)
    page: int = PAGE
    account_id: str = "memory"
    normalise: Callable[[str, Value], Value] = lambda name, value: value
    refuses: Callable[[Write], str | None] = lambda write: None
    loses: Callable[[Write], frozenset[str]] = lambda write: frozenset()
    """Fields of a write that are answered as stored, and are not."""
    is_lying_new: bool = True
    """Whether a record moves, by its version and time, when a write to it is answered and not stored."""
    on_write: Callable[[str], None] = lambda moment: None
    """Called ``before`` and ``after`` the effect of each batch; what it raises kills the process there."""
    vocabulary: Mapping[str, str] | None = None
    records: dict[str, dict[str, Stored]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    faults: list[MemoryFault] = field(default_factory=list)
    calls: list[tuple[str, str, int]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    _serial: int = 0

    # --- people -----------------------------------------------------------------------

    def add(self, kind: str, values: Values | None = None, *, refs: Mapping[str, str] | None = None,
            mark: str | None = None, native: Mapping[str, str | None] | None = None) -> str:  # fmt: skip
        """Create a record as a person would; returns its id."""
        self._serial += 1
        prefix = "p" if self.is_hub else "c"
        id_ = f"{prefix}{self._serial:05d}"
        refs = dict(refs or {})
        record = Record(
            kind=kind,
            id=id_,
            values=self._complete(kind, values or {}),
            parent=refs.get("deal")
            if kind == "deal_contact"
            else refs.get("contact")
            if kind == "employment"
            else None,
            refs=refs,
            mark=mark,
            native=dict(native or {}),
        )
        self._store(record, by_person=True)
        return id_

    def edit(self, kind: str, id_: str, **values: Value) -> None:
        stored = self.get(kind, id_)
        self._store(
            replace(stored, values={**stored.values, **self._complete(kind, values, partial=True)}), by_person=True
        )

    def change(self, kind: str, id_: str, **facts: object) -> None:
        """Change something else than values: ``locked``, ``native``, ``refs``."""
        self._store(replace(self.get(kind, id_), **facts), by_person=True)  # type: ignore[arg-type]  # by field name

    def remove(self, kind: str, id_: str) -> None:
        self._store(replace(self.get(kind, id_), is_deleted=True), by_person=True)

    def restore(self, kind: str, id_: str) -> None:
        self._store(replace(self.get(kind, id_), is_deleted=False, merged_into=None), by_person=True)

    def merge(self, kind: str, winner: str, loser: str) -> None:
        """The loser is gone and leads to the winner."""
        self._store(replace(self.get(kind, loser), is_deleted=True, merged_into=winner), by_person=True)
        won = self.get(kind, winner)
        self._store(replace(won, formerly=(*won.formerly, loser)), by_person=True)

    def get(self, kind: str, id_: str) -> Record:
        return self.records[kind][id_].record

    def all(self, kind: str) -> list[Record]:
        """Live records of a kind, by id."""
        return sorted(
            (stored.record for stored in self.records[kind].values() if not stored.record.is_deleted),
            key=lambda record: record.id,
        )

    # --- the store --------------------------------------------------------------------

    def _complete(self, kind: str, values: Values, *, partial: bool = False) -> dict[str, Value]:
        names = values if partial else FIELDS[kind]
        return {name: self.normalise(name, values.get(name)) for name in names}

    def _store(self, record: Record, *, by_person: bool) -> Record:
        at = self.now()
        self._serial += 1
        before = self.records[record.kind].get(record.id)
        by = "somebody" if by_person else None
        new = replace(record, version=f"v{self._serial}", modified_at=at, modified_by=by)
        delay = self.late if by_person else timedelta(0)
        self.records[record.kind][record.id] = Stored(
            new, at + delay, at + delay + self.lag, before.record if before else None
        )
        return new

    def indexed(self, kind: str) -> Iterator[Record]:
        """What a listing shows now: rows not yet committed are absent, rows not yet indexed show their past."""
        at = self.now()
        for stored in self.records[kind].values():
            if stored.indexed_at <= at:
                yield stored.record
            elif stored.before is not None:
                yield stored.before

    def read(self, kind: str, id_: str) -> Record:
        """What a read by id shows: the truth, except for what is not committed yet."""
        stored = self.records[kind].get(id_)
        if stored is None or (stored.visible_at > self.now() and stored.before is None):
            return Record(kind, id_, {}, is_deleted=True)
        if stored.visible_at > self.now() and stored.before is not None:
            return stored.before
        return stored.record

    def fault(self, method: str) -> MemoryFault | None:
        for each in self.faults:
            if each.method == method and each.times > 0:
                if each.skip > 0:
                    each.skip -= 1
                    continue
                each.times -= 1
                return each
        return None


#: Systems that a tenant file can name as ``memory://NAME``.
SYSTEMS: Final[dict[str, MemorySystem]] = {}


class MemoryConnector:
    """The contract, fulfilled against a ``MemorySystem``."""

    def __init__(self, system: MemorySystem, wire: Wire):
        self.system = system
        self._wire = wire

    def account(self) -> Account:
        return Account(self.system.account_id, "in memory", "SEK")

    def check(self) -> Sequence[Finding]:
        return ()

    def fix(self, findings: Sequence[Finding]) -> Sequence[Finding]:
        return findings

    def close(self) -> None:
        return None

    def capabilities(self) -> Capabilities:
        hub = self.system.is_hub
        kinds = {
            kind: KindCapability(
                fields={
                    name: FieldCapability(
                        type_,
                        is_writable=not (hub and name in ("stage", "status", "published_at", "accepted_at")),
                        vocabulary=self.system.vocabulary if name == "stage" and not hub else None,
                    )
                    for name, type_ in FIELDS[kind].items()
                },
                batch={"create": 10, "update": 10, "delete": 10, "mark": 10},
                read_batch=10,
                ref_sets=_REF_SETS.get(kind, ()),
                is_child=kind == "deal_contact",
                is_swept=not hub,
                is_conditional=hub,
                is_exact=hub,
                can_mark=not hub and kind not in RELATIONS,
                rides_on="contact" if kind == "employment" and not hub else None,
            )
            for kind in KINDS
        }
        return Capabilities(
            kinds=kinds,
            pull_groups=tuple((kind,) for kind in KINDS),
            quotas=(Quota("default", 1000, 1.0),),
            overlap_seconds=300,
            deep_overlap_seconds=7200,
        )

    # --- reading ----------------------------------------------------------------------

    def pull(self, request: Pull) -> Iterator[Page]:
        for kind in request.kinds:
            if kind == "deal_contact":
                yield from self._pull_children(request)
            else:
                yield from self._pull_kind(kind, request)

    def _pull_kind(self, kind: str, request: Pull) -> Iterator[Page]:
        watermark = request.watermarks.get(kind)
        floor = self._floor(watermark, request)
        after: tuple[datetime, str] | None = None
        while True:
            rows = self._call("list", kind, partial(self._rows, kind, floor, after))
            shown = rows[: self.system.page]
            is_last = len(rows) <= self.system.page
            yield Page(
                kind=kind,
                records=tuple(shown),
                clock=_clock(shown),
                is_listing=watermark is None,
                is_last=is_last,
            )
            if is_last:
                return
            after = _place(shown[-1])

    def _pull_children(self, request: Pull) -> Iterator[Page]:
        for parent in request.parents():
            floor = self._floor(parent.watermark if self.system.is_hub else None, request)
            rows = self._call("children", "deal_contact", partial(self._rows, "deal_contact", floor, None, parent.id))
            is_whole = floor is None
            yield Page(
                kind="deal_contact",
                records=tuple(rows),
                clock=_clock(rows) if self.system.is_hub else None,
                parent=parent.id,
                complete_parents=(parent.id,) if is_whole else (),
                is_last=True,
            )

    def _floor(self, watermark: str | None, request: Pull) -> str | None:
        if watermark is None:
            return None
        return less(watermark, 7200 if request.is_deep else 300)

    def _rows(
        self, kind: str, floor: str | None, after: tuple[datetime, str] | None, parent: str | None = None
    ) -> list[Record]:
        """Rows in the order of their clock, from the last place seen: a row that moves meanwhile is seen again."""
        rows = [
            record
            for record in self.system.indexed(kind)
            if (parent is None or record.parent == parent)
            and (floor is None or (record.modified_at is not None and iso_z(record.modified_at) >= floor))
            and (floor is not None or self.system.is_hub or not record.is_deleted)
            and (after is None or _place(record) > after)
        ]
        rows.sort(key=_place)
        return rows[: self.system.page + 1] if parent is None else rows

    def read(self, kind: str, addresses: Sequence[Address]) -> Mapping[str, Record]:
        if len(addresses) > 10:
            raise RejectedError("more than 10 in one read")
        rows = self._call("read", kind, lambda: [self.system.read(kind, address.id) for address in addresses])
        return {address.id: record for address, record in zip(addresses, rows, strict=True)}

    def find(self, writes: Sequence[Write]) -> Mapping[str, Record]:
        def look() -> list[Record]:
            return [self.system.read(w.kind, self.system.keys[w.key]) for w in writes if w.key in self.system.keys]

        found = {record.id: record for record in self._call("find", writes[0].kind, look)}
        return {w.key: found[self.system.keys[w.key]] for w in writes if self.system.keys.get(w.key) in found}

    # --- writing ----------------------------------------------------------------------

    def write(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        if len(writes) > 10:
            raise RejectedError("more than 10 in one batch")
        try:
            return self._wire.call(lambda: self._write_all(writes), effect="write", repeat=self._repeat(writes[0].verb))
        except DelayedError:
            return [Outcome(each.key, Verdict.DELAYED) for each in writes]

    def _repeat(self, verb: Verb) -> Repeat:
        """What no condition guards would undo an edit when it is sent again."""
        if self.system.is_hub:
            return "unsent" if verb == "create" else "always"
        return "always" if verb == "mark" else "never"

    def _write_all(self, writes: Sequence[Write]) -> list[Outcome]:
        system = self.system
        system.calls.append((f"write {writes[0].verb}", writes[0].kind, len(writes)))
        system.on_write("before")
        fault = system.fault("write")
        if fault is not None and fault.kind == "before":
            raise TransientError("in memory: refused before any effect", is_sent=False)
        refusals = {write.key: reason for write in writes if (reason := system.refuses(write))}
        if refusals and len(writes) > 1:
            raise RejectedError("in memory: one of the batch is refused")
        outcomes = [self._write_one(write, refusals.get(write.key)) for write in writes]
        system.on_write("after")
        if fault is not None and fault.kind == "after":
            raise TransientError("in memory: the answer was lost", is_sent=True)
        return outcomes

    def _write_one(self, write: Write, refusal: str | None) -> Outcome:
        system = self.system
        if refusal is not None:
            return Outcome(write.key, Verdict.REJECTED, reason=refusal)
        if write.address is None:
            return self._create(write)
        stored = system.records[write.kind].get(write.address.id)
        if stored is None or (stored.record.is_deleted and write.verb != "delete"):
            return Outcome(write.key, Verdict.MISSING)
        record = stored.record
        if system.is_hub and write.version != record.version:
            return Outcome(write.key, Verdict.STALE)
        if write.verb == "delete":
            system._store(replace(record, is_deleted=True), by_person=False)
            return Outcome(write.key, Verdict.DONE)
        sent = {name: system.normalise(name, value) for name, value in write.values.items()}
        lost = system.loses(write) & sent.keys()
        kept = {**record.values, **{name: value for name, value in sent.items() if name not in lost}}
        mark = write.counterpart or record.mark
        told = system._store(replace(record, values=kept, mark=mark), by_person=False)
        if lost and not system.is_lying_new:
            system.records[write.kind][write.address.id] = stored
        return Outcome(write.key, Verdict.DONE, replace(told, values={**kept, **sent}))

    def _create(self, write: Write) -> Outcome:
        system = self.system
        if not all(map(is_safe_id, write.refs.values())):
            return Outcome(write.key, Verdict.REJECTED, reason="refs: not a safe id")
        if write.key in system.keys:
            return Outcome(write.key, Verdict.DONE, system.get(write.kind, system.keys[write.key]))
        for stored in system.records[write.kind].values():
            record = stored.record
            if not record.is_deleted and _is_double(record, write):
                return Outcome(write.key, Verdict.EXISTS, record)
        system._serial += 1
        id_ = f"{'p' if system.is_hub else 'c'}{system._serial:05d}"
        values = {name: system.normalise(name, write.values.get(name)) for name in FIELDS[write.kind]}
        parents = {"deal_contact": "deal", "employment": "contact"}
        record = Record(
            kind=write.kind,
            id=id_,
            values=values,
            parent=write.refs.get(parents.get(write.kind, "")),
            refs=dict(write.refs),
            mark=write.counterpart,
        )
        system.keys[write.key] = id_
        return Outcome(write.key, Verdict.DONE, system._store(record, by_person=False))

    def _call(self, method: str, kind: str, rows: Callable[[], list[Record]]) -> list[Record]:
        def exchange() -> list[Record]:
            self.system.calls.append((method, kind, 0))
            fault = self.system.fault(method)
            if fault is not None and fault.kind == "before":
                raise TransientError("in memory: down", is_sent=False)
            return [] if fault is not None and fault.kind == "empty" else rows()

        return self._wire.call(exchange, effect="read")

    def least_calls(self, tally: Tally) -> int:
        pages = sum(
            max(1, ceil(tally.pulled.get(kind, 0) / self.system.page)) for kind in KINDS if kind != "deal_contact"
        )
        writes = sum(ceil(count / 10) for count in tally.written.values())
        return pages + sum(tally.parents.values()) + writes


def connect(settings: ConnectionSettings, wire: Wire, now: Callable[[], datetime]) -> MemoryConnector:
    """The entry point: finds the system that ``base_url`` names among those of this process."""
    name = (settings.base_url or "").removeprefix("memory://")
    if name not in SYSTEMS:
        raise ConfigError(f"no system in memory is called {name!r}")
    return MemoryConnector(SYSTEMS[name], wire)


_NEVER = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_REF_SETS: Final = {
    "employment": (frozenset({"contact", "company"}),),
    "deal_contact": (frozenset({"deal", "contact"}), frozenset({"deal", "company"})),
}


def _place(record: Record) -> tuple[datetime, str]:
    return record.modified_at or _NEVER, record.id


def _clock(records: Sequence[Record]) -> str | None:
    latest = max((record.modified_at for record in records if record.modified_at is not None), default=None)
    return iso_z(latest) if latest is not None else None


def _is_double(record: Record, write: Write) -> bool:
    if write.kind in RELATIONS:
        return dict(record.refs) == dict(write.refs)
    if write.counterpart is not None and record.mark == write.counterpart:
        return True
    return (
        write.kind == "contact"
        and bool(write.values.get("email"))
        and record.values.get("email") == write.values["email"]
    )
