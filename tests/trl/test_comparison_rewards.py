"""Rewards that compare, in real trainers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

import rm_plugins as rm
from rm_plugins_trl import RewardFunction, reward_func
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS

SPEC: dict[str, Any] = {
    "provider": "comparison",
    "comparer": {"name": "function", "function": "tests.comparisons.judges_of_texts:longer"},
    "schedule": "swiss",
}
PROMPTS = ["Name a colour.", "Count."]


class Watched:
    """Keeps what a reward scored."""

    def __init__(self, reward: RewardFunction) -> None:
        self.batches: list[tuple[list[rm.Sample], rm.Scores]] = []
        reward.watchers.append(lambda samples, scores, state: self.batches.append((list(samples), scores)))

    def groups(self) -> list[tuple[list[str], list[float]]]:
        """The completions of each prompt in each batch, with their scores."""
        found = []
        for samples, scores in self.batches:
            for prompt in dict.fromkeys(sample.prompt_key for sample in samples):
                rows = [row for row, sample in enumerate(samples) if sample.prompt_key == prompt]
                found.append(([samples[row].completion_text for row in rows], scores.values[rows].tolist()))
        return found


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    small = {"output_dir": str(folder / "out"), "max_steps": 2, "logging_steps": 1, "report_to": "none", "disable_tqdm": True}
    return {**small, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "use_cpu": True, **more}


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_in_a_group_trainer(
    trainer_class: Any, config_class: Any, conversational: bool, tiny_policy: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": [{"role": "user", "content": text}] if conversational else text} for text in PROMPTS]
    reward = reward_func(SPEC, name="compared")
    watched = Watched(reward)
    trainer = trainer_class(
        model=str(tiny_policy),
        reward_funcs=[reward],
        args=config_class(**settings(tmp_path, per_device_train_batch_size=8, num_generations=4, max_completion_length=8)),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    groups = watched.groups()
    assert [len(texts) for texts, _ in groups] == [4] * len(groups)
    for texts, values in groups:
        lengths = [len(text) for text in texts]
        assert abs(np.nansum([dict(zip(texts, values, strict=True))[text] for text in set(texts)])) < 1e-6
        if len(set(lengths)) > 1:
            assert values[int(np.argmax(lengths))] == max(values)
    logged = [entry for entry in trainer.state.log_history if "rewards/compared/mean" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert entry["rewards/compared/calls"] > 0
        assert entry["rewards/compared/position_bias"] == pytest.approx(0.5)
        assert entry["rewards/compared/contradictory"] == entry["rewards/compared/missing"] == 0
        assert entry["rewards/compared/standard_error"] > 0


def test_in_online_dpo(tiny_policy: Path, tmp_path: Path) -> None:
    """The two completions of a prompt are compared; equal ones get the fallback's score, because this trainer has no abstentions."""
    alone = {"alone": "error", "on_error": {"fallback": {"provider": "constant", "value": 0.0}}}
    reward = reward_func({**SPEC, "schedule": "all-pairs", **alone}, name="compared")
    watched = Watched(reward)
    trainer = OnlineDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_policy),
        reward_funcs=[reward],
        args=OnlineDPOConfig(**settings(tmp_path, per_device_train_batch_size=2, max_new_tokens=8)),
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        processing_class=AutoTokenizer.from_pretrained(tiny_policy),
    )
    trainer.train()
    groups = watched.groups()
    assert groups
    for texts, values in groups:
        assert len(texts) == 2
        assert values[0] == -values[1]
        assert (len(texts[0]) > len(texts[1])) == (values[0] > 0)


def test_a_pickled_reward_gives_the_same_scores() -> None:
    reward = reward_func(SPEC)
    again = pickle.loads(pickle.dumps(reward))
    batch = (["a"] * 4, ["x", "xx", "xxx", "x"])
    assert again(*batch) == reward(*batch)
