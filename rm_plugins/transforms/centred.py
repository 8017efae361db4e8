"""Bounded rewards: the probability of being preferred to a reference answer, or its logarithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.component import LocalPath
from rm_plugins.errors import SpecError
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray
from rm_plugins.transforms.fitted import FittedTransform
from rm_plugins.transforms.fixed import log_sigmoid


class LogSigmoidCentred(FittedTransform):
    """log σ(score - centre): scores above the centre gain little more, scores below it fall without bound (arXiv 2402.00742).

    The sum of several such rewards is the logarithm of the probability that an answer is good by all of them.

    Args:
        centre: The reward of a good answer.
        quantile: Where `centre` is not given, it is this quantile of the known scores.
        reference: A file of this reward's scores, as `rm-plugins score` writes it, for the quantile.

    Raises:
        SpecError: `quantile` is not from 0 to 1.
    """

    name: ClassVar[str] = "log-sigmoid-centred"
    statistics: ClassVar[tuple[str, ...]] = ("centre",)

    def __init__(
        self,
        *,
        centre: FiniteFloat | None = None,
        quantile: FiniteFloat = 0.85,
        reference: Annotated[str, LocalPath] | None = None,
    ) -> None:
        if not 0 <= quantile <= 1:
            raise SpecError(f"must be from 0 to 1, not {quantile}.", key="quantile")
        self.centre = centre
        self.quantile = quantile
        self.reference = reference

    def measure(self, values: FloatArray) -> dict[str, float]:
        """The quantile."""
        return {"centre": float(np.quantile(values, self.quantile))}

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """The logarithm of the probability of being preferred."""
        self.settle()
        assert self.centre is not None  # since `settle`
        return log_sigmoid(values - self.centre)


class Par(LogSigmoidCentred):
    """σ(score - centre), between 0 and 1: preference as reward (PAR, arXiv 2502.18770) with a single reference reward.

    Args:
        centre: The reward of a typical answer, such as the mean reward of the policy's answers before training.
        quantile: Where `centre` is not given, it is this quantile of the known scores; by default their median.
        reference: A file of this reward's scores, as `rm-plugins score` writes it, for the quantile.

    Raises:
        SpecError: `quantile` is not from 0 to 1.
    """

    name: ClassVar[str] = "par"

    def __init__(
        self,
        *,
        centre: FiniteFloat | None = None,
        quantile: FiniteFloat = 0.5,
        reference: Annotated[str, LocalPath] | None = None,
    ) -> None:
        super().__init__(centre=centre, quantile=quantile, reference=reference)

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """The probability of being preferred."""
        probabilities: FloatArray = np.exp(super().__call__(values, samples))
        return probabilities
