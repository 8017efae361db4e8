"""What an ensemble costs beside one model: heads on one backbone, adapters of one base, whole models, members that wait.

Run it with ``make bench-ensembles``; it writes its section of ``docs/benchmarks.md``. Needs the real data that the tests use.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

import rm_plugins as rm
from rm_plugins.files import write_atomically
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest
from rm_plugins.rendering.rendering import Rendering
from tests.benchmarks.models import DecoderSize, save_decoder, train_tokenizer
from tests.benchmarks.page import ENSEMBLES, TITLE, machine, table, with_section
from tests.benchmarks.scoring import DATA, PAGE, ROOT
from tests.benchmarks.texts import Texts, spread

MODULE = "tests.benchmarks.ensembles"
MEMBERS = 5
LATENCY, LOCAL = 0.3, 0.4

ONE = "one model"
HEADS = f"{MEMBERS} heads on one backbone"
ONE_ADAPTER = "one adapter"
LORA = f"`lora-ensemble` of {MEMBERS} adapters"
APART = f"`ensemble` of {MEMBERS} adapters, each loaded with its base"
WHOLE = f"`ensemble` of {MEMBERS} whole models"
WAITING = "a member that waits 300 ms, alone"
HERE = "the local member, alone"
TOGETHER = "`ensemble` of the local member and two that wait"

TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured; the defaults are those of the page."""

    prompts: int = 2
    prompt_tokens: int = 256
    completions: int = 8
    decoder: DecoderSize = field(default_factory=DecoderSize)


TINY = DecoderSize(vocabulary=1_024, hidden=64, intermediate=128, layers=2, heads=4)
SMALL = Sizes(prompts=1, prompt_tokens=64, completions=3, decoder=TINY)


@dataclass(slots=True)
class Results:
    """What was measured.

    Args:
        rows: Rows scored at a time.
        parameters: Of one model.
        seconds: Every contender's median.
        bytes: Of every contender's parameters.
        peaks: By how many bytes the memory of a process grew at most, when it loaded a contender and scored.
    """

    rows: int = 0
    parameters: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    def ratio(self, name: str, other: str, what: Mapping[str, float] | None = None) -> float:
        """One contender's seconds, or something else of it, as a multiple of another's."""
        measured = self.seconds if what is None else what
        return measured[name] / measured[other]


class Models:
    """The folders of the models, each saved once.

    Args:
        folder: Where they are saved.
        tokenizer: Their tokenizer.
        size: Their size.
    """

    def __init__(self, folder: Path, tokenizer: Any, size: DecoderSize) -> None:
        self.whole = [str(save_decoder(folder / f"whole-{number}", size, tokenizer)) for number in range(MEMBERS)]
        tokenizer = AutoTokenizer.from_pretrained(self.whole[0])  # which may not be of the class that was saved
        self.adapters = [str(folder / f"adapter-{number}") for number in range(MEMBERS)]
        for number, adapter in enumerate(self.adapters):
            torch.manual_seed(number)
            model = AutoModelForSequenceClassification.from_pretrained(self.whole[0])
            lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], modules_to_save=["score"], init_lora_weights=False)
            get_peft_model(model, lora).save_pretrained(adapter)
            tokenizer.save_pretrained(adapter)
        self.heads = str(folder / "heads")
        model = AutoModelForSequenceClassification.from_pretrained(
            self.whole[0], num_labels=MEMBERS, ignore_mismatched_sizes=True
        )
        model.save_pretrained(self.heads)
        tokenizer.save_pretrained(self.heads)
        rendering, heads = Rendering.default(tokenizer), Heads(members=MEMBERS)
        Manifest(created_by={}, rendering=rendering, dtype="float32", heads=heads).write(Path(self.heads))

    @property
    def specs(self) -> dict[str, Any]:
        """Every contender's spec."""
        return {
            ONE: self.whole[0],
            HEADS: self.heads,
            ONE_ADAPTER: self.adapters[0],
            LORA: {"provider": "lora-ensemble", "adapters": self.adapters},
            APART: {"provider": "ensemble", "members": self.adapters},
            WHOLE: {"provider": "ensemble", "members": self.whole},
        }


def measure(sizes: Sizes, rounds: int, data: Path, scratch: Path) -> Results:
    """Measure everything.

    Raises:
        SystemExit: A member of the adapters' ensemble scores otherwise than its adapter by itself.
    """
    texts = Texts(data)
    tokenizer = train_tokenizer(texts.corpus(), sizes.decoder.vocabulary)
    models = Models(scratch, tokenizer, sizes.decoder)
    samples = texts.groups(tokenizer, sizes.prompts, sizes.prompt_tokens, spread(32, 160, sizes.completions))
    results = Results(len(samples))
    for name in (ONE_ADAPTER, LORA, APART, WHOLE):
        results.bytes[name], results.peaks[name] = memory(name, models, samples, scratch)
    providers = {name: rm.load(spec) for name, spec in models.specs.items()}
    results.parameters = sum(parameter.numel() for parameter in providers[ONE].model.parameters())  # type: ignore[attr-defined]
    scores = {name: provider.score(samples) for name, provider in providers.items()}
    for number in range(MEMBERS):
        difference = abs(scores[LORA].parts[str(number)].values - scores[APART].parts[str(number)].values).max()
        if not difference <= TOLERANCE * (1 + abs(scores[APART].values).max()):
            raise SystemExit(f"Member {number} of {LORA} differs by {difference:.1e} from its adapter by itself.")
    results.seconds = medians({name: partial(provider.score, samples) for name, provider in providers.items()}, rounds)
    with waiting_members(2) as others:
        batch = batch_of(providers[ONE], samples, LOCAL)
        together = rm.load({"provider": "ensemble", "members": [others[0], providers[ONE], others[1]]})
        waiting = {HERE: providers[ONE], WAITING: others[0], TOGETHER: together}
        results.seconds |= medians({name: partial(provider.score, batch) for name, provider in waiting.items()}, rounds)
    return results


def medians(timed: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, all of them run in turn, `rounds` times and once before that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, run in timed.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
        print(
            f"round {number} of {rounds}: " + ", ".join(f"{name} {found[-1]:.2f} s" for name, found in times.items()),
            flush=True,
        )
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def batch_of(provider: rm.Provider, samples: Sequence[rm.Sample], seconds: float) -> list[rm.Sample]:
    """As many different samples as a provider scores in about `seconds`."""
    batch = list(samples)
    for _ in range(3):
        provider.score(batch)
        started = time.perf_counter()
        provider.score(batch)
        wanted = max(1, round(len(batch) * seconds / (time.perf_counter() - started)))
        around = [divmod(place, len(samples)) for place in range(wanted)]
        batch = [rm.Sample(f"{turn} {samples[row].prompt}", samples[row].completion) for turn, row in around]
    return batch


@contextmanager
def waiting_members(number: int) -> Iterator[list[rm.Provider]]:
    """Members that each ask a server of its own over a socket, which answers after a while."""
    with ExitStack() as stack:
        yield [_asking(stack.enter_context(_server())) for _ in range(number)]


@contextmanager
def _server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            completions = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(LATENCY)
            body = json.dumps([0.0] * len(completions)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def _asking(url: str) -> rm.Provider:
    def ask(completions: list[str]) -> list[float]:
        request = urllib.request.Request(url, json.dumps(completions).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: list[float] = json.load(answer)
            return found

    return rm.load({"provider": "function", "function": ask, "concurrent": True})


def memory(name: str, models: Models, samples: Sequence[rm.Sample], scratch: Path) -> tuple[int, int]:
    """Bytes of a contender's parameters, and by how many a process grew at most that loaded it and scored."""
    path = scratch / "memory.json"
    texts = [[str(sample.prompt), str(sample.completion)] for sample in samples]
    path.write_text(json.dumps([models.adapters[0], models.specs[name], texts]), encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-m", MODULE, "--memory-of", str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if found.returncode:
        raise SystemExit(f"The process that measures the memory of {name} ended with {found.returncode}.")
    parameters, peak = map(int, found.stdout.split()[-2:])
    print(f"memory of {name}: parameters {parameters / 2**20:,.0f} MiB, peak {peak / 2**20:,.0f} MiB", flush=True)
    return parameters, peak


def _print_memory(path: str) -> None:
    anything, spec, texts = json.loads(Path(path).read_text(encoding="utf-8"))
    samples = [rm.Sample(*text) for text in texts]
    rm.load(anything).score(samples[:1])  # which imports whatever is needed
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is counted from here
    provider = rm.load(spec)
    provider.score(samples)
    models = {id(model): model for _, found in provider.walk() if (model := getattr(found, "model", None)) is not None}
    size = sum(parameter.nbytes for model in models.values() for parameter in model.parameters())
    print(size, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("The memory of a process is read in /proc, which this system does not have.")


def section(results: Results, command: str, rounds: int) -> str:
    """The section of the page."""
    slowest = max(HERE, WAITING, key=lambda name: results.seconds[name])
    targets = [
        (f"{HEADS}: time, relative to one model", 1.1, results.ratio(HEADS, ONE)),
        (f"{MEMBERS} adapters: parameters, relative to one adapter", 1.2, results.ratio(LORA, ONE_ADAPTER, results.bytes)),
        (f"{MEMBERS} adapters: peak memory, relative to one adapter", 1.2, results.ratio(LORA, ONE_ADAPTER, results.peaks)),
        ("a local member and two that wait 300 ms: time, relative to the slowest", 1.15, results.ratio(TOGETHER, slowest)),
    ]
    goals = [
        (what, f"at most {goal:g}x", f"{found:.2f}x", "met" if found <= goal else "missed") for what, goal, found in targets
    ]
    speeds = [(name, f"{results.seconds[name]:.2f}", f"{results.ratio(name, ONE):.2f}") for name in (ONE, HEADS)]
    speeds += [
        (name, f"{results.seconds[name]:.2f}", f"{results.ratio(name, ONE):.2f}") for name in (ONE_ADAPTER, LORA, APART, WHOLE)
    ]
    sizes = [
        (
            name,
            f"{results.bytes[name] / 2**20:,.0f}",
            f"{results.ratio(name, ONE_ADAPTER, results.bytes):.2f}",
            f"{results.peaks[name] / 2**20:,.0f}",
            f"{results.ratio(name, ONE_ADAPTER, results.peaks):.2f}",
        )
        for name in (ONE_ADAPTER, LORA, APART, WHOLE)
    ]
    waits = [(name, f"{results.seconds[name]:.2f}", f"{results.ratio(name, HERE):.2f}") for name in (HERE, WAITING, TOGETHER)]
    return "\n\n".join(
        [
            f"Made by `{command}`: {machine()}",
            f"{results.rows} rows, with several completions per prompt, through Qwen2 with {results.parameters / 1e6:.1f}M parameters and "
            f"random weights, in float32\non the CPU. Contenders run in turn. Seconds are medians of {rounds} rounds after one "
            "warm-up call of each. The page on\n[ensembles](providers/ensembles.md) describes the contenders.",
            table(("", "wanted", "measured", ""), goals),
            table(("", "seconds", "relative to one model"), speeds),
            "Every member of the `lora-ensemble` gives the same scores as its adapter alone. Memory is measured in a separate process\n"
            "after its libraries are loaded: the parameters, and the largest growth of the process during loading and scoring.",
            table(("", "parameters in MiB", "relative to one", "growth in MiB", "relative to one"), sizes),
            "The members that wait send requests to servers that answer after 300 ms. The local member computes as many rows as take\n"
            "about 400 ms.",
            table(("", "seconds", "relative to the local member"), waits),
        ]
    )


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="times each contender runs, in turn (default: 7)")
    parser.add_argument("--output", type=Path, help=f"the page that is written (default: {PAGE.relative_to(ROOT)})")
    parser.add_argument("--small", action="store_true", help="check this script with tiny sizes; writes no page but --output")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the texts (default: ../shared/data)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if arguments.memory_of:
        _print_memory(arguments.memory_of)
        return
    if arguments.rounds < 1:
        raise SystemExit(f"--rounds must be at least 1, not {arguments.rounds}.")
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(SMALL if arguments.small else Sizes(), arguments.rounds, arguments.data, Path(scratch))
    shown = shlex.join(sys.argv[1:])
    found = section(results, f"python -m {MODULE} {shown}" if shown else "make bench-ensembles", arguments.rounds)
    print(f"\n{found}")
    output = arguments.output or (None if arguments.small else PAGE)
    if output is not None:
        page = output.read_text(encoding="utf-8") if output.is_file() else f"{TITLE}\n"
        write_atomically(output, with_section(page, ENSEMBLES, found))


if __name__ == "__main__":
    main()
