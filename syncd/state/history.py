"""What runs did, from their own rows and the change log: to list them, and to take one back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import ARRAY, Engine, Row, Text, case, func, or_, select
from sqlalchemy import cast as sql_cast

from syncd.core.mapping import thaw
from syncd.core.model import KINDS, RELATIONS, Json, Side, Value, Verb
from syncd.core.undo import Deed, Written, folded
from syncd.errors import NotFoundError
from syncd.state import schema as s
from syncd.state.bulk import one_of
from syncd.state.desk import Scope

#: Runs that a list shows unless told otherwise.
RECENT = 50


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as the commands about runs need it."""

    id: str
    pair: str
    reason: str
    state: str
    started_at: datetime


def find_run(engine: Engine, run_id: str) -> RunRow:
    """A run by its id or an unambiguous beginning of it. Raises NotFoundError."""
    with engine.connect() as tx:
        query = select(s.run).where(s.run.c.id.startswith(run_id, autoescape=True)).limit(2)
        rows = tx.execute(query).all() if run_id else []
    if not rows:
        raise NotFoundError(f"no run {run_id!r}; syncd runs lists them")
    if len(rows) > 1:
        raise NotFoundError(f"several runs begin with {run_id!r}; write more of the id")
    row = rows[0]
    return RunRow(row.id, row.pair, row.reason, row.state, row.started_at)


def runs(engine: Engine, scope: Scope, limit: int = RECENT) -> list[dict[str, Json]]:
    """The latest runs, the newest first, and how many records each wrote, by verb and kind."""
    query = select(s.run).where(scope.covers(s.run.c.pair)).order_by(s.run.c.started_at.desc(), s.run.c.id)
    with engine.connect() as tx:
        rows = tx.execute(query.limit(limit)).all()
        wrote = _wrote(tx.execute(_counts([row.id for row in rows])).all())
    found: list[dict[str, Json]] = []
    for row in rows:
        tenant, _, pair = row.pair.partition("/")
        found.append(
            {
                "run": row.id,
                "tenant": tenant,
                "pair": pair,
                "reason": row.reason,
                "state": row.state,
                "started_at": row.started_at.isoformat(),
                "finished_at": row.finished_at.isoformat() if row.finished_at else None,
                "wrote": wrote.get(row.id, {}),
                "message": row.message,
            }
        )
    return found


def _counts(run_ids: Sequence[str]) -> Any:
    log = s.change_log.c
    own = case((log.side == Side.LEFT, log.left_id), else_=log.right_id)
    return (
        select(log.run, log.verb, log.kind, log.side, func.count(own.distinct()))
        .where(one_of(log.run, run_ids))
        .group_by(log.run, log.verb, log.kind, log.side)
    )


def _wrote(rows: Iterable[Row[Any]]) -> dict[str, dict[str, Json]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        run_id, verb, kind, side, count = tuple(row)
        name = "propstreet" if side == Side.LEFT else "crm"
        found.setdefault(run_id, {}).setdefault(verb, {}).setdefault(kind, {})[name] = count
    return found


def deeds(engine: Engine, run_id: str) -> Iterator[Deed]:
    """All that a run wrote, record by record, those of one kind and side together."""
    log = s.change_log.c
    own = case((log.side == Side.LEFT, log.left_id), else_=log.right_id)
    position = case({kind: index for index, kind in enumerate(KINDS)}, value=log.kind)
    query = select(s.change_log, own.label("own")).where(log.run == run_id).order_by(position, log.side, own, log.id)
    with engine.connect().execution_options(yield_per=500) as tx:
        for _, rows in groupby(tx.execute(query), key=lambda row: (row.kind, row.side, row.own)):
            deed = folded([_written(row) for row in rows])
            if deed is not None:
                yield deed


def _written(row: Row[Any]) -> Written:
    verb: Verb = row.verb
    return Written(
        row.kind,
        Side(row.side),
        verb,
        row.left_id,
        row.right_id,
        row.field,
        _value(row.old),
        _value(row.new),
        _value(row.stored if row.stored is not None else row.new),
    )


def _value(stored: Json) -> Value:
    return thaw({"": stored})[""]


def later(engine: Engine, pair: str, run_id: str, deeds: Sequence[Deed]) -> dict[str, dict[tuple[Side, str], Value]]:
    """By target, what stood in each field before the first write to it, or to its counterpart's, after the run."""
    if not deeds:
        return {}
    log, kind, side = s.change_log.c, deeds[0].kind, deeds[0].side
    own = log.left_id if side is Side.LEFT else log.right_id
    last = select(func.max(log.id)).where(log.run == run_id).scalar_subquery()
    query = (
        select(own.label("own"), log.side, log.field, log.old)
        .where(log.pair == pair, log.kind == kind, one_of(own, [deed.target for deed in deeds]), log.id > last)
        .order_by(log.id.desc())
    )
    found: dict[str, dict[tuple[Side, str], Value]] = {}
    with engine.connect() as tx:
        for row in tx.execute(query):
            found.setdefault(row.own, {})[Side(row.side), row.field] = _value(row.old)
    return found


def dependants(engine: Engine, pair: str, run_id: str, deeds: Sequence[Deed]) -> dict[str, tuple[str, ...]]:
    """By target, the relations that refer to it and that the run did not make itself."""
    if not deeds or deeds[0].kind in RELATIONS:
        return {}
    kind, side = deeds[0].kind, deeds[0].side
    keys = {f"ref:{kind}={deed.target}": deed.target for deed in deeds}
    wanted = sql_cast(list(keys), ARRAY(Text))
    own_id, own_keys = s.link.c[f"{side}_id"], s.link.c[f"{side}_keys"]
    linked = select(s.link.c.kind, own_id.label("id"), own_keys.label("keys")).where(
        s.link.c.pair == pair, s.link.c.kind.in_(RELATIONS), own_keys.op("&&")(wanted)
    )
    seen = select(s.sighting.c.kind, s.sighting.c.id, s.sighting.c["keys"]).where(
        s.sighting.c.pair == pair, s.sighting.c.kind.in_(RELATIONS), s.sighting.c.side == side,
        ~s.sighting.c.is_linked, ~s.sighting.c.is_deleted, s.sighting.c["keys"].op("&&")(wanted),
    )  # fmt: skip
    log = s.change_log.c
    made = select(log.kind, log.left_id if side is Side.LEFT else log.right_id).where(
        log.run == run_id, log.verb == "create", log.side == side, log.kind.in_(RELATIONS)
    )
    found: dict[str, set[str]] = {}
    with engine.connect() as tx:
        rows = tx.execute(linked.union_all(seen)).all()
        own = {(row[0], row[1]) for row in tx.execute(made)} if rows else set()
    for row in rows:
        if (row.kind, row.id) not in own:
            for key in row._mapping["keys"]:
                if key in keys:
                    found.setdefault(keys[key], set()).add(f"{row.kind} {row.id}")
    return {target: tuple(sorted(names)) for target, names in found.items()}


def undone_by(engine: Engine, plan_id: str) -> str | None:
    """The run that a saved plan takes back, if that is what it is for."""
    told = s.operation.c.refs["undoes"].astext
    with engine.connect() as tx:
        found = tx.execute(select(told).where(s.operation.c.plan == plan_id, told != "").limit(1)).scalar()
    return str(found) if found is not None else None


def lost(engine: Engine, run: RunRow) -> list[Row[Any]]:
    """Operations that the run sent and did not live to see the answer of: a later run settled them, and logged them."""
    op = s.operation.c
    until = select(s.run.c.finished_at).where(s.run.c.id == run.id).scalar_subquery()
    query = select(op.kind, op.side, op.source_id, op.target_id).where(
        op.pair == run.pair, op.sent_at >= run.started_at, op.sent_at <= until,
        or_(op.settled_at.is_(None), op.settled_at > until),
    )  # fmt: skip
    with engine.connect() as tx:
        return list(tx.execute(query.order_by(op.id)))
