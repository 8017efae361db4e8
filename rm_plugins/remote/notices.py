"""Tells what goes wrong while requests are sent again: each kind of trouble at once, and then how often, not every time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

__all__ = ["Notices"]


class Notices:
    """Log lines, of which each kind is written once in `interval` seconds of the `clock`, and counted then."""

    def __init__(self, logger: logging.Logger, *, interval: float = 30.0, clock: Callable[[], float] = monotonic) -> None:
        self._logger = logger
        self._interval = interval
        self._clock = clock
        self._kinds: dict[object, tuple[float, int]] = {}

    def say(self, kind: object, text: str, level: int = logging.WARNING) -> None:
        """Write the text, unless one of this hashable kind was just written."""
        now = self._clock()
        written_at, unwritten = self._kinds.get(kind, (None, 0))
        if written_at is not None and now - written_at < self._interval:
            self._kinds[kind] = (written_at, unwritten + 1)
            return
        self._kinds[kind] = (now, 0)
        more = (
            f" ({unwritten} more like it in the last {now - written_at:.0f} s)" if unwritten and written_at is not None else ""
        )
        self._logger.log(level, "%s%s", text, more)
