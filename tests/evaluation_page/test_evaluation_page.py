"""The pages of evaluations: that they are whole, safe and true to the data, and what a person sees of them in a browser."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rm_plugins.evaluation.results import Difference, Evaluation
from rm_plugins.reports import comparison_page, evaluation_page
from rm_plugins.reports.evaluation_page import CHARTS
from rm_plugins.statistics.intervals import Estimate

pytest.importorskip("matplotlib", reason="matplotlib, which draws the charts, is not installed")
if TYPE_CHECKING:
    pass
from tests.evaluation_page.conftest import NUMBER, OF_SEVERAL, Reader, bare, unknown


class TestTheWholePage:
    def test_it_is_whole_and_needs_nothing(self, page: str) -> None:
        found = Reader(page)
        assert found.open == []
        assert not {"script", "link", "img", "iframe"} & set(found.tags)
        assert all(reference.startswith("#") for reference in found.references)
        assert "http" not in page.replace("http-equiv", "") and "@import" not in page
        assert set(re.findall(r"url\((.)", page)) <= {"#"}
        assert 'name="viewport"' in page and "color-scheme: light dark" in page and "currentColor" in page

    def test_every_id_is_its_own_and_every_reference_meets_one(self, page: str) -> None:
        found = Reader(page)
        assert len(found.ids) == len(set(found.ids)) > 50
        assert {reference[1:] for reference in found.references} <= set(found.ids)

    def test_headings_are_in_order_and_tables_say_what_their_cells_are_of(self, page: str) -> None:
        found = Reader(page)
        assert found.levels[0] == 1 and found.levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip(found.levels, found.levels[1:], strict=False))
        assert {given.get("scope") for tag, given in found.attributes if tag == "th"} == {"row", "col"}
        assert all(given.get("aria-label") for tag, given in found.attributes if tag == "svg" or given.get("role") == "region")

    def test_each_part_has_its_section_and_how_it_is_read(self, page: str, comparison: str) -> None:
        found = Reader(page)
        shown = found.text()
        for name in OF_SEVERAL:
            assert name in found.ids and CHARTS[name] in shown, name
        assert CHARTS["summary"] in shown
        assert found.tags.count("svg") == 3 * 3 + 5, "three kinds of charts for each reward, five for all"
        compared = Reader(comparison)
        assert {"comparisons", "comparisons_by_section", "won", "lost", "sections", "by_length", "evaluated"} <= set(
            compared.ids
        )
        assert set(CHARTS) == {*OF_SEVERAL, "summary", "won", "lost"}

    def test_it_is_small_and_always_the_same(self, page: str, three: Evaluation) -> None:
        assert len(page.encode()) < 700_000
        assert evaluation_page(three) == page

    def test_the_title(self, small: Evaluation, page: str) -> None:
        assert "<h1>Rewards on RewardBench</h1>" in page
        assert "<h1>Before &amp; after</h1>" in evaluation_page(
            replace(small, rewards=(bare(small.rewards[0]),)), "Before & after"
        )

    @pytest.mark.parametrize(
        ("source", "split", "title", "first"),
        [
            ("", "", "Rewards", "1,200 rows · "),
            ("", "test", "Rewards", "split test · 1,200 rows · "),
            ("data/a.jsonl", "", "Rewards on a.jsonl", "data/a.jsonl · 1,200 rows · "),
            ("trl-lib/tldr", "test", "Rewards on trl-lib/tldr", "trl-lib/tldr, split test · 1,200 rows · "),
        ],
    )
    def test_what_has_no_name_has_no_empty_place(
        self, small: Evaluation, source: str, split: str, title: str, first: str
    ) -> None:
        light = replace(small, rewards=(bare(small.rewards[0]),), data=replace(small.data, source=source, split=split))
        shown = evaluation_page(light)
        assert f"<h1>{title}</h1>" in shown
        line = shown.partition('<p class="evaluated">')[2].partition("</p>")[0]
        assert re.sub("<[^>]*>", "", line).startswith(first)

    def test_long_texts_of_many_rewards_leave_the_page_small(self, small: Evaluation) -> None:
        long = tuple(
            replace(small.rewards[0].mistakes[0], row=row, prompt="p" * 500, chosen="ä" * 3_000, rejected="<" * 3_000)
            for row in range(1, 21)
        )
        rewards = tuple(replace(small.rewards[0], name=f"reward {number}", mistakes=long) for number in range(10))
        shown = evaluation_page(replace(small, rewards=rewards))
        assert len(shown.encode()) < 2_000_000
        kept = shown.count("<b>Row ")
        assert kept % 10 == 0 and kept >= 10
        assert shown.count(f"{20 - kept // 10} more are in the JSON of the evaluation.") == 10
        assert shown.count("<b>Row 1</b>") == 10, "the worst are kept"
        alone = evaluation_page(replace(small, rewards=rewards[:1]))
        assert alone.count("<b>Row ") == 20 and "more are in the JSON" not in alone
        huge = tuple(replace(pair, prompt="x" * 900_000) for pair in long)
        shown = evaluation_page(replace(small, rewards=(replace(small.rewards[0], mistakes=huge),)))
        assert shown.count("<b>Row ") == 1 and "19 more are in the JSON" in shown


class TestVerdicts:
    def test_the_worst_comes_first_in_words(self, page: str, three: Evaluation) -> None:
        calm_first = replace(three, rewards=three.rewards[::-1])
        for shown in (page, evaluation_page(calm_first)):
            severities = re.findall(r'<b class="badge">(\w+)</b>', shown)
            assert severities == ["alarm", "warning", "note", "warning", "note"], "those of one reward stand together"
        text = Reader(page).text()
        for reward in three.rewards:
            for finding in reward.findings:
                assert finding.lead in text and finding.text[1:] in text, finding.kind

    def test_the_longer_answer_stands_beside_the_rewards(self, page: str, three: Evaluation) -> None:
        summary = page.partition('class="table summary"')[2].partition("</table>")[0]
        cells = re.findall(r"<tr><th scope=\"row\">.*?</th><td><b>([\d.]+%)</b>", summary)
        accuracies = [reward.figures["accuracy"].value for reward in three.rewards]
        assert cells == [f"{100 * share:.1f}%" for share in (*accuracies, three.data.longer_chosen)]
        assert cells[0] == cells[-1], "the reward that is the length"

    @pytest.mark.parametrize(
        ("found", "best"),
        [
            ([(0.08, 0.05, 0.11, 0.001)], "helpful-7b"),
            ([(-0.08, -0.11, -0.05, 0.001)], "chars"),
            ([(0.08, -0.01, 0.17, 0.09)], None),
            ([(0.08, 0.05, 0.11, 0.001), (0.15, 0.12, 0.18, 0.001)], "ensemble-of-3"),
            ([(0.08, 0.05, 0.11, 0.001), (0.09, 0.06, 0.12, 0.001)], None),
            ([(-0.08, -0.11, -0.05, 0.001), (-0.01, -0.04, 0.02, 0.5)], None),
            ([(math.nan, math.nan, math.nan, math.nan)], None),
        ],
    )
    def test_the_best_is_marked_where_the_comparisons_show_it(
        self, three: Evaluation, found: list[tuple[float, float, float, float]], best: str | None
    ) -> None:
        names = [reward.name for reward in three.rewards[: len(found) + 1]]
        differences = tuple(
            Difference("chars", name, 1_200, Estimate(value, low, high), p, 9, 9)
            for name, (value, low, high, p) in zip(names[1:], found, strict=True)
        )
        rewards = tuple(replace(bare(reward), figures=reward.figures) for reward in three.rewards[: len(found) + 1])
        shown = evaluation_page(replace(three, rewards=rewards, differences=differences))
        rows = re.findall(r'<tr><th scope="row">.*?<bdi>([^<]*)</bdi>.*?</tr>', shown)
        marked = [row for row in re.findall(r'<tr><th scope="row">.*?</tr>', shown) if 'class="best"' in row]
        assert [re.findall("<bdi>(.*?)</bdi>", row)[0] for row in marked] == ([] if best is None else [best])
        assert rows[: len(names)] == names

    def test_a_comparison_says_who_is_better(self, two: Evaluation) -> None:
        def headline(value: float, p: float) -> str:
            found = replace(two.differences[0], accuracy=Estimate(value, value - 0.02, value + 0.02), p_value=p)
            shown = comparison_page(replace(two, differences=(found,)))
            return re.sub("<[^>]*>|●|■", "", shown.partition('class="headline">')[2].partition("</p>")[0])

        assert headline(0.04, 0.0002) == "helpful-7b is better than chars+4.0 points of accuracy [+2.0, +6.0], p = 0.00020"
        assert headline(-0.04, 0.0002).startswith("chars is better than helpful-7b−4.0 points")
        assert headline(0.01, 0.3).startswith("No clear difference between chars and helpful-7b+1.0 points")


class TestNumbers:
    """Every number that is shown is in the JSON."""

    def test_every_number_of_the_pages_is_in_the_json(
        self, three: Evaluation, two: Evaluation, small: Evaluation, page: str, comparison: str
    ) -> None:
        shown = {"three": (three, page), "two": (two, comparison), "small": (small, evaluation_page(small))}
        for name, (evaluation, text) in shown.items():
            numbers = NUMBER.findall(read(text))
            assert len(numbers) > 100, name
            assert unknown(numbers, evaluation) == [], name

    def test_one_that_is_not_would_be_found(self, small: Evaluation) -> None:
        accuracy = small.rewards[0].figures["accuracy"].value
        others = [f"{100 * accuracy + 0.1:.1f}%", "1,201", "0.8713", "−0.0713"]
        assert unknown([f"{100 * accuracy:.1f}%", "1,200", *others], small) == others


def read(page: str) -> str:
    """The text with results in it: without charts, samples, specs and what says how they are read."""
    return Reader(page).text(without=("style", "svg", "pre", "how", "meaning"))
