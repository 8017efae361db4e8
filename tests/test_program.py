"""What holds for every command: its help, what it imports for it, ``-q`` and ``-v``, and what it proposes for a wrong name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rm_plugins.cli import main
from rm_plugins.errors import nearest_name

LONGEST_HELP = 60
WIDTH = 80
HEAVY = ("datasets", "matplotlib", "pandas", "peft", "pyarrow", "scipy", "statsmodels", "torch", "transformers", "trl")


def commands() -> list[str]:
    """Every command, and those of groups, as they are called."""
    context = click.Context(main)
    names = []
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        names += [name, *(f"{name} {inner}" for inner in getattr(command, "commands", {}))]
    return names


@pytest.mark.parametrize("name", ["", *commands()])
def test_help_fits_a_screen(name: str) -> None:
    told = CliRunner().invoke(main, [*name.split(), "--help"], env={"COLUMNS": str(WIDTH)})
    lines = told.output.splitlines()
    assert told.exit_code == 0
    assert len(lines) <= LONGEST_HELP
    assert max(map(len, lines)) <= WIDTH


def test_help_imports_nothing_heavy() -> None:
    """In one process for all commands, the heaviest of which would show."""
    script = f"""
import json, sys
from click.testing import CliRunner
from rm_plugins.cli import main
imported = {{}}
for name in {["", *commands()]!r}:
    assert CliRunner().invoke(main, [*name.split(), "--help"]).exit_code == 0
    imported[name] = [module for module in {HEAVY!r} if module in sys.modules]
print(json.dumps(imported))
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert {name: modules for name, modules in json.loads(told.stdout).items() if modules} == {}


@pytest.mark.parametrize("name", ["rank", "evaluate", "diff", "serve"])
def test_all_options_are_shown_on_demand(name: str) -> None:
    context = click.Context(main)
    command = main.get_command(context, name)
    assert command is not None
    short = CliRunner().invoke(main, [name, "--help"]).output
    whole = CliRunner().invoke(main, [name, "--help-all"]).output
    assert f"more options: rm-plugins {name} --help-all" in short.replace("main ", "rm-plugins ")
    assert len(whole) > len(short)
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.opts[-1] in whole


@pytest.mark.parametrize(
    ("arguments", "proposed"),
    [
        (["scroe"], "Did you mean 'score'?"),
        (["eval"], "Did you mean 'evaluate'?"),
        (["banana"], "`rm-plugins --help` lists the commands."),
        (["score", "--ouput", "x"], "Did you mean '--output'?"),
        (["list", "bradly-tery"], "Did you mean 'bradley-terry'?"),
        (["list", "provider"], "Did you mean 'providers'?"),
    ],
)
def test_a_near_name_is_proposed(arguments: list[str], proposed: str) -> None:
    told = CliRunner().invoke(main, arguments)
    assert (told.exit_code, proposed in told.stderr) == (2, True), told.stderr


@pytest.mark.parametrize("arguments", [["banana"], ["score", "--zzz"], ["list", "zzz"], ["--zzz"]])
def test_nothing_far_fetched_is_proposed(arguments: list[str]) -> None:
    assert "Did you mean" not in CliRunner().invoke(main, arguments).stderr


def test_nearest_name() -> None:
    names = ["bradley-terry", "mean", "median", "min"]
    assert nearest_name("bradley-tery", names) == "bradley-terry"
    assert nearest_name("bradley", names) == "bradley-terry"
    assert nearest_name("me", names) is None
    assert nearest_name("product", names) is None


class TestList:
    def test_one_line_for_each_entry(self) -> None:
        listed = CliRunner().invoke(main, ["list"]).output.splitlines()
        registered = json.loads(CliRunner().invoke(main, ["list", "--json"]).output)["registered"]
        assert max(map(len, listed)) <= WIDTH
        entries = [line.split()[0] for line in listed if line.startswith("  ")]
        assert entries == [entry["name"] for entry in registered]

    def test_one_entry_in_full(self) -> None:
        told = CliRunner().invoke(main, ["list", "hinge"]).output
        assert told.startswith("loss hinge\n  from rm_plugins.losses")
        assert "    margin = 1.0" in told
        (entry,) = json.loads(CliRunner().invoke(main, ["list", "hinge", "--json"]).output)["registered"]
        assert entry["arguments"] == {"margin": " = 1.0"}
        assert "ranking SVMs" in entry["documentation"]


class TestQuietAndVerbose:
    def score(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str, spec: str = "constant.yaml"
    ) -> click.testing.Result:
        monkeypatch.chdir(folder)
        Path("constant.yaml").write_text("{provider: constant, value: 1.0}", encoding="utf-8")
        Path("in.jsonl").write_text('{"prompt": "Q", "completion": "a"}\n', encoding="utf-8")
        return CliRunner().invoke(main, ["score", spec, "in.jsonl", "-o", "out.jsonl", "--overwrite", *options])

    def test_quiet_prints_nothing_where_there_is_no_result(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "Wrote 1 row to out.jsonl" in self.score(tmp_path, monkeypatch).stderr
        for flag in ("-q", "--quiet"):
            assert self.score(tmp_path, monkeypatch, flag).output == ""

    def test_help_and_page_say_the_same_of_quiet(self) -> None:
        page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
        (row,) = (line for line in page.splitlines() if line.startswith("| `-q`"))
        printed = row.split("|")[2].strip()
        for command in ("score", "train"):
            assert printed in " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())

    def test_quiet_keeps_warnings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("in.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n', encoding="utf-8")
        Path("constant.yaml").write_text("{provider: constant, value: 1.0}", encoding="utf-8")
        program = [sys.executable, "-c", "from rm_plugins.cli import main; main()"]
        told = subprocess.run([*program, "score", "constant.yaml", "in.jsonl", "-q"], capture_output=True, text=True)
        assert (told.returncode, "has no 'prompt'" in told.stderr, "Wrote" in told.stderr) == (0, True, False), told.stderr

    def test_help_shows_a_mapping_in_braces(self) -> None:
        assert "|{YAML}" in CliRunner().invoke(main, ["score", "--help"]).output

    def test_a_warning_is_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "warns.py").write_text(
            "import warnings\ndef reward(samples):\n    warnings.warn('look here')\n    return [1.0 for _ in samples]\n",
            encoding="utf-8",
        )
        monkeypatch.chdir(tmp_path)
        (tmp_path / "in.jsonl").write_text('{"prompt": "Q", "completion": "a"}\n', encoding="utf-8")
        command = [sys.executable, "-m", "rm_plugins", "score", "warns:reward", "in.jsonl", "-o", "-"]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "Warning: look here\n" in told.stderr
        assert "UserWarning" not in told.stderr

    def test_verbose_prints_tracebacks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "broken.py").write_text("raise KeyError('a bug')\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert "Traceback" not in self.score(tmp_path, monkeypatch, spec="broken:reward").stderr
        told = self.score(tmp_path, monkeypatch, "-v", spec="broken:reward")
        assert "Traceback" in told.stderr
        assert "KeyError: 'a bug'" in told.stderr

    def test_lack_of_memory_is_no_bug(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: object) -> None:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr("rm_plugins.jobs.scored_rows.ScoringJob.write", fails)
        told = self.score(tmp_path, monkeypatch)
        assert told.exit_code == 1
        assert "The device has too little memory. CUDA out of memory." in told.stderr
        assert "Unexpected error" not in told.stderr

    def test_a_bug_is_one_message(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: object) -> None:
            raise ZeroDivisionError("by nought")

        monkeypatch.setattr("rm_plugins.jobs.scored_rows.ScoringJob.write", fails)
        told = self.score(tmp_path, monkeypatch)
        assert told.exit_code == 1
        assert "Unexpected error" in told.stderr
        assert "ZeroDivisionError: by nought" in told.stderr
        assert "Run the same command with -v for the traceback." in told.stderr
        assert "Traceback" not in told.stderr
        assert "Traceback" in self.score(tmp_path, monkeypatch, "-v").stderr
