"""Presets: what they set for which size, and that the trainer's arguments take it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from trl import RewardConfig

from rm_plugins.errors import SpecError
from rm_plugins_trl import RewardConfig as OurRewardConfig
from rm_plugins_trl.configs import own_copy
from rm_plugins_trl.reward_training import presets
from rm_plugins_trl.reward_training.presets import Preset, preset

SIZES = {
    1: "<1B",
    999_999_999: "<1B",
    1_000_000_000: "1-7B",
    6_999_999_999: "1-7B",
    7_000_000_000: "7-13B",
    13_000_000_000: "7-13B",
    13_000_000_001: ">13B",
    70_000_000_000: ">13B",
}


def of(name: str, adapter: bool = False) -> Preset:
    return preset(next(size for size, found in SIZES.items() if found == name), adapter=adapter)


class TestSizes:
    @pytest.mark.parametrize(("parameters", "name"), SIZES.items())
    def test_the_boundaries(self, parameters: int, name: str) -> None:
        assert preset(parameters, adapter=False).name == name
        assert preset(parameters, adapter=True).name == f"{name}, LoRA"

    @pytest.mark.parametrize(
        ("name", "rate", "batch_size"), [("<1B", 2e-5, 8), ("1-7B", 1e-5, 4), ("7-13B", 5e-6, 2), (">13B", 2e-6, 1)]
    )
    def test_what_each_sets(self, name: str, rate: float, batch_size: int) -> None:
        assert of(name) == Preset(name, rate, batch_size, 1, 0.05)

    @pytest.mark.parametrize("name", dict.fromkeys(SIZES.values()))
    def test_lora_takes_ten_times_the_rate_and_nothing_else(self, name: str) -> None:
        full, lora = of(name), of(name, adapter=True)
        assert lora.learning_rate == pytest.approx(10 * full.learning_rate)
        assert (lora.per_device_train_batch_size, lora.num_train_epochs, lora.warmup_steps) == (
            full.per_device_train_batch_size,
            full.num_train_epochs,
            full.warmup_steps,
        )

    @pytest.mark.parametrize(("parameters", "name"), [(99_999_999, "encoder <100M"), (100_000_000, "<1B")])
    def test_small_encoders_have_their_own(self, parameters: int, name: str) -> None:
        assert preset(parameters, adapter=False, encoder=True).name == name
        assert preset(parameters, adapter=False).name == "<1B"

    @pytest.mark.parametrize("parameters", [0, -1])
    def test_a_model_without_parameters(self, parameters: int) -> None:
        with pytest.raises(SpecError, match=f"not {parameters}. Count them before the weights are sharded"):
            preset(parameters, adapter=False)

    def test_a_preset_cannot_be_changed(self) -> None:
        with pytest.raises(FrozenInstanceError):
            of("<1B").learning_rate = 1.0  # type: ignore[misc]


class TestSettings:
    @pytest.mark.parametrize("adapter", [False, True])
    @pytest.mark.parametrize("name", dict.fromkeys(SIZES.values()))
    def test_the_trainers_arguments_take_them(self, name: str, adapter: bool, tmp_path: Path) -> None:
        settings = of(name, adapter).settings()
        args = RewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", **settings)
        assert {key: getattr(args, key) for key in settings} == settings
        assert args.get_warmup_steps(1_000) == 50

    @pytest.mark.parametrize(
        ("installed", "name"),
        [
            ("4.57.0", "warmup_ratio"),
            ("4.57.6", "warmup_ratio"),
            ("5.0.0", "warmup_steps"),
            ("5.0.0rc1", "warmup_steps"),
            ("5.23.0", "warmup_steps"),
            ("10.1", "warmup_steps"),
        ],
    )
    def test_the_warm_up_has_the_name_of_the_installed_version(
        self, installed: str, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(presets, "version", {"transformers": installed}.__getitem__)
        assert of("<1B").settings() == {
            "learning_rate": 2e-5,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 1,
            name: 0.05,
        }


class TestApplied:
    def test_what_is_none_is_set(self) -> None:
        settings = of("1-7B").settings()
        assert of("1-7B").applied(dict.fromkeys(settings)) == settings

    @pytest.mark.parametrize(
        ("name", "value"), [("learning_rate", 3e-6), ("per_device_train_batch_size", 64), ("num_train_epochs", 3.0)]
    )
    def test_what_was_given_stands(self, name: str, value: float) -> None:
        settings = of("1-7B").settings()
        found = of("1-7B").applied({**dict.fromkeys(settings), name: value})
        assert found == {key: default for key, default in settings.items() if key != name}

    def test_zero_was_given(self) -> None:
        assert of("1-7B").applied({"learning_rate": 0.0, "num_train_epochs": None}) == {"num_train_epochs": 1}

    def test_other_arguments_are_no_matter_of_a_preset(self) -> None:
        assert of("1-7B").applied({"max_length": None, "learning_rate": None}) == {"learning_rate": 1e-5}
        assert of("1-7B").applied({}) == {}

    @pytest.mark.parametrize("installed", ["4.57.6", "5.23.0"])
    @pytest.mark.parametrize("given", [{"warmup_steps": 100}, {"warmup_steps": 0}, {"warmup_ratio": 0.1}])
    def test_a_warm_up_stands_under_either_name(
        self, given: dict[str, float], installed: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(presets, "version", {"transformers": installed}.__getitem__)
        nothing: dict[str, Any] = {"warmup_steps": None, "warmup_ratio": None, "learning_rate": None}
        assert set(of("1-7B").applied({**nothing, **given})) == {"learning_rate"}
        assert len(of("1-7B").applied(nothing)) == 2


class TestAttributesSetLater:
    """A script may make its arguments first and set them after that."""

    def config(self, folder: Path) -> Any:
        return OurRewardConfig(str(folder), use_cpu=True, report_to="none")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("learning_rate", 7e-4), ("learning_rate", 1e-4), ("per_device_train_batch_size", 3), ("num_train_epochs", 2)),
            *(("warmup_steps", 0), ("warmup_steps", 7), ("warmup_ratio", 0.1)),
        ],
    )
    def test_they_stand_and_the_preset_fills_the_others(self, name: str, value: float, tmp_path: Path) -> None:
        args = self.config(tmp_path)
        setattr(args, name, value)
        taken = args.apply_preset(of("<1B"))
        assert getattr(args, name) == value
        names = {"learning_rate", "per_device_train_batch_size", "num_train_epochs", "warmup_steps"}
        assert {*taken} == names - {name, *(["warmup_steps"] if name == "warmup_ratio" else [])}

    def test_set_training_sets_all_that_it_names(self, tmp_path: Path) -> None:
        args = self.config(tmp_path).set_training(learning_rate=7e-4, batch_size=3, num_epochs=2)
        args.apply_preset(of("<1B"))
        assert (args.learning_rate, args.per_device_train_batch_size, args.num_train_epochs) == (7e-4, 3, 2)

    def test_a_copy_knows_what_was_set(self, tmp_path: Path) -> None:
        args = self.config(tmp_path)
        args.learning_rate = 7e-4
        assert "learning_rate" not in own_copy(args).apply_preset(of("<1B"))
        assert args.unset


def test_importing_it_imports_no_trl() -> None:
    code = (
        "import json, sys\nfrom rm_plugins_trl.reward_training.presets import preset\n"
        "print(preset(1, adapter=True).settings(), file=sys.stderr)\n"
        "print(json.dumps([name for name in ('trl', 'transformers', 'torch') if name in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []
