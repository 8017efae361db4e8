"""Waiting for the other processes of a training: the one that does not come is named.

A collective of ``torch.distributed`` waits for all processes of a group: by default 30 minutes with gloo and 10 with NCCL, and then says
at best that time is up. Here a process that has waited for two seconds tells the group's store which call it is in. So after a while each
process can see who has not come to the call.

A call that nobody is late for communicates nothing besides: no barrier, no heartbeat, nothing in the store.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
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

_SPINS = 0.002
_PAUSE = 0.000_5
"""Where a process must ask whether a call is done: at first without pauses, then with these, in seconds."""

_calls: Counter[str] = Counter()
"""The calls of each group so far. A group's processes make the same calls in the same order, so all of them count the same."""


def await_all(work: Work, group: ProcessGroup, device: str, purpose: str) -> None:
    """Wait until a collective is done.

    Args:
        work: The collective, which has been started.
        group: The group of the processes.
        device: The device on which they communicate.
        purpose: What the processes exchange, for messages.

    Raises:
        ProcessError: A process is late by more than half of the group's timeout, or has ended.
    """
    import torch
    from torch import distributed

    _calls[group.group_name] += 1
    call = _Call(group, _calls[group.group_name], purpose)
    backend = group._get_backend(torch.device(device))
    timeout = getattr(getattr(backend, "options", None), "_timeout", distributed.distributed_c10d.default_pg_timeout)
    limit = SHARE_OF_TIMEOUT * timeout.total_seconds()
    waits = _waits_on_host if backend.name() == "gloo" else _waits_on_device
    warns = min(WARNS_AFTER, limit / 2)
    announces = min(ANNOUNCED_AFTER, warns / 2)
    try:
        if waits(work, announces):
            return
        call.announce()
        if waits(work, warns - announces):
            return
        logger.warning(
            "Process %d has waited %.0f s for %s. After %.0f s this is an error.", call.rank, warns, call.awaited(), limit
        )
        if waits(work, limit - warns):
            return
    except RuntimeError as error:  # a connection was closed
        raise call.broken(error, limit) from error
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
        awaited = self.awaited()
        self._give_up()
        return ProcessError(
            f"Process {self.rank} waited {seconds:.0f} s for {awaited}. A process that is late has ended, hangs, is much slower, or takes "
            "other steps than the others; see its own output. If it only needs longer, raise the timeout of the processes "
            "(`ddp_timeout`, in seconds), of which half is waited."
        )

    def broken(self, error: BaseException, limit: float) -> ProcessError:
        """The error where a connection was closed."""
        try:
            self.announce()
            until = time.monotonic() + min(2 * ANNOUNCED_AFTER, limit)
            while (late := self._late()) and time.monotonic() < until:
                time.sleep(0.05)
            ended = _named(late) if late else "another process"
        except RuntimeError:  # the store has ended too
            ended = "the process that keeps their store, usually process 0,"
        self._give_up()
        return ProcessError(
            f"Process {self.rank} waited to exchange {self.purpose} (call {self.number}), and {ended} ended meanwhile. See the output of the "
            f"process that ended for the cause. ({error})"
        )

    def _late(self) -> list[int]:
        """The processes that have not announced this call."""
        keys = {rank: _key(rank) for rank in self._ranks if rank != self.rank}
        return [rank for rank, key in keys.items() if not self._store.check([key]) or int(self._store.get(key)) < self.number]

    def _give_up(self) -> None:
        """End what still runs in the background, for which Python would wait when it exits."""
        try:
            self.group.abort()
        except (AttributeError, RuntimeError):  # of an old torch, or a backend that cannot
            logger.debug("The group of the processes could not be aborted.", exc_info=True)

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
