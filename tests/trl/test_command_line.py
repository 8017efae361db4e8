"""``rm-plugins train``, TRL's own command line with our rewards, and two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.models.manifest import Manifest
from rm_plugins_trl.ppo import TRL_HAS_PPO
from tests.trl.conftest import newest_trl, write_jsonl
from tests.warm_process import run_warm, run_warm_group

ROW = {"prompt": "Name a colour.", "chosen": " It is blue.", "rejected": " two"}
QUIET = ("--report_to", "none", "--disable_tqdm", "true", "--gradient_checkpointing", "false", "--use_cpu", "true")


def test_flags(tiny_decoder: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", [ROW] * 8)
    printed = run_warm(
        *("rm_plugins", "train", "--model_name_or_path", tiny_decoder(), "--dataset_name", data, "--eval_dataset_name", data),
        *("--output_dir", tmp_path / "rm", "--max_steps", "12", "--learning_rate", "1e-3", *QUIET),
        *("--regularizers", '{"centering": 0.01}', "--loss", "bradley-terry"),
    )
    assert "Accuracy on the evaluation data: 1.0000" in printed
    assert Manifest.read(tmp_path / "rm" / "reward_manifest.json").training["regularizers"] == {"centering": 0.01}
    assert "## Reward" in (tmp_path / "rm" / "README.md").read_text(encoding="utf-8")


@newest_trl
def test_yaml_configuration(tiny_decoder: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", [ROW] * 8)
    settings = {
        "model_name_or_path": str(tiny_decoder()),
        "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "rm"),
        "max_steps": 1,
        "report_to": "none",
        "loss": {"name": "bradley-terry"},
        "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run_warm("rm_plugins", "train", "--config", tmp_path / "train.yaml", "--use_cpu", "true")
    assert (tmp_path / "rm" / "adapter_config.json").is_file()
    assert rm.load(tmp_path / "rm").verify() == []  # type: ignore[attr-defined]


def test_a_misspelt_flag_is_not_handed_to_the_launcher() -> None:
    found = CliRunner().invoke(main, ["train", "--output_dir", "rm", "--lerning_rate", "1e-5"])
    assert found.exit_code == 2
    assert "There is no option --lerning_rate. Did you mean --learning_rate?" in found.output


def test_help_has_trls_flags_and_ours() -> None:
    printed = run_warm("rm_plugins", "train", "--help-all")
    for flag in ("--learning_rate", "--dataset_name", "--use_peft", "--loss", "--overlong", "--eval_dataset_name"):
        assert flag in printed


@pytest.mark.skipif(not TRL_HAS_PPO, reason="docs/trl.md does this, and its commands run with the newest TRL")
def test_trl_grpo_with_named_rewards(tiny_policy: Path, tiny_decoder: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"prompt": "Name a colour."}] * 8)
    named = {"colours": str(tiny_decoder()), "parts": {"provider": "sum", "members": ["colours", {"provider": "repetition"}]}}
    (tmp_path / "rm_plugins.yaml").write_text(yaml.safe_dump(named), encoding="utf-8")
    rewards = [f"rm_plugins_trl.rewards.{name}" for name in ("colours", "parts/colours", "parts/repetition")]
    printed = run_warm(
        *("trl.cli.main", "grpo"),
        *("--model_name_or_path", tiny_policy, "--dataset_name", tmp_path / "data", "--output_dir", tmp_path / "out"),
        *("--reward_funcs", *rewards, "--reward_weights", "1", "0.5", "2", "--max_steps", "1", "--num_generations", "2"),
        *("--per_device_train_batch_size", "2", "--max_completion_length", "4", "--bf16", "false", "--logging_steps", "1"),
        *QUIET,
        cwd=tmp_path,
    )
    for name in ("colours", "parts/colours", "parts/repetition", "parts/member/0"):
        assert f"rewards/{name}" in printed


def test_two_processes_train_a_reward_and_a_policy(tiny_policy: Path, tiny_decoder: Any, tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    run_warm_group(2, script, tiny_decoder(), tiny_policy, tmp_path, ACCELERATE_USE_CPU="true")
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert found["processes"] == 2
    assert found["rows_per_step"] == 4
    assert found["rewards/rm/std"] >= 0
    # The mean over both processes' samples, each scored once.
    assert found["rewards/rm/mean"] == pytest.approx(found["expected_mean"], abs=1e-4)
    assert rm.load(tmp_path / "rm").verify() == []  # type: ignore[attr-defined]


def test_an_output_folder_that_cannot_be_written_is_told_before_the_training(tmp_path: Path) -> None:
    blocked = write_jsonl(tmp_path / "a file", [ROW])
    for place in (blocked, f"{blocked}/rm"):
        arguments = [
            "train",
            "--model_name_or_path",
            "no-model",
            "--dataset_name",
            "no-data",
            "--output_dir",
            str(place),
            *QUIET,
        ]
        told = CliRunner().invoke(main, arguments)
        assert told.exit_code == 1
        assert f"Error: {place} " in told.output


def test_published_rows_are_mapped(tiny_decoder: Any, tmp_path: Path) -> None:
    row = {
        "instruction": "Do.",
        "input": "",
        "response1": "bad",
        "response2": "good",
        "annotator1": 2,
        "annotator2": 0,
        "annotator3": 2,
    }
    (tmp_path / "testset.json").write_text(
        json.dumps([{**row, "instruction": f"Do {number}."} for number in range(8)], indent=2), "utf-8"
    )
    run_warm(
        *("rm_plugins", "train", "--model_name_or_path", tiny_decoder(), "--dataset_name", tmp_path / "testset.json"),
        *("--map", "pandalm", "--loss", "soft-bradley-terry", "--output_dir", tmp_path / "rm", "--max_steps", "2", *QUIET),
    )
    assert Manifest.read(tmp_path / "rm" / "reward_manifest.json").training["rows"] == {"train": 8}
