"""HubSpot over HTTP: authentication, one exchange at a time, paging, errors translated.

The only file that knows the SDK and urllib3. The official client is held by its raw
``call_api``: its models are slow, its own calls turn an unlisted 2xx into None and repeat
what must not be repeated. Every path stands once, in ``CALLS``, so that v3 and v4 become date
versions by changing that table. A response body goes no further than this file: messages
carry codes, statuses, field names and correlation ids.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from hubspot import HubSpot
from hubspot.crm.objects.exceptions import ApiException
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)
from urllib3.util.retry import Retry

from syncd.connector import ConnectionSettings, Repeat, Wire
from syncd.core.mapping import UnfitValueError, identifier
from syncd.errors import (
    AuthError,
    ConfigError,
    ContractError,
    MissingError,
    RateLimitedError,
    RejectedError,
    TransientError,
)

DEFAULT_URL: Final = "https://api.hubapi.com"

#: One JSON object from HubSpot. Its values are looked at, never trusted.
Row: TypeAlias = Mapping[str, object]

BATCH: Final = 100
ASSOCIATION_READ: Final = 1000
SEARCH_PAGE: Final = 200
SEARCH_BODY: Final = 3000
#: The property that lists the ids which lead to a record since merges.
MERGED: Final = "hs_merged_object_ids"
#: URLs of 8,000 characters and more have been refused with 414; this leaves room for the rest.
URL_PROPERTIES: Final = 6000

_TIMEOUT: Final = (5, 60)
_STATIC: Final = frozenset({"access_token"})
_OAUTH: Final = frozenset({"client_id", "client_secret", "refresh_token"})
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,79}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One call of HubSpot's: where, which answers it may give, and what it does to the account."""

    method: str
    path: str
    good: frozenset[int] = frozenset({200})
    effect: Literal["read", "write"] = "read"
    bucket: str = "default"
    repeat: Repeat = "always"


_MIXED: Final = frozenset({200, 201, 207})
_GONE: Final = frozenset({200, 204})

#: A repeated write to an object does no harm of its own (section 4.5: there is no plain create among them), but no
#: condition guards it: sent again, it would undo what somebody edited meanwhile.
CALLS: Final[Mapping[str, Endpoint]] = {
    "account": Endpoint("GET", "/account-info/v3/details"),
    "token": Endpoint("POST", "/oauth/v1/token"),
    "list": Endpoint("GET", "/crm/v3/objects/{type}"),
    "get": Endpoint("GET", "/crm/v3/objects/{type}/{id}"),
    "search": Endpoint("POST", "/crm/v3/objects/{type}/search", bucket="search"),
    "read": Endpoint("POST", "/crm/v3/objects/{type}/batch/read", frozenset({200, 207})),
    "update": Endpoint("POST", "/crm/v3/objects/{type}/batch/update", _MIXED, "write", repeat="never"),
    "upsert": Endpoint("POST", "/crm/v3/objects/{type}/batch/upsert", _MIXED, "write", repeat="never"),
    "archive": Endpoint("POST", "/crm/v3/objects/{type}/batch/archive", _GONE, "write", repeat="never"),
    "pipelines": Endpoint("GET", "/crm/v3/pipelines/deals"),
    "properties": Endpoint("GET", "/crm/v3/properties/{type}"),
    "new property": Endpoint("POST", "/crm/v3/properties/{type}", frozenset({200, 201}), "write"),
    "new group": Endpoint("POST", "/crm/v3/properties/{type}/groups", frozenset({200, 201}), "write"),
    "labels": Endpoint("GET", "/crm/v4/associations/{one}/{other}/labels", bucket="associations"),
    "new label": Endpoint(
        "POST", "/crm/v4/associations/{one}/{other}/labels", frozenset({200, 201}), "write", "associations", "unsent"
    ),
    "associated": Endpoint(
        "POST", "/crm/v4/associations/{one}/{other}/batch/read", frozenset({200, 207}), bucket="associations"
    ),
    # Both would take with them a label that somebody put on meanwhile: what is put on replaces what is there (7).
    "associate": Endpoint(
        "POST", "/crm/v4/associations/{one}/{other}/batch/create", _MIXED, "write", "associations", "never"
    ),
    "dissociate": Endpoint(
        "POST", "/crm/v4/associations/{one}/{other}/batch/archive", _GONE, "write", "associations", "never"
    ),
    "unlabel": Endpoint(
        "POST", "/crm/v4/associations/{one}/{other}/batch/labels/archive", _GONE, "write", "associations"
    ),
}


class RefusedError(RejectedError):
    """A 4xx with HubSpot's reasons: ``codes`` to tell people, ``existing`` the id a 409 names."""

    def __init__(self, message: str, *, status: int, codes: tuple[str, ...], existing: str | None = None):
        super().__init__(message)
        self.status = status
        self.codes = codes
        self.existing = existing

    @property
    def reason(self) -> str:
        return " ".join(self.codes) or f"HTTP_{self.status}"


class ForbiddenError(AuthError):
    """A 403: the token lacks ``scopes``, as far as HubSpot names them."""

    def __init__(self, message: str, scopes: tuple[str, ...]):
        super().__init__(message)
        self.scopes = scopes


class _UnauthorizedError(AuthError):
    """A 401. It alone proves no expiry, so one renewal is tried before it counts."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer: its status and its JSON object ({} for none)."""

    status: int
    body: Row = field(default_factory=dict)


AssociationType: TypeAlias = tuple[str, int]


@dataclass(slots=True)
class Bonds:
    """What one record is associated with: other id -> association types, and ids that are unfit."""

    to: dict[str, frozenset[AssociationType]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


# --- lenient looks at JSON ------------------------------------------------------------------


def dig(row: object, *path: str) -> object:
    """The value at a path of keys, None where anything on the way is absent or no object."""
    for key in path:
        if not isinstance(row, Mapping):
            return None
        row = row.get(key)
    return row


def rows_of(body: Row, key: str = "results", *, is_required: bool = True) -> list[Row]:
    """The objects listed under a key. Raises ContractError if there is no such list."""
    found = body.get(key)
    if found is None and not is_required:
        return []
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise ContractError(f"HubSpot answered without a list of {key}")
    return found


def codes_of(body: object) -> tuple[str, ...]:
    """The machine-readable reasons in an error body, never its prose, which quotes values.

    Walks category, sub-category, the list of errors, and the JSON array that older validation
    errors pack into their message.
    """
    found: list[str] = []

    def take(raw: object) -> None:
        if isinstance(raw, str) and _CODE.fullmatch(raw) and raw not in found and raw != "error":
            found.append(raw)

    def walk(node: object) -> None:
        if not isinstance(node, Mapping):
            return
        for key in ("category", "subCategory", "code"):
            take(node.get(key))
        if isinstance(node.get("error"), str):
            take(node.get("error"))
            take(node.get("name"))
        for each in _list(dig(node, "context", "propertyName")):
            take(each)
        for each in _list(node.get("errors")):
            walk(each)
        message = node.get("message")
        if isinstance(message, str) and "[{" in message:
            try:
                packed = json.loads(message[message.index("[{") :])
            except ValueError:
                return
            for each in _list(packed):
                walk(each)

    walk(body)
    return tuple(found[:12])


def _list(raw: object) -> list[object]:
    return raw if isinstance(raw, list) else []


# --- the client -------------------------------------------------------------------------------


class OnePool:
    """SDK api factory: one connection pool, every api built once, the token changed in one place.

    Left to itself the SDK opens a new pool, so a new TLS connection, at each access to an api.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._apis: dict[tuple[str, str], Any] = {}

    def __call__(self, package: Any, name: str, config: Mapping[str, Any]) -> Any:
        key = (package.__name__, name)
        if key not in self._apis:
            configuration = package.Configuration()
            for option, value in config.items():
                setattr(configuration, "retries" if option == "retry" else option, value)
            api_client = package.ApiClient(configuration=configuration)
            if self._pool is None:
                self._pool = api_client.rest_client.pool_manager
            api_client.rest_client.pool_manager = self._pool
            api_client.set_default_header("Accept-Encoding", "gzip")
            self._apis[key] = getattr(package, name)(api_client=api_client)
        return self._apis[key]

    def use_token(self, token: str) -> None:
        for api in self._apis.values():
            api.api_client.configuration.access_token = token

    def close(self) -> None:
        if self._pool is not None:
            self._pool.clear()


class Client:
    """One HubSpot account. Thread-safe; refreshes its token at 80 % of its life, one thread at a time."""

    def __init__(self, settings: ConnectionSettings, wire: Wire, now: Callable[[], datetime]):
        self._auth = settings.auth
        _check_auth(settings)
        self._wire = wire
        self._now = now
        self._pool = OnePool()
        self._sdk = HubSpot(
            host=_base_url(settings),
            api_factory=self._pool,
            connection_pool_maxsize=4,
            retry=Retry(total=0, redirect=False, respect_retry_after_header=False, raise_on_status=False),
        )
        self._renewing = threading.Lock()
        self._token: str | None = None
        self._fresh_until: datetime | None = None
        self._refresh_token: tuple[str, str] | None = None
        #: The account's zone, in which its day turns; told by whoever reads the account.
        #: The account's zone, once the account has been read.
        self.time_zone: str | None = None
        #: Calls in ten seconds as the account's own headers tell, once one has been seen.
        self.calls_per_ten_seconds: int | None = None

    @property
    def is_oauth(self) -> bool:
        return "refresh_token" in self._auth

    def close(self) -> None:
        self._pool.close()

    # --- reading ----------------------------------------------------------------------

    def account(self) -> Row:
        return self.ask("account").body

    def listing(
        self, type_: str, properties: Sequence[str], *, is_archived: bool = False, limit: int = BATCH
    ) -> Iterator[tuple[list[Row], bool]]:
        """(rows, is the last page) of a full listing."""
        query = [("limit", str(limit)), ("archived", "true" if is_archived else "false")]
        if properties:
            # One comma-joined parameter; repeated ones run into 414 sooner (12.2, 14).
            query.append(("properties", ",".join(properties)))
        after: str | None = None
        while True:
            answer = self.ask("list", query=[*query, ("after", after)] if after else query, type=type_)
            previous, after = after, _cursor(answer.body)
            yield rows_of(answer.body), after is None
            if after is None:
                return
            if after == previous:
                raise ContractError(f"HubSpot's listing of {type_} repeats its cursor")

    def search(self, type_: str, body: Row) -> tuple[list[Row], bool]:
        """(rows, is there more) of one search. Never pages by ``after``, which skips rows (6.3)."""
        answer = self.ask("search", body=body, type=type_)
        return rows_of(answer.body), _cursor(answer.body) is not None

    def get(self, type_: str, id_: str, properties: Sequence[str]) -> Row | None:
        """One record by id, following a merge; None if it is missing or archived."""
        query = [("properties", ",".join(properties))] if len(",".join(properties)) <= URL_PROPERTIES else []
        try:
            return self.ask("get", query=query, type=type_, id=id_).body
        except MissingError:
            return None

    def read(
        self,
        type_: str,
        ids: Iterable[str],
        properties: Sequence[str],
        *,
        id_property: str | None = None,
        is_archived: bool = False,
    ) -> list[Row]:
        """The records there are among these ids, in no order; a merged one under its new id."""
        found: list[Row] = []
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), BATCH):
            body: dict[str, object] = {
                "inputs": [{"id": each} for each in wanted[start : start + BATCH]],
                "properties": list(properties),
            }
            if id_property:
                body["idProperty"] = id_property
            query = [("archived", "true")] if is_archived else []
            found += rows_of(self.ask("read", query=query, body=body, type=type_).body)
        return found

    def follow(self, type_: str, ids: Sequence[str], properties: Sequence[str]) -> dict[str, Row]:
        """What each id leads to now: the record, the survivor of its merge, or one that is archived.

        Ids that lead nowhere are absent. Batch reads tell most; what they leave out is looked
        for among the archived, and then by itself, because only that is sure to follow the
        merge of a deal (5.5).
        """
        found: dict[str, Row] = {}
        names = [*properties, MERGED] if MERGED not in properties else list(properties)
        _match(self.read(type_, ids, names), ids, found)
        missing = [each for each in ids if each not in found]
        if missing:
            archived: dict[str, Row] = {}
            _match(self.read(type_, missing, names, is_archived=True), missing, archived)
            found.update({each: {**row, "archived": True} for each, row in archived.items() if row.get("id") == each})
        for each in missing:
            row = self.get(type_, each, names) if each not in found else None
            if row is not None:
                found[each] = row
        return found

    def associated(self, one: str, other: str, ids: Sequence[str]) -> dict[str, Bonds]:
        """What each id is associated with; an id that HubSpot said nothing about is absent.

        An empty answer of an id that was merged away looks like that of a live one (5.5), so
        the caller makes sure that an id with nothing is alive.
        """
        found: dict[str, Bonds] = {}
        for start in range(0, len(ids), ASSOCIATION_READ):
            chunk = list(dict.fromkeys(ids[start : start + ASSOCIATION_READ]))
            self._associated(one, other, chunk, found)
            silent = [each for each in chunk if each not in found]
            if silent:
                # Empty is said with NO_ASSOCIATIONS_FOUND; silence is asked about once more,
                # because an answer that lost its rows looks the same.
                self._associated(one, other, silent, found, is_silence_empty=True)
        return found

    def _associated(
        self, one: str, other: str, ids: list[str], found: dict[str, Bonds], *, is_silence_empty: bool = False
    ) -> None:
        inputs: list[dict[str, str]] = [{"id": each} for each in ids]
        unreadable: set[str] = set()
        while inputs:
            answer = self.ask("associated", body={"inputs": inputs}, one=one, other=other)
            rows = rows_of(answer.body)
            asked = {each["id"]: each.get("after") for each in inputs}
            inputs = []
            answered: set[str] = set()
            for row in rows:
                from_id = str(dig(row, "from", "id"))
                if from_id not in asked:
                    continue
                answered.add(from_id)
                _take_bonds(row, found.setdefault(from_id, Bonds()))
                after = _cursor(row)
                if after is not None:
                    if after == asked[from_id]:
                        raise ContractError("HubSpot's association paging repeats its cursor")
                    inputs.append({"id": from_id, "after": after})
            for error in rows_of(answer.body, "errors", is_required=False):
                named = _named(error)
                if "NO_ASSOCIATIONS_FOUND" in json.dumps([error.get("subCategory"), error.get("category")]):
                    for each in named:
                        if each in asked:
                            found.setdefault(each, Bonds())
                else:
                    unreadable.update(named)
            for each, after in asked.items():
                if after and each not in answered:
                    # A later page was lost, so what there is of this id is not the whole.
                    unreadable.add(each)
                    found.pop(each, None)
        if is_silence_empty:
            for each in ids:
                if each not in unreadable:
                    found.setdefault(each, Bonds())

    # --- one exchange -----------------------------------------------------------------

    def ask(
        self,
        name: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Row | None = None,
        **names: str,
    ) -> Answer:
        """One call of the table, through the wire; on a 401 once more with a renewed token."""
        endpoint = CALLS[name]
        for each in names.values():
            identifier(each, "path")
        path = endpoint.path.format(**names)

        def exchange() -> Answer:
            return self._exchange(endpoint, path, query, body)

        token = self._use_token()
        try:
            return self._call(endpoint, exchange)
        except _UnauthorizedError:
            if not self._renew(token):
                raise
        return self._call(endpoint, exchange)

    def _call(self, endpoint: Endpoint, exchange: Callable[[], Answer]) -> Answer:
        return self._wire.call(exchange, effect=endpoint.effect, bucket=endpoint.bucket, repeat=endpoint.repeat)

    def _exchange(
        self,
        endpoint: Endpoint,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Row | None = None,
        form: Sequence[tuple[str, str]] | None = None,
    ) -> Answer:
        """Exactly one HTTP request. Raises only errors of ``syncd.errors``."""
        api_client = self._sdk.crm.objects.basic_api.api_client
        kind = "application/json" if form is None else "application/x-www-form-urlencoded"
        try:
            response = api_client.call_api(
                path,
                endpoint.method,
                {},
                list(query),
                {"Accept": "application/json", "Content-Type": kind},
                body=body,
                post_params=list(form or ()),
                response_types_map={},
                auth_settings=["oauth2"] if form is None else [],
                _return_http_data_only=True,
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            )
            status, headers, raw = int(response.status), dict(response.headers), bytes(response.data or b"")
        except HTTPError as exc:
            raise _broken(exc, endpoint) from None
        except UnicodeDecodeError as exc:
            # The SDK decodes the bodies of errors as UTF-8 before it lets go of them (12.2, 11).
            status, headers, raw = _refusal(exc.__context__, endpoint)
        except ApiException as exc:
            # Its text carries headers and body, so it must not be chained into a log.
            status, headers, raw = _refusal(exc, endpoint)
        headers = {key.lower(): str(value) for key, value in headers.items()}
        self._observe(endpoint, headers)
        if 200 <= status < 300:
            return _answer(endpoint, status, raw)
        raise self._error(endpoint, status, headers, raw)

    def _observe(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        # Search answers carry no rate headers, and associations count elsewhere (4.1, 4.2).
        if endpoint.bucket != "default":
            return
        remaining = headers.get("x-hubspot-ratelimit-remaining", "")
        window = headers.get("x-hubspot-ratelimit-interval-milliseconds", "10000")
        most = headers.get("x-hubspot-ratelimit-max", "")
        if most.isdigit() and int(most) > 0 and window == "10000":
            self.calls_per_ten_seconds = int(most)
        if remaining.isdigit() and window.isdigit():
            self._wire.observe("default", remaining=int(remaining), reset_seconds=int(window) / 1000)

    def _error(self, endpoint: Endpoint, status: int, headers: Mapping[str, str], raw: bytes) -> Exception:
        """The error that a status other than 2xx means (4.3, 4.4)."""
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        codes = codes_of(body)
        told = f"HubSpot answered {status} to {endpoint.method} {endpoint.path}"
        detail = " ".join([*codes, *_correlation(headers)])
        told = f"{told} ({detail})" if detail else told
        pause = _seconds(headers.get("retry-after"))
        policy = _policy(body)
        if status == 429 or (status == 403 and policy):
            return self._too_many(endpoint, told, policy, pause)
        if status == 477:
            # The account moves between data centres: nothing in this run will change that.
            return RateLimitedError(told, bucket=endpoint.bucket, pause_seconds=pause or 86_400, is_daily=True)
        if status == 423:
            return TransientError(told, pause_seconds=max(2.0, pause or 0.0))
        if status in (525, 526):
            return ContractError(f"{told}: TLS is broken between HubSpot and its front")
        if status >= 500 or status == 408:
            return TransientError(told, is_sent=True, pause_seconds=pause)
        if status == 401:
            return _UnauthorizedError(f"{told}: check the access token of this connection")
        if status == 403:
            scopes = _scopes(body)
            return ForbiddenError(f"{told}: grant {' '.join(scopes) or 'the missing permission'}", scopes)
        if status == 414:
            return RefusedError(told, status=status, codes=codes)
        if raw.strip() and not isinstance(body, Mapping):
            # A page of HTML is somebody else's answer: a proxy, a login, a wrong address.
            return ContractError(f"{told}, and the body is not HubSpot's")
        if status == 404:
            return MissingError(told)
        if status in (400, 409, 413, 422):
            return RefusedError(told, status=status, codes=codes, existing=existing_id(body))
        return ContractError(told)

    def _too_many(self, endpoint: Endpoint, told: str, policy: str, pause: float | None) -> RateLimitedError:
        if policy == "DAILY":
            until = self._until_midnight()
            return RateLimitedError(told, bucket=endpoint.bucket, pause_seconds=max(until, pause or 0), is_daily=True)
        if pause is not None:
            return RateLimitedError(told, bucket=endpoint.bucket, pause_seconds=pause)
        # Others use the account's quotas, too: HubSpot's own clients wait longer at each attempt (4.3).
        usual = {"TEN_SECONDLY_ROLLING": 10.0, "SECONDLY": 1.0}.get(policy)
        return RateLimitedError(told, bucket=endpoint.bucket, pause_seconds=usual, is_growing=True)

    def _until_midnight(self) -> float:
        """Seconds until the day turns in the account's zone, where daily quotas are renewed.

        While the zone is not known, until the next full hour, when it turns somewhere.
        """
        now = self._now().astimezone(UTC)
        if self.time_zone is None:
            turn = (now + timedelta(hours=1)).replace(minute=0, second=0, microsecond=0)
            return (turn - now).total_seconds()
        try:
            here = now.astimezone(ZoneInfo(self.time_zone))
        except (KeyError, ValueError, OSError):
            here = now
        turn = (here + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return (turn.astimezone(UTC) - here.astimezone(UTC)).total_seconds()

    # --- the token --------------------------------------------------------------------

    def _use_token(self) -> str:
        """Make the token current before a call; the exchange itself makes no second request."""
        _ = self._sdk.crm.objects.basic_api
        if not self.is_oauth:
            token = self._auth["access_token"].reveal().strip()
            if token != self._token:
                self._token = token
                self._pool.use_token(token)
            return token
        with self._renewing:
            if self._token is None or self._fresh_until is None or self._now() >= self._fresh_until:
                self._refresh()
            assert self._token is not None  # noqa: S101  (_refresh sets it or raises)
            return self._token

    def _renew(self, refused: str) -> bool:
        """Put another token in place of a refused one; False if there is no other."""
        if not self.is_oauth:
            # The secret may have been rotated while the call was in flight.
            return self._use_token() != refused
        with self._renewing:
            if self._token == refused:
                self._refresh()
        return True

    def _refresh(self) -> None:
        configured = self._auth["refresh_token"].reveal().strip()
        if self._refresh_token is None or self._refresh_token[0] != configured:
            self._refresh_token = (configured, configured)
        form = [
            ("grant_type", "refresh_token"),
            ("client_id", self._auth["client_id"].reveal().strip()),
            ("client_secret", self._auth["client_secret"].reveal().strip()),
            ("refresh_token", self._refresh_token[1]),
        ]
        endpoint = CALLS["token"]
        asked_at = self._now()
        try:
            answer = self._call(endpoint, lambda: self._exchange(endpoint, endpoint.path, form=form))
        except (RejectedError, MissingError) as exc:
            raise AuthError(f"HubSpot refused the refresh token: connect the app again ({exc})") from exc
        token, life = answer.body.get("access_token"), answer.body.get("expires_in")
        if not isinstance(token, str) or not token or isinstance(life, bool) or not isinstance(life, int | float | str):
            raise ContractError("HubSpot's token answer lacks access_token or expires_in")
        try:
            self._fresh_until = asked_at + timedelta(seconds=float(life) * 0.8)
        except (ValueError, OverflowError) as exc:
            raise ContractError("HubSpot's token answer has an unfit expires_in") from exc
        self._token = token
        self._pool.use_token(token)
        rotated = answer.body.get("refresh_token")
        if isinstance(rotated, str) and rotated:
            self._refresh_token = (configured, rotated)


# --- settings -----------------------------------------------------------------------------------


def _check_auth(settings: ConnectionSettings) -> None:
    keys = frozenset(settings.auth)
    if keys in (_STATIC, _OAUTH):
        return
    known = "either access_token, or client_id, client_secret and refresh_token"
    unknown = sorted(keys - _STATIC - _OAUTH)
    if unknown:
        raise ConfigError(f"connection {settings.name}: unknown auth key {unknown[0]!r}; HubSpot takes {known}")
    if "access_token" in keys:
        raise ConfigError(f"connection {settings.name}: auth has both an access_token and OAuth keys; give {known}")
    missing = ", ".join(sorted(_OAUTH - keys)) if keys else "access_token"
    raise ConfigError(f"connection {settings.name}: auth lacks {missing}; HubSpot takes {known}")


def _base_url(settings: ConnectionSettings) -> str:
    url = (settings.base_url or DEFAULT_URL).rstrip("/")
    parts = urlsplit(url)
    is_loopback = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback)):
        raise ConfigError(f"connection {settings.name}: base_url must be https, or http on this machine")
    return url


# --- answers and errors -------------------------------------------------------------------------


def _answer(endpoint: Endpoint, status: int, raw: bytes) -> Answer:
    told = f"HubSpot answered {status} to {endpoint.method} {endpoint.path}"
    if status not in endpoint.good:
        raise ContractError(f"{told}, which its contract does not know")
    if not raw.strip():
        if 204 in endpoint.good:
            return Answer(status)
        raise ContractError(f"{told} without a body")
    try:
        body = json.loads(raw)
    except ValueError:
        raise ContractError(f"{told} with something that is not JSON") from None
    if not isinstance(body, dict):
        raise ContractError(f"{told} with JSON that is no object")
    return Answer(status, body)


def _broken(exc: HTTPError, endpoint: Endpoint) -> Exception:
    """What went wrong below HTTP, and whether the request may have arrived."""
    cause = exc.reason if isinstance(exc, MaxRetryError) and exc.reason is not None else exc
    told = f"no answer from HubSpot to {endpoint.method} {endpoint.path} ({type(cause).__name__})"
    if isinstance(cause, SSLError):
        return ContractError(told)
    is_sent = not isinstance(cause, NewConnectionError | ConnectTimeoutError | NameResolutionError)
    return TransientError(told, is_sent=is_sent)


def _refusal(exc: BaseException | None, endpoint: Endpoint) -> tuple[int, dict[str, Any], bytes]:
    """Status, headers and body out of any of the SDK's ApiExceptions; other exceptions go on."""
    status = getattr(exc, "status", None)
    if exc is None or not isinstance(status, int):
        raise exc if exc is not None else ContractError("HubSpot's client failed without a status")
    if status == 0:
        raise ContractError(f"no trusted connection to HubSpot for {endpoint.method} {endpoint.path}") from None
    body = getattr(exc, "body", None) or b""
    raw = body.encode() if isinstance(body, str) else bytes(body)
    return status, dict(getattr(exc, "headers", None) or {}), raw


def _policy(body: object) -> str:
    """Which quota ran out: TEN_SECONDLY_ROLLING, SECONDLY, DAILY, or empty if nothing tells."""
    if not isinstance(body, Mapping):
        return ""
    name = body.get("policyName")
    if isinstance(name, str) and name:
        return name.upper()
    is_about_rates = body.get("errorType") == "RATE_LIMIT" or body.get("category") == "RATE_LIMITS"
    message = str(body.get("message", "")).lower()
    for word, policy in (("ten_secondly", "TEN_SECONDLY_ROLLING"), ("secondly", "SECONDLY"), ("daily", "DAILY")):
        if f"{word}" in message and "limit" in message:
            return policy
    return "UNNAMED" if is_about_rates else ""


def _seconds(raw: str | None) -> float | None:
    try:
        found = float(raw) if raw else None
    except ValueError:
        return None
    return found if found is not None and 0 <= found < 10_000_000 else None


def _scopes(body: object) -> tuple[str, ...]:
    contexts = [dig(body, "context"), *(dig(each, "context") for each in _list(dig(body, "errors")))]
    scopes = [each for context in contexts for each in _list(dig(context, "requiredGranularScopes"))]
    return tuple(dict.fromkeys(each for each in scopes if isinstance(each, str) and _CODE.fullmatch(each)))


def existing_id(body: object) -> str | None:
    """The id of the record that a conflict came across, which only the prose of the error names."""
    found = re.search(r"Existing ID: (\d{1,20})\b", str(dig(body, "message")))
    return found[1] if found else None


def _correlation(headers: Mapping[str, str]) -> list[str]:
    found = headers.get("x-hubspot-correlation-id", "")
    return [f"correlation {found}"] if re.fullmatch(r"[A-Za-z0-9-]{1,64}", found) else []


def _cursor(body: object) -> str | None:
    after = dig(body, "paging", "next", "after")
    return str(after) if isinstance(after, str | int) and str(after) else None


def _match(rows: Sequence[Row], ids: Sequence[str], found: dict[str, Row]) -> None:
    """Put each row under the id that was asked for: its own, or one that it took over in a merge."""
    asked = set(ids)
    strangers = []
    for row in rows:
        if str(row.get("id")) in asked:
            found[str(row.get("id"))] = row
        else:
            strangers.append(row)
    for row in strangers:
        for old in asked.intersection(re.split(r"[;,\s]+", str(dig(row, "properties", MERGED)))):
            found.setdefault(old, row)
    missing = asked - found.keys()
    if len(strangers) == 1 and len(missing) == 1:
        found[missing.pop()] = strangers[0]


def _named(error: Row) -> list[str]:
    """The ids that an error of a batch is about."""
    context = error.get("context")
    return [
        str(each)
        for key in ("fromObjectId", "ids", "id")
        for each in (_list(dig(context, key)) or [dig(context, key)])
        if isinstance(each, str | int)
    ]


def _take_bonds(row: Row, bonds: Bonds) -> None:
    for target in rows_of(row, "to"):
        raw = target.get("toObjectId", target.get("id"))
        try:
            # A number on the wire, a string in the SDK.
            other = identifier(raw, "toObjectId")
        except UnfitValueError:
            other = None
        if other is None:
            bonds.refused.append(str(raw)[:40])
            continue
        types = {
            (str(each.get("category")), int(str(each.get("typeId"))))
            for each in rows_of(target, "associationTypes", is_required=False)
            if str(each.get("typeId")).isdigit()
        }
        bonds.to[other] = bonds.to.get(other, frozenset()) | types
