"""What must hold after a history, whatever happened in it: the promises, each with the means to see it broken.

All is read from what the world itself remembers and from what the daemon wrote down; nothing is
asked of the engine. Every finding begins with the promise that it breaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from syncd.core.mapping import same, show, thaw
from syncd.core.merge import Flow
from syncd.core.model import FIELDS, KINDS, RELATIONS, Side, Value
from syncd.state.explain import unexplained
from tests.simulation.vendors import PERSON, READ_ONLY_LEFT, STAGES, USED, Manner, Row, Vendor
from tests.simulation.world import Simulation

Link = Mapping[str, Any]


def broken(simulation: Simulation) -> list[str]:
    """Every promise that does not hold now, in words. The history must have been played, calm included."""
    found = [*simulation.wrongs, *(wrong for vendor in simulation.vendors.values() for wrong in vendor.wrongs)]
    # Before the full comparison that puts right what the runs after the last edit should have.
    found += _convergence(_Book(simulation))
    found += _hints(simulation)
    found += _termination(simulation)
    found += _hints(simulation)
    book = _Book(simulation)
    found += _convergence(book)
    found += _no_unexplained_loss(book)
    found += _nothing_twice(book)
    found += _state_behind_the_world(book)
    found += _minimal_writes(book)
    found += _echoes(book)
    found += _explained(book)
    return list(dict.fromkeys(found))


def _explained(book: _Book) -> Iterator[str]:
    """Each write tells why, and its decision, made again from what was kept of it, gives the same value."""
    for row in book.changes:
        if not row["because"]:
            yield f"explained: {row['verb']} of {row['kind']} {row['field']} on {row['side']} has no ground"
    for each in unexplained(book.changes):
        yield f"explained: {each['verb']} of {each['kind']} {each['field']} on {each['side']} comes out otherwise"


def _hints(simulation: Simulation) -> Iterator[str]:
    """What webhooks told is settled: no record is dirty for ever, no visit is owed to a deal that is visited."""
    for row in simulation.state.dump("dirty"):
        yield f"hints: {row['side']} {row['kind']} is dirty for ever"
    links = {row["left_id"]: row for row in simulation.state.dump("link") if row["kind"] == "deal"}
    for row in simulation.state.dump("feed"):
        is_visited = row["side"] == Side.LEFT and row["kind"] == "deal_contact" and row["parent"] in links
        deal = simulation.hub.rows["deal"].get(row["parent"])
        if is_visited and row["hints"] > row["heard"] and deal is not None and not deal.record.is_deleted:
            yield f"hints: left deal {row['parent']} was spoken of and is never visited"


def _termination(simulation: Simulation) -> Iterator[str]:
    """A further run plans nothing, writes nothing and touches no base; nor does one that compares everything."""
    wrote = [len(vendor.wrote) for vendor in simulation.vendors.values()]
    links = _visited(simulation)
    plans = len(simulation.state.dump("plan"))
    for after_seconds, which in ((30.0, "a further run"), (100_000.0, "a full comparison")):
        simulation.further_run(after_seconds=after_seconds)
        if len(simulation.state.dump("plan")) != plans:
            yield f"termination: {which} planned something"
        if [len(vendor.wrote) for vendor in simulation.vendors.values()] != wrote:
            yield f"termination: {which} wrote something"
        if _visited(simulation) != links:
            yield f"termination: {which} touched a base"


def _visited(simulation: Simulation) -> list[dict[str, Any]]:
    """All links but those of relations whose ends are not linked: only a full comparison sees what becomes of them."""
    links = simulation.state.dump("link")
    known = {(side, row["kind"], row[f"{side}_id"]) for row in links for side in Side}
    return [
        row
        for row in links
        if all((side, *end) in known for side in Side for end in row[f"{side}_facts"].get("refs", {}).items())
    ]


class _Book:
    """The daemon's own books, sorted for looking things up."""

    def __init__(self, simulation: Simulation):
        self.simulation = simulation
        self.settings = simulation.settings
        self.vendors = simulation.vendors
        dump = simulation.state.dump
        self.links = dump("link")
        self.sightings = dump("sighting")
        self.conflicts = dump("conflict")
        self.changes = dump("change_log")
        self.operations = dump("operation")
        self.feeds = dump("feed")
        self.reviews = dump("match_review")
        self.by_side = {side: {(row["kind"], row[f"{side}_id"]): row for row in self.links} for side in Side}
        self.open_conflicts = {
            (row["kind"], row["left_id"], row["right_id"], row["field"])
            for row in self.conflicts
            if row["settled_at"] is None
        }
        self.told: set[tuple[str, str, str, object]] = set()
        """Values that the change log or a conflict keeps: kind, id, field, value as shown."""
        for row in self.changes:
            for value in (row["old"], row["new"]):
                shown = _shown(thaw({"": value})[""])
                for id_ in (row["left_id"], row["right_id"]):
                    self.told.add((row["kind"], id_, row["field"], shown))
        for row in self.conflicts:
            for value in (row["left_value"], row["right_value"]):
                for id_ in (row["left_id"], row["right_id"]):
                    self.told.add((row["kind"], id_, row["field"], _shown(value)))

    def is_half_gone(self, link: Link) -> bool:
        ends = [self.row(side, link["kind"], link[f"{side}_id"]) for side in Side]
        return any(row is not None and row.record.is_deleted for row in ends)

    def row(self, side: Side, kind: str, id_: str) -> Row | None:
        return self.vendors[side].rows[kind].get(id_)


def _shown(value: Any) -> object:
    shown = show(value) if not isinstance(value, list | dict) else value
    return tuple(shown) if isinstance(shown, list) else shown


# --- 1 ------------------------------------------------------------------------------------


def _convergence(book: _Book) -> Iterator[str]:
    """Every linked mapped field agrees, or is listed with its reason; every living record is linked or listed."""
    for link in book.links:
        yield from _agreement(book, link)
    for side in Side:
        for kind in KINDS:
            for record in book.vendors[side].living(kind):
                if (kind, record.id) not in book.by_side[side]:
                    yield from _alone(book, side, kind, record.id)


def _agreement(book: _Book, link: Link) -> Iterator[str]:
    kind, where = link["kind"], f"{link['kind']} {link['left_id']}-{link['right_id']}"
    left, right = (book.row(side, kind, link[f"{side}_id"]) for side in Side)
    if left is None or right is None:
        yield f"convergence: {where} links what never was"
        return
    is_gone = left.record.is_deleted or right.record.is_deleted
    if is_gone:
        is_held = any(key[:3] == (kind, link["left_id"], link["right_id"]) for key in book.open_conflicts)
        is_locked = any(row.record.locked or _below_lock(book, row) for row in (left, right))
        is_below = any(_is_below_what_waits(book, side, row) for side, row in zip(Side, (left, right), strict=True))
        ends = {side: row.record.refs.items() for side, row in zip(Side, (left, right), strict=True)}
        is_alone = any(end not in book.by_side[side] for side, each in ends.items() for end in each)
        is_waiting = is_alone and link["state"] == "excluded" and link["reason"].endswith("is not linked")
        is_listed = link["state"] == "dead" or (link["state"] == "excluded" and is_locked) or is_waiting
        if not (is_held or is_below or is_listed):
            yield f"convergence: {where} has lost a side and says {link['state']} ({link['reason']})"
        return
    if link["state"] == "pending":
        yield f"convergence: {where} is pending for ever"
    if link["state"] == "dead":
        if not (_may_be_dead(book, left, right) or _is_taken(book, link)):
            yield f"convergence: {where} is a dead letter: {link['reason']}"
        return
    if link["state"] == "excluded" and link["reason"] in (
        "outside the tenant's filter",
        "names a record that is not linked",
    ):
        yield from _excluded(book, link, left, right)
        return
    for name in USED[kind]:
        yield from _field(book, link, name, left, right, where)


def _is_below_what_waits(book: _Book, side: Side, row: Row) -> bool:
    """Whether one of the records that this one names lost a side, which a person or a lock keeps as it is."""
    ends = [link for end in row.record.refs.items() if (link := book.by_side[side].get(end)) is not None]
    held = {key[:3] for key in book.open_conflicts if key[3] == ""}
    return any(
        (link["kind"], link["left_id"], link["right_id"]) in held
        or (link["state"] in ("excluded", "dead") and book.is_half_gone(link))
        for link in ends
    )


def _below_lock(book: _Book, row: Row) -> bool:
    deal = book.vendors[Side.LEFT].rows["deal"].get(row.record.refs.get("deal", ""))
    return deal is not None and bool(deal.record.locked)


def _may_be_dead(book: _Book, left: Row, right: Row) -> bool:
    return bool(left.record.locked) or _below_lock(book, left)


def _is_taken(book: _Book, link: Link) -> bool:
    """Whether what stands in the way of a new counterpart is linked to another, as the dead letter says."""
    return any(
        f"the other system's {holder[f'{side}_id']} is it already, but linked to {holder[f'{side.other}_id']}"
        == link["reason"]
        for side in Side
        for holder in book.links
        if holder["kind"] == link["kind"]
    )


def _excluded(book: _Book, link: Link, left: Row, right: Row) -> Iterator[str]:
    if link["reason"] == "outside the tenant's filter":
        if right.record.native.get("pipeline") == book.settings.scope:
            yield f"convergence: {link['kind']} {link['left_id']} is not outside the filter"
        return
    ends = right.record.refs.items()
    if all((kind, id_) in book.by_side[Side.RIGHT] for kind, id_ in ends):
        yield f"convergence: {link['kind']} {link['left_id']}: all that it names is linked"


def _field(book: _Book, link: Link, name: str, left: Row, right: Row, where: str) -> Iterator[str]:
    kind, policy = link["kind"], book.settings.policy(link["kind"], name)
    here, there = left.record.values.get(name), right.record.values.get(name)
    if name == "stage":
        here = STAGES.get(str(here))
    if _agree(book, kind, name, here, there) or policy.flow is Flow.OFF:
        return
    if (kind, link["left_id"], link["right_id"], name) in book.open_conflicts:
        return
    if left.record.locked or _below_lock(book, left):
        return  # refuses all writes; what waits for it is told by the link's state
    match policy.flow:
        case Flow.IF_EMPTY:
            if here is not None and there is not None:
                return
            # One that was emptied on purpose is not filled again.
            half = thaw(link["left_base"]).get(name), thaw(link["right_base"]).get(name)
            if half != (None, None):
                return
        case Flow.TO_CRM:
            if here is None and (_never_spoke(left, name) or not _is_ours(book, Side.RIGHT, link, name, right)):
                return  # one way does not blank what it did not write
        case Flow.TO_PROPSTREET:
            if there is None and (_never_spoke(right, name) or not _is_ours(book, Side.LEFT, link, name, left)):
                return
        case _:
            pass
    yield f"convergence: {where} {name} differs: {here!r} {there!r} ({policy.flow}, {link['state']} {link['reason']})"


def _never_spoke(row: Row, name: str) -> bool:
    return all(held is None for held in row.held.get(name, ()))


def _is_ours(book: _Book, side: Side, link: Link, name: str, there: Row) -> bool:
    """Whether syncd gave this side of a link this field, and nobody wrote over it before it was seen there."""
    given = [
        row
        for row in book.changes
        if (row["kind"], row["side"], row["field"]) == (link["kind"], side, name)
        and (row["left_id"], row["right_id"]) == (link["left_id"], link["right_id"])
        and row["at"] >= link["linked_at"]
    ]
    if len(given) == 1 and there.by.get(name) == "person":
        return thaw({name: given[0]["stored"]}) != {name: there.record.values.get(name)}
    return bool(given)


def _agree(book: _Book, kind: str, name: str, here: Value, there: Value) -> bool:
    type_ = FIELDS[kind][name]
    kept = book.simulation.crm.normalise(name, here)
    return same(type_, here, there) or same(type_, kept, there)


def _alone(book: _Book, side: Side, kind: str, id_: str) -> Iterator[str]:
    """A record without a counterpart must be listed with a reason that is true."""
    where = f"{side} {kind} {id_}"
    mine = [r for r in book.sightings if (r["side"], r["kind"], r["id"]) == (side, kind, id_)]
    if not mine:
        if kind == "deal_contact" or kind == "employment":
            parent = book.row(side, "deal" if kind == "deal_contact" else "contact", _parent(book, side, kind, id_))
            if (
                parent is None
                or parent.record.locked
                or (("deal" if kind == "deal_contact" else "contact"), parent.record.id) not in book.by_side[side]
            ):
                return  # children of what is not linked are not visited, those of what is closed by the hour
        yield f"no loss: {where} was never seen"
        return
    state, reason = mine[0]["state"], mine[0]["reason"]
    if state in ("new", "retired"):
        rules = book.settings.kinds[kind]
        if state == "retired" and rules.deletes_to(side).value != "archive":
            return
        if "from which it is kept apart" not in reason:
            yield f"convergence: {where} is {state} for ever ({reason})"
    if state == "waiting":
        refs = book.row(side, kind, id_).record.refs  # type: ignore[union-attr]  # it lives
        if all((end, ref) in book.by_side[side] for end, ref in refs.items()):
            yield f"convergence: {where} waits for what is linked"
    if state == "review" and not any(
        (r["side"], r["kind"], r["record_id"]) == (side, kind, id_) and r["answered_at"] is None for r in book.reviews
    ):
        yield f"convergence: {where} is in review without a review"


def _parent(book: _Book, side: Side, kind: str, id_: str) -> str:
    row = book.row(side, kind, id_)
    return row.record.parent or "" if row is not None else ""


# --- 2 ------------------------------------------------------------------------------------


def _no_unexplained_loss(book: _Book) -> Iterator[str]:
    """What a person wrote and we replaced or deleted is in the change log or the conflict list."""
    for side, vendor in book.vendors.items():
        for kind, id_, name, value in vendor.overwritten:
            if (kind, id_, name, _shown(value)) not in book.told:
                yield f"no loss: {side} {kind} {id_} {name}: {value!r} was replaced and is told nowhere"
        for wrote in vendor.wrote:
            if wrote.verb == "delete":
                yield from _lost_by_deletion(book, side, vendor, wrote.kind, wrote.id, dict(wrote.values))
    for side, vendor in book.vendors.items():
        yield from _lost_elements(book, side, vendor)
        yield from _deleted_by_nobody(book, side)


def _deleted_by_nobody(book: _Book, side: Side) -> Iterator[str]:
    """What was deleted had lost its counterpart. A system that hides a kind may take a handful with it, not more."""
    there = book.vendors[side.other]
    gone = {
        (row["kind"], row[f"{side.other}_id"], row["run"])
        for row in book.changes
        if (row["verb"], row["side"]) == ("delete", side) and row["run"] not in book.simulation.waived
    }
    wrong: Counter[str] = Counter()
    for kind, id_, _ in gone:
        partner = there.rows[kind].get(id_ or "") if kind not in RELATIONS else None
        wrong[kind] += partner is not None and not partner.was_deleted
    for kind, count in wrong.items():
        if count > book.settings.limits.vanished.floor * max(1, there.denied[kind]):
            yield f"no loss: {side} {count} {kind} were deleted whose counterparts nobody had deleted"
        elif count and not there.denied[kind]:
            yield f"no loss: {side} {count} {kind} were deleted although their counterparts were always there"


def _lost_by_deletion(
    book: _Book, side: Side, vendor: Vendor, kind: str, id_: str, values: Mapping[str, tuple[Value, Value]]
) -> Iterator[str]:
    """A deletion may take only what the other side had too, or what is written down."""
    row = vendor.rows[kind][id_]
    others = {
        change["right_id" if side is Side.LEFT else "left_id"]
        for change in book.changes
        if change["kind"] == kind and change["left_id" if side is Side.LEFT else "right_id"] == id_
    }
    for name, (value, _) in values.items():
        if value is None or isinstance(value, frozenset) or row.by.get(name) != PERSON:
            continue
        if book.settings.policy(kind, name).flow is not Flow.BOTH:
            continue
        is_known = any(
            _agree(book, kind, name, *((held, value) if side is Side.RIGHT else (value, held)))
            for other in others
            if other is not None and (there := book.row(side.other, kind, other)) is not None
            for held in there.held.get(name, ())
        )
        if not is_known and (kind, id_, name, _shown(value)) not in book.told:
            yield f"no loss: {side} {kind} {id_} was deleted with {name} {value!r}, which nobody else had"


def _lost_elements(book: _Book, side: Side, vendor: Vendor) -> Iterator[str]:
    """A set's element that a person added stays until a person takes it off."""
    taken = set().union(*(each.taken_off for each in book.vendors.values()))
    for kind in KINDS:
        for record in vendor.living(kind):
            row = vendor.rows[kind][record.id]
            for name, value in record.values.items():
                if name != "tags" or book.settings.policy(kind, name).flow is not Flow.BOTH:
                    continue
                ever = {each for held in row.held.get(name, ()) if isinstance(held, frozenset) for each in held}
                now = value if isinstance(value, frozenset) else frozenset()
                for element in sorted(ever - now - taken):
                    yield f"no loss: {side} {kind} {record.id}: {name} lost {element}"


# --- 4 ------------------------------------------------------------------------------------


def _nothing_twice(book: _Book) -> Iterator[str]:
    """No two living records stand for one thing."""
    for side, vendor in book.vendors.items():
        for kind in KINDS:
            living = vendor.living(kind)
            # One that was linked anew since stands for another thing now, which its mark tells.
            rows = [vendor.rows[kind][record.id] for record in living]
            made = Counter(row.made_for for row in rows if row.made_for and row.made_for == row.record.mark)
            names: Counter[object] = Counter()
            if kind in RELATIONS:
                names = Counter(tuple(sorted(record.refs.items())) for record in living)
                made = Counter()
            for name, count in [*made.items(), *names.items()]:
                if count > 1:
                    yield f"nothing twice: {side} has {count} {kind} for {name}"


# --- 5 ------------------------------------------------------------------------------------


def _state_behind_the_world(book: _Book) -> Iterator[str]:
    """A base holds only what its side once held; no watermark is ahead of its vendor's clock; no write is open."""
    for link in book.links:
        for side in Side:
            row = book.row(side, link["kind"], link[f"{side}_id"])
            if row is None:
                continue
            family = [row, *(each for old in row.record.formerly if (each := book.row(side, link["kind"], old)))]
            for name, value in thaw(link[f"{side}_base"]).items():
                ever = [held for each in family for held in each.held.get(name, ())]
                if name == "stage" and side is Side.LEFT:
                    ever = [*ever, *(STAGES.get(str(each)) for each in ever)]
                if isinstance(value, frozenset):  # agreed upon element by element
                    is_true = value <= frozenset().union(*(each for each in ever if isinstance(each, frozenset)))
                else:
                    is_true = value is None or any(same(FIELDS[link["kind"]][name], value, each) for each in ever)
                if not is_true:
                    where = f"{side} {link['kind']} {row.record.id} {name}"
                    yield f"state: the base of {where} was never held there: {value!r}"
    for feed in book.feeds:
        if feed["watermark_at"] is not None and feed["watermark_at"] > book.simulation.at:
            yield f"state: the watermark of {feed['side']} {feed['kind']} is ahead of its clock"
    for operation in book.operations:
        if operation["state"] in ("intended", "sent"):
            yield f"state: an operation on {operation['side']} {operation['kind']} is open for ever"


# --- 8 ------------------------------------------------------------------------------------


def _minimal_writes(book: _Book) -> Iterator[str]:
    """Nothing that is not mapped for writing was written; other systems' refs are there."""
    for side, vendor in book.vendors.items():
        for wrote in vendor.wrote:
            if wrote.verb == "update":
                for name in wrote.values:
                    flow = book.settings.policy(wrote.kind, name).flow
                    is_wrong = flow is Flow.OFF or flow is (Flow.TO_CRM if side is Side.LEFT else Flow.TO_PROPSTREET)
                    if is_wrong or (side is Side.LEFT and (wrote.kind, name) in READ_ONLY_LEFT):
                        yield f"minimal writes: {side} {wrote.kind} {wrote.id} {name} was written against its policy"
        for kind in KINDS:
            for row in vendor.rows[kind].values():
                if row.foreign != row.given:
                    yield f"minimal writes: {side} {kind} {row.record.id} lost another system's refs"


def _echoes(book: _Book) -> Iterator[str]:
    """An echo stops after one hop: what the CRM made of Propstreet's own value is no edit of the CRM.

    Text is never said twice, so that a value cut short can come from nowhere else. Where two records meet
    anew, with no base to tell, it is a conflict like others.
    """
    kept = book.simulation.crm.normalise
    edits = {(row["call"], row["field"]) for row in book.changes if row["rule"] == "moved in crm"}
    for wrote in book.vendors[Side.LEFT].wrote:
        for name, (before, value) in wrote.values.items():
            type_ = FIELDS[wrote.kind][name]
            is_cut = not same(type_, before, value) and same(type_, kept(name, before), value)
            if is_cut and (wrote.key, name) in edits:
                yield f"echo: left {wrote.kind} {wrote.id} {name}: {before!r} came back as {value!r}"


__all__ = ["Manner", "broken"]
