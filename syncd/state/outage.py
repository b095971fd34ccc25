"""Whether the database is gone, or only refused something."""

from __future__ import annotations

import psycopg
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
