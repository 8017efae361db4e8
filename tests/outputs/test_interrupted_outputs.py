"""A disk that is full, a reader that has gone, and a home that cannot be written: what is said, and what is kept."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import Result

from rm_plugins.errors import OutputError
from rm_plugins.files import write_atomically
from tests.outputs.conftest import ROWS, scored

Run = Callable[..., Result]


class FullDisk:
    """Stands for a function of the system that has room for so many calls, of those that `counts` says."""

    def __init__(self, function: Callable[..., Any], calls: int, counts: Callable[..., bool] = lambda *_, **__: True) -> None:
        self.function = function
        self.calls = calls
        self.counts = counts

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        self.calls -= self.counts(*arguments, **settings)
        if self.calls < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(*arguments, **settings)


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def is_of_rows(descriptor: int) -> bool:
    """Whether a descriptor is of a file that rows are appended to."""
    size = os.fstat(descriptor).st_size
    return stat.S_ISREG(os.fstat(descriptor).st_mode) and size > 0 and b'"details"' in os.pread(descriptor, size, 0)


@pytest.mark.parametrize("command", ["score", "rank", "evaluate", "diff"])
def test_a_full_disk_leaves_what_was_scored_to_the_next_run(run: Run, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = ["rules:length"] * (2 if command == "diff" else 1)
    arguments = [command, *rewards, "in.jsonl", "--batch-size", "6"]
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", FullDisk(os.fsync, 2, is_of_rows))
        told = run(*arguments)
    assert (type(told.exception), told.exit_code) == (SystemExit, 1), told.exc_info
    assert "cannot be written: No space left on device. Rows that were written before are kept" in told.output
    before = scored()
    assert before == 18
    again = run(*arguments)
    assert again.exit_code == 0, again.output
    assert "Resuming after 9 rows" in again.output or "Going on behind 6 rows" in again.output
    assert scored() - before < 2 * len(ROWS) * len(rewards)


@pytest.mark.parametrize("command", ["score", "rank", "evaluate"])
def test_an_output_that_cannot_be_finished_costs_no_score(run: Run, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = "out.json" if command == "evaluate" else "out.jsonl"
    replace = os.replace

    def full(source: Any, target: Any, **settings: Any) -> None:
        if Path(target).name == out:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        told = run(command, "rules:length", "in.jsonl", "-o", out)
    assert (type(told.exception), told.exit_code) == (SystemExit, 1), told.exc_info
    assert f"{out} cannot be written: No space left on device" in told.output
    before = scored()
    assert before == 2 * len(ROWS)
    assert run(command, "rules:length", "in.jsonl", "-o", out).exit_code == 0
    assert Path(out).is_file()
    assert scored() == before


def test_a_column_that_parquet_has_no_form_for_costs_no_score(run: Run) -> None:
    Path("in.jsonl").write_text('{"prompt": "Q", "completion": "a", "n": 1}\n{"prompt": "Q", "completion": "b", "n": "one"}\n')
    told = run("score", "rules:length", "in.jsonl", "-o", "out.parquet")
    assert (type(told.exception), told.exit_code) == (SystemExit, 1), told.exc_info
    assert "out.parquet cannot be written as Parquet" in told.output
    assert "ends in .jsonl" in told.output


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "file.json", "old")
    monkeypatch.setattr(Path, "write_text", FullDisk(Path.write_text, 0))
    with pytest.raises(OutputError, match=f"{re.escape(str(path))} cannot be written: No space left on device"):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


# --- Processes ------------------------------------------------------------------------------------------------------------

COMMANDS = [
    ["list"],
    ["show", "rules:length"],
    ["score", "rules:length", "in.jsonl"],
    ["rank", "rules:length", "in.jsonl"],
    ["evaluate", "rules:length", "in.jsonl", "-o", "out.json"],
    ["diff", "rules:length", "rules:length", "in.jsonl", "-o", "diff.json"],
    ["calibrate", "rules:length", "in.jsonl", "-o", "calibrated.yaml"],
    ["data", "check", "in.jsonl"],
]

PROGRAM = """
import json, sys
from click.testing import CliRunner
from rm_plugins.cli import main

for arguments in json.load(sys.stdin):
    told = CliRunner().invoke(main, arguments)
    print(json.dumps([arguments[0], told.exit_code, repr(told.exception), told.output]))
"""


def environment(**more: str) -> dict[str, str]:
    names = ("XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {**kept, "COLUMNS": "300", "PYTHONPATH": os.pathsep.join([".", *sys.path]), **more}


def test_a_home_that_cannot_be_written_is_needed_by_no_command(run: Run) -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([*COMMANDS, ["evaluate", "rules:length", "in.jsonl", "--report", "page.html"]]),
        env=environment(HOME="/dev/null/home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert [line[1:3] for line in lines] == [[0, "None"]] * (len(COMMANDS) + 1), told.stdout
    evaluation = next(output for command, _, _, output in lines if command == "evaluate")
    assert (
        "If this is interrupted, scores are not kept: /dev/null/home/.cache/rm-plugins/scores cannot be written" in evaluation
    )
    assert "--scores FOLDER" in evaluation


def program_into(stdout: int | IO[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the program with this standard output."""
    command = [sys.executable, "-m", "rm_plugins", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=environment(), text=True, check=False)


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["show", "--json", "rules:length"]])
def test_a_reader_that_has_gone_is_no_error(run: Run, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        told = program_into(writing, arguments)
    finally:
        os.close(writing)
    assert told.stderr == ""
    assert told.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"]])
def test_a_standard_output_that_is_full_is_told(run: Run, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        told = program_into(full, arguments)
    assert "No space left on device" in told.stderr
    assert "Traceback" not in told.stderr
    assert told.returncode != 0
