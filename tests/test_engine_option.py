"""``rm-plugins score --engine NAME`` hands the work to the engine of a plug-in."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from click.testing import CliRunner, Result

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.jobs.job_engine import JobEngine, ScoringRequest, ScoringSummary
from rm_plugins.jobs.progress import JobProgress
from rm_plugins_ray import plugin


class Elsewhere(JobEngine):
    """Notes what it is asked for."""

    name: ClassVar[str] = "elsewhere"
    asked: ClassVar[list[tuple[str | None, int | None, ScoringRequest]]] = []

    def score(self, request: ScoringRequest, progress: JobProgress) -> ScoringSummary:
        self.asked.append((self.address, self.workers, request))
        return ScoringSummary(3, Counter(samples=2, abstained=1))


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = SimpleNamespace(__name__="mine", rm_register_engines=rm.hookimpl(lambda: [Elsewhere]))
    made = rm.Registry([module, plugin])
    monkeypatch.setattr("rm_plugins.registry.default_registry", lambda: made)
    monkeypatch.setattr(Elsewhere, "asked", [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"completion": "a"}\n')
    (tmp_path / "folder").mkdir()


def score(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["score", "constant", *arguments])


def test_the_engine_gets_everything_and_its_summary_is_told() -> None:
    told = score(
        "in.jsonl", "--engine", "elsewhere", "--address", "there:1", "--workers", "7", "--column", "reward", "--batch-size", "9"
    )
    assert told.exit_code == 0, told.output
    assert "Wrote 3 rows to in.scored.jsonl: 2 samples scored now, 1 abstained." in told.output
    request = ScoringRequest("constant", "in.jsonl", "train", Path("in.scored.jsonl"), column="reward", batch_size=9)
    assert Elsewhere.asked == [("there:1", 7, request)]


def test_the_output_of_a_folder_may_be_a_folder() -> None:
    assert score("folder", "-o", "out", "--engine", "elsewhere").exit_code == 0
    assert Elsewhere.asked[0][2].out == Path("out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("in.jsonl", "--address", "auto"), "--address belongs to --engine, which is missing"),
        (("in.jsonl", "--engine", "elsewere"), "Did you mean 'elsewhere'?"),
        (("-", "--engine", "elsewhere", "-o", "out.jsonl"), "- is neither"),
        (("in.jsonl", "--engine", "elsewhere", "-o", "out"), "has another ending"),
        (("in.jsonl", "--engine", "elsewhere", "-o", "in.jsonl"), "are the same file"),
        (("in.jsonl", "--engine", "elsewhere", "--processes", "2"), "Leave out --processes, or the launcher"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[str, ...], said: str) -> None:
    told = score(*arguments)
    assert told.exit_code and said in " ".join(told.output.split()), told.output
    assert Elsewhere.asked == []


def test_without_ray_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    told = score("in.jsonl", "--engine", "ray")
    assert told.exit_code == 1
    assert "--engine ray needs the package ray.data" in (said := " ".join(told.output.split()))
    assert "pip install 'rm-plugins[ray]'" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in.jsonl"]
