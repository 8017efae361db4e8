"""What accelerate is asked for, by our configurations, a file and its launcher's options. Importing it imports neither torch nor trl."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import yaml

from rm_plugins.errors import SpecError, nearest_name
from rm_plugins.written_settings import read_settings

NAMES = ("ddp", "fsdp2", "zero2", "zero3")
"""The configurations that ``--accelerate`` takes."""

FOLDER = Path(__file__).parent / "accelerate_configs"
"""Where they are."""

Strategy = Literal["ddp", "fsdp", "zero", "other", "single"]

_NESTED = ("fsdp_config", "deepspeed_config")
_STRATEGIES: dict[str, Strategy] = {
    "NO": "single",
    "FSDP": "fsdp",
    "DEEPSPEED": "zero",
    "MEGATRON_LM": "other",
    "XLA": "other",
    "TPU": "other",
}
_FLAGS: dict[str, Strategy] = {
    "use_fsdp": "fsdp",
    "use_deepspeed": "zero",
    "use_megatron_lm": "other",
    "tpu": "other",
    "multi_gpu": "ddp",
}


@dataclass(frozen=True, slots=True)
class AccelerateSettings:
    """What accelerate's launcher is asked for.

    Args:
        line: What its options say, by name.
        config: What its configuration file says.
        file: The name of the file in messages; empty if there is none.
    """

    line: Mapping[str, Any]
    config: Mapping[str, Any]
    file: str = ""

    def said(self, name: str) -> Any:
        """A setting: the command line's, else the file's, else None."""
        return self.line[name] if name in self.line else self.in_file(name)

    def in_file(self, name: str) -> Any:
        """A setting in the file, whether at its top or within the settings of FSDP or DeepSpeed; None if it is not there."""
        if name in self.config:
            return self.config[name]
        for nested in _NESTED:
            values = self.config.get(nested) or {}
            for written in (name, name.removeprefix("fsdp_")):
                if written in values:
                    return values[written]
        return None

    def where(self, name: str) -> str:
        """What says a setting, for messages."""
        return f"--{name}" if name in self.line else f"{name} in {self.file}"

    @property
    def strategy(self) -> Strategy:
        """How the processes share the training."""
        for flag, strategy in _FLAGS.items():
            if self.line.get(flag):
                return strategy
        return strategy_of(self.config) or ("ddp" if (self.processes or 1) > 1 else "single")

    @property
    def stage(self) -> int:
        """The version of FSDP, or the stage of ZeRO; 0 for other strategies."""
        name, default = {"fsdp": ("fsdp_version", 1), "zero": ("zero_stage", 2)}.get(self.strategy, ("", 0))
        return int(self.said(name) or default) if name else 0

    @property
    def processes(self) -> int | None:
        """All processes on all machines; None if it is not set."""
        return None if self.said("num_processes") in (None, -1) else int(self.said("num_processes"))

    @property
    def machines(self) -> int:
        """The machines."""
        return int(self.said("num_machines") or 1)

    @property
    def on_cpu(self) -> bool:
        """Whether it asks for the CPU."""
        return bool(self.line.get("cpu") or self.config.get("use_cpu"))

    @property
    def is_sharded(self) -> bool:
        """Whether processes hold parts of what the others hold."""
        return self.strategy in ("fsdp", "zero")

    @property
    def name(self) -> str:
        """The strategy as messages call it."""
        names = {"ddp": "data parallelism", "fsdp": f"FSDP{self.stage}", "zero": f"ZeRO-{self.stage}", "single": "one process"}
        return names.get(self.strategy, "another strategy")


def strategy_of(config: Mapping[str, Any]) -> Strategy | None:
    """The strategy that a configuration names; None if it names none."""
    given = config.get("distributed_type")
    return None if given is None else _STRATEGIES.get(str(given).upper(), "ddp")


def named_config(name: str) -> dict[str, Any]:
    """One of our configurations.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in NAMES:
        near = nearest_name(name, NAMES)
        hint = f"Did you mean {near}? " if near else ""
        raise click.UsageError(
            f"--accelerate: there is no configuration {name!r}. {hint}It takes {', '.join(NAMES)}; --accelerate_config takes a file, or a "
            "name of TRL's."
        )
    config: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def config_in(file: Path) -> dict[str, Any]:
    """The configuration in a user's file.

    Raises:
        SpecError: It cannot be read, or is not a mapping.
    """
    config = read_settings(file)
    if not isinstance(config, dict):
        raise SpecError(f"{file} must hold a mapping, as `accelerate config` writes it.")
    for name in _NESTED:
        if not isinstance(config.get(name) or {}, dict) or config.get(name) == []:
            raise SpecError(f"{file}: {name} must be a mapping, as `accelerate config` writes it.")
    numbers = {"num_processes": config, "num_machines": config, "fsdp_version": config.get("fsdp_config") or {}}
    for name, holder in {**numbers, "zero_stage": config.get("deepspeed_config") or {}}.items():
        if not isinstance(holder.get(name, 1), int):
            raise SpecError(f"{file}: {name} must be a whole number, not {holder[name]!r}.")
    return config


def merged(name: str, user: Mapping[str, Any], file: str) -> dict[str, Any]:
    """One of our configurations with what a user's file says besides or instead.

    Raises:
        SpecError: The file asks for another strategy.
    """
    ours = named_config(name)
    theirs = strategy_of(user)
    stages = [
        (label, (ours.get(nested) or {}).get(label), (user.get(nested) or {}).get(label))
        for nested, label in (("fsdp_config", "fsdp_version"), ("deepspeed_config", "zero_stage"))
    ]
    other = [f"{label}: {given}" for label, own, given in stages if own is not None and given not in (None, own)]
    if theirs not in (None, strategy_of(ours)):
        other = [f"distributed_type: {user['distributed_type']}"]
    if other:
        raise SpecError(f"--accelerate {name} contradicts {file}, which says {other[0]}. Leave out one of them.")
    whole = copy.deepcopy(ours)
    for key, value in user.items():
        whole[key] = {**(whole.get(key) or {}), **value} if key in _NESTED and isinstance(value, Mapping) else value
    return whole


def taken(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of a launcher's option, and the arguments without it.

    Raises:
        UsageError: It has no value, or is given twice.

    >>> taken(["--accelerate", "fsdp2", "--num_processes", "2"], "--accelerate")
    ('fsdp2', ['--num_processes', '2'])
    """
    value: str | None = None
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, given = argument.partition("=")
        if option != name:
            others.append(argument)
            continue
        given = given if equals else next(rest, "")
        if not given or given.startswith("--"):
            raise click.UsageError(f"{name} needs a value.")
        if value is not None and value != given:
            raise click.UsageError(f"{name} is given twice: {value} and {given}. Leave out one of them.")
        value = given
    return value, others
