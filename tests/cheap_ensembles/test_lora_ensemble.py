"""Several LoRA adapters of one base model as an ensemble."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
)

import rm_plugins as rm
from rm_plugins.calibration import Calibration
from rm_plugins.errors import ManifestError, ModelError, SpecError, UnsupportedError
from rm_plugins.models.heads import Heads
from rm_plugins.providers.models.lora_ensemble import LoraEnsemble
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.testing import check_provider
from tests.cheap_ensembles.conftest import SAMPLES, adapters_of, lora, members, near, save_adapter, values, written
from tests.conftest import MakeFolder, make_tokenizer


class TestLora:
    @pytest.fixture
    def base(self, tiny_decoder: MakeFolder) -> Path:
        return tiny_decoder()

    @pytest.fixture
    def adapters(self, base: Path, tmp_path: Path) -> list[str]:
        return adapters_of(base, tmp_path)

    @pytest.mark.parametrize("max_batch_tokens", [48, 600])
    @pytest.mark.parametrize("settings", [{}, {"pad": "<|end|>"}, {"adds_bos": True}], ids=str)
    def test_each_member_scores_as_by_itself(
        self, settings: dict[str, Any], max_batch_tokens: int, tiny_decoder: MakeFolder, tmp_path: Path
    ) -> None:
        adapters = adapters_of(tiny_decoder(**settings), tmp_path)
        alone = np.stack([values(adapter, read="before-padding") for adapter in adapters])
        assert np.ptp(alone, axis=0).min() > 0.1
        provider = lora(adapters, read="before-padding", max_batch_tokens=max_batch_tokens)
        scores = provider.score(SAMPLES)
        near(members(scores, 3), alone)
        near(scores.values, alone.mean(axis=0))
        near(provider.score(SAMPLES[::-1]).values[::-1], scores.values)  # the adapters take turns again
        assert provider.trained.engine.shares_prefixes
        assert scores.metadata["unique_tokens"] < 0.9 * scores.metadata["tokens"]

    @pytest.mark.parametrize("family", ["bert", "roberta"])
    def test_each_member_of_an_encoder_does_too(self, family: str, tiny_encoder: MakeFolder, tmp_path: Path) -> None:
        adapters = adapters_of(tiny_encoder(family=family), tmp_path)
        alone = np.stack([values(adapter) for adapter in adapters])
        assert np.ptp(alone, axis=0).min() > 0.1
        near(members(lora(adapters, max_batch_tokens=300).score(SAMPLES), 3), alone)

    def test_heads_that_are_the_bases_own(self, base: Path, tmp_path: Path) -> None:
        adapters = [str(save_adapter(base, tmp_path / str(seed), seed, modules_to_save=None)) for seed in range(2)]
        near(members(lora(adapters).score(SAMPLES), 2), [values(adapter) for adapter in adapters])

    def test_more_than_ten(self, base: Path, tmp_path: Path) -> None:
        adapters = adapters_of(base, tmp_path, 12)
        alone = [values(adapter, SAMPLES[-1:]) for adapter in adapters]
        near(members(lora(adapters).score(SAMPLES[-1:]), 12), alone)

    def test_the_base_is_there_once(self, base: Path, adapters: list[str]) -> None:
        def parameters(provider: Any) -> int:
            return sum(parameter.numel() for parameter in provider.model.parameters())

        assert parameters(lora(adapters)) <= 1.2 * parameters(rm.load(base))

    def test_work_is_of_all_members(self, adapters: list[str]) -> None:
        one, work = (provider.score(SAMPLES).metadata for provider in (rm.load(adapters[0]), lora(adapters)))
        for name in ("rows", "tokens", "duplicates"):
            assert work[name] == 3 * one[name], name
        assert work["truncated"] == one["truncated"]
        assert work["duplicate_share"] == one["duplicate_share"]

    def test_keys_of_the_classifier(self, adapters: list[str]) -> None:
        own = {"adapters", "aggregate", "member_transforms", "common_scale"}
        classifier = inspect.signature(SequenceClassifier).parameters
        parameters = inspect.signature(LoraEnsemble).parameters
        assert set(parameters) == own | set(classifier) - {"model", "revision"}
        assert parameters["dtype"] == classifier["dtype"].replace(annotation=parameters["dtype"].annotation)
        assert lora(adapters, dtype="bfloat16").trained.dtype == "bfloat16"
        assert lora(adapters, max_length=8).score(SAMPLES).metadata["truncated"] == 6
        for key, value, message in (
            ("max_lenght", 3, "unknown key 'max_lenght' for 'lora-ensemble'. Did you mean 'max_length'"),
            ("revision", "main", "unknown key 'revision'"),
            ("max_length", "3", "max_length: input should be a valid integer"),
        ):
            with pytest.raises(SpecError) as caught:
                lora(adapters, **{key: value})
            assert message in str(caught.value)

    def test_aggregate_and_transforms(self, adapters: list[str]) -> None:
        alone = np.stack([values(adapter) for adapter in adapters])
        for adapter, mean in zip(adapters, (1.0, 2.0, 3.0), strict=True):
            written(Path(adapter), mean=mean, std=2.0)
        scores = lora(adapters, aggregate="min", member_transforms=["zscore"] * 3).score(SAMPLES)
        expected = (alone - np.array([[1.0], [2.0], [3.0]])) / 2
        near(scores.values, expected.min(axis=0))
        near(members(scores, 3), expected)
        near(scores.columns["member/2/raw"], alone[2])
        with pytest.raises(
            SpecError, match="transform: zscore needs `mean` and `std`"
        ):  # no manifest is of the ensemble's scores
            lora(adapters, transform="zscore")

    def test_each_member_can_be_calibrated(self, adapters: list[str]) -> None:
        calibration = Calibration({"provider": "lora-ensemble", "adapters": adapters, "aggregate": "min"})
        entries = calibration.fit(SAMPLES * 30)
        assert [calibrated.path for calibrated in entries] == [f"member_transforms[{number}]" for number in range(3)]
        near([calibrated.statistics["mean"] for calibrated in entries], [values(adapter).mean() for adapter in adapters])
        scores = rm.load(calibration.spec(Path.cwd())).score(SAMPLES)
        near(members(scores, 3).mean(axis=1), np.zeros(3))
        near(members(scores, 3).std(axis=1), np.ones(3))

    def test_a_missing_scale_is_warned_of(self, adapters: list[str]) -> None:
        for settings, expected in (({}, 1), ({"common_scale": True}, 0), ({"member_transforms": ["scale"] * 3}, 0)):
            with warnings.catch_warnings(record=True) as caught:  # among those of libraries
                warnings.simplefilter("always")
                lora(adapters, aggregate="max", **settings)
            messages = [str(warning.message) for warning in caught if "needs a common scale" in str(warning.message)]
            assert len(messages) == expected
            assert all(text.startswith("The aggregate 'max' of 'lora-ensemble' needs a common scale") for text in messages)

    def test_paths_are_relative_to_the_spec(self, adapters: list[str], tmp_path: Path) -> None:
        spec = tmp_path / "spec.yaml"
        spec.write_text("provider: lora-ensemble\nadapters: [./adapter-0, ./adapter-1]\naggregate: median\n")
        assert rm.load(spec).score(SAMPLES).values.tolist() == lora(adapters[:2]).score(SAMPLES).values.tolist()
        spec.write_text("provider: lora-ensemble\nadapters: [./adapter-0, ./absent]\n")
        with pytest.raises(SpecError, match=r"adapters\[1\]: './absent' does not exist"):
            rm.load(spec)

    def test_the_contract_and_pickling(self, adapters: list[str]) -> None:
        provider = lora(adapters, aggregate="median", label="mine")
        check_provider(provider, SAMPLES)
        data = pickle.dumps(provider)
        assert len(data) < 5_000
        assert pickle.loads(data).label == "mine"
        assert provider.render(SAMPLES[-1]) == rm.load(adapters[0]).render(SAMPLES[-1])
        assert lora(adapters).label == "lora-ensemble"

    def test_the_manifests(self, adapters: list[str]) -> None:
        provider = lora(adapters)
        assert provider.manifest is None
        with pytest.raises(UnsupportedError, match=r"adapter-0 has no reward_manifest\.json to verify"):
            provider.verify()
        for adapter in adapters:
            written(Path(adapter))
        provider = lora(adapters)
        assert provider.verify() == []
        assert provider.manifest is not None
        assert provider.manifest.heads == Heads(members=3)
        assert {"0/adapter_model.safetensors", "2/adapter_model.safetensors"} <= set(provider.manifest.files)

    def test_an_adapter_that_changed_is_named(self, adapters: list[str]) -> None:
        for adapter in adapters:
            written(Path(adapter))
        path = Path(adapters[1]) / "adapter_model.safetensors"
        save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
        with pytest.raises(ManifestError, match=r"manifest of .*adapter-1 does not match the model: golden\[\d\]\.score"):
            lora(adapters)
        problems = lora(adapters, verify=False).verify()
        assert problems[0] == f"{adapters[1]}: adapter_model.safetensors has other contents than were written"
        assert len(problems) > 4
        assert all(problem.startswith(adapters[1]) for problem in problems)

    def test_the_cache_knows_what_an_adapter_is_scaled_with(self, adapters: list[str], tmp_path: Path) -> None:
        other = shutil.copytree(adapters[0], tmp_path / "scaled")
        config = json.loads((other / "adapter_config.json").read_text())
        (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 4 * config["lora_alpha"]}))
        cache = str(tmp_path / "scores.sqlite")
        assert not np.allclose(values(adapters[0], cache=cache), values(other, cache=cache))

    def test_the_cache_keeps_them_apart(self, adapters: list[str], tmp_path: Path) -> None:
        cache = str(tmp_path / "scores.sqlite")
        first = lora(adapters, cache=cache).score(SAMPLES)
        again = lora(adapters, cache=cache).score(SAMPLES)
        assert (first.metadata["cached"], again.metadata["cached"]) == (0, 3 * len(SAMPLES))
        near(members(again, 3), members(first, 3), 0)
        turned = lora([adapters[1], adapters[0], adapters[2]], cache=cache).score(SAMPLES)
        assert turned.metadata["cached"] == 0
        near(members(turned, 3), members(first, 3)[[1, 0, 2]])
        near(values(adapters[1], cache=cache), members(first, 3)[1])
        assert lora(adapters[:2], cache=cache).score(SAMPLES).metadata["cached"] == 0

    def test_another_base(self, adapters: list[str], tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        other = str(save_adapter(tiny_decoder(), tmp_path / "other", 5))
        with pytest.raises(
            SpecError,
            match=r"^adapters\[3\]: .*other is an adapter of .*adapter-0 \(adapters\[0\]\) is one of .*same base model",
        ):
            lora([*adapters, other])

    def test_other_labels(self, adapters: list[str], base: Path, tmp_path: Path) -> None:
        with torch.random.fork_rng():
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, ignore_mismatched_sizes=True)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["score"]))
        model.save_pretrained(tmp_path / "two")
        with pytest.raises(SpecError, match=r"^adapters\[1\]: .*two has a head of 2 labels, but .* a head of 1 labels"):
            lora([adapters[0], str(tmp_path / "two")])
        bare = str(save_adapter(base, tmp_path / "bare", 3, modules_to_save=None))
        with pytest.raises(SpecError, match=r"^adapters\[1\]: .*bare has no head of its own"):
            lora([adapters[0], bare])

    def test_another_rendering(self, adapters: list[str]) -> None:
        manifest = written(Path(adapters[1]))
        rendering = {**manifest.model_dump()["rendering"], "max_length": 12}
        manifest.model_copy(update={"rendering": type(manifest.rendering)(**rendering)}).write(Path(adapters[1]))
        with pytest.raises(
            SpecError, match=r"^adapters\[1\]: .*has max_length=12, but .*512; set one for all with the key `max_length`"
        ):
            lora(adapters)
        assert lora(adapters, max_length=12, verify=False).renderer.rendering.max_length == 12

    def test_another_tokenizer(self, adapters: list[str]) -> None:
        make_tokenizer(chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}").save_pretrained(
            adapters[2]
        )
        with pytest.raises(SpecError, match=r"^adapters\[2\]: .*gives other token ids than that of .*key `tokenizer`"):
            lora(adapters)
        assert lora(adapters, tokenizer=adapters[0]).score(SAMPLES).abstained.sum() == 0

    def test_another_reward_of_its_labels(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        adapters = adapters_of(tiny_decoder(num_labels=2), tmp_path, 2)
        for adapter, weight in zip(adapters, (1.0, 0.5), strict=True):
            written(Path(adapter), heads=Heads(("true", "brief"), (1.0, weight)))
        with pytest.raises(
            SpecError, match=r"^adapters\[1\]: .*reward as 1 \* true \+ 0\.5 \* brief, but .* as 1 \* true \+ 1 \* brief"
        ):
            lora(adapters)
        with pytest.raises(SpecError, match=r"^member_transforms\[0\]: zscore needs `mean`"):
            lora(adapters, head=0, member_transforms=["zscore"] * 2)
        scores = lora(adapters, head={0: 1.0, 1: 2.0}).score(SAMPLES)
        near(members(scores, 2), [values(adapter, head={0: 1.0, 1: 2.0}) for adapter in adapters])

    def test_what_is_no_adapter(self, base: Path, adapters: list[str]) -> None:
        with pytest.raises(SpecError, match=r"^adapters\[1\]: .* is not a LoRA adapter"):
            lora([adapters[0], str(base)])
        with pytest.raises(SpecError, match=r"^adapters: there must be two or more"):
            lora(adapters[:1])

    def test_an_adapter_without_some_weights(self, adapters: list[str]) -> None:
        path = Path(adapters[1]) / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file({name: tensor for name, tensor in tensors.items() if "layers.0" not in name}, path, {"format": "pt"})
        with pytest.raises(ModelError, match=r"adapter-1 has no weights for .*layers\.0.*lora"):
            lora(adapters)

    def test_an_adapter_with_a_broken_file(self, adapters: list[str]) -> None:
        path = Path(adapters[1]) / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(ModelError, match=r"adapter-1 cannot be loaded: SafetensorError"):
            lora(adapters)
