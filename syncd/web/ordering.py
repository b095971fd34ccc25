"""Ordering webhooks at Propstreet: subscribing, and keeping the secret that is shown this once.

The secret goes into the file that the tenant's file names, which is opened before anything is
ordered: a secret that cannot be kept must not be made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from syncd.config import TenantConfig
from syncd.connector import Subscription
from syncd.errors import ConfigError, SyncdError
from syncd.wiring import PROPSTREET, Service, subscriber_of

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
#: One call sends a hundred again; so many calls are enough for any outage, and end where a count never does.
_MOST_CALLS: Final = 100


@dataclass(frozen=True, slots=True)
class Order:
    """A subscription that stands, and where its secret is. ``is_new``: it was made just now."""

    subscription: Subscription
    secret_file: Path
    is_new: bool


def url_of(tenant: str, public_url: str) -> str:
    """Where Propstreet is to send a tenant's webhooks. Raises ConfigError for a URL that it would not send to."""
    parts = urlsplit(public_url)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise ConfigError(f"webhooks are sent to https only, and {public_url} is not; put a proxy with TLS in front")
    return f"{public_url.rstrip('/')}/webhooks/{tenant}/{PROPSTREET}"


def register(service: Service, tenant: TenantConfig, public_url: str, *, is_anew: bool = False) -> Order:
    """Have Propstreet send everything; what is ordered already is kept if its secret is there.

    ``is_anew`` orders it again all the same. Raises ConfigError, before anything is ordered, if
    there is no place for the secret.
    """
    url, place = url_of(tenant.tenant, public_url), _place(tenant)
    with _opened(place) as keep:
        subscriber = subscriber_of(service, tenant)
        mine = [each for each in subscriber.subscriptions() if each.url == url]
        is_fit = len(mine) == 1 and mine[0].is_active is not False and _is_filled(place)
        if is_fit and not is_anew:
            return Order(mine[0], place, is_new=False)
        for each in mine:
            subscriber.unsubscribe(each.id)
        made, secret = subscriber.subscribe(url)
        try:
            keep(secret)
        except OSError as exc:
            subscriber.unsubscribe(made.id)
            raise SyncdError(f"{place}: the secret could not be written ({exc.strerror}); nothing is ordered") from exc
    return Order(made, place, is_new=True)


def orders(service: Service, tenant: TenantConfig) -> list[tuple[Subscription, bool]]:
    """All subscriptions of the account, and whether each sends to this tenant."""
    return [(each, _is_ours(tenant, each)) for each in subscriber_of(service, tenant).subscriptions()]


def remove(service: Service, tenant: TenantConfig) -> list[Subscription]:
    """Order no more, whatever host it was ordered for; the secret is of no more use and goes, too."""
    subscriber = subscriber_of(service, tenant)
    mine = [each for each in subscriber.subscriptions() if _is_ours(tenant, each)]
    for each in mine:
        subscriber.unsubscribe(each.id)
    with suppress(ConfigError, OSError):
        _place(tenant).unlink()
    return mine


def replay(service: Service, tenant: TenantConfig, since: datetime) -> int:
    """Have all that failed since then sent again; how many deliveries.

    What was never sent, while a subscription was disabled, does not come: the next run finds it.
    """
    subscriber = subscriber_of(service, tenant)
    mine = [each for each in subscriber.subscriptions() if _is_ours(tenant, each)]
    if not mine:
        raise ConfigError(f"nothing is ordered for {tenant.tenant}; run: syncd webhooks register {tenant.tenant}")
    count = 0
    for each in mine:
        for _ in range(_MOST_CALLS):
            some = subscriber.replay(each.id, since)
            count += some
            if some <= 0:
                break
    return count


def _is_ours(tenant: TenantConfig, subscription: Subscription) -> bool:
    return urlsplit(subscription.url).path.endswith(f"/webhooks/{tenant.tenant}/{PROPSTREET}")


# --- the secret -----------------------------------------------------------------------------


def _place(tenant: TenantConfig) -> Path:
    said = tenant.propstreet.webhooks
    if said is None or not said.refs[0].file:
        raise ConfigError(
            f"{tenant.file}: propstreet.webhooks: no file is named for the secret, which Propstreet shows only once. "
            "Write secret: {file: PATH}, in a folder that syncd may write to."
        )
    return Path(said.refs[0].file)


def _is_filled(place: Path) -> bool:
    try:
        return bool(place.read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return False


@contextmanager
def _opened(place: Path) -> Iterator[Callable[[str], None]]:
    """A file beside ``place`` that takes its place once the secret is in it; nothing is left of it otherwise."""
    beside = place.with_name(f".{place.name}.new")
    try:
        if place.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        beside.unlink(missing_ok=True)
        opened = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        raise ConfigError(
            f"{place}: the secret could not be kept there ({exc.strerror}), so that nothing was ordered. "
            "Name a file in a folder that syncd may write to: propstreet.webhooks.secret: {file: PATH}."
        ) from exc

    def keep(secret: str) -> None:
        file.write(f"{secret}\n".encode())
        file.flush()
        os.fsync(file.fileno())
        beside.replace(place)

    try:
        with os.fdopen(opened, "wb") as file:
            yield keep
    finally:
        beside.unlink(missing_ok=True)
