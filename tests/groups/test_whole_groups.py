"""Groups that are spread over processes are scored as in one process."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.training.whole_groups import whole_groups
from tests.groups.grouped_rewards import REWARDS, batch, plain, rows_of, session, shares, training
from tests.groups.process_cases import CASES, run_all
from tests.made_once import made_once
from tests.sharded.launcher import outcomes
from tests.warm_process import call_warm

# --- In processes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes of both groups wrote."""
    return made_once(tmp_path_factory, "whole-groups", lambda folder: call_warm(run_all, folder))


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_processes(case: str, processes: int, folder: Path) -> None:
    assert outcomes(folder, processes).get(case) == dict.fromkeys(range(processes), "ok")


# --- In threads that stand for processes ----------------------------------------------------------------------------------


class Threads:
    """Runs a function in threads that exchange values as processes do, through pickles."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=20)
        self.rank: ContextVar[int] = ContextVar("rank")
        self.values: list[Any] = [None] * count
        self.exchanged: list[list[str]] = [[] for _ in range(count)]

    def gathered(self, value: Any, purpose: str = "") -> list[Any]:
        self.exchanged[self.rank.get()].append(purpose)
        self.values[self.rank.get()] = pickle.dumps(value)
        self.barrier.wait()
        found = [pickle.loads(value) for value in self.values]
        self.barrier.wait()
        return found

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        found: list[Any] = [None] * self.count

        def process(rank: int) -> None:
            self.rank.set(rank)
            try:
                found[rank] = function(rank)
            except BaseException as error:
                found[rank] = error
                self.barrier.abort()

        with (
            patch("rm_plugins.training.whole_groups.all_gathered", self.gathered),
            patch("rm_plugins.transforms.running.all_gathered", self.gathered),
            patch("rm_plugins.training.whole_groups.process_rank", self.rank.get),
            patch("rm_plugins.training.whole_groups.process_count", lambda: self.count),
        ):
            threads = [threading.Thread(target=process, args=(rank,)) for rank in range(self.count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return found


@pytest.mark.parametrize("name", REWARDS)
@settings(max_examples=25)
@given(processes=st.integers(2, 4), size=st.integers(0, 14), seed=st.integers(0, 10_000), cut=st.integers(0, 10_000))
def test_any_split_gives_the_scores_of_one_process(name: str, processes: int, size: int, seed: int, cut: int) -> None:
    samples = batch(seed, size)
    parts = shares(samples, processes, cut)
    expected = plain(session(name).score(samples, None))
    threads = Threads(processes)
    found: Sequence[rm.Scores] = threads.run(lambda rank: session(name).score(parts[rank], None))
    start = 0
    for part, scores in zip(parts, found, strict=True):
        if part:
            assert plain(scores) == rows_of(expected, range(start, start + len(part)))
        assert len(scores) == len(part)
        start += len(part)
    assert all(exchanged == threads.exchanged[0] for exchanged in threads.exchanged)


def test_pointwise_rewards_exchange_nothing_and_whole_groups_only_their_keys() -> None:
    own = [[rm.Sample(f"{rank}", "x"), rm.Sample(f"{rank}", "yy")] for rank in range(2)]
    expected = {"ranks": ["the groups of a batch", "the scores of split groups"], "nothing is compared": []}
    for name, purposes in expected.items():
        threads = Threads(2)
        threads.run(lambda rank, name=name: session(name).score(own[rank], None))  # type: ignore[misc]
        assert [one for one in threads.exchanged[0] if "group" in one] == purposes


def test_facts_about_the_batch_are_those_of_what_was_scored() -> None:
    threads = Threads(2)
    found = threads.run(lambda rank: session("a judge").score([rm.Sample("Q", "x" * rank)], training()))
    assert [scores.metadata["groups"] for scores in found] == [1, 1]


# --- Where groups are scored ----------------------------------------------------------------------------------------------

KEYS = st.lists(st.lists(st.sampled_from(["a", "b", "c", None, ""]), max_size=8), min_size=1, max_size=4)


@given(KEYS)
def test_each_group_is_in_the_process_with_most_of_its_rows(keys: list[list[str | None]]) -> None:
    plan = whole_groups([[of_process] for of_process in keys])
    everything = [(rank, row) for rank, of_process in enumerate(keys) for row in range(len(of_process))]
    assert sorted(place for places in plan.scored for place in places) == everything
    assert all(list(places) == sorted(places) for places in plan.scored)
    for key in "abc":
        counts = [of_process.count(key) for of_process in keys]
        scorers = {rank for rank, places in enumerate(plan.scored) for owner, row in places if keys[owner][row] == key}
        assert scorers == ({counts.index(max(counts))} if any(counts) else set())
    stays = {(rank, row) for rank, row in everything if not keys[rank][row]}
    assert not stays & {place for places in plan.moves.values() for place in places}


def test_rows_that_any_of_several_groupings_joins_are_together() -> None:
    prompts, ids = [["p", "q"], ["q", "r"], ["s"]], [["1", "2"], ["3", "4"], ["4"]]
    plan = whole_groups(list(zip(prompts, ids, strict=True)))
    assert plan.scored == [[(0, 0), (0, 1), (1, 0)], [(1, 1), (2, 0)], []]
    assert plan.moves == {(1, 0): [(1, 0)], (2, 1): [(2, 0)]}
