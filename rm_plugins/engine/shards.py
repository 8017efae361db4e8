"""The processes over which a model's weights are sharded, and what they must agree on.

Such a process holds a part of every weight. To run a module or to compute its gradients, all processes gather its weights together. So all
must run the same modules in the same order: a process that ran one more forward would wait for the others forever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import distributed

from rm_plugins import processes
from rm_plugins.engine.partitioned import is_partitioned

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Shards:
    """The processes that share a model's weights. All of them must make the same calls in the same order.

    Args:
        groups: Process groups; a process reaches all others through one after the other, as in a grid. None is the group of all processes.
    """

    groups: tuple[ProcessGroup | None, ...]

    def largest(self, *numbers: int, purpose: str = "how their rows run") -> list[int]:
        """The largest value of each number in any process.

        Args:
            numbers: This process's numbers.
            purpose: What they are, for the message about a process that does not come.
        """
        for group in self.groups:
            numbers = tuple(processes.largest(numbers, purpose, group))
        return [*numbers]

    def any(self, flag: bool, purpose: str = "how their rows run") -> bool:
        """Whether the flag is set in any process.

        Args:
            flag: This process's.
            purpose: What it says, for the message about a process that does not come.
        """
        return bool(self.largest(int(flag), purpose=purpose)[0])

    def gathered(self, value: Value, purpose: str = "rows to compare") -> list[Value]:
        """The value of every process, in the same order in all of them.

        Args:
            value: Anything that can be pickled.
            purpose: What is exchanged, for the message about a process that does not come.
        """
        values = [value]
        for group in self.groups:
            values = [value for of_process in processes.gathered(values, purpose, group) for value in of_process]
        return values


def shards_of(model: nn.Module) -> Shards | None:
    """The processes over which a model's weights are sharded; None if each process has all weights, as with DDP. Communicates nothing.

    Recognized are FSDP2 (``fully_shard``), the layers wrapped by FSDP1, and stage 3 of DeepSpeed's ZeRO.

    Args:
        model: The model, possibly in the middle of its forward.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    groups = dict.fromkeys([*_of_fsdp(model), *_of_zero(model)])
    return Shards(tuple(groups)) if groups else None


def _of_fsdp(model: nn.Module) -> Iterator[ProcessGroup | None]:
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # without it, nothing is wrapped
    if fsdp is None:
        return
    modules = [*model.modules()]
    for module in modules:
        if isinstance(module, fsdp.FullyShardedDataParallel):
            hybrid = module.sharding_strategy.name.startswith("HYBRID")  # its gradients are reduced beyond the group
            yield None if hybrid else module.process_group
    if any(isinstance(module, fsdp.FSDPModule) for module in modules):
        tensors = sys.modules["torch.distributed.tensor"]
        meshes = dict.fromkeys(weight.device_mesh for weight in model.parameters() if isinstance(weight, tensors.DTensor))
        if not meshes:  # all weights are gathered at this moment
            yield None
        for mesh in meshes:
            yield from (mesh.get_group(dimension) for dimension in range(mesh.ndim))


def _of_zero(model: nn.Module) -> Iterator[ProcessGroup | None]:
    for weight in model.parameters():
        if is_partitioned(weight):
            yield getattr(weight, "ds_process_group", None)
