"""Benchmarks of rewards: their rows, their rules and their results."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from rm_plugins.component import Component
from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.row_files import read_rows
from rm_plugins.errors import DataError, RmPluginsError
from rm_plugins.result_table import ResultTable, ShownAsTable
from rm_plugins.scores import FloatArray


@dataclass(frozen=True, slots=True)
class SuiteItem:
    """A scored row of a benchmark.

    Args:
        id: The row's ``id``, empty where it has none.
        section: The row's ``section``.
        scores: float64 [n], the rewards of its samples in their order; NaN where the reward abstained.
        labels: float64 [n], 1 for a right and 0 for a wrong sample; of a pair, [1, 0].
        compared: Positions of a right and of a wrong sample: the row's ``compared``, where a benchmark compares some pairs only.
    """

    id: str
    section: str
    scores: FloatArray
    labels: FloatArray
    compared: tuple[tuple[int, int], ...] = ()

    @property
    def abstained(self) -> bool:
        """Whether the reward abstained on one of its samples."""
        return bool(np.isnan(self.scores).any())

    @property
    def judged_scores(self) -> FloatArray:
        """float64 [n], the scores; where the reward abstained on a sample, those of the worst reward: wrong above right.

        So the row counts as wrong under every benchmark's rule.
        """
        return -self.labels if self.abstained else self.scores

    @property
    def is_right(self) -> bool:
        """Whether every right sample scores strictly higher than every wrong one."""
        scores, right = self.judged_scores, self.labels == 1
        return bool(scores[right].min() > scores[~right].max())


@dataclass(frozen=True, slots=True)
class SuiteSection:
    """The score of one section.

    Args:
        name: As the benchmark calls it.
        score: From 0 to 1 unless the benchmark has another scale; NaN where no row of it was evaluated.
        weight: Of the section in the benchmark's score, all of them together 1; 0 where it is shown only.
        items: The number of its rows.
        parts: The scores of its subsets, by name.
    """

    name: str
    score: float
    weight: float
    items: int
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SuiteTable:
    """A table of figures that a benchmark reports.

    Args:
        title: What it shows.
        rows: The names of R rows.
        columns: The names of C columns.
        values: [R, C], NaN where there is none.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, repr=False)
class SuiteResult(ShownAsTable):
    """The result of a reward by a benchmark's own rule.

    Part of a benchmark has section scores only: the score is NaN if a section with a weight has no rows, so that the score of a part is
    never mistaken for the benchmark's.

    Args:
        name: The benchmark.
        rule: How it scores, in one or two sentences.
        score: Its score, by which rewards are ranked; NaN if a section of the score is missing.
        sections: Its sections.
        figures: Further figures that it reports, by name.
        tables: Further tables.
        abstained: The number of rows with a sample on which the reward abstained; each counts as wrong.
    """

    name: str
    rule: str
    score: float
    sections: tuple[SuiteSection, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    tables: tuple[SuiteTable, ...] = ()
    abstained: int = 0

    def _table(self) -> ResultTable:
        rows = [
            ("Score", f"{self.score:.3g}", "", ""),
            *((part.name, f"{part.score:.3g}", f"{part.items:,}", f"{part.weight:.3g}") for part in self.sections),
            *((name, f"{value:.3g}", "", "") for name, value in self.figures.items()),
        ]
        notes = [self.rule]
        if self.abstained:
            notes.append(f"{self.abstained:,} rows have a sample without a reward and count as wrong.")
        return ResultTable(self.name, ("Section", "Score", "Rows", "Weight"), rows, notes)

    def _columns(self) -> dict[str, list[object]]:
        parts = self.sections
        return {
            "section": ["all", *(part.name for part in parts)],
            "score": [self.score, *(part.score for part in parts)],
            "rows": [sum(part.items for part in parts), *(part.items for part in parts)],
            "weight": [1.0, *(part.weight for part in parts)],
        }


class Suite(Component):
    """A benchmark of rewards: where its rows are, how to read them, and its scoring rule."""

    kind: ClassVar[str] = "suite"

    source: ClassVar[str | tuple[str, ...]]
    """Its dataset on the hub, or several."""
    split: ClassVar[str] = "test"
    """The split of that dataset."""
    rule: ClassVar[str]
    """How it scores, in one or two sentences."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Its datasets on the hub."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @abstractmethod
    def rows(self, raw: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The benchmark's rows in a format of `rm_plugins.data.judgements`, with ``section`` and ``id``; lazily.

        Right and wrong samples are ``chosen`` and ``rejected``, or ``completions`` with ``labels``, with ``compared`` where the
        benchmark compares some pairs only.

        Args:
            raw: The rows of its dataset.

        Raises:
            DataError: A row is not of this benchmark; the message names the missing column.
        """

    @abstractmethod
    def result(self, items: Sequence[SuiteItem]) -> SuiteResult:
        """What the benchmark's rule makes of scored rows.

        A row with a sample on which the reward abstained counts as wrong.

        Args:
            items: All rows that `rows` gave, in their order.
        """

    def scored(self, items: Sequence[SuiteItem], sections: Sequence[SuiteSection], **reported: Any) -> SuiteResult:
        """A result with the overall score of its sections.

        Args:
            items: All scored rows; abstentions are counted.
            sections: The sections.
            reported: Other fields of `SuiteResult`.
        """
        reported = {"score": overall_score(sections), "abstained": sum(item.abstained for item in items), **reported}
        return SuiteResult(self.name, self.rule, sections=tuple(sections), **reported)

    def checked_rows(self, raw: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """`rows`, with any failure in it as an error of ours.

        Raises:
            DataError: A row is not of this benchmark.
        """
        count = 0
        try:
            for row in self.rows(raw):
                count += 1
                yield row
        except RmPluginsError:
            raise
        except Exception as error:  # somebody else's suite may raise anything at all
            raise DataError(
                f"The suite {self.name!r} could not read the raw row after its row {count}: {type(error).__name__}: {error}. Is the data "
                f"of that benchmark ({self.source})?"
            ) from error

    def checked_result(self, items: Sequence[SuiteItem]) -> SuiteResult:
        """`result`, with any failure in it as an error of ours.

        Raises:
            DataError: The rule failed.
        """
        try:
            return self.result(items)
        except RmPluginsError:
            raise
        except Exception as error:
            raise DataError(
                f"The suite {self.name!r} could not score {len(items)} rows: {type(error).__name__}: {error}."
            ) from error

    def published(self, split: str = "", mapping: RowMapping | None = None) -> Iterator[dict[str, Any]]:
        """The rows of its dataset on the hub, as `rows` takes them; of several datasets, one after the other.

        The column ``dataset`` names the row's dataset.

        Args:
            split: Another split than the benchmark's usual one.
            mapping: How its columns become those that `rows` takes.

        Raises:
            DataError: A dataset cannot be loaded.
        """
        for source in self.sources:
            for row in read_rows(source, split or self.split, mapping=mapping):
                yield {"dataset": source, **row}


def mean(values: Iterable[float]) -> float:
    """The mean; NaN of no value.

    >>> mean([True, False]), mean([])
    (0.5, nan)
    """
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def overall_score(sections: Iterable[SuiteSection]) -> float:
    """The sum of weight times score; NaN where a section with a weight has no score."""
    return math.fsum(section.weight * section.score for section in sections if section.weight)
