"""Trained classifiers: the provider's number is what transformers gives for the row by itself."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    pipeline,
)

import rm_plugins as rm
from rm_plugins.errors import ManifestError, ModelError, ScoringError, SpecError, UnsupportedError
from rm_plugins.models.golden import GOLDEN_SAMPLES
from rm_plugins.models.manifest import GoldenScore, Manifest, ScoreStatistics, file_digests, token_digest
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from tests.conftest import MakeFolder, make_tokenizer

Tensors: TypeAlias = dict[str, torch.Tensor]

SAMPLES = [
    rm.Sample("Q: 2+2?\nA:", " four"),
    rm.Sample("The sea is salty because rivers carry dissolved minerals into it. " * 3, "Yes, and that is all there is to it."),
    rm.Sample("a", ""),
    rm.Sample("", ""),
    rm.Sample("", "ends in EOS<|end|>"),
    rm.Sample([{"role": "user", "content": "Name a colour."}], "Blue."),
    rm.Sample([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}], "naïve 東京 🙂"),
    rm.Sample([{"role": "user", "content": "Say nothing."}], ""),
]

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


def texts_alone(model: Any, tokenizer: Any, texts: Sequence[str], special: bool = True) -> Any:
    """What transformers itself gives for each text by itself, float64 [N, num_labels]."""
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt", add_special_tokens=special)).logits[0] for text in texts]
    return torch.stack(rows).double().numpy()


def reference(folder: Path, samples: Sequence[rm.Sample]) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for sample in samples:
        if sample.is_conversational and tokenizer.chat_template:
            text = tokenizer.apply_chat_template(sample.messages, tokenize=False)
            rows.append(texts_alone(model, tokenizer, [text], special=False))
            continue
        if sample.is_conversational:
            text = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in sample.messages)
        else:
            text = f"{sample.prompt}{sample.completion}"
        eos = tokenizer.eos_token or ""
        rows.append(texts_alone(model, tokenizer, [text if text.endswith(eos) else text + eos]))
    return np.concatenate(rows)


def classifier(provider: rm.Provider) -> SequenceClassifier:
    assert isinstance(provider, SequenceClassifier)
    return provider


def set_padding_side(folder: Path, side: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": side}))


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Change the weights of a model folder."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def close(scores: Any, expected: Any) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


class TestEqualsTransformers:
    @pytest.mark.parametrize("padding_side", ["left", "right"])
    @pytest.mark.parametrize("kind", DECODERS)
    def test_a_decoder(self, kind: str, padding_side: str, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(**DECODERS[kind])
        set_padding_side(folder, padding_side)
        expected = reference(folder, SAMPLES)[:, 0]
        assert np.ptp(expected) > 0.5  # otherwise 1e-4 would say nothing
        provider = rm.load(folder)
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
        close(rm.load(folder, max_batch_tokens=max_batch_tokens).score(SAMPLES).values, expected)

    @pytest.mark.parametrize("padding_side", ["left", "right"])
    @pytest.mark.parametrize("kind", DECODERS)
    def test_prompts_that_are_shared(self, kind: str, padding_side: str, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(**DECODERS[kind])
        set_padding_side(folder, padding_side)
        expected = reference(folder, SHARED)[:, 0]
        assert np.ptp(expected) > 0.5
        provider = classifier(rm.load(folder, max_batch_tokens=600))
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
        close(rm.load(tmp_path).score(SAMPLES).values, reference(tmp_path, SAMPLES)[:, 0])

    @pytest.mark.parametrize("settings", [{}, {"pad": "<|end|>"}, {"adds_bos": True}])
    def test_a_pipeline_over_the_rendered_text(self, settings: dict[str, Any], tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(**settings, config={"problem_type": "regression"})
        provider = rm.load(folder)
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


class TestAdapters:
    @pytest.fixture
    def base(self, tiny_decoder: MakeFolder) -> Path:
        return tiny_decoder()

    @pytest.fixture
    def language_model(self, tmp_path: Path) -> Path:
        folder = tmp_path / "language-model"
        tokenizer = make_tokenizer()
        save_language_model(folder, tokenizer)
        return folder

    def adapter(self, base: Path, folder: Path, **settings: Any) -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = AutoTokenizer.from_pretrained(base).pad_token_id
        model.score.weight.data.normal_()
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **settings)
        adapted = get_peft_model(model, lora).eval()
        adapted.save_pretrained(folder)
        return adapted

    @pytest.mark.parametrize("over", ["base", "language_model"])
    def test_with_its_own_head(self, over: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        base = request.getfixturevalue(over)
        adapted = self.adapter(base, tmp_path / "adapter", modules_to_save=["score"])
        provider = rm.load(tmp_path / "adapter")
        tokenizer = AutoTokenizer.from_pretrained(base)
        expected = texts_alone(adapted, tokenizer, [provider.render(sample) for sample in SAMPLES])[:, 0]
        close(provider.score(SAMPLES).values, expected)
        assert provider.label == "adapter"

    def test_over_a_base_that_has_the_head(self, base: Path, tmp_path: Path) -> None:
        self.adapter(base, tmp_path / "adapter")
        provider = rm.load(tmp_path / "adapter")
        assert not np.allclose(provider.score(SAMPLES).values, rm.load(base).score(SAMPLES).values, atol=0.1)

    def test_without_any_head(self, language_model: Path, tmp_path: Path) -> None:
        self.adapter(language_model, tmp_path / "adapter")
        with pytest.raises(
            ModelError, match=r"is an adapter of .*language-model.*neither holds a trained score head.*score\.weight"
        ):
            rm.load(tmp_path / "adapter")

    def test_whose_base_is_gone(self, base: Path, tmp_path: Path) -> None:
        self.adapter(base, tmp_path / "adapter", modules_to_save=["score"])
        base.rename(tmp_path / "moved")
        with pytest.raises(ModelError, match=r"is an adapter of .* which cannot be loaded"):
            rm.load(tmp_path / "adapter")

    def test_without_weights(self, base: Path, tmp_path: Path) -> None:
        self.adapter(base, tmp_path / "adapter", modules_to_save=["score"])
        (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"has an adapter_config\.json but no adapter_model\.safetensors"):
            rm.load(tmp_path / "adapter")


def save_language_model(folder: Path, tokenizer: Any) -> None:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.4,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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


class TestRefused:
    def test_a_language_model(self, tmp_path: Path) -> None:
        save_language_model(tmp_path, make_tokenizer())
        with pytest.raises(
            ModelError, match=r"no trained reward model: its checkpoint \(Qwen2ForCausalLM\).*score\.weight.*random"
        ):
            rm.load(tmp_path)

    def test_an_encoder_without_a_head(self, minilm_path: Path) -> None:
        with pytest.raises(ModelError, match=r"no trained reward model.*classifier\.bias, classifier\.weight"):
            rm.load(minilm_path)

    def test_a_folder_without_a_tokenizer(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folder, other = tiny_decoder(), tiny_decoder()
        expected = rm.load(folder).score(SAMPLES).values
        for path in folder.glob("*token*"):
            path.unlink()
        with pytest.raises(
            ModelError, match=r"No tokenizer could be loaded for .* Save the tokenizer beside the model, or name"
        ):
            rm.load(folder)
        close(rm.load(folder, tokenizer=str(other)).score(SAMPLES).values, expected)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda path: path.write_bytes(path.read_bytes()[:500]), "cannot be loaded: SafetensorError"),
            (lambda path: path.unlink(), "cannot be loaded: OSError: .*model.safetensors"),
            (lambda path: path.with_name("config.json").write_text("{"), "cannot be loaded: OSError: .*config.json"),
            (lambda path: path.with_name("config.json").write_text('{"model_type": "nope"}'), "cannot be loaded: ValueError"),
        ],
    )
    def test_a_spoilt_folder(self, spoil: Callable[[Path], object], message: str, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        spoil(folder / "model.safetensors")
        with pytest.raises(ModelError, match=message):
            rm.load(folder)

    def test_pickled_weights(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"no file named model\.safetensors"):
            rm.load(folder)

    def test_weights_that_are_not_finite(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        name = "model.layers.1.mlp.up_proj.weight"
        rewrite(folder, lambda tensors: tensors[name].__setitem__((0, 0), float("nan")))
        with pytest.raises(ScoringError, match=f"non-finite score for 8 of 8 samples.*broken: {name} holds NaN") as caught:
            rm.load(folder).score(SAMPLES)
        assert caught.value.rows == frozenset(range(8))
        assert rm.load(folder, on_error="abstain").score(SAMPLES).abstained.all()

    def test_a_computation_that_overflows(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        rewrite(folder, lambda tensors: tensors["score.weight"].fill_(3e38))
        with pytest.raises(ScoringError, match="weights are finite, so the computation overflowed in float32"):
            rm.load(folder).score(SAMPLES)

    def test_a_device_that_is_not_there(self, tiny_decoder: MakeFolder) -> None:
        with pytest.raises(SpecError, match="'sequence-classifier' could not be made: RuntimeError"):
            rm.load(tiny_decoder(), device="nowhere")


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


def with_manifest(folder: Path, **settings: Any) -> Manifest:
    """Write a manifest beside a model as training does; returns it."""
    provider = SequenceClassifier(model=str(folder), **settings)
    golden = list(GOLDEN_SAMPLES)
    ids, _ = provider.renderer.token_ids(golden)
    values = provider.score_batch(golden).values
    manifest = Manifest(
        created_by={"rm-plugins": rm.__version__},
        rendering=provider.renderer.rendering,
        dtype=provider.trained.dtype,
        statistics=ScoreStatistics(mean=2.0, std=4.0, min=-1.0, max=3.0, count=10, source="eval"),
        files=file_digests(folder),
        golden=[
            GoldenScore(sample=rm_sample, token_ids=token_digest(row), score=float(value))
            for rm_sample, row, value in zip(map(as_json, golden), ids, values, strict=True)
        ],
    )
    manifest.write(folder)
    return manifest


def as_json(sample: rm.Sample) -> dict[str, Any]:
    return {"prompt": sample.prompt, "completion": sample.completion}


class TestManifest:
    def test_what_it_says_is_how_the_model_scores(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        sample = rm.Sample([{"role": "user", "content": "Q"}], "A")
        by_default = rm.load(folder).score([sample]).values
        with_manifest(folder, chat_template="plain", append_eos=False, max_length=48)
        provider = classifier(rm.load(folder))
        assert provider.render(sample) == "User: Q\n\nAssistant: A"
        assert provider.renderer.rendering.max_length == 48
        assert provider.verify() == []
        assert not np.allclose(provider.score([sample]).values, by_default)

    def test_its_statistics_standardize(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        with_manifest(folder)
        scores = rm.load(folder, transform="zscore").score(SAMPLES)
        close(scores.values, (scores.columns["raw"] - 2) / 4)
        close(scores.columns["raw"], reference(folder, SAMPLES)[:, 0])

    def test_other_weights_are_refused_at_loading(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        with_manifest(folder)
        rewrite(folder, lambda tensors: tensors["score.weight"].mul_(1.01))
        with pytest.raises(
            ManifestError, match=r"does not match the model: golden\[\d\]\.score: .* was written, .* is computed"
        ):
            rm.load(folder)
        provider = classifier(rm.load(folder, verify=False))
        problems = provider.verify()
        assert problems[0] == "model.safetensors has other contents than were written"
        assert len([problem for problem in problems if ".score: " in problem]) > 4
        assert not any("token_ids" in problem for problem in problems)

    def test_weights_of_another_size_are_refused_without_a_forward(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        with_manifest(folder)
        rewrite(folder, lambda tensors: tensors.update({"more": torch.zeros(100)}))
        with pytest.raises(ManifestError, match=r"model\.safetensors has \d+ bytes; \d+ were written.*rm-plugins verify"):
            rm.load(folder)

    def test_another_tokenizer_is_seen(self, tiny_decoder: MakeFolder) -> None:
        folder, other = tiny_decoder(), tiny_decoder(adds_bos=True)
        with_manifest(folder)
        with pytest.raises(
            ManifestError, match=r"golden\[\d\]\.token_ids: the tokenizer or the rendering makes other token ids"
        ):
            rm.load(folder, tokenizer=str(other))

    def test_a_missing_file_is_seen_by_verifying(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        with_manifest(folder)
        (folder / "chat_template.jinja").unlink()
        (folder / "tokenizer_config.json").touch()
        provider = SequenceClassifier(model=str(folder), chat_template="plain")
        assert "chat_template.jinja is missing" in provider.verify()

    def test_a_manifest_of_another_version_is_refused(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        path = with_manifest(folder).write(folder)
        path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
        with pytest.raises(ManifestError, match=r"is not a manifest that this version of rm-plugins reads: version: .*1"):
            rm.load(folder)

    def test_settings_of_the_spec_win_and_are_not_held_against_the_model(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        with_manifest(folder)
        assert rm.load(folder, append_eos=False).render(rm.Sample("a", "b")) == "ab"

    def test_a_model_without_one_cannot_be_verified(self, tiny_decoder: MakeFolder) -> None:
        provider = classifier(rm.load(tiny_decoder()))
        with pytest.raises(UnsupportedError, match=r"has no reward_manifest\.json to verify"):
            provider.verify()

    def test_an_adapter_has_one_too(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        base = tiny_decoder()
        TestAdapters().adapter(base, tmp_path / "adapter", modules_to_save=["score"])
        with_manifest(tmp_path / "adapter")
        provider = classifier(rm.load(tmp_path / "adapter", transform="zscore"))
        assert provider.verify() == []


def test_a_loaded_model_can_be_pickled(tiny_decoder: MakeFolder) -> None:
    provider = rm.load(tiny_decoder(), max_length=12, on_error="abstain", transform={"name": "scale", "factor": 2.0})
    data = pickle.dumps(provider)
    assert len(data) < 5_000  # the folder's name and the settings, not the weights
    copy = pickle.loads(data)
    assert copy.score(SAMPLES).values.tolist() == provider.score(SAMPLES).values.tolist()
    assert copy.on_error == "abstain"


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
        close(rm.load(folder).score(SAMPLES).values, reference(folder, SAMPLES)[:, 0])


def test_the_tiny_decoder_is_the_kind_whose_position_is_read_here(tiny_decoder: MakeFolder) -> None:
    provider = classifier(rm.load(tiny_decoder()))
    assert isinstance(provider.model, Qwen2ForSequenceClassification)
