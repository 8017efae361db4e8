"""The devices of this machine, and the environment that gives a process one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rm_plugins.errors import SpecError
from rm_plugins.usable_cpus import usable_cpus

CPU = "cpu"

_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
"""The variable by which the driver of each kind of device shows only some of them to a process."""
_NODES = ("nvidia[0-9]*", "nvgpu*", "kfd", "dxg", "dri/renderD*", "davinci[0-9]*", "accel*", "hl[0-9]*")
"""The files in ``/dev`` that drivers of accelerators make on Linux."""
_NONE = "-1"
_THREADS = "OMP_NUM_THREADS"


def accelerators() -> tuple[str, ...]:
    """The accelerators that this process sees, such as ``cuda:0`` and ``cuda:1``; none on a machine with CPUs only."""
    if sys.platform == "linux" and "torch" not in sys.modules and not any(any(Path("/dev").glob(node)) for node in _NODES):
        return ()  # importing torch takes seconds, which rewards without a model do not need
    import torch

    # In this order: torch 2.6 fails when it is asked for the accelerator of a machine that has none.
    if not torch.accelerator.is_available() or (kind := torch.accelerator.current_accelerator()) is None:
        return ()
    return tuple(f"{kind.type}:{index}" for index in range(torch.accelerator.device_count()))


def chosen_devices(text: str) -> tuple[str, ...]:
    """The devices that an option names: ``all``, or their names or numbers, separated by commas.

    A device may be named several times, for several processes that share it.

    Raises:
        SpecError: There is no such device, or ``all`` on a machine without accelerators.
    """
    there = accelerators()
    advice = "--devices cpu,cpu starts two processes on CPUs"
    if text == "all":
        if not there:
            raise SpecError(f"--devices all needs accelerators, and torch sees none on this machine. {advice}.")
        return there
    names = [name.strip() for name in text.split(",")]
    kind = there[0].partition(":")[0] if there else "cuda"
    devices = tuple(f"{kind}:{name}" if name.isdecimal() else f"{name}:0" if f"{name}:0" in there else name for name in names)
    if unknown := [device for device in devices if device != CPU and device not in there]:
        known = f"There are {', '.join((CPU, *there))}" if there else f"torch sees no accelerator; {advice}"
        raise SpecError(f"--devices names {', '.join(map(repr, unknown))}, which this machine does not have. {known}.")
    return devices


def environment_of(device: str, processes: int) -> dict[str, str]:
    """The environment variables of a process that uses a device alone.

    It sees no other accelerator, so that ``auto``, ``cuda`` and ``cuda:0`` all mean this one. It gets its share of the CPUs as threads,
    unless ``OMP_NUM_THREADS`` is set.

    Args:
        device: The device as this process calls it.
        processes: The number of processes on this machine, which share the CPUs.
    """
    threads = shared_threads(processes)
    there = accelerators()
    if not there:
        return threads
    kind, _, index = (there[0] if device == CPU else device).partition(":")
    import torch

    variable = "HIP_VISIBLE_DEVICES" if kind == "cuda" and torch.version.hip else _VISIBLE.get(kind)
    if variable is None:  # a machine with one device of this kind, such as mps
        return threads
    visible = os.environ.get(variable, "").split(",")
    own = visible[int(index)].strip() if len(visible) > int(index) and visible[0] else index
    return {**threads, variable: _NONE if device == CPU else own}


def shared_threads(processes: int) -> dict[str, str]:
    """The environment variable that gives each process its share of the CPUs that they may use; empty if the user has set it.

    Args:
        processes: The number of processes on this machine, which share the CPUs.
    """
    return {} if _THREADS in os.environ else {_THREADS: str(max(1, usable_cpus() // processes))}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Within it, processes that this one starts have these environment variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
