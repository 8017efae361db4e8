"""Reshapings of a provider's scores, used as ``transform: NAME`` or ``transform: {name: NAME, ...}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from rm_plugins.errors import SpecError
from rm_plugins.hookspecs import hookimpl
from rm_plugins.types import FloatArray, Provider, Sample, Transform

__all__ = ["Chain", "Clip", "Scale", "ZScore", "rm_register_transforms"]


class Chain(Transform):
    """Transforms one after another; a list is its short form."""

    name: ClassVar[str] = "chain"

    def __init__(self, *, transforms: Sequence[Transform]) -> None:
        self.transforms = transforms

    def bind(self, provider: Provider) -> None:
        """Bind every one of them."""
        for transform in self.transforms:
            transform.bind(provider)

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Apply them in their order."""
        for transform in self.transforms:
            values = transform(values, samples)
        return values

    def state(self) -> dict[str, Any]:
        """The state of those that have one, by their place."""
        return {str(place): state for place, transform in enumerate(self.transforms) if (state := transform.state())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Hand each its own."""
        for place, found in state.items():
            self.transforms[int(place)].load_state(found)


class Scale(Transform):
    """(score - shift) * factor."""

    name: ClassVar[str] = "scale"

    def __init__(self, *, factor: float = 1.0, shift: float = 0.0) -> None:
        self.factor = factor
        self.shift = shift

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Shift, then scale."""
        return (values - self.shift) * self.factor


class Clip(Transform):
    """The score, no lower than `low` and no higher than `high`."""

    name: ClassVar[str] = "clip"

    def __init__(self, *, low: float | None = None, high: float | None = None) -> None:
        if low is None and high is None:
            raise SpecError("clip needs `low`, `high`, or both.")
        if low is not None and high is not None and low > high:
            raise SpecError(f"clip has low={low} above high={high}.")
        self.low = low
        self.high = high

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Clip; NaN stays NaN."""
        return np.clip(values, self.low, self.high)


class ZScore(Transform):
    """(score - mean) / std, by default with the statistics in the model's manifest."""

    name: ClassVar[str] = "zscore"

    def __init__(self, *, mean: float | None = None, std: float | None = None) -> None:
        if std is not None and std <= 0:
            raise SpecError(f"zscore needs a positive std, not {std}.")
        self.mean = mean
        self.std = std

    def bind(self, provider: Provider) -> None:
        """Take what the spec left out from the provider's manifest.

        Raises:
            SpecError: There is nothing to take.
        """
        statistics = getattr(provider, "statistics", None)
        if (self.mean is None or self.std is None) and statistics is None:
            raise SpecError(
                f"zscore needs `mean` and `std`: {provider.label!r} has no manifest with the statistics of its scores."
            )
        self.mean = statistics.mean if self.mean is None and statistics else self.mean
        self.std = statistics.std if self.std is None and statistics else self.std
        if not self.std:
            raise SpecError(f"zscore needs a positive std; the manifest of {provider.label!r} has {self.std}.")

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Standardize."""
        if self.mean is None or self.std is None:
            raise SpecError("zscore needs `mean` and `std`, or a provider whose manifest has them.")
        return (values - self.mean) / self.std


@hookimpl
def rm_register_transforms() -> Sequence[type[Transform]]:
    """The built-in transforms."""
    return [Chain, Clip, Scale, ZScore]
