"""What a model has embeddings of: how many tokens it knows, and how many positions."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["embedded_positions", "embedded_tokens"]

_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|embed_positions|position_embeddings|positions_embed)$")


def embedded_tokens(model: PreTrainedModel) -> float:
    """How many token ids, from 0 on, a model knows; infinity where it has no table of them, as models of characters."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return math.inf


def embedded_positions(model: PreTrainedModel) -> float:
    """How many tokens of a row a model has learned positions of; infinity where it computes them, as rotary embeddings do.

    Those of the RoBERTa family begin behind the padding token's, and OPT's behind an offset.
    """
    from torch import nn

    sizes = [
        module.num_embeddings - (getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _POSITIONS.search(name) and "entity" not in name
    ]
    return min(sizes, default=math.inf)
