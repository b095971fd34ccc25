"""What the process says of itself to those who look from outside: health, and metrics."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, create_engine, insert, text, update
from starlette.testclient import TestClient

from syncd import __version__
from syncd.config import Configuration, Problem, WebConfig, load
from syncd.connector import Quota
from syncd.core.model import Side
from syncd.engine.retry import Courier, Patience
from syncd.log import set_up
from syncd.state import gauges, holds, pairs
from syncd.state import schema as s
from syncd.testing.emulator import ManualClock
from syncd.web import application, health
from syncd.web.site import SILENT_SECONDS, Site, Vitals
from syncd.wiring import Service, note_outage
from tests.faults.harness import World, fault, world_of

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@dataclass
class Outside:
    """Somebody who looks at a world from outside, a minute after the last look, so that nothing is kept."""

    world: World
    problems: tuple[Problem, ...] = ()
    vitals: Vitals = field(default_factory=Vitals)

    def __post_init__(self) -> None:
        self.client = TestClient(application(self.site()))

    def site(self) -> Site:
        return Site(self.world.service, self.tenants, lambda pair_id: None, WebConfig(), self.vitals)

    def tenants(self) -> Configuration:
        return Configuration(load(self.world.folder).tenants, self.problems)

    def samples(self) -> dict[str, dict[str, float]]:
        """By metric and labels, as text."""
        self.world.clock.advance(600)
        return samples(self.client)

    def one(self, name: str, **labels: str) -> float:
        found = self.samples()[name]
        return found[key({"tenant": "nordhaus", "pair": "hubspot", **labels})]

    def state(self) -> str:
        found = self.samples()["syncd_pair_state"]
        (state,) = [at for at, value in found.items() if value == 1]
        return state.rpartition("state=")[2].partition(" ")[0]


def key(labels: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(labels.items()))


def samples(client: TestClient) -> dict[str, dict[str, float]]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return {
        name: {key(each.labels): each.value for each in family.samples if each.name == name}
        for family in text_string_to_metric_families(answer.text)
        for name in (*{each.name for each in family.samples}, family.name)
    }


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[World]:
    with world_of(engine, tmp_path, "hubspot") as found:
        yield found


@pytest.fixture
def outside(world: World) -> Iterator[Outside]:
    found = Outside(world)
    world.write()
    with found.client:
        yield found


def nowhere(world: World) -> Service:
    """The same service, and a database that does not answer."""
    return Service(create_engine("postgresql+psycopg://u:p@127.0.0.1:1/x"), now=world.clock)


# --- metrics --------------------------------------------------------------------------------


def test_every_metric_is_in_the_manual_and_every_other_one_is_not(outside: Outside) -> None:
    """docs/metrics.md names exactly the metrics that there are, each with its labels."""
    outside.world.seed(contacts=1, deals=0)
    outside.world.first()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(outside.client.get("/metrics").text):
        if not family.name.startswith("syncd_"):
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = {label for each in family.samples for label in each.labels} - {"le"}
        assert family.documentation
    told = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(syncd_\w+)` \|[^|]*\|([^|]*)\|", MANUAL, re.MULTILINE)
    }
    assert set(told) == set(found)
    for name, labels in found.items():
        # One that has nothing to say yet shows no labels.
        assert labels in (told[name], set()), name


def test_a_pair_in_step_has_nothing_waiting(outside: Outside) -> None:
    """After the last edit travelled, freshness and backlog are 0, and every link is in step."""
    outside.world.seed(contacts=2, deals=1)
    outside.world.first()
    found = outside.samples()
    for name in ("syncd_freshness_seconds", "syncd_backlog", "syncd_conflicts_open", "syncd_dead_letters"):
        assert set(found[name].values()) == {0.0}, name
        assert len(found[name]) == 5
    at = {"tenant": "nordhaus", "pair": "hubspot", "kind": "contact"}
    links = {state: found["syncd_links"][key({**at, "state": state})] for state in ("in_step", "pending", "dead")}
    assert links == {"in_step": 4.0, "pending": 0.0, "dead": 0.0}
    assert outside.state() == "idle"
    assert found["syncd_up_database"] == {"": 1.0}
    assert found["syncd_build_info"] == {f"version={__version__}": 1.0}
    assert found["syncd_tenants"] == {"": 1.0}


def test_a_change_that_does_not_get_through_grows_old(outside: Outside) -> None:
    """Its age is counted from when it was first seen, not from the last attempt."""
    world = outside.world
    world.seed(contacts=1, deals=0)
    world.first()
    world.hub_rename("hub0@example.com", "Nyman")
    fault(world.crm, path="batch/up", status=503, times=99)
    world.run()
    first = outside.samples()["syncd_freshness_seconds"][key(
        {"tenant": "nordhaus", "pair": "hubspot", "kind": "contact"}
    )]  # fmt: skip
    assert first > 600
    assert outside.one("syncd_freshness_seconds", kind="contact") >= first + 600
    assert outside.one("syncd_backlog", kind="contact") == 1


def test_what_is_held_still_or_set_aside_is_no_delay(outside: Outside) -> None:
    """A record that a person holds, with the relations that name it, makes no pair look late."""
    world = outside.world
    world.seed(contacts=1, deals=0)
    world.first()
    (contact,) = [each["id"] for each in world.hub.all("contacts") if each["email"] == "hub0@example.com"]
    holds.place(world.service.engine, "nordhaus/hubspot", "contact", Side.LEFT, [contact], reason="x", at=world.clock())
    world.hub_rename("hub0@example.com", "Nyman")
    world.run()
    assert outside.one("syncd_backlog", kind="contact") == 0
    assert outside.one("syncd_freshness_seconds", kind="contact") == 0
    holds.lift(world.service.engine, "nordhaus/hubspot", "contact", Side.LEFT, contact)
    assert outside.one("syncd_backlog", kind="contact") == 1


def test_a_pair_is_in_exactly_one_state(outside: Outside) -> None:
    """Each state is shown when it is the first that is true: what a person did, then what stands in the way."""
    world = outside.world
    assert outside.state() == "unapproved"
    world.seed(contacts=1, deals=0)
    assert world.run().state == "halted"
    assert (outside.state(), outside.one("syncd_plans_waiting")) == ("unapproved", 1)
    world.first()
    assert outside.state() == "idle"
    engine = world.service.engine
    with engine.begin() as tx:
        tx.execute(update(s.pair).values(leased_until=world.clock() + timedelta(hours=1)))
        running = {"id": "r", "pair": "nordhaus/hubspot", "reason": "run", "state": "running", "fence": 9}
        tx.execute(insert(s.run).values(**running, started_at=world.clock()))
    assert outside.state() == "running"
    with engine.begin() as tx:
        ended = {
            "state": "failed",
            "error": "TransientError",
            "started_at": world.clock(),
            "finished_at": world.clock(),
        }
        tx.execute(update(s.run).where(s.run.c.id == "r").values(**ended))
    assert outside.state() == "idle"  # One that failed a moment ago may still pass by itself,
    assert outside.state() == "failing"  # but not for longer than a quarter of an hour.
    assert outside.one("syncd_failures_in_a_row") == 1
    with engine.begin() as tx:
        tx.execute(update(s.run).where(s.run.c.id == "r").values(error="AuthError"))
    assert outside.state() == "refused"
    pairs.rest(engine, "nordhaus/hubspot", Side.RIGHT, "hubspot", world.clock() + timedelta(hours=9))
    assert outside.state() == "resting"
    pairs.halt(engine, "nordhaus/hubspot", "would delete 9 contact of 9 linked (crm)", None)
    assert outside.state() == "halted"
    pairs.pause(engine, "nordhaus/hubspot", world.clock())
    assert outside.state() == "paused"


def test_counters_tell_of_calls_refusals_and_halts(outside: Outside) -> None:
    """What the couriers carried is there while a run goes on, and is counted once, whoever looks how often."""
    world = outside.world
    world.seed(contacts=1, deals=0)
    world.first()
    found = outside.samples()
    calls = found["syncd_api_calls_total"]
    assert calls[key({"tenant": "nordhaus", "pair": "hubspot", "system": "crm"})] == len(world.crm.log)
    assert outside.samples()["syncd_api_calls_total"] == calls
    assert found["syncd_runs_total"][
        key({"tenant": "nordhaus", "pair": "hubspot", "reason": "backfill", "state": "done"})
    ] == 1  # fmt: skip
    runs = sum(found["syncd_runs_total"].values())
    assert found["syncd_run_seconds_count"] == {key({"tenant": "nordhaus", "pair": "hubspot"}): runs}
    fault(world.crm, status=429)
    world.run()
    assert max(samples(outside.client)["syncd_quota_share"].values()) > 0
    assert samples(outside.client)["syncd_rate_limited_total"][
        key({"tenant": "nordhaus", "pair": "hubspot", "system": "crm"})
    ] == 1  # fmt: skip
    world.extra = {"limits": {"creates": {"floor": 1, "share": 0}}}
    world.write()
    for number in range(3):
        world.hub_contact(100 + number)
    assert world.run().state == "halted"
    assert outside.one("syncd_brake_halts_total") == 1


def test_a_pair_that_no_file_names_is_not_shown(outside: Outside) -> None:
    """What the database remembers of tenants that are gone, or switched off, wakes nobody up."""
    world = outside.world
    world.seed(contacts=1, deals=0)
    world.first()
    assert outside.samples()["syncd_pair_state"]
    world.write(world.document() | {"enabled": False})
    found = outside.samples()
    assert found["syncd_pair_state"] == found["syncd_freshness_seconds"] == {}
    assert found["syncd_tenants"] == {"": 0.0}


def test_a_broken_file_is_counted_by_its_name(outside: Outside) -> None:
    """Where it is wrong, and with what, is for the log and for syncd config check."""
    outside.problems = tuple(Problem(Path("/etc/x/acme.yaml"), "pairs", said, "") for said in ("one", "two"))
    assert outside.samples()["syncd_config_problems"] == {"file=acme.yaml": 2.0}


def test_without_a_database_nothing_old_is_shown(world: World) -> None:
    """``syncd_up_database`` is 0, and no gauge has a value that could be taken for news; it is logged once."""
    world.write()
    site = Site(nowhere(world), lambda: load(world.folder), lambda pair_id: None, WebConfig())
    with TestClient(application(site)) as client:
        for _ in range(2):
            found = samples(client)
            assert found["syncd_up_database"] == {"": 0.0}
            assert found["syncd_pair_state"] == found["syncd_freshness_seconds"] == found["syncd_links"] == {}
    assert site.service.outages.since("database") is not None


def test_looking_often_asks_the_database_seldom() -> None:
    """An answer is kept for five seconds, or fifty times what it took to get."""
    now = ManualClock()
    asked: list[float] = []

    def ask(seconds: float = 0.0) -> int:
        asked.append(seconds)
        now.advance(seconds)
        return len(asked)

    kept = gauges.Kept(ask, now)
    assert [kept.get(), kept.get()] == [1, 1]
    now.advance(4.9)
    assert kept.get() == 1
    now.advance(0.2)
    assert kept.get() == 2
    slow = gauges.Kept(lambda: ask(1.0), now)
    assert slow.get() == 3
    now.advance(48.0)
    assert slow.get() == 3
    now.advance(2.0)
    assert slow.get() == 4


def test_a_slow_look_is_cut_off(engine: Engine) -> None:
    """Connections of its own, and no statement longer than a few seconds: a scrape never piles up."""
    aside = gauges.aside(engine)
    with gauges._bounded(aside) as tx:
        assert tx.execute(text("SHOW statement_timeout")).scalar() == f"{gauges.STATEMENT_SECONDS}s"
    with pytest.raises(TimeoutError), gauges._bounded(aside) as tx:
        tx.execute(text("SET LOCAL statement_timeout = '1ms'"))
        tx.execute(text("SELECT pg_sleep(60)"))
    aside.dispose()


def test_a_courier_says_how_much_of_its_window_it_has_used() -> None:
    """Asked from another thread, it changes nothing and counts only the window that ends now."""
    now = ManualClock()
    courier = Courier(Patience(now, now.advance, Random(1)), share=0.5)
    courier.allow([Quota("default", 20, 10.0)])
    for _ in range(4):
        courier.call(lambda: None, effect="read")
    assert courier.usage() == {"default": (4, 10)}
    now.advance(10.0)
    assert courier.usage() == {"default": (0, 10)}


# --- health -----------------------------------------------------------------------------------


def test_a_process_lives_until_a_part_of_it_falls_silent(outside: Outside) -> None:
    """A part that never lived is not missed, nor one that ended; one that beat and stopped is."""
    at = 0.0
    outside.vitals.now = lambda: at
    assert outside.client.get("/healthz").json() == {"status": "alive"}
    outside.vitals.beat("scheduler")
    outside.vitals.beat("worker")
    at = SILENT_SECONDS
    outside.vitals.beat("worker")
    assert outside.client.get("/healthz").status_code == 200
    at += 1
    answer = outside.client.get("/healthz")
    assert (answer.status_code, answer.json()) == (503, {"status": "stuck", "scheduler": "silent"})
    outside.vitals.end("scheduler")
    assert outside.client.get("/healthz").status_code == 200


def test_a_process_is_ready_when_all_that_it_needs_is_there(outside: Outside) -> None:
    """One word for each; asked to stop, it is the first thing to change."""
    ready = {"status": "ready", "database": "up", "migrations": "current", "tenants": "read", "process": "up"}
    answer = outside.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, ready)
    outside.vitals.is_stopping = True
    answer = outside.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {**ready, "status": "unready", "process": "stopping"})
    assert outside.client.get("/healthz").status_code == 200


def test_a_database_that_is_gone_makes_a_process_unready_and_not_dead(world: World) -> None:
    """Restarting would not help; sending requests its way would not either."""
    site = Site(nowhere(world), lambda: Configuration(()), lambda pair_id: None, WebConfig())
    with TestClient(application(site)) as client:
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {
            "status": "unready", "database": "down", "migrations": "unknown", "tenants": "unread", "process": "up",
        }  # fmt: skip
        assert client.get("/healthz").status_code == 200


def test_a_probe_is_answered_in_time_whatever_the_database_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that hangs is left behind: it is no reason to be late, and none to be restarted."""
    monkeypatch.setattr(health, "READY_SECONDS", 0.05)
    site = Site(world.service, lambda: Configuration(()), lambda pair_id: None, WebConfig())
    with world.service.engine.begin() as other, TestClient(application(site)) as client:
        other.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE"))
        for _ in range(4):
            assert client.get("/readyz").json()["database"] == "slow"
        assert client.get("/healthz").status_code == 200
        other.rollback()


def test_a_database_without_migrations_makes_a_process_unready(world: World, empty_database: str) -> None:
    service = Service(create_engine(empty_database), now=world.clock)
    site = Site(service, lambda: Configuration(()), lambda pair_id: None, WebConfig())
    with TestClient(application(site)) as client:
        assert client.get("/readyz").json()["migrations"] == "behind"
    service.engine.dispose()


def test_what_a_library_says_in_a_run_is_told_with_its_names(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Tenant, pair and run are on every line that a run leads to, and on none after it."""
    set_up("info")
    world.seed(contacts=1, deals=0)
    library = logging.getLogger("some.library")
    world.run("plan", progress=lambda *_: library.warning("what it says is not told"))
    library.warning("after")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "library.warned" in line]
    names = [tuple(line.get(name) for name in ("tenant", "pair")) for line in lines]
    assert len(names) > 1 and set(names[:-1]) == {("nordhaus", "hubspot")} and names[-1] == (None, None)
    assert all("run_id" in line for line in lines[:-1])


# --- outages ------------------------------------------------------------------------------------


def test_an_outage_is_logged_when_it_begins_and_when_it_ends(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """However many runs fail between. One that fails in another way is told as well."""
    world.seed(contacts=1, deals=0)
    world.first()
    set_up("warning")
    for number in range(3):
        fault(world.crm, status=503 if number < 2 else 401, times=99)
        note_outage(world.service, world.run())
        world.crm.faults.clear()
    events = re.findall(r'"event": "(run\.\w+)"', capsys.readouterr().err)
    assert events == ["run.failed", "run.failed"]
    set_up("info")
    for _ in range(2):
        note_outage(world.service, world.run())
    events = re.findall(r'"event": "(run\.\w+)"', capsys.readouterr().err)
    assert events.count("run.recovered") == 1
