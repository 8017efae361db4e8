"""Hinge losses: a winner that is ahead by a margin costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.reductions import check_finite, mean_over_pairs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Hinge", "SquaredHinge"]


class Hinge(Loss):
    """Hinge: a pair costs what its winner lacks of a margin.

    Formula: max(0, m − Δ)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Args:
        margin: m, the same for all pairs; margins of the data are not used.

    Raises:
        SpecError: ``margin`` is not positive and finite: rewards that are all the same would cost nothing.

    Source: the pairwise hinge of ranking SVMs (Herbrich et al. 2000); SLiC-HF, arXiv 2305.10425.

    >>> batch = RewardBatch.of([[0.25], [0.0]], pairs=[[0, 1]])
    >>> Hinge()(batch).item()
    0.75
    """

    name: ClassVar[str] = "hinge"

    def __init__(self, *, margin: float = 1.0) -> None:
        check_finite(self.name, margin=margin)
        self.margin = margin

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        return mean_over_pairs(batch, (self.margin - (batch.winners - batch.losers)).relu())


class SquaredHinge(Hinge):
    """Squared hinge: a pair costs the square of what its winner lacks of a margin.

    Formula: max(0, m − Δ)²

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Args:
        margin: m, the same for all pairs; margins of the data are not used.

    Raises:
        SpecError: ``margin`` is not positive and finite: rewards that are all the same would cost nothing.

    Source: the L2 form of the ranking SVM (Chapelle and Keerthi 2010).

    >>> batch = RewardBatch.of([[0.25], [0.0]], pairs=[[0, 1]])
    >>> SquaredHinge()(batch).item()
    0.5625
    """

    name: ClassVar[str] = "squared-hinge"

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        return mean_over_pairs(batch, (self.margin - (batch.winners - batch.losers)).relu().square())
