"""PPO beside TRL 1.12's and beside GRPO: what each learns, on what it costs, and how fast a step is.

Run it with ``make bench-ppo``; it writes sections of ``docs/ppo.md``. Every training has a process of its own, which imports the TRL that
its trainer needs. Finished ones are kept in a file, so an interrupted run resumes. Needs the real models and data that the tests use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rm_plugins.files import write_atomically
from tests.benchmarks.losses import FOLDER as DATA
from tests.benchmarks.losses import ROOT, append_line, read_results
from tests.benchmarks.page import with_section
from tests.benchmarks.ppo_page import sections
from tests.benchmarks.ppo_runs import (
    CONTENDERS,
    GRPO,
    OLDER,
    OURS,
    REAL,
    LearningSizes,
    Run,
    learn,
    learn_real,
    make_seed_models,
)
from tests.benchmarks.ppo_speed import SHAPES, measure_speed

PAGE = ROOT / "docs" / "ppo.md"
RESULTS = ROOT / "build" / "ppo-results.jsonl"
MODELS = ROOT / "build" / "ppo"
MODULE = "tests.benchmarks.ppo"
OLDER_WORLD = Path(sys.prefix) / "worlds" / "trl-1.12.0"
"""Where the Makefile installs TRL 1.12."""

KINDS = ("learning", "rates", "real", "speed")
SEEDS = 3
ROUNDS = 3
RATES_SEED = 9
"""The seed of the world in which the learning rates were chosen."""
TRIED_RATES: Mapping[str, Sequence[float]] = {
    OLDER: (1e-4, 3e-4),
    OURS: (1e-4, 3e-4),
    GRPO: (3e-4, 1e-3),
}
RATES: Mapping[str, float] = {OLDER: 1e-4, OURS: 1e-4, GRPO: 3e-4}
"""The learning rates of the comparison."""
REAL_RATES: Mapping[str, float] = {OLDER: 1e-5, OURS: 1e-5, GRPO: 1e-5}
LEARNING = LearningSizes()
SMALL = LearningSizes(pairs=400, updates=3, completions=16, epochs=2, points=1, prompts=16, tokens=12)


def runs(small: bool, rounds: int) -> list[Run]:
    """All trainings, in the order in which they run: contenders in turn, so that a busy machine slows all of them."""
    learning, shapes = (SMALL, SHAPES[:1]) if small else (LEARNING, SHAPES)
    seeds = 1 if small else SEEDS
    found = [
        Run("speed", name, number, 1e-6, shape.title) for number in range(rounds) for shape in shapes for name in (OLDER, OURS)
    ]
    if not small:
        found += [
            Run("rates", name, RATES_SEED, rate, learning.name)
            for place in range(2)
            for name, rate in ((name, TRIED_RATES[name][place]) for name in CONTENDERS)
        ]
    found += [Run("learning", name, seed, RATES[name], learning.name) for seed in range(seeds) for name in CONTENDERS]
    if not small:
        found += [Run("real", name, seed, REAL_RATES[name], REAL.name) for seed in range(seeds) for name in CONTENDERS]
    return found


def work(run: Run, small: bool, data: Path, models: Path) -> dict[str, Any]:
    """Train, in this process."""
    import datasets
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if run.kind == "real":
        return learn_real(run, REAL, data)
    if run.kind == "speed":
        return measure_speed(run, next(shape for shape in SHAPES if shape.title == run.what), data)
    return learn(run, SMALL if small else LEARNING, models)


def train(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train in a process with the TRL that the run's trainer needs.

    Raises:
        SystemExit: It failed; the message has the end of its output.
    """
    if run.kind in ("rates", "learning"):
        make_seed_models(run.seed, SMALL if arguments.small else LEARNING, arguments.models)
    paths = [str(ROOT), str(ROOT / "integrations")]
    if run.contender == OLDER:
        if not OLDER_WORLD.is_dir():
            raise SystemExit(f"{OLDER_WORLD} is not a folder: `make bench-ppo` installs TRL 1.12 there.")
        paths.insert(0, str(OLDER_WORLD))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", MODULE, "--work", json.dumps(asdict(run)), "--data", str(arguments.data)]
    command += ["--models", str(arguments.models), *(["--small"] if arguments.small else [])]
    log = arguments.results.with_suffix(".log")
    with log.open("a", encoding="utf-8") as said:
        found = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True, check=False)
    if found.returncode != 0:
        raise SystemExit(f"{run.key} failed:\n{log.read_text(encoding='utf-8')[-4_000:]}")
    result: dict[str, Any] = json.loads(found.stdout)
    return result


def train_all(chosen: Sequence[Run], arguments: argparse.Namespace) -> None:
    """Train what is not among the results yet, and add it to them."""
    done = {json.dumps(line["run"]) for line in read_results(arguments.results)}
    missing = [run for run in chosen if json.dumps(run.key) not in done]
    print(f"{len(chosen) - len(missing)} of {len(chosen)} runs are in {arguments.results}", flush=True)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    for run in missing:
        found = train(run, arguments)
        append_line(arguments.results, json.dumps({"run": run.key, **found}) + "\n")
        print(f"{run.key}: {json.dumps(found['points'][-1] if 'points' in found else found)}", flush=True)


def main() -> None:
    """Train what is missing, and write the sections."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="what is measured (default: everything)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="trainers (default: all)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"measurements of each speed (default: {ROUNDS})")
    parser.add_argument("--results", type=Path, help=f"the file of the finished runs (default: {RESULTS.relative_to(ROOT)})")
    parser.add_argument("--page", action="store_true", help="train nothing; write the sections from the results that are there")
    parser.add_argument("--output", type=Path, help=f"the page that is written (default: {PAGE.relative_to(ROOT)})")
    parser.add_argument("--small", action="store_true", help="check this script with tiny sizes; writes no page but --output")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the data (default: ../shared/data)")
    parser.add_argument("--models", type=Path, help=f"the folder of the models (default: {MODELS.relative_to(ROOT)})")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # a process of this program
    arguments = parser.parse_args()
    arguments.models = arguments.models or (MODELS.with_name("ppo-small") if arguments.small else MODELS)
    if arguments.work:
        answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may come between
        found = work(Run(**json.loads(arguments.work)), arguments.small, arguments.data, arguments.models)
        print(json.dumps(found), file=answers, flush=True)
        return
    if arguments.results is None:
        arguments.results = RESULTS.with_stem(f"{RESULTS.stem}-small") if arguments.small else RESULTS
    if not arguments.page:
        chosen = [
            run
            for run in runs(arguments.small, 1 if arguments.small else arguments.rounds)
            if run.kind in arguments.only and run.contender in arguments.contenders
        ]
        train_all(chosen, arguments)
    output = arguments.output or (None if arguments.small else PAGE)
    if output is not None:
        page = output.read_text(encoding="utf-8") if output.is_file() else "# PPO\n"
        for heading, text in sections(list(read_results(arguments.results)), output).items():
            page = with_section(page, heading, text)
        write_atomically(output, page)
        print(f"wrote {output}", flush=True)


if __name__ == "__main__":
    main()
