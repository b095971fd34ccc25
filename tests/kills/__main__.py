"""``make kills``: every flow on both CRMs, killed at every passing of every point; prints what was survived."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import create_engine

from syncd.log import set_up
from syncd.state import embedded, migrate
from tests.conftest import forget_disk
from tests.kills.flows import FLOWS
from tests.kills.killer import POINTS, Killer
from tests.kills.stage import Databases, Stage

PAGE: Final = Path(__file__).parents[2] / "docs" / "kill-points.md"
_BEGIN: Final = "<!-- what make kills found -->\n"
CRMS: Final = ("hubspot", "salesforce")


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one flow on one CRM."""

    flow: str
    crm: str
    passings: Counter[str]
    killed: int
    worlds: int
    broken: tuple[str, ...]

    def row(self) -> str:
        """A line of the table."""
        counts = [*(self.passings[point] for point in POINTS), self.killed, self.worlds]
        cells = [self.flow, self.crm, *(str(each or "") for each in counts), str(self.killed - len(self.broken))]
        return f"| {' | '.join(cells)} |"


def hunt(url: str, template: str, folder: Path, flow: str, crm: str, points: frozenset[str]) -> Found:
    """Kill one flow on one CRM at every passing of these points."""
    folder.mkdir(parents=True)
    set_up("error", is_terminal=False)
    databases, killer = Databases(url), Killer(folder)
    stage = Stage(FLOWS[flow], crm, databases, template, folder / "stage", killer)
    broken: list[str] = []
    killed = worlds = 0
    chosen = {point: times for point, times in stage.counts().items() if point.partition(".")[0] in points}
    for point, times in chosen.items():
        for nth in range(1, times + 1):
            killed += 1
            try:
                worlds += stage.play_once(point, nth)
            except AssertionError as exc:
                broken.append(str(exc))
    passings = Counter(point.removesuffix(".after") for point in stage.passed if point.endswith(".after"))
    stage.close()
    killer.close()
    databases.close()
    return Found(flow, crm, passings, killed, worlds, tuple(broken))


def table(found: list[Found]) -> str:
    """Flow by point: how often each is passed; then kills and survivals."""
    order = {name: place for place, name in enumerate(FLOWS)}
    rows = [each.row() for each in sorted(found, key=lambda each: (order[each.flow], each.crm))]
    killed, broken = sum(each.killed for each in found), sum(len(each.broken) for each in found)
    head = ["flow", "CRM", *POINTS, "killed", "worlds", "survived"]
    worlds = sum(each.worlds for each in found)
    total = f"| **all** | | {' | '.join('' for _ in POINTS)} | {killed} | {worlds} | {killed - broken} |"
    return "\n".join([f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(POINTS) + 3), *rows, total, ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="make kills", description=__doc__)
    parser.add_argument("--flow", action="append", choices=FLOWS, help="only this flow; may be repeated")
    parser.add_argument("--crm", action="append", choices=CRMS, help="only this CRM")
    parser.add_argument("--point", action="append", choices=POINTS, help="only this kind of point; may be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="syncd-kills-", ignore_cleanup_errors=True) as home:
        points = frozenset(asked.point or POINTS)
        found = _hunt_all(Path(home), asked.flow or list(FLOWS), asked.crm or list(CRMS), points, asked.jobs)
    shown = table(found)
    print("\n" + shown)
    if asked.write:
        before, _, _ = PAGE.read_text().partition(_BEGIN)
        PAGE.write_text(before + _BEGIN + "\n" + shown)
    return int(any(each.broken for each in found))


def _hunt_all(home: Path, flows: list[str], crms: list[str], points: frozenset[str], jobs: int) -> list[Found]:
    url = embedded.start(home / "database")
    forget_disk(url)
    databases = Databases(url)
    template = databases.copy("template0")
    engine = create_engine(databases.url(template))
    migrate.upgrade(engine)
    engine.dispose()
    databases.close()
    found: list[Found] = []
    with ProcessPoolExecutor(jobs) as pool:
        asked = [
            pool.submit(hunt, url, template, home / crm / flow, flow, crm, points) for flow in flows for crm in crms
        ]
        for each in as_completed(asked):
            done = each.result()
            found.append(done)
            print(f"{done.flow} {done.crm}: killed {done.killed}, broken {len(done.broken)}", flush=True)
            for broken in done.broken:
                print(f"  {broken}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
