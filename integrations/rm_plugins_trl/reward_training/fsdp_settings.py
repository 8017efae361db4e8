"""What is refused before a training under FSDP starts: settings that give wrong numbers, and checkpoints that it cannot load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_plugins.engine.shards import shards_of
from rm_plugins.errors import DataError, SpecError, UnsupportedError
from rm_plugins_trl.reward_training.checkpoints import MADE_WITH
from rm_plugins_trl.reward_training.shard_files import state_dict_type
from rm_plugins_trl.trl_internals import fsdp_plugin

if TYPE_CHECKING:
    from torch import nn


def sharding(trainer: Any) -> list[Any] | None:
    """How a trainer shards its weights, as its checkpoints record it; None without FSDP."""
    plugin = fsdp_plugin(trainer)
    return None if plugin is None else ["FSDP", plugin.fsdp_version, plugin.state_dict_type.name]


def check_settings(trainer: Any) -> None:
    """Refuse settings of FSDP that would give wrong gradients or an empty model.

    Raises:
        SpecError: There is one; the message says what to set.
    """
    plugin = fsdp_plugin(trainer)
    if plugin is None:
        return
    if plugin.activation_checkpointing and (dropping := _dropping(trainer.model)):
        raise SpecError(
            f"fsdp_activation_checkpointing does not keep the random state, so the dropout of {dropping} would be drawn again in the "
            "backward pass, and the gradients would be wrong. Use RewardConfig(gradient_checkpointing=True) instead, or "
            "disable_dropout=True."
        )
    if trainer.args.save_on_each_node:
        raise SpecError(
            "save_on_each_node does not work with FSDP: only process 0 has the whole weights to save. Set it to False, and use an "
            "output_dir that all machines share."
        )
    dtypes = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    if len(dtypes) > 1 and trainer.accelerator.mixed_precision == "no" and plugin.fsdp_version == 2:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise SpecError(
            f"The trained weights have several dtypes ({names}), which FSDP2 cannot shard together. Set bf16=True, which trains them in "
            "float32 and computes in bfloat16, or load the base model in float32: model_init_kwargs={'dtype': 'float32'}."
        )


def check_is_sharded(trainer: Any) -> None:
    """Refuse to evaluate before a training has sharded the model.

    Raises:
        UnsupportedError: FSDP2 has not sharded it yet.
    """
    plugin = fsdp_plugin(trainer)
    if plugin is not None and plugin.fsdp_version == 2 and shards_of(trainer.model) is None:
        raise UnsupportedError(
            "Under FSDP2, a model cannot be evaluated before trainer.train(), because accelerate shards it together with its optimizer. "
            "Evaluate it in a run without FSDP, or with `rm-plugins evaluate`."
        )


def check_checkpoint(trainer: Any, checkpoint: Path) -> None:
    """Refuse a checkpoint whose weights or optimizer this training could not load.

    The number of processes may differ: whole weights are sharded again, and each process reads the shards that it needs.

    Raises:
        DataError: It was saved without FSDP, and this training uses it, or the reverse; or in another form.
    """
    now, saved = sharding(trainer), state_dict_type(checkpoint)
    if now is None and saved is not None:
        raise DataError(
            f"{checkpoint} was saved with sharded weights (FSDP), and this training does not use FSDP. Resume it under FSDP, with any "
            "number of processes."
        )
    if now is None:
        return
    if saved is None:
        raise DataError(
            f"{checkpoint} was saved without FSDP, or without its optimizer (save_only_model), so it cannot be resumed under FSDP. Resume "
            "it as it was trained, or start a new training from its weights: name the folder as the model."
        )
    if saved != now[2]:
        raise DataError(
            f"{checkpoint} was saved with fsdp_state_dict_type {saved}, and this training has {now[2]}. Set it to {saved} to resume."
        )
    then = _recorded(checkpoint)
    if then is not None and then[:2] != now[:2]:
        raise DataError(
            f"{checkpoint} was saved under FSDP{then[1]}, and this training uses FSDP{now[1]}. Set fsdp_version to {then[1]} to resume."
        )


def _recorded(checkpoint: Path) -> list[Any] | None:
    """The `sharding` of a checkpoint, if it is recorded."""
    path = checkpoint / MADE_WITH
    recorded: list[Any] | None = json.loads(path.read_text(encoding="utf-8")).get("sharding") if path.is_file() else None
    return recorded


def _dropping(model: nn.Module) -> str:
    """The class of the first module that drops values in training; empty if none does."""
    for module in model.modules():
        rates = [
            value
            for name, value in vars(module).items()
            if "drop" in name or (name == "p" and "Dropout" in type(module).__name__)
        ]
        if any(isinstance(rate, float) and 0.0 < rate < 1.0 for rate in rates):
            return type(module).__name__
    return ""
