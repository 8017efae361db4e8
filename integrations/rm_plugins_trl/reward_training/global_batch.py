"""The batch of all processes, on which every process computes the same loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from accelerate.utils import gather_object

from rm_plugins.losses import RewardBatch

__all__ = ["global_batch", "summed_gradient"]


def global_batch(own: RewardBatch, processes: int, process: int) -> RewardBatch:
    """The rows of all processes in the order of their numbers, of which only this one's carry gradients.

    A loss of it is the loss of the whole batch in every process, also where it is no mean over items, such as a correlation.

    Args:
        own: This process's rows; each process has its own, in any number.
        processes: The number of processes.
        process: The number of this one.
    """
    if processes == 1:
        return own
    device = own.rewards.device
    parts: list[dict[str, Any]] = gather_object([_on_cpu(own)])
    parts[process] = {field.name: getattr(own, field.name) for field in fields(own)}
    rows = [len(part["rewards"]) for part in parts]
    offsets = [sum(rows[:number]) for number in range(processes)]
    groups = [int(part["groups"].max()) + 1 if len(part["groups"]) else 0 for part in parts]
    group_offsets = [sum(groups[:number]) for number in range(processes)]
    pair_counts = [len(part["pairs"]) for part in parts]

    def joined(name: str, sizes: Sequence[int], missing: float, shifts: Sequence[int] | None = None) -> Any:
        found = [part[name] for part in parts]
        given = next((each for each in found if each is not None), None)
        if given is None:
            return None
        whole = [
            torch.full((size, *given.shape[1:]), missing, dtype=given.dtype) if each is None else each
            for each, size in zip(found, sizes, strict=True)
        ]
        shifted = whole if shifts is None else [each + shift for each, shift in zip(whole, shifts, strict=True)]
        return torch.cat([each.to(device) for each in shifted])

    nan = torch.nan
    return replace(
        own,
        rewards=joined("rewards", rows, nan),
        pairs=joined("pairs", pair_counts, 0, offsets),
        groups=joined("groups", rows, 0, group_offsets),
        lengths=joined("lengths", rows, 0),
        ties=joined("ties", [0] * processes, 0, offsets),
        ranks=joined("ranks", rows, nan),
        labels=joined("labels", rows, nan),
        weights=joined("weights", rows, 1.0),
        margins=joined("margins", pair_counts, 0.0),
        logprobs=joined("logprobs", rows, nan),
        # Every process computes the whole gradient of what it has in common with the others.
        head=None if own.head is None else own.head / processes + own.head.detach() * (1 - 1 / processes),
    )


def summed_gradient(loss: torch.Tensor, processes: int) -> torch.Tensor:
    """The same value, whose gradients add up over processes where a wrapper such as DDP takes their mean."""
    return loss if processes == 1 else loss + (processes - 1) * (loss - loss.detach())


def _on_cpu(batch: RewardBatch) -> dict[str, Any]:
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: None if value is None or name == "head" else value.detach().cpu() for name, value in found.items()}
