"""PPO with any provider as its reward.

Up to TRL 1.12, `PPOTrainer` extends TRL's own; from 1.13 on, where TRL has none, it extends TRL's GRPO trainer.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from packaging.version import Version

if TYPE_CHECKING:
    from rm_plugins_trl.ppo.config import PPOConfig
    from rm_plugins_trl.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]

TRL_HAS_PPO = Version(version("trl")) < Version("1.13")
"""Whether TRL has a PPO trainer of its own."""

_HOMES = {"PPOConfig": "config", "PPOTrainer": "trainer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'trl_1_12' if TRL_HAS_PPO else _HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
