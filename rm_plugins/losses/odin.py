"""A reward in two parts, of which one takes up the length of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rm_plugins.errors import DataError, SpecError
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.reductions import check_finite, log_sigmoid, mean_over_pairs, pearson
from rm_plugins.models.heads import Heads

if TYPE_CHECKING:
    from torch import Tensor


class Odin(Loss):
    """ODIN: two outputs explain the preference together. One is made to follow length, the other not to; only the other is deployed.

    Formula: −log σ(Δ_Q + Δ_L) + λ_L·[1 − ρ(n, r_L) + |ρ(n, r_Q)|] + λ_O·|cos(w_Q, w_L)|

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, 2] | r_Q, the quality, which is the reward, and r_L, the length |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``lengths`` | [N] | n, with which ρ is Pearson's correlation over the texts of the batch; 0 if one side is constant |
    | ``head`` | [2, hidden] | w, the weights that give the two outputs |
    | ``weights`` | [N] | optional, a pair has its winner's; correlations are not weighted |

    Only the first term is a mean over pairs. A correlation depends on which texts share a batch, so gradient accumulation over
    small batches is not the same as one large batch.

    Args:
        length_weight: λ_L, the weight of the correlations.
        orthogonality_weight: λ_O, the weight of the angle between the outputs' weights; with 0, ``head`` is not needed.

    Raises:
        SpecError: A weight is negative or not finite; when called, the model has no single layer for its outputs.
        DataError: When called: there are not two outputs.

    Source: ODIN, arXiv 2402.07319.

    >>> batch = RewardBatch.of([[2.0, 1.0], [2.0, 0.0]], pairs=[[0, 1]], lengths=[20, 10], head=[[1.0, 0.0], [0.0, 1.0]])
    >>> round(Odin()(batch).item(), 4)  # the length output does all the work
    0.3133
    """

    name = "odin"

    def __init__(self, *, length_weight: float = 1.0, orthogonality_weight: float = 1.0) -> None:
        check_finite(self.name, least=0, length_weight=length_weight, orthogonality_weight=orthogonality_weight)
        self.length_weight = length_weight
        self.orthogonality_weight = orthogonality_weight

    def heads(self, attributes: Sequence[str]) -> Heads:
        """The quality, which is the reward, and the length."""
        return Heads(("quality", "length"), (1.0, 0.0))

    def deployed(self, heads: Heads) -> Sequence[int]:
        """The quality."""
        return [heads.names.index("quality")]

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs, with the correlations over rows."""
        from torch.nn.functional import cosine_similarity

        if batch.rewards.shape[1] != 2:
            raise DataError(f"The loss 'odin' needs two outputs, quality and length, not {batch.rewards.shape[1]}.")
        loss: Tensor = mean_over_pairs(batch, -log_sigmoid((batch.winners - batch.losers).sum(dim=1, keepdim=True)))
        quality, length = pearson(batch.rewards, batch.lengths)
        loss = loss + self.length_weight * (1 - length + quality.abs())
        if self.orthogonality_weight:
            if batch.head is None:
                raise SpecError("odin cannot see the weights of this model's outputs: set orthogonality_weight to 0.")
            loss = loss + self.orthogonality_weight * cosine_similarity(batch.head[0], batch.head[1], dim=0).abs()
        return loss
