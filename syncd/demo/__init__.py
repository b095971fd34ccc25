"""The whole thing on one machine: emulated vendors, a believable portfolio, the real daemon between them.

Nothing in here is special-cased: the emulators are HTTP servers that speak the vendors' wire
formats, the tenants' files are written to a folder and read like any others, and the runs are
those of ``syncd run``. Nor does anything end here: other commands reach the same tenants by the
same files and the same database, for as long as the demo runs.
"""

from __future__ import annotations

import json
import shlex
import socket
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from random import Random
from typing import Any, Protocol

import click
import yaml
from sqlalchemy import select

from syncd.config import PairConfig, ServiceConfig, TenantConfig, load
from syncd.core.mapping import show, thaw
from syncd.core.model import KINDS, Side
from syncd.demo.page import DemoPage
from syncd.errors import ConfigError, SyncdError
from syncd.report import print_result
from syncd.serve import Parts, listening, running
from syncd.state import desk, embedded, migrate
from syncd.state import schema as s
from syncd.testing import portfolio
from syncd.web import ordering
from syncd.web.site import Site
from syncd.wiring import PROPSTREET, Result, Service, check_pair, database, run_pair

#: Tenant -> the connectors of its pairs.
TENANTS: Mapping[str, tuple[str, ...]] = {
    "nordhaus": ("hubspot",),
    "granit": ("salesforce",),
    "vinga": ("hubspot", "salesforce"),
}
MOST_RUNS = 6
EDIT_SECONDS = 20
#: How often a pair looks whose two systems both send webhooks, and one where only looking tells.
TOLD_SECONDS, SYNC_SECONDS = 30, 5
#: Quiet projects that a run visits for their prospects: webhooks bring those that moved to the front.
VISITS = 3
#: A field that only Propstreet knows at first, so that nobody disagrees about it before people edit.
HELD = {"contact": {"fields": {"strategy": {"policy": "both", "conflict": "hold"}}}}


class Emulated(portfolio.Seeded, Protocol):
    """An emulator as the demo uses it; see ``syncd.testing.emulator.Emulator``."""

    auth: Mapping[str, str]
    lock: threading.RLock

    def start(self, port: int = 0) -> str: ...

    def stop(self) -> None: ...


@dataclass(slots=True)
class World:
    """The running emulators by tenant and connector, and the folder with the tenants' files."""

    folder: Path
    emulators: dict[tuple[str, str], Emulated] = field(default_factory=dict)

    def close(self) -> None:
        for emulator in self.emulators.values():
            emulator.stop()


def run_demo(*, is_once: bool, as_json: bool, seed: int, is_still: bool = False) -> int:
    """Run the demo; with ``is_once`` sync to convergence and return the exit code, else stay until interrupted.

    With ``is_still`` people edit once and nothing moves by itself from then on: what there is to
    look at waits for other commands.
    """
    say: Callable[[str], None] = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="syncd-demo-", ignore_cleanup_errors=True)))
        say("Starting PostgreSQL and the emulated vendors ...")
        service = Service(database(embedded.start(home)))
        stack.callback(embedded.stop, home)
        stack.callback(service.close)
        migrate.upgrade(service.engine)
        world = build(service, home / "tenants", seed)
        stack.callback(world.close)
        pairs = [(tenant, pair) for tenant in load(world.folder).tenants for pair in tenant.pairs]
        say(f"Syncing {len(pairs)} pairs of {len(TENANTS)} tenants for the first time ...")
        report = converge(service, pairs, None if as_json else print_result)
        if as_json:
            click.echo(json.dumps(report, indent=2, ensure_ascii=False))
        else:
            _print_report(report)
        if is_still:
            people(service, world)
            say_how(service, world, say)
            wait(service, say)
        elif not is_once:
            stay(service, world, seed, say)
        return 0 if report["in_step"] else 1


def emulator_of(connector: str) -> type[Any]:
    """The emulator that a connector brings. Raises ConfigError."""
    for entry in entry_points(group="syncd.emulators"):
        if entry.name == connector:
            found: type[Any] = entry.load()
            return found
    raise ConfigError(f"the connector {connector!r} brings no emulator")


def build(
    service: Service,
    folder: Path,
    seed: int,
    names: Sequence[str] = tuple(TENANTS),
    make: Callable[..., portfolio.Portfolio] = portfolio.make,
) -> World:
    """Start and seed the systems of the named tenants, and write the tenants' files that reach them."""
    folder.mkdir(parents=True)
    world = World(folder)
    for number, (tenant, connectors) in enumerate(TENANTS.items()):
        if tenant not in names:
            continue
        stuff = make(seed + number, now=service.now())
        document: dict[str, Any] = {"tenant": tenant, "pairs": []}
        refs: dict[str, Mapping[int, str]] = {}
        for connector in (*connectors, PROPSTREET):
            emulator = emulator_of(connector)(now=service.now)
            url = emulator.start()
            refs[connector] = emulator.seed(stuff, dict(refs))
            world.emulators[tenant, connector] = emulator
            connection = {"base_url": url, "auth": _secrets(folder, tenant, connector, emulator.auth)}
            if connector == PROPSTREET:
                document[PROPSTREET] = connection
            else:
                login = {"login_url": emulator.login_url} if hasattr(emulator, "login_url") else {}
                document["pairs"].append(
                    {
                        "connector": connector, **connection, **login, "every": f"{SYNC_SECONDS}s",
                        "share_of_quota": 1.0,
                        "kinds": {
                            "deal_contact": {"deletes": {"to_propstreet": "archive", "to_crm": "archive"}}, **HELD
                        },
                    }
                )  # fmt: skip
        (folder / f"{tenant}.yaml").write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    return world


def _secrets(folder: Path, tenant: str, connector: str, auth: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Secrets go into files of their own, here as everywhere."""
    found = {}
    for name, secret in auth.items():
        file = folder.parent / f"{tenant}-{connector}-{name}"
        file.write_text(secret)
        file.chmod(0o600)
        found[name] = {"file": str(file)}
    return found


def order_webhooks(service: Service, world: World, url: str) -> frozenset[str]:
    """Have every system that can send its webhooks to the daemon at ``url``.

    Returns the pairs that are told of what moves on either side; these look less often.
    """
    pairs = set[str]()
    for file in sorted(world.folder.glob("*.yaml")):
        document = yaml.safe_load(file.read_text())
        tenant = document["tenant"]
        document[PROPSTREET] |= _webhooks(world.folder, tenant, PROPSTREET)
        for pair in document["pairs"]:
            name, secret = pair["connector"], service.new_id()
            pair["visits"] = VISITS
            if world.emulators[tenant, name].send_to(f"{url}/webhooks/{tenant}/{name}", secret):
                pair |= {**_webhooks(world.folder, tenant, name, secret), "every": f"{TOLD_SECONDS}s"}
                pairs.add(f"{tenant}/{name}")
        file.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    for each in load(world.folder).tenants:
        ordering.register(service, each, url)
    return frozenset(pairs)


def _webhooks(folder: Path, tenant: str, connector: str, secret: str = "") -> dict[str, Any]:
    """Where a connection's secret is kept, if it is known already."""
    file = folder.parent / f"{tenant}-{connector}-webhooks"
    file.touch(0o600)
    file.write_text(secret)
    return {"webhooks": {"secret": {"file": str(file)}}}


# --- to convergence -----------------------------------------------------------------------


@dataclass(slots=True)
class _Sum:
    """What all runs of one pair did together."""

    created: Counter[tuple[str, Side]] = field(default_factory=Counter)
    updated: Counter[tuple[str, Side]] = field(default_factory=Counter)
    deleted: Counter[tuple[str, Side]] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    least: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.created += result.report.created
        self.updated += result.report.updated
        self.deleted += result.report.deleted
        self.made.update(result.made)
        self.least.update(result.least)
        if result.state != "done":
            self.problems.append(f"{result.tenant}/{result.pair} {result.state}: {result.message}")


def converge(
    service: Service, pairs: list[tuple[TenantConfig, PairConfig]], show_result: Callable[[Result], None] | None
) -> dict[str, Any]:
    """Backfill every pair, run until none has anything to do, then run each once more and count."""
    sums = {(tenant.tenant, pair.name): _Sum() for tenant, pair in pairs}
    for tenant, pair in pairs:
        check_pair(service, tenant, pair, is_fixing=True)
        result = run_pair(service, tenant, pair, "backfill")
        sums[tenant.tenant, pair.name].add(result)
        if show_result is not None:
            show_result(result)
    for _ in range(MOST_RUNS):
        is_quiet = True
        for tenant, pair in pairs:
            result = run_pair(service, tenant, pair, "run")
            is_quiet &= result.write_calls == 0
            if result.write_calls or result.state != "done":
                sums[tenant.tenant, pair.name].add(result)
        if is_quiet:
            break
    second = {(t.tenant, p.name): run_pair(service, t, p, "run") for t, p in pairs}
    documents = [_document(service, t, p, sums[t.tenant, p.name], second[t.tenant, p.name]) for t, p in pairs]
    for each in sums.values():
        for problem in each.problems:
            click.echo(problem, err=True)
    in_step = all(
        d["second_run"] == {"operations": 0, "write_calls": 0} and second[d["tenant"], d["pair"]].state == "done"
        for d in documents
    )
    return {"pairs": documents, "in_step": in_step}


def _document(service: Service, tenant: TenantConfig, pair: PairConfig, total: _Sum, second: Result) -> dict[str, Any]:
    def split(counter: Counter[tuple[str, Side]], kind: str) -> dict[str, int]:
        return {"propstreet": counter[kind, Side.LEFT], "crm": counter[kind, Side.RIGHT]}

    with service.engine.connect() as tx:
        standing = desk.census(tx, f"{tenant.tenant}/{pair.name}")
    nothing = {"linked": 0, "conflicts": 0, "in_review": 0, "excluded": 0, "dead_letters": 0}
    kinds = {}
    for kind in KINDS:
        counts = standing.get(kind, nothing)
        kinds[kind] = {
            "linked": counts["linked"],
            "created": split(total.created, kind),
            "updated": split(total.updated, kind),
            "deleted": split(total.deleted, kind),
            "conflicts": counts["conflicts"],
            "in_review": counts["in_review"],
            "excluded": counts["excluded"],
            "dead_letters": counts["dead_letters"],
        }
    return {
        "tenant": tenant.tenant,
        "pair": pair.name,
        "connector": pair.connector,
        "kinds": kinds,
        "api_calls": {side: {"made": total.made[side], "least": total.least[side]} for side in ("propstreet", "crm")},
        "second_run": {"operations": second.report.operations, "write_calls": second.write_calls},
    }


def _print_report(report: Mapping[str, Any]) -> None:
    click.echo()
    for pair in report["pairs"]:
        click.echo(f"{pair['tenant']}   propstreet <> {pair['pair']}")
        click.echo(f"  {'':<14}{'linked':>8}{'created':>10}{'updated':>10}{'review':>9}{'excluded':>10}{'dead':>7}")
        for kind, counts in pair["kinds"].items():
            created, updated = sum(counts["created"].values()), sum(counts["updated"].values())
            click.echo(
                f"  {kind:<14}{counts['linked']:>8,}{created:>10,}{updated:>10,}{counts['in_review']:>9,}"
                f"{counts['excluded']:>10,}{counts['dead_letters']:>7,}"
            )
        calls = ", ".join(f"{name} {c['made']} (least {c['least']})" for name, c in pair["api_calls"].items())
        click.echo(f"  calls: {calls}; a second run made {pair['second_run']['write_calls']} writes\n")
    click.echo("Both sides are in step." if report["in_step"] else "NOT in step; see the messages above.")


# --- people -------------------------------------------------------------------------------


def people(service: Service, world: World) -> None:
    """What people do before a demo stands still, with runs in between as the daemon would make them.

    At the first tenant an import into the CRM goes wrong, then both sides edit the same contacts
    apart. At the second one an import empties a field of so many contacts that a brake holds.
    """
    (one, (crm,), *_), (two, (other,), *_) = list(TENANTS.items())[:2]
    hub, portal, org = world.emulators[one, PROPSTREET], world.emulators[one, crm], world.emulators[two, other]
    contacts = _contacts(service, f"{one}/{crm}")
    for _, theirs in contacts[5:13]:
        portal.retouch("contact", theirs, "strategy", "Kontor, import 2026")
    _run(service, world, one)
    for (ours, theirs), (here, there) in zip(contacts, _APART, strict=False):
        hub.retouch("contact", ours, "strategy", here)
        portal.retouch("contact", theirs, "strategy", there)
    ours, theirs = contacts[4]
    portal.retouch("contact", theirs, "phone", "070-174 06 91")
    hub.retouch("contact", ours, "phone", "+46701740690")
    _run(service, world, one)
    for _, theirs in _contacts(service, f"{two}/{other}")[:40]:
        org.retouch("contact", theirs, "strategy", "")
    _run(service, world, two)


#: What each side makes of one contact's strategy.
_APART = (
    ("Mark", "Kontor"),
    ("Bostäder", "Parkering"),
    ("Skog", "Hotell"),
    ("Lager", "Industri"),
)


def _contacts(service: Service, pair_id: str) -> list[tuple[str, str]]:
    """The ids, here and there, of linked contacts who have a strategy and a phone, in the order of the CRM."""
    columns = (s.link.c.left_id, s.link.c.right_id, s.link.c.left_base)
    query = select(*columns).where(s.link.c.pair == pair_id, s.link.c.kind == "contact").order_by(s.link.c.right_id)
    with service.engine.connect() as tx:
        rows = [(row.left_id, row.right_id, thaw(row.left_base)) for row in tx.execute(query)]
    return [(left, right) for left, right, base in rows if base.get("strategy") and base.get("phone")]


def _run(service: Service, world: World, name: str) -> None:
    tenant = load(world.folder).tenant(name)
    for pair in tenant.pairs:
        run_pair(service, tenant, pair, "run")


def say_how(service: Service, world: World, say: Callable[[str], None]) -> None:
    """Say by which settings other commands reach this database and these tenants."""
    url = service.engine.url.render_as_string(hide_password=False)
    say("\nFor other commands on the same data, in another terminal (docs/every-day.md shows some):")
    say(f"  export SYNCD_DATABASE_URL={shlex.quote(url)}")
    say(f"  export SYNCD_CONFIG={shlex.quote(str(world.folder))}")


def wait(service: Service, say: Callable[[str], None]) -> None:
    """Leave everything as it is until interrupted."""
    say("\nNow everything stands still: no daemon, no edits, until you say so. Stop it with Ctrl-C.")
    try:
        while True:
            service.sleep(1)
    except KeyboardInterrupt:
        say("\nStopping ...")


# --- staying ------------------------------------------------------------------------------


def stay(service: Service, world: World, seed: int, say: Callable[[str], None]) -> None:
    """Keep syncing while people edit, and say what travelled, until interrupted."""
    random = Random(seed)  # noqa: S311 - edits in a demo
    with staying(service, world) as (page, address, operators):
        say(f"\nBoth systems side by side: {address}   edit on either side, watch it arrive")
        say("The operator's page:       {}   sign on with the token {}".format(*operators))
        say_how(service, world, say)
        say(f"\nNow the daemon keeps running, and somebody edits every {EDIT_SECONDS} s. Stop it with Ctrl-C.\n")
        last = _latest_change(service)
        try:
            for second in range(sys.maxsize):
                systems = sorted(each for each in world.emulators if not page.is_watched(each[0]))
                if second % EDIT_SECONDS == 0 and systems:
                    tenant, connector = random.choice(systems)
                    say(f"edit      {tenant:<10} {connector:<11} {world.emulators[tenant, connector].tinker(random)}")
                service.sleep(1)
                last = _say_changes(service, last, say)
        except KeyboardInterrupt:
            say("\nStopping ...")
        except SyncdError as exc:
            say(str(exc))


@contextmanager
def staying(service: Service, world: World) -> Iterator[tuple[DemoPage, str, tuple[str, str]]]:
    """The daemon and the demo's page, for as long as this lasts.

    Yields the page and its address, and the operator's page with the token that opens it.
    """
    settings, token = _page(service, world.folder.parent)
    told = order_webhooks(service, world, f"http://{settings.web.host}:{settings.web.port}")
    with running(service, world.folder, settings, Parts(), over=threading.Event()) as daemon:
        site = Site(service, daemon.tenants.now, daemon.queue.wake, settings.web, order=daemon.queue.order)
        operators = (str(daemon.url), token)
        page = DemoPage(site, world.emulators, told, operators)
        with listening(page.application(), socket.create_server(("127.0.0.1", 0))) as address:
            yield page, address, operators


def _page(service: Service, home: Path) -> tuple[ServiceConfig, str]:
    """Settings for a page on a free port of this machine, and the token that opens it."""
    token = service.new_id()
    file = home / "page-token"
    file.write_text(token)
    file.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    operator = {"name": "demo", "role": "operator", "token": {"file": str(file)}}
    return ServiceConfig.model_validate({"web": {"port": port, "sign_on": {"tokens": [operator]}}}), token


def _latest_change(service: Service) -> int:
    with service.engine.connect() as tx:
        return tx.execute(select(s.change_log.c.id).order_by(s.change_log.c.id.desc()).limit(1)).scalar() or 0


def _say_changes(service: Service, after: int, say: Callable[[str], None]) -> int:
    query = select(s.change_log).where(s.change_log.c.id > after).order_by(s.change_log.c.id)
    with service.engine.connect() as tx:
        for row in tx.execute(query):
            after = row.id
            tenant, _, pair = row.pair.partition("/")
            to = "propstreet" if row.side == Side.LEFT else pair
            values = thaw({"old": row.old, "new": row.new})
            told = f"{row.field}: {show(values['old'])!r} -> {show(values['new'])!r}" if row.field else ""
            say(f"travelled {tenant:<10} to {to:<11} {row.verb} {row.kind} {told}  ({row.rule})")
    return after
