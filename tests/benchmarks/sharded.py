"""How fast two processes train with sharded weights: beside DDP, on the same batches from the same start, in turn.

Run it with ``make bench-sharded``; it writes its section of ``docs/benchmarks.md``. Needs the real data that the tests use.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import distributed, nn
from transformers import AutoModelForSequenceClassification

from rm_plugins import processes
from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.files import write_atomically
from rm_plugins.losses import RewardBatch
from rm_plugins_trl.reward_training.global_batch import global_batch, summed_gradient
from tests.benchmarks.models import DecoderSize, save_decoder, train_tokenizer
from tests.benchmarks.page import SHARDED, TITLE, machine, table, with_section
from tests.benchmarks.scoring import DATA, PAGE, ROOT
from tests.benchmarks.texts import data_rows
from tests.losses.conftest import loss_of
from tests.sharded.launcher import outcomes, run
from tests.sharded.steps import backward, sharded

MODULE = "tests.benchmarks.sharded"
DDP, FSDP = "DDP", "FSDP2"
PAIRS = 4
"""Of each process."""
TARGET = 1.15
TOLERANCE = 1e-4

Rows = list[list[int]]


@dataclass(slots=True)
class Measured:
    """What the steps of process 0 took.

    Args:
        seconds: The seconds of each counted step, by contender.
        exchanges: The seconds of each counted step that our own exchanges took, which include waiting for the other process.
        losses: The losses, by contender.
        parameters: Of the model.
        tokens: The tokens of a step in both processes, on average.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {DDP: [], FSDP: []})
    exchanges: dict[str, list[float]] = field(default_factory=lambda: {DDP: [], FSDP: []})
    losses: dict[str, list[float]] = field(default_factory=lambda: {DDP: [], FSDP: []})
    parameters: int = 0
    tokens: float = 0.0

    def step(self, name: str) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds[name])

    @property
    def ratio(self) -> float:
        """The median of the times of sharded steps, each relative to DDP's on the same batch."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.seconds[FSDP], self.seconds[DDP], strict=True))


def measure(folder: Path, model: Path, batches: Sequence[Sequence[Rows]]) -> None:
    """What each of two processes does: take every batch with both contenders, and write what was measured.

    Args:
        folder: Where process 0 writes.
        model: The model's folder.
        batches: Rows of each process by batch; a row follows the one that it won against.
    """
    models = {DDP: _model(model), FSDP: _model(model)}
    found = Measured(parameters=sum(weight.numel() for weight in models[DDP].parameters()))
    found.tokens = sum(len(row) for batch in batches for rows in batch for row in rows) / len(batches)
    wrapped = {DDP: nn.parallel.DistributedDataParallel(models[DDP]), FSDP: sharded(models[FSDP])}
    optimizers = {name: torch.optim.SGD(one.parameters(), lr=1e-3) for name, one in wrapped.items()}
    spent = _watched_exchanges()
    for number, batch in enumerate(batches):
        for name in (DDP, FSDP) if number % 2 else (FSDP, DDP):
            distributed.barrier()
            before, started = sum(spent), perf_counter()
            found.losses[name].append(_step(models[name].batch_forward, wrapped[name], optimizers[name], batch))
            if number > 1:  # the first batches are checked and warm up
                found.seconds[name].append(perf_counter() - started)
                found.exchanges[name].append(sum(spent) - before)
    if distributed.get_rank() == 0:
        facts = {name: getattr(found, name) for name in Measured.__slots__}
        (folder / "measured.json").write_text(json.dumps(facts), encoding="utf-8")


def _model(folder: Path) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).train()
    model.batch_forward = BatchForward(model, None)
    return model


def _step(forward: BatchForward, wrapped: Any, optimizer: Any, batch: Sequence[Rows]) -> float:
    rank, rows = distributed.get_rank(), batch[distributed.get_rank()]
    with forward.attention():
        outputs = wrapped(rows=rows)
        pairs = torch.arange(len(rows)).view(-1, 2).flip(1)
        own = RewardBatch.of(outputs.logits, pairs=pairs, groups=[number // 2 for number in range(len(rows))])
        loss = loss_of({"name": "bradley-terry"})(global_batch(own, len(batch), rank))
        backward(summed_gradient(loss, len(batch)))
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _watched_exchanges() -> list[float]:
    """The seconds of all exchanges from now on."""
    spent: list[float] = []
    exchanged: Callable[..., Any] = vars(processes)["_exchanged"]

    def timed(*arguments: Any) -> Any:
        started = perf_counter()
        found = exchanged(*arguments)
        spent.append(perf_counter() - started)
        return found

    vars(processes)["_exchanged"] = timed
    return spent


def batches_of(rows: Sequence[Mapping[str, Any]], tokenizer: Any, count: int) -> list[list[Rows]]:
    """Batches of pairs for two processes, the loser before the winner."""
    pairs = random.Random(0).choices(list(rows), k=count * 2 * PAIRS)

    def ids(row: Mapping[str, Any], answer: str) -> list[int]:
        text = "\n".join(message["content"] for name in ("prompt", answer) for message in row[name])
        encoded: list[int] = tokenizer(text).input_ids[-1_024:]
        return encoded

    texts = [ids(row, answer) for row in pairs for answer in ("rejected", "chosen")]
    return [
        [texts[start + process * 2 * PAIRS :][: 2 * PAIRS] for process in range(2)] for start in range(0, len(texts), 4 * PAIRS)
    ]


def section(measured: Measured, command: str) -> str:
    """The section of the page."""
    rows = [
        (
            name,
            f"{measured.step(name):.3f}",
            f"{1.0 if name == DDP else measured.ratio:.2f}",
            f"{1000 * statistics.median(measured.exchanges[name]):.1f}",
        )
        for name in (DDP, FSDP)
    ]
    head = ("weights", "seconds per step", "relative to DDP", "of it our own exchanges, in ms")
    return (
        f"Made by `{command}`: {machine()}\n\n"
        f"Two processes on the CPU, one thread each, train Qwen2 with {measured.parameters / 1e6:.1f}M parameters on LLMBar's "
        f"pairs, {PAIRS} for each process\n({measured.tokens:,.0f} tokens per step). Every batch is a step of both, in turn. "
        f"Figures are medians of {len(measured.seconds[DDP])} steps; the\nratio is the median of the ratios on the same batch. FSDP2 "
        f"shards each layer and gathers it again in the backward pass, over gloo.\n\n{table(head, rows)}\n\n"
        f"Target: at most {TARGET:g} times DDP's time: {'met' if measured.ratio <= TARGET else 'missed'}. The exchanges include the "
        "wait for the other process, which has\nother rows. Nothing is exchanged to find out who is late: a process that waits for "
        "more than two seconds tells the others then."
    )


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="steps with each (default: 20)")
    parser.add_argument("--output", type=Path, help=f"the page that is written (default: {PAGE.relative_to(ROOT)})")
    parser.add_argument("--small", action="store_true", help="check this script with tiny sizes; writes no page but --output")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the pairs (default: ../shared/data)")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        raise SystemExit("--steps must be at least 1.")
    rows = data_rows(arguments.data, "llmbar")
    size = DecoderSize(vocabulary=1_024, hidden=64, intermediate=128, layers=2, heads=4) if arguments.small else DecoderSize()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = [message["content"] for row in rows for name in ("prompt", "chosen", "rejected") for message in row[name]]
        tokenizer = train_tokenizer(texts, size.vocabulary)
        model = save_decoder(folder / "decoder", size, tokenizer)
        case = partial(measure, folder, model, batches_of(rows, tokenizer, arguments.steps + 2))
        run({"steps": case}, folder, 2)
        ended = outcomes(folder, 2).get("steps", {})
        if ended != {0: "ok", 1: "ok"}:
            raise SystemExit(
                "\n".join(ended.values()) or "The processes took too long. Measure on an idle machine, or fewer --steps."
            )
        measured = Measured(**json.loads((folder / "measured.json").read_text(encoding="utf-8")))
    for ours, theirs in zip(measured.losses[FSDP], measured.losses[DDP], strict=True):
        if abs(ours - theirs) > TOLERANCE:
            raise SystemExit(f"A loss differs: {ours} with sharded weights, {theirs} with DDP.")
    shown = shlex.join(sys.argv[1:])
    found = section(measured, f"python -m {MODULE} {shown}" if shown else "make bench-sharded")
    print(f"\n{found}")
    output = arguments.output or (None if arguments.small else PAGE)
    if output is not None:
        page = output.read_text(encoding="utf-8") if output.is_file() else f"{TITLE}\n"
        write_atomically(output, with_section(page, SHARDED, found))


if __name__ == "__main__":
    main()
