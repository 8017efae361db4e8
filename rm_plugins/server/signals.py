"""The signals of a server, some of which also reach its other processes, such as Ctrl-C in a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[None]:
    """Within it, a process that this thread starts gets these signals only once it calls `receive`.

    Otherwise they would end it until it has imported its code.
    """
    resource_tracker.ensure_running()  # starting it together with the process would let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def receive() -> None:
    """Receive these signals, including those that were held back."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
