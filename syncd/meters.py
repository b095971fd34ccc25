"""What this process counted since it began; beside it, what the database knows is asked for when somebody looks.

Labels hold configured names and our own words, nothing else. Each service has a registry of its own.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

# When each counter began is told by when the process did.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's

_PAIR: Final = ("tenant", "pair")
#: From a run that finds nothing to a backfill of a day.
_SECONDS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3_600.0, 14_400.0)


class Meters:
    """Counters that begin at 0 with the process, as Prometheus expects of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(name, said, labels, registry=self.registry)

        self.runs = counter("syncd_runs", "Runs that ended, by why they ran and how they ended.", *_PAIR, "reason",
                            "state")  # fmt: skip
        self.run_seconds = Histogram(
            "syncd_run_seconds", "How long runs took.", _PAIR, buckets=_SECONDS, registry=self.registry
        )
        self.api_calls = counter("syncd_api_calls", "Calls made to the vendors, audits included.", *_PAIR, "system")
        self.rate_limited = counter("syncd_rate_limited", "Calls that a vendor refused because of a quota.", *_PAIR,
                                    "system")  # fmt: skip
        self.lost_answers = counter("syncd_lost_answers", "Calls that may have taken effect, though no answer came.",
                                    *_PAIR, "system")  # fmt: skip
        self.lease_losses = counter("syncd_lease_losses", "Runs that ended because another worker took the pair over.",
                                    *_PAIR)  # fmt: skip
        self.brake_halts = counter("syncd_brake_halts", "Runs of approved pairs that a brake halted.", *_PAIR)
        self.webhooks = counter("syncd_webhooks", "Webhooks that arrived, by what became of them.", "tenant",
                                "connection", "outcome")  # fmt: skip

    def know_pair(self, tenant: str, pair: str) -> None:
        """Show a pair's counters at 0 before anything happened, or their first increase would never be seen."""
        for counter in (self.lease_losses, self.brake_halts):
            counter.labels(tenant, pair)
        for system in ("propstreet", "crm"):
            for counter in (self.api_calls, self.rate_limited, self.lost_answers):
                counter.labels(tenant, pair, system)
