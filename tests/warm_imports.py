"""What programs with a trainer import."""

import gc

import peft  # noqa: F401
from trl import GRPOConfig, GRPOTrainer  # noqa: F401

import rm_plugins_trl.ppo
import rm_plugins_trl.reward_training.reward_trainer  # noqa: F401

# Out of the garbage collection, which every end of a training asks for and which took a quarter of a short one; forks inherit this.
gc.collect()
gc.freeze()
