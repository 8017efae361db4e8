"""The number of tokens that a model computes in one pass on its device, and what a pass costs there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rm_plugins.engine.placement import devices_of, input_device
from rm_plugins.engine.plan import Costs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_BATCH_TOKENS = 2_048
ACCELERATOR_BATCH_TOKENS = 16_384
SMALLEST_BATCH_TOKENS = 64
"""The smallest token budget after halving."""

# In the time that it takes to launch a forward pass, an accelerator could compute many more tokens than a CPU.
_CPU_COSTS = Costs(launch=64, read=0.02)
_ACCELERATOR_COSTS = Costs(launch=1_024, read=0.02)


def costs_of(model: PreTrainedModel) -> Costs:
    """The costs of a plan on the model's device."""
    return _CPU_COSTS if input_device(model).type == "cpu" else _ACCELERATOR_COSTS


def default_max_tokens(model: PreTrainedModel) -> int:
    """The token budget for the model's devices: on CUDA, activations take at most half of the free memory."""
    device = input_device(model)
    if device.type != "cuda":
        return CPU_BATCH_TOKENS if device.type == "cpu" else ACCELERATOR_BATCH_TOKENS
    free = min(torch.cuda.mem_get_info(each)[0] for each in devices_of(model) if each.type == "cuda")
    fitting = free // 2 // activation_bytes(model)
    return int(min(ACCELERATOR_BATCH_TOKENS, max(SMALLEST_BATCH_TOKENS, fitting)))


def activation_bytes(model: PreTrainedModel) -> int:
    """The estimated memory of one token's activations in a layer, in bytes."""
    config = model.config.get_text_config()
    widths = 12 * config.hidden_size + 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    return int(widths * model.dtype.itemsize)
