"""A lock that can be pickled, copied and forked."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any


class OneThread:
    """A re-entrant lock: one thread at a time may enter, and that thread may enter again.

    A copied, unpickled or forked lock starts unlocked.

    >>> alone = OneThread()
    >>> with alone, alone:
    ...     print("in")
    in
    """

    def __init__(self) -> None:
        # By process: the thread that holds one at a fork does not exist in the child.
        self._locks: dict[int, threading.RLock] = {}

    def __enter__(self) -> None:
        self._locks.setdefault(os.getpid(), threading.RLock()).acquire()  # atomic, so that all threads get the same lock

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        lock = self._locks.get(os.getpid())
        if lock is not None:  # None where the process was forked by the thread that is inside
            lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return OneThread, ()
