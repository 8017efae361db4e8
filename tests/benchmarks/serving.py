"""How fast a served reward scores: 64 clients of our server beside the same reward in this process and a plain FastAPI endpoint.

Run it with ``python -m tests.benchmarks.serving``; it prints a table. Needs the real model and data that the tests use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers.utils import logging as transformers_logging

import rm_plugins as rm
from rm_plugins.wire import sample_to_json
from tests.benchmarks.models import DecoderSize, save_decoder, save_minilm, train_tokenizer
from tests.benchmarks.texts import Texts, spread

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
MODULE = "tests.benchmarks.serving"

OURS = "rm-plugins serve"
PLAIN = "a plain FastAPI endpoint"
TOLERANCE = 1e-4
TARGET = 0.9
OVERLOAD = 4
"""Times the capacity at which requests come in the second phase, whether earlier ones are answered or not."""

_CONNECTIONS_OF_OVERLOAD = 512


@dataclass(slots=True)
class Load:
    """What clients saw.

    Args:
        seconds: From the first request to the last answer.
        latencies: Of each answered request, in seconds.
        statuses: How many answers had each status; 0 stands for none.
        values: The reward by the number of the sample.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)

    def latency(self, share: float) -> float:
        """The latency that this share of the requests did not exceed, in milliseconds."""
        ordered = sorted(self.latencies)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Connection:
    """A connection that is kept, spoken to with as little of the machine's time as possible."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the JSON that a request is answered with."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answered = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", answered)
        assert length is not None
        return int(answered[9:12]), json.loads(await reader.readexactly(int(length[1])))

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()


def bodies_of(samples: Sequence[rm.Sample], each: int = 1) -> list[bytes]:
    """Requests with `each` samples."""
    parts = [samples[start : start + each] for start in range(0, len(samples), each)]
    return [json.dumps({"samples": [sample_to_json(sample) for sample in part]}).encode() for part in parts]


async def closed_loop(url: str, bodies: Sequence[bytes], clients: int, each: int = 1) -> Load:
    """So many clients that each send a request, with `each` samples, when the one before is answered."""
    load, numbers = Load(), iter(range(len(bodies)))

    async def client() -> None:
        connection = Connection(url)
        for number in numbers:
            sent = time.perf_counter()
            status, found = await connection.post("/v1/rewards", bodies[number])
            load.latencies.append(time.perf_counter() - sent)
            load.statuses[status] = load.statuses.get(status, 0) + 1
            load.values.update((number * each + place, row["reward"]) for place, row in enumerate(found["rewards"]))
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(clients)])
    load.seconds = time.perf_counter() - started
    return load


async def open_loop(url: str, bodies: Sequence[bytes], rate: float, seconds: float) -> Load:
    """Requests at a fixed rate, whatever becomes of those before."""
    load = Load()
    free = [Connection(url) for _ in range(_CONNECTIONS_OF_OVERLOAD)]
    choose = random.Random(0)

    async def send() -> None:
        connection = free.pop() if free else Connection(url)
        sent = time.perf_counter()
        try:
            status, _ = await connection.post("/v1/rewards", choose.choice(bodies))
        except (OSError, asyncio.IncompleteReadError):
            status = 0
        else:
            free.append(connection)
        if status == 200:
            load.latencies.append(time.perf_counter() - sent)
        load.statuses[status] = load.statuses.get(status, 0) + 1

    started = time.perf_counter()
    sending: list[asyncio.Future[None]] = []
    while (elapsed := time.perf_counter() - started) < seconds:
        while len(sending) < elapsed * rate:
            sending.append(asyncio.ensure_future(send()))
        await asyncio.sleep(0.002)
    await asyncio.gather(*sending)
    load.seconds = time.perf_counter() - started
    for connection in free:
        connection.close()
    return load


@contextmanager
def server(name: str, folder: Path, *, max_queue: int) -> Iterator[tuple[str, int]]:
    """The URL and the process of a server of the model in a folder."""
    if name == OURS:
        command = ["-m", "rm_plugins", "serve", str(folder), "--port", "0", "--max-queue", str(max_queue)]
    else:
        command = ["-m", MODULE, "--plain", str(folder)]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"Serving .*? at (http://[^, ]+)", line)
        if found is not None:
            break
    else:
        raise SystemExit(f"{name} did not start.")
    rest = threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True)  # its log, or it would block
    rest.start()
    try:
        yield found[1].rstrip(), process.pid
    finally:
        process.terminate()
        process.wait()


class _PlainBody(BaseModel):
    samples: list[dict[str, Any]]


def plain(folder: str) -> None:
    """The endpoint that one writes first: each request is scored by itself, in the event loop."""
    rewards = rm.load(folder)
    app = FastAPI()

    @app.post("/v1/rewards")
    async def score(body: _PlainBody) -> dict[str, Any]:
        scores = rewards.score([rm.Sample(**sample) for sample in body.samples])
        return {"rewards": [{"index": row, "reward": value} for row, value in enumerate(scores.values.tolist())]}

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    print(f"Serving {folder} at http://127.0.0.1:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listening])


def resident(process: int) -> float:
    """MiB that a process holds in memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text(encoding="utf-8"))
    return int(found[1]) / 1024 if found else 0.0


def groups(folder: Path, texts: Texts, number: int) -> list[rm.Sample]:
    """A decoder in the folder, and what a trainer asks about: prompts of 256 tokens with 8 completions of 20 to 120, [number]."""
    tokenizer = train_tokenizer(texts.corpus(), DecoderSize().vocabulary)
    save_decoder(folder, DecoderSize(), tokenizer)
    return texts.groups(tokenizer, -(-number // 8), 256, spread(20, 120, 8))[:number]


def unrelated(folder: Path, texts: Texts, number: int) -> list[rm.Sample]:
    """MiniLM in the folder, and different real texts of at most 256 tokens, in no order, [number]."""
    save_minilm(folder)
    renderer: Any = rm.load(folder)
    return _unrelated(texts, renderer.renderer, number)


WORKLOADS = {"groups": groups, "unrelated": unrelated}


def _unrelated(texts: Texts, renderer: Any, number: int) -> list[rm.Sample]:
    found = {str(sample.messages): sample for sample in [*texts.answers(renderer, number, 256), *texts.solutions(number // 4)]}
    samples = list(found.values())
    random.Random(0).shuffle(samples)
    return samples[:number]


def measure(folder: Path, samples: Sequence[rm.Sample], arguments: argparse.Namespace) -> None:
    """Measure all contenders in turn, then overload ours, and print what was found."""
    rewards = rm.load(folder)
    bodies = bodies_of(samples)
    expected = rewards.score(samples).values
    in_process: list[float] = []
    loads: dict[str, list[Load]] = {OURS: [], PLAIN: []}
    with (
        server(OURS, folder, max_queue=arguments.max_queue) as (ours, process),
        server(PLAIN, folder, max_queue=0) as (other, _),
    ):
        urls = {OURS: ours, PLAIN: other}
        for url in urls.values():
            asyncio.run(closed_loop(url, bodies[:64], 8))
        for number in range(arguments.rounds):
            started = time.perf_counter()
            rewards.score(samples)
            in_process.append(time.perf_counter() - started)
            for name, url in urls.items():
                some = bodies if name == OURS else bodies[: len(bodies) // 4]
                loads[name].append(asyncio.run(closed_loop(url, some, arguments.clients)))
                _check(name, loads[name][-1], expected)
            rates = ", ".join(f"{name} {len(found[-1].values) / found[-1].seconds:.0f}/s" for name, found in loads.items())
            print(f"round {number + 1}: in process {len(samples) / in_process[-1]:.0f}/s, {rates}", flush=True)
        idle = resident(process)
        capacity = statistics.median(len(load.values) / load.seconds for load in loads[OURS])
        halves, peaks = [], []
        for _ in range(2):
            seen = [idle]
            with watching(process, seen):
                halves.append(asyncio.run(open_loop(ours, bodies, OVERLOAD * capacity, arguments.overload_seconds)))
            peaks.append(max(seen))
        after = asyncio.run(closed_loop(ours, bodies[:64], 8))
    _print(samples, in_process, loads, idle)
    print(f"\nOverload: {OVERLOAD} times as many requests as are scored, twice for {arguments.overload_seconds:g} s\n")
    for load, peak in zip(halves, peaks, strict=True):
        total = sum(load.statuses.values())
        refused, answered = load.statuses.get(429, 0), load.statuses.get(200, 0)
        print(
            f"- {total} requests: {answered} answered ({answered / load.seconds:.0f}/s; p50 {load.latency(0.5):.0f} ms, p99 "
            f"{load.latency(0.99):.0f} ms), {refused} refused with 429, {total - refused - answered} neither; at most {peak:.0f} MiB"
        )
    print(f"- {idle:.0f} MiB before; afterwards {after.statuses.get(200, 0)} of 64 requests are answered as before")


@contextmanager
def watching(process: int, peaks: list[float]) -> Iterator[None]:
    """Note a process's memory five times a second while the block runs."""
    ending = threading.Event()

    def look() -> None:
        while not ending.wait(0.2):
            peaks.append(resident(process))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def _check(name: str, load: Load, expected: Any) -> None:
    difference = max(abs(value - expected[number]) for number, value in load.values.items())
    if set(load.statuses) != {200} or not difference <= TOLERANCE:
        raise SystemExit(
            f"{name} answered {load.statuses}, and its rewards differ by {difference:.1e}; {TOLERANCE} is allowed."
        )


def _print(samples: Sequence[rm.Sample], in_process: Sequence[float], loads: dict[str, list[Load]], memory: float) -> None:
    base = len(samples) / statistics.median(in_process)
    print(
        f"\n| | samples/s | times in process | p50 in ms | p99 in ms |\n|---|---|---|---|---|\n| in process | {base:.0f} | 1.00 | | |"
    )
    for name, found in loads.items():
        rate = statistics.median(len(load.values) / load.seconds for load in found)
        middle, slowest = (statistics.median(load.latency(share) for load in found) for share in (0.5, 0.99))
        print(f"| {name} | {rate:.0f} | {rate / base:.2f} | {middle:.0f} | {slowest:.0f} |")
    ratio = statistics.median(
        (len(load.values) / load.seconds) / (len(samples) / seconds)
        for load, seconds in zip(loads[OURS], in_process, strict=True)
    )
    verdict = "met" if ratio >= TARGET else "missed"
    print(
        f"\nBy rounds, ours is {ratio:.2f} of in process; the target of {TARGET} is {verdict}. The server holds {memory:.0f} MiB."
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--samples", type=int, default=2_000, help="samples scored (default: 2000)")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), help="what is scored (default: each in turn)")
    parser.add_argument("--clients", type=int, default=64, help="clients at the same time (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="times each contender runs, in turn (default: 3)")
    parser.add_argument("--max-queue", type=int, default=256, help="samples that wait at most (default: 256)")
    parser.add_argument("--overload-seconds", type=float, default=10, help="how long ours is overloaded (default: 10)")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the texts (default: ../shared/data)")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure, and print what was found."""
    arguments = parser().parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if arguments.plain:
        plain(arguments.plain)
        return
    texts = Texts(arguments.data)
    for name in [arguments.workload] if arguments.workload else WORKLOADS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            samples = WORKLOADS[name](folder, texts, arguments.samples)
            print(f"\n## {name}: {WORKLOADS[name].__doc__}\n", flush=True)
            measure(folder, samples, arguments)


if __name__ == "__main__":
    main()
