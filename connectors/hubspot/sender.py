"""The webhooks of HubSpot's emulator: events of one app, up to 100 in a delivery, signed as version 3.

Opt in by ``HubSpotEmulator.deliver_to``, as a person does in the app's settings. Whoever writes is
told of it too: an integration's own writes come back as events.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from syncd.testing.emulator import Now, Outbox, Post

_NOUNS: Final = {"contacts": "contact", "companies": "company", "deals": "deal"}
#: Properties that nobody can subscribe to (contract, 9.1).
_SILENT: Final = frozenset({"hs_lastmodifieddate", "lastmodifieddate", "hs_updated_by_user_id"})
_BATCH: Final = 100


class Sender:
    """One app, installed in one portal. ``failed`` are the deliveries that nobody took, with ``retry`` sent again."""

    def __init__(self, url: str, secret: str, app_id: int, portal_id: int, now: Now, post: Callable[[], Post]) -> None:
        self.failed: list[list[dict[str, Any]]] = []
        self.answers: list[int] = []
        self.outbox = Outbox(self._send, batch=_BATCH)
        self._url, self._secret, self._app_id, self._portal_id = url, secret, app_id, portal_id
        self._now, self._post = now, post
        self._serial = 0

    def told(self, type_: str, id_: int, what: str, *, is_person: bool, **more: Any) -> None:
        """Something happened to one record."""
        self._put(f"{_NOUNS[type_]}.{what}", is_person=is_person, objectId=id_, **more)

    def changed(self, type_: str, id_: int, values: Mapping[str, str], *, is_person: bool) -> None:
        """Properties of one record were changed: an event for each."""
        for name, value in values.items():
            if name not in _SILENT:
                self.told(type_, id_, "propertyChange", is_person=is_person, propertyName=name, propertyValue=value)

    def associated(self, one: str, one_id: int, other: str, other_id: int, *, is_removed: bool) -> None:
        """An association came or went: both its directions are told."""
        for (a, a_id), (b, b_id) in (
            ((one, one_id), (other, other_id)), ((other, other_id), (one, one_id)),
        ):  # fmt: skip
            self._put(
                f"{_NOUNS[a]}.associationChange",
                is_person=True,
                associationType=f"{_NOUNS[a]}_to_{_NOUNS[b]}".upper(),
                fromObjectId=a_id,
                toObjectId=b_id,
                associationRemoved=is_removed,
                isPrimaryAssociation=False,
            )

    def retry(self) -> None:
        """The vendor's own next attempt at what failed."""
        failed, self.failed = self.failed, []
        for events in failed:
            self._send([{**each, "attemptNumber": each["attemptNumber"] + 1} for each in events])

    def _put(self, subscription: str, *, is_person: bool, **more: Any) -> None:
        self._serial += 1
        event = {
            # Not unique, as the contract warns.
            "eventId": self._serial // 2,
            "subscriptionId": 2,
            "portalId": self._portal_id,
            "appId": self._app_id,
            "occurredAt": _ms(self._now()),
            "subscriptionType": subscription,
            "attemptNumber": 0,
            "changeSource": "CRM_UI" if is_person else "INTEGRATION",
            "sourceId": "userId:70112233" if is_person else str(self._app_id),
            **more,
        }
        self.outbox.put(event)

    def _send(self, events: Sequence[dict[str, Any]]) -> None:
        body = json.dumps(list(events)).encode()
        sent = str(_ms(self._now()))
        status = self._post()(self._url, self._signed(body, sent), body)
        self.answers.append(status)
        if not 200 <= status < 300:
            self.failed.append(list(events))

    def _signed(self, body: bytes, sent: str) -> dict[str, str]:
        # Of the escapes in a URL only these are undone (contract, 9.4).
        url = re.sub(r"%(3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", lambda found: chr(int(found[1], 16)), self._url)
        text = b"POST" + url.encode() + body + sent.encode()
        mark = hmac.new(self._secret.encode(), text, hashlib.sha256).digest()
        older = hashlib.sha256(self._secret.encode() + body).hexdigest()
        return {
            "Content-Type": "application/json",
            "X-HubSpot-Signature": older,
            "X-HubSpot-Signature-Version": "v1",
            "X-HubSpot-Signature-v3": base64.b64encode(mark).decode(),
            "X-HubSpot-Request-Timestamp": sent,
        }


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
