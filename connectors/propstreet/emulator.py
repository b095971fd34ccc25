"""Propstreet's API over HTTP, as strict as its contract, for tests and the demo.

Rows are kept as the API names their fields. What people do (``add``, ``edit``, ``remove``, ...)
is not validated and may commit late; what comes by HTTP is. Where the contract leaves readings
open, an attribute of ``PropstreetEmulator`` chooses one; the defaults are the harder ones.
"""

from __future__ import annotations

import base64
import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from typing import Any, Final, Literal

from starlette.responses import Response

from connectors.propstreet.sender import NOUNS, Sender
from syncd.testing.emulator import Answer, Call, Emulator, Handler, Now, RateLimit, reply

COLLECTIONS: Final = ("companies", "contacts", "links", "projects", "prospects", "properties")
API: Final = "/api/v1"

_LIST: Final = frozenset({"updated_since", "include_deleted", "page_size", "cursor"})
_PARAMS: Final[Mapping[str, frozenset[str]]] = {
    "companies": _LIST,
    "contacts": _LIST,
    "links": _LIST | {"contact_id", "company_id"},
    "projects": _LIST | {"status", "classification", "teaser_stage", "near", "radius", "location"},
    "prospects": _LIST | {"capability", "classification", "tags"},
    "properties": _LIST | {"country", "category", "near", "radius", "location", "tags"},
}
#: Writable fields: native name -> longest text (0: not a text).
_CREATE: Final[Mapping[str, Mapping[str, int]]] = {
    "companies": {
        "name": 255, "countryCode": 10, "domain": 255, "homepageUrl": 500, "linkedInUrl": 500, "strategy": 65536,
        "tags": 0, "externalRefs": 0,
    },
    "contacts": {
        "firstName": 255, "lastName": 255, "email": 255, "phone": 50, "linkedInUrl": 500, "primaryLanguage": 10,
        "tags": 0, "strategy": 65536, "externalRefs": 0, "connections": 0,
    },
    "links": {"contactId": 255, "companyId": 255, "jobTitle": 255},
    "projects": {
        "name": 200, "asset": 0, "exclusivity": 20, "mandate": 20, "price": 0, "priceRange": 0, "externalRefs": 0,
    },
    "prospects": {"contactId": 255, "companyId": 255, "externalRefs": 0},
}  # fmt: skip
_UPDATE: Final[Mapping[str, Mapping[str, int]]] = {
    "companies": _CREATE["companies"],
    "contacts": {**_CREATE["contacts"], "blocked": 0, "emails": 0, "phones": 0},
    "links": {"jobTitle": 255, "isPrimary": 0},
    "projects": _CREATE["projects"],
    "prospects": {"classification": 20, "externalRefs": 0},
}
_CLASSIFICATIONS: Final = ("not_contacted", "contacted", "interested", "not_interested", "bidder")
_MANDATES: Final = ("exclusive", "non_exclusive", "other")
_SCALES: Final = {"none": 1, "thousands": 10**3, "millions": 10**6, "billions": 10**9}
_INSTANT: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)")


@dataclass(frozen=True, slots=True)
class Stored:
    """One row. ``ticks`` are tenths of microseconds, finer than Python's clock can tell."""

    id: str
    fields: Mapping[str, Any]
    created: int
    ticks: int
    revision: int
    deleted: int | None = None


@dataclass(slots=True)
class _Shelf:
    """The rows of one collection that are committed, and their order by (ticks, id)."""

    rows: dict[str, Stored] = field(default_factory=dict)
    order: list[tuple[int, int]] = field(default_factory=list)
    is_sorted: bool = True

    def put(self, row: Stored) -> None:
        self.rows[row.id] = row
        self.is_sorted = False

    def sorted(self) -> list[tuple[int, int]]:
        if not self.is_sorted:
            self.order = sorted((row.ticks, int(row.id)) for row in self.rows.values())
            self.is_sorted = True
        return self.order


class PropstreetEmulator(Emulator):
    """One tenant's account.

    ``page_cap`` bounds a page below what was asked for. ``late_commit_seconds``: what people write
    becomes visible that much later, with the time at which it was written. ``is_lenient`` ignores
    unknown body fields instead of refusing them. ``stale_status`` and ``closed_status`` choose
    among the documented answers to a stale tag and to a write on a closed project. ``webhooks`` sends
    what was subscribed to by the API.
    """

    def __init__(
        self,
        *,
        now: Now,
        page_cap: int = 500,
        late_commit_seconds: float = 0.0,
        is_lenient: bool = False,
        is_personal: bool = False,
        quota: bool = True,
        flat_envelope: bool = False,
        omit_nulls: bool = True,
        stale_status: int = 412,
        closed_status: int = 409,
        token_seconds: int = 3600,
    ) -> None:
        super().__init__(now=now)
        self.page_cap = page_cap
        self.late_commit_seconds = late_commit_seconds
        self.is_lenient = is_lenient
        self.is_personal = is_personal
        self.flat_envelope = flat_envelope
        self.omit_nulls = omit_nulls
        self.stale_status = stale_status
        self.closed_status = closed_status
        self.token_seconds = token_seconds
        # Readings that the contract leaves open.
        self.exclusivity: Literal["both", "refused", "ignored"] = "both"
        self.retry_after: Literal["seconds", "date", "none"] = "seconds"
        self.readd: Literal["revive", "new", "refuse"] = "revive"
        self.deleted_hold_refs = True
        self.deleted_answer_404 = True
        self.old_batch_codes = False
        self.numbers_as_text = False
        self.ids_as_numbers = False
        self.bump_project_on_prospect = False
        self.link_shows_primary = False
        self.first_link_is_primary = True
        self.has_properties = True
        self.has_remove = True
        self.has_network_deletes = False
        self.etag_in_body = True
        self.auth = (
            {"token": "pat_emulated"}
            if is_personal
            else {"client_id": "client-emulated", "client_secret": "secret-emulated"}
        )
        self.webhooks = Sender(now, self.lock, lambda: self.post)
        self._limit = RateLimit(60 if is_personal else 600, 60.0) if quota else None
        self._left: tuple[int, int, float] = (600, 600, 60.0)
        self._tokens: dict[str, datetime] = {}
        self._shelves = {name: _Shelf() for name in COLLECTIONS}
        self._pending: list[tuple[datetime, str, Stored]] = []
        self._members: dict[str, set[str]] = {}
        self._links: dict[tuple[str, str], set[str]] = {}
        self._marks: dict[tuple[str, str, str, str], str] = {}
        self._emails: dict[str, str] = {}
        self._replays: dict[tuple[str, str], tuple[str, int, Any, dict[str, str]]] = {}
        self._serial = 100
        self._revision = 0

    # --- people -----------------------------------------------------------------------

    def add(self, collection: str, fields: Mapping[str, Any], parent: str | None = None) -> str:
        """A person creates a row; ``parent`` is the project of a prospect. Returns its id."""
        with self.lock:
            given = dict(fields)
            if parent is not None:
                given["projectId"] = parent
            return self._create(collection, given, is_late=True).id

    def edit(self, collection: str, id_: str, fields: Mapping[str, Any]) -> None:
        """A person changes some fields."""
        with self.lock:
            self._change(collection, self._latest(collection, id_), fields, is_late=True)

    def remove(self, collection: str, id_: str) -> None:
        """A person deletes a row; it stays as a tombstone."""
        with self.lock:
            self._delete(collection, self._latest(collection, id_), is_late=True)

    def restore(self, collection: str, id_: str) -> None:
        """A person undoes a deletion."""
        with self.lock:
            row = self._latest(collection, id_)
            status = {"status": "open"} if collection == "projects" else {}
            self._commit_of(
                collection, replace(self._stamped(row), deleted=None, fields={**row.fields, **status}), True
            )

    def get(self, collection: str, id_: str) -> dict[str, Any]:
        """A row as the API shows it, uncommitted edits included."""
        with self.lock:
            return self._view(collection, self._latest(collection, id_))

    def all(self, collection: str) -> list[dict[str, Any]]:
        """All live rows, by id."""
        with self.lock:
            rows = dict(self._shelves[collection].rows)
            rows |= {row.id: row for _, name, row in self._pending if name == collection}
            live = (row for _, row in sorted(rows.items(), key=lambda item: int(item[0])) if row.deleted is None)
            return [self._view(collection, row) for row in live]

    def late(self, seconds: float) -> None:
        """From now on, what people write is committed so much later."""
        self.late_commit_seconds = seconds

    def backdate(self, collection: str, id_: str, seconds: float) -> None:
        """What was written last on a row carries the time at which its transaction began, so much earlier."""
        with self.lock:
            row = self._latest(collection, id_)
            self._commit(collection, replace(row, ticks=row.ticks - round(seconds * 10_000_000)))

    def close_project(self, id_: str, buyer: str | None = None) -> None:
        """A person closes a project: sold to someone outside, to one of the prospects (its id), or not sold.

        ``buyer``: None as for a withdrawal without a transaction, ``external``, ``none``, or a prospect's id.
        """
        sale: dict[str, Any] = {}
        if buyer in ("external", "none"):
            sale = {"buyerType": buyer}
        elif buyer is not None:
            sale = {"buyerType": "prospect", "buyerProspectId": buyer}
        self.edit("projects", id_, {"status": "closed", "transactions": [sale] if sale else []})

    def communicate(
        self, project: str, contact_ids: Sequence[str | None], deadline: datetime | None = None
    ) -> list[str]:
        """The teaser goes out: contacts become prospects with a teaser, None an investor nobody may read."""
        with self.lock:
            row = self._latest("projects", project)
            teaser = {
                **(row.fields.get("teaser") or {}),
                "stage": "communicated",
                "communicatedUtc": _iso(self._ticks()),
            }
            self.edit("projects", project, {"teaser": teaser})
            sent = {"teaser": {"deadlineUtc": _iso(_to_ticks(deadline)) if deadline is not None else None}}
            found = []
            for contact in contact_ids:
                there = self._prospect_of(project, "contactId", contact) if contact else None
                if there is not None and there.deleted is None:
                    self.edit("prospects", there.id, sent)
                    found.append(there.id)
                else:
                    who = {"contactId": contact} if contact else {"displayName": "An investor"}
                    found.append(self.add("prospects", {**who, **sent}, parent=project))
            return found

    def accept(self, prospect: str) -> None:
        """The investor accepts the teaser."""
        with self.lock:
            teaser = self._latest("prospects", prospect).fields.get("teaser") or {}
            accepted = {**teaser, "acceptedUtc": _iso(self._ticks())}
            self.edit("prospects", prospect, {"teaser": accepted, "capabilities": ["chat"]})

    def classify(self, prospect: str, classification: str) -> None:
        """A person moves a prospect along."""
        self.edit("prospects", prospect, {"classification": classification})

    def expire_tokens(self) -> None:
        """Every token given out so far is refused from now on."""
        with self.lock:
            self._tokens.clear()

    def stop(self) -> None:
        if self.webhooks.outbox is not None:
            self.webhooks.outbox.close()
            self.webhooks.outbox = None
        super().stop()

    # --- the store --------------------------------------------------------------------

    def _ticks(self) -> int:
        self._revision += 1
        return _to_ticks(self.now()) + self._revision % 10

    def _stamped(self, row: Stored) -> Stored:
        return replace(row, ticks=self._ticks(), revision=self._revision)

    def _create(self, collection: str, fields: Mapping[str, Any], *, is_late: bool = False) -> Stored:
        self._serial += 1
        ticks = self._ticks()
        row = Stored(str(self._serial), _completed(collection, fields), ticks, ticks, self._revision)
        self._commit_of(collection, row, is_late)
        return row

    def _change(self, collection: str, row: Stored, fields: Mapping[str, Any], *, is_late: bool = False) -> Stored:
        merged = _normalised(collection, {**row.fields, **fields}, fields)
        changed = replace(self._stamped(row), fields=merged)
        self._commit_of(collection, changed, is_late)
        if collection == "links" and fields.get("isPrimary"):
            self._only_primary(changed)
        return changed

    def _delete(self, collection: str, row: Stored, *, is_late: bool = False) -> Stored:
        stamped = self._stamped(row)
        status = {"status": "deleted"} if collection == "projects" else {}
        gone = replace(stamped, deleted=stamped.ticks, fields={**row.fields, **status})
        self._commit_of(collection, gone, is_late)
        return gone

    def _commit_of(self, collection: str, row: Stored, is_late: bool) -> None:
        if is_late and self.late_commit_seconds > 0:
            self._pending.append((self.now() + timedelta(seconds=self.late_commit_seconds), collection, row))
            return
        self._pending = [each for each in self._pending if each[1] != collection or each[2].id != row.id]
        self._commit(collection, row)

    def _commit(self, collection: str, row: Stored) -> None:
        before = self._shelves[collection].rows.get(row.id)
        for each, is_there in ((before, False), (row, True)):
            if each is not None:
                self._index(collection, each, is_there)
        self._shelves[collection].put(row)
        if collection == "prospects" and self.bump_project_on_prospect:
            project = self._shelves["projects"].rows.get(row.fields["projectId"])
            if project is not None:
                self._shelves["projects"].put(self._stamped(project))
        if collection in NOUNS and self.webhooks.is_wanted:
            self._tell(collection, before, row)

    def _tell(self, collection: str, before: Stored | None, row: Stored) -> None:
        """Webhooks go out once what they speak of is committed."""
        old = before.fields if before is not None else {}
        changed = [name for name, value in row.fields.items() if value != old.get(name)]
        if before is None:
            self.webhooks.tell(collection, "created", self._view(collection, row), changed)
        elif row.deleted is not None and before.deleted is None:
            self.webhooks.tell(collection, "deleted", self._view(collection, row), changed)
        elif changed or row.deleted != before.deleted:
            self.webhooks.tell(collection, "updated", self._view(collection, row), changed)

    def _index(self, collection: str, row: Stored, is_there: bool) -> None:
        if collection == "prospects":
            self._members.setdefault(row.fields["projectId"], set()).add(row.id)
        if collection == "links":
            for end in ("contactId", "companyId"):
                self._links.setdefault((end, row.fields[end]), set()).add(row.id)
        holds = row.deleted is None or self.deleted_hold_refs
        for ref in row.fields.get("externalRefs") or ():
            at = (collection, _scope(collection, row.fields), ref["namespace"].lower(), ref["id"])
            if is_there and holds:
                self._marks[at] = row.id
            elif self._marks.get(at) == row.id:
                del self._marks[at]
        email = (row.fields.get("email") or "").lower() if collection == "contacts" else ""
        if email and is_there and row.deleted is None:
            self._emails[email] = row.id
        elif email and self._emails.get(email) == row.id:
            del self._emails[email]

    def _settle(self) -> None:
        """Commit what people wrote long enough ago."""
        at = self.now()
        due = [each for each in self._pending if each[0] <= at]
        self._pending = [each for each in self._pending if each[0] > at]
        for _, collection, row in due:
            self._commit(collection, row)

    def _latest(self, collection: str, id_: str) -> Stored:
        pending = [row for _, name, row in self._pending if name == collection and row.id == id_]
        return pending[-1] if pending else self._shelves[collection].rows[id_]

    def _for_write(self, collection: str, id_: str) -> Stored:
        """A row to be written by the API waits for whoever writes it now, as a database would make it."""
        row = self._row(collection, id_)
        latest = self._latest(collection, id_)
        if latest is not row:
            self._commit_of(collection, latest, False)
        return latest

    def _row(self, collection: str, id_: str) -> Stored:
        row = self._shelves[collection].rows.get(id_)
        if row is None:
            raise _problem(404, "Not found")
        return row

    def _live(self, collection: str, id_: str) -> Stored:
        row = self._for_write(collection, id_)
        if row.deleted is not None:
            raise _problem(404, "Not found")
        return row

    def _prospect_of(self, project: str, end: str, id_: str) -> Stored | None:
        """The project's prospect for a contact, or for a company as such; a live one before a removed one."""
        found: Stored | None = None
        for each in sorted(self._members.get(project, ()), key=int):
            row = self._latest("prospects", each)
            if row.fields.get(end) != id_ or (end == "companyId" and row.fields.get("contactId")):
                continue
            if row.deleted is None:
                return row
            found = row
        return found

    def _only_primary(self, link: Stored) -> None:
        for each in self._links.get(("contactId", link.fields["contactId"]), set()) - {link.id}:
            other = self._shelves["links"].rows[each]
            if other.fields.get("isPrimary"):
                self._commit("links", replace(self._stamped(other), fields={**other.fields, "isPrimary": False}))

    # --- views ------------------------------------------------------------------------

    def _view(self, collection: str, row: Stored) -> dict[str, Any]:
        shown = {"id": int(row.id) if self.ids_as_numbers else row.id, **row.fields}
        shown |= {
            "createdUtc": _iso(row.created),
            "updatedUtc": _iso(row.ticks),
            "deletedUtc": _iso(row.deleted) if row.deleted is not None else None,
            "changeType": None,
            "changeOrigin": None,
            "uri": f"https://app.propstreet.com/open/{collection}/{row.id}",
        }
        if self.etag_in_body:
            shown["etag"] = _etag(row)
        match collection:
            case "contacts":
                shown |= self._contact_view(row)
            case "companies":
                shown["contacts"] = [
                    {"id": link.fields["contactId"], "jobTitle": link.fields.get("jobTitle")}
                    for link in self._links_of("companyId", row.id)
                ]
            case "links" if not self.link_shows_primary:
                shown.pop("isPrimary", None)
            case "projects":
                shown |= self._project_view(row)
            case "prospects":
                shown |= self._prospect_view(row)
        return _without_nulls(shown) if self.omit_nulls else shown

    def _contact_view(self, row: Stored) -> dict[str, Any]:
        links = sorted(self._links_of("contactId", row.id), key=lambda link: not link.fields.get("isPrimary"))
        email, phone = row.fields.get("email"), row.fields.get("phone")
        emails = row.fields.get("emails") or ([{"address": email, "type": "work"}] if email else [])
        return {
            "emails": [{**each, "isPrimary": each["address"] == email} for each in emails],
            "phones": [{"number": phone, "type": "work", "isPrimary": True}] if phone else [],
            "companies": [
                {
                    "id": link.fields["companyId"],
                    "name": self._name_of(link.fields["companyId"]),
                    "jobTitle": link.fields.get("jobTitle"),
                    "isPrimary": bool(link.fields.get("isPrimary")),
                }
                for link in links
            ],
            "primaryCompanyId": next(
                (each.fields["companyId"] for each in links if each.fields.get("isPrimary")), None
            ),
        }

    def _name_of(self, company: str) -> str | None:
        row = self._shelves["companies"].rows.get(company)
        return row.fields.get("name") if row is not None else None

    def _project_view(self, row: Stored) -> dict[str, Any]:
        mandate = row.fields.get("exclusivity") or row.fields.get("mandate")
        shown: dict[str, Any] = {"exclusivity": mandate if self.exclusivity == "both" else None, "mandate": mandate}
        asset = dict(row.fields["asset"])
        price = dict(row.fields["price"]) if row.fields.get("price") else None
        if self.numbers_as_text:
            asset |= {"propertyCount": str(asset["propertyCount"])} if "propertyCount" in asset else {}
            if price is not None:
                price["value"] = str(price["value"])
        shown |= {"asset": asset, "price": price}
        if row.fields.get("status") != "closed":
            shown["transactions"] = None
        return shown

    def _prospect_view(self, row: Stored) -> dict[str, Any]:
        contact, company = row.fields.get("contactId"), row.fields.get("companyId")
        links = self._links_of("contactId", contact) if contact else []
        shelf, of = ("contacts", contact) if contact else ("companies", company)
        holder = self._shelves[shelf].rows.get(of or "")
        number = int if self.ids_as_numbers else str
        return {
            "contactId": number(contact) if contact else None,
            "companyId": number(company) if company else links[0].fields["companyId"] if links else None,
            "tags": list(holder.fields.get("tags") or []) if holder is not None else [],
        }

    def _links_of(self, end: str, id_: str) -> list[Stored]:
        rows = (self._shelves["links"].rows[each] for each in sorted(self._links.get((end, id_), ()), key=int))
        return [row for row in rows if row.deleted is None]

    # --- the frame --------------------------------------------------------------------

    def admit(self, call: Call) -> Response | None:
        self._settle()
        if call.path == "/openid/token":
            return None
        token = call.headers.get("authorization", "").removeprefix("Bearer ")
        valid_until = self._tokens.get(token)
        if not (self.is_personal and token == self.auth["token"]) and (
            valid_until is None or valid_until <= self.now()
        ):
            return reply(401, {"type": "https://tools.ietf.org/html/rfc7807", "title": "Unauthorized", "status": 401})
        if self._limit is None:
            return None
        is_admitted, remaining, reset = self._limit.admit(self.now())
        self._left = (self._limit.calls, remaining, reset)
        if is_admitted:
            return None
        headers = {
            "seconds": {"Retry-After": str(int(reset) + 1)},
            "date": {
                "Retry-After": format_datetime(self.now() + timedelta(seconds=int(reset) + 1), usegmt=True),
                "Date": format_datetime(self.now(), usegmt=True),
            },
            "none": {},
        }[self.retry_after]
        return reply(429, {"type": "https://tools.ietf.org/html/rfc7807", "title": "Too many requests"}, headers)

    def finish(self, call: Call, response: Response) -> Response:
        limit, remaining, reset = self._left
        response.headers["RateLimit-Limit"] = str(limit)
        response.headers["RateLimit-Remaining"] = str(remaining)
        response.headers["RateLimit-Reset"] = str(int(reset) + 1)
        if response.status_code >= 400 and response.headers.get("content-type") == "application/json":
            response.headers["content-type"] = "application/problem+json"
        return response

    def not_found(self, call: Call) -> Response:
        return reply(404, {"type": "https://tools.ietf.org/html/rfc7807", "title": "Not found", "status": 404})

    def routes(self) -> Sequence[tuple[str, str, Handler]]:
        one = "/{id}"
        network: list[tuple[str, str, Handler]] = []
        for name in ("contacts", "companies", "links"):
            path = f"{API}/network/{name}"
            network += [
                ("GET", path, self._lister(name)),
                ("POST", path, self._poster(name)),
                ("GET", path + one, self._getter(name)),
                ("PATCH", path + one, self._patcher(name)),
                ("DELETE", path + one, self._deleter(name)),
            ]
        projects = f"{API}/projects"
        prospects = projects + "/{project}/prospects"
        return [
            ("POST", "/openid/token", self._token),
            ("GET", f"{API}/network/contacts/external/{{namespace}}/{{ref:path}}", self._get_external("contacts")),
            ("PATCH", f"{API}/network/contacts/external/{{namespace}}/{{ref:path}}", self._upsert),
            *network,
            ("GET", projects + "/external/{namespace}/{ref:path}", self._get_external("projects")),
            ("GET", projects, self._lister("projects")),
            ("POST", projects, self._poster("projects")),
            ("POST", prospects + ":batch", self._add_batch),
            ("GET", prospects + "/external/{namespace}/{ref:path}", self._get_external("prospects")),
            ("POST", prospects + "/classify", self._classify_many),
            ("GET", prospects, self._lister("prospects")),
            ("POST", prospects, self._poster("prospects")),
            ("POST", prospects + "/{id}/remove", self._remove_prospect),
            ("POST", prospects + "/{id}/contact-person", self._promote),
            ("GET", prospects + one, self._getter("prospects")),
            ("PATCH", prospects + one, self._patcher("prospects")),
            ("DELETE", prospects + one, self._deleter("prospects")),
            ("GET", projects + "/{project}/properties", self._linked_properties),
            ("GET", projects + one, self._getter("projects")),
            ("PATCH", projects + one, self._patcher("projects")),
            ("DELETE", projects + one, self._deleter("projects")),
            ("GET", f"{API}/properties", self._lister("properties")),
            ("GET", f"{API}/properties/{{id}}", self._getter("properties")),
            *self.webhooks.routes(API),
        ]

    def _token(self, call: Call, **_: str) -> Response:
        form = call.body if isinstance(call.body, dict) else {}
        expected = {"grant_type": "client_credentials", "scope": "api:public"}
        if "urlencoded" not in call.headers.get("content-type", "") or any(
            form.get(name) != value for name, value in expected.items()
        ):
            return reply(400, {"error": "invalid_request"})
        if self.is_personal or any(form.get(name) != self.auth[name] for name in ("client_id", "client_secret")):
            return reply(401, {"error": "invalid_client"})
        self._revision += 1
        token = f"token-{self._revision}"
        self._tokens[token] = self.now() + timedelta(seconds=self.token_seconds)
        return reply(200, {"access_token": token, "token_type": "Bearer", "expires_in": self.token_seconds})

    # --- reading ----------------------------------------------------------------------

    def _lister(self, collection: str) -> Handler:
        def handler(call: Call, **params: str) -> Response:
            return self._list(call, collection, params.get("project"))

        return handler

    def _list(self, call: Call, collection: str, project: str | None) -> Response:
        if collection == "properties" and not self.has_properties:
            return self.not_found(call)
        if project is not None:
            self._visible(self._row("projects", project))
        query = _query(call, _PARAMS[collection])
        size = min(_page_size(query), self.page_cap)
        since = _to_ticks_of(query["updated_since"]) if "updated_since" in query else None
        is_deleted_too = _flag(query, "include_deleted")
        shelf = self._shelves[collection]
        if project is None:
            order = shelf.sorted()
        else:
            order = sorted(
                (shelf.rows[id_].ticks, int(id_)) for id_ in self._members.get(project, ()) if id_ in shelf.rows
            )
        after = _from_cursor(query["cursor"]) if "cursor" in query else ((since or 0) - 1, 1 << 62)
        found: list[Stored] = []
        for _, id_ in order[bisect_right(order, after) :]:
            row = shelf.rows[str(id_)]
            is_wanted = (is_deleted_too or row.deleted is None) and (since is None or row.ticks >= since)
            if is_wanted and _passes(query, row):
                found.append(row)
                if len(found) > size:
                    break
        shown, has_more = found[:size], len(found) > size
        cursor = _to_cursor(shown[-1]) if has_more else None
        meta: dict[str, Any] = {"nextCursor": cursor, "pageSize": size, "hasMore": has_more}
        data = [self._view(collection, row) for row in shown]
        if self.flat_envelope:
            return reply(200, {"data": data, "hasMore": has_more, "nextCursor": cursor})
        return reply(200, {"data": data, "page": meta})

    def _visible(self, row: Stored) -> Stored:
        if row.deleted is not None and self.deleted_answer_404:
            raise _problem(404, "Not found")
        return row

    def _getter(self, collection: str) -> Handler:
        def handler(call: Call, **params: str) -> Response:
            _query(call, frozenset())
            if collection == "properties" and not self.has_properties:
                return self.not_found(call)
            return self._shown(200, collection, self._visible(self._of_project(collection, params)))

        return handler

    def _of_project(self, collection: str, params: Mapping[str, str]) -> Stored:
        row = self._row(collection, params["id"])
        if collection == "prospects" and row.fields["projectId"] != params["project"]:
            raise _problem(404, "Not found")
        return row

    def _get_external(self, collection: str) -> Handler:
        def handler(call: Call, **params: str) -> Response:
            _query(call, frozenset())
            at = (collection, params.get("project", ""), params["namespace"].lower(), params["ref"])
            id_ = self._marks.get(at)
            if id_ is None:
                return self.not_found(call)
            return self._shown(200, collection, self._visible(self._row(collection, id_)))

        return handler

    def _linked_properties(self, call: Call, **params: str) -> Response:
        _query(call, frozenset())
        project = self._visible(self._row("projects", params["project"]))
        if not self.has_properties:
            return self.not_found(call)
        ids = [each["id"] if isinstance(each, dict) else each for each in project.fields.get("properties") or []]
        rows = [self._shelves["properties"].rows[str(id_)] for id_ in ids]
        return reply(200, {"data": [self._view("properties", row) for row in rows if row.deleted is None]})

    def _shown(self, status: int, collection: str, row: Stored, headers: Mapping[str, str] | None = None) -> Response:
        return reply(status, self._view(collection, row), {"ETag": _etag(row), **(headers or {})})

    # --- writing ----------------------------------------------------------------------

    def _poster(self, collection: str) -> Handler:
        def handler(call: Call, **params: str) -> Response:
            _query(call, frozenset())
            return self._once(call, lambda: self._post(call, collection, params))

        return handler

    def _once(self, call: Call, carry_out: Any) -> Response:
        """Carry out a POST once per Idempotency-Key; a repeat of the same body gets the same answer."""
        key = call.headers.get("idempotency-key")
        text = json.dumps(call.body, sort_keys=True)
        if key is not None and (call.path, key) in self._replays:
            body, status, content, headers = self._replays[call.path, key]
            if body != text:
                raise _problem(400, "The Idempotency-Key was used with another body")
            return reply(status, content, headers)
        response: Response = carry_out()
        if key is not None:
            shown = {"ETag": response.headers["ETag"]} if "ETag" in response.headers else {}
            content = json.loads(bytes(response.body)) if response.body else None
            self._replays[call.path, key] = (text, response.status_code, content, shown)
        return response

    def _post(self, call: Call, collection: str, params: Mapping[str, str]) -> Response:
        body = self._checked(call.body, collection, _CREATE[collection])
        match collection:
            case "contacts":
                if not any(body.get(name) for name in ("firstName", "lastName", "email", "phone")):
                    raise _invalid("email")
                self._unique_email(body, None)
            case "companies" | "projects":
                if not body.get("name"):
                    raise _invalid("name")
            case "links":
                return self._post_link(body)
            case "prospects":
                return self._post_prospect(params["project"], body)
        self._unique_refs(collection, "", body, None)
        connections = body.pop("connections", None) or []
        row = self._create(collection, body)
        for each in connections:
            link = {"contactId": row.id, "companyId": str(each["company"]["id"]), "jobTitle": each.get("jobTitle")}
            self._create("links", {**link, "isPrimary": bool(each.get("primary"))})
        return self._shown(201, collection, row, {"Location": f"{call.path}/{row.id}"})

    def _post_link(self, body: Mapping[str, Any]) -> Response:
        for end, shelf in (("contactId", "contacts"), ("companyId", "companies")):
            there = self._shelves[shelf].rows.get(str(body.get(end) or ""))
            if there is None or there.deleted is not None:
                raise _invalid(end)
        links = self._links_of("contactId", body["contactId"])
        if any(link.fields["companyId"] == body["companyId"] for link in links):
            raise _problem(409, "Linked already")
        return self._shown(
            201, "links", self._create("links", {**body, "isPrimary": self.first_link_is_primary and not links})
        )

    def _post_prospect(self, project: str, body: dict[str, Any]) -> Response:
        self._open_project(project)
        self._unique_refs("prospects", project, body, None)
        row, code = self._admitted(project, body)
        if row is None:
            raise _problem(409 if code == "already_in_prospects" else 400, code)
        return self._shown(201, "prospects", row)

    def _admitted(self, project: str, item: Mapping[str, Any]) -> tuple[Stored | None, str]:
        """The prospect made of one item, or the code that says why not."""
        ends = [end for end in ("contactId", "companyId") if item.get(end)]
        if len(ends) != 1:
            return None, "validation_error"
        end, id_ = ends[0], str(item[ends[0]])
        if not id_.isdigit():
            return None, "invalid_id"
        holder = self._shelves["contacts" if end == "contactId" else "companies"].rows.get(id_)
        if holder is None or holder.deleted is not None:
            return None, "not_found_or_no_access"
        if holder.fields.get("blocked"):
            return None, "blocked"
        there = self._prospect_of(project, end, id_)
        if there is not None and (there.deleted is None or self.readd == "refuse"):
            return None, "already_in_prospects"
        if there is not None and self.readd == "revive":
            back = replace(self._stamped(there), deleted=None, fields={**there.fields, **item})
            self._commit_of("prospects", back, False)
            return back, ""
        return self._create("prospects", {**item, "projectId": project}), ""

    def _add_batch(self, call: Call, **params: str) -> Response:
        project = params["project"]
        self._open_project(project)
        items = call.body.get("items") if isinstance(call.body, dict) and set(call.body) == {"items"} else None
        if not isinstance(items, list) or not 1 <= len(items) <= 100:
            raise _invalid("items")
        seen: set[tuple[str, str]] = set()
        for item in items:
            self._checked(item, "prospects", _CREATE["prospects"])
            for ref in item.get("externalRefs") or ():
                at = (ref["namespace"].lower(), ref["id"])
                if at in seen:
                    raise _invalid("externalRefs")
                seen.add(at)
        created: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        added: set[tuple[Any, Any]] = set()
        for index, item in enumerate(items):
            who = (item.get("contactId"), item.get("companyId"))
            row, code = self._batch_item(project, item, who in added)
            added.add(who)
            shown = {name: item[name] for name in ("contactId", "companyId") if item.get(name)}
            if row is not None:
                refs = {"externalRefs": item["externalRefs"]} if item.get("externalRefs") else {}
                created.append({"id": int(row.id) if self.ids_as_numbers else row.id, **shown, **refs})
            else:
                failed.append({"index": index, **shown, "error": code, "message": "not added"})
        return reply(200, {"created": created, "failed": failed})

    def _batch_item(self, project: str, item: Mapping[str, Any], is_repeat: bool) -> tuple[Stored | None, str]:
        if is_repeat:
            return None, "duplicate"
        try:
            self._unique_refs("prospects", project, item, None)
        except Answer:
            return None, "not_added" if self.old_batch_codes else "duplicate_external_ref"
        row, code = self._admitted(project, item)
        if code == "already_in_prospects" and self.old_batch_codes:
            code = "duplicate"
        return row, code

    def _classify_many(self, call: Call, **params: str) -> Response:
        self._open_project(params["project"])
        body = call.body if isinstance(call.body, dict) else {}
        ids, word = body.get("prospectIds"), body.get("classification")
        if set(body) != {"prospectIds", "classification"} or not isinstance(ids, list) or not 1 <= len(ids) <= 100:
            raise _invalid("prospectIds")
        if word not in _CLASSIFICATIONS:
            raise _invalid("classification")
        succeeded: list[str] = []
        failed: list[dict[str, Any]] = []
        for id_ in map(str, ids):
            row = self._shelves["prospects"].rows.get(id_)
            if row is None or row.deleted is not None or row.fields["projectId"] != params["project"]:
                failed.append({"prospectId": id_, "error": "not_found"})
                continue
            row = self._for_write("prospects", id_)
            if row.fields.get("classification") != word:
                self._change("prospects", row, {"classification": word})
            succeeded.append(id_)
        count: int | str = str(len(succeeded)) if self.numbers_as_text else len(succeeded)
        return reply(200, {"classified": count, "succeeded": succeeded, "failed": failed})

    def _patcher(self, collection: str) -> Handler:
        def handler(call: Call, **params: str) -> Response:
            _query(call, frozenset())
            self._of_project(collection, params)
            row = self._live(collection, params["id"])
            self._must_be_open(collection, row)
            if collection == "links" and "if-match" not in call.headers:
                raise _problem(428, "If-Match is required")
            self._match(call, row)
            body = self._checked(call.body, collection, _UPDATE[collection])
            return self._patch(collection, row, body)

        return handler

    def _patch(self, collection: str, row: Stored, body: dict[str, Any]) -> Response:
        if collection in ("companies", "projects") and "name" in body and not body["name"]:
            raise _invalid("name")
        if collection == "contacts":
            self._unique_email(body, row.id)
        self._unique_refs(collection, _scope(collection, row.fields), body, row.id)
        if collection == "projects":
            _check_range({**row.fields, **body})
        after = _normalised(collection, {**row.fields, **body}, body)
        lost = {name for name in body if self.loses(collection, row.id, name)}
        if after != row.fields:
            row = self._change(collection, row, {name: value for name, value in body.items() if name not in lost})
        told = {**row.fields, **{name: after[name] for name in lost}}
        return self._shown(200, collection, replace(row, fields=told))

    def _upsert(self, call: Call, **params: str) -> Response:
        query = _query(call, frozenset({"revive", "match"}))
        body = self._checked(call.body, "contacts", _UPDATE["contacts"])
        ours = {"namespace": params["namespace"], "id": params["ref"]}
        id_ = self._marks.get(("contacts", "", params["namespace"].lower(), params["ref"]))
        row = self._for_write("contacts", id_) if id_ is not None else None
        action = "updated"
        if row is not None and row.deleted is not None:
            action = "revived"
            row = replace(row, deleted=None)
        if row is None and query.get("match") == "email" and body.get("email"):
            same = self._emails.get(body["email"].lower())
            row = self._for_write("contacts", same) if same is not None else None
            if row is not None:
                others = [
                    r
                    for r in row.fields.get("externalRefs") or ()
                    if r["namespace"].lower() != ours["namespace"].lower()
                ]
                body["externalRefs"] = [*others, ours]
        self._unique_email(body, row.id if row is not None else None)
        if row is None:
            made = self._create("contacts", {**body, "externalRefs": [ours]})
            return self._shown(201, "contacts", made, {"X-Propstreet-Upsert-Action": "created"})
        changed = self._change("contacts", row, body)
        return self._shown(200, "contacts", changed, {"X-Propstreet-Upsert-Action": action})

    def _deleter(self, collection: str) -> Handler:
        def handler(call: Call, **params: str) -> Response:
            if collection in ("contacts", "companies", "links") and not self.has_network_deletes:
                return reply(405, {"title": "Method not allowed"})
            self._of_project(collection, params)
            row = self._live(collection, params["id"])
            self._must_be_open(collection, row)
            self._match(call, row)
            self._delete(collection, row)
            return reply(204)

        return handler

    def _remove_prospect(self, call: Call, **params: str) -> Response:
        if not self.has_remove:
            return self.not_found(call)
        self._of_project("prospects", params)
        row = self._live("prospects", params["id"])
        self._must_be_open("prospects", row)
        self._delete("prospects", row)
        return reply(204)

    def _promote(self, call: Call, **params: str) -> Response:
        self._of_project("prospects", params)
        row = self._live("prospects", params["id"])
        self._must_be_open("prospects", row)
        body = call.body if isinstance(call.body, dict) else {}
        contact = body.get("contactId")
        linked = {link.fields["companyId"] for link in self._links_of("contactId", str(contact))}
        if set(body) != {"contactId"} or row.fields.get("contactId") or row.fields.get("companyId") not in linked:
            raise _invalid("contactId")
        self._change("prospects", row, {"contactId": contact})
        return reply(204)

    # --- rules ------------------------------------------------------------------------

    def _match(self, call: Call, row: Stored) -> None:
        expected = call.headers.get("if-match")
        if expected is not None and expected != _etag(row):
            raise _problem(self.stale_status, "ETag mismatch", type_="urn:propstreet:error:precondition-failed")

    def _open_project(self, id_: str) -> None:
        self._must_be_open("projects", self._live("projects", id_))

    def _must_be_open(self, collection: str, row: Stored) -> None:
        if collection == "prospects":
            row = self._shelves["projects"].rows[row.fields["projectId"]]
        if collection in ("projects", "prospects") and row.fields.get("status") == "closed":
            raise _problem(self.closed_status, "The project is closed")

    def _unique_email(self, body: Mapping[str, Any], own: str | None) -> None:
        email = (body.get("email") or "").lower()
        if email and self._emails.get(email, own) != own:
            raise _problem(409, "The email is taken")

    def _unique_refs(self, collection: str, scope: str, body: Mapping[str, Any], own: str | None) -> None:
        for ref in body.get("externalRefs") or ():
            if self._marks.get((collection, scope, ref["namespace"].lower(), ref["id"]), own) != own:
                raise _problem(409, "The external ref is taken")

    def _checked(self, body: Any, collection: str, allowed: Mapping[str, int]) -> dict[str, Any]:
        """The body, if it holds nothing but known fields of the right shape."""
        if not isinstance(body, dict):
            raise _invalid("body")
        found: dict[str, Any] = {}
        for name, value in body.items():
            if collection == "projects" and name == "exclusivity" and self.exclusivity != "both":
                if self.exclusivity == "refused":
                    raise _invalid(name)
                continue
            if name not in allowed:
                if self.is_lenient:
                    continue
                raise _invalid(name)
            _check_value(name, value, allowed[name])
            found[name] = value
        if found.get("exclusivity") and found.get("mandate"):
            raise _problem(422, "exclusivity and mandate")
        if "mandate" in found:
            found["exclusivity"] = found.pop("mandate")
        return found


# --- values -------------------------------------------------------------------------------


def _completed(collection: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A new row's fields with the vendor's defaults."""
    defaults: dict[str, dict[str, Any]] = {
        "projects": {"asset": {"type": "single"}, "status": "open", "classification": "draft"},
        "prospects": {"classification": "not_contacted", "capabilities": []},
        "contacts": {"tags": []},
        "companies": {"tags": []},
    }
    return _normalised(collection, {**defaults.get(collection, {}), **fields}, fields)


def _normalised(collection: str, merged: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(merged)
    if found.get("phone"):
        found["phone"] = _e164(str(found["phone"]))
    if collection == "companies":
        if found.get("homepageUrl"):
            found["domain"] = _host(str(found["homepageUrl"]))
        elif found.get("domain"):
            found["domain"] = _host(str(found["domain"]))
    if collection == "projects" and "mandate" in given and "exclusivity" not in given:
        found["exclusivity"] = found.pop("mandate")
    for name, value in found.items():
        if isinstance(value, str):
            found[name] = value.strip() or None
    return found


def _e164(phone: str) -> str:
    """Swedish numbers become E.164, what starts with a plus loses its punctuation, the rest stays."""
    digits = re.sub(r"[\s()./-]", "", phone)
    if re.fullmatch(r"0[1-9]\d{6,10}", digits):
        return "+46" + digits[1:]
    return digits if re.fullmatch(r"\+\d{7,15}", digits) else phone


def _host(url: str) -> str:
    return re.sub(r"^(?:https?://)?(?:www\.)?", "", url.strip().lower()).split("/")[0]


def _check_value(name: str, value: Any, longest: int) -> None:
    if value is None:
        return
    if longest and (not isinstance(value, str) or len(value) > longest):
        raise _invalid(name)
    is_wrong = {
        "email": lambda: not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", value),
        "primaryLanguage": lambda: not re.fullmatch(r"[A-Za-z]{2}", value),
        "tags": lambda: not isinstance(value, list) or not all(isinstance(tag, str) and tag for tag in value),
        "classification": lambda: value not in _CLASSIFICATIONS,
        "exclusivity": lambda: value not in _MANDATES,
        "mandate": lambda: value not in _MANDATES,
        "isPrimary": lambda: not isinstance(value, bool),
        "asset": lambda: not _is_asset(value),
        "price": lambda: not _is_price(value, ("value",)),
        "priceRange": lambda: not _is_price(value, ("min", "max")),
        "externalRefs": lambda: not _are_refs(value),
    }.get(name)
    if is_wrong is not None and is_wrong():
        raise _invalid(name)


def _is_asset(value: Any) -> bool:
    if not isinstance(value, dict) or not set(value) <= {"type", "propertyCount"}:
        return False
    count = value.get("propertyCount")
    if value.get("type") == "single":
        return count is None
    return value.get("type") == "portfolio" and (count is None or (isinstance(count, int) and count >= 0))


def _is_price(value: Any, numbers: Sequence[str]) -> bool:
    if not isinstance(value, dict) or not set(value) <= {*numbers, "currency", "scale"}:
        return False
    if not re.fullmatch(r"[A-Z]{3}", str(value.get("currency"))) or value.get("scale", "none") not in _SCALES:
        return False
    if numbers == ("value",) and value.get("value") is None:
        return False
    return all(value.get(name) is None or Decimal(str(value[name])) >= 0 for name in numbers)


def _are_refs(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for ref in value:
        if not isinstance(ref, dict) or set(ref) != {"namespace", "id"}:
            return False
        if not all(isinstance(each, str) and each for each in ref.values()):
            return False
        if len(ref["namespace"]) > 50 or len(ref["id"]) > 255:
            return False
    names = [ref["namespace"].lower() for ref in value]
    return len(names) == len(set(names))


def _check_range(fields: Mapping[str, Any]) -> None:
    price, limits = fields.get("price"), fields.get("priceRange")
    if not price or not limits:
        return
    amount = Decimal(str(price["value"])) * _SCALES[price.get("scale", "none")]
    scale = _SCALES[limits.get("scale", "none")]
    low, high = (Decimal(str(limits[end])) * scale if limits.get(end) is not None else None for end in ("min", "max"))
    if (
        price["currency"] != limits["currency"]
        or (low is not None and amount < low)
        or (high is not None and amount > high)
    ):
        raise _invalid("price")


def _scope(collection: str, fields: Mapping[str, Any]) -> str:
    """Refs of prospects are unique within their project, all others within the tenant."""
    return str(fields.get("projectId") or "") if collection == "prospects" else ""


def _without_nulls(shown: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nulls(value) if isinstance(value, dict) else value
        for name, value in shown.items()
        if value is not None
    }


def _etag(row: Stored) -> str:
    return f'W/"{base64.b64encode(row.revision.to_bytes(8, "big")).decode()}"'


# --- time and cursors ---------------------------------------------------------------------


def _to_ticks(moment: datetime) -> int:
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**7 + since.microseconds * 10


def _iso(ticks: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ticks // 10**7)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ticks % 10**7:07d}Z"


def _to_ticks_of(text: str) -> int:
    found = _INSTANT.fullmatch(text)
    if found is None:
        raise _invalid("updated_since")
    whole = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
    return _to_ticks(whole) + int(((found[2] or "") + "0000000")[:7])


def _to_cursor(row: Stored) -> str:
    return base64.b64encode(json.dumps({"u": row.ticks, "i": int(row.id)}).encode()).decode()


def _from_cursor(cursor: str) -> tuple[int, int]:
    try:
        found = json.loads(base64.b64decode(cursor, validate=True))
        return int(found["u"]), int(found["i"])
    except (ValueError, KeyError, TypeError) as exc:
        raise _invalid("cursor") from exc


def _query(call: Call, allowed: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in call.query:
        if name not in allowed or (name in found and name != "tags"):
            raise _invalid(name)
        found[name] = value
    return found


def _page_size(query: Mapping[str, str]) -> int:
    raw = query.get("page_size", "500")
    if not raw.isdigit() or not 1 <= int(raw) <= 500:
        raise _invalid("page_size")
    return int(raw)


def _flag(query: Mapping[str, str], name: str) -> bool:
    if query.get(name, "false") not in ("true", "false"):
        raise _invalid(name)
    return query.get(name) == "true"


def _passes(query: Mapping[str, str], row: Stored) -> bool:
    filters = {
        "contact_id": "contactId",
        "company_id": "companyId",
        "status": "status",
        "classification": "classification",
    }
    return all(str(row.fields.get(native)) == query[name] for name, native in filters.items() if name in query)


def _problem(status: int, title: str, *, type_: str = "https://tools.ietf.org/html/rfc7807") -> Answer:
    return Answer(status, {"type": type_, "title": title, "status": status})


def _invalid(name: str) -> Answer:
    return Answer(400, {"type": "https://tools.ietf.org/html/rfc7807", "status": 400, "errors": {name: ["is invalid"]}})


__all__ = ["COLLECTIONS", "PropstreetEmulator"]
