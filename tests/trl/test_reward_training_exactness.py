"""A training is the same one when it was killed in between, and when it runs on several processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trl.conftest import TRL_WARNINGS, newest_trl
from tests.trl.train_once import train_once
from tests.warm_process import run_warm, run_warm_group

pytestmark = [newest_trl, *TRL_WARNINGS]  # nothing here depends on TRL's version, and processes take their time

COLOURS = (" It is blue.", " It is red, like the evening.", " Green.", " It is grey and so is the rain.")
PAIRS = [
    {"prompt": f"Name a colour{'.' * n}", "chosen": COLOURS[n % 4] + "." * n, "rejected": " two" + " two" * (n % 3)}
    for n in range(16)
]
LABELLED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]
RANKED = [
    {
        "prompt": f"Count{'.' * n}",
        "completions": [" two" * (place + 1) for place in range(2 + n % 3)],
        "ranks": list(range(2 + n % 3)),
    }
    for n in range(16)
]


def job(folder: Path, name: str, model: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    more = {key: settings.pop(key) for key in ("kill", "resume") if key in settings}
    config = {"output_dir": str(folder / "out"), "learning_rate": 1e-2, "warmup_steps": 0, **settings}
    path = folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps({"model": str(model), "rows": rows, "config": config, **more}), encoding="utf-8")
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "model.safetensors")


def killed(path: Path) -> None:
    run_warm("tests.trl.train_once", path, status=-signal.SIGKILL)


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (LABELLED, {"loss": "bco"}),  # remembers a running mean
        (PAIRS, {"members": 2, "bootstrap": True, "disable_dropout": False}),
    ],
    ids=["a loss with a memory", "bootstrapped members with dropout"],
)
def test_a_killed_training_goes_on_to_the_same_weights(
    rows: list[dict[str, Any]],
    settings: dict[str, Any],
    tiny_decoder: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_decoder()
    shared = {**settings, "max_steps": 10, "save_steps": 2, "per_device_train_batch_size": 4}
    train_once(job(tmp_path / "whole", "job", model, rows, **shared))
    broken = tmp_path / "broken"
    killed(job(broken, "first", model, rows, **shared, kill=["step", 5]))
    assert (broken / "out" / "checkpoint-4").is_dir()
    killed(job(broken, "second", model, rows, **shared, kill=["save", 8], resume=True))
    assert (broken / "out" / "checkpoint-8" / "model.safetensors").is_file()
    train_once(job(broken, "third", model, rows, **shared, resume=True))
    assert "checkpoint-8 was not saved completely" in caplog.text
    expected, found = weights(tmp_path / "whole"), weights(broken)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (PAIRS, {"loss": "odin", "regularizers": {"length-correlation": 0.5}}),
        (RANKED, {"loss": "k-wise", "gradient_accumulation_steps": 2}),
    ],
    ids=["a loss that is no mean", "groups of different sizes, accumulated"],
)
def test_two_processes_have_the_losses_of_one(
    rows: list[dict[str, Any]], settings: dict[str, Any], tiny_decoder: Any, tmp_path: Path
) -> None:
    model = tiny_decoder()
    shared = {**settings, "max_steps": 4, "save_strategy": "steps", "save_steps": 100}
    one = job(tmp_path / "one", "job", model, rows, **shared, per_device_train_batch_size=4)
    two = job(tmp_path / "two", "job", model, rows, **shared, per_device_train_batch_size=2)
    train_once(one)
    run_warm_group(2, "tests.trl.train_once", two, ACCELERATE_USE_CPU="true")
    expected, found = (json.loads((tmp_path / name / "out" / "losses.json").read_text()) for name in ("one", "two"))
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in expected], rel=1e-4)
    assert len(found) == 4
    for name, weight in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], weight, atol=1e-4, rtol=1e-3)
