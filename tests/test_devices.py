"""The same numbers on every device, dtype and kernel. What needs a GPU is marked `gpu`; the same runs on the CPU everywhere."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rm_plugins as rm
from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.engine.engine import ScoringEngine
from rm_plugins.engine.packing import Packing
from rm_plugins.engine.plan import Costs
from rm_plugins.errors import SpecError
from rm_plugins.models.placement import default_device
from tests.conftest import MakeFolder
from tests.test_scoring_engine import make_model

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
ON_GPU = [pytest.mark.gpu, NO_GPU]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""By which scores of about one may differ."""

PROMPT = [5 + number % 50 for number in range(70)]
ROWS = [
    [*PROMPT, *range(10, 30)],
    [*PROMPT, *range(30, 35)],
    [*PROMPT, *range(20, 50), 7],
    PROMPT[:9],
    [*range(10, 60), *range(10, 60)],
    [8, 9],
]
"""Completions of one prompt, rows of their own, and one that begins others."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def classifier(device: torch.device, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A random decoder with grouped heads, of a size that flash attention takes."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    model = make_model("qwen2", **sizes, **settings).to(device=device, dtype=dtype)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight, std=64**-0.5)
    return model.eval()


def one_by_one(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Scores in float32, row by row."""
    exact = copy.deepcopy(model).float()
    with torch.inference_mode():
        scores = [exact(input_ids=torch.tensor([row], device=model.device)).logits[0] for row in rows]
    return torch.stack(scores).cpu()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.float().cpu() for name, weight in model.named_parameters() if weight.grad is not None}


def score_and_differentiate(model: Any, *, packs: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scores of a training batch, float32 [rows, 1], and the gradients of their sum of squares."""
    model = copy.deepcopy(model)
    forward = BatchForward(model)
    forward.packs = packs
    with forward.attention():
        logits = model(rows=ROWS).logits
        logits.float().square().sum().backward()
    assert forward.packs == packs, "packing was stopped"
    return logits.detach().float().cpu(), gradients(model)


def assert_same_direction(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Gradients agree weight by weight, by their difference as a share of their size."""
    assert gradients.keys() == expected.keys()
    scale = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in gradients.items():
        difference = float((gradient - expected[name]).norm())
        assert difference <= tolerance * (float(expected[name].norm()) + 0.05 * scale), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_rows_score_and_learn_as_padded_ones(device: torch.device, dtype: torch.dtype) -> None:
    model = classifier(device, dtype)
    expected = one_by_one(model, ROWS)
    packed, packed_gradients = score_and_differentiate(model, packs=True)
    padded, padded_gradients = score_and_differentiate(model, packs=False)
    torch.testing.assert_close(packed, expected, rtol=0, atol=TOLERANCES[dtype])
    torch.testing.assert_close(padded, expected, rtol=0, atol=TOLERANCES[dtype])
    assert_same_direction(packed_gradients, padded_gradients, TOLERANCES[dtype])


@pytest.mark.parametrize("heads", [{"num_key_value_heads": 4}, {"num_key_value_heads": 1}], ids=str)
def test_any_number_of_key_heads(device: torch.device, heads: dict[str, int]) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
    model = make_model("qwen2", **sizes, **heads).to(device=device, dtype=torch.bfloat16).eval()
    packed, _ = score_and_differentiate(model, packs=True)
    padded, _ = score_and_differentiate(model, packs=False)
    torch.testing.assert_close(packed, padded, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("size", [16, 20, 64, 128])
def test_heads_of_any_size_are_attended(device: torch.device, size: int) -> None:
    """The kernel takes some sizes only; the others run without it."""
    packing = Packing(ROWS, device=device)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, packing.ids.shape[1], size, generator=generator).to(device, torch.bfloat16) for heads in (4, 2, 2)
    )
    attended = packing.attention(query, key, value, None, 0.0)
    expected = Packing(ROWS).attention(query.float().cpu(), key.float().cpu(), value.float().cpu(), None, 0.0)
    torch.testing.assert_close(attended.float().cpu(), expected, rtol=0.05, atol=0.05)


def test_autocast(device: torch.device) -> None:
    model = classifier(device)
    expected = one_by_one(model, ROWS)
    with torch.autocast(device.type, torch.bfloat16):
        packed, packed_gradients = score_and_differentiate(model, packs=True)
        padded, padded_gradients = score_and_differentiate(model, packs=False)
    torch.testing.assert_close(packed, expected, rtol=0, atol=TOLERANCES[torch.bfloat16])
    torch.testing.assert_close(padded, expected, rtol=0, atol=TOLERANCES[torch.bfloat16])
    assert_same_direction(packed_gradients, padded_gradients, TOLERANCES[torch.bfloat16])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(device: torch.device, dtype: torch.dtype, reentrant: bool) -> None:
    model = classifier(device, dtype).train()
    plain, expected = score_and_differentiate(model, packs=True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    checkpointed, found = score_and_differentiate(model, packs=True)
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=TOLERANCES[dtype])
    assert_same_direction(found, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_scoring_is_that_of_rows_one_by_one(device: torch.device, dtype: torch.dtype, share_prefixes: bool) -> None:
    model = classifier(device, dtype)
    engine = ScoringEngine(model, 128, share_prefixes=share_prefixes)
    engine._costs = Costs(launch=1, read=0.01)  # for so few tokens to be shared
    outputs, work = engine.outputs(ROWS)
    np.testing.assert_allclose(outputs, one_by_one(model, ROWS).numpy(), rtol=0, atol=TOLERANCES[dtype])
    assert engine.shares_prefixes == share_prefixes
    assert (work.unique_tokens < sum(map(len, ROWS))) == share_prefixes


@pytest.mark.gpu
@NO_GPU
def test_a_device_that_runs_out_of_memory_scores_with_a_smaller_budget() -> None:
    device = torch.device("cuda")
    model = classifier(device, max_position_embeddings=4_096)
    rows = [[5 + (number * row) % 50 for number in range(1_000 + row)] for row in range(1, 513)]
    expected, _ = ScoringEngine(model).outputs(rows)
    engine = ScoringEngine(model, 1 << 20)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (200 << 20)) / total)
    try:
        outputs, _ = engine.outputs(rows)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.max_tokens < 1 << 20
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=TOLERANCES[torch.float32])


def test_a_reward_is_the_same_on_every_device(device: torch.device, tiny_decoder: MakeFolder) -> None:
    folder = tiny_decoder()
    samples = [rm.Sample("Name a colour. ", answer) for answer in ("Blue.", "It is four.", "Rain, rain and rain.")]
    expected = rm.load(folder, device="cpu", dtype="float32").score(samples).values
    found = rm.load(folder, device=str(device), dtype="float32").score(samples).values
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_members_on_several_devices(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    folder = str(tiny_decoder())
    samples = [rm.Sample("Name a colour. ", answer) for answer in ("Blue.", "It is four.")]
    members = [{"provider": "sequence-classifier", "model": folder, "device": f"cuda:{number}"} for number in (0, 1)]
    scores = rm.load({"provider": "ensemble", "members": members}).score(samples)
    alone = rm.load(folder, device="cpu", dtype="float32").score(samples).values
    np.testing.assert_allclose(scores.values, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", ["nowhere", "cuda:-3", "cpu:x", "", "xpu:7", "meta:1:2"])
def test_a_device_that_is_not_there_is_a_fault_of_the_spec(tiny_encoder: MakeFolder, device: str) -> None:
    with pytest.raises(SpecError, match=r"device: there is no device .* on this machine"):
        rm.load(tiny_encoder(), device=device)


def test_a_machine_without_an_accelerator_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.6 answers, which newer releases answer with None."""

    def fails(check_available: bool = False) -> None:
        raise RuntimeError("Cannot access accelerator device when none is available.")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", fails)
    assert default_device() == torch.device("cpu")
