"""The history of one reward in a training: the figures of each step, and the evidence in them."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from rm_plugins.errors import DataError
from rm_plugins.samples import Sample, text_of
from rm_plugins.scores import FloatArray, Scores
from rm_plugins.statistics.metrics import pearson
from rm_plugins.training.exploitation import (
    Evidence,
    WatchedStep,
    disagreement_rises,
    length_takes_over,
    phrase_takes_over,
)
from rm_plugins.training.journal import JournalStep
from rm_plugins.training.phrases import ScoredText

LEAST_STEPS = 12
"""The least number of steps on each side of a comparison. With fewer, no test can be significant."""
_GROWN = 1.5
"""The growth of an effect that makes another warning."""

_TESTS: tuple[Callable[[str, Sequence[WatchedStep], Sequence[WatchedStep]], Evidence | None], ...] = (
    disagreement_rises,
    length_takes_over,
    phrase_takes_over,
)


class RewardHistory:
    """Remembers the first and the last steps of a reward and compares them, again and again.

    Args:
        reward: The reward's name.
        window: How many last steps to compare with the same number of first steps; in shorter trainings, the halves are compared.

    Raises:
        DataError: `window` is too small to tell anything.
    """

    def __init__(self, reward: str, window: int = 50) -> None:
        if window < LEAST_STEPS:
            raise DataError(f"window={window} steps are too few to compare: {LEAST_STEPS} or more are allowed, 50 is usual.")
        self.reward = reward
        self.window = window
        self.count = 0
        """How many steps there were."""
        self.evidence: list[Evidence] = []
        """All evidence so far."""
        self._counts: list[int] = []
        self._first: list[WatchedStep] = []
        self._last: deque[WatchedStep] = deque(maxlen=window)

    @property
    def early(self) -> Sequence[WatchedStep]:
        """The first steps, at most `window` and at most half of all."""
        return self._first[: self.count // 2]

    @property
    def recent(self) -> Sequence[WatchedStep]:
        """The last steps, as many as the early ones."""
        return list(islice(self._last, len(self._last) - len(self.early), None))

    def add(self, step: WatchedStep) -> list[Evidence]:
        """Add a step; returns new evidence.

        The tests are made at every fifth of a window. A sign is reported again a window later, if it is half as large again.
        """
        self.count += 1
        if len(self._first) < self.window:
            self._first.append(step)
        self._last.append(step)
        if self.count % (self.window // 5) or len(self.early) < LEAST_STEPS:
            return []
        early, recent = self.early, self.recent
        news = [evidence for test in _TESTS if (evidence := test(self.reward, early, recent)) and self._is_news(evidence)]
        self.evidence += news
        self._counts += [self.count] * len(news)
        return news

    def _is_news(self, evidence: Evidence) -> bool:
        same = [
            (count, known)
            for count, known in zip(self._counts, self.evidence, strict=True)
            if known.kind == evidence.kind and _common(known.phrase, evidence.phrase)
        ]
        if not same:
            return True
        count, last = same[-1]
        return self.count - count >= self.window and evidence.size >= _GROWN * last.size


def _common(phrase: str, other: str) -> bool:
    """Whether two phrases are about the same: they share a sequence of words half as long as the shorter phrase, or are empty."""
    words, others = phrase.split(), f" {other} "
    length = (min(len(words), len(other.split())) + 1) // 2
    return any(f" {' '.join(words[start : start + length])} " in others for start in range(len(words) - length + 1))


def step_figures(scores: Scores, lengths: Sequence[int], prompts: Sequence[str]) -> dict[str, float]:
    """What is measured of one step's N samples.

    Args:
        scores: Their scores, with members and the details ``std`` and ``rank_disagreement`` where the reward is an ensemble.
        lengths: The lengths of the completions, [N], in characters.
        prompts: The prompts, [N].

    Returns:
        ``samples``, their number; ``reward`` and ``reward_std`` (unbiased); ``abstained``, a share; ``length``, a mean;
        ``length_correlation`` with reward, and ``length_correlation_df``; ``disagreement``, the mean of the members' standard
        deviations; ``rank_disagreement`` and ``member/K``, means. What cannot be known is left out.
    """
    values = scores.values[~scores.abstained]
    correlation, freedom = length_correlation(scores.values, lengths, prompts)
    figures = {
        "samples": float(len(scores)),
        "reward": float(values.mean()) if len(values) else math.nan,
        "reward_std": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        "abstained": float(scores.abstained.mean()) if len(scores) else math.nan,
        "length": float(np.mean(lengths)) if len(lengths) else math.nan,
        "length_correlation": correlation,
        "length_correlation_df": float(freedom),
    }
    spread = {"disagreement": scores.details.get("std"), "rank_disagreement": scores.details.get("rank_disagreement")}
    for name, column in {**scores.members, **spread}.items():
        known = np.empty(0) if column is None else column[~np.isnan(column)]
        figures[name] = float(known.mean()) if len(known) else math.nan
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def length_correlation(rewards: FloatArray, lengths: Sequence[int], prompts: Sequence[str]) -> tuple[float, int]:
    """Pearson's correlation of reward and length among completions of the same prompt, and its degrees of freedom.

    Each prompt's mean is subtracted from both, so that long answers to prompts with high rewards do not count. Completions
    without a prompt have none in common. Where no prompt has two completions, it is the correlation over all.

    Args:
        rewards: float64 [N], NaN where abstained.
        lengths: [N].
        prompts: [N], empty where there is none.

    Returns:
        NaN and 0 where there is too little to correlate, or one of both does not vary.

    >>> length_correlation(np.array([1.0, 2.0, 9.0, 8.0]), [10, 20, 10, 5], ["a", "a", "b", "b"])[1]
    1
    """
    scored = np.flatnonzero(~np.isnan(rewards))
    groups: dict[str | int, list[int]] = defaultdict(list)
    for row in scored.tolist():
        groups[prompts[row] or row].append(row)
    several = [rows for rows in groups.values() if len(rows) > 1] or [scored.tolist()]
    freedom = sum(map(len, several)) - len(several) - 1
    if freedom < 1:
        return math.nan, 0
    columns = []
    for values in (rewards, np.asarray(lengths, dtype=np.float64)):
        centred = np.concatenate([values[rows] - values[rows].mean() for rows in several])
        if np.abs(centred).max() <= 1e-9 * np.abs(values[scored]).max():  # it is only rounding
            return math.nan, 0
        columns.append(centred)
    return pearson(*columns), freedom


def merged_figures(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of one step from those of several processes: means weighted by their samples.

    Args:
        parts: What `step_figures` gave in each process.
    """
    merged = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        known = [part for part in parts if name in part]
        weights = [part["samples"] for part in known]
        if name not in ("length", "abstained"):  # a mean of the samples that have a score
            scored = [part["samples"] * (1 - part.get("abstained", 0.0)) for part in known]
            weights = scored if any(scored) else weights
        if name in ("samples", "length_correlation_df"):
            merged[name] = float(sum(part[name] for part in known))
        else:
            merged[name] = float(np.average([part[name] for part in known], weights=weights))
    return merged


def scored_texts(samples: Sequence[Sample], values: Sequence[float]) -> list[ScoredText]:
    """Samples as `WatchedStep` has them, but for those on which the reward abstained."""
    return [
        ScoredText(text_of(sample.prompt), text_of(sample.completion), value)
        for sample, value in zip(samples, values, strict=True)
        if not math.isnan(value)
    ]


def watched_steps(steps: Iterable[JournalStep]) -> Iterator[dict[str, WatchedStep]]:
    """The steps of a journal, for each reward by its name, with the KL divergence that the trainer logged last."""
    divergence: dict[str, float] = {}
    for step in steps:
        watched = {}
        for reward, parts in step.figures.items():
            kept = step.samples.get(reward, ())
            texts = scored_texts([row.sample for row in kept], [row.score for row in kept])
            watched[reward] = WatchedStep(step.step, {**merged_figures(parts), **divergence}, texts)
        yield watched
        divergence = {"kl": step.trainer["kl"]} if "kl" in step.trainer else divergence
