"""A whole training batch in one call: scores, log-probabilities and gradients are those of the rows one by one."""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import distributed
from torch.nn.functional import linear, softplus

from rm_plugins.engine import batch_forward
from rm_plugins.engine.batch_forward import BatchForward, BatchOutput
from rm_plugins.engine.packing import PACKED, Packing
from rm_plugins.errors import UnsupportedError
from tests.test_scoring_engine import PAD, PLAIN, SHARING, VOCABULARY, make_model

MLA = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12},
    **{"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    **{"moe_intermediate_size": 16, "n_shared_experts": 1, "first_k_dense_replace": 1},
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
PACKING: dict[str, dict[str, Any]] = {
    **{family: SHARING[family] for family in ("llama", "qwen2", "qwen3", "gemma", "phi", "mixtral", "mistral")},
    **{family: SHARING[family] for family in ("gpt2", "gpt_bigcode", "gpt_neox", "opt")},
    "phi3": {},
    "olmo2": {},
    "starcoder2": {},
    "deepseek_v3": MLA,
    "qwen3_moe": {"num_experts": 4, **EXPERTS},
    "qwen2_moe": {"num_experts": 4, **EXPERTS},
    "gemma3_text": {"sliding_window": 60},
    "mistral with a window that is long enough": {"sliding_window": 60},
}
FALLING_BACK: dict[str, tuple[dict[str, Any], str]] = {
    "gemma2": ({"query_pre_attn_scalar": 8}, "Gemma2Attention uses softcap"),
    "gpt_oss": ({"num_local_experts": 4, "num_experts_per_tok": 2}, "GptOssAttention uses s_aux"),
    "doge": ({}, "DogeAttention has a mask of its own"),
    "nemotron": ({}, "NemotronAttention does not hand its keyword arguments to its attention"),
    "mistral": ({"sliding_window": 8}, "sliding window of 8 tokens"),
    "gemma3_text": ({"sliding_window": 8}, "sliding window of 8 tokens"),
    "phimoe": ({"sliding_window": 8, "num_local_experts": 4}, "sliding window of 8 tokens"),
    "qwen2_moe": (
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_experts": 4, **EXPERTS},
        "sliding window of 8 tokens",
    ),
}
PADDED: dict[str, dict[str, Any]] = {
    **{family: SHARING[family] for family in ("gptj", "gpt_neo", "bloom", "falcon", "falcon with alibi", "biogpt")},
    **{family: PLAIN[family] for family in ("mpt", "jamba", "gemma3_text that looks ahead")},
    "minimax": {"num_local_experts": 4, "block_size": 8},
    **{family: PLAIN[family] for family in ("bert", "deberta-v2", "modernbert")},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "roberta": {},
}
EXACT_ONLY_IN_SINGLE = ("mixtral", "jamba", "gpt_oss", "deepseek_v3", "minimax", "phimoe", "qwen2_moe", "qwen3_moe")
"""Whose experts are multiplied by a kernel that knows no float64."""
DROPOUTS = {"attention_dropout": 0.0, "hidden_dropout": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


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


def compare(model: Any) -> None:
    """Let the comparison that decides whether a model packs have taken place."""
    with torch.no_grad():
        model(rows=[[5]])


def run_with(model: Any, max_tokens: int | None, **settings: Any) -> BatchForward:
    """A fresh `BatchForward` of a model that may have had another one."""
    vars(model).pop("forward", None)
    return BatchForward(model, max_tokens, **settings)


class Spy:
    """The tokens of every packed micro-batch, and the rows and their width of every padded one."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packed: list[int] = []
        self.shapes: list[tuple[int, int]] = []
        backbone = getattr(model, model.base_model_prefix)
        run = backbone.forward

        def forward(input_ids: torch.Tensor, **settings: Any) -> Any:
            if "packing" in settings:
                self.packed.append(input_ids.numel())
            else:
                self.shapes.append((input_ids.shape[0], input_ids.shape[1]))
            return run(input_ids=input_ids, **settings)

        monkeypatch.setattr(backbone, "forward", forward)


# --- Scores and gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", PACKING)
def test_a_family_that_packs(family: str, rows: list[list[int]]) -> None:
    model = family_model(family, PACKING[family])
    expected = one_by_one(model, rows)
    assert expected[0].std() > 0.02
    for max_tokens, share_prefixes in ((30, True), (4_000, True), (4_000, False)):
        forward = run_with(model, max_tokens, share_prefixes=share_prefixes)
        logits = model(rows=rows).logits
        assert forward.packs
        assert_same(model, logits, expected, tolerance_of(family))


@pytest.mark.parametrize("family", FALLING_BACK)
def test_a_family_that_falls_back(family: str, rows: list[list[int]]) -> None:
    settings, reason = FALLING_BACK[family]
    model = family_model(family, settings)
    implementation = model.config._attn_implementation
    expected = one_by_one(model, rows)
    for max_tokens in (80, 4_000):
        forward = run_with(model, max_tokens)
        assert forward.packs
        with pytest.warns(UserWarning, match=rf"{type(model).__name__} cannot be trained on packed rows.*{reason}") as caught:
            logits = model(rows=rows).logits
        assert len(caught) == 1
        assert not forward.packs
        assert_same(model, logits, expected, tolerance_of(family))
        assert_same(model, model(rows=rows).logits, expected, tolerance_of(family))
        assert model.config._attn_implementation == implementation
        with forward.attention():
            assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("family", PADDED)
def test_a_family_that_never_packs(family: str, rows: list[list[int]]) -> None:
    model = family_model(family, PADDED[family])
    implementation = model.config._attn_implementation
    expected = one_by_one(model, rows)
    for max_tokens in (80, 4_000):
        forward = run_with(model, max_tokens)
        assert not forward.packs
        with forward.attention():
            assert model.config._attn_implementation == implementation
            assert_same(model, model(rows=rows).logits, expected, tolerance_of(family))


def test_single_rows_pack_until_one_is_longer_than_the_window() -> None:
    model = family_model("mistral", {"sliding_window": 8})
    forward = BatchForward(model)
    within, beyond = [list(range(10, 18)), [7, 8]], [list(range(10, 19)), [7, 8]]
    for _ in range(2):
        expected = one_by_one(model, within)
        assert_same(model, model(rows=within).logits, expected, 1e-6)
        assert forward.packs
    expected = one_by_one(model, beyond)
    with pytest.warns(UserWarning, match="a row is longer than its sliding window of 8 tokens"):
        logits = model(rows=beyond).logits
    assert_same(model, logits, expected, 1e-6)
    assert not forward.packs


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=30), min_size=1, max_size=6), st.integers(1, 60))
@hypothesis_settings(max_examples=20)
def test_any_rows(rows: list[list[int]], max_tokens: int) -> None:
    rows = [*rows, [*rows[0], 9], rows[0][: len(rows[0]) // 2 + 1]]
    model = make_model("qwen2", num_hidden_layers=1).double()
    expected = one_by_one(model, rows)
    BatchForward(model, max_tokens)
    assert_same(model, model(rows=rows).logits, expected, 1e-6)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("family", ["llama", "bloom", "bert"])
def test_outputs_of_several_labels(family: str, labels: int) -> None:
    model = family_model(family, {}, num_labels=labels)
    rows = batch_of_rows()
    expected = one_by_one(model, rows)
    BatchForward(model, 60)
    output = model(rows=rows)
    assert isinstance(output, BatchOutput)
    assert output.logits is not None and output.logits.shape == (len(rows), labels)
    assert output.logprobs is None
    assert_same(model, output.logits, expected, 1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "mpt", "gemma2"])
@pytest.mark.filterwarnings("ignore:Gemma2ForSequenceClassification cannot be trained on packed rows")
def test_a_decoder_without_a_padding_token(family: str, rows: list[list[int]]) -> None:
    settings = {**SHARING, **PLAIN, "gemma2": {"query_pre_attn_scalar": 8}}[family]
    model = family_model(family, settings, pad_token_id=None)
    expected = one_by_one(model, rows)
    run_with(model, 80)
    assert_same(model, model(rows=rows).logits, expected, 1e-6)


def test_an_encoder_without_a_padding_token_runs_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model("bert", {}, pad_token_id=None)
    rows = batch_of_rows()
    expected = one_by_one(model, rows)
    spy = Spy(model, monkeypatch)
    run_with(model, 4_000)
    assert_same(model, model(rows=rows).logits, expected, 1e-6)
    assert spy.shapes == [(1, length) for length in sorted(map(len, rows), reverse=True)]


# --- Micro-batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [60, 100])
def test_a_packed_micro_batch_keeps_to_the_budget(max_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = batch_of_rows()
    model = make_model("llama")
    spy = Spy(model, monkeypatch)
    BatchForward(model, max_tokens)
    compare(model)
    spy.packed.clear()
    model(rows=rows)
    longest = max(map(len, rows))
    assert len(spy.packed) > 1
    # Within a few tokens: what rows have in common counts once also where it is so little that it is not shared.
    assert all(tokens <= max(max_tokens, longest) + 4 for tokens in spy.packed)
    assert all(left + right > max_tokens for left, right in pairwise(spy.packed))


def test_turns_of_a_long_dialogue_keep_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes within prefixes are shared to a certain depth only; the rest of what rows have in common is computed again."""
    rows = [[3 + token % (VOCABULARY - 3) for token in range(10 * turn)] for turn in range(1, 41)]
    model = make_model("llama")
    spy = Spy(model, monkeypatch)
    forward = BatchForward(model, 500)
    found = model(rows=rows).logits
    assert forward.packs
    assert max(spy.packed) <= 1.25 * 500
    assert_same(model, found, one_by_one(make_model("llama"), rows), 1e-5)


@pytest.mark.parametrize(
    ("max_tokens", "share_prefixes", "expected"),
    [
        (4_000, True, [2 * 51 + 8 * 5]),
        # Neighbours in the batch have different prompts; those of one prompt run together also where the budget is small.
        (51 + 4 * 5, True, [51 + 4 * 5] * 2),
        (51 + 4 * 5 - 1, True, [51 + 3 * 5, 56] * 2),
        (4_000, False, [8 * 56]),
        (2 * 56, False, [2 * 56] * 4),
        (2 * 56 - 1, False, [56] * 8),
    ],
)
def test_what_rows_begin_with_in_common_runs_once(
    max_tokens: int, share_prefixes: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    spy = Spy(model, monkeypatch)
    BatchForward(model, max_tokens, share_prefixes=share_prefixes)
    compare(model)
    spy.packed.clear()
    model(rows=[[4 + number % 2, *range(10, 60), 60 + number, *range(4)] for number in range(8)])
    assert spy.packed == expected


def test_padded_micro_batches_keep_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = batch_of_rows()
    for family in ("bert", "bloom"):
        model = family_model(family, {})
        spy = Spy(model, monkeypatch)
        BatchForward(model, 80)
        model(rows=rows)
        assert len(spy.shapes) > 1
        assert all(count * longest <= 80 for count, longest in spy.shapes)
        assert sum(count for count, _ in spy.shapes) == len(rows)


def test_short_rows_are_not_padded_to_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("bert")
    spy = Spy(model, monkeypatch)
    BatchForward(model, 4_000)
    model(rows=[[5, 6], [5] * 120, [7, 8], [9]])
    assert spy.shapes == [(1, 120), (3, 2)]


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_no_keys_and_values_are_kept(family: str) -> None:
    model = make_model(family)
    kept: list[Any] = []
    getattr(model, model.base_model_prefix).register_forward_hook(lambda _, inputs, output: kept.append(output.past_key_values))
    BatchForward(model)
    model(rows=batch_of_rows())
    assert kept and kept == [None] * len(kept)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_budget_suits_the_device(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(family)
    forward = BatchForward(model)
    monkeypatch.setattr(batch_forward, "default_max_tokens", lambda model: 70)
    spy = Spy(model, monkeypatch)
    model(rows=batch_of_rows())
    assert forward.max_tokens == 70
    assert len(spy.packed or spy.shapes) > 2


# --- The comparison that decides -------------------------------------------------------------------------------------------


class TestTheComparison:
    def test_happens_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model("llama")
        spy = Spy(model, monkeypatch)
        BatchForward(model)
        for _ in range(3):
            model(rows=[[5, 6, 7], [5, 6, 8]])
        assert len(spy.packed) == 4
        assert len(spy.shapes) == 1

    def test_leaves_the_mode_and_no_gradients(self) -> None:
        model = make_model("llama").train()
        BatchForward(model)
        with torch.no_grad():
            model(rows=[[5, 6, 7]])
        assert all(module.training for module in model.modules())
        model.eval()
        BatchForward(model)
        assert model(rows=[[5, 6, 7]]).logits.requires_grad
        assert not any(module.training for module in model.modules())

    def test_is_not_disturbed_by_dropout(self) -> None:
        model = make_model("llama", attention_dropout=0.5).train()
        forward = BatchForward(model)
        model(rows=batch_of_rows())
        assert forward.packs

    @pytest.mark.parametrize("rows", [[[5, 6, 7, 8]], [[5, 6, 7, 8], [5, 6, 7, 8]]])
    def test_notices_a_model_that_mixes_rows_also_with_one_row(
        self, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As a recurrent layer does, which transformers gives another attention as well.
        monkeypatch.setattr(batch_forward, "attends_packed", lambda model: True)
        model = family_model("minimax", PADDED["minimax"])
        expected = one_by_one(model, rows)
        forward = BatchForward(model)
        with pytest.warns(UserWarning, match=r"scores differ by up to \d"):
            logits = model(rows=rows).logits
        assert not forward.packs
        assert_same(model, logits, expected)

    def test_notices_a_model_that_counts_positions_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = family_model("llama", {})
        rows = batch_of_rows()
        expected = one_by_one(model, rows)
        run = model.model.forward
        monkeypatch.setattr(model.model, "forward", lambda position_ids=None, **settings: run(**settings))
        forward = BatchForward(model)
        with pytest.warns(UserWarning, match=r"scores differ by up to \d.*padded instead"):
            logits = model(rows=rows).logits
        assert not forward.packs
        assert_same(model, logits, expected)

    @pytest.mark.parametrize(("difference", "packs"), [(0.5e-4, True), (3e-4, False)])
    def test_is_strict_in_single_precision(self, difference: float, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.packs_in_spite_of(difference, make_model("llama"), monkeypatch) == packs

    @pytest.mark.parametrize(("difference", "packs"), [(0.02, True), (0.5, False)])
    @pytest.mark.parametrize("autocast", [True, False])
    def test_is_lenient_in_half_precision(
        self, difference: float, packs: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make_model("llama")
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            model = model if autocast else model.bfloat16()
            assert self.packs_in_spite_of(difference, model, monkeypatch) == packs

    @pytest.mark.filterwarnings("ignore:LlamaForSequenceClassification cannot be trained on packed rows")
    def packs_in_spite_of(self, difference: float, model: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
        torch.nn.init.zeros_(model.score.weight)
        run = model.score.forward
        calls: list[int] = []

        def score(hidden: torch.Tensor) -> Any:
            calls.append(len(hidden))
            return run(hidden) + (difference if len(calls) == 1 else 0)

        monkeypatch.setattr(model.score, "forward", score)
        forward = BatchForward(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(rows=[[5, 6, 7], [5, 6, 8]])
        return forward.packs

    def test_passes_on_that_memory_is_lacking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model("llama").train()
        forward = BatchForward(model)

        def lack(**settings: Any) -> Any:
            raise torch.OutOfMemoryError("not enough")

        monkeypatch.setattr(model.model, "forward", lack)
        with pytest.raises(torch.OutOfMemoryError):
            model(rows=[[5, 6, 7]])
        assert forward.packs
        assert model.training


# --- What training does to it ----------------------------------------------------------------------------------------------


@contextmanager
def counted_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The tokens of every packed attention that runs."""
    calls: list[int] = []
    attention = Packing.attention

    def counted(self: Packing, query: torch.Tensor, *args: Any) -> torch.Tensor:
        calls.append(query.shape[2])
        return attention(self, query, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Packing, "attention", counted)
        yield calls


class TestGradientCheckpointing:
    @pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox", "opt", "mixtral"])
    def test_of_packed_rows(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = batch_of_rows()
        model = family_model(family, SHARING[family], **DROPOUTS, dropout=0.0)
        expected = one_by_one(model, rows)
        self.checkpoint(model)
        forward = BatchForward(model, 70)
        compare(model)
        with counted_attention(monkeypatch) as calls, forward.attention():
            logits = model(rows=rows).logits
            forwards = len(calls)
            assert_same(model, logits, expected, tolerance_of(family))
        assert forwards > 2  # more than a micro-batch of two layers
        assert len(calls) == 2 * forwards
        assert forward.packs
        assert model.config._attn_implementation == "sdpa"

    @pytest.mark.parametrize("family", ["gemma2", "mistral", "nemotron"])
    def test_of_rows_that_cannot_be_packed(self, family: str) -> None:
        rows = batch_of_rows()
        settings, reason = FALLING_BACK[family]
        model = family_model(family, settings)
        expected = one_by_one(model, rows)
        self.checkpoint(model)
        implementation = model.config._attn_implementation
        forward = BatchForward(model, 70)
        with forward.attention():
            with pytest.warns(UserWarning, match=reason):
                logits = model(rows=rows).logits
            assert_same(model, logits, expected, 1e-6)
        assert model.config._attn_implementation == implementation

    def checkpoint(self, model: Any) -> None:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        assert model.is_gradient_checkpointing


class TestAttention:
    def test_is_packed_within(self) -> None:
        model = make_model("llama")
        forward = BatchForward(model)
        before = model.config._attn_implementation
        with forward.attention():
            assert model.config._attn_implementation == PACKED
            model(rows=[[5, 6], [7]])
            assert model.config._attn_implementation == PACKED
        assert model.config._attn_implementation == before

    def test_is_restored_after_an_error(self) -> None:
        model = make_model("llama")
        forward = BatchForward(model)
        before = model.config._attn_implementation
        with pytest.raises(IndexError), forward.attention():
            forward._checked = True
            model(rows=[[5, VOCABULARY + 7]])
        assert model.config._attn_implementation == before
        with pytest.raises(IndexError):
            model(rows=[[5, VOCABULARY + 7]])
        assert model.config._attn_implementation == before

    def test_is_not_needed_for_the_forward_pass(self) -> None:
        model = family_model("llama", {})
        rows = batch_of_rows()
        expected = one_by_one(model, rows)
        before = model.config._attn_implementation
        BatchForward(model)
        logits = model(rows=rows).logits
        assert model.config._attn_implementation == before
        assert_same(model, logits, expected, 1e-6)

    def test_is_the_models_own_for_padded_rows(self) -> None:
        model = make_model("llama")
        forward = BatchForward(model)
        seen = []
        model.model.layers[0].register_forward_pre_hook(lambda *_: seen.append(model.config._attn_implementation))
        with forward.attention():
            model(rows=[[5, 6], [7]])
        assert seen == [PACKED, "sdpa", PACKED]


def test_autocast() -> None:
    rows = batch_of_rows()
    model = make_model("qwen2")
    with torch.autocast("cpu", torch.bfloat16):
        expected = one_by_one(model, rows)
        forward = run_with(model, 80)
        assert_same(model, model(rows=rows).logits, expected, 0.05)
    assert forward.packs


def test_accelerates_conversion_of_outputs() -> None:
    model = make_model("qwen2", tie_word_embeddings=True)
    weight = model.get_input_embeddings().weight
    BatchForward(model, language_model_head=lambda hidden: linear(hidden, weight.to(hidden.dtype)))
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    for starts in (None, [1, 1]):
        output = model(rows=[[5, 6, 7], [5, 8]], completion_starts=starts)
        assert isinstance(output, BatchOutput)
        assert output.logits is not None and output.logits.dtype == torch.float32
        assert (output.logprobs is None) == (starts is None)


def test_an_adapter() -> None:
    peft = pytest.importorskip("peft")
    rows = batch_of_rows(PAD)
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
    for family in ("qwen2", "gemma2"):
        model = peft.get_peft_model(family_model(family, {}), settings).double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)  # it starts as nothing
        expected = one_by_one(model, rows)
        assert any("score" in name for name in expected[1]) and any("lora_A" in name for name in expected[1])
        forward = BatchForward(model.get_base_model(), 80)
        with pytest.warns(UserWarning, match="uses softcap") if family == "gemma2" else nullcontext(), forward.attention():
            assert_same(model, model(rows=rows).logits, expected, 1e-6)
        assert forward.packs == (family == "qwen2")


def test_ddp_sees_one_call() -> None:
    rows = batch_of_rows()
    model = family_model("llama", {})
    expected = one_by_one(model, rows)
    forward = BatchForward(model, 30)
    store = distributed.HashStore()  # type: ignore[attr-defined]  # it is exported where torch is built with it
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        calls: list[int] = []
        model.register_forward_pre_hook(lambda *_: calls.append(1))
        for _ in range(2):  # DDP notices in the second one what was amiss in the first
            with forward.attention():
                logits = wrapped(rows=rows).logits
                found = gradients(model, loss_of(logits))
        assert len(calls) == 2
        torch.testing.assert_close(logits, expected[0])
        torch.testing.assert_close(found, expected[1])
    finally:
        distributed.destroy_process_group()


# --- Log-probabilities -----------------------------------------------------------------------------------------------------


class TestLogprobs:
    LANGUAGE_MODELS = ("llama", "gpt2", "bloom", "gptj", "gemma2")

    def head(self, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda hidden: linear(hidden, model.get_input_embeddings().weight)

    def expected(self, model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int | None]) -> torch.Tensor:
        found = []
        for row, start in zip(rows, starts, strict=True):
            hidden = getattr(model, model.base_model_prefix)(input_ids=torch.tensor([row])).last_hidden_state
            every = self.head(model)(hidden)[0, :-1].log_softmax(-1)  # of the tokens from the second one on
            asked = torch.tensor(row[1:])[:, None]
            own = every.gather(1, asked)[:, 0][max(start, 1) - 1 :] if start is not None else every.new_zeros(0)
            found.append(own.mean() if len(own) else every.new_tensor(torch.nan))
        return torch.stack(found)

    def starts(self, rows: Sequence[Sequence[int]]) -> list[int | None]:
        """Within rows, at their beginnings, at and behind their ends, and none."""
        choices: list[Callable[[int], int | None]] = [
            *(lambda length: length // 2, lambda length: length - 1, lambda length: 0, lambda length: 1),
            *(lambda length: None, lambda length: length, lambda length: length + 5),
        ]
        return [choices[number % len(choices)](len(row)) for number, row in enumerate(rows)]

    @pytest.mark.parametrize("family", LANGUAGE_MODELS)
    @pytest.mark.filterwarnings("ignore:Gemma2ForSequenceClassification cannot be trained on packed rows")
    def test_are_those_of_the_rows_one_by_one(self, family: str, rows: list[list[int]]) -> None:
        model = family_model(family, {**SHARING, "gemma2": {"query_pre_attn_scalar": 8}}[family])
        rows = [*rows, *rows[:7]]  # duplicates with other starts
        for starts in (self.starts(rows), self.starts(rows)[::-1]):
            expected = self.expected(model, rows, starts)
            asked = ~expected.isnan()
            assert 0 < asked.sum() < len(rows)
            weights = torch.linspace(1, 2, int(asked.sum()), dtype=torch.float64)
            expected_gradients = gradients(model, (expected[asked] * weights).sum())
            for max_tokens in (60, 4_000):
                run_with(model, max_tokens, language_model_head=self.head(model))
                output = model(rows=rows, completion_starts=starts)
                vars(model).pop("forward")
                assert output.logprobs.isnan().tolist() == expected.isnan().tolist()
                torch.testing.assert_close(output.logprobs.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
                found = gradients(model, (output.logprobs[asked] * weights).sum())
                scale = max(gradient.abs().max().item() for gradient in expected_gradients.values())
                for name, gradient in expected_gradients.items():
                    torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=1e-4, atol=1e-5, msg=name)
                logits = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])
                torch.testing.assert_close(output.logits, logits, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("autocast", [True, False])
    def test_are_single_precision_whatever_the_model_is(self, autocast: bool) -> None:
        model = make_model("llama")
        rows: list[list[int]] = [[5, 6, 7, 8], [5, 6, 9]]
        expected = self.expected(model, rows, [1, 1])
        model = model if autocast else model.bfloat16()
        BatchForward(model, language_model_head=self.head(model))
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            found = model(rows=rows, completion_starts=[1, 1]).logprobs
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)

    def test_where_none_is_asked_for(self) -> None:
        model = make_model("llama")
        BatchForward(model, language_model_head=self.head(model))
        assert model(rows=[[5, 6, 7], [8]]).logprobs is None
        assert model(rows=[[5, 6, 7], [8]], completion_starts=[None, None]).logprobs is None

    @pytest.mark.parametrize("family", ["llama", "bert"])
    def test_of_a_model_that_gives_none(self, family: str) -> None:
        model = make_model(family)
        BatchForward(model, language_model_head=self.head(model) if family == "bert" else None)
        with pytest.raises(UnsupportedError, match=rf"{type(model).__name__} has no language-model head"):
            model(rows=[[5, 6, 7]], completion_starts=[1])


# --- The model besides -----------------------------------------------------------------------------------------------------


class TestTheModelIsTheSame:
    @pytest.mark.parametrize("family", ["llama", "gemma2", "bert"])
    @pytest.mark.filterwarnings("ignore:Gemma2ForSequenceClassification cannot be trained on packed rows")
    def test_when_called_plainly(self, family: str) -> None:
        model = make_model(family)
        ids, mask = torch.tensor([[5, 6, 7], [8, 9, PAD]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
        labels = torch.tensor([0.3, 0.1])
        expected = model(input_ids=ids, attention_mask=mask, labels=labels)
        BatchForward(model)
        model(rows=[[5, 6, 7], [8, 9]])
        found = model(input_ids=ids, attention_mask=mask, labels=labels)
        assert type(found) is type(expected)
        torch.testing.assert_close((found.loss, found.logits), (expected.loss, expected.logits))
        torch.testing.assert_close(model(ids, mask).logits, expected.logits)

    def test_when_saved(self, tmp_path: Path) -> None:
        model = make_model("llama")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.save_pretrained(tmp_path / "before")
        forward = BatchForward(model)
        model(rows=[[5, 6, 7], [8, 9]])
        assert list(model.state_dict()) == list(before)
        torch.testing.assert_close(dict(model.state_dict()), before)
        with forward.attention():
            model.save_pretrained(tmp_path / "after")
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
        assert PACKED not in json.dumps(model.config.to_dict())
        loaded = type(model).from_pretrained(tmp_path / "after")
        assert loaded.config._attn_implementation == "sdpa"
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)

    def test_when_copied(self) -> None:
        model = make_model("llama")
        forward = BatchForward(model)
        rows = [[5, 6, 7], [8, 9]]
        expected = model(rows=rows).logits
        copied = copy.deepcopy(model)
        assert copied.forward is not forward
        assert copied.forward.model is copied
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        torch.testing.assert_close(copied(rows=rows).logits, expected)
        torch.testing.assert_close(copied(input_ids=torch.tensor([rows[0]])).logits[0], expected[0])
        assert not model(rows=rows).logits.any()

    def test_when_it_is_given_another_one(self) -> None:
        model = make_model("llama")
        rows = batch_of_rows()
        expected = one_by_one(model, rows)
        BatchForward(model, 30)
        assert BatchForward(model, 90).packs
        assert_same(model, model(rows=rows).logits, expected)
        torch.testing.assert_close(model(input_ids=torch.tensor([rows[0]])).logits[0], expected[0][0], rtol=1e-4, atol=1e-4)

    def test_whatever_its_own_attention_is(self) -> None:
        rows = batch_of_rows()
        for family in ("llama", "gemma2"):
            model = make_model(family)
            model.set_attn_implementation("eager")
            expected = one_by_one(model, rows)
            forward = BatchForward(model)
            with pytest.warns(UserWarning) if family == "gemma2" else nullcontext(), forward.attention():
                assert_same(model, model(rows=rows).logits, expected)
            assert model.config._attn_implementation == "eager"
