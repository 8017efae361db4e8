"""The batch of all processes, on which every process computes the same loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from rm_plugins.engine.partitioned import is_partitioned, linear_weight
from rm_plugins.losses import Need, RewardBatch
from rm_plugins.losses.loss import Item
from rm_plugins.losses.needs import BATCH_NEEDS, joined
from rm_plugins.processes import all_gathered


def global_batch(own: RewardBatch, processes: int, process: int, needs: Sequence[Need] = ()) -> RewardBatch:
    """The rows of all processes in their order; only those of this process have gradients.

    Every process computes the loss of the whole batch, so it is right even if it is not a mean over items, such as a correlation.

    Args:
        own: This process's rows; each process has its own, in any number.
        processes: The number of processes.
        process: The number of this one.
        needs: The needs that the loss declares.
    """
    if processes == 1:
        return own
    device = own.rewards.device
    shares: list[RewardBatch] = all_gathered(_on_cpu(own), "the rewards of a batch")
    shares[process] = own
    rows = [len(share.rewards) for share in shares]
    groups = [int(share.groups.max()) + 1 if len(share.groups) else 0 for share in shares]
    group_offsets = [sum(groups[:number]) for number in range(processes)]
    extras = {need.name: need.gather(shares, device) for need in needs}
    return RewardBatch(
        rewards=joined([share.rewards for share in shares], rows, torch.nan, device),  # type: ignore[arg-type]
        groups=joined([share.groups for share in shares], rows, 0, device, group_offsets),  # type: ignore[arg-type]
        # Every process computes the whole gradient of what all processes share.
        head=None if own.head is None else own.head / processes + own.head.detach() * (1 - 1 / processes),
        extras={name: values for name, values in extras.items() if values is not None},
        **{name: need.gather(shares, device) for name, need in BATCH_NEEDS.items()},  # type: ignore[arg-type]
    )


def of_judgements(batch: RewardBatch, kept: torch.Tensor, needs: Sequence[Need] = ()) -> RewardBatch:
    """A batch without the rows of some judgements.

    Args:
        batch: The batch.
        kept: bool [G], whether each judgement stays.
        needs: The needs that the loss declares.
    """
    rows = kept[batch.groups]
    place = rows.cumsum(0) - 1
    masks = {"judgement": rows, "row": rows, "pair": rows[batch.pairs[:, 0]]}
    if batch.ties is not None:
        masks["tie"] = rows[batch.ties[:, 0]]

    def part(need: Need) -> torch.Tensor | None:
        values = need.of(batch)
        return None if values is None else values[masks[need.each]]

    parts: dict[str, Any] = {name: part(need) for name, need in BATCH_NEEDS.items()}
    for name in ("pairs", "ties"):
        parts[name] = None if parts[name] is None else place[parts[name]]
    extras = {need.name: part(need) for need in needs}
    return replace(
        batch,
        rewards=batch.rewards[rows],
        groups=(kept.cumsum(0) - 1)[batch.groups[rows]],
        extras={name: values for name, values in extras.items() if values is not None},
        **parts,
    )


def items_of(
    item: Item,
    *,
    judgements: int,
    rows: int,
    pairs: torch.Tensor,
    ties: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
) -> int:
    """The number of items that a loss is a mean over.

    Args:
        item: What it is a mean over.
        judgements: The number of judgements.
        rows: The number of rows.
        pairs: The pairs.
        ties: The ties, if there are any.
        labels: The labels, if there are any.
    """
    match item:
        case "pairs":
            return len(pairs)
        case "comparisons":
            return len(pairs) + (0 if ties is None else len(ties))
        case "groups":
            return judgements
        case "rows":
            return rows
        case "labels":
            return 0 if labels is None else int((~labels.isnan()).sum())


def whole_weight(weight: torch.Tensor, *, averages: bool = False) -> torch.Tensor:
    """A weight that FSDP2 may have sharded, whole and with a gradient. All processes must call this together.

    Args:
        weight: The weight.
        averages: Whether the gradient is the mean of those of all processes, as FSDP2's are; by default, each process has the same.
    """
    if not hasattr(weight, "full_tensor"):
        return weight
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(weight, DTensor)
    placements = [Partial("avg")] * weight.device_mesh.ndim if averages else None
    return weight.full_tensor(grad_placements=placements)


def weight_of(layer: nn.Linear) -> torch.Tensor:
    """The weight of a linear layer that FSDP2 or ZeRO may have sharded, whole and with a gradient. All processes must call this together.

    Each process has the same gradient, as in `whole_weight`.
    """
    return linear_weight(layer) if is_partitioned(layer.weight) else whole_weight(layer.weight)


def summed_gradient(loss: torch.Tensor, processes: int) -> torch.Tensor:
    """The same value, whose gradients add up over processes where a wrapper such as DDP takes their mean."""
    return loss if processes == 1 else loss + (processes - 1) * (loss - loss.detach())


def _on_cpu(batch: RewardBatch) -> RewardBatch:
    """What the other processes need of a batch: its values, and not the model's own weights."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name not in ("head", "extras")}
    on_cpu = {name: None if value is None else value.detach().cpu() for name, value in values.items()}
    extras = {name: value.detach().cpu() for name, value in batch.extras.items()}
    return replace(batch, **on_cpu, head=None, extras=extras)  # type: ignore[arg-type]
