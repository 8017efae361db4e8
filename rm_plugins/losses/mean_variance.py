"""A reward with its own uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rm_plugins.errors import DataError, SpecError
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.labels import check_one_attribute, labels_beside, mean_over_labels
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.reductions import check_finite, log_sigmoid, mean_over_pairs
from rm_plugins.models.heads import Heads

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MeanVariance"]


class MeanVariance(Loss):
    """A Gaussian reward: one output is its mean, which is the reward, the other the logarithm of its standard deviation.

    Formula: pairs: −log σ(Δμ / √(1 + π(s_w² + s_l²)/8)); ratings: ½ log v + (y − μ)²/(2v), v = s² + s₀²; s = exp(log_std)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, 2] | μ and log_std |
    | ``pairs`` | [M, 2] | for ``data="pairs"``: winner and loser, of which Δμ is the difference of means |
    | ``labels`` | [N, 1] | for ``data="ratings"``: y, NaN where missing |
    | ``weights`` | [N] | optional, the weight of each row; a pair has its winner's |

    On pairs it is the probability that σ gives a difference with Gaussian noise, by MacKay's approximation. On ratings it is the
    negative log-likelihood less a constant.

    Args:
        data: What it is trained on.
        min_std: s₀, below which a standard deviation makes no difference to the loss on ratings, in their units: it bounds the
            loss from below where the model is exactly right.

    Raises:
        SpecError: ``min_std`` is not positive and finite; the data is ratings and does not have exactly one attribute.
        DataError: When called: there are not two outputs, or labels are missing from the batch.

    Source: URM, arXiv 2410.00847, on ratings; PURM, arXiv 2503.22480, on pairs.

    >>> batch = RewardBatch.of([[2.0, -99.0], [0.0, -99.0]], pairs=[[0, 1]])
    >>> round(MeanVariance()(batch).item(), 4)  # without uncertainty it is Bradley-Terry
    0.1269
    """

    name = "mean-variance"

    def __init__(self, *, data: Literal["pairs", "ratings"] = "pairs", min_std: float = 1e-3) -> None:
        if data not in ("pairs", "ratings"):
            raise SpecError(f"mean-variance needs the data 'pairs' or 'ratings', not {data!r}.")
        check_finite(self.name, min_std=min_std)
        self.data = data
        self.min_std = min_std
        if data == "ratings":  # the class has what the default needs
            self.needs = frozenset({"labels"})  # type: ignore[misc]
            self.mean_over = "labels"  # type: ignore[misc]

    def heads(self, attributes: Sequence[str]) -> Heads:
        """The mean, which is the reward, and the logarithm of the standard deviation."""
        if self.data == "ratings":
            check_one_attribute(self.name, attributes)
        return Heads(("mean", "log_std"), (1.0, 0.0))

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs, or over labels."""
        if batch.rewards.shape[1] != 2:
            raise DataError(f"The loss 'mean-variance' needs two outputs, mean and log_std, not {batch.rewards.shape[1]}.")
        return self._on_pairs(batch) if self.data == "pairs" else self._on_ratings(batch)

    def _on_pairs(self, batch: RewardBatch) -> Tensor:
        import torch
        from torch.nn.functional import softplus

        # The square root in logarithms, as e^(2·log_std) may overflow.
        log_variance = torch.logaddexp(2 * batch.winners[:, 1:], 2 * batch.losers[:, 1:]) + math.log(math.pi / 8)
        shrunk = (batch.winners - batch.losers)[:, :1] * (-softplus(log_variance) / 2).exp()
        return mean_over_pairs(batch, -log_sigmoid(shrunk))

    def _on_ratings(self, batch: RewardBatch) -> Tensor:
        import torch

        labels, present = labels_beside(batch, self.name)
        log_std = batch.rewards[:, 1:]
        log_variance = torch.logaddexp(2 * log_std, torch.full_like(log_std, 2 * math.log(self.min_std)))
        errors = batch.rewards[:, :1] - labels[:, :1]
        return mean_over_labels(batch, (log_variance + errors.square() * (-log_variance).exp()) / 2, present[:, :1])
