"""The data of one reward's charts: pure functions of its scores and of the judged rows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from rm_plugins.evaluation.judged_rows import JudgedRows
from rm_plugins.evaluation.results import Distribution, LengthBin, LengthScatter, Members, SectionResult
from rm_plugins.evaluation.reward_figures import ScoredPairs
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.accuracy import accuracy, accuracy_estimate
from rm_plugins.statistics.best_of_n import BestOfN, best_of_n_curve
from rm_plugins.statistics.bias import FORMAT_FEATURES, FeatureBias, feature_bias, length_curve, longer_share
from rm_plugins.statistics.intervals import share_estimate
from rm_plugins.statistics.metrics import agreement, unanimous

_LENGTH_BINS = 8
_REWARD_BINS = 40
_POINTS = 600
_CURVE_POINTS = 60
_SAME = 1e-6
"""Rewards that differ by less than this share of their size are drawn as one value."""


def section_results(rows: JudgedRows, scored: ScoredPairs) -> tuple[SectionResult, ...]:
    """The accuracy of each section that has pairs, in the order of the data."""
    order = np.argsort(scored.section, kind="stable")
    starts = np.searchsorted(scored.section[order], np.arange(len(rows.sections) + 1))
    return tuple(
        SectionResult(
            name,
            len(where),
            accuracy_estimate(scored.delta, scored.cluster, where),
            longer_share(scored.longer[where]),
            share_estimate(scored.delta[where] == 0, scored.cluster[where]),
        )
        for name, (start, end) in zip(rows.sections, pairwise(starts), strict=True)
        if len(where := order[start:end])
    )


def accuracy_by_length(scored: ScoredPairs) -> tuple[LengthBin, ...]:
    """The accuracy by how much longer the winner is, in bins that hold about as many pairs each."""
    if not len(scored):
        return ()
    edges = np.unique(np.quantile(scored.longer, np.linspace(0, 1, _LENGTH_BINS + 1)).round())
    bins = max(1, len(edges) - 1)  # one where all pairs differ by the same
    place = np.clip(np.searchsorted(edges, scored.longer, side="right") - 1, 0, bins - 1)
    return tuple(
        LengthBin(float(low), float(high), int(where.sum()), accuracy_estimate(scored.delta, scored.cluster, where))
        for number, (low, high) in enumerate(zip(edges[:bins], edges[-bins:], strict=True))
        if (where := place == number).any()
    )


def reward_distribution(scored: ScoredPairs, values: FloatArray) -> Distribution | None:
    """Histograms of the rewards of the winners and of the losers."""
    if not len(scored):
        return None
    chosen, rejected = values[scored.pairs[:, 0]], values[scored.pairs[:, 1]]
    edges = _edges(np.concatenate([chosen, rejected]))
    counts = [np.histogram(side, edges)[0] for side in (chosen, rejected)]
    return Distribution(tuple(edges.tolist()), *(tuple(map(int, side)) for side in counts))


def length_scatter(rows: JudgedRows, values: FloatArray, *, seed: int) -> LengthScatter | None:
    """Rewards against lengths, and the curve through all of them; None where all lengths or all rewards are equal."""
    known = np.flatnonzero(~np.isnan(values))
    lengths, rewards = rows.lengths[known], values[known]
    if len(known) < 3 or np.ptp(lengths) == 0 or np.ptp(rewards) <= _SAME * np.abs(rewards).max():
        return None
    curve = length_curve(rewards, lengths)
    order = np.argsort(lengths, kind="stable")
    places = order[np.unique(np.linspace(0, len(order) - 1, _CURVE_POINTS).round().astype(np.intp))]
    drawn = np.random.default_rng(seed).permutation(len(known))[:_POINTS]
    columns = (lengths[drawn], rewards[drawn], lengths[places], curve[places])
    return LengthScatter(*(tuple(column.tolist()) for column in columns))


def format_biases(rows: JudgedRows, scored: ScoredPairs) -> tuple[FeatureBias, ...]:
    """The reward's preference for each feature of format in which pairs differ."""
    differences = (rows.features[scored.pairs[:, 0]] - rows.features[scored.pairs[:, 1]]).astype(np.float64)
    return tuple(
        feature_bias(name, scored.delta, column, scored.cluster)
        for name, column in zip(FORMAT_FEATURES, differences.T, strict=True)
        if column.any()
    )


def member_comparison(rows: JudgedRows, values: FloatArray, members: Mapping[str, FloatArray]) -> Members | None:
    """How the members of an ensemble compare on the pairs that all of them scored; None with fewer than two members."""
    if len(members) < 2:
        return None
    each = np.stack(list(members.values()))
    scored = ScoredPairs(rows, np.where(np.isnan(each).any(axis=0), np.nan, values))
    if not len(scored):
        return None
    deltas = each[:, scored.pairs[:, 0]] - each[:, scored.pairs[:, 1]]
    agreed = unanimous(deltas)
    return Members(
        names=tuple(members),
        accuracy=tuple(map(accuracy, deltas)),
        agreement=tuple(tuple(row) for row in agreement(deltas).tolist()),
        unanimous=float(agreed.mean()),
        accuracy_unanimous=accuracy(scored.delta[agreed]),
        accuracy_divided=accuracy(scored.delta[~agreed]),
    )


def best_of_n_of_lists(rows: JudgedRows, values: FloatArray) -> BestOfN | None:
    """The gold reward of the best of n by this reward; None where no completions have one.

    n goes up to the number of completions that most prompts have; prompts with fewer are left out.
    """
    lists = [samples for samples in rows.lists() if not np.isnan(values[samples]).any()]
    if not lists or not rows.gold_name:
        return None
    sizes, how_many = np.unique([len(samples) for samples in lists], return_counts=True)
    most = int(sizes[how_many.argmax()])
    lists = [samples for samples in lists if len(samples) >= most]
    scored = [(values[samples], rows.gold[samples]) for samples in lists]
    cluster = [int(rows.cluster[rows.row[samples[0]]]) for samples in lists]
    curve, _ = best_of_n_curve(scored, most, cluster, gold=rows.gold_name)
    return curve


def _edges(values: FloatArray) -> FloatArray:
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high))
    room = max(0.5, 0.1 * size) if high - low <= _SAME * size else 0.0  # else 40 bins would show rounding
    try:
        edges = np.histogram_bin_edges(values, _REWARD_BINS, (low - room, high + room))
    except ValueError:  # rewards that fill all that a float can be
        edges = np.array([values.min(), values.max()])
    return np.asarray(edges, dtype=np.float64)
