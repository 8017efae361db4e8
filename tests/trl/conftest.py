"""What the trainers' tests share: real preference data, and a real reward model trained on it once a run."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from packaging.version import Version
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed
from trl import GRPOConfig
from trl import __version__ as trl_version

from tests.conftest import make_tokenizer
from tests.warm_process import run_warm

HELD_OUT = 400
TRAINED_ON = 1_200
MODELS_VARIABLE = "RM_PLUGINS_TEST_MODELS"

# Tests run with both TRLs, unless they need the newest one or nothing in them depends on its version.
newest_trl = pytest.mark.skipif(Version(trl_version) < Version("1.13"), reason="runs in the world of the newest TRL")
last_trl_with_ppo = pytest.mark.skipif(Version(trl_version) >= Version("1.13"), reason="PPO left TRL in 1.13")

# TRL's, accelerate's and transformers' own, on a machine without an accelerator.
TRL_WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning"),
    pytest.mark.filterwarnings("ignore::trl.experimental.TRLExperimentalWarning")
    if hasattr(__import__("trl.experimental").experimental, "TRLExperimentalWarning")
    else pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of the real reward model: its training takes longest, and another process goes on meanwhile."""
    items.sort(key=lambda item: "polarity_model" not in getattr(item, "fixturenames", ()))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON Lines; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The settings of any of TRL's trainers for a few quiet steps on a CPU."""
    small = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
    }
    return {**small, **changes}


def grpo_config(folder: Path, **changes: Any) -> GRPOConfig:
    """`settings` for GRPO, with two short completions per prompt."""
    return GRPOConfig(**settings(folder, **{"num_generations": 2, "max_completion_length": 8, **changes}))


def tiny_config(tokenizer: Any, **changes: Any) -> Qwen2Config:
    """The configuration of a decoder of one layer for a tokenizer."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **changes,
    )


def made_policy(folder: Path) -> Path:
    """Write what `tiny_policy` is into a folder."""
    tokenizer = make_tokenizer()
    set_seed(0)
    Qwen2ForCausalLM(tiny_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random causal language model of one layer, with the tokenizer of the tiny classifiers."""
    return made_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def polarity_pairs(data_folder: Path) -> list[dict[str, Any]]:
    """5,331 pairs of film-review sentences; the first 1,200 are trained on, and the last 400 are held out."""
    with gzip.open(data_folder / "rt_sentence_polarity_pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="session")
def polarity_model(polarity_pairs: list[dict[str, Any]], minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM trained by ``rm-plugins train`` on 1,200 pairs: once, whichever process needs it first.

    It is kept for the other TRL world where the environment says where.
    """
    keep = os.environ.get(MODELS_VARIABLE)
    folder = Path(keep) if keep else tmp_path_factory.mktemp("models")
    out = folder / "polarity-rm"
    with FileLock(folder / "polarity-rm.lock"):
        if not out.is_dir():
            train = write_jsonl(folder / "train.jsonl", polarity_pairs[:TRAINED_ON])
            held_out = write_jsonl(folder / "held-out.jsonl", polarity_pairs[-HELD_OUT:])
            unfinished = folder / "unfinished"
            run_warm(
                *("rm_plugins", "train", "--model_name_or_path", minilm_path, "--dataset_name", train),
                *("--eval_dataset_name", held_out, "--output_dir", unfinished, "--num_train_epochs", "1"),
                *("--learning_rate", "1e-4", "--warmup_steps", "0.1", "--per_device_train_batch_size", "8"),
                *("--gradient_checkpointing", "false", "--save_strategy", "no"),
                *("--report_to", "none", "--disable_tqdm", "true"),
            )
            unfinished.rename(out)
    return out
