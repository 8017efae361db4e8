"""Named rewards as attributes, for TRL's command line: ``trl grpo --reward_funcs rm_plugins_trl.rewards.NAME``.

The names are those of ``rm_plugins.yaml`` in the working directory, or of the file that ``RM_PLUGINS_SPEC`` names.
"""

from __future__ import annotations

from rm_plugins.errors import did_you_mean
from rm_plugins.named_rewards import SPEC_VARIABLE, named_rewards
from rm_plugins_trl.reward_function import RewardFunction, reward_func

_loaded: dict[str, RewardFunction] = {}


def __getattr__(name: str) -> RewardFunction:
    if name.startswith("__"):
        raise AttributeError(name)
    rewards = named_rewards()
    if name not in rewards:
        raise AttributeError(
            f"No reward is called {name!r} in rm_plugins.yaml here, or in the file that {SPEC_VARIABLE} names. "
            f"{did_you_mean(name, rewards)}"
        )
    if name not in _loaded:
        _loaded[name] = reward_func(name, name=name)
    return _loaded[name]


def __dir__() -> list[str]:
    return sorted(named_rewards())
