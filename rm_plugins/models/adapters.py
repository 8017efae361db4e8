"""Checks which of peft's adapters a reward model can use, and merges them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rm_plugins.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


def without_adapter(model: PreTrainedModel, source: str) -> PreTrainedModel:
    """The model with the layers of a LoRA adapter merged, like peft's ``merge_and_unload``; the model itself is changed.

    Args:
        model: The model that the layers are in, without peft's wrapper; one without an adapter stays as it is.
        source: The name of the adapter in errors.

    Raises:
        ModelError: It has layers that cannot be merged.
    """
    if not hasattr(model, "peft_config"):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        parent, _, own_name = name.rpartition(".")
        if isinstance(module, ModulesToSaveWrapper):
            setattr(model.get_submodule(parent), own_name, module.modules_to_save[module.active_adapter])
        elif isinstance(module, BaseTunerLayer):
            module.merge()
            setattr(model.get_submodule(parent), own_name, module.get_base_layer())
    unmerged = [name for name, module in model.named_modules() if type(module).__module__.startswith("peft.")]
    if unmerged:
        raise ModelError(
            f"{source} is an adapter with layers that cannot be merged here: {unmerged[0]}. Merge it with peft's merge_and_unload, save "
            "the whole model, and name its folder instead."
        )
    del model.peft_config
    return model
