"""Arguments of our trainers and configurations: a copy to change, the default precision, the help on a command line."""

from __future__ import annotations

import copy
import inspect
import re
from dataclasses import fields
from types import MappingProxyType
from typing import Any, TypeVar

from transformers.utils import is_torch_bf16_gpu_available

from rm_plugins.errors import UnsupportedError

Config = TypeVar("Config")


def own_copy(args: Config) -> Config:
    """A copy of a trainer's arguments, in which the trainer may set fields and keys of mappings.

    What exists once per process, such as its distributed state, is not copied.
    """
    own = copy.copy(args)
    vars(own).update({name: copy.deepcopy(value) for name, value in vars(args).items() if isinstance(value, (dict, list))})
    return own


def given_configuration(args: Any, config: Any) -> Any:
    """What was given of `args` and its other name `config`; None if neither was.

    Raises:
        UnsupportedError: Both were.
    """
    if args is not None and config is not None:
        raise UnsupportedError("`config` is another name of `args`; give one of them.")
    return config if args is None else args


def bf16_by_default(fp16: bool) -> bool:
    """Whether to train in bf16 if the user did not say: if the accelerator supports it, and fp16 was not asked for.

    TRL's own configurations always do, which fails on a machine without an accelerator.
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
