"""Rewards of tokens, their advantages and the returns, of a rollout of N completions with at most L tokens.

A tensor [N, L] has a completion's tokens on the left. A mask, bool [N, L], is true for the tokens that the policy chose. Padding, and the
tokens of tools and environments between them, do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

SumOverProcesses: TypeAlias = Callable[[Tensor], Tensor]
"""Adds up a tensor of every process; each gets the sum."""

_EPSILON = 1e-8


def last_tokens(mask: Tensor) -> Tensor:
    """The mask of each completion's last token, bool [N, L]; nothing of a completion without a token."""
    later = mask.flip(1).cumsum(1).flip(1)
    return mask & (later == 1)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float, steps: Tensor | None = None) -> Tensor:
    """The reward of each token, float [N, L]: the KL penalty, and the score of the completion at its last token.

    Args:
        scores: The reward of each completion, [N].
        steps: What of it belongs to earlier tokens, [N, L]; the last token gets the rest. None for nothing.
        kl: The KL term of each token, [N, L].
        mask: The tokens that the policy chose, [N, L].
        kl_coef: The weight of the KL penalty.
    """
    penalty = torch.where(mask, -kl_coef * kl, 0.0)
    if steps is None:
        return penalty + last_tokens(mask) * scores.to(kl.dtype)[:, None]
    of_steps = torch.where(mask, steps.to(kl.dtype), 0.0)
    return penalty + of_steps + last_tokens(mask) * (scores.to(kl.dtype) - of_steps.sum(1))[:, None]


def generalized_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimates and returns, float [N, L] each, 0 outside the mask.

    ``A[t] = delta[t] + gamma * lam * A[t + 1]`` with ``delta[t] = r[t] + gamma * V[t + 1] - V[t]`` (Schulman et al. 2016,
    arXiv:1506.02438, equation 16). The next token is the next one that the policy chose; after the last, V and A are 0.

    Args:
        rewards: The reward of each token, [N, L].
        values: The critic's estimate in the state in which each token was chosen, [N, L].
        mask: The tokens that the policy chose, [N, L].
        gamma: The discount of a reward one token later.
        lam: The weight of longer estimates: 0 uses the critic alone, 1 the rewards alone.
    """
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    next_advantage = torch.zeros_like(rewards[:, 0])
    for token in reversed(range(rewards.shape[1])):
        chosen, value = mask[:, token], values[:, token]
        advantage = rewards[:, token] + gamma * next_value - value + gamma * lam * next_advantage
        next_advantage = torch.where(chosen, advantage, next_advantage)
        next_value = torch.where(chosen, value, next_value)
        advantages[:, token] = torch.where(chosen, advantage, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def whitened(values: Tensor, mask: Tensor, total: SumOverProcesses, *, shift_mean: bool = True) -> Tensor:
    """The values divided by their standard deviation over the tokens of all processes, [N, L], 0 outside the mask.

    The variance is unbiased. Fewer than two tokens, whose variance is not defined, stay as they are.

    Args:
        values: [N, L].
        mask: The tokens that count, [N, L].
        total: Adds up over processes.
        shift_mean: Whether their mean becomes 0; otherwise it stays.
    """
    count = total(mask.sum().double())
    if count < 2:
        return torch.where(mask, values, 0.0)
    kept = torch.where(mask, values, 0.0).double()
    mean = total(kept.sum()) / count
    variance = total(torch.where(mask, (kept - mean).square(), 0.0).sum()) / (count - 1)
    scaled = (kept - mean) * torch.rsqrt(variance + _EPSILON)
    return torch.where(mask, scaled if shift_mean else scaled + mean, 0.0).to(values.dtype)


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor, total: SumOverProcesses) -> float:
    """The share of the returns' variance that the critic explains: ``1 - Var(returns - values) / Var(returns)``.

    It is 1 for a perfect critic and 0 for a constant one; NaN if the returns of all processes are equal.
    """
    count = total(mask.sum().double())

    def variance(numbers: Tensor) -> Tensor:
        kept = torch.where(mask, numbers, 0.0).double()
        mean = total(kept.sum()) / count
        return total(torch.where(mask, (kept - mean).square(), 0.0).sum()) / count

    spread = variance(returns)
    return float(1 - variance(returns - values) / spread) if count and spread > 0 else float("nan")
