"""What a run of a pair in step costs the database: hundreds of pairs do one every half minute."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event

from syncd.wiring import run_pair
from tests.cli.test_cli import Desk, desk, folder, in_step
from tests.faults.harness import CRMS, Pair

__all__ = ["desk", "folder"]

WRITE = re.compile(r"\b(?:INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)")


@contextmanager
def heard(engine: Engine) -> Iterator[list[str]]:
    """The statements that the database is asked meanwhile."""
    said: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        said.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", note)


def statements(desk: Desk, pair: Pair) -> list[str]:
    """Those of one scheduled run, but for the ones about the vendors' quotas, which depend on the time of day."""
    with heard(desk.service.engine) as said:
        result = run_pair(desk.service, *pair.config(), "run", is_sweep=False, is_scheduled=True)
    assert (result.state, result.report.operations, result.write_calls) == ("done", 0, 0)
    return [each for each in said if "budget" not in each and "advisory" not in each]


@pytest.mark.parametrize("connector", CRMS)
def test_a_run_of_a_pair_in_step_writes_itself_down_and_nothing_else(desk: Desk, connector: str) -> None:
    """Its own row and its lease; and it asks as much of the database however many records there are."""
    pair = desk.tenant(connector)
    pair.seed(contacts=3, deals=2)
    in_step(pair)
    statements(desk, pair)  # both accounts are looked at, as they are once an hour
    few = statements(desk, pair)
    for number in range(100, 140):
        pair.hub_contact(number)
    in_step(pair)
    many = statements(desk, pair)
    assert {table for each in (*few, *many) for table in WRITE.findall(each)} == {"pair", "run"}
    assert len(many) == len(few) < 60
