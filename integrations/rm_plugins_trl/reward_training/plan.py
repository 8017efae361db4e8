"""``rm-plugins train --plan``: the memory that a training would need on each device, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rm_plugins.cli.printed import echo
from rm_plugins.engine.budget import ACCELERATOR_BATCH_TOKENS, CPU_BATCH_TOKENS
from rm_plugins.errors import SpecError
from rm_plugins_trl.accelerate_checks import checkpoints_activations, device_count
from rm_plugins_trl.configs import with_help
from rm_plugins_trl.launching import Launch
from rm_plugins_trl.memory_estimate import GIB, MemoryEstimate, ModelSize, TrainingSetting, estimate
from rm_plugins_trl.trl_command import value_of

_TEXTS = 2
"""The texts of a row: those of a pair."""

TIGHT = 0.9
"""From this share of a device's memory on, a training may fail for fragmentation."""


@with_help
@dataclass
class PlanArguments:
    """What ``--plan`` is asked.

    Args:
        plan: Print the memory that the training would need on each device, and exit. No weight is loaded.
        device_memory: GiB of memory of each device for --plan; by default, what this machine's accelerators have.
    """

    plan: bool = False
    device_memory: float | None = None

    def __post_init__(self) -> None:
        if self.device_memory is not None and self.device_memory <= 0:
            raise SpecError(f"device_memory must be more than 0 GiB, not {self.device_memory:g}.")


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the training.

    Args:
        options: What to write on the command line.
        size: The model's sizes with it.
        setting: The training with it.
    """

    options: str
    size: ModelSize
    setting: TrainingSetting


def print_plan(
    arguments: Sequence[str], asked: Launch, script: Any, args: Any, model: Any, mixture: Any, plan: PlanArguments
) -> bool:
    """Print the plan if the arguments ask for one; returns whether they did.

    Args:
        arguments: The command line.
        asked: What accelerate's launcher is asked for.
        script: TRL's script arguments.
        args: The trainer's arguments.
        model: TRL's model arguments.
        mixture: TRL's mixture of datasets.
        plan: What is asked.

    Raises:
        ModelError: There is no such model.
        SpecError: The memory of a device is unknown.
    """
    if not plan.plan:
        return False
    from trl import get_peft_config

    from rm_plugins_trl.reward_training.base_model import check_model_named
    from rm_plugins_trl.reward_training.model_size import model_size
    from rm_plugins_trl.reward_training.presets import preset
    from rm_plugins_trl.training_run import set_loading

    check_model_named(model.model_name_or_path)
    set_loading(args, model)
    whole = model_size(model.model_name_or_path, args)
    size = model_size(model.model_name_or_path, args, get_peft_config(model)) if model.use_peft else whole
    if args.unset:
        args.take_preset(preset(whole.parameters, adapter=size.has_adapter, encoder=whole.is_encoder))
    on_cpu = args.use_cpu or asked.settings.on_cpu
    memory, devices = device_memory(on_cpu, plan.device_memory, asked)
    setting = training_setting(arguments, asked, args, model, devices, on_cpu)
    if on_cpu or setting.compute_bytes == 4:  # only the flash kernel takes fewer keys than queries
        size = replace(size, kept_keys=size.queries)
    echo(rendered(model.model_name_or_path, size, setting, args, memory))
    return True


def device_memory(on_cpu: bool, given: float | None, asked: Launch) -> tuple[int, int]:
    """Bytes of memory of a device, and the number of devices.

    Raises:
        SpecError: The memory of a device is unknown.
    """
    devices = asked.settings.processes
    if given is not None:
        return int(given * GIB), devices or 1
    if on_cpu:
        import os

        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return whole // (devices or 1), devices or 1
    import torch

    if not torch.cuda.is_available():
        raise SpecError(
            "This machine has no GPU whose memory could be read. Say how much each device has: --device_memory 80 (GiB)."
        )
    shared = asked.settings.strategy != "single" or asked.config is not None
    return torch.cuda.get_device_properties(0).total_memory, devices or (device_count() if shared else 1)


def training_setting(
    arguments: Sequence[str], asked: Launch, args: Any, model: Any, devices: int, on_cpu: bool
) -> TrainingSetting:
    """The training that the arguments ask for."""
    settings = asked.settings
    rows = args.per_device_train_batch_size
    precision = "fp16" if args.fp16 else "bf16" if args.bf16 else str(settings.said("mixed_precision") or "no")
    if precision == "no" and not on_cpu and (value_of("bf16", arguments) or "").lower() not in ("false", "0", "no"):
        precision = "bf16"  # on by default on accelerators that support it
    at_once = args.max_batch_tokens or (CPU_BATCH_TOKENS if on_cpu else ACCELERATOR_BATCH_TOKENS)
    offloads = str(settings.said("fsdp_offload_params")).lower() == "true"
    strategy = settings.strategy if devices > 1 or settings.strategy == "zero" else "single"
    logprobs = "logprobs" in _needs(args.loss)
    return TrainingSetting(
        strategy="ddp" if strategy in ("single", "other") and devices > 1 else strategy,
        devices=devices,
        stage=settings.stage,
        weight_bytes=2 if str(model.dtype) in ("bfloat16", "float16") else 4,
        precision=precision,  # type: ignore[arg-type]  # a name of transformers'
        checkpointing=checkpoints_activations(args) or str(settings.said("fsdp_activation_checkpointing")).lower() == "true",
        tokens=rows * _TEXTS * (args.max_length or 1_024),
        tokens_at_a_time=at_once,
        accumulation=args.gradient_accumulation_steps,
        optimizer=getattr(args.optim, "value", str(args.optim)),
        quantized=4 if model.load_in_4bit else 8 if model.load_in_8bit else None,
        offloads_weights=offloads or settings.said("offload_param_device") in ("cpu", "nvme"),
        offloads_optimizer=offloads or settings.said("offload_optimizer_device") in ("cpu", "nvme"),
        logprob_tokens=(args.max_length or 1_024) if logprobs else 0,
        on_cpu=on_cpu,
    )


def _needs(loss: Any) -> list[str]:
    from rm_plugins.losses.loss import needs_of
    from rm_plugins_trl.reward_training.chosen_loss import chosen_loss

    return [need.name for need in needs_of(chosen_loss(loss))]


def changes(size: ModelSize, setting: TrainingSetting, rows: int) -> Iterator[Change]:
    """Changes that save memory, those first that change the training least."""
    if not setting.checkpointing:
        yield Change("--gradient_checkpointing true", size, replace(setting, checkpointing=True))
    if setting.precision == "no" and not setting.on_cpu:
        yield Change("--bf16 true", size, replace(setting, precision="bf16"))
    smaller, fewer = setting, rows
    while fewer > 1:
        factor = fewer // (fewer // 2)
        fewer //= 2
        accumulation = smaller.accumulation * factor
        smaller = replace(smaller, tokens=setting.tokens * fewer // rows, accumulation=accumulation)
        options = f"--per_device_train_batch_size {fewer} --gradient_accumulation_steps {accumulation}"
        yield Change(options, size, smaller)
    smallest = (
        f"--per_device_train_batch_size {fewer} --gradient_accumulation_steps {smaller.accumulation} " if fewer < rows else ""
    )
    if not setting.on_cpu:
        if setting.devices > 1 and setting.strategy == "ddp":
            yield Change("--accelerate fsdp2", size, replace(setting, strategy="fsdp", stage=2))
            yield Change(f"{smallest}--accelerate fsdp2", size, replace(smaller, strategy="fsdp", stage=2))
        for devices in (2, 4, 8, 16, 32, 64, 128):
            if devices > setting.devices and setting.strategy != "zero":
                sharded = replace(setting, strategy="fsdp", stage=2, devices=devices)
                yield Change(f"--accelerate fsdp2 --num_processes {devices}", size, sharded)
    if not size.has_adapter:
        # An adapter of rank 32 on all linear layers has about 2% of their parameters.
        yield Change(f"{smallest}--use_peft".strip(), replace(size, trained=size.linear // 50), smaller)
        frozen = replace(smaller, weight_bytes=2)
        yield Change(f"{smallest}--use_peft --dtype bfloat16".strip(), replace(size, trained=size.linear // 50), frozen)
        if not setting.on_cpu and setting.strategy in ("single", "ddp"):
            quantized = replace(smaller, quantized=4, weight_bytes=2)
            options = f"{smallest}--use_peft --load_in_4bit --dtype bfloat16".strip()
            yield Change(options, replace(size, trained=size.linear // 50), quantized)


def fitting_changes(size: ModelSize, setting: TrainingSetting, rows: int, memory: int) -> list[tuple[Change, int]]:
    """The changes with which a training fits, with its peaks; without those that do more than another one."""
    fitting: list[tuple[Change, int]] = []
    seen: list[set[str]] = []
    for change in changes(size, setting, rows):
        options = {word for word in change.options.split() if word.startswith("--")}
        peak = estimate(change.size, change.setting).peak
        if peak <= memory and not any(one <= options for one in seen):
            fitting.append((change, peak))
            seen.append(options)
    return fitting


def rendered(name: str, size: ModelSize, setting: TrainingSetting, args: Any, memory: int) -> str:
    """The plan as text."""
    found = estimate(size, setting)
    strategies = {"ddp": "data parallelism", "fsdp": f"FSDP{setting.stage}", "zero": f"ZeRO-{setting.stage}"}
    shared = f"{setting.devices} devices, {strategies.get(setting.strategy, '')}" if setting.devices > 1 else "1 device"
    trained = f", {size.trained / 1e6:,.1f} million trained" if size.has_adapter else ""
    computed = {"no": "float32" if setting.weight_bytes == 4 else "half precision"}.get(setting.precision, setting.precision)
    rows = args.per_device_train_batch_size
    lines = [
        f"{name}: {size.parameters / 1e9:,.3f} billion parameters{trained}",
        f"{shared}, {computed}, {'' if setting.checkpointing else 'no '}gradient checkpointing, {setting.optimizer}",
        f"{rows} rows of {_TEXTS} texts with at most {args.max_length or 1_024:,} tokens: {setting.tokens:,} tokens per device and step",
        "",
        *parts_table(found),
        "",
    ]
    share = found.peak / memory
    if share <= TIGHT:
        verdict = f"It fits: {share:.0%} of the {memory / GIB:,.1f} GiB of a device."
    elif share <= 1:
        verdict = f"It is tight: {share:.0%} of the {memory / GIB:,.1f} GiB of a device. Fragmentation may make it fail."
    else:
        verdict = f"It does not fit: it needs {share:.0%} of the {memory / GIB:,.1f} GiB of a device."
    lines.append(verdict)
    if share > TIGHT:
        fitting = fitting_changes(size, setting, rows, int(TIGHT * memory))
        lines += [
            "",
            "One of these changes makes it fit:" if fitting else "No single change of those that are known makes it fit:",
        ]
        lines += [f"  {change.options}   {peak / GIB:,.1f} GiB" for change, peak in fitting]
        if not fitting:
            lines.append("  use more devices or a smaller model.")
    return "\n".join(lines)


def parts_table(found: MemoryEstimate) -> list[str]:
    """The estimate's parts, a line each."""
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer states": found.optimizer,
        "activations": found.activations,
        "half-precision copies of weights": found.copies,
        "gathered parts and buckets": found.gathers,
        "gathered embedding": found.embedding,
        "logits and heads": found.heads,
        "optimizer step": found.step,
        "CUDA and its libraries": found.context,
    }
    lines = [f"  {name:34}{value / GIB:10,.2f} GiB" for name, value in parts.items() if value]
    note = "" if found.peak == sum(parts.values()) else " (not all of it is held at once)"
    return [*lines, f"  {'at the peak':34}{found.peak / GIB:10,.2f} GiB{note}"]
