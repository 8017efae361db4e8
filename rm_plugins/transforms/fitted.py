"""Transforms that need statistics of the scores that they reshape, and where these come from."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from rm_plugins.component import Transform
from rm_plugins.data.row_files import is_data_file, read_rows
from rm_plugins.data.score_columns import columns_called
from rm_plugins.errors import DataError, SpecError
from rm_plugins.provider import Provider
from rm_plugins.scores import FloatArray

FEWEST_SCORES = 30
"""The fewest scores for statistics; with fewer, the standard error of a standard deviation is above 13%."""

SCORE_COLUMNS = columns_called("score")
"""The columns that ``rm-plugins score`` writes."""


class FittedTransform(Transform):
    """A transform that needs statistics of its provider's scores.

    What a spec leaves out comes from the file of scores that its `reference` names, else from the provider's manifest;
    ``rm-plugins calibrate`` measures them all and writes them into the spec. A subclass names its statistics, keeps each as an attribute
    that is None until it is known, implements `measure`, and calls `settle` before it uses them.
    """

    statistics: ClassVar[tuple[str, ...]]
    """The attributes, and the keys of its spec, that hold its statistics."""
    in_manifest: ClassVar[Mapping[str, str]] = {}
    """For each statistic, the attribute of the provider's `statistics` that has it."""
    reference: str | None = None
    """A file of scores, as `rm-plugins score` writes it, on which missing statistics are measured."""

    @abstractmethod
    def measure(self, values: FloatArray) -> dict[str, float]:
        """The statistics of scores.

        Args:
            values: float64 [N], at least one, none of them NaN.

        Raises:
            DataError: They cannot be measured on these scores.
        """

    def check(self) -> None:
        """Called when all statistics are known.

        Raises:
            SpecError: They are not valid, such as a standard deviation of 0.
        """

    def fit(self, values: FloatArray) -> dict[str, float]:
        """Measure the statistics on scores; they replace those that are known.

        Args:
            values: float64 [N], NaN where abstained, which does not count.

        Returns:
            The statistics, as its spec has them.

        Raises:
            DataError: There is no score, or they cannot be measured on these scores.
        """
        measured = self._measured(values)
        for name, value in measured.items():
            setattr(self, name, value)
        self.check()
        return measured

    def bind(self, provider: Provider) -> None:
        """Find the statistics that the spec leaves out.

        Raises:
            SpecError: They are unavailable.
        """
        self.settle(getattr(provider, "statistics", None), repr(provider.label))

    def settle(self, manifest: Any = None, called: str = "its provider") -> None:
        """Find the statistics that the spec leaves out, unless that has been done.

        Args:
            manifest: The statistics in the provider's manifest.
            called: What messages call the provider.

        Raises:
            SpecError: They are unavailable or not valid.
        """
        missing = [name for name in self.statistics if getattr(self, name) is None]
        if not missing:
            return
        known: Mapping[str, float] = {}
        if self.reference is not None:
            try:
                scores = scores_in_file(self.reference)
                self.check_scores(scores)
                known = self._measured(scores)
            except DataError as error:
                raise SpecError(str(error), key="reference") from error
        elif manifest is not None:
            known = {name: getattr(manifest, attribute) for name, attribute in self.in_manifest.items()}
        if any(name not in known for name in missing):
            needed = " and ".join(f"`{name}`" for name in self.statistics)
            lacks = f": {called} has no manifest with the statistics of its scores" if self.in_manifest else ""
            raise SpecError(
                f"{self.name} needs {needed}{lacks}. Give them, or a file of scores as `reference`, or let `rm-plugins calibrate` "
                "find them."
            )
        for name in missing:
            setattr(self, name, known[name])
        try:
            self.check()
        except SpecError as error:
            source = self.reference or f"the manifest of {called}"
            raise SpecError(f"{error.message} The missing statistics come from {source}.", key=error.key) from None

    def check_scores(self, values: FloatArray) -> None:
        """Refuse scores that are too few or all equal: `rm-plugins calibrate` and a `reference` need 30 that differ.

        Args:
            values: float64 [N], NaN where abstained.

        Raises:
            DataError: There are too few, or they are all equal.
        """
        scores = values[~np.isnan(values)]
        if 0 < len(scores) < FEWEST_SCORES:
            abstained = f" (and {len(values) - len(scores)} abstentions)" if len(scores) < len(values) else ""
            raise DataError(
                f"{self.name!r} needs at least {FEWEST_SCORES} scores for its statistics, and there are {len(scores)}{abstained}. Give "
                "more rows."
            )
        if len(scores):
            check_differing(scores, self.name)

    def _measured(self, values: FloatArray) -> dict[str, float]:
        scores = values[~np.isnan(values)]
        if not len(scores):
            raise DataError(f"There is no score to measure the statistics of {self.name!r} on, only {len(values)} abstentions.")
        return self.measure(scores)


def check_differing(scores: FloatArray, transform: str) -> None:
    """Refuse scores that are all equal; there must be at least one.

    Raises:
        DataError: All scores are equal.
    """
    if scores.min() == scores.max():
        raise DataError(f"All {len(scores)} scores are {scores[0]}: {transform} needs scores that differ.")


def scores_in_file(path: str) -> FloatArray:
    """The scores in a file that ``rm-plugins score`` wrote, float64 [N], NaN where it has null.

    Args:
        path: JSON Lines or Parquet.

    Raises:
        DataError: There is no such file, a row has no score, or a score is not a number.
    """
    if path == "-" or not is_data_file(path):
        raise DataError(
            f"{path!r} is not a file of scores; .jsonl and .parquet, as `rm-plugins score` writes them, are allowed."
        )
    scores: list[float] = []
    for number, row in enumerate(read_rows(path), start=1):
        columns = [row[name] for name in SCORE_COLUMNS if name in row]
        if not columns:
            raise DataError(
                f"{path}, row {number} has no scores (columns {', '.join(SCORE_COLUMNS)}); it has {', '.join(row)}. Score the file "
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
