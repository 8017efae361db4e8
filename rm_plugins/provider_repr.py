"""How providers show themselves in a console."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from rm_plugins.redaction import redacted

_LONGEST = 60
_SHARED = ("label", "on_error", "provider", "transform")
_HIDDEN = ("headers",)


def provider_repr(provider: Any) -> str:
    """The class and the label of a provider, its own settings, what it is made of by number, and the device and dtype of its models.

    Args:
        provider: A `rm_plugins.provider.Provider`, which imports this module.

    >>> import rm_plugins as rm
    >>> members = [{"provider": "constant", "value": 1.0}, {"provider": "constant", "value": 2.0}]
    >>> rm.load({"provider": "sum", "members": members, "weights": [1.0, 0.5]})
    Sum('sum', members=2, weights=[1.0, 0.5])
    """
    facts = {name: value for part in (_made_of, _settings, _models, _policies) for name, value in _known(part, provider)}
    shown = [repr(provider.label), *(f"{name}={value}" for name, value in facts.items())]
    return f"{type(provider).__name__}({', '.join(shown)})"


def _known(part: Any, provider: Any) -> Iterator[tuple[str, str]]:
    """The known facts of a provider, which may not be complete yet."""
    with suppress(AttributeError, TypeError):
        yield from list(part(provider))


def _made_of(provider: Any) -> Iterator[tuple[str, str]]:
    children = {path: child for path, child in provider.children.items() if not path.startswith("on_error")}
    counts = Counter(re.split(r"[.\[]", path)[0] for path in children)
    for name, count in counts.items():
        yield name, repr(children[name].label) if name in children else str(count)


def _settings(provider: Any) -> Iterator[tuple[str, str]]:
    children = {re.split(r"[.\[]", path)[0] for path in provider.children}
    for name, value in (provider.spec or {}).items():
        if name not in children and name not in _SHARED and value is not None:
            yield name, "<hidden>" if name in _HIDDEN else _short(value)


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):  # a component
        value = value["name"]
    text = redacted(repr(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _models(provider: Any) -> Iterator[tuple[str, str]]:
    models = list(provider.models.values())
    for name in ("device", "dtype"):
        if values := dict.fromkeys(str(getattr(trained.model, name)).removeprefix("torch.") for trained in models):
            yield name, ", ".join(values)


def _policies(provider: Any) -> Iterator[tuple[str, str]]:
    if provider.transform is not None:
        yield "transform", repr(provider.transform.name)
    if provider.fallback is not None:
        yield "fallback", repr(provider.fallback.label)
    elif provider.on_error != "raise":
        yield "on_error", repr(provider.on_error)
