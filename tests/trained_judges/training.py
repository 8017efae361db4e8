"""Trains a small judge from the shell, as the tutorial does, and measures it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.data.row_files import read_rows, write_rows
from rm_plugins.generation import Sampling, load_generator
from tests.trained_judges.world import TEMPLATE, make_judge, preferences
from tests.warm_process import run_warm

WEIGHTS = {"right": 1.0, "format": 0.2, "agreement": 0.2}
STEPS = 200
COMPLETIONS = 64
_SHARED = ("--lr_scheduler_type", "linear", "--save_strategy", "no", "--report_to", "none")
_CPU = ("--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false", "--disable_tqdm", "true")


def train_judge(
    folder: Path, *, seed: int = 0, weights: Mapping[str, float] = WEIGHTS, steps: int = STEPS
) -> dict[str, dict[str, float]]:
    """Train a judge in an empty folder; the judge is then in its folder ``trained-judge``.

    It starts from a random model, which first learns the form of an answer from pairs with random verdicts, and then the rule from the
    reward.

    Args:
        folder: The folder.
        seed: Of the model and of the training.
        weights: Of the parts of the reward.
        steps: Of the training with the reward.

    Returns:
        What `measured` gives for the held-out questions, by stage: ``form`` and ``reward``.
    """
    questions(folder / "form", _random_verdicts(200), "--held-out", "0")
    questions(folder / "judge-data", preferences(1_200), "--held-out", "0.1")
    spec = {"verdict": {"provider": "verdict", "weights": dict(weights)}}
    (folder / "rm_plugins.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    start = make_judge(folder / "start", seed)
    _trl("sft", folder, start, "form", "judge-sft", 40, 32, seed, "--learning_rate", "4e-3")
    grpo = ("--num_generations", "8", "--max_completion_length", "3", "--shuffle_dataset", "false")
    reward = ("--reward_funcs", "rm_plugins_trl.rewards.verdict", "--learning_rate", "2e-3")
    _trl("grpo", folder, folder / "judge-sft", "judge-data", "trained-judge", steps, COMPLETIONS, seed, *grpo, *reward)
    held_out = list(read_rows(str(folder / "judge-data"), "test"))
    stages = {"form": "judge-sft", "reward": "trained-judge"}
    return {stage: measured(folder / name, held_out) for stage, name in stages.items()}


def questions(out: Path, rows: Iterator[dict[str, str]], *options: str) -> None:
    """Write the questions of preference rows with ``rm-plugins judge-data``."""
    file = out.with_suffix(".jsonl")
    write_rows(rows, file)
    arguments = ["judge-data", str(file), "-o", str(out), "--template", TEMPLATE, "--no-explain", "--with-completion", *options]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 0, told.output


def measured(judge: Path, held_out: list[dict[str, Any]]) -> dict[str, float]:
    """The share of right answers in each order, of pairs that are right in both, and of answers without a verdict."""
    generator = load_generator(str(judge), Sampling(n=1, temperature=0.01, max_new_tokens=3), engine="transformers")
    answers = generator.complete(held_out)
    generator.close()
    samples = [rm.Sample(row["prompt"], answer.text, row) for row, [answer] in zip(held_out, answers, strict=True)]
    scores = rm.load("verdict", weights={"right": 1, "agreement": 1}).score(samples)
    right, agreement = scores.parts["right"].values, scores.parts["agreement"].values
    shares = {f"order {order}": float(right[[row["order"] == order for row in held_out]].mean()) for order in (0, 1)}
    return {**shares, "both orders": float((right * agreement).mean()), "no verdict": scores.metadata["no_verdict"]}


def _random_verdicts(count: int) -> Iterator[dict[str, str]]:
    chance = random.Random(5)
    for row in preferences(count, seed=7):
        yield row if chance.random() < 0.5 else {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def _trl(command: str, folder: Path, model: Path, data: str, out: str, steps: int, batch: int, seed: int, *more: str) -> None:
    run_warm(
        *(
            "trl.cli.main",
            command,
            "--model_name_or_path",
            model,
            "--dataset_name",
            folder / data,
            "--output_dir",
            folder / out,
        ),
        *("--max_steps", str(steps), "--per_device_train_batch_size", str(batch), "--seed", str(seed), *_SHARED, *_CPU, *more),
        cwd=folder,
        HF_DATASETS_CACHE=str(folder / "cache"),
    )
