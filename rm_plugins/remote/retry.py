"""How long to wait before a request is sent again. Pure functions: they neither sleep nor look at a clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime

__all__ = ["FIRST_DELAY", "LONGEST_DELAY", "LONGEST_RETRY_AFTER", "backoff", "retry_after"]

FIRST_DELAY = 0.5
LONGEST_DELAY = 8.0
LONGEST_RETRY_AFTER = 60.0

_JITTER = 0.25


def backoff(failures: int, jitter: float) -> float:
    """Seconds to wait after at least one failure in a row: 0.5, 1, 2, 4, and never more than 8, less up to a quarter.

    The jitter, from 0 to 1, is random, so that those who failed together do not come back together.

    >>> backoff(1, 0.0), backoff(3, 0.0), backoff(3, 1.0), backoff(1000, 0.0)
    (0.5, 2.0, 1.5, 8.0)
    """
    doublings = min(failures - 1, 30)  # more change nothing, and overflow
    return min(FIRST_DELAY * 2.0**doublings, LONGEST_DELAY) * (1 - _JITTER * jitter)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to be left alone, at most a minute; None where it asks nothing that can be read.

    ``retry-after-ms`` goes before ``retry-after``, which has seconds or a date. `headers` are by lower-case name; `now` is in
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
