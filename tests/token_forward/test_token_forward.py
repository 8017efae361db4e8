"""Completions in one call: log-probabilities, entropies, values and gradients are those of the rows one by one."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rm_plugins.engine.packing import PACKED
from rm_plugins.engine.token_forward import TokenForward, TokenOutput
from rm_plugins.engine.token_head import token_statistics
from rm_plugins.errors import UnsupportedError
from tests.batch_forward.conftest import family_model
from tests.packing.conftest import row_lists
from tests.test_scoring_engine import VOCABULARY
from tests.token_forward.conftest import (
    FAMILIES,
    PADDING,
    TEMPERATURE,
    assert_same,
    completions,
    language_model,
    one_by_one,
    run_with,
    values_one_by_one,
    with_gradients,
)

# --- Outputs and gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_packs(family: str) -> None:
    model = language_model(family)
    rows, starts = completions()
    expected = with_gradients(model, one_by_one(model, rows, starts))
    for max_tokens, share_prefixes in ((40, True), (4_000, True), (4_000, False)):
        forward = run_with(model, max_tokens, share_prefixes=share_prefixes)
        output = model(rows=rows, completion_starts=starts)
        assert forward.packs and not forward.own_logits
        assert_same(model, output, expected)


@pytest.mark.parametrize("family", PADDING)
@pytest.mark.filterwarnings("ignore:Gemma2ForCausalLM cannot be trained on packed rows")
def test_a_family_that_is_padded(family: str) -> None:
    model = language_model(family)
    rows, starts = completions()
    expected = with_gradients(model, one_by_one(model, rows, starts))
    for max_tokens in (80, 4_000):
        forward = run_with(model, max_tokens)
        output = model(rows=rows, completion_starts=starts)
        assert not forward.packs and not forward.own_logits
        assert_same(model, output, expected, 1e-5)  # both compute parts of their attention in single precision


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "bloom"])
def test_values(family: str) -> None:
    model = family_model(family, {**FAMILIES, **PADDING}[family])
    rows, starts = completions()
    expected = with_gradients(model, values_one_by_one(model, rows, starts))
    run_with(model, 40)
    output = model(rows=rows, completion_starts=starts)
    assert output.log_probs is output.entropy is output.hidden is None
    assert_same(model, output, expected, 1e-5 if family == "bloom" else 1e-10)


@given(row_lists(), st.data())
@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_completions(rows: list[list[int]], data: st.DataObject) -> None:
    starts = [data.draw(st.integers(1, len(row))) for row in rows]
    model = language_model("qwen2", num_hidden_layers=1)
    expected = with_gradients(model, one_by_one(model, rows, starts)) if sum(map(len, rows)) > sum(starts) else None
    TokenForward(model, data.draw(st.integers(1, 60)), temperature=TEMPERATURE)
    output = model(rows=rows, completion_starts=starts)
    if expected is None:
        assert len(output.log_probs) == 0
    else:
        assert_same(model, output, expected)


def test_completions_without_tokens_have_gradients_of_zero() -> None:
    model = language_model("llama")
    TokenForward(model)
    output = model(rows=[[5, 6, 7], [8]], completion_starts=[3, 1])
    assert [len(values) for values in output.values()] == [0, 0, 0]
    (output.log_probs.sum() + output.entropy.sum()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (None, "2 rows need as many"),
        ([1], "2 rows need as many"),
        ([0, 1], "3 tokens .* starts at 0"),
        ([1, 3], "2 tokens .* at 3"),
    ],
)
def test_impossible_starts(starts: list[int] | None, message: str) -> None:
    model = language_model("llama")
    TokenForward(model)
    with pytest.raises(ValueError, match=message):
        model(rows=[[5, 6, 7], [8, 9]], completion_starts=starts)


def test_a_prompt_runs_once() -> None:
    model = language_model("llama")
    TokenForward(model, 4_000)
    rows = [[*range(10, 60), 60 + number, *range(4)] for number in range(8)]
    model(rows=rows, completion_starts=[50] * 8)
    seen = []
    model.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    model(rows=rows, completion_starts=[50] * 8)
    assert seen[0] == (1, 50 + 8 * 5)


def test_single_precision_outputs_whatever_the_model_is() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = language_model("llama").to(dtype)
        run_with(model)
        output = model(rows=[[5, 6, 7, 8]], completion_starts=[1])
        assert output.log_probs.dtype == output.entropy.dtype == torch.float32


def test_gradients_of_several_calls() -> None:
    """A comparison before a later call leaves those of the earlier ones as they are."""
    model = family_model("gemma2", {"query_pre_attn_scalar": 8})
    forward = run_with(model)
    with pytest.warns(UserWarning, match="cannot be trained on packed rows"):
        first = model(rows=[[5, 6, 7]], completion_starts=[1]).token_values
    second = model(rows=[[*range(5, 60)]], completion_starts=[1]).token_values
    torch.autograd.backward(first.sum() + second.sum())
    assert not forward.whole


# --- The head --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
@pytest.mark.filterwarnings("ignore:Gemma2ForCausalLM cannot be trained on packed rows")
def test_few_logits_exist_at_a_time(family: str) -> None:
    model = language_model(family)
    rows, starts = completions()
    run_with(model, 4_000)
    model(rows=rows, completion_starts=starts)
    sizes: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, logits: sizes.append(logits.numel()))
    output = model(rows=rows, completion_starts=starts)
    tokens = sum(map(len, rows)) - sum(starts)
    assert len(sizes) == -(-tokens // 9) > 2
    assert max(sizes) == 9 * VOCABULARY
    assert sum(sizes) == tokens * VOCABULARY
    output.log_probs.sum().backward()
    last = tokens - 9 * (-(-tokens // 9) - 1)  # the logits of the last chunk stay
    assert sum(sizes) == (2 * tokens - last) * VOCABULARY
    sizes.clear()
    with torch.no_grad():
        model(rows=rows, completion_starts=starts)
    assert sum(sizes) == tokens * VOCABULARY


def test_statistics_have_exact_gradients() -> None:
    logits = torch.randn(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul_(3).requires_grad_()
    targets = torch.tensor([0, 3, 10, 3, 5])
    assert torch.autograd.gradcheck(lambda values: token_statistics(values, targets, 0.6), (logits,))
    for number in (0, 1):  # only one of the two is used
        assert torch.autograd.gradcheck(lambda values, number=number: token_statistics(values, targets, 0.6)[number], (logits,))


def test_excluded_tokens_have_no_part_in_the_entropy() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf, 0.5]]).requires_grad_()
    log_probs, entropy = token_statistics(logits, torch.tensor([1]), 1.0)
    logs = torch.tensor([1.0, 2.0, 0.5]).log_softmax(-1)
    torch.testing.assert_close(entropy[0], -(logs.exp() * logs).sum())
    torch.testing.assert_close(log_probs[0], logs[1])
    torch.autograd.backward(log_probs.sum() + entropy.sum())
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad[0, 2] == 0


class TestTheModelsOwnLogits:
    """They are used where they are not what the head gives for the last hidden states."""

    def changed(self, change: Any) -> Any:
        model = language_model("llama")
        forward = type(model).forward

        def changed(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            output = forward(self, input_ids=input_ids, **kwargs)
            output.logits = change(output.logits, input_ids)
            return output

        model.forward = changed.__get__(model)
        return model

    def test_that_depend_on_the_tokens(self) -> None:
        model = self.changed(lambda logits, ids: logits + 0.1 * ids[..., None] * torch.linspace(0, 1, VOCABULARY))
        rows, starts = completions()
        expected = with_gradients(model, one_by_one(model, rows, starts))
        forward = TokenForward(model, 80, temperature=TEMPERATURE)
        with pytest.warns(UserWarning, match="LlamaForCausalLM has other logits than its head gives .*scores differ") as caught:
            output = model(rows=rows, completion_starts=starts)
        assert len(caught) == 1 and forward.own_logits and not forward.packs
        assert_same(model, output, expected)
        with warnings.catch_warnings(), forward.attention():
            warnings.simplefilter("error")
            assert_same(model, model(rows=rows, completion_starts=starts), expected)
        assert model.config._attn_implementation == "sdpa"

    def test_that_come_from_two_runs_of_the_backbone(self) -> None:
        model = language_model("llama")
        forward = type(model).forward

        def guided(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            output, without = forward(self, input_ids, **kwargs), forward(self, input_ids * 0 + 5, **kwargs)
            output.logits = 2 * output.logits - without.logits
            return output

        model.forward = guided.__get__(model)
        rows, starts = completions()
        with torch.no_grad():
            expected = one_by_one(model, rows, starts)
        taken = TokenForward(model, temperature=TEMPERATURE)
        with pytest.warns(UserWarning, match="does not make its logits from its backbone's output alone"):
            output = model(rows=rows, completion_starts=starts)
        assert taken.own_logits
        torch.testing.assert_close(output.log_probs, expected.log_probs)

    def test_that_come_from_elsewhere(self) -> None:
        model = language_model("llama")
        elsewhere = copy.deepcopy(model)
        model.forward = elsewhere.forward
        expected = one_by_one(elsewhere, [[5, 6, 7, 8]], [1])
        TokenForward(model, temperature=TEMPERATURE)
        with pytest.warns(UserWarning, match="does not make its logits from its backbone's output alone"):
            output = model(rows=[[5, 6, 7, 8]], completion_starts=[1])
        torch.testing.assert_close(output.log_probs, expected.log_probs)
        assert output.hidden is None

    def test_are_compared_in_the_first_call_with_two_tokens_in_a_row(self) -> None:
        model = self.changed(lambda logits, ids: logits + ids[..., None] * torch.linspace(0, 1, VOCABULARY))
        forward = TokenForward(model)
        model(rows=[[5]], completion_starts=[1])
        assert not forward.own_logits
        with pytest.warns(UserWarning, match="has other logits"):
            model(rows=[[5, 6]], completion_starts=[1])
        assert forward.own_logits


# --- The model besides -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: family_model("llama", {}, num_labels=2), "has 2 labels"),
        (lambda: family_model("bert", {}), "neither a causal language model nor a decoder"),
        (lambda: language_model("gemma3_text", use_bidirectional_attention=True), "attend to later ones"),
    ],
)
def test_an_unsupported_model(model: Any, message: str) -> None:
    unsupported = model()
    with pytest.raises(UnsupportedError, match=message):
        TokenForward(unsupported)
    assert "forward" not in vars(unsupported)


class TestTheModelIsTheSame:
    def test_when_called_plainly(self) -> None:
        model = language_model("llama")
        ids = torch.tensor([[5, 6, 7, 8]])
        expected = model(input_ids=ids, labels=ids)
        forward = TokenForward(model)
        model(rows=[[5, 6, 7]], completion_starts=[1])
        for context in (forward.attention(), torch.enable_grad()):
            with context:
                found = model(input_ids=ids, labels=ids)
            assert type(found) is type(expected)
            torch.testing.assert_close((found.loss, found.logits), (expected.loss, expected.logits))

    @pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
    def test_when_it_generates(self, family: str) -> None:
        model = language_model(family)
        ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
        settings: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
        expected = model.generate(ids, **settings)
        arguments = inspect.signature(model.forward)
        forward = TokenForward(model)
        assert inspect.signature(model.forward) == arguments  # `generate` looks whether there is `logits_to_keep`
        model(rows=[[5, 6, 7]], completion_starts=[1])
        assert torch.equal(model.generate(ids, **settings), expected)
        with forward.attention():
            assert model.config._attn_implementation == PACKED
            assert torch.equal(model.generate(ids, **settings), expected)
        assert model.config._attn_implementation == "sdpa"
        with pytest.raises(ValueError, match="not_a_setting"):
            model.generate(ids, not_a_setting=torch.ones(1), **settings)

    def test_after_its_own_attention_was_set(self) -> None:
        model = language_model("llama")
        TokenForward(model)
        model.set_attn_implementation("eager")
        seen = []
        model.model.layers[0].register_forward_pre_hook(lambda *_: seen.append(model.config._attn_implementation))
        model(input_ids=torch.tensor([[5, 6, 7]]))
        assert seen == ["eager"]

    def test_when_copied(self) -> None:
        model = language_model("llama")
        forward = TokenForward(model)
        expected = model(rows=[[5, 6, 7]], completion_starts=[1]).log_probs
        copied = copy.deepcopy(model)
        assert copied.forward is not forward and copied.forward.model is copied
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        output = copied(rows=[[5, 6, 7]], completion_starts=[1])
        assert isinstance(output, TokenOutput)
        torch.testing.assert_close(output.log_probs, expected)
