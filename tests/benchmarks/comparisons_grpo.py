"""GRPO with a reward that compares answers, beside one that scores each alone, from the same labels; the world's true reward is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset
from transformers import PrinterCallback

import rm_plugins as rm
from rm_plugins_trl import RewardConfig, RewardTrainer
from rm_plugins_trl.demo.policies import load_policy
from rm_plugins_trl.demo.progress import quiet_libraries
from rm_plugins_trl.demo.training import TINY, optimize_policy
from rm_plugins_trl.demo.world import gold, make_world
from rm_plugins_trl.reward_function import reward_func
from tests.benchmarks.overoptimization_runs import COMPLETION_TOKENS, FLIP_RATE, GOLD, KL_WEIGHT, make_models, quiet_stage

PAIRS = (2_000, 8_000)
"""Numbers of labels that the judging models learn from."""
STEPS = 200
LAST = 20
"""Steps at the end of a training whose completions are measured."""
TEMPLATE = "A: {first}\n\nB: {second}"
POINTWISE = "one answer at a time"
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "`swiss`": {"schedule": "swiss"},
    "`all-pairs`": {},
}
REWARDS = (POINTWISE, *SCHEDULES)

Row: TypeAlias = dict[str, Any]


def make_judges(folder: Path, seed: int, pairs: int) -> None:
    """Make what a folder lacks of a seed's policy, a model that scores one answer, and one that compares two, of the same labels."""
    make_models(folder, seed, pairs, 1)
    out = folder / "comparer"
    if not (out / "reward_manifest.json").exists():
        world = make_world(seed, pairs=pairs, flip_rate=FLIP_RATE)
        train_comparer(str(folder / "start"), world.pairs, out, seed)


def train_comparer(start: str, pairs: Sequence[Row], out: Path, seed: int) -> None:
    """Train a model to tell from a text with both answers whether the first is better; it sees each pair in both orders."""
    rows = [
        {"prompt": pair["prompt"], "completion": both(pair[one], pair[other]), "label": one == "chosen"}
        for pair in pairs
        for one, other in (("chosen", "rejected"), ("rejected", "chosen"))
    ]
    with TemporaryDirectory() as scratch:
        arguments = RewardConfig(
            scratch,
            loss="binary",
            seed=seed,
            learning_rate=TINY.reward_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=30,
            adam_beta2=0.99,
            num_train_epochs=1,
            per_device_train_batch_size=32,
            max_length=512,
            overlong="truncate",
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RewardTrainer(start, arguments, train_dataset=Dataset.from_list(rows))
        trainer.remove_callback(PrinterCallback)  # it prints every log as a mapping
        trainer.train()
        trainer.save_model(str(out))


def both(first: str, second: str) -> str:
    """The text that the comparer reads."""
    return TEMPLATE.replace("{first}", first).replace("{second}", second)


def spec(name: str, folder: Path) -> dict[str, Any]:
    """A reward of the seed whose models are in a folder."""
    if name == POINTWISE:
        return {"provider": "sequence-classifier", "model": str(folder / "member-0")}
    comparer = {"name": "text-pair", "reward": str(folder / "comparer"), "score": "logit", "template": TEMPLATE}
    return {"provider": "comparison", "comparer": comparer, "contradictions": "average", **SCHEDULES[name]}


def accuracies(folder: Path, seed: int) -> dict[str, float]:
    """The share of held-out pairs, by their true rewards, that the pointwise model and a comparison in both orders get right."""
    rows = make_world(seed, pairs=0, demonstrations=0, held_out_pairs=500).held_out_pairs
    groups = [[rm.Sample(row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in rows]
    known = [[gold(str(sample.prompt), str(sample.completion)) or 0.0 for sample in group] for group in groups]
    differing = [number for number, (one, other) in enumerate(known) if one != other]
    found = {}
    for title, name in ((POINTWISE, POINTWISE), ("comparison", "`all-pairs`")):
        rewards = rm.load(spec(name, folder))
        right = []
        for number in differing:
            one, other = rewards.score(groups[number]).values
            right.append((one > other) == (known[number][0] > known[number][1]))
        found[title] = float(np.mean(right))
    return found


def trained(folder: Path, seed: int, name: str, steps: int) -> Row:
    """Train the seed's policy with a reward.

    Returns:
        The mean true reward of the completions of the first and of the last steps, the divergence at the end, and what comparing took.
    """
    world = make_world(seed, pairs=0, held_out_pairs=0, demonstrations=0)
    model, tokenizer = load_policy(str(folder / "policy"))
    reward = reward_func(spec(name, folder), name="proxy")
    with quiet_libraries():
        curves = optimize_policy(
            model,
            tokenizer,
            world.prompts,
            [reward, reward_func(GOLD, name="gold")],
            steps=steps,
            completion_tokens=COMPLETION_TOKENS,
            recipe=TINY,
            stage=quiet_stage(),
            seed=seed,
            kl_weight=KL_WEIGHT,
        )
    last = curves[-LAST:]
    return {
        "start": curves[0]["gold"],
        "end": float(np.mean([step["gold"] for step in last])),
        "kl": float(np.mean([step["kl"] for step in last])),
        "abstained": reward.provider.counts["abstained"] / max(1, reward.provider.counts["samples"]),
    }
