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
"""What TRL's trainer logs of rewards."""

_READ_BATCHES = ("compute_loss", "prediction_step", "training_step", "_prepare_dataset", "_set_signature_columns_if_needed")
"""The methods whose overrides see a batch, or what it is made of."""

_CARRIED = ("pairs", "margins")
"""What of a loss's needs TRL's batches carry."""


def trl_batches(trainer: Any, ours: Any, args: Any, data_collator: Any, data: Any, loss: Loss) -> TrlBatches | None:
    """What makes sense of TRL's batches, where something of a trainer reads them; None where batches are ours.

    A subclass that trains on other data than pairs can only have been written for our batches, and gets them.

    Args:
        trainer: The trainer's class.
        ours: The class that it may be a subclass of.
        args: The trainer's arguments.
        data_collator: What the trainer was given as that.
        data: The training dataset.
        loss: What is trained.

    Raises:
        SpecError: They are asked for, and the data or the loss needs more than they carry.
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
        raise SpecError(f"TRL's batches hold preference pairs and nothing else, and {reader}. The data has other rows.")
    if beyond := [need.name for need in needs_of(loss) if need.name not in _CARRIED]:
        raise SpecError(f"The loss needs {', '.join(beyond)}, which TRL's batches do not carry, and {reader}.")
    if getattr(args, "pair", False) or getattr(args, "read", "") == "last":
        raise SpecError(f"pair=True and read='last' are not what TRL's batches are made for, and {reader}.")
    if getattr(args, "bootstrap", False):
        raise SpecError(
            f"bootstrap=True needs to know which rows are in a batch, which TRL's batches do not say, and {reader}."
        )
    return TrlBatches(reader, args.process_index, args.world_size)


@dataclass(slots=True)
class TrlBatches:
    """Makes sense of TRL's batches: of 2B rows, the chosen ones first.

    Args:
        reader: What reads them, in words.
        process: The number of this process.
        processes: The number of processes.
    """

    reader: str
    process: int = 0
    processes: int = 1
    _seen: int = 0

    @property
    def notice(self) -> str:
        """What a user is told."""
        return (
            f"Batches are TRL's, because {self.reader}: rows are padded, prompts run once for each answer, and the length of a text is "
            "that of its whole row. It is slower; a loss of its own (RewardConfig(loss=...)) needs no subclass."
        )

    def judged(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What `rm_plugins.losses.RewardBatch` says of a batch.

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

    def facts(self, inputs: Mapping[str, Any]) -> BatchFacts:
        """What is known of a batch beside; its rows have new numbers, because the batch does not say which they are."""
        mask = inputs["attention_mask"]
        count = len(mask) // 2
        numbers = [number * self.processes + self.process for number in range(self._seen, self._seen + count)]
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
            DataError: A row is no preference pair; the message names it.
        """
        rows = self.tokenization(columns, numbers)
        for number, pairs in zip(numbers, rows["pairs"], strict=True):
            if [*map(tuple, pairs)] != [(0, 1)]:
                raise DataError(
                    f"Row {number} of the {self.tokenization.name} dataset is no preference pair with a winner, and TRL's batches hold "
                    "nothing else. Leave it out, or make the subclass a loss of its own: RewardConfig(loss=...)."
                )
        made = {name: rows[name] for name in ("chosen_ids", "rejected_ids", "longest")}
        if "margin" in columns:
            made["margin"] = [margins[0] if margins else None for margins in rows["margins"]]
        return made
