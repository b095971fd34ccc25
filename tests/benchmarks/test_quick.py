"""The budgets of the design, held at a size that takes seconds: calls, writes when idle, flat memory.

The daemon runs in a process of its own, as in ``make bench``; nothing here looks at how long it took.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from benchmarks.backfill import CRMS, Measured, Size, measure

pytestmark = pytest.mark.long

SMALL, LARGE = Size.of(20), Size.of(110)
#: A process has its own floor, and a page its own size; a tenant held in memory would take far more.
TOLERANCE = 24 * 2**20
CEILING = 300 * 2**20


@pytest.fixture(scope="module")
def measured(database_url: str) -> Mapping[tuple[str, Size], Measured]:
    return {(crm, size): measure(crm, size, database_url) for crm in CRMS for size in (SMALL, LARGE)}


def pages(count: int, size: int) -> int:
    return -(-count // size)


def least_of_propstreet(size: Size) -> int:
    """One token, full pages, an empty list of properties, one visit for each project."""
    lists = (size.companies, size.contacts, size.employments, size.projects)
    return 1 + sum(pages(count, 500) for count in lists) + 1 + size.projects


def least_of_hubspot(size: Size) -> int:
    """Section 11: what is fixed, an empty listing per kind, upserts of 100, associations of 2,000."""
    objects = sum(pages(count, 100) for count in (size.companies, size.contacts, size.projects))
    return 7 + 3 + objects + pages(size.employments, 2000) + pages(size.prospects, 2000)


def least_of_salesforce(size: Size) -> int:
    """One composite to read an empty org; per 200 a write and a read, for roles a look before.

    Employments come with their contacts.
    """
    objects = sum(pages(count, 200) for count in (size.companies, size.contacts, size.projects))
    prospects = size.prospects - size.prospects // 20
    return 1 + 2 * objects + 3 * pages(prospects, 200)


LEAST = {"hubspot": least_of_hubspot, "salesforce": least_of_salesforce}


@pytest.mark.parametrize("crm", CRMS)
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_the_least_possible_is_that_of_the_contracts(
    measured: Mapping[tuple[str, Size], Measured], crm: str, size: Size
) -> None:
    """What a connector calls the least is the contract's arithmetic of the tenant's size, whatever was done."""
    least = measured[crm, size].runs["backfill"].least
    assert least == {"propstreet": least_of_propstreet(size), "crm": LEAST[crm](size)}


@pytest.mark.parametrize("crm", CRMS)
def test_a_backfill_makes_hardly_more_calls_than_it_must(
    measured: Mapping[tuple[str, Size], Measured], crm: str
) -> None:
    """At most 1.10 calls for each one needed, beside a handful that does not grow with the tenant.

    HubSpot keeps reply dates in a text of the deal, which exists already and is read and written
    by itself; and what a deal is associated with is read before a prospect is put beside it.
    """
    calls, small = measured[crm, LARGE].runs["backfill"], measured[crm, SMALL].runs["backfill"]
    apart = 0
    if crm == "hubspot":
        apart = 2 * pages(LARGE.projects, 100) + 2 * pages(LARGE.projects, 1000) * pages(LARGE.prospects, 2000)
    for side in ("propstreet", "crm"):
        handful = max(0, small.made[side] - small.least[side])
        assert calls.made[side] <= 1.10 * (calls.least[side] + (apart if side == "crm" else 0)) + handful
    assert sum(calls.made.values()) <= 1.10 * sum(calls.least.values()) + apart


@pytest.mark.parametrize("crm", CRMS)
@pytest.mark.parametrize("name", ["idle", "idle, swept"])
def test_an_idle_run_makes_no_call_too_many(measured: Mapping[tuple[str, Size], Measured], crm: str, name: str) -> None:
    """With nothing new each side is asked exactly as often as it must be, and nothing is planned."""
    calls = measured[crm, LARGE].runs[name]
    assert calls.made == calls.least
    assert calls.operations == 0


@pytest.mark.parametrize("crm", CRMS)
def test_a_backfill_writes_each_record_once(measured: Mapping[tuple[str, Size], Measured], crm: str) -> None:
    """Into an empty CRM everything is created with all it has; nothing is written a second time."""
    held = LARGE.total - (LARGE.prospects // 20 if crm == "salesforce" else 0)
    assert measured[crm, LARGE].runs["backfill"].operations == held


@pytest.mark.parametrize("crm", CRMS)
def test_memory_does_not_grow_with_the_tenant(measured: Mapping[tuple[str, Size], Measured], crm: str) -> None:
    """The daemon's peak is the same for five times the records and more, and below the ceiling."""
    small, large = (measured[crm, size].peak_bytes for size in (SMALL, LARGE))
    assert large <= small + TOLERANCE
    assert large < CEILING
