"""How everything stands at one instant, for those who look from outside: metrics and notices.

Set-based and read only, on connections of their own: a pool that is used up is no outage, and a slow
statement is cut off. What is set aside on purpose, by a setting or for a person, is no delay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from psycopg.errors import QueryCanceled
from sqlalchemy import Connection, Engine, Row, TextClause, create_engine, exc, text

from syncd.core.model import LinkState
from syncd.state.pairs import LONGEST_REST
from syncd.state.store import SETTLING

T = TypeVar("T")

Standing: TypeAlias = Literal[
    "paused", "unapproved", "halted", "resting", "refused", "failing", "running", "idle"
]  # fmt: skip
#: A pair is in exactly one of these: the first that is true of it.
STANDINGS: Final[tuple[Standing, ...]] = (
    "paused", "unapproved", "halted", "resting", "refused", "failing", "running", "idle",
)  # fmt: skip
#: A pair fails when so many runs in a row did, or for so long.
FAILURES: Final = 3
FAILING_AFTER: Final = timedelta(minutes=15)

#: No look takes longer; and what was read is not read again sooner than this, or than so many times what it took.
STATEMENT_SECONDS: Final = 5
KEPT_SECONDS: Final = 5.0
KEPT_FOLD: Final = 50.0


def aside(engine: Engine) -> Engine:
    """The same database by few connections of their own, for looks that must neither wait long nor be in the way."""
    limits = {
        "connect_timeout": 2,
        # An answer that is lost with its server is not waited for.
        "keepalives_idle": 2,
        "keepalives_interval": 1,
        "keepalives_count": 3,
        "tcp_user_timeout": 5_000,
    }
    return create_engine(
        engine.url, pool_size=2, max_overflow=1, pool_timeout=2, pool_pre_ping=True, hide_parameters=True,
        connect_args=limits,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PairGauge:
    """How one pair stands."""

    standing: Standing
    reason: str | None
    """Why it halted, if it did: counts and kinds."""
    plan: str | None
    """The plan that waits for a person since then."""
    resting_until: datetime | None
    failures: int
    """Runs that failed in a row, the last one among them."""
    failing_since: datetime | None
    error: str | None
    good_at: datetime | None
    """When its last run ended that ended well; before the first one, when it was approved."""
    last_run_seconds: float | None
    plans_waiting: int


@dataclass(slots=True)
class KindGauge:
    """What one kind of one pair holds that is not in step, by number of records."""

    backlog: int = 0
    """Seen to differ, and neither settled yet nor set aside."""
    oldest_at: datetime | None = None
    """Since when the oldest of these has been news; those left out that are too young to travel by a setting."""
    conflicts: int = 0
    reviews: int = 0
    dead_letters: int = 0
    excluded: int = 0
    links: dict[str, int] = field(default_factory=dict)
    """By state, without those in step."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """One look. ``kinds`` has no entry where there is nothing to say."""

    at: datetime
    pairs: Mapping[str, PairGauge]
    kinds: Mapping[tuple[str, str], KindGauge]


def look(engine: Engine, at: datetime, *, with_backlog: bool = True) -> Gauges:
    """How every pair stands, and what waits in it. Raises TimeoutError if that takes too long.

    The backlog is what costs most while a backfill goes on; not everybody needs it.
    """
    with _bounded(engine) as tx:
        pairs = {row.id: _pair(row, at) for row in tx.execute(_PAIRS, {"at": at, "longest": at + LONGEST_REST})}
        return Gauges(at, pairs, _kinds(tx, [_BACKLOG, _COUNTS] if with_backlog else [_COUNTS]))


def count_links(engine: Engine) -> dict[tuple[str, str], int]:
    """All links by pair and kind, in step or not."""
    with _bounded(engine) as tx:
        return {(row.pair, row.kind): row.number for row in tx.execute(_LINKS)}


@contextmanager
def _bounded(engine: Engine) -> Iterator[Connection]:
    """Raises TimeoutError for a database that answers, but not in time."""
    try:
        with engine.connect() as tx:
            tx.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'"))
            yield tx
    except exc.TimeoutError as late:
        raise TimeoutError("no connection was free in time") from late
    except exc.OperationalError as late:
        if isinstance(late.orig, QueryCanceled):
            raise TimeoutError("a look at the database was cut off") from late
        raise


class Kept(Generic[T]):
    """An answer that is asked for again only after a while, the longer the more it costs.

    For one caller at a time: it holds no lock.
    """

    def __init__(self, ask: Callable[[], T], now: Callable[[], datetime]):
        self._ask, self._now = ask, now
        self._answer: T | None = None
        self._asked_at: datetime | None = None
        self._seconds = 0.0

    def get(self) -> T:
        """The last answer if it is young enough, else a new one. What asking raises leaves no answer behind."""
        now = self._now()
        age = (now - self._asked_at).total_seconds() if self._asked_at is not None else -1.0
        if self._answer is not None and 0 <= age < self._seconds:
            return self._answer
        self._answer = None
        found = self._ask()
        self._answer, self._asked_at = found, now
        self._seconds = max(KEPT_SECONDS, KEPT_FOLD * (self._now() - now).total_seconds())
        return found


def _pair(row: Row[Any], at: datetime) -> PairGauge:
    is_failing = row.failures >= FAILURES or (row.failures > 0 and at - row.failing_since > FAILING_AFTER)
    truths: dict[Standing, bool] = {
        "paused": row.paused_at is not None,
        "unapproved": row.approved_at is None,
        "halted": row.halted_reason is not None,
        "resting": row.resting_until is not None,
        "refused": row.failures > 0 and row.error == "AuthError",
        "failing": is_failing,
        "running": row.is_running,
    }
    good_at = max((each for each in (row.good_at, row.approved_at) if each is not None), default=None)
    return PairGauge(
        standing=next((each for each in STANDINGS if truths.get(each)), "idle"),
        reason=row.halted_reason,
        plan=row.halted_plan,
        resting_until=row.resting_until,
        failures=row.failures,
        failing_since=row.failing_since,
        error=row.error,
        good_at=good_at,
        last_run_seconds=float(row.seconds) if row.seconds is not None else None,
        plans_waiting=row.plans,
    )


#: An audit or a plan says nothing about whether a pair is kept in step; nor does a run that was asked to stop.
_SYNCS: Final = "r.pair = p.id AND r.reason IN ('run', 'backfill', 'apply')"
_PAIRS: Final = text(f"""
SELECT p.id, p.approved_at, p.halted_reason, p.halted_plan, p.paused_at, rest.until AS resting_until,
       EXISTS (SELECT FROM run r WHERE r.pair = p.id AND r.state = 'running' AND p.leased_until > :at) AS is_running,
       (SELECT r.finished_at FROM run r WHERE {_SYNCS} AND r.state = 'done'
         ORDER BY r.started_at DESC LIMIT 1) AS good_at,
       last.seconds, streak.failures, streak.failing_since, streak.error,
       (SELECT count(*) FROM plan
         WHERE plan.pair = p.id AND state = 'open' AND hash <> '' AND jsonb_array_length(reasons) > 0) AS plans
  FROM pair p
  LEFT JOIN LATERAL (
    SELECT max(resting_until) AS until FROM connection c
     WHERE c.pair = p.id AND c.resting_until > :at AND c.resting_until <= :longest) rest ON true
  LEFT JOIN LATERAL (
    SELECT extract(epoch FROM r.finished_at - r.started_at) AS seconds FROM run r
     WHERE {_SYNCS} AND r.state IN ('done', 'halted', 'failed') ORDER BY r.started_at DESC LIMIT 1) last ON true
  LEFT JOIN LATERAL (
    SELECT r.started_at AS at FROM run r
     WHERE {_SYNCS} AND r.state IN ('done', 'halted') ORDER BY r.started_at DESC LIMIT 1) ended ON true
  LEFT JOIN LATERAL (
    SELECT count(*) AS failures, min(r.started_at) AS failing_since,
           (array_agg(r.error ORDER BY r.started_at DESC))[1] AS error FROM run r
     WHERE {_SYNCS} AND r.state = 'failed' AND r.error IS DISTINCT FROM 'StoppedError'
       AND r.started_at > coalesce(ended.at, '-infinity')) streak ON true
""")  # noqa: S608 - made of our own words

#: What is held still by a person, its counterpart, and what names either, waits on purpose.
_BACKLOG: Final = text("""
WITH held AS (
  SELECT pair, kind, side, record_id AS id FROM hold
  UNION
  SELECT h.pair, h.kind, 'right', l.right_id FROM hold h
    JOIN link l ON l.pair = h.pair AND l.kind = h.kind AND l.left_id = h.record_id WHERE h.side = 'left'
  UNION
  SELECT h.pair, h.kind, 'left', l.left_id FROM hold h
    JOIN link l ON l.pair = h.pair AND l.kind = h.kind AND l.right_id = h.record_id WHERE h.side = 'right'
), news AS (
  SELECT pair, kind, side, id, keys, reason, seen_at FROM sighting
   WHERE NOT is_linked AND state = 'new' AND reason IN ('', :settling)
  UNION ALL
  SELECT s.pair, s.kind, s.side, s.id, s.keys, s.reason, s.seen_at FROM sighting s
    JOIN link l ON l.pair = s.pair AND l.kind = s.kind AND l.left_id = s.id
   WHERE s.is_linked AND s.side = 'left' AND l.state IN ('in_step', 'pending')
  UNION ALL
  SELECT s.pair, s.kind, s.side, s.id, s.keys, s.reason, s.seen_at FROM sighting s
    JOIN link l ON l.pair = s.pair AND l.kind = s.kind AND l.right_id = s.id
   WHERE s.is_linked AND s.side = 'right' AND l.state IN ('in_step', 'pending')
)
SELECT pair, kind, 'backlog' AS what, count(*) AS number,
       min(seen_at) FILTER (WHERE reason <> :settling AND seen_at > 'epoch') AS oldest_at
  FROM news WHERE NOT EXISTS (
    SELECT FROM held WHERE held.pair = news.pair AND held.side = news.side
       AND ((held.kind = news.kind AND held.id = news.id) OR 'ref:' || held.kind || '=' || held.id = ANY (news.keys)))
 GROUP BY pair, kind
""").bindparams(settling=SETTLING)

_COUNTS: Final = text("""
SELECT pair, kind, 'link ' || state AS what, count(*) AS number FROM link
 WHERE state <> 'in_step' GROUP BY pair, kind, state
UNION ALL
SELECT pair, kind, 'alone ' || state, count(*) FROM sighting
 WHERE NOT is_linked AND state IN ('waiting', 'excluded', 'dead') GROUP BY pair, kind, state
UNION ALL
SELECT pair, kind, 'conflicts', count(*) FROM conflict WHERE settled_at IS NULL GROUP BY pair, kind
UNION ALL
SELECT pair, kind, 'reviews', count(*) FROM match_review WHERE answered_at IS NULL GROUP BY pair, kind
""")

_LINKS: Final = text("SELECT pair, kind, count(*) AS number FROM link GROUP BY pair, kind")


def _kinds(tx: Connection, queries: Sequence[TextClause]) -> dict[tuple[str, str], KindGauge]:
    """As ``syncd status`` counts them, and what that leaves out: the backlog."""
    found: dict[tuple[str, str], KindGauge] = {}
    for row in (row for query in queries for row in tx.execute(query)):
        gauge = found.setdefault((row.pair, row.kind), KindGauge())
        if row.what.startswith("link "):
            gauge.links[row.what.removeprefix("link ")] = row.number
        match row.what:
            case "backlog":
                gauge.backlog, gauge.oldest_at = row.number, row.oldest_at
            case "conflicts":
                gauge.conflicts = row.number
            case "reviews":
                gauge.reviews = row.number
            case "link dead" | "alone dead":
                gauge.dead_letters += row.number
            case "link excluded" | "alone excluded" | "alone waiting":
                gauge.excluded += row.number
    return found


def states_of(gauge: KindGauge, links: int) -> dict[str, int]:
    """How many links are in each state, where there are so many in all."""
    found = {str(state): gauge.links.get(state, 0) for state in LinkState}
    found[LinkState.IN_STEP] = max(0, links - sum(found.values()))
    return found
