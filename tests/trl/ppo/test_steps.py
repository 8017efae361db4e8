"""Rewards of steps reach PPO at the tokens where the steps end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import rm_plugins as rm
from rm_plugins.errors import ScoringError
from rm_plugins.scores import StepReward, joined
from rm_plugins_trl.ppo.advantages import token_rewards
from rm_plugins_trl.ppo.rollout import Generation
from rm_plugins_trl.ppo.steps import StepRewards
from rm_plugins_trl.reward_function import RewardFunction

LETTERS = "abcdefgh"


def decode(ids: Sequence[int]) -> str:
    return "".join(LETTERS[token] * 2 for token in ids)  # every token is two characters


def generation(*completions: Sequence[int]) -> Generation:
    return Generation.of([[0]] * len(completions), [list(one) for one in completions], None, torch.device("cpu"))


def halves(samples: Sequence[rm.Sample]) -> rm.Scores:
    """One reward at the middle of the text and two at its end."""
    ends = [len(sample.completion_text) for sample in samples]
    return rm.Scores(np.full(len(samples), 3.0), steps=[[StepReward(end // 2, 1.0), StepReward(end, 2.0)] for end in ends])


def scored(function: RewardFunction, generated: Generation) -> StepRewards:
    steps = StepRewards([function])
    texts = [decode(row[1:]) for row in generated.rows]
    function([""] * len(texts), texts)
    return steps


def test_each_step_is_at_the_token_that_ends_it() -> None:
    generated = generation([1, 2, 3, 4], [1, 2])
    found = scored(RewardFunction(halves), generated).of_tokens(generated, torch.tensor([0.5]), decode)
    assert found is not None
    assert found.tolist() == [[0.0, 0.5, 0.0, 1.0], [0.5, 1.0, 0.0, 0.0]]


def test_the_last_token_gets_the_rest() -> None:
    steps = torch.tensor([[1.0, 0.0, 2.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert token_rewards(torch.tensor([2.5]), torch.zeros(1, 4), mask, 0.1, steps).tolist() == [[1.0, 0.0, 1.5, 0.0]]


def test_steps_are_forgotten_after_their_rollout() -> None:
    generated = generation([1, 2])
    steps = scored(RewardFunction(halves), generated)
    assert steps.of_tokens(generated, torch.tensor([1.0]), decode) is not None
    assert steps.of_tokens(generated, torch.tensor([1.0]), decode) is None


def test_steps_add_up_to_the_score() -> None:
    def more(samples: Sequence[rm.Sample]) -> rm.Scores:
        return rm.Scores(np.full(len(samples), 9.0), steps=[[StepReward(1, 1.0)]] * len(samples))

    generated = generation([1, 2])
    with pytest.raises(ScoringError, match="add up to 1, and the score 9"):
        scored(RewardFunction(more), generated).of_tokens(generated, torch.tensor([1.0]), decode)


def test_another_text_than_the_tokens_is_refused() -> None:
    generated = generation([1, 2])
    steps = scored(RewardFunction(halves), generated)
    with pytest.raises(ScoringError, match="is not that of the completion's tokens"):
        steps.of_tokens(generated, torch.tensor([1.0]), lambda ids: decode(ids).upper())


def test_a_combination_that_loses_steps_says_so_once() -> None:
    spec: dict[str, Any] = {"provider": "sum", "members": [halves, halves]}
    function = RewardFunction(spec)
    steps = StepRewards([function])
    with pytest.warns(UserWarning, match="PPO gives the whole reward at the end"):
        function(["", ""], ["ab", "abcd"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(["", ""], ["ab", "abcd"])
    assert steps.of_tokens(generation([1], [1, 2]), torch.tensor([1.0]), decode) is None


class TestScores:
    def test_rows_and_places(self) -> None:
        scores = halves([rm.Sample("", "ab"), rm.Sample("", "abcd")])
        assert scores.rows([1]).steps == [[StepReward(2, 1.0), StepReward(4, 2.0)]]
        assert scores.rows([0]).scattered([1], 3).steps == [(), [StepReward(1, 1.0), StepReward(2, 2.0)], ()]

    def test_joined_with_rows_that_have_none(self) -> None:
        steps = halves([rm.Sample("", "ab")]).scattered([0], 2)
        plain = rm.Scores(np.array([5.0])).scattered([1], 2)
        for parts in ([steps, plain], [plain, steps]):
            assert joined(parts).steps == [[StepReward(1, 1.0), StepReward(2, 2.0)], ()]
        assert joined([plain]).steps is None

    def test_a_number_for_each_sample(self) -> None:
        with pytest.raises(ScoringError, match="steps of 1 samples; 2 were expected"):
            rm.Scores(np.array([1.0, 2.0]), steps=[[]])
