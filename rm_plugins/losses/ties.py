"""Models of comparisons that may end in a tie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rm_plugins.data.judgements import Judgement
from rm_plugins.errors import DataError
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.needs import Need
from rm_plugins.losses.reductions import check_finite, log_sigmoid, mean_over_items

if TYPE_CHECKING:
    from torch import Tensor


class RaoKupper(Loss):
    """Rao-Kupper: a comparison is a tie if the perceived difference is below a threshold.

    Formula: win: −log σ(Δ − log ν); tie: −log[(ν² − 1)·σ(Δ − log ν)·σ(−Δ − log ν)]

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``ties`` | [T, 2] | optional, rows that are equally good; Δ is the difference of their rewards |
    | ``weights`` | [N] | optional, a pair has its winner's, a tie its first row's |

    Args:
        nu: ν ≥ 1, fixed. The larger, the more ties: of two equal rewards, a tie has the probability (ν − 1)/(ν + 1), and 1
            gives Bradley-Terry without ties.

    Raises:
        SpecError: ``nu`` is below 1 or not finite.
        DataError: When called: there are ties, which ν = 1 makes impossible.

    Source: Rao and Kupper 1967; for reward models arXiv 2410.05328.

    >>> batch = RewardBatch.of([[0.0]] * 4, pairs=[[0, 1]], ties=[[2, 3]])
    >>> round(RaoKupper(nu=2.0)(batch).exp().item(), 4)
    3.0
    """

    name = "rao-kupper"
    mean_over = "comparisons"

    def __init__(self, *, nu: float = 2.0) -> None:
        check_finite(self.name, least=1, nu=nu)
        self.nu = nu

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs, ties and heads."""
        import torch

        threshold = math.log(self.nu)
        delta, tied, weights = _comparisons(batch, impossible=self.nu == 1, hint="rao-kupper with nu=1")
        losses = -log_sigmoid(delta - threshold)
        if self.nu > 1:
            tie = losses - log_sigmoid(-delta - threshold) - math.log(self.nu - 1) - math.log(self.nu + 1)
            losses = torch.where(tied[:, None], tie, losses)
        return mean_over_items(losses, weights)


class Davidson(Loss):
    """Davidson: the probability of a tie is proportional to the geometric mean of the two winning probabilities.

    Formula: win: log(1 + e^−Δ + ν·e^(−Δ/2)); tie: log(e^(Δ/2) + e^(−Δ/2) + ν) − log ν

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``ties`` | [T, 2] | optional, rows that are equally good; Δ is the difference of their rewards |
    | ``weights`` | [N] | optional, a pair has its winner's, a tie its first row's |

    Args:
        nu: ν ≥ 0, fixed. The larger, the more ties: of two equal rewards, a tie has the probability ν/(ν + 2), and 0 gives
            Bradley-Terry without ties.

    Raises:
        SpecError: ``nu`` is negative or not finite.
        DataError: When called: there are ties, which ν = 0 makes impossible.

    Source: Davidson 1970, "On extending the Bradley-Terry model to accommodate ties in paired comparison experiments".

    >>> batch = RewardBatch.of([[0.0]] * 4, pairs=[[0, 1]], ties=[[2, 3]])
    >>> round(Davidson(nu=1.0)(batch).exp().item(), 4)
    3.0
    """

    name = "davidson"
    mean_over = "comparisons"

    def __init__(self, *, nu: float = 1.0) -> None:
        check_finite(self.name, least=0, nu=nu)
        self.nu = nu

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs, ties and heads."""
        import torch

        delta, tied, weights = _comparisons(batch, impossible=self.nu == 0, hint="davidson with nu=0")
        tie = torch.full_like(delta, math.log(self.nu) if self.nu else -math.inf)
        # Relative to the logarithm of the actual outcome, which keeps the differences small.
        outcome = torch.where(tied[:, None], tie, delta / 2)
        return mean_over_items(
            torch.stack([delta / 2 - outcome, -delta / 2 - outcome, tie - outcome]).logsumexp(dim=0), weights
        )


class Confidence(Need):
    """The probability, from 0 to 1, that the winner of a pair is better, such as the share of annotators who preferred it."""

    def read(self, row: Mapping[str, Any], judgement: Judgement) -> Any:
        """As of every need.

        Raises:
            DataError: A value is not between 0 and 1.
        """
        values = super().read(row, judgement)
        for value in values:
            if not 0 <= value <= 1:
                raise DataError(f"'confidence' is {value:g}; a probability from 0 to 1 is allowed.")
        return values


class SoftBradleyTerry(Loss):
    """Bradley-Terry with soft labels: the cross-entropy with the confidence of each pair.

    Formula: c·ℓ(Δ) + (1 − c)·ℓ(−Δ), with ℓ(x) = −log σ(x)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``confidence`` | [M] | c: the dataset's column ``confidence``, 1 where a pair has none |
    | ``ties`` | [T, 2] | optional, rows that are equally good, c = ½ |
    | ``weights`` | [N] | optional, a pair has its winner's, a tie its first row's |

    Source: Bradley and Terry 1952; with one c for all pairs it is label smoothing, "A note on DPO with noisy preferences", Mitchell 2023.

    >>> batch = RewardBatch.of([[2.0], [0.0]], pairs=[[0, 1]], confidence=[0.75])
    >>> round(SoftBradleyTerry()(batch).item(), 4)
    0.6269
    """

    name = "soft-bradley-terry"
    mean_over = "comparisons"
    needs = frozenset({"pairs", Confidence("confidence", each="pair", missing=1.0)})

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs, ties and heads."""
        delta, tied, weights = _comparisons(batch, impossible=False, hint=self.name)
        confidence = delta.new_full(tied.shape, 0.5)
        confidence[~tied] = batch.extras["confidence"].to(confidence)
        # The same as the formula, as -log sigmoid(-x) = x - log sigmoid(x).
        return mean_over_items((1 - confidence)[:, None] * delta - log_sigmoid(delta), weights)


def _comparisons(batch: RewardBatch, *, impossible: bool, hint: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """For the pairs, then the ties: the differences [M + T, heads], whether each is a tie (bool [M + T]), and the weights [M + T].

    Raises:
        DataError: There are ties, though they are impossible.
    """
    import torch

    ties = batch.pairs[:0] if batch.ties is None else batch.ties
    if impossible and len(ties):
        raise DataError(f"The loss {hint} makes ties impossible, but the data has them: choose a larger nu.")
    rows = torch.cat([batch.pairs, ties])
    tied = torch.arange(len(rows), device=rows.device) >= len(batch.pairs)
    weights = None if batch.weights is None else batch.weights[rows[:, 0]]
    return batch.rewards[rows[:, 0]] - batch.rewards[rows[:, 1]], tied, weights
