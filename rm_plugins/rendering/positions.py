"""The number of positions of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_COUNTED_FROM_PADDING = frozenset(
    (
        *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
        *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    )
)
"""Model types whose positions start after the padding token's id."""

_WITHOUT_POSITIONS = frozenset(("jamba", "zamba"))
"""Model types whose configuration has a number of positions although the model has none."""


def position_limit(config: PretrainedConfig | None) -> int | None:
    """The number of positions of a model, if its configuration has it.

    Models of the RoBERTa family count positions from the padding token's id plus 1, so they take fewer tokens than the configuration's
    ``max_position_embeddings``. A number below 1 means no limit, such as XLNet's -1.
    """
    if config is None:
        return None
    text_config = config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None)
    if limit is None or limit < 1:
        return None
    is_absolute = getattr(text_config, "position_embedding_type", "absolute") == "absolute"
    if text_config.model_type in _COUNTED_FROM_PADDING and is_absolute:
        return int(limit) - 1 - (text_config.pad_token_id or 0)
    return int(limit)


def hard_position_limit(config: PretrainedConfig | None) -> int | None:
    """The number of positions of a model if it cannot take more tokens; None if its positions have no end.

    Rotary and relative positions can be computed for any length (with unknown quality); learned positions and tables of fixed ones end.
    """
    limit = position_limit(config)
    if limit is None or config is None:
        return None
    text_config = config.get_text_config()
    is_rotary = any(getattr(text_config, name, None) is not None for name in ("rope_parameters", "rope_theta", "rope_scaling"))
    is_unlimited = (
        is_rotary
        or getattr(text_config, "position_embedding_type", "absolute") == "rotary"
        or not getattr(text_config, "position_biased_input", True)
        or text_config.model_type in _WITHOUT_POSITIONS
    )
    return None if is_unlimited else limit
