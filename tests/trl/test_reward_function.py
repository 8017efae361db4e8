"""A provider as a reward function: what real trainers hand it, and what they make of its answer."""

from __future__ import annotations

import importlib
import json
import math
import pickle
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

import rm_plugins as rm
from rm_plugins.errors import DataError, ModelError, ScoringError, SpecError
from rm_plugins.samples import text_of
from rm_plugins_trl import RewardFunction, reward_func
from tests.trl.conftest import TRL_WARNINGS, settings

pytestmark = TRL_WARNINGS

ROWS = [
    {"prompt": "Name a colour.", "answer": "blue"},
    {"prompt": "Count.", "answer": "one"},
]


class Recorder(rm.Provider):
    """Scores the completion's length, abstains where the answer is ``one``, and keeps what it saw."""

    name = "recorder"

    def __init__(self) -> None:
        self.seen: list[rm.Sample] = []

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        self.seen += samples
        lengths = np.array([len(str(sample.completion)) for sample in samples], dtype=float)
        abstains = [sample.columns.get("answer") == "one" for sample in samples]
        return rm.Scores(np.where(abstains, np.nan, lengths), {"spread": lengths / 2, "std": np.full(len(samples), 7.0)})


def length_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(text_of(completion))) for completion in completions]


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_in_a_group_trainer(
    trainer_class: Any, config_class: Any, conversational: bool, tiny_policy: Path, tmp_path: Path
) -> None:
    rows = [
        {**row, "prompt": [{"role": "user", "content": row["prompt"]}] if conversational else row["prompt"]} for row in ROWS
    ]
    recorder = Recorder()
    arguments = config_class(**settings(tmp_path, num_generations=2, max_completion_length=8, log_completions=True))
    trainer = trainer_class(
        model=str(tiny_policy),
        reward_funcs=[reward_func(recorder, name="mine"), reward_func(length_reward)],
        args=arguments,
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "rewards/mine/mean" in entry)
    assert 0 <= logged["rewards/mine/std"] != 7.0
    assert logged["rewards/mine/std/mean"] == 7.0
    assert logged["rewards/length_reward/mean"] >= 0
    assert logged["rewards/mine/abstained"] == 0.5
    assert logged["rewards/mine/spread"] > 0
    assert {"mine/spread"} <= set(trainer._logs["extra"])
    seen = recorder.seen[0]
    assert seen.is_conversational is conversational
    assert [seen.prompt] == [row["prompt"] for row in rows if row["answer"] == seen.columns["answer"]]
    assert "completion_ids" in seen.columns
    assert "trainer_state" not in seen.columns


def test_in_online_dpo(tiny_policy: Path, tmp_path: Path) -> None:
    """Online DPO adds an abstention as 0, of which it must not do silently."""
    recorder = Recorder()
    arguments = OnlineDPOConfig(**settings(tmp_path, per_device_train_batch_size=2, max_new_tokens=8))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_policy), AutoTokenizer.from_pretrained(tiny_policy)
    trainer = OnlineDPOTrainer(
        model=model,
        reward_funcs=[reward_func(recorder)],
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    with pytest.warns(UserWarning, match="this trainer adds an abstention as 0"):
        trainer.train()
    assert {sample.prompt for sample in recorder.seen} == {"Name a colour.", "Count."}


class TestCall:
    def test_abstention_is_none(self) -> None:
        found = reward_func(Recorder())(["a", "b"], ["xy", "z"], answer=["blue", "one"])
        assert found == [2.0, None]

    def test_details_are_logged_under_the_same_names_always(self) -> None:
        """A name that only some processes log would make TRL's gathering wait for ever."""
        metrics: dict[str, float] = {}
        extra: dict[str, list[Any]] = {}
        reward = reward_func(Recorder(), name="mine")
        reward(["a"], ["xy"], answer=["blue"], log_metric=metrics.__setitem__, log_extra=extra.__setitem__)
        assert metrics == {"rewards/mine/abstained": 0.0, "rewards/mine/spread": 1.0, "rewards/mine/std/mean": 7.0}
        assert extra == {"mine/spread": [1.0], "mine/std": [7.0]}

    def test_a_models_throughput_is_logged_in_every_batch(self, tiny_decoder: Any) -> None:
        reward = reward_func(rm.load(tiny_decoder(), on_error="abstain"), name="mine")
        names = []
        for fails in (False, True):
            metrics: dict[str, float] = {}
            if fails:
                with torch.no_grad():
                    reward.provider.model.score.weight.fill_(np.nan)  # type: ignore[attr-defined]
            reward(["a", "b", "b"], ["x", "y", "y"], log_metric=metrics.__setitem__)
            names.append(set(metrics))
            assert metrics["rewards/mine/tokens_per_second"] > 0  # the model has run, whatever came of it
        assert names[0] == names[1] > {"rewards/mine/duplicate_share", "rewards/mine/cached"}

    def test_a_column_may_have_the_name_of_a_parameter(self) -> None:
        columns: Any = {name: ["x"] for name in ("self", "call", "samples", "function", "spec", "name")}
        assert reward_func(length_reward)(prompts=["Q"], completions=["abc"], **columns) == [3]

    def test_what_is_no_sample_is_named(self) -> None:
        with pytest.raises(DataError, match=r"Item 1 of the batch is not a sample: completion\[0\] has the unknown role 'bot'"):
            reward_func(length_reward)([[], []], ["a", [{"role": "bot", "content": "b"}]])

    def test_columns_of_another_length(self) -> None:
        with pytest.raises(DataError, match="'answer' must be a list of 2 items"):
            reward_func(Recorder())(["a", "b"], ["x", "y"], answer=["blue"])
        with pytest.raises(DataError, match="'completions' must be a list of 2 items"):
            reward_func(Recorder())(["a", "b"], ["x"])

    def test_a_failure_is_never_a_number(self) -> None:
        def broken(samples: list[rm.Sample]) -> list[float]:
            raise RuntimeError("no network")

        with pytest.raises(ScoringError, match="'broken' failed: RuntimeError: no network"):
            reward_func(broken)(["a"], ["x"])
        assert reward_func({"provider": "function", "function": broken, "on_error": "abstain"})(["a"], ["x"]) == [None]

    def test_names(self) -> None:
        assert reward_func(length_reward).__name__ == "length_reward"
        assert reward_func(length_reward, name="other").__name__ == "other"
        assert "other" in repr(reward_func(length_reward, name="other"))

    @pytest.mark.parametrize("form", ["function", "spec", "model"])
    def test_pickles(self, form: str, tiny_decoder: Any) -> None:
        spec: Any = {"function": length_reward, "spec": {"provider": "function", "function": length_reward}}.get(form)
        reward = reward_func(spec if spec is not None else str(tiny_decoder()), name="mine")
        copy: RewardFunction = pickle.loads(pickle.dumps(reward))
        assert copy.__name__ == "mine"
        assert copy(["a"], ["xyz"]) == reward(["a"], ["xyz"])

    def test_another_reward_by_its_name_is_not_unpickled(self, tiny_decoder: Any) -> None:
        folder = tiny_decoder()
        pickled = pickle.dumps(reward_func(str(folder)))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        template = {"chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config | template))
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        with pytest.raises(ModelError, match="differs from the pickled one"):
            pickle.loads(pickled)

    def test_pickles_a_provider_with_its_settings(self, tiny_decoder: Any) -> None:
        provider = rm.load(str(tiny_decoder()), transform={"name": "scale", "factor": 2.0}, on_error="abstain")
        copy = pickle.loads(pickle.dumps(reward_func(provider)))
        assert copy.provider.on_error == "abstain"
        sample = [rm.Sample("a", "b")]
        assert math.isclose(copy.provider.score(sample).values[0], provider.score(sample).values[0])


class TestNamedRewards:
    def test_resolve_lazily(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import rm_plugins_trl.rewards as rewards

        (tmp_path / "rules.py").write_text("def short(samples):\n    return [-len(s.completion) for s in samples]\n")
        (tmp_path / "rm_plugins.yaml").write_text("brief: 'rules:short'\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(rewards, "_loaded", {})
        assert rewards.brief.__name__ == "brief"
        assert rewards.brief(["a"], ["xyz"]) == [-3.0]
        assert dir(rewards) == ["brief"]
        with pytest.raises(AttributeError, match="Did you mean 'brief'"):
            _ = rewards.breif

    def test_columns_share_their_scoring(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As TRL's command finds rewards: the last dot of a path separates the module."""
        import rm_plugins_trl.rewards as rewards

        (tmp_path / "counting.py").write_text(
            "calls = []\ndef spaces(samples):\n    calls.append(len(samples))\n    return [s.completion.count(' ') for s in samples]\n"
        )
        rule = "{provider: length-window, unit: characters, low: 2, soft: 2, label: long}"
        (tmp_path / "rm_plugins.yaml").write_text(
            f"parts: {{provider: sum, members: ['counting:spaces', {rule}]}}\na/b: 'counting:spaces'\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(rewards, "_loaded", {})
        monkeypatch.setattr(rewards, "_shared", {})
        names = ["parts/spaces", "parts/long"]
        found = [getattr(importlib.import_module("rm_plugins_trl.rewards"), name) for name in names]
        assert [reward.__name__ for reward in found] == names
        assert getattr(rewards, "parts/long") is found[1]
        batch = (["a", "a"], ["x y z", "x"])
        assert [reward(*batch) for reward in found] == [[2.0, 0.0], [1.0, 0.5]]
        assert importlib.import_module("counting").calls == [2]
        assert getattr(rewards, "a/b")(*batch) == [2.0, 0.0]  # a name of its own
        with pytest.raises(SpecError, match=r"has no part 'lnog'\. Did you mean 'long'"):
            getattr(rewards, "parts/lnog")
        with pytest.raises(SpecError, match="a part is named twice: 'long', '1'"):
            getattr(rewards, "parts/1")
        with pytest.raises(AttributeError, match=r"No reward is called 'part'.* Did you mean 'parts'"):
            getattr(rewards, "part/long")


class TestTwoRewardsOfOneName:
    """They would share a metric, and what one learns would be the other's."""

    def two(self, kind: str, make: Any, tmp_path: Path) -> list[RewardFunction]:
        if kind == "lambdas":
            return [
                reward_func(lambda completions: [0.0] * len(completions)),
                reward_func(lambda samples: [1.0] * len(samples)),
            ]
        folders = [tmp_path / run / "checkpoint-500" for run in ("one", "two")]
        for folder in folders:
            shutil.copytree(make(), folder)
        return [reward_func(str(folder)) for folder in folders]

    @pytest.mark.parametrize("kind", ["lambdas", "folders"])
    def test_are_refused_at_the_first_batch(self, kind: str, tiny_decoder: Any, tmp_path: Path) -> None:
        first, second = self.two(kind, tiny_decoder, tmp_path)
        state, label = TrainerState(), {"lambdas": "<lambda>", "folders": "checkpoint-500"}[kind]
        first(["Q"], ["a"], trainer_state=state)
        with pytest.raises(SpecError, match=f"Two rewards of this training are called '{label}'.* name="):
            second(["Q"], ["a"], trainer_state=state)
        first(["Q"], ["a"], trainer_state=state)
        second(["Q"], ["a"], trainer_state=TrainerState())  # another training
        reward_func(first.provider, name="other")(["Q"], ["a"], trainer_state=state)

    @pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
    def test_in_a_trainer(self, trainer_class: Any, config_class: Any, tiny_policy: Path, tmp_path: Path) -> None:
        trainer = trainer_class(
            model=str(tiny_policy),
            reward_funcs=self.two("lambdas", None, tmp_path),
            args=config_class(**settings(tmp_path, num_generations=2, max_completion_length=8)),
            train_dataset=Dataset.from_list(ROWS),
        )
        with pytest.raises(SpecError, match="Two rewards of this training are called '<lambda>'"):
            trainer.train()

    def test_in_online_dpo(self, tiny_policy: Path, tmp_path: Path) -> None:
        trainer = OnlineDPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_policy),
            reward_funcs=self.two("lambdas", None, tmp_path),
            args=OnlineDPOConfig(**settings(tmp_path, per_device_train_batch_size=2, max_new_tokens=8)),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=AutoTokenizer.from_pretrained(tiny_policy),
        )
        with pytest.raises(SpecError, match="Two rewards of this training are called '<lambda>'"):
            trainer.train()

    def test_a_partial_has_the_name_of_its_function_as_in_trl(self) -> None:
        assert reward_func(partial(length_reward, answer=None)).__name__ == "length_reward"
