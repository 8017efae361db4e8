"""How fast a reward model is trained: ours beside TRL's RewardTrainer, on the same batches from the same start.

Run it with ``make bench-training``; it writes its section of ``docs/benchmarks.md``. Needs the real data that the tests use.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer as TrlRewardTrainer

from rm_plugins.engine.packing import Packing
from rm_plugins.files import write_atomically
from rm_plugins_trl import RewardConfig, RewardTrainer
from tests.benchmarks.models import DecoderSize, save_decoder, train_tokenizer
from tests.benchmarks.page import TITLE, TRAINING, machine, table, with_section
from tests.benchmarks.scoring import DATA, PAGE, ROOT
from tests.benchmarks.texts import data_rows

MODULE = "tests.benchmarks.training"
OURS, APART, TRL = "rm-plugins", "rm-plugins with `share_prompts=False`", "TRL's RewardTrainer"
PAIRS = 8
TARGET = 2.0
TOLERANCE = 1e-4
TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|end|>' }}{% endfor %}"


@dataclass(slots=True)
class Measured:
    """What training took.

    Args:
        seconds: The seconds of every counted step, by contender.
        losses: The losses of the steps of one training, by contender.
        padded_tokens: Tokens of the batches as TRL pads them.
        tokens: Tokens of the batches' rows.
        unique_tokens: The same with the beginnings that rows of a batch have in common counted once.
        parameters: Of the model.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    padded_tokens: int = 0
    tokens: int = 0
    unique_tokens: int = 0
    parameters: int = 0

    def step(self, name: str) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds[name])

    def difference(self, name: str) -> float:
        """The largest relative difference of a loss from TRL's."""
        pairs = zip(self.losses[name], self.losses[TRL], strict=True)
        return max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)


class StepTimes(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """The seconds of each step of a training, in which a GPU has done all of its work."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = _now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop it."""
        self.seconds.append(_now() - self._started)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def measure(rows: Sequence[Mapping[str, Any]], size: DecoderSize, steps: int, rounds: int, scratch: Path) -> Measured:
    """Train with every contender in turn.

    Args:
        rows: Preference pairs.
        size: The decoder's size.
        steps: Steps of a training; the first is not timed.
        rounds: Trainings with each contender.
        scratch: A folder for the model.

    Raises:
        SystemExit: A loss differs from TRL's by more than `TOLERANCE`.
    """
    texts = [message["content"] for row in rows for name in ("prompt", "chosen", "rejected") for message in row[name]]
    tokenizer = train_tokenizer(texts, size.vocabulary)
    tokenizer.chat_template = TEMPLATE
    model = save_decoder(scratch / "decoder", size, tokenizer)
    shuffled = random.Random(0).sample(list(rows), len(rows))
    data = Dataset.from_list([{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in shuffled])
    found = Measured()
    for number, name in itertools.product(range(rounds), (OURS, APART, TRL)):
        settings = {"output_dir": str(scratch / "out"), "max_steps": steps, "bf16": False, "use_cpu": True}
        trainer = trainer_of(name, str(model), AutoTokenizer.from_pretrained(model), data, settings)
        seconds, found.losses[name] = trained(trainer)
        found.seconds.setdefault(name, []).extend(seconds[1:])
        found.parameters = trainer.model.num_parameters()
        if name == OURS and not found.tokens:
            _count_tokens(trainer, steps, found)
        print(f"round {number + 1} of {rounds}: {name}: {found.step(name):.2f} s a step", flush=True)
    for name in (OURS, APART):
        if not found.difference(name) <= TOLERANCE:
            raise SystemExit(f"A loss of {name} differs from TRL's by {found.difference(name):.1e}; {TOLERANCE} is allowed.")
    return found


def trainer_of(
    name: str, model: Any, tokenizer: Any, data: Dataset, changes: Mapping[str, Any], peft_config: Any = None
) -> Any:
    """A contender's trainer.

    Args:
        name: The contender.
        model: A folder or a model, which is trained in place.
        tokenizer: Its tokenizer.
        data: The preference pairs.
        changes: Settings that differ from those below.
        peft_config: The adapter that is trained instead of the model, if any.
    """
    settings: dict[str, Any] = {
        "per_device_train_batch_size": PAIRS,
        "learning_rate": 1e-4,
        "warmup_steps": 0,
        "max_length": 1_024,
        "gradient_checkpointing": False,
        "seed": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **changes,
    }
    parts = {"train_dataset": data, "processing_class": tokenizer, "peft_config": peft_config}
    if name == TRL:
        return TrlRewardTrainer(model, TrlRewardConfig(**settings), **parts)
    return RewardTrainer(model, RewardConfig(**settings, share_prompts=name == OURS), **parts)


def trained(trainer: Any) -> tuple[list[float], list[float]]:
    """The seconds of each step and its loss."""
    times = StepTimes()
    trainer.add_callback(times)
    trainer.train()
    return times.seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _count_tokens(trainer: Any, steps: int, found: Measured) -> None:
    for batch in itertools.islice(trainer.get_train_dataloader(), steps):
        rows = [row.tolist() for row in batch["rows"]]
        found.padded_tokens += len(rows) * max(map(len, rows))
        found.tokens += sum(map(len, rows))
        found.unique_tokens += Packing(rows).ids.shape[1]


def section(measured: Measured, command: str, steps: int, rounds: int) -> str:
    """The section of the page."""
    rows = [
        (
            name,
            f"{measured.step(name):.2f}",
            f"{PAIRS / measured.step(name):.2f}",
            f"{measured.step(TRL) / measured.step(name):.2f}x",
            f"{measured.difference(name):.0e}" if name != TRL else "",
        )
        for name in (OURS, APART, TRL)
    ]
    ratio = measured.step(TRL) / measured.step(OURS)
    head = ("", "seconds per step", "pairs per second", "speed relative to TRL's", "largest relative difference of a loss")
    return (
        f"Made by `{command}`: {machine()}\n\n"
        f"LLMBar's pairs in batches of {PAIRS} through Qwen2 with {measured.parameters / 1e6:.1f}M parameters and random weights, in "
        f"float32 on the CPU, without\ngradient checkpointing, which is TRL's faster setting. Every trainer starts from the same "
        f"weights with the same seed, so all see\nthe same batches. Each runs {rounds} trainings of {steps} steps, in turn. Figures "
        f"are medians of a step, without the first step of each training.\n\n{table(head, rows)}\n\n"
        f"Targets: at least {TARGET:g} times TRL's pairs per second, and losses of the first 20 steps that differ from TRL's by at most "
        f"{TOLERANCE:g}\n(relative): {'met' if ratio >= TARGET else 'missed'}.\n\nTRL pads the "
        f"{measured.tokens:,} tokens of these batches to {measured.padded_tokens:,}. Ours computes {measured.unique_tokens:,}, because "
        f"it does not pad, and\ncomputes a prompt once for both of its answers, in the forward and the backward pass. That is "
        f"{measured.padded_tokens / measured.unique_tokens:.2f} times fewer. The speed-up can\nbe larger, because without padding "
        "attention needs no padding mask."
    )


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="trainings with each trainer, in turn (default: 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a training (default: 20)")
    parser.add_argument("--output", type=Path, help=f"the page that is written (default: {PAGE.relative_to(ROOT)})")
    parser.add_argument("--small", action="store_true", help="check this script with tiny sizes; writes no page but --output")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the pairs (default: ../shared/data)")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.steps < 2:
        raise SystemExit("--rounds must be at least 1, and --steps at least 2.")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    size = DecoderSize(vocabulary=1_024, hidden=64, intermediate=128, layers=2, heads=4) if arguments.small else DecoderSize()
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(data_rows(arguments.data, "llmbar"), size, arguments.steps, arguments.rounds, Path(scratch))
    shown = shlex.join(sys.argv[1:])
    command = f"python -m {MODULE} {shown}" if shown else "make bench-training"
    found = section(measured, command, arguments.steps, arguments.rounds)
    print(f"\n{found}")
    output = arguments.output or (None if arguments.small else PAGE)
    if output is not None:
        page = output.read_text(encoding="utf-8") if output.is_file() else f"{TITLE}\n"
        write_atomically(output, with_section(page, TRAINING, found))


if __name__ == "__main__":
    main()
