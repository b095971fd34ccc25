"""People are told once when something begins to be the matter, and once when it is over."""

from __future__ import annotations

import json
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
import structlog
import yaml
from sqlalchemy import Engine, create_engine, insert, select, update

from syncd import notify
from syncd.cli.commands import cli
from syncd.config import NOTICES, Configuration, NotifyConfig, SecretRef, load
from syncd.core.model import Side
from syncd.log import set_up
from syncd.notify import look_and_tell
from syncd.state import notices, pairs
from syncd.state import schema as s
from syncd.testing.emulator import ManualClock
from syncd.wiring import Service
from tests.cli.test_cli import syncd
from tests.faults.harness import fault, world_of

PAIR = "nordhaus/hubspot"
URL_SECRET = "very-secret-path"


@dataclass
class Phone:
    """A receiver of webhooks; ``answers`` are the statuses of its next answers, then 204."""

    answers: list[int] = field(default_factory=list)
    heard: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def told(self) -> list[tuple[str, str]]:
        """What and state of all that arrived since the last time, in order."""
        found = [(each["what"], each["state"]) for each in self.heard]
        self.heard.clear()
        return found


@contextmanager
def ringing(phone: Phone) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with phone.lock:
                phone.calls += 1
                status = phone.answers.pop(0) if phone.answers else 204
                if status == 204:
                    phone.heard.append(body | {"key": self.headers["Idempotency-Key"]})
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{URL_SECRET}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class House:
    """One tenant with one approved pair in the database, and somebody who is told."""

    engine: Engine
    folder: Path
    phone: Phone
    receiver: NotifyConfig
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.write()
        pairs.register(
            self.engine, tenant="nordhaus", name="hubspot", connector="hubspot", namespace="hubspot", config_hash="1",
            at=self.clock(),
        )  # fmt: skip
        pairs.approve(self.engine, PAIR, self.clock())
        self.service = self.replica()

    def write(self, **more: Any) -> None:
        auth = {"token": {"env": "X"}}
        said = {"propstreet": {"auth": auth}, "pairs": [{"connector": "hubspot", "auth": auth}], **more}
        (self.folder / "nordhaus.yaml").write_text(yaml.safe_dump(said))

    def replica(self, *receivers: NotifyConfig) -> Service:
        """A process; several look at one database."""
        return Service(
            self.engine, now=self.clock, sleep=self.clock.advance, holder="host:1",
            notify=receivers or (self.receiver,),
        )  # fmt: skip

    def configuration(self) -> Configuration:
        return load(self.folder)

    def look(self, seconds: float = 15.0, service: Service | None = None) -> list[tuple[str, str]]:
        """One look, so long after the last one; what arrived."""
        self.clock.advance(seconds)
        look_and_tell(service or self.service, self.configuration())
        return self.phone.told()

    def halt(self, plan: str | None = None, reason: str = "would delete 9 contact of 9 linked (crm)") -> None:
        pairs.halt(self.engine, PAIR, reason, plan)

    def resume(self) -> None:
        pairs.halt(self.engine, PAIR, None, None)

    def runs(self, *states: str, error: str | None = None) -> None:
        """Runs that ended, the oldest first, a second apart."""
        with self.engine.begin() as tx:
            for state in states:
                self.clock.advance(1)
                at = self.clock()
                row = {"id": at.isoformat(), "pair": PAIR, "reason": "run", "state": state, "fence": 1}
                failed = error if state == "failed" else None
                tx.execute(insert(s.run).values(**row, started_at=at, finished_at=at, error=failed))

    def conflicts(self, *ids: str) -> None:
        with self.engine.begin() as tx:
            for id_ in ids:
                row = {"pair": PAIR, "run": "r", "kind": "contact", "left_id": id_, "right_id": id_, "field": "phone"}
                tx.execute(insert(s.conflict).values(**row, opened_at=self.clock()))

    def answer(self, *ids: str) -> None:
        with self.engine.begin() as tx:
            tx.execute(update(s.conflict).where(s.conflict.c.left_id.in_(ids)).values(settled_at=self.clock()))

    def rows(self) -> list[Any]:
        with self.engine.connect() as tx:
            return list(tx.execute(select(s.notice)))


@pytest.fixture
def house(engine: Engine, tmp_path: Path) -> Iterator[House]:
    phone = Phone()
    with ringing(phone) as url:
        place = tmp_path / "url"
        place.write_text(url)
        yield House(engine, tmp_path / "tenants", phone, NotifyConfig(url=SecretRef(file=str(place))))
    structlog.reset_defaults()


# --- once -------------------------------------------------------------------------------------


def test_a_halt_is_told_once_and_its_end_once(house: House) -> None:
    """With what to type; the end when it has held for two minutes; then nothing is left to remember."""
    assert house.look() == []
    house.halt("p1")
    house.clock.advance(15)
    assert look_and_tell(house.service, house.configuration()) == 1
    (heard,) = house.phone.heard
    assert {name: heard[name] for name in ("tenant", "pair", "what", "state")} == {
        "tenant": "nordhaus", "pair": "hubspot", "what": "halted", "state": "began",
    }  # fmt: skip
    assert heard["message"] == "nordhaus/hubspot: halted: would delete 9 contact of 9 linked (crm)"
    assert heard["fix"].startswith("Look at it: syncd show p1. Carry it out: syncd apply p1.")
    assert heard["id"] == heard["key"]
    house.phone.told()
    assert [house.look() for _ in range(3)] == [[], [], []]
    house.resume()
    assert [house.look(), house.look(100)] == [[], []]
    assert house.look(20) == [("halted", "over")]
    assert house.look() == []
    assert house.rows() == []


def test_what_comes_and_goes_is_told_once(house: House) -> None:
    """Something that is back before its end was told has not ended."""
    house.halt()
    assert house.look() == [("halted", "began")]
    for _ in range(3):
        house.resume()
        assert house.look(60) == []
        house.halt()
        assert house.look(60) == []
    house.resume()
    assert [house.look(), house.look(130)] == [[], [("halted", "over")]]


def test_a_pair_that_halts_anew_is_told_anew(house: House) -> None:
    """The plan that they were told to look at waits no more."""
    house.halt("p1")
    assert house.look() == [("halted", "began")]
    house.halt("p2")
    assert house.look() == [("halted", "began")]
    assert house.look() == []


def test_a_restart_repeats_nothing(house: House) -> None:
    """What was told is in the database, and not in the process that told it."""
    house.halt()
    assert house.look() == [("halted", "began")]
    house.service = house.replica()
    assert house.look() == []
    house.resume()
    house.look()
    house.service = house.replica()
    assert house.look(130) == [("halted", "over")]


def test_replicas_that_look_at_once_tell_once(house: House) -> None:
    """Each thread and each process may look at any time."""
    house.halt()
    replicas = [house.replica() for _ in range(4)]
    start = threading.Barrier(8)

    def look(service: Service) -> None:
        start.wait()
        look_and_tell(service, house.configuration())

    threads = [threading.Thread(target=look, args=(each,)) for each in replicas * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert house.phone.told() == [("halted", "began")]
    assert house.look() == []


def test_what_a_dead_process_had_in_hand_is_told_by_another(house: House) -> None:
    """Handed out and never told nor untold: after a while it is handed out again."""
    house.halt()
    condition = notices.Condition(PAIR, "halted", {"plan": None, "reason": "x"})
    due = notices.look(house.engine, [condition], {house.receiver.key: NOTICES}, house.clock())
    assert [each.what for each in due] == ["halted"]
    assert house.look() == []
    house.clock.advance(notices.CLAIM.total_seconds())
    look_and_tell(house.service, house.configuration())
    assert [each["id"] for each in house.phone.heard] == [due[0].id]


# --- what ---------------------------------------------------------------------------------------


def test_more_that_waits_is_told_once_an_hour_at_most(house: House) -> None:
    """Less is no news, but what comes after it is."""
    house.conflicts("1", "2")
    assert house.look() == [("waiting", "began")]
    house.conflicts("3")
    assert house.look() == []
    assert house.look(3_600) == [("waiting", "began")]
    house.answer("1", "2")
    assert house.look(3_600) == []
    house.conflicts("4")
    house.clock.advance(15)
    look_and_tell(house.service, house.configuration())
    (heard,) = house.phone.heard
    assert heard["message"] == "nordhaus/hubspot: waiting for a person: 2 conflicts"
    assert heard["fix"] == "Look: syncd conflicts nordhaus --open"
    house.phone.told()
    house.answer("3", "4")
    assert [house.look(), house.look(130)] == [[], [("waiting", "over")]]


def test_a_pair_fails_after_three_runs_or_a_quarter_of_an_hour(house: House) -> None:
    """One run that fails passes by itself; a credential that is refused does not."""
    house.runs("done", "failed", "failed", error="TransientError")
    assert house.look() == []
    house.runs("failed", error="TransientError")
    assert house.look() == [("failing", "began")]
    house.runs("done")
    assert [house.look(), house.look(130)] == [[], [("failing", "over")]]
    house.runs("failed", error="TransientError")
    assert house.look() == []
    assert house.look(900) == [("failing", "began")]
    house.runs("failed", error="AuthError")
    assert house.look() == [("refused", "began")]


def test_a_connection_that_rests_is_told(house: House) -> None:
    """And that it goes on by itself, when it does."""
    pairs.rest(house.engine, PAIR, Side.RIGHT, "hubspot", house.clock() + timedelta(hours=2))
    assert house.look() == [("resting", "began")]
    assert house.look(7_300) == []
    assert house.look(130) == [("resting", "over")]


def test_a_first_run_that_waits_is_told_and_a_pair_that_never_ran_is_not(house: House) -> None:
    with house.engine.begin() as tx:
        tx.execute(update(s.pair).values(approved_at=None))
    assert house.look() == []
    house.halt("p1", "the first run of this pair waits for approval")
    assert house.look() == [("unapproved", "began")]
    pairs.approve(house.engine, PAIR, house.clock())
    assert [house.look(), house.look(130)] == [[], [("unapproved", "over")]]


def test_a_broken_file_is_told_by_its_name(house: House) -> None:
    """Neither its folder nor what stands in it is told; its pairs go on being watched."""
    broken = house.folder / "acme.yaml"
    broken.write_text("pairs: per@example.com\n")
    house.clock.advance(15)
    look_and_tell(house.service, house.configuration())
    (heard,) = house.phone.heard
    assert heard["message"] == "acme.yaml: the file is broken in 2 places; what it said before goes on"
    assert (heard["tenant"], heard["pair"], heard["fix"]) == (
        None,
        None,
        "What is wrong, and where: syncd config check",
    )
    house.phone.told()
    broken.unlink()
    assert [house.look(), house.look(130)] == [[], [("config", "over")]]


def test_a_pair_that_no_file_names_any_more_is_nobodys_concern(house: House) -> None:
    """Switched off or taken out: neither that it is over is told, nor anything else."""
    house.halt()
    assert house.look() == [("halted", "began")]
    house.write(enabled=False)
    assert [house.look(), house.look(130)] == [[], []]
    assert house.rows() == []


def test_a_database_that_is_gone_is_told_by_each_process_by_itself(house: House) -> None:
    """When it has been gone for half a minute, once; and when it has been back for two."""
    there = house.service.engine
    house.service.engine = create_engine("postgresql+psycopg://u:p@127.0.0.1:1/x")
    assert house.look() == []
    assert house.look(31) == [("database", "began")]
    assert [house.look(), house.look(600)] == [[], []]
    house.service.engine = there
    assert house.look() == []
    assert house.look(130) == [("database", "over")]
    assert house.look() == []


def test_a_credential_that_a_vendor_refuses_is_told_until_it_takes_it(house: House, tmp_path: Path) -> None:
    """From the vendor's answer to the notice, through a real run."""
    with world_of(house.engine, tmp_path / "world", "hubspot", tenant="acme", clock=house.clock) as world:
        world.seed(contacts=1, deals=0)
        world.first()
        world.service.notify = (house.receiver,)
        refusal = fault(world.crm, status=401, times=99)
        assert world.run().error == "AuthError"
        look_and_tell(world.service, load(world.folder))
        (heard,) = house.phone.heard
        assert (heard["tenant"], heard["what"]) == ("acme", "refused")
        world.crm.faults.remove(refusal)
        assert world.run().state == "done"
        look_and_tell(world.service, load(world.folder))
        house.clock.advance(130)
        look_and_tell(world.service, load(world.folder))
        assert house.phone.told() == [("refused", "began"), ("refused", "over")]


# --- who ----------------------------------------------------------------------------------------


def test_each_hears_of_what_it_asked_for(house: House) -> None:
    """Several receivers are told apart: what one has heard the other has not."""
    url = house.receiver.url
    assert url is not None
    only = NotifyConfig(url=url, kinds=("waiting",))
    house.service = house.replica(only)
    house.halt()
    house.conflicts("1")
    assert house.look() == [("waiting", "began")]


def test_a_program_gets_the_notice_on_stdin_and_none_of_the_secrets(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell reads its arguments, and no variable but a few harmless ones is passed on."""
    monkeypatch.setenv("SYNCD_DATABASE_URL", "postgresql://u:secret@h/x")
    out = tmp_path / "out"
    program = (
        "import json, os, sys; "
        "json.dump([json.load(sys.stdin), dict(os.environ), sys.argv[2:]], open(sys.argv[1], 'w'))"
    )
    receiver = NotifyConfig(command=(sys.executable, "-c", program, str(out), "$HOME; true"))
    house.halt("p1")
    house.look(service=house.replica(receiver))
    document, environment, arguments = json.loads(out.read_text())
    assert (document["what"], document["state"]) == ("halted", "began")
    assert arguments == ["$HOME; true"]
    assert set(environment) <= {"PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"}


def test_a_program_that_never_ends_is_ended(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that fails, or is not there, is tried again."""
    monkeypatch.setattr(notify, "COMMAND_SECONDS", 0.1)
    for command, problem in (
        ((sys.executable, "-c", "import threading; threading.Event().wait()"), "took longer than 0 s"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "exited 3"),
        (("/nowhere/program",), "cannot be started (No such file or directory)"),
    ):
        monkeypatch.setattr(notify, "COMMAND_SECONDS", 0.1 if "threading" in command[-1] else 30.0)
        assert notify.send_test(house.service, NotifyConfig(command=command)) == problem


def test_a_receiver_that_is_deaf_is_tried_again_and_its_url_is_not_logged(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within a look what may pass, then at later looks; logged when it begins and when it ends."""
    set_up("info")
    house.halt()
    house.phone.answers = [500] * 6
    assert [house.look() for _ in range(2)] == [[], []]
    assert house.phone.calls == 6
    assert house.look() == []
    assert house.look(60) == [("halted", "began")]
    said = capsys.readouterr().err
    events = re.findall(r'"event": "([\w.]+)"', said)
    assert [events.count(name) for name in ("receiver.lost", "receiver.found", "notice.told")] == [1, 1, 1]
    assert URL_SECRET not in said


def test_a_refusal_is_not_repeated_at_once(house: House) -> None:
    """What a receiver refuses it will not take a second later; it is tried again at a later look."""
    house.halt()
    house.phone.answers = [404]
    assert house.look() == []
    assert house.phone.calls == 1
    assert house.look(30) == [("halted", "began")]


def test_after_a_day_a_notice_is_given_up(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """With a line in the log; what happens later is told as ever."""
    set_up("info")
    house.halt()
    house.phone.answers = [404] * 1_000
    for _ in range(16):
        house.look(6_000)
    calls = house.phone.calls
    house.look(6_000)
    assert house.phone.calls == calls
    assert capsys.readouterr().err.count("notice.given_up") == 1
    house.phone.answers.clear()
    house.resume()
    assert [house.look(), house.look(130)] == [[], [("halted", "over")]]


def test_a_notice_holds_nobodys_data(house: House) -> None:
    """Whatever a reason quotes is blotted out."""
    house.halt(reason="listing of per@example.com")
    house.clock.advance(15)
    look_and_tell(house.service, house.configuration())
    assert "example.com" not in json.dumps(house.phone.heard)


# --- words --------------------------------------------------------------------------------------


def test_every_kind_of_notice_has_words_and_its_commands_exist(house: House) -> None:
    """What people are told to type is there."""
    facts: dict[str, Any] = {
        "plan": "p1",
        "reason": "x",
        "counts": {"conflicts": 1, "dead letters": 2, "reviews": 3},
        "failures": 3,
    }
    for what in NOTICES:
        notice = notices.Notice("r", PAIR, what, True, house.clock(), facts)
        document = notify._worded(notice, None, "host:1")
        assert document["message"] and document["fix"], what
        for words in re.findall(r"syncd ([a-z][^.,;]*)", str(document["fix"])):
            name, *arguments = shlex.split(words)
            command = cli.commands.get(name)
            if command is None:
                assert name in ("goes",), words  # "syncd goes on by itself"
                continue
            if isinstance(command, click.Group):
                command = command.commands[arguments.pop(0)]
            options = {option for each in command.params for option in each.opts}
            assert {each for each in arguments if each.startswith("--")} <= options, words


def test_the_command_that_tries_it_says_what_arrived(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody is tried; exit 1 if one could not be told, 2 if there is nobody to tell."""
    monkeypatch.setenv("SYNCD_DATABASE_URL", house.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("NOTIFY", str(house.receiver.url and house.receiver.url.read()))
    monkeypatch.chdir(tmp_path)
    assert syncd("notify", "test").code == 2
    (tmp_path / "config").mkdir()
    said = "notify:\n  - url: {env: NOTIFY}\n"
    (tmp_path / "config" / "syncd.yaml").write_text(said)
    answer = syncd("notify", "test")
    assert (answer.code, answer.out) == (0, "url from NOTIFY: told\n")
    assert house.phone.told() == [("test", "began")]
    (tmp_path / "config" / "syncd.yaml").write_text(said + "  - command: [/nowhere/program]\n")
    answer = syncd("notify", "test")
    assert (answer.code, answer.out.splitlines()[1:]) == (
        1, ["command /nowhere/program: cannot be started (No such file or directory)"],
    )  # fmt: skip
