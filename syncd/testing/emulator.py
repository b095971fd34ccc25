"""What emulators of vendors share: HTTP, a clock, quotas, faults on request, a log of requests.

An emulator is a Starlette application with the vendor's routes, served on 127.0.0.1 by its own
thread. The frame counts quotas, injects faults before or after the effect and writes the log, so
that a vendor's file holds nothing but that vendor's behaviour. Handlers run one at a time, under
``lock``; a person's edit played from a test takes the same lock. Webhooks go out through an
``Outbox``, from threads of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Now = Callable[[], datetime]


class ManualClock:
    """A clock that moves only when told, shared by an emulator and whoever tests against it.

    ``tick_seconds`` is added at each reading, so that two writes never share an instant unless
    a test sets it to zero.
    """

    def __init__(self, start: datetime = datetime(2026, 11, 20, 8, 0, tzinfo=UTC), *, tick_seconds: float = 0.0):
        self._at = start
        self._tick = timedelta(seconds=tick_seconds)
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        with self._lock:
            self._at += self._tick
            return self._at

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._at += timedelta(seconds=seconds)


@dataclass(slots=True)
class Call:
    """One request as the vendor saw it. Bodies are parsed JSON, form fields or None."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: Mapping[str, str]
    body: Any
    status: int = 0
    fault: str = ""
    peer: int = 0
    """The port that it was sent from."""


@dataclass(slots=True)
class Fault:
    """Something that goes wrong with the next ``times`` requests that match ``method`` and ``path`` (a regex).

    ``before``: answered so without any effect. ``after``: the effect takes place, then this
    answer is given instead. ``drop``: as ``after``, but the connection closes without an answer.
    An empty page is ``after`` with status 200 and the vendor's empty body.
    ``skip`` lets that many matching requests pass first.
    """

    method: str = "*"
    path: str = ".*"
    when: Literal["before", "after", "drop"] = "before"
    status: int = 500
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1
    skip: int = 0

    def takes(self, method: str, path: str) -> bool:
        if self.times <= 0 or self.method not in ("*", method) or not re.search(self.path, path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass(slots=True)
class RateLimit:
    """At most ``calls`` in any ``seconds``, by the emulator's own clock."""

    calls: int
    seconds: float
    _seen: deque[datetime] = field(default_factory=deque)

    def admit(self, at: datetime) -> tuple[bool, int, float]:
        """(admitted, remaining, seconds until a place is free)."""
        horizon = at - timedelta(seconds=self.seconds)
        while self._seen and self._seen[0] <= horizon:
            self._seen.popleft()
        if len(self._seen) >= self.calls:
            return False, 0, (self._seen[0] - horizon).total_seconds()
        self._seen.append(at)
        reset = (self._seen[0] - horizon).total_seconds()
        return True, self.calls - len(self._seen), reset


class Answer(Exception):
    """Raised by a handler to answer at once with this status and body."""

    def __init__(self, status: int, body: Any = None, headers: Mapping[str, str] | None = None):
        super().__init__(status)
        self.response = reply(status, body, headers)


def reply(status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; a str body goes out as HTML, None as no body."""
    if body is None:
        return Response(status_code=status, headers=dict(headers or {}))
    if isinstance(body, str):
        return Response(body, status_code=status, media_type="text/html", headers=dict(headers or {}))
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


class Handler(Protocol):
    """A route of an emulator: takes the logged call and its path parameters."""

    def __call__(self, call: Call, **params: str) -> Response: ...


class Post(Protocol):
    """Sends one webhook; the status of the answer, 0 if there was none."""

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int: ...


def post(url: str, headers: Mapping[str, str], body: bytes) -> int:
    """Over the network, as a vendor does."""
    try:
        with httpx.Client(timeout=10, trust_env=False) as client:
            return client.post(url, headers=dict(headers), content=body).status_code
    except httpx.HTTPError:
        return 0


class Outbox:
    """Webhooks on their way: sent by a few threads, up to ``batch`` at a time, in an order that nobody promises.

    ``copies``: how often each is sent. What is put while it is held waits, and may be shuffled.
    """

    def __init__(self, send: Callable[[list[Any]], None], *, batch: int = 1, threads: int = 2) -> None:
        self.copies = 1
        self._send, self._batch = send, batch
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="webhooks")
        self._changed = threading.Condition()
        self._waiting: list[Any] = []
        self._busy = 0
        self._is_held = self._is_closed = False

    def put(self, *items: Any) -> None:
        """Send these, soon."""
        with self._changed:
            self._waiting += items
            self._start(1 if items else 0)

    def hold(self) -> None:
        """Send nothing until ``release``."""
        with self._changed:
            self._is_held = True

    def release(self, random: Random | None = None) -> None:
        """Send what waits, in disorder if there is chance to make it."""
        with self._changed:
            self._is_held = False
            if random is not None:
                random.shuffle(self._waiting)
            self._start(len(self._waiting))

    def settle(self, seconds: float = 30.0) -> bool:
        """Wait until all is sent; False if it is not."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy and (self._is_held or not self._waiting), seconds)

    def close(self) -> None:
        """Send nothing more."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
        self._pool.shutdown(wait=True)

    def _start(self, takers: int) -> None:
        if self._is_held or self._is_closed:
            return
        self._busy += takers
        for _ in range(takers):
            self._pool.submit(self._take)

    def _take(self) -> None:
        try:
            with self._changed:
                items, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
                if self._waiting:
                    self._start(1)
            for _ in range(self.copies if items else 0):
                self._send(items)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()


class Emulator:
    """Frame of a vendor's emulator. Subclasses give ``routes`` and may override ``admit`` and ``finish``."""

    #: Connection keys that a tenant file needs to reach this emulator; filled in by subclasses.
    auth: Mapping[str, str]

    def __init__(self, *, now: Now) -> None:
        self.now = now
        self.lock = threading.RLock()
        self.log: list[Call] = []
        self.faults: list[Fault] = []
        self.loses: Callable[[str, str, str], bool] = lambda collection, id_, name: False
        """Which native field of which record a write names in vain: it is answered as done, and not stored."""
        self.post: Post = post
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.url = ""

    def routes(self) -> Sequence[tuple[str, str, Handler]]:
        """(method, Starlette path, handler) in order of precedence."""
        raise NotImplementedError

    def admit(self, call: Call) -> Response | None:
        """Authentication and quotas: a response here refuses the call before any effect."""
        return None

    def finish(self, call: Call, response: Response) -> Response:
        """Add what every answer carries (rate headers and the like)."""
        return response

    def not_found(self, call: Call) -> Response:
        """The vendor's answer to a path that it does not know."""
        return reply(404, {"message": "no such path"})

    # --- life -------------------------------------------------------------------------

    def application(self, lifespan: Any = None) -> Starlette:
        """What it answers, for a server that somebody else runs; who runs it sets ``url``."""
        routes = [Route(path, self._endpoint(handler), methods=[method]) for method, path, handler in self.routes()]
        routes.append(Route("/{rest:path}", self._endpoint(lambda call, **_: self.not_found(call)), methods=_ALL))
        return Starlette(routes=routes, lifespan=lifespan)

    def start(self, port: int = 0) -> str:
        """Serve on 127.0.0.1 and return the base URL. Port 0 takes a free one."""
        sock = socket.socket(
            socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
        )  # asyncio sets TCP_NODELAY by proto
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(128)  # from here on nobody is refused, though the server is still starting
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        started = threading.Event()

        async def on_start() -> None:
            started.set()

        app = self.application(_lifespan(on_start))
        config = uvicorn.Config(
            app, log_level="critical", access_log=False, timeout_keep_alive=300, lifespan="on", date_header=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [sock]}, daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError("the emulator did not start within 10 seconds")
        return self.url

    def stop(self) -> None:
        """Stop serving; the state stays and may be started again."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            self._thread.join(10)
            self._server = self._thread = None

    def calls(self, method: str = "*", path: str = ".*") -> list[Call]:
        """Logged requests that match."""
        with self.lock:
            return [c for c in self.log if method in ("*", c.method) and re.search(path, c.path)]

    # --- one request ------------------------------------------------------------------

    def _endpoint(self, handler: Handler) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            raw = await request.body()
            if "form" in request.headers.get("content-type", ""):
                body: Any = dict(parse_qsl(raw.decode("utf-8", "replace")))
            else:
                body = _json(raw)
            call = Call(
                method=request.method,
                path=request.url.path,
                query=list(request.query_params.multi_items()),
                headers={key.lower(): value for key, value in request.headers.items()},
                body=body,
                peer=request.client.port if request.client is not None else 0,
            )
            return await run_in_threadpool(self._answer, call, handler, dict(request.path_params))

        return endpoint

    def _answer(self, call: Call, handler: Handler, params: dict[str, str]) -> Response:
        with self.lock:
            self.log.append(call)
            fault = next((f for f in self.faults if f.takes(call.method, call.path)), None)
            if fault is not None:
                call.fault = f"{fault.when} {fault.status}"
            try:
                refusal = self.admit(call)
                if refusal is not None:
                    response = refusal
                elif fault is not None and fault.when == "before":
                    response = reply(fault.status, fault.body, fault.headers)
                else:
                    response = handler(call, **params)
                    if fault is not None and fault.when == "after":
                        response = reply(fault.status, fault.body, fault.headers)
                    elif fault is not None and fault.when == "drop":
                        response = _Drop()
            except Answer as answer:
                response = answer.response
            call.status = response.status_code
            return self.finish(call, response)


_ALL = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class _Drop(Response):
    """Closes the connection in the middle of the answer: the effect stays, the reply is lost."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"999999")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": False})


def _json(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _lifespan(on_start: Callable[[], Any]) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        await on_start()
        yield

    return lifespan
