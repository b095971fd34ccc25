"""One Salesforce org over HTTP: tokens, one exchange at a time, answers checked, errors translated.

The only file that knows simple-salesforce and requests. It decides nothing about records: rows
go out as they came. The token is ours, not the library's: the library repeats a refused request
without the caller's headers, so that a conditional write would silently become an unconditional
one; here the whole operation is repeated, once, with a fresh token.

One client belongs to one worker; ``requests.Session`` is not made for threads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote, urlsplit

import jwt
import requests
from requests.adapters import HTTPAdapter
from simple_salesforce.api import Salesforce
from simple_salesforce.exceptions import SalesforceError
from urllib3.exceptions import MaxRetryError, NewConnectionError

from syncd.connector import Repeat, Secret, Wire
from syncd.core.mapping import UnfitValueError, instant
from syncd.core.model import Json
from syncd.errors import (
    AuthError,
    ConfigError,
    ContractError,
    DelayedError,
    MissingError,
    RateLimitedError,
    RejectedError,
    StaleVersionError,
    SyncdError,
    TransientError,
)

T = TypeVar("T")
Row = Mapping[str, object]

_LOOPBACK: Final = ("127.0.0.1", "localhost")
_TIMEOUT: Final = (5.0, 60.0)
_JWT_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_ID: Final = re.compile(r"[A-Za-z0-9]{15}(?:[A-Za-z0-9]{3})?")
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{1,80}")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,120}")
_NEXT: Final = re.compile(r"/services/data/v\d{2,3}\.\d/query(?:All)?/[A-Za-z0-9_~=-][A-Za-z0-9_.~=-]*")
_USAGE: Final = re.compile(r"(?:^|[;,\s])api-usage=(\d+)/(\d+)")
_WHO: Final = re.compile(r"/id/(00D[A-Za-z0-9]{12,15})/(005[A-Za-z0-9]{12,15})")

#: The org has no such object or field, or hides it: asking in another way is of no use.
_UNKNOWN: Final = ("INVALID_TYPE", "INVALID_FIELD")
#: Of the daily allowance, what polling may use; a backfill stops earlier (contract, 4.1).
POLLING_SHARE: Final = 0.9
BACKFILL_SHARE: Final = 0.7
#: The allowance rolls, so after this long one call is let through to see where it stands.
_LOOK_AGAIN: Final = timedelta(minutes=15)
#: After a refusal, one look so often: the window may have moved, or an admin bought more.
_REFUSED_SECONDS: Final = 120.0


def normal_id(raw: object, field: str) -> str:
    """A record id in its 18 character form. Raises UnfitValueError for anything else.

    The library joins ids into URLs with ``urljoin``: an unchecked one can send the token to a
    stranger's host.
    """
    if not isinstance(raw, str) or not _ID.fullmatch(raw):
        raise UnfitValueError(f"{field}: not a Salesforce id")
    if len(raw) == 18:
        return raw
    blocks = (raw[at : at + 5] for at in (0, 5, 10))
    sums = (sum(1 << k for k, ch in enumerate(block) if "A" <= ch <= "Z") for block in blocks)
    return raw + "".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"[each] for each in sums)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why Salesforce refused one record: its code, the fields it names, the duplicates it found."""

    code: str
    fields: tuple[str, ...] = ()
    matches: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.code}: {', '.join(self.fields)}" if self.fields else self.code


#: Our own word for a write that was not sent a second time, see ``Wire.call``.
DELAYED: Final = Trouble("DELAYED")


@dataclass(frozen=True, slots=True)
class Result:
    """How one record of a write went. ``is_known`` is false if the answer did not tell."""

    id: str | None
    trouble: Trouble | None = None
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class Rows:
    """One page of a query. ``at`` is the server's own time, if it said so."""

    rows: Sequence[Row]
    next_url: str | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """One statement. ``is_all`` shows rows in the recycle bin too."""

    soql: str
    is_all: bool = True


class RefusedError(RejectedError):
    """Salesforce refused a request for good, and said why."""

    def __init__(self, what: str, trouble: Trouble, status: int):
        super().__init__(f"{what}: refused with {status} {trouble}")
        self.trouble = trouble


class _GoneError(MissingError):
    def __init__(self, what: str, trouble: Trouble):
        super().__init__(f"{what}: not found ({trouble})")
        self.trouble = trouble


class _ExpiredError(AuthError):
    """The token is no longer taken: a fresh one may be."""


_PERMANENT: Final = (RefusedError, _GoneError)


class _Adapter(HTTPAdapter):
    """Sets the time-outs that the library does not, shows every answer, speaks plain HTTP where told."""

    def __init__(self, saw: Callable[[requests.Response], None], *, is_plain: bool = False) -> None:
        self._saw = saw
        self._is_plain = is_plain
        super().__init__(max_retries=0)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        if self._is_plain and request.url:
            # The library forces https, whatever the instance URL says (contract, 1.1 and 1.10).
            request.url = "http://" + request.url.removeprefix("https://")
        kwargs["timeout"] = kwargs.get("timeout") or _TIMEOUT
        response = super().send(request, **kwargs)
        self._saw(response)
        return response


class _Session(requests.Session):
    """Follows no redirect (a 302 would turn a PATCH into a GET) and takes nothing from the environment."""

    def request(self, method: str, url: str, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        kwargs["allow_redirects"] = False
        return super().request(method, url, **kwargs)


class Client:
    """One org, one user, one pinned API version."""

    def __init__(
        self,
        *,
        login_url: str,
        base_url: str | None,
        auth: Mapping[str, Secret],
        version: str,
        wire: Wire,
        now: Callable[[], datetime],
    ) -> None:
        self._login_url = origin(login_url, "login_url")
        self._base_url = origin(base_url, "base_url") if base_url else None
        self._auth = auth
        self._version = version
        self._wire = wire
        self._now = now
        self._http = _Session()
        self._http.trust_env = False
        self._http.headers["Sforce-Call-Options"] = "client=propstreet-sync"
        self._http.mount("https://", _Adapter(self._saw))
        self._http.mount("http://", _Adapter(self._saw))
        self._headers: Mapping[str, str] = {}
        self._status = 0
        self._usage: tuple[int, int, datetime] | None = None
        #: Of the daily allowance, what our calls may use up.
        self.share = POLLING_SHARE
        self._sf: Salesforce | None = None
        self._who = ""

    def close(self) -> None:
        self._http.close()

    # --- who we are -------------------------------------------------------------------

    def org_id(self) -> str:
        """The org's id: from the token answer, else from the user info. Raises AuthError, ContractError."""
        self._session()
        if found := _WHO.search(self._who):
            return normal_id(found[1], "organization_id")
        answer = self._call(lambda sf: sf.oauth2("userinfo"), "userinfo")
        try:
            return normal_id(answer.get("organization_id") if isinstance(answer, dict) else None, "organization_id")
        except UnfitValueError as exc:
            raise ContractError("userinfo names no organization_id") from exc

    # --- reading ----------------------------------------------------------------------

    def query(self, query: Query) -> Rows:
        """The first page of a statement."""
        return self._call(
            lambda sf: self._rows(sf.query(query.soql, include_deleted=query.is_all), "query"),
            "query",
        )

    def more(self, next_url: str) -> Rows:
        """The page behind ``Rows.next_url``. Raises RefusedError if the cursor is gone."""
        return self._call(lambda sf: self._rows(sf.query_more(next_url, identifier_is_url=True), "query more"), "query")

    def more_many(self, next_urls: Mapping[str, str]) -> Mapping[str, Rows]:
        """The pages behind several ``Rows.next_url``, all in one call; at most five.

        A page that the composite refuses is left out: ``more`` tells why, or gives it.
        """

        def answer(sf: Salesforce) -> Mapping[str, Rows]:
            found: dict[str, Rows] = {}
            for name, (status, body) in self._composite(sf, next_urls).items():
                if status < 300:
                    found[name] = self._rows(body, f"page of {name}")
                elif not isinstance(error := self._translated(status, body, f"page of {name}"), _PERMANENT):
                    raise error
            return found

        try:
            return self._call(answer, "composite")
        except _PERMANENT:
            return {}

    def query_many(self, queries: Mapping[str, Query]) -> Mapping[str, Rows]:
        """The first page of each statement, all in one call; at most five."""
        if len(queries) == 1:
            return {name: self.query(query) for name, query in queries.items()}

        def answer(sf: Salesforce) -> Mapping[str, Rows]:
            parts = self._composite(sf, {name: self._path(query) for name, query in queries.items()})
            found: dict[str, Rows] = {}
            for name, (status, body) in parts.items():
                if status >= 300:
                    raise self._translated(status, body, f"query of {name}")
                found[name] = self._rows(body, f"query of {name}")
            return found

        return self._call(answer, "composite")

    def look_up(self, wanted: Mapping[str, str | Query]) -> Mapping[str, Any]:
        """Describes (by object name) and small queries in one call; what the org refuses is None.

        A part that the composite refuses is asked for by itself before it is given up, since
        which resources a composite takes is not spelled out; except one of which the org says
        that it has no such object or field.
        """
        paths = {
            name: self._path(each) if isinstance(each, Query) else f"{self._root()}/sobjects/{each}/describe"
            for name, each in wanted.items()
        }
        try:
            parts = self._call(lambda sf: self._composite(sf, paths), "composite") if len(wanted) > 1 else {}
        except (RejectedError, MissingError):
            parts = {}
        found: dict[str, Any] = {}
        for name, each in wanted.items():
            status, body = parts.get(name, (400, None))
            if status == 200:
                found[name] = body
            else:
                found[name] = None if _trouble(body).code in _UNKNOWN else self._alone(each)
        return found

    def _alone(self, wanted: str | Query) -> Any:
        try:
            if isinstance(wanted, Query):
                return {"records": self.query(wanted).rows}
            return self._call(lambda sf: sf.restful(f"sobjects/{wanted}/describe"), f"describe {wanted}")
        except (RejectedError, MissingError):
            return None

    # --- writing ----------------------------------------------------------------------

    def save(
        self, sobject: str, records: Sequence[Mapping[str, Json]], *, is_new: bool, key: str | None
    ) -> Sequence[Result]:
        """Write up to 200 records in one call, each for itself; one result each, in order.

        New ones are upserted by the external id field ``key``; without one they are inserted. A lost
        answer raises UnknownOutcomeError: sent again, the call would undo what somebody edited
        meanwhile. Raises RefusedError if the call as a whole was refused.
        """
        path = f"composite/sobjects/{sobject}/{key}" if is_new and key else "composite/sobjects"
        body = {
            "allOrNone": False,
            "records": [{"attributes": {"type": sobject}, **record} for record in records],
        }
        method = "POST" if is_new and not key else "PATCH"
        try:
            return self._call(
                lambda sf: _results(sf.restful(path, method=method, data=_dumps(body)), len(records)),
                f"save {sobject}",
                effect="write",
                repeat="never",
            )
        except DelayedError:
            return [Result(None, DELAYED)] * len(records)
        except _GoneError as exc:
            # Said of an external id field that was hidden from us (contract, 7.2), not of a record.
            raise RefusedError(f"save {sobject}", exc.trouble, 404) from exc

    def update_one(self, sobject: str, id_: str, body: Mapping[str, Json], *, unmodified_since: str | None) -> Result:
        """Write one record, only if it was not modified after ``unmodified_since``.

        Trouble ``PRECONDITION`` means that it was. The vendor compares whole seconds.
        """
        headers = {"If-Unmodified-Since": http_date(unmodified_since)} if unmodified_since else {}
        return self._one(
            lambda sf: sf.restful(f"sobjects/{sobject}/{id_}", method="PATCH", data=_dumps(body), headers=headers),
            f"update {sobject} {id_}",
            id_,
            repeat="always" if unmodified_since else "never",
        )

    def delete(self, sobject: str, ids: Sequence[str]) -> Sequence[Result]:
        """Put up to 200 records of one object into the recycle bin; one result each, in order."""
        if len(ids) == 1:
            id_ = ids[0]
            return [
                self._one(
                    lambda sf: sf.restful(f"sobjects/{sobject}/{id_}", method="DELETE"),
                    f"delete {sobject} {id_}",
                    id_,
                    repeat="never",
                )
            ]
        params = {"ids": ",".join(ids), "allOrNone": "false"}
        try:
            return self._call(
                lambda sf: _results(sf.restful("composite/sobjects", params=params, method="DELETE"), len(ids)),
                f"delete {sobject}",
                effect="write",
                repeat="never",
            )
        except DelayedError:
            return [Result(id_, DELAYED) for id_ in ids]

    def insert(self, path: str, body: Mapping[str, Json]) -> Result:
        """Insert one set-up record (a custom field, a permission); never repeated blindly."""
        return self._one(
            lambda sf: sf.restful(path, method="POST", data=_dumps(body)), f"insert {path}", None, repeat="unsent"
        )

    def _one(
        self, send: Callable[[Salesforce], object], what: str, id_: str | None, *, repeat: Repeat = "always"
    ) -> Result:
        try:
            self._call(send, what, effect="write", repeat=repeat)
        except (RefusedError, _GoneError) as exc:
            return Result(id_, exc.trouble)
        except StaleVersionError:
            return Result(id_, Trouble("PRECONDITION"))
        except DelayedError:
            return Result(id_, DELAYED)
        return Result(id_)

    # --- one exchange -----------------------------------------------------------------

    def _spare(self) -> None:
        """Raises RateLimitedError if more than our share of the daily allowance is used up."""
        if self._usage is None:
            return
        used, total, seen_at = self._usage
        if used >= self.share * total and self._now() - seen_at < _LOOK_AGAIN:
            raise RateLimitedError(
                f"{used} of {total} daily API calls are used; the rest is left to people",
                bucket="daily",
                pause_seconds=_LOOK_AGAIN.total_seconds(),
                is_daily=True,
            )

    def _call(
        self,
        send: Callable[[Salesforce], T],
        what: str,
        *,
        effect: Literal["read", "write"] = "read",
        repeat: Repeat = "always",
    ) -> T:
        """One operation, and once more as a whole, headers and all, if its token was no longer taken."""
        try:
            return self._once(send, what, effect, repeat)
        except _ExpiredError:
            # A refused token means that nothing took effect.
            self._sf = None
            return self._once(send, what, effect, repeat)

    def _once(self, send: Callable[[Salesforce], T], what: str, effect: Literal["read", "write"], repeat: Repeat) -> T:
        sf = self._session()

        def exchange() -> T:
            self._spare()
            return self._guarded(lambda: send(sf), what)

        return self._wire.call(exchange, effect=effect, repeat=repeat)

    def _guarded(self, send: Callable[[], T], what: str) -> T:
        """Errors of the libraries end here; not chained, since theirs quote URLs and so people's data."""
        try:
            return send()
        except SalesforceError as exc:
            raise self._translated(exc.status, exc.content, what) from None
        except requests.exceptions.JSONDecodeError:
            # The library parses the body of a 401 too, and a proxy's or a maintenance page is HTML.
            if self._status == 401:
                raise _ExpiredError(f"{what}: the token is not taken") from None
            raise ContractError(f"{what}: the answer is not JSON") from None
        except requests.exceptions.RequestException as exc:
            raise TransientError(f"{what}: {type(exc).__name__}", is_sent=_is_sent(exc)) from None
        except (ValueError, TypeError, RecursionError):
            # TypeError: the library asks bare JSON scalars for their length.
            raise ContractError(f"{what}: the answer is not usable JSON") from None

    def _translated(self, status: int, body: object, what: str) -> SyncdError:
        trouble = _trouble(body)
        code = trouble.code
        if status == 401 or code in ("INVALID_SESSION_ID", "InvalidSessionId"):
            return _ExpiredError(f"{what}: the token is not taken ({code})")
        if status == 429:
            return RateLimitedError(f"{what}: too many calls", pause_seconds=self._retry_after())
        if code == "REQUEST_LIMIT_EXCEEDED":
            # Comes as a 403 and without Retry-After (contract, 4.1): minutes, not seconds.
            return RateLimitedError(f"{what}: {code}", bucket="daily", pause_seconds=_REFUSED_SECONDS, is_daily=True)
        if status >= 500 or status == 408:
            return TransientError(f"{what}: {status} {code}", is_sent=True, pause_seconds=self._retry_after())
        if code == "QUERY_TIMEOUT":
            return TransientError(f"{what}: {code}")
        if status == 403:
            return AuthError(f"{what}: forbidden ({code}); give the integration user its permission set")
        if status == 404:
            return _GoneError(what, trouble)
        if status == 410:
            return ContractError(f"{what}: API version {self._version} is retired; set options.api_version")
        if status == 412:
            return StaleVersionError(f"{what}: modified since it was read")
        if status == 300 or 400 <= status < 500:
            return RefusedError(what, trouble, status)
        return ContractError(f"{what}: unexpected status {status}")

    def _saw(self, response: requests.Response) -> None:
        self._headers = response.headers
        self._status = response.status_code
        if found := _USAGE.search(response.headers.get("Sforce-Limit-Info", "")):
            used, total = int(found[1]), int(found[2])
            self._usage = (used, total, self._now())
            self._wire.observe("daily", remaining=max(0, total - used), reset_seconds=86_400)

    def _retry_after(self) -> float | None:
        raw = self._headers.get("Retry-After", "")
        return float(raw) if raw.isdigit() else None

    def _server_time(self) -> datetime | None:
        try:
            found = parsedate_to_datetime(self._headers.get("Date", ""))
        except ValueError:
            return None
        return found.astimezone(UTC) if found.tzinfo else None

    def _rows(self, answer: Any, what: str) -> Rows:
        records = answer.get("records") if isinstance(answer, dict) else None
        if not isinstance(records, list) or not all(isinstance(row, dict) for row in records):
            raise ContractError(f"{what}: no list of records")
        next_url = answer.get("nextRecordsUrl")
        if not next_url and answer.get("done") is False:
            raise ContractError(f"{what}: neither done nor a next page")
        if next_url and not (isinstance(next_url, str) and _NEXT.fullmatch(next_url)):
            # The library glues it to the host name, so a strange one could name another host.
            raise ContractError(f"{what}: nextRecordsUrl is not a query path")
        return Rows(records, next_url or None, self._server_time())

    def _root(self) -> str:
        return f"/services/data/v{self._version}"

    def _path(self, query: Query) -> str:
        return f"{self._root()}/{'queryAll' if query.is_all else 'query'}/?q={quote(query.soql, safe='')}"

    def _composite(self, sf: Salesforce, paths: Mapping[str, str]) -> Mapping[str, tuple[int, object]]:
        body = {
            "allOrNone": False,
            "compositeRequest": [
                {"method": "GET", "url": path, "referenceId": name} for name, path in sorted(paths.items())
            ],
        }
        answer: Any = sf.restful("composite", method="POST", data=_dumps(body))
        parts = answer.get("compositeResponse") if isinstance(answer, dict) else None
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ContractError("composite: no list of responses")
        found: dict[str, tuple[int, object]] = {}
        for part in parts:
            name, status = part.get("referenceId"), part.get("httpStatusCode")
            if name in paths and isinstance(status, int):
                found[name] = (status, part.get("body"))
        if set(found) != set(paths):
            raise ContractError("composite: a response is missing")
        return found

    # --- the token --------------------------------------------------------------------

    def _session(self) -> Salesforce:
        if self._sf is None:
            answer = self._wire.call(lambda: self._guarded(self._token, "token"), effect="read")
            before, self._who = _WHO.search(self._who), str(answer.get("id") or "")
            now = _WHO.search(self._who)
            if before is not None and now is not None and before[1] != now[1]:
                raise ConfigError("a new token of this credential belongs to another org than the one before")
            self._sf = Salesforce(
                session_id=answer["access_token"],
                instance_url=self._instance(answer.get("instance_url")),
                session=self._http,
                version=self._version,
                parse_float=Decimal,
                object_pairs_hook=dict,
            )
        return self._sf

    def _instance(self, named: object) -> str:
        """The API host: what the token answer names, else the configured one.

        A token that was issued on this machine never leaves it.
        """
        found = self._base_url or self._login_url
        if isinstance(named, str) and named and (_is_local(named) or not _is_local(self._login_url)):
            found = origin(named, "instance_url of the token answer")
        parts = urlsplit(found)
        if (parts.hostname or "").endswith(".lightning.force.com"):
            raise ConfigError("a lightning.force.com host takes no API calls: set login_url to the My Domain host")
        is_plain = parts.scheme == "http" or self._login_url == f"http://{parts.netloc}"
        if is_plain:
            self._http.mount(f"https://{parts.netloc}/", _Adapter(self._saw, is_plain=True))
        return found

    def _token(self) -> Mapping[str, Any]:
        client_id = self._auth["client_id"].reveal()
        basic: tuple[str, str] | None = None
        form = {"grant_type": "client_credentials"}
        if "client_secret" in self._auth:
            basic = (client_id, self._auth["client_secret"].reveal())
        else:
            form = {"grant_type": _JWT_GRANT, "assertion": self._assertion(client_id)}
        response = self._http.post(f"{self._login_url}/services/oauth2/token", data=form, auth=basic)
        if response.status_code != 200:
            raise self._token_refusal(response)
        answer = response.json()
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
            raise ContractError("the token answer holds no access_token")
        return dict(answer)

    def _token_refusal(self, response: requests.Response) -> SyncdError:
        if response.status_code == 429:
            return RateLimitedError("token: too many logins", pause_seconds=self._retry_after())
        if response.status_code >= 500:
            return TransientError(f"token: {response.status_code}", pause_seconds=self._retry_after())
        if response.status_code < 400:
            return ContractError(f"token: unexpected status {response.status_code}; is login_url the My Domain host?")
        try:
            body = response.json()
        except ValueError:
            body = None
        code = _text(body.get("error"), _CODE) if isinstance(body, dict) else ""
        return AuthError(f"token refused: {response.status_code} {code}".rstrip())

    def _assertion(self, client_id: str) -> str:
        """A signed claim to be the user. The audience is login or test even for a My Domain host (PR-711)."""
        host = urlsplit(self._login_url).hostname or ""
        is_sandbox = ".sandbox." in host or host.startswith("test.")
        claims = {
            "iss": client_id,
            "sub": self._auth["username"].reveal(),
            "aud": f"https://{'test' if is_sandbox else 'login'}.salesforce.com",
            "exp": int((self._now() + timedelta(minutes=3)).timestamp()),
        }
        try:
            return jwt.encode(claims, self._auth["private_key"].reveal(), algorithm="RS256")
        except (ValueError, TypeError, jwt.PyJWTError):
            raise ConfigError("auth.private_key is not an RSA private key in PEM form") from None


def origin(url: str, key: str) -> str:
    """Scheme and host of a URL; plain http only to this machine. Raises ConfigError."""
    parts = urlsplit(url)
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not is_safe or not parts.hostname or "@" in parts.netloc:
        raise ConfigError(f"{key} must be https://HOST (http only for 127.0.0.1)")
    return f"{parts.scheme}://{parts.netloc}"


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


def http_date(stamp: str) -> str:
    """A stamp as conditional headers want it, which know whole seconds only."""
    found = instant(stamp, "LastModifiedDate")
    if found is None:
        raise UnfitValueError("LastModifiedDate: empty")
    return format_datetime(found.replace(microsecond=0), usegmt=True)


def _dumps(body: object) -> str:
    return json.dumps(body, allow_nan=False)


def _results(answer: object, count: int) -> Sequence[Result]:
    """One result per record, in order. Those that the answer leaves out are unknown."""
    if answer is not None and not isinstance(answer, list):
        raise ContractError("collections: no list of results")
    found = [_result(each) for each in (answer or ())][:count]
    return found + [Result(None, is_known=False)] * (count - len(found))


def _result(answer: object) -> Result:
    if not isinstance(answer, dict):
        return Result(None, is_known=False)
    match answer.get("success"):
        case True:
            try:
                return Result(normal_id(answer.get("id"), "id"))
            except UnfitValueError:
                return Result(None)
        case False:
            return Result(None, _trouble(answer.get("errors")))
    return Result(None, is_known=False)


def _trouble(body: object) -> Trouble:
    """The first error of an answer: rows say ``errorCode``, collections ``statusCode`` (contract, 4.2)."""
    first = body[0] if isinstance(body, list) and body else body
    if not isinstance(first, dict):
        return Trouble("UNKNOWN_ERROR")
    code = _text(first.get("errorCode") or first.get("statusCode") or first.get("error"), _CODE)
    names = first.get("fields")
    fields = tuple(filter(None, (_text(name, _NAME) for name in names))) if isinstance(names, list) else ()
    return Trouble(code or "UNKNOWN_ERROR", fields, tuple(sorted(set(_matches(first)))))


def _text(raw: object, pattern: re.Pattern[str]) -> str:
    return raw if isinstance(raw, str) and pattern.fullmatch(raw) else ""


def _matches(error: Mapping[str, object]) -> Iterator[str]:
    """Ids of the records that a duplicate rule found (``duplicateResult.matchResults[].matchRecords[]``)."""
    result = error.get("duplicateResult") or error.get("duplicateResut")
    for found in _list(result, "matchResults"):
        for match in _list(found, "matchRecords"):
            record = match.get("record") if isinstance(match, dict) else None
            holder = record if isinstance(record, dict) else match
            raw = (holder.get("Id") or holder.get("id")) if isinstance(holder, dict) else None
            if isinstance(raw, str) and _ID.fullmatch(raw):
                yield normal_id(raw, "Id")


def _list(holder: object, name: str) -> Sequence[object]:
    found = holder.get(name) if isinstance(holder, dict) else None
    return found if isinstance(found, list) else ()


def _is_sent(exc: requests.exceptions.RequestException) -> bool:
    """Whether the request may have arrived: only a connection that never came about says no."""
    if isinstance(exc, requests.exceptions.ConnectTimeout):
        return False
    cause = exc.args[0] if exc.args else None
    return not (isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError))
