"""What functions inside a reward log with TRL's hooks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from rm_plugins.processes import all_gathered


class InnerLogs:
    """Keeps what functions log while a batch is scored, and hands it to the trainer's hooks after the batch.

    Inside another provider a function may see some of the rows, or no row in this process. But TRL's table of completions needs a
    value for every row of the batch. Some versions of TRL also wait for ever if the processes log different metrics.

    Args:
        size: The rows of the batch, N.
    """

    def __init__(self, size: int) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._metrics: dict[str, list[float]] = {}
        self._size = size

    def log_extra_of(self, rows: Sequence[int]) -> Callable[[str, Iterable[Any]], None]:
        """TRL's ``log_extra`` for a function that scores some rows; the others get None."""
        return partial(self._log_extra, rows)

    def _log_extra(self, rows: Sequence[int], column: str, values: Iterable[Any]) -> None:
        values = list(values)
        if len(values) != len(rows):
            raise ValueError(f"log_extra({column!r}, ...) takes one value for each of the {len(rows)} rows, not {len(values)}")
        kept = self._columns.setdefault(column, [None] * self._size)
        for row, value in zip(rows, values, strict=True):
            kept[row] = value

    def log_metric(self, name: str, value: float) -> None:
        """TRL's ``log_metric``."""
        self._metrics.setdefault(name, []).append(float(value))

    def hand_on(self, log_metric: Callable[[str, float], None], log_extra: Callable[[str, list[Any]], None]) -> None:
        """Log everything, under the same names in all processes, each of which must call it."""
        gathered = all_gathered((list(self._columns), self._metrics), "what functions have logged")
        for column in sorted({column for columns, _ in gathered for column in columns}):
            log_extra(column, self._columns.get(column, [None] * self._size))
        for name in sorted({name for _, metrics in gathered for name in metrics}):
            log_metric(name, statistics.fmean(value for _, metrics in gathered for value in metrics.get(name, ())))
