"""Token ids as tensors on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, each int64 [rows, longest], padded on the right."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for position, row in enumerate(rows):
        ids[position, : len(row)] = row
        mask[position, : len(row)] = 1
    return on_device(ids, device), on_device(mask, device)


def on_device(values: NDArray[np.int64] | Sequence[Any], device: torch.device | str) -> torch.Tensor:
    """Whole numbers of any shape as int64 on a device.

    A GPU is not waited for, so that it computes while the next micro-batch is prepared.
    """
    tensor = torch.from_numpy(np.asarray(values, dtype=np.int64))
    pinned = torch.device(device).type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if pinned else tensor.to(device)
