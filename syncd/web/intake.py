"""Webhooks in: proved, told apart from repetitions, and turned into "this pair is dirty". They are hints only.

``POST /webhooks/{tenant}/{connection}``, where the connection is ``propstreet`` or a pair's name.
Nothing is read of a delivery before it is proved, no vendor is called, and one short transaction is
all that it costs. What a sender learns is a status: whether a tenant exists it does not learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import anyio
import structlog
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from syncd.config import ConnectionConfig, TenantConfig
from syncd.connector import Delivery, Heard, load_receiver
from syncd.core.model import Side
from syncd.errors import ConfigError, ContractError, ForgedError
from syncd.state import deliveries
from syncd.state.deliveries import News
from syncd.web.site import Site
from syncd.wiring import PROPSTREET

MOST_BYTES: Final = 1 << 20
#: A sender that takes longer over a body is not waited for.
BODY_SECONDS: Final = 10.0
#: So many deliveries are taken at once: neither pages nor probes wait behind a flood, nor runs for the database.
AT_ONCE: Final = 4
#: So many wait for their turn; who comes then is asked to come again.
MOST_WAITING: Final = 100

_STATUS: Final = {
    "heard": 200, "replayed": 200, "idle": 200, "unreadable": 400, "forged": 401, "unknown": 404, "unconfigured": 404,
    "slow": 408, "oversized": 413, "unavailable": 503,
}  # fmt: skip


def routes(site: Site) -> list[BaseRoute]:
    """The one route there is. Another method is answered with 405, and nothing ever with 410, which would end it."""
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def receive(request: Request) -> Response:
        door = _door(site, request)
        body: bytes | None = None
        try:
            with anyio.fail_after(BODY_SECONDS):
                body = await _body(request)
        except (TimeoutError, ClientDisconnect):
            return _answer(site, door, "slow")
        if body is None:
            return _answer(site, door, "oversized")
        if door is None:
            return _answer(site, None, "unknown")
        if limiter.statistics().tasks_waiting >= MOST_WAITING:
            return _answer(site, door, "unavailable")
        delivery = Delivery(request.method, _url(site, request), _headers(request), body)
        outcome, heard = await to_thread.run_sync(_take, site, door, delivery, limiter=limiter)
        return _answer(site, door, outcome, heard)

    return [Route("/webhooks/{tenant}/{connection}", receive, methods=["POST"])]


@dataclass(frozen=True, slots=True)
class _Door:
    """What a delivery was sent to: a connection of a tenant that takes webhooks."""

    tenant: TenantConfig
    name: str
    connector: str
    side: Side
    config: ConnectionConfig

    @property
    def pair_ids(self) -> list[str]:
        """The pairs that it concerns: Propstreet is the hub of all of them."""
        pairs = [each.name for each in self.tenant.pairs if self.side is Side.LEFT or each.name == self.name]
        return [f"{self.tenant.tenant}/{each}" for each in pairs]


def _door(site: Site, request: Request) -> _Door | None:
    name = request.path_params["connection"]
    for tenant in site.tenants().tenants:
        if tenant.tenant != request.path_params["tenant"]:
            continue
        if name == PROPSTREET:
            return _Door(tenant, name, PROPSTREET, Side.LEFT, tenant.propstreet)
        for pair in tenant.pairs:
            if pair.name == name:
                return _Door(tenant, name, pair.connector, Side.RIGHT, pair)
    return None


async def _body(request: Request) -> bytes | None:
    """The bytes as they came; None if they are too many, of which no more is read than it takes to know."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced[:20]) > MOST_BYTES:
        return None
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > MOST_BYTES:
            return None
    return bytes(found)


def _url(site: Site, request: Request) -> str:
    """The URL as the sender knows it: what it signed. Never from a header, which anybody may write."""
    own = f"http://{site.settings.host}:{site.settings.port}"
    path = request.scope.get("raw_path") or request.url.path.encode()
    query = request.scope["query_string"]
    return (site.settings.public_url or own) + (path + (b"?" + query if query else b"")).decode("ascii", "replace")


def _headers(request: Request) -> dict[str, str]:
    """By name in lower case; one that came twice is none: a proxy and we might not mean the same one."""
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        found[name] = value if name not in found else ""
    return found


def _take(site: Site, door: _Door, delivery: Delivery) -> tuple[str, Heard | None]:
    """Prove a delivery, remember what it tells, wake whom it concerns; how that ended."""
    log = structlog.get_logger().bind(tenant=door.tenant.tenant, connection=door.name)
    receiver = load_receiver(door.connector)
    secrets = _secrets(door)
    if receiver is None or not secrets:
        return "unconfigured", None
    try:
        heard = receiver(delivery, secrets, site.service.now())
        awake = deliveries.take(site.service.engine, _news(door, heard), door.pair_ids, site.service.now())
    except ForgedError:
        return "forged", None
    except ContractError:
        return "unreadable", None
    except ConfigError as exc:
        log.error("webhook.unconfigured", problem=str(exc))
        return "unconfigured", None
    except SQLAlchemyError as exc:
        log.error("webhook.unavailable", problem=type(exc).__name__)
        return "unavailable", None
    if awake is None:
        return "replayed", heard
    if not door.tenant.enabled or not awake:
        return "idle", heard
    wake = site.heed if heard.tells_all and site.heed is not None else site.wake
    for pair_id in awake:
        try:
            wake(pair_id)
        except SQLAlchemyError as exc:
            # What it told is kept: the schedule comes to it.
            log.warning("pair.not_woken", pair=pair_id, problem=type(exc).__name__)
    return "heard", heard


def _secrets(door: _Door) -> list[str]:
    """Those that can be read now. One that is not written yet proves nothing, and is no reason to refuse the others."""
    found: list[str] = []
    for ref in door.config.webhooks.refs if door.config.webhooks is not None else ():
        try:
            found.append(ref.read())
        except ConfigError:
            continue
    return found


def _news(door: _Door, heard: Heard) -> News:
    is_told = door.tenant.enabled
    return News(
        connection=f"{door.tenant.tenant}/{door.name}",
        side=door.side,
        ids=heard.ids,
        account=heard.account,
        records={hint.kind: hint.ids for hint in heard.hints if hint.ids and is_told},
        parents={hint.kind: hint.parents for hint in heard.hints if hint.parents and is_told},
    )


def _answer(site: Site, door: _Door | None, outcome: str, heard: Heard | None = None) -> Response:
    """A status, and no word of why; a change of fortune is logged, so that a flood fills no log."""
    # Of a connection that there is not, the name is the sender's own invention.
    tenant, connection = (door.tenant.tenant, door.name) if door is not None else ("", "")
    site.service.meters.webhooks.labels(tenant, connection, outcome).inc()
    if site.deliveries.turned(tenant, connection, outcome) and door is not None:
        structlog.get_logger().info("webhook.received", tenant=tenant, connection=connection, outcome=outcome)
    headers = {"Retry-After": "30"} if outcome == "unavailable" else {}
    if outcome in ("slow", "oversized"):
        headers["Connection"] = "close"
    body, kind = (heard.answer, heard.content_type) if heard is not None else ("", "text/plain")
    return Response(body, _STATUS[outcome], headers, media_type=kind)
