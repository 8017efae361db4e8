"""Rotary positions whose frequencies follow the longest row that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class ChangingFrequencies:
    """From when on a model's frequencies change with the length of what runs.

    Args:
        beyond: Rows of up to so many tokens all have the same frequencies.
        by_length: Whether those of a longer row depend on its very length (dynamic scaling), and are not the same for all of them.
    """

    beyond: int
    by_length: bool


def changing_frequencies(config: PretrainedConfig) -> ChangingFrequencies | None:
    """How the frequencies of a model change; None for one whose frequencies stay.

    Dynamic scaling and LongRoPE are read as in transformers' ``modeling_rope_utils``.
    """
    text_config = config.get_text_config()
    given = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None)
    if not isinstance(given, Mapping):
        return None
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    found = [change for rope in nested or [given] if (change := _of_rope(rope, text_config)) is not None]
    if not found:
        return None
    return ChangingFrequencies(min(change.beyond for change in found), any(change.by_length for change in found))


def _of_rope(rope: Mapping[str, Any], config: PretrainedConfig) -> ChangingFrequencies | None:
    kind = str(rope.get("rope_type", rope.get("type", "")))
    if "dynamic" not in kind and kind != "longrope":
        return None
    name = "original_max_position_embeddings"
    named = (rope.get(name), getattr(config, name, None), getattr(config, "max_position_embeddings", None))
    return ChangingFrequencies(min(length for length in named if length), "dynamic" in kind)
