"""What a check of a dataset finds, and what `rm-plugins data check` makes of it."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner, Result
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.cli import data, main
from rm_plugins.data.check import DataCheck
from rm_plugins.data.check_report import DataReport, Problem
from rm_plugins.data.rows import read_rows
from rm_plugins.errors import DataError
from rm_plugins.rendering.render import Renderer, Rendering
from rm_plugins.samples import Sample

USER = {"role": "user", "content": "2+2?"}
FOUR = {"role": "assistant", "content": "4"}
FIVE = {"role": "assistant", "content": "5"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]}


def pair(prompt: str, chosen: str, rejected: str, **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}


def checked(*sources: Sequence[dict[str, Any]], **settings: Any) -> DataReport:
    """The report on sources called a, b and so on."""
    check = DataCheck(**settings)
    for name, rows in zip("abcdef", sources, strict=False):
        check.begin(name)
        for row in rows:
            check.add(row)
    return check.report()


def problems(report: DataReport) -> dict[str, tuple[int, list[tuple[str, int]]]]:
    """Kind to count and places."""
    return {
        problem.kind: (problem.count, [(example.source, example.row) for example in problem.examples])
        for problem in report.problems
    }


def only(report: DataReport, kind: str) -> Problem:
    (found,) = report.problems
    assert found.kind == kind
    return found


class TestCounts:
    def test_every_format(self) -> None:
        report = checked(
            [
                pair("p", "a", "bb"),
                pair("q", "a", "bb", tie=True),
                {"prompt": "r", "completions": ["a", "b", "c"], "ranks": [1, 2, 2]},
                {"prompt": "s", "completions": ["a", "b"], "scores": [{"x": 1, "y": None}, {"x": 3, "y": 2}]},
                {"prompt": "t", "completion": "a", "label": True},
                {"prompt": "u", "completion": "a", "label": False},
            ]
        )
        (source,) = report.sources
        assert (source.name, source.rows, source.samples, source.pairs, source.ties) == ("a", 6, 11, 3, 2)
        assert source.formats == {"preference": 2, "ranking": 1, "ratings": 1, "labelled": 2}
        summaries = {
            name: (found.rated, found.missing, found.mean, found.lowest, found.highest)
            for name, found in report.attributes.items()
        }
        assert summaries == {"x": (2, 0, 2.0, 1.0, 3.0), "y": (1, 1, 2.0, 2.0, 2.0), "label": (2, 0, 0.5, 0.0, 1.0)}
        assert problems(report) == {"mixed-formats": (4, [("a", 3), ("a", 4), ("a", 5)])}
        assert report.is_trainable

    def test_rows_are_measured_many_at_a_time(self) -> None:
        batches = []

        def measure(samples: Sequence[Sample]) -> list[int]:
            batches.append(len(samples))
            return [1] * len(samples)

        report = checked([pair(str(row), "a", "b") for row in range(1000)], lengths=measure)
        assert sum(batches) == 2000
        assert len(batches) < 10
        assert report.sources[0].pairs == 1000

    def test_nothing(self) -> None:
        report = checked([])
        assert not report.is_trainable
        assert only(report, "nothing-to-train-on").description == "no row has a comparison, a rating or a label"
        assert (report.lengths, report.length_bias) == ({}, None)

    @pytest.mark.parametrize(
        ("row", "trainable"),
        [
            ({"prompt": "p", "completions": ["a"], "ranks": [1]}, False),
            ({"prompt": "p", "completions": ["a", "b"], "ranks": [1, None]}, False),
            ({"prompt": "p", "completion": "a", "scores": {"x": None}}, False),
            ({"prompt": "p", "completion": "a", "scores": {"x": 1}}, True),
            (pair("p", "a", "b", tie=True), True),
        ],
    )
    def test_something_to_train_on(self, row: dict[str, Any], trainable: bool) -> None:
        assert checked([row]).is_trainable is trainable


class TestMalformed:
    def test_rows_are_collected(self) -> None:
        rows = [{"prompt": "p"}, pair("p", "a", "b"), {"prompt": "p"}, pair("p", "a", 3), pair("p", "b", "c", tie="x")]  # type: ignore[arg-type]
        report = checked(rows)
        found = only(report, "malformed")
        assert (found.is_error, found.count) == (True, 4)
        # The third row has nothing new to say.
        assert [example.row for example in found.examples] == [1, 4, 5]
        assert found.examples[0].text.startswith("there is nothing judged; the row has the columns 'prompt'.")
        assert found.examples[0].text.endswith('{"prompt": "p"}')
        assert not report.is_trainable
        assert (report.sources[0].rows, report.sources[0].pairs) == (5, 1)

    def test_lines_that_are_no_rows_are_counted_as_rows(self) -> None:
        check = DataCheck()
        check.begin("a")
        check.refuse(DataError("line 1 is no JSON"))
        check.add({"prompt": "p"})
        found = check.report().problems[0]
        assert [example.row for example in found.examples] == [1, 2]
        assert found.examples[0].text == "line 1 is no JSON"

    def test_what_cannot_be_rendered_is_malformed_and_the_rest_is_not(self) -> None:
        def measure(samples: Sequence[Sample]) -> list[int]:
            if any("bad" in str(sample.completion) for sample in samples):
                raise ValueError("no such\n  token")
            return [len(str(sample.completion)) for sample in samples]

        report = checked([pair("p", "a", "b"), pair("p", "bad", "b"), pair("p", "ccc", "b")], lengths=measure)
        found = only(report, "malformed")
        assert (found.count, found.examples[0].row) == (1, 2)
        assert found.examples[0].text == "ValueError: no such token: 'p' → 'bad'"
        assert report.sources[0].pairs == 2
        assert report.lengths["longest"] == 3

    def test_excerpts_are_short_and_can_be_printed(self) -> None:
        report = checked([pair("p" * 1000, "\ud800 a", "\ud800 a"), {"text": "\ud800" + "x" * 1000}])
        for problem in report.problems:
            assert len(problem.examples[0].text) < 500
            problem.examples[0].text.encode()


class TestRepetitions:
    def test_equal_rows(self) -> None:
        rows = [pair("p", "a", "b"), pair("q", "a", "b"), pair("p", "a", "c"), pair("p", "a", "b", id=7), pair("p", "a", "b")]
        found = only(checked(rows), "duplicate")
        assert (found.count, found.is_error) == (2, False)
        assert [(example.row, example.text) for example in found.examples] == [(row, "as row 1: 'p' → 'a'") for row in (4, 5)]

    def test_chosen_and_rejected_swapped(self) -> None:
        found = only(checked([pair("p", "a", "b"), pair("p", "b", "a"), pair("q", "b", "a")]), "contradiction")
        assert (found.count, found.examples[0].row, found.examples[0].text) == (1, 2, "as row 1: 'p' → 'b'")

    @pytest.mark.parametrize(
        ("one", "other", "kind"),
        [
            (pair("p", "a", "b"), pair("p", "b", "a", tie=True), "contradiction"),
            (pair("p", "a", "b", tie=True), pair("p", "b", "a", tie=True), "duplicate"),
            (
                {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]},
                {"prompt": "p", "completions": ["c", "a", "b"], "ranks": [9, 4, 5]},
                "duplicate",
            ),
            (
                {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]},
                {"prompt": "p", "completions": ["c", "a", "b"], "ranks": [1, 2, 3]},
                "contradiction",
            ),
            ({"prompt": "p", "completion": "a", "score": 1}, {"prompt": "p", "completion": "a", "score": 2}, "contradiction"),
            ({"prompt": "p", "completion": "a", "score": 1}, {"prompt": "p", "completion": "a", "score": 1.0}, "duplicate"),
            (
                {"prompt": [USER], "completion": [FOUR], "label": 1},
                {"messages": [{**USER, "tool_calls": None}, FOUR], "label": True},
                "duplicate",
            ),
            (
                {"prompt": "p", "completions": ["a", "b"], "scores": [{"x": 1, "y": None}, None]},
                {"prompt": "p", "completions": ["b", "a"], "scores": [None, {"x": 1, "y": None}]},
                "duplicate",
            ),
        ],
    )
    def test_the_order_of_samples_does_not_matter_and_how_they_are_judged_does(
        self, one: dict[str, Any], other: dict[str, Any], kind: str
    ) -> None:
        assert problems(checked([one, other])) == {kind: (1, [("a", 2)])}

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (pair("ab", "c", "d"), pair("a", "bc", "bd")),
            (pair("p", "\ud800", "x"), pair("p", "?", "x")),
            (pair("p", "a", "b"), {"prompt": [{"role": "user", "content": "p"}], "chosen": "a", "rejected": "b"}),
            (
                {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]},
                {"prompt": [{**USER, "role": "system"}], "chosen": [FOUR], "rejected": [FIVE]},
            ),
            (
                {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]},
                {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE], "tools": [{"type": "function"}]},
            ),
        ],
    )
    def test_other_texts_are_no_repetition(self, one: dict[str, Any], other: dict[str, Any]) -> None:
        assert set(problems(checked([one, other]))) <= {"mixed-texts"}

    def test_one_text_as_winner_and_loser(self) -> None:
        rows = [pair("p", "x", "y"), pair("p", "a", "a"), {"prompt": "q", "completions": ["a", "b", "a"], "ranks": [1, 1, 2]}]
        report = checked(rows)
        assert problems(report)["identical-pair"] == (2, [("a", 2), ("a", 3)])
        assert "repeated-completion" not in problems(report)

    def test_one_completion_twice(self) -> None:
        rows: list[dict[str, Any]] = [
            {"prompt": "p", "completions": ["a", "b", "a"], "ranks": [1, 2, 1]},
            {"prompt": "q", "completions": ["b", "a", "b"], "best": 1},
            {"prompt": "r", "completions": ["b", "a", "c"], "best": 1},
        ]
        assert problems(checked(rows)) == {
            "repeated-completion": (2, [("a", 1), ("a", 2)]),
            "mixed-formats": (2, [("a", 2), ("a", 3)]),
        }


class TestLeaks:
    def test_samples_and_prompts(self) -> None:
        train = [pair("p", "a", "b"), pair("q", "a", "b")]
        test = [pair("p", "c", "a"), pair("q", "x", "y"), pair("r", "a", "b"), pair("p", "b", "z")]
        report = checked(train, test)
        assert problems(report) == {"leaked-sample": (2, [("b", 1), ("b", 4)]), "leaked-prompt": (1, [("b", 2)])}
        assert [problem.examples[0].text for problem in report.problems] == ["as in a: 'p' → 'c'", "as in a: 'q' → 'x'"]

    def test_the_first_source_is_named(self) -> None:
        report = checked([pair("p", "a", "b")], [pair("q", "a", "b")], [pair("q", "a", "c"), pair("p", "c", "d")])
        assert [problem.examples[0].text[:7] for problem in report.problems] == ["as in b", "as in a"]

    def test_repetitions_are_those_of_one_source(self) -> None:
        report = checked([pair("p", "a", "b")], [pair("q", "x", "y"), pair("p", "b", "a")])
        assert problems(report) == {"leaked-sample": (1, [("b", 2)])}

    def test_no_prompt_is_no_prompt_in_common(self) -> None:
        rows = [{"chosen": "a", "rejected": "b"}], [{"chosen": "c", "rejected": "d"}]
        assert problems(checked(*rows)) == {}

    def test_sources_need_not_be_compared(self) -> None:
        assert problems(checked([pair("p", "a", "b")], [pair("p", "a", "b")], compares_sources=False)) == {}


class TestTexts:
    def test_empty_texts(self) -> None:
        rows = [
            pair(" \n", "a", "b"),
            pair("p", "a", "\t"),
            {"prompt": [], "chosen": [FOUR], "rejected": [FIVE]},
            {"prompt": [USER], "chosen": [{**FOUR, "content": ""}], "rejected": [CALL]},
            {"prompt": [USER], "chosen": [FOUR], "rejected": [CALL]},
        ]
        assert problems(checked(rows)) == {
            "empty-completion": (2, [("a", 2), ("a", 4)]),
            "empty-prompt": (2, [("a", 1), ("a", 3)]),
            "mixed-texts": (3, [("a", 3), ("a", 4), ("a", 5)]),
        }

    def test_rows_without_a_prompt(self) -> None:
        rows: list[dict[str, Any]] = [
            {"completion": "a", "label": 1},
            {"prompt": None, "completion": "b", "label": 1},
            {"messages": [USER, FOUR], "label": 1},
            {"prompt": "p", "completion": "a", "label": 1},
        ]
        assert problems(checked(rows))["no-prompt"] == (2, [("a", 1), ("a", 2)])
        assert problems(checked([{"chosen": "p a", "rejected": "p b"}])) == {}

    def test_long_rows(self) -> None:
        rows = [pair("pp", "aa", "b"), pair("pp", "a", "bbb"), pair("q", "a", "bbb")]
        found = only(checked(rows, max_length=4), "overlong")
        assert (found.count, found.description) == (1, "longer than 4 characters")
        assert (found.examples[0].row, found.examples[0].text) == (2, "5 characters: 'pp' → 'a'")
        assert problems(checked(rows, max_length=5)) == {}

    def test_nothing_is_left_if_every_row_is_long(self) -> None:
        report = checked([pair("pp", "aa", "b"), {"prompt": "p"}], max_length=3)
        assert problems(report)["nothing-to-train-on"] == (0, [])
        assert [problem.description for problem in report.problems][1] == "every row is longer than 3 characters"


class TestLengths:
    def test_quantiles(self) -> None:
        report = checked([{"prompt": "", "completion": "x" * length, "score": 1} for length in range(1, 101)])
        assert report.lengths == {
            **{"shortest": 1, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "99%": 99, "longest": 100},
        }
        assert (report.unit, report.max_length) == ("characters", None)

    @given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
    def test_quantiles_are_lengths_that_so_many_do_not_exceed(self, lengths: list[int]) -> None:
        report = checked([{"prompt": "", "completion": "x" * length, "score": 1} for length in lengths])
        for name, share in {"shortest": 0.0, "25%": 0.25, "median": 0.5, "99%": 0.99, "longest": 1.0}.items():
            assert report.lengths[name] == np.quantile(lengths, share, method="inverted_cdf")

    def test_bias_by_hand(self) -> None:
        rows = [pair("p", "aaa", "b"), pair("q", "aa", "b"), pair("r", "a", "b"), pair("s", "a", "bb"), pair("t", "aaa", "bb")]
        bias = checked(rows).length_bias
        assert bias is not None
        assert (bias.pairs, bias.longer_wins, bias.equal) == (4, 0.75, 1)
        assert bias.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))

    def test_the_pairs_of_a_row_are_taken_together(self) -> None:
        rows = [
            {"prompt": "p", "completions": ["aaa", "bb", "c"], "ranks": [1, 2, 3]},  # the longer one wins 3 of 3
            {"prompt": "q", "completions": ["a", "bb", "cc"], "ranks": [1, 2, 3]},  # 0 of 2
            pair("r", "aa", "b"),  # 1 of 1
        ]
        bias = checked(rows).length_bias
        assert bias is not None
        assert (bias.pairs, bias.longer_wins, bias.equal) == (6, 4 / 6, 1)
        residuals = [3 - 3 * 4 / 6, 0 - 2 * 4 / 6, 1 - 1 * 4 / 6]
        assert bias.standard_error == pytest.approx(math.sqrt(sum(found**2 for found in residuals)) / 6)

    def test_ties_and_equal_lengths_are_no_bias(self) -> None:
        assert checked([pair("p", "a", "b"), pair("p", "aa", "b", tie=True)]).length_bias is None

    def test_characters_are_those_of_prompt_and_completion(self) -> None:
        report = checked([{"prompt": [USER], "completion": [CALL, {"role": "tool", "content": "four"}, FOUR], "score": 1}])
        assert report.lengths["median"] == len("2+2?") + len("four") + len("4")

    def test_in_tokens_of_a_rendering(self, tiny_tokenizer: Any) -> None:
        renderer = Renderer(tiny_tokenizer, Rendering.default(tiny_tokenizer))
        rows = [{"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE, USER, FOUR]}, pair("name a colour", " blue", " two")]
        samples = [
            Sample([USER], [FOUR]),
            Sample([USER], [FIVE, USER, FOUR]),
            *(Sample("name a colour", f" {x}") for x in ("blue", "two")),
        ]
        expected = sorted(map(len, renderer.untruncated_ids(samples)))
        report = checked(rows, lengths=lambda samples: [len(ids) for ids in renderer.untruncated_ids(samples)], unit="tokens")
        assert (report.lengths["shortest"], report.lengths["longest"]) == (expected[0], expected[-1])

    def test_a_conversation_that_the_template_refuses(self, tiny_tokenizer: Any) -> None:
        tiny_tokenizer.chat_template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}x"
        renderer = Renderer(tiny_tokenizer, Rendering.default(tiny_tokenizer))
        rows = [
            {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]},
            {"prompt": [FOUR], "chosen": [FIVE], "rejected": [FOUR]},
        ]
        report = checked(rows, lengths=lambda samples: [len(ids) for ids in renderer.untruncated_ids(samples)])
        assert problems(report)["malformed"] == (1, [("a", 2)])
        assert "user first" in report.problems[0].examples[0].text


@given(st.lists(st.tuples(*[st.sampled_from("xyz")] * 3), max_size=20))
def test_repetitions_are_what_comparing_texts_finds(rows: list[tuple[str, str, str]]) -> None:
    """Digests against the texts themselves."""
    expected = {"duplicate": 0, "contradiction": 0, "identical-pair": 0}
    first: dict[Any, tuple[str, str]] = {}
    for prompt, chosen, rejected in rows:
        expected["identical-pair"] += chosen == rejected
        key = (prompt, frozenset([chosen, rejected]))
        if key in first:
            expected["duplicate" if first[key] == (chosen, rejected) else "contradiction"] += 1
        first.setdefault(key, (chosen, rejected))
    found = {kind: count for kind, (count, _) in problems(checked([pair(*row) for row in rows])).items()}
    assert {kind: found.get(kind, 0) for kind in expected} == expected


class TestRealData:
    """Facts of public datasets, each known from elsewhere or counted by other code."""

    @staticmethod
    def report(folder: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> DataReport:
        return checked(list(map(change, read_rows(str(folder / f"{name}.jsonl.gz")))))

    def test_convincing_arguments(self, data_folder: Path) -> None:
        report = self.report(data_folder, "ukp_convarg_strict")
        assert (report.sources[0].rows, report.sources[0].pairs, report.sources[0].samples) == (11_650, 11_650, 23_300)
        assert report.length_bias is not None
        assert report.length_bias.longer_wins == pytest.approx(0.77, abs=0.005)
        texts = [
            tuple(row[name][0]["content"] for name in ("prompt", "chosen", "rejected"))
            for row in read_rows(str(data_folder / "ukp_convarg_strict.jsonl.gz"))
        ]
        seen: dict[Any, Any] = {}
        kinds = []
        for prompt, chosen, rejected in texts:
            before = seen.setdefault((prompt, *sorted((chosen, rejected))), [])
            kinds += ["duplicate" if (chosen, rejected) == before[0] else "contradiction"] if before else []
            before.append((chosen, rejected))
        expected = {kind: kinds.count(kind) for kind in ("contradiction", "duplicate")}
        assert {problem.kind: problem.count for problem in report.problems} == expected

    def test_instructions(self, data_folder: Path) -> None:
        report = self.report(data_folder, "llmbar")
        assert report.sources[0].formats == {"preference": 884}
        empty = next(problem for problem in report.problems if problem.kind == "empty-completion")
        assert (empty.count, empty.examples[0].row) == (1, 654)

    def test_film_reviews_use_every_sentence_once(self, data_folder: Path) -> None:
        report = self.report(data_folder, "rt_sentence_polarity_pairs")
        assert report.problems == ()
        assert report.sources[0].pairs == 5_331

    def test_labelled_solutions(self, data_folder: Path) -> None:
        report = self.report(data_folder, "gsm8k_solutions_labelled")
        assert problems(report)["malformed"][0] == 1_319
        report = self.report(data_folder, "gsm8k_solutions_labelled", lambda row: {**row, "labels": row["is_correct"]})
        assert report.is_trainable
        assert (report.sources[0].formats, report.sources[0].samples) == ({"labelled": 1_319}, 5_276)
        assert report.attributes["label"].rated == 5_276

    def test_rated_replies(self, data_folder: Path) -> None:
        report = self.report(data_folder, "topical_chat_ratings", lambda row: {**row, "prompt": row["dialogue"]})
        assert list(report.attributes) == [
            *("understandability", "naturalness", "coherence", "engagingness", "groundedness", "overall")
        ]
        assert {summary.rated for summary in report.attributes.values()} == {360}
        assert (report.attributes["overall"].lowest, report.attributes["overall"].highest) == (1.0, 5.0)
        assert report.problems == ()


# --- The command ----------------------------------------------------------------------------------------------------------

GOOD = [pair("p", "aaa", "b"), pair("q", "a", "bb")]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **settings: CliRunner().invoke(main, ["data", "check", *map(str, arguments)], **settings)


def write(path: str, rows: Sequence[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.endswith(".gz"):
        Path(path).write_bytes(gzip.compress(text.encode()))
    elif path.endswith(".parquet"):
        parquet.write_table(arrow.Table.from_pylist(list(rows)), path)
    else:
        Path(path).write_text(text, encoding="utf-8")
    return path


class TestCommand:
    def test_good_data(self, run: Any) -> None:
        found = run(write("good.jsonl", GOOD))
        assert found.exit_code == 0
        lines = [" ".join(line.split()) for line in found.output.splitlines()]
        assert lines == [
            "rows samples pairs ties format",
            "good.jsonl 2 4 2 0 preference",
            "",
            "Lengths in characters: shortest 2, 5% 2, 25% 2, median 2, 75% 3, 95% 4, 99% 4, longest 4",
            "The longer one wins 50.0% of 2 pairs (standard error 35.4%)",
            "",
            "No problems.",
        ]

    def test_warnings_fail_only_if_strict(self, run: Any) -> None:
        write("twice.jsonl", [*GOOD, GOOD[0]])
        found = run("twice.jsonl")
        assert found.exit_code == 0
        assert "warning: 1 row equal to an earlier row\n  twice.jsonl, row 3: as row 1: 'p' → 'aaa'\n" in found.output
        assert found.output.endswith("It can be trained on.\n")
        assert run("twice.jsonl", "--strict").exit_code == 1
        assert run(write("good.jsonl", GOOD), "--strict").exit_code == 0

    def test_errors_fail_and_do_not_stop_the_check(self, run: Any) -> None:
        Path("bad.jsonl").write_text(
            f'{{oops\n{json.dumps(GOOD[0])}\n\n[1]\n{{"prompt": "p"}}\n{json.dumps(GOOD[0])}\n', encoding="utf-8"
        )
        found = run("bad.jsonl")
        assert found.exit_code == 1
        assert "error: 3 rows that cannot be trained on\n  bad.jsonl, row 1: bad.jsonl, line 1 is no JSON" in found.output
        assert "\n  bad.jsonl, row 3: bad.jsonl, line 4 is list" in found.output
        assert "\n  bad.jsonl, row 4: there is nothing judged" in found.output
        assert "warning: 1 row equal to an earlier row\n  bad.jsonl, row 5: as row 2" in found.output
        assert found.output.endswith("It cannot be trained on.\n")
        assert "no row has a comparison" in run(write("empty.jsonl", [])).output

    def test_json(self, run: Any) -> None:
        rows = [{"prompt": "p", "completions": ["a", "b"], "scores": {"x": [1, 2], "y": None}}, *GOOD]
        found = run(write("in.jsonl", rows), "--json", "--max-length", "3")
        assert found.exit_code == 0
        report = json.loads(found.output, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert report["trainable"] is True
        assert report["sources"] == [
            {"name": "in.jsonl", "rows": 3, "samples": 6, "pairs": 2, "ties": 0, "formats": {"ratings": 1, "preference": 2}}
        ]
        assert report["attributes"]["x"] == {"rated": 2, "missing": 0, "mean": 1.5, "lowest": 1.0, "highest": 2.0}
        assert report["attributes"]["y"] == {"rated": 0, "missing": 2, "mean": None, "lowest": None, "highest": None}
        assert (report["unit"], report["max_length"], report["lengths"]["longest"]) == ("characters", 3, 4)
        assert report["length_bias"]["pairs"] == 2
        assert {problem["kind"]: problem["count"] for problem in report["problems"]} == {"overlong": 1, "mixed-formats": 2}
        assert report["problems"][0]["examples"] == [{"source": "in.jsonl", "row": 2, "text": "4 characters: 'p' → 'aaa'"}]

    def test_attributes_are_shown(self, run: Any) -> None:
        rows = [{"prompt": "p", "completions": ["a", "b"], "scores": {"help[ful]": [1, 2], "brief": None}}]
        lines = [line.split() for line in run(write("in.jsonl", rows)).output.splitlines()]
        assert ["help[ful]", "2", "0", "1.5", "1", "2"] in lines
        assert ["brief", "0", "2"] in lines

    @pytest.mark.parametrize("source", ["in.jsonl", "in.jsonl.gz", "in.parquet", "saved", "-"])
    def test_every_source(self, source: str, run: Any) -> None:
        given = None
        if source == "saved":
            DatasetDict({"train": Dataset.from_list(GOOD)}).save_to_disk(source)
        elif source == "-":
            given = "".join(json.dumps(row) + "\n" for row in GOOD)
        else:
            write(source, GOOD)
        report = json.loads(run(source, "--json", input=given).output)
        assert [(found["name"], found["pairs"]) for found in report["sources"]] == [(source, 2)]

    def test_leaks_between_files(self, run: Any) -> None:
        found = run(write("train.jsonl", GOOD), write("test.jsonl", [pair("p", "x", "b"), pair("q", "x", "y")]))
        assert "warning: 1 row with a prompt and completion that are in an earlier file too" in found.output
        assert "  test.jsonl, row 1: as in train.jsonl: 'p' → 'x'" in found.output
        assert "warning: 1 row with a prompt that is in an earlier file too, and other completions" in found.output

    def test_leaks_between_splits(self, run: Any) -> None:
        DatasetDict({"train": Dataset.from_list(GOOD), "test": Dataset.from_list(GOOD[:1])}).save_to_disk("saved")
        report = json.loads(run("saved", "--split", "train", "--split", "test", "--json").output)
        assert [found["name"] for found in report["sources"]] == ["saved (train)", "saved (test)"]
        assert [(found["kind"], found["count"]) for found in report["problems"]] == [("leaked-sample", 1)]

    def test_splits_are_those_of_datasets_and_not_of_files(self, run: Any) -> None:
        Dataset.from_list(GOOD).save_to_disk("alone")
        for source in ("alone", write("in.jsonl", GOOD)):
            report = json.loads(run(source, "--split", "train", "--split", "test", "--json").output)
            assert [(found["name"], found["rows"]) for found in report["sources"]] == [(source, 2)]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "cut.jsonl.gz",
                gzip.compress(b'{"prompt": "p"}\n' * 1000, mtime=0)[:-20],
                "cut.jsonl.gz cannot be read: Compressed file ended",
            ),
            ("text.jsonl.gz", b"text", "text.jsonl.gz cannot be read: Not a gzipped file"),
            ("latin.jsonl", '{"prompt": "é"}\n'.encode("latin-1"), "latin.jsonl cannot be read: 'utf-8' codec"),
            ("text.parquet", b"text", "text.parquet cannot be read: "),
        ],
    )
    def test_files_that_cannot_be_read(self, name: str, content: bytes, message: str, run: Any) -> None:
        Path(name).write_bytes(content)
        found = run(name)
        assert found.exit_code == 1
        assert f"Error: {message}" in found.output

    def test_what_is_asked_wrongly(self, run: Any) -> None:
        assert "There is no file 'none.jsonl'" in run("none.jsonl").output
        assert run().exit_code == 2
        assert run(write("in.jsonl", GOOD), "--max-length", "0").exit_code == 2
        found = run("in.jsonl", "--tokenizer", "./nowhere")
        assert (found.exit_code, "No tokenizer could be loaded from './nowhere'" in found.output) == (1, True)


class TestCommandWithTokenizer:
    def test_lengths_are_those_of_training(self, run: Any, tiny_decoder: Any) -> None:
        folder = tiny_decoder(positions=40)
        rows = [
            {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE, USER, FOUR]},
            {"prompt": [USER], "chosen": [{**FOUR, "content": "long " * 40}], "rejected": [FIVE]},
        ]
        report = json.loads(run(write("in.jsonl", rows), "--tokenizer", folder, "--json").output)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        renderer = Renderer(tokenizer, Rendering.default(tokenizer))
        longest = renderer.untruncated_ids([Sample([USER], [{**FOUR, "content": "long " * 40}])])[0]
        assert (report["unit"], report["max_length"]) == ("tokens", 40)
        assert report["lengths"]["longest"] == len(longest) > 40
        (overlong,) = report["problems"]
        assert (overlong["kind"], overlong["count"], overlong["examples"][0]["row"]) == ("overlong", 1, 2)
        assert overlong["description"] == "longer than 40 tokens"

    @pytest.mark.parametrize(("asked", "limit"), [(20, 20), (100, 40)])
    def test_a_limit_is_no_more_than_the_models(self, asked: int, limit: int, run: Any, tiny_decoder: Any) -> None:
        arguments = ("--tokenizer", tiny_decoder(positions=40), "--max-length", asked, "--json")
        assert json.loads(run(write("in.jsonl", GOOD), *arguments).output)["max_length"] == limit

    def test_a_tokenizer_without_a_model(self, run: Any, tiny_tokenizer: Any) -> None:
        tiny_tokenizer.save_pretrained("tokenizer")
        report = json.loads(run(write("in.jsonl", GOOD), "--tokenizer", "tokenizer", "--json").output)
        assert (report["unit"], report["max_length"]) == ("tokens", None)


def test_checking_imports_nothing_heavy() -> None:
    code = "import sys, rm_plugins.data.check, rm_plugins.cli.data; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "pyarrow"} & set(found)


def test_memory_does_not_grow_with_the_texts() -> None:
    import tracemalloc

    def peak(size: int) -> int:
        check = DataCheck()
        tracemalloc.start()
        check.begin("a")
        for row in range(2000):
            check.add(pair(f"{row}" + "p" * size, "a" * size, "b" * size))
        check.report()
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    texts = 2000 * 3 * 20_000
    assert peak(20_000) - peak(10) < texts / 4


def test_every_option_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    for option in data.check.params[1:]:
        assert f"{option.opts[0]}" in page
