"""Watches rewards while any trainer trains a policy on them."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rm_plugins.errors import DataError, SpecError
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample, text_of
from rm_plugins.scores import Scores, joined
from rm_plugins.training.exploitation import Evidence, WatchedStep
from rm_plugins.training.journal import Journal, kept_rows, read_journal
from rm_plugins.training.reward_history import RewardHistory, scored_texts, step_figures, watched_steps

logger = logging.getLogger(__name__)


class Watched(Protocol):
    """A reward that can be watched."""

    provider: Provider
    watchers: list[Callable[[Sequence[Sample], Scores, Any], None]]
    """Called after every batch that this process scored, with the object that identifies the training."""


class RewardWatcher:
    """Measures the rewards in each step of a training, looks for signs of exploitation, and writes a journal.

    Each process writes its own samples. The first process looks for evidence in its own samples.

    Args:
        rewards: The rewards; their names are their ``__name__``, or else their providers' labels.
        journal: The folder of the journal; None for none.
        window: How many last steps are compared with the same number of first steps. Only steps with scores count.
        samples_per_step: How many samples of a step and reward are kept, for the journal and to find phrases in: all if there are
            no more, else the best, the worst, and random ones.
        max_journal_mb: The limit on the disk space of one process's samples, in MB. The oldest are deleted, except the first file.

    Raises:
        SpecError: There is no reward, one cannot be watched, or two have the same name.
        DataError: A number is out of bounds.
    """

    def __init__(
        self,
        *rewards: Watched,
        journal: Path | str | None = None,
        window: int = 50,
        samples_per_step: int = 64,
        max_journal_mb: float = 512,
    ) -> None:
        if not rewards:
            raise SpecError(f"{type(self).__name__} needs the rewards to watch, such as rm_plugins_trl.reward_func(SPEC).")
        if samples_per_step < 4:
            raise DataError(f"samples_per_step={samples_per_step} is too few: 4 or more are allowed.")
        self.rewards: dict[str, Watched] = {}
        for reward in rewards:
            if not hasattr(reward, "watchers"):
                raise SpecError(f"{reward!r} cannot be watched. Make it a reward with rm_plugins_trl.reward_func.")
            name = str(getattr(reward, "__name__", None) or reward.provider.label)
            if name in self.rewards:
                raise SpecError(f"Two rewards are called {name!r}. Give one another name: reward_func(SPEC, name=...).")
            self.rewards[name] = reward
        self.window = window
        self.samples_per_step = samples_per_step
        self.journal = None if journal is None else Journal(journal, max_mb=max_journal_mb)
        self._listeners = {name: partial(self._hear, name) for name in self.rewards}
        self._batches: dict[str, list[tuple[Sequence[Sample], Scores]]] = {name: [] for name in self.rewards}
        self._start(None, 0)

    def _start(self, training: Any, rank: int) -> None:
        self.histories = {name: RewardHistory(name, self.window) for name in self.rewards}
        self._unlogged: dict[str, list[Mapping[str, float]]] = {name: [] for name in self.rewards}
        self._divergence: dict[str, float] = {}
        self._training, self._rank = training, rank
        self.forget_batches()

    @property
    def warnings(self) -> list[Evidence]:
        """All evidence so far, in the order of the steps."""
        evidence = (one for history in self.histories.values() for one in history.evidence)
        return sorted(evidence, key=lambda one: one.step)

    def begin(self, training: Any, step: int, *, rank: int = 0, processes: int = 1) -> None:
        """Listen to the rewards, from the beginning or after a step from which the training is resumed.

        Args:
            training: Identifies the training; batches of another training are ignored.
            step: The last step that is done, 0 for none.
            rank: The number of this process.
            processes: How many there are.

        Raises:
            DataError: No step is done, and the folder has a journal.
        """
        self._start(training, rank)
        if self.journal is not None:
            self.journal.resume(step, rank=rank, processes=processes)
            if step and rank == 0:
                self._remember(self.journal)
        for name, reward in self.rewards.items():
            if self._listeners[name] not in reward.watchers:
                reward.watchers.append(self._listeners[name])

    def end(self) -> None:
        """Write the journal, and stop listening."""
        self.flush()
        for name, reward in self.rewards.items():
            if self._listeners[name] in reward.watchers:
                reward.watchers.remove(self._listeners[name])

    def flush(self) -> None:
        """Write the journal."""
        self._in_journal(Journal.flush)

    def forget_batches(self) -> None:
        """Leave out what was scored since the last step, such as for an evaluation."""
        for batches in self._batches.values():
            batches.clear()

    def end_step(self, step: int) -> list[Evidence]:
        """Process the scores of a step; returns new evidence."""
        evidence: list[Evidence] = []
        for name, batches in self._batches.items():
            if not batches:
                continue
            samples, scores = _joined(batches)
            batches.clear()
            lengths = [len(text_of(sample.completion)) for sample in samples]
            figures = step_figures(scores, lengths, [text_of(sample.prompt) for sample in samples])
            self._unlogged[name].append(figures)
            rows = kept_rows(scores.values, self.samples_per_step, seed=step).tolist()
            kept, kept_scores = [samples[row] for row in rows], scores.rows(rows)
            self._in_journal(Journal.add_figures, step, name, figures)
            self._in_journal(Journal.add_samples, step, name, kept, kept_scores)
            if self._rank == 0:
                texts = scored_texts(kept, kept_scores.values.tolist())
                evidence += self.histories[name].add(WatchedStep(step, {**figures, **self._divergence}, texts))
        return evidence

    def add_trainer_figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep what the trainer measured of a step, such as ``kl``, its divergence from the policy that it began with."""
        if figures and self._rank == 0:
            self._divergence = {"kl": figures["kl"]} if "kl" in figures else self._divergence
            self._in_journal(Journal.add_figures, step, None, figures)

    def unlogged_figures(self) -> dict[str, float]:
        """The mean of each figure over the steps since the last call, as ``watch/NAME/FIGURE``, and the number of warnings."""
        figures: dict[str, float] = {}
        for name, steps in self._unlogged.items():
            if steps:
                figures |= {f"watch/{name}/{figure}": value for figure, value in _means(steps).items()}
                figures[f"watch/{name}/warnings"] = len(self.histories[name].evidence)
                steps.clear()
        return figures

    def _hear(self, name: str, samples: Sequence[Sample], scores: Scores, training: Any) -> None:
        # A training that broke off leaves its watcher listening to the next one's batches.
        if samples and (training is None or training is self._training):
            self._batches[name].append((samples, scores))

    def _remember(self, journal: Journal) -> None:
        """Go through what the journal has of this process, as if it happened now."""
        try:
            steps = read_journal(journal.folder, rank=journal.rank)
        except DataError:
            logger.warning("The journal %s has no earlier steps. The comparison starts again.", journal.folder)
            return
        for step in watched_steps(steps):
            for name in step.keys() & self.histories.keys():
                self.histories[name].add(step[name])

    def _in_journal(self, act: Callable[..., None], *arguments: Any) -> None:
        # A full disk must not end the training.
        if self.journal is not None:
            try:
                act(self.journal, *arguments)
            except OSError as error:
                logger.error("The journal %s cannot be written and ends here: %s", self.journal.folder, error)
                self.journal = None


def _joined(batches: Sequence[tuple[Sequence[Sample], Scores]]) -> tuple[list[Sample], Scores]:
    samples = [sample for batch, _ in batches for sample in batch]
    if len(batches) == 1:
        return samples, batches[0][1]
    placed, start = [], 0
    for _, scores in batches:
        placed.append(scores.scattered(range(start, start + len(scores)), len(samples)))
        start += len(scores)
    return samples, joined(placed)


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: statistics.fmean(step[name] for step in steps if name in step) for name in names}
