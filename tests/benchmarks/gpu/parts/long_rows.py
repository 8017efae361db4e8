"""What one long row takes in training: memory and time by its length, with and without activation checkpointing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from rm_plugins.engine.batch_forward import BatchForward
from tests.benchmarks.gpu.run import Run, gibibytes
from tests.benchmarks.gpu.shapes import QWEN_HALF

_LENGTHS = (2_048, 8_192, 32_768)
_MINIATURE_LENGTHS = (64, 128, 256)


def measure(run: Run) -> None:
    """A forward and a backward pass of one row of each length; the memory is that of all but the weights and their gradients."""
    for case, checkpoints in (("checkpointing", True), ("no checkpointing", False)):
        model = run.build(QWEN_HALF).train()
        if checkpoints:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        forward = BatchForward(model)
        for length in _MINIATURE_LENGTHS if run.is_miniature else _LENGTHS:
            row = [3 + place * place % 500 for place in range(length)]
            name = f"a row of {length:,} tokens"
            if run.left() <= 0:
                run.write(name, {}, case=case, note="no time left")
                continue
            try:
                _step(model, forward, row)  # its comparisons are not measured
                held = _held(run)
                _, timing = run.timed(partial(_step, model, forward, row), share=0.2)
            except torch.OutOfMemoryError:
                run.write(name, {}, case=case, note="out of memory")
                run.free()
                continue
            run.write(
                name,
                {
                    "seconds": timing.seconds,
                    "tokens/s": length / timing.seconds,
                    "GiB beside the weights": gibibytes(None if timing.peak is None else timing.peak - held),
                },
                case=case,
                note="" if forward.packs else "packing was stopped: its scores differed",
            )
        del model, forward
        run.free()


def _step(model: Any, forward: BatchForward, row: list[int]) -> None:
    with forward.attention():
        torch.autograd.backward(model(rows=[row]).logits.float().sum())


def _held(run: Run) -> int:
    return torch.cuda.memory_allocated(run.device) if run.device.type == "cuda" else 0
