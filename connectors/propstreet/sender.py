"""The webhooks of Propstreet's emulator: subscriptions by the API, signed deliveries, what fails and comes again.

As strict as the contract (13): an unknown event, a field of no documented name and a URL without
https are refused; a subscription is disabled at once by a 410, and by ten failures in a row.
What the contract leaves open is an attribute. Attempts that failed wait until ``retry``: nobody
sleeps here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import floor
from threading import RLock
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.responses import Response

from syncd.testing.emulator import Answer, Call, Handler, Now, Outbox, Post, reply

#: Collection -> what its events call a row. Properties have none.
NOUNS: Final = {
    "contacts": "contact", "companies": "company", "links": "link", "projects": "project", "prospects": "prospect",
}  # fmt: skip
_EVENTS: Final = frozenset(f"{noun}.{verb}" for noun in NOUNS.values() for verb in ("created", "updated", "deleted"))
_ATTEMPTS: Final = 9
_FAILURES: Final = 10
_REPLAYED: Final = 100
#: What the contract's example does not show.
_UNSHOWN: Final = frozenset({"etag", "createdUtc", "updatedUtc", "deletedUtc", "changeType", "uri"})


@dataclass(slots=True)
class _Hook:
    id: str
    url: str
    events: tuple[str, ...]
    name: str | None
    secrets: list[str]
    created_at: datetime
    is_active: bool = True
    failures: int = 0


@dataclass(slots=True)
class _Sent:
    """One delivery to one subscription: its id stays the same in each attempt."""

    id: str
    hook: _Hook
    event: str
    body: bytes
    made_at: datetime
    status: str = "pending"
    attempts: int = 0
    answers: list[int] = field(default_factory=list)


class Sender:
    """An account's subscriptions and deliveries.

    ``is_local`` takes http on this machine, too. ``names_project``: whether the event of a prospect
    carries its projectId. ``key``: what a payload calls the event. ``is_patient`` disables nothing
    after failures.
    """

    def __init__(self, now: Now, lock: RLock, post: Callable[[], Post]) -> None:
        self.is_local = False
        self.is_patient = False
        self.names_project = True
        self.key = "event"
        self.outbox: Outbox | None = None
        self._now, self._lock, self._post = now, lock, post
        self._hooks: dict[str, _Hook] = {}
        self._sent: list[_Sent] = []
        self._serial = 0

    def routes(self, api: str) -> Sequence[tuple[str, str, Handler]]:
        path, one = f"{api}/webhooks", f"{api}/webhooks/{{id}}"
        return [
            ("GET", path, self._list),
            ("POST", path, self._create),
            ("GET", one, self._get),
            ("PATCH", one, self._patch),
            ("DELETE", one, self._delete),
            ("GET", one + "/deliveries", self._deliveries),
            ("POST", one + "/test", self._test),
            ("POST", one + "/replay", self._replay),
        ]

    # --- what tests and the demo do -----------------------------------------------------

    def add(self, url: str) -> None:
        """Somebody else's subscription."""
        with self._lock:
            id_ = self._new_id("wh")
            self._hooks[id_] = _Hook(id_, url, ("contact.updated",), None, [self._new_secret()], self._now())

    def rotate(self, id_: str) -> str:
        """A new secret beside the old one: deliveries carry a signature of each until ``retire``."""
        with self._lock:
            secret = self._new_secret()
            self._hooks[id_].secrets.append(secret)
            return secret

    def retire(self, id_: str) -> None:
        """The oldest secret signs no more."""
        with self._lock:
            del self._hooks[id_].secrets[0]

    def retry(self) -> None:
        """The vendor's own next attempt at what failed and is not exhausted."""
        with self._lock:
            self._queue([each for each in self._sent if each.status == "failed"])

    def statuses(self) -> list[str]:
        """How each delivery stands, in the order in which they were made."""
        with self._lock:
            return [each.status for each in self._sent]

    @property
    def is_wanted(self) -> bool:
        """Whether anybody wants to know at all."""
        return any(each.is_active for each in self._hooks.values())

    # --- what happened ------------------------------------------------------------------

    def tell(self, collection: str, verb: str, view: Mapping[str, Any], changed: Sequence[str]) -> None:
        """A row was committed: a delivery to every subscription that wants to know."""
        event = f"{NOUNS.get(collection)}.{verb}"
        data = {name: value for name, value in view.items() if name not in _UNSHOWN}
        if collection == "prospects" and not self.names_project:
            data.pop("projectId", None)
        data |= {"changeOrigin": "opaque", "changedFields": list(changed)}
        made = []
        for hook in self._hooks.values():
            if hook.is_active and event in hook.events:
                at = self._now()
                payload = {self.key: event, "timestamp": _iso(at), "data": data}
                made.append(_Sent(self._new_id("msg"), hook, event, json.dumps(payload).encode(), at))
        self._sent += made
        self._queue(made)

    def _queue(self, some: Sequence[_Sent]) -> None:
        if some and self.outbox is None:
            self.outbox = Outbox(self._send)
        for each in some:
            each.status = "pending"
        if self.outbox is not None:
            self.outbox.put(*some)

    def _send(self, items: Sequence[_Sent]) -> None:
        for each in items:
            with self._lock:
                if not each.hook.is_active:
                    return
                headers = self._signed(each)
            status = self._post()(each.hook.url, headers, each.body)
            with self._lock:
                self._note(each, status)

    def _note(self, sent: _Sent, status: int) -> None:
        sent.attempts += 1
        sent.answers.append(status)
        is_good = 200 <= status < 300
        sent.status = "delivered" if is_good else "exhausted" if sent.attempts >= _ATTEMPTS else "failed"
        sent.hook.failures = 0 if is_good else sent.hook.failures + 1
        if status == 410 or (sent.hook.failures >= _FAILURES and not self.is_patient):
            sent.hook.is_active = False

    def _signed(self, sent: _Sent) -> dict[str, str]:
        seconds = str(floor(self._now().timestamp()))
        text = f"{sent.id}.{seconds}.".encode() + sent.body
        keys = (base64.b64decode(secret.removeprefix("whsec_")) for secret in sent.hook.secrets)
        marks = [base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode() for key in keys]
        return {
            "Content-Type": "application/json",
            "webhook-id": sent.id,
            "webhook-timestamp": seconds,
            "webhook-signature": " ".join(f"v1,{mark}" for mark in marks),
        }

    # --- the API ------------------------------------------------------------------------

    def _list(self, call: Call, **_: str) -> Response:
        _only_body(call, frozenset())
        shown = [_view(each) for each in self._hooks.values()]
        return reply(200, {"data": shown, "page": {"nextCursor": None, "pageSize": 500, "hasMore": False}})

    def _create(self, call: Call, **_: str) -> Response:
        body = self._checked(call, {"url", "events"})
        hook = _Hook(
            self._new_id("wh"), body["url"], tuple(body["events"]), body.get("name"), [self._new_secret()], self._now()
        )
        self._hooks[hook.id] = hook
        return reply(201, {**_view(hook), "secret": hook.secrets[0]})

    def _get(self, call: Call, **params: str) -> Response:
        return reply(200, _view(self._hook(params["id"])))

    def _patch(self, call: Call, **params: str) -> Response:
        hook = self._hook(params["id"])
        body = self._checked(call, set())
        hook.url, hook.name = body.get("url", hook.url), body.get("name", hook.name)
        hook.events = tuple(body.get("events", hook.events))
        return reply(200, _view(hook))

    def _delete(self, call: Call, **params: str) -> Response:
        hook = self._hook(params["id"])
        hook.is_active = False
        del self._hooks[hook.id]
        return reply(204)

    def _deliveries(self, call: Call, **params: str) -> Response:
        hook = self._hook(params["id"])
        rows = [
            {"id": each.id, "event": each.event, "status": each.status, "attempts": each.attempts}
            for each in self._sent
            if each.hook is hook
        ]
        return reply(200, {"data": rows, "page": {"nextCursor": None, "pageSize": 500, "hasMore": False}})

    def _test(self, call: Call, **params: str) -> Response:
        hook = self._hook(params["id"])
        body = _only_body(call, frozenset({"event_type"}))
        event = body.get("event_type", "contact.updated")
        if event not in _EVENTS:
            raise _invalid("event_type")
        payload = {self.key: event, "timestamp": _iso(self._now()), "data": {"id": "0"}}
        sent = _Sent(self._new_id("msg"), hook, event, json.dumps(payload).encode(), self._now())
        status = self._post()(hook.url, {**self._signed(sent), "X-Propstreet-Test": "true"}, sent.body)
        is_good = 200 <= status < 300
        error = None if is_good else "no 2xx"
        return reply(200, {"success": is_good, "status_code": status or None, "duration_ms": 1, "error": error})

    def _replay(self, call: Call, **params: str) -> Response:
        hook = self._hook(params["id"])
        since = _only_body(call, frozenset({"since"})).get("since")
        try:
            after = datetime.fromisoformat(str(since))
        except ValueError:
            raise _invalid("since") from None
        if after.tzinfo is None:
            raise _invalid("since")
        missed = [
            each
            for each in self._sent
            if each.hook is hook and each.status in ("failed", "exhausted") and each.made_at >= after
        ][:_REPLAYED]
        for each in missed:
            each.attempts = 0
        self._queue(missed)
        return reply(200, {"replayed_count": len(missed), "message": f"{len(missed)} deliveries requeued"})

    def _hook(self, id_: str) -> _Hook:
        if id_ not in self._hooks:
            raise Answer(404, {"type": _TYPE, "title": "Not found", "status": 404})
        return self._hooks[id_]

    def _checked(self, call: Call, needed: set[str]) -> dict[str, Any]:
        body = _only_body(call, frozenset({"url", "events", "name"}))
        for name in sorted(needed - body.keys()):
            raise _invalid(name)
        if "url" in body and not self._is_fit(body["url"]):
            raise _invalid("url")
        events = body.get("events", ["contact.updated"])
        if not isinstance(events, list) or not events or not set(map(str, events)) <= _EVENTS:
            raise _invalid("events")
        if not isinstance(body.get("name"), str | None):
            raise _invalid("name")
        return body

    def _is_fit(self, url: object) -> bool:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
        is_local = self.is_local and parts.scheme == "http" and parts.hostname == "127.0.0.1"
        return bool(parts.hostname) and (parts.scheme == "https" or is_local)

    def _new_id(self, noun: str) -> str:
        self._serial += 1
        # Ids are opaque: one that is put into a path as it is would lead elsewhere.
        return f"{noun}?{self._serial}" if noun == "wh" else f"{noun}_{self._serial}"

    def _new_secret(self) -> str:
        self._serial += 1
        return "whsec_" + base64.b64encode(hashlib.sha256(f"emulated {self._serial}".encode()).digest()).decode()


_TYPE: Final = "https://tools.ietf.org/html/rfc7807"


def _invalid(name: str) -> Answer:
    return Answer(400, {"type": _TYPE, "status": 400, "errors": {name: ["is invalid"]}})


def _only_body(call: Call, allowed: frozenset[str]) -> dict[str, Any]:
    body = {} if call.body is None else call.body
    if not isinstance(body, dict) or not set(body) <= allowed or call.query:
        raise _invalid(next(iter(sorted(set(body) - allowed)), "body") if isinstance(body, dict) else "body")
    return body


def _view(hook: _Hook) -> dict[str, Any]:
    return {
        "id": hook.id, "url": hook.url, "events": list(hook.events), "name": hook.name, "isActive": hook.is_active,
        "createdUtc": _iso(hook.created_at),
    }  # fmt: skip


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
