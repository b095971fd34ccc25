"""Who may see the operator's page, and who may act on it.

Somebody is known by a token (typed once into a form, or sent by a script with every request) or by
what a trusted proxy says in headers. Nothing is kept: a session is a signed cookie, and its key
comes from the token itself, so that every replica knows it and a rotated token ends it. Whoever
acts must also prove that the request came from a form of this page.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from syncd.config import ProxyConfig, Role, TokenConfig, WebConfig
from syncd.errors import ConfigError, RefusedError

SESSION_HOURS: Final = 12
SHORTEST_TOKEN: Final = 24
#: Wrong tokens that one peer may send at once, and how long it takes to be allowed one more.
ATTEMPTS: Final = 10
ATTEMPT_SECONDS: Final = 6
#: So many peers are remembered for their wrong tokens; beyond that, the one that was quiet longest is forgotten.
PEERS: Final = 10_000

CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    # Nothing of an address leaves this site. With no-referrer, browsers would hide from us, too, where a form is from.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NOBODY: Final = (
    "Nobody may see this page yet. Say who may, in config/syncd.yaml: web.sign_on.tokens with a name, a role and "
    "where the token is kept, or web.sign_on.proxy for the cluster's own sign-on. Then restart the service."
)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who is let in. ``form_token`` stands in each form that acts; a script sends its own token instead."""

    name: str
    role: Role
    form_token: str
    is_script: bool = False
    is_signed_on: bool = False
    """By a token typed in here, so that signing off is possible."""

    @property
    def may_act(self) -> bool:
        return self.role == "operator"


class Gate:
    """Lets in whoever the settings name. Raises ConfigError for a token that is missing, short or used twice."""

    def __init__(self, settings: WebConfig, now: Callable[[], datetime], new_id: Callable[[], str]):
        self._tokens = settings.sign_on.tokens
        self._proxy = settings.sign_on.proxy
        self._trusted = [ip_network(each) for each in self._proxy.trusted] if self._proxy is not None else []
        self._now, self._new_id = now, new_id
        self._public = _origin(settings.public_url or "")
        self.is_secure = (settings.public_url or "").startswith("https:")
        self.cookie = "__Host-syncd" if self.is_secure else "syncd"
        self.form_cookie = f"{self.cookie}-form"
        self._failures = _Failures(now)
        self._prove_tokens()

    def _prove_tokens(self) -> None:
        names = [each.name for each in self._tokens]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"web.sign_on.tokens: two are called {twice[0]!r}. Give each a name of its own.")
        secrets = [each.token.read() for each in self._tokens]
        for each, secret in zip(self._tokens, secrets, strict=True):
            if len(secret) < SHORTEST_TOKEN:
                fix = f"Use at least {SHORTEST_TOKEN} characters, say from: openssl rand -hex 32"
                raise ConfigError(f"web.sign_on.tokens: the token of {each.name!r} is too short. {fix}")
        if len(set(secrets)) < len(secrets):
            raise ConfigError("web.sign_on.tokens: two names have one token. Give each a token of its own.")

    @property
    def takes_tokens(self) -> bool:
        return bool(self._tokens)

    # --- who is it ----------------------------------------------------------------------

    def admit(self, request: Request) -> Visitor:
        """Who this is. Raises RefusedError: 401 for nobody known, 403 where nothing would help, 429 for guessing."""
        if not self._tokens and self._proxy is None:
            raise RefusedError(403, NOBODY)
        if (given := request.headers.get("authorization")) is not None:
            return self._script(request, given)
        if (visitor := self._signed_on(request)) is not None:
            return visitor
        if (visitor := self._sent_by_proxy(request)) is not None:
            return visitor
        if not self._tokens:
            raise RefusedError(403, "This page is behind the cluster's own sign-on: come through its proxy.")
        raise RefusedError(401, "Sign on to see this page.")

    def _script(self, request: Request, given: str) -> Visitor:
        scheme, _, secret = given.partition(" ")
        if scheme.lower() != "bearer":
            raise RefusedError(401, "Send Authorization: Bearer TOKEN.")
        known = self._known(request, secret.strip())
        return Visitor(known.name, known.role, "", is_script=True)

    def _known(self, request: Request, secret: str) -> TokenConfig:
        """Whose token this is. Raises RefusedError, at once for a peer that keeps guessing."""
        peer = _peer(request)
        self._failures.prove_patience(peer)
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        found = None
        for each in self._tokens:
            own = self._secret(each)
            # All are compared, so that the time it takes tells nothing of which one was near.
            if own is not None and hmac.compare_digest(hashlib.sha256(own.encode()).digest(), digest):
                found = each
        if found is None:
            self._failures.note(peer)
            raise RefusedError(401, "This token is not known here.")
        return found

    def _secret(self, token: TokenConfig) -> str | None:
        """As it is now; None while it is missing or was cut short, so that nobody gets in by that."""
        try:
            found = token.token.read()
        except ConfigError:
            return None
        return found if len(found) >= SHORTEST_TOKEN else None

    # --- by a token, once ---------------------------------------------------------------

    def sign_on(self, request: Request, secret: str, response: Callable[[], Response]) -> tuple[str, Response]:
        """Whose token it is, and the response with a session of its own. Raises RefusedError."""
        self.prove_here(request)
        known = self._known(request, secret.strip())
        told = f"{known.name}~{int(self._now().timestamp())}~{self._new_id()}"
        answer = response()
        self._put(answer, self.cookie, f"{told}~{self._signature(known, told)}")
        return known.name, answer

    def sign_off(self, response: Response) -> None:
        """Have the browser forget its session."""
        for name in (self.cookie, self.form_cookie):
            response.delete_cookie(name, path="/", secure=self.is_secure, httponly=True, samesite="strict")

    def _signature(self, token: TokenConfig, told: str) -> str:
        key = hashlib.sha256(b"syncd session " + (self._secret(token) or "").encode()).digest()
        return hmac.new(key, told.encode(), hashlib.sha256).hexdigest()

    def _signed_on(self, request: Request) -> Visitor | None:
        cookie = request.cookies.get(self.cookie, "")
        told, _, signature = cookie.rpartition("~")
        name, _, rest = told.partition("~")
        issued = rest.partition("~")[0]
        token = next((each for each in self._tokens if each.name == name), None)
        if token is None or self._secret(token) is None or not re.fullmatch(r"[0-9]{1,12}", issued):
            return None
        if not hmac.compare_digest(self._signature(token, told).encode(), signature.encode("utf-8", "replace")):
            return None
        age = self._now().timestamp() - int(issued)
        if not -60 <= age <= SESSION_HOURS * 3_600:
            return None
        return Visitor(token.name, token.role, _form_token(cookie, name), is_signed_on=True)

    # --- by the cluster's own sign-on ---------------------------------------------------

    def _sent_by_proxy(self, request: Request) -> Visitor | None:
        if self._proxy is None or not self._is_trusted(_peer(request)):
            return None
        names = request.headers.getlist(self._proxy.user_header)
        if len(names) != 1 or not 0 < len(names[0].strip()) <= 256:
            return None
        role = self._role(self._proxy, request)
        if role is None:
            raise RefusedError(403, "You are signed on, but none of your groups has a role in web.sign_on.proxy.roles.")
        # A user's name may be an address: what logs tell is only which of them it was.
        user = names[0].strip()
        name = f"user-{hashlib.sha256(user.encode('utf-8', 'replace')).hexdigest()[:8]}"
        return Visitor(name, role, _form_token(request.cookies.get(self.form_cookie, ""), user))

    def _is_trusted(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._trusted)

    def _role(self, proxy: ProxyConfig, request: Request) -> Role | None:
        groups = {each.strip() for line in request.headers.getlist(proxy.role_header) for each in line.split(",")}
        roles: set[Role] = {role for group, role in proxy.roles.items() if group in groups}
        return "operator" if "operator" in roles else "viewer" if roles else None

    def with_forms(self, request: Request, visitor: Visitor) -> tuple[Visitor, str | None]:
        """The visitor with a token for forms, and the new secret behind it if there was none: whom a proxy sent."""
        if visitor.form_token or visitor.is_script or self._proxy is None:
            return visitor, None
        secret = self._new_id()
        user = request.headers.get(self._proxy.user_header, "").strip()
        return replace(visitor, form_token=_form_token(secret, user)), secret

    def keep_forms(self, response: Response, secret: str) -> None:
        self._put(response, self.form_cookie, secret)

    def _put(self, response: Response, name: str, value: str) -> None:
        response.set_cookie(
            name, value, max_age=SESSION_HOURS * 3_600, path="/", secure=self.is_secure, httponly=True,
            samesite="strict",
        )  # fmt: skip

    # --- may it act ---------------------------------------------------------------------

    def prove(self, request: Request, visitor: Visitor, form: Mapping[str, str], *, is_act: bool) -> None:
        """That this came from a form of ours, and from somebody who may. Raises RefusedError."""
        if not visitor.is_script:
            self.prove_here(request)
            is_ours = bool(visitor.form_token) and hmac.compare_digest(
                visitor.form_token.encode(), form.get("form_token", "").encode("utf-8", "replace")
            )
            if not is_ours:
                raise RefusedError(403, "This form is of another session. Open the page again, and repeat it.")
        if is_act and not visitor.may_act:
            raise RefusedError(403, "You may look, and not act: that takes the role operator.")

    def prove_here(self, request: Request) -> None:
        """That a browser sent it from this very site. Raises RefusedError.

        Browsers say so in Sec-Fetch-Site, which no script can set; over plain HTTP only Origin tells.
        """
        site = request.headers.get("sec-fetch-site")
        origin = request.headers.get("origin", "")
        if not (site == "same-origin" if site is not None else self._is_ours(origin, request.headers.get("host", ""))):
            raise RefusedError(403, "This did not come from a form of this page.")

    def _is_ours(self, origin: str, host: str) -> bool:
        try:
            theirs, netloc = _origin(origin), urlsplit(origin).netloc
        except ValueError:
            return False
        return bool(theirs) and (theirs == self._public or _host(netloc) == _host(host))


def _form_token(secret: str, name: str) -> str:
    """What a form proves itself by: derived from a cookie that no script can read and no other site can set."""
    if not secret:
        return ""
    return hmac.new(secret.encode("utf-8", "replace"), b"form " + name.encode("utf-8", "replace"), "sha256").hexdigest()


def _peer(request: Request) -> str:
    """Who is at the other end of the connection, whatever headers say."""
    return request.client.host if request.client is not None else ""


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{_host(parts.netloc)}".lower() if parts.netloc else ""


def _host(netloc: str) -> str:
    return netloc.lower().removesuffix(":443").removesuffix(":80")


class _Failures:
    """How many wrong tokens each peer sent of late; a bucket that drips."""

    def __init__(self, now: Callable[[], datetime]):
        self._now = now
        self._until: OrderedDict[str, datetime] = OrderedDict()
        self._lock = threading.Lock()

    def prove_patience(self, peer: str) -> None:
        """Raises RefusedError for a peer that has guessed too often."""
        now = self._now()
        with self._lock:
            left = (self._until.get(peer, now) - now).total_seconds()
        if left > (ATTEMPTS - 1) * ATTEMPT_SECONDS:
            pause = int(left - (ATTEMPTS - 1) * ATTEMPT_SECONDS) + 1
            raise RefusedError(
                429, f"Too many wrong tokens came from there. Try again in {pause} s.", pause_seconds=pause
            )

    def note(self, peer: str) -> None:
        now = self._now()
        with self._lock:
            emptied_at = max(self._until.pop(peer, now), now) + timedelta(seconds=ATTEMPT_SECONDS)
            self._until[peer] = emptied_at
            while len(self._until) > PEERS:
                self._until.popitem(last=False)
