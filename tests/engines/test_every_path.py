"""The same 256 samples through every path give the numbers of the provider, in order. `tests.ray.test_serving` adds those of Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.data.row_files import read_rows, write_rows
from rm_plugins.server import create_app
from rm_plugins_engines.nemo_gym import NeMoGymReward
from rm_plugins_engines.nemo_rl import environment
from rm_plugins_engines.slime import SlimeReward
from tests.engines.doubles import (
    SlimeSample,
    gym_request,
    nemo_rl_logs,
    slime_rewards,
    slime_value,
    with_nemo_gym,
    with_nemo_rl,
)
from tests.engines.engine_samples import engine_rows, program_row, sample_of
from tests.servers import serving

Path_: TypeAlias = Callable[[str, Path, pytest.MonkeyPatch], list[float]]
"""Scores the rows with the reward of a spec; its second argument is an empty folder."""

ROWS = engine_rows()
REAL = {
    "verl": ("manager", "several outputs", "function", "synchronous function"),
    "openrlhf": ("column:messages",),
    "swift": ("function", "asynchronous", "model"),
    "verifiers": ("reward",),
    "areal": ("workflow", "pool of processes"),
}
"""What is called of each real engine (`tests.engines.real_engines`)."""


def alone(spec: str, *_: Any) -> list[float]:
    """The provider, one sample at a time."""
    reward = rm.load(spec)
    return [float(reward.score([sample_of(row)]).values[0]) for row in ROWS]


def program(*options: str) -> Path_:
    """``rm-plugins score``."""

    def scored(spec: str, folder: Path, _: pytest.MonkeyPatch) -> list[float]:
        write_rows(map(program_row, ROWS), folder / "in.jsonl")
        out = folder / "out.jsonl"
        ran = CliRunner().invoke(
            main, ["score", spec, str(folder / "in.jsonl"), "-o", str(out), "--batch-size", "40", *options]
        )
        assert ran.exit_code == 0, ran.output
        return [row["score"] for row in read_rows(str(out))]

    return scored


def server(spec: str, *_: Any) -> list[float]:
    """The HTTP server on a real socket, and the client."""
    with serving(create_app(rm.load(spec))) as url:
        values: list[float] = rm.load(url, batch_size=48).score([sample_of(row) for row in ROWS]).values.tolist()
    return values


def slime(*, group: bool) -> Path_:
    """slime's dispatch of single samples, or of groups."""

    def scored(spec: str, *_: Any) -> list[float]:
        args = SimpleNamespace(group_rm=group, reward_key="score" if group else None)
        samples = [
            SlimeSample(row["messages"], f"{row['completion']}<|end|>", metadata={"solution": row["solution"]}) for row in ROWS
        ]
        asyncio.run(slime_rewards(SlimeReward(spec).custom_rm, args, samples))
        return [slime_value(sample, args) for sample in samples]

    return scored


def nemo_gym(*, own: bool) -> Path_:
    """``/verify`` of our own application, or of NeMo Gym's server."""

    def scored(spec: str, _: Path, patched: pytest.MonkeyPatch) -> list[float]:
        with_nemo_gym(patched)
        reward = NeMoGymReward(spec)
        with TestClient(reward.app() if own else reward.resources_server()().setup_webserver()) as client:
            return [client.post("/verify", json=gym_request(row)).json()["reward"] for row in ROWS]

    return scored


def nemo_rl(spec: str, _: Path, patched: pytest.MonkeyPatch) -> list[float]:
    """A step of NeMo-RL's environment."""
    with_nemo_rl(patched)
    values: list[float] = environment(spec, prompt="column:messages")({}).step(*nemo_rl_logs(ROWS)).rewards.tolist()
    return values


OURS: dict[str, Path_] = {
    "provider, sample by sample": alone,
    "score": program(),
    "score, two processes": program("--processes", "2"),
    "HTTP server": server,
    "slime": slime(group=False),
    "slime, groups": slime(group=True),
    "NeMo Gym": nemo_gym(own=False),
    "NeMo Gym, our application": nemo_gym(own=True),
    "NeMo-RL": nemo_rl,
}


@pytest.mark.parametrize("path", [*OURS, *(f"{engine}: {name}" for engine, names in REAL.items() for name in names)])
def test_every_path_gives_the_numbers_of_the_provider(
    path: str,
    folder: Path,
    expected: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if path in OURS:
        values = OURS[path](str(folder / "reward.yaml"), tmp_path, monkeypatch)
    else:
        engine, _, name = path.partition(": ")
        result = request.getfixturevalue("results")[engine]
        assert "failed" not in result, result["failed"]
        values = result[name]["values"]
    assert len(values) == (8 if path.endswith(("pool of processes", "several outputs")) else 256)
    assert values == pytest.approx(expected[: len(values)], abs=1e-4)
