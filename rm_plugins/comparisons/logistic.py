"""The logistic function."""

from __future__ import annotations

import numpy as np

from rm_plugins.scores import FloatArray


def logistic(values: FloatArray) -> FloatArray:
    """σ(x) = 1 / (1 + exp(-x)) for any x, NaN for NaN.

    >>> logistic(np.array([0.0, -1000.0, np.nan])).tolist()
    [0.5, 0.0, nan]
    """
    with np.errstate(invalid="ignore", under="ignore"):
        probabilities: FloatArray = np.exp(-np.logaddexp(0.0, -values))
    return probabilities
