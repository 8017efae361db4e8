"""Runs the endpoints of long requests in a thread of their own: whatever they make of a body, the event loop serves everybody else.

The queue, and all else that requests share, stays with the first event loop, which is called home here.
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
    """Has a coroutine function run in the event loop that is home, whichever calls it."""

    @wraps(function)
    async def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Value:
        home = _home.get()
        if home is None or home is asyncio.get_running_loop():
            return await function(*arguments, **named)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*arguments, **named), home))

    return run


class Aside:
    """An event loop in a thread, which begins with the first request."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(
        self,
        app: Callable[..., Awaitable[None]],
        scope: Any,
        receive: Callable[[], Coroutine[Any, Any, Any]],
        send: Callable[[Any], Coroutine[Any, Any, None]],
    ) -> None:
        """Run an ASGI application there, with the `receive` and `send` of the event loop that calls."""
        _home.set(asyncio.get_running_loop())

        async def there() -> None:
            await app(scope, at_home(receive), at_home(send))

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self._started()))

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="rm-plugins-aside", daemon=True).start()
        return self._loop
