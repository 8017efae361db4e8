"""When the scores of two ways to compute them count as equal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TOLERANCE = 1e-4
_HALF_TOLERANCE = 5e-2


def scores_differ(scores: NDArray[np.float64], expected: NDArray[np.float64], *, exact: bool) -> str | None:
    """How scores differ from those of a simpler computation; None if they agree within the tolerance.

    Args:
        scores: Scores of any shape.
        expected: The same scores from the simpler computation.
        exact: Whether the model computes in float32 or better: then the tolerance is 1e-4 instead of 5e-2, relative to 1 + abs(score).
    """
    difference = np.abs(scores - expected)
    allowed = (_TOLERANCE if exact else _HALF_TOLERANCE) * (1 + np.abs(expected))
    wrong = ~(difference <= allowed) & np.isfinite(expected)  # non-finite scores are reported elsewhere
    return f"its scores differ by up to {difference[wrong].max():.1e}" if wrong.any() else None
