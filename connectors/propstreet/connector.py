"""Propstreet as one side of a pair: fulfils the contract with the client and the tables.

Reading lives here, writing in ``writes.py``. Every kind has its own delta list; prospects have
one per project, each with its own watermark, because nothing promises that a prospect's change
moves its project (contract, 14.15). A property has no kind of its own: what it says belongs to
the deal that is linked with it.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import blake2b
from math import ceil
from typing import Final

from connectors.propstreet import fields
from connectors.propstreet.client import PAGE_SIZE, Client, Row, segment
from connectors.propstreet.fields import NO_PROPERTY, PATHS, PROPERTY_FIELDS, Setup
from connectors.propstreet.webhooks import Subscriptions
from connectors.propstreet.writes import BATCH, FEW, Writer, path_of
from syncd.connector import (
    Account,
    Capabilities,
    ConnectionSettings,
    Finding,
    KindCapability,
    Outcome,
    Page,
    Parent,
    Pull,
    Quota,
    Subscription,
    Tally,
    Wire,
    Write,
)
from syncd.core.mapping import Refusal, UnfitValueError
from syncd.core.model import KINDS, Address, Record, Values, Verb, is_safe_id
from syncd.core.watermark import advance, less
from syncd.errors import ConfigError, ContractError, MissingError

OVERLAP_SECONDS: Final = 300
DEEP_OVERLAP_SECONDS: Final = 7200
ORG_NAMESPACE: Final = "org_number"

MANY: Final = 20
"""Deals from which one more listing is cheaper than a read each."""
_BLOCK: Final = 65_536
_SINGLE: Final = 20
"""Writes that take a call each, sent together: few enough to lose little to a crash."""
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")
_PROPERTIES: Final = "/properties"
_REF_SETS: Final[Mapping[str, tuple[frozenset[str], ...]]] = {
    "employment": (frozenset({"contact", "company"}),),
    "deal_contact": (frozenset({"deal", "contact"}), frozenset({"deal", "company"})),
}


def connect(settings: ConnectionSettings, wire: Wire, now: Callable[[], datetime]) -> PropstreetConnector:
    """The entry point. Raises ConfigError; opens no connection."""
    if not _NAMESPACE.fullmatch(settings.namespace):
        raise ConfigError("namespace: Propstreet's external refs take 1 to 50 letters, digits, dots and dashes")
    for key in settings.options:
        if key != "org_number_namespace":
            raise ConfigError(f"propstreet option {key!r} is not known; there is org_number_namespace")
    watch = {kind: choice.watch for kind, choice in settings.kinds.items()}
    setup = Setup(settings.namespace, settings.options.get("org_number_namespace", ORG_NAMESPACE), watch)
    return PropstreetConnector(Client(settings.base_url, settings.auth, wire, now), setup, now)


@dataclass(slots=True)
class _Properties:
    """Properties as read so far, by id. ``is_listed``: all there are, or the API offers none (before 1.3.0)."""

    known: dict[str, tuple[object, ...]] = field(default_factory=dict)
    is_listed: bool = False
    clock: str | None = None

    def keep(self, row: Row) -> None:
        values = fields.property_values(row)
        if (id_ := _id(row)) is not None and values:
            # A tuple and not a dict: a listing may hold a great many.
            self.known[id_] = tuple(values[name] for name in PROPERTY_FIELDS)
        self.clock = _later(self.clock, row)

    def values(self, id_: str) -> Values:
        found = self.known.get(id_)
        return dict(zip(PROPERTY_FIELDS, found, strict=True)) if found is not None else {}  # type: ignore[arg-type]  # as put in by keep


class _Primaries:
    """Which company is a contact's primary one, as the contacts of this run's feed say.

    The documented link does not tell, and its contact does (contract, 5.1 and 7). Sixteen bytes a
    contact, since there may be a million: digests, in sorted blocks.
    """

    def __init__(self) -> None:
        self._blocks: list[array[int]] = []
        self._open: set[int] = set()

    def learn(self, row: Row) -> None:
        companies = row.get("companies")
        listed = [each for each in companies if isinstance(each, dict)] if isinstance(companies, list) else []
        first = row.get("primaryCompanyId") or next((each.get("id") for each in listed if each.get("isPrimary")), None)
        if first is None and not listed:
            return
        self._open |= {_digest(row.get("id")), _digest(row.get("id"), first)}
        if len(self._open) >= _BLOCK:
            self._blocks.append(array("Q", sorted(self._open)))
            self._open = set()

    def tell(self, link: Record) -> Record:
        """The link with ``is_primary``, if it does not say so itself and its contact was seen."""
        if link.is_deleted or "is_primary" in link.values or not self._has(_digest(link.refs["contact"])):
            return link
        is_primary = self._has(_digest(link.refs["contact"], link.refs["company"]))
        return replace(link, values={**link.values, "is_primary": is_primary})

    def _has(self, digest: int) -> bool:
        if digest in self._open:
            return True
        for block in self._blocks:
            at = bisect_left(block, digest)
            if at < len(block) and block[at] == digest:
                return True
        return False


def _digest(*ids: object) -> int:
    text = "\n".join(str(each) for each in ids)
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


class PropstreetConnector:
    """One tenant's Propstreet account."""

    def __init__(self, client: Client, setup: Setup, now: Callable[[], datetime]) -> None:
        self._client = client
        self._setup = setup
        self._writer = Writer(client, setup, now)
        self._subscriptions = Subscriptions(client)
        self._primaries = _Primaries()

    # --- the account ------------------------------------------------------------------

    def account(self) -> Account:
        """Who we are: there is no endpoint that tells, so the credential names us once it has proved good.

        A rotated client secret keeps the id; another client or another personal token changes it.
        """
        self._probe("deal")
        return Account(self._client.identity(), "Propstreet")

    def check(self) -> Sequence[Finding]:
        """See ``Connector.check``: every list must be readable. There is nothing of its own to set up."""
        for kind in PATHS:
            if kind != "deal":
                self._probe(kind)
        return ()

    def _probe(self, kind: str) -> None:
        try:
            self._client.get(PATHS[kind], {"page_size": "1"})
        except MissingError as exc:
            raise ContractError(f"Propstreet offers no list of {kind} records: check base_url") from exc

    def fix(self, findings: Sequence[Finding]) -> Sequence[Finding]:
        """Nothing in Propstreet can be created from here."""
        return findings

    def capabilities(self) -> Capabilities:
        calls = 60 if self._client.is_personal else 600
        return Capabilities(
            kinds={kind: _capability(kind) for kind in KINDS},
            pull_groups=tuple((kind,) for kind in KINDS),
            quotas=(Quota("default", calls, 60.0),),
            overlap_seconds=OVERLAP_SECONDS,
            deep_overlap_seconds=DEEP_OVERLAP_SECONDS,
        )

    def close(self) -> None:
        self._client.close()

    # --- webhooks, see ``Subscriber`` -------------------------------------------------

    def subscriptions(self) -> Sequence[Subscription]:
        return self._subscriptions.list()

    def subscribe(self, url: str) -> tuple[Subscription, str]:
        return self._subscriptions.create(url)

    def unsubscribe(self, id_: str) -> None:
        self._subscriptions.delete(id_)

    def replay(self, id_: str, since: datetime) -> int:
        return self._subscriptions.replay(id_, since)

    # --- pulling ----------------------------------------------------------------------

    def pull(self, request: Pull) -> Iterator[Page]:
        """See ``Connector.pull``."""
        for kind in request.kinds:
            if kind == "deal_contact":
                for parent in request.parents():
                    yield from self._pull_prospects(parent, request)
            elif kind == "deal":
                yield from self._pull_deals(request)
            else:
                yield from self._pull_kind(kind, request.watermarks.get(kind), request)

    def _pull_kind(self, kind: str, watermark: str | None, request: Pull) -> Iterator[Page]:
        """Contacts come before links; what they said in an earlier run may be stale by now."""
        if kind == "contact":
            self._primaries = _Primaries()
        for rows, is_last in self._list(PATHS[kind], watermark, request):
            page = self._page(kind, rows, is_listing=watermark is None, is_last=is_last)
            if kind == "contact":
                for row in rows:
                    self._primaries.learn(row)
                    self._writer.learn_contact(row)
            if kind == "employment":
                page = replace(page, records=tuple(self._primaries.tell(each) for each in page.records))
            yield page

    def _list(self, path: str, watermark: str | None, request: Pull) -> Iterator[tuple[Sequence[Row], bool]]:
        """A list from a watermark less its overlap, from the beginning without one; deleted rows always."""
        params = {"include_deleted": "true"}
        if watermark is not None:
            params["updated_since"] = less(watermark, DEEP_OVERLAP_SECONDS if request.is_deep else OVERLAP_SECONDS)
        for page in self._client.pages(path, params):
            yield page.rows, page.is_last

    def _page(self, kind: str, rows: Iterable[Row], *, is_listing: bool = False, is_last: bool = False) -> Page:
        """Rows as a page. A row that cannot be read is refused, and its clock counts all the same."""
        records, refused, clock = self._translate(kind, rows)
        return Page(kind, records, refused, clock, is_listing=is_listing, is_last=is_last)

    def _translate(
        self, kind: str, rows: Iterable[Row], parent: str | None = None
    ) -> tuple[tuple[Record, ...], tuple[Refusal, ...], str | None]:
        records: list[Record] = []
        refused: list[Refusal] = []
        clock: str | None = None
        for row in rows:
            clock = _later(clock, row)
            try:
                records.append(fields.record(self._setup, kind, row, parent=parent))
            except UnfitValueError as exc:
                refused.append(Refusal(kind, fields.refusal_id(row), str(exc)))
        return tuple(records), tuple(refused), clock

    def _pull_prospects(self, parent: Parent, request: Pull) -> Iterator[Page]:
        """One project's prospects: what moved by their own clock, or all of them in one page."""
        path = f"{PATHS['deal']}/{segment(parent.id)}/prospects"
        is_whole = parent.watermark is None or request.is_sweep
        try:
            pages = self._list(path, None if is_whole else parent.watermark, request)
            if not is_whole:
                for rows, is_last in pages:
                    records, refused, clock = self._translate("deal_contact", rows, parent.id)
                    yield Page("deal_contact", records, refused, clock, parent.id, is_last=is_last)
                return
            whole = [row for rows, _ in pages for row in rows]
        except MissingError:
            # The project is gone or hidden: its own tombstone will tell. Nothing is said of its prospects.
            yield Page("deal_contact", (), parent=parent.id, is_last=True)
            return
        records, refused, clock = self._translate("deal_contact", whole, parent.id)
        yield Page("deal_contact", records, refused, clock, parent.id, (parent.id,), is_last=True)

    # --- deals and their properties ---------------------------------------------------

    def _pull_deals(self, request: Pull) -> Iterator[Page]:
        """Projects with what their linked properties say.

        On a delta the properties that moved are listed first, so that their clock may count as the
        deals' own: all projects up to it are listed afterwards. Deals known to hold one of them
        come at the end, read again. In a full listing the properties are listed once, when the
        first deal names one.
        """
        watermark = request.watermarks.get("deal")
        properties = _Properties()
        if watermark is not None:
            self._list_properties(properties, watermark, request)
        moved = frozenset(properties.known)
        shown: set[str] = set()
        for rows, is_last in self._list(PATHS["deal"], watermark, request):
            page = self._page("deal", rows, is_listing=watermark is None)
            self._writer.learn(page.records)
            held = sorted({str(record.opaque["property"]) for record in page.records if "property" in record.opaque})
            if watermark is None and held and not properties.is_listed:
                self._list_properties(properties, None, request)
            known = request.holders("property", held) if watermark is not None and held else ()
            holders = frozenset(address.id for address in known)
            if moved:
                shown |= {record.id for record in page.records}
            records = tuple(self._with_property(each, properties, holders) for each in page.records)
            clock = advance(page.clock, [properties.clock]) if is_last and not moved else page.clock
            yield replace(page, records=records, clock=clock, is_last=is_last)
        if moved:
            yield from self._pull_holders(sorted(moved), properties, shown, request)
            yield Page("deal", (), clock=properties.clock)

    def _list_properties(self, properties: _Properties, watermark: str | None, request: Pull) -> None:
        try:
            for rows, _ in self._list(_PROPERTIES, watermark, request):
                for row in rows:
                    properties.keep(row)
        except MissingError:
            properties.is_listed = True
        properties.is_listed |= watermark is None

    def _with_property(self, record: Record, properties: _Properties, holders: frozenset[str]) -> Record:
        """A deal with the fields of its property; one of ``holders`` says nothing of one that did not move."""
        id_ = record.opaque.get("property")
        if record.is_deleted:
            return record
        if not isinstance(id_, str):
            return replace(record, values={**record.values, **NO_PROPERTY})
        if id_ not in properties.known and record.id not in holders and not properties.is_listed:
            self._read_property(record.id, id_, properties)
        return replace(record, values={**record.values, **properties.values(id_)})

    def _read_property(self, project: str, id_: str, properties: _Properties) -> None:
        """The property of one project, which may be linked with it since just now."""
        path = f"{PATHS['deal']}/{segment(project)}{_PROPERTIES}"
        clock = properties.clock
        try:
            for row in self._client.rows(path):
                if _id(row) == id_:
                    properties.keep(row)
        except MissingError:
            return
        properties.clock = clock  # An old property of a new link says nothing about what was listed.

    def _pull_holders(
        self, moved: Sequence[str], properties: _Properties, shown: set[str], request: Pull
    ) -> Iterator[Page]:
        """The deals whose property moved while they did not; very many of them from one more listing."""
        wanted: dict[str, Address] = {}
        for start in range(0, len(moved), PAGE_SIZE):
            holders = request.holders("property", moved[start : start + PAGE_SIZE])
            wanted |= {address.id: address for address in holders if address.id not in shown}
        if len(wanted) > MANY:
            for rows, _ in self._list(PATHS["deal"], None, request):
                records = [each for each in self._translate("deal", rows)[0] if each.id in wanted]
                yield Page("deal", tuple(self._with_property(each, properties, frozenset()) for each in records))
            return
        found = [self._read_one("deal", address) for address in wanted.values()]
        records = [record for record in found if record is not None]
        yield Page("deal", tuple(self._with_property(each, properties, frozenset()) for each in records))

    # --- reading by id ----------------------------------------------------------------

    def read(self, kind: str, addresses: Sequence[Address]) -> Mapping[str, Record]:
        """See ``Connector.read``. What is there but cannot be read is left out; an unsafe id names nothing."""
        unsafe = [each for each in addresses if not (is_safe_id(each.id) and is_safe_id(each.parent or each.id))]
        found = {each.id: Record(kind, each.id, {}, parent=each.parent, is_deleted=True) for each in unsafe}
        addresses = [each for each in addresses if each not in unsafe]
        if kind == "deal_contact":
            return found | self._read_prospects(addresses)
        for address in addresses:
            record = self._read_one(kind, address)
            if record is not None:
                found[address.id] = record
        if kind == "deal":
            properties = _Properties()
            found = {id_: self._with_property(each, properties, frozenset()) for id_, each in found.items()}
        return found

    def _read_one(self, kind: str, address: Address) -> Record | None:
        """One record by id. A 404 counts only when it comes twice; then it is a tombstone (contract, 1.5)."""
        for _ in range(2):
            try:
                return fields.record(self._setup, kind, self._client.get(path_of(kind, address)), parent=address.parent)
            except MissingError:
                continue
            except UnfitValueError:
                return None
        return Record(kind, address.id, {}, parent=address.parent, is_deleted=True)

    def _read_prospects(self, addresses: Sequence[Address]) -> dict[str, Record]:
        """Prospects by id; many of one project, and those that answer 404, from the project's listing."""
        projects: dict[str, list[Address]] = {}
        for address in addresses:
            projects.setdefault(address.parent or "", []).append(address)
        found: dict[str, Record] = {}
        for project, group in projects.items():
            missing = group if len(group) > FEW else []
            for address in group if not missing else ():
                try:
                    row = self._client.get(path_of("deal_contact", address))
                    found[address.id] = fields.record(self._setup, "deal_contact", row, parent=project)
                except MissingError:
                    missing = [*missing, address]
                except UnfitValueError:
                    continue
            if missing:
                found |= self._look_in_list(project, missing)
        return found

    def _look_in_list(self, project: str, addresses: Sequence[Address]) -> dict[str, Record]:
        """What the project's listing, removed prospects included, says of these; not there means gone."""
        wanted = {address.id for address in addresses}
        found: dict[str, Record] = {}
        unreadable: set[str] = set()
        try:
            path = f"{PATHS['deal']}/{segment(project)}/prospects"
            for page in self._client.pages(path, {"include_deleted": "true"}):
                records, refused, _ = self._translate("deal_contact", page.rows, project)
                found |= {record.id: record for record in records if record.id in wanted}
                unreadable |= {refusal.id for refusal in refused}
                if wanted <= found.keys() | unreadable:
                    break
        except MissingError:
            unreadable = set()
        for id_ in wanted - found.keys() - unreadable:
            found[id_] = Record("deal_contact", id_, {}, parent=project, is_deleted=True)
        return found

    # --- writing ----------------------------------------------------------------------

    def write(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        """See ``Connector.write`` and ``writes.py``."""
        return self._writer.write(writes)

    def find(self, writes: Sequence[Write]) -> Mapping[str, Record]:
        """See ``Connector.find``."""
        return self._writer.find(writes)

    def least_calls(self, tally: Tally) -> int:
        """Full pages, one visit per project, one call per write but for prospects, a token for a backfill."""
        calls = 1 if tally.is_backfill and not self._client.is_personal else 0
        for kind in PATHS:
            if kind in tally.pulled:
                calls += max(1, ceil(tally.pulled[kind] / PAGE_SIZE))
        if "deal" in tally.pulled:
            calls += 1
        visits = sum(tally.parents.values())
        calls += max(visits, ceil(tally.pulled.get("deal_contact", 0) / PAGE_SIZE)) if visits else 0
        return calls + sum(_least_writes(at, count, tally.groups.get(at, 1)) for at, count in tally.written.items())


def _least_writes(at: tuple[str, Verb], count: int, groups: int) -> int:
    """Prospects are added and classified by the hundred per project; the rest goes one by one."""
    kind, verb = at
    if kind != "deal_contact" or verb not in ("create", "update") or count <= groups:
        return count
    if verb == "update":
        return min(count, 3 * groups)
    return max(groups, ceil(count / BATCH)) + groups


def _capability(kind: str) -> KindCapability:
    is_prospect = kind == "deal_contact"
    return KindCapability(
        fields=fields.capabilities(kind),
        batch={
            "create": BATCH if is_prospect else _SINGLE,
            "update": BATCH if is_prospect else _SINGLE,
            "delete": _SINGLE,
            "mark": _SINGLE,
        },
        read_batch=BATCH if is_prospect else _SINGLE,
        ref_sets=_REF_SETS.get(kind, ()),
        is_child=is_prospect,
        is_conditional=True,
        # The others show what is not theirs: a deal its property, a prospect its contact's tags, a
        # link whether another became primary. Nothing promises that these move their entity tag.
        is_exact=kind in ("company", "contact"),
        is_current=True,
        can_mark=kind != "employment",
        restored_by_hand="ask Propstreet's support whether it can be brought back",
    )


def _id(row: Row) -> str | None:
    return fields.refusal_id(row) if row.get("id") is not None else None


def _later(clock: str | None, row: Row) -> str | None:
    """The later of a clock and a row's ``updatedUtc``, as the raw strings they are (contract, 10)."""
    raw = row.get("updatedUtc")
    try:
        return advance(clock, [raw]) if isinstance(raw, str) else clock
    except UnfitValueError:
        return clock
