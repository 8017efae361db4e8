"""rm-plugins on Ray: serving, actors and data sets. No other package of rm-plugins imports ray; this one does when it is first needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rm_plugins_ray.reward_actor import RewardActor, start_actor
    from rm_plugins_ray.scored_dataset import score
    from rm_plugins_ray.serving import ServeArguments, app

__all__ = ["RewardActor", "ServeArguments", "app", "score", "start_actor"]

_HOMES = {
    "RewardActor": "reward_actor",
    "ServeArguments": "serving",
    "app": "serving",
    "score": "scored_dataset",
    "start_actor": "reward_actor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
