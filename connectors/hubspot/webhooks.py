"""HubSpot's webhooks: a delivery proved (signature v3), and its events told as what moved.

The SDK's helper decodes no URI and lets signatures of the future pass (contract, 9.4). An older
signature, v1, comes along with every delivery and proves too little: it is not looked at.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from syncd.connector import Delivery, Heard, Hint
from syncd.errors import ConfigError, ContractError, ForgedError

WINDOW_SECONDS: Final = 300
#: Clocks differ a little; what lies further ahead was not signed yet.
SKEW_SECONDS: Final = 10

#: The only escapes that HubSpot undoes in the URI before it signs (contract, 9.4).
_ESCAPES: Final = {
    "%3A": ":", "%2F": "/", "%3F": "?", "%40": "@", "%21": "!", "%24": "$", "%27": "'", "%28": "(", "%29": ")",
    "%2A": "*", "%2C": ",", "%3B": ";",
}  # fmt: skip
_ESCAPED: Final = re.compile("|".join(_ESCAPES))
_MILLISECONDS: Final = re.compile(r"[1-9][0-9]{0,13}")
_KINDS: Final = {"deal": "deal", "contact": "contact", "company": "company"}
_TYPE_IDS: Final = {"0-1": "contact", "0-2": "company", "0-3": "deal"}
#: Associations are read below the one of their two ends that keeps them.
_BELOW: Final = {frozenset({"deal", "contact"}): ("deal_contact", "deal"),
                 frozenset({"deal", "company"}): ("deal_contact", "deal"),
                 frozenset({"contact", "company"}): ("employment", "contact")}  # fmt: skip
_ENDS: Final = re.compile(r"(DEAL|CONTACT|COMPANY)_TO_(DEAL|CONTACT|COMPANY)")
_IDS: Final = ("objectId", "primaryObjectId", "newObjectId")


def receive(delivery: Delivery, secrets: Sequence[str], at: datetime) -> Heard:
    """See ``Receiver``: ``eventId`` is not unique, so a delivery is known by its bytes and its time.

    A repetition counts its attempts in the body and so is another delivery, which does no harm.
    """
    sent = _prove(delivery, secrets, at)
    try:
        events = json.loads(delivery.body)
    except (ValueError, RecursionError) as exc:
        raise ContractError("a HubSpot webhook that is no JSON") from exc
    if not isinstance(events, list) or not events or not all(isinstance(each, dict) for each in events):
        raise ContractError("a HubSpot webhook that is no list of events")
    portals = {each.get("portalId") for each in events if isinstance(each.get("portalId"), int | str)}
    if len(portals) != 1 or any("portalId" not in each for each in events):
        raise ContractError("a HubSpot webhook that is not of one portal")
    digest = hashlib.sha256(delivery.body + b"\n" + sent.encode()).hexdigest()
    moved = [_moved(each) for each in events]
    return Heard((digest,), _hints(moved), account=str(portals.pop()), tells_all=all(moved))


def _prove(delivery: Delivery, secrets: Sequence[str], at: datetime) -> str:
    """The time at which it was signed, as it was written, once one of the secrets has signed it."""
    given = delivery.headers.get("x-hubspot-signature-v3", "")
    sent = delivery.headers.get("x-hubspot-request-timestamp", "")
    if not given.isascii() or not _MILLISECONDS.fullmatch(sent):
        raise ForgedError("a HubSpot webhook without its headers")
    age = (at - datetime.fromtimestamp(int(sent) / 1000, UTC)).total_seconds()
    if not -SKEW_SECONDS <= age <= WINDOW_SECONDS:
        raise ForgedError("a HubSpot webhook that was signed too long ago, or is yet to be")
    if not all(secrets):
        raise ConfigError("the webhook secret of HubSpot is the app's client secret, which is not empty")
    url = _ESCAPED.sub(lambda escape: _ESCAPES[escape[0]], delivery.url)
    signed = delivery.method.encode() + url.encode() + delivery.body + sent.encode()
    expected = [base64.b64encode(hmac.digest(each.encode(), signed, "sha256")) for each in secrets]
    # All are compared, so that the time taken does not tell which one came close.
    if not sum(hmac.compare_digest(each, given.encode()) for each in expected):
        raise ForgedError("a HubSpot webhook with a wrong signature")
    return sent


def _hints(moved: Iterable[Iterable[tuple[str, str]]]) -> tuple[Hint, ...]:
    """By kind the records that moved, and the deals and contacts whose associations did; what is unknown says nothing.

    All are read by id: search may not show them for a while yet.
    """
    found: dict[str, dict[str, None]] = {}
    for event in moved:
        for kind, id_ in event:
            found.setdefault(kind, {})[id_] = None
    return tuple(Hint(kind, ids=tuple(ids)) for kind, ids in found.items())


def _moved(event: Mapping[str, object]) -> list[tuple[str, str]]:
    noun, _, what = str(event.get("subscriptionType")).partition(".")
    if what == "associationChange":
        return _associated(event)
    kind = _KINDS.get(noun) or (_TYPE_IDS.get(str(event.get("objectTypeId"))) if noun == "object" else None)
    if kind is None:
        return []
    merged = event.get("mergedObjectIds")
    named = [*(event.get(name) for name in _IDS), *(merged if isinstance(merged, list) else ())]
    return [(kind, id_) for raw in named if (id_ := _id(raw)) is not None]


def _associated(event: Mapping[str, object]) -> list[tuple[str, str]]:
    ends = _ENDS.fullmatch(str(event.get("associationType")).upper())
    if ends is None:
        return []
    names = (ends[1].lower(), ends[2].lower())
    child, holder = _BELOW.get(frozenset(names), ("", ""))
    for name, raw in zip(names, (event.get("fromObjectId"), event.get("toObjectId")), strict=True):
        if name == holder and (id_ := _id(raw)) is not None:
            return [(child, id_)]
    return []


def _id(raw: object) -> str | None:
    """HubSpot's ids are whole numbers, written as such or as text."""
    if isinstance(raw, bool) or not isinstance(raw, int | str):
        return None
    return str(raw) if re.fullmatch(r"[1-9][0-9]{0,19}", str(raw), re.ASCII) else None
