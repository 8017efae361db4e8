"""The arguments of a spec as they are written, with every nested spec written out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rm_plugins.component import Component
from rm_plugins.provider import Provider


def written_out(value: Any) -> Any:
    """A constructor's argument as it is written in a spec, with every nested spec written out."""
    if isinstance(value, (Provider, Component)):
        return value.spec or f"<{getattr(value, 'label', value.name)}, made in Python>"
    if isinstance(value, Mapping):
        return {key: written_out(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [written_out(item) for item in value]
    if callable(value) and not _is_importable(value):
        return f"<{getattr(value, '__qualname__', type(value).__qualname__)}, made in Python>"
    if callable(value):
        return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    return value


def _is_importable(value: Any) -> bool:
    """Whether ``module:name`` leads to this very object."""
    named: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for part in getattr(value, "__qualname__", "<none>").split("."):
        named = getattr(named, part, None)
    return named is value
