"""Token ids as tensors on the model's device, and its outputs as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rm_plugins.rendering.token_types import TYPE_STEP
from rm_plugins.scores import FloatArray


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A model's ``input_ids`` and ``attention_mask``, and ``token_type_ids`` if any token has a type; int64 [rows, longest].

    Rows are padded on the right.

    Args:
        rows: Token ids per row, which include the token types (`rm_plugins.rendering.token_types`).
        pad_token_id: The token that shorter rows are padded with.
        device: The device of the tensors.
    """
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for position, row in enumerate(rows):
        ids[position, : len(row)] = row
        mask[position, : len(row)] = 1
    inputs = {"input_ids": ids % TYPE_STEP, "attention_mask": mask}
    if ids.max(initial=0) >= TYPE_STEP:
        inputs["token_type_ids"] = ids // TYPE_STEP
    return {name: on_device(values, device) for name, values in inputs.items()}


def on_device(values: NDArray[np.int64] | Sequence[Any], device: torch.device | str) -> torch.Tensor:
    """Integers of any shape as an int64 tensor on a device.

    The copy to a GPU is asynchronous, so that it computes while the next micro-batch is prepared.
    """
    tensor = torch.from_numpy(np.asarray(values, dtype=np.int64))
    pinned = torch.device(device).type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if pinned else tensor.to(device)


def rows_of(batches: Iterable[tuple[list[int], torch.Tensor]], size: int, width: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Outputs by row, float64 [size, width], NaN where there are none, and which rows have outputs, bool [size].

    Args:
        batches: The numbers of the rows of each micro-batch, with their outputs [n, width].
        size: The number of rows.
        width: The number of outputs of a row.
    """
    outputs, done = np.full((size, width), np.nan), np.zeros(size, dtype=np.bool_)
    for numbers, logits in batches:
        outputs[numbers], done[numbers] = logits.double().cpu().numpy(), True
    return outputs, done
