"""Where a model is loaded to: its device or devices, its dtype, and the quantization of its weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import AutoModelForSequenceClassification

from rm_plugins.engine.score_cache import MEMORY
from rm_plugins.errors import MissingDependencyError, ModelError, SpecError
from rm_plugins.models.own_weights import own_weights
from rm_plugins.models.quantization import Quantization, head_modules, keep_weights, quantized_already

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from rm_plugins.models.settings import DeviceMap, ModelSettings


def default_device() -> torch.device:
    """The accelerator of this process (by ``LOCAL_RANK`` under a launcher), else the CPU."""
    # In this order: torch 2.6 fails when it is asked for the accelerator of a machine that has none.
    if not torch.accelerator.is_available() or (accelerator := torch.accelerator.current_accelerator()) is None:
        return torch.device("cpu")
    local_rank = os.environ.get("LOCAL_RANK")
    index = torch.accelerator.current_device_index() if local_rank is None else int(local_rank)
    return torch.device(accelerator.type, index % max(1, torch.accelerator.device_count()))


def chosen_device(name: str, key: str = "device") -> torch.device:
    """The device that a spec names.

    Args:
        name: The device.
        key: The key of the spec that names it.

    Raises:
        SpecError: There is no such device on this machine.
    """
    if name == "auto":
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # each backend raises its own
        reason = str(error).splitlines()[0]
        raise SpecError(
            f"there is no device {name!r} on this machine ({reason}). Use 'auto', 'cpu', or an accelerator's name, such as 'cuda:0'.",
            key=key,
        ) from error
    return device


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how the weights of a model are kept.

    Args:
        device: The device that it runs on; of several, the first accelerator.
        device_map: How it is spread; None for a model on one device.
        dtype: The dtype of the weights that are not quantized; ``auto`` is that of the checkpoint.
        quantization: How its weights are quantized, if they are.
        split: Whether its layers are split over the processes of the launcher.
    """

    device: torch.device
    device_map: DeviceMap | None
    dtype: torch.dtype | str
    quantization: Quantization | None
    split: bool = False

    @classmethod
    def of(cls, settings: ModelSettings) -> Self:
        """The placement that settings ask for.

        Raises:
            SpecError: There is no such device, or the quantization does not run on it.
            MissingDependencyError: The library of the quantization is not installed.
        """
        device_map = settings.device_map
        if settings.tp_plan is not None:
            _check_processes(settings)
        quantization = None if settings.quantization is None else Quantization.of(settings.quantization)
        if device_map is not None and settings.device != "auto":
            raise SpecError(
                "`device` is for a model on one device, and `device_map` for one that is spread: set only one of the two.",
                key="device_map",
            )
        device = chosen_device(settings.device) if device_map is None else _first_device(device_map, quantization)
        name: str = settings.dtype
        if quantization is not None:
            name = quantization.dtype(name, device)
        dtype = _dtype(name, device)
        if quantization is not None:
            quantization.check(device, str(dtype).removeprefix("torch."))
        return cls(device, device_map, dtype, quantization, split=settings.tp_plan is not None)

    def arguments(self, source: str, config: PretrainedConfig | None, *, trust_remote_code: bool) -> dict[str, Any]:
        """Arguments of transformers' ``from_pretrained`` beside the dtype.

        Raises:
            ModelError: The checkpoint is quantized already.
        """
        if self.split:
            return _split_arguments(source, config)
        if self.quantization is None or config is None:
            return {} if self.device_map is None else {"device_map": self._written_map}
        if method := quantized_already(config):
            raise ModelError(
                f"{source} is quantized already ({method}), so its weights cannot be quantized again. Leave the key `quantization` out."
            )
        with torch.device("meta"):
            skeleton = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
        device_map = {"": self.device} if self.device_map is None else self._written_map
        return {
            "device_map": device_map,
            "quantization_config": self.quantization.config(head_modules(skeleton), self.device),
        }

    @property
    def _written_map(self) -> Any:
        return self.device_map if isinstance(self.device_map, str) else dict(self.device_map or {})

    def placed(self, model: PreTrainedModel, source: str) -> PreTrainedModel:
        """A loaded model in evaluation mode, on its device or devices, with its weights in memory.

        Raises:
            ModelError: Some of its weights would stay on the disk, or no layer could be quantized.
        """
        if self.split:
            return own_weights(model.eval())
        if self.device_map is None and self.quantization is None:
            model = model.to(self.device)
        on_disk = [name for name, device in getattr(model, "hf_device_map", {}).items() if device == "disk"]
        if on_disk:
            raise ModelError(
                f"{source} does not fit: with device_map: {self._written_map}, {len(on_disk)} of its parts would stay on the disk "
                f"(first: {on_disk[0]}). They would be read again for every batch, and a changed file would change the scores. Set a "
                "smaller `dtype` or a `quantization`, or use devices with more memory."
            )
        if self.quantization is not None:
            self.quantization.check_layers(model, source)
        return own_weights(keep_weights(model).eval())


def _check_processes(settings: ModelSettings) -> None:
    """Refuse what does not go together with a model that is split over processes.

    Raises:
        SpecError: There is one process, or another key that does not fit.
    """
    if _processes() < 2:
        raise SpecError(
            "a model can be split over several processes only, but this program has one. Start it with torchrun: "
            "`torchrun --nproc-per-node 2 PROGRAM`.",
            "tp_plan",
        )
    others = {"device": settings.device != "auto", "device_map": settings.device_map, "quantization": settings.quantization}
    # Of a file, one process could read a score that another has just written, and would then run other rows than that.
    others["cache"] = settings.cache not in (None, MEMORY)
    if wrong := [name for name, is_set in others.items() if is_set]:
        raise SpecError(
            f"a model that is split over processes takes no {' and no '.join(f'`{name}`' for name in wrong)}.", wrong[0]
        )


def _processes() -> int:
    """The number of processes that a launcher started."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def _split_arguments(source: str, config: PretrainedConfig | None) -> dict[str, Any]:
    """The arguments of transformers' ``from_pretrained`` that split a model over all processes.

    Raises:
        ModelError: Its attention heads cannot be shared out equally.
        MissingDependencyError: This transformers cannot do it.
    """
    try:
        from transformers.distributed import DistributedConfig

        split = DistributedConfig(tp_plan="auto", tp_size=_processes())
    except (ImportError, TypeError) as error:
        raise MissingDependencyError(
            f"tp_plan needs a newer transformers, with DistributedConfig(tp_plan=...): pip install -U transformers ({error})."
        ) from error
    text = None if config is None else config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, name, None)
        if heads and heads % _processes():
            raise ModelError(
                f"{source} has {heads} {name}, which {_processes()} processes cannot share equally. Start a number of processes by which "
                f"{heads} can be divided."
            )
    return {"distributed_config": split}


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    return torch.float32 if device.type == "cpu" else "auto"


def _first_device(device_map: DeviceMap, quantization: Quantization | None) -> torch.device:
    """The device that a spread model runs on, the first accelerator if there is one.

    Raises:
        SpecError: There is no such device, or it is a place from which no score can be computed.
    """
    if isinstance(device_map, str):
        return default_device()
    if not device_map:
        raise SpecError(
            "it names no part of the model. Write a strategy, such as `auto`, or a device for each part.", "device_map"
        )
    devices = []
    for part, name in device_map.items():
        key = f"device_map.{part}" if part else "device_map"
        if name in ("disk", "meta"):
            raise SpecError(
                f"weights on {name!r} would be read from their file for every batch, and a changed file would change the scores. Use "
                "'cpu': weights in the CPU's memory are moved to the accelerator when they are needed.",
                key,
            )
        if isinstance(name, int) and (accelerator := torch.accelerator.current_accelerator()) is not None:
            name = f"{accelerator.type}:{name}"
        devices.append(chosen_device(str(name), key))
    accelerators = [device for device in devices if device.type != "cpu"]
    if quantization is not None and accelerators and len(accelerators) < len(devices):
        raise SpecError(
            "quantized weights cannot be offloaded to the CPU. Put every part on an accelerator, or leave out `quantization`.",
            "device_map",
        )
    return (accelerators or devices)[0]
