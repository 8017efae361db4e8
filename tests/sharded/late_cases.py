"""Groups of three processes of which one is late, ended, or takes other steps; each writes what happened to it."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from rm_plugins import late_processes, processes
from rm_plugins.engine.shards import Shards
from rm_plugins.late_processes import Patience
from rm_plugins.processes import all_gathered

PROCESSES = 3
TIMEOUT = timedelta(seconds=80)
LIMIT = 2.5
"""Seconds that the processes wait."""
LATE = 1
"""The process that misbehaves."""


POLLED = "sleeps, and calls are asked whether they are done, as on a GPU"


def _ends_later() -> None:
    time.sleep(1.5)
    os._exit(3)


CASES: dict[str, Callable[[], object]] = {
    "late, but not too late": partial(time.sleep, 2),
    "sleeps": partial(time.sleep, 600),
    POLLED: partial(time.sleep, 600),
    "ends": partial(os._exit, 3),
    "ends while the others wait": _ends_later,
    "fails": partial(sys.exit, "a broken row"),
    "takes another step": partial(all_gathered, "other", "the numbers of items"),
    "is elsewhere": distributed.barrier,
}


def start(case: str, folder: Path) -> list[multiprocessing.context.ForkProcess]:
    """Start the processes of a case."""
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_run, args=(case, folder, rank)) for rank in range(PROCESSES)]
    for process in started:
        process.start()
    return started


def _run(case: str, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    late_processes.SHARE_OF_TIMEOUT = LIMIT / TIMEOUT.total_seconds()
    if case == POLLED:
        limit = Patience(timedelta(seconds=LIMIT), ends_calls=False)
        Patience.of = lambda *_: limit  # type: ignore[method-assign]
    (folder / case).mkdir(exist_ok=True)
    logging.basicConfig(filename=folder / case / f"{rank}.log", format="%(message)s", force=True)
    distributed.init_process_group(
        "gloo", f"file://{folder / case / 'meeting'}", timeout=TIMEOUT, rank=rank, world_size=PROCESSES
    )
    shards = Shards((None,))
    assert all_gathered(rank) == [*range(PROCESSES)]
    assert all_gathered("x" * 5_000 * rank)[2] == "x" * 10_000  # in two exchanges
    assert shards.any(rank == 2) and not shards.any(False)
    distributed.barrier()
    if rank == LATE:
        CASES[case]()
    works: list[Any] = []

    def kept(work: Any, *arguments: Any) -> None:
        works.append(work)
        await_all(work, *arguments)

    await_all, processes.await_all = late_processes.await_all, kept  # type: ignore[attr-defined, assignment]
    started = time.monotonic()
    error = ""
    try:
        all_gathered(rank, "the rewards of a batch")
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    # Python would wait for a call that still runs when it exits.
    found = {"error": error, "seconds": time.monotonic() - started, "runs": any(not work.is_completed() for work in works)}
    (folder / case / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    sys.exit(1 if error else 0)


def main() -> None:
    """Run all cases, or those named after the folder, at once; write for each when each process had ended."""
    folder, chosen = Path(sys.argv[1]), sys.argv[2:] or [*CASES]
    started = {case: start(case, folder) for case in chosen}
    until = time.monotonic() + 30
    for case, of_case in started.items():
        for rank, process in enumerate(of_case):
            if not (rank == LATE and case in ("sleeps", POLLED)):
                process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in of_case]
        (folder / case / "ended.json").write_text(json.dumps(codes), encoding="utf-8")
        for process in of_case:
            process.kill()


if __name__ == "__main__":
    main()
