"""The one retry policy and the pacing, in virtual time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from syncd.connector import Quota, Repeat
from syncd.engine.retry import ATTEMPTS, Courier, Patience
from syncd.errors import (
    DelayedError,
    HaltedError,
    LeaseLostError,
    RateLimitedError,
    RejectedError,
    TransientError,
    UnknownOutcomeError,
)


class Time:
    def __init__(self) -> None:
        self.at = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def courier(time: Time) -> Courier:
    return Courier(Patience(time.now, time.sleep, Random(1)))


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def exchange() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return exchange


def test_a_passing_failure_is_tried_again_with_growing_pauses(courier: Courier, time: Time) -> None:
    """Each pause doubles, with jitter, up to a limit."""
    assert courier.call(failing(*[TransientError("busy")] * 3), effect="read") == "answer"
    total = sum(time.slept)
    assert 0.5 + 1 + 2 <= total <= 1 + 2 + 4
    assert courier.calls["read"] == 4


def test_patience_has_an_end(courier: Courier) -> None:
    """After the last attempt the failure itself is raised."""
    with pytest.raises(TransientError, match="busy"):
        courier.call(failing(*[TransientError("busy")] * 10), effect="read")
    assert courier.calls["read"] == ATTEMPTS


def test_a_vendor_that_does_not_answer_is_given_up_sooner(courier: Courier, time: Time) -> None:
    """What takes a minute each time is tried twice: the rest of the patience is the next run's."""

    def hang() -> str:
        time.at += timedelta(seconds=60)
        assert courier.waits_since == time.at - timedelta(seconds=60)
        raise TransientError("no answer", is_sent=True)

    with pytest.raises(TransientError, match="no answer"):
        courier.call(hang, effect="read")
    assert (courier.calls["read"], courier.waits_since) == (2, None)


def test_what_the_vendor_asks_for_is_respected(courier: Courier, time: Time) -> None:
    """Retry-After counts, not our own guess."""
    courier.call(failing(RateLimitedError("429", pause_seconds=42)), effect="read")
    assert 42 <= sum(time.slept) <= 42.25


def test_a_usual_pause_grows_with_each_attempt(courier: Courier, time: Time) -> None:
    """Where the vendor says no time, a quota that others use up as well is left alone longer each time."""
    courier.call(failing(*[RateLimitedError("429", pause_seconds=10, is_growing=True)] * 4), effect="read")
    assert 10 + 20 + 30 + 40 <= sum(time.slept) <= 10 + 20 + 30 + 40 + 1


def test_a_write_whose_answer_was_lost_is_not_sent_again(courier: Courier) -> None:
    """Unless sending twice does no harm, the outcome is unknown."""
    lost = TransientError("timed out", is_sent=True)
    with pytest.raises(UnknownOutcomeError):
        courier.call(failing(lost), effect="write", repeat="unsent")
    assert courier.calls["write"] == 1
    assert courier.call(failing(lost), effect="write") == "answer"


@pytest.mark.parametrize("repeat", ["unsent", "never"])
def test_what_became_of_a_write_is_not_asked_before_the_vendor_is_ready(
    courier: Courier, time: Time, repeat: Repeat
) -> None:
    """The look comes no sooner than the vendor asked for, or than a repetition would come."""
    for asked, least, most in ((42.0, 42.0, 42.25), (None, 0.5, 1.0)):
        before = sum(time.slept)
        with pytest.raises(UnknownOutcomeError):
            courier.call(
                failing(TransientError("503", is_sent=True, pause_seconds=asked)), effect="write", repeat=repeat
            )
        assert least <= sum(time.slept) - before <= most


@pytest.mark.parametrize("is_sent", [False, True])
@pytest.mark.parametrize("repeat", ["always", "unsent", "never"])
def test_a_vendor_that_is_away_for_long_is_left_alone(
    courier: Courier, time: Time, repeat: Repeat, is_sent: bool
) -> None:
    """An hour of maintenance is not slept through inside a run; what may have been sent is looked up by a later one."""
    away = TransientError("503", is_sent=is_sent, pause_seconds=3_600)
    with pytest.raises(TransientError):
        courier.call(failing(away), effect="write", repeat=repeat)
    assert time.slept == []
    assert courier.resting_until == time.at + timedelta(seconds=3_600)


def test_a_write_that_was_never_sent_may_be_sent(courier: Courier) -> None:
    """A refused connection had no effect."""
    assert courier.call(failing(TransientError("refused")), effect="write", repeat="unsent") == "answer"


def test_a_write_that_no_condition_guards_waits_and_is_left_to_another_look(courier: Courier, time: Time) -> None:
    """What it is about may have moved meanwhile; the pause grows with each refusal, and patience has an end."""
    busy = TransientError("busy")
    for attempt in range(ATTEMPTS - 1):
        before = sum(time.slept)
        with pytest.raises(DelayedError):
            courier.call(failing(busy), effect="write", repeat="never")
        assert 2**attempt / 2 <= sum(time.slept) - before <= 2**attempt
    with pytest.raises(TransientError):
        courier.call(failing(busy), effect="write", repeat="never")
    assert courier.call(failing(), effect="write", repeat="never") == "answer"
    with pytest.raises(DelayedError):
        courier.call(failing(busy), effect="write", repeat="never")


def test_a_look_and_the_write_after_it_are_not_kept_apart_by_a_quota(time: Time) -> None:
    """Room is made for both before the first: whoever edits in between is asked about in that instant."""
    courier = Courier(Patience(time.now, time.sleep, Random(1)))
    courier.allow([Quota("default", 5, 10.0)])
    for _ in range(7):
        courier.make_room(2)
        looked = courier.call(lambda: time.at, effect="read")
        assert courier.call(lambda: time.at, effect="write") == looked


def test_a_spent_day_ends_the_run_and_is_remembered(courier: Courier, time: Time) -> None:
    """A daily limit is not waited for; until when to rest is kept."""
    with pytest.raises(RateLimitedError):
        courier.call(failing(RateLimitedError("day", pause_seconds=40_000, is_daily=True)), effect="read")
    assert time.slept == []
    assert courier.resting_until == time.at + timedelta(seconds=40_000)


def test_a_refusal_for_good_is_not_repeated(courier: Courier) -> None:
    """Only what passes by itself is tried again."""
    with pytest.raises(RejectedError):
        courier.call(failing(RejectedError("no")), effect="write")
    assert courier.calls["write"] == 1


def test_a_quota_is_never_exceeded_in_any_window(time: Time) -> None:
    """At most the tenant's share of the vendor's calls in the vendor's seconds."""
    courier = Courier(Patience(time.now, time.sleep, Random(1)), share=0.5)
    courier.allow([Quota("default", 10, 10.0)])
    sent: list[datetime] = []
    for _ in range(23):
        courier.call(lambda: sent.append(time.at), effect="read")
    for start in sent:
        assert sum(start <= each < start + timedelta(seconds=10) for each in sent) <= 5


def test_a_quota_is_never_exceeded_as_the_vendor_counts(time: Time) -> None:
    """One call that arrives late and another that arrives at once are still far enough apart."""
    courier = Courier(Patience(time.now, time.sleep, Random(1)))
    courier.allow([Quota("search", 5, 1.0)])
    arrived: list[datetime] = []

    def exchange() -> None:
        time.at += timedelta(milliseconds=150 if len(arrived) % 5 == 0 and len(arrived) % 2 == 0 else 0)
        arrived.append(time.at)

    for _ in range(23):
        courier.call(exchange, effect="read", bucket="search")
    for start in arrived:
        assert sum(start <= each < start + timedelta(seconds=1) for each in arrived) <= 5


def test_headers_that_say_nothing_is_left_are_heeded(courier: Courier, time: Time) -> None:
    """Others use the account too: the vendor's own count wins."""
    courier.observe("default", remaining=0, reset_seconds=7)
    courier.call(lambda: None, effect="read")
    assert sum(time.slept) == 7


def test_a_dry_run_lets_no_write_through() -> None:
    """Whatever a connector tries, a plan makes reading calls only."""
    time = Time()
    courier = Courier(Patience(time.now, time.sleep, Random(1)), is_dry=True)
    with pytest.raises(HaltedError):
        courier.call(lambda: None, effect="write")
    assert courier.calls["write"] == 0


def test_a_long_wait_keeps_the_lease_and_a_lost_one_stops_the_call(courier: Courier, time: Time) -> None:
    """There is a beat before every slice of a sleep and right before every exchange."""
    beats: list[datetime] = []
    courier.on_beat = lambda: beats.append(time.at)
    courier.observe("default", remaining=0, reset_seconds=60)
    courier.call(lambda: None, effect="read")
    assert max(b - a for a, b in itertools.pairwise(beats)) <= timedelta(seconds=5)

    def lost() -> None:
        raise LeaseLostError("gone")

    courier.on_beat = lost
    with pytest.raises(LeaseLostError):
        courier.call(lambda: None, effect="read")
