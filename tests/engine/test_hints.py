"""What a run does with the word of a webhook: it reads by id what a listing may not show yet."""

from __future__ import annotations

from datetime import timedelta

import pytest

from syncd.core.model import Record, Side
from syncd.errors import HaltedError, SyncdError
from syncd.state import schema as s
from syncd.testing.memory import MemoryFault
from tests.engine.test_run import seed
from tests.engine.world import State, World


@pytest.fixture
def world(state: State) -> World:
    """Two systems in step, the CRM's index an hour behind from now on."""
    found = World(state)
    seed(found)
    found.settle()
    found.crm.lag = timedelta(hours=1)
    return found


def person(world: World) -> Record:
    (found,) = world.crm.all("contact")
    return found


def soil(world: World, kind: str, *ids: str) -> None:
    world.kept.soil(Side.RIGHT, kind, ids, world.clock())


def marks(world: World) -> dict[tuple[str, str, str], str | None]:
    return {(row.side, row.kind, row.parent): row.watermark for row in world.rows(s.feed)}


def dirty(world: World) -> set[tuple[str, str]]:
    return {(row.kind, row.id) for row in world.rows(s.dirty)}


def reads(world: World) -> list[str]:
    return [call[1] for call in world.crm.calls if call[0] == "read"]


def test_what_the_index_does_not_show_yet_arrives_by_id(world: World) -> None:
    """In the very next run, once, and the watermark stays where the listing brought it."""
    world.crm.edit("contact", person(world).id, phone="+46 70 1")
    before = marks(world)
    assert world.run(is_sweep=False).operations == 0
    soil(world, "contact", person(world).id)
    assert world.run(is_sweep=False).updated["contact", Side.LEFT] == 1
    assert [each.values["phone"] for each in world.hub.all("contact")] == ["+46 70 1"]
    assert marks(world)["right", "contact", ""] == before["right", "contact", ""]
    assert dirty(world) == set()


def test_the_listing_that_lags_behind_takes_nothing_back(world: World) -> None:
    """It shows the past until its hour is over, then the same once more: neither is news."""
    world.crm.edit("contact", person(world).id, phone="+46 70 1")
    soil(world, "contact", person(world).id)
    world.run(is_sweep=False)
    for _ in range(3):
        assert world.run().operations == 0
        world.clock.sleep(1_300)
    assert [each.values["phone"] for each in world.hub.all("contact")] == ["+46 70 1"]
    world.settle()


def test_a_new_record_and_a_deleted_one_arrive_by_id_too(world: World) -> None:
    """And what is gone stays gone, though the index shows it for some minutes yet: it is read until that is over."""
    world.crm.lag = timedelta(seconds=240)
    new = world.crm.add("contact", {"last_name": "Ek", "email": "ek@example.com"})
    soil(world, "contact", new)
    assert world.run(is_sweep=False).created["contact", Side.LEFT] == 1
    world.crm.remove("contact", new)
    soil(world, "contact", new)
    assert world.run(is_sweep=False).deleted["contact", Side.LEFT] == 1
    for _ in range(4):
        world.clock.sleep(50)
        assert world.run(is_sweep=False).operations == 0
        assert (len(world.hub.all("contact")), dirty(world)) == (1, {("contact", new)})
    world.clock.sleep(150)
    world.run(is_sweep=False)
    assert dirty(world) == set()
    world.settle()


def test_what_was_heard_by_a_clock_that_was_wrong_is_not_read_until_that_time_comes(world: World) -> None:
    """A day fast when the word came, right now: what is gone is read once."""
    world.kept.soil(Side.RIGHT, "contact", ["nowhere"], world.clock() + timedelta(days=1))
    world.run(is_sweep=False)
    assert dirty(world) == set()


def test_a_word_of_a_record_that_nobody_knows_is_no_matter(world: World) -> None:
    """It is not there, so nothing comes of it and nothing is kept; nor of kinds that the pair does not sync."""
    before = world.rows(s.sighting)
    soil(world, "contact", "nowhere", "of another portal")
    soil(world, "property", "1")
    world.clock.sleep(400)
    assert world.run(is_sweep=False).operations == 0
    assert world.rows(s.sighting) == before
    assert dirty(world) == {("property", "1")}


def test_many_are_read_in_the_vendors_batch_size(world: World) -> None:
    new = [world.crm.add("company", {"name": f"Firm {number}", "domain": f"f{number}.se"}) for number in range(25)]
    soil(world, "company", *new)
    world.crm.calls.clear()
    world.run(is_sweep=False)
    assert reads(world).count("company") == 3
    assert len(world.hub.all("company")) == 26


def test_a_run_that_dies_before_its_feed_is_advanced_is_told_again(world: World) -> None:
    """The word stays until what came after it is done: read twice is read once."""
    world.crm.edit("contact", person(world).id, phone="+46 70 1")
    soil(world, "contact", person(world).id)
    fault = MemoryFault("list", "before", times=10**6)
    world.crm.faults.append(fault)
    with pytest.raises(SyncdError):
        world.run(is_sweep=False)
    assert dirty(world) == {("contact", person(world).id)}
    fault.times = 0
    world.run(is_sweep=False)
    assert dirty(world) == set()
    assert [each.values["phone"] for each in world.hub.all("contact")] == ["+46 70 1"]


def test_what_is_listed_whole_is_read_by_its_id_all_the_same(world: World) -> None:
    """Once, and only what was spoken of: a listing says nothing of what it lacks, and may be of an index."""
    world.crm.edit("contact", person(world).id, phone="+46 70 1")
    soil(world, "contact", person(world).id)
    world.clock.sleep(86_400)
    world.crm.calls.clear()
    world.run(is_sweep=False)
    assert (reads(world), dirty(world)) == (["contact"], set())


def test_what_a_whole_listing_lacks_stays_gone_though_the_index_shows_it_again(world: World) -> None:
    """What a webhook spoke of and the listing did not show is read, and read again until the index has followed."""
    world.crm.lag = timedelta(seconds=240)
    world.clock.sleep(86_200)
    new = world.crm.add("contact", {"last_name": "Ek", "email": "ek@example.com"})
    soil(world, "contact", new)
    assert world.run(is_sweep=False).created["contact", Side.LEFT] == 1
    world.clock.sleep(200)
    world.crm.remove("contact", new)
    soil(world, "contact", new)
    assert world.run(is_sweep=False).deleted["contact", Side.LEFT] == 1
    world.clock.sleep(100)
    assert world.run(is_sweep=False).operations == 0
    assert len(world.hub.all("contact")) == 1


def test_what_went_before_it_was_linked_is_not_made_by_the_listing_that_lacks_it(world: World) -> None:
    """A run died after it had seen the record: nothing but the word tells the next one, which lists everything."""
    world.crm.lag = timedelta(0)
    new = world.crm.add("contact", {"last_name": "Ek", "email": "ek@example.com"})
    assert world.run(reason="plan").operations == 0
    world.crm.remove("contact", new)
    soil(world, "contact", new)
    world.clock.sleep(86_400)
    assert world.run(is_sweep=False).created["contact", Side.LEFT] == 0
    world.settle()
    assert new not in {row.id for row in world.rows(s.sighting)}


def test_without_a_word_nothing_is_read_by_id(world: World) -> None:
    """An idle run costs what it cost before there were webhooks."""
    world.crm.calls.clear()
    world.run(is_sweep=False)
    assert reads(world) == []


def swept_lately(world: World) -> None:
    """The CRM's sweeps are dear, and one has just been."""
    held = world.kept.acquire("test", world.clock())
    assert held is not None
    store = world.kept.store(held)
    noted = {"pair": "t/crm", "side": "right", "kind": "deal_contact", "parent": "", "cost": 10**6}
    with store.transaction():
        store.rows.save_feeds([{**noted, "swept_at": world.clock()}])
    world.kept.release(held)


def test_associations_are_read_below_the_parent_that_was_spoken_of_and_no_other(world: World) -> None:
    """A kind that only a sweep shows, between two sweeps: a lone visit, which is no sweep and no full listing."""
    world.crm.lag = timedelta(0)
    other = world.hub.add("deal", {"name": "Kv. Duvan 1"})
    world.settle()
    deal = next(each.id for each in world.crm.all("deal") if each.values["name"] == "Kv. Svalan 4")
    new = world.crm.add("contact", {"last_name": "Ek", "email": "ek@example.com"})
    world.run()
    swept_lately(world)
    world.crm.add("deal_contact", {}, refs={"deal": deal, "contact": new})
    before = marks(world)
    assert world.run(is_sweep=False).operations == 0
    soil(world, "deal_contact", deal, "nowhere")
    world.crm.calls.clear()
    assert world.run(is_sweep=False).created["deal_contact", Side.LEFT] == 1
    visits = [call for call in world.crm.calls if call[0] == "children"]
    assert len(visits) == 1, "the other deal was not visited"
    assert dirty(world) == set()
    feed = next(row for row in world.rows(s.feed) if (row.side, row.kind, row.parent) == ("right", "deal_contact", ""))
    assert (feed.cost, marks(world).keys()) == (10**6, before.keys())
    assert other in world.links("deal")
    world.settle()


def test_a_run_for_what_webhooks_told_looks_for_nothing_else(world: World) -> None:
    """Of the open deals one was spoken of, one is new; the others, and the sweep, are left to the next tick."""
    deals = {name: world.hub.add("deal", {"name": name}) for name in ("told", "silent")}
    contact = world.hub.add("contact", {"last_name": "Ek", "email": "ek@example.com"})
    world.settle()
    deals["new"] = world.hub.add("deal", {"name": "new"})
    for deal in deals.values():
        world.hub.add("deal_contact", {"classification": "contacted"}, refs={"deal": deal, "contact": contact})
    world.kept.hint(Side.LEFT, "deal_contact", [deals["told"]])
    for system in (world.hub, world.crm):
        system.calls.clear()
    assert world.run(is_sweep=False, is_told=True).created["deal_contact", Side.RIGHT] == 2
    visited = [call for system in (world.hub, world.crm) for call in system.calls if call[0] == "children"]
    assert len(visited) == 2, "the told one and the new one"
    assert world.run(is_sweep=False, is_told=True).operations == 0
    assert world.run(is_sweep=False).created["deal_contact", Side.RIGHT] == 1


def test_an_association_that_went_is_read_again_before_it_counts_as_gone(world: World) -> None:
    """A visit by a webhook judges as every visit does."""
    world.crm.lag = timedelta(0)
    (role,) = world.crm.all("deal_contact")
    swept_lately(world)
    world.crm.remove("deal_contact", role.id)
    soil(world, "deal_contact", str(role.parent))
    world.crm.calls.clear()
    assert world.run(is_sweep=False).deleted["deal_contact", Side.LEFT] == 1
    assert "deal_contact" in reads(world)


def people(world: World, count: int) -> list[str]:
    """So many contacts more, in step; the CRM's ids of them."""
    ids = [world.hub.add("contact", {"last_name": f"No {each}"}) for each in range(count)]
    world.crm.lag = timedelta(0)
    world.settle()
    return [world.links("contact")[id_] for id_ in ids]


def test_records_that_cannot_be_read_all_at_once_are_not_taken_for_deleted(world: World) -> None:
    """A webhook says that something moved, not that it is gone: absence is doubted as in a listing."""
    ids = people(world, 11)
    hidden = {id_: world.crm.records["contact"].pop(id_) for id_ in ids[:4]}
    soil(world, "contact", *ids)
    before = world.writes()
    with pytest.raises(HaltedError, match="4 of 12 known contact are missing"):
        world.run(is_sweep=False)
    assert world.writes() == before
    assert [row for row in world.rows(s.sighting) if row.is_deleted] == []
    assert dirty(world) == {("contact", id_) for id_ in ids}, "what was told stays until it is believed"
    world.crm.records["contact"] |= hidden
    assert world.run(is_sweep=False).operations == 0
    assert dirty(world) == set()


def test_what_a_system_shows_as_deleted_needs_no_other_belief(world: World) -> None:
    """Four were deleted, which a listing tells in the same run: the brakes on deletions let a handful pass."""
    ids = people(world, 11)
    for id_ in ids[:4]:
        world.crm.remove("contact", id_)
    soil(world, "contact", *ids[:4])
    assert world.run().deleted["contact", Side.LEFT] == 4
    world.settle()
