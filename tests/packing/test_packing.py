"""Packed rows: every row is there once, and attends as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rm_plugins.engine.packing import PACKED, Packing
from rm_plugins.engine.transformers_internals import attention_as
from rm_plugins.errors import UnsupportedError
from tests.packing.conftest import TREE, assert_same_attention, by_row, from_packed, row_lists, states
from tests.test_scoring_engine import make_model


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
    assert packing._mask(torch.float32).device.type == "meta"


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
            ({"packing": None}, "does not pass its keyword arguments to its attention"),
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
