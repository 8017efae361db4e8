"""Evaluating a reward on preference pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np

from rm_plugins.data.rows import preference_samples
from rm_plugins.errors import DataError
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.statistics.metrics import PairMetrics, pair_metrics

__all__ = ["evaluate_pairs"]


def evaluate_pairs(
    provider: Provider,
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> PairMetrics:
    """Score preference pairs and say how often the chosen answer wins.

    Args:
        provider: The reward.
        rows: Rows in TRL's preference format, such as a `datasets.Dataset`.
        batch_size: Pairs scored at a time.
        progress: Called with the number of pairs after each batch.

    Raises:
        DataError: A row is no preference pair, or there is no row.
        ScoringError: The provider failed.
    """
    chosen, rejected = [np.empty(0)], [np.empty(0)]
    seen = 0
    remaining = iter(rows)
    while batch := list(islice(remaining, batch_size)):
        samples: list[Sample] = []
        for number, row in enumerate(batch, start=seen + 1):
            try:
                samples += preference_samples(row)
            except DataError as error:
                raise DataError(f"row {number}: {error}") from error
        values = provider.score(samples).values
        chosen.append(values[0::2])
        rejected.append(values[1::2])
        seen += len(batch)
        if progress is not None:
            progress(len(batch))
    if not seen:
        raise DataError("There is no row to evaluate.")
    return pair_metrics(np.concatenate(chosen), np.concatenate(rejected))
