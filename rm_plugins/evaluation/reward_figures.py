"""The figures of one reward: pure functions of its scores and of what is known of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_plugins.evaluation.figures import figures_of
from rm_plugins.evaluation.judged_rows import JudgedRows
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.accuracy import pair_shares
from rm_plugins.statistics.bias import LEAST_SAMPLES, length_corrected
from rm_plugins.statistics.intervals import (
    Estimate,
    correlation_estimate,
    mean_estimate,
    mean_estimates,
    share_estimate,
    share_estimates,
)
from rm_plugins.statistics.metrics import (
    auc,
    best_of,
    expected_calibration_error,
    kendall,
    ndcg,
    spearman,
    unanimous,
)
from rm_plugins.statistics.ranks import mean_ranks

__all__ = ["BINS", "ScoredPairs", "reward_figures"]

BINS = 20
"""Of the win probability, in the calibration."""


class ScoredPairs:
    """The pairs of which a reward scored both samples.

    Args:
        rows: What is known of the rows.
        values: float64 [N], the rewards, NaN where it abstained.

    Attributes:
        number: int [P], the place of each such pair among all.
        pairs: int [P, 2], the samples of winner and loser.
        delta: float64 [P], the winner's reward minus the loser's.
        longer: float64 [P], by how many characters the winner is longer.
        cluster: int [P], equal where pairs are not independent, such as those of one prompt.
        section: int [P], the number of the section, -1 for none.
    """

    def __init__(self, rows: JudgedRows, values: FloatArray) -> None:
        delta = values[rows.pairs[:, 0]] - values[rows.pairs[:, 1]]
        self.number: NDArray[np.intp] = np.flatnonzero(~np.isnan(delta))
        self.pairs = rows.pairs[self.number]
        self.delta: FloatArray = delta[self.number]
        self.longer: FloatArray = rows.longer[self.number]
        row = rows.pair_row[self.number]
        self.cluster = rows.cluster[row]
        self.section = rows.section[row]

    def __len__(self) -> int:
        return len(self.number)


def reward_figures(
    rows: JudgedRows,
    scored: ScoredPairs,
    values: FloatArray,
    members: Mapping[str, FloatArray],
    **settings: int,
) -> dict[str, Estimate]:
    """The figures of `rm_plugins.evaluation.figures.FIGURES` that the data allows, in their order.

    Samples on which the reward abstained are left out, with the pairs and lists that they are in.

    Args:
        rows: What is known of R rows with N samples.
        scored: The pairs of which it scored both samples.
        values: float64 [N], the rewards, NaN where it abstained.
        members: float64 [N] of each member of an ensemble, by name.
        settings: `resamples` and `seed` of the intervals.
    """
    figures = {
        **_of_pairs(scored, settings),
        **_of_lengths(rows, scored, values, settings),
        **_of_lists(rows, values, settings),
        **_of_attributes(rows, values, settings),
        **_of_members(rows, values, members, settings),
    }
    known = values[~np.isnan(values)]
    if len(known):
        figures["mean_reward"], figures["std_reward"] = _plain(float(known.mean())), _plain(float(known.std()))
    names = figures_of(rows.attributes)
    return {name: figures[name] for name in names if name in figures and math.isfinite(figures[name].value)}


def _of_pairs(scored: ScoredPairs, settings: Mapping[str, Any]) -> dict[str, Estimate]:
    delta, cluster = scored.delta, scored.cluster
    if not len(delta):
        return {}
    shares = {name: np.where(where, holds, np.nan) for name, (where, holds) in pair_shares(delta, scored.longer).items()}
    means = {
        "margin": delta,
        "log_loss": np.logaddexp(0, -delta),
        "brier": np.square((1 - np.tanh(delta / 2)) / 2),
    }
    return {
        **share_estimates(shares, cluster, **settings),
        **mean_estimates(means, cluster, **settings),
        "ece": _plain(expected_calibration_error(delta, BINS)),  # which drawing again makes larger, for it has no sign
    }


def _of_lengths(rows: JudgedRows, scored: ScoredPairs, values: FloatArray, settings: Mapping[str, Any]) -> dict[str, Estimate]:
    known = np.flatnonzero(~np.isnan(values))
    lengths, cluster = rows.lengths[known], rows.cluster[rows.row[known]]
    figures = {"length_correlation": correlation_estimate(values[known], lengths, cluster, **settings)} if len(known) else {}
    if len(scored) and len(known) >= LEAST_SAMPLES:
        corrected = np.full(len(values), np.nan)
        corrected[known] = length_corrected(values[known], lengths)
        delta = corrected[scored.pairs[:, 0]] - corrected[scored.pairs[:, 1]]
        # A tie counts half, since all of a reward that is length alone is equal without it: that is chance, and no fault.
        figures["accuracy_corrected"] = mean_estimate((1 + np.sign(delta)) / 2, scored.cluster, **settings)
    if len(scored):
        chosen, rejected = np.unique(scored.pairs[:, 0]), np.unique(scored.pairs[:, 1])
        if not np.isin(chosen, rejected).any():  # in a ranking, a sample is better than one and worse than another
            both = np.concatenate([values[chosen], values[rejected]])
            figures["auc"] = _plain(auc(both, np.repeat([1, 0], [len(chosen), len(rejected)])))
    return figures


def _of_lists(rows: JudgedRows, values: FloatArray, settings: Mapping[str, Any]) -> dict[str, Estimate]:
    columns: dict[str, list[tuple[float, int]]] = {
        name: [] for name in ("top_1", "top_1_random", "ndcg", "kendall", "spearman")
    }
    for samples in rows.lists():
        reward, gold = values[samples], rows.gold[samples]
        cluster = int(rows.cluster[rows.row[samples[0]]])
        if np.isnan(reward).any() or np.ptp(gold) == 0:
            continue
        best = (gold == gold.max()).astype(np.float64)
        measured = {
            "top_1": best_of(reward, best),
            "top_1_random": float(best.mean()),
            "ndcg": ndcg(reward, gold - min(0.0, float(gold.min()))),
            "kendall": kendall(reward, gold),
            "spearman": spearman(reward, gold),
        }
        for name, value in measured.items():
            if not math.isnan(value):  # of equal rewards, no rank correlation
                columns[name].append((value, cluster))
    return {name: mean_estimate(*zip(*column, strict=True), **settings) for name, column in columns.items() if column}


def _of_attributes(rows: JudgedRows, values: FloatArray, settings: Mapping[str, Any]) -> dict[str, Estimate]:
    figures: dict[str, Estimate] = {}
    for attribute, column in zip(rows.attributes, rows.labels.T, strict=True):
        known = ~np.isnan(column) & ~np.isnan(values)
        reward, label, cluster = values[known], column[known], rows.cluster[rows.row[known]]
        if not len(reward):
            continue
        if np.isin(label, (0, 1)).all():
            figures[f"auc/{attribute}"] = _plain(auc(reward, label))
            continue
        figures[f"correlation/{attribute}"] = correlation_estimate(reward, label, cluster, **settings)
        figures[f"spearman/{attribute}"] = correlation_estimate(mean_ranks(reward), mean_ranks(label), cluster, **settings)
        figures[f"kendall/{attribute}"] = _plain(kendall(reward, label))
    return figures


def _of_members(
    rows: JudgedRows, values: FloatArray, members: Mapping[str, FloatArray], settings: Mapping[str, Any]
) -> dict[str, Estimate]:
    if len(members) < 2:
        return {}
    each = np.stack(list(members.values()))
    known = ~np.isnan(each).any(axis=0)
    figures = {}
    if known.any():
        cluster = rows.cluster[rows.row[known]]
        figures["member_std"] = mean_estimate(each[:, known].std(axis=0), cluster, **settings)
    scored = ScoredPairs(rows, np.where(known, values, np.nan))
    if len(scored):
        deltas = each[:, scored.pairs[:, 0]] - each[:, scored.pairs[:, 1]]
        figures["member_agreement"] = share_estimate(unanimous(deltas), scored.cluster, **settings)
    return figures


def _plain(value: float) -> Estimate:
    return Estimate(value, math.nan, math.nan)
