"""Losses that predict ratings: a regression on each attribute, and the quantiles of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from rm_plugins.errors import DataError, SpecError
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.labels import attribute_heads, check_one_attribute, labels_beside, mean_over_labels
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.reductions import check_finite
from rm_plugins.models.heads import Heads

if TYPE_CHECKING:
    from torch import Tensor


class Regression(Loss):
    """Regression: one output per attribute, fitted to its rating.

    Formula: mse: (r − y)²; huber: ½(r − y)² where |r − y| ≤ δ, else δ·(|r − y| − δ/2)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, attributes] | r; the outputs are the attributes |
    | ``labels`` | [N, attributes] | y, NaN where missing; one column is for all outputs |
    | ``weights`` | [N] | optional, the weight of each row |

    Args:
        kind: ``mse``, or ``huber``, which is less sensitive to outliers.
        delta: δ of ``huber``, in units of the ratings.
        weights: The weight of each attribute in the reward; None for equal ones that sum to 1. They do not change the loss.

    Raises:
        SpecError: An argument is out of bounds; the data has no labels, or the weights are not those of its attributes.
        DataError: When called: there are not as many outputs as attributes.

    Source: HelpSteer, arXiv 2311.09528; HelpSteer2, arXiv 2406.08673; NeMo-Aligner.

    >>> batch = RewardBatch.of([[3.0, 1.0]], labels=[[1.0, float("nan")]])
    >>> Regression()(batch).item(), Regression(kind="huber")(batch).item()
    (4.0, 1.5)
    >>> Regression(weights={"correct": 0.7, "verbose": -0.3}).heads(["correct", "verbose"]).weights
    (0.7, -0.3)
    """

    name = "regression"
    needs = frozenset({"labels"})
    mean_over = "labels"

    def __init__(
        self, *, kind: Literal["mse", "huber"] = "mse", delta: float = 1.0, weights: Mapping[str, float] | None = None
    ) -> None:
        if kind not in ("mse", "huber"):
            raise SpecError(f"regression needs the kind 'mse' or 'huber', not {kind!r}.")
        check_finite(self.name, delta=delta)
        self.kind = kind
        self.delta = delta
        self.weights = weights

    def heads(self, attributes: Sequence[str]) -> Heads:
        """One output per attribute."""
        return attribute_heads(self.name, attributes, self.weights)

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over labels."""
        import torch
        from torch.nn.functional import huber_loss

        labels, present = labels_beside(batch, self.name)
        errors = batch.rewards - labels
        if self.kind == "mse":
            return mean_over_labels(batch, errors.square(), present)
        losses = huber_loss(errors, torch.zeros_like(errors), reduction="none", delta=self.delta)
        return mean_over_labels(batch, losses, present)


class Quantile(Loss):
    """Quantile regression: the outputs are evenly spaced quantiles of a rating, and the reward is their mean.

    Formula: mean over q = 1 … Q of u·(τ_q − [u < 0]), with u = y − r_q and τ_q = q/(Q + 1)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, Q] | r; an output for each quantile, named ``q0.05``, ``q0.1``, ... after its level |
    | ``labels`` | [N, 1] | y, NaN where missing |
    | ``weights`` | [N] | optional, the weight of each row |

    Args:
        quantiles: Q, how many there are.

    Raises:
        SpecError: ``quantiles`` is not from 1 to 999; the data does not have exactly one attribute.
        DataError: When called: there are not Q outputs.

    Source: quantile reward models, arXiv 2409.10164; the pinball loss is Koenker and Bassett's, 1978.

    >>> batch = RewardBatch.of([[1.0, 2.0, 3.0]], labels=[[2.0]])
    >>> round(Quantile(quantiles=3)(batch).item(), 4)
    0.1667
    >>> Quantile(quantiles=3).heads(["helpful"]).names
    ('q0.25', 'q0.5', 'q0.75')
    """

    name = "quantile"
    needs = frozenset({"labels"})
    mean_over = "labels"

    def __init__(self, *, quantiles: int = 19) -> None:
        if not 1 <= quantiles <= 999:
            raise SpecError(f"quantile needs 1 to 999 quantiles, not {quantiles}.")
        self.levels = tuple(number / (quantiles + 1) for number in range(1, quantiles + 1))

    def heads(self, attributes: Sequence[str]) -> Heads:
        """One output per quantile, with equal weights."""
        check_one_attribute(self.name, attributes)
        return Heads(tuple(f"q{level:.4g}" for level in self.levels), (1 / len(self.levels),) * len(self.levels))

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over labels and quantiles."""
        import torch

        if batch.rewards.shape[1] != len(self.levels):
            raise DataError(
                f"The loss 'quantile' needs {len(self.levels)} outputs, one for each quantile, not {batch.rewards.shape[1]}."
            )
        labels, present = labels_beside(batch, self.name)
        levels = torch.tensor(self.levels, dtype=batch.rewards.dtype, device=batch.rewards.device)
        errors = labels - batch.rewards
        return mean_over_labels(batch, torch.maximum(levels * errors, (levels - 1) * errors), present)
