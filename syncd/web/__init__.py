"""What the daemon shows and hears over HTTP: health, metrics, webhooks, the operator's page.

Each module answers ``routes(site)``; ``application`` puts them together. Handlers are synchronous and
run in a bounded pool of threads, so that a slow page never stops a probe or a webhook.
"""

from __future__ import annotations

from starlette.applications import Starlette

from syncd.web import health, intake, metrics, pages
from syncd.web.site import Site


def application(site: Site) -> Starlette:
    """Everything that ``syncd serve`` answers to."""
    parts = (health, metrics, intake, pages)
    return Starlette(routes=[route for part in parts for route in part.routes(site)])
