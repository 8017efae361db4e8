"""Ranks in place of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rm_plugins.provider import Transform
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.ranks import compared_completions, ranks_in_groups


class RankInGroup(Transform):
    """The place of a completion among those of its prompt in the batch: 0 for the worst, 1 for the best.

    Of n completions with a score, the one that is better than k others has k / (n - 1); equal scores share the mean of their places,
    and a completion without another to be compared with has 0.5. So has every completion without a prompt. A score thus depends on its
    batch, of which a process sees its own part: keep all completions of a prompt together.
    """

    name: ClassVar[str] = "rank-in-group"
    depends_on_batch: ClassVar[bool] = True

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Rank the completions of each prompt."""
        ranks = ranks_in_groups(values, compared_completions(samples))
        return np.where(np.isnan(ranks) & ~np.isnan(values), 0.5, ranks)
