"""Refuses what an accelerate configuration and a training ask for against each other, before anything is loaded. Imports no trl."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rm_plugins.errors import MissingDependencyError, SpecError
from rm_plugins.written_settings import read_json
from rm_plugins_trl.accelerate_settings import AccelerateSettings

_TRUE = ("1", "true", "yes", "on", "y", "t")


def precision_of(args: Any) -> str:
    """The precision that a training computes in: ``no`` (float32), ``bf16`` or ``fp16``."""
    return "fp16" if args.fp16 else "bf16" if args.bf16 else "no"


def checkpoints_activations(args: Any) -> bool:
    """Whether the training computes activations again in the backward pass."""
    return bool(getattr(args, "activation_checkpointing", None) or getattr(args, "gradient_checkpointing", None))


def check_settings(asked: AccelerateSettings, args: Any) -> None:
    """Refuse settings of accelerate that contradict each other or the training's.

    Args:
        asked: The settings.
        args: The training's arguments.

    Raises:
        SpecError: They contradict.
        MissingDependencyError: DeepSpeed is asked for and not installed.
    """
    flags = [name for name in ("use_fsdp", "use_deepspeed", "use_megatron_lm", "multi_gpu", "tpu") if asked.line.get(name)]
    in_file = {"MULTI_GPU": "multi_gpu", "FSDP": "use_fsdp", "DEEPSPEED": "use_deepspeed"}.get(
        str(asked.config.get("distributed_type"))
    )
    if in_file and flags and flags != [in_file]:
        raise SpecError(
            f"--{flags[0]} contradicts {asked.file}, which says distributed_type: "
            f"{asked.config['distributed_type']}. Leave out one of them."
        )
    for option, strategy in (("deepspeed", "zero"), ("fsdp", "fsdp")):
        given = getattr(args, option, None)
        if given and asked.is_sharded and asked.strategy != strategy:
            raise SpecError(
                f"--{option} {given} contradicts {asked.name}, which accelerate is asked for. Leave out one of them."
            )
    on_cpu = asked.on_cpu or args.use_cpu
    if on_cpu and asked.is_sharded:
        raise SpecError(
            f"{asked.name} does not run on CPUs: accelerate would train plain data parallelism, with the whole model in each process. "
            "Use --accelerate ddp, or leave out --use_cpu."
        )
    if on_cpu and asked.machines > 1:
        raise SpecError("Several machines without accelerators need MPI: start the training with mpirun on each of them.")
    _check_precision(asked, precision_of(args))
    if asked.said("fsdp_activation_checkpointing") in (True, "true", "True") and checkpoints_activations(args):
        raise SpecError(
            f"{asked.where('fsdp_activation_checkpointing')} and --gradient_checkpointing, which is on by default, would compute "
            "activations three times. Add --gradient_checkpointing false."
        )
    if asked.strategy == "zero":
        _check_deepspeed(asked, args)


def _check_precision(asked: AccelerateSettings, training: str) -> None:
    given = asked.said("mixed_precision")
    given = "no" if given is False else given  # YAML reads `no` without quotes as false
    if given is None or str(given) == training or (str(given) == "no" and "mixed_precision" not in asked.line):
        return  # `accelerate config` writes `no` for who did not choose, and the training's choice then holds
    wanted = {"no": "float32", "fp16": "fp16"}.get(training, training)
    remedy = f"Leave it out, or add --{given} true" if given in ("bf16", "fp16") else "Leave it out"
    raise SpecError(
        f"{asked.where('mixed_precision')} is {given}, but the training computes in {wanted}. {remedy}: the training's precision holds for "
        "accelerate too."
    )


def _check_deepspeed(asked: AccelerateSettings, args: Any) -> None:
    if find_spec("deepspeed") is None:
        raise MissingDependencyError(f"{asked.name} needs the package deepspeed: pip install deepspeed")
    file = asked.said("deepspeed_config_file")
    written: dict[str, Any] = {}
    if file is not None:
        written = read_json(Path(file))
        if not isinstance(written, dict):
            raise SpecError(f"{file} must hold a JSON mapping, as DeepSpeed describes it.")
    ours = {
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "gradient_clipping": args.max_grad_norm,
    }
    for name, value in ours.items():
        # The launcher's own options of these names are the training's, which win.
        for given, where in ((asked.in_file(name), f"{name} in {asked.file}"), (written.get(name), f"{name} in {file}")):
            if given not in (None, "auto") and float(given) != float(value):
                option = "max_grad_norm" if name == "gradient_clipping" else name
                raise SpecError(
                    f"{where} is {given}, but --{option} is {value:g}. Give --{option} {given}, or leave it out of the file, or write auto."
                )


def check_devices(asked: AccelerateSettings, args: Any) -> None:
    """Refuse more processes than the machine has devices for.

    Raises:
        SpecError: There are too few.
    """
    if asked.on_cpu or args.use_cpu or asked.strategy == "other" or os.environ.get("DS_ACCELERATOR") == "cpu":
        return
    devices = device_count()
    processes = -(-(asked.processes or 1) // asked.machines)
    if devices == 0 and (processes > 1 or asked.is_sharded):
        raise SpecError(
            f"This machine has no accelerator, which {asked.name if asked.is_sharded else 'several processes'} would use. Add "
            "--use_cpu true to train plain data parallelism on CPU processes."
        )
    ids = asked.said("gpu_ids")
    listed = None if ids in (None, "all") else len(str(ids).split(","))
    available = devices if listed is None else min(listed, devices)
    if processes > max(available, 1):
        which = f"gpu_ids names {listed}" if listed is not None and listed <= devices else f"this machine has {devices}"
        raise SpecError(
            f"{asked.where('num_processes')} asks for {processes} processes on a machine, each with a device of its own, but {which}. "
            f"Give --num_processes {available * asked.machines}."
        )


def device_count() -> int:
    """The accelerators of this machine that processes can use."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def check_environment(args: Any) -> None:
    """Refuse variables that accelerate reads and that contradict the training.

    Raises:
        SpecError: They contradict.
    """
    on_cpu = args.use_cpu or _is_set("ACCELERATE_USE_CPU")
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if on_cpu and _is_set(variable):
            raise SpecError(
                f"{name} does not run on CPUs, and {variable} asks for it: accelerate would train plain data parallelism, with the whole "
                f"model in each process. Unset {variable}, or use accelerators."
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", precision_of(args)):
        wanted = {"no": "float32"}.get(precision_of(args), precision_of(args))
        raise SpecError(
            f"ACCELERATE_MIXED_PRECISION is {precision}, but the training computes in {wanted}. Add --{precision} true, or set it to no "
            "(in an accelerate configuration, leave out mixed_precision)."
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    if steps.isdecimal() and int(steps) != args.gradient_accumulation_steps:
        raise SpecError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {steps}, but --gradient_accumulation_steps is {args.gradient_accumulation_steps}. "
            "Give the same number, or unset the variable."
        )
    if _is_set("ACCELERATE_USE_FSDP") and _is_set("FSDP_ACTIVATION_CHECKPOINTING") and checkpoints_activations(args):
        raise SpecError(
            "FSDP's activation checkpointing and --gradient_checkpointing, which is on by default, would compute activations three times. "
            "Add --gradient_checkpointing false."
        )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in _TRUE
