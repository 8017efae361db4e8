"""What a process does when its device runs out of memory while other processes wait for it in the same forward pass.

A process that left a forward pass over sharded weights would leave the others waiting for its part of the next layer's weights. So it
stays: its remaining layers pass their inputs on without computing, its remaining micro-batches are short, and at the end all processes
learn that the pass is worthless.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from rm_plugins.engine.replaced_forward import forward_as
from rm_plugins.engine.shards import Shards

Value = TypeVar("Value")
_KEY = "rm_plugins/out_of_memory"


class TogetherOutOfMemoryError(torch.OutOfMemoryError):
    """Memory is lacking, which every process that waits for this one knows."""


class Shortage:
    """Whether memory was lacking in a pass of this process, or of any that shares its weights.

    Args:
        model: The model.
        shards: The processes that share its weights; None if this process has all of them and can leave a pass at any time.
    """

    def __init__(self, model: nn.Module, shards: Shards | None) -> None:
        self._shards = shards
        self._blocks = [] if shards is None else _blocks(model)
        self._tuples: dict[type, bool] = {}
        self._entered = 0
        self._error: str | None = None

    @contextmanager
    def spanning(self) -> Iterator[None]:
        """A pass: within it, the layers of sharded weights survive a lack of memory. After it, no process may use its results alone.

        Raises:
            torch.OutOfMemoryError: Memory was lacking, in any process that shares the weights; raised in all of them.
        """
        self._error = None
        with ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(forward_as(block, self._surviving(block)))
            with self.noted():
                yield
        self.raise_together()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note that memory is lacking, where others wait for this process; else the error passes."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            if self._shards is None or isinstance(error, TogetherOutOfMemoryError):
                raise
            self._error = self._error or str(error)

    def micro_batch(self, run: Callable[[], Value], idle: Callable[[], Any]) -> Value | None:
        """What a micro-batch gives; None where memory is or was lacking, after a short micro-batch that keeps the processes in step.

        Args:
            run: Runs the micro-batch.
            idle: Runs a short one, through the same layers.
        """
        if self._error is None:
            self._entered = 0
            with self.noted():
                value = run()
                if self._error is None:
                    return value
            if self._entered:  # its layers have all been passed
                return None
        with self.noted():
            idle()
        return None

    def raise_together(self) -> None:
        """Raise in all processes if memory was lacking in one of them."""
        if self._shards is None:
            return
        lacking = self._shards.largest(self._error is not None)[0]
        if lacking:
            errors = self._shards.gathered(self._error)
            number, error = next((number, error) for number, error in enumerate(errors) if error is not None)
            self._error = None
            raise TogetherOutOfMemoryError(f"in process {number}: {error}")

    def smallest(self, number: int) -> int:
        """The smallest value of a number in any process."""
        return number if self._shards is None else -self._shards.largest(-number)[0]

    def _surviving(self, block: nn.Module) -> Callable[..., Any]:
        own = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._entered += 1
            if self._error is None:
                with self.noted():
                    output = own(*args, **kwargs)
                    self._tuples[type(block)] = isinstance(output, tuple)
                    return output
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden,) if self._tuples.get(type(block)) else hidden

        return forward


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that FSDP gathers one by one: these have no such layers inside, and are not the model itself."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    wrapped = [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]
    wrapped += [module.module for module in model.modules() if isinstance(module, fsdp.FullyShardedDataParallel)]
    inner = [module for module in wrapped if not any(child is not module and child in wrapped for child in module.modules())]
    return [module for module in inner if module is not model]


@contextmanager
def told_to_others(advice: str) -> Iterator[None]:
    """Within it, memory that is lacking in one process is the error of all of them, where it cannot be made up for.

    The others learn of it where their communication with the process fails. With NCCL, they may wait until the launcher ends them.

    Args:
        advice: What to do.

    Raises:
        torch.OutOfMemoryError: Memory is lacking, here or in another process.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if isinstance(error, TogetherOutOfMemoryError):
            raise
        where = "The gradients do not fit into memory"
        if _has_others():
            where += f" in process {distributed.get_rank()}"
            _store().set(_KEY, str(distributed.get_rank()))
        raise TogetherOutOfMemoryError(f"{where}: {error}. {advice}") from error
    except RuntimeError as error:
        if not _has_others() or not (number := _told()):
            raise
        raise TogetherOutOfMemoryError(
            f"Process {number} ran out of memory, so process {distributed.get_rank()} cannot continue either. {advice}"
        ) from error


def _has_others() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()


def _told() -> str | None:
    """The process in which memory is lacking; None if none has reported it."""
    try:
        store = _store()
        return store.get(_KEY).decode() if store.check([_KEY]) else None
    except RuntimeError:  # the process with the store has ended
        return None
