"""The forward pass beside what trainers do with a model: checkpointing, autocast, adapters, DDP, language-model heads."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import distributed
from torch.nn.functional import linear

from rm_plugins.engine.batch_forward import BatchForward, BatchOutput
from rm_plugins.engine.packing import PACKED, Packing
from rm_plugins.errors import UnsupportedError
from tests.batch_forward.conftest import (
    FALLING_BACK,
    assert_same,
    batch_of_rows,
    compare,
    family_model,
    gradients,
    loss_of,
    one_by_one,
    run_with,
    tolerance_of,
)
from tests.test_scoring_engine import PAD, SHARING, VOCABULARY, make_model
from tests.warm_process import call_warm

DROPOUTS = {"attention_dropout": 0.0, "hidden_dropout": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


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
        compare(model, rows)
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
        compare(model)
        with pytest.raises(IndexError), forward.attention():
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
        assert seen == ["sdpa"] * 3 + [PACKED, "sdpa", PACKED]


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
    call_warm(ddp_sees_one_call)


def ddp_sees_one_call() -> None:
    rows = batch_of_rows()
    model = family_model("llama", {})
    expected = one_by_one(model, rows)
    forward = BatchForward(model, 30)
    store = distributed.HashStore()  # type: ignore[attr-defined]  # it is exported where torch is built with it
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
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
