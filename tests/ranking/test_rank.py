"""``rm-plugins rank``: rows for trainers, completions by a policy, and the curve of the best of n."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rm_plugins.cli import rank_options
from rm_plugins.data.row_files import read_rows
from rm_plugins.jobs import generation as generation_job
from rm_plugins.reports.best_of_n_page import BestOfNCurve
from tests.ranking.conftest import ASKED, left_behind, listed, read, write


class TestBest:
    def test_a_row_a_prompt_with_its_best(self, rank: Any) -> None:
        told = rank("rules:length", write(listed("Q", "a", "ccc", "abstain"), listed("R", "abstain")), "--format", "best")
        assert read() == [{"prompt": "Q", "completion": "ccc", "score": 3.0}]
        assert (
            "Wrote 1 completion of 1 prompt to in.ranked.jsonl. 1 prompt is left out: 1 has no completion that" in told.stderr
        )
        assert "The reward abstained on 2 completions, which are not written." in told.stderr

    def test_several_of_a_prompt_but_no_text_twice(self, rank: Any) -> None:
        rank("rules:length", write(listed("Q", "a", "ccc", "ccc", "bb")), "--format", "best", "--best", "2")
        assert [row["completion"] for row in read()] == ["ccc", "bb"]

    def test_texts_under_a_conversation_become_messages(self, rank: Any) -> None:
        rank("rules:length", write(listed(ASKED, "a", "bb")), "--format", "best")
        assert read() == [{"prompt": ASKED, "completion": [{"role": "assistant", "content": "bb"}], "score": 2.0}]

    def test_what_is_not_good_enough(self, rank: Any) -> None:
        source = write(listed("Q", "a", "bbbbb"), listed("R", "cccc", "dddd"), listed("S", "e"))
        rank("rules:length", source, "--format", "best", "--min-score", "4")
        assert [row["prompt"] for row in read()] == ["Q", "R"]
        told = rank("rules:length", source, "--format", "best", "--min-margin", "2", "--overwrite")
        assert [(row["prompt"], row["score"]) for row in read()] == [("Q", 5.0)]
        assert "2 prompts are left out: 2 have no completion that is good enough." in told.stderr

    def test_finished_is_a_list_or_that_of_the_one_completion(self, rank: Any) -> None:
        rows = [{"prompt": "Q", "completion": "aaa", "finished": False}, {"prompt": "Q", "completion": "bb", "finished": True}]
        rank("rules:length", write(*rows, listed("R", "a", finished=[True])), "--format", "best", "--finished-only")
        assert [(row["completion"], row["finished"]) for row in read()] == [("bb", True), ("a", True)]


class TestPairs:
    def test_best_and_worst(self, rank: Any) -> None:
        rank("rules:length", write(listed(ASKED, "bb", "a", "cccc", "abstain")), "--format", "pairs")
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("cccc", "a"))
        scores = {"chosen_score": 4.0, "rejected_score": 1.0, "margin": 3.0}
        assert read() == [{"prompt": ASKED, "chosen": chosen, "rejected": rejected, **scores}]

    def test_all_pairs_within_margins(self, rank: Any) -> None:
        source = write(listed("Q", "a", "bb", "dddd", "cc", "bb"))
        told = rank("rules:length", source, "--pairs", "all", "--min-margin", "1", "--max-margin", "2")
        found = {(row["chosen"], row["rejected"]) for row in read()}
        assert found == {("dddd", "bb"), ("dddd", "cc"), ("bb", "a"), ("cc", "a")}  # bb and cc score the same
        assert "Wrote 4 pairs of 1 prompt" in told.stderr

    def test_the_best_and_a_random_other(self, rank: Any) -> None:
        source = write(*(listed(f"Q{number}", "a", "bb", "ccc", "dddd") for number in range(40)))
        rank("rules:length", source, "--pairs", "best-random", "--min-margin", "2")
        first = read()
        assert {row["chosen"] for row in first} == {"dddd"}
        assert {row["rejected"] for row in first} == {"a", "bb"}  # not ccc, which is too close
        rank("rules:length", source, "--pairs", "best-random", "--min-margin", "2", "--overwrite")
        assert read() == first
        rank("rules:length", source, "--pairs", "best-random", "--min-margin", "2", "--overwrite", "--seed", "1")
        assert read() != first

    def test_what_makes_no_pair_is_counted(self, rank: Any) -> None:
        rows = [
            listed("same", "aa", "aa"),
            listed("tie", "a" * 4, "b" * 4),
            listed("one", "a", "abstain"),
            listed("low", "a", "b" * 3),
        ]
        told = rank("rules:length", write(*rows, listed("good", "a", "b" * 5)), "--pairs", "best-worst", "--min-score", "4")
        assert [row["prompt"] for row in read()] == ["good"]
        assert "4 prompts are left out: 2 have fewer than two different completions that count; 2 have no pair" in told.stderr


class TestPrompts:
    TOOLS = ({"name": "clock"},)
    SETTINGS: ClassVar[dict[str, Any]] = {"enable_thinking": False}

    @pytest.mark.parametrize("form", ["ranked", "best", "pairs"])
    @pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
    def test_what_the_chat_template_takes_goes_with_the_prompt(self, rank: Any, form: str, out: str) -> None:
        plain = listed(ASKED, "a", "bb")
        rows = [plain, {**plain, "tools": self.TOOLS}, {**plain, "tools": self.TOOLS, "chat_template_kwargs": self.SETTINGS}]
        rank("rules:length", write(*rows, plain), "--format", form, "-o", out)
        found = list(read_rows(out))
        assert [row["tools"] for row in found] == [None, list(self.TOOLS), list(self.TOOLS)]  # other tools, another prompt
        nothing = {name: None for name in self.SETTINGS} if out.endswith("parquet") else {}
        assert [row["chat_template_kwargs"] for row in found] == [nothing, nothing, self.SETTINGS]
        rank("rules:length", write(plain), "--format", form, "-o", "plain.jsonl")
        assert not {"tools", "chat_template_kwargs"} & set(read("plain.jsonl")[0])

    def test_rows_without_a_prompt_have_none_in_common(self, rank: Any) -> None:
        rows: list[dict[str, Any]] = [{"chosen": "aaaa", "rejected": "b"}, {"chosen": "c", "rejected": "dd"}]
        source = write(*rows, {"prompt": "", "completion": "e"}, {"prompt": "", "completion": "f"})
        rank("rules:length", source, "--pairs", "all")
        assert [(row["chosen"], row["rejected"]) for row in read()] == [("aaaa", "b"), ("dd", "c")]
        rank("rules:length", source, "--n", "2", "--overwrite")
        assert [row["completions"] for row in read()] == [["aaaa", "b"], ["dd", "c"], ["e"], ["f"]]


class TestFirstN:
    def test_the_first_n_are_scored(self, rank: Any) -> None:
        rows = [listed("Q", "a", "bb", "ccc"), listed("R", "d"), {"prompt": "R", "completion": "ee"}, listed("R", "fff")]
        told = rank("rules:length", write(*rows), "--n", "2")
        assert [row["completions"] for row in read()] == [["bb", "a"], ["ee", "d"]]
        assert "fewer" not in told.stderr
        told = rank("rules:length", "in.jsonl", "--n", "4", "--overwrite")
        assert [len(row["completions"]) for row in read()] == [3, 3]
        assert "2 of 2 prompts have fewer than 4 completions: all of them are used" in told.stderr
        assert left_behind() == []

    def test_half_a_pair_cannot_be_taken(self, rank: Any) -> None:
        told = rank("rules:length", write({"prompt": "Q", "chosen": "a", "rejected": "b"}), "--n", "1", code=1)
        assert "row 1 has 'chosen' and 'rejected', so --n cannot choose its first completions" in told.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "all", "--best", "2"], "--best goes with --format ranked or --format best, not with --format pairs."),
        (["--pairs", "all", "--format", "best"], "--pairs goes with --format pairs, not with --format best."),
        (["--min-score", "1"], "--min-score goes with --format best or --format pairs, not with --format ranked."),
        (["--format", "best", "--max-margin", "1"], "--max-margin goes with --format pairs, not with --format best."),
        (["--pairs", "all", "--min-margin", "2", "--max-margin", "1"], "No margin is at least 2"),
        (["--temperature", "0.5"], "--temperature is about writing completions; it needs --generate MODEL."),
        (["--generate", "m"], "--generate needs the number of completions for each prompt: --n N."),
        (["--generate", "m", "--n", "2", "--temperature", "0"], "0.0 is not in the range"),
        (["--generate", "m", "--n", "2", "--keep-completions", "kept.csv"], "--keep-completions writes .jsonl"),
        (
            ["--generate", "m", "--n", "2", "--keep-completions", "./in.jsonl"],
            "FILE and --keep-completions are the same file, 'in.jsonl'.",
        ),
        (
            ["--generate", "m", "--n", "2", "--keep-completions", "in.ranked.jsonl"],
            "the output and --keep-completions are the same",
        ),
        (["-o", "./in.jsonl", "--overwrite"], "FILE and the output are the same file, 'in.jsonl'. Name different ones."),
        (["-o", "out.json", "--curve", "out.json"], "the output and --curve are the same file"),
        (
            ["--curve", "in.ranked.jsonl.rows.json", "-o", "in.ranked.csv"],
            "-o writes .jsonl, .json, .ndjson, .parquet, or - for standard output; 'in.ranked.csv'",
        ),
        (["--generate", "m", "--n", "2", "--engine-options", "{dtype}"], "--engine-options is not valid JSON"),
        (["--generate", "m", "--n", "2", "--engine-options", "[1]"], "--engine-options must be a JSON mapping"),
        (["--generate", "m", "--n", "2", "--gold", "good"], "--gold good is a column of in.jsonl, which has no values for"),
        (["--curve", "curve.png"], "--curve writes .html, .json, .svg; 'curve.png' has another ending."),
    ],
)
def test_options_that_do_not_go_together(rank: Any, arguments: list[str], message: str) -> None:
    told = rank("rules:length", write(listed("Q", "a", good=[1])), *arguments, code=2)
    assert message in " ".join(told.output.split())
    assert left_behind() == []


def test_finished_only_where_nothing_says_what_is_finished(rank: Any) -> None:
    told = rank("rules:length", write(listed("Q", "a", "bb")), "--format", "best", "--finished-only", code=1)
    assert "--finished-only needs rows with 'finished'" in told.output


def test_a_curve_that_cannot_be_written_is_told_before_scoring(rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(listed("Q", "a", "bb"))
    Path("curve.json").touch()
    assert "curve.json exists already" in rank("rules:fails", source, "--curve", "curve.json", code=1).output
    monkeypatch.setattr(rank_options, "find_spec", lambda name: None)
    assert "pip install 'rm-plugins[report]'" in rank("rules:fails", source, "--curve", "curve.svg", code=1).output


def test_a_file_on_the_way_is_no_source(rank: Any) -> None:
    source = write(listed("Q", "a"), path="out.jsonl.rows.jsonl")
    told = rank("rules:length", source, "-o", "out.jsonl", code=2)
    assert "FILE is 'out.jsonl.rows.jsonl', a temporary file of the output out.jsonl." in " ".join(told.output.split())
    assert read(source) == [listed("Q", "a")]


@pytest.mark.parametrize("flag", ["-o", "--curve", "--keep-completions"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_done(rank: Any, flag: str) -> None:
    Path("blocked").touch()
    generating = ["--generate", "no-policy", "--n", 2] if flag == "--keep-completions" else []
    name = "blocked/f.json" if flag == "--curve" else "blocked/f.jsonl"
    told = rank("rules:fails", write(listed("Q", "a")), flag, name, *generating, code=1)
    assert f"{name} cannot be written: " in " ".join(told.output.split())
    Path("folder.json").mkdir()
    if flag == "--curve":
        assert "folder.json is a folder" in rank("rules:fails", "in.jsonl", flag, "folder.json", code=1).output


class TestInterrupted:
    ROWS = (listed("Q", "a", "bb"), listed("R", "fail", "c"))

    def test_a_run_that_was_to_overwrite_goes_on_without_the_flag(self, rank: Any) -> None:
        source, curve = write(*self.ROWS), ("--curve", "curve.json", "--batch-size", 1)
        rank("rules:late", source, *curve)
        before = read()
        write(listed("Q", "aaa", "b"), self.ROWS[1])
        Path("stop").touch()
        rank("rules:late", source, *curve, "--overwrite", code=1)
        assert read() == before  # until there is something to replace it with
        Path("stop").unlink()
        told = rank("rules:late", source, *curve)
        assert "in.ranked.jsonl will be replaced: a run with --overwrite was interrupted." in told.stderr
        assert "Resuming after 1 row" in told.stderr
        assert [row["completions"] for row in read()] == [["aaa", "b"], ["fail", "c"]]
        assert json.loads(Path("curve.json").read_text(encoding="utf-8"))["prompts"] == 2
        assert "in.ranked.jsonl exists already" in rank("rules:late", source, *curve, code=1).output

    def test_other_work_does_not_replace_what_it_was_to_replace(self, rank: Any) -> None:
        source = write(*self.ROWS)
        rank("rules:late", source)
        before = read()
        Path("stop").touch()
        rank("rules:late", source, "--batch-size", 1, "--overwrite", code=1)
        assert "cannot be resumed: the spec was" in rank("rules:length", source, code=1).output
        assert read() == before

    def test_a_curve_of_somebody_else_is_not_replaced(self, rank: Any) -> None:
        source = write(*self.ROWS)
        Path("stop").touch()
        rank("rules:late", source, "--batch-size", 1, code=1)
        Path("curve.json").touch()
        assert "curve.json exists already" in rank("rules:late", source, "--curve", "curve.json", code=1).output

    def test_rows_and_curve_are_written_together_or_not_at_all(self, rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write(*self.ROWS)
        settings = ("--format", "best", "--finished-only", "--curve", "curve.json")
        assert "--finished-only needs rows with 'finished'" in rank("rules:length", source, *settings, code=1).output
        assert not Path("curve.json").exists()
        with monkeypatch.context() as patched:
            patched.setattr(BestOfNCurve, "to_json", lambda self: 1 / 0)
            rank("rules:length", source, "--curve", "curve.json", code=1)
        assert not Path("in.ranked.jsonl").exists() and not Path("curve.json").exists()
        told = rank("rules:length", source, "--curve", "curve.json")
        assert "Resuming after 2 rows scored." in told.stderr
        assert [path.name for path in Path().iterdir() if "curve" in path.name] == ["curve.json"]


def test_help_has_its_options_in_groups(rank: Any) -> None:
    printed = rank("--help-all").output
    headings = [line.removesuffix(":") for line in printed.splitlines() if re.fullmatch(r"[A-Z][\w ]*:", line)]
    assert headings == ["Output", "Completions", "Best of n", "Options"]
    order = [printed.index(flag) for flag in ("--format", "--pairs", "--generate MODEL", "--seed", "--gold", "--batch-size")]
    assert order == sorted(order)


def test_generation_stops_at_an_empty_source(rank: Any, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_job, "load_generator", lambda *arguments, **settings: pytest.fail("no model is needed"))
    assert "Wrote 0 prompts" in rank("rules:length", write(), "--generate", policy, "--n", 2).stderr
