"""Trains with PPO as the jobs of a JSON file say: started by itself to be killed or to resume, or by torchrun on two processes."""

import json
import os
import signal
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import LoraConfig

import rm_plugins as rm
from rm_plugins_trl import PPOConfig, PPOTrainer

QUIET: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "bf16": False,
}
ROWS = [{"prompt": f"count{' one,' * (number % 4)} {number}"} for number in range(24)]


class Job(PPOTrainer):
    """Kills its process in the middle of a step, and keeps what it did."""

    kill: int | None = None

    def __init__(self, *args: Any, **given: Any) -> None:
        self.prompts: list[str] = []
        super().__init__(*args, **given)

    def rolled_out(self, rows: Any, learn: Any) -> Any:
        """Keep the prompts of all processes."""
        self.prompts += gather_object([row["prompt"] for row in rows])
        return super().rolled_out(rows, learn)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Die in the middle of a step."""
        found = super().compute_loss(*args, **kwargs)
        if self.state.global_step == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def reward(samples: Sequence[rm.Sample]) -> list[float]:
    """The number of letters and a little more."""
    return [len(sample.completion_text) + 0.1 * sample.completion_text.count("e") for sample in samples]


def written(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
    """Completions of 1 to 7 tokens that depend on the prompt and on how far the training is; some end with EOS."""
    tokenizer = trainer.processing_class
    found: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": None}
    for prompt in prompts:
        seed = zlib.crc32(f"{prompt} {trainer.state.global_step}".encode())
        chosen = torch.Generator().manual_seed(seed)
        ids = torch.randint(4, 370, (1 + seed % 7,), generator=chosen).tolist()
        found["prompt_ids"].append(tokenizer(prompt).input_ids)
        found["completion_ids"].append([*ids, tokenizer.eos_token_id] if seed % 2 and len(ids) < 7 else ids)
    return found


def train_job(job: dict[str, Any]) -> Job:
    """Train, and return the trainer."""
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if job.get("lora") else None
    trainer = Job(
        model=job["model"],
        args=PPOConfig(**{**QUIET, **job["config"]}),
        reward_model=reward,
        train_dataset=Dataset.from_list(ROWS),
        peft_config=adapter,
        rollout_func=written if job.get("written") else None,
    )
    trainer.kill = job.get("kill")
    trainer.train(resume_from_checkpoint=job.get("resume"))
    return trainer


def state_of(trainer: Job) -> dict[str, Any]:
    """Everything that a training has become: weights, moments, schedule, scale, KL weight, prompts and random numbers."""
    return {
        "policy": {name: one.detach().clone() for name, one in trainer.model.state_dict().items()},
        "critic": {name: one.detach().clone() for name, one in trainer.critic.state_dict().items()},
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.lr_scheduler.get_last_lr(),
        "scale": vars(trainer.progress.scale),
        "kl_weight": trainer.progress.kl.weight,
        "prompts": trainer.prompts,
        "random": torch.rand(2),
        "step": trainer.state.global_step,
        "rates": [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry],
        "episode": [entry["episode"] for entry in trainer.state.log_history if "episode" in entry],
    }


def run_jobs(file: Path) -> None:
    """Run the jobs of a file, and save the state of each process beside the checkpoints."""
    for job in json.loads(file.read_text(encoding="utf-8")):
        trainer = train_job(job)
        rank = trainer.accelerator.process_index
        torch.save(state_of(trainer), Path(job["config"]["output_dir"]) / f"state-{rank}.pt")
        trainer.accelerator.wait_for_everyone()


def main() -> None:
    """Run the jobs; with several processes, leave as `tests/trl/two_processes.py` does."""
    torch.set_num_threads(1)
    run_jobs(Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        os._exit(0)


if __name__ == "__main__":
    main()
