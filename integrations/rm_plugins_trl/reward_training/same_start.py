"""The start of a training on several processes, which must have the same data, settings, packages and weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from rm_plugins.processes import check_same
from rm_plugins_trl.reward_training.resuming import data_digest

_OF_A_PROCESS = frozenset(
    {
        *("local_rank", "use_cpu", "deepspeed", "fsdp_config", "ddp_timeout"),
        *(
            "output_dir",
            "logging_dir",
            "run_name",
            "report_to",
            "project",
            "log_level",
            "log_level_replica",
            "log_on_each_node",
        ),
        *(
            "disable_tqdm",
            "dataset_num_proc",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
        ),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "push_to_hub", "hub_token", "hub_model_id"),
        *("hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision", "resume_from_checkpoint", "save_on_each_node"),
        *("model_init_kwargs", "overwrite_output_dir", "debug", "skip_memory_metrics", "torch_compile_backend"),
        *("loss", "regularizers"),  # which the facts of a training have, in whatever form they were given
    }
)
"""Arguments that may differ between processes, because they name local files or say what a process reports."""


def started_together(trainer: Any, checkpoint: Callable[[], Path | None]) -> Path | None:
    """The checkpoint that a training resumes from, if all processes are about to do the same training.

    Compared are the training's settings and data, the evaluation's data, the weights, the checkpoint, and the versions of packages. Streams
    are not compared, because their rows are not known in advance.

    Args:
        trainer: The `RewardTrainer`.
        checkpoint: Finds the checkpoint in this process.

    Raises:
        ProcessError: The processes differ, or another one cannot start.
    """
    if trainer.accelerator.num_processes == 1:
        return checkpoint()
    found: Path | None = None

    def facts() -> dict[str, Any]:
        nonlocal found
        found = checkpoint()
        decided = trainer.what_decides()
        arguments = {name: value for name, value in trainer.args.to_dict().items() if name not in _OF_A_PROCESS}
        return {
            **{name: value for name, value in arguments.items() if _is_plain(value)},
            **decided,
            **{f"eval_data {name}".rstrip(): data_digest(data) for name, data in _named(trainer.eval_dataset).items()},
            "checkpoint": None if found is None else found.name,
        }

    check_same(facts, "the settings, data and weights of the training")
    return found


def _named(data: Any) -> dict[str, Any]:
    return dict(data) if isinstance(data, (dict, DatasetDict)) else {"": data} if isinstance(data, Dataset) else {}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
