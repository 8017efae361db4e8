"""How much two replicas of one thread each do beside one of one thread: served by one port, and scoring a file.

Run it with ``python -m tests.benchmarks.replicas``; it prints a table. It needs two idle cores, and the data that the tests use. With
``--small`` it shows in seconds that it runs, not how fast anything is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

# Before torch starts its threads: one a replica is what is compared.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import httpx2

import rm_plugins as rm
from rm_plugins.jobs.crew import Crew, own_processes
from rm_plugins.jobs.scored_rows import RowScoring, RowSource, loaded_reward
from rm_plugins.wire import sample_to_json
from tests.benchmarks.serving import DATA, ROOT, bodies_of, closed_loop, groups
from tests.benchmarks.texts import Texts

MODULE = "tests.benchmarks.replicas"
TARGET = 1.8
FILE = "a file is scored"
SHAPES = {"a prompt's 8 completions per request": 8, "a completion per request": 1, FILE: 0}
"""What is measured, with the samples of a request; the samples are prompts with 8 completions each."""
TOLERANCE = 1e-4


@contextmanager
def server(folder: Path, devices: str) -> Iterator[str]:
    """The URL of a server whose replicas all serve; its log is beside the reward."""
    command = [sys.executable, "-m", "rm_plugins", "serve", str(folder), "--port", "0", "--devices", devices]
    path = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    log = folder.with_name(f"{devices}.log")
    with log.open("w") as file:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=file)
    try:
        while (told := re.search(r"Serving .* at (http://[\d.:]+)", log.read_text())) is None or not _all_serve(
            told[1], len(devices.split(","))
        ):
            if process.poll() is not None:
                raise SystemExit(f"The server has ended:\n{log.read_text()}")
            time.sleep(0.1)
        yield told[1]
    finally:
        process.terminate()
        process.wait()


def _all_serve(url: str, number: int) -> bool:
    workers = httpx2.get(f"{url}/health", timeout=30).json()["workers"]
    return bool(workers == {"wanted": number, "serving": number})


def served(url: str, samples: Sequence[rm.Sample], each: int, clients: int, expected: Sequence[float]) -> float:
    """Samples per second that clients are answered, with `each` samples per request."""
    load = asyncio.run(closed_loop(url, bodies_of(samples, each), clients, each))
    difference = max(abs(value - expected[number]) for number, value in load.values.items())
    if set(load.statuses) != {200} or not difference <= TOLERANCE:
        raise SystemExit(f"The server answered {load.statuses}, and its rewards differ by {difference:.1e}.")
    return len(load.values) / load.seconds


def scored(spec: str, source: RowSource, part: Path, crew: Crew | None) -> tuple[float, list[list[float | None]]]:
    """Rows per second that are scored and kept, once every process has loaded the reward; and the scores."""
    provider, identity = loaded_reward(spec, crew)
    if crew is not None:
        crew.await_loaded()
    job = RowScoring(provider, source, part, {"fingerprint": identity})
    started = time.perf_counter()
    rows = list(job.run(64))
    seconds = time.perf_counter() - started
    job.discard()
    return len(rows) / seconds, [row.scores for row in rows]


def main() -> None:
    """Measure in rounds, and print the table."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--samples", type=int, default=800, help="samples scored in each round (default: 800)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--in-flight", type=int, default=64, help="samples that clients wait for at a time (default: 64)")
    parser.add_argument("--small", action="store_true", help="show that it runs")
    options = parser.parse_args()
    samples_number, rounds = (64, 1) if options.small else (options.samples, options.rounds)
    with tempfile.TemporaryDirectory(prefix="replicas-") as scratch, ExitStack() as stack:
        folder = Path(scratch) / "reward"
        samples = groups(folder, Texts(DATA), samples_number)
        rows = Path(scratch) / "rows.jsonl"
        rows.write_text("".join(json.dumps(sample_to_json(sample)) + "\n" for sample in samples), encoding="utf-8")
        source = RowSource.of(str(rows), "train")
        expected: Any = rm.load(folder).score(samples).values
        crew = stack.enter_context(Crew(own_processes(2)))
        rates: dict[tuple[str, str], list[float]] = {(what, number): [] for what in SHAPES for number in ("one", "two")}
        urls = {"one": stack.enter_context(server(folder, "cpu")), "two": stack.enter_context(server(folder, "cpu,cpu"))}
        for _ in range(rounds):
            for what, each in SHAPES.items():
                for number, url in urls.items() if each else ():
                    rate = served(url, samples, each, max(1, options.in_flight // each), expected)
                    rates[what, number].append(rate)
            one, scores = scored(str(folder), source, Path(scratch) / "one.part", None)
            two, others = scored(str(folder), source, Path(scratch) / "two.part", crew)
            if scores != others:
                raise SystemExit("Two processes have given other scores than one.")
            rates[FILE, "one"].append(one)
            rates[FILE, "two"].append(two)
    print_table(rates)


def print_table(rates: dict[tuple[str, str], list[float]]) -> None:
    """Print the medians, and whether the target is met."""
    print(f"| | one replica | two replicas | ratio | at least {TARGET} |\n| --- | --- | --- | --- | --- |")
    for what in SHAPES:
        one, two = rates[what, "one"], rates[what, "two"]
        ratio = statistics.median(second / first for first, second in zip(one, two, strict=True))
        told = f"{statistics.median(one):.0f}/s | {statistics.median(two):.0f}/s | {ratio:.2f}"
        print(f"| {what} | {told} | {'met' if ratio >= TARGET else 'missed'} |")


if __name__ == "__main__":
    main()
