"""The three trainings of the demonstration: a starting policy, a reward model, and the policy against the reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from rm_plugins_trl.configs import bf16_by_default
from rm_plugins_trl.demo.progress import Stage
from rm_plugins_trl.demo.world import Row
from rm_plugins_trl.reward_function import RewardFunction
from rm_plugins_trl.reward_training.reward_config import RewardConfig
from rm_plugins_trl.reward_training.reward_trainer import RewardTrainer

GENERATIONS = 8
"""Completions of each prompt in GRPO."""
LONGEST_ROW = 512
"""In tokens, for training on given texts."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings that differ between a tiny new model and a pretrained one.

    `completions` is the number per step of GRPO; `checkpointing` recomputes activations to save memory.
    """

    reward_learning_rate: float
    policy_learning_rate: float
    completions: int
    checkpointing: bool


TINY = Recipe(reward_learning_rate=1e-3, policy_learning_rate=3e-4, completions=64, checkpointing=False)
WHOLE = Recipe(reward_learning_rate=2e-5, policy_learning_rate=5e-6, completions=16, checkpointing=True)


def start_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, demonstrations: Sequence[Row], stage: Stage, seed: int
) -> None:
    """Train a new model to imitate the demonstrations, good and bad ones alike."""
    with TemporaryDirectory() as scratch:
        args = SFTConfig(
            **_shared(scratch, seed, TINY),
            per_device_train_batch_size=16,
            num_train_epochs=1,
            learning_rate=4e-3,
            warmup_steps=30,
            max_grad_norm=1.0,
            adam_beta2=0.99,
            max_length=LONGEST_ROW,
        )
        trainer = SFTTrainer(
            model=model, args=args, train_dataset=Dataset.from_list(list(demonstrations)), processing_class=tokenizer
        )
        _train(trainer, stage)


def train_reward_model(
    start: str, pairs: Sequence[Row], held_out_pairs: Sequence[Row], folder: Path, recipe: Recipe, stage: Stage, seed: int
) -> None:
    """Train a reward model on preference pairs and save it with its manifest; the score statistics are of the held-out pairs."""
    with TemporaryDirectory() as scratch:
        args = RewardConfig(
            **_shared(scratch, seed, recipe),
            per_device_train_batch_size=16,
            num_train_epochs=1,
            learning_rate=recipe.reward_learning_rate,
            warmup_steps=30,
            adam_beta2=0.99,
            max_length=LONGEST_ROW,
            overlong="truncate",
            regularizers={"centering": 0.01},  # rewards about zero, which preferences alone leave open
        )
        trainer = RewardTrainer(
            model=start,
            args=args,
            train_dataset=Dataset.from_list(list(pairs)),
            eval_dataset=Dataset.from_list(list(held_out_pairs)),
        )
        _train(trainer, stage)
        trainer.evaluate()
        trainer.save_model(str(folder))


def optimize_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Row],
    rewards: Sequence[RewardFunction],
    *,
    steps: int,
    completion_tokens: int,
    recipe: Recipe,
    stage: Stage,
    seed: int,
    kl_weight: float = 0.04,
) -> list[dict[str, float]]:
    """Train a policy with GRPO against the first of the rewards; further ones are only measured.

    The weight of the KL divergence, GRPO's beta, keeps the policy close to the start, where the reward model is accurate.

    Returns:
        One mapping per step: ``step``, ``kl``, and the mean of every reward over the step's completions, by its name.
    """
    with TemporaryDirectory() as scratch:
        args = GRPOConfig(
            **_shared(scratch, seed, recipe),
            logging_steps=1,
            max_steps=steps,
            per_device_train_batch_size=recipe.completions,
            num_generations=GENERATIONS,
            max_completion_length=completion_tokens,
            learning_rate=recipe.policy_learning_rate,
            warmup_steps=10,
            beta=kl_weight,
            reward_weights=[1.0] + [0.0] * (len(rewards) - 1),
        )
        trainer = GRPOTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(list(prompts)),
            reward_funcs=list(rewards),
        )
        _train(trainer, stage)
    names = [reward.__name__ for reward in rewards]
    return [
        {"step": float(logs["step"]), "kl": float(logs["kl"]), **{name: float(logs[f"rewards/{name}/mean"]) for name in names}}
        for logs in trainer.state.log_history
        if f"rewards/{names[0]}/mean" in logs
    ]


def _shared(scratch: str, seed: int, recipe: Recipe) -> dict[str, Any]:
    return {
        "output_dir": scratch,
        "seed": seed,
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "bf16": bf16_by_default(fp16=False),
        "gradient_checkpointing": recipe.checkpointing,
    }


def _train(trainer: Any, stage: Stage) -> None:
    trainer.remove_callback(PrinterCallback)  # it prints every log as a mapping
    trainer.add_callback(stage)
    trainer.train()
