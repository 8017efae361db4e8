"""Rewards with quantized weights, from loading to a trainer's reward function. Each needs the library that quantizes."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.engine.placement import is_quantized
from rm_plugins.errors import ManifestError, MissingDependencyError, ModelError, SpecError
from rm_plugins.identity import fingerprint
from rm_plugins.models.manifest import Manifest
from tests.cheap_ensembles.conftest import SAMPLES, save_adapter, values, written
from tests.conftest import MakeFolder
from tests.server.conftest import rewarded, served
from tests.server.conftest import values as values_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*_check_is_size"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao"),
]


def installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def with_library(quantization: Any, library: str) -> Any:
    name = quantization if isinstance(quantization, str) else quantization["name"]
    reason = f"{library}, which quantizes to {name}, is not installed"
    return pytest.param(quantization, marks=pytest.mark.skipif(not installed(library), reason=reason), id=f"{name}-{library}")


EVERY = [
    with_library("int8", "torchao"),
    with_library({"name": "int8", "library": "bitsandbytes"}, "bitsandbytes"),
    with_library({"name": "int4", "group_size": 32}, "torchao"),
    with_library("nf4", "bitsandbytes"),
]
SOME = [EVERY[0], EVERY[3]]
DTYPES = ["float32", "bfloat16", "float16"]
LARGEST = {"int8": 0.1, "int4": 1.0, "nf4": 1.0}
"""By how much scores of the tiny model may differ."""


def calmed(folder: Path) -> Path:
    """A tiny model whose scores do not jump when a weight is rounded: with smaller weights in its layers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    for name, weight in model.named_parameters():
        weight.data *= 0.2 if "layers" in name and weight.ndim > 1 else 1.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tiny_decoder: MakeFolder) -> Path:
    """A tiny decoder with a manifest, which no test changes."""
    made = calmed(tiny_decoder())
    written(made)
    return made


def quantized(folder: Path, quantization: Any, **settings: Any) -> Any:
    return rm.load({"provider": "sequence-classifier", "model": str(folder), "quantization": quantization, **settings})


def name_of(quantization: Any) -> str:
    return str(quantization if isinstance(quantization, str) else quantization["name"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantization", EVERY)
def test_scores_are_near_and_each_the_same_alone(folder: Path, quantization: Any, dtype: str) -> None:
    reward = quantized(folder, quantization, dtype=dtype)
    scores = reward.score(SAMPLES).values
    difference = np.abs(scores - values(str(folder))).max()
    assert 0 < difference < LARGEST[name_of(quantization)]
    alone = [reward.score([sample]).values[0] for sample in SAMPLES]
    np.testing.assert_allclose(scores, alone, rtol=0, atol=1e-4 if dtype == "float32" else 5e-2)


@pytest.mark.parametrize("quantization", EVERY)
@pytest.mark.parametrize("encoder", [False, True], ids=["decoder", "encoder"])
def test_every_layer_is_quantized_but_the_head(
    folder: Path, tiny_encoder: MakeFolder, quantization: Any, encoder: bool
) -> None:
    model = quantized(tiny_encoder() if encoder else folder, quantization, pair=False).model
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    unchanged = {name for name, layer in layers.items() if not is_quantized(layer.weight)}
    assert unchanged == ({"bert.pooler.dense", "classifier"} if encoder else {"score"})
    head = model.classifier if encoder else model.score
    plain = AutoModelForSequenceClassification.from_pretrained(model.name_or_path, dtype=torch.float32)
    assert torch.equal(head.weight, (plain.classifier if encoder else plain.score).weight)


@pytest.mark.parametrize("quantization", EVERY)
def test_loading_says_once_what_it_costs(folder: Path, quantization: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="rm_plugins"):
        reward = quantized(folder, quantization)
    told = [record.getMessage() for record in caplog.records if "is quantized with" in record.getMessage()]
    golden = Manifest.read(folder / "reward_manifest.json").golden
    before = np.array([one.score for one in golden])
    after = reward.score([one.as_sample() for one in golden]).values
    changed = sum(
        (before[i] - before[j]) * (after[i] - after[j]) <= 0
        for i in range(len(before))
        for j in range(i)
        if before[i] != before[j]
    )
    cost = reward.trained.quantization_cost
    assert cost.samples == len(golden) == 8
    assert cost.largest_difference == pytest.approx(np.abs(after - before).max(), abs=1e-4)
    assert (cost.changed_pairs, cost.pairs) == (changed, 28)
    assert len(told) == 1
    assert f"at most {cost.largest_difference:.3g}, and {changed} of 28 pairs" in told[0]
    metadata = reward.score(SAMPLES[:1]).metadata
    assert metadata["quantization"].startswith(name_of(quantization))
    assert metadata["quantization_cost"]["largest_difference"] == cost.largest_difference


@pytest.mark.parametrize("quantization", SOME)
def test_without_a_manifest_the_cost_is_unknown(
    tiny_decoder: MakeFolder, quantization: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="rm_plugins"):
        reward = quantized(calmed(tiny_decoder()), quantization)
    assert "what this costs is unknown" in caplog.text
    assert reward.score(SAMPLES[:1]).metadata["quantization_cost"] is None


@pytest.mark.parametrize("quantization", EVERY)
def test_show_and_verify_print_the_cost(folder: Path, quantization: Any, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"provider": "sequence-classifier", "model": str(folder), "quantization": quantization}))
    shown = " ".join(CliRunner().invoke(main, ["show", str(spec)]).output.split())
    assert "8 golden scores differ by at most" in shown
    verified = CliRunner().invoke(main, ["verify", str(spec)])
    assert verified.exit_code == 0
    assert "8 golden scores. It is quantized with" in " ".join(verified.output.split())
    as_json = json.loads(CliRunner().invoke(main, ["verify", "--json", str(spec)]).stdout)
    assert as_json[0]["quantization_cost"]["pairs"] == 28


@pytest.mark.parametrize("quantization", EVERY)
def test_another_model_is_still_found_by_its_golden_scores(folder: Path, quantization: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.score.weight.data *= -1
    model.save_pretrained(other)
    for file in folder.iterdir():
        if not (other / file.name).exists():
            (other / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ManifestError, match=r"golden\[\d\].score"):
        quantized(other, quantization)


def test_identity(folder: Path, tmp_path: Path) -> None:
    schemes = [param.values[0] for param in EVERY if not param.marks[0].args[0]]
    rewards = [rm.load(str(folder)), *(quantized(folder, scheme, cache=str(tmp_path / "cache.sqlite")) for scheme in schemes)]
    assert len({fingerprint(reward) for reward in rewards}) == len(rewards)
    scores = [tuple(reward.score(SAMPLES).values) for reward in rewards]
    assert len(set(scores)) == len(scores), "a reward was given the cached scores of another"
    for scheme in schemes:
        spelt = {"name": scheme} if isinstance(scheme, str) else {**scheme, "skip": []}
        assert fingerprint(quantized(folder, spelt)) == fingerprint(quantized(folder, scheme))


@pytest.mark.parametrize("quantization", EVERY)
def test_reading_the_state_changes_no_score(folder: Path, quantization: Any) -> None:
    """bitsandbytes repacks weights on CPUs with bfloat16 instructions, and loses their order when the state is read."""
    reward = quantized(folder, quantization)
    before, known = reward.score(SAMPLES).values, fingerprint(reward)
    copy.deepcopy(reward.model.state_dict())
    assert fingerprint(reward) == known
    assert np.array_equal(reward.score(SAMPLES).values, before)


@pytest.mark.parametrize("quantization", SOME)
def test_pickled(folder: Path, quantization: Any) -> None:
    reward = quantized(folder, quantization)
    again = pickle.loads(pickle.dumps(reward))
    assert np.array_equal(again.score(SAMPLES).values, reward.score(SAMPLES).values)
    assert again.trained.quantization_cost == reward.trained.quantization_cost


@pytest.mark.parametrize("quantization", SOME)
def test_served_and_as_a_reward_function(folder: Path, quantization: Any) -> None:
    from rm_plugins_trl import reward_func

    reward = quantized(folder, quantization)
    expected = reward.score(SAMPLES).values
    with served(reward) as client:
        np.testing.assert_allclose(values_of(rewarded(client, SAMPLES)), expected, atol=1e-6)
        info = client.get("/v1/info").json()
    assert info["spec"]["quantization"] == quantization
    assert info["fingerprint"] == fingerprint(reward) != fingerprint(rm.load(str(folder)))
    function = reward_func({"provider": "sequence-classifier", "model": str(folder), "quantization": quantization})
    given = function(prompts=[sample.prompt for sample in SAMPLES], completions=[sample.completion for sample in SAMPLES])
    np.testing.assert_allclose(np.array(given, dtype=float), expected, atol=1e-6)


@pytest.mark.parametrize("quantization", EVERY)
def test_an_adapter_of_a_quantized_base(folder: Path, quantization: Any, tmp_path: Path) -> None:
    adapter = save_adapter(folder, tmp_path / "adapter", 0)
    reward = quantized(adapter, quantization)
    difference = np.abs(reward.score(SAMPLES).values - values(str(adapter))).max()
    assert 0 < difference < 5 * LARGEST[name_of(quantization)]


@pytest.mark.parametrize("quantization", SOME)
def test_passes_with_dropout(folder: Path, quantization: Any) -> None:
    spec = {"provider": "mc-dropout", "model": str(folder), "passes": 3}
    reward: Any = rm.load({**spec, "quantization": quantization})
    plain = rm.load(spec)
    assert np.abs(reward.score(SAMPLES).values - plain.score(SAMPLES).values).max() < LARGEST[name_of(quantization)]
    assert reward.verify() == []
    assert reward.score(SAMPLES).metadata["quantization_cost"]["pairs"] == 28


@pytest.mark.skipif(not installed("bitsandbytes"), reason="bitsandbytes is not installed")
def test_a_checkpoint_that_is_quantized_already(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    made = calmed(tiny_decoder())
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["score"])
    saved = AutoModelForSequenceClassification.from_pretrained(made, quantization_config=four_bits, dtype=torch.float32)
    saved.save_pretrained(tmp_path / "four-bits")
    for file in [*made.glob("token*"), *made.glob("*.jinja")]:
        (tmp_path / "four-bits" / file.name).write_bytes(file.read_bytes())
    reward = rm.load(str(tmp_path / "four-bits"))
    np.testing.assert_allclose(reward.score(SAMPLES).values, quantized(made, "nf4").score(SAMPLES).values, atol=1e-5)
    with pytest.raises(ModelError, match="is quantized already"):
        quantized(tmp_path / "four-bits", "nf4")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"quantization": "int2"}, "^quantization: input should be 'int8', 'int4' or 'nf4'"),
        ({"quantization": {"library": "torchao"}}, "^quantization: the key 'name' is missing"),
        ({"quantization": {"name": "int2"}}, "^quantization: there is no quantization 'int2'"),
        ({"quantization": {"name": "int4", "group_sise": 32}}, "^quantization.group_sise: .*Did you mean 'group_size'"),
        (
            {"quantization": {"name": "int4", "group_size": 33}},
            "^quantization.group_size: only int4 has groups, of 32, 64, 128",
        ),
        ({"quantization": {"name": "int8", "group_size": 32}}, "^quantization.group_size: only int4"),
        ({"quantization": {"name": "int4", "double_quant": True}}, "^quantization.double_quant: .*only nf4"),
        ({"quantization": {"name": "nf4", "library": "torchao"}}, "^quantization.library: .*Allowed: bitsandbytes"),
        ({"quantization": {"name": "nf4", "skip": [1]}}, "^quantization.skip: must be a list of names"),
        (
            {"quantization": "int4", "device": "meta"},
            "^quantization: int4 of torchao does not run on meta. Available: int8 of torchao",
        ),
    ],
)
def test_refused_before_weights_are_read(
    folder: Path, settings: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rm_plugins.models.checkpoint._load_whole", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(SpecError, match=problem):
        rm.load({"provider": "sequence-classifier", "model": str(folder), **settings})


@pytest.mark.parametrize(("scheme", "library"), [("int8", "torchao"), ("int4", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_library_is_named(folder: Path, scheme: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == library else found(name, *more))
    with pytest.raises(MissingDependencyError, match=f"{scheme} needs {library}, which is not installed: pip install"):
        quantized(folder, scheme)


@pytest.mark.skipif(not installed("torchao"), reason="torchao is not installed")
def test_a_model_without_a_layer_that_fits_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"has no layer that int4 .* can quantize.*multiple of 128"):
        quantized(folder, "int4")


def test_int4_on_a_gpu_runs_in_bfloat16() -> None:
    """Which dtypes there are is decided before any device is touched."""
    from rm_plugins.models.quantization import Quantization

    gpu = torch.device("cuda")
    assert Quantization.of("int4").dtype("auto", gpu) == "bfloat16"
    assert Quantization.of("int8").dtype("auto", gpu) == "auto"
    with pytest.raises(SpecError, match="int4 of torchao does not run in float32 on cuda, only in bfloat16"):
        Quantization.of("int4").check(gpu, "float32")
