"""How two rewards differ on the same pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rm_plugins.evaluation.judged_rows import JudgedRows
from rm_plugins.evaluation.results import Difference, FlippedPair, JudgedPair
from rm_plugins.evaluation.reward_figures import ScoredPairs
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.intervals import mean_estimate, paired_test


def reward_difference(
    rows: JudgedRows,
    first: tuple[str, FloatArray],
    other: tuple[str, FloatArray],
    show: Callable[[int, FloatArray], JudgedPair],
    *,
    shown: int,
    seed: int,
) -> Difference | None:
    """How reward b differs from reward a; None if they scored no common pair.

    Args:
        rows: What is known of the rows.
        first: The name of a and its rewards, float64 [N].
        other: Those of b.
        show: Makes a pair to show of its number and the rewards.
        shown: How many pairs to show of those that b has won, and of those that it has lost.
        seed: Of the test.
    """
    (name_a, a), (name_b, b) = first, other
    both = ScoredPairs(rows, np.where(np.isnan(a), np.nan, b))
    if not len(both):
        return None
    delta_a = a[both.pairs[:, 0]] - a[both.pairs[:, 1]]
    right_a, right_b = ((delta > 0).astype(np.float64) for delta in (delta_a, both.delta))
    test = paired_test(right_a, right_b, both.cluster, seed=seed)
    change = right_b - right_a
    sections = {
        name: mean_estimate(change[where], both.cluster[where], bounds=(-1.0, 1.0))
        for number, name in enumerate(rows.sections)
        if (where := both.section == number).any()
    }

    won, lost = (
        tuple(
            FlippedPair(show(int(both.number[place]), b), *(float(a[sample]) for sample in both.pairs[place]))
            for place in places[:shown]
        )
        for places in flipped_pairs(delta_a, both.delta)
    )
    return Difference(
        a=name_a,
        b=name_b,
        pairs=len(both),
        accuracy=test.difference,
        p_value=test.p_value,
        only_a=test.only_a,
        only_b=test.only_b,
        sections=sections,
        won=won,
        lost=lost,
    )


def flipped_pairs(a: FloatArray, b: FloatArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The places of the pairs that b alone has right, and of those that a alone has right, the clearest first.

    How clear a flip is depends on both: the difference of each reward is divided by its spread.

    Args:
        a: float64 [P], the winner's reward minus the loser's, by a.
        b: float64 [P], by b.

    >>> [places.tolist() for places in flipped_pairs(np.array([-1.0, 2.0, -4.0]), np.array([1.0, -1.0, 1.0]))]
    [[2, 0], [1]]
    """
    size = np.abs(a) / _spread(a) + np.abs(b) / _spread(b)
    order = np.argsort(-size, kind="stable")
    right_a, right_b = a > 0, b > 0
    return order[(right_b & ~right_a)[order]], order[(right_a & ~right_b)[order]]


def _spread(delta: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(delta)))) or 1.0
