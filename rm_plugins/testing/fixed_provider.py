"""A provider with given scores, for the tests of a plug-in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores

if TYPE_CHECKING:
    pass


class FixedProvider(Provider):
    """A provider whose scores are given by a function.

    Args:
        scores: A function of a sample; None abstains.

    >>> FixedProvider(scores=lambda sample: float(len(sample.completion_text))).score([Sample("Q", "abc")]).values
    array([3.])
    """

    name: ClassVar[str] = "fixed"

    def __init__(self, *, scores: Callable[[Sample], float | None]) -> None:
        self.scores = scores
        self.batches: list[int] = []

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score the samples and append the size of the batch to `batches`."""
        self.batches.append(len(samples))
        values = [self.scores(sample) for sample in samples]
        return Scores(np.array([np.nan if value is None else value for value in values], dtype=np.float64))
