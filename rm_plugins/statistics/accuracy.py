"""How often a reward is right on pairs: the one place that counts it, for all pairs or some, with intervals or without."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm_plugins.scores import FloatArray
from rm_plugins.statistics.intervals import Estimate, share_estimate


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


def accuracy(delta: FloatArray) -> float:
    """The share of M pairs whose winner gets strictly the higher reward; a tie counts as wrong.

    Args:
        delta: float64 [M], the winner's reward minus the loser's.

    Returns:
        NaN where there is no pair or a difference is NaN: a comparison with NaN is false, and would make a failure a number.

    >>> accuracy(np.array([2.0, 0.0, -1.0, 3.0]))
    0.5
    """
    return float((delta > 0).mean()) if len(delta) and not np.isnan(delta).any() else math.nan


def pair_shares(delta: FloatArray, longer: NDArray[Any]) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """The shares of M pairs that are measured, by name: bool [M] for the pairs that a share is of, and for where it holds.

    Args:
        delta: float64 [M], the winner's reward minus the loser's.
        longer: [M], the winner's length minus the loser's.

    Returns:
        ``accuracy`` and ``ties`` of all; ``accuracy_longer`` and ``accuracy_shorter`` of the pairs whose winner is the longer, the
        shorter one; ``length_preference`` and ``shortness_preference`` of the pairs of two lengths.
    """
    for_longer = np.where(longer > 0, delta, -delta)
    right, unequal, all_pairs = delta > 0, longer != 0, np.ones(len(delta), dtype=np.bool_)
    return {
        "accuracy": (all_pairs, right),
        "ties": (all_pairs, delta == 0),
        "accuracy_longer": (longer > 0, right),
        "accuracy_shorter": (longer < 0, right),
        "length_preference": (unequal, for_longer > 0),
        "shortness_preference": (unequal, for_longer < 0),
    }


def pair_metrics(chosen: FloatArray, rejected: FloatArray) -> PairMetrics:
    """The metrics of the scores of chosen and rejected answers, each float64 [M], NaN where abstained.

    >>> pair_metrics(np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 3.0])).accuracy
    0.3333333333333333
    """
    scored = ~(np.isnan(chosen) | np.isnan(rejected))
    delta = (chosen - rejected)[scored]
    pairs = len(delta)
    right = accuracy(delta)
    return PairMetrics(
        pairs=pairs,
        accuracy=right,
        standard_error=math.sqrt(right * (1 - right) / pairs) if pairs else math.nan,
        ties=int((delta == 0).sum()),
        margin=float(delta.mean()) if pairs else math.nan,
        abstained=int((~scored).sum()),
    )


def accuracy_estimate(delta: FloatArray, clusters: ArrayLike, where: NDArray[Any]) -> Estimate:
    """`share_estimate` of the pairs that a reward has right, of those at `where` (a mask or places); see `accuracy`.

    Args:
        delta: float64 [M], the winner's reward minus the loser's.
        clusters: The number of each pair's cluster, any integers, [M].
        where: Which pairs.
    """
    return share_estimate(delta[where] > 0, np.asarray(clusters)[where])


def three_class_agreement(delta: ArrayLike, tied: ArrayLike) -> tuple[float, float]:
    """How often a reward says what was judged, a winner or a tie, and the threshold up to which its differences are ties.

    The threshold is the one with which it agrees most often, the smallest where there are several: the tie calibration of Deutsch et
    al., whose accuracy this is.

    Args:
        delta: float [M], the winner's reward minus the loser's, of pairs that were judged to have a winner.
        tied: float [T], the difference of the rewards of pairs that were judged to tie, of either sign.

    Returns:
        The share of the M + T pairs, and the threshold: a difference of at most as much, either way, is a tie. Both are NaN where there
        is no pair or a difference is NaN.

    Source: Deutsch, Foster and Freitag 2023, arXiv 2305.14324.

    >>> three_class_agreement([3.0, 2.0, -1.0, 0.5], [0.5, -0.25])
    (0.6666666666666666, 0.25)
    """
    delta, tied = (np.asarray(values, dtype=np.float64) for values in (delta, tied))
    pairs = len(delta) + len(tied)
    if not pairs or np.isnan(delta).any() or np.isnan(tied).any():
        return math.nan, math.nan
    right, level = np.sort(delta[delta > 0]), np.sort(np.abs(tied))
    thresholds = np.unique(np.concatenate([[0.0], right, level]))
    agreed = len(right) - np.searchsorted(right, thresholds, side="right") + np.searchsorted(level, thresholds, side="right")
    best = int(agreed.argmax())
    return float(agreed[best] / pairs), float(thresholds[best])
