"""An org of Salesforce over HTTP, as strict as its contract: what is not documented is refused.

Holds accounts, contacts, opportunities and contact roles with stamps, recycle bin, merges, unique
external ids and sharing of nothing. Knows a small SOQL: a field list, comparisons joined by AND,
ORDER BY and LIMIT. A person's edits are played by ``add``, ``edit``, ``delete``, ``undelete`` and
``merge``; they may become visible late, as rows in flight do.
"""

from __future__ import annotations

import base64
import copy
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import jwt
from starlette.responses import Response

from connectors.salesforce.client import normal_id
from syncd.testing.emulator import Call, Emulator, Handler, Now, reply

Fields = Mapping[str, Any]

PREFIXES = {"Account": "001", "Contact": "003", "Opportunity": "006", "OpportunityContactRole": "00K"}
USER = normal_id("005000000000001", "Id")
SALESMAN = normal_id("005000000000002", "Id")
LONGEST_URI = 16_384

STAGES = (
    ("Prospecting", False, False),
    ("Qualification", False, False),
    ("Proposal/Price Quote", False, False),
    ("Negotiation/Review", False, False),
    ("Closed Won", True, True),
    ("Closed Lost", True, False),
)
ROLES = ("Contacted", "Interested", "Not Interested", "Bidder", "Decision Maker")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an object, as describe tells and as writes are held to."""

    type: str = "string"
    length: int = 255
    is_required: bool = False
    is_createable: bool = True
    is_updateable: bool = True
    is_unique: bool = False
    words: tuple[str, ...] = ()
    is_restricted: bool = False
    refers_to: str = ""


def _objects(custom_fields: bool, multi_currency: bool, restricted_roles: bool) -> dict[str, dict[str, Field]]:
    system = {
        "Id": Field("id", 18, is_createable=False, is_updateable=False),
        "IsDeleted": Field("boolean", 0, is_createable=False, is_updateable=False),
        "CreatedDate": Field("datetime", 0, is_createable=False, is_updateable=False),
        "LastModifiedDate": Field("datetime", 0, is_createable=False, is_updateable=False),
        "LastModifiedById": Field("reference", 18, is_createable=False, is_updateable=False),
        "SystemModstamp": Field("datetime", 0, is_createable=False, is_updateable=False),
    }
    if multi_currency:
        system["CurrencyIsoCode"] = Field("picklist", 3, words=("SEK", "EUR", "NOK"), is_restricted=True)
    master = {"MasterRecordId": Field("reference", 18, is_createable=False, is_updateable=False)}
    found = {
        "Account": {
            **system,
            **master,
            "Name": Field(is_required=True),
            "Website": Field("url"),
            "Phone": Field("phone", 40),
            "BillingCountry": Field(length=80),
        },
        "Contact": {
            **system,
            **master,
            "FirstName": Field(length=40),
            "LastName": Field(length=80, is_required=True),
            "Email": Field("email", 80),
            "Phone": Field("phone", 40),
            "MobilePhone": Field("phone", 40),
            "Title": Field(length=128),
            "AccountId": Field("reference", 18, refers_to="Account"),
        },
        "Opportunity": {
            **system,
            "Name": Field(length=120, is_required=True),
            "StageName": Field("picklist", is_required=True, words=tuple(name for name, _, _ in STAGES)),
            "CloseDate": Field("date", 0, is_required=True),
            "Amount": Field("currency", 0),
            "AccountId": Field("reference", 18, refers_to="Account"),
            "IsClosed": Field("boolean", 0, is_createable=False, is_updateable=False),
            "IsWon": Field("boolean", 0, is_createable=False, is_updateable=False),
            "HasOpportunityLineItem": Field("boolean", 0, is_createable=False, is_updateable=False),
        },
        "OpportunityContactRole": {
            **system,
            "OpportunityId": Field("reference", 18, is_required=True, is_updateable=False, refers_to="Opportunity"),
            "ContactId": Field("reference", 18, is_required=True, refers_to="Contact"),
            "Role": Field("picklist", 40, words=ROLES, is_restricted=restricted_roles),
            "IsPrimary": Field("boolean", 0),
        },
    }
    if custom_fields:
        mark = Field(length=64, is_unique=True)
        text = Field()
        long = Field("textarea", 32_768)
        found["Account"] |= {
            "Propstreet_Company_Id__c": mark,
            "Propstreet_Org_Number__c": text,
            "Propstreet_LinkedIn__c": text,
            "Propstreet_Strategy__c": long,
            "Propstreet_Tags__c": text,
        }
        found["Contact"] |= {
            "Propstreet_Contact_Id__c": mark,
            "Propstreet_LinkedIn__c": text,
            "Propstreet_Language__c": text,
            "Propstreet_Strategy__c": long,
            "Propstreet_Tags__c": text,
        }
        names = "Status Classification Exclusivity Asset_Type Property_Name Property_Location Property_Country"
        names += " Property_Categories Property_Tenure"
        found["Opportunity"] |= {
            "Propstreet_Project_Id__c": mark,
            **{f"Propstreet_{name}__c": text for name in names.split()},
            **{f"Propstreet_{name}_At__c": Field("datetime", 0) for name in ("Published", "Verified", "Communicated")},
            **{
                f"Propstreet_{name}__c": Field("double", 0)
                for name in ("Property_Count", "Property_Year_Built", "Property_Area")
            },
        }
        found["OpportunityContactRole"] |= {
            "Propstreet_Prospect_Id__c": mark,
            "Propstreet_Prospect_Tags__c": text,
            "Propstreet_Accepted_At__c": Field("datetime", 0),
            "Propstreet_Deadline__c": Field("datetime", 0),
        }
    return found


class Refusal(Exception):
    """An error of Salesforce's: a status, a code, field names, perhaps the duplicates found."""

    def __init__(
        self, status: int, code: str, fields: Sequence[str] = (), *, body: Any = None, extra: Fields | None = None
    ):
        super().__init__(code)
        self.status = status
        self.code = code
        self.fields = list(fields)
        self.body = body
        self.extra = dict(extra or {})

    def row(self) -> Any:
        """As single-row resources say it."""
        if self.body is not None:
            return self.body
        named = {"fields": self.fields} if self.fields else {}
        return [{"message": f"refused: {self.code}", "errorCode": self.code, **named, **self.extra}]

    def item(self) -> dict[str, Any]:
        """As collections say it."""
        error = {"statusCode": self.code, "message": f"refused: {self.code}", "fields": self.fields, **self.extra}
        return {"success": False, "errors": [error]}


@dataclass(slots=True)
class _Held:
    """A row, and versions of it that are written but not committed yet."""

    row: dict[str, Any]
    is_visible: bool = True
    pending: list[tuple[datetime, dict[str, Any]]] = field(default_factory=list)


class SalesforceEmulator(Emulator):
    """One org. ``auth`` and ``login_url`` are what a tenant's file needs to reach it.

    ``late_commit_seconds``: a person's edit is stamped at once and visible that much later.
    ``token_seconds``: how long a token lives without use. ``currency``: of the org; None for one
    that shows no Organization and so does not tell.
    """

    def __init__(
        self,
        *,
        now: Now,
        custom_fields: bool = True,
        tooling: bool = True,
        multi_currency: bool = False,
        restricted_roles: bool = False,
        duplicate_rule: bool = False,
        late_commit_seconds: float = 0.0,
        token_seconds: float = 7200.0,
        daily_limit: int = 115_000,
        page_size: int = 2000,
        currency: str | None = "SEK",
    ) -> None:
        super().__init__(now=now)
        self.auth = {"client_id": "3MVG9emulated", "client_secret": "emulated-secret"}
        self.objects = _objects(custom_fields, multi_currency, restricted_roles)
        self.hidden: set[tuple[str, str]] = set()
        self.locked_rows: set[str] = set()
        self.public_key: str | None = None
        self.username = "syncd@example.com"
        self.org_id = normal_id("00D000000000001", "Id")
        self.tooling = tooling
        self.multi_currency = multi_currency
        self.duplicate_rule = duplicate_rule
        self.late_commit_seconds = late_commit_seconds
        self.token_seconds = token_seconds
        self.daily_limit = daily_limit
        self.page_size = page_size
        self.currency = currency
        self.used = 0
        self.logins = 0
        self._rows: dict[str, dict[str, _Held]] = {name: {} for name in self.objects}
        self._owners: dict[tuple[str, str, str], set[str]] = {}
        self._count = 0
        self._tokens: dict[str, datetime] = {}
        self._cursors: dict[str, tuple[str, list[dict[str, Any]], datetime]] = {}

    @property
    def login_url(self) -> str:
        return self.url

    def routes(self) -> Sequence[tuple[str, str, Handler]]:
        data = "/services/data/{version}/{rest:path}"
        return [
            ("POST", "/services/oauth2/token", self._token),
            ("GET", "/services/oauth2/userinfo", self._userinfo),
            *((method, data, self._data) for method in ("GET", "POST", "PATCH", "DELETE", "PUT")),
        ]

    # --- a person's hands -------------------------------------------------------------

    def add(self, sobject: str, fields: Fields) -> str:
        """A person makes a record; returns its id. Read-only fields may be given too."""
        with self.lock:
            id_ = self._new_id(sobject)
            self._store(sobject, id_, self._blank(sobject, id_) | dict(fields), SALESMAN, is_late=True)
            return id_

    def edit(self, sobject: str, id_: str, fields: Fields) -> None:
        """A person edits a record."""
        with self.lock:
            self._store(sobject, id_, self._latest(sobject, id_) | dict(fields), SALESMAN, is_late=True)

    def touch(self, sobject: str, id_: str) -> None:
        """Automation touches a record without anything to see: only SystemModstamp moves."""
        with self.lock:
            self._rows[sobject][id_].row["SystemModstamp"] = self._stamp()

    def delete(self, sobject: str, id_: str) -> None:
        """A person deletes a record, and with it what hangs on it."""
        with self.lock:
            self._bin(sobject, id_, SALESMAN)

    def undelete(self, sobject: str, id_: str) -> None:
        """A person takes a record out of the bin."""
        with self.lock:
            self._store(sobject, id_, self._latest(sobject, id_) | {"IsDeleted": False}, SALESMAN)

    def merge(self, sobject: str, winner: str, loser: str) -> None:
        """A person merges two accounts or contacts: children move over, the loser names its master."""
        with self.lock:
            for child, name in (("Contact", "AccountId"), ("Opportunity", "AccountId"), (_OCR, "ContactId")):
                if self.objects[child][name].refers_to == sobject:
                    for id_, held in self._rows[child].items():
                        if held.row.get(name) == loser:
                            self._store(child, id_, self._latest(child, id_) | {name: winner}, SALESMAN)
            gone = {"IsDeleted": True, "MasterRecordId": winner}
            self._store(sobject, loser, self._latest(sobject, loser) | gone, SALESMAN)
            self._store(sobject, winner, self._latest(sobject, winner), SALESMAN)

    def get(self, sobject: str, id_: str) -> dict[str, Any]:
        """The record as it stands, deleted or not."""
        with self.lock:
            return copy.deepcopy(self._latest(sobject, id_))

    def all(self, sobject: str, *, is_deleted: bool = False) -> list[dict[str, Any]]:
        """All records that are not in the bin, or all that are."""
        with self.lock:
            rows = [self._latest(sobject, id_) for id_ in self._rows[sobject]]
            return [copy.deepcopy(row) for row in rows if row["IsDeleted"] is is_deleted]

    def expire_tokens(self) -> None:
        """All sessions end now."""
        with self.lock:
            self._tokens.clear()

    # --- admission --------------------------------------------------------------------

    def admit(self, call: Call) -> Response | None:
        if call.path.endswith("/oauth2/token"):
            return None
        if _uri_length(call) > LONGEST_URI:
            return reply(414, "<html>URI Too Long</html>")
        token = call.headers.get("authorization", "").removeprefix("Bearer ")
        used_at = self._tokens.get(token)
        if used_at is None or self.now() - used_at > timedelta(seconds=self.token_seconds):
            return reply(401, [{"message": "Session expired or invalid", "errorCode": "INVALID_SESSION_ID"}])
        self._tokens[token] = self.now()
        if call.path.startswith("/services/data/"):
            if self.used >= self.daily_limit:
                return reply(403, [{"message": "TotalRequests Limit exceeded.", "errorCode": "REQUEST_LIMIT_EXCEEDED"}])
            self.used += 1
        return None

    def finish(self, call: Call, response: Response) -> Response:
        response.headers["Date"] = format_datetime(self.now().replace(microsecond=0), usegmt=True)
        if call.path.startswith("/services/data/") and response.status_code < 500:
            response.headers["Sforce-Limit-Info"] = f"api-usage={self.used}/{self.daily_limit}"
        return response

    def not_found(self, call: Call) -> Response:
        return reply(404, [{"message": "The requested resource does not exist", "errorCode": "NOT_FOUND"}])

    def _token(self, call: Call, **_: str) -> Response:
        form = call.body if isinstance(call.body, dict) else {}
        match form.get("grant_type"):
            case "client_credentials":
                given = _basic(call) or (form.get("client_id"), form.get("client_secret"))
                is_good = given == (self.auth["client_id"], self.auth["client_secret"])
                refusal = "invalid_client"
            case "urn:ietf:params:oauth:grant-type:jwt-bearer":
                is_good, refusal = self._is_signed(str(form.get("assertion"))), "invalid_grant"
            case _:
                return reply(400, {"error": "unsupported_grant_type", "error_description": "not supported"})
        if not is_good:
            return reply(400, {"error": refusal, "error_description": "refused"})
        self.logins += 1
        token = f"{self.org_id}!token{self.logins}"
        self._tokens[token] = self.now()
        return reply(
            200,
            {
                "access_token": token,
                "instance_url": self.url,
                "id": f"https://login.salesforce.com/id/{self.org_id}/{USER}",
                "token_type": "Bearer",
                "issued_at": str(int(self.now().timestamp() * 1000)),
            },
        )

    def _is_signed(self, assertion: str) -> bool:
        if self.public_key is None:
            return False
        audience = ["https://login.salesforce.com", "https://test.salesforce.com"]
        checks = {"verify_exp": False, "require": ["iss", "sub", "aud", "exp"]}
        try:
            claims = jwt.decode(assertion, self.public_key, algorithms=["RS256"], audience=audience, options=checks)  # type: ignore[arg-type]
        except jwt.PyJWTError:
            return False
        left = float(claims["exp"]) - self.now().timestamp()
        return 0.0 < left <= 300.0 and claims["iss"] == self.auth["client_id"] and claims["sub"] == self.username

    def _userinfo(self, call: Call, **_: str) -> Response:
        return reply(200, {"user_id": USER, "organization_id": self.org_id, "preferred_username": self.username})

    # --- resources --------------------------------------------------------------------

    def _data(self, call: Call, **params: str) -> Response:
        try:
            status, body = self._dispatch(
                call.method, params["version"], params["rest"], call.query, call.body, call.headers
            )
        except Refusal as refusal:
            status, body = refusal.status, refusal.row()
        return reply(status, body)

    def _dispatch(
        self,
        method: str,
        version: str,
        rest: str,
        query: Sequence[tuple[str, str]],
        body: Any,
        headers: Mapping[str, str],
    ) -> tuple[int, Any]:
        number = re.fullmatch(r"v(\d+)\.0", version)
        if number is None or int(number[1]) > 68:
            raise Refusal(404, "NOT_FOUND")
        if int(number[1]) <= 30:
            raise Refusal(410, "UNSUPPORTED_API_VERSION")
        given = dict(query)
        parts = [unquote(part) for part in rest.strip("/").split("/")]
        match method, parts:
            case "GET", ["query" | "queryAll" as resource]:
                _only(given, "q")
                return 200, self._query(given.get("q", ""), version, resource)
            case "GET", ["query" | "queryAll" as resource, locator]:
                _only(given)
                return 200, self._more(locator, version, resource)
            case "GET", ["limits"]:
                return 200, {"DailyApiRequests": {"Max": self.daily_limit, "Remaining": self.daily_limit - self.used}}
            case "GET", ["sobjects", name, "describe"]:
                return 200, self._describe(self._object(name))
            case "POST", ["composite"]:
                return 200, self._composite(body)
            case "POST" | "PATCH", ["composite", "sobjects"]:
                return 200, self._collection(body, lambda row: self._collected(method, row))
            case "PATCH", ["composite", "sobjects", name, key]:
                return 200, self._collection(body, lambda row: self._upserted(name, key, row))
            case "DELETE", ["composite", "sobjects"]:
                _only(given, "ids", "allOrNone")
                return 200, self._deletions(given.get("ids", "").split(","))
            case "POST", ["tooling", "sobjects", "CustomField"]:
                return 201, self._new_field(body)
            case "POST", ["sobjects", "FieldPermissions"]:
                return 201, self._grant(body)
            case "POST", ["sobjects", name]:
                return 201, _saved(self._save(self._object(name), None, body))
            case _, ["sobjects", name, id_]:
                return self._row(method, self._object(name), id_, body, headers)
            case "PATCH", ["sobjects", name, key, value]:
                _only(given, "updateOnly")
                id_, is_new = self._upsert(self._object(name), key, value, _mapping(body))
                return (201 if is_new else 200), {**_saved(id_), "created": is_new}
        raise Refusal(404, "NOT_FOUND")

    def _row(self, method: str, name: str, raw: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        id_ = self._existing(name, raw, "NOT_FOUND" if method == "GET" else "INVALID_CROSS_REFERENCE_KEY")
        row = self._latest(name, id_)
        if row["IsDeleted"]:
            raise Refusal(404, "NOT_FOUND" if method == "GET" else "ENTITY_IS_DELETED")
        match method:
            case "GET":
                return 200, {key: value for key, value in row.items() if (name, key) not in self.hidden}
            case "PATCH":
                self._check_unmodified(row, headers)
                self._save(name, id_, body)
                return 204, None
            case "DELETE":
                self._bin(name, id_, USER)
                return 204, None
        raise Refusal(405, "METHOD_NOT_ALLOWED")

    def _check_unmodified(self, row: Fields, headers: Mapping[str, str]) -> None:
        raw = headers.get("if-unmodified-since")
        if raw is None:
            return
        try:
            since = parsedate_to_datetime(raw)
        except ValueError:
            raise Refusal(400, "INVALID_HEADER") from None
        if datetime.fromisoformat(row["LastModifiedDate"]).replace(microsecond=0) > since:
            raise Refusal(412, "PRECONDITION_FAILED")

    def _composite(self, body: Any) -> Any:
        parts = _mapping(body).get("compositeRequest")
        if not isinstance(parts, list) or not 1 <= len(parts) <= 25:
            raise Refusal(400, "LIMIT_EXCEEDED")
        queries = sum(
            bool(re.search(r"/query(All)?(/|\?)|/composite/sobjects", str(part.get("url")))) for part in parts
        )
        if queries > 5:
            raise Refusal(400, "LIMIT_EXCEEDED")
        return {"compositeResponse": [self._part(_mapping(part)) for part in parts]}

    def _part(self, part: Fields) -> Any:
        url = urlsplit(str(part.get("url")))
        path = re.fullmatch(r"/services/data/(v[\d.]+)/(.+)", url.path)
        query = parse_qsl(url.query, keep_blank_values=True)
        headers = {key.lower(): value for key, value in (part.get("httpHeaders") or {}).items()}
        try:
            if path is None or path[2].strip("/") == "composite" or not part.get("referenceId"):
                raise Refusal(400, "INVALID_COMPOSITE_PART")
            status, body = self._dispatch(str(part["method"]), path[1], path[2], query, part.get("body"), headers)
        except Refusal as refusal:
            status, body = refusal.status, refusal.row()
        reference = {"referenceId": part.get("referenceId")}
        return {"body": body, "httpHeaders": {}, "httpStatusCode": status, **reference}

    def _collection(self, body: Any, save: Callable[[dict[str, Any]], Any]) -> list[Any]:
        records = _mapping(body).get("records")
        if not isinstance(records, list) or not 1 <= len(records) <= 200:
            raise Refusal(400, "INVALID_NUMBER_OF_RECORDS")
        results = []
        for record in records:
            try:
                results.append(save(dict(_mapping(record))))
            except Refusal as refusal:
                results.append(refusal.item())
        return results

    def _collected(self, method: str, record: dict[str, Any]) -> Any:
        name = self._object(str(record.pop("attributes", {}).get("type")))
        raw = record.pop("Id", record.pop("id", None))
        if method == "POST":
            return _saved(self._save(name, None, record))
        id_ = self._existing(name, str(raw), "INVALID_CROSS_REFERENCE_KEY")
        if self._latest(name, id_)["IsDeleted"]:
            raise Refusal(404, "ENTITY_IS_DELETED")
        return _saved(self._save(name, id_, record))

    def _upserted(self, name: str, key: str, record: dict[str, Any]) -> Any:
        if record.pop("attributes", {}).get("type") != self._object(name):
            raise Refusal(400, "INVALID_TYPE")
        value = record.pop(key, None)
        if not value:
            raise Refusal(400, "MISSING_ARGUMENT", [key])
        id_, is_new = self._upsert(self._object(name), key, str(value), record)
        return {**_saved(id_), "created": is_new}

    def _deletions(self, ids: Sequence[str]) -> list[Any]:
        if len(ids) > 200:
            raise Refusal(400, "INVALID_NUMBER_OF_RECORDS")
        results = []
        for raw in ids:
            name = next((name for name, prefix in PREFIXES.items() if raw.startswith(prefix)), "")
            try:
                id_ = self._existing(self._object(name), raw, "INVALID_CROSS_REFERENCE_KEY")
                if self._latest(name, id_)["IsDeleted"]:
                    raise Refusal(404, "ENTITY_IS_DELETED")
                self._bin(name, id_, USER)
                results.append(_saved(id_))
            except Refusal as refusal:
                results.append(refusal.item())
        return results

    def _describe(self, name: str) -> Any:
        fields = [
            {
                "name": key,
                "label": key,
                "type": each.type,
                "length": each.length,
                "createable": each.is_createable,
                "updateable": each.is_updateable,
                "nillable": not each.is_required,
                "externalId": each.is_unique,
                "unique": each.is_unique,
                "caseSensitive": each.is_unique,
                "restrictedPicklist": each.is_restricted,
                "picklistValues": [{"value": word, "label": word, "active": True} for word in each.words],
            }
            for key, each in self._visible(name).items()
        ]
        return {"name": name, "keyPrefix": PREFIXES[name], "fields": fields}

    def _new_field(self, body: Any) -> Any:
        """A field made by the Tooling API is seen by nobody until it is granted."""
        if not self.tooling:
            raise Refusal(403, "INSUFFICIENT_ACCESS")
        made = _mapping(body)
        sobject, _, name = str(made.get("FullName")).partition(".")
        form = _mapping(made.get("Metadata"))
        if sobject not in self.objects or not name.endswith("__c") or not form.get("label"):
            raise Refusal(400, "INVALID_FIELD", ["FullName"])
        if name in self.objects[sobject]:
            raise Refusal(400, "DUPLICATE_DEVELOPER_NAME")
        types = {"Text": "string", "LongTextArea": "textarea", "Number": "double", "DateTime": "datetime"}
        if form.get("type") not in types:
            raise Refusal(400, "INVALID_FIELD", ["type"])
        is_unique = form.get("unique") is True
        self.objects[sobject][name] = Field(types[form["type"]], int(form.get("length", 0)), is_unique=is_unique)
        self.hidden.add((sobject, name))
        return {"id": normal_id(f"00N{self._next():012d}", "Id"), "success": True, "errors": []}

    def _grant(self, body: Any) -> Any:
        row = _mapping(body)
        if set(row) != {"ParentId", "SobjectType", "Field", "PermissionsRead", "PermissionsEdit"}:
            raise Refusal(400, "REQUIRED_FIELD_MISSING")
        sobject, _, name = str(row["Field"]).partition(".")
        if sobject != row["SobjectType"] or name not in self.objects.get(sobject, {}):
            raise Refusal(400, "INVALID_CROSS_REFERENCE_KEY", ["Field"])
        self.hidden.discard((sobject, name))
        return {"id": normal_id(f"01k{self._next():012d}", "Id"), "success": True, "errors": []}

    # --- queries ----------------------------------------------------------------------

    def _query(self, soql: str, version: str, resource: str) -> Any:
        asked = parse(soql)
        fields, rows = self._table(asked.sobject, asked.conditions)
        for path in [*asked.columns, *(each.column for each in asked.conditions), *asked.order]:
            self._check_column(asked.sobject, fields, path)
        for each in asked.conditions:
            for literal in each.operands:
                _operand(literal, fields[each.column.lower()][1])
        is_all = resource == "queryAll"
        found = [
            row
            for row in rows
            if (is_all or not row.get("IsDeleted"))
            and all(_holds(row, fields[each.column.lower()], each) for each in asked.conditions)
        ]
        for name in reversed(asked.order):
            found.sort(key=lambda row: _rank(row.get(fields[name.lower()][0])))
        shown = [self._shown(asked.sobject, fields, row, asked.columns) for row in found[: asked.limit]]
        return self._page_of(shown, 0, version, resource)

    def _page_of(self, rows: list[dict[str, Any]], at: int, version: str, resource: str, cursor: str = "") -> Any:
        end = at + self.page_size
        answer: dict[str, Any] = {"totalSize": len(rows), "done": end >= len(rows), "records": rows[at:end]}
        if end < len(rows):
            cursor = cursor or f"01g{self._next():012d}AAA"
            self._cursors[cursor] = (resource, rows, self.now())
            answer["nextRecordsUrl"] = f"/services/data/{version}/{resource}/{cursor}-{end}"
        return answer

    def _more(self, locator: str, version: str, resource: str) -> Any:
        cursor, _, at = locator.partition("-")
        if cursor not in self._cursors or not at.isdigit():
            raise Refusal(400, "INVALID_QUERY_LOCATOR")
        made_for, rows, made_at = self._cursors[cursor]
        if made_for != resource or self.now() - made_at > timedelta(days=2):
            raise Refusal(400, "INVALID_QUERY_LOCATOR")
        return self._page_of(rows, int(at), version, resource, cursor)

    def forget_cursors(self) -> None:
        """All open listings are lost."""
        with self.lock:
            self._cursors.clear()

    def _table(
        self, name: str, conditions: Sequence[Condition] = ()
    ) -> tuple[dict[str, tuple[str, Field]], list[dict[str, Any]]]:
        """Fields by lower-case name, and the rows that are committed."""
        if name == "OpportunityStage":
            return _lower(_STAGE_FIELDS), [
                {
                    "Id": normal_id(f"01J{at:012d}", "Id"),
                    "MasterLabel": label,
                    "ApiName": label,
                    "IsActive": True,
                    "IsClosed": is_closed,
                    "IsWon": is_won,
                    "SortOrder": at,
                }
                for at, (label, is_closed, is_won) in enumerate(STAGES, 1)
            ]
        if name == "Organization" and self.currency is not None:
            row = {"Id": self.org_id, "Name": "Emulated org", "DefaultCurrencyIsoCode": self.currency}
            return _lower(dict.fromkeys(row, Field())), [row]
        sobject = self._object(name, 400, "INVALID_TYPE")
        rows = [self._settled(self._rows[sobject][id_]) for id_ in self._candidates(sobject, conditions)]
        return _lower(self._visible(sobject)), [held.row for held in rows if held.is_visible]

    def _candidates(self, name: str, conditions: Sequence[Condition]) -> Iterable[str]:
        """The ids that can be meant, found by index where a condition names ids or external ids."""
        known = self._rows[name].keys()
        for each in conditions:
            if each.operator in ("IN", "="):
                if each.column.lower() == "id":
                    return sorted({str(id_) for id_ in each.operands} & known)
                key, form = _lower(self._visible(name)).get(each.column.lower(), ("", Field()))
                if form.is_unique:
                    owners = (self._owners.get((name, key, str(value)), set()) for value in each.operands)
                    return sorted(set().union(*owners) & known)
        return list(known)

    def _check_column(self, sobject: str, fields: Mapping[str, object], path: str) -> None:
        parent, _, rest = path.partition(".")
        if not rest and path.lower() in fields:
            return
        other = _PARENTS.get((sobject, parent.lower()))
        if rest and other and rest.lower() in _lower(self._visible(other[1])):
            return
        raise Refusal(400, "INVALID_FIELD")

    def _shown(
        self, sobject: str, fields: Mapping[str, tuple[str, Field]], row: Fields, columns: Iterable[str]
    ) -> dict[str, Any]:
        link = {"type": sobject, "url": f"/services/data/v67.0/sobjects/{sobject}/{row.get('Id')}"}
        shown: dict[str, Any] = {"attributes": link}
        for path in columns:
            parent, _, rest = path.partition(".")
            if not rest:
                name = fields[path.lower()][0]
                shown[name] = row.get(name)
                continue
            via, other = _PARENTS[sobject, parent.lower()]
            held = self._rows[other].get(str(row.get(via)))
            if held is None:
                shown[other] = None
            else:
                name = _lower(self._visible(other))[rest.lower()][0]
                shown.setdefault(other, {"attributes": {"type": other}})[name] = self._settled(held).row.get(name)
        return shown

    # --- rows -------------------------------------------------------------------------

    def _object(self, name: str, status: int = 404, code: str = "NOT_FOUND") -> str:
        if name not in self.objects:
            raise Refusal(status, code)
        return name

    def _visible(self, name: str) -> dict[str, Field]:
        return {key: each for key, each in self.objects[name].items() if (name, key) not in self.hidden}

    def _existing(self, name: str, raw: str, code: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9]{15}([A-Za-z0-9]{3})?", raw) or normal_id(raw, "Id") not in self._rows[name]:
            raise Refusal(404, code)
        return normal_id(raw, "Id")

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _new_id(self, name: str) -> str:
        return normal_id(f"{PREFIXES[name]}Em{self._next():010d}", "Id")

    def _blank(self, name: str, id_: str) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(self.objects[name])
        row |= {key: False for key, each in self.objects[name].items() if each.type == "boolean"}
        return (
            row
            | {"Id": id_, "CreatedDate": self._stamp()}
            | ({"CurrencyIsoCode": self.currency} if self.multi_currency else {})
        )

    def _stamp(self) -> str:
        return self.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000+0000")

    def _settled(self, held: _Held) -> _Held:
        """The row as committed by now."""
        while held.pending and held.pending[0][0] <= self.now():
            held.row, held.is_visible = held.pending.pop(0)[1], True
        return held

    def _latest(self, name: str, id_: str) -> dict[str, Any]:
        held = self._settled(self._rows[name][id_])
        return held.pending[-1][1] if held.pending else held.row

    def _store(self, name: str, id_: str, row: dict[str, Any], user: str, *, is_late: bool = False) -> None:
        row = row | {"SystemModstamp": self._stamp(), "LastModifiedDate": self._stamp(), "LastModifiedById": user}
        if name == "Opportunity":
            stage = next((each for each in STAGES if each[0] == row.get("StageName")), ("", False, False))
            row |= {"IsClosed": stage[1], "IsWon": stage[2]}
        for key, each in self.objects[name].items():
            if each.is_unique and row.get(key):
                self._owners.setdefault((name, key, row[key]), set()).add(id_)
        held = self._rows[name].setdefault(id_, _Held(row, is_visible=False))
        if is_late and self.late_commit_seconds:
            held.pending.append((self.now() + timedelta(seconds=self.late_commit_seconds), row))
        else:
            held.row, held.is_visible, held.pending = row, True, []

    def _bin(self, name: str, id_: str, user: str) -> None:
        self._check_lock(id_)
        self._store(name, id_, self._latest(name, id_) | {"IsDeleted": True}, user)
        for child, key in (
            ("Contact", "AccountId"),
            ("Opportunity", "AccountId"),
            (_OCR, "ContactId"),
            (_OCR, "OpportunityId"),
        ):
            if self.objects[child][key].refers_to == name:
                for other in list(self._rows[child]):
                    row = self._latest(child, other)
                    if row.get(key) == id_ and not row["IsDeleted"]:
                        self._bin(child, other, user)

    def _check_lock(self, id_: str) -> None:
        if id_ in self.locked_rows:
            raise Refusal(400, "UNABLE_TO_LOCK_ROW")

    def _upsert(self, name: str, key: str, value: str, body: Fields) -> tuple[str, bool]:
        known = self._visible(name).get(key)
        if known is None or not known.is_unique:
            raise Refusal(404, "NOT_FOUND")
        if key in body:
            raise Refusal(400, "INVALID_FIELD", [key])
        rows = self._owned(name, key, value)
        if len(rows) > 1:
            raise Refusal(300, "MULTIPLE", body=[f"/services/data/v67.0/sobjects/{name}/{row['Id']}" for row in rows])
        if rows:
            return self._save(name, rows[0]["Id"], body), False
        return self._save(name, None, {**body, key: value}), True

    def _owned(self, name: str, key: str, value: str) -> list[dict[str, Any]]:
        """The live rows that hold this value of a unique field."""
        ids = self._owners.get((name, key, value), set()) & self._rows[name].keys()
        rows = [self._latest(name, id_) for id_ in sorted(ids)]
        return [row for row in rows if row.get(key) == value and not row["IsDeleted"]]

    def _live(self, name: str) -> Iterator[dict[str, Any]]:
        for id_ in list(self._rows[name]):
            row = self._latest(name, id_)
            if not row["IsDeleted"]:
                yield row

    def _save(self, name: str, id_: str | None, body: Any) -> str:
        given = dict(_mapping(body))
        for key, value in given.items():
            self._check_value(name, key, value, is_new=id_ is None)
        row = self._blank(name, "") if id_ is None else self._latest(name, id_)
        lost = {key for key in given if self.loses(name, id_ or "", key)}
        after = row | {key: self._kept(name, key, value) for key, value in given.items() if key not in lost}
        if name == "Opportunity" and row.get("HasOpportunityLineItem"):
            after["Amount"] = row["Amount"]
        missing = [key for key, each in self.objects[name].items() if each.is_required and after.get(key) in (None, "")]
        if missing:
            raise Refusal(400, "REQUIRED_FIELD_MISSING", missing)
        self._check_unique(name, id_, given)
        self._check_duplicates(name, id_, after)
        for locked in (id_, after.get("AccountId"), after.get("OpportunityId")):
            self._check_lock(str(locked))
        made = id_ or self._new_id(name)
        self._store(name, made, after | {"Id": made}, USER)
        return made

    def _kept(self, name: str, key: str, value: Any) -> Any:
        if value == "":
            return None
        match self.objects[name][key].type:
            case "datetime" if value is not None:
                moment = datetime.fromisoformat(value).astimezone(UTC)
                return moment.strftime("%Y-%m-%dT%H:%M:%S.000+0000")
            case "reference" if value is not None:
                return normal_id(value, key)
        return value.strip() if isinstance(value, str) else value

    def _check_value(self, name: str, key: str, value: Any, *, is_new: bool) -> None:
        known = self._visible(name).get(key)
        if known is None:
            raise Refusal(400, "INVALID_FIELD", [key])
        if not (known.is_createable if is_new else known.is_updateable):
            raise Refusal(400, "INVALID_FIELD_FOR_INSERT_UPDATE", [key])
        if value is None:
            return
        numeric = known.type in ("currency", "double")
        if numeric is not (isinstance(value, int | float) and not isinstance(value, bool)) or (
            not numeric and not isinstance(value, bool if known.type == "boolean" else str)
        ):
            raise Refusal(400, "JSON_PARSER_ERROR")
        if isinstance(value, str) and 0 < known.length < len(value):
            raise Refusal(400, "STRING_TOO_LONG", [key])
        if known.is_restricted and value and value not in known.words:
            raise Refusal(400, "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", [key])
        try:
            if known.type == "date":
                date.fromisoformat(value)
            if known.type == "datetime":
                datetime.fromisoformat(value)
        except ValueError:
            raise Refusal(400, "JSON_PARSER_ERROR") from None
        if known.refers_to:
            target = self._rows[known.refers_to]
            if value not in target or self._latest(known.refers_to, value)["IsDeleted"]:
                raise Refusal(400, "INVALID_CROSS_REFERENCE_KEY", [key])

    def _check_unique(self, name: str, id_: str | None, given: Fields) -> None:
        for key, value in given.items():
            owners = self._owned(name, key, value) if value and self.objects[name][key].is_unique else ()
            if any(row["Id"] != id_ for row in owners):
                raise Refusal(400, "DUPLICATE_VALUE", [key])

    def _check_duplicates(self, name: str, id_: str | None, after: Fields) -> None:
        if not self.duplicate_rule or name != "Contact" or id_ is not None or not after.get("Email"):
            return
        same = [row["Id"] for row in self._live(name) if str(row.get("Email")).lower() == str(after["Email"]).lower()]
        if same:
            found = [{"record": {"attributes": {"type": name}, "Id": other}} for other in same]
            result = {"allowSave": False, "matchResults": [{"matchRecords": found}]}
            raise Refusal(400, "DUPLICATES_DETECTED", extra={"duplicateResult": result})


_OCR = "OpportunityContactRole"
_PARENTS = {
    ("Contact", "account"): ("AccountId", "Account"),
    ("Opportunity", "account"): ("AccountId", "Account"),
    (_OCR, "contact"): ("ContactId", "Contact"),
    (_OCR, "opportunity"): ("OpportunityId", "Opportunity"),
}
_STAGE_FIELDS = {
    "Id": Field("id"),
    "MasterLabel": Field(),
    "ApiName": Field(),
    "IsActive": Field("boolean"),
    "IsClosed": Field("boolean"),
    "IsWon": Field("boolean"),
    "SortOrder": Field("int"),
}


def _lower(fields: Mapping[str, Field]) -> dict[str, tuple[str, Field]]:
    return {name.lower(): (name, each) for name, each in fields.items()}


def _saved(id_: str) -> dict[str, Any]:
    return {"id": id_, "success": True, "errors": []}


def _only(given: Mapping[str, str], *known: str) -> None:
    if set(given) - set(known):
        raise Refusal(400, "INVALID_QUERY_PARAMETER")


def _mapping(raw: Any) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise Refusal(400, "JSON_PARSER_ERROR")
    return raw


def _uri_length(call: Call) -> int:
    headers = sum(len(key) + len(value) + 4 for key, value in call.headers.items())
    return len(call.path) + 1 + len(urlencode(call.query)) + headers


def _basic(call: Call) -> tuple[str, str] | None:
    scheme, _, rest = call.headers.get("authorization", "").partition(" ")
    if scheme != "Basic":
        return None
    name, _, secret = base64.b64decode(rest).decode().partition(":")
    return name, secret


# --- SOQL -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Condition:
    column: str
    operator: str
    operands: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed statement."""

    sobject: str
    columns: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()
    order: tuple[str, ...] = ()
    limit: int | None = None


_NAME = r"[A-Za-z][A-Za-z0-9_.]*"
_TOKEN = re.compile(
    rf"\s*('(?:[^'\\]|\\.)*'|\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d)|\d{{4}}-\d\d-\d\d(?!T)|-?\d+(?:\.\d+)?"
    rf"|{_NAME}|>=|<=|!=|[=<>(),])"
)


def parse(soql: str) -> Asked:
    """One statement of the small dialect. Raises Refusal (MALFORMED_QUERY) for anything else."""
    words = list(_tokens(soql))
    if not words or words.pop(0).upper() != "SELECT" or len(soql) > 100_000:
        raise Refusal(400, "MALFORMED_QUERY")
    columns = _names(words)
    _expect(words, "FROM")
    asked = Asked(_name(words), columns)
    if _taken(words, "WHERE"):
        conditions = [_condition(words)]
        while _taken(words, "AND"):
            conditions.append(_condition(words))
        asked = replace(asked, conditions=tuple(conditions))
    if _taken(words, "ORDER"):
        _expect(words, "BY")
        asked = replace(asked, order=_names(words))
    if _taken(words, "LIMIT"):
        asked = replace(asked, limit=int(_next_word(words)))
    if words or len({name.lower() for name in columns}) != len(columns):
        raise Refusal(400, "MALFORMED_QUERY")
    return asked


def _tokens(soql: str) -> Iterator[str]:
    at, text = 0, soql.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Refusal(400, "MALFORMED_QUERY")
        yield found[1]
        at = found.end()


def _next_word(words: list[str]) -> str:
    if not words:
        raise Refusal(400, "MALFORMED_QUERY")
    return words.pop(0)


def _taken(words: list[str], word: str) -> bool:
    if words and words[0].upper() == word:
        words.pop(0)
        return True
    return False


def _expect(words: list[str], word: str) -> None:
    if not _taken(words, word):
        raise Refusal(400, "MALFORMED_QUERY")


def _name(words: list[str]) -> str:
    word = _next_word(words)
    if not re.fullmatch(_NAME, word):
        raise Refusal(400, "MALFORMED_QUERY")
    return word


def _names(words: list[str]) -> tuple[str, ...]:
    found = [_name(words)]
    while _taken(words, ","):
        found.append(_name(words))
    return tuple(found)


def _condition(words: list[str]) -> Condition:
    column = _name(words)
    if _taken(words, "IN"):
        _expect(words, "(")
        operands = [_literal(_next_word(words))]
        while _taken(words, ","):
            operands.append(_literal(_next_word(words)))
        _expect(words, ")")
        return Condition(column, "IN", tuple(operands))
    sign = _next_word(words)
    if sign not in ("=", "!=", ">", "<", ">=", "<="):
        raise Refusal(400, "MALFORMED_QUERY")
    return Condition(column, sign, (_literal(_next_word(words)),))


def _literal(word: str) -> object:
    if word.startswith("'"):
        if len(word) > 4_002:
            raise Refusal(400, "MALFORMED_QUERY")
        return re.sub(r"\\(.)", r"\1", word[1:-1])
    if re.match(r"\d{4}-\d\d-\d\dT", word):
        return datetime.fromisoformat(word)
    if re.fullmatch(r"\d{4}-\d\d-\d\d", word):
        return date.fromisoformat(word)
    if word.lower() in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[word.lower()]
    if re.fullmatch(r"-?\d+(\.\d+)?", word):
        return float(word)
    raise Refusal(400, "MALFORMED_QUERY")


def _holds(row: Fields, known: tuple[str, Field], asked: Condition) -> bool:
    name, form = known
    held = _comparable(row.get(name), form)
    if asked.operator == "IN" and form.is_unique:
        return held in asked.operands
    operands = [_operand(each, form) for each in asked.operands]
    match asked.operator:
        case "IN" | "=":
            return held in operands
        case "!=":
            return held not in operands
    if held is None or operands[0] is None:
        return False
    compare = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}[asked.operator]
    return bool(compare(held, operands[0]))


def _operand(raw: object, form: Field) -> Any:
    """A literal must suit its field: a quoted datetime is a string, and refused."""
    if raw is not None and (form.type == "datetime") is not isinstance(raw, datetime):
        raise Refusal(400, "INVALID_FIELD")
    return _comparable(raw, form)


def _comparable(raw: Any, form: Field) -> Any:
    match form.type:
        case "datetime" if raw is not None:
            moment = raw if isinstance(raw, datetime) else datetime.fromisoformat(raw)
            return moment.astimezone(UTC).replace(microsecond=0)
        case "id" | "reference" if isinstance(raw, str) and len(raw) == 15:
            return normal_id(raw, "Id")
        case "date" if isinstance(raw, date):
            return raw.isoformat()
        case "string" | "email" | "url" | "phone" | "picklist" | "textarea" if isinstance(raw, str):
            return raw if form.is_unique else raw.lower()
    return raw


def _rank(value: Any) -> tuple[bool, Any]:
    return (value is not None, value if value is not None else 0)
