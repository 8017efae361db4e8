"""How much two replicas of one thread each do beside one of one thread: served by one port, and scoring a file.

Run it with ``python -m tests.benchmarks.replicas``; it prints a table. It needs two idle cores, and the data that the tests use. With
``--small`` it shows in seconds that it runs, not how fast anything is.

With ``--ray-serve``, it compares Ray Serve with ``rm-plugins serve`` instead, each with one replica of a reward that costs nothing, and
writes a section of docs/ray.md. Ray must be importable, such as with ``PYTHONPATH=.venv/worlds/ray-2.60.0``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
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
from rm_plugins.usable_cpus import usable_cpus
from rm_plugins.wire import sample_to_json
from tests.benchmarks.page import model_of_cpu, table, with_section
from tests.benchmarks.serving import DATA, ROOT, Load, bodies_of, closed_loop, groups
from tests.benchmarks.texts import Texts
from tests.servers import free_port

MODULE = "tests.benchmarks.replicas"
TARGET = 1.8
FILE = "a file is scored"
SHAPES = {"a prompt's 8 completions per request": 8, "a completion per request": 1, FILE: 0}
"""What is measured, with the samples of a request; the samples are prompts with 8 completions each."""
TOLERANCE = 1e-4
OURS, RAY = "`rm-plugins serve`", "Ray Serve"
CLIENTS = (1, 16)
PAGE = ROOT / "docs" / "ray.md"
HEADING = "Overhead of Ray Serve"


@contextmanager
def server(spec: Path, devices: str) -> Iterator[str]:
    """The URL of a server whose replicas all serve; its log is beside the reward."""
    port = free_port()
    command = [sys.executable, "-m", "rm_plugins", "serve", str(spec), "--port", str(port), "--devices", devices]
    number = len(devices.split(","))
    with _running(command, spec.with_name(f"{devices}.log"), port, signal.SIGTERM) as url:
        while httpx2.get(f"{url}/health", timeout=30).json()["workers"] != {"wanted": number, "serving": number}:
            time.sleep(0.1)
        yield url


@contextmanager
def ray_serve(spec: Path) -> Iterator[str]:
    """The URL of one replica on a Ray cluster of this machine, which ends with it."""
    port = free_port()
    config = spec.with_name("ray-serve.yaml")
    application = {"name": "reward", "import_path": "rm_plugins_ray:app", "args": {"spec": str(spec)}}
    config.write_text(json.dumps({"http_options": {"port": port}, "applications": [application]}))  # YAML takes JSON
    command = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", "run", str(config)]
    with _running(command, spec.with_name("ray-serve.log"), port, signal.SIGINT) as url:
        yield url


@contextmanager
def _running(command: Sequence[str], log: Path, port: int, ends: signal.Signals) -> Iterator[str]:
    """The URL of a server in a process of its own, which answers."""
    url = f"http://127.0.0.1:{port}"
    path = os.pathsep.join([str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as file:
        # By default, Ray's processes give way to other programs (niceness 15), and then a busy machine decides the comparison.
        environment = {**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        while not _answers(url):
            if process.poll() is not None:
                raise SystemExit(f"The server has ended:\n{log.read_text()}")
            time.sleep(0.1)
        yield url
    finally:
        process.send_signal(ends)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=30).status_code == 200
    except httpx2.TransportError:
        return False


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


def compare_with_ray(rounds: int, requests: int) -> list[tuple[str, ...]]:
    """The rows of the table of Ray Serve's overhead: medians over rounds, in which both servers take turns."""
    samples = [
        rm.Sample(f"Question {number // 8}: " + "what is known of this? " * 40, f"It is {number}. " * 10)
        for number in range(requests)
    ]
    bodies = bodies_of(samples)
    with tempfile.TemporaryDirectory(prefix="replicas-") as scratch, ExitStack() as stack:
        spec = Path(scratch) / "free.json"
        spec.write_text(json.dumps({"provider": "constant", "value": 1.0}))
        urls = {OURS: stack.enter_context(server(spec, "cpu")), RAY: stack.enter_context(ray_serve(spec))}
        for url in urls.values():
            asyncio.run(closed_loop(url, bodies[: requests // 4], max(CLIENTS)))
        loads: dict[tuple[int, str], list[Load]] = {(clients, name): [] for clients in CLIENTS for name in urls}
        for (clients, name), found in [*loads.items()] * rounds:
            found.append(asyncio.run(closed_loop(urls[name], bodies, clients)))
            if found[-1].statuses != {200: requests} or set(found[-1].values.values()) != {1.0}:
                raise SystemExit(f"{name} answered {found[-1].statuses}.")
    rows: list[tuple[str, ...]] = []
    for clients in CLIENTS:
        ours = [requests / load.seconds for load in loads[clients, OURS]]
        for name in urls:
            rates = [requests / load.seconds for load in loads[clients, name]]
            middle, slow = (statistics.median(load.latency(share) for load in loads[clients, name]) for share in (0.5, 0.95))
            ratio = statistics.median(rate / other for rate, other in zip(rates, ours, strict=True))
            rows.append((f"{clients}", name, f"{statistics.median(rates):.0f}", f"{middle:.1f}", f"{slow:.1f}", f"{ratio:.2f}"))
    return rows


def write_overhead(rounds: int, requests: int) -> None:
    """Measure Ray Serve beside our server, print the table and write it into the page."""
    rows = compare_with_ray(rounds, requests)
    cpu = f"{platform.machine()}, {model_of_cpu()}"
    text = (
        "`make bench-ray` sends requests of one sample of 1 kB to one replica of a reward that costs nothing. The same client asks\n"
        f"`rm-plugins serve` and Ray Serve in turn. The figures are medians of {rounds} rounds of {requests} requests.\n"
        f"They were measured on {usable_cpus()} cores ({cpu}) on which other programs ran. So compare the ratios.\n\n"
        + table(("clients", "server", "requests/s", "median in ms", "95th percentile in ms", "requests/s beside ours"), rows)
        + "\n\nWith Ray Serve, a request passes through Ray's proxy, the front and the replica, which are three processes.\n"
        "This costs the same for every reward, so it matters for rewards that take milliseconds, such as rules. Send several samples\n"
        "per request to divide the cost."
    )
    print(text)
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), HEADING, text), encoding="utf-8")


def main() -> None:
    """Measure in rounds, and print the table."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--samples", type=int, default=800, help="samples scored in each round (default: 800)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--in-flight", type=int, default=64, help="samples that clients wait for at a time (default: 64)")
    parser.add_argument("--small", action="store_true", help="show that it runs")
    parser.add_argument("--ray-serve", action="store_true", help="compare Ray Serve with `rm-plugins serve`")
    options = parser.parse_args()
    if options.ray_serve:
        write_overhead(options.rounds, options.samples)
        return
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
