"""Intervals and tests for metrics whose samples are not independent.

Several pairs of one prompt, or one completion in several pairs, tend to be right or wrong together, so an interval over single pairs would
be too narrow. The unit that counts as independent here is always a whole prompt (a cluster) with everything that belongs to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm_plugins.errors import DataError
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.metrics import pearson

_FLIPS = 10_000


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


def mean_estimate(
    values: ArrayLike, clusters: ArrayLike, *, bounds: tuple[float, float] | None = None, confidence: float = 0.95
) -> Estimate:
    """A mean over values with an interval that treats clusters, such as prompts, as independent.

    Without bounds it is mean +- t * the standard error of a ratio of cluster sums. The degrees of freedom of t are Satterthwaite's:
    as many as the clusters' squared deviations are worth, which are few where a few clusters make most of the error.

    With bounds it is the interval of Agresti and Coull, which is also valid near the bounds. The M dependent values count as M / d
    independent ones, and z^2 / 2 values are added at each bound. The design effect d compares the variance between clusters with that of
    independent values, and is at least 1. If few clusters differ from the others, d is too uncertain, and a larger one is used, at most
    that of clusters with equal values.

    Args:
        values: float [M].
        clusters: The number of each value's cluster, any integers, [M].
        bounds: The least and the largest that a value can be; None where there are none.
        confidence: How often such an interval has the true value in it.

    Returns:
        Without interval where there are fewer than two clusters, or where the value is not finite.

    Raises:
        DataError: `confidence` is out of range.

    Source: Agresti and Coull 1998; Korn and Graubard 1998 for the effective number of values and the quantile of t; Satterthwaite 1946;
    Cochran 1977, section 6.3, for the ratio.

    >>> print(mean_estimate([1, 1, 0, 1, 0, 1], [7, 7, 7, 1, 1, 2], bounds=(0, 1)))
    0.667 [0.296, 0.907]
    """
    z = _normal_quantile(confidence)
    values = np.asarray(values, dtype=np.float64)
    value = float(values.mean()) if len(values) else math.nan
    error, freedom = cluster_error((values - value) / max(len(values), 1), clusters)
    if math.isnan(error) or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan)
    t = _t_quantile(freedom, confidence)
    if bounds is None:
        return Estimate(value, value - t * error, value + t * error)
    low, high = bounds
    mean, spread = (value - low) / (high - low), float(values.std()) / (high - low)
    counts = np.unique(np.asarray(clusters), return_counts=True)[1]
    largest = float(counts @ counts) / len(values)
    design = largest
    if np.ptp(values) > 0:
        observed = len(values) * (1 - 1 / len(counts)) * (error / (spread * (high - low))) ** 2
        design = min(max(observed * (t / z) ** 2, 1.0), max(largest, observed))
    size, added = len(values) / design, z * z
    centre = (size * mean + added / 2) / (size + added)
    squares = size * (spread**2 + (mean - centre) ** 2) + added / 2 * (centre**2 + (1 - centre) ** 2)
    half = z * math.sqrt(squares) / (size + added)
    ends = (low + (high - low) * min(max(end, 0.0), 1.0) for end in (centre - half, centre + half))
    return Estimate(value, *ends)


def share_estimate(outcomes: ArrayLike, clusters: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """`mean_estimate` of outcomes from 0 to 1, such as whether a reward is right.

    Args:
        outcomes: [M], numbers or booleans.
        clusters: The number of each outcome's cluster, any integers, [M].
        confidence: How often such an interval has the true share in it.

    >>> print(share_estimate([True] * 10, range(10)))
    1.000 [0.679, 1.000]
    """
    return mean_estimate(outcomes, clusters, bounds=(0.0, 1.0), confidence=confidence)


def logit_estimate(logit: float, error: float, freedom: float, *, scale: float = 1.0, confidence: float = 0.95) -> Estimate:
    """`scale` times the probability whose logit is given, with the interval logit +- t * error, whose ends are made probabilities too.

    Args:
        logit: The logit.
        error: Its standard error; NaN where there is no interval.
        freedom: The degrees of freedom of t.
        scale: The largest that the result can be.
        confidence: How often such an interval has the true value in it.
    """
    half = _t_quantile(freedom, confidence) * error
    return Estimate(*(scale * (1 + math.tanh(end / 2)) / 2 for end in (logit, logit - half, logit + half)))


def correlation_estimate(x: ArrayLike, y: ArrayLike, clusters: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """`pearson` with an interval that takes clusters for independent: that of Fisher's z, atanh(r), with t as in `mean_estimate`.

    For Spearman's correlation, hand in ranks.

    Args:
        x: float [M].
        y: float [M].
        clusters: The number of each value's cluster, any integers, [M].
        confidence: How often such an interval has the true value in it.

    Returns:
        All NaN where there is no correlation; without interval where there are fewer than two clusters, or the correlation is 1 or -1.

    Source: Fisher 1915; Hampel 1974 for how a value moves a correlation.

    >>> correlation_estimate([1, 2, 3, 4], [2, 4, 6, 8], [0, 0, 1, 1]).value
    1.0
    """
    value = pearson(x, y)
    if math.isnan(value) or 1 - abs(value) < 1e-12:
        return Estimate(value, math.nan, math.nan)
    x, y = (_standardized(np.asarray(values, dtype=np.float64)) for values in (x, y))
    moves = (x * y - value * (x * x + y * y) / 2) / (1 - value * value) / len(x)
    error, freedom = cluster_error(moves, clusters)
    z, half = math.atanh(value), _t_quantile(freedom, confidence) * error
    return Estimate(value, math.tanh(z - half), math.tanh(z + half))


def cluster_error(moves: FloatArray, clusters: ArrayLike) -> tuple[float, float]:
    """The standard error of a statistic, and its degrees of freedom, which are Satterthwaite's.

    Args:
        moves: float64 [M], by how much each value moves the statistic: its influence / M.
        clusters: The number of each value's cluster, any integers, [M]; different clusters are independent.

    Returns:
        NaN where there are fewer than two clusters.
    """
    by_cluster = _cluster_sums([moves], clusters)[:, 0]
    count, largest = len(by_cluster), float(np.abs(by_cluster).max(initial=0.0))
    if count < 2:
        return math.nan, math.nan
    if not largest or not math.isfinite(largest):
        return largest, count - 1.0
    squares = np.square(by_cluster / largest)  # which neither overflow nor vanish
    total = float(squares.sum())
    kurtosis = count * float(squares @ squares) / total**2
    freedom = min(count - 1.0, 2 * count / max(kurtosis - 1, 1e-9))
    return largest * math.sqrt(total * count / (count - 1)), freedom


def paired_test(a: ArrayLike, b: ArrayLike, clusters: ArrayLike, *, seed: int = 0) -> PairedTest:
    """Whether reward b does better than reward a on the same pairs, or worse.

    If both were equally good, the difference of a cluster's outcomes would be as likely to have the other sign. The p-value is
    how often the sum of all differences is as far from 0 as it is when signs are drawn by chance. Where all clusters that differ
    do so by the same, this is the exact McNemar test; otherwise 10,000 drawings give (1 + hits) / (1 + 10,000).

    Args:
        a: The outcomes of a, 1 where it is right and 0 where it is wrong, [M].
        b: Those of b, [M].
        clusters: The number of each pair's cluster, any integers, [M].
        seed: Of the drawings; the same seed gives the same result.

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
    both = np.concatenate([a, b])
    are_outcomes = bool(len(both)) and both.min() >= 0 and both.max() <= 1
    difference = mean_estimate(b - a, clusters, bounds=(-1.0, 1.0) if are_outcomes else None)
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


def _t_quantile(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit  # takes a tenth of a second to import

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise DataError(
            f"An interval with a confidence of {confidence} is not possible: allowed is one between 0 and 1 (0.95 is usual)."
        )
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _standardized(values: FloatArray) -> FloatArray:
    centred = values - values.mean()
    centred /= np.abs(centred).max()  # whose squares neither overflow nor vanish
    standardized: FloatArray = centred / centred.std()
    return standardized
