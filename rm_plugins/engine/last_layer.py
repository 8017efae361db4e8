"""Runs the last layer of a model only for the tokens whose hidden states are read.

A score is read at one token of a row. In the last layer, the other tokens contribute only their keys and values, so their
feed-forward network and their attention are skipped. This is exact.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rm_plugins.engine.prefix_cache import has_standard_cache, is_causal, is_decoder
from rm_plugins.engine.replaced_forward import forward_as
from rm_plugins.engine.segment_pack import SegmentPack
from rm_plugins.engine.transformers_internals import attends_plainly, attention_as, takes_attention
from rm_plugins.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

LAST_LAYER = "rm_plugins_last_layer"
"""The name of the attention implementation."""


class _Projected(Exception):
    """Ends a run of a layer as soon as its attention has the keys and values, each [rows, heads, keys, size]."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys = keys
        self.values = values


@dataclass(frozen=True, slots=True)
class _Attended:
    """What the read tokens attend to: keys and values, each [rows, heads, keys, size], and a mask, bool [rows, keys]."""

    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor

    def attention(self, query: torch.Tensor, scale: float | None) -> torch.Tensor:
        """The attention of queries [rows, heads, 1, size], in the same shape."""
        # Query heads that share a key head become queries of that head, so that keys and values are not repeated.
        grouped = query.reshape(len(query), self.keys.shape[1], -1, query.shape[-1])
        outputs = scaled_dot_product_attention(grouped, self.keys, self.values, self.mask[:, None, None], scale=scale)
        return outputs.reshape(*query.shape[:3], -1)


@dataclass(frozen=True, slots=True)
class _AttendedInPack:
    """What the read tokens of a pack attend to: its keys and values, each [1, heads, tokens, size], and the prefixes that it continues.

    The positions of the read tokens are int64 [rows].
    """

    keys: torch.Tensor
    values: torch.Tensor
    pack: SegmentPack
    at: torch.Tensor

    def attention(self, query: torch.Tensor, scale: float | None) -> torch.Tensor:
        """The attention of queries [rows, heads, 1, size], in the same shape."""
        attended = self.pack.attention_of(query.transpose(0, 2), self.keys, self.values, scale, self.at)
        return attended.transpose(0, 2)


class LastLayer:
    """The last layer of a model, which can run for one token of each row.

    Args:
        model: The model.
        layer: Its last layer.
    """

    def __init__(self, model: PreTrainedModel, layer: nn.Module) -> None:
        self._model = model
        self._layer = layer

    @classmethod
    @torch.inference_mode()
    def of(cls, model: PreTrainedModel) -> LastLayer | None:
        """The last layer of a model; None if it has to run for all tokens.

        Only a trial shows this: an encoder's head may read all tokens, and a layer may do more than attention between tokens.
        """
        decoder = is_decoder(model)
        layer = _last_of(model)
        if layer is None or not takes_attention(model) or (decoder and not (is_causal(model) and has_standard_cache(model))):
            return None
        if not attends_plainly(model):
            return None
        last = cls(model, layer)
        try:
            works = last._gives_the_same(decoder)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            logger.debug("%s runs its last layer for all tokens: %s: %s", type(model).__name__, type(error).__name__, error)
            works = False
        return last if works else None

    def _gives_the_same(self, decoder: bool) -> bool:
        """Whether a short row has the same output if only its read token runs through the last layer."""
        ids = torch.ones((1, 3), dtype=torch.int64, device=self._model.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        at = torch.tensor([2 if decoder else 0], device=ids.device)
        if decoder:
            backbone = getattr(self._model, self._model.base_model_prefix)
            whole = backbone(input_ids=ids, use_cache=False).last_hidden_state[:, 2:]
            with self.reading(at, mask):
                read = backbone(input_ids=ids, use_cache=False).last_hidden_state
            return whole.shape == read.shape and bool(torch.allclose(whole.float(), read.float(), rtol=1e-2, atol=1e-2))
        # If the head reads other tokens than the first, it now gives NaN, whatever its weights are.
        with _output_as(self._layer, _only_first_known):
            if not self._model(input_ids=ids, attention_mask=mask.long()).logits.isfinite().all():
                return False
        with self.reading(at, mask):
            return bool(self._model(input_ids=ids, attention_mask=mask.long()).logits.isfinite().all())

    @contextmanager
    def reading(self, at: torch.Tensor | None, seen: torch.Tensor | SegmentPack) -> Iterator[None]:
        """Within it, the last layer returns the hidden states of one token of each row, [rows, 1, size].

        Args:
            at: The position of each row's token among those that run, int64 [rows]; None if no token is read, so that only keys and
                values are cached: then the hidden states mean nothing.
            seen: The tokens that the read token attends to, the cached ones first, [rows, cached + running tokens]; or the pack that runs,
                with one read token for each of its segments.
        """
        with forward_as(self._layer, partial(self._forward, self._layer.forward, at, seen)):
            yield

    def _forward(
        self,
        own: Callable[..., Any],
        at: torch.Tensor | None,
        seen: torch.Tensor | SegmentPack,
        hidden: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with attention_as(self._model, LAST_LAYER):
            try:
                own(hidden, *args, **kwargs, attended=None)
            except _Projected as projected:
                keys, values = projected.keys, projected.values
            else:
                raise UnsupportedError(f"{type(self._layer).__name__} does not call its attention.")
            if at is None:
                if isinstance(seen, SegmentPack):
                    seen.keep(keys, values)
                return hidden[:, :1]
            attended: _Attended | _AttendedInPack
            if isinstance(seen, SegmentPack):
                attended = _AttendedInPack(keys, values, seen, at)
            else:
                attended = _Attended(keys, values, seen.to(hidden.device, torch.bool))
            select = partial(_of_tokens, hidden.shape[:2], at.to(hidden.device))
            named = {name: select(value) for name, value in kwargs.items()}
            return own(select(hidden), *map(select, args), **named, attended=attended)


def _of_tokens(size: Sequence[int], at: torch.Tensor, value: Any) -> Any:
    """An argument of a layer for one token of each row; masks and caches are left out.

    Args:
        size: The numbers of rows and of tokens in a row.
        at: The position of each row's token, int64 [rows]; in a single row, the positions of any number of tokens, which become rows.
        value: The argument. A tensor [rows, tokens, ...] or [1, tokens, ...] holds something of every token.
    """
    if isinstance(value, Cache):
        return None
    if isinstance(value, (tuple, list)):
        return tuple(_of_tokens(size, at, part) for part in value)
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() > 3:
        return None
    if value.dim() < 2 or value.shape[1] != size[1] or value.shape[0] not in (1, size[0]):
        return value
    return value.expand(size[0], *value.shape[1:])[torch.arange(size[0], device=at.device), at][:, None]


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    attended: _Attended | _AttendedInPack | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of one token of each row, with the signature of transformers' attention implementations."""
    special = ("sliding_window", "softcap", "s_aux", "position_bias")
    if any(settings.get(name) is not None for name in special) or query.shape[-1] != key.shape[-1]:
        raise UnsupportedError(f"{type(module).__name__} does more than plain attention.")
    if attended is None:
        raise _Projected(key, value)
    return attended.attention(query, scaling).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(LAST_LAYER, _attend)


def _last_of(model: PreTrainedModel) -> nn.Module | None:
    """The last of a model's layers; None if it is unknown, or if others have attached themselves to it."""
    number = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == number]
    if len(lists) != 1:
        return None
    layer = lists[0][-1]
    # An interrupted run would leave out the hooks that follow it, such as those that move or shard the weights.
    hooked = any(
        module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook") for module in layer.modules()
    )
    return None if hooked else layer


@contextmanager
def _output_as(layer: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within it, a layer's hidden states are changed."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _only_first_known(hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states [rows, tokens, size] that are NaN except for each row's first token."""
    return torch.cat([hidden[:, :1], torch.full_like(hidden[:, 1:], torch.nan)], dim=1)
