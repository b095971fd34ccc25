"""Writes to Propstreet, one outcome each, and what became of those whose answer was lost.

A conditional PATCH may be repeated, since a second one finds its tag stale. A create is sent
once, under its own idempotency key and with our external ref: what an idempotency key protects,
and for how long, is not documented (contract, 12). Prospects are added and classified a hundred
at once; everything else takes one call a record.

A link becomes primary by a second call, since its create has no word for that, unless the first
link of a contact has proved to be primary by itself.

A prospect that stands there unclassified, where our create wanted it classified, is reported with
its classification unspoken: Propstreet's default is nobody's word, and must not win against the
CRM's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from connectors.propstreet import fields
from connectors.propstreet.client import Client, ForbiddenError, Method, RaceError, RefusedError, Row, segment
from connectors.propstreet.fields import PATHS, Setup
from syncd.connector import Outcome, Repeat, Verdict, Write
from syncd.core.mapping import UnfitValueError, email, identifier, iso_z, number
from syncd.core.model import Address, Json, Record, is_safe_id
from syncd.errors import (
    MissingError,
    RejectedError,
    StaleVersionError,
    TransientError,
    UnknownOutcomeError,
)

BATCH: Final = 100
"""Prospects in one prospects:batch or classify (contract, 4.1 and 4.4)."""
WORTH_A_BATCH: Final = 4
"""Updates of one project to one classification from which listing, classifying and listing again is cheaper."""
FEW: Final = 5
"""Prospects of one project that are read one by one."""
RECENT_SECONDS: Final = 7200
"""How far back a listing looks for a record that was made while we were about to make it."""
SETTLING_SECONDS: Final = 300
MOST_CLOSED: Final = 50_000
MOST_UNLINKED: Final = 50_000
CLOSED_PROJECT: Final = "its project is closed in Propstreet"


@dataclass(slots=True)
class Writer:
    """Carries out writes with one client.

    ``uses_mandate`` is learned: which name this tenant takes (14.10). ``closed`` holds projects that
    a listing showed to be closed: nothing is sent to their prospects (14.12). ``is_first_primary`` is
    learned, too: whether the first link of a contact is its primary one by itself. ``unlinked`` are
    contacts that have no link yet: made here, or shown so by a listing.
    """

    client: Client
    setup: Setup
    now: Callable[[], datetime]
    uses_mandate: bool = False
    closed: set[str] = field(default_factory=set)
    is_first_primary: bool | None = None
    unlinked: set[str] = field(default_factory=set)
    _asked: dict[str, bool] = field(default_factory=dict)
    _listed: dict[str, dict[str, Record] | None] = field(default_factory=dict)

    def write(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        """See ``Connector.write``. An outage after the first outcomes leaves the rest for later."""
        self._asked = {}
        self._listed = {}
        hopeless = {write.key: reason for write in writes if (reason := self._hopeless(write))}
        outcomes = [Outcome(key, Verdict.REJECTED, reason=reason) for key, reason in hopeless.items()]
        todo = list(self._portions([write for write in writes if write.key not in hopeless]))
        for at, (portion, carry_out) in enumerate(todo):
            try:
                outcomes += carry_out(portion)
            except TransientError as exc:
                if not outcomes:
                    raise
                lost = Verdict.UNKNOWN if exc.is_sent else Verdict.RETRY
                outcomes += [Outcome(write.key, lost, reason="outage") for write in portion]
                outcomes += [Outcome(w.key, Verdict.RETRY, reason="outage") for rest, _ in todo[at + 1 :] for w in rest]
                return outcomes
        return outcomes

    def _hopeless(self, write: Write) -> str:
        """Why a write is not even tried; empty if it is."""
        if not _is_addressed(write):
            return "it names an id that is none"
        return CLOSED_PROJECT if write.kind == "deal_contact" and _project(write) in self.closed else ""

    def _portions(
        self, writes: Sequence[Write]
    ) -> Iterator[tuple[list[Write], Callable[[Sequence[Write]], list[Outcome]]]]:
        """The writes in the pieces that one request, or a fixed few, can carry."""
        singles: list[Write] = []
        groups: dict[tuple[str, ...], list[Write]] = {}
        for write in writes:
            if write.kind == "deal_contact" and write.verb == "create":
                groups.setdefault(("add", write.refs.get("deal", "")), []).append(write)
            elif word := _pure_classification(write):
                groups.setdefault(("classify", _project(write), word), []).append(write)
            else:
                singles.append(write)
        for (how, *_), group in groups.items():
            if how == "classify" and len(group) < WORTH_A_BATCH:
                singles += group
                continue
            for start in range(0, len(group), BATCH):
                yield group[start : start + BATCH], self._add if how == "add" else self._classify
        removals = [write for write in singles if write.kind == "deal_contact" and write.verb == "delete"]
        for project, count in Counter(_project(write) for write in removals).items():
            if count > FEW:
                self._listed[project] = None
        for write in singles:
            yield [write], lambda one: [self._one(one[0])]

    def _one(self, write: Write) -> Outcome:
        """One write by one call, whatever it comes to."""
        try:
            match write.verb:
                case "create":
                    return self._create(write)
                case "update" | "mark":
                    return self._update(write)
                case "delete":
                    return self._delete(write)
        except UnknownOutcomeError:
            return Outcome(write.key, Verdict.UNKNOWN, reason="its answer was lost")
        except UnfitValueError as exc:
            return Outcome(write.key, Verdict.REJECTED, reason=str(exc))
        except (RaceError, ForbiddenError) as exc:
            return self._refused_by_closing(write, exc)
        except StaleVersionError:
            return Outcome(write.key, Verdict.STALE)
        except MissingError:
            return self._missing(write)
        except RejectedError as exc:
            return Outcome(write.key, Verdict.REJECTED, reason=str(exc))

    def _refused_by_closing(self, write: Write, exc: RaceError | ForbiddenError) -> Outcome:
        """Tell a lost race, or a missing permission, from a closed project, which refuses all writes (14.12)."""
        if write.kind == "deal_contact":
            if self._is_closed(_project(write)):
                return Outcome(write.key, Verdict.REJECTED, reason=CLOSED_PROJECT)
        elif write.kind == "deal" and write.address is not None and self._is_closed(write.address.id):
            return Outcome(write.key, Verdict.STALE, reason=fields.CLOSED)  # read again, it comes back locked
        if isinstance(exc, ForbiddenError):
            raise exc
        return Outcome(write.key, Verdict.STALE)

    def _missing(self, write: Write) -> Outcome:
        if write.verb == "create":
            return Outcome(write.key, Verdict.REJECTED, reason="404: a record that it refers to is not there")
        return Outcome(write.key, Verdict.MISSING)

    def _is_closed(self, project: str) -> bool:
        if project not in self._asked:
            try:
                row = self.client.get(f"/projects/{segment(project)}")
                self._asked[project] = row.get("status") in ("closed", "deleted") or bool(row.get("deletedUtc"))
            except MissingError:
                self._asked[project] = True
        return self._asked[project]

    def learn(self, deals: Iterable[Record]) -> None:
        """Keep which projects are closed, as many as are worth their memory."""
        for deal in deals:
            if deal.is_deleted or not deal.locked:
                self.closed.discard(deal.id)
            elif len(self.closed) < MOST_CLOSED:
                self.closed.add(deal.id)

    def learn_contact(self, row: Row) -> None:
        """Keep which contacts have no link yet, as many as are worth their memory."""
        id_ = str(row.get("id"))
        if row.get("companies") != []:
            self.unlinked.discard(id_)
        elif len(self.unlinked) < MOST_UNLINKED:
            self.unlinked.add(id_)

    # --- creates ----------------------------------------------------------------------

    def _create(self, write: Write) -> Outcome:
        body = fields.created(self.setup, write.kind, write.values, write.refs, write.counterpart)
        try:
            row = self._send("POST", PATHS[write.kind], body, key=write.key, repeat="unsent")
        except RefusedError as exc:
            if exc.status != 409:
                raise
            return self._taken(write, body)
        outcome = self._made(write, row)
        if outcome.verdict is not Verdict.DONE or outcome.record is None:
            return outcome
        if write.kind == "contact" and len(self.unlinked) < MOST_UNLINKED:
            self.unlinked.add(outcome.record.id)
        if write.kind == "employment":
            is_first = write.refs["contact"] in self.unlinked
            self.unlinked.discard(write.refs["contact"])
            if _lacks_primary(write, outcome.record):
                return replace(outcome, record=self._made_primary(write, outcome.record, is_first=is_first))
        return outcome

    def _made_primary(self, write: Write, link: Record, *, is_first: bool) -> Record:
        """A new link made its contact's primary one; empty there if that did not take, so that it is tried again.

        The first of a contact may be so by itself, which nothing promises: one contact is asked, once.
        """
        path = path_of(write.kind, Address(link.id))
        try:
            if is_first and self.is_first_primary is None:
                row = self.client.get(path_of("contact", Address(link.refs["contact"])))
                self.is_first_primary = str(row.get("primaryCompanyId")) == link.refs["company"]
            if is_first and self.is_first_primary:
                return link
            answer = self.client.send("PATCH", path, {"isPrimary": True}, etag=link.version)
            return self._whole(write, answer) or link
        except (RejectedError, StaleVersionError, MissingError, TransientError, UnknownOutcomeError):
            return replace(link, values={**link.values, "is_primary": None})

    def _made(self, write: Write, row: Row | None) -> Outcome:
        """A create that was answered with success; another record than was asked for is one that stood there (14.7)."""
        record = self._whole(write, row)
        if record is None:
            return Outcome(write.key, Verdict.UNKNOWN, reason="the answer did not show the record")
        if fields.strays(write.kind, write.values, record.values):
            return Outcome(write.key, Verdict.EXISTS, _unsaid(write, record))
        return Outcome(write.key, Verdict.DONE, record)

    def _taken(self, write: Write, body: Mapping[str, Json]) -> Outcome:
        """A create was refused as a duplicate: adopt what stands there, or get past a deleted holder (14.4)."""
        found = self._holder(write)
        if found is not None and not found.is_deleted:
            return Outcome(write.key, Verdict.EXISTS, _unsaid(write, found))
        rest = {name: value for name, value in body.items() if name != "externalRefs"}
        if "externalRefs" not in body:
            return Outcome(write.key, Verdict.REJECTED, reason="409: exists already, but cannot be found")
        if write.kind == "contact":
            # The one documented way past a deleted holder: the upsert revives it (contract, 5.2).
            try:
                return self._made(write, self.client.send("PATCH", self._external(write), rest))
            except StaleVersionError:
                return Outcome(
                    write.key, Verdict.REJECTED, reason="409: its email is taken by a contact that is not shown"
                )
        if found is None:
            return Outcome(write.key, Verdict.REJECTED, reason="409: exists already, but cannot be found")
        # Whether a deleted record still holds its external refs is not documented (contract, 16).
        return self._made(write, self._send("POST", PATHS[write.kind], rest, key=f"{write.key}-b", repeat="unsent"))

    def _external(self, write: Write) -> str:
        path = f"/external/{segment(self.setup.namespace)}/{segment(write.counterpart or '')}"
        if write.kind == "deal_contact":
            return f"/projects/{segment(_project(write))}/prospects{path}"
        return PATHS[write.kind] + path

    def _holder(self, write: Write) -> Record | None:
        """What stands where a create wanted to go: live before deleted, by our ref before anything else."""
        if write.kind == "employment":
            return self._link(write)
        found = self._by_ref(write) if write.kind != "company" else None
        if found is not None and not found.is_deleted:
            return found
        since = iso_z(self.now() - timedelta(seconds=RECENT_SECONDS))
        # Contacts are many and have a lookup and an upsert of their own: they are never listed whole.
        for scope in ({"updated_since": since}, {}) if write.kind != "contact" else ({"updated_since": since},):
            listed = self._in_list(write, scope)
            if listed is not None and not listed.is_deleted:
                return listed
            found = found or listed
        return found

    def _by_ref(self, write: Write) -> Record | None:
        if write.counterpart is None or len(write.counterpart) > fields.MAX_REF:
            return None
        try:
            return self._read(write.kind, self.client.get(self._external(write)), _project(write) or None)
        except MissingError:
            return None

    def _in_list(self, write: Write, scope: Mapping[str, str]) -> Record | None:
        wanted = email(write.values.get("email"), "email") if write.kind == "contact" else None
        found: Record | None = None
        for row in self._rows(PATHS[write.kind], scope):
            is_ours = (
                write.counterpart is not None and fields.split_refs(row, self.setup.namespace)[0] == write.counterpart
            )
            if is_ours or (wanted is not None and wanted in _addresses(row)):
                record = self._read(write.kind, row)
                if record is not None and not record.is_deleted:
                    return record
                found = record if is_ours else found
        return found

    def _link(self, write: Write) -> Record | None:
        ends = {"contact_id": write.refs["contact"], "company_id": write.refs["company"]}
        found: Record | None = None
        for row in self._rows(PATHS["employment"], ends):
            record = self._read("employment", row)
            if record is None or dict(record.refs) != dict(write.refs):
                continue
            if not record.is_deleted:
                return record
            found = record
        return found

    # --- prospects --------------------------------------------------------------------

    def _add(self, writes: Sequence[Write]) -> list[Outcome]:
        """Add prospects to one project."""
        if len(writes) == 1:
            return [self._guarded(writes[0], self._add_one)]
        project = _project(writes[0])
        try:
            items: list[Json] = [fields.created(self.setup, w.kind, {}, w.refs, w.counterpart) for w in writes]
            path = f"/projects/{segment(project)}/prospects:batch"
            answer = self.client.send("POST", path, {"items": items}, repeat="unsent")
        except UnknownOutcomeError:
            return [Outcome(write.key, Verdict.UNKNOWN, reason="the batch's answer was lost") for write in writes]
        except (RejectedError, ForbiddenError, StaleVersionError, UnfitValueError) as exc:
            # One bad ref may fail the whole call (contract, 4.4); a closed project fails every call.
            if self._is_closed(project):
                return [Outcome(write.key, Verdict.REJECTED, reason=CLOSED_PROJECT) for write in writes]
            if isinstance(exc, ForbiddenError):
                raise
            half = len(writes) // 2
            return self._add(writes[:half]) + self._add(writes[half:])
        except MissingError:
            return [self._missing(write) for write in writes]
        return self._settle_batch(project, writes, answer or {})

    def _settle_batch(self, project: str, writes: Sequence[Write], answer: Row) -> list[Outcome]:
        made = self._match_created(writes, answer)
        failed = _match_failed(writes, answer)
        self._classify_new(
            project, [(made[w.key], str(w.values.get("classification") or "")) for w in writes if w.key in made]
        )
        is_whole = any(code != "duplicate_external_ref" and code not in _FINAL for code in failed.values())
        rows = self._prospects(project, list(made.values()), is_whole=is_whole)
        by_end: dict[tuple[str, str], Record] = {}
        for record in rows.values():
            if record.is_deleted:
                by_end.setdefault(_end(record.refs), record)
            else:
                by_end[_end(record.refs)] = record
        outcomes = []
        for write in writes:
            if write.key in made:
                outcomes.append(_added(write, rows.get(made[write.key])))
            elif write.key not in failed:
                outcomes.append(Outcome(write.key, Verdict.UNKNOWN, reason="the answer does not name it"))
            elif failed[write.key] == "duplicate_external_ref":
                outcomes.append(self._guarded(write, self._add_without_ref))
            else:
                outcomes.append(_not_added(write, failed[write.key], by_end.get(_end(write.refs))))
        return outcomes

    def _guarded(self, write: Write, add: Callable[[Write], Outcome]) -> Outcome:
        try:
            return add(write)
        except UnknownOutcomeError:
            return Outcome(write.key, Verdict.UNKNOWN, reason="its answer was lost")
        except MissingError:
            return self._missing(write)
        except (RejectedError, ForbiddenError, StaleVersionError, UnfitValueError) as exc:
            if self._is_closed(_project(write)):
                return Outcome(write.key, Verdict.REJECTED, reason=CLOSED_PROJECT)
            if isinstance(exc, ForbiddenError):
                raise
            return Outcome(write.key, Verdict.REJECTED, reason=str(exc))

    def _add_one(self, write: Write, *, has_ref: bool = True) -> Outcome:
        body = fields.created(self.setup, write.kind, {}, write.refs, write.counterpart if has_ref else None)
        path = f"/projects/{segment(_project(write))}/prospects"
        key = write.key if has_ref else f"{write.key}-b"
        try:
            row = self.client.send("POST", path, body, key=key, repeat="unsent")
        except RefusedError as exc:
            if exc.status != 409 or self._is_closed(_project(write)):
                raise
            there = self._standing(write)
            if has_ref and "externalRefs" in body and (there is None or there.is_deleted):
                return self._add_without_ref(write)
            return _not_added(write, "409", there)
        record = self._whole(write, row)
        wanted = write.values.get("classification")
        if record is not None and wanted and record.values.get("classification") != wanted and record.version:
            record = self._classified(write, record) or record
        return _added(write, record)

    def _add_without_ref(self, write: Write) -> Outcome:
        """A removed prospect may still hold our ref; the prospect matters more than its mark."""
        return self._add_one(write, has_ref=False)

    def _classified(self, write: Write, record: Record) -> Record | None:
        path = f"/projects/{segment(_project(write))}/prospects/{segment(record.id)}"
        body = fields.changed(write.kind, {"classification": write.values["classification"]}, {})
        try:
            return self._whole(write, self.client.send("PATCH", path, body, etag=record.version))
        except (RejectedError, StaleVersionError, MissingError, TransientError, UnknownOutcomeError):
            return None  # it is there, but unclassified: the next merge sees to that

    def _standing(self, write: Write) -> Record | None:
        """The project's prospect for the same contact or company: a live one, else a removed one."""
        found: Record | None = None
        for record in self._prospects(_project(write), [], is_whole=True).values():
            if _end(record.refs) == _end(write.refs):
                if not record.is_deleted:
                    return record
                found = record
        return found

    def _match_created(self, writes: Sequence[Write], answer: Row) -> dict[str, str]:
        """Write key -> prospect id: created items are not indexed, so they are told by contact, company or ref."""
        by_end = {_end(write.refs): write.key for write in writes}
        by_mark = {write.counterpart: write.key for write in writes if write.counterpart}
        found: dict[str, str] = {}
        for item in _items(answer, "created"):
            try:
                id_ = identifier(item.get("id"), "id")
                contact, company = identifier(item.get("contactId"), "id"), identifier(item.get("companyId"), "id")
            except UnfitValueError:
                continue
            mark = fields.split_refs(item, self.setup.namespace)[0]
            key = (
                by_end.get(("contact", contact or ""))
                or by_end.get(("company", company or ""))
                or by_mark.get(mark or "")
            )
            if id_ is not None and key is not None:
                found[key] = id_
        return found

    def _classify_new(self, project: str, made: Sequence[tuple[str, str]]) -> None:
        """Classify what was just added; what does not take is told by the read that follows."""
        words = sorted({word for _, word in made} - {"", fields.UNTOUCHED})
        for word in words:
            try:
                self._send_classify(project, [id_ for id_, wanted in made if wanted == word], word)
            except (RejectedError, MissingError, StaleVersionError, TransientError):
                continue

    def _send_classify(self, project: str, ids: Sequence[str], word: str) -> Row:
        body: dict[str, Json] = {"prospectIds": list(ids), "classification": word}
        return self.client.send("POST", f"/projects/{segment(project)}/prospects/classify", body) or {}

    def _classify(self, writes: Sequence[Write]) -> list[Outcome]:
        """Many prospects of one project to one classification, where they still are as they were read.

        RACE: classify knows no condition. An edit between the listing and the call, within the
        same second as a rule, loses its classification to ours.
        """
        project, word = _project(writes[0]), _pure_classification(writes[0]) or ""
        try:
            return self._classify_unmoved(project, word, writes)
        except MissingError:
            return [Outcome(write.key, Verdict.MISSING) for write in writes]
        except (RejectedError, ForbiddenError, StaleVersionError) as exc:
            if self._is_closed(project):
                return [Outcome(write.key, Verdict.REJECTED, reason=CLOSED_PROJECT) for write in writes]
            if isinstance(exc, ForbiddenError):
                raise
            return [self._one(write) for write in writes]

    def _classify_unmoved(self, project: str, word: str, writes: Sequence[Write]) -> list[Outcome]:
        ids = {write.key: write.address.id for write in writes if write.address is not None}
        there = self._prospects(project, list(ids.values()), since=False)
        outcomes: list[Outcome] = []
        unmoved: list[Write] = []
        for write in writes:
            record = there.get(ids[write.key])
            if record is None or record.is_deleted:
                outcomes.append(Outcome(write.key, Verdict.MISSING))
            elif record.version != write.version:
                outcomes.append(Outcome(write.key, Verdict.STALE))
            else:
                unmoved.append(write)
        if not unmoved:
            return outcomes
        answer = self._send_classify(project, [ids[write.key] for write in unmoved], word)
        codes = {str(item.get("prospectId")): _code(item) for item in _items(answer, "failed")}
        now = self._prospects(project, [ids[write.key] for write in unmoved])
        for write in unmoved:
            record = now.get(ids[write.key])
            if ids[write.key] in codes:
                outcomes.append(Outcome(write.key, Verdict.REJECTED, reason=codes[ids[write.key]]))
            elif record is None or record.is_deleted or record.values.get("classification") != word:
                outcomes.append(Outcome(write.key, Verdict.UNKNOWN, reason="not confirmed"))
            else:
                outcomes.append(Outcome(write.key, Verdict.DONE, record))
        return outcomes

    def _prospects(
        self, project: str, ids: Sequence[str], *, is_whole: bool = False, since: bool = True
    ) -> dict[str, Record]:
        """Prospects of one project by id: the listing of what just moved, then the whole one for those it lacks."""
        scopes: list[dict[str, str]] = [{}]
        if not is_whole and since:
            scopes.insert(0, {"updated_since": iso_z(self.now() - timedelta(seconds=SETTLING_SECONDS))})
        found: dict[str, Record] = {}
        wanted = set(ids)
        for scope in scopes:
            for row in self._rows(f"/projects/{segment(project)}/prospects", scope):
                record = self._read("deal_contact", row, project)
                if record is not None:
                    found[record.id] = record
                if not is_whole and wanted <= found.keys():
                    return found
            if wanted <= found.keys():
                break
        return found

    # --- updates ----------------------------------------------------------------------

    def _update(self, write: Write) -> Outcome:
        if write.version is None:
            # Read by id, the header may tell what the listing did not.
            return Outcome(write.key, Verdict.STALE, reason="no entity tag is known")
        version: str | None = write.version
        path = self._path(write)
        row: Row | None = None
        if write.kind == "deal_contact" and write.opaque.get("is_company_only") and "contact" in write.refs:
            self.client.send("POST", f"{path}/contact-person", {"contactId": write.refs["contact"]}, repeat="unsent")
            row = self.client.get(path)
            version = self._version(row)
        body = fields.changed(write.kind, write.values, write.opaque)
        if write.counterpart is not None:
            if write.kind == "employment" or len(write.counterpart) > fields.MAX_REF:
                return Outcome(write.key, Verdict.REJECTED, reason="externalRefs: cannot hold the mark")
            body["externalRefs"] = fields.joined_refs(write.opaque.get("refs"), self.setup.namespace, write.counterpart)
        if body:
            row = self._send("PATCH", path, body, etag=version)
        record = self._whole(write, row)
        if record is None:
            return Outcome(write.key, Verdict.UNKNOWN, reason="the answer did not show the record")
        return Outcome(write.key, Verdict.DONE, record)

    def _version(self, row: Row) -> str | None:
        etag = row.get("etag")
        return etag if isinstance(etag, str) else None

    def _path(self, write: Write) -> str:
        return path_of(write.kind, _address(write))

    def _send(
        self,
        method: Method,
        path: str,
        body: Mapping[str, Json],
        *,
        etag: str | None = None,
        key: str | None = None,
        repeat: Repeat = "always",
    ) -> Row | None:
        """Send a body; ``exclusivity`` under the name that this tenant's version knows (14.10).

        An unknown field is refused with 400 or silently ignored; only then is ``mandate`` tried.
        """
        if "exclusivity" not in body:
            return self.client.send(method, path, body, etag=etag, key=key, repeat=repeat)
        value = body["exclusivity"]
        older = {("mandate" if name == "exclusivity" else name): each for name, each in body.items()}
        if self.uses_mandate:
            return self.client.send(method, path, older, etag=etag, key=key, repeat=repeat)
        try:
            row = self.client.send(method, path, body, etag=etag, key=key, repeat=repeat)
        except RefusedError as exc:
            if exc.status != 400:
                raise
            again = f"{key}-m" if key else None
            try:
                row = self.client.send(method, path, older, etag=etag, key=again, repeat=repeat)
            except RefusedError:
                raise exc from None
            self.uses_mandate = True
            return row
        if row is None or "id" not in row or _exclusivity(row) == value:
            return row
        return self._insist(path if method == "PATCH" else f"{path}/{segment(str(row['id']))}", row, value)

    def _insist(self, path: str, row: Row, value: Json) -> Row:
        """The newer name was accepted and ignored: try the older one."""
        try:
            again = self.client.send("PATCH", path, {"mandate": value}, etag=self._version(row))
        except (RejectedError, StaleVersionError, MissingError):
            return row
        if again is None or _exclusivity(again) != value:
            return again or row
        self.uses_mandate = True
        return again

    # --- deletes ----------------------------------------------------------------------

    def _delete(self, write: Write) -> Outcome:
        path = self._path(write)
        if write.kind == "deal_contact":
            # ``remove`` knows no condition, so the version is compared just before.
            if self._version_now(write) != write.version:
                return Outcome(write.key, Verdict.STALE)
            try:
                self.client.send("POST", f"{path}/remove")
                return Outcome(write.key, Verdict.DONE)
            except (MissingError, RefusedError) as exc:
                if isinstance(exc, RefusedError) and exc.status != 405:
                    if self._is_closed(_project(write)):
                        return Outcome(write.key, Verdict.REJECTED, reason=CLOSED_PROJECT)
                    raise
        try:
            self.client.send("DELETE", path, etag=write.version)
        except (MissingError, RefusedError) as exc:
            if isinstance(exc, RefusedError) and exc.status != 405:
                raise
            if isinstance(exc, MissingError) and not self._is_there(path):
                return Outcome(write.key, Verdict.MISSING)
            return Outcome(
                write.key, Verdict.REJECTED, reason=f"Propstreet offers no deletion of a {write.kind} by API"
            )
        return Outcome(write.key, Verdict.DONE)

    def _version_now(self, write: Write) -> str | None:
        """The version of a prospect, from one listing where many of its project are about to go. Raises MissingError.

        RACE: an edit between that listing and the removal, within seconds, goes with the prospect.
        """
        project = _project(write)
        if project not in self._listed:
            return self._version(self.client.get(self._path(write)))
        listed = self._listed[project]
        if listed is None:
            listed = self._listed[project] = self._prospects(project, [], is_whole=True)
        record = listed.get(_address(write).id)
        if record is None or record.is_deleted:
            raise MissingError(f"GET {self._path(write)}: not in its project's listing")
        return record.version

    def _is_there(self, path: str) -> bool:
        try:
            return not self.client.get(path).get("deletedUtc")
        except MissingError:
            return False

    # --- lost answers -----------------------------------------------------------------

    def find(self, writes: Sequence[Write]) -> Mapping[str, Record]:
        """See ``Connector.find``. Deleted records are none."""
        found: dict[str, Record] = {}
        projects: dict[str, list[Write]] = {}
        recent: list[Write] = []
        for write in filter(_is_addressed, writes):
            if write.kind == "deal_contact":
                projects.setdefault(_project(write), []).append(write)
            elif write.kind == "company":
                recent.append(write)
            else:
                record = self._link(write) if write.kind == "employment" else self._by_ref(write)
                if record is not None and not record.is_deleted:
                    found[write.key] = _unsaid(write, record)
        for project, group in projects.items():
            found |= self._find_prospects(project, group)
        if recent:
            found |= self._find_companies(recent)
        return found

    def _find_prospects(self, project: str, writes: Sequence[Write]) -> dict[str, Record]:
        try:
            rows = self._prospects(project, [], is_whole=True).values()
        except MissingError:
            return {}
        by_end = {_end(record.refs): record for record in rows if not record.is_deleted}
        return {w.key: _unsaid(w, by_end[_end(w.refs)]) for w in writes if _end(w.refs) in by_end}

    def _find_companies(self, writes: Sequence[Write]) -> dict[str, Record]:
        """Companies have no lookup by external ref: what was made of late is listed."""
        keys = {write.counterpart: write.key for write in writes if write.counterpart}
        found: dict[str, Record] = {}
        scope = {"updated_since": iso_z(self.now() - timedelta(seconds=RECENT_SECONDS))}
        for row in self._rows(PATHS["company"], scope):
            key = keys.get(fields.split_refs(row, self.setup.namespace)[0] or "")
            record = self._read("company", row) if key else None
            if key and record is not None and not record.is_deleted:
                found[key] = record
        return found

    # --- rows -------------------------------------------------------------------------

    def _rows(self, path: str, scope: Mapping[str, str]) -> Iterator[Row]:
        for page in self.client.pages(path, {**scope, "include_deleted": "true"}):
            yield from page.rows

    def _read(self, kind: str, row: Row, parent: str | None = None) -> Record | None:
        """A row as a record. A deal does not say what its property says, so it must not pass for known to hold it."""
        try:
            record = fields.record(self.setup, kind, row, parent=parent)
        except UnfitValueError:
            return None
        return replace(record, opaque={name: each for name, each in record.opaque.items() if name != "property"})

    def _whole(self, write: Write, row: Row | None) -> Record | None:
        """The record that a write was answered with, read again where the answer falls short of one."""
        id_ = write.address.id if write.address is not None else None
        if row is None or "id" not in row or "etag" not in row or "updatedUtc" not in row:
            if row is not None and isinstance(row.get("id"), str | int):
                id_ = str(row["id"])
            if id_ is None:
                return None
            row = self.client.get(path_of(write.kind, Address(id_, _project(write))))
        record = self._read(write.kind, row, _project(write) or None)
        if record is None or write.kind != "deal" or "property" not in write.opaque:
            return record
        if fields.property_of(row) not in (None, write.opaque["property"]):
            return record
        return replace(record, opaque={**record.opaque, "property": write.opaque["property"]})


def path_of(kind: str, address: Address) -> str:
    """Where one record is read and written."""
    if kind == "deal_contact":
        return f"/projects/{segment(address.parent or '')}/prospects/{segment(address.id)}"
    return f"{PATHS[kind]}/{segment(address.id)}"


_FINAL: Final = ("validation_error", "invalid_id", "blocked", "invalid_source", "not_found_or_no_access")
"""Refusals of one prospect that no existing one explains."""


def _project(write: Write) -> str:
    if write.address is not None and write.address.parent:
        return write.address.parent
    return write.refs.get("deal", "")


def _is_addressed(write: Write) -> bool:
    """True if no id of a write could escape from a URL."""
    address = write.address
    ids = [*write.refs.values(), *((address.id, address.parent) if address is not None else ())]
    return all(is_safe_id(each) for each in ids if each is not None)


def _address(write: Write) -> Address:
    if write.address is None:
        raise ValueError(f"a {write.verb} without an address")
    return Address(write.address.id, _project(write) or None)


def _pure_classification(write: Write) -> str | None:
    """The classification, if that is all an update of a prospect is about."""
    if write.kind != "deal_contact" or write.verb != "update" or write.counterpart is not None:
        return None
    if set(write.values) != {"classification"} or write.version is None:
        return None
    if write.opaque.get("is_company_only") and "contact" in write.refs:
        return None
    return str(write.values["classification"] or fields.UNTOUCHED)


def _end(refs: Mapping[str, str]) -> tuple[str, str]:
    """Whom a prospect stands for."""
    return ("contact", refs["contact"]) if "contact" in refs else ("company", refs.get("company", ""))


def _added(write: Write, record: Record | None) -> Outcome:
    if record is None or record.is_deleted:
        return Outcome(write.key, Verdict.UNKNOWN, reason="added, but not seen since")
    wanted = write.values.get("classification")
    if wanted is None or record.values.get("classification") == wanted:
        return Outcome(write.key, Verdict.DONE, record)
    return Outcome(write.key, Verdict.EXISTS, _unsaid(write, record), "added, but not classified")


def _not_added(write: Write, code: str, there: Record | None) -> Outcome:
    if code in _FINAL or there is None:
        return Outcome(write.key, Verdict.REJECTED, reason=f"not added: {code}")
    if there.is_deleted:
        return Outcome(write.key, Verdict.REJECTED, reason=f"not added: {code}, it was removed in Propstreet before")
    return Outcome(write.key, Verdict.EXISTS, _unsaid(write, there))


def _lacks_primary(write: Write, record: Record) -> bool:
    return write.values.get("is_primary") is True and record.values.get("is_primary") is not True


def _unsaid(write: Write, record: Record) -> Record:
    """With unspoken what the create wanted otherwise: the default classification, not being primary."""
    if _lacks_primary(write, record):
        return replace(record, values={**record.values, "is_primary": False}, unspoken=frozenset({"is_primary"}))
    wanted, held = write.values.get("classification"), record.values.get("classification")
    if wanted in (None, held) or held != fields.UNTOUCHED:
        return record
    return replace(record, unspoken=frozenset({"classification"}))


def _match_failed(writes: Sequence[Write], answer: Row) -> dict[str, str]:
    """Write key -> error code, by index, else by whom it was about."""
    by_end = {_end(write.refs): write.key for write in writes}
    found: dict[str, str] = {}
    for item in _items(answer, "failed"):
        try:
            index = number(item.get("index"), "index")
        except UnfitValueError:
            index = None
        ends = (("contact", str(item.get("contactId"))), ("company", str(item.get("companyId"))))
        key = next((by_end[end] for end in ends if end in by_end), None)
        if key is None and index is not None and index == int(index) and 0 <= index < len(writes):
            key = writes[int(index)].key
        if key is not None:
            found[key] = _code(item)
    return found


def _items(answer: Row, name: str) -> list[Row]:
    items = answer.get(name)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _code(item: Row) -> str:
    code = item.get("error")
    return code if isinstance(code, str) and code.replace("_", "").isalnum() and len(code) < 50 else "not_added"


def _addresses(row: Row) -> set[str | None]:
    entries = row.get("emails")
    raw = [
        row.get("email"),
        *(each.get("address") for each in (entries if isinstance(entries, list) else []) if isinstance(each, dict)),
    ]
    return {str(each).strip().lower() for each in raw if each}


def _exclusivity(row: Row) -> object:
    return row.get("exclusivity") or row.get("mandate")
