"""The language-model head that a classifier's backbone was trained with, for losses that keep it in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from rm_plugins.engine.partitioned import embedding_weight, is_partitioned
from rm_plugins.engine.transformers_internals import loads_whole
from rm_plugins.errors import UnsupportedError
from rm_plugins_trl.reward_training.global_batch import whole_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


class _Embedding:
    """The head that is the model's embedding."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden, self.model.get_input_embeddings().weight)

    def gathered(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The same, where FSDP2 or ZeRO may have sharded the embedding: all processes gather it together, once.

        Raises:
            UnsupportedError: ZeRO has sharded an embedding that is more than a table.
        """
        layer = self.model.get_input_embeddings()
        partitioned = is_partitioned(layer.weight)
        weight = embedding_weight(layer) if partitioned else whole_weight(layer.weight, averages=True)
        return lambda hidden: linear(hidden, weight.to(hidden.device, hidden.dtype))


class _OfCheckpoint:
    """The head that was loaded, which is not trained; it moves to where it is first used, because a model is sharded later."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.weight = self.weight.to(hidden.device)
        self.bias = None if self.bias is None else self.bias.to(hidden.device, hidden.dtype)
        return linear(hidden, self.weight.to(hidden.dtype), self.bias)


def language_model_head(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits of the vocabulary, [n, vocabulary], as a function of hidden states, [n, size].

    If the model ties its head to its embedding, the head is the embedding, which is trained. Otherwise the head is loaded from the
    checkpoint that the classifier was made of, and is not trained.

    Raises:
        UnsupportedError: The checkpoint has no such head, or its logits are more than a product.
    """
    config = model.config.get_text_config()
    special = [name for name in _SCALED if getattr(config, name, None) not in (None, 1.0)]
    if special:
        raise UnsupportedError(
            f"{type(model).__name__} reshapes its logits ({', '.join(special)}), which is not supported here. Use another loss."
        )
    if config.tie_word_embeddings:
        return _Embedding(model)
    source = model.config.name_or_path
    try:
        # Of a class that came from a checkpoint, which was allowed then.
        trusted = type(model).__module__.startswith("transformers_modules.")
        with loads_whole():
            whole, info = AutoModelForCausalLM.from_pretrained(
                source, dtype=model.dtype, output_loading_info=True, trust_remote_code=trusted
            )
    except (OSError, ValueError) as error:
        raise UnsupportedError(f"The language-model head of {source!r} cannot be loaded: {error}") from error
    head = whole.get_output_embeddings()
    if head is None or any("lm_head" in name or "embed_out" in name for name in info["missing_keys"]):
        raise UnsupportedError(f"{source!r} has no language-model head to keep, because it is not a causal language model.")
    return _OfCheckpoint(head.weight.detach(), None if getattr(head, "bias", None) is None else head.bias.detach())
