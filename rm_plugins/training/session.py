"""A provider that scores for a trainer: it knows how far the training is, and checkpoints keep what it learns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.training.reward_state import restore_reward_state, reward_state
from rm_plugins.training_progress import training_progress
from rm_plugins.transforms import shared_batch

if TYPE_CHECKING:
    from transformers import TrainerState

__all__ = ["RewardInTraining"]


class RewardInTraining:
    """Scores the batches of a trainer.

    - Each is one batch of all processes (see `rm_plugins.transforms.shared_batch`), scored at this point of the training (see
      `rm_plugins.training_progress`).
    - What the provider has learned is put among the states of the trainer's callbacks, ``trainer_state.json`` of a checkpoint, as
      ``rm_plugins/NAME``. At the first batch of a training that was resumed, it is taken from there.

    Args:
        provider: The reward.
        name: What the trainer calls it.
    """

    def __init__(self, provider: rm.Provider, name: str) -> None:
        self.provider = provider
        self.key = f"rm_plugins/{name}"
        self._training: TrainerState | None = None

    def score(self, samples: Sequence[rm.Sample], training: TrainerState | None) -> rm.Scores:
        """Score this process's part of a batch, which may be empty.

        Args:
            samples: The batch.
            training: The trainer's state; None outside training.

        Raises:
            DataError: The training goes on from a checkpoint of another reward.
            ScoringError: The provider failed and its `on_error` is ``raise``.
        """
        if training is not None and training is not self._training:
            self._training = training
            self._take_up(training)
        with _progress(training), shared_batch(self.provider):
            scores = self.provider.score(samples)
        if training is not None and (learned := reward_state(self.provider)):
            training.stateful_callbacks[self.key] = learned
        return scores

    def _take_up(self, training: TrainerState) -> None:
        if (learned := training.stateful_callbacks.get(self.key)) is not None:
            try:
                restore_reward_state(self.provider, learned)
            except DataError as error:
                raise DataError(
                    f"{error} It is the entry {self.key!r} of `stateful_callbacks` in trainer_state.json."
                ) from error
        elif training.global_step > 0 and reward_state(self.provider):
            warnings.warn(
                f"The training goes on from step {training.global_step}, and its checkpoint has nothing of what the reward "
                f"{self.provider.label!r} had learned (no entry {self.key!r} of `stateful_callbacks` in trainer_state.json): its "
                "running statistics begin anew. Give the reward the name that it had, if that has changed.",
                stacklevel=4,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_training": None}


def _progress(training: TrainerState | None) -> AbstractContextManager[None]:
    if training is None or training.max_steps <= 0:
        return nullcontext()
    return training_progress(min(training.global_step / training.max_steps, 1.0))
