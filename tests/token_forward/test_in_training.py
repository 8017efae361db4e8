"""Completions beside what trainers do with a model: checkpointing, autocast, adapters, DDP, TRL's fused head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch.utils import _pytree as pytree

from rm_plugins.engine.token_forward import TokenForward, TokenOutput
from tests.batch_forward.conftest import family_model, gradients
from tests.batch_forward.test_looking_around import Centered, Noise
from tests.test_scoring_engine import VOCABULARY
from tests.token_forward.conftest import (
    TEMPERATURE,
    assert_same,
    completions,
    language_model,
    loss_of,
    one_by_one,
    run_with,
    values_one_by_one,
    with_gradients,
)
from tests.token_forward.two_processes import halves, train
from tests.warm_process import run_warm_group


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.filterwarnings("ignore:Gemma2ForCausalLM cannot be trained on packed rows")
def test_gradient_checkpointing(family: str) -> None:
    model = language_model(family, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    rows, starts = completions()
    expected = with_gradients(model, one_by_one(model, rows, starts))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    implementation = model.config._attn_implementation
    forward = run_with(model, 70)
    with forward.attention():
        assert_same(model, model(rows=rows, completion_starts=starts), expected, 1e-5 if family == "gemma2" else 1e-10)
    assert forward.packs == (family != "gemma2")
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
@pytest.mark.filterwarnings("ignore:Gemma2ForCausalLM cannot be trained on packed rows")
def test_autocast(family: str) -> None:
    model = language_model(family).float()
    rows, starts = completions()
    with torch.autocast("cpu", torch.bfloat16):
        expected = one_by_one(model, rows, starts)
        forward = run_with(model, 80)
        output = model(rows=rows, completion_starts=starts)
        assert output.log_probs.dtype == output.entropy.dtype == torch.float32
    assert forward.packs == (family == "qwen2") and not forward.own_logits
    # Gradients are computed outside autocast, as trainers do; the head runs again then.
    expected_gradients, found = gradients(model, loss_of(expected)), gradients(model, loss_of(output))
    scale = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=0.05, atol=0.05, msg=name)
    torch.testing.assert_close(output["log_probs"], expected["log_probs"].float(), rtol=0.05, atol=0.1)


def test_accelerates_conversion_of_outputs() -> None:
    model = language_model("qwen2").float()
    TokenForward(model)
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    output = model(rows=[[5, 6, 7], [5, 8]], completion_starts=[1, 1])
    assert isinstance(output, TokenOutput)
    assert output.hidden is not None and output.hidden.dtype == torch.float32
    output["log_probs"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_outputs_are_a_tree() -> None:
    """As DDP reads them, and torch's tools."""
    model = language_model("qwen2")
    TokenForward(model)
    output = model(rows=[[5, 6, 7], [5, 8]], completion_starts=[1, 1])
    assert len([leaf for leaf in pytree.tree_leaves(output) if leaf is not None]) == 3


class TestAdapters:
    @pytest.mark.parametrize("family", ["qwen2", "gemma2"])
    @pytest.mark.filterwarnings("ignore:Gemma2ForCausalLM cannot be trained on packed rows")
    def test_of_a_language_model(self, family: str) -> None:
        peft = pytest.importorskip("peft")
        plain = language_model(family, tie_word_embeddings=False)
        rows, starts = completions()
        with torch.no_grad():
            without = one_by_one(plain, rows, starts)
        # TRL's fused head reads the weight of `lm_head`, and so misses an adapter of it.
        settings = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "lm_head"])
        model = peft.get_peft_model(plain, settings).double()
        self.move(model)
        expected = with_gradients(model, one_by_one(model, rows, starts))
        assert any("lm_head.lora_A" in name for name in expected[1])
        assert not torch.allclose(expected[0]["log_probs"], without["log_probs"], atol=0.1)
        forward = TokenForward(model.get_base_model(), 80, temperature=TEMPERATURE)
        tolerance = 1e-5 if family == "gemma2" else 1e-10
        with forward.attention():
            assert_same(model, model(rows=rows, completion_starts=starts), expected, tolerance)
            with torch.no_grad(), model.disable_adapter():
                found = model(rows=rows, completion_starts=starts)
            torch.testing.assert_close(found.log_probs, without.log_probs, rtol=tolerance, atol=tolerance)
            assert_same(model, model(rows=rows, completion_starts=starts), expected, tolerance)
        assert not forward.own_logits

    def test_of_a_classifier(self) -> None:
        peft = pytest.importorskip("peft")
        settings = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"], modules_to_save=["score"])
        model = peft.get_peft_model(family_model("qwen2", {}), settings).double()
        self.move(model)
        rows, starts = completions()
        expected = with_gradients(model, values_one_by_one(model.get_base_model(), rows, starts))
        TokenForward(model.get_base_model(), 80)
        assert_same(model, model(rows=rows, completion_starts=starts), expected)

    def move(self, model: nn.Module) -> None:
        """Give the adapter an effect: it starts as nothing."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)


@pytest.mark.parametrize("tied", [True, False])
def test_trls_fused_head_stays(tied: bool) -> None:
    added = pytest.importorskip("trl.trainer.utils")
    if not hasattr(added, "add_fused_lm_head"):
        pytest.skip("this TRL has no fused head")
    model = language_model("llama", tie_word_embeddings=tied).float()
    rows, starts = completions()
    expected = with_gradients(model, one_by_one(model, rows, starts))
    added.add_fused_lm_head(model, temperature=TEMPERATURE)
    ids = torch.tensor([rows[0]])
    forward = TokenForward(model, 80, temperature=TEMPERATURE)
    with forward.attention():
        assert_same(model, model(rows=rows, completion_starts=starts), expected, 1e-4)
        fused = model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert forward.packs and not forward.own_logits
    alone = one_by_one(model, [rows[0]], [1])
    torch.testing.assert_close(fused.log_probs[0], alone.log_probs, rtol=1e-4, atol=1e-4)
    generated = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, len(rows[0]) + 3)


@pytest.mark.parametrize("kind", ["log_probs", "token_values"])
def test_two_processes_have_the_gradients_of_one(kind: str, tmp_path: Path) -> None:
    run_warm_group(2, "tests.token_forward.two_processes", kind, tmp_path)
    expected = [train(kind, half) for half in halves()]
    for process in (0, 1):
        for found in torch.load(tmp_path / f"{process}.pt"):
            assert found.keys() == expected[0].keys()
            for name, gradient in found.items():
                torch.testing.assert_close(gradient, (expected[0][name] + expected[1][name]) / 2, rtol=1e-6, atol=1e-6)


def test_dropout_is_that_of_training() -> None:
    model = language_model("llama", attention_dropout=0.5).train()
    rows, starts = completions()
    forward = TokenForward(model)
    torch.manual_seed(1)
    first = model(rows=rows, completion_starts=starts).log_probs
    torch.manual_seed(1)
    again = model(rows=rows, completion_starts=starts).log_probs
    torch.testing.assert_close(first, again, rtol=0, atol=0)  # the comparisons draw nothing
    assert forward.packs and not forward.own_logits
    assert not torch.equal(first, model(rows=rows, completion_starts=starts).log_probs)


@pytest.mark.parametrize("looks", [Noise, lambda: Centered(1, gate=0.1)])
@pytest.mark.parametrize("kind", ["log_probs", "token_values"])
def test_a_model_that_looks_around(kind: str, looks: Callable[[], nn.Module]) -> None:
    model = language_model("llama") if kind == "log_probs" else family_model("llama", {})
    module = looks()
    model.train().get_input_embeddings().register_forward_hook(lambda _, inputs, hidden: module(hidden))
    forward = TokenForward(model, 8)
    rows = [[5, 6, 7, 8, 9], [5, 6, 7], [11, 12, 13, 14]]
    told = "does not compute each row independently .*A token's log-probability or value may depend on its batch"
    with pytest.warns(UserWarning, match=told) as caught:
        output = model(rows=rows, completion_starts=[1, 2, 3])
    assert len(caught) == 1 and forward.whole and not forward.packs and not forward.own_logits
    assert len(output[kind]) == 6


def test_half_precision_packs() -> None:
    model = language_model("llama", num_hidden_layers=8, vocab_size=VOCABULARY).bfloat16()
    rows, starts = completions()
    forward = TokenForward(model)
    output = model(rows=rows, completion_starts=starts)
    assert forward.packs and not forward.own_logits and not forward.whole
    assert output.log_probs.isfinite().all()
