"""The command line against emulated vendors: what it prints, what it exits with, what it asks of whom."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import structlog
import yaml
from sqlalchemy import Engine, update

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.propstreet.emulator import PropstreetEmulator
from connectors.salesforce.emulator import SalesforceEmulator
from syncd.cli import main
from syncd.cli.commands import cli
from syncd.state import schema as s
from syncd.testing.emulator import Emulator
from syncd.wiring import Service
from tests.faults.harness import CRMS, Pair, crm_emulator, fault, mark, since, started, writes

pytestmark = pytest.mark.long

PLAN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Said:
    """What one command exited with and printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def syncd(*arguments: str) -> Said:
    """One command, as the entry point runs it."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["syncd", *arguments])
        try:
            main()
        except SystemExit as exc:
            code = exc.code or 0
    assert isinstance(code, int)
    assert "Traceback" not in out.getvalue() + err.getvalue()
    return Said(code, out.getvalue(), err.getvalue())


@dataclass
class Desk:
    """The folder of tenants that the commands read, and the time that the emulators live in."""

    folder: Path
    service: Service
    stack: ExitStack

    def tenant(
        self, connector: str, name: str = "nordhaus", *, hub: Mapping[str, Any] | None = None, **more: Any
    ) -> Pair:
        """A tenant with running emulators; ``more`` goes into its pair."""
        left = PropstreetEmulator(now=self.service.now, **(hub or {}))
        right = crm_emulator(connector, self.service.now)
        self.stack.enter_context(started(left, right))
        return Pair(name, connector, self.folder, left, right, more)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SYNCD_DATA_DIR", "SYNCD_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("SYNCD_CONFIG", str(tmp_path / "tenants"))
    return tmp_path / "tenants"


@pytest.fixture
def desk(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("SYNCD_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    with ExitStack() as stack:
        yield Desk(folder, Service(engine), stack)
    structlog.reset_defaults()


def in_step(pair: Pair) -> None:
    """From nothing to both sides saying the same, by the commands that a newcomer types."""
    assert syncd("backfill", pair.tenant_name).code == 0
    assert syncd("run", pair.tenant_name).code == 0
    pair.assert_in_step()


def without_ids(text: str) -> str:
    return PLAN.sub("PLAN", text)


# --- the first hour -----------------------------------------------------------------------


@pytest.mark.parametrize("connector", CRMS)
def test_a_first_run_waits_for_approval_and_names_its_plan(desk: Desk, connector: str) -> None:
    """Exit 4 and the plan to apply; nothing is written; apply is the approval; then there is nothing to do."""
    pair = desk.tenant(connector)
    pair.seed(contacts=2, deals=1)
    said = syncd("run", "nordhaus")
    assert said.code == 4
    (plan,) = PLAN.findall(said.out)
    lines = without_ids(said.out).splitlines()
    assert lines[0] == f"nordhaus   propstreet <> {connector}   halted"
    assert re.fullmatch(r"  calls     \d+ to crm, \d+ to propstreet", lines[1])
    assert lines[2:] == [
        "  the first run of this pair waits for approval",
        f"  Look at it:  syncd show {plan[:8]}",
        "  Let it go:   syncd apply PLAN",
        f"  Or drop it:  syncd discard {plan[:8]}",
    ]
    assert writes(pair.hub) == writes(pair.crm) == []
    shown = syncd("status", "nordhaus")
    assert (shown.code, without_ids(shown.out).splitlines()[:3]) == (
        0,
        [
            f"nordhaus   propstreet <> {connector}   halted",
            "  halted: the first run of this pair waits for approval",
            "  go on with: syncd apply PLAN",
        ],
    )
    done = syncd("apply", plan)
    assert done.code == 0, done
    pair.assert_in_step()
    assert syncd("run", "nordhaus").code == 0  # what apply made in Propstreet gets its mark in the CRM
    place, hub_place = mark(pair.crm), mark(pair.hub)
    again = syncd("run", "nordhaus")
    assert again.code == 0
    assert again.out.splitlines()[:2] == [
        f"nordhaus   propstreet <> {connector}   done",
        "  nothing to do; both sides are in step",
    ]
    assert (writes(pair.crm, place), writes(pair.hub, hub_place)) == ([], [])


@pytest.mark.parametrize("connector", CRMS)
def test_a_saved_plan_is_shown_and_discarded(desk: Desk, connector: str) -> None:
    """show names each operation and why the plan waits; discard ends it and approves nothing."""
    pair = desk.tenant(connector)
    pair.seed(contacts=1, deals=0)
    (plan,) = PLAN.findall(syncd("run", "nordhaus").out)
    shown = syncd("show", plan[:8])
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[:3] == [
        f"nordhaus   propstreet <> {connector}",
        f"  plan {plan}, open",
        "  waits: the first run of this pair waits for approval",
    ]
    assert lines[-2:] == [f"Run it with: syncd apply {plan}", f"Drop it with: syncd discard {plan}"]
    assert any(line.startswith("    create crm contact") for line in lines)
    document = json.loads(syncd("show", plan, "--json").out)
    assert (document["state"], document["reasons"]) == ("open", ["the first run of this pair waits for approval"])
    assert document["operations"]
    assert syncd("discard", plan[:8]).code == 0
    assert syncd("discard", plan).code == 2
    assert json.loads(syncd("status", "nordhaus", "--json").out)[0]["halted"] is None
    assert syncd("apply", plan).code == 2
    assert syncd("run", "nordhaus").code == 4
    assert writes(pair.hub) == writes(pair.crm) == []


def test_without_approval_every_run_halts_again(desk: Desk) -> None:
    """Nobody gets in by trying twice; the plan that is named is always the newest."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=1, deals=0)
    first, second = syncd("run", "nordhaus"), syncd("run", "nordhaus")
    assert (first.code, second.code) == (4, 4)
    (old,), (new,) = PLAN.findall(first.out), PLAN.findall(second.out)
    assert syncd("apply", old) == Said(2, "", f"syncd: plan {old} is discarded; make a new one: syncd plan nordhaus\n")
    assert writes(pair.hub) == writes(pair.crm) == []
    assert syncd("apply", new).code == 0
    pair.assert_in_step()


def test_a_paused_pair_is_left_alone_by_a_run_as_well(desk: Desk) -> None:
    """Whoever says run forgets who said pause: nothing is asked or written until somebody says resume."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=1, deals=0)
    in_step(pair)
    assert syncd("pause", "nordhaus").code == 0
    pair.hub_rename("hub0@example.com", "Later")
    calls = len(pair.crm.log), len(pair.hub.log)
    for command in ("run", "backfill"):
        said = syncd(command, "nordhaus")
        assert said.code == 4
        assert "  paused by a person; go on with: syncd resume nordhaus --pair hubspot" in said.out.splitlines()
    assert (len(pair.crm.log), len(pair.hub.log)) == calls
    assert syncd("resume", "nordhaus").code == 0
    assert syncd("run", "nordhaus").code == 0
    assert pair.picture()["crm contact"]["hub0@example.com", "Hanna0", "Later"] == 1


@pytest.mark.parametrize("connector", CRMS)
def test_one_record_is_paused_and_let_go_by_its_ref(desk: Desk, connector: str) -> None:
    """Named by the CRM's id or by Propstreet's; listed with its reason; one that nobody knows is an error."""
    pair = desk.tenant(connector)
    pair.seed(contacts=1, deals=0)
    assert syncd("backfill", "nordhaus").code == 0
    (contact,) = [each["id"] for each in pair.hub.all("contacts") if each["email"] == "hub0@example.com"]
    said = syncd("pause", "nordhaus", "--record", f"propstreet:{contact}")
    assert (said.code, said.out) == (0, f"nordhaus/{connector}: contact propstreet:{contact} is held still\n")
    pair.hub_rename("hub0@example.com", "Nyman")
    assert syncd("run", "nordhaus").code == 0
    assert pair.picture()["crm contact"]["hub0@example.com", "Hanna0", "Berg"] == 1
    (listed,) = json.loads(syncd("status", "nordhaus", "--excluded", "--json").out)
    assert (listed["propstreet"], listed["reason"]) == (contact, "held still: paused by a person")
    assert "1 held still" in syncd("status", "nordhaus").out
    said = syncd("resume", "nordhaus", "--record", f"{connector}:{listed['crm']}")
    assert said.out == f"nordhaus/{connector}: contact {connector}:{listed['crm']} catches up with the next run\n"
    assert syncd("run", "nordhaus").code == 0
    assert pair.picture()["crm contact"]["hub0@example.com", "Hanna0", "Nyman"] == 1
    assert syncd("pause", "nordhaus", "--record", f"{connector}:999").code == 2
    assert syncd("pause", "nordhaus", "--record", "999").code == 2


def test_resume_is_an_approval_too(desk: Desk) -> None:
    """After resume the next run goes ahead without a plan being named."""
    pair = desk.tenant("salesforce")
    pair.seed(contacts=1, deals=0)
    assert syncd("run", "nordhaus").code == 4
    said = syncd("resume", "nordhaus")
    assert (said.code, said.out) == (0, "nordhaus/salesforce: goes on with the next run\n")
    assert syncd("run", "nordhaus").code == 0
    pair.assert_in_step()


def test_every_command_has_help() -> None:
    """``--help`` of each command, and of each group's commands, says what it does and exits 0."""

    def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        if isinstance(command, click.Group):
            for name, each in command.commands.items():
                yield from walk(each, (*path, name))

    paths = list(walk(cli, ()))
    assert {("run",), ("plan",), ("apply",), ("backfill",), ("status",), ("config", "check")} <= set(paths)
    for path in paths:
        said = syncd(*path, "--help")
        assert said.code == 0
        assert said.out.startswith(f"Usage: {' '.join(['syncd', *path])} ")
        says = said.out.partition("\n\n")[2].partition("Options:")[0]
        assert len(says.strip()) > 20, path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nordhus"), "syncd: unknown tenant 'nordhus'; did you mean 'nordhaus'? Known: nordhaus.\n"),
        (("run", "nordhaus", "--pair", "x"), "syncd: nordhaus has no pair 'x'; it has hubspot\n"),
        (("apply", "zzz"), "syncd: no plan 'zzz'; syncd status names the plans that wait\n"),
        (("resolve", "c9", "crm"), "syncd: no open conflict c9; syncd conflicts --open lists them\n"),
        (("resolve", "r9", "never"), "syncd: no open review r9; syncd reviews lists them\n"),
        (("resolve", "x", "crm"), "syncd: 'x' is no id of this sort; it looks like c12\n"),
    ],
)
def test_what_does_not_exist_is_usage(desk: Desk, arguments: tuple[str, ...], message: str) -> None:
    """Exit 2 with one line on stderr that says what there is instead."""
    desk.tenant("hubspot")
    assert syncd(*arguments) == Said(2, "", message)


@pytest.mark.parametrize("arguments", [("nothing",), ("run",), ("backfill", "nordhaus", "--only", "deals")])
def test_wrong_usage_exits_2(desk: Desk, arguments: tuple[str, ...]) -> None:
    """An unknown command, a missing argument, an unknown kind."""
    desk.tenant("hubspot")
    assert syncd(*arguments).code == 2


# --- documents ----------------------------------------------------------------------------

COUNTED = {"linked", "conflicts", "in_review", "excluded", "dead_letters", "settling", "held"}
RUN = {
    "tenant", "pair", "connector", "state", "plan", "message", "operations", "created", "updated", "deleted", "marked",
    "linked", "conflicts", "rejected", "stale", "lost", "api_calls", "write_calls",
}  # fmt: skip
CONFLICT = {
    "tenant", "pair", "kind", "propstreet", "crm", "field", "base", "propstreet_value", "crm_value", "decided",
}  # fmt: skip


def test_json_of_plan_run_and_status(desk: Desk) -> None:
    """Each prints one document of the shape that scripts rely on."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=2, deals=1)
    plan = syncd("plan", "nordhaus", "--json")
    document = plan.json()
    assert plan.code == 0
    assert set(document) >= {"plan", "hash", "operations"}
    assert PLAN.fullmatch(document["plan"])
    assert re.fullmatch(r"[0-9a-f]{64}", document["hash"])
    assert {frozenset(each) for each in document["operations"]} == {
        frozenset({"verb", "kind", "side", "propstreet", "crm", "fields", "refs", "why"})
    }
    assert Counter((each["verb"], each["side"], each["kind"]) for each in document["operations"]) == {
        ("create", "propstreet", "company"): 1,
        ("create", "crm", "company"): 1,
        ("create", "propstreet", "contact"): 2,
        ("mark", "crm", "company"): 1,
        ("mark", "crm", "contact"): 2,
        ("create", "crm", "contact"): 2,
        ("create", "crm", "employment"): 2,
        ("create", "crm", "deal"): 1,
        ("create", "crm", "deal_contact"): 2,
    }
    again = syncd("plan", "nordhaus", "--json").json()
    assert (again["hash"], again["operations"]) == (document["hash"], document["operations"])
    (run,) = syncd("backfill", "nordhaus", "--json").json()
    assert set(run) == RUN
    assert (run["state"], run["created"]["contact"]) == ("done", {"propstreet": 2, "crm": 2})
    assert set(run["api_calls"]["crm"]) == {"made", "least"}
    (status,) = syncd("status", "--json").json()
    assert set(status) == {"tenant", "pair", "connector", "state", "halted", "plan", "kinds", "last_run"}
    assert set(status["kinds"]) == {"company", "contact", "employment", "deal", "deal_contact"}
    assert {frozenset(each) for each in status["kinds"].values()} == {frozenset(COUNTED)}
    assert status["kinds"]["contact"]["linked"] == 4
    (idle,) = syncd("run", "nordhaus", "--json").json()
    assert (idle["operations"], idle["write_calls"], idle["plan"]) == (0, 0, None)
    nothing = syncd("plan", "nordhaus", "--json").json()
    assert (nothing["plan"], nothing["hash"], nothing["operations"]) == (None, None, [])
    for command in ("conflicts", "reviews", "dead-letters"):
        assert syncd(command, "--json").json() == []
        assert syncd(command).out == "none\n"


def test_a_conflict_that_is_held_waits_for_a_person(desk: Desk) -> None:
    """Exit 3 and the conflict with both values; a person's word is carried out by the next run."""
    pair = desk.tenant("hubspot", kinds={"contact": {"conflict": "hold"}})
    pair.seed(contacts=2, deals=0)
    in_step(pair)
    pair.hub_rename("hub1@example.com", "Vänster")
    pair.crm_rename("hub1@example.com", "Höger")
    said = syncd("run", "nordhaus")
    assert said.code == 3
    (conflict,) = syncd("conflicts", "nordhaus", "--json").json()
    assert set(conflict) >= CONFLICT
    assert {key: conflict[key] for key in CONFLICT - {"propstreet", "crm"}} == {
        "tenant": "nordhaus",
        "pair": "hubspot",
        "kind": "contact",
        "field": "last_name",
        "base": "Berg",
        "propstreet_value": "Vänster",
        "crm_value": "Höger",
        "decided": None,
    }
    assert pair.hub.get("contacts", conflict["propstreet"])["lastName"] == "Vänster"
    assert isinstance(pair.crm, HubSpotEmulator)
    assert pair.crm.all("contacts")[conflict["crm"]]["lastname"] == "Höger"
    table = syncd("conflicts").out
    assert all(word in table for word in (conflict["id"], "last_name", "Vänster", "Höger"))
    again = syncd("run", "nordhaus")
    assert again.code == 3
    assert "  nothing to do until a person decides" in again.out.splitlines()
    assert "  for you   syncd conflicts nordhaus --open" in again.out.splitlines()
    assert syncd("plan", "nordhaus").out.splitlines()[1] == "  nothing to do until a person decides"
    told = syncd("resolve", conflict["id"], "crm")
    assert (told.code, told.out) == (0, f"{conflict['id']}: crm; the next run carries it out\n")
    assert syncd("run", "nordhaus").code == 0
    pair.assert_in_step()
    (settled,) = syncd("conflicts", "--json").json()
    assert (settled["decided"], settled["propstreet_value"]) == ("a person's word", "Vänster")
    assert syncd("conflicts", "--open", "--json").json() == []


def test_a_conflict_that_a_policy_settles_keeps_the_losing_value(desk: Desk) -> None:
    """The later edit wins, exit 0; the other value stays in the list."""
    pair = desk.tenant("salesforce", kinds={"contact": {"conflict": "propstreet"}})
    pair.seed(contacts=2, deals=0)
    in_step(pair)
    pair.hub_rename("hub1@example.com", "Vänster")
    pair.crm_rename("hub1@example.com", "Höger")
    assert syncd("run", "nordhaus").code == 0
    (conflict,) = syncd("conflicts", "--json").json()
    assert (conflict["decided"], conflict["crm_value"]) == ("propstreet", "Höger")
    pair.assert_in_step()


def test_two_candidates_wait_for_a_person(desk: Desk) -> None:
    """Exit 3 and the review with its candidates; a person names one."""
    pair = desk.tenant("hubspot")
    company = pair.hub.add("companies", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
    crm = pair.crm
    assert isinstance(crm, HubSpotEmulator)
    twins = [crm.add("companies", {"name": f"Nordhaus {each}", "domain": "nordhaus.se"}) for each in "AB"]
    assert syncd("backfill", "nordhaus").code == 3
    reviews = syncd("reviews", "--json").json()
    mine = next(each for each in reviews if each["propstreet"] == company)
    assert {key: mine[key] for key in ("tenant", "pair", "kind", "crm")} == {
        "tenant": "nordhaus", "pair": "hubspot", "kind": "company", "crm": None,
    }  # fmt: skip
    assert sorted(each["id"] for each in mine["candidates"]) == sorted(twins)
    wrong = syncd("resolve", mine["id"], "same", "4711")
    assert wrong.code == 2
    assert all(each in wrong.err for each in twins)
    assert syncd("resolve", mine["id"], "same").code == 2
    assert syncd("resolve", mine["id"], "same", twins[1]).code == 0
    syncd("run", "nordhaus")
    assert crm.all("companies")[twins[1]]["name"] == pair.hub.get("companies", company)["name"]
    assert syncd("status", "--json").json()[0]["kinds"]["company"]["linked"] >= 1


def test_a_dead_letter_waits_for_a_person(desk: Desk) -> None:
    """Exit 3 and the letter with its code; put right and retried, it is gone."""
    pair = desk.tenant("hubspot")
    bad = pair.hub_contact(1, email="hub1@nowhere")
    pair.hub_contact(2)
    assert syncd("backfill", "nordhaus").code == 3
    (letter,) = syncd("dead-letters", "nordhaus", "--json").json()
    assert set(letter) == {"id", "tenant", "pair", "kind", "propstreet", "crm", "reason"}
    assert (letter["propstreet"], letter["crm"], letter["kind"]) == (bad, None, "contact")
    assert "INVALID_EMAIL" in letter["reason"]
    assert "nowhere" not in letter["reason"]
    assert letter["id"] in syncd("dead-letters").out
    place = mark(pair.crm)
    assert syncd("run", "nordhaus").code == 3
    assert writes(pair.crm, place) == []
    said = syncd("retry", "nordhaus", letter["id"])
    assert (said.code, said.out) == (0, "1 will be tried again by the next run\n")
    assert syncd("run", "nordhaus").code == 3
    pair.hub.edit("contacts", bad, {"email": "hub1@example.com"})
    assert syncd("run", "nordhaus").code == 0
    pair.assert_in_step()


# --- plan and apply -----------------------------------------------------------------------


@pytest.mark.parametrize("connector", CRMS)
def test_plan_makes_reading_calls_only(desk: Desk, connector: str) -> None:
    """Neither the first plan nor a later one writes anything anywhere; nor does a dry backfill."""
    pair = desk.tenant(connector)
    pair.seed(contacts=3, deals=1)
    assert syncd("plan", "nordhaus").code == 0
    assert syncd("backfill", "nordhaus", "--dry-run").code == 0
    assert writes(pair.hub) == writes(pair.crm) == []
    in_step(pair)
    edit_everywhere(pair)
    place, hub_place = mark(pair.crm), mark(pair.hub)
    before = pair.picture()
    said = syncd("plan", "nordhaus")
    assert said.code == 0
    assert said.out.splitlines()[-1].startswith("Nothing was written. Run it with: syncd apply ")
    assert (writes(pair.crm, place), writes(pair.hub, hub_place)) == ([], [])
    assert pair.picture() == before
    assert len(since(pair.crm, place)) > 0


def edit_everywhere(pair: Pair) -> None:
    """One edit and one new contact on each side."""
    pair.hub_rename("hub0@example.com", "Planman")
    pair.crm_rename("crm0@example.com", "Planman")
    pair.hub_contact(70)
    pair.crm_contact(80)


def written(emulator: Emulator, place: int) -> Counter[tuple[str, str]]:
    """How many records each sort of writing call carried."""
    found: Counter[tuple[str, str]] = Counter()
    for call in writes(emulator, place):
        rows = (call.body or {}).get("inputs") or (call.body or {}).get("records") or [call.body]
        found[call.method, call.path] += len(rows)
    return found


@pytest.mark.parametrize("connector", CRMS)
def test_apply_makes_exactly_the_writes_of_its_plan(desk: Desk, connector: str) -> None:
    """A create with its mark, an update on each side, and not what a later edit of another record would ask for."""
    pair = desk.tenant(connector)
    pair.seed(contacts=3, deals=1)
    in_step(pair)
    edit_everywhere(pair)
    plan = syncd("plan", "nordhaus", "--json").json()
    assert Counter((each["verb"], each["side"], each["kind"]) for each in plan["operations"]) == {
        ("create", "propstreet", "contact"): 1,
        ("mark", "crm", "contact"): 1,
        ("update", "propstreet", "contact"): 1,
        ("create", "crm", "contact"): 1,
        ("update", "crm", "contact"): 1,
    }
    pair.hub_rename("hub2@example.com", "Oplanerad")
    pair.crm_contact(90)
    before = pair.picture()
    place, hub_place = mark(pair.crm), mark(pair.hub)
    assert syncd("apply", plan["plan"]).code == 0
    after = pair.picture()
    changed = {kind: after[kind] - before[kind] for kind in after}
    assert {kind: sorted(rows) for kind, rows in changed.items() if rows} == {
        "propstreet contact": [("crm0@example.com", "Carl0", "Planman"), ("crm80@example.com", "Carl80", "Ek")],
        "crm contact": [("hub0@example.com", "Hanna0", "Planman"), ("hub70@example.com", "Hanna70", "Berg")],
    }
    assert sum(written(pair.crm, place).values()) == 3
    assert sum(written(pair.hub, hub_place).values()) == 2
    assert syncd("apply", plan["plan"]).code == 2
    for _ in range(2):
        assert syncd("run", "nordhaus").code == 0
    pair.assert_in_step()


def test_a_plan_that_was_never_finished_is_not_applied(desk: Desk) -> None:
    """Its run died while it drew it up: half a plan shows a person half of what it would do."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=2, deals=1)
    plan = syncd("plan", "nordhaus", "--json").json()["plan"]
    with desk.service.engine.begin() as tx:
        tx.execute(update(s.plan).where(s.plan.c.id == plan).values(hash=""))
    said = syncd("apply", plan)
    assert (said.code, said.err) == (2, f"syncd: plan {plan} is unfinished; make a new one: syncd plan nordhaus\n")
    assert writes(pair.hub) == writes(pair.crm) == []


def _hub_again(pair: Pair) -> None:
    pair.hub_rename("hub0@example.com", "Igen")


def _crm_meanwhile(pair: Pair) -> None:
    pair.crm_rename("hub0@example.com", "Igen")


def _source_gone(pair: Pair) -> None:
    (id_,) = [each["id"] for each in pair.hub.all("contacts") if each["email"] == "hub70@example.com"]
    pair.hub.remove("contacts", id_)


def _new_one_again(pair: Pair) -> None:
    pair.crm_rename("crm80@example.com", "Igen")


def _prospect_again(pair: Pair) -> None:
    (prospect,) = [each for each in pair.hub.all("prospects") if each["classification"] == "bidder"]
    pair.hub.classify(prospect["id"], "not_interested")


@pytest.mark.parametrize(
    ("connector", "move", "told"),
    [
        ("hubspot", _hub_again, r"propstreet contact \d+"),
        ("hubspot", _crm_meanwhile, r"crm contact \d+"),
        ("hubspot", _source_gone, r"propstreet contact \d+"),
        ("salesforce", _crm_meanwhile, r"crm contact 003\w{15}"),
        ("salesforce", _new_one_again, r"crm contact 003\w{15}"),
        ("salesforce", _prospect_again, r"propstreet deal_contact \d+"),
    ],
    ids=["source edited", "target edited", "source gone", "target edited, too", "new one edited", "prospect moved on"],
)
def test_apply_refuses_when_a_record_moved_on_either_side(
    desk: Desk, connector: str, move: Callable[[Pair], None], told: str
) -> None:
    """The plan is the truth: it names who moved, writes nothing at all, and is not to be had again."""
    pair = desk.tenant(connector)
    pair.seed(contacts=2, deals=1)
    assert syncd("backfill", "nordhaus").code == 0
    edit_everywhere(pair)
    pair.hub.classify(pair.hub.all("prospects")[0]["id"], "bidder")
    plan = syncd("plan", "nordhaus", "--json").json()["plan"]
    move(pair)
    before = pair.picture()
    place, hub_place = mark(pair.crm), mark(pair.hub)
    said = syncd("apply", plan)
    assert said.code == 1
    lines = [line.strip() for line in said.out.splitlines()]
    assert any(
        re.fullmatch(
            told + " moved since the plan was made; nothing was written. Make a new one: syncd plan nordhaus", line
        )
        for line in lines
    ), lines
    assert (writes(pair.crm, place), writes(pair.hub, hub_place)) == ([], [])
    assert pair.picture() == before
    again = syncd("apply", plan)
    assert (again.code, again.err) == (2, f"syncd: plan {plan} is refused; make a new one: syncd plan nordhaus\n")


def test_a_refused_first_plan_approved_nothing(desk: Desk) -> None:
    """An approval counts only for what was seen: the next run waits again, with a plan of how things stand now."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=2, deals=0)
    (plan,) = syncd("run", "nordhaus", "--json").json()
    pair.hub.edit("contacts", pair.hub.all("contacts")[0]["id"], {"firstName": "Anders"})
    assert syncd("apply", plan["plan"]).code == 1
    again = syncd("run", "nordhaus", "--json")
    assert (again.code, again.json()[0]["state"]) == (4, "halted")
    assert again.json()[0]["plan"] != plan["plan"]
    assert writes(pair.crm, 0) == []
    assert syncd("apply", again.json()[0]["plan"]).code == 0


def test_a_pair_whose_last_run_failed_is_not_said_to_be_kept_in_step(desk: Desk) -> None:
    """A token that is refused shows in its status, until a run is well again."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=2, deals=0)
    in_step(pair)
    refused = fault(pair.crm, status=401, body={"message": "gone"}, times=99)
    assert syncd("run", "nordhaus").code == 1
    assert syncd("status", "nordhaus", "--json").json()[0]["state"] == "failing"
    assert syncd("status", "nordhaus").out.splitlines()[0].endswith("failing")
    pair.crm.faults.remove(refused)
    assert syncd("run", "nordhaus").code == 0
    assert syncd("status", "nordhaus").out.splitlines()[0].endswith("kept in step")


# --- configuration ------------------------------------------------------------------------


def broken(desk: Desk, change: Callable[[dict[str, Any]], None], connector: str = "hubspot") -> Said:
    """What ``run`` says of a tenant whose file was changed."""
    pair = desk.tenant(connector)
    document = pair.document()
    change(document)
    pair.write(document)
    said = syncd("run", "nordhaus")
    assert (said.code, writes(pair.hub), writes(pair.crm)) == (2, [], [])
    return said


def told(said: Said, *parts: str) -> None:
    """Somewhere in what was said stands a line with the file and all these."""
    text = said.err + said.out
    assert all(part in text for part in parts), text


def test_an_unknown_key_is_named_with_a_suggestion(desk: Desk) -> None:
    """File, path, what was meant."""
    said = broken(desk, lambda document: document["pairs"][0].update(evry="30s"))
    told(said, f"{desk.folder}/nordhaus.yaml:", "pairs[0].evry: unknown key 'evry'; did you mean 'every'?")


def test_an_unknown_field_is_named_with_a_suggestion(desk: Desk) -> None:
    """The same for a field's name."""
    kinds = {"deal": {"fields": {"amont": "both"}}}
    said = broken(desk, lambda document: document["pairs"][0].update(kinds=kinds))
    told(said, "nordhaus.yaml:", "pairs[0].kinds.deal.fields.amont", "did you mean 'amount'?")


def test_a_missing_secret_names_its_place(desk: Desk) -> None:
    """The file of the secret, and where in the tenant's file it is asked for."""
    auth = {"access_token": {"file": "/nowhere/token"}}
    said = broken(desk, lambda document: document["pairs"][0].update(auth=auth))
    told(said, "nordhaus.yaml:", "pairs[0].auth.access_token: the file /nowhere/token is not there.", "Create it")
    env = {"client_id": {"env": "SYNCD_TEST_NOT_SET"}, "client_secret": {"env": "SYNCD_TEST_NOT_SET"}}
    said = broken(desk, lambda document: document["propstreet"].update(auth=env))
    told(said, "nordhaus.yaml:", "the environment variable SYNCD_TEST_NOT_SET is not set.")


def test_an_inline_secret_is_refused_and_not_repeated(desk: Desk) -> None:
    """A secret in the file is an error, and stands in no message."""
    auth = {"access_token": "pat-eu1-very-secret"}
    said = broken(desk, lambda document: document["pairs"][0].update(auth=auth))
    told(said, "nordhaus.yaml:", "pairs[0].auth.access_token: a secret must not stand in the file.", "{file: PATH}")
    assert "very-secret" not in said.out + said.err


def test_two_pairs_with_one_namespace_are_refused(desk: Desk) -> None:
    """Two CRMs under one name in Propstreet would overwrite each other's refs."""

    def change(document: dict[str, Any]) -> None:
        document["pairs"].append({**document["pairs"][0], "name": "second"})

    told(broken(desk, change), "nordhaus.yaml:", "pairs[1].namespace: pairs[0] has the namespace 'hubspot' too.")


def test_two_files_with_one_tenant_are_both_refused(desk: Desk) -> None:
    """Neither is used, and each names the other."""
    pair = desk.tenant("hubspot")
    (desk.folder / "other.yaml").write_text(pair.file.read_text())
    said = syncd("run", "nordhaus")
    assert said.code == 2
    for mine, other in (("nordhaus", "other"), ("other", "nordhaus")):
        told(said, f"{desk.folder}/{mine}.yaml:1: tenant: the tenant 'nordhaus' is also in {desk.folder}/{other}.yaml.")


def test_unreadable_yaml_names_file_and_line(desk: Desk) -> None:
    """Where reading stopped, without the file's own words."""
    pair = desk.tenant("hubspot")
    pair.file.write_text(pair.file.read_text() + "\nsecret: [unclosed\n")
    said = syncd("run", "nordhaus")
    assert said.code == 2
    assert re.search(re.escape(f"{pair.file}:") + r"\d+: not readable as YAML at column \d+", said.err), said.err
    assert "unclosed" not in said.err


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_without_tenants_says_so(desk: Desk, is_there: bool) -> None:
    """An empty folder or none: exit 2 and how to begin."""
    if is_there:
        desk.folder.mkdir()
    said = syncd("run", "nordhaus")
    assert said.code == 2
    what = "no tenant (*.yaml) in this folder" if is_there else "there is no such folder of tenants"
    told(said, f"{desk.folder}: {what}.", "--config DIR or SYNCD_CONFIG")


@pytest.mark.parametrize(
    ("connector", "kinds", "parts"),
    [
        ("hubspot", {"deal": {"stages": {"qualifiedtoby": ["published"]}}}, ("qualifiedtoby", "qualifiedtobuy")),
        ("salesforce", {"deal": {"stages": {"Qualifcation": ["published"]}}}, ("Qualifcation", "Qualification")),
        ("hubspot", {"deal": {"pipeline": "defalt"}}, ("defalt", "default")),
        ("hubspot", {"deal_contact": {"labels": {"bidder": "Bider"}}}, ("Bider",)),
    ],
    ids=["hubspot stage", "salesforce stage", "hubspot pipeline", "hubspot label"],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_what_the_account_does_not_know_is_found(
    desk: Desk, command: str, connector: str, kinds: dict[str, Any], parts: tuple[str, ...]
) -> None:
    """Stages, pipelines and labels exist only in the account: exit 2, the word, and the nearest one there is."""
    pair = desk.tenant(connector, kinds=kinds)
    pair.seed(contacts=1, deals=1)
    said = syncd(command, "nordhaus")
    assert said.code == 2, said
    told(said, f"{desk.folder}/nordhaus.yaml: pair {connector}: " if len(parts) > 1 else "nordhaus", *parts)
    assert writes(pair.hub) == writes(pair.crm) == []


def test_check_fix_makes_the_labels_that_are_missing(desk: Desk) -> None:
    """What the vendor's API can make, ``check --fix`` makes; then nothing is missing."""
    pair = desk.tenant("hubspot", kinds={"deal_contact": {"labels": {"bidder": "Budgivare"}}})
    assert syncd("check", "nordhaus").code == 2
    assert syncd("check", "nordhaus", "--fix").code == 0
    said = syncd("check", "nordhaus")
    assert said.code == 0
    assert said.out.splitlines()[1] == "  everything that this pair needs is there"
    assert writes(pair.hub) == []


@pytest.mark.parametrize("connector", CRMS)
def test_another_account_behind_the_credentials_is_refused(desk: Desk, connector: str) -> None:
    """A pair never changes its account: exit 2, both accounts named, nothing written."""
    pair = desk.tenant(connector)
    pair.seed(contacts=2, deals=0)
    in_step(pair)
    known = "47110815"
    if isinstance(pair.crm, HubSpotEmulator):
        pair.crm.portal_id = 99
    if isinstance(pair.crm, SalesforceEmulator):
        known, pair.crm.org_id = pair.crm.org_id, "00D000000000099AAA"
        pair.crm.expire_tokens()
    place, hub_place = mark(pair.crm), mark(pair.hub)
    pair.hub_rename("hub0@example.com", "Fel")
    for command in ("run", "check"):
        said = syncd(command, "nordhaus")
        assert said.code == 2
        told(said, f"nordhaus/{connector}: the credentials of {connector} belong to account", known, "99")
    assert (writes(pair.crm, place), writes(pair.hub, hub_place)) == ([], [])


def test_a_database_that_is_down_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2 with what to look at, and without the URL, which holds a password."""
    monkeypatch.setenv("SYNCD_DATABASE_URL", "postgresql://syncd:hidden-word@127.0.0.1:1/syncd")
    said = syncd("status")
    assert said.code == 2
    assert said.err == "syncd: the database does not answer; check SYNCD_DATABASE_URL and that PostgreSQL is running\n"


def test_a_database_that_is_not_migrated_is_told(
    empty_database: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2 with the command that migrates it; after that command all is well."""
    monkeypatch.setenv("SYNCD_DATABASE_URL", empty_database)
    said = syncd("status")
    assert (said.code, "syncd migrate" in said.err) == (2, True)
    done = syncd("migrate")
    assert done.code == 0
    assert re.fullmatch(r"the database is at revision \w+\n", done.out)
    assert syncd("status") == Said(0, "nothing has run yet; start with: syncd run TENANT\n", "")


def test_a_broken_file_leaves_the_other_tenants_alone(desk: Desk) -> None:
    """Another tenant of the folder is synced, and the broken file is told on stderr."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=1, deals=0)
    (desk.folder / "broken.yaml").write_text("pairs: {\n")
    said = syncd("backfill", "nordhaus")
    assert said.code == 0
    assert f"{desk.folder}/broken.yaml" in said.err
    pair.assert_in_step()


def test_config_check_calls_nobody(desk: Desk) -> None:
    """Files are read, all problems told at once, no vendor asked."""
    pair = desk.tenant("hubspot")
    said = syncd("config", "check")
    assert (said.code, said.out) == (0, "nordhaus   hubspot (hubspot)\n")
    (desk.folder / "broken.yaml").write_text(yaml.safe_dump({"pairs": [{"conector": "hubspot"}]}))
    bad = syncd("config", "check", "--json")
    assert bad.code == 2
    document = bad.json()
    assert document["tenants"] == [{"tenant": "nordhaus", "pairs": ["hubspot"]}]
    assert {each["path"] for each in document["problems"]} == {"propstreet", "pairs[0].connector", "pairs[0].conector"}
    assert all(set(each) == {"file", "path", "message", "fix"} for each in document["problems"])
    assert pair.hub.calls() == pair.crm.calls() == []


# --- hostile answers ----------------------------------------------------------------------


@pytest.mark.parametrize("system", ["propstreet", "hubspot", "salesforce"])
def test_ten_megabytes_in_one_field_are_one_dead_letter(desk: Desk, system: str) -> None:
    """A text that nobody can store sets its own record aside; the others of its page go on."""
    pair = desk.tenant(system if system in CRMS else "hubspot")
    pair.seed(contacts=4, deals=1)
    flood = "x" * 10_000_000
    if system == "propstreet":
        (bad,) = [each["id"] for each in pair.hub.all("contacts") if each["email"] == "hub3@example.com"]
        pair.hub.edit("contacts", bad, {"firstName": flood})
    elif isinstance(pair.crm, HubSpotEmulator):
        (bad,) = [each for each, row in pair.crm.all("contacts").items() if row["email"] == "crm3@example.com"]
        with pair.crm.lock:
            pair.crm._change("contacts", pair.crm._things["contacts"][int(bad)], {"firstname": flood})
    else:
        assert isinstance(pair.crm, SalesforceEmulator)
        (bad,) = [each["Id"] for each in pair.crm.all("Contact") if each["Email"] == "crm3@example.com"]
        pair.crm.edit("Contact", bad, {"FirstName": flood})
    said = syncd("backfill", "nordhaus")
    assert said.code == 3, said
    _only_dead_letter(bad, system)
    picture = pair.picture()
    others = {row[0] for row in picture["crm contact"]} & {row[0] for row in picture["propstreet contact"]}
    assert len(others) == 7
    assert syncd("run", "nordhaus").code == 3


HOSTILE = ("../../admin", "1/../2", "9" * 400, "a\nb", "'; DROP TABLE link; --", {"a": 1}, "", None, True)


@pytest.mark.parametrize("system", ["propstreet", "hubspot"])
def test_hostile_ids_are_set_aside_and_the_others_go_on(desk: Desk, system: str) -> None:
    """An id that is none reaches no URL and no table: dead letters, exit 3, all others in step; other tenants too."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=3, deals=1)
    other = desk.tenant("salesforce", "granit")
    other.seed(contacts=1, deals=0)
    body: dict[str, Any]
    if system == "propstreet":
        rows = pair.hub.all("contacts")
        body = {"data": [{**rows[0], "email": f"h{at}@example.com", "externalRefs": [], "id": id_}
                         for at, id_ in enumerate(HOSTILE)] + rows,
                "page": {"nextCursor": None, "pageSize": 500, "hasMore": False}}  # fmt: skip
        fault(pair.hub, method="GET", path="/network/contacts$", when="after", status=200, body=body, times=2)
    else:
        assert isinstance(pair.crm, HubSpotEmulator)
        with pair.crm.lock:
            good = [
                pair.crm._row("contacts", each, list(each.properties))
                for each in pair.crm._things["contacts"].values()
            ]  # fmt: skip
        bad = [{**good[0], "id": id_} for id_ in HOSTILE]
        body = {"results": [*bad, *good]}
        fault(pair.crm, method="GET", path="/objects/contacts$", when="after", status=200, body=body, times=2)
    said = syncd("backfill", "nordhaus")
    assert said.code == 3, said
    for call in [*pair.hub.calls(), *pair.crm.calls()]:
        assert not any(word in call.path for word in ("admin", "DROP", "..", "999999"))
    for letter in syncd("dead-letters", "--json").json():
        assert letter["kind"] == "contact"
    pair.assert_in_step()
    assert syncd("backfill", "granit").code == 0
    other.assert_in_step()


def _only_dead_letter(bad: str, system: str) -> None:
    (letter,) = syncd("dead-letters", "--json").json()
    assert letter["propstreet" if system == "propstreet" else "crm"] == bad
    assert letter["kind"] == "contact"
    assert len(letter["reason"]) < 300


# --- two CRMs -----------------------------------------------------------------------------


def test_two_crms_of_one_tenant_say_the_same_through_propstreet(desk: Desk) -> None:
    """What one of them is told arrives in the other, by the one hub that both know; then all three are quiet."""
    one = desk.tenant("hubspot")
    org = crm_emulator("salesforce", desk.service.now)
    desk.stack.enter_context(started(org))
    other = Pair("nordhaus", "salesforce", desk.folder, one.hub, org)
    one.write({**one.document(), "pairs": [*one.document()["pairs"], *other.document()["pairs"]]})
    one.seed(contacts=2, deals=1)
    assert syncd("backfill", "nordhaus").code == 0
    other.crm_rename("hub0@example.com", "Nyman")
    one.crm_rename("crm1@example.com", "Quist")
    for _ in range(3):
        assert syncd("run", "nordhaus").code == 0
    for pair in (one, other):
        pair.assert_in_step()
        names = {(mail, last): count for (mail, _, last), count in pair.picture()["crm contact"].items()}
        assert names["hub0@example.com", "Nyman"] == names["crm1@example.com", "Quist"] == 1
        assert len(names) == 4
    quiet = syncd("run", "nordhaus").out.splitlines()
    assert quiet.count("  nothing to do; both sides are in step") == 2
