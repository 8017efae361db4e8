"""A provider as a reward function of GRPO, RLOO and Online DPO."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import rm_plugins as rm
from rm_plugins.errors import DataError, ModelError
from rm_plugins.handed_over import OF_THE_RUN, HandedOver, handed_over
from rm_plugins.identity import fingerprint
from rm_plugins.processes import all_gathered
from rm_plugins.scores import FloatArray
from rm_plugins.training.reward_state import restore_reward_state, reward_state
from rm_plugins.training.session import RewardInTraining, Training
from rm_plugins.wire import values_to_json
from rm_plugins_trl.inner_logs import InnerLogs

if TYPE_CHECKING:
    from transformers import TrainerState

Spec: TypeAlias = str | Path | Mapping[str, Any] | rm.Provider | Callable[..., Any]
"""Whatever `rm_plugins.load` takes."""

_TAKEN = ("mean", "std", "min", "max", "abstained")
"""Names of the trainers' own metrics of a reward."""


def reward_func(spec: Spec, *, name: str | None = None) -> RewardFunction:
    """A reward for ``reward_funcs`` of TRL's GRPO, RLOO and Online DPO trainers.

    Args:
        spec: Anything that `rm_plugins.load` takes; it is loaded at once, so that errors show before training.
        name: Its name in the trainer's metrics, ``rewards/NAME/mean``; the provider's own label by default. Two
            rewards of one trainer need two names.

    Raises:
        SpecError: The spec is wrong.
    """
    return RewardFunction(spec, name)


class RewardFunction:
    """What `reward_func` returns: a callable with TRL's reward signature.

    It can be pickled: another process loads the same spec, with what this one has learned. An abstention is TRL's ``None``. What the
    provider learns while scoring is saved in the trainer's checkpoints, and restored when one is resumed.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        name: The name in metrics.
    """

    watchers: list[Callable[[Sequence[rm.Sample], rm.Scores, TrainerState | None], None]]
    """Called after every batch that was scored in this process, with the trainer's state or None; not part of a copy."""

    def __init__(self, spec: Spec, name: str | None = None) -> None:
        self.spec = spec
        self.provider = rm.load(spec)
        self.__name__ = name or self.provider.label
        self.watchers = []
        self._scorer = RewardInTraining(self.provider, self.__name__)
        self._warned = False

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        trainer_state: TrainerState | None = None,
        **others: Any,
    ) -> list[float | None]:
        """Score one batch of a trainer.

        A user's function gets all of this by name, as TRL would pass it, for the rows that it scores. It may be any part of the reward.

        Args:
            prompts: Text or message lists, [N].
            completions: Text or message lists, [N].
            log_extra: TRL's hook for columns of the completions table: gets every detail of the scores.
            log_metric: TRL's hook for scalars: gets every detail's mean, the share of abstentions, and the provider's own `metrics`.
            trainer_state: The trainer's state: its progress, and what its checkpoints keep.
            others: Further arguments. Lists with one item per row become `Sample.columns`, except the trainer's ``environments``.

        Returns:
            One reward per sample, None where the provider abstains.

        Raises:
            DataError: A list or the completions differ in number from the prompts, or the training is resumed from
                a checkpoint of another reward.
            SpecError: Another reward of the training has the same name.
            ScoringError: The provider failed and its `on_error` is ``raise``.
        """
        if len(completions) != len(prompts):
            raise _wrong_length("completions", completions, len(prompts))
        by_row, whole = _split(len(prompts), others, by_trainer=trainer_state is not None)
        samples = [
            rm.Sample(prompt, completion, {name: by_row[name][row] for name in by_row if name not in OF_THE_RUN})
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        hooks = {"log_extra": log_extra, "log_metric": log_metric, "trainer_state": trainer_state}
        whole |= {name: value for name, value in hooks.items() if value is not None}
        of_rows: dict[str, Callable[[Sequence[int]], Any]] = {
            name: partial(_rows_of, by_row[name]) for name in by_row if name in OF_THE_RUN
        }
        inner = InnerLogs(len(samples)) if self.provider.children else None  # a function by itself gets TRL's own hooks
        if inner is not None and log_extra is not None:
            of_rows["log_extra"] = inner.log_extra_of
        if inner is not None and log_metric is not None:
            whole["log_metric"] = inner.log_metric
        with handed_over(HandedOver(samples, whole, of_rows)):
            scores = self._scorer.score(samples, training_of(trainer_state))
        for watcher in self.watchers:
            watcher(samples, scores, trainer_state)
        if log_metric is not None or log_extra is not None:
            self._log(scores, log_metric or _ignore, log_extra or _ignore)
            if inner is not None:
                inner.hand_on(log_metric or _ignore, log_extra or _ignore)
        if log_metric is None and trainer_state is not None and scores.abstained.any() and not self._warned:
            self._warned = True
            warnings.warn(
                f"The reward {self.__name__!r} abstained on {int(scores.abstained.sum())} of {len(samples)} samples, and this "
                "trainer adds an abstention as 0 (Online DPO does). Use a reward that always gives a number, and "
                "`on_error: {fallback: SPEC}` for failures.",
                stacklevel=2,
            )
        return values_to_json(scores.values)

    def _log(
        self, scores: rm.Scores, log_metric: Callable[[str, float], None], log_extra: Callable[[str, list[Any]], None]
    ) -> None:
        details = _shared_details(scores)
        means = {detail_metric(detail): _mean(values) for detail, values in details.items()}
        others = {metric: float(scores.metadata.get(metric, math.nan)) for metric in self.provider.metrics}
        for metric, value in {"abstained": _mean(scores.abstained.astype(np.float64)), **means, **others}.items():
            log_metric(f"rewards/{self.__name__}/{metric}", value)
        for detail, values in details.items():
            log_extra(f"{self.__name__}/{detail}", values_to_json(values))

    def __getstate__(self) -> dict[str, Any]:
        identity, learned = fingerprint(self.provider), reward_state(self.provider)
        return {"spec": self.spec, "name": self.__name__, "fingerprint": identity, "learned": learned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["spec"], state["name"])  # type: ignore[misc]  # load the spec in this process
        if fingerprint(self.provider) != state["fingerprint"]:
            raise ModelError(
                f"The reward {self.__name__!r} differs from the pickled one: a file that its spec names has changed since it was loaded, "
                "so the two would give different scores under one name. Load it again in both processes."
            )
        restore_reward_state(self.provider, state["learned"])

    def __repr__(self) -> str:
        return f"<reward {self.__name__!r}: {self.provider.name}>"


def training_of(state: TrainerState | None) -> Training | None:
    """A training as rewards see it: what they learn is kept with the states of the trainer's callbacks."""
    if state is None:
        return None
    kept_in = "`stateful_callbacks` in trainer_state.json"
    return Training(state.global_step, state.max_steps, state.stateful_callbacks, kept_in)


def detail_metric(detail: str) -> str:
    """What the mean of a detail is called in metrics, under ``rewards/NAME/``.

    An ensemble's detail ``std``, the spread of its members, is not the spread of the rewards, which has that name already.

    >>> detail_metric("member/0"), detail_metric("std")
    ('member/0', 'std/mean')
    """
    return f"{detail}/mean" if detail in _TAKEN else detail


def _shared_details(scores: rm.Scores) -> Mapping[str, FloatArray]:
    """The details of a batch, with NaN for those that only other processes have: TRL would wait forever for what not all log."""
    gathered = all_gathered(list(scores.columns), "the names of a reward's details")
    if len(gathered) == 1:
        return scores.columns
    missing = np.full(len(scores), np.nan)
    return {name: scores.columns.get(name, missing) for name in sorted(set().union(*gathered))}


def _mean(values: FloatArray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _ignore(name: str, value: Any) -> None:
    """What a trainer without a hook logs."""


def _split(size: int, others: Mapping[str, Any], *, by_trainer: bool) -> tuple[dict[str, Sequence[Any]], dict[str, Any]]:
    """The keyword arguments with one item per row, and those for the whole batch."""
    by_row: dict[str, Sequence[Any]] = {}
    whole: dict[str, Any] = {}
    for name, values in others.items():
        if not isinstance(values, Sequence) or isinstance(values, str):
            whole[name] = values
        elif len(values) == size:
            by_row[name] = values
        elif by_trainer:  # it repeats every column for the rows, so any other list is not a column
            whole[name] = values
        else:
            raise _wrong_length(name, values, size)
    return by_row, whole


def _wrong_length(name: str, values: Any, size: int) -> DataError:
    return DataError(f"{name!r} must be a list of {size} items, one per prompt; got {values!r:.80}.")


def _rows_of(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [values[row] for row in rows]
