"""What the processes of a server agree on: that they all serve the same reward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rm_plugins.errors import ModelError

_SECONDS_TO_WAIT = 5.0
"""For a process that is looking; one that was killed meanwhile would be waited for without end."""


class Agreement:
    """The fingerprint of the reward that several processes serve: that of the first of them which loads it.

    Args:
        context: Makes what the processes share, a context of `multiprocessing`.
    """

    def __init__(self, context: Any) -> None:
        self._lock = context.Lock()
        self._served = context.Array("c", 64, lock=False)

    def join(self, fingerprint: str) -> None:
        """Agree to serve a reward.

        Raises:
            ModelError: The other processes serve another one.
        """
        with self._alone():
            served = self._served.value.decode()
            if served and served != fingerprint:
                raise ModelError(
                    f"What the spec names has changed: it is {fingerprint[:12]} now, and this server's processes serve {served[:12]}. It "
                    "is not served beside that. Have the server load again (POST /v1/reload, or SIGHUP), or put the files back."
                )
            self._served.value = fingerprint.encode()

    def renew(self) -> None:
        """Have whoever loads next decide."""
        with self._alone():
            self._served.value = b""

    @contextmanager
    def _alone(self) -> Iterator[None]:
        is_alone = self._lock.acquire(timeout=_SECONDS_TO_WAIT)
        try:
            yield
        finally:
            if is_alone:
                self._lock.release()
