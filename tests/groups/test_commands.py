"""Commands with rewards that compare: groups are whole whatever the batches are, or the command says why not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rm_plugins.cli import main

RULES = '''
def length(samples):
    """The completion's length."""
    return [float(len(sample.completion_text)) for sample in samples]
'''
BY_PROMPT = "{provider: function, function: 'rules:length', transform: rank-in-group}"
BY_ID = "{provider: function, function: 'rules:length', transform: {name: zscore-in-group, group: id}}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs the program in a folder with rules and rewards."""
    sys.modules.pop("rules", None)
    for name, text in {"rules.py": RULES, "prompt.yaml": BY_PROMPT, "id.yaml": BY_ID}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])
    sys.modules.pop("rules", None)


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def rows_of(*groups: str) -> list[dict[str, Any]]:
    """Rows whose completions grow, each of the group named by a letter."""
    return [{"prompt": name, "id": f"of {name}", "completion": "x" * place} for place, name in enumerate(groups, start=1)]


class TestScore:
    """``rm-plugins score``."""

    @pytest.mark.parametrize(
        ("spec", "scores"), [("prompt.yaml", [0, 0.5, 1, 0, 1, 0.5]), ("id.yaml", [-(1.5**0.5), 0, 1.5**0.5, -1, 1, 0])]
    )
    @pytest.mark.parametrize("size", [1, 2, 4, 100])
    def test_scores_do_not_depend_on_the_batch(self, run: Any, spec: str, scores: list[float], size: int) -> None:
        source = write("in.jsonl", rows_of(*"aaabbc"))
        told = run("score", spec, source, "-o", "out.jsonl", "--batch-size", size)
        assert told.exit_code == 0, told.output
        assert [row["score"] for row in read("out.jsonl")] == pytest.approx(scores)

    def test_a_group_that_is_torn_apart(self, run: Any) -> None:
        source = write("in.jsonl", rows_of(*"aabbab"))
        told = run("score", "prompt.yaml", source, "-o", "out.jsonl", "--batch-size", 2)
        assert told.exit_code == 1
        assert "row 5 has the same prompt as row 2, but other rows are between them" in told.output
        assert "put the completions of a prompt into one row" in told.output
        again = run("score", "prompt.yaml", source, "-o", "out.jsonl", "--batch-size", 2)  # from what is kept
        assert "row 5 has the same prompt as row 2" in again.output
        told = run("score", "id.yaml", source, "-o", "other.jsonl", "--batch-size", 2)
        assert "row 5 has the same 'id' as row 2" in told.output

    def test_a_row_without_the_column(self, run: Any) -> None:
        source = write("in.jsonl", [{"prompt": "a", "completion": "x"}])
        told = run("score", "id.yaml", source, "-o", "out.jsonl")
        assert told.exit_code == 1
        assert "grouped by the column 'id', but 1 of 1 samples lack it" in told.output


class TestRank:
    """``rm-plugins rank``."""

    def test_lists_and_rows_of_a_prompt_are_one_group(self, run: Any) -> None:
        rows: list[dict[str, Any]] = [{"prompt": "a", "completions": ["xxx", "x"]}, {"prompt": "a", "completion": "xx"}]
        told = run("rank", "prompt.yaml", write("in.jsonl", rows), "-o", "out.jsonl", "--batch-size", 1)
        assert told.exit_code == 0, told.output
        assert read("out.jsonl")[0]["scores"] == [1.0, 0.5, 0.0]

    def test_a_group_that_is_torn_apart(self, run: Any) -> None:
        source = write("in.jsonl", rows_of(*"aabba"))
        told = run("rank", "prompt.yaml", source, "-o", "out.jsonl", "--batch-size", 2)
        assert "row 5 has the same prompt as row 2" in told.output


class TestEvaluate:
    """``rm-plugins evaluate`` and ``diff``."""

    PAIRS: tuple[dict[str, Any], ...] = (
        {"prompt": "a", "chosen": "xxxxx", "rejected": "xxxx"},
        {"prompt": "a", "chosen": "xx", "rejected": "x"},
        {"prompt": "b", "chosen": "x", "rejected": "xx"},
        {"prompt": "a", "chosen": "xxx", "rejected": "x"},
        {"chosen": "xxx", "rejected": "x"},
    )

    @pytest.mark.parametrize("size", [1, 4, 100])
    def test_a_pair_is_a_group(self, run: Any, size: int) -> None:
        source = write("in.jsonl", list(self.PAIRS))
        told = run("evaluate", "prompt.yaml", "id.yaml", source, "--batch-size", size, "--resamples", 5, "-o", "out.json")
        assert told.exit_code == 0, told.output
        rewards = json.loads(Path("out.json").read_text(encoding="utf-8"))["rewards"]
        assert [reward["figures"]["accuracy"]["value"] for reward in rewards] == [0.8, 0.8]
        # Each answer has the rank 0 or 1, and is 1 or -1 when standardized, whichever rows share a prompt.
        assert [reward["figures"]["margin"]["value"] for reward in rewards] == pytest.approx([0.6, 1.2])

    def test_single_answers_are_groups_by_prompt(self, run: Any) -> None:
        rows = [{**row, "label": row["completion"] == "xxx"} for row in rows_of(*"aaa")]
        told = run("evaluate", "prompt.yaml", write("in.jsonl", rows), "--batch-size", 1, "--json")
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)["rewards"][0]["figures"]["auc/label"]["value"] == 1.0

    def test_diff(self, run: Any) -> None:
        told = run("diff", "rules:length", "prompt.yaml", write("in.jsonl", list(self.PAIRS)), "--json")
        assert told.exit_code == 0, told.output
        assert [reward["figures"]["accuracy"]["value"] for reward in json.loads(told.stdout)["rewards"]] == [0.8, 0.8]
