"""State that a model keeps between runs, which would make a score depend on earlier rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SMALL = 65_536
"""Buffers with more elements are tables: models replace these instead of writing into them."""

_PLAIN = (int, float, bool, str, type(None), torch.Tensor)


class ModelState:
    """Restores the buffers and plain attributes of a model's modules after each run.

    This is needed because rotary embeddings with dynamic scaling keep the frequencies of the longest row so far.

    Args:
        model: The model; its rotary embeddings are reset.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        # Layers of torch keep no state in evaluation mode.
        own = [module for module in model.modules() if not type(module).__module__.startswith("torch.nn.")]
        self._modules = [module for module in own if module._buffers]
        for module in self._modules:
            _reset_frequencies(module)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the model's state when the block ends."""
        before = [
            (module, dict(module._buffers), {name: value.clone() for name, value in _small(module)}, _attributes(module))
            for module in self._modules
        ]
        try:
            yield
        finally:
            for module, buffers, values, attributes in before:
                for name, buffer in buffers.items():
                    if module._buffers.get(name) is not buffer:
                        module._buffers[name] = buffer
                    if buffer is not None and name in values:
                        buffer.copy_(values[name])
                for name, value in attributes.items():
                    if vars(module).get(name) is not value:
                        vars(module)[name] = value


def _small(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, buffer) for name, buffer in module._buffers.items() if buffer is not None and buffer.numel() <= _SMALL)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}


def _reset_frequencies(module: nn.Module) -> None:
    """Reset the frequencies of rotary embeddings to their initial values."""
    for name in [name for name in module._buffers if name.endswith("inv_freq") and not name.endswith("original_inv_freq")]:
        prefix = name.removesuffix("inv_freq")
        original = getattr(module, f"{prefix}original_inv_freq", None)
        first = getattr(module, "original_max_seq_len", None)
        buffer = module._buffers[name]
        if isinstance(original, torch.Tensor) and isinstance(buffer, torch.Tensor):
            module._buffers[name] = original.to(buffer.device).clone()
        if first is not None and hasattr(module, f"{prefix}max_seq_len_cached"):
            setattr(module, f"{prefix}max_seq_len_cached", first)
