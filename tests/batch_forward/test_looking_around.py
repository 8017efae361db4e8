"""Models that look at more than a row, at the batch or at its length: they run as trainers usually run them, and say so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rm_plugins.engine.batch_forward import BatchForward
from tests.test_scoring_engine import PAD, make_model

ROWS = [[5, 6, 7, 8, 9], [5, 6, 7], [11, 12, 13, 14, 15, 16, 17, 18], [19, 20]]
LENGTH = max(map(len, ROWS))


class Noise(nn.Module):
    """As NEFTune's: it fades with the length."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        bound = 5 / (hidden.shape[1] * hidden.shape[2]) ** 0.5
        return hidden + torch.zeros_like(hidden).uniform_(-bound, bound) if self.training else hidden


class DroppedPositions(nn.Module):
    def __init__(self, p: float = 1e-6) -> None:
        super().__init__()
        self.share = p

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * (torch.rand(hidden.shape[:2]) > self.share)[..., None] if self.training else hidden


class BatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(hidden.transpose(1, 2)).transpose(1, 2)
        return normed


class Centered(nn.Module):
    def __init__(self, dim: int, gate: float = 1.0) -> None:
        super().__init__()
        self.dim = dim
        self.gate = gate

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden - self.gate * hidden.mean(self.dim, keepdim=True)


LOOKING: dict[str, Callable[[], nn.Module]] = {
    "noise by the length": Noise,
    "dropped positions": DroppedPositions,
    "dropped channels": lambda: nn.Dropout1d(0.1),
    "batch normalization": BatchNorm,
    "a norm over the sequence": lambda: Centered(1),
    "a norm over the batch": lambda: Centered(0),
}
DRAWING = ("noise by the length", "dropped positions", "dropped channels")


def hooked(family: str, module: nn.Module, **settings: Any) -> Any:
    """A classifier whose embeddings go through a module."""
    model = make_model(family, **settings).train()
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, output: module(output))
    model.add_module("looking", module.train())
    return model


def padded(model: Any) -> torch.Tensor:
    """What transformers gives for the whole batch."""
    ids = torch.tensor([[*row, *[PAD] * (LENGTH - len(row))] for row in ROWS])
    mask = torch.tensor([[1] * len(row) + [0] * (LENGTH - len(row)) for row in ROWS])
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits


@pytest.mark.parametrize("family", ["llama", "bert", "bloom"])
@pytest.mark.parametrize("kind", LOOKING)
def test_all_rows_run_at_once(kind: str, family: str) -> None:
    model = hooked(family, LOOKING[kind]())
    torch.manual_seed(1)
    expected = padded(model)
    model = hooked(family, LOOKING[kind]())
    forward = BatchForward(model, 8)
    torch.manual_seed(1)
    told = "draws random numbers" if kind in DRAWING else "scores differ"
    with pytest.warns(UserWarning, match=f"{type(model).__name__} does not compute each row independently .*{told}") as caught:
        logits = model(rows=ROWS).logits
    assert len(caught) == 1
    assert forward.whole and not forward.packs
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_one_that_begins_to_look_around_is_noticed_later(family: str) -> None:
    module = Centered(1, gate=0.0)
    model = hooked(family, module)
    forward = BatchForward(model, 8)
    for call in range(1, 12):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model(rows=ROWS)
        module.gate = 0.01 * call
        assert forward.whole == (call >= 10) == bool(forward.whole and not forward.packs)
        assert bool(told) == (call == 10)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_training_and_evaluation_are_looked_at_by_themselves(family: str) -> None:
    model = hooked(family, Noise())
    forward = BatchForward(model, 8)
    model.eval()
    model(rows=ROWS)
    assert not forward.whole
    model.train()
    with pytest.warns(UserWarning, match="draws random numbers"):
        model(rows=ROWS)
    assert forward.whole


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"attention_dropout": 0.5}),
        ("gpt2", {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}),
        ("bert", {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}),
        ("deberta-v2", {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}),
    ],
)
def test_dropout_of_single_features_is_no_reason(family: str, settings: dict[str, Any]) -> None:
    model = make_model(family, **settings).train()
    forward = BatchForward(model, 8)
    packs = forward.packs
    torch.manual_seed(1)
    first = model(rows=ROWS).logits
    torch.manual_seed(1)
    again = model(rows=ROWS).logits
    torch.testing.assert_close(first, again, rtol=0, atol=0)  # the comparison draws nothing
    assert forward.packs == packs and not forward.whole
    assert not torch.equal(first, model(rows=ROWS).logits)  # the dropout is on again


def test_looking_changes_no_running_means() -> None:
    module = BatchNorm()
    model = hooked("llama", module)
    BatchForward(model, 8)
    with pytest.warns(UserWarning, match="does not compute each row independently"):
        model(rows=ROWS)
    assert module.norm.num_batches_tracked == 1
