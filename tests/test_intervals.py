"""Intervals have the truth in them as often as they say, prompts with several pairs included, and tests are the known ones."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from rm_plugins.errors import DataError
from rm_plugins.statistics.intervals import (
    Estimate,
    bootstrap,
    correlation_estimate,
    mean_estimate,
    mean_estimates,
    paired_test,
    share_estimate,
    share_estimates,
)
from rm_plugins.statistics.metrics import pearson
from rm_plugins.statistics.ranks import mean_ranks

NAN = math.nan
OUTCOMES = st.sampled_from([0.0, 1.0])

few_examples = settings(max_examples=50)


def ratio(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    quotient: NDArray[np.float64] = totals[:, 0] / totals[:, 1]
    return quotient


def right_together(rng: np.random.Generator, prompts: int, pairs: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Outcomes of pairs whose prompts are easy (90% right) or hard (30%), half of each: 60% in all."""
    chance = np.where(rng.random(prompts) < 0.5, 0.9, 0.3)
    return (rng.random((prompts, pairs)) < chance[:, None]).astype(np.float64).ravel(), np.repeat(np.arange(prompts), pairs)


def coverage(found: list[Estimate], truth: float) -> float:
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in found]))


class TestEstimate:
    def test_reads_as_a_number_and_its_interval(self) -> None:
        assert str(Estimate(0.8123, 0.79, 0.8333)) == "0.812 [0.790, 0.833]"
        assert str(Estimate(0.5, NAN, NAN)) == "0.500"
        assert str(Estimate(NAN, NAN, NAN)) == "nan"


class TestBootstrap:
    def test_the_interval_of_a_mean_is_scipys(self) -> None:
        values = np.random.default_rng(0).exponential(size=200)
        found = bootstrap(np.stack([values, np.ones(200)], axis=1), ratio, resamples=4000)
        other = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
        interval = other.confidence_interval
        width = interval.high - interval.low
        assert found.value == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.05 * width)

    def test_draws_as_many_clusters_as_there_are(self) -> None:
        # Each of 3 clusters is drawn as often as the multinomial distribution says; the number drawn is always 3.
        seen: list[NDArray[np.float64]] = []

        def statistic(totals: NDArray[np.float64]) -> NDArray[np.float64]:
            seen.append(totals)
            return totals[:, 0]

        bootstrap(np.eye(3), statistic, resamples=20_000)
        times = seen[1]
        assert (times.sum(axis=1) == 3).all()
        multinomial = stats.multinomial(3, [1 / 3] * 3)
        for drawn in itertools.product(range(4), repeat=3):
            if sum(drawn) == 3:
                assert (times == drawn).all(axis=1).mean() == pytest.approx(multinomial.pmf(drawn), abs=0.01)

    def test_the_seed_decides(self) -> None:
        sums = np.random.default_rng(0).random((30, 2)) + 1
        assert bootstrap(sums, ratio, seed=3) == bootstrap(sums, ratio, seed=3)
        assert bootstrap(sums, ratio, seed=3) != bootstrap(sums, ratio, seed=4)

    def test_more_confidence_is_a_wider_interval(self) -> None:
        sums = np.random.default_rng(0).random((30, 2)) + 1
        narrow, wide = (bootstrap(sums, ratio, confidence=confidence) for confidence in (0.5, 0.99))
        assert wide.low < narrow.low < narrow.value < narrow.high < wide.high

    @pytest.mark.parametrize("sums", [np.empty((0, 2)), [[1.0, 2.0]]])
    def test_fewer_than_two_clusters_have_no_interval(self, sums: Any) -> None:
        found = bootstrap(sums, ratio)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert found.value == 0.5 if len(sums) else math.isnan(found.value)

    @pytest.mark.parametrize("broken", [NAN, math.inf])
    def test_what_is_no_number_makes_no_interval(self, broken: float) -> None:
        found = bootstrap([[broken, 1.0], [1.0, 1.0], [2.0, 1.0]], ratio)
        assert not math.isfinite(found.value)
        assert math.isnan(found.low)
        assert math.isnan(found.high)

    def test_a_resample_without_value_is_left_out_and_many_are_no_distribution(self) -> None:
        # Only one of the clusters has anything to divide by; a resample is without it in (1 - 1/C)^C of all cases, over a third.
        rare = np.array([[1.0, 1.0], *([[0.0, 0.0]] * 9)])
        assert math.isnan(bootstrap(rare, ratio).low)
        common = np.array([[1.0, 1.0]] * 5 + [[0.0, 0.0]] * 5)  # in (1/2)^10
        assert (bootstrap(common, ratio).low, bootstrap(common, ratio).high) == (1, 1)

    @pytest.mark.parametrize("settings", [{"resamples": 0}, {"confidence": 0.0}, {"confidence": 1.0}, {"confidence": NAN}])
    def test_settings_out_of_range(self, settings: dict[str, Any]) -> None:
        with pytest.raises(DataError, match="allowed are 1 resample or more"):
            bootstrap([[1.0, 1.0]], ratio, **settings)

    def test_twenty_thousand_clusters_are_quick(self) -> None:
        sums = np.random.default_rng(0).random((20_000, 6)) + 1
        start = time.process_time()
        bootstrap(sums, ratio)
        assert time.process_time() - start < 3  # it takes about a third of a second

    def test_memory_does_not_grow_with_the_resamples(self) -> None:
        sums = np.ones((200_000, 2))
        tracemalloc.start()
        bootstrap(sums, ratio, resamples=50)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30 * len(sums)


class TestCoverage:
    """Of 95% intervals, over data sets of the same kind."""

    def test_an_interval_of_prompts_has_the_truth_in_it_and_one_of_pairs_has_not(self) -> None:
        rng = np.random.default_rng(0)
        trials = [right_together(rng, prompts=60, pairs=8) for _ in range(200)]
        by_prompt = [mean_estimate(values, prompts, resamples=300) for values, prompts in trials]
        by_pair = [mean_estimate(values, np.arange(len(values)), resamples=300) for values, _ in trials]
        assert 0.90 < coverage(by_prompt, 0.6) < 0.98
        assert coverage(by_pair, 0.6) < 0.80

    def test_of_a_correlation(self) -> None:
        rng = np.random.default_rng(1)
        by_prompt, by_value = [], []
        for _ in range(150):
            x, y = (np.repeat(column, 6) for column in rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 80).T)
            prompts = np.repeat(np.arange(80), 6)
            by_prompt.append(correlation_estimate(x, y, prompts, resamples=300))
            by_value.append(correlation_estimate(x, y, np.arange(480), resamples=300))
        assert 0.90 < coverage(by_prompt, 0.5) < 0.98
        assert coverage(by_value, 0.5) < 0.75

    def test_of_a_difference_that_is_not_there(self) -> None:
        # Each prompt suits one of both rewards, by chance, on all of its pairs.
        rng = np.random.default_rng(2)
        by_prompt, by_pair = [], []
        for trial in range(100):
            a = np.repeat(rng.integers(0, 2, 40), 6)
            flips = rng.random(240) < 0.1  # so that clusters differ by different sums
            b = np.where(flips, a, 1 - a).astype(np.float64)
            by_prompt.append(paired_test(a, b, np.repeat(np.arange(40), 6)).p_value)
            if trial < 25:
                by_pair.append(paired_test(a, b, np.arange(240)).p_value)
        assert 0.01 <= np.mean(np.array(by_prompt) < 0.05) <= 0.10
        assert np.mean(np.array(by_pair) < 0.05) > 0.2


class TestMeanEstimate:
    def test_clusters_are_any_integers_in_any_order(self) -> None:
        values = np.random.default_rng(0).random(60)
        clusters = np.repeat(np.arange(12), 5)
        names = np.array([-7, 3, 10**12, 5, 99, -1, 0, 8, 6, 4, 2, 1])
        found = mean_estimate(values, clusters)
        order = np.random.default_rng(1).permutation(60)
        again = mean_estimate(values[order], clusters[order])
        assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=1e-12)
        renamed = mean_estimate(values, names[clusters])
        assert renamed.value == found.value == pytest.approx(values.mean())
        assert (renamed.low, renamed.high) == pytest.approx((found.low, found.high), abs=0.02)  # the same, drawn otherwise

    def test_a_cluster_counts_as_often_as_it_has_values(self) -> None:
        assert mean_estimate([1.0, 1.0, 1.0, 0.0], [1, 1, 1, 2]).value == 0.75

    def test_of_nothing_of_one_cluster_and_of_nan(self) -> None:
        assert str(mean_estimate([], [])) == "nan"
        assert str(mean_estimate([1.0, 0.0], [4, 4])) == "0.500"
        assert str(mean_estimate([1.0, NAN], [4, 5])) == "nan"

    def test_of_a_constant(self) -> None:
        assert mean_estimate([1.0] * 5, range(5)) == Estimate(1, 1, 1)


class TestCorrelationEstimate:
    @few_examples
    @given(st.integers(0, 1000), st.sampled_from([1e-8, 1.0, 1e8]), st.sampled_from([0.0, 1e6]))
    def test_is_pearsons_whatever_the_scale_and_the_mean(self, seed: int, scale: float, mean: float) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=40)
        y = x + rng.normal(size=40)
        found = correlation_estimate(x, scale * (y + mean), np.arange(40) // 2, resamples=100)
        expected = correlation_estimate(x, y, np.arange(40) // 2, resamples=100)
        assert found.value == pytest.approx(pearson(x, y), abs=1e-6)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
        assert found.low < found.value < found.high

    def test_the_interval_is_that_of_resampled_pearsons(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=100) + 50
        y = 0.5 * x + rng.normal(size=100)
        found = correlation_estimate(x, y, range(100), resamples=4000)
        rows = rng.integers(100, size=(2000, 100))
        low, high = np.quantile([pearson(x[drawn], y[drawn]) for drawn in rows], [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))

    def test_of_ranks_is_spearmans(self) -> None:
        x, y = [1.0, 2.0, 30.0, 4.0, 5.0, 9.0], [3.0, 1.0, 50.0, 2.0, 9.0, 9.5]
        found = correlation_estimate(mean_ranks(x), mean_ranks(y), range(6))
        assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
        assert found.low <= found.value <= found.high <= 1

    @pytest.mark.parametrize("values", [[], [1.0], [5.0, 5.0, 5.0], [NAN, 1.0, 2.0], [math.inf, 1.0, 2.0]])
    def test_there_is_none(self, values: list[float]) -> None:
        clusters = range(len(values))
        assert str(correlation_estimate(values, list(clusters), clusters)) == "nan"
        assert str(correlation_estimate(list(clusters), values, clusters)) == "nan"

    @pytest.mark.parametrize("size", [2, 3])
    def test_a_resample_of_one_value_has_no_correlation_even_where_it_rounds(self, size: int) -> None:
        for seed in range(20):
            x, y = np.random.default_rng(seed).normal(size=(2, size))
            found = correlation_estimate(x, y, range(size))
            assert str(found) == f"{pearson(x, y):.3f}"  # without an interval: one resample of two, or of nine, has one value


class TestPairedTest:
    @few_examples
    @given(st.lists(st.tuples(OUTCOMES, OUTCOMES), min_size=1, max_size=30))
    def test_of_single_pairs_is_mcnemars(self, outcomes: list[tuple[float, float]]) -> None:
        a, b = np.array(outcomes).T
        found = paired_test(a, b, np.arange(len(a)))
        table = [[((a == i) & (b == j)).sum() for j in (1, 0)] for i in (1, 0)]
        assert (found.only_a, found.only_b) == (table[0][1], table[1][0])
        assert found.p_value == pytest.approx(
            min(mcnemar(table, exact=True).pvalue, 1.0) if found.only_a + found.only_b else 1.0
        )
        assert found.difference.value == pytest.approx(b.mean() - a.mean())

    def test_clusters_that_differ_by_the_same_are_as_single_pairs(self) -> None:
        a, b = np.array([0, 0, 0, 1, 0, 0, 1]), np.array([1, 1, 1, 0, 1, 1, 1])
        alone = paired_test(a, b, range(7))
        tripled = paired_test(np.repeat(a, 3), np.repeat(b, 3), np.repeat(np.arange(7), 3))
        assert tripled.p_value == alone.p_value == pytest.approx(stats.binomtest(5, 6).pvalue)
        assert (tripled.only_a, tripled.only_b) == (3, 15)

    def test_is_the_share_of_all_signs(self) -> None:
        differences = np.array([3, -1, 2, 2, -1, 4, 1, 2])
        a = np.concatenate([np.repeat(float(size < 0), abs(size)) for size in differences])
        clusters = np.repeat(np.arange(8), np.abs(differences))
        sums = [np.dot(signs, np.abs(differences)) for signs in itertools.product([-1, 1], repeat=8)]
        expected = np.mean(np.abs(sums) >= abs(differences.sum()))
        assert paired_test(a, 1 - a, clusters).p_value == pytest.approx(expected, abs=0.015)

    def test_is_never_zero(self) -> None:
        clusters = np.repeat(np.arange(60), np.arange(60) % 3 + 1)
        found = paired_test(np.zeros(len(clusters)), np.ones(len(clusters)), clusters)
        assert found.p_value == 1 / 10_001
        assert found.difference == Estimate(1, 1, 1)

    def test_the_same_outcomes_do_not_differ(self) -> None:
        found = paired_test([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1, 2, 2])
        assert (found.p_value, found.only_a, found.only_b, found.difference) == (1, 0, 0, Estimate(0, 0, 0))

    def test_outcomes_that_cancel_in_each_cluster_are_no_difference(self) -> None:
        found = paired_test([1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0], [1, 1, 2, 2])
        assert (found.p_value, found.only_a, found.only_b) == (1, 2, 2)

    def test_of_no_pair(self) -> None:
        found = paired_test([], [], [])
        assert (found.p_value, found.only_a, found.only_b, str(found.difference)) == (1, 0, 0, "nan")

    def test_the_other_way_round_is_the_other_sign(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 2, (2, 200)).astype(np.float64)
        clusters = rng.integers(0, 50, 200)
        found, other = paired_test(a, b, clusters), paired_test(b, a, clusters)
        assert other.p_value == found.p_value
        assert (other.only_a, other.only_b) == (found.only_b, found.only_a)
        assert other.difference.value == -found.difference.value

    def test_outcomes_that_are_nan_are_the_callers(self) -> None:
        with pytest.raises(DataError, match="of 3 pairs, 2 have no outcome"):
            paired_test([1.0, NAN, 0.0], [1.0, 0.0, NAN], [1, 2, 3])


class TestSeveralTogether:
    def test_each_is_what_it_is_alone(self) -> None:
        rng = np.random.default_rng(0)
        clusters = rng.integers(0, 30, 200)
        columns = {"a": rng.normal(size=200), "b": (rng.random(200) < 0.4).astype(float)}
        together = mean_estimates(columns, clusters, seed=3)
        for name, column in columns.items():
            alone = mean_estimate(column, clusters, seed=3)
            assert dataclasses.astuple(together[name]) == pytest.approx(dataclasses.astuple(alone))
        assert share_estimates({"b": columns["b"]}, clusters, seed=3)["b"] == together["b"]

    def test_what_is_not_known_is_left_out(self) -> None:
        values = np.array([1.0, np.nan, 0.0, 1.0] * 10)
        found = mean_estimates({"some": values, "none": np.full(40, np.nan)}, np.arange(40))
        assert found["some"].value == pytest.approx(2 / 3)
        assert found["some"].low < 2 / 3 < found["some"].high
        assert math.isnan(found["none"].value)

    def test_a_share_in_few_clusters_has_no_interval(self) -> None:
        outcomes = np.full(40, np.nan)
        outcomes[0] = 1.0
        found = share_estimates({"one": outcomes, "all": np.ones(40)}, np.arange(40))
        assert math.isnan(found["one"].low)
        assert found["all"].low == pytest.approx(0.025 ** (1 / 40))
        assert share_estimate(np.zeros(40), np.arange(40)).high == pytest.approx(1 - 0.025 ** (1 / 40))
