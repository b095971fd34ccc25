"""The long-running service: ticks, workers and the web side in one process, or each alone for replicas.

SIGTERM: not ready any more; no new run; each run in hand settles the call it is in and ends; then the web
side closes. What has not ended within the grace period is cut off, and looked up by the next run.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn
from starlette.applications import Starlette

from syncd.config import ServiceConfig, WebConfig
from syncd.errors import ConfigError
from syncd.scheduler import Schedule
from syncd.tenants import Tenants
from syncd.web import application
from syncd.web.site import Site, Vitals
from syncd.wiring import Service
from syncd.worker import Queue, Worker

#: A run is a hundred short questions to the database. After each one its thread waits for its turn to go on, for
#: Python's usual five milliseconds if another thread is busy: that is most of what many runs at once would wait for.
SWITCH_SECONDS = 0.0005


@dataclass(frozen=True, slots=True)
class Parts:
    """What of the service this process is."""

    scheduler: bool = True
    worker: bool = True
    web: bool = True


def serve_forever(service: Service, folder: Path, settings: ServiceConfig, parts: Parts) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Raises ConfigError for files or a port that do not do."""
    sys.setswitchinterval(SWITCH_SECONDS)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    with running(service, folder, settings, parts, over=over) as daemon:
        over.wait()
    if daemon.is_cut_off:
        # Threads that wait for a vendor would hold the process for minutes; a kill loses nothing.
        os._exit(1)
    return 1 if daemon.has_failed else 0


@dataclass(slots=True)
class Daemon:
    """The running service. ``url`` is where its web side listens, if it has one."""

    queue: Queue
    tenants: Tenants
    url: str | None = None
    has_failed: bool = False
    is_cut_off: bool = False


@contextmanager
def running(
    service: Service, folder: Path, settings: ServiceConfig, parts: Parts, *, over: threading.Event
) -> Iterator[Daemon]:
    """The parts of the service, for as long as this lasts; ``over`` is set if one of them fails for good."""
    log = structlog.get_logger()
    tenants = Tenants(folder)
    tenants.now()
    daemon = Daemon(Queue(service.engine), tenants)
    vitals = Vitals()
    worker = Worker(service, tenants, beat=lambda: vitals.beat("worker"), on_failure=lambda: _fail(daemon, over))
    with ExitStack() as stack:
        if parts.web:
            site = Site(
                service, tenants.now, daemon.queue.wake, settings.web,
                vitals=vitals, order=daemon.queue.order, heed=daemon.queue.heed,
            )  # fmt: skip
            daemon.url = stack.enter_context(listening(application(site), _door(settings.web)))
        if parts.worker:
            worker.start()
        schedule = Schedule(service, tenants, daemon.queue, beat=lambda: vitals.beat("scheduler"))
        if parts.scheduler:
            schedule.start()
        log.info("service.started", url=daemon.url, pairs=len(list(_pairs(tenants))))
        try:
            yield daemon
        finally:
            vitals.is_stopping = True
            vitals.end("scheduler")
            log.info("service.stopping", grace_seconds=settings.grace.total_seconds())
            if parts.scheduler:
                schedule.stop()
            service.stopping.set()
            if parts.worker and not worker.stop(settings.grace.total_seconds()):
                daemon.is_cut_off = True
                log.warning("service.cut_off", fix="the next run looks up what became of the last call")
    log.info("service.stopped")


def _fail(daemon: Daemon, over: threading.Event) -> None:
    daemon.has_failed = True
    over.set()


def _pairs(tenants: Tenants) -> Iterator[str]:
    for tenant in tenants.now().tenants:
        if tenant.enabled:
            yield from (f"{tenant.tenant}/{pair.name}" for pair in tenant.pairs)


def _door(settings: WebConfig) -> socket.socket:
    """Where to listen: if nobody chose a port and the usual one is taken, on a free one, as a second replica."""
    try:
        return socket.create_server((settings.host, settings.port), backlog=128)
    except OSError as exc:
        if "port" in settings.model_fields_set or exc.errno != errno.EADDRINUSE:
            fix = "Free it, or set web.port in config/syncd.yaml."
            raise ConfigError(f"cannot listen on {settings.host}:{settings.port} ({exc.strerror}). {fix}") from exc
        structlog.get_logger().warning("port.taken", port=settings.port, fix="set web.port in config/syncd.yaml")
        return socket.create_server((settings.host, 0), backlog=128)


@contextmanager
def listening(app: Starlette, door: socket.socket) -> Iterator[str]:
    """A web side in a thread of its own; yields where it listens."""
    # What uvicorn logs of a request would name addresses and refs; what matters is logged by the parts.
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=5,
            # Who is at the other end is what decides whom a header may name: see ``web.sign_on.proxy``.
            proxy_headers=False, server_header=False,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, name="web", daemon=True)
    thread.start()
    try:
        host, port = door.getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        door.close()
