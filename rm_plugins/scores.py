"""What a provider says of a batch of samples: `Scores`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rm_plugins.errors import ScoringError

__all__ = ["FloatArray", "Scores", "merged", "rows_of_batch"]

FloatArray: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """What a provider says of a batch of N samples.

    Args:
        values: float64 [N], one reward per sample, NaN where the provider abstains.
        details: Named per-sample extras, each float64 [N]: member scores, spread.
        metadata: Facts about the batch as a whole, such as how many samples were truncated.
        failed: bool [N], where there is no score because of a failure, not because the provider abstained by its own choice;
            nowhere by default. `Provider.score` fills it in.
    """

    values: FloatArray
    details: Mapping[str, FloatArray] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    failed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_), repr=False)

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        if values.ndim != 1:
            raise ScoringError(f"Scores need one value per sample, [N]; got an array of shape {values.shape}.")
        details = {name: np.asarray(column, dtype=np.float64) for name, column in self.details.items()}
        for name, column in details.items():
            if column.shape != values.shape:
                raise ScoringError(f"The detail {name!r} has shape {column.shape}; {values.shape} was expected.")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "details", details)
        if not len(self.failed):
            object.__setattr__(self, "failed", np.zeros(len(values), dtype=np.bool_))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """bool [N]: where the provider gave no reward."""
        return np.isnan(self.values)

    def scattered(self, rows: Sequence[int], size: int) -> Scores:
        """These scores at positions `rows` of a batch of `size`, abstaining everywhere else."""

        def spread(column: FloatArray) -> FloatArray:
            out = np.full(size, np.nan)
            out[list(rows)] = column
            return out

        details = {name: spread(column) for name, column in self.details.items()}
        failed = np.zeros(size, dtype=np.bool_)
        failed[list(rows)] = self.failed
        return Scores(spread(self.values), details, self.metadata, failed)


@contextmanager
def rows_of_batch(rows: Sequence[int]) -> Iterator[None]:
    """Have an error name its rows as those of the batch, of which `rows` are scored inside."""
    try:
        yield
    except ScoringError as error:
        named = [row for place, row in enumerate(rows) if error.rows is None or place in error.rows] or rows
        raise ScoringError(str(error), rows=[int(row) for row in named]) from error


def merged(parts: Sequence[Scores]) -> Scores:
    """Scores of disjoint rows of one batch laid over each other."""

    def first(columns: Sequence[FloatArray]) -> FloatArray:
        out = columns[0]
        for column in columns[1:]:
            out = np.where(np.isnan(out), column, out)
        return out

    names = dict.fromkeys(name for part in parts for name in part.details)
    details = {name: first([part.details[name] for part in parts if name in part.details]) for name in names}
    metadata: dict[str, Any] = {}
    for part in parts:
        metadata.update(part.metadata)
    failed = np.any([part.failed for part in parts], axis=0)
    return Scores(first([part.values for part in parts]), details, metadata, failed)
