"""What the operator's page shows: each pair at a glance, and long lists a page at a time.

A page of a list asks for the rows behind a key and never for those before it, so that the last of
a hundred thousand costs what the first does. A mark names that key; it comes back from a browser
and is not believed until it has the key's shape.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, and_, case, func, literal, or_, select, tuple_
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONPATH

from syncd.core.mapping import same, show, thaw
from syncd.core.model import FIELDS, KINDS, RELATIONS, Json, Side, is_safe_id
from syncd.errors import NotFoundError
from syncd.state import schema as s
from syncd.state.bulk import one_of
from syncd.state.desk import (
    Part,
    Scope,
    censuses,
    conflict_document,
    dead_parts,
    excluded_parts,
    faces,
    last_seen,
    review_document,
)
from syncd.state.explain import Place
from syncd.state.journal import describe, entry_of
from syncd.state.lease import SKEW_SECONDS, TTL_SECONDS
from syncd.state.pairs import LONGEST_REST, RESTS
from syncd.state.postgres import in_order_of_work

#: Rows of one page.
PAGE: Final = 50
#: So many of a pair's latest runs are looked through for those that did something, before a page ends early.
WINDOW: Final = 1_000
#: Reasons that are counted one by one; what is rarer is summed up.
REASONS: Final = 12

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a list, and the mark that asks for those behind them, if there are more."""

    rows: list[Document]
    after: str | None = None


# --- each pair at a glance ----------------------------------------------------------------


def standings(engine: Engine, scope: Scope, at: datetime) -> list[Document]:
    """How each pair stands, in one word and with the reason; cheap however much the pair has.

    ``running``: a run is under way. It is told beside the word, which a run of two seconds should not change.
    """
    latest = _latest(s.run.c.reason.not_in(["audit", "plan"]), s.run.c.state != "running")
    good = _latest(s.run.c.state == "done", s.run.c.reason.in_(["run", "backfill", "apply"]))
    running = _latest(s.run.c.state == "running")
    query = select(
        s.pair, latest.label("latest"), good.label("good"), running.label("running"), RESTS.label("resting_until")
    ).where(scope.covers(s.pair.c.id))
    with engine.connect() as tx:
        rows = tx.execute(query.order_by(s.pair.c.id)).all()
        ids = [each for row in rows for each in (row.latest, row.good, row.running) if each is not None]
        runs = {row.id: row for row in tx.execute(select(s.run).where(one_of(s.run.c.id, ids)))} if ids else {}
    return [_standing(row, runs, at) for row in rows]


def _latest(*where: Any) -> Any:
    query = select(s.run.c.id).where(s.run.c.pair == s.pair.c.id, *where)
    return query.order_by(s.run.c.started_at.desc()).limit(1).scalar_subquery()


def _standing(row: Row[Any], runs: Mapping[str, Row[Any]], at: datetime) -> Document:
    latest, good, running = (runs.get(each) for each in (row.latest, row.good, row.running))
    is_leased = row.leased_until is not None and (
        0 < (row.leased_until - at).total_seconds() <= TTL_SECONDS + SKEW_SECONDS
    )
    rests = row.resting_until
    is_resting = rests is not None and at < rests <= at + LONGEST_REST
    return {
        "id": row.id,
        "tenant": row.tenant,
        "pair": row.name,
        "connector": row.connector,
        "word": _word(row, latest, is_resting=is_resting),
        "reason": _reason(row, latest, is_resting=is_resting),
        "is_known": True,
        "is_running": running is not None and is_leased,
        "is_approved": row.approved_at is not None,
        "halted": row.halted_reason,
        "plan": row.halted_plan,
        "paused_at": row.paused_at,
        "resting_until": rests if is_resting else None,
        "good_at": good.finished_at if good is not None else None,
        "latest": run_document(latest) if latest is not None else None,
    }


def _word(row: Row[Any], latest: Row[Any] | None, *, is_resting: bool) -> str:
    if row.paused_at is not None:
        return "paused"
    if row.halted_reason is not None:
        return "halted" if row.approved_at is not None else "waits for approval"
    if is_resting:
        return "resting"
    if latest is None:
        return "never ran"
    if latest.state in ("failed", "abandoned"):
        return "failing"
    return "in step" if row.approved_at is not None else "waits for approval"


def _reason(row: Row[Any], latest: Row[Any] | None, *, is_resting: bool) -> str:
    if row.paused_at is not None:
        return "paused by a person"
    if row.halted_reason is not None:
        return str(row.halted_reason)
    if is_resting:
        return f"a vendor asked to be left alone until {row.resting_until:%F %T} UTC"
    if latest is not None and latest.state in ("failed", "abandoned"):
        return latest.message or "the last run ended without a word; the next one goes on where it was"
    return ""


def counts(engine: Engine, scope: Scope) -> dict[str, Document]:
    """By pair, how many of each kind are linked, excluded and so on, and since when the oldest change waits."""
    waits = (
        select(s.sighting.c.pair, func.count().label("count"), func.min(s.sighting.c.seen_at).label("since"))
        .outerjoin(s.link, and_(s.sighting.c.is_linked, _is_of(s.sighting, s.link)))
        .where(
            scope.covers(s.sighting.c.pair), s.sighting.c.state == "new", s.sighting.c.reason == "",
            or_(s.link.c.id.is_(None), s.link.c.state.in_(["in_step", "pending"])),
        )
        .group_by(s.sighting.c.pair)
    )  # fmt: skip
    off_step = select(s.link.c.pair, s.link.c.kind, func.count()).where(
        scope.covers(s.link.c.pair), s.link.c.state != "in_step"
    )
    with engine.connect() as tx:
        waiting = {row.pair: row for row in tx.execute(waits)}
        kinds = censuses(tx, scope)
        off = {(row[0], row[1]): row[2] for row in tx.execute(off_step.group_by(s.link.c.pair, s.link.c.kind))}
    return {
        pair: {
            "kinds": {
                kind: {**kinds[pair][kind], "in_step": kinds[pair][kind]["linked"] - off.get((pair, kind), 0)}
                for kind in KINDS
                if kind in kinds.get(pair, {})
            },
            "waiting": waiting[pair].count if pair in waiting else 0,
            "waiting_since": waiting[pair].since if pair in waiting else None,
        }
        for pair in {*waiting, *kinds}
    }


def _is_of(sighting: Any, link: Any) -> Any:
    own = case((sighting.c.side == Side.LEFT, link.c.left_id), else_=link.c.right_id)
    return and_(link.c.pair == sighting.c.pair, link.c.kind == sighting.c.kind, own == sighting.c.id)


# --- a page at a time ---------------------------------------------------------------------


def excluded(engine: Engine, scope: Scope, kind: str | None, after: str | None) -> Page:
    """What is left out, with the reasons, as ``desk.excluded`` lists it."""
    return _listed(engine, excluded_parts(scope), kind, after)


def dead_letters(engine: Engine, scope: Scope, kind: str | None, after: str | None) -> Page:
    """Changes set aside for a person."""
    return _listed(engine, dead_parts(scope), kind, after)


def conflicts(engine: Engine, scope: Scope, kind: str | None, after: str | None, *, is_open: bool) -> Page:
    """Conflicts, the newest first: those that wait, or those that were settled."""
    settled = s.conflict.c.settled_at
    query = select(s.conflict).where(
        scope.covers(s.conflict.c.pair), settled.is_(None) if is_open else settled.is_not(None)
    )
    return _listed(engine, (Part(query, (-s.conflict.c.id,), conflict_document),), kind, after)


def reviews(engine: Engine, scope: Scope, kind: str | None, after: str | None) -> Page:
    """Records whose counterpart a person must name, each and its candidates with all that they hold."""
    query = select(s.match_review).where(scope.covers(s.match_review.c.pair), s.match_review.c.answered_at.is_(None))
    with engine.connect() as tx:
        part = Part(query, (s.match_review.c.id,), lambda row: _review(tx, row))
        return _paged(tx, (part,), kind, after)


def _review(tx: Connection, row: Row[Any]) -> Document:
    side = Side(row.side)
    document: Document = {**review_document(tx, row)}
    held = _shown_of(row.kind, last_seen(tx, row.pair, row.kind, side, [row.record_id]))
    other = _shown_of(row.kind, last_seen(tx, row.pair, row.kind, side.other, [each["id"] for each in row.candidates]))
    document["values"] = held.get(row.record_id, {})
    for each in document["candidates"]:
        each["values"] = other.get(each["id"], {})
    told = [document["values"], *(each["values"] for each in document["candidates"])]
    document["fields"] = [name for name in FIELDS[row.kind] if any(each.get(name) is not None for each in told)]
    document["side"] = "propstreet" if side is Side.LEFT else "crm"
    return document


def _shown_of(kind: str, held: Mapping[str, Mapping[str, Json]]) -> dict[str, dict[str, Json]]:
    return {
        id_: {name: show(thaw({"": values[name]})[""]) for name in FIELDS[kind] if name in values}
        for id_, values in held.items()
    }


def linked(engine: Engine, scope: Scope, kind: str, name: str, after: str | None, *, most: int) -> Page:
    """Linked records that are not left out, those whose name in Propstreet holds ``name``; ``most`` on a page."""
    base = s.link.c.left_base
    called_ = func.concat_ws(" ", *(base[each].astext for each in ("first_name", "last_name", "name")))
    query = select(s.link).where(
        scope.covers(s.link.c.pair), s.link.c.state != "excluded", called_.icontains(name, autoescape=True)
    )
    with engine.connect() as tx:
        return _keyed(tx, (Part(query, (s.link.c.id,), _link),), kind, after, most)


def _link(row: Row[Any]) -> Document:
    tenant, _, pair = row.pair.partition("/")
    ids = {"propstreet": row.left_id, "crm": row.right_id}
    return {"tenant": tenant, "pair": pair, "kind": row.kind, **ids, "state": row.state, "reason": row.reason}


def links(engine: Engine, pair_id: str, kind: str, left_ids: Sequence[str]) -> dict[str, Document]:
    """By Propstreet's id: how a link stands, the fields that its sides agreed to differ in, the conflicts that wait."""
    mine = (s.link.c.pair == pair_id, s.link.c.kind == kind, one_of(s.link.c.left_id, left_ids))
    waits = select(s.conflict).where(
        s.conflict.c.pair == pair_id, s.conflict.c.kind == kind, one_of(s.conflict.c.left_id, left_ids),
        s.conflict.c.settled_at.is_(None),
    )  # fmt: skip
    with engine.connect() as tx:
        rows = tx.execute(select(s.link).where(*mine)).all()
        conflicts_ = [conflict_document(row) for row in tx.execute(waits)]
    return {
        row.left_id: {
            **_link(row),
            "differs": _differing(row),
            "conflicts": {each["field"]: each for each in conflicts_ if each["propstreet"] == row.left_id},
        }
        for row in rows
    }


def _differing(row: Row[Any]) -> frozenset[str]:
    left, right = thaw(row.left_base), thaw(row.right_base)
    both = left.keys() & right.keys() & FIELDS[row.kind].keys()
    return frozenset(name for name in both if not same(FIELDS[row.kind][name], left[name], right[name]))


def written_since(engine: Engine, pair_id: str, at: datetime) -> list[Document]:
    """What was written to either side since then, field by field, the newest last."""
    query = select(s.change_log).where(s.change_log.c.pair == pair_id, s.change_log.c.at >= at)
    with engine.connect() as tx:
        return [_change(row) for row in tx.execute(query.order_by(s.change_log.c.id))]


def changes(engine: Engine, run_id: str, after: str | None) -> Page:
    """What a run wrote, field by field, in the order in which it did."""
    part = Part(select(s.change_log).where(s.change_log.c.run == run_id), (s.change_log.c.id,), _change)
    return _listed(engine, (part,), None, after)


def _change(row: Row[Any]) -> Document:
    tenant, _, pair = row.pair.partition("/")
    return {
        "tenant": tenant,
        "pair": pair,
        "kind": row.kind,
        "propstreet": row.left_id,
        "crm": row.right_id,
        "side": "propstreet" if row.side == Side.LEFT else "crm",
        "verb": row.verb,
        "field": row.field or None,
        "old": _shown(row.old),
        "new": _shown(row.new),
        "stored": _shown(row.stored) if row.stored is not None else _shown(row.new),
        "rule": row.rule,
        "at": row.at,
    }


def _shown(kept: Json) -> Json:
    return show(thaw({"": kept})[""])


def operations(engine: Engine, plan_id: str, after: str | None) -> Page:
    """What a saved plan would do, record by record, in the order in which it is done."""
    query = select(s.operation).where(s.operation.c.plan == plan_id)
    return _listed(engine, (Part(query, in_order_of_work(), _operation),), None, after)


def _operation(row: Row[Any]) -> Document:
    tenant, _, pair = row.pair.partition("/")
    entry = entry_of(dict(row._mapping))
    return {**describe(entry), "tenant": tenant, "pair": pair, "state": entry.state, "outcome": row.outcome}


def _listed(engine: Engine, parts: Sequence[Part], kind: str | None, after: str | None) -> Page:
    with engine.connect() as tx:
        return _paged(tx, parts, kind, after)


def _paged(tx: Connection, parts: Sequence[Part], kind: str | None, after: str | None) -> Page:
    page = _keyed(tx, parts, kind, after, PAGE)
    _name(tx, page.rows)
    return page


def _keyed(tx: Connection, parts: Sequence[Part], kind: str | None, after: str | None, most: int) -> Page:
    number, key = _read_mark(after, [len(part.key) for part in parts])
    rows: list[Document] = []
    marks: list[str] = []
    for place, part in enumerate(parts):
        if place < number or len(rows) > most:
            continue
        columns = [column.label(f"key{at}") for at, column in enumerate(part.key)]
        query = part.ordered().add_columns(*columns).limit(most + 1 - len(rows))
        if kind is not None:
            query = query.where(query.selected_columns["kind"] == kind)
        if place == number and key:
            query = query.where(tuple_(*part.key) > tuple_(*_typed(part.key, key)))
        for row in tx.execute(query).all():
            rows.append(part.told(row))
            marks.append(_mark(place, [row._mapping[column.name] for column in columns]))
    page = rows[:most]
    for each, mark in zip(page, marks, strict=False):
        each["mark"] = mark
    return Page(page, marks[most - 1] if len(rows) > most else None)


def _mark(place: int, key: Sequence[object]) -> str:
    told = json.dumps([place, *key], separators=(",", ":"), default=str)
    return base64.urlsafe_b64encode(told.encode()).decode().rstrip("=")


def _read_mark(mark: str | None, lengths: Sequence[int]) -> tuple[int, list[Any]]:
    """Which part of a list, and the key in it. Raises NotFoundError for what is no mark of this list."""
    if not mark:
        return 0, []
    try:
        place, *key = json.loads(base64.urlsafe_b64decode(mark + "=" * (-len(mark) % 4)))
    except (ValueError, binascii.Error, TypeError, RecursionError):
        raise NotFoundError("this list has no such place; start at its beginning") from None
    is_place = isinstance(place, int) and not isinstance(place, bool) and 0 <= place < len(lengths)
    if not is_place or len(key) != lengths[place]:
        raise NotFoundError("this list has no such place; start at its beginning")
    return place, key


def _typed(columns: Sequence[Any], key: Sequence[object]) -> list[Any]:
    """The key as its columns hold it. Raises NotFoundError where it has another shape."""
    found = []
    for column, value in zip(columns, key, strict=True):
        wanted = column.type.python_type
        if type(value) is not wanted or (wanted is int and abs(int(str(value))) >= 2**63) or "\0" in str(value):
            raise NotFoundError("this list has no such place; start at its beginning")
        found.append(literal(value, column.type))
    return found


def reasons(engine: Engine, scope: Scope, kind: str | None) -> list[tuple[str, int]]:
    """Why records are left out, the most frequent reason first, and how many for each."""
    found: dict[str, int] = {}
    with engine.connect() as tx:
        for part in excluded_parts(scope):
            source = part.query if kind is None else part.query.where(part.query.selected_columns["kind"] == kind)
            rows = source.subquery()
            query = select(rows.c.reason, func.count().label("count")).group_by(rows.c.reason)
            for reason, count in tx.execute(query.order_by(func.count().desc()).limit(10 * REASONS)):
                found[reason] = found.get(reason, 0) + count
    return sorted(found.items(), key=lambda each: (-each[1], each[0]))[:REASONS]


# --- runs ---------------------------------------------------------------------------------


def run_document(row: Row[Any]) -> Document:
    """A run: when, why, how it ended, what it did and what that cost."""
    tenant, _, pair = row.pair.partition("/")
    return {
        "id": row.id,
        "tenant": tenant,
        "pair": pair,
        "reason": row.reason,
        "state": row.state,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "did": _did(row.counts),
        "cost": {name: (made, row.cost.get("least", {}).get(name)) for name, made in row.cost.get("made", {}).items()},
        "calls": sum(row.cost.get("made", {}).values()),
        "counts": row.counts,
        "message": row.message,
    }


def _did(counts_: Mapping[str, Any]) -> list[tuple[str, str | None, list[tuple[str, int]]]]:
    """(verb, side, [(kind, count)]) for all that a run counted."""
    found: list[tuple[str, str | None, list[tuple[str, int]]]] = []
    for verb in ("created", "updated", "deleted", "marked"):
        for side in ("propstreet", "crm"):
            kinds = counts_.get(verb, {})
            found.append((verb, side, [(kind, kinds[kind][side]) for kind in KINDS if kinds.get(kind, {}).get(side)]))
    for verb in ("linked", "conflicts", "rejected"):
        kinds = counts_.get(verb, {})
        found.append((verb, None, [(kind, kinds[kind]) for kind in KINDS if kinds.get(kind)]))
    return [each for each in found if each[2]]


def find_run(engine: Engine, run_id: str) -> Document:
    """A run by its whole id. Raises NotFoundError."""
    with engine.connect() as tx:
        row = tx.execute(select(s.run).where(s.run.c.id == run_id)).one_or_none()
    if row is None:
        raise NotFoundError("no such run is known here")
    return run_document(row)


def runs(engine: Engine, scope: Scope, after: str | None, *, is_all: bool = False) -> Page:
    """Runs, the newest first; those that found nothing to do only if ``is_all``.

    Of each pair a window of its latest runs is looked through, so that a page of few rows may be
    followed by another one.
    """
    _, key = _read_mark(after, [2])
    run, pair = s.run.c, s.pair.c
    query = select(run.id, run.pair, run.started_at).where(run.pair == pair.id)
    if key:
        query = query.where(tuple_(run.started_at, run.id) < tuple_(literal(_moment(key[0])), literal(str(key[1]))))
    window = query.order_by(run.started_at.desc(), run.id.desc()).limit(WINDOW).lateral()
    near = select(window).select_from(s.pair).where(scope.covers(pair.id)).join(window, literal(True)).cte("near")
    full = select(func.min(near.c.started_at).label("edge")).group_by(near.c.pair)
    full_edges = full.having(func.count() == WINDOW).subquery()
    found = select(s.run).join(near, near.c.id == run.id).order_by(run.started_at.desc(), run.id.desc())
    if not is_all:
        found = found.where(_is_telling())
    with engine.connect() as tx:
        edge = tx.execute(select(func.max(full_edges.c.edge))).scalar()
        if edge is not None:
            found = found.where(run.started_at >= edge)
        rows = tx.execute(found.limit(PAGE + 1)).all()
    told = [run_document(row) for row in rows[:PAGE]]
    if len(rows) > PAGE:
        return Page(told, _mark(0, [rows[PAGE - 1].started_at.isoformat(), rows[PAGE - 1].id]))
    return Page(told, _mark(0, [edge.isoformat(), ""]) if edge is not None else None)


def _moment(told: object) -> datetime:
    try:
        found = datetime.fromisoformat(str(told))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise NotFoundError("this list has no such place; start at its beginning")
    return found


def _is_telling() -> Any:
    run = s.run.c
    return or_(
        run.state != "done",
        run.reason.in_(["apply", "undo", "backfill"]),
        run.message != "",
        run.counts["operations"].astext.not_in(["0"]),
        func.jsonb_path_exists(run.counts, sql_cast("$.linked.* ? (@ > 0)", JSONPATH)),
    )


def undoing(engine: Engine, run: Document) -> tuple[Document | None, str | None]:
    """The latest run that looked how to take this one back, and the plan that came of it, if it is still there."""
    told = f"undo of run {run['id']}"
    with engine.connect() as tx:
        pair_id = f"{run['tenant']}/{run['pair']}"
        latest = select(s.run).where(s.run.c.pair == pair_id, s.run.c.started_at > run["started_at"])
        latest = latest.order_by(s.run.c.started_at.desc()).limit(WINDOW)
        near = latest.subquery()
        row = tx.execute(
            select(near).where(near.c.reason == "undo", near.c.message == told).order_by(near.c.started_at.desc())
        ).first()
        if row is None:
            return None, None
        plan = tx.execute(select(s.plan.c.id).where(s.plan.c.pair == pair_id, s.plan.c.run == row.id)).scalar()
    return run_document(row), plan


# --- plans --------------------------------------------------------------------------------


def find_plan(engine: Engine, plan_id: str) -> Document:
    """A saved plan by its whole id, with how many of what it would do and to which fields. Raises NotFoundError."""
    op = s.operation.c
    counted = select(op.verb, op.side, op.kind, func.count()).where(op.plan == plan_id)
    fields = select(op.side, op.kind, func.jsonb_object_keys(op.steps).label("field")).where(
        op.plan == plan_id, op.verb == "update"
    )
    with engine.connect() as tx:
        row = tx.execute(select(s.plan).where(s.plan.c.id == plan_id)).one_or_none()
        if row is None:
            raise NotFoundError("no such plan is known here")
        groups = tx.execute(counted.group_by(op.verb, op.side, op.kind)).all()
        each = fields.subquery()
        named = tx.execute(select(each, func.count()).group_by(each.c.side, each.c.kind, each.c.field)).all()
    tenant, _, pair = row.pair.partition("/")
    return {
        "id": row.id,
        "tenant": tenant,
        "pair": pair,
        "run": row.run,
        # A plan without a hash was never finished: its run died while it drew it up.
        "state": row.state if row.hash else "unfinished",
        "reasons": row.reasons,
        "made_at": row.made_at,
        "ended_at": row.ended_at,
        "groups": [
            {
                "verb": verb,
                "side": "propstreet" if side == Side.LEFT else "crm",
                "kind": kind,
                "count": count,
                "fields": sorted(
                    ((name, n) for at, of, name, n in named if verb == "update" and (at, of) == (side, kind)),
                    key=lambda field: (-field[1], field[0]),
                ),
            }
            for verb, side, kind, count in sorted(groups, key=lambda group: (KINDS.index(group[2]), *group[:2]))
        ],
    }


def open_plans(engine: Engine, pair_id: str) -> list[Document]:
    """The plans of a pair that wait or are carried out now, the newest first."""
    plan = s.plan.c
    query = select(plan.id, plan.state, plan.reasons, plan.made_at, plan.counts, s.run.c.reason.label("made_by"))
    query = query.outerjoin(s.run, s.run.c.id == plan.run)
    query = query.where(plan.pair == pair_id, plan.state.in_(["open", "applying"]), plan.hash != "")
    with engine.connect() as tx:
        return [dict(row) for row in tx.execute(query.order_by(plan.made_at.desc()).limit(PAGE)).mappings()]


# --- what records are called ----------------------------------------------------------------


def called(engine: Engine, place: Place) -> str | None:
    """What people know a record by, if anything."""
    look = _related if place.kind in RELATIONS else _called
    with engine.connect() as tx:
        return look(tx, place.pair, place.kind, place.side, [place.id]).get(place.id)


def _name(tx: Connection, rows: Iterable[Document]) -> None:
    """Give each row what people know its record by; a relation is known by what it relates."""
    wanted: dict[tuple[str, str, Side], set[str]] = {}
    for row in rows:
        pair = f"{row['tenant']}/{row['pair']}"
        for side, id_ in ((Side.LEFT, row.get("propstreet")), (Side.RIGHT, row.get("crm"))):
            if id_ is not None and is_safe_id(id_):
                wanted.setdefault((pair, row["kind"], side), set()).add(id_)
    names: dict[tuple[str, str, Side, str], str] = {}
    for (pair, kind, side), ids in wanted.items():
        look: Callable[..., dict[str, str]] = _related if kind in RELATIONS else _called
        for id_, name in look(tx, pair, kind, side, sorted(ids)).items():
            names[pair, kind, side, id_] = name
    for row in rows:
        pair = f"{row['tenant']}/{row['pair']}"
        sides = ((Side.LEFT, row.get("propstreet")), (Side.RIGHT, row.get("crm")))
        found = [names.get((pair, row["kind"], side, str(id_))) for side, id_ in sides]
        row["called"] = next((each for each in found if each), None)


def _called(tx: Connection, pair: str, kind: str, side: Side, ids: Sequence[str]) -> dict[str, str]:
    known = faces(tx, pair, kind, side, ids)
    return {id_: str(each["name"] or each["known_by"]) for id_, each in known.items() if any(each.values())}


def _related(tx: Connection, pair: str, kind: str, side: Side, ids: Sequence[str]) -> dict[str, str]:
    own_id, own_keys = s.link.c[f"{side}_id"], s.link.c[f"{side}_keys"]
    linked = select(own_id, own_keys).where(s.link.c.pair == pair, s.link.c.kind == kind, one_of(own_id, ids))
    seen = select(s.sighting.c.id, s.sighting.c["keys"]).where(
        s.sighting.c.pair == pair, s.sighting.c.kind == kind, s.sighting.c.side == side, one_of(s.sighting.c.id, ids)
    )
    refs: dict[str, dict[str, str]] = {}
    for row in (*tx.execute(linked), *tx.execute(seen)):
        for key in row[1]:
            of, _, ref = key.removeprefix("ref:").partition("=")
            if key.startswith("ref:") and of in KINDS:
                refs.setdefault(row[0], {})[of] = ref
    names: dict[tuple[str, str], str] = {}
    for of in KINDS:
        if named := sorted({each[of] for each in refs.values() if of in each}):
            names |= {(of, id_): name for id_, name in _called(tx, pair, of, side, named).items()}
    parts = {id_: [names.get((of, each[of])) for of in ("contact", "company", "deal") if of in each]
             for id_, each in refs.items()}  # fmt: skip
    return {id_: " · ".join(part for part in found if part) for id_, found in parts.items() if any(found)}
