"""HubSpot's wire format over HTTP, as strict as its contract, with state and a clock of its own.

Strict means: what the contract does not document is refused here, unknown properties in reads
included, although the real one lets some of it pass. Search shows the past for
``index_lag_seconds``; reads by id and listings tell the truth. Times have milliseconds.

People's edits (``add``, ``edit``, ``archive``, ``restore``, ``merge``, ``associate``,
``dissociate``) need no token and count against no quota.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from starlette.responses import Response

from connectors.hubspot.fields import own_properties
from connectors.hubspot.schema import PAIRS
from connectors.hubspot.sender import Sender
from syncd.core import mapping
from syncd.testing.emulator import Answer, Call, Emulator, Handler, Now, RateLimit, reply

_TYPES: Final = {"contacts": "0-1", "companies": "0-2", "deals": "0-3"}
_CURSOR: Final = {"contacts": "lastmodifieddate", "companies": "hs_lastmodifieddate", "deals": "hs_lastmodifieddate"}
_DEFAULTS: Final = {
    "contacts": ("createdate", "email", "firstname", "lastname"),
    "companies": ("createdate", "domain", "name"),
    "deals": ("amount", "closedate", "createdate", "dealname", "dealstage", "pipeline"),
}

_STANDARD: Final = {
    "contacts": "firstname lastname email phone mobilephone jobtitle hs_linkedin_url lifecyclestage city",
    "companies": "name domain website country linkedin_company_page industry city phone",
    "deals": "dealname dealstage pipeline dealtype description hs_next_step",
}
_READ_ONLY: Final = {
    "contacts": "hs_object_id createdate lastmodifieddate hs_merged_object_ids hs_updated_by_user_id"
    " hs_additional_emails",
    "companies": "hs_object_id createdate hs_lastmodifieddate hs_merged_object_ids hs_updated_by_user_id",
    "deals": "hs_object_id createdate hs_lastmodifieddate hs_merged_object_ids hs_updated_by_user_id",
}
#: The user who edits by hand; what comes through the API names none.
PERSON: Final = "70112233"

#: Plain and primary types: (from, to) -> {plain, primary}; the other direction mirrors them.
_MIRRORS: Final = {
    ("deals", "contacts"): {3: 4},
    ("deals", "companies"): {341: 342, 5: 6},
    ("contacts", "companies"): {279: 280, 1: 2},
}
_PLAIN: Final = {(a, b): next(iter(ids)) for (a, b), ids in _MIRRORS.items()} | {
    (b, a): next(iter(ids.values())) for (a, b), ids in _MIRRORS.items()
}

_PRIMARY: Final = {
    ("contacts", "companies"): 1,
    ("companies", "contacts"): 2,
    ("deals", "companies"): 5,
    ("companies", "deals"): 6,
}

_OPERATORS: Final = frozenset(
    [
        "EQ",
        "NEQ",
        "LT",
        "LTE",
        "GT",
        "GTE",
        "BETWEEN",
        "IN",
        "NOT_IN",
        "HAS_PROPERTY",
        "NOT_HAS_PROPERTY",
        "CONTAINS_TOKEN",
        "NOT_CONTAINS_TOKEN",
    ]
)
_STAGES: Final = (
    ("appointmentscheduled", "Appointment Scheduled", "0.2"),
    ("qualifiedtobuy", "Qualified To Buy", "0.4"),
    ("presentationscheduled", "Presentation Scheduled", "0.6"),
    ("decisionmakerboughtin", "Decision Maker Bought-In", "0.8"),
    ("contractsent", "Contract Sent", "0.9"),
    ("closedwon", "Closed Won", "1.0"),
    ("closedlost", "Closed Lost", "0.0"),
)

_Type = tuple[str, int]


@dataclass(slots=True)
class _Thing:
    """One record: what it holds now, and what the search index may still show of it."""

    id: int
    properties: dict[str, str]
    created: datetime
    updated: datetime
    archived_at: datetime | None = None
    past: list[tuple[datetime, dict[str, str] | None]] = field(default_factory=list)


class _Trouble(Exception):
    """One input of a batch that HubSpot refuses."""

    def __init__(self, status: int, category: str, message: str, **context: Any):
        super().__init__(message)
        self.status = status
        self.category = category
        self.message = message
        self.context = context


class HubSpotEmulator(Emulator):
    """One portal.

    ``index_lag_seconds``: how long search shows the past; ``slow_rows[type, id]`` adds to it for
    one record, so that rows come in out of order. ``has_labels``: whether the portal's edition
    has association labels. ``has_currency``: whether deals carry a currency. ``is_prepared``:
    our properties and labels are there already. ``is_terse``: answers to writes show nothing but
    dates. ``missing_scopes``: what the token may not do.
    """

    def __init__(
        self,
        *,
        now: Now,
        index_lag_seconds: float = 0.0,
        quota: bool = True,
        is_oauth: bool = False,
        has_labels: bool = True,
        has_currency: bool = True,
        is_prepared: bool = False,
        is_terse: bool = False,
        currency: str = "SEK",
        currencies: Sequence[str] = ("SEK", "EUR"),
        time_zone: str = "Europe/Stockholm",
        portal_id: int = 47110815,
        association_page: int = 500,
    ):
        super().__init__(now=now)
        self.index_lag_seconds = index_lag_seconds
        self.slow_rows: dict[tuple[str, str], float] = {}
        self.quota = quota
        self.has_labels = has_labels
        self.is_terse = is_terse
        self.terse_shows_modified = False
        self.currency = currency
        self.time_zone = time_zone
        self.portal_id = portal_id
        self._gone: set[tuple[str, str]] = set()
        self.association_page = association_page
        # Whether a batch of associations replaces the labels of a pair, as a single PUT does, or adds to them.
        self.associating_replaces = True
        # Whether what is in the bin keeps its unique values from others.
        self.bin_holds_values = False
        # Whether an error in an answer of 207 tells which input it is about.
        self.names_errors = True
        self.missing_scopes: set[str] = set()
        self.is_daily_spent = False
        self.pipelines = [_pipeline("default", "Sales Pipeline", _STAGES)]
        self._things: dict[str, dict[int, _Thing]] = {type_: {} for type_ in _TYPES}
        self._aliases: dict[str, dict[int, int]] = {type_: {} for type_ in _TYPES}
        self._bonds: dict[tuple[str, str], dict[int, dict[int, set[_Type]]]] = {pair: {} for pair in _PLAIN}
        self._labels: dict[tuple[str, str], dict[int, str]] = {pair: {} for pair in _PLAIN}
        self._twins: dict[int, int] = {
            a: b for ids in _MIRRORS.values() for one in ids.items() for a, b in (one, one[::-1])
        }
        # Who ever held a unique value; whether somebody still does is for the thing itself to say.
        self._held: dict[tuple[str, str, str], set[int]] = {}
        self._groups: dict[str, set[str]] = {type_: {f"{type_[:-1]}information"} for type_ in _TYPES}
        self._defined: dict[str, dict[str, dict[str, Any]]] = {type_: _standard(type_) for type_ in _TYPES}
        if has_currency:
            options = [{"label": each, "value": each, "displayOrder": 0, "hidden": False} for each in currencies]
            self._defined["deals"]["deal_currency_code"] = _definition(
                "deal_currency_code", "enumeration", "select", options=options
            )
        self.webhooks: Sender | None = None
        self._next_id = 20_100
        self._next_label = 31
        self._limits = {
            "default": RateLimit(110 if is_oauth else 100, 10),
            "search": RateLimit(5, 1),
            "associations": RateLimit(100, 10),
        }
        self._left: tuple[int, int] | None = None
        self._expires: dict[str, datetime | None] = {}
        self._issued = 0
        if is_oauth:
            self.auth = {"client_id": "client-1", "client_secret": "secret-1", "refresh_token": "refresh-1"}
        else:
            self.auth = {"access_token": "pat-eu1-emulated"}
            self._expires["pat-eu1-emulated"] = None
        if is_prepared:
            self.prepare()

    def prepare(self) -> None:
        """Put our properties and labels into the portal, as ``check --fix`` would."""
        for kind, type_ in (("contact", "contacts"), ("company", "companies"), ("deal", "deals")):
            self._groups[type_].add("propstreet")
            for name, body in own_properties(kind).items():
                self._defined[type_][name] = _complete(body)
        if self.has_labels:
            texts = {
                "teaser sent": "Teaser sent",
                "teaser accepted": "Teaser accepted",
                "prospect": "Propstreet prospect",
            }
            for other, meanings in PAIRS.items():
                for meaning in meanings:
                    text = texts.get(meaning, meaning.replace("_", " ").capitalize())
                    self.define_label("deals", other, text)

    def revoke(self, token: str | None = None) -> None:
        """Make a token worthless, or every one that was issued."""
        with self.lock:
            for each in [token] if token else list(self._expires):
                self._expires.pop(each, None)

    def allow(self, token: str) -> None:
        """Accept a static token from now on."""
        with self.lock:
            self._expires[token] = None

    def deliver_to(self, url: str, secret: str, *, app_id: int = 4) -> Sender:
        """A person sets an app's target URL and subscribes to everything; ``secret`` is its client secret."""
        self.webhooks = Sender(url, secret, app_id, self.portal_id, self.now, lambda: self.post)
        return self.webhooks

    def stop_webhooks(self) -> None:
        """A person takes the app's target URL away."""
        if self.webhooks is not None:
            self.webhooks.outbox.close()
            self.webhooks = None

    def stop(self) -> None:
        self.stop_webhooks()
        super().stop()

    # --- people's edits -----------------------------------------------------------------

    def add(self, type_: str, props: Mapping[str, str]) -> str:
        """A person makes a record; returns its id."""
        with self.lock:
            return str(self._create(type_, self._by_hand(type_, props)).id)

    def edit(self, type_: str, id_: str, props: Mapping[str, str]) -> None:
        with self.lock:
            thing = self._thing(type_, id_)
            self._change(type_, thing, self._by_hand(type_, props, thing))

    def _by_hand(self, type_: str, props: Mapping[str, str], thing: _Thing | None = None) -> dict[str, str]:
        return {**self._fit(type_, props, thing, is_person=True), "hs_updated_by_user_id": PERSON}

    def archive(self, type_: str, id_: str) -> None:
        with self.lock:
            self._archive(type_, self._thing(type_, id_))

    def restore(self, type_: str, id_: str) -> None:
        """Bring a record back from the bin, its modified time as it was."""
        with self.lock:
            thing = self._things[type_][int(id_)]
            thing.archived_at = None
            thing.past.append((self._ms(), dict(thing.properties)))
            self._tell(type_, thing, "restore")

    def merge(self, type_: str, primary: str, other: str) -> str:
        """Merge two records; returns the survivor's id, a new one except for companies."""
        with self.lock:
            return str(self._merge(type_, self._thing(type_, primary), self._thing(type_, other)).id)

    def associate(
        self,
        from_type: str,
        from_id: str,
        to_type: str,
        to_id: str,
        labels: Sequence[str] = (),
        *,
        primary: bool = True,
    ) -> None:
        """A person associates two records; a contact's first company becomes its primary one."""
        with self.lock:
            types = {("HUBSPOT_DEFINED", _PLAIN[from_type, to_type])}
            types |= {self._type_of(from_type, to_type, each) for each in labels}
            if primary and (from_type, to_type) == ("contacts", "companies"):
                first = not self._bonds[from_type, to_type].get(int(from_id))
                types |= {("HUBSPOT_DEFINED", 1)} if first else set()
            self._bind(from_type, int(from_id), to_type, int(to_id), types)

    def dissociate(self, from_type: str, from_id: str, to_type: str, to_id: str, labels: Sequence[str] = ()) -> None:
        """A person takes labels off, or without any named, the association away."""
        with self.lock:
            types = {self._type_of(from_type, to_type, each) for each in labels} or None
            self._unbind(from_type, int(from_id), to_type, int(to_id), types)

    def _type_of(self, from_type: str, to_type: str, label: str) -> _Type:
        """The association type of a label; "Primary" is HubSpot's own."""
        primary = _PRIMARY.get((from_type, to_type))
        if label.casefold() == "primary" and primary is not None:
            return "HUBSPOT_DEFINED", primary
        return "USER_DEFINED", self.define_label(from_type, to_type, label)

    def define_label(self, from_type: str, to_type: str, text: str) -> int:
        """The type id of a label, made if it is not there."""
        with self.lock:
            pair = (from_type, to_type)
            for id_, known in self._labels[pair].items():
                if known == text:
                    return id_
            one, twin = self._next_label, self._next_label + 1
            self._next_label += 2
            self._labels[pair][one], self._labels[to_type, from_type][twin] = text, text
            self._twins |= {one: twin, twin: one}
            return one

    def define(self, type_: str, name: str, *, kind: str = "string", shape: str = "text", **more: Any) -> None:
        """Add a property to the portal."""
        with self.lock:
            self._defined[type_][name] = _definition(name, kind, shape, **more)

    def undefine(self, type_: str, name: str, *, is_silent: bool = True) -> None:
        """Take a property out of the portal. Reads that ask for it leave it out, or are refused."""
        with self.lock:
            del self._defined[type_][name]
            if is_silent:
                self._gone.add((type_, name))

    def get(self, type_: str, id_: str) -> dict[str, str] | None:
        """The properties of a live record, None if it is archived or gone."""
        with self.lock:
            thing = self._things[type_].get(self._aliases[type_].get(int(id_), int(id_)))
            return dict(thing.properties) if thing is not None and thing.archived_at is None else None

    def all(self, type_: str) -> dict[str, dict[str, str]]:
        """Properties of all live records by id."""
        with self.lock:
            return {
                str(id_): dict(thing.properties)
                for id_, thing in self._things[type_].items()
                if thing.archived_at is None
            }

    def associations(self, from_type: str, from_id: str, to_type: str) -> dict[str, set[str]]:
        """Associated ids with their labels ("Primary" for the primary company)."""
        with self.lock:
            texts = self._labels[from_type, to_type]
            return {
                str(other): {texts[id_] for _, id_ in types if id_ in texts}
                | ({"Primary"} if {("HUBSPOT_DEFINED", 1), ("HUBSPOT_DEFINED", 5)} & types else set())
                for other, types in self._bonds[from_type, to_type].get(int(from_id), {}).items()
            }

    # --- frame --------------------------------------------------------------------------

    def routes(self) -> Sequence[tuple[str, str, Handler]]:
        objects, bonds = "/crm/v3/objects/{type}", "/crm/v4/associations/{one}/{other}"
        # Any: handlers name their path parameters, which the frame's Handler leaves open.
        found: tuple[tuple[str, str, Any], ...] = (
            ("GET", "/account-info/v3/details", self._details),
            ("POST", "/oauth/v1/token", self._token),
            ("GET", "/crm/v3/owners", self._owners),
            ("GET", "/crm/v3/pipelines/deals", self._pipelines),
            ("GET", "/crm/v3/properties/{type}", self._properties),
            ("POST", "/crm/v3/properties/{type}", self._new_property),
            ("POST", "/crm/v3/properties/{type}/groups", self._new_group),
            ("POST", objects + "/search", self._search),
            ("POST", objects + "/batch/read", self._batch_read),
            ("POST", objects + "/batch/create", self._batch_create),
            ("POST", objects + "/batch/update", self._batch_update),
            ("POST", objects + "/batch/upsert", self._batch_upsert),
            ("POST", objects + "/batch/archive", self._batch_archive),
            ("POST", objects + "/merge", self._merge_call),
            ("POST", objects + "/gdpr-delete", self._gdpr_delete),
            ("GET", objects, self._list),
            ("GET", objects + "/{id}", self._get),
            ("PATCH", objects + "/{id}", self._patch),
            ("DELETE", objects + "/{id}", self._delete),
            ("GET", bonds + "/labels", self._list_labels),
            ("POST", bonds + "/labels", self._new_label),
            ("POST", bonds + "/batch/read", self._read_bonds),
            ("POST", bonds + "/batch/create", self._create_bonds),
            ("POST", bonds + "/batch/archive", self._archive_bonds),
            ("POST", bonds + "/batch/labels/archive", self._archive_labels),
        )
        return found

    def admit(self, call: Call) -> Response | None:
        self._left = None
        if call.path.startswith("/oauth/"):
            return None
        scheme, _, token = call.headers.get("authorization", "").partition(" ")
        expires = self._expires.get(token, ...)
        if scheme != "Bearer" or expires is ... or (isinstance(expires, datetime) and expires <= self.now()):
            return _error(401, "INVALID_AUTHENTICATION", "Authentication credentials not found or expired.")
        scope = _scope(call)
        if scope in self.missing_scopes:
            context = [{"message": "scopes missing", "context": {"requiredGranularScopes": [scope]}}]
            return _error(403, "MISSING_SCOPES", "This app lacks scopes.", errors=context)
        if self.is_daily_spent:
            return _too_many("DAILY", "daily")
        if not self.quota:
            return None
        bucket = _bucket(call)
        is_in, remaining, _ = self._limits[bucket].admit(self.now())
        if bucket == "default":
            self._left = (self._limits[bucket].calls, remaining)
        if is_in:
            return None
        return (
            _too_many("SECONDLY", "secondly")
            if bucket == "search"
            else _too_many("TEN_SECONDLY_ROLLING", "ten_secondly_rolling")
        )

    def finish(self, call: Call, response: Response) -> Response:
        response.headers["x-hubspot-correlation-id"] = f"00000000-0000-4000-8000-{len(self.log):012d}"
        if self._left is not None:
            response.headers["x-hubspot-ratelimit-interval-milliseconds"] = "10000"
            response.headers["x-hubspot-ratelimit-max"] = str(self._left[0])
            response.headers["x-hubspot-ratelimit-remaining"] = str(self._left[1])
        return response

    def not_found(self, call: Call) -> Response:
        return reply(404, "<html><body>404</body></html>")

    # --- account, schema ------------------------------------------------------------------

    def _details(self, call: Call, **_: str) -> Response:
        _only(call, ())
        return reply(
            200,
            {
                "portalId": self.portal_id,
                "accountType": "STANDARD",
                "timeZone": self.time_zone,
                "companyCurrency": self.currency,
                "additionalCurrencies": [],
                "uiDomain": "app.hubspot.com",
                "dataHostingLocation": "eu1",
            },
        )

    def _token(self, call: Call, **_: str) -> Response:
        if "form" not in call.headers.get("content-type", "") or not isinstance(call.body, dict):
            raise Answer(400, {"status": "BAD_REQUEST", "message": "missing form body"})
        wanted = {"grant_type": "refresh_token", **{k: v for k, v in self.auth.items() if k != "access_token"}}
        if call.body != wanted:
            raise Answer(400, {"status": "BAD_REFRESH_TOKEN", "message": "missing or invalid refresh token"})
        self._issued += 1
        token = f"access-{self._issued}-" + "x" * 500
        self._expires[token] = self.now() + timedelta(seconds=1800)
        body = {
            "access_token": token,
            "expires_in": 1800,
            "refresh_token": self.auth["refresh_token"],
            "token_type": "bearer",
        }
        return reply(200, body)

    def _owners(self, call: Call, **_: str) -> Response:
        _only(call, ("limit", "after", "email", "archived"))
        owner = {
            "id": "71",
            "email": "owner@example.com",
            "userId": 9,
            "firstName": "O",
            "lastName": "W",
            "archived": False,
        }
        return reply(200, {"results": [owner]})

    def _pipelines(self, call: Call, **_: str) -> Response:
        _only(call, ())
        return reply(200, {"results": self.pipelines})

    def _properties(self, call: Call, type: str) -> Response:
        _only(call, ("archived", "dataSensitivity"))
        return reply(200, {"results": list(self._known(type).values())})

    def _new_group(self, call: Call, type: str) -> Response:
        body = _body(call, {"name", "label", "displayOrder"}, {"name", "label"})
        self._known(type)
        if body["name"] in self._groups[type]:
            raise Answer(409, _error_body("CONFLICT", "property group exists already"))
        self._groups[type].add(body["name"])
        return reply(201, {**body, "archived": False})

    def _new_property(self, call: Call, type: str) -> Response:
        known = self._known(type)
        needed = {"groupName", "name", "label", "type", "fieldType"}
        body = _body(
            call, needed | {"hasUniqueValue", "formField", "description", "options", "displayOrder", "hidden"}, needed
        )
        if body["name"] in known:
            raise Answer(409, _error_body("OBJECT_ALREADY_EXISTS", "property exists already"))
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", body["name"]) or body["groupName"] not in self._groups[type]:
            raise Answer(400, _error_body("VALIDATION_ERROR", "unfit name or group"))
        shapes = {
            "string": ("text", "textarea", "phonenumber", "file", "html"), "number": ("number",), "date": ("date",),
            "datetime": ("date",), "bool": ("booleancheckbox",), "enumeration": ("select", "radio", "checkbox"),
            "phone_number": ("phonenumber",),
        }  # fmt: skip
        if body["fieldType"] not in shapes.get(body["type"], ()):
            raise Answer(400, _error_body("VALIDATION_ERROR", "fieldType does not fit type"))
        if body.get("hasUniqueValue") and sum(bool(each["hasUniqueValue"]) for each in known.values()) >= 10:
            raise Answer(400, _error_body("VALIDATION_ERROR", "too many unique properties"))
        known[body["name"]] = _complete(body)
        return reply(201, known[body["name"]])

    def _list_labels(self, call: Call, one: str, other: str) -> Response:
        _only(call, ())
        pair = self._pair(one, other)
        rows: list[dict[str, Any]] = [{"category": "HUBSPOT_DEFINED", "typeId": _PLAIN[pair], "label": None}]
        if pair in _PRIMARY:
            rows.append({"category": "HUBSPOT_DEFINED", "typeId": _PRIMARY[pair], "label": "Primary"})
        rows += [{"category": "USER_DEFINED", "typeId": id_, "label": text} for id_, text in self._labels[pair].items()]
        return reply(200, {"results": rows})

    def _new_label(self, call: Call, one: str, other: str) -> Response:
        pair = self._pair(one, other)
        body = _body(call, {"name", "label", "inverseLabel"}, {"name", "label"})
        if not self.has_labels:
            raise Answer(403, _error_body("FORBIDDEN", "association labels are not in this portal's edition"))
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", body["name"]) or body["label"] in self._labels[pair].values():
            raise Answer(400, _error_body("VALIDATION_ERROR", "unfit or taken label"))
        if len(self._labels[pair]) >= 10:
            raise Answer(400, _error_body("VALIDATION_ERROR", "at most 10 labels"))
        id_ = self.define_label(one, other, body["label"])
        return reply(200, {"results": [{"category": "USER_DEFINED", "typeId": id_, "label": body["label"]}]})

    # --- reading records --------------------------------------------------------------------

    def _list(self, call: Call, type: str) -> Response:
        query = _only(call, ("limit", "after", "properties", "propertiesWithHistory", "associations", "archived"))
        if sum(len(key) + len(value) for key, value in call.query) > 8000:
            raise Answer(414, "<html><body>414 URI Too Long</body></html>")
        limit = _limit(query.get("limit", "10"), 50 if query.get("propertiesWithHistory") else 100)
        names = self._asked(type, query.get("properties", "").split(","))
        is_archived = query.get("archived", "false") == "true"
        after = int(query["after"]) if query.get("after", "").isdigit() else 0
        rows = [each for id_, each in sorted(self._things[type].items()) if id_ > after]
        rows = [each for each in rows if (each.archived_at is not None) == is_archived]
        body: dict[str, Any] = {"results": [self._row(type, each, names) for each in rows[:limit]]}
        if len(rows) > limit:
            body["paging"] = {"next": {"after": str(rows[limit - 1].id), "link": "https://api.hubapi.com/next"}}
        return reply(200, body)

    def _get(self, call: Call, type: str, id: str) -> Response:
        query = _only(call, ("properties", "propertiesWithHistory", "associations", "archived", "idProperty"))
        names = self._asked(type, query.get("properties", "").split(","))
        thing = self._lookup(type, id, query.get("idProperty"))
        if thing is None or (thing.archived_at is not None) != (query.get("archived") == "true"):
            raise Answer(404, _error_body("OBJECT_NOT_FOUND", "Object not found."))
        return reply(200, self._row(type, thing, names))

    def _batch_read(self, call: Call, type: str) -> Response:
        is_archived = _only(call, ("archived",)).get("archived") == "true"
        body = _body(call, {"inputs", "properties", "propertiesWithHistory", "idProperty"}, {"inputs"})
        cap = 50 if body.get("propertiesWithHistory") else 100
        inputs = _inputs(body, cap, {"id"}, {"id"})
        names = self._asked(type, body.get("properties") or [])
        id_property = body.get("idProperty")
        if id_property is not None:
            self._need_unique(type, id_property)
        found: dict[int, _Thing] = {}
        missing: list[str] = []
        for each in inputs:
            thing = self._lookup(type, each["id"], id_property)
            if thing is None or (thing.archived_at is not None) != is_archived:
                missing.append(each["id"])
            else:
                found[thing.id] = thing
        # No order is promised, so there is none to rely on.
        rows = [self._row(type, each, names) for each in sorted(found.values(), key=lambda t: -t.id)]
        errors = [_Trouble(404, "OBJECT_NOT_FOUND", "Could not get some objects.", ids=missing)] if missing else []
        return _batch(200, rows, errors)

    def _search(self, call: Call, type: str) -> Response:
        if int(call.headers.get("content-length", "0")) > 3000:
            raise Answer(400, _error_body("VALIDATION_ERROR", "search body beyond 3000 characters"))
        self._known(type)
        body = _body(call, {"filterGroups", "sorts", "properties", "limit", "after", "query"}, set())
        limit = _limit(str(body.get("limit", 10)), 200)
        after = int(body.get("after") or 0)
        if after + limit > 10_000:
            raise Answer(400, _error_body("VALIDATION_ERROR", "results beyond 10000"))
        names = self._asked(type, body.get("properties") or [])
        groups, sorts = body.get("filterGroups") or [], body.get("sorts") or []
        filters = [each for group in groups for each in group.get("filters", [])]
        if len(groups) > 5 or len(filters) > 18 or len(sorts) > 1 or any(len(g["filters"]) > 6 for g in groups):
            raise Answer(400, _error_body("VALIDATION_ERROR", "too many filters or sorts"))
        for each in filters:
            if each.get("operator") not in _OPERATORS or each.get("propertyName") not in self._defined[type]:
                raise Answer(400, _error_body("VALIDATION_ERROR", "unfit filter"))
        shown = [(id_, props) for id_ in self._things[type] if (props := self._indexed(type, id_)) is not None]
        if groups:
            shown = [
                (id_, props)
                for id_, props in shown
                if any(all(_holds(each, props) for each in group["filters"]) for group in groups)
            ]
        if sorts:
            key = sorts[0]["propertyName"]
            # Equal keys come in no order anybody promised.
            shown.sort(key=lambda one: (_comparable(one[1].get(key, "")), -one[0]))
            if sorts[0].get("direction") == "DESCENDING":
                shown.reverse()
        page = shown[after : after + limit]
        answer: dict[str, Any] = {
            "total": len(shown),
            "results": [self._row(type, self._things[type][id_], names, props) for id_, props in page],
        }
        if after + limit < len(shown):
            answer["paging"] = {"next": {"after": str(after + limit)}}
        return reply(200, answer)

    # --- writing records --------------------------------------------------------------------

    def _batch_create(self, call: Call, type: str) -> Response:
        body = _body(call, {"inputs"}, {"inputs"})
        inputs = _inputs(body, 100, {"properties", "associations", "objectWriteTraceId"}, {"properties"})
        return self._each(type, inputs, 201, lambda each: (None, each["properties"]))

    def _batch_update(self, call: Call, type: str) -> Response:
        body = _body(call, {"inputs"}, {"inputs"})
        allowed = {"id", "idProperty", "properties", "objectWriteTraceId"}
        inputs = _inputs(body, 100, allowed, {"id", "properties"})
        _need_distinct(inputs)

        def resolve(each: dict[str, Any]) -> tuple[_Thing | None, dict[str, Any]]:
            if each.get("idProperty") is not None:
                self._need_unique(type, each["idProperty"])
            # Ids of before a merge work in a single PATCH, but not here.
            is_old = each["id"].isdigit() and int(each["id"]) in self._aliases[type]
            thing = None if is_old else self._lookup(type, each["id"], each.get("idProperty"))
            if thing is None or thing.archived_at is not None:
                raise _Trouble(404, "OBJECT_NOT_FOUND", "Could not find an object.", ids=[each["id"]])
            return thing, each["properties"]

        return self._each(type, inputs, 200, resolve)

    def _batch_upsert(self, call: Call, type: str) -> Response:
        body = _body(call, {"inputs"}, {"inputs"})
        allowed = {"id", "idProperty", "properties", "objectWriteTraceId"}
        inputs = _inputs(body, 100, allowed, {"id", "properties"})
        _need_distinct(inputs)

        def resolve(each: dict[str, Any]) -> tuple[_Thing | None, dict[str, Any]]:
            name = each.get("idProperty")
            if name is None:
                thing = self._lookup(type, each["id"], None)
                if thing is None:
                    raise _Trouble(404, "OBJECT_NOT_FOUND", "Could not find an object.", ids=[each["id"]])
                return thing, each["properties"]
            self._need_unique(type, name)
            thing = self._lookup(type, each["id"], name)
            is_live = thing is not None and thing.archived_at is None
            return (thing if is_live else None), {**each["properties"], name: each["id"]}

        is_by_email = any(each.get("idProperty") == "email" for each in inputs)
        return self._each(type, inputs, 200, resolve, is_upsert=True, is_partial=not is_by_email)

    def _each(
        self, type_: str, inputs: list[dict[str, Any]], status: int, resolve: Any, *,
        is_upsert: bool = False, is_partial: bool = True,
    ) -> Response:  # fmt: skip
        """Write every input or refuse: a conflict refuses all, other errors all but with trace ids."""
        traces = [each.get("objectWriteTraceId") for each in inputs]
        is_partial = is_partial and None not in traces and len(set(traces)) == len(traces)
        ready: list[tuple[dict[str, Any], _Thing | None, dict[str, str]]] = []
        errors: list[_Trouble] = []
        taken: set[tuple[str, str]] = set()
        for each in inputs:
            try:
                thing, properties = resolve(each)
                fit = self._fit(type_, properties, thing, taken=taken)
                ready.append((each, thing, fit))
            except _Trouble as trouble:
                if trouble.status == 409 or not is_partial:
                    raise Answer(trouble.status, _error_body(trouble.category, trouble.message)) from None
                if self.names_errors:
                    trouble.context.setdefault("objectWriteTraceId", [each["objectWriteTraceId"]])
                else:
                    trouble.context = {key: held for key, held in trouble.context.items() if key == "inner"}
                errors.append(trouble)
        rows = []
        for each, thing, fit in ready:
            is_new = thing is None
            id_ = str(self._next_id if thing is None else thing.id)
            lost = {name: value for name, value in fit.items() if self.loses(type_, id_, name)}
            kept = {name: value for name, value in fit.items() if name not in lost}
            thing = self._create(type_, kept) if thing is None else self._change(type_, thing, kept)
            shown = [] if self.is_terse else [*_DEFAULTS[type_], *fit]
            row = self._row(type_, thing, shown, {**thing.properties, **lost})
            if self.is_terse:
                modified = thing.properties[_CURSOR[type_]]
                row["properties"] = {_CURSOR[type_]: modified} if self.terse_shows_modified else {}
                row["updatedAt"] = mapping.iso_z(thing.updated + timedelta(milliseconds=1))
            row |= {"new": is_new} if is_upsert else {}
            row |= {"objectWriteTraceId": each["objectWriteTraceId"]} if each.get("objectWriteTraceId") else {}
            rows.append(row)
        return _batch(status, rows[::-1], errors)

    def _batch_archive(self, call: Call, type: str) -> Response:
        body = _body(call, {"inputs"}, {"inputs"})
        for each in _inputs(body, 100, {"id"}, {"id"}):
            thing = self._lookup(type, each["id"], None)
            if thing is not None and thing.archived_at is None:
                self._archive(type, thing)
        return reply(204)

    def _patch(self, call: Call, type: str, id: str) -> Response:
        query = _only(call, ("idProperty",))
        body = _body(call, {"properties", "objectWriteTraceId"}, {"properties"})
        thing = self._lookup(type, id, query.get("idProperty"))
        if thing is None or thing.archived_at is not None:
            raise Answer(404, _error_body("OBJECT_NOT_FOUND", "Object not found."))
        try:
            fit = self._fit(type, body["properties"], thing)
        except _Trouble as trouble:
            raise Answer(trouble.status, _error_body(trouble.category, trouble.message)) from None
        return reply(200, self._row(type, self._change(type, thing, fit), list(fit)))

    def _delete(self, call: Call, type: str, id: str) -> Response:
        thing = self._lookup(type, id, None)
        if thing is None:
            raise Answer(404, _error_body("OBJECT_NOT_FOUND", "Object not found."))
        if thing.archived_at is None:
            self._archive(type, thing)
        return reply(204)

    def _merge_call(self, call: Call, type: str) -> Response:
        needed = {"primaryObjectId", "objectIdToMerge"}
        body = _body(call, needed, needed)
        one, two = (self._lookup(type, str(body[key]), None) for key in ("primaryObjectId", "objectIdToMerge"))
        if one is None or two is None or one is two:
            raise Answer(404, _error_body("OBJECT_NOT_FOUND", "Object not found."))
        return reply(200, self._row(type, self._merge(type, one, two), []))

    def _gdpr_delete(self, call: Call, type: str) -> Response:
        body = _body(call, {"objectId", "idProperty"}, {"objectId"})
        thing = self._lookup(type, str(body["objectId"]), body.get("idProperty")) if type == "contacts" else None
        if thing is not None:
            self._archive(type, thing)
            del self._things[type][thing.id]
            self._tell(type, thing, "privacyDeletion")
        return reply(204)

    # --- associations -----------------------------------------------------------------------

    def _read_bonds(self, call: Call, one: str, other: str) -> Response:
        pair = self._pair(one, other)
        inputs = _inputs(_body(call, {"inputs"}, {"inputs"}), 1000, {"id", "after"}, {"id"})
        rows: list[dict[str, Any]] = []
        errors: list[_Trouble] = []
        for each in inputs:
            id_ = int(each["id"]) if each["id"].isdigit() else -1
            to = sorted(self._bonds[pair].get(id_, {}).items())
            if not to:
                trouble = _Trouble(404, "OBJECT_NOT_FOUND", "No associations.", fromObjectId=[each["id"]])
                trouble.context["__sub"] = "crm.associations.NO_ASSOCIATIONS_FOUND"
                errors.append(trouble)
                continue
            start = int(each.get("after") or 0)
            page = to[start : start + self.association_page]
            targets = [
                {
                    "toObjectId": other_id,
                    "associationTypes": [
                        {"category": category, "typeId": type_id, "label": self._labels[pair].get(type_id)}
                        for category, type_id in sorted(types)
                    ],
                }
                for other_id, types in page
            ]
            row: dict[str, Any] = {"from": {"id": each["id"]}, "to": targets}
            if start + self.association_page < len(to):
                row["paging"] = {"next": {"after": str(start + self.association_page), "link": "?after"}}
            rows.append(row)
        return _batch(200, rows, errors)

    def _create_bonds(self, call: Call, one: str, other: str) -> Response:
        pair = self._pair(one, other)
        needed = {"from", "to", "types"}
        inputs = _inputs(_body(call, {"inputs"}, {"inputs"}), 2000, needed, needed)
        asked = [(each, self._fit_types(pair, each["types"])) for each in inputs]
        rows: list[dict[str, Any]] = []
        errors: list[_Trouble] = []
        for each, types in asked:
            from_id, to_id = str(each["from"]["id"]), str(each["to"]["id"])
            things = self._lookup(one, from_id, None), self._lookup(other, to_id, None)
            if any(thing is None or thing.archived_at is not None for thing in things):
                errors.append(
                    _Trouble(404, "OBJECT_NOT_FOUND", "No such object.", fromObjectId=[from_id], toObjectId=[to_id])
                )
                continue
            if self.associating_replaces:
                held = self._bonds[pair].get(int(from_id), {}).get(int(to_id), set())
                self._unbind(one, int(from_id), other, int(to_id), held - types - {("HUBSPOT_DEFINED", _PLAIN[pair])})
            self._bind(one, int(from_id), other, int(to_id), types)
            labels = [self._labels[pair][id_] for _, id_ in types if id_ in self._labels[pair]]
            rows.append(
                {
                    "fromObjectTypeId": _TYPES[one], "fromObjectId": int(from_id),
                    "toObjectTypeId": _TYPES[other], "toObjectId": int(to_id), "labels": labels,
                }
            )  # fmt: skip
        return _batch(201, rows, errors)

    def _archive_bonds(self, call: Call, one: str, other: str) -> Response:
        self._pair(one, other)
        for each in _inputs(_body(call, {"inputs"}, {"inputs"}), 2000, {"from", "to"}, {"from", "to"}):
            for target in each["to"]:
                self._unbind(one, int(each["from"]["id"]), other, int(target["id"]), None)
        return reply(204)

    def _archive_labels(self, call: Call, one: str, other: str) -> Response:
        pair = self._pair(one, other)
        needed = {"from", "to", "types"}
        inputs = _inputs(_body(call, {"inputs"}, {"inputs"}), 2000, needed, needed)
        for each, types in [(each, self._fit_types(pair, each["types"])) for each in inputs]:
            self._unbind(one, int(each["from"]["id"]), other, int(each["to"]["id"]), types)
        return reply(204)

    def _fit_types(self, pair: tuple[str, str], raw: Any) -> set[_Type]:
        known = {("USER_DEFINED", id_) for id_ in self._labels[pair]}
        native = {
            id_
            for (a, b), ids in _MIRRORS.items()
            for id_ in (ids if (a, b) == pair else ids.values())
            if {a, b} == set(pair)
        }
        known |= {("HUBSPOT_DEFINED", id_) for id_ in native}
        types = {(each.get("associationCategory"), each.get("associationTypeId")) for each in raw}
        if (
            not types
            or not types <= known
            or any(set(each) != {"associationCategory", "associationTypeId"} for each in raw)
        ):
            raise Answer(400, _error_body("VALIDATION_ERROR", "unknown association type for this pair"))
        return types

    def _bind(self, one: str, one_id: int, other: str, other_id: int, types: set[_Type]) -> None:
        pair = (one, other)
        if ("HUBSPOT_DEFINED", 1) in types or ("HUBSPOT_DEFINED", 5) in types:
            for rival in self._bonds[pair].get(one_id, {}):
                if rival != other_id:
                    self._unbind(one, one_id, other, rival, {("HUBSPOT_DEFINED", 1), ("HUBSPOT_DEFINED", 5)})
        types = types | {("HUBSPOT_DEFINED", _PLAIN[pair])}
        self._bonds[pair].setdefault(one_id, {}).setdefault(other_id, set()).update(types)
        mirrored = {(category, self._twins[id_]) for category, id_ in types}
        self._bonds[other, one].setdefault(other_id, {}).setdefault(one_id, set()).update(mirrored)
        if self.webhooks is not None:
            self.webhooks.associated(one, one_id, other, other_id, is_removed=False)

    def _unbind(self, one: str, one_id: int, other: str, other_id: int, types: set[_Type] | None) -> None:
        here, there = self._bonds[one, other].get(one_id, {}), self._bonds[other, one].get(other_id, {})
        if self.webhooks is not None and other_id in here:
            self.webhooks.associated(one, one_id, other, other_id, is_removed=types is None)
        if types is None or ("HUBSPOT_DEFINED", _PLAIN[one, other]) in types:
            here.pop(other_id, None)
            there.pop(one_id, None)
        elif other_id in here:
            here[other_id] -= types
            there[one_id] -= {(category, self._twins[id_]) for category, id_ in types}

    # --- state --------------------------------------------------------------------------------

    def _ms(self) -> datetime:
        at = self.now()
        return at.replace(microsecond=at.microsecond // 1000 * 1000)

    def _known(self, type_: str) -> dict[str, dict[str, Any]]:
        if type_ not in self._defined:
            raise Answer(400, _error_body("VALIDATION_ERROR", "unknown object type"))
        return self._defined[type_]

    def _pair(self, one: str, other: str) -> tuple[str, str]:
        if (one, other) not in _PLAIN:
            raise Answer(400, _error_body("VALIDATION_ERROR", "unknown pair of object types"))
        return one, other

    def _thing(self, type_: str, id_: str) -> _Thing:
        thing = self._lookup(type_, id_, None)
        if thing is None or thing.archived_at is not None:
            raise KeyError(f"no live record {id_} among {type_}")
        return thing

    def _lookup(self, type_: str, id_: str, id_property: str | None) -> _Thing | None:
        self._known(type_)
        if id_property is None:
            if not id_.isdigit():
                return None
            number = int(id_)
            while number in self._aliases[type_]:
                number = self._aliases[type_][number]
            return self._things[type_].get(number)
        return self._holder(type_, id_property, id_)

    def _holder(self, type_: str, name: str, value: str) -> _Thing | None:
        """Who holds a unique value; a live one before an archived one."""
        wanted = value.lower()
        candidates = (self._things[type_].get(id_) for id_ in sorted(self._held.get((type_, name, wanted), ())))
        found = [
            each
            for each in candidates
            if each is not None
            and (
                wanted == each.properties.get(name, "").lower()
                or (name == "email" and wanted in each.properties.get("hs_additional_emails", "").lower().split(";"))
            )
        ]
        return min(found, key=lambda each: each.archived_at is not None) if found and wanted else None

    def _need_unique(self, type_: str, name: str) -> None:
        is_unique = self._known(type_).get(name, {}).get("hasUniqueValue")
        if not is_unique and not (type_ == "contacts" and name == "email"):
            raise Answer(400, _error_body("VALIDATION_ERROR", f"{name} is not a unique property"))

    def _asked(self, type_: str, names: Sequence[str]) -> list[str]:
        found = [each for each in names if each and (type_, each) not in self._gone]
        unknown = [each for each in found if each not in self._known(type_)]
        if unknown:
            raise Answer(400, _error_body("VALIDATION_ERROR", f"unknown properties {unknown}"))
        return found or list(_DEFAULTS[type_])

    def _indexed(self, type_: str, id_: int) -> dict[str, str] | None:
        """What the search index shows of a record now."""
        lag = self.index_lag_seconds + self.slow_rows.get((type_, str(id_)), 0.0)
        horizon = self.now() - timedelta(seconds=lag)
        past = self._things[type_][id_].past
        while len(past) > 1 and past[1][0] <= horizon and lag == self.index_lag_seconds:
            past.pop(0)
        shown = None
        for at, properties in past:
            if at <= horizon:
                shown = properties
        return shown

    def _row(
        self, type_: str, thing: _Thing, names: Sequence[str], held: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        properties = thing.properties if held is None else held
        asked = [*names, "hs_object_id", "createdate", _CURSOR[type_]]
        row: dict[str, Any] = {
            "id": str(thing.id),
            "properties": {each: properties.get(each) or None for each in asked},
            "createdAt": mapping.iso_z(thing.created),
            "updatedAt": properties[_CURSOR[type_]],
            "archived": thing.archived_at is not None,
            "url": f"https://app.hubspot.com/contacts/{self.portal_id}/record/{_TYPES[type_]}/{thing.id}",
        }
        if thing.archived_at is not None:
            row["archivedAt"] = mapping.iso_z(thing.archived_at)
        return row

    def _create(self, type_: str, properties: Mapping[str, str]) -> _Thing:
        id_, at = self._next_id, self._ms()
        self._next_id += 7
        given = {"hs_object_id": str(id_), "createdate": mapping.iso_z(at)}
        if type_ == "deals":
            given |= {"pipeline": "default"}
        thing = _Thing(id_, given, at, at)
        self._things[type_][id_] = thing
        self._tell(type_, thing, "creation", is_person=properties.get("hs_updated_by_user_id") == PERSON)
        return self._change(type_, thing, properties)

    def _change(self, type_: str, thing: _Thing, properties: Mapping[str, str]) -> _Thing:
        """Store and stamp: the modified time moves even where no value does."""
        if self.webhooks is not None:
            is_person = properties.get("hs_updated_by_user_id") == PERSON
            moved = {name: value for name, value in properties.items() if value != thing.properties.get(name, "")}
            self.webhooks.changed(type_, thing.id, moved, is_person=is_person)
        thing.properties.update({"hs_updated_by_user_id": "", **properties})
        for name, value in properties.items():
            alias = "email" if name == "hs_additional_emails" else name
            if alias == "email" or self._defined[type_].get(name, {}).get("hasUniqueValue"):
                for part in value.lower().split(";") if alias != name else [value.lower()]:
                    self._held.setdefault((type_, alias, part), set()).add(thing.id)
        thing.updated = self._ms()
        thing.properties[_CURSOR[type_]] = mapping.iso_z(thing.updated)
        thing.past.append((thing.updated, dict(thing.properties)))
        return thing

    def _archive(self, type_: str, thing: _Thing) -> None:
        thing.archived_at = self._ms()
        thing.past.append((thing.archived_at, None))
        self._tell(type_, thing, "deletion")
        for (one, other), bonds in self._bonds.items():
            if one == type_:
                for other_id in list(bonds.get(thing.id, {})):
                    self._unbind(one, thing.id, other, other_id, None)

    def _merge(self, type_: str, primary: _Thing, other: _Thing) -> _Thing:
        properties = {**other.properties, **{key: value for key, value in primary.properties.items() if value}}
        emails = [other.properties.get("email", ""), *other.properties.get("hs_additional_emails", "").split(";")]
        emails = [each for each in emails if each and each != properties.get("email")]
        old = {str(each.id) for each in (primary, other)}
        for each in (primary, other):
            old |= {part for part in each.properties.get("hs_merged_object_ids", "").split(";") if part}
        if type_ == "companies":
            survivor, old = primary, old - {str(primary.id)}
        else:
            id_ = self._next_id
            self._next_id += 7
            survivor = _Thing(id_, {}, primary.created, self._ms())
            self._things[type_][id_] = survivor
        properties |= {"hs_object_id": str(survivor.id), "hs_merged_object_ids": ";".join(sorted(old))}
        if type_ == "contacts" and emails:
            already = properties.get("hs_additional_emails", "").split(";")
            properties["hs_additional_emails"] = ";".join(sorted({*already, *emails} - {""}))
        for gone in (primary, other):
            if gone is survivor:
                continue
            for one, two in _PLAIN:
                if one == type_:
                    for end, types in list(self._bonds[one, two].get(gone.id, {}).items()):
                        self._unbind(one, gone.id, two, end, None)
                        self._bind(one, survivor.id, two, end, set(types))
            del self._things[type_][gone.id]
            self._aliases[type_][gone.id] = survivor.id
        told: dict[str, Any] = {
            "primaryObjectId": primary.id,
            "mergedObjectIds": [other.id],
            "newObjectId": survivor.id,
        }
        self._tell(type_, survivor, "merge", numberOfPropertiesMoved=len(properties), **told)
        return self._change(type_, survivor, properties)

    def _tell(self, type_: str, thing: _Thing, what: str, *, is_person: bool = True, **more: Any) -> None:
        if self.webhooks is not None:
            self.webhooks.told(type_, thing.id, what, is_person=is_person, **more)

    # --- values ---------------------------------------------------------------------------------

    def _fit(
        self,
        type_: str,
        raw: Mapping[str, Any],
        thing: _Thing | None = None,
        *,
        taken: set[tuple[str, str]] | None = None,
        is_person: bool = False,
    ) -> dict[str, str]:
        """The values as HubSpot stores them. Raises _Trouble for what it refuses; null is ignored."""
        known = self._known(type_)
        found: dict[str, str] = {}
        for name, value in raw.items():
            if value is None:
                continue
            definition = known.get(name)
            if definition is None:
                raise _invalid(name, "PROPERTY_DOESNT_EXIST", self.portal_id)
            if definition["modificationMetadata"]["readOnlyValue"] and not (
                is_person and name == "hs_additional_emails"
            ):
                raise _invalid(name, "READ_ONLY_VALUE", self.portal_id)
            if not isinstance(value, str):
                raise _invalid(name, "INVALID_TYPE", self.portal_id)
            held = thing.properties.get(name, "") if thing is not None else ""
            found[name] = self._stored(type_, definition, value, held)
        if type_ == "deals":
            self._fit_stage(found, thing)
            if thing is None and not found.get("dealname"):
                raise _invalid("dealname", "REQUIRED_FIELD", self.portal_id)
        needed = {"contacts": ("email", "firstname", "lastname"), "companies": ("name", "domain")}.get(type_)
        if thing is None and needed and not any(found.get(each) for each in needed):
            raise _invalid(needed[0], "REQUIRED_FIELD", self.portal_id)
        self._fit_unique(type_, found, thing, taken if taken is not None else set())
        return found

    def _stored(self, type_: str, definition: dict[str, Any], value: str, held: str) -> str:
        name, kind = definition["name"], definition["type"]
        if value == "":
            return ""
        if len(value) > 65_536:
            raise _invalid(name, "PROPERTY_VALUE_TOO_LONG", self.portal_id)
        if kind == "number":
            return _number(name, value, self.portal_id)
        if kind in ("datetime", "date"):
            try:
                at = mapping.instant(value, name)
            except ValueError:
                raise _invalid(name, "INVALID_DATE", self.portal_id) from None
            return mapping.iso_z(at) if at and kind == "datetime" else str(at.date() if at else "")
        if kind == "enumeration":
            return _option(definition, value, held, self.portal_id)
        if name == "email":
            if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", value):
                raise _invalid(name, "INVALID_EMAIL", self.portal_id)
            return value.lower()
        if name in ("phone", "mobilephone"):
            digits = re.sub(r"[^\d+]", "", value)
            return " ".join(filter(None, (digits[:3], digits[3:5], digits[5:8], digits[8:])))
        return value

    def _fit_stage(self, found: dict[str, str], thing: _Thing | None) -> None:
        if "dealstage" not in found and "pipeline" not in found:
            if thing is None:
                raise _invalid("dealstage", "REQUIRED_FIELD", self.portal_id)
            return
        held = thing.properties if thing is not None else {"pipeline": "default"}
        pipeline, stage = (found.get(each, held.get(each, "")) for each in ("pipeline", "dealstage"))
        stages = {each["id"]: {stage["id"] for stage in each["stages"]} for each in self.pipelines}
        if pipeline not in stages:
            raise _invalid("pipeline", "INVALID_OPTION", self.portal_id)
        if stage not in stages[pipeline]:
            raise _invalid("dealstage", "INVALID_OPTION", self.portal_id)

    def _fit_unique(self, type_: str, found: dict[str, str], thing: _Thing | None, taken: set[tuple[str, str]]) -> None:
        for name, value in found.items():
            is_email = type_ == "contacts" and name == "email"
            if not value or not (is_email or self._defined[type_][name].get("hasUniqueValue")):
                continue
            holder = self._holder(type_, name, value)
            is_binned = holder is not None and holder.archived_at is not None
            is_other = holder is not None and holder is not thing and (self.bin_holds_values or not is_binned)
            if is_other and holder is not None:
                if is_email:
                    raise _Trouble(409, "CONFLICT", f"Contact already exists. Existing ID: {holder.id}")
                raise _Trouble(
                    400, "VALIDATION_ERROR", f"{holder.id} already has that value",
                    inner="CONFLICTING_UNIQUE_VALUE", propertyName=[name],
                )  # fmt: skip
            if (name, value.lower()) in taken:
                raise _Trouble(409, "CONFLICT", "the batch holds that value twice")
            taken.add((name, value.lower()))


# --- wire forms -----------------------------------------------------------------------------------


def _pipeline(id_: str, label: str, stages: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """A pipeline as the API shows it; also for tests that add one."""
    rows = [
        {
            "id": stage, "label": name, "displayOrder": order, "archived": False,
            "metadata": {"probability": chance, "isClosed": "true" if chance in ("1.0", "0.0") else "false"},
        }
        for order, (stage, name, chance) in enumerate(stages)
    ]  # fmt: skip
    return {"id": id_, "label": label, "displayOrder": 0, "archived": False, "stages": rows}


def _definition(name: str, type_: str, shape: str, *, read_only: bool = False, **more: Any) -> dict[str, Any]:
    return _complete(
        {"name": name, "label": name, "type": type_, "fieldType": shape, "groupName": "information", **more}, read_only
    )


def _complete(body: Mapping[str, Any], read_only: bool = False) -> dict[str, Any]:
    return {
        "hasUniqueValue": False,
        "options": [],
        "calculated": False,
        "hubspotDefined": False,
        **body,
        "modificationMetadata": {"archivable": True, "readOnlyDefinition": False, "readOnlyValue": read_only},
    }


def _standard(type_: str) -> dict[str, dict[str, Any]]:
    found = {each: _definition(each, "string", "text", hubspotDefined=True) for each in _STANDARD[type_].split()}
    for each in _READ_ONLY[type_].split():
        kind = "datetime" if each.endswith("date") else "string"
        found[each] = _definition(each, kind, "text", read_only=True, hubspotDefined=True)
    if type_ == "contacts":
        # There, but never filled: a delta by it finds nothing and no error.
        found["hs_lastmodifieddate"] = _definition("hs_lastmodifieddate", "datetime", "date", read_only=True)
    if type_ == "deals":
        found["amount"] = _definition("amount", "number", "number")
        found["closedate"] = _definition("closedate", "datetime", "date")
    return found


def _error_body(category: str, message: str, **more: Any) -> dict[str, Any]:
    return {"status": "error", "message": message, "correlationId": "c-1", "category": category, **more}


def _error(status: int, category: str, message: str, **more: Any) -> Response:
    return reply(status, _error_body(category, message, **more))


def _invalid(name: str, code: str, portal_id: int) -> _Trouble:
    """A validation error in the older form, a JSON array packed into the message."""
    inner = [{"isValid": False, "message": f"{name} was not valid", "error": code, "name": name, "portalId": portal_id}]
    return _Trouble(400, "VALIDATION_ERROR", f"Property values were not valid: {json.dumps(inner)}")


def _too_many(policy: str, word: str) -> Response:
    body = {
        "status": "error", "message": f"You have reached your {word} limit.", "errorType": "RATE_LIMIT",
        "correlationId": "c-1", "policyName": policy, "groupName": "publicapi:emulated", "requestId": "r-1",
    }  # fmt: skip
    return reply(429, body)


def _batch(status: int, rows: list[dict[str, Any]], errors: Sequence[_Trouble]) -> Response:
    body: dict[str, Any] = {"status": "COMPLETE", "results": rows}
    body |= {"startedAt": "2026-11-20T08:00:00.000Z", "completedAt": "2026-11-20T08:00:00.000Z"}
    if not errors:
        return reply(status, body)
    shown = []
    for each in errors:
        context = dict(each.context)
        sub, inner = context.pop("__sub", None), context.pop("inner", None)
        row = _error_body(each.category, each.message, context=context, links={})
        row["subCategory"] = sub
        row["errors"] = [{"message": "refused", "code": inner}] if inner else []
        shown.append(row)
    return reply(207, {**body, "numErrors": len(shown), "errors": shown})


def _only(call: Call, known: Sequence[str]) -> dict[str, str]:
    unknown = [key for key, _ in call.query if key not in known]
    if unknown:
        raise Answer(400, _error_body("VALIDATION_ERROR", f"unknown parameters {unknown}"))
    return dict(call.query)


def _body(call: Call, allowed: set[str], needed: set[str]) -> dict[str, Any]:
    if call.method != "GET" and call.path.endswith(("/search", "/create", "/update", "/upsert", "/archive")):
        _only(call, ())
    if not isinstance(call.body, dict) or set(call.body) - allowed or needed - set(call.body):
        raise Answer(400, _error_body("VALIDATION_ERROR", "unfit body"))
    return call.body


def _inputs(body: dict[str, Any], cap: int, allowed: set[str], needed: set[str]) -> list[dict[str, Any]]:
    inputs = body["inputs"]
    if not isinstance(inputs, list) or not 0 < len(inputs) <= cap:
        raise Answer(400, _error_body("VALIDATION_ERROR", f"inputs must be 1 to {cap}"))
    for each in inputs:
        is_fit = isinstance(each, dict) and not set(each) - allowed and not needed - set(each)
        if not is_fit or not isinstance(each.get("id", ""), str):
            raise Answer(400, _error_body("VALIDATION_ERROR", "unfit input"))
    return inputs


def _need_distinct(inputs: Sequence[dict[str, Any]]) -> None:
    ids = [each["id"] for each in inputs]
    if len(set(ids)) != len(ids):
        raise Answer(400, _error_body("VALIDATION_ERROR", "Duplicate IDs found in batch input"))


def _limit(raw: str, cap: int) -> int:
    if not raw.isdigit() or not 0 < int(raw) <= cap:
        raise Answer(400, _error_body("VALIDATION_ERROR", f"limit must be 1 to {cap}"))
    return int(raw)


def _number(name: str, value: str, portal_id: int) -> str:
    try:
        return format(mapping.canonical_decimal(Decimal(value)), "f")
    except InvalidOperation:
        raise _invalid(name, "INVALID_LONG", portal_id) from None


def _option(definition: dict[str, Any], value: str, held: str, portal_id: int) -> str:
    known = {each["value"] for each in definition["options"]}
    parts = [each for each in value.split(";") if each]
    if not set(parts) <= known or (len(parts) > 1 and definition["fieldType"] != "checkbox"):
        raise _invalid(definition["name"], "INVALID_OPTION", portal_id)
    # A leading separator adds to what is there.
    kept = [each for each in held.split(";") if each and each not in parts] if value.startswith(";") else []
    return ";".join([*kept, *parts])


def _comparable(raw: str) -> tuple[int, float, str]:
    """Numbers before times before words, each in its own order."""
    if re.fullmatch(r"-?\d+(\.\d+)?", raw):
        return 0, float(raw), ""
    try:
        at = mapping.instant(raw, "value") if re.match(r"\d{4}-\d\d-\d\dT", raw) else None
    except ValueError:
        at = None
    return (0, at.timestamp() * 1000, "") if at is not None else (1, 0.0, raw.lower())


def _holds(filter_: dict[str, Any], held: Mapping[str, str]) -> bool:
    operator: str = filter_["operator"]
    raw = held.get(filter_["propertyName"]) or ""
    if operator in ("HAS_PROPERTY", "NOT_HAS_PROPERTY"):
        return bool(raw) == (operator == "HAS_PROPERTY")
    if operator in ("IN", "NOT_IN"):
        return bool(raw) and (raw.lower() in list(filter_["values"])) == (operator == "IN")
    if not raw:
        return operator in ("NEQ", "NOT_CONTAINS_TOKEN")
    if operator in ("CONTAINS_TOKEN", "NOT_CONTAINS_TOKEN"):
        return (str(filter_["value"]).strip("*").lower() in raw.lower()) == (operator == "CONTAINS_TOKEN")
    one, other = _comparable(raw), _comparable(str(filter_["value"]))
    one, other = (one[0], round(one[1], 3), one[2]), (other[0], round(other[1], 3), other[2])
    if operator == "BETWEEN":
        return other <= one <= _comparable(str(filter_["highValue"]))
    verdicts: dict[str, bool] = {
        "EQ": one == other, "NEQ": one != other, "LT": one < other, "LTE": one <= other,
        "GT": one > other, "GTE": one >= other,
    }  # fmt: skip
    return verdicts[operator]


def _bucket(call: Call) -> str:
    if call.path.endswith("/search"):
        return "search"
    return "associations" if call.path.startswith("/crm/v4/associations/") else "default"


def _scope(call: Call) -> str:
    """The scope that a call needs."""
    found = re.match(r"/crm/v3/(objects|properties|pipelines)/(\w+)(/.*)?", call.path)
    if found is None:
        return ""
    is_read = call.method == "GET" or call.path.endswith(("/search", "/batch/read"))
    area = "objects" if found[1] == "objects" else "schemas"
    return f"crm.{area}.{found[2]}.{'read' if is_read else 'write'}"
