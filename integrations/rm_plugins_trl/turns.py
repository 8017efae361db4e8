"""Rewards that score at the same time, in several processes: they communicate with other processes one after another.

Processes that communicate must do so in the same order. Rewards that a trainer awaits together end in any order, so each takes a turn when
it is called, which happens in the same order in all processes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import rm_plugins as rm
from rm_plugins.providers.combinators.parts import compares_samples, learns_while_scoring
from rm_plugins.providers.function import FunctionProvider


class Turn:
    """The place of a reward in the order.

    Args:
        before: The end of the turn before it; None for the first.
    """

    def __init__(self, before: Future[None] | None) -> None:
        self._before = before
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # so that a reward that is cancelled while it waits does not cancel it

    async def come(self) -> None:
        """Wait until all earlier turns have ended."""
        if self._before is not None:
            await asyncio.wrap_future(self._before)

    def end(self) -> None:
        """Let the next one come, as soon as all earlier turns have ended too."""
        if self._before is None:
            self.ended.set_result(None)
        else:
            self._before.add_done_callback(lambda _: self.ended.set_result(None))
            self._before = None


class Turns:
    """The order of the rewards of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Future[None] | None = None

    @contextmanager
    def take(self) -> Iterator[Turn]:
        """The next turn, which ends with the block."""
        with self._lock:
            turn = Turn(self._last)
            self._last = turn.ended
        try:
            yield turn
        finally:
            turn.end()


def communicates(provider: rm.Provider) -> bool:
    """Whether a reward may communicate with other processes while it scores."""
    return compares_samples(provider) or any(map(_communicates, (part for _, part in provider.walk())))


def _communicates(part: rm.Provider) -> bool:
    if isinstance(part, FunctionProvider):
        return not part.concurrent  # a user's function may do anything
    return learns_while_scoring(part) or any(_is_shared(model) for model in part.models.values())


def _is_shared(trained: Any) -> bool:
    """Whether a model is distributed over processes, each of which must run its forwards with the others."""
    from rm_plugins.engine.shards import shards_of

    return getattr(trained.settings, "tp_plan", None) is not None or shards_of(trained.model) is not None
