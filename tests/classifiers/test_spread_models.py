"""Models that are spread over devices or offloaded: the same scores as on one device, or an error of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch

import rm_plugins as rm
from rm_plugins.engine.engine import ScoringEngine
from rm_plugins.engine.placement import devices_of, input_device, is_spread
from rm_plugins.engine.score_cache import model_fingerprint
from rm_plugins.errors import ModelError, ScoringError, SpecError
from rm_plugins.identity import fingerprint
from tests.classifiers.conftest import SAMPLES
from tests.conftest import MakeFolder

PROMPT = [5 + number % 50 for number in range(70)]
ROWS = [
    [*PROMPT, *range(10, 30)],
    [*PROMPT, *range(30, 35)],
    PROMPT[:9],
    [*range(10, 60)],
    [8, 9],
    *([*PROMPT, end] for end in range(60, 72)),
]


@pytest.mark.parametrize("device_map", ["auto", "balanced", {"": "cpu"}, {"model": "cpu", "score": "cpu"}], ids=str)
def test_a_device_map_changes_no_score(tiny_decoder: MakeFolder, device_map: Any) -> None:
    folder = str(tiny_decoder())
    spread, plain = rm.load(folder, device_map=device_map), rm.load(folder)
    np.testing.assert_allclose(spread.score(SAMPLES).values, plain.score(SAMPLES).values, rtol=1e-4, atol=1e-4)
    assert fingerprint(spread) == fingerprint(plain)


def offloaded(model: Any, way: str, folder: Path) -> Any:
    if way == "cpu":
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    if way == "disk":
        return accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))
    parts = {"model.embed_tokens": 0, "model.layers": 0, "model.norm": 1, "model.rotary_emb": 0, "score": 1}
    return accelerate.dispatch_model(model, dict.fromkeys(parts, "cpu"), force_hooks=True)


@pytest.mark.parametrize("way", ["cpu", "disk", "hooks"])
@pytest.mark.parametrize("encoder", [False, True], ids=["decoder", "encoder"])
def test_the_engine_runs_a_model_with_hooks(
    tiny_decoder: MakeFolder, tiny_encoder: MakeFolder, tmp_path: Path, way: str, encoder: bool
) -> None:
    """Prefixes are shared, rows padded, and the state of the model is found, although its own weights are on no device."""
    if encoder and way == "hooks":
        pytest.skip("the parts are named for the decoder")
    folder = str(tiny_encoder() if encoder else tiny_decoder())
    plain: Any = rm.load(folder, pair=False)
    known, expected = model_fingerprint(plain.model), plain.trained.engine.outputs(ROWS)[0]
    model = offloaded(plain.model, way, tmp_path)
    if way != "hooks":
        assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert is_spread(model)
    assert (input_device(model), devices_of(model)) == (torch.device("cpu"), {torch.device("cpu")})
    engine = ScoringEngine(model)
    outputs, work = engine.outputs(ROWS)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    assert engine.shares_prefixes is not encoder
    assert encoder or work.unique_tokens < sum(map(len, ROWS)), "no prefix was shared"
    assert model_fingerprint(model) == known


def test_broken_weights_are_found_where_they_are_stored(tiny_decoder: MakeFolder) -> None:
    reward: Any = rm.load(str(tiny_decoder()))
    reward.model.model.norm.weight.data[:] = torch.nan
    offloaded(reward.model, "cpu", Path())
    with pytest.raises(ScoringError, match=r"model.norm.weight contains NaN"):
        reward.score(SAMPLES[:1])


def test_offloaded_weights_are_copied_out_of_their_file(tiny_decoder: MakeFolder) -> None:
    from transformers import AutoModelForSequenceClassification

    from rm_plugins.models.own_weights import own_weights

    folder = tiny_decoder()
    model = accelerate.cpu_offload(AutoModelForSequenceClassification.from_pretrained(folder).eval())
    engine = ScoringEngine(own_weights(model))
    before = engine.outputs(ROWS)[0]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4_096, 2)
        file.write(b"\1" * 4_096)
    assert np.array_equal(engine.outputs(ROWS)[0], before)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"device_map": "autoo"}, "^device_map: input should be 'auto', 'balanced'"),
        ({"device_map": {}}, "^device_map: it names no part"),
        ({"device_map": {"": "disk"}}, "^device_map: weights on 'disk' would be read from their file for every batch"),
        ({"device_map": {"model": "cpu", "score": "meta"}}, "^device_map.score: weights on 'meta'"),
        ({"device_map": {"": "nowhere"}}, "^device_map: there is no device 'nowhere'"),
        ({"device_map": "auto", "device": "cpu"}, "^device_map: `device` is for a model on one device"),
    ],
)
def test_refused_before_weights_are_read(
    tiny_decoder: MakeFolder, settings: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rm_plugins.models.checkpoint._load_whole", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(SpecError, match=problem):
        rm.load(str(tiny_decoder()), **settings)


def test_parts_that_accelerate_puts_on_the_disk_are_refused(tiny_decoder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has too little memory for a strategy."""
    from transformers import modeling_utils

    monkeypatch.setattr(modeling_utils, "_get_device_map", lambda *_: {"model": "cpu", "score": "disk"})
    with pytest.raises(
        ModelError, match=r"does not fit: with device_map: auto, 1 of its parts would stay on the disk \(first: score\)"
    ):
        rm.load(str(tiny_decoder()), device_map="auto")
