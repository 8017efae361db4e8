"""Scoring with a model that is being trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from rm_plugins.engine.one_model import one_thread_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def as_loaded(model: PreTrainedModel) -> Iterator[None]:
    """Within it, a model in training scores as it will after saving and loading; afterwards its state is restored.

    Only one thread at a time may enter. The model is in evaluation mode and computes in its own dtype: autocast is off, including the one
    that accelerate's mixed precision adds to its ``forward``.

    Args:
        model: The model, without wrappers such as DDP.
    """
    with one_thread_of(model):
        modes = [(module, module.training) for module in model.modules()]
        wrapped = vars(model).get("forward")
        original = vars(model).get("_original_forward")  # accelerate stores the wrapped method here
        model.eval()
        if original is not None:
            model.forward = original
        try:
            with torch.autocast(model.device.type, enabled=False):
                yield
        finally:
            if original is not None:
                model.forward = wrapped
            for module, training in modes:
                module.training = training
