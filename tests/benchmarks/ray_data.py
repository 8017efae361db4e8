"""Measure scoring a file with Ray Data beside one process: ``python -m tests.benchmarks.ray_data --help``.

Two actors of one thread each, and one process of one thread, score the same rows of real text with the same model. A reward that costs
nothing then shows what Ray Data, reading and writing cost per row.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rm_plugins.data.row_files import json_line
from rm_plugins.data.rows import preference_samples
from tests.benchmarks.models import save_minilm
from tests.benchmarks.texts import data_rows

DATA = Path(__file__).parents[3] / "shared" / "data"
NAMES = ("ukp_convarg_strict", "rt_sentence_polarity_pairs", "llmbar")
FREE = {"provider": "constant", "value": 1.0}


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Prompts and completions of real pairs, then the same completions without their first words, and so on: no two are equal."""
    pairs = [
        (_text(sample.prompt), sample.completion_text)
        for name in NAMES
        for row in data_rows(folder, name)
        for sample in preference_samples(row)
    ]
    for skipped in itertools.count():
        for prompt, completion in pairs:
            words = completion.split()
            if len(words) > skipped + 3:
                yield prompt, " ".join(words[skipped:])


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def run(engine: str, spec: str, source: Path, out: Path, workers: int) -> dict[str, float]:
    """Score in a process of its own; returns its seconds in all and until the first rows were scored, and those of each stage after it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.ray_data", "--one", engine, spec, str(source), str(out), str(workers)]
    told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return measured


def one(engine: str, spec: str, source: str, out: str, workers: str) -> None:
    """What the process of `run` does."""
    from rm_plugins.jobs.progress import JobProgress

    class Moments(JobProgress):
        first = last = 0.0

        def advance(self, count: int, throughput: str = "") -> None:
            self.last = time.perf_counter()
            self.first = self.first or self.last

    began, moments = time.perf_counter(), Moments()
    if engine == "ray":
        from rm_plugins.jobs.job_engine import ScoringRequest
        from rm_plugins_ray.data_engine import RayDataEngine

        RayDataEngine("local", int(workers)).score(ScoringRequest(spec, source, "train", Path(out), True), moments)
    else:
        from rm_plugins.jobs.scored_rows import ScoringJob

        ScoringJob(spec, source, "train", Path(out), True).write(512, moments)
    ended = time.perf_counter()
    print(json.dumps({"seconds": ended - began, "start": moments.first - began, "join": ended - moments.last}))


def same(first: Path, other: Path) -> float:
    """The largest difference of scores between two outputs with the same rows in the same order."""
    largest = 0.0
    with first.open() as one, other.open() as two:
        for a, b in zip(one, two, strict=True):
            row, row_too = json.loads(a), json.loads(b)
            largest = max(largest, abs(row.pop("score") - row_too.pop("score")))
            assert row == row_too
    return largest


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ray_data", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="rows that are scored; 100,000 by default")
    parser.add_argument("--workers", type=int, default=2, help="actors of one thread; 2 by default")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    with tempfile.TemporaryDirectory(prefix="ray-data-") as scratch:
        folder = Path(scratch)
        source = folder / "in.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for prompt, completion in itertools.islice(texts(DATA), options.rows):
                file.write(json_line({"prompt": prompt, "completion": completion}))
        model = str(save_minilm(folder / "minilm"))
        (folder / "free.json").write_text(json.dumps(FREE))
        print(f"{options.rows:,} rows of real text, {source.stat().st_size / options.rows:.0f} bytes each", flush=True)
        print("| reward | engine | seconds | until the first rows | after the last | rows/s | beside one process |")
        print("|---|---|---|---|---|---|---|")
        for name, spec in (("MiniLM", model), ("none", str(folder / "free.json"))):
            alone: dict[str, Any] = {}
            for engine in ("process", "ray"):
                measured = run(engine, spec, source, folder / f"{engine}.jsonl", options.workers)
                alone = alone or measured
                called = "one process" if engine == "process" else f"Ray Data, {options.workers} actors"
                print(
                    f"| {name} | {called} | {measured['seconds']:.1f} | {measured['start']:.1f} | {measured['join']:.1f} | "
                    f"{options.rows / measured['seconds']:,.0f} | {alone['seconds'] / measured['seconds']:.2f} |",
                    flush=True,
                )
            print(f"| | largest difference | {same(folder / 'process.jsonl', folder / 'ray.jsonl'):.1e} | | | | |", flush=True)


if __name__ == "__main__":
    main()
