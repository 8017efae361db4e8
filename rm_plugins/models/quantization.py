"""Quantized weights: which library quantizes them, on which device and in which dtype, and which layers stay as they are."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from torch import nn

from rm_plugins.engine.placement import is_quantized
from rm_plugins.errors import MissingDependencyError, ModelError, SpecError, did_you_mean
from rm_plugins.models.settings import Scheme

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_LIBRARIES = {"int8": ("torchao", "bitsandbytes"), "int4": ("torchao",), "nf4": ("bitsandbytes",)}
"""The libraries of each scheme, the default first."""

_PLACES: Mapping[tuple[str, str], Mapping[str, Sequence[str]]] = {
    ("int8", "torchao"): dict.fromkeys(("cpu", "cuda", "xpu"), ("float32", "bfloat16", "float16")),
    ("int8", "bitsandbytes"): dict.fromkeys(("cpu", "cuda", "xpu"), ("float32", "bfloat16", "float16")),
    ("int4", "torchao"): {"cpu": ("float32", "bfloat16", "float16"), "cuda": ("bfloat16",)},
    ("nf4", "bitsandbytes"): dict.fromkeys(("cpu", "cuda", "xpu"), ("float32", "bfloat16", "float16")),
}
"""The devices of each scheme and library, and the dtypes of the rest of the model there."""

_GROUPS = (32, 64, 128)
_INT4_CAPABILITY = 8
"""The least compute capability of a GPU with the kernel for int4."""
_VERSIONS = {"torchao": "0.18", "bitsandbytes": "0.46.1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the weights of a model's linear layers are quantized while it is loaded; the score head never is.

    Args:
        name: The scheme.
        library: The library, if a scheme has several.
        group_size: For int4, how many weights share a scale.
        double_quant: For nf4, whether the scales are quantized too.
        skip: Further layers that stay as they are, by the ends of their names.

    Raises:
        SpecError: A key is unknown, or does not fit the scheme.
    """

    name: Scheme
    library: str = ""
    group_size: int | None = None
    double_quant: bool = False
    skip: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.name not in get_args(Scheme):
            raise SpecError(f"there is no quantization {self.name!r}. {did_you_mean(str(self.name), get_args(Scheme))}")
        libraries = _LIBRARIES[self.name]
        object.__setattr__(self, "library", self.library or libraries[0])
        object.__setattr__(self, "skip", (self.skip,) if isinstance(self.skip, str) else tuple(self.skip))
        if self.library not in libraries:
            raise SpecError(f"{self.name} is not available from {self.library!r}. Allowed: {', '.join(libraries)}.", "library")
        if self.group_size is not None and (self.name != "int4" or self.group_size not in _GROUPS):
            raise SpecError(
                f"only int4 has groups, of {', '.join(map(str, _GROUPS))} weights, not {self.group_size!r}.", "group_size"
            )
        if not isinstance(self.double_quant, bool) or (self.double_quant and self.name != "nf4"):
            raise SpecError(f"must be true or false, and only nf4 has it; not {self.double_quant!r}.", "double_quant")
        if not all(isinstance(name, str) for name in self.skip):
            raise SpecError(f"must be a list of names of layers, not {self.skip!r}.", "skip")

    @classmethod
    def of(cls, setting: str | Mapping[str, Any]) -> Self:
        """The quantization that a spec's key `quantization` describes: a scheme, or a mapping with its `name` and further keys.

        Raises:
            SpecError: It is not one.
        """
        written = {"name": setting} if isinstance(setting, str) else dict(setting)
        try:
            known = [field.name for field in fields(cls)]
            for key in written:
                if key not in known:
                    raise SpecError(f"unknown key {key!r}. {did_you_mean(str(key), known)}", key=str(key))
            if "name" not in written:
                raise SpecError(f"the key 'name' is missing. Allowed values: {', '.join(get_args(Scheme))}.")
            return cls(**written)
        except SpecError as error:
            raise error.inside("quantization") from None

    def __str__(self) -> str:
        more = {"group_size": self.group_size, "double_quant": self.double_quant, "skip": ", ".join(self.skip)}
        return f"{self.name} ({', '.join([self.library, *(f'{key}: {value}' for key, value in more.items() if value)])})"

    def dtype(self, name: str, device: torch.device) -> str:
        """The dtype of the rest of the model: `name`, or the only one of this device if that is ``auto``."""
        allowed = _PLACES[self.name, self.library].get(device.type, ())
        return allowed[0] if name == "auto" and len(allowed) == 1 else name

    def check(self, device: torch.device, dtype: str) -> None:
        """Refuse a device, a dtype or an installation that has no such quantization, before any weight is read.

        Args:
            device: The device that the model will run on.
            dtype: The dtype of the rest of the model, or ``auto``.

        Raises:
            SpecError: The device or the dtype has none.
            MissingDependencyError: The library is not installed.
        """
        places = _PLACES[self.name, self.library]
        what = f"{self.name} of {self.library}"
        if device.type not in places:
            raise SpecError(f"{what} does not run on {device.type}. {self._available()}", "quantization")
        if dtype != "auto" and dtype not in places[device.type]:
            raise SpecError(
                f"{what} does not run in {dtype} on {device.type}, only in {', '.join(places[device.type])}. {self._available()}",
                "quantization",
            )
        if importlib.util.find_spec(self.library) is None:
            other = " or ".join(
                f"`{{name: {self.name}, library: {name}}}`" for name in _LIBRARIES[self.name] if name != self.library
            )
            raise MissingDependencyError(
                f"quantization: {self.name} needs {self.library}, which is not installed: pip install "
                f"'{self.library}>={_VERSIONS[self.library]}'{f' (or write {other})' if other else ''}."
            )
        if self.name == "int4" and device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            if capability[0] < _INT4_CAPABILITY:
                raise SpecError(
                    f"{what} needs a GPU with compute capability {_INT4_CAPABILITY}.0 or more; {device} has "
                    f"{'.'.join(map(str, capability))}. {self._available()}",
                    "quantization",
                )

    def _available(self) -> str:
        """What runs where, for error messages."""
        rows = []
        for (name, library), places in _PLACES.items():
            on = [device if len(dtypes) > 1 else f"{device} in {dtypes[0]}" for device, dtypes in places.items()]
            rows.append(f"{name} of {library} on {', '.join(on)}")
        return f"Available: {'; '.join(rows)}."

    def config(self, head: Sequence[str], device: torch.device) -> Any:
        """The configuration for transformers' ``from_pretrained``.

        Args:
            head: The modules of the score head.
            device: The device that the model will run on.
        """
        from transformers import BitsAndBytesConfig, TorchAoConfig

        unchanged = sorted({*head, *self.skip})
        if self.library == "torchao":
            return TorchAoConfig(self._of_torchao(device), modules_to_not_convert=unchanged)
        if self.name == "int8":
            # With a threshold, the columns with outliers are chosen for the whole batch, so a score would depend on the other rows.
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=unchanged)
        four_bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": self.double_quant}
        return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=unchanged, **four_bits)

    def _of_torchao(self, device: torch.device) -> Any:
        try:
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
            from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
        except ImportError as error:
            raise MissingDependencyError(
                f"quantization: {self.name} needs torchao {_VERSIONS['torchao']} or newer: pip install -U torchao ({error})."
            ) from error
        if self.name == "int8":
            return Int8WeightOnlyConfig(set_inductor_config=False)
        groups = {"group_size": self.group_size or _GROUPS[-1], "set_inductor_config": False}
        if device.type == "cpu":
            return PrototypeInt4WeightOnlyConfig(**groups)
        return Int4WeightOnlyConfig(int4_packing_format="tile_packed_to_4d", **groups)

    def check_layers(self, model: PreTrainedModel, source: str) -> None:
        """Refuse a loaded model without a quantized layer.

        Raises:
            ModelError: No layer was quantized.
        """
        if not any(map(is_quantized, model.parameters())):
            raise ModelError(
                f"{source} has no layer that {self} can quantize. int4 needs layers with a multiple of {self.group_size or _GROUPS[-1]} "
                "inputs (`group_size`), and every scheme needs linear layers. Leave the key `quantization` out."
            )


def keep_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A loaded model whose quantized layers compute in its dtype and never change their weights.

    On some CPUs, bitsandbytes repacks 4-bit weights at the first row, with scales in bfloat16: scores would depend on the CPU, and would
    change when the state of the model is read.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
            layer.compute_dtype = model.dtype
    # It would report the dtype of every input of every layer.
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_says_something)
    return model


def _says_something(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in record.getMessage()


def head_modules(model: nn.Module) -> list[str]:
    """The names of the modules that turn a classifier's hidden states into scores: all outside of its backbone, and poolers."""
    backbone = getattr(model, "base_model_prefix", "")
    outside = [name for name, _ in model.named_children() if name != backbone]
    poolers = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler"]
    return sorted({*outside, *poolers})


def quantized_already(config: PretrainedConfig | None) -> str | None:
    """The method that a checkpoint is quantized with; None if it is not."""
    written = getattr(config, "quantization_config", None)
    if written is None:
        return None
    method = written.get("quant_method") if isinstance(written, Mapping) else getattr(written, "quant_method", None)
    return str(getattr(method, "value", method) or "an unknown method")
