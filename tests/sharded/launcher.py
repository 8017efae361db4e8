"""Runs functions in several processes of one gloo group, started once for all of them."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

HANGS_AFTER = timedelta(seconds=120)
"""How long torch waits for the other processes; what this package exchanges waits for half of it."""
ENDS_AFTER = 1_000
"""Seconds for all functions of a group, on a busy machine."""

Cases = Mapping[str, Callable[[], None]]


def run(cases: Cases, folder: Path, processes: int, group: str | None = None) -> None:
    """Run all cases in as many processes, forked, so that the imports are paid for once; write what happened into `folder`.

    The processes are known to accelerate, and a single one is by itself. The files are named after the group, by default its size.
    """
    group = group or str(processes)
    context = multiprocessing.get_context("fork")
    gc.freeze()  # every end of a training collects garbage, and would look through all that is imported
    started = [context.Process(target=_run, args=(cases, folder, rank, processes, group)) for rank in range(processes)]
    for process in started:
        process.start()
    until = time.monotonic() + ENDS_AFTER
    for process in started:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()


def outcomes(folder: Path, processes: int, group: str | None = None) -> dict[str, dict[int, str]]:
    """By case and rank: ``ok`` or the error."""
    group = group or str(processes)
    found: dict[str, dict[int, str]] = {}
    for rank in range(processes):
        file = folder / f"{group}-{rank}.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            case, outcome = json.loads(line)
            found.setdefault(case, {})[rank] = outcome
    return found


def _run(cases: Cases, folder: Path, rank: int, processes: int, group: str) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": 29500}
        os.environ.update({name: str(value) for name, value in known.items()}, MASTER_ADDR="127.0.0.1")
        meeting = f"file://{folder / f'meeting-{group}'}"
        distributed.init_process_group("gloo", meeting, timeout=HANGS_AFTER, rank=rank, world_size=processes)
    with (folder / f"{group}-{rank}.jsonl").open("w", encoding="utf-8", buffering=1) as file:
        for name, case in cases.items():
            begin = time.monotonic()
            try:
                case()
                if distributed.is_initialized():
                    distributed.barrier()
                outcome = "ok"
            except BaseException:
                outcome = traceback.format_exc()
            file.write(json.dumps([name, outcome]) + "\n")
            if rank == 0:
                print(f"{group} {name}: {time.monotonic() - begin:.1f} s", outcome[-300:], file=sys.stderr)
            if outcome != "ok":
                break  # the processes may no longer be in step
    os._exit(0)  # where gloo's threads still hold a tensor, Python's tearing down blocks the process
