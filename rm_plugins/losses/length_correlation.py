"""The length-correlation regularizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Regularizer
from rm_plugins.losses.reductions import pearson

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LengthCorrelation"]


class LengthCorrelation(Regularizer):
    """Keeps rewards from following the length of the text.

    Formula: |ρ(r, n)|, where ρ is Pearson's correlation over the rows of the batch

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | r |
    | ``lengths`` | [N] | n, in tokens |

    It is 0, without a gradient, for fewer than two rows and where all rewards or all lengths are the same. A correlation depends
    on which rows share a batch, so gradient accumulation over small batches is not the same as one large batch, and in batches of
    a few rows it is mostly noise: with two rows it is 1.

    Source: the length term of ODIN, arXiv 2402.07319, for one output.

    >>> batch = RewardBatch.of([[3.0], [2.0], [1.0]], lengths=[10, 20, 30])
    >>> round(LengthCorrelation()(batch).item(), 4)
    1.0
    """

    name: ClassVar[str] = "length-correlation"

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over heads."""
        return pearson(batch.rewards, batch.lengths).abs().mean()
