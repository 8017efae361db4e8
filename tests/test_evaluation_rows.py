"""What is made of the rows of an evaluation: transcripts of one beginning, sections, and ratings that hardly differ."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rm_plugins.errors import DataError
from rm_plugins.evaluation import evaluate
from rm_plugins.reports import evaluation_page
from tests.test_evaluation import LENGTH, Row, made_pairs, only, pair, reward, value


class TestTranscripts:
    """Pairs without a prompt whose answers are whole conversations."""

    @staticmethod
    def rows(count: int, longer: float) -> list[Row]:
        rng, rows = np.random.default_rng(0), []
        for number, row in enumerate(made_pairs(count, longer)):
            turns = (
                f"Human: question {number // 2}\n" + f"Assistant: {'z' * int(rng.integers(0, 3000))}\n" + "Human: and now?\n"
            )
            rows.append({"chosen": f"{turns}Assistant: {row['chosen']}", "rejected": f"{turns}Assistant: {row['rejected']}"})
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            beginning = first["chosen"][: first["chosen"].rfind("\n") + 1]
            for side in second:
                second[side] = beginning + second[side][second[side].rfind("\n") + 1 :]
        return rows

    def test_what_they_begin_with_is_no_part_of_the_length(self) -> None:
        last = reward(lambda one: float(len(one) - one.rfind("\n")))
        found = evaluate(last, self.rows(400, longer=0.7), resamples=20)
        assert found.data.length_chosen < 150
        first = only(found).findings[0]
        assert (first.kind, first.severity) == ("length", "alarm")
        assert value(only(found), "accuracy_corrected") == pytest.approx(0.5, abs=0.02)
        assert value(only(found), "length_correlation") == pytest.approx(1.0)

    def test_they_are_measured_as_the_same_pairs_with_a_prompt(self) -> None:
        rows, provider = self.rows(200, longer=0.6), reward(lambda one: float(len(one) - one.rfind("\n")))
        split = []
        for row in rows:
            start = row["chosen"].rfind("\n") + 1
            split.append({"prompt": row["chosen"][:start], **{side: text[start:] for side, text in row.items()}})
        found, expected = (evaluate(provider, given, resamples=5) for given in (rows, split))
        assert found.data.prompts == expected.data.prompts == 100
        assert only(found).figures == only(expected).figures
        assert only(found).formats == only(expected).formats

    def test_a_common_word_is_no_common_beginning(self) -> None:
        rows = [{"chosen": f"The answer is {number}.", "rejected": f"The answer: {number}"} for number in range(4)]
        found = evaluate(LENGTH, rows, resamples=5).data
        assert (found.prompts, found.length_chosen) == (4, len("The answer is 0."))


class TestSections:
    ROWS = (pair("22", "1", id=1, subset="easy"), pair("1", "22", id=2, subset="hard"), pair("22", "1", id=3, subset="hard"))

    def test_a_pair_belongs_to_the_section_of_its_row(self) -> None:
        found = evaluate(LENGTH, self.ROWS, resamples=50)
        assert [(one.name, one.pairs, one.accuracy.value) for one in only(found).sections] == [
            ("easy", 1, 1.0),
            ("hard", 2, 0.5),
        ]
        assert found.data.sections == {"easy": 1, "hard": 2}

    def test_pairs_that_were_not_scored_do_not_count_and_ties_do(self) -> None:
        rows = [*self.ROWS, pair("?", "1", id=4, subset="hard"), pair("a", "b", id=5, subset="hard")]
        found = evaluate(reward(lambda one: None if one == "?" else float(len(one))), rows, resamples=5)
        easy, hard = only(found).sections
        assert (easy.pairs, hard.pairs) == (1, 3)
        assert hard.ties is not None
        assert [hard.accuracy.value, hard.ties.value, hard.chance] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
        assert found.as_json()["rewards"][0]["sections"][1]["ties"]["value"] == pytest.approx(1 / 3)
        page = evaluation_page(found)
        cells = re.search(r"<bdi>hard</bdi></th>(.*?)</tr>", page)
        assert cells is not None
        assert re.findall(r">([^<>]+)</td>", cells[1])[:3] == ["3", "33.3%", "50.0%"]

    def test_a_section_of_ties_is_not_worse_than_chance(self) -> None:
        rows = [pair("22", "1", id=number, subset="easy") for number in range(40)]
        rows += [pair("a", "b", id=number, subset="tied") for number in range(40, 75)]
        rows += [pair("22", "1", id=number, subset="tied") for number in range(75, 80)]
        assert "section" not in {one.kind for one in only(evaluate(LENGTH, rows, resamples=5)).findings}

    def test_another_column_can_name_it(self) -> None:
        rows = [{**row, "topic": row["id"] % 2} for row in self.ROWS]
        assert [one.name for one in only(evaluate(LENGTH, rows, section="topic", resamples=50)).sections] == ["1", "0"]
        with pytest.raises(
            DataError, match="row 1: there is no column 'topics' to name its section; it has 'prompt', 'chosen'"
        ):
            evaluate(LENGTH, rows, section="topics")


class TestRatings:
    @pytest.mark.parametrize("scale", [1.0, 1e-10, 1e10])
    def test_ratings_that_hardly_differ_differ(self, scale: float) -> None:
        rows = [
            {"prompt": str(number), "completions": ["1", "2", "3"], "scores": [scale, scale * (1 + 1e-9), scale * (1 + 3e-9)]}
            for number in range(5)
        ]
        found = only(evaluate(reward(float), rows, resamples=5))
        assert (found.pairs, value(found, "kendall"), value(found, "top_1")) == (15, 1.0, 1.0)
        assert value(found, "top_1_random") == pytest.approx(1 / 3)

    @pytest.mark.parametrize("scale", [1.0, 1e-10, 1e10])
    def test_means_of_ratings_are_equal_but_for_their_rounding(self, scale: float) -> None:
        ratings = [
            {"a": scale * 0.33333333, "b": scale * 0.66666667},
            {"a": scale * 0.5, "b": scale * 0.5},
            {"a": 0, "b": scale},
        ]
        rows = [{"prompt": str(number), "completions": ["1", "2", "3"], "scores": ratings} for number in range(3)]
        assert "kendall" not in only(evaluate(reward(float), rows, resamples=5)).figures  # all are equally good
