"""How fast a served reward answers many clients, beside the same reward in this process."""

from __future__ import annotations

import asyncio

import rm_plugins as rm
from tests.benchmarks import serving
from tests.benchmarks.gpu.run import Run
from tests.benchmarks.gpu.shapes import QWEN_HALF


def measure(run: Run) -> None:
    """One sample a request, from as many clients as there are, until all samples are scored."""
    folder = run.scratch / "served"
    model = run.build(QWEN_HALF)
    model.save_pretrained(folder)
    run.workloads.tokenizer.save_pretrained(folder)
    del model
    run.free()
    samples = run.workloads.served()
    bodies = serving.bodies_of(samples)
    rewards = rm.load(folder)
    clients = run.workloads.sizes.clients
    scores, alone = run.timed(lambda: rewards.score(samples), share=0.15)
    run.write("in process", {"samples/s": len(samples) / alone.seconds, "times in process": 1.0})
    with serving.server(serving.OURS, folder, max_queue=max(256, 4 * clients)) as (url, _):
        load, timing = run.timed(lambda: asyncio.run(serving.closed_loop(url, bodies, clients)), share=0.5)
    differences = [abs(value - scores.values[number]) for number, value in load.values.items()]
    run.write(
        f"rm-plugins serve, {clients} clients",
        {
            "samples/s": len(samples) / timing.seconds,
            "times in process": alone.seconds / timing.seconds,
            "p50 ms": load.latency(0.5),
            "p99 ms": load.latency(0.99),
            "largest difference": max(differences),
        },
        note="" if set(load.statuses) == {200} else f"answers by status: {load.statuses}",
    )
