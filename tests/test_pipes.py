"""Commands in pipes: data alone on standard output, a closed pipe, Ctrl-C, and completion, with processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

PROGRAM = [sys.executable, "-m", "rm_plugins"]
ROWS = [{"prompt": f"Q{number}", "completions": ["a" * (number + 1), "bb"]} for number in range(6)]
RULES = '''
import time
from pathlib import Path


def length(samples):
    """The completion's length."""
    return [float(len(str(sample.completion))) for sample in samples]


def slow(samples):
    Path("started").touch()
    time.sleep(0.3)
    return length(samples)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules.py").write_text(RULES, encoding="utf-8")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    pairs = [{"prompt": f"Q{number}", "chosen": "aaa", "rejected": "b" * (number % 5)} for number in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def run(folder: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], cwd=folder, env=environment(folder), input=given, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["score", "rank"])
def test_rows_in_and_rows_out(command: str, folder: Path) -> None:
    told = run(folder, command, "rules:length", "-", "-o", "-", given=(folder / "in.jsonl").read_text(encoding="utf-8"))
    assert told.returncode == 0, told.stderr
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    assert "to standard output" in told.stderr
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".pyc") == sorted(
        ["in.jsonl", "pairs.jsonl", "rules.py", *(["__pycache__"] if (folder / "__pycache__").exists() else [])]
    )


def test_a_curve_does_not_mix_with_rows(folder: Path) -> None:
    told = run(folder, "rank", "rules:length", "in.jsonl", "-o", "-", "--curve", "curve.json")
    assert told.returncode == 0, told.stderr
    assert len([json.loads(line) for line in told.stdout.splitlines()]) == len(ROWS)
    assert "prompts with at least 2 scored completions" in told.stderr


def test_a_calibrated_spec_on_standard_output(folder: Path) -> None:
    told = run(folder, "calibrate", "rules:length", "pairs.jsonl", "-o", "-")
    assert told.returncode == 0, told.stderr
    assert yaml.safe_load(told.stdout)["transform"]["name"] == "zscore"


@pytest.mark.parametrize("flags", [["-o", "-"], ["--json"]])
def test_an_evaluation_as_json(flags: list[str], folder: Path) -> None:
    told = run(folder, "evaluate", "rules:length", "pairs.jsonl", *flags)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["rewards"]


def test_a_closed_pipe_ends_quietly(folder: Path) -> None:
    many = [{"prompt": "Q", "completion": "a" * 2_000}] * 2_000  # more than a pipe holds
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many), encoding="utf-8")
    with subprocess.Popen(
        [*PROGRAM, "score", "rules:length", "many.jsonl", "-o", "-", "-q"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


INTERRUPTED: dict[str, tuple[Sequence[str], str]] = {
    "score": (["score", "rules:slow", "in.jsonl", "--batch-size", "2"], "resumes after the last batch that was scored"),
    "score -o -": (["score", "rules:slow", "in.jsonl", "--batch-size", "2", "-o", "-"], "Nothing is kept with -o -"),
    "rank": (["rank", "rules:slow", "in.jsonl", "--batch-size", "2"], "resumes after the last batch that was scored"),
    "evaluate": (["evaluate", "rules:slow", "pairs.jsonl", "--batch-size", "2"], "resumes after the last batch"),
    "diff": (["diff", "rules:slow", "rules:length", "pairs.jsonl", "--batch-size", "2"], "resumes after the last batch"),
    "calibrate": (["calibrate", "rules:slow", "pairs.jsonl"], "Nothing was written; run the same command again"),
}


def interrupted(folder: Path, arguments: Sequence[str], has_started: Any) -> tuple[int, str]:
    """Send SIGINT to a command once it has started; returns its exit code and what it said."""
    with subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=folder,
        env={**environment(folder), "XDG_CACHE_HOME": str(folder / "cache")},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # which background jobs ignore
    ) as process:
        end = time.monotonic() + 120
        while not has_started() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        told = process.stderr.read()
    return process.returncode, told


@pytest.mark.parametrize("name", INTERRUPTED)
def test_ctrl_c_says_how_to_resume(name: str, folder: Path) -> None:
    arguments, advice = INTERRUPTED[name]
    code, told = interrupted(folder, arguments, (folder / "started").exists)
    assert (code, "Traceback" in told) == (130, False), told
    assert advice in told.partition("Interrupted. ")[2], told


def test_an_interrupted_run_resumes(folder: Path) -> None:
    arguments, _ = INTERRUPTED["score"]
    part = folder / "in.scored.jsonl.part"
    # A batch has two rows, and counts once both are written.
    interrupted(folder, arguments, lambda: part.exists() and part.read_bytes().count(b"\n") >= 2)
    again = run(folder, *arguments)
    assert again.returncode == 0, again.stderr
    assert "Resuming after " in again.stderr
    assert len((folder / "in.scored.jsonl").read_text(encoding="utf-8").splitlines()) == len(ROWS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rm-plugins sc", "score"),
        ("rm-plugins score --ba", "--batch-size"),
        ("rm-plugins data ch", "check"),
        ("rm-plugins tr", "train"),
    ],
)
def test_completion(words: str, expected: str, folder: Path) -> None:
    settings = {"_RM_PLUGINS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    program = "from rm_plugins.cli import main; main(prog_name='rm-plugins')"
    told = subprocess.run(
        [sys.executable, "-c", program], env={**environment(folder), **settings}, capture_output=True, text=True, check=False
    )
    assert f"plain,{expected}" in told.stdout.splitlines()
