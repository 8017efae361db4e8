"""Dropout whose masks are drawn once and stay: every pass of a model is one network with features left out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rm_plugins.errors import ModelError
from rm_plugins.models.heads import Heads
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_reward import TrainedReward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_RATE = 0.1
"""The share of a head's inputs that is left out where a model has no dropout of its own and none is asked for."""

_HEADS = ("score", "classifier")
_PROBED_LENGTHS = (2, 3)


class FixedDropout(nn.Module):
    """In place of a dropout layer: leaves out the same features of every token, others in every pass.

    Args:
        masks: [passes, features], 0 for what is left out, 1 / (1 - rate) for what is kept.
    """

    masks: torch.Tensor

    def __init__(self, masks: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("masks", masks)
        self.number = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Leave out the features, [..., features], of the pass `number`."""
        return hidden * self.masks[self.number]


class _HeadOfPasses(nn.Module):
    """A score head that gives its outputs for every pass, one pass after the other."""

    masks: torch.Tensor

    def __init__(self, head: nn.Module, masks: torch.Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("masks", masks)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.head(hidden * mask) for mask in self.masks], dim=-1)


@dataclass(frozen=True, slots=True)
class Passes:
    """How a model gives the outputs of all passes.

    Args:
        variants: A function for each pass, which makes the model run it; none where one run of the model is all passes.
        in_one_run: Of how many passes one run gives the outputs, side by side.
    """

    variants: Sequence[Callable[[], None]] = ()
    in_one_run: int = 1


def load_with_dropout(source: str, settings: ModelSettings, *, passes: int, rate: float | None, seed: int) -> TrainedReward:
    """Load a model and drop its features in each of several passes, which are its members.

    It is compared with its manifest before, if the settings say so.

    Raises:
        ModelError: As `TrainedReward.load` does, or the model has nothing that features could be dropped of.
        ManifestError: The manifest does not match the model.
        SpecError: The settings name an output that the model does not have.
    """
    # What the model scores as it is, for its golden samples, is none of the passes' scores that are kept.
    unchanged = replace(settings, cache=None)
    loaded = TrainedReward.load(source, unchanged)
    labels = loaded.model.config.num_labels
    dropped = drop_features(loaded.model, passes, rate, seed)
    return TrainedReward(
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


def drop_features(model: PreTrainedModel, passes: int, rate: float | None, seed: int) -> Passes:
    """Change a classifier so that features are dropped in each of several passes.

    The dropout layers that the model runs are replaced; those over attention weights, whose number is a row's length, stay off. In a
    model without any that drops, the input of the score head is masked instead, and one run of the model is all passes.

    Args:
        model: The classifier, in evaluation mode.
        passes: The number of passes.
        rate: The share of features that is left out; each layer's own if None.
        seed: What the masks are drawn from, with the pass and the name of the layer.

    Raises:
        ModelError: The model has neither dropout nor a score head of a known name.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Dropout) and (layer.p if rate is None else rate)
    }
    heads = {name: getattr(model, name) for name in _HEADS if hasattr(model, name)}
    sizes = _feature_sizes(model, {**layers, **heads})

    def masks(name: str, share: float) -> torch.Tensor:
        return _masks(name, sizes[name], passes, share, seed).to(model.device, model.dtype)

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
            f"{type(model).__name__} ({model.name_or_path}) has no dropout layers, and no head called {' or '.join(_HEADS)} whose input "
            "could be dropped instead. Combine several models with `provider: ensemble`."
        )
    setattr(model, head, _HeadOfPasses(heads[head], masks(head, HEAD_RATE if rate is None else rate)))
    return Passes(in_one_run=passes)


class _Pass:
    """Makes dropout layers run one pass."""

    def __init__(self, layers: Sequence[FixedDropout], number: int) -> None:
        self.layers = layers
        self.number = number

    def __call__(self) -> None:
        for layer in self.layers:
            layer.number = self.number


def _masks(name: str, size: int, passes: int, rate: float, seed: int) -> torch.Tensor:
    """Masks of a layer, float32 [passes, size]. Python's generator draws the same numbers everywhere and for good."""
    generators = [random.Random(f"{seed} {number} {name}") for number in range(passes)]
    kept = [[generator.random() >= rate for _ in range(size)] for generator in generators]
    return torch.tensor(kept, dtype=torch.float32) / (1 - rate)


@torch.inference_mode()
def _feature_sizes(model: PreTrainedModel, layers: dict[str, nn.Module]) -> dict[str, int]:
    """The number of features that each layer is given, by name, seen by running the model over rows of two lengths.

    A layer that does not run has none, nor has one whose number depends on the length.
    """
    seen: dict[str, set[int]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        def remember(layer: nn.Module, arguments: Any) -> None:
            seen.setdefault(name, set()).add(arguments[0].shape[-1])

        return remember

    watches = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for length in _PROBED_LENGTHS:
            ids = torch.ones((1, length), dtype=torch.long, device=model.device)
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in watches:
            handle.remove()
    return {name: sizes.pop() for name, sizes in seen.items() if len(sizes) == 1}
