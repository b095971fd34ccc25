"""Why, and what people answer, by the commands that they type: both CRMs over HTTP, from question to outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.salesforce.emulator import SalesforceEmulator
from tests.cli.test_cli import Desk, Said, desk, folder, in_step, syncd
from tests.faults.harness import CRMS, Pair

__all__ = ["desk", "folder"]

pytestmark = pytest.mark.long
HOLD = {"contact": {"conflict": "hold"}}


def lines(said: Said) -> list[str]:
    return said.out.splitlines()


def clash(pair: Pair, left: str, right: str) -> dict[str, Any]:
    """Both sides give one person another last name; the conflict as the command lists it."""
    pair.hub_rename("hub1@example.com", left)
    pair.crm_rename("hub1@example.com", right)
    assert syncd("run", "nordhaus").code == 3
    (conflict,) = syncd("conflicts", "--open", "--json").json()
    return dict(conflict)


def last_names(pair: Pair, conflict: dict[str, Any]) -> tuple[str, str]:
    left = pair.hub.get("contacts", conflict["propstreet"])["lastName"]
    if isinstance(pair.crm, HubSpotEmulator):
        return left, pair.crm.all("contacts")[conflict["crm"]]["lastname"]
    assert isinstance(pair.crm, SalesforceEmulator)
    return left, pair.crm.get("Contact", conflict["crm"])["LastName"]


@pytest.mark.parametrize("connector", CRMS)
def test_a_conflict_from_the_question_to_the_explanation(desk: Desk, connector: str) -> None:
    """Listed with who and when, settled by either value or a third one, and explained with the word that settled it."""
    pair = desk.tenant(connector, kinds=HOLD)
    pair.seed(contacts=2, deals=0)
    in_step(pair)
    one = clash(pair, "Vänster", "Höger")
    assert (one["base"], one["propstreet_value"], one["crm_value"]) == ("Berg", "Vänster", "Höger")
    assert one["propstreet_at"] is not None
    assert one["crm_at"] is not None
    assert one["propstreet_by"] is None  # Propstreet does not tell
    assert one["crm_by"]
    told = syncd("explain", f"{connector}:{one['crm']}")
    assert told.code == 0
    assert f"  conflict {one['id']} in last_name: Vänster in Propstreet, Höger in {connector}; " in told.out
    assert lines(told)[0] == (
        f"contact   propstreet:{one['propstreet']} <> {connector}:{one['crm']}   nordhaus/{connector}"
    )
    said = syncd("resolve", one["id"], "--value", "Mitten")
    assert (said.code, said.out) == (0, f"{one['id']}: the third value for both sides; the next run carries it out\n")
    assert syncd("run", "nordhaus").code == 0
    assert last_names(pair, one) == ("Mitten", "Mitten")
    (settled,) = syncd("conflicts", "--json").json()
    assert (settled["decided"], settled["winner"], settled["chosen"]) == ("a person's word", "value", "Mitten")
    for winner, name in (("propstreet", "Norr"), ("crm", "Söder")):
        again = clash(pair, "Norr" if winner == "propstreet" else "Väst", "Öst" if winner == "propstreet" else "Söder")
        assert syncd("resolve", again["id"], winner).code == 0
        assert syncd("run", "nordhaus").code == 0
        assert last_names(pair, one) == (name, name)
        field = syncd("explain", f"propstreet:{one['propstreet']}", "last_name", "--json").json()
        last = field["last_write"]
        assert (last["new"], last["rule"], last["person"], last["replayed"]) == (
            name, "a person's word", winner, "same",
        )  # fmt: skip
        assert last["candidates"]["propstreet"]["value"] == again["propstreet_value"]
        assert last["candidates"]["crm"]["value"] == again["crm_value"]
        assert (last["run"]["reason"], last["call"]["state"]) == ("run", "done")
    story = syncd("explain", f"propstreet:{one['propstreet']}", "last_name")
    ids = f"propstreet:{one['propstreet']} <> {connector}:{one['crm']}"
    assert lines(story)[0] == f"last_name of contact   {ids}   nordhaus/{connector}"
    assert lines(story)[1:3] == [f"  now: Söder in Propstreet, Söder in {connector}", "  last agreed: Söder"]
    assert "  why: both sides had changed it, and a person decided" in lines(story)
    assert "  replayed: same (decided again from what was kept of it, it comes out the same)" in lines(story)
    record = syncd("explain", one["propstreet"], "--tenant", "nordhaus", "--json").json()
    assert record["history"][-1]["new"] == "Söder"
    assert {each["replayed"] for each in record["history"]} == {"same"}
    assert record["linked"]["why"] == "only on one side"


@pytest.mark.parametrize("connector", CRMS)
def test_what_a_system_made_of_a_write_is_not_told_as_an_edit(desk: Desk, connector: str) -> None:
    """A value that was accepted and not stored was changed by nobody; one that was edited later was."""
    pair = desk.tenant(connector)
    pair.seed(contacts=1, deals=0)
    in_step(pair)
    pair.crm.loses = lambda collection, id_, name: name.lower() == "lastname"
    if isinstance(pair.crm, HubSpotEmulator):
        pair.crm.is_terse = True  # its answer does not say what was stored, so that it is read again
    pair.hub_rename("hub0@example.com", "Lost")
    syncd("run", "nordhaus")
    contact = next(c["id"] for c in pair.hub.all("contacts") if c["email"] == "hub0@example.com")
    told = lines(syncd("explain", f"contact/propstreet:{contact}", "last_name"))
    assert told[3].endswith("Berg became Lost")
    assert told[4] == f"  {connector} accepted that, and then held Berg"
    assert not any("since then" in line for line in told)
    pair.crm.loses = lambda collection, id_, name: False
    pair.crm_rename("hub0@example.com", "Edited")
    syncd("run", "nordhaus")
    last = syncd("explain", f"contact/propstreet:{contact}", "last_name", "--json").json()["last_write"]
    assert (last["side"], last["new"], last["stored"]) == ("propstreet", "Edited", "Edited")


@pytest.mark.parametrize("connector", CRMS)
def test_an_answer_that_an_edit_overtook_is_asked_for_again(desk: Desk, connector: str) -> None:
    """The person did not see the newer value: nobody writes over it in silence, exit 3 says that it waits."""
    pair = desk.tenant(connector, kinds=HOLD)
    pair.seed(contacts=2, deals=0)
    in_step(pair)
    one = clash(pair, "Vänster", "Höger")
    assert syncd("resolve", one["id"], "propstreet").code == 0
    pair.crm_rename("hub1@example.com", "Nyare")
    assert syncd("run", "nordhaus").code == 3
    assert last_names(pair, one) == ("Vänster", "Nyare")
    (again,) = syncd("conflicts", "--open", "--json").json()
    assert (again["id"] != one["id"], again["crm_value"]) == (True, "Nyare")


@pytest.mark.parametrize("connector", CRMS)
def test_a_word_that_a_field_cannot_hold_is_refused_with_the_words_that_it_can(desk: Desk, connector: str) -> None:
    """Exit 2; the conflict stays open, and the right word settles it."""
    pair = desk.tenant(connector, kinds={"deal_contact": {"conflict": "hold"}})
    pair.seed(contacts=2, deals=1)
    in_step(pair)
    link = pair.hub.all("prospects")[0]["id"]
    pair.hub.edit("prospects", link, {"classification": "bidder"})
    _relabel(pair, "Not interested" if connector == "hubspot" else "Not Interested")
    assert syncd("run", "nordhaus").code == 3
    (conflict,) = syncd("conflicts", "--open", "--json").json()
    said = syncd("resolve", conflict["id"], "--value", "budgivare")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        f"syncd: {conflict['id']}: classification takes one of: "
        "not_contacted, contacted, interested, not_interested, bidder\n"
    )
    assert syncd("resolve", conflict["id"], "--value", "contacted").code == 0
    assert syncd("run", "nordhaus").code == 0
    assert pair.hub.get("prospects", link)["classification"] == "contacted"


def _relabel(pair: Pair, label: str) -> None:
    """The first contact of the one deal gets another label or role."""
    prospect = pair.hub.all("prospects")[0]
    contact = pair.hub.get("contacts", prospect["contactId"])
    if isinstance(pair.crm, HubSpotEmulator):
        (deal,) = pair.crm.all("deals")
        (person,) = [id_ for id_, row in pair.crm.all("contacts").items() if row.get("email") == contact["email"]]
        pair.crm.dissociate("deals", deal, "contacts", person, ["Interested"])
        pair.crm.associate("deals", deal, "contacts", person, [label])
        return
    assert isinstance(pair.crm, SalesforceEmulator)
    (person,) = [row["Id"] for row in pair.crm.all("Contact") if row["Email"] == contact["email"]]
    (role,) = [row["Id"] for row in pair.crm.all("OpportunityContactRole") if row["ContactId"] == person]
    pair.crm.edit("OpportunityContactRole", role, {"Role": label})


@pytest.mark.parametrize("connector", CRMS)
def test_reviews_are_answered_exported_and_brought_into_another_database(
    desk: Desk, connector: str, tmp_path: Path, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """never strikes one out, same links, create makes one; the file says it all again, and an empty database obeys."""
    pair = desk.tenant(connector)
    deal = pair.hub.add("projects", {"name": "Kv. Svalan 4"})
    _deal(pair, "Kv. Svalan 4")
    ours = pair.hub.add("companies", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
    names = [f"Nordhaus {each}" for each in "ABC"]
    crms = [_company(pair, name) for name in names]
    assert syncd("backfill", "nordhaus").code == 3
    mine = next(each for each in syncd("reviews", "--json").json() if each["propstreet"] == ours)
    assert (mine["name"], mine["known_by"]) == ("Nordhaus AB", "nordhaus.se")
    assert {each["id"]: each["name"] for each in mine["candidates"]} == dict(zip(crms, names, strict=True))
    assert all(name in syncd("reviews").out for name in ("Nordhaus AB", *names, "same domain"))
    assert syncd("resolve", mine["id"], "never", crms[0]).code == 0
    assert syncd("run", "nordhaus").code == 3
    rest = next(each for each in syncd("reviews", "--json").json() if each["propstreet"] == ours)
    assert [each["id"] for each in rest["candidates"]] == crms[1:]
    assert syncd("resolve", rest["id"], "same", crms[2]).code == 0
    syncd("run", "nordhaus")
    linked = syncd("explain", f"company/propstreet:{ours}", "--json").json()
    assert (linked["crm"], linked["linked"]["why"]) == (crms[2], "a person's word")
    (named,) = [each for each in syncd("reviews", "--json").json() if each["propstreet"] == deal]
    assert syncd("resolve", named["id"], "create").code == 0
    assert syncd("run", "nordhaus").code == 3  # Propstreet has a counterpart of the first now: is it the second's, too?
    (double,) = syncd("reviews", "--json").json()
    assert (double["crm"], double["candidates"][0]["linked_to"]) == (crms[1], crms[0])
    assert syncd("resolve", double["id"], "create").code == 0
    assert syncd("run", "nordhaus").code == 0
    made = syncd("explain", f"deal/propstreet:{deal}", "--json").json()["crm"]
    assert made is not None and made not in [each["id"] for each in named["candidates"]]
    assert linked["kept_apart_from"] == sorted(crms[:2])
    told = syncd("reviews", "--answered", "--json").json()
    assert [(each["answer"], each.get("with")) for each in told if each.get("propstreet") == ours] == [
        ("never", None), ("same", crms[2]), ("never", None),
    ]  # fmt: skip
    file = tmp_path / "answers.yaml"
    assert syncd("reviews", "--export", str(file)).out == f"{len(told)} answers written to {file}\n"
    again = syncd("reviews", "--import", str(file))
    assert again.out == f"0 answers are new, {len(told)} were known; the next run carries them out\n"
    monkeypatch.setenv("SYNCD_DATABASE_URL", empty_database)
    counts = pair.picture()
    assert syncd("migrate").code == syncd("check", "nordhaus").code == 0
    restored = syncd("reviews", "--import", str(file))
    assert restored.out == f"{len(told)} answers are new, 0 were known; the next run carries them out\n"
    assert syncd("backfill", "nordhaus").code == 0
    assert syncd("explain", f"company/propstreet:{ours}", "--json").json()["crm"] == crms[2]
    assert syncd("explain", f"deal/propstreet:{deal}", "--json").json()["crm"] == made
    assert syncd("reviews", "--json").json() == []
    assert pair.picture() == counts


def _deal(pair: Pair, name: str) -> None:
    if isinstance(pair.crm, HubSpotEmulator):
        pair.crm.add("deals", {"dealname": name, "dealstage": "appointmentscheduled", "pipeline": "default"})
        return
    assert isinstance(pair.crm, SalesforceEmulator)
    pair.crm.add("Opportunity", {"Name": name, "StageName": "Prospecting", "CloseDate": "2027-01-31"})


def _company(pair: Pair, name: str) -> str:
    if isinstance(pair.crm, HubSpotEmulator):
        return pair.crm.add("companies", {"name": name, "domain": "nordhaus.se"})
    assert isinstance(pair.crm, SalesforceEmulator)
    return pair.crm.add("Account", {"Name": name, "Website": "https://nordhaus.se"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pair": "pipedrive"},
         "no pair 'pipedrive' of tenant 'nordhaus' is known here; run syncd check nordhaus first"),
        ({"answer": "perhaps"}, "lacks a known answer; it is one of same, never, create, apart"),
        ({"kind": "person"}, "lacks a known kind; it is one of company, contact, employment, deal, deal_contact"),
        ({"with": "4711"}, "with belongs to the answer same, and to no other; add it, or take it out"),
        ({"candidates": [4711]}, 'holds what is no id; write ids as text, like "4711"'),
        ({"candidates": None}, "lacks the list of its candidates; give it candidates, with their ids"),
        ({"crm": "12"}, "names no record, or two; give it one of propstreet and crm"),
        ({"answered_at": "soon"},
         "lacks when it was answered; give it answered_at, like 2026-11-20T10:00:00+00:00"),
        ({"answered": "x"}, "unknown key 'answered'; the keys are "
         "tenant, pair, kind, propstreet, crm, answer, with, candidates, answered_at"),
    ],
)  # fmt: skip
def test_a_file_of_answers_is_read_strictly(desk: Desk, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    """Exit 2, with the file, the entry and what to do; nothing of the file is taken in."""
    pair = desk.tenant("hubspot")
    in_step(pair)
    entry = {"tenant": "nordhaus", "pair": "hubspot", "kind": "company", "propstreet": "88", "answer": "never",
             "candidates": ["4711"], "answered_at": "2026-11-20T10:00:00+00:00"}  # fmt: skip
    file = tmp_path / "answers.yaml"
    file.write_text(yaml.safe_dump({"answers": [{**entry, **change}, entry]}))
    assert syncd("reviews", "--import", str(file)) == Said(2, "", f"syncd: {file}: entry 1 {told}\n")
    assert syncd("reviews", "--answered", "--json").json() == []
    file.write_text(yaml.safe_dump({"answers": [entry]}))
    assert syncd("reviews", "--import", str(file)).out.startswith("1 answers are new, 0 were known")
    other = {**entry, "answer": "same", "with": "4711"}
    file.write_text(yaml.safe_dump({"answers": [other]}))
    assert "company 88 was answered otherwise here" in syncd("reviews", "--import", str(file)).err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("answers: [", ", line 1: this is no YAML; name a file that syncd reviews --export wrote"),
        ("- 1", ": expected one key, answers, with a list; syncd reviews --export writes such a file"),
        ("answers: [1]", ": entry 1 is no mapping; write it as syncd reviews --export does"),
    ],
)
def test_what_is_no_file_of_answers_says_so(desk: Desk, tmp_path: Path, text: str, told: str) -> None:
    """Whatever else is named by mistake."""
    desk.tenant("hubspot")
    file = tmp_path / "answers.yaml"
    file.write_text(text)
    assert syncd("reviews", "--import", str(file)) == Said(2, "", f"syncd: {file}{told}\n")
    file.unlink()
    assert "cannot be read" in syncd("reviews", "--import", str(file)).err


@pytest.mark.parametrize("connector", CRMS)
def test_a_wrong_link_is_ended_by_a_command(desk: Desk, connector: str) -> None:
    """Both records stay as they are, nothing is made for them, and an edit of one no longer reaches the other."""
    pair = desk.tenant(connector)
    pair.seed(contacts=2, deals=0)
    in_step(pair)
    person = next(each for each in pair.hub.all("contacts") if each["email"] == "hub1@example.com")
    linked = syncd("explain", f"contact/propstreet:{person['id']}", "--json").json()
    counts = pair.picture()
    said = syncd("apart", "nordhaus", person["id"], linked["crm"])
    assert said.out == (
        f"contact propstreet:{person['id']} and {connector}:{linked['crm']} are kept apart for good; "
        "the next run sees to it\n"
    )
    assert syncd("run", "nordhaus").code == 0
    assert pair.picture() == counts
    pair.hub_rename("hub1@example.com", "Vänster")
    assert syncd("run", "nordhaus").code == 0
    assert last_names(pair, {"propstreet": person["id"], "crm": linked["crm"]}) == ("Vänster", "Berg")
    alone = syncd("explain", f"contact/propstreet:{person['id']}")
    assert "  not linked to any record of the other side" in lines(alone)
    assert "  excluded: kept apart by a person's word" in lines(alone)
    assert f"  kept apart for good from {linked['crm']}, by a person's word" in lines(alone)
    assert "(known already)" in syncd("apart", "nordhaus", person["id"], linked["crm"]).out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("explain", "hubspot:4711"), "no record 'hubspot:4711' is known; a REF looks like contact/hubspot:4711"),
        (("explain", "4711", "--tenant", "nordhaus"),
         "no record '4711' is known of nordhaus; a REF looks like contact/hubspot:4711"),
        (("apart", "nordhaus", "1", "2"), "no record propstreet:1 is known of nordhaus/hubspot"),
    ],
)  # fmt: skip
def test_what_nobody_knows_is_named(desk: Desk, arguments: tuple[str, ...], told: str) -> None:
    """Exit 2, and what was looked for."""
    in_step(desk.tenant("hubspot"))
    assert syncd(*arguments) == Said(2, "", f"syncd: {told}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("resolve", "c1"),
        ("resolve", "c1", "crm", "--empty"),
        ("resolve", "r1", "create", "4711"),
        ("resolve", "c1", "crm", "4711"),
        ("explain", "1", "--pair", "hubspot"),
        ("reviews", "--answered", "--export", "x"),
        ("apart", "nordhaus", "1", "2", "--kind", "person"),
    ],
)
def test_one_question_and_one_answer_at_a_time(desk: Desk, arguments: tuple[str, ...]) -> None:
    """Exit 2 where it is not clear what is meant."""
    desk.tenant("hubspot")
    assert syncd(*arguments).code == 2


def test_values_are_told_to_who_asks_and_to_nobody_else(desk: Desk) -> None:
    """What explain shows stands on stdout; not on stderr, at the most talkative log level."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=1, deals=0)
    in_step(pair)
    person = pair.hub.all("contacts")[0]
    said = syncd("--log-level", "debug", "explain", f"contact/propstreet:{person['id']}", "--json")
    assert person["email"] in json.dumps(said.json())
    assert person["email"] not in said.err
