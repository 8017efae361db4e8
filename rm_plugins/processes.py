"""What the processes of one training tell each other."""

from __future__ import annotations

import sys
from typing import TypeVar

Value = TypeVar("Value")


def all_gathered(value: Value) -> list[Value]:
    """The value of every process, in the order of their ranks; of this one alone where ``torch.distributed`` is not initialized.

    All processes must call it equally often, in the same order.

    Args:
        value: Anything that can be pickled.
    """
    torch = sys.modules.get("torch")  # nothing is initialized where torch was never imported
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return [value]
    values: list[Value] = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
