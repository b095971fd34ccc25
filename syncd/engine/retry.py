"""The one retry policy and the pacing of a connection.

Every HTTP exchange of a connector goes through ``Courier.call``: it waits until the quota of the
call's bucket allows, sends, and repeats what may be repeated. A quota is kept in two ways: by
counting our own calls in the vendor's window, at the tenant's share of it, and by what the
vendor's headers say is left.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Literal, Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from syncd.connector import Quota, Repeat
from syncd.errors import DelayedError, HaltedError, RateLimitedError, TransientError, UnknownOutcomeError

T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
#: A call that was repeated for so long is given up, unless the vendor itself says when to come again.
LONGEST_CALL_SECONDS = 90.0
#: A vendor that asks for more patience than this is left alone until then; the run ends.
REST_SECONDS = 300.0
#: No vendor's window is longer: to wait for more than this, our clock must have gone back meanwhile.
LONGEST_WAIT_SECONDS = 3_600.0
#: The longest sleep without a beat; well below a lease's life.
SLICE_SECONDS = 5.0


@dataclass(slots=True)
class Patience:
    """Time as the retry policy needs it; tests and the simulation pass their own."""

    now: Callable[[], datetime]
    sleep: Callable[[float], None]
    random: Random


@dataclass(slots=True)
class _Window:
    quota: Quota
    share: float
    sent: deque[datetime] = field(default_factory=deque)

    def wait_seconds(self, at: datetime, calls: int = 1) -> float:
        """How long until so many more calls fit; 0 if they fit now."""
        horizon = at - timedelta(seconds=self.quota.seconds)
        while self.sent and self.sent[0] <= horizon:
            self.sent.popleft()
        while self.sent and self.sent[-1] > at:
            self.sent.pop()  # our clock went back; waiting for that time to come again would be no pacing
        excess = len(self.sent) + calls - max(calls, int(self.quota.calls * self.share))
        return (self.sent[excess - 1] - horizon).total_seconds() if excess > 0 else 0.0

    def usage(self, at: datetime) -> tuple[int, int]:
        """Calls sent in the window that ends now, and how many may be; changes nothing, so that any thread may ask."""
        horizon = at - timedelta(seconds=self.quota.seconds)
        return sum(horizon < each <= at for each in self.sent.copy()), max(1, int(self.quota.calls * self.share))


class Ledger(Protocol):
    """What is left of an account's quotas among all who use it; see ``syncd.state.budget.Budget``."""

    def room(self, quota: Quota, calls: int, at: datetime) -> float: ...

    def spend(self, bucket: str, at: datetime) -> None: ...


class Courier:
    """Carries the calls of one connection: paces, retries, counts; refuses writes in a dry run.

    ``on_beat`` is called before every exchange, so that a lease is renewed however long a run takes.
    """

    def __init__(
        self,
        patience: Patience,
        *,
        share: float = 1.0,
        is_dry: bool = False,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._patience = patience
        self._share = share
        self._windows: dict[str, _Window] = {}
        self._resume_at: dict[str, datetime] = {}
        self.is_dry = is_dry
        self.on_beat = on_beat
        self.calls: Counter[Literal["read", "write"]] = Counter()
        self.refusals = 0
        self.lost_answers = 0
        """Calls that may have taken effect although no answer came, whether or not they were repeated."""
        self.resting_until: datetime | None = None
        self.waits_since: datetime | None = None
        """Since when the run does nothing but wait, for an answer or for its turn. Any thread may ask."""
        self.ledger: Ledger | None = None
        """Where others use the same account: what of its quotas is left for this connection."""
        self._delays = 0
        """Refusals in a row of writes that are not sent again without another look."""
        self._begun_at = patience.now()
        self._patiently = Retrying(
            retry=retry_if_exception(_may_repeat),
            wait=self._pause,
            stop=self._is_enough,
            sleep=self._wait,
            reraise=True,
        )

    def allow(self, quotas: Iterable[Quota]) -> None:
        """Learn the vendor's quotas; buckets without one are not paced."""
        for quota in quotas:
            window = self._windows.get(quota.bucket)
            self._windows[quota.bucket] = _Window(quota, self._share, window.sent if window else deque())

    def usage(self) -> dict[str, tuple[int, int]]:
        """By bucket the calls sent in its current window, and how many may be. Any thread may ask."""
        now = self._patience.now()
        return {bucket: window.usage(now) for bucket, window in self._windows.copy().items()}

    def observe(self, bucket: str, *, remaining: int, reset_seconds: float) -> None:
        """Hold back when the vendor says that nearly nothing is left of a quota, for others' sake too."""
        if remaining <= 1:
            until = self._patience.now() + timedelta(seconds=max(0.0, reset_seconds))
            self._resume_at[bucket] = max(until, self._resume_at.get(bucket, until))

    def call(
        self,
        exchange: Callable[[], T],
        *,
        effect: Literal["read", "write"],
        bucket: str = "default",
        repeat: Repeat = "always",
    ) -> T:
        """See ``syncd.connector.Wire.call``."""
        if effect == "write" and self.is_dry:
            raise HaltedError("a dry run writes nothing")

        def attempt() -> T:
            self._pace(bucket)
            self.on_beat()
            self.calls[effect] += 1
            self.waits_since = self._patience.now()
            try:
                return exchange()
            except TransientError as exc:
                self.refusals += isinstance(exc, RateLimitedError)
                self.lost_answers += exc.is_sent
                self._take_rest(exc)
                if exc.is_sent and repeat != "always" and _may_repeat(exc):
                    raise UnknownOutcomeError(str(exc)) from exc
                raise
            finally:
                self.waits_since = None
                self._arrived(bucket)

        self._begun_at = self._patience.now()
        try:
            return self._once(attempt) if repeat == "never" else self._patiently(attempt)
        except UnknownOutcomeError as exc:
            # The look at what became of it comes no sooner than a repetition would, nor does a write after it.
            self._wait(self._pause_after(exc.__cause__, 1))
            raise

    def make_room(self, calls: int, bucket: str = "default") -> None:
        """Wait until that many calls fit, so that a look and the write that relies on it are not kept apart."""
        self._hold_back(bucket, calls)

    def _once(self, attempt: Callable[[], T]) -> T:
        """Wait after a refusal as long as ever, but leave it to the caller to look again before the next attempt."""
        try:
            answer = attempt()
        except TransientError as exc:
            self._delays += 1
            if not _may_repeat(exc) or self._delays >= ATTEMPTS:
                raise
            self._wait(self._pause_after(exc, self._delays))
            raise DelayedError(str(exc)) from exc
        self._delays = 0
        return answer

    def _pace(self, bucket: str) -> None:
        self._hold_back(bucket)
        window = self._windows.get(bucket)
        if window is not None:
            window.sent.append(self._patience.now())
            if self.ledger is not None:
                self.ledger.spend(bucket, self._patience.now())

    def _hold_back(self, bucket: str, calls: int = 1) -> None:
        now = self._patience.now()
        wait = (self._resume_at.pop(bucket, now) - now).total_seconds()
        if wait > LONGEST_WAIT_SECONDS:
            wait = 0.0
        window = self._windows.get(bucket)
        if window is not None:
            wait = max(wait, window.wait_seconds(now, calls))
        if wait > 0:
            self._wait(wait)
        if window is not None and self.ledger is not None:
            while (wait := self.ledger.room(window.quota, calls, self._patience.now())) > 0:
                self._wait(min(wait, LONGEST_WAIT_SECONDS))

    def _arrived(self, bucket: str) -> None:
        """Count the call from its end: when on its way the vendor counted it, nobody here can tell."""
        window = self._windows.get(bucket)
        if window is not None and window.sent:
            window.sent[-1] = self._patience.now()

    def _wait(self, seconds: float) -> None:
        """Sleep in slices, with a beat before each, so that a long wait loses no lease and hears a stop."""
        self.waits_since = self._patience.now()
        try:
            while seconds > 0:
                self.on_beat()
                slice_ = min(seconds, SLICE_SECONDS)
                self._patience.sleep(slice_)
                seconds -= slice_
        finally:
            self.waits_since = None

    def _take_rest(self, exc: TransientError) -> None:
        if not _may_repeat(exc):
            self.resting_until = self._patience.now() + timedelta(seconds=exc.pause_seconds or REST_SECONDS)

    def _is_enough(self, state: RetryCallState) -> bool:
        """A vendor that does not answer at all costs a minute each time, and is left to the next run sooner."""
        exc = state.outcome.exception() if state.outcome else None
        if state.attempt_number >= ATTEMPTS or not isinstance(exc, TransientError):
            return True
        spent = (self._patience.now() - self._begun_at).total_seconds()
        return exc.pause_seconds is None and spent >= LONGEST_CALL_SECONDS

    def _pause(self, state: RetryCallState) -> float:
        """What the vendor asked for, else doubling with full jitter."""
        return self._pause_after(state.outcome.exception() if state.outcome else None, state.attempt_number)

    def _pause_after(self, exc: BaseException | None, attempt: int) -> float:
        asked = exc.pause_seconds if isinstance(exc, TransientError) else None
        if asked is not None:
            if isinstance(exc, RateLimitedError) and exc.is_growing:
                asked = min(LONGEST_PAUSE_SECONDS, asked * attempt)
            return asked + self._patience.random.uniform(0.0, 0.25)
        ceiling = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1))
        return self._patience.random.uniform(ceiling / 2, ceiling)


def _may_repeat(exc: BaseException) -> bool:
    """Whether it passes within a run. A write's outcome, too, is looked up after a longer rest: by the next run."""
    if not isinstance(exc, TransientError) or (exc.pause_seconds or 0) > REST_SECONDS:
        return False
    return not (isinstance(exc, RateLimitedError) and exc.is_daily)
