"""The adapter and the quantization that the model arguments of ``rm-plugins train`` ask for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from trl import get_peft_config, get_quantization_config

from rm_plugins.errors import MissingDependencyError


def adapter_and_quantization(model: Any) -> dict[str, Any]:
    """The arguments ``peft_config`` and ``quantization_config`` of `RewardTrainer`, from TRL's ``ModelConfig``.

    Raises:
        MissingDependencyError: peft or bitsandbytes is needed and absent.
    """
    quantized = model.load_in_4bit or model.load_in_8bit
    if model.use_peft and find_spec("peft") is None:
        raise MissingDependencyError("--use_peft needs the package peft: pip install 'rm-plugins[peft]'")
    if quantized and find_spec("bitsandbytes") is None:
        option = "--load_in_4bit" if model.load_in_4bit else "--load_in_8bit"
        raise MissingDependencyError(f"{option} needs the package bitsandbytes: pip install bitsandbytes")
    return {"peft_config": get_peft_config(model), "quantization_config": get_quantization_config(model)}
