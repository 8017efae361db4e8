"""Started by ``accelerate launch`` on two processes: trains a reward model, then GRPO with it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import rm_plugins as rm
from rm_plugins_trl import RewardConfig, RewardTrainer, reward_func


def main() -> None:
    """Train, and write what was found into ``result.json``."""
    model, policy, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    quiet: dict[str, Any] = {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "bf16": False,
    }
    pairs = [{"prompt": "Name a colour.", "chosen": f" It is blue{'.' * n}", "rejected": " two"} for n in range(8)]
    trainer = RewardTrainer(
        model,
        RewardConfig(output_dir=str(folder / "rm"), max_steps=2, per_device_train_batch_size=2, **quiet),
        train_dataset=Dataset.from_list(pairs),
        eval_dataset=Dataset.from_list(pairs[:3]),
    )
    trainer.train()
    trainer.evaluate()
    PartialState().wait_for_everyone()

    scored: list[float] = []

    class Kept(rm.Provider):
        """The trained reward, which keeps what it said in this process."""

        name = "kept"
        label = "rm"

        def __init__(self) -> None:
            self.inner = rm.load(folder / "rm")

        def score_batch(self, samples: Any) -> rm.Scores:
            scores = self.inner.score(samples)
            scored.extend(scores.values)
            return scores

    grpo = GRPOTrainer(
        model=policy,
        reward_funcs=[reward_func(Kept())],
        args=GRPOConfig(
            output_dir=str(folder / "grpo"),
            max_steps=1,
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=8,
            save_strategy="no",
            **quiet,
        ),
        train_dataset=Dataset.from_list([{"prompt": "Name a colour."}, {"prompt": "Count."}]),
    )
    grpo.train()
    everything = gather_object(scored)
    if PartialState().is_main_process:
        logged = next(entry for entry in grpo.state.log_history if "rewards/rm/mean" in entry)
        (folder / "result.json").write_text(
            json.dumps(
                {
                    **{name: logged[name] for name in ("rewards/rm/mean", "rewards/rm/std")},
                    "expected_mean": sum(everything) / len(everything),
                    "processes": PartialState().num_processes,
                    "rows_per_step": json.loads((folder / "rm" / "reward_manifest.json").read_text())["training"][
                        "rows_per_step"
                    ],
                }
            )
        )
    grpo.accelerator.wait_for_everyone()
    # Not the usual end: where gloo's threads still hold a tensor, Python's tearing down aborts or blocks the process.
    os._exit(0)


if __name__ == "__main__":
    main()
