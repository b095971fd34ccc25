"""Every command of ``syncd``. Results go to stdout, logs and progress to stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from syncd import __version__

if TYPE_CHECKING:
    from syncd.config import PairConfig, TenantConfig
    from syncd.core.model import Side
    from syncd.wiring import Result, Service

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
PAIR = click.option("--pair", metavar="NAME", help="Only this pair of the tenant.")
RECORD = click.option("--record", metavar="REF", help="Only this record, like hubspot:4711 or propstreet:12.")
KIND = click.option("--kind", metavar="KIND", help="The record's kind, where several have its id.")
TENANT = click.argument("tenant")
ANY_TENANT = click.argument("tenant", required=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="syncd")
@click.option(
    "--config", metavar="DIR", envvar="SYNCD_CONFIG", type=click.Path(path_type=Path),
    help="Folder with one YAML file per tenant [default: config/tenants; env: SYNCD_CONFIG].",
)  # fmt: skip
@click.option("--log-level", envvar="SYNCD_LOG_LEVEL", type=click.Choice(["debug", "info", "warning", "error"]),
              help="How much to log on stderr [default: warning; info for serve].")  # fmt: skip
@click.pass_context
def cli(ctx: click.Context, config: Path | None, log_level: str | None) -> None:
    """Keep Propstreet and a CRM saying the same thing, in both directions.

    Start with:  syncd demo
    Then:        syncd config check, syncd check TENANT --fix, syncd run TENANT

    Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 done but something waits for a
    person, 4 halted until a person says go.
    """
    from syncd.log import set_up

    usual = "info" if ctx.invoked_subcommand == "serve" else "warning"
    set_up(log_level or usual, is_terminal=sys.stderr.isatty())
    # As PID 1 of a container a process ignores SIGTERM unless it says otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ctx.obj = config or Path("config/tenants")


# --- running ------------------------------------------------------------------------------


@cli.command()
@TENANT
@PAIR
@JSON
@click.pass_obj
def run(folder: Path, tenant: str, pair: str | None, as_json: bool) -> None:
    """Sync a tenant's pairs once, now: everything that changed since the last run.

    The first run of a pair saves its plan and exits 4: look at it, then syncd apply PLAN.
    """
    from syncd.wiring import run_pair

    with _service() as service:
        results = [run_pair(service, t, p, "run") for t, p in _pairs(folder, tenant, pair)]
        _report(service, results, as_json)


@cli.command()
@TENANT
@PAIR
@click.option("--dry-run", is_flag=True, help="Read everything, write nothing, save the plan.")
@click.option("--only", metavar="KIND", multiple=True, help="Only this kind; may be repeated.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="At most N operations of each kind.")
@JSON
@click.pass_obj
def backfill(
    folder: Path, tenant: str, pair: str | None, dry_run: bool, only: tuple[str, ...], limit: int | None, as_json: bool
) -> None:
    """Sync everything from the beginning, once. Started again after a crash, it goes on where it was.

    It is its own approval of a pair's first run; all other brakes hold.
    """
    from syncd.core.model import KINDS
    from syncd.wiring import run_pair

    if unknown := sorted(set(only) - set(KINDS)):
        raise click.UsageError(f"unknown kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}")
    with _service() as service, _progress() as progress:
        results = [
            run_pair(
                service, t, p, "plan" if dry_run else "backfill",
                only=frozenset(only) or None, limit=limit, progress=progress,
            )
            for t, p in _pairs(folder, tenant, pair)
        ]  # fmt: skip
    with _service() as service:
        if dry_run:
            _show_plans(service, results, as_json)
        else:
            _report(service, results, as_json)


@cli.command()
@TENANT
@PAIR
@JSON
@click.pass_obj
def plan(folder: Path, tenant: str, pair: str | None, as_json: bool) -> None:
    """Show what a run would do now, and save it. Makes reading calls only."""
    from syncd.wiring import run_pair

    with _service() as service:
        results = [run_pair(service, t, p, "plan") for t, p in _pairs(folder, tenant, pair)]
        _show_plans(service, results, as_json)


@cli.command(name="apply")
@click.argument("plan_id", metavar="PLAN")
@JSON
@click.pass_obj
def apply_command(folder: Path, plan_id: str, as_json: bool) -> None:
    """Carry out a saved plan: exactly what it shows, or nothing if a record moved since. It is the approval."""
    from syncd.errors import NotFoundError
    from syncd.state.journal import find_plan
    from syncd.wiring import run_pair

    with _service() as service:
        row = find_plan(service.engine, plan_id)
        # A plan without a hash was never finished: its run died while it drew it up.
        state = row.state if row.hash else "unfinished"
        if state not in ("open", "applying"):
            raise NotFoundError(f"plan {row.id} is {state}; make a new one: syncd plan {row.pair.split('/')[0]}")
        tenant, _, name = row.pair.partition("/")
        ((t, p),) = _pairs(folder, tenant, name)
        _report(service, [run_pair(service, t, p, "apply", plan_id=row.id)], as_json)


@cli.command()
@click.argument("plan_id", metavar="PLAN")
@JSON
def show(plan_id: str, as_json: bool) -> None:
    """Show a saved plan: what it would do, and why it waits."""
    from syncd.report import print_saved, saved_document

    with _service() as service:
        document = saved_document(service.engine, plan_id)
    if as_json:
        _print_json(document)
    else:
        print_saved(document)


@cli.command()
@click.argument("plan_id", metavar="PLAN")
def discard(plan_id: str) -> None:
    """Throw a saved plan away. A pair that halted with it looks for itself with its next run.

    It halts again if the reason is still there; to let it go on, apply the plan or resume the pair.
    """
    from syncd.state import pairs
    from syncd.state.journal import find_plan

    with _service() as service:
        row = find_plan(service.engine, plan_id)
        pairs.discard(service.engine, row.id, service.now())
    click.echo(f"plan {row.id} is discarded; {row.pair} looks for itself with its next run")


@cli.command()
@click.option("--scheduler", is_flag=True, help="Be the part that decides when a pair is due.")
@click.option("--worker", is_flag=True, help="Be the part that runs pairs.")
@click.option("--web", is_flag=True, help="Be the part that answers over HTTP: health, metrics, webhooks, the page.")
@click.pass_context
def serve(ctx: click.Context, scheduler: bool, worker: bool, web: bool) -> None:
    """Run every tenant's pairs on their schedule until stopped; by default all parts in one process.

    SIGTERM lets each run settle the call it is in. Replicas may be whole processes or single parts.
    """
    from syncd.config import load_service
    from syncd.log import set_up
    from syncd.serve import Parts, serve_forever

    parts = Parts(scheduler, worker, web) if scheduler or worker or web else Parts()
    settings = load_service()
    if ctx.parent is None or ctx.parent.params["log_level"] is None:
        set_up(settings.log_level, is_terminal=sys.stderr.isatty())
    with _service() as service:
        raise SystemExit(serve_forever(service, ctx.obj, settings, parts))


@cli.command()
@click.option("--once", is_flag=True, help="Sync to convergence, print the report, exit.")
@click.option("--still", is_flag=True, help="Let people edit once, then stand still for other commands to be tried.")
@JSON
@click.option("--seed", default=7, show_default=True, help="Another seed, another portfolio.")
def demo(once: bool, still: bool, as_json: bool, seed: int) -> None:
    """Try it without an account: emulated Propstreet, HubSpot and Salesforce, and the real daemon between them.

    It says how other commands reach the same data while it runs.
    """
    from syncd.demo import run_demo

    if once and still:
        raise click.UsageError("--once and --still contradict each other")
    raise SystemExit(run_demo(is_once=once, as_json=as_json, seed=seed, is_still=still))


# --- setting up ---------------------------------------------------------------------------


@cli.command()
@TENANT
@PAIR
@click.option("--fix", is_flag=True, help="Create missing fields, labels and external-id properties in the CRM.")
@JSON
@click.pass_obj
def check(folder: Path, tenant: str, pair: str | None, fix: bool, as_json: bool) -> None:
    """Compare both accounts with the tenant's file: credentials, fields, stages, labels."""
    from syncd.wiring import check_pair

    with _service() as service:
        checked = [check_pair(service, t, p, is_fixing=fix) for t, p in _pairs(folder, tenant, pair)]
    document = [
        {
            "tenant": each.tenant,
            "pair": each.pair,
            "accounts": dict(each.account),
            "findings": [
                {
                    "connection": name,
                    "code": finding.code,
                    "thing": finding.thing,
                    "fix": finding.fix,
                    "required": finding.is_required,
                    "fixable": finding.is_fixable,
                }
                for name, finding in each.findings
            ],
        }
        for each in checked
    ]
    if as_json:
        _print_json(document)
    else:
        for each in checked:
            accounts = ", ".join(f"{name} account {id_}" for name, id_ in each.account.items())
            click.echo(f"{each.tenant}/{each.pair}   {accounts}")
            for name, finding in each.findings:
                need = "missing " if finding.is_required else "optional"
                click.echo(f"  {need}  {name}: {finding.thing}. {finding.fix}")
            if not each.findings:
                click.echo("  everything that this pair needs is there")
    if any(finding.is_required for each in checked for _, finding in each.findings):
        raise SystemExit(3 if fix else 2)


@cli.command()
def migrate() -> None:
    """Bring the database to this release's tables."""
    from syncd.state.migrate import upgrade
    from syncd.wiring import open_service

    service = open_service(is_migrating=True)
    click.echo(f"the database is at revision {upgrade(service.engine)}")
    service.close()


@cli.group()
def config() -> None:
    """Check the tenants' files, or print their JSON Schema for an editor."""


@config.command(name="check")
@JSON
@click.pass_obj
def config_check(folder: Path, as_json: bool) -> None:
    """Read every tenant's file and say what is wrong, where, and how to put it right. Calls nobody."""
    from syncd.config import load, missing_secrets

    found = load(folder)
    problems = [*found.problems, *(problem for tenant in found.tenants for problem in missing_secrets(tenant))]
    if as_json:
        _print_json(
            {
                "tenants": [{"tenant": t.tenant, "pairs": [p.name for p in t.pairs]} for t in found.tenants],
                "problems": [
                    {"file": str(p.file), "path": p.path, "message": p.message, "fix": p.fix} for p in problems
                ],
            }
        )
    else:
        for tenant in found.tenants:
            click.echo(f"{tenant.tenant}   {', '.join(f'{p.name} ({p.connector})' for p in tenant.pairs)}")
        for problem in problems:
            click.echo(str(problem), err=True)
    if problems:
        raise SystemExit(2)


@config.command(name="schema")
def config_schema() -> None:
    """Print the JSON Schema of a tenant's file."""
    from syncd.config import json_schema

    _print_json(json_schema())


@cli.group()
def notify() -> None:
    """Try who is told when something is the matter (notify in syncd.yaml)."""


@notify.command(name="test")
def notify_test() -> None:
    """Send one notice to everybody who is to be told, to see it arrive."""
    from syncd.notify import send_test

    with _service() as service:
        outcomes = [(receiver.name, send_test(service, receiver)) for receiver in service.notify]
    for name, problem in outcomes:
        click.echo(f"{name}: {problem or 'told'}")
    if not outcomes:
        raise click.UsageError("nobody is told; write notify into config/syncd.yaml")
    if any(problem for _, problem in outcomes):
        raise SystemExit(1)


# --- looking ------------------------------------------------------------------------------


@cli.command()
@ANY_TENANT
@PAIR
@click.option("--excluded", is_flag=True, help="List what is left out on purpose, with the reasons.")
@JSON
def status(tenant: str | None, pair: str | None, excluded: bool, as_json: bool) -> None:
    """What is in step, what waits, what halted, and when each pair last ran."""
    from syncd.state import desk

    with _service() as service:
        scope = desk.Scope(tenant, pair)
        if excluded:
            _list(desk.excluded(service.engine, scope), as_json, ("kind", "propstreet", "crm", "reason"))
            return
        found = desk.status(service.engine, scope)
        if as_json:
            _print_json(found)
            return
        for each in found:
            _print_status(each)
        if not found:
            click.echo("nothing has run yet; start with: syncd run TENANT")


@cli.command(name="dead-letters")
@ANY_TENANT
@PAIR
@JSON
def dead_letters(tenant: str | None, pair: str | None, as_json: bool) -> None:
    """Changes that a system refused for good, with the reason."""
    from syncd.state import desk

    with _service() as service:
        _list(desk.dead_letters(service.engine, desk.Scope(tenant, pair)), as_json,
              ("id", "kind", "propstreet", "crm", "reason"))  # fmt: skip


# --- deciding -----------------------------------------------------------------------------


@cli.command()
@TENANT
@click.argument("ids", metavar="[ID]...", nargs=-1)
@PAIR
def retry(tenant: str, ids: tuple[str, ...], pair: str | None) -> None:
    """Give dead letters another try with the next run: the named ones, or all of the tenant."""
    from syncd.state import desk

    with _service() as service:
        count = desk.retry(service.engine, desk.Scope(tenant, pair), ids)
    click.echo(f"{count} will be tried again by the next run")


@cli.command()
@TENANT
@PAIR
@RECORD
@KIND
@click.pass_obj
def resume(folder: Path, tenant: str, pair: str | None, record: str | None, kind: str | None) -> None:
    """Let halted or paused pairs go on; for a first run, this is the approval. With --record, let one record go."""
    from syncd.state import holds, pairs

    with _service() as service:
        if record is not None:
            for pair_id, side, id_, of in _records(service, folder, tenant, pair, record, kind):
                was_held = holds.lift(service.engine, pair_id, of, side, id_)
                click.echo(f"{pair_id}: {of} {record} {'catches up with the next run' if was_held else 'was not held'}")
            return
        for t, p in _pairs(folder, tenant, pair):
            pairs.find(service.engine, f"{t.tenant}/{p.name}")
            pairs.resume(service.engine, f"{t.tenant}/{p.name}", service.now())
            click.echo(f"{t.tenant}/{p.name}: goes on with the next run")


@cli.command()
@TENANT
@PAIR
@RECORD
@KIND
@click.pass_obj
def pause(folder: Path, tenant: str, pair: str | None, record: str | None, kind: str | None) -> None:
    """Keep pairs, or with --record one record, from being synced; nothing is lost, syncd resume catches up.

    A paused record holds its counterpart and the relations that name it: a deal its prospects.
    """
    from syncd.state import holds, pairs

    with _service() as service:
        if record is not None:
            for pair_id, side, id_, of in _records(service, folder, tenant, pair, record, kind):
                holds.place(service.engine, pair_id, of, side, [id_], reason=holds.BY_PERSON, at=service.now())
                click.echo(f"{pair_id}: {of} {record} is held still")
            return
        for t, p in _pairs(folder, tenant, pair):
            pairs.pause(service.engine, f"{t.tenant}/{p.name}", service.now())
            click.echo(f"{t.tenant}/{p.name}: paused")


# --- shared -------------------------------------------------------------------------------


def _records(
    service: Service, folder: Path, tenant: str, pair: str | None, ref: str, kind: str | None
) -> list[tuple[str, Side, str, str]]:
    """(pair, side, id, kind) of the record that a ref like hubspot:4711 or propstreet:12 names, in each pair it is in.

    Raises NotFoundError if no pair of the tenant knows it.
    """
    from syncd.core.model import Side
    from syncd.errors import NotFoundError
    from syncd.state import holds

    namespace, _, id_ = ref.partition(":")
    if not id_:
        raise click.UsageError(f"{ref!r} is no record; write it like hubspot:4711 or propstreet:12")
    found, problems = [], []
    for t, p in _pairs(folder, tenant, pair):
        if namespace not in ("propstreet", p.namespace):
            continue
        side, pair_id = Side.LEFT if namespace == "propstreet" else Side.RIGHT, f"{t.tenant}/{p.name}"
        try:
            found.append((pair_id, side, id_, holds.kind_of(service.engine, pair_id, side, id_, kind)))
        except NotFoundError as exc:
            problems.append(str(exc))
    if not found:
        raise NotFoundError("; ".join(problems) or f"{tenant} has no pair with the namespace {namespace!r}")
    return found


@contextmanager
def _service() -> Iterator[Service]:
    from syncd.wiring import open_service

    service = open_service()
    try:
        yield service
    finally:
        service.close()


def _pairs(folder: Path, tenant: str, pair: str | None) -> list[tuple[TenantConfig, PairConfig]]:
    """The pairs that the arguments name. Raises ConfigError for a tenant or pair that no usable file names."""
    from syncd.config import load
    from syncd.errors import ConfigError

    found = load(folder)
    for problem in found.problems:
        click.echo(f"syncd: {problem}", err=True)
    mine = found.tenant(tenant)
    chosen = [(mine, each) for each in mine.pairs if pair is None or each.name == pair]
    if not chosen:
        raise ConfigError(f"{tenant} has no pair {pair!r}; it has {', '.join(p.name for p in mine.pairs)}")
    return chosen


def _report(service: Service, results: Sequence[Result], as_json: bool) -> None:
    """Print how runs ended and exit with the code that says it."""
    from syncd.report import as_document, print_result
    from syncd.state import desk

    waiting = [desk.waiting(service.engine, desk.Scope(r.tenant, r.pair)) for r in results]
    if as_json:
        _print_json([as_document(result) for result in results])
    else:
        for result, lists in zip(results, waiting, strict=True):
            print_result(result, lists)
    raise SystemExit(_exit_code(results, waits=any(waiting)))


def _exit_code(results: Iterable[Result], *, waits: bool) -> int:
    results = list(results)
    if any(result.is_config for result in results):
        return 2
    if any(result.state == "halted" for result in results):
        return 4
    if any(result.state != "done" for result in results):
        return 1
    return 3 if waits else 0


def _show_plans(service: Service, results: Sequence[Result], as_json: bool) -> None:
    from syncd.report import plan_document, print_plan
    from syncd.state import desk

    documents = [plan_document(service.engine, result) for result in results]
    if as_json:
        _print_json(documents[0] if len(documents) == 1 else documents)
    else:
        for result, document in zip(results, documents, strict=True):
            print_plan(result, document, desk.waiting(service.engine, desk.Scope(result.tenant, result.pair)))
    if failed := [result for result in results if result.state != "done"]:
        raise SystemExit(_exit_code(failed, waits=False))


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, sort_keys=False))


def _list(rows: Iterable[dict[str, Any]], as_json: bool, columns: Sequence[str]) -> None:
    """A list of objects as JSON, streamed, or as a table."""
    if as_json:
        click.echo("[", nl=False)
        for number, row in enumerate(rows):
            click.echo(("," if number else "") + "\n  " + json.dumps(row, ensure_ascii=False), nl=False)
        click.echo("\n]")
        return
    from syncd.report import print_table

    print_table(rows, columns)


def _print_status(each: dict[str, Any]) -> None:
    from syncd.report import print_status

    print_status(each)


@contextmanager
def _progress() -> Iterator[Callable[[str, str, int], None]]:
    """A progress bar on a terminal, silence elsewhere."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda stage, kind, count: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<24}"),
        TextColumn("{task.completed:>9,.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[tuple[str, str], Any] = {}

        def advance(stage: str, kind: str, count: int) -> None:
            key = (stage, kind)
            if key not in tasks:
                tasks[key] = bar.add_task(f"{stage} {kind}", total=None)
            bar.advance(tasks[key], count)

        yield advance
