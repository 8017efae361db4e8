"""A reward made into one of two values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import Combinator, part_details, summed_work
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores

__all__ = ["Threshold"]


class Threshold(Combinator):
    """`above` where the reward's score is at least `at`, else `below`; where it abstains, no score.

    `counts["above"]` has how many samples reached it.

    Args:
        reward: What is compared.
        at: The lowest score that counts as above.
        above: The score from there on.
        below: The score of the others.
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

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score, and compare."""
        found = self.reward.score(samples)
        reached = found.values >= self.at
        self.counts["above"] += int(reached.sum())
        values = np.where(found.abstained, np.nan, np.where(reached, self.above, self.below))
        return Scores(values, part_details({"reward": found}), summed_work([found]))
