"""Each option of PPO does what it says, in trainings of a few steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import (
    Qwen2ForSequenceClassification,
    TrainerCallback,
)

import rm_plugins as rm
from rm_plugins.errors import TrainingError, UnsupportedError
from rm_plugins_trl import PPOTrainer
from rm_plugins_trl.ppo.value_functions import ValueHead, ValueModel
from tests.trl.conftest import TRL_WARNINGS, newest_trl
from tests.trl.ppo.conftest import policy_in
from tests.trl.ppo.worlds import (
    VOCABULARY,
    count_a,
    letters_policy,
    logged,
    same,
    trainer,
    weights,
)

pytestmark = [newest_trl, *TRL_WARNINGS]

EOS = VOCABULARY.index("<eos>")
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


class Steps(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """The weights of policy and critic after each optimizer step."""

    def __init__(self) -> None:
        self.policy: list[dict[str, torch.Tensor]] = []
        self.critic: list[dict[str, torch.Tensor]] = []
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.policy.append(weights(self.trainer.model))
        self.critic.append(weights(self.trainer.critic))


def watched(folder: Path, **changes: Any) -> tuple[PPOTrainer, Steps]:
    steps = Steps()
    made = trainer(folder, callbacks=[steps], **changes)
    steps.trainer = made
    return made, steps


class Seen:
    """A reward that keeps its samples."""

    def __init__(self) -> None:
        self.samples: list[rm.Sample] = []

    def __call__(self, samples: Sequence[rm.Sample]) -> list[float]:
        self.samples += samples
        return count_a(samples)


def tokens_of(sample: rm.Sample) -> list[int]:
    return list(sample.columns["completion_ids"])


class TestRollouts:
    def test_num_generations_share_a_prompt(self, tmp_path: Path) -> None:
        seen = Seen()
        trained = trainer(tmp_path, reward_model=seen, num_generations=4)
        trained.train()
        assert len(seen.samples) == 16
        for start in range(0, 16, 4):
            group = seen.samples[start : start + 4]
            assert len({str(sample.prompt) for sample in group}) == 1
        assert len({str(sample.completion) for sample in seen.samples}) > 8
        assert trained.state.global_step == 8

    def test_a_stop_token_ends_completions(self, tmp_path: Path) -> None:
        seen = Seen()
        trainer(tmp_path, reward_model=seen, stop_token_id=VOCABULARY.index("b"), response_length=12).train()
        tokens = [tokens_of(sample) for sample in seen.samples]
        assert any(row[-1] == VOCABULARY.index("b") for row in tokens)
        assert not any(VOCABULARY.index("b") in row[:-1] for row in tokens)

    def test_missing_eos_penalty(self, tmp_path: Path) -> None:
        seen = Seen()
        trained = trainer(tmp_path, reward_model=seen, missing_eos_penalty=7.0, total_episodes=8)
        trained.train()
        cut = np.mean([EOS not in tokens_of(sample) for sample in seen.samples])
        assert 0 < cut < 1
        expected = np.mean(count_a(seen.samples)) - 7.0 * cut
        assert logged(trained, "objective/scores")[0] == pytest.approx(expected, rel=1e-6)
        assert logged(trained, "reward")[0] == pytest.approx(np.mean(count_a(seen.samples)), rel=1e-6)

    def test_truncated_completions_can_be_masked(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path, truncated_completions="mask", total_episodes=8)
        trained.train()
        rollout = trained.progress.rollout
        assert rollout is not None
        ended = [row[-1] == EOS for row in rollout.rows]
        assert rollout.mask.any(1).tolist() == ended
        assert 0 < sum(ended) < 8
        assert logged(trained, "objective/abstained")[0] == 1 - sum(ended) / 8

    def test_without_a_penalty_no_reference_is_kept(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path, kl_coef=0.0)
        assert trained.reference.model is None
        assert trained.ref_model is None
        trained.train()
        assert not any("objective/kl" in entry for entry in trained.state.log_history)  # nothing to diverge from

    def test_the_reference_follows_the_policy(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path, sync_ref_model=True, ref_model_mixup_alpha=1.0, ref_model_sync_steps=1)
        trained.train()
        assert same(weights(trained.reference.model), weights(trained.model))
        kept = trainer(tmp_path)
        before = weights(kept.reference.model)
        kept.train()
        assert same(before, weights(kept.reference.model))
        assert not same(before, weights(kept.model))

    @pytest.mark.parametrize("changes", [{"kl_coef": 0.0}, {"peft_config": LoraConfig(**LORA)}], ids=["no penalty", "adapter"])
    def test_no_reference_can_follow(self, changes: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(UnsupportedError, match="sync_ref_model"):
            trainer(tmp_path, sync_ref_model=True, **changes)


class TestUpdates:
    def test_target_kl_skips_the_rest_of_a_rollout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        passes: list[int] = []
        plain = PPOTrainer.compute_loss

        def counted(self: PPOTrainer, *args: Any, **kwargs: Any) -> Any:
            passes.append(self.state.global_step)
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(PPOTrainer, "compute_loss", counted)
        trained, steps = watched(tmp_path, target_kl=1e-9)
        trained.train()
        assert passes == [0, 1, 4, 5]  # the first step of a rollout has a divergence of 0
        for first in (0, 4):
            assert not same(steps.policy[first], steps.policy[first + 1])
            for skipped in (first + 2, first + 3):
                assert same(steps.policy[first + 1], steps.policy[skipped])
                assert same(steps.critic[first + 1], steps.critic[skipped])
        assert not same(steps.policy[3], steps.policy[4])

    @pytest.mark.parametrize("critic", ["policy", "head"])
    def test_the_critic_alone_learns_in_its_warmup(self, critic: str, tmp_path: Path) -> None:
        trained, steps = watched(tmp_path, critic=critic, critic_warmup_steps=3, weight_decay=0.1)
        before, critic_before = weights(trained.model), weights(trained.critic)
        trained.train()
        assert all(same(before, policy) for policy in steps.policy[:3])
        assert not same(critic_before, steps.critic[0])
        assert not same(steps.critic[0], steps.critic[1])
        assert not same(before, steps.policy[3])

    def test_the_weight_of_the_penalty_adapts(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path, adaptive_kl_target=0.01, adaptive_kl_horizon=100, total_episodes=32)
        trained.train()
        weight = 0.05
        entries = [entry for entry in trained.state.log_history if "objective/kl" in entry and entry["step"] % 4 == 1]
        assert len(entries) == 4
        for entry in entries:
            assert entry["objective/kl_coef"] == pytest.approx(weight)
            error = min(max(entry["objective/kl"] / 0.01 - 1, -0.2), 0.2)
            weight *= 1 + error * 8 / 100

    def test_max_kl_ends_the_training_with_evidence(self, tmp_path: Path) -> None:
        trained, steps = watched(tmp_path, max_kl=1e-6, total_episodes=64, learning_rate=0.05)
        with pytest.raises(
            TrainingError,
            match=r"Step \d+: the policy's KL divergence .* larger than max_kl=1e-06.*Before: step \d+: objective/kl 0",
        ):
            trained.train()
        assert same(steps.policy[-1], weights(trained.model))
        assert all(tensor.isfinite().all() for tensor in weights(trained.model).values())

    def test_rewards_are_scaled_by_their_running_deviation(self, tmp_path: Path) -> None:
        trained = trainer(
            tmp_path,
            reward_scaling="running",
            total_episodes=32,
            reward_model=lambda samples: [100 * x for x in count_a(samples)],
        )
        trained.train()
        plain, scaled = (logged(trained, name) for name in ("reward", "objective/scores"))
        deviations = [one / other for one, other in zip(plain, scaled, strict=True)]
        assert deviations[-1] == pytest.approx(trained.progress.scale.std)
        assert trained.progress.scale.count == 32
        assert len({round(one, 3) for one in deviations}) == 4

    def test_rewards_are_clipped(self, tmp_path: Path) -> None:
        seen = Seen()
        trained = trainer(tmp_path, reward_clip=0.5, total_episodes=8, reward_model=seen)
        trained.train()
        expected = np.clip(count_a(seen.samples), -0.5, 0.5).mean()
        assert logged(trained, "objective/scores")[0] == pytest.approx(expected)

    @pytest.mark.parametrize("is_white", [True, False])
    def test_advantages_are_whitened(self, is_white: bool, tmp_path: Path) -> None:
        trained = trainer(tmp_path, whiten_advantages=is_white, total_episodes=8, kl_coef=0.0, gamma=1.0, lam=1.0)
        trained.train()
        rollout = trained.progress.rollout
        assert rollout is not None
        found = rollout.advantages[rollout.mask]
        white = abs(float(found.mean())) < 1e-5 and abs(float(found.std()) - 1) < 1e-4
        assert white == is_white
        if not is_white:  # the critic's values are 0 at first
            counts = torch.tensor(
                [
                    float(row[start:].count(VOCABULARY.index("a")))
                    for row, start in zip(rollout.rows, rollout.starts, strict=True)
                ]
            )
            torch.testing.assert_close(rollout.advantages, counts[:, None] * rollout.mask)

    def test_rewards_are_whitened(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path, whiten_rewards=True, total_episodes=8, kl_coef=0.0, gamma=1.0, lam=1.0)
        trained.train()
        rollout = trained.progress.rollout
        assert rollout is not None
        later = torch.nn.functional.pad(rollout.returns, (0, 1))[:, 1:]
        rewards = (rollout.returns - later)[rollout.mask]
        assert float(rewards.std()) == pytest.approx(1, abs=1e-4)
        assert float(rewards.mean()) > 0.05

    def test_entropy_is_kept_up(self, tmp_path: Path) -> None:
        def entropies(coefficient: float) -> list[float]:
            trained = trainer(
                tmp_path,
                model=letters_policy(initializer_range=0.3),
                entropy_coef=coefficient,
                reward_model=lambda samples: [0.0] * len(samples),
                kl_coef=0.0,
                total_episodes=64,
            )
            trained.train()
            return logged(trained, "policy/entropy_avg")

        rising, same_ones = entropies(0.5), entropies(0.0)
        assert rising[-1] > rising[0] + 0.1
        assert abs(same_ones[-1] - same_ones[0]) < 0.1

    @pytest.mark.parametrize(
        "changes",
        [{"pack": False}, {"max_batch_tokens": 12}, {"local_rollout_forward_batch_size": 3}, {"gradient_checkpointing": True}],
        ids=lambda changes: next(iter(changes)),
    )
    def test_how_models_read_changes_no_loss(self, changes: dict[str, Any], tmp_path: Path) -> None:
        names = ("loss", "loss/policy_avg", "loss/value_avg", "policy/entropy_avg", "objective/entropy", "grad_norm")
        both = []
        for settings in ({}, changes):
            trained = trainer(tmp_path, total_episodes=8, **settings)
            trained.train()
            both.append({name: logged(trained, name) for name in names})
        for name in names:
            assert both[0][name]
            np.testing.assert_allclose(both[0][name], both[1][name], atol=1e-5, err_msg=name)

    def test_the_critic_has_checkpointed_layers_too(self, tmp_path: Path) -> None:
        for wanted in (True, False):
            critic: Any = trainer(tmp_path, gradient_checkpointing=wanted).critic
            assert any(getattr(layer, "gradient_checkpointing", False) for layer in critic.modules()) == wanted

    def test_bf16(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path, bf16=True, use_cpu=True, gradient_checkpointing=True)
        before = weights(trained.model)
        trained.train()
        assert not same(before, weights(trained.model))
        assert all(math.isfinite(loss) for loss in logged(trained, "loss"))
        assert trained.model.dtype == torch.float32


class TestCritics:
    def test_a_head(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path, critic="head")
        assert isinstance(trained.critic, ValueHead)
        trained.train()
        assert trained.critic.score.weight.abs().max() > 0

    def test_one_from_the_policy(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path)
        assert isinstance(trained.critic, ValueModel)
        backbone = trained.critic.model.model.state_dict()
        assert same(
            weights(trained.critic.model.model),
            {name: tensor for name, tensor in trained.model.model.state_dict().items() if name in backbone},
        )

    def test_one_from_the_reward(self, tiny_decoder: Any, tmp_path: Path) -> None:
        folder = tiny_decoder()
        trained = trainer(tmp_path, model=policy_in(folder), processing_class=..., critic="reward", reward_model=str(folder))
        assert isinstance(trained.critic, ValueModel)
        saved = Qwen2ForSequenceClassification.from_pretrained(folder)
        assert same(weights(trained.critic.model), weights(saved))
        trained.train()
        assert not same(weights(trained.critic.model), weights(saved))

    def test_one_that_is_given(self, tiny_decoder: Any, tmp_path: Path) -> None:
        folder = tiny_decoder()
        model = Qwen2ForSequenceClassification.from_pretrained(folder)
        of_object, of_path = (
            trainer(tmp_path, model=policy_in(folder), processing_class=..., value_model=value)
            for value in (model, str(folder))
        )
        assert same(weights(of_object.critic), weights(of_path.critic))
        assert next(iter(of_object.critic.parameters())) is next(iter(model.parameters()))
        of_path.train()

    @pytest.mark.parametrize("rate", [0.0, 0.02])
    def test_its_learning_rate(self, rate: float, tmp_path: Path) -> None:
        trained = trainer(tmp_path, critic_learning_rate=rate, lr_scheduler_type="constant")
        before = weights(trained.critic)
        trained.train()
        own = {id(one) for one in trained.critic.parameters()}
        rates = {group["lr"] for group in trained.optimizer.param_groups if id(group["params"][0]) in own}
        assert rates == {rate}
        assert same(before, weights(trained.critic)) == (rate == 0.0)

    def test_an_optimizer_of_ones_own(self, tmp_path: Path) -> None:
        policy = letters_policy()
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        trained = trainer(tmp_path, model=policy, optimizers=(optimizer, scheduler))
        before = weights(trained.critic)
        trained.train()
        assert not same(before, weights(trained.critic))


@pytest.mark.parametrize(("passes", "readings"), [(1, 3), (2, 1 + 3 * 2)])
def test_a_rollout_of_one_forward_pass_is_read_once_before_and_in_the_first_epoch(
    passes: int, readings: int, tmp_path: Path
) -> None:
    size = {"per_device_train_batch_size": 8 // passes, "gradient_accumulation_steps": passes}
    trained = trainer(tmp_path, num_ppo_epochs=3, num_mini_batches=1, total_episodes=8, **size)
    calls: list[int] = []
    trained.critic.register_forward_hook(lambda *_: calls.append(1))
    trained.train()
    assert len(calls) == readings
