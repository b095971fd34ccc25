"""One seed, one history: two systems, people, weather, and the daemon between them, in virtual time.

Everything that happens is drawn from one ``Random``; the trace of it is hashed, so that the same
seed can be proved to give the same history. The daemon is the engine's own code; what
``syncd/wiring.py`` does around a run (lease, heartbeat, halts, a person's word) is done here in
the same order. ``promises.py`` looks at the world afterwards.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any, Final, Protocol

import structlog

from syncd.core.guard import Limit, Limits
from syncd.core.mapping import same, thaw
from syncd.core.merge import Flow, OnConflict, Policy
from syncd.core.model import FIELDS, KINDS, Money, Record, Side, Value, Values
from syncd.core.plan import KindRules, OnDelete, When
from syncd.engine.context import Context, PairRules, System
from syncd.engine.retry import Courier, Patience
from syncd.engine.run import Order, execute, execute_plan
from syncd.errors import (
    AuthError,
    HaltedError,
    LeaseLostError,
    PlanMovedError,
    RateLimitedError,
    SyncdError,
    TransientError,
)
from syncd.state.journal import Journal
from syncd.state.lease import TTL_SECONDS, Lease
from syncd.state.store import Store
from tests.simulation.vendors import (
    PERSON,
    READ_ONLY_LEFT,
    USED,
    Manner,
    SimConnector,
    Vendor,
    Weather,
)
from tests.simulation.webhooks import Post

START: Final = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
STAGE_ORDER: Final = ("none", "drafting", "published", "communicated")
#: How long a row may stay out of a listing that it belongs in: while its second lasts, or until it is indexed.
BLUR: Final = {
    Manner.PROPSTREET: timedelta(0),
    Manner.HUBSPOT: timedelta(seconds=120),
    Manner.SALESFORCE: timedelta(seconds=2),
}
#: What a relation is visited below, where only visits show it.
PARENTS: Final = {"employment": "contact", "deal_contact": "deal"}
_ADDED: Final = ("company", "contact", "contact", "deal", "employment", "deal_contact", "deal_contact")
CLASSES: Final = ("contacted", "interested", "bidder", "buyer", "declined")
LOG: Final = structlog.wrap_logger(None, processors=[lambda *_: (_ for _ in ()).throw(structlog.DropEvent)])


class Crash(BaseException):
    """The process died here."""


class State(Protocol):
    """Where the daemon keeps what it knows: PostgreSQL's tables or the same in memory."""

    def store(self, lease: Lease) -> Store: ...

    def acquire(self, holder: str, at: datetime) -> Lease | None: ...

    def renew(self, lease: Lease, at: datetime) -> None: ...

    def release(self, lease: Lease) -> None: ...

    def hint(self, side: Side, kind: str, parents: Collection[str]) -> None: ...

    def soil(self, side: Side, kind: str, ids: Collection[str], at: datetime) -> None: ...

    def dump(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table, by its key."""
        ...

    def settle_conflict(self, conflict_id: int, winner: Side, at: datetime) -> None: ...

    def answer_review(self, review_id: int, answer: str, candidate: str | None, at: datetime) -> None: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What a tenant's file would say, and how its two systems behave."""

    manner: Manner
    kinds: Mapping[str, KindRules]
    limits: Limits
    visits: int | None
    compare_every_seconds: float
    scope: str | None
    page: int
    is_rewriting: bool
    is_cutting: bool

    @classmethod
    def drawn(cls, random: Random, manner: Manner, limits: Random) -> Settings:
        conflict = random.choice([OnConflict.NEWEST, OnConflict.PROPSTREET, OnConflict.CRM, OnConflict.HOLD])
        scope = "real-estate" if random.random() < 0.2 else None
        kinds = {kind: _rules(random, kind, conflict, scope) for kind in KINDS}
        return cls(
            manner=manner,
            kinds=kinds,
            limits=Limits(deletes=Limit(limits.choice([1, 5]), 0.05)),
            visits=random.choice([None, None, 2, 5]),
            compare_every_seconds=random.choice([3_600.0, 86_400.0, 86_400.0]),
            scope=scope,
            page=random.choice([2, 3, 10, 50]),
            is_rewriting=random.random() < 0.3,
            is_cutting=random.random() < 0.3,
        )

    def policy(self, kind: str, name: str) -> Policy:
        """What holds for a field, as far as both systems can carry it."""
        rules = self.kinds[kind]
        return rules.policies.get(name, rules.default).within(
            left_writable=(kind, name) not in READ_ONLY_LEFT, right_writable=True
        )


def _rules(random: Random, kind: str, conflict: OnConflict, scope: str | None) -> KindRules:
    policies: dict[str, Policy] = {}
    for name in USED[kind]:
        if random.random() < 0.15:
            flow = random.choice([Flow.TO_CRM, Flow.TO_PROPSTREET, Flow.IF_EMPTY, Flow.OFF, Flow.BOTH])
            policies[name] = Policy(flow, random.choice(list(OnConflict)))
    return KindRules(
        create_in_left=When() if random.random() < 0.85 else None,
        create_in_right=random.random() < 0.9,
        deletes_to_left=random.choice([OnDelete.ARCHIVE, OnDelete.ARCHIVE, OnDelete.HOLD, OnDelete.IGNORE]),
        deletes_to_right=random.choice([OnDelete.ARCHIVE, OnDelete.ARCHIVE, OnDelete.HOLD, OnDelete.IGNORE]),
        scope=When({"pipeline": (scope,)}) if scope is not None and kind == "deal" else When(),
        policies=policies,
        default=Policy(conflict=conflict),
    )


@dataclass(slots=True)
class Tally:
    """What a history consisted of."""

    steps: int = 0
    edits: int = 0
    runs: int = 0
    crashes: int = 0
    faults: int = 0
    takeovers: int = 0
    halts: int = 0
    words: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, each.name)} {each.name}" for each in fields(self))


@dataclass(slots=True)
class _Chaos:
    """What is armed for the next run: after so many moments it strikes, once."""

    crash_in: int = 0
    takeover_in: int = 0
    commits: bool = False


class Simulation:
    """One history. ``play`` makes it; afterwards ``promises.broken`` says what did not hold."""

    def __init__(
        self, state: State, seed: int, steps: int, *, left_out: frozenset[int] = frozenset(), is_deaf: bool = False
    ):  # fmt: skip
        self.seed, self.steps, self.left_out = seed, steps, left_out
        self.random = Random(seed)
        self.state = state
        self.at = START
        self.drift = timedelta(0)
        """How far the daemon's clock is off."""
        manner = Manner.HUBSPOT if seed % 2 else Manner.SALESFORCE
        self.settings = Settings.drawn(self.random, manner, Random(f"{seed} limits"))
        self.hub = Vendor(Manner.PROPSTREET, "p", self._vendor_clock, self.random, page=self.settings.page)
        self.crm = Vendor(
            self.settings.manner, "c", self._vendor_clock, self.random, self._normalised, page=self.settings.page
        )
        self.post: Post | None = None
        """The webhooks, in histories that have them; ``is_deaf`` ones never do."""
        if not is_deaf and Random(f"{seed} deaf").random() < 0.6:
            self.post = Post(seed, self.vendors, self._vendor_clock)
        self.tally = Tally()
        self.wrongs: list[str] = []
        self.trail: list[str] = []
        self._hash = hashlib.sha256()
        self._serial = 0
        self._ids = 0
        self._rate = 0.0
        self._chaos = _Chaos()
        self._fence = 0
        self._running: list[Lease] = []
        self._halted: HaltedError | None = None
        self._is_waived = False
        self._is_calm = False
        self._is_anew_due = False
        self.waived: set[str] = set()
        """Runs that a person let go whatever the brakes say."""
        self._saved_plan: str | None = None

    # --- time, ids, trace -------------------------------------------------------------

    def now(self) -> datetime:
        """The daemon's clock."""
        return self.at + self.drift

    def _vendor_clock(self) -> datetime:
        return self.at

    def sleep(self, seconds: float) -> None:
        until = self.at + timedelta(seconds=seconds)
        self._hear(until)
        self.at = until

    def _hear(self, until: datetime) -> None:
        """What webhooks tell arrives, and is kept as the intake keeps it: no run is asked whether it suits."""
        for word in self.post.arriving(until) if self.post is not None else ():
            self.at = max(self.at, word.due_at)
            self.tally.words += 1
            self.note("heard", word.side, word.kind, *word.ids, *word.parents)
            if word.parents:
                self.state.hint(word.side, word.kind, word.parents)
            if word.ids:
                self.state.soil(word.side, word.kind, word.ids, self.now())

    def new_id(self) -> str:
        self._ids += 1
        return f"id-{self._ids:07d}"

    def note(self, *told: object) -> None:
        line = " ".join(map(str, told))
        self._hash.update(line.encode())
        self.trail.append(line)

    @property
    def trace(self) -> str:
        return self._hash.hexdigest()

    @property
    def vendors(self) -> dict[Side, Vendor]:
        return {Side.LEFT: self.hub, Side.RIGHT: self.crm}

    # --- the history ------------------------------------------------------------------

    def play(self) -> None:
        """All of it: a portfolio, steps drawn at random, and the calm afterwards."""
        self._found()
        acts: list[tuple[Callable[[], None], int]] = [
            (self._somebody, 110), (self._run, 30), (self._tick, 20), (self._wait, 24), (self._storm, 10),
            (self._run_and_crash, 12), (self._run_and_lose_lease, 5), (self._jump, 2), (self._plan_and_apply, 4),
            (self._answer, 6), (self._mass_delete, 1), (self._run_blind, 1),
        ]  # fmt: skip
        if self.post is not None:
            acts += [(self._wake, 24), (self._run_unreadable, 1)]
        script = Random(f"{self.seed} script")
        chosen = script.choices([act for act, _ in acts], [weight for _, weight in acts], k=self.steps)
        for number, act in enumerate(chosen):
            # Each step has chances of its own: what stays of a history is the same when others are left out.
            self.random.seed(f"{self.seed} {number}")
            if self.post is not None:
                self.post.begin_step(number)
            if number not in self.left_out:
                self.tally.steps += 1
                act()
        self.calm()

    def _found(self) -> None:
        for _ in range(self.random.randrange(2, 9)):
            self._add(self.random.choice(list(Side)), self.random.choice(["company", "contact", "deal"]))
        for _ in range(self.random.randrange(3)):
            self._add(Side.LEFT, self.random.choice(["employment", "deal_contact"]))

    def calm(self) -> None:
        """The last edit was made: faults end, all becomes visible, and the daemon gets three runs."""
        self._is_calm = True
        self._rate, self._chaos = 0.0, _Chaos()
        self.drift = timedelta(0)
        self.crm.lag = timedelta(0)
        # A deep look is due by now, even if the last one was noted by a clock that was an hour fast.
        self.sleep(8_000)
        for vendor in self.vendors.values():
            for kind in KINDS:
                vendor.visible(kind)
        self.note("calm")
        # Closed deals are visited every hour: the last one comes after that.
        for seconds in (400, 4_000, 400):
            self._attempt(is_waived=True)
            self.sleep(seconds)

    def further_run(self, *, after_seconds: float) -> None:
        """One more run after the last, which should find nothing to do."""
        self.sleep(after_seconds)
        self._attempt()

    # --- people -----------------------------------------------------------------------

    def _somebody(self, sides: tuple[Side, ...] = (Side.LEFT, Side.RIGHT)) -> None:
        """One person does one thing on one side."""
        side = self.random.choice(sides)
        if self.settings.is_rewriting and Side.RIGHT in sides and self.random.random() < 0.2:
            self._automate()
            return
        what = self.random.choices(
            ["edit", "add", "remove", "restore", "merge", "foreign", "close", "pipeline"],
            [120, 45, 8, 4, 4, 3, 3, 3],
        )[0]
        self.tally.edits += 1
        match what:
            case "edit":
                self._edit(side)
            case "add":
                self._add(side, self.random.choice(_ADDED))
            case "remove":
                self._remove(side)
            case "restore":
                self._restore(side)
            case "merge":
                self._merge()
            case "foreign":
                self._foreign()
            case "close":
                self._close()
            case "pipeline":
                self._move_pipeline()

    def _late(self) -> timedelta:
        return timedelta(seconds=self.random.choice([0, 0, 0, 0, 40, 250, 1_500]))

    def _edit(self, side: Side) -> None:
        vendor = self.vendors[side]
        kind = self.random.choice(["company", "contact", "contact", "deal", "deal", "deal_contact", "employment"])
        known = [r for r in vendor.living(kind) if vendor.row(kind, r.id) is not None]
        if not known:
            return
        record = self.random.choice(known)
        if side is Side.LEFT and (record.locked or self._is_closed(record.refs.get("deal"))):
            return
        names = list(USED[kind])
        if side is Side.RIGHT and kind == "employment" and self.settings.manner is Manner.HUBSPOT:
            names = ["job_title"]
        values = {name: self._value(kind, name, side, record.values.get(name)) for name in self.random.sample(names, 1)}
        if "email" in values and any(each.values.get("email") == values["email"] for each in vendor.living("contact")):
            return
        late = self._late()
        self.note("edit", side, kind, record.id, *values, late.seconds)
        vendor.edit(kind, record.id, values, late=late)

    def _value(self, kind: str, name: str, side: Side, before: Value) -> Value:
        """Something new to say; text is never said twice."""
        if self.random.random() < 0.12 and name not in ("name", "email", "last_name", "stage", "classification"):
            return None
        self._serial += 1
        match name:
            case "tags":
                held = set(before) if isinstance(before, frozenset) else set()
                if held and self.random.random() < 0.4:
                    held.discard(self.random.choice(sorted(held)))
                else:
                    held.add(f"t{self._serial}")
                return frozenset(held) or None
            case "email":
                return f"c{self.random.randrange(30)}@x.se"
            case "domain":
                return f"d{self.random.randrange(12)}.se"
            case "phone":
                return f"+46 8 {100000 + self._serial}"
            case "amount":
                return Money(Decimal(1000 + self._serial), "SEK")
            case "property_count":
                return Decimal(self._serial)
            case "verified_at":
                return START + timedelta(seconds=self._serial, microseconds=self._serial)
            case "stage":
                return (
                    self.random.choice(STAGE_ORDER)
                    if side is Side.LEFT
                    else self.random.choice(["early", "offer", "talks"])
                )
            case "classification":
                return self.random.choice(CLASSES)
            case "strategy":
                return f"strategy {self._serial} of some length"
        return f"{name} {self._serial}"

    def _add(self, side: Side, kind: str) -> None:
        vendor = self.vendors[side]
        refs: dict[str, str] = {}
        ends = {"employment": ("contact", "company"), "deal_contact": ("deal", "contact")}.get(kind, ())
        for end in ends:
            known = [r for r in vendor.living(end) if vendor.row(end, r.id) is not None]
            if not known:
                return
            refs[end] = self.random.choice(known).id
        if ends:
            others = vendor.living(kind)
            is_there = any(dict(each.refs) == refs for each in others) or any(
                (row := vendor.rows[kind].get(each)) is not None and not row.record.is_deleted
                for each in ["~".join(refs[end] for end in ends)]
            )
            is_full = (
                kind == "employment"
                and vendor.manner is Manner.SALESFORCE
                and any(each.refs["contact"] == refs["contact"] for each in others)
            )
            if is_there or is_full or self._is_closed(refs.get("deal") if side is Side.LEFT else None):
                return
            if vendor.manner is not Manner.PROPSTREET and vendor._new_id(kind, refs) in vendor.rows[kind]:
                self._revive(vendor, kind, refs)
                return
        values = {name: self._value(kind, name, side, None) for name in USED[kind]}
        if "email" in values and any(each.values.get("email") == values["email"] for each in vendor.living("contact")):
            return
        if "domain" in values and any(
            each.values.get("domain") == values["domain"] for each in vendor.living("company")
        ):
            return
        native: dict[str, str | None] = {}
        if kind == "deal" and side is Side.RIGHT:
            native = {"pipeline": self.random.choice(["real-estate", "real-estate", "other"])}
        late = self._late()
        id_ = vendor.add(kind, values, refs=refs, native=native, late=late)
        self.note("add", side, kind, id_, late.seconds)

    def _revive(self, vendor: Vendor, kind: str, refs: Mapping[str, str]) -> None:
        """An association made once more is the same association."""
        id_ = vendor._new_id(kind, refs)
        if vendor.rows[kind][id_].record.is_deleted:
            row = vendor.rows[kind][id_]
            row.record = replace(row.record, is_deleted=False, refs=dict(refs))
            vendor._put(row, {name: self._value(kind, name, Side.RIGHT, None) for name in USED[kind]}, PERSON)
            self.note("revive", kind, id_)

    def _is_closed(self, deal: str | None) -> bool:
        row = self.hub.rows["deal"].get(deal or "")
        return row is not None and bool(row.record.locked)

    def _remove(self, side: Side) -> None:
        vendor = self.vendors[side]
        kind = self.random.choice(["deal_contact", "deal_contact", "employment", "contact", "company", "deal"])
        known = [r for r in vendor.living(kind) if vendor.row(kind, r.id) is not None]
        if known:
            record = self.random.choice(known)
            if side is Side.LEFT and (record.locked or self._is_closed(record.refs.get("deal"))):
                return
            self.note("remove", side, kind, record.id)
            vendor.remove(kind, record.id)

    def _restore(self, side: Side) -> None:
        vendor = self.vendors[side]
        kind = self.random.choice(["contact", "company", "deal"])
        gone = [
            row.record for row in vendor.rows[kind].values() if row.record.is_deleted and not row.record.merged_into
        ]
        living = {each.values.get("email") for each in vendor.living("contact")}
        gone = [each for each in gone if each.values.get("email") is None or each.values.get("email") not in living]
        marks = {each.mark for each in vendor.living(kind) if each.mark}
        gone = [each for each in gone if each.mark not in marks]
        if gone:
            record = self.random.choice(gone)
            self.note("restore", side, kind, record.id)
            vendor.restore(kind, record.id)

    def _merge(self) -> None:
        """Somebody merges two records in the CRM; Propstreet has no merge (contract)."""
        kind = self.random.choice(
            ["contact", "company"] if self.settings.manner is Manner.SALESFORCE else ["contact", "company", "deal"]
        )
        known = [r for r in self.crm.living(kind) if self.crm.row(kind, r.id) is not None]
        if len(known) >= 2:
            winner, loser = self.random.sample(known, 2)
            self.note("merge", kind, winner.id, loser.id)
            self.crm.merge(kind, winner.id, loser.id)

    def _foreign(self) -> None:
        """Another system stores its ref on a project or contact."""
        kind = self.random.choice(["company", "contact", "deal"])
        known = self.hub.living(kind)
        if known:
            row = self.hub.rows[kind][self.random.choice(known).id]
            self._serial += 1
            row.foreign |= {f"erp:{self._serial}"}
            row.given |= {f"erp:{self._serial}"}
            self.note("foreign", kind, row.record.id)

    def _close(self) -> None:
        known = [r for r in self.hub.living("deal") if self.hub.row("deal", r.id) is not None]
        if known:
            record = self.random.choice(known)
            locked = {} if record.locked else {"*": "closed"}
            self.note("close", record.id, bool(locked))
            self.hub.change("deal", record.id, locked=locked)

    def _move_pipeline(self) -> None:
        known = [r for r in self.crm.living("deal") if self.crm.row("deal", r.id) is not None]
        if known:
            record = self.random.choice(known)
            to = "other" if record.native.get("pipeline") == "real-estate" else "real-estate"
            self.note("pipeline", record.id, to)
            self.crm.change("deal", record.id, native={"pipeline": to})

    def _answer(self) -> None:
        """A person settles what waits for one."""
        waiting = [row for row in self.state.dump("conflict") if row["settled_at"] is None]
        asked = [row for row in self.state.dump("match_review") if row["answered_at"] is None]
        if waiting and (not asked or self.random.random() < 0.5):
            row = self.random.choice(waiting)
            winner = self.random.choice(list(Side))
            self.note("settle", row["kind"], row["field"], winner)
            self.state.settle_conflict(row["id"], winner, self.now())
        elif asked:
            row = self.random.choice(asked)
            answer = self.random.choice(["same", "never", "create"])
            free = [each["id"] for each in row["candidates"] if each["linked_to"] is None]
            if answer == "same" and not free:
                return
            self.note("answer", row["kind"], row["record_id"], answer)
            self.state.answer_review(row["id"], answer, free[0] if answer == "same" else None, self.now())

    def _mass_delete(self) -> None:
        """Somebody clears out: half of a kind at once."""
        side = self.random.choice(list(Side))
        kind = self.random.choice(["contact", "company", "deal_contact"])
        known = [r for r in self.vendors[side].living(kind) if self.vendors[side].row(kind, r.id) is not None]
        for record in self.random.sample(known, len(known) // 2):
            is_closed = record.locked or self._is_closed(record.refs.get("deal"))
            if not (side is Side.LEFT and is_closed) and self.vendors[side].row(kind, record.id) is not None:
                self.note("remove", side, kind, record.id)
                self.vendors[side].remove(kind, record.id)

    def _run_blind(self) -> None:
        """A permission is gone when all is compared: a system shows nothing of a kind, in no listing and by no id."""
        vendor = self.random.choice(list(self.vendors.values()))
        kind = self.random.choice(["company", "contact", "deal"])
        self.note("blind", vendor.prefix, kind)
        vendor.hidden = kind
        vendor.denied[kind] += 1
        self.sleep(self.settings.compare_every_seconds)
        self._attempt()
        vendor.hidden = None
        # A person gives the permission back, and has all compared anew: nothing else tells what is visible again.
        self._halted, self._is_anew_due = None, True

    def _run_unreadable(self) -> None:
        """The same between two comparisons: webhooks speak of records that cannot be read by their ids."""
        vendor = self.random.choice(list(self.vendors.values()))
        kind = self.random.choice(["company", "contact", "deal"])
        known = [record.id for record in vendor.living(kind)]
        told = self.random.sample(known, self.random.randrange(len(known) + 1))
        self.note("unreadable", vendor.prefix, kind, *told)
        vendor.hidden = kind
        vendor.denied[kind] += 1
        assert self.post is not None
        self.post.tell(Side.LEFT if vendor is self.hub else Side.RIGHT, kind, told)
        self._hear(self.at)
        self._attempt(is_sweep=False)
        vendor.hidden = None
        self._halted, self._is_anew_due = None, True

    def _normalised(self, name: str, value: Value) -> Value:
        """How the CRM keeps what it is given."""
        if isinstance(value, datetime):
            return value.replace(microsecond=0)
        if isinstance(value, str):
            if self.settings.is_cutting and name == "strategy":
                return value[:14]
            if name == "phone":
                return value.replace(" ", "")
        return value

    def _automate(self) -> None:
        """A workflow of the CRM rewrites a text that we wrote a moment ago."""
        texts = ("name", "last_name", "strategy", "job_title")
        written = [
            (wrote.kind, wrote.id, name, value)
            for wrote in self.crm.wrote[-5:]
            for name, (_, value) in wrote.values.items()
            if name in texts and wrote.verb != "delete" and isinstance(value, str)
        ]
        if not written:
            return
        kind, id_, name, value = self.random.choice(written)
        row = self.crm.row(kind, id_)
        if row is not None and not row.record.is_deleted and row.record.values.get(name) == value:
            self._serial += 1
            self.note("automation", kind, id_, name)
            self.crm.edit(kind, id_, {name: f"checked {self._serial} {value}"})

    # --- the weather ------------------------------------------------------------------

    def _wait(self) -> None:
        self.sleep(self.random.choice([0.001, 1, 30, 120, 400, 4_000]))
        self.crm.lag = timedelta(seconds=self.random.choice([0, 0, 5, 20, 90]))

    def _storm(self) -> None:
        self._rate = self.random.choice([0.0, 0.0, 0.02, 0.1, 0.4])

    def _jump(self) -> None:
        """The daemon's clock is set wrong, or right again."""
        before = self.drift
        self.drift = timedelta(seconds=self.random.choice([0, 0, 3_000, -3_000, 90_000]))
        self.note("clock", self.drift.total_seconds())
        if self.post is not None and self.drift > before:
            # By its clock the daemon was told of these longer ago than any index lags behind.
            self.post.gone.clear()

    def _partial(self, count: int) -> frozenset[int]:
        if self._rate and count > 1 and self.random.random() < self._rate:
            self.tally.faults += 1
            return frozenset(self.random.sample(range(count), self.random.randrange(1, count)))
        return frozenset()

    def _noise(self) -> bool:
        return not self._is_calm and self.random.random() < 0.02

    def _strike(self, vendor: Vendor, moment: str, method: str, kind: str, count: int) -> None:
        """Whatever may happen at one moment of one call."""
        self.at += timedelta(microseconds=self.random.choice([0, 0, 700, 3_000]))
        self.note(vendor.prefix, moment, method, kind, count)
        self._hear(self.at)
        if moment == "before":
            vendor.is_late = False
        if self._is_calm:
            return
        is_write = method in ("create", "update", "delete", "mark")
        if is_write and moment == "before":
            self._see_fence()
        self._tick_chaos(is_racing=vendor is self.crm and is_write and moment == "before")
        is_race = vendor is self.crm and (
            (is_write and moment != "after") or (method in ("read", "find") and moment == "after")
        )
        if not is_race and moment != "amid" and self.random.random() < 0.04:
            self._somebody()
        if self._rate and self.random.random() < self._rate:
            self._fail(moment, is_write=is_write)

    def _fail(self, moment: str, *, is_write: bool) -> None:
        self.tally.faults += 1
        if moment == "before":
            trouble = self.random.choice(["down", "down", "slow down", "token"])
            if trouble == "slow down":
                raise RateLimitedError("simulated", pause_seconds=self.random.choice([1.0, 10.0, None]))
            if trouble == "token" and self.random.random() < 0.1:
                raise AuthError("simulated: the token was revoked")
            raise TransientError("simulated: down")
        raise TransientError("simulated: the answer was lost", is_sent=True)

    def _see_fence(self) -> None:
        """Who lost the lease may land the one call that was on its way, and starts no other."""
        if self._running and self._running[-1].fence < self._fence:
            self.wrongs.append("isolation: a write was begun under a lost lease")

    def _tick_chaos(self, *, is_racing: bool) -> None:
        if self._chaos.crash_in:
            self._chaos.crash_in -= 1
            if not self._chaos.crash_in:
                self.tally.crashes += 1
                self.note("crash")
                raise Crash
        if self._chaos.takeover_in:
            self._chaos.takeover_in -= 1
            if not self._chaos.takeover_in:
                self._take_over()

    def _take_over(self) -> None:
        """The holder is paused here, its lease lapses, another replica runs the pair, and it wakes up again."""
        self.tally.takeovers += 1
        self.note("takeover")
        paused, rate, self._rate = self._running, self._rate, 0.0
        self._running = []
        self.sleep(TTL_SECONDS + 1)
        self._attempt(holder="b")
        self._running, self._rate = paused, rate
        for vendor in self.vendors.values():
            vendor.forget()  # what the sleeper read is news of yesterday
            vendor.is_late = True

    # --- the daemon -------------------------------------------------------------------

    def _run(self) -> None:
        self._attempt()

    def _tick(self) -> None:
        """A scheduled run, or one that webhooks brought about: some of these come twice, late, or not at all."""
        told = sorted(each.id for each in self.hub.living("deal"))
        for _ in range(self.random.choice([0, 0, 1, 3])):
            hints = self.random.choices([*told, "nowhere"], k=self.random.randrange(1, 5))
            self.note("webhook", *hints)
            self.state.hint(Side.LEFT, "deal_contact", hints)
        for _ in range(self.random.choice([1, 1, 2])):
            self._attempt(is_sweep=False, visits=self.settings.visits)

    def _wake(self) -> None:
        """Words arrive and bring a run about, sooner or later."""
        self.sleep(self.random.choice([0.0, 1.0, 20.0, 90.0]))
        self._attempt(is_sweep=False, is_told=True, visits=self.settings.visits)

    def _run_and_crash(self) -> None:
        self._chaos = _Chaos(crash_in=self.random.randrange(1, 60), commits=True)
        try:
            self._attempt()
        except Crash:
            self._running = []
            if self.random.random() < 0.8:
                self.sleep(TTL_SECONDS + 1)
        finally:
            self._chaos = _Chaos()

    def _run_and_lose_lease(self) -> None:
        self._chaos = _Chaos(takeover_in=self.random.randrange(1, 40))
        self._attempt()
        self._chaos = _Chaos()

    def on_commit(self, moment: str) -> None:
        """To be called by the state ``before`` and ``after`` each transaction that changes something, if it can."""
        if self._chaos.commits and not self._is_calm:
            self._tick_chaos(is_racing=False)

    def _plan_and_apply(self) -> None:
        """A person looks at a plan, waits, and says go."""
        self._attempt(reason="plan")
        plan, self._saved_plan = self._saved_plan, None
        for _ in range(self.random.choice([0, 0, 1, 3])):
            self._somebody()
        if plan is not None:
            self._attempt(reason="apply", plan_id=plan)

    def _attempt(
        self, *, reason: str = "run", plan_id: str | None = None, is_sweep: bool = True, visits: int | None = None,
        is_waived: bool = False, holder: str = "a", is_told: bool = False,
    ) -> None:  # fmt: skip
        """One run as ``run_pair`` makes it."""
        if self._halted is not None and reason == "run" and not is_waived:
            if self.random.random() < 0.5:
                return
            # A person has looked at why it halted and says go.
            self._is_waived, self._halted = True, None
        held = self.state.acquire(holder, self.now())
        if held is None:
            self.note("busy")
            return
        self.tally.runs += 1
        run_id = self.new_id()
        self._fence = held.fence
        self._running.append(held)
        is_released = is_waived or self._is_waived
        if is_released:
            self.waived.add(run_id)
        links, gone = self.state.dump("link"), set(self.post.gone) if self.post is not None else set()
        before = {side: len(vendor.wrote) for side, vendor in self.vendors.items()}
        try:
            self._run_under(held, run_id, reason, plan_id, is_sweep, visits, is_released, is_told=is_told)
        finally:
            if self._running and self._running[-1] is held:
                self._running.pop()
            self._see_watermarks()
            self._see_words(links)
            self._see_revived(gone, before)
        self.state.release(held)
        if reason != "apply" and not is_released:
            self._see_brakes(run_id)

    def _see_brakes(self, run_id: str) -> None:
        """No plan that nobody let go deletes more than the limit of its tenant."""
        plans = {row["id"] for row in self.state.dump("plan") if row["run"] == run_id}
        linked = Counter(row["kind"] for row in self.state.dump("link"))
        deleted = Counter(
            (row["plan"], row["kind"], row["side"])
            for row in self.state.dump("operation")
            if row["plan"] in plans and row["verb"] == "delete" and row["state"] == "done"
        )
        for (_, kind, side), count in deleted.items():
            if not self.settings.limits.deletes.allows(count, linked[kind] + count):
                self.wrongs.append(f"brakes: a plan deleted {count} {kind} ({side})")

    def _see_words(self, before: Sequence[Mapping[str, Any]]) -> None:
        """What webhooks spoke of is dirty until it was asked for, wherever the run ended."""
        if self.post is None:
            return
        linked = {(row["kind"], row["right_id"]) for row in before}
        linked &= {(row["kind"], row["right_id"]) for row in self.state.dump("link")}

        def is_read(side: Side, kind: str, id_: str) -> bool:
            if side is Side.LEFT:
                return False  # its lists are from the records themselves
            if self.settings.manner is Manner.HUBSPOT and kind in PARENTS:
                # Only what is linked is visited, all the while, and is there.
                of = PARENTS[kind]
                above = self.crm.rows[of].get(id_)
                is_there = above is not None and not above.was_deleted and of not in self.crm.denied
                return is_there and (of, id_) in linked
            return True

        self.wrongs += self.post.forgotten(self.state.dump("dirty"), is_read)

    def _see_revived(self, gone: Collection[tuple[Side, str, str]], before: Mapping[Side, int]) -> None:
        """What was told to be gone before a run began is not made anew by it, whatever an index shows."""
        for side, vendor in self.vendors.items():
            for wrote in vendor.wrote[before[side] :]:
                source = (side.other, wrote.kind, vendor.rows[wrote.kind][wrote.id].made_for or "")
                if wrote.verb == "create" and source in gone and self.post is not None and source in self.post.gone:
                    self.wrongs.append(f"hints: {side} {wrote.kind} {wrote.id} was made for what was told to be gone")

    def _see_watermarks(self) -> None:
        """What a watermark has passed is written down, wherever the run ended.

        Not what was committed late, nor what a system denied having.
        """
        for feed in self.state.dump("feed"):
            side, kind = Side(feed["side"]), feed["kind"]
            vendor = self.vendors[side]
            if feed["parent"] or feed["watermark_at"] is None or kind in vendor.denied:
                continue
            passed = feed["watermark_at"] - BLUR[vendor.manner]
            known = self._written_down(side, kind)
            for row in vendor.rows[kind].values():
                record = row.record
                is_passed = record.modified_at is not None and record.modified_at < passed
                is_late = row.was_late or row.pending is not None
                if is_passed and not is_late and not record.is_deleted and not self._is_known(record, known):
                    self.wrongs.append(f"state: a watermark passed {side} {kind} {record.id}, which nobody wrote down")

    def _written_down(self, side: Side, kind: str) -> dict[str, Values]:
        """The records of one side as the daemon remembers them, by id."""
        links = [row for row in self.state.dump("link") if row["kind"] == kind]
        sightings = [row for row in self.state.dump("sighting") if (row["side"], row["kind"]) == (side, kind)]
        known = {row[f"{side}_id"]: thaw(row[f"{side}_base"]) for row in links}
        return known | {row["id"]: thaw(row["values"]) for row in sightings}

    def _is_known(self, record: Record, known: Mapping[str, Values]) -> bool:
        """Whether all that a record says in the fields of the pair is remembered of it."""
        held, types = known.get(record.id), FIELDS[record.kind]
        return held is not None and all(
            name in held and same(types[name], value, held[name])
            for name, value in record.values.items()
            if self.settings.policy(record.kind, name).flow is not Flow.OFF
        )

    def _run_under(
        self,
        held: Lease,
        run_id: str,
        reason: str,
        plan_id: str | None,
        is_sweep: bool,
        visits: int | None,
        is_waived: bool,
        *,
        is_told: bool,
    ) -> None:
        store = self.state.store(held)
        journal = Journal(store)
        self.note("run", reason, run_id, held.fence)
        outcome = "failed"
        try:
            journal.begin_run(run_id, reason, self.now())
            ctx = self._context(held, run_id, store, journal, visits, is_waived, is_dry=reason == "plan")
            if reason == "apply":
                self._apply_saved(ctx, str(plan_id))
            else:
                anew = self.now() if self._is_anew_due else None
                made = execute(
                    ctx,
                    Order(
                        reason,  # type: ignore[arg-type]  # one of its words
                        is_approved=True,
                        is_waived=is_waived,
                        anew_before=anew,
                        is_sweep=is_sweep,
                        is_told=is_told,
                    ),
                )
                self._is_anew_due = False
                self._saved_plan = made if reason == "plan" else None
            outcome = "done"
            if is_waived and reason != "plan":
                self._is_waived, self._halted = False, None
        except HaltedError as exc:
            self.tally.halts += 1
            outcome, self._halted = "halted", exc
        except LeaseLostError:
            self.note("lost the lease")
            return
        except SyncdError as exc:
            self.note("failed", type(exc).__name__)
            self.sleep(self.random.choice([1, 60]))
        self.note(outcome)
        try:
            journal.end_run(run_id, outcome, self.now(), {}, {}, "")
        except LeaseLostError:
            self.note("lost the lease")

    def _apply_saved(self, ctx: Context, plan_id: str) -> None:
        """What a plan shows is what apply does, or apply refuses."""
        before = [len(vendor.wrote) for vendor in self.vendors.values()]
        try:
            execute_plan(ctx, plan_id)
        except PlanMovedError:
            if before != [len(vendor.wrote) for vendor in self.vendors.values()]:
                self.wrongs.append("the plan is the truth: a refused plan wrote")
            raise

    def _context(
        self,
        held: Lease,
        run_id: str,
        store: Store,
        journal: Journal,
        visits: int | None,
        is_waived: bool,
        *,
        is_dry: bool,
    ) -> Context:
        beat = _Heartbeat(self, held)
        systems = {}
        for side, vendor in self.vendors.items():
            courier = Courier(Patience(self.now, self.sleep, self.random), is_dry=is_dry, on_beat=beat)
            weather = Weather(_bound(self._strike, vendor), self._partial, self._noise)
            connector = SimConnector(vendor, courier, weather)
            systems[side] = System(connector, courier, connector.capabilities())
        return Context(
            pair=held.pair,
            run_id=run_id,
            rules=PairRules(
                self.settings.kinds, self.settings.limits, visits=visits, is_waived=is_waived,
                compare_every_seconds=self.settings.compare_every_seconds,
            ),
            systems=systems,
            store=store,
            now=self.now,
            new_id=self.new_id,
            log=LOG,
        )  # fmt: skip


def _bound(strike: Callable[..., None], vendor: Vendor) -> Callable[[str, str, str, int], None]:
    return lambda moment, method, kind, count: strike(vendor, moment, method, kind, count)


class _Heartbeat:
    """Renews the lease as ``wiring`` does: at a third of its life, before the next call."""

    def __init__(self, simulation: Simulation, held: Lease):
        self._simulation, self._held = simulation, held
        self._due = simulation.now() + timedelta(seconds=TTL_SECONDS / 3)

    def __call__(self) -> None:
        now = self._simulation.now()
        if now >= self._due:
            self._simulation.state.renew(self._held, now)
            self._due = now + timedelta(seconds=TTL_SECONDS / 3)
