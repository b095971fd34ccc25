"""Which records are the same thing: certain, ambiguous, none; the same answer from either side."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core.mapping import digest, hashed
from syncd.core.match import Answers, Candidate, Matched, Review, Suspect, address_key, keys_of, match, ref_key
from syncd.core.model import FIELDS, Record, Side, Value
from tests.core.cases import cases


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


keys = st.frozensets(st.sampled_from(["email:a", "email:b", "org:1", "domain:d", "name:x", "name:y"]), max_size=2)
never_pairs = st.frozensets(st.sampled_from([(f"l{a}", f"r{b}") for a, b in product("123", "123")]), max_size=2)
ids = st.sampled_from(["1", "2", "3"])


def suspects(prefix: str, other: str) -> st.SearchStrategy[list[Suspect]]:
    mark = st.one_of(st.none(), ids.map(lambda i: other + i))
    one = st.builds(
        lambda i, k, m, t: Suspect(prefix + i, k, m, t), ids, keys, mark, st.one_of(st.none(), st.just("x"))
    )
    return st.lists(one, max_size=3, unique_by=lambda each: each.id)


_TURNED = {"stored ref in propstreet": "stored ref in crm", "stored ref in crm": "stored ref in propstreet"}


def reviewed(found: Matched) -> dict[tuple[Side, str], dict[str, tuple[frozenset[str], str | None]]]:
    """Whom a person is asked about, and what they are shown."""
    return {(r.side, r.id): {c.id: (frozenset(c.reasons), c.linked_to) for c in r.candidates} for r in found.reviews}


@cases(600)
@given(suspects("l", "r"), suspects("r", "l"), never_pairs)
def test_swapping_the_sides_swaps_the_matches(
    lefts: list[Suspect], rights: list[Suspect], never: frozenset[tuple[str, str]]
) -> None:
    """Neither side is preferred, in links, in reviews and in the reasons for both."""
    one = match(lefts, rights, never)
    other = match(rights, lefts, frozenset((right, left) for left, right in never))
    assert pairs_of(one) == {(left, right) for right, left in pairs_of(other)}
    assert reviewed(one) == {
        (side.other, id_): {
            other_id: (frozenset(_TURNED.get(why, why) for why in reasons), linked_to)
            for other_id, (reasons, linked_to) in candidates.items()
        }
        for (side, id_), candidates in reviewed(other).items()
    }


@cases(600)
@given(suspects("l", "r"), suspects("r", "l"), never_pairs)
def test_nobody_is_linked_twice_or_when_taken_or_when_kept_apart(
    lefts: list[Suspect], rights: list[Suspect], never: frozenset[tuple[str, str]]
) -> None:
    """Never two to one, never past a person's word; who is linked here is not asked about."""
    found = match(lefts, rights, never)
    linked = [id_ for pair in pairs_of(found) for id_ in pair]
    assert len(linked) == len(set(linked))
    assert not {each.id for each in (*lefts, *rights) if each.linked_to} & set(linked)
    assert not pairs_of(found) & never
    for (side, id_), candidates in reviewed(found).items():
        assert id_ not in linked
        shown = {(id_, other) if side is Side.LEFT else (other, id_) for other in candidates}
        assert candidates
        assert not shown & never


@cases(400)
@given(suspects("l", "r"), suspects("r", "l"), never_pairs, st.randoms(use_true_random=False))
def test_neither_order_nor_strangers_change_who_is_matched(
    lefts: list[Suspect], rights: list[Suspect], never: frozenset[tuple[str, str]], random: object
) -> None:
    """One more record that shares nothing with anybody, and any order of the others: the same answer."""
    found = match(lefts, rights, never)
    stranger = Suspect("l9", frozenset({"email:nobody", "name:nobody"}), "r8")
    more, others = [*lefts, stranger], [*rights, replace(stranger, id="r9", keys=frozenset({"org:none"}), mark="l8")]
    for each in (more, others):
        random.shuffle(each)  # type: ignore[attr-defined]  # hypothesis' Random
    assert match(more, others, never) == found


def test_a_review_lists_its_candidates_with_each_reason_once_strongest_first() -> None:
    """As a person reads it; one that is taken says by whom."""
    left = suspect("l1", "email:a", "email:b", "name:x", "org:1")
    taken, free = suspect("r2", "email:a", linked_to="l7"), suspect("r1", "name:x", "org:1", "email:b", "email:a")
    found = match([left], [taken, free, suspect("r3", "name:x")])
    why = ("same e-mail", "same organisation number", "same name")
    assert found == Matched(
        (),
        (
            Review(Side.LEFT, "l1", (Candidate("r1", why), Candidate("r2", ("same e-mail",), "l7"))),
            Review(Side.RIGHT, "r1", (Candidate("l1", why),)),
            Review(Side.RIGHT, "r3", (Candidate("l1", ("same name",)),)),
        ),
    )


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        (suspect("l1", mark="r1"), suspect("r1"), "stored ref in propstreet"),
        (suspect("l1"), suspect("r1", mark="l1"), "stored ref in crm"),
        (suspect("l1", "email:a", mark="r1"), suspect("r1", "email:a"), "stored ref in propstreet"),
        (suspect("l1", "email:a"), suspect("r1", "email:a"), "same e-mail"),
        (suspect("l1", "domain:a"), suspect("r1", "domain:a"), "same domain"),
        (suspect("l1", "org:a"), suspect("r1", "org:a"), "same organisation number"),
        (suspect("l1", "refs:a"), suspect("r1", "refs:a"), "same records"),
        (suspect("l1", "org:a", "domain:a"), suspect("r1", "org:a", "domain:a"), "same domain"),
    ],
)
def test_a_link_tells_the_strongest_reason_for_it(left: Suspect, right: Suspect, reason: str) -> None:
    """What `status` and the history of a record say."""
    assert match([left], [right]).links == (("l1", "r1", reason),)


def test_stronger_evidence_stands_above_weaker() -> None:
    """A domain outweighs an organisation number, and both a name."""
    left = suspect("l1", "domain:a", "org:1", "name:x")
    rights = [suspect("r1", "domain:a"), suspect("r2", "org:1"), suspect("r3", "name:x")]
    assert pairs_of(match([left], rights)) == {("l1", "r1")}
    assert pairs_of(match([left], rights[1:])) == {("l1", "r2")}
    assert pairs_of(match([left], rights[2:])) == set()


def test_a_name_is_no_evidence_against_strong_keys_that_differ_or_a_link_that_stands() -> None:
    """Same name, other address: another person. Keys of different sorts contradict nothing."""

    def asked(left: Suspect, right: Suspect) -> bool:
        return bool(match([left], [right]).reviews)

    assert asked(suspect("l1", "name:x", "domain:a"), suspect("r1", "name:x", "org:1"))
    assert asked(suspect("l1", "name:x", "domain:a"), suspect("r1", "name:x"))
    assert not asked(suspect("l1", "name:x", "org:2"), suspect("r1", "name:x", "org:1"))
    assert not asked(suspect("l1", "name:x"), suspect("r1", "name:x", linked_to="l9"))
    assert not asked(suspect("l1", "name:x", linked_to="r9"), suspect("r1", "name:x"))


def test_the_keys_of_a_contact_are_all_its_addresses_and_its_name_only_without_any() -> None:
    """Additional addresses count; a name is evidence only where there is no address."""
    values: dict[str, Value] = {"email": "A@x.se", "other_emails": frozenset({"b@x.se"}), "first_name": "Anna"}
    assert keys_of(Record("contact", "1", values), "s") == {address_key("a@x.se", "s"), address_key("b@x.se", "s")}
    named = Record("contact", "1", {"first_name": "Anna", "last_name": "Berg"})
    assert keys_of(named, "s") == {f"name:{digest('s', 'anna berg')}"}


def test_the_keys_of_a_company_are_domain_and_organisation_number() -> None:
    """Spelling of both does not matter."""
    values = {"domain": "www.Nordhaus.se", "org_number": "556900-1000", "name": "Nordhaus  AB"}
    told = {"domain": "nordhaus.se", "org": "5569001000", "name": "nordhaus ab"}
    assert keys_of(Record("company", "1", values), "s") == {f"{sort}:{digest('s', key)}" for sort, key in told.items()}


def test_a_key_tells_nobody_what_it_was_made_of() -> None:
    """Keys are compared, never read: one address gives one key within a pair, and another key elsewhere."""
    values: dict[str, Value] = {"email": "anna@x.se", "first_name": "Anna", "other_emails": frozenset({"berg@x.se"})}
    here, there = (keys_of(Record("contact", "1", values), salt) for salt in ("t/hubspot", "t/salesforce"))
    assert not here & there
    assert not any(told in key for key in here for told in ("anna", "berg", "x.se"))


def test_an_erased_address_is_still_the_same_key() -> None:
    """Whoever was erased is not created a second time: the address alone still finds the link."""
    values: dict[str, Value] = {"email": "anna@x.se", "other_emails": frozenset({"b@x.se", "c@x.se"})}
    types = FIELDS["contact"]
    erased = {name: hashed(types[name], value, "s") for name, value in values.items()}
    assert keys_of(Record("contact", "1", erased), "s") == keys_of(Record("contact", "1", values), "s")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("contact", {"first_name": "Anna", "last_name": "Berg"}),
        ("company", {"name": "Nordhaus", "domain": "nordhaus.se", "org_number": "556900-1000"}),
        ("company", {"homepage": "https://nordhaus.se"}),
        ("deal", {"name": "Kv. Svalan"}),
    ],
)
def test_what_was_erased_and_is_no_address_is_no_key(kind: str, values: dict[str, Value]) -> None:
    """It cannot be spelled in one way before it is compared, so that it proves and suggests nothing."""
    erased = {name: hashed(FIELDS[kind][name], value, "s") for name, value in values.items()}
    assert keys_of(Record(kind, "1", values), "s")
    assert keys_of(Record(kind, "1", erased), "s") == frozenset()


def test_sides_are_each_others_other() -> None:
    """Left and right are a pair."""
    assert Side.LEFT.other is Side.RIGHT
    assert Side.RIGHT.other is Side.LEFT


@pytest.mark.parametrize(
    ("kind", "values", "found"),
    [
        ("contact", {"other_emails": frozenset({"B@x.se"}), "first_name": "Anna"}, {"email:b@x.se"}),
        ("contact", {"first_name": " Anna  Maria", "last_name": "BERG"}, {"name:anna maria berg"}),
        ("contact", {"email": None, "last_name": "Berg"}, {"name:berg"}),
        ("contact", {}, set()),
        ("company", {"homepage": "https://www.Nordhaus.se/om"}, {"domain:nordhaus.se"}),
        ("company", {"domain": "a.se", "homepage": "https://b.se"}, {"domain:a.se"}),
        ("company", {"org_number": "SE 5569-00"}, {"org:se556900"}),
        ("company", {"org_number": "--"}, set()),
        ("company", {"name": "X"}, {"name:x"}),
        ("deal", {"name": "Kv.  Svalan", "domain": "a.se", "email": "a@b.se"}, {"name:kv. svalan"}),
        ("deal", {"name": None}, set()),
    ],
)  # fmt: skip
def test_the_keys_of_a_record_are_what_its_kind_is_known_by(
    kind: str, values: dict[str, Value], found: set[str]
) -> None:
    """Spelling does not matter, and what is empty is no key."""
    digests = {f"{sort}:{digest('s', told)}" for sort, _, told in (each.partition(":") for each in found)}
    assert keys_of(Record(kind, "1", values), "s") == digests


def test_a_relation_is_known_by_its_references_only() -> None:
    """In whatever order they come; one without references is known by nothing."""
    refs = {"deal": "2", "contact": "1"}
    assert ref_key(refs) == ref_key(dict(reversed(refs.items()))) == "refs:contact=1|deal=2"
    assert keys_of(Record("deal_contact", "9", {"name": "x"}, refs=refs), "s") == {"refs:contact=1|deal=2"}
    assert keys_of(Record("deal_contact", "9", {"name": "x"}), "s") == frozenset()


def test_an_ended_link_leaves_both_alone_unless_one_is_asked_for_anew() -> None:
    """Ids are each side's own: the same id on the other side is another record."""
    answers = Answers(ended=frozenset({("1", "2")}), made=frozenset({(Side.RIGHT, "2")}))
    assert answers.stands_alone(Side.LEFT, "1")
    assert not answers.stands_alone(Side.RIGHT, "1")
    assert not answers.stands_alone(Side.LEFT, "2")
    assert not answers.stands_alone(Side.RIGHT, "2")
    assert Answers(ended=answers.ended).stands_alone(Side.RIGHT, "2")


def test_a_record_that_is_to_be_made_is_met_by_an_id_only() -> None:
    """Its keys are forgotten unless it is linked already; those of others stay."""
    answers = Answers(made=frozenset({(Side.LEFT, "l1")}))
    asked, linked = suspect("l1", "email:a", mark="r1"), suspect("l1", "email:a", linked_to="r1")
    assert answers.not_known_by_keys(Side.LEFT, asked) == suspect("l1", mark="r1")
    assert answers.not_known_by_keys(Side.LEFT, linked) == linked
    assert answers.not_known_by_keys(Side.RIGHT, asked) == asked
    assert answers.not_known_by_keys(Side.LEFT, suspect("l2", "email:a")) == suspect("l2", "email:a")
