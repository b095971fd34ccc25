"""Both keepers of a pair's rows, PostgreSQL and memory, held to the same laws and to one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, insert, text
from sqlalchemy.exc import DBAPIError

from syncd.core.model import KINDS, Side
from syncd.errors import LeaseLostError
from syncd.state import schema as s
from syncd.state.lease import TTL_SECONDS, Lease
from syncd.state.postgres import PostgresRows
from syncd.state.rows import Place, Row, Rows
from syncd.state.store import Told
from tests.engine.world import PostgresState, State
from tests.simulation.memory_rows import MemoryState, ViolationError

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
REFUSED = (DBAPIError, ViolationError)
TABLES = (
    "feed",
    "link",
    "sighting",
    "match_review",
    "run",
    "plan",
    "operation",
    "change_log",
    "conflict",
    "hold",
    "dirty",
)


class Killed(BaseException):
    """The process died here."""


def taken(state: State, at: datetime = NOW) -> Lease:
    held = state.acquire("one", at)
    assert held is not None
    return held


def link(left_id: str, right_id: str, kind: str = "deal", **more: object) -> dict[str, object]:
    row: dict[str, object] = {
        "pair": "t/crm", "kind": kind, "left_id": left_id, "right_id": right_id, "state": "in_step", "why": "",
        "linked_at": NOW,
    }  # fmt: skip
    return {**row, **more}


def sighting(id_: str, side: str = "left", kind: str = "deal", **more: object) -> dict[str, object]:
    row: dict[str, object] = {
        "pair": "t/crm", "side": side, "kind": kind, "id": id_, "parent": None, "values": {}, "facts": {},
        "mark": None, "keys": [], "version": None, "modified_at": None, "is_deleted": False, "is_linked": False,
        "state": "new", "reason": "", "attempts": 0, "next_attempt_at": None, "seen_at": NOW,
    }  # fmt: skip
    return {**row, **more}


def operation(key: str, **more: object) -> dict[str, object]:
    row: dict[str, object] = {
        "plan": "p", "pair": "t/crm", "kind": "deal", "verb": "create", "side": "right", "source_id": None,
        "target_id": None, "target_parent": None, "group_key": "", "steps": {}, "refs": {"ids": {}}, "before": {},
        "source": {}, "conflicts": [], "why": "", "precondition": None, "idempotency_key": key, "state": "planned",
    }  # fmt: skip
    return {**row, **more}


def planned(state: State, *operations: dict[str, object]) -> Rows:
    """The rows of a pair whose plan ``p`` has these operations."""
    store = state.store(taken(state))
    with store.transaction():
        store.rows.insert_run(
            {"id": "r", "pair": "t/crm", "reason": "run", "state": "done", "fence": 1, "started_at": NOW}
        )
        store.rows.insert_plan({"id": "p", "pair": "t/crm", "run": "r", "hash": "", "state": "open", "made_at": NOW})
        store.rows.insert_operations(operations)
    return store.rows


# --- transactions and leases --------------------------------------------------------------


@pytest.mark.parametrize("end", [ValueError, Killed])
def test_what_is_cut_off_leaves_nothing(state: State, end: type[BaseException]) -> None:
    """All or nothing, also when the process dies; what an inner transaction did is part of the outer one."""
    store = state.store(taken(state))
    with store.transaction():
        store.rows.insert_links([link("1", "a", left_keys=["k"]), link("2", "b", left_keys=[])])
        store.rows.save_sightings([sighting("1", keys=["k"]), sighting("2")])
    before = {name: state.dump(name) for name in TABLES}
    with pytest.raises(end), store.transaction():
        with store.transaction():
            store.rows.delete_links("deal", ["1"], [])
            store.rows.insert_links([link("1", "c", left_keys=["other"])])
            store.rows.drop_sightings(Side.LEFT, "deal", ["1"])
        store.rows.save_sightings([sighting("2", state="dead"), sighting("3")])
        store.rows.save_feeds([{"pair": "t/crm", "side": "left", "kind": "deal", "parent": "", "watermark": None}])
        raise end
    assert {name: state.dump(name) for name in TABLES} == before
    assert [row["right_id"] for row in store.rows.links(Side.LEFT, "deal", ["1"])] == ["a"]
    assert [row["id"] for row in store.rows.alike(Side.LEFT, "deal", [], [], ["k", "other"])] == ["1"]
    assert store.rows.linked_keys(Side.LEFT, "deal", ["k", "other"]) == {"k"}


def test_inside_a_transaction_its_own_writes_are_seen(state: State) -> None:
    """A later step of one commit builds on the earlier ones."""
    store = state.store(taken(state))
    with store.transaction():
        store.rows.insert_links([link("1", "a")])
        assert store.rows.counterparts("deal", Side.LEFT, ["1"]) == {"1": "a"}
        assert store.rows.count_links() == {"deal": 1}


def test_a_lost_lease_writes_nothing(state: State) -> None:
    """Whoever was overtaken can neither commit nor renew, and releasing takes nothing from the new holder."""
    slow = taken(state)
    assert state.acquire("two", NOW) is None
    fast = taken(state, NOW + timedelta(seconds=TTL_SECONDS + 1))
    assert fast.fence == slow.fence + 1
    store = state.store(slow)
    with store.transaction():
        store.rows.save_sightings([])
        assert store.rows.links(Side.LEFT, "deal", ["1"]) == []
    with pytest.raises(LeaseLostError), store.transaction():
        store.rows.save_sightings([sighting("1")])
        raise AssertionError("nothing is written under a lost lease")
    assert state.dump("sighting") == []
    with pytest.raises(LeaseLostError):
        state.renew(slow, NOW)
    state.release(slow)
    assert state.acquire("three", NOW + timedelta(seconds=TTL_SECONDS + 2)) is None
    state.renew(fast, NOW + timedelta(seconds=2 * TTL_SECONDS))
    assert state.acquire("three", NOW + timedelta(seconds=2 * TTL_SECONDS + 5)) is None
    state.release(fast)
    assert state.acquire("three", NOW) is not None


def test_a_run_left_behind_is_abandoned_by_the_next_holder(state: State) -> None:
    """One running run per pair: a second one is refused, a predecessor's is ended."""
    row = {"pair": "t/crm", "reason": "run", "state": "running", "fence": 1, "started_at": NOW}
    store = state.store(taken(state))
    with store.transaction():
        store.rows.insert_run({"id": "r1", **row})
    with pytest.raises(REFUSED), store.transaction():
        store.rows.insert_run({"id": "r2", **row})
    later = NOW + timedelta(seconds=TTL_SECONDS + 1)
    store = state.store(taken(state, later))
    with store.transaction():
        store.rows.insert_run({"id": "r2", **row})
    assert [(each["id"], each["state"], each["finished_at"]) for each in state.dump("run")] == [
        ("r1", "abandoned", later),
        ("r2", "running", None),
    ]


def test_nothing_is_written_outside_a_transaction(state: State) -> None:
    """A write that nobody proved the lease for is a mistake of ours, and refused as one."""
    rows = state.store(taken(state)).rows
    with pytest.raises(RuntimeError, match="inside a transaction"):
        rows.insert_links([link("1", "a")])
    with pytest.raises(RuntimeError, match="inside a transaction"):
        rows.save_sightings([sighting("1")])
    with pytest.raises(RuntimeError, match="inside a transaction"):
        rows.insert_plan({"id": "p"})


# --- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "second",
    [link("1", "b"), link("2", "a"), link("3", "c", state="lost"), link("3", "c", why=None)],
    ids=["left twice", "right twice", "no such state", "no reason"],
)
def test_one_record_has_one_link(state: State, second: Row) -> None:
    """A ref is in one link of a pair and kind; a link says how it stands, and why it is."""
    store = state.store(taken(state))
    with store.transaction():
        store.rows.insert_links([link("1", "a"), link("1", "a", kind="contact")])
    with pytest.raises(REFUSED), store.transaction():
        store.rows.insert_links([second])
    with pytest.raises(REFUSED), store.transaction():
        store.rows.insert_links([link("9", "z")])
        store.rows.update_links([{"id": store.rows.links(Side.LEFT, "deal", ["9"])[0]["id"], "left_id": "1"}])
    assert len(state.dump("link")) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"verb": "update", "target_id": "c1"}, {"verb": "delete", "target_id": "c1"}),
        ({"source_id": "p1"}, {"source_id": "p1"}),
    ],
    ids=["one target", "one source"],
)
def test_one_record_has_one_open_operation(state: State, first: Row, second: Row) -> None:
    """What may be on its way is not sent twice; once it is settled the next may go."""
    rows = planned(state, operation("k1", **first), operation("k2", **second))
    store = state.store(taken(state, NOW + timedelta(seconds=TTL_SECONDS + 1)))
    one, two = (row["id"] for row in rows.operations("p", None))
    with store.transaction():
        store.rows.update_operations([{"id": one, "state": "sent"}])
    with pytest.raises(REFUSED), store.transaction():
        store.rows.update_operations([{"id": two, "state": "sent"}])
    with store.transaction():
        store.rows.update_operations([{"id": one, "state": "done"}])
        store.rows.update_operations([{"id": two, "state": "sent"}])
    with pytest.raises(REFUSED), store.transaction():
        store.rows.insert_operations([operation("k1")])


def test_a_watermark_never_goes_back(state: State) -> None:
    """Neither to an earlier time nor to none; other columns move as they like."""
    store = state.store(taken(state))
    key = {"pair": "t/crm", "side": "left", "kind": "deal", "parent": ""}
    with store.transaction():
        store.rows.save_feeds([{**key, "watermark": "now", "watermark_at": NOW}])
    for at in (NOW - timedelta(microseconds=1), None):
        with pytest.raises(REFUSED, match="never goes back"), store.transaction():
            store.rows.save_feeds([{**key, "watermark_at": at}])
    with store.transaction():
        store.rows.save_feeds([{**key, "visited_at": NOW}])
    assert [(row["watermark"], row["visited_at"], row["cost"]) for row in state.dump("feed")] == [("now", NOW, 0)]


def test_a_question_waits_once(state: State) -> None:
    """One open review for each record, one open conflict for each field of a link; closed ones do not count."""
    store = state.store(taken(state))
    conflict = {"pair": "t/crm", "run": "r", "kind": "deal", "left_id": "1", "right_id": "a", "field": "name",
                "opened_at": NOW}  # fmt: skip
    with store.transaction():
        store.rows.insert_conflict({**conflict, "settled_at": NOW})
        store.rows.insert_conflict(conflict)
        for candidates in ([{"id": "x"}], [{"id": "y"}], [{"id": "y"}]):
            store.rows.open_review(Side.LEFT, "deal", "1", candidates, NOW)
    with pytest.raises(REFUSED), store.transaction():
        store.rows.insert_conflict(conflict)
    assert [row["candidates"] for row in state.dump("match_review")] == [[{"id": "y"}]]
    assert len(store.rows.open_conflicts("deal", "1", "a")) == 1


# --- the order of things ------------------------------------------------------------------


def test_operations_come_parents_first_and_deletes_last_in_reverse(state: State) -> None:
    """A plan is read in the order in which it is applied."""
    keys = [
        "company update",
        "company delete",
        "deal_contact create",
        "deal_contact delete",
        "deal mark",
        "deal create",
    ]
    operations = []
    for turn, key in enumerate(keys):
        kind, verb = key.split()
        operations += [
            operation(f"{key} {side}", kind=kind, verb=verb, side=side, target_id=str(turn)) for side in Side
        ]
    rows = planned(state, *operations)
    assert [row["idempotency_key"] for row in rows.operations("p", "planned")] == [
        "company update right", "company update left", "deal create right", "deal create left", "deal mark right",
        "deal mark left", "deal_contact create right", "deal_contact create left", "deal_contact delete right",
        "deal_contact delete left", "company delete right", "company delete left",
    ]  # fmt: skip


def test_parents_come_longest_unvisited_first_and_closed_ones_last(state: State) -> None:
    """A page goes on where the last one ended, and what is gone is no parent; what the plan creates is one."""
    planned(state, operation("k", source_id="planned"))
    store = state.store(taken(state, NOW + timedelta(seconds=TTL_SECONDS + 1)))
    with store.transaction():
        ids = ("closed", "never", "gone", "lately", "long ago")
        store.rows.insert_links(
            [link(id_, f"c{id_}", left_facts={"locked": {"*": "x"} if id_ == "closed" else {}}) for id_ in ids]
        )
        store.rows.save_sightings(
            [sighting("gone", is_deleted=True), sighting("x", "left", "deal_contact", parent="never")]
        )
        for id_, days in (("lately", 1), ("long ago", 9)):
            store.rows.save_feeds(
                [{"pair": "t/crm", "side": "left", "kind": "deal_contact", "parent": id_,
                  "visited_at": NOW - timedelta(days=days)}]
            )  # fmt: skip

    def page(after: Place | None = None, **more: Any) -> list[tuple[str, bool]]:
        wanted = {"visited_before": None, "closed_before": None, "limit": 10, **more}
        rows = store.rows.parents(Side.LEFT, "deal_contact", "p", after=after, **wanted)
        return [(row["id"], row["has_children"]) for row in rows]

    whole = [("never", True), ("planned", False), ("long ago", False), ("lately", False), ("closed", False)]
    assert page() == whole
    assert page(limit=2) == whole[:2]
    assert page(Place(False, NOW - timedelta(days=9), "long ago")) == whole[3:]
    assert page(visited_before=NOW - timedelta(days=5)) == [*whole[:3], whole[4]]


def test_whatever_a_webhook_speaks_of_comes_first_until_it_is_visited(state: State) -> None:
    """A closed one too; a word more while it is visited brings it to the front again; strange ids are no matter."""
    store = state.store(taken(state))
    with store.transaction():
        store.rows.insert_links(
            [link(id_, f"c{id_}", left_facts={"locked": {"*": "x"} if id_ == "closed" else {}})
             for id_ in ("closed", "lately", "long ago")]
        )  # fmt: skip
    days = {"closed": 0, "lately": 1, "long ago": 9}
    for id_, since in days.items():
        store.advance_children(Side.LEFT, "deal_contact", {id_: []}, {id_: 0}, NOW - timedelta(days=since))

    def due() -> list[tuple[str, int, bool]]:
        rows = store.parents(
            Side.LEFT, "deal_contact", None, visited_before=None, closed_before=NOW - timedelta(days=1)
        )
        return [(row.id, row.hints, row.is_due) for row in rows]

    assert due() == [("long ago", 0, False), ("lately", 0, False)]
    for told in (["lately", "strange"], ["closed"], ["closed"]):
        state.hint(Side.LEFT, "deal_contact", told)
    assert due() == [("closed", 2, True), ("lately", 1, True), ("long ago", 0, False)]
    state.hint(Side.LEFT, "deal_contact", ["closed"])
    store.advance_children(Side.LEFT, "deal_contact", {"closed": [], "lately": []}, {"closed": 2, "lately": 1}, NOW)
    assert due() == [("closed", 3, True), ("long ago", 0, False), ("lately", 1, False)]
    store.advance_children(Side.LEFT, "deal_contact", {"closed": []}, {"closed": 3}, NOW)
    assert due() == [("long ago", 0, False), ("lately", 1, False)]
    assert len(state.dump("feed")) == len(days)


def test_what_a_webhook_made_dirty_is_clean_once_read_unless_it_spoke_again(state: State) -> None:
    """Another word while it is read keeps it dirty: what was read may be older than that word."""
    store = state.store(taken(state))
    for told in (["1", "2"], ["2", "2"]):
        state.soil(Side.RIGHT, "contact", told, NOW)
    state.soil(Side.LEFT, "contact", ["9"], NOW)
    read = store.dirty()
    assert read[Side.RIGHT, "contact"] == {"1": (1, NOW), "2": (2, NOW)}
    state.soil(Side.RIGHT, "contact", ["2"], NOW)
    store.drop_dirty(Side.RIGHT, "contact", {**read[Side.RIGHT, "contact"], "nobody": Told(1, NOW)})
    assert store.dirty() == {(Side.RIGHT, "contact"): {"2": (3, NOW)}, (Side.LEFT, "contact"): {"9": (1, NOW)}}


# --- one against the other ----------------------------------------------------------------


class Twins:
    """A real database and one in memory, given the same calls: the same answers, refusals and rows are expected."""

    def __init__(self, engine: Engine, seed: int):
        self.random = Random(seed)
        self.states: tuple[State, State] = (PostgresState(engine), MemoryState())
        self.stores = tuple(state.store(taken(state)) for state in self.states)
        self.called: Counter[str] = Counter()
        self.refused = 0
        self.serial = 0

    def ask(self, name: str, *args: object, **named: object) -> None:
        """A question to both."""
        self.called[name] += 1
        real, memory = (getattr(store.rows, name)(*args, **named) for store in self.stores)
        if name == "operations":
            real, memory = list(real), list(memory)
        assert real == memory, (name, args, named, real, memory)

    def _check_stillness(self, kind: str, at: datetime, *, with_marks: bool) -> None:
        """Of a kind in which nothing stirs there is nothing to decide, whoever is asked for it."""
        rows = self.stores[1].rows  # the other one answers alike
        if not rows.stirs(kind, with_marks=with_marks):
            assert not rows.unsettled(kind, 0, 9, at, with_marks=with_marks) and not rows.chosen(kind)
            assert rows.answered(kind, ("never", "create", "apart")) == []
            for side in Side:
                found = (rows.unmatched(side, kind, "", 9), rows.retired(side, kind), rows.merged_away(side, kind))
                assert found == ([], [], [])

    def tell(self, name: str, *args: object) -> None:
        """A change to both, in a transaction of its own that may come to nothing."""
        self.called[name] += 1
        is_undone = self.random.random() < 0.1
        ends = [self._change(store, name, args, is_undone=is_undone) for store in self.stores]
        assert ends[0] == ends[1], (name, args, ends)
        self.refused += ends[0] == "refused"

    def _change(self, store: Any, name: str, args: tuple[object, ...], *, is_undone: bool) -> object:
        try:
            with store.transaction():
                answer = getattr(store.rows, name)(*args)
                if is_undone:
                    raise Killed
        except REFUSED:
            return "refused"
        except Killed:
            return "undone"
        return answer

    # --- something of each sort -------------------------------------------------------

    def some(self, words: str, most: int = 4) -> list[str]:
        return self.random.choices(words.split(), k=self.random.randrange(most))

    def one(self, words: str) -> str:
        return self.random.choice(words.split())

    def flag(self, share: float = 0.5) -> bool:
        return self.random.random() < share

    def at(self) -> datetime:
        return NOW + timedelta(minutes=self.random.randrange(5))

    def side(self) -> Side:
        return self.random.choice(list(Side))

    def kind(self) -> str:
        return self.one("deal contact deal_contact")

    def ids(self) -> list[str]:
        return self.some("1 2 3 4 5 6")

    def facts(self) -> dict[str, object]:
        return {
            "locked": {"*": "x"} if self.flag(0.3) else {},
            "opaque": {"native": self.one("1 2")} if self.flag() else {},
            "merged_into": self.one("1 2 3") if self.flag(0.3) else None,
        }

    def values(self) -> dict[str, object]:
        money = {"$": "money", "amount": "1", "currency": self.one("SEK EUR")}
        return {"name": self.one("x y"), "amount": money if self.flag() else None}

    def sighting(self) -> dict[str, object]:
        return sighting(
            self.one("1 2 3 4 5 6"), self.side(), self.kind(), parent=self.one("1 2 3"), values=self.values(),
            facts=self.facts(), mark=self.one("1 2") if self.flag() else None, keys=self.some("a b ref:deal=1 c"),
            is_deleted=self.flag(0.3), is_linked=self.flag(), state=self.one("new waiting retired review dead"),
            modified_at=self.at() if self.flag() else None,
        )  # fmt: skip

    def link(self) -> dict[str, object]:
        halves = {
            f"{side}_{name}": value
            for side in Side
            for name, value in (
                ("parent", self.one("1 2 3")), ("base", self.values()), ("facts", self.facts()),
                ("keys", self.some("a b ref:deal=1 c")), ("version", None), ("modified_at", self.at()),
            )
        }  # fmt: skip
        row = link(self.one("1 2 3 4 5 6"), self.one("1 2 3 4 5 6"), self.kind(), **halves)
        return {**row, "state": self.one("in_step pending dead"), "is_marked": self.flag()}

    def operation(self) -> dict[str, object]:
        self.serial += 1
        return operation(
            f"k{self.serial}", plan=self.one("p q"), kind=self.kind(), verb=self.one("create update delete mark"),
            side=self.side(), source_id=self.one("1 2 3"), target_id=self.one("1 2 3") if self.flag() else None,
            group_key=self.one("g h"), refs={"ids": {"deal": self.one("1 2 3")}},
        )  # fmt: skip

    def conflict(self) -> dict[str, object]:
        return {
            "pair": "t/crm", "run": "r", "kind": self.kind(), "left_id": self.one("1 2"), "right_id": self.one("1 2"),
            "field": self.one("name tags"), "base": None, "left_value": "x", "right_value": ["y"],
            "opened_at": self.at(), "settled_at": self.at() if self.flag(0.3) else None,
        }  # fmt: skip

    def run(self) -> dict[str, object]:
        self.serial += 1
        return {
            "id": f"run{self.serial}", "pair": "t/crm", "reason": self.one("run backfill undo"),
            "state": self.one("running done failed abandoned"), "fence": 1, "started_at": self.at(),
        }  # fmt: skip

    def plan(self) -> dict[str, object]:
        self.serial += 1
        return {
            "id": f"plan{self.serial}", "pair": "t/crm",
            "run": self.random.choice([None, *(row["id"] for row in self.states[1].dump("run"))]),
            "hash": self.one("x y") if self.flag(0.5) else "", "state": self.one("open applied"),
            "reasons": ["x"] if self.flag(0.3) else [], "made_at": self.at(),
        }  # fmt: skip

    def a_run(self) -> str:
        return str(self.random.choice([row["id"] for row in self.states[1].dump("run")] or ["r"]))

    def logged(self) -> dict[str, object]:
        return {
            "pair": "t/crm", "run": self.a_run(), "kind": self.kind(), "side": str(self.side()),
            "verb": self.one("update delete delete"), "field": "name", "old": None, "new": "x", "rule": "r",
            "at": self.at(),
        }  # fmt: skip

    def feed(self) -> dict[str, object]:
        return {
            "pair": "t/crm", "side": str(self.side()), "kind": self.kind(), "parent": self.one("1 2 3"),
            "watermark": self.one("w v"), "watermark_at": self.at(), "visited_at": self.at() if self.flag() else None,
        }  # fmt: skip

    def moved(self) -> dict[str, object]:
        """What may change in a link."""
        sorts: list[dict[str, object]] = [
            {"state": "pending", "next_attempt_at": self.at()},
            {"left_id": self.one("1 2 3 4")},
            {"is_marked": self.flag(), "right_keys": self.some("a b")},
        ]
        return self.random.choice(sorts)

    def number(self, table: str) -> int:
        """The id of some row there is."""
        return int(self.random.choice([row["id"] for row in self.states[1].dump(table)] or [0]))

    # --- everything that can be asked and told ----------------------------------------

    def found(self) -> None:
        """Plans that operations may belong to."""
        for id_ in "pq":
            self.tell_surely("insert_plan", {**self.plan(), "id": id_})

    def tell_surely(self, name: str, *args: object) -> None:
        for store in self.stores:
            with store.transaction():
                getattr(store.rows, name)(*args)

    def change(self) -> None:
        """One change, drawn by lot."""
        pick = self.random.choice
        more = self.random.randrange(1, 3)
        changes: list[Callable[[], None]] = [
            lambda: self.tell("save_feeds", [self.feed()]),
            lambda: self.tell("save_sightings", [self.sighting() for _ in range(2 * more)]),
            lambda: self.tell(
                "update_sightings", self.side(), self.kind(), self.ids(),
                pick([{"state": "excluded", "reason": "x"}, {"is_linked": self.flag(), "state": "new", "reason": ""}]),
            ),
            lambda: self.tell("wake", self.side(), ["deal_contact", "employment"], self.some("a b c")),
            lambda: self.tell("insert_links", [self.link() for _ in range(more)]),
            lambda: self.tell("update_links", [{"id": self.number("link"), **self.moved()}]),
            lambda: self.tell("move_children", self.side(), "deal_contact", self.one("1 2 3"), self.one("1 2 3")),
            lambda: self.tell(
                "open_review", self.side(), self.kind(), self.one("1 2 3"), [{"id": self.one("1 2")}], self.at()
            ),
            lambda: self.tell("insert_conflict", self.conflict()),
            lambda: self.tell("update_conflicts", [self.number("conflict")], {"settled_at": self.at(), "base": "z"}),
            lambda: self.tell("insert_changes", [self.logged() for _ in range(more)]),
            lambda: self.hold(),
            lambda: self.tell("save_holds", [
                {"pair": "t/crm", "kind": self.kind(), "side": str(self.side()), "record_id": self.one("1 2 3"),
                 "reason": self.one("x y"), "held_at": self.at()}
            ]),
            lambda: self.tell("insert_run", self.run()),
            lambda: self.tell("insert_plan", self.plan()),
            lambda: self.tell("update_plan", self.one("p q"), {"state": "open", "hash": self.one("x y")}),
            lambda: self.tell("insert_operations", [self.operation() for _ in range(2 * more)]),
            lambda: self.tell(
                "update_operations",
                [{"id": self.number("operation"), "state": self.one("sent sent done"), "sent_at": self.at()}],
            ),
            lambda: self.soil(),
            lambda: self.tell("drop_dirty", self.side(), self.kind(), {id_: pick([1, 2]) for id_ in self.ids()}),
        ]  # fmt: skip
        rare: list[Callable[[], None]] = [
            lambda: self.tell("drop_sightings", self.side(), self.kind(), self.ids()),
            lambda: self.drop_gone(),
            lambda: self.tell("delete_links", self.kind(), self.ids(), self.ids()),
            lambda: self.tell("close_reviews", self.side(), self.kind(), self.ids(), self.at()),
            lambda: self.answer(),
            lambda: self.tell("update_run", self.a_run(), {"state": "done", "counts": {self.one("a waived"): 1}}),
            lambda: self.tell("drop_holds", self.side(), self.kind(), self.ids()),
            lambda: self.tell("discard_plans", self.at()),
            lambda: self.tell("abandon_plans", self.at(), pick([None, "p"])),
            lambda: self.tell("forget_visits", self.side(), self.kind(), self.at()),
            lambda: self.hint(),
        ]
        pick(rare if self.flag(0.2) else changes)()

    def hold(self) -> None:
        """A record held still by a person, who has no lease."""
        row = {
            "pair": "t/crm", "kind": self.kind(), "side": str(self.side()), "record_id": self.one("1 2 3"),
            "reason": "x", "held_at": self.at(),
        }  # fmt: skip
        real, memory = self.states
        assert isinstance(real, PostgresState)
        assert isinstance(memory, MemoryState)
        key = (row["kind"], row["side"], row["record_id"])
        if key not in memory.hold.rows:
            with real.engine.begin() as tx, memory.changing(self):
                tx.execute(insert(s.hold).values(row))
                memory.hold.add(row)

    def hint(self) -> None:
        side, kind, ids = self.side(), self.kind(), self.ids()
        for state in self.states:
            state.hint(side, kind, ids)

    def soil(self) -> None:
        side, kind, ids, at = self.side(), self.kind(), self.ids(), self.at()
        for state in self.states:
            state.soil(side, kind, ids, at)

    def drop_gone(self) -> None:
        side, kind, ids = self.side(), self.kind(), self.ids()
        for store in self.stores:
            with store.transaction():
                store.rows.drop_sightings(side, kind, ids, only_gone=True)

    def answer(self) -> None:
        """A person's word, which is given beside the rows."""
        waiting = [row for row in self.states[1].dump("match_review") if row["answered_at"] is None]
        if waiting:
            row, at = self.random.choice(waiting), self.at()
            other = f"{Side(row['side']).other}_id"
            taken = [each[other] for each in self.states[1].dump("link") if each["kind"] == row["kind"]]
            # Nobody may name one that is linked already.
            answers = "never create" if row["candidates"][0]["id"] in taken else "same same never create"
            answer = self.one(answers)
            for state in self.states:
                state.answer_review(row["id"], answer, row["candidates"][0]["id"] if answer == "same" else None, at)

    def question(self) -> None:
        """Every question there is, about things drawn by lot."""
        side, kind, ids, at, plan = self.side(), self.kind(), self.ids(), self.at(), self.one("p q")
        keys = self.some("a b ref:deal=1 c")
        self.ask("feeds", side, kind, ids)
        self.ask("all_feeds")
        self.ask(
            "parents", side, self.one("deal_contact employment"), plan, limit=self.random.choice([1, 9]),
            visited_before=at if self.flag() else None, closed_before=at if self.flag() else None,
            after=Place(self.flag(), self.at(), self.one("1 2 3")) if self.flag() else None,
            among=self.ids() if self.flag() else None, is_told=self.flag(),
        )  # fmt: skip
        self.ask("dirty")
        self.ask("holders", side, kind, "native", ids)
        self.ask("sightings", side, kind, ids)
        self.ask("unmatched", side, kind, self.one("0 2"), 2)
        self.ask("retired", side, kind)
        self.ask("merged_away", side, kind)
        with_marks = self.flag()
        self.ask("stirs", kind, with_marks=with_marks)
        self._check_stillness(kind, at, with_marks=with_marks)
        self.ask("links", side, kind, ids)
        self.ask("link", self.number("link"))
        self.ask("linked", side, kind, ids)
        self.ask("unsettled", kind, self.random.randrange(9), 3, at, with_marks=self.flag())
        self.ask("counterparts", kind, side, ids)
        self.ask("known_children", side, kind, ids)
        self.ask("count_known", side, kind)
        self.ask("count_links")
        self.ask("stranded", side, "deal_contact", "deal", 2)
        self.ask("deletes_since", at)
        self.ask("holds")
        self.ask("alike", side, kind, ids, ids, keys)
        self.ask("linked_alike", side, kind, ids, keys)
        self.ask("usurpers", kind, ids)
        self.ask("linked_keys", side, kind, keys)
        self.ask("currency", self.one("shared linked sighted"))
        self.ask("answered", kind, ["never", "create"])
        self.ask("chosen", kind)
        self.ask("open_conflicts", kind, self.one("1 2"), self.one("1 2"))
        self.ask("backfills")
        self.ask("operations", plan, self.random.choice([None, "planned", "sent"]))
        self.ask("planned", plan, kind, self.one("create update"), side, 2)
        self.ask("planned_creates", plan, kind, side, ["g"])
        self.ask("open_operations")
        self.ask("planned_sources", plan, kind, side, ids)
        self.ask("planned_refs", plan, kind, side, "deal", ids)
        self.list_whole(side, kind, ids)

    def list_whole(self, side: Side, kind: str, ids: list[str]) -> None:
        missing = []
        for store in self.stores:
            with store.rows.listing(side, kind) as listing:
                listing.add(ids[:1])
                listing.add(ids)
                missing.append(listing.missing())
        self.called["listing"] += 1
        assert missing[0] == missing[1]

    def compare(self) -> None:
        for name in TABLES:
            assert self.states[0].dump(name) == self.states[1].dump(name), name


@pytest.mark.parametrize("seed", range(3))
def test_both_answer_every_question_alike_whatever_was_told_before(engine: Engine, seed: int) -> None:
    """The simulation's state is PostgreSQL's: the same rows, in the same order, and the same refusals."""
    twins = Twins(engine, seed)
    twins.found()
    for _ in range(60):
        for _ in range(4):
            twins.change()
        twins.question()
    twins.compare()
    doors = {name for name in vars(Rows) if not name.startswith("_")} - {"pair", "transaction"}
    assert doors == set(twins.called), doors ^ set(twins.called)
    assert twins.refused > 2, twins.refused


def test_the_kinds_stand_in_one_order() -> None:
    """Both keepers count by it."""
    assert KINDS == ("company", "contact", "employment", "deal", "deal_contact")


def test_a_listing_holds_no_transaction_open_between_two_pages(engine: Engine) -> None:
    """A vendor may take minutes over the next page; nothing in the database waits for that."""
    open_ones = text("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
    with PostgresRows(engine, "t/crm").listing(Side.LEFT, "contact") as listing:
        listing.add(["a"])
        with engine.connect() as tx:
            assert tx.execute(open_ones).scalar_one() == 0
        assert listing.missing() == []
