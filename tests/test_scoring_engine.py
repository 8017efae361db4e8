"""The scoring engine gives the scores of one row at a time, for every family of models, whatever rows have in common."""

from __future__ import annotations

import inspect
import logging
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from rm_plugins.engine import segment_pack
from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.engine.engine import ScoringEngine
from rm_plugins.engine.prefix_cache import PrefixCache
from rm_plugins.engine.readout import LastToken
from rm_plugins.errors import ScoringError

VOCABULARY = 120
PAD = 3
STEP = 9
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": 1,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}
SHARING: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "phi": {},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "mistral": {"sliding_window": None},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gptj": {**GPT, "rotary_dim": 8},
    "gpt_neox": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"alibi": False},
    "falcon with alibi": {"alibi": True},
    "biogpt": {},
}
PADDED = {"gptj", "gpt_neo", "bloom", "falcon", "falcon with alibi", "biogpt"}
"""Families of these whose attention cannot be replaced."""
PLAIN: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 8},
    "gemma3_text that looks ahead": {"use_bidirectional_attention": True},
    "mistral": {"sliding_window": 8},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "jamba": {"num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "bert": {},
    "deberta-v2": {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_buckets": 16,
    },
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
}


def make_model(family: str, **settings: Any) -> Any:
    set_seed(0)
    settings = {**SIZES, **settings}
    if family.startswith("falcon"):
        del settings["head_dim"]  # it follows from the others
    config = AutoConfig.for_model(family.partition(" ")[0], **settings)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # otherwise all scores are nearly the same
    return model


def rows_with_prefixes(seed: int, last: int | None = None) -> list[list[int]]:
    """Rows with shared prefixes of several levels, duplicates, prefixes of one another, single tokens, and loners."""
    source = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [source.randrange(4, VOCABULARY) for _ in range(count)]

    rows = []
    system = tokens(12)
    for length in (30, 21, 22):
        prompt = [*system, *tokens(length)]
        rows += [[*prompt, *tokens(source.randrange(1, 14))] for _ in range(5)]
        rows += [prompt, [*prompt, PAD, 7]]
    rows += [tokens(1), tokens(1), tokens(40), system, rows[3], rows[3], [PAD], [PAD, PAD]]
    if last is not None:
        rows = [[*row, last] for row in rows]
    source.shuffle(rows)
    return rows


def padding_engine(model: Any, max_tokens: int) -> ScoringEngine:
    """An engine that pads rows with shared prefixes, as on a GPU."""
    engine = ScoringEngine(model, max_tokens)
    engine.packs = False
    return engine


def one_by_one(model: Any, rows: Sequence[Sequence[int]]) -> Any:
    """transformers' own scores of each row by itself."""
    with torch.inference_mode():
        return np.concatenate([model(input_ids=torch.tensor([list(row)])).logits.double().numpy() for row in rows])


def close(scores: Any, expected: Any) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=[pytest.param(None, id="no EOS"), pytest.param(2, id="EOS"), pytest.param(PAD, id="pad is EOS")])
def rows(request: pytest.FixtureRequest) -> list[list[int]]:
    return rows_with_prefixes(1, request.param)


@pytest.mark.parametrize("max_tokens", [24, 120, 4_000])
@pytest.mark.parametrize("family", SHARING)
def test_a_decoder_that_shares_prefixes(family: str, max_tokens: int, rows: list[list[int]]) -> None:
    model = make_model(family, **SHARING[family])
    expected = one_by_one(model, rows)
    assert np.ptp(expected) > 0.05
    engine = ScoringEngine(model, max_tokens)
    scores, work = engine.outputs(rows)
    close(scores, expected)
    assert engine.shares_prefixes
    assert engine.packs == (family not in PADDED)
    assert work.unique_tokens < 0.7 * work.tokens


@pytest.mark.parametrize("family", sorted({*SHARING} - PADDED))
def test_a_decoder_that_pads_what_it_could_pack(family: str) -> None:
    rows = rows_with_prefixes(1)
    model = make_model(family, **SHARING[family])
    engine = padding_engine(model, 120)
    scores, work = engine.outputs(rows)
    close(scores, one_by_one(model, rows))
    assert engine.shares_prefixes
    assert work.unique_tokens < work.padded_tokens


def test_a_decoder_whose_attention_is_more_than_plain_pads(caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_with_prefixes(1)
    model = make_model("gemma2", layer_types=["full_attention"] * 2)
    engine = ScoringEngine(model, 120)
    with caplog.at_level(logging.DEBUG, "rm_plugins"), warnings.catch_warnings():
        warnings.simplefilter("error")
        scores, _ = engine.outputs(rows)
    close(scores, one_by_one(model, rows))
    assert "pads rows that share prefixes: UnsupportedError: Gemma2Attention uses softcap" in caplog.text
    assert engine.shares_prefixes
    assert not engine.packs


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_packed_rows_share_prefixes_exactly(family: str) -> None:
    rows = rows_with_prefixes(3)
    model = make_model(family, **SHARING[family])
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model.to(dtype)
        engine = ScoringEngine(model, 60)
        scores, _ = engine.outputs(rows)
        np.testing.assert_allclose(scores, one_by_one(model, rows), rtol=tolerance, atol=tolerance)
        assert engine.packs
        plan = engine._plan(rows, share_prefixes=True)
        assert all(batch.padded_tokens == sum(map(len, batch.segments)) for batch in plan.batches if batch.segments[0].start)


@pytest.mark.parametrize("family", PLAIN)
def test_a_model_that_shares_nothing(family: str, rows: list[list[int]]) -> None:
    model = make_model(family, **PLAIN[family])
    expected = one_by_one(model, rows)
    assert np.ptp(expected) > 0.05
    engine = ScoringEngine(model, 120)
    scores, work = engine.outputs(rows)
    close(scores, expected)
    assert not engine.shares_prefixes
    assert work.duplicates >= 2


def test_an_over_long_row_runs_in_pieces() -> None:
    model = make_model("llama", max_position_embeddings=2_048)
    source = random.Random(0)
    rows = [[source.randrange(4, VOCABULARY) for _ in range(length)] for length in (1_000, 3, 70)]
    expected = one_by_one(model, rows)
    widths: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: widths.append(output.shape[1]))
    close(ScoringEngine(model, 128).outputs(rows)[0], expected)
    assert max(widths) == 128


def test_a_model_that_refuses_batches_without_a_padding_token() -> None:
    model = make_model("openai-gpt", **GPT, pad_token_id=None)
    rows = [[5, 6, 7], [8, 9], [10, 11, 12]]
    with pytest.raises(ValueError, match="padding token"):
        model(input_ids=torch.tensor([rows[0], rows[2]]))
    close(ScoringEngine(model).outputs(rows)[0], one_by_one(model, rows))


def test_a_batch_of_none() -> None:
    outputs, work = ScoringEngine(make_model("llama")).outputs([])
    assert outputs.shape == (0, 1)
    assert work.rows == 0


def test_duplicates_run_once() -> None:
    engine = ScoringEngine(make_model("bert"))
    outputs, work = engine.outputs([[5, 6, 7], [8, 9], [5, 6, 7], [5, 6, 7]])
    assert (work.rows, work.duplicates, work.tokens, work.unique_tokens, work.padded_tokens) == (4, 2, 11, 5, 6)
    assert work.as_metadata()["duplicate_share"] == 0.5
    assert outputs[0] == outputs[2] == outputs[3] != outputs[1]


def test_half_precision_shares_as_well() -> None:
    rows = rows_with_prefixes(1)
    model = make_model("qwen2").to(torch.bfloat16)
    engine = ScoringEngine(model, 200)
    scores, _ = engine.outputs(rows)
    assert engine.shares_prefixes
    assert engine.packs
    np.testing.assert_allclose(scores, one_by_one(model, rows), rtol=0.05, atol=0.05)


class TestAModelThatDoesNotContinueItsCacheRightly:
    def test_is_noticed_by_its_scores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = PrefixCache.arguments

        def without_positions(self: PrefixCache, backbone: Any) -> dict[str, Any]:
            given = arguments(self, backbone)
            return {**given, "position_ids": torch.zeros_like(given["position_ids"])}

        monkeypatch.setattr(PrefixCache, "arguments", without_positions)
        self.falls_back(r"differ by up to \d")

    def test_is_noticed_by_an_exception(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: PrefixCache, backbone: Any) -> dict[str, Any]:
            raise TypeError("forward() takes no cache")

        monkeypatch.setattr(PrefixCache, "arguments", refuse)
        self.falls_back(r"TypeError: forward\(\) takes no cache")

    def test_is_noticed_where_only_padded_prefixes_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = PrefixCache.arguments

        def without_mask(self: PrefixCache, backbone: Any) -> dict[str, Any]:
            return {name: value for name, value in arguments(self, backbone).items() if name != "attention_mask"}

        monkeypatch.setattr(PrefixCache, "arguments", without_mask)
        model = make_model("qwen2")
        engine = padding_engine(model, 400)
        prompt = list(range(10, 80))
        even = [[*prompt, number] for number in range(4, 9)]
        close(engine.outputs(even)[0], one_by_one(model, even))
        assert engine.shares_prefixes
        uneven = [[*prompt, 90, *range(4, 44), number] for number in range(4, 9)] + [
            [*prompt, 91, *range(20, 80), number] for number in range(4, 9)
        ]
        with pytest.warns(UserWarning, match="differ by up to"):
            scores, _ = engine.outputs(uneven)
        close(scores, one_by_one(model, uneven))

    @pytest.mark.parametrize("wrong", ["_merge", "_part"])
    def test_is_noticed_in_packs_which_are_padded_then(self, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(segment_pack, wrong, lambda *args, **settings: None)
        model = make_model("qwen2")
        engine = ScoringEngine(model, 200)
        assert engine.packs
        rows = rows_with_prefixes(1)
        scores, _ = engine.outputs(rows)
        close(scores, one_by_one(model, rows))
        assert (engine.packs, engine.shares_prefixes) == (False, True)

    def falls_back(self, problem: str) -> None:
        rows = rows_with_prefixes(1)
        model = make_model("qwen2")
        engine = padding_engine(model, 200)
        with pytest.warns(
            UserWarning, match=f"Qwen2ForSequenceClassification.*cached prompts.*{problem}.*computed whole"
        ) as caught:
            scores, _ = engine.outputs(rows)
        close(scores, one_by_one(model, rows))
        assert len(caught) == 1
        assert not engine.shares_prefixes
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            close(engine.outputs(rows)[0], scores)


class TestWithoutEnoughMemory:
    """What no CPU can show: a device that runs out of memory beyond some number of tokens at once."""

    def limit(self, engine: ScoringEngine, tokens: int) -> list[int]:
        sizes: list[int] = []
        run: Callable[..., Any] = engine._backbone.forward

        def limited(input_ids: torch.Tensor, **arguments: Any) -> Any:
            if input_ids.numel() > tokens:
                raise torch.OutOfMemoryError(f"{input_ids.numel()} tokens are too many")
            sizes.append(input_ids.numel())
            return run(input_ids=input_ids, **arguments)

        limited.__signature__ = inspect.signature(run)  # type: ignore[attr-defined]
        engine._backbone.forward = limited
        return sizes

    @pytest.mark.parametrize(
        ("family", "packs", "tokens", "halved"),
        [("qwen2", True, 80, 62), ("qwen2", False, 150, 125), ("mistral", False, 150, 125), ("bert", False, 150, 125)],
    )
    def test_the_budget_halves_and_nothing_is_lost(
        self, family: str, packs: bool, tokens: int, halved: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = rows_with_prefixes(1)
        model = make_model(family)
        expected = one_by_one(model, rows)
        engine = ScoringEngine(model, 1_000) if packs else padding_engine(model, 1_000)
        self.limit(engine, tokens)
        with caplog.at_level(logging.WARNING, "rm_plugins"):
            scores, _ = engine.outputs(rows)
        close(scores, expected)
        assert (engine.packs, engine.max_tokens) == (packs, halved)
        assert f"ran out of memory; scoring continues with {halved} tokens at a time" in caplog.text

    def test_what_was_done_is_not_done_again(self) -> None:
        engine = ScoringEngine(make_model("bert"), 128)
        engine.outputs([[9] * 60, [9] * 120])  # rows of these lengths are compared once with a simpler computation
        calls: list[int] = []
        run: Callable[..., Any] = engine._backbone.forward

        def fails_once(input_ids: torch.Tensor, **arguments: Any) -> Any:
            calls.append(input_ids.numel())
            if len(calls) == 3:
                raise torch.OutOfMemoryError("this once")
            return run(input_ids=input_ids, **arguments)

        engine._backbone.forward = fails_once
        outputs, work = engine.outputs([[5] * 60, [6] * 120, [7] * 60, [8] * 120])
        assert np.isfinite(outputs).all()
        assert calls == [120, 120, 120, 60, 60]
        assert work.unique_tokens == 480  # the failed ones count: they were tried

    def test_a_row_that_never_fits(self) -> None:
        engine = ScoringEngine(make_model("bert"), 1_000)
        self.limit(engine, 50)
        with pytest.raises(ScoringError, match=r"cpu has too little free memory to score one row or \d+ tokens at a time"):
            engine.outputs([list(range(4, 100))])


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_compiled_scores_are_the_same() -> None:
    inductor = pytest.importorskip("torch._inductor.config")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    rows = rows_with_prefixes(1)
    model = make_model("bert", num_hidden_layers=1)  # most of the time is the compiler's, for each layer
    with inductor.patch(compile_threads=1):  # more would be processes that import torch
        close(ScoringEngine(model, 200, compile=True).outputs(rows)[0], one_by_one(model, rows))


def test_where_a_score_is_read() -> None:
    assert LastToken(PAD).positions([PAD, PAD]) == (0,)
    assert LastToken(PAD).positions([5, PAD, 6, PAD]) == (2,)
    assert LastToken(None).positions([5, PAD]) == (1,)


class StepEnds:
    """Reads a row after each of its steps, which a token closes."""

    def positions(self, ids: Sequence[int]) -> Sequence[int]:
        return [place for place, token in enumerate(ids) if token == STEP]


def test_another_readout_reads_a_row_at_several_tokens() -> None:
    model = make_model("qwen2", num_labels=2)
    steps = [[*range(10, 10 + length), STEP] for length in (3, 9, 1)]
    rows = [[*steps[0], *steps[1], *steps[2]], [*steps[0], *steps[2]], steps[1]]
    with torch.no_grad():  # what the head gives for every token, without the engine
        every = [model.score(model.model(torch.tensor([row])).last_hidden_state)[0].double().numpy() for row in rows]
    expected = np.concatenate([every[number][StepEnds().positions(row)] for number, row in enumerate(rows)])
    assert len(expected) == 6
    assert np.ptp(expected, axis=0).min() > 0.01
    for share_prefixes in (True, False):
        close(ScoringEngine(model, 30, share_prefixes=share_prefixes, readout=StepEnds()).outputs(rows)[0], expected)
    forward = BatchForward(model, 30, readout=StepEnds())
    with forward.attention(), torch.no_grad():
        close(model(rows=rows).logits.double().numpy(), expected)


def test_a_batch_that_a_model_refuses_runs_row_by_row() -> None:
    """BART reads at EOS, and refuses a batch whose rows have different numbers of it."""
    sizes = {
        f"{part}_{name}": size
        for part in ("encoder", "decoder")
        for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    config = AutoConfig.for_model(
        "bart", vocab_size=VOCABULARY, d_model=32, num_labels=1, pad_token_id=PAD, eos_token_id=2, init_std=0.4, **sizes
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    rows = [[5, 6, 2], [5, 2, 7, 2], [8, 9, 10, 2], [2, 2, 11, 2]]
    engine = ScoringEngine(model)
    alone = np.concatenate([ScoringEngine(model).outputs([row])[0] for row in rows])
    np.testing.assert_allclose(engine.outputs(rows)[0], alone, atol=1e-5)
