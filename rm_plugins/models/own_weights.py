"""Weights that belong to a process alone."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

Model = TypeVar("Model", bound="nn.Module")


def own_weights(model: Model) -> Model:
    """A loaded model, whose weights on the CPU are copied one by one out of the files that they were mapped from.

    Until then they are the file's own pages: whoever wrote into the file would change the model, and who shortened it would end the
    process.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
    return model
