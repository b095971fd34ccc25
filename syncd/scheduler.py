"""When a pair is due. APScheduler lives here only.

Every pair has one job that runs at its own interval, never twice at once; the lease keeps other
processes off. Tenants' files are read again every minute: a new one starts, a removed one stops,
a broken one leaves its last good version running and is reported once. Beside the runs, one kind
of one pair at a time is audited, the one that waited longest.
"""

from __future__ import annotations

import signal
import threading
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy.exc import SQLAlchemyError

from syncd.config import Configuration, PairConfig, TenantConfig, load
from syncd.core.audit import Turn, due
from syncd.errors import ConfigError, SyncdError
from syncd.state import audits, pairs
from syncd.wiring import Service, audit_pair, prune, run_pair

RELOAD_SECONDS = 60
#: How often somebody looks whose turn it is to be audited.
AUDIT_SECONDS = 60
PRUNE_HOURS = 24


class Schedule:
    """The jobs of one process, kept in line with the tenants' files."""

    def __init__(self, service: Service, folder: Path):
        self._service = service
        self._folder = folder
        self._log = structlog.get_logger()
        self._jobs: dict[str, str] = {}
        self._reported: frozenset[str] = frozenset()
        self._last: Configuration | None = None
        self._tried: dict[tuple[str, str], datetime] = {}
        self.scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(service.workers), "audits": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )

    def start(self) -> None:
        """Start the jobs. Raises ConfigError if no tenant's file is usable."""
        if not self.reload():
            raise ConfigError(f"no usable tenant in {self._folder}; run: syncd config check")
        self.scheduler.add_job(self.reload, "interval", seconds=RELOAD_SECONDS, id="reload")
        self.scheduler.add_job(self.audit, "interval", seconds=AUDIT_SECONDS, id="audit", executor="audits")
        self.scheduler.add_job(self._prune, "interval", hours=PRUNE_HOURS, jitter=3_600, id="prune",
                               next_run_time=self._service.now())  # fmt: skip
        self.scheduler.start()

    def reload(self) -> int:
        """Bring the jobs in line with the files; returns how many there are."""
        try:
            found = load(self._folder)
        except ConfigError as exc:
            if self._last is None:
                raise
            self._log.error("config.refused", problem=str(exc))
            return len(self._jobs)
        found = found.after(self._last) if self._last is not None else found
        self._last = found
        if fresh := frozenset(map(str, found.problems)) - self._reported:
            for problem in sorted(fresh):
                self._log.error("config.refused", problem=problem)
        self._reported = frozenset(map(str, found.problems))
        wanted: dict[str, tuple[TenantConfig, PairConfig]] = {
            f"{tenant.tenant}/{pair.name}": (tenant, pair)
            for tenant in found.tenants
            if tenant.enabled
            for pair in tenant.pairs
        }
        for job_id in set(self._jobs) - set(wanted):
            self.scheduler.remove_job(job_id)
            del self._jobs[job_id]
            self._log.info("pair.unscheduled", pair=job_id)
        for job_id, (tenant, pair) in wanted.items():
            fingerprint = f"{tenant.fingerprint(pair)} {pair.every}"
            if self._jobs.get(job_id) == fingerprint:
                continue
            seconds = pair.every.total_seconds()
            self.scheduler.add_job(
                self._run, "interval", seconds=seconds, jitter=max(1, int(seconds / 10)), id=job_id,
                args=[tenant, pair], replace_existing=True, next_run_time=self._service.now(),
            )  # fmt: skip
            self._jobs[job_id] = fingerprint
            self._log.info("pair.scheduled", pair=job_id, every_seconds=seconds)
        return len(self._jobs)

    def _run(self, tenant: TenantConfig, pair: PairConfig) -> None:
        """One tick: what one pair meets never reaches another."""
        try:
            run_pair(self._service, tenant, pair, "run", is_sweep=False, visits=pair.visits, is_scheduled=True)
        except SyncdError as exc:
            self._log.error("run.failed", tenant=tenant.tenant, pair=pair.name, problem=str(exc))

    def audit(self) -> Turn | None:
        """Audit the one kind of one pair whose turn it is, if any; a pair that is running now is left alone.

        No lease is taken, so that a run may begin meanwhile: it goes ahead as ever, beside a reader at its small share.
        """
        now = self._service.now()
        found = {f"{t.tenant}/{p.name}": (t, p) for t in self._audited() for p in t.pairs}
        turn = due((turn for t, p in found.values() for turn in self._turns(t, p, now)), now)
        if turn is None:
            return None
        tenant, pair = found[turn.pair]
        self._tried[turn.pair, turn.kind] = now
        try:
            audit_pair(self._service, tenant, pair, kinds=[turn.kind], share=tenant.audit.share)
        except SyncdError as exc:
            self._log.error("audit.failed", tenant=tenant.tenant, pair=pair.name, kind=turn.kind, problem=str(exc))
        return turn

    def _audited(self) -> list[TenantConfig]:
        tenants = self._last.tenants if self._last is not None else ()
        return [tenant for tenant in tenants if tenant.enabled and tenant.audit.enabled]

    def _turns(self, tenant: TenantConfig, pair: PairConfig, now: datetime) -> list[Turn]:
        """The kinds of a pair; none of one that never ran, waits for a person, or asked to be left alone."""
        pair_id = f"{tenant.tenant}/{pair.name}"
        try:
            known = pairs.find(self._service.engine, pair_id)
        except SyncdError:
            return []
        waits = known.approved_at is None or known.halted_reason is not None or known.paused_at is not None
        if waits or pairs.resting_until(self._service.engine, pair_id, now) is not None:
            return []
        is_busy = known.leased_until is not None and known.leased_until > now
        audited = audits.last_audits(self._service.engine)
        return [
            Turn(
                pair_id,
                kind,
                tenant.audit.every,
                audited.get((pair_id, kind)),
                is_busy or self._failed(pair_id, kind, now),
            )
            for kind in pair.kinds
        ]

    def _failed(self, pair_id: str, kind: str, now: datetime) -> bool:
        """Whether an audit was tried so short a time ago that another attempt would be no use."""
        tried = self._tried.get((pair_id, kind))
        return tried is not None and now - tried < timedelta(hours=1)

    def _prune(self) -> None:
        """Forget old history. A failure is told and left to the next day: no run depends on it."""
        try:
            prune(self._service)
        except (SyncdError, SQLAlchemyError):
            self._log.exception("history.unpruned")

    def stop(self) -> None:
        """Start nothing more; the runs in hand settle the call they are in, and end."""
        self._service.stopping.set()
        self.scheduler.shutdown(wait=True)


def serve_forever(service: Service, folder: Path) -> None:
    """Run every pair on its schedule until SIGTERM or SIGINT."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    schedule = Schedule(service, folder)
    schedule.start()
    stopping.wait()
    schedule.stop()
