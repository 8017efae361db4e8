"""How many CPUs this process may use, which is often fewer than the machine has: of a job of a scheduler, or of a container."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """The CPUs that the system lets this process use, at least 1.

    It counts those of the CPU affinity; from Python 3.13 on, ``PYTHON_CPU_COUNT`` replaces that number. On Linux, the limits of control
    groups count as well, rounded up: containers are limited by them.
    """
    counted = getattr(os, "process_cpu_count", None)  # since Python 3.13
    if counted is not None:
        cpus = counted() or 1
    else:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *(math.ceil(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """The limits of this process's control groups and of those that contain them, in CPUs."""
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = _GROUPS / "cpu" if controllers else _GROUPS  # version 1 has a tree for each controller
            # In a container, the path may be the host's, of which only the last part or nothing is there.
            own = root / path.lstrip("/")
            for group in (own, *own.parents):
                if group.is_relative_to(root):
                    yield from _quota(group)


def _quota(group: Path) -> Iterator[float]:
    """The limit of a control group of version 2, or else of version 1."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        if limit != "max":
            yield int(limit) / int(period)
        return
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        if int(limit) > 0:
            yield int(limit) / int(period)
