"""What the charts and tables of evaluations show is what was found: dots, lines, bars, bands and cells, each from known values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.evaluation import evaluate
from rm_plugins.evaluation.results import (
    Difference,
    Distribution,
    Evaluation,
    FlippedPair,
    JudgedPair,
    LengthBin,
    LengthScatter,
    Members,
    RewardResult,
    SectionResult,
)
from rm_plugins.reports import comparison_page, evaluation_page
from rm_plugins.reports.charts import COLOURS
from rm_plugins.statistics.best_of_n import BestOfN
from rm_plugins.statistics.bias import FeatureBias
from rm_plugins.statistics.intervals import Estimate
from rm_plugins.statistics.metrics import CalibrationBin
from tests.evaluation_samples import evaluation_of

pytest.importorskip("matplotlib", reason="matplotlib, which draws the charts, is not installed")

LOW, HIGH = Estimate(0.25, 0.125, 0.375), Estimate(0.75, 0.625, 0.875)
UNSURE = Estimate(0.5, math.nan, math.nan)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of what is drawn, in the order of the page."""
    found: list[Any] = []

    def svg(figure: Any, label: str = "") -> str:
        found.append(figure.axes[0])
        return f"<svg aria-label='{label}'></svg>"

    monkeypatch.setattr("rm_plugins.reports.evaluation_charts.svg", svg)
    return found


def bare(name: str, **found: Any) -> RewardResult:
    """A reward of which nothing else is known."""
    ties = found.pop("ties", None)
    figures = {} if ties is None else {"ties": Estimate(ties, ties, ties)}
    return RewardResult(name, "", None, "", "", {}, 0, 0, 0, figures, **found)


def evaluation(*rewards: RewardResult, differences: Sequence[Difference] = ()) -> Evaluation:
    data = replace(evaluation_of(("chars",)).data, sections={}, longer_chosen=0.5)
    return replace(evaluation_of(("chars",)), rewards=rewards, differences=tuple(differences), data=data)


def lines(axes: Any, marker: str = "None") -> list[list[tuple[float, float]]]:
    """The points of each line of the chart that has this marker."""
    return [list(map(tuple, line.get_xydata().tolist())) for line in axes.lines if str(line.get_marker()) == marker]


def spans(axes: Any, place: int) -> list[list[list[float]]]:
    """The segments that were drawn at this place among those of the chart."""
    from matplotlib.collections import LineCollection

    found = [item for item in axes.collections if isinstance(item, LineCollection)]
    return [segment.tolist() for segment in found[place].get_segments()]


def zeros(axes: Any) -> list[float]:
    """Where the dashed lines from bottom to top are."""
    return [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]


def section_results(*accuracies: Estimate) -> tuple[SectionResult, ...]:
    return tuple(SectionResult(f"part {place}", 40, found, 0.4 + place / 10) for place, found in enumerate(accuracies))


def rows_of(page: str, label: str) -> list[list[str]]:
    """The texts of the cells of a table, a row each."""
    table = page.partition(f'aria-label="{label}" tabindex')[2].partition("</table>")[0].partition("<tbody>")[2]
    rows = re.findall("<tr>(.*?)</tr>", table, re.DOTALL)
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall("<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


class TestDots:
    def test_a_dot_is_the_value_its_line_the_interval_and_the_bar_the_longer_answer(self, drawn: list[Any]) -> None:
        evaluation_page(evaluation(bare("a", sections=section_results(LOW, HIGH, UNSURE))))
        (axes,) = drawn
        assert lines(axes, "o") == [[(0.25, 0), (0.75, 1), (0.5, 2)]]
        assert spans(axes, 1) == [[[0.125, 0], [0.375, 0]], [[0.625, 1], [0.875, 1]]], "the third has no interval"
        bars = [[0.4, -0.42], [0.4, 0.42], [0.5, 0.58], [0.5, 1.42], [0.6, 1.58], [0.6, 2.42]]
        assert np.allclose(np.concatenate(spans(axes, 0)), bars)
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["part 0", "part 1", "part 2"]
        assert axes.get_ylim() == (2.5, -0.5), "the first on top"

    def test_two_rewards_have_their_own_dots_in_their_colours(self, drawn: list[Any]) -> None:
        bins = [LengthBin(-50, 0, 30, LOW), LengthBin(0, 70, 30, HIGH)]
        swapped = [replace(part, accuracy=other.accuracy) for part, other in zip(bins, bins[::-1], strict=True)]
        evaluation_page(evaluation(bare("a", by_length=tuple(bins)), bare("b", by_length=tuple(swapped))))
        (axes,) = drawn
        assert [[x for x, _ in dots] for marker in "os" for dots in lines(axes, marker)] == [[0.25, 0.75], [0.75, 0.25]]
        assert [line.get_color() for line in axes.lines if line.get_marker() in ("o", "s")] == [*COLOURS[:2]]
        assert [[start[0], end[0]] for start, end in spans(axes, 1)] == [[0.125, 0.375], [0.625, 0.875]]
        assert [[start[0], end[0]] for start, end in spans(axes, 2)] == [[0.625, 0.875], [0.125, 0.375]]
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["−50 to 0", "0 to +70"]

    @pytest.mark.parametrize(
        ("ties", "expected"),
        [((None,), [0.5]), ((0.6,), [0.2]), ((0.0, 0.0), [0.5]), ((0.6, 0.6), [0.2]), ((0.0, 0.6), [0.5, 0.2])],
    )
    def test_the_dashed_line_is_chance_of_the_pairs_that_are_no_ties(
        self, drawn: list[Any], ties: tuple[float | None, ...], expected: list[float]
    ) -> None:
        parts: dict[str, Any] = {"sections": section_results(LOW), "by_length": (LengthBin(0, 9, 30, LOW),)}
        evaluation_page(evaluation(*(bare(f"r{place}", ties=share, **parts) for place, share in enumerate(ties))))
        assert [zeros(axes) for axes in drawn] == [pytest.approx(expected)] * 2
        if len(expected) > 1:
            dashed = [line.get_color() for line in drawn[0].lines if line.get_linestyle() == "--"]
            assert dashed == [*COLOURS[:2]], "whose line is whose"

    def test_formats_are_beside_how_often_more_is_better(self, drawn: list[Any]) -> None:
        biases = (FeatureBias("bold", 40, 0.75, 0.5, 0.1, HIGH, LOW), FeatureBias("list_items", 30, 0.25, 0.625, 0.1))
        page = evaluation_page(evaluation(bare("a", formats=biases)))
        (axes,) = drawn
        assert lines(axes, "o") == [[(0.75, 0), (0.25, 1)]]
        assert [segment[0][0] for segment in spans(axes, 0)] == [0.5, 0.625]
        right = "more 75.0% [62.5, 87.5]less 25.0% [12.5, 37.5]"
        assert rows_of(page, "Preference for features of format") == [
            ["bold", "40", "50.0%", f"75.0%{right}"],
            ["list items", "30", "62.5%", "25.0%"],
        ]


class TestOneReward:
    def test_the_area_is_of_the_better_answers_and_the_line_of_the_worse(self, drawn: list[Any]) -> None:
        evaluation_page(evaluation(bare("a", distribution=Distribution((-1.0, 0.0, 1.0), (1, 2), (2, 1)))))
        better, worse = drawn[0].patches
        assert (better.get_data().values.tolist(), better.get_label(), better.get_fill()) == ([1, 2], "better answers", True)
        assert (worse.get_data().values.tolist(), worse.get_label(), worse.get_fill()) == ([2, 1], "worse answers", False)
        assert better.get_data().edges.tolist() == worse.get_data().edges.tolist() == [-1, 0, 1]

    @pytest.mark.parametrize("pairs", [1, 2, 3])
    def test_of_few_pairs_there_are_whole_ticks(self, drawn: list[Any], pairs: int) -> None:
        found = Distribution((0.0, 1.0), (pairs,), (0,))
        scatter = LengthScatter((1.0, 1.0 + pairs), (0.0, 1.0), (1.0, 1.0 + pairs), (0.0, 1.0))
        evaluation_page(evaluation(bare("a", distribution=found, length_scatter=scatter)))
        for axes in (drawn[0].xaxis, drawn[1].yaxis):
            shown = [axes.get_major_formatter()(place, 0) for place in axes.get_majorticklocs()]
            assert len(shown) == len(set(shown)) > 1

    def test_calibration_goes_from_what_is_predicted_to_what_comes_true(self, drawn: list[Any]) -> None:
        bins = (CalibrationBin(0.0, 0.5, 10, 0.25, 0.375), CalibrationBin(0.5, 1.0, 40, 0.75, 0.625))
        page = evaluation_page(evaluation(bare("a", calibration=bins)))
        (axes,) = drawn
        assert lines(axes, "o") == [[(0.25, 0.375), (0.75, 0.625)]]
        assert lines(axes) == [[(0, 0), (1, 1)]]
        bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in axes.patches]
        assert bars == [pytest.approx((0, 0.5, 0.05)), pytest.approx((0.5, 0.5, 0.2))]
        assert axes.get_xlabel() == "win probability" and axes.get_ylabel() == "comes true"
        assert rows_of(page, "Calibration") == [
            ["0.0% to 50.0%", "10", "25.0%", "37.5%"],
            ["50.0% to 100.0%", "40", "75.0%", "62.5%"],
        ]

    def test_points_are_answers_and_the_line_is_the_curve(self, drawn: list[Any]) -> None:
        found = LengthScatter((10.0, 30.0, 20.0), (1.0, 3.0, -2.0), (10.0, 30.0), (0.5, 1.5))
        evaluation_page(evaluation(bare("a", length_scatter=found)))
        (axes,) = drawn
        assert lines(axes, "o") == [[(10, 1), (30, 3), (20, -2)]]
        assert lines(axes) == [[(10, 0.5), (30, 1.5)]]

    def test_best_of_n_is_over_the_root_of_the_divergence(self, drawn: list[Any]) -> None:
        found = BestOfN("label", 9, (1, 2, 8), (0.0, 0.25, 1.0), (LOW, UNSURE, HIGH), (0.25, 0.625, 1.0))
        sure = replace(found, mean=(LOW, replace(UNSURE, low=0.375, high=0.625), HIGH))
        page = evaluation_page(evaluation(bare("a", best_of_n=sure)))
        (axes,) = drawn
        assert lines(axes, "o") == [[(0, 0.25), (0.5, 0.5), (1, 0.75)]]
        assert lines(axes) == [[(0, 0.25), (0.5, 0.625), (1, 1)]], "the best that there is"
        band = {tuple(point) for point in axes.collections[0].get_paths()[0].vertices.tolist()}
        assert band == {(0, 0.125), (0, 0.375), (0.5, 0.375), (0.5, 0.625), (1, 0.625), (1, 0.875)}
        assert axes.get_xticks().tolist() == [0, 0.5, 1]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "8"]
        assert rows_of(page, "Best of n")[1] == ["2", "0.250", "0.500[0.375, 0.625]", "0.625"]

    def test_cells_of_members_are_as_warm_as_they_agree_above_chance(self) -> None:
        members = Members(("m/0", "m/1"), (0.75, 0.5), ((1.0, 0.625), (0.25, 1.0)), 0.625, 0.875, 0.375)
        page = evaluation_page(evaluation(bare("a", members=members)))
        found = re.findall(r'class="heat" style="--warmth:(\d+)%">([\d.]+%)<', page)
        assert found == [("50", "100.0%"), ("12", "62.5%"), ("0", "25.0%"), ("50", "100.0%")]
        assert rows_of(page, "Agreement of members") == [
            ["m/0", "75.0%", "100.0%", "62.5%"],
            ["m/1", "50.0%", "25.0%", "100.0%"],
        ]
        facts = re.findall("<dt>([^<]*)</dt><dd>([^<]*%)</dd>", page)
        assert facts[:3] == [
            ("All agree", "62.5%"),
            ("Accuracy where all agree", "87.5%"),
            ("Accuracy where they do not", "37.5%"),
        ]

    @pytest.mark.parametrize(("worse", "better"), [(-1.7e308, 1.7e308), (-1e300, 1e300), (1 - 1.1e-16, 1.0), (0.0, 5e-324)])
    def test_an_evaluation_of_rewards_at_the_ends_of_what_a_float_can_be_has_a_page(self, worse: float, better: float) -> None:
        class Made(rm.Provider):
            name = "made"

            def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
                return rm.Scores(np.array([better if "b" in str(sample.completion) else worse for sample in samples]))

        rows = [
            {"prompt": f"{place}", "chosen": "b" * (1 + place % 7), "rejected": "w" * (1 + place % 5)} for place in range(20)
        ]
        found = evaluate(Made(), rows, resamples=20)
        assert "100.0%" in evaluation_page(found)

    @pytest.mark.parametrize("largest", [1e300, 1.7e308])
    def test_rewards_near_the_largest_floats_have_a_page(self, largest: float) -> None:
        edges = (-largest, 0.0, largest)
        found = Distribution(edges, (1, 2), (2, 1))
        scatter = LengthScatter((1.0, 2.0, 3.0), edges, (1.0, 3.0), (-largest, largest))
        gold = Estimate(largest, -largest, largest)
        best = BestOfN("score", 9, (1, 2), (0.0, 0.25), (gold, gold), (0.0, largest))
        page = evaluation_page(evaluation(bare("a", distribution=found, length_scatter=scatter, best_of_n=best)))
        assert (page.count("too large for a chart"), page.count("<svg")) == ((0, 3) if largest == 1e300 else (3, 0))

    def test_rewards_that_differ_by_their_rounding_have_charts(self) -> None:
        below = 1 - 1.1e-16
        found = Distribution((below, 1.0), (3,), (3,))
        scatter = LengthScatter((1.0, 2.0, 3.0), (1.0, below, 1.0), (1.0, 3.0), (1.0, 1.0))
        assert evaluation_page(evaluation(bare("a", distribution=found, length_scatter=scatter))).count("<svg") == 2


class TestTwoRewards:
    def pair(self) -> FlippedPair:
        return FlippedPair(JudgedPair(7, "chat", "why", "because", "so", 1.5, -0.5, 70, 20), 0.25, 0.75)

    def difference(self) -> Difference:
        sections = {"chat": Estimate(0.125, 0.0625, 0.1875), "code": Estimate(-0.25, -0.375, -0.125)}
        accuracy = Estimate(0.03, 0.01, 0.05)
        return Difference("a", "b", 400, accuracy, 0.004, 11, 23, sections, (self.pair(),), (self.pair(),))

    def test_every_cell_of_the_comparison_is_where_it_belongs(self, drawn: list[Any]) -> None:
        page = evaluation_page(evaluation(bare("a"), bare("b"), differences=[self.difference()]))
        shown = rows_of(page, "Comparisons of rewards")
        assert shown == [["■b against ●a", "+3.0[+1.0, +5.0]", "0.0040", "better", "23", "11", "400"]]
        heads = re.findall('<th scope="col">(.*?)</th>', page.partition('aria-label="Comparisons of rewards"')[2])[:7]
        assert [re.sub("<[^>]*>", "", head) for head in heads[4:]] == ["Only it is right", "Only the other is right", "Pairs"]
        (axes,) = drawn
        assert lines(axes, "s") == [[(0.125, 0), (-0.25, 1)]]
        assert spans(axes, 1) == [[[0.0625, 0], [0.1875, 0]], [[-0.375, 1], [-0.125, 1]]]
        assert zeros(axes) == [0]

    def test_flipped_pairs_have_what_each_reward_gave_each_answer(self) -> None:
        page = comparison_page(evaluation(bare("a"), bare("b"), differences=[self.difference()]))
        for name in ("won", "lost"):
            shown = re.sub("<[^>]*>", "", page.partition(f'<section id="{name}">')[2].partition("</section>")[0])
            assert "Row 7, chat" in shown
            assert "Better answer: ●a 0.250, ■b 1.50, 70 charactersbecause" in shown
            assert "Worse answer: ●a 0.750, ■b −0.500, 20 charactersso" in shown

    def test_the_same_pair_among_the_mistakes_has_the_rewards_of_its_own(self) -> None:
        pair = replace(self.pair().pair, chosen_reward=-1.5, rejected_reward=0.5)
        page = evaluation_page(evaluation(bare("a", mistakes=(pair,))))
        assert "better −1.50, worse 0.500" in page
        assert "Better answer: reward −1.50, 70 characters" in page and "Worse answer: reward 0.500, 20 characters" in page


def test_what_is_drawn_is_of_this_evaluation(drawn: list[Any]) -> None:
    found = evaluation_of()
    evaluation_page(found)
    sections, by_length, *each = drawn[1:]
    for reward, marker in zip(found.rewards, "os^", strict=True):
        assert [x for x, _ in lines(sections, marker)[0]] == [part.accuracy.value for part in reward.sections]
        assert [x for x, _ in lines(by_length, marker)[0]] == [part.accuracy.value for part in reward.by_length]
    for reward, scatter, histogram in zip(found.rewards, each[:3], each[3:6], strict=True):
        assert reward.length_scatter is not None and reward.distribution is not None
        assert scatter.lines[0].get_ydata().tolist() == list(reward.length_scatter.rewards)
        assert np.array_equal(histogram.patches[0].get_data().values, reward.distribution.chosen)
