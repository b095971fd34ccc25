"""How long a change takes by its webhook: from one system, through the daemon, into the other.

``syncd serve`` runs in a process of its own, with the real database; the emulators of Propstreet and
HubSpot are in this one, share the machine with it, and sign what they send. The pair's interval is ten
minutes and its last run a moment ago, so that nothing but a webhook can be why a value arrives. Each edit
waits until the one before is done with, the word of our own write included. ``arrived`` is when the other
system holds the value; ``heard``, ``begun`` and ``ended`` say when the daemon kept the delivery, when the
run that it led to began and when that was over.

A run visits every open project for its prospects, a call each, whatever woke it: with many of them it takes
longer, and soon as long as Propstreet's quota says. See ``--projects``.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import structlog
import yaml
from sqlalchemy import func, select, text

from benchmarks.backfill import _database
from syncd.config import load
from syncd.demo import emulator_of
from syncd.state import embedded
from syncd.state import schema as s
from syncd.testing import portfolio
from syncd.web import ordering
from syncd.wiring import PROPSTREET, Service, check_pair, database, run_pair

CRM, TENANT = "hubspot", "nordhaus"
FIELD = {PROPSTREET: "strategy", CRM: "propstreet_strategy"}
LONGEST_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds from an edit until each of these was so."""

    heard: float
    begun: float
    arrived: float
    ended: float


@dataclass(frozen=True, slots=True)
class Street:
    """Both systems, and the database that the daemon works on."""

    service: Service
    systems: Mapping[str, Any]

    def contacts(self) -> list[dict[str, str]]:
        """The ids of contacts in both systems."""
        link = s.link.c
        query = select(link.left_id, link.right_id).where(link.kind == "contact", link.state == "in_step")
        with self.service.engine.connect() as tx:
            return [{PROPSTREET: row[0], CRM: row[1]} for row in tx.execute(query.order_by(link.left_id))]

    def edit(self, ids: Mapping[str, str], here: str, value: str) -> Took:
        """A person edits a contact in one system; how long until it is in the other."""
        (there,) = set(self.systems) - {here}
        at = self.service.now()
        self.systems[here].retouch("contact", ids[here], "strategy", value)
        until(lambda: self.systems[there].get("contacts", ids[there]).get(FIELD[there]) == value)
        arrived = (self.service.now() - at).total_seconds()
        self.settle()
        heard, begun, ended = ((each - at).total_seconds() for each in self._told(at))
        return Took(heard, begun, arrived, ended)

    def _told(self, at: datetime) -> tuple[datetime, datetime, datetime]:
        run, delivery = s.run.c, s.delivery.c
        with self.service.engine.connect() as tx:
            heard = tx.execute(select(func.min(delivery.heard_at)).where(delivery.heard_at > at)).scalar_one()
            first = select(run.started_at, run.finished_at).where(run.started_at > at).order_by(run.started_at)
            begun, ended = tx.execute(first.limit(1)).one()
        return heard, begun, ended

    def settle(self) -> None:
        """Nothing is on its way any more, and no run waits or goes on."""
        waiting = text("SELECT count(*) FROM procrastinate_jobs WHERE queue_name = 'runs'")

        def is_quiet() -> bool:
            boxes = [each.webhooks.outbox for each in self.systems.values()]
            with self.service.engine.connect() as tx:
                return all(each is None or each.settle() for each in boxes) and not tx.execute(waiting).scalar_one()

        until(is_quiet)


def until(is_so: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(int(LONGEST_SECONDS / 0.005)):
        if is_so():
            return
        pause.wait(0.005)
    raise RuntimeError("it never came")


@contextmanager
def street(server_url: str, projects: int) -> Iterator[Street]:
    """A tenant in step with a hundred contacts, its vendors' webhooks ordered, the daemon serving."""
    with (
        tempfile.TemporaryDirectory(prefix="syncd-bench-", ignore_cleanup_errors=True) as name,
        _database(server_url) as url,
    ):
        home, service = Path(name), Service(database(url))
        systems = {each: emulator_of(each)(now=service.now) for each in (CRM, PROPSTREET)}
        public_url = f"http://127.0.0.1:{_free_port()}"
        try:
            _settle_in(home, systems, public_url, projects)
            tenant = load(home / "tenants").tenant(TENANT)
            check_pair(service, tenant, tenant.pairs[0], is_fixing=True)
            for reason in ("backfill", "run", "run"):
                run_pair(service, tenant, tenant.pairs[0], reason)
            with _daemon(home, url, public_url):
                systems[PROPSTREET].webhooks.is_local = True
                ordering.register(service, tenant, public_url)
                secret = (home / "secrets" / f"{CRM}-webhooks").read_text()
                systems[CRM].deliver_to(f"{public_url}/webhooks/{TENANT}/{CRM}", secret)
                yield Street(service, systems)
        finally:
            for each in systems.values():
                each.stop()
            service.close()
            service.engine.dispose()


def _settle_in(home: Path, systems: Mapping[str, Any], public_url: str, projects: int) -> None:
    """Start and seed both systems, and write the files that lead to them."""
    stuff = portfolio.make(1, projects=projects, persons=100, firms=20, investors=3 * projects)
    refs: dict[str, Mapping[int, str]] = {}
    document: dict[str, Any] = {"tenant": TENANT, "audit": {"enabled": False}}
    for name in ("secrets", "tenants", "config"):
        (home / name).mkdir()
    for name, system in systems.items():
        connection: dict[str, Any] = {"base_url": system.start(), "auth": {}}
        refs[name] = system.seed(stuff, dict(refs))
        for key, secret in {**system.auth, "webhooks": secrets.token_hex(24)}.items():
            file = home / "secrets" / f"{name}-{key}"
            file.write_text(secret)
            where = connection if key == "webhooks" else connection["auth"]
            where[key] = {"secret": {"file": str(file)}} if key == "webhooks" else {"file": str(file)}
        if name == PROPSTREET:
            document[name] = connection
        else:
            document["pairs"] = [{"connector": name, **connection, "every": "10m", "share_of_quota": 1.0}]
    (home / "tenants" / f"{TENANT}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    port = int(public_url.rpartition(":")[2])
    settings = {"web": {"port": port, "public_url": public_url}, "workers": 2}
    (home / "config" / "syncd.yaml").write_text(yaml.safe_dump(settings))


@contextmanager
def _daemon(home: Path, url: str, public_url: str) -> Iterator[None]:
    """``syncd serve``, ready."""
    command = [str(Path(sys.executable).with_name("syncd")), "serve"]
    environment = {**os.environ, "SYNCD_DATABASE_URL": url, "SYNCD_CONFIG": str(home / "tenants")}
    with (home / "log").open("w") as log:
        daemon = subprocess.Popen(command, cwd=home, env=environment, stderr=log)  # noqa: S603 - our own
        try:
            until(lambda: daemon.poll() is not None or _is_ready(public_url))
            if daemon.returncode is not None:
                raise RuntimeError((home / "log").read_text())
            yield
        finally:
            daemon.terminate()
            daemon.wait(60)


def _is_ready(public_url: str) -> bool:
    try:
        return httpx.get(f"{public_url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=20, help="how many in each direction")
    parser.add_argument("--projects", type=int, default=5, help="how many there are; most of them are open")
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="syncd-bench-db-", ignore_cleanup_errors=True) as name:
        url = embedded.start(Path(name))
        try:
            with street(url, asked.projects) as here:
                _print(here, asked.edits)
        finally:
            embedded.stop(Path(name))


def _print(here: Street, number: int) -> None:
    contacts = here.contacts()
    print(f"{'seconds: median (best, worst)':<30}" + "".join(f"{each:>22}" for each in Took.__dataclass_fields__))
    for start, (side, other) in enumerate([(PROPSTREET, CRM), (CRM, PROPSTREET)]):
        here.settle()
        here.edit(contacts[-1 - start], side, "Before")  # what a process does once, it has done then
        took = [here.edit(contacts[2 * at + start], side, f"Edit {at}") for at in range(number)]
        columns = zip(*(asdict(each).values() for each in took), strict=True)
        told = (f"{median(column):.2f} ({min(column):.2f}, {max(column):.2f})" for column in columns)
        print(f"{f'{side} to {other}':<30}" + "".join(f"{each:>22}" for each in told), flush=True)


if __name__ == "__main__":
    main()
