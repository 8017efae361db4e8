"""Best-of-n against the mean over all draws."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_plugins.errors import DataError
from rm_plugins.statistics.best_of_n import best_of_n, best_of_n_counts, best_of_n_kl

NAN, INF = math.nan, math.inf


def over_all_draws(proxy: Sequence[float], gold: Sequence[float], n: int) -> float:
    """The mean over all draws of n, and over those of each draw that are highest: chance decides between them."""
    found = []
    for rows in itertools.combinations(range(len(proxy)), n):
        highest = max(proxy[row] for row in rows)
        found.append(np.mean([gold[row] for row in rows if proxy[row] == highest]))
    return float(np.mean(found))


class TestBestOfN:
    @settings(max_examples=60)
    @given(st.lists(st.tuples(st.integers(0, 5), st.floats(-5, 5)), min_size=1, max_size=9))
    def test_is_the_mean_over_all_draws_with_ties(self, rows: list[tuple[int, float]]) -> None:
        proxy, gold = [float(row[0]) for row in rows], [row[1] for row in rows]
        counts = range(1, len(rows) + 1)
        expected = [over_all_draws(proxy, gold, n) for n in counts]
        assert best_of_n(proxy, gold, counts) == pytest.approx(expected, abs=1e-9)

    def test_the_order_of_equal_completions_does_not_matter(self) -> None:
        proxy, gold = [1.0, 1.0, 2.0, 2.0], [0.0, 4.0, 1.0, 3.0]
        found = {
            tuple(best_of_n([proxy[row] for row in order], [gold[row] for row in order], [1, 2, 3]).tolist())
            for order in itertools.permutations(range(4))
        }
        assert len(found) == 1

    def test_a_constant_proxy_is_chance(self) -> None:
        assert best_of_n([7.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], [1, 2, 5]) == pytest.approx([3, 3, 3])

    def test_one_is_the_mean_and_all_are_the_maximum(self) -> None:
        gold = np.random.default_rng(0).normal(size=50)
        assert best_of_n(gold, gold, [1, 50]) == pytest.approx([gold.mean(), gold.max()])

    def test_more_than_there_are_is_nan(self) -> None:
        assert best_of_n([1.0, 2.0], [3.0, 4.0], [2, 3]).tolist() == pytest.approx([4, NAN], nan_ok=True)
        assert np.isnan(best_of_n([], [], [1])).all()

    def test_is_unbiased(self) -> None:
        # Of uniform gold that is its own proxy, the best of n is n / (n + 1) on average.
        rng = np.random.default_rng(1)
        found = np.mean([best_of_n(gold, gold, [2, 4, 8]) for gold in rng.random((2000, 10))], axis=0)
        assert found == pytest.approx([2 / 3, 4 / 5, 8 / 9], abs=0.005)

    def test_ten_thousand_completions_do_not_overflow(self) -> None:
        places = np.arange(10_000.0)
        counts = best_of_n_counts(10_000)
        start = time.process_time()
        found = best_of_n(places, places, counts)
        assert time.process_time() - start < 3  # it takes a few milliseconds
        # The highest of n of the numbers 1 to N is n (N + 1) / (n + 1) on average.
        assert found == pytest.approx([n * 10_001 / (n + 1) - 1 for n in counts], rel=1e-9)

    @pytest.mark.parametrize(("proxy", "gold"), [([NAN, 1.0], [1.0, 2.0]), ([0.0, 1.0], [NAN, 2.0]), ([0.0, 1.0], [INF, 2.0])])
    def test_what_is_no_number_makes_no_number(self, proxy: list[float], gold: list[float]) -> None:
        assert np.isnan(best_of_n(proxy, gold, [1, 2])).all()

    def test_an_infinite_proxy_is_the_highest(self) -> None:
        assert best_of_n([INF, 1.0, -INF], [1.0, 2.0, 3.0], [3]) == 1

    def test_none_cannot_be_drawn(self) -> None:
        with pytest.raises(DataError, match="n=0"):
            best_of_n([1.0], [1.0], [1, 0])


class TestCounts:
    @pytest.mark.parametrize(
        ("most", "counts"), [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (16, [1, 2, 4, 8, 16]), (17, [1, 2, 4, 8, 16, 17])]
    )
    def test_are_powers_of_two_and_the_last(self, most: int, counts: list[int]) -> None:
        assert best_of_n_counts(most) == counts


class TestDivergence:
    def test_by_hand(self) -> None:
        assert best_of_n_kl(1) == 0
        assert best_of_n_kl([2, 4]) == pytest.approx([math.log(2) - 0.5, math.log(4) - 0.75])
        assert best_of_n_kl(np.array([[1.0, 2.0]])).shape == (1, 2)

    def test_is_that_of_a_policy_that_never_repeats_itself(self) -> None:
        # The best of n has the density n u^(n - 1) over the policy's quantiles u, and KL is the mean of its logarithm.
        n, u = 8, (np.arange(200_000) + 0.5) / 200_000
        density = n * u ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx((density * np.log(density)).mean(), abs=1e-4)

    def test_bounds_that_of_a_policy_that_repeats_itself(self) -> None:
        policy = np.array([0.5, 0.3, 0.2])  # three texts, in ascending order of the reward
        for n in (2, 4, 16):
            best = np.diff(np.cumsum(policy) ** n, prepend=0.0)
            assert (best * np.log(best / policy)).sum() <= best_of_n_kl(n)

    def test_none_is_no_policy(self) -> None:
        with pytest.raises(DataError, match="n=0"):
            best_of_n_kl(0)
