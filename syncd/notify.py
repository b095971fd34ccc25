"""Tells people when something begins to be the matter, and when it is over: once each, however many replicas look.

What is the matter is read from how the pairs stand; what was told is remembered in the database, so
that a restart repeats nothing. Only a database that does not answer is each process's own affair. A
notice holds names of tenants, pairs and files, counts, and commands to type.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import httpx
import structlog
from sqlalchemy.exc import SQLAlchemyError
from tenacity import Retrying, retry_if_result, stop_after_attempt, wait_exponential

from syncd.config import Configuration, NotifyConfig
from syncd.core.model import Json
from syncd.errors import ConfigError
from syncd.log import blotted
from syncd.state import gauges, notices
from syncd.state.gauges import Gauges, PairGauge
from syncd.state.notices import Condition, Notice
from syncd.wiring import Service, note_database

Document = dict[str, Json]

WEBHOOK_SECONDS: Final = 10.0
COMMAND_SECONDS: Final = 30.0
ATTEMPTS: Final = 3
#: So long one look goes on telling; the rest waits for the next one. Well below what a notice is handed out for.
LOOK_SECONDS: Final = 60.0
#: A database that is back sooner was moved or restarted, which is nobody's business.
DOWN: Final = timedelta(seconds=30)
#: All that a program sees of our environment: no variable that may hold a secret.
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
_DOWN: Final = "database"
_FOUND: Final = "database answers"


def look_and_tell(service: Service, configuration: Configuration) -> int:
    """Look how everything stands and tell who is to know; returns how many notices arrived.

    Any number of replicas and threads may call it at any time. It takes as long as the receivers do, a
    minute and a half at most, and never raises for what they or the database do.
    """
    if not service.notify or not service.telling.acquire(blocking=False):
        return 0
    try:
        return _tell(service, configuration)
    finally:
        service.telling.release()


def send_test(service: Service, receiver: NotifyConfig) -> str | None:
    """Send one notice to see it arrive; what went wrong, in a word that tells no secret, or None."""
    at = service.now()
    document = _document("test", "test", None, None, is_on=True, since=at)
    document |= {"message": "syncd can tell you when something is the matter", "fix": "Nothing to do."}
    return deliver(receiver, document, service.sleep, attempts=1)


def deliver(
    receiver: NotifyConfig, document: Mapping[str, Json], sleep: Callable[[float], None], *, attempts: int = ATTEMPTS
) -> str | None:
    """Hand one notice over; what went wrong, in a word that tells no secret, or None."""
    body = json.dumps(document, ensure_ascii=False).encode()
    if receiver.command is not None:
        return _run(receiver.command, body)
    retrying = Retrying(
        retry=retry_if_result(_may_pass),
        wait=wait_exponential(max=8),
        stop=stop_after_attempt(attempts),
        sleep=sleep,
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    problem: str | None = retrying(_post, receiver, body, str(document["id"]))
    return problem


# --- what is the matter --------------------------------------------------------------------------


def _tell(service: Service, configuration: Configuration) -> int:
    receivers = {each.key: each for each in service.notify}
    began = service.now()
    try:
        found = gauges.look(service.engine, began, with_backlog=False)
        conditions, forgets = _conditions(found, configuration)
        due = notices.look(
            service.engine, conditions, {key: each.kinds for key, each in receivers.items()}, began, forgets=forgets
        )
    except TimeoutError:
        return 0  # It answers, too slowly: the next look may be luckier.
    except SQLAlchemyError:
        note_database(service, is_up=False)
        return _tell_of_database(service, is_up=False)
    note_database(service, is_up=True)
    count = _tell_of_database(service, is_up=True)
    deaf: set[str] = set()
    with contextlib.suppress(SQLAlchemyError):  # What cannot be noted is handed out again when its claim lapses.
        for notice in due:
            is_late = (service.now() - began).total_seconds() > LOOK_SECONDS or service.stopping.is_set()
            if is_late or notice.receiver in deaf:
                notices.untold(service.engine, notice, service.now(), is_tried=False)
            elif _tell_one(service, receivers[notice.receiver], notice, found):
                count += 1
            else:
                deaf.add(notice.receiver)
    return count


def _tell_one(service: Service, receiver: NotifyConfig, notice: Notice, found: Gauges) -> bool:
    log = structlog.get_logger().bind(receiver=receiver.name)
    document = _worded(notice, found.pairs.get(notice.subject), service.holder)
    # RACE: a process that is killed after this and before it is noted has it told once more, under the same id.
    problem = deliver(receiver, document, service.sleep)
    now, key = service.now(), f"notice {receiver.key}"
    if problem is None:
        notices.told(service.engine, notice, now)
        log.info("notice.told", subject=notice.subject, what=notice.what, state=document["state"])
        if (since := service.outages.ended(key)) is not None:
            log.info("receiver.found", after_seconds=(now - since).total_seconds())
        return True
    if service.outages.began(key, now, problem):
        log.error("receiver.lost", problem=problem)
    if notices.untold(service.engine, notice, now):
        log.error("notice.given_up", subject=notice.subject, what=notice.what)
    return False


def _tell_of_database(service: Service, *, is_up: bool) -> int:
    """Each process tells of its own, and remembers by itself whom it told: there is nowhere else to write it down."""
    now, outages = service.now(), service.outages
    since = outages.since(_DOWN)
    if is_up:
        outages.began(_FOUND, now)
        since = outages.since(_FOUND)
    else:
        outages.ended(_FOUND)
    if since is None or now - since < (notices.CALM if is_up else DOWN):
        return 0
    count = 0
    for receiver in service.notify:
        key = f"told of the database {receiver.key}"
        if _DOWN in receiver.kinds and (outages.since(key) is not None) == is_up:
            notice = Notice(receiver.key, _DOWN, "database", not is_up, since, {"process": service.holder})
            if deliver(receiver, _worded(notice, None, service.holder), service.sleep) is None:
                count += 1
                if is_up:
                    outages.ended(key)
                else:
                    outages.began(key, now)
    return count


def _conditions(found: Gauges, configuration: Configuration) -> tuple[list[Condition], list[tuple[str, str]]]:
    """What is the matter, and what is forgotten: pairs that no file names any more, if all files can be read."""
    wanted = {f"{t.tenant}/{p.name}" for t in configuration.tenants if t.enabled for p in t.pairs}
    conditions = [each for pair in sorted(wanted) for each in _of_pair(pair, found)]
    files: dict[str, int] = {}
    for problem in configuration.problems:
        files[problem.file.name] = files.get(problem.file.name, 0) + 1
    conditions += [Condition(file, "config", {"problems": count}) for file, count in sorted(files.items())]
    gone = set(found.pairs) - wanted if not configuration.problems else set()
    return conditions, [(pair, what) for pair in gone for what in _PAIR_WHATS]


_PAIR_WHATS: Final = ("unapproved", "halted", "resting", "refused", "failing", "waiting")


def _of_pair(pair: str, found: Gauges) -> Iterator[Condition]:
    gauge = found.pairs.get(pair)
    if gauge is None:
        return
    facts: dict[str, Json] = {}
    match gauge.standing:
        case "unapproved" | "halted":
            facts = {"plan": gauge.plan, "reason": gauge.reason}
        case "resting":
            facts = {"until": _time(gauge.resting_until)}
        case "refused" | "failing":
            facts = {"failures": gauge.failures, "since": _time(gauge.failing_since), "error": gauge.error}
    # A pair that has not run yet waits for nothing; one that halted waits for an answer.
    if facts and (gauge.standing != "unapproved" or gauge.reason is not None):
        yield Condition(pair, gauge.standing, facts)
    kinds = [each for (of, _), each in found.kinds.items() if of == pair]
    counts = {
        "conflicts": sum(each.conflicts for each in kinds),
        "dead letters": sum(each.dead_letters for each in kinds),
        "reviews": sum(each.reviews for each in kinds),
    }
    if any(counts.values()):
        yield Condition(pair, "waiting", {"counts": dict(counts)})


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment is not None else None


# --- in words ------------------------------------------------------------------------------------


def _worded(notice: Notice, now: PairGauge | None, process: str) -> Document:
    """What people read: which tenant and pair, what is the matter since when, and what to type."""
    tenant, _, pair = notice.subject.partition("/") if "/" in notice.subject else (None, "", None)
    found = _document(notice.id, notice.what, tenant, pair, is_on=notice.is_on, since=notice.since)
    message, fix = _WORDS[notice.what](notice, tenant or "", pair or "")
    if not notice.is_on:
        standing = f"; the pair is {now.standing} now" if now is not None else ""
        message, fix = f"{_OVER[notice.what]}{standing}", ""
    named = notice.subject if notice.what != "database" else process
    return found | {"message": blotted(f"{named}: {message}"), "fix": fix}


def _document(id_: str, what: str, tenant: str | None, pair: str | None, *, is_on: bool, since: datetime) -> Document:
    state = "began" if is_on else "over"
    return {"id": id_, "tenant": tenant, "pair": pair, "what": what, "state": state, "since": _time(since)}


def _unapproved(notice: Notice, tenant: str, pair: str) -> tuple[str, str]:
    plan = notice.facts.get("plan")
    return (
        str(notice.facts.get("reason")),
        f"Look at it: syncd show {plan}. Let it go: syncd apply {plan}"
        if plan
        else f"Let it go: syncd resume {tenant} --pair {pair}",
    )


def _halted(notice: Notice, tenant: str, pair: str) -> tuple[str, str]:
    plan = notice.facts.get("plan")
    look = (
        f"Look at it: syncd show {plan}. Carry it out: syncd apply {plan}. Drop it: syncd discard {plan}. "
        if plan
        else ""
    )
    return f"halted: {notice.facts.get('reason')}", f"{look}Go on without brakes: syncd resume {tenant} --pair {pair}"


def _failing(notice: Notice, tenant: str, pair: str) -> tuple[str, str]:
    count, since = notice.facts.get("failures"), notice.facts.get("since")
    runs = "1 run has failed" if count == 1 else f"{count} runs in a row have failed"
    return f"{runs}, the first one at {since} ({notice.facts.get('error') or 'unknown'})", (
        f"The last one says why: syncd status {tenant} --pair {pair}"
    )


def _refused(notice: Notice, tenant: str, pair: str) -> tuple[str, str]:
    return f"a credential has been refused since {notice.facts.get('since')}", (
        "Put a valid one where the tenant's file says, which is taken up by the next run. "
        f"Which one it is: syncd status {tenant} --pair {pair}. Try it: syncd check {tenant} --pair {pair}"
    )


def _resting(notice: Notice, tenant: str, pair: str) -> tuple[str, str]:
    return f"a vendor asked to be left alone until {notice.facts.get('until')}", (
        "Nothing to do, it goes on then by itself. If it comes again: a smaller share_of_quota, or a longer every"
    )


def _waiting(notice: Notice, tenant: str, pair: str) -> tuple[str, str]:
    counts: Any = notice.facts.get("counts") or {}
    commands = {
        "conflicts": f"syncd conflicts {tenant} --open",
        "dead letters": f"syncd dead-letters {tenant}",
        "reviews": f"syncd reviews {tenant}",
    }
    waiting = {name: count for name, count in counts.items() if count}
    told = ", ".join(f"{count} {name}" for name, count in waiting.items())
    return f"waiting for a person: {told}", f"Look: {', '.join(commands[name] for name in waiting)}"


def _config(notice: Notice, tenant: str, pair: str) -> tuple[str, str]:
    count = notice.facts.get("problems")
    return f"the file is broken in {count} place{'' if count == 1 else 's'}; what it said before goes on", (
        "What is wrong, and where: syncd config check"
    )


def _database(notice: Notice, tenant: str, pair: str) -> tuple[str, str]:
    return "the database does not answer this process", (
        "Check that PostgreSQL runs and that SYNCD_DATABASE_URL is right; syncd goes on by itself when it answers"
    )


_WORDS: Final[Mapping[str, Callable[[Notice, str, str], tuple[str, str]]]] = {
    "unapproved": _unapproved, "halted": _halted, "failing": _failing, "refused": _refused, "resting": _resting,
    "waiting": _waiting, "config": _config, "database": _database,
}  # fmt: skip
_OVER: Final = {
    "unapproved": "its first run waits no more",
    "halted": "halted no more",
    "failing": "fails no more",
    "refused": "its credentials are taken again",
    "resting": "rests no more",
    "waiting": "nothing waits for a person any more",
    "config": "the file is in order again",
    "database": "the database answers again",
}


# --- on their way --------------------------------------------------------------------------------


def _post(receiver: NotifyConfig, body: bytes, id_: str) -> str | None:
    """An exception of the library may quote the URL, which is a secret: only its type is told."""
    try:
        url = receiver.url.read() if receiver.url is not None else ""
    except ConfigError:
        return "its URL cannot be read"
    if not url.startswith(("http://", "https://")):
        return "its URL is no http or https URL"
    headers = {"Content-Type": "application/json", "Idempotency-Key": id_, "User-Agent": "syncd"}
    try:
        # What it says beside its status is not read, however much that is.
        with httpx.stream("POST", url, content=body, headers=headers, timeout=WEBHOOK_SECONDS) as answer:
            status = answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as exc:
        return f"{_PASSING}{type(exc).__name__}" if isinstance(exc, httpx.TransportError) else type(exc).__name__
    if 200 <= status < 300:
        return None
    return f"{_PASSING if status == 429 or status >= 500 else ''}answered {status}"


_PASSING: Final = "for now "


def _may_pass(problem: str | None) -> bool:
    return problem is not None and problem.startswith(_PASSING)


def _run(command: tuple[str, ...], body: bytes) -> str | None:
    """No shell, none of our secrets, and an end, with all that it started."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        running = subprocess.Popen(  # noqa: S603 - the operator's own program
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
    except OSError as exc:
        return f"cannot be started ({exc.strerror})"
    try:
        running.communicate(body, timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return f"took longer than {COMMAND_SECONDS:.0f} s"
    return None if running.returncode == 0 else f"exited {running.returncode}"
