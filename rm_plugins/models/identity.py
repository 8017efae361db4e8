"""The identity of a model: its weights, its tokenizer and its rendering."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rm_plugins.rendering.render import Renderer

WHERE_A_MODEL_IS = ("adapters", "chat_template", "model", "quantization", "revision", "tokenizer")
"""Keys of specs that these facts replace."""


def model_facts(renderer: Renderer, model: PreTrainedModel | None = None) -> list[Any]:
    """The digest of the weights, the rendering, and digests of the tokenizer and of the token ids of a few samples, for JSON.

    Reads every weight once.

    Args:
        renderer: The model's renderer.
        model: The model; None if it runs elsewhere.
    """
    from rm_plugins.engine.score_cache import model_fingerprint
    from rm_plugins.models.golden import golden_rows
    from rm_plugins.models.manifest import token_digest

    weights = None if model is None else model_fingerprint(model)
    rows = [token_digest(ids) for ids in golden_rows(renderer)[1]]
    return [weights, renderer.rendering.as_json(), [tokenizer_digest(renderer.tokenizer), *rows]]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256 of everything that determines a tokenizer's token ids: vocabulary, rules, special tokens, chat template."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        for setting in ("padding", "truncation"):  # they depend on the last call
            rules.pop(setting, None)
    else:
        rules = tokenizer.get_vocab()
    facts = [type(tokenizer).__name__, rules, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
