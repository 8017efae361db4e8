"""Transforms without statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.component import Transform
from rm_plugins.errors import SpecError
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray


class Scale(Transform):
    """(score - shift) * factor.

    Args:
        factor: What the shifted score is multiplied by.
        shift: What is subtracted from the score first.
    """

    name: ClassVar[str] = "scale"

    def __init__(self, *, factor: FiniteFloat = 1.0, shift: FiniteFloat = 0.0) -> None:
        self.factor = factor
        self.shift = shift

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Shift, then scale."""
        return (values - self.shift) * self.factor


class Clip(Transform):
    """The score, no lower than `low` and no higher than `high`.

    Args:
        low: The lowest score; None for no bound.
        high: The highest score; None for no bound.

    Raises:
        SpecError: There is no bound, or `low` is above `high`.
    """

    name: ClassVar[str] = "clip"

    def __init__(self, *, low: FiniteFloat | None = None, high: FiniteFloat | None = None) -> None:
        if low is None and high is None:
            raise SpecError("clip needs `low`, `high`, or both.")
        if low is not None and high is not None and low > high:
            raise SpecError(f"clip has low={low} above high={high}.")
        self.low = low
        self.high = high

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Clip; NaN stays NaN."""
        return np.clip(values, self.low, self.high)


class Tanh(Transform):
    """tanh(score / scale), between -1 and 1: nearly linear around 0, and flat far from it.

    Args:
        scale: The score that becomes tanh(1), about 0.76.

    Raises:
        SpecError: The scale is not positive.
    """

    name: ClassVar[str] = "tanh"

    def __init__(self, *, scale: FiniteFloat = 1.0) -> None:
        if scale <= 0:
            raise SpecError(f"tanh needs a positive scale, not {scale}.", key="scale")
        self.scale = scale

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Bound."""
        bounded: FloatArray = np.tanh(values / self.scale)
        return bounded


class Sigmoid(Transform):
    """σ(score) = 1 / (1 + exp(-score)), between 0 and 1: for a Bradley-Terry reward, the probability of being preferred to 0."""

    name: ClassVar[str] = "sigmoid"

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Bound."""
        probabilities: FloatArray = np.exp(log_sigmoid(values))
        return probabilities


def log_sigmoid(values: FloatArray) -> FloatArray:
    """log σ(x) = min(x, 0) - log(1 + exp(-|x|)), also exact far from 0.

    >>> log_sigmoid(np.array([-1000.0, 0.0])).round(3).tolist()
    [-1000.0, -0.693]
    """
    logarithms: FloatArray = np.minimum(values, 0.0) - np.log1p(np.exp(-np.abs(values)))
    return logarithms
