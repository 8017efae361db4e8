"""What sharding costs where nothing is shared: the same steps with whole weights, with FSDP2 and with ZeRO, on one device."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rm_plugins.engine.batch_forward import BatchForward
from tests.benchmarks.gpu.run import Run, gibibytes
from tests.benchmarks.gpu.shapes import QWEN_HALF

WHOLE, FSDP2, ZERO = "whole weights", "FSDP2, a mesh of one", "ZeRO, stage 3"
_PORT = "29577"


def measure(run: Run) -> None:
    """The seconds of a forward and a backward pass of the same rows, and how far the loss is from that of whole weights."""
    longest = 64 if run.is_miniature else 1_024
    rows = [[3 + (number + place * place) % 500 for place in range(longest - 7 * number)] for number in range(8)]
    backend = "gloo" if run.device.type == "cpu" else "nccl"
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=_PORT, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        expected = None
        for name, start in ((WHOLE, _whole), (FSDP2, _fsdp2), (ZERO, _zero)):
            if name == ZERO and find_spec("deepspeed") is None:
                run.write(name, {}, note="not measured: deepspeed is not installed")
                continue
            try:
                step = start(run, rows)
                loss, timing = run.timed(step, share=0.3)
            except Exception as error:  # a library that does not run here takes nothing from the others
                if name == WHOLE or "CUDA error" in str(error):
                    raise
                run.write(name, {}, note=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200])
                continue
            expected = loss if expected is None else expected
            run.write(
                name,
                {
                    "seconds": timing.seconds,
                    "tokens/s": sum(map(len, rows)) / timing.seconds,
                    "peak GiB": gibibytes(timing.peak),
                    "largest difference": abs(loss - expected) / (1 + abs(expected)),
                },
            )
            del step
            run.free()
    finally:
        distributed.destroy_process_group()


def _stepped(model: Any, rows: list[list[int]], backward: Callable[[torch.Tensor], None]) -> Callable[[], float]:
    def step() -> float:
        loss = model(rows=rows).logits.float().square().mean()
        backward(loss)
        return float(loss.detach())

    return step


def _whole(run: Run, rows: list[list[int]]) -> Callable[[], float]:
    model = run.build(QWEN_HALF).train()
    BatchForward(model)
    return _stepped(model, rows, torch.autograd.backward)


def _fsdp2(run: Run, rows: list[list[int]]) -> Callable[[], float]:
    model = run.build(QWEN_HALF).train()
    BatchForward(model)
    mesh = init_device_mesh(run.device.type, (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return _stepped(model, rows, torch.autograd.backward)


def _zero(run: Run, rows: list[list[int]]) -> Callable[[], float]:
    deepspeed: Any = import_module("deepspeed")  # optional, and often absent

    model = run.build(QWEN_HALF).train()
    BatchForward(model)
    settings = {
        "train_micro_batch_size_per_gpu": len(rows),
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": run.dtype is torch.bfloat16},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
    return _stepped(engine, rows, engine.backward)
