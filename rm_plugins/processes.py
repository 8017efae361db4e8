"""Communication between the processes of one training run."""

from __future__ import annotations

import sys
from typing import TypeVar

Value = TypeVar("Value")


def all_gathered(value: Value) -> list[Value]:
    """The value of every process, in the order of ranks; only this process's value if ``torch.distributed`` is not initialized.

    All processes must make the same calls in the same order.

    Args:
        value: Anything that can be pickled.
    """
    torch = sys.modules.get("torch")  # if torch was never imported, nothing is initialized
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return [value]
    values: list[Value] = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def is_first_process() -> bool:
    """Whether this is process 0, or the only one."""
    torch = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    return (
        distributed is None or not distributed.is_available() or not distributed.is_initialized() or distributed.get_rank() == 0
    )
