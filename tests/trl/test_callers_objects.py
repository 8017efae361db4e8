"""What a caller hands over is afterwards as it was; a model that is handed over to be trained is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerState
from trl import RewardConfig as TrlRewardConfig

import rm_plugins as rm
from rm_plugins.losses.bradley_terry import BradleyTerry
from rm_plugins.losses.loss import Loss
from rm_plugins_trl import RewardConfig, RewardTrainer, reward_func
from rm_plugins_trl.configs import own_copy
from tests.conftest import MakeFolder, make_tokenizer
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS

ROWS = [{"prompt": "Name a colour.", "chosen": " It is blue.", "rejected": " two"}] * 4


def facts(given: Any) -> Any:
    """What can be compared of an object: everything in it."""
    if isinstance(given, dict):
        return {name: facts(value) for name, value in given.items()}
    if isinstance(given, (list, tuple)):
        return [facts(value) for value in given]
    if isinstance(given, Dataset):
        return given.to_list()
    if hasattr(given, "backend_tokenizer"):
        kept = ("padding_side", "truncation_side", "chat_template", "special_tokens_map", "model_max_length")
        return [given.backend_tokenizer.to_str(), *(copy.deepcopy(getattr(given, name)) for name in kept)]
    if isinstance(given, torch.Tensor):
        return given.tolist()
    if hasattr(given, "__dict__") and not isinstance(given, type) and not callable(given):
        return {name: facts(value) for name, value in vars(given).items() if not name.startswith("__cached")}
    return copy.deepcopy(vars(given)) if isinstance(given, Loss) else given


def reward_arguments(folder: Path, kind: str) -> dict[str, Any]:
    config: Any = TrlRewardConfig if kind == "TRL's" else RewardConfig
    ours = {} if kind == "TRL's" else {"loss": {"name": "bradley-terry"}, "regularizers": {"centering": 0.01}, "members": 1}
    if kind == "object":
        ours["loss"] = BradleyTerry()
    args = config(
        str(folder),
        max_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        gradient_checkpointing_kwargs={"preserve_rng_state": True},
        model_init_kwargs={"dtype": "float32"},
        **ours,
    )
    return {
        "args": args,
        "train_dataset": Dataset.from_list(ROWS),
        "eval_dataset": {"one": Dataset.from_list(ROWS)},
        "processing_class": make_tokenizer(pad=None),
        "peft_config": LoraConfig(r=2, target_modules=["q_proj"]),
        "callbacks": [],
    }


@pytest.mark.parametrize("kind", ["mappings", "object", "TRL's"])
def test_a_reward_trainers(kind: str, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    arguments = reward_arguments(tmp_path, kind)
    before = copy.deepcopy(facts(arguments))
    RewardTrainer(str(tiny_decoder()), **arguments).train()
    after = facts(arguments)
    for name in before:
        assert after[name] == before[name], name


def test_a_reward_trainers_of_a_model_in_memory(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    """Its weights are trained, and TRL tells it the padding token; that its outputs are rewards it must know."""
    folder = tiny_decoder()
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    arguments = reward_arguments(tmp_path, "mappings")
    arguments["args"].model_init_kwargs = None
    del arguments["peft_config"]
    before, config = copy.deepcopy(facts(arguments)), model.config.to_dict()
    RewardTrainer(model, **arguments).train()
    assert facts(arguments) == before
    changed = {name for name, value in model.config.to_dict().items() if value != config.get(name)}
    assert changed <= {"problem_type", "pad_token_id", "use_cache"}


def test_a_ppo_trainers(tiny_policy: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from rm_plugins_trl import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy, padding_side="left")
    tokenizer.pad_token = None
    arguments = {
        "args": PPOConfig(
            str(tmp_path),
            per_device_train_batch_size=2,
            num_mini_batches=1,
            total_episodes=2,
            response_length=4,
            report_to="none",
            use_cpu=True,
            gradient_checkpointing_kwargs={"preserve_rng_state": True},
        ),
        "processing_class": tokenizer,
        "train_dataset": Dataset.from_list([{"prompt": "Name a colour."}] * 4),
        "peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    }
    before = copy.deepcopy(facts(arguments))
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    PPOTrainer(model=model, reward_model=lambda samples: [1.0] * len(samples), **arguments)
    after = facts(arguments)
    for name in before:
        assert after[name] == before[name], name


MESSAGES = st.lists(
    st.builds(
        lambda content: {"role": "user", "content": content}, st.sampled_from(["a", ["a"], [{"type": "text", "text": "a"}]])
    ),
    min_size=1,
    max_size=2,
)


@settings(max_examples=25)
@given(st.lists(MESSAGES, min_size=1, max_size=3), st.data())
def test_a_reward_functions(prompts: list[Any], data: st.DataObject) -> None:
    completions = [[{"role": "assistant", "content": data.draw(st.sampled_from(["", "4"]))}] for _ in prompts]
    columns: dict[str, Any] = {"answer": ["4"] * len(prompts), "completion_ids": [[1, 2] for _ in prompts]}
    spec = {
        "provider": "ensemble",
        "aggregate": {"name": "lcb", "k": 1.0},
        "common_scale": True,
        "members": [
            {
                "provider": "function",
                "function": len_of,
                "arguments": {"factors": [1.0]},
                "transform": {"name": "clip", "low": 0.0},
            },
            {
                "provider": "function",
                "function": len_of,
                "transform": [{"name": "scale", "factor": 2.0}],
                "on_error": "abstain",
            },
        ],
    }
    given_before = copy.deepcopy((prompts, completions, columns, spec))
    reward_func(spec)(prompts, completions, trainer_state=TrainerState(), **columns)
    assert (prompts, completions, columns, spec) == given_before


def len_of(samples: list[rm.Sample], factors: list[float] | None = None) -> list[float]:
    return [float(len(sample.completion_text)) for sample in samples]


def test_mappings_in_arguments_are_copied_too(tmp_path: Path) -> None:
    """Some releases of TRL set keys of ``gradient_checkpointing_kwargs``."""
    args = reward_arguments(tmp_path, "mappings")["args"]
    own = own_copy(args)
    own.gradient_checkpointing_kwargs["use_reentrant"] = False
    own.regularizers["centering"] = 7.0
    assert args.gradient_checkpointing_kwargs == {"preserve_rng_state": True}
    assert args.regularizers == {"centering": 0.01}
