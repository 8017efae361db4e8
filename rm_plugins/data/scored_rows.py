"""Scoring rows in batches: the loop that evaluations and jobs share."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from rm_plugins.data.rows import RowSamples, row_samples
from rm_plugins.errors import DataError, RmPluginsError, plain_error
from rm_plugins.groups import RowGroups
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray

ALONE = RowGroups()
"""The groups of a reward that compares no samples."""

SamplesOf: TypeAlias = Callable[[Mapping[str, Any], str], tuple[Sample, ...]]
"""Makes the samples of a row; its second argument is what an error calls the row."""


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row with the scores of its samples; None means abstained.

    Args:
        row: Columns by name.
        scores: One value per sample.
        details: `Scores.columns`: name to one value per sample.
        errors: Why a sample has no score, one text per sample, None where nothing failed; empty where nothing failed in the row.
    """

    row: Mapping[str, Any]
    scores: list[float | None]
    details: dict[str, list[float | None]]
    errors: list[str | None] = field(default_factory=list)

    @property
    def kept(self) -> dict[str, Any]:
        """What is kept of it beside its row, as JSON values: the other arguments."""
        errors = {"errors": self.errors} if self.errors else {}
        return {"scores": self.scores, "details": self.details, **errors}

    def columns(self, samples: RowSamples, called: str) -> dict[str, Any]:
        """The columns that are added to its row: scores, details as ``score/std``, and reasons of failures as ``score/error``.

        Args:
            samples: Those of the row.
            called: What scores are called (`RowSamples.columns`).
        """
        columns = samples.columns(self.scores, called)
        for name, values in self.details.items():
            columns |= {f"{column}/{name}": value for column, value in samples.columns(values, called).items()}
        if self.errors:
            reasons: Any = self.errors  # which are text, where scores are numbers
            named = {f"{column}/{ERROR}": value for column, value in samples.columns(reasons, called).items()}
            columns |= {name: value for name, value in named.items() if value is not None}
        return columns


ERROR = "error"
"""The detail of a score with the reason of its failure."""


def unscored_samples(row: Mapping[str, Any], where: str, called: str) -> RowSamples:
    """The samples of a row that does not have scores of this name yet.

    Args:
        row: Columns by name.
        where: What an error message calls the row.
        called: What scores are called (`RowSamples.columns`).

    Raises:
        DataError: The row has no samples, or a column that its score would replace.
    """
    samples = row_samples(row, where)
    for name in samples.columns([None] * len(samples.names), called):
        if any(column == name or column.startswith(f"{name}/") for column in row):
            raise DataError(
                f"{where}: it already has a column {name!r}, which its score would replace. Name another with --column, such as "
                "--column reward."
            )
    return samples


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that follow each other and are scored in one call.

    Args:
        first: The number of its first row, from 1.
        rows: Columns by name.
        samples: Those of each row; None where its scores are known from an earlier run.
    """

    first: int
    rows: list[Mapping[str, Any]]
    samples: list[tuple[Sample, ...]] | None

    @property
    def last(self) -> int:
        """The number of its last row."""
        return self.first + len(self.rows) - 1


class ScoredGroups:
    """The groups whose rows are scored, to refuse a row that comes later: it would be compared without them.

    Args:
        groups: How the reward groups samples.
    """

    def __init__(self, groups: RowGroups) -> None:
        self._groups = groups
        self._lasts: dict[tuple[str | None, str], int] = {}

    @property
    def keys(self) -> Iterable[tuple[str | None, str]]:
        """The groups, as `RowGroups.keys` names them."""
        return self._lasts

    def add(self, first: int, samples_of_rows: Iterable[tuple[Sample, ...]]) -> None:
        """Add the samples of rows that are scored, of which the first one has this number."""
        for number, samples in enumerate(samples_of_rows, start=first):
            self._lasts.update(dict.fromkeys(self._groups.keys(samples), number))

    def check(self, number: int, samples: tuple[Sample, ...]) -> None:
        """Refuse the samples of a row if others of their group are scored.

        Raises:
            DataError: They are; the message names both rows.
        """
        for column, key in self._groups.keys(samples):
            if (before := self._lasts.get((column, key))) is not None:
                what = "the same prompt" if column is None else f"the same {column!r}"
                raise DataError(
                    f"row {number} has {what} as row {before}, but other rows are between them, and the reward compares the samples of a "
                    "group. Sort the rows, so that those of a group follow each other, or put the completions of a prompt into one row, as "
                    "the list 'completions'."
                )


def planned_blocks(
    rows: Iterable[Mapping[str, Any]],
    samples_of: SamplesOf,
    size: int,
    *,
    unit: Literal["rows", "samples"],
    first: int = 1,
    groups: RowGroups = ALONE,
    known: Mapping[int, int] | None = None,
    scored: ScoredGroups | None = None,
) -> Iterator[Block]:
    """Divide rows into the blocks in which they are scored. The same rows and arguments always give the same blocks.

    Args:
        rows: Columns by name; they are read as the blocks are asked for.
        samples_of: The samples of a row.
        size: The size of a block, which ends with the row that reaches it.
        unit: What `size` counts.
        first: The number of the first row.
        groups: How the reward groups samples. A block is extended to whole groups: rows that follow each other and have samples of one
            group are in one block.
        known: Blocks that are scored already, by the number of their first row, with their number of rows. They are returned without
            samples, and the rows between them are divided.
        scored: The groups of the rows before `first`.

    Raises:
        DataError: Rows of a group do not follow each other, and were divided.
    """
    scored = scored or ScoredGroups(groups)
    known = known or {}
    batch: list[Mapping[str, Any]] = []
    samples: list[tuple[Sample, ...]] = []
    count = 0
    start, rest = first, 0  # rows that are still missing in a known block
    for number, row in enumerate(rows, start=first):
        if rest or number in known:
            if not rest:
                if batch:
                    scored.add(start, samples)
                    yield Block(start, batch, samples)
                batch, samples, count, start = [], [], 0, number
                rest = known[number]
            if groups:
                scored.add(number, [samples_of(row, f"row {number}")])
            batch.append(row)
            rest -= 1
            if not rest:
                yield Block(start, batch, None)
                batch, start = [], number + 1
            continue
        of_row = samples_of(row, f"row {number}")
        if count >= size and not groups.join(samples[-1], of_row):
            scored.add(start, samples)
            yield Block(start, batch, samples)
            batch, samples, count, start = [], [], 0, number
        scored.check(number, of_row)
        batch.append(row)
        samples.append(of_row)
        count += len(of_row) if unit == "samples" else 1
        if count >= size and not groups:
            yield Block(start, batch, samples)
            batch, samples, count, start = [], [], 0, number + 1
    if batch:
        yield Block(start, batch, None if rest else samples)


def scored_batches(
    provider: Provider,
    rows: Iterable[Mapping[str, Any]],
    samples_of: SamplesOf,
    size: int,
    *,
    unit: Literal["rows", "samples"],
    first: int = 1,
    groups: RowGroups = ALONE,
    named: Callable[[str], str] = str,
) -> Iterator[tuple[list[ScoredRow], Mapping[str, Any]]]:
    """Score rows block by block: the rows of each block, and the metadata of its scores.

    Args:
        provider: The reward.
        rows: As for `planned_blocks`, like the other arguments.
        samples_of: See there.
        size: See there.
        unit: See there.
        first: See there.
        groups: See there.
        named: As for `scored_block`.

    Raises:
        RmPluginsError: The provider failed; the message begins with the rows.
    """
    for block in planned_blocks(rows, samples_of, size, unit=unit, first=first, groups=groups):
        yield scored_block(provider, block, groups, named)


def scored_block(
    provider: Provider, block: Block, groups: RowGroups = ALONE, named: Callable[[str], str] = str
) -> tuple[list[ScoredRow], Mapping[str, Any]]:
    """The rows of a block with their scores, and the metadata of the scores.

    Args:
        provider: The reward.
        block: With its samples.
        groups: How the reward groups samples.
        named: What an error message calls rows; its argument is such as ``row 3`` or ``rows 1 to 8``.

    Raises:
        RmPluginsError: The provider failed; the message begins with the rows.
    """
    of_rows = block.samples or []
    try:
        with groups.scoring(of_rows):
            scores = provider.score([sample for samples in of_rows for sample in samples])
    except RmPluginsError as error:
        of_samples = [number for number, samples in enumerate(of_rows, start=block.first) for _ in samples]
        failed = {of_samples[place] for place in error.rows or () if 0 <= place < len(of_samples)}
        raise plain_error(error, named(_rows_in_words(failed or set(of_samples)))) from error
    values = _or_none(scores.values)
    details = {name: _or_none(column) for name, column in scores.columns.items()}
    reasons = [str(scores.errors[place]) if place in scores.errors else None for place in range(len(scores))]
    rows, start = [], 0
    for row, samples in zip(block.rows, of_rows, strict=True):
        end = start + len(samples)
        of_row = {name: column[start:end] for name, column in details.items()}
        errors = reasons[start:end] if any(reasons[start:end]) else []
        rows.append(ScoredRow(row, values[start:end], of_row, errors))
        start = end
    return rows, scores.metadata


def _rows_in_words(rows: Collection[int]) -> str:
    """What messages call some rows.

    >>> _rows_in_words([3]), _rows_in_words([3, 4, 5, 6]), _rows_in_words([9, 3, 5, 7, 8])
    ('row 3', 'rows 3 to 6', 'rows 3, 5, 7 and 2 more')
    """
    first, last = min(rows), max(rows)
    if len(rows) == 1:
        return f"row {first}"
    if last - first + 1 == len(rows):
        return f"rows {first} to {last}"
    some = ", ".join(map(str, sorted(rows)[:3]))
    return f"rows {some}{f' and {len(rows) - 3} more' if len(rows) > 3 else ''}"


def _or_none(values: FloatArray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
