"""Ratings on several attributes, and the number by which samples are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rm_plugins.errors import DataError, did_you_mean

_DIGITS = 9


def weighted_means(ratings: Mapping[str, Sequence[float | None]], reward: Mapping[str, float] | None) -> list[float | None]:
    """The number by which each sample is compared, [n]; None if a rating that counts is missing.

    Args:
        ratings: Those of the n samples on each attribute, by its name.
        reward: The weight of each attribute; equal weights for all on which a sample is rated by default.

    Raises:
        DataError: `reward` names something that is not an attribute, or has no weight other than 0.
    """
    if reward is None:
        rated = [name for name, values in ratings.items() if any(value is not None for value in values)]
        weights = dict.fromkeys(rated or ratings, 1.0)
    else:
        weights = {name: weight for name, weight in reward.items() if weight}
    for name in weights:
        if name not in ratings:
            raise DataError(f"the reward weighs {name!r}, which is not an attribute of this row. {did_you_mean(name, ratings)}")
    total = math.fsum(map(abs, weights.values()))
    if not 0 < total < math.inf:
        raise DataError(
            f"the reward weighs its attributes by {reward!r}; finite numbers are allowed, at least one of them not 0."
        )
    if len(weights) == 1:
        ((name, weight),) = weights.items()
        return [rating if rating is None or weight > 0 else -rating for rating in ratings[name]]
    shares = [weight / total for weight in weights.values()]
    means = mean_ratings([ratings[name] for name in weights], shares)
    return [None if math.isnan(mean) else mean for mean in means]


def mean_ratings(ratings: Sequence[Sequence[float | None]], shares: Sequence[float] = ()) -> list[float]:
    """The mean of each sample's ratings on several attributes, [n]; NaN where one is missing.

    Ratings are often rounded thirds, so means count as equal if they agree to nine digits relative to the largest rating.

    Args:
        ratings: Those of the n samples, for each attribute.
        shares: The weight of each attribute, whose sizes add up to 1; equal weights by default.

    >>> mean_ratings([[0.333333333, 4.0], [0.666666667, None]])
    [0.5, nan]
    """
    largest = max((abs(rating) for column in ratings for rating in column if rating is not None), default=0.0)
    digits = _DIGITS - math.ceil(math.log10(largest)) if largest and len(ratings) > 1 else None
    shares = shares or [1 / len(ratings)] * len(ratings)
    means: list[float] = []
    for row in zip(*ratings, strict=True):
        known = [share * rating for share, rating in zip(shares, row, strict=True) if rating is not None]
        mean = math.fsum(known) if len(known) == len(row) else math.nan
        means.append(mean if digits is None or math.isnan(mean) else round(mean, digits))
    return means
