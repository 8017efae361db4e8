"""What a training under DeepSpeed's ZeRO needs besides: what cannot work is refused before it starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_plugins.errors import DataError, SpecError
from rm_plugins_trl.reward_training.deepspeed_files import DeepSpeedStates, deepspeed_states

logger = logging.getLogger(__name__)

_GATHER = "stage3_gather_16bit_weights_on_model_save"


def zero_stage(args: Any) -> int | None:
    """The stage of ZeRO that a training is divided by; None if it does not use DeepSpeed.

    Args:
        args: The trainer's arguments.
    """
    plugin = getattr(args, "deepspeed_plugin", None)
    return None if plugin is None else int(plugin.zero_stage)


def check_deepspeed(args: Any, *, quantization: Any) -> None:
    """Refuse what cannot be trained under DeepSpeed. Nothing happens without it.

    Args:
        args: The trainer's arguments.
        quantization: How the model is quantized, or None.

    Raises:
        SpecError: The settings cannot work together.
    """
    stage = zero_stage(args)
    if stage is None:
        return
    config: Mapping[str, Any] = args.deepspeed_plugin.hf_ds_config.config
    if int((config.get("tensor_parallel") or {}).get("autotp_size") or 0) > 1:
        raise SpecError(
            "tensor_parallel in DeepSpeed's configuration divides each row over processes, and a reward model cannot be trained so here. "
            "Leave it out, and use stage 3 of ZeRO if the weights do not fit."
        )
    if config.get("pipeline"):
        raise SpecError(
            "DeepSpeed's pipeline parallelism needs a model written for it, and a reward model is not. Leave out `pipeline` in DeepSpeed's "
            "configuration, and use stage 3 of ZeRO if the weights do not fit."
        )
    if stage != 3:
        return
    if quantization is not None:
        raise SpecError(
            "Stage 3 of ZeRO cannot partition quantized weights so that they are gathered, saved and scored again. Use stage 2, or leave "
            "out the quantization."
        )
    if getattr(args, "merge_adapter", False):
        raise SpecError(
            "merge_adapter=True cannot merge weights that stage 3 of ZeRO has partitioned. Leave it out: the adapter is saved, and peft's "
            "merge_and_unload() merges it afterwards. Or use stage 2."
        )


def gather_when_saving(plugin: Any) -> None:
    """Let stage 3 of ZeRO save whole models, without which only DeepSpeed's own files would be saved.

    Args:
        plugin: Accelerate's plugin for DeepSpeed.
    """
    settings = plugin.deepspeed_config.setdefault("zero_optimization", {})
    if settings.get(_GATHER) is False:
        logger.warning(
            "%s is false in DeepSpeed's configuration, and is ignored: a reward model is saved whole, so that it can be loaded.",
            _GATHER,
        )
    settings[_GATHER] = True


def check_states(args: Any, checkpoint: Path) -> None:
    """Refuse a checkpoint whose optimizer states are divided in another way than the training that resumes from it.

    Args:
        args: The trainer's arguments.
        checkpoint: The checkpoint's folder; it is complete.

    Raises:
        DataError: It was saved with another number of processes, by another stage of ZeRO, or one of both without DeepSpeed.
    """
    stage, saved = zero_stage(args), deepspeed_states(checkpoint)
    if stage == 0:
        return
    now = None if stage is None else DeepSpeedStates(stage == 3, args.world_size)
    if saved == now or (now is not None and _is_universal(args)):
        return
    then = "without DeepSpeed" if saved is None else f"under {saved}"
    raise DataError(
        f"{checkpoint} was saved {then}, and this training runs {'without DeepSpeed' if now is None else f'under {now}'}. The optimizer's "
        "state cannot be divided again. Resume as it was saved, or train from its model: RewardTrainer(model=CHECKPOINT) with another "
        "output_dir."
    )


def _is_universal(args: Any) -> bool:
    """Whether DeepSpeed is asked to load a checkpoint that was converted for any number of processes."""
    config: Mapping[str, Any] = args.deepspeed_plugin.hf_ds_config.config
    return bool((config.get("checkpoint") or {}).get("load_universal"))
