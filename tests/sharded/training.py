"""Started on two processes: trains reward models whose weights accelerate has sharded with FSDP2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset

from rm_plugins_trl import RewardConfig, RewardTrainer

LOSSES = ("bradley-terry", "grm")
"""One with nothing besides, and one that needs log-probabilities of the winners."""
LOGGED = ("loss", "grad_norm", "mean_reward", "margin")


def rows() -> list[dict[str, Any]]:
    """Pairs of very different lengths, those of a step sorted into the first process."""
    return [
        {
            "prompt": "Name a colour." + " Please." * (number * 7 % 11),
            "chosen": f" It is blue{'.' * number}" * (1 + (number % 4) * 5),
            "rejected": " two",
        }
        for number in range(14)
    ]


def train(model: str, folder: Path, loss: str, *, rows_at_a_time: int, shards: bool) -> list[dict[str, float]]:
    """Train and save; returns what was logged of each step."""
    trainer = RewardTrainer(
        model,
        RewardConfig(
            output_dir=str(folder),
            loss=loss,
            max_steps=3,
            max_batch_tokens=60,
            per_device_train_batch_size=rows_at_a_time,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            preset="none",
            train_sampling_strategy="sequential",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_steps=2,
        ),
        train_dataset=Dataset.from_list(rows()),
    )
    if shards:
        shard(trainer)
    trainer.train()
    return [{name: entry[name] for name in LOGGED} for entry in trainer.state.log_history if "loss" in entry]


def shard(trainer: Any) -> None:
    """Let accelerate shard the model, which it does on the CPU only if its state names FSDP."""
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
        state_dict_type="FULL_STATE_DICT",
        reshard_after_forward=True,
    )
    trainer.accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def main() -> None:
    """Write what was logged into ``logged.json``, and each model into a folder named after its loss."""
    model, folder = sys.argv[1], Path(sys.argv[2])
    logged = {loss: train(model, folder / loss, loss, rows_at_a_time=1, shards=True) for loss in LOSSES}
    if PartialState().is_main_process:
        (folder / "logged.json").write_text(json.dumps(logged), encoding="utf-8")
    PartialState().wait_for_everyone()
    os._exit(0)  # where gloo's threads still hold a tensor, Python's tearing down blocks the process


if __name__ == "__main__":
    main()
