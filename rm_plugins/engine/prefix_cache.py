"""Caches the keys and values that a decoder has computed for prefixes of rows, and copies them for padded rows that continue them.

Any decoder with a standard cache can run this way. `rm_plugins.engine.segment_pack` is faster where it is possible.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_layers import GenericForSequenceClassification

from rm_plugins.engine.plan import Segment
from rm_plugins.engine.tensors import on_device
from rm_plugins.engine.transformers_internals import is_stateful

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DECODERS = frozenset({"biogpt", "bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt"})
"""Model types that compute their score like `GenericForSequenceClassification` without inheriting from it."""


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether a model scores the hidden state of a row's last non-padding token with its head `score`."""
    return isinstance(model, GenericForSequenceClassification) or model.config.model_type in _DECODERS


def is_causal(model: PreTrainedModel) -> bool:
    """Whether no token of a decoder attends to later tokens."""
    config = model.config.get_text_config()
    return getattr(config, "is_causal", True) and not getattr(config, "use_bidirectional_attention", None)


def has_standard_cache(model: PreTrainedModel) -> bool:
    """Whether each layer of a decoder caches the keys and values of all tokens: no sliding windows, no recurrent states."""
    config = model.config.get_text_config()
    if config.model_type == "mpt":  # its positions count the padding inside a row
        return False
    if is_stateful(model) or "local" in getattr(config, "attention_layers", ()):
        return False
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return getattr(config, "sliding_window", None) is None
    return set(layer_types) <= {"full_attention"}


class CachedPrefixes:
    """Keys and values of prefixes, including padding, which the mask marks.

    Args:
        layers: The keys and the values of every layer, each [rows, heads, cached tokens, size].
        mask: int64 [rows, cached tokens], 0 for padding.
    """

    def __init__(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor) -> None:
        self.layers = layers
        self.mask = mask

    @classmethod
    def of(cls, caches: Sequence[PrefixCache]) -> CachedPrefixes:
        """Concatenate the caches of micro-batches, padded to the longest."""
        states = [[(layer.keys, layer.values) for layer in cache.layers] for cache in caches]
        if len(caches) == 1:
            return cls(states[0], caches[0].mask)
        width = max(cache.mask.shape[1] for cache in caches)
        layers = [
            (_stacked([keys for keys, _ in layer], width), _stacked([values for _, values in layer], width))
            for layer in zip(*states, strict=True)
        ]
        return cls(layers, torch.cat([pad(cache.mask, (0, width - cache.mask.shape[1])) for cache in caches]))


def _stacked(states: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    return torch.cat([pad(state, (0, 0, 0, width - state.shape[-2])) for state in states])


class PrefixCache:
    """The cache of one micro-batch: provides the prefixes that its segments continue, and stores the segments themselves.

    Args:
        before: The prefixes that are continued; None at the start of the rows.
        segments: The segments of the micro-batch.
        mask: int64 [segments, longest], 0 for padding.
        keep: Whether other micro-batches will continue this one.
    """

    def __init__(self, before: CachedPrefixes | None, segments: Sequence[Segment], mask: torch.Tensor, *, keep: bool) -> None:
        self._cache: Cache
        self._holes = False
        starts = on_device([segment.start for segment in segments], mask.device)
        self._positions = starts[:, None] + torch.arange(mask.shape[1], device=mask.device)
        if before is None:
            self._cache, self.mask = DynamicCache(), mask
            return
        self._holes = any(segment.start < before.mask.shape[1] for segment in segments)
        rows = on_device([segment.parent for segment in segments], mask.device)
        self._cache = Cache(layers=[_Continuation(keys, values, rows, keep) for keys, values in before.layers])
        self.mask = torch.cat([before.mask[rows], mask], dim=1)

    @property
    def layers(self) -> Sequence[Any]:
        """transformers' cache layers with their `keys` and `values`, after the micro-batch has run."""
        layers: Sequence[Any] = self._cache.layers
        return layers

    def arguments(self, backbone: torch.nn.Module) -> dict[str, Any]:
        """The arguments of a backbone's ``forward`` other than the token ids."""
        arguments: dict[str, Any] = {"past_key_values": self._cache, "use_cache": True}
        if self._holes:  # causality hides padding after a row, but not padding inside it
            arguments["attention_mask"] = self.mask
        if "position_ids" in inspect.signature(backbone.forward).parameters:
            arguments["position_ids"] = self._positions
        return arguments


class _Continuation(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """A cache layer that passes the keys and values of prefixes to the rows that continue them.

    Unlike transformers' own layers, it copies a prefix for its rows only while the layer runs.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, keep: bool) -> None:
        super().__init__()
        self.prefixes = keys, values
        self.rows = rows
        self.keep = keep
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (
            torch.cat([prefix.index_select(0, self.rows.to(prefix.device)), new], dim=-2)
            for prefix, new in zip(self.prefixes, (key_states, value_states), strict=True)
        )
        if self.keep:
            self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        return int(self.prefixes[0].shape[-2])
