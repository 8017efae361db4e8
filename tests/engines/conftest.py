"""The reward that every engine scores with, and what real engines get from it in a process of their own."""

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
from tests.conftest import MakeFolder
from tests.engines.engine_samples import engine_rows, sample_of, write_reward
from tests.made_once import made_once

ROOT = Path(__file__).parents[2]
REAL = ("verl", "openrlhf", "swift", "verifiers", "areal")


def engines_path() -> str | None:
    """The folder to import the engines from: of the environment, or beside it, where `make test` puts it; None if there is none."""
    if all(importlib.util.find_spec(engine) is not None for engine in REAL):
        return ""
    named = os.environ.get("RM_PLUGINS_ENGINES")
    folders = [Path(named)] if named else sorted((Path(sys.prefix) / "worlds").glob("engines"))
    return next((str(folder) for folder in folders if (folder / "verl").is_dir()), None)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_decoder: MakeFolder) -> Path:
    """The folder of ``reward.yaml``."""
    return made_once(tmp_path_factory, "engines", lambda folder: write_reward(folder, tiny_decoder))


@pytest.fixture(scope="session")
def expected(folder: Path) -> list[float]:
    """The provider's own scores of the 256 samples."""
    values: list[float] = rm.load(folder / "reward.yaml").score([sample_of(row) for row in engine_rows()]).values.tolist()
    assert max(values) - min(values) > 1
    return values


@pytest.fixture(scope="session")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each real engine gave."""
    place = engines_path()
    if place is None:
        pytest.skip("the engines are not installed, in the environment or in its worlds/engines (`make test` does that)")

    def score(made: Path) -> None:
        model = json.loads((folder / "reward.yaml").read_text(encoding="utf-8"))["members"][0]["model"]
        shutil.copytree(model, made / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        shutil.copy(folder / "reward.yaml", made)
        paths = [str(ROOT), str(ROOT / "integrations"), *([place] if place else [])]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        run = [sys.executable, "-m", "tests.engines.real_engines", str(made)]
        ended = subprocess.run(run, cwd=ROOT, env=variables, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-3000:]

    made = made_once(tmp_path_factory, "real-engines", score)
    found: dict[str, Any] = json.loads((made / "results.json").read_text(encoding="utf-8"))
    return found
