"""Scores between 0 and 1, by the least and the greatest that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.errors import DataError, SpecError
from rm_plugins.provider import LocalPath
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray
from rm_plugins.transforms.fitted import FittedTransform

__all__ = ["MinMax"]


class MinMax(FittedTransform):
    """(score - low) / (high - low), kept between 0 and 1.

    Args:
        low: The score that becomes 0; by default the least of `reference`, else of the model's manifest.
        high: The score that becomes 1, the greatest likewise.
        reference: A file of this reward's scores, as `rm-plugins score` writes it.
        clip: Whether scores beyond `low` and `high` become 0 and 1; else they go on in proportion.

    Raises:
        SpecError: `low` is not below `high`.
    """

    name: ClassVar[str] = "min-max"
    statistics: ClassVar[tuple[str, ...]] = ("low", "high")
    in_manifest: ClassVar[Mapping[str, str]] = {"low": "min", "high": "max"}

    def __init__(
        self,
        *,
        low: FiniteFloat | None = None,
        high: FiniteFloat | None = None,
        reference: Annotated[str, LocalPath] | None = None,
        clip: bool = True,
    ) -> None:
        self.low = low
        self.high = high
        self.reference = reference
        self.clip = clip
        self.check()

    def check(self) -> None:
        """Refuse bounds that are not in their order."""
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise SpecError(f"min-max needs `low` below `high`, not {self.low} and {self.high}.")

    def measure(self, values: FloatArray) -> dict[str, float]:
        """The least and the greatest."""
        if values.min() == values.max():
            raise DataError(f"All {len(values)} scores are {values[0]}: min-max needs scores that differ.")
        return {"low": float(values.min()), "high": float(values.max())}

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Scale, and clip if need be."""
        self.settle()
        assert self.low is not None and self.high is not None  # says `settle`
        scaled = (values - self.low) / (self.high - self.low)
        return np.clip(scaled, 0.0, 1.0) if self.clip else scaled
