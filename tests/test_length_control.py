"""Accuracy without length is what a reward would reach that looks at everything but length, however few values it has."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rm_plugins.statistics.accuracy import three_class_agreement
from rm_plugins.statistics.intervals import Estimate, share_estimate
from rm_plugins.statistics.length_control import accuracy_at_equal_length, accuracy_without_length

Floats = NDArray[np.float64]

STEPS: dict[int, list[float]] = {2: [0.0], 3: [-0.5, 0.6], 5: [-1.2, -0.4, 0.5, 1.5]}
VALUES = [2, 3, 5, 0]
"""How many values a reward has; 0 for any number."""


def made(
    rng: np.random.Generator, values: int, prompts: int, pairs: int = 1, /, *, shorter: float, likes: float, skill: float
) -> tuple[Floats, Floats, Floats]:
    """Rewards, lengths, and the rewards without what they give for length, each [prompts * pairs, 2], the winner first.

    Args:
        rng: Draws them.
        values: How many values the rewards have.
        prompts: The number of prompts, whose answers are alike in length and in reward.
        pairs: Of each prompt.
        shorter: How often the winner is the shorter one.
        likes: What a standard deviation of length adds to a reward, whose own is 1.
        skill: By how much the winner's reward is the higher.
    """
    lengths = np.exp(6 + 0.3 * rng.normal(size=(prompts, 1, 1)) + 0.5 * rng.normal(size=(prompts, pairs, 2)))
    lengths.sort(axis=-1)
    lengths = np.where(rng.random((prompts, pairs, 1)) < shorter, lengths, lengths[..., ::-1]).round()
    own = math.sqrt(0.7) * rng.normal(size=lengths.shape) + math.sqrt(0.3) * rng.normal(size=(prompts, 1, 2))
    own += skill * np.array([0.5, -0.5])
    both = (own + likes * (np.log(lengths) - 6) / 0.58, own)
    rewards, without = (np.digitize(one, STEPS[values]).astype(np.float64) if values else one for one in both)
    return rewards.reshape(-1, 2), lengths.reshape(-1, 2), without.reshape(-1, 2)


def without_length(rewards: Floats, lengths: Floats, pairs: int = 1, refits: int = 0) -> Estimate:
    places = np.arange(rewards.size).reshape(-1, 2)
    return accuracy_without_length(rewards.ravel(), lengths.ravel(), places, places.ravel() // (2 * pairs), refits=refits)


@cache
def truth(values: int, **kind: float) -> float:
    """The accuracy without what is given for length, with as many ties as there are with it."""
    rewards, _, blind = made(np.random.default_rng(99), values, 200_000, **kind)
    ties, delta = (rewards[:, 0] == rewards[:, 1]).mean(), blind[:, 0] - blind[:, 1]
    return float((1 - ties) * (delta > 0).mean() / (delta != 0).mean())


class TestWithoutLength:
    @pytest.mark.parametrize("values", VALUES)
    @pytest.mark.parametrize(
        "kind",
        [
            {"shorter": 0.8, "likes": 0.2, "skill": 0.0},
            {"shorter": 0.2, "likes": 0.2, "skill": 0.0},
            {"shorter": 0.8, "likes": 0.6, "skill": 0.7},
            {"shorter": 0.2, "likes": 0.6, "skill": 0.7},
            {"shorter": 0.5, "likes": 1.0, "skill": 1.5},
            {"shorter": 0.8, "likes": -0.4, "skill": 2.5},
        ],
        ids=str,
    )
    def test_its_bias_is_below_two_points(self, values: int, kind: dict[str, float]) -> None:
        rng = np.random.default_rng(values)
        found = [without_length(*made(rng, values, 1000, **kind)[:2]).value for _ in range(20)]
        assert abs(np.mean(found) - truth(values, **kind)) < 0.02

    @pytest.mark.parametrize(
        ("values", "prompts", "pairs", "skill"),
        [(2, 50, 1, 0.0), (2, 50, 3, 1.8), (5, 200, 1, 2.4), (0, 50, 3, 0.0), (0, 100, 1, 2.9)],
    )
    def test_its_interval_has_the_truth_in_it(self, values: int, prompts: int, pairs: int, skill: float) -> None:
        kind = {"shorter": 0.8, "likes": 0.3, "skill": skill}
        rng = np.random.default_rng(prompts + pairs)
        found = [without_length(*made(rng, values, prompts, pairs, **kind)[:2], pairs, refits=10) for _ in range(50)]
        inside = [one.low <= truth(values, **kind) <= one.high for one in found]
        assert np.mean(inside) >= 0.92 - 1.96 * math.sqrt(0.92 * 0.08 / 50)
        assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found)

    def test_a_coin_that_slightly_likes_length_is_a_coin(self) -> None:
        # Where a curve is subtracted from rewards of two values, ties go to the shorter answer: 60%, or 40% with labels turned.
        rng = np.random.default_rng(3)
        kind = {"shorter": 0.8, "likes": 0.18, "skill": 0.0}
        rewards, lengths, _ = made(rng, 2, 2000, **kind)
        ties = float((rewards[:, 0] == rewards[:, 1]).mean())
        for turned in (1, -1):
            found = without_length(rewards[:, ::turned], lengths[:, ::turned], refits=50)
            assert found.value == pytest.approx((1 - ties) / 2, abs=0.02)
            assert found.low < (1 - ties) / 2 < found.high

    def test_ties_stay_ties(self) -> None:
        rng = np.random.default_rng(4)
        rewards, lengths, _ = made(rng, 0, 400, shorter=0.8, likes=0.5, skill=1.0)
        rewards[::2] = rewards[::2, :1]
        found = without_length(rewards, lengths)
        assert found.value < 0.5 * 0.95
        assert without_length(np.ones((30, 2)), lengths[:30], refits=10) == share_estimate(np.zeros(30), range(30))

    @pytest.mark.parametrize("of", [np.log, lambda lengths: -lengths, lambda lengths: (lengths > 500).astype(float)])
    @pytest.mark.parametrize("shorter", [0.1, 0.5, 0.8])
    def test_of_length_alone_nothing_is_left(self, of: Any, shorter: float) -> None:
        _, lengths, _ = made(np.random.default_rng(5), 0, 400, shorter=shorter, likes=0, skill=0)
        rewards = of(lengths)
        found, ties = without_length(rewards, lengths, refits=20), (rewards[:, 0] == rewards[:, 1]).mean()
        assert found.value == pytest.approx((1 - ties) / 2, abs=1e-6)
        assert found.high < (1 - ties) / 2 + 0.05

    def test_skill_is_not_taken_for_length_where_the_better_answers_are_long(self) -> None:
        kind = {"shorter": 0.05, "likes": 0.0, "skill": 2.9}
        rewards, lengths, _ = made(np.random.default_rng(6), 0, 2000, **kind)
        assert without_length(rewards, lengths).value == pytest.approx((rewards[:, 0] > rewards[:, 1]).mean(), abs=0.02)

    @pytest.mark.parametrize("values", VALUES)
    def test_the_unit_and_one_reward_far_out_do_not_matter(self, values: int) -> None:
        rewards, lengths, _ = made(np.random.default_rng(7), values, 300, shorter=0.3, likes=0.3, skill=1.0)
        found = without_length(rewards, lengths)
        for scale in (1e-300, 1e300):
            assert without_length(scale * rewards, lengths).value == pytest.approx(found.value, abs=1e-6)
        rewards[0, 0] = 1e6
        assert without_length(rewards, lengths).value == pytest.approx(found.value, abs=0.02)

    def test_what_is_no_number_has_none(self) -> None:
        assert str(without_length(np.array([[1.0, math.nan]]), np.ones((1, 2)))) == "nan"
        assert str(without_length(np.empty((0, 2)), np.empty((0, 2)))) == "nan"
        assert math.isnan(
            without_length(np.arange(40.0).reshape(-1, 2), np.ones((20, 2)), pairs=20, refits=9).low
        )  # one prompt


class TestAtEqualLength:
    def test_it_is_that_of_the_formula(self) -> None:
        rng = np.random.default_rng(0)
        longer = rng.normal(0.5, 1, 100_000)
        chance = 1 / (1 + np.exp(-0.8 - 1.5 * np.tanh(longer / math.sqrt(np.square(longer).mean()))))
        found = accuracy_at_equal_length(np.where(rng.random(100_000) < chance, 1.0, -1.0), longer, range(100_000))
        assert found.value == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.01)
        assert found.high - found.low < 0.02

    @pytest.mark.parametrize("skill", [0.0, 1.0, 1.8, 2.9])
    @pytest.mark.parametrize(("prompts", "pairs"), [(50, 1), (50, 4), (200, 2)])
    @pytest.mark.parametrize("values", [2, 0])
    def test_its_interval_has_the_truth_in_it(self, values: int, prompts: int, pairs: int, skill: float) -> None:
        kind = {"shorter": 0.3, "likes": 0.5, "skill": skill}

        def estimate(rng: np.random.Generator, prompts: int, pairs: int) -> Estimate:
            rewards, lengths, _ = made(rng, values, prompts, pairs, **kind)
            difference = lengths[:, 0] - lengths[:, 1]
            return accuracy_at_equal_length(rewards[:, 0] - rewards[:, 1], difference, np.arange(len(lengths)) // pairs)

        of_many = estimate(np.random.default_rng(99), 200_000, 1).value
        rng = np.random.default_rng(prompts + pairs)
        found = [estimate(rng, prompts, pairs) for _ in range(200)]
        assert np.mean([one.low <= of_many <= one.high for one in found]) >= 0.92 - 1.96 * math.sqrt(0.92 * 0.08 / 200)

    def test_of_length_alone_it_is_chance(self) -> None:
        longer = np.random.default_rng(1).normal(0.8, 1, 2000)
        assert accuracy_at_equal_length(longer, longer, range(2000)).value == pytest.approx(0.5, abs=0.05)

    @settings(max_examples=50)
    @given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-5, 5)), min_size=2, max_size=30))
    def test_with_the_labels_turned_it_is_the_rest(self, pairs: list[tuple[int, int]]) -> None:
        delta, longer = np.array(pairs).T
        found, turned = (accuracy_at_equal_length(sign * delta, sign * longer, range(len(pairs))) for sign in (1, -1))
        assert turned.value == pytest.approx(1 - found.value, abs=1e-5)
        assert 0 <= found.low <= found.value <= found.high <= 1

    def test_of_pairs_of_one_length_it_is_the_share(self) -> None:
        found = accuracy_at_equal_length([1.0] * 70 + [-1.0] * 30, np.zeros(100), range(100))
        assert found.value == pytest.approx(70.5 / 101)
        assert str(accuracy_at_equal_length([], [], [])) == "nan"


class TestThreeClassAgreement:
    @settings(max_examples=80)
    @given(st.lists(st.integers(-4, 4), max_size=12), st.lists(st.integers(-4, 4), max_size=12))
    def test_no_threshold_agrees_more_often(self, delta: list[int], tied: list[int]) -> None:
        agreement, threshold = three_class_agreement(np.array(delta, float), np.array(tied, float))
        if not delta and not tied:
            assert math.isnan(agreement)
            return

        def at(limit: float) -> float:
            agreed = sum(one > limit for one in delta) + sum(abs(one) <= limit for one in tied)
            return agreed / (len(delta) + len(tied))

        assert agreement == at(threshold) == max(map(at, range(5)))
        assert all(at(limit) < agreement for limit in range(5) if limit < threshold)

    def test_the_interval_at_the_threshold_has_the_truth_in_it(self) -> None:
        # Where it has a normal distribution around 1.5 for winners and 0 for ties, as many of each, the best limit is known.
        from scipy.stats import norm

        limits = np.linspace(0, 3, 3001)
        truth = float((norm.sf(limits - 1.5) + 2 * norm.cdf(limits) - 1).max() / 2)
        rng, inside = np.random.default_rng(0), 0
        for _ in range(300):
            delta, tied = 1.5 + rng.normal(size=50), rng.normal(size=50)
            _, threshold = three_class_agreement(delta, tied)
            found = share_estimate(np.concatenate([delta > threshold, np.abs(tied) <= threshold]), range(100))
            inside += found.low <= truth <= found.high
        assert inside / 300 >= 0.92 - 1.96 * math.sqrt(0.92 * 0.08 / 300)
