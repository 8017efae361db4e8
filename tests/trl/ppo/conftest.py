"""Rewards and batches that PPO trains with."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import rm_plugins as rm
from rm_plugins_trl.ppo import TRL_HAS_PPO
from rm_plugins_trl.ppo.critic import Critic, make_critic
from tests.trl.ppo.critics import Make

USER = [{"role": "user", "content": "Name a colour."}]


LONGER = [{"role": "system", "content": "Count."}, {"role": "user", "content": "one, two"}]


class Recording(rm.Provider):
    """Keeps the samples it scored; the reward is the length of the completion."""

    name: ClassVar[str] = "recording"

    def __init__(self) -> None:
        self.seen: list[rm.Sample] = []

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        self.seen.extend(samples)
        lengths = np.array([len(text_of(sample.completion)) for sample in samples], dtype=float)
        return rm.Scores(lengths, {"halved": lengths / 2, "std": np.full(len(samples), 7.0)})


def text_of(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    (message,) = completion
    assert message["role"] == "assistant"
    return str(message["content"])


@pytest.fixture
def ppo() -> ModuleType:
    return importlib.import_module("rm_plugins_trl.ppo")


@pytest.fixture
def trl_s_ppo() -> ModuleType:
    """TRL's own PPO, of TRL up to 1.12."""
    if not TRL_HAS_PPO:
        pytest.skip("PPO left TRL in 1.13")
    return importlib.import_module("trl.experimental.ppo")


def policy_in(folder: Path, **likely: float) -> Any:
    """A policy for the tokenizer in a folder: all tokens are equally likely but those named, which have these probabilities.

    It writes its own completions whatever the prompt, so that every way for one to end comes up within a few.
    """
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    rest = 1.0 - sum(likely.values())
    for token, probability in likely.items():
        head.bias.data[tokenizer.convert_tokens_to_ids(f"<|{token}|>")] = np.log(probability * len(tokenizer) / rest)
    model.lm_head = head
    return model


@pytest.fixture
def settings(ppo: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        arguments: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "local_rollout_forward_batch_size": 3,  # the batch is scored in chunks of 3 and 1
            "num_ppo_epochs": 2,  # TRL takes the variance over them
            "response_length": 12,
            "temperature": 1.0,
            "stop_token": "eos",
            "total_episodes": 8,
            "num_sample_generations": 0,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        return ppo.PPOConfig(**{**arguments, **changes})

    return make


TEXTS: list[dict[str, Any]] = [
    {"prompt": text, "answer": text.upper()} for text in ("one", "one, two,", "Question: what is rain? Answer:", "a")
]


CONVERSATIONS: list[dict[str, Any]] = [
    {"prompt": USER, "answer": "blue"},
    {"prompt": LONGER, "answer": "three"},
    {"prompt": USER, "answer": "red", "tools": json.dumps([{"type": "function", "function": {"name": "paint"}}])},
    {"prompt": USER, "answer": "grey", "chat_template_kwargs": {"closing": "Think. "}},
]


def policy_ids(row: Mapping[str, Any], tokenizer: Any) -> list[int]:
    if "input_ids" in row:
        return list(row["input_ids"])
    if isinstance(row["prompt"], str):
        return list(tokenizer(row["prompt"]).input_ids)
    templated = tokenizer.apply_chat_template(
        row["prompt"],
        tools=json.loads(row["tools"]) if row.get("tools") else None,
        add_generation_prompt=True,
        return_dict=True,
        **(row.get("chat_template_kwargs") or {}),
    )
    return list(templated["input_ids"])


def length(samples: list[rm.Sample]) -> list[float]:
    return [float(len(text_of(sample.completion))) for sample in samples]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # several are slower for models of this size


@pytest.fixture
def folder(tiny_decoder: Any) -> Path:
    made: Path = tiny_decoder()
    return made


@pytest.fixture
def policy(folder: Path) -> Any:
    return policy_in(folder)


@pytest.fixture
def make(policy: Any, folder: Path) -> Make:
    """`make_critic` for the policy, which differs in all weights from the classifier in its folder."""

    def made(kind: Any, reward: Any = None, **changes: Any) -> Critic:
        given = {"policy": policy, "tokenizer": AutoTokenizer.from_pretrained(folder), **changes}
        return make_critic(kind, given.pop("policy"), reward, given.pop("tokenizer"), **given)

    return made
