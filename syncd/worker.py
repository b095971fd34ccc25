"""Who runs a pair. The queue, Procrastinate on the same PostgreSQL, lives here only.

A pair that waits stands in the queue once, and no two workers take it at the same time: that spreads the
pairs over replicas. What keeps two from *writing* is the lease with its fencing token alone; so a worker
that was wrongly taken for dead does no harm. What a dead one left is asked for again within seconds. A run
whose vendor keeps it waiting steps aside: however many vendors hang, the others' pairs find a worker.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

import structlog
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException, UniqueViolation
from procrastinate.jobs import DeleteJobCondition, Status
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from syncd.config import PairConfig, TenantConfig
from syncd.core.audit import Turn, due
from syncd.errors import NotFoundError, RateLimitedError, SyncdError, TransientError
from syncd.state import audits, history, pairs
from syncd.state.outage import is_lost
from syncd.tenants import Tenants
from syncd.wiring import Result, Service, audit_pair, note_database, note_outage, prune, run_pair, watching

RUNS, CHORES = "runs", "chores"
#: A worker says this often that it lives; one that was silent for so long is taken for dead.
BEAT_SECONDS, SILENT_SECONDS, RESCUE_SECONDS = 4.0, 12.0, 3.0
#: How often the queue is looked at though no notification came: one whose lock was held sends none.
POLL_SECONDS = 1.0
#: A run that was kept waiting for so long steps aside; so many may be there, each a thread that waits.
PATIENCE_SECONDS, ASIDE = 5.0, 16
#: How often it is looked whether a run is kept waiting.
LOOK_SECONDS = 1.0
#: What a run fails with whose vendor does not answer, or says that it cannot now.
_UNANSWERED = (TransientError.__name__, RateLimitedError.__name__)
#: A lost database is tried again after this long.
AGAIN_SECONDS = 2.0


class Queue:
    """Where work is asked for; safe from every thread and replica. Asked twice before it began, it is done once."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._app = App(connector=SyncPsycopgConnector())

    def wake(self, pair_id: str) -> bool:
        """Have a pair run as soon as a worker is free; False if it waits already."""
        return self._ask("run", RUNS, pair_id, {"pair": pair_id})

    def heed(self, pair_id: str) -> bool:
        """The same for a run that only looks after what webhooks told; one that was woken waits beside it."""
        return self._ask("run", RUNS, pair_id, {"pair": pair_id, "is_told": True}, thing=f"{pair_id} told")

    def order(
        self, pair_id: str, reason: Literal["apply", "undo"], *, plan_id: str | None = None, run_id: str | None = None
    ) -> bool:
        """Have a worker carry out what a person said: apply a plan, or plan what takes a run back."""
        of = {name: id_ for name, id_ in (("plan_id", plan_id), ("run_id", run_id)) if id_ is not None}
        thing = ":".join([pair_id, reason, *of.values()])
        return self._ask("order", RUNS, pair_id, {"pair": pair_id, "reason": reason, **of}, thing=thing)

    def chore(self, name: str) -> bool:
        """Have a worker look after what is done beside the runs: audit, prune."""
        return self._ask("chore", CHORES, f"chore {name}", {"name": name})

    def _ask(
        self, task: str, queue: str, lock: str, args: Mapping[str, str | bool], *, thing: str | None = None
    ) -> bool:
        try:
            with self._engine.begin() as tx:
                mine = tx.connection.driver_connection
                self._app.configure_task(
                    task, queue=queue, lock=lock, queueing_lock=thing or lock, connection=mine
                ).defer(**args)  # fmt: skip
        except AlreadyEnqueued:
            return False
        except ConnectorException as exc:
            raise OperationalError("asking the queue", None, exc.__cause__ or exc) from exc
        return True


class Worker:
    """The threads of one process that take work from the queue and do it, until it is stopped."""

    def __init__(
        self,
        service: Service,
        tenants: Tenants,
        *,
        beat: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
        patience_seconds: float = PATIENCE_SECONDS,
    ):
        self._service, self._tenants, self._beat, self._on_failure = service, tenants, beat, on_failure
        self._log = structlog.get_logger()
        self._patience = patience_seconds
        self._aside: dict[str, asyncio.Future[None]] = {}
        self._ailing: set[str] = set()
        """Pairs whose vendor did not answer the last run: the next one steps aside at once."""
        self._tried: dict[tuple[str, str], datetime] = {}
        self._stop_asked = threading.Event()
        self._thread = threading.Thread(target=self._live, name="worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, grace_seconds: float) -> bool:
        """Take nothing more and let what is in hand end; whether it did within the grace period."""
        self._stop_asked.set()
        self._thread.join(grace_seconds)
        return not self._thread.is_alive()

    # --- the queue ------------------------------------------------------------------------

    def _live(self) -> None:
        """Work; where the database is lost, wait until it is back, and go on."""
        while not self._stop_asked.is_set():
            try:
                asyncio.run(self._work())
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is told, and ends the process
                if not _is_lost(exc):
                    self._log.exception("worker.failed")
                    self._on_failure()
                    return
                note_database(self._service, is_up=False)
                self._stop_asked.wait(AGAIN_SECONDS)

    async def _work(self) -> None:
        """Two queues side by side, so that a long audit keeps no pair waiting."""
        workers = self._service.workers
        asyncio.get_running_loop().set_default_executor(
            ThreadPoolExecutor(workers + ASIDE + 2, thread_name_prefix="run")
        )
        app = App(connector=PsycopgConnector(conninfo=_conninfo(self._service.engine), min_size=1, max_size=4))
        app.task(name="run", queue=RUNS)(self.take)
        app.task(name="order", queue=RUNS)(self.order)
        app.task(name="chore", queue=CHORES)(self.chore)
        async with app.open_async():
            note_database(self._service, is_up=True)
            settings: dict[str, Any] = {
                "install_signal_handlers": False,
                "fetch_job_polling_interval": POLL_SECONDS,
                "update_heartbeat_interval": BEAT_SECONDS,
                "stalled_worker_timeout": SILENT_SECONDS,
                "delete_jobs": DeleteJobCondition.ALWAYS,
            }
            async with asyncio.TaskGroup() as group:
                taking = [
                    group.create_task(
                        app.run_worker_async(queues=[RUNS], name="runs", concurrency=workers, **settings)
                    ),
                    group.create_task(app.run_worker_async(queues=[CHORES], name="chores", concurrency=1, **settings)),
                ]
                group.create_task(self._look_after(app, taking))

    async def _look_after(self, app: App, taking: list[asyncio.Task[None]]) -> None:
        """Ask again for what dead workers left, and hear when it is time to stop."""
        seconds = 0.0
        while not self._stop_asked.is_set() and not any(task.done() for task in taking):
            self._beat()
            if seconds <= 0:
                await _rescue(app)
                seconds = RESCUE_SECONDS
            await asyncio.sleep(0.25)
            seconds -= 0.25
        for task in taking:
            task.cancel()

    # --- the work -------------------------------------------------------------------------

    async def take(self, pair: str, is_told: bool = False) -> None:
        """One scheduled run, until it ended or stepped aside: then its lease alone keeps others from the pair."""
        if pair in self._aside or (pair in self._ailing and len(self._aside) >= ASIDE):
            return  # the next tick asks again
        running = asyncio.get_running_loop().run_in_executor(None, partial(self.run, pair, is_told=is_told))
        while not running.done():
            is_ailing = pair in self._ailing
            if (is_ailing or self._is_kept_waiting(pair)) and len(self._aside) < ASIDE:
                self._step_aside(pair, running)
                return
            await asyncio.wait([running], timeout=LOOK_SECONDS)
        running.result()

    def run(self, pair: str, *, is_told: bool = False) -> None:
        """One scheduled run: what one pair meets never reaches another."""
        result = self._each(pair, lambda t, p: run_pair(self._service, t, p, "run", is_sweep=False, visits=p.visits,
                                                        is_scheduled=True, is_told=is_told))  # fmt: skip
        if result is not None and result.state == "failed" and result.error in _UNANSWERED:
            self._ailing.add(pair)
        else:
            self._ailing.discard(pair)

    def _is_kept_waiting(self, pair: str) -> bool:
        tenant, _, name = pair.partition("/")
        waits = self._service.kept_waiting(tenant, name)
        return waits > 0 and waits >= self._patience

    def _step_aside(self, pair: str, running: asyncio.Future[None]) -> None:
        def end(ended: asyncio.Future[None]) -> None:
            del self._aside[pair]
            if not ended.cancelled():
                ended.exception()  # a bug was logged where it ended the run

        self._aside[pair] = running
        running.add_done_callback(end)
        if pair not in self._ailing:
            self._log.info("run.stepped_aside", pair=pair)

    def order(self, pair: str, reason: str, plan_id: str = "", run_id: str = "") -> None:
        """What a person said on the page: ``apply`` a plan, or ``undo`` a run as a plan to be approved."""

        def carry_out(t: TenantConfig, p: PairConfig) -> Result:
            if reason == "undo":
                undone = history.find_run(self._service.engine, run_id)
                return run_pair(self._service, t, p, "undo", undone=undone, is_dry=True)
            return run_pair(self._service, t, p, "apply", plan_id=plan_id)

        self._each(pair, carry_out)

    def _each(self, pair_id: str, work: Callable[[TenantConfig, PairConfig], Result]) -> Result | None:
        found = self._tenants.pair(pair_id)
        if found is None:
            self._log.info("pair.unknown", pair=pair_id)
            return None
        try:
            with watching(self._service):
                result = work(*found)
                note_outage(self._service, result)
                return result
        except SyncdError as exc:
            self._log.error("run.failed", tenant=found[0].tenant, pair=found[1].name, problem=str(exc))
        return None

    def chore(self, name: str) -> None:
        """What is done beside the runs."""
        with watching(self._service):
            if name == "audit":
                self.audit()
            elif name == "prune":
                prune(self._service)

    def audit(self) -> Turn | None:
        """Audit the one kind of one pair whose turn it is, if any; a pair that is running now is left alone.

        No lease is taken, so that a run may begin meanwhile: it goes ahead as ever, beside a reader at its small share.
        """
        now = self._service.now()
        audited = [t for t in self._tenants.now().tenants if t.enabled and t.audit.enabled]
        found = {f"{t.tenant}/{p.name}": (t, p) for t in audited for p in t.pairs}
        last = audits.last_audits(self._service.engine)
        turn = due((turn for t, p in found.values() for turn in self._turns(t, p, last, now)), now)
        if turn is None:
            return None
        tenant, pair = found[turn.pair]
        self._tried[turn.pair, turn.kind] = now
        try:
            audit_pair(self._service, tenant, pair, kinds=[turn.kind], share=tenant.audit.share)
        except SyncdError as exc:
            self._log.error("audit.failed", tenant=tenant.tenant, pair=pair.name, kind=turn.kind, problem=str(exc))
        return turn

    def _turns(
        self, tenant: TenantConfig, pair: PairConfig, audited: Mapping[tuple[str, str], datetime], now: datetime
    ) -> list[Turn]:
        """The kinds of a pair; none of one that never ran, waits for a person, or asked to be left alone."""
        pair_id = f"{tenant.tenant}/{pair.name}"
        try:
            known = pairs.find(self._service.engine, pair_id)
        except NotFoundError:
            return []
        waits = known.approved_at is None or known.halted_reason is not None or known.paused_at is not None
        if waits or pairs.resting_until(known, now) is not None:
            return []
        is_busy = known.leased_until is not None and known.leased_until > now
        return [
            Turn(pair_id, kind, tenant.audit.every, audited.get((pair_id, kind)),
                 is_busy or self._failed(pair_id, kind, now))
            for kind in pair.kinds
        ]  # fmt: skip

    def _failed(self, pair_id: str, kind: str, now: datetime) -> bool:
        """Whether an audit was tried so short a time ago that another attempt would be no use."""
        tried = self._tried.get((pair_id, kind))
        return tried is not None and now - tried < timedelta(hours=1)


async def _rescue(app: App) -> None:
    """What workers that are silent had in hand is asked for again; where it was asked for meanwhile, that is enough."""
    for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=SILENT_SECONDS):
        with suppress(ConnectorException):  # somebody else was faster
            try:
                await app.job_manager.retry_job(job)
            except UniqueViolation:
                await app.job_manager.finish_job(job, Status.FAILED, delete_job=True)


def _is_lost(exc: BaseException) -> bool:
    """Whether the queue stopped because the database is gone; its library wraps what it heard."""
    if isinstance(exc, ExceptionGroup):
        return all(_is_lost(each) for each in exc.exceptions)
    return is_lost(exc) or (exc.__cause__ is not None and _is_lost(exc.__cause__))


def _conninfo(engine: Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
