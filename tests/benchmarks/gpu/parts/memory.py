"""What happens when the device really runs out of memory: the budget is halved, and the scores stay."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from rm_plugins.engine.engine import ScoringEngine
from tests.benchmarks.gpu.parts.scoring import Scorers
from tests.benchmarks.gpu.run import GIBIBYTE, Run
from tests.benchmarks.gpu.shapes import QWEN_HALF

_TOO_LARGE = 1 << 20
_LEFT = 3 * GIBIBYTE
"""Memory that is left free: enough for a few of the many tokens that the budget allows."""


def measure(run: Run) -> None:
    """The same rows with memory to spare, then with a budget that is far too large and little memory."""
    model = run.build(QWEN_HALF)
    scorers = Scorers(model, run.workloads.tokenizer)
    samples = run.workloads.scored(run.shape(QWEN_HALF).positions)["grouped"]
    ids, _ = scorers.renderer.token_ids(samples)
    plenty = ScoringEngine(model)
    expected, work = plenty.outputs(ids)
    run.write(
        "with memory to spare", {"seconds": work.seconds, "budget before": plenty.max_tokens, "budget after": plenty.max_tokens}
    )
    engine = ScoringEngine(model, _TOO_LARGE)
    run.free()
    ballast = _ballast(run, engine)
    outputs, work = engine.outputs(ids)
    del ballast
    again, later = engine.outputs(ids)
    run.write(
        "after running out of memory",
        {
            "seconds": work.seconds,
            "budget before": _TOO_LARGE,
            "budget after": engine.max_tokens,
            "largest difference": float(np.abs(outputs - expected).max()),
        },
        note="" if engine.max_tokens < _TOO_LARGE else "it did not run out of memory",
    )
    run.write(
        "the next call",
        {
            "seconds": later.seconds,
            "budget before": engine.max_tokens,
            "budget after": engine.max_tokens,
            "largest difference": float(np.abs(again - expected).max()),
        },
    )


def _ballast(run: Run, engine: ScoringEngine) -> Any:
    """Takes all memory but a little; on a CPU, makes the model refuse more than a few tokens."""
    if run.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(run.device)
        return torch.empty(max(0, free - _LEFT), dtype=torch.uint8, device=run.device)
    forward = engine._backbone.forward

    def limited(input_ids: torch.Tensor, **arguments: Any) -> Any:
        if input_ids.numel() > 128:
            raise torch.OutOfMemoryError(f"{input_ids.numel()} tokens are too many")
        return forward(input_ids=input_ids, **arguments)

    limited.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    engine._backbone.forward = limited
    return None
