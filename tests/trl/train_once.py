"""Trains a reward model as a JSON file says: started by itself to be killed, or by torchrun on several processes."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

from rm_plugins_trl import RewardConfig, RewardTrainer

QUIET: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "bf16": False,
}


class KilledTrainer(RewardTrainer):
    """Kills its process at a moment of its training."""

    uses_trl_batches = False
    kill: Any = None  # ("step" or "save", the step)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Die in the middle of a step."""
        found = super().compute_loss(*args, **kwargs)
        self._die("step")
        return found

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Die in the middle of a checkpoint, behind the model."""
        self._die("save")
        super()._save_optimizer_and_scheduler(output_dir)

    def _die(self, moment: str) -> None:
        if self.kill == [moment, self.state.global_step]:
            os.kill(os.getpid(), signal.SIGKILL)


def train_once(path: Path) -> KilledTrainer:
    """Train as the file says, and write the losses beside the model."""
    job = json.loads(path.read_text(encoding="utf-8"))
    trainer = KilledTrainer(
        job["model"], RewardConfig(**{**QUIET, **job["config"]}), train_dataset=Dataset.from_list(job["rows"])
    )
    trainer.kill = job.get("kill")
    trainer.train(resume_from_checkpoint=job.get("resume", False))
    if trainer.is_world_process_zero():
        losses = [{"step": entry["step"], "loss": entry["loss"]} for entry in trainer.state.log_history if "loss" in entry]
        (Path(job["config"]["output_dir"]) / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    return trainer


def main() -> None:
    """Train; with several processes, leave as `tests/trl/two_processes.py` does."""
    trainer = train_once(Path(sys.argv[1]))
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.num_processes > 1:
        os._exit(0)


if __name__ == "__main__":
    main()
