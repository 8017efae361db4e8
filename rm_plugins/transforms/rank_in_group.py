"""Ranks instead of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rm_plugins.provider import Transform
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.ranks import compared_completions, ranks_in_groups


class RankInGroup(Transform):
    """The rank of a completion among those of its prompt in the batch: 0 for the worst, 1 for the best.

    If n completions have a score, a completion that is better than k others gets k / (n - 1); equal scores share their mean rank. A
    completion without another one to compare gets 0.5, like every completion without a prompt. A score thus depends on its batch, and
    each process only sees its own part of the batch: keep all completions of a prompt together.
    """

    name: ClassVar[str] = "rank-in-group"
    depends_on_batch: ClassVar[bool] = True

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Rank the completions of each prompt."""
        ranks = ranks_in_groups(values, compared_completions(samples))
        return np.where(np.isnan(ranks) & ~np.isnan(values), 0.5, ranks)
