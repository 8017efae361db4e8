"""Steps of a model whose weights are sharded over processes, compared with those of a whole model on the rows of all processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins_trl.reward_training.global_batch import whole_weight
from tests.batch_forward.conftest import family_model
from tests.test_scoring_engine import VOCABULARY

Rows = list[list[int]]
Step = Callable[[nn.Module, list[Rows]], torch.Tensor]

ADVERSARIAL = ((60, 60, 60, 60), (200, 200, 200, 200), (1,), (90, 1, 3), (), (7, 150, 20, 20, 33, 4), (2, 2), (120,))


def rank() -> int:
    return distributed.get_rank()


def processes() -> int:
    return distributed.get_world_size()


def rows_of(lengths: Sequence[int], seed: int) -> Rows:
    source = random.Random(seed)
    beginning = [source.randrange(4, VOCABULARY) for _ in range(max(lengths, default=0) // 2)]
    return [
        [
            *beginning[: length // 2],
            *(source.randrange(4, VOCABULARY) for _ in range(length - min(length // 2, len(beginning)))),
        ]
        for length in lengths
    ]


def shares(step: int) -> list[Rows]:
    """The rows of each process in a step: another of the adversarial lengths each, never none for all."""
    return [rows_of(ADVERSARIAL[(step + process) % len(ADVERSARIAL)], 100 * step + process) for process in range(processes())]


def sharded(model: Any, **options: Any) -> Any:
    """The model with every layer and the root sharded."""
    for module in [*model.modules()]:
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, **options)
    return fully_shard(model, **options)


def backward(loss: torch.Tensor) -> None:
    torch.autograd.backward(loss)


def weighted(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
    """A sum over rows in which each counts differently."""
    weights = torch.tensor([1 + sum(row) % 7 for row in rows], dtype=logits.dtype)
    return (weights * (logits[:, 0] + 0.1 * logits[:, 0] ** 2)).sum()


def assert_steps(plain: Any, own: Any, losses: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Losses and gradients of both models are the same, also in the next step, after a step of both."""
    for expected, found in losses:
        total = found.detach().clone()
        distributed.all_reduce(total)
        torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=1e-5)
        backward(expected)
        backward(found * processes())  # its gradient is the mean over processes
    assert_same_gradients(plain, own)


def assert_same_gradients(plain: Any, own: Any, tolerance: float = 1e-5) -> None:
    scale = max(weight.grad.abs().max().item() for weight in plain.parameters() if weight.grad is not None)
    assert scale > 0
    for (name, expected), found in zip(plain.named_parameters(), own.parameters(), strict=True):
        assert isinstance(found, DTensor)
        gradient = torch.zeros_like(expected) if found.grad is None else whole_weight(found.grad)
        wanted = torch.zeros_like(expected) if expected.grad is None else expected.grad
        torch.testing.assert_close(gradient / scale, wanted / scale, rtol=tolerance, atol=tolerance, msg=name)
    for model in (plain, own):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01 / scale)
        optimizer.step()
        optimizer.zero_grad()


def counted(model: Any) -> list[int]:
    """A list that gets an entry whenever the first layer runs."""
    calls: list[int] = []
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def assert_as_many(calls: list[int]) -> None:
    everywhere: list[Any] = [None] * processes()
    distributed.all_gather_object(everywhere, len(calls))
    assert len({*everywhere}) == 1, everywhere


def together(own: Any, plain: Any, steps: Sequence[list[Rows]]) -> None:
    """Steps on these rows of each process."""
    calls = counted(own)
    for of_processes in steps:
        mine = of_processes[rank()]
        every = [row for rows in of_processes for row in rows]
        found = own(rows=mine).logits
        assert len(found) == len(mine)
        assert_steps(plain, own, [(weighted(plain(rows=every).logits, every), weighted(found, mine))])
        assert_as_many(calls)


def models(family: str, max_tokens: int = 256, **config: Any) -> tuple[Any, Any, BatchForward, BatchForward]:
    plain, own = family_model(family, config), family_model(family, config)
    first = BatchForward(own, max_tokens)  # before the weights are sharded, as in a trainer
    return plain, sharded(own), BatchForward(plain, max_tokens), first
