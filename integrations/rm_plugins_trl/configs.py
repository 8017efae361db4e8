"""What our configurations do for their fields: which precision a trainer starts with, and the help on a command line."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from types import MappingProxyType
from typing import TypeVar

from transformers.utils import is_torch_bf16_gpu_available

Config = TypeVar("Config")


def bf16_by_default(fp16: bool) -> bool:
    """Whether to train in bf16 when the user said nothing: where an accelerator has it, and fp16 was not asked for.

    TRL's own configurations always say yes, and are then refused on a machine without one.
    """
    return not fp16 and bool(is_torch_bf16_gpu_available())


def with_help(config: type[Config]) -> type[Config]:
    """A dataclass whose docstring's ``Args`` are the help of its fields on a command line."""
    described = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(config) or "", re.MULTILINE)
    texts = {name: " ".join(text.replace("``", "").replace("`", "").split()) for name, text in described}
    for one in fields(config):  # type: ignore[arg-type]  # it is a dataclass
        if one.name in texts:
            one.metadata = MappingProxyType({**one.metadata, "help": texts[one.name].replace("%", "%%")})  # argparse formats it
    return config
