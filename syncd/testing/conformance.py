"""The tests that every connector passes, whatever it speaks to.

Subclass ``Conformance`` under a name that starts with ``Test`` and give it ``build``: a
``Harness`` of an empty system. Each test is one law of ``syncd.connector``, said in its
docstring and tried kind by kind, on a fresh system each. What a vendor does in its own way the
harness tells; a law that has nothing to try passes. Nothing here imports pytest;
``pytest.register_assert_rewrite`` makes its failures readable.
"""
# ruff: noqa: S101

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count
from typing import Final, Literal, Protocol, TypeVar

from syncd.connector import Capabilities, Connector, Outcome, Page, Parent, Pull, Tally, Verdict, Write
from syncd.core.mapping import UnfitValueError, same
from syncd.core.model import FIELDS, KINDS, RELATIONS, Address, FieldType, Money, Record, Value, Values, Verb
from syncd.core.watermark import advance
from syncd.errors import HaltedError, RateLimitedError, RejectedError, TransientError, UnknownOutcomeError

T = TypeVar("T")
FaultKind = Literal["before", "after", "429", "500"]

#: The one field of each kind that a harness must know how to set.
LABEL: Final = {
    "company": "name",
    "contact": "last_name",
    "employment": "job_title",
    "deal": "name",
    "deal_contact": "classification",
}
HOSTILE: Final = ("../x", "a/b", "a'b", "a?b=c", "a\r\nb", "x" * 10_000, "")
_PLAIN: Final = tuple(kind for kind in KINDS if kind not in RELATIONS)
_FAULTS: Final[tuple[FaultKind, ...]] = ("before", "after", "429", "500")
_CHANGES: Final[tuple[Verb, ...]] = ("update", "mark", "delete")
_ATTEMPTS: Final = 4


class CountingWire:
    """A ``Wire`` that calls at once, repeats what may be repeated, counts, and refuses writes in a dry run."""

    def __init__(self) -> None:
        self.calls = 0
        self.writes = 0
        self.is_dry = False

    def call(
        self,
        exchange: Callable[[], T],
        *,
        effect: Literal["read", "write"],
        bucket: str = "default",
        is_repeatable: bool = True,
    ) -> T:
        if effect == "write" and self.is_dry:
            raise HaltedError("a dry run writes nothing")
        for attempt in range(_ATTEMPTS):
            self.calls += 1
            self.writes += effect == "write"
            try:
                return exchange()
            except TransientError as exc:
                if exc.is_sent and not is_repeatable:
                    raise UnknownOutcomeError(str(exc)) from exc
                if attempt == _ATTEMPTS - 1 or (isinstance(exc, RateLimitedError) and exc.is_daily):
                    raise
        raise AssertionError("unreachable")

    def observe(self, bucket: str, *, remaining: int, reset_seconds: float) -> None:
        return None


class Harness(Protocol):
    """An empty system that ``check`` and ``fix`` have been through, its connector, and the hands of its people.

    ``page``: the most records that one answer holds. ``missing``: for each kind an id that could
    be one and leads nowhere. ``never_empty`` and ``never_shown``: fields that the vendor fills
    when they are cleared, and fields that it takes and does not tell. ``poison``: by verb, values
    for which it refuses a contact. Its clock moves by ``advance`` alone.
    """

    connector: Connector
    wire: CountingWire
    page: int
    missing: Mapping[str, str]
    never_empty: Mapping[str, frozenset[str]]
    never_shown: Mapping[str, frozenset[str]]
    poison: Mapping[Verb, Values]

    def reconnect(self) -> None:
        """Replace the connector by a new one on the same wire, as a restart would."""

    def advance(self, seconds: float) -> None: ...

    def add(self, kind: str, values: Values, refs: Mapping[str, str]) -> str:
        """A person makes a record, with its ``LABEL`` at most; returns the id that records show."""
        ...

    def edit(self, kind: str, id_: str, values: Values) -> None: ...

    def remove(self, kind: str, id_: str) -> None: ...

    def merge(self, kind: str, winner: str, loser: str) -> str | None:
        """A person merges two records; returns the survivor's id, None where the vendor cannot."""
        ...

    def plant(self, kind: str, id_: str) -> bool:
        """Put something that is none of ours on a record (a field, label, role, ref); False if there is no such thing."""
        ...

    def planted(self, kind: str, id_: str) -> object:
        """What is on a record that is none of ours."""
        ...

    def fault(self, which: FaultKind) -> None:
        """The next create fails: before any effect, with its answer lost, by quota, or by a 500 after its effect."""

    def requests(self) -> Sequence[str]:
        """Every request that was seen: method, path and query, unescaped, with what else is a path or a query."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Feed:
    """What pulls have shown so far, kept as the engine keeps it."""

    harness: Harness
    capabilities: Capabilities
    seen: dict[str, dict[str, Record]] = field(default_factory=dict)
    clocks: dict[tuple[str, str], str] = field(default_factory=dict)
    pulled: Counter[str] = field(default_factory=Counter)
    parents: Counter[str] = field(default_factory=Counter)

    def pull(self, *, is_sweep: bool = False, between: Callable[[Page], None] = lambda page: None) -> list[Page]:
        """Pull every group from its clocks, the first time in full; ``between`` is called after each page."""
        is_sweep = is_sweep or not self.seen
        pages: list[Page] = []
        for group in self.capabilities.pull_groups:
            child = next((kind for kind in group if self.capabilities.kinds[kind].is_child), "")
            if group == (child,) and self.capabilities.kinds[child].is_swept and not is_sweep:
                continue
            watermarks = {kind: self.clocks.get((kind, "")) for kind in group}
            request = Pull(group, watermarks, lambda child=child: self._parents(child), is_sweep=is_sweep)  # type: ignore[misc]
            own: list[Page] = []
            for page in self.harness.connector.pull(request):
                own.append(page)
                self._take(page, [each for each in own if each.kind == page.kind])
                between(page)
            for page in own:
                at = (page.kind, page.parent or "")
                if (clock := advance(self.clocks.get(at), [page.clock])) is not None:
                    self.clocks[at] = clock
            pages += own
        return pages

    def live(self, kind: str) -> dict[str, Record]:
        return {id_: record for id_, record in self.seen.get(kind, {}).items() if not record.is_deleted}

    def _parents(self, child: str) -> Iterator[Parent]:
        for id_ in self.live("contact" if child == "employment" else "deal"):
            self.parents[child] += 1
            yield Parent(id_, self.clocks.get((child, id_)))

    def _take(self, page: Page, so_far: Sequence[Page]) -> None:
        known = self.seen.setdefault(page.kind, {})
        known.update({record.id: record for record in page.records})
        self.pulled[page.kind] += len(page.records)
        gone = {id_ for id_, record in known.items() if record.parent in page.complete_parents}
        gone |= known.keys() if page.is_listing and page.is_last else set()
        gone -= {record.id for each in so_far for record in each.records if not record.is_deleted}
        known.update({id_: replace(known[id_], is_deleted=True) for id_ in gone})


class Trial:
    """One law on trial for one kind: the harness, and short ways to make things up, write and read."""

    def __init__(self, harness: Harness, kind: str):
        self.harness = harness
        self.kind = kind
        self.capabilities = harness.connector.capabilities()
        self.kinds = self.capabilities.kinds
        self.currency = harness.connector.account().currency or "SEK"
        self._serial = count(1)

    @property
    def connector(self) -> Connector:
        return self.harness.connector

    def is_apt(self) -> bool:
        return self.kind in self.kinds

    # --- people -----------------------------------------------------------------------

    def label(self, kind: str = "") -> dict[str, Value]:
        """A fresh value for the label of a kind; none if the system does not carry it."""
        name, number = LABEL[kind or self.kind], next(self._serial)
        words = ("contacted", "interested", "bidder")
        value = words[number % 3] if name == "classification" else f"Nordhaus {number}"
        return {name: value} if name in self.kinds[kind or self.kind].fields else {}

    def refs(self, kind: str, known: Mapping[str, str]) -> dict[str, str]:
        ends = self.kinds[kind].ref_sets[0] if self.kinds[kind].ref_sets else frozenset[str]()
        return {end: known.get(end) or self.add(end) for end in sorted(ends)}

    def add(self, kind: str = "", **known: str) -> str:
        """A person makes a record with a label, and all that it refers to."""
        kind = kind or self.kind
        return self.harness.add(kind, self.label(kind), self.refs(kind, known))

    def stand(self) -> Record:
        """A record that a person has made, as it reads."""
        refs = self.refs(self.kind, {})
        record = self.read(self.harness.add(self.kind, self.label(), refs), refs.get("deal"))
        self.harness.advance(2)
        return record

    def leave_alone(self) -> None:
        """Wait until no overlap reaches back to now."""
        self.harness.advance(self.capabilities.deep_overlap_seconds + 60)

    # --- ourselves --------------------------------------------------------------------

    def draft(self, values: Values | None = None, kind: str = "", **known: str) -> Write:
        """A create, to be marked with a counterpart of its own."""
        kind, number = kind or self.kind, next(self._serial)
        first: Values = {"is_primary": True} if "is_primary" in self.kinds[kind].fields else {}
        given = {**first, **self.label(kind)} if values is None else values
        return Write(f"key-{number:08d}", kind, "create", None, f"cp{number:06d}", given, self.refs(kind, known))

    def change(self, record: Record, verb: Verb = "update", values: Values | None = None) -> Write:
        """A change of a record as last read: of its label, unless ``values`` are given."""
        given = values if values is not None else self.label(record.kind) if verb == "update" else {}
        address, mark = Address(record.id, record.parent), f"cp{next(self._serial):06d}" if verb == "mark" else None
        return Write(
            f"key-{next(self._serial):08d}", record.kind, verb, address, mark, given, record.refs,
            record.version, record.modified_at, record.opaque,
        )  # fmt: skip

    def write(self, *writes: Write) -> dict[str, Outcome]:
        """Write as the engine does, halving a batch that is refused as a whole; one outcome each, by key."""
        try:
            outcomes = self.connector.write(writes)
        except RejectedError as exc:
            if len(writes) == 1:
                return {writes[0].key: Outcome(writes[0].key, Verdict.REJECTED, reason=str(exc))}
            half = len(writes) // 2
            return self.write(*writes[:half]) | self.write(*writes[half:])
        assert sorted(each.key for each in outcomes) == sorted(each.key for each in writes), "one outcome for each write"
        is_bare = [each.key for each in outcomes if each.verdict in (Verdict.DONE, Verdict.EXISTS) and not each.record]
        assert not is_bare or writes[0].verb == "delete", "DONE or EXISTS without the record"
        return {each.key: each for each in outcomes}

    def done(self, write: Write) -> Record:
        """Write one record, which must succeed."""
        outcome = self.write(write)[write.key]
        assert outcome.verdict is Verdict.DONE and outcome.record, (write.verb, write.kind, dict(write.values), outcome)
        return outcome.record

    def read(self, id_: str, parent: str | None = None) -> Record:
        """One record as the truth has it."""
        found = self.connector.read(self.kind, [Address(id_, parent)])
        assert set(found) == {id_}, f"asked for one id, answered for {sorted(found)}"
        return found[id_]

    def again(self, record: Record) -> Record:
        return self.read(record.id, record.parent)

    def truth(self) -> dict[str, Values]:
        """Values of every live record of the kind, by id, as a first pull shows them."""
        feed = Feed(self.harness, self.capabilities)
        feed.pull()
        return {id_: dict(record.values) for id_, record in feed.live(self.kind).items()}

    def samples(self, turn: int) -> dict[str, Value]:
        """A value for each field that any system can hold, in this one's own words; two turns differ where they can."""
        found: dict[str, Value] = {}
        for name, can in self.kinds[self.kind].fields.items():
            words = [*(can.vocabulary or {}).values()] or _WORDS.get(f"{self.kind}.{name}") or _WORDS.get(name)
            made: dict[FieldType, Value] = {
                FieldType.MONEY: Money(Decimal(1_500_000 + turn), self.currency),
                FieldType.NUMBER: Decimal(12 + turn),
                FieldType.BOOLEAN: True,
                FieldType.INSTANT: datetime(2026, 1, 2, 3, 4, 5 + turn, tzinfo=UTC),
                FieldType.DATE: date(2026, 1, 2 + turn),
                FieldType.PHONE: f"+4670174060{5 + turn}",
                FieldType.SET: frozenset({f"{turn}@a.example"} if "email" in name else {"office", f"t{turn}"}),
            }
            found[name] = list(dict.fromkeys(words))[turn % len(set(words))] if words else made.get(can.type, f"{name} {turn}")
        return found

    def create_full(self) -> Record:
        """A record with a value in every field that a create takes."""
        fields = self.kinds[self.kind].fields
        write = self.draft({name: value for name, value in self.samples(0).items() if fields[name].is_creatable})
        return self.holds(write, self.done(write))

    def writable(self, record: Record) -> set[str]:
        fields = self.kinds[self.kind].fields
        return {name for name in fields if fields[name].is_writable and not {name, "*"} & record.locked.keys()}

    def holds(self, write: Write, answered: Record) -> Record:
        """The record as it reads after a write, if the answer and the truth hold what was written."""
        record, hidden = self.again(answered), self.harness.never_shown.get(self.kind, frozenset())
        for name, value in write.values.items():
            for shown in [each.values[name] for each in (answered, record) if name in each.values]:
                type_ = self.kinds[self.kind].fields[name].type
                assert same(type_, value, shown), f"{write.verb} {self.kind}.{name}: {value!r} reads {shown!r}"
            assert name in record.values or name in hidden or name in record.locked, f"{self.kind}.{name} is not shown"
        return record


_WORDS: Final[Mapping[str, tuple[Value, ...]]] = {
    "domain": ("nordhaus.example", "mast.example"),
    "homepage": ("https://nordhaus.example", "https://mast.example"),
    "country": ("SE", "NO"),
    "property_country": ("SE", "NO"),
    "language": ("sv", "en"),
    "email": ("asa@nordhaus.example", "asa@mast.example"),
    "linkedin": ("https://linkedin.com/in/a", "https://linkedin.com/in/b"),
    "stage": ("published", "verified"),
    "status": ("open",),
    "exclusivity": ("exclusive", "non_exclusive"),
    "asset_type": ("portfolio",),
    "deal.classification": ("draft", "active"),
    "deal_contact.classification": ("interested", "bidder"),
}


class Conformance:
    """The laws. A subclass gives ``build``."""

    def build(self) -> Harness:
        raise NotImplementedError

    @contextmanager
    def trial(self, kind: str = "") -> Iterator[Trial]:
        harness = self.build()
        try:
            yield Trial(harness, kind)
            assert len(harness.requests()) == harness.wire.calls, "a call went past the wire"
        finally:
            harness.close()

    def each(self, kinds: Sequence[str] = KINDS) -> Iterator[Trial]:
        """A fresh trial for each kind that the system has."""
        for kind in kinds:
            with self.trial(kind) as trial:
                if trial.is_apt():
                    yield trial

    # --- what there is ----------------------------------------------------------------

    def test_capabilities_name_only_what_the_core_knows(self) -> None:
        """Kinds, fields and types are the core's; each kind is pulled in one group and takes at least one in a batch."""
        with self.trial() as trial:
            found = trial.capabilities
            assert sorted(kind for group in found.pull_groups for kind in group) == sorted(found.kinds)
            assert 0 < found.overlap_seconds <= found.deep_overlap_seconds
            for kind, can in found.kinds.items():
                assert {name: each.type for name, each in can.fields.items()}.items() <= FIELDS[kind].items()
                assert {"create", *_CHANGES} == can.batch.keys() and min(*can.batch.values(), can.read_batch) > 0
                ends = {end for ref_set in can.ref_sets for end in ref_set}
                assert bool(ends) == (kind in RELATIONS) and ends | {can.one_per or kind} <= {kind, *found.kinds}

    def test_a_check_changes_nothing_and_a_fix_leaves_nothing_to_fix(self) -> None:
        """``check`` only reads, and finds nothing required or fixable once ``fix`` was there; the account keeps its id."""
        with self.trial() as trial:
            before, account = trial.harness.wire.writes, trial.connector.account()
            trial.harness.reconnect()
            findings = trial.connector.check()
            assert not [each for each in findings if each.is_required or each.is_fixable], findings
            assert trial.harness.wire.writes == before
            assert account.id and trial.connector.account().id == account.id

    # --- pull -------------------------------------------------------------------------

    def test_a_first_pull_shows_everything_and_says_where_it_ends(self) -> None:
        """Without a watermark all there is is shown, and every kind but a child ends with the one last page of a listing."""
        for trial in self.each():
            for is_empty in (True, False):
                ids = set() if is_empty else {trial.add() for _ in range(3)}
                feed = Feed(trial.harness, trial.capabilities)
                pages = [page for page in feed.pull() if page.kind == trial.kind]
                assert feed.live(trial.kind).keys() == ids
                assert all(record.kind == trial.kind for page in pages for record in page.records)
                if not trial.kinds[trial.kind].is_child:
                    shape = [(page.is_listing, page.is_last) for page in pages]
                    assert shape == [(True, False)] * (len(pages) - 1) + [(True, True)]

    def test_a_pull_from_the_returned_clock_shows_what_came_later(self) -> None:
        """A watermark outlives the process that saw it: what is edited or made after it is shown, what is removed by a sweep."""
        for trial in self.each():
            edited, removed, kept = (trial.add() for _ in range(3))
            feed = Feed(trial.harness, trial.capabilities)
            feed.pull()
            trial.leave_alone()
            label, made = trial.label(), trial.add()
            trial.harness.edit(trial.kind, edited, label)
            trial.harness.advance(1)
            trial.harness.reconnect()
            feed.pull(is_sweep=trial.kinds[trial.kind].is_swept)
            assert label.items() <= feed.seen[trial.kind][edited].values.items()
            assert made in feed.live(trial.kind)
            trial.leave_alone()
            trial.harness.remove(trial.kind, removed)
            trial.harness.advance(1)
            feed.pull(is_sweep=True)
            assert feed.live(trial.kind).keys() == {edited, made, kept}

    def test_nothing_is_skipped_where_more_than_a_page_share_an_instant(self) -> None:
        """No page ends between equal clocks and loses what comes behind, in a listing or after a watermark."""
        for trial in self.each(_PLAIN):
            feed = Feed(trial.harness, trial.capabilities)
            ids = {trial.add()}
            feed.pull()
            trial.leave_alone()
            ids |= {trial.add() for _ in range(trial.harness.page + 5)}
            trial.harness.advance(1)
            feed.pull()
            assert ids == feed.live(trial.kind).keys() == trial.truth().keys()

    def test_a_record_changed_while_being_paged_is_not_lost(self) -> None:
        """Whatever is edited or removed between two pages, all the others are shown, and the edits next time at the latest."""
        for trial in [*self.each(_PLAIN), *self.each(_PLAIN)]:
            pass

    def test_an_idle_pull_reads_little_and_writes_nothing(self) -> None:
        """Where nothing moved, a pull takes at most a call per kind and per parent visited, and one more."""
