"""Secrets and personal data reach neither logs nor tracebacks, messages, reasons or settled operations."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
from sqlalchemy import Engine, Text, cast, select

from syncd.core.mapping import UnfitValueError
from syncd.errors import RejectedError
from syncd.log import set_up
from syncd.state import schema as s
from syncd.testing.emulator import Emulator
from syncd.wiring import Result
from tests.faults.harness import CRMS, World, fault, world_of
from tests.privacy import canaries

pytestmark = pytest.mark.long

_QUOTE: Final = "zqmail1@zqdomain.example of Zqfirst1 Zqlast1, +46 70 911 55 01, Zqnote1"

#: What vendors say when they refuse, with everything quoted that they were given.
_SPITEFUL: Final = {
    "hubspot": {
        "status": "error", "message": f"Contact already exists. {_QUOTE}", "correlationId": "c-1",
        "category": "VALIDATION_ERROR", "errors": [{"message": _QUOTE, "context": {"email": [_QUOTE]}}],
    },
    "salesforce": [{"message": f"duplicate value found: {_QUOTE}", "errorCode": "DUPLICATE_VALUE", "fields": [_QUOTE]}],
    "propstreet": {"title": _QUOTE, "detail": _QUOTE, "errors": {"email": [_QUOTE], _QUOTE: [_QUOTE]}},
}  # fmt: skip

_LIBRARIES: Final = (
    "apscheduler", "asyncio", "client", "httpcore", "httpx", "hubspot", "psycopg", "requests", "rest",
    "simple_salesforce", "simple_salesforce.api", "sqlalchemy.pool", "tenacity", "urllib3",
)  # fmt: skip


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """All that was said on either stream, with the log set to debug and the libraries as loud as they can be."""
    # The log keeps the stream that it was set up with, and the test runner changes streams meanwhile.
    stream = StringIO()
    monkeypatch.setattr(sys, "stderr", stream)

    def all_of_it() -> str:
        rest = capfd.readouterr()
        stream.write(rest.out + rest.err)
        return stream.getvalue()

    before, root = structlog.get_config(), logging.getLogger()
    level = root.level
    hooks = sys.excepthook, threading.excepthook
    set_up("debug")
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
    yield all_of_it
    for each, old in zip(loggers, levels, strict=True):
        each.setLevel(old)
    # The test runner puts its own handlers back for each phase of a test.
    root.handlers.clear()
    root.setLevel(level)
    sys.excepthook, threading.excepthook = hooks
    structlog.configure(**before)


@pytest.fixture(params=CRMS)
def world(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path) -> Iterator[World]:
    options: dict[str, Any] = {"is_oauth": True} if request.param == "hubspot" else {}
    with ExitStack() as stack:
        made = stack.enter_context(world_of(engine, tmp_path, request.param, **options))
        for emulator in (made.hub, made.crm):
            emulator.auth = {name: f"{value}-zqsecret-{name}" for name, value in emulator.auth.items()}
        made.write()
        yield made


def _trouble(world: World) -> list[Result]:
    """A history with everything going wrong once: refusals, outages, lost answers, pages for people, bad JSON."""
    results = [world.run("backfill")]
    for emulator, name in ((world.hub, "propstreet"), (world.crm, world.connector)):
        for number, what in enumerate(_faults(emulator, name)):
            world.hub.edit("contacts", _ids(world)[0], {"lastName": f"Zqlast1{number}"})
            canaries.crm_edit(world.crm, _crm_ids(world)[0], f"Zqlast11{number}")
            fault(emulator, **what)
            results.append(world.run())
            with emulator.lock:
                emulator.faults.clear()
        results.append(world.run())
    world.hub.add("contacts", canaries.person(7, is_wordy=True))
    return [*results, world.run(), world.run("plan"), world.run("backfill")]


def _faults(emulator: Emulator, name: str) -> list[dict[str, Any]]:
    """Of the connection's reads and of its writes; ``method`` and ``path`` as for ``Fault``."""
    spite, page = _SPITEFUL[name], f"<html><body>Sign in, {_QUOTE}</body></html>"
    writes = {"path": r"contacts?(/|$|.*batch/(update|upsert))|sobjects"}
    return [
        {**writes, "method": "PATCH" if name != "hubspot" else "POST", "status": 400, "body": spite, "times": 9},
        {**writes, "method": "POST", "status": 409, "body": spite, "times": 9},
        {**writes, "status": 500, "body": spite, "times": 2},
        {**writes, "status": 404, "body": spite, "times": 2},
        {"status": 401, "body": page, "times": 3},
        {"status": 403, "body": spite, "times": 2},
        {"status": 200, "body": page, "times": 1},
        {"status": 200, "body": {"unknown": _QUOTE}, "times": 1, "when": "after"},
        {"status": 429, "body": spite, "times": 1, "headers": {"Retry-After": "1"}},
        {**writes, "method": "PATCH" if name != "hubspot" else "POST", "when": "drop", "times": 1},
        {"status": 302, "headers": {"Location": "https://zqdomain.example/?who=zqmail1"}, "times": 1},
    ]


def _ids(world: World) -> list[str]:
    return [str(row["id"]) for row in world.hub.all("contacts")]


def _crm_ids(world: World) -> list[str]:
    crm: Any = world.crm
    if world.connector == "hubspot":
        return sorted(crm.all("contacts"))
    return sorted(row["Id"] for row in crm.all("Contact"))


def test_whatever_goes_wrong_no_log_and_no_message_tells_of_a_person_or_a_secret(
    world: World, engine: Engine, tmp_path: Path, said: Callable[[], str]
) -> None:
    """Refusals that quote what they refuse, pages for people, lost answers: what we tell names refs and fields."""
    canaries.populate(world)
    results = _trouble(world)
    assert {"done", "failed"} <= {result.state for result in results}, "nothing went wrong, so nothing is proven"
    told = [said(), *(result.message for result in results)]
    assert canaries.found_in("\n".join(told)) == []
    assert '"run.finished"' in said()
    for table, column in _REASONS:
        with engine.connect() as connection:
            found = connection.execute(select(cast(s.metadata.tables[table].c[column], Text))).scalars()
        assert canaries.found_in("\n".join(map(str, found))) == [], (table, column)
    hidden = canaries.secrets(world, tmp_path)
    assert len(hidden) >= 6
    dump = "\n".join([*told, *(row for _, row in canaries.rows(engine))])
    assert [each for each in hidden if each in dump] == []


#: Columns that are told to people, and what says why.
_REASONS: Final = (
    ("run", "message"), ("run", "counts"), ("run", "cost"), ("link", "reason"), ("link", "why"),
    ("sighting", "reason"), ("operation", "outcome"), ("operation", "why"), ("plan", "reasons"), ("plan", "counts"),
    ("pair", "halted_reason"), ("match_review", "candidates"), ("link", "left_keys"), ("link", "right_keys"),
    ("sighting", "keys"), ("change_log", "rule"), ("change_log", "call"),
)  # fmt: skip


class _Bug(Exception):
    """What a mistake of ours looks like: it quotes the record that it was made with."""


@pytest.mark.parametrize("crm", CRMS)
def test_a_bug_is_told_with_its_traceback_and_without_what_it_quotes(
    crm: str, engine: Engine, tmp_path: Path, said: Callable[[], str]
) -> None:
    """Chained causes, groups, notes and the frames' variables hold records; types and lines of code are enough."""

    def fail(stage: str, kind: str, count: int) -> None:
        record = {"email": _QUOTE}
        try:
            try:
                raise KeyError(record["email"])
            except KeyError as exc:
                raise RejectedError("contact 4711: 400 email") from exc
        except RejectedError as exc:
            exc.add_note(record["email"])
            raise ExceptionGroup(_QUOTE, [_Bug(_QUOTE), UnfitValueError("email: expected text")]) from exc

    with world_of(engine, tmp_path, crm) as world:
        canaries.populate(world)
        with pytest.raises(ExceptionGroup) as caught:
            world.run("backfill", progress=fail)
        # As the scheduler's library, the process and a thread of it would tell it last.
        logging.getLogger("apscheduler.executors.default").error("Job %s raised", _QUOTE, exc_info=caught.value)
        sys.excepthook(caught.type, caught.value, caught.tb)
        threading.excepthook(
            threading.ExceptHookArgs((caught.type, caught.value, caught.tb, threading.current_thread()))
        )
    assert canaries.found_in(said()) == []
    assert said().count("_Bug (its message may quote values and is left out)") == 4
    assert "RejectedError: contact 4711: 400 email" in said()
    assert "UnfitValueError: email: expected text" in said()
    assert "in fail" in said()
    assert '"library": "apscheduler.executors.default"' in said()


def test_the_commands_last_words_quote_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    """A database that cannot be reached says so with a driver's error, whose text holds the URL and its password."""
    from syncd.cli import main

    monkeypatch.setenv("SYNCD_DATABASE_URL", "postgresql://syncd:zqsecret-password@127.0.0.1:9/zqdomain")
    monkeypatch.setattr(sys, "argv", ["syncd", "--config", str(tmp_path), "status"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert canaries.found_in(said(), ("zqsecret",)) == []
    assert said()
