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
    """Within it, a model that is being trained scores as it will when it was saved and loaded; afterwards it is as it was.

    One thread at a time is let in. The model is in evaluation mode and computes in its own dtype: no autocast is on, neither around it
    nor the one that accelerate's mixed precision has put into its ``forward``.

    Args:
        model: The model, without wrappers such as DDP around it.
    """
    with one_thread_of(model):
        modes = [(module, module.training) for module in model.modules()]
        wrapped = vars(model).get("forward")
        original = vars(model).get("_original_forward")  # where accelerate keeps what it wraps
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
