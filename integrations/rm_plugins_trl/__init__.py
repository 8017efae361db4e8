"""rm-plugins in TRL's trainers. No other package of rm-plugins imports trl; this one does when one of the names below is first used."""

from logging import getLogger
from typing import TYPE_CHECKING

from rm_plugins.lazy_names import lazy_names

if TYPE_CHECKING:
    from rm_plugins_trl.ppo import PPOConfig, PPOTrainer
    from rm_plugins_trl.reward_columns import RewardColumn, reward_funcs
    from rm_plugins_trl.reward_function import RewardFunction, reward_func
    from rm_plugins_trl.reward_model import RewardModel
    from rm_plugins_trl.reward_training.reward_config import RewardConfig
    from rm_plugins_trl.reward_training.reward_evaluation import RewardEvaluation
    from rm_plugins_trl.reward_training.reward_trainer import RewardTrainer
    from rm_plugins_trl.reward_training.train_data import reward_dataset
    from rm_plugins_trl.reward_watch import RewardWatch

__all__ = [
    "PPOConfig",
    "PPOTrainer",
    "RewardColumn",
    "RewardConfig",
    "RewardEvaluation",
    "RewardFunction",
    "RewardModel",
    "RewardTrainer",
    "RewardWatch",
    "reward_dataset",
    "reward_func",
    "reward_funcs",
]

# peft imports bitsandbytes, which on a CPU logs that it lacks a kernel for 4 bits, whether or not anything has 4 bits.
getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "Failed to load CPU gemm" not in record.getMessage())

_HOMES = {
    "PPOConfig": "ppo",
    "PPOTrainer": "ppo",
    "RewardColumn": "reward_columns",
    "RewardConfig": "reward_training.reward_config",
    "RewardEvaluation": "reward_training.reward_evaluation",
    "RewardFunction": "reward_function",
    "RewardModel": "reward_model",
    "RewardTrainer": "reward_training.reward_trainer",
    "RewardWatch": "reward_watch",
    "reward_dataset": "reward_training.train_data",
    "reward_func": "reward_function",
    "reward_funcs": "reward_columns",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, __all__)
