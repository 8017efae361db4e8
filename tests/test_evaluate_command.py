"""``rm-plugins evaluate`` and ``rm-plugins diff``: what they print and write, what stops CI, and going on after an interruption."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner, Result
from filelock import FileLock

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.evaluation import evaluate
from tests.conftest import MakeFolder

RULES = '''
import pathlib

calls = []


def length(samples):
    """The completion's length."""
    calls.append(len(samples))
    return [None if "abstain" in str(s.completion) else float(len(str(s.completion))) for s in samples]


def digit(samples):
    """The digit that the completion begins with."""
    calls.append(len(samples))
    if pathlib.Path("broken").exists() and len(calls) > 2:
        raise RuntimeError("out of memory")
    texts = [s.completion if isinstance(s.completion, str) else s.completion[0]["content"] for s in samples]
    return [float(text[0]) for text in texts]
'''


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs the program in a directory that holds ``rules.py``, with a cache of its own."""
    sys.modules.pop("rules", None)
    (tmp_path / "rules.py").write_text(RULES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda *arguments, **settings: CliRunner().invoke(main, [str(found) for found in arguments], **settings)
    sys.modules.pop("rules", None)


def write(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int = 40) -> list[dict[str, Any]]:
    """Pairs whose chosen answer begins with the larger digit; it is the longer one in three of four."""
    sides = [("9" + "x" * 9, "1") if number % 4 else ("9", "1" + "x" * 9) for number in range(count)]
    return [
        {"prompt": f"Q{number}", "chosen": chosen, "rejected": rejected, "subset": "ab"[number % 2]}
        for number, (chosen, rejected) in enumerate(sides)
    ]


def calls() -> list[int]:
    """How many samples each call of a reward scored."""
    found: list[int] = sys.modules["rules"].calls
    return found


def kept() -> list[str]:
    return sorted(path.name for path in Path("cache").rglob("*") if path.is_file())


class TestEvaluate:
    def test_rewards_stand_side_by_side(self, run: Any) -> None:
        found = run("evaluate", "rules:length", "rules:digit", write("in.jsonl", pairs()))
        assert found.exit_code == 0, found.output
        lines = found.stdout.splitlines()
        assert lines[0] == "in.jsonl: 40 rows, 40 pairs, 40 prompts; the longer answer is the better in 75.0% of pairs."
        assert lines[1].split() == ["length", "digit"]
        (accuracy,) = [line for line in lines if line.startswith("Accuracy  ")]
        assert accuracy.split()[1::3] == ["75.0%", "100.0%"]
        (section,) = [line for line in lines if line.startswith("b ")]
        assert section.split()[1:4] == ["20", "0.0%", "100.0%"]
        assert "digit is better than length (+25.0%" in found.stdout
        assert "alarm, length: Length decides: it prefers the longer answer in 100.0%" in found.stdout

    def test_one_prompt_is_told_in_the_singular_in_the_table_the_json_and_the_page(self, run: Any) -> None:
        rows = [{**row, "prompt": "Q"} for row in pairs()]
        told = run("evaluate", "rules:length", write("in.jsonl", rows), "-o", "out.json", "--report", "out.html")
        assert told.exit_code == 0, told.output
        assert told.stdout.startswith("in.jsonl: 40 rows, 40 pairs, 1 prompt;")
        lead = "All 40 rows share one prompt"
        assert f"note, length: {lead}: the intervals take the rows as independent" in told.stdout
        page = Path("out.html").read_text(encoding="utf-8")
        assert lead in page and "1 prompt<" in page
        findings = json.loads(Path("out.json").read_text(encoding="utf-8"))["rewards"][0]["findings"]
        assert any(one["kind"] == "few_prompts" and one["message"].startswith(lead) for one in findings)

    @pytest.mark.parametrize("command", [("evaluate", "rules:length"), ("diff", "rules:length", "rules:digit")])
    def test_rows_without_a_judgement_are_told_of_score_and_rank(self, run: Any, command: tuple[str, ...]) -> None:
        told = run(*command, write("in.jsonl", [{"prompt": "Q", "completion": "a"}]))
        assert told.exit_code == 1
        assert "A row to train on or to evaluate has one of these" in told.output
        assert "`rm-plugins score`" in told.output and "--map" not in told.output

    def test_the_json_is_that_of_the_function(self, run: Any) -> None:
        told = run("evaluate", "rules:length", write("in.jsonl", pairs()), "--json", "-o", "out.json", "--resamples", "50")
        printed = json.loads(told.stdout)
        assert printed == json.loads(Path("out.json").read_text(encoding="utf-8"))
        expected = evaluate(rm.load("rules:length"), pairs(), resamples=50, source="in.jsonl").as_json()
        for part in ("data", "settings", "versions"):
            assert printed[part] == expected[part]
        (found,), (wanted,) = printed["rewards"], expected["rewards"]
        assert (found.pop("source"), wanted.pop("source")) == ("rules:length", "")
        assert found == wanted

    def test_columns_can_be_renamed_and_rows_limited(self, run: Any) -> None:
        write("in.jsonl", [{"question": "Q", "completions": ["a", "bb"], "is_correct": [False, True], "labels": "x"}] * 3)
        renamed = ("--rename", "is_correct=labels", "--rename", "question=prompt")
        found = json.loads(run("evaluate", "rules:length", "in.jsonl", *renamed, "--limit", "2", "--json").stdout)
        assert (found["data"]["rows"], found["rewards"][0]["figures"]["auc/label"]["value"]) == (2, 1.0)
        told = run("evaluate", "rules:length", "in.jsonl", "--rename", "correct=labels")
        assert "in.jsonl, row 1: there is no column 'correct'; the row has 'question'" in told.output
        assert "--map 'correct' is neither OLD=NEW" in run("evaluate", "rules:length", "in.jsonl", "--rename", "correct").output

    def test_standard_input_serves_several_rewards(self, run: Any) -> None:
        rows = "".join(json.dumps(row) + "\n" for row in pairs())
        found = json.loads(run("evaluate", "rules:length", "rules:digit", "-", "--json", input=rows).stdout)
        assert [one["figures"]["accuracy"]["value"] for one in found["rewards"]] == [0.75, 1.0]
        assert found["data"]["source"] == "-"

    def test_rewards_of_one_name_are_told_apart(self, run: Any) -> None:
        found = json.loads(run("evaluate", "rules:length", "rules:length", write("in.jsonl", pairs()), "--json").stdout)
        assert [one["name"] for one in found["rewards"]] == ["length", "length (2)"]

    def test_model_folders_of_one_name_are_told_apart_by_those_before(self, run: Any, tiny_decoder: MakeFolder) -> None:
        folders = [Path(run_name) / "checkpoint-500" for run_name in ("one", "two")]
        for folder in folders:
            shutil.copytree(tiny_decoder(), folder)
        found = json.loads(run("evaluate", *map(str, folders), write("in.jsonl", pairs()), "--json").stdout)
        assert [one["name"] for one in found["rewards"]] == ["one/checkpoint-500", "two/checkpoint-500"]

    def test_a_benchmark_is_scored_by_its_own_rule(self, run: Any) -> None:
        sides = ("9" + "x" * 9, "1"), ("9", "1" + "x" * 9)
        rows = [
            {"pair_id": str(n), "source": "livebench-math", "question": "Q", "response_A": a, "response_B": b, "label": "A>B"}
            for n, (a, b) in enumerate(sides)
        ]
        found = json.loads(run("evaluate", "rules:digit", write("in.jsonl", rows), "--suite", "judge-bench", "--json").stdout)
        (suite,) = [one["suite"] for one in found["rewards"]]
        assert suite["name"] == "judge-bench"
        assert {section["name"]: section["score"] for section in suite["sections"] if section["items"]} == {"Math": 1.0}
        assert "hub" in run("evaluate", "rules:digit", "hub").output
        assert (
            "There is no suite called 'judge-bunch'"
            in run("evaluate", "rules:digit", "in.jsonl", "--suite", "judge-bunch").output
        )

    def test_the_verdicts_of_a_judge_in_both_orders(self, run: Any) -> None:
        common = {"source": "livecodebench", "question": "Q", "response_A": "x", "response_B": "y", "label": "B>A"}
        orders = (("B>A", "A>B"), ("B>A", None), ("B>A", "B>A"), ("A=B", "A=B"), (None, None))
        rows = [
            {**common, "pair_id": str(n), "judgments": [decision and {"decision": decision} for decision in decisions]}
            for n, decisions in enumerate(orders)
        ]
        told = run("evaluate", "column:judgments", write("in.jsonl", rows), "--suite", "judge-bench", "--json")
        (suite,) = [one["suite"] for one in json.loads(told.stdout)["rewards"]]
        assert {section["name"]: section["score"] for section in suite["sections"] if section["items"]} == {"Coding": 0.4}
        assert suite["abstained"] == 1
        assert run("evaluate", "rules:length", "in.jsonl", "--suite", "judge-bench").exit_code == 0

    def test_a_report_is_written(self, run: Any) -> None:
        pytest.importorskip("matplotlib", reason="matplotlib, which draws the page, is not installed")
        told = run("evaluate", "rules:length", write("in.jsonl", pairs()), "--report", "out.html")
        assert told.exit_code == 0, told.output
        assert Path("out.html").read_text(encoding="utf-8").startswith("<!doctype html>")

    def test_what_it_cannot_do_is_said(self, run: Any) -> None:
        write("in.jsonl", [{"prompt": "Q", "completion": "a"}])
        assert "row 1: there is nothing judged" in run("evaluate", "rules:length", "in.jsonl").output
        assert "There are no rows to evaluate in none.jsonl" in run("evaluate", "rules:length", write("none.jsonl", [])).output
        assert "Give a SPEC and DATA" in run("evaluate", "rules:length").output
        assert (
            "--card writes into a model folder, and 'rules:length' is not one"
            in run("evaluate", "rules:length", "in.jsonl", "--card").output
        )


class TestGates:
    @pytest.mark.parametrize(
        "gate",
        ["accuracy=0.75", "accuracy.high=0.8", "section/b=1", "length_preference=1", "ties=0"],
    )
    def test_a_limit_that_is_kept(self, run: Any, gate: str) -> None:
        assert run("evaluate", "rules:length", write("in.jsonl", pairs()), "--fail-under", gate).exit_code == 0

    def test_limits_that_are_not_kept(self, run: Any) -> None:
        limits = ("--fail-under", "accuracy=0.76", "--fail-under", "accuracy.low=0.7", "--fail-over", "brier=0.2")
        found = run("evaluate", "rules:digit", "rules:length", write("in.jsonl", pairs()), *limits)
        assert found.exit_code == 1
        failed = [line for line in found.stderr.splitlines() if line.startswith("failed:")]
        assert failed[0] == "failed: accuracy of length is 0.75, under 0.76, the least that was asked for."
        assert [line.split()[1] for line in failed] == ["accuracy", "accuracy.low", "brier"]

    def test_a_limit_on_nothing_does_not_pass(self, run: Any) -> None:
        found = run("evaluate", "rules:length", write("in.jsonl", pairs()), "--fail-under", "acuracy=0.5")
        assert (found.exit_code, "has no figure 'acuracy' on this data. Did you mean 'accuracy'?" in found.output) == (1, True)
        found = run("evaluate", "rules:length", "in.jsonl", "--fail-under", "accuracy")
        assert (found.exit_code, "'accuracy' is not FIGURE=NUMBER" in found.output) == (2, True)


class TestGoingOn:
    def test_nothing_is_scored_twice_after_an_interruption(self, run: Any) -> None:
        write("in.jsonl", pairs())
        Path("broken").touch()
        told = run("evaluate", "rules:length", "rules:digit", "in.jsonl", "--batch-size", "50")
        assert "out of memory" in told.output
        assert calls() == [50, 30, 50]
        Path("broken").unlink()
        calls().clear()
        found = run("evaluate", "rules:length", "rules:digit", "in.jsonl", "--batch-size", "50", "--json")
        assert found.exit_code == 0, found.output
        assert "Resuming after 40 rows scored." in found.stderr
        assert calls() == [50, 30]
        assert [one["figures"]["accuracy"]["value"] for one in json.loads(found.stdout)["rewards"]] == [0.75, 1.0]
        assert kept() == []

    def test_kept_scores_are_used_again(self, run: Any) -> None:
        write("in.jsonl", pairs())
        run("evaluate", "rules:length", "in.jsonl", "--scores", "scores")
        assert sum(calls()) == 80
        first = run("diff", "rules:length", "rules:digit", "in.jsonl", "--scores", "scores", "--json")
        assert sum(calls()) == 160
        again = run("diff", "rules:length", "rules:digit", "in.jsonl", "--scores", "scores", "--json")
        assert sum(calls()) == 160
        assert json.loads(first.stdout)["differences"] == json.loads(again.stdout)["differences"]
        run("evaluate", "rules:length", "in.jsonl", "--scores", "scores", "--overwrite")
        assert sum(calls()) == 240

    def test_other_data_is_not_gone_on_with(self, run: Any) -> None:
        run("evaluate", "rules:length", write("in.jsonl", pairs()), "--scores", "scores")
        found = run("evaluate", "rules:length", write("in.jsonl", pairs()[::-1]), "--scores", "scores")
        assert "cannot be resumed: row 1 of" in " ".join(found.output.split())

    def test_two_runs_do_not_share_a_file(self, run: Any) -> None:
        write("in.jsonl", pairs())
        run("evaluate", "rules:length", "in.jsonl", "--scores", "scores")
        (kept_file,) = Path("scores").glob("*.jsonl")
        with FileLock(kept_file.with_name(f".{kept_file.name}.lock"), is_singleton=False):
            for more in ((), ("--overwrite",)):
                found = run("evaluate", "rules:length", "in.jsonl", "--scores", "scores", *more)
                assert "is being written by another run of the same command" in found.output
        assert run("evaluate", "rules:length", "in.jsonl", "--scores", "scores").exit_code == 0
        assert sum(calls()) == 80

    def test_scores_stay_until_all_is_written(self, run: Any) -> None:
        write("in.jsonl", pairs())
        Path("folder").mkdir()
        assert (
            "folder is a folder; name the file to write" in run("evaluate", "rules:length", "in.jsonl", "-o", "folder").output
        )
        assert "rules" not in sys.modules
        assert run("evaluate", "rules:length", "in.jsonl", "--fail-under", "acuracy=1").exit_code == 1
        assert sum(calls()) == 80
        assert run("evaluate", "rules:length", "in.jsonl", "--fail-under", "accuracy = 0.5").exit_code == 0
        assert (sum(calls()), kept()) == (80, [])

    def test_rows_keep_what_json_has_no_name_for(self, run: Any) -> None:
        odd = [{"prompt": "Q", "completions": ["1 \ud800", "22 \ud800"], "scores": [1, 2]}]
        assert run("evaluate", "rules:length", write("in.jsonl", odd), "-o", "out.json").exit_code == 0
        assert json.loads(Path("out.json").read_text(encoding="utf-8"))["data"]["rows"] == 1
        ratings = [[Decimal("1.5"), Decimal("0.5")]]
        table = arrow.table({"prompt": ["Q"], "completions": [["1", "22"]], "scores": ratings})
        parquet.write_table(table, "in.parquet")
        found = json.loads(run("evaluate", "rules:length", "in.parquet", "--json").stdout)
        assert found["rewards"][0]["figures"]["accuracy"]["value"] == 0.0


class TestDiff:
    def test_it_says_which_is_better_and_shows_the_flips(self, run: Any) -> None:
        found = run("diff", "rules:length", "rules:digit", write("in.jsonl", pairs()), "--show", "1")
        assert found.exit_code == 0, found.output
        assert found.stdout.startswith("digit is better than length (+25.0% [+")
        assert "10 pairs that length has wrong are right with digit, and 0 the other way round" in found.stdout
        assert "Right with digit only" in found.stdout
        assert "Right with length only" not in found.stdout
        assert "(chosen 1 -> 9, rejected 10 -> 1)" in found.stdout

    def test_as_many_flips_are_shown_as_were_asked_for(self, run: Any) -> None:
        found = run("diff", "rules:length", "rules:digit", write("in.jsonl", pairs(120)), "--show", "25")
        assert found.stdout.count("\nrow ") == 25

    @pytest.mark.parametrize(
        ("a", "b", "gate", "code"),
        [
            ("length", "digit", "worse", 0),
            ("length", "digit", "not-better", 0),
            ("digit", "length", "worse", 1),
            ("digit", "length", "not-better", 1),
            ("digit", "digit", "worse", 0),
            ("digit", "digit", "not-better", 1),
        ],
    )
    def test_it_stops_what_is_worse(self, run: Any, a: str, b: str, gate: str, code: int) -> None:
        found = run("diff", f"rules:{a}", f"rules:{b}", write("in.jsonl", pairs()), "--fail-if", gate)
        assert found.exit_code == code, found.output

    def test_what_cannot_be_compared(self, run: Any) -> None:
        rows = [{"prompt": "Q", "chosen": "abstain", "rejected": "1"}]
        assert (
            "Nothing can be compared: in.jsonl has no pair whose two answers were scored by both rewards"
            in run("diff", "rules:length", "rules:digit", write("in.jsonl", [{**rows[0], "chosen": "1 abstain"}])).output
        )
