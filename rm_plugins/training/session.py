"""A provider that scores for a trainer: it knows how far the training is, and checkpoints keep what it learns."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from rm_plugins.errors import DataError, ProcessError, SpecError
from rm_plugins.identity import fingerprints_of_parts
from rm_plugins.processes import check_same
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.training.reward_state import restore_reward_state, reward_state
from rm_plugins.training.whole_groups import scored_in_whole_groups
from rm_plugins.training_progress import training_progress
from rm_plugins.transforms import shared_batch

_PREFIX = "rm_plugins/"


@dataclass(frozen=True, slots=True)
class Training:
    """A training at one moment.

    Args:
        step: The steps that are done.
        steps: The steps of the whole training; 0 where this is not known.
        kept: The state in the training's checkpoints, as JSON values. It is one object from the beginning of a training to its end.
        kept_in: What error messages call it.
    """

    step: int
    steps: int
    kept: MutableMapping[str, Any]
    kept_in: str


class RewardInTraining:
    """Scores the batches of a trainer.

    - No other reward of the training may have its name, under which it is logged and what it learns is kept.
    - Each is one batch of all processes (see `rm_plugins.transforms.shared_batch`), scored at this point of the training (see
      `rm_plugins.training_progress`).
    - What the provider has learned is put among what the training's checkpoints keep, as ``rm_plugins/NAME``. At the first batch of
      a training that was resumed, it is taken from there.
    - Where the reward compares samples, each group is scored as a whole, also if it is spread over processes (see
      `rm_plugins.training.whole_groups`).
    - At the first batch of a training, all processes check that they have the same reward (see `rm_plugins.identity`). So all of them must
      score that batch, even if it is empty in some. A reward that compares samples, or learns from them, needs this for every batch.

    Args:
        provider: The reward.
        name: What the trainer calls it.
    """

    _in_training: ClassVar[weakref.WeakSet[RewardInTraining]] = weakref.WeakSet()
    """Every reward of this process that has scored for a training."""

    def __init__(self, provider: Provider, name: str) -> None:
        self.provider = provider
        self.key = f"{_PREFIX}{name}"
        self.shown_as: Collection[str] = (name,)
        """The names of its metrics in the trainer: its own, or those of its reward columns."""
        self._kept: MutableMapping[str, Any] | None = None

    def score(self, samples: Sequence[Sample], training: Training | None) -> Scores:
        """Score this process's part of a batch, which may be empty.

        Args:
            samples: The batch.
            training: The training now; None outside training.

        Raises:
            DataError: The training is resumed from a checkpoint of another reward.
            ProcessError: Another process has another reward, fails on samples that are compared with others, or does not answer.
            UnsupportedError: A group is spread over processes, and a function takes what belongs to the rows of one process.
            SpecError: Another reward of the training has the same name.
            ScoringError: The provider failed and its `on_error` is ``raise``.
        """
        if training is not None and self.is_new_to(training):
            self.begin(training)
        progress = None if training is None or training.steps <= 0 else min(training.step / training.steps, 1.0)
        with nullcontext() if progress is None else training_progress(progress):
            scores = scored_in_whole_groups(self.provider, samples, self._scored)
        if training is not None and (learned := reward_state(self.provider)):
            training.kept[self.key] = learned
        return scores

    def _scored(self, samples: Sequence[Sample]) -> Scores:
        """The scores of samples in this process; a failure is raised after the exchanges with other processes."""
        with shared_batch(self.provider):
            try:
                return self.provider.score(samples)
            except ProcessError:
                raise
            except Exception as error:
                failure = error
        raise failure

    def is_new_to(self, training: Training) -> bool:
        """Whether it has not scored for a training yet."""
        return training.kept is not self._kept

    def begin(self, training: Training) -> None:
        """Prepare for the first batch of a training; `score` does so by itself. All processes must call it together.

        Raises:
            DataError: As for `score`.
            ProcessError: As for `score`.
            SpecError: As for `score`.
        """
        self._check_name(training)
        check_same(self._parts, "the fingerprints of the reward")
        self._kept = training.kept
        self._in_training.add(self)
        self._resume(training)

    def _parts(self) -> dict[str, str]:
        """The fingerprints of the reward and its parts, as they are called in messages."""
        name = f"the reward {self.provider.label!r}"
        return {f"{path} of {name}" if path else name: digest for path, digest in fingerprints_of_parts(self.provider).items()}

    def _check_name(self, training: Training) -> None:
        others = [other for other in self._in_training if other._kept is training.kept and other is not self]
        names = {name for other in others for name in other._names()}
        if twice := [name for name in self._names() if name in names]:
            raise SpecError(
                f"Two rewards of this training are called {twice[0]!r}, and would share their metrics and their state. Give one "
                "another name: reward_func(SPEC, name=...), or `label` in its spec."
            )

    def _names(self) -> list[str]:
        return [self.key.removeprefix(_PREFIX), *self.shown_as]

    def _resume(self, training: Training) -> None:
        if (learned := training.kept.get(self.key)) is not None:
            try:
                restore_reward_state(self.provider, learned)
            except DataError as error:
                raise DataError(f"{error} The state is the entry {self.key!r} of {training.kept_in}.") from error
        elif training.step > 0 and reward_state(self.provider):
            warnings.warn(
                f"The training resumes at step {training.step}, but its checkpoint has no state of the reward {self.provider.label!r} (no "
                f"entry {self.key!r} in {training.kept_in}). Its running statistics start again. If the reward had another name before, "
                "give it that name.",
                stacklevel=5,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}
