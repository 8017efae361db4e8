"""The same score for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores


class Constant(Provider):
    """The same score for every sample: an offset in a sum, the last resort of a fallback.

    Args:
        value: The score.
    """

    name: ClassVar[str] = "constant"

    def __init__(self, *, value: FiniteFloat) -> None:
        self.value = value

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Give every sample the score."""
        return Scores(np.full(len(samples), self.value, dtype=np.float64))
