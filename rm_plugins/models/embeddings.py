"""The sizes of a model's token and position embeddings."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|embed_positions|position_embeddings|positions_embed)$")


def embedded_tokens(model: PreTrainedModel) -> float:
    """The number of token ids, from 0 on, that a model knows; infinity if it has no table of them, like character models."""
    try:
        embeddings = model.get_input_embeddings()
        # The weight itself may be sharded, or flattened with others.
        return int(getattr(embeddings, "num_embeddings", None) or embeddings.weight.shape[0])
    except (AttributeError, NotImplementedError):
        return math.inf


def embedded_positions(model: PreTrainedModel) -> float:
    """The number of learned positions of a model; infinity if positions are computed, like rotary embeddings.

    Positions of the RoBERTa family start after that of the padding token, and OPT's after an offset.
    """
    from torch import nn

    sizes = [
        module.num_embeddings - (getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _POSITIONS.search(name) and "entity" not in name
    ]
    return min(sizes, default=math.inf)
