"""What a training prints: a table of metrics, a closing line and, on a terminal, a bar."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from rm_plugins.cli.job_options import progress_bar
from rm_plugins.cli.printed import echo, is_quiet, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_EVALUATION = "eval_"


class Column(NamedTuple):
    """A column of the table: the metric's name in the logs, its heading, its format and its width."""

    metric: str
    heading: str
    form: str
    width: int


class TrainingTable(TrainerCallback, ABC):
    """Prints a line for each entry of a trainer's log and a closing line, and shows a bar where standard error is a terminal.

    Args:
        trainer: The trainer. What it would print by itself is removed.
    """

    columns: ClassVar[tuple[Column, ...]]
    """The metrics that are shown."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._has_header = False
        self.last: dict[str, float] = {}
        self._first_step = 0
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        trainer.add_callback(self)

    @abstractmethod
    def closing(self, steps: int, logs: Mapping[str, Any]) -> str:
        """The closing line.

        Args:
            steps: The steps of this training, since it was resumed.
            logs: The trainer's last log.
        """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say after which step the training resumes, and show the bar."""
        self._first_step = state.global_step
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
            self.last |= {column.metric: float(logs[column.metric]) for column in self.columns if column.metric in logs}
        if "train_runtime" in logs and (steps := state.global_step - self._first_step):
            self._print(self.closing(steps, logs))
        if not is_evaluation and "loss" not in logs:
            return
        prefix = _EVALUATION if is_evaluation else ""
        cells = {"step": f"eval {state.global_step}" if is_evaluation else str(state.global_step)}
        cells["epoch"] = f"{float(logs['epoch']):.2f}" if "epoch" in logs else ""
        for column in self.columns:
            value = logs.get(f"{prefix}{column.metric}")
            cells[column.heading] = "" if value is None else format(float(value), column.form)
        if not self._has_header:
            self._has_header = True
            self._print(self._line({name: name for name in cells}))
        self._print(self._line(cells))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Stop the bar, also where the training failed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, cells: Mapping[str, str]) -> str:
        widths = {"step": 10, "epoch": 6, **{column.heading: column.width for column in self.columns}}
        return "".join(f"{cells[name]:>{width}}" for name, width in widths.items())

    def _print(self, line: str) -> None:
        if self._bar is not None and not self._bar.disable and sys.stdout.isatty():
            self._bar.console.print(line, markup=False, highlight=False)  # above the bar, on the same terminal
        else:
            echo(line)


def duration(seconds: float) -> str:
    """Seconds as the closing line shows them.

    >>> duration(9.87), duration(98.7)
    ('9.9 s', '99 s')
    """
    return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
