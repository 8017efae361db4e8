"""Packed rows, and attention over them by other means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from rm_plugins.engine.packing import Packing

QueryKeyValue = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


PROMPT = list(range(10, 50))


TREE = [
    [*PROMPT, *range(50, 80), 1],
    [*PROMPT, *range(50, 80), 2, 3, 4],
    [*PROMPT, 5],
    [*PROMPT, *range(50, 80)],
    [*PROMPT, 5],
    [7],
    PROMPT,
    [8, 9],
]
"""Beginnings within beginnings, rows that begin others, duplicates, and rows of their own."""


@st.composite
def row_lists(draw: st.DrawFn) -> list[list[int]]:
    tokens = st.lists(st.integers(0, 3), max_size=30)
    rows = [[draw(st.integers(0, 3)), *draw(tokens)] for _ in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.sampled_from(rows))
        rows.append([*start[: draw(st.integers(1, len(start)))], *draw(tokens)])
    return list(draw(st.permutations(rows)))


def states(
    packing: Packing, heads: int = 4, key_heads: int = 4, size: int = 8, dtype: torch.dtype = torch.float64
) -> QueryKeyValue:
    generator = torch.Generator().manual_seed(0)
    tokens = packing.ids.shape[1]
    query, key, value = (
        torch.randn(1, count, tokens, size, dtype=dtype, generator=generator).requires_grad_()
        for count in (heads, key_heads, key_heads)
    )
    return query, key, value


def by_row(packing: Packing, rows: Sequence[Any], inputs: QueryKeyValue, scale: float | None) -> list[torch.Tensor]:
    """Causal attention of each row by itself, written out, [heads, tokens of the row, size] each."""
    attended = []
    for number in range(len(rows)):
        query, key, value = (states[0][:, packing.tokens_of(number)] for states in inputs)
        repeats = query.shape[0] // key.shape[0]
        key, value = key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
        weights = query @ key.transpose(1, 2) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        ahead = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)
        attended.append(weights.masked_fill(ahead, -torch.inf).softmax(-1) @ value)
    return attended


def from_packed(packing: Packing, rows: Sequence[Any], output: torch.Tensor) -> list[torch.Tensor]:
    return [output[0][:, packing.tokens_of(number)] for number in range(len(rows))]


def gradients(outputs: Sequence[torch.Tensor], inputs: QueryKeyValue) -> tuple[torch.Tensor, ...]:
    """Of a loss in which every row, head, token and feature counts differently."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(output.shape, dtype=output.dtype, generator=generator) for output in outputs]
    loss = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
    assert isinstance(loss, torch.Tensor)
    return torch.autograd.grad(loss, inputs)


def assert_same_attention(
    packing: Packing, rows: Sequence[Any], inputs: QueryKeyValue, output: torch.Tensor, scale: float | None
) -> None:
    packed, expected = from_packed(packing, rows, output), by_row(packing, rows, inputs, scale)
    torch.testing.assert_close(packed, expected)
    torch.testing.assert_close(gradients(packed, inputs), gradients(expected, inputs))
