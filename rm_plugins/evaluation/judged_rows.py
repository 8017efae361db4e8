"""The rows of an evaluation as columns of numbers, without the texts."""

from __future__ import annotations

import hashlib
import logging
import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rm_plugins.data.answers import answers, question_key
from rm_plugins.data.judgements import Judgement, attribute_names, judgement
from rm_plugins.data.presets import ignored_verdicts, warning_of_ignored
from rm_plugins.data.ratings import mean_ratings
from rm_plugins.data.repeated_prompts import RepeatedPrompts
from rm_plugins.data.row_files import json_line
from rm_plugins.data.score_columns import COLUMN_SPEC, columns_called
from rm_plugins.errors import DataError, did_you_mean
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.bias import FORMAT_FEATURES, format_features

logger = logging.getLogger(__name__)

_LISTS = ("ranking", "ratings", "best-of", "labelled")

Cluster: TypeAlias = Literal["prompt", "row"]

SECTION_COLUMNS = ("section", "subset")
"""The columns that name a row's section by default: the first one that the data has."""


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """R rows with N samples and M pairs.

    Args:
        row: int [N], the row of each sample, ascending from 0.
        pairs: int [M, 2], the samples of winner and loser.
        ties: int [T, 2], samples that were judged to be equally good.
        features: int [N, F], the features of `FORMAT_FEATURES` of each answer, without what transcripts begin with in common.
        labels: float64 [N, A], the ratings or labels, NaN where missing.
        attributes: [A], their names.
        gold: float64 [N], how good a sample is known to be, the higher the better; NaN where it is not known but in pairs.
        gold_name: What `gold` is; empty where nothing is known, or where rows of several formats do not mean the same by it.
        section: int [R], the number of each row's section, -1 where it has none.
        sections: The names of the sections.
        cluster: int [R], equal where rows are not independent: those with the same prompt, or the same common beginning of transcripts.
            Where all have the same or none, each row is independent.
        clustered_by: The unit that counts as independent: ``prompt`` or ``row``.
        prompts: The number of different prompts.
        ids: [R], the rows' own ``id``, empty where they have none.
        compared: Of the rows that name them, the positions of the samples that a benchmark compares.
        formats: The number of rows of each format.
        digest: SHA-256 of the rows.
    """

    row: NDArray[np.intp]
    pairs: NDArray[np.intp]
    ties: NDArray[np.intp]
    features: NDArray[np.int64]
    labels: FloatArray
    attributes: tuple[str, ...]
    gold: FloatArray
    gold_name: str
    section: NDArray[np.intp]
    sections: tuple[str, ...]
    cluster: NDArray[np.intp]
    clustered_by: Cluster
    prompts: int
    ids: tuple[str, ...]
    compared: Mapping[int, tuple[tuple[int, int], ...]]
    formats: Mapping[str, int]
    digest: str

    @property
    def lengths(self) -> FloatArray:
        """float64 [N], the answers' lengths in characters."""
        return self.features[:, FORMAT_FEATURES.index("characters")].astype(np.float64)

    @property
    def longer(self) -> FloatArray:
        """float64 [M], by how many characters the winner of each pair is longer; negative where it is shorter."""
        lengths = self.lengths
        return np.asarray(lengths[self.pairs[:, 0]] - lengths[self.pairs[:, 1]], dtype=np.float64)

    @property
    def pair_row(self) -> NDArray[np.intp]:
        """int [M], the row of each pair."""
        return self.row[self.pairs[:, 0]]

    def samples(self) -> list[NDArray[np.intp]]:
        """The samples of every row, R arrays."""
        return np.split(np.arange(len(self.row)), np.flatnonzero(np.diff(self.row)) + 1)

    def lists(self) -> list[NDArray[np.intp]]:
        """The samples of every row that has several, all with known quality."""
        return [samples for samples in self.samples() if len(samples) > 1 and not np.isnan(self.gold[samples]).any()]

    def section_of(self, row: int) -> str:
        """The name of a row's section, empty where it has none."""
        number = self.section[row]
        return self.sections[number] if number >= 0 else ""


class RowCollector:
    """Takes rows one after the other, and keeps their numbers.

    Args:
        section: The column that names a row's section; one of `SECTION_COLUMNS` by default.
        by: The one attribute that rated samples are compared by; the mean of all by default.
        cluster: The unit that counts as independent: a prompt (or common beginning) with all its rows, or each row.
        recorded: What scores are called that the rows have already and that are evaluated (``column:score``): they do not judge a row.
    """

    def __init__(
        self, *, section: str | None = None, by: str | None = None, cluster: Cluster = "prompt", recorded: Sequence[str] = ()
    ) -> None:
        self._recorded = {column for name in recorded for column in columns_called(name.removeprefix(COLUMN_SPEC))}
        self._ignored: list[str] | None = None
        self._repeated = RepeatedPrompts()
        self._section_column = section
        self._by = by
        self._cluster = cluster
        self._row = array("q")
        self._pairs = array("q")
        self._ties = array("q")
        self._features = array("q")
        self._gold = array("d")
        self._labels: dict[str, array[float]] = {}
        self._section = array("q")
        self._sections: dict[str, int] = {}
        self._prompt = array("q")
        self._prompts: dict[bytes, int] = {}
        self._ids: list[str] = []
        self._compared: dict[int, tuple[tuple[int, int], ...]] = {}
        self._formats: Counter[str] = Counter()
        self._digest = hashlib.sha256()

    def judged(self, row: Mapping[str, Any], where: str) -> Judgement:
        """The judgement of a row, without adding the row.

        Raises:
            DataError: The row is in no format of `rm_plugins.data.judgements`, or lacks the column or attribute that was asked for.
        """
        try:
            if self._section_column is not None and self._section_column not in row:
                raise DataError(
                    f"there is no column {self._section_column!r} to name its section; it has {', '.join(map(repr, row)) or 'none'}."
                )
            judging = self._judging(row)
            judged = judgement(judging, reward=None if self._by is None or not attribute_names(judging) else {self._by: 1.0})
            if judging is row:
                return judged
            beside = {name: value for name, value in row.items() if name not in judging}  # a reward may read them
            samples = (replace(sample, columns={**sample.columns, **beside}) for sample in judged.samples)
            return replace(judged, samples=tuple(samples))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def add(self, row: Mapping[str, Any], judged: Judgement) -> None:
        """Add a row with its result of `judged`."""
        row = self._judging(row)
        if self._ignored is None and judged.format == "preference":
            self._ignored = ignored_verdicts(row)
            if self._ignored:
                logger.warning(warning_of_ignored(self._ignored))
        self._repeated.add(row)
        number, start, count = len(self._prompt), len(self._row), len(judged.samples)
        self._row.extend([number] * count)
        for winner, loser in judged.pairs:
            self._pairs.extend((start + winner, start + loser))
        for one, other in judged.ties:
            self._ties.extend((start + one, start + other))
        for text in answers(judged.samples)[1]:
            self._features.extend(format_features(text))
        columns = dict(zip(attribute_names(row), zip(*judged.labels, strict=True), strict=True)) if judged.labels else {}
        for name, values in columns.items():
            known = self._labels.setdefault(name, array("d", [math.nan] * start))
            known.extend(math.nan if value is None else value for value in values)
        for column in self._labels.values():
            column.extend([math.nan] * (start + count - len(column)))
        self._gold.extend(self._goodness(judged, columns))
        self._section.append(self._section_number(row))
        question = (
            question_key(judged.samples) or str(number).encode()
        )  # of unknown ones it is not known that they are the same
        self._prompt.append(self._prompts.setdefault(question, len(self._prompts)))
        self._ids.append("" if row.get("id") is None else str(row["id"]))
        if row.get("compared"):
            self._compared[number] = tuple((winner, loser) for winner, loser in row["compared"])
        self._formats[judged.format] += 1
        self._digest.update(json_line(row).encode())

    def _judging(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in row.items() if name not in self._recorded} if self._recorded else row

    def _goodness(self, judged: Judgement, columns: Mapping[str, Sequence[float | None]]) -> list[float]:
        if columns:
            rated = [values for values in columns.values() if any(value is not None for value in values)]
            wanted = rated or [*columns.values()]  # as `judgement` compares them
            if self._by is not None and judged.format == "ratings":
                wanted = [columns[self._by]]
            return mean_ratings(wanted)
        if judged.ranks is None or judged.format == "preference":
            return [math.nan] * len(judged.samples)
        return [float(rank == 0) if judged.format == "best-of" else -rank for rank in judged.ranks]

    def _section_number(self, row: Mapping[str, Any]) -> int:
        column = self._section_column or next((name for name in SECTION_COLUMNS if row.get(name) is not None), None)
        if column is None or row[column] is None:
            return -1
        return self._sections.setdefault(str(row[column]), len(self._sections))

    def collected(self) -> JudgedRows:
        """All rows that were taken.

        Raises:
            DataError: No row has the attribute by which samples are compared.
        """
        if self._by is not None and self._by not in self._labels:
            raise DataError(f"No row rates its answers by {self._by!r}. {did_you_mean(self._by, self._labels)}")
        if warning := self._repeated.warning:
            logger.warning(warning)
        by_prompt = self._cluster == "prompt" and len(self._prompts) > 1
        return JudgedRows(
            row=np.array(self._row, dtype=np.intp),
            pairs=np.array(self._pairs, dtype=np.intp).reshape(-1, 2),
            ties=np.array(self._ties, dtype=np.intp).reshape(-1, 2),
            features=np.array(self._features, dtype=np.int64).reshape(-1, len(FORMAT_FEATURES)),
            labels=np.array(list(self._labels.values()), dtype=np.float64).reshape(len(self._labels), len(self._row)).T,
            attributes=tuple(self._labels),
            gold=np.array(self._gold, dtype=np.float64),
            gold_name=self._gold_name(tuple(self._labels)),
            section=np.array(self._section, dtype=np.intp),
            sections=tuple(self._sections),
            cluster=np.array(self._prompt if by_prompt else range(len(self._prompt)), dtype=np.intp),
            clustered_by="prompt" if by_prompt else "row",
            prompts=len(self._prompts),
            ids=tuple(self._ids),
            compared=self._compared,
            formats=dict(self._formats),
            digest=self._digest.hexdigest(),
        )

    def _gold_name(self, attributes: Sequence[str]) -> str:
        kinds = [name for name in _LISTS if self._formats[name]]
        if len(kinds) != 1:
            return ""  # a mean of ranks and ratings would mean nothing
        if kinds[0] in ("ratings", "labelled"):
            return self._by or (attributes[0] if len(attributes) == 1 else f"mean of {len(attributes)} ratings")
        return {"best-of": "best", "ranking": "rank"}[kinds[0]]
