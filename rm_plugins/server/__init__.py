"""Serves any reward over HTTP, in the dialects of existing trainers and clients.

Importing this package does not import a web framework: the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rm_plugins.lazy_names import lazy_names

if TYPE_CHECKING:
    from rm_plugins.server.app import create_app
    from rm_plugins.server.served_reward import ServedReward
    from rm_plugins.server.settings import Settings

__all__ = ["ServedReward", "Settings", "create_app"]

_HOMES = {"ServedReward": "served_reward", "Settings": "settings", "create_app": "app"}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, __all__)
