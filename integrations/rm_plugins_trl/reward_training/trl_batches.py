"""TRL's own batches, padded and of pairs only: for subclasses, collators and metrics that were written for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from rm_plugins.errors import DataError, SpecError
from rm_plugins.losses import Loss
from rm_plugins.losses.loss import needs_of
from rm_plugins_trl.reward_training.batch_facts import BatchFacts
from rm_plugins_trl.reward_training.training_rows import Tokenization, is_pair

TRL_METRICS = ("num_tokens", "min_reward", "mean_reward", "max_reward", "accuracy", "margin")
"""The metrics that TRL's trainer logs."""

_READ_BATCHES = ("compute_loss", "prediction_step", "training_step", "_prepare_dataset", "_set_signature_columns_if_needed")
"""Overrides of these methods see a batch, or what it is made of."""

_CARRIED = ("pairs", "margins")
"""The needs of a loss that TRL's batches fulfil."""


def trl_batches(trainer: Any, ours: Any, args: Any, data_collator: Any, data: Any, loss: Loss) -> TrlBatches | None:
    """The reader of TRL's batches, if something in a trainer needs them; None if batches are ours.

    A subclass that trains on other data than pairs was written for our batches, and gets them.

    Args:
        trainer: The trainer's class.
        ours: The class that it may be a subclass of.
        args: The trainer's arguments.
        data_collator: The data collator that was given.
        data: The training dataset.
        loss: The loss.

    Raises:
        SpecError: TRL's batches are needed, but do not hold what the data or the loss needs.
    """
    overridden = [name for name in _READ_BATCHES if getattr(trainer, name) is not getattr(ours, name)]
    if overridden:
        reader = f"{trainer.__name__} has its own {' and '.join(overridden)}"
    elif data_collator is not None:
        reader = f"the data collator {type(data_collator).__name__} was handed over"
    elif "inputs" in args.include_for_metrics or getattr(args, "include_inputs_for_metrics", False):
        reader = "compute_metrics is given the inputs (include_for_metrics)"
    else:
        reader = f"{trainer.__name__}.uses_trl_batches is set" if trainer.uses_trl_batches else ""
    if not reader or trainer.uses_trl_batches is False or not isinstance(data, (Dataset, IterableDataset)):
        return None
    first = next(iter(data), None)
    if first is not None and not is_pair(first):
        if overridden and not trainer.uses_trl_batches:
            return None
        raise SpecError(
            f"TRL's batches hold only preference pairs, and they are used because {reader}. The data has other rows."
        )
    if beyond := [need.name for need in needs_of(loss) if need.name not in _CARRIED]:
        raise SpecError(
            f"The loss needs {', '.join(beyond)}, which TRL's batches do not have, and they are used because {reader}."
        )
    if getattr(args, "pair", False) or getattr(args, "read", "") == "last":
        raise SpecError(f"pair=True and read='last' do not work with TRL's batches, which are used because {reader}.")
    if getattr(args, "bootstrap", False):
        raise SpecError(
            f"bootstrap=True needs the numbers of a batch's rows, which TRL's batches do not have, and they are used because {reader}."
        )
    return TrlBatches(reader, args.process_index, args.world_size)


@dataclass(slots=True)
class TrlBatches:
    """Reads TRL's batches: 2B rows, the chosen ones first.

    Args:
        reader: Why they are used, in words.
        process: The number of this process.
        processes: The number of processes.
    """

    reader: str
    process: int = 0
    processes: int = 1
    _seen: int = 0

    @property
    def notice(self) -> str:
        """The message for the user."""
        return (
            f"TRL's batches are used because {self.reader}: rows are padded, a prompt is computed once per answer, and the length of a "
            "text is its whole row's. This is slower. Your own loss does not need a subclass: use RewardConfig(loss=...)."
        )

    def judged(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The fields of `rm_plugins.losses.RewardBatch` for a batch.

        Args:
            inputs: ``attention_mask``, int [2B, T], and ``margin``, float [B], where the data has margins.
        """
        mask = inputs["attention_mask"]
        numbers = torch.arange(len(mask) // 2, device=mask.device)
        known = {
            "groups": numbers.repeat(2),
            "pairs": torch.stack([numbers, numbers + len(numbers)], 1),
            "lengths": mask.sum(1),
        }
        if inputs.get("margin") is not None:
            known["margins"] = inputs["margin"]
        return known

    def facts(self, inputs: Mapping[str, Any], last: int | None = None) -> BatchFacts:
        """The other facts about a batch; its rows get new numbers, because the batch does not have their own.

        Args:
            inputs: The batch.
            last: For the last batch of an evaluation, the number of pairs in it, of all processes; the further ones only fill it up.
        """
        mask = inputs["attention_mask"]
        count = len(mask) // 2
        numbers = [number * self.processes + self.process for number in range(self._seen, self._seen + count)]
        if last is not None:
            first = self.process * count
            numbers = [number if first + place < last else -1 for place, number in enumerate(numbers)]
        self._seen += count
        return BatchFacts(numbers, [None] * count, [0] * len(mask), count, int(mask.sum()))


@dataclass(frozen=True, slots=True)
class TrlTokenization:
    """Adds TRL's columns to dataset rows, all of them preference pairs: ``chosen_ids``, ``rejected_ids``, and ``margin`` as a number.

    ``longest`` is the length of the longer text before truncation.

    Args:
        tokenization: What makes the token ids.
    """

    tokenization: Tokenization

    def __call__(self, columns: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of a batch of rows.

        Raises:
            DataError: A row is not a preference pair; the message names it.
        """
        rows = self.tokenization(columns, numbers)
        for number, pairs in zip(numbers, rows["pairs"], strict=True):
            if [*map(tuple, pairs)] != [(0, 1)]:
                raise DataError(
                    f"Row {number} (counted from 0) of the {self.tokenization.name} dataset is not a preference pair with a winner, and "
                    "TRL's batches hold nothing else. Leave it out, or write a loss instead of the subclass: RewardConfig(loss=...)."
                )
        made = {name: rows[name] for name in ("chosen_ids", "rejected_ids", "longest")}
        if "margin" in columns:
            made["margin"] = [margins[0] if margins else None for margins in rows["margins"]]
        return made
