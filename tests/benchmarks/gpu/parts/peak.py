"""What the device does at best: the largest matrix product a second and the fastest copy, which other figures are shares of."""

from __future__ import annotations

import torch

from tests.benchmarks.gpu.run import PEAK_ROW, Run


def measure(run: Run) -> None:
    """Square matrix products of random numbers (zeros would run faster), and a copy within the device."""
    size = 512 if run.is_miniature else 8_192
    left, right = (torch.randn(size, size, device=run.device, dtype=run.dtype) for _ in range(2))
    _, timing = run.timed(lambda: left @ right, share=0.3, rounds=200)
    figures = {"seconds": timing.seconds, "TFLOP/s": 2 * size**3 / timing.seconds / 1e12}
    run.write(PEAK_ROW, figures, note=f"{size} x {size} x {size}, {str(run.dtype).removeprefix('torch.')}")
    elements = (1 << 20) if run.is_miniature else (1 << 32)
    source = torch.empty(elements, device=run.device, dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    _, timing = run.timed(lambda: target.copy_(source), share=0.5, rounds=10)
    figures = {"seconds": timing.seconds, "TB/s": 2 * elements / timing.seconds / 1e12}
    run.write("copy", figures, note=f"{elements / 2**30:.3g} GiB, read and written")
