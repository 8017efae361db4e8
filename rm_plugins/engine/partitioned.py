"""Weights that stage 3 of DeepSpeed's ZeRO has partitioned: outside the forward of their module, they are empty tensors.

DeepSpeed gathers the weights of a module when the module is called. Code that reads a weight at another time must gather it, or call its
module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from rm_plugins.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


def is_partitioned(weight: torch.Tensor) -> bool:
    """Whether stage 3 of ZeRO has partitioned a weight."""
    return hasattr(weight, "ds_id")


def partitions(model: nn.Module) -> bool:
    """Whether stage 3 of ZeRO has partitioned a model."""
    return any(is_partitioned(weight) for weight in model.parameters())


def whole_shape(weight: torch.Tensor) -> torch.Size:
    """The shape of a weight, partitioned or not."""
    return cast("torch.Size", getattr(weight, "ds_shape", weight.shape))


def held_part(weight: torch.Tensor) -> torch.Tensor:
    """The part of a weight that this process holds: all of it, unless ZeRO has partitioned it or FSDP2 has sharded it."""
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    return cast("torch.Tensor", getattr(local, "ds_tensor", local))


def parameter_count(model: PreTrainedModel, *, exclude_embeddings: bool = False) -> int:
    """The number of a model's parameters, partitioned or not; transformers counts none of a partitioned model."""
    if not partitions(model):
        return int(model.num_parameters(exclude_embeddings=exclude_embeddings))
    from torch import nn

    embeddings = {id(module.weight) for module in model.modules() if exclude_embeddings and isinstance(module, nn.Embedding)}
    return sum(whole_shape(weight).numel() for weight in model.parameters() if id(weight) not in embeddings)


@contextmanager
def gathered(weights: Iterable[torch.Tensor]) -> Iterator[None]:
    """Within it, weights are whole and can be read. All processes must enter it together.

    Gradients do not reach partitioned weights from here; see `linear_weight` and `embedding_weight`.

    Args:
        weights: The weights; nothing happens to those that are not partitioned.
    """
    partitioned = [weight for weight in weights if is_partitioned(weight)]
    if not partitioned:
        yield
        return
    deepspeed: Any = sys.modules["deepspeed"]  # which has partitioned them
    with deepspeed.zero.GatheredParameters(partitioned):
        yield


def linear_weight(layer: nn.Linear) -> torch.Tensor:
    """The partitioned weight of a linear layer, [outputs, inputs], with a gradient. All processes must call this together.

    The layer's outputs for the unit vectors are the weight's columns. So the layer runs as DeepSpeed expects it to, and gradients are
    reduced as those of any forward.
    """
    import torch

    kind: dict[str, Any] = {"dtype": layer.weight.dtype, "device": layer.weight.device}
    inputs = torch.eye(layer.in_features, **kind)
    if layer.bias is None:
        return cast("torch.Tensor", layer(inputs)).T
    outputs: torch.Tensor = layer(torch.cat([inputs, torch.zeros(1, layer.in_features, **kind)]))
    return (outputs[:-1] - outputs[-1:]).T


def embedding_weight(layer: nn.Module) -> torch.Tensor:
    """The partitioned weight of an embedding, [tokens, size], with a gradient: the embeddings of all tokens.

    All processes must call this together.

    Raises:
        UnsupportedError: The layer computes something else from its weight.
    """
    import torch
    from torch import nn

    if type(layer) is not nn.Embedding:
        raise UnsupportedError(
            f"The loss needs log-probabilities, whose head is the model's embedding, a {type(layer).__name__} that stage 3 of ZeRO has "
            "partitioned and that is more than a table. Use FSDP2, stage 2, or another loss."
        )
    padding, layer.padding_idx = layer.padding_idx, None  # the row of this token would get no gradient
    try:
        return cast("torch.Tensor", layer(torch.arange(layer.num_embeddings, device=layer.weight.device)))
    finally:
        layer.padding_idx = padding
