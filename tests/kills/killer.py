"""The process that dies: one command of ``syncd``, really killed at a given passing of a given point.

The product knows nothing of this. What changes the world outside a process is a commit to the
database and a writing request to a vendor; both are seen here from outside, below the product:
commits at the driver of the database, told apart by the tables that the transaction wrote, and
requests at the libraries that carry them. Each has a passing before and one after. Before a
commit all of its statements were made; after a request the vendor has acted, and nobody has
read the answer.

A fresh interpreter would take most of a second to import the product. So this module, run by
itself, is a warm process that has opened no connection and started no thread: for each order
on stdin it forks a child, which becomes the command, and tells on stdout how the child ended.
Time is the one thing passed in: a clock in a file that the emulators share.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

from syncd.testing.emulator import ManualClock

_EPOCH: Final = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
_TICK: Final = 1_000

#: What a transaction is called by the first of these that it wrote: a statement, and what it says.
_COMMITS: Final = (
    ("settle", re.compile(r"UPDATE operation\b.*settled_at", re.DOTALL)),
    ("intend", re.compile(r"UPDATE operation\b.*sent_at", re.DOTALL)),
    ("plan", re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) (operation|plan)\b")),
    ("run", re.compile(r"(INSERT INTO|UPDATE) run\b")),
    ("advance", re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) feed\b")),
    ("link", re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) (link|conflict|match_review|hold)\b")),
    ("inbox", re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) sighting\b")),
    ("pair", re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) (pair|tenant|connection)\b")),
)
POINTS: Final = ("pair", "run", "inbox", "advance", "link", "plan", "intend", "send", "settle")
"""Every kind of point, as named in passings: ``intend.before``, ``intend.after``, and so on."""

#: Requests that only read although they are not GETs.
_READS: Final = ("/search", "/batch/read", "/token", "/query")


class SharedClock(ManualClock):
    """A clock in a file that several processes read and move; it goes on a millisecond with each reading."""

    def __init__(self, file: Path):
        super().__init__()
        self.file = file
        if not file.exists():
            file.write_bytes(struct.pack("q", 0))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 8)

    def __call__(self) -> datetime:
        self._move(_TICK)
        return _EPOCH + timedelta(microseconds=self.passed)

    def advance(self, seconds: float) -> None:
        self._move(round(seconds * 1_000_000))

    @property
    def passed(self) -> int:
        """Microseconds since the clock was made."""
        found: int = struct.unpack("q", self._map[:])[0]
        return found

    def set(self, passed: int) -> None:
        """Back to an instant that was, together with the world as it was then."""
        self._map[:] = struct.pack("q", passed)

    def _move(self, microseconds: int) -> None:
        with self._lock:
            self.set(self.passed + microseconds)


# --- in the child -------------------------------------------------------------------------


@dataclass(slots=True)
class _Fate:
    """Notes each passing, and kills this very process at the one that was named."""

    notes: int
    point: str
    due: int

    def pass_(self, point: str) -> None:
        os.write(self.notes, f"{point}\n".encode())
        if point == self.point:
            self.due -= 1
            if self.due == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _watch_commits(fate: _Fate) -> None:
    """Have every commit that wrote something pass two points."""
    from sqlalchemy import Engine, event
    from sqlalchemy.engine.default import DefaultDialect

    committing: list[str] = []

    def wrote(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        for name, pattern in _COMMITS:
            if pattern.search(statement):
                connection.info.setdefault("wrote", set()).add(name)
                return

    def commits(connection: Any) -> None:
        names = connection.info.pop("wrote", set())
        committing[:] = [next(name for name, _ in _COMMITS if name in names)] if names else []

    def rolls_back(connection: Any) -> None:
        connection.info.pop("wrote", None)

    event.listen(Engine, "before_cursor_execute", wrote)
    event.listen(Engine, "commit", commits)
    event.listen(Engine, "rollback", rolls_back)
    commit: Callable[[Any, Any], None] = DefaultDialect.do_commit

    def do_commit(dialect: Any, connection: Any) -> None:
        passing, committing[:] = list(committing), []
        for name in passing:
            fate.pass_(f"{name}.before")
        commit(dialect, connection)
        for name in passing:
            fate.pass_(f"{name}.after")

    DefaultDialect.do_commit = do_commit  # type: ignore[method-assign] # from outside, for this process


def _watch_requests(fate: _Fate) -> None:
    """Have every request that writes pass two points."""
    import httpx
    import urllib3

    def watched(call: Callable[..., Any], is_write: Callable[..., bool]) -> Callable[..., Any]:
        def watching(carrier: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_write(*args, **kwargs):
                return call(carrier, *args, **kwargs)
            fate.pass_("send.before")
            answer = call(carrier, *args, **kwargs)
            fate.pass_("send.after")
            return answer

        return watching

    def by_httpx(request: Any) -> bool:
        return _is_write(request.method, request.url.path, request.content)

    def by_urllib3(method: str, url: str, body: Any = None, *_: Any, **__: Any) -> bool:
        return _is_write(method, url.partition("?")[0], body)

    httpx.HTTPTransport.handle_request = watched(  # type: ignore[method-assign] # from outside, for this process
        httpx.HTTPTransport.handle_request, by_httpx
    )
    urllib3.HTTPConnectionPool.urlopen = watched(  # type: ignore[method-assign] # from outside, for this process
        urllib3.HTTPConnectionPool.urlopen, by_urllib3
    )


def _is_write(method: str, path: str, body: Any) -> bool:
    """Whether a request may change something at the vendor; a Salesforce composite is what its parts are."""
    if method == "GET" or path.endswith(_READS):
        return False
    if path.endswith("/composite"):
        return any(part["method"] != "GET" for part in json.loads(body)["compositeRequest"])
    return True


#: SQL as compiled for the rehearsal serves the children as well.
_COMPILED: Final[dict[Any, Any]] = {}


def _become(order: Mapping[str, Any]) -> None:
    """Be the command that is ordered, until it ends or is killed."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(order["folder"], name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ |= order["environment"]
    notes = os.open(Path(order["folder"], "passed"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    fate = _Fate(notes, order["point"], order["nth"])
    _watch_commits(fate)
    _watch_requests(fate)
    _tell_time(SharedClock(Path(order["clock"])))
    sys.argv = ["syncd", *order["arguments"]]
    from syncd.cli import main

    main()


def _tell_time(clock: SharedClock) -> None:
    """Give the service that clock, and ids and chance that are the same in every play, as wiring gives it real ones."""
    from syncd import wiring

    opened = wiring.open_service
    # Where a play is in hand is a matter of its passings, not of how long it takes.
    wiring.BESIDE_SECONDS = 3_600.0

    def open_service(**how: Any) -> wiring.Service:
        service = opened(**how)
        service.now, service.sleep = clock, clock.advance
        service.random, service.holder = Random(1), "killed"
        service.new_id = lambda: f"{clock():%Y%m%d%H%M%S%f}"
        service.engine = service.engine.execution_options(compiled_cache=_COMPILED)
        return service

    wiring.open_service = open_service


# --- the warm process ---------------------------------------------------------------------


def _warm() -> None:
    """Import all that a command imports, and touch nothing."""
    import psycopg  # noqa: F401

    import syncd.cli
    import syncd.report
    import syncd.wiring  # noqa: F401


def _fork(order: Mapping[str, Any]) -> int:
    """Run one order in a child; returns its exit code, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        _become(order)
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it was, this is the child's end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    _warm()
    for line in sys.stdin:
        order = json.loads(line)
        answers.write(f"{_fork(order)}\n")
        answers.flush()


# --- in the test's process ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: ``code`` is -9 for a kill; ``passed`` names its passings in order."""

    code: int
    passed: Sequence[str]
    out: str
    err: str


class Killer:
    """The warm process, and the folder in which its children leave what they said."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills.killer"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], clock: SharedClock, *,
        point: str = "", nth: int = 0,
    ) -> Ended:  # fmt: skip
        """Run ``syncd`` with these arguments, to its end or to the n-th passing of ``point``."""
        order = {
            "arguments": list(arguments), "environment": dict(environment), "clock": str(clock.file),
            "folder": str(self._folder), "point": point, "nth": nth,
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        passed, out, err = (self._folder.joinpath(name).read_text() for name in ("passed", "out", "err"))
        return Ended(code, passed.split(), out, err)

    def close(self) -> None:
        self._process.communicate()


if __name__ == "__main__":
    main()
