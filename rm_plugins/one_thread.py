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
        self._lock = threading.RLock()
        self._process = os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():  # the thread that held it when the process forked does not exist here
            self.__init__()  # type: ignore[misc]  # start unlocked
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return OneThread, ()
