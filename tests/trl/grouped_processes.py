"""Started by a launcher on two processes: trains with rewards that compare completions of one prompt, which both processes have.

With URLs of servers, it also trains an agent with rewards of all kinds.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

import rm_plugins as rm
from rm_plugins.errors import UnsupportedError
from rm_plugins_trl import RewardFunction
from tests.trl.conftest import settings

RANKED = {"name": "rank-in-group", "group": "question"}
COMPARED = {
    "provider": "comparison",
    "comparer": {"name": "function", "function": "tests.comparisons.judges_of_texts:longer"},
    "schedule": "swiss",
    "alone": "error",
    "on_error": {"fallback": {"provider": "constant", "value": 0.0}},
}
ROWS = [{"prompt": f"Name a colour {n}.", "question": n % 3} for n in range(8)]


def length(samples: list[rm.Sample]) -> list[float]:
    return [float(len(sample.completion_text)) for sample in samples]


def judged(samples: list[rm.Sample], log_extra: Any = None) -> list[float]:
    return length(samples)


def spec(function: Any = length) -> dict[str, Any]:
    """A sum of rewards that rank within a column, standardize by prompt, and compare within a column."""
    parts = [
        {"provider": "function", "function": function, "transform": RANKED},
        {"provider": "function", "function": length, "transform": "zscore-in-group"},
        {**COMPARED, "group": "question"},
    ]
    return {"provider": "sum", "members": parts, "transform": {"name": "zscore", "running": True}}


class Kept(RewardFunction):
    """A reward that keeps what it was asked and what it answered."""

    def __init__(self, spec: Any, name: str) -> None:
        super().__init__(spec, name)
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts: Any, completions: Any, **others: Any) -> list[float | None]:
        rewards = super().__call__(prompts, completions, **others)
        self.calls.append({"prompts": prompts, "completions": completions, "question": others["question"], "rewards": rewards})
        return rewards


def trained(kind: str, policy: str, folder: Path, reward: Kept) -> Any:
    """A trainer after two generations, whose groups of four are spread over both processes."""
    config, trainer = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[kind]
    made = trainer(
        model=policy,
        reward_funcs=[reward],
        args=config(
            **settings(
                folder / kind,
                per_device_train_batch_size=3,
                per_device_eval_batch_size=3,
                gradient_accumulation_steps=2,
                num_generations=4,
                num_generations_eval=2,
                max_completion_length=6,
                use_cpu=True,
            )
        ),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:3]),
    )
    made.train()
    return made


def main() -> None:
    """Train, and write what each process asked."""
    torch.set_num_threads(1)
    policy, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
    found: dict[str, Any] = {}
    for kind in ("grpo", "rloo"):
        reward = Kept(spec(), kind)
        trainer = trained(kind, policy, folder, reward)
        found[kind] = {"train": list(reward.calls), "logs": trainer.state.log_history}
        reward.calls.clear()
        trainer.evaluate()
        found[kind]["eval"] = reward.calls
    try:
        trained("grpo", policy, folder, Kept(spec(judged), "judged"))
    except UnsupportedError as error:
        found["refused"] = str(error)
    if urls := sys.argv[3:]:
        from tests.trl.judged_agents import trained as trained_agent  # which needs the newest TRL

        found["agent"] = trained_agent(folder, (urls[0], urls[1]), processes=2)
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.barrier()
    os._exit(0)  # where gloo's threads still hold a tensor, Python's tearing down aborts or blocks the process


if __name__ == "__main__":
    main()
