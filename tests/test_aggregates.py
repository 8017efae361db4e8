"""Every aggregate is its plain formula, member by member, with those that gave a score."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import rm_plugins as rm
from rm_plugins.errors import SpecError
from rm_plugins.spec import component

Formula = Callable[[Sequence[float]], float]


def quantile(scores: Sequence[float], q: float) -> float:
    """Linear between the two nearest of the ordered scores."""
    ordered, place = sorted(scores), q * (len(scores) - 1)
    below = math.floor(place)
    above = min(below + 1, len(scores) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def trimmed(scores: Sequence[float], share: float) -> float:
    cut = min(math.floor(share * MEMBERS + 1e-9), (len(scores) - 1) // 2)
    return statistics.fmean(sorted(scores)[cut : len(scores) - cut])


def soft_minimum(scores: Sequence[float], beta: float) -> float:
    lowest = min(scores)  # taken out of the exponent, which would overflow
    return lowest - math.log(sum(math.exp(-beta * (score - lowest)) for score in scores) / len(scores)) / beta


def variance(scores: Sequence[float], ddof: int) -> float:
    mean = statistics.fmean(scores)
    return sum((score - mean) ** 2 for score in scores) / (len(scores) - ddof)


MEMBERS = 5
CASES: list[tuple[dict[str, Any], Formula]] = [
    ({"name": "mean"}, statistics.fmean),
    ({"name": "median"}, statistics.median),
    ({"name": "min"}, min),
    ({"name": "max"}, max),
    ({"name": "softmin"}, lambda scores: soft_minimum(scores, 1.0)),
    ({"name": "softmin", "beta": 0.3}, lambda scores: soft_minimum(scores, 0.3)),
    ({"name": "lcb"}, lambda scores: statistics.fmean(scores) - math.sqrt(variance(scores, 0))),
    ({"name": "lcb", "k": 2.0, "ddof": 1}, lambda scores: statistics.fmean(scores) - 2 * math.sqrt(variance(scores, 1))),
    ({"name": "lcb", "k": 0.0}, statistics.fmean),
    ({"name": "uwo"}, lambda scores: statistics.fmean(scores) - 0.5 * variance(scores, 0)),
    ({"name": "uwo", "coefficient": 0.1, "ddof": 1}, lambda scores: statistics.fmean(scores) - 0.1 * variance(scores, 1)),
    ({"name": "quantile"}, lambda scores: quantile(scores, 0.25)),
    ({"name": "quantile", "q": 0.9}, lambda scores: quantile(scores, 0.9)),
    ({"name": "quantile", "q": 0.0}, min),
    ({"name": "trimmed-mean"}, lambda scores: trimmed(scores, 0.2)),
    ({"name": "trimmed-mean", "share": 0.4}, lambda scores: trimmed(scores, 0.4)),
]

SCORES = arrays(np.float64, st.tuples(st.just(MEMBERS), st.integers(1, 6)), elements=st.floats(-20, 20, width=32))


def aggregate(spec: str | dict[str, Any], members: int = MEMBERS) -> Any:
    found = component("aggregate", spec)
    found.bind(members)
    return found


@pytest.mark.parametrize(("spec", "formula"), CASES, ids=lambda found: getattr(found, "__name__", str(found)))
@given(members=SCORES)
def test_the_formula(spec: dict[str, Any], formula: Formula, members: Any) -> None:
    expected = [formula(column) for column in members.T.tolist()]
    np.testing.assert_allclose(aggregate(spec)(members), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("spec", "formula"), CASES, ids=lambda found: getattr(found, "__name__", str(found)))
@given(members=SCORES, missing=st.lists(st.integers(0, MEMBERS - 1), max_size=MEMBERS - 2, unique=True))
def test_over_those_that_gave_a_score(spec: dict[str, Any], formula: Formula, members: Any, missing: list[int]) -> None:
    holes = members.copy()
    holes[missing, 0] = np.nan  # of the first sample only
    expected = [formula([score for score in column if not math.isnan(score)]) for column in holes.T.tolist()]
    np.testing.assert_allclose(aggregate(spec)(holes), expected, rtol=1e-9, atol=1e-9)


@given(
    members=SCORES,
    outlier=st.sampled_from([-1e9, 1e9]),
    missing=st.lists(st.integers(1, MEMBERS - 1), max_size=MEMBERS - 3, unique=True),
)
def test_a_trimmed_mean_leaves_an_outlier_out_whoever_else_is_missing(members: Any, outlier: float, missing: list[int]) -> None:
    members[0] = outlier
    members[missing] = np.nan
    assert np.abs(aggregate("trimmed-mean")(members)).max() <= 20


@given(members=SCORES, weights=st.lists(st.integers(0, 4), min_size=MEMBERS, max_size=MEMBERS).filter(any))
def test_a_weighted_mean(members: Any, weights: list[int]) -> None:
    holes = members.copy()
    holes[0, 0] = np.nan
    expected = []
    for column in holes.T.tolist():
        present = [(score, weight) for score, weight in zip(column, weights, strict=True) if not math.isnan(score)]
        total = sum(weight for _, weight in present)
        expected.append(sum(score * weight for score, weight in present) / total if total else math.nan)
    found = aggregate({"name": "weighted", "weights": [float(weight) for weight in weights]})(holes)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@given(members=SCORES, shift=st.floats(-5, 5))
def test_a_shift_of_all_members_shifts_the_reward(members: Any, shift: float) -> None:
    for spec, _ in CASES:
        found = aggregate(spec)
        np.testing.assert_allclose(found(members + shift), found(members) + shift, rtol=1e-7, atol=1e-7)


def test_one_members_change_of_scale_matters_where_that_is_said() -> None:
    generator = np.random.default_rng(0)
    members = generator.normal(size=(MEMBERS, 50))
    shifted = members + np.array([[-100.0], [0], [0], [0], [0]])
    for spec, _ in CASES:
        found = aggregate(spec)
        moved = found(shifted) - found(members)
        if found.name in ("min", "softmin", "lcb", "uwo") and spec.get("k") != 0:
            assert found.needs_common_scale
            assert np.abs(moved).max() > 50, spec  # the shifted member alone decides
    assert not any(aggregate(name).needs_common_scale for name in ("mean", "median", "trimmed-mean"))


def test_one_with_a_spread_of_too_few_gives_none() -> None:
    members = np.array([[1.0, 1.0], [np.nan, 2.0]])
    for name in ("lcb", "uwo"):
        found = aggregate({"name": name, "ddof": 1}, 2)(members)
        assert np.isnan(found[0]) and np.isfinite(found[1])
        assert aggregate(name, 2)(members)[0] == 1.0


def test_far_apart_members_do_not_overflow() -> None:
    members = np.array([[1e4, -1e4], [-1e4, 1e4]])
    np.testing.assert_allclose(aggregate({"name": "softmin", "beta": 10.0}, 2)(members), -1e4 + math.log(2) / 10)


@pytest.mark.parametrize(
    ("spec", "members", "key", "message"),
    [
        ({"name": "weighted", "weights": [1.0, 2.0]}, 3, "weights", "there are 2 weights for 3 members"),
        ({"name": "weighted", "weights": [0.0, 0.0]}, 2, "weights", "one must be positive"),
        ({"name": "weighted", "weights": [1.0, -1.0]}, 2, "weights", "finite and not negative"),
        ({"name": "weighted", "weights": [1.0, math.inf]}, 2, "weights", "finite and not negative"),
        ({"name": "softmin", "beta": 0.0}, 2, "beta", "beta must be positive, not 0"),
        ({"name": "lcb", "k": -1.0}, 2, "k", "disagreement would be rewarded"),
        ({"name": "lcb", "ddof": 2}, 3, "ddof", "ddof must be 0 or 1"),
        ({"name": "lcb"}, 1, "", "one member has no spread"),
        ({"name": "uwo", "coefficient": -0.1}, 2, "coefficient", "must not be negative"),
        ({"name": "uwo", "ddof": 1}, 1, "", "one member has no spread"),
        ({"name": "quantile", "q": 1.5}, 2, "q", "between 0 and 1, not 1.5"),
        ({"name": "trimmed-mean", "share": 0.5}, 4, "share", "below 0.5"),
        ({"name": "trimmed-mean", "share": 0.0}, 4, "share", "above 0"),
        ({"name": "trimmed-mean", "share": 0.2}, 4, "share", "leaves out no member; give at least 0.25"),
    ],
)
def test_what_does_not_fit_is_named_by_its_key(spec: dict[str, Any], members: int, key: str, message: str) -> None:
    path = f"aggregate.{key}" if key else "aggregate"
    ensemble = {
        "provider": "ensemble",
        "members": [{"provider": "function", "function": nothing}] * members,
        "aggregate": spec,
        "common_scale": True,
    }
    with pytest.raises(SpecError) as caught:
        rm.load(ensemble)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def nothing(samples: Sequence[rm.Sample]) -> list[None]:
    return [None] * len(samples)


def test_every_built_in_is_here() -> None:
    assert {spec["name"] for spec, _ in CASES} | {"weighted"} == set(rm.Registry().all("aggregate"))
