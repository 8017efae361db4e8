"""Awaits rewards as TRL's GRPO trainer does: in one process, or in two that share each batch and whose rewards end in other orders."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import rm_plugins as rm
from rm_plugins.training.reward_state import reward_state
from rm_plugins_trl import reward_func, reward_funcs

BATCHES, ROWS = 4, 6
RUNNING = {"name": "zscore", "running": True, "warmup": 2}
MEETING = threading.Barrier(2, timeout=60)


class Server(rm.Provider):
    """Waits for a scorer that answers after a time of its own in each process and batch."""

    name = "server"
    concurrent = True

    def __init__(self, factor: float, seconds: list[list[float]], meets: bool = False) -> None:
        self.factor = factor
        self.seconds = seconds
        self.meets = meets
        self.batch = 0

    def score_batch(self, samples: Any) -> rm.Scores:
        batch, self.batch = self.batch, self.batch + 1
        if self.meets and batch:  # the rewards of the first batch come one after another
            MEETING.wait()
        time.sleep(self.seconds[int(os.environ.get("RANK", 0))][batch])
        levels = np.array([sample.columns["level"] for sample in samples], dtype=float)
        # A detail that only some processes have: all of them must log it.
        names = ["odd"] if len(samples) and samples[0].columns["row"] % 2 else ["even"]
        parts = {"double": rm.Scores(2 * levels), "square": rm.Scores(levels**2)}
        return rm.Scores(self.factor * levels, dict.fromkeys(names, levels), parts=parts)

    @property
    def part_names(self) -> tuple[str, ...]:
        return ("double", "square")


def learning(provider: rm.Provider) -> rm.Provider:
    """The provider, with a transform that learns from the scores of all processes."""
    provider.transform = rm.load({"provider": "constant", "value": 0.0, "transform": RUNNING}).transform
    return provider


FAST_THEN_SLOW = [[0.0] * BATCHES, [0.2] * BATCHES]
SLOW_THEN_FAST = [[0.2] * BATCHES, [0.0] * BATCHES]
NONE = [[0.0] * BATCHES] * 2


def rewards_of(processes: int) -> list[Any]:
    return [
        reward_func(learning(Server(1.0, FAST_THEN_SLOW)), name="first"),
        reward_func(learning(Server(2.0, SLOW_THEN_FAST)), name="second"),
        reward_func({"provider": "length-window", "low": 2, "soft": 3}, name="rule"),
        reward_func(Server(3.0, FAST_THEN_SLOW, meets=processes > 1), name="third"),
        *reward_funcs(Server(4.0, SLOW_THEN_FAST, meets=processes > 1), name="columns"),
    ]


async def awaited(rewards: list[Any], arguments: dict[str, Any]) -> list[list[float | None]]:
    async def one(reward: Any) -> list[float | None]:
        found: list[float | None] = await reward(**arguments)
        return found

    return await asyncio.gather(*map(one, rewards))


def scored(rank: int, processes: int) -> dict[str, Any]:
    """The rewards of this process's rows of every batch, by row, what was learned, and the names of what was logged."""
    from trl.trainer.utils import is_async_callable  # not in older TRL, whose tests import this file too

    rewards = rewards_of(processes)
    assert all(map(is_async_callable, rewards))
    levels = np.random.default_rng(0).normal(2.0, 5.0, (BATCHES, ROWS)).tolist()
    state: Any = SimpleNamespace(global_step=0, max_steps=BATCHES, stateful_callbacks={})
    found: dict[str, list[float | None]] = {}
    logged: list[list[str]] = []
    for batch in range(BATCHES):
        rows = list(range(ROWS))[rank::processes]
        metrics: dict[str, list[float]] = {}
        extra: dict[str, list[Any]] = {}
        arguments: dict[str, Any] = {
            "prompts": ["Q"] * len(rows),
            "completions": ["A" * row for row in rows],
            "row": rows,
            "level": [levels[batch][row] for row in rows],
            "trainer_state": state,
            "log_metric": lambda name, value, metrics=metrics: metrics.setdefault(name, []).append(value),
            "log_extra": extra.__setitem__,
        }
        columns = asyncio.run(awaited(rewards, arguments))
        found |= {f"{batch}/{row}": list(of_row) for row, of_row in zip(rows, zip(*columns, strict=True), strict=True)}
        logged.append(sorted({*metrics, *extra}))
        state.global_step += 1
    return {"rewards": found, "state": [reward_state(reward.provider) for reward in rewards], "logged": logged}


def main() -> None:
    import torch

    rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    (folder / f"{rank}.json").write_text(json.dumps(scored(rank, 2)))
    torch.distributed.barrier()
    os._exit(0)  # where gloo's threads still hold a tensor, Python's tearing down aborts or blocks the process


if __name__ == "__main__":
    main()
