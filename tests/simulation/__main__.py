"""``make simulate SEEDS=1..200 STEPS=200``: play histories, print one line, and how to see a broken one again."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import click

from tests.simulation.histories import Played, play, shrink


def main() -> None:
    """Exits 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="make simulate")
    parser.add_argument("--seeds", default="1..200", help="from..to, both included")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shrink", type=int, default=3, metavar="N", help="make so many broken histories smaller")
    asked = parser.parse_args()
    first, _, last = asked.seeds.partition("..")
    seeds = range(int(first), int(last or first) + 1)
    found: list[Played] = []
    trace = hashlib.sha256()
    for each in _played(seeds, asked.steps, asked.jobs):
        trace.update(each.trace.encode())
        if each.broken:
            click.echo(
                f"seed {each.seed}: {each.broken[0]}" + (f" (and {n} more)" if (n := len(each.broken) - 1) else "")
            )
            if len([one for one in found if one.broken]) < asked.shrink:
                click.echo(f"  smaller: {shrink(each)}")
        found.append(each)
    total = sum((each.tally for each in found[1:]), found[0].tally) if found else None
    broken = sum(len(each.broken) for each in found)
    click.echo(f"{len(found)} histories, {total}, {broken} broken promises, trace {trace.hexdigest()[:16]}")
    raise SystemExit(1 if broken else 0)


def _played(seeds: range, steps: int, jobs: int) -> Iterator[Played]:
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(play, seeds, [steps] * len(seeds), chunksize=4)


if __name__ == "__main__":
    main()
