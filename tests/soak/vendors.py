"""A town of vendors in a process of its own: two emulators for each tenant, and the people who work in them.

Every emulator has a port of its own and all share one event loop, so that four hundred of them cost what a
few do. What goes wrong goes wrong here: the daemon and whoever measures it only hear of it over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.propstreet.emulator import PropstreetEmulator
from connectors.salesforce.emulator import SalesforceEmulator
from syncd.testing.emulator import Call, Emulator, reply
from tests.faults.harness import CRMS, Pair, is_write
from tests.soak.people import CONTACTS, Edit, People, now

#: The logs of the emulators are counted and emptied this often, or they would be what grows.
COUNT_SECONDS = 5.0
#: Whom the CRM of a poisoned tenant refuses.
POISONED = "hub0@example.com"


@dataclass(frozen=True, slots=True)
class Seen:
    """What people have seen so far: edits that arrived, after how long, and those that did not yet."""

    edits: int
    arrived: Sequence[tuple[Edit, float]]
    waiting: Sequence[Edit]
    calls: Mapping[int, int]


class Town:
    """The emulators of many tenants behind one event loop."""

    def __init__(self, home: Path, tenants: int, every: str):
        self._apps: dict[int, tuple[Emulator, Starlette]] = {}
        self._silent: set[Emulator] = set()
        self._doors: list[socket.socket] = []
        self._over = threading.Event()
        self.calls: Counter[int] = Counter()
        self.pairs: list[Pair] = []
        for number in range(tenants):
            hub, crm = PropstreetEmulator(now=now), _crm(number)
            # An account of each tenant's own, or all would share the quota of one.
            hub.auth = {**hub.auth, "client_id": f"client-{number}"}
            for emulator in (hub, crm):
                self._open(emulator)
            pair = Pair(f"tenant{number:03d}", CRMS[number % 2], home / "tenants", hub, crm, {"every": every})
            pair.seed(contacts=CONTACTS, deals=2)
            self.pairs.append(pair)
        config = uvicorn.Config(
            self._answer, interface="asgi3", lifespan="off", log_level="critical", access_log=False,
            proxy_headers=False, timeout_keep_alive=300, date_header=False,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        for work in (lambda: self._server.run(sockets=self._doors), self._count):
            threading.Thread(target=work, daemon=True).start()

    def _open(self, emulator: Emulator) -> None:
        door = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        door.bind(("127.0.0.1", 0))
        door.listen(128)
        port = door.getsockname()[1]
        emulator.url = f"http://127.0.0.1:{port}"
        self._apps[port] = (emulator, emulator.application())
        self._doors.append(door)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        emulator, app = self._apps[scope["server"][1]]
        if emulator not in self._silent:
            return await app(scope, receive, send)
        while emulator in self._silent:
            await asyncio.sleep(0.2)
        return None  # whoever still waits sees the connection close; nothing was done

    def _count(self) -> None:
        while not self._over.wait(COUNT_SECONDS):
            self.count()

    def count(self) -> None:
        for number, pair in enumerate(self.pairs):
            for emulator in (pair.hub, pair.crm):
                with emulator.lock:
                    self.calls[number] += len(emulator.log)
                    emulator.log.clear()

    # --- what goes wrong ------------------------------------------------------------------

    def hang(self, number: int) -> None:
        """Its CRM takes connections and never answers."""
        self._silent.add(self.pairs[number].crm)

    def answer(self, number: int) -> None:
        """It answers again; what it was asked meanwhile, it never did."""
        self._silent.discard(self.pairs[number].crm)

    def revoke(self, number: int) -> None:
        """Its CRM refuses the token, and gives no other."""
        crm = self.pairs[number].crm

        def refuse(call: Call) -> Response:
            if call.path.endswith("/token"):
                return reply(400, {"error": "invalid_grant", "error_description": "inactive user"})
            if isinstance(crm, HubSpotEmulator):
                return reply(401, {"status": "error", "category": "INVALID_AUTHENTICATION", "message": "revoked"})
            return reply(401, [{"message": "Session expired or invalid", "errorCode": "INVALID_SESSION_ID"}])

        crm.admit = refuse  # type: ignore[method-assign]

    def poison(self, number: int) -> None:
        """Its CRM refuses one record, whatever is sent of it; then somebody edits that one in Propstreet."""
        pair = self.pairs[number]
        crm, admit = pair.crm, pair.crm.admit
        (id_,) = _ids(crm, POISONED)

        def refuse(call: Call) -> Response | None:
            if is_write(call) and f'"{id_}"' in json.dumps(call.body):
                if isinstance(crm, HubSpotEmulator):
                    return reply(400, {"status": "error", "category": "VALIDATION_ERROR", "message": "no"})
                return reply(400, [{"message": "no", "errorCode": "FIELD_CUSTOM_VALIDATION_EXCEPTION"}])
            return admit(call)

        crm.admit = refuse  # type: ignore[method-assign]
        pair.hub_rename(POISONED, "Poison")


def _crm(number: int) -> Emulator:
    if CRMS[number % 2] == "hubspot":
        return HubSpotEmulator(now=now, is_prepared=True, portal_id=47_110_000 + number)
    crm = SalesforceEmulator(now=now)
    crm.org_id = f"00D{number:012d}{crm.org_id[-3:]}"
    return crm


def _ids(crm: Emulator, email: str) -> list[str]:
    if isinstance(crm, HubSpotEmulator):
        return [id_ for id_, row in crm.all("contacts").items() if row.get("email") == email]
    assert isinstance(crm, SalesforceEmulator)
    return [row["Id"] for row in crm.all("Contact") if row["Email"] == email]


def live(line: Connection, home: Path, tenants: int, every: str, seed: int, edits_per_second: float) -> None:
    """Build the town, then do what is asked for over ``line`` until it is closed."""
    town = Town(home, tenants, every)
    people = People(town.pairs, seed, pause_seconds=1.0 / edits_per_second)

    def seen() -> Seen:
        people.look()
        town.count()
        return Seen(people.edits, list(people.seen), list(people.waiting.values()), dict(town.calls))

    def hang(number: int) -> None:
        town.hang(number)
        people.edit(number)  # so that something waits for its return

    def poison(number: int) -> None:
        people.left_alone.add((number, POISONED))
        people.waiting.pop((number, POISONED), None)
        town.poison(number)

    def apart() -> list[int]:
        """Whose two sides do not say the same, or say something twice."""
        return [number for number, pair in enumerate(town.pairs) if not _is_in_step(pair)]

    does: Mapping[str, Callable[..., Any]] = {
        "edit": people.__enter__, "rest": people.rest, "seen": seen, "apart": apart, "poison": poison,
        "hang": hang, "answer": town.answer, "revoke": town.revoke,
    }  # fmt: skip
    line.send("ready")
    while True:
        try:
            name, *args = line.recv()
        except EOFError:
            return
        answer = does[name](*args)
        line.send(None if name == "edit" else answer)


def _is_in_step(pair: Pair) -> bool:
    try:
        pair.assert_in_step()
    except AssertionError:
        return False
    return True
