"""The brakes: which plans wait, and that nothing added to a plan releases one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core.guard import Census, Limit, Limits, brakes, emptied, shrunken
from syncd.core.merge import Step
from syncd.core.model import Address, Side, Value, Verb
from syncd.core.plan import Operation
from tests.core.cases import cases

TIGHT = Limits(
    deletes=Limit(1, 0.1),
    deletes_in_a_day=Limit(3, 0.2),
    creates=Limit(2, 0.1),
    blankings=Limit(1, 0.1),
    one_field=Limit(2, 0.2),
    vanished=Limit(1, 0.1),
)

Planned = tuple[Operation, Mapping[str, Value]]

verbs: st.SearchStrategy[Verb] = st.sampled_from(["create", "update", "delete", "mark"])
steps = st.dictionaries(st.sampled_from(["name", "tags"]), st.sampled_from([None, "new"]), max_size=2)
operations: st.SearchStrategy[Planned] = st.tuples(
    st.builds(
        lambda kind, verb, side, values: Operation(
            kind, verb, side, "1", Address("2"), {name: Step(value, "") for name, value in values.items()}
        ),
        st.sampled_from(["deal", "contact"]),
        verbs,
        st.sampled_from(Side),
        steps,
    ),
    st.dictionaries(st.sampled_from(["name", "tags"]), st.sampled_from([None, "was"]), max_size=2),
)
plans = st.lists(operations, max_size=12)
linked = st.dictionaries(st.sampled_from(["deal", "contact"]), st.integers(0, 60))


def counted(plan: Sequence[Planned]) -> Census:
    census = Census()
    for operation, before in plan:
        census.count(operation, before)
    return census


def held(plan: Sequence[Planned], links: Mapping[str, int], *, is_backfill: bool = False) -> set[str]:
    """What brakes a plan, without its numbers."""
    found = brakes(counted(plan), links, TIGHT, is_approved=True, is_backfill=is_backfill)
    assert len(found) == len(set(found))
    return {" ".join(word for word in reason.split() if not word.isdigit()) for reason in found}


@cases(500)
@given(plans, plans, linked)
def test_more_operations_never_release_a_brake(plan: list[Planned], more: list[Planned], links: dict[str, int]) -> None:
    """A plan that waits still waits when something is added to it, wherever that stands."""
    assert held(plan, links) <= held([*plan, *more], links)
    assert held([*plan, *more], links) == held([*more, *plan], links)


@cases(500)
@given(plans, linked)
def test_more_links_never_put_a_brake_on(plan: list[Planned], links: dict[str, int]) -> None:
    """What is much for a small tenant may be little for a large one, never the other way round."""
    assert held(plan, {kind: 10 * links.get(kind, 0) for kind in ("deal", "contact")}) <= held(plan, links)


@cases(300)
@given(plans, linked)
def test_a_backfill_is_stopped_by_all_but_its_creations(plan: list[Planned], links: dict[str, int]) -> None:
    """It is there to create; that is the only brake that it is spared."""
    usual, backfill = held(plan, links), held(plan, links, is_backfill=True)
    assert backfill == {reason for reason in usual if not reason.startswith("would create")}


@cases(300)
@given(plans, linked)
def test_the_sides_brake_alike(plan: list[Planned], links: dict[str, int]) -> None:
    """Neither system is more precious."""

    def turn(reason: str) -> str:
        words = {"(crm)": "(propstreet)", "(propstreet)": "(crm)"}
        return " ".join(words.get(word, word) for word in reason.split())

    turned = [
        (Operation(op.kind, op.verb, op.side.other, op.source, op.target, op.steps), before) for op, before in plan
    ]
    assert held(turned, links) == {turn(reason) for reason in held(plan, links)}


@cases(500)
@given(plans)
def test_each_operation_is_counted_once_by_what_it_does(plan: list[Planned]) -> None:
    """Blanking is giving nothing where something was; a field moves where something was; marks move nothing."""
    census = counted(plan)
    assert census.total == len(plan)
    for kind in ("deal", "contact"):
        for side in Side:
            own = [(op, before) for op, before in plan if (op.kind, op.side) == (kind, side)]
            updates = [(op.steps, before) for op, before in own if op.verb == "update"]
            over = [
                {name: step.value for name, step in steps_.items() if before.get(name) is not None}
                for steps_, before in updates
            ]
            assert census.creates[kind, side] == sum(op.verb == "create" for op, _ in own)
            assert census.deletes[kind, side] == sum(op.verb == "delete" for op, _ in own)
            assert census.blankings[kind, side] == sum(None in each.values() for each in over)
            for name in ("name", "tags"):
                assert census.moves[kind, side, name] == sum(name in each for each in over)


@cases(300)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 20), st.floats(0, 1))
def test_a_limit_is_its_floor_or_its_share_whichever_is_more(count: int, links: int, floor: int, share: float) -> None:
    """Neither alone; one that spares nobody's last record stops at all of three and more."""
    limit = Limit(floor, share)
    assert limit.allows(count, links) == (count <= floor or count <= int(links * share))
    assert limit.spares(count, links) == (limit.allows(count, links) and not (links >= 3 and count >= links))


@pytest.mark.parametrize(
    ("plan", "links", "reasons"),
    [
        ([("delete", Side.LEFT, {}, 2)], {"deal": 4}, ("would delete 2 deal of 4 linked (propstreet)",)),
        ([("delete", Side.RIGHT, {}, 2)], {}, ("would delete 2 deal of 0 linked (crm)",)),
        ([("create", Side.LEFT, {}, 3)], {}, ("would create 3 deal beside 0 linked (propstreet)",)),
        ([("create", Side.RIGHT, {}, 3)], {"deal": 7}, ("would create 3 deal beside 7 linked (crm)",)),
        ([("update", Side.RIGHT, {"name": None}, 2)], {}, ("would empty fields of 2 deal of 0 linked (crm)",)),
        ([("update", Side.LEFT, {"name": "x"}, 3)], {"deal": 9},
         ("would change name on 3 deal of 9 linked (propstreet)",)),
        ([("update", Side.LEFT, {"name": "x"}, 3)], {}, ("would change name on 3 deal of 0 linked (propstreet)",)),
        ([("delete", Side.RIGHT, {}, 1), ("create", Side.RIGHT, {}, 2), ("update", Side.RIGHT, {"name": None}, 1)],
         {}, ()),
        ([("delete", Side.RIGHT, {}, 2), ("create", Side.RIGHT, {}, 3), ("update", Side.RIGHT, {"name": None}, 3)], {},
         ("would delete 2 deal of 0 linked (crm)", "would create 3 deal beside 0 linked (crm)",
          "would empty fields of 3 deal of 0 linked (crm)", "would change name on 3 deal of 0 linked (crm)")),
        ([("update", Side.LEFT, {"name": "x"}, 3)], {"deal": 15}, ()),
        ([("create", Side.RIGHT, {}, 3)], {"deal": 30}, ()),
        ([("update", Side.LEFT, {"name": None}, 2)], {}, ("would empty fields of 2 deal of 0 linked (propstreet)",)),
        ([("mark", Side.RIGHT, {}, 99)], {}, ()),
        ([("delete", Side.RIGHT, {}, 5)], {"deal": 50}, ()),
        ([("delete", Side.RIGHT, {}, 6)], {"deal": 50}, ("would delete 6 deal of 50 linked (crm)",)),
    ],
)  # fmt: skip
def test_each_brake_tells_count_kind_and_side(
    plan: list[tuple[Verb, Side, dict[str, Value], int]], links: dict[str, int], reasons: tuple[str, ...]
) -> None:
    """Gravest first, as a person reads it."""
    found = [
        (Operation("deal", verb, side, "1", Address("2"), {n: Step(v, "") for n, v in values.items()}), {"name": "was"})
        for verb, side, values, count in plan
        for _ in range(count)
    ]
    assert brakes(counted(found), links, TIGHT, is_approved=True) == reasons


def test_a_backfill_may_create_without_end_and_delete_no_more_than_others() -> None:
    """Many creations are what it is for."""
    create = Operation("deal", "create", Side.LEFT, "1", None)
    delete = Operation("deal", "delete", Side.LEFT, "1", Address("2"))
    census = counted([(create, {})] * 99 + [(delete, {})] * 2)
    assert brakes(census, {}, TIGHT, is_approved=True, is_backfill=True) == (
        "would delete 2 deal of 0 linked (propstreet)",
    )
    assert len(brakes(census, {}, TIGHT, is_approved=True)) == 2


def test_the_share_of_nothing_is_nothing() -> None:
    """A kind without a link has no room but its floors."""
    every = Limit(0, 1.0)
    operation = Operation("deal", "update", Side.LEFT, "1", Address("2"), {"name": Step(None, "")})
    made = replace(operation, verb="create")
    census = counted([(operation, {"name": "was"}), (replace(operation, verb="delete"), {}), (made, {})])
    limits = Limits(deletes=every, creates=every, blankings=every, one_field=every)
    found = brakes(census, {"contact": 9}, limits, is_approved=True)
    assert [reason.split(" (")[0] for reason in found] == [
        "would delete 1 deal of 0 linked",
        "would create 1 deal beside 0 linked",
        "would empty fields of 1 deal of 0 linked",
        "would change name on 1 deal of 0 linked",
    ]


def test_a_field_that_fills_what_was_empty_brakes_nothing() -> None:
    """Nothing is lost by it, neither by blanking what is empty."""
    operation = Operation(
        "deal", "update", Side.LEFT, "1", Address("2"), {"name": Step("x", ""), "tags": Step(None, "")}
    )
    assert brakes(counted([(operation, {})] * 50), {}, TIGHT, is_approved=True) == ()


@cases(300)
@given(st.integers(0, 200), st.integers(0, 200), st.sampled_from(Side))
def test_a_listing_that_lacks_more_is_not_believed_sooner(vanished: int, known: int, side: Side) -> None:
    """Once too much is missing, more missing does not help; the sides are alike; nothing missing is believed."""
    vanished = min(vanished, known)
    reason = shrunken("deal", side, vanished, known, TIGHT)
    if reason is None:
        assert all(shrunken("deal", side, fewer, known, TIGHT) is None for fewer in range(vanished))
    else:
        name = "propstreet" if side is Side.LEFT else "crm"
        assert reason == f"{vanished} of {known} known deal are missing from a listing ({name})"
        assert shrunken("deal", side.other, vanished, known, TIGHT) is not None
    is_emptied = vanished == known >= 3
    assert (reason is not None) == (vanished > 0 and (is_emptied or vanished > max(1, int(known * 0.1))))


def test_all_there_is_is_no_handful_however_generous_the_limit() -> None:
    """Three of three is an outage or a wrong account until a person says otherwise; two of two may be an edit."""
    generous = Limit(99, 1.0)
    limits = Limits(deletes=generous, blankings=generous, one_field=generous, vanished=generous)
    delete = Operation("deal", "delete", Side.LEFT, "1", Address("2"))
    blank = Operation("deal", "update", Side.LEFT, "1", Address("2"), {"name": Step(None, "")})
    for count, linked_, is_stopped in ((3, 3, True), (4, 3, True), (3, 4, False), (2, 2, False)):
        census = counted([(delete, {}), (blank, {"name": "was"})] * count)
        assert len(brakes(census, {"deal": linked_}, limits, is_approved=True)) == 2 * is_stopped
        vanished = min(count, linked_)
        assert (shrunken("deal", Side.LEFT, vanished, linked_, limits) is not None) is is_stopped
    assert shrunken("deal", Side.LEFT, 0, 0, limits) is None


def test_a_row_of_small_runs_deletes_no_more_in_a_day_than_one_large_one() -> None:
    """What earlier runs deleted counts, by kind and side, against what was linked when the day began."""
    delete = Operation("deal", "delete", Side.LEFT, "1", Address("2"))
    census = counted([(delete, {})])

    def stopped(before: int, links: int, side: Side = Side.LEFT, kind: str = "deal") -> tuple[str, ...]:
        return brakes(census, {"deal": links}, TIGHT, is_approved=True, deleted={(kind, side): before})

    assert stopped(2, 5) == ()
    assert stopped(3, 5) == ("would delete 1 deal of 5 linked (propstreet), 4 within a day",)
    assert stopped(3, 16) == ("would delete 1 deal of 16 linked (propstreet), 4 within a day",)
    assert stopped(3, 17) == ()
    other = {("deal", Side.RIGHT): 9}
    open_ = Limits(deletes=Limit(9, 1.0), deletes_in_a_day=Limit(0, 0.0))
    assert brakes(census, {"deal": 5}, open_, is_approved=True, deleted=other) == ()
    assert stopped(9, 5, Side.RIGHT) == stopped(9, 5, kind="contact") == stopped(0, 5) == ()
    assert brakes(census, {}, TIGHT, is_approved=True, deleted={("deal", Side.LEFT): 1}) == ()
    alone = Limits(deletes=Limit(9, 0.0), deletes_in_a_day=Limit(0, 0.0))
    assert brakes(census, {"deal": 5}, alone, is_approved=True) == ()
    assert brakes(census, {"deal": 5}, alone, is_approved=True, deleted={("deal", Side.LEFT): 1}) != ()


@pytest.mark.parametrize(
    ("lost", "several", "reason"),
    [
        ([], 9, None),
        ([2, 2, 2, 2], 9, None),
        ([3], 9, None),
        ([3, 4, 2], 9, "2 of 9 parents lost all of their 7 known deal at once (crm)"),
        ([3, 4], 20, None),
        ([9], 20, None),
        ([10], 20, "1 of 20 parents lost all of their 10 known deal at once (crm)"),
        ([3] * 3, 3, "3 of 3 parents lost all of their 9 known deal at once (crm)"),
    ],
)
def test_parents_that_lose_all_their_children_are_doubted_together_and_a_crowd_by_itself(
    lost: list[int], several: int, reason: str | None
) -> None:
    """One or two children go every day; whole families at once are an outage until they are seen again."""
    assert emptied("deal", Side.RIGHT, lost, several, TIGHT) == reason
    assert emptied("deal", Side.LEFT, lost, several, TIGHT) == (reason and reason.replace("(crm)", "(propstreet)"))
