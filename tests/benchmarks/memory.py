"""How much memory a step of training takes by the length of its rows, each in a process of its own.

Run it with ``python -m tests.benchmarks.memory``, about ten minutes; it writes its section of ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForSequenceClassification, Qwen2Config

from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.files import write_atomically
from tests.benchmarks.page import MEMORY, machine, table, with_section
from tests.benchmarks.scoring import PAGE, ROOT, own_peak_memory

MODULE = "tests.benchmarks.memory"
LENGTHS = (2_048, 8_192, 32_768)
HIDDEN, LAYERS = 64, 2
KINDS = {
    "checkpointing": "one row, gradient checkpointing",
    "row": "one row, no checkpointing",
    "many": "rows of 512 tokens, no checkpointing",
    "again": "rows of 512 tokens, run again for their gradients",
}
_MEBIBYTE = 2**20


def main() -> None:
    """Measure every case, or one of them in this process."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a step")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page with the section")
    parser.add_argument("--case", nargs=2, metavar=("KIND", "LENGTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(_growth(arguments.case[0], int(arguments.case[1])))
        return
    rows = []
    for kind, name in KINDS.items():
        growth = [_in_a_process(kind, length) for length in arguments.lengths]
        rows.append(
            (name, *(f"{value / _MEBIBYTE:,.0f}" for value in growth), f"{growth[-1] / arguments.lengths[-1] / 1024:.1f}")
        )
        print(rows[-1], flush=True)
    text = _section(rows, arguments.lengths)
    before = arguments.page.read_text(encoding="utf-8") if arguments.page.is_file() else ""
    write_atomically(arguments.page, with_section(before, MEMORY, text))


def _in_a_process(kind: str, length: int) -> int:
    command = [sys.executable, "-m", MODULE, "--case", kind, str(length)]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"The process that measures {kind} with {length} tokens ended with {ended.returncode}.")
    return int(ended.stdout.split()[-1])


def _growth(kind: str, length: int) -> int:
    """The bytes by which this process grows at most in a step."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    source = random.Random(0)
    config = Qwen2Config(
        vocab_size=1_000,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=2 * LENGTHS[-1],
        num_labels=1,
        pad_token_id=0,
    )
    model = AutoModelForSequenceClassification.from_config(config).train()
    if kind == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    forward = BatchForward(model)
    forward.recomputes = kind == "again"
    size = length if kind in ("checkpointing", "row") else 512

    def step(lengths: list[int]) -> None:
        with forward.attention():
            rows = [[source.randrange(1, config.vocab_size) for _ in range(tokens)] for tokens in lengths]
            torch.autograd.backward(model(rows=rows).logits.square().mean())

    step([16, 17])
    before = own_peak_memory()
    step([size] * (length // size))
    return own_peak_memory() - before


def _section(rows: list[tuple[str, ...]], lengths: list[int]) -> str:
    head = ("memory of a step in MiB", *(f"{length:,} tokens" for length in lengths), f"KiB per token of {lengths[-1]:,}")
    shown = " ".join(sys.argv[1:])
    return f"""Made by `{f"python -m {MODULE} {shown}".strip()}`: {machine()}

The largest growth of a process in one step of training, after a step of two short rows, with Qwen2 of {LAYERS} layers of width
{HIDDEN}, in float32 on the CPU. Each figure is from a process of its own. The step includes the comparison with padded rows.

{table(head, rows)}

Memory is proportional to tokens, also for one long row: neither a mask nor the scores of attention exist as a whole. The last line is
what happens after the device has run out of memory once: each micro-batch is computed again for its gradients. So the activations of one
micro-batch are kept, instead of those of the whole step."""


if __name__ == "__main__":
    main()
