"""Communication between the processes of one training run."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rm_plugins.errors import ProcessError
from rm_plugins.late_processes import Patience, await_all

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")

_FRAME = 1024
"""Bytes of the first exchange: what a process is about, and its value if there is room, so that few values need a second one."""
_HEAD = struct.Struct("<q64s")
"""The length of the value, and what is exchanged."""
_ROOM = _FRAME - _HEAD.size
_SHOWN = 60
"""Characters of a fact in a message."""
_PACKAGES = ("rm-plugins", "torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets")


def all_gathered(value: Value, purpose: str = "values") -> list[Value]:
    """The value of every process, in the order of ranks; only this process's value if ``torch.distributed`` is not initialized.

    All processes must make the same calls in the same order. A process that does not come is named (`rm_plugins.late_processes`).

    Args:
        value: Anything that can be pickled.
        purpose: What is exchanged, for messages.

    Raises:
        ProcessError: Another process is late by more than half of the group's timeout, or has ended.
    """
    if _initialized() is None:
        return [value]
    return gathered(value, purpose)


def check_same(facts: Callable[[], Mapping[str, Any]], purpose: str) -> None:
    """Check that all processes have the same facts and the same packages. Each of them must call this.

    Args:
        facts: Finds this process's facts, as JSON values by name. None is not known in this process, and not compared. If it fails in one
            process, all of them end with an error.
        purpose: What the facts are, for messages.

    Raises:
        ProcessError: A fact differs, or another process could not find its facts.
    """
    own: dict[str, Any] = {}
    problem: Exception | None = None
    try:
        own = {**facts(), **packages()}
    except Exception as error:  # the other processes wait for an answer
        problem = error
    told = None if problem is None else f"{type(problem).__name__}: {problem}"
    every = all_gathered((own, told), purpose)
    if problem is not None:
        raise problem
    if failed := [f"process {rank}: {told}" for rank, (_, told) in enumerate(every) if told is not None]:
        raise ProcessError(f"Another process of this training has failed ({'; '.join(failed)}).")
    names = dict.fromkeys(name for facts_of_process, _ in every for name in facts_of_process)
    if differences := [told for name in names if (told := _difference(name, [process.get(name) for process, _ in every]))]:
        raise ProcessError(
            f"The processes of this training differ: {'; '.join(differences)}. Give every node the same files, settings and packages, so "
            "that all processes train the same."
        )


def _difference(name: str, values: Sequence[Any]) -> str | None:
    """How a fact differs between processes; None if it does not."""
    processes: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
            processes.setdefault(text, []).append(rank)
    if len(processes) < 2:
        return None
    shown = [
        f"{text:.{_SHOWN}} in process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        for text, ranks in processes.items()
    ]
    return f"{name} is {' and '.join(shown)}"


@cache
def packages() -> dict[str, str]:
    """The versions of what computes scores, and a digest of this package's own code, which may be newer than its version."""
    own = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        own.update(path.read_bytes())
    found = {"the code of rm_plugins": own.hexdigest()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[f"the version of {name}"] = version(name)
    return found


def gathered(value: Value, purpose: str, group: ProcessGroup | None = None) -> list[Value]:
    """The value of every process of a group, in the group's order.

    Args:
        value: Anything that can be pickled.
        purpose: What is exchanged, for messages.
        group: The processes; None is the group of all processes.

    Raises:
        ProcessError: As in `all_gathered`; or the processes exchange different things, so they have taken different steps.
    """
    data = _pickled(value)
    frames = _exchanged((_HEAD.pack(len(data), purpose.encode()) + data[:_ROOM]).ljust(_FRAME, b"\0"), purpose, group)
    lengths, purposes = zip(*map(_HEAD.unpack_from, frames), strict=True)
    if len({*purposes}) > 1:
        raise _out_of_step([purpose.rstrip(b"\0").decode(errors="replace") for purpose in purposes], group)
    contents = [frame[_HEAD.size :] for frame in frames]
    if (more := max(lengths) - _ROOM) > 0:
        rests = _exchanged(data[_ROOM:].ljust(more, b"\0"), purpose, group)
        contents = [content + rest for content, rest in zip(contents, rests, strict=True)]
    return [pickle.loads(content[:length]) for content, length in zip(contents, lengths, strict=True)]


def largest(numbers: Sequence[int], purpose: str, group: ProcessGroup | None = None) -> list[int]:
    """The largest value of each number in any process of a group.

    Args:
        numbers: This process's numbers.
        purpose: What they are, for messages.
        group: The processes; None is the group of all processes.
    """
    return [*map(max, zip(*gathered(tuple(numbers), purpose, group), strict=True))]


def device_of(group: ProcessGroup | None) -> str:
    """A device on which a group communicates; the CPU if possible, because numbers are needed there."""
    from torch import distributed

    devices = [part.partition(":")[0] for part in distributed.get_backend_config(group).split(",")]
    return "cpu" if "cpu" in devices else devices[0]


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, which is some twenty times faster than torch's own way."""

    def reducer_override(self, value: Any) -> Any:
        import torch

        if (
            type(value) is not torch.Tensor
            or value.device.type != "cpu"
            or value.requires_grad
            or value.dtype not in _as_arrays()
        ):
            return NotImplemented
        return torch.from_numpy, (value.numpy(),)


@cache
def _as_arrays() -> frozenset[Any]:
    """The types of tensors that NumPy has too."""
    import torch

    return frozenset((torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.bool))


def _pickled(value: Any) -> bytes:
    written = io.BytesIO()
    _Pickler(written, pickle.HIGHEST_PROTOCOL).dump(value)
    return written.getvalue()


def _exchanged(data: bytes, purpose: str, group: ProcessGroup | None) -> list[bytes]:
    """The bytes of every process, as many in all of them."""
    import torch
    from torch import distributed
    from torch._C._distributed_c10d import AllgatherOptions

    group = _known(group)
    device = device_of(group)
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
    every: Tensor = own.new_empty(distributed.get_world_size(group) * len(data))
    patience = Patience.of(group, device)
    options = AllgatherOptions()
    options.asyncOp = True
    if patience.ends_calls:
        options.timeout = patience.limit
    await_all(group.allgather([[*every.view(-1, len(data))]], [own], options), group, patience, purpose)
    found = every.cpu().numpy().tobytes()
    return [found[start : start + len(data)] for start in range(0, len(found), len(data))]


def _out_of_step(purposes: Sequence[str], group: ProcessGroup | None) -> ProcessError:
    from torch import distributed

    ranks = distributed.get_process_group_ranks(_known(group))
    told = "; ".join(f"process {rank}: {purpose}" for rank, purpose in zip(ranks, purposes, strict=True))
    return ProcessError(
        f"The processes of this training have taken different steps, and now exchange different things ({told}). All of them must run "
        "the same code on batches of the same number."
    )


def _known(group: ProcessGroup | None) -> Any:
    """The group, also of all processes."""
    from torch import distributed

    return distributed.group.WORLD if group is None else group


def is_first_process() -> bool:
    """Whether this is process 0, or the only one."""
    return process_rank() == 0


def process_rank() -> int:
    """The number of this process in the training, from 0; 0 if ``torch.distributed`` is not initialized."""
    distributed = _initialized()
    return 0 if distributed is None else int(distributed.get_rank())


def process_count() -> int:
    """How many processes the training has; 1 if ``torch.distributed`` is not initialized."""
    distributed = _initialized()
    return 1 if distributed is None else int(distributed.get_world_size())


def _initialized() -> Any:
    """``torch.distributed`` if it is initialized, else None."""
    torch = sys.modules.get("torch")  # if torch was never imported, nothing is initialized
    distributed = getattr(torch, "distributed", None)
    return distributed if distributed is not None and distributed.is_available() and distributed.is_initialized() else None
