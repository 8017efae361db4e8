"""What identifies an object without a spec: its attributes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

_OF_ITS_USE = frozenset(("_alone", "_counts", "_varies", "_warned", "label", "observer", "unnamed_failures", "where"))
"""Attributes that record where and how often an object is used."""


def held_facts(made: object) -> dict[str, Any]:
    """The class of an object and its current attributes, as JSON has them.

    Attributes without a JSON form, such as functions, models and open connections, are left out.

    >>> held_facts(re.compile("a"))
    {'made in Python': 're.Pattern'}
    """
    kind = {"made in Python": f"{type(made).__module__}.{type(made).__qualname__}"}
    attributes = {name: value for name, value in getattr(made, "__dict__", {}).items() if name not in _OF_ITS_USE}
    return kind | {name: fact for name, value in attributes.items() if (fact := _fact(value)) is not None}


def _fact(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _fact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fact(item) for item in value]
    if isinstance(value, Set):
        return sorted(map(str, value))
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    if isinstance(value, np.ndarray):
        return [value.shape, str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest()]
    if hasattr(type(value), "kind"):  # a component of a spec, such as a transform
        return held_facts(value)
    return None
