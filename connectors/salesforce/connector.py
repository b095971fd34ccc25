"""Salesforce as a connector: what to ask, in which batches, and what an answer means.

All kinds come from one delta: one statement per object over SystemModstamp, sent together in
one composite call, recycle bin included, so that deletions and merges are in the stream.
Creates are upserts on our unique external id and so may be repeated; every write is followed by
a read of what is stored, since Salesforce answers writes without content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from math import ceil
from typing import Final, TypeAlias

from connectors.salesforce.client import (
    BACKFILL_SHARE,
    DELAYED,
    POLLING_SHARE,
    Client,
    Query,
    RefusedError,
    Result,
    Row,
    Rows,
    Trouble,
    normal_id,
)
from connectors.salesforce.fields import (
    BATCH,
    MARKS,
    SOBJECTS,
    NativeField,
    Org,
    Table,
    described,
    missing_customs,
    new_field,
    stages_from,
    stages_of,
    table,
    tombstone,
)
from syncd.connector import (
    Account,
    Capabilities,
    ConnectionSettings,
    Finding,
    KindChoice,
    Outcome,
    Page,
    Pull,
    Quota,
    Tally,
    Verdict,
    Wire,
    Write,
)
from syncd.core.mapping import Refusal, UnfitValueError, instant, text
from syncd.core.model import KINDS, Address, Json, Money, Record, Value
from syncd.errors import AuthError, ConfigError, ContractError, MissingError, RejectedError, TransientError

#: The version whose documents the contract was read from.
API_VERSION: Final = "67.0"
#: A call may run ten minutes before it commits rows stamped at its beginning (contract, 5).
OVERLAP_SECONDS: Final = 900
DEEP_OVERLAP_SECONDS: Final = 7200
_PAGE: Final = 2000
#: Far below the 16,384 bytes at which a GET is refused, headers included.
_LONGEST_LIST: Final = 5_400
_MERGE_HOPS: Final = 5

_AUTH: Final = (frozenset({"client_id", "client_secret"}), frozenset({"client_id", "username", "private_key"}))
_OPTIONS: Final = frozenset({"api_version", "currency", "permission_set"})
_STAGES: Final = Query(
    "SELECT MasterLabel, ApiName, IsActive, IsClosed, IsWon, SortOrder FROM OpportunityStage ORDER BY SortOrder",
    is_all=False,
)
_ORGANIZATION: Final = Query("SELECT Id, Name, DefaultCurrencyIsoCode FROM Organization", is_all=False)

_GONE: Final = ("ENTITY_IS_DELETED", "NOT_FOUND")
_TAKEN: Final = ("DUPLICATE_VALUE", "INVALID_FIELD_FOR_INSERT_UPDATE")
_Newest: TypeAlias = tuple[datetime, str] | None
_OUTDATED: Final = ("INVALID_FIELD", "INVALID_FIELD_FOR_INSERT_UPDATE", "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST")
_PASSING: Final = ("UNABLE_TO_LOCK_ROW", "ALL_OR_NONE_OPERATION_ROLLED_BACK")


def connect(settings: ConnectionSettings, wire: Wire, now: Callable[[], datetime]) -> SalesforceConnector:
    """Build the connector; opens no connection yet. Raises ConfigError for settings that cannot work."""
    keys = frozenset(settings.auth)
    if keys not in _AUTH:
        unknown = sorted(keys - _AUTH[0] - _AUTH[1])
        said = f"unknown key {unknown[0]!r}" if unknown else f"found {', '.join(sorted(keys)) or 'nothing'}"
        raise ConfigError(f"auth: {said}; give client_id and client_secret, or client_id, username and private_key")
    for name in sorted(set(settings.options) - _OPTIONS):
        near = get_close_matches(name, sorted(_OPTIONS), n=1) or sorted(_OPTIONS)
        raise ConfigError(f"options: unknown key {name!r}; did you mean {near[0]}?")
    version = settings.options.get("api_version", API_VERSION)
    if not re.fullmatch(r"[6-9]\d\.0|1\d\d\.0", version):
        raise ConfigError(f"options.api_version: {version[:20]!r} is not a version from 60.0 on, such as {API_VERSION}")
    currency = settings.options.get("currency")
    if currency is not None and not re.fullmatch(r"[A-Z]{3}", currency):
        raise ConfigError("options.currency: give an ISO code such as SEK")
    login_url = settings.login_url or settings.base_url
    if not login_url:
        raise ConfigError("login_url is missing: give the My Domain host, https://NAME.my.salesforce.com")
    if "client_secret" in keys and re.match(r"https://(login|test)\.salesforce\.com", login_url):
        raise ConfigError("login_url: client credentials are only taken by the My Domain host (NAME.my.salesforce.com)")
    client = Client(
        login_url=login_url, base_url=settings.base_url, auth=settings.auth, version=version, wire=wire, now=now
    )
    return SalesforceConnector(settings, client, now)


@dataclass(frozen=True, slots=True)
class _Read:
    """One object's part of a pull: its kinds, since when, and which kinds are listed in full."""

    sobject: str
    tables: tuple[Table, ...]
    since: datetime | None
    mark: datetime | None
    listed: frozenset[str]
    is_all: bool

    def query(self, since: datetime | None) -> Query:
        columns = dict.fromkeys(name for each in self.tables for name in each.select)
        where = f" WHERE SystemModstamp >= {_literal(since)}" if since is not None else ""
        select = f"SELECT {', '.join(columns)} FROM {self.sobject}"  # noqa: S608 (names are checked ones)
        return Query(f"{select}{where} ORDER BY SystemModstamp, Id", is_all=self.is_all)


@dataclass(slots=True)
class _Reading:
    """How far one object's part of a pull has come.

    ``anywhere`` is the newest stamp among all objects' first pages, ``at`` the server's clock when
    the reading began. All were asked at one time, so the end of each reading is as far as that
    stamp, however old its own rows are; else a quiet object would be read again from its last
    change for ever.
    """

    read: _Read
    anywhere: _Newest
    at: datetime | None
    since: datetime | None
    newest: _Newest = None

    def pages(self, rows: Rows) -> Iterator[Page]:
        """One page of rows as a page of each of the object's kinds."""
        read, is_end = self.read, rows.next_url is None
        self.newest = newest = _newest(rows.rows, self.newest)
        if is_end and self.anywhere is not None and (newest is None or newest[0] < self.anywhere[0]):
            newest = self.anywhere
        is_further = newest is not None and read.mark is not None and newest[0] > read.mark
        clock = _clock(newest, self.at)
        for each in read.tables:
            is_listing = each.kind in read.listed
            is_last = is_listing and is_end
            page = _page(each, rows.rows, is_listing=is_listing)
            if page.records or page.refused or is_last or (is_end and is_further):
                yield replace(page, clock=clock, is_listing=is_listing, is_last=is_last)


class SalesforceConnector:
    """One org, by the contract of ``syncd.connector.Connector``."""

    def __init__(self, settings: ConnectionSettings, client: Client, now: Callable[[], datetime]) -> None:
        self._settings = settings
        self._client = client
        self._now = now
        self._known: Mapping[str, Table] | None = None
        self._is_checked = False
        self._org_name = ""

    def close(self) -> None:
        self._client.close()

    # --- the org ----------------------------------------------------------------------

    def account(self) -> Account:
        org_id = self._client.org_id()
        tables = self._tables()
        currency = next((each.org.currency for each in tables.values()), None)
        return Account(id=org_id, name=self._org_name, currency=currency)

    def capabilities(self) -> Capabilities:
        tables = self._tables()
        return Capabilities(
            kinds={kind: tables[kind].capability() for kind in KINDS if kind in tables},
            pull_groups=(tuple(kind for kind in KINDS if kind in tables),),
            # No limit per second is documented; the daily one is kept by what the answers say.
            quotas=(Quota("default", 50, 1.0),),
            overlap_seconds=OVERLAP_SECONDS,
            deep_overlap_seconds=DEEP_OVERLAP_SECONDS,
            canonical_id=_spelt_out,
        )

    def _tables(self) -> Mapping[str, Table]:
        """Each kind as this org carries it. Raises ConfigError for settings that the org contradicts."""
        if self._known is None:
            sobjects = sorted(set(SOBJECTS.values()))
            wanted: dict[str, str | Query] = {each: each for each in sobjects}
            wanted |= {"Stages": _STAGES, "Organization": _ORGANIZATION}
            answers = self._client.look_up(wanted)
            fields = {each: described(answers[each]) for each in sobjects}
            org = self._org(fields["Opportunity"], answers)
            self._is_checked = False
            known = {
                kind: table(kind, fields[SOBJECTS[kind]], org, self._choice(kind))
                for kind in KINDS
                if fields[SOBJECTS[kind]]
            }
            if "contact" in known and (title := known["employment"].columns.get("job_title")) is not None:
                known["contact"] = replace(known["contact"], title=title.native.name)
            self._known = known
        return self._known

    def _org(self, opportunity: Mapping[str, NativeField], answers: Mapping[str, object]) -> Org:
        currency = self._settings.options.get("currency")
        for row in _records(answers["Organization"]):
            self._org_name = text(row.get("Name"), "Name", limit=255) or ""
            if currency is None and "currencyisocode" not in opportunity:
                currency = text(row.get("DefaultCurrencyIsoCode"), "DefaultCurrencyIsoCode", limit=3)
        return Org(currency, stages_of(_records(answers["Stages"])) or stages_from(opportunity.get("stagename")))

    def _choice(self, kind: str) -> KindChoice:
        return self._settings.kinds.get(kind, KindChoice())

    def _table(self, kind: str) -> Table:
        found = self._tables().get(kind)
        if found is None:
            raise AuthError(f"the integration user sees no {SOBJECTS[kind]}; give it read access")
        return found

    def _look_again(self) -> None:
        """A field was taken or hidden from us since the describe. Raises ConfigError if one that we carry is gone.

        Left out in silence, it would look as if everybody had emptied it.
        """
        before = self._tables()
        self._known = None
        now = self._tables()
        lost = sorted(
            f"{kind}.{name} ({column.native.name})"
            for kind, each in before.items()
            for name, column in each.columns.items()
            if kind not in now or name not in now[kind].columns
        )
        if lost:
            raise ConfigError(
                f"Salesforce no longer shows {', '.join(lost)}. Give the integration user access to it again, "
                "or set it to off below kinds.KIND.fields"
            )

    # --- set-up -----------------------------------------------------------------------

    def check(self) -> Sequence[Finding]:
        if self._is_checked:
            # What was looked up a moment ago, to tell who we are, need not be asked for twice.
            self._known = None
        found: list[Finding] = []
        tables = self._tables()
        self._is_checked = True
        for kind in KINDS:
            if self._choice(kind).pipeline:
                raise ConfigError(f"{kind}.pipeline: Salesforce has none; use when: {{RecordTypeId: ...}}")
            if kind not in tables:
                sobject = SOBJECTS[kind]
                found.append(Finding("no_access", sobject, f"give the integration user read access to {sobject}"))
            else:
                found += _findings(tables[kind])
        return found

    def fix(self, findings: Sequence[Finding]) -> Sequence[Finding]:
        wanted = {each.thing for each in findings if each.is_fixable}
        permission_set = self._settings.options.get("permission_set")
        for kind, each in self._tables().items():
            names = [None, *(name for name, _ in missing_customs(each))] if kind in MARKS else []
            for name in names:
                field = new_field(kind, name)
                if field["FullName"] in wanted and not self._create(field, permission_set):
                    wanted.clear()
        self._known = None
        left = {each.thing: each for each in self.check()}
        return [
            replace(left[each.thing], fix=_by_hand(left[each.thing]), is_fixable=False)
            for each in findings
            if each.thing in left
        ]

    def _create(self, field: Mapping[str, Json], permission_set: str | None) -> bool:
        """Create one field, and show it to the permission set: nobody sees a new field otherwise.

        False if the user may not do that at all, so that more of it is of no use.
        """
        full_name = str(field["FullName"])
        try:
            self._client.insert("tooling/sobjects/CustomField", field)
            if permission_set:
                grant: dict[str, Json] = {
                    "ParentId": normal_id(permission_set, "permission_set"),
                    "SobjectType": full_name.partition(".")[0],
                    "Field": full_name,
                    "PermissionsRead": True,
                    "PermissionsEdit": True,
                }
                self._client.insert("sobjects/FieldPermissions", grant)
        except UnfitValueError as exc:
            raise ConfigError("options.permission_set is not a Salesforce id") from exc
        except AuthError:
            # Needs Customize Application; without it the findings stay, with what an admin must do.
            return False
        except RejectedError:
            return True
        return True

    # --- reading ----------------------------------------------------------------------

    def pull(self, request: Pull) -> Iterator[Page]:
        # What a backfill reads it writes afterwards: both leave more of the allowance to people.
        self._client.share = BACKFILL_SHARE if request.is_backfill else POLLING_SHARE
        reads, first = self._first_pages(request)
        at = next((rows.at for rows in first.values()), None)
        newest: _Newest = None
        for rows in first.values():
            newest = _newest(rows.rows, newest)
        readings = {read.sobject: _Reading(read, newest, at, read.since) for read in reads}
        shown: Mapping[str, Rows] = first
        while shown:
            for sobject, each in readings.items():
                if sobject in shown:
                    yield from each.pages(shown[sobject])
            open_ = {name: readings[name] for name in shown if shown[name].next_url is not None}
            shown = self._next_pages(open_, shown)

    def _next_pages(self, open_: Mapping[str, _Reading], shown: Mapping[str, Rows]) -> Mapping[str, Rows]:
        """One page more of every object that has one, all in one call."""
        urls = {name: str(shown[name].next_url) for name in open_}
        found = dict(self._client.more_many(urls)) if len(urls) > 1 else {}
        for name, each in open_.items():
            if name not in found:
                found[name] = self._next_page(each, urls[name])
        return found

    def _next_page(self, each: _Reading, next_url: str) -> Rows:
        try:
            return self._client.more(next_url)
        except (RefusedError, MissingError) as exc:
            # The cursor is gone: take up at the last stamp, which some rows then see twice.
            newest, read = each.newest, each.read
            if newest is None or (each.since is not None and newest[0] <= each.since):
                raise ContractError(f"{read.sobject}: pages cannot be read on") from exc
            each.since = newest[0].replace(microsecond=0)
            return self._client.query(read.query(each.since))

    def _first_pages(self, request: Pull) -> tuple[list[_Read], dict[str, Rows]]:
        reads = list(self._reads(request))
        try:
            return reads, dict(self._client.query_many({each.sobject: each.query(each.since) for each in reads}))
        except RefusedError as exc:
            if exc.trouble.code != "INVALID_FIELD":
                raise
            self._look_again()
            reads = list(self._reads(request))
            return reads, dict(self._client.query_many({each.sobject: each.query(each.since) for each in reads}))

    def _reads(self, request: Pull) -> Iterator[_Read]:
        overlap = timedelta(seconds=DEEP_OVERLAP_SECONDS if request.is_deep else OVERLAP_SECONDS)
        tables = [each for kind, each in self._tables().items() if kind in request.kinds]
        for sobject in dict.fromkeys(each.sobject for each in tables):
            own = tuple(each for each in tables if each.sobject == sobject)
            marks = {each.kind: instant(request.watermarks.get(each.kind), "watermark") for each in own}
            known = [mark for mark in marks.values() if mark is not None]
            listed = frozenset(kind for kind, mark in marks.items() if mark is None)
            since = min(known) - overlap if len(known) == len(own) else None
            # A first reading needs no tombstones.
            yield _Read(sobject, own, since, min(known, default=None), listed, is_all=bool(known))

    def read(self, kind: str, addresses: Sequence[Address]) -> Mapping[str, Record]:
        asked = {address.id: normal_id(address.id, f"{kind} id") for address in addresses}
        found = self._by_id(self._table(kind), set(asked.values()))
        survivors = self._survivors(self._table(kind), found)
        answer: dict[str, Record] = {}
        for id_, wanted in asked.items():
            record = survivors.get(wanted) or found.get(wanted) or tombstone(kind, wanted)
            answer[id_] = replace(record, formerly=(id_,)) if record.id not in (id_, wanted) else record
        return answer

    def _by_id(self, each: Table, ids: Iterable[str]) -> dict[str, Record]:
        """Records by id, tombstones included; those that the org does not show are absent."""
        return {record.id: record for record in self._in(each, "Id", sorted(ids))}

    def _in(self, each: Table, column: str, values: Sequence[str]) -> Iterator[Record]:
        for chunk in _chunks(values):
            yield from self._where(each, f"{column} IN ({', '.join(map(_quoted, chunk))})")

    def _where(self, each: Table, condition: str) -> Iterator[Record]:
        try:
            rows = self._client.query(_by(each, condition))
        except RefusedError as exc:
            if exc.trouble.code != "INVALID_FIELD":
                raise
            self._look_again()
            each = self._table(each.kind)
            rows = self._client.query(_by(each, condition))
        while True:
            for row in rows.rows:
                record = _readable(each, row)
                if record is not None:
                    yield record
            if rows.next_url is None:
                return
            rows = self._client.more(rows.next_url)

    def _survivors(self, each: Table, found: Mapping[str, Record]) -> Mapping[str, Record]:
        """Who lives on where a merge took a record, by the id that was taken; chains are followed."""
        heirs = {id_: record.merged_into for id_, record in found.items() if record.merged_into}
        known = dict(found)
        for _ in range(_MERGE_HOPS):
            unknown = {heir for heir in heirs.values() if heir and heir not in known}
            if unknown:
                known |= self._by_id(each, unknown)
            further = {id_: known[heir].merged_into for id_, heir in heirs.items() if heir and heir in known}
            moved = {id_: heir for id_, heir in further.items() if heir}
            if not moved:
                break
            heirs |= moved
        return {id_: known[heir] for id_, heir in heirs.items() if heir in known and not known[heir].is_deleted}

    # --- writing ----------------------------------------------------------------------

    def write(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        if not writes:
            return ()
        each = self._table(writes[0].kind)
        # The rows that a write locks by the way (accounts, deals) are then met in one order.
        ordered = sorted(writes, key=lambda write: (str(_parent(write)), write.key))
        match writes[0].verb, writes[0].kind:
            case "delete", kind if kind != "employment":
                return self._delete(each, ordered)
            case "create", "employment":
                return self._employ(each, ordered)
            case "create", "deal_contact":
                return self._introduce(each, ordered)
            case "create", _:
                return self._create_all(each, ordered)
        return self._update(each, ordered)

    def find(self, writes: Sequence[Write]) -> Mapping[str, Record]:
        if not writes:
            return {}
        each = self._table(writes[0].kind)
        match each.kind:
            case "employment":
                found = self._by_id(each, {write.refs["contact"] for write in writes})
                standing = {write.key: found.get(write.refs["contact"]) for write in writes}
                return {
                    write.key: record
                    for write in writes
                    if (record := standing[write.key]) is not None
                    and record.refs.get("company") == write.refs.get("company")
                }
            case "deal_contact":
                return {**self._pairs(each, writes), **self._marked(each, writes)}
        return self._marked(each, writes)

    def _create_all(self, each: Table, writes: Sequence[Write]) -> Sequence[Outcome]:
        outcomes, bodies = self._bodies(each, writes)
        # A record without a counterpart has no external id to be known by.
        for is_keyed in (True, False):
            part = [
                write for write in writes if write.key in bodies and bool(each.mark and write.counterpart) is is_keyed
            ]
            if part:
                results = self._save(each, part, [bodies[write.key] for write in part], is_keyed=is_keyed)
                outcomes += self._settle(each, part, results)
        return outcomes

    def _save(
        self, each: Table, writes: Sequence[Write], bodies: Sequence[Mapping[str, Json]], *, is_keyed: bool
    ) -> Sequence[Result]:
        try:
            return self._client.save(each.sobject, bodies, is_new=True, key=each.mark if is_keyed else None)
        except RefusedError as exc:
            if len(writes) > 1:
                raise
            return [Result(None, exc.trouble)]

    def _introduce(self, each: Table, writes: Sequence[Write]) -> Sequence[Outcome]:
        """Create contact roles. Salesforce lets a pair have several, so look for one before."""
        standing = self._pairs(each, writes)
        outcomes = [Outcome(key, Verdict.EXISTS, record) for key, record in standing.items()]
        return [*outcomes, *self._create_all(each, [write for write in writes if write.key not in standing])]

    def _employ(self, each: Table, writes: Sequence[Write]) -> Sequence[Outcome]:
        """Give contacts their account. A contact has one: another one's place is never taken."""
        outcomes = [
            Outcome(write.key, Verdict.DONE, record)
            for write in writes
            if (record := _carried(each, write)) is not None
        ]
        free: list[Write] = []
        settled = {outcome.key for outcome in outcomes}
        writes = [write for write in writes if write.key not in settled]
        contacts = {normal_id(write.refs.get("contact"), "contact") for write in writes}
        standing = self._by_id(each, contacts)
        for write in writes:
            record = standing.get(normal_id(write.refs.get("contact"), "contact"))
            if record is None or record.merged_into:
                outcomes.append(Outcome(write.key, Verdict.MISSING, reason="the contact is gone"))
            elif record.is_deleted:
                free.append(write)
            elif record.refs.get("company") == write.refs.get("company"):
                outcomes.append(Outcome(write.key, Verdict.EXISTS, record))
            elif write.values.get("is_primary") is True:
                # A change of employer: the place is free once the old employment is deleted.
                outcomes.append(Outcome(write.key, Verdict.RETRY, reason="the contact has another account: AccountId"))
            else:
                reason = "a contact has one account, and this one has another: AccountId"
                outcomes.append(Outcome(write.key, Verdict.REJECTED, reason=reason))
        addressed = [replace(write, address=Address(write.refs["contact"])) for write in free]
        return [*outcomes, *self._update(each, addressed)]

    def _update(self, each: Table, writes: Sequence[Write]) -> Sequence[Outcome]:
        outcomes, bodies = self._bodies(each, writes)
        sent = [write for write in writes if bodies.get(write.key)]
        # Nothing to say here: it stands as it stands.
        idle = [write for write in writes if write.key in bodies and write not in sent]
        results: Sequence[Result] = []
        if len(sent) == 1:
            modified = sent[0].opaque.get("modified")
            since = modified if isinstance(modified, str) else None
            body = bodies[sent[0].key]
            results = [self._client.update_one(each.sobject, _own_id(sent[0]), body, unmodified_since=since)]
        elif sent:
            records = [{"Id": _own_id(write), **bodies[write.key]} for write in sent]
            results = self._client.save(each.sobject, records, is_new=False, key=None)
        unsent = [Result(_own_id(write)) for write in idle]
        return [*outcomes, *self._settle(each, [*sent, *idle], [*results, *unsent])]

    def _delete(self, each: Table, writes: Sequence[Write]) -> Sequence[Outcome]:
        results = self._client.delete(each.sobject, [_own_id(write) for write in writes])
        return [_deleted(write, result) for write, result in zip(writes, results, strict=True)]

    def _bodies(self, each: Table, writes: Sequence[Write]) -> tuple[list[Outcome], dict[str, Mapping[str, Json]]]:
        """What to send, by key; and the outcomes of those that Salesforce is known to refuse."""
        outcomes: list[Outcome] = []
        bodies: dict[str, Mapping[str, Json]] = {}
        for write in writes:
            try:
                bodies[write.key] = self._body(each, write)
            except UnfitValueError as exc:
                outcomes.append(Outcome(write.key, Verdict.REJECTED, reason=str(exc)))
        return outcomes, bodies

    def _body(self, each: Table, write: Write) -> Mapping[str, Json]:
        """What to send for one write; a new contact takes its account and title along."""
        if write.verb == "mark":
            if each.mark is None:
                raise UnfitValueError(f"NO_FIELD: {MARKS.get(each.kind, 'AccountId')}")
            return {each.mark: write.counterpart}
        if write.verb == "delete":
            # Only employments come here: leaving a company clears the place, not the person.
            return {"AccountId": None, **({"Title": None} if "job_title" in each.columns else {})}
        along: dict[str, Json] = {}
        for rider in write.riders[:1]:
            carried = Write(write.key, rider.kind, "update", None, None, rider.values, rider.refs)
            along |= self._table(rider.kind).body(carried, self._now())
        return {**along, **each.body(write, self._now())}

    # --- outcomes ---------------------------------------------------------------------

    def _settle(self, each: Table, writes: Sequence[Write], results: Sequence[Result]) -> list[Outcome]:
        """What each write came to, with the record as it is stored now."""
        told = [(write, _addressed(write, result)) for write, result in zip(writes, results, strict=True)]
        ids = {write.key: result.id for write, result in told if result.id and result.trouble is None}
        if any(result.trouble and result.trouble.code in _OUTDATED for _, result in told):
            self._known = None
        try:
            owners = self._owners(each, [(write, result.trouble) for write, result in told if result.trouble])
            stored = self._by_id(each, set(ids.values()))
        except (TransientError, RejectedError):
            # Written or not, what stands there now could not be read.
            return [
                Outcome(write.key, Verdict.UNKNOWN, reason="could not be read again")
                if write.key in ids or (result.trouble and result.trouble.code in (*_TAKEN, "DUPLICATES_DETECTED"))
                else _refused(write, result, {})
                for write, result in told
            ]
        return [
            _written(write, stored.get(ids[write.key])) if write.key in ids else _refused(write, result, owners)
            for write, result in told
        ]

    def _owners(self, each: Table, troubles: Sequence[tuple[Write, Trouble | None]]) -> Mapping[str, Record]:
        """Who stands in the way of refused creates, by write key: the mark's owner, or a rule's one match."""
        creates = [(write, trouble) for write, trouble in troubles if trouble and write.verb == "create"]
        taken = [write for write, trouble in creates if trouble.code in _TAKEN]
        found = dict(self._marked(each, taken)) if taken else {}
        matched = {
            write.key: trouble.matches[0]
            for write, trouble in creates
            if trouble.code == "DUPLICATES_DETECTED" and len(trouble.matches) == 1
        }
        records = self._by_id(each, set(matched.values())) if matched else {}
        found |= {key: records[id_] for key, id_ in matched.items() if id_ in records}
        return {key: record for key, record in found.items() if not record.is_deleted}

    def _marked(self, each: Table, writes: Sequence[Write]) -> Mapping[str, Record]:
        """The records that carry these writes' marks, by write key."""
        marks = {write.counterpart: write.key for write in writes if write.counterpart}
        if each.mark is None or not marks:
            return {}
        records = [record for record in self._in(each, each.mark, sorted(marks)) if not record.is_deleted]
        return {marks[record.mark]: record for record in records if record.mark in marks}

    def _pairs(self, each: Table, writes: Sequence[Write]) -> Mapping[str, Record]:
        """The contact roles that join the same deal and contact already, by write key."""
        wanted = {(write.refs.get("deal"), write.refs.get("contact")): write.key for write in writes}
        found: dict[str, Record] = {}
        # At most 200 pairs: 400 ids are 10,872 bytes of a URL that may have 16,384 (contract, 4.6).
        for start in range(0, len(wanted), BATCH):
            chunk = list(wanted)[start : start + BATCH]
            deals = sorted({normal_id(deal, "OpportunityId") for deal, _ in chunk})
            contacts = sorted({normal_id(contact, "ContactId") for _, contact in chunk})
            listed = [", ".join(map(_quoted, ids)) for ids in (deals, contacts)]
            for record in self._where(each, f"OpportunityId IN ({listed[0]}) AND ContactId IN ({listed[1]})"):
                key = wanted.get((record.refs.get("deal"), record.refs.get("contact")))
                if key is not None and not record.is_deleted:
                    found.setdefault(key, record)
        return found

    def least_calls(self, tally: Tally) -> int:
        """As many calls as the longest object has pages of 2,000, one of each in a call; two per 200 written.

        A write takes a second call because Salesforce answers without the stored record, and a
        relation a third, because only a look before keeps a pair from being joined twice. The
        employments of new contacts cost nothing: they are made with them.
        """
        rows: dict[str, int] = {}
        for kind, count in tally.pulled.items():
            rows[SOBJECTS[kind]] = max(rows.get(SOBJECTS[kind], 0), count)
        calls = max([1, *(ceil(count / _PAGE) for count in rows.values())])
        written = dict(tally.written)
        riding = min(written.get(("employment", "create"), 0), written.get(("contact", "create"), 0))
        if riding:
            written["employment", "create"] -= riding
        for (kind, verb), count in written.items():
            looks = 1 if verb == "create" and kind in ("employment", "deal_contact") else 0
            is_bare = verb == "delete" and kind != "employment"
            calls += ceil(count / BATCH) * (1 if is_bare else 2 + looks)
        return calls


def _carried(each: Table, write: Write) -> Record | None:
    """The employment that stands already, because its contact was created with it."""
    contact = write.carrier
    if contact is None or contact.is_deleted or contact.opaque.get("account") != write.refs.get("company"):
        return None
    title = contact.opaque.get("title")
    if "job_title" in write.values and write.values["job_title"] != title:
        return None
    values: dict[str, Value] = {"is_primary": True}
    if "job_title" in each.columns:
        values["job_title"] = title if isinstance(title, str) else None
    opaque = {name: contact.opaque[name] for name in ("modified", "account") if name in contact.opaque}
    return replace(
        contact, kind="employment", values=values, refs=dict(write.refs), mark=None, locked={}, native={}, opaque=opaque
    )


def _written(write: Write, record: Record | None) -> Outcome:
    if write.kind == "employment" and write.verb == "delete":
        return Outcome(write.key, Verdict.DONE)
    if record is None or record.is_deleted:
        return Outcome(write.key, Verdict.MISSING, record, reason="gone right after the write")
    amount = write.values.get("amount")
    stored = record.values.get("amount")
    if isinstance(amount, Money) and isinstance(stored, Money) and not stored.currency:
        stored = replace(stored, currency=amount.currency)
    if amount is not None and stored != amount and not record.locked.get("amount"):
        # Accepted and ignored: an opportunity with products sums them up (contract, trap 11).
        locked = {**record.locked, "amount": "the opportunity did not take it: it has products"}
        record = replace(record, locked=locked)
    return Outcome(write.key, Verdict.DONE, record)


def _refused(write: Write, result: Result, owners: Mapping[str, Record]) -> Outcome:
    trouble = result.trouble
    if trouble is None or not result.is_known:
        return Outcome(write.key, Verdict.UNKNOWN, reason="the answer did not tell")
    owner = owners.get(write.key)
    if owner is not None:
        is_ours = write.counterpart is not None and owner.mark == write.counterpart
        # Our own create, repeated after a lost answer, meets itself.
        is_repeat = is_ours and trouble.code == "INVALID_FIELD_FOR_INSERT_UPDATE"
        return Outcome(write.key, Verdict.DONE if is_repeat else Verdict.EXISTS, owner, reason=str(trouble))
    if trouble is DELAYED:
        return Outcome(write.key, Verdict.DELAYED)
    if trouble.code == "PRECONDITION":
        return Outcome(write.key, Verdict.STALE, reason="modified since it was read")
    if trouble.code in _PASSING:
        return Outcome(write.key, Verdict.RETRY, reason=str(trouble))
    if write.verb != "create" and _is_gone(trouble):
        return Outcome(write.key, Verdict.MISSING, reason=str(trouble))
    return Outcome(write.key, Verdict.REJECTED, reason=str(trouble))


def _deleted(write: Write, result: Result) -> Outcome:
    is_gone = result.is_known and result.trouble is None
    if is_gone or (result.trouble and result.trouble.code == "ENTITY_IS_DELETED"):
        return Outcome(write.key, Verdict.DONE)
    return _refused(write, result, {})


def _addressed(write: Write, result: Result) -> Result:
    """A result that names its record: an update may rely on what we asked for, a create may not."""
    if not result.is_known or result.trouble is not None or result.id:
        return result
    return Result(_own_id(write)) if write.address is not None else Result(None, is_known=False)


def _is_gone(trouble: Trouble) -> bool:
    """The record itself is gone; with fields, INVALID_CROSS_REFERENCE_KEY speaks of what it refers to."""
    return trouble.code in _GONE or (trouble.code == "INVALID_CROSS_REFERENCE_KEY" and not trouble.fields)


def _spelt_out(id_: str) -> str:
    """An id in 18 characters: reports and older integrations keep the 15 that people see (contract, 13)."""
    try:
        return normal_id(id_, "id")
    except UnfitValueError:
        return id_


def _own_id(write: Write) -> str:
    if write.address is None:
        raise ContractError(f"{write.kind}: a {write.verb} without an address")
    return normal_id(write.address.id, f"{write.kind} id")


def _parent(write: Write) -> object:
    return write.refs.get("deal") or write.refs.get("company") or write.opaque.get("account") or ""


# --- pages ----------------------------------------------------------------------------


def _page(each: Table, rows: Sequence[Row], *, is_listing: bool) -> Page:
    records: list[Record] = []
    refused: list[Refusal] = []
    for row in rows:
        try:
            record = each.record(row)
        except UnfitValueError as exc:
            refused.append(Refusal(each.kind, _safe(row.get("Id")), str(exc)))
            continue
        # In a listing an employment that is not there is gone; a delta must say so.
        if record is not None and not (is_listing and each.kind == "employment" and record.is_deleted):
            records.append(record)
    return Page(kind=each.kind, records=tuple(records), refused=tuple(refused))


def _readable(each: Table, row: Row) -> Record | None:
    """A row asked for by name. One that cannot be read is there all the same: it says nothing and is locked."""
    try:
        return each.record(row)
    except UnfitValueError as exc:
        try:
            return Record(each.kind, normal_id(row.get("Id"), "Id"), {}, locked={"*": f"cannot be read: {exc}"})
        except UnfitValueError:
            return None


def _safe(raw: object) -> str:
    return re.sub(r"[^A-Za-z0-9]", "?", str(raw))[:18]


def _newest(rows: Sequence[Row], newest: _Newest) -> _Newest:
    """The newest stamp, as an instant and as the vendor wrote it."""
    for row in rows:
        raw = row.get("SystemModstamp")
        try:
            moment = instant(raw, "SystemModstamp")
        except UnfitValueError:
            continue
        if moment is not None and isinstance(raw, str) and (newest is None or moment > newest[0]):
            newest = (moment, raw)
    return newest


def _clock(newest: _Newest, at: datetime | None) -> str | None:
    """How far this reading goes: the newest stamp, but no further than the server's clock when it began.

    RACE: rows stamped earlier may be committed later; the overlap of the next pull covers that
    for as long as a call may run.
    """
    if newest is None:
        return None
    if at is not None and at < newest[0]:
        return at.strftime("%Y-%m-%dT%H:%M:%S.000+0000")
    return newest[1]


def _by(each: Table, condition: str) -> Query:
    return Query(f"SELECT {', '.join(each.select)} FROM {each.sobject} WHERE {condition}")  # noqa: S608


def _literal(moment: datetime) -> str:
    """A datetime literal: unquoted, whole seconds, UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    if not escaped.isprintable():
        raise UnfitValueError("not a text for a query")
    return f"'{escaped}'"


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """At most 200 values at once, and fewer if they are long: a statement travels in the URL."""
    chunk: list[str] = []
    size = 0
    for value in values:
        if chunk and (len(chunk) == BATCH or size + len(value) + 9 > _LONGEST_LIST):
            yield chunk
            chunk, size = [], 0
        chunk.append(value)
        size += len(value) + 9
    if chunk:
        yield chunk


def _records(answer: object) -> Iterable[Row]:
    found = answer.get("records") if isinstance(answer, Mapping) else None
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list | tuple) else []


# --- findings -------------------------------------------------------------------------


def _findings(each: Table) -> Iterator[Finding]:
    wanted = MARKS.get(each.kind)
    if wanted and each.mark is None:
        thing = f"{each.sobject}.{wanted}"
        is_required = each.kind != "deal_contact"
        found = Finding("external_id_missing", thing, "", is_required=is_required, is_fixable=True)
        yield replace(found, fix=_by_hand(found))
    for name, native in missing_customs(each):
        thing = f"{each.sobject}.{native}"
        found = Finding("field_missing", thing, "", is_required=False, is_fixable=True)
        yield replace(found, fix=f"{_by_hand(found)} Without it {name} is not synced.")
    if each.kind == "deal" and "amount" in each.columns and each.has_bare_amounts:
        fix = "Set options.currency to the currency of the org; without it that of most projects is taken for it."
        yield Finding("currency_unknown", "Organization.DefaultCurrencyIsoCode", fix, is_required=False)
    if each.kind == "deal" and not each.org.stages:
        fix = "Give the integration user read access to OpportunityStage, with at least one active stage."
        yield Finding("stages_missing", "OpportunityStage", fix, is_required=False)
    yield from _missing_words(each)


def _missing_words(each: Table) -> Iterator[Finding]:
    for name, column in each.columns.items():
        held = column.native.words
        if held is None or column.words is None:
            continue
        missing = [native for native in column.words.values() if native and native not in held]
        if missing:
            fix = f"Add to the picklist: {', '.join(missing)}. Without them those words of {name} are not synced."
            yield Finding("picklist_value_missing", f"{each.sobject}.{column.native.name}", fix, is_required=False)


def _by_hand(finding: Finding) -> str:
    """What an admin must do, in full."""
    sobject, _, native = finding.thing.partition(".")
    if finding.code == "external_id_missing":
        return (
            f"Create on {sobject} the field {native}: Text(64), External ID, Unique, case-sensitive; "
            "grant the integration user's permission set read and edit access to it, also if it is there already."
        )
    if finding.code == "field_missing":
        return f"Create on {sobject} the field {native} and grant the integration user read and edit access to it."
    return finding.fix
