"""Builds the objects and hands them to each other; the only place that takes real time, chance and ids.

A ``Service`` is the process: database, clock, log. ``run_pair`` is one run of one pair from the
lease to the line in the log, whatever happens in between.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from weakref import WeakKeyDictionary

import platformdirs
import structlog
from sqlalchemy import Engine, Row, create_engine, event
from sqlalchemy.exc import DBAPIError, InvalidatePoolError

from syncd.config import NotifyConfig, PairConfig, TenantConfig, load_service
from syncd.connector import (
    ConnectionSettings,
    Connector,
    FieldChoice,
    Finding,
    KindChoice,
    Secret,
    Subscriber,
    load,
)
from syncd.core.audit import Difference
from syncd.core.model import Side
from syncd.core.plan import KindRules, When
from syncd.core.undo import Leftover
from syncd.engine.audit import Tally, audit
from syncd.engine.context import Context, PairRules, Report, System
from syncd.engine.retry import Courier, Patience
from syncd.engine.run import Order, Reason, execute, execute_plan, execute_undo
from syncd.errors import (
    AuthError,
    ConfigError,
    HaltedError,
    LeaseLostError,
    NotFoundError,
    PlanMovedError,
    StoppedError,
    SyncdError,
)
from syncd.log import Outages
from syncd.meters import Meters
from syncd.state import audits, embedded, history, lease, migrate, pairs, privacy
from syncd.state.budget import Budget
from syncd.state.history import RunRow
from syncd.state.journal import Journal
from syncd.state.outage import is_lost
from syncd.state.postgres import PostgresRows
from syncd.state.store import Store

PROPSTREET = "propstreet"
#: A connection's account and set-up are checked again after this long.
PREFLIGHT_SECONDS = 3_600.0
#: How often a lease is renewed beside a run, by our own clock and not by the service's.
BESIDE_SECONDS = float(lease.RENEW_SECONDS)

#: A connection to the database that rested for so long may be dead by now.
PING_SECONDS = 2.0

Progress = Callable[[str, str, int], None]


def _new_id() -> str:
    return uuid.uuid4().hex  # noqa: TID251 - the one place that makes ids


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the one place that reads the clock


@dataclass(slots=True)
class Service:
    """One process of syncd: its database, and time, chance and ids as everything below receives them."""

    engine: Engine
    now: Callable[[], datetime] = _now
    sleep: Callable[[float], None] = time.sleep  # noqa: TID251 - the one place that sleeps
    random: Random = field(default_factory=Random)
    new_id: Callable[[], str] = _new_id
    holder: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    workers: int = 12
    retention: privacy.Retention = field(default_factory=privacy.Retention)
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set it, and every run ends before its next call; what it has in hand is settled."""
    notify: tuple[NotifyConfig, ...] = ()
    """Who is told when something is the matter, and when it is over."""
    meters: Meters = field(default_factory=Meters)
    outages: Outages = field(default_factory=Outages)
    telling: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one thread that tells people what is the matter."""
    _opened: dict[tuple[str, str, bool, float | None], _Opened] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _metered: WeakKeyDictionary[Courier, tuple[int, int, int]] = field(default_factory=WeakKeyDictionary)
    """What of each courier's counts is in the meters already."""

    def meter_calls(self) -> None:
        """Bring the meters up to date with what the couriers have carried so far, in runs that go on as well."""
        with self._lock:
            for key, opened in self._opened.items():
                self._meter(key[0], key[1], opened)

    def _meter(self, tenant: str, pair: str, opened: _Opened) -> None:
        to = (self.meters.api_calls, self.meters.rate_limited, self.meters.lost_answers)
        for side, courier in opened.couriers.items():
            before = self._metered.get(courier, (0, 0, 0))
            now = (courier.calls.total(), courier.refusals, courier.lost_answers)
            self._metered[courier] = now
            for counter, was, is_ in zip(to, before, now, strict=True):
                counter.labels(tenant, pair, "propstreet" if side is Side.LEFT else "crm").inc(is_ - was)

    def kept_waiting(self, tenant: str, pair: str) -> float:
        """For how many seconds the run of a pair has done nothing but wait; 0.0 if it works, or is not under way."""
        with self._lock:
            opened = self._opened.get((tenant, pair, False, None))
        since = [each.waits_since for each in opened.couriers.values()] if opened is not None else []
        return max(((self.now() - each).total_seconds() for each in since if each is not None), default=0.0)

    def quota_shares(self) -> dict[tuple[str, str, str, str], float]:
        """By tenant, pair, system and bucket: how much of what it may send within a window a pair has just sent.

        Audits have a small share of their own and are left out.
        """
        with self._lock:
            couriers = [
                (tenant, pair, "propstreet" if side is Side.LEFT else "crm", courier)
                for (tenant, pair, _, share), opened in self._opened.items()
                if share is None
                for side, courier in opened.couriers.items()
            ]
        found: dict[tuple[str, str, str, str], float] = {}
        for tenant, pair, system, courier in couriers:
            for bucket, (sent, allowed) in courier.usage().items():
                key = (tenant, pair, system, bucket)
                found[key] = max(found.get(key, 0.0), sent / allowed)
        return found

    def close(self) -> None:
        """Let go of every connection."""
        for opened in self._opened.values():
            opened.close()
        self._opened.clear()
        self.engine.dispose()


def open_service(*, is_migrating: bool = False) -> Service:
    """Connect to the database that ``syncd.yaml`` or the environment names, or start the embedded one.

    The embedded one is migrated by itself. Raises ConfigError if the database is down or lacks
    migrations.
    """
    settings = load_service()
    if settings.database_url is not None:
        engine = database(settings.database_url.read())
    else:
        home = settings.data_dir or Path(platformdirs.user_data_dir("syncd", appauthor=False))
        engine = database(embedded.start(home))
        migrate.upgrade(engine)
    if not is_migrating:
        migrate.require_current(engine)
    kept = settings.retention
    retention = privacy.Retention(history=kept.history, plans=kept.plans, runs=kept.runs)
    return Service(engine, workers=settings.workers, retention=retention, notify=settings.notify)


def database(url: str) -> Engine:
    """An engine for a PostgreSQL URL in any of its usual spellings."""
    for prefix in ("postgres://", "postgresql://"):
        if url.startswith(prefix):
            url = "postgresql+psycopg://" + url.removeprefix(prefix)
    if not url.startswith("postgresql+psycopg://"):
        raise ConfigError("SYNCD_DATABASE_URL must be a PostgreSQL URL: postgresql://USER:PASSWORD@HOST/DATABASE")
    # Mostly ten do; a run holds one more for each listing that it is in the middle of, however slow the vendor.
    engine = create_engine(
        url, pool_size=10, max_overflow=20, hide_parameters=True, connect_args={"connect_timeout": 10}
    )
    _ping_rested(engine)
    return engine


def _ping_rested(engine: Engine) -> None:
    """Ask a connection whether it lives before it is used again, if it was not used a moment ago.

    One that dies within that moment is heard of as one that dies in use: the run ends, and the next goes on.
    """

    def note(connection: Any, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    def ask(connection: Any, record: Any, proxy: Any) -> None:
        since = record.info.get("rests_since")
        if since is None or time.monotonic() - since < PING_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as exc:
            raise InvalidatePoolError from exc

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", ask)


# --- one pair -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Opened:
    """The two connectors of a pair, kept open between runs, and when they were last checked.

    ``secrets`` are the credentials as they were when it was opened. The connectors hear of no others:
    another credential may belong to another account, and only a preflight tells.
    """

    connectors: Mapping[Side, Connector]
    couriers: Mapping[Side, Courier]
    fingerprint: str
    secrets: Mapping[Side, Mapping[str, str]] = field(repr=False)
    checked_at: datetime | None = None
    budgets: dict[Side, Budget] = field(default_factory=dict)

    def is_checked(self, at: datetime) -> bool:
        """False too where the check lies ahead: then our clock was wrong."""
        return self.checked_at is not None and 0 <= (at - self.checked_at).total_seconds() < PREFLIGHT_SECONDS

    def settle(self) -> None:
        """Give back what was taken of the accounts' quotas and is not used."""
        for budget in self.budgets.values():
            budget.settle()

    def close(self) -> None:
        for connector in self.connectors.values():
            connector.close()


@dataclass(frozen=True, slots=True)
class Result:
    """How one run ended. ``state`` is done, halted, failed, busy or resting."""

    tenant: str
    pair: str
    connector: str
    state: str
    report: Report
    plan_id: str | None = None
    message: str = ""
    made: Mapping[str, int] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)
    write_calls: int = 0
    is_config: bool = False
    error: str | None = None
    """Which of the errors of ``errors.py`` ended it, if one did."""
    is_rotated: bool = False
    """A credential was refused, and another one stands in its place by now."""

    @property
    def leftovers(self) -> tuple[Leftover, ...]:
        """What an undo left as it is."""
        return tuple(self.report.leftovers)


def settings_of(tenant: TenantConfig, pair: PairConfig, side: Side) -> ConnectionSettings:
    """What a connector is told of a tenant's file."""
    source = tenant.propstreet if side is Side.LEFT else pair
    kinds = {}
    for kind, config in pair.kinds.items():
        watch = sorted(config.watched())
        kinds[kind] = KindChoice(
            fields={
                name: FieldChoice(choice.crm_field if side is Side.RIGHT else None, dict(choice.values or {}))
                for name, choice in config.fields.items()
            },
            watch=tuple(watch) if side is Side.RIGHT else (),
            pipeline=config.pipeline,
            stages={stage: tuple(named) for stage, named in config.stages.items()} if config.stages else None,
            labels=dict(config.labels) if config.labels else None,
            defaults=dict(config.defaults),
        )
    return ConnectionSettings(
        name=f"{tenant.tenant}/{PROPSTREET if side is Side.LEFT else pair.name}",
        base_url=source.base_url,
        login_url=source.login_url,
        auth={name: Secret(ref.read) for name, ref in source.auth.items()},
        namespace=pair.namespace,
        kinds=kinds,
        options=dict(source.options),
    )


def rules_of(tenant: TenantConfig, pair: PairConfig) -> dict[str, KindRules]:
    """What the planner is told of a tenant's file; a pipeline limits what it sees of deals."""
    rules = tenant.rules(pair)
    for kind, config in pair.kinds.items():
        if config.pipeline is not None:
            scope = When({**rules[kind].scope.fields, "pipeline": (config.pipeline,)})
            rules[kind] = replace(rules[kind], scope=scope)
    return rules


@contextmanager
def _placed(tenant: TenantConfig, pair: PairConfig) -> Iterator[None]:
    """Names the file in what a connector says against its settings, where it does not say so itself."""
    try:
        yield
    except ConfigError as exc:
        if str(tenant.file) in str(exc):
            raise
        raise ConfigError(f"{tenant.file}: pair {pair.name}: {exc}") from exc


def _open(
    service: Service, tenant: TenantConfig, pair: PairConfig, *, is_dry: bool, share: float | None = None
) -> _Opened:
    """The pair's connectors: those of its last run, or new ones where settings, credentials or an hour have passed.

    A connector reads its account's schema once, so that only a new one sees what changed there.
    """
    key = (tenant.tenant, pair.name, is_dry, share)
    fingerprint = tenant.fingerprint(pair)
    secrets = _secrets(tenant, pair)
    with service._lock:
        opened = service._opened.pop(key, None)
        if opened is not None:
            service._meter(tenant.tenant, pair.name, opened)
    if opened is not None:
        is_same = opened.fingerprint == fingerprint and opened.secrets == secrets
        if is_same and opened.is_checked(service.now()):
            return _kept(service, key, opened)
        opened.close()
    patience = Patience(service.now, service.sleep, service.random)
    connectors: dict[Side, Connector] = {}
    couriers: dict[Side, Courier] = {}
    for side, name in ((Side.LEFT, PROPSTREET), (Side.RIGHT, pair.connector)):
        # What was sent a moment ago counts against the quota, whoever asks now.
        is_known = opened is not None and opened.fingerprint == fingerprint
        fresh = Courier(patience, share=share or pair.share_of_quota, is_dry=is_dry)
        couriers[side] = opened.couriers[side] if is_known and opened is not None else fresh
        with _placed(tenant, pair):
            settings = replace(settings_of(tenant, pair, side), auth=_fixed(secrets[side]))
            connectors[side] = load(name)(settings, couriers[side], service.now)
    return _kept(service, key, _Opened(connectors, couriers, fingerprint, secrets))


def _secrets(tenant: TenantConfig, pair: PairConfig) -> dict[Side, dict[str, str]]:
    """The credentials as they are now. Raises ConfigError for one that is gone."""
    return {
        side: {name: ref.read() for name, ref in source.auth.items()}
        for side, source in ((Side.LEFT, tenant.propstreet), (Side.RIGHT, pair))
    }


def _kept(service: Service, key: tuple[str, str, bool, float | None], opened: _Opened) -> _Opened:
    with service._lock:
        service._opened[key] = opened
    return opened


def _fixed(secrets: Mapping[str, str]) -> dict[str, Secret]:
    return {name: Secret(partial(str, text)) for name, text in secrets.items()}


def _preflight(service: Service, pair_id: str, tenant: TenantConfig, pair: PairConfig, opened: _Opened) -> None:
    """Right account, and everything there that the settings name. Raises ConfigError naming the fixes."""
    now = service.now()
    if opened.is_checked(now):
        return
    lacks: list[str] = []
    for side, name in ((Side.LEFT, PROPSTREET), (Side.RIGHT, pair.connector)):
        connector = opened.connectors[side]
        with _placed(tenant, pair):
            account = connector.account()
        pairs.prove_account(service.engine, pair_id, side, name, account.id)
        if opened.budgets.get(side) is None:
            opened.budgets[side] = Budget(service.engine, f"{name} {account.id}", pair.share_of_quota, service.new_id)
            opened.couriers[side].ledger = opened.budgets[side]
        with _placed(tenant, pair):
            lacks += [f"{finding.thing}: {finding.fix}" for finding in connector.check() if finding.is_required]
    if lacks:
        raise ConfigError(
            f"{pair_id}: {pair.connector} lacks what this pair needs; run: syncd check {tenant.tenant} --fix\n  "
            + "\n  ".join(lacks)
        )
    for side in Side:
        opened.couriers[side].allow(opened.connectors[side].capabilities().quotas)
    opened.checked_at = now


def run_pair(
    service: Service,
    tenant: TenantConfig,
    pair: PairConfig,
    reason: Reason,
    *,
    plan_id: str | None = None,
    undone: RunRow | None = None,
    is_dry: bool = False,
    is_approved: bool = False,
    is_sweep: bool = True,
    only: frozenset[str] | None = None,
    limit: int | None = None,
    visits: int | None = None,
    is_scheduled: bool = False,
    is_told: bool = False,
    progress: Progress = lambda stage, kind, count: None,
) -> Result:
    """One run of one pair: whatever it ends with is in the result, in the database and in the log.

    With the reason ``undo`` it takes the run ``undone`` back, or with ``is_dry`` only plans that.
    ``is_scheduled``: nobody asked for this very run, so that a plan which waits for a person is
    left as it is. ``is_told``: it only looks after what webhooks told.
    """
    pair_id = f"{tenant.tenant}/{pair.name}"
    log = structlog.get_logger().bind(tenant=tenant.tenant, pair=pair.name)
    nothing = Result(tenant.tenant, pair.name, pair.connector, "failed", Report())
    try:
        pairs.register(
            service.engine,
            tenant=tenant.tenant,
            name=pair.name,
            connector=pair.connector,
            namespace=pair.namespace,
            config_hash=tenant.fingerprint(pair),
            at=service.now(),
        )
        known = _outwaited(service, pair_id, log)
        is_held = known.approved_at is not None or is_scheduled
        if known.halted_reason is not None and is_held and reason in ("run", "backfill"):
            return replace(nothing, state="halted", plan_id=known.halted_plan, message=known.halted_reason)
        if known.paused_at is not None and reason in ("run", "backfill"):
            message = f"paused by a person; go on with: syncd resume {tenant.tenant} --pair {pair.name}"
            return replace(nothing, state="halted", message=message)
        if until := pairs.resting_until(known, service.now()):
            return replace(nothing, state="resting", message=f"a vendor asked to be left alone until {until:%F %T} UTC")
        held = lease.acquire(service.engine, pair_id, f"{service.holder}:{service.new_id()[:8]}", service.now())
        if held is None:
            return replace(nothing, state="busy", message="another worker runs this pair now")
    except ConfigError as exc:
        return replace(nothing, message=str(exc), is_config=True, error=_sort_of(exc))
    is_approved = is_approved or known.approved_at is not None or reason in ("backfill", "apply")
    order = Order(reason, is_approved, known.is_waived, is_sweep=is_sweep, is_told=is_told)
    rules = PairRules(
        kinds=rules_of(tenant, pair),
        limits=tenant.limits(pair),
        compare_every_seconds=tenant.compare_every.total_seconds(),
        visits=visits,
        only=only,
        limit=limit,
        is_waived=known.is_waived,
    )
    with _running(service, held, log) as stack:
        once = partial(
            _run, service, stack, tenant, pair, held, order, rules, plan_id, progress, log, undone=undone, is_dry=is_dry
        )
        result = once()
        # Rotated while it ran: what is proved to be the same account goes on where it stopped.
        return once() if result.is_rotated else result


def _outwaited(service: Service, pair_id: str, log: Any) -> Row[Any]:
    """What is known of a pair once a dead worker's lease has lapsed. One that lives renews it, and is left alone."""
    longest = timedelta(seconds=lease.TTL_SECONDS + lease.SKEW_SECONDS)
    known = pairs.find(service.engine, pair_id)
    until = known.leased_until
    if until is None or not service.now() < until <= service.now() + longest:
        return known
    log.warning("lease.awaited", until=until.isoformat(timespec="seconds"))
    while service.now() < until and known.leased_until == until:
        service.sleep(1.0)
        known = pairs.find(service.engine, pair_id)
    return known


@contextmanager
def _running(service: Service, held: lease.Lease, log: Any) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        stack.callback(lease.release, service.engine, held)
        yield stack


def _run(
    service: Service,
    stack: ExitStack,
    tenant: TenantConfig,
    pair: PairConfig,
    held: lease.Lease,
    order: Order,
    rules: PairRules,
    plan_id: str | None,
    progress: Progress,
    log: Any,
    *,
    undone: RunRow | None = None,
    is_dry: bool = False,
) -> Result:
    run_id = service.new_id()
    log = log.bind(run_id=run_id, reason=order.reason)
    # What libraries say meanwhile is told with the same names.
    named = {"tenant": tenant.tenant, "pair": pair.name, "run_id": run_id}
    stack.enter_context(structlog.contextvars.bound_contextvars(**named))
    started_at = service.now()
    service.meters.know_pair(tenant.tenant, pair.name)
    store = Store(PostgresRows(service.engine, held.pair), held)
    journal = Journal(store)
    if order.reason == "backfill":
        order = replace(order, anew_before=journal.unfinished_backfill() or started_at)
    journal.begin_run(run_id, order.reason, started_at)
    state, message, is_config, is_rotated, is_gone, ctx = "failed", "", False, False, False, None
    error: str | None = None
    opened: _Opened | None = None
    before: dict[Side, tuple[int, int]] = {}
    try:
        opened = _open(service, tenant, pair, is_dry=is_dry or order.reason == "plan")
        beat = stack.enter_context(_Heartbeat(service, held))
        for side in Side:
            opened.couriers[side].on_beat = beat
            before[side] = (opened.couriers[side].calls.total(), opened.couriers[side].calls["write"])
        _preflight(service, held.pair, tenant, pair, opened)
        for budget in opened.budgets.values():
            budget.is_patient = order.reason == "backfill"
        systems = {
            side: System(opened.connectors[side], opened.couriers[side], opened.connectors[side].capabilities())
            for side in Side
        }
        ctx = Context(
            pair=held.pair,
            run_id=run_id,
            rules=rules,
            systems=systems,
            store=store,
            now=service.now,
            new_id=service.new_id,
            log=log,
            progress=progress,
        )
        meanings = {kind: config.meanings() for kind, config in pair.kinds.items()}
        if changed := pairs.remap(service.engine, held, meanings, ctx.carried()):
            log.info("mapping.changed", fields=[f"{kind}.{name}" for kind, names in changed.items() for name in names])
            if order.reason == "apply":
                journal.set_plan(str(plan_id), "refused", service.now())
                raise PlanMovedError("the tenant's file means something else since the plan was made")
        approve = partial(pairs.approve, service.engine, held.pair, service.now())
        if order.reason == "backfill":
            approve()
        if order.reason == "apply":
            execute_plan(ctx, str(plan_id), approve)
        elif undone is not None:
            message = f"undo of run {undone.id}"
            plan_id = execute_undo(ctx, service.engine, order, undone, is_applied=not is_dry)
        else:
            plan_id = execute(ctx, order)
        state = "done"
        if order.is_waived and order.reason in ("run", "backfill", "apply"):
            pairs.end_waiver(service.engine, held.pair)
    except HaltedError as exc:
        state, message, plan_id = "halted", str(exc), exc.plan_id or plan_id
        pairs.halt(service.engine, held.pair, message, exc.plan_id)
        if order.is_approved:
            service.meters.brake_halts.labels(tenant.tenant, pair.name).inc()
    except LeaseLostError as exc:
        state = "busy"
        service.meters.lease_losses.labels(tenant.tenant, pair.name).inc()
        log.warning("lease.lost")
        return Result(tenant.tenant, pair.name, pair.connector, "busy", Report(), message=str(exc))
    except ConfigError as exc:
        message, is_config, error = str(exc), True, _sort_of(exc)
        if opened is not None:
            opened.checked_at = None
    except PlanMovedError as exc:
        error = _sort_of(exc)
        undone_id = history.undone_by(service.engine, str(plan_id))
        message = f"{exc}. Make a new one: syncd {f'undo {undone_id}' if undone_id else f'plan {tenant.tenant}'}"
        pairs.halt(service.engine, held.pair, None, None)
    except SyncdError as exc:
        message, error = str(exc), _sort_of(exc)
        if opened is not None:
            is_rotated = isinstance(exc, AuthError) and _is_rotated(tenant, pair, opened)
            _rest(service, held.pair, pair.connector, opened)
            opened.checked_at = None
    except DBAPIError as exc:
        # What was sent and not noted is looked up by the next run, as after a kill.
        is_gone = is_lost(exc)
        if not is_gone:
            log.exception("run.crashed")
        raise
    except Exception:
        message, error = "a bug ended this run; the log has its traceback", "bug"
        log.exception("run.crashed")
        raise
    finally:
        made, least, writes = _cost(ctx, opened, before, order)
        report = ctx.report if ctx is not None else Report()
        seconds = (service.now() - started_at).total_seconds()
        if opened is not None and not is_gone:
            opened.settle()
        if state != "busy" and not is_gone:
            ending = "stopped" if error == StoppedError.__name__ else state
            service.meters.runs.labels(tenant.tenant, pair.name, order.reason, ending).inc()
            service.meters.run_seconds.labels(tenant.tenant, pair.name).observe(max(0.0, seconds))
            journal.end_run(
                run_id, state, service.now(), report.as_json(), {"made": made, "least": least}, message, error
            )  # fmt: skip
        log.info("run.finished", state=state, seconds=seconds, calls=made,
                 **report.as_json())  # fmt: skip
    return Result(
        tenant.tenant, pair.name, pair.connector, state, report, plan_id, message, made, least, writes,
        is_config, error, is_rotated,
    )  # fmt: skip


def note_outage(service: Service, result: Result) -> None:
    """Log when a pair stops getting through and when it does again: once each, however many runs fail between.

    A run that fails in another way than the one before is told as well.
    """
    log = structlog.get_logger().bind(tenant=result.tenant, pair=result.pair)
    key, now = f"run {result.tenant}/{result.pair}", service.now()
    if result.state == "failed" and result.error != StoppedError.__name__:
        if service.outages.began(key, now, result.error or ""):
            log.error("run.failed", error=result.error, problem=result.message)
    elif result.state in ("done", "halted") and (since := service.outages.ended(key)) is not None:
        log.info("run.recovered", after_seconds=(now - since).total_seconds())


def note_database(service: Service, *, is_up: bool) -> None:
    """Log when the database stops answering this process and when it does again, once each."""
    now = service.now()
    if not is_up:
        if service.outages.began("database", now):
            structlog.get_logger().error("database.lost")
    elif (since := service.outages.ended("database")) is not None:
        structlog.get_logger().info("database.found", after_seconds=(now - since).total_seconds())


@contextmanager
def watching(service: Service) -> Iterator[None]:
    """What fails within because the database is gone ends here, and is noted; everything else goes on upwards."""
    try:
        yield
    except Exception as exc:
        if not is_lost(exc):
            raise
        note_database(service, is_up=False)
    else:
        note_database(service, is_up=True)


def _sort_of(exc: SyncdError) -> str:
    """Which error of ``errors.py`` this is; connectors have finer ones of their own."""
    return next(each.__name__ for each in type(exc).__mro__ if each.__module__ == SyncdError.__module__)


def _is_rotated(tenant: TenantConfig, pair: PairConfig, opened: _Opened) -> bool:
    try:
        return _secrets(tenant, pair) != opened.secrets
    except ConfigError:
        return False


def _cost(
    ctx: Context | None, opened: _Opened | None, before: Mapping[Side, tuple[int, int]], order: Order
) -> tuple[dict[str, int], dict[str, int], int]:
    """Calls made on each side, the least that this work could take, and how many of the calls wrote."""
    made: dict[str, int] = {}
    least: dict[str, int] = {}
    writes = 0
    for side, name in ((Side.LEFT, "propstreet"), (Side.RIGHT, "crm")):
        if opened is None or side not in before:
            continue
        calls = opened.couriers[side].calls
        made[name] = calls.total() - before[side][0]
        writes += calls["write"] - before[side][1]
        if ctx is not None:
            system = ctx.systems[side]
            least[name] = system.connector.least_calls(system.tally(is_backfill=order.anew_before is not None))
    return made, least, writes


def _rest(service: Service, pair_id: str, connector: str, opened: _Opened) -> None:
    for side in Side:
        if (until := opened.couriers[side].resting_until) is not None:
            pairs.rest(service.engine, pair_id, side, PROPSTREET if side is Side.LEFT else connector, until)
            opened.couriers[side].resting_until = None


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit of one pair came to, by kind, and what nothing explains."""

    tenant: str
    pair: str
    kinds: Mapping[str, Tally]
    unexplained: tuple[Difference, ...]
    made: Mapping[str, int]


def audit_pair(
    service: Service,
    tenant: TenantConfig,
    pair: PairConfig,
    *,
    kinds: Sequence[str] | None = None,
    share: float | None = None,
    progress: Progress = lambda stage, kind, count: None,
) -> Audited:
    """Compare both sides with what is remembered of them; makes reading calls only, and takes no lease.

    ``share`` of the vendors' quotas instead of the pair's own. Raises ConfigError and what stops a connection.
    """
    pair_id = f"{tenant.tenant}/{pair.name}"
    pairs.find(service.engine, pair_id)
    run_id, started_at = service.new_id(), service.now()
    log = structlog.get_logger().bind(tenant=tenant.tenant, pair=pair.name, run_id=run_id, reason="audit")
    opened = _open(service, tenant, pair, is_dry=True, share=share)
    for courier in opened.couriers.values():
        courier.on_beat = partial(_stop_if_asked, service)
    before = {side: opened.couriers[side].calls.total() for side in Side}
    _preflight(service, pair_id, tenant, pair, opened)
    # Nobody holds this lease: whatever would change the state is refused.
    store = Store(PostgresRows(service.engine, pair_id), lease.Lease(pair_id, "audit", -1))
    ctx = Context(
        pair=pair_id,
        run_id=run_id,
        rules=PairRules(kinds=rules_of(tenant, pair), limits=tenant.limits(pair)),
        systems={
            side: System(opened.connectors[side], opened.couriers[side], opened.connectors[side].capabilities())
            for side in Side
        },
        store=store,
        now=service.now,
        new_id=service.new_id,
        log=log,
        progress=progress,
    )
    found: list[Difference] = []
    for budget in opened.budgets.values():
        budget.is_patient = True
    try:
        tallies = audit(ctx, service.engine, ctx.kinds if kinds is None else kinds, found.append)
    finally:
        opened.settle()
    names = ((Side.LEFT, PROPSTREET), (Side.RIGHT, "crm"))
    made = {name: opened.couriers[side].calls.total() - before[side] for side, name in names}
    result = Audited(tenant.tenant, pair.name, tallies, tuple(found), made)
    # A kind that the two systems do not share has had its turn as well.
    asked = {kind: tallies.get(kind, Tally()) for kind in kinds or tallies}
    counts = {"kinds": {kind: tally.as_json() for kind, tally in asked.items()}}
    message = f"{len(found)} unexplained; syncd audit {tenant.tenant} names them" if found else ""
    audits.record_audit(service.engine, run_id, pair_id, started_at, service.now(), counts, {"made": made}, message)
    (log.warning if found else log.info)("audit.finished", unexplained=len(found), calls=made, **counts)
    return result


def _stop_if_asked(service: Service) -> None:
    if service.stopping.is_set():
        raise StoppedError("stopped between two calls; an audit starts over")


class _Heartbeat:
    """Renews the lease for as long as the run lives; a run that has lost it hears so before its next call.

    A thread of its own renews it too, since one call may take longer than a lease lives. A process that is
    stopped renews nothing, and neither does one that cannot reach the database.
    """

    def __init__(self, service: Service, held: lease.Lease):
        self._service, self._held = service, held
        self._due = service.now() + timedelta(seconds=lease.RENEW_SECONDS)
        self._lost: LeaseLostError | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beside, name=f"lease of {held.pair}", daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def __call__(self) -> None:
        if self._service.stopping.is_set():
            raise StoppedError("stopped between two calls; the next run goes on from here")
        if self._lost is not None:
            raise self._lost
        now = self._service.now()
        # Also where our clock went back: what the lease says is then of another time.
        if not self._due - timedelta(seconds=lease.TTL_SECONDS) <= now < self._due:
            self._renew(now)

    def _renew(self, at: datetime) -> None:
        lease.renew(self._service.engine, self._held, at)
        self._due = at + timedelta(seconds=lease.RENEW_SECONDS)

    def _beside(self) -> None:
        while not self._over.wait(BESIDE_SECONDS):
            try:
                self._renew(self._service.now())
            except LeaseLostError as exc:
                self._lost = exc
                return
            except DBAPIError as exc:
                if not is_lost(exc):
                    raise


def words_of(service: Service, tenant: TenantConfig, pair: PairConfig, kind: str, name: str) -> tuple[str, ...] | None:
    """The words that the CRM can hold in one field; None if it takes any. Makes reading calls only."""
    opened = _open(service, tenant, pair, is_dry=True)
    fields = opened.connectors[Side.RIGHT].capabilities().kinds[kind].fields
    vocabulary = fields[name].vocabulary if name in fields else None
    return tuple(sorted(set(vocabulary.values()))) if vocabulary is not None else None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a pair's two accounts lack."""

    tenant: str
    pair: str
    account: Mapping[str, str]
    findings: tuple[tuple[str, Finding], ...]


def check_pair(service: Service, tenant: TenantConfig, pair: PairConfig, *, is_fixing: bool) -> Checked:
    """Compare both accounts with the settings; with ``is_fixing`` create what the vendors allow."""
    pair_id = f"{tenant.tenant}/{pair.name}"
    pairs.register(
        service.engine,
        tenant=tenant.tenant,
        name=pair.name,
        connector=pair.connector,
        namespace=pair.namespace,
        config_hash=tenant.fingerprint(pair),
        at=service.now(),
    )
    opened = _open(service, tenant, pair, is_dry=not is_fixing)
    findings: list[tuple[str, Finding]] = []
    accounts: dict[str, str] = {}
    for side, name in ((Side.LEFT, PROPSTREET), (Side.RIGHT, pair.connector)):
        connector = opened.connectors[side]
        with _placed(tenant, pair):
            account = connector.account()
        accounts[name] = account.id
        pairs.prove_account(service.engine, pair_id, side, name, account.id)
        with _placed(tenant, pair):
            found = connector.check()
        if is_fixing and found:
            found = connector.fix(found)
        findings += [(name, each) for each in found]
    if is_fixing:
        # Connectors read the account's schema once; what was created is seen by new ones.
        opened.close()
        service._opened.pop((tenant.tenant, pair.name, False, None), None)
    return Checked(tenant.tenant, pair.name, accounts, tuple(findings))


def subscriber_of(service: Service, tenant: TenantConfig) -> Subscriber:
    """The tenant's Propstreet connection, as far as it orders webhooks. Raises ConfigError if it cannot."""
    connector = _open(service, tenant, tenant.pairs[0], is_dry=False).connectors[Side.LEFT]
    if not isinstance(connector, Subscriber):
        raise ConfigError(f"{tenant.file}: the connector {PROPSTREET!r} that is installed cannot order webhooks")
    return connector


# --- forgetting ---------------------------------------------------------------------------


def erase_person(
    service: Service, tenant: str, pair: str | None, ref: str, *, is_dry: bool = False
) -> dict[str, dict[str, int]]:
    """Erase one person from what is remembered of a tenant: by pair, how many rows of each table changed.

    Raises NotFoundError if no pair knows this person, SyncdError while a run is under way.
    """
    found: dict[str, dict[str, int]] = {}
    unknown: list[NotFoundError] = []
    for pair_id in privacy.pairs_of(service.engine, tenant, pair):
        log = structlog.get_logger().bind(pair=pair_id)
        _outwaited(service, pair_id, log)
        held = lease.acquire(service.engine, pair_id, f"{service.holder}:{service.new_id()[:8]}", service.now())
        if held is None:
            raise SyncdError(f"{pair_id}: another worker runs this pair now; try again when it is done")
        with _running(service, held, log):
            try:
                found[pair_id] = privacy.erase(service.engine, held, ref, service.now(), is_dry=is_dry)
            except NotFoundError as exc:
                unknown.append(exc)
                continue
        if not is_dry:
            log.info("person.erased", rows=found[pair_id])
    if not found:
        raise unknown[0]
    return found


def prune(service: Service, *, is_dry: bool = False) -> dict[str, int]:
    """Forget history by age, for all tenants: how many rows of each table."""
    counts = privacy.prune(service.engine, service.retention, service.now(), is_dry=is_dry)
    if not is_dry:
        structlog.get_logger().info("history.pruned", rows=counts)
    return counts
