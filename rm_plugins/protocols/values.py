"""Values on their way into a request and out of an answer."""

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
    """A value of a sample as JSON has it.

    Numbers and arrays of numpy become numbers and lists, dates their ISO text.

    Args:
        value: The value.
        what: What it is of, for the message: ``the column 'answer'``.
        remedy: What to do where it has no such form.

    Raises:
        DataError: It has no such form: an object, bytes, NaN.

    >>> json_form({"tags": ("a", "b"), "size": np.int64(3)}, "the column 'facts'")
    {'tags': ['a', 'b'], 'size': 3}
    """
    match value:
        case None | bool() | str() | int():
            return value
        case float() if math.isfinite(value):
            return float(value)  # for numpy's float64 is a float, too
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
        f"A sample cannot be sent, for {what} holds {value!r:.80} ({type(value).__name__}), which has no form in JSON. {remedy}"
    )


def numbers(column: object, size: int, what: str) -> list[float]:
    """One finite number per item, in the items' order.

    Args:
        column: What the answer has: a list of numbers, or of lists of one number each.
        size: The number of items.
        what: Where it stands, for the message.

    Raises:
        AnswerError: It is anything else.
        UnsupportedError: It has several numbers for each item.

    >>> numbers([[0.5], 2], 2, "rewards")
    [0.5, 2.0]
    """
    if not isinstance(column, list):
        raise AnswerError(f"{what} is {column!r:.80}; a list of {size} numbers was expected")
    if len(column) != size:
        raise AnswerError(f"{what} has {len(column)} entries for {size} items")
    if column and all(isinstance(entry, list) and len(entry) > 1 for entry in column):
        raise UnsupportedError(f"{what} has several numbers for each item, and a reward is one. Have the server give one.")
    alone = [entry[0] if isinstance(entry, list) and len(entry) == 1 else entry for entry in column]
    return [finite(entry, f"{what}[{row}]", row=row) for row, entry in enumerate(alone)]


def output_of_label(outputs: Sequence[Output], label: int | None, what: str, remedy: str) -> Output:
    """The output of a model that is the reward: the one of the label, or the only one.

    Raises:
        UnsupportedError: There is no such output, and would be none in the next answer.
    """
    if label is None and len(outputs) > 1:
        raise UnsupportedError(f"{what} has {len(outputs)} outputs, and which of them is the reward was not said{remedy}")
    if (label or 0) >= len(outputs):
        raise UnsupportedError(f"{what} has {len(outputs)} outputs and none with the label {label}; they are counted from 0")
    return outputs[label or 0]


def detail(column: object, size: int) -> list[float] | None:
    """One number per item where this is such a list, else None: what is said beside the rewards may be anything."""
    try:
        return numbers(column, size, "a detail")
    except (AnswerError, UnsupportedError):
        return None
