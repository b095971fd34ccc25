"""One Propstreet account over HTTP: tokens, one exchange at a time, paging, errors translated.

The only file that knows httpx. It decides nothing about records: rows go out as they came, with
the entity tag of the header put into the body where a single resource was answered. Statuses are
told apart by number, never by the ``type`` of the problem (contract, 1.5: three styles of it).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

import httpx

from syncd.connector import Repeat, Secret, Wire
from syncd.core.model import Json
from syncd.errors import (
    AuthError,
    ConfigError,
    ContractError,
    MissingError,
    RateLimitedError,
    RejectedError,
    StaleVersionError,
    TransientError,
)

Row = Mapping[str, object]
Method = Literal["GET", "POST", "PATCH", "DELETE"]

DEFAULT_URL: Final = "https://app.propstreet.com"
PAGE_SIZE: Final = 500
_API: Final = "/api/v1"
_SCOPE: Final = "api:public"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_FIELD: Final = re.compile(r"[A-Za-z$][A-Za-z0-9_.\[\]$]{0,80}")


class RefusedError(RejectedError):
    """Propstreet refused a request for good; ``status`` and the names of the fields say why."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class RaceError(StaleVersionError):
    """A PATCH or DELETE came back with 409: a lost race as a rule, else a closed project."""


class ForbiddenError(AuthError):
    """403: the account may not do this."""


class _ExpiredTokenError(Exception):
    """401: never leaves this file."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of a list."""

    rows: Sequence[Row]
    is_last: bool


@dataclass(slots=True)
class _Token:
    text: str
    renew_at: datetime | None


def segment(id_: str) -> str:
    """One id as a path segment: ids are opaque and external ones may hold anything."""
    return quote(id_, safe="")


class Client:
    """One credential at one host. Belongs to one worker."""

    def __init__(
        self, base_url: str | None, auth: Mapping[str, Secret], wire: Wire, now: Callable[[], datetime]
    ) -> None:
        self._wire = wire
        self._now = now
        self._auth = _checked_auth(auth)
        self._root = _root(base_url or DEFAULT_URL)
        self._token: _Token | None = None
        # A proxy of the environment must not get between us and a sandbox on this machine.
        self._http = httpx.Client(
            timeout=_TIMEOUT, follow_redirects=False, trust_env=urlsplit(self._root).hostname not in _LOOPBACK
        )

    @property
    def is_personal(self) -> bool:
        """True with a personal access token, which has a tenth of the quota."""
        return "token" in self._auth

    def identity(self) -> str:
        """Who we are, as far as the API tells: a digest of what names the credential, never of what it hides."""
        if self.is_personal:
            return "pat-" + hashlib.sha256(self._auth["token"].reveal().encode()).hexdigest()[:24]
        return "client-" + hashlib.sha256(self._auth["client_id"].reveal().encode()).hexdigest()[:24]

    def close(self) -> None:
        self._http.close()

    # --- requests ---------------------------------------------------------------------

    def get(self, path: str, params: Mapping[str, str] | None = None) -> Row:
        """One resource. Raises MissingError."""
        row = self._call("GET", path, params=list((params or {}).items()))
        if row is None:
            raise ContractError(f"GET {_shape(path)}: an answer without a body")
        return row

    def rows(self, path: str) -> Sequence[Row]:
        """A list that takes no parameters and may come without any word on paging. Raises MissingError."""
        return _page(self.get(path), path, is_strict=False)[0]

    def pages(self, path: str, params: Mapping[str, str]) -> Iterator[Listed]:
        """A list, page by page, deleted rows included.

        All parameters go with the cursor (14.17). More without a cursor, or a cursor that comes
        back, raises ContractError: an end that is not one must not pass for the end (14.1).
        """
        fixed = [*params.items(), ("page_size", str(PAGE_SIZE))]
        cursor: str | None = None
        seen: set[str] = set()
        while True:
            body = self.get(path, dict(fixed if cursor is None else [*fixed, ("cursor", cursor)]))
            rows, cursor = _page(body, path, is_strict=True)
            if cursor is not None:
                if cursor in seen:
                    raise ContractError(f"GET {_shape(path)}: a cursor came back")
                seen.add(cursor)
            yield Listed(rows, cursor is None)
            if cursor is None:
                return

    def send(
        self,
        method: Method,
        path: str,
        body: Mapping[str, Json] | None = None,
        *,
        etag: str | None = None,
        key: str | None = None,
        repeat: Repeat = "always",
    ) -> Row | None:
        """One write; its answer, None if it came without one.

        ``etag`` goes back byte for byte, a weak one too (contract, 11). Raises StaleVersionError
        for 412 and, but on POST, for 409; RefusedError for the rest.
        """
        headers = {}
        if etag is not None:
            headers["If-Match"] = etag
        if key is not None:
            headers["Idempotency-Key"] = key
        return self._call(method, path, body=body, headers=headers, repeat=repeat)

    # --- one exchange -----------------------------------------------------------------

    def _call(
        self,
        method: Method,
        path: str,
        *,
        params: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Json] | None = None,
        headers: Mapping[str, str] | None = None,
        repeat: Repeat = "always",
    ) -> Row | None:
        """A request with a good token: after a 401 once more with a fresh one, which did no harm before."""
        for is_fresh in (False, True):
            token = self._bearer()
            try:
                return self._wire.call(
                    lambda token=token: self._exchange(method, path, token, params, body, headers or {}),  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                    effect="read" if method == "GET" else "write",
                    repeat=repeat,
                )
            except _ExpiredTokenError as exc:
                self._token = None
                if is_fresh or self.is_personal:
                    raise AuthError(
                        "Propstreet refuses the credential (401): renew the token or the client secret"
                    ) from exc
        raise AssertionError("unreachable")

    def _exchange(
        self,
        method: Method,
        path: str,
        token: str,
        params: Sequence[tuple[str, str]],
        body: Mapping[str, Json] | None,
        headers: Mapping[str, str],
    ) -> Row | None:
        sent = {"Authorization": f"Bearer {token}", "Accept": "application/json", **headers}
        content = None
        if body is not None:
            sent["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        response = self._http_request(method, _API + path, params=params, headers=sent, content=content)
        what = f"{method} {_shape(path)}"
        self._raise_for_status(response, what, method)
        row = _parsed(response, what)
        if row is not None and response.headers.get("ETag") and isinstance(row.get("id"), str | int):
            # Of header and body the header is the surer one (14.6).
            row = {**row, "etag": response.headers["ETag"]}
        return row

    def _http_request(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, self._root + path, **request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
            raise TransientError(f"Propstreet cannot be reached: {type(exc).__name__}", is_sent=False) from exc
        except httpx.HTTPError as exc:
            raise TransientError(f"Propstreet gave no whole answer: {type(exc).__name__}", is_sent=True) from exc
        remaining, reset = _whole(response, "RateLimit-Remaining"), _whole(response, "RateLimit-Reset")
        if remaining is not None and reset is not None:
            self._wire.observe("default", remaining=int(remaining), reset_seconds=reset)
        return response

    def _raise_for_status(self, response: httpx.Response, what: str, method: str) -> None:
        status = response.status_code
        if status < 300:
            return
        if status == 429:
            raise RateLimitedError(f"{what}: 429", pause_seconds=self._pause(response))
        if status >= 500:
            raise TransientError(f"{what}: {status}", is_sent=True, pause_seconds=self._asked(response))
        if status == 401:
            raise _ExpiredTokenError
        if status == 403:
            raise ForbiddenError(f"{what}: 403, the account behind the credential lacks this permission")
        if status < 400 or "html" in response.headers.get("Content-Type", ""):
            # A redirect or a page for people: a proxy speaks, not Propstreet. A 404 of it deletes nothing.
            raise ContractError(f"{what}: {status} with {'a redirect' if status < 400 else 'a page'}, check base_url")
        if status == 404:
            raise MissingError(f"{what}: 404")
        if status == 412:
            raise StaleVersionError(f"{what}: 412")
        if status == 409 and method != "POST":
            raise RaceError(f"{what}: 409")
        names = _named(response)
        raise RefusedError(f"{what}: {status}{': ' + names if names else ''}", status)

    def _pause(self, response: httpx.Response) -> float | None:
        asked = self._asked(response)
        return asked if asked is not None else _whole(response, "RateLimit-Reset")

    def _asked(self, response: httpx.Response) -> float | None:
        """``Retry-After`` in seconds, from either of its forms (contract, 1.4)."""
        seconds = _whole(response, "Retry-After")
        if seconds is not None or "Retry-After" not in response.headers:
            return seconds
        try:
            until = parsedate_to_datetime(response.headers["Retry-After"])
            start = parsedate_to_datetime(response.headers["Date"]) if "Date" in response.headers else self._now()
            return max(0.0, (until - start).total_seconds())
        except (ValueError, TypeError):
            return None

    # --- tokens -----------------------------------------------------------------------

    def _bearer(self) -> str:
        if self.is_personal:
            return self._auth["token"].reveal()
        token = self._token
        if token is None or (token.renew_at is not None and self._now() >= token.renew_at):
            token = self._token = self._wire.call(self._fetch_token, effect="read")
        return token.text

    def _fetch_token(self) -> _Token:
        form = {
            "grant_type": "client_credentials",
            "client_id": self._auth["client_id"].reveal(),
            "client_secret": self._auth["client_secret"].reveal(),
            "scope": _SCOPE,
        }
        asked_at = self._now()
        response = self._http_request("POST", "/openid/token", data=form, headers={"Accept": "application/json"})
        what = "POST /openid/token"
        if response.status_code in (400, 401, 403):
            raise AuthError(
                f"{what}: {response.status_code}, Propstreet refuses client_id and client_secret: create a "
                "machine-to-machine client with a bot user under Settings > Company Settings > Client Registrations"
            )
        self._raise_for_status(response, what, "POST")
        row = _parsed(response, what) or {}
        text = row.get("access_token")
        if not isinstance(text, str) or not text.isascii() or not text.isprintable():
            raise ContractError(f"{what}: an answer without a usable access_token")
        seconds = _decimal(row.get("expires_in"))
        # The lifetime is not documented (contract, 1.2): renewed at 80 % of what it says, else on a 401.
        renew_at = asked_at + timedelta(seconds=float(seconds) * 0.8) if seconds is not None else None
        return _Token(text, renew_at)


# --- reading answers ----------------------------------------------------------------------


def _parsed(response: httpx.Response, what: str) -> dict[str, object] | None:
    if response.status_code == 204 or not response.content:
        return None
    try:
        # Numbers as written: a price must not pass through a float. What JSON has no word for
        # (NaN) becomes text, so that it spoils its own record only.
        parsed = json.loads(response.content, parse_float=Decimal, parse_constant=str)
    except (ValueError, RecursionError) as exc:
        raise ContractError(f"{what}: {response.status_code} with a body that is no JSON, check base_url") from exc
    if not isinstance(parsed, dict):
        raise ContractError(f"{what}: expected an object")
    return parsed


def _page(body: Row, path: str, *, is_strict: bool) -> tuple[Sequence[Row], str | None]:
    """Rows and next cursor, from the nested or the flat envelope."""
    rows = body.get("data")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ContractError(f"GET {_shape(path)}: a list without its data")
    meta = body.get("page") if isinstance(body.get("page"), dict) else body
    has_more = meta.get("hasMore") if isinstance(meta, dict) else None
    if has_more in (True, "true"):
        cursor = meta.get("nextCursor") if isinstance(meta, dict) else None
        if not isinstance(cursor, str) or not cursor:
            raise ContractError(f"GET {_shape(path)}: more rows without a cursor")
        return rows, cursor
    if is_strict and has_more not in (False, "false"):
        raise ContractError(f"GET {_shape(path)}: a list that does not say whether there is more")
    return rows, None


def _shape(path: str) -> str:
    """A path for messages: what was escaped is not shown."""
    return re.sub(r"/external/.*", "/external/...", path)


def _named(response: httpx.Response) -> str:
    """Names of the fields that a validation failure is about; never a message or a value."""
    try:
        errors = json.loads(response.content).get("errors")
    except (ValueError, AttributeError, RecursionError):
        return ""
    if not isinstance(errors, dict):
        return ""
    return ", ".join(sorted(name for name in errors if _FIELD.fullmatch(name)))[:200]


def _whole(response: httpx.Response, header: str) -> float | None:
    found = _decimal(response.headers.get(header))
    return float(found) if found is not None and found >= 0 else None


def _decimal(raw: object) -> Decimal | None:
    if isinstance(raw, bool) or not isinstance(raw, str | int | Decimal):
        return None
    try:
        found = Decimal(raw)
    except InvalidOperation:
        return None
    return found if found.is_finite() and found < 10**9 else None


# --- settings -----------------------------------------------------------------------------


def _checked_auth(auth: Mapping[str, Secret]) -> Mapping[str, Secret]:
    if set(auth) in ({"client_id", "client_secret"}, {"token"}):
        return auth
    unknown = sorted(set(auth) - {"client_id", "client_secret", "token"})
    if unknown:
        raise ConfigError(f"propstreet.auth: unknown key {unknown[0]!r}; give client_id and client_secret, or token")
    for key in ("client_id", "client_secret"):
        if auth and key not in auth and "token" not in auth:
            raise ConfigError(f"propstreet.auth.{key} is missing; give both client_id and client_secret, or token")
    raise ConfigError("propstreet.auth: give either client_id and client_secret, or token")


def _root(base_url: str) -> str:
    """Scheme and host, since tokens come from the host's root."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ConfigError("propstreet.base_url must be a URL such as https://app.propstreet.com")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ConfigError("propstreet.base_url: http is for this machine only, use https")
    path = parts.path.rstrip("/").removesuffix(_API)
    return f"{parts.scheme}://{parts.netloc}{path}"
