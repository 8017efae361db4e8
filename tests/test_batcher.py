"""Many clients' requests become batches: each gets its turn and its own answer, and nobody another's failure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.batching.batcher import Batch, Batcher, Done, Overloaded, Stopped
from rm_plugins.batching.fair_queue import FairQueue
from rm_plugins.batching.isolation import score_requests
from rm_plugins.errors import DataError, ScoringError
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.server.service import _told


@dataclass(eq=False)
class Waiting:
    client: str
    size: int
    items: int = 1


class TestFairQueue:
    @given(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), max_size=40),
        st.integers(1, 40),
        st.integers(1, 50),
    )
    def test_everything_is_taken_once_in_each_clients_order(
        self, jobs: list[tuple[str, int]], quantum: int, budget: int
    ) -> None:
        queue: FairQueue[Waiting] = FairQueue(quantum)
        waiting = [Waiting(client, size) for client, size in jobs]
        for job in waiting:
            queue.put(job)
        taken = []
        while queue:
            batch = queue.take(budget)
            assert len(batch) == 1 or sum(job.size for job in batch) <= budget
            taken += batch
        assert Counter(map(id, taken)) == Counter(map(id, waiting))
        for client in "abc":
            assert [job for job in taken if job.client == client] == [job for job in waiting if job.client == client]
        assert (queue.items, queue.size) == (0, 0)

    @given(st.integers(1, 20), st.integers(1, 20), st.integers(5, 60))
    def test_clients_that_wait_get_the_same_amount_of_work_done(self, small: int, large: int, budget: int) -> None:
        queue: FairQueue[Waiting] = FairQueue(10)
        for client, size in {"many small ones": small, "few large ones": large}.items():
            for _ in range(2_000 // size):
                queue.put(Waiting(client, size))
        done: Counter[str] = Counter()
        while sum(done.values()) < 1_500:
            for job in queue.take(budget):
                done[job.client] += job.size
        assert abs(done["many small ones"] - done["few large ones"]) <= 2 * (10 + max(small, large)) + budget

    def test_a_newcomer_does_not_wait_for_all_that_another_client_sent(self) -> None:
        queue: FairQueue[Waiting] = FairQueue(10)
        for _ in range(1_000):
            queue.put(Waiting("greedy", 10))
        queue.take(20)
        queue.put(Waiting("newcomer", 10))
        assert "newcomer" in [job.client for job in queue.take(20)]

    def test_what_is_discarded_is_never_taken(self) -> None:
        queue: FairQueue[Waiting] = FairQueue(10)
        jobs = [Waiting("a", 3), Waiting("a", 4), Waiting("b", 5)]
        for job in jobs:
            queue.put(job)
        assert queue.discard(jobs[0])
        assert not queue.discard(jobs[0])
        assert queue.discard(jobs[2])
        assert (queue.items, queue.size) == (1, 4)
        assert queue.take(100) == [jobs[1]]
        assert not queue.discard(jobs[1])


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
            batcher._rate = 10.0
            gate.is_open.clear()
            waiting = [submit("running")]
            await until(lambda: len(gate.batches) == 2)
            waiting += [submit(number, size=100) for number in range(4)]
            await until(lambda: batcher.queue.size == 400)
            assert batcher.retry_after == 20
            gate.is_open.set()
            await asyncio.gather(*waiting)

        batching(test)

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


class Poisoned(rm.Provider):
    """Scores a text's length; fails at poison, naming the rows or not."""

    name = "poisoned"

    def __init__(self, *, names_rows: bool = False, error: type[Exception] = RuntimeError, first_only: bool = False) -> None:
        self.names_rows = names_rows
        self.error = error
        self.first_only = first_only
        self.batches: list[int] = []

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        self.batches.append(len(samples))
        wrong = [row for row, sample in enumerate(samples) if sample.completion == "poison"]
        if wrong and self.names_rows:
            raise ScoringError("poison at /srv/secret", rows=wrong[:1] if self.first_only else wrong)
        if wrong:
            raise self.error("poison at /srv/secret")
        lengths = np.array([float(len(sample.completion)) for sample in samples])
        return Scores(lengths, {"half": lengths / 2})


def requests(*texts: str) -> list[list[Sample]]:
    """Requests of the words of each text."""
    return [[Sample("", word) for word in text.split()] for text in texts]


def isolated(provider: rm.Provider, *texts: str, **settings: Any) -> list[Scores]:
    return score_requests(provider, requests(*texts), [f"request {number}" for number in range(len(texts))], **settings)


KINDS: dict[str, dict[str, Any]] = {
    "rows": {"names_rows": True},
    "one row": {"names_rows": True, "first_only": True},
    "no rows": {},
    "of the data": {"error": DataError},
}


class TestIsolation:
    @pytest.mark.parametrize("kind", KINDS)
    @given(words=st.lists(st.lists(st.sampled_from(["a", "bb", "poison"]), min_size=1, max_size=5), min_size=1, max_size=8))
    def test_what_fails_is_what_is_poisoned(self, kind: str, words: list[list[str]]) -> None:
        provider = Poisoned(**KINDS[kind])
        for request, found in zip(words, isolated(provider, *map(" ".join, words)), strict=True):
            poisoned = [row for row, word in enumerate(request) if word == "poison"]
            assert sorted(found.errors) == poisoned
            expected = [np.nan if word == "poison" else len(word) for word in request]
            np.testing.assert_array_equal(found.values, expected)
            if len(poisoned) < len(request):
                np.testing.assert_array_equal(found.details["half"], np.array(expected) / 2)

    def test_all_is_one_batch_while_nothing_fails(self) -> None:
        provider = Poisoned()
        isolated(provider, "a b", "c", "d e f")
        assert provider.batches == [6]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_poisoned_sample_costs_the_others_little(self, kind: str) -> None:
        provider = Poisoned(**KINDS[kind])
        isolated(provider, *["a b c d"] * 63, "a poison c d")
        assert sum(provider.batches) <= 4 * 256
        assert len(provider.batches) <= 20

    def test_a_client_is_told_of_its_data_and_not_of_the_server(self, caplog: pytest.LogCaptureFixture) -> None:
        (broken,) = isolated(Poisoned(), "poison")
        assert _told(broken.errors[0]) == "the reward failed (ScoringError); the server's log has the reason"
        assert "request 0" in caplog.text
        assert "/srv/secret" in caplog.text
        (wrong,) = isolated(Poisoned(error=DataError), "poison")
        assert _told(wrong.errors[0]) == "poison at /srv/secret"  # errors of the data are about what the client sent

    def test_rows_that_depend_on_each_other_are_not_taken_apart(self) -> None:
        provider = Poisoned()
        (found,) = isolated(provider, "a poison b", by_row=False)
        assert sorted(found.errors) == [0, 1, 2]
        assert provider.batches == [3]

    def test_a_failure_that_names_everybodys_rows_is_nobodys_until_looked_at(self) -> None:
        class Blaming(Poisoned):
            def score_batch(self, samples: Sequence[Sample]) -> Scores:
                try:
                    return super().score_batch(samples)
                except RuntimeError as error:
                    raise ScoringError("all of them", rows=range(len(samples))) from error

        found = isolated(Blaming(), "a", "poison", "b", "c")
        assert [sorted(one.errors) for one in found] == [[], [0], [], []]

    @pytest.mark.parametrize("policy", ["abstain", {"fallback": {"provider": "constant", "value": -7.0}}])
    def test_what_makes_up_for_ones_failure_leaves_the_others_their_scores(self, policy: Any) -> None:
        def length(samples: Sequence[Sample]) -> list[float]:
            if any(sample.completion == "poison" for sample in samples):
                raise RuntimeError("no row is named")
            return [float(len(str(sample.completion))) for sample in samples]

        reward = rm.load({"provider": "function", "function": length, "on_error": policy})
        poisoned, sound = score_requests(reward, [[Sample("", "poison")], [Sample("", "a"), Sample("", "bb")]], ["p", "s"])
        assert sound.values.tolist() == [1.0, 2.0]
        assert poisoned.values[0] != 6.0

    def test_a_function_is_called_as_if_each_request_were_the_only_one(self) -> None:
        def names(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
            return [float(len(columns))] * len(prompts)

        reward = rm.load({"provider": "function", "function": names})
        requests = [[Sample("", "a", {"answer": "4"})], [Sample("", "b")], [Sample("", "c", {"answer": "5"})]]
        alone = [score_requests(reward, [request], ["alone"])[0].values.tolist() for request in requests]
        together = score_requests(reward, requests, ["1", "2", "3"])
        assert [found.values.tolist() for found in together] == alone
        assert alone[0] != alone[1]

    def test_a_reward_that_ends_programs_ends_no_server(self) -> None:
        def leave(samples: Sequence[Sample]) -> list[float]:
            if any(sample.completion == "exit()" for sample in samples):
                raise SystemExit
            return [1.0] * len(samples)

        bad, good = score_requests(rm.load(leave), [[Sample("", "exit()")], [Sample("", "x")]], ["bad", "good"])
        assert bad.errors and not good.errors
        assert good.values.tolist() == [1.0]

    def test_what_the_reward_makes_of_failures_itself_is_left_so(self) -> None:
        provider = Poisoned(names_rows=True)
        provider.on_error = "abstain"
        (first, second) = isolated(provider, "a poison", "b")
        assert first.errors == {}
        assert np.isnan(first.values).tolist() == [False, True]
        assert second.values.tolist() == [1.0]


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
