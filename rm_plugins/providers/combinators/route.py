"""A reward for each kind of sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rm_plugins.errors import DataError, RmPluginsError, ScoringError, SpecError, did_you_mean
from rm_plugins.function_code import function_facts
from rm_plugins.imported_function import imported
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import Combinator, failures_of, score_rows
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores

_SHOWN = 5
_FILE_ENDINGS = (".yaml", ".yml", ".json")


class Route(Combinator):
    """Scores each sample with the reward for its kind, and only with that one.

    Kinds are compared as text, as YAML writes them: ``true``, ``false``, ``null``, ``3``. `counts["route/NAME"]` and
    `counts["otherwise"]` count the samples of each route.

    Args:
        routes: Kinds, each with its reward.
        column: The dataset column that holds a sample's kind.
        by: Instead of a column, a function that returns a sample's kind, or ``module:function``.
        otherwise: The reward for every other kind; without it, another kind is an error.

    Raises:
        SpecError: There are no routes, or two of one name; both or neither of `column` and `by` are given; or `by` cannot be imported.
    """

    name: ClassVar[str] = "route"

    def __init__(
        self,
        *,
        routes: Mapping[str | int | bool | None, Provider],
        column: str | None = None,
        by: str | Callable[[Sample], Any] | None = None,
        otherwise: Provider | None = None,
    ) -> None:
        if (column is None) == (by is None):
            raise SpecError("give either `column`, a dataset column, or `by`, a function of a sample, to choose the route.")
        if not routes:
            raise SpecError("there are none; give each kind of sample its reward, {KIND: SPEC}.", key="routes")
        self.routes = {_text(kind): reward for kind, reward in routes.items()}
        if len(self.routes) < len(routes):
            raise SpecError(f"two have the same name: {', '.join(map(_text, routes))}.", key="routes")
        self.column = column
        self._imported_as = by if isinstance(by, str) else ""
        try:
            self.by = imported(by) if isinstance(by, str) else by
        except SpecError as error:
            raise SpecError(error.message, key="by") from error.__cause__
        self.otherwise = otherwise

    @property
    def identity(self) -> list[Any]:
        """Its settings, and the code of the function `by`."""
        settings, *others = super().identity
        if self.by is None:
            return [settings, *others]
        return [{**settings, "by": function_facts(self.by, self._imported_as)}, *others]

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Find each sample's route, and let every route score its own samples."""
        kinds, errors = self._kinds(samples)
        jobs = [
            _Job(name, "route", reward, [row for row, kind in kinds.items() if kind == name])
            for name, reward in self.routes.items()
        ]
        others = [row for row, kind in kinds.items() if kind not in self.routes]
        if self.otherwise is not None:
            jobs.append(_Job("otherwise", "", self.otherwise, others))
        elif others:
            unknown = sorted({repr(kinds[row]) for row in others})
            errors |= self._errors(
                others,
                f"{_counted(others, samples)} have a kind without a route: {_shown(unknown)}. "
                f"{did_you_mean(kinds[others[0]], self.routes)} Add a route for it, or the key `otherwise` for all such kinds.",
            )
        scored = score_rows(samples, [(job.reward, job.rows) for job in jobs])
        values = np.full(len(samples), np.nan)
        for job, scores in zip(jobs, scored, strict=True):
            self._counted(f"{job.kind}/{job.name}" if job.kind else job.name, len(job.rows))
            values[job.rows] = scores.values[job.rows]
        parts = {job.name: (job.reward, replace(scores, kind=job.kind)) for job, scores in zip(jobs, scored, strict=True)}
        return self.whole(values, parts, errors=failures_of(parts.values()) | errors)

    def _kinds(self, samples: Sequence[Sample]) -> tuple[dict[int, str], dict[int, RmPluginsError]]:
        """The kind of each sample by its row, and the error of each row that has none."""
        kinds: dict[int, str] = {}
        errors: dict[int, RmPluginsError] = {}
        if self.by is not None:
            for row, sample in enumerate(samples):
                try:
                    with self.one_thread:  # several threads may score here, and the function may not be safe for that
                        kind = self.by(sample)
                    kinds[row] = _text(kind)
                except Exception as error:  # a function of the user may raise anything
                    errors[row] = ScoringError(
                        f"The provider {self.called} failed: {type(error).__name__}: {error}", rows=[row]
                    ).caused_by(error)
            return kinds, errors
        column = str(self.column)
        without = [row for row, sample in enumerate(samples) if column not in sample.columns]
        if without:
            there = {name for sample in samples for name in sample.columns}
            errors = self._errors(
                without,
                f"{_counted(without, samples)} have no column {column!r}. "
                f"{did_you_mean(column, there) if there else 'The samples have no columns at all.'} Add the column to the dataset, or name "
                "another one in the spec.",
            )
        return {row: _text(sample.columns[column]) for row, sample in enumerate(samples) if row not in errors}, errors

    def _errors(self, rows: Sequence[int], message: str) -> dict[int, RmPluginsError]:
        key = "by" if self.column is None else "column"
        # `where` is the spec's file, followed by the path inside it unless that is empty.
        is_file = self.where.endswith(_FILE_ENDINGS) and ": " not in self.where
        where = f"{self.where}{': ' if is_file else '.' if self.where else ''}{key}"
        return DataError(f"{where}: the route {self.label!r} cannot score the batch: {message}", rows=rows).by_row


class _Job(NamedTuple):
    name: str
    kind: str
    reward: Provider
    rows: list[int]


def _text(kind: object) -> str:
    if kind is None:
        return "null"
    return str(kind).lower() if isinstance(kind, (bool, np.bool_)) else str(kind)


def _counted(rows: Sequence[int], samples: Sequence[Sample]) -> str:
    return f"{len(rows)} of {len(samples)} samples (items {_shown(rows)})"


def _shown(items: Sequence[object]) -> str:
    return ", ".join(f"{item!s:.40}" for item in items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")
