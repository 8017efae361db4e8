"""Values of rows as plain Python, for every format of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_plugins.data.row_formats import without_nan

_PLAIN = frozenset({str, int, float, bool, type(None)})


def plain_value(value: Any) -> Any:
    """A value in which arrays, tensors and scalars of numpy and torch, at any depth, are replaced by lists, numbers and text.

    NaN in an array, a tensor or a numpy scalar becomes null, because datasets have no other null there. Plain values stay.

    Args:
        value: A value as `datasets.Dataset.with_format` gives it ("numpy", "torch", "pandas"), or any other.

    >>> import numpy as np
    >>> plain_value({"scores": np.array([1.0, np.nan]), "turns": np.array([{"role": np.str_("user")}])})
    {'scores': [1.0, None], 'turns': [{'role': 'user'}]}
    """
    if _is_plain(value):
        return value
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain_value(item) for name, item in value.items()}
    if not hasattr(value, "tolist") or type(listed := value.tolist()) is type(value):  # a long double is its own list
        return value
    return plain_value(without_nan(listed))


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind not in (list, tuple, dict):
        return False
    items = value.values() if kind is dict else value
    return _PLAIN.issuperset(map(type, items)) or all(map(_is_plain, items))


def plain_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with `plain_value` of every value; the row itself if all values are plain.

    A pandas table of one row, which is what iterating over a dataset in that format gives, is that row.
    """
    if type(row) is not dict and not isinstance(row, Mapping):
        (row,) = without_nan(row.to_dict("records"))
    return row if all(map(_is_plain, row.values())) else {name: plain_value(value) for name, value in row.items()}
