"""Regularizers: terms that keep rewards centred, small, within bounds, or apart from the length of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rm_plugins.errors import SpecError
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Regularizer
from rm_plugins.losses.reductions import at_least_float32, mean_over_items, pearson

if TYPE_CHECKING:
    from torch import Tensor


class Centering(Regularizer):
    """Keeps the mean of the rewards near zero; a usual weight is 0.01.

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

    name = "centering"

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        return mean_over_items((batch.winners + batch.losers).square())


class LengthCorrelation(Regularizer):
    """Keeps rewards from following the length of the text.

    Formula: |ρ(r, n)|, where ρ is Pearson's correlation over the texts of the batch

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | r |
    | ``lengths`` | [N] | n, in tokens |

    It is 0, without a gradient, for fewer than two texts and where all rewards or all lengths are the same. A correlation depends
    on which texts share a batch, so gradient accumulation over small batches is not the same as one large batch. In batches of a few
    texts it is mostly noise: with two texts it is 1.

    Source: the length term of ODIN, arXiv 2402.07319, for one output.

    >>> batch = RewardBatch.of([[3.0], [2.0], [1.0]], lengths=[10, 20, 30])
    >>> round(LengthCorrelation()(batch).item(), 4)
    1.0
    """

    name = "length-correlation"

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over heads."""
        return pearson(batch.rewards, batch.lengths).abs().mean()


class LogBarrier(Regularizer):
    """Keeps rewards between two bounds, near which the cost grows steeply; a usual weight is 0.02.

    Formula: −log(b − r) − log(r − a), mean over texts, with r first clamped to [a + ε, b − ε]

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |

    A clamped reward has no gradient, so a reward that is already out of bounds is not pulled back: a model whose
    rewards start outside wants ``score-l2`` or ``centering`` as well.

    Args:
        lower: a, the lower bound.
        upper: b, the upper bound.
        epsilon: ε, the distance from a bound at which the cost stops growing.

    Raises:
        SpecError: The bounds are not in order, or ε is not between 0 and half their distance.

    Source: InternLM2, arXiv 2403.17297; xtuner, whose default weight of 0.01 is for the sum of a pair's two texts, not their mean.

    >>> batch = RewardBatch.of([[4.0], [-4.0]], pairs=[[0, 1]])
    >>> round(LogBarrier()(batch).item(), 4)  # -log 1 - log 9
    -2.1972
    """

    name = "log-barrier"

    def __init__(self, *, lower: float = -5.0, upper: float = 5.0, epsilon: float = 1e-3) -> None:
        if not 0 < epsilon < (upper - lower) / 2:
            raise SpecError(
                f"log-barrier needs lower below upper and epsilon between 0 and half their distance, not lower={lower}, "
                f"upper={upper}, epsilon={epsilon}."
            )
        self.lower = lower
        self.upper = upper
        self.epsilon = epsilon

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over texts and heads."""
        rewards = at_least_float32(batch.rewards).clamp(self.lower + self.epsilon, self.upper - self.epsilon)
        return mean_over_items(-(self.upper - rewards).log() - (rewards - self.lower).log())


class ScoreL2(Regularizer):
    """Keeps rewards small; a usual weight is 0.001.

    Formula: r², mean over texts

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |

    Over pairs that share no text this is the mean of ½(r_winner² + r_loser²). As a mean over texts it is there for rankings,
    ratings and unpaired labels too.

    Source: Open-Assistant, ``RMLoss``, with a weight of 0.001.

    >>> batch = RewardBatch.of([[2.0], [1.0]], pairs=[[0, 1]])
    >>> ScoreL2()(batch).item()
    2.5
    """

    name = "score-l2"

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over texts and heads."""
        return mean_over_items(batch.rewards.square())
