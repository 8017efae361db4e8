"""The Bradley-Terry loss and its variants for noisy, easy and unequally strong preferences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rm_plugins.errors import SpecError
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.reductions import check_finite, log_sigmoid, mean_over_pairs, required_margins

if TYPE_CHECKING:
    from torch import Tensor


class BradleyTerry(Loss):
    """Bradley-Terry, with margins where the data has them and label smoothing if asked for.

    Formula: (1 − ε)·ℓ(Δ − m) + ε·ℓ(m − Δ), with ℓ(x) = −log σ(x)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``margins`` | [M] | optional, m: by how much the winner should win, 0 where absent |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Args:
        label_smoothing: ε, the probability that winner and loser of a pair are swapped, at least 0 and below 0.5.

    Raises:
        SpecError: ``label_smoothing`` is outside these bounds.

    Source: InstructGPT, arXiv 2203.02155, eq. 1; the margin is Llama 2's, arXiv 2307.09288, eq. 2; the smoothing is cDPO's,
    "A note on DPO with noisy preferences", Mitchell 2023.

    >>> batch = RewardBatch.of([[2.0], [0.0]], pairs=[[0, 1]])
    >>> round(BradleyTerry()(batch).item(), 4)
    0.1269
    """

    name = "bradley-terry"

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 0.5:
            raise SpecError(f"bradley-terry needs label_smoothing of at least 0 and below 0.5, not {label_smoothing}.")
        self.label_smoothing = label_smoothing

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        delta = batch.winners - batch.losers
        if batch.margins is not None:
            delta = delta - batch.margins[:, None]
        # The same as the formula, as -log sigmoid(-x) = x - log sigmoid(x).
        return mean_over_pairs(batch, self.label_smoothing * delta - log_sigmoid(delta))


class Robust(Loss):
    """Noise-corrected Bradley-Terry: unbiased if a known share of the pairs has winner and loser swapped.

    Its expectation over such labels is the Bradley-Terry loss on clean ones. It is unbounded below (it falls forever as the
    winner pulls away), so the rewards must be bounded by something else, such as the regularizer ``score-l2``.

    Formula: [(1 − ε)·ℓ(Δ) − ε·ℓ(−Δ)] / (1 − 2ε), with ℓ(x) = −log σ(x)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Args:
        epsilon: ε, the probability that winner and loser of a pair are swapped, at least 0 and below 0.5.

    Raises:
        SpecError: ``epsilon`` is outside these bounds.

    Source: rDPO, arXiv 2403.00409; ``loss_type="robust"`` of TRL's DPO.

    >>> batch = RewardBatch.of([[2.0], [0.0]], pairs=[[0, 1]])
    >>> round(Robust(epsilon=0.1)(batch).item(), 4)
    -0.1231
    """

    name = "robust"

    def __init__(self, *, epsilon: float = 0.1) -> None:
        if not 0 <= epsilon < 0.5:
            raise SpecError(f"robust needs epsilon of at least 0 and below 0.5, not {epsilon}.")
        self.epsilon = epsilon

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        delta = batch.winners - batch.losers
        # The same as the formula, as -log sigmoid(-x) = x - log sigmoid(x), without the difference of two large numbers.
        return mean_over_pairs(batch, -log_sigmoid(delta) - self.epsilon / (1 - 2 * self.epsilon) * delta)


class Focal(Loss):
    """Bradley-Terry with less weight on the pairs that the model already gets right.

    Formula: (1 − 2·max(0, σ(Δ) − ½))^γ · −log σ(Δ)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Args:
        gamma: γ, how fast the weight falls; 0 gives Bradley-Terry.

    Raises:
        SpecError: ``gamma`` is negative or not finite.

    Source: InternLM2, arXiv 2403.17297; ``loss_type="focal"`` of xtuner.

    >>> batch = RewardBatch.of([[2.0], [0.0]], pairs=[[0, 1]])
    >>> round(Focal()(batch).item(), 4)
    0.0072
    """

    name = "focal"

    def __init__(self, *, gamma: float = 2.0) -> None:
        check_finite(self.name, least=0, gamma=gamma)
        self.gamma = gamma

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        delta = batch.winners - batch.losers
        # The weight is min(1, 2 sigmoid(-delta))^gamma, whose logarithm is exact where sigmoid(delta) rounds to 1.
        weight = (self.gamma * (math.log(2) + log_sigmoid(-delta)).clamp(max=0)).exp()
        return mean_over_pairs(batch, weight * -log_sigmoid(delta))


class Scaled(Loss):
    """Bradley-Terry in which a strong preference counts for more than a weak one.

    Formula: m · −log σ(Δ)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``margins`` | [M] | m: how strong each preference is |
    | ``weights`` | [N] | optional, a pair has its winner's |

    Raises:
        DataError: When called: the batch has no margins.

    Source: HelpSteer2-Preference, arXiv 2410.01257, "scaled BT"; NeMo-Aligner.

    >>> batch = RewardBatch.of([[2.0], [0.0]], pairs=[[0, 1]], margins=[3.0])
    >>> round(Scaled()(batch).item(), 4)
    0.3808
    """

    name = "scaled"
    needs = frozenset({"pairs", "margins"})

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        strength = required_margins(batch, self.name)
        return mean_over_pairs(batch, strength * -log_sigmoid(batch.winners - batch.losers))
