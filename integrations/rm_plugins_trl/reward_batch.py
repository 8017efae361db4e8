"""What a trainer of TRL passes to a reward function: the samples, and what reaches functions beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.handed_over import OF_THE_RUN, HandedOver
from rm_plugins.providers.combinators.parts import compares_samples
from rm_plugins_trl.inner_logs import InnerLogs

if TYPE_CHECKING:
    from transformers import TrainerState


@dataclass(frozen=True, slots=True)
class TrainerCall:
    """The arguments of one call of a reward function.

    Args:
        prompts: Text or message lists, [N].
        completions: Text or message lists, [N].
        log_extra: TRL's hook for columns of the completions table.
        log_metric: TRL's hook for scalars.
        trainer_state: The trainer's state.
        others: Further arguments by name.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    log_extra: Callable[[str, list[Any]], None] | None
    log_metric: Callable[[str, float], None] | None
    trainer_state: TrainerState | None
    others: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """The samples of a call, and what functions inside the reward get beside them.

    Args:
        call: The call.
        samples: Its samples, [N].
        handed: What functions get.
        inner: Keeps what functions log; None for a function by itself that compares nothing, which gets TRL's own
            hooks.
    """

    call: TrainerCall
    samples: Sequence[rm.Sample]
    handed: HandedOver
    inner: InnerLogs | None

    @classmethod
    def of(cls, call: TrainerCall, provider: rm.Provider) -> RewardBatch:
        """The batch of a call, for a reward.

        Raises:
            DataError: A list or the completions differ in number from the prompts, or one of these is neither text nor messages.
        """
        prompts, completions = call.prompts, call.completions
        if len(completions) != len(prompts):
            raise _wrong_length("completions", completions, len(prompts))
        by_row, whole = _split(len(prompts), call.others, by_trainer=call.trainer_state is not None)
        columns = {name: values for name, values in by_row.items() if name not in OF_THE_RUN}
        samples = [
            _sample(row, prompt, completion, {name: values[row] for name, values in columns.items()})
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        hooks = {"log_extra": call.log_extra, "log_metric": call.log_metric, "trainer_state": call.trainer_state}
        whole |= {name: value for name, value in hooks.items() if value is not None}
        of_rows: dict[str, Callable[[Sequence[int]], Any]] = {
            name: partial(_rows_of, by_row[name]) for name in by_row if name in OF_THE_RUN
        }
        inner = InnerLogs(len(samples)) if provider.children or compares_samples(provider) else None
        if inner is not None and call.log_extra is not None:
            of_rows["log_extra"] = inner.log_extra_of
        if inner is not None and call.log_metric is not None:
            whole["log_metric"] = inner.log_metric
        return cls(call, samples, HandedOver(samples, whole, of_rows), inner)


def _sample(row: int, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> rm.Sample:
    try:
        return rm.Sample(prompt, completion, columns)
    except DataError as error:
        raise DataError(f"Item {row} of the batch is not a sample: {error}", rows=[row]) from error


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
