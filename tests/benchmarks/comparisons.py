"""Comparisons: what schedules recover of a simulated judge's opinion, what a pair model adds on real data, and what comparing adds in GRPO.

Run it with ``make bench-comparisons``; it writes three sections of ``docs/providers/comparison.md``. Results are kept in a file, so an
interrupted run resumes. The real data needs MiniLM and ``../shared/data``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain, product
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import torch
from transformers.utils import logging

from rm_plugins.files import write_atomically
from tests.benchmarks.comparisons_grpo import LAST, PAIRS, POINTWISE, REWARDS, STEPS, accuracies, make_judges, trained
from tests.benchmarks.comparisons_real import DATA_SETS, measured
from tests.benchmarks.comparisons_simulated import JUDGES, SPREAD, Recovered, recovered, rows, settings
from tests.benchmarks.losses import FOLDER, ROOT, append_line, read_results
from tests.benchmarks.page import table, with_section

PAGE = ROOT / "docs" / "providers" / "comparison.md"
RESULTS = ROOT / "build" / "comparison-results.jsonl"
MODULE = "tests.benchmarks.comparisons"
SIMULATED = "Schedules measured"
REAL = "Real data"
GRPO = "Beside single scores in GRPO"
MODELS = ROOT / "build" / "comparison-models"
SIZES = (8, 16)
CONTRADICTIONS = ("missing", "average")


def simulate(path: Path, seeds: int, count: int) -> None:
    """Measure every setting with every judge that is not among the results yet."""
    done = {json.dumps(line["run"]) for line in read_results(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    for answers in SIZES:
        started = time.perf_counter()
        for judge, setting, contradictions, seed in product(JUDGES, settings(answers), CONTRADICTIONS, range(seeds)):
            run = [answers, judge.title, setting.title, contradictions, seed, count]
            if json.dumps(run) not in done:
                figures = asdict(recovered(judge, setting, contradictions, seed, count, answers))
                append_line(path, json.dumps({"run": run, "figures": figures}) + "\n")
        print(f"{answers} answers: {time.perf_counter() - started:.0f} s", flush=True)


def learn(path: Path, folder: Path) -> None:
    """Train and measure on every data set that is not among the results yet."""
    done = {json.dumps(line["run"]) for line in read_results(path)}
    for data in DATA_SETS:
        run = ["real", data.file, data.train, data.groups, data.answers]
        if json.dumps(run) not in done:
            started = time.perf_counter()
            append_line(path, json.dumps({"run": run, "figures": measured(data, folder)}) + "\n")
            print(f"{data.file}: {time.perf_counter() - started:.0f} s", flush=True)


def optimize_all(path: Path, seeds: int, pairs: int, steps: int) -> None:
    """Train policies with every reward and seed; seeds run side by side, each in a process of its own."""

    def run(seed: int) -> None:
        numbers = [str(number) for number in (seed, pairs, steps)]
        command = [sys.executable, "-m", MODULE, "--results", str(path), "--optimize", *numbers]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, range(seeds)))


def optimize(path: Path, seed: int, pairs: int, steps: int) -> None:
    """Train a seed's policies that are not among the results yet."""
    done = {json.dumps(line["run"]) for line in read_results(path)}
    folder = MODELS / f"{pairs}-pairs-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make_judges(folder, seed, pairs)
    if json.dumps(run := ["accuracy", seed, pairs]) not in done:
        append_line(path, json.dumps({"run": run, "figures": accuracies(folder, seed)}) + "\n")
    for name in REWARDS:
        if json.dumps(run := ["grpo", name, seed, pairs, steps]) not in done:
            started = time.perf_counter()
            figures = {**trained(folder, seed, name, steps), "seconds": time.perf_counter() - started}
            append_line(path, json.dumps({"run": run, "figures": figures}) + "\n")
            print(f"seed {seed}: {name} in {figures['seconds']:.0f} s", flush=True)


def simulated_section(path: Path, seeds: int, count: int) -> str:
    """The tables of the simulation; empty without all of its results."""
    results = {json.dumps(line["run"]): line["figures"] for line in read_results(path)}
    parts = [
        f"Made by `make bench-comparisons` (`python -m {MODULE}`). A simulated judge compares answers with known strengths, which "
        f"are drawn with a standard deviation of {SPREAD:g} logits. The cells are Kendall's tau between the scores and the "
        f"strengths: the mean over {count} groups, and over {seeds} seeds with their standard deviation. "
        "1 is the true order, and 0 a random one. Pairs with a tie, or without a score because an answer abstains, count as 0. *Calls* are "
        "questions per group; they differ between judges where missing verdicts are followed by further pairs.",
        "The judges: *exact* always prefers the better answer. *Noisy* prefers it with the probability of the Bradley-Terry model. "
        "*Prefers the first* adds 1.5 logits to the answer that is shown first.",
    ]
    for answers, contradictions in product(SIZES, CONTRADICTIONS):
        runs = {
            (judge.title, setting.title, seed): json.dumps([answers, judge.title, setting.title, contradictions, seed, count])
            for judge, setting, seed in product(JUDGES, settings(answers), range(seeds))
        }
        if any(run not in results for run in runs.values()):
            return ""
        known = {key: Recovered(**results[run]) for key, run in runs.items()}
        head = ("schedule", "calls", *(judge.title for judge in JUDGES))
        title = f"Groups of {answers}, `contradictions: {contradictions}`"
        parts.append(f"### {title}\n\n{table(head, list(rows(known, answers, seeds)))}")
    return "\n\n".join(parts)


def real_section(path: Path) -> str:
    """The table of the real data; empty without results."""
    results = {json.dumps(line["run"]): line["figures"] for line in read_results(path)}
    shown = []
    for data in DATA_SETS:
        figures = results.get(json.dumps(["real", data.file, data.train, data.groups, data.answers]))
        shown += [] if figures is None else list(_real_rows(data.title, figures))
    if not shown:
        return ""
    trained = DATA_SETS[0].train
    return (
        f"Made by the same command. MiniLM (22.7M parameters) is trained on {trained} judged pairs, once to score a text with both "
        "answers (the comparer `text-pair`), and once to score a single answer. *Agreement* is the share of held-out judgements "
        "whose better answer has the higher score, where a tie counts as half. "
        "Judgements without a score for both answers are not counted. Contradictions are averaged except in the last row.\n\n"
        + table(("data", "setting", "calls per group", "agreement", "judgements", "without a score", "first shown wins"), shown)
    )


def grpo_section(path: Path, seeds: int, labels: Sequence[int], steps: int) -> str:
    """The table of GRPO, for each number of labels; empty without all of its results."""
    results = {json.dumps(line["run"]): line["figures"] for line in read_results(path)}
    shown = []
    for pairs in labels:
        judgings = [json.dumps(["accuracy", seed, pairs]) for seed in range(seeds)]
        trainings = {name: [json.dumps(["grpo", name, seed, pairs, steps]) for seed in range(seeds)] for name in REWARDS}
        if not results.keys() >= {*judgings, *chain(*trainings.values())}:
            return ""
        judged = [results[run] for run in judgings]
        runs = {name: [results[run] for run in of_name] for name, of_name in trainings.items()}
        for name, found in runs.items():
            gains = [one["end"] - other["end"] for one, other in zip(found, runs[POINTWISE], strict=True)]
            shown.append(
                (
                    f"{pairs:,}" if name == POINTWISE else "",
                    name,
                    _spread([one[POINTWISE if name == POINTWISE else "comparison"] for one in judged]),
                    _spread([one["start"] for one in found]),
                    _spread([one["end"] for one in found]),
                    "" if name == POINTWISE else _spread(gains, sign="+"),
                    f"{np.mean([one['kl'] for one in found]):.2f}",
                )
            )
    return (
        "Made by the same command, in the world of `rm-plugins demo`, whose true reward is known. Two small models learn from the same "
        "labels; a quarter of them is turned around. One scores a single answer, and one compares two (`text-pair`, "
        "`contradictions: average`, asked in both orders). *Right* is the share of held-out pairs whose truly better answer a reward "
        "prefers.\n\n"
        f"GRPO then trains the same policy with each, for {steps} steps of 64 completions, 8 for each prompt. *Gold* is the mean true "
        f"reward of the completions, from 0 to 1, in the first step and in the last {LAST}. "
        f"Figures are means over {seeds} seeds with the standard error.\n\n"
        + table(("labels", "reward", "right", "gold at the start", "gold at the end", "difference", "KL"), shown)
    )


def _spread(values: list[float], *, sign: str = "") -> str:
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):{sign}.3f} ± {error:.3f}"


def _real_rows(title: str, figures: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for number, line in enumerate(figures):
        error = math.sqrt(line["agreement"] * (1 - line["agreement"]) / max(line["pairs"], 1))
        yield (
            title if number == 0 else "",
            line["setting"],
            f"{line['calls']:.0f}",
            f"{line['agreement']:.3f} ± {error:.3f}" if line["pairs"] else "",
            f"{line['pairs']:,}",
            f"{line['missing']:,}",
            f"{line['position']:.0%}" if "position" in line else "",
        )


def main() -> None:
    """Measure what is missing, and write the sections."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--count", type=int, default=50, help="simulated groups per setting and seed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of the results")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder of the data (default: ../shared/data)")
    parser.add_argument("--only", choices=("simulated", "real", "grpo"), help="measure one part; by default all")
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS, help="labels of the models that judge in GRPO")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of GRPO")
    parser.add_argument("--optimize", type=int, nargs=3, help=argparse.SUPPRESS)  # a process of this program
    parser.add_argument("--output", type=Path, default=PAGE, help="the page that is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if arguments.optimize:
        optimize(arguments.results, *arguments.optimize)
        return
    if arguments.only in (None, "simulated"):
        simulate(arguments.results, arguments.seeds, arguments.count)
    if arguments.only in (None, "real"):
        learn(arguments.results, arguments.folder)
    if arguments.only in (None, "grpo"):
        for pairs in arguments.pairs:
            optimize_all(arguments.results, arguments.seeds, pairs, arguments.steps)
    page = arguments.output.read_text(encoding="utf-8") if arguments.output.is_file() else "# Comparing answers\n"
    page = with_section(page, SIMULATED, simulated_section(arguments.results, arguments.seeds, arguments.count))
    page = with_section(page, REAL, real_section(arguments.results))
    page = with_section(page, GRPO, grpo_section(arguments.results, arguments.seeds, arguments.pairs, arguments.steps))
    write_atomically(arguments.output, page)
    print(f"wrote the sections {SIMULATED!r}, {REAL!r} and {GRPO!r} of {arguments.output}", flush=True)


if __name__ == "__main__":
    main()
