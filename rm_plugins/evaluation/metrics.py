"""Metrics of rewards: pure functions of scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rm_plugins.types import FloatArray

__all__ = ["PairMetrics", "pair_metrics"]


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
