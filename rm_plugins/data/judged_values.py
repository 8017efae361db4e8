"""The values in the columns of judged rows: what each column allows, and errors that name the place of another value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

from rm_plugins.data.plain_values import plain_value
from rm_plugins.errors import DataError

NUMBER = "a finite number"
RATING = "a finite number, or null where it is missing,"
RANK = "a finite number, or null where it is unknown,"
WEIGHT = "a finite number of at least 0"
_FLAG = "true or false (1 or 0)"


def refused_value(value: Any, allowed: str, *path: str | int) -> DataError:
    """The error for a value at a path, which begins with its column; `allowed` says what the column may hold."""
    column, *inner = path
    where = f"{column!r}" + "".join(f"[{part!r}]" for part in inner)
    return DataError(f"{where} is {value!r:.80}; {allowed} is allowed.")


def only_value(value: Any) -> Any:
    """The single value of a column, which may be in a list, as TRL's data collator takes a margin."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def number_or_none(value: Any, allowed: str, *path: str | int) -> float | None:
    """A finite number; None for null and NaN.

    Raises:
        DataError: It is something else than `allowed` says.
    """
    if type(value) is not float:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
            raise refused_value(value, allowed, *path)
        try:
            value = float(value)
        except (OverflowError, ValueError):
            raise refused_value(value, allowed, *path) from None
    if math.isinf(value):
        raise refused_value(value, allowed, *path)
    return None if math.isnan(value) else value


def flag_value(value: Any, *path: str | int) -> float:
    """1.0 for true and 0.0 for false.

    Raises:
        DataError: It is neither.
    """
    if isinstance(value, bool):
        return 1.0 if value else 0.0
    if isinstance(value, (Real, Decimal)) and (value == 0 or value == 1):
        return float(value)
    raise refused_value(value, _FLAG, *path)


def one_each(value: Any, count: int, *path: str | int) -> Sequence[Any]:
    """A list with a value for each of `count` completions.

    Raises:
        DataError: It is not a list, or has another length.
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise refused_value(value, "a list with one value for each completion", *path)
    if len(value) != count:
        raise refused_value(value, f"one value for each of the {count} completions, not {len(value)},", *path)
    return value


def each_number(value: Any, allowed: str, count: int, *path: str | int) -> Sequence[float | None]:
    """A list with a `number_or_none` for each of `count` completions.

    Raises:
        DataError: It is not such a list.
    """
    return [number_or_none(number, allowed, *path, place) for place, number in enumerate(one_each(value, count, *path))]


def numbers_of(row: Mapping[str, Any], column: str, count: int) -> Sequence[float | None]:
    """A column's numbers, one for each of `count`; empty where the row lacks the column, or `count` is 0.

    Args:
        row: Columns by name.
        column: A list of finite numbers, null where one is missing; or a number alone where `count` is 1.
        count: How many there must be.

    Raises:
        DataError: The column has other values, or another number of them.

    >>> numbers_of({"confidence": [0.5, None]}, "confidence", 2)
    [0.5, None]
    """
    value = plain_value(row.get(column))
    if value is None or not count:
        return []
    if count == 1 and not isinstance(value, Sequence):
        return [number_or_none(value, NUMBER, column)]
    return each_number(value, RATING, count, column)
