"""Scores the batches of a trainer of TRL with a reward: at once, or awaited beside other rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

import rm_plugins as rm
from rm_plugins.errors import ModelError
from rm_plugins.handed_over import handed_over
from rm_plugins.identity import fingerprint
from rm_plugins.processes import all_gathered, process_count
from rm_plugins.scores import FloatArray
from rm_plugins.scoring_threads import in_thread
from rm_plugins.training.reward_state import restore_reward_state, reward_state
from rm_plugins.training.session import RewardInTraining, Training
from rm_plugins.wire import values_to_json
from rm_plugins_trl.reward_batch import RewardBatch, TrainerCall
from rm_plugins_trl.turns import Turns, communicates

if TYPE_CHECKING:
    from transformers import TrainerState

Result = TypeVar("Result")

Spec: TypeAlias = str | Path | Mapping[str, Any] | rm.Provider | Callable[..., Any]
"""Whatever `rm_plugins.load` takes."""

_TAKEN = ("mean", "std", "min", "max", "abstained")
"""Names of the trainers' own metrics of a reward, and of ours for all rewards."""

_TURNS = Turns()
"""The order in which the rewards of this process communicate with other processes."""


class RewardScoring:
    """A reward that scores a trainer's batches, and logs their details.

    It can be pickled: another process loads the same spec, with what this one has learned.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        name: Its name in metrics and checkpoints; the provider's label if unset.
    """

    def __init__(self, spec: Spec, name: str | None = None) -> None:
        self.spec = spec
        self.provider = rm.load(spec)
        self.name = name or self.provider.label
        self.seen: set[str] = set()
        """The names in `Scores.columns` of all batches so far, in any process."""
        self._in_training = RewardInTraining(self.provider, self.name)
        self._metrics_of_trainer = frozenset(_TAKEN)

    def split(self, columns: Sequence[str]) -> None:
        """Have the trainer see it as reward columns, each called ``NAME/COLUMN``, instead of one reward."""
        self._in_training.shown_as = [f"{self.name}/{column}" for column in columns]
        self._metrics_of_trainer = frozenset([*_TAKEN, *(f"{column}/{metric}" for column in columns for metric in _TAKEN)])

    @property
    def key(self) -> str:
        """The entry of the trainer's checkpoints with what it has learned."""
        return self._in_training.key

    def now(self, call: TrainerCall) -> tuple[Sequence[rm.Sample], rm.Scores]:
        """Score a batch in this thread, and log its details.

        Returns:
            The samples [N], and their scores [N].

        Raises:
            DataError: A list or the completions differ in number from the prompts, or the training is resumed from a checkpoint of
                another reward.
            ScoringError: The provider failed and its `on_error` is ``raise``.
        """
        batch = RewardBatch.of(call, self.provider)
        with self._naming_it():
            scores = self._scored(batch)
            self._log(batch, scores)
        return batch.samples, scores

    async def awaited(self, call: TrainerCall) -> tuple[Sequence[rm.Sample], rm.Scores]:
        """The same in a thread, beside other rewards that are awaited.

        With several processes, everything that communicates with other processes happens in the order in which rewards were called. Only
        the scoring of rewards that do not communicate overlaps, except at the first batch, where processes compare their rewards.
        """
        batch = RewardBatch.of(call, self.provider)
        with self._naming_it():
            if process_count() > 1:
                return batch.samples, await self._beside_other_processes(batch)
            training = training_of(call.trainer_state)
            if training is not None and self._in_training.is_new_to(training):
                self._in_training.begin(
                    training
                )  # here, and not in the thread, so that two rewards of one name are always noticed
            scores = await self._threaded(partial(self._scored, batch))
            self._log(batch, scores)
        return batch.samples, scores

    @contextmanager
    def _naming_it(self) -> Iterator[None]:
        """Adds the name of the reward to errors: several rewards score at the same time, and labels may be equal."""
        try:
            yield
        except Exception as error:
            error.add_note(f"This is of the reward {self.name!r}.")
            raise

    async def _beside_other_processes(self, batch: RewardBatch) -> rm.Scores:
        training = training_of(batch.call.trainer_state)
        with _TURNS.take() as turn:
            if communicates(self.provider) or (training is not None and self._in_training.is_new_to(training)):
                await turn.come()
                scores = await self._threaded(partial(self._scored, batch))
            else:
                scores = await self._threaded(partial(self._scored, batch))
                await turn.come()
            await in_thread(partial(self._log, batch, scores), waits=True)
        return scores

    async def _threaded(self, work: Callable[[], Result]) -> Result:
        waits = any(part.concurrent for _, part in self.provider.walk())
        return await in_thread(partial(_on_the_trainers_device, work), waits=waits)

    def _scored(self, batch: RewardBatch) -> rm.Scores:
        with handed_over(batch.handed):
            return self._in_training.score(batch.samples, training_of(batch.call.trainer_state))

    def _log(self, batch: RewardBatch, scores: rm.Scores) -> None:
        if batch.call.log_metric is None and batch.call.log_extra is None:
            self.seen.update(scores.columns)
            return
        log_metric, log_extra = batch.call.log_metric or _ignore, batch.call.log_extra or _ignore
        details = _shared_details(scores, self.name)
        self.seen.update(details)
        means = {detail_metric(detail, self._metrics_of_trainer): mean_of(values) for detail, values in details.items()}
        others = {metric: float(scores.metadata.get(metric, math.nan)) for metric in self.provider.metrics}
        for metric, value in {"abstained": mean_of(scores.abstained.astype(np.float64)), **means, **others}.items():
            log_metric(f"rewards/{self.name}/{metric}", value)
        for detail, values in details.items():
            log_extra(f"{self.name}/{detail}", values_to_json(values))
        if batch.inner is not None:
            batch.inner.hand_on(log_metric, log_extra)

    def __getstate__(self) -> dict[str, Any]:
        identity, learned = fingerprint(self.provider), reward_state(self.provider)
        return {"spec": self.spec, "name": self.name, "fingerprint": identity, "learned": learned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["spec"], state["name"])  # type: ignore[misc]  # load the spec in this process
        if fingerprint(self.provider) != state["fingerprint"]:
            raise ModelError(
                f"The reward {self.name!r} differs from the pickled one: a file that its spec names has changed since it was loaded, "
                "so the two would give different scores under one name. Load it again in both processes."
            )
        restore_reward_state(self.provider, state["learned"])


def training_of(state: TrainerState | None) -> Training | None:
    """A training as rewards see it: what they learn is kept with the states of the trainer's callbacks."""
    if state is None:
        return None
    kept_in = "`stateful_callbacks` in trainer_state.json"
    return Training(state.global_step, state.max_steps, state.stateful_callbacks, kept_in)


def detail_metric(detail: str, taken: Container[str] = _TAKEN) -> str:
    """What the mean of a detail is called in metrics, under ``rewards/NAME/``.

    An ensemble's detail ``std``, the spread of its members, is not the spread of the rewards, which has that name already.

    >>> detail_metric("member/0"), detail_metric("std")
    ('member/0', 'std/mean')
    """
    return f"{detail}/mean" if detail in taken else detail


def mean_of(values: FloatArray) -> float:
    """The mean of the numbers, NaN where there is none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _shared_details(scores: rm.Scores, name: str) -> Mapping[str, FloatArray]:
    """The details of a batch, with NaN for those that only other processes have: TRL would wait forever for what not all log."""
    gathered = all_gathered(list(scores.columns), f"the details of {name}")  # not those of another reward, if one has failed
    if len(gathered) == 1:
        return scores.columns
    missing = np.full(len(scores), np.nan)
    return {name: scores.columns.get(name, missing) for name in sorted(set().union(*gathered))}


def _on_the_trainers_device(work: Callable[[], Result]) -> Result:
    """Run work with the trainer's accelerator as the current one, which a new thread would not have."""
    from accelerate.state import PartialState, is_initialized

    if (
        is_initialized() and (device := PartialState().device).type != "cpu" and device.index is not None
    ):  # cpu:1 has an index too
        import torch

        torch.accelerator.set_device_index(device.index)
    return work()


def _ignore(name: str, value: Any) -> None:
    """What a trainer without a hook logs."""
