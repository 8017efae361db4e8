"""How fast a reward is scored: ours beside TRL's own path, transformers' pipeline and CrossEncoder, in one run on one machine.

Run it with ``make bench``; it writes ``docs/benchmarks.md``. Needs the real model and data that the tests use.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers.utils import logging as transformers_logging

import rm_plugins as rm
from rm_plugins.files import write_atomically
from tests.benchmarks import grpo_step
from tests.benchmarks.contenders import OURS, TRL, Measured, loaded, measure, padded_batch
from tests.benchmarks.models import DecoderSize, save_decoder, save_minilm, save_policy, train_tokenizer
from tests.benchmarks.page import (
    ENSEMBLES,
    GPU,
    MEMORY,
    ONE_FORWARD,
    SHARDED,
    TRAINING,
    Planning,
    Results,
    render,
    section,
    with_section,
)
from tests.benchmarks.texts import Texts, random_rows, spread

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
PAGE = ROOT / "docs" / "benchmarks.md"
MODULE = "tests.benchmarks.scoring"

SHORTEST_COMPLETION, LONGEST_COMPLETION = 32, 160


_DECODER = DecoderSize()
_POLICY = DecoderSize(hidden=128, intermediate=256, layers=2, heads=4)
_TINY = DecoderSize(vocabulary=1_024, hidden=64, intermediate=128, layers=2, heads=4)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything is measured; the defaults are those of the page."""

    answers: int = 400
    most_tokens: int = 512
    groups: int = 4
    prompt_tokens: int = 512
    completions: int = 8
    solved: int = 16
    planned: int = 12_500
    steps: int = 4
    passes: int = 2
    decoder: DecoderSize = _DECODER
    policy: DecoderSize = _POLICY
    dense: tuple[tuple[int, int], ...] = ((16, 64), (32, 64), (8, 128), (16, 128), (4, 256), (8, 256), (4, 512))

    @property
    def titles(self) -> dict[str, tuple[str, str]]:
        """Each shape's heading and what is scored, by letter."""
        first, last = SHORTEST_COMPLETION, LONGEST_COMPLETION
        return {
            "a": (
                "Real texts through MiniLM",
                f"LLMBar's answers and their prompts, of at most {self.most_tokens} tokens, through an encoder",
            ),
            "b": (
                "Long prompts through a decoder",
                f"{self.groups} prompts of about {self.prompt_tokens} tokens with {self.completions} completions each, of {first} "
                f"to {last} tokens, through Qwen2 with random weights",
            ),
            "c": (
                "Real solutions through a decoder",
                f"{self.solved} of gsm8k's problems with four solutions each, through the same decoder",
            ),
        }


SMALL = Sizes(
    answers=12,
    most_tokens=64,
    groups=2,
    prompt_tokens=64,
    completions=3,
    solved=4,
    planned=100,
    steps=3,
    passes=1,
    decoder=_TINY,
    policy=_TINY,
    dense=((4, 64), (2, 128)),
)


class Benchmark:
    """One run: the models and texts that several shapes need are made once.

    Args:
        texts: What is scored.
        sizes: How much of it.
        rounds: Times each contender runs.
        scratch: Where models are saved.
    """

    def __init__(self, texts: Texts, sizes: Sizes, rounds: int, scratch: Path) -> None:
        self.texts = texts
        self.sizes = sizes
        self.rounds = rounds
        self.scratch = scratch
        self.tokenizer: Any = train_tokenizer(texts.corpus(), sizes.decoder.vocabulary)
        self.decoder = save_decoder(scratch / "decoder", sizes.decoder, self.tokenizer)

    def answers(self) -> Measured:
        """(a) Real texts through MiniLM, with the peak memory of ours and TRL's way."""
        folder = save_minilm(self.scratch / "minilm")
        rewards = rm.load(folder)
        samples = self.texts.answers(rewards.renderer, self.sizes.answers, self.sizes.most_tokens)
        peaks = peak_memory(folder, [rewards.render(sample) for sample in samples], self.scratch)
        return replace(measure("a", folder, samples, self.rounds, self.sizes.dense), peaks=peaks)

    def groups(self) -> Measured:
        """(b) Long prompts with several completions through a decoder."""
        sizes = self.sizes
        lengths = spread(SHORTEST_COMPLETION, LONGEST_COMPLETION, sizes.completions)
        samples = self.texts.groups(self.tokenizer, sizes.groups, sizes.prompt_tokens, lengths)
        return measure("b", self.decoder, samples, self.rounds, sizes.dense)

    def solutions(self) -> Measured:
        """(c) Real problems with four solutions each through the same decoder."""
        return measure("c", self.decoder, self.texts.solutions(self.sizes.solved), self.rounds, self.sizes.dense)

    def steps(self) -> dict[str, float]:
        """(d) Median seconds of a whole step of GRPO by reward."""
        sizes = self.sizes
        policy = save_policy(self.scratch / "policy", sizes.policy, self.tokenizer)
        prompts = self.texts.prompts(self.tokenizer, grpo_step.PROMPTS * sizes.steps, sizes.prompt_tokens)
        return grpo_step.measure_steps(policy, self.decoder, prompts, sizes.steps, sizes.passes)

    def planning(self, throughput: float) -> Planning:
        """What planning many rows takes, beside scoring them with `throughput` computed tokens per second."""
        rows = random_rows(self.sizes.planned, 8, len(self.tokenizer))
        engine = rm.load(self.decoder).trained.engine  # type: ignore[attr-defined]
        started = time.perf_counter()
        plan = engine._plan(rows, share_prefixes=True)  # with the budget and the costs that the engine itself uses
        seconds = time.perf_counter() - started
        print(f"planning {len(rows):,} rows: {seconds:.2f} s", flush=True)
        return Planning(len(rows), sum(map(len, rows)), plan.tokens, seconds, throughput)


def peak_memory(folder: Path, texts: list[str], scratch: Path) -> dict[str, int]:
    """Bytes at the peak of a process that does nothing else than score the texts, by contender."""
    path = scratch / "texts.json"
    path.write_text(json.dumps(texts), encoding="utf-8")
    peaks = {}
    for name in (OURS, TRL):
        command = [sys.executable, "-m", MODULE, "--peak-memory-of", name, str(folder), str(path)]
        found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if found.returncode:
            raise SystemExit(f"The process that measures the peak memory of {name} ended with {found.returncode}.")
        peaks[name] = int(found.stdout.split()[-1])
        print(f"(a) peak memory of {name}: {peaks[name] / 2**20:,.0f} MiB", flush=True)
    return peaks


def _score_once(name: str, folder: str, path: str) -> None:
    """Score the texts of a file, and print this process's peak memory in bytes."""
    texts = json.loads(Path(path).read_text(encoding="utf-8"))
    if name == TRL:
        padded_batch(*loaded(Path(folder)), texts)()
    else:
        rm.load(folder).score([rm.Sample("", text) for text in texts])
    print(own_peak_memory())


def own_peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    # Linux hands its parent's peak on to a process that it starts, in getrusage but not in /proc.
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(texts: Texts, sizes: Sizes, arguments: argparse.Namespace) -> Results:
    """Measure the shapes that are asked for."""
    shown = shlex.join(sys.argv[1:])
    results = Results(f"python -m {MODULE} {shown}" if shown else "make bench", arguments.rounds, sizes.titles)
    with tempfile.TemporaryDirectory() as scratch:
        benchmark = Benchmark(texts, sizes, arguments.rounds, Path(scratch))
        measures: dict[str, Callable[[], Measured]] = {
            "a": benchmark.answers,
            "b": benchmark.groups,
            "c": benchmark.solutions,
        }
        for letter in sorted(measures.keys() & arguments.shapes):
            results.shapes[letter] = measures[letter]()
        if "d" in arguments.shapes:
            results.steps = benchmark.steps()
            results.steps_are = _steps_are(sizes)
        # The faster the scoring that it is compared with, the more the planning weighs.
        throughputs = [measured.throughput for letter, measured in results.shapes.items() if letter != "a"]
        if throughputs:
            results.planning = benchmark.planning(max(throughputs))
    return results


def _steps_are(sizes: Sizes) -> str:
    return (
        f"TRL's `GRPOTrainer` on the CPU, with {grpo_step.PROMPTS} prompts of about {sizes.prompt_tokens} tokens of LLMBar's text. A "
        f"small Qwen2 policy writes {grpo_step.GENERATIONS} generations\nof at most {grpo_step.COMPLETION_TOKENS} tokens for each, and the "
        f"decoder of (b) scores them. Figures are medians of `step_time` in {sizes.passes} trainings of {sizes.steps} steps\nwith each "
        "reward in turn, without the first step. The reward that costs nothing shows the cost of the rest of a step. The first two\n"
        "rewards are the same model: once as `reward_func(folder)`, once given to TRL as it is. They score the same texts, without EOS,\n"
        "and their mean rewards of the first step agree."
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times each contender runs, in turn (default: 5)")
    parser.add_argument("--output", type=Path, help=f"the page that is written (default: {PAGE.relative_to(ROOT)})")
    parser.add_argument("--shapes", nargs="+", choices="abcd", default=list("abcd"), help="what is measured (default: all)")
    parser.add_argument("--small", action="store_true", help="check this script with tiny sizes; writes no page but --output")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the texts (default: ../shared/data)")
    parser.add_argument("--peak-memory-of", nargs=3, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure, and write the page."""
    arguments = parser().parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if arguments.peak_memory_of:
        _score_once(*arguments.peak_memory_of)
        return
    if arguments.rounds < 1:
        raise SystemExit(f"--rounds must be at least 1, not {arguments.rounds}.")
    page = render(run(Texts(arguments.data), SMALL if arguments.small else Sizes(), arguments))
    print(f"\n{page}")
    output = arguments.output or (None if arguments.small else PAGE)
    if output is not None:
        before = output.read_text(encoding="utf-8") if output.is_file() else ""
        for heading in (ONE_FORWARD, TRAINING, MEMORY, SHARDED, ENSEMBLES, GPU):
            page = with_section(page, heading, section(before, heading))
        write_atomically(output, page)


if __name__ == "__main__":
    main()
