"""The places of completions among those of their prompt."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from rm_plugins.types import FloatArray, Sample

__all__ = ["prompt_groups", "ranks_in_groups"]


def prompt_groups(samples: Sequence[Sample]) -> list[list[int]]:
    """The rows of each different prompt, in the order of their first one.

    >>> prompt_groups([Sample("a", "1"), Sample("b", "2"), Sample("a", "3")])
    [[0, 2], [1]]
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        key = sample.prompt if isinstance(sample.prompt, str) else json.dumps(sample.prompt, sort_keys=True, default=repr)
        groups[key].append(row)
    return list(groups.values())


def ranks_in_groups(scores: FloatArray, groups: Iterable[Sequence[int]]) -> FloatArray:
    """The place of each score among those of its group, float64 [N]: 0 is the lowest, 1 the highest, equal ones share their mean.

    Args:
        scores: float64 [N], NaN where there is none.
        groups: The rows of each group.

    Returns:
        NaN where there is no score, or no other in the group to be compared with.

    >>> ranks_in_groups(np.array([3.0, 1.0, 3.0, 7.0]), [[0, 1, 2], [3]]).tolist()
    [0.75, 0.0, 0.75, nan]
    """
    ranks = np.full(len(scores), np.nan)
    for rows in groups:
        known = np.array([row for row in rows if not np.isnan(scores[row])], dtype=int)
        if len(known) > 1:
            ranks[known] = _mean_places(scores[known]) / (len(known) - 1)
    return ranks


def _mean_places(scores: FloatArray) -> FloatArray:
    """The places of scores in ascending order, from 0, equal ones sharing their mean, [n]."""
    _, first, group, count = np.unique(np.sort(scores), return_index=True, return_inverse=True, return_counts=True)
    places = (first + (count - 1) / 2)[group]
    found: FloatArray = np.empty(len(scores))
    found[np.argsort(scores, kind="stable")] = places
    return found
