"""Delays before retries. Pure functions: they neither sleep nor read a clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime

FIRST_DELAY = 0.5
LONGEST_DELAY = 8.0
LONGEST_RETRY_AFTER = 60.0

_JITTER = 0.25


def backoff(failures: int, jitter: float) -> float:
    """Seconds to wait after `failures` failures in a row (at least 1): 0.5, 1, 2, 4, at most 8, minus up to a quarter.

    The random `jitter`, from 0 to 1, spreads the retries of requests that failed at the same time.

    >>> backoff(1, 0.0), backoff(3, 0.0), backoff(3, 1.0), backoff(1000, 0.0)
    (0.5, 2.0, 1.5, 8.0)
    """
    doublings = min(failures - 1, 30)  # more would overflow and change nothing
    return min(FIRST_DELAY * 2.0**doublings, LONGEST_DELAY) * (1 - _JITTER * jitter)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds after which a server asks to retry, at most 60; None if it does not ask or the header is invalid.

    ``retry-after-ms`` takes precedence over ``retry-after``, which holds seconds or a date. `headers` are by lower-case name; `now` is in
    seconds since the epoch.

    >>> retry_after({"retry-after": "2"}, 0.0), retry_after({"retry-after-ms": "250", "retry-after": "2"}, 0.0)
    (2.0, 0.25)
    >>> retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:30 GMT"}, 10.0)
    20.0
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            number = float(headers[name])
            if math.isfinite(number):
                return _within_reason(number * unit)
    with suppress(KeyError, ValueError, OverflowError):
        return _within_reason(parsedate_to_datetime(headers["retry-after"]).timestamp() - now)
    return None


def _within_reason(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
