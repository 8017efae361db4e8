"""PPO's evaluations, what it writes, and its adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from rm_plugins.engine.token_forward import TokenForward
from rm_plugins.errors import DataError
from tests.trl.conftest import TRL_WARNINGS, newest_trl
from tests.trl.ppo.worlds import (
    letters_policy,
    logged,
    same,
    trainer,
    weights,
)

pytestmark = [newest_trl, *TRL_WARNINGS]

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


class TestEvaluation:
    HELD_OUT = Dataset.from_list([{"prompt": "a b c"}, {"prompt": "f"}, {"prompt": "e e"}, {"prompt": "d"}])

    def test_the_critic_of_the_best_checkpoint_comes_back_with_its_policy(self, tmp_path: Path) -> None:
        best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "greater_is_better": True}
        saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
        trained = trainer(tmp_path, eval_dataset=self.HELD_OUT, **best, **saving)
        scores = iter([3.0] + [0.0] * 16)
        evaluate = trained.evaluate
        trained.evaluate = lambda *args, **given: {**evaluate(*args, **given), "eval_reward": next(scores)}  # type: ignore
        trained.train()
        folder = Path(trained.state.best_model_checkpoint)
        trained.save_model(str(tmp_path / "final"))
        for name in ("model.safetensors", "critic/model.safetensors"):
            assert (tmp_path / "final" / name).read_bytes() == (folder / name).read_bytes()

    @pytest.mark.parametrize("several", [False, True])
    def test_completions_are_shown_on_demand_as_by_trl_1_12(
        self, several: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        held_out = {"easy": self.HELD_OUT, "hard": self.HELD_OUT} if several else self.HELD_OUT
        trained = trainer(tmp_path, eval_dataset=held_out, per_device_eval_batch_size=2)
        trained.generate_completions(sampling=True)
        assert "Completion" in capsys.readouterr().out
        trained.generate_completions()
        figures = ["eval_easy_reward", "eval_hard_reward"] if several else ["eval_reward"]
        assert all(len(logged(trained, name)) == 2 for name in figures)
        assert trained.log_completions is False
        with pytest.raises(DataError, match="samples completions of eval_dataset, and there is none"):
            trainer(tmp_path).generate_completions()

    def test_it_changes_no_training(self, tmp_path: Path) -> None:
        evaluating = {"eval_dataset": self.HELD_OUT, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}
        trained = []
        for changes in ({}, evaluating):
            trained.append(trainer(tmp_path, reward_scaling="running", adaptive_kl_target=0.1, **changes))
            trained[-1].train()
        plain, evaluated = trained
        assert same(weights(plain.model), weights(evaluated.model))
        assert same(weights(plain.critic), weights(evaluated.critic))
        assert plain.progress.scale == evaluated.progress.scale
        assert logged(plain, "objective/kl_coef") == logged(evaluated, "objective/kl_coef")
        assert len(logged(evaluated, "eval_rewards/count_a/mean")) == 8
        assert len(logged(evaluated, "eval_loss")) == 8

    def test_it_leaves_no_attention_open(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = 0

        @contextmanager
        def attention(self: Any) -> Iterator[None]:
            nonlocal opened
            opened += 1
            yield
            opened -= 1

        monkeypatch.setattr(TokenForward, "attention", attention)
        trainer(tmp_path, eval_dataset=self.HELD_OUT, per_device_eval_batch_size=4).evaluate()
        assert opened == 0

    def test_of_several_datasets(self, tmp_path: Path) -> None:
        trained = trainer(
            tmp_path,
            eval_dataset={"easy": self.HELD_OUT, "hard": self.HELD_OUT.select([0, 1])},
            eval_strategy="steps",
            eval_steps=4,
            per_device_eval_batch_size=2,
        )
        trained.train()
        for name in ("easy", "hard"):
            assert len(logged(trained, f"eval_{name}_loss")) == 2
            assert len(logged(trained, f"eval_{name}_rewards/count_a/mean")) == 2
        found = trained.evaluate()
        assert {"eval_easy_reward", "eval_hard_reward"} <= found.keys()

    def test_of_one_dataset_by_hand(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path, eval_dataset=self.HELD_OUT, per_device_eval_batch_size=4)
        found = trained.evaluate()
        assert found["eval_reward"] == pytest.approx(found["eval_objective/scores"])
        assert "eval_rewards/count_a/abstained" in found

    def test_samples_are_shown_during_the_training(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        trained = trainer(tmp_path, eval_dataset=self.HELD_OUT, num_sample_generations=2, per_device_eval_batch_size=4)
        trained.train()
        assert len(logged(trained, "eval_reward")) == 2
        assert "Completion" in capsys.readouterr().out


class TestOutputs:
    def test_the_table_of_completions_has_their_advantages(self, tmp_path: Path) -> None:
        trained = trainer(
            tmp_path, log_completions=True, total_episodes=8, whiten_advantages=False, kl_coef=0.0, gamma=1.0, lam=1.0
        )
        trained.train()
        table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
        assert len(table) == 8
        assert table["count_a"].tolist() == [float(text.count("a")) for text in table["completion"]]
        np.testing.assert_allclose(table["advantage"], table["count_a"])  # the critic's values are 0 at first

    def test_a_saved_policy_and_critic_can_be_used(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path / "run")
        trained.train()
        trained.save_model(str(tmp_path / "saved"))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert same(weights(loaded), weights(trained.model))
        AutoTokenizer.from_pretrained(tmp_path / "saved")
        again = trainer(
            tmp_path / "run",
            model=str(tmp_path / "saved"),
            value_model=str(tmp_path / "saved" / "critic"),
        )
        assert same(weights(again.critic), weights(trained.critic))
        again.train()
        assert json.loads((tmp_path / "saved" / "critic" / "critic.json").read_text())["kind"] == "value model"


class TestAdapters:
    def test_a_new_adapter_needs_no_copy_of_the_policy(self, tmp_path: Path) -> None:
        plain = sum(one.numel() for one in letters_policy().parameters())
        trained = trainer(tmp_path, peft_config=LoraConfig(**LORA), critic="head", learning_rate=0.05)
        assert trained.reference.model is None
        assert isinstance(trained.model, PeftModel)
        tensors = {id(one): one for one in [*trained.model.parameters(), *trained.critic.parameters()]}
        assert sum(one.numel() for one in tensors.values()) < 1.2 * plain
        base = weights(letters_policy())
        trained.train()
        assert logged(trained, "objective/kl")[0] == 0
        assert logged(trained, "objective/kl")[-1] != 0
        after = {
            name.replace("base_model.model.", "").replace(".base_layer", ""): tensor
            for name, tensor in weights(trained.model).items()
            if "lora" not in name
        }
        assert same(base, after)
        trained.save_model(str(tmp_path / "saved"))
        loaded = PeftModel.from_pretrained(letters_policy(), tmp_path / "saved")
        assert same(
            {k: v for k, v in weights(loaded).items() if "lora" in k},
            {k: v for k, v in weights(trained.model).items() if "lora" in k},
        )

    def test_a_trained_adapter_is_its_own_reference(self, tmp_path: Path) -> None:
        policy = with_adapter("default")
        given = weights(policy)
        trained = trainer(tmp_path, model=policy, critic="head", learning_rate=0.05)
        trained.train()
        assert logged(trained, "objective/kl")[0] == pytest.approx(0, abs=1e-5)
        now = weights(trained.model)
        assert not all(torch.equal(now[name], given[name]) for name in given if "lora" in name)
        for name in given:
            if ".default." in name:
                assert torch.equal(now[name.replace(".default.", ".ref.")], given[name])
        trained.save_model(str(tmp_path / "saved"))
        loaded = weights(PeftModel.from_pretrained(letters_policy(), tmp_path / "saved"))
        assert all(torch.equal(loaded[name], now[name]) for name in loaded if "lora" in name)

    def test_adapters_by_name(self, tmp_path: Path) -> None:
        policy = with_adapter("learner", "anchor")
        given = weights(policy)
        trained = trainer(
            tmp_path, model=policy, critic="head", model_adapter_name="learner", ref_adapter_name="anchor", learning_rate=0.05
        )
        trained.train()
        now = weights(trained.model)
        assert logged(trained, "objective/kl")[0] != 0  # they differ from the start
        changed = {name for name in given if not torch.equal(now[name], given[name])}
        assert changed
        assert all(".learner." in name for name in changed)
        assert trained.model.active_adapter == "learner"


def with_adapter(*names: str) -> Any:
    """A policy with random adapters of these names."""
    policy = get_peft_model(letters_policy(), LoraConfig(**LORA), adapter_name=names[0])
    for name in names[1:]:
        policy.add_adapter(name, LoraConfig(**LORA))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, parameter in policy.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return policy
