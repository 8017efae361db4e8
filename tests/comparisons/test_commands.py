"""Rewards that compare, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rm_plugins.cli import main

SPEC = """
provider: comparison
comparer: {name: function, function: "tests.comparisons.judges_of_texts:longer"}
schedule: circular
"""
ROWS = [{"prompt": f"prompt {number}", "completions": ["a", "aaa", "aa", "aaaa"]} for number in range(5)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A spec and rows."""
    spec, rows = tmp_path / "compared.yaml", tmp_path / "rows.jsonl"
    spec.write_text(SPEC, encoding="utf-8")
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(spec), str(rows)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_score(files: tuple[str, str], tmp_path: Path) -> None:
    """A prompt's completions stay together, whatever the batch size is."""
    outputs = []
    for size in ("3", "64"):
        run("score", *files, "-o", str(tmp_path / f"{size}.jsonl"), "--batch-size", size)
        outputs.append(written(tmp_path / f"{size}.jsonl"))
    assert outputs[0] == outputs[1]
    for row in outputs[0]:
        scores = row["score"] if "score" in row else row["scores"]
        assert sorted(range(4), key=lambda place: scores[place]) == [0, 2, 1, 3]


def test_rank(files: tuple[str, str], tmp_path: Path) -> None:
    run("rank", *files, "-o", str(tmp_path / "ranked.jsonl"))
    for row in written(tmp_path / "ranked.jsonl"):
        assert row["completions"] == ["aaaa", "aaa", "aa", "a"]


def test_evaluate_judges_pairs_by_comparison(files: tuple[str, str], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{number}", "chosen": "aaa", "rejected": "b" * (1 + 4 * (number % 4 == 0))} for number in range(40)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run("evaluate", files[0], str(pairs), "-o", str(tmp_path / "result.json"))
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert "0.75" in json.dumps(result)


def test_list_and_show(files: tuple[str, str]) -> None:
    assert "text-pair" in run("list", "comparers")
    assert "comparison" in run("show", files[0])
