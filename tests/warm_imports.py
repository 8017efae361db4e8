"""What programs with a trainer import."""

import peft  # noqa: F401
from trl import GRPOConfig, GRPOTrainer  # noqa: F401

import rm_plugins_trl.ppo
import rm_plugins_trl.reward_training.reward_trainer  # noqa: F401
