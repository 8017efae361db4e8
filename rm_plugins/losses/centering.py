"""The centering regularizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Regularizer
from rm_plugins.losses.reductions import mean_over_items

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Centering"]


class Centering(Regularizer):
    """Draws rewards to mean zero; a usual weight is 0.01.

    Formula: (r_winner + r_loser)², mean over pairs

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; without pairs it is 0 |

    Source: arXiv 2312.09244, eq. 2; TRL's ``center_rewards_coefficient``.

    >>> batch = RewardBatch.of([[2.0], [1.0]], pairs=[[0, 1]])
    >>> Centering()(batch).item()
    9.0
    """

    name: ClassVar[str] = "centering"

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        return mean_over_items((batch.winners + batch.losers).square())
