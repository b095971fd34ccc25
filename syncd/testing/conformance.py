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

from syncd.connector import (
    Capabilities,
    Connector,
    KindCapability,
    Outcome,
    Page,
    Parent,
    Pull,
    Repeat,
    Tally,
    Verdict,
    Write,
)
from syncd.core.mapping import UnfitValueError, same
from syncd.core.model import FIELDS, KINDS, RELATIONS, Address, FieldType, Money, Record, Value, Values, Verb
from syncd.core.watermark import advance
from syncd.errors import DelayedError, HaltedError, RateLimitedError, RejectedError, TransientError, UnknownOutcomeError

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
_UNMARKED: Final[tuple[Verb, ...]] = ("update", "delete")
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
        repeat: Repeat = "always",
    ) -> T:
        if effect == "write" and self.is_dry:
            raise HaltedError("a dry run writes nothing")
        for attempt in range(_ATTEMPTS):
            self.calls += 1
            self.writes += effect == "write"
            try:
                return exchange()
            except TransientError as exc:
                if exc.is_sent and repeat != "always":
                    raise UnknownOutcomeError(str(exc)) from exc
                if repeat == "never" and not (isinstance(exc, RateLimitedError) and exc.is_daily):
                    raise DelayedError(str(exc)) from exc
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
        """Put what is none of ours on a record (a field, label, role, ref); False if there is no such thing."""
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

    def pull(self, *, is_sweep: bool = False) -> list[Page]:
        return list(self.pages(is_sweep=is_sweep))

    def pages(self, *, is_sweep: bool = False) -> Iterator[Page]:
        """Pull every group from its clocks, which move on at its end; the first time in full."""
        is_sweep = is_sweep or not self.seen
        for group in self.capabilities.pull_groups:
            child = next((kind for kind in group if self.capabilities.kinds[kind].is_child), "")
            is_unswept = bool(child) and self.capabilities.kinds[child].is_swept and not is_sweep
            if group == (child,) and is_unswept:
                continue
            watermarks = {kind: self.clocks.get((kind, "")) for kind in group}
            visited = "" if is_unswept else child
            request = Pull(group, watermarks, lambda child=visited: self._parents(child), is_sweep=is_sweep)  # type: ignore[misc]
            own: list[Page] = []
            for page in self.harness.connector.pull(request):
                own.append(page)
                self._take(page, [each for each in own if each.kind == page.kind])
                yield page
            for page in own:
                at = (page.kind, page.parent or "")
                if (clock := advance(self.clocks.get(at), [page.clock])) is not None:
                    self.clocks[at] = clock

    def live(self, kind: str) -> dict[str, Record]:
        return {id_: record for id_, record in self.seen.get(kind, {}).items() if not record.is_deleted}

    def _parents(self, child: str) -> Iterator[Parent]:
        for id_ in self.live("contact" if child == "employment" else "deal") if child else ():
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

    @property
    def can(self) -> KindCapability:
        return self.kinds[self.kind]

    def feed(self) -> Feed:
        return Feed(self.harness, self.capabilities)

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
        keys = sorted(write.key for write in writes)
        assert sorted(each.key for each in outcomes) == keys, "not one outcome for each write"
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
        feed = self.feed()
        feed.pull()
        return {id_: dict(record.values) for id_, record in feed.live(self.kind).items()}

    def samples(self, turn: int) -> dict[str, Value]:
        """A value for each field that any system can hold, in this one's own words; two turns differ where they can."""
        found: dict[str, Value] = {}
        for name, can in self.can.fields.items():
            own = tuple(dict.fromkeys((can.vocabulary or {}).values()))
            words = own or _WORDS.get(f"{self.kind}.{name}") or _WORDS.get(name)
            made: dict[FieldType, Value] = {
                FieldType.MONEY: Money(Decimal(1_500_000 + turn), self.currency),
                FieldType.NUMBER: Decimal(12 + turn),
                FieldType.BOOLEAN: True,
                FieldType.INSTANT: datetime(2026, 1, 2, 3, 4, 5 + turn, tzinfo=UTC),
                FieldType.DATE: date(2026, 1, 2 + turn),
                FieldType.PHONE: f"+4670174060{5 + turn}",
                FieldType.SET: frozenset({f"{turn}@a.example"} if "email" in name else {"office", f"t{turn}"}),
            }
            found[name] = words[turn % len(words)] if words else made.get(can.type, f"{name} {turn}")
        return found

    def create_full(self) -> Record:
        """A record with a value in every field that a create takes."""
        fields = self.can.fields
        write = self.draft({name: value for name, value in self.samples(0).items() if fields[name].is_creatable})
        return self.holds(write, self.done(write))

    def writable(self, record: Record) -> set[str]:
        fields = self.can.fields
        return {name for name in fields if fields[name].is_writable and not {name, "*"} & record.locked.keys()}

    def holds(self, write: Write, answered: Record) -> Record:
        """The record as it reads after a write, if the answer and the truth hold what was written."""
        record, hidden = self.again(answered), self.harness.never_shown.get(self.kind, frozenset())
        for name, value in write.values.items():
            for shown in [each.values[name] for each in (answered, record) if name in each.values]:
                type_ = self.can.fields[name].type
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
                if kind in trial.kinds:
                    yield trial

    # --- what there is ----------------------------------------------------------------

    def test_capabilities_name_only_what_the_core_knows(self) -> None:
        """Kinds, fields and types are the core's; each kind is pulled in one group and goes in batches."""
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
        """``check`` only reads, and finds nothing required or fixable after ``fix``; the account keeps its id."""
        with self.trial() as trial:
            before, account = trial.harness.wire.writes, trial.connector.account()
            trial.harness.reconnect()
            findings = trial.connector.check()
            assert not [each for each in findings if each.is_required or each.is_fixable], findings
            assert trial.harness.wire.writes == before
            assert account.id and trial.connector.account().id == account.id

    # --- pull -------------------------------------------------------------------------

    def test_a_first_pull_shows_everything_and_says_where_it_ends(self) -> None:
        """Without a watermark everything is shown, and every kind but a child ends with its listing's one last page."""
        for trial in self.each():
            for is_empty in (True, False):
                ids = set() if is_empty else {trial.add() for _ in range(3)}
                feed = trial.feed()
                pages = [page for page in feed.pull() if page.kind == trial.kind]
                assert feed.live(trial.kind).keys() == ids
                assert all(record.kind == trial.kind for page in pages for record in page.records)
                if not trial.can.is_child:
                    shape = [(page.is_listing, page.is_last) for page in pages]
                    assert shape == [(True, False)] * (len(pages) - 1) + [(True, True)]

    def test_a_pull_from_the_returned_clock_shows_what_came_later(self) -> None:
        """A watermark outlives its process: a pull shows what is edited or made after it, a sweep what is removed."""
        for trial in self.each():
            edited, removed, kept = (trial.add() for _ in range(3))
            feed = trial.feed()
            feed.pull()
            trial.leave_alone()
            label, made = trial.label(), trial.add()
            trial.harness.edit(trial.kind, edited, label)
            trial.harness.advance(1)
            trial.harness.reconnect()
            feed.pull(is_sweep=trial.can.is_swept)
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
            feed = trial.feed()
            ids = {trial.add()}
            feed.pull()
            trial.leave_alone()
            ids |= {trial.add() for _ in range(trial.harness.page + 5)}
            trial.harness.advance(1)
            feed.pull()
            assert ids == feed.live(trial.kind).keys() == trial.truth().keys()

    def test_a_record_changed_while_being_paged_is_not_lost(self) -> None:
        """Whatever people do between two pages, all other records are shown, and the edits next time at the latest."""
        for is_delta in (False, True):
            for trial in self.each(_PLAIN):
                feed, kind, pages = trial.feed(), trial.kind, list[Page]()
                if is_delta:
                    trial.add()
                    feed.pull()
                    trial.leave_alone()
                ids = []
                for _ in range(trial.harness.page + 5):
                    ids.append(trial.add())
                    trial.harness.advance(1)
                labels = {ids[1]: trial.label(), ids[-1]: trial.label()}
                for page in feed.pages():
                    if page.kind == kind and not pages:
                        trial.harness.advance(2)
                        trial.harness.remove(kind, ids[0])
                        for id_, label in labels.items():
                            trial.harness.edit(kind, id_, label)
                    pages += [page] if page.kind == kind else []
                assert len(pages) > 1, "the harness's page is larger than that"
                assert set(ids[1:]) <= {record.id for page in pages for record in page.records}
                trial.harness.advance(2)
                feed.pull()
                for id_, label in labels.items():
                    assert label.items() <= feed.seen[kind][id_].values.items()
                feed.pull(is_sweep=True)
                assert ids[0] not in feed.live(kind) and set(ids[1:]) <= feed.live(kind).keys()

    def test_an_idle_pull_reads_little_and_writes_nothing(self) -> None:
        """Where nothing moved, a pull takes at most a call per kind and per parent visited, and one more."""
        for trial in self.each():
            trial.add()
            feed, wire = trial.feed(), trial.harness.wire
            feed.pull()
            trial.leave_alone()
            feed.pull()
            calls, writes = wire.calls, wire.writes
            feed.parents.clear()
            feed.pull()
            assert wire.writes == writes and wire.calls - calls <= len(trial.kinds) + feed.parents.total() + 1

    # --- read -------------------------------------------------------------------------

    def test_a_missing_record_reads_as_a_tombstone(self) -> None:
        """A read answers by the id asked, also for one that leads nowhere; a change of that is MISSING."""
        for trial in self.each():
            there, missing = trial.stand(), trial.harness.missing[trial.kind]
            asked = [Address(there.id, there.parent), Address(missing, there.parent)]
            found = trial.connector.read(trial.kind, asked)
            assert {id_: (each.id, each.is_deleted) for id_, each in found.items()} == {
                there.id: (there.id, False),
                missing: (missing, True),
            }
            for verb in _UNMARKED:
                write = trial.change(replace(there, id=missing, refs={}, opaque={}), verb)
                gone = (Verdict.MISSING, Verdict.REJECTED) + (Verdict.DONE,) * (verb == "delete")
                assert trial.write(write)[write.key].verdict in gone

    def test_a_merged_record_leads_to_its_survivor(self) -> None:
        """Read by the id that a merge took, a record comes under its new one, or as a tombstone that names it."""
        for trial in self.each(_PLAIN):
            winner, loser = trial.stand(), trial.stand()
            survivor = trial.harness.merge(trial.kind, winner.id, loser.id)
            found = trial.again(loser)
            if survivor is not None and found.is_deleted:
                assert (found.id, found.merged_into) == (loser.id, survivor)
            elif survivor is not None:
                assert found.id == survivor and loser.id in found.formerly

    # --- write ------------------------------------------------------------------------

    def test_values_come_back_as_they_were_written(self) -> None:
        """What a create or an update wrote reads the same, by its field's notion of equal."""
        for trial in self.each():
            record = trial.create_full()
            trial.harness.advance(2)
            able = trial.writable(record)
            update = trial.change(
                record, "update", {name: each for name, each in trial.samples(1).items() if name in able}
            )
            trial.holds(update, trial.done(update))

    def test_none_clears_a_field(self) -> None:
        """A field that was cleared reads None, unless the vendor keeps none empty; no other field goes with it."""
        for trial in self.each():
            record = trial.create_full()
            for name in sorted(trial.can.fields):
                if name not in trial.writable(record):
                    continue
                trial.harness.advance(2)
                update = trial.change(record, "update", {name: None})
                verdict, before = trial.write(update)[update.key].verdict, record
                record = trial.again(record)
                assert not record.is_deleted
                if name in trial.harness.never_empty.get(trial.kind, ()):
                    assert verdict in (Verdict.DONE, Verdict.REJECTED)
                else:
                    assert verdict is Verdict.DONE and record.values.get(name) is None, (trial.kind, name, verdict)
                    lost = {each for each in before.values if before.values[each] and not record.values.get(each)}
                    assert lost <= {name, "domain"}, (trial.kind, name, lost)

    def test_a_create_bears_the_mark_and_is_found_by_its_key(self) -> None:
        """``find`` knows what stands for a create and nothing else; where it can, create and mark store the mark."""
        for trial in self.each():
            made, other = trial.draft(), trial.draft()
            record = trial.again(trial.done(made))
            assert {key: each.id for key, each in trial.connector.find([other, made]).items()} == {made.key: record.id}
            if trial.can.can_mark:
                assert record.mark == made.counterpart
                mark = trial.change(trial.stand(), "mark")
                assert trial.again(trial.done(mark)).mark == mark.counterpart

    def test_a_create_makes_no_twin_whatever_becomes_of_its_answer(self) -> None:
        """A create that failed in passing, or whose answer was lost, stands there once; so does a repeated one."""
        for trial in self.each():
            made: set[str] = set()
            for fault in _FAULTS:
                write = trial.draft()
                trial.harness.fault(fault)
                record = self._settled(trial, write)
                made.add(record.id)
                again = trial.write(write)[write.key]
                assert again.verdict in (Verdict.DONE, Verdict.EXISTS) and again.record, (trial.kind, fault, again)
                assert again.record.id == record.id, (trial.kind, fault)
                trial.harness.advance(2)
            assert trial.truth().keys() == made and len(made) == len(_FAULTS)

    @staticmethod
    def _settled(trial: Trial, write: Write) -> Record:
        """Create a record as the engine does: look what stands there before trying again, with a fresh key."""
        for attempt in range(3):
            intent = replace(write, key=f"{write.key}-{attempt}") if attempt else write
            try:
                outcome = trial.write(intent)[intent.key]
            except UnknownOutcomeError:
                outcome = Outcome(intent.key, Verdict.UNKNOWN)
            found = trial.connector.find([intent]) if outcome.verdict is Verdict.UNKNOWN else {}
            if record := outcome.record or found.get(intent.key):
                return record
            assert outcome.verdict in (Verdict.UNKNOWN, Verdict.RETRY, Verdict.DELAYED), outcome
        raise AssertionError(f"{write.kind}: neither written nor found")

    def test_one_bad_write_leaves_the_good_ones(self) -> None:
        """One poison in a batch comes out alone, or the batch is refused as a whole and nothing of it was written."""
        verbs: tuple[Verb, ...] = ("create", "update")
        for verb in verbs:
            for trial in self.each(["contact"]):
                size = min(8, *trial.kinds["contact"].batch.values())
                writes = [trial.draft() for _ in range(size)]
                if verb == "update":
                    writes = [trial.change(trial.again(trial.done(write))) for write in writes]
                writes[1] = replace(writes[1], values=trial.harness.poison[verb])
                trial.harness.advance(2)
                before = trial.truth()
                try:
                    outcomes = {each.key: each for each in trial.connector.write(writes)}
                except RejectedError:
                    assert trial.truth() == before, "refused as a whole, and written in part"
                    outcomes = trial.write(*writes)
                verdicts = [outcomes[write.key].verdict for write in writes]
                assert verdicts == [Verdict.DONE, Verdict.REJECTED, *[Verdict.DONE] * (size - 2)]

    def test_a_stale_version_is_refused(self) -> None:
        """Where writes are conditional, one that was made on an outdated reading is STALE and changes nothing."""
        for trial in self.each():
            for verb in _UNMARKED if trial.can.is_conditional else ():
                before, label = trial.stand(), trial.label()
                trial.harness.edit(trial.kind, before.id, label)
                write = trial.change(before, verb)
                refused = {Verdict.STALE} | ({Verdict.REJECTED} if verb == "delete" else set())
                assert trial.write(write)[write.key].verdict in refused
                assert label.items() <= trial.again(before).values.items()

    def test_what_was_deleted_is_gone(self) -> None:
        """A delete that was DONE leaves a tombstone, one that was refused leaves the record; a repeat does no harm."""
        for trial in self.each():
            record, other = trial.stand(), trial.stand()
            for _ in range(2):
                write = trial.change(record, "delete")
                verdict = trial.write(write)[write.key].verdict
                assert verdict is not Verdict.UNKNOWN
                assert trial.again(record).is_deleted or verdict is Verdict.REJECTED
            assert not trial.again(other).is_deleted

    def test_what_is_not_ours_survives_a_write(self) -> None:
        """Fields, labels, roles and refs that are not mapped are as they were after an update and after a mark."""
        for trial in self.each():
            record = trial.stand()
            if trial.harness.plant(trial.kind, record.id):
                before = trial.harness.planted(trial.kind, record.id)
                for verb in _CHANGES[: 1 + trial.can.can_mark]:
                    trial.harness.advance(2)
                    trial.done(trial.change(trial.again(record), verb))
                assert before and trial.harness.planted(trial.kind, record.id) == before

    def test_a_hostile_id_never_gets_into_a_path_or_a_query(self) -> None:
        """What cannot be an id is a tombstone or is refused, and no request has it where it could lead elsewhere."""
        for trial in self.each():
            record = trial.stand()
            for bad in HOSTILE:
                before = len(trial.harness.requests())
                lost, draft = replace(record, id=bad, refs={}, opaque={}), trial.draft()
                self._expect_refusal(trial.connector.read, trial.kind, [Address(bad, record.parent)])
                for verb in _CHANGES:
                    self._expect_refusal(trial.connector.write, [trial.change(lost, verb)])
                for end in record.refs if bad else ():
                    self._expect_refusal(trial.connector.write, [replace(draft, refs={**draft.refs, end: bad})])
                leaks = [each for each in trial.harness.requests()[before:] if bad and bad in each]
                assert not leaks, (trial.kind, bad[:9], leaks[0][:120])
            assert trial.again(record).values == record.values

    @staticmethod
    def _expect_refusal(attempt: Callable[..., object], *given: object) -> None:
        try:
            found = attempt(*given)
        except (RejectedError, UnfitValueError):
            return
        if isinstance(found, Mapping):
            assert all(record.is_deleted for record in found.values()), "a hostile id leads somewhere"
        elif isinstance(found, Sequence):
            assert all(each.record is None and each.verdict is not Verdict.UNKNOWN for each in found), found

    def test_a_batch_of_the_full_size_is_taken(self) -> None:
        """``batch`` and ``read_batch`` are sizes that the vendor takes, with one outcome each."""
        for trial in self.each():
            can, ends = trial.can, {"employment": "company", "deal_contact": "deal"}
            known = {end: trial.add(end) for end in [ends.get(trial.kind)] if end}
            verbs = _CHANGES if can.can_mark else _UNMARKED
            there: list[Address] = []
            while len(there) < max(can.read_batch, *(can.batch[verb] for verb in verbs)):
                made = trial.connector.write([trial.draft(None, **known) for _ in range(can.batch["create"])])
                assert [each.verdict for each in made] == [Verdict.DONE] * can.batch["create"]
                there += [Address(each.record.id, each.record.parent) for each in made if each.record]
            for verb in verbs:
                trial.harness.advance(2)
                some, records = there[: max(can.batch[verb], can.read_batch)], list[Record]()
                for start in range(0, len(some), can.read_batch):
                    records += trial.connector.read(trial.kind, some[start : start + can.read_batch]).values()
                assert len(records) == len(some)
                outcomes = trial.connector.write([trial.change(each, verb) for each in records[: can.batch[verb]]])
                refused = {Verdict.REJECTED} if verb == "delete" else set[Verdict]()
                assert {each.verdict for each in outcomes} - refused <= {Verdict.DONE}, (trial.kind, verb)
                assert len(outcomes) == can.batch[verb]

    # --- calls ------------------------------------------------------------------------

    def test_a_dry_run_changes_nothing(self) -> None:
        """Every request that can change something says so: a wire that refuses writes lets none through."""
        for trial in self.each():
            record, draft, before = trial.stand(), trial.draft(), trial.truth()
            trial.harness.wire.is_dry = True
            for write in (draft, *(trial.change(record, verb) for verb in _CHANGES)):
                try:
                    outcomes = trial.connector.write([write])
                except (HaltedError, RejectedError):
                    continue
                is_silent = write.verb == "update" and not write.values
                assert is_silent or [each.verdict for each in outcomes] == [Verdict.REJECTED], outcomes
            assert trial.truth() == before

    def test_the_least_calls_are_never_more_than_were_made(self) -> None:
        """``least_calls`` is a floor: a run from its start, in full or from its clocks, made at least as many."""
        with self.trial() as trial:
            feed, wire = trial.feed(), trial.harness.wire
            for kind in _PLAIN:
                for _ in range(trial.harness.page + 5 if kind in trial.kinds else 0):
                    trial.add(kind)
            for is_backfill in (True, False):
                drafts = {kind: [trial.draft(None, kind) for _ in range(3)] for kind in trial.kinds}
                trial.leave_alone()
                trial.harness.reconnect()
                before, feed.pulled, feed.parents = wire.calls, Counter(), Counter()
                trial.connector.capabilities()
                feed.pull()
                written: dict[tuple[str, Verb], int] = {}
                groups: dict[tuple[str, Verb], int] = {}
                for kind, writes in drafts.items():
                    trial.write(*writes)
                    written[kind, "create"] = len(writes)
                    groups[kind, "create"] = len({write.refs.get("deal", "") for write in writes})
                tally = Tally(is_backfill, feed.pulled, feed.parents, written, groups)
                assert 0 < trial.connector.least_calls(tally) <= wire.calls - before, tally
