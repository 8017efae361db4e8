"""Ensures that all processes of a server serve the same reward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rm_plugins.errors import ModelError

_SECONDS_TO_WAIT = 5.0
"""The longest wait for the lock, because a process that is killed while it holds the lock never releases it."""


class AnotherReward(ModelError):
    """The other processes of the server serve another reward."""


class Agreement:
    """The fingerprint of the reward that several processes serve, set by the first process that loads it.

    Args:
        context: A context of `multiprocessing`, which creates the shared memory.
    """

    def __init__(self, context: Any) -> None:
        self._lock = context.Lock()
        self._served = context.Array("c", 64, lock=False)

    def join(self, fingerprint: str) -> None:
        """Agree to serve a reward.

        Raises:
            AnotherReward: The other processes serve another reward.
        """
        with self._locked():
            served = self._served.value.decode()
            if served and served != fingerprint:
                raise AnotherReward(
                    f"The reward in the spec has changed: its fingerprint is now {fingerprint[:12]}, but the server's processes serve "
                    f"{served[:12]}. Reload the server (POST /v1/reload, or SIGHUP), or restore the files."
                )
            self._served.value = fingerprint.encode()

    def renew(self) -> None:
        """Let the next process that loads the reward decide."""
        with self._locked():
            self._served.value = b""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        is_locked = self._lock.acquire(timeout=_SECONDS_TO_WAIT)
        try:
            yield
        finally:
            if is_locked:
                self._lock.release()
