"""Which records are the same thing: certain, ambiguous, none; the same answer from either side."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncd.core.match import Matched, Suspect, keys_of, match
from syncd.core.model import Record, Side, Value


def suspect(id_: str, *keys: str, mark: str | None = None, linked_to: str | None = None) -> Suspect:
    return Suspect(id_, frozenset(keys), mark, linked_to)


def pairs_of(found: Matched) -> set[tuple[str, str]]:
    return {(left, right) for left, right, _ in found.links}


@pytest.mark.parametrize(
    ("lefts", "rights", "linked", "reviewed"),
    [
        ([suspect("l1", mark="r1")], [suspect("r1")], {("l1", "r1")}, set()),
        ([suspect("l1")], [suspect("r1", mark="l1")], {("l1", "r1")}, set()),
        ([suspect("l1", "email:a")], [suspect("r1", "email:a")], {("l1", "r1")}, set()),
        ([suspect("l1", "email:a")], [suspect("r1", "email:a"), suspect("r2", "email:a")], set(), {"l1", "r1", "r2"}),
        ([suspect("l1", "email:a", mark="r2")], [suspect("r1", "email:a"), suspect("r2")], {("l1", "r2")}, {"r1"}),
        ([suspect("l1", "name:x")], [suspect("r1", "name:x")], set(), {"l1", "r1"}),
        ([suspect("l1", "email:a")], [suspect("r1", "email:a", linked_to="l9")], set(), {"l1"}),
        ([suspect("l1", "name:x")], [suspect("r1", "name:x", linked_to="l9")], set(), set()),
        ([suspect("l1", "domain:a", "name:x")], [suspect("r1", "domain:b", "name:x")], set(), set()),
        (
            [suspect("l1", "domain:a"), suspect("l2", "domain:a")],
            [suspect("r1", "domain:a")],
            set(),
            {"l1", "l2", "r1"},
        ),
        ([suspect("l1", mark="r1")], [suspect("r1"), suspect("r2", mark="l1")], set(), {"l1", "r1", "r2"}),
    ],
)
def test_a_certain_match_links_and_everything_less_goes_to_a_person(
    lefts: list[Suspect], rights: list[Suspect], linked: set[tuple[str, str]], reviewed: set[str]
) -> None:
    """Stored refs before strong keys before weak ones; several or weak ones are never guessed."""
    found = match(lefts, rights)
    assert pairs_of(found) == linked
    assert {review.id for review in found.reviews} == reviewed


def test_what_a_person_kept_apart_is_never_linked() -> None:
    """never: the two are not even candidates any more."""
    found = match([suspect("l1", "email:a")], [suspect("r1", "email:a")], frozenset({("l1", "r1")}))
    assert found == Matched((), ())


keys = st.frozensets(st.sampled_from(["email:a", "email:b", "name:x", "name:y"]), max_size=2)
ids = st.sampled_from(["1", "2", "3"])


def suspects(prefix: str, other: str) -> st.SearchStrategy[list[Suspect]]:
    mark = st.one_of(st.none(), ids.map(lambda i: other + i))
    one = st.builds(
        lambda i, k, m, t: Suspect(prefix + i, k, m, t), ids, keys, mark, st.one_of(st.none(), st.just("x"))
    )
    return st.lists(one, max_size=3, unique_by=lambda each: each.id)


@settings(max_examples=1500)
@given(suspects("l", "r"), suspects("r", "l"))
def test_swapping_the_sides_swaps_the_matches(lefts: list[Suspect], rights: list[Suspect]) -> None:
    """Neither side is preferred, and no record is ever linked twice or linked when it is taken."""
    one, other = match(lefts, rights), match(rights, lefts)
    assert pairs_of(one) == {(left, right) for right, left in pairs_of(other)}
    assert {(r.side, r.id) for r in one.reviews} == {(r.side.other, r.id) for r in other.reviews}
    linked = [id_ for pair in pairs_of(one) for id_ in pair]
    assert len(linked) == len(set(linked))
    taken = {each.id for each in (*lefts, *rights) if each.linked_to}
    assert not taken & set(linked)


def test_the_keys_of_a_contact_are_all_its_addresses_and_its_name_only_without_any() -> None:
    """Additional addresses count; a name is evidence only where there is no address."""
    values: dict[str, Value] = {"email": "A@x.se", "other_emails": frozenset({"b@x.se"}), "first_name": "Anna"}
    assert keys_of(Record("contact", "1", values)) == {"email:a@x.se", "email:b@x.se"}
    assert keys_of(Record("contact", "1", {"first_name": "Anna", "last_name": "Berg"})) == {"name:anna berg"}


def test_the_keys_of_a_company_are_domain_and_organisation_number() -> None:
    """Spelling of both does not matter."""
    values = {"domain": "www.Nordhaus.se", "org_number": "556900-1000", "name": "Nordhaus  AB"}
    assert keys_of(Record("company", "1", values)) == {"domain:nordhaus.se", "org:5569001000", "name:nordhaus ab"}


def test_sides_are_each_others_other() -> None:
    """Left and right are a pair."""
    assert Side.LEFT.other is Side.RIGHT
    assert Side.RIGHT.other is Side.LEFT
