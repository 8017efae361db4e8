"""Intervals have the truth in them as often as they say, prompts with several pairs included, and tests are the known ones."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from rm_plugins.errors import DataError
from rm_plugins.statistics.intervals import (
    Estimate,
    correlation_estimate,
    mean_estimate,
    paired_test,
    share_estimate,
)
from rm_plugins.statistics.metrics import pearson
from rm_plugins.statistics.ranks import mean_ranks

NAN = math.nan
OUTCOMES = st.sampled_from([0.0, 1.0])

few_examples = settings(max_examples=50)


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


def correlated(rng: np.random.Generator, prompts: int, pairs: int, share: float, alike: float) -> NDArray[np.float64]:
    """Outcomes [prompts, pairs] that are right this often; those of a prompt are all the same with the probability `alike`."""
    own, common = rng.random((prompts, pairs)) < share, rng.random((prompts, 1)) < share
    return np.where(rng.random((prompts, 1)) < alike, common, own).astype(np.float64)


class TestCoverage:
    """Of 95% intervals, over data sets of the same kind: at least 92%, less what 400 data sets leave to chance."""

    LEAST = 0.92 - 1.96 * math.sqrt(0.92 * 0.08 / 400)

    @pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95, 0.98])
    @pytest.mark.parametrize(
        ("prompts", "pairs", "alike"), [(50, 1, 0), (50, 4, 0.5), (50, 9, 0), (50, 4, 1), (200, 1, 0), (200, 4, 0.3)]
    )
    def test_of_shares(self, share: float, prompts: int, pairs: int, alike: float) -> None:
        rng = np.random.default_rng(round(1000 * share) + prompts + pairs)
        found = []
        for _ in range(400):
            kept = np.arange(pairs) < rng.integers(1, pairs + 1, (prompts, 1))  # prompts have different numbers of pairs
            outcomes = correlated(rng, prompts, pairs, share, alike)
            found.append(share_estimate(outcomes[kept], np.repeat(np.arange(prompts), kept.sum(axis=1))))
        assert coverage(found, share) >= self.LEAST
        assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found)

    @pytest.mark.parametrize("right", [0.1, 0.4, 0.495])
    def test_of_accuracies_with_ties_as_half(self, right: float) -> None:
        rng, found = np.random.default_rng(5), []
        for _ in range(400):
            outcomes = rng.choice([0.0, 0.5, 1.0], (50, 2), p=[0.5 - right, 0.5, right])
            found.append(share_estimate(outcomes.ravel(), np.repeat(np.arange(50), 2)))
        assert coverage(found, right + 0.25) >= self.LEAST

    @pytest.mark.parametrize("changed", [0.0, 0.02, 0.1, 0.5])
    def test_of_differences(self, changed: float) -> None:
        rng, found = np.random.default_rng(6), []
        for _ in range(400):
            a = rng.integers(0, 2, 100).astype(np.float64)
            b = np.where(rng.random(100) < changed, np.maximum(a, rng.random(100) < 0.8), a)
            found.append(paired_test(a, b, np.repeat(np.arange(50), 2)).difference)
        assert coverage(found, 0.5 * 0.8 * changed) >= self.LEAST

    @pytest.mark.parametrize("kind", ["margin", "log loss", "skewed"])
    @pytest.mark.parametrize(("prompts", "pairs"), [(50, 1), (50, 4), (200, 2)])
    def test_of_means_without_bounds(self, kind: str, prompts: int, pairs: int) -> None:
        of: dict[str, Any] = {"margin": lambda z: z, "log loss": lambda z: np.logaddexp(0, -1 - 2 * z), "skewed": np.exp}
        rng = np.random.default_rng(7)
        truth = float(of[kind](rng.normal(size=1_000_000)).mean())
        found = []
        for _ in range(400):
            z = math.sqrt(0.5) * (rng.normal(size=(prompts, pairs)) + rng.normal(size=(prompts, 1)))
            found.append(mean_estimate(of[kind](z).ravel(), np.repeat(np.arange(prompts), pairs)))
        assert coverage(found, truth) >= self.LEAST

    @pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
    @pytest.mark.parametrize(("prompts", "values"), [(50, 1), (50, 6), (200, 2)])
    def test_of_correlations(self, correlation: float, prompts: int, values: int) -> None:
        rng = np.random.default_rng(8)
        covariance, clusters = [[1, correlation], [correlation, 1]], np.repeat(np.arange(prompts), values)
        of_values, of_ranks = [], []
        for _ in range(400):
            own, common = (rng.multivariate_normal([0, 0], covariance, size) for size in ((prompts, values), (prompts, 1)))
            x, y = (math.sqrt(0.5) * (own + common)).reshape(-1, 2).T
            of_values.append(correlation_estimate(x, y, clusters))
            of_ranks.append(correlation_estimate(mean_ranks(x), mean_ranks(y), clusters))
        assert coverage(of_values, correlation) >= self.LEAST
        assert coverage(of_ranks, 6 / math.pi * math.asin(correlation / 2)) >= self.LEAST

    def test_pairs_that_are_taken_for_independent_have_too_narrow_intervals(self) -> None:
        rng = np.random.default_rng(0)
        trials = [right_together(rng, prompts=60, pairs=8) for _ in range(200)]
        by_pair = [mean_estimate(values, np.arange(len(values))) for values, _ in trials]
        assert coverage(by_pair, 0.6) < 0.80

    def test_intervals_are_no_wider_than_they_have_to_be(self) -> None:
        # Pairs of a prompt that are independent, and those that are all alike, beside what the normal distribution says.
        rng = np.random.default_rng(9)
        for alike, independent in ((0, 800), (1, 200)):
            clusters = np.repeat(np.arange(200), 4)
            found = [share_estimate(correlated(rng, 200, 4, 0.7, alike).ravel(), clusters) for _ in range(50)]
            width = float(np.mean([one.high - one.low for one in found]))
            assert width == pytest.approx(2 * 1.96 * math.sqrt(0.21 / independent), rel=0.05)

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


class TestShareEstimate:
    @pytest.mark.parametrize("right", range(0, 21))
    def test_of_single_pairs_is_agresti_and_coulls(self, right: int) -> None:
        found = share_estimate(np.arange(20) < right, range(20))
        low, high = proportion_confint(right, 20, method="agresti_coull")
        assert (found.low, found.high) == pytest.approx((max(low, 0.0), min(high, 1.0)))

    def test_one_mistake_does_not_prove_that_mistakes_are_rare(self) -> None:
        # Of 50 prompts with 8 pairs, one pair is wrong: other prompts may be wrong in all of their pairs.
        outcomes = np.ones(400)
        outcomes[0] = 0
        assert share_estimate(outcomes, np.repeat(np.arange(50), 8)).low < 0.98
        assert share_estimate(outcomes, range(400)).low > 0.98

    @few_examples
    @given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=40), st.integers(2, 5))
    def test_the_same_pair_again_and_again_says_nothing_new(self, outcomes: list[float], times: int) -> None:
        values = np.array(outcomes)
        once = share_estimate(values, np.arange(len(values)))
        again = share_estimate(np.repeat(values, times), np.repeat(np.arange(len(values)), times))
        assert (again.low, again.value, again.high) == pytest.approx((once.low, once.value, once.high))
        assert 0 <= once.low <= once.value <= once.high <= 1

    @few_examples
    @given(st.lists(st.tuples(OUTCOMES, st.integers(0, 8)), min_size=2, max_size=40))
    def test_what_is_wrong_for_one_is_right_for_the_other(self, outcomes: list[tuple[float, int]]) -> None:
        values, clusters = (np.array(column) for column in zip(*outcomes, strict=True))
        found, turned = share_estimate(values, clusters), share_estimate(1 - values, clusters)
        assert (found.low, found.high) == pytest.approx((1 - turned.high, 1 - turned.low), nan_ok=True)

    def test_other_bounds_are_another_scale(self) -> None:
        values, clusters = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), [1, 1, 2, 3, 4, 5]
        found, scaled = share_estimate(values, clusters), mean_estimate(6 * values - 3, clusters, bounds=(-3.0, 3.0))
        assert (scaled.low, scaled.high) == pytest.approx((6 * found.low - 3, 6 * found.high - 3))

    @pytest.mark.parametrize("confidence", [0.0, 1.0, NAN])
    def test_a_confidence_out_of_range(self, confidence: float) -> None:
        with pytest.raises(DataError, match="allowed is one between 0 and 1"):
            share_estimate([1, 0], [1, 2], confidence=confidence)

    def test_more_confidence_is_a_wider_interval(self) -> None:
        values = np.random.default_rng(0).random(30)
        for bounds in (None, (0.0, 1.0)):
            narrow, wide = (mean_estimate(values, range(30), bounds=bounds, confidence=one) for one in (0.5, 0.99))
            assert wide.low < narrow.low < narrow.value < narrow.high < wide.high

    def test_a_million_pairs_are_quick(self) -> None:
        start = time.process_time()
        share_estimate(np.random.default_rng(0).random(1_000_000) < 0.7, np.arange(1_000_000) // 5)
        assert time.process_time() - start < 3  # it takes a third of a second


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
        assert (renamed.low, renamed.high) == pytest.approx((found.low, found.high))

    def test_of_single_values_is_students(self) -> None:
        values = np.random.default_rng(0).choice(
            [-1.0, 1.0], 200
        )  # whose squares vary so little that t has all degrees of freedom
        found = mean_estimate(values, range(200))
        expected = stats.t.interval(0.95, 199, loc=values.mean(), scale=stats.sem(values))
        assert (found.low, found.high) == pytest.approx(expected)

    @pytest.mark.parametrize("scale", [1e-200, 1e200])
    def test_the_unit_does_not_matter(self, scale: float) -> None:
        values, clusters = np.random.default_rng(0).normal(size=60), np.arange(60) // 3
        found, scaled = mean_estimate(values, clusters), mean_estimate(scale * values, clusters)
        assert (scaled.low / scale, scaled.high / scale) == pytest.approx((found.low, found.high))

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
        found = correlation_estimate(x, scale * (y + mean), np.arange(40) // 2)
        expected = correlation_estimate(x, y, np.arange(40) // 2)
        assert found.value == pytest.approx(pearson(x, y), abs=1e-6)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
        assert found.low < found.value < found.high

    def test_the_interval_is_close_to_fishers(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=4000) + 50
        y = 0.5 * x + rng.normal(size=4000)
        found = correlation_estimate(x, y, range(4000))
        expected = stats.pearsonr(x, y).confidence_interval()
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.002)

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

    def test_a_line_through_all_values_has_no_interval(self) -> None:
        assert str(correlation_estimate([1.0, 2.0], [3.0, 1.0], [0, 1])) == "-1.000"


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
        assert (found.difference.value, found.difference.high) == (1, 1)

    def test_the_same_outcomes_do_not_differ(self) -> None:
        found = paired_test([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1, 2, 2])
        assert (found.p_value, found.only_a, found.only_b, found.difference.value) == (1, 0, 0, 0)
        assert found.difference.high == -found.difference.low < 1

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
