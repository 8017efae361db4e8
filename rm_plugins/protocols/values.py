"""Converts values for requests, and checks values in answers."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from rm_plugins.errors import AnswerError, DataError, UnsupportedError
from rm_plugins.protocols.protocol import finite

Output = TypeVar("Output")


def json_form(value: Any, what: str, remedy: str = "Convert it.") -> Any:
    """A value of a sample in a form that JSON can represent.

    numpy's numbers and arrays become numbers and lists, dates become ISO text.

    Args:
        value: The value.
        what: Where it comes from, for the message: ``the column 'answer'``.
        remedy: What to do if the value has no JSON form, for the message.

    Raises:
        DataError: The value has no JSON form: an object, bytes, NaN.

    >>> json_form({"tags": ("a", "b"), "size": np.int64(3)}, "the column 'facts'")
    {'tags': ['a', 'b'], 'size': 3}
    """
    match value:
        case None | bool() | str() | int():
            return value
        case float() if math.isfinite(value):
            return float(value)  # numpy's float64 is a subclass of float
        case np.datetime64():
            return str(value)
        case np.generic() | np.ndarray():
            return json_form(value.tolist(), what, remedy)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case Mapping() if all(isinstance(key, str) for key in value):
            return {key: json_form(part, what, remedy) for key, part in value.items()}
        case list() | tuple():
            return [json_form(part, what, remedy) for part in value]
    raise DataError(
        f"A sample cannot be sent: {what} holds {value!r:.80} ({type(value).__name__}), which JSON cannot represent. {remedy}"
    )


def numbers(column: object, size: int, what: str) -> list[float]:
    """One finite number per item, in the items' order.

    Args:
        column: A list of numbers, or of lists with one number each.
        size: The number of items.
        what: Its place in the answer, for the message.

    Raises:
        AnswerError: It has another form.
        UnsupportedError: It has several numbers for each item.

    >>> numbers([[0.5], 2], 2, "rewards")
    [0.5, 2.0]
    """
    if not isinstance(column, list):
        raise AnswerError(f"{what} is {column!r:.80}; a list of {size} numbers was expected")
    if len(column) != size:
        raise AnswerError(f"{what} has {len(column)} entries for {size} items")
    if column and all(isinstance(entry, list) and len(entry) > 1 for entry in column):
        raise UnsupportedError(
            f"{what} has several numbers for each item, but a reward is one number. Configure the server to return one."
        )
    flat = [entry[0] if isinstance(entry, list) and len(entry) == 1 else entry for entry in column]
    return [finite(entry, f"{what}[{row}]", row=row) for row, entry in enumerate(flat)]


def output_of_label(outputs: Sequence[Output], label: int | None, what: str, remedy: str) -> Output:
    """The output of a model that is the reward: the one with the label, or the only one.

    Raises:
        UnsupportedError: There is no such output, and later answers will not have one either.
    """
    if label is None and len(outputs) > 1:
        raise UnsupportedError(f"{what} has {len(outputs)} outputs; `label` must choose one as the reward{remedy}")
    if (label or 0) >= len(outputs):
        raise UnsupportedError(f"{what} has {len(outputs)} outputs, so there is no label {label}; labels are counted from 0")
    return outputs[label or 0]


def detail(column: object, size: int) -> list[float] | None:
    """One number per item, or None if the column has another form: servers may send anything beside the rewards."""
    try:
        return numbers(column, size, "a detail")
    except (AnswerError, UnsupportedError):
        return None
