"""The critic that starts from the reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import rm_plugins as rm
from rm_plugins.errors import ModelError, UnsupportedError
from rm_plugins.models.heads import Heads
from rm_plugins.transforms import Chain, Clip, MinMax, Scale, Tanh, ZScore
from rm_plugins_trl.ppo.reward_as_critic import transform_as_line
from tests.trl.ppo.conftest import Recording
from tests.trl.ppo.critics import (
    Make,
    loaded,
    same,
    scores_by_token,
    trained_once,
    values_of,
    weights_of,
)


class TestReward:
    def test_it_starts_from_the_reward_which_its_training_leaves_alone(self, make: Make, folder: Path) -> None:
        reward = loaded(str(folder))
        sample = rm.Sample("Question: what is rain?", " Water.")
        before, score = weights_of(reward.model), reward.score([sample]).values
        critic = make("reward", reward)
        assert same(weights_of(critic.model), before)
        assert torch.allclose(values_of(critic), scores_by_token(reward.model)[:, 0], atol=1e-5)
        trained_once(critic)
        assert not same(weights_of(critic.model), before)
        assert same(weights_of(reward.model), before)
        assert reward.score([sample]).values == score

    @pytest.mark.parametrize(
        ("transform", "line"),
        [
            (Scale(factor=2.0, shift=0.5), (2.0, -1.0)),
            (ZScore(mean=1.0, std=4.0), (0.25, -0.25)),
            (MinMax(low=-1.0, high=3.0), (0.25, 0.25)),
            (Clip(low=-100), (1.0, 0.0)),
            (Chain(transforms=[Scale(shift=1.0), ZScore(mean=1.0, std=2.0), Clip(high=100)]), (0.5, -1.0)),
            (Tanh(), None),
            (ZScore(mean=1.0, std=2.0, running=True), None),
            (Chain(transforms=[Scale(), Tanh()]), None),
        ],
    )
    def test_a_linear_transform_of_the_reward_is_part_of_the_start(
        self, make: Make, folder: Path, transform: Any, line: tuple[float, float] | None
    ) -> None:
        assert transform_as_line(transform) == line
        reward = loaded(str(folder))
        reward.transform = transform
        if line is None:
            with pytest.raises(UnsupportedError, match=r"is not linear with fixed numbers.*critic='policy'"):
                make("reward", reward)
            return
        plain = scores_by_token(reward.model)[:, 0]
        assert torch.allclose(values_of(make("reward", reward)), line[0] * plain + line[1], atol=1e-4)

    def test_labels_with_weights_become_one(self, make: Make, tiny_decoder: Any) -> None:
        reward = loaded(
            {"provider": "sequence-classifier", "model": str(tiny_decoder(num_labels=3)), "head": {0: 1.0, 2: -0.5}}
        )
        expected = scores_by_token(reward.model) @ torch.tensor([1.0, 0.0, -0.5])
        assert torch.allclose(values_of(make("reward", reward)), expected, atol=1e-5)

    def test_members_become_their_mean_and_no_other_aggregate(self, make: Make, tiny_decoder: Any) -> None:
        reward = loaded({"provider": "sequence-classifier", "model": str(tiny_decoder(num_labels=2)), "head": 0})
        reward.trained.heads = Heads(members=2)
        assert torch.allclose(values_of(make("reward", reward)), scores_by_token(reward.model).mean(1), atol=1e-5)
        reward.member_transforms = [Scale(), Scale()]
        with pytest.raises(UnsupportedError, match=r"2 members of .* are not simply averaged"):
            make("reward", reward)

    def test_the_adapter_of_a_reward_is_merged_in_the_copy(self, make: Make, folder: Path, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        adapter = peft.LoraConfig(
            target_modules=["q_proj"], init_lora_weights=False, task_type="SEQ_CLS", modules_to_save=["score"]
        )
        peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(folder), adapter).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
        reward = loaded(str(tmp_path))
        before = weights_of(reward.model)
        critic = make("reward", reward)
        assert torch.allclose(values_of(critic), scores_by_token(reward.model)[:, 0], atol=1e-5)
        trained_once(critic)
        assert same(weights_of(reward.model), before)

    def test_a_reward_that_is_no_classifier_is_refused(self, make: Make) -> None:
        with pytest.raises(
            UnsupportedError, match=r"one `sequence-classifier`, but 'recording' is a recording\. Use critic='policy'"
        ):
            make("reward", Recording())
        with pytest.raises(UnsupportedError, match="but there is none"):
            make("reward")

    def test_a_reward_of_another_family_or_vocabulary_is_refused(
        self, make: Make, tiny_encoder: Any, tiny_decoder: Any
    ) -> None:
        with pytest.raises(ModelError, match=r"is a bert, and the policy is a qwen2.*critic='policy'"):
            make("reward", loaded(str(tiny_encoder())))
        other = loaded(str(tiny_decoder(end="<|stop|>")))
        with pytest.raises(
            ModelError, match=r"another vocabulary than the policy: .*'<\|end\|>' with the id 1, and the other lacks it"
        ):
            make("reward", other)

    def test_a_reward_without_causal_attention_is_refused(self, make: Make, folder: Path) -> None:
        reward = loaded(str(folder))
        reward.model.config.is_causal = False
        with pytest.raises(ModelError, match="values would depend on tokens that are still to come"):
            make("reward", reward)
