"""How many tokens a model has positions for."""

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
"""Model types whose positions begin behind the padding token's id."""

_WITHOUT_POSITIONS = frozenset(("jamba", "zamba"))
"""Model types that name a number of positions and have none."""


def position_limit(config: PretrainedConfig | None) -> int | None:
    """How many tokens a model has positions for, if its configuration says so.

    Models of the RoBERTa family count positions from behind the padding token's id, so that they take fewer than the configuration's
    ``max_position_embeddings``. A number below 1 means no limit, as XLNet's -1.
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
    """How many tokens a model has positions for, if it cannot take more; None for one whose positions go on.

    Rotary and relative positions go on, for better or worse; learned ones, and tables of fixed ones, end.
    """
    limit = position_limit(config)
    if limit is None or config is None:
        return None
    text_config = config.get_text_config()
    is_rotary = any(getattr(text_config, name, None) is not None for name in ("rope_parameters", "rope_theta", "rope_scaling"))
    goes_on = (
        is_rotary
        or getattr(text_config, "position_embedding_type", "absolute") == "rotary"
        or not getattr(text_config, "position_biased_input", True)
        or text_config.model_type in _WITHOUT_POSITIONS
    )
    return None if goes_on else limit
