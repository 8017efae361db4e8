"""Runs segments of rows as one sequence without padding, where segments of a prompt read its cached keys together and without a copy.

The attention of a token has several parts: its own segment, and each cached segment before it. Every part is computed by itself, for all
tokens that attend to the same keys. The parts are then merged by the logarithms of their sums of exponentials (log-sum-exp), as in
flash attention: the weight of a part in the softmax is its share of the whole sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Any

import torch

from rm_plugins.engine.packing import attends_packed, in_one_dtype
from rm_plugins.engine.placement import devices_of
from rm_plugins.engine.plan import Segment
from rm_plugins.engine.tensors import on_device, padded
from rm_plugins.engine.transformers_internals import attends_plainly
from rm_plugins.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
"""torch's attention on the CPU that also returns the log-sum-exp. torch has no public name for it."""


def runs_packed(model: PreTrainedModel) -> bool:
    """Whether segments of a decoder's rows can run as a `SegmentPack`: on a CPU, with plain attention that can be replaced."""
    on_cpu = {device.type for device in devices_of(model)} == {"cpu"}
    return on_cpu and hasattr(torch.ops.aten, _KERNEL) and attends_packed(model) and attends_plainly(model)


@dataclass(frozen=True, eq=False, slots=True)
class _Cached:
    """Tokens ``start`` to ``stop`` of a pack that has run, with the keys and values of the pack's layers."""

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    start: int
    stop: int

    def of_layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each [key heads, 1, tokens, size]."""
        keys, values = self.layers[layer]
        return keys[:, :, self.start : self.stop], values[:, :, self.start : self.stop]


@dataclass(frozen=True, slots=True)
class PackedPrefixes:
    """The cached segments that each segment of a stage ends with, first tokens first, [segments]."""

    chains: Sequence[tuple[_Cached, ...]]

    @classmethod
    def of(cls, packs: Sequence[SegmentPack]) -> PackedPrefixes:
        """The segments of the packs of a stage."""
        return cls([chain for pack in packs for chain in pack.chains])


class SegmentPack:
    """N segments of rows as one sequence of T tokens, for one run of a model.

    Segments that continue the same prefix must be neighbours.

    Args:
        before: The prefixes that are continued; None at the start of the rows.
        segments: The segments, [N].
        rows: Token ids per row.
        device: The device of the tensors.
        keep: Whether other packs will continue this one.
    """

    def __init__(
        self,
        before: PackedPrefixes | None,
        segments: Sequence[Segment],
        rows: Sequence[Sequence[int]],
        device: torch.device,
        *,
        keep: bool,
    ) -> None:
        self.longest = max(segment.stop for segment in segments)
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        tokens = [token for segment in segments for token in rows[segment.row][segment.start : segment.stop]]
        self.ids = padded([tokens], 0, device)["input_ids"]
        self._positions = on_device([[at for segment in segments for at in range(segment.start, segment.stop)]], device)
        self._starts = [0, *accumulate(map(len, segments))]
        self._keep = keep
        self._layer = 0
        continued = [() if before is None or segment.parent is None else before.chains[segment.parent] for segment in segments]
        self._prefixes = _neighbours(continued)
        self.chains = [
            (*chain, _Cached(self._layers, start, stop))
            for chain, (start, stop) in zip(continued, pairwise(self._starts), strict=True)
        ]

    def arguments(self) -> dict[str, Any]:
        """The arguments of a backbone's ``forward``, with the attention of `rm_plugins.engine.packing`."""
        return {"input_ids": self.ids, "position_ids": self._positions, "use_cache": False, "packing": self}

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """The positions in the sequence of one token of each segment, int64 [N], given their positions in the segments, int64 [N]."""
        return places + on_device(self._starts[:-1], places.device)

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, dropout: float
    ) -> torch.Tensor:
        """Causal attention within rows, [1, heads, T, size]; the number of heads of `key` and `value` divides that of `query`."""
        if dropout or query.shape[-1] != value.shape[-1]:
            raise UnsupportedError("Dropout, or values of another size than keys, cannot be computed in parts.")
        return self._attended(query, key, value, scale, self._starts, self._starts[1:], is_causal=True)

    def attention_of(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, at: torch.Tensor
    ) -> torch.Tensor:
        """The attention of one token of each segment, [1, heads, N, size].

        Args:
            query: The tokens' queries, [1, heads, N, size].
            key: The keys of the sequence, [1, key heads, T, size].
            value: Its values, [1, key heads, T, size].
            scale: What the products of queries and keys are multiplied with.
            at: The tokens' positions in the sequence, int64 [N].
        """
        return self._attended(query, key, value, scale, range(len(at) + 1), (at + 1).tolist(), is_causal=False)

    def keep(self, key: torch.Tensor, value: torch.Tensor) -> int:
        """Keep the keys and values of the next layer for the packs that continue this one; returns the number of the layer."""
        if self._keep:
            _, key, value = in_one_dtype(key, key, value)
            # Contiguous, because a view may hold more memory: that of the queries that were computed with it.
            self._layers.append((key[0, :, None].contiguous(), value[0, :, None].contiguous()))
        self._layer += 1
        return self._layer - 1

    def _attended(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        starts: Sequence[int],
        seen: Sequence[int],
        *,
        is_causal: bool,
    ) -> torch.Tensor:
        """The attention of some queries of each segment, [1, heads, queries, size].

        Args:
            query: The queries, segment by segment, [1, heads, queries, size].
            key: The keys of the sequence, [1, key heads, T, size].
            value: Its values, [1, key heads, T, size].
            scale: What the products of queries and keys are multiplied with.
            starts: The position of each segment's first query, and the number of queries, [N + 1].
            seen: The position after the last key of each segment that its last query attends to, [N].
            is_causal: Whether each query sees one key more than the one before it.
        """
        query, key, value = in_one_dtype(query, key, value)
        layer = self.keep(key, value)
        # Key heads take the place of rows. So the query heads that share one read it without copies.
        queries = query[0].reshape(key.shape[1], -1, *query.shape[2:])
        keys, values = key[0, :, None], value[0, :, None]
        attend = partial(_part, scale=scale)
        merged, sums = _results(queries)
        for number, (start, stop) in enumerate(pairwise(starts)):
            own = slice(self._starts[number], seen[number])
            output, sum_ = attend(queries[:, :, start:stop], keys[:, :, own], values[:, :, own], is_causal=is_causal)
            merged[:, :, start:stop], sums[:, :, start:stop] = output, sum_
        for prefix, first, last in self._prefixes:
            of_prefix = slice(starts[first], starts[last])
            output, sum_ = attend(queries[:, :, of_prefix], *prefix.of_layer(layer), is_causal=False)
            _merge(merged[:, :, of_prefix], sums[:, :, of_prefix], output, sum_)
        return merged.to(query.dtype).flatten(0, 1)[None]


def _neighbours(chains: Sequence[tuple[_Cached, ...]]) -> list[tuple[_Cached, int, int]]:
    """Each cached segment with the first segment that continues it and the one after the last."""
    continued = []
    for depth in range(max(map(len, chains))):
        numbered = ((chain[depth] if depth < len(chain) else None, number) for number, chain in enumerate(chains))
        for cached, neighbours in groupby(numbered, key=lambda pair: pair[0]):
            numbers = [number for _, number in neighbours]
            if cached is not None:
                continued.append((cached, numbers[0], numbers[-1] + 1))
    return continued


def _results(queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for the attention of queries [key heads, shared by, queries, size] and for its log-sum-exp, [key heads, shared by, queries]."""
    groups, shared, tokens, size = queries.shape
    exact = torch.promote_types(queries.dtype, torch.float32)
    # In the order in which a model's next projection reads them.
    outputs = torch.empty(tokens, groups, shared, size, dtype=exact, device=queries.device)
    return outputs.permute(1, 2, 0, 3), torch.empty(groups, shared, tokens, dtype=exact, device=queries.device)


def _part(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, scale: float | None, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention to some keys, [key heads, shared by, queries, size], and its log-sum-exp, [key heads, shared by, queries].

    Args:
        queries: [key heads, shared by, queries, size].
        keys: [key heads, 1, keys, size].
        values: [key heads, 1, keys, size].
        scale: What the products of queries and keys are multiplied with.
        is_causal: Whether the first query sees the first key only, the second one two keys, and so on.
    """
    shared = queries.shape[1]
    kernel: Any = getattr(torch.ops.aten, _KERNEL)
    output, sums = kernel(
        queries, keys.expand(-1, shared, -1, -1), values.expand(-1, shared, -1, -1), 0.0, is_causal, scale=scale
    )
    return output, sums


def _merge(merged: torch.Tensor, sums: torch.Tensor, output: torch.Tensor, output_sums: torch.Tensor) -> None:
    """Merge the attention to further keys into the attention so far, both with their log-sum-exp."""
    share = torch.sigmoid(output_sums - sums)
    merged.lerp_(output.to(merged.dtype), share[..., None])
    torch.logaddexp(sums, output_sums, out=sums)
