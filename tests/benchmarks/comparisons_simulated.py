"""A simulated judge whose opinion is known: how well each schedule recovers it, by the number of questions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

import rm_plugins as rm
from rm_plugins.scores import FloatArray

SPREAD = 1.5
"""The standard deviation of the answers' true strengths, in logits."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A judge that prefers the answer shown first with probability σ((u_first - u_second) / noise + bias), or gives no verdict.

    Args:
        title: What the table calls it.
        noise: How much its verdicts depend on chance; the true strengths are divided by it.
        bias: Its preference for the answer shown first, in logits.
        refuses: The share of questions without a verdict.
    """

    title: str
    noise: float
    bias: float = 0.0
    refuses: float = 0.0


JUDGES = (
    Judge("exact", 0.01),
    Judge("noisy", 1.0),
    Judge("noisy, prefers the first", 1.0, bias=1.5),
    Judge("noisy, refuses 20%", 1.0, refuses=0.2),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table.

    Args:
        title: What the table calls it.
        keys: Keys of the provider `comparison`.
    """

    title: str
    keys: Mapping[str, Any] = field(default_factory=dict)


def settings(answers: int) -> list[Setting]:
    """The settings that are compared for groups of some size, from few questions to many."""
    least = 2 * (answers - 1)
    return [
        Setting("`knock-out`", {"schedule": "knock-out"}),
        Setting(f"`all-pairs`, `budget: {least}`", {"budget": least}),
        Setting("`circular`, `k: 1`", {"schedule": "circular", "k": 1}),
        Setting("`random`, `k: 2`", {"schedule": "random", "k": 2}),
        Setting("`swiss`", {"schedule": "swiss"}),
        Setting("`circular`, `k: 2`", {"schedule": "circular", "k": 2}),
        Setting("`swiss`, `rounds: 5`", {"schedule": "swiss", "rounds": 5}),
        Setting("`all-pairs`, one order", {"both_orders": False}),
        Setting("`all-pairs`", {}),
        Setting("`all-pairs`, win rate", {"score": "win-rate"}),
    ]


def chance(*facts: object) -> float:
    """A number from 0 to 1 that depends on facts alone."""
    return int.from_bytes(blake2b(repr(facts).encode(), digest_size=7).digest(), "big") / 2**56


def simulated_verdict(first: rm.Sample, second: rm.Sample, *, noise: float, bias: float, refuses: float) -> float | None:
    """The verdict of a judge: always the same for the same two answers in the same order."""
    names = (first.completion_text, second.completion_text)
    if chance("refuses", *names) < refuses:
        return None
    gap = (first.columns["strength"] - second.columns["strength"]) / noise + bias
    return float(chance("verdict", *names) < 1 / (1 + math.exp(-min(max(gap, -500), 500))))


def groups(seed: int, count: int, answers: int) -> Iterator[list[rm.Sample]]:
    """Groups of answers with known strengths."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        strengths = rng.normal(scale=SPREAD, size=answers)
        yield [
            rm.Sample(f"prompt {number}", f"seed {seed}, prompt {number}, answer {place}", {"strength": float(strength)})
            for place, strength in enumerate(strengths)
        ]


def tau(scores: FloatArray, true: FloatArray) -> float:
    """Kendall's tau of scores and true strengths over all pairs of answers; a pair with a tie or without a score counts as 0."""
    signs = np.sign(scores[:, None] - scores) * np.sign(true[:, None] - true)
    return float(np.nansum(signs) / (len(true) * (len(true) - 1)))


@dataclass(frozen=True, slots=True)
class Recovered:
    """How well a setting recovered the true strengths.

    Args:
        calls: The mean number of questions per group.
        tau: The mean of Kendall's tau between scores and true strengths over groups.
        best: The share of groups whose answer with the highest score is the truly best one.
        abstained: The share of answers without a score.
    """

    calls: float
    tau: float
    best: float
    abstained: float


def recovered(judge: Judge, setting: Setting, contradictions: str, seed: int, count: int, answers: int) -> Recovered:
    """Score groups with a setting, and compare the scores with the truth."""
    arguments = {name: value for name, value in asdict(judge).items() if name != "title"}
    comparer = {"name": "function", "function": simulated_verdict, "arguments": arguments}
    rewards = rm.load({"provider": "comparison", "comparer": comparer, "contradictions": contradictions, **setting.keys})
    calls, taus, best, abstained = 0, [], [], []
    for samples in groups(seed, count, answers):
        scores = rewards.score(samples)
        true = np.array([sample.columns["strength"] for sample in samples])
        calls += scores.metadata["calls"]
        abstained.append(float(scores.abstained.mean()))
        taus.append(tau(scores.values, true))
        best.append(float(not scores.abstained.all() and np.nanargmax(scores.values) == true.argmax()))
    return Recovered(calls / count, statistics.fmean(taus), statistics.fmean(best), statistics.fmean(abstained))


def rows(results: Mapping[tuple[str, str, int], Recovered], answers: int, seeds: int) -> Iterator[Sequence[str]]:
    """The rows of the table: the questions, and each judge's tau as a mean over seeds with its spread."""
    for setting in settings(answers):
        calls = sorted(round(results[judge.title, setting.title, 0].calls) for judge in JUDGES)
        cells = [setting.title, str(calls[0]) if calls[0] == calls[-1] else f"{calls[0]} to {calls[-1]}"]
        for judge in JUDGES:
            taus = [results[judge.title, setting.title, seed].tau for seed in range(seeds)]
            gone = statistics.fmean(results[judge.title, setting.title, seed].abstained for seed in range(seeds))
            spread = statistics.stdev(taus) if seeds > 1 else 0.0
            cells.append(f"{statistics.fmean(taus):.2f} ± {spread:.2f}" + (f" ({gone:.0%} abstain)" if gone >= 0.005 else ""))
        yield cells
