"""The HubSpot connector: pulls, reads and writes in canonical values.

Deltas come from search by keyset on the modified time, everything else from the store that
tells the truth: listings, batch reads, associations. Creates are upserts on our own unique
property, updates send only what they are given, and nothing is deleted but archived.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Final

from connectors.hubspot.associations import ASSOCIATION_WRITE, Relations, is_about
from connectors.hubspot.client import (
    ASSOCIATION_READ,
    BATCH,
    MERGED,
    SEARCH_BODY,
    SEARCH_PAGE,
    URL_PROPERTIES,
    Client,
    RefusedError,
    Row,
    codes_of,
    dig,
    existing_id,
    rows_of,
)
from connectors.hubspot.fields import CURSOR, TYPES, UNIQUE, Sheet, formerly, modified_at
from connectors.hubspot.schema import Schema
from syncd.connector import (
    Account,
    Capabilities,
    ConnectionSettings,
    FieldCapability,
    Finding,
    KindCapability,
    Outcome,
    Page,
    Parent,
    Pull,
    Quota,
    Tally,
    Verdict,
    Wire,
    Write,
)
from syncd.core import mapping
from syncd.core.mapping import Refusal, UnfitValueError
from syncd.core.model import FIELDS, RELATIONS, Address, FieldType, Record, Verb
from syncd.errors import ContractError, DelayedError, MissingError, RejectedError, TransientError

#: Search lags by seconds to minutes, and rows have been seen an hour out of order (6.2).
OVERLAP_SECONDS: Final = 300
DEEP_OVERLAP_SECONDS: Final = 7200
_EPOCH: Final = "1970-01-01T00:00:00.000Z"
_FIXED_CALLS: Final = 7
#: Codes of a conflict with a record that is there already, as against one with a change made just now.
_HELD: Final = frozenset({"OBJECT_ALREADY_EXISTS", "CONTACT_EXISTS"})


def connect(settings: ConnectionSettings, wire: Wire, now: Callable[[], datetime]) -> HubSpotConnector:
    """Build the connector. Raises ConfigError for auth keys or a base URL that cannot be right."""
    return HubSpotConnector(settings, Client(settings, wire, now))


class HubSpotConnector:
    """One tenant's HubSpot account."""

    def __init__(self, settings: ConnectionSettings, client: Client):
        self._client = client
        self._schema = Schema(client, settings)
        self._relations = Relations(client, self._schema)
        #: Kinds whose properties were looked at again since the last pull began.
        self._looked_again: set[str] = set()

    def account(self) -> Account:
        return self._schema.account()

    def check(self) -> Sequence[Finding]:
        return self._schema.check()

    def fix(self, findings: Sequence[Finding]) -> Sequence[Finding]:
        return self._schema.fix(findings)

    def close(self) -> None:
        self._client.close()

    # --- what there is ----------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        self.account()
        usual = 110 if self._client.is_oauth else 100
        kinds = {kind: self._object_capability(kind) for kind in TYPES}
        kinds |= {"employment": self._employment_capability(), "deal_contact": self._prospect_capability()}
        return Capabilities(
            kinds=kinds,
            pull_groups=(("company",), ("contact", "employment"), ("deal",), ("deal_contact",)),
            quotas=(
                Quota("default", self._client.calls_per_ten_seconds or usual, 10),
                Quota("search", 5, 1),
                Quota("associations", 100, 10),
            ),
            overlap_seconds=OVERLAP_SECONDS,
            deep_overlap_seconds=DEEP_OVERLAP_SECONDS,
        )

    def _object_capability(self, kind: str) -> KindCapability:
        return KindCapability(
            fields=self._schema.sheet(kind).capabilities(),
            batch=dict.fromkeys(_VERBS, BATCH),
            read_batch=BATCH,
            # Not exact: the answer to a write tells a time, but not what people changed before it.
            can_mark=UNIQUE[kind] in self._schema.properties(kind),
            restored_by_hand="restore it in HubSpot within 90 days (Actions, Restore records)",
        )

    def _employment_capability(self) -> KindCapability:
        fields = {"is_primary": FieldCapability(FieldType.BOOLEAN)}
        title = self._schema.job_title()
        if title is not None:
            fields["job_title"] = FieldCapability(FieldType.TEXT, title.is_writable, title.is_writable)
        capability = self._relation_capability(fields, (frozenset({"contact", "company"}),))
        return replace(capability, rides_on="contact")

    def _prospect_capability(self) -> KindCapability:
        types = FIELDS["deal_contact"]
        names = ["classification"] if self._schema.labels("contacts").shows_classification else []
        names += ["accepted_at", "deadline_at"] if self._schema.has_teaser_lines() else []
        ref_sets = [frozenset({"deal", "contact"})]
        if self._schema.labels("companies").shows_prospects:
            ref_sets.append(frozenset({"deal", "company"}))
        # An association holds no dates: they are shown by labels and in a line of the deal, and not read back.
        fields = {name: FieldCapability(types[name], is_readable=name == "classification") for name in names}
        return self._relation_capability(fields, tuple(ref_sets))

    @staticmethod
    def _relation_capability(
        fields: Mapping[str, FieldCapability], ref_sets: tuple[frozenset[str], ...]
    ) -> KindCapability:
        return KindCapability(
            fields=fields,
            batch=dict.fromkeys(_VERBS, ASSOCIATION_WRITE),
            read_batch=ASSOCIATION_READ,
            ref_sets=ref_sets,
            is_child=True,
            is_swept=True,
            can_mark=False,
        )

    # --- pull -------------------------------------------------------------------------

    def pull(self, request: Pull) -> Iterator[Page]:
        self._looked_again.clear()
        try:
            yield from self._pull(request)
        except RefusedError:
            # Perhaps for a property that is no more, which is said more plainly so.
            for kind in TYPES.keys() & set(request.kinds):
                self._schema.confirm(kind, self._schema.sheet(kind).names())
            raise

    def _pull(self, request: Pull) -> Iterator[Page]:
        for kind in request.kinds:
            if kind == "contact" and "employment" in request.kinds:
                yield from self._contacts_and_employments(request)
            elif kind in TYPES:
                for page, _ in self._records(kind, request):
                    yield page
            elif kind == "employment" and "contact" in request.kinds:
                continue
            else:
                yield from self._children(kind, request.parents())

    def _records(self, kind: str, request: Pull) -> Iterator[tuple[Page, list[Row]]]:
        """Pages of one kind of record, each with the rows it was read from."""
        watermark = request.watermarks.get(kind)
        if watermark is None:
            yield from self._listing(kind)
        else:
            yield from self._delta(kind, watermark, request)
            if request.is_sweep:
                yield from self._archived(kind)

    def _listing(self, kind: str) -> Iterator[tuple[Page, list[Row]]]:
        """Everything there is, from the primary store.

        The last page's clock is where a delta may start: a place before the listing began, so
        that what changes behind its back is found. It is the newest row that search knows, or
        for a listing of one page, the newest of that page.
        """
        clock: str | None = None
        for number, (rows, is_last) in enumerate(self._rows(kind)):
            if number == 0:
                clock = _newest(kind, rows)
                if not is_last:
                    clock = self._position(kind) or clock
                clock = clock or _EPOCH
            page = self._page(kind, rows, clock=clock if is_last else None, is_listing=True, is_last=is_last)
            yield page, rows

    def _rows(self, kind: str) -> Iterator[tuple[list[Row], bool]]:
        names = self._schema.sheet(kind).names()
        fits = len(",".join(names)) <= URL_PROPERTIES
        for rows, is_last in self._client.listing(TYPES[kind], names if fits else [MERGED]):
            yield (rows if fits else self._whole(kind, rows)), is_last

    def _position(self, kind: str) -> str | None:
        """The modified time of the newest row in the search index."""
        sort = {"propertyName": CURSOR[kind], "direction": "DESCENDING"}
        filters = [_filter(CURSOR[kind], "GTE", 0)]
        body = {
            "filterGroups": [{"filters": filters}],
            "sorts": [sort],
            "properties": [CURSOR[kind]],
            "limit": 1,
        }
        return _newest(kind, self._client.search(TYPES[kind], body)[0])

    def _delta(self, kind: str, watermark: str, request: Pull) -> Iterator[tuple[Page, list[Row]]]:
        since = mapping.instant(watermark, "watermark")
        if since is None:
            raise ContractError(f"the watermark of {kind} is no instant")
        overlap = DEEP_OVERLAP_SECONDS if request.is_deep else OVERLAP_SECONDS
        for rows in self._changed(kind, max(0, _ms(since) - overlap * 1000)):
            whole = rows if _fits(self._schema.sheet(kind).names()) else self._whole(kind, rows)
            yield self._page(kind, whole, clock=_newest(kind, rows)), whole

    def _changed(self, kind: str, lo: int) -> Iterator[list[Row]]:
        """Rows modified since ``lo``, oldest first, none skipped and none capped.

        Every page starts anew from the last time seen. Paging by ``after`` would lose a row
        each time that an earlier one is modified meanwhile (6.3).
        """
        seen: set[str] = set()
        while True:
            rows, has_more = self._search(kind, [_filter(CURSOR[kind], "GTE", lo)], CURSOR[kind])
            new = [row for row in rows if not (_at(kind, row) == lo and str(row.get("id")) in seen)]
            if new:
                yield new
            if not rows or (len(rows) < SEARCH_PAGE and not has_more):
                return
            last = _at(kind, rows[-1])
            if last > lo:
                lo, seen = last, {str(row.get("id")) for row in rows if _at(kind, row) == last}
                continue
            # More rows than a page share one millisecond: their ids tell them apart.
            seen |= {str(row.get("id")) for row in rows}
            yield from self._same_instant(kind, lo, seen)
            lo, seen = lo + 1, set()

    def _same_instant(self, kind: str, at: int, seen: set[str]) -> Iterator[list[Row]]:
        last_id = 0
        while True:
            filters = [_filter(CURSOR[kind], "EQ", at), _filter("hs_object_id", "GT", last_id)]
            rows, has_more = self._search(kind, filters, "hs_object_id")
            new = [row for row in rows if str(row.get("id")) not in seen]
            if new:
                yield new
            highest = max((int(str(row.get("id"))) for row in rows if str(row.get("id")).isdigit()), default=last_id)
            if highest <= last_id or (len(rows) < SEARCH_PAGE and not has_more):
                return
            last_id = highest

    def _search(self, kind: str, filters: list[Row], order: str) -> tuple[list[Row], bool]:
        names = self._schema.sheet(kind).names()
        body = _search_body(filters, order, names if _fits(names) else [CURSOR[kind]])
        return self._client.search(TYPES[kind], body)

    def _whole(self, kind: str, rows: list[Row]) -> list[Row]:
        """The same rows with all properties; those with a hostile id stay as they are, to be refused."""
        ids = [str(row.get("id")) for row in rows if _is_safe(row.get("id"))]
        unfit = [row for row in rows if not _is_safe(row.get("id"))]
        return [*self._client.read(TYPES[kind], ids, self._schema.sheet(kind).names()), *unfit]

    def _archived(self, kind: str) -> Iterator[tuple[Page, list[Row]]]:
        """Tombstones of all that is in the bin, and of what was merged into it: archiving leaves search."""
        for rows, _ in self._client.listing(TYPES[kind], [MERGED], is_archived=True):
            records: list[Record] = []
            refused: list[Refusal] = []
            for row in rows:
                try:
                    id_ = mapping.identifier(row.get("id"), "id")
                    at = mapping.instant(row.get("archivedAt"), "archivedAt")
                except UnfitValueError as exc:
                    refused.append(Refusal(kind, _shown(row), str(exc)))
                    continue
                if id_ is not None:
                    merged = formerly(dig(row, "properties", MERGED), id_)
                    records += [Record(kind, each, {}, modified_at=at, is_deleted=True) for each in (id_, *merged)]
            if records or refused:
                yield Page(kind, tuple(records), tuple(refused)), rows

    def _page(
        self, kind: str, rows: Iterable[Row], *, clock: str | None, is_listing: bool = False, is_last: bool = False
    ) -> Page:
        records: list[Record] = []
        refused: list[Refusal] = []
        rows = list(rows)
        self._confirm(kind, rows)
        for row in rows:
            try:
                records.append(self._schema.sheet(kind).record(row))
            except UnfitValueError as exc:
                refused.append(Refusal(kind, _shown(row), str(exc)))
        return Page(kind, tuple(records), tuple(refused), clock=clock, is_listing=is_listing, is_last=is_last)

    def _confirm(self, kind: str, rows: Iterable[Row]) -> None:
        """A property that a row leaves out may be gone from the account, which must not read as emptied."""
        if kind in self._looked_again:
            return
        asked = set(self._schema.sheet(kind).names())
        shown = [held for row in rows if isinstance(held := row.get("properties"), Mapping)]
        absent = {name for held in shown for name in asked - held.keys()}
        if absent:
            self._schema.confirm(kind, absent)
            self._looked_again.add(kind)

    # --- children ---------------------------------------------------------------------

    def _contacts_and_employments(self, request: Pull) -> Iterator[Page]:
        """Contacts, and for those that moved their companies, with the job title just read.

        Rows that only the overlap brings back were visited before; they are visited again when
        the overlap is deep. Other contacts, which have no job title to tell here, are visited if
        they are asked for: all in a sweep, or when employments are to be read from the beginning,
        else those of which a webhook spoke. The clock of employments is that of their contacts: it
        tells no more than that they have been read.
        """
        watermark = request.watermarks.get("contact")
        since = mapping.instant(watermark, "watermark") if watermark is not None else None
        is_all = since is None or request.is_deep or request.is_sweep
        clock = watermark or _EPOCH
        titles: dict[str, str | None] = {}
        visited: set[str] = set()
        for page, rows in self._records("contact", request):
            yield page
            clock = page.clock or clock
            held = {str(row.get("id")): row for row in rows}
            for record in page.records:
                if record.is_deleted:
                    continue
                place = modified_at("contact", held[record.id])
                if is_all or since is None or place is None or place[1] > since:
                    titles[record.id] = _text_or_none(dig(held[record.id], "properties", "jobtitle"))
            while len(titles) >= ASSOCIATION_READ:
                some = dict(list(titles.items())[:ASSOCIATION_READ])
                titles = dict(list(titles.items())[ASSOCIATION_READ:])
                visited.update(some if since is not None else ())
                yield from self._employments(some, (), clock)
        visited.update(titles)
        others = (each for each in request.parents() if each.id not in visited) if since is not None else ()
        yield from self._employments(titles, others, clock)

    def _employments(self, titles: Mapping[str, str | None], others: Iterable[Parent], clock: str) -> Iterator[Page]:
        """Employments of contacts just read, and of others of whom no job title is known."""
        known = titles if titles and self._schema.job_title() is not None else {}
        contacts = chain(map(Parent, titles), others)
        for page in self._children("employment", contacts, alive=titles, titles=known):
            yield replace(page, clock=clock)

    def _children(
        self,
        kind: str,
        parents: Iterable[Parent],
        *,
        alive: Collection[str] = (),
        titles: Mapping[str, str | None] | None = None,
    ) -> Iterator[Page]:
        waiting = iter(parents)
        while some := list(islice(waiting, ASSOCIATION_READ)):
            ids, barren = [each.id for each in some], {each.id for each in some if not each.has_children}
            yield from self._relations.children(kind, ids, alive=alive, barren=barren, titles=titles)

    # --- read -------------------------------------------------------------------------

    def read(self, kind: str, addresses: Sequence[Address]) -> Mapping[str, Record]:
        if kind in RELATIONS:
            return self._relations.read(kind, addresses)
        sheet = self._schema.sheet(kind)
        ids = [each.id for each in addresses if _is_safe(each.id)]
        rows = self._client.follow(TYPES[kind], ids, sheet.names()) if ids else {}
        self._confirm(kind, [row for row in rows.values() if row.get("archived") is not True])
        found: dict[str, Record] = {}
        for address in addresses:
            row = rows.get(address.id)
            if row is None or row.get("archived") is True:
                at = mapping.instant(row.get("archivedAt"), "archivedAt") if row is not None else None
                found[address.id] = Record(kind, address.id, {}, modified_at=at, is_deleted=True)
                continue
            try:
                record = sheet.record(row)
                is_known = address.id in (record.id, *record.formerly)
                found[address.id] = record if is_known else replace(record, formerly=(*record.formerly, address.id))
            except UnfitValueError:
                # It is there but cannot be read: neither a record nor a tombstone.
                continue
        return found

    # --- write ------------------------------------------------------------------------

    def write(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        if not writes:
            return []
        kind, verb = writes[0].kind, writes[0].verb
        if kind in RELATIONS:
            if verb == "mark":
                raise RejectedError(f"HubSpot's {kind} cannot carry a mark")
            return self._relations.write(writes)
        named = [each.counterpart if verb == "create" else (each.address and each.address.id) for each in writes]
        if None in named or len(set(named)) != len(named):
            # HubSpot refuses a batch that names one record twice (5.3).
            reason = f"a batch of {kind} names a record twice, or none"
            if len(writes) == 1:
                return [Outcome(writes[0].key, Verdict.REJECTED, reason=reason)]
            raise RejectedError(reason)
        if verb == "delete":
            return self._archive(kind, writes)
        return self._send(kind, verb, writes)

    def _archive(self, kind: str, writes: Sequence[Write]) -> list[Outcome]:
        ids = [{"id": each.address.id} for each in writes if each.address is not None]
        try:
            self._client.ask("archive", type=TYPES[kind], body={"inputs": ids})
        except DelayedError:
            return _delayed(writes)
        except (RefusedError, MissingError) as exc:
            return [self._alone(kind, writes, exc)]
        return [Outcome(each.key, Verdict.DONE) for each in writes]

    def _send(self, kind: str, verb: Verb, writes: Sequence[Write]) -> list[Outcome]:
        """Upsert or update a batch and settle each of its writes by what the answer says of it."""
        sheet = self._schema.sheet(kind)
        sent: dict[str, dict[str, str]] = {}
        notes: dict[str, tuple[str, ...]] = {}
        inputs: list[Row] = []
        for each in writes:
            properties, notes[each.key] = ({}, ()) if verb == "mark" else sheet.to_native(each)
            if verb != "update" or each.counterpart is not None:
                properties[UNIQUE[kind]] = each.counterpart or ""
            sent[each.key] = properties
            if properties:
                name = {"id": each.counterpart, "idProperty": UNIQUE[kind]} if verb == "create" else _id_of(each)
                inputs.append({**name, "properties": properties, "objectWriteTraceId": each.key})
        rows: dict[str, Row] = {}
        errors: list[Row] = []
        if inputs:
            try:
                answer = self._client.ask(
                    "upsert" if verb == "create" else "update", type=TYPES[kind], body={"inputs": inputs}
                )
            except DelayedError:
                return _delayed(writes)
            except (RefusedError, MissingError) as exc:
                return [self._alone(kind, writes, exc)]
            rows = _by_key(kind, writes, rows_of(answer.body))
            errors = rows_of(answer.body, "errors", is_required=False)
        missing = [each for each in writes if sent[each.key] and each.key not in rows]
        riddles = [each for each in missing if not _about(each, errors)]
        if len(riddles) > 1 and any(not any(_about(each, [error]) for each in writes) for error in errors):
            # Some of these are refused, but the answer does not say which: in halves it must.
            half = len(riddles) // 2
            rest = [each for each in writes if each not in riddles]
            told = [*self._send(kind, verb, riddles[:half]), *self._send(kind, verb, riddles[half:])]
            return [*told, *(self._told(kind, rest, rows, errors, sent, notes) if rest else ())]
        return self._told(kind, writes, rows, errors, sent, notes)

    def _told(
        self,
        kind: str,
        writes: Sequence[Write],
        rows: dict[str, Row],
        errors: Sequence[Row],
        sent: Mapping[str, Mapping[str, str]],
        notes: Mapping[str, tuple[str, ...]],
    ) -> list[Outcome]:
        """What an answer says of each of these writes."""
        outcomes = {each.key: self._settle(each, errors, writes, rows) for each in writes if each.key not in rows}
        for each in writes:
            if not sent[each.key]:
                # Nothing of this write can be held here; what stands there is its outcome.
                outcomes.pop(each.key, None)
                rows[each.key] = {"id": each.address.id if each.address else None, "properties": {}}
        done = [each for each in writes if each.key in rows and each.key not in outcomes]
        found = self._confirmed(kind, done, rows, sent, notes)
        for each in done:
            record = found.get(each.key)
            reason = "; ".join(notes[each.key])
            outcomes[each.key] = (
                Outcome(each.key, Verdict.DONE, record, reason)
                if record is not None
                else Outcome(each.key, Verdict.UNKNOWN, reason="written, but not read back")
            )
        named = {each.key: id_ for each in writes for row in errors if (id_ := _holder(row, each))}
        return [*self._existing(kind, writes, outcomes, named)]

    def _confirmed(
        self,
        kind: str,
        done: Sequence[Write],
        rows: Mapping[str, Row],
        sent: Mapping[str, Mapping[str, str]],
        notes: Mapping[str, tuple[str, ...]],
    ) -> dict[str, Record]:
        """The records as HubSpot returned them, or as read again where the answer left out what was written."""
        sheet = self._schema.sheet(kind)
        found: dict[str, Record] = {}
        again: dict[str, Write] = {}
        for each in done:
            row, shown = rows[each.key], dig(rows[each.key], "properties")
            held = shown if isinstance(shown, Mapping) else {}
            # The property that search goes by, too: nothing says that ``updatedAt`` is the same to the millisecond.
            wanted = {name for name, text in sent[each.key].items() if text and name != UNIQUE[kind]} | {CURSOR[kind]}
            try:
                record = sheet.record(row, sent[each.key]) if sent[each.key] and wanted <= held.keys() else None
            except UnfitValueError:
                record = None
            if record is not None and (notes[each.key] or not _tells_all(each, record, sheet)):
                record = None
            if record is not None:
                found[each.key] = record
            else:
                again[str(row.get("id"))] = each
        if again:
            try:
                for row in self._client.read(TYPES[kind], [id_ for id_ in again if _is_safe(id_)], sheet.names()):
                    write = again.get(str(row.get("id")))
                    if write is not None:
                        found[write.key] = sheet.record(row)
            except (TransientError, UnfitValueError, ContractError):
                # It is written; only what came of it is unknown.
                return found
        return found

    def _settle(self, write: Write, errors: Sequence[Row], writes: Sequence[Write], rows: Mapping[str, Row]) -> Outcome:
        """What a missing result means: refused if an error names it, otherwise unknown."""
        about = _about(write, errors)
        if not about and sum(each.key not in rows for each in writes) == 1:
            about = list(errors)
        codes = tuple(dict.fromkeys(code for each in about for code in codes_of(each)))
        if not about:
            return Outcome(write.key, Verdict.UNKNOWN, reason="the answer does not name this record")
        return Outcome(write.key, _verdict(write, codes), reason=" ".join(codes) or "refused")

    def _alone(self, kind: str, writes: Sequence[Write], exc: RefusedError | MissingError) -> Outcome:
        """The outcome of a refused batch of one. A larger one is raised, for the engine to bisect."""
        if len(writes) > 1:
            raise exc if isinstance(exc, RefusedError) else RejectedError(str(exc)) from None
        write = writes[0]
        if isinstance(exc, MissingError):
            verdict = Verdict.REJECTED if write.verb == "create" else Verdict.MISSING
            return Outcome(write.key, verdict, reason="OBJECT_NOT_FOUND")
        outcome = Outcome(write.key, _verdict(write, exc.codes, exc.status, exc.existing), reason=exc.reason)
        named = {write.key: exc.existing} if exc.existing else {}
        return next(self._existing(kind, [write], {write.key: outcome}, named))

    def _existing(
        self,
        kind: str,
        writes: Sequence[Write],
        outcomes: Mapping[str, Outcome],
        named: Mapping[str, str],
    ) -> Iterator[Outcome]:
        """Give each EXISTS its record: contacts are unique by e-mail, additional ones included.

        The id that the refusal's prose names is the way back where the e-mail leads nowhere.
        """
        sought = {
            each.key: email
            for each in writes
            if outcomes[each.key].verdict is Verdict.EXISTS and isinstance(email := each.values.get("email"), str)
        }
        sheet = self._schema.sheet(kind)
        found: dict[str, Record] = {}
        if sought:
            rows = self._client.read(TYPES[kind], sought.values(), sheet.names(), id_property="email")
            for row in rows:
                addresses = _emails(row)
                for key, email in sought.items():
                    if email.lower() in addresses or (len(sought) == 1 and len(rows) == 1):
                        self._keep(sheet, row, key, found)
        lost = {named[key]: key for key in sought if key not in found and key in named}
        if lost:
            for row in self._client.read(TYPES[kind], lost, sheet.names()):
                if str(row.get("id")) in lost:
                    self._keep(sheet, row, lost[str(row.get("id"))], found)
        for each in writes:
            outcome = outcomes[each.key]
            if outcome.verdict is not Verdict.EXISTS:
                yield outcome
            elif each.key in found:
                yield Outcome(each.key, Verdict.EXISTS, found[each.key], outcome.reason)
            elif each.key in named or _HELD.intersection(outcome.reason.split()):
                # The holder is in the bin, or nobody we may read: waiting does not bring it out.
                yield Outcome(each.key, Verdict.REJECTED, reason=f"{outcome.reason}: held by a record not to be read")
            else:
                # A conflict without a record behind it is a change made at the same moment (4.4).
                yield Outcome(each.key, Verdict.RETRY, reason=outcome.reason)

    @staticmethod
    def _keep(sheet: Sheet, row: Row, key: str, found: dict[str, Record]) -> None:
        """Add a row's record under a key; one that cannot be read stays out."""
        try:
            found[key] = sheet.record(row)
        except UnfitValueError:
            return

    def find(self, writes: Sequence[Write]) -> Mapping[str, Record]:
        if not writes:
            return {}
        kind = writes[0].kind
        if kind in RELATIONS:
            return self._relations.find(writes)
        sheet = self._schema.sheet(kind)
        keys = {each.counterpart: each.key for each in writes if each.counterpart}
        rows = self._client.read(TYPES[kind], keys, sheet.names(), id_property=UNIQUE[kind])
        found: dict[str, Record] = {}
        for row in rows:
            mark = dig(row, "properties", UNIQUE[kind])
            if isinstance(mark, str) and mark in keys and row.get("archived") is not True:
                self._keep(sheet, row, keys[mark], found)
        return found

    # --- arithmetic -------------------------------------------------------------------

    def least_calls(self, tally: Tally) -> int:
        """The contract's section 11: pages of 100, searches of 200, associations of 1,000 and 2,000.

        A sweep, which is known by its visits to deals, lists what is archived too, once per kind.
        """
        calls = _FIXED_CALLS if tally.is_backfill else 0
        if tally.parents and not tally.is_backfill:
            calls += sum(1 for kind in TYPES if kind in tally.pulled)
        for kind, count in tally.pulled.items():
            if kind in TYPES:
                calls += max(1, _pages(count, BATCH if tally.is_backfill else SEARCH_PAGE))
        for kind, count in tally.parents.items():
            calls += len(self._relations.pairs(kind)) * _pages(count, ASSOCIATION_READ)
        for (kind, _), count in tally.written.items():
            calls += _pages(count, ASSOCIATION_WRITE if kind in RELATIONS else BATCH)
        return calls


_VERBS: Final[tuple[Verb, ...]] = ("create", "update", "delete", "mark")


def _pages(count: int, size: int) -> int:
    return -(-count // size)


def _filter(name: str, operator: str, value: int) -> Row:
    return {"propertyName": name, "operator": operator, "value": str(value)}


def _search_body(filters: list[Row], order: str, names: Sequence[str]) -> Row:
    return {
        "filterGroups": [{"filters": filters}],
        "sorts": [{"propertyName": order, "direction": "ASCENDING"}],
        "properties": names,
        "limit": SEARCH_PAGE,
    }


def _fits(names: Sequence[str]) -> bool:
    """Whether our longest search stays below HubSpot's 3,000 characters (6.1), as the SDK prints it."""
    filters = [_filter("hs_lastmodifieddate", "EQ", 10**13), _filter("hs_object_id", "GT", 10**19)]
    return len(json.dumps(_search_body(filters, "hs_object_id", names))) < SEARCH_BODY


def _ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _at(kind: str, row: Row) -> int:
    found = modified_at(kind, row)
    if found is None:
        raise ContractError(f"HubSpot's search shows a {kind} without {CURSOR[kind]}")
    return _ms(found[1])


def _newest(kind: str, rows: Iterable[Row]) -> str | None:
    """The latest modified time among rows, in the vendor's own writing."""
    found = [place for row in rows if (place := modified_at(kind, row)) is not None]
    return max(found, key=lambda place: place[1])[0] if found else None


def _is_safe(raw: object) -> bool:
    try:
        return mapping.identifier(raw, "id") is not None
    except UnfitValueError:
        return False


def _shown(row: Row) -> str:
    """An id fit for a log, whatever it was."""
    raw = str(row.get("id"))
    return raw if _is_safe(raw) else "".join(each if each.isalnum() else "?" for each in raw[:40])


def _text_or_none(raw: object) -> str | None:
    try:
        return mapping.text(raw, "jobtitle")
    except UnfitValueError:
        return None


def _id_of(write: Write) -> dict[str, object]:
    return {"id": write.address.id if write.address else None}


def _by_key(kind: str, writes: Sequence[Write], rows: Sequence[Row]) -> dict[str, Row]:
    """Results by write, in whatever order they came: by trace id, unique property or record id."""
    keys = {each.key for each in writes}
    marks = {each.counterpart: each.key for each in writes if each.verb == "create"}
    ids = {each.address.id: each.key for each in writes if each.address is not None}
    found: dict[str, Row] = {}
    for row in rows:
        trace, mark = row.get("objectWriteTraceId"), dig(row, "properties", UNIQUE[kind])
        key = trace if isinstance(trace, str) and trace in keys else None
        key = key or ids.get(str(row.get("id"))) or (marks.get(mark) if isinstance(mark, str) else None)
        if key is None and len(writes) == len(rows) == 1:
            key = writes[0].key
        if key is not None:
            found[key] = row
    return found


def _tells_all(write: Write, record: Record, sheet: Sheet) -> bool:
    """Whether a record shows every field that was written; what a create left empty was not."""
    can = sheet.capabilities()
    written = [name for name, value in write.values.items() if value is not None or write.verb != "create"]
    return record.modified_at is not None and all(
        name in record.values for name in written if name in can and can[name].is_writable
    )


def _delayed(writes: Sequence[Write]) -> list[Outcome]:
    return [Outcome(each.key, Verdict.DELAYED) for each in writes]


def _about(write: Write, errors: Sequence[Row]) -> list[Row]:
    """The errors of a batch that name this write."""
    id_ = write.counterpart if write.verb == "create" else write.address.id if write.address else ""
    return [each for each in errors if is_about(each, str(id_), write.key)]


def _holder(error: Row, write: Write) -> str | None:
    """The id of the record that a refused create came across, if the error names both."""
    return existing_id(error) if is_about(error, str(write.counterpart), write.key) else None


def _verdict(write: Write, codes: Sequence[str], status: int = 0, existing: str | None = None) -> Verdict:
    """What a refusal means for one write. A conflict that names no record is a change made at the same moment."""
    if "CONFLICTING_UNIQUE_VALUE" in codes:
        return Verdict.REJECTED
    if write.verb == "create" and (status == 409 or "CONFLICT" in codes or _HELD.intersection(codes)):
        return Verdict.EXISTS
    if status == 409 and existing is None:
        return Verdict.RETRY
    if "OBJECT_NOT_FOUND" in codes and write.verb != "create":
        return Verdict.MISSING
    return Verdict.REJECTED


def _emails(row: Row) -> set[str]:
    held = dig(row, "properties", "email"), dig(row, "properties", "hs_additional_emails")
    return {part.strip().lower() for each in held if isinstance(each, str) for part in each.split(";")}
