"""Copies weights out of the files that they were loaded from."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from rm_plugins.engine.placement import offloaded_weights

if TYPE_CHECKING:
    from torch import nn

Model = TypeVar("Model", bound="nn.Module")


def own_weights(model: Model) -> Model:
    """Copy a loaded model's CPU weights out of the files that they are mapped from; returns the model.

    Mapped weights are pages of the file: writing into the file would change the model, and truncating it would crash the process.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu" and not hasattr(tensor, "full_tensor"):  # transformers copies the parts of split weights
            tensor.data = tensor.data.clone()
    for weights in offloaded_weights(model):
        weights.update({name: tensor.clone() for name, tensor in weights.items()})
    return model
