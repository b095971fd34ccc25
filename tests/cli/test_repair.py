"""``runs`` and ``undo`` against emulated vendors: what they print, what they exit with, what they write."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from syncd.core.model import KINDS
from syncd.state import lease
from syncd.tenants import Tenants
from syncd.worker import Worker
from tests.cli.test_cli import Desk, Said, desk, folder, in_step, syncd
from tests.faults.harness import CRMS, Pair, mark, writes

__all__ = ["desk", "folder"]

pytestmark = pytest.mark.long

RUN = re.compile(r"[0-9a-f]{32}")


def renamed(pair: Pair) -> str:
    """One contact that a person renamed in Propstreet and that a run renamed in the CRM; the run's id."""
    pair.hub_rename("hub1@example.com", "Renamed")
    assert syncd("run", "nordhaus").code == 0
    (newest, *_) = syncd("runs", "nordhaus", "--json").json()
    assert newest["wrote"] == {"update": {"contact": {"crm": 1}}}
    return str(newest["run"])


def side(pair: Pair, name: str) -> dict[str, Counter[tuple[str, ...]]]:
    return {at: rows for at, rows in pair.picture().items() if at.startswith(name)}


def lines(said: Said) -> list[str]:
    return [
        re.sub(r"(propstreet|hubspot|salesforce):\w+", r"\1:ID", RUN.sub("ID", each)) for each in said.out.splitlines()
    ]


@pytest.mark.parametrize("connector", CRMS)
def test_a_run_is_shown_taken_back_and_brought_forth_again(desk: Desk, connector: str) -> None:
    """undo shows and saves, apply carries out; the other side keeps its value; a further run plans nothing."""
    pair = desk.tenant(connector)
    pair.seed(contacts=2, deals=1)
    in_step(pair)
    before = pair.picture()
    run = renamed(pair)
    after = pair.picture()
    assert after != before
    place, hub_place = mark(pair.crm), mark(pair.hub)
    shown = syncd("undo", run[:12])
    assert (shown.code, lines(shown)) == (
        0,
        [
            f"nordhaus   propstreet <> {connector}   undo of run ID",
            f"  update    {f'{connector} contact':<{max(len(connector), 10) + 13}}       1    last_name 1",
            "Nothing was written. Carry it out with: syncd apply ID",
        ],
    )
    assert (writes(pair.crm, place), writes(pair.hub, hub_place)) == ([], [])
    plan = RUN.findall(shown.out)[1]
    assert syncd("apply", plan).code == 0
    assert side(pair, "crm") == {name: rows for name, rows in before.items() if name.startswith("crm")}
    assert side(pair, "propstreet") == {name: rows for name, rows in after.items() if name.startswith("propstreet")}
    quiet = syncd("run", "nordhaus")
    assert quiet.out.splitlines()[1] == "  nothing to do; both sides are in step"
    again = syncd("undo", run, "--yes")
    assert (again.code, lines(again)[1:]) == (
        0,
        [
            f"  left      contact propstreet:ID {connector}:ID last_name   already as before",
            "Nothing is to be written.",
        ],
    )
    (applied,) = [each for each in syncd("runs", "--json").json() if each["reason"] == "apply"]
    assert syncd("undo", applied["run"], "--yes").code == 0
    assert pair.picture() == after


@pytest.mark.parametrize("connector", CRMS)
def test_records_that_a_run_made_are_archived_and_stay_away(desk: Desk, connector: str) -> None:
    """Created on the CRM's side, undone, and not made again; --json tells all of it."""
    pair = desk.tenant(connector)
    pair.seed(contacts=2, deals=1)
    in_step(pair)
    before = pair.picture()
    pair.hub_contact(7)
    assert syncd("run", "nordhaus").code == 0
    (newest, *_) = syncd("runs", "--json").json()
    done = syncd("undo", newest["run"], "--yes", "--json")
    document = done.json()
    assert (done.code, document["applied"], document["left"], document["brakes"]) == (0, True, [], [])
    assert [(each["verb"], each["kind"], each["side"]) for each in document["operations"]] == [
        ("delete", "contact", "crm")
    ]
    assert side(pair, "crm") == {name: rows for name, rows in before.items() if name.startswith("crm")}
    assert syncd("run", "nordhaus").out.splitlines()[1] == "  nothing to do; both sides are in step"
    excluded = syncd("status", "nordhaus", "--excluded", "--json").json()
    assert [each["reason"] for each in excluded] == [f"held still: its counterpart was undone with run {newest['run']}"]


def test_an_unknown_run_is_refused_by_name(desk: Desk) -> None:
    """Exit 2 and where to look."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=1, deals=0)
    assert syncd("undo", "zzz") == Said(2, "", "syncd: no run 'zzz'; syncd runs lists them\n")
    assert syncd("runs").out == "nothing has run yet; start with: syncd run TENANT\n"
    assert syncd("undo", "zzz", "--yes", "--dry-run").code == 2
    in_step(pair)
    assert re.fullmatch(
        r"[0-9a-f]{32}   2\S+Z   nordhaus/hubspot   run done", syncd("runs", "nordhaus").out.splitlines()[0]
    )


# --- audit --------------------------------------------------------------------------------


@pytest.mark.parametrize("connector", CRMS)
def test_an_audit_of_a_clean_tenant_explains_everything(desk: Desk, connector: str) -> None:
    """Exit 0, reading calls only, nothing remembered of it but the audit itself."""
    pair = desk.tenant(connector)
    pair.seed(contacts=3, deals=2)
    in_step(pair)
    assert syncd("run", "nordhaus").code == 0
    place, hub_place = mark(pair.crm), mark(pair.hub)
    said = syncd("audit", "nordhaus")
    # A Website is more than the domain that is read from it, and only the Website can be written.
    derived = ["  company               1 identical", f"{'':<24}1 agreed to differ"]
    companies = derived if connector == "salesforce" else ["  company               2 identical"]
    assert (said.code, said.out.splitlines()) == (
        0,
        [
            f"nordhaus   propstreet <> {connector}   audit",
            *companies,
            "  contact               6 identical",
            "  employment            2 identical",
            "  deal                  2 identical",
            "  deal_contact          5 identical",
            "Nothing is unexplained.",
        ],
    )
    assert (writes(pair.crm, place), writes(pair.hub, hub_place)) == ([], [])
    quiet = syncd("run", "nordhaus")
    assert quiet.out.splitlines()[1] == "  nothing to do; both sides are in step"
    assert [each["reason"] for each in syncd("runs", "--json").json()][:2] == ["run", "audit"]


@pytest.mark.parametrize("connector", CRMS)
def test_every_write_that_was_answered_and_not_stored_is_named(desk: Desk, connector: str) -> None:
    """On either side over HTTP: N injected, N named by refs and field, no value, exit 3; --values shows them."""
    count = 4
    pair = desk.tenant(connector)
    pair.seed(contacts=count, deals=1)
    in_step(pair)
    pair.crm.loses = lambda collection, id_, name: name.lower() == "lastname"
    pair.hub.loses = lambda collection, id_, name: name == "lastName"
    for number in range(count):
        pair.hub_rename(f"hub{number}@example.com", f"Lost{number}")
        pair.crm_rename(f"crm{number}@example.com", f"Lost{number}")
    syncd("run", "nordhaus")
    found = syncd("audit", "nordhaus", "--json", "--kind", "contact")
    (document,) = found.json()
    assert found.code == 3
    assert document["kinds"]["contact"]["unexplained"] == len(document["unexplained"]) == 2 * count
    assert {each["field"] for each in document["unexplained"]} == {"last_name"}
    assert len({(each["propstreet"], each["crm"]) for each in document["unexplained"]}) == 2 * count
    assert "Lost" not in found.out
    shown = syncd("audit", "nordhaus", "--kind", "contact")
    assert shown.out.splitlines()[2] == f"{'':<16}{2 * count:>9} unexplained"
    assert shown.out.splitlines()[-1] == "Compare anew with: syncd backfill nordhaus --dry-run"
    assert "Lost" not in shown.out
    assert syncd("audit", "nordhaus", "--values").out.count("Lost") >= 2 * count


@pytest.mark.parametrize("connector", CRMS)
def test_edits_that_wait_and_conflicts_are_no_alarm(desk: Desk, connector: str) -> None:
    """Pending on both sides, new, deleted, held for a person: known reasons, each counted; exit 0."""
    kinds = {"contact": {"fields": {"last_name": {"policy": "both", "conflict": "hold"}}}}
    pair = desk.tenant(connector, kinds=kinds)
    pair.seed(contacts=4, deals=1)
    in_step(pair)
    pair.hub_rename("hub0@example.com", "Here")
    pair.crm_rename("hub0@example.com", "There")
    assert syncd("run", "nordhaus").code == 3
    pair.hub_rename("hub1@example.com", "Later")
    pair.crm_rename("crm1@example.com", "Later")
    pair.hub_contact(8)
    pair.crm_contact(9)
    said = syncd("audit", "nordhaus", "--json")
    (document,) = said.json()
    assert (said.code, document["unexplained"]) == (0, [])
    assert document["kinds"]["contact"]["known"] == {
        "conflict": 1, "moved since the last run": 2, "new since the last run": 2,
    }  # fmt: skip


def test_an_audit_names_unknown_kinds_and_pairs_that_never_ran(desk: Desk) -> None:
    """Exit 2 and what to do."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=1, deals=0)
    assert syncd("audit", "nordhaus", "--kind", "deals").code == 2
    assert syncd("audit", "nordhaus").code == 2


def test_the_daemon_audits_one_kind_at_a_time_whoever_waited_longest(desk: Desk) -> None:
    """Each kind has its turn once in the interval; a pair that runs, or waits for a person, is left alone."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=1, deals=1)
    assert syncd("run", "nordhaus").code == 4
    worker = Worker(desk.service, Tenants(desk.folder))
    assert worker.audit() is None
    in_step(pair)
    held = lease.acquire(desk.service.engine, "nordhaus/hubspot", "somebody", desk.service.now())
    assert held is not None and worker.audit() is None
    lease.release(desk.service.engine, held)
    place, hub_place = mark(pair.crm), mark(pair.hub)
    turns = [turn.kind for _ in KINDS if (turn := worker.audit()) is not None]
    assert sorted(turns) == sorted(KINDS)
    assert worker.audit() is None
    assert (writes(pair.crm, place), writes(pair.hub, hub_place)) == ([], [])
    assert sum(each["reason"] == "audit" for each in syncd("runs", "--json").json()) == len(KINDS)
    assert syncd("status", "nordhaus", "--json").json()[0]["last_run"]["reason"] == "run"
