"""Reward models that accelerate shards with FSDP2, and the same ones trained otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset, disable_progress_bars

from rm_plugins.engine.transformers_internals import loads_whole
from rm_plugins_trl import RewardConfig, RewardTrainer

LOGGED = ("loss", "grad_norm", "mean_reward", "margin")
FULL: Mapping[str, Any] = {}
SHARDED: Mapping[str, Any] = {"state_dict_type": "SHARDED_STATE_DICT"}


def rows(count: int = 14) -> list[dict[str, Any]]:
    """Pairs of very different lengths, those of a step sorted into the first process."""
    return [
        {
            "prompt": "Name a colour." + " Please." * (number * 7 % 11),
            "chosen": f" It is blue{'.' * number}" * (1 + (number % 4) * 5),
            "rejected": " two" + "." * (number % 3),
        }
        for number in range(count)
    ]


def trainer_of(
    model: str,
    folder: Path,
    *,
    shards: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A trainer of two rows a step, whatever the number of processes.

    Args:
        model: The model's folder.
        folder: Its output folder.
        shards: Settings of FSDP2; None for a model that is not sharded.
        given: Further arguments of the trainer.
        settings: Changes to its configuration.
    """
    disable_progress_bars()
    usual = {
        "max_steps": 4,
        "max_batch_tokens": 60,
        "per_device_train_batch_size": 2 // PartialState(cpu=True).num_processes,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "preset": "none",
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_steps": 2,
        "overwrite_output_dir": True,
    }
    trainer = RewardTrainer(
        model,
        RewardConfig(output_dir=str(folder), **{**usual, **settings}),
        **{"train_dataset": Dataset.from_list(rows()), **(given or {})},
    )
    if shards is not None:
        shard(trainer, shards)
    return trainer


def shard(trainer: Any, settings: Mapping[str, Any]) -> None:
    """Let accelerate shard the model, which it does on the CPU only if its state names FSDP."""
    usual = {
        "fsdp_version": 2,
        "auto_wrap_policy": "transformer_based_wrap",
        "state_dict_type": "FULL_STATE_DICT",
        "reshard_after_forward": True,
    }
    with loads_whole():
        plugin = FullyShardedDataParallelPlugin(**{**usual, **settings, "cpu_ram_efficient_loading": False})
    plugin.cpu_ram_efficient_loading = settings.get("cpu_ram_efficient_loading", False)  # for which it would ask for a GPU
    if trainer.args.bf16:
        plugin.set_mixed_precision("bf16")
    trainer.accelerator.state.fsdp_plugin = plugin
    trainer.accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def logged(trainer: Any) -> list[dict[str, float]]:
    """What a trainer logged of each step."""
    return [{name: entry[name] for name in LOGGED} for entry in trainer.state.log_history if "loss" in entry]


def evaluated(trainer: Any) -> list[dict[str, float]]:
    """What a trainer logged of its evaluations, without times."""
    entries = [{k: v for k, v in entry.items() if k.startswith("eval_")} for entry in trainer.state.log_history]
    times = ("runtime", "per_second", "preparation_time")
    return [{name: value for name, value in entry.items() if not name.endswith(times)} for entry in entries if entry]
