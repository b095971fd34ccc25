"""Each question that a run asks of its pair's state, answered in the core's nouns.

A ``Store`` belongs to one pair and one lease. It holds every decision about the state and no
statement: what keeps the rows is ``Rows``. Whatever changes state happens inside
``transaction()``, which proves the lease before it does. No method here calls a vendor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, NamedTuple

from syncd.core.base import Halves, Unmoved
from syncd.core.mapping import freeze, instant
from syncd.core.match import Answers, Review, Suspect
from syncd.core.merge import Word
from syncd.core.model import FIELDS, RELATIONS, Address, Json, LinkState, Record, Side, Value
from syncd.core.plan import Sighted
from syncd.core.watermark import advance
from syncd.core.why import keep_word, recall_word
from syncd.state.lease import Lease
from syncd.state.news import (
    base_record,
    base_refs,
    completed,
    first_seen,
    keys_held,
    moved_base,
    news,
    record_of,
    seen_of,
    sighting_row,
    tells,
)
from syncd.state.rows import Joined, Listing, Place, Row, Rows

#: Why a sighting that is too young waits.
SETTLING = "settling"
#: So many parents are read at a time: the vendor is called between two of these reads.
PARENTS = 1_000
#: What is visited below a record of a kind.
CHILDREN = {"contact": "employment", "deal": "deal_contact"}


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A link with both sides as last seen. ``moved`` names the sides that have a sighting."""

    id: int
    kind: str
    left: Sighted
    right: Sighted
    state: LinkState
    reason: str
    is_marked: bool
    settled: Mapping[str, Word]
    moved: frozenset[Side]
    next_attempt_at: datetime | None
    since: Mapping[Side, datetime] = field(default_factory=dict)
    """Since when each moved side has been news."""
    settling: frozenset[Side] = frozenset()
    """Sides whose news were found too young."""

    def side(self, side: Side) -> Sighted:
        return self.left if side is Side.LEFT else self.right


@dataclass(frozen=True, slots=True)
class NewLink:
    """A record, the counterpart made for it, and the fields on which they agree: field -> (left, right)."""

    left: Record
    right: Record
    agreed: Halves
    is_marked: bool
    why: str


@dataclass(frozen=True, slots=True)
class FeedRow:
    watermark: str | None
    swept_at: datetime | None
    listed_at: datetime | None
    deep_at: datetime | None
    visited_at: datetime | None
    cost: int


@dataclass(frozen=True, slots=True)
class ParentRow:
    """A deal to visit for its children; ``watermark`` is the children's own.

    ``hints`` counts what webhooks told of it, since the last visit too if it ``is_due``.
    """

    id: str
    watermark: str | None
    is_closed: bool
    has_children: bool
    hints: int
    is_due: bool


class Told(NamedTuple):
    """How often webhooks spoke of a record, and when they did so last."""

    hints: int
    heard_at: datetime


NO_FEED = FeedRow(None, None, None, None, None, 0)


class Store:
    """The state of one pair, under one lease. Values of records are as their own system gave them."""

    def __init__(self, rows: Rows, lease: Lease):
        self.rows = rows
        self.lease = lease
        self.pair = rows.pair
        self.counts: Mapping[str, Container[str]] = FIELDS
        """By kind the fields that the pair syncs: what a record says of others is no news."""

    def transaction(self) -> AbstractContextManager[None]:
        """One short transaction under the lease, see ``Rows.transaction``. Never hold it across a network call."""
        return self.rows.transaction(self.lease)

    # --- feeds ------------------------------------------------------------------------

    def feed(self, side: Side, kind: str, parent: str = "") -> FeedRow:
        return next((_feed(row) for row in self.rows.feeds(side, kind, [parent])), NO_FEED)

    def feeds(self) -> dict[tuple[Side, str], FeedRow]:
        """The feeds of whole kinds, by side and kind."""
        return {(Side(row["side"]), row["kind"]): _feed(row) for row in self.rows.all_feeds()}

    def advance(
        self,
        side: Side,
        kind: str,
        parent: str,
        clocks: Sequence[str | None],
        *,
        known: FeedRow = NO_FEED,
        **stamps: object,
    ) -> None:
        """Move a feed's watermark to the latest of the clocks; it never goes back. Writes only what changes.

        ``known``: the feed as this run found it. Nobody else moves it, so that what changes nothing asks nothing.
        """
        if known is not NO_FEED and not stamps and advance(known.watermark, clocks) == known.watermark:
            return
        with self.transaction():
            held = self.rows.feeds(side, kind, [parent])
            current = held[0]["watermark"] if held else None
            watermark = advance(current, clocks)
            if not held or watermark != current or stamps:
                self.rows.save_feeds([self._feed_row(side, kind, parent, watermark) | stamps])

    def advance_children(
        self, side: Side, kind: str, clocks: Mapping[str, Sequence[str]], visited: Mapping[str, int], at: datetime
    ) -> None:
        """Move the watermarks of many parents at once; else as ``advance``.

        ``visited`` are those whose visit is noted, each with the hints that there were of it before the visit.
        """
        if not clocks:
            return
        with self.transaction():
            held = {row["parent"]: row for row in self.rows.feeds(side, kind, clocks.keys())}
            rows: list[Row] = []
            for parent, seen in clocks.items():
                row = held.get(parent)
                current = row["watermark"] if row is not None else None
                watermark = advance(current, seen)
                visited_at, heard = (row["visited_at"], row["heard"]) if row is not None else (None, 0)
                if parent in visited:
                    visited_at, heard = at, visited[parent]
                if row is None or watermark != current or parent in visited:
                    noted = {"visited_at": visited_at, "heard": heard}
                    rows.append(self._feed_row(side, kind, parent, watermark) | noted)
            self.rows.save_feeds(rows)

    def _feed_row(self, side: Side, kind: str, parent: str, watermark: str | None) -> dict[str, object]:
        return {
            "pair": self.pair,
            "side": str(side),
            "kind": kind,
            "parent": parent,
            "watermark": watermark,
            "watermark_at": instant(watermark, "watermark"),
        }

    def parents(
        self,
        side: Side,
        child: str,
        plan_id: str | None,
        *,
        visited_before: datetime | None,
        closed_before: datetime | None,
        among: Collection[str] | None = None,
        is_told: bool = False,
    ) -> Iterator[ParentRow]:
        """Deals (contacts, for an employment) whose children are worth reading, some at a time.

        Those of which a webhook spoke, then the longest unvisited, closed ones last. Those that have
        a link, and those that the plan in the making creates on the other side. With
        ``visited_before`` only what was not visited since; with ``closed_before`` closed ones only
        if they were not visited since; with ``among`` only these; with ``is_told`` only those of
        which a webhook spoke since their last visit, or that were never visited.
        """
        # By place, not by a cursor left open: the vendor is called between two of these.
        after: Place | None = None
        while rows := self.rows.parents(
            side, child, plan_id,
            visited_before=visited_before, closed_before=closed_before, after=after, limit=PARENTS, among=among,
            is_told=is_told,
        ):  # fmt: skip
            for row in rows:
                yield ParentRow(
                    row["id"], row["watermark"], row["is_closed"], row["has_children"], row["hints"], row["is_due"]
                )
            if len(rows) < PARENTS:
                return
            last = rows[-1]
            after = Place(last["is_closed"] and not last["is_due"], last["visited_at"], last["id"])

    def dirty(self) -> dict[tuple[Side, str], dict[str, Told]]:
        """What webhooks spoke of, by side and kind, and by id."""
        found: dict[tuple[Side, str], dict[str, Told]] = {}
        for row in self.rows.dirty():
            found.setdefault((Side(row["side"]), row["kind"]), {})[row["id"]] = Told(row["hints"], row["heard_at"])
        return found

    def drop_dirty(self, side: Side, kind: str, read: Mapping[str, Told]) -> None:
        """These were read; what was heard of meanwhile once more stays."""
        if read:
            with self.transaction():
                self.rows.drop_dirty(side, kind, {id_: told.hints for id_, told in read.items()})

    def holders(self, side: Side, kind: str, key: str, ids: Sequence[str]) -> list[Address]:
        """Known records whose opaque ``key`` is one of these ids."""
        return self.rows.holders(side, kind, key, ids)

    # --- the inbox --------------------------------------------------------------------

    def intake(
        self, side: Side, kind: str, records: Sequence[Record], at: datetime, *, is_exact: bool,
        is_current: bool = False,
    ) -> int:  # fmt: skip
        """Keep what is news: records that their base, or their earlier sighting, does not tell.

        A record older than what is known is an index lagging behind and is no news, unless what shows
        it ``is_current``: then it was committed late, or set back. Returns how many rows it wrote.
        """
        if not records:
            return 0
        records = list({record.id: record for record in records}.values())
        ids = [record.id for record in records]
        formerly = [old for record in records for old in record.formerly]
        with self.transaction():
            links = {row[f"{side}_id"]: row for row in self.rows.links(side, kind, [*ids, *formerly])}
            seen = {row["id"]: row for row in self.rows.sightings(side, kind, [*ids, *formerly])}
            upserts: list[Row] = []
            # What was merged away is there no more, though nothing that links here says so.
            absorbed = seen.keys() - set(ids)
            drops = [id_ for id_ in sorted(absorbed) if not seen[id_]["is_linked"]]
            refreshed: list[Row] = []
            touched: list[str] = []
            for record in records:
                link, sighting = links.get(record.id), seen.get(record.id)
                if record.formerly and not record.is_deleted:
                    link = self._follow_merge(side, record, links, at)
                verdict = news(
                    side, record, link, sighting, self.counts[kind], at=at, is_exact=is_exact, is_current=is_current
                )
                if verdict == "keep":
                    upserts.append(sighting_row(self.pair, side, record, link is not None, sighting, at))
                elif verdict in ("drop", "drop and refresh"):
                    drops.append(record.id)
                if verdict in ("refresh", "drop and refresh") and link is not None:
                    now_seen = seen_of(side, record)
                    # A relation without a version of its own is met like this in every run.
                    if any(link[name] != value for name, value in now_seen.items()):
                        refreshed.append({"id": link["id"], **now_seen})
                    touched.append(record.id)
            self.rows.save_sightings(upserts)
            self.rows.drop_sightings(side, kind, drops)
            moved = [links[row["id"]] for row in upserts if row["id"] in links]
            self._revive((link["id"], link["state"]) for link in moved)
            self.rows.update_links(refreshed)
            if kind not in RELATIONS:
                # What was refused for the sake of one of these may be taken now.
                self._wake_links(side, kind, [*_unlocked(side, upserts, links, seen), *touched], at)
        return len(upserts) + len(drops) + len(refreshed)

    def _revive(self, links: Iterable[tuple[int, str]]) -> None:
        """Of links, by id and state, the dead letters are worth another try."""
        dead = [id_ for id_, state in links if state == LinkState.DEAD]
        self.rows.update_links([{"id": id_, "state": LinkState.PENDING, "reason": ""} for id_ in dead])

    def refuse(self, side: Side, kind: str, id_: str, reason: str, at: datetime) -> None:
        """A record that could not be read: a dead letter, with its link if it has one."""
        with self.transaction():
            for link in self.rows.links(side, kind, [id_]):
                if link["reason"] != reason:
                    self.rows.update_links([{"id": link["id"], "state": LinkState.DEAD, "reason": reason}])
                return
            if not self.rows.sightings(side, kind, [id_]):
                row = sighting_row(self.pair, side, Record(kind, id_, {}), False, None, at)
                self.rows.save_sightings([row | {"state": "dead", "reason": reason}])

    def sighted(self, side: Side, kind: str, ids: Iterable[str]) -> dict[str, Record]:
        """Records as last seen, from their sighting or else from their base."""
        wanted = set(ids)
        found = {row.side(side).record.id: row.side(side).record for row in self.linked(kind, side, wanted)}
        for row in self.rows.sightings(side, kind, wanted - found.keys()):
            found[row["id"]] = record_of(kind, row)
        return found

    def _follow_merge(self, side: Side, survivor: Record, links: dict[str, Row], at: datetime) -> Row | None:
        """A record that came out of a merge inherits the link of its one linked ancestor.

        With several, it is the one whose counterpart the survivor's mark names. Those that are left
        over are two things that became one, which is a person's decision: their links stay where
        they are, each with its reason. So do all where no mark tells, and the survivor waits in review;
        and those of ancestors of a survivor that has a link of its own.
        """
        own, kind = links.get(survivor.id), survivor.kind
        ancestors = [links[old] for old in survivor.formerly if old in links and old != survivor.id]
        if not ancestors:
            return own
        own_id, other_id = f"{side}_id", f"{side.other}_id"
        heirs = [row for row in ancestors if own is None and (len(ancestors) == 1 or row[other_id] == survivor.mark)]
        told = {
            row["id"]
            for row in self.rows.sightings(side, kind, [row[own_id] for row in ancestors])
            if row["is_deleted"] and row["facts"].get("merged_into") == survivor.id
        }
        gone = [
            replace(base_record(kind, row, side), is_deleted=True, merged_into=survivor.id)
            for row in ancestors
            if row not in heirs and row[own_id] not in told
        ]
        self.rows.save_sightings([sighting_row(self.pair, side, each, True, None, at) for each in gone])
        if len(heirs) != 1:
            return own
        links[survivor.id] = self._inherit(side, survivor, heirs[0], at)
        return links[survivor.id]

    def _inherit(self, side: Side, survivor: Record, link: Row, at: datetime) -> Row:
        is_marked = side is Side.RIGHT and survivor.mark == link["left_id"]
        changes = {f"{side}_parent": survivor.parent, "is_marked": is_marked}
        return self._hand_over(side, link, survivor.id, changes, at)

    def _hand_over(self, side: Side, link: Row, survivor: str, changes: Row, at: datetime) -> Row:
        """The link goes over to the survivor, and so do its children; what waited for that one is new."""
        kind, old = link["kind"], link[f"{side}_id"]
        changes = {**changes, f"{side}_id": survivor}
        self.rows.update_links([{"id": link["id"], **changes}])
        self._end_conflicts(kind, link["left_id"], link["right_id"], at)
        self.rows.drop_sightings(side, kind, [old])
        # Children are known below the survivor now, whose next visit misses their old ids and asks after them.
        if child := CHILDREN.get(kind):
            self.rows.move_children(side, child, old, survivor)
        self.wake(side, kind, [survivor], at)
        return {**link, **changes}

    def stirs(self, kind: str, *, with_marks: bool) -> bool:
        """See ``Rows.stirs``; with ``with_marks`` links that lack their mark count too."""
        return self.rows.stirs(kind, with_marks=with_marks)

    def follow_merges(self, side: Side, kind: str, at: datetime) -> None:
        """Links whose record was merged into one that has no link yet go over to the survivor."""
        with self.transaction():
            merged = self.rows.merged_away(side, kind)
            for id_, survivor in merged:
                claims = sum(1 for _, other in merged if other == survivor)
                if claims > 1 or self.counterparts(kind, side, [survivor]):
                    continue
                for link in self.rows.links(side, kind, [id_]):
                    self._hand_over(side, link, survivor, {"is_marked": False}, at)
                self._linked_now(side, kind, [survivor], at)

    def _linked_now(self, side: Side, kind: str, ids: Sequence[str], at: datetime) -> None:
        self.rows.update_sightings(side, kind, ids, {"is_linked": True, "state": "new", "reason": ""})
        self.rows.close_reviews(side, kind, ids, at)

    def known_children(self, side: Side, kind: str, parents: Sequence[str]) -> dict[str, Address]:
        """All records of a kind known below these parents."""
        known = self.rows.known_children(side, kind, parents)
        gone = {address.id for address, is_gone in known if is_gone}
        return {address.id: address for address, _ in known if address.id not in gone}

    def stranded(self, side: Side, kind: str) -> list[LinkRow]:
        """Linked relations below a record that is linked no more, or merged away: nobody visits it to hear of them."""
        above = next(parent for parent, child in CHILDREN.items() if child == kind)
        return self.linked(kind, side, self.rows.stranded(side, kind, above, PARENTS))

    def count_known(self, side: Side, kind: str) -> int:
        """How many live records of a kind are known: linked, or sighted without a link."""
        return self.rows.count_known(side, kind)

    def listing(self, side: Side, kind: str) -> AbstractContextManager[Listing]:
        """Remember which ids a full listing shows, outside this process's memory."""
        return self.rows.listing(side, kind)

    # --- matching ---------------------------------------------------------------------

    def unmatched(
        self, side: Side, kind: str, after: str, limit: int, admits: Callable[[Row], bool] = lambda row: True
    ) -> list[Record]:
        """Records without a link that nothing is known to stand in the way of, by id; those that it ``admits``."""
        while rows := self.rows.unmatched(side, kind, after, limit):
            if found := [record_of(kind, row) for row in rows if admits(row)]:
                return found
            after = rows[-1]["id"]
        return []

    def note_settling(self, side: Side, kind: str, ids: Sequence[str], *, is_young: bool) -> None:
        """Remember that records wait until they are quiet, or that they do no longer."""
        if ids:
            with self.transaction():
                self.rows.update_sightings(side, kind, ids, {"reason": SETTLING if is_young else ""})

    def holds(self) -> dict[tuple[str, Side], dict[str, str]]:
        """What is held still, by kind and side: id -> reason; the counterparts of what is held are."""
        found: dict[tuple[str, Side], dict[str, str]] = {}
        for row in self.rows.holds():
            found.setdefault((row["kind"], Side(row["side"])), {})[row["record_id"]] = row["reason"]
        for (kind, side), reasons in list(found.items()):
            for own, other in self.counterparts(kind, side, reasons).items():
                found.setdefault((kind, side.other), {}).setdefault(other, reasons[own])
        return found

    def deletes_since(self, at: datetime) -> dict[tuple[str, Side], int]:
        """Deletions by (kind, side) since then that no person said yes to."""
        return self.rows.deletes_since(at)

    def forget_visits(self, side: Side, kind: str, latest: datetime) -> None:
        """See ``Rows.forget_visits``."""
        with self.transaction():
            self.rows.forget_visits(side, kind, latest)

    def suspects(
        self, side: Side, kind: str, *, ids: Iterable[str] = (), marks: Iterable[str] = (), keys: Iterable[str] = ()
    ) -> list[Suspect]:
        """Records of one side that have one of these ids, marks or keys, linked ones included.

        A record whose partner is known to be gone counts as free: its link may be taken over.
        """
        ids, marks, keys = list(ids), list(marks), list(keys)
        alone = self.rows.alike(side, kind, ids, marks, keys)
        linked = self.rows.linked_alike(side, kind, ids, keys)
        return [Suspect(row["id"], frozenset(row["keys"]), row["mark"]) for row in alone] + [
            Suspect(row["id"], frozenset(row["keys"]), None, None if row["is_other_gone"] else row["other_id"])
            for row in linked
        ]

    def usurpers(self, kind: str, ids: Collection[str]) -> dict[str, tuple[str, str]]:
        """Which of these Propstreet ids stand on a crm record that is linked to another: (that one, the crm's id)."""
        return self.rows.usurpers(kind, ids)

    def counterparts(self, kind: str, side: Side, ids: Iterable[str]) -> dict[str, str]:
        """For ids of one side, the ids they are linked to on the other."""
        return self.rows.counterparts(kind, side, set(ids))

    def planned_sources(self, plan_id: str, kind: str, side: Side, ids: Iterable[str]) -> set[str]:
        """Which of these records of ``side`` the plan in the making creates on the other side."""
        return self.rows.planned_sources(plan_id, kind, side.other, set(ids))

    def holding(self, kind: str, side: Side, ref_kind: str, refs: Iterable[str]) -> set[str]:
        """Which of these references of ``side`` have a linked record of this kind already."""
        keys = {f"ref:{ref_kind}={ref}": ref for ref in refs}
        return {keys[key] for key in self.rows.linked_keys(side, kind, keys.keys())}

    def planned_refs(self, plan_id: str, kind: str, side: Side, ref_kind: str, refs: Iterable[str]) -> set[str]:
        """Which of these references of ``side`` get a record of this kind by the plan in the making."""
        return self.rows.planned_refs(plan_id, kind, side.other, ref_kind, set(refs))

    def keep(self, side: Side, record: Record, at: datetime, *, is_linked: bool = True) -> None:
        """Remember a record as it stands, though nothing about it is news."""
        with self.transaction():
            self.rows.save_sightings([sighting_row(self.pair, side, record, is_linked, None, at)])

    def answers(self, kind: str) -> Answers:
        """What people said, for good, about which records of a kind are not the same."""
        told = [
            (row["answer"], Side(row["side"]), row["record_id"], each["id"])
            for row in self.rows.answered(kind, ("never", "create", "apart"))
            for each in row["candidates"]
        ]
        made = frozenset((side, own) for answer, side, own, _ in told if answer == "create")
        ended = [(side, own, other) for answer, side, own, other in told if answer == "apart"]
        return Answers(
            never=frozenset((own, other) if side is Side.LEFT else (other, own) for _, side, own, other in told),
            made=made,
            ended=frozenset((own, other) if side is Side.LEFT else (other, own) for side, own, other in ended),
        )

    def chosen(self, kind: str) -> list[tuple[str, str]]:
        """Pairs (left id, right id) that a person called the same thing and that both stand alone still."""
        found = [(row["side"], row["record_id"], row["answered_with"]) for row in self.rows.chosen(kind)]
        return [(own, other) if side == Side.LEFT else (other, own) for side, own, other in found]

    def make_links(self, kind: str, found: Sequence[tuple[str, str, str]], at: datetime) -> None:
        """Link sighted records, (left id, right id, why) each; their bases are empty, so all is still to be merged.

        A link of either to a partner that is gone gives way. What it held in step was nowhere
        sighted, so it is taken from its base.
        """
        if not found:
            return
        ids = {Side.LEFT: [each[0] for each in found], Side.RIGHT: [each[1] for each in found]}
        with self.transaction():
            for side in Side:
                for row in self.linked(kind, side, ids[side]):
                    self._sight_both(row, at)
            self.drop_links(kind, at, left_ids=ids[Side.LEFT], right_ids=ids[Side.RIGHT])
            lefts, rights = (
                {row["id"]: row for row in self.rows.sightings(side, kind, ids[side])} for side in Side
            )  # fmt: skip
            rows = [
                self._met(kind, lefts[left_id], rights[right_id], why, at)
                for left_id, right_id, why in found
                if left_id in lefts and right_id in rights
            ]
            self.rows.insert_links(rows)
            for side in Side:
                linked = [str(row[f"{side}_id"]) for row in rows]
                self._linked_now(side, kind, linked, at)
                self.wake(side, kind, linked, at)

    def _sight_both(self, link: LinkRow, at: datetime) -> None:
        """Give each side of a link a sighting, so that nothing is forgotten with the link."""
        for side in Side:
            if side not in link.moved:
                self.keep(side, link.side(side).record, at)

    def _met(self, kind: str, left: Row, right: Row, why: str, at: datetime) -> dict[str, object]:
        return {
            "pair": self.pair, "kind": kind, "state": LinkState.PENDING, "why": why, "linked_at": at,
            "is_marked": right["mark"] == left["id"], **first_seen(Side.LEFT, left), **first_seen(Side.RIGHT, right),
        }  # fmt: skip

    def drop_links(
        self, kind: str, at: datetime, *, left_ids: Sequence[str] = (), right_ids: Sequence[str] = ()
    ) -> None:
        """Forget links; what is still sighted of them stands alone again, what is gone is forgotten.

        Links that name one of their records and were set aside are looked at again.
        """
        with self.transaction():
            rows = self.rows.delete_links(kind, left_ids, right_ids)
            for row in rows:
                self._end_conflicts(kind, row["left_id"], row["right_id"], at)
            for side in Side:
                ids = [row[f"{side}_id"] for row in rows]
                self.rows.drop_sightings(side, kind, ids, only_gone=True)
                self.rows.update_sightings(side, kind, ids, {"is_linked": False, "state": "new", "reason": ""})
                if kind not in RELATIONS:
                    self._wake_links(side, kind, ids, at)

    def save_reviews(self, kind: str, reviews: Sequence[Review], at: datetime) -> None:
        """Put records before a person; one that waits already is brought up to date only if its candidates changed."""
        with self.transaction():
            for review in reviews:
                candidates = [
                    {"id": each.id, "reasons": list(each.reasons), "linked_to": each.linked_to}
                    for each in review.candidates
                ]
                self.rows.open_review(review.side, kind, review.id, candidates, at)
                self.shelve(review.side, kind, {review.id: ("review", "a person must name its counterpart")})

    def shelve(self, side: Side, kind: str, verdicts: Mapping[str, tuple[str, str]]) -> None:
        """Record why these unlinked records wait: id -> (state, reason). Unchanged ones are not written."""
        alike: dict[tuple[str, str], list[str]] = {}
        for id_, verdict in verdicts.items():
            alike.setdefault(verdict, []).append(id_)
        with self.transaction():
            for (state, reason), ids in alike.items():
                self.rows.update_sightings(side, kind, ids, {"state": state, "reason": reason})

    def wake(self, side: Side, kind: str, ids: Sequence[str], at: datetime) -> None:
        """What waited for one of these to be linked is looked at again, without a link of its own or with one."""
        if kind not in RELATIONS and ids:
            with self.transaction():
                self.rows.wake(side, sorted(RELATIONS), [f"ref:{kind}={id_}" for id_ in ids])
                self._wake_links(side, kind, ids, at)

    def _wake_links(self, side: Side, kind: str, ids: Sequence[str], at: datetime) -> None:
        """Look again at links of relations that name one of these and were set aside: why may be no longer so."""
        for relation in sorted(RELATIONS) if ids else ():
            named = self.rows.linked_alike(side, relation, [], [f"ref:{kind}={id_}" for id_ in ids])
            links = self.linked(relation, side, [row["id"] for row in named])
            aside = [link for link in links if link.state in (LinkState.EXCLUDED, LinkState.DEAD)]
            for link in aside:
                self._sight_both(link, at)
            self._revive((link.id, link.state) for link in aside)

    # --- links ------------------------------------------------------------------------

    def unsettled(self, kind: str, after: int, limit: int, at: datetime, *, with_marks: bool) -> list[LinkRow]:
        """Links of which something was seen that the base does not tell, or that lack their mark, by id."""
        return [_link_row(kind, row) for row in self.rows.unsettled(kind, after, limit, at, with_marks=with_marks)]

    def linked(self, kind: str, side: Side, ids: Collection[str]) -> list[LinkRow]:
        """The links of these records of one side, as last seen."""
        return [_link_row(kind, row) for row in self.rows.linked(side, kind, ids)]

    def settle(
        self,
        link: LinkRow,
        agreed: Halves,
        seen: Mapping[Side, Record],
        *,
        state: LinkState,
        reason: str = "",
        is_marked: bool | None = None,
        forget: Iterable[str] = (),
    ) -> None:
        """Move the base for the fields that both sides agree on: field -> (left half, right half).

        ``seen`` is what each side is known to hold now. A sighting stays only while it holds
        something that its base does not. ``forget`` names fields of which a person's word is done
        with. A link of which nothing is sighted any more has nothing pending. Nothing is written if
        nothing changes.
        """
        with self.transaction():
            changes: dict[str, object] = {}
            moved = set(link.moved)
            for side, at in ((Side.LEFT, 0), (Side.RIGHT, 1)):
                halves = {name: half for name, both in agreed.items() if not isinstance(half := both[at], Unmoved)}
                changes |= self._settle_side(link, side, halves, seen.get(side), moved)
            if state is LinkState.PENDING and not moved:
                state, reason = LinkState.IN_STEP, ""
            if state != link.state or reason != link.reason:
                changes |= {"state": state, "reason": reason}
            if is_marked is not None and is_marked != link.is_marked:
                changes["is_marked"] = is_marked
            kept = {name: word for name, word in link.settled.items() if name not in set(forget)}
            if kept != dict(link.settled):
                changes["settled"] = {name: keep_word(word) for name, word in kept.items()}
            if link.next_attempt_at is not None and state is not LinkState.DEAD:
                changes |= {"next_attempt_at": None, "attempts": 0}
            if changes:
                self.rows.update_links([{"id": link.id, **changes}])

    def _settle_side(
        self, link: LinkRow, side: Side, agreed: Mapping[str, Value], seen: Record | None, moved: set[Side]
    ) -> dict[str, object]:
        """What changes in a link for one side, whose sighting goes or stays; ``moved`` is kept up to date with it."""
        sighted = link.side(side)
        base = moved_base(link.kind, sighted.base, agreed)
        changes: dict[str, object] = {f"{side}_base": freeze(base)} if base != dict(sighted.base) else {}
        if side not in link.moved and seen is None:
            return changes
        rest = {name: base[name] if name in agreed else value for name, value in sighted.record.values.items()}
        record = completed(seen or sighted.record, sighted.record, rest)
        changes |= seen_of(side, record) | {f"{side}_keys": keys_held(record, self.pair)}
        is_new_refs = bool(agreed) or not record.refs
        if tells(base, sighted.base_refs, record, self.counts[link.kind], is_new_refs=is_new_refs):
            self.rows.drop_sightings(side, link.kind, [sighted.record.id])
            moved.discard(side)
        elif seen is not None:
            self.rows.save_sightings([sighting_row(self.pair, side, record, True, None, None)])
            moved.add(side)
        return changes

    def new_links(self, kind: str, made: Sequence[NewLink], at: datetime) -> None:
        """Link records to the counterparts that were just made for them."""
        if not made:
            return
        rows: list[Row] = []
        drops: dict[Side, list[str]] = {side: [] for side in Side}
        keeps: list[Row] = []
        for each in made:
            row: dict[str, object] = {
                "pair": self.pair, "kind": kind, "state": LinkState.IN_STEP, "why": each.why, "linked_at": at,
                "is_marked": each.is_marked,
            }  # fmt: skip
            for side, record, index in ((Side.LEFT, each.left, 0), (Side.RIGHT, each.right, 1)):
                halves = {name: both[index] for name, both in each.agreed.items()}
                base = {name: half for name, half in halves.items() if not isinstance(half, Unmoved)}
                row |= {
                    f"{side}_id": record.id,
                    f"{side}_base": freeze(base),
                    f"{side}_keys": keys_held(record, self.pair),
                    **seen_of(side, record),
                }
                if tells(base, None, record, self.counts[kind], is_new_refs=True):
                    drops[side].append(record.id)
                else:
                    keeps.append(sighting_row(self.pair, side, record, True, None, at))
            rows.append(row)
        with self.transaction():
            ids = {Side.LEFT: [e.left.id for e in made], Side.RIGHT: [e.right.id for e in made]}
            self.drop_links(kind, at, left_ids=ids[Side.LEFT], right_ids=ids[Side.RIGHT])
            self.rows.save_sightings(keeps)
            self.rows.insert_links(rows)
            for side in Side:
                self.rows.drop_sightings(side, kind, drops[side])
                self.rows.close_reviews(side, kind, ids[side], at)
                self.wake(side, kind, ids[side], at)

    def retire(self, side: Side, kind: str, link: LinkRow, reason: str, at: datetime) -> None:
        """Take a link apart: ``side``'s record must go, the other one looks for a new counterpart."""
        with self.transaction():
            self._sight_both(link, at)
            self.drop_links(kind, at, left_ids=[link.left.record.id])
            self.shelve(side, kind, {link.side(side).record.id: ("retired", reason)})

    def part(self, kind: str, link: LinkRow, verdicts: Mapping[Side, tuple[str, str]], at: datetime) -> None:
        """End a link; both records stay, as new ones unless there is a verdict (state, reason) on their side."""
        with self.transaction():
            self._sight_both(link, at)
            self.drop_links(kind, at, left_ids=[link.left.record.id])
            for side, verdict in verdicts.items():
                self.shelve(side, kind, {link.side(side).record.id: verdict})

    def retired(self, side: Side, kind: str) -> list[Record]:
        """Records of one side that must go because the other side's record names others now."""
        return [record_of(kind, row) for row in self.rows.retired(side, kind)]

    def bury(self, link_id: int, reason: str, at: datetime | None) -> None:
        """Make a link a dead letter; it is tried again when a side moves, or when a person says so."""
        with self.transaction():
            if (link := self.rows.link(link_id)) is not None:
                changes = {"state": LinkState.DEAD, "reason": reason, "attempts": link["attempts"] + 1}
                self.rows.update_links([{"id": link_id, **changes, "next_attempt_at": at}])

    def forget_sighting(self, side: Side, kind: str, id_: str) -> None:
        with self.transaction():
            self.rows.drop_sightings(side, kind, [id_])

    def count_links(self) -> dict[str, int]:
        """Links by kind."""
        return self.rows.count_links()

    def prevailing_currency(self) -> str | None:
        """The currency of most projects' prices, those first whose amount the CRM shares; None without any."""
        looks: tuple[Literal["shared", "linked", "sighted"], ...] = ("shared", "linked", "sighted")
        return next((found for look in looks if (found := self.rows.currency(look)) is not None), None)

    # --- holds ------------------------------------------------------------------------

    def hold(self, side: Side, kind: str, id_: str, reason: str, at: datetime) -> None:
        """Hold a record still; one that is held already gets the new reason."""
        row = {"pair": self.pair, "kind": kind, "side": str(side), "record_id": id_, "reason": reason, "held_at": at}
        with self.transaction():
            self.rows.save_holds([row])

    def unhold(self, side: Side, kind: str, id_: str) -> None:
        with self.transaction():
            self.rows.drop_holds(side, kind, [id_])

    # --- conflicts and the change log -------------------------------------------------

    def log_changes(self, rows: Sequence[Mapping[str, object]]) -> None:
        with self.transaction():
            self.rows.insert_changes([{"pair": self.pair, **row} for row in rows])

    def open_conflict(
        self,
        run_id: str,
        link: LinkRow,
        field: str,
        base: Json,
        left_value: Json,
        right_value: Json,
        *,
        decided: str | None,
        winner: Side | None,
        at: datetime,
    ) -> None:
        """Keep both values of a conflict, and who moved them and when as far as their systems tell.

        One that waits for a person is written once, and again only if it changes.
        """
        values: dict[str, object] = {"base": base, "left_value": left_value, "right_value": right_value}
        movers = {
            f"{side}_{name}": moved
            for side in Side
            for name, moved in (
                ("at", link.side(side).record.modified_at),
                ("by", link.side(side).record.modified_by),
            )
        }
        settled = {"decided": decided, "winner": winner, "settled_at": at} if decided else {}
        with self.transaction():
            waiting = [row for row in self._open_conflicts(link) if row["field"] == field]
            if not waiting:
                self.rows.insert_conflict(
                    {
                        "pair": self.pair, "run": run_id, "kind": link.kind, "left_id": link.left.record.id,
                        "right_id": link.right.record.id, "field": field, "opened_at": at,
                        **values, **movers, **settled,
                    }
                )  # fmt: skip
            elif settled or any(waiting[0][name] != value for name, value in values.items()):
                self.rows.update_conflicts([waiting[0]["id"]], {**values, **movers, **settled})

    def close_conflicts(self, link: LinkRow, open_fields: Iterable[str], at: datetime) -> None:
        """Conflicts of this link that waited and are none any more were settled by the two sides themselves."""
        still = set(open_fields)
        with self.transaction():
            over = [row["id"] for row in self._open_conflicts(link) if row["field"] not in still]
            self.rows.update_conflicts(over, {"settled_at": at, "decided": "agreed since"})

    def _end_conflicts(self, kind: str, left_id: str, right_id: str, at: datetime) -> None:
        """What two records that are linked no more disagreed on waits for nobody."""
        over = [row["id"] for row in self.rows.open_conflicts(kind, left_id, right_id)]
        if over:
            self.rows.update_conflicts(over, {"settled_at": at, "decided": "the link ended"})

    def _open_conflicts(self, link: LinkRow) -> list[Row]:
        return self.rows.open_conflicts(link.kind, link.left.record.id, link.right.record.id)


def _feed(row: Row) -> FeedRow:
    return FeedRow(row["watermark"], row["swept_at"], row["listed_at"], row["deep_at"], row["visited_at"], row["cost"])


def _link_row(kind: str, row: Joined) -> LinkRow:
    link = row.link
    sides: dict[Side, Sighted] = {}
    both = {Side.LEFT: row.left, Side.RIGHT: row.right}
    seen = {side: sighting for side, sighting in both.items() if sighting is not None}
    for side in Side:
        known = base_record(kind, link, side)
        record = known
        if side in seen:
            record = record_of(kind, seen[side])
            if record.is_deleted:
                record = replace(known, is_deleted=True, merged_into=record.merged_into)
        sides[side] = Sighted(record, known.values, base_refs(link, side))
    return LinkRow(
        id=link["id"],
        kind=kind,
        left=sides[Side.LEFT],
        right=sides[Side.RIGHT],
        state=LinkState(link["state"]),
        reason=link["reason"],
        is_marked=link["is_marked"],
        settled={name: recall_word(kept) for name, kept in link["settled"].items()},
        moved=frozenset(seen),
        next_attempt_at=link["next_attempt_at"],
        since={side: row["seen_at"] for side, row in seen.items()},
        settling=frozenset(side for side, row in seen.items() if row["reason"] == SETTLING),
    )


def _unlocked(side: Side, news: Iterable[Row], links: Mapping[str, Row], seen: Mapping[str, Row]) -> list[str]:
    """Linked records whose locks changed since they were last heard of."""
    known = {id_: link[f"{side}_facts"] for id_, link in links.items()} | {
        id_: row["facts"] for id_, row in seen.items()
    }
    return [
        row["id"] for row in news if row["id"] in links and row["facts"]["locked"] != known[row["id"]].get("locked", {})
    ]
