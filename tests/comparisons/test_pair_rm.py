"""PairRM's checkpoints as comparers: rows and probabilities against a forward written from the published description."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model, set_seed

import rm_plugins as rm
from rm_plugins.comparisons import Comparison
from rm_plugins.comparisons.two_answers import TwoAnswers
from rm_plugins.errors import ModelError
from rm_plugins.identity import fingerprint
from tests.comparisons.judges_of_texts import answers
from tests.conftest import MakeFolder

MARKS = ["<|source|>", "<|candidate1|>", "<|candidate2|>"]
SIZE, TASKS = 32, 2
BOTH = [Comparison(0, 1), Comparison(1, 0)]


@pytest.fixture(scope="module")
def pair_rm(tiny_encoder: MakeFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the layout of llm-blender/PairRM-hf: its configuration, its marks and the names of its weights."""
    folder = tmp_path_factory.mktemp("pair-rm")
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder(), model_max_length=10**30)
    tokenizer.add_tokens(MARKS, special_tokens=True)
    tokenizer.save_pretrained(folder)
    relative = {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
    }
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=SIZE,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        max_relative_positions=-1,
        position_biased_input=False,
        share_att_key=True,
        type_vocab_size=0,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        **relative,
    )
    set_seed(0)
    weights = {f"pretrained_model.{name}": value for name, value in DebertaV2Model(config).state_dict().items()}
    for name, shape in {"1": (SIZE, 2 * SIZE), "4": (TASKS, SIZE)}.items():
        weights |= {f"head_layer.{name}.weight": torch.randn(shape) / 4, f"head_layer.{name}.bias": torch.randn(shape[0])}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = dict(
        zip(("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id"), tokenizer.convert_tokens_to_ids(MARKS), strict=True)
    )
    facts = {"architectures": ["DebertaV2PairRM"], "n_tasks": TASKS, "drop_out": 0.05, **ids}
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), **facts}), encoding="utf-8")
    return folder


def published_row(tokenizer: Any, prompt: str, first: str, second: str) -> list[int]:
    """A row as the model card of llm-blender/PairRM-hf describes it."""
    source: list[int] = tokenizer(MARKS[0] + prompt, truncation=True, max_length=1224)["input_ids"]
    rest = (1224 + 2 * 412 - len(source)) // 2
    for text in (MARKS[1] + first, MARKS[2] + second):
        source = [*source, *tokenizer(text, truncation=True, max_length=rest)["input_ids"]]
    return source


def published_logit(folder: Path, row: list[int]) -> float:
    """The difference between the two answers' scores, from the hidden states at the marks."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    backbone = DebertaV2Model(DebertaV2Config.from_pretrained(folder)).eval()
    backbone.load_state_dict({name.removeprefix("pretrained_model."): weights[name] for name in weights if name[0] == "p"})
    marks = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(MARKS)
    with torch.no_grad():
        states = backbone(torch.tensor([row])).last_hidden_state[0]
    prompt, *both = (states[row.index(mark)] for mark in marks)

    def score(answer: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(weights["head_layer.1.weight"] @ torch.cat([prompt, answer]) + weights["head_layer.1.bias"])
        return weights["head_layer.4.weight"] @ hidden + weights["head_layer.4.bias"]

    return float((score(both[0]) - score(both[1])).mean())


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("two and two?", ("four", "one two three")),
        ("two and two?", ("four " * 1500, "one")),
        ("two " * 1500, ("four " * 500, "one " * 300)),
    ],
    ids=["short", "a long answer", "all are long"],
)
def test_rows_and_probabilities_are_the_published_ones(prompt: str, texts: tuple[str, str], pair_rm: Path) -> None:
    comparer, tokenizer = TwoAnswers(model=str(pair_rm)), AutoTokenizer.from_pretrained(pair_rm)
    samples = answers(*texts, prompt=prompt)
    rows = [published_row(tokenizer, prompt, *pair) for pair in (texts, texts[::-1])]
    assert [comparer.token_ids(samples[asked.first], samples[asked.second]) for asked in BOTH] == rows
    assert len(rows[0]) <= 2048
    logits = np.array([published_logit(pair_rm, row) for row in rows])
    assert abs(logits[0] + logits[1]) > 1e-3  # the order matters
    np.testing.assert_allclose(comparer.compare(samples, BOTH).probabilities, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_in_a_spec(pair_rm: Path) -> None:
    """Rows of other lengths in the batch change nothing, and a copy gives the same scores."""
    spec = {"provider": "comparison", "comparer": {"name": "two-answers", "model": str(pair_rm)}, "contradictions": "average"}
    rewards = rm.load(spec)
    samples = answers("four", "one two three", "two and one", prompt="two and two?")
    scores = rewards.score(samples)
    assert not scores.abstained.any()
    copy = pickle.loads(pickle.dumps(rewards))
    np.testing.assert_allclose(copy.score(samples[::-1]).values, scores.values[::-1], atol=1e-5)
    assert fingerprint(copy) == fingerprint(rewards)


def test_a_mark_in_a_text_is_a_failed_comparison(pair_rm: Path) -> None:
    samples = [*answers("four", "one"), *answers("<|candidate2|> is better")]
    verdicts = TwoAnswers(model=str(pair_rm)).compare(samples, [Comparison(0, 1), Comparison(0, 2)])
    assert np.isnan(verdicts.probabilities).tolist() == [False, True]
    assert "has the token '<|candidate2|>' 2 times" in verdicts.errors[1]


def test_it_has_no_score_for_a_single_answer(pair_rm: Path) -> None:
    with pytest.raises(ModelError, match=r"compares two answers.*`comparer: \{name: two-answers, model: "):
        rm.load(str(pair_rm))
