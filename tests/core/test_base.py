"""How a base moves: never ahead of what a side holds or returned, and not at all for what still waits."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from syncd.core.base import UNMOVED, Halves, agreed, confirmed, founded, not_stored
from syncd.core.mapping import hashed
from syncd.core.merge import FieldConflict, Half, Merged, Step
from syncd.core.model import FieldType, Side, Value

NAME = {"name": FieldType.TEXT}
WAITING = (
    Merged(to_left={"name": Step("x", "")}),
    Merged(to_right={"name": Step("x", "")}),
    Merged(conflicts=(FieldConflict("name", None, "l", "r", None, "hold"),)),
    Merged(blocked={"name": "closed"}),
)


@pytest.mark.parametrize("merged", WAITING)
def test_the_base_of_what_waits_stays(merged: Merged) -> None:
    """For a write, a person or a lock; its other fields move to what each side holds."""
    types = {**NAME, "city": FieldType.TEXT}
    left = Half({"name": "l", "city": "L"}, {"name": "was"})
    right = Half({"name": "r", "city": "R"}, {"name": "was"})
    assert agreed(types, left, right, merged) == {"city": ("L", "R")}


@pytest.mark.parametrize("merged", WAITING)
@pytest.mark.parametrize(
    ("left", "right", "halves"),
    [
        (Half({"name": "l"}, {}), Half({"name": None}, {}), {"name": (UNMOVED, None)}),
        (Half({"name": None}, {}), Half({"name": "r"}, {}), {"name": (None, UNMOVED)}),
        (Half({"name": "l"}, {}), Half({"name": "r"}, {}), {"name": (UNMOVED, UNMOVED)}),
        (Half({"name": "l"}, {"name": None}), Half({"name": None}, {}), {}),
        (Half({"name": "l"}, {}), Half({"name": None}, {"name": None}), {}),
        (Half({"name": "l"}, {}), Half({}, {}), {}),
        (Half({}, {}), Half({"name": "r"}, {}), {}),
    ],
)
def test_what_both_tell_for_the_first_time_is_remembered_as_told(
    merged: Merged, left: Half, right: Half, halves: Halves
) -> None:
    """That a side holds nothing is not the same as no base: nobody is a stranger to the field any more.

    Of what the other holds no base is known: it was never agreed upon, and not agreed to be empty either.
    """
    assert agreed(NAME, left, right, merged) == halves


@pytest.mark.parametrize(
    ("left", "right", "halves"),
    [
        (Half({"name": "l"}, {}), Half({"name": "r"}, {"name": "was"}), {"name": ("l", "r")}),
        (Half({"name": "l"}, {}), Half({}, {"name": "was"}), {"name": ("l", "was")}),
        (Half({}, {"name": "was"}), Half({"name": None}, {}), {"name": ("was", None)}),
        (Half({}, {"name": "was"}), Half({}, {"name": "was"}), {}),
    ],
)
def test_what_nothing_waits_for_is_as_each_side_holds_it(
    left: Half, right: Half, halves: Mapping[str, tuple[Value, Value]]
) -> None:
    """One that says nothing holds what it held; where both are silent nothing is known anew."""
    assert agreed({**NAME, "city": FieldType.TEXT}, left, right, Merged()) == halves
    decided = FieldConflict("name", None, "l", "r", Side.LEFT, "propstreet")
    assert agreed(NAME, left, right, Merged(conflicts=(decided,))) == halves


@pytest.mark.parametrize(
    ("returned", "there"),
    [({"name": "cut"}, "cut"), ({"name": None}, None), ({}, "sent"), ({"city": "x"}, "sent")],
)
def test_an_update_makes_the_base_of_what_was_returned(returned: Mapping[str, Value], there: Value) -> None:
    """Never of what was sent, unless the answer does not tell; beside it stands what the source said."""
    steps = {"name": Step("sent", "")}
    held: tuple[dict[str, Value], dict[str, Value]] = ({"name": "older"}, {"name": "old"})
    source: dict[str, Value] = {"name": "said"}
    assert confirmed(NAME, Side.RIGHT, steps, source, held, returned) == {"name": ("said", there)}
    assert confirmed(NAME, Side.LEFT, steps, source, held, returned) == {"name": (there, "said")}
    assert confirmed(NAME, Side.LEFT, steps, {}, held, returned) == {"name": (there, None)}


@pytest.mark.parametrize(
    ("source", "known", "given", "returned", "there"),
    [
        ("a", "", "ab", "ab", "a"),
        ("a", "", "a", "a", "a"),
        ("ax", "x", "ax", "ax", "ax"),
        ("ax", "x", "a", "a", "ax"),
        ("a", "z", "zab", "zab", "za"),
        ("x", "x", "x", "x", "x"),
        ("a", "", "ab", "AB", "AB"),
        ("", "xb", "", "", ""),
        ("x", "x", "b", "b", "x"),
        ("a", "", "a", "ac", "ac"),
    ],
)
def test_of_a_set_only_what_came_from_the_source_is_settled(
    source: str, known: str, given: str, returned: str, there: str
) -> None:
    """What the target added or took off by itself, and keeps, has yet to reach the source."""
    types = {"tags": FieldType.SET}
    said, base, sent, kept, half = (frozenset(each) or None for each in (source, known, given, returned, there))
    steps = {"tags": Step(sent, "")}
    bases = {"tags": said}, {"tags": base}
    found = confirmed(types, Side.RIGHT, steps, {"tags": said}, bases, {"tags": kept})
    assert found == {"tags": (said, half)}
    assert confirmed(types, Side.RIGHT, steps, {"tags": said}, bases, {}) == {"tags": (said, sent)}
    erased = {"tags": said}, {"tags": hashed(FieldType.SET, base, "salt")}
    assert confirmed(types, Side.RIGHT, steps, {"tags": said}, erased, {"tags": kept}) == found


@pytest.mark.parametrize(
    ("saw", "own", "given", "half"),
    [
        ("a", "ab", "ab", "ab"),
        ("ab", "a", "a", "a"),
        ("ab", "a", "ab", "ab"),
        ("ab", "ab", "a", "ab"),
        ("a", "ab", "a", "a"),
        ("a", "", "a", "a"),
        ("b", "", "a", ""),
    ],
)
def test_what_the_plans_first_write_gave_one_side_stays_known_when_the_second_is_confirmed(
    saw: str, own: str, given: str, half: str
) -> None:
    """Both sides of a set are written by one plan; it saw the source as that was before the first write."""
    types = {"tags": FieldType.SET}
    wanted, mine, sent, after = (frozenset(each) or None for each in (saw, own, given, half))
    found = confirmed(
        types, Side.LEFT, {"tags": Step(sent, "")}, {"tags": wanted}, ({"tags": mine}, {}), {"tags": sent}
    )
    assert found["tags"][1] == after
    erased = {"tags": hashed(FieldType.SET, mine, "salt")}
    again = confirmed(types, Side.LEFT, {"tags": Step(sent, "")}, {"tags": wanted}, (erased, {}), {"tags": sent})
    assert again["tags"][1] == after


@pytest.mark.parametrize(
    ("steps", "source", "returned", "halves"),
    [
        ({"name": "sent"}, {"name": "said"}, {"name": "cut"}, {"name": ("said", "cut")}),
        ({"name": "sent"}, {"name": "said"}, {}, {"name": ("said", "sent")}),
        ({"name": "sent"}, {"name": "said"}, {"name": None}, {"name": (UNMOVED, None)}),
        ({}, {"name": "said"}, {"name": "default"}, {"name": (UNMOVED, UNMOVED)}),
        ({}, {"name": "said"}, {"name": None}, {"name": (UNMOVED, None)}),
        ({}, {"name": None}, {"name": "default"}, {"name": (None, UNMOVED)}),
        ({}, {"name": "the  same"}, {"name": "the same"}, {"name": ("the  same", "the same")}),
        ({}, {"name": None}, {"name": None}, {"name": (None, None)}),
        ({}, {"name": "said"}, {}, {}),
        ({}, {}, {"name": "default"}, {}),
    ],
)
def test_a_new_link_begins_with_what_was_stored_for_it(
    steps: Mapping[str, str], source: Mapping[str, Value], returned: Mapping[str, Value],
    halves: Halves,
) -> None:  # fmt: skip
    """What was not stored, and what the system put there by itself, is left to the next merge as news of both."""
    given = {name: Step(value, "created") for name, value in steps.items()}
    shares: dict[str, str | None] = {"name": None}
    assert founded(NAME, Side.RIGHT, given, source, returned, shares) == halves
    assert founded(NAME, Side.LEFT, given, source, returned, shares) == {
        name: (there, here) for name, (here, there) in halves.items()
    }


def test_what_a_create_shows_in_a_field_that_shares_another_ones_place_is_no_news() -> None:
    """A homepage kept where the domain is kept shows the domain that was given."""
    types = {"domain": FieldType.TEXT, "homepage": FieldType.TEXT}
    source: dict[str, Value] = {"domain": "a.se", "homepage": None}
    returned: dict[str, Value] = {"domain": "a.se", "homepage": "http://a.se"}
    given = {"domain": Step("a.se", "created")}
    shared = founded(types, Side.RIGHT, given, source, returned, {"homepage": "domain"})
    assert shared == {"domain": ("a.se", "a.se"), "homepage": (None, "http://a.se")}
    apart = founded(types, Side.RIGHT, given, source, returned, {})
    assert apart == {"domain": ("a.se", "a.se"), "homepage": (None, UNMOVED)}


@pytest.mark.parametrize(
    ("sent", "before", "returned", "is_ignored"),
    [
        ("new", "old", {"name": "old"}, True),
        ("new", "old", {"name": "new"}, False),
        ("new", "old", {"name": "ne"}, False),
        ("new", "old", {}, False),
        ("new", "new", {"name": "new"}, False),
        ("brand new", "old", {"name": "brand  new"}, False),
        ("brand new", "brand  new", {"name": "brand  new"}, False),
        ("new", "very old", {"name": "very  old"}, True),
        ("new", None, {"name": None}, True),
        (None, "old", {"name": "old"}, True),
    ],
)
def test_what_a_system_accepts_and_leaves_as_it_was_is_named(
    sent: Value, before: Value, returned: Mapping[str, Value], is_ignored: bool
) -> None:
    """Its answer differs from what was sent and says what was there before."""
    found = not_stored(NAME, {"name": Step(sent, "")}, {"name": before}, returned)
    assert found == ({"name"} if is_ignored else set())
