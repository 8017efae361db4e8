"""Reshapings of scores."""

from __future__ import annotations

import inspect
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import rm_plugins as rm
from rm_plugins.data.row_files import write_rows
from rm_plugins.errors import DataError, SpecError
from rm_plugins.scores import FloatArray
from rm_plugins.transforms import (
    Chain,
    Clip,
    FittedTransform,
    LogSigmoidCentred,
    MinMax,
    Par,
    RankInGroup,
    RunningStatistics,
    Scale,
    Sigmoid,
    Tanh,
    ZScore,
    rm_register_transforms,
    shared_batch,
)

SCORES = np.array([-3.0, 0.0, np.nan, 5.0])
FINITE = st.floats(-1e6, 1e6)
BATCHES = arrays(np.float64, st.integers(0, 20), elements=FINITE | st.just(np.nan))

FITTED: list[FittedTransform] = [ZScore(), MinMax(), MinMax(clip=False), LogSigmoidCentred(), Par(), Par(quantile=0.0)]


class Measured(rm.Provider):
    """A provider that knows the statistics of its scores."""

    name: ClassVar[str] = "measured"

    def __init__(self, mean: float, std: float, low: float = -1.0, high: float = 9.0) -> None:
        self.statistics = SimpleNamespace(mean=mean, std=std, min=low, max=high)

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        return rm.Scores(np.arange(len(samples), dtype=float))


def samples(size: int, *, prompts: int = 1) -> list[rm.Sample]:
    return [rm.Sample(f"Q{place % prompts}", "a") for place in range(size)]


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (Scale(), [-3, 0, np.nan, 5]),
        (Scale(factor=2.0, shift=1.0), [-8, -2, np.nan, 8]),
        (Clip(low=-1.0), [-1, 0, np.nan, 5]),
        (Clip(high=2), [-3, 0, np.nan, 2]),
        (Clip(low=-1, high=2), [-1, 0, np.nan, 2]),
        (ZScore(mean=1.0, std=2.0), [-2, -0.5, np.nan, 2]),
        (Tanh(scale=5.0), [math.tanh(-0.6), 0, np.nan, math.tanh(1)]),
        (Sigmoid(), [sigmoid(-3), 0.5, np.nan, sigmoid(5)]),
        (Par(centre=5.0), [sigmoid(-8), sigmoid(-5), np.nan, 0.5]),
        (LogSigmoidCentred(centre=5.0), [math.log(sigmoid(-8)), math.log(sigmoid(-5)), np.nan, math.log(0.5)]),
        (MinMax(low=-1.0, high=3.0), [0, 0.25, np.nan, 1]),
        (MinMax(low=-1.0, high=3.0, clip=False), [-0.5, 0.25, np.nan, 1.5]),
        (RankInGroup(), [0, 0.5, np.nan, 1]),
        (Chain(transforms=[Clip(low=0.0), Scale(factor=2.0)]), [0, 0, np.nan, 10]),
    ],
)
def test_by_hand(transform: rm.Transform, expected: list[float]) -> None:
    found = transform(SCORES, samples(4))
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(SCORES, [-3, 0, np.nan, 5])  # not in place


@given(BATCHES)
def test_abstentions_and_the_order_of_scores_are_kept(values: FloatArray) -> None:
    for transform in (
        Scale(factor=0.5, shift=3.0),
        Clip(low=-10.0, high=10.0),
        ZScore(mean=-1.0, std=3.0),
        ZScore(running=True),
        ZScore(running=True, warmup=0),
        Tanh(scale=100.0),
        Sigmoid(),
        Par(centre=1.0),
        LogSigmoidCentred(centre=1.0),
        MinMax(low=-10.0, high=10.0),
        RankInGroup(),
    ):
        found = transform(values, samples(len(values)))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
        given, kept = values[~np.isnan(values)], found[~np.isnan(found)]
        assert np.isfinite(kept).all()
        assert (np.diff(kept[np.argsort(given, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("transform", [Tanh(), Sigmoid(), Par(centre=0.0), LogSigmoidCentred(centre=0.0)])
def test_far_from_the_centre(transform: rm.Transform) -> None:
    found = transform(np.array([-1e6, -800.0, 800.0, 1e6]), samples(4))
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clip(), "clip needs `low`, `high`, or both"),
        (lambda: Clip(low=2.0, high=1.0), r"clip has low=2\.0 above high=1\.0"),
        (lambda: ZScore(mean=0.0, std=0.0), r"positive std, not 0\.0"),
        (lambda: ZScore(std=-1.0), r"positive std, not -1\.0"),
        (lambda: ZScore(running=True, warmup=-1), "warmup: must not be negative"),
        (lambda: Tanh(scale=0.0), r"tanh needs a positive scale, not 0\.0"),
        (lambda: MinMax(low=1.0, high=1.0), "min-max needs `low` below `high`"),
        (lambda: Par(quantile=1.5), r"quantile: must be from 0 to 1, not 1\.5"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_transforms_import_no_torch() -> None:
    program = "import rm_plugins.transforms, rm_plugins.training.reward_state, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_transform_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "transforms.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]*)\|", page, re.MULTILINE))
    assert set(rows) == {cls.name for cls in rm_register_transforms()}
    for cls in rm_register_transforms():
        arguments = [] if cls.__init__ is object.__init__ else list(inspect.signature(cls).parameters)
        assert re.findall(r"`(\w+)`", rows[cls.name]) == arguments


class TestRankInGroup:
    def test_completions_of_a_prompt_are_compared_with_each_other(self) -> None:
        values = np.array([5.0, 1.0, 7.0, 1.0, 6.0, np.nan, 6.0, 9.0, 1.0])
        found = RankInGroup()(values, [rm.Sample(prompt, "a") for prompt in "aabbaabcd"])
        # a: 5, 1, 6, NaN; b: 7, 1, 6; c and d are alone
        np.testing.assert_array_equal(found, [0.5, 0, 1, 0, 1, np.nan, 0.5, 0.5, 0.5])

    def test_ties_share_their_places(self) -> None:
        found = RankInGroup()(np.array([2.0, 1.0, 2.0, 2.0]), samples(4))
        np.testing.assert_allclose(found, [2 / 3, 0, 2 / 3, 2 / 3])

    @given(BATCHES)
    def test_the_mean_of_a_group_is_one_half(self, values: FloatArray) -> None:
        found = RankInGroup()(values, samples(len(values)))
        known = found[~np.isnan(found)]
        assert not len(known) or math.isclose(known.mean(), 0.5)


class TestFitting:
    @pytest.mark.parametrize("transform", FITTED, ids=lambda transform: str(transform.name))
    @given(values=arrays(np.float64, st.integers(2, 20), elements=FINITE, unique=True))
    def test_what_is_found_makes_the_same_transform(self, transform: FittedTransform, values: FloatArray) -> None:
        if np.ptp(values) < 1e-3:
            return
        found = transform.fit(np.append(values, np.nan))
        assert set(found) == set(transform.statistics)
        again = type(transform)(
            **json.loads(json.dumps(found)), **({"clip": transform.clip} if isinstance(transform, MinMax) else {})
        )
        np.testing.assert_array_equal(again(values, samples(len(values))), transform(values, samples(len(values))))

    def test_zscore(self) -> None:
        transform = ZScore(mean=99.0, std=99.0)
        assert transform.fit(SCORES) == {"mean": np.mean([-3, 0, 5]), "std": np.std([-3, 0, 5])}
        known = transform(SCORES, samples(4))[[0, 1, 3]]
        assert math.isclose(known.mean(), 0, abs_tol=1e-15)
        assert math.isclose(known.std(), 1)

    def test_min_max(self) -> None:
        assert MinMax().fit(SCORES) == {"low": -3.0, "high": 5.0}

    def test_a_centre_is_a_quantile(self) -> None:
        values = np.arange(101.0)
        assert LogSigmoidCentred().fit(values) == {"centre": 85.0}
        assert Par().fit(values) == {"centre": 50.0}
        assert Par(quantile=0.25).fit(values) == {"centre": 25.0}

    @pytest.mark.parametrize("transform", [ZScore(), MinMax(), Par()])
    def test_abstentions_only(self, transform: FittedTransform) -> None:
        with pytest.raises(DataError, match=f"no score to measure the statistics of '{transform.name}' on, only 3 abstentions"):
            transform.fit(np.full(3, np.nan))

    @pytest.mark.parametrize("transform", [ZScore(), MinMax()])
    def test_scores_that_do_not_differ(self, transform: FittedTransform) -> None:
        with pytest.raises(DataError, match=rf"All 4 scores are 0\.1: {transform.name} needs scores that differ"):
            transform.fit(np.full(4, 0.1))


class TestReference:
    """A file of scores in place of statistics."""

    @pytest.mark.parametrize("name", ["scores.jsonl", "scores.parquet"])
    def test_what_rm_plugins_score_writes(self, name: str, tmp_path: Path) -> None:
        write_rows([{"prompt": "Q", "score": score} for score in (1.0, 5.0, None) * 15], tmp_path / name)
        transform = ZScore(reference=str(tmp_path / name))
        np.testing.assert_array_equal(transform(np.array([1.0, 3.0, 5.0]), samples(3)), [-1, 0, 1])

    def test_lists_and_pairs(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [{"scores": [1, 2]}, {"chosen_score": 9.0, "rejected_score": -4.0}]
        write_rows(rows * 15, tmp_path / "scores.jsonl")
        transform = MinMax(reference=str(tmp_path / "scores.jsonl"))
        transform.settle()
        assert (transform.low, transform.high) == (-4.0, 9.0)

    def test_it_wins_over_the_manifest_and_what_is_given_over_it(self, tmp_path: Path) -> None:
        write_rows([{"score": 1.0}, {"score": 5.0}] * 15, tmp_path / "scores.jsonl")
        transform = ZScore(mean=7.0, reference=str(tmp_path / "scores.jsonl"))
        transform.bind(Measured(mean=100.0, std=100.0))
        assert (transform.mean, transform.std) == (7.0, 2.0)

    def test_a_spec_names_it_relative_to_itself(self, tmp_path: Path) -> None:
        write_rows([{"score": 1.0}, {"score": 5.0}] * 15, tmp_path / "scores.jsonl")
        spec = {"provider": "constant", "value": 5.0, "transform": {"name": "zscore", "reference": "scores.jsonl"}}
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        assert rm.load(tmp_path / "spec.json").score(samples(1)).values.tolist() == [1.0]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"reward": 1.0}], r"scores\.jsonl, row 1 has no scores \(columns score, .*\); it has reward"),
            ([{"score": 1.0}, {"score": "high"}], r"scores\.jsonl, row 2 has the score 'high'; a finite number, or null"),
            ([{"score": None}], "no score to measure the statistics"),
            ([], "no score to measure the statistics"),
            ([{"score": 1.0}, {"score": 2.0}], "needs at least 30 scores for its statistics, and there are 2"),
            ([{"score": 1.0}] * 30, "All 30 scores are 1.0"),
        ],
    )
    def test_a_file_of_something_else(self, rows: list[Any], message: str, tmp_path: Path) -> None:
        write_rows(rows, tmp_path / "scores.jsonl")
        with pytest.raises(SpecError, match=f"^reference: .*{message}"):
            ZScore(reference=str(tmp_path / "scores.jsonl")).settle()

    @pytest.mark.parametrize("name", ["absent.jsonl", "scores.txt", "-"])
    def test_no_file_of_scores(self, name: str) -> None:
        with pytest.raises(SpecError, match=r"reference: (There is no file|'.*' is not a file of scores)"):
            ZScore(reference=name).settle()


class TestZScoreOfAProvider:
    def test_its_statistics_fill_what_is_left_out(self) -> None:
        for transform, expected in [
            (ZScore(), [-0.5, 0]),
            (ZScore(mean=0.0), [0, 0.5]),
            (ZScore(std=1.0), [-1, 0]),
            (ZScore(mean=0.0, std=4.0), [0, 0.25]),
        ]:
            provider = Measured(mean=1.0, std=2.0)
            transform.bind(provider)
            provider.transform = transform
            np.testing.assert_array_equal(provider.score(samples(2)).values, expected)

    def test_a_deviation_of_zero_is_refused(self) -> None:
        with pytest.raises(
            SpecError, match=r"positive std, not 0\.0\. The missing statistics come from the manifest of 'measured'"
        ):
            ZScore().bind(Measured(mean=1.0, std=0.0))

    def test_without_statistics_both_are_needed(self) -> None:
        provider = Measured(1.0, 1.0)
        del provider.statistics
        for transform in (ZScore(), ZScore(mean=1.0), ZScore(std=1.0)):
            with pytest.raises(SpecError, match="zscore needs `mean` and `std`: 'measured' has no manifest"):
                transform.bind(provider)
        ZScore(mean=0.0, std=1.0).bind(provider)

    def test_unbound_it_says_what_is_missing(self) -> None:
        for transform, needed in ((ZScore(), "`mean` and `std`"), (MinMax(), "`low` and `high`"), (Par(), "`centre`")):
            with pytest.raises(SpecError, match=f"{transform.name} needs {needed}.*or let `rm-plugins calibrate` find them"):
                transform(SCORES, samples(4))

    def test_min_max_has_its_bounds_there(self) -> None:
        transform = MinMax()
        transform.bind(Measured(1.0, 1.0, low=-1.0, high=9.0))
        assert (transform.low, transform.high) == (-1.0, 9.0)

    def test_only_the_first_of_a_chain_reshapes_the_models_own_scores(self) -> None:
        provider = Measured(mean=1.0, std=2.0)
        Chain(transforms=[ZScore(), Tanh()]).bind(provider)
        with pytest.raises(SpecError, match="zscore needs `mean` and `std`"):
            Chain(transforms=[Tanh(), ZScore()]).bind(provider)


class TestRunning:
    def test_the_statistics_are_those_of_all_scores_and_the_prior(self) -> None:
        """The prior counts for `warmup` scores of its mean and deviation."""
        transform = ZScore(mean=10.0, std=3.0, running=True, warmup=4)
        batches = [np.array([1.0, 2.0, np.nan]), np.array([np.nan]), np.array([-5.0, 0.5, 8.0])]
        prior = [7.0, 7.0, 13.0, 13.0]  # four scores with the mean 10 and the deviation 3
        seen: list[float] = list(prior)
        for batch in batches:
            seen += batch[~np.isnan(batch)].tolist()
            expected = (batch - np.mean(seen)) / np.std(seen)
            np.testing.assert_allclose(transform(batch, samples(len(batch))), expected, rtol=1e-12)

    @pytest.mark.parametrize(
        ("transform", "expected"),
        [
            (ZScore(running=True), (0.0, 1.0)),
            (ZScore(mean=3.0, running=True), (3.0, 1.0)),
            (ZScore(mean=3.0, std=2.0, running=True), (3.0, 2.0)),
        ],
    )
    def test_it_begins_with_what_is_given_or_found(self, transform: ZScore, expected: tuple[float, float]) -> None:
        provider = Measured(mean=5.0, std=6.0)
        bound = ZScore(running=True)
        bound.bind(provider)
        assert (bound.mean, bound.std) == (5.0, 6.0)
        del provider.statistics
        transform.bind(provider)
        assert (transform.mean, transform.std) == expected

    def test_without_a_prior_one_score_is_its_own_mean(self) -> None:
        transform = ZScore(running=True, warmup=0)
        np.testing.assert_array_equal(transform(np.array([np.nan]), samples(1)), [np.nan])
        np.testing.assert_array_equal(transform(np.array([1e9]), samples(1)), [0])
        np.testing.assert_array_equal(transform(np.array([1e9 + 2]), samples(1)), [1])

    @given(arrays(np.float64, st.integers(1, 30), elements=FINITE), st.randoms())
    def test_the_order_of_a_batch_does_not_matter(self, values: FloatArray, random: Any) -> None:
        shuffled = values.tolist()
        random.shuffle(shuffled)
        first, second = RunningStatistics(), RunningStatistics()
        for _ in range(2):
            first.update(values)
            second.update(np.array(shuffled))
        assert first.state() == second.state()

    @given(st.lists(arrays(np.float64, st.integers(0, 8), elements=FINITE), min_size=1, max_size=6))
    def test_batches_add_up(self, batches: list[FloatArray]) -> None:
        running = RunningStatistics()
        for batch in batches:
            running.update(batch)
        together = np.concatenate(batches)
        if len(together):
            mean, std = running.moments(mean=0.0, std=1.0, weight=0)
            assert running.count == len(together)
            np.testing.assert_allclose(mean, together.mean(), rtol=1e-9, atol=1e-6)
            np.testing.assert_allclose(std, together.std(), rtol=1e-6, atol=1e-6)

    def test_its_state_goes_on_bit_by_bit(self) -> None:
        first, second = ZScore(running=True), ZScore(running=True)
        first(np.array([0.1, 0.2, 7.0]), samples(3))
        second.load_state(json.loads(json.dumps(first.state())))
        batch = np.array([1 / 3, np.nan, -2.0])
        np.testing.assert_array_equal(first(batch, samples(3)), second(batch, samples(3)))
        assert first.state() == second.state()
        assert ZScore(mean=0.0, std=1.0).state() == {}

    def test_a_chain_keeps_the_state_of_each(self) -> None:
        def chain() -> Chain:
            return Chain(transforms=[Tanh(), ZScore(running=True), Scale()])

        first, second = chain(), chain()
        first(SCORES, samples(4))
        assert set(first.state()) == {"1"}
        second.load_state(first.state())
        np.testing.assert_array_equal(first(SCORES, samples(4)), second(SCORES, samples(4)))
        with pytest.raises(DataError, match="of the transforms 1 of a chain, but in this one none learn"):
            Chain(transforms=[Tanh()]).load_state(first.state())

    def test_a_second_call_in_a_batch_is_taken_in_at_its_end(self) -> None:
        transform = ZScore(running=True, warmup=1)
        provider = Measured(0.0, 1.0)
        provider.transform = transform
        with shared_batch(provider):
            provider.score(samples(2))
            known = transform.state()
            provider.score(samples(3))
            assert transform.state() == known
        assert transform.state()["count"] == 5

    def test_what_the_tree_does_not_show_learns_at_once(self) -> None:
        transform = ZScore(running=True)
        with shared_batch(Measured(0.0, 1.0)):
            transform(SCORES, samples(4))
            assert transform.state()["count"] == 3
