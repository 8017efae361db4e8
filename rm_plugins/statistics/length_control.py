"""The accuracy of a reward if length did not matter: by the part of the rewards that length predicts, or by length itself."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm_plugins.scores import FloatArray
from rm_plugins.statistics.bias import length_curve, length_split
from rm_plugins.statistics.intervals import Estimate, cluster_error, logit_estimate, share_estimate

_FEW_VALUES = 20
"""No curve is subtracted from rewards with this many values or fewer: it would order equal ones."""
_ADDED = 0.25
"""Pairs of each outcome, where length speaks for the winner and where it speaks for the loser: without them, a reward that is always
right, or that length decides alone, would have an infinite logit."""
_USUAL = (0.005, 0.995)
"""Quantiles of rewards without length, beyond which they count as these."""
_STEPS = 50


def accuracy_at_equal_length(delta: ArrayLike, longer: ArrayLike, clusters: ArrayLike) -> Estimate:
    """How often a reward prefers the winner if both answers are equally long, by a logistic curve; a tie counts half.

    The outcomes of M pairs (1 for the winner, 1/2 for a tie, 0 for the loser) are fitted by sigmoid(a + b * tanh(longer / s)), where s
    is the standard deviation of the differences in length, taken both ways round; the result is sigmoid(a).

    Args:
        delta: float [M], the winner's reward minus the loser's.
        longer: [M], the winner's length minus the loser's.
        clusters: The number of each pair's cluster, any integers, [M].

    Returns:
        With the interval of the logit a, by cluster; NaN if there are no pairs or a difference is NaN.

    Source: the length-controlled win rates of AlpacaEval (Dubois et al. 2024, arXiv 2404.04475); Liang and Zeger 1986 for clusters.

    >>> print(accuracy_at_equal_length([1.0, 1.0, -1.0, 1.0, 1.0, -1.0], [9, 9, -9, -9, 9, -9], range(6)).value > 0.5)
    True
    """
    delta, longer = (np.asarray(values, dtype=np.float64) for values in (delta, longer))
    if not len(delta) or np.isnan(delta).any() or np.isnan(longer).any():
        return Estimate(math.nan, math.nan, math.nan)
    outcomes = (1 + np.sign(delta)) / 2
    fit = _Logistic(outcomes, np.tanh(_in_its_unit(longer)), np.ones(len(delta)))
    error, freedom = cluster_error(fit.moves(), clusters)
    return logit_estimate(fit.logit, math.hypot(error, fit.added_error), freedom)


def accuracy_without_length(
    rewards: ArrayLike,
    lengths: ArrayLike,
    pairs: NDArray[np.integer],
    sample_clusters: ArrayLike,
    *,
    refits: int = 100,
    seed: int = 0,
) -> Estimate:
    """How often the winner's reward is strictly higher after the part of the rewards that length predicts is removed.

    Pairs with equal rewards stay ties, and count as wrong, as in every accuracy. For the others:

    1. A LOWESS curve of reward by length is subtracted (see `length_split`). It is fitted together with the net wins of the answers, so
       that a reward is not penalized because winners are longer.
    2. The winner is preferred if its remaining reward is higher. Equal remaining rewards, as of a reward of length alone, count half.
       For rewards with 20 values or fewer, the rewards themselves decide.
    3. A logistic curve sigmoid(a + b * x) of these outcomes by the predicted difference x removes the remaining effect of length. The
       result is sigmoid(a) times the share of pairs without a tie.

    Args:
        rewards: float [N].
        lengths: [N], such as characters.
        pairs: int [M, 2], the samples of winner and loser.
        sample_clusters: The number of each sample's cluster, any integers, [N]. Samples of a pair are of one cluster.
        refits: How often clusters are resampled and everything is fitted again, for the standard error of the result's logit; 0 for no
            interval.
        seed: The same seed gives the same interval.

    Returns:
        NaN if there are no pairs or something is not finite.

    Source: Huang et al. 2024, arXiv 2409.17407, for the curve; Robinson 1988 for equal net wins; Efron 1979 for the standard error.
    """
    rewards, lengths = (np.asarray(values, dtype=np.float64) for values in (rewards, lengths))
    if not len(pairs) or not (np.isfinite(rewards).all() and np.isfinite(lengths).all()):
        return Estimate(math.nan, math.nan, math.nan)
    _, cluster = np.unique(np.asarray(sample_clusters), return_inverse=True)
    untied = pairs[rewards[pairs[:, 0]] != rewards[pairs[:, 1]]]
    if not len(untied):
        return share_estimate(np.zeros(len(pairs)), cluster[pairs[:, 0]])
    (winner, loser), count = untied.T, int(cluster.max()) + 1
    won, lost = (np.bincount(side, minlength=len(rewards)) for side in pairs.T)
    net_wins = (won - lost) / np.maximum(won + lost, 1)
    decides = np.sign(rewards[winner] - rewards[loser]) if len(np.unique(rewards)) <= _FEW_VALUES else None

    def fitted(times: NDArray[np.intp]) -> tuple[float, float]:
        """The logit and the addition to its error, with each cluster repeated `times` times."""
        repeated = np.repeat(np.arange(len(rewards)), times[cluster])
        curve, left = np.zeros((2, len(rewards)))
        curve[repeated], left[repeated] = _split(rewards[repeated], lengths[repeated], net_wins[repeated])
        weights = times[cluster[winner]].astype(np.float64)
        without = np.sign(left[winner] - left[loser])
        outcomes = without if decides is None or not without.any() else decides
        fit = _Logistic((1 + outcomes) / 2, _in_its_unit(curve[winner] - curve[loser], weights), weights)
        preferred = _probability(fit.logit)
        share = preferred * float(weights.sum() / times[cluster[pairs[:, 0]]].sum())
        return math.log(share / (1 - share)), fit.added_error * (1 - preferred) / (1 - share)

    logit, added_error = fitted(np.ones(count, dtype=np.intp))
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(refits if count > 1 else 0)]
    logits = [fitted(times)[0] for times in drawn if times[cluster[winner]].any()]
    error = math.hypot(float(np.std(logits, ddof=1)), added_error) if len(logits) > 1 else math.nan
    return logit_estimate(logit, error, max(count - 1.0, 1.0))


def _split(rewards: FloatArray, lengths: FloatArray, net_wins: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`length_split` that keeps the part of the rewards that depends on length only because winners are longer or shorter.

    The model is reward = curve(length) + d * net_wins + the rest, with net wins from -1 for losers to 1 for winners.

    Source: Robinson 1988, the partially linear model.
    """
    curve, left = length_split(rewards, lengths)
    of_length = length_curve(net_wins, lengths)
    rest, other = rewards - curve, net_wins - of_length
    if not np.ptp(left) or not other.any():
        return curve, left
    rest = np.clip(rest, *np.quantile(rest, _USUAL))
    share = float(rest @ other / (other @ other)) * of_length
    return curve - share, left + share


class _Logistic:
    """sigmoid(a + b * x), fitted to outcomes from 0 to 1 by Newton's method.

    Args:
        outcomes: float64 [M].
        x: float64 [M].
        weights: float64 [M].

    Attributes:
        logit: a.
        added_error: What the pairs that are added contribute to its standard error.
    """

    def __init__(self, outcomes: FloatArray, x: FloatArray, weights: FloatArray) -> None:
        y = np.concatenate([outcomes, [1.0, 0.0, 1.0, 0.0]])
        design = np.stack([np.ones(len(y)), np.concatenate([x, [1.0, 1.0, -1.0, -1.0]])], axis=1)
        weight = np.concatenate([weights, np.full(4, _ADDED)])
        at = np.zeros(2)
        for _ in range(_STEPS):
            p = (1 + np.tanh(design @ at / 2)) / 2
            curvature = (design * (weight * p * (1 - p))[:, None]).T @ design
            step = np.linalg.solve(curvature, (weight * (y - p)) @ design)
            at += step / max(1.0, float(np.abs(step).max()))  # far steps may overshoot
            if np.abs(step).max() < 1e-8:
                break
        self.logit = float(at[0])
        moves = design @ np.linalg.inv(curvature)[0] * (y - p)
        self._moves: FloatArray = (moves * weight)[:-4]
        self.added_error = math.sqrt(_ADDED * float(moves[-4:] @ moves[-4:]))

    def moves(self) -> FloatArray:
        """By how much each outcome moves a, float64 [M]."""
        return self._moves


def _in_its_unit(values: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Values with the mean square 1; zeros stay."""
    largest = float(np.abs(values).max(initial=0.0))
    if not largest:
        return values
    values = values / largest  # whose squares neither overflow nor vanish
    unit: FloatArray = values / math.sqrt(float(np.average(np.square(values), weights=weights)))
    return unit


def _probability(logit: float) -> float:
    return (1 + math.tanh(logit / 2)) / 2
