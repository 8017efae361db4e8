"""What a reward gives for length is found and taken away, and formatting is counted as Markdown has it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.nonparametric.smoothers_lowess import lowess

from rm_plugins.statistics.bias import (
    FORMAT_FEATURES,
    FeatureBias,
    feature_bias,
    format_features,
    length_corrected,
    length_curve,
    longer_preference,
)
from rm_plugins.statistics.metrics import spearman

NAN, INF = math.nan, math.inf
Floats = NDArray[np.float64]

OF_LENGTH: dict[str, Callable[[Floats], NDArray[np.floating[Any]]]] = {
    "linear": lambda lengths: 0.01 * lengths,
    "falling": lambda lengths: -lengths,
    "logarithm": lambda lengths: np.log(lengths),
    "levels off": lambda lengths: np.tanh(lengths / 600),
    "steps": lambda lengths: np.digitize(lengths, [200, 500, 1200]).astype(np.float64),
    "one step": lambda lengths: (lengths > 700).astype(np.float64),
    "a range": lambda lengths: ((lengths > 300) & (lengths < 900)).astype(np.float64),
    "a target": lambda lengths: -np.abs(lengths - 600.0),
    "a valley": lambda lengths: np.abs(np.log(lengths) - 6.5),
    "float32": lambda lengths: np.log(lengths).astype(np.float32).astype(np.float64),
}


def some_lengths(size: int, seed: int = 0) -> Floats:
    """As texts have them: a few are very long."""
    return np.array(np.exp(np.random.default_rng(seed).normal(6.5, 0.8, size)).round() + 1, dtype=np.float64)


class TestLengthCurve:
    def test_is_lowess(self) -> None:
        lengths = np.random.default_rng(0).permutation(500).astype(np.float64)
        rewards = np.sqrt(lengths) + np.random.default_rng(1).normal(size=500)
        expected = lowess(rewards, lengths, frac=0.3, it=0, return_sorted=False)
        assert np.abs(length_curve(rewards, lengths) - expected).max() < 0.02  # what is interpolated

    @pytest.mark.parametrize("name", ["linear", "falling", "logarithm", "levels off", "a valley"])
    def test_follows_what_a_reward_gives_for_length(self, name: str) -> None:
        lengths = some_lengths(2000)
        truth = OF_LENGTH[name](lengths)
        truth = truth / truth.std()
        curve = length_curve(truth + 0.5 * np.random.default_rng(1).normal(size=2000), lengths)
        assert math.sqrt(np.square(curve - truth).mean()) < 0.15

    def test_many_samples_show_steps(self) -> None:
        lengths = some_lengths(10_000)
        truth = OF_LENGTH["steps"](lengths)
        curve = length_curve(truth + 0.5 * np.random.default_rng(1).normal(size=10_000), lengths)
        assert math.sqrt(np.square(curve - truth).mean()) < 0.2  # 30% of all samples leave 0.3

    def test_the_rarer_value_of_two_is_no_outlier(self) -> None:
        lengths = some_lengths(4000)
        chance = np.where(lengths > 665, 0.95, 0.75)
        rewards = (np.random.default_rng(1).random(4000) < chance).astype(np.float64)
        curve = length_curve(rewards, lengths)
        assert curve[lengths < 300].mean() == pytest.approx(0.75, abs=0.03)
        assert curve[lengths > 1200].mean() == pytest.approx(0.95, abs=0.03)

    def test_one_very_long_answer_does_not_straighten_the_curve(self) -> None:
        lengths = np.append(some_lengths(1000), 5e6)
        rewards = np.log(lengths)
        curve = length_curve(rewards, lengths)
        assert np.abs(curve - rewards)[(lengths > 300) & (lengths < 1500)].max() < 0.1

    @settings(max_examples=60)
    @given(st.integers(0, 10**6), st.integers(0, 60), st.integers(1, 12), st.floats(0, 1))
    def test_equal_lengths_have_one_value_and_there_always_is_one(
        self, seed: int, size: int, different: int, capped: float
    ) -> None:
        rng = np.random.default_rng(seed)
        lengths = np.where(rng.random(size) < capped, 100, rng.integers(0, different, size)).astype(np.float64)
        rewards = rng.normal(size=size)
        curve = length_curve(rewards, lengths)
        assert curve.shape == (size,)
        assert np.isfinite(curve).all()
        for length in np.unique(lengths):
            assert len(np.unique(curve[lengths == length])) == 1
        if size:
            assert curve.min() >= rewards.min() - 2 * np.ptp(rewards)
            assert curve.max() <= rewards.max() + 2 * np.ptp(rewards)

    def test_of_one_length_is_the_mean(self) -> None:
        assert length_curve([1.0, 2.0, 6.0] * 10, [5] * 30) == pytest.approx(np.full(30, 3.0))

    def test_of_few_samples_is_the_mean(self) -> None:
        assert length_curve([], []).shape == (0,)
        assert length_curve([4.0], [7]).tolist() == [4]
        assert length_curve([4.0, 6.0], [7, 9]).tolist() == [5, 5]
        assert length_curve(range(9), range(9)).tolist() == [4] * 9

    @pytest.mark.parametrize("broken", [NAN, INF])
    def test_what_is_no_number_makes_no_curve(self, broken: float) -> None:
        rewards, lengths = np.arange(20.0), np.arange(20.0)
        rewards[3] = broken
        assert np.isnan(length_curve(rewards, lengths)).all()
        assert np.isnan(length_curve(lengths, rewards)).all()
        assert np.isnan(length_corrected(rewards, lengths)).all()

    @pytest.mark.parametrize("capped", [INF, 800.0])
    def test_a_hundred_thousand_samples_are_quick(self, capped: float) -> None:
        lengths = np.minimum(some_lengths(100_000), capped)
        rewards = np.log(lengths) + np.random.default_rng(1).normal(size=100_000)
        start = time.process_time()
        corrected = length_corrected(rewards, lengths)
        assert time.process_time() - start < 5  # it takes less than one
        assert abs(spearman(corrected, lengths)) < 0.01


class TestLengthCorrected:
    @pytest.mark.parametrize("size", [40, 1000])
    @pytest.mark.parametrize("name", OF_LENGTH)
    def test_a_reward_that_is_a_function_of_length_is_constant(self, name: str, size: int) -> None:
        lengths = some_lengths(size)
        rewards = OF_LENGTH[name](lengths)
        corrected = length_corrected(rewards, lengths)
        assert corrected == pytest.approx(np.full(size, rewards.mean()))
        assert len(np.unique(corrected)) == 1  # all pairs tie, exactly

    @pytest.mark.parametrize("name", ["linear", "levels off", "steps", "one step", "a target"])
    def test_length_is_not_what_is_left_of_a_reward_that_is_mostly_length(self, name: str) -> None:
        # Of 20 samples of answers, whether the longer one scores higher is a coin's throw: few are far from one half.
        far = 0
        for seed in range(20):
            lengths = some_lengths(1200, seed)
            rewards = OF_LENGTH[name](lengths)
            rewards = rewards + 0.1 * rewards.std() * np.random.default_rng(100 + seed).normal(size=1200)
            corrected, longer = length_corrected(rewards, lengths).reshape(-1, 2), np.diff(lengths.reshape(-1, 2)).ravel()
            estimate = longer_preference(np.diff(corrected).ravel(), longer)
            far += abs(estimate - 0.5) > 1.96 * 0.5 / math.sqrt((longer != 0).sum())
        assert far <= 4

    @pytest.mark.parametrize("name", OF_LENGTH)
    def test_so_is_one_with_hardly_anything_else(self, name: str) -> None:
        lengths = some_lengths(1000)
        rewards = OF_LENGTH[name](lengths)
        rewards = rewards + 1e-4 * rewards.std() * np.random.default_rng(1).normal(size=1000)
        assert len(np.unique(length_corrected(rewards, lengths))) == 1

    @pytest.mark.parametrize("name", ["linear", "falling", "logarithm", "levels off", "a valley"])
    def test_quality_is_what_is_left(self, name: str) -> None:
        # The length of an answer says nothing of whether it wins here, and most of the reward is length.
        rng = np.random.default_rng(1)  # not that of the lengths
        lengths, quality = some_lengths(4000), rng.normal(size=4000)
        bias = OF_LENGTH[name](lengths)
        rewards = quality + 3 * bias / bias.std()
        winner = quality.reshape(-1, 2).argmax(axis=1)
        rows = np.arange(2000)

        def accuracy(values: Floats) -> float:
            pairs = values.reshape(-1, 2)
            return float((pairs[rows, winner] > pairs[rows, 1 - winner]).mean())

        assert accuracy(rewards) < 0.7
        assert accuracy(length_corrected(rewards, lengths)) > 0.9

    def test_a_reward_that_knows_nothing_of_length_hardly_changes(self) -> None:
        lengths = some_lengths(1000)
        rewards = np.random.default_rng(1).normal(size=1000)
        assert np.corrcoef(length_corrected(rewards, lengths), rewards)[0, 1] > 0.99

    def test_labels_that_follow_length_cannot_be_told_from_it(self) -> None:
        # The reward is length and noise, and the longer answer wins: what is left is right as often as not.
        rng = np.random.default_rng(1)
        lengths = some_lengths(4000)
        rewards = np.log(lengths) + 0.3 * rng.normal(size=4000)
        pairs = length_corrected(rewards, lengths).reshape(-1, 2)
        longer = lengths.reshape(-1, 2).argmax(axis=1)
        right = pairs[np.arange(2000), longer] > pairs[np.arange(2000), 1 - longer]
        assert right.mean() == pytest.approx(0.5, abs=0.04)

    def test_of_few_samples_length_does_not_explain_all(self) -> None:
        found = []
        for seed in range(20):
            rewards = np.random.default_rng(seed).normal(size=30)
            found.append(np.corrcoef(length_corrected(rewards, some_lengths(30, 100 + seed)), rewards)[0, 1])
        assert np.mean(found) > 0.93  # a curve through ten of them would leave 0.85

    def test_has_the_mean_of_the_rewards(self) -> None:
        rewards, lengths = np.random.default_rng(1).normal(size=500) + 7, some_lengths(500)
        assert length_corrected(rewards, lengths).mean() == pytest.approx(rewards.mean(), abs=0.02)

    @pytest.mark.parametrize("size", [0, 1, 2, 9])
    def test_few_samples_stay_as_they_are(self, size: int) -> None:
        rewards = np.arange(float(size))
        assert length_corrected(rewards, rewards) == pytest.approx(rewards)

    def test_samples_of_one_length_stay_as_they_are(self) -> None:
        rewards = np.random.default_rng(0).normal(size=30)
        assert length_corrected(rewards, np.full(30, 5)) == pytest.approx(rewards)

    @pytest.mark.parametrize("size", [60, 800])
    @pytest.mark.parametrize("outlier", [-1e3, -1e4, 1e6, -1e12, 1e300])
    def test_one_reward_that_is_far_out_says_nothing_of_the_others(self, size: int, outlier: float) -> None:
        rng = np.random.default_rng(1)
        quality, lengths = rng.normal(size=size), some_lengths(size)
        rewards = quality + 0.5 * np.log(lengths)
        usual = length_corrected(rewards, lengths)
        rewards[size // 3] = outlier
        corrected = length_corrected(rewards, lengths)
        others = np.arange(size) != size // 3
        assert np.corrcoef(corrected[others], usual[others])[0, 1] > 0.98
        assert np.abs(corrected - usual)[others].max() < 1.5, "nor next to it, nor does it move them all"
        assert corrected[size // 3] == pytest.approx(outlier, rel=0.01)

    @pytest.mark.parametrize("scale", [1e-300, 1e300, 2.0**1020])
    def test_the_unit_of_a_reward_does_not_matter(self, scale: float) -> None:
        lengths = some_lengths(400)
        rewards = np.random.default_rng(1).normal(size=400) + np.log(lengths)
        assert length_corrected(scale * rewards, lengths) / scale == pytest.approx(length_corrected(rewards, lengths))
        assert length_curve(scale * rewards, lengths) / scale == pytest.approx(length_curve(rewards, lengths))
        assert len(np.unique(length_corrected(scale * np.log(lengths), lengths))) == 1

    def test_the_largest_floats_have_finite_rewards_in_the_same_order(self) -> None:
        right = np.random.default_rng(1).random(400) < 0.5
        corrected = length_corrected(np.where(right, 1.7e308, -1.7e308), some_lengths(400))
        assert np.isfinite(corrected).all()
        assert corrected[right].min() > corrected[~right].max()

    @pytest.mark.parametrize("found", [1, 3, 40])
    def test_a_verifier_that_hardly_ever_finds_an_error_stays_what_it_is(self, found: int) -> None:
        rewards = np.ones(1000)
        rewards[np.random.default_rng(1).permutation(1000)[:found]] = 0
        corrected = length_corrected(rewards, some_lengths(1000))
        if found > 1:  # one alone is a function of length
            assert corrected[rewards == 0].max() < 0.2 < 0.8 < corrected[rewards == 1].min()

    def test_a_constant_reward_stays_constant(self) -> None:
        assert len(np.unique(length_corrected(np.full(50, 0.1), np.arange(50)))) == 1

    def test_the_inputs_stay_as_they_were(self) -> None:
        rewards, lengths = np.arange(20.0)[::-1], np.arange(20.0)
        length_corrected(rewards, lengths)
        assert rewards.tolist() == lengths.tolist()[::-1]


class TestFeatureBias:
    def test_by_hand(self) -> None:
        # The reward prefers more, less, neither and more of the feature, and one pair does not differ in it.
        found = feature_bias("bold", [1.0, 2.0, 0.0, -1.0, 5.0], [2, -1, 1, -3, 0])
        assert (found.feature, found.pairs, found.preferred, found.chosen) == ("bold", 4, 0.5, 0.5)
        assert found.correlation == pytest.approx((2 - 2 + 3) / math.sqrt((1 + 4 + 1 + 25) * (4 + 1 + 1 + 9)))

    @settings(max_examples=60)
    @given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.booleans()), min_size=1, max_size=20))
    def test_which_answer_comes_first_does_not_matter_to_the_reward(self, pairs: list[tuple[int, int, bool]]) -> None:
        delta, difference = (np.array([pair[column] for pair in pairs], dtype=np.float64) for column in (0, 1))
        sign = np.array([-1 if pair[2] else 1 for pair in pairs])
        found, turned = feature_bias("x", delta, difference), feature_bias("x", sign * delta, sign * difference)
        assert (found.pairs, found.preferred) == pytest.approx((turned.pairs, turned.preferred), nan_ok=True)
        assert found.correlation == pytest.approx(turned.correlation, nan_ok=True)
        if delta.any() and difference.any():
            both, twice = np.r_[delta, -delta], np.r_[difference, -difference]
            assert found.correlation == pytest.approx(np.corrcoef(both, twice)[0, 1])

    @pytest.mark.parametrize(("delta", "difference"), [([], []), ([1.0, 2.0], [0, 0])])
    def test_of_pairs_that_do_not_differ(self, delta: list[float], difference: list[int]) -> None:
        found = feature_bias("x", delta, difference)
        assert found.pairs == 0
        assert all(math.isnan(value) for value in (found.preferred, found.chosen, found.correlation))

    def test_of_nan(self) -> None:
        found = feature_bias("x", [1.0, NAN], [1, 1])
        assert (found.pairs, found.chosen) == (2, 1)
        assert math.isnan(found.preferred)
        assert math.isnan(found.correlation)

    def test_longer_preference_is_the_rewards(self) -> None:
        assert longer_preference([1.0, -1.0, -2.0, 0.0, 9.0], [5, -5, 5, -5, 0]) == 0.5
        assert longer_preference([INF, -INF], [5, 5]) == 0.5
        assert math.isnan(longer_preference([1.0], [0]))
        assert math.isnan(longer_preference([NAN, 1.0], [0, 1]))
        assert isinstance(feature_bias("x", [1.0], [1]), FeatureBias)


class TestFormatFeatures:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", {}),
            ("Two lines\nof prose.", {"lines": 2}),
            ("- a\n* b\n+ c\n1. d\n12) e\n  - nested", {"lines": 6, "list_items": 6}),
            ("-a\n1.5 litres\n---\n*\n- \n-5 degrees", {"lines": 6}),
            ("well-known - and so on, see 1. and 2.", {"lines": 1}),
            ("# One\n## Two\n####### none\n#none\n###### Six", {"lines": 5, "headings": 3}),
            ("**a** and __b__, **c d**", {"lines": 1, "bold": 3}),
            ("**a** *b* _c_ ***d***", {"lines": 1, "bold": 2}),
            ("2 ** 3 ** 4, a ** b, ** not bold **, ****, **open", {"lines": 1}),
            ("snake__case__ name and **not\nbold**", {"lines": 2}),
            ("- **Bold** item\n# **Head**", {"lines": 2, "list_items": 1, "headings": 1, "bold": 2}),
            ("call `f(**a, **b)` with `__init__`", {"lines": 1}),
            ("the **`code`** is bold", {"lines": 1, "bold": 1}),
            ("```python\n# no heading\n- no item\n**no bold**\n```\n- item", {"lines": 6, "list_items": 1, "code_blocks": 1}),
            ("~~~\n- a\n```\n- b\n~~~\n# Yes", {"lines": 6, "headings": 1, "code_blocks": 1}),
            ("````\n```\n# no\n```\n````", {"lines": 5, "code_blocks": 1}),
            ("```\na\n```\ntext\n```\nb\n```", {"lines": 7, "code_blocks": 2}),
            ("1. step\n   ```\n   - no\n   ```\n2. step", {"lines": 5, "list_items": 2, "code_blocks": 1}),
            ("text\n```\n- cut off", {"lines": 3, "code_blocks": 1}),
            ("use ```x``` here\n- item", {"lines": 2, "list_items": 1}),
            ("```x```\n- item", {"lines": 2, "list_items": 1}),
        ],
    )
    def test_counts_what_markdown_has(self, text: str, expected: dict[str, int]) -> None:
        found = dict(zip(FORMAT_FEATURES, format_features(text), strict=True))
        assert found.pop("characters") == len(text)
        assert {name: count for name, count in found.items() if count} == expected

    @settings(max_examples=100)
    @given(st.text(alphabet="-*_#`~1. a\n", max_size=80))
    def test_any_text_has_counts(self, text: str) -> None:
        found = dict(zip(FORMAT_FEATURES, format_features(text), strict=True))
        assert min(found.values()) >= 0
        assert found["list_items"] + found["headings"] + found["code_blocks"] <= found["lines"]

    def test_twenty_thousand_answers_are_quick(self) -> None:
        part = "# Tea\n\nSome **bold** words and `code`, and many more words that go on and on.\n- one item\n1. first\n"
        text = (part * 4 + "```\nprint(1)\n```\n" + part * 8)[:1000]
        start = time.process_time()
        for _ in range(4000):
            format_features(text)
        assert time.process_time() - start < 4  # it takes a fifth of one

    @pytest.mark.parametrize("part", ["**a ", "__a ", "**", "```\n", "~~~ ", "`", "\n ", "# ", "1", "- ", "> ```"])
    def test_what_a_broken_policy_repeats_is_quick(self, part: str) -> None:
        start = time.process_time()
        format_features(part * 20_000)
        assert time.process_time() - start < 3
