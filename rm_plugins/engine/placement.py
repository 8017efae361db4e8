"""Where the weights of a model are: on one device, spread over several, or offloaded to the CPU's memory, plain or quantized.

A model that is spread (`device_map`) or offloaded has hooks of accelerate, which move inputs and weights to the device of each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """The device that token ids go to: that of the embeddings, also if their weights are offloaded."""
    try:
        hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    except (AttributeError, NotImplementedError):  # character models have no table of tokens
        hook = None
    device = getattr(hook, "execution_device", None)
    return model.device if device is None else torch.device(device)


def devices_of(model: PreTrainedModel) -> set[torch.device]:
    """The devices that a model runs on; a device that only stores offloaded weights is left out."""
    if not is_spread(model):
        return {input_device(model)}
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return {torch.device(device) for device in devices if device is not None} or {input_device(model)}


def is_spread(model: nn.Module) -> bool:
    """Whether accelerate moves inputs or weights between devices while the model runs."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def stored_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors of a model's state, by name: offloaded weights where they are stored, quantized ones as their parts."""
    for name, tensor in sorted(model.state_dict().items()):
        yield from _plain(name, _offloaded(model, name) if tensor.device.type == "meta" else tensor)


def offloaded_weights(model: nn.Module) -> list[MutableMapping[str, torch.Tensor]]:
    """The mappings in memory that hold a model's offloaded weights, each once."""
    stores: dict[int, MutableMapping[str, torch.Tensor]] = {}
    for module in model.modules():
        weights: Any = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        weights = getattr(weights, "dataset", weights)  # accelerate gives each module a view of one mapping
        weights = getattr(weights, "state_dict", weights)
        if isinstance(weights, MutableMapping):
            stores[id(weights)] = weights
    return list(stores.values())


def is_quantized(weight: torch.Tensor) -> bool:
    """Whether a parameter of a model is quantized."""
    return type(weight) is not nn.Parameter and isinstance(weight, torch.Tensor) and not _is_sharded(weight)


def _is_sharded(weight: torch.Tensor) -> bool:
    return hasattr(weight, "full_tensor")


def _plain(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    if _is_sharded(tensor):
        yield name, tensor.full_tensor()  # type: ignore[attr-defined]  # of a distributed tensor
    elif hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _plain(f"{name}.{part}", getattr(tensor, part))
    else:
        yield name, tensor


def _offloaded(model: nn.Module, name: str) -> torch.Tensor:
    path, _, own_name = name.rpartition(".")
    weights: Mapping[str, torch.Tensor] = model.get_submodule(path)._hf_hook.weights_map  # type: ignore[assignment,union-attr]
    return weights[own_name]
