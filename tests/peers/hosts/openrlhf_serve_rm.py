"""OpenRLHF's own ``openrlhf.cli.serve_rm`` on a machine without a GPU.

Its packages import DeepSpeed and FlashAttention as soon as they are imported, which cannot be built without CUDA and are used for training
and for packed samples alone: modules without content stand in for them. With ``--in-float32``, weights are loaded in float32, where its
own choices are half precisions; everything else is as it was installed.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

_ONLY_WITH_CUDA = ("deepspeed", "flash_attn", "flash_attn.bert_padding", "flash_attn.utils", "flash_attn.utils.distributed")


def main() -> None:
    """Serve the model that the arguments name."""
    for name in _ONLY_WITH_CUDA:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)  # others look for it, and find no distribution of that name
        # What is imported by name from it; nothing of that is called.
        module.__getattr__ = lambda attribute: MagicMock(name=attribute)  # type: ignore[method-assign]
        sys.modules[name] = module
    if "--in-float32" in sys.argv:
        sys.argv.remove("--in-float32")
        import torch

        vars(importlib.import_module("openrlhf.utils.utils"))["convert_to_torch_dtype"] = lambda name: torch.float32
    runpy.run_module("openrlhf.cli.serve_rm", run_name="__main__")


if __name__ == "__main__":
    main()
