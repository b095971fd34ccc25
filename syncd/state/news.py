"""What rows say of records, what a record says as a row, and whether it is news.

A record is news when neither its link's base nor its earlier sighting tells it. Nothing here reads
or writes: the store does.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from syncd.core.mapping import freeze, same, thaw
from syncd.core.match import keys_of, ref_key
from syncd.core.model import FIELDS, RELATIONS, Hashed, Json, LinkState, Record, Side, Value, Values
from syncd.state.rows import Row

Verdict: TypeAlias = Literal["keep", "drop", "refresh", "drop and refresh", "none"]

#: What is known from further ahead was stamped by a clock that was wrong: it is no proof that a record shown with an
#: earlier time is an old one.
AHEAD: Final = timedelta(hours=1)
_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def _facts(record: Record) -> dict[str, Json]:
    return {
        "refs": dict(record.refs),
        "locked": dict(record.locked),
        "native": dict(record.native),
        "opaque": dict(record.opaque),
        "merged_into": record.merged_into,
        "modified_by": record.modified_by,
        "mark": record.mark,
    }


def _telling(facts: Mapping[str, Json]) -> dict[str, Json]:
    """The facts that are news when they change: not what only comes back to the connector, who wrote, or our mark."""
    return {**facts, "opaque": None, "modified_by": None, "mark": None}


def keys_held(record: Record, pair: str) -> list[str]:
    """The keys under which a row is found again: those of matching, and each single reference."""
    single = {f"ref:{kind}={id_}" for kind, id_ in record.refs.items()} if record.kind in RELATIONS else set()
    return sorted(keys_of(record, pair) | single)


def sighting_row(
    pair: str, side: Side, record: Record, is_linked: bool, before: Row | None, at: datetime | None
) -> dict[str, object]:
    """A record as the inbox keeps it; why it waited before still holds if it says the same."""
    state, reason = "new", ""
    if before is not None and (before["state"] == "retired" or not _says_more(before, record)):
        state, reason = before["state"], before["reason"]
    return {
        "pair": pair,
        "side": str(side),
        "kind": record.kind,
        "id": record.id,
        "parent": record.parent,
        "values": freeze(record.values),
        "facts": _facts(record),
        "mark": record.mark,
        "keys": keys_held(record, pair),
        "version": record.version,
        "modified_at": record.modified_at,
        "is_deleted": record.is_deleted,
        "is_linked": is_linked,
        "state": state,
        "reason": reason,
        "attempts": 0,
        "next_attempt_at": None,
        # Since when it has been news, however often it moved.
        "seen_at": before["seen_at"] if before is not None else at or record.modified_at or _EPOCH,
    }


def seen_of(side: Side, record: Record) -> dict[str, object]:
    """What a link remembers of a record beside its values."""
    return {
        f"{side}_parent": record.parent,
        f"{side}_facts": _facts(record),
        f"{side}_version": record.version,
        f"{side}_modified_at": record.modified_at,
    }


def first_seen(side: Side, row: Row) -> dict[str, object]:
    """What a link takes over from a sighting when two records meet."""
    return {
        f"{side}_id": row["id"],
        f"{side}_parent": row["parent"],
        f"{side}_keys": list(row["keys"]),
        f"{side}_facts": row["facts"],
        f"{side}_version": row["version"],
        f"{side}_modified_at": row["modified_at"],
    }


def completed(record: Record, before: Record, rest: Values) -> Record:
    """A record as a write's answer tells it, which may be in part, with what was known of the rest."""
    if record is before:
        return record
    return replace(
        record,
        values={**rest, **record.values},
        refs=record.refs or before.refs,
        parent=record.parent or before.parent,
        mark=record.mark or before.mark,
        locked={**before.locked, **record.locked},
        native={**before.native, **record.native},
        opaque={**before.opaque, **record.opaque},
    )


def record_of(kind: str, row: Row) -> Record:
    """The record that a sighting tells."""
    facts = row["facts"]
    return Record(
        kind=kind,
        id=row["id"],
        values=thaw(row["values"]),
        parent=row["parent"],
        refs=facts.get("refs", {}),
        mark=row["mark"],
        version=row["version"],
        modified_at=row["modified_at"],
        modified_by=facts.get("modified_by"),
        is_deleted=row["is_deleted"],
        merged_into=facts.get("merged_into"),
        locked=facts.get("locked", {}),
        native=facts.get("native", {}),
        opaque=facts.get("opaque", {}),
    )


def base_record(kind: str, row: Row, side: Side) -> Record:
    """One side of a link as its base tells it."""
    facts = row[f"{side}_facts"]
    is_marked = side is Side.RIGHT and row["is_marked"]
    return Record(
        kind=kind,
        id=row[f"{side}_id"],
        values=thaw(row[f"{side}_base"]),
        parent=row[f"{side}_parent"],
        refs=facts.get("refs", {}),
        mark=row["left_id"] if is_marked else facts.get("mark"),
        version=row[f"{side}_version"],
        modified_at=row[f"{side}_modified_at"],
        modified_by=facts.get("modified_by"),
        locked=facts.get("locked", {}),
        native=facts.get("native", {}),
        opaque=facts.get("opaque", {}),
    )


def base_refs(link: Row, side: Side) -> str | None:
    """The key of a side's references when last in step."""
    return next((key for key in link[f"{side}_keys"] if key.startswith("refs:")), None)


def tells(base: Values, base_refs: str | None, record: Record, counts: Container[str], *, is_new_refs: bool) -> bool:
    """Whether a base tells all that counts of what a record says, so that it needs no sighting.

    A field that the base never heard of is not told, be it empty.
    """
    if record.is_deleted:
        return False
    types = FIELDS[record.kind]
    return all(
        name in base and same(types[name], value, base[name]) for name, value in record.values.items() if name in counts
    ) and (is_new_refs or base_refs is None or base_refs == ref_key(record.refs))


def _differs(row: Row, record: Record) -> bool:
    """Whether a sighting says something else than the record; versions and times do not count."""
    return bool(
        not _is_told(row["values"], record)
        or row["is_deleted"] != record.is_deleted
        or row["mark"] != record.mark
        or _telling(row["facts"]) != _telling(_facts(record))
    )


def _says_more(row: Row, record: Record) -> bool:
    """Whether a record differs by more than the fields that its sighting, made of a base, never heard of."""
    if row["version"] != record.version or row["is_deleted"]:
        return _differs(row, record)
    heard = {name: value for name, value in record.values.items() if name in row["values"]}
    return _differs(row, replace(record, values=heard))


def _is_told(stored: Mapping[str, Json], record: Record) -> bool:
    """Whether stored values are the record's; an erased one stands for each value that it is the same as."""
    frozen = freeze(record.values)
    if stored == frozen:
        return True
    erased = {name for name, value in stored.items() if isinstance(value, dict) and value.get("$") == "hash"}
    if not erased or stored.keys() != frozen.keys():
        return False
    held, types = thaw(stored), FIELDS[record.kind]
    return all(
        same(types[name], held[name], value) if name in erased else held[name] == value
        for name, value in record.values.items()
    )


def moved_base(kind: str, before: Values, agreed: Values) -> dict[str, Value]:
    """A base with what was agreed. A value that was erased and is still the same stays erased."""
    types = FIELDS[kind]
    news = {
        name: value
        for name, value in agreed.items()
        if not (isinstance(before.get(name), Hashed) and same(types[name], before[name], value))
    }
    return {**before, **news}


def news(
    side: Side,
    record: Record,
    link: Row | None,
    sighting: Row | None,
    counts: Container[str],
    *,
    at: datetime,
    is_exact: bool,
    is_current: bool,
) -> Verdict:
    """``keep`` it as a sighting, ``drop`` the sighting there is, ``refresh`` what the link knows of it, or ``none``."""
    if record.is_deleted:
        if link is None:
            return "drop" if sighting is not None else "none"
        return "none" if sighting is not None and sighting["is_deleted"] else "keep"
    last_at = sighting["modified_at"] if sighting is not None and not sighting["is_deleted"] else None
    if not is_current and _is_older(record.modified_at, last_at, at):
        return "none"
    if link is None:
        if sighting is None or sighting["version"] != record.version or _differs(sighting, record):
            return "keep"
        return "none"
    known_at, known_version = link[f"{side}_modified_at"], link[f"{side}_version"]
    if not is_current and _is_older(record.modified_at, known_at, at):
        return "none"
    is_same_version = known_version is not None and known_version == record.version
    base = thaw(link[f"{side}_base"])
    is_told = tells(base, base_refs(link, side), record, counts, is_new_refs=not record.refs)
    is_heard = all(name in base for name in record.values if name in counts)
    if is_told or (is_exact and is_same_version and is_heard and sighting is None):
        if _telling(link[f"{side}_facts"]) != _telling(_facts(record)):
            return "keep"
        if sighting is not None and (sighting["is_deleted"] or link["state"] != LinkState.IN_STEP):
            return "keep"  # restored, or back at its base: whatever waited for that is to be looked at
        if is_same_version:
            return "drop" if sighting is not None else "none"
        return "drop and refresh" if sighting is not None else "refresh"
    is_known = sighting is not None and sighting["is_linked"] and sighting["version"] == record.version
    return "none" if is_known and sighting is not None and not _differs(sighting, record) else "keep"


def _is_older(one: datetime | None, other: datetime | None, at: datetime) -> bool:
    return one is not None and other is not None and one < other <= at + AHEAD
