"""Ranks instead of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rm_plugins.groups import groups_of
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.ranks import ranks_in_groups
from rm_plugins.transforms.in_group import TransformInGroup


class RankInGroup(TransformInGroup):
    """The rank of a completion in its group: 0 for the worst, 1 for the best.

    If n completions of the group have a score, a completion that is better than k others gets k / (n - 1); equal scores share their mean
    rank. A completion without another one to compare gets 0.5, like every completion without a prompt. Trainers that we feed make groups
    whole that are spread over their processes (`rm_plugins.training.whole_groups`); elsewhere, score all completions of a group together.

    Args:
        group: The column that names a completion's group; by default, the completions of a prompt in the batch are a group.

    Raises:
        SpecError: `group` is empty.
    """

    name: ClassVar[str] = "rank-in-group"

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Rank the completions of each group."""
        ranks = ranks_in_groups(values, groups_of(samples, self.group))
        return np.where(np.isnan(ranks) & ~np.isnan(values), 0.5, ranks)
