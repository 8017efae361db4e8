"""JSON that is the same for equal values, in every process."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any


def canonical_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """JSON that is the same for equal values, regardless of the order of their keys.

    Args:
        value: Any value.
        default: Gives the JSON form of a value that has none; by default, arrays become lists, images and other objects digests of what
            they hold, and everything else text.
    """
    try:
        return json.dumps(value, sort_keys=True, default=default or _plain)
    except TypeError:  # keys of several types cannot be sorted
        return json.dumps(_with_text_keys(value), sort_keys=True, default=default or _plain)


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else repr(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    """Arrays as lists, images and other objects as digests of what they hold, and anything else without a JSON form as text."""
    if type(plain := listed(value)) is not type(value):  # a long double is its own list
        return plain
    if hasattr(value, "tobytes") and hasattr(value, "mode"):  # an image, which each row of a dataset decodes for itself
        return ["image", value.mode, value.size, blake2b(value.tobytes(), digest_size=16).hexdigest()]
    text = repr(value)
    if " at 0x" not in text:
        return text
    # An address differs between equal objects, and is used again for another object after this one has gone.
    try:
        return [type(value).__name__, blake2b(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), digest_size=16).hexdigest()]
    except Exception:  # whatever it refuses with; such an object is equal to itself only
        return text


def listed(value: Any) -> Any:
    """An array as a list, and a scalar of numpy or torch as a number; anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value
