"""Serves any reward over HTTP, in the dialects of existing trainers and clients.

Importing this package does not import a web framework: the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rm_plugins.server.app import create_app
    from rm_plugins.server.served_reward import ServedReward
    from rm_plugins.server.settings import Settings

__all__ = ["ServedReward", "Settings", "create_app"]

_HOMES = {"ServedReward": "served_reward", "Settings": "settings", "create_app": "app"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
