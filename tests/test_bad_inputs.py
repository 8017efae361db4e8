"""Whatever a command is given in place of what it needs: a message and an exit code, never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rm_plugins.cli import main

SPEC, DATA, PAIRS, OUT, MODEL, JOURNAL, MAP = ["SPEC", "DATA", "PAIRS", "OUT", "MODEL", "JOURNAL", "MAP"]
GOOD = {
    SPEC: "constant.yaml",
    DATA: "in.jsonl",
    PAIRS: "pairs.jsonl",
    OUT: "out.jsonl",
    MODEL: "no-model",
    JOURNAL: "journal",
    MAP: "m.yaml",
}

COMMANDS = (
    ["score", SPEC, DATA, "-o", OUT, "--map", MAP],
    ["rank", SPEC, DATA, "-o", OUT, "--gold", SPEC, "--curve", "curve.json", "--map", MAP],
    ["rank", SPEC, DATA, "-o", OUT, "--generate", MODEL, "--n", "2"],
    ["evaluate", SPEC, PAIRS, "-o", OUT, "--map", MAP, "--report", "report.html"],
    ["diff", SPEC, SPEC, PAIRS, "-o", OUT, "--report", "report.html"],
    ["calibrate", SPEC, DATA, "-o", "out.yaml"],
    ["data", "check", PAIRS, "--map", MAP],
    ["data", "check", PAIRS, "--tokenizer", MODEL],
    ["merge", MODEL, MODEL, "-o", "merged", "--data", PAIRS],
    ["judge-data", PAIRS, "-o", "questions", "--map", MAP],
    ["report", JOURNAL, "-o", "page.html"],
    ["show", SPEC],
    ["verify", SPEC],
    ["serve", SPEC, "--port", "0"],
)
REPLACING = ("score", "rank", "calibrate", "judge-data")
"""Commands that refuse to replace an output."""

BAD = (
    "missing.jsonl",
    "missing.yaml",
    "missing/folder",
    "folder",
    "empty.jsonl",
    "empty.yaml",
    "empty.json",
    "binary.jsonl",
    "binary.yaml",
    "binary.parquet",
    "binary.csv",
    "binary",
    "list.yaml",
    "number.json",
    "text.jsonl",
    "wrong.jsonl",
    "loop",
    "",
    " ",
    "\x00",
    "a" * 5_000,
    "no_such_module:function",
    "builtins:print",
    "json:nothing",
    "broken_module:reward",
)
OF_SERVER = ("missing.yaml", "binary.yaml", "json:nothing")
"""Few, for each loads the reward in a process of its own."""

OPTIONS = {
    "score": ["--batch-size", "--split"],
    "rank": [
        "--batch-size",
        "--n",
        "--best",
        "--min-score",
        "--format",
        "--engine-options",
        "--temperature",
        "--curve",
        "--gold",
    ],
    "evaluate": ["--batch-size", "--suite", "--section", "--by", "--fail-under", "--limit", "--scores", "--cluster"],
    "calibrate": ["--transform", "--limit"],
    "merge": ["--weights"],
    "judge-data": ["--form", "--template", "--criteria", "--criteria-column", "--held-out", "--ties", "--max-pairs", "--split"],
    "report": ["--last", "--window"],
    "serve": ["--host", "--port", "--workers", "--api-key-env", "--max-items"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    (folder / "constant.yaml").write_text("{provider: constant, value: 1.0}", encoding="utf-8")
    (folder / "in.jsonl").write_text(json.dumps({"prompt": "Q", "completions": ["a", "b"]}) + "\n", encoding="utf-8")
    (folder / "pairs.jsonl").write_text(json.dumps({"prompt": "Q", "chosen": "a", "rejected": "b"}) + "\n", encoding="utf-8")
    (folder / "m.yaml").write_text("{columns: {prompt: prompt}}", encoding="utf-8")
    (folder / "folder").mkdir()
    for name in ("empty.jsonl", "empty.yaml", "empty.json"):
        (folder / name).touch()
    for name in ("binary.jsonl", "binary.yaml", "binary.parquet", "binary.csv", "binary"):
        (folder / name).write_bytes(bytes(range(256)) * 4)
    (folder / "list.yaml").write_text("[1, 2]", encoding="utf-8")
    (folder / "number.json").write_text("3", encoding="utf-8")
    (folder / "text.jsonl").write_text("this is not JSON\n", encoding="utf-8")
    (folder / "wrong.jsonl").write_text('{"prompt": 3, "completion": {"a": [1]}, "chosen": null}\n', encoding="utf-8")
    (folder / "loop").symlink_to("loop")
    (folder / "broken_module.py").write_text("import no_such_module_at_all\n", encoding="utf-8")
    return folder


@pytest.fixture
def place(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(world))
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield world


def complaints(told: Result, arguments: list[str]) -> list[str]:
    """What is wrong with how a command took its arguments; empty where it worked or said what is wrong with them."""
    line = " ".join(argument[:60] for argument in arguments)
    if told.exception is not None and not isinstance(told.exception, SystemExit):
        return [f"{line!r} raised {told.exception!r}"]
    if told.exit_code not in (0, 1, 2):
        return [f"{line!r} ended with {told.exit_code}"]
    if "Traceback" in told.output or "Unexpected error" in told.output:
        return [f"{line!r} said {told.output[-400:]}"]
    says_why = "Error: " in told.stderr or "failed: " in told.stderr or arguments[0] in ("data", "verify")
    return [] if says_why or told.exit_code == 0 else [f"{line!r} did not say what is wrong"]


def run(*arguments: str) -> list[str]:
    return complaints(CliRunner().invoke(main, arguments), [*arguments])


CASES = [
    (command, position)
    for command in COMMANDS
    for position, argument in enumerate(command)
    if argument in GOOD and argument != OUT
]


@pytest.mark.parametrize(
    ("command", "position"), CASES, ids=[f"{' '.join(command[:2])}-{position}" for command, position in CASES]
)
def test_wrong_inputs(command: list[str], position: int, place: Path) -> None:
    wrong = []
    for bad in OF_SERVER if command[0] == "serve" else BAD:
        arguments = [bad if at == position else GOOD.get(argument, argument) for at, argument in enumerate(command)]
        wrong += run(*arguments, *(["--overwrite"] if command[0] in REPLACING else []))
    assert wrong == []


@pytest.mark.parametrize("bad", ["folder", "in.jsonl/out.jsonl", "/proc/out.jsonl", "out", "", "loop", "a" * 5_000 + ".jsonl"])
@pytest.mark.parametrize("command", ["score", "rank", "evaluate", "diff", "calibrate", "merge", "judge-data", "report"])
def test_outputs_that_cannot_be_written(command: str, bad: str, place: Path) -> None:
    arguments = [GOOD.get(argument, argument) for argument in next(one for one in COMMANDS if one[0] == command)]
    arguments[arguments.index("-o") + 1] = bad
    told = CliRunner().invoke(main, arguments)
    assert complaints(told, arguments) == []
    if bad in ("in.jsonl/out.jsonl", "/proc/out.jsonl"):
        assert told.exit_code != 0


@pytest.mark.parametrize(("command", "option"), [(name, option) for name, options in OPTIONS.items() for option in options])
def test_wrong_values_of_options(command: str, option: str, place: Path) -> None:
    template = [GOOD.get(argument, argument) for argument in next(one for one in COMMANDS if one[0] == command)]
    wrong = []
    for bad in ("", "x", "-1", "0", "1e400", "nan", "{", "[]", "\x00", "accuracy=x", "nothing=0.5", "999999999999999999999"):
        if command == "serve" and (bad.isdigit() or (option, bad) == ("--host", "")):
            continue  # with some of these it serves
        wrong += run(*template, option, bad, *(["--overwrite"] if command in REPLACING else []))
    assert wrong == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("command", [["score", "constant.yaml", "secret.jsonl"], ["show", "secret.yaml"], ["report", "secret"]])
def test_files_that_may_not_be_read(command: list[str], place: Path) -> None:
    path = place / command[-1]
    path.write_text("{}", encoding="utf-8")
    path.chmod(0)
    told = CliRunner().invoke(main, command)
    assert complaints(told, command) == []
    assert told.exit_code != 0


@pytest.mark.parametrize("command", sorted({*(one[0] for one in COMMANDS), "list"}))
def test_wrong_calls(command: str, place: Path) -> None:
    for arguments in ([command, "--zzz"], [command, *"abcdefg"], *([] if command == "list" else [[command]])):
        assert run(*arguments) == []
