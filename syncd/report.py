"""How results look to a person, and the documents behind ``--json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from sqlalchemy import Engine

from syncd.core.audit import Difference
from syncd.core.mapping import show
from syncd.core.model import KINDS, Side
from syncd.state.history import RunRow
from syncd.state.journal import describe, find_plan, read_entries
from syncd.wiring import Audited, Result

#: Lines of one list that a terminal is shown; ``--json`` has them all.
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


def print_result(result: Result, waiting: Sequence[str] = ()) -> None:
    """One run as a few lines. ``waiting``: the lists of what waits for a person in this pair."""
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
        click.echo(_nothing(waiting))
    calls = ", ".join(f"{made} to {name}" for name, made in sorted(result.made.items()) if made)
    if calls:
        click.echo(f"  calls     {calls}")
    if result.message:
        click.echo(f"  {result.message}")
    if result.state == "halted" and result.plan_id is not None:
        click.echo(f"  Look at it:  syncd show {result.plan_id[:BRIEF]}")
        click.echo(f"  Let it go:   syncd apply {result.plan_id}")
        click.echo(f"  Or drop it:  syncd discard {result.plan_id[:BRIEF]}")
    if waiting:
        lists = ", ".join(f"syncd {name} {result.tenant}{_OPEN.get(name, '')}" for name in waiting)
        click.echo(f"  for you   {lists}")


_OPEN = {"conflicts": " --open"}


def _nothing(waiting: Sequence[str]) -> str:
    return f"  nothing to do{' until a person decides' if waiting else '; both sides are in step'}"


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


def print_plan(result: Result, document: Mapping[str, Any], waiting: Sequence[str] = ()) -> None:
    """A plan as a person reads it: how many of what, and which fields. ``waiting`` as in ``print_result``."""
    click.echo(f"{result.tenant}   propstreet <> {result.pair}")
    if result.message:
        click.echo(f"  {result.message}")
    if not _print_groups(document, result.pair):
        if result.state == "done":
            click.echo(_nothing(waiting))
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


def undo_document(engine: Engine, result: Result, run: RunRow, *, is_applied: bool) -> dict[str, Any]:
    """What takes a run back, as JSON: the plan, the brakes that hold it, and what is left with its reason."""
    row = find_plan(engine, result.plan_id) if result.plan_id is not None else None
    return {
        "undo": run.id,
        "state": result.state,
        "message": result.message,
        "applied": is_applied and result.state == "done",
        **plan_document(engine, result),
        "brakes": list(row.reasons) if row is not None else [],
        "left": [
            {
                "kind": each.kind,
                "side": _SIDES[each.side],
                "propstreet": each.left_id,
                "crm": each.right_id,
                "field": each.field or None,
                "reason": each.reason,
            }
            for each in result.leftovers
        ],
    }


def print_undo(result: Result, document: Mapping[str, Any]) -> None:
    """What takes a run back, as a person reads it: the plan, then what is left."""
    click.echo(f"{result.tenant}   propstreet <> {result.pair}   undo of run {document['undo']}")
    if result.state in ("failed", "busy", "resting"):
        click.echo(f"  {result.message}")
        return
    _print_groups(document, result.pair)
    for each in document["left"][:SHOWN]:
        click.echo(f"  left      {_named(each, result.pair)}   {each['reason']}")
    if len(document["left"]) > SHOWN:
        click.echo(f"  left      {len(document['left']) - SHOWN:,} more; --json names all")
    for reason in document["brakes"]:
        click.echo(f"  brake     {reason}")
    if not document["operations"]:
        click.echo("Nothing is to be written.")
    elif document["applied"]:
        click.echo("Done. Links that the run made stay.")
    else:
        click.echo(f"Nothing was written. Carry it out with: syncd apply {document['plan']}")


def _named(each: Mapping[str, Any], pair: str) -> str:
    refs = [f"{name}:{id_}" for name, id_ in (("propstreet", each["propstreet"]), (pair, each["crm"])) if id_]
    return " ".join([each["kind"], *refs, *([each["field"]] if each["field"] else [])])


def audit_document(audited: Audited, *, has_values: bool) -> dict[str, Any]:
    """What an audit came to, as JSON; values only if asked for."""

    def told(each: Difference) -> dict[str, Any]:
        row: dict[str, Any] = {
            "kind": each.kind,
            "propstreet": each.left_id,
            "crm": each.right_id,
            "field": each.field or None,
            "side": _SIDES[each.side] if each.side is not None else None,
            "reason": each.reason,
        }
        values = {"propstreet_value": show(each.left), "crm_value": show(each.right)}
        return row | values if has_values else row

    return {
        "tenant": audited.tenant,
        "pair": audited.pair,
        "kinds": {kind: tally.as_json() for kind, tally in audited.kinds.items()},
        "unexplained": [told(each) for each in audited.unexplained],
        "api_calls": dict(audited.made),
    }


def print_audit(audited: Audited, *, has_values: bool) -> None:
    """What an audit came to: counts by kind and known reason, then what nothing explains and what helps."""
    click.echo(f"{audited.tenant}   propstreet <> {audited.pair}   audit")
    for kind, tally in audited.kinds.items():
        click.echo(f"  {kind:<14}{tally.identical:>9,} identical")
        for reason, count in sorted(tally.known.items()):
            click.echo(f"  {'':<14}{count:>9,} {reason}")
        if tally.unexplained:
            click.echo(f"  {'':<14}{tally.unexplained:>9,} unexplained")
    document = audit_document(audited, has_values=has_values)
    for each in document["unexplained"][:SHOWN]:
        where = f" ({audited.pair if each['side'] == 'crm' else each['side']})" if each["side"] else ""
        values = f"   {each['propstreet_value']!r} | {each['crm_value']!r}" if has_values else ""
        click.echo(f"  unexplained   {_named(each, audited.pair)}   {each['reason']}{where}{values}")
    more = len(document["unexplained"]) - SHOWN
    if more > 0:
        click.echo(f"  unexplained   {more:,} more; --json names all")
    if document["unexplained"]:
        click.echo(f"Compare anew with: syncd backfill {audited.tenant} --dry-run")
    else:
        click.echo("Nothing is unexplained.")


def print_runs(found: Sequence[Mapping[str, Any]]) -> None:
    """Runs, one a line."""
    for each in found:
        where = f"{each['tenant']}/{each['pair']}"
        head = f"{each['run']}   {each['started_at'][:19]}Z   {where}   {each['reason']} {each['state']}"
        wrote = ", ".join(
            f"{verb} {sum(sides.values()):,} {kind}"
            for verb, kinds in each["wrote"].items()
            for kind, sides in kinds.items()
        )
        click.echo(f"{head}   {wrote or each['message']}".rstrip())
    if not found:
        click.echo("nothing has run yet; start with: syncd run TENANT")


def print_status(each: Mapping[str, Any]) -> None:
    """One pair's standing."""
    # A pair that nobody stopped is "running" in --json; a run of it need not be going on.
    standing = "kept in step" if each["state"] == "running" else each["state"]
    click.echo(f"{each['tenant']}   propstreet <> {each['pair']}   {standing}")
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
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
