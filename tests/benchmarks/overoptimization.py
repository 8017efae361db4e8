"""How far a policy can be optimized against one reward model, and against five, before the true reward suffers.

Run it with ``make bench-overoptimization``; it writes ``docs/overoptimization.md``. What is finished is kept in a folder, so that it goes
on where it was ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers.utils import logging

from rm_plugins.files import write_atomically
from tests.benchmarks.overoptimization_page import write
from tests.benchmarks.overoptimization_runs import PROXIES, Sizes, best_of_n, make_seed, train_policy

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "overoptimization.md"
FOLDER = ROOT / "build" / "overoptimization"
MODULE = "tests.benchmarks.overoptimization"
SMALL = Sizes(pairs=400, prompts=4, completions=16, steps=6)


def run_seed(folder: Path, seed: int, sizes: Sizes) -> None:
    """Everything of one seed, each part kept in a file of its own when it is finished."""
    torch.set_num_threads(1)  # models this small only wait for each other's threads
    logging.set_verbosity_error()
    parts: dict[str, Any] = {
        "accuracy": lambda: make_seed(folder, seed, sizes),
        "best-of-n": lambda: best_of_n(folder, seed, sizes),
        **{f"grpo-{number}": lambda name=name: train_policy(folder, seed, name, sizes) for number, name in enumerate(PROXIES)},
    }
    for name, measure in parts.items():
        path = folder / f"{name}.json"
        if not path.exists():
            started = time.perf_counter()
            write_atomically(path, json.dumps(measure()) + "\n")
            print(f"seed {seed}: {name} in {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    """Run every seed in a process of its own, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="seeds that run at the same time")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where models and figures are kept")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)  # a process of this program
    arguments = parser.parse_args()
    sizes = SMALL if arguments.small else Sizes()
    folders = [arguments.folder / f"seed-{seed}" for seed in range(arguments.seeds)]
    if arguments.seed is not None:
        run_seed(folders[arguments.seed], arguments.seed, sizes)
        return

    def run(seed: int) -> None:
        folders[seed].mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", MODULE, *sys.argv[1:], "--seed", str(seed)], check=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run, range(arguments.seeds)))
    write(arguments.output, folders, sizes)


if __name__ == "__main__":
    main()
