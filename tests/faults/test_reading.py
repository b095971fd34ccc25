"""Reading: whatever moves while we read, however many share an instant or show late, none is missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.propstreet.emulator import PropstreetEmulator
from connectors.salesforce.emulator import SalesforceEmulator
from syncd.connector import Pull
from syncd.core.model import Side
from syncd.testing.emulator import ManualClock
from tests.faults.harness import World, mark, meanwhile, since, world_of

pytestmark = pytest.mark.long

Make = Callable[..., World]

SYSTEMS = ("propstreet", "hubspot", "salesforce")
#: Many edits at once are what is tested here, not the brakes.
NO_BRAKES: dict[str, Any] = {
    "limits": {name: {"floor": 100_000} for name in ("creates", "one_field", "blankings", "vanished", "deletes")}
}
#: Requests that show a page of contacts, in a delta.
PAGES = {
    "propstreet": ("GET", "/network/contacts$"),
    "hubspot": ("POST", "/contacts/search$"),
    "salesforce": ("*", "/composite$|/queryAll/|/query/"),
}


@pytest.fixture
def make(engine: Engine, tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:
        yield lambda connector="hubspot", **options: stack.enter_context(
            world_of(engine, tmp_path, connector, extra=NO_BRAKES, **options)
        )


def with_pages(make: Make, system: str, size: int, **options: Any) -> World:
    """A world in which the system shows small pages (HubSpot's are 100 in listings and 200 in searches)."""
    if system == "salesforce":
        return make("salesforce", page_size=size, **options)
    return make("hubspot", hub={"page_cap": size} if system == "propstreet" else {}, **options)


def rename(world: World, system: str, number: int, last: str) -> None:
    """A person renames contact ``number`` of the system."""
    if system == "propstreet":
        world.hub_rename(f"hub{number}@example.com", last)
    else:
        world.crm_rename(f"crm{number}@example.com", last)


def add(world: World, system: str, number: int) -> None:
    if system == "propstreet":
        world.hub_contact(number)
    else:
        world.crm_contact(number)


def name_of(world: World, on: str, system: str, number: int) -> str:
    """The last name that side ``on`` holds of a contact of ``system``."""
    email = f"{'hub' if system == 'propstreet' else 'crm'}{number}@example.com"
    (row,) = [row for row in world.picture()[f"{on} contact"] if row[0] == email]
    return row[2]


def other_side(system: str) -> str:
    return "crm" if system == "propstreet" else "propstreet"


# --- many ---------------------------------------------------------------------------------


def test_twelve_thousand_changed_deals_come_without_a_search_past_ten_thousand(make: Make) -> None:
    """HubSpot's search ends at 10,000 results: every page starts anew from the last time seen, none is skipped."""
    world = make("hubspot", clock=ManualClock())
    crm = world.crm
    assert isinstance(crm, HubSpotEmulator)
    watermark = "2026-11-20T07:59:00.000Z"
    wanted = set()
    for number in range(12_000):
        wanted.add(crm.add("deals", {"dealname": f"D{number}", "dealstage": "qualifiedtobuy", "pipeline": "default"}))
        if number % 3 == 0:
            world.clock.advance(0.007)
    connector = world.connect(Side.RIGHT)
    place = mark(crm)
    seen: list[str] = []
    for page in connector.pull(Pull(("deal",), {"deal": watermark})):
        assert page.refused == ()
        seen += [record.id for record in page.records]
    connector.close()
    searches = [call for call in since(crm, place) if call.path.endswith("/search")]
    assert {call.status for call in searches} == {200}
    assert all(not call.body.get("after") for call in searches)
    assert set(seen) == wanted
    assert len(searches) <= 12_000 / 200 * 1.1


@pytest.mark.parametrize("system", SYSTEMS)
def test_250_records_with_one_timestamp_all_arrive(make: Make, system: str) -> None:
    """An import stamps hundreds of rows with one instant, more than fit a page: each of them is read."""
    world = with_pages(make, system, 60, clock=ManualClock())
    assert world.run("backfill").state == "done"
    world.clock.advance(3600)
    for number in range(250):
        add(world, system, number)
    world.settle()
    assert world.picture()[f"{other_side(system)} contact"].total() == 250
    world.assert_in_step()


# --- moving -------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_records_that_change_while_they_are_paged_are_not_missed(make: Make, system: str) -> None:
    """Between two pages people edit what was shown, what is still to come, and add more: all of it arrives."""
    world = with_pages(make, system, 40)
    many = 230 if system == "hubspot" else 90
    for number in range(many):
        add(world, system, number)
    world.first()
    world.clock.advance(900)
    for number in range(many):
        rename(world, system, number, f"Nyman{number}")

    def edit() -> None:
        for number in (0, 1, many // 2, many - 2):
            rename(world, system, number, f"Senare{number}")
        add(world, system, 9_000)
        world.clock.advance(1)

    moment = meanwhile(world.hub if system == "propstreet" else world.crm, *PAGES[system], edit, skip=1)
    world.settle()
    assert moment.times == 0
    world.assert_in_step()
    found = [name_of(world, other_side(system), system, number) for number in (0, 1, 2, many // 2, many - 2, many - 1)]
    assert found == [f"Senare{n}" if n in (0, 1, many // 2, many - 2) else f"Nyman{n}" for n in
                     (0, 1, 2, many // 2, many - 2, many - 1)]  # fmt: skip
    assert name_of(world, other_side(system), system, 9_000)


@pytest.mark.parametrize(
    ("system", "shows_modified"), [*((each, None) for each in SYSTEMS), ("hubspot", False), ("hubspot", True)]
)
def test_records_that_change_behind_a_first_listing_are_not_missed(
    make: Make, system: str, shows_modified: bool | None
) -> None:
    """The first run lists everything; who edits a row after its page was read is found by the next run.

    Also where our own write comes after the edit, and its answer shows nothing of it but a time.
    """
    world = with_pages(make, system, 40, **({} if shows_modified is None else {"is_terse": True}))
    if shows_modified is not None:
        assert isinstance(world.crm, HubSpotEmulator)
        world.crm.terse_shows_modified = shows_modified
    many = 130
    for number in range(many):
        add(world, system, number)

    def edit() -> None:
        for number in (0, 3, many - 1):
            rename(world, system, number, f"Senare{number}")
        add(world, system, 9_000)
        world.clock.advance(1)

    listing = ("GET", "/objects/contacts$") if system == "hubspot" else PAGES[system]
    moment = meanwhile(world.hub if system == "propstreet" else world.crm, *listing, edit, skip=2)
    assert world.run("backfill").state == "done"
    assert moment.times == 0
    world.settle()
    world.assert_in_step()
    for number in (0, 3, many - 1):
        assert name_of(world, other_side(system), system, number) == f"Senare{number}"


# --- late ---------------------------------------------------------------------------------


def make_late(world: World, system: str, seconds: float) -> None:
    """What people write on contact 1 from now on shows so much later, with the time at which it was written."""
    if system == "propstreet":
        assert isinstance(world.hub, PropstreetEmulator)
        world.hub.late(seconds)
    elif isinstance(world.crm, HubSpotEmulator):
        (id_,) = [each for each, row in world.crm.all("contacts").items() if row["email"] == "crm1@example.com"]
        world.crm.slow_rows["contacts", id_] = seconds
    else:
        assert isinstance(world.crm, SalesforceEmulator)
        world.crm.late_commit_seconds = seconds


def back_in_time(world: World, system: str) -> None:
    """What people write from now on shows at once again."""
    if system == "propstreet":
        world.hub.late(0)
    elif isinstance(world.crm, SalesforceEmulator):
        world.crm.late_commit_seconds = 0


@pytest.mark.parametrize("late_seconds", [120, 3_000])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_row_that_shows_late_is_not_missed(make: Make, system: str, late_seconds: int) -> None:
    """A change is stamped now and shows minutes later, behind the watermark: the overlap brings it in."""
    world = make("salesforce" if system == "salesforce" else "hubspot")
    for number in range(3):
        add(world, system, number)
    world.first()
    world.clock.advance(8_000)
    world.settle()
    make_late(world, system, late_seconds)
    rename(world, system, 1, "Senare")
    back_in_time(world, system)
    world.clock.advance(20)
    rename(world, system, 2, "Genast")
    world.settle()
    there = other_side(system)
    assert name_of(world, there, system, 2) == "Genast"
    assert name_of(world, there, system, 1) != "Senare"
    # Within the usual overlap, or by the deep one that is taken every hour.
    steps, seconds = (1, late_seconds) if late_seconds < 300 else (8, 900)
    for _ in range(steps):
        world.clock.advance(seconds - 30)
        world.run(is_sweep=False)
    assert name_of(world, there, system, 1) == "Senare"
    world.settle()
    world.assert_in_step()


def test_a_change_stamped_before_the_last_one_that_was_seen_is_not_missed(make: Make) -> None:
    """A transaction that began first and committed last leaves a row with an earlier time and another tag."""
    world = make("hubspot")
    for number in range(2):
        add(world, "propstreet", number)
    world.first()
    world.clock.advance(60)
    rename(world, "propstreet", 0, "Genast")
    rename(world, "propstreet", 1, "Genast")
    world.settle()
    for number in range(2):
        rename(world, "propstreet", number, "Senare")
        (id_,) = [each["id"] for each in world.hub.all("contacts") if each["email"] == f"hub{number}@example.com"]
        world.hub.backdate("contacts", id_, 90)
    world.run(is_sweep=False)
    assert [name_of(world, "crm", "propstreet", number) for number in range(2)] == ["Senare", "Senare"]
    world.settle()
    world.assert_in_step()


@pytest.mark.parametrize("system", SYSTEMS)
def test_new_rows_that_show_late_are_not_missed(make: Make, system: str) -> None:
    """The same for records that are new: twenty, of which every other one shows two minutes late."""
    connector = "salesforce" if system == "salesforce" else "hubspot"
    world = make(connector, index_lag_seconds=90.0) if system == "hubspot" else make(connector)
    assert world.run("backfill").state == "done"
    for number in range(20):
        if number % 2:
            back_in_time(world, system)
        elif system != "hubspot":
            make_late(world, system, 120)
        add(world, system, number)
        if number % 5 == 4:
            world.run(is_sweep=False)
    back_in_time(world, system)
    for _ in range(6):
        world.run(is_sweep=False)
    assert world.picture()[f"{other_side(system)} contact"].total() == 20
    world.assert_in_step()
