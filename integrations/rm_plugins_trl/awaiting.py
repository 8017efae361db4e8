"""Whether a trainer awaits a reward, or calls it.

TRL's GRPO, RLOO and AsyncGRPO trainers await objects whose ``__call__`` is an async function, all of them at the same time. They look at
the attribute ``__call__`` of the object. Other trainers, such as Online DPO, and TRL 1.13 and earlier call every object.
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib.metadata import version

from packaging.version import Version

import rm_plugins as rm
from rm_plugins.errors import SpecError
from rm_plugins.providers.function import FunctionProvider

_AWAITS_OBJECTS = Version("1.14.0.dev0")
_INSIDE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
"""The names of frames that belong to the function around them; Python 3.12 and later have fewer of them."""


@cache
def trl_awaits_objects() -> bool:
    """Whether the installed TRL awaits objects with an async ``__call__``; asking does not import TRL, which takes seconds."""
    return Version(version("trl")) >= _AWAITS_OBJECTS


def may_be_awaited(provider: rm.Provider, wanted: bool | None) -> bool:
    """Whether trainers that await rewards should await this one.

    Args:
        provider: The reward.
        wanted: The user's choice. If None, a reward is awaited unless it has a function that is not async. Such a function may only work in
            the main thread, as those that set a timer do, and the trainer waits in that thread.

    Raises:
        SpecError: The user wants it, and the installed TRL does not await objects.
    """
    if wanted and not trl_awaits_objects():
        raise SpecError(
            f"awaitable=True needs TRL 1.14 or later; TRL {version('trl')} would call the reward and not await it. Leave the argument out."
        )
    if wanted is not None:
        return wanted
    return trl_awaits_objects() and all(part.concurrent for _, part in provider.walk() if isinstance(part, FunctionProvider))


def is_called_by_coroutine() -> bool:
    """Whether the function that asks was called by the code of an async function, which can await its result.

    A running event loop would not be enough: in a notebook one runs during every call.
    """
    own = inspect.currentframe()
    asks = None if own is None else own.f_back
    frame = None if asks is None else asks.f_back
    while frame is not None and frame.f_code.co_name in _INSIDE:
        frame = frame.f_back
    return frame is not None and bool(frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))
