"""Structured logs on stderr, one JSON object a line, without secrets and without personal data.

Nothing here trusts a caller to leave personal data out. Of an exception only those messages are
told that are ours, because those name refs and fields; a library's may quote what it was given.
Libraries' own logs are told as that: which library, how bad, and where. Any text that still
looks like an e-mail address, a phone number or a token is blotted out.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, MutableMapping
from datetime import datetime
from types import TracebackType
from typing import Any, Final

import structlog

from syncd.core.mapping import UnfitValueError
from syncd.errors import SyncdError

_BLOTS: Final = (
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"), "<email>"),
    (re.compile(r"(?i)bearer\s+\S+"), "Bearer <secret>"),
    (re.compile(r"\b(?:pat|sk|whsec)[_-][\w-]{8,}"), "<secret>"),
    (re.compile(r"(?<![\w.:-])\+\d[\d ()-]{7,}\d"), "<phone>"),
)
#: Whose messages say refs and field names and nothing else.
_OURS: Final = (SyncdError, UnfitValueError)


def set_up(level: str = "info", *, is_terminal: bool = False) -> None:
    """Configure logging once for the process. A terminal gets readable lines, everything else JSON."""
    renderer: Any = structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(lambda info: "".join(_told(info[1])).rstrip()),
            blot,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)
    for name in ("httpx", "httpcore", "urllib3", "hubspot", "simple_salesforce", "apscheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.excepthook = _tell
    threading.excepthook = lambda args: _tell(args.exc_type, args.exc_value, args.exc_traceback)


class Outages:
    """What is out of order now, as this process knows it, so that it is told when it begins and when it ends.

    A key says what; any thread may ask.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, datetime]] = {}

    def began(self, key: str, at: datetime, kind: str = "") -> bool:
        """True once, until it ended; and once more where it is out of order in another way than before."""
        with self._lock:
            before, since = self._known.get(key, (None, at))
            self._known[key] = (kind, since)
        return before != kind

    def ended(self, key: str) -> datetime | None:
        """Since when it was out of order, once; None if it was not."""
        with self._lock:
            return self._known.pop(key, (None, None))[1]

    def since(self, key: str) -> datetime | None:
        """Since when it has been out of order; None if it is not."""
        with self._lock:
            return self._known.get(key, (None, None))[1]


class _Libraries(logging.Handler):
    """Libraries speak through the standard log, and in their own words, which may quote what they carried."""

    def emit(self, record: logging.LogRecord) -> None:
        exc = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().log(
            record.levelno, "library.warned", library=record.name, place=f"{record.funcName}:{record.lineno}",
            exc_info=exc,
        )  # fmt: skip


def _tell(type_: type[BaseException], exc: BaseException | None, trace: TracebackType | None) -> None:
    """Take the place of Python's own last words, which quote the exception."""
    if exc is None or isinstance(exc, KeyboardInterrupt | SystemExit):
        return
    print(blotted("".join(_told(exc))), end="", file=sys.stderr)  # noqa: T201 - nothing is left that could log


def _told(exc: BaseException) -> Iterator[str]:
    """A traceback: the causes first, the code that was run, no locals, and no message that is not ours."""
    cause = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if cause is not None:
        yield from _told(cause)
        yield "\nThat led to:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(exc.__traceback__)
    name = f"{type(exc).__module__}.{type(exc).__qualname__}"
    yield f"{name}: {exc}\n" if isinstance(exc, _OURS) else f"{name} (its message may quote values and is left out)\n"
    if isinstance(exc, BaseExceptionGroup):
        for each in exc.exceptions:
            yield from _told(each)


def blot(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blot out what must never be logged, whichever field it came in."""
    return {key: _blotted_within(value) for key, value in event.items()}


def _blotted_within(value: Any) -> Any:
    match value:
        case str():
            return blotted(value)
        case dict():
            return {_blotted_within(key): _blotted_within(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_blotted_within(each) for each in value]
    return value


def blotted(text: str) -> str:
    """A text without e-mail addresses, phone numbers and tokens."""
    for pattern, instead in _BLOTS:
        text = pattern.sub(instead, text)
    return text
