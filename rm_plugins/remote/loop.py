"""The thread with the event loop on which all remote providers of a process communicate."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from rm_plugins.per_process import PerProcess
from rm_plugins.scoring_threads import ended_by_stop

if TYPE_CHECKING:
    from rm_plugins.remote.connections import Connections, Trust

Result = TypeVar("Result")


class Network:
    """An event loop in its own thread, and the connections that belong to it."""

    def __init__(self) -> None:
        from rm_plugins.remote.connections import THREAD_NAME  # here, because it imports the HTTP client, which takes a while

        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=THREAD_NAME, daemon=True)
        self._thread.start()
        self._pools: dict[Trust, tuple[Connections, int]] = {}

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the loop and wait for it; an interrupt of the calling thread, or a cancelled caller, cancels it.

        Raises:
            BaseException: Any exception of the coroutine.
        """
        future: Future[Result] = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            with ended_by_stop(future.cancel):
                return future.result()
        except BaseException:
            future.cancel()
            raise

    def borrow(self, trust: Trust) -> Connections:
        """The connections with these settings, shared by all borrowers; must be called on the loop's thread."""
        from rm_plugins.remote.connections import Connections

        pool, users = self._pools.get(trust) or (Connections(trust), 0)
        self._pools[trust] = (pool, users + 1)
        return pool

    async def give_back(self, trust: Trust) -> None:
        """Return borrowed connections; they are closed when the last borrower returns them."""
        pool, users = self._pools.pop(trust)
        if users > 1:
            self._pools[trust] = (pool, users - 1)
        else:
            await pool.close()

    def stop(self) -> None:
        """Close all connections, and end the thread."""

        async def close() -> None:
            for pool, _ in self._pools.values():
                await pool.close()

        try:
            asyncio.run_coroutine_threadsafe(close(), self.loop).result(timeout=1)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout=1)
            if not self._thread.is_alive():
                self.loop.close()


_network = PerProcess[Network]()


def network() -> Network:
    """The network of this process, created on first use."""
    return _network.made(Network)


def _stop_network() -> None:
    current = _network.take()
    if current is not None:
        try:
            current.stop()
        except TimeoutError:
            return  # the thread is a daemon, so the process can end anyway


atexit.register(_stop_network)
