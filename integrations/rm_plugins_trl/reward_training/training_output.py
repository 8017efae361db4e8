"""What ``rm-plugins train`` prints: a table of metrics, a closing line and, on a terminal, a bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rm_plugins_trl.training_table import Column, TrainingTable, duration


class TrainingOutput(TrainingTable):
    """The table of a `RewardTrainer`.

    Args:
        trainer: The `RewardTrainer`. What it would print by itself is removed.
    """

    columns: ClassVar = (
        Column("loss", "loss", ".4f", 8),
        Column("accuracy", "accuracy", ".1%", 9),
        Column("margin", "margin", ".4g", 10),
        Column("mean_reward", "reward", ".4g", 10),
        Column("std_reward", "std", ".4g", 10),
        Column("learning_rate", "learning rate", ".2g", 14),
    )

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self._items_before = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say after which step the training resumes, and show the bar."""
        self._items_before = self.trainer.trained_items
        super().on_train_begin(args, state, control, **kwargs)

    def closing(self, steps: int, logs: Mapping[str, Any]) -> str:
        """The number of items, and the last loss and accuracy."""
        trainer = self.trainer
        items = f"{trainer.trained_items - self._items_before} {trainer.losses[0].mean_over}"
        loss = self.last.get("loss", float(logs["train_loss"]))  # the mean of all steps if none was logged
        accuracy = f", accuracy {self.last['accuracy']:.1%}" if "accuracy" in self.last else ""
        return (
            f"Trained {steps} step{'s' * (steps > 1)} on {items} in {duration(float(logs['train_runtime']))}. "
            f"Last loss {loss:.4f}{accuracy}."
        )
