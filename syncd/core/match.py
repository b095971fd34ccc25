"""Which unlinked records are the same thing: certain, ambiguous, or none.

Evidence in falling order: a stored ref on either side, strong natural keys (an e-mail address, a
domain, an organisation number), weak ones (a name). One certain candidate, certain both ways,
links. Several, or only weak evidence, go to a person. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from syncd.core.mapping import digest, domain
from syncd.core.model import RELATIONS, Hashed, Record, Side, Value

#: Prefixes of keys that suggest but never prove.
WEAK: Final = ("name:",)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record of the other side and why it may be the same thing. ``linked_to`` if it is taken."""

    id: str
    reasons: tuple[str, ...]
    linked_to: str | None = None


@dataclass(frozen=True, slots=True)
class Review:
    """One record whose counterpart a person must name."""

    side: Side
    id: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A record that takes part in matching: what it is called and by which keys it is known."""

    id: str
    keys: frozenset[str]
    mark: str | None = None
    linked_to: str | None = None
    """The other side's id, if this record has a link already."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What people said, for good, about which records are not the same: pairs are (left id, right id)."""

    never: frozenset[tuple[str, str]] = frozenset()
    """These are never linked."""
    made: frozenset[tuple[Side, str]] = frozenset()
    """These are given a counterpart of their own, whatever else looks like one."""
    ended: frozenset[tuple[str, str]] = frozenset()
    """Their link, if they have one, ends; and nothing is made in its place for any of the two."""

    def stands_alone(self, side: Side, id_: str) -> bool:
        """Nothing is made for this record: its link was ended, and nobody asked for another."""
        at = 0 if side is Side.LEFT else 1
        return (side, id_) not in self.made and any(pair[at] == id_ for pair in self.ended)

    def not_known_by_keys(self, side: Side, suspect: Suspect) -> Suspect:
        """A record that is to be made is no longer met by what it looks like, only by an id that names it."""
        if suspect.linked_to is None and (side, suspect.id) in self.made:
            return replace(suspect, keys=frozenset())
        return suspect


@dataclass(frozen=True, slots=True)
class Matched:
    links: tuple[tuple[str, str, str], ...]
    """(left id, right id, reason)."""
    reviews: tuple[Review, ...]


def keys_of(record: Record, salt: str) -> frozenset[str]:
    """The natural keys of a record; for a kind made of references, those references.

    A natural key is kept as its sort and a digest: keys are compared, never read, so that no
    store of them tells anybody's address or name. Those of an erased address are the same.
    """
    if record.kind in RELATIONS:
        return frozenset({ref_key(record.refs)}) if record.refs else frozenset()
    values = record.values
    match record.kind:
        case "contact":
            addresses = _addresses(values.get("email"), salt) | _addresses(values.get("other_emails"), salt)
            return frozenset(addresses or _named(salt, values.get("first_name"), values.get("last_name")))
        case "company":
            found = _named(salt, values.get("name"))
            if host := domain(_read(values.get("domain")) or _read(values.get("homepage"))):
                found.add(f"domain:{digest(salt, host)}")
            if number := _digits(_read(values.get("org_number"))):
                found.add(f"org:{digest(salt, number)}")
            return frozenset(found)
        case _:
            return frozenset(_named(salt, values.get("name")))


def address_key(address: str, salt: str) -> str:
    """The key of a contact that has this e-mail address."""
    return f"email:{digest(salt, address.strip().lower())}"


def _addresses(value: Value, salt: str) -> set[str]:
    match value:
        case Hashed():
            return {f"email:{each}" for each in value.digests}
        case frozenset():
            return {address_key(each, salt) for each in value}
        case str():
            return {address_key(value, salt)}
    return set()


def ref_key(refs: Mapping[str, str]) -> str:
    """The key of a record that is made of references, in ids of its own side."""
    return "refs:" + "|".join(f"{kind}={id_}" for kind, id_ in sorted(refs.items()))


def _named(salt: str, *parts: Value) -> set[str]:
    name = " ".join(" ".join(str(part).split()) for part in map(_read, parts) if part).casefold()
    return {f"name:{digest(salt, name)}"} if name else set()


def _read(value: Value) -> Value:
    return None if isinstance(value, Hashed) else value


def _digits(value: Value) -> str:
    return "".join(ch for ch in str(value or "") if ch.isalnum()).lower()


def match(
    lefts: Iterable[Suspect], rights: Iterable[Suspect], never: frozenset[tuple[str, str]] = frozenset()
) -> Matched:
    """Link what is certain, put before a person what is not.

    Give it every record that shares a mark or a key with any other in the call, linked ones
    included: a linked one is never linked again, but it turns its double into a review instead
    of a second record. ``never`` holds pairs that a person kept apart for good.
    """
    left_by_id = {each.id: each for each in lefts}
    right_by_id = {each.id: each for each in rights}
    evidence = _evidence(left_by_id, right_by_id, never)
    links: list[tuple[str, str, str]] = []
    reviews: list[Review] = []
    best_left, best_right = _best(evidence, 0), _best(evidence, 1)
    for left_id, found in sorted(best_left.items()):
        if left_by_id[left_id].linked_to is not None:
            continue
        right_id, reasons = found[0]
        is_mutual = len(found) == 1 and [each for each, _ in best_right[right_id]] == [left_id]
        if is_mutual and right_by_id[right_id].linked_to is None and not _is_weak(reasons):
            links.append((left_id, right_id, reasons[0]))
        else:
            reviews.append(_review(Side.LEFT, left_id, found, right_by_id))
    linked_rights = {right_id for _, right_id, _ in links}
    for right_id, found in sorted(best_right.items()):
        if right_by_id[right_id].linked_to is None and right_id not in linked_rights:
            reviews.append(_review(Side.RIGHT, right_id, found, left_by_id))
    return Matched(tuple(links), tuple(reviews))


_Evidence = Mapping[tuple[str, str], tuple[str, ...]]
_Ranked = Mapping[str, Sequence[tuple[str, tuple[str, ...]]]]


def _evidence(
    lefts: Mapping[str, Suspect], rights: Mapping[str, Suspect], never: frozenset[tuple[str, str]]
) -> _Evidence:
    """Why each pair of records may be one thing, strongest reason first."""
    found: dict[tuple[str, str], list[str]] = {}
    for left in lefts.values():
        if left.mark in rights:
            found.setdefault((left.id, str(left.mark)), []).append("stored ref in propstreet")
    for right in rights.values():
        if right.mark in lefts:
            found.setdefault((str(right.mark), right.id), []).append("stored ref in crm")
    by_key: dict[str, list[str]] = {}
    for right in rights.values():
        for key in right.keys:
            by_key.setdefault(key, []).append(right.id)
    for left in lefts.values():
        for key in left.keys:
            for right_id in by_key.get(key, ()):
                found.setdefault((left.id, right_id), []).append(_reason(key))
    ranked = {pair: tuple(dict.fromkeys(sorted(reasons, key=_rank))) for pair, reasons in found.items()}
    return {
        pair: reasons
        for pair, reasons in ranked.items()
        if pair not in never and not (_is_weak(reasons) and _contradicts(lefts[pair[0]], rights[pair[1]]))
    }


def _contradicts(left: Suspect, right: Suspect) -> bool:
    """A name proves nothing where one has its link already, or both are known by strong keys that differ."""
    strong_left, strong_right = (
        {key.split(":")[0] for key in each.keys if not key.startswith(WEAK)} for each in (left, right)
    )
    return bool(strong_left & strong_right) or right.linked_to is not None or left.linked_to is not None


def _best(evidence: _Evidence, at: int) -> _Ranked:
    """For each record of one place in the pairs, its candidates of the strongest rank there is."""
    ordered = sorted(evidence.items(), key=lambda item: (item[0][at], _rank(item[1][0]), item[0][1 - at]))
    best: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for own_id, group in groupby(ordered, key=lambda item: item[0][at]):
        members = [(pair[1 - at], reasons) for pair, reasons in group]
        top = _rank(members[0][1][0])
        best[own_id] = [each for each in members if _rank(each[1][0]) == top]
    return best


def _review(
    side: Side, own_id: str, found: Sequence[tuple[str, tuple[str, ...]]], others: Mapping[str, Suspect]
) -> Review:
    return Review(side, own_id, tuple(Candidate(id_, why, others[id_].linked_to) for id_, why in found))


def _reason(key: str) -> str:
    return {"email": "same e-mail", "domain": "same domain", "org": "same organisation number"}.get(
        key.split(":")[0], "same name" if key.startswith(WEAK) else "same records"
    )


_RANKS: Final = {
    "stored ref in propstreet": 0,
    "stored ref in crm": 0,
    "same e-mail": 1,
    "same records": 1,
    "same domain": 1,
    "same organisation number": 2,
    "same name": 3,
}


def _rank(reason: str) -> int:
    return _RANKS[reason]


def _is_weak(reasons: Sequence[str]) -> bool:
    return _rank(reasons[0]) == 3
