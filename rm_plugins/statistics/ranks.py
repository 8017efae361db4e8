"""Ranks, and the places of completions among those of their prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray


def compared_completions(samples: Sequence[Sample]) -> list[list[int]]:
    """The rows whose completions are ranked with each other: those of each prompt, in the order of their first one.

    A sample without a prompt, which may answer any question, is compared with none.

    >>> compared_completions([Sample("a", "1"), Sample("", "2"), Sample("a", "3"), Sample("", "4")])
    [[0, 2], [1], [3]]
    """
    groups: dict[bytes | int, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        groups[sample.prompt_key if sample.prompt else row].append(row)
    return list(groups.values())


def ranks_in_groups(scores: FloatArray, groups: Iterable[Sequence[int]]) -> FloatArray:
    """The place of each score among those of its group, float64 [N]: 0 is the lowest, 1 the highest, equal ones share their mean.

    Args:
        scores: float64 [N], NaN where there is none.
        groups: The rows of each group.

    Returns:
        NaN where there is no score, or no other score in the group.

    >>> ranks_in_groups(np.array([3.0, 1.0, 3.0, 7.0]), [[0, 1, 2], [3]]).tolist()
    [0.75, 0.0, 0.75, nan]
    """
    ranks = np.full(len(scores), np.nan)
    for rows in groups:
        known = np.array([row for row in rows if not np.isnan(scores[row])], dtype=int)
        if len(known) > 1:
            ranks[known] = (mean_ranks(scores[known]) - 1) / (len(known) - 1)
    return ranks


def mean_ranks(values: ArrayLike) -> FloatArray:
    """Ranks from 1 in ascending order, float [N], the mean of them for equal values; all NaN if there is a NaN.

    >>> mean_ranks([3.0, 1.0, 3.0]).tolist()
    [2.5, 1.0, 2.5]
    """
    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        return np.full(values.shape, np.nan)
    inverse: NDArray[np.intp]
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last: FloatArray = np.cumsum(counts).astype(np.float64)
    return (last - (counts - 1) / 2)[inverse]
