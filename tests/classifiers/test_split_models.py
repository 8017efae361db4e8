"""A model that is split over processes (tensor parallelism): each process gets the same scores, those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import ModelError, SpecError
from rm_plugins.identity import fingerprint
from rm_plugins.models.placement import Placement
from rm_plugins.models.settings import ModelSettings
from tests.cheap_ensembles.conftest import written
from tests.classifiers.conftest import SAMPLES
from tests.conftest import MakeFolder
from tests.warm_process import run_warm_group


def test_two_processes_share_a_model(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    folder = tiny_decoder()
    written(folder)
    run_warm_group(2, "tests.classifiers.split_once", folder, tmp_path)
    plain: Any = rm.load(str(folder))
    expected = plain.score(SAMPLES).values
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["weight"] == "DTensor", "the layers are not split"
        np.testing.assert_allclose(found["scores"], expected, atol=1e-4)
        assert "must all score the same samples, but were given different ones (2, 2 rows)" in found["different"]
        assert found["fingerprint"] == fingerprint(plain)
        assert found["problems"] == []


def test_one_process_is_refused(tiny_decoder: MakeFolder) -> None:
    with pytest.raises(SpecError, match=r"^tp_plan: .*this program has one. Start it with torchrun"):
        rm.load(str(tiny_decoder()), tp_plan="auto")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"device": "cpu"}, "^device: .*takes no `device`"),
        ({"device_map": "auto", "quantization": "int8"}, "^device_map: .*takes no `device_map` and no `quantization`"),
        ({"cache": "scores.sqlite"}, "^cache: "),
    ],
)
def test_keys_that_do_not_go_together(settings: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match=problem):
        Placement.of(ModelSettings(tp_plan="auto", **settings))


def test_heads_that_cannot_be_shared_equally(tiny_decoder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ModelError, match="has 2 num_key_value_heads, which 4 processes cannot share equally"):
        rm.load(str(tiny_decoder()), tp_plan="auto")
