"""Scores that are standardized within their group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rm_plugins.groups import groups_of
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.ranks import standardized_in_groups
from rm_plugins.transforms.in_group import TransformInGroup


class ZScoreInGroup(TransformInGroup):
    """(score - mean) / std, with the mean and the standard deviation (ddof 0) of the scores of the completion's group.

    Where all scores of a group are equal, or only one completion of it has a score, they become 0. A completion without a prompt is alone,
    and also gets 0. Members of a sum that are standardized like this have equal influence in every group, as in GDPO
    (arXiv 2601.05242). Groups are made as for `RankInGroup`.

    Args:
        group: The column that names a completion's group; by default, the completions of a prompt in the batch are a group.

    Raises:
        SpecError: `group` is empty.
    """

    name: ClassVar[str] = "zscore-in-group"

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Standardize the scores of each group."""
        return standardized_in_groups(values, groups_of(samples, self.group))
