"""Which of peft's adapters can be those of a reward model."""

from __future__ import annotations

from typing import Any

from rm_plugins.errors import ModelError

_OF_WHOLE_TEXTS = {"XLORA": "weighs its layers by the whole text", "POLY": "chooses its layers by the number of a task"}


def check_adapter(config: Any, adapter: str) -> None:
    """Refuse an adapter that does more than to change layers of the model.

    The score would be read where padding may stand, or by peft's own code around the model, which no other program runs.

    Args:
        config: A `peft.PeftConfig`.
        adapter: What an error calls it.

    Raises:
        ModelError: It puts tokens of its own before or among those of the text, or looks at the whole text.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if getattr(config, "is_prompt_learning", False) or getattr(config, "is_adaption_prompt", False):
        problem = "has tokens of its own beside those of the text"
    elif getattr(config, "alora_invocation_tokens", None):
        problem = "begins at certain tokens of the text"
    else:
        problem = _OF_WHOLE_TEXTS.get(kind, "")
    if problem:
        raise ModelError(
            f"{adapter} ({kind}) {problem}, so its score would depend on the padding of its batch or on code around the model. Take "
            "an adapter of the model's layers, such as LoRA: peft.LoraConfig(...)."
        )
