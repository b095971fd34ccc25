"""Propstreet's webhooks: a delivery proved (Standard Webhooks), and subscriptions ordered by the API.

The payload says that something moved and nothing more: its values are never used (contract, 13.5).
Where an answer's shape is not documented (contract, 13.1), several are read.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from standardwebhooks import Webhook

from connectors.propstreet.client import Client, Row, segment
from syncd.connector import Delivery, Heard, Hint, Subscription
from syncd.core.mapping import iso_z
from syncd.core.model import is_safe_id
from syncd.errors import ConfigError, ContractError, ForgedError, MissingError

#: How far a signature's time may lie from ours, either way.
WINDOW_SECONDS: Final = 300
NOUNS: Final = ("contact", "company", "link", "project", "prospect")
EVENTS: Final = tuple(f"{noun}.{verb}" for noun in NOUNS for verb in ("created", "updated", "deleted"))
#: Of these the lists of changes tell.
_LISTED: Final = frozenset(each for each in EVENTS if not each.startswith("prospect."))
#: So many deliveries one call sends again.
REPLAYED: Final = 100

_PATH: Final = "/webhooks"
_SECONDS: Final = re.compile(r"[1-9][0-9]{0,10}")
_LONGEST_ID: Final = 255
_MOST_SIGNATURES: Final = 20


def receive(delivery: Delivery, secrets: Sequence[str], at: datetime) -> Heard:
    """See ``Receiver``: ``webhook-id`` is the same in each attempt, the time and the signature are not."""
    id_ = _prove(delivery, [_key(each) for each in secrets], at)
    try:
        payload = json.loads(delivery.body)
    except (ValueError, RecursionError) as exc:
        raise ContractError("a Propstreet webhook that is no JSON") from exc
    if not isinstance(payload, dict):
        raise ContractError("a Propstreet webhook that is no object")
    # The contract's only example says event, Standard Webhooks recommends type.
    event = payload.get("event", payload.get("type"))
    if not isinstance(event, str):
        raise ContractError("a Propstreet webhook without its event")
    hints = _hints(event, payload.get("data"))
    return Heard((id_,), hints, tells_all=bool(hints) or event in _LISTED)


def _hints(event: str, data: object) -> tuple[Hint, ...]:
    """Lists are current, so a delta shows what moved; only prospects are read project by project."""
    if not event.startswith("prospect.") or not isinstance(data, Mapping):
        return ()
    raw = data.get("projectId")
    project = str(raw) if isinstance(raw, int | str) and not isinstance(raw, bool) else None
    return (Hint("deal_contact", parents=(project,)),) if is_safe_id(project) and project is not None else ()


def _key(secret: str) -> Webhook:
    try:
        return Webhook(secret)
    except Exception as exc:
        # Whatever the library makes of a text that is not base64: nothing of it is shown.
        raise ConfigError("a webhook secret of Propstreet is whsec_ and base64, as it was shown once") from exc


def _prove(delivery: Delivery, keys: Sequence[Webhook], at: datetime) -> str:
    """The delivery's id, once one of several signatures is by one of several secrets."""
    id_, seconds, signatures = (
        delivery.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")
    )  # fmt: skip
    if not 0 < len(id_) <= _LONGEST_ID or not _SECONDS.fullmatch(seconds):
        raise ForgedError("a Propstreet webhook without its headers")
    signed_at = datetime.fromtimestamp(int(seconds), UTC)
    if abs((at - signed_at).total_seconds()) > WINDOW_SECONDS:
        raise ForgedError("a Propstreet webhook that was signed too long ago, or is yet to be")
    try:
        body = delivery.body.decode()
        given = [each.encode("ascii") for each in signatures.split(" ")[:_MOST_SIGNATURES]]
    except UnicodeError:
        raise ForgedError("a Propstreet webhook that nobody can have signed") from None
    expected = [key.sign(id_, signed_at, body).encode() for key in keys]
    # All are compared, so that the time taken does not tell which one came close.
    if not sum(hmac.compare_digest(one, other) for one in expected for other in given):
        raise ForgedError("a Propstreet webhook with a wrong signature")
    return id_


class Subscriptions:
    """The account's subscriptions, for ``Subscriber``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[Subscription]:
        return [_subscription(row) for row in self._client.rows(_PATH)]

    def create(self, url: str) -> tuple[Subscription, str]:
        body = {"url": url, "events": list(EVENTS), "name": "syncd"}
        # Not twice: a second one would get every delivery too, under a secret of its own.
        row = self._client.send("POST", _PATH, body, repeat="unsent") or {}
        secret = row.get("secret")
        if not isinstance(secret, str) or not secret.startswith("whsec_"):
            raise ContractError("POST /webhooks: an answer without the secret")
        return _subscription(row), secret

    def delete(self, id_: str) -> None:
        try:
            self._client.send("DELETE", f"{_PATH}/{segment(id_)}")
        except MissingError:
            return

    def replay(self, id_: str, since: datetime) -> int:
        row = self._client.send("POST", f"{_PATH}/{segment(id_)}/replay", {"since": iso_z(since)}) or {}
        count = row.get("replayed_count")
        if not isinstance(count, int) or isinstance(count, bool):
            raise ContractError("POST /webhooks/{id}/replay: an answer without replayed_count")
        return count


def _subscription(row: Row) -> Subscription:
    id_, url, events = row.get("id"), row.get("url"), row.get("events")
    if isinstance(id_, bool) or not isinstance(id_, int | str) or not isinstance(url, str):
        raise ContractError("/webhooks: a subscription without its id and url")
    return Subscription(
        str(id_),
        url,
        tuple(each for each in events if isinstance(each, str)) if isinstance(events, Sequence) else (),
        _is_active(row),
    )


def _is_active(row: Row) -> bool | None:
    """Whether it is disabled is told in one of these, or not at all: the contract does not say."""
    for name, is_meant in (("disabled", False), ("enabled", True), ("active", True), ("isActive", True)):
        if isinstance(said := row.get(name), bool):
            return said is is_meant
    return {"active": True, "enabled": True, "disabled": False}.get(str(row.get("status")).lower())
