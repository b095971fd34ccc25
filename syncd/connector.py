"""The contract between the engine and one kind of system.

A connector translates one vendor's API to records in canonical values and back, nothing more:
it decides nothing about matching, merging, order, retries or pacing. It is found through the
entry point group ``syncd.connectors``; the entry point is a callable with the signature of
``ConnectorFactory``. ``syncd.testing.conformance`` holds the tests that each connector passes.
A vendor that sends webhooks has a ``Receiver`` under the same name in the group ``syncd.webhooks``.

Every HTTP exchange goes through the ``Wire`` that the engine hands in, which paces, retries,
counts and, in a dry run, refuses writes. Library retries must be off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cache
from importlib.metadata import entry_points
from typing import Literal, Protocol, TypeVar, runtime_checkable

from syncd.core.mapping import Refusal
from syncd.core.model import Address, FieldType, Json, Record, Values, Verb
from syncd.errors import ConfigError

T = TypeVar("T")

GROUP = "syncd.connectors"
WEBHOOKS = "syncd.webhooks"


@dataclass(frozen=True, slots=True)
class Quota:
    """A vendor's limit: so many calls in so many seconds, for all calls of one bucket."""

    bucket: str
    calls: int
    seconds: float


Repeat = Literal["always", "unsent", "never"]
"""When a request that failed in passing may be sent again: see ``Wire.call``."""


class Wire(Protocol):
    """The one way out: paces, retries, counts. Supplied by the engine."""

    def call(
        self,
        exchange: Callable[[], T],
        *,
        effect: Literal["read", "write"],
        bucket: str = "default",
        repeat: Repeat = "always",
    ) -> T:
        """Perform one HTTP exchange, waiting before it and repeating it as the policy says.

        Args:
            exchange: performs exactly one HTTP request and returns its parsed answer. It raises
                ``TransientError(is_sent=...)`` for time-outs, resets and 5xx,
                ``RateLimitedError`` for a refusal by quota, ``AuthError``, ``RejectedError``,
                ``MissingError``, ``StaleVersionError`` and ``ContractError`` as they say.
            effect: ``write`` if the request can change anything at the vendor.
            bucket: the quota it counts against.
            repeat: ``always`` if sending it twice does no harm, even if somebody edited what it
                wrote before the second time. Otherwise a ``TransientError`` with ``is_sent``
                becomes ``UnknownOutcomeError``, and a refusal before any effect is waited for:
                ``unsent`` then sends again; ``never``, for what no condition guards, raises
                ``DelayedError``, since what the write is about may have moved meanwhile.

        Raises:
            UnknownOutcomeError, DelayedError, TransientError (patience is used up), and all else
            that ``exchange`` raised.
        """
        ...

    def observe(self, bucket: str, *, remaining: int, reset_seconds: float) -> None:
        """Take note of what the vendor's headers say is left of a quota."""
        ...


@dataclass(frozen=True, slots=True)
class Secret:
    """A credential; its text never shows in a repr, a log or an error."""

    _reveal: Callable[[], str]

    def reveal(self) -> str:
        """Read the secret now, so that a rotated file is seen. Raises ConfigError if it is gone."""
        return self._reveal()

    def __repr__(self) -> str:
        return "Secret(***)"


@dataclass(frozen=True, slots=True)
class FieldChoice:
    """What a tenant changed about one canonical field: another native name, or a value map."""

    native: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    """Canonical value -> native value, replacing the connector's own table."""


@dataclass(frozen=True, slots=True)
class KindChoice:
    """What a tenant chose about one kind that a connector must know."""

    fields: Mapping[str, FieldChoice] = field(default_factory=dict)
    watch: tuple[str, ...] = ()
    """Native fields that the tenant's filters name: return them in ``Record.native``."""
    pipeline: str | None = None
    stages: Mapping[str, tuple[str, ...]] | None = None
    """CRM stage (id or label) -> the deal stages of Propstreet that it stands for; None: the default."""
    labels: Mapping[str, str] | None = None
    """Canonical classification -> the label or role that shows it; None: the default."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Native field -> value to set on create only."""


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """One tenant's account at one system, as its file says."""

    name: str
    base_url: str | None
    login_url: str | None
    auth: Mapping[str, Secret]
    namespace: str
    """How Propstreet's external refs name the CRM of this pair."""
    kinds: Mapping[str, KindChoice] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Account:
    """Who we are at the vendor. ``id`` must never change for a connection."""

    id: str
    name: str = ""
    currency: str | None = None
    time_zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class FieldCapability:
    """How far one canonical field is carried: ``is_writable`` by update, ``is_creatable`` on create.

    ``is_readable`` is false for a field that can be given but is never shown again.
    ``vocabulary``, where given, tells how the other side's values read here: several may fall on
    one (deal stages), and one that is not named says nothing here. Records of this system carry
    the vocabulary's own words on its right-hand side. ``shares`` names another canonical field kept
    in the same native one: what a create gave for that one shows here too, and is no news.
    ``is_bare``: this system's amounts of money are all in one currency and it does not tell which,
    so that records carry ``Money(amount, "")``; it is only ever given amounts in the currency that
    they are taken to be in.
    """

    type: FieldType
    is_writable: bool = True
    is_creatable: bool = True
    vocabulary: Mapping[str, str] | None = None
    is_readable: bool = True
    shares: str | None = None
    is_bare: bool = False


@dataclass(frozen=True, slots=True)
class KindCapability:
    """What the system offers for one kind.

    ``ref_sets``: for a kind made of references, the combinations it can hold, most specific
    first. ``is_child``: it is pulled per parent deal. ``batch``: records in one ``write`` of a
    verb. ``is_conditional``: a write with a stale version is refused by the vendor itself.
    ``can_mark``: the record can carry the other side's id. ``is_exact``: an equal ``version``
    proves equal content. ``is_current``: nothing that is read was ever overtaken, so that another
    version with an earlier time is a change committed late, and no index lagging behind.
    ``can_restore``: updating a deleted record brings it back. ``is_swept``:
    a child kind without a clock of its own, so that only a sweep shows its changes. ``one_per``:
    the kind of reference that can have only one record of this kind (one company per contact).
    ``restored_by_hand``: how a person brings back a deleted record there, if one can.
    ``rides_on``: the kind of reference whose record keeps fields of this kind (a contact its job
    title): a create of that one is told of those about to follow, as its ``riders``.
    """

    fields: Mapping[str, FieldCapability]
    batch: Mapping[Verb, int]
    read_batch: int
    ref_sets: tuple[frozenset[str], ...] = ()
    is_child: bool = False
    is_conditional: bool = False
    is_exact: bool = False
    is_current: bool = False
    can_mark: bool = True
    can_restore: bool = False
    restored_by_hand: str = ""
    is_swept: bool = False
    one_per: str | None = None
    rides_on: str | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the system offers; read once, after ``check`` has passed.

    ``pull_groups``: kinds that one ``pull`` serves together, in order. ``overlap_seconds``
    covers late commits and index lag on every pull, ``deep_overlap_seconds`` now and then.
    ``canonical_id`` brings an id of this system, as another one may have it stored, to the one
    spelling that records carry here; what is no id of this system stays as it is.
    """

    kinds: Mapping[str, KindCapability]
    pull_groups: tuple[tuple[str, ...], ...]
    quotas: tuple[Quota, ...]
    overlap_seconds: int
    deep_overlap_seconds: int
    canonical_id: Callable[[str], str] = str


@dataclass(frozen=True, slots=True)
class Parent:
    """A deal whose children are to be read: its id and, where children have their own clock, theirs.

    ``has_children``: some are known. Where none is, an empty answer takes nothing away and needs no proof.
    """

    id: str
    watermark: str | None = None
    has_children: bool = True


def _nobody(key: str, ids: Sequence[str]) -> Iterable[Address]:
    return ()


@dataclass(frozen=True, slots=True)
class Pull:
    """What to read: all kinds of one pull group, each from its watermark; None means everything.

    ``parents`` yields the deals to visit for child kinds, all of them in a sweep; it may be long, so
    take it lazily in the vendor's batch size. ``holders(key, ids)`` tells which known deals came with one of these
    ids under ``opaque[key]``, for a deal whose values come from a second resource. ``is_deep``
    asks for the deep overlap, ``is_sweep`` for what the delta does not show and a listing does:
    deletions, merges, associations. ``is_backfill``: everything is read and written once, at a
    person's word, which may wait longer than what happens every day.
    """

    kinds: tuple[str, ...]
    watermarks: Mapping[str, str | None]
    parents: Callable[[], Iterable[Parent]] = tuple
    holders: Callable[[str, Sequence[str]], Iterable[Address]] = _nobody
    is_deep: bool = False
    is_sweep: bool = False
    is_backfill: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Some records of one kind, as read.

    ``clock`` is the highest modified time among them, the vendor's own string, to become the
    watermark (of ``parent``, if given). ``complete_parents``: all children of these parents are
    in this page, so a child known before and not here is gone. ``is_listing``: the page belongs
    to a full listing, so that what the whole listing does not show is gone; the last page of
    such a listing has ``is_last``. ``refused``: records that were there but unreadable (a hostile
    id, a text beyond ``MAX_TEXT``, a number that is none); the others are not held up by them.
    """

    kind: str
    records: tuple[Record, ...]
    refused: tuple[Refusal, ...] = ()
    clock: str | None = None
    parent: str | None = None
    complete_parents: tuple[str, ...] = ()
    is_listing: bool = False
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Rider:
    """A relation that is to be created right after the record that it rides on; ``refs`` are own-side ids."""

    kind: str
    values: Values
    refs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Write:
    """One record to be written.

    ``key`` is fresh for each intent and the same for each repeat of it, fit for an idempotency
    key. ``address`` is None for a create. ``counterpart`` is the other side's id, to be stored
    as the mark; an update names it only where the mark is to be written along. ``values`` holds
    only fields that change; None clears. ``refs`` are own-side ids. ``version``,
    ``modified_at`` and ``opaque`` are those of the record as last read.

    ``riders`` of a create: see ``KindCapability.rides_on``; taking them along saves a write, leaving
    them does no harm. ``carrier`` of a create that rides: the record that carries it, as last seen.
    """

    key: str
    kind: str
    verb: Verb
    address: Address | None
    counterpart: str | None
    values: Values = field(default_factory=dict)
    refs: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None
    modified_at: datetime | None = None
    opaque: Mapping[str, Json] = field(default_factory=dict)
    riders: tuple[Rider, ...] = ()
    carrier: Record | None = None


class Verdict(StrEnum):
    """How one write went."""

    DONE = "done"
    EXISTS = "exists"
    """A create was refused because ``record`` already stands there; nothing was written."""
    STALE = "stale"
    MISSING = "missing"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    """The answer was lost or did not name this record: find out before doing anything else."""
    RETRY = "retry"
    """Refused for a passing reason (a locked row); nothing was written."""
    DELAYED = "delayed"
    """``DelayedError`` instead of an answer; nothing was written, and it may be sent after another look."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one write went. ``record`` is what the system holds now, as returned or re-read.

    ``reason`` is a code and field names, never a value. For ``DONE`` on a delete there is no record,
    except one that only others still hold there: it stands for nothing of ours any more.
    """

    key: str
    verdict: Verdict
    record: Record | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something the account lacks. ``is_required``: without it the pair cannot run."""

    code: str
    thing: str
    fix: str
    is_required: bool = True
    is_fixable: bool = False
    """``Connector.fix`` can create it."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a run moved, for ``least_calls``: records read and written by kind and verb.

    ``pulled`` counts records by kind that a pull had to return; ``parents`` visited deals per
    child kind; ``written`` counts records by (kind, verb) and ``groups`` the distinct parents
    they belong to. ``is_backfill``: all was read from the beginning.
    """

    is_backfill: bool
    pulled: Mapping[str, int]
    parents: Mapping[str, int]
    written: Mapping[tuple[str, Verb], int]
    groups: Mapping[tuple[str, Verb], int]


class Connector(Protocol):
    """One tenant's account at one system."""

    def account(self) -> Account:
        """Ask the vendor who we are. Raises AuthError."""
        ...

    def check(self) -> Sequence[Finding]:
        """Compare the account with the settings: fields, stages, labels, permissions. Reads only.

        Raises ConfigError for settings that name an unknown field, stage or label, with the
        known ones nearest to it.
        """
        ...

    def fix(self, findings: Sequence[Finding]) -> Sequence[Finding]:
        """Create what the API allows; returns what is still missing, each with what an admin must do."""
        ...

    def capabilities(self) -> Capabilities:
        """What the system offers with this account. May read the account's schema once."""
        ...

    def pull(self, request: Pull) -> Iterator[Page]:
        """Read changes, oldest first where the vendor can, deletions included, never skipping a record.

        The overlap is taken off here, since only the connector knows the clock's format.
        Records that a listing returns twice may be yielded twice. A watermark of None reads all
        and ends with a page that has ``is_listing`` and ``is_last`` (for kinds with a listing).
        """
        ...

    def read(self, kind: str, addresses: Sequence[Address]) -> Mapping[str, Record]:
        """Read records by id, at most ``read_batch`` at once, from the store that tells the truth.

        Keyed by the id asked for. A missing record comes back as a tombstone; one under another
        id came out of a merge.
        """
        ...

    def write(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        """Write records of one kind with one verb, at most ``batch[verb]``; one outcome each, any order.

        Raises RejectedError if the vendor refused the batch as a whole and wrote nothing: the
        engine bisects it. Raises UnknownOutcomeError if the answer to the batch was lost.
        """
        ...

    def find(self, writes: Sequence[Write]) -> Mapping[str, Record]:
        """What stands there now for creates whose outcome is unknown, by ``Write.key``; absent if nothing does.

        A field that holds no more than the system's own default, where the create wanted another value,
        is named in ``Record.unspoken``, as it is in the record of ``Verdict.EXISTS``.
        """
        ...

    def least_calls(self, tally: Tally) -> int:
        """The fewest HTTP calls this work could take by the vendor's own limits (see the contract's arithmetic)."""
        ...

    def close(self) -> None:
        """Let go of sockets."""
        ...


class ConnectorFactory(Protocol):
    """What the entry point is: builds a connector. Opens no connection yet."""

    def __call__(self, settings: ConnectionSettings, wire: Wire, now: Callable[[], datetime]) -> Connector: ...


def load(name: str) -> ConnectorFactory:
    """The factory registered under ``name``. Raises ConfigError naming the ones there are."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise ConfigError(f"unknown connector {name!r}; installed: {known}")
    factory: ConnectorFactory = found[name].load()
    return factory


# --- webhooks -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delivery:
    """One HTTP request that claims to be a vendor's webhook. Nothing of it is proved.

    ``url`` is the public one, as the vendor knows it, with its query and its escapes as they came.
    ``headers`` are named in lower case; ``body`` are the bytes that were signed.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hint:
    """Something of one kind moved; what, the run reads for itself.

    ``ids``: records that no listing may show yet, so that they are read by id; associations that only
    a sweep shows (``KindCapability.is_swept``) by their parent's id. A system whose listings are
    current names none. ``parents``: deals below which something moved, where each has a watermark
    of its own, so that they are visited first.
    """

    kind: str
    ids: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """What a proved delivery says.

    ``ids`` are what the delivery, or each of its parts, is known by, the same when it is repeated.
    ``account`` is the account that it says it comes from, spelt as ``Account.id``, None if it does
    not say. ``answer`` is the body that the vendor wants in return. ``tells_all``: the hints and the
    listings of changes show all of which it speaks; else a run has to look at every open deal for it.
    """

    ids: tuple[str, ...]
    hints: tuple[Hint, ...] = ()
    account: str | None = None
    answer: str = ""
    content_type: str = "text/plain"
    tells_all: bool = False


class Receiver(Protocol):
    """What the entry point of ``WEBHOOKS`` is: proves a delivery and reads what moved. Calls nobody."""

    def __call__(self, delivery: Delivery, secrets: Sequence[str], at: datetime) -> Heard:
        """Prove a delivery before anything of it is read.

        Args:
            delivery: as it came.
            secrets: at least one, several while they are rotated; any of them may prove it.
            at: now. A signature that carries a time is refused when that lies too far off.

        Raises:
            ForgedError: a wrong, missing or stale signature. The message never quotes the delivery.
            ContractError: proved, but not what the vendor's contract knows.
            ConfigError: a secret that can prove nothing.
        """
        ...


@cache
def load_receiver(name: str) -> Receiver | None:
    """The receiver registered under a connector's name, None if its vendor sends no webhooks."""
    for entry in entry_points(group=WEBHOOKS, name=name):
        receiver: Receiver = entry.load()
        return receiver
    return None


@dataclass(frozen=True, slots=True)
class Subscription:
    """Where a vendor sends webhooks. ``is_active`` is None where it does not say."""

    id: str
    url: str
    events: tuple[str, ...] = ()
    is_active: bool | None = None


@runtime_checkable
class Subscriber(Protocol):
    """What a connector can do besides, whose vendor lets webhooks be ordered by its API."""

    def subscriptions(self) -> Sequence[Subscription]:
        """All there are, whoever made them."""
        ...

    def subscribe(self, url: str) -> tuple[Subscription, str]:
        """Order all events of ours, unfiltered; also the secret, which is shown this once.

        Raises UnknownOutcomeError if the answer was lost: there may be a subscription then.
        """
        ...

    def unsubscribe(self, id_: str) -> None:
        """Send nothing more; one that is gone already is no error."""
        ...

    def replay(self, id_: str, since: datetime) -> int:
        """Ask for some deliveries that failed since then once more; how many, 0 when there are none left."""
        ...
