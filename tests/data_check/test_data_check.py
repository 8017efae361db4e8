"""What a check of a dataset finds, and what `rm-plugins data check` makes of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.cli import data
from rm_plugins.data.check import DataCheck
from rm_plugins.data.check_report import DataReport, Problem
from rm_plugins.errors import DataError
from rm_plugins.samples import Sample
from tests.data_check.conftest import CALL, FIVE, FOUR, USER, checked, pair, problems


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
        assert only(report, "nothing-to-train-on").description.startswith(
            "no row has a comparison, a rating or a label; add columns"
        )
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
        assert [problem.description for problem in report.problems][1] == (
            "every row is longer than 3 characters; raise max_length, or shorten the texts"
        )


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


def test_checking_imports_nothing_heavy() -> None:
    code = "import sys, rm_plugins.data.check, rm_plugins.cli.data; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "pyarrow"} & set(found)


def test_every_option_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for option in data.check.params[1:]:
        if option.name not in ("quiet", "verbose"):  # which all commands have
            assert f"{option.opts[0]}" in page
