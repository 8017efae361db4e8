"""Small worlds that PPO learns in: a policy with eight tokens, and the arguments of its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM

import rm_plugins as rm
from rm_plugins_trl import PPOConfig, PPOTrainer

LETTERS = "abcdef"
VOCABULARY = ["<pad>", "<eos>", *LETTERS]
TEMPLATE = (
    "{% if tools %}f {% endif %}{% for message in messages %}{{ message['content'] }} {% endfor %}"
    "{% if closing %}{{ closing }}{% endif %}"
)


def letters_tokenizer() -> Any:
    """A tokenizer whose tokens are the letters a to f, <eos> and <pad>; letters are written with spaces between them."""
    words = Tokenizer(models.WordLevel({token: number for number, token in enumerate(VOCABULARY)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", padding_side="left", chat_template=TEMPLATE
    )


def letters_policy(**changes: Any) -> Any:
    """A random policy of one layer for `letters_tokenizer`."""
    settings = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "tie_word_embeddings": False,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2ForCausalLM(Qwen2Config(**settings))


def config(folder: Path, **changes: Any) -> PPOConfig:
    """Two rollouts of eight completions of up to five letters, each trained on twice in two minibatches."""
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "response_length": 5,
        "temperature": 1.0,
        "learning_rate": 1e-2,
        "total_episodes": 16,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return PPOConfig(**{**arguments, **changes})


PROMPTS = [{"prompt": " ".join(letters)} for letters in ("a", "bc", "def", "ad")] * 8


def count_a(samples: Sequence[rm.Sample]) -> list[float]:
    """The number of a in a completion."""
    return [float(str(sample.completion).count("a")) for sample in samples]


def trainer(folder: Path, *, cls: Any = PPOTrainer, **changes: Any) -> PPOTrainer:
    """A trainer; arguments that are not its own are those of its configuration."""
    own = {
        "model",
        "ref_model",
        "reward_model",
        "reward_funcs",
        "train_dataset",
        "eval_dataset",
        "value_model",
        "processing_class",
        "peft_config",
        "callbacks",
        "optimizers",
        "tools",
        "environment_factory",
        "rollout_func",
        "data_collator",
    }
    given = {name: changes.pop(name) for name in own & changes.keys()}
    if "args" not in changes:
        changes = {"args": config(folder, **changes)}
    arguments: dict[str, Any] = {
        "model": letters_policy(),
        "processing_class": letters_tokenizer(),
        "train_dataset": Dataset.from_list(PROMPTS),
        "reward_model": ... if "reward_funcs" in given else count_a,
        **given,
    }
    made: PPOTrainer = cls(**changes, **{name: value for name, value in arguments.items() if value is not ...})
    made.remove_callback(PrinterCallback)
    return made


def weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether weights are equal in every bit."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def logged(trained: Any, name: str) -> list[float]:
    """A figure of every entry of the log that has it."""
    return [entry[name] for entry in trained.state.log_history if entry.get(name) is not None]


def next_token(policy: Any, text: str) -> np.ndarray:
    """The policy's distribution of the token after a text, [8]."""
    ids = letters_tokenizer()(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return torch.softmax(policy(input_ids=ids).logits[0, -1].double(), -1).numpy()
