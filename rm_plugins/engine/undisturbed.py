"""Runs a model during its training without affecting the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OF_SINGLE_FEATURES = (nn.Dropout, nn.AlphaDropout)
"""Dropout that is drawn for each feature independently, so that the layout of rows does not change its distribution."""


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[Callable[[], bool]]:
    """Within it, a model runs in its current mode without feature-wise dropout; afterwards its state is restored.

    The states of the random number generators and the model's buffers, such as running means of batch normalization, are restored.

    Yields:
        A function that returns whether random numbers have been drawn since.
    """
    dropping = [(module, name, vars(module)[name]) for module in model.modules() for name in _rates(module)]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    device = model.device
    devices = [device] if device.type == "cuda" else []
    for module, name, _ in dropping:
        setattr(module, name, 0.0)
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")  # from checkpointed layers
            before = _random_state(device)
            yield lambda: not all(map(torch.equal, before, _random_state(device)))
    finally:
        for module, name, rate in dropping:
            setattr(module, name, rate)
        for module, name, buffer, values in buffers:
            # An unnecessary copy would invalidate the gradients of earlier calls, which may have saved the buffer.
            setattr(module, name, buffer if torch.equal(buffer, values) else buffer.copy_(values))


def _rates(module: nn.Module) -> list[str]:
    """The attributes of a module that are rates of feature-wise dropout: of the layer itself, or of a function that it calls."""
    if type(module) in _OF_SINGLE_FEATURES:
        return ["p"]
    return [name for name, value in vars(module).items() if "drop" in name and _is_rate(value)]


def _is_rate(value: Any) -> bool:
    return isinstance(value, float) and 0.0 < value < 1.0


def _random_state(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
