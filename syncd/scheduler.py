"""When a pair is due. APScheduler lives here only.

Each pair ticks at its own interval, with jitter, outside of its quiet hours. A tick asks for a run and
carries out none; so several replicas may tick at once, and whichever comes first is heard. The tenants'
files are looked at every few seconds: a new pair starts to tick, a removed one stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Protocol

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from syncd.config import PairConfig
from syncd.errors import ConfigError
from syncd.notify import look_and_tell
from syncd.state import pairs
from syncd.tenants import Tenants
from syncd.wiring import Service, watching

RELOAD_SECONDS = 5
#: What is done beside the runs, and how often somebody looks whether it is due.
CHORES: Mapping[str, float] = {"audit": 60.0, "prune": 86_400.0}
#: How often it is looked whether people are to be told of something.
TELL_SECONDS = 15.0
#: Another replica's tick counts as this one's if it was no longer ago than this share of the interval.
HEARD_SHARE = 0.8
#: How far two ticks of a pair may be closer, or further apart, than its interval, as a share of it.
JITTER = 0.05
#: At the start pairs tick one after the other, so long after each other or sooner, evenly within their interval:
#: hundreds that tick together wait for each other each time.
APART_SECONDS = 1.0


class Asks(Protocol):
    """Where a tick asks for work; see ``syncd.worker.Queue``."""

    def wake(self, pair_id: str) -> bool: ...

    def chore(self, name: str) -> bool: ...


class Schedule:
    """The ticks of one process, kept in line with the tenants' files."""

    def __init__(
        self, service: Service, tenants: Tenants, queue: Asks, *, beat: Callable[[], None] = lambda: None
    ):  # fmt: skip
        self._service, self._tenants, self._queue, self._beat = service, tenants, queue, beat
        self._log = structlog.get_logger()
        self._ticks: dict[str, tuple[timedelta, str]] = {}
        self.scheduler = BackgroundScheduler(
            # Who is told may be slow to answer; no tick waits for that.
            executors={"default": ThreadPoolExecutor(4), "notices": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )

    def start(self) -> None:
        """Begin to tick. Raises ConfigError if no tenant's file is usable."""
        if not self.reload():
            raise ConfigError(f"no usable tenant in {self._tenants.folder}; run: syncd config check")
        self.scheduler.add_job(self.reload, "interval", seconds=RELOAD_SECONDS, id="reload")
        self.scheduler.add_job(self._tell, "interval", seconds=TELL_SECONDS, id="notices", executor="notices")
        for name, seconds in CHORES.items():
            self.scheduler.add_job(
                self._tick, "interval", args=[lambda name=name: self._queue.chore(name)], seconds=seconds,
                jitter=max(1, int(seconds / 20)), id=f"chore {name}", next_run_time=self._service.now(),
            )  # fmt: skip
        self.scheduler.start()

    def stop(self) -> None:
        """Ask for nothing more."""
        self.scheduler.shutdown(wait=False)

    def reload(self) -> int:
        """Bring the ticks in line with the files; returns how many pairs there are."""
        self._beat()
        wanted = {
            f"{tenant.tenant}/{pair.name}": pair
            for tenant in self._tenants.now().tenants
            if tenant.enabled
            for pair in tenant.pairs
        }
        for pair_id in set(self._ticks) - set(wanted):
            self.scheduler.remove_job(f"pair {pair_id}")
            del self._ticks[pair_id]
            self._log.info("pair.unscheduled", pair=pair_id)
        told = {pair_id: (pair.every, repr(pair.quiet)) for pair_id, pair in wanted.items()}
        changed = [pair_id for pair_id in wanted if self._ticks.get(pair_id) != told[pair_id]]
        for position, pair_id in enumerate(changed):
            pair = wanted[pair_id]
            seconds = pair.every.total_seconds()
            apart = min(APART_SECONDS, seconds / len(changed))
            self.scheduler.add_job(
                self._tick, "interval", args=[lambda pair_id=pair_id, pair=pair: self.tick(pair_id, pair)],
                seconds=seconds * (1 - JITTER), jitter=seconds * 2 * JITTER, id=f"pair {pair_id}",
                replace_existing=True, next_run_time=self._service.now() + timedelta(seconds=position * apart),
            )  # fmt: skip
            self._ticks[pair_id] = told[pair_id]
            self._log.info("pair.scheduled", pair=pair_id, every_seconds=seconds)
        return len(self._ticks)

    def tick(self, pair_id: str, pair: PairConfig) -> bool:
        """Ask for a run of a pair, unless it is quiet now or another replica's tick was heard a moment ago."""
        now = self._service.now()
        if pair.quiet is not None and pair.quiet.covers(now):
            return False
        if not pairs.tick(self._service.engine, pair_id, now, pair.every * HEARD_SHARE):
            return False
        return self._queue.wake(pair_id)

    def _tell(self) -> None:
        """Tell people what is the matter, and what is over; several replicas may look at once."""
        look_and_tell(self._service, self._tenants.now())

    def _tick(self, ask: Callable[[], object]) -> None:
        """While the database is gone nothing is asked for, and that is said once."""
        with watching(self._service):
            ask()
