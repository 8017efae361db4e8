"""Watches rewards while a policy is trained on them."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback

import rm_plugins as rm
from rm_plugins.errors import DataError, SpecError
from rm_plugins.samples import text_of
from rm_plugins.training.exploitation import Evidence, WatchedStep
from rm_plugins.training.journal import Journal, kept_rows, read_journal
from rm_plugins.training.reward_history import RewardHistory, scored_texts, step_figures, watched_steps

__all__ = ["RewardWatch", "Watched"]

logger = logging.getLogger(__name__)

_TRAINERS_FIGURES = {
    "kl": "kl",  # GRPO and RLOO, with beta > 0
    "objective/kl": "kl",  # PPO and Online DPO
    "completions/mean_length": "completion_tokens",
}
"""What trainers log that is kept beside the figures of the rewards, and its name there."""


class Watched(Protocol):
    """What can be watched: a `RewardFunction`, or a `RewardModel`."""

    provider: rm.Provider
    watchers: list[Callable[[Sequence[rm.Sample], rm.Scores, Any], None]]
    """Called after every batch that was scored in this process."""


class RewardWatch(TrainerCallback):
    """Looks for signs that the policy exploits its rewards, and keeps a journal of what they scored.

    It sees every batch that its rewards score in training (evaluation is left out), and adds what it measures of each reward to the
    trainer's logs as ``watch/NAME/FIGURE``, the mean over the steps since the last entry: the figures of
    `rm_plugins.training.reward_history.step_figures`, and ``warnings``, how many there were. They are in
    ``trainer.state.log_history`` in any case. What reports to wandb and the like comes before the trainer's
    ``callbacks=[...]`` and never sees what these add, so that `attach` is there to put the watch first.

    Each process journals its own samples. Evidence is looked for in the main process, among its own.

    After a resume it goes on with what the journal has; without a journal, it starts anew.

    Args:
        rewards: The rewards, made with `reward_func`.
        journal: The folder of the journal; None for none.
        window: How many steps are compared with as many at the beginning; a step is one in which something was scored.
        samples_per_step: How many samples of a step and reward are kept, for the journal and to find phrases in: all if there are
            no more, else the best, the worst, and random ones.
        max_journal_mb: The most that the samples of one process may take on the disk, in MB; the oldest but the first are deleted.

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
            raise SpecError("RewardWatch needs the rewards to watch: RewardWatch(reward_func(SPEC), ...).")
        if samples_per_step < 4:
            raise DataError(f"samples_per_step={samples_per_step} is too few to know a step by: 4 or more are allowed.")
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
        self.histories = {name: RewardHistory(name, window) for name in self.rewards}
        self.journal = None if journal is None else Journal(journal, max_mb=max_journal_mb)
        self._listeners = {name: partial(self._hear, name) for name in self.rewards}
        self._batches: dict[str, list[tuple[Sequence[rm.Sample], rm.Scores]]] = {name: [] for name in self.rewards}
        self._unlogged: dict[str, list[Mapping[str, float]]] = {name: [] for name in self.rewards}
        self._divergence: dict[str, float] = {}
        self._state: Any = None

    @property
    def warnings(self) -> list[Evidence]:
        """Everything that was warned of so far, in the order of the steps."""
        return sorted(
            (found for history in self.histories.values() for found in history.evidence), key=lambda found: found.step
        )

    def attach(self, trainer: Any) -> RewardWatch:
        """Put it before all callbacks of a trainer, in place of handing it in as one of them; returns itself.

        Args:
            trainer: A trainer of TRL or transformers.
        """
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(callback for callback in callbacks if callback is not self)]
        return self

    # --- What the trainer calls -------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start or resume, and listen to the rewards."""
        self.histories = {name: RewardHistory(name, self.window) for name in self.rewards}
        self._divergence = {}
        self._unlogged = {name: [] for name in self.rewards}
        self._state = state
        self._forget_batches()
        if self.journal is not None:
            self.journal.resume(state.global_step, rank=args.process_index, processes=args.world_size)
            if state.global_step and state.is_world_process_zero:
                self._remember(self.journal)
        for name, reward in self.rewards.items():
            if self._listeners[name] not in reward.watchers:
                reward.watchers.append(self._listeners[name])

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave out what was scored for an evaluation."""
        self._forget_batches()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take in what was scored in this step."""
        self._end_step(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add to the logs what was measured since the last."""
        if logs is None or any(name.startswith("eval_") for name in logs):
            return
        self._end_step(state)  # PPO logs a step before it ends it
        self._hear_trainer(state, logs)
        found: dict[str, float] = {}
        for name, steps in self._unlogged.items():
            if steps:
                found |= {f"watch/{name}/{figure}": value for figure, value in _means(steps).items()}
                found[f"watch/{name}/warnings"] = len(self.histories[name].evidence)
                steps.clear()
        logs.update(found)
        if state.log_history:  # whose last entry is a copy of the logs
            state.log_history[-1].update(found)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the journal as far as the checkpoint goes."""
        self._in_journal(Journal.flush)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the journal, and listen no more."""
        self._in_journal(Journal.flush)
        for name, reward in self.rewards.items():
            if self._listeners[name] in reward.watchers:
                reward.watchers.remove(self._listeners[name])

    # --- What is made of it -----------------------------------------------------------------------------------------------

    def _hear(self, name: str, samples: Sequence[rm.Sample], scores: rm.Scores, state: Any) -> None:
        # A training that broke off leaves its watch listening to the next one's batches.
        if samples and (state is None or state is self._state):
            self._batches[name].append((samples, scores))

    def _forget_batches(self) -> None:
        for batches in self._batches.values():
            batches.clear()

    def _end_step(self, state: Any) -> None:
        step = state.global_step
        for name, batches in self._batches.items():
            if not batches:
                continue
            samples, scores = _joined(batches)
            batches.clear()
            lengths = [len(text_of(sample.completion)) for sample in samples]
            figures = step_figures(scores, lengths, [text_of(sample.prompt) for sample in samples])
            self._unlogged[name].append(figures)
            rows = kept_rows(scores.values, self.samples_per_step, seed=step)
            kept, kept_scores = [samples[row] for row in rows], _taken(scores, rows)
            self._in_journal(Journal.add_figures, step, name, figures)
            self._in_journal(Journal.add_samples, step, name, kept, kept_scores)
            if state.is_world_process_zero:
                texts = scored_texts(kept, kept_scores.values.tolist())
                for found in self.histories[name].add(WatchedStep(step, {**figures, **self._divergence}, texts)):
                    logger.warning("Step %d: %s", step, found.message)

    def _hear_trainer(self, state: Any, logs: Mapping[str, Any]) -> None:
        found = {kept: float(logs[name]) for name, kept in _TRAINERS_FIGURES.items() if logs.get(name) is not None}
        if found and state.is_world_process_zero:
            self._divergence = {"kl": found["kl"]} if "kl" in found else self._divergence
            self._in_journal(Journal.add_figures, state.global_step, None, found)

    def _remember(self, journal: Journal) -> None:
        """Go through what the journal has of this process, as if it happened now."""
        try:
            steps = read_journal(journal.folder, rank=journal.rank)
        except DataError:
            logger.warning("The journal %s has nothing of the steps before: what they showed is forgotten.", journal.folder)
            return
        for step in watched_steps(steps):
            for name in step.keys() & self.histories.keys():
                self.histories[name].add(step[name])

    def _in_journal(self, act: Callable[..., None], *arguments: Any) -> None:
        # A disk that is full is no reason to lose a training.
        if self.journal is not None:
            try:
                act(self.journal, *arguments)
            except OSError as error:
                logger.error("The journal %s ends here, for it cannot be written: %s", self.journal.folder, error)
                self.journal = None


def _joined(batches: Sequence[tuple[Sequence[rm.Sample], rm.Scores]]) -> tuple[list[rm.Sample], rm.Scores]:
    samples = [sample for batch, _ in batches for sample in batch]
    scored = [scores for _, scores in batches]
    details = {
        name: np.concatenate([scores.columns.get(name, np.full(len(scores), np.nan)) for scores in scored])
        for name in dict.fromkeys(name for scores in scored for name in scores.columns)
    }
    return samples, rm.Scores(np.concatenate([scores.values for scores in scored]), details)


def _taken(scores: rm.Scores, rows: NDArray[np.intp]) -> rm.Scores:
    return rm.Scores(scores.values[rows], {name: column[rows] for name, column in scores.columns.items()})


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: statistics.fmean(step[name] for step in steps if name in step) for name in names}
