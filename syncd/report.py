"""How results look to a person, and the documents behind ``--json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from sqlalchemy import Engine

from syncd.core.model import KINDS, Side
from syncd.state.journal import describe, find_plan, read_entries
from syncd.wiring import Result

#: Operations that a saved plan shows one by one on a terminal.
SHOWN = 20
#: So much of a plan's id tells it from others where it is named a second time.
BRIEF = 8

_SIDES = {Side.LEFT: "propstreet", Side.RIGHT: "crm"}


def as_document(result: Result) -> dict[str, Any]:
    """One run as JSON."""
    return {
        "tenant": result.tenant,
        "pair": result.pair,
        "connector": result.connector,
        "state": result.state,
        "plan": result.plan_id,
        "message": result.message,
        **result.report.as_json(),
        "api_calls": {
            name: {"made": made, "least": result.least.get(name)} for name, made in sorted(result.made.items())
        },
        "write_calls": result.write_calls,
    }


def print_result(result: Result) -> None:
    """One run as a few lines."""
    click.echo(f"{result.tenant}   propstreet <> {result.pair}   {result.state}")
    report = result.report
    width = _what_width(result.pair)
    for verb, counter in (
        ("created", report.created),
        ("updated", report.updated),
        ("deleted", report.deleted),
        ("marked", report.marked),
    ):
        for kind in KINDS:
            for side in Side:
                if count := counter[kind, side]:
                    where = _SIDES[side] if side is Side.LEFT else result.pair
                    click.echo(f"  {verb:<10}{f'{where} {kind}':<{width}}{count:>8,}")
    for name, counts in (("linked", report.linked), ("conflict", report.conflicts), ("refused", report.rejected)):
        for kind, count in sorted(counts.items()):
            if count:
                click.echo(f"  {name:<10}{kind:<{width}}{count:>8,}")
    if result.state == "done" and not report.operations:
        click.echo("  nothing to do; both sides are in step")
    calls = ", ".join(f"{made} to {name}" for name, made in sorted(result.made.items()) if made)
    if calls:
        click.echo(f"  calls     {calls}")
    if result.message:
        click.echo(f"  {result.message}")
    if result.state == "halted" and result.plan_id is not None:
        click.echo(f"  Look at it:  syncd show {result.plan_id[:BRIEF]}")
        click.echo(f"  Let it go:   syncd apply {result.plan_id}")
        click.echo(f"  Or drop it:  syncd discard {result.plan_id[:BRIEF]}")


def _what_width(pair: str) -> int:
    """Room for the longest of ``SIDE KIND``, so that the counts stand below each other."""
    return max(len(name) for name in ("propstreet", pair)) + max(map(len, KINDS)) + 1


def plan_document(engine: Engine, result: Result) -> dict[str, Any]:
    """A saved plan as JSON; an empty one if there was nothing to do."""
    if result.plan_id is None:
        return {"plan": None, "hash": None, "tenant": result.tenant, "pair": result.pair, "operations": []}
    row = find_plan(engine, result.plan_id)
    return {
        "plan": row.id,
        "hash": row.hash,
        "tenant": result.tenant,
        "pair": result.pair,
        "operations": [describe(entry) for entry in read_entries(engine, row.id)],
    }


def saved_document(engine: Engine, plan_id: str) -> dict[str, Any]:
    """A saved plan as JSON, with its state and the reasons for which it waits. Raises NotFoundError."""
    row = find_plan(engine, plan_id)
    tenant, _, pair = row.pair.partition("/")
    return {
        "plan": row.id,
        "hash": row.hash,
        "tenant": tenant,
        "pair": pair,
        "state": row.state,
        "reasons": row.reasons,
        "operations": [describe(entry) for entry in read_entries(engine, row.id)],
    }


def print_saved(document: Mapping[str, Any]) -> None:
    """A saved plan as a person reads it, record by record for the first ones, and what can be done with it."""
    click.echo(f"{document['tenant']}   propstreet <> {document['pair']}")
    click.echo(f"  plan {document['plan']}, {document['state']}")
    for reason in document["reasons"]:
        click.echo(f"  waits: {reason}")
    _print_groups(document, document["pair"])
    for operation in document["operations"][:SHOWN]:
        ids = f"propstreet {operation['propstreet'] or '-'}  crm {operation['crm'] or '-'}"
        click.echo(f"    {operation['verb']} {operation['side']} {operation['kind']}  {ids}  {operation['why']}")
    if len(document["operations"]) > SHOWN:
        click.echo(f"    and {len(document['operations']) - SHOWN:,} more; all of them with --json")
    if document["state"] == "open":
        click.echo(f"Run it with: syncd apply {document['plan']}\nDrop it with: syncd discard {document['plan']}")


def print_plan(result: Result, document: Mapping[str, Any]) -> None:
    """A plan as a person reads it: how many of what, and which fields."""
    click.echo(f"{result.tenant}   propstreet <> {result.pair}")
    if result.message:
        click.echo(f"  {result.message}")
    if not _print_groups(document, result.pair):
        if result.state == "done":
            click.echo("  nothing to do; both sides are in step")
        return
    click.echo(f"Nothing was written. Run it with: syncd apply {document['plan']}")


def _print_groups(document: Mapping[str, Any], pair: str) -> bool:
    """How many of what, and which fields; False if there is nothing."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for operation in document["operations"]:
        groups.setdefault((operation["verb"], operation["side"], operation["kind"]), []).append(operation)
    for (verb, side, kind), operations in groups.items():
        where = side if side == "propstreet" else pair
        fields: dict[str, int] = {}
        if verb == "update":
            for operation in operations:
                for name in operation["fields"]:
                    fields[name] = fields.get(name, 0) + 1
        told = ", ".join(f"{name} {count}" for name, count in sorted(fields.items(), key=lambda item: -item[1])[:6])
        click.echo(f"  {verb:<10}{f'{where} {kind}':<{_what_width(pair)}}{len(operations):>8,}    {told}".rstrip())
    return bool(groups)


def print_status(each: Mapping[str, Any]) -> None:
    """One pair's standing."""
    click.echo(f"{each['tenant']}   propstreet <> {each['pair']}   {each['state']}")
    for kind in KINDS:
        counts = each["kinds"].get(kind)
        if counts is None:
            continue
        rest = "".join(
            f"   {counts[name]:,} {label}"
            for name, label in (
                ("conflicts", "in conflict"),
                ("in_review", "in review"),
                ("excluded", "excluded"),
                ("dead_letters", "dead letters"),
                ("settling", "settling"),
                ("held", "held still"),
            )
            if counts[name]
        )
        click.echo(f"  {kind:<14}{counts['linked']:>9,} linked{rest}")
    if each["halted"]:
        click.echo(f"  halted: {each['halted']}")
        if each["plan"]:
            click.echo(f"  go on with: syncd apply {each['plan']}")
            click.echo(
                f"  look at it: syncd show {each['plan'][:BRIEF]}, or drop it: syncd discard {each['plan'][:BRIEF]}"
            )
        else:
            click.echo(f"  go on with: syncd resume {each['tenant']}")
    last = each["last_run"]
    if last is not None:
        click.echo(
            f"  last run   {last['started_at'][:19]}Z {last['reason']} {last['state']}  {last['message']}".rstrip()
        )


def print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows under a heading; wide cells are cut."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("tenant", "pair", *columns):
        table.add_column(name.replace("_", " "), overflow="fold")
    empty = True
    for row in rows:
        empty = False
        table.add_row(*(_cell(row.get(name)) for name in ("tenant", "pair", *columns)))
    if empty:
        click.echo("none")
        return
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "; ".join(map(_candidate, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _candidate(each: Mapping[str, Any]) -> str:
    """A record that may be meant, and why: with what people know it by."""
    known = ", ".join(part for part in (each.get("name"), each.get("known_by")) if part)
    linked = [f"linked to {each['linked_to']}"] if each.get("linked_to") else []
    told = ", ".join([*each.get("reasons", []), *linked])
    return " ".join(part for part in (each["id"], known, f"({told})") if part)
