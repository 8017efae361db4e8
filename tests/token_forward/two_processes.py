"""Started by torchrun on two processes: the gradients of a batch of which each has a half."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from rm_plugins.engine.token_forward import TokenForward
from tests.batch_forward.conftest import family_model, gradients
from tests.token_forward.conftest import completions, language_model

Half = tuple[list[list[int]], list[int]]


def halves() -> list[Half]:
    """Of other sizes; a process has more chunks of tokens and more micro-batches than the other."""
    rows, starts = completions()
    return [(rows[:6], starts[:6]), (rows[6:8], starts[6:8])]


def train(kind: str, half: Half, **wrapper: Any) -> dict[str, torch.Tensor]:
    """The gradients of a half's loss, in DDP if it has settings."""
    model = language_model("llama", tie_word_embeddings=True) if kind == "log_probs" else family_model("llama", {})
    forward = TokenForward(model, 40)
    wrapped = DistributedDataParallel(model, **wrapper) if wrapper else model
    for _ in range(2):  # DDP notices in the second one what was amiss in the first
        with forward.attention():
            output = wrapped(rows=half[0], completion_starts=half[1])
            loss = output[kind].sum() if kind == "token_values" else (output.log_probs + 0.1 * output.entropy).sum()
            found = gradients(model, loss)
    return found


def main() -> None:
    """Write the gradients of this process."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    found = [train(kind, halves()[rank], find_unused_parameters=unused) for unused in (False, True)]
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
