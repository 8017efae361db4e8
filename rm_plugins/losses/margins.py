"""Losses that ask for a difference of rewards: at least a margin, or exactly a target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.reductions import check_finite, mean_over_pairs, required_margins

if TYPE_CHECKING:
    from torch import Tensor


class Hinge(Loss):
    """Hinge: a pair costs what its winner lacks of a margin.

    Formula: max(0, t − Δ)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Args:
        margin: t, the same for all pairs; margins of the data are not used.

    Raises:
        SpecError: ``margin`` is not positive and finite: with 0, equal rewards would have no loss.

    Source: the pairwise hinge of ranking SVMs (Herbrich et al. 2000); SLiC-HF, arXiv 2305.10425.

    >>> batch = RewardBatch.of([[0.25], [0.0]], pairs=[[0, 1]])
    >>> Hinge()(batch).item()
    0.75
    """

    name = "hinge"

    def __init__(self, *, margin: float = 1.0) -> None:
        check_finite(self.name, margin=margin)
        self.margin = margin

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        return mean_over_pairs(batch, (self.margin - (batch.winners - batch.losers)).relu())


class SquaredHinge(Hinge):
    """Squared hinge: a pair costs the square of what its winner lacks of a margin.

    Formula: max(0, t − Δ)²

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Args:
        margin: t, the same for all pairs; margins of the data are not used.

    Raises:
        SpecError: ``margin`` is not positive and finite: with 0, equal rewards would have no loss.

    Source: the L2 form of the ranking SVM (Chapelle and Keerthi 2010).

    >>> batch = RewardBatch.of([[0.25], [0.0]], pairs=[[0, 1]])
    >>> SquaredHinge()(batch).item()
    0.5625
    """

    name = "squared-hinge"

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        return mean_over_pairs(batch, (self.margin - (batch.winners - batch.losers)).relu().square())


class Ipo(Loss):
    """Identity preference optimization: every pair is drawn to the same finite difference.

    Formula: (Δ − ½/β)²

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

    name = "ipo"

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

    name = "margin-mse"
    needs = frozenset({"pairs", "margins"})

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        return mean_over_pairs(batch, (batch.winners - batch.losers - required_margins(batch, self.name)).square())
