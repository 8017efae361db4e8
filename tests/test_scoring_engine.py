"""The scoring engine gives the scores of one row at a time, for every family of models, whatever rows have in common."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from rm_plugins.errors import ScoringError
from rm_plugins.scoring.engine import ScoringEngine, read_position

VOCABULARY = 120
PAD = 3
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
PLAIN: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 8},
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


def one_by_one(model: Any, rows: Sequence[Sequence[int]]) -> Any:
    """transformers' own scores of each row by itself."""
    with torch.inference_mode():
        return np.concatenate([model(input_ids=torch.tensor([list(row)])).logits.double().numpy() for row in rows])


def close(found: Any, expected: Any) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


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
    found, work = engine.outputs(rows)
    close(found, expected)
    assert engine.shares_prefixes
    assert work.unique_tokens < 0.7 * work.tokens


@pytest.mark.parametrize("family", PLAIN)
def test_a_model_that_shares_nothing(family: str, rows: list[list[int]]) -> None:
    model = make_model(family, **PLAIN[family])
    expected = one_by_one(model, rows)
    assert np.ptp(expected) > 0.05
    engine = ScoringEngine(model, 120)
    found, work = engine.outputs(rows)
    close(found, expected)
    assert not engine.shares_prefixes
    assert work.duplicates >= 2
