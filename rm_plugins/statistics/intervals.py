"""How sure a metric is: intervals and tests that know that answers to the same prompt are no independent samples.

Several pairs of one prompt, or one completion in several pairs, are right or wrong together. What is drawn again here is always a
whole prompt (a cluster) with all that it has, since an interval over single pairs would be too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm_plugins.errors import DataError
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.metrics import pearson

__all__ = [
    "Estimate",
    "PairedTest",
    "bootstrap",
    "correlation_estimate",
    "mean_estimate",
    "mean_estimates",
    "paired_test",
    "share_estimate",
    "share_estimates",
]

_FLIPS = 10_000
_MOST_UNDEFINED = 0.05
"""Of the resamples; with more of them, what the others say is not the statistic's distribution."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric and its 95% confidence interval (or another, where one was asked for).

    Args:
        value: The metric; NaN where there is none.
        low: The interval's lower end; NaN where there is no interval.
        high: Its upper end, likewise.

    >>> print(Estimate(0.8123, 0.79, 0.8333))
    0.812 [0.790, 0.833]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self:.3f}"

    def __format__(self, form: str) -> str:
        """The value and its interval, each in this format."""
        interval = "" if math.isnan(self.low) else f" [{self.low:{form}}, {self.high:{form}}]"
        return f"{self.value:{form}}{interval}"


@dataclass(frozen=True, slots=True)
class PairedTest:
    """How two rewards, a and b, differ on the same pairs.

    Args:
        difference: The mean outcome of b minus that of a; above 0 where b is better.
        p_value: How likely a difference as large is where a and b are equally good, two-sided.
        only_a: The number of pairs on which a is right and b is not.
        only_b: The number of pairs on which b is right and a is not.
    """

    difference: Estimate
    p_value: float
    only_a: int
    only_b: int


def bootstrap(
    sums: ArrayLike,
    statistic: Callable[[FloatArray], FloatArray],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The percentile interval of a statistic of sums over independent clusters, such as prompts.

    C clusters are drawn with replacement, `resamples` times; the interval is between the quantiles (1 - confidence) / 2 and
    (1 + confidence) / 2 of what the statistic then is. Where all clusters say the same, it has no width. The memory that it
    takes is about 24 bytes a cluster, however many resamples there are.

    Args:
        sums: float [C, K], what each cluster adds to K totals.
        statistic: Makes totals, float64 [B, K], values, float64 [B]; NaN where it is not defined.
        resamples: How often to draw.
        confidence: How often such an interval has the true value in it.
        seed: The same seed gives the same interval.

    Returns:
        Without interval where there are fewer than two clusters, where the value is not finite, or where the statistic is
        undefined in more than one resample of twenty; the others are left out.

    Raises:
        DataError: `resamples` or `confidence` is out of range.

    Source: Efron 1979; Davison and Hinkley 1997, section 3.8, for clusters.

    >>> totals_of_prompts = [[2.0, 2.0], [1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]  # pairs that are right, and all pairs
    >>> print(bootstrap(totals_of_prompts, lambda totals: totals[:, 0] / totals[:, 1]))
    0.667 [0.333, 0.875]
    """
    return _estimates(sums, [statistic], resamples, confidence, seed)[0]


def mean_estimate(values: ArrayLike, clusters: ArrayLike, **settings: Any) -> Estimate:
    """A mean over values with the interval of clusters that are drawn again: see `bootstrap`.

    Args:
        values: float [M].
        clusters: The number of each value's cluster, any integers, [M].
        settings: `resamples`, `confidence` and `seed`.

    >>> print(mean_estimate([1, 1, 0, 1, 0, 1], [7, 7, 7, 1, 1, 2]))
    0.667 [0.500, 1.000]
    """
    values = np.asarray(values, dtype=np.float64)
    return bootstrap(_cluster_sums([values, np.ones_like(values)], clusters), partial(_ratio, place=0, count=1), **settings)


def mean_estimates(values: Mapping[str, ArrayLike], clusters: ArrayLike, **settings: Any) -> dict[str, Estimate]:
    """`mean_estimate` of several columns of values, for which clusters are drawn together.

    Args:
        values: float [M] each, by name; NaN where a value is to be left out of its mean.
        clusters: The number of each place's cluster, any integers, [M].
        settings: `resamples`, `confidence` and `seed`.

    >>> print(mean_estimates({"some": [1.0, np.nan, 0.0, 1.0]}, [1, 1, 2, 3])["some"])
    0.667 [0.000, 1.000]
    """
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in values.items()}
    known = [~np.isnan(column) for column in columns.values()]
    added = [np.where(where, column, 0.0) for where, column in zip(known, columns.values(), strict=True)]
    sums = _cluster_sums([*added, *(where.astype(np.float64) for where in known)], clusters)
    ratios = [partial(_ratio, place=place, count=len(columns)) for place in range(len(columns))]
    return dict(zip(columns, _estimates(sums, ratios, **settings), strict=True))


def share_estimate(outcomes: ArrayLike, clusters: ArrayLike, **settings: Any) -> Estimate:
    """`mean_estimate` of outcomes that are 0 or 1.

    Where all are 0, or all are 1, nothing changes when they are drawn again; the interval is then that of Clopper and Pearson for
    as many clusters, of which all were the same.

    Args:
        outcomes: [M], numbers or booleans.
        clusters: The number of each outcome's cluster, any integers, [M].
        settings: `resamples`, `confidence` and `seed`.

    Source: Clopper and Pearson 1934.

    >>> print(share_estimate([True] * 10, range(10)))
    1.000 [0.692, 1.000]
    """
    return share_estimates({"share": outcomes}, clusters, **settings)["share"]


def share_estimates(outcomes: Mapping[str, ArrayLike], clusters: ArrayLike, **settings: Any) -> dict[str, Estimate]:
    """`share_estimate` of several columns of outcomes, for which clusters are drawn together.

    Args:
        outcomes: [M] each, by name: numbers or booleans, NaN where there is none.
        clusters: The number of each place's cluster, any integers, [M].
        settings: `resamples`, `confidence` and `seed`.
    """
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in outcomes.items()}
    estimates = mean_estimates(columns, clusters, **settings)
    tail = (1 - settings.get("confidence", 0.95)) / 2
    for name, estimate in estimates.items():
        if estimate.value in (0.0, 1.0) and not math.isnan(estimate.low):
            reached = tail ** (1 / len(np.unique(np.asarray(clusters)[~np.isnan(columns[name])])))
            low, high = (reached, 1.0) if estimate.value else (0.0, 1 - reached)
            estimates[name] = Estimate(estimate.value, low, high)
    return estimates


def correlation_estimate(x: ArrayLike, y: ArrayLike, clusters: ArrayLike, **settings: Any) -> Estimate:
    """`pearson` with the interval of clusters that are drawn again: see `bootstrap`.

    For Spearman's correlation, hand in ranks. They are then not made again in each resample, which makes the interval of a few
    clusters slightly too narrow.

    Args:
        x: float [M].
        y: float [M].
        clusters: The number of each value's cluster, any integers, [M].
        settings: `resamples`, `confidence` and `seed`.

    Returns:
        All NaN where there is no correlation.

    >>> correlation_estimate([1, 2, 3, 4], [2, 4, 6, 8], [0, 0, 1, 1]).value
    1.0
    """
    value = pearson(x, y)
    if math.isnan(value):
        return Estimate(math.nan, math.nan, math.nan)
    # The means are close to 0, so that squares of sums take nothing away from sums of squares but what is meant.
    x, y = (_standardized(np.asarray(values, dtype=np.float64)) for values in (x, y))
    interval = bootstrap(_cluster_sums([np.ones_like(x), x, y, x * x, y * y, x * y], clusters), _correlation, **settings)
    return Estimate(value, interval.low, interval.high)


def paired_test(a: ArrayLike, b: ArrayLike, clusters: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> PairedTest:
    """Whether reward b does better than reward a on the same pairs, or worse.

    If both were equally good, the difference of a cluster's outcomes would be as likely to have the other sign. The p-value is
    how often the sum of all differences is as far from 0 as it is when signs are drawn by chance. Where all clusters that differ
    do so by the same, this is the exact McNemar test; otherwise 10,000 drawings give (1 + hits) / (1 + 10,000).

    Args:
        a: The outcomes of a, 1 where it is right and 0 where it is wrong, [M].
        b: Those of b, [M].
        clusters: The number of each pair's cluster, any integers, [M].
        resamples: Of the interval of the difference.
        seed: The same seed gives the same result.

    Raises:
        DataError: An outcome is NaN: how often one alone is right could not be told.

    Source: McNemar 1947; Fisher 1935 for the test by signs; Phipson and Smyth 2010 for the 1 that is added.

    >>> test = paired_test([0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], range(7))
    >>> test.only_a, test.only_b, test.p_value
    (0, 6, 0.03125)
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if np.isnan(a).any() or np.isnan(b).any():
        raise DataError(
            f"Two rewards are compared on pairs that both scored; of {len(a)} pairs, {int((np.isnan(a) | np.isnan(b)).sum())} have "
            "no outcome (NaN). Leave these pairs out."
        )
    difference = mean_estimate(b - a, clusters, resamples=resamples, seed=seed)
    by_cluster = _cluster_sums([b - a], clusters)[:, 0]
    return PairedTest(difference, _sign_flip_p_value(by_cluster, seed), int((a > b).sum()), int((b > a).sum()))


def _sign_flip_p_value(differences: FloatArray, seed: int) -> float:
    differences = differences[differences != 0]
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        from scipy.stats import binomtest  # takes most of a second to import

        return float(binomtest(int((differences > 0).sum()), len(differences)).pvalue)
    # Of clusters that differ by the same, all that matters is how many signs are positive.
    rng = np.random.default_rng(seed)
    drawn = np.zeros(_FLIPS)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        drawn += size * (2 * rng.binomial(count, 0.5, _FLIPS) - count)
    rounding = 1e-9 * sizes[-1]
    hits = int((np.abs(drawn) >= abs(differences.sum()) - rounding).sum())
    return (1 + hits) / (1 + _FLIPS)


def _cluster_sums(columns: list[FloatArray], clusters: ArrayLike) -> FloatArray:
    """The sums of K columns [M] over each cluster, float64 [C, K]."""
    number: NDArray[np.intp]
    distinct, number = np.unique(np.asarray(clusters), return_inverse=True)
    return np.stack([np.bincount(number, column, len(distinct)) for column in columns], axis=1)


def _resampled_totals(sums: FloatArray, resamples: int, seed: int) -> FloatArray:
    """The totals of as many clusters as there are, drawn with replacement, again and again: float64 [resamples, K]."""
    rng = np.random.default_rng(seed)
    totals = np.empty((resamples, sums.shape[1]))
    for row in range(resamples):
        times = np.bincount(rng.integers(len(sums), size=len(sums)), minlength=len(sums))
        totals[row] = times @ sums
    return totals


def _estimates(
    sums: ArrayLike,
    statistics: Sequence[Callable[[FloatArray], FloatArray]],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Estimate]:
    """`bootstrap` of several statistics of the same totals."""
    if resamples < 1 or not 0 < confidence < 1:
        raise DataError(
            f"A bootstrap of {resamples} resamples with a confidence of {confidence} is not possible: allowed are 1 resample or more "
            "(2000 are usual), and a confidence between 0 and 1 (0.95 is usual)."
        )
    sums = np.asarray(sums, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = [float(statistic(sums.sum(axis=0, keepdims=True))[0]) for statistic in statistics]
        if len(sums) < 2 or not any(map(math.isfinite, values)):
            return [Estimate(value, math.nan, math.nan) for value in values]
        totals = _resampled_totals(sums, resamples, seed)
        drawn = [statistic(totals) for statistic in statistics]
    return [_interval(value, column, confidence) for value, column in zip(values, drawn, strict=True)]


def _interval(value: float, drawn: FloatArray, confidence: float) -> Estimate:
    known = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or len(known) < (1 - _MOST_UNDEFINED) * len(drawn):
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def _ratio(totals: FloatArray, *, place: int, count: int) -> FloatArray:
    ratio: FloatArray = totals[:, place] / totals[:, count + place]
    return ratio


def _standardized(values: FloatArray) -> FloatArray:
    centred = values - values.mean()
    centred /= np.abs(centred).max()  # whose squares neither overflow nor vanish
    standardized: FloatArray = centred / centred.std()
    return standardized


def _correlation(totals: FloatArray) -> FloatArray:
    n, x, y, xx, yy, xy = totals.T
    spread_x, spread_y = (n * squares - sums * sums for squares, sums in ((xx, x), (yy, y)))
    constant = np.minimum(spread_x / (n * xx), spread_y / (n * yy)) < 1e-9  # rounding is no variation
    correlation = np.clip((n * xy - x * y) / np.sqrt(spread_x * spread_y), -1, 1)
    return np.where(constant, np.nan, correlation)
