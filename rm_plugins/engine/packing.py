"""Packs rows of different lengths into one sequence without padding, in which shared prefixes are stored once.

Attention keeps the rows apart, so that a decoder gives the same outputs and gradients as row by row. It is registered as one of
transformers' attention implementations and receives the `Packing` through the keyword arguments of the model. Scoring uses the same
implementation with `rm_plugins.engine.segment_pack`, which keeps prefixes beyond a forward pass and computes no gradients.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rm_plugins.engine.plan import Costs, Stage, plan_batches
from rm_plugins.engine.prefix_cache import has_standard_cache
from rm_plugins.engine.tensors import on_device
from rm_plugins.engine.transformers_internals import takes_attention
from rm_plugins.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "rm_plugins_packed"
"""The name of the attention implementation."""

_LARGEST_KERNEL_HEAD = 256
"""The largest head size of the kernel for variable-length sequences, which also needs a multiple of 8."""

_QUERIES_AT_ONCE = 512
"""How many queries of a row have one mask."""

_UNLIMITED = 2**40
# A packed prefix needs no launch of its own; every row that continues it reads it again.
_COSTS = Costs(launch=8, read=0.02)


@dataclass(frozen=True, slots=True)
class _Span:
    """Tokens ``start`` to ``stop`` of the sequence: a part of a row, which continues the spans in ``before``."""

    start: int
    stop: int
    before: tuple[_Span, ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start


class PackedAttention(Protocol):
    """What the attention implementation calls in place of a model's own attention.

    Args:
        longest: The number of tokens of the longest row.
    """

    longest: int

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, dropout: float
    ) -> torch.Tensor:
        """Causal attention within rows, [1, heads, T, size]; the number of heads of `key` and `value` divides that of `query`."""


class Packing:
    """N rows as one sequence of T tokens.

    Args:
        rows: Token ids per row, [N] non-empty lists.
        share_prefixes: Whether shared prefixes are stored only once.
        device: The device of the tensors.

    >>> packing = Packing([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]])
    >>> packing.ids.tolist(), packing.positions.tolist()
    ([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]], [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]])
    >>> packing.tokens_of(1).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    """

    def __init__(
        self, rows: Sequence[Sequence[int]], *, share_prefixes: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        plan = plan_batches(rows, _UNLIMITED, _COSTS, share_prefixes=share_prefixes)
        self.spans: list[_Span] = []
        self.longest = max(map(len, rows))
        ids: list[int] = []
        positions: list[int] = []
        last: dict[int, _Span] = {}

        def lay_out(stages: Sequence[Stage], before: Sequence[_Span]) -> None:
            for stage in stages:
                placed = []
                for segment in stage.segments:
                    parent = None if segment.parent is None else before[segment.parent]
                    above = () if parent is None else (*parent.before, parent)
                    span = _Span(len(ids), len(ids) + len(segment), above)
                    ids.extend(rows[segment.row][segment.start : segment.stop])
                    positions.extend(range(segment.start, segment.stop))
                    placed.append(span)
                    if not stage.continuations:
                        last[segment.row] = span
                self.spans += placed
                lay_out(stage.continuations, placed)

        lay_out(plan.stages, ())
        self._last = [last[row] for row in plan.computed_as]
        self.ids = on_device([ids], device)
        self.positions = on_device([positions], device)
        self._masks: dict[torch.dtype, torch.Tensor] = {}

    def tokens_of(self, row: int) -> torch.Tensor:
        """The positions of a row's tokens in the sequence, int64 [tokens of the row], on the CPU."""
        span = self._last[row]
        return _places((*span.before, span))

    def _mask(self, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the scores of a block of queries after a prefix, [queries, keys]; the last query sees all keys.

        Every mask of the packing is a part of this one, so that memory is not quadratic in the length of a row. It holds numbers,
        because attention would convert each mask of booleans, and save the copy in every layer.
        """
        if dtype not in self._masks:
            continued = [span for span in self.spans if span.before]
            queries = min(_QUERIES_AT_ONCE, max(map(len, continued)))
            keys = max(len(span) + sum(map(len, span.before)) for span in continued)
            hidden = torch.full((queries, queries), -torch.inf, dtype=dtype, device=self.ids.device).triu(1)
            self._masks[dtype] = pad(hidden, (keys - queries, 0))
        return self._masks[dtype]

    @cached_property
    def _read(self) -> torch.Tensor:
        """The positions of the keys that the spans attend to, span by span."""
        return _places([part for span in self.spans for part in (*span.before, span)]).to(self.ids.device)

    @cached_property
    def _bounds(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """The offsets of the spans' queries and keys, int32 [spans + 1] each, and the largest number of either in a span."""
        queries = [len(span) for span in self.spans]
        keys = [len(span) + sum(map(len, span.before)) for span in self.spans]
        starts = [torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=self.ids.device) for sizes in (queries, keys)]
        return starts[0], starts[1], max(queries), max(keys)

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, dropout: float
    ) -> torch.Tensor:
        """Causal attention within rows, [1, heads, T, size]; the number of heads of `key` and `value` divides that of `query`."""
        query, key, value = in_one_dtype(query, key, value)
        kernel = _kernel(query) if not dropout and query.shape[-1] == value.shape[-1] else None
        if kernel is not None:
            return self._in_kernel(kernel, query, key, value, scale)
        key, value = _repeated(key, query), _repeated(value, query)
        attend = partial(scaled_dot_product_attention, dropout_p=dropout, scale=scale)
        outputs: list[torch.Tensor] = []
        for span in self.spans:
            queries = query[:, :, span.start : span.stop]
            keys, values = (_of_spans(states, (*span.before, span)) for states in (key, value))
            if span.before:
                outputs += self._after_prefix(attend, queries, keys, values)
            else:
                outputs.append(attend(queries, keys, values, is_causal=True))
        return torch.cat(outputs, 2)

    def _after_prefix(
        self, attend: Callable[..., torch.Tensor], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """The attention of the last tokens of a row, by block of queries."""
        above = key.shape[2] - query.shape[2]
        mask = self._mask(query.dtype)
        for start in range(0, query.shape[2], _QUERIES_AT_ONCE):
            block = query[:, :, start : start + _QUERIES_AT_ONCE]
            seen = above + start + block.shape[2]
            # The last queries and keys of the mask, which end together.
            yield attend(block, key[:, :, :seen], value[:, :, :seen], mask[-block.shape[2] :, -seen:])

    def _in_kernel(
        self, kernel: Callable[..., Any], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """The same as `attention` in one call of `varlen_attn`, which aligns a span's queries with the last of its keys."""
        grouped = {}
        if key.shape[1] != query.shape[1]:
            if _takes_grouped_heads(kernel):
                grouped = {"enable_gqa": True}
            else:
                key, value = _repeated(key, query), _repeated(value, query)
        starts, key_starts, longest, longest_keys = self._bounds
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
        attended = kernel(
            queries.contiguous(),
            keys[self._read],
            values[self._read],
            starts,
            key_starts,
            longest,
            longest_keys,
            scale=scale,
            window_size=(-1, 0),
            **grouped,
        )
        assert isinstance(attended, torch.Tensor)  # it would be a pair if more outputs were requested
        return attended.transpose(0, 1)[None]


def in_one_dtype(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values in autocast's type where it is on: rotary embeddings leave queries and keys in float32, but not values."""
    if not torch.is_autocast_enabled(query.device.type):
        return query, key, value
    dtype = torch.get_autocast_dtype(query.device.type)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _kernel(query: torch.Tensor) -> Callable[..., Any] | None:
    """torch's attention for variable-length sequences; None if this torch has no causal one or it does not support these queries."""
    size = query.shape[-1]
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16) or size % 8 or size > _LARGEST_KERNEL_HEAD:
        return None
    if not _has_flash_attention(query.device):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in _arguments(varlen_attn) else None


@cache
def _has_flash_attention(device: torch.device) -> bool:
    """Whether torch has flash attention for a GPU: Ampere or newer."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _takes_grouped_heads(kernel: Callable[..., Any]) -> bool:
    """Whether the kernel allows fewer key heads than query heads; that of torch 2.11 does not."""
    return "enable_gqa" in _arguments(kernel)


def _repeated(states: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Keys or values [1, heads, T, size] with as many heads as the queries have."""
    repeats = query.shape[1] // states.shape[1]
    return states.repeat_interleave(repeats, 1) if repeats > 1 else states


def _of_spans(states: torch.Tensor, spans: Sequence[_Span]) -> torch.Tensor:
    """The states [1, heads, tokens of the spans, size] of states [1, heads, T, size]."""
    parts = [states[:, :, span.start : span.stop] for span in spans]
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


def _places(spans: Sequence[_Span]) -> torch.Tensor:
    return torch.cat([torch.arange(span.start, span.stop) for span in spans])


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: PackedAttention | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The packed attention, with the signature of transformers' attention implementations."""
    window = settings.get("sliding_window")
    special = [name for name in ("softcap", "s_aux", "position_bias") if settings.get(name) is not None]
    if packing is None:
        reason = "does not pass its keyword arguments to its attention"
    elif attention_mask is not None:
        reason = "has a mask of its own"
    elif special:
        reason = f"uses {', '.join(special)}"
    elif window is not None and window < packing.longest:
        reason = "has a sliding window"
    else:
        return packing.attention(query, key, value, scaling, dropout).transpose(1, 2).contiguous(), None
    raise UnsupportedError(f"{type(module).__name__} {reason}.")


ALL_ATTENTION_FUNCTIONS.register(PACKED, _attend)


def attends_packed(model: PreTrainedModel) -> bool:
    """Whether a decoder's attention can be replaced, as packing needs, and attention is the only way in which it mixes tokens."""
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return takes_attention(model) and {*layers} <= {"full_attention", "sliding_attention"}


def attention_window(model: PreTrainedModel) -> float:
    """The row length up to which every token sees all earlier ones. Needed because not every layer passes its window to its attention."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return math.inf if has_standard_cache(model) or window is None else window
