"""Many rows in one statement, and one text of it however many there are.

Rows travel as one JSON parameter that the server takes apart, ids as one array: so a statement is
compiled, parsed and sent once, where a list of parameters would cost a compilation for each length
and a message for each row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    Connection,
    Executable,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

Rows = Sequence[Mapping[str, object]]


def one_of(of: ColumnElement[Any], ids: Iterable[object]) -> ColumnElement[bool]:
    """Whether a column is one of these."""
    return of == any_(literal(list(ids), ARRAY(of.type)))


def insert_many(tx: Connection, into: Table, rows: Rows) -> None:
    """Insert rows, all with the same columns."""
    if rows:
        tx.execute(_insert(into, tuple(rows[0])), _given(rows))


def upsert_many(tx: Connection, into: Table, rows: Rows) -> None:
    """Insert rows by primary key, or replace what stands there; of two with one key the later counts."""
    if rows:
        names = [each.name for each in into.primary_key]
        distinct = {tuple(row[name] for name in names): row for row in rows}
        tx.execute(_upsert(into, tuple(rows[0])), _given(distinct.values()))


def update_many(tx: Connection, of: Table, rows: Rows) -> None:
    """Change rows by their primary key; all rows change the same columns."""
    if rows:
        tx.execute(_update(of, tuple(rows[0])), _given(rows))


@cache
def _insert(into: Table, names: tuple[str, ...]) -> Executable:
    return insert(into).from_select(names, select(*_taken_apart(into, names)), include_defaults=False)


@cache
def _upsert(into: Table, names: tuple[str, ...]) -> Executable:
    key = [each.name for each in into.primary_key]
    statement = upsert(into).from_select(names, select(*_taken_apart(into, names)), include_defaults=False)
    rest = {name: statement.excluded[name] for name in names if name not in key}
    return statement.on_conflict_do_update(index_elements=key, set_=rest)


@cache
def _update(of: Table, names: tuple[str, ...]) -> Executable:
    given, key = _taken_apart(of, names), [each.name for each in of.primary_key]
    same = (of.c[name] == given[name] for name in key)
    return update(of).where(*same).values({name: given[name] for name in names if name not in key})


def _taken_apart(table: Table, names: tuple[str, ...]) -> Any:
    """The columns of the rows that come in the parameter ``given``."""
    typed = (column(name, table.c[name].type) for name in names)
    return func.json_to_recordset(cast(bindparam("given", type_=Text), JSON)).table_valued(*typed).render_derived(
        "given", with_types=True
    ).c  # fmt: skip


def _given(rows: Iterable[Mapping[str, object]]) -> dict[str, str]:
    return {"given": json.dumps(list(rows), default=_plain, ensure_ascii=False)}


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON")
