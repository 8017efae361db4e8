"""``rm-plugins calibrate``: statistics of transforms, found in a reward's own scores."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import rm_plugins as rm
from rm_plugins.aggregates import Mean
from rm_plugins.calibration import Calibration
from rm_plugins.cli import main
from rm_plugins.component import Transform
from rm_plugins.errors import DataError, SpecError
from rm_plugins.providers.combinators.members import combined

FUNCTIONS = """
def length(samples):
    return [float(len(sample.completion)) for sample in samples]

def picky(samples):
    return [None if len(sample.completion) == 2 else 100.0 - 3 * len(sample.completion) for sample in samples]

def same(samples):
    return [1.0] * len(samples)

def mute(samples):
    return [None] * len(samples)

def short(samples):
    return [float(len(sample.completion) < 4) for sample in samples]

def broken(samples):
    raise RuntimeError("no network")
"""
LENGTHS = [*range(1, 9)] * 10
SAMPLES = [rm.Sample("Q", "x" * length) for length in LENGTHS]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with rows and functions to score them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "calibrated_functions", raising=False)
    Path("calibrated_functions.py").write_text(FUNCTIONS)
    rows = [{"prompt": sample.prompt, "completion": sample.completion} for sample in SAMPLES]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def function(called: str, **more: Any) -> dict[str, Any]:
    return {"provider": "function", "function": f"calibrated_functions:{called}", **more}


def ensemble(*members: Any, **more: Any) -> dict[str, Any]:
    return {"provider": "ensemble", "members": list(members), **more}


def calibrated(spec: str | Mapping[str, Any], **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The spec that comes out, and the statistics by path."""
    calibration = Calibration(spec, **more)
    found = calibration.fit(SAMPLES)
    return calibration.spec(Path()), {entry.path: dict(entry.statistics) for entry in found}


def run(*arguments: str) -> str:
    found = CliRunner().invoke(main, ["calibrate", *arguments], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def refused(*arguments: str) -> str:
    found = CliRunner().invoke(main, ["calibrate", *arguments], catch_exceptions=False)
    assert found.exit_code != 0
    return " ".join(found.output.split())


class TestTheCommand:
    def test_an_ensemble_of_two_models(self, tiny_decoder: Any, tiny_encoder: Any, folder: Path) -> None:
        Path("models").mkdir()
        for name, made in {"decoder": tiny_decoder(), "encoder": tiny_encoder()}.items():
            Path(made).rename(folder / "models" / name)
        Path("specs").mkdir()
        inner = {"provider": "sequence-classifier", "model": "../models/encoder", "label": "second"}
        Path("specs/inner.yaml").write_text(yaml.safe_dump(inner))
        Path("specs/outer.yaml").write_text(yaml.safe_dump(ensemble("../models/decoder", "inner.yaml", aggregate="min")))
        samples = [rm.Sample("Name a colour.", text) for text in ("one", "two", "three", "four", "sea", "rain") * 5]
        rows = [{"prompt": sample.prompt, "completion": sample.completion} for sample in samples]
        Path("words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        printed = run("specs/outer.yaml", "words.jsonl", "-o", "out.yaml")
        assert re.search(r"members\[0\]\.transform +zscore +mean -?[\d.]+, std [\d.]+ +30 +0\n", printed)
        assert "members[1].transform" in printed

        written = yaml.safe_load(Path("out.yaml").read_text())
        assert [member["model"] for member in written["members"]] == ["./models/decoder", "./models/encoder"]
        assert written["members"][1]["label"] == "second"
        reward = rm.load("out.yaml")  # without the warning that there is no common scale
        scores = reward.score(samples)
        for member in ("member/0", "member/1"):
            assert abs(scores.columns[member].mean()) < 1e-6
            assert abs(scores.columns[member].std() - 1) < 1e-6
        raw = rm.load("models/encoder").score(samples).values
        np.testing.assert_allclose(scores.columns["member/1/raw"], raw, atol=1e-5)

    def test_models_elsewhere_have_absolute_paths(self, tiny_decoder: Any, folder: Path) -> None:
        model = str(tiny_decoder())
        run(model, "rows.jsonl", "-o", str(folder / "deep" / "out.yaml"))
        written = yaml.safe_load((folder / "deep" / "out.yaml").read_text())
        assert written["model"] == model
        assert set(written["transform"]) == {"name", "mean", "std"}

    def test_where_the_output_goes(self, folder: Path) -> None:
        Path("specs").mkdir()
        Path("specs/reward.yaml").write_text(yaml.safe_dump(function("length")))
        assert "Wrote specs/reward.calibrated.yaml; use it in place of specs/reward.yaml." in run(
            "specs/reward.yaml", "rows.jsonl"
        )
        assert Path("specs/reward.calibrated.yaml").read_text().startswith("# Calibrated by rm-plugins")
        assert "exists already" in refused("specs/reward.yaml", "rows.jsonl")
        run("specs/reward.yaml", "rows.jsonl", "--overwrite")
        assert "-o writes .yaml, or - for standard output; 'out.json' is neither." in refused(
            "specs/reward.yaml", "rows.jsonl", "-o", "out.json"
        )

    def test_nothing_is_cut_where_the_table_is_redirected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("COLUMNS", raising=False)
        member = ensemble(function("length"), function("picky"))
        Path("deep.yaml").write_text(yaml.safe_dump(ensemble(ensemble(ensemble(member, member), member), function("length"))))
        printed = CliRunner().invoke(main, ["calibrate", "deep.yaml", "rows.jsonl", "-o", "out.yaml"], env={"COLUMNS": None})
        lines = [line for line in printed.stdout.splitlines() if "members[" in line]
        assert len(lines) == 12
        for line in lines:
            assert re.search(r"^(members\[\d\]\.)+transform +zscore +mean [-\d.e+]+, std [\d.e+-]+ +\d+ +\d+$", line), line

    def test_limit_and_transform(self) -> None:
        printed = run("calibrated_functions:length", "rows.jsonl", "-o", "out.yaml", "--limit", "35", "--transform", "min-max")
        assert re.search(r"transform +min-max +low 1, high 8 +35 +0\n", printed)
        np.testing.assert_allclose(rm.load("out.yaml").score(SAMPLES[:8]).values, np.arange(8) / 7)

    def test_what_cannot_be_calibrated(self) -> None:
        Path("empty.jsonl").touch()
        assert "empty.jsonl has no row to calibrate with." in refused(
            "calibrated_functions:length", "empty.jsonl", "-o", "out.yaml"
        )
        assert "only 80 abstentions" in refused("calibrated_functions:mute", "rows.jsonl", "-o", "out.yaml")
        message = refused("calibrated_functions:same", "rows.jsonl", "-o", "out.yaml")
        assert (
            "transform: 'zscore' of 'same' cannot be calibrated: All 80 scores are 1.0: zscore needs scores that differ."
            in message
        )
        message = refused("calibrated_functions:length", "rows.jsonl", "-o", "out.yaml", "--transform", "tanh")
        assert "'tanh' takes no statistics, so there is nothing to calibrate." in message
        for transform in ("zscore", "min-max", "log-sigmoid-centred", "par"):
            few = refused(
                "calibrated_functions:picky", "rows.jsonl", "-o", "out.yaml", "--limit", "33", "--transform", transform
            )
            assert f"{transform!r} needs at least 30 scores for its statistics, and there are 29 (and 4 abstentions)" in few
            assert "Give more rows" in few
            same = refused("calibrated_functions:same", "rows.jsonl", "-o", "out.yaml", "--transform", transform)
            assert f"All 80 scores are 1.0: {transform} needs scores that differ." in same
        assert not Path("out.yaml").exists()


class TestWhatIsCalibrated:
    def test_every_transform_that_takes_statistics_gets_them(self) -> None:
        spec = ensemble(
            function("length", transform={"name": "zscore", "mean": 5.0, "std": 99.0}),
            function("picky", transform=[{"name": "clip", "high": 90.0}, {"name": "par", "quantile": 0.5}]),
            function("length", transform="tanh"),
            transform={"name": "min-max", "clip": False},
        )
        written, found = calibrated(spec)
        assert found["members[0].transform"] == {"mean": 4.5, "std": np.std(LENGTHS)}
        assert found["members[1].transform.transforms[1]"] == {"centre": 85.0}
        assert set(found) == {"members[0].transform", "members[1].transform.transforms[1]", "transform"}
        assert written["members"][1]["transform"]["transforms"][1] == {"name": "par", "quantile": 0.5, "centre": 85.0}
        scores = rm.load(written).score(SAMPLES)
        assert (scores.values[~scores.abstained].min(), scores.values[~scores.abstained].max()) == (0, 1)

    def test_an_outer_transform_is_fitted_to_calibrated_members(self) -> None:
        member = function("length", transform="zscore")
        written, found = calibrated(ensemble(member, member, transform="min-max"))
        assert found["transform"]["high"] == pytest.approx((8 - 4.5) / np.std(LENGTHS))
        assert rm.load(written).score(SAMPLES).values[[0, 7]].tolist() == [0, 1]

    def test_abstentions_do_not_count(self) -> None:
        calibration = Calibration(function("picky", transform="zscore"))
        (entry,) = calibration.fit(SAMPLES)
        assert (entry.scores, entry.abstained) == (70, 10)
        assert entry.statistics["mean"] == pytest.approx(np.mean([100 - 3 * length for length in LENGTHS if length != 2]))

    def test_members_of_every_ensemble_get_a_transform_where_there_is_none(self) -> None:
        spec = {
            "provider": "sum",
            "members": [ensemble("calibrated_functions:length", function("picky", transform={"name": "clip", "low": 80.0}))],
        }
        written, found = calibrated(spec)
        assert set(found) == {"members[0].members[0].transform", "members[0].members[1].transform.transforms[1]"}
        assert written["members"][0]["members"][1]["transform"]["transforms"][0] == {"name": "clip", "low": 80.0}
        scores = rm.load(written).score(SAMPLES)
        assert np.nanmean(scores.columns["member/0/member/1"]) == pytest.approx(0)

    def test_a_fallback_is_calibrated_with_all_samples(self) -> None:
        spec = function("broken", on_error={"fallback": function("length", transform="zscore")})
        assert calibrated(spec)[1] == {"on_error.fallback.transform": {"mean": 4.5, "std": np.std(LENGTHS)}}
        first, second = (function(name, transform="zscore") for name in ("picky", "length"))
        _, found = calibrated({"provider": "fallback", "members": [first, second]})
        assert found["members[1].transform"] == {"mean": 4.5, "std": np.std(LENGTHS)}

    def test_parts_are_found_whatever_a_name_or_a_kind_makes_of_their_path(self) -> None:
        gate = {"provider": "gate", "gate": function("same"), "at": 2.0, "reward": function("length", transform="zscore")}
        routes = {4: function("length", transform="zscore"), True: function("length")}
        route = {"provider": "route", "by": "calibrated_functions:nowhere", "routes": routes, "otherwise": function("length")}
        Path("calibrated_functions.py").write_text(FUNCTIONS + "\ndef nowhere(sample):\n    return 'nowhere'\n")
        Path("rm_plugins.yaml").write_text(json.dumps({"helpful": gate}))
        for spec in ("helpful", route):
            (statistics,) = calibrated(spec)[1].values()
            assert statistics["mean"] == np.mean(LENGTHS)

    def test_a_part_that_is_left_over_twice_is_calibrated_with_all_samples(self) -> None:
        inner = {"provider": "fallback", "members": [function("length"), function("length", transform="zscore")]}
        (statistics,) = calibrated({"provider": "fallback", "members": [function("picky"), inner]})[1].values()
        assert statistics["mean"] == np.mean(LENGTHS)

    def test_what_only_some_samples_reach_is_calibrated_with_these(self) -> None:
        gate = {"provider": "gate", "gate": function("short"), "reward": function("length", transform="zscore")}
        assert calibrated(gate)[1]["reward.transform"]["mean"] == 2.0
        closed = {**gate, "gate": {"provider": "constant", "value": 0.0}}
        assert calibrated(closed)[1]["reward.transform"]["mean"] == 4.5

    def test_a_cache_keeps_nothing_of_it(self) -> None:
        cached = {
            "provider": "cached",
            "path": "kept.sqlite",
            "reward": function("length", transform={"name": "zscore", "std": 9.0, "mean": 0.0}),
        }
        calibration = Calibration(cached)
        calibration.fit([*SAMPLES, SAMPLES[0]])
        written = calibration.spec(Path())
        assert not Path("kept.sqlite").exists()
        assert written["path"] == "kept.sqlite"
        assert written["reward"]["transform"]["mean"] == pytest.approx(361 / 81)
        assert rm.load(cached).score(SAMPLES[:1]).values.tolist() == [1 / 9]

    def test_members_that_are_one_model(self) -> None:
        registry = rm.Registry([Several])
        written, found = calibrated({"provider": "several", "base": 2.0}, registry=registry, transform="min-max")
        assert found == {
            "member_transforms[0]": {"low": 1.0, "high": 8.0},
            "member_transforms[1]": {"low": 2.0, "high": 16.0},
        }
        details = rm.load(written, registry=registry).score(SAMPLES).columns
        assert (details["member/1"].min(), details["member/1"].max()) == (0, 1)
        again, _ = calibrated(written, registry=registry)
        assert again == written

    def test_what_was_found_before_is_found_anew(self) -> None:
        spec = function("length", transform={"name": "zscore", "reference": "rows.jsonl"})
        written, _ = calibrated(spec)
        assert written["transform"] == {"name": "zscore", "mean": 4.5, "std": np.std(LENGTHS)}
        assert calibrated(written)[0] == written

    def test_every_scored_part_is_told_of(self) -> None:
        told: list[str] = []
        spec = ensemble(function("length", label="a"), function("length", label="b"), label="c")
        Calibration(spec).fit(SAMPLES, lambda provider: told.append(provider.label))
        assert told == ["a", "b", "c"]

    def test_what_learns_while_scoring_is_refused(self) -> None:
        running = {"name": "zscore", "running": True}
        with pytest.raises(SpecError, match=r"members\[1\]\.transform: 'zscore' learns while scoring"):
            Calibration(ensemble(function("length", transform="zscore"), function("length", transform=running)))

    def test_no_sample(self) -> None:
        with pytest.raises(DataError, match="no sample to calibrate with"):
            Calibration(function("length")).fit([])


class Several(rm.Provider):
    """Two members that are one model."""

    name = "several"

    def __init__(self, *, base: float, member_transforms: Sequence[Transform] | None = None) -> None:
        self.base = base
        self._transforms = member_transforms or []
        for transform in self._transforms:
            transform.bind(self)

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        lengths = np.array([float(len(sample.completion)) for sample in samples])
        members = np.stack([lengths, self.base * lengths])
        if self._transforms:
            members = np.stack([change(row, samples) for change, row in zip(self._transforms, members, strict=True)])
        return combined(members, samples, Mean())

    @staticmethod
    @rm.hookimpl
    def rm_register_providers() -> list[type[rm.Provider]]:
        return [Several]
