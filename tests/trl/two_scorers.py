"""Scores batches with rewards that learn: as one process, or started twice, as two that share each batch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

import rm_plugins as rm
from rm_plugins.errors import ScoringError
from rm_plugins.training.reward_state import reward_state
from rm_plugins_trl import RewardFunction, reward_func

BATCHES, ROWS = 3, 8
RUNNING = {"name": "zscore", "running": True, "warmup": 3}


def level(samples: list[rm.Sample]) -> list[float | None]:
    """Abstains on every third row."""
    return [None if sample.columns["row"] % 3 == 2 else sample.columns["level"] for sample in samples]


def slope(samples: list[rm.Sample]) -> list[float]:
    return [float(sample.columns["level"]) ** 2 / 7 for sample in samples]


def broken(samples: list[rm.Sample]) -> list[float]:
    """Fails on the odd rows of the second batch, all of which are those of the second process."""
    failing = [row for row, sample in enumerate(samples) if sample.columns["batch"] == 1 and sample.columns["row"] % 2]
    if failing:
        raise ScoringError("no network", rows=failing)
    return slope(samples)


def even(samples: list[rm.Sample]) -> list[float]:
    return [float(sample.columns["row"] % 2 == 0) for sample in samples]


class Waiting(rm.Provider):
    """A remote reward, as far as threads are concerned."""

    name = "waiting"
    concurrent = True

    def score_batch(self, samples: Any) -> rm.Scores:
        return rm.Scores(np.array(slope(samples)))


class Odd(rm.Provider):
    """Has a detail that only some batches have."""

    name = "odd"

    def score_batch(self, samples: Any) -> rm.Scores:
        odd = bool(samples) and samples[0].columns["row"] % 2 == 1
        names = ["odd", "shared"] if odd else ["even", "shared"]
        return rm.Scores(np.zeros(len(samples)), {name: np.ones(len(samples)) for name in names})


def function(called: Callable[..., Any], **more: Any) -> dict[str, Any]:
    return {"provider": "function", "function": called, **more}


def waiting() -> rm.Provider:
    provider = Waiting()
    provider.transform = rm.load(function(slope, transform=RUNNING)).transform
    return provider


def ensemble(*members: Any, **more: Any) -> dict[str, Any]:
    return {"provider": "ensemble", "members": list(members), "quorum": 1, "transform": RUNNING, **more}


REWARDS: dict[str, Callable[[], Any]] = {
    "one": lambda: function(level, transform=RUNNING),
    "members": lambda: ensemble(function(level, transform=[RUNNING, "tanh"]), function(slope, transform=RUNNING)),
    "failing": lambda: ensemble(function(broken, transform=RUNNING, on_error="abstain"), function(slope, transform=RUNNING)),
    "fallback": lambda: function(broken, transform=RUNNING, on_error={"fallback": function(level, transform=RUNNING)}),
    "gated": lambda: {
        "provider": "gate",
        "gate": function(even),
        "reward": function(slope, transform=RUNNING),
        "transform": RUNNING,
    },
    "threads": lambda: ensemble(waiting(), function(slope, transform=RUNNING), waiting()),
}


def scored(reward: RewardFunction, rank: int, processes: int) -> dict[str, Any]:
    """The rewards of this process's rows of every batch, by row, and what was learned."""
    found: dict[str, float | None] = {}
    levels = np.random.default_rng(0).normal(2.0, 5.0, (BATCHES, ROWS)).tolist()
    for batch in range(BATCHES):
        rows = range(ROWS)[rank::processes]
        columns: dict[str, Any] = {
            "row": list(rows),
            "batch": [batch] * len(rows),
            "level": [levels[batch][row] for row in rows],
        }
        if batch == 2:  # only the rows of the first process are left
            columns = {
                name: [item for item, row in zip(items, rows, strict=True) if not row % 2] for name, items in columns.items()
            }
        rewards = reward(["Q"] * len(columns["row"]), ["A"] * len(columns["row"]), **columns)
        found |= {f"{batch}/{row}": value for row, value in zip(columns["row"], rewards, strict=True)}
    return {"rewards": found, "state": reward_state(reward.provider)}


def names_logged(rank: int, processes: int) -> dict[str, list[Any]]:
    """Which metrics and columns are logged, and the values of one of the latter."""
    metrics: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    rows = list(range(ROWS))[rank::processes]
    reward_func(Odd(), name="mine")(
        ["Q"] * len(rows), ["A"] * len(rows), row=rows, log_metric=metrics.__setitem__, log_extra=extra.__setitem__
    )
    return {"metrics": list(metrics), "extra": list(extra), "even": extra.get("mine/even", [])}


def everything(rank: int, processes: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: scored(reward_func(make()), rank, processes) for name, make in REWARDS.items()}
    return {**found, "logged": names_logged(rank, processes)}


def main() -> None:
    import torch

    rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    (folder / f"{rank}.json").write_text(json.dumps(everything(rank, 2)))
    torch.distributed.barrier()
    os._exit(0)  # where gloo's threads still hold a tensor, Python's tearing down aborts or blocks the process


if __name__ == "__main__":
    main()
