"""What a plan's constants should be on this device: the cost of a launch and of reading, and the budget of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rm_plugins.engine.budget import ACCELERATOR_BATCH_TOKENS, activation_bytes, costs_of, default_max_tokens
from rm_plugins.engine.plan import Segment
from rm_plugins.engine.prefix_cache import CachedPrefixes, PrefixCache
from tests.benchmarks.gpu.run import Run
from tests.benchmarks.gpu.shapes import QWEN_HALF, QWEN_SEVEN, Shape

_ROW = 512
_MANY = 32
"""Micro-batches of a row each, which are as many tokens as one of the usual budget."""
_ENOUGH = 0.97
"""The share of the best throughput from which on a larger budget is not worth its memory."""


def measure(run: Run) -> None:
    """By shape: tokens a second by the size of a micro-batch, then each constant beside what the figures suggest."""
    for number, shape in enumerate((QWEN_HALF, QWEN_SEVEN)):
        if run.left() > 0:
            _measure_shape(run, shape, share=0.5 if number == 0 else 1.0)
        else:
            run.write(shape.name, {}, note="no time left")
        run.free()


def _measure_shape(run: Run, shape: Shape, share: float) -> None:
    model = run.build(shape)
    backbone = model.model
    length = 32 if run.is_miniature else _ROW
    sizes = [length << step for step in range(3 if run.is_miniature else 9)]
    rounds_share = share / (len(sizes) + 6)
    throughputs: dict[int, float] = {}
    with torch.inference_mode():
        run.write(
            shape.name,
            {"tokens": 16, "seconds": _seconds(run, _dense(run, backbone, 1, 16), rounds_share)},
            case="micro-batches",
        )
        for tokens in sizes:
            try:
                seconds = _seconds(run, _dense(run, backbone, tokens // length, length), rounds_share)
            except torch.OutOfMemoryError:
                run.write(shape.name, {"tokens": tokens}, case="micro-batches", note="out of memory")
                break
            throughputs[tokens] = tokens / seconds
            run.write(shape.name, {"tokens": tokens, "seconds": seconds, "tokens/s": throughputs[tokens]}, case="micro-batches")
        launch_seconds = _launch_seconds(run, backbone, length, rounds_share)
        read_seconds = _read_seconds(run, model, backbone, length, rounds_share)
    best = max(throughputs.values())
    token_seconds = 1 / best
    costs = costs_of(model)
    enough = min(tokens for tokens, throughput in throughputs.items() if throughput >= _ENOUGH * best)
    today = {
        "launch of a micro-batch, in tokens": (costs.launch, launch_seconds / token_seconds),
        "reading a cached token, in tokens": (costs.read, read_seconds / token_seconds),
        "tokens of a micro-batch": (ACCELERATOR_BATCH_TOKENS, enough),
    }
    if run.device.type == "cuda":
        today["bytes of activations a token"] = (activation_bytes(model), _bytes_a_token(run, backbone, max(throughputs)))
        today["default budget, in tokens"] = (default_max_tokens(model), enough)
    for name, (constant, suggested) in today.items():
        run.write(name, {"today": constant, "measured": suggested}, case=shape.name)


def _seconds(run: Run, call: Callable[[], Any], share: float) -> float:
    return run.timed(call, share=share, rounds=5)[1].seconds


def _dense(run: Run, backbone: Any, rows: int, tokens: int) -> Callable[[], Any]:
    ids = torch.randint(3, 500, (rows, tokens), device=run.device)
    return lambda: backbone(input_ids=ids, use_cache=False).last_hidden_state


def _launch_seconds(run: Run, backbone: Any, length: int, share: float) -> float:
    """Seconds that a further micro-batch takes beside its tokens: many small ones, one after the other, beside a large one."""
    small, large = _dense(run, backbone, 1, length), _dense(run, backbone, _MANY, length)
    many = _seconds(run, lambda: [small() for _ in range(_MANY)], share)
    return max(0.0, many - _seconds(run, large, share)) / (_MANY - 1)


def _read_seconds(run: Run, model: Any, backbone: Any, length: int, share: float) -> float:
    """Seconds that one row takes to read one cached token, as short continuations of long and of short beginnings show."""
    rows, new = (4, 8) if run.is_miniature else (64, 64)
    short, long = length // 2, length * 4
    seconds = {}
    for context in (short, long):
        ids = torch.randint(3, 500, (1, context), device=run.device)
        cache = PrefixCache(None, [Segment(0, 0, context)], torch.ones_like(ids), keep=True)
        backbone(input_ids=ids, **cache.arguments(backbone))
        before = CachedPrefixes.of([cache])
        segments = [Segment(row, context, context + new, 0) for row in range(rows)]
        more = torch.randint(3, 500, (rows, new), device=run.device)
        seconds[context] = _seconds(run, _continued(backbone, before, segments, more), share)
    return max(0.0, seconds[long] - seconds[short]) / (rows * (long - short))


def _continued(backbone: Any, before: CachedPrefixes, segments: Sequence[Segment], ids: torch.Tensor) -> Callable[[], Any]:
    def call() -> Any:
        cache = PrefixCache(before, segments, torch.ones_like(ids), keep=False)
        return backbone(input_ids=ids, **cache.arguments(backbone)).last_hidden_state

    return call


def _bytes_a_token(run: Run, backbone: Any, tokens: int) -> float:
    before = torch.cuda.memory_allocated(run.device)
    torch.cuda.reset_peak_memory_stats(run.device)
    with torch.inference_mode():
        _dense(run, backbone, tokens // _ROW, _ROW)()
    return (torch.cuda.max_memory_allocated(run.device) - before) / tokens
