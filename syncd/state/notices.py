"""What people were told of, so that each is told once when something begins to be the matter, and once when it is over.

A row per thing that is the matter, shared by all replicas. ``look`` compares what is with what each
receiver knows, and hands out what it is to be told; nobody else is given that until the claim
lapses. ``told`` and ``untold`` say how it went.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, delete, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from syncd.core.model import Json
from syncd.state import schema as s

#: What is over is told when it has been so long, so that something that comes and goes is told once.
CALM: Final = timedelta(minutes=2)
#: More of what waits already is told so often at most.
SELDOM: Final = timedelta(hours=1)
#: A receiver that cannot be reached is given up so long after the first attempt.
PATIENCE: Final = timedelta(days=1)
#: The pause before the next attempt doubles up to this.
LONGEST_PAUSE: Final = timedelta(minutes=10)
FIRST_PAUSE: Final = timedelta(seconds=15)
#: What was handed out and neither told nor untold by then, its process has died with.
CLAIM: Final = timedelta(minutes=3)
_LOCK: Final = 7_305_018


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is the matter now with a pair or a file, and what is worth saying of it. No values of records.

    Among the facts, another ``plan`` than before is news at once, and more of any of ``counts`` after a while.
    """

    subject: str
    what: str
    facts: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Notice:
    """What one receiver is to be told: that something is the matter since then, or is over since then."""

    receiver: str
    subject: str
    what: str
    is_on: bool
    since: datetime
    facts: Mapping[str, Json]

    @property
    def id(self) -> str:
        """The same however often it is sent, so that a receiver can tell."""
        news = [self.facts.get("plan"), self.facts.get("counts")]
        said = json.dumps([self.subject, self.what, self.is_on, self.since.isoformat(), *news], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:32]


def look(
    engine: Engine,
    conditions: Sequence[Condition],
    receivers: Mapping[str, Collection[str]],
    at: datetime,
    *,
    forgets: Collection[tuple[str, str]] = (),
) -> list[Notice]:
    """What is to be told now: ``receivers`` by what each wants to hear of. None while another process looks.

    What ``forgets`` names is not the matter any more, and nobody needs to hear that.
    """
    now = {(each.subject, each.what): each for each in conditions}
    with _rows(engine) as (tx, rows):
        if rows is None:
            return []
        due: list[Notice] = []
        for key in sorted({*rows, *now}):
            before = rows.get(key)
            row = _moved(before, now.get(key), at)
            wanted = [receiver for receiver, wants in receivers.items() if key[1] in wants]
            is_forgotten = key in forgets
            due += [] if is_forgotten else _due(key, row, wanted, at)
            if is_forgotten or _is_over(row, wanted, at):
                tx.execute(delete(s.notice).where(s.notice.c.subject == key[0], s.notice.c.what == key[1]))
            elif row != before:
                values = {"subject": key[0], "what": key[1], **row}
                tx.execute(upsert(s.notice).values(values).on_conflict_do_update(constraint="pk_notice", set_=row))
    return due


def told(engine: Engine, notice: Notice, at: datetime) -> None:
    """It has arrived."""
    known = {"plan": notice.facts.get("plan"), "counts": notice.facts.get("counts", {})}
    _note(engine, notice, {"is_on": notice.is_on, "at": at.isoformat(), **known})


def untold(engine: Engine, notice: Notice, at: datetime, *, is_tried: bool = True) -> bool:
    """It has not arrived, and is tried again, later each time; True if it is given up."""
    with engine.connect() as tx:
        known = tx.execute(select(s.notice.c.told).where(*_of(notice))).scalar_one_or_none() or {}
    mine = {**known.get(notice.receiver, {})}
    mine.pop("until", None)
    if is_tried:
        first = datetime.fromisoformat(str(mine.setdefault("first", at.isoformat())))
        mine["tries"] = tries = int(mine.get("tries", 0)) + 1
        if at - first >= PATIENCE:
            told(engine, notice, at)
            return True
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(tries - 1, 10))
        mine["until"] = (at + pause).isoformat()
    _note(engine, notice, mine)
    return False


@contextmanager
def _rows(engine: Engine) -> Iterator[tuple[Connection, dict[tuple[str, str], dict[str, Any]] | None]]:
    with engine.begin() as tx:
        if not tx.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}).scalar():
            yield tx, None
            return
        found = tx.execute(select(s.notice).with_for_update()).mappings()
        names = ("is_on", "since", "facts", "told")
        yield tx, {(row["subject"], row["what"]): {name: row[name] for name in names} for row in found}


# --- what is, against what was told ------------------------------------------------------------


def _moved(before: Mapping[str, Any] | None, now: Condition | None, at: datetime) -> dict[str, Any]:
    """The row as it is from now on."""
    if before is None:
        return {"is_on": True, "since": at, "facts": dict(now.facts) if now is not None else {}, "told": {}}
    row = deepcopy(dict(before))
    if row["is_on"] != (now is not None):
        row |= {"is_on": now is not None, "since": at}
    if now is not None:
        row["facts"] = dict(now.facts)
        for mine in row["told"].values():
            # Where less waits by now, what comes after that is news again.
            mine["counts"] = {
                name: min(count, _counts(now.facts).get(name, 0)) for name, count in _counts(mine).items()
            }
    return row


def _counts(facts: Mapping[str, Any]) -> Mapping[str, int]:
    found: Mapping[str, int] = facts.get("counts", {})
    return found


def _due(key: tuple[str, str], row: dict[str, Any], receivers: Sequence[str], at: datetime) -> Iterator[Notice]:
    """What each receiver is to be told of this row; marks it as handed out."""
    subject, what = key
    for receiver in receivers:
        mine = row["told"].get(receiver, {})
        if _is_due(row, mine, at) and not _is_handed_out(mine, at):
            row["told"][receiver] = {**mine, "until": (at + CLAIM).isoformat()}
            yield Notice(receiver, subject, what, row["is_on"], row["since"], row["facts"])


def _is_handed_out(mine: Mapping[str, Any], at: datetime) -> bool:
    """Whether somebody tells it just now, or it is too soon after an attempt."""
    return "until" in mine and datetime.fromisoformat(mine["until"]) > at


def _is_due(row: Mapping[str, Any], mine: Mapping[str, Any], at: datetime) -> bool:
    knows = bool(mine.get("is_on", False))
    if not row["is_on"]:
        return knows and at - row["since"] >= CALM
    if not knows:
        return True
    if mine.get("plan") != row["facts"].get("plan"):
        return True  # It halted anew: what they were told to look at waits no more.
    is_more = any(count > _counts(mine).get(name, 0) for name, count in _counts(row["facts"]).items())
    return is_more and at - datetime.fromisoformat(mine["at"]) >= SELDOM


def _is_over(row: Mapping[str, Any], receivers: Sequence[str], at: datetime) -> bool:
    """Whether nobody needs to hear anything more of it."""
    mine = [row["told"].get(receiver, {}) for receiver in receivers]
    return not row["is_on"] and not any(each.get("is_on") or _is_handed_out(each, at) for each in mine)


def _of(notice: Notice) -> tuple[Any, Any]:
    return s.notice.c.subject == notice.subject, s.notice.c.what == notice.what


def _note(engine: Engine, notice: Notice, mine: Mapping[str, Json]) -> None:
    """Remember what one receiver knows, whatever became of the rest meanwhile."""
    with engine.begin() as tx:
        known = tx.execute(select(s.notice.c.told).where(*_of(notice)).with_for_update()).scalar_one_or_none()
        if known is not None:
            values = {"told": {**known, notice.receiver: dict(mine)}}
            tx.execute(update(s.notice).where(*_of(notice)).values(values))
