"""Runs the endpoints of long requests in a second event loop, so that parsing a large body does not block other requests.

The queue, and everything else that requests share, stays with the first event loop, called the home loop here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_home: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("_home", default=None)

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def at_home(function: Callable[Arguments, Coroutine[Any, Any, Value]]) -> Callable[Arguments, Coroutine[Any, Any, Value]]:
    """Make a coroutine function run in the home loop, also if another event loop calls it."""

    @wraps(function)
    async def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Value:
        home = _home.get()
        if home is None or home is asyncio.get_running_loop():
            return await function(*arguments, **named)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*arguments, **named), home))

    return run


async def beside(function: Callable[..., Value], *arguments: Any) -> Value:
    """Call a function whose time grows with the request: of a long request in a thread, so that other requests are not blocked.

    For a short request, changing threads would take longer than the function.
    """
    if _home.get() is None:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


class Aside:
    """The second event loop, in a thread that starts with the first request."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(
        self,
        app: Callable[..., Awaitable[None]],
        scope: Any,
        receive: Callable[[], Coroutine[Any, Any, Any]],
        send: Callable[[Any], Coroutine[Any, Any, None]],
    ) -> None:
        """Run an ASGI application in the second loop, with the `receive` and `send` of the calling event loop."""
        _home.set(asyncio.get_running_loop())

        async def there() -> None:
            await app(scope, at_home(receive), at_home(send))

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self._started()))

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="rm-plugins-aside", daemon=True).start()
        return self._loop
