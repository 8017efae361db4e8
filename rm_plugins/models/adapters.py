"""Checks which of peft's adapters a reward model can use."""

from __future__ import annotations

from typing import Any

from rm_plugins.errors import ModelError

_OF_WHOLE_TEXTS = {"XLORA": "weighs its layers by the whole text", "POLY": "chooses its layers by the number of a task"}


def check_adapter(config: Any, adapter: str) -> None:
    """Refuse an adapter that does more than change layers of the model.

    Otherwise the score could be read at a padding token, or would depend on peft's code around the model, which other programs do not run.

    Args:
        config: A `peft.PeftConfig`.
        adapter: The name of the adapter in errors.

    Raises:
        ModelError: The adapter adds its own tokens to the text, or depends on the whole text.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if getattr(config, "is_prompt_learning", False) or getattr(config, "is_adaption_prompt", False):
        problem = "adds its own tokens to those of the text"
    elif getattr(config, "alora_invocation_tokens", None):
        problem = "begins at certain tokens of the text"
    else:
        problem = _OF_WHOLE_TEXTS.get(kind, "")
    if problem:
        raise ModelError(
            f"{adapter} ({kind}) {problem}, so its score would depend on the padding of its batch or on code around the model. Use an "
            "adapter of the model's layers, such as LoRA: peft.LoraConfig(...)."
        )
