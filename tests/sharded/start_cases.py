"""Trainings that two processes start with different files, settings, packages or rewards; each says what differs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import distributed
from transformers import TrainerState

from rm_plugins import processes
from rm_plugins.errors import DataError, ProcessError
from rm_plugins_trl import RewardConfig, RewardTrainer, reward_func
from tests.sharded.launcher import run
from tests.sharded.steps import rank

PAIRS = [{"prompt": "Name a colour.", "chosen": f" It is blue{'.' * number}", "rejected": " two"} for number in range(6)]


def trainer_of(folder: Path, model: Path, rows: list[dict[str, str]] = PAIRS, **settings: Any) -> RewardTrainer:
    config = RewardConfig(
        output_dir=str(folder / f"out-{distributed.get_rank()}"),
        max_steps=1,
        per_device_train_batch_size=1,
        report_to="none",
        disable_tqdm=bool(rank()),  # which may differ
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **{"save_strategy": "no", "logging_steps": 1, **settings},
    )
    return RewardTrainer(str(model), config, train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:2]))


def same(folder: Path, model: Path) -> None:
    trainer_of(folder, model).train()


def other_data(folder: Path, model: Path) -> None:
    rows = [{**row, "rejected": " three"} if rank() and number == 4 else row for number, row in enumerate(PAIRS)]
    with pytest.raises(ProcessError, match=r"differ: train_data is \w+ in process 0 and \w+ in process 1\. Give every node"):
        trainer_of(folder, model, rows).train()


def other_settings(folder: Path, model: Path) -> None:
    with pytest.raises(ProcessError, match=r"differ: eval_steps is 1 in process 0 and 2 in process 1\. Give"):
        trainer_of(folder, model, eval_strategy="steps", eval_steps=1 + rank()).train()


def other_package(folder: Path, model: Path) -> None:
    packages = dict(processes.packages())
    own, processes.packages = processes.packages, lambda: {**packages, "the version of torch": f"2.{rank()}"}  # type: ignore[assignment]
    try:
        with pytest.raises(ProcessError, match=r"differ: the version of torch is 2\.0 in process 0 and 2\.1 in process 1"):
            trainer_of(folder, model).train()
    finally:
        processes.packages = own


def other_weights(folder: Path, model: Path) -> None:
    trainer = trainer_of(folder, model)
    if rank():
        trainer.base_digest = "f" * 64
    with pytest.raises(ProcessError, match=r"differ: base_model is \w+ in process 0 and f+ in process 1"):
        trainer.train()


def no_checkpoint(folder: Path, model: Path) -> None:
    """Process 0 looks for it, and all end with its error."""
    with pytest.raises(DataError, match="^Process 0: .*nothing" if rank() else "nothing is not a checkpoint"):
        trainer_of(folder, model).train(resume_from_checkpoint=str(folder / "nothing"))


def other_rewards(folder: Path, model: Path) -> None:
    state = TrainerState(max_steps=10)
    ours = reward_func(_spec(rank()))
    with pytest.raises(ProcessError, match=r"differ: members\[0\] of the reward 'r' is \w+ in process 0 and \w+ in process 1"):
        ours(["a"], [" b"], trainer_state=state)
    alike = reward_func(_spec(0))
    assert alike(["a"], [" b"], trainer_state=TrainerState(max_steps=10)) == alike(["a"], [" b"])


def _spec(number: int) -> dict[str, Any]:
    window = {"provider": "length-window", "low": 1, "high": 5 + number}
    return {"provider": "ensemble", "label": "r", "members": [window, {"provider": "length-window", "low": 1, "high": 9}]}


CASES: dict[str, Callable[[Path, Path], None]] = {
    "the same": same,
    "other data": other_data,
    "other settings": other_settings,
    "another package": other_package,
    "other weights": other_weights,
    "no checkpoint": no_checkpoint,
    "other rewards": other_rewards,
}


def main() -> None:
    """Run all cases."""
    folder, model = Path(sys.argv[1]), Path(sys.argv[2])
    torch.manual_seed(0)
    run({name: partial(case, folder, model) for name, case in CASES.items()}, folder, 2)


if __name__ == "__main__":
    main()
