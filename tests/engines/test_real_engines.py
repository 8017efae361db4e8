"""Real engines call our adapters: each gets the provider's scores, in order, in common batches."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.samples import RenderedSample
from tests.conftest import MakeFolder
from tests.engines.engine_samples import engine_rows, sample_of

ROOT = Path(__file__).parents[2]
PATHS = {
    "verl": ("manager", "function", "synchronous function"),
    "openrlhf": ("column:messages",),
    "swift": ("function", "asynchronous", "model"),
    "verifiers": ("reward",),
    "areal": ("workflow", "pool of processes"),
}


def engines_path() -> str | None:
    """The folder to import the engines from: of the environment, or beside it, where `make test` puts it; None if there is none."""
    if all(importlib.util.find_spec(engine) is not None for engine in PATHS):
        return ""
    named = os.environ.get("RM_PLUGINS_ENGINES")
    folders = [Path(named)] if named else sorted((Path(sys.prefix) / "worlds").glob("engines"))
    return next((str(folder) for folder in folders if (folder / "verl").is_dir()), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_decoder: MakeFolder) -> Path:
    """The folder of a reward of two models, and of the results of all engines."""
    place = engines_path()
    if place is None:
        pytest.skip("the engines are not installed, in the environment or in its worlds/engines (`make test` does that)")
    folder = tmp_path_factory.mktemp("engines")
    models = (tiny_decoder(), tiny_decoder(config={"hidden_act": "relu"}))
    members = [{"provider": "sequence-classifier", "model": str(model)} for model in models]
    spec = {"provider": "ensemble", "aggregate": "mean", "members": members}
    (folder / "reward.yaml").write_text(json.dumps(spec), encoding="utf-8")  # YAML takes JSON
    shutil.copytree(members[0]["model"], folder / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    paths = [str(ROOT), str(ROOT / "integrations"), *([place] if place else [])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    run = [sys.executable, "-m", "tests.engines.real_engines", str(folder)]
    ended = subprocess.run(run, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    """What each engine gave."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[float]:
    """The provider's own scores."""
    values: list[float] = rm.load(folder / "reward.yaml").score([sample_of(row) for row in engine_rows()]).values.tolist()
    assert max(values) - min(values) > 1
    return values


@pytest.mark.parametrize(("engine", "path"), [(engine, path) for engine, paths in PATHS.items() for path in paths])
def test_an_engine_gets_the_scores_of_the_provider(
    engine: str, path: str, results: dict[str, Any], expected: list[float]
) -> None:
    assert "failed" not in results[engine], results[engine]["failed"]
    values = results[engine][path]["values"]
    assert len(values) == (8 if path == "pool of processes" else len(expected))
    assert values == pytest.approx(expected[: len(values)], abs=1e-4)


@pytest.mark.parametrize(("engine", "calls"), [("verl", 3 * 256), ("openrlhf", 2 * 256), ("verifiers", 256), ("areal", 256)])
def test_single_samples_meet_in_batches(engine: str, calls: int, results: dict[str, Any]) -> None:
    assert results[engine]["counts"]["samples"] == calls
    assert results[engine]["counts"]["batches"] < calls / 3


def test_a_query_can_be_scored_unchanged(results: dict[str, Any], folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    queries = [
        tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        + row["completion"]
        + "<|end|>"
        for row in engine_rows()
    ]
    rendered = [RenderedSample.of(query, add_special_tokens=False) for query in queries]
    values = rm.load(folder / "reward.yaml").score(rendered).values.tolist()
    assert results["openrlhf"]["rendered"]["values"] == pytest.approx(values, abs=1e-4)


def test_a_rendered_prompt_is_not_rendered_again(results: dict[str, Any]) -> None:
    assert results["openrlhf"]["auto"]["values"] == [None]


def test_engines_log_the_details(results: dict[str, Any]) -> None:
    extra = results["verl"]["manager"]["extra"]
    assert set(extra) == {"score", "member/0", "rm_no_reward", "rm_error", "rm_fingerprint"}
    assert (extra["rm_no_reward"], extra["rm_error"]) == ([0.0] * 3, [""] * 3)
    assert extra["member/0"] != extra["score"]
    assert results["openrlhf"]["column:messages"]["extra"] == {"rm_no_reward": 0.0}
    reward = results["verifiers"]["reward"]
    assert reward["extra"] == {"metrics": {"rm_no_reward": 0.0}, "weighted": pytest.approx(2 * reward["values"][0])}
