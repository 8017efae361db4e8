"""Metrics of rewards: pure functions of scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rm_plugins.ranks import mean_ranks
from rm_plugins.types import FloatArray

__all__ = ["PairMetrics", "auc", "brier_score", "expected_calibration_error", "pair_metrics", "pearson", "spearman"]


@dataclass(frozen=True, slots=True)
class PairMetrics:
    """How a reward does on M preference pairs.

    Args:
        pairs: The number of pairs that were scored.
        accuracy: The share of them whose chosen answer scores strictly higher; a tie counts as wrong.
        standard_error: Of the accuracy.
        ties: The number of pairs with equal scores.
        margin: The mean of the chosen score minus the rejected one.
        abstained: The number of further pairs, left out, where the reward abstained on either answer.
    """

    pairs: int
    accuracy: float
    standard_error: float
    ties: int
    margin: float
    abstained: int

    def __str__(self) -> str:
        tail = f", {self.abstained} left out where the reward abstained" if self.abstained else ""
        return (
            f"accuracy {self.accuracy:.4f} ± {self.standard_error:.4f} on {self.pairs} pairs "
            f"({self.ties} ties, mean margin {self.margin:.4g}{tail})"
        )


def pair_metrics(chosen: FloatArray, rejected: FloatArray) -> PairMetrics:
    """The metrics of the scores of chosen and rejected answers, each float64 [M], NaN where abstained.

    >>> pair_metrics(np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 3.0])).accuracy
    0.3333333333333333
    """
    scored = ~(np.isnan(chosen) | np.isnan(rejected))
    delta = (chosen - rejected)[scored]
    pairs = len(delta)
    accuracy = float((delta > 0).mean()) if pairs else math.nan
    return PairMetrics(
        pairs=pairs,
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / pairs) if pairs else math.nan,
        ties=int((delta == 0).sum()),
        margin=float(delta.mean()) if pairs else math.nan,
        abstained=int((~scored).sum()),
    )


def expected_calibration_error(delta: ArrayLike, bins: int = 20) -> float:
    """How far win probabilities p = sigmoid(delta) are from how often they come true: sum over bins of |sum of p - y| / n.

    Each pair enters twice, as (p, y = 1) and as (1 - p, y = 0), so that the result does not depend on which answer is named
    first: n is 2M. The bins are equal parts of [0, 1], each with its lower end; the last has both.

    Args:
        delta: float [M], the winner's reward minus the loser's; large values do not overflow.
        bins: The number of bins.

    Returns:
        From 0 to 1; NaN where there is no pair or a difference is NaN.

    Source: Guo et al. 2017, arXiv 1706.04599, eq. 3.

    >>> round(expected_calibration_error([3.0]), 4)  # it says 0.95, and is always right
    0.0474
    """
    delta = np.asarray(delta, dtype=np.float64)
    if not delta.size or np.isnan(delta).any():
        return math.nan
    right = _win_probability(delta)
    probability = np.concatenate([right, 1 - right])
    outcome = np.repeat([1.0, 0.0], len(right))
    where = np.minimum((probability * bins).astype(np.intp), bins - 1)
    gaps = np.bincount(where, weights=probability - outcome, minlength=bins)
    return float(np.abs(gaps).sum() / len(probability))


def brier_score(delta: ArrayLike) -> float:
    """The mean of (1 - p)^2 for win probabilities p = sigmoid(delta); 0.25 for a reward that knows nothing.

    Args:
        delta: float [M], the winner's reward minus the loser's; large values do not overflow.

    Returns:
        From 0 to 1; NaN where there is no pair or a difference is NaN.

    Source: Brier 1950, in the form for two outcomes, of which either gives the same square.

    >>> brier_score([0.0, 1000.0])
    0.125
    """
    delta = np.asarray(delta, dtype=np.float64)
    return float(np.square(1 - _win_probability(delta)).mean()) if delta.size else math.nan


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation: the sum of dx * dy / sqrt(the sum of dx^2 times that of dy^2), with dx = x - mean(x).

    Args:
        x: float [N].
        y: float [N].

    Returns:
        From -1 to 1; NaN where either is constant, empty or not finite.

    >>> pearson([1, 2, 3], [2, 4, 6])
    1.0
    >>> pearson([1, 2, 3], [7, 7, 7])
    nan
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (x, y))
    if not x.size or not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    dx, dy = (values - values.mean() for values in (x, y))
    dx, dy = (values / np.abs(values).max() for values in (dx, dy))  # whose squares neither overflow nor vanish
    return float(np.clip(dx @ dy / math.sqrt((dx @ dx) * (dy @ dy)), -1, 1))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, where equal values share the mean of their ranks.

    Args:
        x: float [N].
        y: float [N].

    Returns:
        From -1 to 1; NaN where either is constant, empty or has a NaN.

    >>> spearman([1, 2, 3], [1, 10, 100])
    1.0
    """
    return pearson(mean_ranks(x), mean_ranks(y))


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """The area under the ROC curve: the share of (positive, negative) rows in which the positive one scores higher.

    A tie counts half. It is (R - P(P+1)/2) / (P * Q) for P positives whose ranks sum to R, and Q negatives.

    Args:
        scores: float [N].
        labels: 0 or 1, [N].

    Returns:
        From 0 to 1; NaN where there are no positives or no negatives, or where a score is NaN.

    Source: the Mann-Whitney U statistic; Hanley and McNeil 1982.

    >>> auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75
    """
    positive = np.asarray(labels) == 1
    positives = int(positive.sum())
    pairs = positives * (positive.size - positives)
    if not pairs:
        return math.nan
    return float((mean_ranks(scores)[positive].sum() - positives * (positives + 1) / 2) / pairs)


def _win_probability(delta: FloatArray) -> FloatArray:
    # The sigmoid: this form cannot overflow, gives one half for 0 exactly, and 1 - p for -delta.
    return (1 + np.tanh(delta / 2)) / 2
