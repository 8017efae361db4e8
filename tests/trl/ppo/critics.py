"""What the tests of critics share: rows, and what critics and their models give for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import rm_plugins as rm
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins_trl.ppo.critic import Critic, trained_groups

ROWS = [[5, 6, 7, 8, 9, 10], [5, 6, 20, 21], [30, 31, 32, 33, 34]]
STARTS = [2, 2, 4]
COMPLETION_TOKENS = 4 + 2 + 1

Make = Callable[..., Any]


def loaded(spec: Any) -> SequenceClassifier:
    reward = rm.load(spec)
    assert isinstance(reward, SequenceClassifier)
    return reward


def values_of(critic: Critic) -> torch.Tensor:
    with torch.no_grad():
        return critic.values(ROWS, STARTS)


def scores_by_token(model: Any) -> torch.Tensor:
    """The scores that a classifier gives the text before each completion token, [T, labels], each from a row of its own."""
    texts = [row[:end] for row, start in zip(ROWS, STARTS, strict=True) for end in range(start, len(row))]
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([text])).logits for text in texts])


def trained_once(critic: Critic) -> None:
    optimizer = torch.optim.AdamW(trained_groups(critic, 0.01, 0.1))
    for _ in range(2):  # a head of zeros gives the trunk no gradient at first
        with critic.attention():
            (critic(rows=ROWS, starts=STARTS) - 1.0).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
