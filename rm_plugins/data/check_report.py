"""The report of a check of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rm_plugins.data.judgements import DataFormat


@dataclass(frozen=True, slots=True)
class Example:
    """A row with a problem.

    Args:
        source: The file or dataset that the row is in.
        row: Its number there, from 1; a line that is not a row counts too.
        text: What is wrong, with an excerpt.
    """

    source: str
    row: int
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A kind of problem, and how many rows have it.

    Args:
        kind: Its name, in kebab case.
        is_error: Whether training would fail; otherwise it would only be worse.
        count: The number of rows; 0 if the problem is not about single rows.
        description: The sentence about the rows, after "N rows".
        examples: The first rows, at most three; for malformed rows, the first with each fault.
    """

    kind: str
    is_error: bool
    count: int
    description: str
    examples: tuple[Example, ...] = ()


@dataclass(slots=True)
class SourceCounts:
    """What a file or dataset holds.

    Args:
        name: Its name.
        rows: The rows, malformed ones included.
        samples: The texts to score in the other rows.
        pairs: Comparisons with a winner.
        ties: Comparisons without a winner.
        formats: Number of rows, by format.
    """

    name: str
    rows: int = 0
    samples: int = 0
    pairs: int = 0
    ties: int = 0
    formats: dict[DataFormat, int] = field(default_factory=dict)


@dataclass(slots=True)
class AttributeSummary:
    """The ratings on one attribute (for labels, 1 is good and 0 is bad).

    Args:
        rated: The number of samples with a rating.
        missing: The number of samples without a rating, in rows that have the attribute.
        mean: The mean rating; None if there are none.
        lowest: The lowest rating; None if there are none.
        highest: The highest rating; None if there are none.
    """

    rated: int = 0
    missing: int = 0
    mean: float | None = None
    lowest: float | None = None
    highest: float | None = None

    def add(self, rating: float | None) -> None:
        """Add one sample's rating."""
        if rating is None:
            self.missing += 1
            return
        self.rated += 1
        if self.mean is None or self.lowest is None or self.highest is None:
            self.mean = self.lowest = self.highest = rating
            return
        self.mean += (rating - self.mean) / self.rated
        self.lowest, self.highest = min(self.lowest, rating), max(self.highest, rating)


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How often the longer of two samples wins.

    Args:
        pairs: The number of pairs of different lengths.
        longer_wins: The share of these pairs in which the longer sample wins.
        standard_error: The standard error of this share, with the pairs of one prompt as one cluster.
        equal: The number of pairs of equal length, which are left out.
    """

    pairs: int
    longer_wins: float
    standard_error: float
    equal: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """The result of a `DataCheck`.

    Args:
        sources: What each file or dataset holds.
        attributes: The ratings and labels, by attribute.
        unit: What lengths are counted in.
        max_length: The limit for rows; None for no limit.
        lengths: Quantiles of the lengths of samples, prompt and completion together; empty where there are none.
        length_bias: How often the longer sample wins; None where no pair has different lengths.
        problems: What is wrong, errors first.
    """

    sources: tuple[SourceCounts, ...]
    attributes: Mapping[str, AttributeSummary]
    unit: str
    max_length: int | None
    lengths: Mapping[str, int]
    length_bias: LengthBias | None
    problems: tuple[Problem, ...]

    @property
    def is_trainable(self) -> bool:
        """Whether there is no error."""
        return not any(problem.is_error for problem in self.problems)
