"""``rm-plugins ppo``: what it hands to the trainer, what it prints, and what it refuses."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from rm_plugins.cli import main
from rm_plugins_trl.ppo.command import PROGRAM
from rm_plugins_trl.ppo.command_options import GROUPS
from rm_plugins_trl.ppo.presets import PRESETS, preset
from tests.trl.conftest import TRL_WARNINGS, last_trl_with_ppo, newest_trl, write_jsonl
from tests.warm_process import run_warm

pytestmark = TRL_WARNINGS

ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a colour.", "answer": "blue", "facts": [{"a": 1}]},
    {"prompt": [{"role": "user", "content": "Count."}], "answer": None, "facts": [{"b": "two"}], "level": 3},
]
NUMBER = r"-?[\d.]+(e[+-]\d+)?%?"
ALLOWED = (
    r" +step epoch +score +kl +entropy +tokens +clipped +explained",
    rf"( +eval)? +\d+( +{NUMBER})+ *",
    r"Trained 4 steps on 16 completions in [\d.]+ s\. Last score [\d.]+, KL -?[\d.e-]+\.",
    rf"Score on the evaluation prompts: {NUMBER}",
    r"Saved the policy to .*, and its critic to .*/critic\.",
    r"  rm-plugins (rank|ppo) .*",
)
"""Every line that a training may print."""


class Recorded:
    """In place of a trainer: keeps what it is made with, and trains nothing."""

    made: ClassVar[dict[str, Any]] = {}

    def __init__(self, **given: Any) -> None:
        type(self).made = given
        self.args = given["args"]
        self.accelerator = SimpleNamespace(num_processes=1, is_main_process=True, print=print)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: {}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command with a trainer that trains nothing; returns what the trainer was made with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module("rm_plugins_trl.ppo.trainer"), "PPOTrainer", Recorded)
    write_jsonl(Path("prompts.jsonl"), ROWS)
    Path("one.yaml").write_text("{provider: constant, value: 1.0}", encoding="utf-8")
    Path("two.yaml").write_text("{provider: constant, value: 2.0, label: two}", encoding="utf-8")

    def run(*arguments: str) -> Any:
        Recorded.made = {}
        good = ("--model_name_or_path", "policy", "--dataset_name", "prompts.jsonl", "--use_cpu", "true")
        told = CliRunner().invoke(main, ["ppo", *good, "--report_to", "none", *arguments])
        return SimpleNamespace(**Recorded.made, told=told)

    return run


@newest_trl
class TestHandedOver:
    def test_rows_keep_their_columns(self, recorded: Any) -> None:
        made = recorded("--reward", "one.yaml", "--eval_dataset_name", "prompts.jsonl")
        assert made.told.exit_code == 0, made.told.output
        assert [made.train_dataset[number] for number in range(2)] == ROWS
        assert made.eval_dataset[1] == ROWS[1]
        assert (made.model, made.value_model, made.peft_config) == ("policy", None, None)

    def test_columns_are_renamed(self, recorded: Any) -> None:
        write_jsonl(Path("questions.jsonl"), [{"question": "Why?", "answer": "So."}])
        made = recorded("--reward", "one.yaml", "--dataset_name", "questions.jsonl", "--map", "question=prompt")
        assert made.train_dataset[0] == {"prompt": "Why?", "answer": "So."}

    def test_a_stream_keeps_its_columns(self, recorded: Any) -> None:
        made = recorded("--reward", "one.yaml", "--dataset_streaming", "true", "--max_steps", "1")
        assert list(made.train_dataset) == ROWS

    def test_rewards_may_be_repeated(self, recorded: Any) -> None:
        made = recorded("--reward", "one.yaml", "--reward", "two.yaml", "--reward_weights", "1", "0.5")
        assert [one([""], ["x"]) for one in made.reward_funcs] == [[1.0], [2.0]]
        assert made.args.reward_weights == [1.0, 0.5]

    def test_the_command_line_wins_over_the_file(self, recorded: Any) -> None:
        Path("ppo.yaml").write_text("reward: [one.yaml, one.yaml]\nkl_coef: 0.3\nlam: 0.9\n", encoding="utf-8")
        made = recorded("--config", "ppo.yaml", "--reward", "two.yaml", "--kl_coef", "0.2")
        assert [one([""], ["x"]) for one in made.reward_funcs] == [[2.0]]
        assert (made.args.kl_coef, made.args.lam) == (0.2, 0.9)

    def test_a_reward_of_the_file_may_be_one_text_or_a_mapping(self, recorded: Any) -> None:
        for written in ("one.yaml", "{provider: constant, value: 1.0}"):
            Path("ppo.yaml").write_text(f"reward: {written}\n", encoding="utf-8")
            made = recorded("--config", "ppo.yaml")
            assert [one([""], ["x"]) for one in made.reward_funcs] == [[1.0]], made.told.output

    def test_the_trainer_loads_reward_model_path(self, recorded: Any) -> None:
        made = recorded("--reward_model_path", "one.yaml", "--value_model", "critic", "--use_peft", "true")
        assert (made.reward_funcs, made.args.reward_model_path, made.value_model) == (None, "one.yaml", "critic")
        assert made.peft_config is not None

    def test_a_preset_sets_what_is_not_given(self, recorded: Any) -> None:
        trl = recorded("--reward", "one.yaml").args
        assert (trl.num_ppo_epochs, trl.learning_rate, trl.temperature, trl.response_length) == (4, 3e-6, 0.7, 53)
        chosen = recorded("--reward", "one.yaml", "--preset", "openrlhf", "--temperature", "0.9").args
        assert (chosen.num_ppo_epochs, chosen.critic_learning_rate, chosen.temperature) == (1, 9e-6, 0.9)
        Path("ppo.yaml").write_text("preset: openrlhf\nlearning_rate: 2e-6\n", encoding="utf-8")
        written = recorded("--reward", "one.yaml", "--config", "ppo.yaml", "--lam", "0.5").args
        assert (written.num_mini_batches, written.learning_rate, written.lam) == (8, 2e-6, 0.5)

    def test_it_says_what_to_do_next(self, recorded: Any) -> None:
        told = recorded("--reward", "one.yaml", "--output_dir", "out").told.stderr
        assert "Saved the policy to out, and its critic to out/critic." in told
        assert "rm-plugins rank one.yaml prompts.jsonl --generate out" in told


@newest_trl
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name the reward: --reward SPEC"),
        (["--reward", "missing.yaml"], "missing.yaml"),
        (["--reward", "one.yaml", "--reward_model_path", "two.yaml"], "Give one of them"),
        (["--reward", "one.yaml", "--reward_weights", "1", "2"], "--reward_weights has 2 numbers for 1 rewards"),
        (["--reward", "one.yaml", "--preset", "openrlfh"], "Did you mean 'openrlhf'?"),
        (["--reward", "one.yaml", "--beta", "0.1"], "--beta is not an option of `rm-plugins ppo`. Set kl_coef."),
        (["--reward", "one.yaml", "--batch-size", "64"], "num_mini_batches"),
        (["--reward", "one.yaml", "--config", "grpo.yaml"], "Set response_length."),
        (["--reward", "one.yaml", "--loss_type", "grpo"], "cliprange"),
        (["--reward", "one.yaml", "--kl_koef", "0.1"], "Did you mean --kl_coef?"),
        (["--reward", "one.yaml", "--gamma", "2"], "gamma must be a number from 0 to 1"),
        (["--reward", "one.yaml", "--dataset_name", "missing.jsonl"], "There is no file 'missing.jsonl'"),
        (["--reward", "one.yaml", "--dataset_name", "empty.jsonl"], "empty.jsonl has no rows"),
        (["--reward", "one.yaml", "--dataset_name", "pairs.jsonl"], "--map OLD=prompt"),
        (["--reward", "one.yaml", "--output_dir", "prompts.jsonl"], "prompts.jsonl is not a folder"),
        (["--reward", "one.yaml", "--resume_from_checkpoint", "nowhere"], "nowhere is not a checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_input_is_one_message(arguments: list[str], message: str, recorded: Any) -> None:
    write_jsonl(Path("pairs.jsonl"), [{"chosen": "a", "rejected": "b"}])
    Path("empty.jsonl").touch()
    Path("grpo.yaml").write_text("max_completion_length: 512\n", encoding="utf-8")
    told = recorded(*arguments).told
    assert told.exit_code in (1, 2), told.output
    assert message in told.stderr
    assert "Traceback" not in told.output
    assert "Unexpected error" not in told.output
    assert len(told.stderr.splitlines()) < 12


@newest_trl
def test_the_policy_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Name the policy to train: --model_name_or_path" in CliRunner().invoke(main, ["ppo"]).stderr


@newest_trl
def test_the_help_tells_the_truth() -> None:
    actions = {option: action for action in PROGRAM.parser()._actions for option in action.option_strings}
    for option in [option for group in GROUPS.values() for option in group if option.flag != "--config"]:
        assert option.flag in actions
        if option.default:
            assert str(getattr(actions[option.flag].default, "value", actions[option.flag].default)) == option.default
    assert set(preset("openrlhf")) <= {action.dest for action in actions.values()}
    assert GROUPS["PPO"][0].metavar == "|".join(PRESETS)


@newest_trl
def test_the_help_names_no_sharding_that_ppo_refuses() -> None:
    told = CliRunner().invoke(main, ["ppo", "--help"]).output
    assert "multi_gpu" in told
    assert not re.search("fsdp|zero3", told)


@newest_trl
def test_all_options_ours_first() -> None:
    told = CliRunner().invoke(main, ["ppo", "--help-all"]).output
    ours, theirs = told.split("Options of TRL and transformers:")
    assert all(f"  {option} " in ours for option in ("--reward", "--preset", "--kl_coef", "--critic", "--value_model"))
    assert all(f"  {option} " in theirs for option in ("--weight_decay", "--use_peft", "--use_vllm"))
    assert "--beta" not in told


@newest_trl
def test_a_training_prints_what_its_user_can_use(tiny_policy: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Name {number} colours."} for number in range(8)])
    (tmp_path / "lengths.py").write_text("def reward(samples):\n    return [len(s.completion) for s in samples]\n", "utf-8")
    settings = {"reward": "lengths:reward", "total_episodes": 16, "num_ppo_epochs": 2, "response_length": 6, "logging_steps": 1}
    options = {
        "model_name_or_path": tiny_policy,
        "dataset_name": data,
        **settings,
        "eval_dataset_name": data,
        "output_dir": tmp_path / "out",
        "save_steps": 2,
        "use_cpu": "true",
    }
    command = ["rm_plugins", "ppo", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
    told = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    lines = (told.stdout + told.stderr).splitlines()
    assert [line for line in lines if not any(re.fullmatch(form, line) for form in ALLOWED)] == []
    assert max(map(len, told.stdout.splitlines())) < 80
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "critic").is_dir()
    again = run_warm(*command, "--resume_from_checkpoint", "true", cwd=tmp_path)
    assert "is already finished: it did all of its 4 steps" in again
    assert "holds a finished model" in run_warm(*command, cwd=tmp_path, status=1)


@newest_trl
def test_it_launches_processes(tiny_policy: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Name {number} colours."} for number in range(8)])
    (tmp_path / "lengths.py").write_text("def reward(samples):\n    return [len(s.completion) for s in samples]\n", "utf-8")
    printed = run_warm(
        *("rm_plugins", "ppo", "--num_processes", "2", "--cpu", "--model_name_or_path", tiny_policy, "--dataset_name", data),
        *("--reward", "lengths:reward", "--output_dir", tmp_path / "out", "--max_steps", "1", "--num_ppo_epochs", "1"),
        *("--per_device_train_batch_size", "2", "--response_length", "4", "--report_to", "none", "--use_cpu", "true"),
        cwd=tmp_path,
    )
    assert "Trained 1 step on 4 completions" in printed


@last_trl_with_ppo
def test_with_an_older_trl_it_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["ppo", "--reward", "x"], ["ppo", "--help-all"]):
        told = CliRunner().invoke(main, arguments)
        assert told.exit_code == 1
        assert "`rm-plugins ppo` trains on TRL 1.13 or later" in told.stderr
