"""A killed ``syncd backfill`` goes on where it was; that it ends well wherever it dies is for ``tests/kills`` to show.

The emulators live in the test's process and do the killing: when a given number of requests has
arrived, the process that sent them gets SIGKILL before it sees the answer. So nothing here
depends on how fast anything is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from connectors.propstreet.emulator import PropstreetEmulator
from syncd.testing.emulator import Call, Fault
from syncd.wiring import Service
from tests.faults.harness import CRMS, Pair, crm_emulator, lapse, started

pytestmark = pytest.mark.long

COMMAND = [sys.executable, "-c", "from syncd.cli import main; main()"]
CONTACTS = 25
DEALS = 3


@dataclass(slots=True)
class Executioner(Fault):
    """Kills ``process`` when the request is ``due`` requests away; otherwise only counts."""

    due: int = -1
    seen: int = 0
    process: subprocess.Popen[bytes] | None = None

    def takes(self, method: str, path: str) -> bool:
        self.seen += 1
        self.due -= 1
        if self.due == 0 and self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
        return False


@dataclass
class Scene:
    """One tenant, a database, and the command that may die."""

    pair: Pair
    service: Service
    environment: Mapping[str, str]
    executioner: Executioner = field(default_factory=Executioner)

    def __post_init__(self) -> None:
        self.pair.seed(contacts=CONTACTS, deals=DEALS)
        for emulator in (self.pair.hub, self.pair.crm):
            emulator.faults.append(self.executioner)

    def backfill(self, *, kill_at: int = 0) -> tuple[int, list[dict[str, Any]]]:
        """Run the command; with ``kill_at`` kill it at that request. Returns its exit code and document."""
        # Half a minute after a death its lease has lapsed; here that wait is skipped.
        lapse(self.service.engine, self.service.now())
        self.executioner.due = kill_at or -1
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*COMMAND, "backfill", self.pair.tenant_name, "--json"],
            env=dict(self.environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.executioner.process = process
        try:
            out, err = process.communicate(timeout=120)
        finally:
            self.executioner.process = None
            if process.poll() is None:
                process.kill()
                process.wait()
        assert b"Traceback" not in err, err.decode()
        return process.returncode, json.loads(out) if out else []

    def listings(self) -> Counter[str]:
        """How many whole listings of each feed were begun: first pages without a watermark."""
        found: Counter[str] = Counter()
        for call in self.pair.hub.calls("GET", r"/(companies|contacts|links|projects)$"):
            query = dict(call.query)
            if query.get("page_size") == "500" and not {"updated_since", "cursor"} & set(query):
                found[f"propstreet {call.path.rpartition('/')[2]}"] += 1
        for call in self.pair.crm.calls():
            for name in _listed(call):
                found[f"crm {name}"] += 1
        return found


def _listed(call: Call) -> list[str]:
    """The CRM's feeds of which a call begins a whole listing; a page of one record only looks around."""
    query = dict(call.query)
    if call.method == "GET" and call.path.startswith("/crm/v3/objects/"):
        is_page = query.get("limit") == "100" and query.get("archived") != "true" and "after" not in query
        return [call.path.rpartition("/")[2]] if is_page else []
    asked = [query.get("q", "")]
    if call.path.endswith("/composite") and isinstance(call.body, dict):
        asked = [str(part.get("url")) for part in call.body.get("compositeRequest", [])]
    return [
        name
        for soql in asked
        for name in ("Account", "Contact", "Opportunity", "OpportunityContactRole")
        if f"FROM {name} " in (plain := soql.replace("+", " ").replace("%20", " ") + " ")
        and "WHERE" not in plain
        and "LIMIT" not in plain
    ]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def stage(engine: Engine, home: Path, connector: str, stack: ExitStack) -> Scene:
    service = Service(engine)
    hub, crm = PropstreetEmulator(now=service.now), crm_emulator(connector, service.now)
    stack.enter_context(started(hub, crm))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SYNCD_")},
        "SYNCD_DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "SYNCD_CONFIG": str(home / "tenants"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return Scene(Pair("nordhaus", connector, home / "tenants", hub, crm), service, environment)


def whole(connector: str) -> dict[str, int]:
    """What both sides hold in the end, by kind."""
    people = 2 * CONTACTS
    prospects = sum(2 + number for number in range(DEALS))
    found = {"company": 2, "contact": people, "employment": 2, "deal": DEALS, "deal_contact": prospects}
    return {f"{side} {kind}": count for side in ("propstreet", "crm") for kind, count in found.items()}


def assert_as_if_never_killed(scene: Scene) -> None:
    scene.pair.assert_in_step()
    picture = scene.pair.picture()
    assert {kind: rows.total() for kind, rows in picture.items()} == whole(scene.pair.connector)


@pytest.mark.parametrize("connector", CRMS)
@pytest.mark.parametrize("share", [0.45, 0.8], ids=["while creating", "near the end"])
def test_a_killed_backfill_does_not_start_over(
    engine: Engine, tmp_path: Path, stack: ExitStack, connector: str, share: float
) -> None:
    """Feeds that were listed whole before the kill are not listed whole again, and no record is made twice."""
    scene = stage(engine, tmp_path, connector, stack)
    # A run of this size makes at least so many requests: one for each contact and company made in Propstreet, and 30.
    code, _ = scene.backfill(kill_at=int(share * (CONTACTS + 30)))
    assert code == -signal.SIGKILL
    before = scene.listings()
    assert min(before.values()) == 1
    code, (result,) = scene.backfill()
    assert (code, result["state"]) == (0, "done")
    again = scene.listings() - before
    assert again == Counter(), again
    assert_as_if_never_killed(scene)
    made = [call for call in scene.pair.hub.calls("POST", "/network/contacts$") if call.status == 201]
    assert len(made) <= CONTACTS + 1
