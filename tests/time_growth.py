"""Whether a function needs time in proportion to its text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def grows(
    function: Callable[[str], Any], piece: str, *, characters: int, beginning: str = "", end: str = "", seconds: float
) -> str | None:
    """What is said of a function that takes more than its share of time for a text of one repeated piece; None of one that does not.

    Args:
        function: It runs in the calling thread, whose CPU time is read: what else runs on the machine does not count.
        piece: The text repeats it up to `characters`, between `beginning` and `end`.
        seconds: Less than that is not looked at; a time in proportion to the square of the text would be far more.
    """

    def takes(times: int) -> float:
        text = beginning + piece * (times * characters // len(piece)) + end
        started = time.thread_time()
        function(text)
        return time.thread_time() - started

    if takes(1) < seconds or any(takes(2) / takes(1) <= 3 for _ in range(3)):
        return None
    growth = takes(4) / takes(1)  # a square gives 16: a machine that is slow for a moment does not
    return f"{beginning!r} {piece!r} {end!r}: {growth:.0f} times the time for 4 times the text" if growth > 9 else None
