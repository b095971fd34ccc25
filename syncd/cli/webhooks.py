"""``syncd webhooks``: ordering webhooks at Propstreet, whose API lets them be ordered."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from syncd.cli.commands import JSON, TENANT, _pairs, _print_json, _service, cli

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class _Duration(click.ParamType[timedelta]):
    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"([1-9][0-9]{0,4})([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is not a duration; write a number and its unit: 30m, 6h, 2d", param, ctx)
        return timedelta(**{_UNITS[found[2]]: int(found[1])})


@cli.group()
def webhooks() -> None:
    """Have Propstreet tell at once what changed. HubSpot and Salesforce are set up by hand: docs/webhooks.md."""


@webhooks.command()
@TENANT
@click.option("--url", metavar="URL", help="How the outside reaches syncd [default: web.public_url in syncd.yaml].")
@click.option("--anew", is_flag=True, help="Order it again, with a new secret, though it stands.")
@JSON
@click.pass_obj
def register(folder: Path, tenant: str, url: str | None, anew: bool, as_json: bool) -> None:
    """Subscribe to everything, and keep the secret in the file that propstreet.webhooks.secret names."""
    from syncd.config import load_service
    from syncd.errors import ConfigError
    from syncd.web import ordering

    public_url = url or load_service().web.public_url
    if public_url is None:
        raise ConfigError(
            "nothing says how Propstreet reaches syncd: set web.public_url in syncd.yaml, or give --url https://..."
        )
    mine = _pairs(folder, tenant, None)[0][0]
    with _service() as service:
        done = ordering.register(service, mine, public_url, is_anew=anew)
    if as_json:
        _print_json({**_shown(done.subscription), "secret_file": str(done.secret_file), "new": done.is_new})
        return
    click.echo(f"{tenant}   {'ordered' if done.is_new else 'stands already'}: {done.subscription.url}")
    click.echo(f"Its secret is in {done.secret_file}, which syncd serve must be able to read.")


@webhooks.command(name="list")
@TENANT
@JSON
@click.pass_obj
def list_command(folder: Path, tenant: str, as_json: bool) -> None:
    """Show what Propstreet sends, and where to."""
    from syncd.web import ordering

    mine = _pairs(folder, tenant, None)[0][0]
    with _service() as service:
        found = ordering.orders(service, mine)
    if as_json:
        _print_json([{**_shown(each), "ours": is_ours} for each, is_ours in found])
        return
    for each, is_ours in found:
        state = {True: "active", False: "disabled", None: "state not told"}[each.is_active]
        click.echo(f"{each.id}   {each.url}   {state}, {len(each.events)} events{'' if is_ours else ', not ours'}")
    if not found:
        click.echo(f"Nothing is ordered. Order it with: syncd webhooks register {tenant}")


@webhooks.command()
@TENANT
@JSON
@click.pass_obj
def remove(folder: Path, tenant: str, as_json: bool) -> None:
    """Order no more. Changes are found by looking, as before."""
    from syncd.web import ordering

    mine = _pairs(folder, tenant, None)[0][0]
    with _service() as service:
        gone = ordering.remove(service, mine)
    if as_json:
        _print_json([_shown(each) for each in gone])
        return
    for each in gone:
        click.echo(f"{tenant}   no more sent to {each.url}")
    if not gone:
        click.echo(f"{tenant}   nothing was ordered")


@webhooks.command()
@TENANT
@click.option("--since", required=True, type=_Duration(), help="How far back: 30m, 6h, 2d.")
@JSON
@click.pass_obj
def replay(folder: Path, tenant: str, since: timedelta, as_json: bool) -> None:
    """Have deliveries that failed sent again, after an outage. Nothing is lost without: runs find it, too."""
    from syncd.web import ordering

    mine = _pairs(folder, tenant, None)[0][0]
    with _service() as service:
        count = ordering.replay(service, mine, service.now() - since)
    if as_json:
        _print_json({"replayed": count})
    else:
        click.echo(f"{tenant}   sent again: {count}")


def _shown(each: Any) -> dict[str, Any]:
    return {"id": each.id, "url": each.url, "events": list(each.events), "active": each.is_active}
