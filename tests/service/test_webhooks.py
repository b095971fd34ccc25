"""A change that arrives by its webhook alone: the whole daemon, and vendors that sign what they send."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from connectors.hubspot.emulator import HubSpotEmulator
from syncd.config import ServiceConfig
from syncd.serve import Daemon, Parts, running
from syncd.state import pairs
from syncd.state import schema as s
from syncd.web import ordering
from tests.cli.test_cli import Desk, desk, folder, in_step
from tests.faults.harness import Pair, mark, writes
from tests.service.test_queue import jobs, until

__all__ = ["desk", "folder"]

SECRET = "client-secret-of-the-app"


@dataclass
class Town:
    """A tenant in step between vendors that send webhooks, and the daemon that hears them."""

    desk: Desk
    pair: Pair
    daemon: Daemon

    @property
    def crm(self) -> HubSpotEmulator:
        assert isinstance(self.pair.crm, HubSpotEmulator)
        return self.pair.crm

    def runs(self) -> list[tuple[str, str]]:
        with self.desk.service.engine.connect() as tx:
            return [
                tuple(row) for row in tx.execute(select(s.run.c.reason, s.run.c.state).order_by(s.run.c.started_at))
            ]

    def heard(self) -> dict[str, int]:
        """Deliveries that were taken, by connection."""
        (metric,) = self.desk.service.meters.webhooks.collect()
        return {
            each.labels["connection"]: int(each.value)
            for each in metric.samples
            if each.name.endswith("_total") and each.labels["outcome"] == "heard"
        }

    def settle(self) -> None:
        """Everything that was sent was answered, and what it led to is done: what we wrote ourselves is told, too."""
        senders = [self.pair.hub.webhooks, self.crm.webhooks]

        def is_quiet() -> bool:
            outboxes = [each.outbox for each in senders if each is not None and each.outbox is not None]
            return all(each.settle() for each in outboxes) and not jobs(self.desk)

        until(is_quiet)

    def last_names(self, email: str) -> tuple[str, str]:
        (left,) = [each["lastName"] for each in self.pair.hub.all("contacts") if each.get("email") == email]
        (right,) = [each["lastname"] for each in self.crm.all("contacts").values() if each.get("email") == email]
        return str(left), str(right)


@pytest.fixture
def town(desk: Desk, tmp_path: Path) -> Iterator[Town]:
    """No tick has anything to say: the last one was a moment ago, and the next is due in ten minutes."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    pair = desk.tenant("hubspot", every="10m")
    pair.seed(contacts=2, deals=1)
    said = {**pair.document(), "audit": {"enabled": False}}
    for name, connection in (("crm-app", said["pairs"][0]), ("hub-hook", said["propstreet"])):
        (tmp_path / name).write_text(SECRET)
        connection["webhooks"] = {"secret": {"file": str(tmp_path / name)}}
    pair.write(said)
    in_step(pair)
    assert pairs.tick(desk.service.engine, "nordhaus/hubspot", desk.service.now(), timedelta(minutes=8))
    settings = ServiceConfig.model_validate({"web": {"port": port, "public_url": url}})
    with running(desk.service, desk.folder, settings, Parts(), over=threading.Event()) as daemon:
        pair.hub.webhooks.is_local = True
        assert ordering.register(desk.service, pair.config()[0], url).is_new
        assert isinstance(pair.crm, HubSpotEmulator)
        pair.crm.deliver_to(f"{url}/webhooks/nordhaus/hubspot", SECRET)
        yield Town(desk, pair, daemon)


@pytest.mark.parametrize("side", ["propstreet", "hubspot"])
def test_a_change_arrives_by_its_webhook_alone(town: Town, side: str) -> None:
    """From either side to the other: one delivery woke the pair, one write carried the value, then all is quiet."""
    email = "hub0@example.com"
    before, places = len(town.runs()), {"propstreet": mark(town.pair.hub), "hubspot": mark(town.pair.crm)}
    assert town.heard() == {}
    edit = town.pair.hub_rename if side == "propstreet" else town.pair.crm_rename
    edit(email, "Storm")
    until(lambda: town.last_names(email) == ("Storm", "Storm"))
    assert town.heard()[side] >= 1
    town.settle()
    done = town.runs()[before:]
    assert set(done) == {("run", "done")}
    # One that the edit's webhook asked for, and one, or none, for the word of what that one wrote.
    assert len(done) <= sum(town.heard().values()) <= 2
    other, theirs = (town.pair.crm, "hubspot") if side == "propstreet" else (town.pair.hub, "propstreet")
    assert len(writes(other, places[theirs])) == 1
    town.pair.assert_in_step()


def test_what_no_webhook_tells_waits_for_the_schedule(town: Town) -> None:
    """The other edit, which is told, goes its way; the silent one comes along, since the run reads for itself."""
    before = len(town.runs())
    town.crm.stop_webhooks()
    town.pair.crm_rename("crm0@example.com", "Silent")
    town.settle()
    assert town.runs()[before:] == [], town.heard()
    assert (len(town.runs()), town.last_names("crm0@example.com")[0]) == (before, "Ek")
    town.pair.hub_rename("hub0@example.com", "Storm")
    until(lambda: town.last_names("crm0@example.com") == ("Silent", "Silent"))
