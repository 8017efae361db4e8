"""Collects the requests of many clients into batches, independently of HTTP and rewards.

Requests that arrive while a batch runs form the next batch. So an idle server answers immediately, and a busy one fills its batches. After
a batch there is a short pause, so that clients that were just answered can send their next request.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rm_plugins.batching.fair_queue import FairQueue
from rm_plugins.batching.speed import Speed

logger = logging.getLogger(__name__)

_TURNS_A_BATCH = 8
_MOST_SECONDS_TO_WAIT = 60
"""OpenAI's older clients ignore a longer wait and retry within seconds instead."""
_UNMEASURED_SECONDS = 5.0
"""The wait if no batch has ended yet, so that the speed is unknown."""
_MOST_BOOKED = 3
"""The longest wait of a refused request, in drain times of the queue, so that clients that never retry do not delay others."""
_MOST_CALLS = 64
_LONGEST_PAUSE = 0.1
"""The longest pause, as a share of the time of the previous batch."""
_QUIET_SECONDS = 0.005
"""The pause ends if no request arrives for this long."""

Work = TypeVar("Work")
Result = TypeVar("Result")
Value = TypeVar("Value")


class Overloaded(Exception):
    """The queue is full; there should be room after `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"retry in {retry_after} s")
        self.retry_after = retry_after


def _whole_seconds(seconds: float) -> int:
    return max(1, min(_MOST_SECONDS_TO_WAIT, math.ceil(seconds)))


class Stopped(Exception):
    """The batcher no longer accepts requests."""


@dataclass(frozen=True, slots=True)
class Part(Generic[Work]):
    """A part of a request, or a whole one.

    Args:
        work: The work to run.
        items: The number of samples.
        size: The approximate amount of work.
    """

    work: Work
    items: int
    size: int


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """A finished request.

    Args:
        result: The result from its batch.
        waited: The time in the queue, in seconds.
        took: The time of its batch, in seconds.
    """

    result: Result
    waited: float
    took: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Facts about a finished batch, for metrics.

    Args:
        items: The number of samples.
        fill: Its size as a share of the budget; above 1 if a single request was larger.
        seconds: Its duration in seconds.
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

    A part of a request is never split across batches, so that a single run answers it. All methods must be called on one event loop.

    Args:
        run: Called in a thread with the works of a batch; returns a result for each, in order, or an exception for a work that failed.
        budget: The size of a batch, in the unit of the requests' sizes.
        max_items: The most samples that wait.
        max_size: The largest total size that waits.
        threads: The number of batches that run concurrently.
        shares: The number of processes that run batches. None takes more than its share of the accepted work at a time, so that all of
            them are busy.
        merges: Whether a batch may have several requests.
        on_batch: Called with every finished batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work]], Sequence[Result | Exception]],
        *,
        budget: int,
        max_items: int,
        max_size: int,
        threads: int = 1,
        shares: int = 1,
        merges: bool = True,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self._run = run
        self._on_batch = on_batch
        self.max_items = max_items
        self.max_size = max_size
        self.queue: FairQueue[_Job[Work, Result]] = FairQueue(budget // _TURNS_A_BATCH)
        self.is_stopping = self._has_stopped = False
        self._accepted: set[_Job[Work, Result]] = set()
        self._accepted_size = 0
        self._running: set[asyncio.Task[None]] = set()
        self._calls: set[asyncio.Future[Any]] = set()
        self._changed = asyncio.Event()
        self._answered = self._arrived = 0  # requests of the last batch, and those that arrived since
        self._pause_ends = 0.0
        self._speed = Speed()  # of one thread
        self._booked_until = 0.0  # when the requests that were refused so far should be answered
        self._dispatcher: asyncio.Task[None] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self.threads = 0
        self.shape(budget=budget, threads=threads, shares=shares, merges=merges)

    def shape(self, *, budget: int, threads: int, merges: bool, shares: int = 1) -> None:
        """Change how batches are formed, from the next one on; see the constructor's arguments."""
        self.budget = budget
        self.merges = merges
        self.shares = shares
        self.queue.quantum = max(1, budget // _TURNS_A_BATCH)
        if threads != self.threads:
            if self._pool is not None:
                self._pool.shutdown(wait=False)  # running batches finish in the old pool
            # A model runs best in the same thread every time, because torch keeps workers and memory for each thread.
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rm-plugins-score")
            self.threads = threads

    def start(self) -> None:
        """Start running submitted requests."""
        self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch())

    async def submit(self, work: Work, *, client: str, items: int, size: int) -> Done[Result]:
        """Run a request in its client's turn. If the call is cancelled before that, the request is removed from the queue.

        Args:
            work: The work to run.
            client: The client; clients share the server fairly.
            items: The number of samples.
            size: The approximate amount of work.

        Raises:
            Overloaded: The queue is full.
            Stopped: The batcher is stopping, or stopped before the request's turn.
        """
        (done,) = await self.submit_parts([Part(work, items, size)], client=client)
        return done

    async def submit_parts(
        self,
        parts: Sequence[Part[Work]],
        *,
        client: str,
        repeat: Callable[[Sequence[Result]], Part[Work] | None] = lambda results: None,
    ) -> list[Done[Result]]:
        """Run the parts of a request, which is accepted or refused as a whole; they may run in different batches at the same time.

        Raises like `submit`; if one part fails, those that wait are removed from the queue.

        Args:
            parts: The parts of the request.
            client: The client; clients share the server fairly.
            repeat: Called with the results of the parts; returns what must be run instead if they do not fit together. It belongs to the
                accepted request, so neither a full queue nor a batcher that is stopping refuses it.
        """
        if self.is_stopping:
            raise Stopped
        if self._dispatcher is None:  # an application mounted in another one gets no startup event
            self.start()
        items, size = sum(part.items for part in parts), sum(part.size for part in parts)
        if self.queue and self._is_too_much(client, items, size):
            raise Overloaded(self._book(max(1, size)))
        arrived = time.monotonic()
        with self._accept(parts, client, arrived) as jobs:
            done: list[Done[Result]] = await asyncio.gather(*(job.answer for job in jobs))
            whole = repeat([one.result for one in done])
        if whole is None:
            return done
        with self._accept([whole], client, arrived) as (job,):  # without a pause, in which the batcher would seem to be drained
            return [await job.answer]

    @contextmanager
    def _accept(self, parts: Sequence[Part[Work]], client: str, arrived: float) -> Iterator[list[_Job[Work, Result]]]:
        """Within it, the parts are in the queue or run."""
        if self._has_stopped:
            raise Stopped
        loop = asyncio.get_running_loop()
        jobs: list[_Job[Work, Result]] = [
            _Job(part.work, client, part.items, max(1, part.size), loop.create_future(), arrived) for part in parts
        ]
        for job in jobs:
            self.queue.put(job)
            self._accepted.add(job)
            self._accepted_size += job.size
        self._arrived += len(jobs)
        self._changed.set()
        try:
            yield jobs
        except BaseException:
            for job in jobs:
                self.queue.discard(job)
                job.answer.cancel()
            raise
        finally:
            for job in jobs:
                self._accepted.discard(job)
                self._accepted_size -= job.size

    def _is_too_much(self, client: str, items: int, size: int) -> bool:
        """Whether to refuse a client's request: the queue is full, and the client has used up its share of it."""
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
        """The time, in whole seconds, after which half of the accepted work should be done."""
        return _whole_seconds(self._drain_seconds / 2)

    @property
    def _drain_seconds(self) -> float:
        return self._accepted_size / self._speed.rate / self.threads if self._speed.rate else 2 * _UNMEASURED_SECONDS

    def _book(self, size: int) -> int:
        """The time, in whole seconds, after which a refused request should find room: when half of the accepted work is done, and after
        the requests that were refused before it.

        So refused clients return one after another at the speed of the server, neither all at once nor when the queue is already empty.
        """
        now, drain = time.monotonic(), self._drain_seconds
        wait = min(max(drain / 2, self._booked_until - now), _MOST_BOOKED * drain)
        self._booked_until = now + wait + (size / self._speed.rate / self.threads if self._speed.rate else 0.0)
        return _whole_seconds(wait)

    async def call(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Run a function in the threads of the batches, so that it does not run concurrently with a batch of the same thread.

        Raises:
            Overloaded: Too many such calls wait.
            Stopped: The batcher is stopping.
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
        """The number of requests that wait or run."""
        return len(self._accepted) + len(self._calls)

    async def _in_thread(self, function: Callable[..., Value], *arguments: Any) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def settled(self) -> None:
        """Wait until the batches and calls that are currently running have ended."""
        if running := self._running | self._calls:
            await asyncio.wait(running)

    async def drained(self) -> None:
        """Wait until all accepted requests are finished and nothing runs."""
        while waiting := {job.answer for job in self._accepted} | self._calls | self._running:
            await asyncio.wait(waiting)
            await asyncio.sleep(0)  # let their callers continue

    async def stop(self, seconds: float) -> bool:
        """Stop accepting requests, and finish the accepted ones.

        Args:
            seconds: The time limit; requests that have not started by then fail with `Stopped`.

        Returns:
            Whether all requests were finished.
        """
        self.is_stopping = True
        try:
            await asyncio.wait_for(self.drained(), seconds)
        except TimeoutError:
            logger.warning("%d requests were not finished within %g s", len(self._accepted), seconds)
        self._has_stopped = True
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
            jobs = self.queue.take(min(self.budget, -(-self._accepted_size // self.shares)) if self.merges else 0)
            if jobs:  # they may have been cancelled during the pause
                self._running.add(asyncio.get_running_loop().create_task(self._run_batch(jobs)))

    async def _pause(self) -> None:
        """Wait briefly for clients that were just answered: they often send another request at once, which fills the next batch."""
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
        except Exception as error:  # an error of `run` itself; the next batch may succeed
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
            if job.answer.done():  # the caller no longer waits for it
                continue
            if isinstance(result, Exception):
                job.answer.set_exception(result)
            else:
                job.answer.set_result(Done(result, started - job.arrived, took))
        size = sum(job.size for job in jobs)
        self._speed.saw(size, took)
        self._on_batch(Batch(sum(job.items for job in jobs), size / self.budget, took))
