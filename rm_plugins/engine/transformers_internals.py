"""The private names of transformers that the engine uses, each in one place.

Checked against the source of transformers 4.57.6 and 5.23.0. A release may change them without notice;
``tests/test_transformers_internals.py`` then shows the broken name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ONE_PROCESS_READS = "FSDP_CPU_RAM_EFFICIENT_LOADING"

_PLAIN_ATTENTION = frozenset({"eager", "sdpa"})
"""Attention implementations with the same results as torch's ``scaled_dot_product_attention``."""

__all__ = ["attends_plainly", "attention_as", "is_stateful", "loads_whole", "takes_attention"]


@contextmanager
def attention_as(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Within it, a model uses another attention implementation; so do its checkpointed layers when they are recomputed afterwards."""
    # `set_attn_implementation` would check and log each of the many switches, and does not return the previous setting.
    config = model.config.get_text_config()
    before = config._attn_implementation
    layers = [
        module
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) and hasattr(module, "_gradient_checkpointing_func")
    ]
    functions = [module._gradient_checkpointing_func for module in layers]
    config._attn_implementation = implementation
    for module, function in zip(layers, functions, strict=True):
        module._gradient_checkpointing_func = _attending(config, implementation, function)
    try:
        yield
    finally:
        config._attn_implementation = before
        for module, function in zip(layers, functions, strict=True):
            module._gradient_checkpointing_func = function


def _attending(config: Any, implementation: str, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The function that checkpoints a layer, for layers that are recomputed with this attention implementation."""

    def checkpointed(layer: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
        def attending(*inputs: Any, **kwargs: Any) -> Any:
            before = config._attn_implementation
            config._attn_implementation = implementation
            try:
                return layer(*inputs, **kwargs)
            finally:
                config._attn_implementation = before

        return checkpoint(attending, *inputs, **settings)

    return checkpointed


@contextmanager
def loads_whole() -> Iterator[None]:
    """Within it, models are loaded whole into each process, also in a training whose own model is sharded.

    During a training with stage 3 of DeepSpeed's ZeRO, transformers partitions every model that is loaded. With FSDP's
    ``cpu_ram_efficient_loading``, it reads the weights in one process of a machine only, from which sharding sends them to the others. A
    model that is not sharded, such as a reward in the training of a policy, would score with empty weights.
    """
    with _without_partitions(), _read_everywhere():
        yield


@contextmanager
def _without_partitions() -> Iterator[None]:
    deepspeed: Any = sys.modules.get("transformers.integrations.deepspeed")  # without it, there is no such training
    before = None if deepspeed is None else deepspeed._hf_deepspeed_config_weak_ref
    if before is None:
        yield
        return
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before


@contextmanager
def _read_everywhere() -> Iterator[None]:
    before = os.environ.get(_ONE_PROCESS_READS)
    if before is None:
        yield
        return
    os.environ[_ONE_PROCESS_READS] = "false"
    try:
        yield
    finally:
        os.environ[_ONE_PROCESS_READS] = before


def takes_attention(model: PreTrainedModel) -> bool:
    """Whether all layers of a model look up their attention by the name in the configuration."""
    return bool(getattr(model, "_supports_attention_backend", False))


def attends_plainly(model: PreTrainedModel) -> bool:
    """Whether a model is set to an attention implementation that only differs in speed from torch's own."""
    return model.config.get_text_config()._attn_implementation in _PLAIN_ATTENTION


def is_stateful(model: PreTrainedModel) -> bool:
    """Whether a model keeps a recurrent state, from which a mask cannot remove tokens."""
    return bool(getattr(model, "_is_stateful", False))
