"""How fast rewards are scored: ours beside TRL's own path and transformers' pipeline, over three kinds of rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from transformers import pipeline

import rm_plugins as rm
from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.engine.packing import Packing
from rm_plugins.models.heads import Heads
from rm_plugins.providers.models.model_in_memory import ModelInMemory
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.scores import FloatArray
from tests.benchmarks.contenders import padded_batch
from tests.benchmarks.gpu import shapes
from tests.benchmarks.gpu.run import Run, Timing, gibibytes

OURS, APART, PACKED = "rm-plugins", "rm-plugins without sharing", "rm-plugins, packed as in training"
TRL, PIPELINE = "TRL's padded batch", "pipeline(batch_size=32)"
_COMPARED = 4
"""Rows that are also scored one by one in float32."""

Spans = list[tuple[int, int]]


class Scorers:
    """The contenders, all with the same model in memory.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        positions = model.config.max_position_embeddings
        self.renderer = Renderer(tokenizer, Rendering.default(tokenizer, positions))
        self.ours = ModelInMemory(model, self.renderer, Heads())
        self.apart = ModelInMemory(model, self.renderer, Heads())
        self.apart.trained.engine.shares_prefixes = False
        self._pipeline: Any = None
        self._batch_forward = BatchForward(model)
        del model.forward  # which the pass has replaced: it is called by itself here

    def spans(self, ids: Sequence[Sequence[int]], *, shared: bool) -> Spans:
        """The stretches of rows that our engine computes, without padding."""
        engine = self.ours.trained.engine
        plan = engine._plan(ids, share_prefixes=shared and engine.shares_prefixes)
        return [(segment.start, segment.stop) for batch in plan.batches for segment in batch.segments]

    def pipeline(self, texts: Sequence[str]) -> FloatArray:
        """The scores of transformers' own pipeline."""
        if self._pipeline is None:
            self._pipeline = pipeline(
                "text-classification", model=self.model, tokenizer=self.tokenizer, device=self.model.device
            )
        return np.array([found["score"] for found in self._pipeline(list(texts), batch_size=32, truncation=True)])

    @torch.inference_mode()
    def packed(self, samples: Sequence[rm.Sample]) -> FloatArray:
        """The scores of the pass that trains, which packs rows."""
        logits = self._batch_forward(rows=self.renderer.token_ids(samples)[0]).logits
        if not self._batch_forward.packs:
            raise RuntimeError("the model does not give the same scores from packed rows")
        scores: FloatArray = logits[:, 0].double().cpu().numpy()
        return scores

    def one_by_one(self, samples: Sequence[rm.Sample]) -> FloatArray:
        """The scores in float32, row by row: what every contender rounds."""
        exact = copy.deepcopy(self.model).float()
        with torch.inference_mode():
            ids = self.renderer.token_ids(samples)[0]
            scores = [exact(input_ids=torch.tensor([row], device=exact.device)).logits[0, 0].item() for row in ids]
        return np.array(scores)


def measure(run: Run, shape_name: str) -> None:
    """Each kind of rows by ours and TRL's, then by the others while time is left."""
    shape = getattr(shapes, shape_name)
    model = run.build(shape)
    scorers = Scorers(model, run.workloads.tokenizer)
    workloads = run.workloads.scored(run.shape(shape).positions)
    exact: dict[str, FloatArray] = {}
    with suppress(torch.OutOfMemoryError):
        for case, samples in workloads.items():
            exact[case] = scorers.one_by_one(_few(samples))
            run.free()
    decodes = shape.family == "qwen2"
    for names in ([OURS, TRL], [PACKED, APART] if decodes else [], [PIPELINE]):
        for case, samples in workloads.items():
            for name in names:
                _measure_one(run, shape, scorers, name, case, samples, exact.get(case))
                run.free()


def _measure_one(
    run: Run, shape: Any, scorers: Scorers, name: str, case: str, samples: list[rm.Sample], exact: FloatArray | None
) -> None:
    if run.left() <= 0:
        run.write(name, {}, case=case, note="no time left")
        return
    ids, _ = scorers.renderer.token_ids(samples)
    texts = [scorers.ours.render(sample) for sample in samples]
    # Without sharing, beginnings count as often as they occur; duplicates are left out by ours only.
    whole = [(0, len(row)) for row in ids]
    calls: dict[str, tuple[Callable[[], Any], Callable[[], Spans]]] = {
        OURS: (lambda: scorers.ours.score(samples), lambda: scorers.spans(ids, shared=True)),
        APART: (lambda: scorers.apart.score(samples), lambda: scorers.spans(ids, shared=False)),
        PACKED: (lambda: scorers.packed(samples), lambda: packed_spans(ids)),
        PIPELINE: (lambda: scorers.pipeline(texts), lambda: whole),
    }
    note = ""
    try:
        if name == TRL:
            values, timing, rows = _padded(run, scorers, texts)
            spans = whole
            note = "" if rows == len(texts) else f"{rows} rows at a time: more do not fit into the memory"
        else:
            call, computed = calls[name]
            values, timing = run.timed(call, share=0.3)
            spans = computed()
    except torch.OutOfMemoryError:
        run.write(name, {}, case=case, note="out of memory")
        return
    except RuntimeError as error:
        if "CUDA error" in str(error):
            raise
        run.write(name, {}, case=case, note=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return
    seconds_of_model = None
    if isinstance(values, rm.Scores):
        seconds_of_model = values.metadata["seconds"]
        if name == OURS and shape.family == "qwen2" and not scorers.ours.trained.engine.shares_prefixes:
            note = "sharing was stopped: its scores differed"
        values = values.values
    if not timing.rounds:
        note = "; ".join(part for part in (note, "one call, the first") if part)
    tokens = sum(map(len, ids))
    flops = run.shape(shape).forward_flops(scorers.model.num_parameters(exclude_embeddings=True), spans)
    run.write(
        name,
        {
            "seconds": timing.seconds,
            "tokens/s": tokens / timing.seconds,
            "computed tokens": sum(stop - start for start, stop in spans),
            "MFU": run.utilisation(flops, timing.seconds),
            "peak GiB": gibibytes(timing.peak),
            "largest error": None if exact is None else float(np.abs(_few(values) - exact).max()),
            "deviation": float(np.std(values)),
            "seconds of the model": seconds_of_model,
        },
        case=case,
        note=note,
    )


def _padded(run: Run, scorers: Scorers, texts: list[str]) -> tuple[FloatArray, Timing, int]:
    """TRL's path, over as many rows at a time as fit into the memory."""
    rows = len(texts)
    while True:
        batches = [padded_batch(scorers.model, scorers.tokenizer, texts[at : at + rows]) for at in range(0, len(texts), rows)]
        try:
            values, timing = run.timed(lambda batches=batches: np.concatenate([score() for score in batches]), share=0.3)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            rows = -(-rows // 2)
        else:
            return values, timing, rows
        run.free()


def packed_spans(ids: Sequence[Sequence[int]], *, share_prefixes: bool = True) -> Spans:
    """The stretches of rows that a packing of all of them computes."""
    packing = Packing(ids, share_prefixes=share_prefixes)
    above = [sum(map(len, span.before)) for span in packing.spans]
    return [(start, start + len(span)) for start, span in zip(above, packing.spans, strict=True)]


def _few(values: Any) -> Any:
    """Every so many of the values, so that few are left."""
    return values[:: max(1, len(values) // _COMPARED)][:_COMPARED]
