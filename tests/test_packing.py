"""Packed rows: every row is there once, and attends as if it were alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rm_plugins.engine import packing as packing_module
from rm_plugins.engine.packing import PACKED, Packing
from rm_plugins.engine.transformers_internals import attention_as
from rm_plugins.errors import UnsupportedError
from tests.test_scoring_engine import make_model

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


def distinct_tokens(rows: Sequence[Sequence[int]]) -> int:
    return sum(map(len, {tuple(row) for row in rows}))


@given(row_lists(), st.booleans())
def test_every_row_is_found_again(rows: list[list[int]], share_prefixes: bool) -> None:
    packing = Packing(rows, share_prefixes=share_prefixes)
    assert packing.ids.shape == packing.positions.shape
    assert packing.ids.dtype == packing.positions.dtype == torch.int64
    assert packing.longest == max(map(len, rows))
    for number, row in enumerate(rows):
        tokens = packing.tokens_of(number)
        assert packing.ids[0, tokens].tolist() == row
        assert packing.positions[0, tokens].tolist() == list(range(len(row)))


@given(row_lists(), st.booleans())
def test_the_spans_are_the_sequence_and_each_continues_those_above_it(rows: list[list[int]], share_prefixes: bool) -> None:
    packing = Packing(rows, share_prefixes=share_prefixes)
    spans = packing.spans
    assert (spans[0].start, spans[-1].stop) == (0, packing.ids.shape[1])
    assert all(left.stop == right.start for left, right in pairwise(spans))
    for span in spans:
        assert len(span) > 0
        assert all(part in spans and part.stop <= span.start for part in span.before)
        places = [
            position for part in (*span.before, span) for position in packing.positions[0, part.start : part.stop].tolist()
        ]
        assert places == list(range(len(places)))


@given(row_lists())
def test_only_what_is_shared_stands_once(rows: list[list[int]]) -> None:
    whole = Packing(rows, share_prefixes=False)
    assert not any(span.before for span in whole.spans)
    assert whole.ids.shape[1] == distinct_tokens(rows)
    assert Packing(rows).ids.shape[1] <= distinct_tokens(rows)


def test_beginnings_within_beginnings() -> None:
    packing = Packing(TREE)
    # The prompt's last token ends a row of its own, so that it is no part of what the others share; so does the longer one's.
    assert packing.ids.shape[1] == 39 + 30 + 2 + 4 + 1 + 2 + 1 + 1 + 2
    assert sorted({len(span.before) for span in packing.spans}) == [0, 1, 2]
    assert packing.tokens_of(2).tolist() == packing.tokens_of(4).tolist()


def test_the_device_is_kept() -> None:
    packing = Packing(TREE, device="meta")
    tensors = (packing.ids, packing.positions, packing._read, *packing._bounds[:2])
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {mask.device.type for mask in packing._masks if mask is not None} == {"meta"}


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


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_attention_is_that_of_the_rows_by_themselves(key_heads: int, scale: float | None, share_prefixes: bool) -> None:
    packing = Packing(TREE, share_prefixes=share_prefixes)
    inputs = states(packing, key_heads=key_heads)
    assert_same_attention(packing, TREE, inputs, packing.attention(*inputs, scale, 0.0), scale)


@given(row_lists())
@hypothesis_settings(max_examples=30)
def test_attention_of_any_rows(rows: list[list[int]]) -> None:
    packing = Packing(rows)
    inputs = states(packing, heads=2, key_heads=1, size=3)
    assert_same_attention(packing, rows, inputs, packing.attention(*inputs, None, 0.0), None)


def test_values_of_another_size_than_keys() -> None:
    packing = Packing(TREE)
    query, key, _ = states(packing)
    value = states(packing, size=5)[2]
    output = packing.attention(query, key, value, None, 0.0)
    torch.testing.assert_close(from_packed(packing, TREE, output), by_row(packing, TREE, (query, key, value), None))


def test_dropout_drops() -> None:
    packing = Packing(TREE)
    inputs = states(packing)
    torch.manual_seed(0)
    dropped = packing.attention(*inputs, None, 0.5)
    assert not torch.allclose(dropped, packing.attention(*inputs, None, 0.0))
    first = next(span.start for span in packing.spans if not span.before)
    # The first token of a row sees itself alone: it is kept, twice as large, or dropped.
    ratio = dropped[0, :, first] / inputs[2][0, :, first]
    assert set(ratio.round(decimals=6).flatten().tolist()) <= {0.0, 2.0}


def test_autocast_computes_in_its_own_type() -> None:
    packing = Packing(TREE)
    query, key, value = states(packing, dtype=torch.float32)
    plain = packing.attention(query, key, value, None, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        attended = packing.attention(query, key, value.bfloat16(), None, 0.0)
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(attended.float(), plain, rtol=0.05, atol=0.05)


# --- On an accelerator -----------------------------------------------------------------------------------------------------


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` documents, as plain operations; sequences are aligned at their ends."""
    assert query.ndim == key.ndim == value.ndim == 3
    assert key.shape[:2] == value.shape[:2]
    assert query.shape[-1] == key.shape[-1]
    assert query.is_contiguous()
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    query_starts, key_starts = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert (query_starts[0], query_starts[-1], key_starts[0], key_starts[-1]) == (0, len(query), 0, len(key))
    assert max_q == max(stop - start for start, stop in pairwise(query_starts))
    assert max_k == max(stop - start for start, stop in pairwise(key_starts))
    repeats = query.shape[1] // key.shape[1]
    if repeats != 1:
        assert enable_gqa and query.shape[1] % key.shape[1] == 0
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    outputs = []
    for (start, stop), (key_start, key_stop) in zip(pairwise(query_starts), pairwise(key_starts), strict=True):
        weights = torch.einsum("qhd,khd->hqk", query[start:stop], key[key_start:key_stop])
        weights = weights * (query.shape[-1] ** -0.5 if scale is None else scale)
        offset = (key_stop - key_start) - (stop - start)
        behind = torch.arange(stop - start)[:, None] + offset - torch.arange(key_stop - key_start)
        left, right = window_size
        hidden = ((behind > left) & (left >= 0)) | ((-behind > right) & (right >= 0))
        outputs.append(
            torch.einsum("hqk,khd->qhd", weights.masked_fill(hidden, -torch.inf).softmax(-1), value[key_start:key_stop])
        )
    return torch.cat(outputs)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Replaces the kernel, which no CPU has; gives the types of the queries that it is called with."""
    module = pytest.importorskip("torch.nn.attention.varlen", reason="this torch has no attention for sequences of any length")
    calls: list[torch.dtype] = []

    def called(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(query.dtype)
        return varlen_attn(query, *args, **kwargs)

    called.__signature__ = inspect.signature(varlen_attn)  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "varlen_attn", called)
    monkeypatch.setattr(packing_module, "_has_flash_attention", lambda device: True)
    return calls


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_the_kernel_gives_the_same(key_heads: int, scale: float | None, share_prefixes: bool) -> None:
    packing = Packing(TREE, share_prefixes=share_prefixes)
    inputs = states(packing, key_heads=key_heads)
    output = packing._in_kernel(varlen_attn, *inputs, scale)
    torch.testing.assert_close(output, packing.attention(*inputs, scale, 0.0))
    assert_same_attention(packing, TREE, inputs, output, scale)


@given(row_lists())
@hypothesis_settings(max_examples=30)
def test_the_kernel_gives_the_same_for_any_rows(rows: list[list[int]]) -> None:
    packing = Packing(rows)
    inputs = states(packing, heads=2, key_heads=1, size=3)
    torch.testing.assert_close(packing._in_kernel(varlen_attn, *inputs, None), packing.attention(*inputs, None, 0.0))


def test_a_kernel_that_takes_no_grouped_heads_is_given_repeated_ones() -> None:
    """torch 2.11 has no `enable_gqa`."""

    def older(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        assert key.shape[1] == value.shape[1] == query.shape[1]
        return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)

    packing = Packing(TREE)
    inputs = states(packing, key_heads=2)
    torch.testing.assert_close(packing._in_kernel(older, *inputs, None), packing.attention(*inputs, None, 0.0))


def test_the_installed_kernel_takes_the_arguments() -> None:
    module = pytest.importorskip("torch.nn.attention.varlen", reason="this torch has no attention for sequences of any length")
    packing = Packing(TREE)
    calls: list[dict[str, Any]] = []

    def bound(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(inspect.signature(module.varlen_attn).bind(*args, **kwargs).arguments)
        return torch.zeros_like(args[0])

    bound.__signature__ = inspect.signature(module.varlen_attn)  # type: ignore[attr-defined]
    for key_heads in (4, 2):
        packing._in_kernel(bound, *states(packing, key_heads=key_heads), 0.3)
    assert [call["window_size"] for call in calls] == [(-1, 0)] * 2


class OnAccelerator(torch.Tensor):
    """A tensor that says it is on an accelerator."""

    is_cuda = True


class TestWhichComputationRuns:
    def attention(
        self, dtype: torch.dtype, dropout: float = 0.0, tensor: type[torch.Tensor] = OnAccelerator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        packing = Packing(TREE)
        plain = [state.detach() for state in states(packing, key_heads=2, dtype=torch.float32)]
        expected = packing.attention(plain[0], plain[1], plain[2], None, 0.0)
        query, key, value = (state.to(dtype).as_subclass(tensor) for state in plain)
        attended = packing.attention(query, key, value, None, dropout)
        return attended.as_subclass(torch.Tensor), expected

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_runs_in_the_kernel(self, dtype: torch.dtype, kernel: list[torch.dtype]) -> None:
        attended, expected = self.attention(dtype)
        assert kernel == [dtype]
        torch.testing.assert_close(attended.float(), expected, rtol=0.05, atol=0.05)

    def test_autocast_runs_in_the_kernel(self, kernel: list[torch.dtype]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            attended, expected = self.attention(torch.float32)
        assert kernel == [torch.bfloat16]
        torch.testing.assert_close(attended.float(), expected.float(), rtol=0.05, atol=0.05)

    def test_what_the_kernel_cannot_do(self, kernel: list[torch.dtype]) -> None:
        attended, expected = self.attention(torch.float32)
        torch.testing.assert_close(attended, expected)
        self.attention(torch.bfloat16, dropout=0.1)
        self.attention(torch.bfloat16, tensor=torch.Tensor)
        assert kernel == []

    @pytest.mark.parametrize("size", [4, 12, 264])
    def test_heads_that_the_kernel_does_not_take(self, size: int, kernel: list[torch.dtype]) -> None:
        query = torch.zeros(1, 1, 3, size, dtype=torch.bfloat16).as_subclass(OnAccelerator)
        assert packing_module._kernel(query) is None
        assert packing_module._kernel(torch.zeros(1, 1, 3, 64, dtype=torch.bfloat16).as_subclass(OnAccelerator)) is not None

    def test_a_gpu_without_flash_attention(self, kernel: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packing_module, "_has_flash_attention", lambda device: False)
        attended, expected = self.attention(torch.bfloat16)
        torch.testing.assert_close(attended.float(), expected, rtol=0.05, atol=0.05)
        assert kernel == []

    def test_a_torch_whose_kernel_has_no_window(self, kernel: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, key, value, is_causal=False: query)
        attended, expected = self.attention(torch.bfloat16)
        torch.testing.assert_close(attended.float(), expected, rtol=0.05, atol=0.05)


# --- As transformers' attention --------------------------------------------------------------------------------------------


class TestTheAttentionImplementation:
    attend: Callable[..., Any] = staticmethod(ALL_ATTENTION_FUNCTIONS[PACKED])

    def test_is_the_packing(self) -> None:
        packing = Packing(TREE)
        inputs = states(packing, key_heads=2)
        attended, weights = self.attend(
            torch.nn.Module(), *inputs, None, dropout=0.0, scaling=0.3, packing=packing, sliding_window=None, softcap=None
        )
        assert weights is None
        assert attended.is_contiguous()
        torch.testing.assert_close(attended, packing.attention(*inputs, 0.3, 0.0).transpose(1, 2))

    @pytest.mark.parametrize("window", [max(map(len, TREE)), max(map(len, TREE)) + 1])
    def test_takes_rows_within_the_window(self, window: int) -> None:
        packing = Packing(TREE)
        self.attend(torch.nn.Module(), *states(packing), None, packing=packing, sliding_window=window)

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"packing": None}, "does not hand its keyword arguments to its attention"),
            ({"attention_mask": torch.zeros(1, 1, 1, 1)}, "has a mask of its own"),
            ({"softcap": 50.0}, "uses softcap"),
            ({"s_aux": torch.zeros(4), "position_bias": torch.zeros(4)}, "uses s_aux, position_bias"),
            ({"sliding_window": max(map(len, TREE)) - 1}, "has a sliding window"),
        ],
    )
    def test_refuses_what_it_would_compute_otherwise(self, settings: dict[str, Any], reason: str) -> None:
        packing = Packing(TREE)
        with pytest.raises(UnsupportedError, match=rf"^Module {reason}\.$"):
            self.attend(torch.nn.Module(), *states(packing), **{"attention_mask": None, "packing": packing, **settings})


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_implementation_is_restored(error: type[Exception] | None) -> None:
    model = make_model("llama")
    before = model.config._attn_implementation
    assert before != PACKED
    try:
        with attention_as(model, PACKED):
            assert model.config._attn_implementation == PACKED
            with attention_as(model, "eager"):
                assert model.config._attn_implementation == "eager"
            assert model.config._attn_implementation == PACKED
            if error is not None:
                raise error
    except ValueError:
        assert error is ValueError
    assert model.config._attn_implementation == before
