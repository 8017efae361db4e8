"""``rm-plugins show``: what a spec is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.cli.show import tree
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest, ScoreStatistics
from rm_plugins.providers.combinators.constant import Constant
from rm_plugins.providers.combinators.sum import Sum

SPEC = """\
provider: gate
label: overall
gate: {provider: threshold, at: 3, reward: builtins:len}
closed: null
reward:
  provider: sum
  weights: [1.0, {from: 0.0, to: 0.5}]
  members:
    - provider: route
      column: topic
      routes: {math: {provider: constant, value: 1, on_error: abstain}, true: inner.yaml}
    - provider: cached
      path: memory
      reward: {provider: constant, value: 2, transform: [{name: clip, high: 1}, {name: scale, factor: 2}]}
      on_error: {fallback: {provider: constant, value: -1}}
"""
INNER = "provider: ensemble\nmembers: [{provider: constant, value: 4, label: four}]\naggregate: {name: quantile, q: 0.5}\n"
SHOWN = """\
gate 'overall'
closed: null
├── gate: threshold
│   at: 3
│   └── reward: function 'len'
│       function: builtins:len
└── reward: sum
    weights: [1.0, {"from": 0.0, "to": 0.5}]
    ├── members[0]: route
    │   column: topic
    │   ├── routes.math: constant
    │   │   value: 1
    │   │   on_error: abstain
    │   └── routes.true: ensemble
    │       aggregate: quantile (q: 0.5)
    │       └── members[0]: constant 'four'
    │           value: 4
    └── members[1]: cached
        path: memory
        ├── reward: constant
        │   value: 2
        │   transform: clip (high: 1), then scale (factor: 2)
        └── on_error.fallback: constant
            value: -1
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs ``rm-plugins show`` in a directory with ``spec.yaml``, and returns what it printed."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "inner.yaml").write_text(INNER)
    monkeypatch.chdir(tmp_path)

    def show(*arguments: object) -> str:
        result = CliRunner().invoke(main, ["show", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.stdout

    return show


def printed(provider: rm.Provider, width: int) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(tree(provider))
    return capture.get()


def without_padding(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def test_a_spec_is_a_tree(run: Callable[..., str]) -> None:
    assert without_padding(run("spec.yaml")) == SHOWN


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("width", [30, 45])
def test_a_narrow_terminal_shows_all_of_it(width: int) -> None:
    lines = printed(rm.load("spec.yaml"), width).splitlines()
    assert max(map(len, lines)) <= width
    words = [word for line in lines for word in line.strip("│├└─ ").split()]
    assert "".join(words) == "".join(word for line in SHOWN.splitlines() for word in line.strip("│├└─ ").split())


def test_json_is_the_whole_spec(run: Callable[..., str]) -> None:
    text = run("spec.yaml", "--json")
    spec = json.loads(text)
    inner = spec["reward"]["members"][0]["routes"]["true"]
    assert inner["members"] == [{"provider": "constant", "value": 4, "label": "four"}]
    Path("full.json").write_text(text)
    assert json.loads(run("full.json", "--json")) == spec
    assert run("full.json") == run("spec.yaml")


def test_a_spec_that_is_wrong(run: Callable[..., str]) -> None:
    Path("spec.yaml").write_text(SPEC.replace("at: 3", "att: 3"))
    result = CliRunner().invoke(main, ["show", "spec.yaml"])
    assert result.exit_code == 1
    assert "spec.yaml: gate.att: unknown key 'att' for 'threshold'. Did you mean 'at'?" in result.output


def test_what_was_made_in_python() -> None:
    shown = without_padding(printed(Sum(members=[Constant(value=1.0)]), 80))
    assert shown == "sum\nspec: none, made in Python\n└── members[0]: constant\n    spec: none, made in Python\n"


class TestModels:
    def test_a_model_without_manifest(self, run: Callable[..., str], tiny_decoder: Any) -> None:
        folder = tiny_decoder()
        shown = run(folder)
        assert shown.startswith(f"sequence-classifier '{folder.name}'")
        for fact in ("(truncation: left)", "dtype: float32", "manifest: none"):
            assert fact in shown

    def test_a_model_with_one(self, run: Callable[..., str], tiny_decoder: Any) -> None:
        folder = tiny_decoder(num_labels=4)
        rendering = rm.load(folder, head=0).renderer.rendering
        Manifest(
            created_by={},
            rendering=rendering,
            dtype="float32",
            heads=Heads(("helpful", "brief"), (1.0, -0.5), members=2),
            statistics=ScoreStatistics.of([1.0, 3.0], "eval"),
        ).write(folder)
        shown = run(folder)
        for fact in (
            f"model: {folder}"[:60],
            f"max_length: {rendering.max_length} (truncation: left)",
            "outputs: helpful 1, brief -0.5; members: 2",
            "scores: mean 2, std 1 (2 of eval)",
            "manifest: compared with the model when it was loaded",
        ):
            assert fact in shown
        Path("quick.yaml").write_text(f"provider: sequence-classifier\nmodel: {folder}\nverify: false\nmax_length: 9\n")
        shown = run("quick.yaml")
        assert "manifest: not compared with the model" in shown
        assert "max_length: 9 (truncation: left)" in shown
