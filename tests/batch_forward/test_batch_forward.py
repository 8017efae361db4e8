"""A whole training batch in one call: scores, log-probabilities and gradients are those of the rows one by one."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rm_plugins.engine import rows_forward
from rm_plugins.engine.batch_forward import BatchForward, BatchOutput
from tests.batch_forward.conftest import (
    EXPERTS,
    FALLING_BACK,
    assert_same,
    batch_of_rows,
    compare,
    family_model,
    one_by_one,
    run_with,
    tolerance_of,
)
from tests.test_scoring_engine import PLAIN, SHARING, VOCABULARY, make_model

MLA = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12},
    **{"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    **{"moe_intermediate_size": 16, "n_shared_experts": 1, "first_k_dense_replace": 1},
}


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


PADDED: dict[str, dict[str, Any]] = {
    **{family: SHARING[family] for family in ("gptj", "gpt_neo", "bloom", "falcon", "falcon with alibi", "biogpt")},
    **{family: PLAIN[family] for family in ("mpt", "jamba", "gemma3_text that looks ahead")},
    "minimax": {"num_local_experts": 4, "block_size": 8},
    **{family: PLAIN[family] for family in ("bert", "deberta-v2", "modernbert")},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "roberta": {},
}


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
    compare(model, rows)
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
    rows = [[4 + number % 2, *range(10, 60), 60 + number, *range(4)] for number in range(8)]
    compare(model, rows)
    spy.packed.clear()
    model(rows=rows)
    assert spy.packed == expected


def test_padded_micro_batches_keep_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = batch_of_rows()
    for family in ("bert", "bloom"):
        model = family_model(family, {})
        BatchForward(model, 80)
        model(rows=rows)  # compares a few rows
        spy = Spy(model, monkeypatch)
        model(rows=rows)
        assert len(spy.shapes) > 1
        assert all(count * longest <= 80 for count, longest in spy.shapes)
        assert sum(count for count, _ in spy.shapes) == len(rows)


def test_short_rows_are_not_padded_to_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("bert")
    rows = [[5, 6], [5] * 120, [7, 8], [9]]
    BatchForward(model, 4_000)
    compare(model, rows)
    spy = Spy(model, monkeypatch)
    model(rows=rows)
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
    monkeypatch.setattr(rows_forward, "default_max_tokens", lambda model: 70)
    spy = Spy(model, monkeypatch)
    model(rows=batch_of_rows())
    assert forward.max_tokens == 70
    assert len(spy.packed or spy.shapes) > 2


# --- The comparison that decides -------------------------------------------------------------------------------------------


class TestTheComparison:
    def test_happens_in_the_first_call_and_after_ten_and_a_hundred(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model("llama")
        spy = Spy(model, monkeypatch)
        BatchForward(model)
        compared = []
        for call in range(1, 102):
            model(rows=[[5, 6, 7], [5, 6, 8]])
            if spy.shapes:
                compared.append(call)
                spy.shapes.clear()
        assert compared == [1, 10, 100]
        assert len(spy.packed) == 104

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
        monkeypatch.setattr(rows_forward, "attends_packed", lambda model: True)
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
