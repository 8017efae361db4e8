"""The Bradley-Terry loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rm_plugins.losses.batch import Loss, RewardBatch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BradleyTerry"]


class BradleyTerry(Loss):
    """Bradley-Terry with optional margins: mean of -log sigmoid(r_winner - r_loser - margin).

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser |
    | ``margins`` | [M] | optional, 0 where absent |

    Source: InstructGPT, arXiv 2203.02155, eq. 1; the margin is Llama 2's, arXiv 2307.09288, eq. 2.

    >>> import torch
    >>> batch = RewardBatch(
    ...     rewards=torch.tensor([[2.0], [0.0]]), pairs=torch.tensor([[0, 1]]), groups=torch.zeros(2), lengths=torch.ones(2)
    ... )
    >>> round(BradleyTerry()(batch).item(), 4)
    0.1269
    """

    name: ClassVar[str] = "bradley-terry"

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        from torch.nn.functional import logsigmoid

        delta = batch.winners - batch.losers
        if batch.margins is not None:
            delta = delta - batch.margins[:, None]
        return -logsigmoid(delta).mean()
