"""Waiting for the other processes of a training: the one that does not come is named.

A collective of ``torch.distributed`` waits for all processes of a group: by default 30 minutes with gloo and 10 with NCCL, and then says
at best that time is up. Here a process that has waited for two seconds tells the group's store which call it is in. So after a while each
process can see who has not come to the call.

As long as all processes come in time, a call sends nothing else: no barrier, no heartbeat, no entry in the store.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rm_plugins.errors import ProcessError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

logger = logging.getLogger(__name__)

ANNOUNCED_AFTER = 2.0
"""Seconds after which a process tells the others that it waits."""
WARNS_AFTER = 60.0
"""Seconds after which a warning names the processes that are late."""
SHARE_OF_TIMEOUT = 0.5
"""The part of the group's timeout after which waiting is an error; torch's own would not name anybody."""

_MARGIN = 0.5
"""Seconds around its limit within which a call ends itself."""
_SPINS = 0.002
_PAUSE = 0.000_5
"""Where a process must ask whether a call is done: at first without pauses, then with these, in seconds."""

_calls: Counter[str] = Counter()
"""The calls of each group so far. A group's processes make the same calls in the same order, so all of them count the same."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a process waits for the others of a group.

    Args:
        limit: The time after which it is an error.
        ends_calls: Whether a call must be started with this limit. A call of gloo would keep Python from exiting until its own time is up.
            One of NCCL would end the process then, before the error names anybody.
    """

    limit: timedelta
    ends_calls: bool

    @classmethod
    def of(cls, group: ProcessGroup, device: str) -> Patience:
        """That of a group on this device."""
        import torch
        from torch.distributed.distributed_c10d import default_pg_timeout

        backend = group._get_backend(torch.device(device))
        timeout = getattr(getattr(backend, "options", None), "_timeout", default_pg_timeout)
        return cls(timeout * SHARE_OF_TIMEOUT, backend.name() == "gloo")


def await_all(work: Work, group: ProcessGroup, patience: Patience, purpose: str) -> None:
    """Wait until a collective is done.

    Args:
        work: The collective, which has been started.
        group: The group of the processes.
        patience: How long to wait.
        purpose: What the processes exchange, for messages.

    Raises:
        ProcessError: A process is late by more than half of the group's timeout, or has ended.
    """
    started = time.monotonic()
    _calls[group.group_name] += 1
    call = _Call(group, _calls[group.group_name], purpose)
    limit = patience.limit.total_seconds()
    warns = min(WARNS_AFTER, limit / 2)
    announces = min(ANNOUNCED_AFTER, warns / 2)
    waits = _waits_on_host if patience.ends_calls else _waits_on_device
    try:
        if waits(work, announces):
            return
        call.announce()
        if waits(work, warns - announces):
            return
        logger.warning(
            "Process %d has waited %.0f s for %s. After %.0f s this is an error.", call.rank, warns, call.awaited(), limit
        )
        if waits(work, limit - warns + _MARGIN):
            return
    except RuntimeError as error:
        if time.monotonic() - started < limit - _MARGIN:
            raise call.broken(error, limit) from error
    if not patience.ends_calls:
        call.end()
    raise call.late(limit)


class _Call:
    """One call of a group's processes.

    Args:
        group: The group.
        number: The number of calls of this group, this one included.
        purpose: What the processes exchange.
    """

    def __init__(self, group: ProcessGroup, number: int, purpose: str) -> None:
        from torch import distributed

        self.group = group
        self.number = number
        self.purpose = purpose
        self.rank = distributed.get_rank()
        self._ranks = distributed.get_process_group_ranks(group)

    def announce(self) -> None:
        """Tell the others that this process is in this call."""
        self._store.set(_key(self.rank), str(self.number))

    def awaited(self) -> str:
        """Who is late for what."""
        return f"{_named(self._late())} to exchange {self.purpose} (call {self.number})"

    def late(self, seconds: float) -> ProcessError:
        """The error where the wait was too long."""
        return ProcessError(
            f"Process {self.rank} waited {seconds:.0f} s for {self.awaited()}. A process that is late has ended, hangs, is much slower, or "
            "takes other steps than the others; see its own output. If it only needs longer, raise the timeout of the processes "
            "(`ddp_timeout`, in seconds): waiting ends after half of it."
        )

    def broken(self, error: BaseException, limit: float) -> ProcessError:
        """The error where a connection was closed."""
        try:
            self.announce()
            until = time.monotonic() + min(2 * ANNOUNCED_AFTER, limit)
            while (late := self._late()) and time.monotonic() < until:
                time.sleep(0.05)
            who = _named(late) if late else "another process"
        except RuntimeError:  # the store has ended too
            who = "the process that keeps their store, usually process 0,"
        return ProcessError(
            f"Process {self.rank} waited for {who} to exchange {self.purpose} (call {self.number}), and the connection was closed. The "
            f"other process has probably ended: see its output for the cause. ({error})"
        )

    def end(self) -> None:
        """End what still runs on a GPU, for which Python would wait when it exits."""
        with suppress(AttributeError, RuntimeError):  # of an old torch, or a backend that cannot
            self.group.abort()

    def _late(self) -> list[int]:
        """The processes that have not announced this call."""
        keys = {rank: _key(rank) for rank in self._ranks if rank != self.rank}
        return [rank for rank, key in keys.items() if not self._store.check([key]) or int(self._store.get(key)) < self.number]

    @property
    def _store(self) -> Any:
        return self.group.get_group_store()


def _waits_on_host(work: Work, seconds: float) -> bool:
    """Wait for at most so many seconds; whether the call is done."""
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # which raises what went wrong, unless it was done in this moment
    return True


def _waits_on_device(work: Work, seconds: float) -> bool:
    """The same on a GPU, where `wait` makes only its stream wait."""
    started = time.monotonic()
    while not work.is_completed():
        if (waited := time.monotonic() - started) > seconds:
            return False
        time.sleep(0 if waited < _SPINS else _PAUSE)
    work.wait()
    return True


def _key(rank: int) -> str:
    return f"rm_plugins/waits/{rank}"


def _named(ranks: list[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
