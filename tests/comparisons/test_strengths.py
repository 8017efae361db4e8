"""Strengths against an independent optimizer, and what must hold of them."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from rm_plugins.comparisons import Results, bradley_terry, cyclic_triples, win_rates
from rm_plugins.scores import FloatArray


@st.composite
def any_results(draw: st.DrawFn) -> Results:
    players = draw(st.integers(2, 7))
    pairs = draw(st.lists(st.sampled_from(list(combinations(range(players), 2))), min_size=1, max_size=12))
    shares = [draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])) for _ in pairs]
    weights = [draw(st.sampled_from([0.5, 1.0])) for _ in pairs]
    return Results.of(players, pairs, shares, weights)


def negative_log_posterior(strengths: FloatArray, results: Results, prior: float) -> float:
    total = float((strengths**2).sum()) / (2 * prior**2)
    for (first, second), share, weight in zip(results.pairs, results.shares, results.weights, strict=True):
        gap = strengths[first] - strengths[second]
        total += weight * (share * math.log1p(math.exp(-gap)) + (1 - share) * math.log1p(math.exp(gap)))
    return total


@given(results=any_results(), prior=st.sampled_from([0.3, 1.0, 5.0]))
def test_strengths_are_those_of_another_optimizer(results: Results, prior: float) -> None:
    strengths = bradley_terry(results, prior)
    found = minimize(
        negative_log_posterior, np.zeros(results.players), args=(results, prior), method="BFGS", options={"gtol": 1e-9}
    )
    np.testing.assert_allclose(strengths.values, found.x, atol=2e-5 * prior**2)
    assert negative_log_posterior(strengths.values, results, prior) <= found.fun + 1e-12
    assert abs(strengths.values.sum()) < 1e-9


@given(results=any_results(), prior=st.sampled_from([0.5, 2.0]))
def test_the_covariance_is_the_inverse_of_the_curvature(results: Results, prior: float) -> None:
    strengths = bradley_terry(results, prior)
    size, step = results.players, 1e-3
    curvature = np.empty((size, size))
    for one in range(size):
        for other in range(size):
            corners = []
            for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                place = strengths.values.copy()
                place[one] += signs[0] * step
                place[other] += signs[1] * step
                corners.append(negative_log_posterior(place, results, prior))
            curvature[one, other] = (corners[0] - corners[1] - corners[2] + corners[3]) / (4 * step**2)
    np.testing.assert_allclose(strengths.covariance @ curvature, np.eye(size), atol=2e-3)


@given(results=any_results())
def test_flipped_verdicts_negate_strengths(results: Results) -> None:
    flipped = Results(results.players, results.pairs, 1 - results.shares, results.weights)
    one, other = bradley_terry(results, 1.0), bradley_terry(flipped, 1.0)
    np.testing.assert_allclose(one.values, -other.values, atol=1e-8)
    np.testing.assert_allclose(one.errors, other.errors, atol=1e-8)
    rates, flipped_rates = win_rates(results)[0], win_rates(flipped)[0]
    np.testing.assert_allclose(rates, 1 - flipped_rates)


@given(results=any_results(), data=st.data())
def test_strengths_follow_their_players(results: Results, data: st.DataObject) -> None:
    order = np.array(data.draw(st.permutations(range(results.players))))
    moved = Results(results.players, order[results.pairs], results.shares, results.weights)
    np.testing.assert_allclose(bradley_terry(moved, 1.0).values[order], bradley_terry(results, 1.0).values, atol=1e-8)


def test_more_comparisons_give_smaller_errors() -> None:
    few = Results.of(3, [(0, 1), (1, 2), (0, 2)], [0.6, 0.6, 0.7])
    many = Results.of(3, [(0, 1), (1, 2), (0, 2)] * 20, [0.6, 0.6, 0.7] * 20)
    assert (bradley_terry(many, 1.0).errors < bradley_terry(few, 1.0).errors / 2).all()
    assert (win_rates(many)[1] < win_rates(few)[1] / 2).all()


def test_standard_errors_are_calibrated() -> None:
    """Of many groups with strengths drawn from the prior, the errors in units of the standard error have standard deviation 1."""
    rng = np.random.default_rng(0)
    pairs = [pair for pair in combinations(range(6), 2) for _ in range(4)]
    ratios = []
    for _ in range(200):
        true = rng.normal(size=6)
        chances = 1 / (1 + np.exp([true[second] - true[first] for first, second in pairs]))
        strengths = bradley_terry(Results.of(6, pairs, (rng.random(len(pairs)) < chances).astype(float).tolist()), 1.0)
        ratios += ((strengths.values - (true - true.mean())) / strengths.errors).tolist()
    assert np.std(ratios) == pytest.approx(1.0, abs=0.06)
    assert np.mean(ratios) == pytest.approx(0.0, abs=0.05)


def test_the_error_of_a_difference() -> None:
    strengths = bradley_terry(Results.of(3, [(0, 1), (1, 2)] * 5, [0.8, 0.7] * 5), 1.0)
    covariance = strengths.covariance
    expected = math.sqrt(covariance[0, 0] + covariance[2, 2] - 2 * covariance[0, 2])
    assert strengths.errors_of_differences([2, 2, 2])[0] == pytest.approx(expected)
    assert strengths.errors_of_differences([2, 2, 2])[2] == 0


def test_a_player_that_won_everything_has_a_finite_strength() -> None:
    strengths = bradley_terry(Results.of(4, list(combinations(range(4), 2)) * 50, [1.0] * 300), 10.0)
    assert np.isfinite(strengths.values).all()
    assert (np.diff(strengths.values) < 0).all()


def test_without_a_comparison() -> None:
    nothing = Results.of(2, [], [])
    assert bradley_terry(nothing, 1.0).values.tolist() == [0, 0]
    assert np.isnan(win_rates(nothing)[0]).all()
    assert cyclic_triples(nothing) == (0, 0)


def test_a_tie_is_half_a_win() -> None:
    rates, errors = win_rates(Results.of(3, [(0, 1), (0, 2)], [0.5, 1.0]))
    assert rates.tolist() == [0.75, 0.5, 0.0]
    assert errors[0] == pytest.approx(math.sqrt(2.5 * 1.5 / (16 * 5)))


@given(data=st.data(), players=st.integers(3, 7))
def test_cyclic_triples_are_counted(data: st.DataObject, players: int) -> None:
    pairs = list(combinations(range(players), 2))
    shares = [data.draw(st.sampled_from([0.0, 0.5, 1.0, None])) for _ in pairs]
    known = [(pair, share) for pair, share in zip(pairs, shares, strict=True) if share is not None]
    beats = {pair if share > 0.5 else pair[::-1] for pair, share in known if share != 0.5}
    cyclic = sum({(a, b), (b, c), (c, a)} <= beats for a, b, c in permutations(range(players), 3)) // 3
    decided = sum(
        all((one, other) in beats or (other, one) in beats for one, other in combinations(triple, 2))
        for triple in combinations(range(players), 3)
    )
    assert cyclic_triples(Results.of(players, [pair for pair, _ in known], [share for _, share in known])) == (cyclic, decided)
