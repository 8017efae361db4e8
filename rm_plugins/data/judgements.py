"""Dataset rows as judgements: the texts of a row, and which of them are better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rm_plugins.data.judged_values import (
    NUMBER,
    RANK,
    RATING,
    WEIGHT,
    each_number,
    flag_value,
    number_or_none,
    one_each,
    only_value,
    refused_value,
)
from rm_plugins.data.plain_values import plain_row
from rm_plugins.data.presets import proposed_mapping
from rm_plugins.data.ratings import weighted_means
from rm_plugins.data.rows import completion_samples, preference_samples
from rm_plugins.errors import DataError
from rm_plugins.samples import Sample

DataFormat: TypeAlias = Literal["preference", "ranking", "ratings", "best-of", "labelled"]

_OF_COMPLETIONS: Mapping[str, DataFormat] = {
    "ranks": "ranking",
    "scores": "ratings",
    "best": "best-of",
    "labels": "labelled",
}
_OF_ONE_COMPLETION: Mapping[str, DataFormat] = {"score": "ratings", "scores": "ratings", "label": "labelled"}
_OF_ONE_VALUE = ("best", "score", "label")
_UNJUDGED = {
    "prompt",
    "completion",
    "completions",
    "messages",
    "chosen",
    "rejected",
    "tools",
    "chat_template_kwargs",
    "weight",
    "id",
}
"""Columns that say nothing of how good a completion is."""
_SCORED = (
    "Without a judgement, `rm-plugins score` scores completions, and `rm-plugins rank` compares those of a prompt by a reward."
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A dataset row to train on: n samples that answer one prompt, and how they compare.

    Args:
        format: Which format the row has.
        samples: The n samples.
        pairs: Positions of winner and loser of every comparison that the row implies.
        ties: Positions of samples that were judged equally good. Samples in neither `pairs` nor `ties` were not compared, equal
            ranks or not.
        ranks: Rank of each sample, 0 for the best, NaN where unknown; None where none are compared.
        labels: Ratings, or 0 and 1, of each sample, [n, attributes], None where missing; None where the row has none.
        margins: By how much each pair's winner should win; None where the row has no margin.
        weight: The row's weight in the loss.
    """

    format: DataFormat
    samples: tuple[Sample, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    ties: tuple[tuple[int, int], ...] = ()
    ranks: tuple[float, ...] | None = None
    labels: tuple[tuple[float | None, ...], ...] | None = None
    margins: tuple[float, ...] | None = None
    weight: float = 1.0


def attribute_names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the attributes that a row's samples are rated on.

    They are the keys of its ratings, in their order; ``score`` where the ratings are plain numbers; ``label`` where it has
    labels; and none for the other formats.

    Raises:
        DataError: The row has none of the formats of `judgement`, or its ratings are neither numbers nor mappings.

    >>> attribute_names({"completion": "4", "scores": {"helpful": 3, "brief": 5}})
    ('helpful', 'brief')
    """
    row = plain_row(row)
    form, column = _verdict(row)
    if form == "ratings":
        return tuple(_attributes(row[column], column))
    return ("label",) if form == "labelled" else ()


def judgement(row: Mapping[str, Any], attributes: Sequence[str] = (), reward: Mapping[str, float] | None = None) -> Judgement:
    """What a row says of its samples.

    A row has one of these formats; ``prompt`` is text or messages, and may be absent:

    - preference: ``chosen`` and ``rejected``, with any other columns; optionally ``tie`` (true: equally good) and ``margin``;
    - ranking: ``completions`` and ``ranks``, the smaller the better, null for unknown;
    - ratings: ``completions`` and ``scores`` (numbers, mappings of attribute to number, or one mapping of attribute to numbers),
      or ``completion`` with ``score`` or a mapping of ``scores``; null for missing;
    - best-of: ``completions`` and ``best``, the position of the best one;
    - labelled: ``completions`` and ``labels``, or ``completion`` and ``label``: true (1) for good, false (0) for bad. Two
      samples with one label do not tie, because a label says good or bad and not how good.

    ``messages`` may replace prompt and completion, and any row may have a ``weight``. A null column counts as absent. Values may be
    anything that `plain_value` takes, and a single value may be given as a list of one.

    Ratings compare samples by the weighted mean of their attributes; an attribute on which the row rates no sample does not count.
    A sample whose rating on an attribute of that mean is missing is not compared, and has no rank.

    Args:
        row: Columns by name.
        attributes: The columns of `Judgement.labels`; `attribute_names` of the row by default. Others are left out.
        reward: Weight in the mean, by attribute; by default equal for all attributes that the row rates.

    Raises:
        DataError: The row has none of these formats or several, a value is not what its column allows, or `reward` weighs
            what is not among the attributes or nothing at all.

    >>> ranking = judgement({"prompt": "2+2?", "completions": ["4", "5", "four"], "ranks": [1, 2, 1]})
    >>> ranking.pairs, ranking.ties, ranking.ranks
    (((0, 1), (2, 1)), ((0, 2),), (0.0, 1.0, 0.0))
    """
    row = plain_row(row)
    form, column = _verdict(row)
    weight = weight_of(row)
    if form == "preference":
        return _preference(row, weight)
    samples, verdict = completion_samples(row), only_value(row[column]) if column in _OF_ONE_VALUE else row[column]
    if form == "ranking":
        return _compared(form, samples, each_number(verdict, RANK, len(samples), column), weight)
    if form == "best-of":
        return _compared(form, samples, _best_first(verdict, len(samples)), weight, has_ties=False)
    count = len(samples) if row.get("completions") is not None else None
    if form == "labelled":
        flags = _flags(verdict, column, count)
        labels = tuple(tuple(flag if name == "label" else None for name in attributes or ("label",)) for flag in flags)
        return _compared(form, samples, _larger_first(flags), weight, labels, has_ties=False)
    return _ratings(samples, _rating_columns(verdict, column, count), attributes, reward, weight)


def weight_of(row: Mapping[str, Any]) -> float:
    """The weight of a row in the loss: its column ``weight``, a finite number of at least 0; 1 without.

    Raises:
        DataError: It is something else.
    """
    weight = only_value(row.get("weight"))
    if weight is None:
        return 1.0
    number = number_or_none(weight, WEIGHT, "weight")
    if number is None or number < 0:
        raise refused_value(row["weight"], WEIGHT, "weight")
    return number


def _verdict(row: Mapping[str, Any]) -> tuple[DataFormat, str]:
    """The format of a row, and the column that judges its samples."""
    listed = row.get("completions") is not None
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return "preference", "chosen"
    columns = _OF_COMPLETIONS if listed else _OF_ONE_COMPLETION
    given = [name for name in columns if row.get(name) is not None]
    alone = row.get("completion") is not None or (row.get("prompt") is None and row.get("messages") is not None)
    if not given or not (listed or alone):
        raise _unjudged(row, listed, alone)
    if len(given) > 1:
        raise DataError(
            f"there are both {given[0]!r} and {given[1]!r}; only one of them can judge a row's samples. Drop or rename the other."
        )
    return columns[given[0]], given[0]


def _unjudged(row: Mapping[str, Any], listed: bool, alone: bool) -> DataError:
    """Why a row has no format."""
    if listed or alone:
        other = {"score": "scores", "label": "labels"} if listed else {"labels": "label"}
        for name in ("score", "label", "labels", "ranks", "best"):
            if row.get(name) is not None and name in other:
                what = "completions" if listed else "one completion"
                return DataError(f"there is {name!r}; {what} must be judged by {other[name]!r}. Rename it.")
            if row.get(name) is not None:
                return DataError(f"there is {name!r}, which needs a list of 'completions'; the row has a single one.")
    absent = [name for name in ("chosen", "rejected") if row.get(name) is None]
    preset = proposed_mapping(row)
    if preset:
        hint = f"Map its columns with --map '{preset}'."
    elif (listed or alone) and not row.keys() - _UNJUDGED:
        hint = _SCORED
    else:
        hint = "Rename columns with --map OLD=NEW, where NEW is one of these names."
        hint += f" {_SCORED}" if listed or alone else ""
    return DataError(
        f"there is {'nothing judged' if len(absent) != 1 else f'no {absent[0]!r}'}; the row has the columns "
        f"{', '.join(map(repr, row)) or 'none'}. A row to train on or to evaluate has one of these: 'chosen' and 'rejected', or "
        f"'completions' with 'ranks', 'scores', 'best' or 'labels', or 'completion' or 'messages' with 'score', 'scores' or 'label'. {hint}"
    )


# --- The formats ----------------------------------------------------------------------------------------------------------


def _preference(row: Mapping[str, Any], weight: float) -> Judgement:
    samples = preference_samples(row)
    margin, tie = only_value(row.get("margin")), only_value(row.get("tie"))
    if margin is not None and (margin := number_or_none(margin, NUMBER, "margin")) is None:
        raise refused_value(row["margin"], NUMBER, "margin")
    if tie is not None and flag_value(tie, "tie"):
        if margin:
            raise DataError(f"'tie' is true and 'margin' is {margin!r}; equally good samples have no margin.")
        return Judgement("preference", samples, ties=((0, 1),), ranks=(0.0, 0.0), weight=weight)
    margins = None if margin is None else (margin,)
    return Judgement("preference", samples, ((0, 1),), ranks=(0.0, 1.0), margins=margins, weight=weight)


def _compared(
    form: DataFormat,
    samples: tuple[Sample, ...],
    order: Sequence[float | None],
    weight: float,
    labels: tuple[tuple[float | None, ...], ...] | None = None,
    *,
    has_ties: bool = True,
) -> Judgement:
    """Samples of which the one with the smaller number wins; those with None are not compared."""
    pairs, ties = _comparisons(order)
    ties = ties if has_ties else ()
    return Judgement(form, samples, pairs, ties, _dense(order) if pairs or ties else None, labels, weight=weight)


def _best_first(verdict: Any, count: int) -> list[float]:
    allowed = f"the position of a completion, a whole number from 0 to {count - 1},"
    best = number_or_none(verdict, allowed, "best")
    if best is None or best not in range(count):
        raise refused_value(verdict, allowed, "best")
    return [0.0 if place == best else 1.0 for place in range(count)]


def _larger_first(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else -value for value in values]


def _flags(verdict: Any, column: str, count: int | None) -> list[float | None]:
    """The label of each sample; `count` is None if the row has a single completion."""
    if count is None:
        return [flag_value(verdict, column)]
    labels = enumerate(one_each(verdict, count, column))
    return [None if label is None else flag_value(label, column, place) for place, label in labels]


def _ratings(
    samples: tuple[Sample, ...],
    ratings: Mapping[str, Sequence[float | None]],
    attributes: Sequence[str],
    reward: Mapping[str, float] | None,
    weight: float,
) -> Judgement:
    if attributes:
        missing: list[float | None] = [None] * len(samples)
        ratings = {name: ratings.get(name, missing) for name in attributes}
    order = _larger_first(weighted_means(ratings, reward))
    return _compared("ratings", samples, order, weight, tuple(zip(*ratings.values(), strict=True)))


def _rating_columns(verdict: Any, column: str, count: int | None) -> dict[str, Sequence[float | None]]:
    """The ratings on each attribute, one per sample; `count` is None if the row has a single completion."""
    if count is None:
        if column == "score":
            return {"score": [number_or_none(verdict, NUMBER, column)]}
        if not isinstance(verdict, Mapping):
            raise refused_value(verdict, "a mapping of attribute to number, or a number as 'score',", column)
        return {name: [number_or_none(verdict[name], RATING, column, name)] for name in _attributes(verdict, column)}
    names = _attributes(verdict, column)
    if isinstance(verdict, Mapping):
        return {
            name: [None] * count if verdict[name] is None else each_number(verdict[name], RATING, count, column, name)
            for name in names
        }
    ratings = one_each(verdict, count, column)
    if not any(isinstance(rating, Mapping) for rating in ratings):
        return {"score": each_number(ratings, RATING, count, column)}
    absent: Mapping[str, Any] = {}
    mappings = [absent if rating is None else rating for rating in ratings]
    return {
        name: [number_or_none(rating.get(name), RATING, column, place, name) for place, rating in enumerate(mappings)]
        for name in names
    }


def _attributes(verdict: Any, column: str) -> list[str]:
    """The names of the attributes in a row's ratings."""
    if isinstance(verdict, Mapping):
        mappings = [verdict]
    elif isinstance(verdict, Sequence) and any(isinstance(rating, Mapping) for rating in verdict):
        mappings = [rating for rating in verdict if rating is not None]
        for place, rating in enumerate(verdict):
            if not (rating is None or isinstance(rating, Mapping)):
                raise refused_value(rating, "a mapping of attribute to number, as the others are,", column, place)
    else:
        return ["score"]
    names = list(dict.fromkeys(name for rating in mappings for name in rating))
    if not names or not all(isinstance(name, str) for name in names):
        raise refused_value(verdict, "at least one attribute, named by text,", column)
    return names


# --- Comparisons ----------------------------------------------------------------------------------------------------------


def _comparisons(order: Sequence[float | None]) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Pairs of winner and loser, and ties, where the smaller number wins and None is not compared."""
    known = [(place, value) for place, value in enumerate(order) if value is not None]
    pairs: list[tuple[int, int]] = []
    ties: list[tuple[int, int]] = []
    for start, (one, value) in enumerate(known, start=1):
        for other, beside in known[start:]:
            if value == beside:
                ties.append((one, other))
            else:
                pairs.append((one, other) if value < beside else (other, one))
    return tuple(pairs), tuple(ties)


def _dense(order: Sequence[float | None]) -> tuple[float, ...]:
    """Ranks 0, 1, 2 and so on, NaN for None."""
    ranks = {value: float(rank) for rank, value in enumerate(sorted({value for value in order if value is not None}))}
    return tuple(math.nan if value is None else ranks[value] for value in order)
