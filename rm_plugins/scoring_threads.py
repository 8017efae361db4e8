"""Threads that score for callers with an event loop, and that stop when these no longer wait."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

from rm_plugins.per_process import PerProcess

Result = TypeVar("Result")


class ScoringStopped(BaseException):
    """The caller no longer waits for these scores.

    Like `asyncio.CancelledError` it is not an `Exception`: it is not a failure, and no fallback scores instead.
    """


class Stop:
    """Whether a caller has stopped waiting, and what ends then."""

    def __init__(self) -> None:
        self.is_set = False
        self._lock = threading.Lock()
        self._ends: list[Callable[[], object]] = []

    def set(self) -> None:
        """End everything that is waited for now, and what will be."""
        with self._lock:
            self.is_set = True
            ends = [*self._ends]
        for end in ends:
            end()

    @contextmanager
    def calling(self, end: Callable[[], object]) -> Iterator[None]:
        """Within it, `set` calls `end`."""
        with self._lock:
            self._ends.append(end)
            is_late = self.is_set
        try:
            if is_late:
                end()
            yield
        finally:
            with self._lock:
                self._ends.remove(end)


_stop: ContextVar[Stop | None] = ContextVar("rm_plugins_stop", default=None)
_computes: ContextVar[bool] = ContextVar("rm_plugins_computes", default=False)
"""Whether this code runs in the thread in which rewards that compute take turns."""


def check_awaited() -> None:
    """Stop here if the caller no longer waits.

    Raises:
        ScoringStopped: It does not.
    """
    stop = _stop.get()
    if stop is not None and stop.is_set:
        raise ScoringStopped


@contextmanager
def ended_by_stop(end: Callable[[], object]) -> Iterator[None]:
    """Within it, `end` is called, in another thread, if the caller stops waiting.

    Args:
        end: Makes what this thread waits for end with any exception.

    Raises:
        ScoringStopped: The caller has stopped waiting.
    """
    stop = _stop.get()
    if stop is None:
        yield
        return
    try:
        with stop.calling(end):
            yield
    except BaseException as error:
        if stop.is_set:
            raise ScoringStopped from error
        raise


async def in_thread(work: Callable[[], Result], *, waits: bool) -> Result:
    """Run work in a thread, with the caller's context variables, and wait for it without blocking the event loop.

    Args:
        work: What to run.
        waits: Whether it mostly waits, and may run beside anything else. Works that compute run one after another, in the order of their
            calls, so that they do not need the memory of all of them.

    Raises:
        CancelledError: The caller was cancelled. The work ends as soon as it asks (`check_awaited`, `ended_by_stop`).
        BaseException: What the work raised.
    """
    stop, future = Stop(), Future[Result]()
    future.set_running_or_notify_cancel()  # so that it cannot be cancelled, while the work still runs
    context = copy_context()
    computes = not waits and not _computes.get()  # work that waits for work of its own must not wait for its own turn
    context.run(_stop.set, stop)
    context.run(_computes.set, computes or _computes.get())

    def run() -> None:
        try:
            context.run(check_awaited)
            result = context.run(work)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    if computes:
        _thread.made(_ComputingThread).put(run)
    else:
        threading.Thread(target=run, name="rm-plugins-score", daemon=True).start()
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        stop.set()
        raise


class _ComputingThread:
    """A thread that runs what it is given, one after another; it ends with the process."""

    def __init__(self) -> None:
        self._works: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="rm-plugins-compute", daemon=True).start()

    def put(self, work: Callable[[], None]) -> None:
        self._works.put(work)

    def _run(self) -> None:
        while True:
            self._works.get()()


_thread = PerProcess[_ComputingThread]()
