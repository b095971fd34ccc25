"""Propstreet, HubSpot and Salesforce as worlds of their own, in memory and in virtual time.

A ``Vendor`` is what people and programs see of one account: rows that commit late, an index that
lags, merges, cascades, another system's refs, rules of what may stand twice. It remembers all
that a row ever held and who put it there, which is what the promises are checked against.
``SimConnector`` speaks to it as the real connectors speak to the real vendors: the same shapes of
listing, the same conditions of a write. It knows nothing of the engine but the contract.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from random import Random
from typing import Final

from syncd.connector import (
    Account,
    Capabilities,
    FieldCapability,
    Finding,
    KindCapability,
    Outcome,
    Page,
    Parent,
    Pull,
    Quota,
    Repeat,
    Tally,
    Verdict,
    Wire,
    Write,
)
from syncd.core.mapping import same
from syncd.core.model import FIELDS, KINDS, Address, Record, Value, Values
from syncd.core.watermark import less
from syncd.errors import DelayedError

OVERLAP_SECONDS: Final = 300
DEEP_OVERLAP_SECONDS: Final = 7_200
#: All records of a kind.
EACH: Final = "*"
#: Who made a change.
PERSON, SYNCD = "person", "syncd"


class Manner(Enum):
    """Which vendor an account behaves like."""

    PROPSTREET = "propstreet"
    HUBSPOT = "hubspot"
    SALESFORCE = "salesforce"


#: The fields that this world's people use; enough to have every type once.
USED: Final[Mapping[str, tuple[str, ...]]] = {
    "company": ("name", "domain", "strategy", "tags"),
    "contact": ("first_name", "last_name", "email", "phone", "strategy", "tags"),
    "employment": ("job_title",),
    "deal": ("name", "amount", "stage", "classification", "property_count", "verified_at"),
    "deal_contact": ("classification",),
}
#: What only Propstreet decides.
READ_ONLY_LEFT: Final = frozenset({("deal", "stage"), ("deal", "classification"), ("deal", "verified_at")})
STAGES: Final[Mapping[str, str]] = {"none": "early", "drafting": "early", "published": "offer", "communicated": "talks"}
_RIDER: Final = "made with its contact"
_REFS: Final[Mapping[str, tuple[str, str]]] = {
    "employment": ("contact", "company"),
    "deal_contact": ("deal", "contact"),
}


@dataclass(slots=True)
class Row:
    """One record as its system holds it, with its whole past."""

    record: Record
    by: dict[str, str] = field(default_factory=dict)
    """Who set each field last."""
    held: dict[str, list[Value]] = field(default_factory=dict)
    """All that each field ever held."""
    foreign: frozenset[str] = frozenset()
    """Refs of other systems, which nobody but they may take away."""
    given: frozenset[str] = frozenset()
    """All of them that ever were."""
    made_for: str | None = None
    """The other side's id, if syncd made this row."""
    pending: tuple[datetime, datetime, dict[str, Value], str] | None = None
    """An open transaction: when it becomes visible, when it began, what it changes, who."""
    committed_at: datetime | None = None
    """When a late transaction ended."""
    was_late: bool = False
    """It was committed later than its clock says, once at least."""
    was_deleted: bool = False
    """It was deleted or merged away, once at least."""
    begun_at: datetime | None = None
    """A row that is not committed yet becomes visible then."""
    shown: str | None = None
    """The version that syncd saw last."""
    indexed: Record | None = None
    """What the search index shows."""
    queue: list[tuple[datetime, Record]] = field(default_factory=list)
    """What it will show, and when."""


@dataclass(slots=True)
class Wrote:
    """One effect that syncd had."""

    verb: str
    kind: str
    id: str
    values: dict[str, tuple[Value, Value]]
    key: str


@dataclass
class Vendor:
    """One account at one vendor. ``now`` is its own clock."""

    manner: Manner
    prefix: str
    now: Callable[[], datetime]
    random: Random
    normalise: Callable[[str, Value], Value] = lambda name, value: value
    lag: timedelta = timedelta(0)
    page: int = 20
    rows: dict[str, dict[str, Row]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    wrote: list[Wrote] = field(default_factory=list)
    overwritten: list[tuple[str, str, str, Value]] = field(default_factory=list)
    """What a person had put somewhere and a write of ours replaced: kind, id, field, value."""
    wrongs: list[str] = field(default_factory=list)
    """What no correct client would ever have sent."""
    taken_off: set[str] = field(default_factory=set)
    """Elements of sets that a person took off, or a call that was on its way when its sender lost the lease."""
    is_late: bool = False
    """Whether what arrives now was on its way when its sender lost the lease: no vendor can tell."""
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)
    hidden: str | None = None
    """A kind of which nothing is shown to syncd now."""
    denied: Counter[str] = field(default_factory=Counter)
    """How often each kind was hidden."""
    not_stored: set[tuple[str, str]] = field(default_factory=set)
    """Fields (kind, name) that are accepted and not stored."""
    on_change: Callable[[Record], None] = lambda record: None
    """Told of each change when it is made, or begins where that is earlier: what a webhook would speak of."""
    on_look: Callable[[str, Collection[str]], None] = lambda kind, ids: None
    """Told which records syncd asks for by id, which parents it visits, and ``EACH`` where it lists a kind whole."""
    sweep_calls: int = 0
    """So many calls more does a sweep take here: the account holds far more than what is synced."""
    _serial: int = 0

    # --- time -------------------------------------------------------------------------

    def stamp(self) -> datetime:
        """Now, as this vendor stamps rows: to the second at Salesforce, to the millisecond at HubSpot."""
        at = self.now()
        match self.manner:
            case Manner.SALESFORCE:
                return at.replace(microsecond=0)
            case Manner.HUBSPOT:
                return at.replace(microsecond=at.microsecond // 1000 * 1000)
            case Manner.PROPSTREET:
                return at

    def _settle_row(self, row: Row) -> None:
        """Commit what is due."""
        if row.pending is not None and row.pending[0] <= self.now():
            self.commit(row)

    def commit(self, row: Row) -> None:
        if row.pending is None:
            return
        due, began, values, who = row.pending
        row.pending, row.committed_at, row.was_late = None, min(due, self.now()), True
        self._put(row, values, who, at=began)

    # --- what stands there ------------------------------------------------------------

    def row(self, kind: str, id_: str) -> Row | None:
        row = self.rows[kind].get(id_)
        if row is None or kind == self.hidden or (row.begun_at is not None and row.begun_at > self.now()):
            return None
        self._settle_row(row)
        return row

    def visible(self, kind: str) -> list[Row]:
        """Every committed row, tombstones included."""
        now = self.now()
        found: list[Row] = []
        for row in self.rows[kind].values() if kind != self.hidden else ():
            if row.begun_at is not None and row.begun_at > now:
                continue
            if row.pending is not None and row.pending[0] <= now:
                self.commit(row)
            found.append(row)
        return found

    def is_binned(self, row: Row) -> bool:
        """Whether a row is in the bin, or was merged into one that is."""
        while row.record.merged_into is not None:
            row = self.rows[row.record.kind][row.record.merged_into]
        return row.record.is_deleted

    def living(self, kind: str) -> list[Record]:
        return [row.record for row in self.rows[kind].values() if not row.record.is_deleted]

    # --- people -----------------------------------------------------------------------

    def add(
        self,
        kind: str,
        values: Values,
        *,
        refs: Mapping[str, str] | None = None,
        native: Mapping[str, str | None] | None = None,
        late: timedelta = timedelta(0),
        who: str = PERSON,
        mark: str | None = None,
    ) -> str:
        """Create a row as a person would."""
        refs = dict(refs or {})
        id_ = self._new_id(kind, refs)
        complete = {name: self.normalise(name, values.get(name)) for name in USED[kind]}
        record = Record(
            kind=kind, id=id_, values={}, refs=refs, mark=mark, native=dict(native or {}),
            parent=refs[_REFS[kind][0]] if kind in _REFS else None,
        )  # fmt: skip
        row = Row(record)
        if id_ in self.rows[kind]:  # an association that was there before is the same one again
            row.held = self.rows[kind][id_].held
        if late and self.manner is not Manner.HUBSPOT:
            row.begun_at, row.was_late = self.now() + late, True
        self.rows[kind][id_] = row
        self._put(row, complete, who)
        return id_

    def edit(self, kind: str, id_: str, values: Values, *, late: timedelta = timedelta(0), who: str = PERSON) -> None:
        """Change fields as a person would; a late one is committed later, with the time at which it began."""
        row = self.rows[kind][id_]
        self.commit(row)
        told = {name: self.normalise(name, value) for name, value in values.items()}
        if who == PERSON:
            for name, value in told.items():
                before = row.record.values.get(name)
                if isinstance(before, frozenset):
                    self.taken_off |= before - (value if isinstance(value, frozenset) else frozenset())
        if late and self.manner is not Manner.HUBSPOT and row.begun_at is None:
            row.pending = (self.now() + late, self.stamp(), told, who)
            self.on_change(row.record)
        else:
            self._put(row, told, who)

    def change(self, kind: str, id_: str, **facts: object) -> None:
        """Change something else than values: ``locked``, ``native``."""
        row = self.rows[kind][id_]
        self.commit(row)
        row.record = replace(row.record, **facts)  # type: ignore[arg-type]  # by field name
        self._put(row, {}, PERSON)

    def remove(self, kind: str, id_: str, *, who: str = PERSON) -> None:
        """Delete a row, and the relations that name it."""
        row = self.rows[kind][id_]
        self.commit(row)
        row.record, row.was_deleted = replace(row.record, is_deleted=True), True
        self._put(row, {}, who)
        for relation, ends in _REFS.items():
            if kind in ends:
                for other in list(self.rows[relation].values()):
                    if not other.record.is_deleted and other.record.refs.get(kind) == id_:
                        self.remove(relation, other.record.id, who=who)

    def restore(self, kind: str, id_: str) -> None:
        """Bring a deleted row back, without the relations that went with it."""
        row = self.rows[kind][id_]
        row.record = replace(row.record, is_deleted=False)
        self._put(row, {}, PERSON)

    def merge(self, kind: str, winner: str, loser: str) -> None:
        """The loser is gone and leads to the winner, which takes its relations over."""
        won, lost = self.rows[kind][winner], self.rows[kind][loser]
        self.commit(won)
        self.commit(lost)
        for relation, ends in _REFS.items():
            if kind not in ends:
                continue
            for other in list(self.rows[relation].values()):
                if other.record.is_deleted or other.record.refs.get(kind) != loser:
                    continue
                refs = {**other.record.refs, kind: winner}
                values = {name: other.record.values.get(name) for name in USED[relation]}
                is_there = any(dict(each.refs) == refs for each in self.living(relation))
                is_full = self.manner is Manner.SALESFORCE and relation == "employment" and self._employed(winner)
                other.record = replace(other.record, is_deleted=True)
                self._put(other, {}, PERSON)
                if not is_there and not is_full:
                    self.add(relation, values, refs=refs)
        for name, value in lost.record.values.items():
            if isinstance(value, frozenset):
                kept = won.record.values.get(name)
                self.taken_off |= value - (kept if isinstance(kept, frozenset) else frozenset())
        lost.record, lost.was_deleted = replace(lost.record, is_deleted=True, merged_into=winner), True
        self._put(lost, {}, PERSON)
        won.record = replace(won.record, formerly=(*won.record.formerly, loser, *lost.record.formerly))
        self._put(won, {}, PERSON)

    # --- rows -------------------------------------------------------------------------

    def _new_id(self, kind: str, refs: Mapping[str, str]) -> str:
        if self.manner is Manner.HUBSPOT and kind in _REFS:
            return "~".join(refs[end] for end in _REFS[kind])
        if self.manner is Manner.SALESFORCE and kind == "employment":
            return refs["contact"]
        self._serial += 1
        return f"{self.prefix}{kind[0]}{self._serial:05d}"

    def _employed(self, contact: str) -> bool:
        return any(each.refs["contact"] == contact for each in self.living("employment"))

    def _put(self, row: Row, values: Values, who: str, *, at: datetime | None = None) -> None:
        """Set fields, and note who did and what was there."""
        self._serial += 1
        for name, value in values.items():
            row.by[name] = who
            row.held.setdefault(name, [None]).append(value)
        before = row.record
        has_clock = not (self.manner is Manner.HUBSPOT and before.kind in _REFS)
        row.record = replace(
            before,
            values={**before.values, **values},
            version=f"v{self._serial}" if has_clock else None,
            modified_at=(at or self.stamp()) if has_clock else None,
        )
        if self.manner is Manner.HUBSPOT and has_clock:
            row.queue.append((self.now() + self.lag, row.record))
        self.on_change(row.record)

    def index(self, row: Row) -> Record | None:
        """What search shows of a row now."""
        now = self.now()
        while row.queue and row.queue[0][0] <= now:
            row.indexed = row.queue.pop(0)[1]
        return row.indexed

    # --- writes of ours ---------------------------------------------------------------

    def apply(self, write: Write) -> Outcome:
        """Take one write as the vendor would."""
        if write.address is None:
            return self._create(write)
        row = self.row(write.kind, write.address.id)
        if row is None or row.record.is_deleted:
            return self._gone(write, row)
        was_locked = row.committed_at is not None and self.now() - row.committed_at < timedelta(seconds=5)
        if row.pending is not None or was_locked:
            # Its row is locked by an open transaction: Propstreet waits for it, Salesforce gives up.
            if self.manner is Manner.SALESFORCE:
                return Outcome(write.key, Verdict.RETRY, reason="locked row")
            self.commit(row)
        if self.manner is Manner.PROPSTREET and write.version != row.record.version:
            return Outcome(write.key, Verdict.STALE)
        if row.record.locked.get("*") or self._is_below_a_lock(row.record):
            return Outcome(write.key, Verdict.REJECTED, reason="closed")
        if write.verb == "delete":
            return self._delete(write, row)
        self._overwrite(row, write)
        return Outcome(write.key, Verdict.DONE, row.record)

    def _gone(self, write: Write, row: Row | None) -> Outcome:
        if write.verb == "delete" and self.manner is not Manner.PROPSTREET:
            return Outcome(write.key, Verdict.DONE)
        return Outcome(write.key, Verdict.MISSING)

    def _is_below_a_lock(self, record: Record) -> bool:
        deal = self.rows["deal"].get(record.refs.get("deal", ""))
        return deal is not None and bool(deal.record.locked.get("*"))

    def _delete(self, write: Write, row: Row) -> Outcome:
        record = row.record
        values: dict[str, tuple[Value, Value]] = {name: (value, None) for name, value in record.values.items()}
        self.wrote.append(Wrote("delete", write.kind, record.id, values, write.key))
        self.remove(write.kind, record.id, who=SYNCD)
        return Outcome(write.key, Verdict.DONE)

    def _overwrite(self, row: Row, write: Write) -> None:
        record, sent = row.record, {name: self.normalise(name, value) for name, value in write.values.items()}
        changed: dict[str, tuple[Value, Value]] = {}
        for name, value in sent.items():
            before = record.values.get(name)
            if same(FIELDS[record.kind][name], before, write.values[name]) and row.shown == record.version is not None:
                self.wrongs.append(f"minimal writes: {record.kind} {record.id} {name} was sent an equal value")
            if (record.kind, name) in self.not_stored:
                continue
            changed[name] = (before, value)
            if self.is_late and isinstance(before, frozenset):
                self.taken_off |= before - (value if isinstance(value, frozenset) else frozenset())
            is_persons = row.by.get(name) == PERSON and before is not None and not self.is_late
            if is_persons and not same(FIELDS[record.kind][name], before, value) and not isinstance(before, frozenset):
                self.overwritten.append((record.kind, record.id, name, before))
        if write.counterpart is not None:
            self._mark(row, write.counterpart)
        self.wrote.append(Wrote(write.verb, record.kind, record.id, changed, write.key))
        self._put(row, {name: value for name, (_, value) in changed.items()}, SYNCD)

    def _mark(self, row: Row, counterpart: str) -> None:
        row.record = replace(row.record, mark=counterpart)
        if self.manner is Manner.PROPSTREET:
            # A PATCH of externalRefs replaces them all (contract, external refs).
            row.foreign = frozenset()

    def _create(self, write: Write) -> Outcome:
        kind, refs = write.kind, dict(write.refs)
        if write.key in self.keys and self.manner is Manner.PROPSTREET:
            row = self.rows[kind][self.keys[write.key][1]]
            return Outcome(write.key, Verdict.DONE, row.record)
        for ref_kind, ref in refs.items():
            end = self.row(ref_kind, ref)
            if end is None or end.record.is_deleted:
                return Outcome(write.key, Verdict.REJECTED, reason=f"{ref_kind}: not there")
            if end.record.locked.get("*"):
                return Outcome(write.key, Verdict.REJECTED, reason="closed")
        standing = self._standing(write)
        if standing is not None and kind == self.hidden:
            return Outcome(write.key, Verdict.REJECTED, reason="no access to the record that stands there")
        if standing is not None:
            is_marked = write.counterpart is not None and standing.record.mark == write.counterpart
            is_upsert = self.manner is not Manner.PROPSTREET and is_marked
            if kind in _REFS and standing.made_for == _RIDER:
                standing.made_for = None
                return Outcome(write.key, Verdict.DONE, standing.record)
            if dict(standing.record.refs) != refs and kind in _REFS:
                return Outcome(write.key, Verdict.REJECTED, reason="a contact has one account")
            if kind in _REFS:
                return Outcome(write.key, Verdict.EXISTS, standing.record)
            if not is_upsert:
                return Outcome(write.key, Verdict.EXISTS, standing.record)
            held = standing.record.values
            news = {n: value for n, value in write.values.items() if not same(FIELDS[kind][n], held.get(n), value)}
            self._overwrite(standing, replace(write, values=news, counterpart=None))
            return Outcome(write.key, Verdict.DONE, standing.record)
        values = {name: write.values.get(name) for name in USED[kind] if (kind, name) not in self.not_stored}
        id_ = self._revived(kind, refs) or ""
        if id_:
            row = self.rows[kind][id_]
            row.record = replace(row.record, is_deleted=False)
            self._put(row, {name: self.normalise(name, value) for name, value in values.items()}, SYNCD)
        else:
            native = {"pipeline": "real-estate"} if kind == "deal" and self.manner is not Manner.PROPSTREET else {}
            id_ = self.add(kind, values, refs=refs, native=native, mark=write.counterpart, who=SYNCD)
            row = self.rows[kind][id_]
        row.made_for = write.counterpart
        self._take_riders(id_, write)
        self.keys[write.key] = (kind, id_)
        self.wrote.append(Wrote("create", kind, id_, {n: (None, v) for n, v in values.items()}, write.key))
        return Outcome(write.key, Verdict.DONE, row.record)

    def _take_riders(self, contact: str, write: Write) -> None:
        """Salesforce makes a contact together with its place at an account."""
        if self.manner is not Manner.SALESFORCE:
            return
        for rider in write.riders[:1]:
            company = self.row("company", rider.refs.get("company", ""))
            if company is not None and not company.record.is_deleted:
                refs = {"contact": contact, "company": company.record.id}
                id_ = self.add(rider.kind, dict(rider.values), refs=refs, who=SYNCD)
                self.rows[rider.kind][id_].made_for = _RIDER

    def _revived(self, kind: str, refs: Mapping[str, str]) -> str | None:
        """An association that is made again is the same one."""
        id_ = self._new_id(kind, refs) if kind in _REFS and self.manner is not Manner.PROPSTREET else None
        return id_ if id_ in self.rows[kind] else None

    def _standing(self, write: Write) -> Row | None:
        """The living row that stands in the way of a create; one not committed yet is waited for."""
        for row in self.rows[write.kind].values():
            if not row.record.is_deleted and self._is_it(row.record, write):
                row.begun_at = None
                self.commit(row)
                return row
        return None

    def _is_it(self, record: Record, write: Write) -> bool:
        if write.kind in _REFS:
            is_one_per = self.manner is Manner.SALESFORCE and write.kind == "employment"
            return dict(record.refs) == dict(write.refs) or (
                is_one_per and record.refs["contact"] == write.refs["contact"]
            )
        if write.counterpart is not None and record.mark == write.counterpart:
            return True
        email = write.values.get("email")
        return write.kind == "contact" and email is not None and email == record.values.get("email")

    def found(self, write: Write) -> Record | None:
        """What stands there for a create whose answer was lost."""
        if write.key in self.keys:
            kind, id_ = self.keys[write.key]
            if self.manner is Manner.PROPSTREET:
                row = self.row(kind, id_)
                return row.record if row is not None and not row.record.is_deleted else None
        for row in self.visible(write.kind):
            record = row.record
            is_it = (
                dict(record.refs) == dict(write.refs)
                if write.kind in _REFS
                else write.counterpart is not None and record.mark == write.counterpart
            )
            if is_it and not record.is_deleted:
                return row.record
        return None

    def show(self, row: Row, record: Record | None = None) -> Record:
        """A row as a reader gets it."""
        told = record or row.record
        return replace(told, values={}) if told.is_deleted else told

    def forget(self) -> None:
        """Syncd knows no version of anything any more."""
        for rows in self.rows.values():
            for row in rows.values():
                row.shown = None

    def arrived(self, records: Iterable[Record]) -> None:
        """These answers reached syncd, which knows the versions in them from now on."""
        for record in records:
            if (row := self.rows[record.kind].get(record.id)) is not None:
                row.shown = record.version


@dataclass(slots=True)
class Weather:
    """What happens to calls: set by the simulation, looked at before and after each exchange."""

    strike: Callable[[str, str, str, int], None] = lambda moment, method, kind, count: None
    """Called ``before``, ``amid`` and ``after`` the effect of a call; what it raises is what happens to it."""
    partial: Callable[[int], frozenset[int]] = lambda count: frozenset()
    """Which writes of a batch meet a passing trouble of their own."""
    page_noise: Callable[[], bool] = lambda: False
    """Whether the vendor shows an empty page now."""


class SimConnector:
    """The connector's contract, against a ``Vendor``."""

    def __init__(self, vendor: Vendor, wire: Wire, weather: Weather):
        self.vendor = vendor
        self.weather = weather
        self._wire = wire
        self._known = _capabilities(vendor.manner)

    def account(self) -> Account:
        return Account(self.vendor.prefix, "simulated", "SEK")

    def check(self) -> Sequence[Finding]:
        return ()

    def fix(self, findings: Sequence[Finding]) -> Sequence[Finding]:
        return findings

    def close(self) -> None:
        return None

    def capabilities(self) -> Capabilities:
        return self._known

    # --- reading ----------------------------------------------------------------------

    def pull(self, request: Pull) -> Iterator[Page]:
        manner = self.vendor.manner
        for _ in range(self.vendor.sweep_calls if request.is_sweep else 0):
            self._wire.call(list, effect="read")
        for kind in request.kinds:
            if request.watermarks.get(kind) is None and not self._known.kinds[kind].is_swept:
                self.vendor.on_look(kind, (EACH,))
            if kind == "deal_contact" and manner is not Manner.SALESFORCE:
                yield from self._children(kind, request.parents(), request)
            elif kind == "employment" and manner is Manner.HUBSPOT:
                continue
            elif kind == "contact" and manner is Manner.HUBSPOT:
                yield from self._contacts(request)
            elif manner is Manner.HUBSPOT:
                yield from self._objects(kind, request)
            else:
                yield from self._listed(kind, request)

    def _listed(self, kind: str, request: Pull) -> Iterator[Page]:
        """Propstreet's and Salesforce's lists: in the order of their clock, tombstones included."""
        watermark = request.watermarks.get(kind)
        floor = _floor(watermark, request)
        is_all = watermark is not None or self.vendor.manner is Manner.PROPSTREET

        def rows(after: tuple[datetime, str] | None) -> list[Record]:
            found = [
                row
                for row in self.vendor.visible(kind)
                if (floor is None or _at(row.record) >= floor)
                and (after is None or _place(row.record) > after)
                and (is_all or not row.record.is_deleted)
            ]
            found.sort(key=lambda row: _place(row.record))
            return [self.vendor.show(row) for row in found[: self.vendor.page + 1]]

        yield from self._pages(kind, rows, is_listing=watermark is None)

    def _pages(
        self, kind: str, rows: Callable[[tuple[datetime, str] | None], list[Record]], *, is_listing: bool
    ) -> Iterator[Page]:
        after: tuple[datetime, str] | None = None
        while True:
            if self.weather.page_noise():
                yield Page(kind, ())
            place = after
            found = self._read("list", kind, lambda place=place: rows(place))  # type: ignore[misc]  # bound early
            shown, is_last = found[: self.vendor.page], len(found) <= self.vendor.page
            yield Page(kind, _shuffled(self.vendor, shown), clock=_clock(shown), is_listing=is_listing, is_last=is_last)
            if is_last:
                return
            after = _place(shown[-1])

    def _objects(self, kind: str, request: Pull) -> Iterator[Page]:
        """HubSpot: a listing by id from the primary store, or a search of the index, and the bin in a sweep."""
        watermark = request.watermarks.get(kind)
        if watermark is None:
            yield from self._listing(kind)
            return
        floor = _floor(watermark, request)

        def rows(after: tuple[datetime, str] | None) -> list[Record]:
            shown = [(row, self.vendor.index(row)) for row in self.vendor.visible(kind)]
            found = [
                (row, record)
                for row, record in shown
                if record is not None
                and not record.is_deleted
                and (floor is None or _at(record) >= floor)
                and (after is None or _place(record) > after)
            ]
            found.sort(key=lambda each: _place(each[1]))
            return [self.vendor.show(row, record) for row, record in found[: self.vendor.page + 1]]

        yield from self._pages(kind, rows, is_listing=False)
        if request.is_sweep:
            gone = self._read(
                "bin",
                kind,
                lambda: [
                    Record(kind, row.record.id, {}, modified_at=row.record.modified_at, is_deleted=True)
                    for row in self.vendor.visible(kind)
                    if self.vendor.is_binned(row)
                ],
            )
            if gone:
                yield Page(kind, tuple(gone))

    def _listing(self, kind: str) -> Iterator[Page]:
        position = max(
            (_at(record) for row in self.vendor.visible(kind) if (record := self.vendor.index(row)) is not None),
            default=_NEVER,
        )
        clock, after = _iso(position), ""
        while True:
            last = after
            found = self._read(
                "list",
                kind,
                lambda last=last: [  # type: ignore[misc]  # bound early
                    self.vendor.show(row)
                    for row in sorted(self.vendor.visible(kind), key=lambda row: row.record.id)
                    if row.record.id > last and not row.record.is_deleted
                ][: self.vendor.page + 1],
            )
            shown, is_last = found[: self.vendor.page], len(found) <= self.vendor.page
            yield Page(kind, tuple(shown), clock=clock if is_last else None, is_listing=True, is_last=is_last)
            if is_last:
                return
            after = shown[-1].id

    def _contacts(self, request: Pull) -> Iterator[Page]:
        """HubSpot's contacts, and the companies of those that moved; of all others in a sweep."""
        watermark = request.watermarks.get("contact")
        is_all = watermark is None or request.is_deep or request.is_sweep
        moved: dict[str, None] = {}
        clock = watermark or _iso(_NEVER)
        for page in self._objects("contact", request):
            yield page
            clock = page.clock or clock
            for record in page.records:
                if not record.is_deleted and (is_all or watermark is None or _iso(_at(record)) > watermark):
                    moved[record.id] = None
        if "employment" not in request.kinds:
            return
        others = [each.id for each in request.parents() if each.id not in moved] if watermark is not None else []
        for page in self._bonds("employment", [*moved, *others]):
            yield replace(page, clock=clock)

    def _children(self, kind: str, parents: Iterable[Parent], request: Pull) -> Iterator[Page]:
        if self.vendor.manner is Manner.HUBSPOT:
            yield from self._bonds(kind, [each.id for each in parents])
            return
        for parent in parents:
            id_ = parent.id
            is_whole = parent.watermark is None or request.is_sweep
            floor = None if is_whole else _floor(parent.watermark, request)

            def rows(id_: str = id_, floor: datetime | None = floor) -> list[Record]:
                deal = self.vendor.row("deal", id_)
                if deal is None or deal.record.is_deleted:
                    return []
                found = [
                    row
                    for row in self.vendor.visible(kind)
                    if row.record.parent == id_ and (floor is None or _at(row.record) >= floor)
                ]
                found.sort(key=lambda row: _place(row.record))
                return [self.vendor.show(row) for row in found]

            records = self._read("children", kind, rows)
            deal = self.vendor.row("deal", id_)
            is_there = deal is not None and not deal.record.is_deleted
            complete = (id_,) if is_whole and is_there else ()
            yield Page(kind, tuple(records), clock=_clock(records), parent=id_, complete_parents=complete, is_last=True)

    def _bonds(self, kind: str, parents: Sequence[str]) -> Iterator[Page]:
        """HubSpot's associations of some parents, whole."""
        end = _REFS[kind][0]
        for start in range(0, len(parents), 50):
            some = parents[start : start + 50]
            wanted = set(some)
            self.vendor.on_look(kind, some)
            records = self._read(
                "bonds",
                kind,
                lambda wanted=wanted: [  # type: ignore[misc]  # bound early
                    self.vendor.show(row)
                    for row in self.vendor.visible(kind)
                    if not row.record.is_deleted and row.record.refs[end] in wanted
                ],
            )
            yield Page(kind, tuple(records), complete_parents=tuple(some))

    def read(self, kind: str, addresses: Sequence[Address]) -> Mapping[str, Record]:
        self.vendor.on_look(kind, [each.id for each in addresses])
        found = self._read("read", kind, lambda: [self._one(kind, each) for each in addresses])
        return {address.id: record for address, record in zip(addresses, found, strict=True)}

    def _one(self, kind: str, address: Address) -> Record:
        row = self.vendor.row(kind, address.id)
        hops = 0
        while row is not None and row.record.merged_into is not None and hops < 10:
            row, hops = self.vendor.row(kind, row.record.merged_into), hops + 1
        if row is None or row.record.is_deleted:
            return Record(kind, address.id, {}, parent=address.parent, is_deleted=True)
        record = self.vendor.show(row)
        if record.id != address.id and address.id not in record.formerly:
            record = replace(record, formerly=(*record.formerly, address.id))
        return record

    def find(self, writes: Sequence[Write]) -> Mapping[str, Record]:
        keyed: dict[str, Record] = {}

        def look() -> list[Record]:
            keyed.update((each.key, record) for each in writes if (record := self.vendor.found(each)) is not None)
            return list(keyed.values())

        self._read("find", writes[0].kind, look)
        return keyed

    def _read(self, method: str, kind: str, rows: Callable[[], list[Record]]) -> list[Record]:
        def exchange() -> list[Record]:
            self.weather.strike("before", method, kind, 0)
            found = rows()
            self.weather.strike("after", method, kind, len(found))
            return found

        answer = self._wire.call(exchange, effect="read")
        self.vendor.arrived(answer)
        return answer

    # --- writing ----------------------------------------------------------------------

    def write(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        kind, verb = writes[0].kind, writes[0].verb
        if len(writes) > self._known.kinds[kind].batch[verb]:
            self.vendor.wrongs.append(f"a batch of {len(writes)} {kind}")

        def exchange() -> list[Outcome]:
            self.weather.strike("before", verb, kind, len(writes))
            troubled = self.weather.partial(len(writes))
            outcomes = []
            for index, each in enumerate(writes):
                if index in troubled:
                    outcomes.append(Outcome(each.key, Verdict.RETRY, reason="a passing trouble of its own"))
                    continue
                outcomes.append(self.vendor.apply(each))
                self.weather.strike("amid", verb, kind, index)
            self.weather.strike("after", verb, kind, len(writes))
            return outcomes

        try:
            answer = self._wire.call(exchange, effect="write", repeat=self._repeat(verb))
        except DelayedError:
            return [Outcome(each.key, Verdict.DELAYED) for each in writes]
        self.vendor.arrived(each.record for each in answer if each.record is not None)
        return answer

    def _repeat(self, verb: str) -> Repeat:
        """What no condition guards would undo an edit when it is sent again."""
        if self.vendor.manner is Manner.PROPSTREET:
            return "unsent" if verb == "create" else "always"
        return "always" if verb == "mark" else "never"

    def least_calls(self, tally: Tally) -> int:
        return 0


def _capabilities(manner: Manner) -> Capabilities:
    groups: Mapping[Manner, tuple[tuple[str, ...], ...]] = {
        Manner.PROPSTREET: tuple((kind,) for kind in KINDS),
        Manner.HUBSPOT: (("company",), ("contact", "employment"), ("deal",), ("deal_contact",)),
        Manner.SALESFORCE: (KINDS,),
    }
    return Capabilities(
        kinds={kind: _kind(manner, kind) for kind in KINDS},
        pull_groups=groups[manner],
        quotas=(Quota("default", 10_000, 1.0),),
        overlap_seconds=OVERLAP_SECONDS,
        deep_overlap_seconds=DEEP_OVERLAP_SECONDS,
    )


def _kind(manner: Manner, kind: str) -> KindCapability:
    is_left, is_relation = manner is Manner.PROPSTREET, kind in _REFS
    is_bond = manner is Manner.HUBSPOT and is_relation
    size = 1 if is_left and kind != "deal_contact" else 5
    return KindCapability(
        fields={
            name: FieldCapability(
                FIELDS[kind][name],
                is_writable=not (is_left and (kind, name) in READ_ONLY_LEFT),
                is_creatable=not (is_left and (kind, name) in READ_ONLY_LEFT),
                vocabulary=STAGES if name == "stage" and not is_left else None,
            )
            for name in USED[kind]
        },
        batch={"create": size, "update": size, "delete": 1 if is_left else size, "mark": size},
        read_batch=size,
        ref_sets=(frozenset(_REFS[kind]),) if is_relation else (),
        is_child=(is_left and kind == "deal_contact") or is_bond,
        is_swept=is_bond,
        is_conditional=is_left,
        is_exact=is_left and kind in ("company", "contact"),
        is_current=is_left,
        can_mark=kind != "employment" and not is_bond,
        one_per="contact" if manner is Manner.SALESFORCE and kind == "employment" else None,
        rides_on="contact" if manner is Manner.SALESFORCE and kind == "employment" else None,
    )


_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _at(record: Record) -> datetime:
    return record.modified_at or _NEVER


def _place(record: Record) -> tuple[datetime, str]:
    return _at(record), record.id


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _clock(records: Sequence[Record]) -> str | None:
    return _iso(max(map(_at, records))) if records else None


def _floor(watermark: str | None, request: Pull) -> datetime | None:
    if watermark is None:
        return None
    seconds = DEEP_OVERLAP_SECONDS if request.is_deep else OVERLAP_SECONDS
    return datetime.fromisoformat(less(watermark, seconds))


def _shuffled(vendor: Vendor, records: Sequence[Record]) -> tuple[Record, ...]:
    """The same page, rows of one instant in any order."""
    return tuple(sorted(records, key=lambda record: (_at(record), vendor.random.random())))
