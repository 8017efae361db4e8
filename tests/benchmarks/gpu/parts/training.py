"""How fast a reward model is trained: ours beside TRL's RewardTrainer, on the same batches from the same start."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig

import rm_plugins as rm
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from tests.benchmarks.gpu.parts.scoring import packed_spans
from tests.benchmarks.gpu.run import Run, gibibytes
from tests.benchmarks.gpu.shapes import QWEN_HALF, QWEN_SEVEN, Shape
from tests.benchmarks.training import APART, OURS, TRL, trained, trainer_of

_MAX_LENGTH = 2_048


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained and how.

    Args:
        shape: The model.
        dtype: Of the weights; None for the device's usual one.
        checkpointing: Whether layers run again for their gradients.
        adapter: Whether a LoRA adapter is trained instead of all weights.
    """

    shape: Shape
    dtype: torch.dtype | None
    checkpointing: bool
    adapter: bool = False

    @property
    def passes(self) -> int:
        """Forward passes that a step's operations count as: a frozen weight has no gradient of its own."""
        return 2 if self.adapter else 3


SETTINGS = {
    "half": Setting(QWEN_HALF, torch.float32, checkpointing=False),  # TRL's defaults: float32 weights under autocast
    "lora": Setting(QWEN_SEVEN, None, checkpointing=True, adapter=True),
    "full": Setting(QWEN_SEVEN, None, checkpointing=True),
}


def measure(run: Run, name: str) -> None:
    """A few steps by TRL's trainer, by ours, and by ours without sharing prompts: an epoch of the same pairs in the same batches."""
    setting, sizes = SETTINGS[name], run.workloads.sizes
    pairs = run.workloads.pairs(sizes.pairs * sizes.steps)
    renderer = Renderer(run.workloads.tokenizer, Rendering.default(run.workloads.tokenizer, _MAX_LENGTH))
    rows = [
        renderer.token_ids([rm.Sample(pair["prompt"], pair[answer]) for answer in ("chosen", "rejected")])[0] for pair in pairs
    ]
    theirs: list[float] = []
    longest = 0.0
    for contender in (TRL, OURS, APART):
        if longest > run.left():
            run.write(contender, {}, note="no time left")
            continue
        started = run.now()
        try:
            training = _train(run, setting, contender, Dataset.from_list(pairs))
        except torch.OutOfMemoryError:
            training = None
        run.free()
        longest = max(longest, run.now() - started)
        if training is None:
            run.write(contender, {}, note="out of memory")
            continue
        if contender == TRL:
            theirs = training.losses
        _write(run, setting, contender, training, theirs, rows)


@dataclass(slots=True)
class _Training:
    seconds: list[float]
    losses: list[float]
    peak: int | None
    weights: int
    note: str


def _train(run: Run, setting: Setting, contender: str, data: Dataset) -> _Training:
    sizes = run.workloads.sizes
    on_gpu = run.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(run.device)
    model = run.build(setting.shape, setting.dtype)
    weights = model.num_parameters(exclude_embeddings=True)
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="SEQ_CLS") if setting.adapter else None
    changes: dict[str, Any] = {
        "output_dir": str(run.scratch / "trained"),
        "max_steps": sizes.steps,
        "per_device_train_batch_size": sizes.pairs,
        "learning_rate": 1e-5,
        "max_length": _MAX_LENGTH,
        "gradient_checkpointing": setting.checkpointing,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
    }
    trainer = trainer_of(contender, model, run.workloads.tokenizer, data, changes, adapter)
    seconds, losses = trained(trainer)
    stopped = contender != TRL and not trainer.batch_forward.packs
    return _Training(
        seconds,
        losses,
        torch.cuda.max_memory_allocated(run.device) if on_gpu else None,
        weights,
        "packing was stopped: its scores differed" if stopped else "",
    )


def _write(
    run: Run, setting: Setting, contender: str, training: _Training, theirs: list[float], rows: list[list[list[int]]]
) -> None:
    spans = [span for pair in rows for span in _computed(pair, contender)]
    steps = len(training.losses)
    seconds = statistics.median(training.seconds[1:])
    flops = setting.passes * run.shape(setting.shape).forward_flops(training.weights, spans) / steps
    differences = [abs(loss - other) / abs(other) for loss, other in zip(training.losses, theirs, strict=False)]
    run.write(
        contender,
        {
            "seconds a step": seconds,
            "tokens/s": sum(len(row) for pair in rows for row in pair) / steps / seconds,
            "computed tokens a step": sum(stop - start for start, stop in spans) / steps,
            "MFU": run.utilisation(flops, seconds),
            "peak GiB": gibibytes(training.peak),
            "first loss": training.losses[0],
            "largest relative difference of a loss": max(differences) if differences and contender != TRL else None,
        },
        note=training.note,
    )


def _computed(pair: list[list[int]], contender: str) -> list[tuple[int, int]]:
    """The stretches of a pair's rows that are computed."""
    return [(0, len(row)) for row in pair] if contender == TRL else packed_spans(pair, share_prefixes=contender == OURS)
