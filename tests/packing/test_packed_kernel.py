"""Packed attention in one kernel, and which computation runs where."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from rm_plugins.engine import packing as packing_module
from rm_plugins.engine.packing import Packing
from tests.packing.conftest import TREE, assert_same_attention, row_lists, states

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
