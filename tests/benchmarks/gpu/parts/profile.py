"""Where the time of scoring goes: how long the device is busy, and with what."""

from __future__ import annotations

from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.gpu.parts.scoring import Scorers
from tests.benchmarks.gpu.run import Run
from tests.benchmarks.gpu.shapes import QWEN_HALF, QWEN_SEVEN

_KERNELS = 8
_CHARACTERS = 70


def measure(run: Run) -> None:
    """One scoring of groups by each shape, after one that is not looked at."""
    for shape in (QWEN_HALF, QWEN_SEVEN):
        if run.left() <= 0:
            run.write(shape.name, {}, note="no time left")
            continue
        scorers = Scorers(run.build(shape), run.workloads.tokenizer)
        samples = run.workloads.scored(run.shape(shape).positions)["grouped"][: 128 if shape is QWEN_SEVEN else None]
        scorers.ours.score(samples)
        on_gpu = run.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
            started = run.now()
            scorers.ours.score(samples)
            seconds = run.now() - started
        wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
        busy = {
            event.key: _microseconds(event, on_gpu=on_gpu) / 1e6 for event in seen.key_averages() if event.device_type == wanted
        }
        run.write(shape.name, {"seconds": seconds, "share": sum(busy.values()) / seconds}, case="the device is busy")
        for name, spent in sorted(busy.items(), key=lambda item: -item[1])[:_KERNELS]:
            run.write(shape.name, {"seconds": spent, "share": spent / seconds}, case=name[:_CHARACTERS])
        del scorers
        run.free()


def _microseconds(event: Any, *, on_gpu: bool) -> float:
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)
