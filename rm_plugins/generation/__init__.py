"""Generates completions with a policy, for scoring and ranking."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from rm_plugins.generation.generator import Completion, Generator, GreedyCompletion, Sampling
from rm_plugins.generation.prompts import PolicyPrompts

__all__ = [
    "ENGINES",
    "Completion",
    "Generator",
    "GreedyCompletion",
    "PolicyPrompts",
    "Sampling",
    "default_engine",
    "load_generator",
]

ENGINES = ("transformers", "vllm")


def default_engine() -> str:
    """``vllm`` if it is installed and a CUDA GPU is available, else ``transformers``."""
    if find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def load_generator(
    model: str,
    sampling: Sampling,
    *,
    engine: str | None = None,
    options: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> Generator:
    """The `Generator` of an engine, one of `ENGINES` (`default_engine` if None), with the arguments and errors of that class."""
    if (engine or default_engine()) == "vllm":
        from rm_plugins.generation.vllm_generator import VLLMGenerator

        return VLLMGenerator(model, sampling, options, batch_size)
    from rm_plugins.generation.transformers_generator import TransformersGenerator

    return TransformersGenerator(model, sampling, options, batch_size)
