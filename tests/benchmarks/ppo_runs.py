"""What a policy learns with PPO and with GRPO: in a world whose true reward is known, and on real text."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

import rm_plugins as rm
from rm_plugins_trl.demo.policies import load_policy
from rm_plugins_trl.demo.progress import quiet_libraries
from rm_plugins_trl.demo.training import GENERATIONS
from rm_plugins_trl.demo.world import Row, gold, make_world
from tests.benchmarks.overoptimization_runs import COMPLETION_TOKENS, SINGLE, make_models, proxy_spec
from tests.benchmarks.ppo_rollouts import Rollouts, divergence
from tests.benchmarks.texts import data_rows
from tests.conftest import converted_smollm2

__all__ = [
    "CONTENDERS",
    "GRPO",
    "GRPO_KL_WEIGHT",
    "OLDER",
    "OURS",
    "PPO_KL_WEIGHT",
    "REAL",
    "LearningSizes",
    "Run",
    "Training",
    "learn",
    "learn_real",
    "make_seed_models",
]

OLDER, OURS, GRPO = "TRL 1.12's PPO", "PPO", "GRPO"
CONTENDERS = (OLDER, OURS, GRPO)
POLARITY = "rt_sentence_polarity_pairs"
TRAINED_ON = 1_500
"""The first pairs of the polarity data, on which the tests' reward model is trained."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training.

    Args:
        kind: ``learning``, ``real`` or ``speed``.
        contender: Which trainer.
        seed: The seed; of a speed measurement, the number of the round.
        rate: The learning rate.
        what: What tells it from other runs of its kind: sizes or a shape.
    """

    kind: str
    contender: str
    seed: int
    rate: float
    what: str

    @property
    def key(self) -> list[Any]:
        """What tells this run from others, in a file of results."""
        return [self.kind, self.what, self.contender, self.rate, self.seed]


@dataclass(frozen=True, slots=True)
class LearningSizes:
    """How much is computed of a learning comparison.

    Args:
        pairs: Pairs that the reward model is trained on.
        updates: Rollouts.
        completions: Completions of each.
        epochs: PPO's epochs over a rollout.
        points: Evaluations during the training, beside that of its end.
        prompts: Held-out prompts that an evaluation completes.
        tokens: The most tokens of a completion.
    """

    pairs: int = 8_000
    updates: int = 60
    completions: int = 64
    epochs: int = 4
    points: int = 12
    prompts: int = 192
    tokens: int = COMPLETION_TOKENS

    @property
    def name(self) -> str:
        """What tells these sizes from others."""
        return f"{self.updates} x {self.completions} x {self.tokens}, {self.epochs} epochs"


REAL = LearningSizes(updates=20, completions=8, epochs=2, points=2, prompts=96, tokens=16)


# --- Trainers -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Training:
    """What a trainer is made from.

    Args:
        policy: The policy's folder.
        reward: The reward's spec.
        prompts: Rows with ``prompt``.
        completions: Completions of a rollout.
        tokens: The most tokens of a completion.
        updates: Rollouts.
        epochs: PPO's epochs over a rollout.
        rate: The learning rate, which is constant.
        seed: The seed.
    """

    policy: Path
    reward: Mapping[str, Any] | str
    prompts: Sequence[Row]
    completions: int
    tokens: int
    updates: int
    epochs: int
    rate: float
    seed: int

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The policy in float32 and its tokenizer, loaded from the folder."""
        model, tokenizer = load_policy(str(self.policy))
        return model.float(), tokenizer

    def trainer(self, contender: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scratch: str) -> Any:
        """The contender's trainer.

        Args:
            contender: Which trainer.
            model: The policy, which is trained in place.
            tokenizer: Its tokenizer.
            scratch: A folder that it may write to.
        """
        data = Dataset.from_list(list(self.prompts))
        shared: dict[str, Any] = {
            "output_dir": scratch,
            "seed": self.seed,
            "learning_rate": self.rate,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": self.completions,
            "temperature": 1.0,
            "bf16": False,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        if contender == GRPO:
            from trl import GRPOConfig, GRPOTrainer

            from rm_plugins_trl import reward_func

            trainer = GRPOTrainer(
                model=model,
                args=GRPOConfig(
                    **shared,
                    max_steps=self.updates,
                    num_generations=GENERATIONS,
                    max_completion_length=self.tokens,
                    beta=GRPO_KL_WEIGHT,
                ),
                processing_class=tokenizer,
                train_dataset=data,
                reward_funcs=[reward_func(self.reward)],
            )
        else:
            from rm_plugins_trl import PPOConfig, PPOTrainer

            trainer = PPOTrainer(
                model=model,
                args=PPOConfig(
                    **shared,
                    total_episodes=self.updates * self.completions,
                    num_ppo_epochs=self.epochs,
                    response_length=self.tokens,
                    stop_token="eos",
                    num_sample_generations=0,
                    kl_coef=PPO_KL_WEIGHT,
                ),
                processing_class=tokenizer,
                train_dataset=data,
                reward_model=rm.load(self.reward),
            )
        trainer.remove_callback(PrinterCallback)  # it prints every log
        return trainer


GRPO_KL_WEIGHT = 0.04
PPO_KL_WEIGHT = 0.05
"""The weights of the KL divergence: that of the demonstration, and PPO's default."""


# --- Learning -------------------------------------------------------------------------------------------------------------


def learn(run: Run, sizes: LearningSizes, folder: Path) -> dict[str, Any]:
    """Train a seed's policy against its reward model.

    Args:
        run: The run.
        sizes: How much is computed.
        folder: Where the models of every seed are kept.

    Returns:
        ``points``: see `_curve`, with the reward ``gold``.
    """
    models = seed_folder(folder, run.seed)
    world = make_world(run.seed, pairs=0, held_out_pairs=0, demonstrations=0)
    training = Training(
        models / "policy",
        proxy_spec(SINGLE, models),
        world.prompts,
        sizes.completions,
        sizes.tokens,
        sizes.updates,
        sizes.epochs,
        run.rate,
        run.seed,
    )

    def true_reward(prompts: Sequence[Row], completions: Sequence[str]) -> float:
        return float(np.mean([gold(row["prompt"], text) for row, text in zip(prompts, completions, strict=True)]))

    return _curve(run.contender, training, sizes, world.held_out_prompts[: sizes.prompts], {"gold": true_reward})


def make_seed_models(seed: int, sizes: LearningSizes, folder: Path) -> None:
    """Make a seed's policy and its reward model, where they are not there yet."""
    with quiet_libraries():
        make_models(seed_folder(folder, seed), seed, sizes.pairs, members=1)


def seed_folder(folder: Path, seed: int) -> Path:
    """Where a seed's models are."""
    return folder / f"seed-{seed}"


def learn_real(run: Run, sizes: LearningSizes, data: Path) -> dict[str, Any]:
    """Train SmolLM2-135M to continue real film reviews, against the tests' reward model of their polarity.

    Args:
        run: The run.
        sizes: How much is computed.
        data: The folder of the reviews.

    Returns:
        ``points``: see `_curve`.
    """
    reward = polarity_reward()
    pairs = data_rows(data, POLARITY)[TRAINED_ON:]
    rows = _review_prompts(pairs)
    training = Training(
        converted_smollm2(),
        str(reward),
        rows[: -sizes.prompts],
        sizes.completions,
        sizes.tokens,
        sizes.updates,
        sizes.epochs,
        run.rate,
        run.seed,
    )
    return _curve(run.contender, training, sizes, rows[-sizes.prompts :], {})


def _review_prompts(pairs: list[dict[str, Any]]) -> list[Row]:
    from tests.trl.test_real_models import real_prompts

    return [{"prompt": row["prompt"]} for row in real_prompts(pairs, len(pairs))]


def polarity_reward() -> Path:
    """The folder of the tests' reward model."""
    from tests.trl.conftest import MODELS_VARIABLE

    folder = Path(os.environ.get(MODELS_VARIABLE, "")) / "polarity-rm"
    if not (folder / "reward_manifest.json").is_file():
        raise SystemExit(
            f"{folder} is not a trained reward model. Set {MODELS_VARIABLE}=FOLDER and run "
            "`python -m pytest tests/trl/test_real_models.py -k minilm_learns` once, which trains it there."
        )
    return folder


def _curve(
    contender: str,
    training: Training,
    sizes: LearningSizes,
    held_out: Sequence[Row],
    rewards: Mapping[str, Callable[[Sequence[Row], Sequence[str]], float]],
) -> dict[str, Any]:
    """Train, and evaluate the policy on the held-out prompts at equal distances.

    Returns:
        ``points``, each with

        - ``updates`` and ``tokens``: the rollouts until then, and the tokens of their completions;
        - ``seconds``: the CPU seconds without evaluations;
        - ``kl``: in nats per token;
        - ``proxy`` and ``proxy_error``: the mean of the reward that is trained against, and its standard error;
        - ``length``: of a completion, in tokens;
        - the further rewards.
    """
    policy, tokenizer = training.load()
    start = training.load()[0].eval()
    proxy = rm.load(training.reward)
    points: list[dict[str, float]] = []
    every = max(1, sizes.updates // sizes.points)

    def evaluate(update: int) -> None:
        seconds = rollouts.seconds()
        completions, kl, length = divergence(
            policy, start, tokenizer, held_out, sizes.tokens, seed=0, batch_size=sizes.completions
        )
        samples = [rm.Sample(row["prompt"], _answer(row, text)) for row, text in zip(held_out, completions, strict=True)]
        values = proxy.score(samples).values
        found = {
            "proxy": float(np.mean(values)),
            "proxy_error": float(np.std(values) / len(values) ** 0.5),
            "kl": kl,
            "length": length,
        }
        found |= {name: reward(held_out, completions) for name, reward in rewards.items()}
        points.append(
            {
                "updates": update,
                "tokens": sum(rollouts.tokens),
                "seconds": round(seconds, 2),
                **{name: round(value, 5) for name, value in found.items()},
            }
        )
        print(f"{contender}: {points[-1]}", file=sys.stderr, flush=True)

    def before(update: int) -> None:
        if update % every == 0:
            evaluate(update)

    with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
        trainer = training.trainer(contender, policy, tokenizer, scratch)
        rollouts = Rollouts(policy, tokenizer, before)
        trainer.train()
        with rollouts.uncounted():
            evaluate(len(rollouts.starts))
    return {"points": points}


def _answer(row: Row, text: str) -> Any:
    return text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
