"""The program as its users meet it: files in, files out, and what it says when something is wrong."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner, Result
from datasets import Dataset, DatasetDict

from rm_plugins.cli import main
from tests.fake_servers.chat import chat
from tests.fake_servers.judge import choice
from tests.servers import serving

RULES = '''
import os

calls = []


def length(samples):
    """The completion's length."""
    calls.append(len(samples))
    return [None if "abstain" in str(s.completion) else float(len(str(s.completion))) for s in samples]


def dies_late(samples):
    if any("poison" in str(s.completion) for s in samples) and "RULES_HEALED" not in os.environ:
        raise RuntimeError("out of memory")
    return length(samples)
'''


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs the program in a directory that holds ``rules.py``."""
    import sys

    sys.modules.pop("rules", None)
    (tmp_path / "rules.py").write_text(RULES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda *arguments, **settings: CliRunner().invoke(main, [str(found) for found in arguments], **settings)
    sys.modules.pop("rules", None)


def write(path: str, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.endswith(".gz"):
        Path(path).write_bytes(gzip.compress(text.encode()))
    else:
        Path(path).write_text(text, encoding="utf-8")
    return path


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def completions(*texts: str) -> list[dict[str, Any]]:
    return [{"prompt": "Q", "completion": text} for text in texts]


class TestScore:
    def test_every_form_of_row(self, run: Any) -> None:
        user = {"role": "user", "content": "Q"}
        rows: list[dict[str, Any]] = [
            {"id": 7, "prompt": "Q", "completion": "four"},
            {"prompt": "Q", "completions": ["a", "bb", "abstain"]},
            {"prompt": "Q", "chosen": "ccc", "rejected": "d"},
            {"messages": [user, {"role": "assistant", "content": "x"}]},
        ]
        assert run("score", "rules:length", write("in.jsonl", rows)).exit_code == 0
        first, listed, pair, conversation = read("in.scored.jsonl")
        assert first == {"id": 7, "prompt": "Q", "completion": "four", "score": 4.0}
        assert listed["scores"] == [1.0, 2.0, None]
        assert (pair["chosen_score"], pair["rejected_score"]) == (3.0, 1.0)
        assert conversation["score"] > 0
        assert list(Path().glob("*.part*")) == []

    @pytest.mark.parametrize("source", ["in.jsonl", "in.jsonl.gz", "in.parquet", "saved", "-"])
    def test_every_source(self, source: str, run: Any) -> None:
        rows = completions("a", "bb")
        given = None
        if source == "in.parquet":
            parquet.write_table(arrow.Table.from_pylist(rows), source)
        elif source == "saved":
            DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(source)
        elif source == "-":
            given = "".join(json.dumps(row) + "\n" for row in rows)
        else:
            write(source, rows)
        assert run("score", "rules:length", source, "-o", "out.jsonl", input=given).exit_code == 0
        assert [row["score"] for row in read("out.jsonl")] == [1.0, 2.0]

    def test_parquet_out(self, run: Any) -> None:
        run("score", "rules:length", write("in.jsonl", completions("a", "abstain")), "-o", "out.parquet")
        assert parquet.read_table("out.parquet").column("score").to_pylist() == [1.0, None]

    def test_says_how_fast_a_model_scored(self, run: Any, tiny_decoder: Any) -> None:
        rows = [{"prompt": "Q", "completions": ["a", "b", "a", "a"]}]
        result = run("score", tiny_decoder(), write("in.jsonl", rows), "-o", "out.jsonl")
        assert re.search(
            r"Wrote 1 row to out.jsonl: 4 samples scored now \([\d,]+ tokens/s, 50% duplicates\), 0 abstained", result.stderr
        )

    def test_says_how_fast_a_judge_answered(self, run: Any) -> None:
        """Equal questions are asked once, and no row was counted."""
        with serving(chat(lambda question: choice("Yes")), lifespan="off") as url:
            Path("judge.json").write_text(json.dumps({"provider": "judge", "judge": {"name": "openai", "url": url}}))
            rows = [{"prompt": "Q", "completions": ["a", "b", "a", "a"]}]
            result = run("score", "judge.json", write("in.jsonl", rows), "-o", "out.jsonl")
        assert re.search(r"4 samples scored now \([\d,.]+ questions/s\), 0 abstained", result.stderr), result.output

    def test_details_are_columns(self, run: Any, tiny_decoder: Any) -> None:
        folder = tiny_decoder(num_labels=2, config={"id2label": {0: "helpful", 1: "verbose"}})
        Path("two.yaml").write_text(f"provider: sequence-classifier\nmodel: {folder}\nhead: helpful\n", encoding="utf-8")
        run("score", "two.yaml", write("in.jsonl", [{"prompt": "Q", "completions": ["a", "b"]}]))
        (row,) = read("in.scored.jsonl")
        assert row["scores/head/helpful"] == row["scores"]
        assert len(row["scores/head/verbose"]) == 2

    def test_goes_on_after_an_interruption_without_rescoring(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = completions("a", "bb", "ccc", "poison")
        write("in.jsonl", rows)
        failed = run("score", "rules:dies_late", "in.jsonl", "--batch-size", "1")
        assert failed.exit_code == 1
        assert "out of memory" in failed.output
        assert not Path("in.scored.jsonl").exists()
        # As if the machine had died within a line.
        with Path("in.scored.jsonl.part").open("a", encoding="utf-8") as file:
            file.write('{"row": {"prompt"')
        import rules  # type: ignore[import-not-found]  # written by the fixture

        rules.calls.clear()
        monkeypatch.setenv("RULES_HEALED", "1")
        found = run("score", "rules:dies_late", "in.jsonl", "--batch-size", "1")
        assert found.exit_code == 0
        assert "Resuming after 3 rows" in found.output
        assert sum(rules.calls) == 1
        assert [row["score"] for row in read("in.scored.jsonl")] == [1.0, 2.0, 3.0, 6.0]

    def test_an_interruption_is_not_gone_on_with_by_another_reward_or_on_other_rows(self, run: Any) -> None:
        write("in.jsonl", completions("a", "poison"))
        run("score", "rules:dies_late", "in.jsonl", "--batch-size", "1")
        other = run("score", "rules:length", "in.jsonl")
        assert "cannot be resumed: the spec was" in other.output
        write("in.jsonl", completions("z", "b"))
        changed = run("score", "rules:dies_late", "in.jsonl")
        assert "cannot be resumed: row 1 of" in changed.output
        assert run("score", "rules:dies_late", "in.jsonl", "--overwrite").exit_code == 0
        assert [row["completion"] for row in read("in.scored.jsonl")] == ["z", "b"]

    def test_an_output_is_not_overwritten_unless_told(self, run: Any) -> None:
        write("in.jsonl", completions("a"))
        Path("in.scored.jsonl").write_text("precious", encoding="utf-8")
        found = run("score", "rules:length", "in.jsonl")
        assert (found.exit_code, "exists already" in found.output) == (1, True)
        assert Path("in.scored.jsonl").read_text(encoding="utf-8") == "precious"
        assert run("score", "rules:length", "in.jsonl", "--overwrite").exit_code == 0

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"prompt": "Q"}], "row 1: there is no 'completion' or 'completions'"),
            ([{"prompt": "Q", "completion": 3}], "row 1: A sample's completion must be text"),
            ([{"prompt": "Q", "completions": "a"}], "row 1: 'completions' must be a list"),
            ([{"messages": [{"role": "user", "content": "Q"}]}], "row 1: 'messages' must end with a turn of the assistant"),
            ([{"prompt": [{"role": "wizard", "content": "Q"}], "completion": "a"}], "unknown role 'wizard'"),
        ],
    )
    def test_bad_rows(self, rows: list[dict[str, Any]], message: str, run: Any) -> None:
        found = run("score", "rules:length", write("in.jsonl", rows))
        assert found.exit_code == 1
        assert message in found.output
        assert not Path("in.scored.jsonl").exists()

    def test_bad_files(self, run: Any) -> None:
        Path("bad.jsonl").write_text('{"prompt": "Q", "completion": "a"}\n{oops\n', encoding="utf-8")
        assert "bad.jsonl, line 2 is not valid JSON" in run("score", "rules:length", "bad.jsonl").output
        Path("list.jsonl").write_text("[1]\n", encoding="utf-8")
        assert "list.jsonl, item 1 is int" in run("score", "rules:length", "list.jsonl").output
        assert "There is no file 'none.jsonl'" in run("score", "rules:length", "none.jsonl").output
        assert "Where should the output go?" in run("score", "rules:length", "-", input="").output

    def test_an_empty_file(self, run: Any) -> None:
        assert run("score", "rules:length", write("in.jsonl", [])).exit_code == 0
        assert read("in.scored.jsonl") == []

    def test_a_spec_that_is_wrong(self, run: Any) -> None:
        found = run("score", "sequence-clasifier", write("in.jsonl", completions("a")))
        assert found.exit_code == 1
        assert "Did you mean 'sequence-classifier'?" in found.output
        assert list(Path().glob("in.scored*")) == []


def test_columns_that_only_later_rows_have_reach_parquet(run: Any) -> None:
    rows = [{"prompt": "Q", "completion": "a"}, {"prompt": "Q", "completion": "bb", "note": "later"}]
    run("score", "rules:length", write("in.jsonl", rows), "-o", "out.parquet")
    assert parquet.read_table("out.parquet").column("note").to_pylist() == [None, "later"]
    assert "-o writes .jsonl, .json, .ndjson, .parquet" in run("score", "rules:length", "in.jsonl", "-o", "out.csv").output


def test_an_interrupted_replacement_is_gone_on_with(run: Any) -> None:
    write("in.jsonl", completions("a", "bb", "poison"))
    run("score", "rules:length", "in.jsonl", "-o", "out.jsonl")
    told = run("score", "rules:dies_late", "in.jsonl", "-o", "out.jsonl", "--overwrite", "--batch-size", "2")
    assert "out of memory" in told.output
    assert [row["score"] for row in read("out.jsonl")] == [1.0, 2.0, 6.0]  # nothing is lost before there is better
    again = run("score", "rules:dies_late", "in.jsonl", "-o", "out.jsonl", "--batch-size", "2")
    assert "Resuming after 2 rows" in again.output


class TestRank:
    def test_orders_completions(self, run: Any) -> None:
        rows = [{"prompt": "Q", "completions": ["bb", "abstain", "a", "ccc"], "is_correct": [0, 0, 0, 1]}]
        assert run("rank", "rules:length", write("in.jsonl", rows)).exit_code == 0
        assert read("in.ranked.jsonl") == [
            {
                "prompt": "Q",
                "completions": ["ccc", "bb", "a", "abstain"],
                "scores": [3.0, 2.0, 1.0, None],
                "order": [3, 0, 2, 1],
            }
        ]

    def test_best_of_n_over_rows_of_one_prompt(self, run: Any) -> None:
        rows = [*completions("a", "ccc"), {"prompt": "R", "completion": "z"}, *completions("bb")]
        run("rank", "rules:length", write("in.jsonl", rows), "--best", "1")
        assert read("in.ranked.jsonl") == [
            {"prompt": "Q", "completion": "ccc", "score": 3.0, "order": [1]},
            {"prompt": "R", "completion": "z", "score": 1.0, "order": [0]},
        ]

    def test_texts_under_a_conversation_stay_texts(self, run: Any) -> None:
        prompt = [{"role": "user", "content": "Q"}]
        run("rank", "rules:length", write("in.jsonl", [{"prompt": prompt, "completions": ["a", "bb"]}]), "--best", "1")
        (row,) = read("in.ranked.jsonl")
        assert (row["prompt"], row["completion"]) == (prompt, "bb")


class TestList:
    def test_table_and_json(self, run: Any) -> None:
        table = run("list").output
        assert "sequence-classifier" in table
        found = json.loads(run("list", "losses", "--json").output)
        losses = {row["name"]: row for row in found["registered"]}
        assert {row["kind"] for row in found["registered"]} == {"loss"}
        assert losses["bradley-terry"]["doc"].startswith("Bradley-Terry")
        assert all(row["formula"] for row in losses.values())
        assert losses["hinge"]["formula"] in run("list", "hinge").output
        assert found["broken"] == []

    def test_a_formula_is_printed_once(self, run: Any) -> None:
        for loss in json.loads(run("list", "losses", "--json").output)["registered"]:
            assert run("list", loss["name"]).output.count(loss["formula"]) == 1

    def test_an_unknown_kind(self, run: Any) -> None:
        assert "Did you mean 'losses'?" in run("list", "loses").output


class TestVerify:
    def test_a_model_without_manifest(self, run: Any, tiny_decoder: Any) -> None:
        found = run("verify", tiny_decoder())
        assert (found.exit_code, "has no reward_manifest.json to verify" in found.output) == (1, True)

    def test_a_folder_that_is_no_model(self, run: Any) -> None:
        Path("empty").mkdir()
        assert "is not a model folder" in run("verify", "empty").output


def test_help_lists_every_command(run: Any) -> None:
    output = run("--help").output
    built_in = (
        "calibrate",
        "data",
        "diff",
        "evaluate",
        "judge-data",
        "list",
        "merge",
        "rank",
        "report",
        "score",
        "serve",
        "show",
    )
    for command in (*built_in, "verify", "adapter", "demo", "ppo", "train"):
        assert f"\n  {command} " in output
    assert "No such command 'scores'" in run("scores").output
