"""What people answered about which records are the same: kept for good, listed, and carried to another database.

An answer is a row of ``match_review``: about one record, with the candidates that it speaks of.
``same`` links it to one, ``never`` keeps it apart from each, ``create`` has a counterpart made for
it besides, ``apart`` ends a link and keeps both records from being made anew on the other side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml
from sqlalchemy import Connection, Engine, insert, select, update

from syncd.core.mapping import instant
from syncd.core.model import KINDS, Json, Side, is_safe_id
from syncd.errors import AnswerError, NotFoundError
from syncd.state import schema as s
from syncd.state.desk import Scope, look_anew, strike_out

ANSWERS: Final = ("same", "never", "create", "apart")
_KEYS: Final = ("tenant", "pair", "kind", "propstreet", "crm", "answer", "with", "candidates", "answered_at")
_SIDES: Final = {"propstreet": Side.LEFT, "crm": Side.RIGHT}


@dataclass(frozen=True, slots=True)
class Answer:
    """One person's answer. ``chosen`` is the candidate of ``same``; ``candidates`` are ids of the other side."""

    pair: str
    kind: str
    side: Side
    record: str
    answer: str
    candidates: tuple[str, ...]
    chosen: str | None
    at: datetime

    def document(self) -> dict[str, Json]:
        tenant, _, pair = self.pair.partition("/")
        name = next(name for name, side in _SIDES.items() if side is self.side)
        return {
            "tenant": tenant,
            "pair": pair,
            "kind": self.kind,
            name: self.record,
            "answer": self.answer,
            **({"with": self.chosen} if self.chosen is not None else {}),
            "candidates": list(self.candidates),
            "answered_at": self.at.isoformat(),
        }

    def says_otherwise(self, other: Answer) -> bool:
        """Whether both are about one record and cannot both be meant: same as two, or same as one that it never is.

        ``apart`` ends what was once called the same, so it contradicts nobody.
        """
        if (self.pair, self.kind, self.side, self.record) != (other.pair, other.kind, other.side, other.record):
            return False
        chosen = {each.chosen for each in (self, other) if each.answer == "same"}
        refused = {id_ for each in (self, other) if each.answer in ("never", "create") for id_ in each.candidates}
        return len(chosen) > 1 or bool(chosen & refused)


def answered(engine: Engine, scope: Scope) -> Iterator[dict[str, Json]]:
    """Every answer of the scope with its id, the oldest first."""
    with engine.connect() as tx:
        for id_, answer in _answers(tx, scope):
            yield {"id": f"r{id_}", **answer.document()}


def _answers(tx: Connection, scope: Scope) -> list[tuple[int, Answer]]:
    query = (
        select(s.match_review)
        .where(scope.covers(s.match_review.c.pair), s.match_review.c.answer.is_not(None))
        .order_by(s.match_review.c.answered_at, s.match_review.c.id)
    )
    return [(row.id, _answer_of(row)) for row in tx.execute(query)]


def _answer_of(row: Any) -> Answer:
    candidates = tuple(each["id"] for each in row.candidates)
    return Answer(
        row.pair, row.kind, Side(row.side), row.record_id, row.answer, candidates, row.answered_with, row.answered_at
    )


# --- as a file ----------------------------------------------------------------------------


def export(engine: Engine, scope: Scope, file: Path) -> int:
    """Write every answer of the scope to a YAML file; returns how many."""
    with engine.connect() as tx:
        documents = [answer.document() for _, answer in _answers(tx, scope)]
    told = yaml.safe_dump({"answers": documents}, sort_keys=False, allow_unicode=True)
    file.write_text(f"# Answers to syncd's reviews. Read them in with: syncd reviews --import FILE\n{told}")
    return len(documents)


def import_(engine: Engine, file: Path) -> tuple[int, int]:
    """Read answers from such a file, all or none: how many are new, and how many were known already.

    Raises AnswerError naming the file, the entry and what to do.
    """
    entries = _read(file)
    new = 0
    with engine.begin() as tx:
        pairs = set(tx.execute(select(s.pair.c.id)).scalars())
        held = [answer for _, answer in _answers(tx, Scope())]
        for number, answer in enumerate(entries, 1):
            if answer.pair not in pairs:
                tenant, _, pair = answer.pair.partition("/")
                raise _wrong(file, number, f"no pair {pair!r} of tenant {tenant!r} is known here",
                             f"run syncd check {tenant} first")  # fmt: skip
            if any(_is_same(answer, each) for each in held):
                continue
            if any(answer.says_otherwise(each) for each in held):
                raise _wrong(file, number, f"{answer.kind} {answer.record} was answered otherwise here",
                             "take the entry out; syncd reviews --answered lists what holds here")  # fmt: skip
            _take(tx, answer)
            held.append(answer)
            new += 1
    return new, len(entries) - new


def _is_same(one: Answer, other: Answer) -> bool:
    return {**one.document(), "answered_at": ""} == {**other.document(), "answered_at": ""}


def _read(file: Path) -> list[Answer]:
    try:
        document = yaml.safe_load(file.read_text())
    except OSError as exc:
        raise AnswerError(f"{file}: cannot be read; name a file that syncd reviews --export wrote") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise AnswerError(f"{file}{line}: this is no YAML; name a file that syncd reviews --export wrote") from exc
    entries = document.get("answers") if isinstance(document, dict) and set(document) == {"answers"} else None
    if not isinstance(entries, list):
        raise AnswerError(f"{file}: expected one key, answers, with a list; syncd reviews --export writes such a file")
    return [_parsed(file, number, entry) for number, entry in enumerate(entries, 1)]


def _parsed(file: Path, number: int, entry: object) -> Answer:
    """One entry, strictly: an unknown or missing key, or anything that is no id, is an error."""
    if not isinstance(entry, dict):
        raise _wrong(file, number, "is no mapping", "write it as syncd reviews --export does")
    if unknown := sorted(str(key) for key in entry if key not in _KEYS):
        raise _wrong(file, number, f"unknown key {unknown[0]!r}", f"the keys are {', '.join(_KEYS)}")
    sides = [name for name in _SIDES if name in entry]
    if len(sides) != 1:
        raise _wrong(file, number, "names no record, or two", "give it one of propstreet and crm")
    ids = [entry[sides[0]], *_list(file, number, entry), *([entry["with"]] if "with" in entry else [])]
    if not all(is_safe_id(id_) for id_ in ids):
        raise _wrong(file, number, "holds what is no id", 'write ids as text, like "4711"')
    for key, allowed in (("kind", KINDS), ("answer", ANSWERS)):
        if entry.get(key) not in allowed:
            raise _wrong(file, number, f"lacks a known {key}", f"it is one of {', '.join(allowed)}")
    for key in ("tenant", "pair"):
        if not isinstance(entry.get(key), str):
            raise _wrong(file, number, f"lacks its {key}", f"give it a {key}")
    if ("with" in entry) != (entry["answer"] == "same"):
        raise _wrong(file, number, "with belongs to the answer same, and to no other", "add it, or take it out")
    return Answer(
        f"{entry['tenant']}/{entry['pair']}", entry["kind"], _SIDES[sides[0]], entry[sides[0]], entry["answer"],
        tuple(_list(file, number, entry)), entry.get("with"), _moment(file, number, entry),
    )  # fmt: skip


def _list(file: Path, number: int, entry: Mapping[str, Any]) -> list[Any]:
    found = entry.get("candidates")
    if not isinstance(found, list):
        raise _wrong(file, number, "lacks the list of its candidates", "give it candidates, with their ids")
    return found


def _moment(file: Path, number: int, entry: Mapping[str, Any]) -> datetime:
    try:
        found = instant(str(entry.get("answered_at") or ""), "answered_at")
    except ValueError:
        found = None
    if found is None:
        raise _wrong(file, number, "lacks when it was answered", "give it answered_at, like 2026-11-20T10:00:00+00:00")
    return found


def _wrong(file: Path, number: int, what: str, fix: str) -> AnswerError:
    return AnswerError(f"{file}: entry {number} {what}; {fix}")


def _take(tx: Connection, answer: Answer) -> None:
    """Write an answer down, and let it speak to the reviews that wait here."""
    candidates: list[dict[str, Json]] = [{"id": id_, "reasons": [], "linked_to": None} for id_ in answer.candidates]
    at = (
        s.match_review.c.pair == answer.pair, s.match_review.c.kind == answer.kind,
        s.match_review.c.side == answer.side, s.match_review.c.record_id == answer.record,
        s.match_review.c.answered_at.is_(None),
    )  # fmt: skip
    waits = tx.execute(select(s.match_review).where(*at)).one_or_none()
    if waits is not None:
        left = [each for each in waits.candidates if each["id"] not in answer.candidates]
        is_over = answer.answer in ("same", "create") or not left
        change = {"answered_at": answer.at} if is_over else {"candidates": left}
        tx.execute(update(s.match_review).where(s.match_review.c.id == waits.id).values(change))
    tx.execute(
        insert(s.match_review).values(
            pair=answer.pair, kind=answer.kind, side=answer.side, record_id=answer.record, candidates=candidates,
            opened_at=answer.at, answered_at=answer.at, answer=answer.answer, answered_with=answer.chosen,
        )
    )  # fmt: skip
    apart = [id_ for id_ in answer.candidates if id_ != answer.chosen]
    strike_out(tx, answer.pair, answer.kind, answer.side, answer.record, apart, answer.at)
    look_anew(tx, answer.pair, answer.kind, [answer.record, *answer.candidates])


# --- kept apart ---------------------------------------------------------------------------


def keep_apart(
    engine: Engine, pair: str, kind: str | None, left_id: str, right_id: str, at: datetime, *, is_made: bool = False
) -> tuple[str, bool]:
    """Two records are not the same, for good; their link ends with the next run. Returns kind, and whether it is news.

    Nothing is deleted, and nothing made in place of what each of them loses, unless ``is_made``:
    then each is given a counterpart of its own. Raises NotFoundError.
    """
    with engine.begin() as tx:
        of = kind or _kind_of(tx, pair, left_id, right_id)
        wanted = [Answer(pair, of, Side.LEFT, left_id, "apart", (right_id,), None, at)]
        if is_made:
            wanted.append(Answer(pair, of, Side.LEFT, left_id, "create", (right_id,), None, at))
            wanted.append(Answer(pair, of, Side.RIGHT, right_id, "create", (left_id,), None, at))
        held = [answer for _, answer in _answers(tx, Scope(*pair.split("/", 1)))]
        news = [each for each in wanted if not any(_is_same(each, known) for known in held)]
        for each in news:
            _take(tx, each)
    return of, bool(news)


def _kind_of(tx: Connection, pair: str, left_id: str, right_id: str) -> str:
    """The kind of which both ids are known. Raises NotFoundError naming what is not."""
    kinds = [set(_kinds(tx, pair, side, id_)) for side, id_ in ((Side.LEFT, left_id), (Side.RIGHT, right_id))]
    for name, id_, found in zip(("propstreet", pair.partition("/")[2]), (left_id, right_id), kinds, strict=True):
        if not found:
            raise NotFoundError(f"no record {name}:{id_} is known of {pair}")
    both = kinds[0] & kinds[1]
    if len(both) != 1:
        told = ", ".join(sorted(both or kinds[0] | kinds[1]))
        raise NotFoundError(f"propstreet:{left_id} and {right_id} are not of one kind alone; say --kind, one of {told}")
    return both.pop()


def _kinds(tx: Connection, pair: str, side: Side, id_: str) -> Sequence[str]:
    links = select(s.link.c.kind).where(s.link.c.pair == pair, s.link.c[f"{side}_id"] == id_)
    seen = select(s.sighting.c.kind).where(
        s.sighting.c.pair == pair, s.sighting.c.side == side, s.sighting.c.id == id_, s.sighting.c.kind.in_(KINDS)
    )
    return tx.execute(links.union(seen)).scalars().all()
