"""Every exception of syncd, named for what happens next.

A message says what happened, to which thing, and what to do. It carries refs and field
names, never field values, response bodies or secrets. SDK and HTTP exceptions stop at a
connector's ``client.py``, which chains one of these from them.
"""

from __future__ import annotations


class SyncdError(Exception):
    """Root of all errors that syncd raises on purpose."""


class TransientError(SyncdError):
    """The call failed in a way that passes by itself; only the retry policy catches it.

    ``is_sent`` is true when the request may have taken effect although no answer came.
    """

    def __init__(self, message: str, *, is_sent: bool = False, pause_seconds: float | None = None):
        super().__init__(message)
        self.is_sent = is_sent
        self.pause_seconds = pause_seconds


class RateLimitedError(TransientError):
    """The vendor asked for patience: ``pause_seconds`` from now, or the policy's own guess if None.

    ``bucket`` names the exhausted quota. ``is_daily`` means that waiting inside this run is
    pointless: the connection rests until the vendor's day turns. ``is_growing``: a pause that is
    usual with this vendor, not one it asked for, so that each further attempt waits once more as long.
    """

    def __init__(
        self,
        message: str,
        *,
        bucket: str = "default",
        pause_seconds: float | None = None,
        is_daily: bool = False,
        is_growing: bool = False,
    ):
        super().__init__(message, is_sent=False, pause_seconds=pause_seconds)
        self.bucket = bucket
        self.is_daily = is_daily
        self.is_growing = is_growing


class UnknownOutcomeError(SyncdError):
    """A write was sent and its answer was lost: look it up, never send it again blindly."""


class DelayedError(SyncdError):
    """A write was refused before any effect, and that was waited for: look again, then send."""


class StaleVersionError(SyncdError):
    """The record moved since it was read: read it again and merge again."""


class RejectedError(SyncdError):
    """The vendor refuses this request and always will: a dead letter, after bisecting a batch."""


class MissingError(SyncdError):
    """The record is not there, or not visible: a possible tombstone, to be confirmed by a second read."""


class AuthError(SyncdError):
    """The credential is wrong, expired for good or lacks a permission: stops the connection."""


class ContractError(SyncdError):
    """The vendor answered something its contract does not know: stops the connection, guesses nothing."""


class ForgedError(SyncdError):
    """A delivery that claims to be a vendor's webhook is not proved to be one, or is too old: refused, and not read."""


class HaltedError(SyncdError):
    """A brake stopped the pair; a person must say go. ``plan_id`` names the plan that waits."""

    def __init__(self, message: str, *, plan_id: str | None = None):
        super().__init__(message)
        self.plan_id = plan_id


class LeaseLostError(SyncdError):
    """Another worker holds the pair now: stop at once and write nothing more."""


class StoppedError(SyncdError):
    """The process was asked to stop: nothing more is sent, what is in hand is settled."""


class ConfigError(SyncdError):
    """The configuration or the set-up is wrong; the message names file, path and fix."""


class PlanMovedError(SyncdError):
    """A record moved after the plan was made, so applying it would not do what it shows."""


class AnswerError(SyncdError):
    """A person's answer cannot be carried out; the message says why, and which one can."""


class NotFoundError(SyncdError):
    """The named plan, run, record or review is not known here."""


class RefusedError(SyncdError):
    """A visitor of the operator's page may not do this; ``status`` is what HTTP calls it."""

    def __init__(self, status: int, message: str, *, pause_seconds: int | None = None):
        super().__init__(message)
        self.status = status
        self.pause_seconds = pause_seconds
