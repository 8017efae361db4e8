"""What identifies a reward: its settings, the code of its functions, and the weights and rendering of its models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from rm_plugins.canonical_json import canonical_json
from rm_plugins.component import Component
from rm_plugins.constructor_schema import held_by
from rm_plugins.function_code import others_code
from rm_plugins.provider import Provider, transforms_of
from rm_plugins.redaction import redacted


def fingerprint(provider: Provider) -> str:
    """A SHA-256 over what makes a reward's scores: its spec, and in place of each model's path the weights, tokenizer and rendering.

    Other files that the spec names count with the contents that they had when the reward was made. Functions, and classes of plug-ins,
    count with their code and the code that they use (`rm_plugins.function_code`). What was made in Python counts with what it holds.

    It does not cover the model that a remote scorer runs, the files that a function reads, or the installed packages that it uses.
    """
    facts = [[path, *part.identity, *others_code(_classes_in(part))] for path, part in provider.walk()]
    return hashlib.sha256(canonical_json(facts, default=str).encode()).hexdigest()


def fingerprints_of_parts(provider: Provider) -> dict[str, str]:
    """A SHA-256 for each part of a reward, by its path in the spec, which is the same in all processes of a training.

    The reward itself has the path ``""``. Each process may ask its own server, so addresses do not count. A part that was made in Python
    may hold what belongs to one process, such as its device, so only its code counts.
    """
    facts = {path: [*_shared_facts(part), *others_code(_classes_in(part))] for path, part in provider.walk()}
    return {path: hashlib.sha256(canonical_json(fact, default=str).encode()).hexdigest() for path, fact in facts.items()}


def _shared_facts(part: Provider) -> list[Any]:
    if part.spec is None:
        return [type(part).__qualname__]
    settings, *others = part.identity
    return [_without_addresses(settings), *others]


def _without_addresses(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_addresses(item) for key, item in value.items() if key != "url"}
    return value


def _classes_in(part: Provider) -> Iterator[type]:
    """The classes of a reward and of the components of its spec, its children left aside."""
    pending: list[Any] = [part]
    while pending:
        holder = pending.pop()
        yield type(holder)
        pending += held_by(holder, Component).values()
        pending += transforms_of(holder).values() if holder is part else ()


def manifests_of(provider: Provider) -> dict[str, Any]:
    """The `rm_plugins.models.Manifest` of each model in a reward, by the path in the spec of the provider that holds it."""
    models = [(path, model) for path, part in provider.walk() for model in part.models.values()]
    return {path: model.manifest for path, model in models if model.manifest is not None}


def shown_spec(provider: Provider) -> dict[str, Any] | None:
    """A reward's spec without secrets, such as headers and keys of servers; None where the reward was made in Python."""
    return None if provider.spec is None else _without_secrets(provider.spec)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: "<hidden>" if key == "headers" else _without_secrets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item) for item in value]
    return redacted(value) if isinstance(value, str) else value
