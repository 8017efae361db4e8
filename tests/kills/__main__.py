"""``python -m tests.kills``: kill commands at random moments, and say what became of what they wrote."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from tests.kills.jobs import JOBS, write_inputs, write_models
from tests.kills.killing import Outcome, in_a_process, killed

_IMPORTED = {
    "": ("rm_plugins.cli", "rm_plugins.jobs.evaluation", "rm_plugins.providers.combinators.sum", "pyarrow", "scipy.stats"),
    "generate": (
        "torch",
        "transformers",
        "rm_plugins.generation.transformers_generator",
        "transformers.models.qwen2.modeling_qwen2",
    ),
    "merge": ("torch", "transformers", "rm_plugins.models.merge", "transformers.models.qwen2.modeling_qwen2"),
    "judge-data": ("rm_plugins.jobs.judge_data",),
    "train": ("rm_plugins_trl.reward_training.train", "rm_plugins_trl.reward_training.reward_trainer"),
}
"""What is imported once, before the first process is started, so that kills meet work and not the import of it."""


def main() -> int:
    """Kill, print the table, and return 1 where something came out otherwise than undisturbed."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="kills of each command; 100 by default")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="of the moments")
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"{', '.join(JOBS)}; all by default")
    options = parser.parse_args()
    commands = options.commands or list(JOBS)
    if unknown := [name for name in commands if name not in JOBS]:
        parser.error(f"there is no {unknown[0]!r}; {', '.join(JOBS)} are there")
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    print(f"Killing with the seed {options.seed}.", flush=True)
    for name in ("", *commands):
        for module in _IMPORTED.get(name, ()):
            import_module(module)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="kills-inputs-") as scratch:
        inputs = Path(scratch)
        write_inputs(inputs)
        if {"generate", "merge", "train"} & set(commands):
            _, status = os.waitpid(in_a_process(lambda: write_models(inputs), 2), 0)
            assert status == 0, "the models could not be made"
        print(_line("command", "kills", "runs", "starts", "wrong", "seconds"), flush=True)
        for name in commands:
            outcomes.append(killed(JOBS[name](inputs), options.count, random.Random(f"{options.seed} {name}")))
            print(_row(outcomes[-1]), flush=True)
    for outcome in outcomes:
        for wrong in outcome.wrong:
            print(f"{outcome.name}: {wrong}")
    return int(any(outcome.wrong for outcome in outcomes))


def _row(outcome: Outcome) -> str:
    return _line(outcome.name, outcome.kills, outcome.runs, outcome.starts, len(outcome.wrong), f"{outcome.seconds:.0f}")


def _line(name: str, *cells: object) -> str:
    return f"{name:<10}" + "".join(f"{cell!s:>8}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main())
