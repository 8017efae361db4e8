"""``rm-plugins verify`` and ``show`` find every model that a reward holds, wherever it is held."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.errors import UnsupportedError
from rm_plugins.models.heads import Heads
from rm_plugins.models.trained_reward import TrainedReward
from rm_plugins.providers.models.model_in_memory import ModelInMemory
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.scores import Scores
from tests.cheap_ensembles.conftest import adapters_of, written
from tests.conftest import MakeFolder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def change(weights: Path) -> None:
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})


@pytest.fixture
def spec(tiny_decoder: MakeFolder, tiny_encoder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sum of a model with several members, adapters inside a gate, and passes with dropout; a rule holds none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    members, dropout = tiny_decoder(num_labels=3), tiny_encoder()
    written(members, heads=Heads(members=3))
    written(dropout)
    adapters = adapters_of(tiny_decoder(), tmp_path, 2)
    for adapter in adapters:
        written(Path(adapter))
    Path("members").symlink_to(members)
    Path("dropout").symlink_to(dropout)
    lora = {"provider": "lora-ensemble", "adapters": adapters}
    Path("spec.json").write_text(
        json.dumps(
            {
                "provider": "sum",
                "members": [
                    "./members",
                    {"provider": "gate", "gate": {"provider": "threshold", "at": 1, "reward": "builtins:len"}, "reward": lora},
                    {"provider": "mc-dropout", "model": "./dropout", "passes": 2},
                ],
            }
        )
    )
    return "spec.json"


def test_each_model_of_a_spec_is_named_by_its_path(spec: str) -> None:
    result = run("verify", spec)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.partition(" (")[0] for line in lines] == ["members[0].model", "members[1].reward.adapters", "members[2].model"]
    assert all("matches its reward_manifest.json: " in line for line in lines)
    assert lines[1].startswith("members[1].reward.adapters (lora-ensemble) matches")
    files = [
        len(json.loads(Path(adapter, "reward_manifest.json").read_text())["files"]) for adapter in ("adapter-0", "adapter-1")
    ]
    assert f" {sum(files)} files, 16 golden scores." in lines[1]


def test_what_changed_is_named_and_the_rest_still_verified(spec: str) -> None:
    change(Path("dropout/model.safetensors"))
    change(Path("adapter-1/adapter_model.safetensors"))
    with pytest.raises(rm.RmPluginsError, match="does not match the model"):
        rm.load(spec)
    result = run("verify", spec)
    assert result.exit_code == 1
    assert "members[0].model (" in result.stdout.splitlines()[0]
    assert "members[0].model" in result.stdout
    assert "members[1].reward.adapters (lora-ensemble) does not match its reward_manifest.json:\n- " in result.stdout
    assert "adapter-1: adapter_model.safetensors has other contents than were written" in result.stdout
    assert "adapter-0: " not in result.stdout
    assert "dropout) does not match its reward_manifest.json:\n- model.safetensors has other contents" in result.stdout
    Path("adapter-0/reward_manifest.json").unlink()
    assert "members[1].reward.adapters (lora-ensemble) cannot be verified: " in run("verify", spec).stdout


def test_a_folder_is_called_as_it_was_given(spec: str) -> None:
    result = run("verify", "members")
    assert (result.exit_code, result.stdout.partition(":")[0]) == (0, "members matches its reward_manifest.json")
    change(Path("members/model.safetensors"))
    result = run("verify", "members")
    assert result.exit_code == 1
    assert result.stdout.startswith("members does not match its reward_manifest.json:\n- model.safetensors has other contents")


def test_a_spec_without_models(spec: str) -> None:
    result = run("verify", "builtins:len")
    assert result.exit_code == 1
    assert "builtins:len has no trained model, so there is nothing to verify." in result.output


def test_loading_checks_again_after_it(spec: str) -> None:
    run("verify", "members")
    change(Path("members/model.safetensors"))
    with pytest.raises(rm.RmPluginsError, match="does not match the model"):
        rm.load("./members")


def test_show_has_facts_of_each(spec: str) -> None:
    shown = run("show", spec).stdout
    assert shown.count("manifest: compared with the model when it was loaded") == 3
    assert shown.count("dtype: float32") == 3


def test_a_plug_ins_provider_is_asked_as_well(spec: str, run_with: Callable[..., Result]) -> None:
    result = run_with("show", {"provider": "two-models", "first": "./members", "second": "./dropout"})
    for fact in ("first.dtype: float32", "second.dtype: float32", "first.outputs: reward 1; members: 3"):
        assert fact in result.stdout
    change(Path("dropout/model.safetensors"))
    result = run_with("verify", {"provider": "two-models", "first": "./members", "second": "./dropout"})
    assert result.exit_code == 1
    assert "first (./members) matches" in result.stdout
    assert "second (./dropout) does not match" in result.stdout


class TwoModels(rm.Provider):
    """A plug-in's provider, which holds two models and shares no class with ours."""

    name = "two-models"

    def __init__(self, *, first: str, second: str) -> None:
        self.held = {key: SequenceClassifier(model=path).trained for key, path in {"first": first, "second": second}.items()}

    @property
    def models(self) -> dict[str, TrainedReward]:
        return self.held

    def score_batch(self, samples: Any) -> Scores:
        first, second = (model.outputs(samples).values.mean(axis=1) for model in self.held.values())
        return Scores(first - second)


@pytest.fixture
def run_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the program where `TwoModels` is registered."""
    hooks = SimpleNamespace(__name__="two", rm_register_providers=rm.hookimpl(lambda: [TwoModels]))
    registry = rm.Registry([hooks])
    load = rm.load

    def run_in(command: str, spec: dict[str, Any]) -> Result:
        Path("two.json").write_text(json.dumps(spec))
        monkeypatch.setattr(rm, "load", lambda source: load(source, registry=registry))
        return run(command, "two.json")

    return run_in


def test_a_trained_reward_is_sent_to_other_processes_as_what_it_was_loaded_from(spec: str) -> None:
    provider = SequenceClassifier(model="./members")
    samples = [rm.Sample("Name a colour.", " Blue."), rm.Sample("a", "")]
    sent = pickle.dumps(provider.trained)
    assert len(sent) < 2_000
    assert (pickle.loads(sent).outputs(samples).values == provider.trained.outputs(samples).values).all()
    held = ModelInMemory(provider.model, provider.renderer, Heads(members=3), label="live")
    assert held.models["model"].source == "live"
    with pytest.raises(UnsupportedError, match="'live' is a model in the memory of this process"):
        pickle.dumps(held)
