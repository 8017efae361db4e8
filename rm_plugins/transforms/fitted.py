"""Transforms with statistics of the scores that they reshape, and where these come from."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from rm_plugins.data.row_files import is_data_file, read_rows
from rm_plugins.data.score_columns import columns_called
from rm_plugins.errors import DataError, SpecError
from rm_plugins.provider import Provider, Transform
from rm_plugins.scores import FloatArray

SCORE_COLUMNS = columns_called("score")
"""The columns that ``rm-plugins score`` writes."""


class FittedTransform(Transform):
    """A transform with statistics of its provider's scores.

    What a spec leaves out comes from the file of scores that its `reference` names, else from the provider's manifest;
    ``rm-plugins calibrate`` finds them all and writes them down. A subclass names its statistics, keeps each as an attribute that
    is None until it is known, says how they are measured, and calls `settle` before it uses them.
    """

    statistics: ClassVar[tuple[str, ...]]
    """The attributes, and the keys of its spec, that hold its statistics."""
    in_manifest: ClassVar[Mapping[str, str]] = {}
    """Statistic to the attribute of the provider's `statistics` that is the same."""
    reference: str | None = None
    """A file of scores, as `rm-plugins score` writes it, that what is left out is measured on."""

    @abstractmethod
    def measure(self, values: FloatArray) -> dict[str, float]:
        """The statistics of scores.

        Args:
            values: float64 [N], at least one, none of them NaN.

        Raises:
            DataError: These scores have none that could be used.
        """

    def check(self) -> None:
        """Called when all statistics are known.

        Raises:
            SpecError: They make no sense.
        """

    def fit(self, values: FloatArray) -> dict[str, float]:
        """Take the statistics of scores in place of whatever is known.

        Args:
            values: float64 [N], NaN where abstained, which does not count.

        Returns:
            The statistics, as its spec has them.

        Raises:
            DataError: There is no score, or none of them can be used.
        """
        measured = self._measured(values)
        for name, value in measured.items():
            setattr(self, name, value)
        self.check()
        return measured

    def bind(self, provider: Provider) -> None:
        """Find what the spec left out.

        Raises:
            SpecError: It is unavailable.
        """
        self.settle(getattr(provider, "statistics", None), repr(provider.label))

    def settle(self, manifest: Any = None, called: str = "its provider") -> None:
        """Find what the spec left out, where that has not been done.

        Args:
            manifest: The statistics in the provider's manifest.
            called: What messages call the provider.

        Raises:
            SpecError: It is unavailable, or makes no sense.
        """
        missing = [name for name in self.statistics if getattr(self, name) is None]
        if not missing:
            return
        known: Mapping[str, float] = {}
        if self.reference is not None:
            try:
                known = self._measured(scores_in_file(self.reference))
            except DataError as error:
                raise SpecError(str(error), key="reference") from error
        elif manifest is not None:
            known = {name: getattr(manifest, attribute) for name, attribute in self.in_manifest.items()}
        if any(name not in known for name in missing):
            needed = " and ".join(f"`{name}`" for name in self.statistics)
            lacks = f": {called} has no manifest with the statistics of its scores" if self.in_manifest else ""
            raise SpecError(
                f"{self.name} needs {needed}{lacks}. Give them, or a file of scores as `reference`, or have `rm-plugins calibrate` "
                "find them."
            )
        for name in missing:
            setattr(self, name, known[name])
        try:
            self.check()
        except SpecError as error:
            source = self.reference or f"the manifest of {called}"
            raise SpecError(f"{error.message} What was left out comes from {source}.", key=error.key) from None

    def _measured(self, values: FloatArray) -> dict[str, float]:
        scores = values[~np.isnan(values)]
        if not len(scores):
            raise DataError(f"There is no score to find the statistics of {self.name!r} in, only {len(values)} abstentions.")
        return self.measure(scores)


def scores_in_file(path: str) -> FloatArray:
    """The scores in a file that ``rm-plugins score`` wrote, float64 [N], NaN where it has null.

    Args:
        path: JSON Lines or Parquet.

    Raises:
        DataError: There is no such file, a row has no score, or a score is no number.
    """
    if path == "-" or not is_data_file(path):
        raise DataError(f"{path!r} is no file of scores; .jsonl and .parquet, as `rm-plugins score` writes them, are allowed.")
    scores: list[float] = []
    for number, row in enumerate(read_rows(path), start=1):
        columns = [row[name] for name in SCORE_COLUMNS if name in row]
        if not columns:
            raise DataError(
                f"{path}, row {number} has none of the columns {', '.join(SCORE_COLUMNS)}; it has {', '.join(row)}. Score the file "
                "with `rm-plugins score` first."
            )
        for column in columns:
            scores += [_score(score, f"{path}, row {number}") for score in (column if isinstance(column, list) else [column])]
    return np.array(scores, dtype=np.float64)


def _score(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
        raise DataError(f"{where} has the score {value!r:.80}; a finite number, or null for an abstention, is allowed.")
    return float(value)
