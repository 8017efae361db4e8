"""Ensembles that are one loaded model: heads on one trunk, LoRA adapters of one base, passes with dropout."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

import rm_plugins as rm
from rm_plugins.calibration import Calibration
from rm_plugins.errors import ManifestError, ModelError, SpecError, UnsupportedError
from rm_plugins.models.golden import golden_scores
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest, ScoreStatistics, file_digests
from rm_plugins.providers.models.lora_ensemble import LoraEnsemble
from rm_plugins.providers.models.mc_dropout import McDropout
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.scores import FloatArray
from rm_plugins.testing import check_provider
from rm_plugins.training.reward_state import restore_reward_state, reward_state
from tests.conftest import MakeFolder, make_tokenizer

QUESTION = "The sea is salty because rivers carry dissolved minerals into it. Question: what is " * 3
SAMPLES = [
    # Shared prompts, one row of its own, a repetition, and lengths that need padding.
    *(rm.Sample(f"{QUESTION} col", completion) for completion in ("our", "our: blue", "d", "our")),
    *(rm.Sample([{"role": "user", "content": QUESTION}], completion) for completion in ("Two.", "Four, or two.")),
    rm.Sample("a", ""),
]


def written(folder: Path, *, heads: Heads | None = None, mean: float = 0.0, std: float = 1.0) -> Manifest:
    """Write a manifest beside a model as training does; returns it."""
    plain = SequenceClassifier(model=str(folder), head=None if heads is None else {0: 1.0})
    manifest = Manifest(
        created_by={"rm-plugins": rm.__version__},
        rendering=plain.renderer.rendering,
        dtype="float32",
        heads=heads,
        statistics=ScoreStatistics(mean=mean, std=std, min=-9.0, max=9.0, count=10, source="eval"),
        files=file_digests(folder),
        golden=golden_scores(plain.model, plain.renderer, heads or Heads()),
    )
    manifest.write(folder)
    return manifest


def values(spec: Any, samples: Sequence[rm.Sample] = SAMPLES, **settings: Any) -> FloatArray:
    return rm.load(spec, **settings).score(samples).values


def members(scores: rm.Scores, count: int) -> FloatArray:
    """The members' rewards, [K, N]."""
    assert f"member/{count}" not in scores.columns
    return np.stack([scores.columns[f"member/{number}"] for number in range(count)])


def near(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


class TestHeads:
    @pytest.fixture
    def folder(self, tiny_decoder: MakeFolder) -> Path:
        """Three members with one output each."""
        folder = tiny_decoder(num_labels=3)
        written(folder, heads=Heads(members=3), mean=2.0, std=4.0)
        return folder

    @pytest.fixture
    def outputs(self, folder: Path) -> FloatArray:
        """What the model's heads give, [N, 3]."""
        scores = rm.load(folder, head=0).score(SAMPLES)
        return np.stack([scores.columns[f"head/LABEL_{number}"] for number in range(3)], axis=1)

    def test_their_mean_by_default(self, folder: Path, outputs: FloatArray) -> None:
        scores = rm.load(folder).score(SAMPLES)
        near(scores.values, outputs.mean(axis=1))
        near(members(scores, 3), outputs.T)
        near(scores.columns["std"], outputs.std(axis=1))
        assert scores.columns["std"].min() > 0.01
        assert np.isnan(scores.columns["rank_disagreement"][-1])  # its prompt has one completion
        assert np.nanmax(scores.columns["rank_disagreement"]) > 0
        assert scores.metadata["missing_members"] == 0

    def test_an_aggregate(self, folder: Path, outputs: FloatArray) -> None:
        near(values(folder, aggregate="min", common_scale=True), outputs.min(axis=1))
        bound = values(folder, aggregate={"name": "lcb", "k": 2.0}, common_scale=True)
        near(bound, outputs.mean(axis=1) - 2 * outputs.std(axis=1))

    def test_transforms_of_the_members(self, folder: Path, outputs: FloatArray) -> None:
        chain = [
            {"name": "scale", "factor": 2.0},
            {"name": "scale", "shift": 1.0},
            [{"name": "clip", "low": 0.0}, {"name": "scale"}],
        ]
        scores = rm.load(folder, aggregate="max", member_transforms=chain).score(SAMPLES)
        expected = np.stack([outputs[:, 0] * 2, outputs[:, 1] - 1, np.clip(outputs[:, 2], 0, None)])
        near(scores.values, expected.max(axis=0))
        near(members(scores, 3), expected)
        near([scores.columns[f"member/{number}/raw"] for number in range(3)], outputs.T)
        near(scores.columns["std"], expected.std(axis=0))

    def test_members_of_several_outputs(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(num_labels=4)
        columns = rm.load(folder, head=0).score(SAMPLES).columns
        outputs = np.stack([columns[f"head/LABEL_{number}"] for number in range(4)], axis=1)
        written(folder, heads=Heads(("helpful", "brief"), (1.0, -0.5), members=2))
        scores = rm.load(folder).score(SAMPLES)
        each = np.stack([outputs[:, 0] - 0.5 * outputs[:, 1], outputs[:, 2] - 0.5 * outputs[:, 3]])
        near(members(scores, 2), each)
        near(scores.values, each.mean(axis=0))

    def test_the_backbone_runs_once(self, folder: Path, tiny_decoder: MakeFolder) -> None:
        work = rm.load(folder, aggregate="median").score(SAMPLES).metadata
        one = rm.load(tiny_decoder()).score(SAMPLES).metadata
        assert {name: work[name] for name in ("rows", "tokens", "unique_tokens", "padded_tokens", "duplicates")} == {
            name: one[name] for name in ("rows", "tokens", "unique_tokens", "padded_tokens", "duplicates")
        }

    def test_the_statistics_are_those_of_the_plain_mean(self, folder: Path, outputs: FloatArray) -> None:
        near(values(folder, transform="zscore"), (outputs.mean(axis=1) - 2) / 4)
        near(values(folder, aggregate="mean", transform="zscore"), (outputs.mean(axis=1) - 2) / 4)
        for settings in ({"aggregate": "median"}, {"member_transforms": ["scale"] * 3}, {"head": 0}):
            with pytest.raises(SpecError, match="transform: zscore needs `mean` and `std`"):
                rm.load(folder, transform="zscore", **settings)

    def test_what_transforms_learn_is_kept(self, folder: Path) -> None:
        settings: dict[str, Any] = {"member_transforms": [{"name": "zscore", "running": True, "warmup": 2}] * 3}
        provider = rm.load(folder, **settings)
        provider.score(SAMPLES)
        state = reward_state(provider)
        assert list(state) == [f"member_transforms[{number}]" for number in range(3)]
        other = rm.load(folder, **settings)
        restore_reward_state(other, json.loads(json.dumps(state)))
        assert reward_state(other) == state
        assert other.score(SAMPLES).values.tolist() == provider.score(SAMPLES).values.tolist()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"member_transforms": ["scale"] * 2}, r"^member_transforms: there are 2 for 3 members; give one a member"),
            (
                {"member_transforms": ["scale", "zscore", "scale"]},
                r"^member_transforms\[1\]: zscore needs `mean`.*'member 1 of ",
            ),
            ({"member_transforms": ["scale", "scal", "scale"]}, r"^member_transforms\[1\]: .*'scale'"),
            ({"aggregate": {"name": "weighted", "weights": [1.0]}}, r"^aggregate\.weights: there are 1 weights for 3 members"),
            ({"aggregate": "mim"}, r"^aggregate: .*'min'"),
            ({"aggregate": "min", "head": 0}, r"^aggregate: .* is used as one member.*and the key `head`"),
        ],
    )
    def test_what_does_not_fit_is_named(self, settings: dict[str, Any], message: str, folder: Path) -> None:
        with pytest.raises((SpecError, LookupError), match=message):
            rm.load(folder, **settings)

    @pytest.mark.parametrize("key", [{"aggregate": "mean"}, {"member_transforms": ["scale"]}])
    def test_one_member_has_nothing_to_combine(self, key: dict[str, Any], tiny_decoder: MakeFolder) -> None:
        with pytest.raises(
            SpecError, match=rf"^{next(iter(key))}: .*`RewardConfig\(members=5\)`, or combine .*`provider: ensemble`"
        ):
            rm.load(tiny_decoder(), **key)

    def test_a_missing_scale_is_warned_of_once(self, folder: Path) -> None:
        with pytest.warns(
            UserWarning, match=r"aggregate 'min' of .* compares members, and none of them have a transform"
        ) as caught:
            provider = rm.load(folder, aggregate="min")
        assert len(caught) == 1
        provider.score(SAMPLES)
        rm.load(folder, aggregate="min", member_transforms=["scale"] * 3)

    def test_the_contract_and_the_manifest(self, folder: Path) -> None:
        provider = rm.load(folder, aggregate="max", member_transforms=["scale"] * 3)
        check_provider(provider, SAMPLES)
        assert provider.verify() == []  # type: ignore[attr-defined]
        assert rm.load(dict(provider.spec or {})).spec == provider.spec


def save_adapter(base: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """Save a random adapter of a base model, its head included, with the base's tokenizer; returns its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
        head, targets = ("score", ["q_proj", "v_proj"]) if hasattr(model, "score") else ("classifier", ["query", "value"])
        lora = LoraConfig(r=4, target_modules=targets, **{"modules_to_save": [head], "init_lora_weights": False, **settings})
        model = get_peft_model(model, lora)
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.data.normal_()
        model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def adapters_of(base: Path, folder: Path, count: int = 3) -> list[str]:
    return [str(save_adapter(base, folder / f"adapter-{number}", number)) for number in range(count)]


def lora(adapters: Sequence[str], **settings: Any) -> LoraEnsemble:
    provider = rm.load({"provider": "lora-ensemble", "adapters": list(adapters), **settings})
    assert isinstance(provider, LoraEnsemble)
    return provider


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
        alone = np.stack([values(adapter) for adapter in adapters])
        assert np.ptp(alone, axis=0).min() > 0.1
        provider = lora(adapters, max_batch_tokens=max_batch_tokens)
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
        entries = calibration.fit(SAMPLES)
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
            messages = [str(warning.message) for warning in caught if "compares members" in str(warning.message)]
            assert len(messages) == expected
            assert all(text.startswith("The aggregate 'max' of 'lora-ensemble' compares members") for text in messages)

    def test_paths_are_relative_to_the_spec(self, adapters: list[str], tmp_path: Path) -> None:
        spec = tmp_path / "spec.yaml"
        spec.write_text("provider: lora-ensemble\nadapters: [./adapter-0, ./adapter-1]\naggregate: median\n")
        assert rm.load(spec).score(SAMPLES).values.tolist() == lora(adapters[:2]).score(SAMPLES).values.tolist()
        spec.write_text("provider: lora-ensemble\nadapters: [./adapter-0, ./absent]\n")
        with pytest.raises(SpecError, match=r"adapters\[1\]: './absent' does not exist"):
            rm.load(spec)

    def test_the_contract_and_pickling(self, adapters: list[str]) -> None:
        provider = lora(adapters, aggregate="median", name="mine")
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
            SpecError, match=r"^adapters\[3\]: .*other is an adapter of .*adapter-0 \(adapters\[0\]\) of .*one base model"
        ):
            lora([*adapters, other])

    def test_other_labels(self, adapters: list[str], base: Path, tmp_path: Path) -> None:
        with torch.random.fork_rng():
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, ignore_mismatched_sizes=True)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["score"]))
        model.save_pretrained(tmp_path / "two")
        with pytest.raises(SpecError, match=r"^adapters\[1\]: .*two has a head of 2 labels, and .* a head of 1 labels"):
            lora([adapters[0], str(tmp_path / "two")])
        bare = str(save_adapter(base, tmp_path / "bare", 3, modules_to_save=None))
        with pytest.raises(SpecError, match=r"^adapters\[1\]: .*bare has no head of its own"):
            lora([adapters[0], bare])

    def test_another_rendering(self, adapters: list[str]) -> None:
        manifest = written(Path(adapters[1]))
        rendering = {**manifest.model_dump()["rendering"], "max_length": 12}
        manifest.model_copy(update={"rendering": type(manifest.rendering)(**rendering)}).write(Path(adapters[1]))
        with pytest.raises(
            SpecError, match=r"^adapters\[1\]: .*has max_length=12, and .*512; give them one with the key `max_length`"
        ):
            lora(adapters)
        assert lora(adapters, max_length=12, verify=False).renderer.rendering.max_length == 12

    def test_another_tokenizer(self, adapters: list[str]) -> None:
        make_tokenizer(chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}").save_pretrained(
            adapters[2]
        )
        with pytest.raises(SpecError, match=r"^adapters\[2\]: .*makes other token ids than that of .*key `tokenizer`"):
            lora(adapters)
        assert lora(adapters, tokenizer=adapters[0]).score(SAMPLES).abstained.sum() == 0

    def test_another_reward_of_its_labels(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        adapters = adapters_of(tiny_decoder(num_labels=2), tmp_path, 2)
        for adapter, weight in zip(adapters, (1.0, 0.5), strict=True):
            written(Path(adapter), heads=Heads(("true", "brief"), (1.0, weight)))
        with pytest.raises(
            SpecError, match=r"^adapters\[1\]: .*reward of 1 \* true \+ 0\.5 \* brief, and .* of 1 \* true \+ 1 \* brief"
        ):
            lora(adapters)
        with pytest.raises(SpecError, match=r"^member_transforms\[0\]: zscore needs `mean`"):
            lora(adapters, head=0, member_transforms=["zscore"] * 2)
        scores = lora(adapters, head={0: 1.0, 1: 2.0}).score(SAMPLES)
        near(members(scores, 2), [values(adapter, head={0: 1.0, 1: 2.0}) for adapter in adapters])

    def test_what_is_no_adapter(self, base: Path, adapters: list[str]) -> None:
        with pytest.raises(SpecError, match=r"^adapters\[1\]: .* is no LoRA adapter"):
            lora([adapters[0], str(base)])
        with pytest.raises(SpecError, match=r"^adapters: there must be two or more"):
            lora(adapters[:1])

    def test_an_adapter_without_some_weights(self, adapters: list[str]) -> None:
        path = Path(adapters[1]) / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file({name: tensor for name, tensor in tensors.items() if "layers.0" not in name}, path, {"format": "pt"})
        with pytest.raises(ModelError, match=r"adapter-1 has no weights for .*layers\.0.*lora"):
            lora(adapters)


def dropout(model: Path | str, **settings: Any) -> McDropout:
    provider = rm.load({"provider": "mc-dropout", "model": str(model), **settings})
    assert isinstance(provider, McDropout)
    return provider


class TestDropout:
    def test_an_encoder_runs_with_fixed_masks(self, tiny_encoder: MakeFolder) -> None:
        folder = tiny_encoder()
        provider = dropout(folder, passes=3, max_batch_tokens=200)
        scores = provider.score(SAMPLES)
        passes = members(scores, 3)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        ids, _ = provider.renderer.token_ids(SAMPLES)
        masks = {name: tensor for name, tensor in provider.model.state_dict().items() if name.endswith(".masks")}
        assert len(masks) == 6  # embeddings, the pooled output, and twice a layer
        for mask in masks.values():
            assert mask.unique().tolist() == [0.0, pytest.approx(1 / 0.9)]
            assert (mask[0] != mask[1]).any()
        for number in range(3):
            hooks = [
                model.get_submodule(name.removesuffix(".masks")).register_forward_hook(
                    lambda layer, arguments, hidden, kept=mask[number]: hidden * kept
                )
                for name, mask in masks.items()
            ]
            with torch.no_grad():
                near(passes[number], [model(input_ids=torch.tensor([row])).logits.item() for row in ids])
            for hook in hooks:
                hook.remove()
        assert scores.columns["std"].min() > 0.01
        near(scores.values, passes.mean(axis=0))
        check_provider(provider, SAMPLES)

    def test_a_decoder_without_dropout_runs_once(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        provider = dropout(folder, passes=5)
        scores, plain = provider.score(SAMPLES), rm.load(folder).score(SAMPLES)
        for name in ("rows", "tokens", "unique_tokens", "padded_tokens"):
            assert scores.metadata[name] == plain.metadata[name], name
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        masks = provider.model.score.masks
        assert (masks == 0).float().mean().item() == pytest.approx(0.1, abs=0.06)
        ids, _ = provider.renderer.token_ids(SAMPLES)
        with torch.no_grad():
            hidden = torch.stack([model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in ids])
            near(members(scores, 5), torch.stack([model.score(hidden * mask)[:, 0] for mask in masks]).numpy())
        check_provider(provider, SAMPLES)

    def test_the_mean_of_many_passes_nears_the_model(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        scores = dropout(folder, passes=2_000).score(SAMPLES)
        error = scores.columns["std"] / np.sqrt(2_000)
        assert (np.abs(scores.values - values(folder)) < 4 * error).all()
        wider = dropout(folder, passes=2_000, rate=0.5).score(SAMPLES)
        # The variance of a sum whose terms are kept with the probability 1 - p and then divided by it goes with p / (1 - p).
        near(wider.columns["std"] / scores.columns["std"], np.full(len(SAMPLES), 3.0), 0.2)

    def test_seed_rate_and_passes(self, tiny_encoder: MakeFolder) -> None:
        folder = tiny_encoder()
        first = members(dropout(folder, passes=4).score(SAMPLES), 4)
        assert members(dropout(folder, passes=4).score(SAMPLES), 4).tolist() == first.tolist()
        near(members(dropout(folder, passes=2).score(SAMPLES), 2), first[:2])
        for settings in ({"seed": 1}, {"rate": 0.3}):
            other = members(dropout(folder, passes=4, **settings).score(SAMPLES), 4)
            assert (np.abs(other - first).max(axis=1) > 0.01).all()

    def test_masks_are_the_same_everywhere_and_for_good(self, tiny_decoder: MakeFolder) -> None:
        kept = dropout(tiny_decoder(), passes=2).model.score.masks[:, :16].bool().int().tolist()
        assert ["".join(map(str, row)) for row in kept] == ["1111111110111111", "1111111011111111"]

    def test_a_decoder_with_dropout_still_shares_prompts(self, tmp_path: Path) -> None:
        tokenizer = make_tokenizer()
        settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.4}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = GPT2ForSequenceClassification(
                GPT2Config(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **settings)
            )
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        provider = dropout(tmp_path, passes=3)
        scores = provider.score(SAMPLES)
        assert provider.trained.engine.shares_prefixes
        assert scores.metadata["unique_tokens"] < 0.7 * scores.metadata["tokens"]
        near([provider.score([sample]).values[0] for sample in SAMPLES], scores.values, 1e-4)
        assert {name.rpartition(".")[2] for name in replaced(provider.model)} == {"drop", "resid_dropout", "dropout"}

    def test_attention_weights_are_not_dropped(self, tiny_encoder: MakeFolder, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_encoder())
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = DebertaV2Config(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                relative_attention=True,
                pos_att_type=["p2c", "c2p"],
                initializer_range=0.4,
                num_labels=1,
                pad_token_id=tokenizer.pad_token_id,
            )
            DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        provider = dropout(tmp_path, passes=2)
        check_provider(provider, SAMPLES)
        assert not [name for name in replaced(provider.model) if name.endswith("attention.self.dropout")]
        assert len(replaced(provider.model)) > 5

    def test_an_adapters_own_dropout(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        adapter = save_adapter(tiny_decoder(), tmp_path / "adapter", 0, lora_dropout=0.3)
        provider = dropout(adapter, passes=3)
        assert len(replaced(provider.model)) == 4
        check_provider(provider, SAMPLES)

    def test_a_model_with_several_heads(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(num_labels=3)
        written(folder, heads=Heads(members=3))
        provider = dropout(folder, passes=2_000)
        near(provider.score(SAMPLES).values, values(folder), 0.1)
        assert "member/1999" in provider.score(SAMPLES[:1]).columns

    def test_aggregate_and_transforms(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        written(folder, mean=1.0, std=2.0)
        plain = members(dropout(folder, passes=4).score(SAMPLES), 4)
        with warnings.catch_warnings():  # passes of one model share a scale
            warnings.simplefilter("error")
            near(dropout(folder, passes=4, aggregate="min").score(SAMPLES).values, plain.min(axis=0))
        scores = dropout(folder, passes=4, aggregate="max", member_transforms=["zscore"] * 4).score(SAMPLES)
        near(scores.values, (plain.max(axis=0) - 1) / 2)
        near(dropout(folder, passes=4, transform="zscore").score(SAMPLES).values, (plain.mean(axis=0) - 1) / 2)

    def test_the_manifest_is_of_the_model_without_dropout(self, tiny_encoder: MakeFolder) -> None:
        folder = tiny_encoder()
        written(folder)
        provider = dropout(folder, cache="memory")
        before = provider.score(SAMPLES).values.tolist()
        assert provider.verify() == []
        assert provider.score(SAMPLES).values.tolist() == before
        path = folder / "model.safetensors"
        save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
        with pytest.raises(ManifestError, match="does not match the model"):
            dropout(folder)
        assert dropout(folder, verify=False).verify()

    def test_the_cache_keeps_seeds_apart(self, tiny_encoder: MakeFolder, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        for folder in (tiny_encoder(), tiny_decoder()):
            cache = str(tmp_path / f"{folder.name}.sqlite")
            first = dropout(folder, passes=2, cache=cache).score(SAMPLES)
            again = dropout(folder, passes=2, cache=cache).score(SAMPLES)
            assert again.values.tolist() == first.values.tolist()
            assert again.metadata["cached"] == again.metadata["rows"]
            for settings in ({"passes": 2, "seed": 1}, {"passes": 2, "rate": 0.2}, {"passes": 3}):
                assert dropout(folder, cache=cache, **settings).score(SAMPLES).metadata["cached"] == 0
            near(values(folder, cache=cache), values(folder))

    def test_keys(self, tiny_decoder: MakeFolder) -> None:
        own = {"passes", "rate", "seed"}
        assert set(inspect.signature(McDropout).parameters) == own | set(inspect.signature(SequenceClassifier).parameters) - {
            "common_scale"
        }
        folder = tiny_decoder()
        for settings, message in (
            ({"passes": 1}, "passes: there must be two or more"),
            ({"rate": 0.0}, "rate: it must be above 0 and below 1, not 0.0"),
            ({"rate": 1.0}, "rate: it must be above 0"),
            ({"member_transforms": ["scale"]}, "member_transforms: there are 1 for 8 members"),
        ):
            with pytest.raises(SpecError) as caught:
                dropout(folder, **settings)
            assert message in str(caught.value)

    def test_a_model_with_nothing_to_drop(self, tiny_decoder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rm_plugins.models.fixed_dropout._HEADS", ())
        with pytest.raises(ModelError, match="has no dropout layers, and no head called"):
            dropout(tiny_decoder())


def replaced(model: Any) -> list[str]:
    """The names of the layers that fixed dropout took the place of."""
    return [name for name, module in model.named_modules() if type(module).__name__ == "FixedDropout"]
