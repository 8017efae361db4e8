"""Rotary position embeddings whose frequencies depend on the longest row that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class ChangingFrequencies:
    """The row length at which a model's rotary frequencies change, and how.

    Args:
        beyond: Rows of up to this many tokens all have the same frequencies.
        by_length: Whether the frequencies of a longer row depend on its exact length (dynamic scaling) or are the same for all longer rows.
    """

    beyond: int
    by_length: bool


def changing_frequencies(config: PretrainedConfig) -> ChangingFrequencies | None:
    """How the frequencies of a model change with the row length; None if they are constant.

    Dynamic scaling and LongRoPE are recognized as in transformers' ``modeling_rope_utils``.
    """
    text_config = config.get_text_config()
    given = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None)
    if not isinstance(given, Mapping):
        return None
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    changes = [change for rope in nested or [given] if (change := _of_rope(rope, text_config)) is not None]
    if not changes:
        return None
    return ChangingFrequencies(min(change.beyond for change in changes), any(change.by_length for change in changes))


def _of_rope(rope: Mapping[str, Any], config: PretrainedConfig) -> ChangingFrequencies | None:
    kind = str(rope.get("rope_type", rope.get("type", "")))
    if "dynamic" not in kind and kind != "longrope":
        return None
    name = "original_max_position_embeddings"
    named = (rope.get(name), getattr(config, name, None), getattr(config, "max_position_embeddings", None))
    return ChangingFrequencies(min(length for length in named if length), "dynamic" in kind)
