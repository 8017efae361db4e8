"""Scores in the columns of rows: of a published file, or written by ``rm-plugins score``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rm_plugins.errors import DataError

COLUMN_SPEC = "column:"
"""The prefix of a spec that names a column of scores instead of a reward to run."""


def columns_called(name: str) -> tuple[str, ...]:
    """The columns that may hold scores called `name`: of one sample or all, of a list, and of a pair.

    >>> columns_called("score")
    ('score', 'scores', 'chosen_score', 'rejected_score')
    """
    return (name, f"{name}s", f"chosen_{name}", f"rejected_{name}")


def column_scores(row: Mapping[str, Any], name: str, count: int, where: str) -> list[float | None]:
    """A row's scores, one for each of its completions; true is 1, false is 0, null and NaN are unknown.

    Args:
        row: Columns by name.
        name: What the scores are called (`columns_called`).
        count: How many completions there are.
        where: What an error message calls the row.

    Raises:
        DataError: There is not one number per completion, or one is infinite.

    >>> column_scores({"chosen": "4", "rejected": "5", "chosen_score": 2, "rejected_score": None}, "score", 2, "row 1")
    [2.0, None]
    """
    column, value = _scores_of(row, name)
    values = value if isinstance(value, list) else [None] * count if value is None else [value]
    numbers = [_number(number) for number in values]
    if len(values) != count or None in numbers:
        raise DataError(
            f"{where}: the column {column!r} has {value!r:.80}; as a reward it must have a number, true or false for each of "
            f"the {count} completion{'s' if count != 1 else ''}, null where it is unknown."
        )
    if any(number is not None and math.isinf(number) for number in numbers):
        raise DataError(
            f"{where}: the column {column!r} has {value!r:.80}; a reward must be finite, or null where it is unknown."
        )
    return [None if number is None or math.isnan(number) else number for number in numbers]


def _scores_of(row: Mapping[str, Any], name: str) -> tuple[str, Any]:
    """The column of a row's scores, and what it holds; None where there is none.

    In a row with ``chosen`` and ``rejected``, a list is refused, because it does not name the answer of each score.
    """
    one, several, *pair = columns_called(name)
    if row.get("chosen") is not None and row.get("rejected") is not None:
        if (listed := next((column for column in (one, several) if isinstance(row.get(column), list)), None)) is not None:
            raise DataError(
                f"{listed!r} is a list, but the row has 'chosen' and 'rejected'. Put their scores into {' and '.join(map(repr, pair))}."
            )
        return " and ".join(pair), [row.get(side) for side in pair]
    return next(((column, row[column]) for column in (one, several) if row.get(column) is not None), (one, None))


def has_scores(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a column of scores called `name`, null or not."""
    return any(column in row for column in columns_called(name))


def _number(value: Any) -> float | None:
    """NaN for null, None for what is not a number; numbers in text are read, as CSV has them."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return float(value.lower() == "true")
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return None
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
