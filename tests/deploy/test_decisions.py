"""The tables of docs/how-a-sync-decides.md, asked of the core."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest

from syncd.core.guard import Limits
from syncd.core.match import _RANKS
from syncd.core.merge import Flow, Half, OnConflict, Policy, merge
from syncd.core.model import FieldType, Record, Side, Value
from syncd.core.plan import Fields, KindRules, OnDelete, Sighted, decide

PAGE = (Path(__file__).parents[2] / "docs" / "how-a-sync-decides.md").read_text("utf-8")
#: What the page says of a deletion: the verbs of what is written, whether the link is over, whether a person is asked.
FOLLOWS: Mapping[str, tuple[list[str], bool, bool]] = {
    "made again: an edit wins over a deletion": (["create"], False, False),
    "deleted as well": (["delete"], False, False),
    "a person is asked: `syncd conflicts`, `syncd resolve`": ([], False, True),
    "the link ends, the record stays and is left alone": ([], True, False),
}
EARLIER, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


def table(heading: str) -> list[Mapping[str, str]]:
    """The rows of the table whose first column has this heading."""
    head, _, *rows = re.findall(r"^\|.*\|$", PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0], re.M)
    names = [cell.strip() for cell in head.strip("|").split("|")]
    return [dict(zip(names, (cell.strip() for cell in row.strip("|").split("|")), strict=True)) for row in rows]


def value(told: str) -> Value:
    return None if told == "empty" else told


def shown(written: Mapping[str, object]) -> str:
    if "f" not in written:
        return "-"
    found = written["f"]
    return "empty" if found is None else str(found)


@pytest.mark.parametrize("row", table("last agreed"), ids=lambda row: " ".join(list(row.values())[:4]))
def test_a_field_is_written_where_the_page_says(row: Mapping[str, str]) -> None:
    """Each row of the table, with either side edited last; the rule is the one that the page names."""
    flow, _, conflict = row["policy"].partition(", ")
    policy = Policy(Flow(flow), OnConflict(conflict or "newest"))
    base = {} if row["last agreed"] == "never" else {"f": value(row["last agreed"])}
    both = frozenset({"f"})
    for newer in Side:
        times = {side: LATER if side is newer else EARLIER for side in Side}
        left = Half({"f": value(row["Propstreet now"])}, base, times[Side.LEFT], writable=both)
        right = Half({"f": value(row["CRM now"])}, base, times[Side.RIGHT], writable=both)
        found = merge({"f": FieldType.TEXT}, left, right, {"f": policy})
        wanted = {Side.LEFT: row["to Propstreet"], Side.RIGHT: row["to the CRM"]}
        if wanted[Side.LEFT] == "the newer":
            wanted = {newer: "-", newer.other: shown({"f": (left if newer is Side.LEFT else right).values["f"]})}
        steps = {side: {name: step.value for name, step in found.to(side).items()} for side in Side}
        assert {side: shown(steps[side]) for side in Side} == wanted
        rules = {step.rule for side in Side for step in found.to(side).values()}
        assert rules == ({row["why"]} if rules else set())
        assert bool(found.held) is (row["why"] == "a person is asked")


@pytest.mark.parametrize("row", table("edited there since"), ids=lambda row: " ".join(list(row.values())[:2]))
def test_a_deletion_is_followed_by_what_the_page_says(row: Mapping[str, str]) -> None:
    """Whatever the tenant's rule, an edit wins; else the rule holds. Either side may be the one that is gone."""
    fields = Fields({"name": FieldType.TEXT}, *[frozenset({"name"})] * 4)
    now = "edited" if row["edited there since"] == "yes" else "as it was"
    alive = Sighted(Record("contact", "1", {"name": now}), {"name": "as it was"})
    gone = Sighted(Record("contact", "2", {}, is_deleted=True), {"name": "as it was"})
    asked = row["`deletes` in that direction"]
    for rule in list(OnDelete) if asked == "any" else [OnDelete(asked)]:
        chosen = KindRules(deletes_to_left=rule, deletes_to_right=rule)
        for left, right in ((alive, gone), (gone, alive)):
            decision = decide("contact", left, right, fields, chosen)
            verbs = [operation.verb for operation in decision.operations]
            found = (verbs, decision.is_over, decision.deletion is not None)
            assert found == FOLLOWS[row["what follows"]]


def test_the_brakes_are_those_of_the_page() -> None:
    told = {
        row["brake"].strip("`"): {"floor": int(row["floor"]), "share": float(row["share"])} for row in table("brake")
    }
    assert told == asdict(Limits())


def test_the_evidence_is_that_of_the_page_in_its_order() -> None:
    """No sort of evidence is missing, and none stands above one that is stronger."""
    told = [name for row in table("evidence") for name in re.findall(r"`([^`]+)`", row["evidence"])]
    assert sorted(told) == sorted(_RANKS)
    ranks = [_RANKS[name] for name in told]
    assert ranks == sorted(ranks)
