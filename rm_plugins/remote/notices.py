"""Logs recurring problems without repeating each line: the first of a kind at once, later ones as a count."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic


class Notices:
    """Writes each kind of log line at most once per `interval` seconds of the `clock`, and counts the others."""

    def __init__(self, logger: logging.Logger, *, interval: float = 30.0, clock: Callable[[], float] = monotonic) -> None:
        self._logger = logger
        self._interval = interval
        self._clock = clock
        self._kinds: dict[object, tuple[float, int]] = {}

    def say(self, kind: object, text: str, level: int = logging.WARNING) -> None:
        """Write the text, unless a line of this hashable kind was written within the interval."""
        now = self._clock()
        written_at, unwritten = self._kinds.get(kind, (None, 0))
        if written_at is not None and now - written_at < self._interval:
            self._kinds[kind] = (written_at, unwritten + 1)
            return
        self._kinds[kind] = (now, 0)
        more = (
            f" ({unwritten} more like this in the last {now - written_at:.0f} s)"
            if unwritten and written_at is not None
            else ""
        )
        self._logger.log(level, "%s%s", text, more)
