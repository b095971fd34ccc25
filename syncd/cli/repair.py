"""Commands that look back and put right: ``runs``, ``undo``, ``audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from syncd.cli.commands import (
    ANY_TENANT,
    JSON,
    PAIR,
    TENANT,
    _exit_code,
    _pairs,
    _print_json,
    _progress,
    _service,
    cli,
)

if TYPE_CHECKING:
    from syncd.core.undo import Leftover

#: Reasons that leave nothing for a person: what was to be undone is so already.
_DONE = ("already as before", "gone already", "there again")


@cli.command()
@ANY_TENANT
@PAIR
@click.option("--limit", metavar="N", default=50, show_default=True, type=click.IntRange(min=1), help="At most N.")
@JSON
def runs(tenant: str | None, pair: str | None, limit: int, as_json: bool) -> None:
    """The latest runs: when, why, how each ended, and how many records it wrote. syncd undo takes one back."""
    from syncd.report import print_runs
    from syncd.state import history
    from syncd.state.desk import Scope

    with _service() as service:
        found = history.runs(service.engine, Scope(tenant, pair), limit)
    if as_json:
        _print_json(found)
    else:
        print_runs(found)


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.option("--yes", "is_applied", is_flag=True, help="Carry it out at once; brakes hold.")
@click.option("--dry-run", is_flag=True, help="Only show it, and save the plan; the default.")
@JSON
@click.pass_obj
def undo(folder: Path, run_id: str, is_applied: bool, dry_run: bool, as_json: bool) -> None:
    """Take a run back: restore what stood before it, where nobody has edited since, and list the rest.

    RUN is an id from syncd runs, or the beginning of one. Both sides are read again first. Records that the
    run made are archived and their sources put on hold; links that it made stay. Saves a plan: syncd apply PLAN.
    """
    from syncd.report import print_undo, undo_document
    from syncd.state import history
    from syncd.wiring import run_pair

    if is_applied and dry_run:
        raise click.UsageError("--yes and --dry-run contradict each other")
    with _service() as service:
        run = history.find_run(service.engine, run_id)
        tenant, _, name = run.pair.partition("/")
        ((t, p),) = _pairs(folder, tenant, name)
        result = run_pair(service, t, p, "undo", undone=run, is_dry=not is_applied)
        document = undo_document(service.engine, result, run, is_applied=is_applied)
    if as_json:
        _print_json(document)
    else:
        print_undo(result, document)
    waits = is_applied and any(_is_open(each) for each in result.leftovers)
    raise SystemExit(_exit_code([result], waits=waits))


def _is_open(leftover: Leftover) -> bool:
    return leftover.reason not in _DONE


@cli.command()
@TENANT
@PAIR
@click.option("--kind", "kinds", metavar="KIND", multiple=True, help="Only this kind; may be repeated.")
@click.option("--values", "has_values", is_flag=True, help="Print the two values of what is unexplained, too.")
@JSON
@click.pass_obj
def audit(folder: Path, tenant: str, pair: str | None, kinds: tuple[str, ...], has_values: bool, as_json: bool) -> None:
    """Read both sides whole, and compare them with what is remembered. Writes nothing, to either side.

    Counts what is identical and what differs for a known reason, and names what nothing explains: then it exits 3.
    """
    from syncd.core.model import KINDS
    from syncd.report import audit_document, print_audit
    from syncd.wiring import audit_pair

    if unknown := sorted(set(kinds) - set(KINDS)):
        raise click.UsageError(f"unknown kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}")
    with _service() as service, _progress() as progress:
        found = [
            audit_pair(service, t, p, kinds=kinds or None, progress=progress) for t, p in _pairs(folder, tenant, pair)
        ]
    if as_json:
        _print_json([audit_document(each, has_values=has_values) for each in found])
    else:
        for each in found:
            print_audit(each, has_values=has_values)
    if any(each.unexplained for each in found):
        raise SystemExit(3)
