"""The range in which a count is right, and how its score falls outside."""

from __future__ import annotations

import numpy as np

from rm_plugins.errors import SpecError
from rm_plugins.scores import FloatArray


class Window:
    """Counts from `low` to `high` score 1; the score falls to 0 at a distance of `soft` outside.

    Args:
        rule: The rule's name in messages.
        counted: What is counted, in the plural.
        low: The fewest inside; None for no bound.
        high: The most inside; None for no bound.
        soft: The distance outside at which the score reaches 0; 0 for an abrupt limit.

    Raises:
        SpecError: There is no bound, `low` is above `high`, or a number is negative.

    >>> Window("length-window", "words", low=2, high=4, soft=2).scores(np.array([1.0, 3.0, 7.0])).tolist()
    [0.5, 1.0, 0.0]
    """

    def __init__(self, rule: str, counted: str, *, low: int | None, high: int | None, soft: int) -> None:
        for key, number in {"low": low, "high": high, "soft": soft}.items():
            if number is not None and number < 0:
                raise SpecError(f"a number of {counted} must not be negative; got {number}.", key=key)
        if low is None and high is None:
            raise SpecError(f"{rule} needs `low`, `high`, or both.")
        if low is not None and high is not None and low > high:
            raise SpecError(f"must not be above high, which is {high}; got {low}.", key="low")
        self.low = 0 if low is None else low
        self.high = np.inf if high is None else high
        self.soft = soft

    def scores(self, counts: FloatArray) -> FloatArray:
        """The score of each count, float64 [N]; NaN counts have none, or 0."""
        outside = np.maximum(0, np.maximum(self.low - counts, counts - self.high))
        scores: FloatArray = np.maximum(0, 1 - outside / self.soft) if self.soft else (outside == 0).astype(np.float64)
        return scores
