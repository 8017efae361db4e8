"""What torch.compile brings to scoring, and what compiling takes."""

from __future__ import annotations

import numpy as np
import torch

from rm_plugins.engine.engine import ScoringEngine
from tests.benchmarks.gpu.parts.scoring import Scorers
from tests.benchmarks.gpu.run import Run
from tests.benchmarks.gpu.shapes import QWEN_HALF


def measure(run: Run) -> None:
    """Rows of mixed lengths, which run whole, through the model as it is and compiled."""
    if run.is_miniature:
        torch.compiler.set_stance("force_eager")  # compiling a miniature takes longer than all else
    model = run.build(QWEN_HALF)
    scorers = Scorers(model, run.workloads.tokenizer)
    ids, _ = scorers.renderer.token_ids(run.workloads.scored(run.shape(QWEN_HALF).positions)["mixed"])
    expected = None
    for name, compiles in (("as it is", False), ("compiled", True)):
        engine = ScoringEngine(model, share_prefixes=False, compile=compiles)
        started = run.now()
        engine.outputs(ids)
        first = run.now() - started
        (outputs, _), timing = run.timed(lambda engine=engine: engine.outputs(ids), share=0.3)  # type: ignore[misc]
        expected = outputs if expected is None else expected
        run.write(
            name,
            {
                "first call's seconds": first,
                "seconds": timing.seconds,
                "tokens/s": sum(map(len, ids)) / timing.seconds,
                "largest difference": float(np.abs(outputs - expected).max()),
            },
        )
