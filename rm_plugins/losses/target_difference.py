"""Losses that give each difference of rewards a target, and square what it is off by."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.needs import NeedName
from rm_plugins.losses.reductions import check_finite, mean_over_pairs, required_margins

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ipo", "MarginMse"]


class Ipo(Loss):
    """Identity preference optimization: every pair is drawn to the same finite difference.

    Formula: (Δ − 1/(2β))²

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Args:
        beta: β; the smaller, the larger the difference that is aimed at.

    Raises:
        SpecError: ``beta`` is not positive and finite.

    Source: IPO, arXiv 2310.12036, with rewards in place of log-ratios; ``loss_type="ipo"`` of TRL's DPO.

    >>> batch = RewardBatch.of([[2.0], [0.0]], pairs=[[0, 1]])
    >>> Ipo(beta=0.5)(batch).item()
    1.0
    """

    name: ClassVar[str] = "ipo"

    def __init__(self, *, beta: float = 0.1) -> None:
        check_finite(self.name, beta=beta)
        self.beta = beta

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        return mean_over_pairs(batch, (batch.winners - batch.losers - 1 / (2 * self.beta)).square())


class MarginMse(Loss):
    """Margin MSE: the difference of rewards is the margin of the data, which is how a teacher's scores are distilled.

    Formula: (Δ − m)²

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``margins`` | [M] | m: the difference that is aimed at |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Raises:
        DataError: When called: the batch has no margins.

    Source: arXiv 2010.02666; ``MarginMSELoss`` of sentence-transformers.

    >>> batch = RewardBatch.of([[2.0], [0.0]], pairs=[[0, 1]], margins=[0.5])
    >>> MarginMse()(batch).item()
    2.25
    """

    name: ClassVar[str] = "margin-mse"
    needs: ClassVar[frozenset[NeedName]] = frozenset({"pairs", "margins"})

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        return mean_over_pairs(batch, (batch.winners - batch.losers - required_margins(batch, self.name)).square())
