"""Loads the language models that are trained as policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from rm_plugins.errors import ModelError
from rm_plugins.models.model_folder import load_config, reason_in_short

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_language_model(source: str, *, code_setting: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model in float32.

    Args:
        source: A folder or hub id.
        code_setting: What lets the code in a checkpoint run, for the error's message.
        trust_remote_code: Whether it may.

    Raises:
        ModelError: It cannot be loaded, or has code of its own that may not run.
    """
    load_config(source, code_setting=code_setting, trust_remote_code=trust_remote_code)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"The policy {source!r} cannot be loaded: {reason_in_short(error, code_setting)}") from error
    return model
