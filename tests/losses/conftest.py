"""Batches of rewards, and losses of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import rm_plugins as rm
from rm_plugins.losses import Loss, Regularizer, RewardBatch
from rm_plugins.spec import component

LOSSES = sorted(rm.Registry().all("loss"))


REGULARIZERS = sorted(rm.Registry().all("regularizer"))


SPECS: list[dict[str, Any]] = [
    *({"name": name} for name in LOSSES),
    {"name": "bradley-terry", "label_smoothing": 0.2},
    {"name": "listnet", "target": "labels", "temperature": 0.5},
    {"name": "mean-variance", "data": "ratings"},
    {"name": "plackett-luce", "top_k": 2},
    {"name": "regression", "kind": "huber", "delta": 0.3},
]


def batch(rewards: Any, pairs: Any = (), dtype: torch.dtype = torch.float64, **columns: Any) -> RewardBatch:
    """A batch of nested lists or tensors; without groups all rows are one."""
    rewards = torch.as_tensor(rewards, dtype=dtype if isinstance(rewards, (list, tuple)) else None)
    found: dict[str, Any] = {"groups": [0] * len(rewards), "lengths": list(range(1, len(rewards) + 1)), **columns}
    for name, value in found.items():
        kind = torch.int64 if name in ("groups", "lengths", "ties") else dtype
        found[name] = torch.as_tensor(value, dtype=kind if not isinstance(value, Tensor) else None)
    if "ties" in found:
        found["ties"] = found["ties"].reshape(-1, 2)
    return RewardBatch(rewards=rewards, pairs=torch.as_tensor(pairs, dtype=torch.int64).reshape(-1, 2), **found)


def loss_of(spec: dict[str, Any]) -> Loss:
    found = component("loss", spec)
    assert isinstance(found, Loss)
    return found


def outputs_of(loss: Loss) -> int:
    return len(loss.heads(attributes_of(loss)))


def attributes_of(loss: Loss) -> tuple[str, ...]:
    return ("helpful", "correct") if loss.name in ("regression", "binary") else ("helpful",)


def full_batch(outputs: int, attributes: int = 1, *, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> RewardBatch:
    """Eleven rows in four groups of different sizes, with everything that a loss may ask for."""
    generator = torch.Generator().manual_seed(7)
    groups = torch.tensor([0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3])
    rows = len(groups)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = (random(rows, attributes) > 0).to(dtype)
    labels[4] = torch.nan
    labels[9, -1] = torch.nan
    return RewardBatch(
        rewards=scale * random(rows, outputs),
        pairs=torch.tensor([(1, 2), (4, 3), (4, 5), (4, 6), (3, 6), (7, 8)]),
        groups=groups,
        lengths=torch.tensor([9, 4, 7, 12, 3, 8, 8, 5, 20, 1, 6]),
        ties=torch.tensor([(3, 5), (9, 10)]),
        ranks=torch.tensor([0, 0, 1, 1, 0, 2, 3, 0, 1, torch.nan, 2], dtype=dtype),
        labels=labels,
        weights=torch.tensor([1.0, 0.5, 2.0, 0.25])[groups].to(dtype),
        margins=random(6).abs(),
        logprobs=random(rows),
        head=random(outputs, 5),
        extras={"confidence": torch.tensor([0.6, 1.0, 0.75, 0.9, 0.5, 0.8], dtype=dtype)},
    )


def full_batch_of(loss: Loss, **settings: Any) -> RewardBatch:
    return full_batch(outputs_of(loss), len(attributes_of(loss)), **settings)


def gradient(term: Loss | Regularizer, found: RewardBatch) -> tuple[Tensor, Tensor]:
    """The value, and its gradient by the rewards."""
    rewards = found.rewards.clone().requires_grad_()
    value = term(replace(found, rewards=rewards))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.shape == ()
    assert rewards.grad is not None
    return value.detach(), rewards.grad
