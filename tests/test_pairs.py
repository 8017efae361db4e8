"""Cross-encoders: a prompt and a completion encoded as a pair, as `tokenizer(prompt, completion)` does."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
)

import rm_plugins as rm
from rm_plugins.errors import ModelError, ScoringError, SpecError
from rm_plugins.models.manifest import Manifest
from rm_plugins.models.merge import merge_models
from rm_plugins.providers.models.model_provider import ModelProvider
from rm_plugins.rendering.pairs import PairTokenizer
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.rendering.token_types import TYPE_STEP, ids_and_types
from rm_plugins.samples import RenderedSample
from rm_plugins.server.served_reward import ServedReward
from tests.conftest import MakeFolder

SAMPLES = [
    rm.Sample("Is the sea salty?", "Yes."),
    rm.Sample("Is the sea salty?", "Four [SEP] is a colour."),
    rm.Sample("A question with [SEP] in it.", "An answer"),
    rm.Sample("", "yes"),
    rm.Sample("Say nothing.", ""),
    rm.Sample("The sea is salty. " * 40, "blue " * 3),
    rm.Sample("Name a colour.", "The sea is blue. " * 40),
    rm.Sample("The sea. " * 50, "Blue. " * 50),
]


def _one(text: str) -> list[str]:
    """A text as a batch: what is empty in one is a text, too."""
    return [text]


def by_hand(folder: Path, samples: list[rm.Sample] = SAMPLES) -> list[float]:
    """What the model says of each pair by itself, encoded and cut by its own tokenizer."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    values = []
    for sample in samples:
        inputs = tokenizer([sample.prompt], [sample.completion], truncation="longest_first", return_tensors="pt")
        with torch.no_grad():
            values.append(float(model(**inputs).logits[0, 0]))
    return values


def differ(joined: Any, folder: Path) -> bool:
    expected = np.array(by_hand(folder))
    return bool(np.abs(joined - expected)[:3].min() > 0.01 and np.ptp(expected) > 0.5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("max_batch_tokens", [16, 2_000])
def test_scores_are_those_of_pairs(family: str, max_batch_tokens: int, tiny_encoder: MakeFolder) -> None:
    # The vocabulary is another one in each run, and with some of them a text happens to have the score of a pair.
    folders = (tiny_encoder(family=family, pairs=True) for _ in range(10))
    folder, joined = next(
        (one, joined) for one in folders if differ(joined := rm.load(one, pair=False).score(SAMPLES).values, one)
    )
    expected = by_hand(folder)
    assert np.ptp(expected) > 0.5
    provider = rm.load(folder, pair=True, max_batch_tokens=max_batch_tokens)
    np.testing.assert_allclose(provider.score(SAMPLES).values, expected, atol=1e-4)
    np.testing.assert_allclose(provider.score(SAMPLES[::-1]).values[::-1], expected, atol=1e-4)
    assert np.abs(joined - expected)[:3].min() > 0.01


def test_a_real_encoder(minilm_path: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=1, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(minilm_path).save_pretrained(tmp_path)
    np.testing.assert_allclose(rm.load(tmp_path, pair=True).score(SAMPLES).values, by_hand(tmp_path), atol=1e-4)


def test_a_kept_score_is_of_the_pair_or_of_the_text(tiny_encoder: MakeFolder, tmp_path: Path) -> None:
    folder, file = tiny_encoder(pairs=True), str(tmp_path / "scores.sqlite")
    plain = [rm.load(folder, pair=pair).score(SAMPLES).values for pair in (True, False)]
    for _ in range(2):
        kept = [rm.load(folder, pair=pair, cache=file).score(SAMPLES).values for pair in (True, False)]
        np.testing.assert_array_equal(kept, plain)


@pytest.mark.parametrize("texts", [("a b", "[SEP]"), ("[SEP] a", "b")], ids=str)
def test_token_types_are_of_the_texts_and_not_of_the_separators(texts: tuple[str, str], tiny_encoder: MakeFolder) -> None:
    folder = tiny_encoder(pairs=True)
    provider = rm.load(folder, pair=True)
    assert isinstance(provider, ModelProvider)
    (row,), _ = provider.renderer.token_ids([rm.Sample(*texts)])
    encoded = AutoTokenizer.from_pretrained(folder)(*texts)
    assert ids_and_types(row) == (encoded["input_ids"], encoded["token_type_ids"])


@pytest.fixture(scope="module", params=itertools.product(["bert", "roberta"], ["right", "left"]), ids="-".join)
def tokenizer(request: pytest.FixtureRequest, tiny_encoder: MakeFolder) -> Any:
    family, side = request.param
    return AutoTokenizer.from_pretrained(tiny_encoder(family=family, pairs=True), truncation_side=side)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_long_pairs_are_cut_as_by_the_tokenizer(data: st.DataObject, tokenizer: Any) -> None:
    words = st.lists(st.sampled_from(["sea", "blue", "what", "?", "[SEP]"]), max_size=30).map(" ".join)
    pair = data.draw(words), data.draw(words)
    limit = data.draw(st.integers(4, 40))
    pairs = PairTokenizer(tokenizer)
    (row,) = pairs([pair])
    cut = pairs.truncated(pair, row, limit) if len(row) > limit else row
    assert ids_and_types(cut)[0] == tokenizer(*map(_one, pair), truncation="longest_first", max_length=limit)["input_ids"][0]


def test_one_message_is_its_text_and_more_are_paragraphs(tiny_encoder: MakeFolder) -> None:
    provider = rm.load(tiny_encoder(pairs=True), pair=True)
    assert isinstance(provider, ModelProvider)
    question = {"role": "user", "content": "Is the sea salty?"}
    conversation = rm.Sample([question], "Yes.")
    assert provider.renderer.pair_texts(conversation) == ("Is the sea salty?", "Yes.")
    scores = provider.score([conversation, rm.Sample("Is the sea salty?", "Yes.")]).values
    assert scores[0] == scores[1]
    system = rm.Sample([{"role": "system", "content": "Be brief."}, question], "Yes.")
    assert provider.renderer.pair_texts(system) == ("System: Be brief.\n\nUser: Is the sea salty?", "Yes.")


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_of_which_nothing_is_known_asks(family: str, tiny_encoder: MakeFolder) -> None:
    provider = rm.load(tiny_encoder(family=family, pairs=True))
    for samples in (
        SAMPLES,
        [rm.Sample("", "yes")],
        [rm.Sample("Say nothing.", "")],
    ):  # a pair has separators of what is empty, too
        with pytest.raises(ModelError, match=r"`pair: true` or `pair: false`"):
            provider.score(samples)
    assert np.isfinite(provider.score([RenderedSample.of("yes")]).values).all()


def test_the_manifest_says_it_and_merging_keeps_it(tiny_encoder: MakeFolder, tmp_path: Path) -> None:
    first = tiny_encoder(pairs=True)
    members = [first, Path(shutil.copytree(first, tmp_path / "copy"))]
    for member in members:
        Manifest(created_by={}, rendering=Rendering("plain", False, 128, pair=True), dtype="float32").write(member)
        np.testing.assert_allclose(rm.load(member).score(SAMPLES).values, by_hand(member), atol=1e-4)
    merge_models(list(map(str, members)), tmp_path / "out")
    merged = rm.load(tmp_path / "out")
    np.testing.assert_allclose(merged.score(SAMPLES).values, by_hand(tmp_path / "out"), atol=1e-4)
    assert isinstance(merged, ModelProvider) and merged.verify() == []


class TestRefused:
    def test_eos_behind_a_pair(self, tiny_encoder: MakeFolder) -> None:
        with pytest.raises(SpecError, match="append_eos"):
            rm.load(tiny_encoder(pairs=True), pair=True, append_eos=True)

    def test_a_model_that_knows_fewer_types(self, tiny_encoder: MakeFolder) -> None:
        folder, other = tiny_encoder(pairs=True), tiny_encoder(pairs=True)
        model = BertForSequenceClassification(BertConfig.from_pretrained(folder, type_vocab_size=1))
        model.save_pretrained(folder)
        with pytest.raises(ScoringError, match="has 1 token types"):
            rm.load(folder, pair=True, tokenizer=str(other)).score(SAMPLES)

    @pytest.mark.parametrize("pair", [True, False])
    def test_token_ids_that_would_be_types(self, pair: bool, tiny_encoder: MakeFolder) -> None:
        provider = rm.load(tiny_encoder(pairs=True), pair=pair, on_error="abstain")
        scores = provider.score([RenderedSample.of([2, 5, TYPE_STEP + 5, 3]), RenderedSample.of([2, 5, 3])])
        assert "is not a token id" in str(scores.errors[0])
        assert np.isfinite(scores.values[1])


def test_what_the_server_shows_has_token_ids(tiny_encoder: MakeFolder) -> None:
    reward = ServedReward.load({"provider": "sequence-classifier", "model": str(tiny_encoder(pairs=True)), "pair": True})
    ((shown,),) = reward.render([rm.Sample("Is the sea salty?", "Yes.")])
    assert max(shown["token_ids"]) < TYPE_STEP
    assert shown["tokens"].count("[SEP]") == 2
    assert "[SEP]" in shown["text"]


def test_a_decoders_family_whose_rows_end_with_cls_asks_too(tmp_path: Path) -> None:
    """XLNet's tokenizer closes texts with the separator and the token that its classifier reads."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<sep>": 2, "<cls>": 3, "</s>": 4, "a": 5, "b": 6}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2", pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2", special_tokens=[("<sep>", 2), ("<cls>", 3)]
    )
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "sep_token": "<sep>", "cls_token": "<cls>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **names).save_pretrained(tmp_path)
    XLNetForSequenceClassification(
        XLNetConfig(vocab_size=7, d_model=16, n_layer=1, n_head=2, d_inner=16, num_labels=1, pad_token_id=1)
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"`pair: true` or `pair: false`"):
        rm.load(tmp_path).score([rm.Sample("a", "b")])
    np.testing.assert_allclose(
        rm.load(tmp_path, pair=True).score([rm.Sample("a", "b")]).values, by_hand(tmp_path, [rm.Sample("a", "b")]), atol=1e-5
    )
