"""Salesforce's outbound messages: SOAP with up to 100 notifications, which wants an Ack in return.

They carry no signature, so the URL carries a secret (docs/adr/0017). They come once their
transaction is committed, and a query shows it then: a message only says that now is the time to ask.
The session id that a message may carry is neither read nor kept.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from urllib.parse import parse_qs, urlsplit
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from connectors.salesforce.client import normal_id
from syncd.connector import Delivery, Heard
from syncd.core.mapping import UnfitValueError
from syncd.errors import ConfigError, ContractError, ForgedError

#: Nothing else proves a message, so that guessing must be hopeless.
SHORTEST_SECRET: Final = 32
PARAMETER: Final = "secret"
OUTBOUND: Final = "http://soap.sforce.com/2005/09/outbound"
ACK: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>'
    f'<notificationsResponse xmlns="{OUTBOUND}"><Ack>true</Ack></notificationsResponse>'
    "</soapenv:Body></soapenv:Envelope>"
)
_MOST: Final = 1_000
_ID: Final = re.compile(r"[A-Za-z0-9]{15}(?:[A-Za-z0-9]{3})?")


def receive(delivery: Delivery, secrets: Sequence[str], at: datetime) -> Heard:
    """See ``Receiver``: each notification has an id that is the same in each attempt, of 24 hours."""
    _prove(delivery, secrets)
    try:
        envelope = fromstring(delivery.body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as exc:
        # A declared encoding that nobody knows is a LookupError.
        raise ContractError("a Salesforce outbound message that is no plain XML") from exc
    message = next(iter(envelope.iter(f"{{{OUTBOUND}}}notifications")), None)
    if message is None:
        raise ContractError("a Salesforce outbound message without notifications")
    ids = tuple(_text(each, "Id") for each in message.iterfind(f"{{{OUTBOUND}}}Notification"))
    if not 0 < len(ids) <= _MOST or not all(_ID.fullmatch(each) for each in ids):
        raise ContractError("a Salesforce outbound message whose notifications have no ids")
    try:
        account = normal_id(_text(message, "OrganizationId"), "OrganizationId")
    except UnfitValueError as exc:
        raise ContractError("a Salesforce outbound message of no org") from exc
    # Each object has a list of its changes.
    return Heard(ids, account=account, answer=ACK, content_type="text/xml", tells_all=True)


def _text(of: Element, name: str) -> str:
    return (of.findtext(f"{{{OUTBOUND}}}{name}") or "").strip()


def _prove(delivery: Delivery, secrets: Sequence[str]) -> None:
    """The secret stands in the URL: as a parameter, or as the password of basic authentication."""
    if any(len(each) < SHORTEST_SECRET for each in secrets):
        raise ConfigError(f"the webhook secret of Salesforce must have at least {SHORTEST_SECRET} characters")
    given = [each.encode() for each in (*_in_query(delivery), *_in_header(delivery))]
    if not sum(hmac.compare_digest(each.encode(), other) for each in secrets for other in given):
        raise ForgedError("a Salesforce outbound message without the secret")


def _in_query(delivery: Delivery) -> list[str]:
    return parse_qs(urlsplit(delivery.url).query, errors="replace").get(PARAMETER, [])[:1]


def _in_header(delivery: Delivery) -> list[str]:
    scheme, _, told = delivery.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return []
    try:
        return [base64.b64decode(told, validate=True).decode().partition(":")[2]]
    except (binascii.Error, UnicodeError):
        return []
