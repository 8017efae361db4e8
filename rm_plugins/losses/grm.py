"""A reward model that stays a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rm_plugins.errors import DataError, SpecError
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.bradley_terry import BradleyTerry
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.reductions import mean_over_pairs

if TYPE_CHECKING:
    from torch import Tensor


class Grm(Loss):
    """GRM: Bradley-Terry plus the language-modelling loss on the winners, with the model's own language-model head.

    Formula: −(1 − α)·log σ(Δ − m) − α·log p(winner)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``logprobs`` | [N] | mean log-probability of a completion's tokens, log p; used of winners only, 0 for NaN |
    | ``margins`` | [M] | optional, m, as in ``bradley-terry`` |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Args:
        alpha: α, the share of the language-model term, from 0 to 1.

    Raises:
        SpecError: ``alpha`` is outside 0 to 1.
        DataError: When called: the batch has no log-probabilities.

    Source: GRM with SFT regularization, arXiv 2406.10216.

    >>> batch = RewardBatch.of([[2.0], [0.0]], pairs=[[0, 1]], logprobs=[-1.0, float("nan")])
    >>> round(Grm(alpha=0.5)(batch).item(), 4)
    0.5635
    """

    name = "grm"
    needs = frozenset({"pairs", "logprobs"})

    def __init__(self, *, alpha: float = 0.01) -> None:
        if not 0 <= alpha <= 1:
            raise SpecError(f"grm needs an alpha from 0 to 1, not {alpha}.")
        self.alpha = alpha
        self._preference = BradleyTerry()

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs, and of the preference term over heads."""
        if batch.logprobs is None:
            raise DataError("The loss 'grm' needs the log-probabilities of completions, and the batch has none.")
        logprobs = batch.logprobs[batch.pairs[:, 0], None].nan_to_num(nan=0.0)  # an empty completion has nothing to predict
        language = mean_over_pairs(batch, -logprobs)
        return (1 - self.alpha) * self._preference(batch) + self.alpha * language
