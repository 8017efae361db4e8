"""What ``rm-plugins rank`` writes is what TRL's trainers take: a step on rows of a real policy, ranked by a real reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from rm_plugins.cli import main
from tests.trl.conftest import TRL_WARNINGS, newest_trl, write_jsonl

pytestmark = TRL_WARNINGS

SMALL: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
}


@pytest.fixture(params=["text", "messages", "tools"])
def prompts(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Prompts, of which some have what the chat template takes beside them where `request` says ``tools``."""
    texts = [f"Name a colour, number {number}." for number in range(4)]
    asked: list[Any] = texts if request.param == "text" else [[{"role": "user", "content": text}] for text in texts]
    beside: dict[str, Any] = {"tools": [{"name": "clock"}], "chat_template_kwargs": {"closing": "!"}}
    return write_jsonl(
        tmp_path / "prompts.jsonl",
        [{"prompt": prompt, **(beside if number and request.param == "tools" else {})} for number, prompt in enumerate(asked)],
    )


def ranked(prompts: Path, policy: Path, reward: Path, *arguments: str) -> Any:
    """The rows as a dataset, of completions that the policy writes."""
    out = prompts.with_name("out.jsonl")
    shared = ("--generate", policy, "--n", 4, "--max-new-tokens", 8, "-o", out, *arguments)
    told = CliRunner().invoke(main, ["rank", str(reward), str(prompts), *map(str, shared)], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return load_dataset("json", data_files=str(out), split="train", cache_dir=str(prompts.parent / "cache"))


def loss_of(trainer: Any) -> float:
    trainer.train()
    return float(next(line["loss"] for line in trainer.state.log_history if "loss" in line))


def test_the_best_are_rows_for_sft(prompts: Path, tiny_policy: Path, tiny_decoder: Any, tmp_path: Path) -> None:
    rows = ranked(prompts, tiny_policy, tiny_decoder(), "--format", "best", "--best", "2")
    assert len(rows) == 8
    trainer = SFTTrainer(str(tiny_policy), SFTConfig(str(tmp_path / "sft"), **SMALL), train_dataset=rows)
    assert 0 < loss_of(trainer) < 20


def test_pairs_are_rows_for_dpo(prompts: Path, tiny_policy: Path, tiny_decoder: Any, tmp_path: Path) -> None:
    rows = ranked(prompts, tiny_policy, tiny_decoder(), "--pairs", "all")
    assert all(row["chosen_score"] - row["rejected_score"] == pytest.approx(row["margin"]) for row in rows)
    trainer = DPOTrainer(str(tiny_policy), args=DPOConfig(str(tmp_path / "dpo"), **SMALL), train_dataset=rows)
    assert loss_of(trainer) == pytest.approx(0.6931, abs=1e-3)  # log 2, as long as the policy is its own reference


def test_pairs_are_rows_for_a_reward_model(prompts: Path, tiny_policy: Path, tiny_decoder: Any, tmp_path: Path) -> None:
    rows = ranked(prompts, tiny_policy, tiny_decoder(), "--pairs", "all").remove_columns("margin")
    trainer = RewardTrainer(str(tiny_decoder()), RewardConfig(str(tmp_path / "reward"), **SMALL), train_dataset=rows)
    assert 0 < loss_of(trainer) < 20


def test_what_the_chat_template_takes_reaches_the_trainer(tiny_policy: Path, tiny_decoder: Any, tmp_path: Path) -> None:
    asked = {"prompt": [{"role": "user", "content": "What time is it?"}], "tools": [{"name": "clock"}]}
    rows = ranked(write_jsonl(tmp_path / "prompts.jsonl", [asked]), tiny_policy, tiny_decoder(), "--format", "best")
    trainer = SFTTrainer(str(tiny_policy), SFTConfig(str(tmp_path / "sft"), **SMALL), train_dataset=rows)
    (ids,) = trainer.train_dataset["input_ids"]
    assert trainer.processing_class.decode(ids).startswith('<|start|>tools\n[{"name": "clock"}]<|end|>')


@newest_trl  # no trainer reads them
def test_pairs_of_a_real_policy_by_a_real_reward(polarity_model: Path, smollm2_path: Path, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Write one short sentence about a film."}]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": asked}])
    (row,) = ranked(prompts, smollm2_path, polarity_model, "--pairs", "best-worst", "--max-new-tokens", "16")
    assert row["margin"] > 0
    again = CliRunner().invoke(
        main,
        ["rank", str(polarity_model), "-", "-o", str(tmp_path / "o.jsonl")],
        input=json.dumps({"prompt": asked, "completions": [row["rejected"], row["chosen"]]}),
    )
    assert again.exit_code == 0, again.output
    found = json.loads((tmp_path / "o.jsonl").read_text(encoding="utf-8"))
    assert found["scores"] == pytest.approx([row["chosen_score"], row["rejected_score"]], abs=1e-4)
