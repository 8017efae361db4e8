"""Named rewards as attributes, for TRL's command line: ``trl grpo --reward_funcs rm_plugins_trl.rewards.NAME``.

The names are those of ``rm_plugins.yaml`` in the working directory, or of the file that ``RM_PLUGINS_SPEC`` names. ``NAME/COLUMN`` is a
part of a reward, as `rm_plugins_trl.reward_funcs` names it. All parts of a reward share one scoring.
"""

from __future__ import annotations

from rm_plugins.errors import did_you_mean
from rm_plugins.named_rewards import SPEC_VARIABLE, named_rewards
from rm_plugins_trl.reward_columns import SharedScoring
from rm_plugins_trl.reward_function import RewardFunction, reward_func

_loaded: dict[str, RewardFunction] = {}
_shared: dict[str, SharedScoring] = {}


def __getattr__(name: str) -> RewardFunction:
    if name.startswith("__"):
        raise AttributeError(name)
    rewards = named_rewards()
    reward, _, column = (name, "", "") if name in rewards else name.partition("/")
    if reward not in rewards:
        raise AttributeError(
            f"No reward is called {reward!r} in rm_plugins.yaml here, or in the file that {SPEC_VARIABLE} names. "
            f"{did_you_mean(reward, rewards)}"
        )
    if name not in _loaded:
        _loaded[name] = _column(reward, column) if column else reward_func(name, name=name)
    return _loaded[name]


def _column(reward: str, column: str) -> RewardFunction:
    if reward not in _shared:
        _shared[reward] = SharedScoring.of(reward, name=reward)
    return _shared[reward].column(column)


def __dir__() -> list[str]:
    return sorted(named_rewards())
