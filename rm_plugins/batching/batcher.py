"""Collects the requests of many clients into batches; knows nothing of HTTP, nor of rewards.

While one batch is computed, what arrives waits and becomes the next: a server with little to do answers at once, and one with much
to do fills its batches by itself. Only after a batch there is a short pause, so that clients that were just answered can ask again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rm_plugins.batching.fair_queue import FairQueue

logger = logging.getLogger(__name__)

_TURNS_A_BATCH = 8
_MOST_SECONDS_TO_WAIT = 60
"""OpenAI's older clients take no longer time from a server, and ask again within seconds instead."""
_UNMEASURED_SECONDS = 5.0
"""To wait where no batch has ended yet, so that nothing is known of the speed."""
_HALF_LIFE_SECONDS = 10.0
"""Of batches, in what is known of the speed."""
_MOST_BOOKED = 3
"""How many times as long as what waits takes a refused request may be sent away, so that those who never come back keep nobody away."""
_MOST_CALLS = 64
_LONGEST_PAUSE = 0.1
"""Of the time that the batch before took."""
_QUIET_SECONDS = 0.005
"""Where so long nobody comes, the pause ends."""

Work = TypeVar("Work")
Result = TypeVar("Result")
Value = TypeVar("Value")


class Overloaded(Exception):
    """The queue is full; there should be room again in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"retry in {retry_after} s")
        self.retry_after = retry_after


class _Speed:
    """How much is done in a second, of late: what took longer counts for more."""

    def __init__(self) -> None:
        self._size = self._seconds = 0.0

    @property
    def rate(self) -> float:
        """Size by second; 0 where nothing was seen."""
        return self._size / self._seconds if self._seconds else 0.0

    def saw(self, size: int, seconds: float) -> None:
        """Take notice of a batch."""
        kept = 0.5 ** (seconds / _HALF_LIFE_SECONDS)
        self._size, self._seconds = kept * self._size + size, kept * self._seconds + max(seconds, 1e-6)


def _whole_seconds(seconds: float) -> int:
    return max(1, min(_MOST_SECONDS_TO_WAIT, math.ceil(seconds)))


class Stopped(Exception):
    """Nothing is accepted any more."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """What became of a request.

    Args:
        result: What its batch made of it.
        waited: Seconds in the queue.
        took: Seconds that its batch took.
    """

    result: Result
    waited: float
    took: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Facts about a batch that has ended, for metrics.

    Args:
        items: Its samples.
        fill: Its size as a share of the budget; above 1 where one request was larger.
        seconds: What it took.
    """

    items: int
    fill: float
    seconds: float


@dataclass(eq=False, slots=True)
class _Job(Generic[Work, Result]):
    work: Work
    client: str
    items: int
    size: int
    answer: asyncio.Future[Done[Result]]
    arrived: float


class Batcher(Generic[Work, Result]):
    """Runs the work of requests in threads, several requests at a time.

    A request is never split over batches, so that one run answers all of it. All methods belong to one event loop.

    Args:
        run: Called in a thread with the works of a batch; returns a result for each, in order, an exception for one that failed.
        budget: How much is run together, in the unit of the requests' sizes.
        max_items: Most samples that wait.
        max_size: Most that waits, in the unit of the sizes.
        threads: Batches that run at once.
        merges: Whether a batch may have several requests.
        on_batch: Told of every batch that has ended.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work]], Sequence[Result | Exception]],
        *,
        budget: int,
        max_items: int,
        max_size: int,
        threads: int = 1,
        merges: bool = True,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self._run = run
        self._on_batch = on_batch
        self.max_items = max_items
        self.max_size = max_size
        self.queue: FairQueue[_Job[Work, Result]] = FairQueue(budget // _TURNS_A_BATCH)
        self.is_stopping = False
        self._accepted: set[_Job[Work, Result]] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._calls: set[asyncio.Future[Any]] = set()
        self._changed = asyncio.Event()
        self._answered = self._arrived = 0  # requests of the last batch, and those that came since
        self._pause_ends = 0.0
        self._speed = _Speed()  # in one thread
        self._booked_until = 0.0  # when those who were refused so far should have been answered
        self._dispatcher: asyncio.Task[None] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self.threads = 0
        self.shape(budget=budget, threads=threads, merges=merges)

    def shape(self, *, budget: int, threads: int, merges: bool) -> None:
        """Form batches otherwise from the next one on; see the constructor's arguments."""
        self.budget = budget
        self.merges = merges
        self.queue.quantum = max(1, budget // _TURNS_A_BATCH)
        if threads != self.threads:
            if self._pool is not None:
                self._pool.shutdown(wait=False)  # what runs there still ends there
            # A model is best run by the same thread every time: each has its own workers and memory inside of torch.
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rm-plugins-score")
            self.threads = threads

    def start(self) -> None:
        """Begin to run what is submitted."""
        self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch())

    async def submit(self, work: Work, *, client: str, items: int, size: int) -> Done[Result]:
        """Have a request run, in its client's turn. A call that is cancelled before that takes it back.

        Args:
            work: What is run.
            client: Who shares the server fairly with the others.
            items: Its samples.
            size: How much work it is, about.

        Raises:
            Overloaded: Too much waits already.
            Stopped: The batcher stops, or stopped before the request's turn.
        """
        if self.is_stopping:
            raise Stopped
        if self._dispatcher is None:  # an application inside of another one is not told of its beginning
            self.start()
        if self.queue and self._is_too_much(client, items, size):
            raise Overloaded(self._book(max(1, size)))
        job = _Job(work, client, items, max(1, size), asyncio.get_running_loop().create_future(), time.monotonic())
        self.queue.put(job)
        self._accepted.add(job)
        self._arrived += 1
        self._changed.set()
        try:
            return await job.answer
        except asyncio.CancelledError:
            self.queue.discard(job)
            raise
        finally:
            self._accepted.discard(job)

    def _is_too_much(self, client: str, items: int, size: int) -> bool:
        """Whether a client's request must not wait: there is no room, and it is this client who has filled its part of it."""
        queue = self.queue
        shares = queue.clients + (client not in queue)
        own = queue.waiting(client)
        for all_waiting, waiting, more, most in (
            (queue.items, own.items, items, self.max_items),
            (queue.size, own.size, size, self.max_size),
        ):
            if all_waiting + more > most and (waiting + more > most // shares or all_waiting + more > 2 * most):
                return True
        return False

    @property
    def retry_after(self) -> int:
        """Whole seconds in which half of what was accepted should be done."""
        return _whole_seconds(self._drain_seconds / 2)

    @property
    def _drain_seconds(self) -> float:
        accepted = sum(job.size for job in self._accepted)
        return accepted / self._speed.rate / self.threads if self._speed.rate else 2 * _UNMEASURED_SECONDS

    def _book(self, size: int) -> int:
        """Whole seconds after which a refused request should find room: when half of what was accepted is done, and after those that
        were refused before it.

        So they come back one after another, as fast as they are answered, and neither all at once nor when there is nothing left to do.
        """
        now, drain = time.monotonic(), self._drain_seconds
        wait = min(max(drain / 2, self._booked_until - now), _MOST_BOOKED * drain)
        self._booked_until = now + wait + (size / self._speed.rate / self.threads if self._speed.rate else 0.0)
        return _whole_seconds(wait)

    async def call(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Run a function where batches run, for it to meet none of them there.

        Raises:
            Overloaded: Too many of these wait already.
            Stopped: The batcher stops.
        """
        if self.is_stopping:
            raise Stopped
        if len(self._calls) >= _MOST_CALLS:
            raise Overloaded(self.retry_after)
        called = asyncio.ensure_future(self._in_thread(function, *arguments))
        self._calls.add(called)
        called.add_done_callback(self._calls.discard)
        return await called

    @property
    def load(self) -> int:
        """How many requests wait or are run."""
        return len(self._accepted) + len(self._calls)

    async def _in_thread(self, function: Callable[..., Value], *arguments: Any) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def settled(self) -> None:
        """Wait for the end of the batches that run now."""
        if self._running:
            await asyncio.wait(set(self._running))

    async def drained(self) -> None:
        """Wait until nothing of what was accepted is left, and nothing runs."""
        while waiting := {job.answer for job in self._accepted} | self._calls | self._running:
            await asyncio.wait(waiting)
            await asyncio.sleep(0)  # for those who waited for it to take notice

    async def stop(self, seconds: float) -> bool:
        """Accept no more, and finish what was accepted.

        Args:
            seconds: The most time for it; what has not begun then ends with `Stopped`.

        Returns:
            Whether everything was finished.
        """
        self.is_stopping = True
        try:
            await asyncio.wait_for(self.drained(), seconds)
        except TimeoutError:
            logger.warning("%d requests were not finished within %g s", len(self._accepted), seconds)
        finished = not (self._accepted or self._calls or self._running)
        if self._dispatcher is not None:
            self._dispatcher.cancel()
        for job in self._accepted:
            if not job.answer.done():
                job.answer.set_exception(Stopped())
        if self._pool is not None:
            self._pool.shutdown(wait=finished, cancel_futures=True)
        return finished

    async def _dispatch(self) -> None:
        while True:
            while not self.queue or len(self._running) >= self.threads:
                self._changed.clear()
                await self._changed.wait()
            await self._pause()
            jobs = self.queue.take(self.budget if self.merges else 0)
            if jobs:  # they may have been taken back in the pause
                self._running.add(asyncio.get_running_loop().create_task(self._run_batch(jobs)))

    async def _pause(self) -> None:
        """Wait for those who were just answered, who often ask again at once: with them, the next batch is fuller."""
        while self.merges and self._arrived < self._answered and self.queue.size < self.budget:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), min(_QUIET_SECONDS, self._pause_ends - time.monotonic()))
            except TimeoutError:
                return

    async def _run_batch(self, jobs: Sequence[_Job[Work, Result]]) -> None:
        started = time.monotonic()
        results: Sequence[Result | Exception]
        try:
            results = await self._in_thread(self._run, [job.work for job in jobs])
        except Exception as error:  # a fault of `run` itself; the next batch may go well
            logger.exception("A batch failed")
            results = [error] * len(jobs)
        took = time.monotonic() - started
        running = asyncio.current_task()
        if running is not None:
            self._running.discard(running)
        self._answered, self._arrived = len(jobs), 0
        self._pause_ends = time.monotonic() + _LONGEST_PAUSE * took
        self._changed.set()
        for job, result in zip(jobs, results, strict=True):
            if job.answer.done():  # nobody waits for it any more
                continue
            if isinstance(result, Exception):
                job.answer.set_exception(result)
            else:
                job.answer.set_result(Done(result, started - job.arrived, took))
        size = sum(job.size for job in jobs)
        self._speed.saw(size, took)
        self._on_batch(Batch(sum(job.items for job in jobs), size / self.budget, took))
