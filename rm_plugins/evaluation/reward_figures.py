"""The figures of one reward: pure functions of its scores and of the judged rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rm_plugins.evaluation.figures import figures_of
from rm_plugins.evaluation.judged_rows import JudgedRows
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.accuracy import pair_shares, three_class_agreement
from rm_plugins.statistics.bias import LEAST_SAMPLES
from rm_plugins.statistics.intervals import Estimate, correlation_estimate, mean_estimate, share_estimate
from rm_plugins.statistics.length_control import accuracy_at_equal_length, accuracy_without_length
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

BINS = 20
"""The number of bins of the win probability in the calibration."""


class ScoredPairs:
    """The pairs for which a reward scored both samples.

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
    *,
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """The figures of `rm_plugins.evaluation.figures.FIGURES` that the data allows, in their order.

    Samples on which the reward abstained are left out, with the pairs and lists that they are in.

    Args:
        rows: What is known of R rows with N samples.
        scored: The pairs of which it scored both samples.
        values: float64 [N], the rewards, NaN where it abstained.
        members: float64 [N] of each member of an ensemble, by name.
        resamples: How often the length control is fitted again for its interval.
        seed: Of that.
    """
    figures = {
        **_of_pairs(scored),
        **_of_ties(rows, scored, values),
        **_of_lengths(rows, scored, values, resamples, seed),
        **_of_lists(rows, values),
        **_of_attributes(rows, values),
        **_of_members(rows, values, members),
    }
    known = values[~np.isnan(values)]
    if len(known):
        figures["mean_reward"], figures["std_reward"] = _plain(float(known.mean())), _plain(float(known.std()))
    names = figures_of(rows.attributes)
    return {name: figures[name] for name in names if name in figures and math.isfinite(figures[name].value)}


def _of_pairs(scored: ScoredPairs) -> dict[str, Estimate]:
    delta, cluster = scored.delta, scored.cluster
    if not len(delta):
        return {}
    return {
        **{
            name: share_estimate(holds[where], cluster[where])
            for name, (where, holds) in pair_shares(delta, scored.longer).items()
        },
        "accuracy_ties_half": share_estimate((1 + np.sign(delta)) / 2, cluster),
        "accuracy_equal_length": accuracy_at_equal_length(delta, scored.longer, cluster),
        "margin": mean_estimate(delta, cluster),
        "log_loss": mean_estimate(np.logaddexp(0, -delta), cluster),
        "brier": share_estimate(np.square((1 - np.tanh(delta / 2)) / 2), cluster),
        "ece": _plain(expected_calibration_error(delta, BINS)),  # whose error has no sign, and so no interval around it
    }


def _of_ties(rows: JudgedRows, scored: ScoredPairs, values: FloatArray) -> dict[str, Estimate]:
    tied = values[rows.ties[:, 0]] - values[rows.ties[:, 1]]
    known = ~np.isnan(tied)
    if not known.any():
        return {}
    agreement, threshold = three_class_agreement(scored.delta, tied[known])
    agreed = np.concatenate([scored.delta > threshold, np.abs(tied[known]) <= threshold])
    cluster = np.concatenate([scored.cluster, rows.cluster[rows.row[rows.ties[known, 0]]]])
    interval = share_estimate(agreed, cluster)
    return {"agreement": replace(interval, value=agreement), "tie_threshold": _plain(threshold)}


def _of_lengths(rows: JudgedRows, scored: ScoredPairs, values: FloatArray, resamples: int, seed: int) -> dict[str, Estimate]:
    known = np.flatnonzero(~np.isnan(values))
    lengths, cluster = rows.lengths[known], rows.cluster[rows.row[known]]
    figures = {"length_correlation": correlation_estimate(values[known], lengths, cluster)} if len(known) else {}
    if len(scored) and len(known) >= LEAST_SAMPLES:
        figures["accuracy_corrected"] = accuracy_without_length(
            values[known], lengths, np.searchsorted(known, scored.pairs), cluster, refits=resamples, seed=seed
        )
    if len(scored):
        chosen, rejected = np.unique(scored.pairs[:, 0]), np.unique(scored.pairs[:, 1])
        if not np.isin(chosen, rejected).any():  # in a ranking, a sample is better than one and worse than another
            both = np.concatenate([values[chosen], values[rejected]])
            figures["auc"] = _plain(auc(both, np.repeat([1, 0], [len(chosen), len(rejected)])))
    return figures


def _of_lists(rows: JudgedRows, values: FloatArray) -> dict[str, Estimate]:
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
    return {
        name: mean_estimate(*zip(*column, strict=True), bounds=(-1.0, 1.0) if name in ("kendall", "spearman") else (0.0, 1.0))
        for name, column in columns.items()
        if column
    }


def _of_attributes(rows: JudgedRows, values: FloatArray) -> dict[str, Estimate]:
    figures: dict[str, Estimate] = {}
    for attribute, column in zip(rows.attributes, rows.labels.T, strict=True):
        known = ~np.isnan(column) & ~np.isnan(values)
        reward, label, cluster = values[known], column[known], rows.cluster[rows.row[known]]
        if not len(reward):
            continue
        if np.isin(label, (0, 1)).all():
            figures[f"auc/{attribute}"] = _plain(auc(reward, label))
            continue
        figures[f"correlation/{attribute}"] = correlation_estimate(reward, label, cluster)
        figures[f"spearman/{attribute}"] = correlation_estimate(mean_ranks(reward), mean_ranks(label), cluster)
        figures[f"kendall/{attribute}"] = _plain(kendall(reward, label))
    return figures


def _of_members(rows: JudgedRows, values: FloatArray, members: Mapping[str, FloatArray]) -> dict[str, Estimate]:
    if len(members) < 2:
        return {}
    each = np.stack(list(members.values()))
    known = ~np.isnan(each).any(axis=0)
    figures = {}
    if known.any():
        cluster = rows.cluster[rows.row[known]]
        figures["member_std"] = mean_estimate(each[:, known].std(axis=0), cluster)
    scored = ScoredPairs(rows, np.where(known, values, np.nan))
    if len(scored):
        deltas = each[:, scored.pairs[:, 0]] - each[:, scored.pairs[:, 1]]
        figures["member_agreement"] = share_estimate(unanimous(deltas), scored.cluster)
    return figures


def _plain(value: float) -> Estimate:
    return Estimate(value, math.nan, math.nan)
