"""The state of one server: how much load it takes, and whether it is available. Uses no network and no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rm_plugins.errors import RmPluginsError
from rm_plugins.protocols.protocol import ServerFacts
from rm_plugins.remote.request_failure import RequestFailure
from rm_plugins.remote.retry import backoff

_FAILURE_COSTS = 1.0
"""Seconds that a failure adds to the measured latency, so that a server that fails quickly does not count as fast."""


class ConcurrencyLimit:
    """The number of concurrent requests to a server: starts at `most`, is halved on overload, and grows back slowly with answers."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._value = float(most)
        self._halved_at = -math.inf

    @property
    def value(self) -> int:
        """The number of concurrent requests, at least 1."""
        return int(self._value)

    def succeeded(self) -> None:
        """Count an answer; after as many answers as the current limit, the limit grows by one."""
        self._value = min(self.most, self._value + 1 / self._value)

    def overloaded(self, sent_at: float, now: float) -> None:
        """Halve the limit, but only once for requests that were under way at the same time."""
        if sent_at >= self._halved_at:
            self._value = max(1.0, self._value / 2)
            self._halved_at = now


class Breaker:
    """A circuit breaker: stops requests to a server after `threshold` failures in a row, and allows one trial after a pause.

    The pause grows like the delay before retries each time a trial fails.
    """

    def __init__(self, threshold: int = 5) -> None:
        self.threshold = threshold
        self._failures = 0
        self._times_opened = 0
        self._closes_at = -math.inf

    @property
    def is_open(self) -> bool:
        """Whether requests are stopped, or only a trial is allowed."""
        return self._times_opened > 0

    def wait(self, now: float) -> float:
        """Seconds until a request is allowed; 0 if one is allowed now."""
        return max(0.0, self._closes_at - now) if self.is_open else 0.0

    def succeeded(self) -> None:
        """Close it."""
        self._failures = self._times_opened = 0

    def failed(self, sent_at: float, now: float) -> None:
        """Count a failure, and open it at the threshold; failures of requests from before it opened do not count."""
        if self.is_open and sent_at < self._closes_at:
            return
        self._failures += 1
        if self.is_open or self._failures >= self.threshold:
            self._times_opened += 1
            self._closes_at = now + backoff(1 + self._times_opened, jitter=0.0)


@dataclass(eq=False)
class Endpoint:
    """The state of a server for one provider.

    Args:
        url: The URL without a trailing slash.
        limit: The limit on concurrent requests.
        breaker: The circuit breaker.
        facts: The facts about the server; None until it was asked for them, and after it was unreachable.
        left_out: Why the server cannot be used; None if it can.
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
    absent_since: float = math.inf
    """When it was first asked of the attempts in a row at which nothing listened; infinite if the last one met something."""

    def wait(self, now: float) -> float:
        """Seconds until a request may be sent; infinite if something else must happen first."""
        one_at_a_time = self.breaker.is_open and self.in_flight > 0
        if self.facts is None or self.left_out or self.in_flight >= self.limit.value or one_at_a_time:
            return math.inf
        return max(self.breaker.wait(now), self.not_before - now, 0.0)

    @property
    def load(self) -> tuple[float, float]:
        """The load for comparing servers: the expected duration of the next request, and the used share of the limit."""
        fullness = (self.in_flight + 1) / self.limit.value
        return fullness * self.latency, fullness

    def answered(self, sent_at: float, now: float) -> None:
        """Record a valid answer."""
        self.limit.succeeded()
        self.breaker.succeeded()
        self._took(now - sent_at)
        self.heard_at = now
        self.trouble = ""

    def failed(self, failure: RequestFailure, sent_at: float, now: float) -> None:
        """Record a failed request."""
        self.trouble = str(failure)
        self._took(now - sent_at + _FAILURE_COSTS)
        self.not_before = max(self.not_before, now + (failure.retry_after or 0.0))
        if failure.cause in ("overload", "timeout"):
            self.limit.overloaded(sent_at, now)
        if failure.speaks_of_the_server:
            self.breaker.failed(sent_at, now)
        if failure.cause == "connection" or self.breaker.is_open:
            self.facts = None  # another server may replace it

    def _took(self, seconds: float) -> None:
        self.latency = 0.8 * self.latency + 0.2 * seconds if self.latency else seconds
