"""A database that is gone: said once when that begins and once when it is over, and not in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import structlog
from sqlalchemy.exc import DBAPIError


def is_lost(exc: BaseException) -> bool:
    """Whether an error says that the database cannot be reached, and not that it refused a statement."""
    cause = exc.orig if isinstance(exc, DBAPIError) else exc
    if isinstance(exc, DBAPIError) and exc.connection_invalidated:
        return True
    if not isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    # Without a code it never answered; 08 is a broken connection, 57P0x a server that shuts down or starts.
    code = cause.sqlstate or ""
    return not code or code.startswith(("08", "57P0"))


class Outage:
    """Whether the database is gone, as the parts of one process find out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_on = False

    def began(self) -> None:
        """Tell it, if it is news."""
        with self._lock:
            is_news, self.is_on = not self.is_on, True
        if is_news:
            structlog.get_logger().error("database.lost", fix="nothing is lost; work goes on when it is back")

    def ended(self) -> None:
        """Tell it, if it is news."""
        with self._lock:
            is_news, self.is_on = self.is_on, False
        if is_news:
            structlog.get_logger().info("database.found")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What fails within because the database is gone ends here; everything else goes on upwards."""
        try:
            yield
        except Exception as exc:
            if not is_lost(exc):
                raise
            self.began()
        else:
            self.ended()
