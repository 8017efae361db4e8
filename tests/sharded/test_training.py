"""A reward model trained with sharded weights, which is that of one process; killed and resumed, saved and evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rm_plugins as rm
from tests.made_once import made_once
from tests.sharded.launcher import outcomes
from tests.sharded.training import rows
from tests.sharded.training_cases import GROUPS, STEPS, VARIANTS
from tests.trl.conftest import TRL_WARNINGS, made_policy, newest_trl
from tests.warm_process import run_warm

pytestmark = [newest_trl, *TRL_WARNINGS]

CASES = [(group, case) for group, (_, cases) in GROUPS.items() for case in cases if not group.startswith("killed")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all cases have written, and the model that they trained."""

    def make(folder: Path) -> None:
        made_policy(folder / "policy")
        run_warm("tests.sharded.training_cases", folder / "policy", folder)

    return made_once(tmp_path_factory, "trainings", make)


def told(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Equal names, and numbers up to rounding."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


def assert_same_model(found: Path, wanted: Path, tolerance: float = 0.0) -> None:
    """The same files, weights and configuration, verified; both load anywhere."""
    weights = "adapter_model.safetensors" if (wanted / "adapter_model.safetensors").exists() else "model.safetensors"
    torch.testing.assert_close(load_file(found / weights), load_file(wanted / weights), rtol=tolerance, atol=tolerance)
    if weights == "model.safetensors":
        configurations = [json.loads((one / "config.json").read_text(encoding="utf-8")) for one in (found, wanted)]
        assert configurations[0] == configurations[1]
    manifests = [json.loads((one / "reward_manifest.json").read_text(encoding="utf-8")) for one in (found, wanted)]
    for name in ("rendering", "heads", "dtype", "trained_on"):
        assert manifests[0].get(name) == manifests[1].get(name), name
    scores = [[golden["score"] for golden in manifest["golden"]] for manifest in manifests]
    assert scores[0] == pytest.approx(scores[1], abs=max(10 * tolerance, 1e-6)) and scores[0]
    assert rm.load(found).verify() == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(("group", "case"), CASES)
def test_processes(group: str, case: str, folder: Path) -> None:
    processes = GROUPS[group][0]
    by_rank = outcomes(folder, processes, group).get(case, {})
    assert by_rank == dict.fromkeys(range(processes), "ok"), "\n".join(by_rank.values()) or "the process ended before"


def test_twenty_steps(folder: Path) -> None:
    found, wanted = told(folder, "long"), told(folder, "long-alone")
    assert len(wanted["logged"]) == STEPS
    assert_close(found["logged"], wanted["logged"])
    assert any("eval_held/accuracy" in entry for entry in wanted["evaluated"])
    assert_close(found["evaluated"], wanted["evaluated"], 1e-4)
    assert_same_model(folder / "long", folder / "long-alone", 2e-4)
    manifest = json.loads((folder / "long" / "reward_manifest.json").read_text(encoding="utf-8"))
    assert manifest["training"]["rows_per_step"] == 2 and manifest["training"]["metrics"]["eval_held/accuracy"] > 0


def test_the_best_model_is_saved_at_the_end(folder: Path) -> None:
    found, wanted = told(folder, "best"), told(folder, "best-alone")
    assert found["steps"] == wanted["steps"] == 3
    assert_close(found["logged"], wanted["logged"])
    assert_close(found["evaluated"], wanted["evaluated"], 1e-4)
    assert_same_model(folder / "best", folder / "best-alone", 1e-4)
    checkpoints = [load_file(folder / "best-alone" / f"checkpoint-{step}" / "model.safetensors") for step in (1, 3)]
    saved = load_file(folder / "best" / "model.safetensors")
    torch.testing.assert_close(saved, checkpoints[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(saved["score.weight"], checkpoints[1]["score.weight"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, folder: Path) -> None:
    assert_close(told(folder, name)["logged"], told(folder, f"{name}-alone")["logged"])
    assert_same_model(folder / name, folder / f"{name}-alone", 1e-3)


def test_an_uneven_last_batch(folder: Path) -> None:
    wanted = told(folder, "uneven-alone")["logged"]
    assert_close(told(folder, "uneven-whole")["logged"], wanted)
    assert_close(told(folder, "uneven-resumed")["logged"][-1:], wanted[-1:])
    assert_same_model(folder / "uneven-whole", folder / "uneven-alone", 1e-4)
    assert_same_model(folder / "uneven-resumed", folder / "uneven-whole")


def test_repeated_forward_passes(folder: Path) -> None:
    wanted = told(folder, "long-alone")["logged"][:3]
    assert_close(told(folder, "checkpointing-fsdp")["logged"], wanted)
    assert_close(told(folder, "checkpointing-own")["logged"], wanted)


@pytest.mark.parametrize(("name", "whole"), [("bf16", "full"), ("bf16-lora", "full-lora")])
def test_half_precision(name: str, whole: str, folder: Path) -> None:
    assert_close(told(folder, name)["logged"], told(folder, whole)["logged"][:3], 5e-2)
    assert rm.load(folder / name).verify() == []  # type: ignore[attr-defined]


def test_weights_that_one_process_loads(folder: Path) -> None:
    assert_close(told(folder, "efficient")["logged"], told(folder, "grm-alone")["logged"])
    assert_same_model(folder / "efficient-resumed", folder / "efficient")


@pytest.mark.parametrize(
    ("resumed", "whole"),
    [
        ("full-resumed", "full"),
        ("sharded-resumed", "full"),
        ("full-lora-resumed", "full-lora"),
        ("sharded-lora-resumed", "sharded-lora"),
        ("killed-in-shards", "full"),
        ("killed-in-manifest", "full"),
    ],
)
def test_resumed_training_is_that_of_one_run(resumed: str, whole: str, folder: Path) -> None:
    assert told(folder, resumed)["logged"][-2:] == told(folder, whole)["logged"][-2:]
    assert_same_model(folder / resumed, folder / whole)


@pytest.mark.parametrize("resumed", ["two-to-one", "one-to-two", "one-full-to-two"])
def test_another_number_of_processes(resumed: str, folder: Path) -> None:
    assert_close(told(folder, resumed)["logged"][-2:], told(folder, "full")["logged"][-2:])
    assert_same_model(folder / resumed, folder / "full", 1e-4)


def test_a_checkpoint_of_shards(folder: Path) -> None:
    """It has what a model folder has besides the weights, which can be merged into it."""
    from accelerate.utils import merge_fsdp_weights

    checkpoint = folder / "sharded" / "checkpoint-4"
    assert not (checkpoint / "model.safetensors").exists()
    merge_fsdp_weights(str(checkpoint / "pytorch_model_fsdp_0"), str(checkpoint))
    samples = [rm.Sample(row["prompt"], row["chosen"]) for row in rows()]
    scores = [rm.load(one).score(samples).values.tolist() for one in (checkpoint, folder / "full")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("trl", [False, True], ids=["our batches", "TRL's batches"])
def test_evaluations_are_exact(processes: int, trl: bool, folder: Path) -> None:
    """Five rows in any number of processes and at any batch size; the last batch is filled up with rows that do not count."""
    [wanted] = told(folder, "evaluated-alone")["metrics"]
    for metrics in told(folder, f"evaluated-{processes}-{trl}")["metrics"]:
        for name in ("loss", "margin", "mean_reward", "std_reward", "accuracy", "regularizers/centering"):
            assert metrics[f"eval_{name}"] == pytest.approx(wanted[f"eval_{name}"], abs=1e-6), name
