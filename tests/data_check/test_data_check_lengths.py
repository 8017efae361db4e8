"""Lengths, memory, published data and the page of the data check."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.data.check import DataCheck
from rm_plugins.data.check_report import DataReport
from rm_plugins.data.row_files import read_rows
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.samples import Sample
from tests.data_check.conftest import CALL, FIVE, FOUR, USER, checked, pair, problems


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

    @given(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from([("aa", "b"), ("a", "bb"), ("a", "b")])), min_size=2, max_size=30)
    )
    def test_the_rows_of_a_prompt_are_taken_together(self, rows: list[tuple[int, tuple[str, str]]]) -> None:
        bias = checked([pair(f"prompt {number}", *answers) for number, answers in rows]).length_bias
        gaps: dict[int, list[int]] = {}
        for number, (chosen, rejected) in rows:
            if len(chosen) != len(rejected):
                gaps.setdefault(number, []).append(len(chosen) > len(rejected))
        if not gaps:
            assert bias is None
            return
        assert bias is not None
        clusters = list(gaps.values()) if len(gaps) > 1 else [[won] for won in next(iter(gaps.values()))]
        share = sum(map(sum, clusters)) / sum(map(len, clusters))
        residuals = [sum(won) - share * len(won) for won in clusters]
        assert bias.longer_wins == pytest.approx(share)
        assert bias.standard_error == pytest.approx(math.sqrt(sum(one**2 for one in residuals)) / sum(map(len, clusters)))

    def test_a_prompt_again_and_again_says_nothing_new(self) -> None:
        few = [pair("p", "aa", "b"), pair("q", "a", "bb"), pair("r", "aa", "b")]
        once, again = (checked(few * times).length_bias for times in (1, 10))
        assert once is not None and again is not None
        assert again.standard_error == pytest.approx(once.standard_error)
        transcripts = [{side: f"{row['prompt']}\n{row[side]}" for side in ("chosen", "rejected")} for row in few * 10]
        bias = checked(transcripts).length_bias
        assert bias is not None and bias.standard_error == pytest.approx(once.standard_error)

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
