"""Whose turn it is among many clients."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.batching.fair_queue import FairQueue


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
