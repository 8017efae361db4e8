"""What quantized weights cost: the time, the memory and the scores of each scheme, beside the model as it is."""

from __future__ import annotations

import numpy as np
import torch

import rm_plugins as rm
from rm_plugins.errors import RmPluginsError
from tests.benchmarks.gpu.run import Run, gibibytes
from tests.benchmarks.gpu.shapes import QWEN_HALF

AS_IT_IS = "as it is"
SCHEMES = ("int8", "int4", "nf4")


def measure(run: Run) -> None:
    """The same samples by each; a scheme whose library is missing is named with the reason."""
    folder = run.scratch / "quantized"
    model = run.build(QWEN_HALF)
    model.save_pretrained(folder)
    run.workloads.tokenizer.save_pretrained(folder)
    del model
    samples = run.workloads.scored(run.shape(QWEN_HALF).positions)["mixed"]
    expected = None
    for name in (AS_IT_IS, *SCHEMES):
        run.free()
        if run.left() <= 0:
            run.write(name, {}, note="no time left")
            continue
        spec = {"provider": "sequence-classifier", "model": str(folder), "device": str(run.device)}
        spec |= {"dtype": str(run.dtype).removeprefix("torch.")} | ({} if name == AS_IT_IS else {"quantization": name})
        try:
            before = torch.cuda.memory_allocated(run.device) if run.device.type == "cuda" else None
            rewards = rm.load(spec)
            held = None if before is None else torch.cuda.memory_allocated(run.device) - before
            scores, timing = run.timed(lambda rewards=rewards: rewards.score(samples), share=0.3)  # type: ignore[misc]
        except (RmPluginsError, RuntimeError, ImportError) as error:
            if name == AS_IT_IS or "CUDA error" in str(error):
                raise
            run.write(name, {}, note=f"not measured: {str(error).partition(chr(10))[0]}"[:300])
            continue
        expected = scores.values if expected is None else expected
        run.write(
            name,
            {
                "seconds": timing.seconds,
                "GiB of the weights": gibibytes(held),
                "peak GiB": gibibytes(timing.peak),
                "standard deviation of the change": float(np.std(scores.values - expected)),
                "deviation": float(np.std(scores.values)),
            },
        )
        del rewards
