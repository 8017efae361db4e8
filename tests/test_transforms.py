"""Reshapings of scores."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import rm_plugins as rm
from rm_plugins.errors import SpecError
from rm_plugins.transforms import Clip, Scale, ZScore
from rm_plugins.types import FloatArray

SCORES = np.array([-3.0, 0.0, np.nan, 5.0])
FINITE = st.floats(-1e6, 1e6)


class Measured(rm.Provider):
    """A provider that knows the statistics of its scores."""

    name: ClassVar[str] = "measured"

    def __init__(self, mean: float, std: float) -> None:
        self.statistics = SimpleNamespace(mean=mean, std=std)

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        return rm.Scores(np.arange(len(samples), dtype=float))


def samples(size: int) -> list[rm.Sample]:
    return [rm.Sample("", "a")] * size


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (Scale(), [-3, 0, np.nan, 5]),
        (Scale(factor=2.0, shift=1.0), [-8, -2, np.nan, 8]),
        (Clip(low=-1.0), [-1, 0, np.nan, 5]),
        (Clip(high=2), [-3, 0, np.nan, 2]),
        (Clip(low=-1, high=2), [-1, 0, np.nan, 2]),
        (ZScore(mean=1.0, std=2.0), [-2, -0.5, np.nan, 2]),
    ],
)
def test_by_hand(transform: rm.Transform, expected: list[float]) -> None:
    found = transform(SCORES, samples(4))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(SCORES, [-3, 0, np.nan, 5])  # not in place


@given(arrays(np.float64, st.integers(0, 20), elements=FINITE | st.just(np.nan)))
def test_abstentions_and_the_order_of_scores_are_kept(values: FloatArray) -> None:
    for transform in (Scale(factor=0.5, shift=3.0), Clip(low=-10.0, high=10.0), ZScore(mean=-1.0, std=3.0)):
        found = transform(values, samples(len(values)))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
        given, kept = values[~np.isnan(values)], found[~np.isnan(found)]
        assert (np.diff(kept[np.argsort(given, kind="stable")]) >= 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clip(), "clip needs `low`, `high`, or both"),
        (lambda: Clip(low=2.0, high=1.0), r"clip has low=2\.0 above high=1\.0"),
        (lambda: ZScore(mean=0.0, std=0.0), r"positive std, not 0\.0"),
        (lambda: ZScore(std=-1.0), r"positive std, not -1\.0"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


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
        with pytest.raises(SpecError, match=r"positive std; the manifest of 'measured' has 0\.0"):
            ZScore().bind(Measured(mean=1.0, std=0.0))

    def test_without_statistics_both_are_needed(self) -> None:
        provider = Measured(1.0, 1.0)
        del provider.statistics
        for transform in (ZScore(), ZScore(mean=1.0), ZScore(std=1.0)):
            with pytest.raises(SpecError, match="zscore needs `mean` and `std`: 'measured' has no manifest"):
                transform.bind(provider)
        ZScore(mean=0.0, std=1.0).bind(provider)

    def test_unbound_it_says_what_is_missing(self) -> None:
        with pytest.raises(SpecError, match="zscore needs `mean` and `std`"):
            ZScore()(SCORES, samples(4))
