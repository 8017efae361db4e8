"""Best-of-n: the quality of the completion that a reward picks out of n, from completions that are already scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from rm_plugins.errors import DataError
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.intervals import Estimate, mean_estimate


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The gold reward of the best of n completions by this reward, and the divergence that the choice costs.

    Args:
        gold: What is known of the completions: ``label``, ``score``, the mean of several ratings, or another reward's name.
        prompts: The number of prompts with at least the largest n of completions.
        n: The numbers of completions.
        kl: An upper bound on KL(best of n || policy), in nats: log n - (n - 1) / n.
        mean: The unbiased estimate of the mean gold reward.
        best: What choosing by the gold reward itself would reach.
    """

    gold: str
    prompts: int
    n: tuple[int, ...]
    kl: tuple[float, ...]
    mean: tuple[Estimate, ...]
    best: tuple[float, ...]


def best_of_n_curve(
    scored: Sequence[tuple[ArrayLike, ArrayLike]], most: int, clusters: ArrayLike, *, gold: str = ""
) -> tuple[BestOfN, FloatArray]:
    """What the best of 1, 2, 4 and so on up to `most` completions is worth; and `best_of_n` of each prompt, float64 [P, C].

    Args:
        scored: For each of P prompts, the proxy and the gold rewards of its completions, `most` or more.
        most: The largest n.
        clusters: [P], equal where prompts are not independent.
        gold: What the gold reward is called.
    """
    counts = best_of_n_counts(most)
    by_prompt = np.array([best_of_n(proxy, worth, counts) for proxy, worth in scored])
    best = np.array([best_of_n(worth, worth, counts) for _, worth in scored]).mean(axis=0)
    are_shares = all(np.min(worth) >= 0 and np.max(worth) <= 1 for _, worth in scored)
    curve = BestOfN(
        gold=gold,
        prompts=len(scored),
        n=tuple(counts),
        kl=tuple(best_of_n_kl(n) for n in counts),
        mean=tuple(mean_estimate(column, clusters, bounds=(0.0, 1.0) if are_shares else None) for column in by_prompt.T),
        best=tuple(best.tolist()),
    )
    return curve, by_prompt


def best_of_n(proxy: ArrayLike, gold: ArrayLike, counts: Sequence[int]) -> FloatArray:
    """The expected gold reward of the completion with the highest proxy reward of n, for one prompt with N completions.

    It is the mean over all ways to draw n of them without replacement. With i as the place in ascending order of the proxy, it is the
    sum of C(i - 1, n - 1) / C(N, n) * gold[i] over i = n, ..., N. It is unbiased for n fresh completions. Completions with
    equal proxy rewards share the mean of their gold rewards, which is the expectation where chance decides between them.

    Args:
        proxy: float [N], the reward that picks.
        gold: float [N], what a completion is worth.
        counts: The numbers n, 1 or more.

    Returns:
        float64 [len(counts)]; NaN where n is more than N, and everywhere where a proxy is NaN or a gold reward is not finite.

    Raises:
        DataError: A count is less than 1.

    Source: Nakano et al. 2021, arXiv 2112.09332, who predict the value of rejection sampling with it.

    >>> best_of_n([0.1, 0.3, 0.2], [1.0, 3.0, 2.0], [1, 2, 3, 4]).round(4).tolist()
    [2.0, 2.6667, 3.0, nan]
    """
    if any(n < 1 for n in counts):
        raise DataError(f"The best of n completions is asked for n={min(counts)}; allowed: 1 or more.")
    proxy, gold = (np.asarray(values, dtype=np.float64) for values in (proxy, gold))
    if np.isnan(proxy).any() or not np.isfinite(gold).all():
        return np.full(len(counts), np.nan)
    _, block, ties = np.unique(proxy, return_inverse=True, return_counts=True)
    ascending = np.repeat(np.bincount(block, gold) / ties, ties)
    return np.array([_best_places(n, len(gold)) @ ascending if n <= len(gold) else np.nan for n in counts], dtype=np.float64)


def best_of_n_counts(most: int) -> list[int]:
    """The numbers n that are worth a look: the powers of 2 below `most`, and `most`.

    >>> best_of_n_counts(12)
    [1, 2, 4, 8, 12]
    """
    return [*(2**power for power in range((most - 1).bit_length())), most] if most > 0 else []


@overload
def best_of_n_kl(n: float) -> float: ...
@overload
def best_of_n_kl(n: Sequence[float] | FloatArray) -> FloatArray: ...
def best_of_n_kl(n: float | Sequence[float] | FloatArray) -> float | FloatArray:
    """How far the best of n is from the policy, in nats: log n - (n - 1) / n.

    It is an upper bound of the KL divergence of best-of-n from the policy, close where the policy seldom writes the same twice,
    and is usually given as the divergence itself (Stiennon et al. 2020, arXiv 2009.01325; Coste et al. 2023, arXiv 2310.02743).

    Args:
        n: How many completions the best is of, 1 or more: a number, or several.

    Returns:
        A number for a number, else float64 of the same shape.

    Raises:
        DataError: n is less than 1.

    Source: Beirami et al. 2024, arXiv 2401.01879.

    >>> best_of_n_kl(1), round(best_of_n_kl(16), 4)
    (0.0, 1.8351)
    """
    counts = np.asarray(n, dtype=np.float64)
    if not (counts >= 1).all():
        raise DataError(f"The best of n completions is asked for n={counts.min():g}; allowed: 1 or more.")
    divergence = np.log(counts) - (counts - 1) / counts
    return divergence if divergence.ndim else float(divergence)


@lru_cache(4_096)
def _best_places(n: int, size: int) -> FloatArray:
    """How likely each place in ascending order, 1 to `size`, is that of the best of n: C(i - 1, n - 1) / C(size, n).

    The last place has n / size, and each place i has (i - n + 1) / i of what i + 1 has; so no binomial coefficient, which would
    overflow, is ever made. What is too small for a float64 is 0.
    """
    places = np.arange(1, size, dtype=np.float64)
    downwards = np.maximum(places - n + 1, 0)[::-1] / places[::-1]
    return n / size * np.concatenate([[1.0], np.cumprod(downwards)])[::-1]
