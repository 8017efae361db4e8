"""Forward and backward passes on a device other than the CPU that every machine has: a mix of devices is an error on it, as on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.engine.packing import Packing
from rm_plugins.engine.rows_forward import RowsForward
from rm_plugins.engine.token_forward import TokenForward
from tests.test_devices import ROWS
from tests.test_scoring_engine import make_model

META = torch.device("meta")


@pytest.fixture(autouse=True)
def nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons read numbers, which this device has not."""
    monkeypatch.setattr(RowsForward, "_is_due", lambda self, key: False)
    monkeypatch.setattr(TokenForward, "_compare_head", lambda self, row: None)


def moved(family: str, dtype: torch.dtype) -> Any:
    return make_model(family).to(META, dtype).train()


def assert_learns(model: Any, *outputs: torch.Tensor) -> None:
    assert {output.device for output in outputs} == {META}
    torch.autograd.backward(torch.stack([output.float().sum() for output in outputs]).sum())
    assert {weight.grad.device for weight in model.parameters() if weight.grad is not None} == {META}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["packed", "padded", "whole", "again"])
def test_rows(way: str, dtype: torch.dtype) -> None:
    model = moved("qwen2", dtype)
    weight = model.get_input_embeddings().weight
    forward = BatchForward(model, 128, language_model_head=lambda hidden: hidden @ weight.T)
    forward.packs, forward.whole, forward.recomputes = way in ("packed", "again"), way == "whole", way == "again"
    output = model(rows=ROWS, completion_starts=[1] * len(ROWS))
    assert (output.logits.dtype, output.logits.shape, output.logprobs.shape) == (dtype, (len(ROWS), 1), (len(ROWS),))
    assert_learns(model, output.logits, output.logprobs)


def test_an_encoder() -> None:
    model = moved("bert", torch.float32)
    BatchForward(model, 128)
    assert_learns(model, model(rows=ROWS).logits)


@pytest.mark.parametrize("packs", [True, False])
def test_tokens(packs: bool) -> None:
    model = moved("qwen2", torch.bfloat16)
    TokenForward(model, 128).packs = packs
    starts = [max(1, len(row) - 5) for row in ROWS]
    assert_learns(model, model(rows=ROWS, completion_starts=starts).token_values)


def test_a_packing() -> None:
    packing = Packing(ROWS, device=META)
    tensors = (packing.ids, packing.positions, packing._read, packing._mask(torch.bfloat16), *packing._bounds[:2])
    assert {tensor.device for tensor in tensors} == {META}
