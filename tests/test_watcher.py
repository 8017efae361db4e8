"""The watcher in a training loop that nobody but this file knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.training.journal import read_journal
from rm_plugins.training.session import RewardInTraining, Training
from rm_plugins.training.watcher import RewardWatcher


def length(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(str(sample.completion))) for sample in samples]


class Loop:
    """A reward and the few lines of a trainer."""

    def __init__(self, **transform: Any) -> None:
        spec: dict[str, Any] = {"provider": "function", "function": length}
        self.provider = rm.load(spec | ({"transform": transform} if transform else {}))
        self.__name__ = "mine"
        self.watchers: list[Callable[[Sequence[rm.Sample], rm.Scores, Any], None]] = []
        self.session = RewardInTraining(self.provider, "length")
        self.kept: dict[str, Any] = {}

    def score(self, step: int, *completions: str) -> rm.Scores:
        samples = [rm.Sample("Name a colour.", completion) for completion in completions]
        scores = self.session.score(samples, Training(step, 10, self.kept, "the state"))
        for watcher in self.watchers:
            watcher(samples, scores, self)
        return scores


def test_steps_are_measured_and_kept(tmp_path: Path) -> None:
    loop = Loop()
    watcher = RewardWatcher(loop, journal=tmp_path)
    watcher.begin(loop, 0)
    for step in (1, 2):
        loop.score(step, "a" * step, "bb")
        loop.score(step, "ccc")
        watcher.add_trainer_figures(step, {"kl": step / 10})
        assert watcher.end_step(step) == []
    figures = watcher.unlogged_figures()
    assert figures["watch/mine/samples"] == 3
    assert figures["watch/mine/reward"] == pytest.approx((2 + 7 / 3) / 2)
    assert figures["watch/mine/warnings"] == 0
    assert watcher.unlogged_figures() == {}
    watcher.end()
    assert loop.watchers == []
    steps = list(read_journal(tmp_path))
    assert [(step.step, step.trainer["kl"], len(step.samples["mine"])) for step in steps] == [(1, 0.1, 3), (2, 0.2, 3)]
    assert [row.sample.completion for row in steps[1].samples["mine"]] == ["aa", "bb", "ccc"]


def test_batches_of_a_step_are_joined_with_their_parts() -> None:
    loop = Loop()
    watcher = RewardWatcher(loop)
    watcher.begin(loop, 0)
    for values in ([1.0, 2.0], [6.0]):
        member = rm.Scores(np.array(values) + 1, kind="member")
        for hear in loop.watchers:
            hear([rm.Sample("p", "c")] * len(values), rm.Scores(np.array(values), parts={"0": member}), loop)
    watcher.end_step(1)
    figures = watcher.unlogged_figures()
    assert (figures["watch/mine/reward"], figures["watch/mine/member/0"]) == (3, 4)


def test_evaluations_and_other_trainings_are_left_out() -> None:
    loop, other = Loop(), object()
    watcher = RewardWatcher(loop)
    watcher.begin(other, 0)
    loop.score(1, "a")
    watcher.begin(loop, 0)
    loop.score(1, "a")
    watcher.forget_batches()
    watcher.end_step(1)
    assert watcher.unlogged_figures() == {}


def test_what_a_reward_learned_is_in_what_the_training_keeps() -> None:
    first, second, third = (Loop(name="zscore", running=True, warmup=2) for _ in range(3))
    first.score(0, "a", "bb", "ccc")
    assert list(first.kept) == ["rm_plugins/length"]
    second.kept = {**first.kept}
    assert second.score(2, "aaaa").values.tolist() == first.score(2, "aaaa").values.tolist()
    with pytest.warns(UserWarning, match=r"no entry 'rm_plugins/length' in the state"):
        third.score(2, "a")
    third.kept = {"rm_plugins/length": {"elsewhere": {}}}
    with pytest.raises(DataError, match=r"is the entry 'rm_plugins/length' of the state"):
        third.score(3, "a")
