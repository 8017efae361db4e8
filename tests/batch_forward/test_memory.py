"""Memory in training: what is kept at once, and what happens when it does not suffice."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.batch_forward.conftest import assert_same, family_model, one_by_one, run_with
from tests.test_scoring_engine import make_model

ROWS = [[4 + (number * number + 7 * place) % 60 for place in range(40)] for number in range(8)]


def lacks_memory(module: torch.nn.Module, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module fail for more tokens than so many."""
    own = module.forward

    def limited(hidden: torch.Tensor, **kwargs: Any) -> Any:
        if hidden.shape[0] * hidden.shape[1] > tokens:
            raise torch.OutOfMemoryError(f"{hidden.shape[0] * hidden.shape[1]} tokens are too many")
        return own(hidden, **kwargs)

    monkeypatch.setattr(module, "forward", limited)


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize(("family", "packs"), [("llama", True), ("gemma2", False)])
def test_rows_run_again_with_half_the_budget(
    family: str, packs: bool, checkpoints: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = family_model(family, {"query_pre_attn_scalar": 8} if family == "gemma2" else {}).train()
    if checkpoints:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected = one_by_one(model, ROWS)
    forward = run_with(model, 512)
    forward.packs = packs
    lacks_memory(model.model.layers[1].mlp, 140, monkeypatch)
    with caplog.at_level(logging.WARNING):
        logits = model(rows=ROWS).logits
    assert (forward.max_tokens, forward.recomputes, forward.packs, forward.whole) == (128, True, packs, False)
    assert caplog.messages[-1].endswith("tokens are too many); it continues with 128 tokens at a time.")
    assert_same(model, logits, expected)  # outside of the context of the attention: what runs again brings its own
    with torch.no_grad():
        torch.testing.assert_close(model(rows=ROWS).logits, expected[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_bring_their_attention(reentrant: bool) -> None:
    """Not the one that the model has when its gradients are computed."""
    model = family_model("llama", {}).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    expected = one_by_one(model, ROWS)
    forward = run_with(model, 128)
    logits = model(rows=ROWS).logits
    assert forward.packs
    assert_same(model, logits, expected)


def test_without_gradients_nothing_runs_again_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model("llama", {})
    forward = run_with(model, 256)
    lacks_memory(model.model.layers[0].mlp, 130, monkeypatch)
    with torch.no_grad():
        model(rows=ROWS)
    assert (forward.max_tokens, forward.recomputes) == (128, False)


def test_what_does_not_fit_even_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model("llama", {}).train()
    forward = run_with(model, 256)
    lacks_memory(model.model.layers[0].mlp, 20, monkeypatch)
    with pytest.raises(
        torch.OutOfMemoryError, match="too little free memory for rows of up to 40 tokens, 64 tokens at a time: "
    ):
        model(rows=ROWS)
    assert forward.packs and not forward.whole


def test_gradients_that_do_not_fit() -> None:
    model = make_model("llama").train()
    forward = run_with(model, 256)

    def refuse(gradient: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("gradients are too many")

    with (
        pytest.raises(
            torch.OutOfMemoryError, match=r"^The gradients do not fit into memory: gradients are too many\. Train with"
        ),
        forward.attention(),
    ):
        logits = model(rows=[[5, 6, 7]]).logits
        logits.register_hook(refuse)
        torch.autograd.backward(logits.sum())


# --- Bytes ---------------------------------------------------------------------------------------------------------------------

LENGTH = 4_096
PROGRAM = """
import json, random, warnings
from pathlib import Path
import torch
from transformers import AutoModelForSequenceClassification, Qwen2Config
from rm_plugins.engine import token_head
from rm_plugins.engine.batch_forward import BatchForward
warnings.simplefilter("ignore")
torch.set_num_threads(1)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=1, num_key_value_heads=1)
random.seed(0)

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

def row(length, vocabulary=100):
    return [random.randrange(1, vocabulary) for _ in range(length)]

def peak(rows, *, checkpoints=True, recomputes=False, budget=2048, vocabulary=100, logits=2**21):
    token_head.LOGITS_AT_ONCE = logits
    config = Qwen2Config(vocab_size=vocabulary, max_position_embeddings=8192, num_labels=1, pad_token_id=0, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).train()
    if checkpoints:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weight = model.get_input_embeddings().weight
    forward = BatchForward(model, budget, language_model_head=lambda hidden: hidden @ weight.T)
    forward.recomputes = recomputes
    starts = [1] * len(rows) if vocabulary > 100 else None
    for given in ([row(8), row(9)], rows):
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        with forward.attention():
            output = model(rows=given, completion_starts=starts and [1] * len(given))
            (output.logits.sum() + (0 if starts is None else output.logprobs.sum())).backward()
    assert forward.packs and not forward.whole
    return (status("VmHWM") - before) / sum(map(len, rows))

length = LENGTH
beginning = row(length // 2)
print(json.dumps({
    "one row": peak([row(length)]),
    "a pair": peak([beginning + row(length // 2) for _ in range(2)]),
    "log-probabilities": peak([row(length // 2, 16_000)], vocabulary=16_000),
    "log-probabilities at once": peak([row(length // 2, 16_000)], vocabulary=16_000, logits=2**40),
    "many rows": peak([row(256) for _ in range(32)], checkpoints=False, budget=256),
    "many rows, again": peak([row(256) for _ in range(32)], checkpoints=False, recomputes=True, budget=256),
}))
"""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="the peak of a process's memory can be reset on Linux only"
)
def test_memory_grows_with_tokens_not_with_their_square() -> None:
    program = PROGRAM.replace("length = LENGTH", f"length = {LENGTH}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    square = 4 * LENGTH  # a float for each pair of tokens
    for _ in range(3):  # the kernel may take pages away meanwhile
        ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        bytes_a_token = json.loads(ended.stdout.splitlines()[-1])
        is_linear = {
            "one row": bytes_a_token["one row"] < 0.75 * square,
            "a pair": bytes_a_token["a pair"] < 0.75 * square,
            "log-probabilities": bytes_a_token["log-probabilities"] < 0.6 * bytes_a_token["log-probabilities at once"],
            "many rows": bytes_a_token["many rows, again"] < 0.4 * bytes_a_token["many rows"],
        }
        if all(is_linear.values()):
            break
    assert all(is_linear.values()), (is_linear, bytes_a_token)
