"""What only one thread may do at a time."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any


class OneThread:
    """Lets one thread in at a time, and that one as often as it asks.

    A copy has nobody in it, nor has what another process makes of it, pickled or forked.

    >>> alone = OneThread()
    >>> with alone, alone:
    ...     print("in")
    in
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process = os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():  # whoever was in it when the process forked is not here to leave
            self.__init__()  # type: ignore[misc]  # as good as new
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return OneThread, ()
