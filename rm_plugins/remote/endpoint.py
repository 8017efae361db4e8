"""What is known of one server: how much it can take, and whether it is there. No network and no clock in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rm_plugins.errors import RmPluginsError
from rm_plugins.protocols.protocol import ServerFacts
from rm_plugins.remote.request_failure import RequestFailure
from rm_plugins.remote.retry import backoff

_FAILURE_COSTS = 1.0
"""Seconds that a failure adds to how long a server seems to take: one that fails at once is not a fast one."""


class ConcurrencyLimit:
    """How many requests a server is sent at a time: `most` at first, slowly more while it answers, half once it is overloaded."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._value = float(most)
        self._halved_at = -math.inf

    @property
    def value(self) -> int:
        """Requests at a time, at least 1."""
        return int(self._value)

    def succeeded(self) -> None:
        """Allow one more after as many answers as are allowed at a time."""
        self._value = min(self.most, self._value + 1 / self._value)

    def overloaded(self, sent_at: float, now: float) -> None:
        """Allow half as many; once only for requests that were under way together."""
        if sent_at >= self._halved_at:
            self._value = max(1.0, self._value / 2)
            self._halved_at = now


class Breaker:
    """Keeps requests from a server after `threshold` failures in a row, and has one of them try it after a pause.

    The pause grows like that before a retry, each time that the trial fails.
    """

    def __init__(self, threshold: int = 5) -> None:
        self.threshold = threshold
        self._failures = 0
        self._times_opened = 0
        self._closes_at = -math.inf

    @property
    def is_open(self) -> bool:
        """Whether the server is to be left alone, or to be tried by one request at a time."""
        return self._times_opened > 0

    def wait(self, now: float) -> float:
        """Seconds until the server may be tried; 0 where it may be now."""
        return max(0.0, self._closes_at - now) if self.is_open else 0.0

    def succeeded(self) -> None:
        """Close it."""
        self._failures = self._times_opened = 0

    def failed(self, sent_at: float, now: float) -> None:
        """Count a failure, and open it at the threshold; what was sent before it opened says nothing new."""
        if self.is_open and sent_at < self._closes_at:
            return
        self._failures += 1
        if self.is_open or self._failures >= self.threshold:
            self._times_opened += 1
            self._closes_at = now + backoff(1 + self._times_opened, jitter=0.0)


@dataclass(eq=False)
class Endpoint:
    """A server, as one provider knows it.

    Args:
        url: Without a slash at its end.
        limit: How many requests it is sent at a time.
        breaker: Whether it is left alone.
        facts: What it told of itself; None until it was asked, and again after it was gone.
        left_out: Why it cannot be used at all.
    """

    url: str
    limit: ConcurrencyLimit
    breaker: Breaker = field(default_factory=Breaker)
    facts: ServerFacts | None = None
    left_out: RmPluginsError | None = None
    in_flight: int = 0
    latency: float = 0.0
    heard_at: float = -math.inf
    not_before: float = -math.inf
    trouble: str = ""

    def wait(self, now: float) -> float:
        """Seconds until it may be sent a request: 0, infinite where something else must happen first."""
        one_at_a_time = self.breaker.is_open and self.in_flight > 0
        if self.facts is None or self.left_out or self.in_flight >= self.limit.value or one_at_a_time:
            return math.inf
        return max(self.breaker.wait(now), self.not_before - now, 0.0)

    @property
    def load(self) -> tuple[float, float]:
        """What the next request meets here, to be compared: how long it will take, and how full the server is."""
        fullness = (self.in_flight + 1) / self.limit.value
        return fullness * self.latency, fullness

    def answered(self, sent_at: float, now: float) -> None:
        """Take note of a good answer."""
        self.limit.succeeded()
        self.breaker.succeeded()
        self._took(now - sent_at)
        self.heard_at = now
        self.trouble = ""

    def failed(self, failure: RequestFailure, sent_at: float, now: float) -> None:
        """Take note of a request without scores."""
        self.trouble = str(failure)
        self._took(now - sent_at + _FAILURE_COSTS)
        self.not_before = max(self.not_before, now + (failure.retry_after or 0.0))
        if failure.cause in ("overload", "timeout"):
            self.limit.overloaded(sent_at, now)
        if failure.speaks_of_the_server:
            self.breaker.failed(sent_at, now)
        if failure.cause == "connection" or self.breaker.is_open:
            self.facts = None  # another server may come back in its place

    def _took(self, seconds: float) -> None:
        self.latency = 0.8 * self.latency + 0.2 * seconds if self.latency else seconds
