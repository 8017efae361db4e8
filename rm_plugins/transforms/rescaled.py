"""Scores rescaled by their statistics: standardized, or between 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.component import LocalPath
from rm_plugins.errors import SpecError
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray
from rm_plugins.transforms.fitted import FittedTransform, check_differing
from rm_plugins.transforms.running import RunningStatistics


class MinMax(FittedTransform):
    """(score - low) / (high - low), kept between 0 and 1.

    Args:
        low: The score that becomes 0; by default the lowest in `reference`, else in the model's manifest.
        high: The score that becomes 1; by default the highest there.
        reference: A file of this reward's scores, as `rm-plugins score` writes it.
        clip: Whether scores beyond `low` and `high` become 0 and 1; else they are extrapolated.

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
        """Refuse bounds in the wrong order."""
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise SpecError(f"min-max needs `low` below `high`, not {self.low} and {self.high}.")

    def measure(self, values: FloatArray) -> dict[str, float]:
        """The lowest and the highest score."""
        check_differing(values, self.name)
        return {"low": float(values.min()), "high": float(values.max())}

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Scale, and clip if asked to."""
        self.settle()
        assert self.low is not None and self.high is not None  # since `settle`
        scaled = (values - self.low) / (self.high - self.low)
        return np.clip(scaled, 0.0, 1.0) if self.clip else scaled


class ZScore(FittedTransform):
    """(score - mean) / std, with statistics that are fixed or learned while scoring.

    With `running`, mean and std cover all scores so far, including the current batch and all processes of a training. They also cover a
    prior that counts as `warmup` scores, so they begin with the prior's values and move away from them smoothly. The prior has the
    `mean` and `std` that are given or come from the reference or the manifest, else 0 and 1. A score then depends on its batch and on
    earlier batches, and the trainer's checkpoints keep what was learned.

    Args:
        mean: The mean of the scores; by default that of `reference`, else of the model's manifest.
        std: Their standard deviation (ddof 0); by default from there, too.
        reference: A file of this reward's scores, as `rm-plugins score` writes it.
        running: Whether to update the statistics while scoring.
        warmup: How many scores the prior counts as.

    Raises:
        SpecError: `std` is not positive, or `warmup` is negative.
    """

    name: ClassVar[str] = "zscore"
    statistics: ClassVar[tuple[str, ...]] = ("mean", "std")
    in_manifest: ClassVar[Mapping[str, str]] = {"mean": "mean", "std": "std"}

    def __init__(
        self,
        *,
        mean: FiniteFloat | None = None,
        std: FiniteFloat | None = None,
        reference: Annotated[str, LocalPath] | None = None,
        running: bool = False,
        warmup: int = 64,
    ) -> None:
        if warmup < 0:
            raise SpecError(f"must not be negative, as it is a number of scores; not {warmup}.", key="warmup")
        self.mean = mean
        self.std = std
        self.reference = reference
        self.running = RunningStatistics() if running else None
        self.warmup = warmup
        self.check()

    def check(self) -> None:
        """Refuse a standard deviation that is not positive."""
        if self.std is not None and self.std <= 0:
            raise SpecError(f"zscore needs a positive std, not {self.std}.", key="std")

    def measure(self, values: FloatArray) -> dict[str, float]:
        """Mean and standard deviation (ddof 0)."""
        check_differing(values, self.name)
        return {"mean": float(values.mean()), "std": float(values.std())}

    def settle(self, manifest: Any = None, called: str = "its provider") -> None:
        """Find the statistics that the spec leaves out; running ones can begin with 0 and 1."""
        if self.running is not None and self.reference is None and manifest is None:
            self.mean = 0.0 if self.mean is None else self.mean
            self.std = 1.0 if self.std is None else self.std
        super().settle(manifest, called)

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Update the running statistics if there are any, then standardize."""
        self.settle()
        assert self.mean is not None and self.std is not None  # since `settle`
        mean, std = self.mean, self.std
        if self.running is not None:
            self.running.update(values)
            mean, std = self.running.moments(mean=mean, std=std, weight=self.warmup)
        # Without a prior, all scores so far may be equal, and the standard deviation 0.
        return (values - mean) / (std or 1.0)

    def state(self) -> dict[str, Any]:
        """The running statistics; empty where there are none."""
        return {} if self.running is None else self.running.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from there."""
        if self.running is not None:
            self.running.load_state(state)
