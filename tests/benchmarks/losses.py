"""What every loss reaches on held-out data: MiniLM trained by `RewardTrainer` with each of them, on data of its kind.

Run it with ``make bench-losses``; it writes ``docs/loss-results.md``. Finished runs are kept in a file, so that it goes on where
it was ended. Needs the real model and data that the tests use.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers.utils import logging

from rm_plugins.losses import rm_register_losses, rm_register_regularizers
from tests.benchmarks.losses_data import DATA_SETS, Sizes
from tests.benchmarks.losses_page import Results, write
from tests.benchmarks.losses_runs import ENTRIES, Run, save_small_decoder, train

ROOT = Path(__file__).parents[2]
FOLDER = ROOT.parent / "shared" / "data"
PAGE = ROOT / "docs" / "loss-results.md"
RESULTS = ROOT / "build" / "loss-results.jsonl"
MODULE = "tests.benchmarks.losses"


# --- A process that trains ------------------------------------------------------------------------------------------------


def work(folder: Path, decoder: str) -> None:
    """Train what standard input names, one run a line, and answer each with a line."""
    import datasets
    import torch

    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may come between the answers
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    known = {(entry.data, entry.label): entry for entry in ENTRIES}
    for line in sys.stdin:
        data, label, seed, sizes = json.loads(line)
        started = time.process_time()
        metrics = train(Run(known[data, label], seed, Sizes(**sizes)), folder, decoder)
        seconds = round(time.process_time() - started, 1)
        print(json.dumps({"run": [data, label, seed, sizes], "metrics": metrics, "seconds": seconds}), file=answers, flush=True)


# --- All runs -------------------------------------------------------------------------------------------------------------


def read_results(path: Path) -> Iterator[dict[str, Any]]:
    """The finished runs of a file; a line that was not written to its end is none."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def train_all(runs: Sequence[Run], arguments: argparse.Namespace) -> None:
    """Train what is not yet among the results, several at a time, and add it to them."""
    done = {json.dumps(found["run"]) for found in read_results(arguments.results)}
    missing = [run for run in runs if run.key not in done]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are in {arguments.results}", flush=True)
    if not missing:
        return
    waiting: queue.SimpleQueue[Run] = queue.SimpleQueue()
    for run in missing:
        waiting.put(run)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    writing = threading.Lock()
    failed: list[Run] = []
    left, started = len(missing), time.perf_counter()

    def serve(worker: subprocess.Popen[str]) -> None:
        nonlocal left
        assert worker.stdin is not None and worker.stdout is not None
        while not failed:
            try:
                run = waiting.get_nowait()
            except queue.Empty:
                break
            worker.stdin.write(f"{run.key}\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
            if not answer.endswith("\n"):
                failed.append(run)
                break
            with writing:
                append_line(arguments.results, answer)
                left -= 1
                found = json.loads(answer)
                minutes = (time.perf_counter() - started) / 60
                print(
                    f"{minutes:5.1f} min, {left:3} left: {run.entry.data}, {run.entry.label}, seed {run.seed}: accuracy "
                    f"{found['metrics'].get('accuracy', float('nan')):.3f} in {found['seconds']:.0f} s",
                    flush=True,
                )
        worker.stdin.close()  # upon which it ends
        worker.wait()

    with tempfile.TemporaryDirectory() as scratch:
        decoder = save_small_decoder(Path(scratch) / "decoder", arguments.folder)
        command = [sys.executable, "-m", MODULE, "--folder", str(arguments.folder), "--work", str(decoder)]
        threads = [threading.Thread(target=serve, args=(_start(command),)) for _ in range(min(arguments.workers, len(missing)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        names = "; ".join(f"{run.entry.data}, {run.entry.label}, seed {run.seed}" for run in failed)
        raise SystemExit(f"A process ended in: {names}. What it said is above; run this again to go on with the others.")


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, in one write, behind whatever a killed process left of one."""
    torn = path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("ab", buffering=0) as file:
        file.write((b"\n" if torn else b"") + line.encode())


def chosen_runs(arguments: argparse.Namespace) -> list[Run]:
    """The runs that are asked for, one seed after the other, so that what is there first is a whole table."""
    entries = [
        entry
        for entry in ENTRIES
        if entry.data in arguments.data and (not arguments.only or {entry.loss, *entry.regularizers} & set(arguments.only))
    ]
    found = []
    for seed in range(arguments.seeds):
        for entry in entries:
            sizes = DATA_SETS[entry.data].sizes
            found.append(Run(entry, seed, sizes.small() if arguments.small else sizes))
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--results", type=Path, help=f"the file of the finished runs (default: {RESULTS.relative_to(ROOT)})")
    parser.add_argument("--data", nargs="+", choices=list(DATA_SETS), default=list(DATA_SETS), help="data sets (default: all)")
    names = sorted({name for entry in ENTRIES for name in (entry.loss, *entry.regularizers)})
    parser.add_argument("--only", nargs="+", choices=names, metavar="LOSS", help="losses and regularizers (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="how often each is trained (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, of one thread each (default: 2)")
    parser.add_argument("--page", action="store_true", help="train nothing; write the page from the results that are there")
    parser.add_argument("--output", type=Path, help=f"the page that is written (default: {PAGE.relative_to(ROOT)})")
    parser.add_argument("--small", action="store_true", help="check this script with tiny sizes; writes no page but --output")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder of the data (default: ../shared/data)")
    parser.add_argument("--work", metavar="DECODER", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Train what is missing, and write the page."""
    arguments = parser().parse_args()
    if arguments.work:
        work(arguments.folder, arguments.work)
        return
    if min(arguments.seeds, arguments.workers) < 1:
        raise SystemExit("--seeds and --workers must be at least 1.")
    compared = {name for entry in ENTRIES for name in (entry.loss, *entry.regularizers)}
    left_out = {found.name for found in (*rm_register_losses(), *rm_register_regularizers())} - compared
    if left_out:
        raise SystemExit(f"No data is named for {', '.join(sorted(left_out))}: add it to ENTRIES in losses_runs.py.")
    if arguments.results is None:
        arguments.results = RESULTS.with_stem(f"{RESULTS.stem}-small") if arguments.small else RESULTS
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not arguments.page:
        train_all(chosen_runs(arguments), arguments)
    output = arguments.output or (None if arguments.small else PAGE)
    if output is not None:
        write(output, Results(read_results(arguments.results), arguments.seeds, small=arguments.small), arguments.folder)
        print(f"wrote {output}", flush=True)


if __name__ == "__main__":
    main()
