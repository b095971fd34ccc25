"""When a pair is due, and what becomes of it when the tenants' files change."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from structlog.testing import capture_logs

from syncd.config import load
from syncd.errors import ConfigError
from syncd.scheduler import Schedule
from syncd.tenants import Tenants
from tests.cli.test_cli import Desk, desk, folder

__all__ = ["desk", "folder"]

PAIR = "nordhaus/hubspot"


@dataclass
class Heard:
    """A queue that writes down what it was asked."""

    asked: list[str] = field(default_factory=list)

    def wake(self, pair_id: str) -> bool:
        self.asked.append(pair_id)
        return True

    def chore(self, name: str) -> bool:
        return True


def test_a_tick_counts_for_all_replicas(desk: Desk) -> None:
    """A pair that another replica's tick asked for a moment ago is not asked for again; after its interval it is."""
    pair = desk.tenant("hubspot", every="30s")
    pair.write()
    heard = Heard()
    one, other = (Schedule(desk.service, Tenants(desk.folder), heard) for _ in range(2))
    _, config = pair.config()
    first = desk.service.now()

    def ticks(schedule: Schedule, seconds: float) -> bool:
        desk.service.now = lambda: first + timedelta(seconds=seconds)
        return schedule.tick(PAIR, config)

    assert (ticks(one, 0), ticks(other, 0), ticks(other, 23), ticks(other, 25)) == (True, False, False, True)
    assert (ticks(one, 30), ticks(other, 55), ticks(one, 60)) == (False, True, False)
    # A tick in the future was noted by a clock that was wrong.
    assert (ticks(one, -3_600), ticks(other, -3_599)) == (True, False)
    assert heard.asked == [PAIR] * 4


def test_at_the_start_pairs_tick_one_after_the_other(desk: Desk) -> None:
    """A second apart, or evenly within their interval if they are many; one that comes later ticks at once."""
    schedule = Schedule(desk.service, Tenants(desk.folder), Heard())
    now = desk.service.now()
    desk.service.now = lambda: now

    def first_ticks(names: list[str], every: str) -> list[float]:
        for name in names:
            desk.tenant("hubspot", name=name, every=every).write()
        schedule.reload()
        jobs = [schedule.scheduler.get_job(f"pair {name}/hubspot") for name in names]  # type: ignore[no-untyped-call]
        return [(job.next_run_time - now).total_seconds() for job in jobs]

    assert first_ticks(["ann", "bob", "cid"], "30s") == [0.0, 1.0, 2.0]
    assert first_ticks(["dan"], "30s") == [0.0]
    many = [f"t{number:02d}" for number in range(20)]
    assert first_ticks(many, "10s") == [number * 0.5 for number in range(20)]


@pytest.mark.parametrize(
    ("at", "is_quiet"), [("19:59", False), ("20:00", True), ("23:30", True), ("04:59", True), ("05:00", False)]
)
def test_in_quiet_hours_nothing_is_asked_for(desk: Desk, at: str, is_quiet: bool) -> None:
    """They are those of the tenant's own clock, over midnight too: in summer Stockholm is two hours ahead."""
    pair = desk.tenant("hubspot", quiet={"since": "22:00", "until": "07:00", "time_zone": "Europe/Stockholm"})
    pair.write()
    heard = Heard()
    desk.service.now = lambda: datetime.fromisoformat(f"2026-07-01T{at}:00").replace(tzinfo=UTC)
    Schedule(desk.service, Tenants(desk.folder), heard).tick(PAIR, pair.config()[1])
    assert heard.asked == ([] if is_quiet else [PAIR])


def test_quiet_hours_that_mean_nothing_are_refused(desk: Desk) -> None:
    """Named with the place and what to write instead."""
    pair = desk.tenant("hubspot", quiet={"since": "10pm", "until": "07:00", "time_zone": "Stockholm"})
    pair.write()
    problems = [str(each) for each in load(desk.folder).problems]
    assert any(
        "pairs[0].quiet.since: '10pm' is not a time of day. Write it like \"22:00\"." in each for each in problems
    )
    assert any("'Stockholm' is not a time zone. Write it like Europe/Stockholm." in each for each in problems)


def test_files_that_are_changed_added_removed_or_broken_are_taken_up(desk: Desk) -> None:
    """Without a restart; a broken one keeps its last good version, and that is said once."""
    structlog.reset_defaults()
    one, two = desk.tenant("hubspot"), desk.tenant("salesforce", name="granit")
    two.file.unlink()
    one.write()
    schedule = Schedule(desk.service, Tenants(desk.folder), Heard())
    assert schedule.reload() == 1
    two.write()
    assert schedule.reload() == 2
    with capture_logs() as logs:
        two.file.write_text("tenant: granit\npropstreet: {}\npairs: none\n")
        assert (schedule.reload(), schedule.reload()) == (2, 2)
        told = [each["event"] for each in logs]
        assert told and set(told) == {"config.refused"} and len(told) == len({each["problem"] for each in logs})
        logs.clear()
        two.write()
        assert schedule.reload() == 2
        assert [each["event"] for each in logs] == ["config.repaired"]
    two.file.unlink()
    assert schedule.reload() == 1
    one.write({**one.document(), "enabled": False})
    assert schedule.reload() == 0


def test_a_service_without_a_usable_tenant_does_not_start(desk: Desk) -> None:
    """It says where it looked and what helps."""
    desk.tenant("hubspot").write({"tenant": "nordhaus"})
    with pytest.raises(ConfigError, match="propstreet is missing"):
        Schedule(desk.service, Tenants(desk.folder), Heard()).start()
