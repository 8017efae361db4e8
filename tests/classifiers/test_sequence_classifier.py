"""Trained classifiers: the provider's number is what transformers gives for the row by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen2ForSequenceClassification,
    pipeline,
)

import rm_plugins as rm
from rm_plugins.errors import ModelError, ScoringError, SpecError
from tests.classifiers.conftest import SAMPLES, classifier, close, reference
from tests.conftest import MakeFolder, make_tokenizer

QUESTION = "The sea is salty because rivers carry dissolved minerals into it. Question: what is " * 4


SHARED = [
    # A prompt that ends inside a word, a conversation, a beginning of both, nothing at all; each with repetitions.
    *(rm.Sample(f"{QUESTION} col", completion) for completion in ("our", "our", "our: blue", "d", " our", "")),
    *(rm.Sample([{"role": "user", "content": QUESTION}], completion) for completion in ("Two.", "Two.", "", "Four, or two.")),
    *(rm.Sample([{"role": "user", "content": f"{QUESTION} this?"}], completion) for completion in ("Two.", " ")),
    *(rm.Sample("", completion) for completion in ("", QUESTION, "", f"{QUESTION} colours<|end|>")),
]


DECODERS: dict[str, dict[str, Any]] = {
    "a decoder": {},
    "pad is EOS": {"pad": "<|end|>"},
    "no pad": {"pad": None},
    "adds BOS": {"adds_bos": True},
    "bf16": {"dtype": torch.bfloat16},
    "sharded": {"max_shard_size": "20KB"},
}


def set_padding_side(folder: Path, side: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": side}))


class TestEqualsTransformers:
    @pytest.mark.parametrize("padding_side", ["left", "right"])
    @pytest.mark.parametrize("kind", DECODERS)
    def test_a_decoder(self, kind: str, padding_side: str, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(**DECODERS[kind])
        set_padding_side(folder, padding_side)
        expected = reference(folder, SAMPLES)[:, 0]
        assert np.ptp(expected) > 0.5  # otherwise 1e-4 would say nothing
        provider = rm.load(folder, read="before-padding")
        close(provider.score(SAMPLES).values, expected)
        close(provider.score(SAMPLES[::-1]).values, expected[::-1])
        close([provider.score([sample]).values[0] for sample in SAMPLES], expected)

    @pytest.mark.parametrize("padding_side", ["left", "right"])
    @pytest.mark.parametrize("family", ["bert", "roberta"])
    def test_an_encoder(self, family: str, padding_side: str, tiny_encoder: MakeFolder) -> None:
        folder = tiny_encoder(family=family)
        set_padding_side(folder, padding_side)
        expected = reference(folder, SAMPLES)[:, 0]
        assert np.ptp(expected) > 0.5
        close(rm.load(folder).score(SAMPLES).values, expected)

    @pytest.mark.parametrize("max_batch_tokens", [1, 7, 64, 100_000])
    def test_whatever_the_micro_batches(self, max_batch_tokens: int, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(pad="<|end|>")
        expected = reference(folder, SAMPLES)[:, 0]
        close(rm.load(folder, read="before-padding", max_batch_tokens=max_batch_tokens).score(SAMPLES).values, expected)

    @pytest.mark.parametrize("padding_side", ["left", "right"])
    @pytest.mark.parametrize("kind", DECODERS)
    def test_prompts_that_are_shared(self, kind: str, padding_side: str, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(**DECODERS[kind])
        set_padding_side(folder, padding_side)
        expected = reference(folder, SHARED)[:, 0]
        assert np.ptp(expected) > 0.5
        provider = classifier(rm.load(folder, read="before-padding", max_batch_tokens=600))
        scores = provider.score(SHARED)
        np.testing.assert_allclose(scores.values, expected, rtol=0, atol=2e-2 if kind == "bf16" else 1e-4)
        assert provider.trained.engine.shares_prefixes
        assert scores.metadata["unique_tokens"] < 0.6 * scores.metadata["tokens"]
        assert scores.metadata["duplicates"] == 3

    def test_a_real_encoder(self, minilm_path: Path, tmp_path: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=1, dtype=torch.float32)
        model.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(minilm_path).save_pretrained(tmp_path)
        close(rm.load(tmp_path, pair=False).score(SAMPLES).values, reference(tmp_path, SAMPLES)[:, 0])

    @pytest.mark.parametrize("settings", [{}, {"pad": "<|end|>"}, {"adds_bos": True}])
    def test_a_pipeline_over_the_rendered_text(self, settings: dict[str, Any], tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(**settings, config={"problem_type": "regression"})
        provider = rm.load(folder, read="before-padding")
        # A template that leaves out the BOS of a tokenizer that adds one cannot be told to a pipeline.
        samples = [sample for sample in SAMPLES if not (sample.is_conversational and "adds_bos" in settings)]
        classify = pipeline("text-classification", model=str(folder), dtype=torch.float32)
        values = [classify(provider.render(sample))[0]["score"] for sample in samples if provider.render(sample)]
        close(values, provider.score([sample for sample in samples if provider.render(sample)]).values)

    def test_a_pipeline_over_an_encoder(self, tiny_encoder: MakeFolder) -> None:
        folder = tiny_encoder()
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
        provider = rm.load(folder)
        classify = pipeline("text-classification", model=str(folder))
        close([classify(provider.render(sample))[0]["score"] for sample in SAMPLES], provider.score(SAMPLES).values)


class TestHeads:
    @pytest.fixture
    def folder(self, tiny_decoder: MakeFolder) -> Path:
        return tiny_decoder(num_labels=3, config={"id2label": {0: "helpful", 1: "correct", 2: "verbose"}})

    def test_several_labels_need_a_choice(self, folder: Path) -> None:
        with pytest.raises(ModelError, match=r"has 3 labels \(helpful, correct, verbose\)\. .* `head: helpful`.*combined"):
            rm.load(folder)

    @pytest.mark.parametrize(
        ("head", "weights"),
        [(1, [0, 1, 0]), ("correct", [0, 1, 0]), ({"helpful": 1.0, "verbose": -0.5}, [1, 0, -0.5]), ({2: 2.0}, [0, 0, 2])],
    )
    def test_a_choice_or_a_mix(self, head: Any, weights: list[float], folder: Path) -> None:
        expected = reference(folder, SAMPLES)
        scores = rm.load({"provider": "sequence-classifier", "model": str(folder), "head": head}).score(SAMPLES)
        close(scores.values, expected @ np.array(weights))
        assert list(scores.columns) == ["head/helpful", "head/correct", "head/verbose"]
        close(scores.columns["head/verbose"], expected[:, 2])

    @pytest.mark.parametrize("head", [3, -1, "corect", {"helpful": 1.0, "corect": 1.0}])
    def test_an_unknown_label(self, head: Any, folder: Path) -> None:
        with pytest.raises(SpecError, match=r"head: .* has no label .*Allowed: correct, helpful, verbose"):
            rm.load(folder, head=head)

    def test_one_label_has_no_details(self, tiny_decoder: MakeFolder) -> None:
        assert rm.load(tiny_decoder()).score(SAMPLES).columns == {}


class TestLength:
    def test_a_long_prompt_leaves_the_completion(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(positions=24, adds_bos=True)
        provider = classifier(rm.load(folder))
        long = [rm.Sample("The sea is salty. " * 20, completion) for completion in (" yes", " no")]
        scores = provider.score(long)
        assert (scores.metadata["truncated"], provider.counts["truncated"]) == (2, 2)
        assert scores.metadata["tokens"] == 48
        assert abs(scores.values[0] - scores.values[1]) > 1e-2
        ids, _ = provider.renderer.token_ids(long)
        whole = [provider.renderer.tokenizer(provider.render(sample))["input_ids"] for sample in long]
        assert ids == [[row[0], *row[-23:]] for row in whole]

    def test_a_long_row_of_an_encoder_keeps_its_special_tokens(self, tiny_encoder: MakeFolder) -> None:
        provider = classifier(rm.load(tiny_encoder(positions=16)))
        sample = rm.Sample("The sea is salty. " * 20, "yes")
        (ids,), _ = provider.renderer.token_ids([sample])
        tokenizer = provider.renderer.tokenizer
        assert (len(ids), ids[0], ids[-1]) == (16, tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert np.isfinite(provider.score([sample]).values).all()

    def test_a_refused_row_can_abstain(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        samples = [rm.Sample("The sea is salty. " * 20, "yes"), rm.Sample("a", "b")]
        with pytest.raises(ScoringError, match=r"1 of 2 samples are longer than max_length=16 tokens"):
            rm.load(folder, max_length=16, truncation="error").score(samples)
        scores = rm.load(folder, max_length=16, truncation="error", on_error="abstain").score(samples)
        assert scores.abstained.tolist() == [True, False]
        close(scores.values[1:], reference(folder, samples[1:])[:, 0])


class TestSettings:
    def test_rendering(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folder = tiny_decoder()
        sample = rm.Sample([{"role": "user", "content": "Q"}], "A")
        assert rm.load(folder, chat_template="plain").render(sample) == "User: Q\n\nAssistant: A<|end|>"
        (tmp_path / "mine.jinja").write_text("{% for message in messages %}[{{ message.content }}]{% endfor %}{{ closing }}")
        provider = rm.load(folder, chat_template=str(tmp_path / "mine.jinja"), template_kwargs={"closing": "!"})
        assert provider.render(sample) == "[Q][A]!"
        assert rm.load(folder, append_eos=False).render(rm.Sample("Q", "A")) == "QA"
        with pytest.raises(SpecError, match="max_length must be at least 1"):
            rm.load(folder, max_length=0)
        with pytest.raises(ModelError, match="The chat template 'absent' cannot be read"):
            rm.load(folder, chat_template="absent")

    def test_a_template_file_is_relative_to_the_spec(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        (folder / "mine.jinja").write_text("{{ messages[-1].content }}")
        (folder / "spec.yaml").write_text("provider: sequence-classifier\nmodel: .\nchat_template: mine.jinja\n")
        assert rm.load(folder / "spec.yaml").render(rm.Sample([], "A")) == "A"

    def test_dtype(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(dtype=torch.bfloat16)
        provider = classifier(rm.load(folder))
        assert provider.trained.dtype == "float32"
        half = classifier(rm.load(folder, dtype="bfloat16"))
        assert half.trained.dtype == "bfloat16"
        np.testing.assert_allclose(half.score(SAMPLES).values, provider.score(SAMPLES).values, atol=0.2)

    def test_loading_leaves_the_model_for_scoring_only(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(config={"attention_dropout": 0.5})
        provider = rm.load(folder)
        assert provider.score(SAMPLES).values.tolist() == provider.score(SAMPLES).values.tolist()


def test_a_decoder_of_an_older_kind_is_scored_by_its_own_forward(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    for pad in ("<|pad|>", "<|end|>", None):
        folder = tmp_path / str(pad).strip("<|>")
        tokenizer = make_tokenizer(pad=pad)
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            initializer_range=0.4,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        GPT2ForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        close(rm.load(folder, read="before-padding").score(SAMPLES).values, reference(folder, SAMPLES)[:, 0])


def test_the_tiny_decoder_is_the_kind_whose_position_is_read_here(tiny_decoder: MakeFolder) -> None:
    provider = classifier(rm.load(tiny_decoder()))
    assert isinstance(provider.model, Qwen2ForSequenceClassification)
