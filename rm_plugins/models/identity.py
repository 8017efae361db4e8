"""What identifies a model: its weights, and what its tokenizer and its rendering make of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rm_plugins.rendering.render import Renderer

WHERE_A_MODEL_IS = ("adapters", "chat_template", "model", "revision", "tokenizer")
"""Keys of specs in whose place these facts stand."""


def model_facts(renderer: Renderer, model: PreTrainedModel | None = None) -> list[Any]:
    """The digest of the weights, the rendering, and the digests of a few samples' token ids, as JSON has them.

    Reads every weight once. What the tokenizer and the chat template make of a few samples stands for both.

    Args:
        renderer: How samples become token ids.
        model: The model; None where it runs elsewhere.
    """
    from rm_plugins.engine.score_cache import model_fingerprint
    from rm_plugins.models.golden import golden_rows
    from rm_plugins.models.manifest import token_digest

    rows = [token_digest(ids) for ids in golden_rows(renderer)[1]]
    return [None if model is None else model_fingerprint(model), renderer.rendering.as_json(), rows]
