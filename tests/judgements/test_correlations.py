"""Correlations, AUC and calibration, each beside a plain loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rm_plugins.evaluation import (
    auc,
    brier_score,
    expected_calibration_error,
    pearson,
    spearman,
)
from tests.judgements.metric_loops import NAN, ece_in_a_loop, pearson_in_a_loop, rows, sigmoid

FLOATS = st.floats(-50, 50).map(lambda value: round(value, 1))  # with ties, and without differences that rounding makes


@st.composite
def two_columns(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    size = draw(st.integers(1, 30))
    column = st.lists(FLOATS, min_size=size, max_size=size)
    return draw(column), draw(column)


def ranks_in_a_loop(x: Sequence[float]) -> list[float]:
    return [1 + sum(b < a for b in x) + (sum(b == a for b in x) - 1) / 2 for a in x]


class TestPearson:
    def test_by_hand(self) -> None:
        # dx = -1.5, -.5, .5, 1.5 and dy = -1.5, .5, -.5, 1.5: 4 / sqrt(5 * 5)
        assert pearson([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8, abs=1e-12)
        assert pearson([0, 1, 2], [5, 3, 1]) == pytest.approx(-1, abs=1e-12)

    @given(two_columns())
    def test_is_the_loop(self, columns: tuple[list[float], list[float]]) -> None:
        x, y = columns
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert pearson(x, y) == pytest.approx(pearson_in_a_loop(x, y), abs=1e-9)
        else:
            assert math.isnan(pearson(x, y))

    @pytest.mark.parametrize("values", [[], [3.0], [0.1] * 7, [NAN, 1.0, 2.0], [math.inf, 1.0, 2.0]])
    def test_there_is_none(self, values: list[float]) -> None:
        other = list(range(len(values)))
        assert math.isnan(pearson(values, other))
        assert math.isnan(pearson(other, values))

    @pytest.mark.parametrize("scale", [1e-200, 1e200])
    def test_neither_overflows_nor_vanishes(self, scale: float) -> None:
        assert pearson(scale * rows(1, 2, 3, 4), scale * rows(1, 3, 2, 4)) == pytest.approx(0.8, abs=1e-12)

    def test_never_leaves_its_range(self) -> None:
        values = rows(2, 1.6, 1.9, 0.8)  # of which rounding makes 1 + 2e-16
        assert pearson(values, values * 6.1) == 1
        assert pearson(values, values * -6.1) == -1


class TestSpearman:
    def test_by_hand(self) -> None:
        # Without ties: 1 - 6 * sum d^2 / (n (n^2 - 1)), with d = 0, -1, 1, 0.
        assert spearman([1, 20, 300, 4000], [0.1, 0.3, 0.2, 0.9]) == pytest.approx(1 - 6 * 2 / (4 * 15), abs=1e-12)

    def test_equal_values_share_the_mean_of_their_ranks(self) -> None:
        # Ranks 1, 2.5, 2.5, 4 beside 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
        assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5), abs=1e-12)

    @given(two_columns())
    def test_is_the_loop(self, columns: tuple[list[float], list[float]]) -> None:
        x, y = columns
        if len(set(x)) > 1 and len(set(y)) > 1:
            expected = pearson_in_a_loop(ranks_in_a_loop(x), ranks_in_a_loop(y))
            assert spearman(x, y) == pytest.approx(expected, abs=1e-9)
        else:
            assert math.isnan(spearman(x, y))

    def test_nan_has_no_rank(self) -> None:
        assert math.isnan(spearman([1, NAN, 3], [1, 2, 3]))


class TestAuc:
    def test_by_hand(self) -> None:
        # Of the pairs (2, 1), (2, 2), (3, 1), (3, 2) three are won and one is a tie.
        assert auc([1, 2, 2, 3], [0, 0, 1, 1]) == pytest.approx(3.5 / 4, abs=1e-12)

    @given(st.lists(st.tuples(FLOATS, st.sampled_from([0, 1])), max_size=30))
    def test_is_the_loop(self, drawn: list[tuple[float, int]]) -> None:
        positives = [score for score, label in drawn if label]
        negatives = [score for score, label in drawn if not label]
        found = auc([score for score, _ in drawn], [label for _, label in drawn])
        if positives and negatives:
            wins = sum((p > q) + (p == q) / 2 for p in positives for q in negatives)
            assert found == pytest.approx(wins / len(positives) / len(negatives), abs=1e-9)
        else:
            assert math.isnan(found)

    def test_nan_has_no_rank(self) -> None:
        assert math.isnan(auc([1, NAN], [0, 1]))


class TestExpectedCalibrationError:
    def test_a_reward_that_is_right_as_often_as_it_says(self) -> None:
        # sigmoid(log 3) = 0.75: right three times of four
        assert expected_calibration_error(math.log(3) * rows(1, 1, 1, -1)) == pytest.approx(0, abs=1e-12)

    def test_a_reward_that_is_right_more_and_less_often_than_it_says(self) -> None:
        assert expected_calibration_error(math.log(3) * rows(1, 1)) == pytest.approx(0.25, abs=1e-12)
        assert expected_calibration_error(math.log(3) * rows(-1, -1)) == pytest.approx(0.75, abs=1e-12)

    def test_errors_of_different_bins_do_not_cancel(self) -> None:
        # 0.75 and always right, 0.95 and always wrong, two pairs of the first to one of the second
        sure = math.log(0.95 / 0.05) + 1e-6  # not on the bin's edge
        found = expected_calibration_error([math.log(3), math.log(3), -sure])
        assert found == pytest.approx((2 * 0.25 + 0.95) / 3, abs=1e-6)

    def test_errors_of_one_bin_cancel(self) -> None:
        # 0.76 and 0.74 are one of 20 bins only if the edge between them, 0.75, is not one of them: it is
        above, below = math.log(0.76 / 0.24), math.log(0.74 / 0.26)
        assert expected_calibration_error([above, -below]) == pytest.approx((0.24 + 0.74) / 2, abs=1e-12)
        assert expected_calibration_error([above, -below], bins=10) == pytest.approx(abs(0.24 - 0.74) / 2, abs=1e-12)

    def test_a_tie_is_calibrated(self) -> None:
        assert expected_calibration_error([0.0, 0.0, 0.0]) == 0

    def test_which_answer_comes_first_does_not_matter(self) -> None:
        # The two points of a pair are one and the same pair of points, whichever is called the first.
        found = expected_calibration_error([0.3, -1.2, 2.2])
        points = rows(sigmoid(0.3), sigmoid(-1.2), sigmoid(2.2), sigmoid(-0.3), sigmoid(1.2), sigmoid(-2.2))
        outcomes = rows(1, 1, 1, 0, 0, 0)
        for order in ([0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2]):
            gaps = np.zeros(20)
            np.add.at(gaps, (points[order] * 20).astype(int), (points - outcomes)[order])
            assert found == pytest.approx(np.abs(gaps).sum() / 6, abs=1e-12)

    @given(st.lists(st.floats(-20, 20), min_size=1, max_size=30), st.integers(1, 25))
    def test_is_the_loop(self, delta: list[float], bins: int) -> None:
        # Rounding decides which bin has a probability on an edge: those are left to the tests above.
        edges = [abs(sigmoid(sign * d) * bins - round(sigmoid(sign * d) * bins)) for d in delta for sign in (-1, 1)]
        if min(edges) > 1e-9:
            assert expected_calibration_error(delta, bins) == pytest.approx(ece_in_a_loop(delta, bins), abs=1e-9)

    def test_large_differences_do_not_overflow(self) -> None:
        assert expected_calibration_error([1e4, 1e300]) == 0
        assert expected_calibration_error([-1e4, -1e300]) == 1

    def test_certainty_is_of_the_last_bin(self) -> None:
        # Certain and wrong, 0.96 and right: both are of [0.95, 1], where 0.04 is taken off 1.
        assert expected_calibration_error([-1e4, math.log(0.96 / 0.04)]) == pytest.approx(0.96 / 2, abs=1e-12)

    def test_of_nothing_and_of_nan(self) -> None:
        assert math.isnan(expected_calibration_error([]))
        assert math.isnan(expected_calibration_error([1.0, NAN]))


class TestBrierScore:
    def test_by_hand(self) -> None:
        assert brier_score([math.log(3), -math.log(3)]) == pytest.approx((0.25**2 + 0.75**2) / 2, abs=1e-12)
        assert brier_score([0.0]) == 0.25

    def test_far_out(self) -> None:
        assert (brier_score([1e300]), brier_score([-1e300])) == (0, 1)
        assert math.isnan(brier_score([]))
        assert math.isnan(brier_score([NAN]))


class TestAgainstOthers:
    """What others compute, where they are installed."""

    def random(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        numbers = np.random.default_rng(0)
        x = numbers.normal(size=500).round(1)  # with many ties
        return x, (x + numbers.normal(size=500)).round(1)

    def test_scipy(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        x, y = self.random()
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)

    def test_scikit_learn(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        calibration = pytest.importorskip("sklearn.calibration")
        x, y = self.random()
        label = (y > 0.3).astype(int)
        assert auc(x, label) == pytest.approx(metrics.roc_auc_score(label, x), abs=1e-12)
        delta = x + 0.0123  # which leaves no probability on a bin's edge: scikit-learn's bins have their upper end
        p = 1 / (1 + np.exp(-delta))
        assert brier_score(delta) == pytest.approx(metrics.brier_score_loss(np.ones(500), p), abs=1e-12)
        both, outcome = np.r_[p, 1 - p], np.r_[np.ones(500), np.zeros(500)]
        rate, mean = calibration.calibration_curve(outcome, both, n_bins=10)
        share = np.bincount(np.minimum((both * 10).astype(int), 9), minlength=10) / 1000
        expected = (share[share > 0] * np.abs(rate - mean)).sum()
        assert expected_calibration_error(delta, 10) == pytest.approx(expected, abs=1e-12)
