"""Which precision a trainer starts with."""

from __future__ import annotations

from transformers.utils import is_torch_bf16_gpu_available

__all__ = ["bf16_by_default"]


def bf16_by_default(fp16: bool) -> bool:
    """Whether to train in bf16 when the user said nothing: where an accelerator has it, and fp16 was not asked for.

    TRL's own configurations always say yes, and are then refused on a machine without one.
    """
    return not fp16 and bool(is_torch_bf16_gpu_available())
