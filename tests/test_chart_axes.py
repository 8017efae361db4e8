"""Axes of rewards that hardly differ, and bands that differ without their colours."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from rm_plugins.evaluation import evaluate
from rm_plugins.reports import evaluation_page
from rm_plugins.reports.best_of_n_page import BestOfNCurve, best_of_n_page
from rm_plugins.reports.charts import COLOURS, HATCHES, LINES, around_one_value
from rm_plugins.reports.training_charts import curves_svg
from rm_plugins.statistics.intervals import Estimate
from rm_plugins.training.journal_summary import Curve
from tests.test_evaluation import made_pairs, reward

pytest.importorskip("matplotlib", reason="matplotlib, which draws the charts, is not installed")

OFFSET = re.compile(r">[+−-]?[\d.]+e[+−-]?\d+[+−]\d")  # matplotlib's 1e-12+5e-1 at the end of an axis


def ticks(page: str) -> list[str]:
    return re.findall(r"<text[^>]*>([−\d.,e+-]+)</text>", page)


@pytest.mark.parametrize("noise", [0.0, 1e-12])
@pytest.mark.parametrize("value", [0.5, -3.0, 1e6])
def test_rewards_that_are_one_value_do_not_have_an_axis_of_rounding(value: float, noise: float) -> None:
    rng = np.random.default_rng(0)
    (result,) = evaluate(
        reward(lambda one: value * (1 + noise * rng.random())), made_pairs(40, longer=0.5), resamples=2
    ).rewards
    assert result.distribution is not None and result.length_scatter is None
    edges = result.distribution.edges
    assert edges[0] <= value - 0.5 + 1e-6 and edges[-1] >= value + 0.5 - 1e-6


def test_a_page_of_a_constant_reward_has_no_offset_on_an_axis() -> None:
    rng = np.random.default_rng(0)
    nearly = evaluate(reward(lambda one: 0.5 + 1e-12 * rng.random()), made_pairs(40, longer=0.5), resamples=2)
    assert not OFFSET.search(evaluation_page(nearly))


def curve(proxy: list[float], gold: list[float]) -> BestOfNCurve:
    by_proxy, by_gold = (tuple(Estimate(value, value - 1e-13, value + 1e-13) for value in values) for values in (proxy, gold))
    kl = tuple(float(np.log(n) - (n - 1) / n) for n in (1, 2, 4))
    return BestOfNCurve("proxy", "gold", "x.jsonl", "", 9, 0, (1, 2, 4), kl, by_proxy, by_gold, (1.0, 1.0, 1.0))


def test_a_constant_best_of_n_is_a_line_in_the_middle() -> None:
    page = best_of_n_page(curve([1e6, 1e6 + 1e-9, 1e6], [1.0, 1.0, 1.0 + 1e-15]))
    assert not OFFSET.search(page)
    assert {"0.6", "1.0", "1.4"} <= set(ticks(page)), ticks(page)


def test_two_bands_differ_in_pattern_and_two_lines_in_style() -> None:
    page = best_of_n_page(curve([0.0, 1.0, 2.0], [0.0, 1.0, 1.5]))
    assert page.count("<pattern") == 1, "the second band is hatched and the first is not"
    assert COLOURS[1] in page.partition("<pattern")[2].partition("</pattern>")[0]
    assert "stroke-dasharray" in page
    assert len(set(HATCHES)) == len(HATCHES) and len(set(map(str, LINES))) == len(LINES)


def test_the_curves_of_members_differ_in_style() -> None:
    steps = list(range(50))
    curves = {f"member {number}": Curve(steps, np.linspace(0, number, 50)) for number in range(4)}
    drawn = curves_svg(curves)
    assert len(set(re.findall(r"stroke-dasharray: [\d., ]+", drawn))) >= 3


def test_a_training_of_one_step_has_whole_steps_on_its_axis() -> None:
    drawn = curves_svg({"reward": Curve([7], np.array([0.25]))})
    assert {"6", "7", "8"} <= set(ticks(drawn))
    assert not any(re.fullmatch(r"\d+\.\d+", tick) and 6 < float(tick) < 8 for tick in ticks(drawn))


@pytest.mark.parametrize("values", [[], [float("nan")], [0.1, 0.2], [-1.0, 1.0], [1e-9, 2e-9]])
def test_values_that_differ_keep_their_axis(values: list[Any]) -> None:
    assert around_one_value(values) is None
