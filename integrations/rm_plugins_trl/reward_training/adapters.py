"""The adapter that is trained: what the arguments of ``rm-plugins train`` ask for, and what a trainer makes of it."""

from __future__ import annotations

import copy
import logging
from importlib.util import find_spec
from typing import Any

from trl import get_peft_config, get_quantization_config

from rm_plugins.errors import MissingDependencyError
from rm_plugins.models.adapters import check_adapter
from rm_plugins_trl.reward_training.score_head import trains_head

logger = logging.getLogger(__name__)


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


def own_adapter(peft_config: Any, model: Any) -> Any:
    """A copy of the configuration of the adapter to train; None without one.

    Args:
        peft_config: The configuration that the trainer was given, or None.
        model: The model, which may have adapters; or its path.

    Raises:
        ModelError: An adapter is of a kind that cannot be trained as a reward.
    """
    own = copy.deepcopy(peft_config)
    for adapter in [own, *getattr(model, "peft_config", {}).values()]:
        if hasattr(adapter, "peft_type"):
            check_adapter(adapter, "The adapter")
    if own is not None and hasattr(own, "task_type"):
        # peft then trains and saves the score head, whatever its name; otherwise a loaded adapter would score at random.
        own.task_type = "SEQ_CLS"
    return own


def warn_of_untrained_head(model: Any) -> None:
    """Log a warning if the model's adapter leaves the score head as it was initialized."""
    if hasattr(model, "peft_config") and not trains_head(model):
        logger.warning(
            "The adapter does not train the score head, which stays at its random initialization. Create the adapter with "
            "modules_to_save=['score'] (or 'classifier'), or give its peft_config to the trainer."
        )
