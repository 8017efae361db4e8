"""Segments of rows in one sequence, which read the cached keys of their prefixes together."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from rm_plugins.engine import segment_pack
from rm_plugins.engine.plan import Costs, Segment, Stage, plan_batches
from rm_plugins.engine.segment_pack import PackedPrefixes, SegmentPack
from rm_plugins.errors import UnsupportedError
from tests.packing.conftest import TREE, row_lists

CPU = torch.device("cpu")
HEADS, SIZE, LAYERS = 4, 8, 2
EVERYTHING_IS_SHARED = Costs(launch=0, read=0)


class Layers:
    """Random queries, keys and values of all tokens of rows, by layer; tokens of shared prefixes have the same ones."""

    def __init__(self, rows: Sequence[Sequence[int]], key_heads: int, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)
        prefixes = {tuple(row[: at + 1]) for row in rows for at in range(len(row))}
        self.places = {prefix: place for place, prefix in enumerate(sorted(prefixes))}
        self.of_prefixes = [
            [
                torch.randn(1, heads, len(prefixes), SIZE, dtype=dtype, generator=generator)
                for heads in (HEADS, key_heads, key_heads)
            ]
            for _ in range(LAYERS)
        ]

    def of(self, row: Sequence[int], start: int, stop: int) -> list[list[torch.Tensor]]:
        """By layer, queries, keys and values of the tokens `start` to `stop` of a row."""
        places = [self.places[tuple(row[: at + 1])] for at in range(start, stop)]
        return [[states[:, :, places] for states in layer] for layer in self.of_prefixes]

    def attention(self, row: Sequence[int], scale: float | None) -> list[torch.Tensor]:
        """By layer, the causal attention of a whole row, [heads, tokens, size]."""
        return [
            scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)[0]
            for query, key, value in self.of(row, 0, len(row))
        ]


def packs(
    layers: Layers, rows: Sequence[Sequence[int]], budget: int, scale: float | None
) -> Iterator[tuple[Segment, list[torch.Tensor]]]:
    """Each segment of a plan that shares all prefixes, with its attention in all layers, [heads, tokens, size] or of its last token."""

    def run(stages: Sequence[Stage], before: PackedPrefixes | None) -> Iterator[tuple[Segment, list[torch.Tensor]]]:
        for stage in stages:
            ran = []
            for batch in stage.batches:
                keeps = bool(stage.continuations)
                pack = SegmentPack(before, batch.segments, rows, CPU, keep=keeps)
                lengths = [len(segment) for segment in batch.segments]
                parts = [layers.of(rows[segment.row], segment.start, segment.stop) for segment in batch.segments]
                outputs: list[Sequence[torch.Tensor]] = []
                for layer in range(LAYERS):
                    query, key, value = (torch.cat([part[layer][which] for part in parts], 2) for which in range(3))
                    if layer < LAYERS - 1:
                        outputs.append(torch.split(pack.attention(query, key, value, scale, 0.0)[0], lengths, 1))
                    elif keeps:  # nothing is read
                        pack.keep(key, value)
                    else:
                        at = pack.at(torch.tensor(lengths) - 1)
                        outputs.append(torch.split(pack.attention_of(query[:, :, at], key, value, scale, at)[0], 1, 1))
                yield from zip(batch.segments, map(list, zip(*outputs, strict=True)), strict=True)
                ran.append(pack)
            if stage.continuations:
                yield from run(stage.continuations, PackedPrefixes.of(ran))

    yield from run(plan_batches(rows, budget, EVERYTHING_IS_SHARED, share_prefixes=True, packs=True).stages, None)


def check(rows: Sequence[Sequence[int]], key_heads: int, budget: int, scale: float | None = None) -> int:
    """Compare the attention in packs with that of whole rows; returns how many segments continue a prefix."""
    layers, continued = Layers(rows, key_heads), 0
    for segment, outputs in packs(layers, rows, budget, scale):
        expected = layers.attention(rows[segment.row][: segment.stop], scale)
        for output, of_row in zip(outputs, expected, strict=False):
            torch.testing.assert_close(output, of_row[:, segment.stop - output.shape[1] :])
        continued += segment.start > 0
    return continued


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_attention_is_that_of_whole_rows(key_heads: int, scale: float | None) -> None:
    assert check(TREE, key_heads, 4_000, scale) >= 5
    assert check(TREE, key_heads, 7, scale) > 15  # prefixes in pieces


@given(row_lists(), st.integers(1, 60))
def test_attention_of_any_rows(rows: list[list[int]], budget: int) -> None:
    check(rows, 2, budget)


def test_a_wrong_merge_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_pack, "_merge", lambda *_: None)
    with pytest.raises(AssertionError):
        check(TREE, 2, 4_000)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_part_comes_with_its_log_sum_exp(dtype: torch.dtype) -> None:
    query, key, value = (torch.randn(2, heads, 40, SIZE, dtype=dtype) for heads in (3, 1, 1))
    output, sums = segment_pack._part(query, key, value, scale=0.5, is_causal=False)
    products = query.double() @ key.double().mT * 0.5
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(sums.double(), products.logsumexp(-1), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(output.double(), products.softmax(-1) @ value.double(), atol=tolerance, rtol=tolerance)


def test_neighbours_read_a_prefix_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    part = segment_pack._part

    def counted(queries: torch.Tensor, keys: torch.Tensor, *args: torch.Tensor, scale: float | None, is_causal: bool) -> object:
        calls.append((queries.shape[2], keys.shape[2]))
        return part(queries, keys, *args, scale=scale, is_causal=is_causal)

    monkeypatch.setattr(segment_pack, "_part", counted)
    prompts = [[prompt, *range(10, 30)] for prompt in (1, 2)]
    check([[*prompt, 50 + number, 60] for prompt in prompts for number in range(3)], 2, 4_000)
    # Two tokens of three rows read each prompt; in the last layer, one token of each.
    assert sorted(call for call in calls if call[1] == 21 and call[0] != 21) == [(3, 21)] * 2 + [(6, 21)] * 2


def test_what_is_kept_is_freed_at_once() -> None:
    """A prompt's keys may be large, so their memory must not wait for a collection of cycles."""
    segments = [Segment(0, 0, 5)]
    pack = SegmentPack(None, segments, [[1, 2, 3, 4, 5]], CPU, keep=True)
    fused = torch.randn(1, 5, 3 * HEADS * SIZE)
    query, key, value = (states.view(1, 5, HEADS, SIZE).transpose(1, 2) for states in fused.chunk(3, 2))
    pack.attention(query, key, value, None, 0.0)
    (cached,) = PackedPrefixes.of([pack]).chains[0]
    assert all(states._base is None and states.untyped_storage().nbytes() == 5 * HEADS * SIZE * 4 for states in pack._layers[0])
    assert torch.equal(cached.of_layer(0)[0][:, 0], key[0])
    del cached
    gone = weakref.ref(pack)
    gc.disable()
    try:
        del pack
        assert gone() is None
    finally:
        gc.enable()


def test_autocast_keeps_one_type() -> None:
    """Rotary embeddings leave queries and keys in float32, but not values; the last layer of a prefix only keeps them."""
    keys, values = torch.randn(1, 2, 3, SIZE), torch.randn(1, 2, 3, SIZE, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        prompt = SegmentPack(None, [Segment(0, 0, 3)], [[1, 2, 3]], CPU, keep=True)
        prompt.keep(keys, values)
        ends = SegmentPack(PackedPrefixes.of([prompt]), [Segment(0, 3, 6, 0)], [[1, 2, 3, 4, 5, 6]], CPU, keep=False)
        output = ends.attention(torch.randn(1, HEADS, 3, SIZE), keys, values, None, 0.0)
    assert output.dtype == torch.bfloat16


def test_refuses_what_it_would_compute_otherwise() -> None:
    pack = SegmentPack(None, [Segment(0, 0, 3)], [[1, 2, 3]], CPU, keep=False)
    states = torch.randn(1, HEADS, 3, SIZE)
    with pytest.raises(UnsupportedError, match="in parts"):
        pack.attention(states, states, states, None, 0.1)
    with pytest.raises(UnsupportedError, match="in parts"):
        pack.attention(states, states, states[..., :4], None, 0.0)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 40))
def test_neighbours_stay_together(lengths: list[int], budget: int) -> None:
    rows = [[prompt, prompt, prompt, *range(10, 10 + length), end] for prompt, length in enumerate(lengths) for end in (5, 6)]
    plan = plan_batches(rows, budget, EVERYTHING_IS_SHARED, share_prefixes=True, packs=True)
    for batch in plan.batches:
        assert batch.padded_tokens <= budget or len(batch.segments) == 1
        parents = [segment.parent for segment in batch.segments if segment.parent is not None]
        assert all(one <= other for one, other in pairwise(parents))
