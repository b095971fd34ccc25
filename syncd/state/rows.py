"""What the store asks of a database for one pair: rows in, rows out, and no decision.

A row is a mapping of the column names of ``schema``; values in it are as ``freeze`` left them. Nobody
changes a row that was given out or taken in. Rows of records come in the order of their ids, so that
the same history gives the same calls whatever keeps the state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from syncd.core.model import Address, Side, Verb
from syncd.state.lease import Lease

#: Any: the types of the columns are the schema's.
Row: TypeAlias = Mapping[str, Any]

#: What an operation holds of records, once it has ended: history is the change log's.
EMPTIED: Final[Row] = {"steps": {}, "before": {}, "source": {}, "conflicts": [], "because": {}}


class Joined(NamedTuple):
    """A link with the sightings of its two sides, where there are any."""

    link: Row
    left: Row | None
    right: Row | None


class Place(NamedTuple):
    """Where a listing of parents goes on: after this one.

    One of which a webhook spoke since its last visit is neither late, nor was it ever visited.
    """

    is_late: bool
    visited_at: datetime
    id: str


class Listing(Protocol):
    """The ids that a full listing showed, kept outside this process's memory where there is such a place."""

    def add(self, ids: Sequence[str]) -> None: ...

    def missing(self) -> list[Address]:
        """Linked records that the listing lacks and that nobody reported gone yet."""


class Rows(Protocol):
    """The tables of one pair. Whoever writes does so inside ``transaction``."""

    @property
    def pair(self) -> str: ...

    def transaction(self, lease: Lease) -> AbstractContextManager[None]:
        """All or nothing; one inside another is part of it. It begins, with a proof of the lease, with its first write.

        That one raises LeaseLostError. Where the proof holds, nobody else can have changed what was read before it.
        """

    # --- feeds ------------------------------------------------------------------------

    def feeds(self, side: Side, kind: str, parents: Collection[str]) -> list[Row]: ...

    def all_feeds(self) -> list[Row]:
        """Those of whole kinds, of both sides; not those below single parents."""

    def save_feeds(self, rows: Sequence[Row]) -> None:
        """Insert by primary key, or change the given columns, the same ones in each row; never a watermark back."""

    def parents(
        self,
        side: Side,
        child: str,
        plan_id: str | None,
        *,
        visited_before: datetime | None,
        closed_before: datetime | None,
        after: Place | None,
        limit: int,
        among: Collection[str] | None = None,
        is_told: bool = False,
    ) -> list[Row]:
        """``id``, ``watermark``, ``is_closed``, ``has_children``, ``visited_at`` of a child's parents, by ``Place``.

        Linked ones that nobody reported gone, and those that the plan creates on the other side;
        with ``among`` only these; with ``is_told`` only those that are due or were never visited.
        ``hints``: how often a webhook spoke of one; ``is_due``: whether it did since the last visit.
        """

    def holders(self, side: Side, kind: str, key: str, ids: Collection[str]) -> list[Address]:
        """Linked or sighted records whose opaque ``key`` is one of these."""

    def forget_visits(self, side: Side, kind: str, latest: datetime) -> None:
        """Visits noted later than ``latest`` were noted by a clock that was wrong, and prove nothing."""

    def dirty(self) -> list[Row]:
        """``side``, ``kind``, ``id``, ``hints`` and ``heard_at`` of what a webhook spoke of."""

    def drop_dirty(self, side: Side, kind: str, read: Mapping[str, int]) -> None:
        """Those of which nothing more was heard than these hints."""

    # --- sightings --------------------------------------------------------------------

    def sightings(self, side: Side, kind: str, ids: Collection[str]) -> list[Row]: ...

    def unmatched(self, side: Side, kind: str, after: str, limit: int) -> list[Row]:
        """New sightings without a link, of an id beyond ``after``."""

    def retired(self, side: Side, kind: str) -> list[Row]: ...

    def stirs(self, kind: str, *, with_marks: bool) -> bool:
        """Whether there is anything to decide of a kind: else all of it is in step, or set aside until something moves.

        It may say yes where nothing comes of it, never no where something would.
        """

    def merged_away(self, side: Side, kind: str) -> list[tuple[str, str]]:
        """Ids that are known to be gone into another, and that one's id."""

    def save_sightings(self, rows: Sequence[Row]) -> None:
        """Insert or replace, by primary key; whole rows."""

    def update_sightings(self, side: Side, kind: str, ids: Collection[str], changes: Row) -> None:
        """Give all of these the same ``state``, ``reason`` or ``is_linked``; those that have it are not written."""

    def drop_sightings(self, side: Side, kind: str, ids: Collection[str], *, only_gone: bool = False) -> None: ...

    def wake(self, side: Side, kinds: Collection[str], keys: Collection[str]) -> None:
        """Make new what waits without a link and is known by one of these keys."""

    # --- links ------------------------------------------------------------------------

    def links(self, side: Side, kind: str, ids: Collection[str]) -> list[Row]:
        """Links by the ids of one side."""

    def link(self, link_id: int) -> Row | None: ...

    def linked(self, side: Side, kind: str, ids: Collection[str]) -> list[Joined]:
        """Links by the ids of one side, with what was seen of both."""

    def unsettled(self, kind: str, after: int, limit: int, at: datetime, *, with_marks: bool) -> list[Joined]:
        """Living links beyond ``after`` that are due, with a linked sighting on a side, or without their mark."""

    def counterparts(self, kind: str, side: Side, ids: Collection[str]) -> dict[str, str]: ...

    def insert_links(self, rows: Sequence[Row]) -> None: ...

    def update_links(self, rows: Sequence[Row]) -> None:
        """Change links by ``id``; all rows change the same columns."""

    def delete_links(self, kind: str, left_ids: Collection[str], right_ids: Collection[str]) -> list[Row]:
        """Delete links by either id; gives back the ids that they had."""

    def move_children(self, side: Side, child: str, old: str, new: str) -> None:
        """Links below one parent come below another; sightings without a link are dropped."""

    # --- both -------------------------------------------------------------------------

    def known_children(self, side: Side, kind: str, parents: Collection[str]) -> list[tuple[Address, bool]]:
        """Records below these parents and whether they are gone, the linked ones first."""

    def stranded(self, side: Side, kind: str, above: str, limit: int) -> list[str]:
        """Ids of one side of links, in step or pending, whose parent has no link of that kind, or is merged away."""

    def count_known(self, side: Side, kind: str) -> int:
        """Links, and sightings without one."""

    def count_links(self) -> dict[str, int]: ...

    def listing(self, side: Side, kind: str) -> AbstractContextManager[Listing]: ...

    def alike(
        self, side: Side, kind: str, ids: Collection[str], marks: Collection[str], keys: Collection[str]
    ) -> list[Row]:
        """``id``, ``keys``, ``mark`` of sightings without a link, but for retired ones, that have one of these."""

    def linked_alike(self, side: Side, kind: str, ids: Collection[str], keys: Collection[str]) -> list[Row]:
        """``id``, ``keys``, ``other_id`` and ``is_other_gone`` of linked records that have one of these."""

    def usurpers(self, kind: str, marks: Collection[str]) -> dict[str, tuple[str, str]]:
        """By each of these left ids that a linked right record carries which lacks its partner's mark: both its ids."""

    def linked_keys(self, side: Side, kind: str, keys: Collection[str]) -> set[str]:
        """Which of these keys linked records are known by."""

    def currency(self, of: Literal["shared", "linked", "sighted"]) -> str | None:
        """The most frequent currency of projects' amounts: of links with an amount on both sides, of links, of news."""

    # --- reviews, conflicts, the change log -------------------------------------------

    def open_review(self, side: Side, kind: str, record_id: str, candidates: Sequence[Any], at: datetime) -> None:
        """One open review for each record; its candidates are written only if they changed."""

    def close_reviews(self, side: Side, kind: str, ids: Collection[str], at: datetime) -> None: ...

    def answered(self, kind: str, answers: Collection[str]) -> list[Row]:
        """Reviews with one of these answers."""

    def chosen(self, kind: str) -> list[Row]:
        """Reviews answered ``same`` whose two records are both sighted and have no link."""

    def open_conflicts(self, kind: str, left_id: str, right_id: str) -> list[Row]: ...

    def insert_conflict(self, row: Row) -> None: ...

    def update_conflicts(self, ids: Collection[int], changes: Row) -> None: ...

    def insert_changes(self, rows: Sequence[Row]) -> None: ...

    def deletes_since(self, at: datetime) -> dict[tuple[str, Side], int]:
        """Deletions by (kind, side) of runs and backfills since then, but for those that a person let go."""

    # --- holds ------------------------------------------------------------------------

    def holds(self) -> list[Row]:
        """``kind``, ``side``, ``record_id``, ``reason`` of what is held still."""

    def save_holds(self, rows: Sequence[Row]) -> None:
        """Insert or replace, by primary key; whole rows."""

    def drop_holds(self, side: Side, kind: str, ids: Collection[str]) -> None: ...

    # --- runs, plans, operations ------------------------------------------------------

    def insert_run(self, row: Row) -> None: ...

    def update_run(self, run_id: str, changes: Row) -> None: ...

    def backfills(self) -> list[Row]:
        """Runs of that sort, the latest first."""

    def insert_plan(self, row: Row) -> None: ...

    def update_plan(self, plan_id: str, changes: Row) -> None: ...

    def discard_plans(self, at: datetime) -> None:
        """Those that are open still, but for undos; what was to be sent is emptied."""

    def abandon_plans(self, at: datetime, but: str | None) -> None:
        """Discard those that are being applied, and those that are open without a hash; not ``but``.

        And those of an abandoned run that wait for nobody: it would have carried them out, or told of them.
        """

    def insert_operations(self, rows: Sequence[Row]) -> None: ...

    def update_operations(self, rows: Sequence[Row]) -> None:
        """Change operations by ``id``; all rows change the same columns."""

    def operations(self, plan_id: str, state: str | None) -> Iterator[Row]:
        """Those of a plan in the order in which they are applied, as they were when asked for."""

    def planned(self, plan_id: str, kind: str, verb: Verb, side: Side, limit: int) -> list[Row]:
        """The next operations of one sort that are only planned, by group."""

    def planned_creates(self, plan_id: str, kind: str, side: Side, groups: Collection[str]) -> list[Row]:
        """Creates of these groups that are only planned."""

    def open_operations(self) -> list[Row]:
        """Operations of any plan that may have been sent and are not settled."""

    def planned_sources(self, plan_id: str, kind: str, side: Side, ids: Collection[str]) -> set[str]:
        """Which of these a plan creates on ``side``."""

    def planned_refs(self, plan_id: str, kind: str, side: Side, ref_kind: str, refs: Collection[str]) -> set[str]:
        """Which of these references are named by what a plan creates on ``side``."""
