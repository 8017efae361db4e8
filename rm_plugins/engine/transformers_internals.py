"""The private names of transformers that the engine relies on, each once, with what it is needed for.

Read in transformers 4.57.6 and 5.23.0. A release may change them without notice; ``tests/test_transformers_internals.py`` says
which one broke.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["attention_as", "is_stateful", "takes_attention"]


@contextmanager
def attention_as(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Within it, a model attends by another implementation, also where checkpointed layers run again for their gradients."""
    # `set_attn_implementation` would check and log each of the many switches, and cannot tell what was set before.
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def takes_attention(model: PreTrainedModel) -> bool:
    """Whether all layers of a model look their attention up by the name in its configuration."""
    return bool(getattr(model, "_supports_attention_backend", False))


def is_stateful(model: PreTrainedModel) -> bool:
    """Whether a model keeps a recurrent state of what it has read, which no mask can take tokens out of."""
    return bool(getattr(model, "_is_stateful", False))
