"""What ``rm-plugins train`` prints, says of wrong inputs, and does at Ctrl-C; and what ``demo`` asks first."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rm_plugins.cli import main
from rm_plugins_trl.reward_training.train import PROGRAM
from rm_plugins_trl.reward_training.train_options import GROUPS
from rm_plugins_trl.trl_command import OF_LAUNCHER
from tests.trl.conftest import newest_trl, write_jsonl

NUMBER = r"-?[\d.]+(e[+-]\d+)?%?"
ALLOWED = (
    r" +step epoch +loss accuracy +margin +reward +std learning rate",
    rf"( +eval)? +\d+( +{NUMBER})+ *",
    rf"Accuracy on the evaluation data: {NUMBER}",
    r"Trained 2 steps on 16 pairs in [\d.]+ s\. Last loss [\d.]+, accuracy [\d.]+%\.",
    r"The preset .*",
    r"Saved the reward model to .*\.",
    r"  rm-plugins (verify|evaluate|serve) .*",
    r"",
)
"""Every line that a training may print."""


def start_training(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rm_plugins", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # which background jobs ignore
    )


@newest_trl
def test_a_training_prints_what_its_user_can_use(minilm_path: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Name {number} colours.", "chosen": "Blue and red.", "rejected": "two"} for number in range(8)]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    with start_training(
        *("--model_name_or_path", minilm_path, "--dataset_name", data, "--eval_dataset_name", data, "--max_steps", 2),
        *("--logging_steps", 1, "--eval_strategy", "steps", "--eval_steps", 1, "--output_dir", tmp_path / "rm"),
    ) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    unknown = [line for line in (out + err).splitlines() if not any(re.fullmatch(form, line) for form in ALLOWED)]
    assert unknown == []
    table = [line.split() for line in out.splitlines()]
    assert [line[:2] for line in table if line and line[0] == "eval"] == [["eval", "1"], ["eval", "2"]]
    assert max(map(len, out.splitlines())) < 80
    assert f"rm-plugins verify {tmp_path / 'rm'}" in err


@newest_trl
def test_a_training_shorter_than_its_logging_prints_numbers(tiny_decoder: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", [ROW] * 16)
    arguments = (
        *("--model_name_or_path", tiny_decoder(), "--dataset_name", data, "--max_steps", 2, "--logging_steps", 10),
        *("--use_cpu", "true", "--output_dir", tmp_path / "rm"),
    )
    told = CliRunner().invoke(main, ["train", *map(str, arguments)])
    assert told.exit_code == 0, told.output
    header, row, closing = told.stdout.splitlines()
    assert header.split()[:3] == ["step", "epoch", "loss"]
    assert re.fullmatch(ALLOWED[3], closing), closing
    assert closing.endswith(f" Last loss {row.split()[2]}, accuracy {row.split()[3]}.")


def test_the_help_tells_the_truth() -> None:
    """The common options are written down; here they are compared with the parser."""
    actions = {option: action for action in PROGRAM.parser()._actions for option in action.option_strings}
    for option in [option for group in GROUPS.values() for option in group if option.flag != "--config"]:
        assert option.flag in actions
        if option.default:
            assert str(getattr(actions[option.flag].default, "value", actions[option.flag].default)) == option.default
    from accelerate.commands.launch import launch_command_parser

    from rm_plugins_trl.launching import OURS

    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    assert {option.flag for option in OF_LAUNCHER} <= {*known, *OURS}


def test_all_options_ours_first() -> None:
    told = CliRunner().invoke(main, ["train", "--help-all"]).output
    ours, theirs = told.split("Options of TRL and transformers:")
    assert "  --loss " in ours
    assert "  --eval_dataset_name " in ours
    assert "  --weight_decay " in theirs
    assert "  --use_peft " in theirs


ROW = {"prompt": "Name a colour.", "chosen": " It is blue.", "rejected": " two"}


@newest_trl
@pytest.mark.filterwarnings("ignore")
class TestWrongInputs:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--num_train_epochs", "many"], "num_train_epochs: invalid float value: 'many'"),
            (["--max_steps"], "max_steps: expected one argument"),
            (["--eval_strategy", "often"], "eval_strategy: invalid choice: 'often'"),
            (["--loss", "bradly-terry"], "Did you mean 'bradley-terry'?"),
            (["--loss", "{"], "loss: "),
            (["--members", "0"], "members must be at least 1"),
            (["--config"], "--config needs a file"),
            (["--config", "missing.yaml"], "missing.yaml"),
            (["--config", "folder"], "folder"),
            (["--config", "binary"], "binary"),
            (["--config", "list.yaml"], "mapping"),
            (["--load_best_model_at_end", "true"], "load_best_model_at_end"),
            (["--model_name_or_path", "missing"], "missing"),
            (["--model_name_or_path", "folder"], "folder"),
            (["--model_name_or_path", "binary"], "binary"),
            (["--dataset_name", "missing.jsonl"], "There is no file 'missing.jsonl'"),
            (["--dataset_name", "missing"], "missing"),
            (["--dataset_name", "binary.jsonl"], "binary.jsonl"),
            (["--dataset_name", "empty.jsonl"], "empty.jsonl has no rows"),
            (["--dataset_name", "folder"], "folder"),
            (["--map", "missing.yaml"], "missing.yaml"),
            (["--eval_dataset_name", "missing.jsonl"], "There is no file 'missing.jsonl'"),
            (["--resume_from_checkpoint", "missing"], "missing"),
            (["--output_dir", "pairs.jsonl"], "pairs.jsonl is not a folder"),
            (["stray"], "'stray' is not an option"),
            (["--report_to", "wandb"], "--report_to wandb needs the package wandb: pip install wandb"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_one_message(
        self, arguments: list[str], message: str, tiny_decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if "wandb" in arguments and importlib.util.find_spec("wandb") is not None:
            pytest.skip("wandb is installed")
        write_jsonl(Path("pairs.jsonl"), [ROW] * 4)
        Path("folder").mkdir()
        Path("empty.jsonl").touch()
        for name in ("binary", "binary.jsonl"):
            Path(name).write_bytes(bytes(range(256)))
        Path("list.yaml").write_text("[1]", encoding="utf-8")
        good = ["--model_name_or_path", str(tiny_decoder()), "--dataset_name", "pairs.jsonl", "--output_dir", "rm"]
        told = CliRunner().invoke(main, ["train", *good, "--max_steps", "1", "--use_cpu", "true", *arguments])
        assert told.exit_code in (1, 2), told.output
        assert "Traceback" not in told.output
        assert "Unexpected error" not in told.output
        assert message in told.stderr
        assert len(told.stderr.splitlines()) < 12  # not the usage of every option

    def test_without_a_model_or_data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert "--model_name_or_path FOLDER_OR_ID" in CliRunner().invoke(main, ["train"]).stderr


@newest_trl
def test_ctrl_c_names_the_checkpoint(tiny_decoder: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", [ROW] * 8)
    out = tmp_path / "rm"
    with start_training(
        *("--model_name_or_path", tiny_decoder(), "--dataset_name", data, "--output_dir", out, "--max_steps", 100_000),
        *("--save_steps", 2, "--logging_steps", 2, "--use_cpu", "true"),
    ) as process:
        end = time.monotonic() + 300
        while not (out / "checkpoint-4").exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert re.search(
        r"Interrupted\. The last complete checkpoint is .*rm/checkpoint-\d+: run the same command again with --resume_from", err
    )


class TestDemo:
    def test_a_missing_package_is_said_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        told = CliRunner().invoke(main, ["demo", "--output-dir", str(tmp_path / "out")])
        assert told.exit_code == 1
        assert "needs matplotlib: pip install 'rm-plugins[demo]'" in told.stderr
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("option", ["--model", "--policy"])
    def test_a_missing_model_is_said_first(self, option: str, tmp_path: Path) -> None:
        told = CliRunner().invoke(main, ["demo", "--output-dir", str(tmp_path / "out"), option, str(tmp_path / "nothing")])
        assert told.exit_code == 1
        assert "nothing" in told.stderr
        assert not (tmp_path / "out").exists()
