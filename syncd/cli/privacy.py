"""``syncd erase`` and ``syncd prune``: what is forgotten at once, and what by age."""

from __future__ import annotations

from collections.abc import Mapping

import click

from syncd.cli.commands import JSON, PAIR, TENANT, _print_json, _service, cli


@cli.command()
@TENANT
@click.argument("ref", metavar="PERSON")
@PAIR
@click.option("--dry-run", is_flag=True, help="Show how many rows would change, and change none.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@JSON
def erase(tenant: str, ref: str, pair: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Make a person's values unreadable in all that syncd remembers. This cannot be undone.

    PERSON is an e-mail address, or an id: propstreet:ID, hubspot:ID, salesforce:ID.

    Erase the person in Propstreet and in the CRM first, and let a run follow: what still stands there is read
    and synced as ever, only its history is gone.
    """
    from syncd.wiring import erase_person

    with _service() as service:
        if not (dry_run or yes):
            planned = erase_person(service, tenant, pair, ref, is_dry=True)
            _print_counts(planned, "would change", is_err=True)
            click.confirm("Erase them? This cannot be undone", abort=True, err=True)
        done = erase_person(service, tenant, pair, ref, is_dry=dry_run)
    if as_json:
        _print_json([{"pair": name, "dry_run": dry_run, "rows": counts} for name, counts in done.items()])
    else:
        _print_counts(done, "would change" if dry_run else "changed")


@cli.command()
@click.option("--dry-run", is_flag=True, help="Show how many rows would go, and delete none.")
@JSON
def prune(dry_run: bool, as_json: bool) -> None:
    """Forget history that is older than syncd.yaml says (retention). syncd serve does so once a day."""
    from syncd.wiring import prune as forget

    with _service() as service:
        counts = forget(service, is_dry=dry_run)
    if as_json:
        _print_json({"dry_run": dry_run, "rows": counts})
    else:
        _print_counts({"all pairs": counts}, "would go" if dry_run else "went")


def _print_counts(by_pair: Mapping[str, Mapping[str, int]], what: str, *, is_err: bool = False) -> None:
    for name, counts in by_pair.items():
        told = ", ".join(f"{table} {count:,}" for table, count in counts.items() if count)
        click.echo(f"{name}   {what}: {told or 'nothing'}", err=is_err)
