"""A warm process and a server for the killed commands; each flow is made ready once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kills.flows import FLOWS
from tests.kills.killer import Killer
from tests.kills.stage import Databases, Stage

Staged = Callable[[str, str], Stage]


@pytest.fixture(scope="session")
def staged(database_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staged]:
    """Makes a flow ready on a CRM, or answers with the one that is; at most one is kept."""
    folder: Path = tmp_path_factory.mktemp("kills")
    databases, killer = Databases(database_url), Killer(folder)
    ready: dict[tuple[str, str], Stage] = {}

    def stage(flow: str, crm: str) -> Stage:
        if (flow, crm) not in ready:
            for key in list(ready):
                ready.pop(key).close()
            ready[flow, crm] = Stage(FLOWS[flow], crm, databases, template, folder / f"{flow}-{crm}", killer)
        return ready[flow, crm]

    yield stage
    for each in ready.values():
        each.close()
    killer.close()
    databases.close()
