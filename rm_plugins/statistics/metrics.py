"""Metrics of rewards: pure functions of scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm_plugins.errors import DataError
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.ranks import mean_ranks


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """The win probabilities of one part of [0, 1], and how often they came true.

    Args:
        low: Its lower end, which is part of it.
        high: Its upper end, which is part of the last bin alone.
        pairs: How many entries are in it. Each pair is entered twice, so that the bins of M pairs have 2M together.
        predicted: The mean win probability.
        observed: The share that won.
    """

    low: float
    high: float
    pairs: int
    predicted: float
    observed: float


def calibration_curve(delta: ArrayLike, bins: int = 20) -> list[CalibrationBin]:
    """Win probabilities p = sigmoid(delta), and how often they come true, in bins that are equal parts of [0, 1].

    Each pair enters twice, as (p, y = 1) and as (1 - p, y = 0), so the order of its answers does not matter. The curve is symmetric
    about (1/2, 1/2). A bin includes its lower end; the last bin includes both ends.

    Args:
        delta: float [M], the winner's reward minus the loser's; large values do not overflow.
        bins: The number of bins.

    Returns:
        The bins in ascending order, without empty ones; none where there is no pair or a difference is NaN.

    Source: Guo et al. 2017, arXiv 1706.04599, whose reliability diagrams draw it.

    >>> [(part.low, part.pairs, round(part.predicted, 2), part.observed) for part in calibration_curve([3.0, 3.0, -3.0])]
    [(0.0, 3, 0.05, 0.3333333333333333), (0.95, 3, 0.95, 0.6666666666666666)]
    """
    delta = np.asarray(delta, dtype=np.float64)
    if not delta.size or np.isnan(delta).any():
        return []
    right = _win_probability(delta)
    probability = np.concatenate([right, 1 - right])
    outcome = np.repeat([1.0, 0.0], len(right))
    where = np.minimum((probability * bins).astype(np.intp), bins - 1)
    counts, predicted, won = (np.bincount(where, weights, bins) for weights in (None, probability, outcome))
    return [
        CalibrationBin(number / bins, (number + 1) / bins, count, total / count, wins / count)
        for number, (count, total, wins) in enumerate(zip(counts.tolist(), predicted.tolist(), won.tolist(), strict=True))
        if count
    ]


def expected_calibration_error(delta: ArrayLike, bins: int = 20) -> float:
    """How far win probabilities are from how often they come true: the mean of abs(predicted - observed) over `calibration_curve`.

    Every bin counts as often as it has entries.

    Args:
        delta: float [M], the winner's reward minus the loser's; large values do not overflow.
        bins: The number of bins.

    Returns:
        From 0 to 1; NaN where there is no pair or a difference is NaN.

    Source: Guo et al. 2017, arXiv 1706.04599, eq. 3.

    >>> round(expected_calibration_error([3.0]), 4)  # it says 0.95, and is always right
    0.0474
    """
    curve = calibration_curve(delta, bins)
    entries = sum(part.pairs for part in curve)
    return sum(part.pairs * abs(part.predicted - part.observed) for part in curve) / entries if curve else math.nan


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


def log_loss(delta: ArrayLike) -> float:
    """The mean of -log p for win probabilities p = sigmoid(delta): the Bradley-Terry negative log-likelihood, in nats.

    It is log(1 + exp(-delta)); log 2, about 0.693, for a reward that knows nothing.

    Args:
        delta: float [M], the winner's reward minus the loser's; large values do not overflow.

    Returns:
        From 0; NaN where there is no pair or a difference is NaN.

    Source: Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1, train on it.

    >>> log_loss([-1000.0])
    1000.0
    """
    delta = np.asarray(delta, dtype=np.float64)
    known = delta.size and not np.isnan(delta).any()
    return float(np.logaddexp(0, -delta).mean()) if known else math.nan


def agreement(deltas: ArrayLike) -> FloatArray:
    """The share of pairs on which two members prefer the same answer, or both see a tie: float64 [K, K], 1 on the diagonal.

    Args:
        deltas: float [K, M], for each of K members the winner's reward minus the loser's of M pairs.

    Returns:
        NaN for every two members of which one has a NaN, and everywhere if there are no pairs.

    >>> agreement([[1.0, 2.0], [3.0, -1.0]]).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    deltas = np.asarray(deltas, dtype=np.float64)
    signs = np.sign(deltas)
    members, pairs = signs.shape
    if not pairs:
        return np.full((members, members), np.nan)
    same = np.zeros((members, members))
    for sign in (-1, 0, 1):
        holds = (signs == sign).astype(np.float64)
        same += holds @ holds.T
    same /= pairs
    unknown = np.isnan(deltas).any(axis=1)
    same[unknown], same[:, unknown] = np.nan, np.nan
    return same


def unanimous(deltas: FloatArray) -> NDArray[np.bool_]:
    """Where all members prefer the same answer, or all see a tie: bool [M] of `deltas` as in `agreement`."""
    signs = np.sign(deltas)
    return np.asarray((signs == signs[:1]).all(axis=0))


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


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's rank correlation tau-b: (C - D) / sqrt((C + D + X) * (C + D + Y)).

    C couples of rows are in the same order in both, D in opposite orders, X tie in x alone and Y in y alone.

    Args:
        x: float [N].
        y: float [N].

    Returns:
        From -1 to 1; NaN where either is constant, empty or has a NaN.

    Source: Kendall 1945; Knight 1966 for its computation in N log N.

    >>> round(kendall([1, 2, 3, 4], [1, 2, 4, 3]), 4)  # five couples agree and one does not
    0.6667
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (x, y))
    if not x.size or np.isnan(x).any() or np.isnan(y).any() or (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    from scipy.stats import kendalltau  # takes most of a second to import

    return float(kendalltau(x, y).statistic)


def ndcg(scores: ArrayLike, gains: ArrayLike, k: int | None = None) -> float:
    """How good the order of one list is: the sum of gain / log2(place + 1), divided by that of the best order.

    Equal scores share the mean of their gains, which is the expectation over their possible orders.

    Args:
        scores: float [N]; the highest has place 1.
        gains: float [N], what each is worth, 0 or more.
        k: Only the first k places count; all by default.

    Returns:
        From 0 to 1; NaN where there is nothing to order (fewer than two, or all gains are 0), a score is NaN or a gain is not
        finite.

    Raises:
        DataError: A gain is negative, or k is less than 1.

    Source: Järvelin and Kekäläinen 2002; McSherry and Najork 2008 for ties.

    >>> round(ndcg([3.0, 2.0, 1.0], [0.0, 1.0, 0.0]), 4)  # 1 / log2(3)
    0.6309
    """
    scores, gains = np.asarray(scores, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    if (gains < 0).any():
        raise DataError(
            f"NDCG is of gains that are 0 or more; the least here is {gains.min():g}. Subtract it from all of them."
        )
    if k is not None and k < 1:
        raise DataError(f"NDCG needs a first place: k={k} has none. Allowed: 1 or more, or None for all places.")
    if scores.size < 2 or np.isnan(scores).any() or not np.isfinite(gains).all() or not gains.any():
        return math.nan
    worth: FloatArray = gains / gains.max()  # whose sums do not overflow
    discounts = 1 / np.log2(np.arange(worth.size) + 2)
    discounts[worth.size if k is None else k :] = 0
    _, block, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    shared = np.bincount(block, worth) / counts
    gained = np.repeat(shared, counts) @ discounts
    return min(float(gained / (np.sort(worth)[::-1] @ discounts)), 1.0)


def best_of(scores: ArrayLike, gold: ArrayLike) -> float:
    """What the highest-scored completion of one list is worth; where several score highest, their mean.

    Args:
        scores: float [N].
        gold: float [N], what each completion is worth.

    Returns:
        NaN where there is no completion, or one of them has a NaN.

    >>> best_of([0.1, 0.7, 0.7], [5.0, 1.0, 2.0])
    1.5
    """
    scores, gold = (np.asarray(values, dtype=np.float64) for values in (scores, gold))
    if not scores.size or np.isnan(scores).any() or np.isnan(gold).any():
        return math.nan
    return float(gold[scores == scores.max()].mean())


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
