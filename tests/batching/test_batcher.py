"""Many clients' requests become batches: each gets its turn and its own answer, and nobody another's failure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from rm_plugins.batching.batcher import Batch, Batcher, Done, Overloaded, Part, Stopped
from rm_plugins.errors import DataError


class Gate:
    """Work that waits until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.is_open = threading.Event()
        self.running = 0
        self.most_running = 0

    def run(self, works: Sequence[Any]) -> list[Any]:
        self.batches.append(list(works))
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        assert self.is_open.wait(10)
        self.running -= 1
        return [work if isinstance(work, Exception) else f"done {work}" for work in works]


Submit = Callable[..., "asyncio.Task[Done[Any]]"]


def batching(test: Callable[[Batcher[Any, Any], Gate, Submit], Awaitable[None]], **settings: Any) -> None:
    """Run a test in a loop, with a batcher whose work is done by a gate."""

    async def main() -> None:
        gate = Gate()
        batcher: Batcher[Any, Any] = Batcher(gate.run, **{"budget": 100, "max_items": 1_000, "max_size": 10_000, **settings})
        batcher.start()

        def submit(work: Any, client: str = "a", items: int = 1, size: int = 10) -> asyncio.Task[Done[Any]]:
            return asyncio.ensure_future(batcher.submit(work, client=client, items=items, size=size))

        try:
            await test(batcher, gate, submit)
        finally:
            gate.is_open.set()
            await batcher.stop(5)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to that")


class TestBatcher:
    def test_what_repeats_an_accepted_request_is_not_refused(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            seen = list[Any]()

            def repeat(results: Sequence[Any]) -> Part[Any]:
                seen.append((list(results), batcher.is_stopping))
                return Part("whole", 2, 20)

            parts = [Part("one", 1, 10), Part("two", 1, 10)]
            request = asyncio.ensure_future(batcher.submit_parts(parts, client="a", repeat=repeat))
            await until(lambda: bool(gate.batches))
            stopped = asyncio.ensure_future(batcher.stop(10))
            await asyncio.sleep(0)
            gate.is_open.set()
            (done,) = await request
            assert done.result == "done whole"
            assert seen == [(["done one", "done two"], True)]
            assert await stopped and batcher.load == 0

        batching(test)

    def test_nothing_is_repeated_once_the_batcher_has_stopped(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            gate.is_open.set()

            def repeat(results: Sequence[Any]) -> Part[Any]:
                batcher._has_stopped = True
                return Part("whole", 1, 10)

            with pytest.raises(Stopped):
                await batcher.submit_parts([Part("one", 1, 10)], client="a", repeat=repeat)
            assert batcher.load == 0

        batching(test)

    def test_processes_share_what_waits(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            submit(0), submit(1)
            await until(lambda: gate.batches == [[0], [1]])
            rest = [submit(number) for number in range(2, 8)]
            await asyncio.sleep(0.01)
            gate.is_open.set()
            await asyncio.gather(*rest)
            # A batch has at most half of the eight that were accepted; fewer where some of them are answered already.
            assert all(len(batch) <= 4 for batch in gate.batches)
            assert sorted(work for batch in gate.batches for work in batch) == [*range(8)]

        batching(test, threads=2, shares=2)

    def test_what_arrives_while_a_batch_runs_is_the_next_batch(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            first = submit(0)
            await until(lambda: gate.batches == [[0]])
            others = [submit(number) for number in range(1, 6)]
            await asyncio.sleep(0.01)
            assert gate.batches == [[0]]
            gate.is_open.set()
            answers = await asyncio.gather(first, *others)
            assert [done.result for done in answers] == [f"done {number}" for number in range(6)]
            assert gate.batches == [[0], [1, 2, 3, 4, 5]]
            assert answers[1].waited >= 0.01

        batching(test)

    def test_those_who_were_just_answered_share_the_next_batch_with_those_who_waited(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            async def client(number: int) -> None:
                for turn in range(3):
                    await submit((turn, number))

            first = asyncio.ensure_future(client(0))
            await until(lambda: bool(gate.batches))
            others = [asyncio.ensure_future(client(number)) for number in range(1, 4)]
            await asyncio.sleep(0.2)  # so that the pause, a share of what the batch took, is not over at once
            gate.is_open.set()
            await asyncio.gather(first, *others)
            assert sorted(gate.batches[1]) == [(0, 1), (0, 2), (0, 3), (1, 0)]

        batching(test)

    def test_a_batch_is_as_large_as_its_budget(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            waiting = [submit("first")]
            await until(lambda: bool(gate.batches))
            waiting += [submit(number, size=size) for number, size in enumerate([40, 40, 40, 500, 10])]
            await until(lambda: batcher.queue.items == 5)
            gate.is_open.set()
            await asyncio.gather(*waiting)
            assert gate.batches[1:] == [[0, 1], [2], [3], [4]]  # what is larger than the budget runs alone

        batching(test)

    def test_without_merging_every_request_is_a_batch(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            gate.is_open.set()
            await asyncio.gather(*[submit(number) for number in range(4)])
            assert sorted(gate.batches) == [[0], [1], [2], [3]]

        batching(test, merges=False)

    def test_too_much_is_refused_and_told_when_to_come_again(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            waiting = [submit("running")]
            await until(lambda: bool(gate.batches))
            waiting += [submit("large", items=9, size=90)]  # taken, as nothing waits, though it is more than may wait
            await until(lambda: batcher.queue.items == 9)
            for items, size in ((1, 1), (0, 11)):
                with pytest.raises(Overloaded) as caught:
                    await submit("too much", items=items, size=size)
                assert 1 <= caught.value.retry_after <= 60
            gate.is_open.set()
            assert {done.result for done in await asyncio.gather(*waiting)} == {"done running", "done large"}

        batching(test, max_items=8, max_size=100)

    def test_one_client_does_not_fill_the_queue_for_all(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            running = submit("first", client="many")
            await until(lambda: bool(gate.batches))
            many = [submit(number, client="many") for number in range(20)]
            await asyncio.sleep(0.01)
            few = submit("few", client="few")
            await asyncio.sleep(0.01)
            gate.is_open.set()
            assert (await few).result == "done few"
            refused = await asyncio.gather(running, *many, return_exceptions=True)
            assert sum(isinstance(found, Overloaded) for found in refused) == 12

        batching(test, max_items=8)

    def test_when_to_come_again_follows_the_speed(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            gate.is_open.set()
            await submit("quick")
            batcher._speed._size, batcher._speed._seconds = 10.0, 1.0
            gate.is_open.clear()
            waiting = [submit("running")]
            await until(lambda: len(gate.batches) == 2)
            waiting += [submit(number, size=100) for number in range(4)]
            await until(lambda: batcher.queue.size == 400)
            assert batcher.retry_after == 21  # the running one counts, too
            gate.is_open.set()
            await asyncio.gather(*waiting)

        batching(test)

    def test_who_is_refused_later_comes_again_later(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            gate.is_open.set()
            await submit("quick")
            batcher._speed._size, batcher._speed._seconds = 10.0, 1.0
            gate.is_open.clear()
            waiting = [submit("running")]
            await until(lambda: len(gate.batches) == 2)
            waiting += [submit(number, size=25) for number in range(4)]
            await until(lambda: batcher.queue.size == 100)
            seconds = []
            for _ in range(8):
                with pytest.raises(Overloaded) as caught:
                    await submit("more", size=50)
                seconds.append(caught.value.retry_after)
            assert seconds[:6] == [6, 11, 16, 21, 26, 31]  # each 5 s after the one before, from when the queue is half done
            assert set(seconds[6:]) == {33}  # at most three times as long as the queue takes
            gate.is_open.set()
            await asyncio.gather(*waiting)

        batching(test, max_size=100)

    def test_where_nothing_was_measured_nobody_is_sent_away_for_a_moment_only(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            waiting = [submit("running")]
            await until(lambda: bool(gate.batches))
            waiting.append(submit("waiting", items=8))
            await until(lambda: batcher.queue.items == 8)
            with pytest.raises(Overloaded) as caught:
                await submit("more")
            assert caught.value.retry_after == 5
            gate.is_open.set()
            await asyncio.gather(*waiting)

        batching(test, max_items=8)

    def test_a_request_that_nobody_waits_for_is_not_run(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            running, left, kept = submit("running"), submit("left"), submit("kept")
            await until(lambda: gate.batches == [["running", "left", "kept"]])
            late, gone = submit("late"), submit("gone")
            await until(lambda: batcher.queue.items == 2)
            for task in (left, gone):
                task.cancel()
            await asyncio.wait({left, gone})
            assert batcher.queue.items == 1
            gate.is_open.set()
            assert (await running).result == "done running"
            assert (await kept).result == "done kept"
            assert (await late).result == "done late"
            assert gate.batches[1:] == [["late"]]

        batching(test)

    def test_each_request_has_its_own_failure(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            gate.is_open.set()
            found = await asyncio.gather(submit(1), submit(DataError("no")), submit(2), return_exceptions=True)
            assert [getattr(done, "result", str(done)) for done in found] == ["done 1", "no", "done 2"]

        batching(test)

    def test_a_batch_that_breaks_does_not_break_the_next(self, caplog: pytest.LogCaptureFixture) -> None:
        async def main() -> None:
            def run(works: Sequence[int]) -> list[int | Exception]:
                if 0 in works:
                    raise RuntimeError("out of luck")
                return list(works)

            batcher: Batcher[int, int] = Batcher(run, budget=100, max_items=10, max_size=100)
            batcher.start()
            with pytest.raises(RuntimeError, match="out of luck"):
                await batcher.submit(0, client="a", items=1, size=1)
            assert (await batcher.submit(1, client="a", items=1, size=1)).result == 1
            await batcher.stop(1)

        asyncio.run(main())
        assert "A batch failed" in caplog.text

    def test_several_threads_run_several_batches(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            waiting = []
            for number in range(3):
                waiting.append(submit(number))
                await until(lambda: gate.running == number + 1)  # noqa: B023 - it is called before the next one
            waiting.append(submit(3))
            await asyncio.sleep(0.01)
            assert gate.running == 3
            gate.is_open.set()
            await asyncio.gather(*waiting)
            batcher.shape(budget=100, threads=1, merges=True)
            gate.is_open.clear()
            more = [submit(number) for number in range(4, 6)]
            await until(lambda: gate.running == 1)
            more.append(submit(6))
            await asyncio.sleep(0.01)
            assert gate.running == 1
            gate.is_open.set()
            await asyncio.gather(*more)

        batching(test, threads=3)

    def test_stopping_finishes_what_was_accepted_and_accepts_no_more(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            waiting = [submit(number, size=60) for number in range(5)]
            await until(lambda: bool(gate.batches))
            stopping = asyncio.ensure_future(batcher.stop(5))
            await until(lambda: batcher.is_stopping)
            with pytest.raises(Stopped):
                await submit("late")
            gate.is_open.set()
            assert await stopping
            assert [done.result for done in await asyncio.gather(*waiting)] == [f"done {number}" for number in range(5)]

        batching(test)

    def test_stopping_gives_up_in_the_end(self, caplog: pytest.LogCaptureFixture) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            running, queued = submit("running", size=60), submit("queued", size=60)
            await until(lambda: bool(gate.batches))
            assert not await batcher.stop(0.01)
            for task in (running, queued):
                with pytest.raises(Stopped):
                    await task

        batching(test)
        assert "2 requests were not finished" in caplog.text

    def test_calls_that_run_are_waited_for_as_well(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            called = asyncio.ensure_future(batcher.call(gate.is_open.wait, 10))
            await asyncio.sleep(0.01)
            settled = asyncio.ensure_future(batcher.settled())
            await asyncio.sleep(0.01)
            assert not settled.done()
            gate.is_open.set()
            await settled
            assert called.done()

        batching(test)

    def test_batches_are_told_of(self) -> None:
        batches: list[Batch] = []

        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            gate.is_open.set()
            await submit(1, items=4, size=50)
            await asyncio.sleep(0)

        batching(test, on_batch=batches.append)
        assert [(batch.items, batch.fill) for batch in batches] == [(4, 0.5)]

    def test_a_function_is_called_between_two_batches(self) -> None:
        async def test(batcher: Batcher[Any, Any], gate: Gate, submit: Submit) -> None:
            running = submit(1)
            await until(lambda: gate.running == 1)
            called = asyncio.ensure_future(batcher.call(lambda: gate.running))
            await asyncio.sleep(0.01)
            assert not called.done()
            gate.is_open.set()
            assert await called == 0
            await running

        batching(test)


def test_many_clients_share_a_busy_batcher_fairly() -> None:
    done: dict[str, list[float]] = defaultdict(list)

    async def main() -> None:
        def run(works: Sequence[int]) -> list[int | Exception]:
            time.sleep(0.0002 * len(works))
            return list(works)

        batcher: Batcher[int, int] = Batcher(run, budget=8, max_items=10_000, max_size=10_000)
        batcher.start()

        async def send(client: str, number: int) -> None:
            await batcher.submit(number, client=client, items=1, size=1)
            done[client].append(time.monotonic())

        greedy = [asyncio.ensure_future(send("greedy", number)) for number in range(400)]
        modest = [asyncio.ensure_future(send("modest", number)) for number in range(40)]
        await asyncio.gather(*greedy, *modest)
        await batcher.stop(5)

    asyncio.run(main())
    assert {client: len(times) for client, times in done.items()} == {"greedy": 400, "modest": 40}
    before = sum(at < done["modest"][-1] for at in done["greedy"])
    assert before <= 80  # twice as many as of the modest client's own, though ten times as many waited
