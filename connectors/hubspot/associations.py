"""Relations: employments and prospects, which HubSpot keeps as associations with labels.

An employment is the association of a contact with a company; its job title stands on the
contact and belongs to the primary one. A prospect is the association of a deal with a contact,
or with a company when that carries one of our labels. Labels of other people are never touched:
what an association has is sent along with what it gets, ours are taken off one by one, and an
association goes only when nothing but its plain type and ours is on it.

An association has no place for teaser dates. They stand in a line per investor in a text of the
deal, with a label as their short form, and are never read back from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from connectors.hubspot.client import (
    BATCH,
    Answer,
    AssociationType,
    Bonds,
    Client,
    RefusedError,
    Row,
    codes_of,
    dig,
    rows_of,
)
from connectors.hubspot.fields import TEASER_LINES
from connectors.hubspot.schema import ACCEPTED, PROSPECT, SENT, SHOWN, Labels, Schema
from syncd.connector import Outcome, Page, Verdict, Write
from syncd.core import mapping
from syncd.core.mapping import Refusal, UnfitValueError
from syncd.core.model import MAX_TEXT, Address, Json, Record, Value
from syncd.errors import AuthError, ContractError, DelayedError, MissingError, TransientError, UnknownOutcomeError

ASSOCIATION_WRITE: Final = 2000
_PARENTS_PER_PAGE: Final = 100

#: Types that HubSpot itself gives to an association (section 7); labels are looked up.
_PLAIN: Final = {
    ("deals", "contacts"): ("HUBSPOT_DEFINED", 3),
    ("deals", "companies"): ("HUBSPOT_DEFINED", 341),
    ("contacts", "companies"): ("HUBSPOT_DEFINED", 279),
}
_PRIMARY: Final[AssociationType] = ("HUBSPOT_DEFINED", 1)
_KIND_OF: Final = {"contacts": "contact", "companies": "company"}
_TYPE_OF: Final = {"contact": "contacts", "company": "companies"}

_LINE: Final = re.compile(r"(contact|company) (\d+):(?: reply by ([^\s,]+))?,?(?: accepted ([^\s,]+))?")


@dataclass(slots=True)
class _Job:
    """One write of a relation on its way: what is to be added and taken off, and how it went."""

    write: Write
    pair: tuple[str, str]
    one: str
    other: str
    have: frozenset[AssociationType] = frozenset()
    add: frozenset[AssociationType] = frozenset()
    drop: frozenset[AssociationType] = frozenset()
    is_removed: bool = False
    values: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failure: tuple[Verdict, str] | None = None


@dataclass(slots=True)
class _Unit:
    """One input of a batch, and the jobs that hang on it."""

    input: dict[str, object]
    jobs: list[_Job]
    id: str = ""


class Relations:
    """The relations of one account."""

    def __init__(self, client: Client, schema: Schema):
        self._client = client
        self._schema = schema
        self._has_written = False

    def pairs(self, kind: str) -> list[tuple[str, str]]:
        """The pairs of types whose associations make up a kind; each costs a request per 1,000 parents."""
        if kind == "employment":
            return [("contacts", "companies")]
        labels = self._schema.labels("companies")
        is_used = any(each in labels.ids for each in (*SHOWN, PROSPECT))
        return [("deals", "contacts"), *([("deals", "companies")] if is_used else [])]

    # --- reading ----------------------------------------------------------------------

    def children(
        self,
        kind: str,
        parents: Sequence[str],
        *,
        alive: Collection[str] = (),
        barren: Collection[str] = (),
        titles: Mapping[str, str | None] | None = None,
    ) -> Iterator[Page]:
        """The children of up to 1,000 parents, those of one parent all in one page.

        An empty answer counts only for a parent known to be ``alive`` under this id: the
        associations of an id that was merged away read as empty, too (5.5). Of a ``barren`` one,
        which had none before, it says nothing, and so is not worth a call to find out.
        """
        pairs = self.pairs(kind)
        bonds = {pair: self._client.associated(*pair, parents) for pair in pairs}
        empty = [
            each
            for each in parents
            if all(each in found and not found[each].to and not found[each].refused for found in bonds.values())
        ]
        unproven = {each for each in empty if each not in alive}
        doubtful = self._dead(pairs[0][0], sorted(unproven.difference(barren))) | unproven.intersection(barren)
        for start in range(0, len(parents), _PARENTS_PER_PAGE):
            chunk = parents[start : start + _PARENTS_PER_PAGE]
            records: list[Record] = []
            refused: list[Refusal] = []
            for parent in chunk:
                for pair in pairs:
                    found = bonds[pair].get(parent, Bonds())
                    records += self._records(kind, pair, parent, found, titles or {})
                    refused += [Refusal(kind, f"{parent}:unfit", "toObjectId: not a safe id") for _ in found.refused]
            whole = tuple(
                each for each in chunk if each not in doubtful and all(each in found for found in bonds.values())
            )
            yield Page(kind, tuple(records), tuple(refused), complete_parents=whole)

    def read(self, kind: str, addresses: Sequence[Address]) -> dict[str, Record]:
        """Relations by id. One whose end was merged comes back under its new id, a lost one as a tombstone."""
        wanted = {each.id: parts for each in addresses if (parts := _parts(kind, each.id)) is not None}
        found = {
            each.id: Record(kind, each.id, {}, parent=each.parent, is_deleted=True)
            for each in addresses
            if each.id not in wanted
        }
        self._read_into(kind, wanted, found)
        lost = {id_: parts for id_, parts in wanted.items() if id_ not in found}
        if lost:
            moved = {id_: parts for id_, parts in self._moved(kind, lost).items() if parts != lost[id_]}
            again: dict[str, Record] = {}
            self._read_into(kind, {_id(kind, parts): parts for parts in moved.values()}, again)
            for id_, parts in lost.items():
                survivor = again.get(_id(kind, moved[id_])) if id_ in moved else None
                gone = Record(kind, id_, {}, parent=parts[0], refs=_refs(kind, parts), is_deleted=True)
                found[id_] = replace(survivor, formerly=(id_,)) if survivor is not None else gone
        return found

    def _read_into(self, kind: str, wanted: Mapping[str, tuple[str, str, str]], found: dict[str, Record]) -> None:
        titles = self._titles(kind, [one for one, _, _ in wanted.values()])
        for pair in self.pairs(kind):
            asked = {id_: parts for id_, parts in wanted.items() if parts[1] == pair[1]}
            parents = list(dict.fromkeys(one for one, _, _ in asked.values()))
            bonds = self._client.associated(*pair, parents)
            for id_, (one, _, other) in asked.items():
                types = bonds.get(one, Bonds()).to.get(other)
                record = None if types is None else self._record(kind, pair, one, other, types, titles)
                if record is not None:
                    found[id_] = record

    def _moved(self, kind: str, lost: Mapping[str, tuple[str, str, str]]) -> dict[str, tuple[str, str, str]]:
        """Where lost relations would be if one of their ends was merged into another record."""
        first = self.pairs(kind)[0][0]
        ends: dict[str, list[str]] = {first: [one for one, _, _ in lost.values()]}
        for _, type_, other in lost.values():
            ends.setdefault(type_, []).append(other)
        now = {type_: self._client.follow(type_, list(dict.fromkeys(ids)), []) for type_, ids in ends.items()}

        def current(type_: str, id_: str) -> str | None:
            row = now[type_].get(id_)
            return None if row is None or row.get("archived") is True else _safe(row.get("id"))

        found = {}
        for id_, (one, type_, other) in lost.items():
            new_one, new_other = current(first, one), current(type_, other)
            if new_one and new_other:
                found[id_] = (new_one, type_, new_other)
        return found

    def _titles(self, kind: str, contacts: Sequence[str]) -> dict[str, str | None]:
        if kind != "employment" or self._schema.job_title() is None or not contacts:
            return {}
        rows = self._client.read("contacts", contacts, ["jobtitle"])
        return {str(row.get("id")): _title(row) for row in rows}

    def _dead(self, type_: str, ids: Sequence[str]) -> set[str]:
        alive = {str(row.get("id")) for row in self._client.read(type_, ids, ["hs_object_id"])} if ids else set()
        return set(ids) - alive

    def _records(
        self, kind: str, pair: tuple[str, str], parent: str, bonds: Bonds, titles: Mapping[str, str | None]
    ) -> list[Record]:
        found = (self._record(kind, pair, parent, other, types, titles) for other, types in bonds.to.items())
        return [each for each in found if each is not None]

    def _record(
        self,
        kind: str,
        pair: tuple[str, str],
        one: str,
        other: str,
        types: frozenset[AssociationType],
        titles: Mapping[str, str | None],
    ) -> Record | None:
        """One association as a relation; None for a company of a deal that is no prospect."""
        values: dict[str, Value] = {}
        locked: dict[str, str] = {}
        if kind == "employment":
            values["is_primary"] = _PRIMARY in types
            if _PRIMARY not in types:
                locked["job_title"] = "HubSpot keeps one job title, that of the primary company"
            elif one in titles:
                values["job_title"] = titles[one]
        else:
            labels = self._schema.labels(pair[1])
            ours = self._ours(labels)
            if pair[1] == "companies" and not any(
                ("USER_DEFINED", labels.ids[each]) in types for each in (*SHOWN, PROSPECT) if each in labels.ids
            ):
                return None
            if labels.shows_classification:
                values["classification"] = next((each for each in SHOWN if ours[each] in types), "not_contacted")
            else:
                locked["classification"] = f"this account lacks the labels between deals and {pair[1]}"
        parts = (one, pair[1], other)
        return Record(
            kind,
            _id(kind, parts),
            values,
            parent=one,
            refs=_refs(kind, parts),
            locked=locked,
            opaque={"types": [[category, id_] for category, id_ in sorted(types)]},
        )

    @staticmethod
    def _ours(labels: Labels) -> dict[str, AssociationType]:
        return {meaning: ("USER_DEFINED", id_) for meaning, id_ in labels.ids.items()}

    # --- writing ----------------------------------------------------------------------

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        """Write relations of one kind with one verb. A part that is refused or lost concerns only its own."""
        self._has_written = False
        jobs = [self._job(each) for each in writes]
        self._learn(jobs)
        if writes[0].kind == "employment":
            for job in jobs:
                if job.failure is None:
                    self._plan_employment(job)
            self._take_off(jobs)
            self._put_on(jobs)
            self._write_titles(jobs)
        else:
            teasers = self._write_teasers(jobs)
            for job in jobs:
                if job.failure is None:
                    self._plan_prospect(job, teasers)
            self._put_on(jobs)
            self._take_off(jobs)
        self._remove([job for job in jobs if job.is_removed])
        return [self._outcome(job) for job in jobs]

    def find(self, writes: Sequence[Write]) -> dict[str, Record]:
        """Relations that stand between the ends of these writes, by key."""
        wanted = {each.key: parts for each in writes if (parts := self._ends(each)) is not None}
        found: dict[str, Record] = {}
        self._read_into(writes[0].kind, wanted, found)
        return found

    def _ends(self, write: Write) -> tuple[str, str, str] | None:
        """(one, type of the other, other) of a write, from its refs or, without them, its id."""
        first = "contact" if write.kind == "employment" else "deal"
        others = ("company",) if write.kind == "employment" else ("contact", "company")
        one = _safe(write.refs.get(first))
        for kind in others:
            other = _safe(write.refs.get(kind))
            if one and other:
                return one, _TYPE_OF[kind], other
        return _parts(write.kind, write.address.id) if write.address else None

    def _job(self, write: Write) -> _Job:
        ends = self._ends(write)
        first = "contacts" if write.kind == "employment" else "deals"
        if ends is None:
            failure = (Verdict.REJECTED, "refs: HubSpot needs both ends of an association")
            return _Job(write, (first, "contacts"), "", "", failure=failure)
        return _Job(write, (first, ends[1]), ends[0], ends[2], have=_types(write.opaque.get("types")))

    def _learn(self, jobs: list[_Job]) -> None:
        """Read the types of associations that are to change and were not handed in.

        A prospect may come to stand on an association that was none of ours: the company that
        sells, the contact who is somebody's lawyer. An employment is every association there is.
        """
        blind = [job for job in jobs if not job.have and job.failure is None]
        blind = [job for job in blind if job.write.verb != "create" or job.write.kind != "employment"]
        for pair in sorted({job.pair for job in blind}):
            mine = [job for job in blind if job.pair == pair]
            bonds = self._client.associated(*pair, list(dict.fromkeys(job.one for job in mine)))
            for job in mine:
                types = bonds.get(job.one, Bonds()).to.get(job.other)
                if types is not None:
                    job.have = types
                elif job.write.verb != "create":
                    job.failure = (Verdict.MISSING, "the association is not there")
                elif job.one not in bonds:
                    job.failure = (Verdict.RETRY, "what the deal is associated with could not be read")

    def _plan_employment(self, job: _Job) -> None:
        values = job.write.values
        if job.write.verb == "delete":
            foreign = job.have - {_PLAIN[job.pair], _PRIMARY}
            job.is_removed = not foreign
            job.drop = job.have & {_PRIMARY} if foreign else frozenset()
            return
        is_primary = values.get("is_primary", _PRIMARY in job.have)
        if job.write.verb == "create":
            job.add = frozenset({_PLAIN[job.pair]})
        if is_primary and _PRIMARY not in job.have:
            job.add |= {_PRIMARY}
        elif not is_primary and _PRIMARY in job.have:
            job.drop = frozenset({_PRIMARY})
        job.values["is_primary"] = bool(is_primary)

    def _plan_prospect(self, job: _Job, teasers: Mapping[str, tuple[datetime | None, datetime | None]]) -> None:
        """Which labels come and go. Of ours, only those that this write decides."""
        labels = self._schema.labels(job.pair[1])
        ours = self._ours(labels)
        if job.write.verb == "delete":
            foreign = job.have - set(ours.values()) - {_PLAIN[job.pair]}
            job.is_removed = not foreign
            job.drop = job.have & frozenset(ours.values()) if foreign else frozenset()
            return
        wanted: dict[str, bool] = {}
        if job.pair[1] == "companies":
            wanted[PROSPECT] = True
            if PROSPECT not in ours:
                job.failure = (Verdict.REJECTED, "refs: this account lacks the label for prospects that are companies")
                return
        if "classification" in job.write.values and labels.shows_classification:
            chosen = job.write.values["classification"]
            wanted.update({each: each == chosen for each in SHOWN})
            job.values["classification"] = chosen if chosen in SHOWN else "not_contacted"
        if job.write.key in teasers:
            deadline, accepted = teasers[job.write.key]
            wanted.update({SENT: bool(deadline or accepted), ACCEPTED: bool(accepted)})
        new = {ours[each] for each, is_on in wanted.items() if is_on and each in ours}
        old = {ours[each] for each, is_on in wanted.items() if not is_on and each in ours}
        plain = {_PLAIN[job.pair]} if job.write.verb == "create" else set()
        job.add = frozenset(new | plain) - job.have
        job.drop = frozenset(old) & job.have

    def _put_on(self, jobs: list[_Job]) -> None:
        """Add types to associations, making those that are new.

        What is to stay is sent along: a single association is replaced by what is put there,
        and nothing says that one of a batch is not (7).
        RACE: a label that somebody puts on between our read and our write may be lost.
        """
        adding = [job for job in jobs if job.add]
        self._each_pair("associate", adding, lambda job: (job.have | job.add) - job.drop, self._is_on)

    def _take_off(self, jobs: list[_Job]) -> None:
        self._each_pair("unlabel", [job for job in jobs if job.drop], lambda job: job.drop, self._is_off)

    def _remove(self, jobs: list[_Job]) -> None:
        self._each_pair("dissociate", jobs, None, lambda job, types: types is None)

    @staticmethod
    def _is_on(job: _Job, types: frozenset[AssociationType] | None) -> bool:
        return types is not None and job.add <= types

    @staticmethod
    def _is_off(job: _Job, types: frozenset[AssociationType] | None) -> bool:
        return types is None or not job.drop & types

    def _each_pair(
        self,
        call: str,
        jobs: list[_Job],
        types_of: Callable[[_Job], frozenset[AssociationType]] | None,
        is_done: Callable[[_Job, frozenset[AssociationType] | None], bool],
    ) -> None:
        for pair in sorted({job.pair for job in jobs}):
            units = [
                _Unit(_input(job, types_of(job) if types_of else None), [job], f"{job.one}:{job.other}")
                for job in jobs
                if job.pair == pair and job.failure is None
            ]

            def settle(answer: Answer, units: list[_Unit], pair: tuple[str, str] = pair) -> None:
                self._settle(answer, units, pair, is_done, is_named=call == "associate")

            def send(body: Row, pair: tuple[str, str] = pair) -> Answer:
                return self._client.ask(call, body=body, one=pair[0], other=pair[1])

            self._carry(units, ASSOCIATION_WRITE, send, settle)

    def _settle(
        self,
        answer: Answer,
        units: list[_Unit],
        pair: tuple[str, str],
        is_done: Callable[[_Job, frozenset[AssociationType] | None], bool],
        *,
        is_named: bool,
    ) -> None:
        """Believe an answer that names what it did; of anything else read what stands there now."""
        errors = rows_of(answer.body, "errors", is_required=False)
        named = {_pair_named(row) for row in rows_of(answer.body, is_required=False)} if is_named else set()
        doubtful = [each for each in units if errors or (is_named and each.id not in named)]
        if not doubtful:
            return
        jobs = [job for unit in doubtful for job in unit.jobs]
        bonds = self._client.associated(*pair, list(dict.fromkeys(job.one for job in jobs)))
        reason = " ".join(dict.fromkeys(code for each in errors for code in codes_of(each)))
        for job in jobs:
            if job.one not in bonds:
                job.failure = (Verdict.UNKNOWN, "the association could not be read back")
            elif not is_done(job, bonds[job.one].to.get(job.other)):
                job.failure = (Verdict.REJECTED, reason or "refused") if errors else (Verdict.UNKNOWN, "not confirmed")

    # --- job titles -------------------------------------------------------------------

    def _write_titles(self, jobs: list[_Job]) -> None:
        """Put the job title of a primary employment on its contact."""
        units: dict[str, _Unit] = {}
        for job in jobs:
            values = job.write.values
            title = values.get("job_title")
            if job.failure or "job_title" not in values or not job.values.get("is_primary"):
                continue
            if job.write.verb == "create" and title is None:
                continue
            if job.write.carrier is not None and job.write.carrier.opaque.get("title") == title:
                job.values["job_title"] = title
                continue
            native = {"jobtitle": str(title) if title is not None else ""}
            unit = units.setdefault(job.one, _Unit({"id": job.one}, [], job.one))
            unit.input = {"id": job.one, "properties": native, "objectWriteTraceId": job.write.key}
            unit.jobs.append(job)
        self._carry(list(units.values()), BATCH, self._update("contacts"), _settle_objects)
        for unit in units.values():
            for job in unit.jobs:
                if job.failure is None:
                    job.values["job_title"] = job.write.values["job_title"]
                elif job.add and job.failure[0] is Verdict.REJECTED:
                    # The association stands; only its title was refused.
                    job.notes.append(f"job_title: {job.failure[1]}")
                    job.failure = None

    # --- teaser lines -----------------------------------------------------------------

    def _write_teasers(self, jobs: list[_Job]) -> dict[str, tuple[datetime | None, datetime | None]]:
        """Bring the deals' lines in step with the dates written; returns (deadline, accepted) by key.

        Only the line of each investor concerned changes.
        RACE: a line that somebody edits between our read and our write is overwritten.
        """
        concerned = [job for job in jobs if job.failure is None and self._has_dates(job)]
        if not concerned or not self._schema.has_teaser_lines():
            return {}
        states: dict[str, tuple[datetime | None, datetime | None]] = {}
        deals = list(dict.fromkeys(job.one for job in concerned))
        held = {str(row.get("id")): row for row in self._client.read("deals", deals, [TEASER_LINES])}
        units: list[_Unit] = []
        for deal in deals:
            mine = [job for job in concerned if job.one == deal]
            if deal not in held:
                for job in mine:
                    job.failure = (Verdict.MISSING, "the deal is not there")
                continue
            before = str(dig(held[deal], "properties", TEASER_LINES) or "")
            lines = before.splitlines()
            for job in mine:
                states[job.write.key] = _merge_line(lines, job)
            after = "\n".join(lines)
            if len(after) > MAX_TEXT:
                for job in mine:
                    states.pop(job.write.key)
                    job.notes.append(f"{TEASER_LINES}: full")
            elif after != before:
                trace = mine[0].write.key
                body: dict[str, object] = {"id": deal, "properties": {TEASER_LINES: after}, "objectWriteTraceId": trace}
                units.append(_Unit(body, mine, deal))
        self._carry(units, BATCH, self._update("deals"), _settle_objects)
        for job in concerned:
            if job.failure is not None and job.failure[0] is Verdict.REJECTED and job.write.verb != "delete":
                if set(job.write.values) - {"accepted_at", "deadline_at"} or job.write.verb == "create":
                    job.notes.append(f"{TEASER_LINES}: {job.failure[1]}")
                    job.failure = None
                states.pop(job.write.key, None)
            if job.write.key in states:
                job.values.update(
                    {
                        name: job.write.values[name]
                        for name in ("accepted_at", "deadline_at")
                        if name in job.write.values
                    }
                )
        return states

    def _has_dates(self, job: _Job) -> bool:
        """Whether a write concerns the line of its investor; a delete does if a label says there is one."""
        values = [job.write.values[each] for each in ("accepted_at", "deadline_at") if each in job.write.values]
        if job.write.verb == "delete":
            ids = self._schema.labels(job.pair[1]).ids
            return any(("USER_DEFINED", ids[each]) in job.have for each in (SENT, ACCEPTED) if each in ids)
        return any(each is not None for each in values) if job.write.verb == "create" else bool(values)

    # --- sending ----------------------------------------------------------------------

    def _update(self, type_: str) -> Callable[[Row], Answer]:
        return lambda body: self._client.ask("update", body=body, type=type_)

    def _carry(
        self,
        units: list[_Unit],
        size: int,
        send: Callable[[Row], Answer],
        settle: Callable[[Answer, list[_Unit]], None],
    ) -> None:
        """Send units in batches; a refused batch is halved until the refused unit stands alone.

        Trouble before anything was written is the caller's; after that it concerns only the
        units in hand, so that what is written already keeps its outcome.
        """
        waiting = [units[start : start + size] for start in range(0, len(units), size)]
        waiting.reverse()
        while waiting:
            some = waiting.pop()
            try:
                answer = send({"inputs": [each.input for each in some]})
                self._has_written = True
                settle(answer, some)
            except (RefusedError, MissingError) as exc:
                if len(some) > 1:
                    half = len(some) // 2
                    waiting += [some[half:], some[:half]]
                    continue
                reason = exc.reason if isinstance(exc, RefusedError) else "OBJECT_NOT_FOUND"
                is_gone = isinstance(exc, MissingError) and some[0].jobs[0].write.verb != "create"
                _fail(some, Verdict.MISSING if is_gone else Verdict.REJECTED, reason)
            except DelayedError:
                _fail(some, Verdict.UNKNOWN if self._has_written else Verdict.DELAYED, "refused for a while")
            except (TransientError, UnknownOutcomeError, ContractError, AuthError) as exc:
                if not self._has_written:
                    raise
                is_unsent = isinstance(exc, AuthError) or (isinstance(exc, TransientError) and not exc.is_sent)
                _fail(some, Verdict.RETRY if is_unsent else Verdict.UNKNOWN, type(exc).__name__)

    def _outcome(self, job: _Job) -> Outcome:
        if job.failure is not None:
            return Outcome(job.write.key, job.failure[0], reason=job.failure[1])
        types = (job.have | job.add) - job.drop
        record = self._record(job.write.kind, job.pair, job.one, job.other, types, {})
        if job.write.verb == "delete":
            return Outcome(job.write.key, Verdict.DONE, None if job.is_removed else record)
        if record is None:
            return Outcome(job.write.key, Verdict.UNKNOWN, reason="not confirmed")
        done = replace(record, values={**record.values, **job.values})
        return Outcome(job.write.key, Verdict.DONE, done, "; ".join(job.notes))


# --- parts --------------------------------------------------------------------------------------


def _id(kind: str, parts: tuple[str, str, str]) -> str:
    one, type_, other = parts
    return f"{one}:{other}" if kind == "employment" else f"{one}:{_KIND_OF[type_]}:{other}"


def _parts(kind: str, id_: str) -> tuple[str, str, str] | None:
    """(one, type of the other, other) of a relation's id; None if it is none of ours."""
    match id_.split(":"):
        case [one, other] if kind == "employment" and _safe(one) and _safe(other):
            return one, "companies", other
        case [one, ("contact" | "company") as what, other] if kind == "deal_contact" and _safe(one) and _safe(other):
            return one, _TYPE_OF[what], other
    return None


def _refs(kind: str, parts: tuple[str, str, str]) -> dict[str, str]:
    first = "contact" if kind == "employment" else "deal"
    return {first: parts[0], _KIND_OF[parts[1]]: parts[2]}


def _safe(raw: object) -> str | None:
    try:
        found = mapping.identifier(raw, "id")
    except UnfitValueError:
        return None
    return found if found and ":" not in found else None


def _types(raw: Json) -> frozenset[AssociationType]:
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        return frozenset()
    pairs = [each for each in raw if isinstance(each, Sequence) and not isinstance(each, str) and len(each) == 2]
    return frozenset((str(category), id_) for category, id_ in pairs if isinstance(id_, int))


def _input(job: _Job, types: frozenset[AssociationType] | None) -> dict[str, object]:
    if types is None:
        return {"from": {"id": job.one}, "to": [{"id": job.other}]}
    wire = [{"associationCategory": category, "associationTypeId": id_} for category, id_ in sorted(types)]
    return {"from": {"id": job.one}, "to": {"id": job.other}, "types": wire}


def _pair_named(row: Mapping[str, object]) -> str:
    one = row.get("fromObjectId") or dig(row, "from", "id")
    other = row.get("toObjectId") or dig(row, "to", "id")
    return f"{one}:{other}"


def _fail(units: Sequence[_Unit], verdict: Verdict, reason: str) -> None:
    for unit in units:
        for job in unit.jobs:
            job.failure = (verdict, reason)


def _settle_objects(answer: Answer, units: list[_Unit]) -> None:
    """A batch/update of records: an error names its trace or id, a missing result is unknown."""
    named = {str(row.get("id")) for row in rows_of(answer.body)}
    errors = rows_of(answer.body, "errors", is_required=False)
    for unit in units:
        if unit.id in named:
            continue
        about = [each for each in errors if is_about(each, unit.id, str(unit.input.get("objectWriteTraceId")))]
        if len(units) == 1:
            about = errors
        reason = " ".join(dict.fromkeys(code for each in about for code in codes_of(each)))
        _fail([unit], Verdict.REJECTED if about else Verdict.UNKNOWN, reason or "not confirmed")


def is_about(error: Mapping[str, object], id_: str, trace: str) -> bool:
    """Whether an error of a batch names this input, by its trace id or its id."""
    named: set[str] = set()
    for key in ("objectWriteTraceId", "ids", "id"):
        raw = dig(error, "context", key)
        named.update(map(str, raw if isinstance(raw, list) else [raw]))
    return trace in named or id_ in named


def _title(row: Mapping[str, object]) -> str | None:
    try:
        return mapping.text(dig(row, "properties", "jobtitle"), "jobtitle")
    except UnfitValueError:
        return None


def _merge_line(lines: list[str], job: _Job) -> tuple[datetime | None, datetime | None]:
    """Put the dates of one investor into its line, keeping the one that is not written and all other lines."""
    who = f"{_KIND_OF[job.pair[1]]} {job.other}"
    at = next(
        (i for i, line in enumerate(lines) if (m := _LINE.fullmatch(line.strip())) and f"{m[1]} {m[2]}" == who), None
    )
    old = _LINE.fullmatch(lines[at].strip()) if at is not None else None
    deadline, accepted = (_moment(old[3]), _moment(old[4])) if old is not None else (None, None)
    values = job.write.values
    if "deadline_at" in values:
        deadline = _only_moment(values["deadline_at"])
    if "accepted_at" in values:
        accepted = _only_moment(values["accepted_at"])
    if job.write.verb == "delete":
        deadline = accepted = None
    said = [f"reply by {_seconds(deadline)}"] if deadline else []
    said += [f"accepted {_seconds(accepted)}"] if accepted else []
    line = [f"{who}: {', '.join(said)}"] if said else []
    if at is None:
        lines += line
    else:
        lines[at : at + 1] = line
    return deadline, accepted


def _moment(raw: str | None) -> datetime | None:
    try:
        return mapping.instant(raw, TEASER_LINES)
    except UnfitValueError:
        return None


def _only_moment(value: Value) -> datetime | None:
    return value if isinstance(value, datetime) else None


def _seconds(moment: datetime) -> str:
    return mapping.iso_z(moment.replace(microsecond=0)).replace(".000Z", "Z")
