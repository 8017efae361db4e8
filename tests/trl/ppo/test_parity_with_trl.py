"""The updates of TRL 1.12's own PPO and ours, number by number, where the two define the same; and where they do not, by how much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    TrainerCallback,
    set_seed,
)

from rm_plugins_trl import PPOConfig, PPOTrainer
from rm_plugins_trl.ppo.advantages import generalized_advantages, token_rewards, whitened
from rm_plugins_trl.ppo.kl import kl_terms
from rm_plugins_trl.ppo.rollout import Rollout
from tests.conftest import make_tokenizer
from tests.trl.conftest import TRL_WARNINGS, newest_trl, tiny_config

pytestmark = [newest_trl, *TRL_WARNINGS, pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]

WORLD = Path(sys.prefix) / "worlds" / "trl-1.12.0"
PROGRAM = Path(__file__).with_name("record_trl_ppo.py")
SHARED: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_ppo_epochs": 3,
    "total_episodes": 24,
    "response_length": 6,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "adam_epsilon": 1e-3,  # a gradient that is nothing but rounding errors moves no weight
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "disable_tqdm": True,
}
JOBS: dict[str, dict[str, Any]] = {
    "k1": {"temperature": 0.7},
    "k3, rewards whitened, discounted": {
        **{"kl_estimator": "k3", "whiten_rewards": True, "gamma": 0.9, "lam": 0.7, "temperature": 1.0, "vf_coef": 0.5},
    },
    "k1, rewards whitened": {"whiten_rewards": True, "kl_coef": 0.2, "cliprange": 0.05, "cliprange_value": 0.05},
    "k3, discounted": {"kl_estimator": "k3", "gamma": 0.8, "lam": 1.0, "kl_coef": 0.1},
}
ENDED = "completions that end"
LENGTHS = [1, 2, 3, 4, 5, 6, 2, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, and what TRL's PPO did with them."""
    if not WORLD.is_dir():
        pytest.skip("TRL 1.12, which has a PPO trainer, is not in this environment: `make test` installs it")
    place = tmp_path_factory.mktemp("trl-ppo")
    tokenizer = make_tokenizer()
    config = tiny_config(tokenizer, initializer_range=0.15, num_labels=1)
    for seed, name in enumerate(("policy", "reference", "value", "reward")):
        set_seed(seed)
        kind = Qwen2ForCausalLM if name in {"policy", "reference"} else Qwen2ForSequenceClassification
        kind(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    jobs: list[dict[str, Any]] = [
        {"name": name, "config": {**SHARED, "num_sample_generations": 0, **config}} for name, config in JOBS.items()
    ]
    ended = {**SHARED, "num_sample_generations": 0, "stop_token": "eos", "total_episodes": 8}
    jobs.append({"name": ENDED, "config": ended, "lengths": LENGTHS})
    (place / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    paths = os.pathsep.join([str(WORLD), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, str(PROGRAM), str(place)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return place


class Recorded(PPOTrainer):
    """Keeps its rollouts, with the log-probabilities of the reference."""

    def __init__(self, *args: Any, **given: Any) -> None:
        self.rollouts: list[Rollout] = []
        self.references: list[torch.Tensor] = []
        super().__init__(*args, **given)

    def scored(self, score: Any) -> torch.Tensor:
        rewards = super().scored(score)
        assert self._generated.ref_log_probs is not None
        self.references.append(self._generated.ref_log_probs)
        return rewards

    def rolled_out(self, rows: Any, learn: Any) -> Rollout:
        self.rollouts.append(super().rolled_out(rows, learn))
        return self.rollouts[-1]


class Weights(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Keeps the weights after each rollout."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.after: list[dict[str, dict[str, torch.Tensor]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % args.num_ppo_epochs == 0:
            models = {"policy": self.trainer.model, "critic": self.trainer.critic.model}
            self.after.append(
                {name: {key: one.clone() for key, one in model.state_dict().items()} for name, model in models.items()}
            )


def completions_of(update: Mapping[str, Any], pad: int, end: int | None) -> tuple[list[list[int]], list[list[int]]]:
    """The token ids of the prompts and the completions that TRL's PPO learned from."""
    width = update["context_length"]
    rows = update["query_responses"].tolist()
    prompts = [[token for token in row[:width] if token != pad] for row in rows]
    completions = [row[width:] if end not in row[width:] else row[width : row.index(end, width) + 1] for row in rows]
    return prompts, completions


def trained(folder: Path, updates: list[Any], tmp_path: Path, **config: Any) -> tuple[Recorded, Weights]:
    """Our trainer on the rollouts of TRL's."""
    tokenizer = make_tokenizer()
    rollouts = [completions_of(update, tokenizer.pad_token_id, tokenizer.eos_token_id) for update in updates]
    scores = {
        tuple(completion): float(score)
        for (_, completions), update in zip(rollouts, updates, strict=True)
        for completion, score in zip(completions, update["scores"].flatten(), strict=True)
    }
    coming = iter(rollouts)

    def rollout(prompts: Any, trainer: Any) -> dict[str, Any]:
        prompt_ids, completion_ids = next(coming)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    async def reward(completion_ids: Any, **_: Any) -> list[float]:
        return [scores[tuple(completion)] for completion in completion_ids]

    weights = Weights()
    weights.trainer = trainer = Recorded(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy"),
        ref_model=AutoModelForCausalLM.from_pretrained(folder / "reference"),
        value_model=AutoModelForSequenceClassification.from_pretrained(folder / "value"),
        processing_class=tokenizer,
        args=PPOConfig(
            output_dir=str(tmp_path), report_to="none", save_strategy="no", use_cpu=True, bf16=False,
            gradient_checkpointing=False, **{**SHARED, **config, "logging_steps": SHARED["num_ppo_epochs"]},
        ),
        reward_funcs=[reward],
        rollout_func=rollout,
        train_dataset=Dataset.from_list([{"prompt": "count"}] * 24),
        callbacks=[weights],
    )  # fmt: skip
    trainer.train()
    return trainer, weights


@pytest.mark.parametrize("job", JOBS)
def test_every_number_of_an_update_is_trls(job: str, folder: Path, tmp_path: Path) -> None:
    updates = torch.load(folder / f"{job}.pt")
    trainer, weights = trained(folder, updates, tmp_path, **JOBS[job])
    logs = [entry for entry in trainer.state.log_history if "objective/kl" in entry]
    assert len(updates) == len(trainer.rollouts) == len(logs) == len(weights.after) == 3
    for update, rollout, reference, log, after in zip(
        updates, trainer.rollouts, trainer.references, logs, weights.after, strict=True
    ):
        assert rollout.mask.all()
        for name, ours in {
            "logprobs": rollout.log_probs,
            "ref_logprobs": reference,
            "values": rollout.values,
            "advantages": rollout.advantages,
            "returns": rollout.returns,
        }.items():
            error = (ours - update[name]).abs() - 1e-4 * update[name].abs()
            assert error.max() < 1e-4, name
        shared = set(log) & set(update["metrics"])
        assert {"objective/kl", "loss/policy_avg", "loss/value_avg", "policy/approxkl_avg", "val/ratio"} <= shared
        assert len(shared) >= 13
        for name in shared - {"eps", "lr"}:
            assert log[name] == pytest.approx(update["metrics"][name], abs=1e-4, rel=1e-4), name
        for part, state in after.items():
            for name, tensor in state.items():
                torch.testing.assert_close(tensor, update[part][name], atol=1e-5, rtol=0)
    assert updates[0]["metrics"]["policy/clipfrac_avg"] > 0
    before = AutoModelForCausalLM.from_pretrained(folder / "policy").state_dict()
    assert max((before[name] - tensor).abs().max() for name, tensor in weights.after[-1]["policy"].items()) > 5e-3


def test_completions_that_end_differ_by_one_state_after_the_last_token(folder: Path, tmp_path: Path) -> None:
    """TRL's completion continues for one token after EOS, gets its score there, and values that state."""
    (update,) = torch.load(folder / f"{ENDED}.pt")
    trainer, _ = trained(folder, [update], tmp_path, stop_token="eos", total_episodes=8)
    (rollout,) = trainer.rollouts
    mask = rollout.mask
    assert mask.sum(1).tolist() == LENGTHS
    longer = torch.arange(6) < torch.tensor(LENGTHS)[:, None] + 1
    torch.testing.assert_close(update["logprobs"][mask], rollout.log_probs[mask], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(update["values"][mask], rollout.values[mask], atol=1e-4, rtol=1e-4)

    kl = torch.where(mask, kl_terms(update["logprobs"], update["ref_logprobs"], "k1"), 0.0)
    scores = update["scores"].flatten()
    rewards = token_rewards(scores, kl, longer, 0.05)
    advantages, returns = generalized_advantages(rewards, update["values"], longer, 1.0, 0.95)
    torch.testing.assert_close(whitened(advantages, mask, lambda one: one), update["advantages"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(returns[longer], update["returns"][longer], atol=1e-5, rtol=1e-5)

    rewards = token_rewards(scores, kl, mask, 0.05)
    advantages, returns = generalized_advantages(rewards, update["values"], mask, 1.0, 0.95)
    torch.testing.assert_close(rollout.advantages, whitened(advantages, mask, lambda one: one), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rollout.returns, returns, atol=1e-4, rtol=1e-4)
