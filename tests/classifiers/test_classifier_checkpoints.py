"""What a classifier is loaded from: adapters, manifests, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
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
    BertForMaskedLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import rm_plugins as rm
from rm_plugins.errors import ManifestError, ModelError, ScoringError, UnsupportedError
from rm_plugins.models.golden import GOLDEN_SAMPLES
from rm_plugins.models.manifest import GoldenScore, Manifest, ScoreStatistics, file_digests, token_digest
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from tests.classifiers.conftest import SAMPLES, classifier, close, reference, texts_alone
from tests.conftest import MakeFolder, make_tokenizer

Tensors: TypeAlias = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Change the weights of a model folder."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


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
            ModelError, match=r"is an adapter of .*language-model.*both lack a trained score head.*score\.weight"
        ):
            rm.load(tmp_path / "adapter")

    @pytest.fixture
    def masked_language_model(self, tiny_encoder: MakeFolder, tmp_path: Path) -> Path:
        """An encoder as a masked language model, which has no pooler."""
        folder = tiny_encoder()
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        BertForMaskedLM(model.config).save_pretrained(folder)
        return folder

    def encoder_adapter(self, base: Path, folder: Path, *saved: str) -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        lora = LoraConfig(r=4, target_modules=["query"], init_lora_weights=False, modules_to_save=list(saved))
        adapted = get_peft_model(model, lora).eval()
        adapted.save_pretrained(folder)
        return adapted

    def test_over_a_base_without_the_pooler(self, masked_language_model: Path, tmp_path: Path) -> None:
        self.encoder_adapter(masked_language_model, tmp_path / "adapter", "classifier")
        with pytest.raises(
            ModelError, match=r"both lack weights for bert\.pooler.*random.*modules_to_save=\['classifier', 'pooler'\]"
        ):
            rm.load(tmp_path / "adapter")

    def test_with_the_pooler_that_it_trained(self, masked_language_model: Path, tmp_path: Path) -> None:
        adapted = self.encoder_adapter(masked_language_model, tmp_path / "adapter", "classifier", "pooler")
        rewards = rm.load(tmp_path / "adapter")
        expected = texts_alone(adapted, AutoTokenizer.from_pretrained(masked_language_model), ["a colour"])[:, 0]
        close(rewards.score([rm.Sample("", "a colour")]).values, expected)
        self.encoder_adapter(masked_language_model, tmp_path / "other", "classifier")
        with pytest.raises(ModelError, match=r"other is an adapter .* both lack weights for bert\.pooler"):
            rm.load({"provider": "lora-ensemble", "adapters": [str(tmp_path / "adapter"), str(tmp_path / "other")]})

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


class TestRefused:
    def test_a_language_model(self, tmp_path: Path) -> None:
        save_language_model(tmp_path, make_tokenizer())
        with pytest.raises(
            ModelError, match=r"not a trained reward model: its checkpoint \(Qwen2ForCausalLM\).*score\.weight.*random"
        ):
            rm.load(tmp_path)

    def test_an_encoder_without_a_head(self, minilm_path: Path) -> None:
        with pytest.raises(ModelError, match=r"not a trained reward model.*classifier\.bias, classifier\.weight"):
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
            (lambda path: path.with_name("config.json").write_text("{"), "config.json cannot be read as JSON: JSONDecodeError"),
            (lambda path: path.with_name("config.json").write_text('{"model_type": "nope"}'), "cannot be read: .*`nope`"),
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
        with pytest.raises(ScoringError, match=f"non-finite score for 8 of 8 samples.*broken: {name} contains NaN") as caught:
            rm.load(folder).score(SAMPLES)
        assert caught.value.rows == frozenset(range(8))
        assert rm.load(folder, on_error="abstain").score(SAMPLES).abstained.all()

    def test_a_computation_that_overflows(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        rewrite(folder, lambda tensors: tensors["score.weight"].fill_(3e38))
        with pytest.raises(ScoringError, match="weights are finite, so the computation overflowed in float32"):
            rm.load(folder).score(SAMPLES)


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
            ManifestError, match=r"does not match the model: golden\[\d\]\.score: .* was recorded, .* is computed"
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
            ManifestError, match=r"golden\[\d\]\.token_ids: the tokenizer or the rendering gives other token ids"
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
