"""Emulated vendors to follow the first steps of docs/ with, instead of accounts.

``python -m tests.deploy.vendors hubspot`` (or ``salesforce``) serves a Propstreet and a CRM with a believable
portfolio, says by which settings syncd reaches them, and stays until it is interrupted.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime

import click
from sqlalchemy import create_engine

from syncd.demo import emulator_of
from syncd.testing import portfolio
from syncd.wiring import PROPSTREET, Service

#: The portfolio of the pages, and the ports that their files name.
SEED = 7
PORTS: Mapping[str, int] = {PROPSTREET: 8801, "hubspot": 8802, "salesforce": 8803}
#: Environment variables that the pages call the credentials by.
NAMES: Mapping[tuple[str, str], str] = {
    (PROPSTREET, "client_id"): "NORDHAUS_PS_ID",
    (PROPSTREET, "client_secret"): "NORDHAUS_PS_SECRET",
    ("hubspot", "access_token"): "NORDHAUS_HUBSPOT_TOKEN",
    ("salesforce", "client_id"): "NORDHAUS_SF_ID",
    ("salesforce", "client_secret"): "NORDHAUS_SF_SECRET",
}


@dataclass(frozen=True, slots=True)
class Vendors:
    """Where each vendor answers, and the credentials by the names of the environment variables."""

    urls: Mapping[str, str]
    secrets: Mapping[str, str]


@contextmanager
def serving(crm: str, now: Callable[[], datetime], ports: Mapping[str, int]) -> Iterator[Vendors]:
    """A Propstreet and a CRM with the portfolio in them; a port that is not named is any free one."""
    stuff = portfolio.make(SEED, now=now())
    urls: dict[str, str] = {}
    secrets: dict[str, str] = {}
    refs: dict[str, Mapping[int, str]] = {}
    with ExitStack() as stack:
        for name in (crm, PROPSTREET):
            emulator = emulator_of(name)(now=now)
            urls[name] = emulator.start(ports.get(name, 0))
            stack.callback(emulator.stop)
            refs[name] = emulator.seed(stuff, dict(refs))
            secrets |= {NAMES[name, key]: text for key, text in emulator.auth.items() if (name, key) in NAMES}
        yield Vendors(urls, secrets)


def main(crm: str) -> None:
    service = Service(create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none"))
    with serving(crm, service.now, PORTS) as vendors:
        for name, url in sorted(vendors.urls.items()):
            click.echo(f"{name} answers at {url}")
        for name, text in vendors.secrets.items():
            click.echo(f"export {name}={text}")
        click.echo("Stop them with Ctrl-C.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "hubspot")
