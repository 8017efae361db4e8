"""Scoring rows in batches: the loop that evaluations and jobs share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row, the scores of its samples, and their details (`Scores.columns`: name to one value a sample); None means abstained."""

    row: Mapping[str, Any]
    scores: list[float | None]
    details: dict[str, list[float | None]]


def scored_batches(
    provider: Provider,
    rows: Iterable[Mapping[str, Any]],
    samples_of: Callable[[Mapping[str, Any], str], tuple[Sample, ...]],
    size: int,
    *,
    unit: Literal["rows", "samples"],
    first: int = 1,
    whole_prompts: bool = False,
) -> Iterator[tuple[list[ScoredRow], Mapping[str, Any]]]:
    """Score rows batch by batch: the rows of each batch, and the metadata of its scores.

    Args:
        provider: The reward.
        rows: Columns by name.
        samples_of: The samples of a row; its second argument is what an error calls the row.
        size: The size of a batch, which ends with the row that reaches it.
        unit: What `size` counts.
        first: The number of the first row.
        whole_prompts: Whether a batch is extended to whole prompts, for rewards that compare completions.

    Raises:
        ScoringError: The provider failed.
    """
    batch: list[tuple[Mapping[str, Any], tuple[Sample, ...]]] = []
    count = 0
    for number, row in enumerate(rows, start=first):
        samples = samples_of(row, f"row {number}")
        if count >= size and not (whole_prompts and _have_one_prompt(batch[-1][1], samples)):
            yield _scored(provider, batch)
            batch, count = [], 0
        batch.append((row, samples))
        count += len(samples) if unit == "samples" else 1
        if count >= size and not whole_prompts:
            yield _scored(provider, batch)
            batch, count = [], 0
    if batch:
        yield _scored(provider, batch)


def _have_one_prompt(before: tuple[Sample, ...], samples: tuple[Sample, ...]) -> bool:
    return bool(before and samples and samples[0].prompt) and before[-1].prompt_key == samples[0].prompt_key


def _scored(
    provider: Provider, batch: list[tuple[Mapping[str, Any], tuple[Sample, ...]]]
) -> tuple[list[ScoredRow], Mapping[str, Any]]:
    scores = provider.score([sample for _, samples in batch for sample in samples])
    values = _or_none(scores.values)
    details = {name: _or_none(column) for name, column in scores.columns.items()}
    rows, start = [], 0
    for row, samples in batch:
        end = start + len(samples)
        rows.append(ScoredRow(row, values[start:end], {name: column[start:end] for name, column in details.items()}))
        start = end
    return rows, scores.metadata


def _or_none(values: FloatArray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
