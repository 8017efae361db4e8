"""A whole step of GRPO, with the reward model given to TRL as it is and as ours."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from rm_plugins_trl import reward_func
from tests.benchmarks.contenders import TOLERANCE

OURS = "reward_func(folder)"
MODULE = "the model itself (TRL's own path)"
NOTHING = "a reward that costs nothing"

PROMPTS = 4
GENERATIONS = 8
COMPLETION_TOKENS = 32


def measure_steps(policy: Path, reward_model: Path, prompts: Sequence[str], steps: int, passes: int) -> dict[str, float]:
    """Median seconds of a training step by reward.

    Args:
        policy: The folder of the model that is trained.
        reward_model: The folder of the model that scores.
        prompts: The dataset.
        steps: Steps of each training; the first is left out.
        passes: Trainings with each reward, in turn.

    Raises:
        SystemExit: The mean rewards of the first steps, whose completions are the same, differ by more than `TOLERANCE`.
    """
    times: dict[str, list[float]] = {OURS: [], MODULE: [], NOTHING: []}
    first: dict[str, float] = {}
    for number in range(passes):
        for name, found in times.items():
            logged = _train(policy, _reward(name, reward_model), prompts, steps)
            found += [entry["step_time"] for entry in logged[1:]]
            first[name] = logged[0]["reward"]
            print(f"(d) pass {number + 1} of {passes}: {name}: {statistics.median(found):.2f} s a step", flush=True)
    difference = abs(first[OURS] - first[MODULE])
    if not difference <= TOLERANCE:
        raise SystemExit(f"(d) The mean rewards of the first step differ by {difference:.1e}; {TOLERANCE} is allowed.")
    return {name: statistics.median(found) for name, found in times.items()}


def _reward(name: str, folder: Path) -> dict[str, Any]:
    """The trainer's arguments for a reward."""
    if name == OURS:
        # TRL does not close a text with EOS, so ours must not either for both to score the same tokens.
        return {"reward_funcs": [reward_func({"provider": "sequence-classifier", "model": str(folder), "append_eos": False})]}
    if name == NOTHING:
        return {"reward_funcs": [_nothing]}
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return {"reward_funcs": [model], "reward_processing_classes": [AutoTokenizer.from_pretrained(folder)]}


def _nothing(completions: Sequence[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def _train(policy: Path, reward: dict[str, Any], prompts: Sequence[str], steps: int) -> list[dict[str, float]]:
    """What the trainer logged of each step, [steps]."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(policy),
            processing_class=AutoTokenizer.from_pretrained(policy),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            args=GRPOConfig(
                output_dir=scratch,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                max_steps=steps,
                num_generations=GENERATIONS,
                per_device_train_batch_size=PROMPTS * GENERATIONS,
                max_completion_length=COMPLETION_TOKENS,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                log_level="error",
                seed=0,
            ),
            **reward,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return [entry for entry in trainer.state.log_history if "step_time" in entry]
