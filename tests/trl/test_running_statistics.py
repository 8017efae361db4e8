"""Rewards that learn while a policy is trained: the same in every process, and kept by checkpoints."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.training.reward_state import restore_reward_state, reward_state
from rm_plugins.training_progress import current_progress
from rm_plugins_trl import RewardFunction, reward_func
from tests.trl import two_scorers
from tests.trl.conftest import TRL_WARNINGS
from tests.warm_process import run_warm_group

pytestmark = TRL_WARNINGS


def length(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(str(sample.completion))) for sample in samples]


def learning(**more: Any) -> RewardFunction:
    transform = {"name": "zscore", "running": True, "warmup": 4, "mean": 5.0, **more}
    return reward_func({"provider": "function", "function": length, "transform": transform}, name="mine")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, each with its own rows of every batch."""
    folder = tmp_path_factory.mktemp("processes")
    run_warm_group(2, "tests.trl.two_scorers", folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", two_scorers.REWARDS)
def test_two_processes_give_the_rewards_of_one(name: str, two_processes: list[dict[str, Any]]) -> None:
    """Bitwise, also where one process has no sample of a batch, or its part of a reward failed or was not asked."""
    alone = two_scorers.scored(reward_func(two_scorers.REWARDS[name]()), 0, 1)
    first, second = (found[name] for found in two_processes)
    assert {**first["rewards"], **second["rewards"]} == alone["rewards"]
    assert first["state"] == second["state"] == alone["state"]
    assert '"count"' in json.dumps(alone["state"])
    assert '"count": 0' not in json.dumps(alone["state"])
    assert len(first["rewards"]) > len(second["rewards"]) > 0


def test_every_process_logs_the_same_names(two_processes: list[dict[str, Any]]) -> None:
    first, second = (found["logged"] for found in two_processes)
    assert first["metrics"] == second["metrics"] == [f"rewards/mine/{name}" for name in ("abstained", "even", "odd", "shared")]
    assert first["extra"] == second["extra"] == ["mine/even", "mine/odd", "mine/shared"]
    assert (first["even"], second["even"]) == ([1.0] * 4, [None] * 4)


ROW_SETS: list[dict[str, Any]] = [{"prompt": "Name a colour."}, {"prompt": "Count."}, {"prompt": "Why?"}, {"prompt": "Write."}]


class Trainings:
    """Makes trainers of four steps, which save after the second, on one policy."""

    def __init__(self, kind: str, policy: Path, folder: Path) -> None:
        self.kind = kind
        self.policy = policy
        self.folder = folder

    def __call__(self, reward: RewardFunction, folder: str) -> Any:
        settings: dict[str, Any] = {
            "output_dir": str(self.folder / folder),
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "save_steps": 2,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
        }
        rows = Dataset.from_list(ROW_SETS)
        if self.kind == "online-dpo":
            tokenizer = AutoTokenizer.from_pretrained(self.policy)
            return OnlineDPOTrainer(
                model=AutoModelForCausalLM.from_pretrained(self.policy),
                reward_funcs=[reward],
                args=OnlineDPOConfig(**settings, max_new_tokens=8),
                train_dataset=rows,
                processing_class=tokenizer,
            )
        trainer, config = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[self.kind]
        arguments = config(**settings, num_generations=2, max_completion_length=8)
        return trainer(model=str(self.policy), reward_funcs=[reward], args=arguments, train_dataset=rows)


def kept(reward: RewardFunction) -> list[list[float | None]]:
    """The rewards of every batch from now on."""
    batches: list[list[float | None]] = []
    reward.watchers.append(lambda samples, scores, state: batches.append(scores.values.tolist()))
    return batches


@pytest.mark.parametrize("kind", ["grpo", "rloo", "online-dpo"])
def test_a_resumed_training_has_the_rewards_of_one_that_was_not_interrupted(
    kind: str, tiny_policy: Path, tmp_path: Path
) -> None:
    trainings = Trainings(kind, tiny_policy, tmp_path)
    whole, again = learning(), learning()
    rewards = kept(whole)
    trainer = trainings(whole, "whole")
    trainer.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    stored = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["rm_plugins/mine"]
    assert 0 < stored["transform"]["count"] < reward_state(whole.provider)["transform"]["count"]

    rewards_again = kept(again)
    resumed = trainings(again, "again")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert rewards_again == rewards[-len(rewards_again) :] != []
    assert reward_state(again.provider) == reward_state(whole.provider)
    assert resumed.state.stateful_callbacks["rm_plugins/mine"] == reward_state(whole.provider)


def test_a_resume_of_the_same_object_goes_back_to_the_checkpoint(tiny_policy: Path, tmp_path: Path) -> None:
    reward = learning()
    trainings = Trainings("grpo", tiny_policy, tmp_path)
    rewards = kept(reward)
    trainings(reward, "whole").train()
    learned = reward_state(reward.provider)
    trainings(reward, "again").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert reward_state(reward.provider) == learned
    assert rewards[2:4] == rewards[4:]


@pytest.fixture
def training() -> Iterator[TrainerState]:
    state = TrainerState(max_steps=10)
    state.global_step = 4
    yield state


class TestResuming:
    def test_a_checkpoint_without_what_was_learned(self, training: TrainerState) -> None:
        training.stateful_callbacks["rm_plugins/other"] = {}
        with pytest.warns(UserWarning, match=r"at step 4, .* no state of the reward 'length' .*'rm_plugins/mine'"):
            learning()(["Q"], ["A"], trainer_state=training)

    def test_what_learns_nothing_leaves_nothing_behind(self, training: TrainerState) -> None:
        reward_func(length)(["Q"], ["A"], trainer_state=training)
        assert training.stateful_callbacks == {}

    def test_a_checkpoint_of_another_reward(self, training: TrainerState) -> None:
        training.stateful_callbacks["rm_plugins/mine"] = {"members[0].transform": {"count": 3}}
        with pytest.raises(
            DataError,
            match=r"is missing: members\[0\]\.transform; a part that learns has no saved state: transform.*'rm_plugins/mine'",
        ):
            learning()(["Q"], ["A"], trainer_state=training)

    def test_another_process_goes_on_from_here(self) -> None:
        reward = learning()
        reward(["Q"] * 3, ["A", "AB", "ABC"])
        copy = pickle.loads(pickle.dumps(reward))
        assert reward_state(copy.provider) == reward_state(reward.provider) != {}
        assert copy(["Q"], ["A"]) == reward(["Q"], ["A"])

    def test_the_state_survives_json_bit_by_bit(self) -> None:
        reward, other = learning(), learning()
        reward(["Q"] * 3, ["A", "AB", "ABCDEFG"])
        restore_reward_state(other.provider, json.loads(json.dumps(reward_state(reward.provider))))
        assert other(["Q"], ["A"]) == reward(["Q"], ["A"])


class TestState:
    """What is kept of a tree of providers."""

    @staticmethod
    def tree(*, running: bool = True) -> rm.Provider:
        zscore = {"name": "zscore", "running": running, "mean": 0.0, "std": 1.0}
        member = {"provider": "function", "function": length, "transform": ["tanh", zscore]}
        return rm.load({"provider": "ensemble", "members": [member, length], "on_error": {"fallback": member}})

    def test_every_part_is_found_by_its_path(self) -> None:
        tree = self.tree()
        tree.score([rm.Sample("Q", "A"), rm.Sample("Q", "AB")])
        state = reward_state(tree)
        assert set(state) == {"members[0].transform", "on_error.fallback.transform"}
        assert state["members[0].transform"]["1"]["count"] == 2
        assert state["on_error.fallback.transform"]["1"]["count"] == 0
        assert reward_state(self.tree(running=False)) == {}

    def test_a_transform_that_learns_no_more(self) -> None:
        with pytest.raises(
            DataError, match=r"members\[0\]\.transform: the state is of the transforms 1 of a chain, but in this one none learn"
        ):
            restore_reward_state(self.tree(running=False), reward_state(self.tree()))
        state = {"transform": reward_state(learning().provider)["transform"]}
        fixed = rm.load({"provider": "function", "function": length, "transform": {"name": "zscore", "mean": 0.0, "std": 1.0}})
        with pytest.raises(DataError, match=r"a part with saved state no longer learns: transform"):
            restore_reward_state(fixed, state)

    def test_a_provider_keeps_a_state_of_its_own(self) -> None:
        class Counting(rm.Provider):
            name = "counting"
            seen = 0

            def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
                self.seen += len(samples)
                return rm.Scores(np.full(len(samples), float(self.seen)))

            def state(self) -> dict[str, Any]:
                return {"seen": self.seen} if self.seen else {}

            def load_state(self, state: Any) -> None:
                self.seen = state["seen"]

        first, second = Counting(), Counting()
        assert reward_state(first) == {}
        first.score([rm.Sample("Q", "A")] * 3)
        assert reward_state(first) == {"": {"seen": 3}}
        restore_reward_state(second, reward_state(first))
        assert second.seen == 3


class TestBatches:
    def test_an_empty_batch_is_a_batch(self) -> None:
        metrics: dict[str, float] = {}
        assert learning()([], [], log_metric=metrics.__setitem__) == []
        assert np.isnan(metrics["rewards/mine/abstained"])

    def test_watchers_see_every_batch(self, training: TrainerState) -> None:
        reward = reward_func(length)
        seen: list[Any] = []
        reward.watchers.append(lambda *arguments: seen.append(arguments))
        reward(["Q"], ["AB"], trainer_state=training)
        reward(["Q"], ["ABC"])
        (samples, scores, state), (_, _, without) = seen
        assert samples[0].completion == "AB"
        assert scores.values.tolist() == [2.0]
        assert state is training
        assert without is None
        assert pickle.loads(pickle.dumps(reward)).watchers == []

    def test_the_reward_knows_how_far_the_training_is(self, training: TrainerState) -> None:
        seen: list[float | None] = []

        def progress(samples: Sequence[rm.Sample]) -> list[float]:
            seen.append(current_progress())
            return [0.0] * len(samples)

        reward = reward_func(progress)
        reward(["Q"], ["A"], trainer_state=training)
        reward(["Q"], ["A"], trainer_state=TrainerState())
        reward(["Q"], ["A"])
        assert seen == [0.4, None, None]


def test_ppo_keeps_what_was_learned_and_knows_how_far_it_is(tiny_policy: Path, tmp_path: Path) -> None:
    from rm_plugins_trl import PPOConfig, PPOTrainer
    from rm_plugins_trl.ppo import TRL_HAS_PPO

    rollout = 1 if TRL_HAS_PPO else 2  # steps: TRL 1.12 counts rollouts
    progress: list[float | None] = []

    def measured(samples: Sequence[rm.Sample]) -> list[float]:
        progress.append(current_progress())
        return length(samples)

    def trainer(folder: str) -> Any:
        arguments = PPOConfig(
            output_dir=str(tmp_path / folder),
            per_device_train_batch_size=4,
            num_ppo_epochs=2,
            num_mini_batches=1,
            total_episodes=8,
            response_length=4,
            save_steps=1,
            num_sample_generations=0,
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
        )
        return PPOTrainer(
            model=str(tiny_policy),
            args=arguments,
            reward_model={
                "provider": "function",
                "function": measured,
                "transform": {"name": "zscore", "running": True},
                "label": "mine",
            },
            train_dataset=Dataset.from_list(ROW_SETS),
        )

    whole = trainer("whole")
    seen: list[Any] = []
    whole.reward_model.watchers.append(lambda samples, scores, state: seen.append((len(samples), state.global_step)))
    whole.train()
    assert progress == [0.0, 0.5]
    assert seen == [(4, 0), (4, rollout)]
    counts = []
    for step in (rollout, 2 * rollout):
        stored = json.loads((tmp_path / "whole" / f"checkpoint-{step}" / "trainer_state.json").read_text())
        counts.append(stored["stateful_callbacks"]["rm_plugins/mine"]["transform"]["count"])
    assert counts == [4, 8]

    again = trainer("again")
    if TRL_HAS_PPO:
        again.state.stateful_callbacks.update(stored["stateful_callbacks"])
        again.train()
        assert reward_state(again.reward_model.provider)["transform"]["count"] == 16
    else:
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert reward_state(again.reward_model.provider)["transform"]["count"] == 8
