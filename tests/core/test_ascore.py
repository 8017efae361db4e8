"""`Provider.ascore`: the scores of `score`, for callers with an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError
from rm_plugins.handed_over import HandedOver, handed_now, handed_over
from rm_plugins.protocols import Native
from rm_plugins.providers.remote import Remote
from rm_plugins.training_progress import current_progress, training_progress
from tests.servers import serving

SAMPLES = [rm.Sample("Q", "a" * length) for length in (3, 1, 2)]


class Together(rm.Provider):
    """Waits until as many calls as there are parties score at the same time."""

    name = "together"
    concurrent = True

    def __init__(self, parties: int) -> None:
        self.barrier = threading.Barrier(parties, timeout=10)

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        self.barrier.wait()
        return rm.Scores(np.array([float(len(sample.completion)) for sample in samples]))


class Computing(rm.Provider):
    """Notes the thread, and how many of its kind compute at the same time."""

    name = "computing"
    running = 0
    most = 0
    threads: set[int] = set()  # noqa: RUF012
    order: list[str] = []  # noqa: RUF012

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        Computing.running += 1
        Computing.most = max(Computing.most, Computing.running)
        Computing.threads.add(threading.get_ident())
        Computing.order.append(str(samples[0].completion))
        time.sleep(0.01)
        Computing.running -= 1
        return rm.Scores(np.zeros(len(samples)))


def lengths(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.completion)) for sample in samples]


DOUBLED = rm.load(lengths, transform={"name": "scale", "factor": 2.0})


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=5), max_size=6))
def test_it_is_score(texts: list[str]) -> None:
    samples = [rm.Sample("Q", text) for text in texts]
    np.testing.assert_array_equal(asyncio.run(DOUBLED.ascore(samples)).values, DOUBLED.score(samples).values)


def test_calls_of_what_waits_run_at_the_same_time_in_their_order() -> None:
    async def both() -> tuple[rm.Scores, rm.Scores]:
        provider = Together(2)
        return await asyncio.gather(provider.ascore(SAMPLES), provider.ascore(SAMPLES[:1]))

    assert [scores.values.tolist() for scores in asyncio.run(both())] == [[3, 1, 2], [3]]


def test_a_reward_with_a_part_that_waits_does_not_hold_back_its_own_calls() -> None:
    Computing.most = 0
    reward = rm.load({"provider": "sum", "members": [Together(3), Computing()]})

    async def calls() -> list[rm.Scores]:
        return await asyncio.gather(*(reward.ascore([sample]) for sample in SAMPLES))

    assert [scores.values.tolist() for scores in asyncio.run(calls())] == [[3], [1], [2]]
    assert Computing.most == 1  # the part that computes still does so in one thread at a time


def test_what_computes_runs_one_after_another_in_the_order_of_the_calls() -> None:
    async def all_of() -> None:
        await asyncio.gather(*(Computing().ascore([rm.Sample("Q", str(number))]) for number in range(6)))

    Computing.order.clear()
    asyncio.run(all_of())
    assert Computing.most == 1
    assert Computing.order == list(map(str, range(6)))
    assert threading.get_ident() not in Computing.threads


def slowly(samples: Sequence[rm.Sample]) -> list[float]:
    time.sleep(0.1)
    return lengths(samples)


def test_the_event_loop_is_free_meanwhile() -> None:
    async def ticks() -> int:
        count, scoring = 0, asyncio.ensure_future(rm.load(slowly).ascore(SAMPLES[:1]))
        while not scoring.done():
            count += 1
            await asyncio.sleep(0.005)
        await scoring
        return count

    assert asyncio.run(ticks()) > 3


def test_a_function_may_use_it_inside_a_reward() -> None:
    """Its scoring must not wait for its own turn in the thread of what computes."""
    inner = rm.load(lengths)

    def outer(samples: list[rm.Sample]) -> list[float]:
        scores = asyncio.run(inner.ascore(samples))
        return [2 * float(value) for value in scores.values]

    async def scored() -> list[float]:
        async with asyncio.timeout(10):
            found: list[float] = (await rm.load(outer).ascore(SAMPLES)).values.tolist()
            return found

    assert asyncio.run(scored()) == [6, 2, 4]


def test_what_the_caller_set_reaches_the_reward() -> None:
    own: ContextVar[str] = ContextVar("own")

    def sees(samples: list[rm.Sample]) -> list[float]:
        assert (own.get(), current_progress(), handed_now().samples) == ("mine", 0.5, SAMPLES)
        return lengths(samples)

    async def scored() -> rm.Scores:
        own.set("mine")
        with training_progress(0.5), handed_over(HandedOver(SAMPLES, {}, {})):
            return await rm.load(sees).ascore(SAMPLES)

    assert asyncio.run(scored()).values.tolist() == [3, 1, 2]


def test_errors_are_those_of_score() -> None:
    def broken(samples: list[rm.Sample]) -> list[float]:
        raise RuntimeError("no network")

    with pytest.raises(ScoringError, match="'broken' failed: RuntimeError: no network"):
        asyncio.run(rm.load(broken).ascore(SAMPLES))
    assert asyncio.run(rm.load(broken).ascore(SAMPLES, on_error="abstain")).abstained.all()
    with pytest.raises(DataError, match="takes a list of samples"):
        asyncio.run(rm.load(lengths).ascore(SAMPLES[0]))  # type: ignore[arg-type]


async def cancelled(provider: rm.Provider, begun: threading.Event) -> None:
    """Let a reward score, and cancel that as soon as it has begun."""
    scoring = asyncio.ensure_future(provider.ascore(SAMPLES))
    assert await asyncio.to_thread(begun.wait, 20)
    scoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scoring


def wait_for(happened: Callable[[], bool]) -> None:
    patience = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < patience, "it did not happen"
        time.sleep(0.01)


class TestCancelled:
    def test_a_remote_reward_closes_its_requests(self) -> None:
        arrived, closed = threading.Event(), threading.Event()

        async def silent(scope: Any, receive: Any, send: Any) -> None:
            while (await receive())["type"] != "http.disconnect":
                arrived.set()
            closed.set()

        with serving(silent, lifespan="off") as url:
            fallback = {"provider": "constant", "value": 1.0}
            remote = Remote(url=url, protocol=Native(), timeout=60.0)
            remote.fallback = rm.load(fallback)
            asyncio.run(cancelled(remote, arrived))
            wait_for(closed.is_set)
            assert remote.fallback.counts["samples"] == 0  # nothing has failed
            assert remote.counts["errors"] == 0
            remote.close()

    def test_an_async_function_is_cancelled(self) -> None:
        begun = threading.Event()
        ended: list[str] = []

        async def endless(samples: list[rm.Sample]) -> list[float]:
            begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            return [0.0]

        asyncio.run(cancelled(rm.load(endless), begun))
        wait_for(lambda: ended == ["cancelled"])

    def test_further_parts_do_not_score(self) -> None:
        second = Computing()
        begun, go, done = threading.Event(), threading.Event(), threading.Event()

        def slow(samples: list[rm.Sample]) -> list[float]:
            begun.set()
            go.wait(10)
            done.set()
            return lengths(samples)

        asyncio.run(cancelled(rm.load({"provider": "sum", "members": [slow, second]}), begun))
        go.set()
        wait_for(done.is_set)
        assert asyncio.run(rm.load(lengths).ascore(SAMPLES)).values.tolist() == [3, 1, 2]  # after the other in the same thread
        assert second.counts["samples"] == 0

    def test_what_waits_for_the_thread_does_not_begin(self) -> None:
        go, begun = threading.Event(), threading.Event()

        def blocking(samples: list[rm.Sample]) -> list[float]:
            go.wait(10)
            return lengths(samples)

        def second(samples: list[rm.Sample]) -> list[float]:
            begun.set()
            return lengths(samples)

        async def scored() -> None:
            first = asyncio.ensure_future(rm.load(blocking).ascore(SAMPLES))
            await asyncio.sleep(0)
            scoring = asyncio.ensure_future(rm.load(second).ascore(SAMPLES))
            await asyncio.sleep(0.01)
            scoring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await scoring
            go.set()
            await first

        asyncio.run(scored())
        assert not begun.is_set()
