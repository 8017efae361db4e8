"""Ranks, and the places of scores among those of their group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm_plugins.scores import FloatArray

_ROUNDING = 1e-12
"""Scores of a group that differ by less, relative to the largest, are equal: sums in another order are rounded apart."""


def ranks_in_groups(scores: FloatArray, groups: Iterable[Sequence[int]]) -> FloatArray:
    """The place of each score among those of its group, float64 [N]: 0 is the lowest, 1 the highest, equal ones share their mean.

    Scores that differ only by rounding are equal.

    Args:
        scores: float64 [N], NaN where there is none.
        groups: The rows of each group.

    Returns:
        NaN where there is no score, or no other score in the group.

    >>> ranks_in_groups(np.array([3.0, 1.0, 3.0, 7.0]), [[0, 1, 2], [3]]).tolist()
    [0.75, 0.0, 0.75, nan]
    """
    ranks = np.full(len(scores), np.nan)
    for rows in groups:
        known = np.array([row for row in rows if not np.isnan(scores[row])], dtype=int)
        if len(known) > 1:
            ranks[known] = (mean_ranks(_without_rounding(scores[known])) - 1) / (len(known) - 1)
    return ranks


def standardized_in_groups(scores: FloatArray, groups: Iterable[Sequence[int]]) -> FloatArray:
    """(score - mean) / std of each score in its group, float64 [N], std with ddof 0; 0 where all scores of the group are equal.

    Sums are exactly rounded, so the result does not depend on the order of the scores. Scores that differ only by rounding are equal.

    Args:
        scores: float64 [N], NaN where there is none, which stays NaN; an infinite one stays infinite, and does not count for the others.
        groups: The rows of each group.

    >>> standardized_in_groups(np.array([3.0, 1.0, 2.0, 7.0]), [[0, 1], [2], [3]]).tolist()
    [1.0, -1.0, 0.0, 0.0]
    """
    standardized = scores.copy()
    for rows in groups:
        known = [row for row in rows if np.isfinite(scores[row])]
        if not known:
            continue
        values = _without_rounding(scores[known]).tolist()
        # Dividing by a power of two is exact, and keeps squares of very large and very small scores from over- and underflowing.
        exponent = math.frexp(max(map(abs, values)))[1]
        values = [math.ldexp(value, -exponent) for value in values]
        mean = min(max(math.fsum(values) / len(values), min(values)), max(values))  # of equal scores, exactly that score
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        standardized[known] = [(value - mean) / (std or 1.0) for value in values]
    return standardized


def _without_rounding(values: FloatArray) -> FloatArray:
    """The scores, float64 [N], of which those that differ only by rounding are replaced by the lowest of them."""
    if not np.isfinite(values).all():
        return values
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    with np.errstate(over="ignore"):
        differs = np.diff(ascending, prepend=-np.inf) > _ROUNDING * np.abs(values).max()
    lowest = np.empty_like(values)
    lowest[order] = ascending[np.maximum.accumulate(np.where(differs, np.arange(len(values)), 0))]
    return lowest


def mean_ranks(values: ArrayLike) -> FloatArray:
    """Ranks from 1 in ascending order, float [N], the mean of them for equal values; all NaN if there is a NaN.

    >>> mean_ranks([3.0, 1.0, 3.0]).tolist()
    [2.5, 1.0, 2.5]
    """
    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        return np.full(values.shape, np.nan)
    inverse: NDArray[np.intp]
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last: FloatArray = np.cumsum(counts).astype(np.float64)
    return (last - (counts - 1) / 2)[inverse]
