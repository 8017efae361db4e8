"""Ways to combine the scores of an ensemble's members, used as ``aggregate: NAME`` or ``aggregate: {name: NAME, ...}``.

Reward models trained on preferences are only defined up to a shift, and each has its own spread. Some aggregates, such as ``min``,
therefore need a common scale of the members (`needs_common_scale`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.component import Aggregate
from rm_plugins.errors import SpecError
from rm_plugins.hooks import hookimpl
from rm_plugins.scores import FloatArray


class Mean(Aggregate):
    """The mean of the members."""

    name: ClassVar[str] = "mean"

    def __call__(self, members: FloatArray) -> FloatArray:
        """The mean of those that gave a score."""
        mean: FloatArray = np.nanmean(members, axis=0)
        return mean


class Median(Aggregate):
    """The median of the members."""

    name: ClassVar[str] = "median"

    def __call__(self, members: FloatArray) -> FloatArray:
        """The median of those that gave a score."""
        return np.nanmedian(members, axis=0)


class Weighted(Aggregate):
    """The weighted mean of the members.

    Args:
        weights: One per member, none negative, not all zero; only their ratios matter.

    Raises:
        SpecError: A weight is negative, all are zero, or there is not one per member.
    """

    name: ClassVar[str] = "weighted"

    def __init__(self, *, weights: Sequence[float]) -> None:
        self.weights = np.array(weights, dtype=np.float64)
        if not np.isfinite(self.weights).all() or (self.weights < 0).any() or not self.weights.any():
            raise SpecError(
                f"weights must be finite and not negative, and one must be positive; not {list(weights)}.", key="weights"
            )

    def bind(self, members: int) -> None:
        """Check that there is one weight per member."""
        if len(self.weights) != members:
            raise SpecError(f"there are {len(self.weights)} weights for {members} members; give one per member.", key="weights")

    def __call__(self, members: FloatArray) -> FloatArray:
        """The weighted mean of those that gave a score; NaN where all of these have weight 0."""
        weights = np.where(np.isnan(members), 0.0, self.weights[:, None])
        with np.errstate(invalid="ignore"):
            mean: FloatArray = (weights * np.nan_to_num(members)).sum(axis=0) / weights.sum(axis=0)
        return mean


class Min(Aggregate):
    """The lowest member score: worst-case optimization (arXiv 2310.02743)."""

    name: ClassVar[str] = "min"
    needs_common_scale: ClassVar[bool] = True

    def __call__(self, members: FloatArray) -> FloatArray:
        """The lowest of those that gave a score."""
        lowest: FloatArray = np.nanmin(members, axis=0)
        return lowest


class Max(Aggregate):
    """The highest member score, for analysis: a policy exploits what one member overrates."""

    name: ClassVar[str] = "max"
    needs_common_scale: ClassVar[bool] = True

    def __call__(self, members: FloatArray) -> FloatArray:
        """The highest of those that gave a score."""
        highest: FloatArray = np.nanmax(members, axis=0)
        return highest


class SoftMin(Aggregate):
    """-(1/beta) log mean exp(-beta r): near the mean for a small beta, near the lowest member score for a large one.

    Args:
        beta: The larger, the nearer to the lowest score; per unit of reward.

    Raises:
        SpecError: `beta` is not positive.
    """

    name: ClassVar[str] = "softmin"
    needs_common_scale: ClassVar[bool] = True

    def __init__(self, *, beta: FiniteFloat = 1.0) -> None:
        if not beta > 0:
            raise SpecError(f"beta must be positive, not {beta}.", key="beta")
        self.beta = beta

    def __call__(self, members: FloatArray) -> FloatArray:
        """The soft minimum of those that gave a score."""
        lowest = np.nanmin(members, axis=0)
        excess = np.nanmean(np.expm1(-self.beta * (members - lowest)), axis=0)
        soft_minimum: FloatArray = lowest - np.log1p(excess) / self.beta
        return soft_minimum


class _SpreadPenalty(Aggregate):
    """The mean minus a multiple of the members' spread."""

    needs_common_scale: ClassVar[bool] = True

    def __init__(self, factor: float, key: str, ddof: int) -> None:
        if not factor >= 0:
            raise SpecError(f"{key} must not be negative, as disagreement would be rewarded; not {factor}.", key=key)
        if ddof not in (0, 1):
            raise SpecError(f"ddof must be 0 or 1, not {ddof}.", key="ddof")
        self.factor = factor
        self.ddof = ddof

    def bind(self, members: int) -> None:
        """Check that there are enough members for a spread."""
        if members < 2:
            raise SpecError("one member has no spread; give two or more, or use `mean`.")

    def __call__(self, members: FloatArray) -> FloatArray:
        """The penalized mean of those that gave a score; NaN where they are too few for `ddof`."""
        count = (~np.isnan(members)).sum(axis=0)
        mean = np.nanmean(members, axis=0)
        squares = np.nansum((members - mean) ** 2, axis=0)
        variance = np.divide(squares, count - self.ddof, out=np.full(len(mean), np.nan), where=count > self.ddof)
        penalized: FloatArray = mean - self.factor * self.spread(variance)
        return penalized

    @abstractmethod
    def spread(self, variance: FloatArray) -> FloatArray:
        """The penalized spread, computed from the members' variance, [N]."""


class LowerConfidenceBound(_SpreadPenalty):
    """mean - k std of the members.

    Args:
        k: How many standard deviations are subtracted.
        ddof: The standard deviation divides by members - `ddof`.

    Raises:
        SpecError: `k` is negative, `ddof` is not 0 or 1, or there is only one member.
    """

    name: ClassVar[str] = "lcb"

    def __init__(self, *, k: FiniteFloat = 1.0, ddof: int = 0) -> None:
        super().__init__(k, "k", ddof)

    def spread(self, variance: FloatArray) -> FloatArray:
        """The standard deviation."""
        deviation: FloatArray = np.sqrt(variance)
        return deviation


class UncertaintyWeighted(_SpreadPenalty):
    """mean - coefficient * variance of the members: uncertainty-weighted optimization (arXiv 2310.02743).

    Args:
        coefficient: The paper's lambda, 0.1 to 0.5 there; 0 gives the mean.
        ddof: The variance divides by members - `ddof`.

    Raises:
        SpecError: `coefficient` is negative, `ddof` is not 0 or 1, or there is only one member.
    """

    name: ClassVar[str] = "uwo"

    def __init__(self, *, coefficient: FiniteFloat = 0.5, ddof: int = 0) -> None:
        super().__init__(coefficient, "coefficient", ddof)

    def spread(self, variance: FloatArray) -> FloatArray:
        """The variance."""
        return variance


class Quantile(Aggregate):
    """A quantile of the members, linear between them.

    Args:
        q: 0 is the lowest score, 0.5 the median, 1 the highest.

    Raises:
        SpecError: `q` is not between 0 and 1.
    """

    name: ClassVar[str] = "quantile"
    needs_common_scale: ClassVar[bool] = True

    def __init__(self, *, q: float = 0.25) -> None:
        if not 0 <= q <= 1:
            raise SpecError(f"q must be between 0 and 1, not {q}.", key="q")
        self.q = q

    def __call__(self, members: FloatArray) -> FloatArray:
        """The quantile of those that gave a score."""
        quantile: FloatArray = np.nanquantile(members, self.q, axis=0)
        return quantile


class TrimmedMean(Aggregate):
    """The mean without the lowest and the highest members.

    The same number is left out where some members gave no score, so that a single outlier is never part of a mean of three or more.

    Args:
        share: The share of all members that is left out at each end, rounded down to whole members.

    Raises:
        SpecError: `share` is not between 0 and 0.5, or too small to leave out any member.
    """

    name: ClassVar[str] = "trimmed-mean"

    def __init__(self, *, share: float = 0.2) -> None:
        if not 0 < share < 0.5:
            raise SpecError(f"share must be above 0 and below 0.5, not {share}.", key="share")
        self.share = share

    def bind(self, members: int) -> None:
        """Check that at least one member is left out at each end."""
        if not self._trimmed(members):
            advice = f"give at least {1 / members:.3g}, or use" if members > 2 else "use"
            raise SpecError(
                f"a share of {self.share} of {members} members leaves out no member; {advice} `mean`.",
                key="share",
            )

    def _trimmed(self, members: int) -> int:
        return int(self.share * members + 1e-9)  # 0.2 of 5 is one member, whatever the rounding

    def __call__(self, members: FloatArray) -> FloatArray:
        """The mean of the middle of those that gave a score."""
        ordered = np.sort(members, axis=0)  # NaN comes last
        means = np.empty(members.shape[1])
        present = (~np.isnan(members)).sum(axis=0)
        for count in np.unique(present):
            cut = max(0, min(self._trimmed(len(members)), (int(count) - 1) // 2))
            columns = present == count
            means[columns] = ordered[cut : count - cut, columns].mean(axis=0)
        return means


@hookimpl
def rm_register_aggregates() -> Sequence[type[Aggregate]]:
    """The built-in aggregates."""
    return [
        LowerConfidenceBound,
        Max,
        Mean,
        Median,
        Min,
        Quantile,
        SoftMin,
        TrimmedMean,
        UncertaintyWeighted,
        Weighted,
    ]
