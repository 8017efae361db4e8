"""Loads the language models that are trained as policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from rm_plugins.errors import ModelError
from rm_plugins.models.model_folder import load_config, reason_in_short

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_language_model(source: str, *, code_setting: str, trust_remote_code: bool = False, **settings: Any) -> PreTrainedModel:
    """A causal language model, in float32 unless `settings` say otherwise.

    Args:
        source: A folder or hub id.
        code_setting: What lets the code in a checkpoint run, for the error's message.
        trust_remote_code: Whether it may.
        settings: What ``from_pretrained`` of transformers takes, such as ``dtype``.

    Raises:
        ModelError: It cannot be loaded, or has code of its own that may not run.
    """
    load_config(source, code_setting=code_setting, trust_remote_code=trust_remote_code)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=trust_remote_code, **{"dtype": torch.float32, **settings}
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"The policy {source!r} cannot be loaded: {reason_in_short(error, code_setting)}") from error
    return model
