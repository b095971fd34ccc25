"""``/metrics``: how every pair stands, as Prometheus reads it. docs/metrics.md explains each of them.

What the database knows is asked for when somebody looks, a few seconds old at most unless asking is
slow; what only this process knows is counted in ``syncd.meters``. A database that does not answer
leaves ``syncd_up_database`` at 0 and nothing that could be taken for news.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from syncd import __version__
from syncd.config import Configuration
from syncd.errors import ConfigError
from syncd.state import gauges
from syncd.state.gauges import STANDINGS, Gauges, Kept, KindGauge, PairGauge, states_of
from syncd.web.site import Site
from syncd.wiring import note_database

_PAIR: Final = ("tenant", "pair")
_KIND: Final = (*_PAIR, "kind")
#: Gauges made from the database: name -> (what it says, labels).
_FROM_DATABASE: Final = {
    "syncd_freshness_seconds": ("Age of the oldest change that is seen and not settled yet; 0 if none waits.", _KIND),
    "syncd_backlog": ("Records seen to differ that are neither settled yet nor set aside.", _KIND),
    "syncd_conflicts_open": ("Fields whose conflict waits for a person.", _KIND),
    "syncd_reviews_open": ("Records whose counterpart a person must name.", _KIND),
    "syncd_dead_letters": ("Changes that a system refused for good.", _KIND),
    "syncd_excluded": ("Records that are left out on purpose.", _KIND),
    "syncd_links": ("Linked records by state.", (*_KIND, "state")),
    "syncd_last_good_run_age_seconds": ("Time since a run ended well; before the first, since the approval.", _PAIR),
    "syncd_last_run_seconds": ("How long the last run took.", _PAIR),
    "syncd_failures_in_a_row": ("Runs that failed since the last one that did not.", _PAIR),
    "syncd_plans_waiting": ("Saved plans that wait for a person.", _PAIR),
    "syncd_pair_state": ("1 for the state that the pair is in.", (*_PAIR, "state")),
}


def routes(site: Site) -> list[Route]:
    """``/metrics``."""
    registry = registry_of(site)
    looks = CapacityLimiter(2)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body = await run_sync(encode, registry, limiter=looks)
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    return [Route("/metrics", metrics)]


def registry_of(site: Site) -> CollectorRegistry:
    """All metrics of one process, in a registry of their own."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Look(site))
    return registry


class _Look(Collector):
    """What is asked anew at each scrape."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        service = site.service
        engine = gauges.aside(service.engine)
        self._gauges = Kept(lambda: gauges.look(engine, service.now()), service.now)
        self._links = Kept(lambda: gauges.count_links(engine), service.now)

    def describe(self) -> Iterable[Metric]:
        """None ahead of time: nobody else is in this registry."""
        return ()

    def collect(self) -> Iterator[Metric]:
        service = self._site.service
        known = self._known()
        yield _gauge("syncd_build_info", "1, with the version that runs.", ("version",), {(__version__,): 1})
        yield from _config(known)
        yield from self._database(known)
        yield _gauge(
            "syncd_quota_share", "Calls just sent, of those that may be sent within the vendor's window.",
            (*_PAIR, "system", "bucket"), service.quota_shares(),
        )  # fmt: skip
        service.meter_calls()
        yield from service.meters.registry.collect()

    def _known(self) -> Configuration:
        try:
            return self._site.tenants()
        except ConfigError:
            return Configuration(())

    def _database(self, known: Configuration) -> Iterator[Metric]:
        service = self._site.service
        found: tuple[Gauges, Mapping[tuple[str, str], int]] | None = None
        is_up = True
        with self._lock:
            try:
                found = (self._gauges.get(), self._links.get())
            except TimeoutError:
                pass  # It answers; what is missing is seen to be missing.
            except SQLAlchemyError:
                is_up = False
        note_database(service, is_up=is_up)
        yield _gauge("syncd_up_database", "1 if the database answers this process.", (), {(): is_up})
        tables = _tables(known, *found, service.now()) if found is not None else {}
        for name, (said, labels) in _FROM_DATABASE.items():
            yield _gauge(name, said, labels, tables.get(name, {}))


def _config(known: Configuration) -> Iterator[Metric]:
    problems = Counter((each.file.name,) for each in known.problems)
    yield _gauge("syncd_config_problems", "Things that are wrong with a tenant's file.", ("file",), problems)
    enabled = [tenant for tenant in known.tenants if tenant.enabled]
    yield _gauge("syncd_tenants", "Tenants that are to be kept in step.", (), {(): len(enabled)})
    every = {(tenant.tenant, pair.name): pair.every.total_seconds() for tenant in enabled for pair in tenant.pairs}
    yield _gauge("syncd_interval_seconds", "How often a pair is to be run.", _PAIR, every)


def _tables(
    known: Configuration, found: Gauges, links: Mapping[tuple[str, str], int], at: datetime
) -> dict[str, dict[tuple[str, ...], float]]:
    """By metric and labels, for the pairs that a tenant's file names now; the database remembers others as well."""
    tables: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for tenant in known.tenants:
        for pair in tenant.pairs if tenant.enabled else ():
            own, pair_id = (tenant.tenant, pair.name), f"{tenant.tenant}/{pair.name}"
            gauge = found.pairs.get(pair_id)
            standing = gauge.standing if gauge is not None else "unapproved"
            for each in STANDINGS:
                tables["syncd_pair_state"][*own, each] = each == standing
            if gauge is None:
                continue
            for name, value in _of_pair(gauge, at).items():
                if value is not None:
                    tables[name][own] = value
            for kind in pair.kinds:
                of_kind = found.kinds.get((pair_id, kind), KindGauge())
                for name, count in _of_kind(of_kind, at).items():
                    tables[name][*own, kind] = count
                for state, count in states_of(of_kind, links.get((pair_id, kind), 0)).items():
                    tables["syncd_links"][*own, kind, state] = count
    return tables


def _of_pair(gauge: PairGauge, at: datetime) -> dict[str, float | None]:
    return {
        "syncd_last_good_run_age_seconds": _age(gauge.good_at, at) if gauge.good_at is not None else None,
        "syncd_last_run_seconds": gauge.last_run_seconds,
        "syncd_failures_in_a_row": gauge.failures,
        "syncd_plans_waiting": gauge.plans_waiting,
    }


def _of_kind(gauge: KindGauge, at: datetime) -> dict[str, float]:
    return {
        "syncd_freshness_seconds": _age(gauge.oldest_at, at),
        "syncd_backlog": gauge.backlog,
        "syncd_conflicts_open": gauge.conflicts,
        "syncd_reviews_open": gauge.reviews,
        "syncd_dead_letters": gauge.dead_letters,
        "syncd_excluded": gauge.excluded,
    }


def _age(since: datetime | None, at: datetime) -> float:
    return max(0.0, (at - since).total_seconds()) if since is not None else 0.0


def _gauge(name: str, said: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    # Any: tuples of as many texts as there are labels.
    family = GaugeMetricFamily(name, said, labels=labels)
    for at, value in values.items():
        family.add_metric(at, value)
    return family
