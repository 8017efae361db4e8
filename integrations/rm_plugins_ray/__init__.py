"""rm-plugins on Ray: serving, actors and data sets. No other package of rm-plugins imports ray; this one does when it is first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rm_plugins.lazy_names import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES, __all__)
