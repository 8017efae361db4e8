"""PPO in worlds whose optimum is known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

import rm_plugins as rm
from tests.trl.conftest import TRL_WARNINGS, newest_trl
from tests.trl.ppo.worlds import LETTERS, VOCABULARY, letters_policy, logged, next_token, trainer

pytestmark = [newest_trl, *TRL_WARNINGS]


@pytest.mark.parametrize("kl_coef", [0.5, 1.0])
def test_a_bandit_ends_at_the_optimum_under_the_kl_penalty(kl_coef: float, tmp_path: Path) -> None:
    """One token each: the policy that maximizes E[r] - c KL(p | q) is p* ~ q exp(r / c)."""
    worth = {letter: reward for letter, reward in zip(LETTERS, (1.0, 0.8, 0.5, 0.2, 0.0, -0.5), strict=True)}

    def reward(samples: Sequence[rm.Sample]) -> list[float]:
        return [worth.get(str(sample.completion), 0.0) for sample in samples]

    reference = letters_policy(initializer_range=0.3)
    trained = trainer(
        tmp_path,
        model=letters_policy(initializer_range=0.3),
        reward_model=reward,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 128),
        response_length=1,
        per_device_train_batch_size=128,
        num_mini_batches=1,
        num_ppo_epochs=3,
        kl_coef=kl_coef,
        total_episodes=128 * 36,
        learning_rate=1e-2,
        whiten_advantages=False,
    )
    trained.train()
    before = next_token(reference, "a")
    best = before * np.exp(np.array([worth.get(token, 0.0) for token in VOCABULARY]) / kl_coef)
    best /= best.sum()
    found = next_token(trained.model, "a")

    def distance(policy: np.ndarray) -> float:
        return float(np.abs(policy - best).sum() / 2)

    assert distance(before) > 0.1
    assert distance(found) < 0.03


@pytest.mark.filterwarnings("ignore:All completions of the last 5 rollouts were cut off")  # none needs to end
def test_a_chain_of_tokens(tmp_path: Path) -> None:
    """After a comes b, after b comes c, ...: each right step is worth 1 after the prompt `a b`, and 3 after `a a`."""
    follows = dict(zip(LETTERS, LETTERS[1:] + LETTERS[:1], strict=True))

    def reward(samples: Sequence[rm.Sample]) -> list[float]:
        return [
            (3.0 if sample.prompt == "a a" else 1.0) * sum(b == follows.get(a) for a, b in pairwise(tokens))
            for sample in samples
            for tokens in [[str(sample.prompt)[-1], *str(sample.completion).split()]]
        ]

    trained = trainer(
        tmp_path,
        reward_model=reward,
        train_dataset=Dataset.from_list([{"prompt": "a b"}, {"prompt": "a a"}] * 64),
        response_length=4,
        per_device_train_batch_size=64,
        num_mini_batches=2,
        num_ppo_epochs=2,
        kl_coef=0.0,
        total_episodes=128 * 36,
        learning_rate=1e-2,
        cliprange_value=100.0,
        vf_coef=1.0,
    )
    trained.train()
    scores, explained = logged(trained, "objective/scores"), logged(trained, "critic/explained_variance")
    assert scores[0] < 2.5
    assert np.mean(scores[-4:]) > 0.93 * (4 * 1 + 4 * 3) / 2
    assert explained[0] < 0.1
    assert np.mean(explained[-4:]) > 0.8
