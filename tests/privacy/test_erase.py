"""Erasing a person: no value stays, and the sync goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from sqlalchemy import Engine

from syncd.core.merge import Flow, OnConflict, Policy
from syncd.core.model import KINDS, Side, Value
from syncd.core.plan import KindRules, OnDelete
from syncd.errors import HaltedError, NotFoundError, SyncdError
from syncd.state import privacy
from syncd.state import schema as s
from syncd.state.lease import acquire, release
from tests.engine.world import PostgresState, World, rules
from tests.privacy.canaries import found_in, rows

pytestmark = pytest.mark.long

ANNA: Mapping[str, Value] = {
    "first_name": "Zqfirst1", "last_name": "Zqlast1", "email": "zqmail1@zqdomain.example",
    "other_emails": frozenset({"zqmail2@zqdomain.example"}), "phone": "+46 70 911 55 01",
    "linkedin": "https://www.linkedin.com/in/zqlinked1", "strategy": "Zqnote1 sells quietly",
    "tags": frozenset({"zqtag1", "zqtag2"}),
}  # fmt: skip


@pytest.fixture
def world(engine: Engine) -> World:
    return World(PostgresState(engine))


def settled(world: World) -> tuple[str, str]:
    """Anna, employed and interested, in step on both sides, edited and once in conflict: (left id, right id)."""
    hub = world.hub
    firm = hub.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
    anna = hub.add("contact", ANNA)
    hub.add("employment", {"job_title": "Zqtitle1", "is_primary": True}, refs={"contact": anna, "company": firm})
    deal = hub.add("deal", {"name": "Kv. Svalan 4"})
    hub.add("deal_contact", {"classification": "interested"}, refs={"deal": deal, "contact": anna})
    world.settle()
    there = world.links("contact")[anna]
    hub.edit("contact", anna, first_name="Zqfirst9")
    world.clock.sleep(60)
    world.crm.edit("contact", there, first_name="Zqfirst8", last_name="Zqlast8")
    world.settle()
    return anna, there


def erase(
    world: World, engine: Engine, ref: str = "zqmail1@zqdomain.example", *, is_dry: bool = False
) -> dict[str, int]:
    """As the command does it."""
    world.clock.sleep(60)
    held = acquire(engine, "t/crm", "eraser", world.clock())
    assert held is not None
    try:
        return privacy.erase(engine, held, ref, world.clock(), is_dry=is_dry)
    finally:
        release(engine, held)


def told(engine: Engine) -> dict[str, list[str]]:
    """The tables that tell anything of Anna, and what."""
    found: dict[str, list[str]] = {}
    for table, row in rows(engine):
        if canaries := found_in(row):
            found.setdefault(table, []).extend(canaries)
    return found


def test_nothing_of_a_person_is_left_in_any_table(world: World, engine: Engine) -> None:
    """Neither her record nor those that name her, neither history nor base tells any value of hers."""
    settled(world)
    assert {"link", "change_log", "conflict"} <= told(engine).keys()
    counts = erase(world, engine)
    assert told(engine) == {}
    assert all(counts[table] for table in ("link", "change_log", "conflict"))


@pytest.mark.parametrize("ref", ["propstreet:{left}", "contact/propstreet:{left}", "crm:{right}", "memory:{right}",
                                 "ZQMAIL2@zqdomain.example"])  # fmt: skip
def test_a_person_is_found_by_either_id_and_by_any_address(world: World, engine: Engine, ref: str) -> None:
    """Namespace or connector name the CRM; an additional address is an address."""
    left, right = settled(world)
    erase(world, engine, ref.format(left=left, right=right))
    assert told(engine) == {}


def test_after_it_a_run_plans_nothing_and_reads_nothing_back(world: World, engine: Engine) -> None:
    """The base still tells what moved: nothing did, also when both sides are listed whole."""
    settled(world)
    erase(world, engine)
    world.settle()
    world.clock.sleep(90_000)
    world.settle()
    assert told(engine) == {}


@pytest.mark.parametrize("side", [Side.LEFT, Side.RIGHT])
def test_after_it_an_edit_still_travels_and_tells_only_itself(world: World, engine: Engine, side: Side) -> None:
    """What did not change stays erased; what was changed arrives, and its echo is no change."""
    left, right = settled(world)
    erase(world, engine)
    if side is Side.LEFT:
        world.hub.edit("contact", left, last_name="Newname", tags=frozenset({"zqtag1"}))
    else:
        world.crm.edit("contact", right, last_name="Newname", tags=frozenset({"zqtag1"}))
    world.settle()
    for record in (world.hub.get("contact", left), world.crm.get("contact", right)):
        assert (record.values["last_name"], record.values["tags"]) == ("Newname", frozenset({"zqtag1"}))
        assert record.values["phone"] == ANNA["phone"]
    assert len(world.hub.all("contact")) == len(world.crm.all("contact")) == 1
    bases = " ".join(row for table, row in rows(engine, "link"))
    assert "Newname" in bases
    # One tag was taken off, so that the set is a new value; nothing else is read back.
    assert set(found_in(bases)) == {"zqtag"}


@pytest.mark.parametrize("side", [Side.LEFT, Side.RIGHT])
@pytest.mark.parametrize("rule", [OnDelete.ARCHIVE, OnDelete.HOLD])
def test_after_it_a_deletion_follows_the_tenants_rule(engine: Engine, side: Side, rule: OnDelete) -> None:
    """Erase in the systems may come after: archived is archived, held waits for a person."""
    kind = KindRules(deletes_to_left=rule, deletes_to_right=rule)
    world = World(PostgresState(engine), kinds=rules(contact=kind))
    left, right = settled(world)
    erase(world, engine)
    system, other = (world.hub, world.crm) if side is Side.LEFT else (world.crm, world.hub)
    system.remove("contact", left if side is Side.LEFT else right)
    world.settle()
    assert len(other.all("contact")) == (0 if rule is OnDelete.ARCHIVE else 1)
    assert len(system.all("contact")) == 0


def test_a_record_that_was_deleted_and_edited_is_restored_with_all_its_values(world: World, engine: Engine) -> None:
    """The edit wins over the deletion; for that the other values are read again, and never made of digests."""
    left, right = settled(world)
    erase(world, engine)
    world.hub.remove("contact", left)
    world.crm.edit("contact", right, last_name="Newname")
    world.settle()
    (restored,) = world.hub.all("contact")
    assert restored.values == {**world.crm.get("contact", right).values}
    assert (restored.values["last_name"], restored.values["email"]) == ("Newname", ANNA["email"])


def test_one_way_puts_back_a_value_that_was_erased_here_by_reading_it_again(engine: Engine) -> None:
    """Typed over at the sink, the source's value is needed although nothing moved there."""
    world = World(PostgresState(engine), kinds=rules(contact=KindRules(default=Policy(Flow.TO_CRM))))
    anna = world.hub.add("contact", ANNA)
    world.settle()
    erase(world, engine)
    world.crm.edit("contact", world.links("contact")[anna], strategy="typed over")
    world.settle()
    assert world.crm.all("contact")[0].values["strategy"] == ANNA["strategy"]


def test_a_second_record_with_her_address_is_still_seen_to_be_a_double(world: World, engine: Engine) -> None:
    """Keys are digests, so that they are there when the address is gone: no second contact is made."""
    settled(world)
    erase(world, engine)
    world.crm.add("contact", {"email": ANNA["email"], "last_name": "Again"})
    world.settle()
    assert len(world.hub.all("contact")) == 1
    assert [row.kind for row in world.rows(s.match_review)] == ["contact"]


def test_a_dry_run_counts_and_changes_nothing(world: World, engine: Engine) -> None:
    """Counts by table, as the real one gives them."""
    settled(world)
    before = list(rows(engine))
    counts = erase(world, engine, is_dry=True)
    after = list(rows(engine))
    assert [row for row in after if row[0] != "pair"] == [row for row in before if row[0] != "pair"]
    assert counts == erase(world, engine)


def test_erasing_twice_is_erasing_once(world: World, engine: Engine) -> None:
    """The second time she is found, by the digest of her address, and nothing is left to do."""
    settled(world)
    erase(world, engine)
    before = [row for row in rows(engine) if row[0] != "pair"]
    assert set(erase(world, engine).values()) == {0}
    assert [row for row in rows(engine) if row[0] != "pair"] == before


def test_somebody_of_whom_nothing_is_known_cannot_be_erased(world: World, engine: Engine) -> None:
    """A mistyped address must not look like a success; and the message does not repeat it."""
    settled(world)
    for ref in ("nobody@zqdomain.example", "propstreet:nobody", "deal/propstreet:1", "elsewhere:1"):
        with pytest.raises(NotFoundError) as refused:
            erase(world, engine, ref)
        assert "nobody" not in str(refused.value)
    assert told(engine) != {}


def test_an_address_that_several_have_does_not_say_who_is_meant(world: World, engine: Engine) -> None:
    """A shared address erases nobody; the message names the ids, and one of them erases one."""
    left, _ = settled(world)
    mailbox = {"other_emails": frozenset({"zqmail2@zqdomain.example"})}
    other = world.hub.add("contact", {"first_name": "Otto", "email": "otto@nordhaus.se", **mailbox})
    world.settle()
    with pytest.raises(SyncdError, match=f"propstreet:{left}.*propstreet:{other}") as refused:
        erase(world, engine, "zqmail2@zqdomain.example")
    assert found_in(str(refused.value)) == []
    erase(world, engine, f"propstreet:{left}")
    assert {table: set(found) for table, found in told(engine).items()} == {"sighting": {"zqmail", "zqdomain"}}


def test_others_keep_what_is_theirs(world: World, engine: Engine) -> None:
    """A colleague at the same company, in the same deal, is not touched."""
    settled(world)
    world.hub.add("contact", {"first_name": "Otto", "email": "otto@nordhaus.se", "phone": "+46701112233"})
    world.settle()
    erase(world, engine)
    kept = " ".join(row for _, row in rows(engine, "link"))
    assert all(value in kept for value in ("Otto", "otto@nordhaus.se", "+46701112233"))


def test_whoever_is_gone_from_both_systems_is_erased_from_the_history(world: World, engine: Engine) -> None:
    """The usual order: deleted there first, so that only the history knows her address, her job and her former ids."""
    left, _ = settled(world)
    for kind in ("deal_contact", "employment", "contact"):
        for record in world.hub.all(kind):
            world.hub.remove(kind, record.id)
        world.settle()
        assert world.links(kind) == {}
    assert "Zqtitle" in told(engine)["change_log"]
    erase(world, engine, f"propstreet:{left}")
    assert told(engine) == {}


def test_the_history_from_before_a_merge_is_hers_too(world: World, engine: Engine) -> None:
    """Under the id that she had before, and that only the history knows."""
    _, right = settled(world)
    double = world.crm.add("contact", {"first_name": "Zqfirst2"})
    world.crm.merge("contact", double, right)
    world.settle()
    erase(world, engine)
    assert told(engine) == {}


def test_the_history_is_hers_however_often_her_ids_changed(world: World, engine: Engine) -> None:
    """Made again under a new id on one side, then merged under a new id on the other: the first lines name neither."""
    left, right = settled(world)
    world.hub.remove("contact", left)
    world.crm.edit("contact", right, last_name="Zqlast5")
    world.settle()
    survivor = world.crm.add("contact", {"first_name": "Zqfirst2"})
    world.crm.merge("contact", survivor, right)
    world.settle()
    ((anew, there),) = world.links("contact").items()
    assert left != anew and right != there
    erase(world, engine, f"propstreet:{anew}")
    assert told(engine) == {}


def _plan_that_waits(world: World, left: str) -> None:
    world.is_approved = False
    world.hub.edit("contact", left, last_name="Zqlast7")
    world.clock.sleep(30)
    with pytest.raises(HaltedError):
        world.run()


def test_an_open_plan_that_touches_her_is_made_anew(world: World, engine: Engine) -> None:
    """A plan is shown to a person with its values, so that it cannot stay; the next run plans the same again."""
    left, right = settled(world)
    _plan_that_waits(world, left)
    assert "operation" in told(engine)
    counts = erase(world, engine)
    assert counts["plan"] == 1
    assert "operation" not in told(engine)
    assert world.rows(s.plan)[-1].state == "discarded"
    world.is_approved = True
    world.settle()
    assert world.crm.get("contact", right).values["last_name"] == "Zqlast7"


def test_a_conflict_that_waits_is_kept_without_its_values(engine: Engine) -> None:
    """Both sides still differ, and a person still has to say: what is shown is that something was erased."""
    held = KindRules(policies={"last_name": Policy(conflict=OnConflict.HOLD)})
    world = World(PostgresState(engine), kinds=rules(contact=held))
    anna = world.hub.add("contact", ANNA)
    world.settle()
    there = world.links("contact")[anna]
    world.hub.edit("contact", anna, last_name="Zqlast3")
    world.crm.edit("contact", there, last_name="Zqlast4")
    world.settle()
    erase(world, engine)
    world.settle()
    assert told(engine) == {}
    (row,) = [each for each in world.rows(s.conflict) if each.settled_at is None]
    assert (row.left_value, row.right_value) == ("(erased)", "(erased)")


def test_nobody_is_erased_under_writes_whose_answer_is_unknown(world: World, engine: Engine) -> None:
    """What such a write held is needed to find out what became of it."""
    left, _ = settled(world)
    _plan_that_waits(world, left)
    with engine.begin() as tx:
        tx.execute(s.operation.update().where(s.operation.c.state == "planned").values(state="sent"))
    with pytest.raises(SyncdError, match="not settled"):
        erase(world, engine)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_operation_held_is_gone_when_it_has_ended(world: World, engine: Engine, kind: str) -> None:
    """Done, failed or dropped: the history has what was changed, the journal does not need it any more."""
    settled(world)
    closed = [row for row in world.rows(s.operation) if row.kind == kind and row.state in ("done", "failed", "dropped")]
    assert closed
    assert [held for row in closed for name in _VALUES if (held := getattr(row, name))] == []


_VALUES = ("steps", "before", "source", "conflicts", "because")


def test_what_a_plan_held_is_gone_when_another_takes_its_place(world: World, engine: Engine) -> None:
    """A pair that waits makes a plan in every run; only the last one is there to be looked at."""
    left, _ = settled(world)
    for _ in range(2):
        _plan_that_waits(world, left)
    states = {row.id: row.state for row in world.rows(s.plan)}
    holding = {states[row.plan] for row in world.rows(s.operation) if row.steps}
    assert holding == {"open"}
