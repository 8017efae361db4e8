"""Thurstone's model of comparisons."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.reductions import at_least_float32, check_finite, mean_over_pairs

if TYPE_CHECKING:
    from torch import Tensor

_TAIL = -20.0  # where the series of log Φ is exact to 1e-9


class Thurstone(Loss):
    """Thurstone's case V: Gaussian noise is added to both rewards, and the larger sum wins.

    Formula: −log Φ(Δ / (√2·s)), Φ the normal distribution function

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``weights`` | [N] | optional, a pair has its winner's |

    A pair that is wrong by Δ costs about Δ²/(4s²); Bradley-Terry's cost is linear in Δ.

    Args:
        sigma: s, the standard deviation of the noise of one reward.

    Raises:
        SpecError: ``sigma`` is not positive and finite.

    Source: Thurstone, "A law of comparative judgment", 1927.

    >>> batch = RewardBatch.of([[2.0], [0.0]], pairs=[[0, 1]])
    >>> round(Thurstone()(batch).item(), 4)
    0.0819
    """

    name = "thurstone"

    def __init__(self, *, sigma: float = 1.0) -> None:
        check_finite(self.name, sigma=sigma)
        self.sigma = sigma

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        delta = at_least_float32(batch.winners - batch.losers)
        return mean_over_pairs(batch, -_log_normal_cdf(delta / (math.sqrt(2) * self.sigma)))


def _log_normal_cdf(values: Tensor) -> Tensor:
    """log Φ: in the far left tail, where the gradient of PyTorch's own is off in float32, by its asymptotic series."""
    import torch

    tail = values < _TAIL
    far = values.masked_fill(~tail, _TAIL)
    inverse = far.square().reciprocal()
    series = -far.square() / 2 - (-far).log() - math.log(2 * math.pi) / 2 + torch.log1p(inverse * (3 * inverse - 1))
    return torch.where(tail, series, torch.special.log_ndtr(values.masked_fill(tail, 0.0)))
