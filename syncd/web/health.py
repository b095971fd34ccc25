"""Whether the process lives, and whether it can do its work: for those who restart it, or send requests its way.

``/healthz`` asks nobody but the process itself, on the event loop: a database that is down is no
reason to restart it. ``/readyz`` looks at what it needs, and never takes longer than it promises.
"""

from __future__ import annotations

from typing import Final, Literal

from anyio import CapacityLimiter, move_on_after
from anyio.to_thread import run_sync
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from syncd.errors import ConfigError
from syncd.state import gauges, migrate
from syncd.web.site import Site

READY_SECONDS: Final = 2.0

Answer = dict[str, str]


def routes(site: Site) -> list[Route]:
    """``/healthz`` and ``/readyz``."""
    engine = gauges.aside(site.service.engine)
    # Not the pool of the pages, which may be full of slow ones. A look that hangs keeps its place until it ends.
    looks = CapacityLimiter(2)

    async def healthz(request: Request) -> Response:
        stuck = site.vitals.silent()
        told = {"status": "stuck" if stuck else "alive", **dict.fromkeys(stuck, "silent")}
        return _plain(told, is_well=not stuck)

    async def readyz(request: Request) -> Response:
        found: Answer = {"database": "slow", "migrations": "unknown"}
        with move_on_after(READY_SECONDS):
            found = await run_sync(_database, engine, abandon_on_cancel=True, limiter=looks)
        found["tenants"] = _tenants(site)
        is_stopping = site.vitals.is_stopping or site.service.stopping.is_set()
        found["process"] = "stopping" if is_stopping else "up"
        is_ready = found == {"database": "up", "migrations": "current", "tenants": "read", "process": "up"}
        return _plain({"status": "ready" if is_ready else "unready", **found}, is_well=is_ready)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


def _plain(told: Answer, *, is_well: bool) -> Response:
    return JSONResponse(told, status_code=200 if is_well else 503, headers={"Cache-Control": "no-store"})


def _database(engine: Engine) -> Answer:
    migrations: Literal["current", "behind"] = "current"
    try:
        with engine.connect() as tx:
            tx.execute(text("SELECT 1"))
        try:
            migrate.require_current(engine)
        except ConfigError:
            migrations = "behind"
    except SQLAlchemyError:
        return {"database": "down", "migrations": "unknown"}
    return {"database": "up", "migrations": migrations}


def _tenants(site: Site) -> str:
    """Whether the files were read once; what broke since is told elsewhere, and the last good reading goes on."""
    try:
        return "read" if site.tenants().tenants else "unread"
    except ConfigError:
        return "unread"
