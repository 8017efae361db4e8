"""Metrics of the rewards of judged rows: pairs, sections, lengths and labels; and of each output of a model with several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_plugins.errors import DataError
from rm_plugins.models.heads import Heads
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.accuracy import accuracy, pair_shares
from rm_plugins.statistics.metrics import auc, brier_score, expected_calibration_error, pearson, spearman, unanimous


def judgement_metrics(
    rewards: FloatArray,
    pairs: NDArray[np.integer[Any]],
    lengths: NDArray[np.integer[Any]],
    *,
    sections: Sequence[str] | None = None,
    labels: FloatArray | None = None,
    attributes: Sequence[str] = (),
) -> dict[str, float]:
    """How N rewards agree with what is known of their rows.

    Args:
        rewards: float64 [N].
        pairs: Whole numbers [M, 2]: the rows of winner and loser.
        lengths: Whole numbers [N], such as characters.
        sections: Names, [N]; a pair belongs to its winner's section.
        labels: float64 [N, A]: ratings, or 0 and 1; NaN where missing.
        attributes: The labels' names, [A].

    Returns:
        By name:

        - ``accuracy``: share of pairs whose winner scores strictly higher
        - ``accuracy/SECTION``: of the pairs of a section
        - ``accuracy_longer``, ``accuracy_shorter``: of the pairs whose winner is the longer, the shorter answer
        - ``length_preference``: share of pairs of two lengths in which the longer answer scores strictly higher
        - ``ties``: share of pairs with equal rewards, which count as wrong in every accuracy
        - ``margin``: mean of the winner's reward minus the loser's
        - ``ece``, ``brier``: `expected_calibration_error` and `brier_score` of those differences
        - ``mean_reward``, ``std_reward``, ``min_reward``, ``max_reward``: over rows; the deviation divides by N
        - ``length_correlation``: `pearson` of reward and length, over rows
        - ``correlation/ATTRIBUTE``, ``spearman/ATTRIBUTE``: of reward and label, over the rows that have the label
        - ``auc/ATTRIBUTE``: of the reward, where the labels are 0 and 1 alone

    What cannot be computed is left out: accuracies of no pairs, correlations with a constant. A reward that is not finite
    leaves out the correlations, and makes everything else that it is part of NaN.

    Raises:
        DataError: The inputs' shapes do not fit together.

    >>> metrics = judgement_metrics(
    ...     np.array([2.0, 0.0, 1.0, 3.0]), np.array([[0, 1], [2, 3]]), np.array([5, 9, 4, 8]), sections=["chat"] * 2 + ["code"] * 2
    ... )
    >>> metrics["accuracy"], metrics["accuracy/chat"], metrics["accuracy/code"], metrics["margin"]
    (0.5, 1.0, 0.0, 0.0)
    """
    rewards, lengths, pairs = _finite(rewards), np.asarray(lengths, dtype=np.int64), _checked_pairs(pairs, len(lengths))
    _check("rewards", rewards.shape, (len(lengths),))
    delta = rewards[pairs[:, 0]] - rewards[pairs[:, 1]]
    longer = lengths[pairs[:, 0]] - lengths[pairs[:, 1]]  # by how much the winner is
    metrics = {
        **_summary(rewards, delta, lengths),
        **{
            name: _share(holds[where], delta[where])
            for name, (where, holds) in pair_shares(delta, longer).items()
            if name not in ("accuracy", "shortness_preference")
        },
        "ece": expected_calibration_error(delta) if len(delta) else None,
        "brier": brier_score(delta) if len(delta) else None,
        "min_reward": float(rewards.min()) if len(rewards) else None,
        "max_reward": float(rewards.max()) if len(rewards) else None,
    }
    if sections is not None:
        _check("sections", (len(sections),), (len(lengths),))
        numbers = {name: number for number, name in enumerate(dict.fromkeys(sections))}
        section = np.array([numbers[name] for name in sections], dtype=np.intp)[pairs[:, 0]]
        metrics |= {f"accuracy/{name}": _accuracy(delta[section == number]) for name, number in numbers.items()}
    if labels is not None:
        _check("labels", np.shape(labels), (len(lengths), len(attributes)))
        for attribute, column in zip(attributes, np.asarray(labels, dtype=np.float64).T, strict=True):
            present = ~np.isnan(column)
            reward, label = rewards[present], column[present]
            metrics[f"correlation/{attribute}"] = _number(pearson(reward, label))
            metrics[f"spearman/{attribute}"] = _number(spearman(reward, label))
            if np.isin(label, (0, 1)).all():
                metrics[f"auc/{attribute}"] = _number(auc(reward, label))
    return _computed(metrics)


def head_metrics(
    outputs: FloatArray,
    heads: Heads,
    pairs: NDArray[np.integer[Any]],
    lengths: NDArray[np.integer[Any]],
    *,
    sections: Sequence[str] | None = None,
    labels: FloatArray | None = None,
    attributes: Sequence[str] = (),
) -> dict[str, float]:
    """`judgement_metrics` of a model's reward, and the metrics of each output if it has several.

    Args:
        outputs: float [N, heads], the model's outputs for each row.
        heads: What the outputs are; their weighted sum is the reward.
        pairs: As in `judgement_metrics`, like the arguments below.
        lengths: [N].
        sections: [N].
        labels: [N, A].
        attributes: [A].

    Returns:
        What `judgement_metrics` returns. With several outputs, each of `Heads.labels` adds ``LABEL/accuracy``, ``LABEL/margin``,
        ``LABEL/mean_reward``, ``LABEL/std_reward``, ``LABEL/length_correlation``, and ``LABEL/correlation`` if an attribute has the
        same name. With several members, there are two more. ``member_std`` is the standard deviation over the members' rewards,
        dividing by their number, averaged over rows. ``member_agreement`` is the share of pairs on which all members prefer the same
        answer, or all see a tie.

    Raises:
        DataError: The inputs' shapes do not fit together.

    >>> outputs = np.array([[2.0, 1.0], [0.0, 1.5], [1.0, 3.0], [0.0, 0.0]])
    >>> metrics = head_metrics(outputs, Heads(members=2), np.array([[0, 1], [2, 3]]), np.array([5, 9, 4, 8]))
    >>> metrics["accuracy"], metrics["member/0/accuracy"], metrics["member/1/accuracy"]
    (1.0, 1.0, 0.5)
    >>> metrics["member_std"], metrics["member_agreement"]
    (0.5625, 0.5)
    """
    outputs, lengths, pairs = _finite(outputs), np.asarray(lengths, dtype=np.int64), _checked_pairs(pairs, len(lengths))
    _check("outputs", outputs.shape, (len(lengths), len(heads)))
    reward = outputs @ np.array(heads.reward_weights)
    metrics = judgement_metrics(reward, pairs, lengths, sections=sections, labels=labels, attributes=attributes)
    if len(heads) == 1:
        return metrics
    rated = {} if labels is None else dict(zip(attributes, np.asarray(labels, dtype=np.float64).T, strict=True))
    for label, name, output in zip(heads.labels, heads.names * heads.members, outputs.T, strict=True):
        alone = _summary(output, output[pairs[:, 0]] - output[pairs[:, 1]], lengths)
        if name in rated:
            present = ~np.isnan(rated[name])
            alone["correlation"] = _number(pearson(output[present], rated[name][present]))
        metrics |= {f"{label}/{metric}": value for metric, value in _computed(alone).items()}
    if heads.members > 1:
        members = outputs.reshape(-1, heads.members, len(heads.names)) @ np.array(heads.weights)
        delta = members[pairs[:, 0]] - members[pairs[:, 1]]
        agreed = _share(unanimous(delta.T), delta)
        metrics |= _computed({"member_std": _mean(members.std(axis=1)), "member_agreement": agreed})
    return metrics


def _summary(rewards: FloatArray, delta: FloatArray, lengths: NDArray[Any]) -> dict[str, float | None]:
    return {
        "accuracy": _accuracy(delta),
        "margin": _mean(delta),
        "mean_reward": _mean(rewards),
        "std_reward": float(rewards.std()) if len(rewards) else None,
        "length_correlation": _number(pearson(rewards, lengths)),
    }


def _accuracy(delta: FloatArray) -> float | None:
    return accuracy(delta) if len(delta) else None


def _share(holds: NDArray[np.bool_], delta: FloatArray) -> float | None:
    # A comparison with NaN is false, and would make a failure a number.
    return math.nan if np.isnan(delta).any() else _mean(holds)


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _computed(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None}


def _finite(values: FloatArray) -> FloatArray:
    # An infinite reward is no better than NaN, which passes through means and differences without a warning.
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _checked_pairs(pairs: NDArray[np.integer[Any]], rows: int) -> NDArray[np.intp]:
    places = np.asarray(pairs, dtype=np.intp)
    if not places.size:
        return places.reshape(0, 2)
    _check("pairs", places.shape, (len(places), 2))
    if places.min() < 0 or places.max() >= rows:
        raise DataError(f"pairs name the rows {places.min()} to {places.max()}; there are the rows 0 to {rows - 1}.")
    return places


def _check(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise DataError(f"{name} have the shape {shape}; with these lengths, heads and attributes it must be {expected}.")
