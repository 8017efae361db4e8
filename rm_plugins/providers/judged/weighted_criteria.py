"""The score of a completion from the values of its criteria."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rm_plugins.providers.judged.criteria import Criterion


def weighted_score(criteria: Sequence[Criterion], values: Sequence[float], *, skips: bool = False) -> float:
    """The score; NaN if there is none.

    Let w be the weights, v the values, P the criteria that are not negative and Q the negative ones, and W the sum of w over P (over Q if
    there are no others). The weighted mean is

        S = (sum over P of w v - sum over Q of w v) / W

    and L is the lowest possible S. A required criterion is met to a degree of 0 to 1: where v lies between the lowest and the highest of
    its levels; for a negative one, 1 minus that. With g the smallest of these degrees (1 without required criteria), the score is
    L + g (S - L).

    Args:
        criteria: The criteria, [K].
        values: The value of each, [K]; NaN where there is no verdict.
        skips: Whether criteria without a verdict are left out. If not, there is no score without all of them. A required one is never left
            out. All that are not negative are not left out together.

    >>> polite, wrong = Criterion("Is polite.", weight=3.0), Criterion("Has an error.", negative=True)
    >>> weighted_score([polite, wrong], [1.0, 1.0]), weighted_score([polite, wrong], [0.5, 0.0])
    (0.6666666666666666, 0.5)
    >>> weighted_score([Criterion("Answers.", required=True), polite], [0.0, 1.0])
    0.0
    """
    judged = [(criterion, value) for criterion, value in zip(criteria, values, strict=True) if not math.isnan(value)]
    missing = [criterion for criterion, value in zip(criteria, values, strict=True) if math.isnan(value)]
    if missing and (not skips or any(criterion.required for criterion in missing)):
        return math.nan
    for_it = [(criterion, value) for criterion, value in judged if not criterion.negative]
    if not judged or (not for_it and not all(criterion.negative for criterion in criteria)):
        return math.nan
    whole = math.fsum(criterion.weight for criterion, _ in for_it or judged)
    signed = [(-criterion.weight if criterion.negative else criterion.weight, criterion, value) for criterion, value in judged]
    mean = math.fsum(weight * value for weight, _, value in signed) / whole
    lowest = math.fsum(weight * criterion.span[criterion.negative] for weight, criterion, _ in signed) / whole
    gate = min((criterion.met(value) for criterion, value in judged if criterion.required), default=1.0)
    return lowest + gate * (mean - lowest) if gate < 1.0 else mean
