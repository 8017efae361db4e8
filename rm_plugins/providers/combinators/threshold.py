"""A reward that is reduced to one of two values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import Combinator
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores


class Threshold(Combinator):
    """`above` where the reward's score is at least `at`, else `below`; it abstains where the reward does.

    `counts["above"]` counts the samples that reached `at`.

    Args:
        reward: The reward that is compared with `at`.
        at: The lowest score that counts as above.
        above: The score for those that reach it.
        below: The score for the others.
    """

    name: ClassVar[str] = "threshold"

    def __init__(self, *, reward: Provider, at: FiniteFloat, above: FiniteFloat = 1.0, below: FiniteFloat = 0.0) -> None:
        self.reward = reward
        self.at = at
        self.above = above
        self.below = below

    def render(self, sample: Sample) -> str:
        """The text that the reward scores."""
        return self.reward.render(sample)

    @property
    def part_providers(self) -> dict[str, Provider]:
        """The reward that is compared."""
        return {"reward": self.reward}

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score, and compare."""
        reward = self.reward.attempt(samples)
        reached = reward.values >= self.at
        self._counted("above", int(reached.sum()))
        values = np.where(reward.abstained, np.nan, np.where(reached, self.above, self.below))
        return self.whole(values, {"reward": (self.reward, reward)})
