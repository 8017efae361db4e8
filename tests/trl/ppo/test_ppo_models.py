"""The models that PPO is made of."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rm_plugins.errors import DataError, UnsupportedError
from rm_plugins_trl.ppo import TRL_HAS_PPO
from rm_plugins_trl.reward_model import AnnouncedPrompts, RewardModel
from tests.trl.conftest import TRL_WARNINGS, newest_trl
from tests.trl.ppo.conftest import CONVERSATIONS, TEXTS, Recording, length, policy_in

pytestmark = TRL_WARNINGS


def policy_of(trainer: Any) -> Any:
    return trainer.policy_model if TRL_HAS_PPO else trainer.model


def value_model_of(trainer: Any) -> Any:
    return trainer.value_model if TRL_HAS_PPO else trainer.critic.model


def test_a_sequence_classifier_is_handed_to_trl_as_it_is(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    folder = tiny_decoder()
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    trainer = ppo.PPOTrainer(model=policy_in(folder), args=settings(), reward_model=classifier, train_dataset=CONVERSATIONS)
    assert trainer.reward_model is classifier
    trainer.train()
    scores = [entry["objective/scores"] for entry in trainer.state.log_history if "objective/scores" in entry]
    assert len(scores) == 2
    assert np.isfinite(scores).all()
    if TRL_HAS_PPO:
        assert [name for name in trainer.state.log_history[-1] if name.startswith("rewards/")] == []


def test_policy_and_configuration_are_enough_to_make_it(ppo: ModuleType, tiny_decoder: Any, tmp_path: Path) -> None:
    folder = tiny_decoder(pad=None)
    policy_model = policy_in(folder)
    config = ppo.PPOConfig(output_dir=str(tmp_path), reward_model_path=str(folder), report_to="none")
    trainer = ppo.PPOTrainer(model=policy_model, config=config)

    assert trainer.reward_model.provider.label == folder.name
    assert trainer.processing_class.padding_side == "left"
    assert trainer.processing_class.pad_token == trainer.processing_class.eos_token
    assert config.total_episodes is None
    assert trainer.train_dataset is None
    with pytest.raises(DataError, match="train_dataset=DATASET"):
        trainer.train()


def test_a_policy_is_loaded_from_its_folder(ppo: ModuleType, settings: Any, tiny_decoder: Any, tmp_path: Path) -> None:
    folder = tiny_decoder()
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).to(torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    trainer = ppo.PPOTrainer(model=str(tmp_path), args=settings(), reward_model=Recording())
    assert policy_of(trainer).dtype == torch.float32


@newest_trl
def test_a_policy_is_loaded_as_the_configuration_says(ppo: ModuleType, settings: Any, tiny_policy: Path) -> None:
    args = settings(model_init_kwargs={"dtype": "bfloat16"}, sft_model_path=str(tiny_policy))
    assert policy_of(ppo.PPOTrainer(args=args, reward_model=Recording())).dtype == torch.bfloat16


def test_an_adapter_s_configuration_stays_the_caller_s(ppo: ModuleType, settings: Any, tiny_policy: Path) -> None:
    adapter = pytest.importorskip("peft").LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    before = copy.deepcopy(adapter.to_dict())
    ppo.PPOTrainer(model=str(tiny_policy), args=settings(), reward_model=Recording(), peft_config=adapter)
    assert adapter.to_dict() == before


def same_weights(value_model: Any, policy: Any) -> bool:
    backbone = getattr(value_model, value_model.base_model_prefix).state_dict()
    wanted = getattr(policy, policy.base_model_prefix).state_dict()
    return backbone.keys() == wanted.keys() and all(torch.equal(backbone[name], wanted[name]) for name in wanted)


def test_the_value_model_starts_from_a_copy_of_the_policy(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    policy = policy_in(tiny_decoder(num_labels=3))
    trainer = ppo.PPOTrainer(model=policy, args=settings(), reward_model=Recording(), train_dataset=TEXTS)
    value_model = value_model_of(trainer)
    assert value_model.config.num_labels == 1
    assert policy.config.num_labels == 3
    assert same_weights(value_model, policy)
    trainer.train()
    assert not same_weights(value_model, policy), "it is a copy"


def test_the_value_model_of_an_adapted_policy_has_the_adapter_merged(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    peft = pytest.importorskip("peft")
    policy = policy_in(tiny_decoder())
    adapter = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(copy.deepcopy(policy), adapter)
    trainer = ppo.PPOTrainer(model=adapted, args=settings(), reward_model=Recording(), train_dataset=TEXTS)
    assert same_weights(value_model_of(trainer), copy.deepcopy(adapted).merge_and_unload())
    assert not same_weights(value_model_of(trainer), policy)
    assert any("lora" in name for name, _ in adapted.named_parameters()), "the policy keeps its adapter"
    trainer.train()


def test_a_policy_that_gets_an_adapter_has_a_value_model_without(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    peft = pytest.importorskip("peft")
    policy = policy_in(tiny_decoder())
    before = copy.deepcopy(policy)
    adapter = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = ppo.PPOTrainer(model=policy, args=settings(), reward_model=Recording(), train_dataset=TEXTS, peft_config=adapter)
    assert same_weights(value_model_of(trainer), before)
    trainer.train()


def test_a_reward_is_needed_and_given_once(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    policy = policy_in(tiny_decoder())
    with pytest.raises(UnsupportedError, match="PPO needs a reward"):
        ppo.PPOTrainer(model=policy, args=settings(), train_dataset=TEXTS)
    with pytest.raises(UnsupportedError, match="`config` is another name of `args`"):
        ppo.PPOTrainer(model=policy, args=settings(), config=settings(), train_dataset=TEXTS)


def test_a_reward_model_of_one_s_own_is_used(ppo: ModuleType, settings: Any, tiny_decoder: Any, tiny_tokenizer: Any) -> None:
    reward_model = RewardModel(Recording(), tiny_tokenizer)
    trainer = ppo.PPOTrainer(model=policy_in(tiny_decoder()), args=settings(), reward_model=reward_model, train_dataset=TEXTS)
    assert trainer.reward_model.provider is reward_model.provider
    trainer.train()
    assert reward_model.announced is None
    assert {sample.prompt for sample in reward_model.provider.seen} == {row["prompt"] for row in TEXTS}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_reward_model_can_be_copied_and_moved(copied: Callable[[Any], Any], tiny_tokenizer: Any) -> None:
    model = RewardModel({"provider": "function", "function": length, "label": "length"}, tiny_tokenizer, prompts=TEXTS)
    model.announced = AnnouncedPrompts(torch.empty(0, 0), [], observe=lambda scores: None)  # a batch of some trainer's
    other = copied(model).to("cpu").eval()
    model.announced = None
    assert other.announced is None
    assert list(other.parameters()) == []
    assert other.config._name_or_path == "length"
    ids = torch.tensor([tiny_tokenizer("one, two, three").input_ids])
    assert other(ids).logits.tolist() == model(ids).logits.tolist()


def test_the_score_is_repeated_along_the_sequence(tiny_tokenizer: Any) -> None:
    model = RewardModel(length, tiny_tokenizer)
    ids = tiny_tokenizer(["one", "one, two,"], padding=True, return_tensors="pt").input_ids
    output = getattr(model, model.base_model_prefix)(
        input_ids=ids, attention_mask=ids != tiny_tokenizer.pad_token_id, position_ids=None, output_hidden_states=True
    )
    hidden = model.score(output.hidden_states[-1])
    assert hidden.shape == (2, ids.shape[1], 1)
    assert hidden.dtype == torch.float32
    assert hidden[:, :, 0].unique(dim=1).tolist() == [[3.0], [9.0]] == output.logits.tolist()
