"""``syncd webhooks`` as it is typed, against the emulated Propstreet."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from connectors.propstreet.webhooks import EVENTS
from tests.cli.test_cli import Desk, Said, desk, folder, syncd
from tests.faults.harness import Pair, fault

__all__ = ["desk", "folder"]

URL = "https://syncd.example.com"
HERE = f"{URL}/webhooks/nordhaus/propstreet"


@pytest.fixture
def pair(desk: Desk) -> Pair:
    """A tenant whose file names a place for the secret."""
    found = desk.tenant("hubspot")
    place(found).parent.mkdir()
    said = found.document()
    said["propstreet"]["webhooks"] = {"secret": {"file": str(place(found))}}
    found.write(said)
    return found


def place(pair: Pair) -> Path:
    return pair.folder.parent / "secrets" / "hook"


def register(*more: str) -> Said:
    return syncd("webhooks", "register", "nordhaus", "--url", URL, *more)


def sent(pair: Pair, method: str = "*") -> list[str]:
    """Calls about webhooks."""
    return [f"{each.method} {each.status}" for each in pair.hub.calls(method, "/webhooks")]


def test_registering_subscribes_to_everything_and_keeps_the_secret_for_its_owner_only(pair: Pair) -> None:
    """All 15 events, no filter; the secret is where the tenant's file says, and nowhere else."""
    said = register()
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        f"nordhaus   ordered: {HERE}",
        f"Its secret is in {place(pair)}, which syncd serve must be able to read.",
    ]
    (call,) = pair.hub.calls("POST", "/webhooks$")
    assert call.body == {"url": HERE, "events": list(EVENTS), "name": "syncd"}
    assert len(EVENTS) == 15
    assert stat.S_IMODE(place(pair).stat().st_mode) == 0o600
    secret = place(pair).read_text().strip()
    assert secret.startswith("whsec_")
    assert secret not in said.out
    assert [each.name for each in place(pair).parent.iterdir()] == ["hook"]


def test_registering_again_changes_nothing_unless_it_is_asked_to(pair: Pair) -> None:
    register()
    secret = place(pair).read_text()
    again = register("--json")
    assert (again.json()["new"], again.json()["active"], place(pair).read_text()) == (False, True, secret)
    assert register("--anew").out.startswith("nordhaus   ordered")
    assert place(pair).read_text() != secret
    assert len(syncd("webhooks", "list", "nordhaus", "--json").json()) == 1


def test_a_subscription_whose_secret_is_lost_is_made_anew(pair: Pair) -> None:
    """It is shown once: without it every delivery would be refused until Propstreet gives up."""
    register()
    place(pair).unlink()
    assert register("--json").json()["new"] is True
    assert place(pair).exists()
    assert len(syncd("webhooks", "list", "nordhaus", "--json").json()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_nobody_may_write_to_is_found_out_before_anything_is_ordered(pair: Pair) -> None:
    """A secret that cannot be kept must not be made."""
    place(pair).parent.chmod(0o500)
    said = register()
    place(pair).parent.chmod(0o700)
    assert (said.code, sent(pair)) == (2, [])
    assert "the secret could not be kept there (Permission denied), so that nothing was ordered." in said.err


@pytest.mark.parametrize("broken", ["a folder", "no folder"])
def test_a_place_that_is_no_file_is_found_out_before_anything_is_ordered(pair: Pair, broken: str) -> None:
    if broken == "a folder":
        place(pair).mkdir()
    else:
        place(pair).parent.rmdir()
    said = register()
    assert (said.code, sent(pair)) == (2, [])
    assert "Name a file in a folder that syncd may write to: propstreet.webhooks.secret: {file: PATH}." in said.err


@pytest.mark.parametrize("webhooks", [None, {"secret": {"env": "HOOK"}}])
def test_without_a_file_for_the_secret_nothing_is_ordered(pair: Pair, webhooks: object) -> None:
    """An environment variable cannot be written."""
    document = pair.document()
    if webhooks is not None:
        document["propstreet"]["webhooks"] = webhooks
    pair.write(document)
    said = register()
    assert (said.code, sent(pair)) == (2, [])
    assert "propstreet.webhooks: no file is named for the secret" in said.err


def test_an_answer_that_was_lost_leaves_one_subscription_after_the_next_attempt(pair: Pair) -> None:
    """There is a subscription then whose secret nobody knows: it is deleted, and made anew."""
    fault(pair.hub, method="POST", path="/webhooks$", when="drop")
    said = register()
    assert said.code == 1
    assert not place(pair).exists()
    assert register("--json").json()["new"] is True
    assert [each["ours"] for each in syncd("webhooks", "list", "nordhaus", "--json").json()] == [True]
    assert sent(pair, "DELETE") == ["DELETE 204"]


def test_where_nothing_says_how_we_are_reached_the_command_asks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """From syncd.yaml, else by an option; never over plain http."""
    monkeypatch.chdir(pair.folder.parent)
    said = syncd("webhooks", "register", "nordhaus")
    assert (said.code, sent(pair)) == (2, [])
    assert "set web.public_url in syncd.yaml, or give --url https://..." in said.err
    plain = syncd("webhooks", "register", "nordhaus", "--url", "http://syncd.example.com")
    assert (plain.code, sent(pair)) == (2, [])
    (pair.folder.parent / "config").mkdir()
    (pair.folder.parent / "config" / "syncd.yaml").write_text(f"web: {{public_url: {URL}/}}\n")
    assert syncd("webhooks", "register", "nordhaus", "--json").json()["url"] == HERE


def test_what_others_ordered_is_shown_and_left_alone(pair: Pair) -> None:
    register()
    pair.hub.webhooks.add("https://elsewhere.example.com/hook")
    lines = syncd("webhooks", "list", "nordhaus").out.splitlines()
    assert [line.split("   ")[1:] for line in lines] == [
        [HERE, "active, 15 events"],
        ["https://elsewhere.example.com/hook", "active, 1 events, not ours"],
    ]
    assert syncd("webhooks", "remove", "nordhaus").out == f"nordhaus   no more sent to {HERE}\n"
    assert [each["ours"] for each in syncd("webhooks", "list", "nordhaus", "--json").json()] == [False]
    assert not place(pair).exists()
    assert syncd("webhooks", "remove", "nordhaus").out == "nordhaus   nothing was ordered\n"


def test_replaying_asks_a_hundred_at_a_time_until_there_is_none(pair: Pair) -> None:
    """Only what failed comes again; what was never sent, a run finds."""
    register()
    pair.hub.post = lambda url, headers, body: 0
    pair.hub.webhooks.is_patient = True
    for number in range(230):
        pair.hub_contact(number)
    outbox = pair.hub.webhooks.outbox
    assert outbox is not None
    assert outbox.settle()
    outbox.hold()
    assert syncd("webhooks", "replay", "nordhaus", "--since", "1h", "--json").json() == {"replayed": 230}
    assert sent(pair, "POST").count("POST 200") == 4
    assert syncd("webhooks", "replay", "nordhaus", "--since", "1h").out == "nordhaus   sent again: 0\n"
    assert syncd("webhooks", "replay", "nordhaus", "--since", "soon").code == 2


def test_nothing_is_replayed_where_nothing_is_ordered(pair: Pair) -> None:
    said = syncd("webhooks", "replay", "nordhaus", "--since", "1h")
    assert (said.code, said.out) == (2, "")
    assert "run: syncd webhooks register nordhaus" in said.err
