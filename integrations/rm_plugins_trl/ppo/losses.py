"""PPO's losses, for each token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenLoss(NamedTuple):
    """A loss of each token, and whether clipping decided it: float and bool, [T] each."""

    loss: Tensor
    is_clipped: Tensor


def policy_loss(log_ratio: Tensor, advantages: Tensor, cliprange: float) -> TokenLoss:
    """The clipped surrogate, ``max(-A r, -A clip(r, 1 - c, 1 + c))`` with ``r = exp(log_ratio)``.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7, with the sign of a loss.

    Args:
        log_ratio: Log-probability under the policy less that under the policy of the rollout, [T].
        advantages: [T].
        cliprange: How far the ratio may be from 1.
    """
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return TokenLoss(torch.maximum(plain, clipped), clipped > plain)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> TokenLoss:
    """Half the squared error of the value or of the clipped value: the larger one.

    ``0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)``: the value loss of OpenAI's baselines, which InstructGPT
    (Ouyang et al. 2022, arXiv:2203.02155) trains with, too.

    Args:
        values: The critic's estimates, [T].
        old_values: Those at the rollout, [T].
        returns: What they should be, [T].
        cliprange: How far a value may be from the old one.
    """
    plain = (values - returns).square()
    clipped = (torch.clamp(values, old_values - cliprange, old_values + cliprange) - returns).square()
    return TokenLoss(0.5 * torch.maximum(plain, clipped), clipped > plain)
