"""The laws of taking a run back, for any values on both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.core.merge import Flow, OnConflict, Policy, Step, merge
from syncd.core.model import Address, FieldType, Hashed, Record, Side, Value, Values, Verb
from syncd.core.plan import Fields, Operation, Sighted
from syncd.core.undo import REFS, RULE, Deed, Leftover, Standing, Written, folded, held_because, packed, undo
from tests.core.cases import cases

TYPES = {"text": FieldType.TEXT, "set": FieldType.SET}
ALL = frozenset(TYPES)
FIELDS = Fields(TYPES, ALL, ALL, ALL, ALL)

texts = st.sampled_from([None, "a", "b", "c"])
sets = st.sampled_from([None, frozenset("x"), frozenset("y"), frozenset("xy")])
values = st.fixed_dictionaries({"text": texts, "set": sets})
sides = st.sampled_from(list(Side))


def line(name: str, old: Value, new: Value, verb: Verb = "update", side: Side = Side.RIGHT, **more: Value) -> Written:
    return Written("contact", side, verb, "p1", "c1", name, old, new, more.get("stored", new))


def sighted(id_: str, now: Values, base: Values, **facts: object) -> Sighted:
    return Sighted(replace(Record("contact", id_, now), **facts), base)  # type: ignore[arg-type]  # by field name


def deed(side: Side, old: Values, new: Values) -> Deed:
    found = folded([line(name, old[name], new[name], side=side) for name in TYPES])
    assert found is not None
    return found


def standing(side: Side, target: Values, base: Values, source: Values, source_base: Values) -> Standing:
    ids = {Side.LEFT: "p1", Side.RIGHT: "c1"}
    return Standing(sighted(ids[side], target, base), sighted(ids[side.other], source, source_base), is_linked=True)


def after(deed_: Deed, at: Standing) -> tuple[dict[str, Value], Standing]:
    """What the written side holds after the undo, and how both sides stand then."""
    operation, _ = undo(deed_, at, FIELDS, "run")
    assert at.target is not None and at.source is not None
    steps = {name: step.value for name, step in operation.steps.items()} if operation is not None else {}
    now = {**at.target.record.values, **steps}
    target = replace(at.target, record=replace(at.target.record, values=now), base={**at.target.base, **steps})
    present = {name: at.source.record.values[name] for name in steps}
    source = replace(at.source, base={**at.source.base, **present})
    return now, replace(at, target=target, source=source)


@cases(400)
@given(sides, values, values, values)
def test_a_run_and_its_undo_leave_what_was_before(side: Side, before: Values, source: Values, new: Values) -> None:
    """With nobody editing in between, the written side holds what it held before the run."""
    now, _ = after(deed(side, before, new), standing(side, new, new, source, source))
    assert now == before


@cases(400)
@given(sides, values, values, values, values)
def test_only_what_the_run_left_there_goes_back(
    side: Side, before: Values, new: Values, now: Values, source: Values
) -> None:
    """A field that holds neither what the run wrote nor what was before was edited, and stays; each is listed."""
    at = standing(side, now, now, source, source)
    operation, left = undo(deed(side, before, new), at, FIELDS, "run")
    steps = dict(operation.steps) if operation is not None else {}
    for name in TYPES:
        goes = now[name] == new[name] and now[name] != before[name]
        assert (name in steps) == goes
        assert [each.reason for each in left if each.field == name] == (
            [] if goes else ["already as before" if now[name] == before[name] else "edited since"]
        )


@cases(400)
@given(sides, values, values, values, values)
def test_undoing_twice_equals_undoing_once(
    side: Side, before: Values, new: Values, now: Values, source: Values
) -> None:
    """The second undo of the same run has nothing to write."""
    _, at = after(deed(side, before, new), standing(side, now, now, source, source))
    operation, _ = undo(deed(side, before, new), at, FIELDS, "run")
    assert operation is None


@cases(500)
@given(sides, values, values, values, st.sampled_from(Flow), st.sampled_from(OnConflict))
def test_the_next_merge_after_an_undo_finds_nothing_to_do(
    side: Side, before: Values, new: Values, source: Values, flow: Flow, rule: OnConflict
) -> None:
    """The sides are agreed to differ, under any policy, until somebody edits one."""
    _, at = after(deed(side, before, new), standing(side, new, new, source, source))
    assert at.target is not None and at.source is not None
    halves = {side: at.target.half(FIELDS, side), side.other: at.source.half(FIELDS, side.other)}
    merged = merge(TYPES, halves[Side.LEFT], halves[Side.RIGHT], dict.fromkeys(TYPES, Policy(flow, rule)))
    assert (dict(merged.to_left), dict(merged.to_right), merged.conflicts) == ({}, {}, ())


@cases(300)
@given(sides, values, values, values, values)
def test_an_edit_that_waits_is_never_agreed_away(
    side: Side, before: Values, new: Values, source: Values, source_base: Values
) -> None:
    """Where the other side moved since its half of the base, the field stays as it is."""
    at = standing(side, new, new, source, source_base)
    operation, _ = undo(deed(side, before, new), at, FIELDS, "run")
    steps = dict(operation.steps) if operation is not None else {}
    assert not any(source[name] != source_base[name] for name in steps)


def test_of_several_writes_to_one_field_the_first_old_and_the_last_new_count() -> None:
    """A run that wrote a field in two rounds is taken back to before the first."""
    found = folded([line("text", "a", "b"), line("text", "b", "c")])
    assert found is not None
    assert (found.fields["text"].old, found.fields["text"].new) == ("a", "c")


def test_a_record_that_the_run_made_and_removed_leaves_nothing_to_undo() -> None:
    """Nothing stood there before, and nothing does now."""
    assert folded([line("text", None, "a", "create"), line("text", "a", None, "delete")]) is None


def test_a_record_that_was_updated_and_then_removed_is_brought_back_as_it_was_first() -> None:
    """The first old value of a field is the one from before the run."""
    refs = packed({"deal": "d1", "contact": "k1"})
    lines = [line("text", "a", "b"), line("text", "b", None, "delete"), line(REFS, refs, None, "delete")]
    found = folded(lines)
    assert found is not None
    assert (found.verb, found.fields["text"].old, found.refs) == ("delete", "a", {"deal": "d1", "contact": "k1"})


def made(stored: Value = "a") -> Deed:
    found = folded([line("text", None, "a", "create", stored=stored)])
    assert found is not None
    return found


def test_a_made_record_goes_unless_somebody_worked_on_it() -> None:
    """Each reason to keep it is told by its name."""
    at = standing(Side.RIGHT, {"text": "a", "set": None}, {"text": "a", "set": None}, {"text": "a"}, {"text": "a"})
    assert at.target is not None
    operation, left = undo(made(), at, FIELDS, "r1")
    assert operation is not None and (operation.verb, operation.source, operation.undoes, left) == (
        "delete", "p1", "r1", (),
    )  # fmt: skip
    moved = sighted("c1", {"text": "a", "set": frozenset("x")}, {"text": "a", "set": None})
    gone = sighted("c1", {}, {}, is_deleted=True)
    locked = sighted("c1", {"text": "a", "set": None}, {"text": "a", "set": None}, locked={"*": "closed"})
    cases = {
        "gone already": replace(at, target=gone),
        "edited since: set": replace(at, target=moved),
        "edited since: text": replace(at, later={(Side.RIGHT, "text"): "was"}),
        "others refer to it: deal 7": replace(at, dependants=("deal 7",)),
        "on hold: by Anna": replace(at, holds={Side.LEFT: "by Anna"}),
        "locked: closed": replace(at, target=locked),
        "cannot be deleted there": replace(at, can_delete=False),
    }
    for reason, case in cases.items():
        operation, left = undo(made(), case, FIELDS, "r1")
        assert (operation, [each.reason for each in left]) == (None, [reason])


def test_what_the_system_stored_is_ours_as_well_as_what_was_sent() -> None:
    """A phone number comes back normalised; that was no edit."""
    at = standing(Side.RIGHT, {"text": "A.", "set": None}, {"text": "A.", "set": None}, {"text": "a"}, {"text": "a"})
    operation, _ = undo(made(stored="A."), at, FIELDS, "r1")
    assert operation is not None
    operation, _ = undo(made(), at, FIELDS, "r1")
    assert operation is None


@pytest.mark.parametrize(("sent", "stored"), [("a b", "kept"), ("sent", "a b")])
def test_what_was_sent_or_stored_is_ours_however_it_is_spelled_by_now(sent: str, stored: str) -> None:
    """A text that its system spaces otherwise is still the one that the run left there."""
    wrote = folded([line("text", "was", sent, stored=stored)])
    assert wrote is not None
    for now, reasons in (("a  b", []), ("a c", ["edited since"])):
        at = standing(Side.RIGHT, {"text": now}, {"text": now}, {"text": "s"}, {"text": "s"})
        assert [each.reason for each in undo(wrote, at, FIELDS, "r1")[1]] == reasons


def test_a_removed_record_comes_back_from_its_living_counterpart_or_as_a_relation() -> None:
    """A free counterpart is its source again; a relation stands alone; anything else is left with the way back."""
    removed = Deed("company", Side.RIGHT, "delete", "p1", "c1", {"text": line("text", "a", None, "delete")})
    relation = replace(removed, kind="deal_contact", refs={"deal": "d1", "contact": "k1"})
    gone = sighted("c1", {}, {}, is_deleted=True)
    alone = Standing(gone, sighted("p1", {"text": "b"}, {}))
    operation, _ = undo(removed, alone, FIELDS, "r1")
    assert operation is not None
    assert (operation.verb, operation.source, operation.steps["text"].value) == ("create", "p1", "b")
    taken = replace(alone, is_source_taken=True)
    operation, _ = undo(relation, taken, FIELDS, "r1")
    assert operation is not None
    assert (operation.source, operation.refs, operation.steps["text"].value) == (None, relation.refs, "a")
    for case, of, reason in (
        (taken, removed, "deleted, and cannot be brought back from here"),
        (replace(taken, by_hand="ask support"), removed, "deleted; ask support"),
        (replace(taken, refs_gone=frozenset({"deal"})), relation, "names a deal that is gone"),
        (replace(alone, holds={Side.LEFT: "by Anna"}), removed, "on hold: by Anna"),
        (replace(alone, target=sighted("c1", {"text": "a"}, {})), removed, "there again"),
    ):
        operation, left = undo(of, case, FIELDS, "r1")
        assert (operation, [each.reason for each in left]) == (None, [reason])
    operation, _ = undo(removed, replace(alone, holds={Side.LEFT: held_because("r0")}), FIELDS, "r1")
    assert operation is not None


def test_what_must_not_be_written_is_left() -> None:
    """Locks, holds, fields that are read only or not synced any more, lost links: each by its name."""
    at = standing(Side.RIGHT, {"text": "b"}, {"text": "b"}, {"text": "b"}, {"text": "b"})
    assert at.target is not None
    wrote = folded([line("text", "a", "b")])
    assert wrote is not None
    fixed = replace(FIELDS, right_writable=frozenset())
    none = replace(FIELDS, types={})
    locked = replace(at.target, record=replace(at.target.record, locked={"text": "a formula"}))
    for case, fields, reason in (
        (replace(at, target=locked), FIELDS, "locked: a formula"),
        (replace(at, holds={Side.RIGHT: "by Anna"}), FIELDS, "on hold: by Anna"),
        (at, fixed, "not writable"),
        (at, none, "not synced any more"),
        (replace(at, is_linked=False), FIELDS, "it is not linked any more"),
        (replace(at, target=None), FIELDS, "the record is gone"),
    ):
        operation, left = undo(wrote, case, fields, "r1")
        assert (operation, [each.reason for each in left]) == (None, [reason])


IN_STEP: Values = {"text": "a", "set": None}


def of_a_made_one(**facts: object) -> Standing:
    """How a record that the run made stands, with nobody having touched it."""
    at = standing(Side.RIGHT, IN_STEP, IN_STEP, {"text": "a"}, {"text": "a"})
    return replace(at, **facts)  # type: ignore[arg-type]  # by field name


def test_the_removal_of_a_made_record_is_one_operation_that_names_its_run() -> None:
    """Its source is told where it is linked, for the hold that keeps it from being made again."""
    removal = Operation("contact", "delete", Side.RIGHT, "p1", Address("c1"), why="undo of run r1", undoes="r1")
    assert undo(made(), of_a_made_one(), FIELDS, "r1") == (removal, ())
    assert undo(made(), of_a_made_one(is_linked=False), FIELDS, "r1") == (replace(removal, source=None), ())


def test_what_keeps_a_made_record_is_listed_with_all_that_it_is_about() -> None:
    """Several fields, several dependants: each by its name."""
    moved = sighted("c1", {"text": "b", "set": frozenset("x")}, {"text": "b", "set": None})
    for at, reason in (
        (of_a_made_one(target=moved), "edited since: set, text"),
        (of_a_made_one(dependants=("deal 7", "deal 8")), "others refer to it: deal 7, deal 8"),
    ):
        assert undo(made(), at, FIELDS, "r1") == (None, (Leftover("contact", Side.RIGHT, "p1", "c1", "", reason),))


@pytest.mark.parametrize(
    ("later", "reasons"),
    [
        ({(Side.RIGHT, "text"): "a"}, []),
        ({(Side.RIGHT, "text"): "was"}, ["edited since: text"]),
        ({(Side.LEFT, "text"): "l"}, []),
        ({(Side.LEFT, "text"): "was"}, ["edited since: text"]),
        ({(Side.LEFT, "text"): "a"}, ["edited since: text"]),
        ({(Side.LEFT, "text"): "was", (Side.LEFT, "set"): None}, ["edited since: text"]),
        ({(Side.LEFT, "text"): "was", (Side.RIGHT, "set"): frozenset("x")}, ["edited since: set, text"]),
        ({(Side.LEFT, "gone"): "was"}, []),
    ],
)
def test_a_write_after_the_run_is_an_edit_if_what_stood_before_it_is_not_what_stands_there(
    later: dict[tuple[Side, str], Value], reasons: list[str]
) -> None:
    """On the record and on its counterpart, by way of which somebody changed it."""
    at = of_a_made_one(source=sighted("p1", {"text": "l", "set": None}, {"text": "l", "set": None}), later=later)
    _, left = undo(made(), at, FIELDS, "r1")
    assert [each.reason for each in left] == reasons
    _, left = undo(made(), replace(at, source=None, later={(Side.LEFT, "text"): "was"}), FIELDS, "r1")
    assert left == ()


def test_what_a_system_spells_anew_is_no_edit_of_a_made_record() -> None:
    """Each type's notion of equal holds, for the record and for what was written later."""
    spaced = sighted("c1", {"text": "a  b", "set": None}, {"text": "a b", "set": None})
    at = of_a_made_one(target=spaced, later={(Side.RIGHT, "text"): "a b"})
    wrote = folded([line("text", None, "a b", "create")])
    assert wrote is not None
    assert undo(wrote, at, FIELDS, "r1")[1] == ()


def test_a_removed_record_is_made_again_of_what_its_counterpart_tells() -> None:
    """Linked to it, beside its references, and no more than can be given there."""
    source = replace(Record("company", "p1", {"text": "b", "set": None, "more": "x"}), refs={"deal": "d"})
    at = Standing(sighted("c1", {}, {}, is_deleted=True), Sighted(source, {}))
    removed = Deed("company", Side.RIGHT, "delete", "p1", "c1", {"text": line("text", "a", None, "delete")})
    steps = {"text": Step("b", "created")}
    create = Operation("company", "create", Side.RIGHT, "p1", None, steps, {"deal": "d"}, "undo of run r1", undoes="r1")
    assert undo(removed, at, FIELDS, "r1") == (create, ())
    none = replace(FIELDS, right_creatable=frozenset())
    assert undo(removed, at, none, "r1") == (replace(create, steps={}), ())


def test_a_removed_relation_is_made_again_by_itself_of_what_the_log_tells() -> None:
    """Of what was there and can be given; it is linked to nothing."""
    lines = [line("text", "a", None, "delete"), line("set", None, None, "delete"), line("more", "x", None, "delete")]
    refs = {"deal": "d1", "contact": "k1"}
    relation = Deed("deal_contact", Side.RIGHT, "delete", "p1", "c1", {each.field: each for each in lines}, refs)
    at = Standing(sighted("c1", {}, {}, is_deleted=True), sighted("p1", {}, {}, is_deleted=True))
    steps = {"text": Step("a", RULE)}
    create = Operation("deal_contact", "create", Side.RIGHT, None, None, steps, refs, "undo of run r1", undoes="r1")
    assert undo(relation, at, FIELDS, "r1") == (create, ())
    none = replace(FIELDS, right_creatable=frozenset({"more", "set"}))
    assert undo(relation, at, none, "r1") == (replace(create, steps={}), ())
    gone = replace(at, refs_gone=frozenset({"deal", "contact"}))
    assert [each.reason for each in undo(relation, gone, FIELDS, "r1")[1]] == [
        "names a contact and a deal that is gone"
    ]
    for alone in (replace(relation, refs={}), replace(relation, kind="company")):
        assert [each.reason for each in undo(alone, at, FIELDS, "r1")[1]] == [
            "deleted, and cannot be brought back from here"
        ]


def test_what_goes_back_is_one_operation_that_names_its_run_and_the_rest_is_listed() -> None:
    """To the record that was written, beside its counterpart."""
    at = standing(Side.RIGHT, {"text": "b", "set": frozenset("y")}, {}, IN_STEP, IN_STEP)
    assert at.target is not None
    at = replace(at, target=replace(at.target, base=at.target.record.values))
    wrote = folded([line("text", "a", "b"), line("set", frozenset("x"), None)])
    assert wrote is not None
    back = Operation(
        "contact",
        "update",
        Side.RIGHT,
        "p1",
        Address("c1"),
        {"text": Step("a", RULE)},
        why="undo of run r1",
        undoes="r1",
    )
    assert undo(wrote, at, FIELDS, "r1") == (
        back, (Leftover("contact", Side.RIGHT, "p1", "c1", "set", "edited since"),)
    )  # fmt: skip
    assert undo(replace(wrote, verb="mark"), at, FIELDS, "r1")[0] == back
    for case in (replace(at, source=None), replace(at, source=sighted("p1", {}, {}, is_deleted=True))):
        assert [each.reason for each in undo(wrote, case, FIELDS, "r1")[1]] == ["it is not linked any more"]
    assert undo(wrote, at, replace(FIELDS, left_writable=frozenset()), "r1")[0] == back


def test_each_reason_to_leave_a_field_is_told_by_its_type_and_its_name() -> None:
    """What a system spells anew is as before, is ours, and is no edit of the other side."""
    wrote = folded([line("text", "a b", "c d")])
    assert wrote is not None

    def reasons(now: str, source: str, **facts: object) -> list[str]:
        at = standing(Side.RIGHT, {"text": now}, {"text": now}, {"text": source}, {"text": "s t"})
        at = replace(at, **facts)  # type: ignore[arg-type]  # by field name
        return [each.reason for each in undo(wrote, at, FIELDS, "r1")[1]]

    assert reasons("a  b", "s t") == ["already as before"]
    assert reasons("c  d", "s  t") == []
    assert reasons("c d", "moved") == ["edited since on the other side"]
    holds = {Side.LEFT: "by Anna", Side.RIGHT: "by Bo"}
    assert reasons("c d", "s t", holds=holds) == ["on hold: by Anna; by Bo"]


def test_references_whose_ids_hold_an_equals_sign_are_kept_whole() -> None:
    """Only the first one parts the kind from the id; lines of the whole record hold no field."""
    refs = {"deal": "a=b=c"}
    found = folded([line("", None, None, "delete"), line(REFS, packed(refs), None, "delete")])
    assert found is not None
    assert (found.refs, found.fields) == (refs, {})


def test_in_propstreet_goes_back_what_can_be_written_there() -> None:
    """What the CRM could take does not count; neither for a field nor for a relation that is made again."""
    at = standing(Side.LEFT, {"text": "b"}, {"text": "b"}, {"text": "b"}, {"text": "b"})
    wrote = folded([line("text", "a", "b", side=Side.LEFT)])
    assert wrote is not None
    here, there = replace(FIELDS, left_writable=frozenset()), replace(FIELDS, right_writable=frozenset())
    assert [each.reason for each in undo(wrote, at, here, "r1")[1]] == ["not writable"]
    assert undo(wrote, at, there, "r1")[1] == ()
    relation = replace(wrote, kind="deal_contact", verb="delete", refs={"deal": "d1", "contact": "k1"})
    for fields, steps in (
        (replace(FIELDS, left_creatable=frozenset()), {}),
        (replace(FIELDS, right_creatable=frozenset()), {"text": Step("a", RULE)}),
    ):
        operation, _ = undo(relation, Standing(), fields, "r1")
        assert operation is not None
        assert operation.steps == steps


def test_a_removed_record_is_made_again_if_what_it_is_made_of_can_be_read() -> None:
    """That is a free counterpart, and else the log; whether the other one was erased does not matter."""
    gone, erased = Hashed("", ()), {"text": Hashed("", ())}
    refs = {"deal": "d1", "contact": "k1"}
    free, taken = Standing(source=sighted("p1", {"text": "b"}, {})), Standing(is_source_taken=True)

    def made_of(old: Value, at: Standing) -> Value:
        lost = {"text": line("text", old, None, "delete")}
        operation, left = undo(Deed("deal_contact", Side.RIGHT, "delete", "p1", "c1", lost, refs), at, FIELDS, "r1")
        return operation.steps["text"].value if operation is not None else left[0].reason

    assert made_of(gone, free) == "b"
    assert made_of("a", replace(taken, source=sighted("p1", erased, {}))) == "a"
    assert made_of("a", replace(free, source=sighted("p1", erased, {}))) == "what stood there was erased"
    assert made_of(gone, replace(taken, source=free.source)) == "what stood there was erased"
