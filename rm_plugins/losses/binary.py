"""Losses on single answers that are good or bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.labels import attribute_heads, check_one_attribute, labels_beside, mean_over_labels, zero_to_one
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.reductions import at_least_float32, log_sigmoid
from rm_plugins.models.heads import Heads

if TYPE_CHECKING:
    from torch import Tensor


class Binary(Loss):
    """Binary cross-entropy: the reward is the logit of the probability that an answer is good, one per attribute.

    Formula: −y·log σ(r) − (1 − y)·log σ(−r)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, attributes] | r; the outputs are the attributes |
    | ``labels`` | [N, attributes] | y: 1 if good, 0 if bad, NaN where missing; one column is for all outputs |
    | ``weights`` | [N] | optional, the weight of each row |

    Raises:
        SpecError: The data has no labels.
        DataError: When called: a label is outside 0 to 1, or there are not as many outputs as attributes.

    Source: the outcome verifier of arXiv 2110.14168; PyTorch's ``BCEWithLogitsLoss``.

    >>> batch = RewardBatch.of([[2.0], [0.0]], labels=[[1.0], [float("nan")]])
    >>> round(Binary()(batch).item(), 4)
    0.1269
    """

    name = "binary"
    needs = frozenset({"labels"})
    mean_over = "labels"

    def heads(self, attributes: Sequence[str]) -> Heads:
        """One output per attribute, with equal weights."""
        return attribute_heads(self.name, attributes)

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over labels."""
        labels, present = labels_beside(batch, self.name)
        return mean_over_labels(batch, _cross_entropy(batch.rewards, zero_to_one(labels, self.name)), present)


class Bco(Loss):
    """Binary classifier optimization: moves good answers above the running mean of all rewards, and bad ones below.

    Formula: −y·log σ(r − δ) − (1 − y)·log σ(δ − r), δ the running mean of r

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | r |
    | ``labels`` | [N, 1] | y: 1 if good, 0 if bad, NaN where missing |
    | ``weights`` | [N] | optional, the weight of each row; the running mean does without |

    δ is 0 at first. Each batch whose rewards need a gradient joins the mean of all such rewards before it is used; evaluation
    leaves it as it is. It has no gradient, and it is saved with checkpoints.

    Raises:
        SpecError: The data does not have exactly one attribute.
        DataError: When called: a label is outside 0 to 1.

    Source: BCO, arXiv 2404.04656, with rewards in place of log-ratios; TRL's ``BCOTrainer``.

    >>> batch = RewardBatch.of([[3.0], [1.0]], labels=[[1.0], [0.0]])
    >>> loss = Bco()
    >>> loss.load_state({"mean": 2.0, "count": 100})
    >>> round(loss(batch).item(), 4)
    0.3133
    """

    name = "bco"
    needs = frozenset({"labels"})
    mean_over = "labels"

    def __init__(self) -> None:
        self._mean = 0.0
        self._count = 0

    def heads(self, attributes: Sequence[str]) -> Heads:
        """One output, ``reward``."""
        check_one_attribute(self.name, attributes)
        return Heads()

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over labels and heads."""
        labels, present = labels_beside(batch, self.name)
        labels = zero_to_one(labels, self.name)
        if batch.rewards.requires_grad:
            self._join(batch.rewards.detach()[present])
        return mean_over_labels(batch, _cross_entropy(batch.rewards - self._mean, labels), present)

    def state(self) -> Mapping[str, Any]:
        """The running mean of the rewards, and how many it is of."""
        return {"mean": self._mean, "count": self._count}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self._mean, self._count = float(state["mean"]), int(state["count"])

    def _join(self, rewards: Tensor) -> None:
        self._count += len(rewards)
        if len(rewards):
            self._mean += (at_least_float32(rewards).mean().item() - self._mean) * len(rewards) / self._count


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return -labels * log_sigmoid(logits) - (1 - labels) * log_sigmoid(-logits)
