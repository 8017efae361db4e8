"""Metrics of scores against scikit-learn and SciPy, and where there is nothing to measure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from rm_plugins.errors import DataError
from rm_plugins.statistics.metrics import (
    agreement,
    auc,
    best_of,
    brier_score,
    calibration_curve,
    expected_calibration_error,
    kendall,
    log_loss,
    ndcg,
    pearson,
    spearman,
)

NAN, INF = math.nan, math.inf
SCORES = st.floats(-20, 20).map(lambda value: round(value, 1))  # with ties
Columns = tuple[list[float], list[float]]

few_examples = settings(max_examples=60)


def columns(other: st.SearchStrategy[float], least: int = 2) -> st.SearchStrategy[Columns]:
    return st.lists(st.tuples(SCORES, other), min_size=least, max_size=25).map(
        lambda rows: ([row[0] for row in rows], [row[1] for row in rows])
    )


def sigmoid(delta: Sequence[float]) -> NDArray[np.float64]:
    return np.array([1 / (1 + math.exp(-value)) for value in delta])


class TestCorrelations:
    @few_examples
    @given(columns(SCORES))
    def test_are_scipys(self, drawn: Columns) -> None:
        x, y = drawn
        if len(set(x)) == 1 or len(set(y)) == 1:
            assert all(math.isnan(found(x, y)) for found in (pearson, spearman, kendall))
        else:
            assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
            assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
            assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)

    def test_kendalls_is_the_count_of_couples(self) -> None:
        x, y = [1, 2, 2, 3, 5], [2, 1, 4, 4, 3]
        couples = list(itertools.combinations(zip(x, y, strict=True), 2))
        agree = sum((a - c) * (b - d) > 0 for (a, b), (c, d) in couples)
        differ = sum((a - c) * (b - d) < 0 for (a, b), (c, d) in couples)
        tied_x, tied_y = (sum(one[column] == other[column] for one, other in couples) for column in (0, 1))
        expected = (agree - differ) / math.sqrt((len(couples) - tied_x) * (len(couples) - tied_y))
        assert kendall(x, y) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("values", [[], [1.0], [7.0, 7.0, 7.0], [NAN, 1.0, 2.0], [INF, INF]])
    def test_kendalls_is_not_there(self, values: list[float]) -> None:
        other = list(range(len(values)))
        assert math.isnan(kendall(values, other))
        assert math.isnan(kendall(other, values))

    def test_kendalls_takes_infinities_for_what_they_are(self) -> None:
        assert kendall([1, INF, -INF], [2, 3, 1]) == pytest.approx(1)


class TestOfLabels:
    @few_examples
    @given(columns(st.sampled_from([0.0, 1.0])))
    def test_auc_is_scikit_learns(self, drawn: Columns) -> None:
        scores, labels = drawn
        if len(set(labels)) == 2:
            assert auc(scores, labels) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12)
        else:
            assert math.isnan(auc(scores, labels))

    @few_examples
    @given(st.lists(SCORES, min_size=1, max_size=25))
    def test_brier_score_and_log_loss_are_scikit_learns(self, delta: list[float]) -> None:
        right = np.ones(len(delta))
        probability = sigmoid(delta)
        assert brier_score(delta) == pytest.approx(sklearn.metrics.brier_score_loss(right, probability), abs=1e-12)
        expected = sklearn.metrics.log_loss(right, probability, labels=[0, 1])
        assert log_loss(delta) == pytest.approx(expected, rel=1e-6)

    def test_log_loss_of_a_reward_that_knows_nothing(self) -> None:
        assert log_loss([0.0, 0.0]) == pytest.approx(math.log(2), abs=1e-15)

    def test_log_loss_far_out(self) -> None:
        assert log_loss([1e300]) == 0
        assert log_loss([-1e300]) == 1e300
        assert log_loss([INF]) == 0
        assert log_loss([-INF]) == INF

    def test_log_loss_of_nothing_and_of_nan(self) -> None:
        assert math.isnan(log_loss([]))
        assert math.isnan(log_loss([1.0, NAN]))


class TestCalibrationCurve:
    @few_examples
    @given(st.lists(SCORES, min_size=1, max_size=40), st.integers(1, 25))
    def test_is_the_loop(self, delta: list[float], bins: int) -> None:
        probability = [(1 + math.tanh(sign * d / 2)) / 2 for d in delta for sign in (1, -1)]  # as they round, on an edge too
        entries = list(zip(probability, [1, 0] * len(delta), strict=True))
        curve = calibration_curve(delta, bins)
        where = [min(int(p * bins), bins - 1) for p, _ in entries]
        assert [found.low for found in curve] == [number / bins for number in sorted(set(where))]
        for found in curve:
            inside = [entry for entry, number in zip(entries, where, strict=True) if number / bins == found.low]
            assert found.high == pytest.approx(found.low + 1 / bins)
            assert found.pairs == len(inside)
            assert found.predicted == pytest.approx(np.mean([p for p, _ in inside]), abs=1e-12)
            assert found.observed == pytest.approx(np.mean([y for _, y in inside]), abs=1e-12)

    @few_examples
    @given(st.lists(SCORES, min_size=1, max_size=40), st.integers(1, 25))
    def test_the_error_is_its_mean_gap(self, delta: list[float], bins: int) -> None:
        curve = calibration_curve(delta, bins)
        gaps = [abs(found.predicted - found.observed) for found in curve]
        expected = np.average(gaps, weights=[found.pairs for found in curve])
        assert expected_calibration_error(delta, bins) == pytest.approx(expected, abs=1e-12)

    def test_has_each_pair_twice_and_no_empty_bin(self) -> None:
        curve = calibration_curve([3.0, 3.0, -3.0, 1000.0])
        assert sum(found.pairs for found in curve) == 8
        assert [(found.low, found.high) for found in curve] == [(0.0, 0.05), (0.95, 1.0)]
        assert [found.observed for found in curve] == [1 / 4, 3 / 4]

    def test_of_nothing_and_of_nan(self) -> None:
        assert calibration_curve([]) == []
        assert calibration_curve([1.0, NAN]) == []


class TestNdcg:
    @few_examples
    @given(columns(st.sampled_from([0.0, 0.5, 1.0, 3.0])))
    def test_is_scikit_learns(self, drawn: Columns) -> None:
        scores, gains = drawn
        if any(gains):
            assert ndcg(scores, gains) == pytest.approx(sklearn.metrics.ndcg_score([gains], [scores]), abs=1e-12)
        else:
            assert math.isnan(ndcg(scores, gains))

    @pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 20])
    def test_of_the_first_places_is_scikit_learns(self, k: int) -> None:
        rng = np.random.default_rng(k)
        for _ in range(20):
            scores, gains = rng.integers(0, 5, 8).astype(np.float64), rng.random(8)
            assert ndcg(scores, gains, k) == pytest.approx(sklearn.metrics.ndcg_score([gains], [scores], k=k), abs=1e-12)

    def test_equal_scores_have_the_mean_over_their_orders(self) -> None:
        gains = [3.0, 0.0, 1.0]
        orders = [ndcg([3.0, 2.0, 1.0], list(order)) for order in itertools.permutations(gains)]
        assert ndcg([5.0, 5.0, 5.0], gains) == pytest.approx(np.mean(orders))

    @pytest.mark.parametrize(
        ("scores", "gains"),
        [
            ([], []),
            ([1.0], [1.0]),
            ([1.0, 2.0], [0.0, 0.0]),
            ([1.0, NAN], [1.0, 0.0]),
            ([1.0, 2.0], [1.0, NAN]),
            ([1.0, 2.0], [1.0, INF]),
        ],
    )
    def test_there_is_none(self, scores: list[float], gains: list[float]) -> None:
        assert math.isnan(ndcg(scores, gains))

    def test_far_out(self) -> None:
        assert ndcg([INF, 0.0, -INF], [3.0, 2.0, 1.0]) == 1
        assert ndcg([3.0, 2.0, 1.0], [1e308, 1e308, 1e308]) == 1

    def test_gains_are_not_negative_and_there_is_a_first_place(self) -> None:
        with pytest.raises(DataError, match="the least here is -1"):
            ndcg([1.0, 2.0], [1.0, -1.0])
        with pytest.raises(DataError, match="k=0"):
            ndcg([1.0, 2.0], [1.0, 0.0], k=0)


class TestBestOf:
    def test_the_highest_scored(self) -> None:
        assert best_of([0.1, 0.9, 0.5], [1.0, 2.0, 3.0]) == 2
        assert best_of([-INF, INF], [1.0, 2.0]) == 2

    def test_equal_scores_share(self) -> None:
        assert best_of([0.9, 0.9, 0.5], [1.0, 0.0, 7.0]) == 0.5  # RewardBench 2: one of two that score highest is right
        assert best_of([0.0] * 4, [1.0, 0.0, 0.0, 0.0]) == 0.25

    @pytest.mark.parametrize(("scores", "gold"), [([], []), ([1.0, NAN], [1.0, 2.0]), ([2.0, 1.0], [1.0, NAN])])
    def test_there_is_none(self, scores: list[float], gold: list[float]) -> None:
        assert math.isnan(best_of(scores, gold))


class TestAgreement:
    @few_examples
    @given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 1000))
    def test_is_the_loop(self, members: int, pairs: int, seed: int) -> None:
        deltas = np.random.default_rng(seed).integers(-1, 2, (members, pairs)).astype(np.float64)
        expected = [[(np.sign(one) == np.sign(other)).mean() for other in deltas] for one in deltas]
        assert agreement(deltas * 1e300) == pytest.approx(np.array(expected))

    def test_a_tie_agrees_with_a_tie_alone(self) -> None:
        assert agreement([[0.0, 0.0, 0.0], [0.0, 1.0, -1.0]])[0, 1] == pytest.approx(1 / 3)

    def test_nan_is_of_its_member_alone(self) -> None:
        found = agreement([[1.0, 2.0], [NAN, 2.0], [-1.0, 2.0]])
        assert np.isnan(found).tolist() == [[False, True, False], [True, True, True], [False, True, False]]
        assert found[0, 2] == 0.5

    def test_of_no_pair(self) -> None:
        assert np.isnan(agreement(np.empty((2, 0)))).all()


@pytest.mark.parametrize("metric", [pearson, spearman, kendall, ndcg, best_of])
def test_the_inputs_stay_as_they_were(metric: Callable[[NDArray[np.float64], NDArray[np.float64]], float]) -> None:
    x, y = np.array([3.0, 1.0, 2.0]), np.array([0.0, 4.0, 1.0])
    metric(x, y)
    assert (x.tolist(), y.tolist()) == ([3, 1, 2], [0, 4, 1])
