"""The summary of a journal, for a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rm_plugins.scores import FloatArray
from rm_plugins.training.exploitation import Evidence, WatchedStep, figure
from rm_plugins.training.journal import JournalSample, JournalStep
from rm_plugins.training.phrases import Phrase, common_phrases, top_and_rest
from rm_plugins.training.reward_history import RewardHistory, watched_steps

_NOTED = 8
"""How many completions of each sort are shown."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure at every step that has it.

    Args:
        steps: int [N], ascending.
        values: float64 [N].
    """

    steps: Sequence[int]
    values: FloatArray


@dataclass(frozen=True, slots=True)
class RewardSummary:
    """The summary of one reward.

    Args:
        reward: Its name.
        steps: The number of steps.
        samples: The number of samples that were scored in them.
        curves: Its figures, by name.
        members: Which of the figures are the scores of members.
        early: The means of the figures over the steps that the evidence compares with.
        recent: The means over the last steps.
        compared: How many steps the early and the recent ones are, each.
        evidence: The signs of exploitation, in the order of the steps.
        phrases: What the best-scored recent completions have in common.
        best: The completions with the highest rewards, best first.
        disputed: The completions that the members disagree on most; empty without members.
    """

    reward: str
    steps: int
    samples: int
    curves: Mapping[str, Curve]
    members: Sequence[str]
    early: Mapping[str, float]
    recent: Mapping[str, float]
    compared: int
    evidence: Sequence[Evidence]
    phrases: Sequence[Phrase]
    best: Sequence[JournalSample]
    disputed: Sequence[JournalSample]


@dataclass(frozen=True, slots=True)
class JournalSummary:
    """The summary of a journal.

    Args:
        rewards: Of each reward.
        trainer: What the trainer logged, by name.
    """

    rewards: Sequence[RewardSummary]
    trainer: Mapping[str, Curve]


def summarize(steps: Iterable[JournalStep], *, window: int = 50) -> JournalSummary:
    """Read a journal once; only what a report shows is kept in memory.

    Args:
        steps: The steps, in their order.
        window: How many last steps are compared with the same number of first steps.

    Raises:
        DataError: A file cannot be read, or `window` is too small.
    """
    rewards: dict[str, _Reader] = {}
    trainer: list[WatchedStep] = []

    def heard(steps: Iterable[JournalStep]) -> Iterable[JournalStep]:
        for step in steps:
            if step.trainer:
                trainer.append(WatchedStep(step.step, step.trainer))
            for reward, samples in step.samples.items():
                rewards.setdefault(reward, _Reader(reward, window)).note(samples)
            yield step

    for watched_rewards in watched_steps(heard(steps)):
        for reward, watched in watched_rewards.items():
            rewards.setdefault(reward, _Reader(reward, window)).add(watched)
    return JournalSummary([reader.summary() for reader in rewards.values()], _curves(trainer))


class _Reader:
    def __init__(self, reward: str, window: int) -> None:
        self.history = RewardHistory(reward, window)
        self.steps: list[WatchedStep] = []
        self.members: dict[str, None] = {}
        self.best: list[JournalSample] = []
        self.disputed: list[JournalSample] = []

    def add(self, step: WatchedStep) -> None:
        self.history.add(step)
        self.steps.append(WatchedStep(step.step, step.figures))

    def note(self, samples: Sequence[JournalSample]) -> None:
        self.members |= dict.fromkeys(name for sample in samples for name in sample.members)
        self.best = _highest([*self.best, *samples], lambda sample: sample.score)
        self.disputed = _highest([*self.disputed, *samples], lambda sample: sample.details.get("std", math.nan))

    def summary(self) -> RewardSummary:
        history = self.history
        top, rest = top_and_rest(step.texts for step in history.recent)
        return RewardSummary(
            reward=history.reward,
            steps=history.count,
            samples=int(np.nansum(figure(self.steps, "samples"))),
            curves=_curves(self.steps),
            members=list(self.members),
            early=_means(history.early),
            recent=_means(history.recent),
            compared=len(history.early),
            evidence=history.evidence,
            phrases=common_phrases(top, rest, [text for step in history.early for text in step.texts]),
            best=self.best,
            disputed=self.disputed,
        )


def _highest(samples: Sequence[JournalSample], value: Callable[[JournalSample], float]) -> list[JournalSample]:
    """The highest of all, each completion once."""
    kept: dict[str, JournalSample] = {}
    for sample in sorted((one for one in samples if not math.isnan(value(one))), key=value, reverse=True):
        kept.setdefault(repr((sample.sample.prompt, sample.sample.completion)), sample)
        if len(kept) == _NOTED:
            break
    return list(kept.values())


def _names(steps: Sequence[WatchedStep]) -> list[str]:
    return list(dict.fromkeys(name for step in steps for name in step.figures))


def _curves(steps: Sequence[WatchedStep]) -> dict[str, Curve]:
    curves = {}
    for name in _names(steps):
        having = [step for step in steps if name in step.figures]
        curves[name] = Curve([step.step for step in having], figure(having, name))
    return curves


def _means(steps: Sequence[WatchedStep]) -> dict[str, float]:
    return {name: float(np.nanmean(figure(steps, name))) for name in _names(steps)}
