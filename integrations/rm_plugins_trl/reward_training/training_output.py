"""What a training prints: a table of metrics, a closing line and, on a terminal, a bar."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from rm_plugins.cli.job_options import progress_bar
from rm_plugins.cli.printed import echo, is_quiet, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_COLUMNS = {
    "loss": ("loss", ".4f"),
    "accuracy": ("accuracy", ".1%"),
    "margin": ("margin", ".4g"),
    "mean_reward": ("reward", ".4g"),
    "std_reward": ("std", ".4g"),
    "learning_rate": ("learning rate", ".2g"),
}
"""The metrics that are shown, each with its heading and format."""
_WIDTH = {"step": 10, "epoch": 6, "loss": 8, "accuracy": 9, "margin": 10, "reward": 10, "std": 10, "learning rate": 14}
_EVALUATION = "eval_"


class TrainingOutput(TrainerCallback):
    """Prints a line for each entry of a trainer's log and a closing line, and shows a bar where standard error is a terminal.

    Args:
        trainer: The `RewardTrainer`. What it would print by itself is removed.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._has_header = False
        self._last: dict[str, float] = {}
        self._first_step = self._items_before = 0
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say after which step the training resumes, and show the bar."""
        self._first_step, self._items_before = state.global_step, self._trainer.trained_items
        if self._first_step and state.is_world_process_zero:
            say(f"Resuming after step {self._first_step} of {state.max_steps}.")
        if state.is_world_process_zero and not args.disable_tqdm:
            self._bar = progress_bar()
            self._bar.start()
            self._task = self._bar.add_task("Training", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar, and let the last step be logged: its metrics are those of the trained model."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Print a line of training metrics or of an evaluation, and at the end of the training the closing line."""
        if logs is None or not state.is_world_process_zero or is_quiet():
            return
        is_evaluation = any(name.startswith(_EVALUATION) for name in logs)
        if not is_evaluation:
            self._last |= {name: float(logs[name]) for name in ("loss", "accuracy") if name in logs}
        if "train_runtime" in logs:
            self._print_end(state.global_step - self._first_step, logs)
        if not is_evaluation and "loss" not in logs:
            return
        prefix = _EVALUATION if is_evaluation else ""
        cells = {"step": f"eval {state.global_step}" if is_evaluation else str(state.global_step)}
        cells["epoch"] = f"{float(logs['epoch']):.2f}" if "epoch" in logs else ""
        for name, (heading, form) in _COLUMNS.items():
            value = logs.get(f"{prefix}{name}")
            cells[heading] = "" if value is None else format(float(value), form)
        if not self._has_header:
            self._has_header = True
            self._print(_line({name: name for name in _WIDTH}))
        self._print(_line(cells))

    def _print_end(self, steps: int, logs: Mapping[str, Any]) -> None:
        if not steps:
            return
        trainer = self._trainer
        items = f"{trainer.trained_items - self._items_before} {trainer.losses[0].mean_over}"
        seconds = float(logs["train_runtime"])
        loss = self._last.get("loss", float(logs["train_loss"]))  # the mean of all steps if none was logged
        accuracy = f", accuracy {self._last['accuracy']:.1%}" if "accuracy" in self._last else ""
        self._print(
            f"Trained {steps} step{'s' * (steps > 1)} on {items} in {seconds:.{0 if seconds >= 10 else 1}f} s. "
            f"Last loss {loss:.4f}{accuracy}."
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Stop the bar, also where the training failed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, line: str) -> None:
        if self._bar is not None and not self._bar.disable and sys.stdout.isatty():
            self._bar.console.print(line, markup=False, highlight=False)  # above the bar, on the same terminal
        else:
            echo(line)


def _line(cells: Mapping[str, str]) -> str:
    return "".join(f"{cells[name]:>{width}}" for name, width in _WIDTH.items())
