"""Dropout with fixed masks: every pass of a model is one network with the same features left out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rm_plugins.engine.placement import input_device
from rm_plugins.errors import ModelError
from rm_plugins.models.heads import Heads
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_reward import TrainedReward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_RATE = 0.1
"""The default share of a head's inputs that is left out if the model has no dropout layers."""

_HEADS = ("score", "classifier")
_PROBED_LENGTHS = (2, 3)


class FixedDropout(nn.Module):
    """Replaces a dropout layer: leaves out the same features of every token, but others in each pass.

    Args:
        masks: [passes, features], 0 for features that are left out, 1 / (1 - rate) for the others.
    """

    masks: torch.Tensor

    def __init__(self, masks: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("masks", masks)
        self.number = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the mask of the pass `number` to features, [..., features]."""
        return hidden * self.masks[self.number].to(hidden.device)  # of a spread model, each layer has its own device


class _HeadOfPasses(nn.Module):
    """A score head that returns its outputs for all passes, concatenated."""

    masks: torch.Tensor

    def __init__(self, head: nn.Module, masks: torch.Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("masks", masks)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.head(hidden * mask) for mask in self.masks.to(hidden.device)], dim=-1)


@dataclass(frozen=True, slots=True)
class Passes:
    """How the outputs of all passes are computed.

    Args:
        variants: A function for each pass that selects it; empty if one run of the model computes all passes.
        in_one_run: The number of passes that one run computes, with their outputs side by side.
    """

    variants: Sequence[Callable[[], None]] = ()
    in_one_run: int = 1


def load_with_dropout(source: str, settings: ModelSettings, *, passes: int, rate: float | None, seed: int) -> TrainedReward:
    """Load a model whose features are dropped in several passes, which are the members of the reward.

    The unchanged model is checked against its manifest first, if `settings.verify` is set.

    Raises:
        ModelError: As for `TrainedReward.load`, or the model has no features that could be dropped.
        ManifestError: The manifest does not match the model.
        SpecError: The settings name an output that the model does not have.
    """
    # Without a cache, because golden samples are scored by the unchanged model, not by the passes.
    unchanged = replace(settings, cache=None)
    loaded = TrainedReward.load(source, unchanged)
    labels = loaded.model.config.num_labels
    dropped = drop_features(loaded.model, passes, rate, seed)
    reward = TrainedReward(
        loaded.model,
        loaded.renderer,
        Heads(loaded.heads.labels, loaded.heads.reward_weights, passes),
        source=source,
        settings=settings,
        origins=loaded.origins,
        manifest=loaded.manifest,
        variants=dropped.variants,
        width=labels * dropped.in_one_run,
        load_again=partial(load_with_dropout, source, passes=passes, rate=rate, seed=seed),
        load_unchanged=partial(TrainedReward.load, source, replace(unchanged, verify=False)),
    )
    reward.quantization_cost = loaded.quantization_cost
    return reward


def drop_features(model: PreTrainedModel, passes: int, rate: float | None, seed: int) -> Passes:
    """Change a classifier so that features are dropped in each of several passes.

    The dropout layers that the model runs are replaced. Those over attention weights, where the number of features is the row's length,
    stay off. If no layer drops anything, the input of the score head is masked instead, and one run of the model computes all passes.

    Args:
        model: The classifier, in evaluation mode.
        passes: The number of passes.
        rate: The share of features that is left out; by default each layer's own rate.
        seed: The seed of the masks, which also depend on the pass and the name of the layer.

    Raises:
        ModelError: The model has neither dropout nor a score head with a known name.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Dropout) and (layer.p if rate is None else rate)
    }
    heads = {name: getattr(model, name) for name in _HEADS if hasattr(model, name)}
    sizes = _feature_sizes(model, {**layers, **heads})

    def masks(name: str, share: float) -> torch.Tensor:
        return _masks(name, sizes[name], passes, share, seed).to(input_device(model), model.dtype)

    dropping = {
        name: FixedDropout(masks(name, layer.p if rate is None else rate)) for name, layer in layers.items() if name in sizes
    }
    if dropping:
        for name, layer in dropping.items():
            model.set_submodule(name, layer)
        return Passes([_Pass(list(dropping.values()), number) for number in range(passes)])
    head = next((name for name in heads if name in sizes), None)
    if head is None:
        raise ModelError(
            f"{type(model).__name__} ({model.name_or_path}) has no dropout layers, and no head called {' or '.join(_HEADS)} to drop inputs "
            "of. Combine several models with `provider: ensemble`."
        )
    setattr(model, head, _HeadOfPasses(heads[head], masks(head, HEAD_RATE if rate is None else rate)))
    return Passes(in_one_run=passes)


class _Pass:
    """Selects a pass in all dropout layers."""

    def __init__(self, layers: Sequence[FixedDropout], number: int) -> None:
        self.layers = layers
        self.number = number

    def __call__(self) -> None:
        for layer in self.layers:
            layer.number = self.number


def _masks(name: str, size: int, passes: int, rate: float, seed: int) -> torch.Tensor:
    """The masks of a layer, float32 [passes, size]. Python's generator gives the same numbers on every platform and version."""
    generators = [random.Random(f"{seed} {number} {name}") for number in range(passes)]
    retained = [[generator.random() >= rate for _ in range(size)] for generator in generators]
    return torch.tensor(retained, dtype=torch.float32) / (1 - rate)


@torch.inference_mode()
def _feature_sizes(model: PreTrainedModel, layers: dict[str, nn.Module]) -> dict[str, int]:
    """The number of input features of each layer, by name, measured by running the model over rows of two lengths.

    Layers that do not run, or with a number of features that depends on the length, are left out.
    """
    observed: dict[str, set[int]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        def remember(layer: nn.Module, arguments: Any) -> None:
            observed.setdefault(name, set()).add(arguments[0].shape[-1])

        return remember

    watches = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for length in _PROBED_LENGTHS:
            ids = torch.ones((1, length), dtype=torch.long, device=input_device(model))
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in watches:
            handle.remove()
    return {name: sizes.pop() for name, sizes in observed.items() if len(sizes) == 1}
