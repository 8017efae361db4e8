"""What ``rm-plugins ppo`` prints while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from rm_plugins_trl.training_table import Column, TrainingTable, duration


class PPOOutput(TrainingTable):
    """The table of a `PPOTrainer`.

    Args:
        trainer: The `PPOTrainer`. What it would print by itself is removed.
    """

    columns: ClassVar = (
        Column("objective/scores", "score", ".4g", 12),
        Column("objective/kl", "kl", ".3g", 11),
        Column("policy/entropy_avg", "entropy", ".3g", 9),
        Column("completions/mean_length", "tokens", ".4g", 8),
        Column("policy/clipfrac_avg", "clipped", ".1%", 9),
        Column("critic/explained_variance", "explained", ".3g", 11),
    )

    def closing(self, steps: int, logs: Mapping[str, Any]) -> str:
        """The number of completions, and the last score and KL divergence."""
        args = self.trainer.args
        rollouts = math.ceil(steps / (args.num_ppo_epochs * args.num_mini_batches))
        score = f" Last score {self.last['objective/scores']:.4g}" if "objective/scores" in self.last else ""
        kl = f", KL {self.last['objective/kl']:.3g}" if score and "objective/kl" in self.last else ""
        return (
            f"Trained {steps} step{'s' * (steps > 1)} on {rollouts * args.batch_size} completions in "
            f"{duration(float(logs['train_runtime']))}.{score}{kl}{'.' * bool(score)}"
        )
