"""What processes of one gloo group do with groups that are spread over them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed

import rm_plugins as rm
from rm_plugins.errors import ProcessError, ScoringError, UnsupportedError
from rm_plugins.handed_over import HandedOver, handed_over
from rm_plugins.processes import all_gathered
from rm_plugins.training.session import RewardInTraining
from rm_plugins_engines.engine_reward import EngineReward
from rm_plugins_trl import reward_func
from tests.groups.grouped_rewards import REWARDS, RUNNING, Shorter, batch, plain, rows_of, session, shares, training
from tests.sharded.launcher import run

BATCHES = 8


def by_length(samples: list[rm.Sample]) -> list[float]:
    return [float(len(sample.completion_text)) for sample in samples]


def is_one_process(name: str) -> None:
    """Every share of every batch has the scores that one process gives to the whole batch."""
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    together, kept = session(name), dict[str, Any]()
    alone, alone_kept = session(name), dict[str, Any]()
    for seed in range(BATCHES):
        samples = batch(seed, [0, 1, 7, 16][seed % 4])
        parts = shares(samples, processes, seed)
        found = together.score(parts[rank], training(seed, kept))
        with patch.object(distributed, "is_initialized", lambda: False):
            expected = alone.score(samples, training(seed, alone_kept))
        first = sum(len(part) for part in parts[:rank])
        if parts[rank]:
            wanted = rows_of(plain(expected), range(first, first + len(parts[rank])))
            assert plain(found) == wanted, (name, seed)
        assert kept == alone_kept


def split() -> list[rm.Sample]:
    """This process's rows of a group that all processes have."""
    rank = distributed.get_rank()
    return [rm.Sample("Q", "x" * (3 * rank + n)) for n in range(1 + rank)]


def every_sample_is_scored_once_where_most_of_its_group_is() -> None:
    provider = Shorter()
    RewardInTraining(provider, "mine").score([*split(), rm.Sample(f"own {distributed.get_rank()}", "y")], None)
    scored = all_gathered([(sample.prompt, sample.completion) for sample in provider.scored])
    last = len(scored) - 1
    assert [len(of_process) for of_process in scored] == [1] * last + [1 + (last + 1) * (last + 2) // 2]
    assert len({one for of_process in scored for one in of_process}) == sum(map(len, scored))


def a_failure_reaches_all() -> None:
    rank, last = distributed.get_rank(), distributed.get_world_size() - 1
    scorer = RewardInTraining(Shorter(), "mine")
    samples = [*split(), *([rm.Sample("Q", "bad")] if rank == last else [])]
    for mine in (samples, [rm.Sample(f"own {rank}", "bad" if rank == last else "good")]):  # spread, and whole
        with pytest.raises(ScoringError if rank == last else ProcessError, match="a judge refused one of the group") as raised:
            scorer.score(mine, None)
        if rank != last:
            assert f"process {last}: ScoringError" in str(raised.value)
    assert scorer.score([], None).values.shape == (0,)  # they are still in step


def what_belongs_to_rows_is_refused() -> None:
    def acting(samples: list[rm.Sample], environments: Any = None) -> list[float]:
        return [1.0 if environments is None else environment for environment in environments]

    provider = rm.load({"provider": "function", "function": acting, "transform": "rank-in-group"})
    scorer = RewardInTraining(provider, "mine")
    samples = split()

    def score(mine: list[rm.Sample]) -> rm.Scores:
        make = {"environments": lambda rows: [float(row) for row in rows]}
        with handed_over(HandedOver(mine, {}, make)):
            return scorer.score(mine, None)

    with pytest.raises(
        UnsupportedError, match=r"'acting' compares .* its function 'acting' takes `environments`.*num_generations"
    ):
        score(samples)
    own = [rm.Sample(f"own {distributed.get_rank()}", text) for text in "xyz"]
    np.testing.assert_array_equal(score(own).values, [0.0, 0.5, 1.0])


def metrics_are_logged_in_all_processes() -> None:
    def logging(completions: list[str], log_metric: Any = None, **others: Any) -> list[float]:
        assert "log_extra" not in others
        log_metric("longest", float(max(map(len, completions))))
        return [float(len(completion)) for completion in completions]

    samples = split()
    logged: dict[str, Any] = {}
    rewards = reward_func({"provider": "function", "function": logging, "transform": "rank-in-group"}, name="mine")(
        [sample.prompt for sample in samples],
        [sample.completion for sample in samples],
        log_metric=logged.__setitem__,
        log_extra=logged.__setitem__,
    )
    assert len(rewards) == len(samples)
    last = distributed.get_world_size() - 1
    assert logged["longest"] == 4.0 * last  # what the process has logged that scored the group
    assert len({tuple(names) for names in all_gathered(sorted(logged))}) == 1


def what_cannot_be_sent_is_an_error_in_all() -> None:
    rank, last = distributed.get_rank(), distributed.get_world_size() - 1
    scorer = RewardInTraining(Shorter(), "mine")
    samples = [rm.Sample(sample.prompt, sample.completion, {"call": lambda: None}) for sample in split()]
    if rank == last:
        with pytest.raises(ScoringError, match="could not send"):
            scorer.score(samples, None)
    else:
        with pytest.raises(UnsupportedError, match="cannot be pickled"):
            scorer.score(samples, None)
    own = [rm.Sample(f"own {rank}", sample.completion, sample.columns) for sample in samples]
    assert len(scorer.score(own, None)) == len(own)


def keys_are_equal_in_all_processes() -> None:
    """Though one process has integers and the others floats, as where a value is missing, and each has decoded an image for itself."""
    rank, last = distributed.get_rank(), distributed.get_world_size() - 1
    ids: list[Any] = [7] if rank == 0 else [7.0, float("nan")]
    reward = rm.load(by_length, transform={"name": "rank-in-group", "group": "id"}, on_error="abstain")
    mine = [rm.Sample(f"own {rank}", "x" * rank, {"id": identifier}) for identifier in ids]
    scores = RewardInTraining(reward, "mine").score(mine, None)
    assert scores.values[0] == rank / last
    assert scores.failed.tolist() == [False, True][: len(ids)]
    prompt = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (2, 2))}]}]
    scores = RewardInTraining(rm.load(by_length, transform="rank-in-group"), "mine").score(
        [rm.Sample(prompt, "x" * rank)], None
    )
    assert scores.values.tolist() == [rank / last]


def engines_whose_processes_are_in_step_are_too() -> None:
    rank = distributed.get_rank()
    reward = EngineReward(
        {"provider": "function", "function": by_length, "transform": ["rank-in-group", RUNNING]},
        "ms-swift",
        groups=True,
        in_step=True,
    )
    everything = [sample for of_process in all_gathered(split()) for sample in of_process]
    with patch.object(distributed, "is_initialized", lambda: False):
        expected = rm.load(by_length, transform=["rank-in-group", RUNNING]).score(everything).values.tolist()
    start = len([sample for of_process in all_gathered(split())[:rank] for sample in of_process])
    found = [outcome.value for outcome in reward.score(split())]
    assert found == expected[start : start + 1 + rank]
    assert reward.score([]) == []


CASES: dict[str, Callable[[], None]] = {
    **{f"{name}, as in one process": partial(is_one_process, name) for name in REWARDS},
    "scored once": every_sample_is_scored_once_where_most_of_its_group_is,
    "a failure": a_failure_reaches_all,
    "environments": what_belongs_to_rows_is_refused,
    "in step": engines_whose_processes_are_in_step_are_too,
    "keys": keys_are_equal_in_all_processes,
    "metrics": metrics_are_logged_in_all_processes,
    "a column that cannot be sent": what_cannot_be_sent_is_an_error_in_all,
}


def run_all(folder: Path) -> None:
    """Run all cases in two and in three processes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for processes in (2, 3):
        run(CASES, folder, processes)
