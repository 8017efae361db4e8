"""The last batch of an epoch, which accelerate fills up with rows from the start of the epoch, so that all processes have equally many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rm_plugins.losses import Need, RewardBatch
from rm_plugins.losses.loss import Item
from rm_plugins.losses.needs import BATCH_NEEDS
from rm_plugins_trl.reward_training.batch_facts import BatchFacts
from rm_plugins_trl.reward_training.global_batch import items_of, of_judgements

LAST = "rows_of_last_batch"
"""The key in the last batch of an epoch for the number of rows, of all processes, that come before those that fill it up."""


def mark_last_batch(trainer: Any, batch: dict[str, Any]) -> None:
    """Note in the newest batch of a training how many of its rows do not fill it up, if it is the last one of an epoch.

    Args:
        trainer: The `rm_plugins_trl.RewardTrainer`.
        batch: This process's batch, of `rm_plugins_trl.reward_training.training_rows.Collator`.
    """
    state = trainer.accelerator.gradient_state
    if state.in_dataloader and state.end_of_dataloader:
        rows, size = _rows_of_epoch(trainer), len(batch["number"]) * trainer.accelerator.num_processes
        if rows is not None and (last := rows % size):
            batch[LAST] = last


def _rows_of_epoch(trainer: Any) -> int | None:
    """The number of rows of an epoch, or None where nothing fills up its last batch, and for a stream, whose number of rows is unknown."""
    settings = trainer.args
    if settings.dataloader_drop_last or not settings.accelerator_config.even_batches:
        return None
    if trainer.accelerator.num_processes == 1 or trainer.get_tp_size() > 1:
        return None
    batches: Any = getattr(trainer.callback_handler.train_dataloader, "batch_sampler", None)
    while hasattr(batches, "batch_sampler"):  # accelerate's wrappers
        batches = batches.batch_sampler
    try:
        return len(batches.sampler)
    except (AttributeError, TypeError):
        return None


def own_items(batch: Mapping[str, Any], process: int, item: Item) -> int:
    """The number of items of this process's batch, without the judgements that only fill it up.

    Args:
        batch: The batch.
        process: The number of this process.
        item: What the loss is a mean over.
    """
    if LAST not in batch:
        return int(batch["items"])
    count = len(batch["number"])
    kept = torch.arange(process * count, (process + 1) * count) < batch[LAST]
    known = {name: batch[name] for name in ("groups", *BATCH_NEEDS) if name in batch}
    own = RewardBatch(rewards=torch.zeros(len(batch["rows"]), 1), **known)
    return _items(of_judgements(own, kept), int(kept.sum()), item)


def without_fillers(
    batch: RewardBatch, facts: BatchFacts, kept: Sequence[bool], item: Item, needs: Sequence[Need] = ()
) -> tuple[RewardBatch, BatchFacts]:
    """A batch of all processes without the judgements that only fill it up.

    Args:
        batch: The batch.
        facts: Its facts.
        kept: Whether each judgement stays, [G].
        item: What the loss is a mean over.
        needs: The needs that the loss declares.
    """
    if all(kept):
        return batch, facts
    chosen = torch.tensor(kept, device=batch.groups.device)
    part = of_judgements(batch, chosen, needs)
    return part, facts.of_judgements(kept, chosen[batch.groups].tolist(), _items(part, sum(kept), item))


def _items(batch: RewardBatch, judgements: int, item: Item) -> int:
    return items_of(
        item, judgements=judgements, rows=len(batch.rewards), pairs=batch.pairs, ties=batch.ties, labels=batch.labels
    )
