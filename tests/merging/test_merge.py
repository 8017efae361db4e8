"""Merged models: the mean of weights and nothing else, of models that have one, written whole or not at all."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2ForSequenceClassification, pipeline

import rm_plugins as rm
from rm_plugins.errors import ModelError
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest
from rm_plugins.models.merge import merge_models
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.rendering.rendering import Rendering
from tests.conftest import MakeFolder
from tests.merging.conftest import names, rewrite

SAMPLES = [
    rm.Sample("Q: 2+2?\nA:", " four"),
    rm.Sample("", "ends in EOS<|end|>"),
    rm.Sample([{"role": "user", "content": "Name a colour."}], "Blue."),
]


def from_another_seed(folder: Path) -> Path:
    """The classifier that would have been made with other random numbers."""
    config = Qwen2ForSequenceClassification.from_pretrained(folder).config
    with torch.random.fork_rng():
        torch.manual_seed(9)
        Qwen2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def with_manifest(folder: Path, **settings: Any) -> Path:
    rendering = Rendering("tokenizer", append_eos=True, max_length=512)
    manifest = Manifest(**{"created_by": {}, "rendering": rendering, "dtype": "float32", **settings})
    manifest.write(folder)
    return folder


def scores(folder: Path) -> Any:
    return rm.load(folder).score(SAMPLES).values


def scores_of_mean(folders: Sequence[Path], shares: Sequence[float], out: Path) -> Any:
    """The scores of a model that was averaged by hand, in float64."""
    model = AutoModelForSequenceClassification.from_pretrained(folders[0])
    tensors = [load_file(folder / "model.safetensors") for folder in folders]
    mean = {
        name: torch.stack([share * one[name].double() for share, one in zip(shares, tensors, strict=True)]).sum(0)
        for name in tensors[0]
    }
    model.load_state_dict(mean)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folders[0]).save_pretrained(out)
    return scores(out)


class TestMean:
    @pytest.mark.parametrize(
        ("weights", "shares"),
        [(None, [1 / 3, 1 / 3, 1 / 3]), ([1, 1, 2], [0.25, 0.25, 0.5]), ([0, 0.2, 0], [0, 1, 0]), ([0, 1, 3], [0, 0.25, 0.75])],
    )
    def test_weights_are_the_mean_and_scores_are_its_scores(
        self, weights: list[float] | None, shares: list[float], members: list[Path], tmp_path: Path
    ) -> None:
        merge_models(names(*members), tmp_path / "out", weights=weights)
        expected = scores_of_mean(members, shares, tmp_path / "by hand")
        averaged, by_hand = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "by hand"))
        assert averaged.keys() == by_hand.keys()
        for name in by_hand:
            np.testing.assert_allclose(averaged[name], by_hand[name], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(scores(tmp_path / "out"), expected, rtol=1e-5, atol=1e-5)  # these models amplify rounding

    def test_the_scores_of_two_to_rounding(self, members: list[Path], tmp_path: Path) -> None:
        merge_models(names(*members[:2]), tmp_path / "out")
        expected = scores_of_mean(members[:2], [0.5, 0.5], tmp_path / "by hand")
        np.testing.assert_allclose(scores(tmp_path / "out"), expected, rtol=1e-5, atol=1e-5)

    def test_the_mean_of_one_model_is_itself_bit_by_bit(self, members: list[Path], tmp_path: Path) -> None:
        merge_models(names(*[members[0]] * 3), tmp_path / "out", weights=[0.1, 0.3, 0.3])
        merged, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", members[0]))
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], expected[name]) for name in expected)

    def test_the_dtype_is_the_first_ones(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        half, single = tiny_decoder(dtype=torch.bfloat16), tiny_decoder()
        for first, second, dtype in ((half, single, torch.bfloat16), (single, half, torch.float32)):
            out = tmp_path / str(dtype)
            merge_models(names(first, second), out)
            assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {dtype}
            assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
            assert SequenceClassifier(model=str(out)).verify() == []

    def test_encoders(self, tiny_encoder: MakeFolder, tmp_path: Path) -> None:
        folders = [tiny_encoder(), tmp_path / "other"]
        shutil.copytree(folders[0], folders[1])
        rewrite(folders[1], lambda tensors: tensors["classifier.weight"].mul_(3))
        merge_models(names(*folders), tmp_path / "out")
        bias = load_file(folders[0] / "model.safetensors")["classifier.bias"].item()
        np.testing.assert_allclose(scores(tmp_path / "out") - bias, 2 * (scores(folders[0]) - bias), rtol=1e-5)


class TestAdapters:
    @pytest.fixture
    def adapter(self, tiny_decoder: MakeFolder, tmp_path: Path) -> Path:
        """A LoRA adapter that carries a head of its own, without a tokenizer."""
        base = tiny_decoder()
        model = Qwen2ForSequenceClassification.from_pretrained(base)
        model.score.weight.data.mul_(1.5)
        settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "modules_to_save": ["score"]}
        torch.manual_seed(0)
        get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **settings)).save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    @pytest.mark.parametrize("weights", [[1, 0], [0, 1]])
    def test_it_scores_as_it_did(self, weights: list[float], adapter: Path, members: list[Path], tmp_path: Path) -> None:
        for place, sources in enumerate(([adapter, members[0]], [members[0], adapter])):
            out = tmp_path / f"out-{place}"
            merge_models(names(*sources), out, weights=weights)
            np.testing.assert_allclose(scores(out), scores(sources[int(np.argmax(weights))]), rtol=1e-5, atol=1e-5)
            assert load_file(out / "model.safetensors").keys() == load_file(members[0] / "model.safetensors").keys()

    def test_the_mean_of_two(self, adapter: Path, tmp_path: Path) -> None:
        merge_models(names(adapter, adapter), tmp_path / "out")
        np.testing.assert_allclose(scores(tmp_path / "out"), scores(adapter), rtol=1e-5, atol=1e-5)

    def test_layers_that_cannot_be_merged(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        base = tiny_decoder()
        model = Qwen2ForSequenceClassification.from_pretrained(base)
        lora = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 2]})
        get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
        with pytest.raises(ModelError, match=r"adapter is an adapter with layers .*: model\.embed_tokens.*merge_and_unload"):
            merge_models(names(tmp_path / "adapter", base), tmp_path / "out")


class TestManifest:
    def test_it_is_that_of_the_merged_model(self, members: list[Path], tmp_path: Path) -> None:
        rendering = Rendering("plain", append_eos=False, max_length=64)
        for folder in members[:2]:
            with_manifest(folder, rendering=rendering, training={"base_model": "owner/start"})
        written = merge_models(names(*members[:2]), tmp_path / "out", weights=[3, 1])
        assert written == Manifest.read(tmp_path / "out" / MANIFEST_NAME)
        assert written.rendering == rendering
        assert (written.heads, written.statistics, written.training["base_model"]) == (None, None, "owner/start")
        first, second = written.training["members"]
        assert (first["source"], first["weight"], first["cosine"]) == (str(members[0]), 0.75, pytest.approx(1))
        assert (second["source"], second["weight"]) == (str(members[1]), 0.25)
        assert 0.9 < second["cosine"] < 0.99999
        assert len(first["manifest"]) == 64
        assert len(written.golden) == 8
        assert SequenceClassifier(model=str(tmp_path / "out")).verify() == []

    def test_a_pipeline_gives_the_same(self, members: list[Path], tmp_path: Path) -> None:
        merge_models(names(*members), tmp_path / "out")
        score = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")("four<|end|>")[0]["score"]
        assert score == pytest.approx(rm.load(tmp_path / "out").score([rm.Sample("", "four")]).values[0], rel=1e-4)

    def test_a_member_without_one_renders_by_default(self, members: list[Path], tmp_path: Path) -> None:
        with_manifest(members[0])
        assert merge_models(names(*members), tmp_path / "out").rendering.max_length == 512
        with_manifest(members[0], rendering=Rendering("tokenizer", append_eos=True, max_length=100))
        with pytest.raises(ModelError, match="differs in its rendering: max_length is 512, not 100"):
            merge_models(names(*members), tmp_path / "other")

    def test_several_outputs(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folders = [with_manifest(tiny_decoder(num_labels=2), heads=Heads(("good", "short"), (1.0, 0.5))) for _ in range(2)]
        assert merge_models(names(*folders), tmp_path / "out").heads == Heads(("good", "short"), (1.0, 0.5))
        np.testing.assert_allclose(scores(tmp_path / "out"), scores(folders[0]), rtol=1e-6)
        assert rm.load(tmp_path / "out").score(SAMPLES).columns.keys() == {"head/good", "head/short"}
        assert SequenceClassifier(model=str(tmp_path / "out")).verify() == []
        with_manifest(folders[1], heads=Heads(("good", "short"), (1.0, 0.0)))
        with pytest.raises(ModelError, match=r"differs in its heads: weights is \(1\.0, 0\.0\), not \(1\.0, 0\.5\)"):
            merge_models(names(*folders), tmp_path / "other")

    def test_several_labels_that_nobody_has_named_the_reward_of(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folders = names(tiny_decoder(num_labels=2), tiny_decoder(num_labels=2))
        assert merge_models(folders, tmp_path / "out").golden == []
        merged = rm.load({"provider": "sequence-classifier", "model": str(tmp_path / "out"), "head": 1})
        assert np.isfinite(merged.score(SAMPLES).values).all()


class TestStart:
    def test_another_start_is_refused_unless_allowed(
        self, members: list[Path], tiny_decoder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = with_manifest(from_another_seed(tiny_decoder()), training={"base_model": "owner/other"})
        with_manifest(members[0], training={"base_model": "owner/start"})
        message = r"not trained from the same weights: the cosine .* is -?0\.0\d\d, .*name the base models owner/other and owner/start"
        with pytest.raises(ModelError, match=f"{other} and {members[0]} were {message}.*allow_different_starts"):
            merge_models(names(members[0], other), tmp_path / "out")
        with caplog.at_level(logging.WARNING):
            manifest = merge_models(names(members[0], other), tmp_path / "out", allow_different_starts=True)
        assert "not trained from the same weights" in caplog.text
        assert manifest.training["base_model"] is None
        expected = scores_of_mean([members[0], other], [0.5, 0.5], tmp_path / "by hand")
        np.testing.assert_allclose(scores(tmp_path / "out"), expected, rtol=1e-5, atol=1e-5)

    def test_it_is_compared_with_the_first_whatever_its_weight(
        self, members: list[Path], tiny_decoder: MakeFolder, tmp_path: Path
    ) -> None:
        other = from_another_seed(tiny_decoder())
        with pytest.raises(ModelError, match="not trained from the same weights"):
            merge_models(names(*members, other), tmp_path / "out", weights=[0, 1, 1, 0])

    def test_heads_with_nothing_in_common_are_reported(
        self, members: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            merge_models(names(*members), tmp_path / "out")
        assert "heads" not in caplog.text
        rewrite(members[1], lambda tensors: tensors["score.weight"].mul_(-1))
        with caplog.at_level(logging.WARNING):
            merge_models(names(*members), tmp_path / "other")
        assert f"The heads of {members[1]} and {members[0]} have a cosine similarity of -" in caplog.text
