"""Structured logs on stderr, one JSON object a line, without secrets and without personal data.

Nothing here trusts a caller to leave personal data out: any text that looks like an e-mail
address, a phone number or a token is blotted out, tracebacks included.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

_BLOTS: Final = (
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"), "<email>"),
    (re.compile(r"(?i)bearer\s+\S+"), "Bearer <secret>"),
    (re.compile(r"\b(?:pat|sk|whsec)[_-][\w-]{8,}"), "<secret>"),
    (re.compile(r"(?<![\w.:-])\+\d[\d ()-]{7,}\d"), "<phone>"),
)


def set_up(level: str = "info", *, is_terminal: bool = False) -> None:
    """Configure logging once for the process. A terminal gets readable lines, everything else JSON."""
    renderer: Any = structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            blot,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    for name in ("httpx", "httpcore", "urllib3", "hubspot", "simple_salesforce", "apscheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)


def blot(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blot out what must never be logged, whichever field it came in."""
    return {key: blotted(value) if isinstance(value, str) else value for key, value in event.items()}


def blotted(text: str) -> str:
    """A text without e-mail addresses, phone numbers and tokens."""
    for pattern, instead in _BLOTS:
        text = pattern.sub(instead, text)
    return text
