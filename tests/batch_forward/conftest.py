"""Rows, models and comparisons of the forward pass in training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn.functional import softplus

from rm_plugins.engine.batch_forward import BatchForward
from tests.test_scoring_engine import PAD, VOCABULARY, make_model

EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}


FALLING_BACK: dict[str, tuple[dict[str, Any], str]] = {
    "gemma2": ({"query_pre_attn_scalar": 8}, "Gemma2Attention uses softcap"),
    "gpt_oss": ({"num_local_experts": 4, "num_experts_per_tok": 2}, "GptOssAttention uses s_aux"),
    "doge": ({}, "DogeAttention has a mask of its own"),
    "nemotron": ({}, "NemotronAttention does not pass its keyword arguments to its attention"),
    "mistral": ({"sliding_window": 8}, "sliding window of 8 tokens"),
    "gemma3_text": ({"sliding_window": 8}, "sliding window of 8 tokens"),
    "phimoe": ({"sliding_window": 8, "num_local_experts": 4}, "sliding window of 8 tokens"),
    "qwen2_moe": (
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_experts": 4, **EXPERTS},
        "sliding window of 8 tokens",
    ),
}


EXACT_ONLY_IN_SINGLE = ("mixtral", "jamba", "gpt_oss", "deepseek_v3", "minimax", "phimoe", "qwen2_moe", "qwen3_moe")
"""Whose experts are multiplied by a kernel that knows no float64."""


def batch_of_rows(last: int | None = None) -> list[list[int]]:
    """Pairs behind prompts that begin alike, duplicates, a row that begins others, single tokens, in no order."""
    source = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [source.randrange(4, VOCABULARY) for _ in range(count)]

    system = tokens(14)
    rows = [[*system, *prompt, *tokens(size)] for prompt in (tokens(16), tokens(9)) for size in (1, 6, 11)]
    rows += [rows[1], system, tokens(1), tokens(1), tokens(23), [*rows[0][:20], PAD, 9]]
    if last is not None:
        rows = [*([*row, last] for row in rows), [last], [last, last]]
    source.shuffle(rows)
    return rows


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    """A loss in which every row counts differently, and rows meet each other."""
    logits = logits.double()
    weights = torch.linspace(0.5, 2, len(logits), dtype=logits.dtype)
    return (weights * softplus(logits[:, 0] - logits[:, 0].roll(1))).mean() + 0.1 * (logits**2).mean()


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


Expected = tuple[torch.Tensor, dict[str, torch.Tensor]]


def one_by_one(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> Expected:
    """transformers' own logits of each row by itself, and the gradients of their loss."""
    logits = torch.cat([model(input_ids=torch.tensor([list(row)])).logits for row in rows])
    return logits.detach(), gradients(model, loss_of(logits))


def assert_same(model: torch.nn.Module, logits: torch.Tensor, expected: Expected, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(logits.detach(), expected[0], rtol=tolerance, atol=tolerance)
    found = gradients(model, loss_of(logits))
    assert found.keys() == expected[1].keys()
    scale = max(gradient.abs().max().item() for gradient in expected[1].values())
    assert scale > 0
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=tolerance, atol=tolerance, msg=name)


def family_model(family: str, settings: dict[str, Any], **more: Any) -> Any:
    model = make_model(family, **{**settings, **more})
    return model if family.partition(" ")[0] in EXACT_ONLY_IN_SINGLE else model.double()


def tolerance_of(family: str) -> float:
    # Some families compute their positions' biases or their softmax in float32 whatever their type is.
    return 1e-4 if family.partition(" ")[0] in EXACT_ONLY_IN_SINGLE else 1e-6


@pytest.fixture(params=[pytest.param(None, id="no EOS"), pytest.param(PAD, id="pad is EOS")])
def rows(request: pytest.FixtureRequest) -> list[list[int]]:
    return batch_of_rows(request.param)


def compare(model: Any, rows: Sequence[Sequence[int]] = ((5,),)) -> None:
    """Let the comparison that decides how a model runs such rows have taken place."""
    with torch.no_grad():
        model(rows=rows)


def run_with(model: Any, max_tokens: int | None, **settings: Any) -> BatchForward:
    """A fresh `BatchForward` of a model that may have had another one."""
    vars(model).pop("forward", None)
    return BatchForward(model, max_tokens, **settings)
