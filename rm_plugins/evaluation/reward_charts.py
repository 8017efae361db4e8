"""What the charts of one reward show: pure functions of its scores and of what is known of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_plugins.evaluation.judged_rows import JudgedRows
from rm_plugins.evaluation.results import BestOfN, Distribution, LengthBin, LengthScatter, Members, SectionResult
from rm_plugins.evaluation.reward_figures import ScoredPairs
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.best_of_n import best_of_n, best_of_n_counts, best_of_n_kl
from rm_plugins.statistics.bias import FORMAT_FEATURES, FeatureBias, feature_bias, length_curve, longer_preference
from rm_plugins.statistics.intervals import Estimate, mean_estimate, share_estimate
from rm_plugins.statistics.metrics import agreement

__all__ = [
    "accuracy_by_length",
    "best_of_n_curve",
    "format_biases",
    "length_scatter",
    "longer_share",
    "member_comparison",
    "reward_distribution",
    "section_results",
]

_LENGTH_BINS = 8
_REWARD_BINS = 40
_POINTS = 600
_CURVE_POINTS = 60


def longer_share(longer: FloatArray) -> float:
    """Of pairs of two lengths, the share whose winner is the longer; NaN where there is none."""
    return longer_preference(np.ones_like(longer), longer)


def section_results(rows: JudgedRows, scored: ScoredPairs, *, resamples: int, seed: int) -> tuple[SectionResult, ...]:
    """The accuracy of each section that has pairs, in the order of the data."""
    order = np.argsort(scored.section, kind="stable")
    starts = np.searchsorted(scored.section[order], np.arange(len(rows.sections) + 1))
    found = []
    for name, (start, end) in zip(rows.sections, pairwise(starts), strict=True):
        if end > start:
            where = order[start:end]
            accuracy = _accuracy(scored, where, resamples, seed)
            found.append(SectionResult(name, len(where), accuracy, longer_share(scored.longer[where])))
    return tuple(found)


def accuracy_by_length(scored: ScoredPairs, *, resamples: int, seed: int) -> tuple[LengthBin, ...]:
    """The accuracy by how much longer the winner is, in bins that hold about as many pairs each."""
    if not len(scored):
        return ()
    edges = np.unique(np.quantile(scored.longer, np.linspace(0, 1, _LENGTH_BINS + 1)).round())
    if len(edges) == 1:
        return (LengthBin(edges[0], edges[0], len(scored), _accuracy(scored, scored.longer == edges[0], resamples, seed)),)
    place = np.clip(np.searchsorted(edges, scored.longer, side="right") - 1, 0, len(edges) - 2)
    bins = []
    for number in range(len(edges) - 1):
        where = place == number
        if where.any():
            low, high = float(edges[number]), float(edges[number + 1])
            bins.append(LengthBin(low, high, int(where.sum()), _accuracy(scored, where, resamples, seed)))
    return tuple(bins)


def reward_distribution(scored: ScoredPairs, values: FloatArray) -> Distribution | None:
    """Histograms of the rewards of the winners and of the losers."""
    if not len(scored):
        return None
    chosen, rejected = values[scored.pairs[:, 0]], values[scored.pairs[:, 1]]
    edges = _edges(np.concatenate([chosen, rejected]))
    counts = [np.histogram(side, edges)[0] for side in (chosen, rejected)]
    return Distribution(tuple(edges.tolist()), *(tuple(map(int, side)) for side in counts))


def length_scatter(rows: JudgedRows, values: FloatArray, *, seed: int) -> LengthScatter | None:
    """Rewards against lengths, and the curve through all of them; None where either is all the same."""
    known = np.flatnonzero(~np.isnan(values))
    lengths, rewards = rows.lengths[known], values[known]
    if len(known) < 3 or np.ptp(lengths) == 0 or np.ptp(rewards) == 0:
        return None
    curve = length_curve(rewards, lengths)
    order = np.argsort(lengths, kind="stable")
    places = order[np.unique(np.linspace(0, len(order) - 1, _CURVE_POINTS).round().astype(np.intp))]
    drawn = np.random.default_rng(seed).permutation(len(known))[:_POINTS]
    columns = (lengths[drawn], rewards[drawn], lengths[places], curve[places])
    return LengthScatter(*(tuple(column.tolist()) for column in columns))


def format_biases(rows: JudgedRows, scored: ScoredPairs, *, resamples: int, seed: int) -> tuple[FeatureBias, ...]:
    """How the reward takes to each feature of format in which pairs differ."""
    differences = (rows.features[scored.pairs[:, 0]] - rows.features[scored.pairs[:, 1]]).astype(np.float64)
    return tuple(
        feature_bias(name, scored.delta, column, scored.cluster, resamples=resamples, seed=seed)
        for name, column in zip(FORMAT_FEATURES, differences.T, strict=True)
        if column.any()
    )


def member_comparison(rows: JudgedRows, values: FloatArray, members: Mapping[str, FloatArray]) -> Members | None:
    """How the members of an ensemble compare on the pairs that all of them scored; None where there are no two."""
    if len(members) < 2:
        return None
    each = np.stack(list(members.values()))
    scored = ScoredPairs(rows, np.where(np.isnan(each).any(axis=0), np.nan, values))
    if not len(scored):
        return None
    deltas = each[:, scored.pairs[:, 0]] - each[:, scored.pairs[:, 1]]
    unanimous: NDArray[np.bool_] = (np.sign(deltas) == np.sign(deltas[:1])).all(axis=0)
    right = scored.delta > 0
    return Members(
        names=tuple(members),
        accuracy=tuple((deltas > 0).mean(axis=1).tolist()),
        agreement=tuple(tuple(row) for row in agreement(deltas).tolist()),
        unanimous=float(unanimous.mean()),
        accuracy_unanimous=_mean(right[unanimous]),
        accuracy_divided=_mean(right[~unanimous]),
    )


def best_of_n_curve(rows: JudgedRows, values: FloatArray, *, resamples: int, seed: int) -> BestOfN | None:
    """The gold reward of the best of n by this reward; None where no completions have one.

    n goes up to the number of completions that most prompts have; prompts with fewer are left out.
    """
    lists = [samples for samples in rows.lists() if not np.isnan(values[samples]).any()]
    if not lists or not rows.gold_name:
        return None
    sizes, how_many = np.unique([len(samples) for samples in lists], return_counts=True)
    most = int(sizes[how_many.argmax()])
    lists = [samples for samples in lists if len(samples) >= most]
    counts = best_of_n_counts(most)
    gold = np.array([best_of_n(values[samples], rows.gold[samples], counts) for samples in lists])
    ceiling = np.array([best_of_n(rows.gold[samples], rows.gold[samples], counts) for samples in lists])
    cluster = [int(rows.cluster[rows.row[samples[0]]]) for samples in lists]
    return BestOfN(
        gold=rows.gold_name,
        prompts=len(lists),
        n=tuple(counts),
        kl=tuple(best_of_n_kl(n) for n in counts),
        mean=tuple(mean_estimate(column, cluster, resamples=resamples, seed=seed) for column in gold.T),
        best=tuple(ceiling.mean(axis=0).tolist()),
    )


def _edges(values: FloatArray) -> FloatArray:
    try:
        edges = np.histogram_bin_edges(values, _REWARD_BINS)
    except ValueError:  # rewards that differ by their rounding alone, or fill all that a float can be
        edges = np.array([values.min(), values.max()])
    return np.asarray(edges, dtype=np.float64)


def _accuracy(scored: ScoredPairs, where: NDArray[Any], resamples: int, seed: int) -> Estimate:
    return share_estimate(scored.delta[where] > 0, scored.cluster[where], resamples=resamples, seed=seed)


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else math.nan
