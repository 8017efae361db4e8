"""What identifies a reward: its settings, and the weights and rendering of its models, wherever they lie."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.cached import Cached
from rm_plugins.providers.remote import Remote

__all__ = ["fingerprint", "manifest_digests", "renders", "shown_spec"]

_HOW_NOT_WHAT = {"cache", "compile", "device", "max_batch_tokens", "name", "verify"}
_HOW_IT_IS_REACHED = {
    "api_key_env",
    "batch_size",
    "ca_file",
    "concurrency",
    "deadline",
    "headers",
    "hedge_after",
    "timeout",
    "tries",
}
_WHERE_A_MODEL_IS = {"adapters", "chat_template", "model", "revision", "tokenizer"}


def fingerprint(provider: Provider) -> str:
    """A SHA-256 over what makes a reward's scores: its spec, and in place of each model's path the weights and the rendering.

    It does not see the code of a function, nor the model behind a remote scorer.
    """
    manifests = manifest_digests(provider)
    facts = [[path, _own_settings(part), _model_facts(part), manifests.get(path)] for path, part in provider.walk()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def manifest_digests(provider: Provider) -> dict[str, str]:
    """The SHA-256 of the manifest of each model that a reward is made of, by the model's path in the spec."""
    return {
        path: hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
        for path, part in provider.walk()
        if (manifest := getattr(part, "manifest", None)) is not None
    }


def shown_spec(provider: Provider) -> dict[str, Any] | None:
    """A reward's spec as anyone may see it: without the headers that open servers behind it; None where it was made in Python."""
    return None if provider.spec is None else _without_headers(provider.spec)


def _without_headers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: "<hidden>" if key == "headers" else _without_headers(item) for key, item in value.items()}
    return [_without_headers(item) for item in value] if isinstance(value, (list, tuple)) else value


def renders(part: Provider) -> bool:
    """Whether a part of the reward makes text and token ids of samples."""
    return getattr(part, "renderer", None) is not None


def _own_settings(part: Provider) -> dict[str, Any]:
    """What a part of the reward was set to, its children and whatever changes no score left out."""
    if part.spec is None:
        return {"made in Python": f"{type(part).__module__}.{type(part).__qualname__}"}
    out = {re.split(r"[.\[]", path)[0] for path in part.children} | _HOW_NOT_WHAT
    if renders(part):
        out |= _WHERE_A_MODEL_IS
    if isinstance(part, Cached):
        out |= {"path"}
    if isinstance(part, Remote):
        out |= _HOW_IT_IS_REACHED
    return {key: _contents(value) for key, value in part.spec.items() if key not in out}


def _contents(value: Any) -> Any:
    """A setting with the digests of files in place of their paths."""
    if isinstance(value, Mapping):
        return {key: _contents(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_contents(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value) and os.path.isfile(value):
        with open(value, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return value


def _model_facts(part: Any) -> list[Any] | None:
    if not renders(part):
        return None
    from rm_plugins.engine.score_cache import model_fingerprint
    from rm_plugins.models.golden import golden_rows
    from rm_plugins.models.manifest import token_digest

    # What the tokenizer and the chat template make of a few samples stands for both.
    rows = [token_digest(ids) for ids in golden_rows(part.renderer)[1]]
    weights = model_fingerprint(part.model) if hasattr(part, "model") else None
    return [weights, asdict(part.renderer.rendering), rows]
